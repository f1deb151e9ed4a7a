//! Frames of any link type, and what has to hold of whatever is decoded.

use capture::Filter;
use wire::{Addr, Direction, DropReason, FlowKey, Frame, Limits, LinkType, Mac, Nanos, PacketMeta, TapId, Tunnel};
use wire::{decode_into, proto};

/// One of each kind, and one that is not decoded.
pub(crate) const LINKS: [LinkType; 19] = [
    LinkType::Ethernet,
    LinkType::RawIp,
    LinkType::Null,
    LinkType::Ppp,
    LinkType::LinuxSll,
    LinkType::LinuxSll2,
    LinkType::PppEther,
    LinkType::PppDirection,
    LinkType::CiscoHdlc,
    LinkType::AtmLlc,
    LinkType::Wlan,
    LinkType::Radiotap,
    LinkType::Ppi,
    LinkType::Enc,
    LinkType::IpNet,
    LinkType::Nflog,
    LinkType::IpOverInfiniband,
    LinkType::IpOverFirewire,
    LinkType::Unsupported(147),
];

/// What a slot of a batch may be left with: nothing of it may show in the next packet.
const DIRTY: PacketMeta = PacketMeta {
    key: FlowKey {
        lo: Addr([0xa5; 16]),
        hi: Addr([0x5a; 16]),
        lo_port: 0xa5a5,
        hi_port: 0x5a5a,
        proto: 0xa5,
        tunnel: Tunnel::EtherIp,
        vlan: 0x5a5,
        vlan_inner: 0xa5a,
        tap: TapId(0xa5a5),
        tunnel_id: 0xa5a5_a5a5,
    },
    ts: Nanos(0xa5a5),
    clock: Nanos(0x5a5a),
    ip_bytes: 0xa5a5_a5a5,
    frame_bytes: 0x5a5a_5a5a,
    ack: 0xa5a5_a5a5,
    seq: 0x5a5a_5a5a,
    payload_len: 0xa5a5_a5a5,
    fragment_id: 0x5a5a_5a5a,
    payload_at: 0xa5a5,
    window: 0x5a5a,
    flags: wire::TcpFlags(0xa5),
    direction: Direction::HiToLo,
    ttl: 0x5a,
    dscp: 0xa5,
    dst_mac: Mac([0xa5; 6]),
    src_mac: Mac([0x5a; 6]),
    fragment_proto: 0x5a,
    fragment_offset: 0xa5a5,
    icmp_type: 0xa5,
    icmp_code: 0x5a,
    has_tcp: true,
    has_icmp: true,
    has_mac: true,
    fragment: true,
    more_fragments: true,
};

/// A frame behind three bytes: link type, limits, and how much longer it was on the wire.
pub fn decode(bytes: &[u8]) {
    let Some((&[link, tight, more], data)) = bytes.split_first_chunk() else { return };
    let wire_len = data.len() as u32 + u32::from(more).pow(2);
    let frame = Frame {
        data,
        wire_len,
        ts: Nanos(u64::from(tight) << 40),
        link: LINKS[usize::from(link) % LINKS.len()],
        tap: TapId(u16::from(link)),
    };
    let found = check_packet(&frame);
    tighter_limits_only_refuse(&frame, found, tight);
    if let Ok(meta) = found {
        what_follows_the_headers_does_not_matter(&frame, &meta);
    }
}

/// Decodes a frame into a clean and into a dirty slot, and checks what holds for any packet.
///
/// # Errors
/// The decoder's.
///
/// # Panics
/// Where something does not hold.
pub fn check_packet(frame: &Frame<'_>) -> Result<PacketMeta, DropReason> {
    let limits = Limits::default();
    let result = wire::decode(frame, &limits);
    let mut slot = DIRTY;
    let into_slot = decode_into(frame, &limits, &mut slot).map(|()| slot);
    assert_eq!(result, into_slot, "what a slot held shows in the next packet");
    let meta = result?;
    check_meta(frame, &meta);
    Ok(meta)
}

fn check_meta(frame: &Frame<'_>, meta: &PacketMeta) {
    let key = &meta.key;
    assert!((key.lo, key.lo_port) <= (key.hi, key.hi_port), "{key:?}");
    assert_eq!((key.tap, meta.ts, meta.frame_bytes, meta.clock), (frame.tap, frame.ts, frame.wire_len, Nanos::ZERO));
    assert!(key.vlan <= 0xfff && key.vlan_inner <= 0xfff && meta.dscp < 64, "{meta:?}");
    assert!(key.tunnel != Tunnel::None || key.tunnel_id == 0, "{key:?}");

    assert!(meta.ip_bytes >= 20 && meta.payload_len <= meta.ip_bytes, "{meta:?}");
    let payload = meta.payload(frame);
    assert!(payload.len() <= meta.payload_len as usize, "{meta:?}");
    if !payload.is_empty() {
        let at = usize::from(meta.payload_at);
        assert_eq!(payload, &frame.data[at..at + payload.len()]);
        assert!(at >= 20, "an IP header stands before it");
    }

    assert_eq!(meta.fragment, meta.more_fragments || meta.fragment_offset != 0);
    assert!(meta.fragment_offset <= 0x1fff);
    let later = meta.fragment_offset != 0;
    assert!(!later || (key.lo_port, key.hi_port) == (0, 0), "a later fragment has no ports");
    assert!(!later || !meta.has_tcp && !meta.has_icmp, "nor a transport header");
    assert!(!meta.has_tcp || key.proto == proto::TCP);
    assert!(!meta.has_icmp || matches!(key.proto, proto::ICMP | proto::ICMPV6));
    if !meta.has_tcp {
        assert_eq!((meta.seq, meta.ack, meta.window, meta.flags.0), (0, 0, 0, 0));
    }
    if !meta.has_icmp {
        assert_eq!((meta.icmp_type, meta.icmp_code), (0, 0));
    }
    if !meta.has_mac {
        assert_eq!((meta.src_mac, meta.dst_mac), Default::default());
    }
}

/// Under tighter limits a frame decodes to the same, or is refused for its depth; and whatever decodes under them does
/// without.
fn tighter_limits_only_refuse(frame: &Frame<'_>, found: Result<PacketMeta, DropReason>, tight: u8) {
    let limits = Limits { tags_max: tight & 7, extensions_max: tight >> 3 & 3, encapsulations_max: tight >> 5 };
    let tighter = wire::decode(frame, &limits);
    let for_depth = [DropReason::TagDepth, DropReason::ExtensionDepth, DropReason::EncapsulationDepth];
    match (found, tighter) {
        (Ok(_), Err(reason)) => assert!(for_depth.contains(&reason), "{reason:?}"),
        (Err(_), Err(_)) => {}
        (found, tighter) => assert_eq!(found, tighter),
    }
}

/// A frame cut behind the headers that were read says the same: nothing further was read, and what the capture cut off is
/// taken from the headers.
fn what_follows_the_headers_does_not_matter(frame: &Frame<'_>, meta: &PacketMeta) {
    let at = usize::from(meta.payload_at);
    if let Some(data) = frame.data.get(..at)
        && at > 0
    {
        let cut = Frame { data, ..*frame };
        assert_eq!(wire::decode(&cut, &Limits::default()), Ok(*meta), "cut at {at}");
    }
}

/// A capture filter, up to the first zero byte, and a frame to match behind it. What is refused is refused at a place in the
/// text; what is not, means the same in parentheses.
pub fn filter(bytes: &[u8]) {
    let (text, data) = bytes.split_at(bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len()));
    let text = String::from_utf8_lossy(text);
    let filter = match Filter::parse(&text) {
        Ok(filter) => filter,
        Err(error) => {
            assert!((1..=text.chars().count() + 1).contains(&error.column()), "{error}");
            return;
        }
    };
    assert_eq!(filter.text(), text);
    // A text near the bounds of length and nesting may be beyond them with two characters more.
    let Ok(same) = Filter::parse(&format!("({text})")) else { return };
    for link in LINKS {
        let frame = Frame { data, wire_len: data.len() as u32, ts: Nanos::ZERO, link, tap: TapId(0) };
        assert_eq!(filter.matches(&frame), same.matches(&frame), "{text} on {link:?}");
    }
}
