#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod bloom;
mod bucket;
mod changes;
mod coco;
mod count_min;
mod count_sketch;
mod entropy;
mod error;
mod frame;
mod hyper_log_log;
mod key;
mod mix;
mod quantiles;
mod spreaders;
mod table;
mod top_k;

pub use bloom::Bloom;
pub use changes::{Change, changes};
pub use coco::{CocoSketch, Estimate};
pub use count_min::{CountMin, ErrorBound, UpdateRule};
pub use count_sketch::CountSketch;
pub use entropy::{Bits, Entropy, Seen};
pub use error::SketchError;
pub use hyper_log_log::HyperLogLog;
pub use key::{key_bytes, key_words};
pub use mix::mix;
pub use quantiles::Quantiles;
pub use spreaders::Spreaders;
pub use top_k::TopK;
