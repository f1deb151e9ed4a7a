//! What the parser makes of a filter, before a link type is known.

use super::words::Protocol;

/// A boolean expression. `and` and `or` bind alike, from left to right, so that a chain is flat however long it is.
#[derive(Clone, Debug)]
pub(super) enum Expr {
    /// Byte offset of the primitive, for messages.
    Primitive(Primitive, usize),
    Not(Box<Expr>),
    Chain(Box<Expr>, Vec<(Join, Expr)>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Join {
    And,
    Or,
}

/// Which address or port of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Source,
    Destination,
    Either,
    Both,
}

/// One test, as it is written.
#[derive(Clone, Debug)]
pub(super) enum Primitive {
    /// `host`, `net`: addresses with `address & mask` equal to `address`. `None` as protocol is IPv4, ARP and RARP.
    Host4 {
        protocol: Option<Protocol>,
        direction: Direction,
        address: u32,
        mask: u32,
    },
    Host6 {
        direction: Direction,
        address: u128,
        mask: u128,
    },
    EtherHost {
        direction: Direction,
        mac: [u8; 6],
    },
    /// `None` as transport is TCP, UDP and SCTP.
    Ports {
        transport: Option<u8>,
        direction: Direction,
        first: u16,
        last: u16,
    },
    /// `ether proto`, `ip`, `arp`, ...: an Ethernet type, or an 802.2 service access point up to 1500.
    EtherProtocol(u16),
    /// `proto`, `tcp`, ...: `None` is IPv4 and IPv6.
    IpProtocol {
        network: Option<Protocol>,
        number: u8,
    },
    IsoProtocol(u8),
    LinkBroadcast,
    LinkMulticast,
    IpMulticast,
    Ip6Multicast,
    LengthMost(u32),
    LengthLeast(u32),
    Vlan(Option<u16>),
    Mpls(Option<u32>),
    PppoeDiscovery,
    PppoeSession(Option<u16>),
    Relation {
        left: Arithmetic,
        relation: Relation,
        right: Arithmetic,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Relation {
    Greater,
    GreaterEqual,
    Equal,
    LessEqual,
    Less,
    NotEqual,
}

/// An arithmetic expression in postfix order, so that a sum of a thousand terms is no deep tree.
pub(super) type Arithmetic = Vec<Term>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Term {
    Number(u32),
    /// Length on the wire.
    Length,
    /// `protocol[index:width]`: takes the index, gives `width` bytes, big-endian.
    Load {
        protocol: Protocol,
        width: u8,
    },
    Negate,
    Binary(Operator),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operator {
    Add,
    Subtract,
    Multiply,
    Divide,
    Modulo,
    And,
    Or,
    Xor,
    ShiftLeft,
    ShiftRight,
}

/// What a primitive means alone, without qualifiers.
pub(super) fn abbreviation(protocol: Protocol) -> Option<Primitive> {
    use super::words::{ether_type, sap};
    let ether = |t| Some(Primitive::EtherProtocol(t));
    let ip = |network, number| Some(Primitive::IpProtocol { network, number });
    match protocol {
        Protocol::Link => None,
        Protocol::Ip => ether(ether_type::IP),
        Protocol::Ip6 => ether(ether_type::IP6),
        Protocol::Arp => ether(ether_type::ARP),
        Protocol::Rarp => ether(ether_type::RARP),
        Protocol::Tcp => ip(None, 6),
        Protocol::Udp => ip(None, 17),
        Protocol::Sctp => ip(None, 132),
        Protocol::Icmp => ip(Some(Protocol::Ip), 1),
        Protocol::Icmp6 => ip(Some(Protocol::Ip6), 58),
        Protocol::Igmp => ip(Some(Protocol::Ip), 2),
        Protocol::Igrp => ip(Some(Protocol::Ip), 9),
        Protocol::Pim => ip(None, 103),
        Protocol::Vrrp | Protocol::Carp => ip(Some(Protocol::Ip), 112),
        Protocol::Ah => ip(None, 51),
        Protocol::Esp => ip(None, 50),
        Protocol::Atalk => ether(ether_type::ATALK),
        Protocol::Aarp => ether(ether_type::AARP),
        Protocol::Decnet => ether(ether_type::DECNET),
        Protocol::Lat => ether(ether_type::LAT),
        Protocol::Sca => ether(ether_type::SCA),
        Protocol::Moprc => ether(ether_type::MOPRC),
        Protocol::Mopdl => ether(ether_type::MOPDL),
        Protocol::Iso => ether(sap::ISO),
        Protocol::Clnp => Some(Primitive::IsoProtocol(0x81)),
        Protocol::Esis => Some(Primitive::IsoProtocol(0x82)),
        Protocol::Isis => Some(Primitive::IsoProtocol(0x83)),
        Protocol::Stp => ether(sap::STP),
        Protocol::Ipx => ether(sap::IPX),
        Protocol::Netbeui => ether(sap::NETBEUI),
    }
}
