//! What can be seen of a queue from outside while a worker reads it.

use crate::ledger::Counter;
use crate::{SourceCounts, Undelivered};
use std::fmt;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// How packets get from an interface to a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// AF_XDP: the card writes into our memory (XDP_OPTIONS says so).
    ZeroCopy,
    /// AF_XDP behind the driver's own XDP, one copy.
    Copy,
    /// AF_XDP behind generic XDP: the kernel has built its own buffer first.
    Generic,
    /// A packet socket with a ring (TPACKET_V3): the host keeps its packets, we get copies.
    AfPacket,
}

impl Mode {
    /// Name in config, tables and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Mode::ZeroCopy => "zerocopy",
            Mode::Copy => "copy",
            Mode::Generic => "generic",
            Mode::AfPacket => "af_packet",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Whose clock the packets' times are from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Clock {
    /// The system clock, read once a batch.
    Batch = 0,
    /// The kernel stamped each packet when it came in.
    Kernel = 1,
    /// The network card stamped each packet.
    Hardware = 2,
}

impl Clock {
    /// Name in tables and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Clock::Batch => "batch",
            Clock::Kernel => "kernel",
            Clock::Hardware => "hardware",
        }
    }
}

/// One queue of one interface, as seen from outside. The counters have one writer, the worker that owns the queue.
#[derive(Debug)]
pub struct Port {
    /// Interface.
    pub interface: String,
    /// Queue of the card, or member of a fanout group.
    pub queue: u32,
    /// Worker of the tap that reads it.
    pub worker: usize,
    /// How it is read.
    pub mode: Mode,
    /// Pages of the packet memory, such as `2 MiB`; empty where the kernel owns it.
    pub pages: String,
    /// Whether the capture filter, or a part of it, is in the XDP program.
    pub filtered_early: bool,
    /// `Clock as u8`.
    clock: AtomicU8,
    /// The six counters of `struct xdp_statistics` (linux/if_xdp.h), in its order; 0 with a packet socket.
    pub xdp: [Counter; XDP_STATISTICS.len()],
}

/// Names of the counters in [`Port::xdp`].
pub const XDP_STATISTICS: [&str; 6] = [
    "rx_dropped",
    "rx_invalid_descs",
    "tx_invalid_descs",
    "rx_ring_full",
    "rx_fill_ring_empty_descs",
    "tx_ring_empty_descs",
];

impl Port {
    pub(crate) fn new(interface: &str, queue: u32, worker: usize, mode: Mode, clock: Clock) -> Port {
        Port {
            interface: interface.to_owned(),
            queue,
            worker,
            mode,
            pages: String::new(),
            filtered_early: false,
            clock: AtomicU8::new(clock as u8),
            xdp: Default::default(),
        }
    }

    /// Whose clock the packets' times are from.
    pub fn clock(&self) -> Clock {
        match self.clock.load(Ordering::Relaxed) {
            2 => Clock::Hardware,
            1 => Clock::Kernel,
            _ => Clock::Batch,
        }
    }

    pub(crate) fn set_clock(&self, clock: Clock) {
        self.clock.store(clock as u8, Ordering::Relaxed);
    }
}

/// What the card, and the far end of a veth pair, have lost since the interface was opened. Read by a thread that may
/// ask; the worker of the lowest queue takes the growth over.
#[derive(Debug, Default)]
pub(crate) struct NicTotals {
    pub(crate) missed: AtomicU64,
    pub(crate) peer_dropped: AtomicU64,
}

impl NicTotals {
    /// Adds what was lost since the last time.
    pub(crate) fn count(&self, counts: &mut SourceCounts) {
        for (cause, total) in [(Undelivered::NicMissed, &self.missed), (Undelivered::PeerDropped, &self.peer_dropped)] {
            counts.lose(cause, total.load(Ordering::Relaxed).saturating_sub(counts.undelivered(cause)));
        }
    }
}
