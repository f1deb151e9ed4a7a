//! The one thread that detects: merges the workers' ticks and hands alerts on.

use detect::{Alert, DetectConfig, Detectors, Tick};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

/// Where alerts go: the log, the subscribers.
pub(crate) type AlertSink = Box<dyn FnMut(Alert) + Send>;

/// How often changed settings are looked for while no tick comes.
const IDLE: Duration = Duration::from_millis(200);

/// Runs until every worker has finished.
pub(super) fn run(
    mut detectors: Detectors,
    ticks: &Receiver<Tick>,
    config: &Receiver<DetectConfig>,
    mut sink: AlertSink,
) {
    let mut alerts = Vec::new();
    loop {
        match ticks.recv_timeout(IDLE) {
            Ok(tick) => detectors.tick(tick, &mut alerts),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        alerts.drain(..).for_each(&mut sink);
        if let Ok(config) = config.try_recv()
            && let Err(error) = detectors.set_config(config)
        {
            tracing::error!("detectors stay as they are: {error}");
        }
    }
    detectors.finish(&mut alerts);
    alerts.drain(..).for_each(&mut sink);
}
