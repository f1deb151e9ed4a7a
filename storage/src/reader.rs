//! Reading a data folder: inside the server from memory, elsewhere from its files.

use crate::StorageError;
use crate::columns::FLOWS;
use crate::dns::DNS;
use crate::folder::Layout;
use crate::manifest::Listing;
use crate::segment::{Segment, Unlinks};
use crate::segments::Segments;
use crate::shared::{Rows, StoreCounts};
use crate::wal::WalReader;
use arrow::record_batch::RecordBatch;
use hashbrown::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// All rows of a table at one moment: each row is in exactly one of the two.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Published segments, by id. Their files stay while the `Arc`s live.
    pub segments: Arc<Segments>,
    /// Rows that are in no segment yet, in batches of the table's schema ([`flow_schema`](crate::flow_schema),
    /// [`dns_schema`](crate::dns_schema)), not sorted.
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

#[derive(Clone)]
enum Source {
    Memory { dir: PathBuf, flows: Arc<dyn Rows>, dns: Arc<dyn Rows> },
    Files { dir: PathBuf, flows: Arc<Files>, dns: Arc<Files> },
}

impl StoreReader {
    pub(crate) fn of(dir: PathBuf, flows: Arc<dyn Rows>, dns: Arc<dyn Rows>) -> StoreReader {
        StoreReader { source: Source::Memory { dir, flows, dns } }
    }

    /// Reads a folder that another process may be writing; takes no lock and changes nothing. Rows show up once the
    /// writer has put them into its log: within its sync interval. A file may vanish under such a reader when
    /// retention drops it: take a new snapshot then.
    ///
    /// # Errors
    /// If `dir` is no data folder this version can read.
    pub fn open(dir: impl AsRef<Path>) -> Result<StoreReader, StorageError> {
        let dir = dir.as_ref().to_owned();
        Layout::of(&dir, &FLOWS).check()?;
        let files = |table| Arc::new(Files { layout: Layout::of(&dir, table), logs: Mutex::default() });
        let (flows, dns) = (files(&FLOWS), files(&DNS));
        Ok(StoreReader { source: Source::Files { dir, flows, dns } })
    }

    /// The data folder.
    pub fn dir(&self) -> &Path {
        match &self.source {
            Source::Memory { dir, .. } | Source::Files { dir, .. } => dir,
        }
    }

    /// All flow records there are now. In the server this copies at most one unfinished batch and a pointer for each
    /// batch; elsewhere it reads the manifest and what was added to the log since the last snapshot.
    ///
    /// # Errors
    /// If files cannot be read.
    pub fn snapshot(&self) -> Result<Snapshot, StorageError> {
        match &self.source {
            Source::Memory { flows, .. } => flows.snapshot(),
            Source::Files { flows, .. } => flows.snapshot(),
        }
    }

    /// All DNS transactions there are now; otherwise as [`snapshot`](StoreReader::snapshot).
    ///
    /// # Errors
    /// If files cannot be read.
    pub fn dns_snapshot(&self) -> Result<Snapshot, StorageError> {
        match &self.source {
            Source::Memory { dns, .. } => dns.snapshot(),
            Source::Files { dns, .. } => dns.snapshot(),
        }
    }

    /// The published segments of each table there are now, with its name: without rows that are in none, so this is the
    /// cheaper way to look at them.
    ///
    /// # Errors
    /// If files cannot be read.
    pub fn segments(&self) -> Result<[(&'static str, Arc<Segments>); 2], StorageError> {
        let [flows, dns] = match &self.source {
            Source::Memory { flows, dns, .. } => [flows.segments(), dns.segments()],
            Source::Files { flows, dns, .. } => [flows.snapshot()?.segments, dns.snapshot()?.segments],
        };
        Ok([(FLOWS.name, flows), (DNS.name, dns)])
    }

    /// The store's counters of flow records; `None` when it runs in another process.
    pub fn counts(&self) -> Option<StoreCounts> {
        match &self.source {
            Source::Memory { flows, .. } => Some(flows.counts()),
            Source::Files { .. } => None,
        }
    }

    /// The store's counters of DNS transactions; `None` when it runs in another process.
    pub fn dns_counts(&self) -> Option<StoreCounts> {
        match &self.source {
            Source::Memory { dns, .. } => Some(dns.counts()),
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
        let present = Layout::numbered(&self.layout.wal_dir(), "wal")?;
        logs.retain(|id, _| present.iter().any(|(other, _)| other == id));
        for (id, path) in present {
            if logs.contains_key(&id) {
                continue;
            }
            match WalReader::open(&path, self.layout.table) {
                Ok(Some(log)) => drop(logs.insert(id, log)),
                Ok(None) => {}
                Err(StorageError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                Err(error @ StorageError::Damaged { .. }) => tracing::warn!(%error, "left out"),
                Err(error) => return Err(error),
            }
        }
        let listing = Listing::read(&self.layout.manifest())?;
        if let Some((at, reason)) = &listing.damage {
            let path = self.layout.manifest();
            return Err(StorageError::Damaged { path, offset: *at, reason: reason.clone() });
        }
        let mut live = Vec::new();
        let mut ids: Vec<u64> = logs.keys().copied().collect();
        ids.sort_unstable();
        for id in ids {
            let listed = listing.segments.contains_key(&id) || listing.removed.iter().any(|removed| removed.id == id);
            if let (false, Some(log)) = (listed, logs.get_mut(&id)) {
                let end = log.read_more()?;
                if let Some((at, reason)) = end.damage {
                    tracing::warn!(path = %self.layout.wal(id).display(), at, reason, "log is damaged; rows are missing");
                }
                live.extend(log.batches.iter().cloned());
            }
        }
        let segments_dir = self.layout.segments_dir();
        let unlinks = Arc::new(Unlinks::default());
        let segment = |meta| Arc::new(Segment::new(&segments_dir, meta, unlinks.clone()));
        Ok(Snapshot { segments: Arc::new(listing.segments.values().map(segment).collect()), live })
    }
}
