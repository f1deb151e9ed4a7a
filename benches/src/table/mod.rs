//! The flow table by itself, in this process and from no file: many flows, many new flows, a flood, an aimed attack.
//!
//! Packets reach it as a worker hands them over, [`BATCH`] at a time, made just before. Only the table's own calls are
//! timed, in CPU time of this thread, less what reading that clock costs.

pub mod aim;
pub mod attack;
pub mod churn;
mod packets;
pub mod scale;

use crate::capture::cpu;
use flowtable::{EndReason, FlowRecord, FlowSink, FlowTable, FlowTableCounts, FlowTableError};
use std::fs;
use std::hint::black_box;
use std::time::Duration;
use thiserror::Error;
use wire::{Nanos, PacketMeta};

/// Packets of a batch, as sources deliver them.
pub const BATCH: usize = 256;

/// What a benchmark of the table can fail at: being slow is no such thing, being wrong is.
#[derive(Debug, Error)]
pub enum TableBenchError {
    /// The table could not be made.
    #[error(transparent)]
    Table(#[from] FlowTableError),
    /// The system does not say how much memory this process has.
    #[error("cannot read VmRSS of /proc/self/status: this benchmark needs Linux with /proc mounted")]
    Memory,
}

/// Bytes of memory that this process has now (VmRSS).
fn resident_bytes() -> Result<u64, TableBenchError> {
    let status = fs::read_to_string("/proc/self/status").map_err(|_| TableBenchError::Memory)?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: Option<u64> = line.and_then(|line| line.split_ascii_whitespace().next()?.parse().ok());
    kib.map(|kib| kib * 1024).ok_or(TableBenchError::Memory)
}

/// CPU time of the table's calls, and nothing else.
struct Stopwatch {
    used: Duration,
    /// What an empty reading takes, which is taken off each.
    empty: Duration,
}

impl Stopwatch {
    fn new() -> Stopwatch {
        const READINGS: u32 = 10_000;
        let start = cpu::of_this_thread();
        for _ in 0..READINGS {
            black_box(cpu::of_this_thread());
        }
        Stopwatch { used: Duration::ZERO, empty: (cpu::of_this_thread() - start) / READINGS }
    }

    fn time<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let start = cpu::of_this_thread();
        let done = work();
        self.used += (cpu::of_this_thread() - start).saturating_sub(self.empty);
        done
    }

    fn ns_a(&self, packets: u64) -> f64 {
        self.used.as_nanos() as f64 / packets.max(1) as f64
    }
}

/// A batch under construction, timed when it is handed over.
struct Feeder {
    batch: Vec<PacketMeta>,
    stopwatch: Stopwatch,
    packets: u64,
    /// Time of the next packet.
    clock: Nanos,
    /// Between packets.
    gap: Nanos,
}

impl Feeder {
    fn new(gap: Nanos) -> Feeder {
        let clock = Nanos::from_secs(1_700_000_000);
        Feeder { batch: Vec::with_capacity(BATCH), stopwatch: Stopwatch::new(), packets: 0, clock, gap }
    }

    /// Adds a packet at the clock; hands the batch over when it is full.
    #[inline]
    fn push(&mut self, packet: PacketMeta, table: &mut FlowTable, sink: &mut impl FlowSink) {
        self.batch.push(PacketMeta { ts: self.clock, clock: self.clock, ..packet });
        self.clock = Nanos(self.clock.0 + self.gap.0);
        if self.batch.len() == BATCH {
            self.flush(table, sink);
        }
    }

    fn flush(&mut self, table: &mut FlowTable, sink: &mut impl FlowSink) {
        let batch = &self.batch;
        self.stopwatch.time(|| table.process(batch, sink));
        self.packets += batch.len() as u64;
        self.batch.clear();
    }

    /// From here on counts anew.
    fn restart(&mut self) {
        (self.packets, self.stopwatch.used) = (0, Duration::ZERO);
    }
}

/// Counts records by reason, and forgets them.
#[derive(Default)]
struct Tally {
    by_reason: [u64; EndReason::ALL.len()],
}

impl FlowSink for Tally {
    #[inline]
    fn record(&mut self, record: &FlowRecord, text: &[u8]) {
        black_box((record, text));
        if let Some(count) = self.by_reason.get_mut(record.end_reason as usize - 1) {
            *count += 1;
        }
    }
}

/// Flows that have ended, by the table's own counts: a part cut off by the active timeout ends none.
fn ended(counts: &FlowTableCounts) -> u64 {
    let of = |reason: &EndReason| counts.exported[*reason as usize - 1];
    EndReason::ALL.iter().filter(|reason| **reason != EndReason::Active).map(of).sum()
}

/// What must hold whenever the table is asked: every flow begun is there or was exported, and each export reached the sink.
fn account(counts: &FlowTableCounts, by_reason: &[u64], wrong: &mut Vec<String>) {
    if counts.created != ended(counts) + counts.active {
        wrong.push(format!(
            "{} flows were created, but {} exported and {} are active",
            counts.created,
            ended(counts),
            counts.active
        ));
    }
    if counts.exported != by_reason {
        wrong.push(format!("counted as exported {:?}, but delivered {by_reason:?}", counts.exported));
    }
}
