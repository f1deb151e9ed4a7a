//! The one writer of a data folder.

use crate::columns::FlowBatchBuilder;
use crate::error::IoContext;
use crate::folder::DataFolder;
use crate::manifest::Manifest;
use crate::options::{Now, OnError, StoreOptions};
use crate::reader::StoreReader;
use crate::recover::{load_wal, recover};
use crate::segment::{Segment, Unlinks};
use crate::shared::{Shared, StoreCounts};
use crate::wal::WalWriter;
use crate::{StorageError, retention};
use arrow::record_batch::RecordBatch;
use flowtable::FlowRecord;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Writes flow records into a data folder, which it owns until it is dropped. One thread calls it; it keeps a second
/// one for encoding segments.
///
/// A record is visible to readers as soon as [`append`](Store::append) returns and survives a crash once it is synced,
/// within `wal_sync_interval` if [`tick`](Store::tick) is called more often than that.
pub struct Store {
    options: StoreOptions,
    /// Held for its lock.
    folder: DataFolder,
    shared: Arc<Shared>,
    encoder: Option<JoinHandle<()>>,
    /// Log of the active rows; `None` while there are none.
    wal: Option<WalWriter>,
    next_id: u64,
    /// Last tick that synced.
    synced_at: Instant,
    /// First tick that saw active rows.
    active_since: Option<Instant>,
    retained_at: Option<Instant>,
    /// Segments published when retention was last applied.
    retained_count: u64,
    /// When an error was last logged.
    complained_at: Option<Instant>,
}

/// Retention is applied after each new segment, and this often for age and free space.
const RETENTION_INTERVAL: Duration = Duration::from_secs(10);
/// A full disk makes every batch fail; one line in this time is enough.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(10);

impl Store {
    /// Opens the data folder, creating it if it is missing, and finishes what a crash left: rows in logs become
    /// segments again.
    ///
    /// # Errors
    /// If the folder is somebody else's, of a newer format, in use, or cannot be written; or an option is out of range.
    pub fn open(options: StoreOptions) -> Result<Store, StorageError> {
        options.check()?;
        let folder = DataFolder::open(&options.dir)?;
        let layout = folder.layout.clone();
        let recovered = recover(&layout)?;
        let next_id = recovered.listing.next_id.max(1);
        let unlinks = Arc::new(Unlinks::default());
        let segments_dir = layout.segments_dir();
        let segments: Vec<_> = recovered
            .listing
            .segments
            .values()
            .map(|meta| Arc::new(Segment::new(&segments_dir, meta, unlinks.clone())))
            .collect();
        let manifest = Manifest::create(layout.manifest(), recovered.listing)?;
        let shared = Arc::new(Shared::new(layout, options.profile, options.on_error, manifest, unlinks));
        {
            let mut state = shared.state();
            state.segments = segments;
            state.counts = recovered.counts;
            state.pending = Some(FlowBatchBuilder::new(&options.tap_names, options.batch_rows));
        }
        let encoder = {
            let shared = shared.clone();
            let spawned = thread::Builder::new().name("segment-encoder".to_owned());
            spawned.spawn(move || shared.encode_until_stopped()).at("start a thread for", &folder.layout.dir)?
        };
        let store = Store {
            folder,
            shared,
            encoder: Some(encoder),
            wal: None,
            next_id,
            synced_at: Instant::now(),
            active_since: None,
            retained_at: None,
            retained_count: 0,
            complained_at: None,
            options,
        };
        for (id, path) in recovered.wals {
            store.recover_wal(id, &path)?;
        }
        Ok(store)
    }

    fn recover_wal(&self, id: u64, path: &Path) -> Result<(), StorageError> {
        let mut counts = StoreCounts::default();
        let batches = load_wal(&self.folder.layout, path, &mut counts)?;
        let mut state = self.shared.state();
        state.counts.rows_recovered += counts.rows_recovered;
        state.counts.rows_torn += counts.rows_torn;
        state.counts.files_damaged += counts.files_damaged;
        drop(state);
        if !batches.is_empty() {
            self.shared.freeze(id, batches, path.to_owned(), self.options.frozen_max);
        }
        Ok(())
    }

    /// Takes records and their texts: those of all records one after the other, each record's part as long as its
    /// `text` says. They are visible at once, and durable with the next sync. Waits only while the encoder is
    /// `frozen_max` segments behind (counted as stall).
    ///
    /// # Errors
    /// With `OnError::Fail`, if rows could not be stored or synced; they are counted in either case.
    pub fn append(&mut self, rows: &[FlowRecord], text: &[u8]) -> Result<(), StorageError> {
        let mut result = Ok(());
        let (mut rest, mut texts) = (rows, text);
        while !rest.is_empty() {
            let mut state = self.shared.state();
            let Some(pending) = &mut state.pending else { break };
            let room = self.options.batch_rows.saturating_sub(pending.len());
            let (run, later) = rest.split_at(room.min(rest.len()));
            // Texts follow their records, so each run takes its own off the front.
            let length = match texts {
                [] => 0,
                _ => run.iter().map(|row| row.text.total()).sum::<usize>().min(texts.len()),
            };
            let (text, later_texts) = texts.split_at(length);
            pending.extend(run, text);
            texts = later_texts;
            let is_full = pending.len() >= self.options.batch_rows;
            state.counts.rows_appended += run.len() as u64;
            drop(state);
            rest = later;
            if is_full {
                result = result.and(self.log_pending());
            }
        }
        result
    }

    /// Does what time makes due: syncing, beginning a segment, retention. Call it several times a second.
    ///
    /// # Errors
    /// With `OnError::Fail`, as `append`.
    pub fn tick(&mut self, now: Now) -> Result<(), StorageError> {
        let mut result = Ok(());
        if now.mono.duration_since(self.synced_at) >= self.options.wal_sync_interval {
            self.synced_at = now.mono;
            result = self.sync();
        }
        let has_rows = self.wal.is_some() || self.shared.state().pending.as_ref().is_some_and(|rows| !rows.is_empty());
        if has_rows {
            let since = *self.active_since.get_or_insert(now.mono);
            if now.mono.duration_since(since) >= self.options.segment_age_max {
                result = result.and(self.log_pending());
                self.roll();
            }
        }
        self.apply_retention(now);
        result
    }

    /// Replaces the limits of retention; they apply from the next tick on.
    pub fn set_retention(&mut self, retention: crate::Retention) {
        self.options.retention = retention;
        self.retained_at = None;
    }

    /// Writes every row to the log and makes it durable.
    ///
    /// # Errors
    /// With `OnError::Fail`, as `append`.
    pub fn sync(&mut self) -> Result<(), StorageError> {
        let logged = self.log_pending();
        logged.and(self.sync_wal())
    }

    /// Puts every row into a published segment, and waits for it.
    ///
    /// # Errors
    /// If a segment cannot be written; its rows stay in the log and are tried again.
    pub fn flush(&mut self) -> Result<(), StorageError> {
        self.log_pending()?;
        if !self.roll() {
            // Stuck before; another attempt makes room or tells why not.
            self.shared.wait_published()?;
            self.roll();
        }
        self.shared.wait_published()
    }

    /// Flushes and lets go of the folder.
    ///
    /// # Errors
    /// As `flush`. Rows that could not be published are synced in the log, and become a segment at the next start.
    pub fn close(mut self) -> Result<(), StorageError> {
        self.flush()
    }

    /// Reads what this store holds, from any thread.
    pub fn reader(&self) -> StoreReader {
        StoreReader::of(self.shared.clone())
    }

    /// Rows written to the log, and rows lost, since the start. Unlike [`counts`](Store::counts), which looks at every
    /// segment, this takes the same time however long the history is: it may be asked once a batch.
    pub fn rows_logged_and_lost(&self) -> (u64, u64) {
        let counts = &self.shared.state().counts;
        (counts.rows_logged, counts.rows_lost_disk + counts.rows_lost_backlog)
    }

    /// Counters and gauges.
    pub fn counts(&self) -> StoreCounts {
        self.shared.counts()
    }

    /// Moves pending rows to the log.
    fn log_pending(&mut self) -> Result<(), StorageError> {
        if self.shared.live_rows() >= self.live_rows_max() && !self.roll() {
            return self.refuse_pending();
        }
        let Some(batch) = self.shared.seal_pending()? else { return Ok(()) };
        if let Err(error) = self.log(&batch) {
            let rows = self.shared.discard_last_active();
            self.abandon_wal();
            self.shared.state().counts.rows_lost_disk += rows;
            let reason = error.reason(&self.options.dir);
            return self.failed(StorageError::RowsLost { rows, reason });
        }
        let mut result = Ok(());
        if self.wal.as_ref().is_some_and(|wal| wal.bytes_unsynced >= self.options.wal_sync_bytes) {
            result = self.sync_wal();
        }
        if self.shared.state().active_rows >= self.options.segment_rows_max {
            self.roll();
        }
        result
    }

    /// Drops pending rows because memory for what cannot be published is full.
    fn refuse_pending(&mut self) -> Result<(), StorageError> {
        let rows = self.shared.discard_pending();
        if rows == 0 {
            return Ok(());
        }
        self.shared.state().counts.rows_lost_backlog += rows;
        let reason = "segments cannot be written, and memory for rows that wait for it is full".to_owned();
        self.failed(StorageError::RowsLost { rows, reason })
    }

    fn log(&mut self, batch: &RecordBatch) -> Result<(), StorageError> {
        let wal = match &mut self.wal {
            Some(wal) => wal,
            None => {
                let id = self.next_id;
                let wal = WalWriter::create(self.folder.layout.wal(id), id)?;
                self.next_id += 1;
                self.wal.insert(wal)
            }
        };
        let before = wal.bytes;
        wal.append(batch)?;
        let written = wal.bytes - before;
        let mut state = self.shared.state();
        state.counts.rows_logged += batch.num_rows() as u64;
        state.counts.wal_bytes += written;
        Ok(())
    }

    fn sync_wal(&mut self) -> Result<(), StorageError> {
        let Some(wal) = self.wal.as_mut().filter(|wal| wal.bytes_unsynced > 0) else { return Ok(()) };
        let since = Instant::now();
        match wal.sync() {
            Ok(()) => {
                let mut state = self.shared.state();
                state.counts.syncs += 1;
                state.counts.sync_ns += since.elapsed().as_nanos() as u64;
                Ok(())
            }
            Err(error) => {
                // After a failed fsync the kernel may have dropped the pages and report success next time. The rows
                // are in memory, so they go into a segment now, and later ones into another log.
                self.abandon_wal();
                self.failed(error)
            }
        }
    }

    /// Gives up a log that cannot be written: its rows are encoded from memory.
    fn abandon_wal(&mut self) {
        let Some(wal) = self.wal.take() else { return };
        self.active_since = None;
        if !self.shared.freeze_active(wal.id, wal.path.clone(), usize::MAX) {
            let _ = fs::remove_file(&wal.path);
        }
    }

    /// Hands the active rows to the encoder. `false` if it is stuck and has no room: they stay active then.
    fn roll(&mut self) -> bool {
        // An error here has frozen the rows already.
        let _ = self.sync_wal();
        let Some(wal) = &self.wal else { return true };
        if !self.shared.freeze_active(wal.id, wal.path.clone(), self.options.frozen_max) {
            return false;
        }
        self.wal = None;
        self.active_since = None;
        true
    }

    /// Rows kept in memory before new ones are refused; only a failing disk gets there.
    fn live_rows_max(&self) -> u64 {
        self.options.segment_rows_max.saturating_mul(self.options.frozen_max as u64 + 2)
    }

    /// Remembers an error and tells of it as the options say.
    fn failed(&mut self, error: StorageError) -> Result<(), StorageError> {
        let mut state = self.shared.state();
        state.counts.wal_errors += 1;
        state.counts.last_error = Some(error.to_string());
        drop(state);
        // Space may be what is missing.
        self.retained_at = None;
        if self.options.on_error == OnError::Fail {
            return Err(error);
        }
        if self.complained_at.is_none_or(|at| at.elapsed() >= COMPLAINT_INTERVAL) {
            self.complained_at = Some(Instant::now());
            tracing::error!(%error, "flow records are not stored as they should be");
        }
        Ok(())
    }

    fn apply_retention(&mut self, now: Now) {
        let published = self.shared.state().counts.segments_published;
        let is_due = self.retained_at.is_none_or(|at| now.mono.duration_since(at) >= RETENTION_INTERVAL);
        if !is_due && published == self.retained_count {
            return;
        }
        self.retained_at = Some(now.mono);
        self.retained_count = published;
        if let Err(error) = retention::apply(&self.shared, &self.options.retention, now.wall) {
            self.shared.state().counts.last_error = Some(error.to_string());
            tracing::warn!(%error, "cannot drop old segments");
        }
    }
}

impl Drop for Store {
    /// Syncs what it can and ends the encoder after the segment it is at; the next start does the rest.
    fn drop(&mut self) {
        // Said by `failed`, or with `OnError::Fail` by whoever got an error before and gave up.
        let _ = self.sync();
        self.shared.stop();
        if let Some(encoder) = self.encoder.take()
            && encoder.join().is_err()
        {
            tracing::error!("the segment encoder panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
        store.wal.as_mut().unwrap().fill_disk();
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
        store.wal.as_mut().unwrap().fill_disk();
        store.sync().unwrap();
        let counts = store.counts();
        assert_eq!((counts.wal_errors, counts.syncs, counts.rows_lost_disk), (1, 0, 0));
        store.flush().unwrap();
        assert_eq!(store.counts().segment_rows, 20);
        assert_eq!(fs::read_dir(dir.path().join("wal")).unwrap().count(), 0);
    }
}
