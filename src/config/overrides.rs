//! `--set KEY=VALUE`: any key of the configuration by its dotted path, the value in YAML.

use super::error::nearest;
use super::{Config, ConfigError};
use serde_json::Value;

pub(super) fn apply(base: Config, overrides: &[String]) -> Result<Config, ConfigError> {
    overrides.iter().try_fold(base, |config, text| apply_one(&config, text))
}

fn apply_one(config: &Config, text: &str) -> Result<Config, ConfigError> {
    let (key, value) = text.split_once('=').ok_or_else(|| ConfigError::Override { text: text.to_owned() })?;
    let invalid = |message: String| ConfigError::OverrideValue { text: text.to_owned(), message };
    let value: Value = if value.is_empty() {
        Value::Null
    } else {
        serde_saphyr::from_str(value).map_err(|e| invalid(e.without_snippet().to_string()))?
    };
    let mut tree = serde_json::to_value(config).map_err(|e| invalid(e.to_string()))?;
    match find(&mut tree, key) {
        Some(place) => *place = as_default_kind(value, place),
        None => {
            let keys = keys(&tree, "");
            let nearest = nearest(key, keys.iter().map(String::as_str));
            return Err(ConfigError::UnknownOverride { key: key.to_owned(), nearest });
        }
    }
    serde_json::from_value(tree).map_err(|e| invalid(e.to_string()))
}

/// Text where the key holds text: `--set log=off` or `--set data_dir=1` name no bool or number.
fn as_default_kind(value: Value, default: &Value) -> Value {
    match (&value, default) {
        (Value::Number(n), Value::String(_)) => Value::String(n.to_string()),
        (Value::Bool(b), Value::String(_)) => Value::String(b.to_string()),
        _ => value,
    }
}

fn find<'a>(tree: &'a mut Value, key: &str) -> Option<&'a mut Value> {
    key.split('.').try_fold(tree, |node, name| node.as_object_mut()?.get_mut(name))
}

/// Every dotted path of the tree, inner nodes too.
pub(super) fn keys(tree: &Value, prefix: &str) -> Vec<String> {
    let Value::Object(map) = tree else { return Vec::new() };
    let mut all = Vec::new();
    for (name, value) in map {
        let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        all.extend(keys(value, &path));
        all.push(path);
    }
    all
}
