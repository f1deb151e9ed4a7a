//! Which segments go, and when.

use crate::error::IoContext;
use crate::manifest::Removed;
use crate::options::Retention;
use crate::segment::Segment;
use crate::shared::{Rows, Shared};
use crate::table::Columns;
use crate::{StorageError, sys};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Drops what is due from the tables of the data folder `dir`, whose limits of size hold for all of them together.
/// Files that readers hold go when the last of them lets go.
pub(crate) fn apply(
    dir: &Path,
    tables: &[&dyn Rows],
    retention: &Retention,
    wall: SystemTime,
) -> Result<(), StorageError> {
    if *retention == Retention::default() {
        return Ok(());
    }
    let mut all: Vec<(usize, Arc<Segment>)> = Vec::new();
    for (table, rows) in tables.iter().enumerate() {
        all.extend(rows.segments().iter().map(|segment| (table, segment.clone())));
    }
    all.sort_unstable_by_key(|(table, segment)| (segment.t_end_max, *table, segment.id));
    let free = match retention.min_free_bytes {
        // Bytes of dropped files that readers still hold are as good as free: they need no further victims.
        Some(_) => tables.iter().fold(sys::free_bytes(dir).at("ask for free space of", dir)?, |free, rows| {
            free.saturating_add(rows.waiting_bytes())
        }),
        None => u64::MAX,
    };
    let victims = due(&all, retention, wall, free);
    for (table, rows) in tables.iter().enumerate() {
        let own: Vec<_> = victims.iter().filter(|(of, _)| *of == table).map(|(_, segment)| segment.clone()).collect();
        if !own.is_empty() {
            rows.drop_segments(own, retention.shipped_to)?;
        }
    }
    Ok(())
}

/// Which of `segments`, oldest first, each with the number of its table, are to go.
fn due(
    segments: &[(usize, Arc<Segment>)],
    retention: &Retention,
    wall: SystemTime,
    free: u64,
) -> Vec<(usize, Arc<Segment>)> {
    let oldest = retention
        .max_age
        .map(|max_age| micros(wall.duration_since(UNIX_EPOCH).unwrap_or_default()).saturating_sub(micros(max_age)));
    let is_expired = |segment: &Segment| oldest.is_some_and(|oldest| segment.t_end_max < oldest);
    let has_left = |segment: &Segment| segment.is_shipped(retention.shipped_to);
    let (mut victims, rest): (Vec<_>, Vec<_>) =
        segments.iter().cloned().partition(|(_, segment)| is_expired(segment) && has_left(segment));
    let mut bytes: u64 = rest.iter().map(|(_, segment)| segment.bytes).sum();
    let mut free = victims.iter().fold(free, |free, (_, segment)| free.saturating_add(segment.bytes));
    let max_bytes = retention.max_bytes.unwrap_or(u64::MAX);
    let min_free = retention.min_free_bytes.unwrap_or(0);
    for (at, (table, segment)) in rest.iter().enumerate() {
        let is_full = free < min_free;
        if bytes <= max_bytes && !is_full {
            break;
        }
        let is_newest = !rest[at + 1..].iter().any(|(other, _)| other == table);
        if !is_newest && (is_full || has_left(segment)) {
            bytes -= segment.bytes;
            free = free.saturating_add(segment.bytes);
            victims.push((*table, segment.clone()));
        }
    }
    victims
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

pub(crate) fn drop_segments<C: Columns>(
    shared: &Shared<C>,
    victims: Vec<Arc<Segment>>,
    shipped_to: u8,
) -> Result<(), StorageError> {
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
    let unshipped = victims.iter().filter(|segment| !segment.is_shipped(shipped_to)).count();
    let mut state = shared.state();
    let mut ids: Vec<u64> = victims.iter().map(|segment| segment.id).collect();
    ids.sort_unstable();
    Arc::make_mut(&mut state.segments).remove(&ids);
    state.counts.segments_removed += victims.len() as u64;
    state.counts.rows_removed += rows;
    state.counts.bytes_removed += bytes;
    state.counts.segments_removed_unshipped += unshipped as u64;
    drop(state);
    let table = C::TABLE.name;
    tracing::info!(table, segments = victims.len(), rows, bytes, "retention dropped the oldest segments");
    if unshipped > 0 {
        tracing::error!(
            table,
            segments = unshipped,
            "the disk is nearly full: segments went that were not shipped yet"
        );
    }
    for segment in &victims {
        segment.doom();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment::{SegmentMeta, Unlinks};

    fn segments(ends_s: &[i64]) -> Vec<(usize, Arc<Segment>)> {
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
            zones: Default::default(),
            blooms: Default::default(),
        };
        let new = |meta| Arc::new(Segment::new(Path::new("none"), &meta, Arc::new(Unlinks::default())));
        ends_s.iter().enumerate().map(meta).map(|meta| (0, new(meta))).collect()
    }

    #[test]
    fn each_limit_takes_just_enough_of_the_oldest() {
        let all = segments(&[10, 20, 30, 40]);
        let wall = UNIX_EPOCH + Duration::from_secs(50);
        let none = Retention::default();
        let due = |all: &[_], retention: &Retention, wall, free| super::due(all, retention, wall, free).len();
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

    #[test]
    fn what_has_not_been_shipped_stays_until_the_disk_is_nearly_full() {
        let all = segments(&[10, 20, 30, 40]);
        let wall = UNIX_EPOCH + Duration::from_secs(50);
        let due = |retention: &Retention, free| {
            super::due(&all, retention, wall, free).into_iter().map(|(_, s)| s.id).collect::<Vec<_>>()
        };
        let limits = Retention {
            max_age: Some(Duration::from_secs(25)),
            max_bytes: Some(100),
            min_free_bytes: Some(100),
            shipped_to: 0b11,
        };
        assert_eq!(due(&limits, 100), [] as [u64; 0]);
        all[0].1.set_shipped(0);
        all[1].1.set_shipped(0);
        all[1].1.set_shipped(1);
        assert_eq!(due(&limits, 100), [1], "one place is not both");
        assert_eq!(due(&limits, 0), [1], "what is due anyway may be enough");
        let full = Retention { min_free_bytes: Some(200), ..limits };
        assert_eq!(due(&full, 0), [1, 0], "the oldest goes all the same");
        assert_eq!(due(&Retention { shipped_to: 0, ..limits }, 100), [0, 1, 2]);
    }

    #[test]
    fn tables_share_the_limits_and_each_keeps_its_newest() {
        let mut all = segments(&[10, 20, 30, 40, 50]);
        for at in [0, 2] {
            all[at].0 = 1;
        }
        let bytes = |n| Retention { max_bytes: Some(n), ..Retention::default() };
        let gone = |n| {
            let victims = super::due(&all, &bytes(n), UNIX_EPOCH, u64::MAX);
            victims.into_iter().map(|(table, segment)| (table, segment.id)).collect::<Vec<_>>()
        };
        assert_eq!(gone(500), []);
        assert_eq!(gone(300), [(1, 0), (0, 1)], "the oldest of either");
        assert_eq!(gone(200), [(1, 0), (0, 1), (0, 3)], "the other table's newest stays");
        assert_eq!(gone(0), [(1, 0), (0, 1), (0, 3)]);
    }
}
