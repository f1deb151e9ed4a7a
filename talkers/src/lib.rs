#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod row;

pub use row::{KeyFields, Metric, TalkerRow};
