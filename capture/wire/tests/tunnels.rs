//! What looks like a tunnel and is none, what in a tunnel cannot be followed, and headers that lie, by hand.

use wire::{DropReason, Frame, Limits, LinkType, Nanos, PacketMeta, TapId, Tunnel, decode, proto};

fn on(link: LinkType, data: &[u8]) -> Result<PacketMeta, DropReason> {
    let frame = Frame { data, wire_len: data.len() as u32, ts: Nanos(1), link, tap: TapId(0) };
    decode(&frame, &Limits::default())
}

fn raw(data: &[u8]) -> Result<PacketMeta, DropReason> {
    on(LinkType::RawIp, data)
}

/// IPv4 from 10.0.0.`n` to 10.0.1.`n`.
fn v4(n: u8, proto: u8, body: &[u8]) -> Vec<u8> {
    let [hi, lo] = (20 + body.len() as u16).to_be_bytes();
    let header = [0x45, 0, hi, lo, 0x12, 0x34, 0, 0, 60 + n, proto, 0, 0, 10, 0, 0, n, 10, 0, 1, n];
    [&header[..], body].concat()
}

/// IPv6 from 2001:db8::`n` to 2001:db8::1:`n`.
fn v6(n: u8, next: u8, body: &[u8]) -> Vec<u8> {
    let mut header = vec![0x60, 0, 0, 0];
    header.extend_from_slice(&(body.len() as u16).to_be_bytes());
    header.extend_from_slice(&[next, 60 + n]);
    for middle in 0..2 {
        header.extend_from_slice(&[0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, middle, 0, n]);
    }
    [&header[..], body].concat()
}

fn udp(src: u16, dst: u16, body: &[u8]) -> Vec<u8> {
    let header = [src, dst, 8 + body.len() as u16, 0].map(u16::to_be_bytes).concat();
    [&header[..], body].concat()
}

fn ethernet(kind: u16, body: &[u8]) -> Vec<u8> {
    [&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2][..], &kind.to_be_bytes(), body].concat()
}

/// A TCP segment in the packet that is inside.
fn inner() -> Vec<u8> {
    let mut tcp = vec![0; 20];
    tcp[..4].copy_from_slice(&[0x30, 0x39, 0x00, 0x50]);
    tcp[12] = 0x50;
    v4(9, proto::TCP, &tcp)
}

fn vxlan(flags: u8, frame: &[u8]) -> Vec<u8> {
    [&[flags, 0, 0, 0, 0, 0, 42, 0], frame].concat()
}

fn gtpu(flags: u8, message: u8, body: &[u8]) -> Vec<u8> {
    let [hi, lo] = (body.len() as u16).to_be_bytes();
    [&[flags, message, hi, lo, 1, 2, 3, 4], body].concat()
}

/// That the packet counts at its outermost level.
fn assert_outer(packet: &[u8], proto: u8, why: &str) {
    let meta = raw(packet).unwrap_or_else(|reason| panic!("{why}: {reason:?}"));
    assert_eq!((meta.key.proto, meta.key.tunnel, meta.key.tunnel_id, meta.ttl), (proto, Tunnel::None, 0, 61), "{why}");
    assert_eq!(meta.ip_bytes as usize, packet.len(), "{why}");
}

fn assert_inner(packet: &[u8], tunnel: Tunnel, id: u32, why: &str) {
    let meta = raw(packet).unwrap_or_else(|reason| panic!("{why}: {reason:?}"));
    assert_eq!((meta.key.tunnel, meta.key.tunnel_id, meta.ttl), (tunnel, id, 69), "{why}");
    assert_eq!((meta.key.proto, meta.ip_bytes, meta.has_tcp), (proto::TCP, 40, true), "{why}");
}

#[test]
fn udp_on_a_tunnel_port_is_a_tunnel_only_with_a_packet_that_fits() {
    let frame = ethernet(0x0800, &inner());
    let by = |port: u16, body: &[u8]| v4(1, proto::UDP, &udp(40_000, port, body));
    assert_inner(&by(4789, &vxlan(0x08, &frame)), Tunnel::Vxlan, 42, "VXLAN");
    assert_inner(&by(4789, &vxlan(0x88, &frame)), Tunnel::Vxlan, 42, "VXLAN with a group policy");
    assert_inner(&v4(1, 17, &udp(4789, 40_000, &vxlan(0x08, &frame))), Tunnel::Vxlan, 42, "VXLAN by its source port");
    assert_outer(&by(4789, &vxlan(0x00, &frame)), 17, "no VNI");
    assert_outer(&by(4789, &vxlan(0x0a, &frame)), 17, "a reserved flag");
    assert_outer(&by(4788, &vxlan(0x08, &frame)), 17, "another port");
    assert_outer(&by(4789, &vxlan(0x08, &ethernet(0x0806, &[0; 28]))), 17, "ARP inside");
    assert_outer(&by(4789, b"any datagram of any protocol, long enough for all headers"), 17, "text");
    assert_outer(&by(4789, &[]), 17, "nothing");
    let mut longer = inner();
    longer[3] += 1;
    assert_outer(&by(4789, &vxlan(0x08, &ethernet(0x0800, &longer))), 17, "longer than the datagram");
    // By a protocol number, the header is believed.
    let meta = raw(&v4(1, proto::IPV4, &longer)).unwrap();
    assert_eq!((meta.key.tunnel, meta.ip_bytes), (Tunnel::IpIp, 41));

    assert_inner(&by(2152, &gtpu(0x30, 255, &inner())), Tunnel::Gtpu, 0, "T-PDU");
    assert_outer(&by(2152, &gtpu(0x30, 254, &inner())), 17, "end marker");
    assert_outer(&by(2152, &gtpu(0x20, 255, &inner())), 17, "GTP'");
    assert_outer(&by(2152, &gtpu(0x50, 255, &inner())), 17, "version 2");
    let endless = [&[0, 0, 0, 1][..], &[0, 0, 0, 1].repeat(40)].concat();
    assert_outer(&by(2152, &gtpu(0x34, 255, &endless)), 17, "an extension header of length 0");
    let many = [&[0, 0, 0, 1][..], &[1, 0, 0, 1].repeat(40)].concat();
    assert_outer(&by(2152, &gtpu(0x34, 255, &many)), 17, "40 extension headers");

    let geneve = |first: u8, second: u8, kind: u16| {
        by(6081, &[&[first, second][..], &kind.to_be_bytes(), &[0, 0, 42, 0], &inner()].concat())
    };
    assert_inner(&geneve(0, 0, 0x0800), Tunnel::Geneve, 42, "GENEVE");
    assert_outer(&geneve(0x40, 0, 0x0800), 17, "version 1");
    assert_outer(&geneve(0, 1, 0x0800), 17, "a reserved bit");
    assert_outer(&geneve(0, 0, 0x0806), 17, "ARP");
    assert_outer(&geneve(0x3f, 0, 0x0800), 17, "options beyond the datagram");

    let teredo = v6(1, proto::NO_NEXT, &[]);
    assert_eq!(raw(&by(3544, &teredo)).unwrap().key.tunnel, Tunnel::Teredo);
    assert_outer(&by(3544, &inner()), 17, "IPv4 in Teredo");
    // A UDP header that lies about its length: not a tunnel's.
    let mut lies = by(4789, &vxlan(0x08, &frame));
    lies[25] += 1;
    assert_outer(&lies, 17, "a UDP length beyond the packet");
}

#[test]
fn gre_without_a_packet_counts_as_gre() {
    let by = |header: &[u8], body: &[u8]| v4(1, proto::GRE, &[header, body].concat());
    assert_inner(&by(&[0, 0, 8, 0], &inner()), Tunnel::Gre, 0, "GRE");
    assert_inner(&by(&[0x20, 0, 8, 0, 0, 0, 1, 2], &inner()), Tunnel::Gre, 0x102, "with a key");
    assert_outer(&by(&[0, 0, 0, 0], &[]), proto::GRE, "the answer to a keepalive");
    assert_outer(&by(&[0, 0, 0x20, 0], &inner()), proto::GRE, "CDP");
    assert_outer(&by(&[0, 7, 8, 0], &inner()), proto::GRE, "version 7");
    assert_outer(&by(&[0, 0, 8, 0], &[0x45, 0]), proto::GRE, "a packet that ends early");
    assert_outer(&by(&[0, 0, 8, 0], &[0x75; 40]), proto::GRE, "no version of IP");
    let loops = [8, 0, 0, 4, 1, 2, 3, 4].repeat(20);
    assert_outer(&by(&[0x40, 0, 8, 0, 0, 0, 0, 0], &loops), proto::GRE, "routes without end");
    // WCCP with and without its redirect header.
    assert_inner(&by(&[0, 0, 0x88, 0x3e], &inner()), Tunnel::Gre, 0, "WCCP");
    assert_inner(&by(&[0, 0, 0x88, 0x3e, 0, 0, 0, 0], &inner()), Tunnel::Gre, 0, "WCCP version 2");
    // Cisco MetaData names what follows first.
    let metadata = [0, 0, 0x89, 0x09, 8, 0, 1, 1, 0, 1, 0, 0];
    assert_inner(&by(&metadata, &inner()), Tunnel::Gre, 0, "Cisco MetaData");
}

#[test]
fn a_packet_in_a_cut_tunnel_counts_at_the_level_that_was_read() {
    let packet = v4(1, proto::IPV6, &v6(2, proto::IPV4, &inner()));
    let at = |len: usize| {
        let data = &packet[..len];
        let frame = Frame { data, wire_len: packet.len() as u32, ts: Nanos(1), link: LinkType::RawIp, tap: TapId(0) };
        decode(&frame, &Limits::default()).map(|meta| (meta.key.proto, meta.ttl, meta.ip_bytes))
    };
    assert_eq!(at(19), Err(DropReason::IpTruncated));
    for (lens, expect) in
        [(20..60, (proto::IPV6, 61, 100)), (60..80, (proto::IPV4, 62, 80)), (80..121, (proto::TCP, 69, 40))]
    {
        for len in lens.take_while(|len| *len <= packet.len()) {
            assert_eq!(at(len), Ok(expect), "{len} bytes");
        }
    }
}

#[test]
fn outer_fragments() {
    let vxlan = vxlan(0x08, &ethernet(0x0800, &inner()));
    let whole = v4(1, proto::UDP, &udp(40_000, 4789, &vxlan));
    // The first of several, cut behind the inner TCP ports: what is inside may be longer.
    let mut first = whole[..20 + 8 + 8 + 14 + 24].to_vec();
    first[3] = first.len() as u8;
    first[6] = 0x20;
    let meta = raw(&first).unwrap();
    assert_eq!((meta.key.tunnel, meta.key.proto, meta.ip_bytes), (Tunnel::Vxlan, proto::TCP, 40));
    assert_eq!((meta.fragment, meta.more_fragments, meta.has_tcp), (false, false, false));
    // A later one may begin with anything.
    let mut later = whole.clone();
    later[7] = 5;
    let meta = raw(&later).unwrap();
    assert_eq!((meta.key.tunnel, meta.key.proto, meta.key.lo_port, meta.key.hi_port), (Tunnel::None, proto::UDP, 0, 0));
    assert_eq!((meta.fragment, meta.fragment_offset, meta.fragment_id), (true, 5, 0x1234));
    assert_eq!((meta.payload_at, meta.payload_len as usize), (u16::MAX, whole.len() - 20));
}

#[test]
fn quoted_headers_are_no_traffic() {
    for (kind, code) in [(3, 3), (11, 0)] {
        let error = [&[kind, code, 0, 0, 0, 0, 0, 0][..], &inner()].concat();
        assert_outer(&v4(1, proto::ICMP, &error), proto::ICMP, "an error with a quote");
    }
    let error = [&[1, 4, 0, 0, 0, 0, 0, 0][..], &v6(9, proto::IPV4, &inner())].concat();
    let meta = raw(&v6(1, proto::ICMPV6, &error)).unwrap();
    assert_eq!((meta.key.proto, meta.key.tunnel, meta.icmp_type, meta.icmp_code), (58, Tunnel::None, 1, 4));
}

#[test]
fn lengths_of_zero_and_jumbograms() {
    let mut tso = inner();
    tso[2..4].fill(0);
    let meta = raw(&tso).unwrap();
    assert_eq!((meta.ip_bytes, meta.payload_len, meta.has_tcp), (40, 0, true));

    let mut big = v6(1, proto::TCP, &[0x50; 60]);
    big[4..6].fill(0);
    let frame = Frame { data: &big, wire_len: 80_000, ts: Nanos(1), link: LinkType::RawIp, tap: TapId(0) };
    let meta = decode(&frame, &Limits::default()).unwrap();
    assert_eq!((meta.ip_bytes, meta.payload_len, meta.payload(&frame).len()), (80_000, 79_940, 40));

    // The option says what the header cannot, whatever the frame's length.
    let mut jumbo = v6(1, proto::HOP_BY_HOP, &[&[proto::TCP, 0, 0xc2, 4, 0, 1, 0x11, 0x70][..], &[0x50; 40]].concat());
    jumbo[4..6].fill(0);
    let meta = raw(&jumbo).unwrap();
    assert_eq!((meta.ip_bytes, meta.key.proto, meta.payload_len), (40 + 70_000, proto::TCP, 70_000 - 28));
    // One that an ordinary header could say is no jumbogram: the frame's length counts.
    jumbo[44..46].fill(0);
    assert_eq!(raw(&jumbo).unwrap().ip_bytes as usize, jumbo.len());
}

#[test]
fn headers_that_lie_are_counted_or_refused_but_never_believed_to_have_more() {
    let mut short = inner();
    short[3] = 30; // an IP packet that ends inside its TCP header
    let meta = raw(&short).unwrap();
    assert_eq!((meta.has_tcp, meta.payload_len, meta.key.lo_port), (false, 0, 0x3039));
    let mut header = inner();
    header[0] = 0x44;
    assert_eq!(raw(&header), Err(DropReason::IpHeaderLength));
    header[0] = 0x4f;
    assert_eq!(raw(&header), Err(DropReason::IpHeaderLength));
    header[0] = 0x55;
    assert_eq!(raw(&header), Err(DropReason::IpVersion));
    // Ethernet padding is no payload.
    let padded = ethernet(0x0800, &[&v4(1, proto::UDP, &udp(1, 2, b"ab"))[..], &[0; 16]].concat());
    let frame = Frame { data: &padded, wire_len: 60, ts: Nanos(1), link: LinkType::Ethernet, tap: TapId(0) };
    assert_eq!(decode(&frame, &Limits::default()).unwrap().payload(&frame), b"ab");
}

#[test]
fn tags_and_extension_headers_beyond_their_limits() {
    let tags = |n: usize| {
        let mut body = [0x81, 0, 0, 5].repeat(n)[2..].to_vec();
        body.extend_from_slice(&[8, 0]);
        ethernet(0x8100, &[&body[..], &inner()].concat())
    };
    assert!(on(LinkType::Ethernet, &tags(64)).is_ok());
    assert_eq!(on(LinkType::Ethernet, &tags(65)), Err(DropReason::TagDepth));
    let labels = |n: usize| ethernet(0x8847, &[&[0, 0, 0, 9].repeat(n)[..], &[0, 0, 1, 9], &inner()].concat());
    assert!(on(LinkType::Ethernet, &labels(63)).is_ok());
    assert_eq!(on(LinkType::Ethernet, &labels(64)), Err(DropReason::TagDepth));
    // Inside a tunnel as well: whoever nests so hides what is inside.
    let in_gre = v4(1, proto::GRE, &[&[0, 0, 0x65, 0x58][..], &tags(65)].concat());
    assert_eq!(raw(&in_gre), Err(DropReason::TagDepth));
    let options = |n: usize| v6(1, proto::DSTOPTS, &[proto::DSTOPTS, 0, 1, 4, 0, 0, 0, 0].repeat(n));
    assert_eq!(raw(&options(33)), Err(DropReason::ExtensionDepth));
    assert_eq!(raw(&options(32)).unwrap().key.proto, proto::DSTOPTS, "a chain that ends with its packet");
}

#[test]
fn frames_of_802_11_that_carry_no_readable_packet() {
    let data = |kind: u8, flags: u8, qos: &[u8]| {
        let header = [&[kind, flags, 0, 0][..], &[2; 18], &[0, 0], qos, &[0xaa, 0xaa, 3, 0, 0, 0, 8, 0]].concat();
        on(LinkType::Wlan, &[&header[..], &inner()].concat())
    };
    assert!(data(0x08, 0, &[]).is_ok() && data(0x88, 0, &[0, 0]).is_ok());
    assert_eq!(data(0x88, 0, &[0x80, 0]), Err(DropReason::NotIp), "an aggregate");
    assert_eq!(data(0x08, 0x40, &[]), Err(DropReason::NotIp), "protected");
    assert_eq!(data(0x48, 0, &[]), Err(DropReason::NotIp), "no data");
    assert_eq!(data(0x80, 0, &[]), Err(DropReason::NotIp), "a beacon");
    assert_eq!(on(LinkType::Wlan, &[8, 0, 0]), Err(DropReason::LinkTruncated));
    // Per-Packet Information that names itself.
    let ppi = [0, 0, 8, 0, 192, 0, 0, 0].repeat(8);
    assert_eq!(on(LinkType::Ppi, &ppi), Err(DropReason::LinkUnsupported));
    // Attributes of length 0 end somewhere.
    assert_eq!(on(LinkType::Nflog, &[&[2, 0, 0, 0][..], &[0; 4].repeat(100)].concat()), Err(DropReason::NotIp));
}

#[test]
fn the_vlan_of_a_tunnel_is_told_where_the_frame_has_none() {
    let tagged = |id: u8, body: &[u8]| [&[0, id, 8, 0][..], body].concat();
    let inside = vxlan(0x08, &ethernet(0x8100, &tagged(7, &inner())));
    let packet = v4(1, proto::UDP, &udp(40_000, 4789, &inside));
    let meta = on(LinkType::Ethernet, &ethernet(0x0800, &packet)).unwrap();
    assert_eq!((meta.key.vlan, meta.key.vlan_inner, meta.key.tunnel), (7, 0, Tunnel::Vxlan));
    let meta = on(LinkType::Ethernet, &ethernet(0x8100, &tagged(5, &packet))).unwrap();
    assert_eq!((meta.key.vlan, meta.key.vlan_inner, meta.key.tunnel), (5, 0, Tunnel::Vxlan));
    // Nothing decodable inside: nor does its tag count.
    let arp = vxlan(0x08, &ethernet(0x8100, &[&[0, 7, 8, 6][..], &[0; 28]].concat()));
    let meta = on(LinkType::Ethernet, &ethernet(0x0800, &v4(1, proto::UDP, &udp(40_000, 4789, &arp)))).unwrap();
    assert_eq!((meta.key.vlan, meta.key.tunnel), (0, Tunnel::None));
}
