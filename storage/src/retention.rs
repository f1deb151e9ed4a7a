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
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Drops what is due from the tables of the data folder `dir`, whose limits of size hold for all of them together.
/// Files that readers hold go when the last of them lets go.
pub(crate) fn apply(
    disk: &dyn Disk,
    dir: &Path,
    tables: &[Arc<dyn Rows>],
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
            rows.drop_segments(own, retention.shipped_to)?;
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

/// A segment that retention would drop, or would if it had been shipped.
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
    /// Segments that stay for one reason alone: they have not been shipped (`Retention::shipped_to`). Oldest first.
    pub unshipped: Vec<Expiring>,
    /// Segments that stay, those included.
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
    let free = free_bytes.saturating_add(waiting_bytes);
    let dropped = due(&all, retention, wall, free);
    let going: BTreeSet<(usize, SegmentId)> = dropped.iter().map(|(table, segment, _)| (*table, segment.id)).collect();
    let mut unshipped = due(&all, &Retention { shipped_to: 0, ..*retention }, wall, free);
    unshipped.retain(|(table, segment, _)| {
        !segment.is_shipped(retention.shipped_to) && !going.contains(&(*table, segment.id))
    });
    let mut plan = RetentionPlan { waiting_bytes, free_bytes, ..RetentionPlan::default() };
    plan.kept_segments = (all.len() - dropped.len()) as u64;
    let sum = |of: fn(&Segment) -> u64| {
        let all: u64 = all.iter().map(|(_, segment)| of(segment)).sum();
        all - dropped.iter().map(|(_, segment, _)| of(segment)).sum::<u64>()
    };
    (plan.kept_rows, plan.kept_bytes) = (sum(|segment| segment.rows), sum(|segment| segment.bytes));
    let expiring = |(table, segment, limit): (usize, Arc<Segment>, Limit)| Expiring {
        table: tables[table].table,
        file: segment.path.strip_prefix(dir).unwrap_or(&segment.path).to_string_lossy().into_owned(),
        oldest_us: segment.t_end_min,
        newest_us: segment.t_end_max,
        rows: segment.rows,
        bytes: segment.bytes,
        limit,
    };
    plan.dropped = dropped.into_iter().map(expiring).collect();
    plan.unshipped = unshipped.into_iter().map(expiring).collect();
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
    let oldest = retention
        .max_age
        .map(|max_age| micros(wall.duration_since(UNIX_EPOCH).unwrap_or_default()).saturating_sub(micros(max_age)));
    let is_expired = |segment: &Segment| oldest.is_some_and(|oldest| segment.t_end_max < oldest);
    let has_left = |segment: &Segment| segment.is_shipped(retention.shipped_to);
    let (expired, rest): (Vec<_>, Vec<_>) =
        segments.iter().cloned().partition(|(_, segment)| is_expired(segment) && has_left(segment));
    let mut victims: Vec<_> = expired.into_iter().map(|(table, segment)| (table, segment, Limit::MaxAge)).collect();
    let mut bytes: u64 = rest.iter().map(|(_, segment)| segment.bytes).sum();
    let mut free = victims.iter().fold(free, |free, (_, segment, _)| free.saturating_add(segment.bytes));
    let max_bytes = retention.max_bytes.unwrap_or(u64::MAX);
    let min_free = retention.min_free_bytes.unwrap_or(0);
    for (at, (table, segment)) in rest.iter().enumerate() {
        let is_full = free < min_free;
        if bytes <= max_bytes && !is_full {
            break;
        }
        let is_newest = !rest[at + 1..].iter().any(|(other, _)| other == table);
        if !is_newest && (is_full || has_left(segment)) {
            let limit = if bytes > max_bytes && has_left(segment) { Limit::MaxBytes } else { Limit::MinFree };
            bytes -= segment.bytes;
            free = free.saturating_add(segment.bytes);
            victims.push((*table, segment.clone(), limit));
        }
    }
    // What has not been shipped is older than what age takes.
    victims.sort_by_key(|(table, segment, _)| (segment.t_end_max, *table, segment.id));
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
    let mut manifest = shared.manifest();
    // Others have been merged since they were looked at; what is due of that goes the next time.
    let victims: Vec<_> = victims.into_iter().filter(|segment| manifest.lists(segment.id)).collect();
    if victims.is_empty() {
        return Ok(());
    }
    manifest.remove(victims.iter().map(|segment| Removed::of(segment)).collect())?;
    let rows: u64 = victims.iter().map(|segment| segment.rows).sum();
    let bytes: u64 = victims.iter().map(|segment| segment.bytes).sum();
    let unshipped = victims.iter().filter(|segment| !segment.is_shipped(shipped_to)).count();
    let mut state = shared.state();
    let mut ids: Vec<SegmentId> = victims.iter().map(|segment| segment.id).collect();
    ids.sort_unstable();
    Arc::make_mut(&mut state.segments).remove(&ids);
    state.counts.segments_removed += victims.len() as u64;
    state.counts.rows_removed += rows;
    state.counts.bytes_removed += bytes;
    state.counts.segments_removed_unshipped += unshipped as u64;
    drop(state);
    drop(manifest);
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
    fn what_has_not_been_shipped_stays_until_the_disk_is_nearly_full() {
        let all = segments(&[10, 20, 30, 40]);
        let wall = UNIX_EPOCH + Duration::from_secs(50);
        let due = |retention: &Retention, free| {
            super::due(&all, retention, wall, free)
                .into_iter()
                .map(|(_, s, limit)| (s.id.number, limit))
                .collect::<Vec<_>>()
        };
        let limits = Retention {
            max_age: Some(Duration::from_secs(25)),
            max_bytes: Some(100),
            min_free_bytes: Some(100),
            shipped_to: 0b11,
        };
        assert_eq!(due(&limits, 100), []);
        all[0].1.set_shipped(0);
        all[1].1.set_shipped(0);
        all[1].1.set_shipped(1);
        assert_eq!(due(&limits, 100), [(1, Limit::MaxAge)], "one place is not both");
        assert_eq!(due(&limits, 0), [(1, Limit::MaxAge)], "what is due anyway may be enough");
        let full = Retention { min_free_bytes: Some(200), ..limits };
        assert_eq!(due(&full, 0), [(0, Limit::MinFree), (1, Limit::MaxAge)], "the oldest goes all the same");
        let anyway = due(&Retention { shipped_to: 0, ..limits }, 100);
        assert_eq!(anyway, [(0, Limit::MaxAge), (1, Limit::MaxAge), (2, Limit::MaxBytes)]);
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
