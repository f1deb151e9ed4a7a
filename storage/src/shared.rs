//! What the writer, the encoder thread and readers share: the rows, wherever they are.

use crate::StorageError;
use crate::compact::{Pace, compact};
use crate::encode::{NewSegment, Origin, SegmentProfile, write_segment};
use crate::folder::Layout;
use crate::manifest::Manifest;
use crate::options::{Compaction, OnError, StoreOptions};
use crate::partition;
use crate::reader::Snapshot;
use crate::retention::drop_segments;
use crate::segment::{Segment, SegmentId, SegmentMeta, Unlinks};
use crate::segments::Segments;
use crate::table::{BatchBuilder, Columns};
use arrow::record_batch::RecordBatch;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Counters and gauges of a store. Rows: `found + appended + recovered` = those in segments or live + every
/// `rows_lost_*` + those retention removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreCounts {
    /// Rows in segments at the start.
    pub rows_found: u64,
    /// Rows given to `append`.
    pub rows_appended: u64,
    /// Rows written to the log.
    pub rows_logged: u64,
    /// Rows found in logs at the start.
    pub rows_recovered: u64,
    /// Rows lost because the log could not be written (disk full, I/O error).
    pub rows_lost_disk: u64,
    /// Rows lost because segments could not be written for so long that memory for them ran out.
    pub rows_lost_backlog: u64,
    /// Rows of torn log tails found at the start, as far as known: a crash within the sync interval loses these.
    /// No part of `rows_recovered`.
    pub rows_torn: u64,
    /// Files set aside as damaged at the start.
    pub files_damaged: u64,
    /// Listed segments whose file was missing at the start.
    pub segments_missing: u64,
    /// Segments listed now.
    pub segments: u64,
    /// Rows in them.
    pub segment_rows: u64,
    /// Their size.
    pub segment_bytes: u64,
    /// Segments published since the start.
    pub segments_published: u64,
    /// Time spent encoding them.
    pub encode_ns: u64,
    /// Rows in no segment yet.
    pub live_rows: u64,
    /// Of those, rows a power cut now would take: not yet synced, or in a log that could not be synced, until their
    /// segment is published.
    pub unsynced_rows: u64,
    /// Segments waiting to be encoded.
    pub frozen: u64,
    /// Log bytes written since the start.
    pub wal_bytes: u64,
    /// Times the log was made durable.
    pub syncs: u64,
    /// Time spent on that.
    pub sync_ns: u64,
    /// Writes or syncs of the log that failed.
    pub wal_errors: u64,
    /// Attempts to publish a segment that failed; each is repeated.
    pub roll_errors: u64,
    /// Times `append` waited for the encoder.
    pub stalls: u64,
    /// Time it waited.
    pub stall_ns: u64,
    /// Segments dropped by retention.
    pub segments_removed: u64,
    /// Of those, dropped because the disk was nearly full although they had not been shipped.
    pub segments_removed_unshipped: u64,
    /// Rows in them all.
    pub rows_removed: u64,
    /// Their size.
    pub bytes_removed: u64,
    /// Of those, files still held by readers.
    pub unlinks_waiting: u64,
    /// Their size.
    pub unlinks_waiting_bytes: u64,
    /// Files that could not be removed; the next start tries again.
    pub unlinks_failed: u64,
    /// Rows of more hours than a log has partitions for, in those without a date.
    pub rows_undated: u64,
    /// Segments made by merging others.
    pub compactions: u64,
    /// Segments merged into them.
    pub segments_merged: u64,
    /// Rows rewritten by that.
    pub rows_merged: u64,
    /// Bytes read for it.
    pub bytes_merged: u64,
    /// Bytes written by it.
    pub bytes_merged_into: u64,
    /// Compactions given up because a segment was shipped or dropped meanwhile, or the store was closed.
    pub compactions_abandoned: u64,
    /// Compactions that failed; each is tried again.
    pub compaction_errors: u64,
    /// The latest error, for people.
    pub last_error: Option<String>,
}

impl StoreCounts {
    /// Rows given to `append` that are nowhere.
    pub fn rows_lost(&self) -> u64 {
        self.rows_lost_disk + self.rows_lost_backlog
    }
}

/// Rows of a closed log file on their way into a segment.
#[derive(Clone)]
pub(crate) struct Frozen {
    pub(crate) id: u64,
    pub(crate) batches: Arc<Vec<RecordBatch>>,
    /// Removed once the segment is published.
    pub(crate) wal: PathBuf,
    /// Rows that the log does not hold for sure.
    pub(crate) unsynced_rows: u64,
}

/// What a log has become.
struct Published {
    segments: Vec<Arc<Segment>>,
    /// Of their rows, those without a date in their partition.
    rows_undated: u64,
}

pub(crate) struct State<C: Columns> {
    /// Sorted by id.
    pub(crate) segments: Arc<Segments>,
    /// Oldest first.
    pub(crate) frozen: VecDeque<Frozen>,
    /// Batches of the current log file.
    pub(crate) active: Vec<RecordBatch>,
    /// Rows in them.
    pub(crate) active_rows: u64,
    /// Of those, rows not synced.
    pub(crate) active_unsynced: u64,
    /// Rows not in the log yet; `None` only before the store has been opened.
    pub(crate) pending: Option<BatchBuilder<C>>,
    pub(crate) counts: StoreCounts,
    /// Why the last attempt to publish failed; `None` after a success.
    pub(crate) failing: Option<String>,
    /// When the encoder may try again.
    retry_at: Option<Instant>,
    stop: bool,
}

impl<C: Columns> Default for State<C> {
    fn default() -> Self {
        State {
            segments: Arc::default(),
            frozen: VecDeque::new(),
            active: Vec::new(),
            active_rows: 0,
            active_unsynced: 0,
            pending: None,
            counts: StoreCounts::default(),
            failing: None,
            retry_at: None,
            stop: false,
        }
    }
}

/// A table of the store, whatever its rows are.
pub(crate) trait Rows: Send + Sync {
    /// Everything there is now.
    fn snapshot(&self) -> Result<Snapshot, StorageError>;
    /// Counters and gauges.
    fn counts(&self) -> StoreCounts;
    /// Published segments, by id.
    fn segments(&self) -> Arc<Segments>;
    /// Segments published since the start.
    fn published(&self) -> u64;
    /// Bytes of dropped files that readers still hold.
    fn waiting_bytes(&self) -> u64;
    /// Merges segments where it is worth while: one job at most, `true` if there was one.
    fn compact(&self, compaction: &Compaction, min_free: u64, pace: &Pace) -> Result<bool, StorageError>;
    /// Drops segments: off the manifest first, the files when no reader holds them.
    fn drop_segments(&self, victims: Vec<Arc<Segment>>, shipped_to: u8) -> Result<(), StorageError>;
    /// Remembers an error for people.
    fn complain(&self, error: &StorageError);
}

impl<C: Columns> Rows for Shared<C> {
    fn snapshot(&self) -> Result<Snapshot, StorageError> {
        Shared::snapshot(self)
    }
    fn counts(&self) -> StoreCounts {
        Shared::counts(self)
    }
    fn segments(&self) -> Arc<Segments> {
        self.state().segments.clone()
    }
    fn published(&self) -> u64 {
        self.state().counts.segments_published
    }
    fn waiting_bytes(&self) -> u64 {
        self.unlinks.waiting_bytes.load(Ordering::Relaxed)
    }
    fn compact(&self, compaction: &Compaction, min_free: u64, pace: &Pace) -> Result<bool, StorageError> {
        compact(self, compaction, min_free, pace)
    }
    fn drop_segments(&self, victims: Vec<Arc<Segment>>, shipped_to: u8) -> Result<(), StorageError> {
        drop_segments(self, victims, shipped_to)
    }
    fn complain(&self, error: &StorageError) {
        self.state().counts.last_error = Some(error.to_string());
    }
}

impl<C: Columns> State<C> {
    fn frozen_rows(&self) -> u64 {
        self.frozen.iter().flat_map(|frozen| frozen.batches.iter()).map(|batch| batch.num_rows() as u64).sum()
    }
}

/// Lock order: `manifest`, then `state`; `state` is never held across I/O.
pub(crate) struct Shared<C: Columns> {
    pub(crate) layout: Layout,
    pub(crate) profile: SegmentProfile,
    on_error: OnError,
    /// Rows of a segment at most.
    pub(crate) segment_rows_max: u64,
    /// Number of the next log or compaction.
    next_number: AtomicU64,
    /// Told of new segments; a store without compaction has none.
    pub(crate) pace: Option<Arc<Pace>>,
    pub(crate) unlinks: Arc<Unlinks>,
    pub(crate) manifest: Mutex<Manifest>,
    state: Mutex<State<C>>,
    /// Signalled when rows are frozen, published or stuck, and on stop.
    changed: Condvar,
}

const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);

impl<C: Columns> Shared<C> {
    pub(crate) fn new(
        layout: Layout,
        options: &StoreOptions,
        next_number: u64,
        manifest: Manifest,
        unlinks: Arc<Unlinks>,
        pace: Option<Arc<Pace>>,
    ) -> Self {
        Shared {
            layout,
            profile: options.profile,
            on_error: options.on_error,
            segment_rows_max: options.segment_rows_max,
            next_number: AtomicU64::new(next_number),
            pace,
            unlinks,
            manifest: Mutex::new(manifest),
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// Every change of the state is complete before a panic could happen, so a poisoned lock is as good as any.
    pub(crate) fn state(&self) -> MutexGuard<'_, State<C>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn manifest(&self) -> MutexGuard<'_, Manifest> {
        self.manifest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn snapshot(&self) -> Result<Snapshot, StorageError> {
        let state = self.state();
        let mut live: Vec<RecordBatch> =
            state.frozen.iter().flat_map(|frozen| frozen.batches.iter()).chain(&state.active).cloned().collect();
        let segments = state.segments.clone();
        let pending = state.pending.as_ref().filter(|pending| !pending.is_empty()).cloned();
        drop(state);
        if let Some(mut pending) = pending {
            live.push(pending.finish()?);
        }
        Ok(Snapshot { segments, live })
    }

    pub(crate) fn counts(&self) -> StoreCounts {
        let state = self.state();
        let pending = state.pending.as_ref().map_or(0, BatchBuilder::len) as u64;
        StoreCounts {
            segments: state.segments.len() as u64,
            segment_rows: state.segments.iter().map(|segment| segment.rows).sum(),
            segment_bytes: state.segments.iter().map(|segment| segment.bytes).sum(),
            live_rows: state.frozen_rows() + state.active_rows + pending,
            unsynced_rows: state.frozen.iter().map(|frozen| frozen.unsynced_rows).sum::<u64>()
                + state.active_unsynced
                + pending,
            frozen: state.frozen.len() as u64,
            unlinks_waiting: self.unlinks.waiting_files.load(Ordering::Relaxed),
            unlinks_waiting_bytes: self.unlinks.waiting_bytes.load(Ordering::Relaxed),
            unlinks_failed: self.unlinks.failed.load(Ordering::Relaxed),
            ..state.counts.clone()
        }
    }

    /// Moves the pending rows to the active ones, in one step; `None` if there are none.
    pub(crate) fn seal_pending(&self) -> Result<Option<RecordBatch>, StorageError> {
        let mut state = self.state();
        let Some(pending) = state.pending.as_mut().filter(|pending| !pending.is_empty()) else { return Ok(None) };
        let batch = pending.finish()?;
        state.active_rows += batch.num_rows() as u64;
        state.active_unsynced += batch.num_rows() as u64;
        state.active.push(batch.clone());
        Ok(Some(batch))
    }

    /// Takes back the rows sealed last; returns how many.
    pub(crate) fn discard_last_active(&self) -> u64 {
        let mut state = self.state();
        let rows = state.active.pop().map_or(0, |batch| batch.num_rows() as u64);
        state.active_rows -= rows;
        state.active_unsynced -= rows;
        rows
    }

    /// The active rows are durable.
    pub(crate) fn synced(&self, took: Duration) {
        let mut state = self.state();
        state.active_unsynced = 0;
        state.counts.syncs += 1;
        state.counts.sync_ns += took.as_nanos() as u64;
    }

    /// Drops the pending rows; returns how many.
    pub(crate) fn discard_pending(&self) -> u64 {
        let mut state = self.state();
        state.pending.as_mut().map_or(0, BatchBuilder::clear) as u64
    }

    /// Rows in memory, those not in the log yet aside.
    pub(crate) fn live_rows(&self) -> u64 {
        let state = self.state();
        state.frozen_rows() + state.active_rows
    }

    /// Hands the active rows to the encoder: they are visible as frozen instead of as active, in one step. Waits while
    /// `frozen_max` segments are before them, unless those are stuck. `false` if the rows stayed active, because of
    /// that or because there are none.
    pub(crate) fn freeze_active(&self, id: u64, wal: PathBuf, frozen_max: usize) -> bool {
        let mut state = self.wait_for_room(frozen_max);
        if state.active.is_empty() || state.frozen.len() >= frozen_max {
            return false;
        }
        let batches = std::mem::take(&mut state.active);
        state.active_rows = 0;
        let unsynced_rows = std::mem::take(&mut state.active_unsynced);
        state.frozen.push_back(Frozen { id, batches: Arc::new(batches), wal, unsynced_rows });
        self.changed.notify_all();
        true
    }

    /// Hands rows of an earlier run to the encoder, whether or not it is stuck: they must be visible.
    pub(crate) fn freeze(&self, id: u64, batches: Vec<RecordBatch>, wal: PathBuf, frozen_max: usize) {
        let mut state = self.wait_for_room(frozen_max);
        // Who wrote the log may have died before it synced it.
        let unsynced_rows = batches.iter().map(|batch| batch.num_rows() as u64).sum();
        state.frozen.push_back(Frozen { id, batches: Arc::new(batches), wal, unsynced_rows });
        self.changed.notify_all();
    }

    fn wait_for_room(&self, frozen_max: usize) -> MutexGuard<'_, State<C>> {
        let mut state = self.state();
        if state.frozen.len() >= frozen_max && state.failing.is_none() {
            let since = Instant::now();
            while state.frozen.len() >= frozen_max && state.failing.is_none() {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            state.counts.stalls += 1;
            state.counts.stall_ns += since.elapsed().as_nanos() as u64;
        }
        state
    }

    /// Waits until nothing is frozen. Fails with the reason when an attempt fails meanwhile.
    pub(crate) fn wait_published(&self) -> Result<(), StorageError> {
        let mut state = self.state();
        let failed_before = state.counts.roll_errors;
        state.retry_at = None;
        self.changed.notify_all();
        while !state.frozen.is_empty() {
            if state.counts.roll_errors > failed_before
                && let Some(reason) = state.failing.clone()
            {
                return Err(StorageError::Unpublished { reason });
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }

    /// Makes the encoder end after the segment it is at.
    pub(crate) fn stop(&self) {
        self.state().stop = true;
        self.changed.notify_all();
    }

    /// Body of the encoder thread.
    pub(crate) fn encode_until_stopped(&self) {
        let mut backoff = RETRY_FIRST;
        while let Some(frozen) = self.next_frozen() {
            let since = Instant::now();
            match self.publish(&frozen) {
                Ok(published) => {
                    backoff = RETRY_FIRST;
                    remove_wal(&self.layout, &frozen.wal);
                    self.published(published, since.elapsed());
                }
                Err(error) => {
                    self.stuck(&error, Instant::now() + backoff);
                    backoff = (backoff * 2).min(RETRY_MAX);
                }
            }
        }
    }

    fn next_frozen(&self) -> Option<Frozen> {
        let mut state = self.state();
        loop {
            if state.stop {
                return None;
            }
            let wait = state.retry_at.map(|at| at.saturating_duration_since(Instant::now()));
            state = match (state.frozen.front(), wait) {
                (Some(frozen), None | Some(Duration::ZERO)) => return Some(frozen.clone()),
                (Some(_), Some(wait)) => {
                    self.changed.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0
                }
                (None, _) => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    fn publish(&self, frozen: &Frozen) -> Result<Published, StorageError> {
        let partitions = partition::split(self.layout.table, &frozen.batches);
        let mut metas = Vec::with_capacity(partitions.len());
        for (part, partition) in partitions.iter().enumerate() {
            let new = NewSegment {
                id: SegmentId { number: frozen.id, part: part as u8 },
                dir: &partition.dir,
                origin: Origin::Log { parts: partitions.len() },
                batches: &frozen.batches,
                rows: &partition.rows,
                profile: self.profile,
            };
            metas.push(write_segment(&self.layout, &new, None)?);
        }
        let undated = partitions.iter().filter(|partition| partition.is_undated);
        let rows_undated = undated.map(|partition| partition.rows.len() as u64).sum();
        let segments = metas.iter().map(|meta| self.segment(meta)).collect();
        self.manifest().publish(frozen.id, metas)?;
        Ok(Published { segments, rows_undated })
    }

    pub(crate) fn segment(&self, meta: &SegmentMeta) -> Arc<Segment> {
        Arc::new(Segment::new(&self.layout.segments_dir(), meta, self.unlinks.clone()))
    }

    /// The switch: in one step the rows leave the frozen ones and come in as segments.
    fn published(&self, published: Published, took: Duration) {
        let mut state = self.state();
        state.frozen.pop_front();
        state.counts.segments_published += published.segments.len() as u64;
        state.counts.rows_undated += published.rows_undated;
        Arc::make_mut(&mut state.segments).insert(published.segments);
        state.counts.encode_ns += took.as_nanos() as u64;
        state.failing = None;
        state.retry_at = None;
        self.changed.notify_all();
        drop(state);
        if let Some(pace) = &self.pace {
            pace.wake();
        }
    }

    /// Whether a log waits to be encoded, and can be.
    pub(crate) fn is_encoding(&self) -> bool {
        let state = self.state();
        !state.frozen.is_empty() && state.failing.is_none()
    }

    /// A number no log and no compaction has had.
    pub(crate) fn take_number(&self) -> u64 {
        self.next_number.fetch_add(1, Ordering::Relaxed)
    }

    fn stuck(&self, error: &StorageError, retry_at: Instant) {
        let reason = error.reason(&self.layout.dir);
        let mut state = self.state();
        state.counts.roll_errors += 1;
        state.counts.last_error = Some(reason.clone());
        state.failing = Some(reason.clone());
        state.retry_at = Some(retry_at);
        self.changed.notify_all();
        drop(state);
        // At most one line a retry, and those back off. With `OnError::Fail` the caller gets it as an error.
        if self.on_error == OnError::Count {
            tracing::warn!(reason, "cannot publish a segment; its rows stay in the log and are tried again");
        }
    }
}

pub(crate) fn remove_wal(layout: &Layout, path: &Path) {
    if let Err(error) = layout.disk.remove_file(path) {
        // Its rows are listed in the manifest, so the next start drops it.
        tracing::warn!(path = %path.display(), %error, "cannot remove a log whose rows are in a segment");
    }
}
