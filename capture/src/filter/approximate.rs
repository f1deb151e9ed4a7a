//! What an XDP program can decide of a filter: a test that holds wherever the filter does, and perhaps elsewhere.

use super::early::{Early, Side};
use super::syntax::{Direction, Expr, Join, Primitive};
use super::words::{Protocol, ether_type};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Most primitives of a filter that is approximated.
const PRIMITIVES_MAX: usize = 64;

/// Which side of the truth an approximation is on. `not` turns it round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bound {
    /// Holds wherever the primitive does.
    Above,
    /// Holds only where the primitive does.
    Below,
}

/// `None` if it would keep everything, or the filter is too long or looks behind VLAN tags or labels.
pub(super) fn early(expr: &Expr) -> Option<Early> {
    if count(expr)? > PRIMITIVES_MAX {
        return None;
    }
    Some(bound(expr, Bound::Above)).filter(|early| *early != always())
}

/// Primitives; `None` if one of them moves the headers.
fn count(expr: &Expr) -> Option<usize> {
    match expr {
        Expr::Primitive(Primitive::Vlan(_) | Primitive::Mpls(_) | Primitive::PppoeSession(_), _) => None,
        Expr::Primitive(..) => Some(1),
        Expr::Not(inner) => count(inner),
        Expr::Chain(first, rest) => rest.iter().try_fold(count(first)?, |sum, (_, expr)| Some(sum + count(expr)?)),
    }
}

fn bound(expr: &Expr, side: Bound) -> Early {
    match expr {
        Expr::Primitive(primitive, _) => primitive_bound(primitive, side),
        Expr::Not(inner) => not(bound(inner, if side == Bound::Above { Bound::Below } else { Bound::Above })),
        Expr::Chain(first, rest) => rest.iter().fold(bound(first, side), |left, (join, right)| {
            let both = [left, bound(right, side)];
            if *join == Join::And { all(both) } else { any(both) }
        }),
    }
}

fn primitive_bound(primitive: &Primitive, side: Bound) -> Early {
    // What is not known holds always, or never.
    let unknown = || if side == Bound::Above { always() } else { never() };
    match *primitive {
        Primitive::Host4 { protocol, direction, address, mask } => {
            let arp = |t| all([Early::EtherType(t), unknown()]);
            match protocol {
                Some(Protocol::Arp) => arp(ether_type::ARP),
                Some(Protocol::Rarp) => arp(ether_type::RARP),
                Some(_) => ip4_net(direction, address, mask, unknown()),
                None => {
                    any([ip4_net(direction, address, mask, unknown()), arp(ether_type::ARP), arp(ether_type::RARP)])
                }
            }
        }
        // The parser makes only masks that are prefixes of IPv6.
        Primitive::Host6 { direction, address, mask } => Early::Net {
            side: side_of(direction),
            network: IpAddr::V6(Ipv6Addr::from(address)),
            bits: mask.leading_ones() as u8,
        },
        Primitive::Ports { transport, direction, first, last } => any([
            ports(ether_type::IP, transport, direction, first, last),
            ports(ether_type::IP6, transport, direction, first, last),
        ]),
        Primitive::EtherProtocol(ether_type::ATALK | ether_type::AARP) => unknown(),
        Primitive::EtherProtocol(t) if t > ether_type::LENGTH_MAX => Early::EtherType(t),
        Primitive::PppoeDiscovery => Early::EtherType(ether_type::PPPOED),
        Primitive::IpProtocol { network, number } => {
            let four = Early::Protocol { ether_type: ether_type::IP, protocol: number };
            let six = Early::Protocol { ether_type: ether_type::IP6, protocol: number };
            // Behind a fragment header the protocol is out of reach.
            let fragment = all([Early::Protocol { ether_type: ether_type::IP6, protocol: 44 }, unknown()]);
            match network {
                Some(Protocol::Ip) => four,
                Some(_) => any([six, fragment]),
                None => any([four, six, fragment]),
            }
        }
        Primitive::IpMulticast => all([Early::EtherType(ether_type::IP), unknown()]),
        Primitive::Ip6Multicast => Early::Net {
            side: Side::Destination,
            network: IpAddr::V6(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0)),
            bits: 8,
        },
        _ => unknown(),
    }
}

fn ip4_net(direction: Direction, address: u32, mask: u32, unknown: Early) -> Early {
    let bits = mask.leading_ones();
    if mask.checked_shl(bits).unwrap_or(0) != 0 {
        return all([Early::EtherType(ether_type::IP), unknown]);
    }
    // A prefix of nothing looks at no address; said so, a short frame is decided as well.
    if bits == 0 {
        return Early::EtherType(ether_type::IP);
    }
    Early::Net { side: side_of(direction), network: IpAddr::V4(Ipv4Addr::from(address)), bits: bits as u8 }
}

fn ports(ether_type: u16, transport: Option<u8>, direction: Direction, first: u16, last: u16) -> Early {
    let protocol = |protocol| Early::Protocol { ether_type, protocol };
    let carried = match transport {
        Some(number) => protocol(number),
        None => any([6, 17, 132].map(protocol)),
    };
    all([carried, Early::Port { ether_type, side: side_of(direction), first, last }])
}

fn side_of(direction: Direction) -> Side {
    match direction {
        Direction::Source => Side::Source,
        Direction::Destination => Side::Destination,
        Direction::Either => Side::Either,
        Direction::Both => Side::Both,
    }
}

fn always() -> Early {
    Early::All(Vec::new())
}

fn never() -> Early {
    Early::Any(Vec::new())
}

fn not(inner: Early) -> Early {
    match inner {
        Early::Not(inner) => *inner,
        inner if inner == always() => never(),
        inner if inner == never() => always(),
        inner => Early::Not(Box::new(inner)),
    }
}

fn all<const N: usize>(parts: [Early; N]) -> Early {
    let mut flat = Vec::new();
    for part in parts {
        match part {
            Early::All(inner) => flat.extend(inner),
            part if part == never() => return never(),
            part => flat.push(part),
        }
    }
    one(flat).unwrap_or_else(Early::All)
}

fn any<const N: usize>(parts: [Early; N]) -> Early {
    let mut flat = Vec::new();
    for part in parts {
        match part {
            Early::Any(inner) => flat.extend(inner),
            part if part == always() => return always(),
            part => flat.push(part),
        }
    }
    one(flat).unwrap_or_else(Early::Any)
}

/// The only one of a list, or the list.
fn one(mut parts: Vec<Early>) -> Result<Early, Vec<Early>> {
    match parts.len() {
        1 => parts.pop().ok_or(parts),
        _ => Err(parts),
    }
}
