//! The writer of one table: its log, and the thread that makes segments of it.

use crate::StorageError;
use crate::compact::Pace;
use crate::error::IoContext;
use crate::folder::Layout;
use crate::manifest::Manifest;
use crate::options::{Now, OnError, StoreOptions};
use crate::recover::{load_wal, recover};
use crate::segment::{Claim, Segment, Unlinks};
use crate::segments::Segments;
use crate::shared::{Shared, StoreCounts, remove_wal};
use crate::table::{BatchBuilder, Columns};
use crate::wal::WalWriter;
use arrow::record_batch::RecordBatch;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// A writer, whatever its rows are.
pub(crate) trait Writer {
    /// Does what time makes due: syncing, beginning a segment.
    fn tick(&mut self, now: Now) -> Result<(), StorageError>;
    /// Writes every row to the log and makes it durable.
    fn sync(&mut self) -> Result<(), StorageError>;
    /// Puts every row into a published segment, and waits for it.
    fn flush(&mut self) -> Result<(), StorageError>;
    /// Whether there has been an error since this was last asked: space may be what is missing.
    fn take_failed(&mut self) -> bool;
}

/// Writes rows of one table. One thread calls it; it keeps a second one for encoding segments.
pub(crate) struct TableWriter<C: Columns> {
    options: StoreOptions,
    layout: Layout,
    pub(crate) shared: Arc<Shared<C>>,
    encoder: Option<JoinHandle<()>>,
    /// Log of the active rows; `None` while there are none.
    pub(crate) wal: Option<WalWriter>,
    /// Last tick that synced.
    synced_at: Instant,
    /// First tick that saw active rows.
    active_since: Option<Instant>,
    /// When an error was last logged.
    complained_at: Option<Instant>,
    /// An error since `take_failed`.
    failed: bool,
}

/// A full disk makes every batch fail; one line in this time is enough.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(10);

impl<C: Columns> TableWriter<C> {
    /// Opens a table of a data folder that is locked, and finishes what a crash left of it.
    pub(crate) fn open(options: &StoreOptions, pace: Option<Arc<Pace>>) -> Result<Self, StorageError> {
        let layout = Layout::of(options.disk.clone(), &options.dir, C::TABLE);
        let recovered = recover(&layout)?;
        let next_id = recovered.listing.next_id.max(1);
        let unlinks = Arc::new(Unlinks::new(layout.disk.clone()));
        let segments_dir = layout.segments_dir();
        let segments: Segments = recovered
            .listing
            .segments
            .values()
            .map(|meta| Arc::new(Segment::new(&segments_dir, meta, unlinks.clone())))
            .collect();
        let has_left =
            |segment: &&Arc<Segment>| options.left.contains(&(C::TABLE.name.to_owned(), segment.file.clone()));
        segments.iter().filter(has_left).for_each(|segment| {
            segment.claim(Claim::Shipping);
        });
        let manifest = Manifest::create(layout.disk.clone(), layout.manifest(), recovered.listing);
        // One that could not be written says nothing of what was found; then the next start lets them go.
        if manifest.is_written() {
            recovered.wals_done.iter().for_each(|path| remove_wal(&layout, path));
        }
        let shared = Arc::new(Shared::new(layout.clone(), options, next_id, manifest, unlinks, pace));
        {
            let mut state = shared.state();
            state.counts =
                StoreCounts { rows_found: segments.iter().map(|segment| segment.rows).sum(), ..recovered.counts };
            state.segments = Arc::new(segments);
            state.pending = Some(BatchBuilder::new(&options.tap_names, options.batch_rows));
        }
        let encoder = {
            let shared = shared.clone();
            let spawned = thread::Builder::new().name(C::TABLE.encoder.to_owned());
            spawned.spawn(move || shared.encode_until_stopped()).at("start a thread for", &layout.dir)?
        };
        let writer = TableWriter {
            layout,
            shared,
            encoder: Some(encoder),
            wal: None,
            synced_at: Instant::now(),
            active_since: None,
            complained_at: None,
            failed: false,
            options: StoreOptions { left: BTreeSet::new(), ..options.clone() },
        };
        for (id, path) in recovered.wals {
            writer.recover_wal(id, &path)?;
        }
        Ok(writer)
    }

    fn recover_wal(&self, id: u64, path: &Path) -> Result<(), StorageError> {
        let mut counts = StoreCounts::default();
        let batches = load_wal(&self.layout, path, &mut counts)?;
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

    /// Takes rows and their texts, one after the other.
    pub(crate) fn append(&mut self, rows: &[C::Row], text: &[u8]) -> Result<(), StorageError> {
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
                _ => run.iter().map(C::text_bytes).sum::<usize>().min(texts.len()),
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

    /// Rows written to the log, and rows lost.
    pub(crate) fn rows_logged_and_lost(&self) -> (u64, u64) {
        let counts = &self.shared.state().counts;
        (counts.rows_logged, counts.rows_lost())
    }

    /// Moves pending rows to the log.
    fn log_pending(&mut self) -> Result<(), StorageError> {
        if self.shared.live_rows() >= self.live_rows_max() && !self.roll() {
            return self.refuse_pending();
        }
        let Some(batch) = self.shared.seal_pending()? else { return Ok(()) };
        if let Err(error) = self.log(&batch) {
            let rows = self.shared.discard_last_active();
            // What the log has may well be safe in it.
            let since = Instant::now();
            if self.wal.as_mut().is_some_and(|wal| wal.sync().is_ok()) {
                self.shared.synced(since.elapsed());
            }
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
                // Taken even if this fails: the file may be there then and not let itself be removed.
                let id = self.shared.take_number();
                self.wal.insert(WalWriter::create(&*self.layout.disk, self.layout.wal(id), id)?)
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
                self.shared.synced(since.elapsed());
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
            let _ = self.layout.disk.remove_file(&wal.path);
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
        self.failed = true;
        if self.options.on_error == OnError::Fail {
            return Err(error);
        }
        if self.complained_at.is_none_or(|at| at.elapsed() >= COMPLAINT_INTERVAL) {
            self.complained_at = Some(Instant::now());
            tracing::error!(table = C::TABLE.name, %error, "rows are not stored as they should be");
        }
        Ok(())
    }
}

impl<C: Columns> Writer for TableWriter<C> {
    fn tick(&mut self, now: Now) -> Result<(), StorageError> {
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
        result
    }

    fn sync(&mut self) -> Result<(), StorageError> {
        let logged = self.log_pending();
        logged.and(self.sync_wal())
    }

    fn flush(&mut self) -> Result<(), StorageError> {
        self.log_pending()?;
        if !self.roll() {
            // Stuck before; another attempt makes room or tells why not.
            self.shared.wait_published()?;
            self.roll();
        }
        self.shared.wait_published()
    }

    fn take_failed(&mut self) -> bool {
        std::mem::take(&mut self.failed)
    }
}

impl<C: Columns> Drop for TableWriter<C> {
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
