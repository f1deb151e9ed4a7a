//! Which segments are worth merging.
//!
//! Segments of one partition, smallest first, are merged as long as the largest of them has no more rows than the others
//! together. A row's segment at least doubles each time, so a row is rewritten at most log2(`segment_rows_max`) times,
//! and at rest a partition has at most about as many segments.

use crate::options::Compaction;
use crate::partition;
use crate::segment::Segment;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// Most segments in one job: each costs an open file's metadata.
const INPUTS_MAX: usize = 512;
/// A partition is at rest once the table has rows this much later than the end of its last hour: long flows come late.
const SETTLED_US: i64 = 15 * 60 * 1_000_000;
const HOUR_US: i64 = 3_600_000_000;

/// Segments to be merged into one.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    /// Their partition's folder below `segments/`.
    pub(crate) dir: String,
    /// At least two, smallest first.
    pub(crate) inputs: Vec<Arc<Segment>>,
}

/// The job that saves most segments, if any is worth it. Segments that have left for an archive stay as they are.
pub(crate) fn plan(segments: &[Arc<Segment>], compaction: &Compaction, rows_max: u64) -> Option<Job> {
    let newest = segments.iter().map(|segment| segment.t_end_max).max()?;
    let mut partitions: BTreeMap<&str, Vec<&Arc<Segment>>> = BTreeMap::new();
    for segment in segments.iter().filter(|segment| !segment.is_left_alone() && !segment.is_claimed()) {
        // Those of format 1 have rows of several hours and taps, and stay as they are.
        if let Some(dir) = partition::of_file(Path::new(&segment.file)) {
            partitions.entry(dir).or_default().push(segment);
        }
    }
    let mut best: Option<Job> = None;
    for (dir, mut segments) in partitions {
        segments.sort_by_key(|segment| (segment.rows, segment.id));
        let last = segments.iter().map(|segment| segment.t_end_max).max()?;
        let settled = last.div_euclid(HOUR_US).saturating_add(1).saturating_mul(HOUR_US).saturating_add(SETTLED_US);
        let least = if newest >= settled { 2 } else { compaction.segments_min };
        let rows: Vec<u64> = segments.iter().map(|segment| segment.rows).collect();
        let count = worth_merging(&rows, rows_max).min(INPUTS_MAX);
        if count >= least && best.as_ref().is_none_or(|best| count > best.inputs.len()) {
            best = Some(Job { dir: dir.to_owned(), inputs: segments[..count].iter().map(|s| (*s).clone()).collect() });
        }
    }
    best
}

/// How many of the smallest segments, of which these are the rows, make a segment together in which each row's share
/// is at most half. 0 if no two do.
fn worth_merging(rows: &[u64], rows_max: u64) -> usize {
    let (mut count, mut before) = (0, 0u64);
    for (at, &rows) in rows.iter().enumerate() {
        if before.saturating_add(rows) > rows_max {
            break;
        }
        if at > 0 && rows <= before {
            count = at + 1;
        }
        before += rows;
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment::{Claim, SegmentMeta};

    const MINUTE_US: i64 = 60_000_000;

    /// Of segments as (folder, rows, latest end in minutes).
    fn job(segments: &[(&str, u64, i64)], segments_min: usize) -> Option<(String, Vec<u64>)> {
        job_without(segments, &[], segments_min)
    }

    /// The same, some of them being shipped.
    fn job_without(
        segments: &[(&str, u64, i64)],
        shipping: &[usize],
        segments_min: usize,
    ) -> Option<(String, Vec<u64>)> {
        let segment = |(number, &(dir, rows, minute)): (usize, &(&str, u64, i64))| {
            let meta = SegmentMeta {
                id: number as u64,
                file: format!("{dir}/{number:016}.parquet"),
                rows,
                t_end_min: minute * MINUTE_US,
                t_end_max: minute * MINUTE_US,
                ..SegmentMeta::default()
            };
            Segment::of_test(Path::new("s"), &meta)
        };
        let segments: Vec<_> = segments.iter().enumerate().map(segment).collect();
        let compaction = Compaction { segments_min, ..Compaction::default() };
        assert!(shipping.iter().all(|&at| segments[at].claim(Claim::Shipping)));
        let job = plan(&segments, &compaction, 1_000)?;
        Some((job.dir, job.inputs.iter().map(|segment| segment.rows).collect()))
    }

    #[test]
    fn a_prefix_is_merged_whose_largest_is_no_larger_than_the_rest() {
        let merged = |rows: &[u64]| worth_merging(rows, 1_000);
        assert_eq!(merged(&[]), 0);
        assert_eq!(merged(&[5]), 0);
        assert_eq!(merged(&[5, 5]), 2);
        assert_eq!(merged(&[1, 900]), 0, "one row is not worth 900");
        assert_eq!(merged(&[1, 2, 4, 8]), 0, "each larger than all before: at rest");
        assert_eq!(merged(&[1, 2, 3, 4]), 4);
        assert_eq!(merged(&[1, 5, 6, 900]), 3);
        assert_eq!(merged(&[300, 300, 300, 300]), 3, "no more than a segment may have");
        assert_eq!(merged(&[600, 600]), 0);
    }

    #[test]
    fn a_partition_that_still_receives_rows_waits_for_more() {
        let (a, b) = ("tap_name=a/date=1970-01-01/hour=00", "tap_name=b/date=1970-01-01/hour=00");
        let three = [(a, 10, 5), (a, 10, 6), (a, 10, 7)];
        assert_eq!(job(&three, 4), None);
        assert_eq!(job(&three, 3), Some((a.to_owned(), vec![10, 10, 10])));
        assert_eq!(job_without(&three, &[1], 2), Some((a.to_owned(), vec![10, 10])), "what leaves is not merged");
        assert_eq!(job_without(&three, &[0, 1], 2), None);
        let with = |minute| [three.as_slice(), &[(b, 10, minute)]].concat();
        assert_eq!(job(&with(74), 4), None);
        assert_eq!(job(&with(75), 4), Some((a.to_owned(), vec![10, 10, 10])), "a quarter of an hour after its end");
        let days = [("1970-01-01", 10, 5), ("1970-01-01", 10, 6), ("1970-01-02", 10, 9_999)];
        assert_eq!(job(&days, 2), None, "segments of format 1 stay as they are");
    }

    /// Whatever comes, a row is rewritten no more often than the bound says, and partitions stay small.
    #[test]
    fn rows_are_rewritten_logarithmically_often() {
        let mut random = 0x2545_f491_4f6c_dd1d_u64;
        let mut next = || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random
        };
        // Each segment as (rows, most often any of them was rewritten).
        let mut segments: Vec<(u64, u32)> = Vec::new();
        for _ in 0..20_000 {
            segments.push((1 + next() % 10, 0));
            loop {
                segments.sort_unstable();
                let rows: Vec<u64> = segments.iter().map(|(rows, _)| *rows).collect();
                let count = worth_merging(&rows, 1 << 20);
                if count < 2 {
                    break;
                }
                let merged: Vec<_> = segments.drain(..count).collect();
                let times = merged.iter().map(|(_, times)| times + 1).max().unwrap();
                segments.push((merged.iter().map(|(rows, _)| rows).sum(), times));
            }
            assert!(segments.len() <= 20, "{segments:?}");
        }
        assert!(segments.iter().all(|(_, times)| *times <= 20), "{segments:?}");
    }
}
