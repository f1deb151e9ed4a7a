use std::path::{Path, PathBuf};
use thiserror::Error;

/// A configuration that cannot be used, in one sentence.
#[derive(Debug, Error)]
pub(crate) enum ConfigError {
    #[error("cannot read the config {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{}line {line}: unknown key '{key}'{}", file(.path), suggestion(.nearest, .known))]
    UnknownKey { path: Option<PathBuf>, line: u64, key: String, nearest: Option<String>, known: Vec<String> },
    #[error("{}{}{message}", file(.path), line_prefix(.line))]
    Yaml { path: Option<PathBuf>, line: Option<u64>, message: String },
    #[error("--set {text}: expected KEY=VALUE, for example --set flowtable.timeouts=off")]
    Override { text: String },
    #[error("--set {key}: unknown key{}", suggestion(.nearest, &[]))]
    UnknownOverride { key: String, nearest: Option<String> },
    #[error("--set {text}: {message}")]
    OverrideValue { text: String, message: String },
    #[error("{key}: {message}")]
    Value { key: String, message: String },
    #[error("{0}")]
    Stage(String),
    #[error("{}, {inner}", path.display())]
    InFile { path: PathBuf, inner: Box<ConfigError> },
}

fn file(path: &Option<PathBuf>) -> String {
    path.as_ref().map(|p| format!("{}, ", p.display())).unwrap_or_default()
}

fn line_prefix(line: &Option<u64>) -> String {
    line.map(|l| format!("line {l}: ")).unwrap_or_default()
}

fn suggestion(nearest: &Option<String>, known: &[String]) -> String {
    match nearest {
        Some(name) => format!("; did you mean '{name}'?"),
        None if known.is_empty() => "; `taphouse example-config` prints all keys".to_owned(),
        None => format!("; known here: {}", known.join(", ")),
    }
}

/// The name most like `wanted`, if one is close enough to be a slip.
pub(crate) fn nearest<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> Option<String> {
    names
        .map(|name| (strsim::damerau_levenshtein(wanted, name), name))
        .filter(|(distance, name)| *distance <= 2.max(name.len() / 3))
        .min()
        .map(|(_, name)| name.to_owned())
}

/// Characters of a line that are shown.
const WRITTEN_MAX: usize = 80;

/// What a reader of YAML says, for people who do not read Rust.
fn plainly(message: &str) -> String {
    let whole = |least: i128, most: i128| format!("not a whole number from {least} to {most}");
    match message {
        "invalid u8" => whole(0, u8::MAX.into()),
        "invalid u16" => whole(0, u16::MAX.into()),
        "invalid u32" => whole(0, u32::MAX.into()),
        "invalid u64" | "invalid usize" => whole(0, u64::MAX.into()),
        "invalid i64" => whole(i64::MIN.into(), i64::MAX.into()),
        "invalid f64" => "not a number".to_owned(),
        "invalid boolean" => "neither true nor false".to_owned(),
        "expected mapping start" => "keys and their values should stand here, as in `key: value`".to_owned(),
        "expected sequence start" => "a list should stand here, as in `[one, two]`".to_owned(),
        _ => match message.strip_prefix("duplicate mapping key: ") {
            Some(key) => format!("the key '{}' stands here a second time", key.split(", set ").next().unwrap_or(key)),
            None => message.to_owned(),
        },
    }
}

impl ConfigError {
    /// What is wrong with `text`.
    pub(crate) fn from_yaml(error: &serde_saphyr::Error, text: &str) -> ConfigError {
        let error = error.without_snippet();
        let line = error.location().map(|l| l.line()).filter(|l| *l > 0);
        if let serde_saphyr::Error::SerdeUnknownField { field, expected, .. } = error {
            return ConfigError::UnknownKey {
                path: None,
                line: line.unwrap_or(0),
                key: field.clone(),
                nearest: nearest(field, expected.iter().copied()),
                known: expected.iter().map(|s| (*s).to_owned()).collect(),
            };
        }
        // The text repeats the place; the first line says what is wrong.
        let told = error.to_string();
        let first = told.lines().next().unwrap_or_default();
        let message = plainly(first.split(" at line ").next().unwrap_or(first));
        let written = line.and_then(|line| text.lines().nth(line as usize - 1)).map_or("", str::trim);
        let message = match written {
            "" => message,
            written => format!("`{}`: {message}", written.chars().take(WRITTEN_MAX).collect::<String>()),
        };
        ConfigError::Yaml { path: None, line, message }
    }

    /// Names the file that most likely holds the value.
    pub(super) fn about(self, file: Option<&Path>) -> ConfigError {
        match file {
            Some(path) => ConfigError::InFile { path: path.to_owned(), inner: Box::new(self) },
            None => self,
        }
    }

    pub(crate) fn in_file(mut self, file: &Path) -> ConfigError {
        if let ConfigError::UnknownKey { path, .. } | ConfigError::Yaml { path, .. } = &mut self {
            *path = Some(file.to_owned());
        }
        self
    }
}
