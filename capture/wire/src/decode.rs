//! Frame to [`PacketMeta`]: link header, tags, IP with its extension headers, transport.
//!
//! Every read is bounds-checked against the captured bytes; every loop is bounded by [`Limits`]. What the capture cut
//! off is taken from what the headers say. One function a layer; each returns what the next one starts with.

use crate::{Addr, Direction, DropReason, FlowKey, Frame, LinkType, Mac, PacketMeta, TcpFlags, proto};

/// Bounds on what one frame may nest, so that no packet costs more than a fixed amount of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// VLAN tags plus MPLS labels a frame may carry.
    pub tags_max: u8,
    /// IPv6 extension headers at one level.
    pub extensions_max: u8,
    /// Encapsulations inside one another.
    pub encapsulations_max: u8,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { tags_max: 64, extensions_max: 32, encapsulations_max: 8 }
    }
}

/// Decodes one frame. `clock` is left zero: the caller owns time.
///
/// # Errors
/// The reason why the frame is part of no flow.
pub fn decode(frame: &Frame<'_>, limits: &Limits) -> Result<PacketMeta, DropReason> {
    let mut meta = PacketMeta::EMPTY;
    decode_into(frame, limits, &mut meta)?;
    Ok(meta)
}

/// [`decode`] into a slot of a batch, which must hold [`PacketMeta::EMPTY`].
///
/// # Errors
/// As [`decode`]; the slot is then partly written and must be reset.
#[inline]
pub fn decode_into(frame: &Frame<'_>, limits: &Limits, meta: &mut PacketMeta) -> Result<(), DropReason> {
    meta.ts = frame.ts;
    meta.frame_bytes = frame.wire_len;
    meta.key.tap = frame.tap;
    let cursor = Cursor { data: frame.data, at: 0 };
    let (ethertype, cursor) = link(frame.link, cursor, meta)?;
    let ip = match ethertype {
        ethertype::IPV4 | ethertype::IPV6 => cursor,
        // Only the place comes back, not the cursor: what returns in memory is copied once a call, and a copy that reads
        // several stores at once waits for all of them. On the way of every packet that took 20 ns.
        _ => Cursor { at: below_tags(ethertype, cursor, limits, meta)?, ..cursor },
    };
    let mut ends = Endpoints { src: Addr([0; 16]), dst: Addr([0; 16]), src_port: 0, dst_port: 0 };
    // Both types may announce either version; the nibble decides, as it does for every receiver.
    let transport = match ip.u8(0).ok_or(DropReason::IpTruncated)? >> 4 {
        4 => ipv4(ip, meta, &mut ends)?,
        6 => ipv6(ip, limits, meta, &mut ends)?,
        _ => return Err(DropReason::IpVersion),
    };
    if let Some(transport) = transport {
        transport_header(&transport, meta, &mut ends);
    }
    finish_key(meta, &ends);
    Ok(())
}

/// A position in the captured bytes. `at` may lie past the end: every read then fails.
#[derive(Clone, Copy)]
struct Cursor<'a> {
    data: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    #[inline]
    fn bytes<const N: usize>(&self, offset: usize) -> Option<&'a [u8; N]> {
        self.data.get(self.at + offset..)?.first_chunk()
    }

    #[inline]
    fn u8(&self, offset: usize) -> Option<u8> {
        self.data.get(self.at + offset).copied()
    }

    #[inline]
    fn u16(&self, offset: usize) -> Option<u16> {
        self.bytes(offset).map(|b| u16::from_be_bytes(*b))
    }

    #[inline]
    fn skip(mut self, n: usize) -> Cursor<'a> {
        self.at += n;
        self
    }
}

mod ethertype {
    pub(super) const IPV4: u16 = 0x0800;
    pub(super) const IPV6: u16 = 0x86dd;
    pub(super) const VLAN: u16 = 0x8100;
    pub(super) const QINQ: u16 = 0x88a8;
    pub(super) const QINQ_OLD: [u16; 3] = [0x9100, 0x9200, 0x9300];
    pub(super) const MPLS: u16 = 0x8847;
    pub(super) const MPLS_MULTICAST: u16 = 0x8848;
    pub(super) const PPPOE_SESSION: u16 = 0x8864;
    /// Values up to here are an 802.3 length, not a type (IEEE 802.3 clause 3.2.6).
    pub(super) const LENGTH_MAX: u16 = 1500;
}

/// Link header: what follows, as an Ethernet type, and where.
#[inline]
fn link<'a>(link: LinkType, c: Cursor<'a>, meta: &mut PacketMeta) -> Result<(u16, Cursor<'a>), DropReason> {
    const CUT: DropReason = DropReason::LinkTruncated;
    match link {
        LinkType::Ethernet => {
            let header: &[u8; 14] = c.bytes(0).ok_or(CUT)?;
            let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1] = *header;
            meta.dst_mac = Mac([d0, d1, d2, d3, d4, d5]);
            meta.src_mac = Mac([s0, s1, s2, s3, s4, s5]);
            meta.has_mac = true;
            Ok((u16::from_be_bytes([t0, t1]), c.skip(14)))
        }
        LinkType::RawIp => Ok((ip_ethertype(c).ok_or(CUT)?, c)),
        LinkType::Null => {
            // The family is in the byte order of whoever captured; a small number tells which (LINKTYPE_NULL, _LOOP).
            let raw = u32::from_be_bytes(*c.bytes::<4>(0).ok_or(CUT)?);
            let family = if raw > 0xffff { raw.swap_bytes() } else { raw };
            match family {
                2 => Ok((ethertype::IPV4, c.skip(4))),
                10 | 24 | 28 | 30 => Ok((ethertype::IPV6, c.skip(4))),
                _ => Err(DropReason::NotIp),
            }
        }
        LinkType::LinuxSll => Ok((c.u16(14).ok_or(CUT)?, c.skip(16))),
        LinkType::LinuxSll2 => {
            let protocol = c.u16(0).ok_or(CUT)?;
            if c.data.len() < 20 { Err(CUT) } else { Ok((protocol, c.skip(20))) }
        }
        LinkType::Ppp => {
            let c = if c.bytes::<2>(0) == Some(&[0xff, 0x03]) { c.skip(2) } else { c };
            ppp(c)
        }
        LinkType::Unsupported(_) => Err(DropReason::LinkUnsupported),
    }
}

/// PPP protocol field (RFC 1661 section 2), compressed to one byte or not, as an Ethernet type.
fn ppp(c: Cursor<'_>) -> Result<(u16, Cursor<'_>), DropReason> {
    let first = c.u8(0).ok_or(DropReason::LinkTruncated)?;
    let (protocol, c) = if first & 1 == 1 {
        (u16::from(first), c.skip(1))
    } else {
        (c.u16(0).ok_or(DropReason::LinkTruncated)?, c.skip(2))
    };
    match protocol {
        0x0021 => Ok((ethertype::IPV4, c)),
        0x0057 => Ok((ethertype::IPV6, c)),
        0x0281 => Ok((ethertype::MPLS, c)),
        0x0283 => Ok((ethertype::MPLS_MULTICAST, c)),
        _ => Err(DropReason::NotIp),
    }
}

/// The Ethernet type that the version nibble at `c` stands for; any other nibble passes as IPv4 and fails there.
fn ip_ethertype(c: Cursor<'_>) -> Option<u16> {
    Some(if c.u8(0)? >> 4 == 6 { ethertype::IPV6 } else { ethertype::IPV4 })
}

/// Where IP begins, behind tags, labels, PPPoE.
#[inline(never)]
fn below_tags(first: u16, mut c: Cursor<'_>, limits: &Limits, meta: &mut PacketMeta) -> Result<usize, DropReason> {
    let (mut kind, mut tags) = (first, 0u8);
    while !matches!(kind, ethertype::IPV4 | ethertype::IPV6) {
        (kind, c) = before_ip(kind, c, limits, meta, &mut tags)?;
        if c.at > c.data.len() {
            return Err(DropReason::LinkTruncated);
        }
    }
    Ok(c.at)
}

/// One header that stands between link header and IP.
fn before_ip<'a>(
    kind: u16,
    c: Cursor<'a>,
    limits: &Limits,
    meta: &mut PacketMeta,
    tags: &mut u8,
) -> Result<(u16, Cursor<'a>), DropReason> {
    const CUT: DropReason = DropReason::LinkTruncated;
    match kind {
        ethertype::VLAN | ethertype::QINQ => vlan(c, limits, meta, tags),
        k if ethertype::QINQ_OLD.contains(&k) => vlan(c, limits, meta, tags),
        ethertype::MPLS | ethertype::MPLS_MULTICAST => mpls(c, limits, tags),
        ethertype::PPPOE_SESSION => ppp(if c.data.len() < c.at + 6 { return Err(CUT) } else { c.skip(6) }),
        k if k <= ethertype::LENGTH_MAX => llc(c),
        _ => Err(DropReason::NotIp),
    }
}

/// One 802.1Q tag: 16 bits of priority and id, then the next type.
fn vlan<'a>(
    c: Cursor<'a>,
    limits: &Limits,
    meta: &mut PacketMeta,
    tags: &mut u8,
) -> Result<(u16, Cursor<'a>), DropReason> {
    let tag: &[u8; 4] = c.bytes(0).ok_or(DropReason::LinkTruncated)?;
    let id = u16::from_be_bytes([tag[0], tag[1]]) & 0x0fff;
    match *tags {
        0 => meta.key.vlan = id,
        1 => meta.key.vlan_inner = id,
        _ => {}
    }
    *tags += 1;
    if *tags > limits.tags_max {
        return Err(DropReason::TagDepth);
    }
    Ok((u16::from_be_bytes([tag[2], tag[3]]), c.skip(4)))
}

/// A label stack (RFC 3032) down to its bottom, then what the first nibble says (RFC 4928 section 3).
fn mpls<'a>(mut c: Cursor<'a>, limits: &Limits, tags: &mut u8) -> Result<(u16, Cursor<'a>), DropReason> {
    loop {
        let bottom = c.u8(2).ok_or(DropReason::LinkTruncated)? & 1 == 1;
        c = c.skip(4);
        *tags += 1;
        if *tags > limits.tags_max {
            return Err(DropReason::TagDepth);
        }
        if bottom {
            break;
        }
    }
    match c.u8(0).ok_or(DropReason::LinkTruncated)? >> 4 {
        4 => Ok((ethertype::IPV4, c)),
        6 => Ok((ethertype::IPV6, c)),
        // A pseudowire control word (RFC 4385) and an Ethernet frame (RFC 4448); its MACs are the customer's.
        0 => Ok((c.u16(4 + 12).ok_or(DropReason::LinkTruncated)?, c.skip(4 + 14))),
        _ => Err(DropReason::NotIp),
    }
}

/// 802.2 LLC: IP behind a SNAP header (RFC 1042) or on its own service access point.
fn llc(c: Cursor<'_>) -> Result<(u16, Cursor<'_>), DropReason> {
    match c.bytes::<3>(0) {
        Some([0xaa, 0xaa, 0x03]) => match c.bytes::<5>(3) {
            Some(&[0, 0, 0, hi, lo]) => match u16::from_be_bytes([hi, lo]) {
                k if k > ethertype::LENGTH_MAX => Ok((k, c.skip(8))),
                _ => Err(DropReason::NotIp),
            },
            Some(_) => Err(DropReason::NotIp),
            None => Err(DropReason::LinkTruncated),
        },
        Some([0x06, 0x06, 0x03]) => Ok((ethertype::IPV4, c.skip(3))),
        Some(_) => Err(DropReason::NotIp),
        None => Err(DropReason::LinkTruncated),
    }
}

/// Source and destination as the packet has them, before the key orders them.
struct Endpoints {
    src: Addr,
    dst: Addr,
    src_port: u16,
    dst_port: u16,
}

/// A transport header: where it starts, what of it was captured, and how long the headers say it is with its payload.
struct Transport<'a> {
    captured: &'a [u8],
    at: usize,
    len: usize,
}

impl<'a> Transport<'a> {
    /// `end`: where the IP packet ends by its own length field.
    #[inline]
    fn new(c: Cursor<'a>, end: usize) -> Transport<'a> {
        let at = c.at;
        let captured = c.data.get(at..end.min(c.data.len())).unwrap_or(&[]);
        Transport { captured, at, len: end.saturating_sub(at) }
    }
}

/// IPv4 (RFC 791). `None`: a later fragment, which carries no transport header.
#[inline]
fn ipv4<'a>(c: Cursor<'a>, meta: &mut PacketMeta, ends: &mut Endpoints) -> Result<Option<Transport<'a>>, DropReason> {
    let h: &[u8; 20] = c.bytes(0).ok_or(DropReason::IpTruncated)?;
    let header_len = usize::from(h[0] & 0x0f) * 4;
    let total = u16::from_be_bytes([h[2], h[3]]);
    let end = c.at + if total == 0 { offloaded_len(c, meta) } else { usize::from(total) };
    if header_len < 20 || end - c.at < header_len {
        return Err(DropReason::IpHeaderLength);
    }
    let fragment = u16::from_be_bytes([h[6], h[7]]);
    let offset = fragment & 0x1fff;
    meta.ip_bytes = (end - c.at) as u32;
    meta.dscp = h[1] >> 2;
    meta.ttl = h[8];
    meta.key.proto = h[9];
    meta.fragment = fragment & 0x3fff != 0;
    ends.src = Addr::v4([h[12], h[13], h[14], h[15]]);
    ends.dst = Addr::v4([h[16], h[17], h[18], h[19]]);
    let c = c.skip(header_len);
    if offset != 0 {
        return Ok(None);
    }
    if h[9] == proto::AH { Ok(after_ah(c, end, meta)) } else { Ok(Some(Transport::new(c, end))) }
}

/// Length of an IP packet whose length field is 0, as segmentation offload (TSO, BIG TCP) and jumbograms (RFC 2675)
/// write it: the rest of the frame.
#[cold]
fn offloaded_len(c: Cursor<'_>, meta: &PacketMeta) -> usize {
    (meta.frame_bytes as usize).max(c.data.len()) - c.at
}

/// What an authentication header (RFC 4302) covers; its own number stays where that cannot be read.
fn after_ah<'a>(c: Cursor<'a>, end: usize, meta: &mut PacketMeta) -> Option<Transport<'a>> {
    let [next, words] = *c.bytes::<2>(0)?;
    meta.key.proto = next;
    Some(Transport::new(c.skip((usize::from(words) + 2) * 4), end))
}

/// IPv6 (RFC 8200) and its extension headers. `None`: a later fragment, or a chain the capture cut.
#[inline]
fn ipv6<'a>(
    c: Cursor<'a>,
    limits: &Limits,
    meta: &mut PacketMeta,
    ends: &mut Endpoints,
) -> Result<Option<Transport<'a>>, DropReason> {
    let h: &[u8; 40] = c.bytes(0).ok_or(DropReason::IpTruncated)?;
    let payload = u16::from_be_bytes([h[4], h[5]]);
    meta.dscp = (u16::from_be_bytes([h[0], h[1]]) >> 6 & 0x3f) as u8;
    meta.ttl = h[7];
    ends.src = Addr(*c.bytes(8).ok_or(DropReason::IpTruncated)?);
    ends.dst = Addr(*c.bytes(24).ok_or(DropReason::IpTruncated)?);
    meta.key.proto = h[6];
    let end =
        c.at + if payload == 0 && h[6] != proto::NO_NEXT { offloaded_len(c, meta) } else { 40 + usize::from(payload) };
    meta.ip_bytes = (end - c.at) as u32;
    extensions(c.skip(40), end, limits, meta)
}

/// Walks extension headers; `meta.key.proto` ends as the first number that is none, or that could not be followed.
#[inline]
fn extensions<'a>(
    mut c: Cursor<'a>,
    end: usize,
    limits: &Limits,
    meta: &mut PacketMeta,
) -> Result<Option<Transport<'a>>, DropReason> {
    let mut seen = 0u8;
    loop {
        let step = match meta.key.proto {
            header @ (0 | proto::ROUTING | proto::DSTOPTS | proto::SHIM6) => {
                let Some(&[next, units]) = c.bytes::<2>(0) else { return Ok(None) };
                meta.key.proto = next;
                let len = (usize::from(units) + 1) * 8;
                if matches!(header, 0 | proto::DSTOPTS) && !options_fit(c, len, end) {
                    return Ok(None);
                }
                len
            }
            proto::AH => {
                let Some(&[next, words]) = c.bytes::<2>(0) else { return Ok(None) };
                meta.key.proto = next;
                (usize::from(words) + 2) * 4
            }
            proto::FRAGMENT => {
                let Some(&[next, _, hi, lo]) = c.bytes::<4>(0) else { return Ok(None) };
                let field = u16::from_be_bytes([hi, lo]);
                meta.key.proto = next;
                // Offset and more-fragments both 0: an atomic fragment (RFC 6946), whole in itself.
                meta.fragment |= field & 0xfff9 != 0;
                if field & 0xfff8 != 0 {
                    return Ok(None);
                }
                8
            }
            _ => return Ok(Some(Transport::new(c, end))),
        };
        seen += 1;
        if seen > limits.extensions_max {
            return Err(DropReason::ExtensionDepth);
        }
        c = c.skip(step);
    }
}

/// Whether the options of a hop-by-hop or destination options header (RFC 8200 section 4.2) stay within their packet,
/// which ends at `end`. Where one claims to reach beyond, a receiver discards the packet, and what follows cannot be
/// trusted to be a transport header. One that only reaches beyond its own header is let pass, as tshark does.
fn options_fit(c: Cursor<'_>, len: usize, end: usize) -> bool {
    let mut at = 2;
    // A lone last byte has no length to lie with.
    while at + 1 < len {
        at += match (c.u8(at), c.u8(at + 1)) {
            // Pad1 has no length.
            (Some(0), _) => 1,
            (Some(_), Some(option)) => 2 + usize::from(option),
            // Cut by the capture: nothing follows that could be read anyway.
            _ => return true,
        };
        if c.at + at > end {
            return false;
        }
    }
    true
}

/// Ports and TCP fields, as far as they were captured.
#[inline]
fn transport_header(t: &Transport<'_>, meta: &mut PacketMeta, ends: &mut Endpoints) {
    let b = t.captured;
    let header_len = match meta.key.proto {
        proto::TCP => match b.first_chunk::<20>() {
            Some(h) => {
                ports(b, ends);
                meta.seq = u32::from_be_bytes([h[4], h[5], h[6], h[7]]);
                meta.ack = u32::from_be_bytes([h[8], h[9], h[10], h[11]]);
                meta.flags = TcpFlags(h[13]);
                meta.window = u16::from_be_bytes([h[14], h[15]]);
                meta.has_tcp = true;
                usize::from(h[12] >> 4).max(5) * 4
            }
            None => {
                ports(b, ends);
                20
            }
        },
        proto::UDP | proto::UDP_LITE => {
            ports(b, ends);
            8
        }
        proto::SCTP | proto::DCCP => {
            ports(b, ends);
            12
        }
        proto::ICMP | proto::ICMPV6 => {
            if let Some(&[icmp_type, icmp_code]) = b.first_chunk::<2>() {
                meta.icmp_type = icmp_type;
                meta.icmp_code = icmp_code;
                meta.has_icmp = true;
            }
            8
        }
        _ => 0,
    };
    meta.payload_len = u32::try_from(t.len.saturating_sub(header_len)).unwrap_or(u32::MAX);
    meta.payload_at = u16::try_from(t.at + header_len).unwrap_or(u16::MAX);
}

#[inline]
fn ports(b: &[u8], ends: &mut Endpoints) {
    if let Some(&[s1, s0, d1, d0]) = b.first_chunk::<4>() {
        ends.src_port = u16::from_be_bytes([s1, s0]);
        ends.dst_port = u16::from_be_bytes([d1, d0]);
    }
}

/// Orders the endpoints, so that both directions of a flow give one key.
#[inline]
fn finish_key(meta: &mut PacketMeta, ends: &Endpoints) {
    let src = (u128::from_be_bytes(ends.src.0), ends.src_port);
    let dst = (u128::from_be_bytes(ends.dst.0), ends.dst_port);
    let key: &mut FlowKey = &mut meta.key;
    if src <= dst {
        (key.lo, key.lo_port, key.hi, key.hi_port) = (ends.src, ends.src_port, ends.dst, ends.dst_port);
        meta.direction = Direction::LoToHi;
    } else {
        (key.lo, key.lo_port, key.hi, key.hi_port) = (ends.dst, ends.dst_port, ends.src, ends.src_port);
        meta.direction = Direction::HiToLo;
    }
}
