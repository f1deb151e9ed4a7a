//! The one thread that detects: merges the workers' ticks and hands alerts on.

use detect::{Alert, DetectConfig, Detectors, LossDetector, LossReading, Tick};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};
use wire::Nanos;

/// Where alerts go: the log, the subscribers.
pub(crate) type AlertSink = Box<dyn FnMut(Alert) + Send>;

/// How long the detectors sleep when there is no tick. They look instead of being woken: a wake-up would cost the worker
/// a system call and two context switches a tick, a tenth of a replay's CPU time, and buy 5 ms of some 100.
const IDLE: Duration = Duration::from_millis(5);

/// Reads the counters of everything that can be lost, with the packet time.
pub(super) type Losses = Box<dyn FnMut() -> (Nanos, Vec<LossReading>) + Send>;

/// How often losses are looked at.
const LOSSES_EVERY: Duration = Duration::from_secs(1);

/// Runs until every worker has finished. `losses` is for live servers: a replay waits instead of losing.
pub(super) fn run(
    mut detectors: Detectors,
    ticks: &Receiver<Tick>,
    config: &Receiver<DetectConfig>,
    mut losses: Option<Losses>,
    mut sink: AlertSink,
) {
    let mut alerts = Vec::new();
    let (mut watch, mut looked) = (LossDetector::default(), Instant::now());
    loop {
        match ticks.try_recv() {
            Ok(tick) => detectors.tick(tick, &mut alerts),
            Err(TryRecvError::Disconnected) => break,
            Err(TryRecvError::Empty) => {
                take_on(&mut detectors, config);
                if let Some(losses) = losses.as_mut().filter(|_| looked.elapsed() >= LOSSES_EVERY) {
                    let (now, readings) = losses();
                    watch.look(now, &readings, &mut alerts);
                    looked = Instant::now();
                }
                std::thread::sleep(IDLE);
            }
        }
        alerts.drain(..).for_each(&mut sink);
    }
    detectors.finish(&mut alerts);
    alerts.drain(..).for_each(&mut sink);
}

/// Changed settings, if there are any.
fn take_on(detectors: &mut Detectors, config: &Receiver<DetectConfig>) {
    if let Ok(config) = config.try_recv()
        && let Err(error) = detectors.set_config(config)
    {
        tracing::error!("detectors stay as they are: {error}");
    }
}
