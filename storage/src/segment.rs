//! A published segment: what is known of it without opening it, and its end.

use crate::StorageError;
use crate::bloom::{Bloom, Blooms};
use crate::disk::{Disk, OsDisk};
use crate::zones::Zones;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) footer: Option<Footer>,
}

/// The end of a segment's file, its page index and its footer, as it was written. Parquet has checksums of pages only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "[u32; 2]", from = "[u32; 2]")]
pub struct Footer {
    bytes: u32,
    crc32: u32,
}

impl Footer {
    /// `None` if it is longer than any that can be read.
    pub(crate) fn new(bytes: u64, crc32: u32) -> Option<Footer> {
        Some(Footer { bytes: u32::try_from(bytes).ok()?, crc32 })
    }

    /// Where it lies in a file of so many bytes.
    pub fn range(self, file_bytes: u64) -> Range<u64> {
        file_bytes.saturating_sub(u64::from(self.bytes))..file_bytes
    }

    /// Whether `end`, the bytes of its range, are what was written.
    pub fn is(self, end: &[u8]) -> bool {
        end.len() as u64 == u64::from(self.bytes) && crc32fast::hash(end) == self.crc32
    }
}

impl From<Footer> for [u32; 2] {
    fn from(Footer { bytes, crc32 }: Footer) -> [u32; 2] {
        [bytes, crc32]
    }
}

impl From<[u32; 2]> for Footer {
    fn from([bytes, crc32]: [u32; 2]) -> Footer {
        Footer { bytes, crc32 }
    }
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

/// An immutable Parquet file of rows of one table. As long as an `Arc` of it lives, its file stays: retention and compaction
/// only mark it, and the last owner removes it.
#[derive(Debug)]
pub struct Segment {
    /// Its file.
    pub path: PathBuf,
    /// The same below its table's `segments` folder, as the manifest has it.
    pub file: String,
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
    /// All values of `proto` in it, sorted; empty if not known, and where no row has one.
    pub protos: Vec<u8>,
    zones: Zones,
    blooms: Blooms,
    /// Its end; `None` of a segment that was written before this was noted, or found without a manifest.
    pub footer: Option<Footer>,
    /// Who has it to itself: 0, or a [`Claim`].
    claim: AtomicU8,
    /// One bit for each place it has been shipped to.
    shipped: AtomicU8,
    /// Folders below `segments/` that its file is in.
    dirs: usize,
    /// Set once it is out of the manifest.
    doomed: AtomicBool,
    /// Set once it is known not to be merged with others.
    left_alone: AtomicBool,
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

/// Segments that are the compactor's alone. They are given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Claimed(Vec<Arc<Segment>>);

impl Claimed {
    /// `None` if one of them is somebody else's.
    pub(crate) fn take(segments: &[Arc<Segment>]) -> Option<Claimed> {
        let mut claimed = Claimed(Vec::with_capacity(segments.len()));
        for segment in segments {
            if !segment.claim(Claim::Compaction) {
                return None;
            }
            claimed.0.push(segment.clone());
        }
        Some(claimed)
    }

    pub(crate) fn segments(&self) -> &[Arc<Segment>] {
        &self.0
    }

    /// They are merged, and nobody's any more.
    pub(crate) fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for Claimed {
    fn drop(&mut self) {
        self.0.iter().for_each(|segment| segment.release(Claim::Compaction));
    }
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
            file: meta.file.clone(),
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
            footer: meta.footer,
            claim: AtomicU8::new(0),
            shipped: AtomicU8::new(0),
            doomed: AtomicBool::new(false),
            left_alone: AtomicBool::new(false),
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
        Ok(Segment::new(root, &meta, Arc::new(Unlinks::new(Arc::new(OsDisk)))))
    }

    /// What the manifest says of it, as one JSON object.
    pub fn description(&self) -> String {
        let meta = SegmentMeta {
            id: self.id.number,
            part: self.id.part,
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
            footer: self.footer,
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

    pub(crate) fn is_claimed(&self) -> bool {
        self.claim.load(Ordering::Acquire) != 0
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
        Arc::new(Segment::new(segments_dir, meta, Arc::new(Unlinks::new(Arc::new(OsDisk)))))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn segment() -> Arc<Segment> {
        let meta = SegmentMeta {
            id: 7,
            part: 3,
            file: "tap_name=a/x.parquet".into(),
            rows: 10,
            bytes: 1_000,
            t_end_min: 5,
            t_end_max: 9,
            t_start_min: -3,
            taps: vec!["a".into()],
            protos: vec![6, 17],
            zones: Zones::default(),
            blooms: Blooms::default(),
            footer: Footer::new(300, 0xfedc_ba98),
        };
        Segment::of_test(Path::new("none"), &meta)
    }

    #[test]
    fn a_description_gives_the_same_segment_elsewhere() {
        let segment = segment();
        let other = Segment::elsewhere(Path::new("bucket/table=flows"), &segment.description()).unwrap();
        assert_eq!(other.path, Path::new("bucket/table=flows/tap_name=a/x.parquet"));
        assert_eq!((other.id, &other.file), (segment.id, &segment.file));
        assert_eq!(other.description(), segment.description());
        assert!(Segment::elsewhere(Path::new("x"), "{}").is_err());
    }

    #[test]
    fn segments_are_claimed_all_or_none() {
        let all = [segment(), segment(), segment()];
        let claimed = Claimed::take(&all[..2]).unwrap();
        assert!(!all[1].claim(Claim::Shipping));
        drop(claimed);
        assert!(all[1].claim(Claim::Shipping));
        assert!(Claimed::take(&all).is_none());
        assert!(!all[0].is_claimed() && !all[2].is_claimed());
        Claimed::take(&all[2..]).unwrap().keep();
        assert!(!all[2].claim(Claim::Shipping), "it is merged");
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
