//! Generator and decoder check each other: they share no code.

use std::collections::HashMap;
use traffic::frames::{self, Built};
use traffic::{Config, Generator, Rng};
use wire::{Addr, Direction, FlowKey, Frame, Limits, LinkType, Mac, Nanos, PacketMeta, TapId, decode};

fn frame<'a>(linktype: u16, data: &'a [u8], ts: u64) -> Frame<'a> {
    let link = LinkType::from_linktype(linktype);
    Frame { data, wire_len: data.len() as u32, ts: Nanos(ts), link, tap: TapId(0) }
}

/// Source and destination with ports, as the packet had them.
fn ends(meta: &PacketMeta) -> ((Addr, u16), (Addr, u16)) {
    let FlowKey { lo, hi, lo_port, hi_port, .. } = meta.key;
    match meta.direction {
        Direction::LoToHi => ((lo, lo_port), (hi, hi_port)),
        Direction::HiToLo => ((hi, hi_port), (lo, lo_port)),
    }
}

#[test]
fn every_field_of_odd_frames_agrees() {
    for seed in 0..50 {
        let mut rng = Rng::new(seed);
        for n in 0..400 {
            let Built { link, bytes, expect } = frames::random(&mut rng);
            let at = format!("seed {seed} frame {n} {link:?} {expect:?}\n{bytes:02x?}");
            let meta = match decode(&frame(link.linktype(), &bytes, n), &Limits::default()) {
                Ok(meta) => meta,
                Err(reason) => panic!("{reason:?}: {at}"),
            };
            let (src, dst) = ends(&meta);
            assert_eq!(src, (Addr::from(expect.src), expect.src_port), "{at}");
            assert_eq!(dst, (Addr::from(expect.dst), expect.dst_port), "{at}");
            assert_eq!((meta.key.proto, meta.ip_bytes), (expect.proto, expect.ip_bytes), "{at}");
            assert_eq!((meta.ttl, meta.dscp, meta.fragment), (expect.ttl, expect.dscp, expect.fragment), "{at}");
            let vlan = |i: usize| expect.vlans.get(i).copied().unwrap_or(0);
            assert_eq!((meta.key.vlan, meta.key.vlan_inner), (vlan(0), vlan(1)), "{at}");
            let macs = meta.has_mac.then_some((meta.src_mac, meta.dst_mac));
            assert_eq!(macs, expect.src_mac.zip(expect.dst_mac).map(|(s, d)| (Mac(s), Mac(d))), "{at}");
            let tcp = meta.has_tcp.then_some((meta.seq, meta.ack, meta.window, meta.flags.0));
            assert_eq!(tcp, expect.tcp.map(|t| (t.seq, t.ack, t.window, t.flags)), "{at}");
            assert_eq!(meta.has_icmp.then_some((meta.icmp_type, meta.icmp_code)), expect.icmp, "{at}");
            match expect.payload {
                Some(payload) => {
                    assert_eq!((usize::from(meta.payload_at), meta.payload_len as usize), payload, "{at}");
                }
                None => assert_eq!(meta.payload_len as usize, expect.later, "{at}"),
            }
        }
    }
}

#[test]
fn broken_frames_never_panic() {
    for seed in 0..20 {
        let mut rng = Rng::new(1_000 + seed);
        for _ in 0..2_000 {
            let Built { link, mut bytes, .. } = frames::random(&mut rng);
            frames::mutate(&mut bytes, &mut rng);
            let mut frame = frame(link.linktype(), &bytes, 0);
            frame.wire_len = frame.wire_len.wrapping_add(rng.below(3) as u32 * 1_000);
            let _ = decode(&frame, &Limits::default());
        }
    }
}

#[test]
fn decoded_traffic_adds_up_to_the_truth() {
    let mut generator = Generator::new(Config { packets: 100_000, flows: 2_000, ..Config::default() });
    // Packets, IP bytes, first and last time, by source, destination and protocol.
    let mut seen: HashMap<_, (u64, u64)> = HashMap::new();
    let mut buf = Vec::new();
    while let Some(packet) = generator.next(&mut buf) {
        let meta = decode(&frame(1, &buf, packet.ts_ns), &Limits::default()).unwrap();
        let (src, dst) = ends(&meta);
        let entry = seen.entry((meta.key.proto, src, dst)).or_default();
        *entry = (entry.0 + 1, entry.1 + u64::from(meta.ip_bytes));
    }
    let truth = generator.into_truth();
    let mut directions = 0;
    for flow in &truth.flows {
        let client = (Addr::from(flow.client), flow.client_port);
        let server = (Addr::from(flow.server), flow.server_port);
        let got = |src, dst| seen.get(&(flow.proto, src, dst)).copied().unwrap_or_default();
        assert_eq!(got(client, server), (flow.packets_client, flow.ip_bytes_client), "{flow:?}");
        assert_eq!(got(server, client), (flow.packets_server, flow.ip_bytes_server), "{flow:?}");
        directions += usize::from(flow.packets_client > 0) + usize::from(flow.packets_server > 0);
    }
    assert_eq!(directions, seen.len(), "and nothing else was decoded");
}
