use std::io;
use std::path::{Path, PathBuf};

/// What can go wrong with a data folder.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, such as `write`.
        action: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// Its answer.
        source: io::Error,
    },
    /// The folder does not let itself be written.
    #[error(
        "data folder {} cannot be written ({source}): give this user write access to it, or choose another folder",
        dir.display()
    )]
    ReadOnly {
        /// The folder.
        dir: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// There is no such folder to read.
    #[error("there is no data folder at {}: name the folder a server writes, or start one that creates it", dir.display())]
    NoSuchFolder {
        /// The folder.
        dir: PathBuf,
    },
    /// The path names something that is no folder.
    #[error("{} is a file, not a folder: name a folder for the data", dir.display())]
    NotAFolder {
        /// The path.
        dir: PathBuf,
    },
    /// Somebody else's files.
    #[error(
        "{} is not a taphouse data folder: it holds other files ('{found}') and no taphouse.json; choose an empty or a new folder",
        dir.display()
    )]
    Foreign {
        /// The folder.
        dir: PathBuf,
        /// One of the files in it.
        found: String,
    },
    /// `taphouse.json` does not read.
    #[error("{} does not read as a taphouse marker ({reason}): restore it from a backup of this folder", path.display())]
    BadMarker {
        /// The marker file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Written by a newer version of this program.
    #[error(
        "data folder {} has format {found}, this version reads up to {supported}: use the newer taphouse that wrote it, or another folder",
        dir.display()
    )]
    Newer {
        /// The folder.
        dir: PathBuf,
        /// Its format.
        found: u32,
        /// The highest format this version reads.
        supported: u32,
    },
    /// Another server has the folder.
    #[error(
        "data folder {} is in use by {}: stop that server, or give this one another folder",
        dir.display(), owner(*pid)
    )]
    Locked {
        /// The folder.
        dir: PathBuf,
        /// Process id of the owner, if it has written one.
        pid: Option<u32>,
    },
    /// An option out of range.
    #[error("{field} is {value}, allowed is {allowed}")]
    Option {
        /// Which option.
        field: &'static str,
        /// Its value.
        value: String,
        /// What it may be.
        allowed: &'static str,
    },
    /// A file of ours that does not check out.
    #[error("{} is damaged at byte {offset}: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where reading stopped making sense.
        offset: u64,
        /// What was found there.
        reason: String,
    },
    /// Columns could not be built or combined.
    #[error("cannot {action}: {source}")]
    Arrow {
        /// What was tried.
        action: &'static str,
        /// Arrow's answer.
        source: arrow::error::ArrowError,
    },
    /// A segment could not be encoded or read.
    #[error("cannot {action} {}: {source}", path.display())]
    Parquet {
        /// What was tried.
        action: &'static str,
        /// The segment.
        path: PathBuf,
        /// Parquet's answer.
        source: parquet::errors::ParquetError,
    },
    /// Rows could not be written to the log; they are counted as lost.
    #[error("{rows} rows could not be stored: {reason}")]
    RowsLost {
        /// How many.
        rows: u64,
        /// Why.
        reason: String,
    },
    /// Segments that lie in an archive could not be listed.
    #[error("{reason}")]
    Elsewhere {
        /// Why.
        reason: String,
    },
    /// Rows are safe in the log, but their segment could not be published.
    #[error("a segment could not be written: {reason}; its rows stay in the log, from which they are tried again")]
    Unpublished {
        /// Why.
        reason: String,
    },
}

fn full() -> String {
    io::Error::from_raw_os_error(libc::ENOSPC).to_string()
}

fn owner(pid: Option<u32>) -> String {
    match pid {
        Some(pid) => format!("another taphouse (pid {pid})"),
        None => "another taphouse".to_owned(),
    }
}

impl StorageError {
    /// Why rows could not be written below `dir`, for people: a full disk is told as such, wherever it was met.
    pub(crate) fn reason(&self, dir: &Path) -> String {
        match self.is_full() {
            true => {
                format!("the disk of {} is full: {}; free some space, or choose another folder", dir.display(), full())
            }
            false => self.to_string(),
        }
    }

    /// The disk is full. Parquet's errors keep only the text of theirs.
    pub(crate) fn is_full(&self) -> bool {
        self.to_string().contains(&full())
    }

    pub(crate) fn arrow(action: &'static str) -> impl Fn(arrow::error::ArrowError) -> StorageError {
        move |source| StorageError::Arrow { action, source }
    }

    pub(crate) fn parquet(
        action: &'static str,
        path: &Path,
    ) -> impl Fn(parquet::errors::ParquetError) -> StorageError + use<> {
        let path = path.to_owned();
        move |source| StorageError::Parquet { action, path: path.clone(), source }
    }
}

/// Names the action and the file in an I/O error.
pub(crate) trait IoContext<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T, StorageError>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T, StorageError> {
        self.map_err(|source| StorageError::Io { action, path: path.to_owned(), source })
    }
}
