//! Generator and decoder check each other over random frames: they share no code.

use traffic::Rng;
use traffic::frames::nested::{self, Kind, Nested};
use traffic::frames::{self, Built, Expect};
use wire::{
    Addr, Direction, DropReason, FlowKey, Frame, Limits, LinkType, Mac, Nanos, PacketMeta, TapId, Tunnel, decode,
};

fn frame(linktype: u16, data: &[u8]) -> Frame<'_> {
    let link = LinkType::from_linktype(linktype);
    Frame { data, wire_len: data.len() as u32, ts: Nanos(1), link, tap: TapId(3) }
}

fn tunnel(kind: Kind) -> Tunnel {
    match kind {
        Kind::IpIp => Tunnel::IpIp,
        Kind::Gre | Kind::Pptp => Tunnel::Gre,
        Kind::ErspanI | Kind::ErspanII | Kind::ErspanIII => Tunnel::Erspan,
        Kind::Vxlan | Kind::VxlanGpe => Tunnel::Vxlan,
        Kind::Geneve => Tunnel::Geneve,
        Kind::Gtpu => Tunnel::Gtpu,
        Kind::Teredo => Tunnel::Teredo,
        Kind::MplsUdp | Kind::MplsIp => Tunnel::Mpls,
        Kind::L2tp => Tunnel::L2tp,
        Kind::EtherIp => Tunnel::EtherIp,
    }
}

/// Every field of the packet that counts.
fn assert_equal(meta: &PacketMeta, expect: &Expect, frame: &Frame<'_>, at: &str) {
    let FlowKey { lo, hi, lo_port, hi_port, .. } = meta.key;
    let (src, dst) = match meta.direction {
        Direction::LoToHi => ((lo, lo_port), (hi, hi_port)),
        Direction::HiToLo => ((hi, hi_port), (lo, lo_port)),
    };
    assert!((lo, lo_port) <= (hi, hi_port), "{at}");
    assert_eq!(src, (Addr::from(expect.src), expect.src_port), "{at}");
    assert_eq!(dst, (Addr::from(expect.dst), expect.dst_port), "{at}");
    assert_eq!((meta.key.proto, meta.ip_bytes), (expect.proto, expect.ip_bytes), "{at}");
    assert_eq!((meta.ttl, meta.dscp, meta.fragment), (expect.ttl, expect.dscp, expect.fragment), "{at}");
    let fragment = (meta.fragment_id, meta.fragment_offset, meta.more_fragments);
    assert_eq!(fragment, (expect.fragment_id, expect.fragment_offset, expect.more_fragments), "{at}");
    let vlan = |i: usize| expect.vlans.get(i).copied().unwrap_or(0);
    assert_eq!((meta.key.vlan, meta.key.vlan_inner), (vlan(0), vlan(1)), "{at}");
    let macs = meta.has_mac.then_some((meta.src_mac, meta.dst_mac));
    assert_eq!(macs, expect.src_mac.zip(expect.dst_mac).map(|(s, d)| (Mac(s), Mac(d))), "{at}");
    let tcp = meta.has_tcp.then_some((meta.seq, meta.ack, meta.window, meta.flags.0));
    assert_eq!(tcp, expect.tcp.map(|t| (t.seq, t.ack, t.window, t.flags)), "{at}");
    assert_eq!(meta.has_icmp.then_some((meta.icmp_type, meta.icmp_code)), expect.icmp, "{at}");
    match expect.payload {
        Some((payload_at, len)) => {
            assert_eq!((usize::from(meta.payload_at), meta.payload_len as usize), (payload_at, len), "{at}");
            assert_eq!(meta.payload(frame), &frame.data[payload_at..payload_at + len], "{at}");
        }
        None => assert_eq!((meta.payload_len as usize, meta.payload(frame)), (expect.later, &[][..]), "{at}"),
    }
    assert_eq!((meta.ts, meta.frame_bytes, meta.key.tap), (frame.ts, frame.wire_len, frame.tap), "{at}");
}

#[test]
fn every_field_of_odd_frames_agrees() {
    for seed in 0..40 {
        let mut rng = Rng::new(seed);
        for n in 0..500 {
            let Built { link, bytes, expect } = frames::random(&mut rng);
            let at = format!("seed {seed} frame {n} {link:?} {expect:?}\n{bytes:02x?}");
            let frame = frame(link.linktype(), &bytes);
            let meta = decode(&frame, &Limits::default()).unwrap_or_else(|reason| panic!("{reason:?}: {at}"));
            assert_equal(&meta, &expect, &frame, &at);
            assert_eq!((meta.key.tunnel, meta.key.tunnel_id), (Tunnel::None, 0), "{at}");
        }
    }
}

#[test]
fn a_packet_in_tunnels_counts_as_itself() {
    let limits = Limits::default();
    for seed in 0..40 {
        let mut rng = Rng::new(500 + seed);
        for n in 0..500 {
            let depth = rng.between(1, u64::from(limits.encapsulations_max)) as usize;
            let Nested { frame: Built { link, bytes, expect }, kinds, id } = nested::random(&mut rng, depth);
            let at = format!("seed {seed} frame {n} {link:?} {kinds:?} {expect:?}\n{bytes:02x?}");
            let frame = frame(link.linktype(), &bytes);
            let meta = decode(&frame, &limits).unwrap_or_else(|reason| panic!("{reason:?}: {at}"));
            assert_equal(&meta, &expect, &frame, &at);
            let innermost = kinds.last().copied().map_or(Tunnel::None, tunnel);
            assert_eq!((meta.key.tunnel, meta.key.tunnel_id), (innermost, id), "{at}");
        }
    }
}

#[test]
fn every_kind_of_tunnel_is_seen_through_alone_and_in_every_other() {
    let mut rng = Rng::new(9);
    for outer in Kind::ALL {
        for inner in Kind::ALL {
            for kinds in [&[outer][..], &[outer, inner]] {
                let Nested { frame: Built { link, bytes, expect }, id, .. } = nested::in_tunnels(&mut rng, kinds);
                let at = format!("{link:?} {kinds:?} {expect:?}\n{bytes:02x?}");
                let frame = frame(link.linktype(), &bytes);
                let meta = decode(&frame, &Limits::default()).unwrap_or_else(|reason| panic!("{reason:?}: {at}"));
                assert_equal(&meta, &expect, &frame, &at);
                let innermost = kinds.last().copied().map_or(Tunnel::None, tunnel);
                assert_eq!((meta.key.tunnel, meta.key.tunnel_id), (innermost, id), "{at}");
            }
        }
    }
}

#[test]
fn nesting_beyond_the_limit_is_a_reason_of_its_own() {
    let mut rng = Rng::new(10);
    for n in 0..2_000_u32 {
        let max = (n % 4) as u8;
        let Nested { frame: Built { link, bytes, .. }, kinds, .. } = nested::random(&mut rng, usize::from(max) + 1);
        let frame = frame(link.linktype(), &bytes);
        let limits = |encapsulations_max| Limits { encapsulations_max, ..Limits::default() };
        assert_eq!(decode(&frame, &limits(max)), Err(DropReason::EncapsulationDepth), "{kinds:?}");
        assert!(decode(&frame, &limits(max + 1)).is_ok(), "{kinds:?}");
    }
}

#[test]
fn every_cut_of_a_frame_is_a_packet_or_a_reason() {
    let limits = Limits::default();
    let mut rng = Rng::new(11);
    for n in 0..600 {
        let Nested { frame: Built { link, bytes, .. }, .. } = nested::random(&mut rng, n % 4);
        let whole = frame(link.linktype(), &bytes);
        let mut decoded = false;
        for len in 0..=bytes.len() {
            let cut = Frame { data: &bytes[..len], ..whole };
            match decode(&cut, &limits) {
                Ok(meta) => {
                    decoded = true;
                    assert!(meta.payload(&cut).len() <= meta.payload_len as usize);
                }
                // Once an IP header was read, a longer capture reads it as well.
                Err(reason) => assert!(!decoded, "{reason:?} after {len} bytes, a packet after fewer"),
            }
        }
        assert!(decoded);
    }
}

#[test]
fn a_cut_below_the_transport_header_changes_nothing() {
    let mut rng = Rng::new(12);
    for n in 0..2_000 {
        let Nested { frame: Built { link, bytes, expect }, .. } = nested::random(&mut rng, n % 4);
        let Some((at, _)) = expect.payload else { continue };
        let whole = frame(link.linktype(), &bytes);
        let cut = Frame { data: &bytes[..at], ..whole };
        assert_eq!(decode(&cut, &Limits::default()), decode(&whole, &Limits::default()));
    }
}

#[test]
fn broken_frames_never_panic() {
    for seed in 0..20 {
        let mut rng = Rng::new(1_000 + seed);
        for n in 0..4_000 {
            let Nested { frame: Built { link, mut bytes, .. }, .. } = nested::random(&mut rng, n % 5);
            frames::mutate(&mut bytes, &mut rng);
            let mut frame = frame(link.linktype(), &bytes);
            frame.wire_len = frame.wire_len.wrapping_add(rng.below(3) as u32 * 1_000);
            if let Ok(meta) = decode(&frame, &Limits::default()) {
                assert!(meta.payload(&frame).len() <= meta.payload_len as usize);
            }
        }
    }
}
