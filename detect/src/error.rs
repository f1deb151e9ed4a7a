use std::io;
use std::path::{Path, PathBuf};

/// What can go wrong outside the packet path.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DetectError {
    /// A setting outside what is supported.
    #[error("{field} is {value}, allowed is {allowed}")]
    Config {
        /// Path of the setting below the detectors, such as `port_scan.window`.
        field: &'static str,
        /// What it was.
        value: String,
        /// What it may be, in words.
        allowed: &'static str,
    },
    /// The alert log's folder or files refused.
    #[error("cannot {action} {path}: {source}; check that the folder exists, is writable and has space", path = path.display())]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// An alert too long for the log; nothing was written.
    #[error("alert '{key}' takes {bytes} bytes, allowed are {allowed}; give it less evidence or the log more space")]
    AlertTooLarge {
        /// Key of the alert.
        key: String,
        /// Length of its line.
        bytes: u64,
        /// Longest line the log takes.
        allowed: u64,
    },
    /// An alert that JSON cannot express.
    #[error("alert '{key}' cannot be written as JSON: {source}")]
    Encode {
        /// Key of the alert.
        key: String,
        /// What the encoder said.
        source: serde_json::Error,
    },
}

impl DetectError {
    pub(crate) fn config(field: &'static str, value: impl ToString, allowed: &'static str) -> DetectError {
        DetectError::Config { field, value: value.to_string(), allowed }
    }

    /// For `map_err`: names the action and the path.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DetectError + use<> {
        let path = path.to_owned();
        move |source| DetectError::Io { action, path, source }
    }
}
