use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What the detector thread counts. It alone writes; anyone reads at any time, relaxed.
#[derive(Debug, Default)]
pub struct DetectCounters {
    /// Ticks evaluated. Ticks in which nothing happened and nothing was due are skipped and not counted.
    pub ticks: AtomicU64,
    /// TCP openings and answers evaluated.
    pub openings: AtomicU64,
    /// TCP openings and answers beyond `openings_per_tick_max`.
    pub openings_dropped: AtomicU64,
    /// Contributions that came after their tick had been evaluated without them.
    pub ticks_late: AtomicU64,
    /// TCP openings and answers within those.
    pub openings_late: AtomicU64,
    /// Ticks from a worker, and traffic of a tap, that these detectors were not made for: a wiring error.
    pub rejected: AtomicU64,
    /// Sources in the port-scan table now.
    pub sources_tracked: AtomicU64,
    /// Sources forgotten because a table was full, while still within the window.
    pub sources_evicted: AtomicU64,
    /// Openings whose target was not remembered, the source or all sources being at their cap.
    pub targets_untracked: AtomicU64,
    /// Alerts that fired.
    pub alerts_fired: AtomicU64,
    /// Alerts that were resolved.
    pub alerts_resolved: AtomicU64,
    /// Times an alert was due while `active_max` of its rule were already firing.
    pub alerts_suppressed: AtomicU64,
}

/// Adds to a counter that has one writer.
pub(crate) fn add(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Relaxed).wrapping_add(n), Relaxed);
}

/// Sets a gauge that has one writer.
pub(crate) fn set(gauge: &AtomicU64, n: u64) {
    gauge.store(n, Relaxed);
}
