//! A published segment: what is known of it without opening it, and its end.

use crate::StorageError;
use crate::bloom::{Bloom, Blooms};
use crate::zones::Zones;
use serde::{Deserialize, Serialize};
use std::fs;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

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
    /// The same below its table's `segments` folder, as the manifest has it.
    pub file: String,
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
    /// Who has it to itself: 0, or a [`Claim`].
    claim: AtomicU8,
    /// One bit for each place it has been shipped to.
    shipped: AtomicU8,
    /// Set once retention has taken it out of the manifest.
    doomed: AtomicBool,
    unlinks: Arc<Unlinks>,
}

/// What a segment is wanted for that only one may do to it. A segment that has left for an archive is never merged into
/// another one, or its rows would be there twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Claim {
    /// To be replaced by a larger one; given back when that fails.
    Compaction = 1,
    /// To be shipped; for good.
    Shipping = 2,
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
            file: meta.file.clone(),
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
            claim: AtomicU8::new(0),
            shipped: AtomicU8::new(0),
            doomed: AtomicBool::new(false),
            unlinks,
        }
    }

    /// A segment that lies outside of any data folder, its file below `root`, from what
    /// [`description`](Segment::description) said of it.
    ///
    /// # Errors
    /// If the text is no description.
    pub fn elsewhere(root: &Path, description: &str) -> Result<Segment, StorageError> {
        let bad = |error: serde_json::Error| StorageError::Damaged {
            path: root.to_owned(),
            offset: 0,
            reason: format!("what is said of a segment does not read: {error}"),
        };
        let meta: SegmentMeta = serde_json::from_str(description).map_err(bad)?;
        Ok(Segment::new(root, &meta, Arc::new(Unlinks::default())))
    }

    /// What the manifest says of it, as one JSON object.
    pub fn description(&self) -> String {
        let meta = SegmentMeta {
            id: self.id,
            file: self.file.clone(),
            rows: self.rows,
            bytes: self.bytes,
            t_end_min: self.t_end_min,
            t_end_max: self.t_end_max,
            t_start_min: self.t_start_min,
            taps: self.taps.clone(),
            protos: self.protos.clone(),
            zones: self.zones.clone(),
            blooms: self.blooms.clone(),
        };
        // Strings, numbers and lists of them: nothing here can fail to serialise.
        serde_json::to_string(&meta).unwrap_or_default()
    }

    /// Takes it for one purpose; `false` if another has it. A purpose may claim what it has already.
    pub fn claim(&self, claim: Claim) -> bool {
        match self.claim.compare_exchange(0, claim as u8, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => true,
            Err(owner) => owner == claim as u8,
        }
    }

    /// Gives it back, if it was claimed for this.
    pub fn release(&self, claim: Claim) {
        let _ = self.claim.compare_exchange(claim as u8, 0, Ordering::AcqRel, Ordering::Acquire);
    }

    /// It has arrived at place number `place`, 0 to 7.
    pub fn set_shipped(&self, place: u8) {
        self.shipped.fetch_or(1 << (place & 7), Ordering::Release);
    }

    /// Whether it has arrived at every place of the bit mask `places`.
    pub fn is_shipped(&self, places: u8) -> bool {
        self.shipped.load(Ordering::Acquire) & places == places
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

#[cfg(test)]
mod tests {
    use super::*;

    fn segment() -> Segment {
        let meta = SegmentMeta {
            id: 7,
            file: "tap=a/x.parquet".into(),
            rows: 10,
            bytes: 1_000,
            t_end_min: 5,
            t_end_max: 9,
            t_start_min: -3,
            taps: vec!["a".into()],
            protos: vec![6, 17],
            zones: Zones::default(),
            blooms: Blooms::default(),
        };
        Segment::new(Path::new("none"), &meta, Arc::new(Unlinks::default()))
    }

    #[test]
    fn a_description_gives_the_same_segment_elsewhere() {
        let segment = segment();
        let other = Segment::elsewhere(Path::new("bucket/table=flows"), &segment.description()).unwrap();
        assert_eq!(other.path, Path::new("bucket/table=flows/tap=a/x.parquet"));
        assert_eq!(other.description(), segment.description());
        assert!(Segment::elsewhere(Path::new("x"), "{}").is_err());
    }

    #[test]
    fn a_segment_is_merged_or_shipped_and_never_both() {
        let segment = segment();
        assert!(segment.claim(Claim::Compaction) && !segment.claim(Claim::Shipping));
        segment.release(Claim::Shipping);
        assert!(!segment.claim(Claim::Shipping), "only its owner gives it back");
        segment.release(Claim::Compaction);
        assert!(segment.claim(Claim::Shipping) && segment.claim(Claim::Shipping) && !segment.claim(Claim::Compaction));
        assert!(segment.is_shipped(0) && !segment.is_shipped(0b10));
        segment.set_shipped(1);
        assert!(segment.is_shipped(0b10) && !segment.is_shipped(0b11));
    }
}
