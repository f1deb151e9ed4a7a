//! One worker: flow table, hints, sketches and detector feed over decoded packets, run to completion.

use super::active::{IDLE_TIME, TableCopy};
use super::ingest::Stage;
use super::outlet::Outlet;
use super::payloads::{From, Payloads};
use super::settings::LiveSettings;
use super::shared::{WorkerGauges, WorkerView};
use flowtable::{
    FlowDelta, FlowInView, FlowRecord, FlowSink, FlowTable, FlowTableConfig, FlowTableError, HintSlot, TcpOpening,
};
use hints::{DnsRecord, Hint, HintSink, InspectLimits, Inspector, Payload};
use std::sync::Arc;
use std::time::Instant;
use wire::{Direction, Nanos, PacketMeta};

/// Flows that tell what they sent between two batches, when time has turned: some 50 µs where all of them have something to tell.
const SWEEP_FLOWS: usize = 512;

pub(crate) struct Worker {
    table: FlowTable,
    inspector: Inspector,
    outlet: Outlet,
    gauges: Arc<WorkerGauges>,
    settings: Arc<LiveSettings>,
    settings_seen: u64,
    /// Tick of the last publication of rare counts.
    published_tick: u64,
    /// Last: it tells that there will be no more records.
    copy: TableCopy,
}

impl Worker {
    pub(super) fn new(
        config: FlowTableConfig,
        limits: InspectLimits,
        outlet: Outlet,
        view: &WorkerView,
        settings: Arc<LiveSettings>,
    ) -> Result<Worker, FlowTableError> {
        let (mut table, mut outlet) = (FlowTable::new(config)?, outlet);
        if outlet.talkers().is_some_and(|talkers| talkers.wants_deltas()) {
            table.want_deltas()?;
        }
        let (gauges, copy) = (view.gauges.clone(), TableCopy::new(view.desk.clone()));
        gauges.capacity(u64::from(config.flows_max));
        let inspector = Inspector::new(limits);
        Ok(Worker { table, inspector, outlet, gauges, settings, settings_seen: 0, published_tick: 0, copy })
    }

    /// Ends every flow, closes the last tick and lets go of the rings, which tells writer and detectors.
    pub(crate) fn finish(mut self, clock: Nanos) {
        // A whole table is far more than a ring holds.
        self.outlet.wait_when_full();
        self.outlet.advance(clock);
        self.turn_if_due(clock);
        self.table.finish(clock, &mut self.outlet);
        self.inspector.finish(&mut DnsOnly(&mut self.outlet));
        self.published_tick = 0;
        self.publish(clock);
        self.outlet.finish(clock);
    }

    /// Packets of one tick.
    #[inline]
    fn run(&mut self, packets: &[PacketMeta], payloads: &impl Payloads) {
        self.outlet.traffic(packets);
        let mut sink = Looking { outlet: &mut self.outlet, inspector: &mut self.inspector, payloads };
        self.table.process(packets, &mut sink);
    }

    /// Windows of the sketches end, or are refreshed, where time has come to that.
    #[inline]
    fn turn_if_due(&mut self, clock: Nanos) {
        if self.outlet.talkers().is_some_and(|talkers| talkers.is_due(clock)) {
            self.turn(clock);
        }
    }

    #[cold]
    fn turn(&mut self, clock: Nanos) {
        let is_swept = self.table.is_swept();
        if !self.outlet.talkers().is_some_and(|talkers| talkers.must_turn(clock, is_swept)) {
            return;
        }
        self.sweep(usize::MAX);
        let Some(talkers) = self.outlet.talkers() else { return };
        talkers.turn(clock);
        let flows = if talkers.has_time() { usize::MAX } else { 0 };
        self.table.turn();
        if self.table.sweep_deltas(flows, &mut self.outlet)
            && let Some(talkers) = self.outlet.talkers()
        {
            talkers.swept();
        }
    }

    /// Has some flows tell what they sent before time turned. Gives whether others are left.
    fn sweep(&mut self, flows: usize) -> bool {
        if self.table.is_swept() {
            return false;
        }
        let is_swept = self.table.sweep_deltas(flows, &mut self.outlet);
        if let Some(talkers) = self.outlet.talkers().filter(|_| is_swept) {
            talkers.swept();
        }
        !is_swept
    }

    fn publish(&mut self, clock: Nanos) {
        self.gauges.publish(&self.table.counts(), clock);
        let tick = detect::tick_of(clock);
        if tick != self.published_tick {
            self.published_tick = tick;
            let counts = self.inspector.counts();
            self.gauges.publish_rare(|rare| rare.hints = counts);
            if let Some(talkers) = self.outlet.talkers() {
                talkers.flush();
            }
        }
    }
}

impl Stage for Worker {
    fn packets(&mut self, packets: &[PacketMeta], payloads: &impl Payloads) -> usize {
        let (Some(first), Some(last)) = (packets.first(), packets.last()) else { return 0 };
        if self.settings.changed(&mut self.settings_seen) {
            self.settings.apply(&mut self.table);
        }
        if detect::tick_of(first.clock) == detect::tick_of(last.clock) {
            self.outlet.advance(first.clock);
            self.turn_if_due(first.clock);
            self.run(packets, payloads);
        } else {
            let mut from = 0;
            for run in packets.chunk_by(|a, b| detect::tick_of(a.clock) == detect::tick_of(b.clock)) {
                self.outlet.advance(run[0].clock);
                self.turn_if_due(run[0].clock);
                self.run(run, &From { all: payloads, from });
                from += run.len();
            }
        }
        self.inspector.advance(last.clock, &mut DnsOnly(&mut self.outlet));
        self.sweep(SWEEP_FLOWS);
        self.publish(last.clock);
        if self.copy.is_wanted() {
            self.copy.slice(&self.table, self.outlet.ledger());
        }
        packets.len()
    }

    fn advance(&mut self, clock: Nanos) {
        self.outlet.advance(clock);
        self.turn_if_due(clock);
        self.table.advance(clock, &mut self.outlet);
        self.inspector.advance(clock, &mut DnsOnly(&mut self.outlet));
        if !self.table.is_swept() {
            let since = Instant::now();
            while self.sweep(SWEEP_FLOWS) && since.elapsed() < IDLE_TIME {}
        }
        self.publish(clock);
        if self.copy.is_wanted() {
            self.copy.idle_slices(&self.table, self.outlet.ledger());
        }
    }
}

/// The outlet, with payloads and what looks at them.
struct Looking<'a, P> {
    outlet: &'a mut Outlet,
    inspector: &'a mut Inspector,
    payloads: &'a P,
}

impl<P: Payloads> FlowSink for Looking<'_, P> {
    #[inline]
    fn record(&mut self, record: &FlowRecord, text: &[u8]) {
        self.outlet.record(record, text);
    }

    #[inline]
    fn delta(&mut self, delta: &FlowDelta<'_>, is_before: bool) {
        self.outlet.delta(delta, is_before);
    }

    #[inline]
    fn begun(&mut self, first: &PacketMeta, originator: Direction) {
        self.outlet.begun(first, originator);
    }

    #[inline]
    fn syn(&mut self, opening: &TcpOpening) {
        self.outlet.syn(opening);
    }

    #[inline]
    fn established(&mut self, opening: &TcpOpening) {
        self.outlet.established(opening);
    }

    #[inline]
    fn payload(&mut self, at: usize, packet: &PacketMeta, flow: FlowInView, hint: HintSlot<'_>) {
        let bytes = self.payloads.payload(at);
        if !bytes.is_empty() {
            self.inspector.inspect(
                &payload_of(packet, flow, bytes),
                hint.progress,
                &mut Found { outlet: self.outlet, flow: hint.flow },
            );
        }
    }
}

/// A payload as the inspector wants it.
#[inline]
fn payload_of<'a>(p: &PacketMeta, flow: FlowInView, bytes: &'a [u8]) -> Payload<'a> {
    let k = &p.key;
    let (src, src_port, dst, dst_port) = match p.direction {
        Direction::LoToHi => (k.lo, k.lo_port, k.hi, k.hi_port),
        Direction::HiToLo => (k.hi, k.hi_port, k.lo, k.lo_port),
    };
    Payload {
        bytes,
        len: p.payload_len,
        seq: p.seq,
        missing: flow.missing,
        proto: k.proto,
        src_port,
        dst_port,
        from_originator: flow.from_originator,
        src,
        dst,
        flow_id: flow.flow_id,
        tap: k.tap,
        vlan: k.vlan,
        ts: p.ts,
        clock: p.clock,
    }
}

/// Hints go to the flow, DNS transactions to the writer.
struct Found<'a, 'b> {
    outlet: &'a mut Outlet,
    flow: flowtable::HintOwner<'b>,
}

impl HintSink for Found<'_, '_> {
    fn hint(&mut self, hint: &Hint<'_>) {
        self.flow.keep(hint);
    }

    fn dns(&mut self, record: &DnsRecord, text: &[u8]) {
        self.outlet.dns(record, text);
    }
}

/// Where no flow is at hand.
struct DnsOnly<'a>(&'a mut Outlet);

impl HintSink for DnsOnly<'_> {
    fn hint(&mut self, _: &Hint<'_>) {}

    fn dns(&mut self, record: &DnsRecord, text: &[u8]) {
        self.0.dns(record, text);
    }
}
