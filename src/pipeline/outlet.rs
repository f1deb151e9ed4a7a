//! What leaves a worker: flow records to the writer, ticks to the detectors, counts to the sketches. Bounded, a policy when
//! full, counted.

use super::shared::{WorkerGauges, WorkerView};
use capture::ledger::QueueLedger;
use detect::{OpeningKind, Tick, TickFeed};
use flowtable::{FlowDelta, FlowRecord, FlowSink, TcpOpening};
use hints::DnsRecord;
use sketches::HyperLogLog;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::Duration;
use wire::{Direction, Nanos, PacketMeta};

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
    records: Lane<FlowRecord>,
    dns: Lane<DnsRecord>,
    ticks: SyncSender<Tick>,
    feed: TickFeed,
    when_full: WhenFull,
    ledger: Arc<QueueLedger>,
    gauges: Arc<WorkerGauges>,
    /// Distinct originators of exported flows.
    sources: Arc<HyperLogLog>,
    /// Sketches over windows, where there are any.
    talkers: Option<talkers::Feed>,
}

/// Rows on their way to another thread, and their texts beside them, in the same order.
pub(super) struct Lane<R> {
    rows: rtrb::Producer<R>,
    text: rtrb::Producer<u8>,
}

/// The other thread's end of a lane.
pub(super) struct LaneEnd<R> {
    pub(super) rows: rtrb::Consumer<R>,
    pub(super) text: rtrb::Consumer<u8>,
}

/// Bytes of text that may wait for each row that may wait. Rows without text are the rule, but a run of rows with much
/// text must not wait for its text alone.
const TEXT_A_ROW: usize = 64;
/// Text of at least a few rows fits whatever the number of rows.
const TEXT_MIN: usize = 1 << 16;

pub(super) fn lane<R>(rows: usize) -> (Lane<R>, LaneEnd<R>) {
    let (producer, consumer) = rtrb::RingBuffer::new(rows);
    let (text, text_end) = rtrb::RingBuffer::new((rows * TEXT_A_ROW).max(TEXT_MIN));
    (Lane { rows: producer, text }, LaneEnd { rows: consumer, text: text_end })
}

impl<R> Lane<R> {
    /// Whether the other end is gone.
    pub(super) fn is_abandoned(&self) -> bool {
        self.rows.is_abandoned()
    }

    /// `Err` if there is no room for both.
    #[inline]
    pub(super) fn push(&mut self, row: R, text: &[u8]) -> Result<(), R> {
        if !text.is_empty() {
            if self.rows.is_full() {
                return Err(row);
            }
            // The text first: who sees the row then finds it.
            if self.text.push_entire_slice(text).is_err() {
                return Err(row);
            }
        }
        self.rows.push(row).map_err(|rtrb::PushError::Full(row)| row)
    }
}

/// What the writer needs of one worker.
pub(super) struct OutletEnds {
    pub(super) records: LaneEnd<FlowRecord>,
    pub(super) dns: LaneEnd<DnsRecord>,
}

impl Outlet {
    /// `rows`: how many may wait for the writer, of each kind.
    pub(super) fn new(
        rows: usize,
        ticks: SyncSender<Tick>,
        feed: TickFeed,
        when_full: WhenFull,
        view: &WorkerView,
        talkers: Option<talkers::Feed>,
    ) -> (Outlet, OutletEnds) {
        let (records, records_end) = lane(rows);
        let (dns, dns_end) = lane((rows / 4).max(1));
        let (ledger, gauges, sources) = (view.ledger.clone(), view.gauges.clone(), view.sources.clone());
        let outlet = Outlet { records, dns, ticks, feed, when_full, ledger, gauges, sources, talkers };
        (outlet, OutletEnds { records: records_end, dns: dns_end })
    }

    /// Where its records ended.
    pub(super) fn ledger(&self) -> &QueueLedger {
        &self.ledger
    }

    /// A DNS transaction for the writer.
    #[inline]
    pub(super) fn dns(&mut self, record: &DnsRecord, text: &[u8]) {
        self.ledger.worker.dns_records.add(1);
        let mut row = *record;
        while let Err(back) = self.dns.push(row, text) {
            if self.when_full == WhenFull::Drop || self.dns.rows.is_abandoned() {
                self.ledger.worker.dns_ring_full.add(1);
                return;
            }
            std::thread::sleep(Duration::from_micros(100));
            row = back;
        }
    }

    /// The sketches, where there are any.
    #[inline]
    pub(super) fn talkers(&mut self) -> Option<&mut talkers::Feed> {
        self.talkers.as_mut()
    }

    /// Time has come to `clock`: hands over the tick that it closes, if it does.
    #[inline]
    pub(super) fn advance(&mut self, clock: Nanos) {
        if let Some(tick) = self.feed.advance(clock) {
            self.send(tick);
        }
    }

    /// Counts packets of one tick for the traffic detectors and the sketches.
    #[inline]
    pub(super) fn traffic(&mut self, packets: &[PacketMeta]) {
        for run in packets.chunk_by(|a, b| a.key.tap == b.key.tap) {
            let bytes = run.iter().map(|p| u64::from(p.frame_bytes)).sum();
            self.feed.traffic(run[0].key.tap, run.len() as u64, bytes);
        }
        if let Some(talkers) = &mut self.talkers {
            talkers.packets(packets);
        }
    }

    /// From here on waits for room, also on a live source: nothing comes in any more that waiting could cost.
    pub(super) fn wait_when_full(&mut self) {
        self.when_full = WhenFull::Wait;
    }

    pub(super) fn finish(mut self, clock: Nanos) {
        let tick = self.feed.finish(clock);
        self.send(tick);
        if let Some(talkers) = self.talkers.take() {
            talkers.finish();
        }
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
    fn ring_full(&mut self, mut record: FlowRecord, text: &[u8]) {
        while self.when_full == WhenFull::Wait && !self.records.rows.is_abandoned() {
            std::thread::sleep(Duration::from_micros(100));
            match self.records.push(record, text) {
                Ok(()) => return,
                Err(back) => record = back,
            }
        }
        self.ledger.worker.records_ring_full.add(1);
    }
}

impl FlowSink for Outlet {
    #[inline]
    fn record(&mut self, record: &FlowRecord, text: &[u8]) {
        self.ledger.worker.records.add(1);
        self.sources.insert(source_hash(record));
        if let Some(talkers) = &mut self.talkers {
            talkers.ended(record);
        }
        if let Err(record) = self.records.push(*record, text) {
            self.ring_full(record, text);
        }
    }

    #[inline]
    fn delta(&mut self, delta: &FlowDelta<'_>, is_before: bool) {
        if let Some(talkers) = &mut self.talkers {
            talkers.delta(delta, is_before);
        }
    }

    #[inline]
    fn begun(&mut self, first: &PacketMeta, originator: Direction) {
        if let Some(talkers) = &mut self.talkers {
            talkers.begun(&first.key, originator);
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
