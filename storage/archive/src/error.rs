use std::io;
use std::path::PathBuf;

/// What can go wrong with an archive.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// A text that names no place.
    #[error("'{url}' is no archive ({reason}); write s3://BUCKET/PREFIX, or file:///FOLDER for a mounted one")]
    Url {
        /// The text.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// An option out of range.
    #[error("{field}: {value}; allowed are {allowed}")]
    Option {
        /// Name of the configuration key.
        field: &'static str,
        /// Its value.
        value: String,
        /// What it may be.
        allowed: &'static str,
    },
    /// There is no such bucket.
    #[error("{url}: there is no such bucket; create it, or correct the name or AWS_ENDPOINT_URL")]
    NoBucket {
        /// The archive.
        url: String,
    },
    /// No credentials were found.
    #[error(
        "{url}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SKIP_SIGNATURE=true for a public bucket"
    )]
    NoCredentials {
        /// The archive.
        url: String,
    },
    /// The credentials do not allow it.
    #[error("{url}: access denied ({reason}); check AWS_ACCESS_KEY_ID and what the bucket's policy allows it")]
    Denied {
        /// The archive.
        url: String,
        /// What the server said.
        reason: String,
    },
    /// Nobody answered.
    #[error(
        "{url} cannot be reached ({reason}); check the network, AWS_ENDPOINT_URL, AWS_REGION, and AWS_ALLOW_HTTP=true for http"
    )]
    Unreachable {
        /// The archive.
        url: String,
        /// What happened.
        reason: String,
    },
    /// There is a bucket and nothing of ours in it.
    #[error(
        "{url} holds no archive: no sensor has shipped anything there (sensor=NAME/... is missing); check the prefix"
    )]
    Empty {
        /// The archive.
        url: String,
    },
    /// Two data folders with one name.
    #[error("{url} has a sensor '{sensor}' already, of another data folder: give this one another archive.sensor")]
    Taken {
        /// The archive.
        url: String,
        /// The name.
        sensor: String,
    },
    /// An object or file of ours that does not check out.
    #[error("{name} is damaged: {reason}")]
    Damaged {
        /// Object or file.
        name: String,
        /// What was found.
        reason: String,
    },
    /// Written by a newer version of this program.
    #[error("{name} has format {found}, this version reads up to {supported}: use the newer taphouse that wrote it")]
    Newer {
        /// Object or file.
        name: String,
        /// Its format.
        found: u32,
        /// The highest format this version reads.
        supported: u32,
    },
    /// What arrived is not what was sent.
    #[error("{object} arrived changed (SHA-256 differs): it is sent again")]
    Corrupt {
        /// The object.
        object: String,
    },
    /// The store failed in another way.
    #[error("cannot {action} {object}: {reason}")]
    Store {
        /// What was tried.
        action: &'static str,
        /// On which object.
        object: String,
        /// Its answer.
        reason: String,
    },
    /// ClickHouse refused or did not answer.
    #[error("ClickHouse at {url}: {reason}")]
    ClickHouse {
        /// Its address.
        url: String,
        /// What it said.
        reason: String,
    },
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// Its answer.
        source: io::Error,
    },
    /// A segment of this data folder cannot be read; the others go on.
    #[error("segment {} cannot be read: {source}", path.display())]
    Unreadable {
        /// Its file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The data folder could not be looked at.
    #[error(transparent)]
    Storage(#[from] storage::StorageError),
}

impl ArchiveError {
    /// An answer of the store `url` about `object`, in our words.
    pub(crate) fn store(url: &str, action: &'static str, object: &str, error: &object_store::Error) -> ArchiveError {
        let text = chain(error);
        let url = url.to_owned();
        let has = |words: &[&str]| words.iter().any(|word| text.contains(word));
        if has(&["NoSuchBucket"]) {
            return ArchiveError::NoBucket { url };
        }
        if has(&["169.254.169.254", "CredentialsNotLoaded", "MissingAccessKeyId"]) {
            return ArchiveError::NoCredentials { url };
        }
        let denied =
            matches!(error, object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. });
        if denied || has(&["AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"]) {
            let codes = ["AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"];
            let code = codes.into_iter().find(|code| text.contains(code)).unwrap_or("the server says so");
            return ArchiveError::Denied { url, reason: code.to_owned() };
        }
        if has(&["error sending request", "HTTP error", "Connection refused", "dns error", "timed out"]) {
            return ArchiveError::Unreachable { url, reason: root(error) };
        }
        ArchiveError::Store { action, object: object.to_owned(), reason: shortened(&text) }
    }
}

/// All that an error and its causes say.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let said = error.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        source = error.source();
    }
    text
}

/// The innermost cause.
fn root(error: &dyn std::error::Error) -> String {
    let mut last = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        last = error.to_string();
        source = error.source();
    }
    shortened(&last)
}

/// One line that fits into a log.
pub(crate) fn shortened(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(400) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    }
}

/// Names the action and the file in an I/O error.
pub(crate) trait IoContext<T> {
    fn at(self, action: &'static str, path: &std::path::Path) -> Result<T, ArchiveError>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn at(self, action: &'static str, path: &std::path::Path) -> Result<T, ArchiveError> {
        self.map_err(|source| ArchiveError::Io { action, path: path.to_owned(), source })
    }
}
