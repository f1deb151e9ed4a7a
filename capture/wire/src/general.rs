//! Any frame: whatever link header, tags, extension headers and tunnels it has. [`plain`](crate::plain) takes the common
//! ones before.

use crate::cursor::Cursor;
use crate::ip::{self, Level};
use crate::link::{Tags, below_tags, link};
use crate::tunnel::{self, Inside};
use crate::{Addr, Direction, DropReason, Frame, Limits, PacketMeta, TcpFlags, plain, proto};

/// Decodes `frame` into `meta`, overwriting what is there.
///
/// Levels are walked from the outside in a loop: one IP header a turn, until one carries no further packet.
#[inline(never)]
pub(crate) fn decode(frame: &Frame<'_>, limits: &Limits, meta: &mut PacketMeta) -> Result<(), DropReason> {
    *meta = PacketMeta::EMPTY;
    let mut announced = link(frame.link, Cursor::new(frame), meta)?;
    // The innermost level so far, with the tunnel it is in.
    let mut found: Option<Level<'_>> = None;
    let mut tunnel: Option<Inside<'_>> = None;
    let (mut encapsulations, mut has_vlan) = (0u8, false);
    loop {
        let mut tags = Tags::new(limits);
        let must_fit = tunnel.as_ref().is_some_and(|tunnel| tunnel.must_fit);
        let level = match below_tags(announced, &mut tags) {
            // What only stands behind more than one tag, behind labels or another link header is plain all the same.
            Ok(c) if found.is_none() && plain::packet(frame, c.at, tags.vlans, meta) => return Ok(()),
            Ok(c) => ip::level(c, limits).and_then(|level| fit(level, c, must_fit)),
            Err(reason) => Err(reason),
        };
        match level {
            Ok(level) => found = Some(level),
            // Whoever nests beyond the limits hides what is inside.
            Err(reason @ (DropReason::TagDepth | DropReason::ExtensionDepth)) => return Err(reason),
            Err(reason) if found.is_none() => return Err(reason),
            // Nothing there that can be decoded: the packet counts at the last level that could.
            Err(_) => break,
        }
        if let Some(tunnel) = &tunnel {
            encapsulations += 1;
            if encapsulations > limits.encapsulations_max {
                return Err(DropReason::EncapsulationDepth);
            }
            (meta.key.tunnel, meta.key.tunnel_id) = (tunnel.tunnel, tunnel.id);
        }
        if !has_vlan {
            has_vlan = tags.has_vlan();
            [meta.key.vlan, meta.key.vlan_inner] = tags.vlans;
        }
        tunnel = found.as_ref().and_then(tunnel::inside);
        match &tunnel {
            Some(inside) => announced = inside.announced,
            None => break,
        }
    }
    meta.key.tap = frame.tap;
    meta.ts = frame.ts;
    meta.frame_bytes = frame.wire_len;
    if let Some(level) = &found {
        fill(level, meta);
    }
    Ok(())
}

/// What was found by a port is a packet only if it ends within the one that carries it.
fn fit<'a>(level: Level<'a>, c: Cursor<'a>, must_fit: bool) -> Result<Level<'a>, DropReason> {
    if must_fit && level.end > c.end { Err(DropReason::IpHeaderLength) } else { Ok(level) }
}

/// What the innermost level says, and its transport header.
fn fill(level: &Level<'_>, meta: &mut PacketMeta) {
    meta.key.proto = level.proto;
    meta.ttl = level.ttl;
    meta.dscp = level.dscp;
    meta.ip_bytes = level.ip_bytes;
    meta.fragment = level.fragment.is_part();
    meta.fragment_id = level.fragment.id;
    meta.fragment_proto = if level.fragment.is_part() { level.fragment.proto } else { 0 };
    meta.fragment_offset = level.fragment.offset;
    meta.more_fragments = level.fragment.more;
    let ports = match level.transport {
        Some(c) => transport_header(c, meta),
        None if level.later > 0 => {
            // Bytes from the middle of a datagram, which nobody is to take for the beginning of one.
            (meta.payload_len, meta.payload_at) = (u32::try_from(level.later).unwrap_or(u32::MAX), u16::MAX);
            [0; 2]
        }
        None => [0; 2],
    };
    set_endpoints(level.src, level.dst, ports, meta);
}

/// Source and destination port, if any; and into `meta` what else was captured of the transport header.
fn transport_header(c: Cursor<'_>, meta: &mut PacketMeta) -> [u16; 2] {
    let ports = || c.bytes::<4>(0).map_or([0; 2], |&[s1, s0, d1, d0]| [[s1, s0], [d1, d0]].map(u16::from_be_bytes));
    let (ports, header_len) = match meta.key.proto {
        proto::TCP => match c.bytes::<20>(0) {
            Some(h) => {
                meta.seq = u32::from_be_bytes([h[4], h[5], h[6], h[7]]);
                meta.ack = u32::from_be_bytes([h[8], h[9], h[10], h[11]]);
                meta.flags = TcpFlags(h[13]);
                meta.window = u16::from_be_bytes([h[14], h[15]]);
                meta.has_tcp = true;
                (ports(), usize::from(h[12] >> 4).max(5) * 4)
            }
            None => (ports(), 20),
        },
        proto::UDP | proto::UDP_LITE => (ports(), 8),
        proto::SCTP | proto::DCCP => (ports(), 12),
        proto::ICMP | proto::ICMPV6 => {
            if let Some(&[icmp_type, icmp_code]) = c.bytes::<2>(0) {
                (meta.icmp_type, meta.icmp_code, meta.has_icmp) = (icmp_type, icmp_code, true);
            }
            ([0; 2], 8)
        }
        _ => ([0; 2], 0),
    };
    meta.payload_len = u32::try_from(c.len().saturating_sub(header_len)).unwrap_or(u32::MAX);
    meta.payload_at = u16::try_from(c.at + header_len).unwrap_or(u16::MAX);
    ports
}

/// Orders the endpoints, so that both directions of a flow give one key.
fn set_endpoints(src: Addr, dst: Addr, [src_port, dst_port]: [u16; 2], meta: &mut PacketMeta) {
    let key = &mut meta.key;
    if (src, src_port) <= (dst, dst_port) {
        (key.lo, key.lo_port, key.hi, key.hi_port) = (src, src_port, dst, dst_port);
        meta.direction = Direction::LoToHi;
    } else {
        (key.lo, key.lo_port, key.hi, key.hi_port) = (dst, dst_port, src, src_port);
        meta.direction = Direction::HiToLo;
    }
}
