//! Packets that are the same each time, and what they add up to.

#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::{BTreeMap, HashMap};
use talkers::{KeyFields, Kind, Metric, Size, TaskConfig};
use wire::{Addr, Direction, FlowKey, Nanos, PacketMeta, TapId};

pub(crate) const SECOND: u64 = 1_000_000_000;

pub(crate) fn task(name: &str, kind: Kind, key: &[&str], size: Size) -> TaskConfig {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    TaskConfig {
        name: name.to_owned(),
        kind,
        metric: Metric::Bytes,
        key: names(key),
        elements: Vec::new(),
        measure: None,
        quantiles: Vec::new(),
        lists: Vec::new(),
        size,
        window: Nanos(10 * SECOND),
        snapshot_interval: Nanos(SECOND),
        threshold: 0,
        rows_max: 100,
    }
}

/// Numbers that look random and are the same each time.
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(1);
        sketches::mix(self.0) % n
    }
}

pub(crate) fn host(n: u64) -> Addr {
    // Every fourth speaks IPv6.
    match n % 4 {
        0 => Addr([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, (n >> 8) as u8, n as u8]),
        _ => Addr::v4([10, (n >> 16) as u8, (n >> 8) as u8, n as u8]),
    }
}

pub(crate) fn packet(from: (u64, u16), to: (u64, u16), clock: u64, bytes: u32, tap: u16) -> PacketMeta {
    let ((from, from_port), (to, to_port)) = ((host(from.0), from.1), (host(to.0), to.1));
    let is_lo = (from, from_port) <= (to, to_port);
    let ((lo, lo_port), (hi, hi_port)) =
        if is_lo { ((from, from_port), (to, to_port)) } else { ((to, to_port), (from, from_port)) };
    PacketMeta {
        key: FlowKey { lo, hi, lo_port, hi_port, proto: 6, vlan: 7, tap: TapId(tap), ..FlowKey::default() },
        clock: Nanos(clock),
        ip_bytes: bytes,
        direction: if is_lo { Direction::LoToHi } else { Direction::HiToLo },
        ..PacketMeta::EMPTY
    }
}

/// Packets of some seconds, few senders with much.
pub(crate) fn stream(seed: u64, seconds: u64, packets: u64, hosts: u64) -> Vec<PacketMeta> {
    let mut numbers = Numbers(seed << 32);
    (0..packets)
        .map(|n| {
            let from = numbers.below(hosts).min(numbers.below(hosts));
            let to = numbers.below(hosts);
            let bytes = 40 + numbers.below(1460) as u32;
            let clock = 1_000 * SECOND + n * seconds * SECOND / packets;
            packet((from, numbers.below(4) as u16 + 1024), (to, 443), clock, bytes, 0)
        })
        .collect()
}

pub(crate) type Truth = BTreeMap<u64, HashMap<KeyFields, u64>>;

/// Bytes by window and key.
pub(crate) fn truth(packets: &[PacketMeta], key: impl Fn(&PacketMeta) -> KeyFields) -> Truth {
    let mut truth = Truth::new();
    for packet in packets {
        let of_window = truth.entry(packet.clock.0 / (10 * SECOND)).or_default();
        *of_window.entry(key(packet)).or_default() += u64::from(packet.ip_bytes);
    }
    truth
}

pub(crate) fn ends(packet: &PacketMeta) -> ((Addr, u16), (Addr, u16)) {
    let k = &packet.key;
    match packet.direction {
        Direction::LoToHi => ((k.lo, k.lo_port), (k.hi, k.hi_port)),
        Direction::HiToLo => ((k.hi, k.hi_port), (k.lo, k.lo_port)),
    }
}

pub(crate) fn by_source(packet: &PacketMeta) -> KeyFields {
    KeyFields { src_ip: Some(ends(packet).0.0), ..KeyFields::default() }
}

pub(crate) fn by_pair(packet: &PacketMeta) -> KeyFields {
    let (from, to) = ends(packet);
    KeyFields { src_ip: Some(from.0), dst_ip: Some(to.0), ..KeyFields::default() }
}

pub(crate) fn by_port(packet: &PacketMeta) -> KeyFields {
    let (from, _) = ends(packet);
    KeyFields { src_port: Some(from.1), proto: Some(6), vlan: Some(7), ..KeyFields::default() }
}

pub(crate) fn by_net(packet: &PacketMeta) -> KeyFields {
    let cut = |mut address: Addr| {
        let from = if address.is_v4() { 15 } else { 6 };
        address.0[from..].fill(0);
        address
    };
    KeyFields { src_ip: Some(cut(ends(packet).0.0)), ..KeyFields::default() }
}
