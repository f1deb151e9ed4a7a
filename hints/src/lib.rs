#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod app;
mod dns_record;
mod hint;

pub use app::App;
pub use dns_record::DnsRecord;
pub use hint::{Hint, TEXT_MAX, TextLens};
