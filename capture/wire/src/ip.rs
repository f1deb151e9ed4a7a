//! One IP header with its options or extension headers, at whatever depth it was met.

use crate::cursor::Cursor;
use crate::{Addr, DropReason, Limits, proto};

/// What one IP header says.
#[derive(Clone, Copy)]
pub(crate) struct Level<'a> {
    pub(crate) src: Addr,
    pub(crate) dst: Addr,
    /// Behind all extension headers and AH; of what could not be followed, its own number.
    pub(crate) proto: u8,
    pub(crate) ttl: u8,
    pub(crate) dscp: u8,
    /// Total length, or 40 + payload length.
    pub(crate) ip_bytes: u32,
    pub(crate) fragment: Fragment,
    /// Where the packet ends by its own header, as an offset in the frame.
    pub(crate) end: usize,
    /// The transport header. `None` in a later fragment, or where the chain of headers before it could not be followed.
    pub(crate) transport: Option<Cursor<'a>>,
    /// Bytes of the datagram that a later fragment has, as its header says; of others 0.
    pub(crate) later: usize,
}

/// A packet's place in the datagram it is a fragment of.
#[derive(Clone, Copy, Default)]
pub(crate) struct Fragment {
    pub(crate) id: u32,
    /// Of IPv4, the protocol that the header says; of IPv6 only where the identification was cut off.
    pub(crate) proto: u8,
    /// In units of 8 bytes.
    pub(crate) offset: u16,
    pub(crate) more: bool,
}

impl Fragment {
    /// Neither whole nor an atomic fragment (RFC 6946), which is whole in itself.
    pub(crate) fn is_part(self) -> bool {
        self.more || self.offset != 0
    }
}

/// The IP header at `c`. Whatever announced it, the version nibble decides, as it does for every receiver.
pub(crate) fn level<'a>(c: Cursor<'a>, limits: &Limits) -> Result<Level<'a>, DropReason> {
    match c.u8(0).ok_or(DropReason::IpTruncated)? >> 4 {
        4 => ipv4(c),
        6 => ipv6(c, limits),
        _ => Err(DropReason::IpVersion),
    }
}

/// IPv4 (RFC 791).
fn ipv4(c: Cursor<'_>) -> Result<Level<'_>, DropReason> {
    let h: &[u8; 20] = c.bytes(0).ok_or(DropReason::IpTruncated)?;
    let header_len = usize::from(h[0] & 0x0f) * 4;
    let total = u16::from_be_bytes([h[2], h[3]]);
    // 0: segmentation offload (TSO, BIG TCP) left it to the card. The packet is the rest of the frame.
    let len = if total == 0 { c.len() } else { usize::from(total) };
    if header_len < 20 || len < header_len {
        return Err(DropReason::IpHeaderLength);
    }
    let end = c.at + len;
    let flags = u16::from_be_bytes([h[6], h[7]]);
    let id = u32::from(u16::from_be_bytes([h[4], h[5]]));
    let fragment = Fragment { id, proto: h[9], offset: flags & 0x1fff, more: flags & 0x2000 != 0 };
    let mut level = Level {
        src: Addr::v4([h[12], h[13], h[14], h[15]]),
        dst: Addr::v4([h[16], h[17], h[18], h[19]]),
        proto: h[9],
        ttl: h[8],
        dscp: h[1] >> 2,
        ip_bytes: saturate(len),
        fragment,
        end,
        transport: None,
        later: if fragment.offset == 0 { 0 } else { len - header_len },
    };
    if fragment.offset == 0 {
        let body = c.skip(header_len).within(end);
        level.transport = if h[9] == proto::AH { after_ah(body, &mut level.proto) } else { Some(body) };
    }
    Ok(level)
}

/// What an authentication header (RFC 4302) covers; its own number stays where that cannot be read.
fn after_ah<'a>(c: Cursor<'a>, proto: &mut u8) -> Option<Cursor<'a>> {
    let [next, words] = *c.bytes::<2>(0)?;
    *proto = next;
    Some(c.skip((usize::from(words) + 2) * 4))
}

/// IPv6 (RFC 8200) and its extension headers.
fn ipv6<'a>(c: Cursor<'a>, limits: &Limits) -> Result<Level<'a>, DropReason> {
    let h: &[u8; 40] = c.bytes(0).ok_or(DropReason::IpTruncated)?;
    let payload = u16::from_be_bytes([h[4], h[5]]);
    // Length 0 announces a jumbogram (RFC 2675), which says its length in an option, or segmentation offload, which does
    // not; nothing follows only where the header says so.
    let len = match payload {
        0 if h[6] != proto::NO_NEXT => jumbo_payload(c, h[6]).map_or(c.len(), |payload| 40 + payload),
        _ => 40 + usize::from(payload),
    };
    let end = c.at + len;
    let mut level = Level {
        src: Addr(*c.bytes(8).ok_or(DropReason::IpTruncated)?),
        dst: Addr(*c.bytes(24).ok_or(DropReason::IpTruncated)?),
        proto: h[6],
        ttl: h[7],
        dscp: (u16::from_be_bytes([h[0], h[1]]) >> 6 & 0x3f) as u8,
        ip_bytes: saturate(len),
        fragment: Fragment::default(),
        end,
        transport: None,
        later: 0,
    };
    level.transport = extensions(c.skip(40).within(end), limits, &mut level)?;
    Ok(level)
}

/// The length in a jumbo payload option (RFC 2675 section 2) of a hop-by-hop header right behind the IPv6 header.
fn jumbo_payload(c: Cursor<'_>, next: u8) -> Option<usize> {
    const JUMBO: u8 = 0xc2;
    if next != proto::HOP_BY_HOP {
        return None;
    }
    let c = c.skip(40);
    let len = (usize::from(c.u8(1)?) + 1) * 8;
    let mut at = 2;
    while at + 6 <= len {
        at += match c.u8(at)? {
            0 => 1,
            JUMBO if c.u8(at + 1)? == 4 => {
                let payload = c.u32(at + 2)?;
                return (payload > u32::from(u16::MAX)).then_some(payload as usize);
            }
            _ => 2 + usize::from(c.u8(at + 1)?),
        };
    }
    None
}

/// Walks extension headers; `level.proto` ends as the first number that is none, or that could not be followed.
fn extensions<'a>(mut c: Cursor<'a>, limits: &Limits, level: &mut Level<'a>) -> Result<Option<Cursor<'a>>, DropReason> {
    let mut seen = 0u8;
    loop {
        let step = match level.proto {
            header @ (proto::HOP_BY_HOP | proto::ROUTING | proto::DSTOPTS | proto::SHIM6) => {
                let Some(&[next, units]) = c.bytes::<2>(0) else { return Ok(None) };
                level.proto = next;
                let len = (usize::from(units) + 1) * 8;
                if matches!(header, proto::HOP_BY_HOP | proto::DSTOPTS) && !options_fit(c, len) {
                    return Ok(None);
                }
                len
            }
            proto::AH => {
                let Some(&[next, words]) = c.bytes::<2>(0) else { return Ok(None) };
                level.proto = next;
                (usize::from(words) + 2) * 4
            }
            proto::FRAGMENT => {
                // The identification may be cut off and is 0 then: the rest still tells whether to follow.
                let Some(&[next, _, hi, lo]) = c.bytes::<4>(0) else { return Ok(None) };
                let field = u16::from_be_bytes([hi, lo]);
                level.proto = next;
                // Where it is, it is enough to tell datagrams apart.
                let (id, proto) = c.u32(4).map_or((0, next), |id| (id, 0));
                level.fragment = Fragment { id, proto, offset: field >> 3, more: field & 1 != 0 };
                if level.fragment.offset != 0 {
                    level.later = level.end.saturating_sub(c.at + 8);
                    return Ok(None);
                }
                8
            }
            _ => return Ok(Some(c)),
        };
        seen += 1;
        if seen > limits.extensions_max {
            return Err(DropReason::ExtensionDepth);
        }
        c = c.skip(step);
    }
}

/// Whether the options of a hop-by-hop or destination options header (RFC 8200 section 4.2) stay within their packet.
/// Where one claims to reach beyond, a receiver discards the packet, and what follows cannot be trusted to be a
/// transport header. One that only reaches beyond its own header is let pass, as tshark does.
fn options_fit(c: Cursor<'_>, len: usize) -> bool {
    let mut at = 2;
    // A lone last byte has no length to lie with.
    while at + 1 < len {
        at += match (c.u8(at), c.u8(at + 1)) {
            // Pad1 has no length.
            (Some(0), _) => 1,
            (Some(_), Some(option)) => 2 + usize::from(option),
            // Behind the end of the packet, or cut by the capture: then nothing follows that could be read anyway.
            _ => return c.at + at + 1 < c.end,
        };
        if c.at + at > c.end {
            return false;
        }
    }
    true
}

fn saturate(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}
