use crate::StorageError;
use crate::disk::{Disk, OsDisk};
use crate::encode::SegmentProfile;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// How a data folder is written.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// The data folder; created if it is missing.
    pub dir: PathBuf,
    /// Name of each tap by its `TapId`.
    pub tap_names: Vec<String>,
    /// Rows after which a segment is begun, 1 to 16 Mi. Memory for rows not in a segment yet is about 250 bytes times
    /// this times (`frozen_max` + 1).
    pub segment_rows_max: u64,
    /// Wall time after which a segment is begun even if it is small.
    pub segment_age_max: Duration,
    /// Wall time after which rows are durable at the latest.
    pub wal_sync_interval: Duration,
    /// Bytes of log after which rows are made durable even before that.
    pub wal_sync_bytes: u64,
    /// Rows of a batch, the unit of writing to the log, 1 to 65536. 8192 keeps a batch in the second-level cache.
    pub batch_rows: usize,
    /// Segments waiting to be encoded before `append` waits, 1 to 64.
    pub frozen_max: usize,
    /// What to drop, and when.
    pub retention: Retention,
    /// Merging of small segments.
    pub compaction: Compaction,
    /// Segments that have left for an archive, as table and file below `segments`: claimed for that before anything could
    /// merge them.
    pub left: BTreeSet<(String, String)>,
    /// Parquet features to use.
    pub profile: SegmentProfile,
    /// What to do when the disk does not take rows.
    pub on_error: OnError,
    /// Where files are.
    pub disk: Arc<dyn Disk>,
}

impl StoreOptions {
    /// The defaults for a server: segments of 1 Mi rows or one minute, durable within a second, nothing dropped.
    pub fn new(dir: impl Into<PathBuf>, tap_names: Vec<String>) -> StoreOptions {
        StoreOptions {
            dir: dir.into(),
            tap_names,
            segment_rows_max: 1 << 20,
            segment_age_max: Duration::from_secs(60),
            wal_sync_interval: Duration::from_secs(1),
            wal_sync_bytes: 32 << 20,
            batch_rows: 8_192,
            frozen_max: 2,
            retention: Retention::default(),
            compaction: Compaction::default(),
            left: BTreeSet::new(),
            profile: SegmentProfile::Tuned,
            on_error: OnError::Count,
            disk: Arc::new(OsDisk),
        }
    }

    pub(crate) fn check(&self) -> Result<(), StorageError> {
        let option = |field, value: String, allowed| Err(StorageError::Option { field, value, allowed });
        if !(1..=16 << 20).contains(&self.segment_rows_max) {
            return option("segment_rows_max", self.segment_rows_max.to_string(), "1 to 16777216");
        }
        if !(1..=65_536).contains(&self.batch_rows) {
            return option("batch_rows", self.batch_rows.to_string(), "1 to 65536");
        }
        if !(1..=64).contains(&self.frozen_max) {
            return option("frozen_max", self.frozen_max.to_string(), "1 to 64");
        }
        if !(2..=512).contains(&self.compaction.segments_min) {
            return option("compaction.segments_min", self.compaction.segments_min.to_string(), "2 to 512");
        }
        if self.compaction.bytes_per_s == 0 {
            return option("compaction.bytes_per_s", "0".to_owned(), "at least 1");
        }
        if self.tap_names.len() > usize::from(u16::MAX) {
            return option("tap_names", format!("{} names", self.tap_names.len()), "at most 65535 names");
        }
        Ok(())
    }
}

/// When segments are dropped, oldest first. Each limit holds by itself; without any, nothing is ever dropped.
/// The newest segment always stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// Drop a segment once its latest flow ended longer ago than this, by the wall clock. Not for replays of old
    /// captures, which would go at once.
    pub max_age: Option<Duration>,
    /// Bytes of all segments together.
    pub max_bytes: Option<u64>,
    /// Bytes to keep free on the file system.
    pub min_free_bytes: Option<u64>,
    /// Places every segment is shipped to, as a bit mask. What has not arrived at all of them stays, beyond its age and
    /// beyond `max_bytes`; only `min_free_bytes` still takes it, since a full disk would cost what comes next.
    pub shipped_to: u8,
}

/// How small segments are merged, in the background: those that have their partition, a tap and an hour, in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compaction {
    /// Whether they are.
    pub enabled: bool,
    /// Segments that make it worth while in a partition that still receives rows, 2 to 512. In one at rest it is two.
    pub segments_min: usize,
    /// Bytes read and written a second at most. Memory is that of `segment_rows_max` rows, about 250 bytes each.
    pub bytes_per_s: u64,
}

impl Default for Compaction {
    fn default() -> Compaction {
        Compaction { enabled: true, segments_min: 8, bytes_per_s: 32 << 20 }
    }
}

/// What to do when the disk does not take rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnError {
    /// Count the rows as lost and go on, for a live source: it works again as soon as the disk does.
    #[default]
    Count,
    /// Count them, and also return the error: for a replay, which can be repeated.
    Fail,
}

/// The clocks `Store::tick` decides by: intervals by the monotonic one, ages of packets by the wall clock.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// Never goes back.
    pub mono: Instant,
    /// What packet times are compared with.
    pub wall: SystemTime,
}

impl Now {
    /// Both clocks, now.
    pub fn read() -> Now {
        Now { mono: Instant::now(), wall: SystemTime::now() }
    }
}
