#![doc = include_str!("../README.md")]
#![deny(unsafe_code)]

mod af_packet;
mod error;
mod file;
pub mod ledger;
mod source;
#[allow(unsafe_code, reason = "system calls that std has no safe name for")]
mod sys;
pub mod worker;

pub use af_packet::{AfPacketOptions, AfPacketSource, TapSource};
pub use error::{Corruption, SourceError};
pub use file::{FileOptions, FileSource};
pub use source::{BATCH_FRAMES_MAX, BatchHandler, Polled, Progress, Source, SourceCounts, Undelivered};
