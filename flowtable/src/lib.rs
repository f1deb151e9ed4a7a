#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod config;
mod deltas;
mod expiry;
mod extras;
mod fragments;
mod hash;
mod index;
mod pressure;
mod record;
mod segments;
mod sink;
mod state;
mod table;
mod tcp;
mod walk;

pub use config::{FlowTableConfig, FlowTableError, Timeouts};
pub use deltas::FlowDelta;
pub use fragments::{FragmentCache, FragmentCounts, FragmentPlace};
pub use record::{ConnState, EndReason, FlowRecord, RttLife, TcpState};
pub use sink::{FlowInView, FlowSink, HintOwner, HintSlot, TcpOpening};
pub use table::{FlowTable, FlowTableCounts};
pub use walk::FlowWalk;
