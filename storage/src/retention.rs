//! Which segments go, and when.

use crate::StorageError;
use crate::disk::Disk;
use crate::error::IoContext;
use crate::manifest::Removed;
use crate::options::Retention;
use crate::segment::{Segment, SegmentId};
use crate::segments::Segments;
use crate::shared::{Rows, Shared};
use crate::table::Columns;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Drops what is due from the tables of the data folder `dir`, whose limits of size hold for all of them together.
/// Files that readers hold go when the last of them lets go.
pub(crate) fn apply(
    disk: &dyn Disk,
    dir: &Path,
    tables: &[&dyn Rows],
    retention: &Retention,
    wall: SystemTime,
) -> Result<(), StorageError> {
    if *retention == Retention::default() {
        return Ok(());
    }
    let all = by_age(tables.iter().map(|rows| rows.segments()));
    let free = match retention.min_free_bytes {
        // Bytes of dropped files that readers still hold are as good as free: they need no further victims.
        Some(_) => tables.iter().fold(disk.free_bytes(dir).at("ask for free space of", dir)?, |free, rows| {
            free.saturating_add(rows.waiting_bytes())
        }),
        None => u64::MAX,
    };
    let victims = due(&all, retention, wall, free);
    for (table, rows) in tables.iter().enumerate() {
        let own: Vec<_> =
            victims.iter().filter(|(of, ..)| *of == table).map(|(_, segment, _)| segment.clone()).collect();
        if !own.is_empty() {
            rows.drop_segments(own)?;
        }
    }
    Ok(())
}

/// Which limit a segment is dropped for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// `Retention::max_age`.
    MaxAge,
    /// `Retention::max_bytes`.
    MaxBytes,
    /// `Retention::min_free_bytes`.
    MinFree,
}

/// A segment that retention would drop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expiring {
    /// Its table.
    pub table: &'static str,
    /// Its file, below the data folder.
    pub file: String,
    /// Earliest time of its rows, µs since 1970.
    pub oldest_us: i64,
    /// Latest time of its rows, µs since 1970.
    pub newest_us: i64,
    /// Rows in it.
    pub rows: u64,
    /// Size of the file.
    pub bytes: u64,
    /// Why it goes.
    pub limit: Limit,
}

/// What retention would do now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RetentionPlan {
    /// Oldest first.
    pub dropped: Vec<Expiring>,
    /// Segments that stay.
    pub kept_segments: u64,
    /// Rows in them.
    pub kept_rows: u64,
    /// Their size.
    pub kept_bytes: u64,
    /// Size of files that are listed no more, and go when the last reader lets go. Limits take them for gone.
    pub waiting_bytes: u64,
    /// Bytes free on the file system.
    pub free_bytes: u64,
}

/// What a table holds.
pub(crate) struct Held {
    pub(crate) table: &'static str,
    /// Listed segments.
    pub(crate) segments: Arc<Segments>,
    /// Bytes of files that are listed no more.
    pub(crate) waiting_bytes: u64,
}

/// What retention would drop from the tables of the data folder `dir`.
pub(crate) fn plan(
    disk: &dyn Disk,
    dir: &Path,
    tables: &[Held],
    retention: &Retention,
    wall: SystemTime,
) -> Result<RetentionPlan, StorageError> {
    let all = by_age(tables.iter().map(|held| held.segments.clone()));
    let free_bytes = disk.free_bytes(dir).at("ask for free space of", dir)?;
    let waiting_bytes = tables.iter().map(|held| held.waiting_bytes).sum::<u64>();
    let dropped = due(&all, retention, wall, free_bytes.saturating_add(waiting_bytes));
    let mut plan = RetentionPlan { waiting_bytes, free_bytes, ..RetentionPlan::default() };
    plan.kept_segments = (all.len() - dropped.len()) as u64;
    let sum = |of: fn(&Segment) -> u64| {
        let all: u64 = all.iter().map(|(_, segment)| of(segment)).sum();
        all - dropped.iter().map(|(_, segment, _)| of(segment)).sum::<u64>()
    };
    (plan.kept_rows, plan.kept_bytes) = (sum(|segment| segment.rows), sum(|segment| segment.bytes));
    plan.dropped = dropped
        .into_iter()
        .map(|(table, segment, limit)| Expiring {
            table: tables[table].table,
            file: segment.path.strip_prefix(dir).unwrap_or(&segment.path).to_string_lossy().into_owned(),
            oldest_us: segment.t_end_min,
            newest_us: segment.t_end_max,
            rows: segment.rows,
            bytes: segment.bytes,
            limit,
        })
        .collect();
    Ok(plan)
}

/// The segments of all tables, each with the number of its table, oldest first.
fn by_age(tables: impl Iterator<Item = Arc<Segments>>) -> Vec<(usize, Arc<Segment>)> {
    let mut all: Vec<(usize, Arc<Segment>)> = Vec::new();
    for (table, segments) in tables.enumerate() {
        all.extend(segments.iter().map(|segment| (table, segment.clone())));
    }
    all.sort_unstable_by_key(|(table, segment)| (segment.t_end_max, *table, segment.id));
    all
}

/// Which of `segments`, oldest first, each with the number of its table, are to go, and for which limit.
fn due(
    segments: &[(usize, Arc<Segment>)],
    retention: &Retention,
    wall: SystemTime,
    free: u64,
) -> Vec<(usize, Arc<Segment>, Limit)> {
    let expired = match retention.max_age {
        Some(max_age) => {
            let oldest = micros(wall.duration_since(UNIX_EPOCH).unwrap_or_default()).saturating_sub(micros(max_age));
            segments.partition_point(|(_, segment)| segment.t_end_max < oldest)
        }
        None => 0,
    };
    let (expired, rest) = segments.split_at(expired);
    let mut victims: Vec<_> = expired.iter().map(|(table, segment)| (*table, segment.clone(), Limit::MaxAge)).collect();
    let mut bytes: u64 = rest.iter().map(|(_, segment)| segment.bytes).sum();
    let mut free = expired.iter().fold(free, |free, (_, segment)| free.saturating_add(segment.bytes));
    let max_bytes = retention.max_bytes.unwrap_or(u64::MAX);
    let min_free = retention.min_free_bytes.unwrap_or(0);
    for (at, (table, segment)) in rest.iter().enumerate() {
        if bytes <= max_bytes && free >= min_free {
            break;
        }
        let is_newest = !rest[at + 1..].iter().any(|(other, _)| other == table);
        if !is_newest {
            let limit = if bytes > max_bytes { Limit::MaxBytes } else { Limit::MinFree };
            bytes -= segment.bytes;
            free = free.saturating_add(segment.bytes);
            victims.push((*table, segment.clone(), limit));
        }
    }
    victims
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

pub(crate) fn drop_segments<C: Columns>(shared: &Shared<C>, victims: Vec<Arc<Segment>>) -> Result<(), StorageError> {
    let segments_dir = shared.layout.segments_dir();
    let mut manifest = shared.manifest();
    // Others have been merged since they were looked at; what is due of that goes the next time.
    let victims: Vec<_> = victims.into_iter().filter(|segment| manifest.lists(segment.id)).collect();
    if victims.is_empty() {
        return Ok(());
    }
    manifest.remove(victims.iter().map(|segment| Removed::of(segment, &segments_dir)).collect())?;
    let rows: u64 = victims.iter().map(|segment| segment.rows).sum();
    let bytes: u64 = victims.iter().map(|segment| segment.bytes).sum();
    let mut state = shared.state();
    let mut ids: Vec<SegmentId> = victims.iter().map(|segment| segment.id).collect();
    ids.sort_unstable();
    Arc::make_mut(&mut state.segments).remove(&ids);
    state.counts.segments_removed += victims.len() as u64;
    state.counts.rows_removed += rows;
    state.counts.bytes_removed += bytes;
    drop(state);
    drop(manifest);
    let table = C::TABLE.name;
    tracing::info!(table, segments = victims.len(), rows, bytes, "retention dropped the oldest segments");
    for segment in &victims {
        segment.doom();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment::SegmentMeta;

    fn segments(ends_s: &[i64]) -> Vec<(usize, Arc<Segment>)> {
        let meta = |(id, &end): (usize, &i64)| SegmentMeta {
            id: id as u64,
            file: format!("{id}.parquet"),
            rows: 1,
            bytes: 100,
            t_end_min: end * 1_000_000,
            t_end_max: end * 1_000_000,
            t_start_min: end * 1_000_000,
            ..SegmentMeta::default()
        };
        let new = |meta| Segment::of_test(Path::new("none"), &meta);
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
    fn tables_share_the_limits_and_each_keeps_its_newest() {
        let mut all = segments(&[10, 20, 30, 40, 50]);
        for at in [0, 2] {
            all[at].0 = 1;
        }
        let bytes = |n| Retention { max_bytes: Some(n), ..Retention::default() };
        let gone = |n| {
            let victims = super::due(&all, &bytes(n), UNIX_EPOCH, u64::MAX);
            victims.into_iter().map(|(table, segment, _)| (table, segment.id.number)).collect::<Vec<_>>()
        };
        assert_eq!(gone(500), []);
        assert_eq!(gone(300), [(1, 0), (0, 1)], "the oldest of either");
        assert_eq!(gone(200), [(1, 0), (0, 1), (0, 3)], "the other table's newest stays");
        assert_eq!(gone(0), [(1, 0), (0, 1), (0, 3)]);
    }
}
