//! Reading a data folder: inside the server from memory, elsewhere from its files.

use crate::StorageError;
use crate::disk::{self, OsDisk};
use crate::error::IoContext;
use crate::folder::Layout;
use crate::manifest::Listing;
use crate::options::Retention;
use crate::recover::segment_names;
use crate::retention::{self, Held, RetentionPlan};
use crate::segment::{Segment, SegmentId, Unlinks};
use crate::segments::Segments;
use crate::shared::{Rows, StoreCounts};
use crate::table::Table;
use crate::wal::WalReader;
use arrow::record_batch::RecordBatch;
use hashbrown::HashMap;
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

/// All rows of a table at one moment: each row is in exactly one of the two.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Published segments, by id. Their files stay while the `Arc`s live.
    pub segments: Arc<Segments>,
    /// Rows that are in no segment yet, in batches of the table's schema ([`Table::schema`]), not sorted.
    pub live: Vec<RecordBatch>,
}

impl Snapshot {
    /// Rows in all.
    pub fn rows(&self) -> u64 {
        let live: u64 = self.live.iter().map(|batch| batch.num_rows() as u64).sum();
        self.segments.iter().map(|segment| segment.rows).sum::<u64>() + live
    }
}

/// Takes snapshots of a data folder. Cheap to clone; any number of threads may use it while the store writes.
#[derive(Clone)]
pub struct StoreReader {
    source: Source,
}

/// Where tables are, in the order of [`Table::ALL`].
#[derive(Clone)]
enum Source {
    Memory { dir: PathBuf, tables: [Arc<dyn Rows>; Table::ALL.len()] },
    Files { dir: PathBuf, tables: [Arc<Files>; Table::ALL.len()] },
}

impl StoreReader {
    pub(crate) fn of(dir: PathBuf, tables: [Arc<dyn Rows>; Table::ALL.len()]) -> StoreReader {
        StoreReader { source: Source::Memory { dir, tables } }
    }

    /// Reads a folder that another process may be writing; takes no lock and changes nothing. Rows show up once the
    /// writer has put them into its log: within its sync interval. A file may vanish under such a reader when
    /// retention drops it, or compaction merges it with others: take a new snapshot then.
    ///
    /// # Errors
    /// If `dir` is no data folder this version can read.
    pub fn open(dir: impl AsRef<Path>) -> Result<StoreReader, StorageError> {
        let dir = crate::folder::without_parents(dir.as_ref());
        let layout = |table: Table| Layout::of(Arc::new(OsDisk), &dir, table.info());
        layout(Table::Flows).check()?;
        let tables = Table::ALL.map(|table| Arc::new(Files { layout: layout(table), logs: Mutex::default() }));
        Ok(StoreReader { source: Source::Files { dir, tables } })
    }

    /// The data folder.
    pub fn dir(&self) -> &Path {
        match &self.source {
            Source::Memory { dir, .. } | Source::Files { dir, .. } => dir,
        }
    }

    /// All rows of a table there are now. In the server this copies at most one unfinished batch and a pointer for each
    /// batch; elsewhere it reads the manifest and what was added to the log since the last snapshot.
    ///
    /// # Errors
    /// If files cannot be read.
    pub fn snapshot_of(&self, table: Table) -> Result<Snapshot, StorageError> {
        match &self.source {
            Source::Memory { tables, .. } => tables[table as usize].snapshot(),
            Source::Files { tables, .. } => tables[table as usize].snapshot(),
        }
    }

    /// All flow records there are now, as [`snapshot_of`](StoreReader::snapshot_of).
    ///
    /// # Errors
    /// If files cannot be read.
    pub fn snapshot(&self) -> Result<Snapshot, StorageError> {
        self.snapshot_of(Table::Flows)
    }

    /// The published segments of every table there are now: without rows that are in none, so this is the cheaper way to
    /// look at them.
    ///
    /// # Errors
    /// If files cannot be read.
    pub fn segments(&self) -> Result<Vec<(Table, Arc<Segments>)>, StorageError> {
        let of = |table: Table| match &self.source {
            Source::Memory { tables, .. } => Ok(tables[table as usize].segments()),
            Source::Files { tables, .. } => {
                let files = &tables[table as usize];
                files.listing().map(|listing| files.segments(&listing))
            }
        };
        Table::ALL.into_iter().map(|table| Ok((table, of(table)?))).collect()
    }

    /// What retention would drop now, by these limits and this time; nothing is changed. From files, of a moment at which
    /// a server may be about to drop it; there `shipped` tells which segments have been shipped, as table and file below
    /// `segments`, while in the server they know it themselves.
    ///
    /// # Errors
    /// If files cannot be read.
    pub fn retention_plan(
        &self,
        retention: &Retention,
        wall: SystemTime,
        shipped: &BTreeSet<(String, String)>,
    ) -> Result<RetentionPlan, StorageError> {
        let held: Vec<Held> = match &self.source {
            Source::Memory { tables, .. } => {
                let held = |(table, rows): (Table, &Arc<dyn Rows>)| Held {
                    table: table.name(),
                    segments: rows.segments(),
                    waiting_bytes: rows.waiting_bytes(),
                };
                Table::ALL.into_iter().zip(tables).map(held).collect()
            }
            Source::Files { tables, .. } => tables.iter().map(|files| files.held(shipped)).collect::<Result<_, _>>()?,
        };
        retention::plan(&OsDisk, self.dir(), &held, retention, wall)
    }

    /// Of files: segment files that neither the manifest nor a log accounts for: no snapshot has them, and their rows only where
    /// other segments have these too, as while some are merged. There are some for a moment while segments are merged, after a
    /// crash until the next start, and where the manifest was cut short. Lists every folder of segments.
    ///
    /// # Errors
    /// If files cannot be read.
    pub fn unlisted(&self) -> Result<Vec<PathBuf>, StorageError> {
        match &self.source {
            Source::Memory { .. } => Ok(Vec::new()),
            Source::Files { tables, .. } => {
                let of = tables.iter().map(|files| files.unlisted()).collect::<Result<Vec<_>, _>>()?;
                Ok(of.into_iter().flatten().collect())
            }
        }
    }

    /// The store's counters of a table; `None` when it runs in another process.
    pub fn counts_of(&self, table: Table) -> Option<StoreCounts> {
        match &self.source {
            Source::Memory { tables, .. } => Some(tables[table as usize].counts()),
            Source::Files { .. } => None,
        }
    }
}

struct Files {
    layout: Layout,
    /// Log files read so far, so that each byte of them is read and decoded once.
    logs: Mutex<HashMap<u64, WalReader>>,
}

impl Files {
    /// Logs are opened before the manifest is read: a log that vanishes in between has become a segment, which the
    /// manifest then lists; and one that is still there but listed is the same rows, and left out.
    fn snapshot(&self) -> Result<Snapshot, StorageError> {
        let mut logs = self.logs.lock().unwrap_or_else(PoisonError::into_inner);
        let present = self.layout.numbered(&self.layout.wal_dir(), "wal")?;
        logs.retain(|id, _| present.iter().any(|(other, _)| other == id));
        for (id, path) in present {
            if logs.contains_key(&id) {
                continue;
            }
            match WalReader::open(&*self.layout.disk, &path, self.layout.table) {
                Ok(Some(log)) => drop(logs.insert(id, log)),
                Ok(None) => {}
                Err(StorageError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                Err(error @ StorageError::Damaged { .. }) => tracing::warn!(%error, "left out"),
                Err(error) => return Err(error),
            }
        }
        let listing = self.listing()?;
        let mut live = Vec::new();
        let mut ids: Vec<u64> = logs.keys().copied().collect();
        ids.sort_unstable();
        for id in ids {
            if let (true, Some(log)) = (id > listing.published, logs.get_mut(&id)) {
                let end = log.read_more()?;
                if let Some((at, reason)) = end.damage {
                    tracing::warn!(path = %self.layout.wal(id).display(), at, reason, "log is damaged; rows are missing");
                }
                live.extend(log.batches.iter().cloned());
            }
        }
        Ok(Snapshot { segments: self.segments(&listing), live })
    }

    fn listing(&self) -> Result<Listing, StorageError> {
        let path = self.layout.manifest();
        let mut listing = Listing::read(&*self.layout.disk, &path)?;
        if let Some((offset, reason)) = listing.damage.take() {
            return Err(StorageError::Damaged { path, offset, reason });
        }
        // Every start writes one.
        let segments = self.layout.segments_dir();
        if listing.segments.is_empty()
            && !disk::exists(&*self.layout.disk, &path).at("look at", &path)?
            && self.layout.disk.list(&segments).is_ok_and(|found| !found.is_empty())
        {
            let reason = "it is missing, and there are segments".to_owned();
            return Err(StorageError::Damaged { path, offset: 0, reason });
        }
        Ok(listing)
    }

    fn segments(&self, listing: &Listing) -> Arc<Segments> {
        let segments_dir = self.layout.segments_dir();
        let unlinks = Arc::new(Unlinks::new(self.layout.disk.clone()));
        let segment = |meta| Arc::new(Segment::new(&segments_dir, meta, unlinks.clone()));
        Arc::new(listing.segments.values().map(segment).collect())
    }

    fn unlisted(&self) -> Result<Vec<PathBuf>, StorageError> {
        // Before the manifest, which lists what has been published meanwhile.
        let present = segment_names(&self.layout)?;
        let logs = self.layout.numbered(&self.layout.wal_dir(), "wal")?;
        let listing = self.listing()?;
        let is_listed = |id: &SegmentId| {
            listing.segments.contains_key(id)
                || listing.removed.iter().any(|one| one.key() == *id)
                || logs.iter().any(|(number, _)| *number == id.number)
        };
        Ok(present.into_iter().filter(|(id, _)| !is_listed(id)).map(|(_, path)| path).collect())
    }

    fn held(&self, shipped: &BTreeSet<(String, String)>) -> Result<Held, StorageError> {
        let listing = self.listing()?;
        let table = self.layout.table.name;
        let segments = self.segments(&listing);
        for segment in segments.iter().filter(|segment| shipped.contains(&(table.to_owned(), segment.file.clone()))) {
            (0..8).for_each(|place| segment.set_shipped(place));
        }
        let segments_dir = self.layout.segments_dir();
        let waiting =
            listing.removed.iter().filter_map(|one| self.layout.disk.stat(&segments_dir.join(&one.file)).ok());
        let waiting_bytes = waiting.map(|stat| stat.bytes).sum();
        Ok(Held { table, segments, waiting_bytes })
    }
}
