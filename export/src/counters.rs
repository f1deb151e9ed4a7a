use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};

/// What an exporter has done, readable by any thread at any time. Every record handed over ends in one of `sent`,
/// `dropped_ring_full` and `dropped_unreachable`, or is still on its way.
#[derive(Debug, Default)]
pub struct ExportCounters {
    // Written by the thread that pushes.
    pub(crate) offered: AtomicU64,
    pub(crate) dropped_ring_full: AtomicU64,
    // Written by both, each adding.
    pub(crate) dropped_unreachable: AtomicU64,
    // Written by the exporter.
    pub(crate) sent: AtomicU64,
    pub(crate) messages: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) reconnects: AtomicU64,
    pub(crate) faults: AtomicU64,
    state: AtomicU8,
}

/// The counters at one moment; totals since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExportCounts {
    /// Records handed over for export.
    pub offered: u64,
    /// Records handed to the network, in whole messages. Over UDP those that the collector's host said it has nobody for
    /// are not among them, as far as it said so (ICMP port unreachable).
    pub sent: u64,
    /// Messages sent, those that hold only templates included.
    pub messages: u64,
    /// Bytes of these messages, without headers of UDP, TCP and IP.
    pub bytes: u64,
    /// Records dropped because the exporter did not keep up.
    pub dropped_ring_full: u64,
    /// Records dropped because the collector was away.
    pub dropped_unreachable: u64,
    /// Times the collector was reached again after it had been away.
    pub reconnects: u64,
    /// Connects and sends that failed.
    pub faults: u64,
    /// Whether messages can be sent now.
    pub state: LinkState,
}

impl ExportCounts {
    /// Records that have not ended yet.
    pub fn pending(&self) -> u64 {
        let ended = self.sent + self.dropped_ring_full + self.dropped_unreachable;
        self.offered.saturating_sub(ended)
    }
}

/// Whether messages can be sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum LinkState {
    /// Not tried yet.
    #[default]
    Starting = 0,
    /// As far as is known, they arrive.
    Up = 1,
    /// The last attempt failed; there will be another.
    Away = 2,
}

impl ExportCounters {
    /// The counts now. Records are counted as offered before they end, so that none ends twice, but one on its way may
    /// be seen in neither.
    pub fn snapshot(&self) -> ExportCounts {
        ExportCounts {
            sent: self.sent.load(Relaxed),
            messages: self.messages.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
            dropped_ring_full: self.dropped_ring_full.load(Relaxed),
            dropped_unreachable: self.dropped_unreachable.load(Relaxed),
            reconnects: self.reconnects.load(Relaxed),
            faults: self.faults.load(Relaxed),
            state: self.state(),
            offered: self.offered.load(Relaxed),
        }
    }

    pub(crate) fn state(&self) -> LinkState {
        match self.state.load(Relaxed) {
            1 => LinkState::Up,
            2 => LinkState::Away,
            _ => LinkState::Starting,
        }
    }

    pub(crate) fn set_state(&self, state: LinkState) {
        self.state.store(state as u8, Relaxed);
    }
}

/// Adds to a counter that may have other writers.
pub(crate) fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Relaxed);
}
