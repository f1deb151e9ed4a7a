#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod app;
mod assembly;
mod cursor;
mod dhcp;
mod dns;
mod dns_record;
#[doc(hidden)]
pub mod fuzz;
mod hello;
mod hint;
mod http;
mod inspector;
mod ja4;
mod limits;
mod progress;
mod quic;
mod signature;
mod text;
mod tls;

pub use app::App;
pub use dns_record::DnsRecord;
pub use hint::{Hint, TEXT_MAX, TextLens};
pub use inspector::{HintSink, Inspector, Payload};
pub use limits::{InspectCounts, InspectLimits};
pub use progress::Progress;
