use super::SliceId;
use std::io;
use std::path::PathBuf;

/// Why a slice could not be asked for, found or handed out.
#[derive(Debug, thiserror::Error)]
pub enum SliceError {
    /// An option or a bound of a request that is out of range.
    #[error("slice option {field} is {value}, expected {expected}")]
    Option {
        /// Field of `SliceOptions`, `RecorderOptions` or `TriggerRequest`.
        field: &'static str,
        /// Its value, with its unit.
        value: String,
        /// What is allowed.
        expected: String,
    },
    /// No memory for the history of the workers.
    #[error(
        "no memory for a packet history of {bytes} bytes per worker: lower it, or 0 to record without the seconds before a trigger"
    )]
    Memory {
        /// Bytes asked for, per worker.
        bytes: usize,
    },
    /// The folder of the slices cannot be used.
    #[error("the slice folder '{}' cannot be used: {source}", path.display())]
    Folder {
        /// As configured.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// As many slices are being recorded as may be at a time.
    #[error("{active} slices are being recorded, no more are allowed at a time: stop one, or wait for one to end")]
    Active {
        /// Slices that are being recorded; equals `SliceOptions::active_max`.
        active: usize,
    },
    /// No such slice.
    #[error("no slice {id}: it was deleted, removed to make room, or never recorded")]
    Unknown {
        /// As asked for.
        id: SliceId,
    },
    /// The slice is not complete yet.
    #[error("slice {id} is still being recorded: stop it, or wait for its end")]
    Recording {
        /// As asked for.
        id: SliceId,
    },
    /// The slice ended with an error, there is no file.
    #[error("slice {id} has no packets to read: {reason}")]
    Failed {
        /// As asked for.
        id: SliceId,
        /// What went wrong.
        reason: String,
    },
    /// A system call on a file failed.
    #[error("cannot {doing} '{}': {source}", path.display())]
    File {
        /// What was tried: `open`, `remove`.
        doing: &'static str,
        /// Which file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The thread that writes slices could not be started.
    #[error("cannot start the slice writer: {source}")]
    Thread {
        /// What the operating system said.
        source: io::Error,
    },
    /// [`Slices::shutdown`](super::Slices::shutdown) was called.
    #[error("the server is shutting down, no slice can be started")]
    ShutDown,
}
