use std::fmt;
use std::path::PathBuf;
use wire::Nanos;

/// Names a slice for ever: no other has it, before or after a restart. Seconds since 1970 of the request, or the next
/// free number after it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct SliceId(pub u64);

impl fmt::Display for SliceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What is known of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceInfo {
    /// Its number.
    pub id: SliceId,
    /// Short name, part of the file's: letters a-z, digits and hyphens.
    pub label: String,
    /// Why it was recorded, in words.
    pub reason: String,
    /// The filter as text; empty for all packets.
    pub filter: String,
    /// How far it is.
    pub state: SliceState,
    /// Packets in the file.
    pub packets: u64,
    /// Captured bytes of them, headers of the file not included.
    pub bytes: u64,
    /// Size of the file, compressed.
    pub file_bytes: u64,
    /// Packets that matched and are missing: the queue to the writer was full and there is no history to catch up
    /// from, or the packet is too long for the queue.
    pub dropped_queue_full: u64,
    /// Packets that the history overwrote before the filter saw them; whether they would have matched is not known.
    pub overwritten: u64,
    /// Packets that matched and are missing because the disk was full, or the slice had too many interfaces.
    pub lost_disk: u64,
    /// Why it ended; `None` while it records.
    pub ended_by: Option<EndReason>,
    /// Where the file is, or will be.
    pub path: PathBuf,
    /// Packet time of the trigger; `None` while no packet was ever seen.
    pub at: Option<Nanos>,
    /// Time of the earliest packet.
    pub first_ts: Option<Nanos>,
    /// Time of the latest packet.
    pub last_ts: Option<Nanos>,
}

/// How far a slice is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SliceState {
    /// Packets are being added.
    Recording,
    /// The file is complete and can be read.
    Complete,
    /// There is no file; the sentence says why.
    Failed(String),
}

/// Why a slice ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum EndReason {
    /// Its time was over.
    Duration = 0,
    /// It reached its bytes, or the folder its limit.
    Size = 1,
    /// Somebody stopped it.
    Stopped = 2,
    /// The server stopped.
    Shutdown = 3,
    /// No space left on the disk. What was written before is complete.
    DiskFull = 4,
    /// Every source ended before its time was over.
    SourceEnded = 5,
    /// The folder or file could not be written for another reason than space.
    Failed = 6,
    /// The server died while recording; the file was completed at the next start with what was there.
    Crash = 7,
}

impl EndReason {
    /// How many there are.
    pub const COUNT: usize = 8;
    /// All of them, by `as usize`.
    pub const ALL: [EndReason; EndReason::COUNT] = [
        EndReason::Duration,
        EndReason::Size,
        EndReason::Stopped,
        EndReason::Shutdown,
        EndReason::DiskFull,
        EndReason::SourceEnded,
        EndReason::Failed,
        EndReason::Crash,
    ];

    /// Name in metrics, JSON and the file.
    pub fn name(self) -> &'static str {
        match self {
            EndReason::Duration => "duration",
            EndReason::Size => "size",
            EndReason::Stopped => "stopped",
            EndReason::Shutdown => "shutdown",
            EndReason::DiskFull => "disk_full",
            EndReason::SourceEnded => "source_ended",
            EndReason::Failed => "failed",
            EndReason::Crash => "crash",
        }
    }

    pub(super) fn from_name(name: &str) -> Option<EndReason> {
        EndReason::ALL.into_iter().find(|reason| reason.name() == name)
    }
}

/// Totals since the start, for metrics. Taken while threads count, they may be a batch apart from each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SliceCounts {
    /// Packets written to slices.
    pub packets: u64,
    /// Captured bytes of them.
    pub bytes: u64,
    /// See [`SliceInfo::dropped_queue_full`].
    pub dropped_queue_full: u64,
    /// See [`SliceInfo::overwritten`].
    pub overwritten: u64,
    /// See [`SliceInfo::lost_disk`].
    pub lost_disk: u64,
    /// Slices that ended, by `EndReason as usize`.
    pub ended: [u64; EndReason::COUNT],
    /// Complete slices removed because the folder was full.
    pub removed: u64,
    /// Requests refused.
    pub refused: u64,
    /// Slices being recorded now.
    pub active: u64,
    /// Bytes of all files in the folder now.
    pub file_bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_numbered_and_named_without_doubt() {
        for (n, reason) in EndReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, n);
            assert_eq!(EndReason::from_name(reason.name()), Some(reason));
        }
        assert_eq!(EndReason::from_name("tired"), None);
    }
}
