//! The one thread that detects: merges the workers' ticks and hands alerts on.

use super::health::Health;
use detect::{Alert, DetectConfig, Detectors, EmergencyDetector, LossDetector, Tick};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

/// Where alerts go: the log, the subscribers.
pub(crate) type AlertSink = Box<dyn FnMut(Alert) + Send>;

/// How long the detectors sleep when there is no tick. They look instead of being woken: a wake-up would cost the worker
/// a system call and two context switches a tick, a tenth of a replay's CPU time, and buy 5 ms of some 100.
const IDLE: Duration = Duration::from_millis(5);

/// How often we look at ourselves.
const HEALTH_EVERY: Duration = Duration::from_secs(1);

/// Runs until every worker has finished. `health` is for live servers: a replay waits instead of losing, and its alerts
/// are the same in every run.
pub(super) fn run(
    mut detectors: Detectors,
    ticks: &Receiver<Tick>,
    config: &Receiver<DetectConfig>,
    mut health: Option<Health>,
    mut sink: AlertSink,
) {
    let mut alerts = Vec::new();
    let (mut losses, mut tables) = (LossDetector::default(), EmergencyDetector::default());
    let mut looked = Instant::now();
    loop {
        match ticks.try_recv() {
            Ok(tick) => detectors.tick(tick, &mut alerts),
            Err(TryRecvError::Disconnected) => break,
            Err(TryRecvError::Empty) => {
                take_on(&mut detectors, config);
                if let Some(health) = health.as_mut().filter(|_| looked.elapsed() >= HEALTH_EVERY) {
                    let now = health.clock();
                    losses.look(now, &health.losses(), &mut alerts);
                    tables.look(now, &health.tables(), &mut alerts);
                    health.warn_of_one_sided_flows();
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
