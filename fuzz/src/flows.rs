//! Frames through fragments, flow table and inspector, as a worker does it, and what has to add up in the end.

use crate::decode::{LINKS, check_packet};
use flowtable::{
    EndReason, FlowInView, FlowRecord, FlowSink, FlowTable, FlowTableConfig, FragmentCache, FragmentPlace, HintOwner,
    HintSlot, Timeouts,
};
use hints::{DnsRecord, Hint, HintSink, InspectLimits, Inspector, Payload};
use std::collections::HashMap;
use wire::{Addr, Direction, FlowKey, Frame, Nanos, PacketMeta, TapId};

/// What the pipeline lets the clock reach at most: the table marks free slots with the end of time.
const CLOCK_MAX: Nanos = Nanos(u64::MAX - 1);

/// Five bytes of settings, then frames behind a step in time and their length (16 bits, little-endian).
pub fn flows(bytes: &[u8]) {
    let Some((&[link, sizes, timeouts, start, batch], mut left)) = bytes.split_first_chunk() else { return };
    let mut worker = Worker::new(sizes, timeouts);
    let link = LINKS[usize::from(link) % LINKS.len()];
    let mut ts = first_time(start);
    let mut frames = Vec::new();
    while let Some((&[step, low, high], rest)) = left.split_first_chunk() {
        let (data, rest) = rest.split_at(rest.len().min(usize::from(u16::from_le_bytes([low, high]))));
        left = rest;
        ts = step_in_time(ts, step);
        frames.push(Frame { data, wire_len: data.len() as u32, ts, link, tap: TapId(u16::from(step & 1)) });
    }
    for frames in frames.chunks(usize::from(batch & 63) + 1) {
        worker.batch(frames);
    }
    worker.finish();
}

/// Captures begin in this century, at the epoch, or shortly before the end of time.
fn first_time(start: u8) -> Nanos {
    match start & 3 {
        0 => Nanos::from_secs(1_700_000_000),
        1 => Nanos::ZERO,
        2 => CLOCK_MAX - Nanos(u64::from(start) << 20),
        _ => Nanos(u64::from(start) << 56),
    }
}

/// From nothing to years ahead, or back.
fn step_in_time(ts: Nanos, step: u8) -> Nanos {
    let by = Nanos(u64::from(step >> 1 & 3) << (4 * u32::from(step >> 3 & 15)));
    if step & 0x80 == 0 { ts + by } else { ts - by }
}

/// Packets and bytes of a flow key, all flows of it together.
type Sums = HashMap<FlowKey, (u64, u64)>;

struct Worker {
    table: FlowTable,
    inspector: Inspector,
    fragments: FragmentCache,
    fragments_seen: u64,
    /// Of those, how many wait for their first one.
    waiting: u64,
    flows_max: u64,
    clock: Nanos,
    sent: Sums,
    told: Told,
}

/// What came out.
#[derive(Default)]
struct Told {
    records: u64,
    sums: Sums,
}

impl Worker {
    fn new(sizes: u8, timeouts: u8) -> Worker {
        let flows_max = 16 + u32::from(sizes & 15);
        let side_bytes_max = 64 * usize::from(sizes >> 4);
        let seconds = |shift: u8| Nanos::from_secs(1 << (timeouts >> shift & 3));
        let timeouts = match timeouts {
            0xff => Timeouts::OFF,
            _ => Timeouts {
                tcp_idle: seconds(0),
                udp_idle: seconds(2),
                other_idle: seconds(4),
                closed: seconds(6),
                active: seconds(2),
                split_on_reuse: timeouts & 1 == 0,
            },
        };
        let table = FlowTable::new(FlowTableConfig { flows_max, timeouts, side_bytes_max });
        let limits = InspectLimits { assemblies_max: 4, dns_pending_max: 4, ..InspectLimits::default() };
        Worker {
            table: table.expect("sizes and timeouts are in their range"),
            inspector: Inspector::new(limits),
            fragments: FragmentCache::new(8),
            fragments_seen: 0,
            waiting: 0,
            flows_max: u64::from(flows_max),
            clock: Nanos::ZERO,
            sent: Sums::new(),
            told: Told::default(),
        }
    }

    fn batch(&mut self, frames: &[Frame<'_>]) {
        let (mut packets, mut of) = (Vec::new(), Vec::new());
        for frame in frames {
            self.clock = self.clock.max(frame.ts.min(CLOCK_MAX));
            if self.fragments.is_due(self.clock) {
                self.fragments.give_up(self.clock);
                self.released(&mut packets, &mut of);
            }
            let Ok(mut packet) = check_packet(frame) else { continue };
            packet.clock = self.clock;
            packet.ts = packet.ts.min(CLOCK_MAX);
            let mut place = FragmentPlace::On;
            if packet.fragment {
                self.fragments_seen += 1;
                place = self.fragments.assign(&mut packet);
            }
            if place == FragmentPlace::Waits {
                self.waiting += 1;
                continue;
            }
            self.send(packet, packet.payload(frame), &mut packets, &mut of);
            if place == FragmentPlace::Leads {
                assert!(self.released(&mut packets, &mut of) > 0);
            }
        }
        self.process(&packets, &of);
    }

    /// Fragments that wait no longer go on; says how many.
    fn released(&mut self, packets: &mut Vec<PacketMeta>, of: &mut Vec<&[u8]>) -> u64 {
        let released: Vec<_> = self.fragments.released(self.clock).drain(..).collect();
        let count = released.len() as u64;
        self.waiting -= count;
        released.into_iter().for_each(|packet| self.send(packet, &[], packets, of));
        count
    }

    fn send<'a>(
        &mut self,
        packet: PacketMeta,
        payload: &'a [u8],
        packets: &mut Vec<PacketMeta>,
        of: &mut Vec<&'a [u8]>,
    ) {
        let key = &packet.key;
        assert!((key.lo, key.lo_port) <= (key.hi, key.hi_port), "{key:?}");
        assert!(packet.fragment_offset == 0 || payload.is_empty(), "{packet:?}");
        let sum = self.sent.entry(packet.key).or_default();
        *sum = (sum.0 + 1, sum.1 + u64::from(packet.ip_bytes));
        packets.push(packet);
        of.push(payload);
    }

    fn process(&mut self, packets: &[PacketMeta], of: &[&[u8]]) {
        let mut sink = Looking { told: &mut self.told, inspector: &mut self.inspector, payloads: of };
        self.table.process(packets, &mut sink);
        self.table.advance(self.clock, &mut sink);
        self.inspector.advance(self.clock, &mut DnsOnly);
        self.check();
    }

    fn finish(mut self) {
        let (mut packets, mut of) = (Vec::new(), Vec::new());
        self.fragments.give_up(Nanos::MAX);
        self.released(&mut packets, &mut of);
        assert_eq!(self.waiting, 0);
        self.process(&packets, &of);
        let mut sink = Looking { told: &mut self.told, inspector: &mut self.inspector, payloads: &[] };
        self.table.finish(self.clock, &mut sink);
        self.inspector.finish(&mut DnsOnly);
        self.check();
        assert_eq!(self.table.counts().active, 0);
        assert_eq!(self.told.sums, self.sent, "packets and bytes in, packets and bytes out");
    }

    fn check(&self) {
        let counts = self.table.counts();
        let parts = counts.exported[EndReason::Active as usize - 1];
        let exported: u64 = counts.exported.iter().sum();
        assert_eq!(counts.created, exported - parts + counts.active);
        assert_eq!(exported, self.told.records);
        assert!(counts.active <= self.flows_max);
        let fragments = self.fragments.counts();
        let gone_on = fragments.first + fragments.assigned + fragments.unassigned;
        assert_eq!(gone_on + self.waiting, self.fragments_seen);
        assert!(fragments.overlapping <= fragments.assigned && fragments.evicted <= fragments.first);
    }
}

struct Looking<'a> {
    told: &'a mut Told,
    inspector: &'a mut Inspector,
    /// By packet of the batch.
    payloads: &'a [&'a [u8]],
}

impl FlowSink for Looking<'_> {
    fn record(&mut self, r: &FlowRecord, text: &[u8]) {
        self.told.records += 1;
        assert!(r.start <= r.end && r.pkts_o + r.pkts_r > 0, "{r:?}");
        assert!(std::str::from_utf8(text).is_ok() && text.len() == r.text.total(), "{r:?}");
        for rtt in [r.rtt_srv_life, r.rtt_cli_life].into_iter().flatten() {
            assert!(rtt.min_us <= rtt.mean_us && rtt.mean_us <= rtt.max_us, "{rtt:?}");
            assert!(rtt.min_us <= rtt.median_us && rtt.median_us <= rtt.max_us, "{rtt:?}");
        }
        for (retrans, kinds, packets) in [
            (r.retrans_o, r.fast_retrans_o.max(r.spurious_retrans_o), r.pkts_o),
            (r.retrans_r, r.fast_retrans_r.max(r.spurious_retrans_r), r.pkts_r),
        ] {
            assert!(kinds <= retrans && u64::from(retrans) <= packets, "{r:?}");
        }
        let sum = self.told.sums.entry(key_of(r)).or_default();
        *sum = (sum.0 + r.pkts_o + r.pkts_r, sum.1 + r.bytes_o + r.bytes_r);
    }

    fn payload(&mut self, at: usize, packet: &PacketMeta, flow: FlowInView, hint: HintSlot<'_>) {
        let payload = payload_of(packet, flow, self.payloads[at]);
        self.inspector.inspect(&payload, hint.progress, &mut Found(hint.flow));
    }
}

/// The key that a record's packets had.
fn key_of(r: &FlowRecord) -> FlowKey {
    let (src, dst) = ((r.src_ip, r.src_port), (r.dst_ip, r.dst_port));
    let ((lo, lo_port), (hi, hi_port)) = if src <= dst { (src, dst) } else { (dst, src) };
    FlowKey {
        lo,
        hi,
        lo_port,
        hi_port,
        proto: r.proto,
        tunnel: r.tunnel,
        vlan: r.vlan,
        vlan_inner: r.vlan_inner,
        tap: r.tap,
        tunnel_id: r.tunnel_id,
    }
}

fn payload_of<'a>(p: &PacketMeta, flow: FlowInView, bytes: &'a [u8]) -> Payload<'a> {
    let (lo, hi): ((Addr, u16), (Addr, u16)) = ((p.key.lo, p.key.lo_port), (p.key.hi, p.key.hi_port));
    let ((src, src_port), (dst, dst_port)) = if p.direction == Direction::LoToHi { (lo, hi) } else { (hi, lo) };
    Payload {
        bytes,
        len: p.payload_len,
        seq: p.seq,
        missing: flow.missing,
        proto: p.key.proto,
        src_port,
        dst_port,
        from_originator: flow.from_originator,
        src,
        dst,
        flow_id: flow.flow_id,
        tap: p.key.tap,
        vlan: p.key.vlan,
        ts: p.ts,
        clock: p.clock,
    }
}

/// Hints go to the flow.
struct Found<'a>(HintOwner<'a>);

impl HintSink for Found<'_> {
    fn hint(&mut self, hint: &Hint<'_>) {
        self.0.keep(hint);
    }

    fn dns(&mut self, record: &DnsRecord, text: &[u8]) {
        check_dns(record, text);
    }
}

/// Where no flow is at hand.
struct DnsOnly;

impl HintSink for DnsOnly {
    fn hint(&mut self, _: &Hint<'_>) {
        panic!("no payload is being looked at");
    }

    fn dns(&mut self, record: &DnsRecord, text: &[u8]) {
        check_dns(record, text);
    }
}

pub(crate) fn check_dns(record: &DnsRecord, text: &[u8]) {
    assert_eq!(usize::from(record.question_len) + usize::from(record.answers_len), text.len());
    assert!(std::str::from_utf8(text).is_ok());
    assert!(record.has_query || record.rcode.is_some(), "a question or its answer was seen");
    assert!(record.latency_us.is_none() || record.has_query && record.rcode.is_some());
}
