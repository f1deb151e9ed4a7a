#![doc = include_str!("../README.md")]

mod config;
mod index;
mod prefetch;
mod record;
mod sink;
mod state;
mod table;
mod tcp;

pub use config::{FlowTableConfig, FlowTableError, Timeouts};
pub use record::{ConnState, EndReason, FlowRecord, RttLife, TcpState};
pub use sink::{FlowSink, TcpOpening};
pub use table::{FlowTable, FlowTableCounts};
