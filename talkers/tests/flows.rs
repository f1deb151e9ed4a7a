//! Flows that tell late: a flow table, swept a few flows at a time while packets go on, gives the same windows as plain counting.

mod common;

use common::*;
use flowtable::{FlowDelta, FlowRecord, FlowSink, FlowTable, FlowTableConfig, Timeouts};
use std::sync::Arc;
use talkers::{Feed, KeySpec, Kind, Size, TaskConfig, WhenBehind, Which, Window, start};
use wire::{Direction, Nanos, PacketMeta};

/// A worker, as the server has it.
struct Worker {
    table: FlowTable,
    feed: Feed,
}

/// Passes on what the table tells.
struct Sink<'a>(&'a mut Feed);

impl FlowSink for Sink<'_> {
    fn record(&mut self, record: &FlowRecord, _: &[u8]) {
        self.0.ended(record);
    }

    fn delta(&mut self, delta: &FlowDelta<'_>, is_before: bool) {
        self.0.delta(delta, is_before);
    }

    fn begun(&mut self, first: &PacketMeta, originator: Direction) {
        self.0.begun(&first.key, originator);
    }
}

impl Worker {
    fn sweep(&mut self, slots: usize) {
        if !self.table.is_swept() && self.table.sweep_deltas(slots, &mut Sink(&mut self.feed)) {
            self.feed.swept();
        }
    }

    /// A packet, and a slice of a sweep.
    fn packet(&mut self, packet: &PacketMeta, slots: usize) {
        if self.feed.is_due(packet.clock) && self.feed.must_turn(packet.clock, self.table.is_swept()) {
            self.sweep(usize::MAX);
            self.feed.turn(packet.clock);
            self.table.turn();
            if self.table.is_swept() {
                self.feed.swept();
            }
        }
        self.table.process(std::slice::from_ref(packet), &mut Sink(&mut self.feed));
        self.sweep(slots);
    }
}

fn by_source_and_port(packet: &PacketMeta) -> talkers::KeyFields {
    let ((source, port), _) = ends(packet);
    talkers::KeyFields { src_ip: Some(source), src_port: Some(port), ..Default::default() }
}

#[test]
fn windows_are_exact_however_late_flows_tell() {
    for seed in 0..30 {
        let packets = stream(seed, 45, 3_000, 60);
        let tasks = vec![
            TaskConfig {
                snapshot_interval: Nanos((1 + seed % 10) * SECOND),
                ..task("bytes", Kind::HeavyHitters, &["src_ip", "src_port"], Size::Memory(2 << 20))
            },
            // Of another length, so that windows end at different turns.
            TaskConfig {
                window: Nanos(3 * SECOND),
                snapshot_interval: Nanos(3 * SECOND),
                ..task("short", Kind::TopK, &["src_ip"], Size::Memory(1 << 16))
            },
        ];
        let taps = ["tap".to_owned()];
        let (mut feeds, mut collector, board) = start(tasks, &taps, &[0], 1 << 30, seed, WhenBehind::GoOn).unwrap();
        // Parts end, flows end, and the table is full now and then.
        let timeouts = Timeouts { tcp_idle: Nanos::from_secs(4), active: Nanos::from_secs(7), ..Timeouts::default() };
        let flows_max = if seed % 2 == 0 { 64 } else { 4_096 };
        let table = FlowTable::new(FlowTableConfig { flows_max, timeouts, side_bytes_max: 1 << 12 }).unwrap();
        let mut worker = Worker { table, feed: feeds.remove(0) };
        assert!(worker.feed.wants_deltas());
        worker.table.want_deltas().expect("memory");
        // So slow a sweep is not over when time turns again.
        let is_slow = seed % 5 == 4;
        let slots_max = if is_slow { 3 } else { 400 };
        let mut numbers = Numbers(seed);
        let mut over: Vec<Arc<Window>> = Vec::new();
        for packet in &packets {
            worker.packet(packet, numbers.below(slots_max) as usize);
            over.extend(collector.poll().unwrap());
        }
        if let Some(running) = board.window(&board.tasks()[0], None, Which::Running).unwrap() {
            let sent: u64 = truth(&packets, by_source).last_key_value().unwrap().1.values().sum();
            assert!(running.total().unwrap() <= sent, "seed {seed}");
        }
        let last = packets.last().unwrap().clock;
        worker.table.finish(last, &mut Sink(&mut worker.feed));
        worker.feed.finish();
        over.extend(collector.poll().unwrap());
        assert!(collector.is_over());
        let total = |name: &str| -> u64 {
            over.iter().filter(|window| window.task().name() == name).filter_map(|window| window.total()).sum()
        };
        let sent: u64 = packets.iter().map(|packet| u64::from(packet.ip_bytes)).sum();
        assert_eq!((total("bytes"), total("short")), (sent, sent), "seed {seed}");
        if is_slow {
            continue;
        }
        assert_eq!((board.counts().late, board.counts().stragglers), (0, 0), "seed {seed}");
        let of = |name: &str| over.iter().filter(|window| window.task().name() == name).collect::<Vec<_>>();
        assert_eq!((of("bytes").len(), of("short").len()), (5, 16), "seed {seed}");
        let by: KeySpec = "src_ip,src_port".parse().unwrap();
        for window in of("bytes") {
            let wanted = truth(&packets, by_source_and_port).remove(&(window.times().0.0 / (10 * SECOND))).unwrap();
            let listing = window.list(&by, 0, 10_000).unwrap();
            assert_eq!(listing.keys.len(), wanted.len());
            for (key, known) in listing.keys {
                let bytes = wanted[&key] as f64;
                assert_eq!([known.estimate, known.lower, known.upper], [bytes; 3], "seed {seed} {key:?}");
            }
        }
        for window in of("short") {
            let (from, to) = window.times();
            let sent = packets.iter().filter(|packet| packet.clock >= from && packet.clock < to);
            assert_eq!(window.total(), Some(sent.map(|packet| u64::from(packet.ip_bytes)).sum()), "seed {seed}");
        }
    }
}
