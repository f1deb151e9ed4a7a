//! Table `active_flows`: the flows that are in the workers' tables now, as the records they would be.

use crate::pipeline::{ActiveFlows, CopyError};
use arrow::array::{RecordBatch, new_null_array};
use arrow::datatypes::{Schema, SchemaRef};
use query::{LiveRows, LiveTable, LiveTableError};
use std::cell::RefCell;
use std::sync::Arc;
use storage::FlowBatchBuilder;

pub(super) const NAME: &str = "active_flows";

/// Rows of a batch.
const BATCH_ROWS: usize = 8192;

/// Nothing has ended it yet: the one column in which a flow differs from its record.
const END_REASON: &str = "end_reason";

/// Reads all workers' flow tables.
pub(crate) struct ActiveFlowsTable {
    flows: ActiveFlows,
    /// By number.
    tap_names: Vec<String>,
    schema: SchemaRef,
}

impl ActiveFlowsTable {
    pub(crate) fn new(flows: ActiveFlows, tap_names: Vec<String>) -> ActiveFlowsTable {
        let stored = storage::flow_schema();
        let field = |field: &Arc<arrow::datatypes::Field>| match field.name() == END_REASON {
            true => Arc::new(field.as_ref().clone().with_nullable(true)),
            false => field.clone(),
        };
        let schema = Arc::new(Schema::new(stored.fields().iter().map(field).collect::<Vec<_>>()));
        ActiveFlowsTable { flows, tap_names, schema }
    }

    /// Flows as records, with no reason to have ended.
    fn in_progress(&self, records: &RecordBatch) -> Result<RecordBatch, LiveTableError> {
        let columns = self.schema.fields().iter().zip(records.columns()).map(|(field, column)| {
            if field.name() == END_REASON {
                new_null_array(field.data_type(), records.num_rows())
            } else {
                column.clone()
            }
        });
        RecordBatch::try_new(self.schema.clone(), columns.collect()).map_err(|e| LiveTableError::Failed(Box::new(e)))
    }

    fn push(&self, builder: &mut FlowBatchBuilder, rows: &mut LiveRows) -> Result<(), LiveTableError> {
        let records = builder.finish().map_err(|e| LiveTableError::Failed(Box::new(e)))?;
        rows.push(&self.in_progress(&records)?)
    }
}

impl LiveTable for ActiveFlowsTable {
    fn name(&self) -> &'static str {
        NAME
    }

    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn read(&self, rows: &mut LiveRows) -> Result<(), LiveTableError> {
        let reads_stored = rows.reads_stored();
        let rows = RefCell::new(rows);
        let closed = || rows.borrow().is_closed();
        let mut builder = FlowBatchBuilder::new(&self.tap_names, BATCH_ROWS);
        let mut copies = self.flows.copy(&closed)?;
        copies.take_all(&closed, |records, texts| {
            builder.extend(records, texts);
            if builder.len() >= BATCH_ROWS { self.push(&mut builder, *rows.borrow_mut()) } else { Ok(()) }
        })?;
        if !builder.is_empty() {
            self.push(&mut builder, *rows.borrow_mut())?;
        }
        if reads_stored {
            copies.settle(&closed)?;
        }
        Ok(())
    }
}

impl From<CopyError> for LiveTableError {
    fn from(error: CopyError) -> LiveTableError {
        match error {
            CopyError::Closed => LiveTableError::Closed,
            error => LiveTableError::Failed(Box::new(error)),
        }
    }
}
