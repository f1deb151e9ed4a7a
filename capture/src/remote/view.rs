use crate::ledger::Counter;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The state of a remote tap, for whoever shows it. Written by the thread that polls the source; each reading is a
/// relaxed load.
#[derive(Debug, Default)]
pub struct RemoteView {
    connected: AtomicBool,
    pub(super) gaps: Counter,
    pub(super) gap_nanos: Counter,
    pub(super) reconnects: Counter,
    pub(super) kernel_drops: Counter,
    pub(super) interface_drops: Counter,
}

impl RemoteView {
    /// Whether packets that appear on the remote interface reach us: its `tcpdump` has begun and its stream stands.
    pub fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }

    /// What is missing. Readings taken while the source runs may be a poll (100 ms) behind.
    pub fn gaps(&self) -> GapCounts {
        GapCounts {
            count: self.gaps.get(),
            total: Duration::from_nanos(self.gap_nanos.get()),
            reconnects: self.reconnects.get(),
            remote_kernel_drops: self.kernel_drops.get(),
            remote_interface_drops: self.interface_drops.get(),
        }
    }

    pub(super) fn set_connected(&self, connected: bool) {
        self.connected.store(connected, Ordering::Relaxed);
    }
}

/// What a remote tap did not see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GapCounts {
    /// Times there was no connection, the present one included.
    pub count: u64,
    /// Wall time without a connection, from the end of a stream to the header of the next one. A peer that vanishes
    /// without a word is noticed by `ssh` after up to 15 s, which are not part of it.
    pub total: Duration,
    /// Gaps that ended.
    pub reconnects: u64,
    /// Packets the remote kernel dropped because `tcpdump` did not fetch them in time, as far as `tcpdump` told. Also
    /// as [`Undelivered::KernelDrop`](crate::Undelivered::KernelDrop).
    pub remote_kernel_drops: u64,
    /// Packets the remote interface or its driver dropped, as far as `tcpdump` told. In no other count: whether they
    /// would have passed the filter is not known.
    pub remote_interface_drops: u64,
}
