//! The one thread that writes: takes records from every worker's ring to the store, and to the exporter where there is one.

use capture::ledger::QueueLedger;
use export::ExportHandle;
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
    mut export: Option<ExportHandle>,
    retention: &Receiver<Retention>,
) -> Result<(), StorageError> {
    let mut seen = Seen::default();
    loop {
        // Asked before the rings are emptied: what was pushed before a worker let go is then still found.
        let last_round = inlets.iter().all(|inlet| inlet.records.is_abandoned());
        let mut moved = 0;
        for inlet in &mut inlets {
            let taken = drain(&mut store, inlet, export.as_mut());
            seen.account(&store, &inlet.ledger);
            moved += taken?;
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
        seen.account(&store, &inlet.ledger);
    }
    flushed?;
    store.close()
}

/// Gives the store what waits in one ring, a bounded number of records; says how many.
fn drain(store: &mut Store, inlet: &mut Inlet, mut export: Option<&mut ExportHandle>) -> Result<usize, StorageError> {
    let count = inlet.records.slots().min(CHUNK_RECORDS);
    if count == 0 {
        return Ok(0);
    }
    let Ok(chunk) = inlet.records.read_chunk(count) else { return Ok(0) };
    let (first, second) = chunk.as_slices();
    for records in [first, second] {
        store.append(records)?;
        if let Some(export) = &mut export {
            export.push_all(records);
        }
    }
    chunk.commit_all();
    Ok(count)
}

/// What the store had counted when it was last asked.
#[derive(Default)]
struct Seen {
    logged: u64,
    lost: u64,
}

impl Seen {
    /// Enters into a ledger what has become of records since. The store writes and loses rows by the batch, whichever
    /// ring they came from, so that with several workers only the sum of their ledgers is exact.
    fn account(&mut self, store: &Store, ledger: &QueueLedger) {
        let (logged, lost) = store.rows_logged_and_lost();
        ledger.writer.records_stored.add(logged - self.logged);
        ledger.writer.records_disk_full.add(lost - self.lost);
        *self = Seen { logged, lost };
    }
}
