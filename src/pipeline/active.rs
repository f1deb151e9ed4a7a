//! Flows in progress, copied out for a query: each worker hands over what its table holds, a slice after each batch.
//!
//! ```text
//! query thread ── request ──→ CopyDesk ──→ worker: a slice after each batch ── ring ──→ query thread
//! ```
//!
//! The worker never waits: where the ring is full its slice ends, and where nobody asks it loads one number a batch. Once
//! a worker is through, every flow that was in its table when it began has been copied, or its record is on the way to
//! the writer; [`Copies::settle`] waits until the writer has that, so that whoever then looks at the store misses none.

use super::outlet::{Lane, LaneEnd, lane};
use super::shared::WorkerView;
use super::writer::drain;
use capture::Wake;
use capture::ledger::QueueLedger;
use flowtable::{FlowRecord, FlowTable, FlowWalk};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

/// Flows copied between two batches: some 50 µs, no more than the batch itself takes.
const SLICE_FLOWS: usize = 256;
/// How long a worker copies, or sweeps, when no packets came: they may come any moment, and a ring of 4,096 frames is full after
/// 276 µs at 10 Gbit/s.
pub(super) const IDLE_TIME: Duration = Duration::from_micros(200);
/// Flows that may wait between a worker and the query.
const RING_FLOWS: usize = 4096;
/// How long the query sleeps when no worker has anything for it.
const PAUSE: Duration = Duration::from_micros(500);
/// How long a worker, or the writer, may do nothing before the query gives it up: as long as its clock may stand still. An
/// idle worker wakes ten times a second, but on a crowded machine a thread waits seconds for its turn.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a worker shares with those who ask for its flows.
#[derive(Default)]
#[repr(align(128))]
pub(crate) struct CopyDesk {
    /// Counts requests; a worker that has seen fewer looks at `request`.
    version: AtomicU64,
    /// Locked for a moment by who asks; the worker only tries.
    request: Mutex<Option<Request>>,
    /// The worker takes no request any more: its table is empty, its records are on their way. Release; who sees it finds
    /// the last counts in the worker's ledger.
    ended: AtomicBool,
    taken: Taken,
}

/// On lines of its own: the writer writes it all the time.
#[derive(Default)]
#[repr(align(128))]
struct Taken(AtomicU64);

impl CopyDesk {
    /// The writer has given this many more of the worker's records to the store. For one thread.
    pub(super) fn taken(&self, records: usize) {
        // Release: pairs with the load in `is_settled`; who sees the count finds the rows in the store.
        self.taken.0.store(self.taken.0.load(Ordering::Relaxed) + records as u64, Ordering::Release);
    }

    fn ask(&self, request: Request) {
        // A request that is still there is one whose query gave up.
        *self.request.lock().unwrap_or_else(PoisonError::into_inner) = Some(request);
        self.version.fetch_add(1, Ordering::Relaxed);
    }
}

/// Where a worker is to put its flows.
struct Request {
    lane: Lane<FlowRecord>,
    done: Arc<Done>,
}

/// How many records the worker had handed to the writer when it was through with its table; `Done::NOT_YET` before.
struct Done(AtomicU64);

impl Done {
    const NOT_YET: u64 = u64::MAX;
}

/// The worker's side.
pub(super) struct TableCopy {
    desk: Arc<CopyDesk>,
    seen: u64,
    job: Option<(Request, FlowWalk)>,
}

impl TableCopy {
    pub(super) fn new(desk: Arc<CopyDesk>) -> TableCopy {
        TableCopy { desk, seen: 0, job: None }
    }

    /// Whether there is something to copy. Once a batch: one relaxed load.
    #[inline]
    pub(super) fn is_wanted(&self) -> bool {
        self.desk.version.load(Ordering::Relaxed) != self.seen || self.job.is_some()
    }

    /// After a batch.
    #[cold]
    pub(super) fn slice(&mut self, table: &FlowTable, ledger: &QueueLedger) {
        self.step(table, ledger);
    }

    /// While no packets come.
    #[cold]
    pub(super) fn idle_slices(&mut self, table: &FlowTable, ledger: &QueueLedger) {
        let since = Instant::now();
        while self.step(table, ledger) && since.elapsed() < IDLE_TIME {}
    }

    /// Copies a slice. Whether another one right after it makes sense.
    fn step(&mut self, table: &FlowTable, ledger: &QueueLedger) -> bool {
        if self.desk.version.load(Ordering::Relaxed) != self.seen {
            self.look(table);
        }
        let Some((Request { lane, done }, walk)) = &mut self.job else { return false };
        if lane.is_abandoned() {
            self.job = None;
            return false;
        }
        let mut full = false;
        let (_, over) = table.step(walk, SLICE_FLOWS, |record, text| {
            full = lane.push(*record, text).is_err();
            !full
        });
        if over {
            // Release: pairs with the load in `Copy::look`; who sees the count finds all flows in the ring.
            done.0.store(handed_over(ledger), Ordering::Release);
            self.job = None;
        }
        !full && !over
    }

    /// Takes a new request on. While somebody is writing one, the next batch will do.
    fn look(&mut self, table: &FlowTable) {
        let mut slot = match self.desk.request.try_lock() {
            Ok(slot) => slot,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        self.seen = self.desk.version.load(Ordering::Relaxed);
        if let Some(request) = slot.take() {
            self.job = Some((request, table.walk()));
        }
    }
}

impl Drop for TableCopy {
    fn drop(&mut self) {
        self.desk.ended.store(true, Ordering::Release);
    }
}

/// Records in the ring to the writer or past it.
fn handed_over(ledger: &QueueLedger) -> u64 {
    ledger.worker.records.get() - ledger.worker.records_ring_full.get()
}

/// Why there is no copy of the flows in progress.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CopyError {
    /// Nobody waits for it.
    #[error("the query is over")]
    Closed,
    /// A worker hangs.
    #[error(
        "worker {worker} (tap {tap}) has not answered for {PATIENCE:?}: it hangs or gets no CPU time; `taphouse status` shows \
         whether its counters move"
    )]
    NoAnswer {
        /// By number.
        worker: usize,
        /// Which tap it serves.
        tap: String,
    },
    /// Records of flows that have just ended would be missing.
    #[error(
        "the writer has not taken flow records for {PATIENCE:?}: the disk is too slow; a query of `active_flows` alone does \
         not wait for it"
    )]
    WriterStuck,
}

/// All workers of a live server, as queries ask them.
pub(crate) struct ActiveFlows {
    workers: Vec<Asked>,
    /// One copy at a time: a worker has one request.
    turn: Mutex<()>,
}

/// A worker as it is asked.
struct Asked {
    tap: String,
    view: WorkerView,
    /// Ends its sleep, where it sleeps on one.
    wake: Option<Arc<Wake>>,
}

impl ActiveFlows {
    /// Of workers by number: the tap each serves, what is seen of it, and what wakes it.
    pub(crate) fn new(workers: impl Iterator<Item = (String, WorkerView, Option<Arc<Wake>>)>) -> ActiveFlows {
        let workers = workers.map(|(tap, view, wake)| Asked { tap, view, wake });
        ActiveFlows { workers: workers.collect(), turn: Mutex::new(()) }
    }

    /// Asks every worker for its flows. Waits while another query copies them.
    ///
    /// # Errors
    /// When `closed` says so meanwhile.
    pub(crate) fn copy(&self, closed: &dyn Fn() -> bool) -> Result<Copies<'_>, CopyError> {
        let turn = loop {
            match self.turn.try_lock() {
                Ok(turn) => break turn,
                Err(TryLockError::Poisoned(poisoned)) => break poisoned.into_inner(),
                Err(TryLockError::WouldBlock) if closed() => return Err(CopyError::Closed),
                Err(TryLockError::WouldBlock) => std::thread::sleep(PAUSE),
            }
        };
        Ok(Copies { copies: self.workers.iter().enumerate().map(Copy::begin).collect(), text: Vec::new(), _turn: turn })
    }
}

/// A copy of all tables while it is made. Letting go of it ends the workers' part too.
pub(crate) struct Copies<'a> {
    copies: Vec<Copy<'a>>,
    /// Texts of the flows being taken; reused.
    text: Vec<u8>,
    _turn: MutexGuard<'a, ()>,
}

struct Copy<'a> {
    worker: usize,
    asked: &'a Asked,
    end: LaneEnd<FlowRecord>,
    done: Arc<Done>,
    /// Records the worker had handed to the writer when it was through; `None` before.
    handed_over: Option<u64>,
    /// When there was last something to see of it.
    moved_at: Instant,
}

impl<'a> Copy<'a> {
    fn begin((worker, asked): (usize, &'a Asked)) -> Copy<'a> {
        let (lane, end) = lane(RING_FLOWS);
        let done = Arc::new(Done(AtomicU64::new(Done::NOT_YET)));
        asked.view.desk.ask(Request { lane, done: done.clone() });
        Copy { worker, asked, end, done, handed_over: None, moved_at: Instant::now() }
    }

    /// Takes what waits, a bounded number of flows; says how many.
    fn take<E>(
        &mut self,
        text: &mut Vec<u8>,
        take: &mut impl FnMut(&[FlowRecord], &[u8]) -> Result<(), E>,
    ) -> Result<usize, E> {
        // Looked at first: what was pushed before is then still found.
        let over = match self.done.0.load(Ordering::Acquire) {
            Done::NOT_YET if self.asked.view.desk.ended.load(Ordering::Acquire) => {
                Some(handed_over(&self.asked.view.ledger))
            }
            Done::NOT_YET => None,
            count => Some(count),
        };
        let moved = drain(&mut self.end, text, |r| r.text.total(), take)?;
        if moved > 0 {
            self.moved_at = Instant::now();
        } else {
            self.handed_over = over;
        }
        Ok(moved)
    }

    /// Whether the writer has given everything to the store that the worker had handed to it.
    fn is_settled(&self) -> bool {
        self.asked.view.desk.taken.0.load(Ordering::Acquire) >= self.handed_over.unwrap_or(0)
    }
}

impl Copies<'_> {
    /// Gives `take` the flows of all workers and their texts, in runs, until each worker is through.
    ///
    /// # Errors
    /// A worker that hangs, `closed`, or what `take` says.
    pub(crate) fn take_all<E: From<CopyError>>(
        &mut self,
        closed: &dyn Fn() -> bool,
        mut take: impl FnMut(&[FlowRecord], &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        while self.copies.iter().any(|copy| copy.handed_over.is_none()) {
            let mut moved = 0;
            for copy in self.copies.iter_mut().filter(|copy| copy.handed_over.is_none()) {
                moved += copy.take(&mut self.text, &mut take)?;
            }
            if closed() {
                return Err(CopyError::Closed.into());
            }
            if moved == 0 {
                self.wait()?;
            }
        }
        Ok(())
    }

    /// Wakes who sleeps, and gives up who hangs.
    fn wait(&self) -> Result<(), CopyError> {
        for copy in self.copies.iter().filter(|copy| copy.handed_over.is_none()) {
            if copy.moved_at.elapsed() > PATIENCE {
                return Err(CopyError::NoAnswer { worker: copy.worker, tap: copy.asked.tap.clone() });
            }
            copy.asked.wake.iter().for_each(|wake| wake.notify());
        }
        std::thread::sleep(PAUSE);
        Ok(())
    }

    /// Waits until the store has the record of every flow that ended before its worker came to it.
    ///
    /// # Errors
    /// A writer that hangs, or `closed`.
    pub(crate) fn settle(&self, closed: &dyn Fn() -> bool) -> Result<(), CopyError> {
        let taken = || self.copies.iter().map(|copy| copy.asked.view.desk.taken.0.load(Ordering::Relaxed)).sum::<u64>();
        let (mut seen, mut moved_at) = (taken(), Instant::now());
        while !self.copies.iter().all(Copy::is_settled) {
            if closed() {
                return Err(CopyError::Closed);
            }
            let now = taken();
            if now != seen {
                (seen, moved_at) = (now, Instant::now());
            } else if moved_at.elapsed() > PATIENCE {
                return Err(CopyError::WriterStuck);
            }
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flowtable::{EndReason, FlowSink, FlowTableConfig, Timeouts};
    use std::collections::{BTreeMap, BTreeSet};
    use wire::{Addr, FlowKey, Nanos, PacketMeta, proto};

    const SEED: u64 = 0x5eed_ac71;

    /// A worker without a source, and a writer that takes records when it is told to.
    struct Bench {
        table: FlowTable,
        copy: TableCopy,
        view: WorkerView,
        records: Records,
        clock: u64,
        random: u64,
    }

    #[derive(Default)]
    struct Records {
        ledger: Arc<QueueLedger>,
        /// Flows that ended.
        ended: Vec<u64>,
        untaken: usize,
    }

    impl FlowSink for Records {
        fn record(&mut self, record: &FlowRecord, _: &[u8]) {
            self.ledger.worker.records.add(1);
            self.untaken += 1;
            if record.end_reason != EndReason::Active {
                self.ended.push(record.flow_id);
            }
        }
    }

    impl Bench {
        fn new(flows_max: u32) -> Bench {
            let timeouts =
                Timeouts { udp_idle: Nanos::from_millis(500), active: Nanos::from_secs(1), ..Timeouts::default() };
            let table = FlowTable::new(FlowTableConfig { flows_max, timeouts, side_bytes_max: 1 << 12 }).unwrap();
            let view = WorkerView {
                gauges: Arc::default(),
                sources: Arc::new(sketches::HyperLogLog::new(4).unwrap()),
                ledger: Arc::default(),
                desk: Arc::default(),
            };
            let records = Records { ledger: view.ledger.clone(), ..Records::default() };
            Bench { table, copy: TableCopy::new(view.desk.clone()), view, records, clock: 1 << 40, random: SEED }
        }

        fn below(&mut self, n: u64) -> u64 {
            self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.random >> 33) % n
        }

        /// Counts a batch of packets of `flows` flows, 20 ms after the one before.
        fn batch(&mut self, packets: usize, flows: u64) {
            self.clock += 20_000_000;
            let packets: Vec<_> = (0..packets).map(|_| packet(self.below(flows) as u32, self.clock)).collect();
            self.table.process(&packets, &mut self.records);
        }

        fn slice(&mut self) {
            if self.copy.is_wanted() {
                self.copy.slice(&self.table, &self.view.ledger);
            }
        }

        /// The writer's turn.
        fn write(&mut self) {
            self.view.desk.taken(std::mem::take(&mut self.records.untaken));
        }

        fn asked(&self) -> ActiveFlows {
            ActiveFlows::new([("core".to_owned(), self.view.clone(), None)].into_iter())
        }

        /// Ids of the flows in the table.
        fn active(&self) -> BTreeSet<u64> {
            let mut ids = BTreeSet::new();
            let mut walk = self.table.walk();
            while !self.table.step(&mut walk, 1 << 20, |r, _| ids.insert(r.flow_id)).1 {}
            ids
        }
    }

    fn packet(host: u32, clock: u64) -> PacketMeta {
        let key = FlowKey {
            lo: Addr::v4(host.to_be_bytes()),
            hi: Addr::v4([192, 0, 2, 1]),
            lo_port: 1024,
            hi_port: 53,
            proto: proto::UDP,
            ..FlowKey::default()
        };
        PacketMeta { key, ts: Nanos(clock), clock: Nanos(clock), ip_bytes: 60, ..PacketMeta::default() }
    }

    fn open() -> bool {
        false
    }

    /// What one worker's part of a copy gives now.
    fn take(copies: &mut Copies<'_>, ids: &mut Vec<u64>) -> usize {
        let mut take = |records: &[FlowRecord], _: &[u8]| {
            ids.extend(records.iter().map(|r| r.flow_id));
            Ok::<_, CopyError>(())
        };
        copies.copies[0].take(&mut copies.text, &mut take).unwrap()
    }

    /// Flows come, go on and end while they are copied: every flow that was there at the beginning is in the copy or among
    /// the records that the writer has when the copy is settled, and no flow is copied twice.
    #[test]
    fn a_copy_and_the_records_beside_it_have_every_flow() {
        let mut bench = Bench::new(1 << 14);
        for round in 0..20 {
            (0..60).for_each(|_| bench.batch(200, 6_000));
            bench.write();
            let there = bench.active();
            bench.records.ended.clear();
            let asked = bench.asked();
            let mut copies = asked.copy(&open).unwrap();
            let mut copied = Vec::new();
            let mut slices = 0;
            while copies.copies[0].handed_over.is_none() {
                bench.batch(100, 6_000);
                bench.slice();
                slices += 1;
                if bench.below(3) > 0 {
                    take(&mut copies, &mut copied);
                }
            }
            let ended: BTreeSet<u64> = bench.records.ended.iter().copied().collect();
            let distinct: BTreeSet<u64> = copied.iter().copied().collect();
            assert_eq!(distinct.len(), copied.len(), "seed {SEED:#x}, round {round}: copied twice");
            assert!(slices > 5 && !ended.is_empty(), "{slices} slices, {} ended", ended.len());
            let lost: Vec<_> = there.iter().filter(|id| !distinct.contains(id) && !ended.contains(id)).collect();
            assert!(lost.is_empty(), "seed {SEED:#x}, round {round}: {lost:?}");
            // What ended is for the store to have before anybody looks there.
            assert!(bench.records.untaken > 0 && !copies.copies[0].is_settled());
            bench.write();
            copies.settle(&open).unwrap();
        }
    }

    #[test]
    fn a_full_ring_ends_a_slice_and_nothing_is_lost_or_doubled() {
        let mut bench = Bench::new(1 << 14);
        bench.batch(60_000, 10_000);
        let there = bench.active();
        assert!(there.len() > 2 * RING_FLOWS);
        let asked = bench.asked();
        let mut copies = asked.copy(&open).unwrap();
        let mut counts = BTreeMap::new();
        let mut most = 0;
        while copies.copies[0].handed_over.is_none() {
            // As often as it takes to fill the ring, were it not bounded.
            (0..100).for_each(|_| bench.slice());
            let mut copied = Vec::new();
            most = most.max(take(&mut copies, &mut copied));
            copied.into_iter().for_each(|id| *counts.entry(id).or_insert(0) += 1);
        }
        assert_eq!(most, RING_FLOWS);
        assert_eq!(counts, there.into_iter().map(|id| (id, 1)).collect());
    }

    #[test]
    fn who_gives_up_is_forgotten_and_the_next_one_served() {
        let mut bench = Bench::new(1 << 10);
        bench.batch(2_000, 900);
        let asked = bench.asked();
        drop(asked.copy(&open).unwrap());
        bench.slice();
        assert!(!bench.copy.is_wanted(), "nobody waits for it");
        let mut copies = asked.copy(&open).unwrap();
        bench.slice();
        assert!(bench.copy.is_wanted(), "256 of more");
        drop(copies);
        copies = asked.copy(&open).unwrap();
        let mut copied = Vec::new();
        while copies.copies[0].handed_over.is_none() {
            bench.slice();
            take(&mut copies, &mut copied);
        }
        assert!(!bench.copy.is_wanted());
        assert_eq!(copied.into_iter().collect::<BTreeSet<_>>(), bench.active());
    }

    #[test]
    fn a_worker_that_has_ended_has_no_flows_but_records() {
        let mut bench = Bench::new(1 << 10);
        bench.batch(2_000, 900);
        let asked = bench.asked();
        let Bench { mut table, copy, view, mut records, clock, .. } = bench;
        table.finish(Nanos(clock), &mut records);
        let mut copies = asked.copy(&open).unwrap();
        drop(copy);
        let none = |_: &[FlowRecord], _: &[u8]| -> Result<(), CopyError> { panic!("a flow of a table that is gone") };
        copies.take_all(&open, none).unwrap();
        assert!(!copies.copies[0].is_settled());
        view.desk.taken(records.untaken);
        copies.settle(&open).unwrap();
    }

    #[test]
    fn a_worker_that_hangs_is_named_and_a_query_that_is_over_ends() {
        let bench = Bench::new(1 << 10);
        let asked = bench.asked();
        let mut copies = asked.copy(&open).unwrap();
        assert!(matches!(asked.copy(&|| true), Err(CopyError::Closed)), "its turn has not come");
        let none = |_: &[FlowRecord], _: &[u8]| Ok::<_, CopyError>(());
        assert!(matches!(copies.take_all(&|| true, none), Err(CopyError::Closed)));
        copies.copies[0].moved_at = Instant::now().checked_sub(2 * PATIENCE).unwrap();
        let error = copies.take_all(&open, none).unwrap_err().to_string();
        assert!(error.starts_with("worker 0 (tap core) has not answered for 10s: it hangs"), "{error}");
    }
}
