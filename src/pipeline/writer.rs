//! The one thread that writes: takes records from every worker's ring to the store, and to the exporter where there is one, and
//! rows of windows from the collector.

use super::active::CopyDesk;
use super::outlet::{LaneEnd, OutletEnds};
use super::shared::WorkerView;
use super::windows::TalkerRows;
use capture::ledger::QueueLedger;
use export::ExportHandle;
use flowtable::FlowRecord;
use hints::DnsRecord;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Duration;
use storage::{Now, Retention, StorageError, Store};

/// Records taken from one ring before the next one has its turn.
const CHUNK_RECORDS: usize = 8192;
/// How long the writer sleeps when all rings are empty.
const IDLE: Duration = Duration::from_millis(1);

/// What comes from one worker.
pub(super) struct Inlet {
    pub(super) ends: OutletEnds,
    ledger: Arc<QueueLedger>,
    desk: Arc<CopyDesk>,
    /// Texts of the rows being moved; reused.
    text: Vec<u8>,
}

impl Inlet {
    pub(super) fn new(ends: OutletEnds, view: &WorkerView) -> Inlet {
        Inlet { ends, ledger: view.ledger.clone(), desk: view.desk.clone(), text: Vec::new() }
    }
}

/// Runs until every worker has let go of its rings and all rings are empty, then publishes everything.
pub(super) fn run(
    mut store: Store,
    mut inlets: Vec<Inlet>,
    mut export: Option<ExportHandle>,
    windows: &Receiver<TalkerRows>,
    retention: &Receiver<Retention>,
) -> Result<(), StorageError> {
    let (mut seen, mut seen_dns) = (Seen::default(), Seen::default());
    loop {
        // Asked before the rings are emptied: what was pushed before a worker let go is then still found.
        let mut last_round = inlets.iter().all(|inlet| inlet.ends.records.rows.is_abandoned());
        let mut moved = 0;
        for Inlet { ends, ledger, desk, text } in &mut inlets {
            let append = |rows: &[FlowRecord], text: &[u8]| {
                store.append(rows, text)?;
                if let Some(export) = &mut export {
                    export.push_all(rows);
                }
                Ok(())
            };
            let taken = drain(&mut ends.records, text, |r| r.text.total(), append);
            seen.flows(&store, ledger);
            let taken = taken?;
            desk.taken(taken);
            moved += taken;
            let texts = |r: &DnsRecord| usize::from(r.question_len) + usize::from(r.answers_len);
            let taken = drain(&mut ends.dns, text, texts, |rows, text| store.append_dns(rows, text));
            seen_dns.dns(&store, ledger);
            moved += taken?;
        }
        // Their sender ends after the workers, with the last window.
        match windows.try_recv() {
            Ok(TalkerRows { rows, texts }) => {
                store.append_talkers(&rows, &texts)?;
                (moved, last_round) = (moved + rows.len(), false);
            }
            Err(TryRecvError::Empty) => last_round = false,
            Err(TryRecvError::Disconnected) => {}
        }
        store.tick(Now::read())?;
        if let Ok(retention) = retention.try_recv() {
            store.set_retention(retention);
        }
        if moved == 0 {
            if last_round {
                break;
            }
            std::thread::sleep(IDLE);
        }
    }
    // There will be no more: the exporter sends what is left while the last segment is written.
    drop(export);
    let flushed = store.flush();
    if let Some(inlet) = inlets.first() {
        seen.flows(&store, &inlet.ledger);
        seen_dns.dns(&store, &inlet.ledger);
    }
    flushed?;
    store.close()
}

/// Gives a store what waits in one lane, a bounded number of rows; says how many.
pub(super) fn drain<R, E>(
    lane: &mut LaneEnd<R>,
    text: &mut Vec<u8>,
    text_of: impl Fn(&R) -> usize,
    mut append: impl FnMut(&[R], &[u8]) -> Result<(), E>,
) -> Result<usize, E> {
    let count = lane.rows.slots().min(CHUNK_RECORDS);
    if count == 0 {
        return Ok(0);
    }
    let Ok(chunk) = lane.rows.read_chunk(count) else { return Ok(0) };
    let (first, second) = chunk.as_slices();
    for rows in [first, second] {
        text.clear();
        // The worker puts a row's text into its ring before the row.
        if let Ok(bytes) = lane.text.read_chunk(rows.iter().map(&text_of).sum()) {
            let (first, second) = bytes.as_slices();
            text.extend_from_slice(first);
            text.extend_from_slice(second);
            bytes.commit_all();
        }
        append(rows, text)?;
    }
    chunk.commit_all();
    Ok(count)
}

/// What a store had counted when it was last asked.
#[derive(Default)]
struct Seen {
    logged: u64,
    lost: u64,
}

impl Seen {
    /// Rows logged and lost since the last time. A store writes and loses rows by the batch, whichever ring they came
    /// from, so that with several workers only the sum of their ledgers is exact.
    fn since(&mut self, (logged, lost): (u64, u64)) -> (u64, u64) {
        let before = std::mem::replace(self, Seen { logged, lost });
        (logged - before.logged, lost - before.lost)
    }

    fn flows(&mut self, store: &Store, ledger: &QueueLedger) {
        let (logged, lost) = self.since(store.rows_logged_and_lost());
        ledger.writer.records_stored.add(logged);
        ledger.writer.records_disk_full.add(lost);
    }

    fn dns(&mut self, store: &Store, ledger: &QueueLedger) {
        let (logged, lost) = self.since(store.dns_rows_logged_and_lost());
        ledger.writer.dns_stored.add(logged);
        ledger.writer.dns_disk_full.add(lost);
    }
}
