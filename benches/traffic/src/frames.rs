//! Single frames with every header a decoder may meet, and what it should find in them.
//!
//! [`random`] stacks a link header, tags, labels, an IP header with options or extension headers, and a transport
//! header, all well-formed; [`mutate`] then breaks them. Not for replay: transport checksums are left zero.

use crate::encode;
use crate::rng::Rng;
use std::net::IpAddr;

pub mod nested;

/// What a frame begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Link {
    /// Ethernet II, or 802.3 with an LLC/SNAP header (RFC 1042).
    Ethernet,
    /// The IP header.
    Raw,
    /// BSD loopback: a 4-byte address family in either byte order.
    Null,
    /// PPP with or without HDLC address and control, its protocol compressed or not (RFC 1661, RFC 1662).
    Ppp,
    /// Linux cooked capture.
    LinuxSll,
    /// Linux cooked capture, version 2.
    LinuxSll2,
    /// PPPoE without Ethernet.
    PppEther,
    /// PPP behind or with a byte for the direction.
    PppDirection,
    /// Cisco HDLC.
    CiscoHdlc,
    /// LLC over ATM (RFC 2684).
    AtmLlc,
    /// 802.11 data, with or without QoS, HT control and a fourth address.
    Wlan,
    /// Radiotap with a timestamp, flags and padding of what follows at random, then 802.11.
    Radiotap,
    /// Per-Packet Information, then 802.11 or Ethernet.
    Ppi,
    /// OpenBSD's `enc`.
    Enc,
    /// Solaris IP observability.
    IpNet,
    /// Netfilter log.
    Nflog,
    /// IP over InfiniBand.
    IpOverInfiniband,
    /// IP over IEEE 1394.
    IpOverFirewire,
}

impl Link {
    /// Every link type.
    pub const ALL: [Link; 18] = [
        Link::Ethernet,
        Link::Raw,
        Link::Null,
        Link::Ppp,
        Link::LinuxSll,
        Link::LinuxSll2,
        Link::PppEther,
        Link::PppDirection,
        Link::CiscoHdlc,
        Link::AtmLlc,
        Link::Wlan,
        Link::Radiotap,
        Link::Ppi,
        Link::Enc,
        Link::IpNet,
        Link::Nflog,
        Link::IpOverInfiniband,
        Link::IpOverFirewire,
    ];

    /// Its number in the LINKTYPE registry (tcpdump.org/linktypes.html).
    pub const fn linktype(self) -> u16 {
        match self {
            Link::Ethernet => 1,
            Link::Raw => 101,
            Link::Null => 0,
            Link::Ppp => 9,
            Link::LinuxSll => 113,
            Link::LinuxSll2 => 276,
            Link::PppEther => 51,
            Link::PppDirection => 204,
            Link::CiscoHdlc => 104,
            Link::AtmLlc => 100,
            Link::Wlan => 105,
            Link::Radiotap => 127,
            Link::Ppi => 192,
            Link::Enc => 109,
            Link::IpNet => 226,
            Link::Nflog => 239,
            Link::IpOverInfiniband => 242,
            Link::IpOverFirewire => 138,
        }
    }
}

/// A well-formed frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Built {
    /// What `bytes` begin with.
    pub link: Link,
    /// The frame, uncut.
    pub bytes: Vec<u8>,
    /// What is in it.
    pub expect: Expect,
}

/// What a decoder should find in a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expect {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Source port; 0 without ports and in later fragments.
    pub src_port: u16,
    /// Destination port; 0 without ports and in later fragments.
    pub dst_port: u16,
    /// Protocol after all extension headers, an IANA number.
    pub proto: u8,
    /// Total length (IPv4), or 40 + payload length (IPv6).
    pub ip_bytes: u32,
    /// Time to live or hop limit.
    pub ttl: u8,
    /// Differentiated services code point, 0-63.
    pub dscp: u8,
    /// VLAN ids, outermost first.
    pub vlans: Vec<u16>,
    /// MPLS labels in the stack.
    pub mpls_labels: usize,
    /// Source MAC, where the link is Ethernet or 802.11.
    pub src_mac: Option<[u8; 6]>,
    /// Destination MAC, where the link is Ethernet or 802.11.
    pub dst_mac: Option<[u8; 6]>,
    /// Part of a fragmented datagram; an atomic IPv6 fragment (RFC 6946) is not.
    pub fragment: bool,
    /// IPv4 identification, or that of an IPv6 fragment header, 0 without one.
    pub fragment_id: u32,
    /// Place in the datagram, in units of 8 bytes.
    pub fragment_offset: u16,
    /// Further fragments follow.
    pub more_fragments: bool,
    /// TCP fields, where there is a TCP header.
    pub tcp: Option<ExpectTcp>,
    /// ICMP or ICMPv6 type and code, where there is such a header.
    pub icmp: Option<(u8, u8)>,
    /// Where the transport payload lies in the frame and its length; `None` in later fragments. ICMP headers count as
    /// 8 bytes, SCTP's common header as 12, those of unknown protocols as 0.
    pub payload: Option<(usize, usize)>,
    /// Bytes of the datagram in a later fragment.
    pub later: usize,
}

/// Fields of a TCP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpectTcp {
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgment number as it stands there, whatever the flags.
    pub ack: u32,
    /// Window, unscaled.
    pub window: u16,
    /// Control bits, low byte.
    pub flags: u8,
}

/// Protocols whose header is built; the last stands for all that a decoder does not look into.
const PROTOCOLS: [u8; 5] = [encode::TCP, encode::UDP, encode::ICMP, SCTP, OSPF];
const SCTP: u8 = 132;
const OSPF: u8 = 89;
const AH: u8 = 51;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_MPLS: u16 = 0x8847;
const ETHERTYPE_PPPOE: u16 = 0x8864;
/// 802.1Q, 802.1ad and the older types for stacked tags.
const ETHERTYPES_VLAN: [u16; 4] = [0x8100, 0x88a8, 0x9100, 0x9200];
/// Longest LLC frame.
const LLC_LEN_MAX: usize = 1_500;

/// A random frame on a random link.
pub fn random(rng: &mut Rng) -> Built {
    let link = rng.pick(&Link::ALL);
    random_on(link, rng)
}

/// A random frame on `link`.
pub fn random_on(link: Link, rng: &mut Rng) -> Built {
    let v6 = rng.below(2) == 0;
    let (packet, mut expect) = network(rng, v6);
    let mut bytes = Vec::with_capacity(packet.len() + 64);
    link_header(link, rng, v6, packet.len(), &mut bytes, &mut expect);
    if let Some((at, _)) = &mut expect.payload {
        *at += bytes.len();
    }
    bytes.extend_from_slice(&packet);
    if link == Link::Ethernet {
        // Padding to the smallest frame, or a trailer: neither belongs to the IP packet.
        let trailer = rng.below(4).saturating_sub(2) as usize * 4;
        bytes.resize((bytes.len() + trailer).max(60), 0xa5);
    }
    Built { link, bytes, expect }
}

/// A transport header and its payload; sets what `expect` says about them.
fn transport(rng: &mut Rng, v6: bool, expect: &mut Expect) -> Vec<u8> {
    let proto = match rng.pick(&PROTOCOLS) {
        encode::ICMP if v6 => encode::ICMPV6,
        proto => proto,
    };
    let payload = if rng.below(8) == 0 { rng.below(1_300) } else { rng.below(64) } as usize;
    // An empty IPv6 packet would have payload length 0, which means a jumbogram.
    let payload = if proto == OSPF { payload.max(1) } else { payload };
    let mut header = random_bytes(rng, 8);
    match proto {
        encode::TCP => {
            let len = rng.between(5, 15) as usize * 4;
            let tcp = ExpectTcp {
                seq: rng.next_u32(),
                ack: rng.next_u32(),
                window: rng.next_u32() as u16,
                flags: rng.next_u32() as u8,
            };
            header[4..8].copy_from_slice(&tcp.seq.to_be_bytes());
            header.extend_from_slice(&tcp.ack.to_be_bytes());
            header.extend_from_slice(&[(len as u8 / 4) << 4 | rng.below(16) as u8, tcp.flags]);
            header.extend_from_slice(&tcp.window.to_be_bytes());
            header.extend_from_slice(&[0; 4]);
            header.resize(len, 1); // options: all no-operation
            expect.tcp = Some(tcp);
        }
        encode::UDP => {
            header[4..6].copy_from_slice(&(8 + payload as u16).to_be_bytes());
            header[6..8].fill(0);
        }
        SCTP => header.extend_from_slice(&[0; 4]),
        encode::ICMP | encode::ICMPV6 => expect.icmp = Some((header[0], header[1])),
        _ => header.clear(),
    }
    if [encode::TCP, encode::UDP, SCTP].contains(&proto) {
        expect.src_port = u16::from_be_bytes([header[0], header[1]]);
        expect.dst_port = u16::from_be_bytes([header[2], header[3]]);
    }
    expect.proto = proto;
    expect.payload = Some((header.len(), payload));
    header.extend(random_bytes(rng, payload));
    header
}

/// Replaces a transport header by bytes from the middle of a datagram.
fn later_fragment(rng: &mut Rng, body: &mut [u8], expect: &mut Expect) {
    body.iter_mut().for_each(|b| *b = rng.next_u32() as u8);
    (expect.src_port, expect.dst_port) = (0, 0);
    (expect.tcp, expect.icmp, expect.payload) = (None, None, None);
    expect.later = body.len();
}

/// An IP packet; `expect.payload` counts from its first byte.
fn network(rng: &mut Rng, v6: bool) -> (Vec<u8>, Expect) {
    let address = |rng: &mut Rng| {
        if v6 {
            let mut address = [0x20; 16]; // 2020::/16: never a mapped IPv4 address
            address[2..].copy_from_slice(&random_bytes(rng, 14));
            IpAddr::from(address)
        } else {
            IpAddr::from(rng.next_u32().to_be_bytes())
        }
    };
    let mut expect = Expect {
        src: address(rng),
        dst: address(rng),
        src_port: 0,
        dst_port: 0,
        proto: 0,
        ip_bytes: 0,
        ttl: rng.next_u32() as u8,
        dscp: rng.below(64) as u8,
        vlans: Vec::new(),
        mpls_labels: 0,
        src_mac: None,
        dst_mac: None,
        fragment: false,
        fragment_id: 0,
        fragment_offset: 0,
        more_fragments: false,
        tcp: None,
        icmp: None,
        payload: None,
        later: 0,
    };
    let body = transport(rng, v6, &mut expect);
    let packet = if v6 { ipv6(rng, body, &mut expect) } else { ipv4(rng, body, &mut expect) };
    expect.ip_bytes = packet.len() as u32;
    (packet, expect)
}

/// RFC 791, with options, fragments and an authentication header now and then.
fn ipv4(rng: &mut Rng, mut body: Vec<u8>, expect: &mut Expect) -> Vec<u8> {
    let options = rng.below(11).saturating_sub(6) as usize * 8 + rng.below(3).saturating_sub(1) as usize * 4;
    let options = options.min(40);
    let (more, offset) = match rng.below(8) {
        0 => (1, 0),
        1 => (1, rng.between(1, 0x1fff)),
        2 => (0, rng.between(1, 0x1fff)),
        _ => (0, 0),
    };
    expect.fragment = more == 1 || offset > 0;
    (expect.fragment_offset, expect.more_fragments) = (offset as u16, more == 1);
    let mut next = expect.proto;
    if offset > 0 {
        later_fragment(rng, &mut body, expect);
    } else if rng.below(16) == 0 {
        let header = authentication_header(rng, next);
        prepend(&mut body, header, expect);
        next = AH;
    }
    let header_len = 20 + options;
    shift_payload(expect, header_len);
    let total = header_len + body.len();
    let mut h = vec![0; 20];
    h[0] = 0x40 | (header_len / 4) as u8;
    h[1] = expect.dscp << 2 | rng.below(4) as u8;
    h[2..4].copy_from_slice(&(total as u16).to_be_bytes());
    let id = rng.next_u32() as u16;
    expect.fragment_id = id.into();
    h[4..6].copy_from_slice(&id.to_be_bytes());
    let dont = (u16::from(!expect.fragment) & rng.below(2) as u16) << 14;
    h[6..8].copy_from_slice(&(dont | more << 13 | offset as u16).to_be_bytes());
    (h[8], h[9]) = (expect.ttl, next);
    push_addresses(&mut h, 12, [expect.src, expect.dst]);
    h.resize(header_len, 1); // options: all no-operation
    let checksum = encode::fold(encode::sum(&h));
    h[10..12].copy_from_slice(&checksum.to_be_bytes());
    h.extend_from_slice(&body);
    h
}

/// RFC 8200, with up to three extension headers and a fragment header.
fn ipv6(rng: &mut Rng, mut body: Vec<u8>, expect: &mut Expect) -> Vec<u8> {
    // Built from the inside: each header is put before what it announces.
    let mut kind = expect.proto;
    if rng.below(4) == 0 {
        let (more, offset) = match rng.below(4) {
            0 => (0, 0),
            1 => (1, 0),
            more => (more as u16 & 1, rng.between(1, 0x1fff) as u16),
        };
        expect.fragment = more == 1 || offset > 0;
        if offset > 0 {
            later_fragment(rng, &mut body, expect);
        }
        let mut header = vec![kind, 0];
        header.extend_from_slice(&(offset << 3 | more).to_be_bytes());
        (expect.fragment_offset, expect.more_fragments) = (offset, more == 1);
        expect.fragment_id = rng.next_u32();
        header.extend_from_slice(&expect.fragment_id.to_be_bytes());
        prepend(&mut body, header, expect);
        kind = FRAGMENT;
    }
    for _ in 0..rng.below(6).saturating_sub(2) {
        let (header, this) = match rng.pick(&[HOP_BY_HOP, ROUTING, DESTINATION_OPTIONS, AH]) {
            AH => (authentication_header(rng, kind), AH),
            this => {
                let units = rng.below(3) as u8;
                let mut header = vec![kind, units];
                header.resize((usize::from(units) + 1) * 8, 0);
                (header, this)
            }
        };
        prepend(&mut body, header, expect);
        kind = this;
    }
    shift_payload(expect, 40);
    let first = 6_u32 << 28 | u32::from(expect.dscp) << 22 | rng.below(1 << 22) as u32;
    let mut h = first.to_be_bytes().to_vec();
    h.extend_from_slice(&(body.len() as u16).to_be_bytes());
    h.extend_from_slice(&[kind, expect.ttl]);
    push_addresses(&mut h, 8, [expect.src, expect.dst]);
    h.extend_from_slice(&body);
    h
}

/// RFC 4302; a multiple of 8 bytes long, as IPv6 wants it.
fn authentication_header(rng: &mut Rng, next: u8) -> Vec<u8> {
    let words = rng.pick(&[2_u8, 4, 6]);
    let mut header = vec![next, words, 0, 0];
    header.extend(random_bytes(rng, (usize::from(words) + 2) * 4 - 4));
    header
}

fn prepend(body: &mut Vec<u8>, header: Vec<u8>, expect: &mut Expect) {
    shift_payload(expect, header.len());
    body.splice(0..0, header);
}

fn shift_payload(expect: &mut Expect, by: usize) {
    if let Some((at, _)) = &mut expect.payload {
        *at += by;
    }
}

/// Source, then destination, from byte `at` on.
fn push_addresses(header: &mut Vec<u8>, at: usize, ends: [IpAddr; 2]) {
    header.truncate(at);
    for address in ends {
        match address {
            IpAddr::V4(a) => header.extend_from_slice(&a.octets()),
            IpAddr::V6(a) => header.extend_from_slice(&a.octets()),
        }
    }
}

fn link_header(link: Link, rng: &mut Rng, v6: bool, packet_len: usize, out: &mut Vec<u8>, expect: &mut Expect) {
    let ethertype = if v6 { ETHERTYPE_IPV6 } else { ETHERTYPE_IPV4 };
    match link {
        Link::Raw => {}
        Link::Null => {
            let family: u32 = if v6 { rng.pick(&[10, 24, 28, 30]) } else { 2 };
            out.extend_from_slice(&if rng.below(2) == 0 { family.to_le_bytes() } else { family.to_be_bytes() });
        }
        Link::Ppp => {
            if rng.below(2) == 0 {
                out.extend_from_slice(&[0xff, 0x03]);
            }
            ppp_protocol(rng, v6, out);
        }
        Link::PppDirection => {
            let direction = rng.below(2) as u8;
            match rng.below(3) {
                0 => out.extend_from_slice(&[direction, 0x03]),
                1 => out.extend_from_slice(&[direction, 0xff, 0x03]),
                _ => out.push(direction),
            }
            ppp_protocol(rng, v6, out);
        }
        Link::PppEther => {
            out.extend_from_slice(&[0x11, 0, 0, 1, 0, 0]);
            ppp_protocol(rng, v6, out);
        }
        Link::CiscoHdlc => {
            out.extend_from_slice(&[rng.pick(&[0x0f, 0x8f]), 0]);
            let tags = tags(rng, ethertype, packet_len, false, expect);
            out.extend_from_slice(&tags);
        }
        Link::AtmLlc => llc_snap(ethertype, out),
        Link::Wlan => wlan(rng, ethertype, false, out, expect),
        Link::Radiotap => radiotap(rng, ethertype, out, expect),
        Link::Ppi => {
            let fields = rng.below(4) as usize * 4;
            let inner = rng.pick(&[Link::Ethernet, Link::Wlan]);
            out.extend_from_slice(&[0, 0]);
            out.extend_from_slice(&(8 + fields as u16).to_le_bytes());
            out.extend_from_slice(&u32::from(inner.linktype()).to_le_bytes());
            out.extend(random_bytes(rng, fields));
            link_header(inner, rng, v6, packet_len, out, expect);
        }
        Link::Enc => {
            let family: u32 = if v6 { rng.pick(&[10, 24, 28, 30]) } else { 2 };
            out.extend_from_slice(&if rng.below(2) == 0 { family.to_le_bytes() } else { family.to_be_bytes() });
            out.extend(random_bytes(rng, 8));
        }
        Link::IpNet => {
            out.extend_from_slice(&[2, if v6 { 26 } else { 2 }]);
            out.extend(random_bytes(rng, 22));
        }
        Link::Nflog => nflog(rng, v6, packet_len, out),
        Link::IpOverInfiniband => {
            out.extend_from_slice(&ethertype.to_be_bytes());
            out.extend_from_slice(&[0, 0]);
        }
        Link::IpOverFirewire => {
            out.extend(random_bytes(rng, 16));
            out.extend_from_slice(&ethertype.to_be_bytes());
        }
        Link::Ethernet => {
            let macs = random_bytes(rng, 12);
            out.extend_from_slice(&macs);
            let mac = |at: usize| std::array::from_fn(|i| macs[at + i]);
            (expect.dst_mac, expect.src_mac) = (Some(mac(0)), Some(mac(6)));
            let tags = tags(rng, ethertype, packet_len, true, expect);
            out.extend_from_slice(&tags);
        }
        Link::LinuxSll => {
            out.extend_from_slice(&[0, rng.below(5) as u8, 0, 1, 0, 6]);
            out.extend(random_bytes(rng, 8));
            let tags = tags(rng, ethertype, packet_len, false, expect);
            out.extend_from_slice(&tags);
        }
        Link::LinuxSll2 => {
            let tags = tags(rng, ethertype, packet_len, false, expect);
            out.extend_from_slice(&tags[..2]);
            out.extend_from_slice(&[0, 0, 0, 0, 0, 3, 0, 1, rng.below(5) as u8, 6]);
            out.extend(random_bytes(rng, 8));
            out.extend_from_slice(&tags[2..]);
        }
    }
}

/// PPP protocol field, compressed to one byte or not.
fn ppp_protocol(rng: &mut Rng, v6: bool, out: &mut Vec<u8>) {
    if rng.below(2) == 0 {
        out.push(0);
    }
    out.push(if v6 { 0x57 } else { 0x21 });
}

fn llc_snap(ethertype: u16, out: &mut Vec<u8>) {
    out.extend_from_slice(&[0xaa, 0xaa, 3, 0, 0, 0]);
    out.extend_from_slice(&ethertype.to_be_bytes());
}

/// An 802.11 data frame's header and LLC/SNAP; `padded`: to a multiple of 4 bytes, as some cards do.
fn wlan(rng: &mut Rng, ethertype: u16, padded: bool, out: &mut Vec<u8>, expect: &mut Expect) {
    let (to_ds, from_ds, qos) = (rng.below(2) as u8, rng.below(2) as u8, rng.below(2) as u8);
    // With QoS, the bit "order" announces HT control; without, it says nothing about the header.
    let order = rng.below(2) as u8;
    let start = out.len();
    out.extend_from_slice(&[0x08 | qos << 7, to_ds | from_ds << 1 | order << 7, 0, 0]);
    let addresses = random_bytes(rng, 18);
    out.extend_from_slice(&addresses);
    out.extend_from_slice(&[rng.next_u32() as u8 & 0xf0, rng.next_u32() as u8]); // fragment 0
    let fourth = random_bytes(rng, 6);
    let address =
        |n: usize| -> [u8; 6] { std::array::from_fn(|i| addresses.get((n - 1) * 6 + i).copied().unwrap_or(fourth[i])) };
    let (dst, src) = match (to_ds, from_ds) {
        (0, 0) => (1, 2),
        (0, _) => (1, 3),
        (_, 0) => (3, 2),
        _ => (3, 4),
    };
    (expect.dst_mac, expect.src_mac) = (Some(address(dst)), Some(address(src)));
    if (to_ds, from_ds) == (1, 1) {
        out.extend_from_slice(&fourth);
    }
    if qos == 1 {
        out.extend_from_slice(&[rng.next_u32() as u8 & 0x7f, rng.next_u32() as u8]); // no aggregate
        if order == 1 {
            out.extend(random_bytes(rng, 4));
        }
    }
    while padded && !(out.len() - start).is_multiple_of(4) {
        out.push(0);
    }
    llc_snap(ethertype, out);
}

fn radiotap(rng: &mut Rng, ethertype: u16, out: &mut Vec<u8>, expect: &mut Expect) {
    let (timestamp, flags, padded) = (rng.below(2) as u8, rng.below(2) as u8, rng.below(2) as u8);
    let words = rng.between(1, 3) as usize;
    let mut header = vec![0; 4];
    for word in 1..=words {
        let bits = if word == 1 { timestamp | flags << 1 } else { 0 };
        header.extend_from_slice(&[bits, 0, 0, u8::from(word < words) << 7]);
    }
    if timestamp == 1 {
        header.resize(header.len().next_multiple_of(8), 0);
        header.extend(random_bytes(rng, 8));
    }
    if flags == 1 {
        header.push(0x10 | padded << 5);
    }
    header.resize(header.len() + rng.below(9) as usize, 0);
    let len = header.len() as u16;
    header[2..4].copy_from_slice(&len.to_le_bytes());
    out.extend_from_slice(&header);
    wlan(rng, ethertype, flags & padded == 1, out, expect);
}

fn nflog(rng: &mut Rng, v6: bool, packet_len: usize, out: &mut Vec<u8>) {
    out.extend_from_slice(&[if v6 { 10 } else { 2 }, 0, 0, 1]);
    for kind in 1..=rng.below(6) as u16 {
        let len = rng.below(9) as u16;
        out.extend_from_slice(&(4 + len).to_le_bytes());
        out.extend_from_slice(&kind.to_le_bytes());
        out.extend(random_bytes(rng, usize::from(len).next_multiple_of(4)));
    }
    out.extend_from_slice(&(4 + packet_len as u16).to_le_bytes());
    out.extend_from_slice(&9_u16.to_le_bytes());
}

/// From the Ethernet type field to the IP header: VLAN tags, then nothing, labels, PPPoE or LLC/SNAP.
fn tags(rng: &mut Rng, ethertype: u16, packet_len: usize, llc: bool, expect: &mut Expect) -> Vec<u8> {
    let mut out = Vec::new();
    for _ in 0..rng.below(5).saturating_sub(1) {
        out.extend_from_slice(&rng.pick(&ETHERTYPES_VLAN).to_be_bytes());
        let tci = rng.next_u32() as u16;
        expect.vlans.push(tci & 0x0fff);
        out.extend_from_slice(&tci.to_be_bytes());
    }
    match rng.below(8) {
        0 | 1 => {
            out.extend_from_slice(&ETHERTYPE_MPLS.to_be_bytes());
            expect.mpls_labels = rng.between(1, 4) as usize;
            for i in 1..=expect.mpls_labels {
                let bottom = u32::from(i == expect.mpls_labels) << 8;
                out.extend_from_slice(&(rng.next_u32() & !0x100 | bottom).to_be_bytes());
            }
        }
        2 => {
            out.extend_from_slice(&ETHERTYPE_PPPOE.to_be_bytes());
            out.extend_from_slice(&[0x11, 0, rng.next_u32() as u8, 1]);
            out.extend_from_slice(&(packet_len as u16 + 2).to_be_bytes());
            out.extend_from_slice(&[0, if ethertype == ETHERTYPE_IPV6 { 0x57 } else { 0x21 }]);
        }
        3 if llc && packet_len + 8 <= LLC_LEN_MAX => {
            out.extend_from_slice(&(packet_len as u16 + 8).to_be_bytes());
            llc_snap(ethertype, &mut out);
        }
        _ => out.extend_from_slice(&ethertype.to_be_bytes()),
    }
    out
}

fn random_bytes(rng: &mut Rng, len: usize) -> Vec<u8> {
    (0..len).map(|_| rng.next_u32() as u8).collect()
}

/// Breaks a frame in one to three ways: flipped bits, a cut, bytes that lie about a length, bytes too many.
pub fn mutate(frame: &mut Vec<u8>, rng: &mut Rng) {
    for _ in 0..rng.between(1, 3) {
        let len = frame.len() as u64;
        match rng.below(4) {
            0 if len > 0 => {
                for _ in 0..rng.between(1, 8) {
                    frame[rng.below(len) as usize] ^= 1 << rng.below(8);
                }
            }
            1 => frame.truncate(rng.below(len + 1) as usize),
            2 if len >= 2 => {
                let lies =
                    [0, 1, 0xffff, 0x7fff, len as u16, (len as u16).wrapping_sub(1), (len as u16).wrapping_add(1)];
                let at = rng.below(len - 1) as usize;
                frame[at..at + 2].copy_from_slice(&rng.pick(&lies).to_be_bytes());
            }
            _ => {
                let more = rng.below(64) as usize;
                frame.extend(random_bytes(rng, more));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn frames_hold_what_they_are_said_to() {
        let mut rng = Rng::new(11);
        let mut seen = HashSet::new();
        for _ in 0..20_000 {
            let Built { link, bytes, expect } = random(&mut rng);
            seen.insert((link, expect.proto, expect.fragment, expect.payload.is_some(), expect.src.is_ipv6()));
            let ip_end = match expect.payload {
                Some((at, len)) => at + len,
                None => bytes.len(),
            };
            assert!(ip_end <= bytes.len(), "{link:?} {expect:?}");
            assert!(expect.ip_bytes as usize <= ip_end);
            if let (Some(_), Some((at, len))) = (expect.icmp, expect.payload) {
                let icmp = (bytes[at - 8], bytes[at - 7]);
                assert_eq!((Some(icmp), at + len), (expect.icmp, ip_end));
            }
            if expect.tcp.is_none() && expect.src_port != 0 && expect.proto == encode::UDP {
                let (at, len) = expect.payload.unwrap();
                assert_eq!(bytes[at - 8..at - 6], expect.src_port.to_be_bytes());
                assert_eq!(usize::from(u16::from_be_bytes([bytes[at - 4], bytes[at - 3]])), len + 8);
            }
        }
        // 18 links x 2 versions x 5 protocols x (whole, first fragment, later fragment).
        assert_eq!(seen.len(), 540);
    }

    #[test]
    fn mutation_takes_any_frame_and_follows_the_seed() {
        let run = || {
            let mut rng = Rng::new(5);
            let mut frame = Vec::new();
            (0..5_000).map(|_| (mutate(&mut frame, &mut rng), frame.len()).1).collect::<Vec<_>>()
        };
        assert_eq!(run(), run());
    }
}
