//! What `run` and `demo` share: the pipeline behind live workers, the services in front, start and stop.

use crate::commands::retention;
use crate::config::{self, Config};
use crate::failure::{Code, Failure};
use crate::pipeline::{AlertSink, Ingest, LiveSettings, Pipeline, WhenFull, WorkerView};
use anyhow::Context;
use capture::Source;
use capture::ledger::{Cause, QueueCounts};
use detect::{AlertState, DetectConfig, DetectCounters};
use flowtable::EndReason;
use rpc::metrics::QueryMetrics;
use rpc::{AlertHub, RpcError, Services, StatusFn, v1};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use sketches::HyperLogLog;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::Builder;
use std::time::{Duration, Instant, SystemTime};
use storage::{Retention, Store, StoreReader};

/// Changes the log filter while the server runs.
pub(crate) type LogHandle = Box<dyn Fn(&str) -> Result<(), String> + Send>;

/// A tap of a live server: its name, and one source for each worker it has.
pub(crate) struct LiveTap {
    pub(crate) name: String,
    pub(crate) interfaces: Vec<String>,
    /// `af_packet`, `generator`.
    pub(crate) kind: &'static str,
    pub(crate) sources: Vec<Box<dyn Source>>,
}

/// Everything a live server needs.
pub(crate) struct Setup {
    pub(crate) config: Config,
    /// How to read the configuration again.
    pub(crate) reload: Box<dyn Fn() -> Result<Config, Failure> + Send>,
    pub(crate) log: LogHandle,
    pub(crate) taps: Vec<LiveTap>,
    pub(crate) store: Store,
    pub(crate) listeners: Listeners,
    pub(crate) generated: bool,
}

/// The ports, bound before anything is captured.
pub(crate) struct Listeners {
    runtime: tokio::runtime::Runtime,
    grpc: tokio::net::TcpListener,
    http: tokio::net::TcpListener,
}

impl Listeners {
    pub(crate) fn bind(config: &Config) -> Result<Listeners, Failure> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("control")
            .enable_all()
            .build()
            .context("cannot start the control threads")?;
        let bind = |address, key| runtime.block_on(rpc::bind(address, key));
        let grpc = bind(config.rpc.grpc_listen, "rpc.grpc_listen")?;
        let http = bind(config.rpc.http_listen, "rpc.http_listen")?;
        Ok(Listeners { runtime, grpc, http })
    }
}

enum Event {
    Stop,
    Reload,
    /// A worker has ended: its sources are gone.
    WorkerEnded,
}

/// Runs a server until a signal stops it; everything captured is then on disk.
pub(crate) fn serve(setup: Setup) -> Result<(), Failure> {
    let Setup { config, reload, log, taps, store, listeners, generated } = setup;
    let reader = store.reader();
    let hub = AlertHub::open(&config.data_dir, config.storage.alert_log.0)?;
    let firing = Arc::new(AtomicU64::new(0));
    let sink = alert_sink(hub.clone(), firing.clone());
    let names: Vec<String> = taps.iter().map(|t| t.name.clone()).collect();
    let count = taps.iter().map(|t| t.sources.len()).sum::<usize>();
    let count = u16::try_from(count).context("too many workers: pipeline.workers times taps must stay below 65536")?;
    let (pipeline, workers) = Pipeline::start(&config, &names, count, WhenFull::Drop, store, sink)?;

    let status = Status::new(&config, &taps, &pipeline, reader.clone(), hub.clone(), firing, generated);
    let control = start_services(&config, listeners, reader, hub, status)?;
    let (events, inbox) = channel();
    watch_signals(events.clone())?;

    let stop = pipeline.stop.clone();
    let mut threads = Vec::new();
    let sources = taps.into_iter().flat_map(|t| t.sources);
    for (k, (source, worker)) in sources.zip(workers).enumerate() {
        let ingest = Ingest::new(worker, pipeline.views[k].ledger.clone());
        let (stop, events) = (stop.clone(), events.clone());
        let pin = config.pipeline.pin.then(|| k % cores());
        let thread = Builder::new().name(format!("worker-{k}"));
        threads.push(
            thread.spawn(move || live_worker(source, ingest, pin, &stop, &events)).context("cannot start a worker")?,
        );
    }
    drop(events);
    eprintln!(
        "taphouse: ready, watching {} on {} worker(s); gRPC {}, metrics http://{}/metrics, data in {}",
        names.join(", "),
        threads.len(),
        control.grpc,
        control.http,
        config.data_dir.display()
    );
    let outcome = supervise(&inbox, &config, &reload, &log, &pipeline, threads.len());
    stop.store(true, Ordering::Relaxed);
    for thread in threads {
        if thread.join().is_err() {
            tracing::error!("a worker panicked; its flows in progress are lost");
        }
    }
    let views = pipeline.finish();
    control.stop();
    let totals = views?.iter().map(|v| v.ledger.snapshot()).fold(QueueCounts::default(), |a, b| a + b);
    eprintln!(
        "taphouse: stopped; {} packets offered, {} processed, {} lost, {} records stored, {} dropped",
        totals.offered,
        totals.processed,
        Cause::all().filter(|c| c.is_loss()).map(|c| totals.count(c)).sum::<u64>(),
        totals.records_stored,
        totals.records_ring_full + totals.records_disk_full
    );
    outcome
}

/// Logs and publishes alerts, and counts those that fire.
fn alert_sink(hub: AlertHub, firing: Arc<AtomicU64>) -> AlertSink {
    Box::new(move |alert| {
        // One thread writes the gauge.
        let now = firing.load(Ordering::Relaxed);
        match alert.state {
            AlertState::Firing => {
                tracing::warn!("{}", alert.summary);
                firing.store(now + 1, Ordering::Relaxed);
            }
            AlertState::Resolved => firing.store(now.saturating_sub(1), Ordering::Relaxed),
        }
        if let Err(error) = hub.publish(alert) {
            tracing::error!("an alert is not in the log: {error}");
        }
    })
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

fn live_worker(
    mut source: Box<dyn Source>,
    mut ingest: Ingest<crate::pipeline::Worker>,
    pin: Option<usize>,
    stop: &AtomicBool,
    events: &Sender<Event>,
) {
    if let Some(Err(error)) = pin.map(capture::worker::pin) {
        tracing::warn!("{error}; the worker goes on unpinned");
    }
    if let Err(error) = capture::worker::run(source.as_mut(), &mut ingest, stop) {
        tracing::error!("{error}");
    }
    let clock = ingest.clock();
    ingest.stage.finish(clock);
    // The receiver outlives the workers except at the very end, when nobody asks any more.
    let _ = events.send(Event::WorkerEnded);
}

/// Waits for signals and for workers that end by themselves.
fn supervise(
    inbox: &Receiver<Event>,
    config: &Config,
    reload: &dyn Fn() -> Result<Config, Failure>,
    log: &LogHandle,
    pipeline: &Pipeline,
    mut workers: usize,
) -> Result<(), Failure> {
    let mut current = config.clone();
    loop {
        match inbox.recv() {
            Ok(Event::Stop) | Err(_) => return Ok(()),
            Ok(Event::Reload) => match reload() {
                Ok(new) => {
                    current =
                        apply(&current, new, log, &pipeline.settings, &pipeline.detect_config, &pipeline.retention)
                }
                Err(failure) => tracing::error!("the configuration stays as it is: {}", failure.message()),
            },
            Ok(Event::WorkerEnded) => {
                workers -= 1;
                if workers == 0 {
                    return Err(Failure::new(
                        Code::Failed,
                        anyhow::anyhow!("every capture source has ended; what was captured is stored"),
                    ));
                }
            }
        }
    }
}

/// Takes on what can change live and says what cannot. Gives the configuration now in force.
fn apply(
    old: &Config,
    new: Config,
    log: &LogHandle,
    settings: &LiveSettings,
    detect: &Sender<DetectConfig>,
    retention_sender: &Sender<Retention>,
) -> Config {
    let changes = config::changes(old, &new);
    let list = |live: bool| {
        let keys: Vec<&str> = changes.iter().filter(|c| c.live == live).map(|c| c.key.as_str()).collect();
        keys.join(", ")
    };
    let mut now = old.clone();
    now.log.clone_from(&new.log);
    now.detect = new.detect;
    now.storage.retention = new.storage.retention;
    now.flowtable.timeouts = new.flowtable.timeouts;
    if let Err(error) = log(&now.log) {
        tracing::error!("the log filter stays as it is: {error}");
    }
    settings.set_timeouts(now.flowtable.to_table().timeouts);
    // Both receivers live as long as the pipeline.
    let _ = detect.send(now.to_detect());
    let _ = retention_sender.send(retention(&now));
    match (list(true), list(false)) {
        (live, restart) if live.is_empty() && restart.is_empty() => {
            tracing::info!("configuration re-read: nothing changed")
        }
        (live, restart) if restart.is_empty() => tracing::info!("configuration re-read: changed {live}"),
        (live, restart) => {
            tracing::warn!(
                "configuration re-read: changed {}; needs a restart: {restart}",
                if live.is_empty() { "nothing" } else { &live }
            );
        }
    }
    now
}

/// Calls `stop` at the first SIGINT or SIGTERM; the second one ends the process at once.
pub(crate) fn on_stop_signal(stop: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("cannot listen for signals")?;
    Builder::new().name("signals".to_owned()).spawn(move || {
        let mut pending = signals.forever();
        if pending.next().is_some() {
            stop();
        }
        if let Some(signal) = pending.next() {
            std::process::exit(128 + signal);
        }
    })?;
    Ok(())
}

fn watch_signals(events: Sender<Event>) -> anyhow::Result<()> {
    let stop = events.clone();
    on_stop_signal(move || {
        let _ = stop.send(Event::Stop);
    })?;
    let mut signals = Signals::new([SIGHUP]).context("cannot listen for SIGHUP")?;
    Builder::new().name("hangup".to_owned()).spawn(move || {
        for _ in signals.forever() {
            if events.send(Event::Reload).is_err() {
                break;
            }
        }
    })?;
    Ok(())
}

/// The services while they run.
struct Control {
    runtime: tokio::runtime::Runtime,
    shutdown: tokio::sync::watch::Sender<bool>,
    tasks: Vec<tokio::task::JoinHandle<Result<(), RpcError>>>,
    grpc: std::net::SocketAddr,
    http: std::net::SocketAddr,
}

fn start_services(
    config: &Config,
    listeners: Listeners,
    reader: StoreReader,
    hub: AlertHub,
    status: Status,
) -> anyhow::Result<Control> {
    let Listeners { runtime, grpc, http } = listeners;
    let (grpc_address, http_address) = (grpc.local_addr()?, http.local_addr()?);
    let (shutdown, signal) = tokio::sync::watch::channel(false);
    let wait = |mut signal: tokio::sync::watch::Receiver<bool>| async move {
        // An error means that the sender is gone: stop as well.
        drop(signal.wait_for(|stop| *stop).await);
    };
    let status: StatusFn = Arc::new(move || status.read());
    let queries = Arc::new(QueryMetrics::default());
    let engine = query::Engine::new(reader, crate::commands::query::limits(&config.query))?;
    let services = Services { engine, alerts: hub, status: status.clone(), queries: queries.clone() };
    let metrics = rpc::metrics::exporter(status, queries);
    let tasks = vec![
        runtime.spawn(rpc::serve_grpc(grpc, services, wait(signal.clone()))),
        runtime.spawn(rpc::serve_http(http, metrics, wait(signal))),
    ];
    Ok(Control { runtime, shutdown, tasks, grpc: grpc_address, http: http_address })
}

impl Control {
    fn stop(self) {
        // Nobody listening means that the services have ended already.
        let _ = self.shutdown.send(true);
        for task in self.tasks {
            let ended = self.runtime.block_on(async { tokio::time::timeout(Duration::from_secs(2), task).await });
            if let Ok(Ok(Err(error))) = ended {
                tracing::error!("{error}");
            }
        }
        self.runtime.shutdown_timeout(Duration::from_secs(2));
    }
}

/// Reads the state of the whole server from relaxed counters.
struct Status {
    started: Instant,
    started_wall: SystemTime,
    data_dir: PathBuf,
    generated: bool,
    taps: Vec<v1::Tap>,
    /// Tap name and queue of each worker.
    queues: Vec<(String, u32)>,
    views: Vec<WorkerView>,
    detect_counts: Arc<DetectCounters>,
    reader: StoreReader,
    hub: AlertHub,
    firing: Arc<AtomicU64>,
}

impl Status {
    fn new(
        config: &Config,
        taps: &[LiveTap],
        pipeline: &Pipeline,
        reader: StoreReader,
        hub: AlertHub,
        firing: Arc<AtomicU64>,
        generated: bool,
    ) -> Status {
        let queues = taps.iter().flat_map(|t| (0..t.sources.len()).map(|k| (t.name.clone(), k as u32)));
        Status {
            started: Instant::now(),
            started_wall: SystemTime::now(),
            data_dir: config.data_dir.clone(),
            generated,
            taps: taps
                .iter()
                .map(|t| v1::Tap { name: t.name.clone(), interfaces: t.interfaces.clone(), source: t.kind.to_owned() })
                .collect(),
            queues: queues.collect(),
            views: pipeline.views.clone(),
            detect_counts: pipeline.detect_counts.clone(),
            reader,
            hub,
            firing,
        }
    }

    fn read(&self) -> v1::Status {
        let ledgers: Vec<QueueCounts> = self.views.iter().map(|v| v.ledger.snapshot()).collect();
        let clock = self.views.iter().map(|v| v.gauges.clock()).max().unwrap_or_default();
        v1::Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            start_time: Some(self.started_wall.into()),
            uptime: self.started.elapsed().try_into().ok(),
            data_dir: self.data_dir.display().to_string(),
            generated_traffic: self.generated,
            taps: self.taps.clone(),
            queues: self.queues.iter().zip(&ledgers).map(|((tap, queue), c)| queue_ledger(tap, *queue, c)).collect(),
            detectors: Some(self.detectors()),
            records: Some(v1::RecordLedger {
                stored: ledgers.iter().map(|c| c.records_stored).sum(),
                dropped_ring_full: ledgers.iter().map(|c| c.records_ring_full).sum(),
                dropped_disk: ledgers.iter().map(|c| c.records_disk_full).sum(),
            }),
            flows: Some(self.flows()),
            storage: Some(self.storage()),
            alerts: Some(v1::AlertStatus {
                firing: self.firing.load(Ordering::Relaxed),
                last_seq: self.hub.last_seq(),
                log_errors: self.hub.log_errors(),
            }),
            packet_clock: (clock.0 > 0).then(|| (SystemTime::UNIX_EPOCH + Duration::from_nanos(clock.0)).into()),
        }
    }

    fn flows(&self) -> v1::FlowTableStatus {
        let counts: Vec<_> = self.views.iter().map(|v| v.gauges.counts()).collect();
        let exported = EndReason::ALL.into_iter().map(|reason| v1::EndReasonCount {
            reason: reason.name().to_owned(),
            count: counts.iter().map(|c| c.exported[reason as usize - 1]).sum(),
        });
        v1::FlowTableStatus {
            active: counts.iter().map(|c| c.active).sum(),
            capacity: self.views.iter().map(|v| v.gauges.flows_max()).sum(),
            created: counts.iter().map(|c| c.created).sum(),
            exported: exported.collect(),
            originators_estimate: self.originators(),
        }
    }

    /// The workers' sketches, merged into one of our own.
    fn originators(&self) -> f64 {
        let Some(first) = self.views.first() else { return 0.0 };
        let Ok(merged) = HyperLogLog::new(first.sources.precision()) else { return 0.0 };
        // All were made with one precision, so that every merge succeeds.
        let complete = self.views.iter().all(|v| merged.merge(&v.sources).is_ok());
        debug_assert!(complete);
        merged.estimate()
    }

    fn detectors(&self) -> v1::DetectorStatus {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let c = &self.detect_counts;
        v1::DetectorStatus {
            openings: get(&c.openings),
            openings_dropped: get(&c.openings_dropped),
            ticks_late: get(&c.ticks_late),
            ticks_dropped: self.views.iter().map(|v| v.gauges.ticks_dropped()).sum(),
            sources_tracked: get(&c.sources_tracked),
            sources_evicted: get(&c.sources_evicted),
        }
    }

    fn storage(&self) -> v1::StorageStatus {
        let Some(c) = self.reader.counts() else { return v1::StorageStatus::default() };
        let range = self.reader.snapshot().ok().and_then(|s| {
            let least = s.segments.iter().map(|s| s.t_end_min).min()?;
            Some((least, s.segments.iter().map(|s| s.t_end_max).max()?))
        });
        let time = |us: Option<i64>| {
            us.and_then(|us| u64::try_from(us).ok())
                .map(|us| (SystemTime::UNIX_EPOCH + Duration::from_micros(us)).into())
        };
        v1::StorageStatus {
            segments: c.segments,
            rows: c.segment_rows + c.live_rows,
            bytes: c.segment_bytes,
            wal_bytes: wal_bytes(self.reader.dir()),
            oldest: time(range.map(|r| r.0)),
            newest: time(range.map(|r| r.1)),
        }
    }
}

/// Size of the log files as they are now; they come and go while this looks.
fn wal_bytes(data_dir: &Path) -> u64 {
    let files = std::fs::read_dir(data_dir.join("wal")).into_iter().flatten().flatten();
    files.filter_map(|file| file.metadata().ok()).map(|meta| meta.len()).sum()
}

fn queue_ledger(tap: &str, queue: u32, c: &QueueCounts) -> v1::QueueLedger {
    v1::QueueLedger {
        tap: tap.to_owned(),
        queue,
        offered: c.offered,
        bytes: c.wire_bytes,
        causes: Cause::all()
            .map(|cause| v1::Cause {
                name: cause.name().to_owned(),
                count: c.count(cause),
                hint: cause.hint().to_owned(),
                loss: cause.is_loss(),
            })
            .collect(),
        balanced: c.balance() == 0,
    }
}
