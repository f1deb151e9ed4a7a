//! The one writer of a data folder, with all its tables.

use crate::columns::FlowColumns;
use crate::compact::{Compactor, Pace};
use crate::dns::DnsColumns;
use crate::folder::DataFolder;
use crate::options::{Now, StoreOptions};
use crate::reader::StoreReader;
use crate::shared::{Rows, StoreCounts};
use crate::table::Table;
use crate::talkers::TalkerColumns;
use crate::writer::{TableWriter, Writer};
use crate::{StorageError, retention};
use flowtable::FlowRecord;
use hints::DnsRecord;
use std::sync::Arc;
use std::time::{Duration, Instant};
use talkers::TalkerRow;

/// Writes the rows of every [`Table`] into a data folder, which it owns until it is dropped. One thread calls
/// it; it keeps one more for each table, which encodes segments, and one that merges small segments.
///
/// A row is visible to readers as soon as [`append`](Store::append) returns and survives a crash once it is synced,
/// within `wal_sync_interval` if [`tick`](Store::tick) is called more often than that.
pub struct Store {
    options: StoreOptions,
    /// Before the tables, so that it ends first.
    compactor: Option<Compactor>,
    flows: TableWriter<FlowColumns>,
    dns: TableWriter<DnsColumns>,
    talkers: TableWriter<TalkerColumns>,
    retained_at: Option<Instant>,
    /// Segments published when retention was last applied.
    retained_count: u64,
    /// Held for its lock; last, so that it goes after the tables have been closed.
    _folder: DataFolder,
}

/// Retention is applied after each new segment, and this often for age and free space.
const RETENTION_INTERVAL: Duration = Duration::from_secs(10);

impl Store {
    /// Opens the data folder, creating it if it is missing, and finishes what a crash left: rows in logs become
    /// segments again.
    ///
    /// # Errors
    /// If the folder is somebody else's, of a newer format, in use, or cannot be written; or an option is out of range.
    pub fn open(mut options: StoreOptions) -> Result<Store, StorageError> {
        options.check()?;
        let folder = DataFolder::open(options.disk.clone(), &options.dir)?;
        options.dir = crate::folder::without_parents(&options.dir);
        let compaction = options.compaction;
        let pace = compaction.enabled.then(|| Arc::new(Pace::new(Some(compaction.bytes_per_s))));
        let flows = TableWriter::open(&options, pace.clone())?;
        let dns = TableWriter::open(&options, pace.clone())?;
        let talkers = TableWriter::open(&options, pace.clone())?;
        options.left.clear();
        let mut store = Store {
            options,
            compactor: None,
            flows,
            dns,
            talkers,
            retained_at: None,
            retained_count: 0,
            _folder: folder,
        };
        if let Some(pace) = pace {
            let (dir, min_free) = (&store.options.dir, store.options.retention.min_free_bytes.unwrap_or(0));
            store.compactor = Some(Compactor::start(dir, store.tables().into(), compaction, min_free, pace)?);
        }
        Ok(store)
    }

    /// Every table, in the order of [`Table::ALL`].
    fn tables(&self) -> [Arc<dyn Rows>; Table::ALL.len()] {
        [self.flows.shared.clone(), self.dns.shared.clone(), self.talkers.shared.clone()]
    }

    fn writers(&mut self) -> [&mut dyn Writer; Table::ALL.len()] {
        [&mut self.flows, &mut self.dns, &mut self.talkers]
    }

    /// Does something with every table, also after it failed with one; then the first error is told.
    fn each(&mut self, act: impl Fn(&mut dyn Writer) -> Result<(), StorageError>) -> Result<(), StorageError> {
        self.writers().into_iter().map(act).fold(Ok(()), Result::and)
    }

    /// Takes flow records and their texts: those of all records one after the other, each record's part as long as its
    /// `text` says. They are visible at once, and durable with the next sync. Waits only while the encoder is
    /// `frozen_max` segments behind (counted as stall).
    ///
    /// # Errors
    /// With `OnError::Fail`, if rows could not be stored or synced; they are counted in either case.
    pub fn append(&mut self, rows: &[FlowRecord], text: &[u8]) -> Result<(), StorageError> {
        self.flows.append(rows, text)
    }

    /// Takes DNS transactions and their texts: question and answers of each, one after the other, as long as the
    /// record says. Otherwise as [`append`](Store::append).
    ///
    /// # Errors
    /// As `append`.
    pub fn append_dns(&mut self, rows: &[DnsRecord], text: &[u8]) -> Result<(), StorageError> {
        self.dns.append(rows, text)
    }

    /// Takes rows of sketches and their texts: task, fields of the key and elements of each, one after the other, as long
    /// as the row says. Otherwise as [`append`](Store::append).
    ///
    /// # Errors
    /// As `append`.
    pub fn append_talkers(&mut self, rows: &[TalkerRow], text: &[u8]) -> Result<(), StorageError> {
        self.talkers.append(rows, text)
    }

    /// Does what time makes due: syncing, beginning a segment, retention. Call it several times a second.
    ///
    /// # Errors
    /// With `OnError::Fail`, as `append`.
    pub fn tick(&mut self, now: Now) -> Result<(), StorageError> {
        let ticked = self.each(|table| table.tick(now));
        self.apply_retention(now);
        ticked
    }

    /// Replaces the limits of retention; they apply from the next tick on.
    pub fn set_retention(&mut self, retention: crate::Retention) {
        self.options.retention = retention;
        if let Some(compactor) = &self.compactor {
            compactor.set_min_free(retention.min_free_bytes.unwrap_or(0));
        }
        self.retained_at = None;
    }

    /// Writes every row to the logs and makes it durable. Rows of a log that cannot be synced are durable once their
    /// segment is: until then `StoreCounts::unsynced_rows` is not 0.
    ///
    /// # Errors
    /// With `OnError::Fail`, as `append`.
    pub fn sync(&mut self) -> Result<(), StorageError> {
        self.each(|table| table.sync())
    }

    /// Puts every row into a published segment, and waits for it.
    ///
    /// # Errors
    /// If a segment cannot be written; its rows stay in the log and are tried again.
    pub fn flush(&mut self) -> Result<(), StorageError> {
        self.each(|table| table.flush())
    }

    /// Merges segments until no merge is worth it, on the calling thread, at any rate, and whether or not
    /// `compaction.enabled`. Returns how many merges that took.
    ///
    /// # Errors
    /// If segments cannot be read or written; all rows stay where they are.
    pub fn compact(&mut self) -> Result<u64, StorageError> {
        let min_free = self.options.retention.min_free_bytes.unwrap_or(0);
        let pace = Pace::new(None);
        let mut merges = 0;
        for table in self.tables() {
            while table.compact(&self.options.compaction, min_free, &pace)? {
                merges += 1;
            }
        }
        Ok(merges)
    }

    /// Flushes, drops what is then too much, ends what is done in the background, and lets go of the folder.
    ///
    /// # Errors
    /// As `flush`. Rows that could not be published are synced in the log, and become a segment at the next start.
    pub fn close(mut self) -> Result<(), StorageError> {
        self.compactor = None;
        let flushed = self.flush();
        self.apply_retention(Now::read());
        flushed
    }

    /// Reads what this store holds, from any thread.
    pub fn reader(&self) -> StoreReader {
        StoreReader::of(self.options.dir.clone(), self.tables())
    }

    /// Flow records written to the log, and lost, since the start. Unlike [`counts`](Store::counts), which looks at
    /// every segment, this takes the same time however long the history is: it may be asked once a batch.
    pub fn rows_logged_and_lost(&self) -> (u64, u64) {
        self.flows.rows_logged_and_lost()
    }

    /// DNS transactions written to the log, and lost; otherwise as
    /// [`rows_logged_and_lost`](Store::rows_logged_and_lost).
    pub fn dns_rows_logged_and_lost(&self) -> (u64, u64) {
        self.dns.rows_logged_and_lost()
    }

    /// Counters and gauges of flow records.
    pub fn counts(&self) -> StoreCounts {
        self.flows.shared.counts()
    }

    /// Counters and gauges of DNS transactions.
    pub fn dns_counts(&self) -> StoreCounts {
        self.dns.shared.counts()
    }

    /// Counters and gauges of rows of sketches.
    pub fn talkers_counts(&self) -> StoreCounts {
        self.talkers.shared.counts()
    }

    fn apply_retention(&mut self, now: Now) {
        let tables = self.tables();
        let published = tables.iter().map(|table| table.published()).sum();
        // Space may be what was missing.
        let failed = self.writers().into_iter().fold(false, |any, table| any | table.take_failed());
        let is_due = self.retained_at.is_none_or(|at| now.mono.duration_since(at) >= RETENTION_INTERVAL);
        if !is_due && !failed && published == self.retained_count {
            return;
        }
        self.retained_at = Some(now.mono);
        self.retained_count = published;
        if let Err(error) =
            retention::apply(&*self.options.disk, &self.options.dir, &tables, &self.options.retention, now.wall)
        {
            tables[0].complain(&error);
            tracing::warn!(%error, "cannot drop old segments");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;
    use wire::Nanos;

    fn flows(ids: std::ops::Range<u64>) -> Vec<FlowRecord> {
        let plain = |flow_id| FlowRecord {
            flow_id,
            start: Nanos(0),
            end: Nanos(0),
            src_ip: Default::default(),
            dst_ip: Default::default(),
            src_port: 0,
            dst_port: 0,
            proto: 0,
            part: 0,
            tap: Default::default(),
            vlan: 0,
            vlan_inner: 0,
            tunnel: Default::default(),
            tunnel_id: 0,
            src_mac: None,
            dst_mac: None,
            icmp: None,
            pkts_o: 0,
            pkts_r: 0,
            bytes_o: 0,
            bytes_r: 0,
            flags_o: 0,
            flags_r: 0,
            conn_state: None,
            end_reason: flowtable::EndReason::Idle,
            rtt_us: None,
            rtt_srv_us: None,
            rtt_cli_us: None,
            retrans_o: 0,
            retrans_r: 0,
            ooo_o: 0,
            ooo_r: 0,
            lost_o: 0,
            lost_r: 0,
            zwin_o: 0,
            zwin_r: 0,
            ttl_o: 0,
            ttl_r: 0,
            dscp: 0,
            ..FlowRecord::default()
        };
        ids.map(plain).collect()
    }

    fn store(dir: &Path) -> Store {
        Store::open(StoreOptions { batch_rows: 10, ..StoreOptions::new(dir, vec!["a".into()]) }).unwrap()
    }

    #[test]
    fn a_disk_that_fills_up_costs_only_what_came_then() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = store(dir.path());
        store.append(&flows(0..20), &[]).unwrap();
        store.flows.wal.as_mut().unwrap().fill_disk();
        store.append(&flows(20..35), &[]).unwrap();
        let counts = store.counts();
        assert_eq!((counts.rows_lost_disk, counts.rows_logged, counts.wal_errors), (10, 20, 1));
        assert!(counts.last_error.unwrap().contains("No space left on device"));
        store.append(&flows(35..40), &[]).unwrap();
        store.flush().unwrap();
        let counts = store.counts();
        assert_eq!((counts.segment_rows, counts.segments), (30, 2), "a log of its own before and after");
        assert_eq!(counts.rows_appended, counts.segment_rows + counts.rows_lost_disk);
    }

    #[test]
    fn rows_of_a_log_that_cannot_be_synced_are_published_from_memory() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = store(dir.path());
        store.append(&flows(0..20), &[]).unwrap();
        // fsync(2) fails on a device without storage.
        store.flows.wal.as_mut().unwrap().fill_disk();
        store.sync().unwrap();
        let counts = store.counts();
        assert_eq!((counts.wal_errors, counts.syncs, counts.rows_lost_disk), (1, 0, 0));
        store.flush().unwrap();
        assert_eq!(store.counts().segment_rows, 20);
        assert_eq!(fs::read_dir(dir.path().join("wal")).unwrap().count(), 0);
    }
}
