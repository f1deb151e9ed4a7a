//! The packets of which nearly all traffic consists: Ethernet with at most one VLAN tag, IPv4 without options or IPv6
//! without extension headers, whole, and TCP, or UDP to no tunnel's port.
//!
//! [`general`](crate::general) decodes these as well, and a test holds both to the same result. The plain version took
//! 200 instructions a packet: it checked bounds field by field, carried results through memory from layer to layer, and
//! compared endpoints as 128-bit numbers with a branch that no predictor learns. Here one check covers all headers,
//! every field goes from the frame straight to its place, and the order of the endpoints is chosen without a branch.

use crate::link::ethertype;
use crate::tunnel::is_tunnel_port;
use crate::{Addr, Direction, Frame, Mac, PacketMeta, TcpFlags, Tunnel, proto};

/// What is read of an IPv4 packet: its header and the longest fixed transport header, TCP's. Shorter ones are general.
const IPV4_LEN: usize = 20 + 20;
const IPV6_LEN: usize = 40 + 20;

/// Decodes `frame`, which is Ethernet, if it is a plain one; `false`: it is not, and `meta` is partly written.
#[inline]
pub(crate) fn decode(frame: &Frame<'_>, meta: &mut PacketMeta) -> bool {
    let Some((link, l3)) = frame.data.split_first_chunk::<14>() else { return false };
    let kind = [link[12], link[13]];
    if kind == ethertype::IPV4.to_be_bytes() {
        match l3.first_chunk() {
            Some(h) => ipv4(frame, 14, h, [0; 2], meta) && write_macs(link, meta),
            None => false,
        }
    } else if kind == ethertype::IPV6.to_be_bytes() {
        untagged_ipv6(frame, meta)
    } else if kind == ethertype::VLAN.to_be_bytes() {
        tagged(frame, meta)
    } else {
        false
    }
}

// Each kind is a function of its own: in one, the compiler joins their ends and carries every field through the stack.

#[inline(never)]
fn untagged_ipv6(frame: &Frame<'_>, meta: &mut PacketMeta) -> bool {
    let Some((link, l3)) = frame.data.split_first_chunk::<14>() else { return false };
    match l3.first_chunk() {
        Some(h) => ipv6(frame, 14, h, [0; 2], meta) && write_macs(link, meta),
        None => false,
    }
}

#[inline(never)]
fn tagged(frame: &Frame<'_>, meta: &mut PacketMeta) -> bool {
    let Some((link, tagged)) = frame.data.split_first_chunk::<14>() else { return false };
    let Some((&[t1, t0, k1, k0], l3)) = tagged.split_first_chunk::<4>() else { return false };
    let vlan = u16::from_be_bytes([t1, t0]) & 0x0fff;
    let is_plain = match u16::from_be_bytes([k1, k0]) {
        ethertype::IPV4 => l3.first_chunk().is_some_and(|h| ipv4(frame, 18, h, [vlan, 0], meta)),
        ethertype::IPV6 => l3.first_chunk().is_some_and(|h| ipv6(frame, 18, h, [vlan, 0], meta)),
        _ => false,
    };
    is_plain && write_macs(link, meta)
}

/// The same for a packet at offset `at`, behind whatever link header and tags: all but the MACs is written. `false`: it
/// is not plain; what was written then is what stands in [`PacketMeta::EMPTY`].
#[inline(never)]
pub(crate) fn packet(frame: &Frame<'_>, at: usize, vlans: [u16; 2], meta: &mut PacketMeta) -> bool {
    /// So that the place of the payload is none that has to be cut to 16 bits.
    const AT_MAX: u16 = 60_000;
    let (Some(l3), Ok(at @ ..=AT_MAX)) = (frame.data.get(at..), u16::try_from(at)) else { return false };
    match l3.first() {
        Some(0x45) => l3.first_chunk().is_some_and(|h| ipv4(frame, at, h, vlans, meta)),
        Some(0x60..=0x6f) => l3.first_chunk().is_some_and(|h| ipv6(frame, at, h, vlans, meta)),
        _ => false,
    }
}

/// IPv4 at offset `at`.
#[inline(always)]
fn ipv4(frame: &Frame<'_>, at: u16, h: &[u8; IPV4_LEN], vlans: [u16; 2], meta: &mut PacketMeta) -> bool {
    // More fragments, or an offset: a fragment. All else that flags may say does not matter.
    let fragment = u16::from_ne_bytes([h[6], h[7]]) & 0x3fff_u16.to_be();
    if h[0] != 0x45 || fragment != 0 {
        return false;
    }
    // Source above destination, both in network order, so that turning the word round exchanges them.
    let both: [u8; 8] = part(h, 12);
    let number = u64::from_be_bytes(both);
    let turned = number.rotate_left(32);
    // A host that talks to itself is left to the general decoder: ordering by ports as well would need a branch.
    if number == turned {
        return false;
    }
    let swap = number > turned;
    let total = u32::from(u16::from_be_bytes([h[2], h[3]]));
    let Some(transport) = h.last_chunk::<20>() else { return false };
    if !write_transport(at + 20, total.wrapping_sub(20), h[9], transport, meta) {
        return false;
    }
    write_frame(frame, vlans, meta);
    meta.key.proto = h[9];
    meta.ttl = h[8];
    meta.dscp = h[1] >> 2;
    meta.ip_bytes = total;
    meta.fragment_id = u32::from(u16::from_be_bytes([h[4], h[5]]));
    let ports = u32::from_be_bytes(part(transport, 0));
    // Turned by 0 or 32 bits: of a choice between the two the compiler makes a branch.
    let pair = u64::from_ne_bytes(both).rotate_left(u32::from(swap) * 32).to_ne_bytes();
    meta.key.lo = Addr::v4([pair[0], pair[1], pair[2], pair[3]]);
    meta.key.hi = Addr::v4([pair[4], pair[5], pair[6], pair[7]]);
    write_order(swap, ports, meta);
    true
}

/// IPv6 at offset `at`.
#[inline(always)]
fn ipv6(frame: &Frame<'_>, at: u16, h: &[u8; IPV6_LEN], vlans: [u16; 2], meta: &mut PacketMeta) -> bool {
    if h[0] >> 4 != 6 {
        return false;
    }
    let [s1, s0, d1, d0]: [[u8; 8]; 4] = [part(h, 8), part(h, 16), part(h, 24), part(h, 32)];
    let number =
        |hi: [u8; 8], lo: [u8; 8]| u128::from(u64::from_be_bytes(hi)) << 64 | u128::from(u64::from_be_bytes(lo));
    let (src, dst) = (number(s1, s0), number(d1, d0));
    if src == dst {
        return false;
    }
    let swap = src > dst;
    let payload = u32::from(u16::from_be_bytes([h[4], h[5]]));
    let Some(transport) = h.last_chunk::<20>() else { return false };
    if !write_transport(at + 40, payload, h[6], transport, meta) {
        return false;
    }
    write_frame(frame, vlans, meta);
    meta.key.proto = h[6];
    meta.ttl = h[7];
    meta.dscp = (u16::from_be_bytes([h[0], h[1]]) >> 6 & 0x3f) as u8;
    meta.ip_bytes = 40 + payload;
    meta.fragment_id = 0;
    let ports = u32::from_be_bytes(part(transport, 0));
    let [s1, s0, d1, d0] = [s1, s0, d1, d0].map(u64::from_ne_bytes);
    // What differs, taken from one and put to the other: exchanged without a branch.
    let mask = u64::from(swap).wrapping_neg();
    let (x1, x0) = ((s1 ^ d1) & mask, (s0 ^ d0) & mask);
    meta.key.lo = address(s1 ^ x1, s0 ^ x0);
    meta.key.hi = address(d1 ^ x1, d0 ^ x0);
    write_order(swap, ports, meta);
    true
}

/// `N` bytes of a header, as one load: put together from single bytes, some become several. Offsets are constants and
/// within, so that nothing is checked in the end.
#[inline(always)]
fn part<const N: usize>(header: &[u8], at: usize) -> [u8; N] {
    match header.get(at..).and_then(|rest| rest.first_chunk()) {
        Some(part) => *part,
        None => [0; N],
    }
}

/// An address from its halves as they lie in memory.
#[inline(always)]
fn address(first: u64, second: u64) -> Addr {
    let ([a, b, c, d, e, f, g, h], [i, j, k, l, m, n, o, p]) = (first.to_ne_bytes(), second.to_ne_bytes());
    Addr([a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p])
}

/// Ports and direction. `ports`: the source's above the destination's; exchanging its halves exchanges them.
#[inline(always)]
fn write_order(swap: bool, ports: u32, meta: &mut PacketMeta) {
    let ports = ports.rotate_left(u32::from(!swap) * 16);
    meta.key.lo_port = ports as u16;
    meta.key.hi_port = (ports >> 16) as u16;
    meta.direction = if swap { Direction::HiToLo } else { Direction::LoToHi };
}

/// What is the same in every plain packet, and what the frame says.
#[inline(always)]
fn write_frame(frame: &Frame<'_>, vlans: [u16; 2], meta: &mut PacketMeta) {
    meta.key.tunnel = Tunnel::None;
    [meta.key.vlan, meta.key.vlan_inner] = vlans;
    meta.key.tap = frame.tap;
    meta.key.tunnel_id = 0;
    meta.ts = frame.ts;
    meta.clock = PacketMeta::EMPTY.clock;
    meta.frame_bytes = frame.wire_len;
}

/// The MACs of an Ethernet header; `true`, to be the last of what makes a packet plain.
#[inline(always)]
fn write_macs(link: &[u8; 14], meta: &mut PacketMeta) -> bool {
    let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, ..] = *link;
    meta.dst_mac = Mac([d0, d1, d2, d3, d4, d5]);
    meta.src_mac = Mac([s0, s1, s2, s3, s4, s5]);
    meta.has_mac = true;
    true
}

/// The header `h` of TCP, or of UDP to no tunnel's port; `at` is its offset in the frame and `len` what the IP header
/// leaves for it. `false`: it is neither, or has no room for itself.
#[inline(always)]
fn write_transport(at: u16, len: u32, proto: u8, h: &[u8; 20], meta: &mut PacketMeta) -> bool {
    (meta.fragment_offset, meta.fragment_proto) = (0, 0);
    (meta.icmp_type, meta.icmp_code, meta.has_icmp) = (0, 0, false);
    (meta.fragment, meta.more_fragments) = (false, false);
    if proto == proto::TCP {
        // Length in words in the upper half of the byte: 5 at least.
        let header_len = u32::from(h[12] >> 4) * 4;
        // An IP header without room for itself gave a length beyond all others.
        if header_len < 20 || len < header_len || len > 0xffff {
            return false;
        }
        let numbers = u64::from_be_bytes(part(h, 4));
        meta.ack = numbers as u32;
        meta.seq = (numbers >> 32) as u32;
        meta.payload_len = len - header_len;
        meta.payload_at = at + header_len as u16;
        meta.window = u16::from_be_bytes([h[14], h[15]]);
        meta.flags = TcpFlags(h[13]);
        meta.has_tcp = true;
        return true;
    }
    let [src, dst] = [u16::from_be_bytes([h[0], h[1]]), u16::from_be_bytes([h[2], h[3]])];
    if proto != proto::UDP || !(8..=0xffff).contains(&len) || is_tunnel_port(src) || is_tunnel_port(dst) {
        return false;
    }
    (meta.ack, meta.seq, meta.window, meta.flags, meta.has_tcp) = (0, 0, 0, TcpFlags(0), false);
    meta.payload_len = len - 8;
    meta.payload_at = at + 8;
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Limits, LinkType, Nanos, TapId, general};
    use traffic::frames::{self, Link};
    use traffic::{Config, Generator, Rng};

    fn frame(data: &[u8]) -> Frame<'_> {
        Frame { data, wire_len: data.len() as u32 + 4, ts: Nanos(77), link: LinkType::Ethernet, tap: TapId(5) }
    }

    /// Whether a frame is plain; if so, that the general decoder says the same, over whatever the slot held.
    fn is_plain(frame: &Frame<'_>) -> bool {
        let mut general = PacketMeta::EMPTY;
        let result = general::decode(frame, &Limits::default(), &mut general);
        // Nothing of this may be left.
        let mut plain =
            PacketMeta { more_fragments: true, fragment_offset: 9, fragment_proto: 9, icmp_type: 9, ..general };
        (plain.key.vlan_inner, plain.key.tunnel_id, plain.clock, plain.seq) = (9, 9, Nanos(9), 9);
        let is_plain = decode(frame, &mut plain);
        if is_plain {
            assert_eq!((result, plain), (Ok(()), general), "{:02x?}", frame.data);
        }
        is_plain
    }

    #[test]
    fn plain_packets_decode_as_in_general() {
        let mut generator = Generator::new(Config { packets: 20_000, flows: 500, ..Config::default() });
        let (mut buf, mut others) = (Vec::new(), 0);
        while generator.next(&mut buf).is_some() {
            if !is_plain(&frame(&buf)) {
                others += 1;
                // ICMP, and UDP with less payload than the TCP header is longer.
                let proto = if buf[12] == 8 { buf[23] } else { buf[20] };
                assert!(matches!(proto, proto::ICMP | proto::ICMPV6 | proto::UDP), "{buf:02x?}");
            }
        }
        assert!(others < 2_000, "{others} of 20,000 packets are not plain");
    }

    #[test]
    fn odd_and_broken_frames_decode_as_in_general() {
        let mut plain = 0;
        for seed in 0..30 {
            let mut rng = Rng::new(seed);
            for n in 0..2_000 {
                let mut built = frames::random_on(Link::Ethernet, &mut rng);
                if n % 2 == 1 {
                    frames::mutate(&mut built.bytes, &mut rng);
                }
                plain += u32::from(is_plain(&frame(&built.bytes)));
            }
        }
        assert!(plain > 1_000, "only {plain} plain frames");
    }

    #[test]
    fn every_cut_of_plain_packets_decodes_as_in_general() {
        let mut generator = Generator::new(Config { packets: 300, flows: 30, ..Config::default() });
        let (mut buf, mut plain) = (Vec::new(), 0);
        while generator.next(&mut buf).is_some() {
            let tagged = [&buf[..12], &[0x81, 0, 0x20, 7], &buf[12..]].concat();
            for data in [&buf, &tagged] {
                for len in 0..=data.len().min(100) {
                    plain += u32::from(is_plain(&frame(&data[..len])));
                }
            }
        }
        assert!(plain > 5_000, "only {plain} plain frames");
    }
}
