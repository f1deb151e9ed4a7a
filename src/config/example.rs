//! The complete example, made from the types: names and defaults from the values, comments from the docs.

use super::Config;
use serde_json::{Map, Value};

/// Every key with its default and what it means, as YAML.
pub(crate) fn example() -> String {
    let schema = schemars::schema_for!(Config).to_value();
    let defaults = serde_json::to_value(Config::default()).unwrap_or_default();
    let mut out = String::from(
        "# Every key of the configuration with its default. A file needs only the keys that differ.\n\
         # Check one with `taphouse validate FILE`; override any key with `--set KEY=VALUE`.\n",
    );
    if let Value::Object(map) = &defaults {
        section(&mut out, map, &schema, &schema, 0);
    }
    out
}

fn section(out: &mut String, values: &Map<String, Value>, schema: &Value, root: &Value, depth: usize) {
    let indent = "  ".repeat(depth);
    for (name, value) in values {
        let property = &schema["properties"][name];
        let described = resolve(property, root);
        if depth == 0 {
            out.push('\n');
        }
        let text = property["description"].as_str().or_else(|| described["description"].as_str()).unwrap_or_default();
        for line in text.lines() {
            out.push_str(&format!("{indent}# {}\n", line.trim()));
        }
        match value {
            Value::Object(map) => {
                out.push_str(&format!("{indent}{name}:\n"));
                section(out, map, described, root, depth + 1);
            }
            Value::Array(items) if items.iter().any(Value::is_object) => {
                out.push_str(&format!("{indent}{name}:\n"));
                items.iter().for_each(|item| list_item(out, item, &indent));
            }
            Value::String(text) => out.push_str(&format!("{indent}{name}: {text}\n")),
            other => out.push_str(&format!("{indent}{name}: {other}\n")),
        }
    }
}

/// One of several sections in a list; what its keys mean stands in the documentation.
fn list_item(out: &mut String, item: &Value, indent: &str) {
    for (at, (name, value)) in item.as_object().into_iter().flatten().enumerate() {
        let dash = if at == 0 { "- " } else { "  " };
        match value {
            Value::String(text) => out.push_str(&format!("{indent}  {dash}{name}: {text}\n")),
            other => out.push_str(&format!("{indent}  {dash}{name}: {other}\n")),
        }
    }
}

/// Follows `$ref` and the first alternative that has properties.
fn resolve<'a>(schema: &'a Value, root: &'a Value) -> &'a Value {
    if let Some(name) = schema["$ref"].as_str().and_then(|r| r.rsplit('/').next()) {
        return resolve(&root["$defs"][name], root);
    }
    for key in ["anyOf", "oneOf"] {
        let alternatives = schema[key].as_array().into_iter().flatten();
        if let Some(found) = alternatives.map(|a| resolve(a, root)).find(|a| a["properties"].is_object()) {
            return found;
        }
    }
    schema
}
