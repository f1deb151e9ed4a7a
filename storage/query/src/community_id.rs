//! Community ID, version 1 (corelight/community-id-spec): one text for both directions of a flow, the same in every tool.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest, Sha1};
use wire::{Addr, proto};

/// The Community ID of a flow: `1:`, then 28 letters of base64. `seed` keeps ids of one site apart from those of another; 0
/// is what everybody uses. Ports count for TCP, UDP and SCTP; for ICMP type and code take their place.
pub fn community_id(
    seed: u16,
    (src_ip, src_port): (Addr, u16),
    (dst_ip, dst_port): (Addr, u16),
    protocol: u8,
    icmp: Option<(u8, u8)>,
) -> String {
    let (src_port, dst_port, one_way) = match (protocol, icmp) {
        (proto::ICMP | proto::ICMPV6, Some((kind, code))) => match counterpart(protocol, kind) {
            Some(answer) => (u16::from(kind), u16::from(answer), false),
            None => (u16::from(kind), u16::from(code), true),
        },
        _ => (src_port, dst_port, false),
    };
    let has_ports = matches!(protocol, proto::ICMP | proto::TCP | proto::UDP | proto::ICMPV6 | proto::SCTP);
    let (src, dst) = (bytes(&src_ip), bytes(&dst_ip));
    // The lower end comes first, so that both directions hash the same; what has no answer has one direction.
    let in_order = one_way || (src, src_port) <= (dst, dst_port);
    let ends = [(src, src_port), (dst, dst_port)];
    let [(low, low_port), (high, high_port)] = if in_order { ends } else { [ends[1], ends[0]] };
    let mut hash = Sha1::new();
    hash.update(seed.to_be_bytes());
    hash.update(low);
    hash.update(high);
    hash.update([protocol, 0]);
    if has_ports {
        hash.update(low_port.to_be_bytes());
        hash.update(high_port.to_be_bytes());
    }
    format!("1:{}", STANDARD.encode(hash.finalize()))
}

/// 4 bytes of an IPv4 address, 16 of another.
fn bytes(address: &Addr) -> &[u8] {
    if address.is_v4() { &address.0[12..] } else { &address.0 }
}

/// The ICMP type that answers another, in either direction.
fn counterpart(protocol: u8, kind: u8) -> Option<u8> {
    // Echo, router solicitation, timestamp, information, address mask.
    const V4: &[(u8, u8)] = &[(8, 0), (10, 9), (13, 14), (15, 16), (17, 18)];
    // Echo, router and neighbour solicitation, multicast listener query, node information, home agent discovery.
    const V6: &[(u8, u8)] = &[(128, 129), (133, 134), (135, 136), (130, 131), (139, 140), (144, 145)];
    let pairs = if protocol == proto::ICMP { V4 } else { V6 };
    pairs.iter().find_map(|(a, b)| match kind {
        _ if kind == *a => Some(*b),
        _ if kind == *b => Some(*a),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> Addr {
        text.parse::<std::net::IpAddr>().unwrap().into()
    }

    /// Ids that the specification publishes.
    #[test]
    fn ids_are_those_of_the_specification() {
        let both = |seed, a: (&str, u16), b: (&str, u16), protocol| {
            let (a, b) = ((addr(a.0), a.1), (addr(b.0), b.1));
            let id = community_id(seed, a, b, protocol, None);
            assert_eq!(id, community_id(seed, b, a, protocol, None), "one id for both directions");
            id
        };
        let (client, server) = (("128.232.110.120", 34_855), ("66.35.250.204", 80));
        assert_eq!(both(0, client, server, proto::TCP), "1:LQU9qZlK+B5F3KDmev6m5PMibrg=");
        assert_eq!(both(1, client, server, proto::TCP), "1:3V71V58M3Ksw/yuFALMcW0LAHvc=");
        let dns = both(0, ("192.168.1.52", 54_585), ("8.8.8.8", 53), proto::UDP);
        assert_eq!(dns, "1:d/FP5EW3wiY1vCndhwleRRKHowQ=");
        let sctp = both(0, ("192.168.170.8", 7), ("192.168.170.56", 80), proto::SCTP);
        assert_eq!(sctp, "1:jQgCxbku+pNGw8WPbEc/TS/uTpQ=");
    }

    #[test]
    fn icmp_types_and_their_answers_share_an_id() {
        let id = |a: &str, b: &str, protocol, kind, code| {
            community_id(0, (addr(a), 0), (addr(b), 0), protocol, Some((kind, code)))
        };
        let (a, b) = ("192.168.0.89", "192.168.0.1");
        assert_eq!(id(a, b, proto::ICMP, 8, 0), "1:X0snYXpgwiv9TZtqg64sgzUn6Dk=");
        assert_eq!(id(b, a, proto::ICMP, 0, 0), "1:X0snYXpgwiv9TZtqg64sgzUn6Dk=");
        // Unreachable has no answer: each direction is its own.
        assert_ne!(id(a, b, proto::ICMP, 3, 1), id(b, a, proto::ICMP, 3, 1));
        let (a, b) = ("fe80::200:86ff:fe05:80da", "fe80::260:97ff:fe07:69ea");
        assert_eq!(id(a, b, proto::ICMPV6, 135, 0), "1:dGHyGvjMfljg6Bppwm3bg0LO8TY=");
        assert_eq!(id(b, a, proto::ICMPV6, 136, 0), "1:dGHyGvjMfljg6Bppwm3bg0LO8TY=");
    }

    #[test]
    fn protocols_without_ports_ignore_them() {
        let id = |port| community_id(0, (addr("10.0.0.1"), port), (addr("10.0.0.2"), 0), proto::GRE, None);
        assert_eq!(id(1), id(2));
    }
}
