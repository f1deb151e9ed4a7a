#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod addr;
mod cursor;
mod decode;
mod drop_reason;
mod frame;
mod general;
mod ip;
mod key;
mod link;
mod meta;
mod plain;
mod time;
mod tunnel;
mod wlan;

pub use addr::{Addr, Mac, ParseAddrError, Prefix};
pub use decode::{Limits, decode, decode_into};
pub use drop_reason::DropReason;
pub use frame::{Frame, LinkType};
pub use key::{FlowKey, TapId, Tunnel};
pub use meta::{Direction, PacketMeta, TcpFlags};
pub use time::Nanos;

/// IANA protocol numbers this crate gives a meaning.
pub mod proto {
    /// IPv6 hop-by-hop options (RFC 8200).
    pub const HOP_BY_HOP: u8 = 0;
    /// Internet Control Message Protocol (RFC 792).
    pub const ICMP: u8 = 1;
    /// IPv4 in IP (RFC 2003).
    pub const IPV4: u8 = 4;
    /// Transmission Control Protocol (RFC 9293).
    pub const TCP: u8 = 6;
    /// User Datagram Protocol (RFC 768).
    pub const UDP: u8 = 17;
    /// Datagram Congestion Control Protocol (RFC 4340).
    pub const DCCP: u8 = 33;
    /// IPv6 in IP (RFC 2473).
    pub const IPV6: u8 = 41;
    /// IPv6 routing header (RFC 8200).
    pub const ROUTING: u8 = 43;
    /// IPv6 fragment header (RFC 8200).
    pub const FRAGMENT: u8 = 44;
    /// Generic routing encapsulation (RFC 2784).
    pub const GRE: u8 = 47;
    /// Encapsulating security payload (RFC 4303).
    pub const ESP: u8 = 50;
    /// Authentication header (RFC 4302).
    pub const AH: u8 = 51;
    /// ICMP for IPv6 (RFC 4443).
    pub const ICMPV6: u8 = 58;
    /// IPv6: no next header (RFC 8200).
    pub const NO_NEXT: u8 = 59;
    /// IPv6 destination options (RFC 8200).
    pub const DSTOPTS: u8 = 60;
    /// An Ethernet frame in IP (RFC 3378).
    pub const ETHERIP: u8 = 97;
    /// Stream Control Transmission Protocol (RFC 9260).
    pub const SCTP: u8 = 132;
    /// IPv6 mobility header (RFC 6275).
    pub const MOBILITY: u8 = 135;
    /// UDP-Lite (RFC 3828).
    pub const UDP_LITE: u8 = 136;
    /// MPLS in IP (RFC 4023).
    pub const MPLS: u8 = 137;
    /// Host Identity Protocol (RFC 7401).
    pub const HIP: u8 = 139;
    /// Shim6 (RFC 5533).
    pub const SHIM6: u8 = 140;
}
