//! The one thread that detects: merges the workers' ticks and hands alerts on.

use detect::{Alert, DetectConfig, Detectors, Tick};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Duration;

/// Where alerts go: the log, the subscribers.
pub(crate) type AlertSink = Box<dyn FnMut(Alert) + Send>;

/// How long the detectors sleep when there is no tick. They look instead of being woken: a wake-up would cost the worker
/// a system call and two context switches a tick, a tenth of a replay's CPU time, and buy 5 ms of some 100.
const IDLE: Duration = Duration::from_millis(5);

/// Runs until every worker has finished.
pub(super) fn run(
    mut detectors: Detectors,
    ticks: &Receiver<Tick>,
    config: &Receiver<DetectConfig>,
    mut sink: AlertSink,
) {
    let mut alerts = Vec::new();
    loop {
        match ticks.try_recv() {
            Ok(tick) => detectors.tick(tick, &mut alerts),
            Err(TryRecvError::Disconnected) => break,
            Err(TryRecvError::Empty) => {
                take_on(&mut detectors, config);
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
