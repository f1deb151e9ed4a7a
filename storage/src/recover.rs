//! What a start finds, and makes of it: leftovers of a crash are finished or dropped, anything that does not check out
//! is set aside. Nothing is destroyed that the manifest or a newer copy does not account for.

use crate::StorageError;
use crate::disk;
use crate::encode::describe_file;
use crate::error::IoContext;
use crate::folder::Layout;
use crate::manifest::Listing;
use crate::shared::{StoreCounts, remove_wal};
use crate::wal::WalReader;
use arrow::record_batch::RecordBatch;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The state a start continues from.
pub(crate) struct Recovered {
    /// Segments, all of which are there.
    pub(crate) listing: Listing,
    /// Log files whose rows are in no segment, lowest first.
    pub(crate) wals: Vec<(u64, PathBuf)>,
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
    }
    let mut present = segment_files(layout)?;
    for removed in &listing.removed {
        if let Some((file, _)) = present.get(&removed.id)
            && *file == removed.file
        {
            let path = layout.segments_dir().join(file);
            layout.disk.remove_file(&path).at("remove", &path)?;
            present.remove(&removed.id);
        }
    }
    check_listed(layout, &mut listing, &present, &mut counts)?;
    adopt_unlisted(layout, &mut listing, &present, &mut counts)?;
    let mut wals = layout.numbered(&layout.wal_dir(), "wal")?;
    for (id, path) in &wals {
        listing.next_id = listing.next_id.max(id + 1);
        if is_published(&listing, *id) {
            remove_wal(layout, path);
        }
    }
    wals.retain(|(id, _)| !is_published(&listing, *id));
    Ok(Recovered { listing, wals, counts })
}

fn is_published(listing: &Listing, id: u64) -> bool {
    listing.segments.contains_key(&id) || listing.removed.iter().any(|removed| removed.id == id)
}

/// Segment files by id, with their path below `segments/` and their size. Half-written ones are removed: their rows
/// are in the log.
fn segment_files(layout: &Layout) -> Result<BTreeMap<u64, (String, u64)>, StorageError> {
    let root = layout.segments_dir();
    let mut found = BTreeMap::new();
    for day in layout.disk.list(&root).at("list", &root)? {
        if !layout.disk.stat(&day).at("look at", &day)?.is_dir {
            continue;
        }
        for (_, tmp) in layout.numbered(&day, "tmp")? {
            layout.disk.remove_file(&tmp).at("remove", &tmp)?;
        }
        for (id, path) in layout.numbered(&day, "parquet")? {
            let bytes = layout.disk.stat(&path).at("look at", &path)?.bytes;
            let Ok(file) = path.strip_prefix(&root).map(|file| file.to_string_lossy().into_owned()) else { continue };
            if let Some((other, _)) = found.insert(id, (file.clone(), bytes)) {
                tracing::warn!(file, other, "two segment files have one number; only the first is used");
            }
        }
    }
    Ok(found)
}

/// Takes segments off the list whose file is missing or has another size than it was published with.
fn check_listed(
    layout: &Layout,
    listing: &mut Listing,
    present: &BTreeMap<u64, (String, u64)>,
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

/// Lists segments that were renamed but not listed before a crash, or that someone put back.
fn adopt_unlisted(
    layout: &Layout,
    listing: &mut Listing,
    present: &BTreeMap<u64, (String, u64)>,
    counts: &mut StoreCounts,
) -> Result<(), StorageError> {
    for (&id, (file, _)) in present {
        let path = layout.segments_dir().join(file);
        if listing.segments.contains_key(&id) || !disk::exists(&*layout.disk, &path).at("look at", &path)? {
            continue;
        }
        listing.next_id = listing.next_id.max(id + 1);
        match describe_file(layout, &path, id, file.clone()) {
            Ok(meta) => {
                tracing::info!(path = %path.display(), rows = meta.rows, "listed a segment the manifest did not have");
                listing.segments.insert(id, meta);
            }
            Err(error) => {
                let kept = layout.set_aside(&path)?;
                counts.files_damaged += 1;
                tracing::warn!(kept = %kept.display(), %error, "a segment does not read; set aside");
            }
        }
    }
    Ok(())
}

/// Rows of a log file that no segment has. A file without any is removed; one with damage is also kept in `damaged/`.
pub(crate) fn load_wal(
    layout: &Layout,
    path: &Path,
    counts: &mut StoreCounts,
) -> Result<Vec<RecordBatch>, StorageError> {
    let mut log = match WalReader::open(&*layout.disk, path, layout.table) {
        Ok(Some(log)) => log,
        Ok(None) => {
            remove_wal(layout, path);
            return Ok(Vec::new());
        }
        Err(error @ StorageError::Damaged { .. }) => {
            let kept = layout.set_aside(path)?;
            counts.files_damaged += 1;
            tracing::warn!(kept = %kept.display(), %error, "a log does not read; set aside");
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
