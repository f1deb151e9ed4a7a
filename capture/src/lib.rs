#![doc = include_str!("../README.md")]
#![deny(unsafe_code)]

mod af_packet;
mod af_xdp;
mod bpf;
mod error;
mod file;
mod filter;
mod interface;
pub mod ledger;
pub mod nic;
mod port;
pub mod privileges;
mod remote;
mod sieve;
pub mod slice;
mod source;
mod supervise;
#[allow(unsafe_code, reason = "system calls that std has no safe name for")]
mod sys;
mod tap;
mod wake;
pub mod worker;

pub use af_packet::{AfPacketOptions, AfPacketSource};
pub use af_xdp::{BusyPoll, XdpOptions};
pub use bpf::{BpfError, LiveFrames};
pub use error::{Corruption, SourceError};
pub use file::{FileOptions, FileSource};
pub use filter::{Filter, FilterError};
pub use interface::{InterfaceOptions, OpenInterface, open_interface, queues_of};
pub use port::{Clock, Mode, Port, XDP_STATISTICS};
pub use remote::{GapCounts, RemoteFault, RemoteView, SshOptions, SshSource};
pub use sieve::FilteredSource;
pub use source::{BATCH_FRAMES_MAX, BatchHandler, Polled, Progress, Source, SourceCounts, Undelivered};
pub use supervise::{
    Held, InterfaceChange, InterfaceReport, InterfaceState, InterfaceView, NicWatch, OpenFn, ReadFn, Supervised,
    Supervisor,
};
pub use tap::{InterfaceFailed, QueueSource, TapControl, TapSource, Waiting};
pub use wake::Wake;
