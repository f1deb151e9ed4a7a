//! Merging small segments into larger ones, in the background.
//!
//! A log of a minute becomes a small segment for each tap and hour; months of them would be more files than a query
//! should look at. What is merged is decided in `plan.rs`; a job reads its segments, writes their rows into one, and
//! one line of the manifest puts it in their place. The files of the merged ones go when no reader holds them.

mod pace;
mod plan;

pub(crate) use pace::{Gate, Pace};

use crate::StorageError;
use crate::encode::{NewSegment, Origin, logs_of, order_by_time, read_segment, write_segment};
use crate::error::IoContext;
use crate::options::Compaction;
use crate::segment::{Claimed, SegmentId, SegmentMeta};
use crate::shared::{Rows, Shared};
use crate::sys;
use crate::table::Columns;
use plan::{Job, plan};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Logs whose numbers a segment's file may list before it is merged no more.
const LOGS_MAX: usize = 4_096;
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// The thread that compacts; it ends, soon, with this value.
pub(crate) struct Compactor {
    pace: Arc<Pace>,
    /// Bytes of the disk that stay free.
    min_free: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Compactor {
    /// `min_free`: bytes of the disk that are to stay free.
    pub(crate) fn start(
        dir: &Path,
        tables: Vec<Arc<dyn Rows>>,
        compaction: Compaction,
        min_free: u64,
        pace: Arc<Pace>,
    ) -> Result<Compactor, StorageError> {
        let min_free = Arc::new(AtomicU64::new(min_free));
        let (own, free) = (pace.clone(), min_free.clone());
        let run = move || {
            sys::lowest_priority();
            compact_until_stopped(&tables, &compaction, &free, &own);
        };
        let thread = thread::Builder::new().name("compactor".to_owned()).spawn(run).at("start a thread for", dir)?;
        Ok(Compactor { pace, min_free, thread: Some(thread) })
    }

    /// Replaces the bytes of the disk that are to stay free.
    pub(crate) fn set_min_free(&self, bytes: u64) {
        self.min_free.store(bytes, Ordering::Relaxed);
    }
}

impl Drop for Compactor {
    fn drop(&mut self) {
        self.pace.stop();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the compactor panicked");
        }
    }
}

fn compact_until_stopped(tables: &[Arc<dyn Rows>], compaction: &Compaction, min_free: &AtomicU64, pace: &Pace) {
    let mut backoff = RETRY_FIRST;
    while pace.wait_for_job().is_ok() {
        for table in tables {
            match table.compact(compaction, min_free.load(Ordering::Relaxed), pace) {
                // There may be another one.
                Ok(true) => {
                    backoff = RETRY_FIRST;
                    pace.wake();
                }
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot merge segments; they stay as they are, and are tried again");
                    if pace.pause(backoff).is_err() {
                        return;
                    }
                    backoff = (backoff * 2).min(RETRY_MAX);
                    pace.wake();
                }
            }
        }
    }
}

/// Does one job of a table, if there is one that is worth it and the disk has room for it: `true`.
pub(crate) fn compact<C: Columns>(
    shared: &Shared<C>,
    compaction: &Compaction,
    min_free: u64,
    pace: &Pace,
) -> Result<bool, StorageError> {
    let settled = shared.manifest().settle();
    let done = settled.and_then(|()| {
        let segments = shared.segments();
        let Some(job) = plan(&segments, compaction, shared.segment_rows_max) else { return Ok(false) };
        let bytes: u64 = job.inputs.iter().map(|segment| segment.bytes).sum();
        let free = shared.layout.disk.free_bytes(&shared.layout.dir).at("ask for free space of", &shared.layout.dir)?;
        if free < bytes.saturating_add(min_free) {
            return Ok(false);
        }
        run(shared, &job, pace)
    });
    match done {
        Err(_) if pace.is_stopped() => {
            shared.state().counts.compactions_abandoned += 1;
            Ok(false)
        }
        Err(error) => {
            let mut state = shared.state();
            state.counts.compaction_errors += 1;
            state.counts.last_error = Some(error.reason(&shared.layout.dir));
            drop(state);
            Err(error)
        }
        done => done,
    }
}

fn run<C: Columns>(shared: &Shared<C>, job: &Job, pace: &Pace) -> Result<bool, StorageError> {
    let layout = &shared.layout;
    let Some(inputs) = Claimed::take(&job.inputs) else {
        // One has left for an archive since the plan was made.
        shared.state().counts.compactions_abandoned += 1;
        return Ok(true);
    };
    let is_busy = || shared.is_encoding();
    let gate = Gate { pace, is_busy: &is_busy };
    let (mut batches, mut logs) = (Vec::new(), Vec::new());
    for segment in &job.inputs {
        let read = logs_of(layout, segment.id, &segment.path, segment.footer)
            .and_then(|logs| Ok((logs, read_segment(layout, segment, &gate)?)));
        let (its_logs, its_batches) = read.inspect_err(|_| {
            // Other segments are not to wait for one that does not read.
            if !pace.is_stopped() {
                segment.leave_alone();
            }
        })?;
        if its_logs.len() > LOGS_MAX {
            segment.leave_alone();
        }
        logs.extend(its_logs);
        batches.extend(its_batches);
    }
    logs.sort_unstable();
    let rows = order_by_time(&batches);
    let wanted: u64 = job.inputs.iter().map(|segment| segment.rows).sum();
    if rows.len() as u64 != wanted {
        let reason = format!("the segments to be merged have {} rows, the manifest says {wanted}", rows.len());
        return Err(StorageError::Damaged { path: layout.segments_dir().join(&job.dir), offset: 0, reason });
    }
    let new = NewSegment {
        id: SegmentId { number: shared.take_number(), part: 0 },
        dir: &job.dir,
        origin: Origin::Merged { logs: &logs },
        batches: &batches,
        rows: &rows,
        profile: shared.profile,
    };
    let meta = write_segment(layout, &new, Some(&gate))?;
    replace(shared, job, inputs, meta)
}

/// Puts a merged segment in the place of those it was merged from: in the manifest, then for readers.
fn replace<C: Columns>(
    shared: &Shared<C>,
    job: &Job,
    inputs: Claimed,
    meta: SegmentMeta,
) -> Result<bool, StorageError> {
    let layout = &shared.layout;
    let path = layout.segments_dir().join(&meta.file);
    let mut manifest = shared.manifest();
    if !job.inputs.iter().all(|segment| manifest.lists(segment.id)) {
        // Retention has dropped rows of it meanwhile.
        layout.disk.remove_file(&path).at("remove", &path)?;
        shared.state().counts.compactions_abandoned += 1;
        return Ok(true);
    }
    let merged = shared.segment(&meta);
    manifest.merge(meta, inputs)?;
    let mut state = shared.state();
    let mut ids: Vec<SegmentId> = job.inputs.iter().map(|segment| segment.id).collect();
    ids.sort_unstable();
    let listed = Arc::make_mut(&mut state.segments);
    listed.remove(&ids);
    listed.insert(vec![merged.clone()]);
    let counts = &mut state.counts;
    counts.compactions += 1;
    counts.segments_merged += job.inputs.len() as u64;
    counts.rows_merged += merged.rows;
    counts.bytes_merged += job.inputs.iter().map(|segment| segment.bytes).sum::<u64>();
    counts.bytes_merged_into += merged.bytes;
    drop(state);
    drop(manifest);
    job.inputs.iter().for_each(|segment| segment.doom());
    Ok(true)
}
