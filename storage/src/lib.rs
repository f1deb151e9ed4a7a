#![doc = include_str!("../README.md")]

mod cells;
mod columns;
mod compact;
mod disk;
mod dns;
mod encode;
mod error;
mod folder;
mod manifest;
mod options;
mod partition;
mod reader;
mod recover;
mod retention;
mod segment;
mod shared;
mod store;
mod sys;
mod table;
mod texts;
mod wal;
mod writer;

pub use columns::{FlowBatchBuilder, flow_schema};
pub use disk::{Disk, DiskFile, Open, OsDisk, Stat};
pub use dns::dns_schema;
pub use encode::SegmentProfile;
pub use error::StorageError;
pub use folder::FORMAT_VERSION;
pub use options::{Compaction, Now, OnError, Retention, StoreOptions};
pub use reader::{Snapshot, StoreReader};
pub use retention::{Expiring, Limit, RetentionPlan};
pub use segment::{Segment, SegmentId};
pub use shared::StoreCounts;
pub use store::Store;
