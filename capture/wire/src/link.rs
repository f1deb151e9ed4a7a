//! From the first byte of a frame, or of a tunnel's payload, to an IP header: link headers, tags, labels, PPPoE.

use crate::cursor::Cursor;
use crate::wlan::{radiotap, wlan};
use crate::{DropReason, Limits, LinkType, Mac, PacketMeta};

const CUT: DropReason = DropReason::LinkTruncated;

/// Ethernet types (IEEE registry).
pub(crate) mod ethertype {
    pub(crate) const IPV4: u16 = 0x0800;
    pub(crate) const IPV6: u16 = 0x86dd;
    pub(crate) const VLAN: u16 = 0x8100;
    pub(crate) const QINQ: u16 = 0x88a8;
    pub(crate) const QINQ_OLD: [u16; 3] = [0x9100, 0x9200, 0x9300];
    pub(crate) const MPLS: u16 = 0x8847;
    pub(crate) const MPLS_MULTICAST: u16 = 0x8848;
    pub(crate) const PPPOE_SESSION: u16 = 0x8864;
    /// An Ethernet frame (RFC 1701, RFC 7637).
    pub(crate) const BRIDGED: u16 = 0x6558;
    /// A PPP frame (RFC 2637).
    pub(crate) const PPP: u16 = 0x880b;
    /// Network service header (RFC 8300).
    pub(crate) const NSH: u16 = 0x894f;
    /// Backbone service instance tag, an Ethernet frame behind it (IEEE 802.1Q clause 9.7).
    pub(crate) const BACKBONE: u16 = 0x88e7;
    /// Cisco MetaData, which carries a security group tag.
    pub(crate) const CISCO_METADATA: u16 = 0x8909;
    /// Values up to here are an 802.3 length, not a type (IEEE 802.3 clause 3.2.6).
    pub(crate) const LENGTH_MAX: u16 = 1500;
}

/// An Ethernet type and where what it announces begins.
pub(crate) type Announced<'a> = (u16, Cursor<'a>);

/// The tags and labels of one frame.
pub(crate) struct Tags {
    /// VLAN ids, outer first; 0 for none.
    pub(crate) vlans: [u16; 2],
    vlan_count: u8,
    /// Every header between link header and IP.
    count: u8,
    max: u8,
}

impl Tags {
    pub(crate) fn new(limits: &Limits) -> Tags {
        Tags { vlans: [0; 2], vlan_count: 0, count: 0, max: limits.tags_max }
    }

    /// Whether the frame had any VLAN tag, id 0 (priority only) included.
    pub(crate) fn has_vlan(&self) -> bool {
        self.vlan_count > 0
    }

    fn one_more(&mut self) -> Result<(), DropReason> {
        self.count = self.count.saturating_add(1);
        if self.count > self.max { Err(DropReason::TagDepth) } else { Ok(()) }
    }
}

/// Link header of a frame: what follows, and where.
pub(crate) fn link<'a>(link: LinkType, c: Cursor<'a>, meta: &mut PacketMeta) -> Result<Announced<'a>, DropReason> {
    // Per-Packet Information names another link type, but never itself.
    let (link, c) = if link == LinkType::Ppi { ppi(c)? } else { (link, c) };
    match link {
        LinkType::Ethernet => {
            let header: &[u8; 14] = c.bytes(0).ok_or(CUT)?;
            let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, ..] = *header;
            meta.dst_mac = Mac([d0, d1, d2, d3, d4, d5]);
            meta.src_mac = Mac([s0, s1, s2, s3, s4, s5]);
            meta.has_mac = true;
            ethernet(c)
        }
        LinkType::RawIp => Ok((ip_ethertype(c)?, c)),
        LinkType::Null => Ok((address_family(host_u32(c, 0)?)?, c.skip(4))),
        LinkType::Enc => Ok((address_family(host_u32(c, 0)?)?, c.skip(12))),
        LinkType::LinuxSll => Ok((c.u16(14).ok_or(CUT)?, c.skip(16))),
        LinkType::LinuxSll2 => {
            let _whole: &[u8; 20] = c.bytes(0).ok_or(CUT)?;
            Ok((c.u16(0).ok_or(CUT)?, c.skip(20)))
        }
        LinkType::Ppp => ppp(c),
        LinkType::PppDirection => match c.bytes::<2>(0) {
            // The direction in the place of the address byte, or before all of PPP.
            Some([_, 0x03]) => ppp(c.skip(2)),
            _ => ppp(c.skip(1)),
        },
        LinkType::PppEther => pppoe(c),
        LinkType::CiscoHdlc => Ok((c.u16(2).ok_or(CUT)?, c.skip(4))),
        LinkType::AtmLlc => llc(c),
        LinkType::IpOverInfiniband => Ok((c.u16(0).ok_or(CUT)?, c.skip(4))),
        LinkType::IpOverFirewire => Ok((c.u16(16).ok_or(CUT)?, c.skip(18))),
        LinkType::IpNet => match c.bytes::<24>(0).ok_or(CUT)? {
            [_, 2 | 26, ..] => Ok((ip_ethertype(c.skip(24))?, c.skip(24))),
            _ => Err(DropReason::NotIp),
        },
        LinkType::Nflog => nflog(c),
        LinkType::Wlan => wlan(c, false, meta),
        LinkType::Radiotap => radiotap(c, meta),
        LinkType::Ppi | LinkType::Unsupported(_) => Err(DropReason::LinkUnsupported),
    }
}

/// Where IP begins, behind tags, labels, PPPoE.
pub(crate) fn below_tags<'a>((mut kind, mut c): Announced<'a>, tags: &mut Tags) -> Result<Cursor<'a>, DropReason> {
    while !matches!(kind, ethertype::IPV4 | ethertype::IPV6) {
        (kind, c) = before_ip(kind, c, tags)?;
        if c.is_beyond() {
            return Err(CUT);
        }
    }
    Ok(c)
}

/// One header that stands between link header and IP.
fn before_ip<'a>(kind: u16, c: Cursor<'a>, tags: &mut Tags) -> Result<Announced<'a>, DropReason> {
    tags.one_more()?;
    match kind {
        ethertype::VLAN | ethertype::QINQ => vlan(c, tags),
        k if ethertype::QINQ_OLD.contains(&k) => vlan(c, tags),
        ethertype::MPLS | ethertype::MPLS_MULTICAST => mpls(c, tags),
        ethertype::PPPOE_SESSION => pppoe(c),
        ethertype::PPP => ppp(c),
        ethertype::BRIDGED => ethernet(c),
        ethertype::NSH => nsh(c),
        // Instance tag of 4 bytes, then the customer's frame.
        ethertype::BACKBONE => ethernet(c.skip(4)),
        ethertype::CISCO_METADATA => cisco_metadata(c),
        k if k <= ethertype::LENGTH_MAX => llc(c),
        _ => Err(DropReason::NotIp),
    }
}

/// The type field of an Ethernet header.
fn ethernet(c: Cursor<'_>) -> Result<Announced<'_>, DropReason> {
    Ok((c.u16(12).ok_or(CUT)?, c.skip(14)))
}

/// The Ethernet type that the version nibble at `c` stands for; any other nibble passes as IPv4 and fails there.
pub(crate) fn ip_ethertype(c: Cursor<'_>) -> Result<u16, DropReason> {
    Ok(if c.u8(0).ok_or(CUT)? >> 4 == 6 { ethertype::IPV6 } else { ethertype::IPV4 })
}

/// A number in the byte order of whoever captured: a small one tells which (LINKTYPE_NULL, _LOOP, _ENC).
fn host_u32(c: Cursor<'_>, offset: usize) -> Result<u32, DropReason> {
    let raw = c.u32(offset).ok_or(CUT)?;
    Ok(if raw > 0xffff { raw.swap_bytes() } else { raw })
}

/// `AF_INET`, and `AF_INET6` of every system that differs.
fn address_family(family: u32) -> Result<u16, DropReason> {
    match family {
        2 => Ok(ethertype::IPV4),
        10 | 24 | 28 | 30 => Ok(ethertype::IPV6),
        _ => Err(DropReason::NotIp),
    }
}

/// A PPP frame, with or without HDLC address and control (RFC 1662); its protocol field (RFC 1661 section 2),
/// compressed to one byte or not, as an Ethernet type.
fn ppp(c: Cursor<'_>) -> Result<Announced<'_>, DropReason> {
    let c = if c.bytes::<2>(0) == Some(&[0xff, 0x03]) { c.skip(2) } else { c };
    let first = c.u8(0).ok_or(CUT)?;
    let (protocol, c) = if first & 1 == 1 { (u16::from(first), c.skip(1)) } else { (c.u16(0).ok_or(CUT)?, c.skip(2)) };
    match protocol {
        0x0021 => Ok((ethertype::IPV4, c)),
        0x0057 => Ok((ethertype::IPV6, c)),
        0x0281 => Ok((ethertype::MPLS, c)),
        0x0283 => Ok((ethertype::MPLS_MULTICAST, c)),
        _ => Err(DropReason::NotIp),
    }
}

/// PPPoE (RFC 2516): 6 bytes, of which the code says whether it is a session's frame, then PPP.
fn pppoe(c: Cursor<'_>) -> Result<Announced<'_>, DropReason> {
    let header: &[u8; 6] = c.bytes(0).ok_or(CUT)?;
    if header[1] != 0 {
        return Err(DropReason::NotIp);
    }
    ppp(c.skip(6))
}

/// One 802.1Q tag: 16 bits of priority and id, then the next type.
fn vlan<'a>(c: Cursor<'a>, tags: &mut Tags) -> Result<Announced<'a>, DropReason> {
    let tag: &[u8; 4] = c.bytes(0).ok_or(CUT)?;
    if let Some(id) = tags.vlans.get_mut(usize::from(tags.vlan_count)) {
        *id = u16::from_be_bytes([tag[0], tag[1]]) & 0x0fff;
        tags.vlan_count += 1;
    }
    Ok((u16::from_be_bytes([tag[2], tag[3]]), c.skip(4)))
}

/// A label stack (RFC 3032) down to its bottom, then what the first nibble says (RFC 4928 section 3).
fn mpls<'a>(mut c: Cursor<'a>, tags: &mut Tags) -> Result<Announced<'a>, DropReason> {
    // The first entry is counted by the caller.
    while c.u8(2).ok_or(CUT)? & 1 == 0 {
        c = c.skip(4);
        tags.one_more()?;
    }
    c = c.skip(4);
    match c.u8(0).ok_or(CUT)? >> 4 {
        4 => Ok((ethertype::IPV4, c)),
        6 => Ok((ethertype::IPV6, c)),
        // A pseudowire control word (RFC 4385) and an Ethernet frame (RFC 4448); its MACs are the customer's.
        0 => ethernet(c.skip(4)),
        _ => Err(DropReason::NotIp),
    }
}

/// Cisco MetaData: version, length, 4 bytes that tell the security group. What follows is named behind them in Ethernet,
/// before them in GRE, and can be told apart since version 1 makes no type.
fn cisco_metadata(c: Cursor<'_>) -> Result<Announced<'_>, DropReason> {
    let first = c.u16(0).ok_or(CUT)?;
    let kind = if first > ethertype::LENGTH_MAX { first } else { c.u16(6).ok_or(CUT)? };
    Ok((kind, c.skip(8)))
}

/// Network service header (RFC 8300 section 2.2): length in 4-byte words, and what follows.
fn nsh(c: Cursor<'_>) -> Result<Announced<'_>, DropReason> {
    let header: &[u8; 4] = c.bytes(0).ok_or(CUT)?;
    let len = usize::from(header[1] & 0x3f) * 4;
    if header[0] >> 6 != 0 || len < 8 {
        return Err(DropReason::NotIp);
    }
    Ok((service_protocol(header[3]).ok_or(DropReason::NotIp)?, c.skip(len)))
}

/// The next protocol numbers that NSH and VXLAN-GPE share (RFC 8300 section 2.2, draft-ietf-nvo3-vxlan-gpe).
pub(crate) fn service_protocol(next: u8) -> Option<u16> {
    match next {
        1 => Some(ethertype::IPV4),
        2 => Some(ethertype::IPV6),
        3 => Some(ethertype::BRIDGED),
        4 => Some(ethertype::NSH),
        5 => Some(ethertype::MPLS),
        _ => None,
    }
}

/// 802.2 LLC: IP behind a SNAP header (RFC 1042) or on its own service access point.
pub(crate) fn llc(c: Cursor<'_>) -> Result<Announced<'_>, DropReason> {
    match c.bytes::<3>(0) {
        Some([0xaa, 0xaa, 0x03]) => match c.bytes::<5>(3) {
            Some(&[0, 0, 0, hi, lo]) => match u16::from_be_bytes([hi, lo]) {
                k if k > ethertype::LENGTH_MAX => Ok((k, c.skip(8))),
                _ => Err(DropReason::NotIp),
            },
            // RFC 2684 section 5.1: bridged Ethernet over ATM, without (7) or with (1) its FCS, 2 bytes of padding.
            Some([0x00, 0x80, 0xc2, 0x00, 0x01 | 0x07]) => ethernet(c.skip(10)),
            Some(_) => Err(DropReason::NotIp),
            None => Err(CUT),
        },
        Some([0x06, 0x06, 0x03]) => Ok((ethertype::IPV4, c.skip(3))),
        Some(_) => Err(DropReason::NotIp),
        None => Err(CUT),
    }
}

/// Per-Packet Information (version 0): its length and the link type behind it, both little-endian.
fn ppi(c: Cursor<'_>) -> Result<(LinkType, Cursor<'_>), DropReason> {
    let &[version, _, l0, l1, d0, d1, d2, d3] = c.bytes::<8>(0).ok_or(CUT)?;
    let len = usize::from(u16::from_le_bytes([l0, l1]));
    let link = u16::try_from(u32::from_le_bytes([d0, d1, d2, d3])).map_err(|_| DropReason::LinkUnsupported)?;
    if version != 0 || len < 8 {
        return Err(DropReason::LinkUnsupported);
    }
    Ok((LinkType::from_linktype(link), c.skip(len)))
}

/// A netfilter log message (linux/netfilter/nfnetlink_log.h): family, version, resource; then attributes, each a length
/// and a kind in the byte order of whoever captured, taken as little-endian, padded to 4 bytes.
fn nflog(c: Cursor<'_>) -> Result<Announced<'_>, DropReason> {
    const PAYLOAD: u16 = 9;
    /// The kernel knows about 20 kinds and sends each once.
    const ATTRIBUTES_MAX: usize = 64;
    let family = c.u8(0).ok_or(CUT)?;
    if !matches!(family, 2 | 10) {
        return Err(DropReason::NotIp);
    }
    let mut c = c.skip(4);
    for _ in 0..ATTRIBUTES_MAX {
        let &[l0, l1, k0, k1] = c.bytes::<4>(0).ok_or(CUT)?;
        let len = usize::from(u16::from_le_bytes([l0, l1]));
        // The high bits tell of nesting and byte order.
        if u16::from_le_bytes([k0, k1]) & 0x3fff == PAYLOAD {
            return Ok((ip_ethertype(c.skip(4))?, c.skip(4)));
        }
        c = c.skip(len.max(4).next_multiple_of(4));
    }
    Err(DropReason::NotIp)
}
