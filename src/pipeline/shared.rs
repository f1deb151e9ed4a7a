//! What other threads may read of the workers: relaxed counters, written by one thread each.

use super::active::CopyDesk;
use capture::ledger::QueueLedger;
use flowtable::{EndReason, FlowTableCounts, FragmentCounts};
use hints::InspectCounts;
use sketches::HyperLogLog;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
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
    emergency: AtomicBool,
    emergencies: AtomicU64,
    evicted_answered: AtomicU64,
    tcp_both_sides: AtomicU64,
    tcp_one_side: AtomicU64,
    side_refused: AtomicU64,
    clock: AtomicU64,
    ticks_dropped: AtomicU64,
    rare: Mutex<RareCounts>,
}

/// Counts that are published once a tick: many, and nobody needs them sooner.
#[derive(Clone, Copy, Default)]
pub(crate) struct RareCounts {
    pub(crate) hints: InspectCounts,
    pub(crate) fragments: FragmentCounts,
}

impl WorkerGauges {
    /// Once a batch.
    pub(super) fn publish(&self, counts: &FlowTableCounts, clock: Nanos) {
        self.active.store(counts.active, Ordering::Relaxed);
        self.created.store(counts.created, Ordering::Relaxed);
        for (cell, count) in self.exported.iter().zip(counts.exported) {
            cell.store(count, Ordering::Relaxed);
        }
        self.emergency.store(counts.emergency, Ordering::Relaxed);
        self.emergencies.store(counts.emergencies, Ordering::Relaxed);
        self.evicted_answered.store(counts.evicted_answered, Ordering::Relaxed);
        self.tcp_both_sides.store(counts.tcp_both_sides, Ordering::Relaxed);
        self.tcp_one_side.store(counts.tcp_one_side, Ordering::Relaxed);
        self.side_refused.store(counts.side_refused, Ordering::Relaxed);
        self.clock.store(clock.0, Ordering::Relaxed);
    }

    /// Once a tick. Never waits: while somebody reads, the next tick will do.
    pub(super) fn publish_rare(&self, publish: impl FnOnce(&mut RareCounts)) {
        if let Ok(mut rare) = self.rare.try_lock() {
            publish(&mut rare);
        }
    }

    /// Counts of hints and fragments, a tick or two old.
    pub(crate) fn rare(&self) -> RareCounts {
        *self.rare.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
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
            emergency: self.emergency.load(Ordering::Relaxed),
            emergencies: self.emergencies.load(Ordering::Relaxed),
            evicted_answered: self.evicted_answered.load(Ordering::Relaxed),
            tcp_both_sides: self.tcp_both_sides.load(Ordering::Relaxed),
            tcp_one_side: self.tcp_one_side.load(Ordering::Relaxed),
            side_refused: self.side_refused.load(Ordering::Relaxed),
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
    /// Where its flows in progress are asked for.
    pub(crate) desk: Arc<CopyDesk>,
}
