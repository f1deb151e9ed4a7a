//! Settings a running worker takes on: changed rarely, asked for once a batch with one relaxed load.

use flowtable::{FlowTable, Timeouts};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Default)]
pub(crate) struct LiveSettings {
    /// Counts changes; a worker that has seen fewer looks at `timeouts`.
    version: AtomicU64,
    timeouts: Mutex<Option<Timeouts>>,
}

impl LiveSettings {
    /// Takes effect at each worker's next batch.
    pub(crate) fn set_timeouts(&self, timeouts: Timeouts) {
        if let Ok(mut slot) = self.timeouts.lock() {
            *slot = Some(timeouts);
        }
        // Release: pairs with the load in `changed`, so that who sees the version finds the timeouts.
        self.version.fetch_add(1, Ordering::Release);
    }

    pub(super) fn changed(&self, seen: &mut u64) -> bool {
        let version = self.version.load(Ordering::Acquire);
        std::mem::replace(seen, version) != version
    }

    #[cold]
    pub(super) fn apply(&self, table: &mut FlowTable) {
        let timeouts = self.timeouts.lock().ok().and_then(|slot| *slot);
        if let Some(Err(error)) = timeouts.map(|t| table.set_timeouts(t)) {
            tracing::error!("timeouts stay as they are: {error}");
        }
    }
}
