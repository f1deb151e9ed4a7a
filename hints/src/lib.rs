#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod app;
mod dns_record;
mod hint;
mod inspector;
mod limits;
mod progress;

pub use app::App;
pub use dns_record::DnsRecord;
pub use hint::{Hint, TEXT_MAX, TextLens};
pub use inspector::{HintSink, Inspector, Payload};
pub use limits::{InspectCounts, InspectLimits};
pub use progress::Progress;
