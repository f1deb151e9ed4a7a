//! The memory all queries of an engine share, which remembers what did not fit: the operators' own errors mostly say only
//! that they could not spill.

use datafusion::common::Result;
use datafusion::execution::memory_pool::{GreedyMemoryPool, MemoryLimit, MemoryPool, MemoryReservation};
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// First come, first served.
#[derive(Debug)]
pub(crate) struct SharedMemory {
    pool: GreedyMemoryPool,
    /// Bytes last asked for in vain.
    refused: AtomicUsize,
    /// Bytes in use then.
    in_use: AtomicUsize,
}

impl SharedMemory {
    pub(crate) fn new(bytes: usize) -> SharedMemory {
        SharedMemory { pool: GreedyMemoryPool::new(bytes), refused: AtomicUsize::new(0), in_use: AtomicUsize::new(0) }
    }

    /// Bytes last asked for in vain, and those in use then.
    pub(crate) fn refused(&self) -> (usize, usize) {
        (self.refused.load(Relaxed), self.in_use.load(Relaxed))
    }
}

impl MemoryPool for SharedMemory {
    fn name(&self) -> &str {
        "shared"
    }

    fn grow(&self, reservation: &MemoryReservation, additional: usize) {
        self.pool.grow(reservation, additional);
    }

    fn shrink(&self, reservation: &MemoryReservation, shrink: usize) {
        self.pool.shrink(reservation, shrink);
    }

    fn try_grow(&self, reservation: &MemoryReservation, additional: usize) -> Result<()> {
        self.pool.try_grow(reservation, additional).inspect_err(|_| {
            self.refused.store(additional, Relaxed);
            self.in_use.store(self.pool.reserved(), Relaxed);
        })
    }

    fn reserved(&self) -> usize {
        self.pool.reserved()
    }

    fn memory_limit(&self) -> MemoryLimit {
        self.pool.memory_limit()
    }
}

impl fmt::Display for SharedMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.pool.fmt(f)
    }
}
