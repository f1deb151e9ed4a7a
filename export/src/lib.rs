#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod config;
mod counters;
mod encoder;
mod exporter;
mod field;
mod handle;
mod message;
mod session;
mod template;

pub use config::{Collector, ExportConfig, ExportError, TimeUnit, Transport, WhenFull};
pub use counters::{ExportCounters, ExportCounts, LinkState};
pub use exporter::Exporter;
pub use handle::ExportHandle;
