#![doc = include_str!("../README.md")]

mod bloom;
mod cells;
mod columns;
mod dns;
mod encode;
mod error;
mod folder;
mod manifest;
mod options;
mod reader;
mod recover;
mod retention;
mod segment;
mod segments;
mod shared;
mod store;
mod sys;
mod table;
mod texts;
mod wal;
mod writer;
mod zones;

pub use bloom::{BLOOM_BLOCK_BYTES, Bloom, BloomHash};
pub use columns::{FlowBatchBuilder, flow_schema};
pub use dns::dns_schema;
pub use encode::SegmentProfile;
pub use error::StorageError;
pub use folder::FORMAT_VERSION;
pub use options::{Now, OnError, Retention, StoreOptions};
pub use reader::{Snapshot, StoreReader};
pub use segment::{Claim, Segment};
pub use segments::{Segments, TimeRange};
pub use shared::StoreCounts;
pub use store::Store;
