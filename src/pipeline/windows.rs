//! The thread that merges what the workers' sketches counted in a window, and makes rows of it.

use std::sync::mpsc::SyncSender;
use std::time::Duration;
use talkers::{Collector, TalkerRow, TaskError};

/// The rows of a window, and their texts one after the other.
pub(super) struct TalkerRows {
    pub(super) rows: Vec<TalkerRow>,
    pub(super) texts: Vec<u8>,
}

/// Windows whose rows may wait for the writer. Beyond that the collector waits, and with it windows: they go on longer, and
/// that is counted.
pub(super) const WINDOWS_QUEUED: usize = 16;

/// How long the collector sleeps when no window is over. It looks instead of being woken, as the detectors do.
const IDLE: Duration = Duration::from_millis(5);

/// Runs until every worker has finished and the last window is with the writer.
pub(super) fn run(mut collector: Collector, writer: &SyncSender<TalkerRows>) {
    loop {
        // Asked before windows are collected: what came before the end is then found.
        let is_over = collector.is_over();
        match collect(&mut collector, writer) {
            Ok(0) if is_over => return,
            Ok(0) => std::thread::sleep(IDLE),
            Ok(_) => {}
            Err(error) => {
                tracing::error!("a window of the sketches is lost: {error}");
                std::thread::sleep(IDLE);
            }
        }
    }
}

/// Sends on the windows that are over, and says how many.
fn collect(collector: &mut Collector, writer: &SyncSender<TalkerRows>) -> Result<usize, TaskError> {
    let windows = collector.poll()?;
    for window in &windows {
        let mut out = TalkerRows { rows: Vec::new(), texts: Vec::new() };
        window.rows(&mut out.rows, &mut out.texts)?;
        // An error means that the writer is gone, which its own thread reports.
        let _ = writer.send(out);
    }
    Ok(windows.len())
}
