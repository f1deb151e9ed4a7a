//! What the program says of a frame, against its twin in plain Rust.

use super::super::early::twin::verdict;
use super::super::program::{COUNTER_WORDS, Counting, FILTERED, PASSED, SEEN};
use super::super::sys::{CounterMap, Program, SocketMap};
use super::super::{BpfError, EarlyError, Loader, early};
use super::{again, can_load, role};
use crate::filter::early::{Early, Side};
use crate::{BatchHandler, FileOptions, FileSource, Polled, Source};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::TestRunner;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use wire::{Frame, LinkType, Nanos, TapId};

const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
/// Longest frame that is handed to the kernel whole.
const FRAME_BYTES_MAX: usize = 3000;

/// A loaded program on no interface, with its counters.
struct Loaded {
    program: Program,
    counters: CounterMap,
    early_refused: Option<EarlyError>,
    _sockets: SocketMap,
    /// Frames run, and of them dropped.
    expected: [u64; 2],
}

impl Loaded {
    fn new(early: Option<&Early>, counting: Counting) -> Result<Loaded, BpfError> {
        let (sockets, counters) = (SocketMap::new(1).unwrap(), CounterMap::new(1, COUNTER_WORDS).unwrap());
        let maps = (sockets.as_fd().as_raw_fd(), counters.as_fd().as_raw_fd());
        let loader = Loader { counting, sockets: maps.0, counters: maps.1, interface_index: 0 };
        let ((program, frags), kept, early_refused) = loader.plain(early)?;
        assert!(frags);
        assert_eq!(kept.is_some(), early.is_some() && early_refused.is_none());
        Ok(Loaded { program, counters, early_refused, _sockets: sockets, expected: [0; 2] })
    }

    /// Both say the same of the frame, and it is counted.
    fn agrees(&mut self, early: &Early, frame: &[u8]) -> Result<(), String> {
        let frame = &frame[..frame.len().min(FRAME_BYTES_MAX)];
        let twin = verdict(early, frame);
        if frame.len() < 14 {
            // The kernel runs no program over these.
            return if twin { Ok(()) } else { Err("a runt is dropped".to_owned()) };
        }
        let program = self.program.test(frame).map_err(|e| format!("{e}: frame of {} bytes", frame.len()))?;
        if program != if twin { XDP_PASS } else { XDP_DROP } {
            return Err(format!("the twin keeps: {twin}; the program says {program}: {early:?} of {frame:02x?}"));
        }
        self.expected[0] += 1;
        self.expected[1] += u64::from(!twin);
        Ok(())
    }

    fn counters_are_exact(&self) {
        let [seen, filtered] = self.expected;
        let counters = [SEEN, FILTERED, PASSED].map(|counter| self.counters.load(counter).unwrap());
        assert_eq!(counters, [seen, filtered, seen - filtered]);
    }
}

fn port(ether_type: u16, side: Side, first: u16, last: u16) -> Early {
    Early::Port { ether_type, side, first, last }
}

fn protocol(ether_type: u16, protocol: u8) -> Early {
    Early::Protocol { ether_type, protocol }
}

fn net(side: Side, network: &str, bits: u8) -> Early {
    Early::Net { side, network: network.parse().unwrap(), bits }
}

fn not(early: Early) -> Early {
    Early::Not(Box::new(early))
}

const V4: u16 = 0x0800;
const V6: u16 = 0x86dd;
const SIDES: [Side; 4] = [Side::Source, Side::Destination, Side::Either, Side::Both];

/// `tcp port 80 or 443` and its like.
fn transport_ports(protocols: &[u8], ports: &[u16]) -> Early {
    let of = |ether_type| {
        let protocols = protocols.iter().map(|p| protocol(ether_type, *p)).collect();
        let ports = ports.iter().map(|p| port(ether_type, Side::Either, *p, *p)).collect();
        Early::All(vec![Early::Any(protocols), Early::Any(ports)])
    };
    Early::Any(vec![of(V4), of(V6)])
}

fn typical() -> Vec<Early> {
    let mut list = vec![
        Early::All(vec![]),
        Early::Any(vec![]),
        Early::All(vec![Early::EtherType(V4), Early::Any(vec![])]),
        Early::Any(vec![Early::EtherType(V4), Early::All(vec![])]),
        Early::EtherType(0x0806),
        not(Early::EtherType(0x0806)),
        Early::EtherType(0x8100),
        protocol(V4, 6),
        protocol(V6, 58),
        protocol(0x0806, 1),
        transport_ports(&[6], &[80, 443]),
        transport_ports(&[6, 17, 132], &[53]),
        not(transport_ports(&[6, 17, 132], &[53])),
        not(transport_ports(&[17], &[5353, 1900, 137])),
        Early::Any(vec![net(Side::Either, "10.0.0.0", 8), net(Side::Either, "192.168.0.0", 16)]),
        not(net(Side::Both, "192.168.0.0", 16)),
        net(Side::Source, "0.0.0.0", 0),
        net(Side::Either, "fe80::", 10),
        not(net(Side::Destination, "ff00::", 8)),
        net(Side::Both, "2001:db8:1234:5678:9abc:def0:1234:5678", 128),
        port(V4, Side::Source, 9, 1),
    ];
    for side in SIDES {
        list.push(port(V4, side, 1024, 49151));
        list.push(port(V6, side, 0, 1023));
        list.push(not(port(V4, side, 0, 0xffff)));
    }
    // As deep, and as long, as may be.
    list.push((1..early::DEPTH_MAX).fold(port(V4, Side::Either, 80, 80), |inner, _| not(inner)));
    list.push((1..early::DEPTH_MAX / 2).fold(protocol(V4, 6), |inner, i| {
        Early::All(vec![not(port(V4, Side::Either, i as u16, i as u16)), Early::Any(vec![inner, protocol(V6, 6)])])
    }));
    list.push(transport_ports(&[6, 17], &(1..90).map(|n| n * 7).collect::<Vec<u16>>()));
    list
}

/// An Ethernet frame with the ethernet type and what follows.
fn ethernet(ether_type: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    frame.extend(ether_type.to_be_bytes());
    frame.extend(payload);
    frame
}

fn ipv4(ihl: u8, fragment: u16, protocol: u8, addresses: [Ipv4Addr; 2], payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; 20.max(usize::from(ihl) * 4)];
    packet[0] = 0x40 | ihl;
    packet[6..8].copy_from_slice(&fragment.to_be_bytes());
    packet[9] = protocol;
    packet[12..16].copy_from_slice(&addresses[0].octets());
    packet[16..20].copy_from_slice(&addresses[1].octets());
    packet.extend(payload);
    packet
}

fn ipv6(next_header: u8, addresses: [Ipv6Addr; 2], payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, payload.len() as u8, next_header, 64];
    packet.extend(addresses.iter().flat_map(|address| address.octets()));
    packet.extend(payload);
    packet
}

fn ports(ports: [u16; 2]) -> Vec<u8> {
    let mut bytes: Vec<u8> = ports.iter().flat_map(|port| port.to_be_bytes()).collect();
    bytes.extend([0; 16]);
    bytes
}

/// Values that tests and frames share, so that they meet.
const PORTS: [u16; 9] = [0, 1, 53, 80, 255, 256, 443, 0x8000, 0xffff];
const PROTOCOLS: [u8; 6] = [0, 1, 6, 17, 58, 132];

fn v4_addresses() -> Vec<Ipv4Addr> {
    ["10.0.0.1", "10.0.0.2", "10.128.0.0", "192.168.1.1", "255.255.255.255", "0.0.0.0", "127.255.255.254"]
        .map(|a| a.parse().unwrap())
        .to_vec()
}

fn v6_addresses() -> Vec<Ipv6Addr> {
    ["::", "fe80::1", "fe80::8000:0:0:1", "2001:db8::1", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", "ff02::fb"]
        .map(|a| a.parse().unwrap())
        .to_vec()
}

fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let payload = (select(&PORTS[..]), select(&PORTS[..])).prop_map(|(s, d)| ports([s, d]));
    let ihl = prop_oneof![4 => Just(5_u8), 3 => 6_u8..16, 1 => 0_u8..5];
    let fragment = prop_oneof![4 => select(vec![0_u16, 0x4000, 0x2000]), 1 => any::<u16>()];
    let v4 = (ihl, fragment, select(&PROTOCOLS[..]), select(v4_addresses()), select(v4_addresses()), payload.clone())
        .prop_map(|(ihl, fragment, p, s, d, payload)| ethernet(V4, &ipv4(ihl, fragment, p, [s, d], &payload)));
    let v6 = (select(&PROTOCOLS[..]), select(v6_addresses()), select(v6_addresses()), payload)
        .prop_map(|(p, s, d, payload)| ethernet(V6, &ipv6(p, [s, d], &payload)));
    let tagged = (select(vec![0x8100_u16, 0x88a8, 0x9100, 0x0806, 0x8847, 60]), v4.clone())
        .prop_map(|(tag, inner)| ethernet(tag, &[&[0, 7], &inner[12..]].concat()));
    let noise = proptest::collection::vec(any::<u8>(), 0..100);
    let whole = prop_oneof![5 => v4, 4 => v6, 1 => tagged, 1 => noise];
    // Whole, or cut anywhere.
    (whole, prop_oneof![2 => Just(1.0), 1 => 0.0..1.0_f64])
        .prop_map(|(frame, part)| frame[..(frame.len() as f64 * part) as usize].to_vec())
}

fn any_early() -> impl Strategy<Value = Early> {
    let side = || select(&SIDES[..]);
    let family = || prop_oneof![4 => Just(V4), 3 => Just(V6), 1 => Just(0x0806_u16)];
    let network = prop_oneof![
        (select(v4_addresses()).prop_map(IpAddr::V4), 0_u8..=32),
        (select(v6_addresses()).prop_map(IpAddr::V6), 0_u8..=128),
    ];
    let leaf = prop_oneof![
        1 => prop_oneof![family(), any::<u16>()].prop_map(Early::EtherType),
        2 => (family(), select(&PROTOCOLS[..])).prop_map(|(f, p)| protocol(f, p)),
        3 => (family(), side(), select(&PORTS[..]), select(&PORTS[..]))
            .prop_map(|(f, side, a, b)| port(f, side, a.min(b), a.max(b))),
        3 => (side(), network).prop_map(|(side, (network, bits))| Early::Net { side, network, bits }),
    ];
    leaf.prop_recursive(6, 40, 5, |inner| {
        let list = proptest::collection::vec(inner.clone(), 0..5);
        prop_oneof![
            2 => list.clone().prop_map(Early::All),
            2 => list.prop_map(Early::Any),
            1 => inner.prop_map(not),
        ]
    })
}

/// A few of each kind, and each prefix of them.
fn handmade_frames() -> Vec<Vec<u8>> {
    let four = |s: &str, d: &str| [s.parse().unwrap(), d.parse().unwrap()];
    let six = |s: &str, d: &str| [s.parse().unwrap(), d.parse().unwrap()];
    let mut frames = vec![
        ethernet(0x0806, &[0; 46]),
        ethernet(0x8100, &[&[0, 5, 8, 0][..], &ipv4(5, 0, 6, four("10.0.0.1", "10.0.0.2"), &ports([80, 81]))].concat()),
        ethernet(V4, &ipv4(5, 0, 1, four("192.168.0.1", "192.168.0.2"), &[8, 0, 0, 0])),
        ethernet(V4, &ipv4(5, 0x2000, 17, four("192.168.0.1", "10.0.0.2"), &ports([53, 4000]))),
        ethernet(V4, &ipv4(5, 0x00b9, 17, four("192.168.0.1", "10.0.0.2"), &ports([53, 4000]))),
        ethernet(V4, &ipv4(3, 0, 17, four("192.168.0.1", "10.0.0.2"), &ports([53, 4000]))),
        ethernet(V6, &ipv6(58, six("fe80::1", "ff02::1"), &[135, 0, 0, 0])),
        ethernet(V6, &ipv6(6, six("2001:db8::1", "2001:db8::2"), &ports([443, 50_000]))),
        ethernet(V6, &ipv6(44, six("2001:db8::1", "2001:db8::2"), &[17, 0, 0, 8, 0, 0, 0, 1])),
    ];
    for ihl in 5..16 {
        frames.push(ethernet(V4, &ipv4(ihl, 0, 6, four("10.0.0.1", "172.16.0.1"), &ports([u16::from(ihl), 443]))));
    }
    let cuts = frames.iter().flat_map(|frame| (0..=frame.len()).map(|bytes| frame[..bytes].to_vec()));
    cuts.collect()
}

#[test]
fn typical_filters_agree() {
    if !can_load() {
        return;
    }
    let frames = handmade_frames();
    for early in typical() {
        for counting in [Counting::Exclusive, Counting::Shared] {
            let mut loaded = Loaded::new(Some(&early), counting).unwrap();
            assert_eq!(loaded.early_refused, None, "{early:?}");
            for frame in &frames {
                loaded.agrees(&early, frame).unwrap();
            }
            // Of several buffers: the first holds the headers.
            for mut frame in frames.iter().filter(|frame| frame.len() >= 14).step_by(50).cloned() {
                let keep = verdict(&early, &[&frame[..], &[0; 100]].concat());
                frame.resize(9000, 0);
                assert_eq!(loaded.program.test(&frame).unwrap(), if keep { XDP_PASS } else { XDP_DROP });
                loaded.expected[0] += 1;
                loaded.expected[1] += u64::from(!keep);
            }
            loaded.counters_are_exact();
        }
    }
}

#[test]
fn random_filters_agree() {
    if !can_load() {
        return;
    }
    let config = ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() };
    let cases = (any_early(), proptest::collection::vec(any_frame(), 40));
    let result = TestRunner::new(config).run(&cases, |(early, frames)| {
        let mut loaded = Loaded::new(Some(&early), Counting::Exclusive).unwrap();
        prop_assert_eq!(&loaded.early_refused, &None);
        for frame in &frames {
            loaded.agrees(&early, frame).map_err(TestCaseError::fail)?;
        }
        loaded.counters_are_exact();
        Ok(())
    });
    if let Err(e) = result {
        panic!("{e}");
    }
}

#[test]
fn too_large_filters_are_left_out() {
    if !can_load() {
        return;
    }
    for early in [
        transport_ports(&[6], &(1..1000).collect::<Vec<u16>>()),
        (0..early::DEPTH_MAX).fold(protocol(V4, 6), |inner, _| not(inner)),
    ] {
        let loaded = Loaded::new(Some(&early), Counting::Exclusive).unwrap();
        assert!(matches!(loaded.early_refused, Some(EarlyError::TooDeep | EarlyError::Program(_))));
        assert_eq!(loaded.program.test(&[0; 60]).unwrap(), XDP_PASS);
        assert_eq!([SEEN, FILTERED, PASSED].map(|counter| loaded.counters.load(counter).unwrap()), [1, 0, 1]);
        assert_eq!(loaded.counters.load(COUNTER_WORDS as usize), None);
    }
}

/// Neither CAP_PERFMON nor CAP_SYS_ADMIN, which change what the verifier accepts.
#[test]
fn two_capabilities_are_enough() {
    if !can_load() {
        return;
    }
    if role().is_none() {
        let wrapper = ["setpriv", "--bounding-set", "-all,+bpf,+net_admin"];
        assert!(again(&wrapper, "bpf::tests::verdicts::two_capabilities_are_enough", "confined").success());
        return;
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("CapEff:")).unwrap();
    assert_eq!(u64::from_str_radix(line[7..].trim(), 16).unwrap(), 1 << 39 | 1 << 12, "{line}");
    for early in typical() {
        let mut loaded = Loaded::new(Some(&early), Counting::Exclusive).unwrap();
        assert_eq!(loaded.early_refused, None);
        for frame in handmade_frames().iter().step_by(7) {
            loaded.agrees(&early, frame).unwrap();
        }
    }
}

#[test]
fn captures_agree() {
    let Some(root) = std::env::var_os("TAPHOUSE_TESTDATA").map(PathBuf::from) else {
        println!("SKIPPED: TAPHOUSE_TESTDATA is not set");
        return;
    };
    if !can_load() {
        return;
    }
    let root = if root.is_relative() { Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(root) } else { root };
    let mut all: Vec<(Early, Loaded)> = typical()
        .into_iter()
        .map(|early| {
            let loaded = Loaded::new(Some(&early), Counting::Exclusive).unwrap();
            (early, loaded)
        })
        .collect();
    let mut frames = 0_u64;
    for path in std::fs::read_dir(root.join("pcap")).unwrap().map(|entry| entry.unwrap().path()) {
        if path.extension().is_some_and(|e| e == "pcap" || e == "pcapng") {
            let mut source = FileSource::open(&path, TapId(1), &FileOptions::default()).unwrap();
            let mut compare = Compare { all: &mut all, frames: &mut frames, path: &path };
            while !matches!(source.poll(&mut compare), Ok(Polled::End) | Err(_)) {}
        }
    }
    println!("{frames} frames, {} filters", all.len());
    assert!(frames > 0);
    all.iter().for_each(|(_, loaded)| loaded.counters_are_exact());
}

struct Compare<'a> {
    all: &'a mut [(Early, Loaded)],
    frames: &'a mut u64,
    path: &'a Path,
}

impl BatchHandler for Compare<'_> {
    fn batch(&mut self, frames: &[Frame<'_>]) {
        for frame in frames.iter().filter(|frame| frame.link == LinkType::Ethernet) {
            *self.frames += 1;
            for (early, loaded) in self.all.iter_mut() {
                if let Err(e) = loaded.agrees(early, frame.data) {
                    panic!("{}, Ethernet frame {}: {e}", self.path.display(), self.frames);
                }
            }
        }
    }

    fn idle(&mut self, _: Nanos) {}
}

/// Prints what counting and filters cost. `cargo test --release -p capture -- --ignored --nocapture program_cost`.
#[test]
#[ignore = "a measurement"]
fn program_cost() {
    if !can_load() {
        return;
    }
    let addresses = ["10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap()];
    let frame = ethernet(V4, &ipv4(5, 0, 6, addresses, &ports([80, 50_000])));
    let many = transport_ports(&[6, 17], &(1000..1090).collect::<Vec<u16>>());
    for (name, early) in [
        ("no filter", None),
        ("port 80 or 443: kept", Some(transport_ports(&[6], &[80, 443]))),
        ("port 53: dropped", Some(transport_ports(&[6, 17, 132], &[53]))),
        ("90 ports: dropped", Some(many)),
    ] {
        for counting in [Counting::Exclusive, Counting::Shared] {
            let loaded = Loaded::new(early.as_ref(), counting).unwrap();
            assert_eq!(loaded.early_refused, None);
            println!("{name}, {counting:?}: {} ns", loaded.program.time(&frame, 5_000_000).unwrap());
        }
    }
}
