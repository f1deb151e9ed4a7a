//! Live capture under load: what a packet costs the worker, and how much is lost at which rate.
//!
//! Everything happens on a veth pair in a network namespace of this process's own, which goes with it, however it ends.

pub mod cpu;
pub mod generator;
pub mod loss;
pub mod network;
pub(crate) mod pipeline;
pub mod plot;
pub mod rate;
pub mod tools;

use std::io;
use std::path::PathBuf;
use thiserror::Error;

/// What a benchmark of live capture can fail at.
#[derive(Debug, Error)]
pub enum CaptureBenchError {
    /// The process is not root.
    #[error(
        "this benchmark needs root (effective user id {uid}): it makes a network namespace, a veth pair and XDP \
         programs; run it with sudo"
    )]
    NotRoot {
        /// Who it is instead.
        uid: u32,
    },
    /// A program that is needed could not be started.
    #[error("cannot run {program}: {source}; install {package}")]
    Program {
        /// The program.
        program: String,
        /// The package of Debian that has it.
        package: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A program that is needed failed.
    #[error("{command} failed: {message}")]
    Failed {
        /// The command line.
        command: String,
        /// What it said.
        message: String,
    },
    /// A file of the system or of a tool could not be read or written.
    #[error("cannot {what} {}: {source}", path.display())]
    File {
        /// `read`, `write`, `make`.
        what: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The interface could not be opened, or failed.
    #[error(transparent)]
    Source(#[from] ::capture::SourceError),
    /// The generator could not be loaded.
    #[error("the generator of live frames (Linux 5.18 and later) cannot be loaded: {0}")]
    Generator(#[from] ::capture::BpfError),
    /// The generator could not send.
    #[error("the generator of live frames cannot send: {source}")]
    Send {
        /// What the kernel said.
        source: io::Error,
    },
    /// A thread could not be pinned.
    #[error(transparent)]
    Pin(#[from] ::capture::worker::PinError),
    /// A stage could not be built.
    #[error("the {stage} stage cannot be built: {message}")]
    Stage {
        /// Which.
        stage: &'static str,
        /// Why.
        message: String,
    },
    /// A thread panicked, after it said why.
    #[error("the {thread} thread panicked")]
    Panicked {
        /// Which.
        thread: &'static str,
    },
    /// A tool that is measured did not do what it should.
    #[error("{tool}: {message}")]
    Tool {
        /// Which.
        tool: &'static str,
        /// What went wrong.
        message: String,
    },
    /// An option that cannot be.
    #[error("{option} is {value}, expected {expected}")]
    Option {
        /// Which.
        option: &'static str,
        /// As given.
        value: String,
        /// What is allowed.
        expected: String,
    },
}

/// Names a failed file operation.
pub(crate) fn file<T>(
    what: &'static str,
    path: impl Into<PathBuf>,
    result: io::Result<T>,
) -> Result<T, CaptureBenchError> {
    result.map_err(|source| CaptureBenchError::File { what, path: path.into(), source })
}
