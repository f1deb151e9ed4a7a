//! What a capture filter tells the XDP program, so that unwanted packets never leave the driver.

use std::net::IpAddr;

/// Which end of a packet a test looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Source.
    Source,
    /// Destination.
    Destination,
    /// Either of them.
    Either,
    /// Both of them.
    Both,
}

/// A test over an untagged Ethernet frame that an XDP program can decide. It keeps at least what the filter keeps: the
/// exact filter runs behind it. Frames with a VLAN tag, or too short for a test to look at, are always kept.
///
/// Meaning of the leaves, which is that of libpcap (gencode.c) for untagged Ethernet:
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Early {
    /// All of them hold; an empty list holds.
    All(Vec<Early>),
    /// One of them holds; an empty list does not.
    Any(Vec<Early>),
    /// It does not hold.
    Not(Box<Early>),
    /// The Ethernet type field is this.
    EtherType(u16),
    /// IPv4 protocol, or IPv6 next header of the fixed header (extension headers are not walked): IPv4 or IPv6, as told.
    Protocol {
        /// 0x0800 or 0x86dd.
        ether_type: u16,
        /// IANA number.
        protocol: u8,
    },
    /// TCP, UDP or SCTP (whichever the surrounding test says; this one looks at no protocol field), over IPv4 with
    /// fragment offset 0 at its header length, or over IPv6 straight behind the fixed header: a port in `first..=last`.
    Port {
        /// 0x0800 or 0x86dd.
        ether_type: u16,
        /// Which port.
        side: Side,
        /// Least port.
        first: u16,
        /// Greatest port, `first <= last`.
        last: u16,
    },
    /// The frame is IPv4 or IPv6, as `network` is, and the address has the same first `bits`.
    Net {
        /// Which address.
        side: Side,
        /// An address of the block.
        network: IpAddr,
        /// Length of the prefix: at most 32, or 128.
        bits: u8,
    },
}
