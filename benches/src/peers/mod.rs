//! Taphouse beside the tools that people use today: what a packet costs each of them, offline, over the same captures.
//!
//! ```text
//! captures ── IMIX, 60 bytes ──> measure ── for each round, capture, tool ──> usage (a process of its own) ──> tool
//!                                   │                                           CPU time and memory of all it started
//!                                   └──> tools: what it counted ──> report (Markdown), plot (SVG)
//! ```

pub mod captures;
pub mod counts;
pub mod measure;
mod plot;
mod report;
pub mod tools;
pub mod usage;

pub use plot::svg;
pub use report::markdown;

use std::io;
use std::path::PathBuf;
use thiserror::Error;

/// What a comparison can fail at. A tool that fails is no such thing: that is a result.
#[derive(Debug, Error)]
pub enum PeersError {
    /// A file or folder could not be read or written.
    #[error("cannot {what} {}: {source}", path.display())]
    File {
        /// `read`, `write`, `make`.
        what: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The process that measures one run could not be started, or did not answer.
    #[error("the process that measures {tool} failed: {message}")]
    Runner {
        /// The tool.
        tool: String,
        /// What went wrong.
        message: String,
    },
    /// Nothing to compare.
    #[error("no tool is left to measure: {message}")]
    Nothing {
        /// What is missing.
        message: String,
    },
}

/// Names a failed file operation.
pub(crate) fn file<T>(what: &'static str, path: impl Into<PathBuf>, result: io::Result<T>) -> Result<T, PeersError> {
    result.map_err(|source| PeersError::File { what, path: path.into(), source })
}
