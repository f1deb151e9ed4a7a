//! What queries find beside the stored tables: what the server has in memory, and the alert log.

mod active_flows;
mod alerts;
mod ledger;

pub(crate) use active_flows::ActiveFlowsTable;
pub(crate) use ledger::LedgerTable;

use alerts::AlertsTable;
use arrow::datatypes::{DataType, Field, TimeUnit};
use query::{FlowSource, LiveTable};
use std::sync::Arc;
use storage::{Snapshot, StorageError, StoreReader, Table};

/// Tables that only a running server has.
const IN_MEMORY: [&str; 2] = [active_flows::NAME, ledger::NAME];

/// A data folder and the tables beside it, as the query engine takes them.
pub(crate) struct Tables {
    reader: StoreReader,
    live: Vec<Arc<dyn LiveTable>>,
}

impl Tables {
    /// Of the server that writes the folder.
    pub(crate) fn of_server(reader: StoreReader, active: ActiveFlowsTable, ledger: LedgerTable) -> Tables {
        let alerts = AlertsTable::new(reader.dir());
        Tables { reader, live: vec![Arc::new(active), Arc::new(alerts), Arc::new(ledger)] }
    }

    /// Of the folder alone.
    pub(crate) fn of_folder(reader: StoreReader) -> Tables {
        let alerts = AlertsTable::new(reader.dir());
        Tables { reader, live: vec![Arc::new(alerts)] }
    }
}

impl FlowSource for Tables {
    fn snapshot_of(&self, table: Table) -> Result<Snapshot, StorageError> {
        self.reader.snapshot_of(table)
    }

    fn live_tables(&self) -> Vec<Arc<dyn LiveTable>> {
        self.live.clone()
    }

    fn absent(&self, table: &str) -> Option<String> {
        IN_MEMORY
            .contains(&table)
            .then(|| format!("`{table}` is what a running server has in memory: ask the server, without --data-dir"))
    }
}

fn text(name: &str, is_nullable: bool) -> Field {
    Field::new(name, DataType::Utf8, is_nullable)
}

/// Microseconds since 1970, UTC, as in the stored tables.
fn time(name: &str) -> Field {
    Field::new(name, DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), false)
}
