//! What an IP packet may carry instead of a transport: another packet, behind a tunnel header.
//!
//! Nothing here decides that there *is* a packet inside. It reads the tunnel's own header and says where a packet would
//! begin; the caller counts the outer packet where none is found there. A protocol number is a promise, a UDP port only
//! a hint: for those the fixed bits of the header must be right, and the packet inside must fit the datagram.

use crate::cursor::Cursor;
use crate::ip::Level;
use crate::link::{ethertype, service_protocol};
use crate::{Tunnel, proto};

/// UDP ports of tunnels (IANA registry; 8472 is what Linux used for VXLAN before it had a number).
mod port {
    pub(super) const L2TP: u16 = 1701;
    pub(super) const GTPU: u16 = 2152;
    pub(super) const TEREDO: u16 = 3544;
    pub(super) const VXLAN: u16 = 4789;
    pub(super) const VXLAN_GPE: u16 = 4790;
    pub(super) const GENEVE: u16 = 6081;
    pub(super) const MPLS: u16 = 6635;
    pub(super) const VXLAN_OLD: u16 = 8472;
}

/// Ports in the slot that [`slot`] gives each: a lookup costs a multiplication, a load and a comparison.
static PORTS: [u16; 16] = {
    let known =
        [port::L2TP, port::GTPU, port::TEREDO, port::VXLAN, port::VXLAN_GPE, port::GENEVE, port::MPLS, port::VXLAN_OLD];
    // An empty slot holds 0, which no port but 0 itself is equal to; its own slot holds a port of another one.
    let mut table = [0; 16];
    table[slot(0)] = 1;
    assert!(slot(1) != slot(0));
    let mut i = 0;
    while i < known.len() {
        assert!(table[slot(known[i])] <= 1, "two ports in one slot");
        table[slot(known[i])] = known[i];
        i += 1;
    }
    table
};

const fn slot(port: u16) -> usize {
    (port.wrapping_mul(SPREAD) >> 12) as usize
}

/// An odd number that gives each port a slot of its own, which the table checks.
const SPREAD: u16 = 0x9e41;

/// Whether a UDP packet with this port may carry a tunnel.
#[inline]
pub(crate) fn is_tunnel_port(port: u16) -> bool {
    PORTS[slot(port)] == port
}

/// A tunnel's header, read.
pub(crate) struct Inside<'a> {
    /// What it announces, as an Ethernet type, and where.
    pub(crate) announced: (u16, Cursor<'a>),
    pub(crate) tunnel: Tunnel,
    /// VNI or GRE key; 0 where there is none, or where it differs by direction.
    pub(crate) id: u32,
    /// Found by a port: the packet inside must fit.
    pub(crate) must_fit: bool,
}

/// The tunnel that `level` carries, if its header looks like one.
pub(crate) fn inside<'a>(level: &Level<'a>) -> Option<Inside<'a>> {
    let c = level.transport?;
    let by_number = |kind, tunnel| Some(Inside { announced: (kind, c), tunnel, id: 0, must_fit: false });
    match level.proto {
        proto::IPV4 => by_number(ethertype::IPV4, Tunnel::IpIp),
        proto::IPV6 => by_number(ethertype::IPV6, Tunnel::IpIp),
        proto::MPLS => by_number(ethertype::MPLS, Tunnel::Mpls),
        proto::GRE => gre(c),
        proto::ETHERIP => etherip(c),
        proto::UDP => udp(c, level.fragment.more),
        _ => None,
    }
}

/// GRE version 0 (RFC 2784, with the fields of RFC 2890 and the routing of RFC 1701) or 1 (PPTP, RFC 2637).
fn gre(c: Cursor<'_>) -> Option<Inside<'_>> {
    const CHECKSUM: u8 = 0x80;
    const ROUTING: u8 = 0x40;
    const KEY: u8 = 0x20;
    const SEQUENCE: u8 = 0x10;
    /// In the second byte of version 1.
    const ACKNOWLEDGMENT: u8 = 0x80;
    const WCCP: u16 = 0x883e;
    const ERSPAN: u16 = 0x88be;
    const ERSPAN_III: u16 = 0x22eb;
    let &[flags, more, hi, lo] = c.bytes::<4>(0)?;
    let kind = u16::from_be_bytes([hi, lo]);
    let has = |bit: u8| usize::from(flags & bit != 0);
    if more & 0x07 == 1 {
        // The key is the payload's length and a call id of one direction.
        let len = 8 + 4 * has(SEQUENCE) + if more & ACKNOWLEDGMENT != 0 { 4 } else { 0 };
        let is_data = kind == ethertype::PPP && flags & (KEY | SEQUENCE) == KEY | SEQUENCE;
        let announced = (ethertype::PPP, c.skip(len));
        return is_data.then_some(Inside { announced, tunnel: Tunnel::Gre, id: 0, must_fit: false });
    }
    if more & 0x07 != 0 {
        return None;
    }
    let key_at = 4 + 4 * usize::from(flags & (CHECKSUM | ROUTING) != 0);
    let id = if flags & KEY != 0 { c.u32(key_at)? } else { 0 };
    let mut body = c.skip(key_at + 4 * has(KEY) + 4 * has(SEQUENCE));
    if flags & ROUTING != 0 {
        body = source_routes(body)?;
    }
    let (kind, body, tunnel, id) = match kind {
        // Type I has no header of its own, and no sequence number by which to tell it from type II.
        ERSPAN if flags & SEQUENCE == 0 => (ethertype::BRIDGED, body, Tunnel::Erspan, 0),
        ERSPAN | ERSPAN_III => {
            let (kind, body) = erspan(body)?;
            (kind, body, Tunnel::Erspan, 0)
        }
        // A redirect header of 4 bytes in version 2 of the protocol, none in version 1.
        WCCP if body.u8(0)? >> 4 == 4 => (ethertype::IPV4, body, Tunnel::Gre, id),
        WCCP => (ethertype::IPV4, body.skip(4), Tunnel::Gre, id),
        // No Ethernet type; 0 is the answer to a keepalive.
        0..=ethertype::LENGTH_MAX => return None,
        kind => (kind, body, Tunnel::Gre, id),
    };
    Some(Inside { announced: (kind, body), tunnel, id, must_fit: false })
}

/// Behind the source route entries of RFC 1701: family, offset, length each; an empty one ends the list.
fn source_routes(mut c: Cursor<'_>) -> Option<Cursor<'_>> {
    const ENTRIES_MAX: usize = 16;
    for _ in 0..ENTRIES_MAX {
        let &[f1, f0, _, len] = c.bytes::<4>(0)?;
        c = c.skip(4 + usize::from(len));
        if [f1, f0, len] == [0; 3] {
            return Some(c);
        }
    }
    None
}

/// The header of ERSPAN type II (version 1) or III (version 2), draft-foschiano-erspan. The session id is one per
/// mirror, and a mirror may be of one direction only: it is no part of a key.
fn erspan(c: Cursor<'_>) -> Option<(u16, Cursor<'_>)> {
    const FRAME_ETHERNET: u16 = 0;
    const FRAME_IP: u16 = 2;
    match c.u8(0)? >> 4 {
        1 => Some((ethertype::BRIDGED, c.skip(8))),
        2 => {
            let field = c.u16(10)?;
            let subheader = usize::from(field & 1) * 8;
            let kind = match field >> 10 & 0x1f {
                FRAME_ETHERNET => ethertype::BRIDGED,
                FRAME_IP => ethertype::IPV4,
                _ => return None,
            };
            Some((kind, c.skip(12 + subheader)))
        }
        _ => None,
    }
}

/// EtherIP (RFC 3378): version 3, 12 bits of zero, an Ethernet frame.
fn etherip(c: Cursor<'_>) -> Option<Inside<'_>> {
    let is_version_3 = c.u16(0)? == 0x3000;
    let announced = (ethertype::BRIDGED, c.skip(2));
    is_version_3.then_some(Inside { announced, tunnel: Tunnel::EtherIp, id: 0, must_fit: false })
}

/// A tunnel over UDP, by either port: the known one is usually the destination's, but where the protocol answers to
/// where a packet came from it is the source's.
fn udp(c: Cursor<'_>, first_of_several: bool) -> Option<Inside<'_>> {
    let &[s1, s0, d1, d0, l1, l0] = c.bytes::<6>(0)?;
    let [src, dst, len] = [[s1, s0], [d1, d0], [l1, l0]].map(u16::from_be_bytes);
    if !is_tunnel_port(src) && !is_tunnel_port(dst) {
        return None;
    }
    let end = match usize::from(len) {
        // Segmentation offload, or a jumbogram.
        0 => c.end,
        8.. if c.at + usize::from(len) <= c.end => c.at + usize::from(len),
        8.. if first_of_several => c.end,
        _ => return None,
    };
    let body = c.skip(8).within(end);
    // Of a first fragment the rest is elsewhere: what is inside may be longer.
    let by_port = |port| by_port(port, body).map(|inside| Inside { must_fit: !first_of_several, ..inside });
    by_port(dst).or_else(|| by_port(src))
}

fn by_port(port: u16, c: Cursor<'_>) -> Option<Inside<'_>> {
    let (announced, tunnel, id) = match port {
        port::VXLAN | port::VXLAN_OLD => {
            let (announced, id) = vxlan(c)?;
            (announced, Tunnel::Vxlan, id)
        }
        port::VXLAN_GPE => {
            let (announced, id) = vxlan_gpe(c)?;
            (announced, Tunnel::Vxlan, id)
        }
        port::GENEVE => {
            let (announced, id) = geneve(c)?;
            (announced, Tunnel::Geneve, id)
        }
        port::GTPU => (by_version(gtpu(c)?)?, Tunnel::Gtpu, 0),
        port::TEREDO => (by_version(teredo(c)?)?, Tunnel::Teredo, 0),
        port::MPLS => ((ethertype::MPLS, c), Tunnel::Mpls, 0),
        port::L2TP => ((ethertype::PPP, l2tp(c)?), Tunnel::L2tp, 0),
        _ => return None,
    };
    Some(Inside { announced, tunnel, id, must_fit: true })
}

/// An IP packet, told by its first nibble.
fn by_version(c: Cursor<'_>) -> Option<(u16, Cursor<'_>)> {
    match c.u8(0)? >> 4 {
        4 => Some((ethertype::IPV4, c)),
        6 => Some((ethertype::IPV6, c)),
        _ => None,
    }
}

/// VXLAN (RFC 7348): flag I, then an Ethernet frame. The group policy extension uses the first flag and what is reserved
/// behind it; other reserved bits of the first byte are zero. The rest of what is reserved says nothing, by the RFC.
fn vxlan(c: Cursor<'_>) -> Option<((u16, Cursor<'_>), u32)> {
    const VNI: u8 = 0x08;
    const GROUP_POLICY: u8 = 0x80;
    let header: &[u8; 8] = c.bytes(0)?;
    (header[0] & !GROUP_POLICY == VNI).then_some(((ethertype::BRIDGED, c.skip(8)), vni(header)))
}

/// VXLAN-GPE (draft-ietf-nvo3-vxlan-gpe): as VXLAN, with the type of what follows in the last byte before the VNI.
fn vxlan_gpe(c: Cursor<'_>) -> Option<((u16, Cursor<'_>), u32)> {
    const RESERVED_AND_VERSION: u8 = 0xf0;
    const VNI: u8 = 0x08;
    const NEXT_PROTOCOL: u8 = 0x04;
    let header: &[u8; 8] = c.bytes(0)?;
    if header[0] & (RESERVED_AND_VERSION | VNI) != VNI {
        return None;
    }
    let next = if header[0] & NEXT_PROTOCOL != 0 { service_protocol(header[3])? } else { ethertype::BRIDGED };
    Some(((next, c.skip(8)), vni(header)))
}

/// GENEVE (RFC 8926): version 0, length of the options in 4-byte words, an Ethernet type.
fn geneve(c: Cursor<'_>) -> Option<((u16, Cursor<'_>), u32)> {
    const CONTROL_AND_CRITICAL: u8 = 0xc0;
    let header: &[u8; 8] = c.bytes(0)?;
    let kind = u16::from_be_bytes([header[2], header[3]]);
    let options = usize::from(header[0] & 0x3f) * 4;
    let is_valid = header[0] >> 6 == 0 && header[1] & !CONTROL_AND_CRITICAL == 0 && kind > ethertype::LENGTH_MAX;
    is_valid.then_some(((kind, c.skip(8 + options)), vni(header)))
}

/// The 24-bit network identifier at the same place in VXLAN and GENEVE.
fn vni(header: &[u8; 8]) -> u32 {
    u32::from_be_bytes([0, header[4], header[5], header[6]])
}

/// GTP-U (3GPP TS 29.281 section 5): version 1 of GTP proper, message T-PDU, whose length fits; then the fields that one
/// of three flags brings together, and extension headers.
fn gtpu(c: Cursor<'_>) -> Option<Cursor<'_>> {
    const VERSION_AND_TYPE: u8 = 0xf0;
    const VERSION_1: u8 = 0x30;
    const SPARE: u8 = 0x08;
    const EXTENSION: u8 = 0x04;
    const EXTENSION_SEQUENCE_NPDU: u8 = 0x07;
    const T_PDU: u8 = 0xff;
    const EXTENSIONS_MAX: usize = 16;
    let &[flags, message, _, _, ..] = c.bytes::<8>(0)?;
    if flags & (VERSION_AND_TYPE | SPARE) != VERSION_1 || message != T_PDU {
        return None;
    }
    if flags & EXTENSION_SEQUENCE_NPDU == 0 {
        return Some(c.skip(8));
    }
    // The fields of flags that are not set hold nothing, but are there.
    let mut next = if flags & EXTENSION != 0 { c.u8(11)? } else { 0 };
    let mut c = c.skip(12);
    for _ in 0..EXTENSIONS_MAX {
        if next == 0 {
            return Some(c);
        }
        // Length in 4-byte words, this byte and the next type included.
        let len = usize::from(c.u8(0)?) * 4;
        if len == 0 {
            return None;
        }
        next = c.u8(len - 1)?;
        c = c.skip(len);
    }
    None
}

/// Teredo (RFC 4380 section 5.1.1): authentication, then origin indication, either of them or none, then IPv6.
fn teredo(c: Cursor<'_>) -> Option<Cursor<'_>> {
    let mut c = c;
    if c.u16(0)? == 0x0001 {
        let [id, value] = [c.u8(2)?, c.u8(3)?].map(usize::from);
        // Nonce of 8 bytes, one byte of confirmation.
        c = c.skip(4 + id + value + 9);
    }
    if c.u16(0)? == 0x0000 {
        c = c.skip(8);
    }
    (c.u8(0)? >> 4 == 6).then_some(c)
}

/// L2TP version 2 (RFC 2661 section 3.1): a data message; which fields it has, its flags tell.
fn l2tp(c: Cursor<'_>) -> Option<Cursor<'_>> {
    const CONTROL_AND_RESERVED: u16 = 0x8000 | 0x34f0;
    const LENGTH: u16 = 0x4000;
    const SEQUENCE: u16 = 0x0800;
    const OFFSET: u16 = 0x0200;
    let flags = c.u16(0)?;
    if flags & CONTROL_AND_RESERVED != 0 || flags & 0x0f != 2 {
        return None;
    }
    let has = |bit: u16| usize::from(flags & bit != 0);
    let mut len = 2 + 2 * has(LENGTH) + 4 + 4 * has(SEQUENCE);
    if flags & OFFSET != 0 {
        len += 2 + usize::from(c.u16(len)?);
    }
    Some(c.skip(len))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tunnel_ports_are_found_and_no_others() {
        let found: Vec<u16> = (0..=u16::MAX).filter(|port| is_tunnel_port(*port)).collect();
        assert_eq!(found, [1701, 2152, 3544, 4789, 4790, 6081, 6635, 8472]);
    }
}
