//! The loss ledger: each packet offered ends in exactly one place, and each record too. One [`QueueLedger`] per tap
//! and queue is written by the thread that owns the queue and read by anybody.

use crate::{SourceCounts, Undelivered};
use std::ops::{Add, AddAssign};
use std::sync::atomic::{AtomicU64, Ordering};
use wire::DropReason;

/// A counter with one writer and any number of readers.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. A plain load and store: with one writer there is nothing for a locked instruction to protect. A second
    /// writer is a bug that loses counts, never memory.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// Takes `n` back from what is a level.
    #[inline]
    pub fn take(&self, n: u64) {
        self.add(n.wrapping_neg());
    }

    /// The count at some moment before now.
    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counters of one queue of one tap. Those of the worker stand apart from those of the writer thread, on cache lines
/// of their own (two, since processors prefetch in pairs), so that neither slows the other.
#[derive(Debug, Default)]
pub struct QueueLedger {
    /// Written by the worker that owns the queue.
    pub worker: WorkerCounters,
    /// Written by the thread that stores records.
    pub writer: WriterCounters,
}

/// What a worker counts.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct WorkerCounters {
    /// Packets the source saw, lost ones included.
    pub offered: Counter,
    /// Packets that never reached the worker, by `Undelivered as usize`.
    pub undelivered: [Counter; Undelivered::COUNT],
    /// Packets that belong to another worker whose ring was full (`sharding: symmetric`).
    pub handoff_full: Counter,
    /// Packets that became no flow packet, by `DropReason as usize`.
    pub undecoded: [Counter; DropReason::COUNT],
    /// Packets that a flow was updated with.
    pub processed: Counter,
    /// Later fragments that wait for their first one at this moment: a level, not a count.
    pub waiting: Counter,
    /// Bytes on the wire of all packets the source delivered.
    pub wire_bytes: Counter,
    /// Delivered packets that the capture cut short.
    pub cut: Counter,
    /// Flow records handed on, or attempted to.
    pub records: Counter,
    /// Flow records dropped because the ring to the writer was full.
    pub records_ring_full: Counter,
    /// DNS transactions handed on, or attempted to.
    pub dns_records: Counter,
    /// DNS transactions dropped because the ring to the writer was full.
    pub dns_ring_full: Counter,
}

/// What the writer thread counts, about the records of one queue.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct WriterCounters {
    /// Flow records stored.
    pub records_stored: Counter,
    /// Flow records dropped because the disk is full.
    pub records_disk_full: Counter,
    /// DNS transactions stored.
    pub dns_stored: Counter,
    /// DNS transactions dropped because the disk is full.
    pub dns_disk_full: Counter,
}

impl QueueLedger {
    /// Takes over what a source counted ([`BatchHandler::counted`](crate::BatchHandler::counted)).
    pub fn source(&self, delta: &SourceCounts) {
        self.worker.offered.add(delta.offered);
        for (counter, n) in self.worker.undelivered.iter().zip(delta.undelivered) {
            if n > 0 {
                counter.add(n);
            }
        }
        self.worker.wire_bytes.add(delta.wire_bytes);
        self.worker.cut.add(delta.cut);
    }

    /// Counts a packet that became no flow packet.
    #[inline]
    pub fn undecoded(&self, reason: DropReason) {
        self.worker.undecoded[reason as usize].add(1);
    }

    /// All counters. Taken while the writers run, they may be a batch apart from each other.
    pub fn snapshot(&self) -> QueueCounts {
        QueueCounts {
            offered: self.worker.offered.get(),
            undelivered: std::array::from_fn(|i| self.worker.undelivered[i].get()),
            handoff_full: self.worker.handoff_full.get(),
            undecoded: std::array::from_fn(|i| self.worker.undecoded[i].get()),
            processed: self.worker.processed.get(),
            waiting: self.worker.waiting.get(),
            wire_bytes: self.worker.wire_bytes.get(),
            cut: self.worker.cut.get(),
            records: self.worker.records.get(),
            records_ring_full: self.worker.records_ring_full.get(),
            records_stored: self.writer.records_stored.get(),
            records_disk_full: self.writer.records_disk_full.get(),
            dns_records: self.worker.dns_records.get(),
            dns_ring_full: self.worker.dns_ring_full.get(),
            dns_stored: self.writer.dns_stored.get(),
            dns_disk_full: self.writer.dns_disk_full.get(),
        }
    }
}

/// A reading of one or (added up) several queues.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueCounts {
    /// Packets the sources saw, lost ones included.
    pub offered: u64,
    /// Packets that never reached the worker, by `Undelivered as usize`.
    pub undelivered: [u64; Undelivered::COUNT],
    /// Packets that belong to another worker whose ring was full.
    pub handoff_full: u64,
    /// Packets that became no flow packet, by `DropReason as usize`.
    pub undecoded: [u64; DropReason::COUNT],
    /// Packets that a flow was updated with.
    pub processed: u64,
    /// Later fragments that wait for their first one.
    pub waiting: u64,
    /// Bytes on the wire of all delivered packets.
    pub wire_bytes: u64,
    /// Delivered packets that the capture cut short.
    pub cut: u64,
    /// Flow records handed on, or attempted to.
    pub records: u64,
    /// Flow records dropped because the ring to the writer was full.
    pub records_ring_full: u64,
    /// Flow records stored.
    pub records_stored: u64,
    /// Flow records dropped because the disk is full.
    pub records_disk_full: u64,
    /// DNS transactions handed on, or attempted to.
    pub dns_records: u64,
    /// DNS transactions dropped because the ring to the writer was full.
    pub dns_ring_full: u64,
    /// DNS transactions stored.
    pub dns_stored: u64,
    /// DNS transactions dropped because the disk is full.
    pub dns_disk_full: u64,
}

/// Where a packet ends. A new cause is one variant, one entry in `all` and one arm in each `match`, all of which the
/// compiler asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Never reached the worker.
    Undelivered(Undelivered),
    /// Belonged to another worker, whose ring was full.
    HandoffFull,
    /// Received, part of no flow.
    Undecoded(DropReason),
    /// Part of a flow.
    Processed,
}

/// One line of the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Name in metrics, JSON and tables.
    pub name: &'static str,
    /// Packets or records.
    pub count: u64,
    /// What it means, and what to do about it where that is anything.
    pub hint: &'static str,
    /// Whether a growing count means that something was lost.
    pub is_loss: bool,
}

impl Cause {
    /// Every cause, in the order a packet meets them.
    pub fn all() -> impl Iterator<Item = Cause> {
        let undelivered = Undelivered::ALL.into_iter().map(Cause::Undelivered);
        let undecoded = DropReason::ALL.into_iter().map(Cause::Undecoded);
        undelivered.chain(undecoded).chain([Cause::HandoffFull, Cause::Processed])
    }

    /// Name in metrics, JSON and tables.
    pub fn name(self) -> &'static str {
        match self {
            Cause::Undelivered(cause) => cause.name(),
            Cause::HandoffFull => "handoff_full",
            Cause::Undecoded(reason) => reason.name(),
            Cause::Processed => "processed",
        }
    }

    /// What it means, and what to do about it.
    pub fn hint(self) -> &'static str {
        match self {
            Cause::Undelivered(cause) => undelivered_hint(cause),
            Cause::HandoffFull => {
                "the worker that owns the flow did not keep up: a NIC with symmetric RSS and `sharding: queue`, or more \
                 workers"
            }
            Cause::Undecoded(DropReason::NotIp) => "carries no IP (ARP, LLDP, spanning tree)",
            Cause::Undecoded(DropReason::LinkUnsupported) => "link type that is not decoded",
            Cause::Undecoded(DropReason::LinkTruncated) => "ends inside its link header: raise the snaplen",
            Cause::Undecoded(DropReason::IpTruncated) => "ends inside its IP header: raise the snaplen",
            Cause::Undecoded(_) => "malformed or nested too deeply",
            Cause::Processed => "counted in a flow",
        }
    }

    /// Whether the packet was on the wire and is in no answer because something here was too slow or too small.
    pub fn is_loss(self) -> bool {
        match self {
            Cause::Undelivered(cause) => cause.is_loss(),
            Cause::HandoffFull => true,
            Cause::Undecoded(_) | Cause::Processed => false,
        }
    }
}

fn undelivered_hint(cause: Undelivered) -> &'static str {
    match cause {
        Undelivered::NicMissed => {
            "the card had no descriptor: larger NIC ring (ethtool -G), more queues (ethtool -L), interrupts and workers \
             on cores of their own"
        }
        Undelivered::PeerDropped => "the sender found the receiver's queue full: its core is too busy to poll",
        Undelivered::FilteredEarly => "left out by the capture filter, in the driver",
        Undelivered::PassedToHost => "came in on a queue without a worker: the queue count has changed",
        Undelivered::RedirectFailed => "the kernel could not hand it to the socket: look at `perf trace -e xdp:*`",
        Undelivered::FillRingEmpty => "the worker is the bottleneck: more queues and workers, or a larger capture.ring",
        Undelivered::RxRingFull => "the worker is the bottleneck: more queues and workers, or a larger capture.ring",
        Undelivered::RxDropped => "frames too long for the packet memory: capture.frame 4096 or capture.multi_buffer",
        Undelivered::InvalidDescriptor => "the driver broke the ring: another capture.mode, and a report, please",
        Undelivered::KernelDrop => "the capture ring was full: a larger capture.ring, more workers",
        Undelivered::Filtered => "left out by the capture filter",
    }
}

impl QueueCounts {
    /// Packets that ended this way.
    pub fn count(&self, cause: Cause) -> u64 {
        match cause {
            Cause::Undelivered(cause) => self.undelivered[cause as usize],
            Cause::HandoffFull => self.handoff_full,
            Cause::Undecoded(reason) => self.undecoded[reason as usize],
            Cause::Processed => self.processed,
        }
    }

    /// Packets that ended in a known place.
    pub fn accounted(&self) -> u64 {
        Cause::all().map(|cause| self.count(cause)).sum()
    }

    /// Offered minus accounted and waiting: 0 at rest; a batch or two either way while workers run.
    pub fn balance(&self) -> i64 {
        self.offered.wrapping_sub(self.accounted()).wrapping_sub(self.waiting) as i64
    }

    /// Records handed on minus those that ended in a known place: 0 at rest; what is in the rings while workers run.
    pub fn records_balance(&self) -> i64 {
        let known = self.records_ring_full + self.records_stored + self.records_disk_full;
        self.records.wrapping_sub(known) as i64
    }

    /// The same for DNS transactions.
    pub fn dns_balance(&self) -> i64 {
        self.dns_records.wrapping_sub(self.dns_ring_full + self.dns_stored + self.dns_disk_full) as i64
    }

    /// Whether each packet offered ended in exactly one place, and each record.
    pub fn is_balanced(&self) -> bool {
        self.balance() == 0 && self.records_balance() == 0 && self.dns_balance() == 0
    }

    /// Where the offered packets ended, in the order a packet meets the causes.
    pub fn rows(&self) -> impl Iterator<Item = Row> + '_ {
        Cause::all().map(|cause| Row {
            name: cause.name(),
            count: self.count(cause),
            hint: cause.hint(),
            is_loss: cause.is_loss(),
        })
    }

    /// Where the flow records and DNS transactions ended.
    pub fn record_rows(&self) -> impl Iterator<Item = Row> + '_ {
        [
            ("records_stored", self.records_stored, "on disk", false),
            ("records_ring_full", self.records_ring_full, "the writer did not keep up: faster disk, larger ring", true),
            ("records_disk_full", self.records_disk_full, "no space left: free some or shorten retention", true),
            ("dns_stored", self.dns_stored, "on disk", false),
            ("dns_ring_full", self.dns_ring_full, "the writer did not keep up: faster disk, larger ring", true),
            ("dns_disk_full", self.dns_disk_full, "no space left: free some or shorten retention", true),
        ]
        .into_iter()
        .map(|(name, count, hint, is_loss)| Row { name, count, hint, is_loss })
    }
}

impl AddAssign for QueueCounts {
    fn add_assign(&mut self, rhs: QueueCounts) {
        self.offered += rhs.offered;
        for (sum, n) in self.undelivered.iter_mut().zip(rhs.undelivered) {
            *sum += n;
        }
        self.handoff_full += rhs.handoff_full;
        for (sum, n) in self.undecoded.iter_mut().zip(rhs.undecoded) {
            *sum += n;
        }
        self.processed += rhs.processed;
        self.waiting += rhs.waiting;
        self.wire_bytes += rhs.wire_bytes;
        self.cut += rhs.cut;
        self.records += rhs.records;
        self.records_ring_full += rhs.records_ring_full;
        self.records_stored += rhs.records_stored;
        self.records_disk_full += rhs.records_disk_full;
        self.dns_records += rhs.dns_records;
        self.dns_ring_full += rhs.dns_ring_full;
        self.dns_stored += rhs.dns_stored;
        self.dns_disk_full += rhs.dns_disk_full;
    }
}

impl Add for QueueCounts {
    type Output = QueueCounts;
    fn add(mut self, rhs: QueueCounts) -> QueueCounts {
        self += rhs;
        self
    }
}

impl std::iter::Sum for QueueCounts {
    fn sum<I: Iterator<Item = QueueCounts>>(iter: I) -> QueueCounts {
        iter.fold(QueueCounts::default(), Add::add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A ledger in which every counter has a different value.
    fn filled() -> QueueLedger {
        let ledger = QueueLedger::default();
        let mut undelivered = [0; Undelivered::COUNT];
        undelivered.iter_mut().zip(3..).for_each(|(n, value)| *n = value);
        let lost: u64 = undelivered.iter().sum();
        let source = SourceCounts { offered: 1000, undelivered, wire_bytes: 64_000, cut: 2, ..Default::default() };
        ledger.source(&source);
        ledger.worker.handoff_full.add(2);
        for (n, reason) in DropReason::ALL.into_iter().enumerate() {
            (0..=n).for_each(|_| ledger.undecoded(reason));
        }
        let undecoded = (DropReason::COUNT * (DropReason::COUNT + 1) / 2) as u64;
        ledger.worker.processed.add(1000 - lost - 2 - undecoded);
        ledger.worker.records.add(60);
        ledger.worker.records_ring_full.add(10);
        ledger.writer.records_stored.add(49);
        ledger.writer.records_disk_full.add(1);
        ledger
    }

    #[test]
    fn every_packet_and_record_ends_in_exactly_one_place() {
        let counts = filled().snapshot();
        assert!(counts.is_balanced(), "{counts:?}");
        assert_eq!(counts.rows().map(|row| row.count).sum::<u64>(), counts.offered);
        assert_eq!(counts.record_rows().map(|row| row.count).sum::<u64>(), counts.records);
    }

    #[test]
    fn one_packet_too_many_or_too_few_shows() {
        let ledger = filled();
        ledger.worker.processed.add(1);
        assert_eq!(ledger.snapshot().balance(), -1);
        ledger.worker.offered.add(3);
        assert_eq!(ledger.snapshot().balance(), 2);
        assert!(!ledger.snapshot().is_balanced());
        let ledger = filled();
        ledger.worker.records.add(1);
        assert_eq!(ledger.snapshot().records_balance(), 1);
        assert!(!ledger.snapshot().is_balanced());
    }

    #[test]
    fn queues_add_up_counter_by_counter() {
        let one = filled().snapshot();
        let two: QueueCounts = [one, one].into_iter().sum();
        assert!(two.is_balanced());
        for (single, double) in one.rows().chain(one.record_rows()).zip(two.rows().chain(two.record_rows())) {
            assert_eq!(double.count, 2 * single.count, "{}", single.name);
        }
        assert_eq!((two.wire_bytes, two.cut, two.offered), (128_000, 4, 2000));
    }

    #[test]
    fn names_are_unique_and_fit_for_metrics() {
        let counts = QueueCounts::default();
        let names: Vec<_> = counts.rows().chain(counts.record_rows()).map(|row| row.name).collect();
        for (i, name) in names.iter().enumerate() {
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
            assert!(!names[..i].contains(name), "{name} twice");
        }
    }

    #[test]
    fn the_two_writers_share_no_cache_line() {
        let ledger = QueueLedger::default();
        let distance = (&raw const ledger.writer).addr().abs_diff((&raw const ledger.worker).addr());
        assert!(distance >= 128 && align_of::<QueueLedger>() == 128);
    }
}
