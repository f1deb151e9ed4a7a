//! The table against a naive model: a `HashMap`, no batches, no sweep, every timeout checked by a scan.

use flowtable::{EndReason, FlowDelta, FlowRecord, FlowSink, FlowTable, FlowTableConfig, FlowWalk, Timeouts};
use hashbrown::{HashMap, HashSet};
use proptest::prelude::*;
use wire::{Addr, Direction, FlowKey, Nanos, PacketMeta, TcpFlags, proto};

#[derive(Default)]
struct Records(Vec<FlowRecord>);

impl FlowSink for Records {
    fn record(&mut self, record: &FlowRecord, _text: &[u8]) {
        self.0.push(*record);
    }
}

/// What flows told, by turn and (key, direction): packets and bytes.
struct Told(Vec<HashMap<(FlowKey, bool), (u64, u64)>>);

impl Default for Told {
    fn default() -> Told {
        Told(vec![HashMap::new()])
    }
}

impl FlowSink for Told {
    fn record(&mut self, _: &FlowRecord, _: &[u8]) {}

    fn delta(&mut self, delta: &FlowDelta<'_>, is_before: bool) {
        let turn = self.0.len() - 1 - usize::from(is_before);
        for side in 0..2 {
            let forward = (delta.originator == Direction::LoToHi) == (side == 0);
            if delta.pkts[side] > 0 {
                let told = self.0[turn].entry((*delta.key, forward)).or_default();
                *told = (told.0 + u64::from(delta.pkts[side]), told.1 + delta.bytes[side]);
            }
        }
    }
}

/// What the model says of a record: identity, times, counters, how it ended.
type Line = (u64, u16, u64, u64, [u64; 4], [u8; 2], Addr, u16, u8);

fn line(r: &FlowRecord) -> Line {
    (
        r.flow_id,
        r.part,
        r.start.0,
        r.end.0,
        [r.pkts_o, r.pkts_r, r.bytes_o, r.bytes_r],
        [r.flags_o, r.flags_r],
        r.src_ip,
        r.src_port,
        r.end_reason as u8,
    )
}

struct ModelFlow {
    originator: Direction,
    first_ts: u64,
    part: u16,
    start: u64,
    end: u64,
    part_clock: u64,
    last_clock: u64,
    counts: [u64; 4],
    flags: [u8; 2],
    fin: [bool; 2],
    rst: bool,
    /// Next sequence numbers.
    next: [Option<u32>; 2],
    /// The responder has sent something, and a SYN/ACK.
    answered: bool,
    syn_ack: bool,
}

impl ModelFlow {
    fn closed(&self) -> bool {
        self.rst || self.fin == [true, true]
    }

    /// A SYN or SYN/ACK whose sequence number is not the one that was expected, nor the one that began this. No packet has data.
    fn is_elsewhere(&self, p: &PacketMeta) -> bool {
        let side = usize::from(p.direction != self.originator);
        self.next[side].is_some_and(|next| next.wrapping_sub(p.seq + 1) > 1)
    }

    fn is_reused(&self, p: &PacketMeta) -> bool {
        p.has_tcp && p.flags.is_syn() && (self.closed() || (self.answered && self.is_elsewhere(p)))
    }

    fn deadline(&self, key: &FlowKey, t: &Timeouts) -> Nanos {
        let idle = if key.proto == proto::TCP { t.tcp_idle } else { t.udp_idle };
        Nanos(self.last_clock) + if self.closed() { t.closed.min(t.tcp_idle) } else { idle }
    }
}

struct Model {
    timeouts: Timeouts,
    flows: HashMap<FlowKey, ModelFlow>,
    lines: Vec<Line>,
}

impl Model {
    fn export(&mut self, key: &FlowKey, reason: EndReason, ids: &HashMap<(FlowKey, u64), u64>) {
        let f = &self.flows[key];
        let (src, port) = if f.originator == Direction::LoToHi { (key.lo, key.lo_port) } else { (key.hi, key.hi_port) };
        let id = ids[&(*key, f.first_ts)];
        self.lines.push((id, f.part, f.start, f.end, f.counts, f.flags, src, port, reason as u8));
    }

    fn packet(&mut self, p: &PacketMeta, ids: &HashMap<(FlowKey, u64), u64>) {
        let t = self.timeouts;
        if let Some(f) = self.flows.get(&p.key) {
            let late = f.deadline(&p.key, &t) <= p.clock;
            if late || (t.split_on_reuse && f.is_reused(p)) {
                let reason = if late && !f.closed() { EndReason::Idle } else { EndReason::Closed };
                self.export(&p.key, reason, ids);
                self.flows.remove(&p.key);
            } else if p.clock.0 - f.part_clock >= t.active.0 {
                self.export(&p.key, EndReason::Active, ids);
                let f = self.flows.get_mut(&p.key).unwrap();
                (f.start, f.end, f.part_clock) = (p.ts.0, p.ts.0, p.clock.0);
                (f.counts, f.flags) = ([0; 4], [0; 2]);
                f.part += 1;
            }
        }
        let flipped = p.has_tcp && p.flags.is_syn_ack();
        let other = if p.direction == Direction::LoToHi { Direction::HiToLo } else { Direction::LoToHi };
        let f = self.flows.entry(p.key).or_insert_with(|| ModelFlow {
            originator: if flipped { other } else { p.direction },
            first_ts: p.ts.0,
            part: 0,
            start: p.ts.0,
            end: p.ts.0,
            part_clock: p.clock.0,
            last_clock: p.clock.0,
            counts: [0; 4],
            flags: [0; 2],
            fin: [false; 2],
            rst: false,
            next: [None; 2],
            answered: false,
            syn_ack: false,
        });
        let side = usize::from(p.direction != f.originator);
        f.last_clock = p.clock.0;
        (f.start, f.end) = (f.start.min(p.ts.0), f.end.max(p.ts.0));
        f.answered |= side == 1;
        f.counts[side] += 1;
        f.counts[2 + side] += u64::from(p.ip_bytes);
        if p.has_tcp {
            f.flags[side] |= p.flags.0;
            f.fin[side] |= p.flags.any(TcpFlags::FIN);
            f.rst |= p.flags.any(TcpFlags::RST);
            if (p.flags.is_syn() || (p.flags.is_syn_ack() && !f.syn_ack)) && f.is_elsewhere(p) {
                f.next = [None; 2];
            }
            f.syn_ack |= p.flags.is_syn_ack() && side == 1;
            let end = p.seq + u32::from(p.flags.any(TcpFlags::SYN | TcpFlags::FIN));
            f.next[side] = Some(f.next[side].map_or(end, |next| next.max(end)));
        }
    }

    fn finish(mut self, clock: u64, ids: &HashMap<(FlowKey, u64), u64>) -> Vec<Line> {
        let keys: Vec<FlowKey> = self.flows.keys().copied().collect();
        for key in keys {
            let f = &self.flows[&key];
            let reason = match f.deadline(&key, &self.timeouts) {
                _ if f.closed() => EndReason::Closed,
                deadline if deadline.0 <= clock => EndReason::Idle,
                _ => EndReason::Shutdown,
            };
            self.export(&key, reason, ids);
        }
        self.lines.sort();
        self.lines
    }
}

/// One packet of a random trace: who, which way, flags, how long after the one before, how far its time runs back.
type Step = (u8, bool, u8, u64, u64);

fn packets(steps: &[Step]) -> Vec<PacketMeta> {
    let mut clock = 1_000_000_000_000u64;
    let mut newest = 0;
    steps
        .iter()
        .map(|&(who, forward, flags, gap, back)| {
            clock += gap;
            let ts = clock - back.min(gap * 2);
            newest = newest.max(ts);
            let tcp = who % 3 != 0;
            let key = FlowKey {
                lo: Addr::v4([10, 0, 0, who]),
                hi: Addr::v4([10, 1, 0, who]),
                lo_port: 1000 + u16::from(who),
                hi_port: 80,
                proto: if tcp { proto::TCP } else { proto::UDP },
                ..FlowKey::default()
            };
            PacketMeta {
                key,
                ts: Nanos(ts),
                clock: Nanos(newest),
                ip_bytes: 40 + u32::from(who),
                direction: if forward { Direction::LoToHi } else { Direction::HiToLo },
                flags: TcpFlags(if tcp { flags & 0x1f } else { 0 }),
                has_tcp: tcp,
                window: 1,
                // Some SYNs are of another connection.
                seq: if back % 2 == 1 && flags == TcpFlags::SYN { 1 << 20 } else { 0 },
                ..PacketMeta::default()
            }
        })
        .collect()
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    // Few keys and flags that open and close often; gaps from nothing to beyond every timeout.
    let flags = prop_oneof![Just(0x10u8), Just(0x02), Just(0x12), Just(0x11), Just(0x14), Just(0x18)];
    let gap = prop_oneof![0..1_000_000u64, 0..2_000_000_000u64, Just(11_000_000_000u64), Just(40_000_000_000u64)];
    proptest::collection::vec((0..12u8, any::<bool>(), flags, gap, 0..3_000_000u64), 1..600)
}

fn run(packets: &[PacketMeta], timeouts: Timeouts, batch: usize, flows_max: u32) -> (Vec<FlowRecord>, FlowTable) {
    let mut table = FlowTable::new(FlowTableConfig { flows_max, timeouts, side_bytes_max: 1 << 12 }).unwrap();
    let mut out = Records::default();
    for batch in packets.chunks(batch) {
        table.process(batch, &mut out);
    }
    table.finish(packets.last().map_or(Nanos::ZERO, |p| p.clock), &mut out);
    (out.0, table)
}

proptest! {
    #[test]
    fn same_records_as_the_model(steps in steps(), batch in 1usize..200, off in any::<bool>()) {
        let timeouts = if off { Timeouts::OFF } else {
            Timeouts {
                tcp_idle: Nanos::from_secs(10),
                udp_idle: Nanos::from_secs(5),
                closed: Nanos::from_secs(2),
                active: Nanos::from_secs(20),
                ..Timeouts::default()
            }
        };
        let packets = packets(&steps);
        let (records, table) = run(&packets, timeouts, batch, 1024);
        // Names of flows are the table's own; everything else the model works out for itself.
        let mut ids = HashMap::new();
        for p in &packets {
            let (alone, _) = run(std::slice::from_ref(p), timeouts, 1, 16);
            ids.insert((p.key, p.ts.0), alone[0].flow_id);
        }
        let mut model = Model { timeouts, flows: HashMap::new(), lines: Vec::new() };
        for p in &packets {
            model.packet(p, &ids);
        }
        let want = model.finish(packets.last().unwrap().clock.0, &ids);
        let mut got: Vec<Line> = records.iter().map(line).collect();
        got.sort();
        prop_assert_eq!(got, want);
        let counts = table.counts();
        prop_assert_eq!(counts.active, 0);
        prop_assert_eq!(counts.exported.iter().sum::<u64>(), records.len() as u64);
        prop_assert_eq!(counts.created, records.iter().filter(|r| r.end_reason != EndReason::Active).count() as u64);
    }

    /// What flows tell adds up, on each side of every turn, to the packets that came there: with the sweep anywhere between
    /// two turns, timeouts, parts and evictions.
    #[test]
    fn flows_tell_what_was_sent_between_two_turns(
        steps in steps(),
        turns in proptest::collection::vec((1usize..80, 0usize..40), 1..40),
        flows_max in prop_oneof![Just(1024u32), 16u32..24],
    ) {
        let timeouts = Timeouts { active: Nanos::from_secs(20), ..Timeouts::default() };
        let packets = packets(&steps);
        let mut table = FlowTable::new(FlowTableConfig { flows_max, timeouts, side_bytes_max: 1 << 12 }).unwrap();
        table.want_deltas().expect("memory");
        let mut out = Told::default();
        // By turn and (key, direction): packets and bytes.
        let mut wanted: Vec<HashMap<(FlowKey, bool), (u64, u64)>> = vec![HashMap::new()];
        let (mut turns, mut left) = (turns.into_iter().cycle(), 0);
        let mut slots = 0;
        for packet in &packets {
            if left == 0 {
                // What is swept before the turn depends on how far the sweep had come.
                while !table.sweep_deltas(3, &mut out) {}
                (left, slots) = turns.next().unwrap();
                table.turn();
                out.0.push(HashMap::new());
                wanted.push(HashMap::new());
            }
            left -= 1;
            table.process(std::slice::from_ref(packet), &mut out);
            table.sweep_deltas(slots, &mut out);
            let sent = wanted.last_mut().unwrap().entry((packet.key, packet.direction == Direction::LoToHi)).or_default();
            *sent = (sent.0 + 1, sent.1 + u64::from(packet.ip_bytes));
        }
        table.finish(packets.last().unwrap().clock, &mut out);
        prop_assert_eq!(out.0, wanted);
    }

    /// At the cap flows are cut short, never lost: packets and bytes add up, and each eviction is a record.
    #[test]
    fn nothing_is_lost_at_the_cap(steps in steps(), batch in 1usize..200) {
        let mut packets = packets(&steps);
        for (i, p) in packets.iter_mut().enumerate() {
            // A new flow for every second packet.
            p.key.vlan = (i / 2) as u16;
        }
        let (records, table) = run(&packets, Timeouts::default(), batch, 16);
        let total: u64 = records.iter().map(|r| r.pkts_o + r.pkts_r).sum();
        prop_assert_eq!(total, packets.len() as u64);
        let bytes: u64 = records.iter().map(|r| r.bytes_o + r.bytes_r).sum();
        prop_assert_eq!(bytes, packets.iter().map(|p| u64::from(p.ip_bytes)).sum::<u64>());
        let evicted = records.iter().filter(|r| r.end_reason == EndReason::Evicted).count() as u64;
        prop_assert_eq!(evicted, table.counts().exported[EndReason::Evicted as usize - 1]);
    }

    /// With any timeouts and any cap, through emergency mode and evictions: each record says what the model counted for
    /// its flow, and the flow had a reason to end.
    #[test]
    fn every_record_is_justified(
        steps in steps(),
        flows_max in 16u32..64,
        idle in 1u64..20,
        closed in 1u64..5,
        active in 2u64..40,
    ) {
        let timeouts = Timeouts {
            tcp_idle: Nanos::from_secs(idle * 2),
            udp_idle: Nanos::from_secs(idle),
            closed: Nanos::from_secs(closed),
            active: Nanos::from_secs(active),
            ..Timeouts::default()
        };
        let mut packets = packets(&steps);
        for (i, p) in packets.iter_mut().enumerate() {
            // Flows come faster than they end, and some go on all the time.
            p.key.vlan = if i % 5 == 0 { 0 } else { (i / 7) as u16 };
        }
        let mut table = FlowTable::new(FlowTableConfig { flows_max, timeouts, side_bytes_max: 1 << 12 }).unwrap();
        let mut model = Model { timeouts, flows: HashMap::new(), lines: Vec::new() };
        let (mut emergencies, mut total) = (0, 0);
        for p in &packets {
            let was_full = table.counts().active == u64::from(flows_max);
            let emergency_before = table.counts().emergency;
            let mut out = Records::default();
            table.process(std::slice::from_ref(p), &mut out);
            let emergency = emergency_before || table.counts().emergency;
            emergencies += u64::from(emergency);
            // What ended before the packet was counted does not have it; what the sweep ended afterwards may.
            let (before, after): (Vec<_>, Vec<_>) = out.0.iter().partition(|r| !model.includes(r, p));
            for r in before {
                total += model.settle(r, p, was_full, emergency)?;
            }
            model.count(p);
            for r in after {
                total += model.settle(r, p, was_full, emergency)?;
            }
            prop_assert!(table.counts().active <= u64::from(flows_max));
            prop_assert_eq!(table.counts().active as usize, model.flows.len());
        }
        let mut out = Records::default();
        table.finish(packets.last().unwrap().clock, &mut out);
        for r in &out.0 {
            total += model.settle(r, packets.last().unwrap(), false, true)?;
        }
        prop_assert!(model.flows.is_empty());
        prop_assert_eq!(total, packets.len() as u64);
        let counts = table.counts();
        let ended: u64 = counts.exported.iter().sum::<u64>() - counts.exported[EndReason::Active as usize - 1];
        prop_assert_eq!(counts.created, ended);
        if emergencies > 0 {
            prop_assert!(counts.emergencies > 0);
        }
    }

    /// A walk in slices, with packets, parts, ends, evictions and new flows in the slots of old ones between them: each flow
    /// is shown at most once, with what the model has counted at that moment and under the id its record will have; and
    /// every flow that was there from the first slice to the last is shown.
    #[test]
    fn a_walk_shows_each_flow_once_and_all_that_stay(
        steps in steps(),
        flows_max in 16u32..64,
        idle in 1u64..20,
        active in 2u64..40,
        slice in 1usize..9,
        room in 1usize..9,
        every in 1usize..6,
    ) {
        let timeouts = Timeouts {
            tcp_idle: Nanos::from_secs(idle * 2),
            udp_idle: Nanos::from_secs(idle),
            closed: Nanos::from_secs(1),
            active: Nanos::from_secs(active),
            ..Timeouts::default()
        };
        let mut packets = packets(&steps);
        for (i, p) in packets.iter_mut().enumerate() {
            p.key.vlan = if i % 5 == 0 { 0 } else { (i / 7) as u16 };
        }
        let mut table = FlowTable::new(FlowTableConfig { flows_max, timeouts, side_bytes_max: 1 << 12 }).unwrap();
        let mut model = Model { timeouts, flows: HashMap::new(), lines: Vec::new() };
        let mut walk: Option<Walk> = None;
        let (mut shown_in_all, mut walks) = (0, 0);
        for (i, p) in packets.iter().enumerate() {
            let mut out = Records::default();
            table.process(std::slice::from_ref(p), &mut out);
            let (before, after): (Vec<_>, Vec<_>) = out.0.iter().partition(|r| !model.includes(r, p));
            for r in before {
                Walk::record(&mut walk, &model, r)?;
                model.settle(r, p, true, true)?;
            }
            model.count(p);
            for r in after {
                Walk::record(&mut walk, &model, r)?;
                model.settle(r, p, true, true)?;
            }
            if i % every != 0 {
                continue;
            }
            let walk_now = walk.get_or_insert_with(|| {
                let there = model.flows.iter().map(|(key, f)| (*key, f.first_ts)).collect();
                Walk { walk: table.walk(), there, shown: HashMap::new() }
            });
            let mut seen = Vec::new();
            let (count, over) = table.step(&mut walk_now.walk, slice, |r, _| {
                let taken = seen.len() < room;
                if taken {
                    seen.push(*r);
                }
                taken
            });
            prop_assert_eq!(count, seen.len());
            prop_assert!(count <= slice);
            // Nothing is in the way of a slice but room and the end.
            prop_assert!(over || count > 0 || table.counts().active < u64::from(flows_max));
            for r in &seen {
                walk_now.show(&model, r)?;
                shown_in_all += 1;
            }
            if over {
                let walk_now = walk.take().unwrap();
                for stayed in &walk_now.there {
                    prop_assert!(walk_now.shown.contains_key(stayed), "{:?} was there all the time", stayed);
                }
                walks += 1;
            }
        }
        prop_assert!(packets.len() < 100 || shown_in_all > 0);
        prop_assert!(packets.len() < 500 || walks > 0);
    }
}

/// A walk, and what must hold at its end.
struct Walk {
    walk: FlowWalk,
    /// Flows that were there when it began, and still are: by key and first packet.
    there: HashSet<(FlowKey, u64)>,
    /// The ids under which flows were shown.
    shown: HashMap<(FlowKey, u64), u64>,
}

impl Walk {
    fn show(&mut self, model: &Model, r: &FlowRecord) -> Result<(), TestCaseError> {
        let key = model.key_of(r);
        let Some(f) = model.flows.get(&key) else {
            return Err(TestCaseError::fail(format!("a flow that is not there: {r:?}")));
        };
        prop_assert_eq!(f.counts, [r.pkts_o, r.pkts_r, r.bytes_o, r.bytes_r]);
        prop_assert_eq!((f.start, f.end, f.part), (r.start.0, r.end.0, r.part));
        prop_assert_eq!((f.flags, r.end_reason), ([r.flags_o, r.flags_r], EndReason::Active));
        prop_assert_eq!(self.shown.insert((key, f.first_ts), r.flow_id), None, "shown twice");
        Ok(())
    }

    /// A record was exported: it has the id its flow was shown under, and a flow that ended is no longer waited for.
    fn record(walk: &mut Option<Walk>, model: &Model, r: &FlowRecord) -> Result<(), TestCaseError> {
        let (Some(walk), key) = (walk, model.key_of(r)) else { return Ok(()) };
        let flow = (key, model.flows[&key].first_ts);
        if let Some(id) = walk.shown.get(&flow) {
            prop_assert_eq!(*id, r.flow_id);
        }
        if r.end_reason != EndReason::Active {
            walk.there.remove(&flow);
        }
        Ok(())
    }
}

impl Model {
    fn key_of(&self, r: &FlowRecord) -> FlowKey {
        let keys = self.flows.keys().copied();
        keys.filter(|k| k.proto == r.proto && k.vlan == r.vlan)
            .find(|k| {
                [(k.lo, k.lo_port), (k.hi, k.hi_port)].contains(&(r.src_ip, r.src_port))
                    && [k.lo, k.hi].contains(&r.dst_ip)
            })
            .unwrap_or_default()
    }

    /// Whether the record has counted `p`, which the model has not yet.
    fn includes(&self, r: &FlowRecord, p: &PacketMeta) -> bool {
        let mine = self.flows.get(&self.key_of(r)).map_or(0, |f| f.counts[0] + f.counts[1]);
        let of_p = p.key.proto == r.proto && p.key.vlan == r.vlan && [p.key.lo, p.key.hi].contains(&r.src_ip);
        of_p && r.pkts_o + r.pkts_r != mine
    }

    fn count(&mut self, p: &PacketMeta) {
        let none = HashMap::new();
        let timeouts = std::mem::replace(&mut self.timeouts, Timeouts::OFF);
        self.packet(p, &none);
        self.timeouts = timeouts;
    }

    /// Checks a record against what was counted and whether the flow, or the part, had to end; gives its packets.
    fn settle(
        &mut self,
        r: &FlowRecord,
        p: &PacketMeta,
        was_full: bool,
        emergency: bool,
    ) -> Result<u64, TestCaseError> {
        let key = self.key_of(r);
        let Some(f) = self.flows.get_mut(&key) else {
            return Err(TestCaseError::fail(format!("a record of no flow: {r:?}")));
        };
        prop_assert_eq!(f.counts, [r.pkts_o, r.pkts_r, r.bytes_o, r.bytes_r]);
        prop_assert_eq!((f.start, f.end, f.part), (r.start.0, r.end.0, r.part));
        prop_assert_eq!(f.flags, [r.flags_o, r.flags_r]);
        let idle = p.clock.0 - f.last_clock;
        let least = |t: Nanos| if emergency { t.0.min(2_000_000_000).min(t.0 / 4) } else { t.0 };
        let wanted = if key.proto == proto::TCP { self.timeouts.tcp_idle } else { self.timeouts.udp_idle };
        match r.end_reason {
            EndReason::Active => prop_assert!(p.clock.0 - f.part_clock >= self.timeouts.active.0),
            EndReason::Idle => prop_assert!(!f.closed() && idle >= least(wanted), "{idle} ns"),
            EndReason::Closed => prop_assert!(f.closed() || (key == p.key && f.is_reused(p))),
            EndReason::Evicted => prop_assert!(was_full),
            EndReason::Shutdown => prop_assert!(!f.closed()),
        }
        if r.end_reason == EndReason::Active {
            (f.start, f.end, f.part_clock) = (p.ts.0, p.ts.0, p.clock.0);
            (f.counts, f.flags) = ([0; 4], [0; 2]);
            f.part += 1;
        } else {
            self.flows.remove(&key);
        }
        Ok(r.pkts_o + r.pkts_r)
    }
}
