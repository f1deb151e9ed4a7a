//! Which segments go, and when.

use crate::manifest::Removed;
use crate::options::Retention;
use crate::segment::Segment;
use crate::shared::Shared;
use crate::{StorageError, sys};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Drops what is due. Files that readers hold go when the last of them lets go.
pub(crate) fn apply(shared: &Shared, retention: &Retention, wall: SystemTime) -> Result<(), StorageError> {
    if *retention == Retention::default() {
        return Ok(());
    }
    let mut segments = shared.state().segments.clone();
    segments.sort_unstable_by_key(|segment| (segment.t_end_max, segment.id));
    let free = match retention.min_free_bytes {
        // Bytes of dropped files that readers still hold are as good as free: they need no further victims.
        Some(_) => sys::free_bytes(&shared.layout.dir)
            .map_err(|source| StorageError::Io {
                action: "ask for free space of",
                path: shared.layout.dir.clone(),
                source,
            })?
            .saturating_add(shared.unlinks.waiting_bytes.load(Ordering::Relaxed)),
        None => u64::MAX,
    };
    let count = due(&segments, retention, wall, free);
    if count == 0 {
        return Ok(());
    }
    segments.truncate(count);
    drop_segments(shared, segments)
}

/// How many of `segments`, oldest first, are to go.
fn due(segments: &[Arc<Segment>], retention: &Retention, wall: SystemTime, free: u64) -> usize {
    let expired = match retention.max_age {
        Some(max_age) => {
            let oldest = micros(wall.duration_since(UNIX_EPOCH).unwrap_or_default()).saturating_sub(micros(max_age));
            segments.partition_point(|segment| segment.t_end_max < oldest)
        }
        None => 0,
    };
    let mut count = expired;
    let gone: u64 = segments[..expired].iter().map(|segment| segment.bytes).sum();
    let mut bytes: u64 = segments[expired..].iter().map(|segment| segment.bytes).sum();
    let mut free = free.saturating_add(gone);
    let max_bytes = retention.max_bytes.unwrap_or(u64::MAX);
    let min_free = retention.min_free_bytes.unwrap_or(0);
    while count + 1 < segments.len() && (bytes > max_bytes || free < min_free) {
        bytes -= segments[count].bytes;
        free = free.saturating_add(segments[count].bytes);
        count += 1;
    }
    count
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

fn drop_segments(shared: &Shared, victims: Vec<Arc<Segment>>) -> Result<(), StorageError> {
    let segments_dir = shared.layout.segments_dir();
    let removed = victims
        .iter()
        .map(|segment| Removed {
            id: segment.id,
            file: segment.path.strip_prefix(&segments_dir).unwrap_or(&segment.path).to_string_lossy().into_owned(),
        })
        .collect();
    shared.manifest().remove(removed)?;
    let rows: u64 = victims.iter().map(|segment| segment.rows).sum();
    let bytes: u64 = victims.iter().map(|segment| segment.bytes).sum();
    let mut state = shared.state();
    let mut ids: Vec<u64> = victims.iter().map(|segment| segment.id).collect();
    ids.sort_unstable();
    state.segments.retain(|segment| ids.binary_search(&segment.id).is_err());
    state.counts.segments_removed += victims.len() as u64;
    state.counts.rows_removed += rows;
    state.counts.bytes_removed += bytes;
    drop(state);
    tracing::info!(segments = victims.len(), rows, bytes, "retention dropped the oldest segments");
    for segment in &victims {
        segment.doom();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment::{SegmentMeta, Unlinks};
    use std::path::Path;

    fn segments(ends_s: &[i64]) -> Vec<Arc<Segment>> {
        let meta = |(id, &end): (usize, &i64)| SegmentMeta {
            id: id as u64,
            file: format!("{id}.parquet"),
            rows: 1,
            bytes: 100,
            t_end_min: end * 1_000_000,
            t_end_max: end * 1_000_000,
            t_start_min: end * 1_000_000,
            taps: Vec::new(),
            protos: Vec::new(),
        };
        let new = |meta| Arc::new(Segment::new(Path::new("none"), &meta, Arc::new(Unlinks::default())));
        ends_s.iter().enumerate().map(meta).map(new).collect()
    }

    #[test]
    fn each_limit_takes_just_enough_of_the_oldest() {
        let all = segments(&[10, 20, 30, 40]);
        let wall = UNIX_EPOCH + Duration::from_secs(50);
        let none = Retention::default();
        let age = |s| Retention { max_age: Some(Duration::from_secs(s)), ..none };
        let bytes = |n| Retention { max_bytes: Some(n), ..none };
        let free = |n| Retention { min_free_bytes: Some(n), ..none };
        assert_eq!(due(&all, &none, wall, 0), 0);
        assert_eq!(due(&all, &age(30), wall, 0), 1, "exactly as old as allowed stays");
        assert_eq!(due(&all, &age(29), wall, 0), 2);
        assert_eq!(due(&all, &age(0), wall, 0), 4, "age takes the newest too");
        assert_eq!(due(&all, &bytes(400), wall, 0), 0);
        assert_eq!(due(&all, &bytes(399), wall, 0), 1);
        assert_eq!(due(&all, &bytes(0), wall, 0), 3, "size leaves the newest");
        assert_eq!(due(&all, &free(50), wall, 50), 0);
        assert_eq!(due(&all, &free(251), wall, 50), 3);
        let both = Retention { max_age: Some(Duration::from_secs(35)), min_free_bytes: Some(250), ..none };
        assert_eq!(due(&all, &both, wall, 60), 2, "what age frees counts");
    }
}
