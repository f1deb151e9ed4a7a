//! What other threads may read of the workers: relaxed counters, written by one thread each.

use capture::ledger::QueueLedger;
use flowtable::{EndReason, FlowTableCounts};
use sketches::HyperLogLog;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use wire::Nanos;

const REASONS: usize = EndReason::ALL.len();

/// One worker's gauges, on cache lines of their own.
#[derive(Default)]
#[repr(align(128))]
pub(crate) struct WorkerGauges {
    active: AtomicU64,
    capacity: AtomicU64,
    created: AtomicU64,
    exported: [AtomicU64; REASONS],
    clock: AtomicU64,
    ticks_dropped: AtomicU64,
}

impl WorkerGauges {
    /// Once a batch.
    pub(super) fn publish(&self, counts: &FlowTableCounts, clock: Nanos) {
        self.active.store(counts.active, Ordering::Relaxed);
        self.created.store(counts.created, Ordering::Relaxed);
        for (cell, count) in self.exported.iter().zip(counts.exported) {
            cell.store(count, Ordering::Relaxed);
        }
        self.clock.store(clock.0, Ordering::Relaxed);
    }

    pub(super) fn capacity(&self, flows: u64) {
        self.capacity.store(flows, Ordering::Relaxed);
    }

    pub(super) fn tick_dropped(&self) {
        self.ticks_dropped.fetch_add(1, Ordering::Relaxed);
    }

    /// Most flows the worker may hold.
    pub(crate) fn flows_max(&self) -> u64 {
        self.capacity.load(Ordering::Relaxed)
    }

    /// Ticks the detectors never saw.
    pub(crate) fn ticks_dropped(&self) -> u64 {
        self.ticks_dropped.load(Ordering::Relaxed)
    }

    /// The worker's clock.
    pub(crate) fn clock(&self) -> Nanos {
        Nanos(self.clock.load(Ordering::Relaxed))
    }

    /// The flow table's counts at the last batch.
    pub(crate) fn counts(&self) -> FlowTableCounts {
        FlowTableCounts {
            active: self.active.load(Ordering::Relaxed),
            created: self.created.load(Ordering::Relaxed),
            exported: std::array::from_fn(|i| self.exported[i].load(Ordering::Relaxed)),
        }
    }
}

/// One worker as seen from outside.
#[derive(Clone)]
pub(crate) struct WorkerView {
    pub(crate) gauges: Arc<WorkerGauges>,
    pub(crate) sources: Arc<HyperLogLog>,
    /// Where its packets and records ended.
    pub(crate) ledger: Arc<QueueLedger>,
}
