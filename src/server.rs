//! What `run` and `demo` share: the pipeline behind live workers, the services in front, start and stop.

use crate::commands::retention;
use crate::config::{self, Config, Sharding};
use crate::failure::{Code, Failure};
use crate::notify::Notify;
use crate::pipeline::{
    ActiveFlows, AlertSink, Ingest, LiveSettings, LiveWorker, Pipeline, Shard, WhenFull, Worker, WorkerView,
};
use crate::slices::SliceRecorder;
use crate::status::{AlertState, Status};
use crate::tables::{ActiveFlowsTable, LedgerTable, Tables};
use crate::taps::{LiveTap, open_with};
use anyhow::Context;
use capture::ledger::{Cause, QueueCounts};
use capture::privileges::Opener;
use capture::slice::Recorder;
use capture::{Held, InterfaceChange, InterfaceFailed, InterfaceReport, NicWatch, Source, Supervised, Supervisor};
use detect::DetectConfig;
use rpc::metrics::QueryMetrics;
use rpc::{AlertHub, HttpServices, RpcError, Services, StatusFn};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};
use storage::{Retention, Store, StoreReader};
use talkers::Board;

/// Changes the log filter while the server runs.
pub(crate) type LogHandle = Box<dyn Fn(&str) -> Result<(), String> + Send>;

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
    /// Keeps the interfaces open; `None` where there are none.
    pub(crate) keeper: Option<Keeper>,
}

/// What opens interfaces again, and where the workers say that they need it.
pub(crate) struct Keeper {
    pub(crate) opener: Opener,
    pub(crate) failures: Receiver<InterfaceFailed>,
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
    let Setup { config, reload, log, mut taps, store, listeners, generated, keeper } = setup;
    let reader = store.reader();
    let hub = AlertHub::open(&config.data_dir, config.storage.alert_log.0)?;
    let alerts = AlertState { hub: hub.clone(), firing: Arc::new(AtomicU64::new(0)) };
    let names: Vec<String> = taps.iter().map(|t| t.name.clone()).collect();
    let worker_taps: Vec<usize> =
        taps.iter().enumerate().flat_map(|(number, tap)| tap.workers.iter().map(move |_| number)).collect();
    let (slices, recorders) = SliceRecorder::start(&config, &names, worker_taps.len())?;
    let sink = alert_sink(alerts.clone(), slices.clone());
    let archive = match config.archive.to_archive(&config.storage)? {
        Some(archive) => Some(archive::start(&archive, &reader).map_err(|e| Failure::new(Code::Usage, e))?),
        None => None,
    };
    let (pipeline, workers) = Pipeline::start(&config, &names, &worker_taps, WhenFull::Drop, store, sink)?;

    let status =
        Status::new(&config, &taps, &pipeline, reader.clone(), alerts, slices.clone(), archive.as_ref(), generated);
    let tables = tables(&taps, &pipeline, reader);
    let sketches = pipeline.board.clone();
    let control = start_services(&config, listeners, tables, hub, slices.clone(), sketches, status)?;
    let (events, inbox) = channel();
    watch_signals(events.clone())?;

    let stop = pipeline.stop.clone();
    let supervised: Vec<_> = taps.iter_mut().flat_map(|t| std::mem::take(&mut t.supervised)).collect();
    let supervisor = keeper.map(|keeper| start_supervisor(supervised, keeper, &stop)).transpose()?;
    let (starting, started) = channel();
    let threads = start_workers(&config, taps, workers, recorders, &pipeline, (events, starting))?;
    // Ready means that every worker reads: each lets go of its end once it does.
    let _: Vec<()> = started.iter().collect();
    eprintln!(
        "taphouse: ready, watching {} on {} worker(s); gRPC {}, metrics http://{}/metrics, data in {}",
        names.join(", "),
        threads.len(),
        control.grpc,
        control.http,
        config.data_dir.display()
    );
    let notify = Notify::from_env();
    tell(notify.as_ref(), |notify| notify.ready(&format!("watching {}", names.join(", "))));
    let outcome = supervise(&inbox, &config, &reload, &log, &pipeline, &threads, notify.as_ref());
    tell(notify.as_ref(), Notify::stopping);
    tell(notify.as_ref(), |notify| notify.extend_timeout(LONG_WORK));
    stop.store(true, Ordering::Relaxed);
    // First, so that no interface is opened for workers that are gone.
    if supervisor.is_some_and(|thread| thread.join().is_err()) {
        tracing::error!("the thread that looks after interfaces panicked");
    }
    for thread in threads {
        if thread.join().is_err() {
            tracing::error!("a worker panicked; its flows in progress are lost");
        }
    }
    slices.shutdown();
    // What it was sending is sent again at the next start.
    drop(archive);
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

/// What queries find: the data folder, and what the workers have in memory.
fn tables(taps: &[LiveTap], pipeline: &Pipeline, reader: StoreReader) -> Tables {
    let workers = || taps.iter().flat_map(|tap| tap.workers.iter().enumerate().map(move |(queue, w)| (tap, queue, w)));
    let views = || pipeline.views.iter().cloned();
    let active = workers().zip(views()).map(|((tap, _, worker), view)| (tap.name.clone(), view, worker.wake.clone()));
    let active = ActiveFlowsTable::new(ActiveFlows::new(active), taps.iter().map(|tap| tap.name.clone()).collect());
    let ledger = workers().zip(views()).map(|((tap, queue, _), view)| (tap.name.clone(), queue as u32, view));
    Tables::of_server(reader, active, LedgerTable::new(ledger))
}

/// Logs and publishes alerts, counts those that fire, and has their packets kept.
fn alert_sink(alerts: AlertState, slices: Arc<SliceRecorder>) -> AlertSink {
    let AlertState { hub, firing } = alerts;
    Box::new(move |alert| {
        // One thread writes the gauge.
        let now = firing.load(Ordering::Relaxed);
        match alert.state {
            detect::AlertState::Firing => {
                tracing::warn!("{}", alert.summary);
                firing.store(now + 1, Ordering::Relaxed);
                slices.on_alert(&alert);
            }
            detect::AlertState::Resolved => firing.store(now.saturating_sub(1), Ordering::Relaxed),
        }
        if let Err(error) = hub.publish(alert) {
            tracing::error!("an alert is not in the log: {error}");
        }
    })
}

/// Starts the thread that keeps interfaces open.
fn start_supervisor(
    interfaces: Vec<(Supervised, Held)>,
    keeper: Keeper,
    stop: &Arc<AtomicBool>,
) -> anyhow::Result<JoinHandle<()>> {
    let Keeper { opener, failures } = keeper;
    let opener = Arc::new(opener);
    let reader = opener.clone();
    // Without the right to ask, nothing more is learned of the card; with the interface's own thread gone, nobody asks.
    let read = Box::new(move |mut nic: NicWatch| {
        let read = move || {
            nic.read();
            nic
        };
        reader.run(read).ok()
    });
    let open = Box::new(move |name: &str, tap, workers, options: &_| open_with(&opener, name, tap, workers, options));
    let report = Box::new(|report: InterfaceReport| match report.what {
        InterfaceChange::Link(true) | InterfaceChange::Reopened(..) | InterfaceChange::Mtu(..) => {
            tracing::info!("{report}")
        }
        _ => tracing::warn!("{report}"),
    });
    let supervisor = Supervisor::new(interfaces, failures, open, read, report)?;
    let stop = stop.clone();
    Ok(Builder::new().name("interfaces".to_owned()).spawn(move || supervisor.run(&stop))?)
}

/// Starts one thread for each worker of each tap.
fn start_workers(
    config: &Config,
    taps: Vec<LiveTap>,
    workers: Vec<Worker>,
    recorders: Vec<Recorder>,
    pipeline: &Pipeline,
    (events, starting): (Sender<Event>, Sender<()>),
) -> anyhow::Result<Vec<JoinHandle<()>>> {
    let (mut workers, mut recorders, mut views) = (workers.into_iter(), recorders.into_iter(), pipeline.views.iter());
    let mut threads = Vec::new();
    for tap in taps {
        let mut stages = join_workers(&tap, workers.by_ref().take(tap.workers.len()), views.clone());
        for live in tap.workers {
            let (Some(stage), Some(view)) = (stages.next(), views.next()) else { break };
            let mut ingest = Ingest::new(stage, config.to_ingest(), view.ledger.clone(), view.gauges.clone());
            if let Some(recorder) = recorders.next() {
                ingest.record_with(recorder);
            }
            let (stop, events, number) = (pipeline.stop.clone(), events.clone(), threads.len());
            let starting = starting.clone();
            let pin = config.pipeline.pin.then(|| number % cores());
            let thread = Builder::new().name(format!("worker-{number}"));
            let work = move || live_worker(live.source, ingest, pin, &stop, &events, starting);
            threads.push(thread.spawn(work).context("cannot start a worker")?);
        }
    }
    Ok(threads)
}

/// The workers of a tap, joined where they pass each other packets.
fn join_workers<'a>(
    tap: &LiveTap,
    workers: impl Iterator<Item = Worker>,
    views: impl Iterator<Item = &'a WorkerView>,
) -> Box<dyn Iterator<Item = LiveWorker>> {
    let workers: Vec<Worker> = workers.collect();
    let wakes: Vec<_> = tap.workers.iter().filter_map(|w| w.wake.clone()).collect();
    if tap.sharding == Sharding::Queue || workers.len() == 1 || wakes.len() < workers.len() {
        return Box::new(workers.into_iter().map(LiveWorker::Alone));
    }
    let members = workers.into_iter().zip(views).zip(wakes).map(|((w, view), wake)| (w, view.ledger.clone(), wake));
    Box::new(Shard::join(members.collect()).into_iter().map(LiveWorker::Shard))
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

fn live_worker(
    mut source: Box<dyn Source>,
    mut ingest: Ingest<LiveWorker>,
    pin: Option<usize>,
    stop: &AtomicBool,
    events: &Sender<Event>,
    starting: Sender<()>,
) {
    if let Some(Err(error)) = pin.map(capture::worker::pin) {
        tracing::warn!("{error}; the worker goes on unpinned");
    }
    ingest.touch();
    drop(starting);
    if let Err(error) = capture::worker::run(source.as_mut(), &mut ingest, stop) {
        tracing::error!("{error}");
    }
    let (worker, clock) = ingest.finish();
    worker.finish(clock);
    // The receiver outlives the workers except at the very end, when nobody asks any more.
    let _ = events.send(Event::WorkerEnded);
}

/// How long the clock of a worker may stand still: an idle one moves it ten times a second.
const STUCK_AFTER: Duration = Duration::from_secs(10);

/// Whether workers still work.
#[derive(Default)]
struct Pulse {
    /// The clock of each worker, and since when it has been that.
    seen: Vec<(wire::Nanos, Instant)>,
}

impl Pulse {
    /// A worker that has not ended and does nothing.
    fn stuck(&mut self, views: &[WorkerView], threads: &[JoinHandle<()>]) -> Option<usize> {
        self.seen.resize(views.len(), (wire::Nanos::ZERO, Instant::now()));
        for ((clock, since), view) in self.seen.iter_mut().zip(views) {
            let now = view.gauges.clock();
            if now != *clock {
                (*clock, *since) = (now, Instant::now());
            }
        }
        let stands = |(at, (_, since)): &(usize, &(wire::Nanos, Instant))| {
            since.elapsed() > STUCK_AFTER && threads.get(*at).is_some_and(|thread| !thread.is_finished())
        };
        self.seen.iter().enumerate().find(stands).map(|(at, _)| at)
    }
}

/// What replaying a log at the start and writing the whole of the flow tables at the end may take.
pub(crate) const LONG_WORK: Duration = Duration::from_secs(600);

/// Tells the service manager, where there is one. That it cannot hear us is for it to notice.
pub(crate) fn tell(notify: Option<&Notify>, message: impl FnOnce(&Notify) -> std::io::Result<()>) {
    if let Some(Err(error)) = notify.map(message) {
        tracing::warn!("the service manager was not told: {error}");
    }
}

/// Waits for signals and for workers that end by themselves.
fn supervise(
    inbox: &Receiver<Event>,
    config: &Config,
    reload: &dyn Fn() -> Result<Config, Failure>,
    log: &LogHandle,
    pipeline: &Pipeline,
    threads: &[JoinHandle<()>],
    notify: Option<&Notify>,
) -> Result<(), Failure> {
    let mut workers = threads.len();
    let mut pulse = Pulse::default();
    let mut current = config.clone();
    let heartbeat = notify.and_then(Notify::watchdog_interval);
    loop {
        // Longer than any process lives, where nobody waits for a sign of life.
        match inbox.recv_timeout(heartbeat.unwrap_or(Duration::from_secs(1 << 32))) {
            Err(RecvTimeoutError::Timeout) => match pulse.stuck(&pipeline.views, threads) {
                None => tell(notify, Notify::watchdog),
                Some(worker) => {
                    tracing::error!("worker {worker} hangs; the service manager is no longer told we are well")
                }
            },
            Ok(Event::Stop) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
            Ok(Event::Reload) => {
                tell(notify, Notify::reloading);
                match reload() {
                    Ok(new) => {
                        current =
                            apply(&current, new, log, &pipeline.settings, &pipeline.detect_config, &pipeline.retention)
                    }
                    Err(failure) => tracing::error!("the configuration stays as it is: {}", failure.message()),
                }
                tell(notify, |notify| notify.ready("configuration re-read"));
            }
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
    tables: Tables,
    hub: AlertHub,
    slices: Arc<SliceRecorder>,
    sketches: Option<Arc<Board>>,
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
    let (limits, geo) =
        (crate::commands::query::limits(&config.query), crate::commands::query::geo_files(&config.query));
    let engine = query::Engine::with_geo(tables, limits, &geo)?;
    let slices = Some(slices as Arc<dyn rpc::SliceControl>);
    let metrics = rpc::metrics::exporter(status.clone(), queries.clone());
    let web = HttpServices { metrics, engine: engine.clone(), queries: queries.clone() };
    let services = Services { engine, alerts: hub, status, slices, sketches, queries };
    let tasks = vec![
        runtime.spawn(rpc::serve_grpc(grpc, services, wait(signal.clone()))),
        runtime.spawn(rpc::serve_http(http, web, wait(signal))),
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
