#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod clickhouse;
mod config;
mod counters;
mod error;
mod index;
mod lines;
mod objects;
mod pace;
mod place;
mod reader;
mod shipper;
mod state;
mod upload;

pub use clickhouse::ClickHouseConfig;
pub use config::ArchiveConfig;
pub use counters::{ArchiveCounters, ArchiveCounts};
pub use error::ArchiveError;
pub use place::{Place, is_url};
pub use reader::ArchiveReader;
pub use shipper::{Archive, start};
pub use state::{left, shipped};
