//! What shipping has done, and how far behind it is.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Counters of one place segments are shipped to. One thread writes them, any may read.
#[derive(Debug, Default)]
pub struct ArchiveCounters {
    pub(crate) segments: AtomicU64,
    pub(crate) rows: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) due_segments: AtomicU64,
    pub(crate) due_bytes: AtomicU64,
    pub(crate) early_segments: AtomicU64,
    pub(crate) early_bytes: AtomicU64,
    /// When the segment that waits longest became due, ms since 1970; 0 for none.
    pub(crate) oldest_due_ms: AtomicU64,
    pub(crate) failures: AtomicU64,
    pub(crate) corrupt: AtomicU64,
    pub(crate) read_back: AtomicU64,
    pub(crate) lost: AtomicU64,
    pub(crate) unreadable: AtomicU64,
    pub(crate) failing: AtomicBool,
    last_error: Mutex<Option<String>>,
}

/// What the counters say at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ArchiveCounts {
    /// Segments that arrived and are listed there, since the start.
    pub segments: u64,
    /// Rows in them.
    pub rows: u64,
    /// Their size.
    pub bytes: u64,
    /// Segments that are due and not there yet.
    pub due_segments: u64,
    /// Their size.
    pub due_bytes: u64,
    /// Segments that may still grow by compaction: not due.
    pub early_segments: u64,
    /// Their size.
    pub early_bytes: u64,
    /// How long the one that waits longest has been due; zero if none is.
    pub lag: Duration,
    /// Attempts that failed; each is repeated.
    pub failures: u64,
    /// Of those, segments that arrived changed.
    pub corrupt: u64,
    /// Segments read back to be compared, where the store's tag is no checksum of theirs.
    pub read_back: u64,
    /// Segments begun that are gone from the data folder, so that they cannot be sent any more.
    pub lost: u64,
    /// Segments whose file could not be read; tried again at the next start.
    pub unreadable: u64,
    /// Whether the latest attempt failed.
    pub failing: bool,
    /// The latest error, for people.
    pub last_error: Option<String>,
}

impl ArchiveCounters {
    /// What they say now.
    pub fn read(&self) -> ArchiveCounts {
        let since = self.oldest_due_ms.load(Relaxed);
        ArchiveCounts {
            segments: self.segments.load(Relaxed),
            rows: self.rows.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
            due_segments: self.due_segments.load(Relaxed),
            due_bytes: self.due_bytes.load(Relaxed),
            early_segments: self.early_segments.load(Relaxed),
            early_bytes: self.early_bytes.load(Relaxed),
            lag: match since {
                0 => Duration::ZERO,
                since => Duration::from_millis(millis(SystemTime::now()).saturating_sub(since)),
            },
            failures: self.failures.load(Relaxed),
            corrupt: self.corrupt.load(Relaxed),
            read_back: self.read_back.load(Relaxed),
            lost: self.lost.load(Relaxed),
            unreadable: self.unreadable.load(Relaxed),
            failing: self.failing.load(Relaxed),
            last_error: self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    pub(crate) fn complain(&self, error: String) {
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }
}

pub(crate) fn millis(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
