//! What a start finds, and makes of it: leftovers of a crash are finished or dropped, anything that does not check out
//! is set aside. Nothing is destroyed that the manifest or a newer copy does not account for.

use crate::StorageError;
use crate::disk;
use crate::encode::{FoundSegment, describe_file, logs_of};
use crate::error::IoContext;
use crate::folder::Layout;
use crate::manifest::{Listing, Removed};
use crate::segment::SegmentId;
use crate::shared::{StoreCounts, remove_wal};
use crate::wal::WalReader;
use arrow::record_batch::RecordBatch;
use hashbrown::{HashMap, HashSet};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

/// The state a start continues from.
pub(crate) struct Recovered {
    /// Segments, all of which are there.
    pub(crate) listing: Listing,
    /// Log files whose rows are in no segment, lowest first.
    pub(crate) wals: Vec<(u64, PathBuf)>,
    /// Log files whose rows are in segments. They may go once the manifest lists these: until then, who reads the folder
    /// has the rows from nowhere else.
    pub(crate) wals_done: Vec<PathBuf>,
    /// What was damaged or missing.
    pub(crate) counts: StoreCounts,
}

/// Brings manifest, segments and logs into agreement.
pub(crate) fn recover(layout: &Layout) -> Result<Recovered, StorageError> {
    let mut counts = StoreCounts::default();
    let manifest = layout.manifest();
    let mut listing = Listing::read(&*layout.disk, &manifest)?;
    if let Some((at, reason)) = listing.damage.take() {
        let kept = layout.set_aside(&manifest)?;
        counts.files_damaged += 1;
        tracing::warn!(kept = %kept.display(), at, reason, "the manifest is damaged; rebuilding it from the segments");
        // What it lists may have been merged since, and be gone in part.
        listing.segments.clear();
    }
    let mut present = segment_files(layout)?;
    let mut removed = Vec::new();
    for one in &listing.removed {
        if present.get(&one.key()).is_some_and(|(file, _)| *file == one.file) {
            present.remove(&one.key());
            removed.push(one.clone());
        }
    }
    check_listed(layout, &mut listing, &present, &mut counts)?;
    let mut wals = layout.numbered(&layout.wal_dir(), "wal")?;
    let numbers: Vec<u64> = wals.iter().map(|(id, _)| *id).collect();
    adopt_unlisted(layout, &mut listing, &present, &removed, &numbers, &mut counts)?;
    // Last: until here they tell which logs' rows have been dropped.
    for one in &removed {
        let path = layout.segments_dir().join(&one.file);
        layout.disk.remove_file(&path).at("remove", &path)?;
    }
    for (id, _) in &wals {
        listing.next_id = listing.next_id.max(id + 1);
    }
    let mut wals_done = Vec::new();
    for (_, path) in wals.extract_if(.., |(id, _)| *id <= listing.published) {
        match WalReader::open(&*layout.disk, &path, layout.table) {
            Err(error @ StorageError::Damaged { .. }) => foreign_log(layout, &path, &error, &mut counts)?,
            _ => wals_done.push(path),
        }
    }
    Ok(Recovered { listing, wals, wals_done, counts })
}

/// Segment files, with their path below `segments/` and their size.
type Present = BTreeMap<SegmentId, (String, u64)>;

/// Folders a segment lies in below `segments/`: three of a partition, one by day in format 1.
const DEPTH_MAX: usize = 3;

/// All segment files. Half-written ones are removed: their rows are in a log, or in the segments they were merged from.
fn segment_files(layout: &Layout) -> Result<Present, StorageError> {
    let root = layout.segments_dir();
    let mut found = Present::new();
    for (path, kind) in files_below(layout)? {
        let stat = layout.disk.stat(&path).at("look at", &path)?;
        match kind {
            Kind::Whole(id) if !stat.is_dir => {
                let Some(file) = path.strip_prefix(&root).ok().and_then(Path::to_str) else { continue };
                if let Some((other, _)) = found.insert(id, (file.to_owned(), stat.bytes)) {
                    tracing::warn!(file, other, "two segment files have one number; only the first is used");
                }
            }
            Kind::Half if !stat.is_dir => layout.disk.remove_file(&path).at("remove", &path)?,
            _ => {
                tracing::warn!(path = %path.display(), "not a segment, by its name, place or kind; left alone, and in no answer");
            }
        }
    }
    Ok(found)
}

/// All segment files that are whole, as their names say.
pub(crate) fn segment_names(layout: &Layout) -> Result<Vec<(SegmentId, PathBuf)>, StorageError> {
    let whole = |(path, kind)| match kind {
        Kind::Whole(id) => Some((id, path)),
        Kind::Half | Kind::Foreign => None,
    };
    Ok(files_below(layout)?.into_iter().filter_map(whole).collect())
}

enum Kind {
    Whole(SegmentId),
    /// Being written, or left so by a crash.
    Half,
    /// No segment's name.
    Foreign,
}

/// What lies below `segments/`, and is no folder of ours.
fn files_below(layout: &Layout) -> Result<Vec<(PathBuf, Kind)>, StorageError> {
    let mut found = Vec::new();
    let mut dirs = vec![(layout.segments_dir(), 0)];
    while let Some((dir, depth)) = dirs.pop() {
        let entries = match layout.disk.list(&dir) {
            // A folder of before there was this table, or one that has gone meanwhile with its last segment.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries.at("list", &dir)?,
        };
        for path in entries {
            let stem = path.file_stem().and_then(|stem| stem.to_str());
            let id = stem.filter(|_| depth > 0).and_then(SegmentId::parse);
            let kind = match (id, path.extension().and_then(|extension| extension.to_str())) {
                (Some(_), Some("tmp")) => Kind::Half,
                (Some(id), Some("parquet")) => Kind::Whole(id),
                _ => Kind::Foreign,
            };
            // What is named as a segment is looked at by who needs it: there may be very many.
            if matches!(kind, Kind::Foreign) {
                let stat = match layout.disk.stat(&path) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    stat => stat.at("look at", &path)?,
                };
                if stat.is_dir {
                    if depth < DEPTH_MAX {
                        dirs.push((path, depth + 1));
                    }
                    continue;
                }
            }
            found.push((path, kind));
        }
    }
    Ok(found)
}

/// Takes segments off the list whose file is missing or has another size than it was published with.
fn check_listed(
    layout: &Layout,
    listing: &mut Listing,
    present: &Present,
    counts: &mut StoreCounts,
) -> Result<(), StorageError> {
    let mut gone = Vec::new();
    for (id, meta) in &listing.segments {
        let path = layout.segments_dir().join(&meta.file);
        match present.get(id) {
            Some((file, bytes)) if *file == meta.file && *bytes == meta.bytes => continue,
            Some((file, bytes)) if *file == meta.file => {
                let kept = layout.set_aside(&path)?;
                counts.files_damaged += 1;
                let wanted = meta.bytes;
                tracing::warn!(kept = %kept.display(), bytes, wanted, "a segment has the wrong size; set aside");
            }
            _ => {
                counts.segments_missing += 1;
                tracing::warn!(path = %path.display(), rows = meta.rows, "a segment is missing");
            }
        }
        gone.push(*id);
    }
    for id in gone {
        listing.segments.remove(&id);
    }
    Ok(())
}

/// Lists segments that a crash, or a damaged manifest, left unlisted, or that someone put back; those whose rows are
/// elsewhere too are removed. `removed`: files of dropped segments that are still there; `wals`: numbers of the logs
/// that are there.
fn adopt_unlisted(
    layout: &Layout,
    listing: &mut Listing,
    present: &Present,
    removed: &[Removed],
    wals: &[u64],
    counts: &mut StoreCounts,
) -> Result<(), StorageError> {
    let mut found = Vec::new();
    for (&id, (file, _)) in present {
        let path = layout.segments_dir().join(file);
        if listing.segments.contains_key(&id) || !disk::exists(&*layout.disk, &path).at("look at", &path)? {
            continue;
        }
        listing.next_id = listing.next_id.max(id.number + 1);
        match describe_file(layout, id, file.clone()) {
            Ok(segment) => found.push(segment),
            // The disk, not the file: the next start may have more luck.
            Err(error @ StorageError::Io { .. }) => return Err(error),
            Err(error) => {
                let kept = layout.set_aside(&path)?;
                counts.files_damaged += 1;
                tracing::warn!(kept = %kept.display(), %error, "a segment does not read; set aside");
            }
        }
    }
    let found = without_merged(layout, listing, removed, found)?;
    let found = without_unpublished(layout, listing, found, wals)?;
    for FoundSegment { meta, .. } in found {
        tracing::info!(file = meta.file, rows = meta.rows, "listed a segment the manifest did not have");
        listing.segments.insert(meta.key(), meta);
    }
    Ok(())
}

/// Removes segments whose rows another one of their partition has: those it was merged from, if it is complete but the
/// manifest that tells is lost, or the merged one, if the manifest does not list it: also where retention has dropped
/// what it was merged from. The rows a log has in a partition are never divided among segments, so it is enough to look
/// whose logs they are.
fn without_merged(
    layout: &Layout,
    listing: &Listing,
    removed: &[Removed],
    mut found: Vec<FoundSegment>,
) -> Result<Vec<FoundSegment>, StorageError> {
    let dir_of = |file: &str| file.rsplit_once('/').map(|(dir, _)| dir.to_owned()).unwrap_or_default();
    let dirs: HashSet<String> = found.iter().map(|segment| dir_of(&segment.meta.file)).collect();
    let mut taken: HashMap<String, HashSet<u64>> = HashMap::new();
    let is_beside = |file: &str| dirs.contains(&dir_of(file));
    // Where one that counts does not say whose rows it has, nothing is removed on a guess, nor listed.
    let mut unclear = HashSet::new();
    for meta in listing.segments.values().filter(|meta| is_beside(&meta.file)) {
        match logs_of(layout, meta.key(), &layout.segments_dir().join(&meta.file), meta.footer) {
            Ok(logs) => taken.entry(dir_of(&meta.file)).or_default().extend(logs),
            Err(error) => {
                tracing::warn!(%error, "a segment does not read; others of its folder that the manifest does not list are left alone");
                unclear.insert(dir_of(&meta.file));
            }
        }
    }
    found.retain(|segment| !unclear.contains(&dir_of(&segment.meta.file)));
    for removed in removed.iter().filter(|removed| is_beside(&removed.file)) {
        // Most of their files are gone.
        let path = layout.segments_dir().join(&removed.file);
        let logs = logs_of(layout, removed.key(), &path, None).unwrap_or_else(|_| vec![removed.key().number]);
        taken.entry(dir_of(&removed.file)).or_default().extend(logs);
    }
    // The one with most logs first: it has the rows of the others.
    found.sort_by_key(|segment| (Reverse(segment.logs.len()), segment.meta.key()));
    let mut kept = Vec::new();
    for segment in found {
        let taken = taken.entry(dir_of(&segment.meta.file)).or_default();
        if segment.logs.iter().any(|log| taken.contains(log)) {
            let path = layout.segments_dir().join(&segment.meta.file);
            layout.disk.remove_file(&path).at("remove", &path)?;
            tracing::info!(path = %path.display(), "removed a segment whose rows are in another one");
        } else {
            taken.extend(&segment.logs);
            kept.push(segment);
        }
    }
    Ok(kept)
}

/// Decides for the log that was being published when the run ended, if its segments are among those found: all of them
/// are there, so that it is published, or they are removed and made again from the log. Logs are published in the order
/// of their numbers, so it is the last one.
fn without_unpublished(
    layout: &Layout,
    listing: &mut Listing,
    found: Vec<FoundSegment>,
    wals: &[u64],
) -> Result<Vec<FoundSegment>, StorageError> {
    let of_log = |segment: &FoundSegment| segment.parts.map(|parts| (segment.meta.id, parts));
    let merged = found.iter().filter(|segment| segment.parts.is_none()).flat_map(|segment| &segment.logs).max();
    let last = found.iter().filter_map(of_log).max();
    let before =
        found.iter().filter_map(of_log).map(|(log, _)| log).filter(|log| last.is_some_and(|(last, _)| *log < last));
    listing.published = before.chain(merged.copied()).fold(listing.published, u64::max);
    let Some((log, parts)) = last.filter(|(log, _)| *log > listing.published) else { return Ok(found) };
    let there = found.iter().filter(|segment| of_log(segment).is_some_and(|(of, _)| of == log)).count();
    if there >= parts || !wals.contains(&log) {
        listing.published = log;
        return Ok(found);
    }
    let (unpublished, kept): (Vec<_>, Vec<_>) =
        found.into_iter().partition(|segment| of_log(segment).is_some_and(|(of, _)| of == log));
    for segment in unpublished {
        let path = layout.segments_dir().join(&segment.meta.file);
        layout.disk.remove_file(&path).at("remove", &path)?;
        tracing::info!(path = %path.display(), "removed a segment whose rows are in its log");
    }
    Ok(kept)
}

/// Rows of a log file that no segment has. A file without any is removed; one with damage is also kept in `damaged/`.
pub(crate) fn load_wal(
    layout: &Layout,
    path: &Path,
    counts: &mut StoreCounts,
) -> Result<Vec<RecordBatch>, StorageError> {
    let mut log = match WalReader::open(&*layout.disk, path, layout.table) {
        Ok(Some(log)) => log,
        // Cut within its head: nothing was ever stored in it.
        Ok(None) => {
            remove_wal(layout, path);
            return Ok(Vec::new());
        }
        Err(error @ StorageError::Damaged { .. }) => {
            foreign_log(layout, path, &error, counts)?;
            return Ok(Vec::new());
        }
        Err(error) => return Err(error),
    };
    let end = log.read_more()?;
    let rows: u64 = log.batches.iter().map(|batch| batch.num_rows() as u64).sum();
    counts.rows_recovered += rows;
    counts.rows_torn += end.torn_rows;
    if let Some((at, reason)) = end.damage {
        keep_copy(layout, path)?;
        counts.files_damaged += 1;
        let lost_bytes = end.damaged_bytes;
        tracing::warn!(path = %path.display(), at, lost_bytes, rows, reason, "a log is damaged; kept it in 'damaged'");
    } else if end.torn_bytes > 0 {
        let (lost_bytes, lost_rows) = (end.torn_bytes, end.torn_rows);
        tracing::warn!(path = %path.display(), rows, lost_bytes, lost_rows, "recovered a log that ends in a torn write");
    } else if rows > 0 {
        tracing::info!(path = %path.display(), rows, "recovered a log");
    }
    if log.batches.is_empty() {
        remove_wal(layout, path);
    }
    Ok(log.batches)
}

/// Sets aside what is named as a log and is none.
fn foreign_log(
    layout: &Layout,
    path: &Path,
    error: &StorageError,
    counts: &mut StoreCounts,
) -> Result<(), StorageError> {
    let kept = layout.set_aside(path)?;
    counts.files_damaged += 1;
    tracing::warn!(kept = %kept.display(), %error, "a log does not read; set aside");
    Ok(())
}

/// A second name for a file, in `damaged/`, so that it outlives its use. Costs no space and may be repeated.
fn keep_copy(layout: &Layout, path: &Path) -> Result<(), StorageError> {
    let dir = layout.damaged_dir();
    disk::make_dir(&*layout.disk, &dir).at("create", &dir)?;
    let target = dir.join(path.file_name().unwrap_or_default());
    if !disk::exists(&*layout.disk, &target).at("look at", &target)? {
        layout.disk.hard_link(path, &target).at("keep a copy of", path)?;
    }
    layout.disk.sync_dir(&dir).at("sync", &dir)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::columns::FLOWS;
    use crate::disk::OsDisk;
    use crate::{Store, StoreOptions, StoreReader};
    use flowtable::FlowRecord;
    use std::fs;
    use std::sync::Arc;

    /// A kill after a segment got its name and before the manifest had its line; then one while the next start recovers.
    #[test]
    fn a_start_that_is_killed_leaves_every_row_to_readers() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::of(Arc::new(OsDisk), dir.path(), &FLOWS);
        let options = StoreOptions::new(dir.path(), vec!["a".into()]);
        let mut store = Store::open(options.clone()).unwrap();
        let manifest = fs::read(layout.manifest()).unwrap();
        store.append(&[FlowRecord::default(); 5], &[]).unwrap();
        store.sync().unwrap();
        let logs = layout.numbered(&layout.wal_dir(), "wal").unwrap();
        let [(number, log)] = &logs[..] else { panic!("{logs:?}") };
        let kept = fs::read(log).unwrap();
        store.flush().unwrap();
        drop(store);
        fs::write(layout.manifest(), manifest).unwrap();
        fs::write(log, kept).unwrap();

        let rows = || StoreReader::open(dir.path()).unwrap().snapshot().unwrap().rows();
        let recovered = recover(&layout).unwrap();
        assert_eq!((rows(), recovered.listing.published, &recovered.wals_done), (5, *number, &vec![log.clone()]));
        let store = Store::open(options).unwrap();
        assert_eq!((rows(), store.counts().rows_found, log.exists()), (5, 5, false));
    }
}
