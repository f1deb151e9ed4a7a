use crate::config::WhenFull;
use crate::counters::{ExportCounters, LinkState, add};
use flowtable::FlowRecord;
use std::sync::Arc;
use std::time::Duration;

/// How long a replay sleeps before it looks for room again.
const WAIT: Duration = Duration::from_millis(1);

/// Where records go in. One thread owns it; dropping it tells the exporter that there will be no more.
pub struct ExportHandle {
    pub(crate) records: rtrb::Producer<FlowRecord>,
    pub(crate) counters: Arc<ExportCounters>,
    pub(crate) when_full: WhenFull,
}

impl ExportHandle {
    /// Hands a record over: a copy into the ring. Never blocks with [`WhenFull::Drop`]; with [`WhenFull::Wait`] it does
    /// while the ring is full and the collector is there.
    pub fn push(&mut self, record: &FlowRecord) {
        self.push_all(std::slice::from_ref(record));
    }

    /// The same for several records, in their order.
    pub fn push_all(&mut self, mut records: &[FlowRecord]) {
        add(&self.counters.offered, records.len() as u64);
        while !records.is_empty() {
            let (_, rest) = self.records.push_partial_slice(records);
            records = rest;
            if !records.is_empty() && !self.wait_for_room() {
                return self.drop_all(records.len());
            }
        }
    }

    /// Waits a moment, if that is what was asked for and may help.
    fn wait_for_room(&self) -> bool {
        let helps = self.counters.state() != LinkState::Away && !self.records.is_abandoned();
        if self.when_full == WhenFull::Drop || !helps {
            return false;
        }
        std::thread::sleep(WAIT);
        true
    }

    #[cold]
    fn drop_all(&self, count: usize) {
        let reason = match self.counters.state() {
            LinkState::Away => &self.counters.dropped_unreachable,
            LinkState::Starting | LinkState::Up => &self.counters.dropped_ring_full,
        };
        add(reason, count as u64);
    }

    /// What has become of the records, for any thread.
    pub fn counters(&self) -> Arc<ExportCounters> {
        self.counters.clone()
    }
}
