//! AF_XDP: packets past the kernel's network stack, from one queue of a NIC into memory of ours.
//!
//! [`XskSocket`] is one socket on one queue. It is told what to receive by an XDP program, which is not its business.
//! `ring` and `umem` are the memory shared with the kernel, `receiver` makes packets of descriptors (and runs on plain
//! memory, against a made-up kernel), `socket` adds the system calls, `statistics` says what was lost and why, `source`
//! makes a queue of the tap of it, with an account of every packet.
//!
//! The memory model is checked by Miri, with `MIRIFLAGS=-Zmiri-disable-isolation`:
//! `cargo +nightly miri test -p capture --lib af_xdp`, and over many orders of two threads with `-Zmiri-many-seeds=0..24`
//! and `af_xdp::ring::tests::two_threads`.

mod error;
#[cfg(all(test, not(miri)))]
#[allow(unsafe_code, reason = "system calls that std has no safe name for")]
#[path = "../../tests/support/netns.rs"]
mod netns;
mod options;
mod receiver;
#[allow(unsafe_code, reason = "memory shared with the kernel")]
mod ring;
mod socket;
mod source;
mod statistics;
#[allow(unsafe_code, reason = "system calls that std has no safe name for, and the memory they map")]
mod sys;
#[cfg(all(test, not(miri)))]
mod tests;
#[allow(unsafe_code, reason = "memory shared with the kernel")]
mod umem;

pub(crate) use error::XdpError;
pub use options::{BusyPoll, XdpOptions};
pub(crate) use socket::{CopyMode, XskSocket};
pub(crate) use source::XskSource;
pub(crate) use umem::{Umem, UmemChoice};
