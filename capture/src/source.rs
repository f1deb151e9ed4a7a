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

/// Why a packet that was offered never reached the handler. A new one is one variant and its line in each of the two
/// tables below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Undelivered {
    /// The network card had no buffer for it (the driver's own counter, else `rx_missed_errors`). The card counts for
    /// the whole interface; it is told to the queue with the lowest number.
    NicMissed,
    /// The sending end of a veth pair found the receiver's ring full (`tx_dropped` of the peer).
    PeerDropped,
    /// Left out by the XDP program: the capture filter is simple enough for it.
    FilteredEarly,
    /// The XDP program saw it on a queue that no worker reads, so that the host got it.
    PassedToHost,
    /// The XDP program redirected it, and it arrived nowhere that counts.
    RedirectFailed,
    /// No free frame in the fill ring (`rx_fill_ring_empty_descs`).
    FillRingEmpty,
    /// No room in the receive ring (`rx_ring_full`).
    RxRingFull,
    /// Dropped by the socket for another reason, mostly a frame too long for it (`rx_dropped`).
    RxDropped,
    /// A descriptor that points outside the packet memory (`rx_invalid_descs`, or seen by us).
    InvalidDescriptor,
    /// Dropped by a packet socket whose ring was full (`tp_drops`), here or at a remote tap.
    KernelDrop,
    /// Left out by the capture filter.
    Filtered,
}

impl Undelivered {
    /// How many there are.
    pub const COUNT: usize = Undelivered::ALL.len();

    /// All of them, in the order a packet meets them.
    pub const ALL: [Undelivered; 11] = [
        Undelivered::NicMissed,
        Undelivered::PeerDropped,
        Undelivered::FilteredEarly,
        Undelivered::PassedToHost,
        Undelivered::RedirectFailed,
        Undelivered::FillRingEmpty,
        Undelivered::RxRingFull,
        Undelivered::RxDropped,
        Undelivered::InvalidDescriptor,
        Undelivered::KernelDrop,
        Undelivered::Filtered,
    ];

    /// Name in metrics, JSON and tables.
    pub fn name(self) -> &'static str {
        match self {
            Undelivered::NicMissed => "nic_missed",
            Undelivered::PeerDropped => "peer_dropped",
            Undelivered::FilteredEarly => "filtered_early",
            Undelivered::PassedToHost => "passed_to_host",
            Undelivered::RedirectFailed => "redirect_failed",
            Undelivered::FillRingEmpty => "fill_ring_empty",
            Undelivered::RxRingFull => "rx_ring_full",
            Undelivered::RxDropped => "rx_dropped",
            Undelivered::InvalidDescriptor => "invalid_descriptor",
            Undelivered::KernelDrop => "kernel_drop",
            Undelivered::Filtered => "filtered",
        }
    }

    /// Whether the packet was wanted.
    pub fn is_loss(self) -> bool {
        !matches!(self, Undelivered::FilteredEarly | Undelivered::Filtered)
    }
}

/// What a source saw. `offered == delivered + undelivered.sum()` at every return from `poll` and `finish`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SourceCounts {
    /// Packets the source knows of, lost ones included.
    pub offered: u64,
    /// Packets handed to a handler.
    pub delivered: u64,
    /// Packets that were not, by `Undelivered as usize`.
    pub undelivered: [u64; Undelivered::COUNT],
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

    /// Counts packets that were offered and not delivered.
    pub(crate) fn lose(&mut self, cause: Undelivered, packets: u64) {
        self.offered += packets;
        self.undelivered[cause as usize] += packets;
    }

    /// Packets that ended this way.
    pub fn undelivered(&self, cause: Undelivered) -> u64 {
        self.undelivered[cause as usize]
    }

    fn combine(mut self, other: SourceCounts, f: fn(u64, u64) -> u64) -> SourceCounts {
        self.offered = f(self.offered, other.offered);
        self.delivered = f(self.delivered, other.delivered);
        for (n, other) in self.undelivered.iter_mut().zip(other.undelivered) {
            *n = f(*n, other);
        }
        self.wire_bytes = f(self.wire_bytes, other.wire_bytes);
        self.captured_bytes = f(self.captured_bytes, other.captured_bytes);
        self.cut = f(self.cut, other.cut);
        self.ring_freezes = f(self.ring_freezes, other.ring_freezes);
        self
    }
}

impl AddAssign for SourceCounts {
    fn add_assign(&mut self, rhs: SourceCounts) {
        *self = *self + rhs;
    }
}

impl Add for SourceCounts {
    type Output = SourceCounts;
    fn add(self, rhs: SourceCounts) -> SourceCounts {
        self.combine(rhs, |a, b| a + b)
    }
}

/// The growth from an earlier reading of the same source.
impl Sub for SourceCounts {
    type Output = SourceCounts;
    fn sub(self, earlier: SourceCounts) -> SourceCounts {
        self.combine(earlier, |a, b| a - b)
    }
}

impl std::iter::Sum for SourceCounts {
    fn sum<I: Iterator<Item = SourceCounts>>(iter: I) -> SourceCounts {
        iter.fold(SourceCounts::default(), Add::add)
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
