//! The server's own worker, stage by stage.
//!
//! The server is a program, not a library, so its files are compiled here a second time: what is measured is the code that
//! runs, and it cannot drift away.

#![allow(dead_code, reason = "the server uses what is not used here")]

#[path = "../../../src/pipeline/active.rs"]
mod active;
#[path = "../../../src/pipeline/detectors.rs"]
mod detectors;
#[path = "../../../src/pipeline/health.rs"]
mod health;
#[path = "../../../src/pipeline/ingest.rs"]
mod ingest;
#[path = "../../../src/pipeline/outlet.rs"]
mod outlet;
#[path = "../../../src/pipeline/payloads.rs"]
mod payloads;
#[path = "../../../src/pipeline/settings.rs"]
mod settings;
#[path = "../../../src/pipeline/shared.rs"]
mod shared;
#[path = "../../../src/pipeline/windows.rs"]
mod windows;
#[path = "../../../src/pipeline/worker.rs"]
mod worker;
#[path = "../../../src/pipeline/writer.rs"]
mod writer;

use super::CaptureBenchError;
use ::capture::ledger::QueueLedger;
use ::capture::slice::{RecorderOptions, SliceOptions, Slices};
use ::capture::{BatchHandler, SourceCounts};
use detect::{DetectConfig, Detectors, TickFeed};
use flowtable::{FlowRecord, FlowSink, FlowTable, FlowTableConfig};
use hints::InspectLimits;
use ingest::{Ingest, IngestSettings, Stage};
use outlet::{Outlet, WhenFull};
use payloads::Payloads;
use settings::LiveSettings;
use shared::{WorkerGauges, WorkerView};
use sketches::HyperLogLog;
use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel, sync_channel};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;
use storage::{Retention, Store, StoreOptions};
use talkers::{Collector, Feed, TaskError, WhenBehind};
use wire::{Frame, Nanos, PacketMeta};
use worker::Worker;

/// As in the server's `pipeline.record_ring`, and in a replay.
const RECORD_RING: usize = 65_536;
const REPLAY_RING: usize = 4096;
/// As the server has it between workers and detectors.
const TICKS_QUEUED: usize = 1024;
const SOURCES_PRECISION: u8 = 12;
const LAG_TICKS: u64 = 10;
/// As in the server's `sketches.memory_max`.
const SKETCHES_MAX: usize = 1 << 30;
/// As in the server's `slices.ring`.
const HISTORY_BYTES: usize = 32 << 20;

/// What takes batches in: the handler of one stage, and what must be kept and ended with it.
pub(crate) struct StageHandler {
    handler: Handler,
    behind: Option<Behind>,
    slices: Option<Arc<Slices>>,
}

enum Handler {
    Release(Release),
    Decode(Box<Ingest<Discard>>),
    Table(Box<Ingest<Table>>),
    Worker(Box<Ingest<Worker>>),
}

/// The threads behind a worker.
struct Behind {
    writer: JoinHandle<Result<(), storage::StorageError>>,
    detectors: JoinHandle<()>,
    collector: Option<JoinHandle<()>>,
    // Both are looked at by the threads; closed channels would be, too, but differently.
    _retention: Sender<Retention>,
    _config: Sender<DetectConfig>,
}

/// Looks at nothing: frames go straight back to the kernel.
struct Release;

impl BatchHandler for Release {
    fn batch(&mut self, frames: &[Frame<'_>]) {
        std::hint::black_box(frames);
    }
    fn idle(&mut self, _: Nanos) {}
}

/// Decoded packets go nowhere.
struct Discard;

impl Stage for Discard {
    fn packets(&mut self, packets: &[PacketMeta], _: &impl Payloads) -> usize {
        std::hint::black_box(packets).len()
    }
    fn advance(&mut self, _: Nanos) {}
}

/// The flow table; records go nowhere.
struct Table(FlowTable);

struct NoRecords;

impl FlowSink for NoRecords {
    fn record(&mut self, record: &FlowRecord, text: &[u8]) {
        std::hint::black_box((record, text));
    }
}

impl Stage for Table {
    fn packets(&mut self, packets: &[PacketMeta], _: &impl Payloads) -> usize {
        self.0.process(packets, &mut NoRecords);
        packets.len()
    }
    fn advance(&mut self, clock: Nanos) {
        self.0.advance(clock, &mut NoRecords);
    }
}

/// Where a worker's records go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Records<'a> {
    /// Nowhere: they are taken out of the ring and forgotten.
    Forgotten {
        /// Whether packets are counted in sketches all the same.
        sketches: bool,
    },
    /// Through the server's writer into a store, a segment at the end included.
    Stored(&'a Path),
}

impl StageHandler {
    /// Receive and release.
    pub(crate) fn bare() -> StageHandler {
        StageHandler { handler: Handler::Release(Release), behind: None, slices: None }
    }

    /// And decode.
    pub(crate) fn decode() -> StageHandler {
        let (ledger, gauges) = (Arc::new(QueueLedger::default()), Arc::new(WorkerGauges::default()));
        let ingest = Ingest::new(Discard, IngestSettings::default(), ledger, gauges);
        StageHandler { handler: Handler::Decode(Box::new(ingest)), behind: None, slices: None }
    }

    /// And flow table; nothing behind it.
    pub(crate) fn table() -> Result<StageHandler, CaptureBenchError> {
        let table = FlowTable::new(FlowTableConfig::default()).map_err(cannot("flow table"))?;
        let (ledger, gauges) = (Arc::new(QueueLedger::default()), Arc::new(WorkerGauges::default()));
        let ingest = Ingest::new(Table(table), IngestSettings::default(), ledger, gauges);
        Ok(StageHandler { handler: Handler::Table(Box::new(ingest)), behind: None, slices: None })
    }

    /// As a replay has it, up to the record ring: detector feed, detectors, and the default sketches if `sketches`; records and
    /// windows are forgotten.
    pub(crate) fn replay_to_ring(sketches: bool) -> Result<StageHandler, CaptureBenchError> {
        let (ingest, behind) = worker("records", Records::Forgotten { sketches }, WhenFull::Wait)?;
        Ok(StageHandler { handler: Handler::Worker(Box::new(ingest)), behind: Some(behind), slices: None })
    }

    /// As a replay has it, up to segments in `folder`.
    pub(crate) fn replay_to_store(folder: &Path) -> Result<StageHandler, CaptureBenchError> {
        let (ingest, behind) = worker("store", Records::Stored(folder), WhenFull::Wait)?;
        Ok(StageHandler { handler: Handler::Worker(Box::new(ingest)), behind: Some(behind), slices: None })
    }

    /// And flow table, sketches, detector feed and record ring, with writer, store and detectors behind them.
    pub(crate) fn flows(folder: &Path) -> Result<StageHandler, CaptureBenchError> {
        let (ingest, behind) = worker("flows", Records::Stored(folder), WhenFull::Drop)?;
        Ok(StageHandler { handler: Handler::Worker(Box::new(ingest)), behind: Some(behind), slices: None })
    }

    /// And the history of packets that slices begin with.
    pub(crate) fn full(folder: &Path) -> Result<StageHandler, CaptureBenchError> {
        let (mut ingest, behind) = worker("full", Records::Stored(folder), WhenFull::Drop)?;
        let options = SliceOptions::new(folder.join("slices"), vec!["tap".to_owned()]);
        let recorder = RecorderOptions { history_bytes: HISTORY_BYTES, ..RecorderOptions::default() };
        let (slices, recorders) = Slices::start(options, 1, recorder).map_err(cannot("full"))?;
        recorders.into_iter().for_each(|recorder| ingest.record_with(recorder));
        ingest.touch();
        Ok(StageHandler { handler: Handler::Worker(Box::new(ingest)), behind: Some(behind), slices: Some(slices) })
    }

    /// What the source delivers to.
    pub(crate) fn handler(&mut self) -> &mut dyn BatchHandler {
        match &mut self.handler {
            Handler::Release(handler) => handler,
            Handler::Decode(handler) => handler.as_mut(),
            Handler::Table(handler) => handler.as_mut(),
            Handler::Worker(handler) => handler.as_mut(),
        }
    }

    /// Whether the stage keeps a ledger, as a worker does.
    pub(crate) fn counts(&self) -> bool {
        !matches!(self.handler, Handler::Release(_))
    }

    /// Ends every flow, and everything behind.
    pub(crate) fn finish(self) -> Result<(), CaptureBenchError> {
        match self.handler {
            Handler::Worker(ingest) => {
                let (worker, clock) = ingest.finish();
                worker.finish(clock);
            }
            Handler::Table(ingest) => {
                let (mut table, clock) = ingest.finish();
                table.0.finish(clock, &mut NoRecords);
            }
            Handler::Release(_) | Handler::Decode(_) => {}
        }
        if let Some(slices) = self.slices {
            slices.shutdown();
        }
        let Some(behind) = self.behind else { return Ok(()) };
        let written = behind.writer.join().map_err(|_| CaptureBenchError::Panicked { thread: "writer" })?;
        written.map_err(cannot("full"))?;
        if behind.collector.is_some_and(|thread| thread.join().is_err()) {
            return Err(CaptureBenchError::Panicked { thread: "collector" });
        }
        behind.detectors.join().map_err(|_| CaptureBenchError::Panicked { thread: "detector" })
    }
}

fn cannot<E: Display>(stage: &'static str) -> impl FnOnce(E) -> CaptureBenchError {
    move |error| CaptureBenchError::Stage { stage, message: error.to_string() }
}

/// A worker as the server starts it, with its defaults.
fn worker(
    stage: &'static str,
    records_go: Records<'_>,
    when_full: WhenFull,
) -> Result<(Ingest<Worker>, Behind), CaptureBenchError> {
    let taps = vec!["tap".to_owned()];
    let detect_config =
        DetectConfig { lag_ticks_max: (when_full == WhenFull::Drop).then_some(LAG_TICKS), ..DetectConfig::default() };
    let detectors = Detectors::new(detect_config, 1, taps.clone()).map_err(cannot(stage))?;
    let (tick_sender, ticks) = sync_channel(TICKS_QUEUED);
    let (ledger, gauges) = (Arc::new(QueueLedger::default()), Arc::new(WorkerGauges::default()));
    let sources = Arc::new(HyperLogLog::new(SOURCES_PRECISION).map_err(cannot(stage))?);
    let view = WorkerView { gauges: gauges.clone(), sources, ledger: ledger.clone(), desk: Arc::default() };
    let feed = TickFeed::new(0, taps.len(), detect_config.limits);
    let rows = if when_full == WhenFull::Wait { REPLAY_RING } else { RECORD_RING };
    let sketches = records_go != Records::Forgotten { sketches: false };
    let (talkers, collector) =
        sketches.then(|| default_sketches(&taps, when_full)).transpose().map_err(cannot(stage))?.unzip();
    let (sender, windows_over) = sync_channel(windows::WINDOWS_QUEUED);
    let (outlet, ends) = Outlet::new(rows, tick_sender, feed, when_full, &view, talkers);
    let settings = Arc::new(LiveSettings::default());
    let (table, limits) = (FlowTableConfig::default(), InspectLimits::default());
    let worker = Worker::new(table, limits, outlet, &view, settings).map_err(cannot(stage))?;

    let inlet = writer::Inlet::new(ends, &view);
    let (retention_sender, retention) = channel();
    let (config_sender, config) = channel();
    let write: Box<dyn FnOnce() -> Result<(), storage::StorageError> + Send> = match records_go {
        Records::Stored(folder) => {
            let store = Store::open(StoreOptions::new(folder.join("data"), taps)).map_err(cannot(stage))?;
            Box::new(move || writer::run(store, vec![inlet], None, &windows_over, &retention))
        }
        Records::Forgotten { .. } => Box::new(move || forget(inlet, &windows_over)),
    };
    let writer = Builder::new().name("writer".to_owned()).spawn(write).map_err(cannot(stage))?;
    let collect =
        |collector| Builder::new().name("collector".to_owned()).spawn(move || windows::run(collector, &sender));
    let collector = collector.map(collect).transpose().map_err(cannot(stage))?;
    let detect = move || detectors::run(detectors, &ticks, &config, None, Box::new(|_| {}));
    let detectors = Builder::new().name("detectors".to_owned()).spawn(detect).map_err(cannot(stage))?;
    let behind = Behind { writer, detectors, collector, _retention: retention_sender, _config: config_sender };
    Ok((Ingest::new(worker, IngestSettings::default(), ledger, gauges), behind))
}

/// The sketches the server has by default.
fn default_sketches(taps: &[String], when_full: WhenFull) -> Result<(Feed, Collector), TaskError> {
    let when_behind = if when_full == WhenFull::Wait { WhenBehind::Wait } else { WhenBehind::GoOn };
    let (mut feeds, collector, _) = talkers::start(talkers::default_tasks(), taps, &[0], SKETCHES_MAX, 0, when_behind)?;
    Ok((feeds.remove(0), collector))
}

/// In the writer's place: takes rows out of the rings as the writer does, and those of windows, until worker and collector let go
/// of them.
fn forget(mut inlet: writer::Inlet, windows: &Receiver<windows::TalkerRows>) -> Result<(), storage::StorageError> {
    loop {
        let rings = inlet.ends.records.rows.is_abandoned() && inlet.ends.dns.rows.is_abandoned();
        // The collector waits for room, and the worker of a replay for the collector.
        let is_last = match windows.try_recv() {
            Ok(_) => continue,
            Err(TryRecvError::Empty) => false,
            Err(TryRecvError::Disconnected) => rings,
        };
        let taken = forget_rows(&mut inlet.ends.records) + forget_rows(&mut inlet.ends.dns);
        match (taken, is_last) {
            (0, true) => return Ok(()),
            (0, false) => std::thread::sleep(Duration::from_millis(1)),
            _ => {}
        }
    }
}

fn forget_rows<R>(lane: &mut outlet::LaneEnd<R>) -> usize {
    let waiting = lane.rows.slots();
    if let Ok(text) = lane.text.read_chunk(lane.text.slots()) {
        text.commit_all();
    }
    if let Ok(chunk) = lane.rows.read_chunk(waiting) {
        for row in chunk {
            std::hint::black_box(row);
        }
    }
    waiting
}

/// Tells a handler what a source counted since the last time, as the server's worker loop does after each poll.
pub(crate) fn tell(handler: &mut dyn BatchHandler, counts: SourceCounts, told: &mut SourceCounts) {
    if counts != *told {
        handler.counted(&(counts - *told));
        *told = counts;
    }
}
