//! The pipeline between a source and the data folder.
//!
//! ```text
//! source → Ingest (decode) → Worker (flow table, sketches, feed) ─ rtrb ring ─→ writer thread → Store, Exporter
//!              └→ Dealer → Worker … (replay, several workers)     ├─ ticks ───→ detector thread → alerts
//!                                                                 ├─ windows ─→ collector thread → writer, questions
//!                                                                 └─ slices ──→ queries of flows in progress
//! ```

mod active;
mod deal;
mod detectors;
mod handoff;
mod health;
mod ingest;
mod outlet;
mod payloads;
mod settings;
mod shared;
mod windows;
mod worker;
mod writer;

pub(crate) use active::{ActiveFlows, CopyError};
pub(crate) use deal::Dealer;
pub(crate) use detectors::AlertSink;
pub(crate) use handoff::{LiveWorker, Shard};
pub(crate) use health::one_sided;
pub(crate) use ingest::{Ingest, IngestSettings, Stage};
pub(crate) use outlet::WhenFull;
pub(crate) use settings::LiveSettings;
pub(crate) use shared::{RareCounts, WorkerGauges, WorkerView};
pub(crate) use worker::Worker;

use crate::config::Config;
use anyhow::{Context, anyhow};
use capture::ledger::QueueLedger;
use detect::{DetectConfig, DetectCounters, Detectors, TickFeed};
use export::{ExportCounters, Exporter};
use health::Health;
use outlet::Outlet;
use sketches::HyperLogLog;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel, sync_channel};
use std::thread::{Builder, JoinHandle};
use storage::{Retention, Store};
use talkers::Board;

/// Ticks on their way to the detectors, over all workers.
const TICKS_QUEUED: usize = 1024;
/// Records that may wait for the writer in a replay, which waits for room: few enough that they stay in cache on their way.
/// A live worker drops when its ring is full, and has a larger one for the moments in which the disk is slow.
const REPLAY_RING: usize = 4096;
/// How many ticks a live worker may lag behind the others before the detectors go on without it: one second.
const LAG_TICKS_LIVE: u64 = 10;
/// 2^12 registers: 4 KiB a worker, 1.6 % standard error.
const SOURCES_PRECISION: u8 = 12;

/// The threads behind the workers, and what can be seen and changed from outside.
pub(crate) struct Pipeline {
    pub(crate) views: Vec<WorkerView>,
    pub(crate) settings: Arc<LiveSettings>,
    pub(crate) detect_counts: Arc<DetectCounters>,
    pub(crate) retention: Sender<Retention>,
    pub(crate) detect_config: Sender<DetectConfig>,
    /// Ends the workers; whoever drives them looks at it. The writer sets it when it cannot go on: what is read after
    /// that could not be stored.
    pub(crate) stop: Arc<AtomicBool>,
    /// What the exporter has done, where there is a collector.
    pub(crate) export: Option<Arc<ExportCounters>>,
    /// Windows of the sketches, for questions.
    pub(crate) board: Option<Arc<Board>>,
    exporter: Option<JoinHandle<()>>,
    collector: Option<JoinHandle<()>>,
    writer: JoinHandle<Result<(), storage::StorageError>>,
    detectors: JoinHandle<()>,
}

impl Pipeline {
    /// Starts writer and detectors and makes a worker for each entry of `worker_taps`, which names the tap it serves by
    /// number. The workers run on whatever thread drives them.
    pub(crate) fn start(
        config: &Config,
        tap_names: &[String],
        worker_taps: &[usize],
        when_full: WhenFull,
        store: Store,
        alerts: AlertSink,
    ) -> anyhow::Result<(Pipeline, Vec<Worker>)> {
        let count = u16::try_from(worker_taps.len())
            .context("too many workers: pipeline.workers times taps must stay below 65536")?;
        let mut detect_config = config.to_detect();
        detect_config.lag_ticks_max = (when_full == WhenFull::Drop).then_some(LAG_TICKS_LIVE);
        let detectors = Detectors::new(detect_config, usize::from(count), tap_names.to_vec())?;
        let settings = Arc::new(LiveSettings::default());
        let (tick_sender, ticks) = sync_channel(TICKS_QUEUED);
        let (mut views, mut workers, mut inlets) = (Vec::new(), Vec::new(), Vec::new());
        let (feeds, collector, board) = match config.sketches.start(tap_names, worker_taps, when_full)? {
            Some((feeds, collector, board)) => (feeds, Some(collector), Some(board)),
            None => (Vec::new(), None, None),
        };
        let mut feeds = feeds.into_iter();
        for k in 0..count {
            let view = WorkerView {
                gauges: Arc::new(WorkerGauges::default()),
                sources: Arc::new(HyperLogLog::new(SOURCES_PRECISION)?),
                ledger: Arc::new(QueueLedger::default()),
                desk: Arc::default(),
            };
            let feed = TickFeed::new(k, tap_names.len(), detect_config.limits);
            let rows = match when_full {
                WhenFull::Drop => config.pipeline.record_ring as usize,
                WhenFull::Wait => REPLAY_RING.min(config.pipeline.record_ring as usize),
            };
            let (outlet, ends) = Outlet::new(rows, tick_sender.clone(), feed, when_full, &view, feeds.next());
            let (table, hints) = (config.flowtable.to_table(), config.hints.to_limits());
            workers.push(Worker::new(table, hints, outlet, &view, settings.clone())?);
            inlets.push(writer::Inlet::new(ends, &view));
            views.push(view);
        }
        let (retention, retention_changes) = channel();
        let (detect_sender, detect_changes) = channel();
        let detect_counts = detectors.counters();
        let stop = Arc::new(AtomicBool::new(false));
        let failed = stop.clone();
        let (export, exporter) = match config.ipfix.to_export(when_full.into())? {
            Some(config) => Exporter::start(config).map(|(handle, thread)| (Some(handle), Some(thread)))?,
            None => (None, None),
        };
        let export_counters = export.as_ref().map(export::ExportHandle::counters);
        let (sender, windows_over) = sync_channel(windows::WINDOWS_QUEUED);
        let collector = match collector {
            Some(collector) => {
                let collect = move || windows::run(collector, &sender);
                let thread = Builder::new().name("collector".to_owned()).spawn(collect);
                Some(thread.context("cannot start the thread that collects windows")?)
            }
            None => None,
        };
        let writer = Builder::new()
            .name("writer".to_owned())
            .spawn(move || {
                let written = writer::run(store, inlets, export, &windows_over, &retention_changes);
                if written.is_err() {
                    failed.store(true, Ordering::Relaxed);
                }
                written
            })
            .context("cannot start the writer thread")?;
        let health = (when_full == WhenFull::Drop).then(|| Health::new(tap_names, worker_taps, &views));
        let detectors = Builder::new()
            .name("detectors".to_owned())
            .spawn(move || detectors::run(detectors, &ticks, &detect_changes, health, alerts))
            .context("cannot start the detector thread")?;
        let pipeline = Pipeline {
            views,
            settings,
            detect_counts,
            retention,
            detect_config: detect_sender,
            stop,
            export: export_counters,
            board,
            exporter,
            collector,
            writer,
            detectors,
        };
        Ok((pipeline, workers))
    }

    /// Waits until everything the workers handed over is on disk. The workers must have finished.
    ///
    /// # Errors
    /// What kept records from being stored.
    pub(crate) fn finish(self) -> anyhow::Result<Vec<WorkerView>> {
        let written = self.writer.join().map_err(|_| anyhow!("the writer thread panicked"));
        if self.collector.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that collects windows panicked; table talkers lacks the last ones");
        }
        self.detectors.join().map_err(|_| anyhow!("the detector thread panicked"))?;
        // The writer has let go of the exporter's ring, so that its end is near.
        if self.exporter.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that exports panicked; flow records are stored all the same");
        }
        written??;
        Ok(self.views)
    }
}
