//! The one thread that writes: takes records from every worker's ring to the store.

use capture::ledger::QueueLedger;
use flowtable::FlowRecord;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;
use storage::{Now, Retention, StorageError, Store};

/// Records taken from one ring before the next one has its turn.
const CHUNK_RECORDS: usize = 8192;
/// How long the writer sleeps when all rings are empty.
const IDLE: Duration = Duration::from_millis(1);

pub(super) struct Inlet {
    pub(super) records: rtrb::Consumer<FlowRecord>,
    pub(super) ledger: Arc<QueueLedger>,
}

/// Runs until every worker has let go of its ring and all rings are empty, then publishes everything.
pub(super) fn run(
    mut store: Store,
    mut inlets: Vec<Inlet>,
    retention: &Receiver<Retention>,
) -> Result<(), StorageError> {
    let mut lost = 0;
    loop {
        // Asked before the rings are emptied: what was pushed before a worker let go is then still found.
        let last_round = inlets.iter().all(|inlet| inlet.records.is_abandoned());
        let mut moved = 0;
        for inlet in &mut inlets {
            moved += drain(&mut store, inlet, &mut lost)?;
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
    store.close()
}

fn drain(store: &mut Store, inlet: &mut Inlet, lost: &mut u64) -> Result<usize, StorageError> {
    let count = inlet.records.slots().min(CHUNK_RECORDS);
    if count == 0 {
        return Ok(0);
    }
    let Ok(chunk) = inlet.records.read_chunk(count) else { return Ok(0) };
    let (first, second) = chunk.as_slices();
    for records in [first, second] {
        store.append(records)?;
    }
    chunk.commit_all();
    // Rows are lost by the batch, which may hold some that were counted as stored before: taken back here.
    let counts = store.counts();
    let now_lost = counts.rows_lost_disk + counts.rows_lost_backlog;
    let newly_lost = now_lost - std::mem::replace(lost, now_lost);
    inlet.ledger.writer.records_stored.add((count as u64).wrapping_sub(newly_lost));
    inlet.ledger.writer.records_disk_full.add(newly_lost);
    Ok(count)
}
