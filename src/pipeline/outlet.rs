//! What leaves a worker: flow records to the writer, ticks to the detectors. Bounded rings, a policy when full, counted.

use super::shared::WorkerGauges;
use capture::ledger::QueueLedger;
use detect::{OpeningKind, Tick, TickFeed};
use flowtable::{FlowRecord, FlowSink, TcpOpening};
use sketches::HyperLogLog;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::Duration;
use wire::{Nanos, PacketMeta};

/// What to do when a ring is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WhenFull {
    /// Wait: a replay has time.
    Wait,
    /// Drop and count: a live worker has none.
    Drop,
}

impl From<WhenFull> for export::WhenFull {
    fn from(when_full: WhenFull) -> export::WhenFull {
        match when_full {
            WhenFull::Wait => export::WhenFull::Wait,
            WhenFull::Drop => export::WhenFull::Drop,
        }
    }
}

pub(crate) struct Outlet {
    records: rtrb::Producer<FlowRecord>,
    ticks: SyncSender<Tick>,
    feed: TickFeed,
    when_full: WhenFull,
    ledger: Arc<QueueLedger>,
    gauges: Arc<WorkerGauges>,
    /// Distinct originators of exported flows.
    sources: Arc<HyperLogLog>,
}

impl Outlet {
    pub(super) fn new(
        records: rtrb::Producer<FlowRecord>,
        ticks: SyncSender<Tick>,
        feed: TickFeed,
        when_full: WhenFull,
        ledger: Arc<QueueLedger>,
        gauges: Arc<WorkerGauges>,
        sources: Arc<HyperLogLog>,
    ) -> Outlet {
        Outlet { records, ticks, feed, when_full, ledger, gauges, sources }
    }

    /// Time has come to `clock`: hands over the tick that it closes, if it does.
    #[inline]
    pub(super) fn advance(&mut self, clock: Nanos) {
        if let Some(tick) = self.feed.advance(clock) {
            self.send(tick);
        }
    }

    /// Counts packets of one tick for the traffic detectors.
    #[inline]
    pub(super) fn traffic(&mut self, packets: &[PacketMeta]) {
        for run in packets.chunk_by(|a, b| a.key.tap == b.key.tap) {
            let bytes = run.iter().map(|p| u64::from(p.frame_bytes)).sum();
            self.feed.traffic(run[0].key.tap, run.len() as u64, bytes);
        }
    }

    /// From here on waits for room, also on a live source: nothing comes in any more that waiting could cost.
    pub(super) fn wait_when_full(&mut self) {
        self.when_full = WhenFull::Wait;
    }

    pub(super) fn finish(mut self, clock: Nanos) {
        let tick = self.feed.finish(clock);
        self.send(tick);
    }

    fn send(&mut self, tick: Tick) {
        match self.when_full {
            // An error means that the detectors are gone, which their own thread reports.
            WhenFull::Wait => drop(self.ticks.send(tick)),
            WhenFull::Drop => {
                if let Err(TrySendError::Full(tick)) = self.ticks.try_send(tick) {
                    self.gauges.tick_dropped();
                    self.feed.recycle(tick);
                }
            }
        }
    }

    #[cold]
    fn ring_full(&mut self, mut record: FlowRecord) {
        while self.when_full == WhenFull::Wait && !self.records.is_abandoned() {
            std::thread::sleep(Duration::from_micros(100));
            match self.records.push(record) {
                Ok(()) => return,
                Err(rtrb::PushError::Full(back)) => record = back,
            }
        }
        self.ledger.worker.records_ring_full.add(1);
    }
}

impl FlowSink for Outlet {
    #[inline]
    fn record(&mut self, record: &FlowRecord, _text: &[u8]) {
        self.ledger.worker.records.add(1);
        self.sources.insert(source_hash(record));
        if let Err(rtrb::PushError::Full(record)) = self.records.push(*record) {
            self.ring_full(record);
        }
    }

    #[inline]
    fn syn(&mut self, opening: &TcpOpening) {
        self.feed.opening(OpeningKind::Syn, opening);
    }

    #[inline]
    fn established(&mut self, opening: &TcpOpening) {
        self.feed.opening(OpeningKind::Established, opening);
    }
}

fn source_hash(record: &FlowRecord) -> u64 {
    let bits = u128::from_be_bytes(record.src_ip.0);
    sketches::mix((bits >> 64) as u64 ^ sketches::mix(bits as u64))
}
