use crate::SourceError;
use std::ops::{Add, AddAssign, Sub};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use wire::{Frame, Nanos};

/// Most frames a source hands over in one call.
pub const BATCH_FRAMES_MAX: usize = 256;

/// What a source delivers to. Called on the thread that polls the source.
pub trait BatchHandler {
    /// Frames in the order the source saw them, 1 to [`BATCH_FRAMES_MAX`] of them, lent for the length of the call.
    fn batch(&mut self, frames: &[Frame<'_>]);

    /// Nothing arrived. Only a live source says so, with its wall clock, so that idle flows expire; a replay never
    /// does, since its time is that of its packets.
    fn idle(&mut self, now: Nanos);

    /// What the source counted since the last call: [`worker::run`](crate::worker::run) calls it after each poll that
    /// changed a count. Differences, so that a worker which reads several sources in turn just adds them up.
    fn counted(&mut self, delta: &SourceCounts) {
        let _ = delta;
    }

    /// One of several inputs of a source has ended with an error while the others go on.
    fn failed(&mut self, error: &SourceError) {
        let _ = error;
    }
}

/// Where packets come from: a capture file, an interface.
pub trait Source: Send {
    /// Delivers at most one batch. A live source waits up to 100 ms for it, a file does one `read` at most, so that
    /// the caller sees its stop flag in time.
    ///
    /// # Errors
    /// Whatever is complete has been delivered by earlier calls; the error comes once and [`Polled::End`] follows it.
    fn poll(&mut self, handler: &mut dyn BatchHandler) -> Result<Polled, SourceError>;

    /// Ends the inflow and delivers what is still on its way to us (packets in a ring). A file has nothing to do.
    ///
    /// # Errors
    /// As [`poll`](Source::poll).
    fn finish(&mut self, handler: &mut dyn BatchHandler) -> Result<(), SourceError> {
        let _ = handler;
        Ok(())
    }

    /// Totals since the source was opened.
    fn counts(&self) -> SourceCounts;

    /// What messages call this source: a path, an interface.
    fn name(&self) -> &str;

    /// How far through its input the source is; `None` where there is no end to get to.
    fn progress(&self) -> Option<Progress> {
        None
    }
}

/// Outcome of one [`Source::poll`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Polled {
    /// This many frames were delivered. Can be 0: bytes were read that complete no packet yet.
    Packets(usize),
    /// Nothing arrived while waiting.
    Idle,
    /// There will be no more.
    End,
}

/// What a source saw. `offered == delivered + kernel_drops` at every return from `poll` and `finish`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SourceCounts {
    /// Packets the source knows of, lost ones included.
    pub offered: u64,
    /// Packets handed to a handler.
    pub delivered: u64,
    /// Packets the kernel dropped because the socket's ring was full (`tp_drops`).
    pub kernel_drops: u64,
    /// Bytes on the wire of the delivered packets.
    pub wire_bytes: u64,
    /// Bytes of them that were captured.
    pub captured_bytes: u64,
    /// Delivered packets of which less was captured than was on the wire.
    pub cut: u64,
    /// Times the ring was full and the kernel stopped filling it (`tp_freeze_q_cnt`).
    pub ring_freezes: u64,
}

impl SourceCounts {
    /// Counts one delivered batch.
    pub(crate) fn deliver(&mut self, frames: &[Frame<'_>]) {
        self.offered += frames.len() as u64;
        self.delivered += frames.len() as u64;
        for frame in frames {
            self.wire_bytes += u64::from(frame.wire_len);
            self.captured_bytes += frame.data.len() as u64;
            self.cut += u64::from((frame.data.len() as u64) < u64::from(frame.wire_len));
        }
    }
}

impl AddAssign for SourceCounts {
    fn add_assign(&mut self, rhs: SourceCounts) {
        self.offered += rhs.offered;
        self.delivered += rhs.delivered;
        self.kernel_drops += rhs.kernel_drops;
        self.wire_bytes += rhs.wire_bytes;
        self.captured_bytes += rhs.captured_bytes;
        self.cut += rhs.cut;
        self.ring_freezes += rhs.ring_freezes;
    }
}

impl Add for SourceCounts {
    type Output = SourceCounts;
    fn add(mut self, rhs: SourceCounts) -> SourceCounts {
        self += rhs;
        self
    }
}

/// The growth from an earlier reading of the same source.
impl Sub for SourceCounts {
    type Output = SourceCounts;
    fn sub(self, earlier: SourceCounts) -> SourceCounts {
        SourceCounts {
            offered: self.offered - earlier.offered,
            delivered: self.delivered - earlier.delivered,
            kernel_drops: self.kernel_drops - earlier.kernel_drops,
            wire_bytes: self.wire_bytes - earlier.wire_bytes,
            captured_bytes: self.captured_bytes - earlier.captured_bytes,
            cut: self.cut - earlier.cut,
            ring_freezes: self.ring_freezes - earlier.ring_freezes,
        }
    }
}

/// How much of a source's input was consumed, in bytes as stored (compressed ones where it is compressed).
/// Clones share the count: give one to the thread that draws the progress bar.
#[derive(Clone, Debug)]
pub struct Progress {
    consumed: Arc<AtomicU64>,
    total: Option<u64>,
}

impl Progress {
    pub(crate) fn new(consumed: Arc<AtomicU64>, total: Option<u64>) -> Progress {
        Progress { consumed, total }
    }

    /// Bytes read so far; one relaxed load.
    pub fn consumed_bytes(&self) -> u64 {
        self.consumed.load(Ordering::Relaxed)
    }

    /// Size of the input when it was opened; `None` for a pipe.
    pub fn total_bytes(&self) -> Option<u64> {
        self.total
    }
}
