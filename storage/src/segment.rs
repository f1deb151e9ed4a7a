//! A published segment: what is known of it without opening it, and its end.

use crate::bloom::{Bloom, Blooms};
use crate::zones::Zones;
use serde::{Deserialize, Serialize};
use std::fs;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What the manifest says of a segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SegmentMeta {
    pub(crate) id: u64,
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

/// An immutable Parquet file of flow records. As long as an `Arc` of it lives, its file stays: retention only marks
/// it, and the last owner removes it.
#[derive(Debug)]
pub struct Segment {
    /// Its file.
    pub path: PathBuf,
    /// Number of the log file its rows came from; rises with the order of writing, never used twice.
    pub id: u64,
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
    /// Set once retention has taken it out of the manifest.
    doomed: AtomicBool,
    unlinks: Arc<Unlinks>,
}

/// Files retention has dropped: those waiting for a reader, and those gone.
#[derive(Debug, Default)]
pub(crate) struct Unlinks {
    pub(crate) waiting_files: AtomicU64,
    pub(crate) waiting_bytes: AtomicU64,
    pub(crate) failed: AtomicU64,
}

impl Segment {
    pub(crate) fn new(segments_dir: &Path, meta: &SegmentMeta, unlinks: Arc<Unlinks>) -> Segment {
        Segment {
            path: segments_dir.join(&meta.file),
            id: meta.id,
            rows: meta.rows,
            bytes: meta.bytes,
            t_end_min: meta.t_end_min,
            t_end_max: meta.t_end_max,
            t_start_min: meta.t_start_min,
            taps: meta.taps.clone(),
            protos: meta.protos.clone(),
            zones: meta.zones.clone(),
            blooms: meta.blooms.clone(),
            doomed: AtomicBool::new(false),
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

    /// Lets the last owner remove the file. Call only after the manifest no longer names it.
    pub(crate) fn doom(&self) {
        if !self.doomed.swap(true, Ordering::AcqRel) {
            self.unlinks.waiting_files.fetch_add(1, Ordering::Relaxed);
            self.unlinks.waiting_bytes.fetch_add(self.bytes, Ordering::Relaxed);
        }
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        if !*self.doomed.get_mut() {
            return;
        }
        if let Err(error) = fs::remove_file(&self.path) {
            // The manifest's record of the removal makes the next start try again.
            self.unlinks.failed.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(path = %self.path.display(), %error, "cannot remove an expired segment");
        }
        // The day's folder goes with its last segment; while others are in it this fails, as it should.
        if let Some(day) = self.path.parent() {
            let _ = fs::remove_dir(day);
        }
        self.unlinks.waiting_files.fetch_sub(1, Ordering::Relaxed);
        self.unlinks.waiting_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
