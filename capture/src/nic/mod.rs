//! What capture must know of network interfaces, asked of the kernel through netlink, and through the ethtool ioctl for
//! driver counters, which netlink does not have.
//!
//! - [`interface`], [`interfaces`]: what there is, in which state, and whether the host itself
//!   [speaks through it](Interface::carries_host_traffic).
//! - [`channels`], [`receive_queues`], [`rx_vlan_offload`], [`xdp_support`]: how packets arrive.
//! - [`CounterReader`]: what the hardware lost, for the loss ledger.
//! - [`LinkWatch`]: changes, as they happen.
//! - [`Promiscuous`]: frames for other stations, too.
//!
//! All calls act on the network namespace of the calling thread; what is opened here stays with the namespace it was
//! opened in. Nothing is allocated or asked per packet: this is the control path, a few milliseconds a call.

mod client;
mod counters;
mod error;
mod host;
mod interface;
mod link;
mod loss;
mod netlink;
mod promiscuous;
mod queues;
#[allow(unsafe_code, reason = "system calls that std has no safe name for")]
mod sys;
mod watch;

pub use counters::{CounterReader, NicCounters};
pub use error::NicError;
pub use interface::{Interface, PeerLink, interface, interfaces};
pub use loss::MissedSource;
pub use promiscuous::Promiscuous;
pub use queues::{Channels, XdpSupport, channels, receive_queues, rx_vlan_offload, xdp_support};
pub use watch::{LinkEvent, LinkState, LinkWatch};
