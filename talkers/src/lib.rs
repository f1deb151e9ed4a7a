#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod board;
mod error;
mod feed;
mod field;
mod proof;
mod row;
mod sketch;
mod slots;
mod task;
mod window;

pub use board::{Board, BoardCounts, Collector, WhenBehind, Which, check, start};
pub use error::TaskError;
pub use feed::Feed;
pub use field::{KeySpec, View};
pub use proof::{Estimand, Flows};
pub use row::{FieldValue, KeyFields, Metric, TalkerRow};
pub use task::{Kind, Measure, Size, Task, TaskConfig, default_tasks};
pub use window::{Changed, Known, Listing, Window};
