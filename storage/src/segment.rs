//! A published segment: what is known of it without opening it, and its end.

use crate::bloom::{Bloom, Blooms};
use crate::disk::Disk;
use crate::zones::Zones;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What tells a segment from all others of its table, for the life of the data folder. Prints as `41-3`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentId {
    /// Number of the log file its rows came from, or of the compaction that made it; rises with the order of writing.
    pub number: u64,
    /// Which of the segments of one log, from 0: each has another tap or hour.
    pub part: u8,
}

impl SegmentId {
    /// A name that begins as a segment's file does, without its extension. Segments of format 1 have no part.
    pub(crate) fn parse(stem: &str) -> Option<SegmentId> {
        let (number, part) = stem.split_once('-').unwrap_or((stem, "0"));
        Some(SegmentId { number: number.parse().ok()?, part: part.parse().ok()? })
    }
}

impl fmt::Display for SegmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.number, self.part)
    }
}

/// What the manifest says of a segment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SegmentMeta {
    /// Its number.
    pub(crate) id: u64,
    #[serde(default, skip_serializing_if = "is_first")]
    pub(crate) part: u8,
    /// Below `segments/`.
    pub(crate) file: String,
    pub(crate) rows: u64,
    pub(crate) bytes: u64,
    pub(crate) t_end_min: i64,
    pub(crate) t_end_max: i64,
    pub(crate) t_start_min: i64,
    #[serde(default)]
    pub(crate) taps: Vec<String>,
    #[serde(default)]
    pub(crate) protos: Vec<u8>,
    #[serde(default, skip_serializing_if = "Zones::is_empty")]
    pub(crate) zones: Zones,
    #[serde(default, skip_serializing_if = "Blooms::is_empty")]
    pub(crate) blooms: Blooms,
}

impl SegmentMeta {
    pub(crate) fn key(&self) -> SegmentId {
        SegmentId { number: self.id, part: self.part }
    }
}

/// Parts from the second on stand in the manifest.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
pub(crate) fn is_first(part: &u8) -> bool {
    *part == 0
}

/// An immutable Parquet file of flow records. As long as an `Arc` of it lives, its file stays: retention and compaction
/// only mark it, and the last owner removes it.
#[derive(Debug)]
pub struct Segment {
    /// Its file.
    pub path: PathBuf,
    /// Which it is.
    pub id: SegmentId,
    /// Rows in it, at least 1.
    pub rows: u64,
    /// Size of the file.
    pub bytes: u64,
    /// Earliest `t_end`, µs since 1970.
    pub t_end_min: i64,
    /// Latest `t_end`, µs since 1970.
    pub t_end_max: i64,
    /// Earliest start (`t_end - dur_us`), µs since 1970.
    pub t_start_min: i64,
    /// Names of all taps in it, sorted; empty if not known.
    pub taps: Vec<String>,
    /// All values of `proto` in it, sorted; empty if not known.
    pub protos: Vec<u8>,
    zones: Zones,
    blooms: Blooms,
    /// Folders below `segments/` that its file is in.
    dirs: usize,
    /// Set once it is out of the manifest.
    doomed: AtomicBool,
    /// Set once it is known not to be merged with others.
    left_alone: AtomicBool,
    unlinks: Arc<Unlinks>,
}

/// Files out of the manifest: those waiting for a reader, and those gone.
#[derive(Debug)]
pub(crate) struct Unlinks {
    disk: Arc<dyn Disk>,
    pub(crate) waiting_files: AtomicU64,
    pub(crate) waiting_bytes: AtomicU64,
    pub(crate) failed: AtomicU64,
}

impl Unlinks {
    pub(crate) fn new(disk: Arc<dyn Disk>) -> Unlinks {
        Unlinks { disk, waiting_files: AtomicU64::new(0), waiting_bytes: AtomicU64::new(0), failed: AtomicU64::new(0) }
    }
}

impl Segment {
    pub(crate) fn new(segments_dir: &Path, meta: &SegmentMeta, unlinks: Arc<Unlinks>) -> Segment {
        Segment {
            path: segments_dir.join(&meta.file),
            id: meta.key(),
            rows: meta.rows,
            bytes: meta.bytes,
            t_end_min: meta.t_end_min,
            t_end_max: meta.t_end_max,
            t_start_min: meta.t_start_min,
            taps: meta.taps.clone(),
            protos: meta.protos.clone(),
            dirs: meta.file.matches('/').count(),
            zones: meta.zones.clone(),
            blooms: meta.blooms.clone(),
            doomed: AtomicBool::new(false),
            left_alone: AtomicBool::new(false),
            unlinks,
        }
    }

    /// Smallest and largest value of a column of numbers, an empty range if all are null; `None` if not known. Of the
    /// time there are the fields.
    pub fn zone(&self, column: &str) -> Option<&RangeInclusive<i64>> {
        self.zones.get(column)
    }

    /// Row groups [`Segment::bloom`] knows of; 0 for a segment of a version that did not list its filters.
    pub fn bloom_row_groups(&self) -> usize {
        self.blooms.row_groups()
    }

    /// The bloom filter of a column in a row group; `None` if there is none.
    pub fn bloom(&self, column: &str, row_group: usize) -> Option<Bloom> {
        self.blooms.get(column, row_group)
    }

    /// Compaction is not to look at it again.
    pub(crate) fn leave_alone(&self) {
        self.left_alone.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_left_alone(&self) -> bool {
        self.left_alone.load(Ordering::Relaxed)
    }

    /// Lets the last owner remove the file. Call only after the manifest no longer names it.
    pub(crate) fn doom(&self) {
        if !self.doomed.swap(true, Ordering::AcqRel) {
            self.unlinks.waiting_files.fetch_add(1, Ordering::Relaxed);
            self.unlinks.waiting_bytes.fetch_add(self.bytes, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
impl Segment {
    /// One without a file.
    pub(crate) fn of_test(segments_dir: &Path, meta: &SegmentMeta) -> Arc<Segment> {
        Arc::new(Segment::new(segments_dir, meta, Arc::new(Unlinks::new(Arc::new(crate::disk::OsDisk)))))
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        if !*self.doomed.get_mut() {
            return;
        }
        if let Err(error) = self.unlinks.disk.remove_file(&self.path) {
            // The manifest's record of the removal makes the next start try again.
            self.unlinks.failed.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(path = %self.path.display(), %error, "cannot remove a segment that is no longer listed");
        }
        // Folders go with their last segment; while there is something in one this fails, as it should.
        for dir in self.path.ancestors().skip(1).take(self.dirs) {
            if self.unlinks.disk.remove_dir(dir).is_err() {
                break;
            }
        }
        self.unlinks.waiting_files.fetch_sub(1, Ordering::Relaxed);
        self.unlinks.waiting_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
