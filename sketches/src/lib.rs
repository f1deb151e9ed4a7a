#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod count_min;
mod error;
mod hyper_log_log;
mod mix;

pub use count_min::{CountMin, ErrorBound, UpdateRule};
pub use error::SketchError;
pub use hyper_log_log::HyperLogLog;
pub use mix::mix;
