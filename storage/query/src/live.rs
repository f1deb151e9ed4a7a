//! Tables that are not stored: their rows are made when a query asks for them.

use crate::QueryError;
use arrow::array::AsArray;
use arrow::compute::filter_record_batch;
use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{DFSchema, DataFusionError, Result};
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::datasource::{TableType, source_as_provider};
use datafusion::execution::SessionState;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::logical_expr::utils::{conjunction, disjunction};
use datafusion::logical_expr::{Expr, LogicalPlan, TableProviderFilterPushDown, TableScan};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::ExecutionPlan;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

/// A table whose rows are made when a query asks for them: what a server has in memory, or a log of its own.
pub trait LiveTable: Send + Sync + 'static {
    /// Its name in SQL.
    fn name(&self) -> &'static str;

    /// Its columns. With `t_end` and `dur_us` among them it has the computed column `t_start` as well.
    fn schema(&self) -> SchemaRef;

    /// Gives `rows` all rows there are now, in batches of the schema. May block; called on a query thread, once for each
    /// query that names the table, before the snapshot of the stored tables is taken.
    ///
    /// # Errors
    /// [`LiveTableError::Closed`] from `rows`, which must end it; otherwise why there are no rows.
    fn read(&self, rows: &mut LiveRows) -> Result<(), LiveTableError>;
}

/// Why a live table gives no rows, or no more of them.
#[derive(Debug, thiserror::Error)]
pub enum LiveTableError {
    /// The query wants no more: it has enough, it is over its budget, or nobody waits for it.
    #[error("no more rows are wanted")]
    Closed,
    /// They could not be had.
    #[error(transparent)]
    Failed(Box<dyn std::error::Error + Send + Sync>),
}

/// Takes the rows of a [`LiveTable`]: keeps those that the query's filter lets through, of them the columns it names, within
/// the memory all queries share.
pub struct LiveRows {
    table: &'static str,
    /// What of a row decides whether it is kept; `None` keeps all.
    filter: Option<Arc<dyn PhysicalExpr>>,
    /// Columns kept, in the order of the table's.
    columns: Vec<usize>,
    /// As many rows are enough.
    enough: Option<usize>,
    kept: usize,
    batches: Vec<RecordBatch>,
    memory: MemoryReservation,
    memory_max: usize,
    cancelled: Arc<AtomicBool>,
    over_budget: bool,
    reads_stored: bool,
}

impl std::fmt::Debug for LiveRows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LiveRows").field("table", &self.table).field("kept", &self.kept).finish_non_exhaustive()
    }
}

impl LiveRows {
    /// Takes a batch of the table's schema.
    ///
    /// # Errors
    /// [`LiveTableError::Closed`] when the query wants no more; or the batch is not of the schema.
    pub fn push(&mut self, batch: &RecordBatch) -> Result<(), LiveTableError> {
        if self.is_closed() {
            return Err(LiveTableError::Closed);
        }
        let failed = |e: arrow::error::ArrowError| LiveTableError::Failed(Box::new(e));
        let batch = match self.wanted(batch) {
            Some(mask) => filter_record_batch(&batch.project(&self.columns).map_err(failed)?, &mask).map_err(failed)?,
            None => batch.project(&self.columns).map_err(failed)?,
        };
        if batch.num_rows() == 0 {
            return Ok(());
        }
        if self.memory.try_grow(batch.get_array_memory_size()).is_err() {
            self.over_budget = true;
            return Err(LiveTableError::Closed);
        }
        self.kept += batch.num_rows();
        self.batches.push(batch);
        Ok(())
    }

    /// Whether the query wants no more rows. To be asked while waiting for some.
    pub fn is_closed(&self) -> bool {
        self.over_budget || self.cancelled.load(Relaxed) || self.enough.is_some_and(|enough| self.kept >= enough)
    }

    /// Whether the query reads stored tables too: what leaves this one while it is read must then be in the snapshot that
    /// is taken afterwards.
    pub fn reads_stored(&self) -> bool {
        self.reads_stored
    }

    /// Which rows pass the filter. One that fails keeps them all: it is applied to them again, and then fails where the
    /// query can tell of it.
    fn wanted(&self, batch: &RecordBatch) -> Option<arrow::array::BooleanArray> {
        let mask = self.filter.as_ref()?.evaluate(batch).and_then(|mask| mask.into_array(batch.num_rows())).ok()?;
        mask.as_boolean_opt().cloned()
    }

    fn finish(self, schema: &SchemaRef, read: Result<(), LiveTableError>) -> Result<Loaded, QueryError> {
        if self.over_budget {
            return Err(QueryError::LiveTableMemory { table: self.table, limit: self.memory_max });
        }
        if self.cancelled.load(Relaxed) {
            return Err(QueryError::Stopped);
        }
        if let Err(LiveTableError::Failed(error)) = read {
            return Err(QueryError::LiveTable { table: self.table, message: error.to_string() });
        }
        let failed = |e: arrow::error::ArrowError| QueryError::Execution { message: e.to_string() };
        let schema = Arc::new(schema.project(&self.columns).map_err(failed)?);
        Ok(Loaded { schema, columns: self.columns, batches: self.batches, _memory: self.memory })
    }
}

/// What a query has of a live table.
#[derive(Debug)]
struct Loaded {
    /// Of the columns kept.
    schema: SchemaRef,
    /// By column kept, its number in the table.
    columns: Vec<usize>,
    batches: Vec<RecordBatch>,
    _memory: MemoryReservation,
}

/// A live table as one query sees it: empty until [`load`] has read it.
pub(crate) struct LiveProvider {
    table: Arc<dyn LiveTable>,
    schema: SchemaRef,
    loaded: OnceLock<Loaded>,
}

impl std::fmt::Debug for LiveProvider {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LiveProvider").field("table", &self.table.name()).field("loaded", &self.loaded).finish()
    }
}

impl LiveProvider {
    pub(crate) fn new(table: Arc<dyn LiveTable>) -> LiveProvider {
        LiveProvider { schema: table.schema(), table, loaded: OnceLock::new() }
    }

    pub(crate) fn name(&self) -> &'static str {
        self.table.name()
    }
}

#[async_trait]
impl TableProvider for LiveProvider {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    /// All filters are shown to the plan, from which [`load`] takes them; rows are filtered again by the plan.
    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        _: &dyn Session,
        projection: Option<&Vec<usize>>,
        _: &[Expr],
        _: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let all: Vec<usize> = (0..self.schema.fields().len()).collect();
        let wanted = projection.unwrap_or(&all);
        let Some(loaded) = self.loaded.get() else {
            // Explained, not read.
            let exec = MemorySourceConfig::try_new_exec(&[Vec::new()], self.schema.clone(), Some(wanted.clone()))?;
            return Ok(exec);
        };
        let at = |column: &usize| {
            let missing = || DataFusionError::Internal(format!("column {column} was not loaded"));
            loaded.columns.iter().position(|kept| kept == column).ok_or_else(missing)
        };
        let wanted = wanted.iter().map(at).collect::<Result<Vec<_>>>()?;
        let batches = std::slice::from_ref(&loaded.batches);
        Ok(MemorySourceConfig::try_new_exec(batches, loaded.schema.clone(), Some(wanted))?)
    }
}

/// Where a plan reads a live table.
struct LiveScan {
    provider: Arc<dyn TableProvider>,
    scans: Vec<TableScan>,
}

/// Reads the live tables that an optimized plan names, each once, and keeps what any of its scans needs. Must be done before
/// the snapshot of the stored tables is taken: a row that goes from a live table to a stored one is then in one of the two,
/// or in both.
pub(crate) async fn load(plan: &LogicalPlan, state: &SessionState, memory_max: usize) -> Result<(), QueryError> {
    // Only what is explained is not run.
    if matches!(plan, LogicalPlan::Explain(_)) {
        return Ok(());
    }
    let (live, reads_stored) = scans(plan).map_err(|e| failed(&e))?;
    for LiveScan { provider, scans } in live {
        let cancelled = CancelOnDrop::default();
        let rows = prepare(&provider, &scans, state, memory_max, reads_stored, &cancelled).map_err(|e| failed(&e))?;
        let read = move || match provider.downcast_ref::<LiveProvider>() {
            Some(live) => live.read(rows),
            None => Ok(()),
        };
        tokio::task::spawn_blocking(read).await.map_err(|_| QueryError::Stopped)??;
    }
    Ok(())
}

fn failed(error: &DataFusionError) -> QueryError {
    QueryError::Execution { message: crate::error::plain(&crate::error::message_of(error)) }
}

/// Tells whoever reads a live table that nobody waits any more.
#[derive(Default)]
struct CancelOnDrop(Arc<AtomicBool>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

impl LiveProvider {
    fn read(&self, mut rows: LiveRows) -> Result<(), QueryError> {
        let read = self.table.read(&mut rows);
        let loaded = rows.finish(&self.schema, read)?;
        // Set once: each provider belongs to one query, which loads it once.
        let _ = self.loaded.set(loaded);
        Ok(())
    }
}

/// The scans of live tables in a plan by table, and whether it reads others too.
fn scans(plan: &LogicalPlan) -> Result<(Vec<LiveScan>, bool)> {
    let (mut live, mut reads_stored): (Vec<LiveScan>, bool) = (Vec::new(), false);
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node {
            let provider = source_as_provider(&scan.source)?;
            match provider.downcast_ref::<LiveProvider>() {
                None => reads_stored = true,
                Some(_) => match live.iter_mut().find(|known| Arc::ptr_eq(&known.provider, &provider)) {
                    Some(known) => known.scans.push(scan.clone()),
                    None => live.push(LiveScan { provider, scans: vec![scan.clone()] }),
                },
            }
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok((live, reads_stored))
}

fn prepare(
    provider: &Arc<dyn TableProvider>,
    scans: &[TableScan],
    state: &SessionState,
    memory_max: usize,
    reads_stored: bool,
    cancelled: &CancelOnDrop,
) -> Result<LiveRows> {
    let (schema, table) = (provider.schema(), provider.downcast_ref::<LiveProvider>().map_or("", LiveProvider::name));
    let all = || (0..schema.fields().len()).collect();
    let columns: BTreeSet<usize> = scans.iter().flat_map(|scan| scan.projection.clone().unwrap_or_else(all)).collect();
    // A row is kept that some scan lets through; a scan without a filter lets all through.
    let filters: Option<Vec<Expr>> = scans.iter().map(|scan| conjunction(scan.filters.iter().cloned())).collect();
    let filter = match (filters.and_then(disjunction), scans.first()) {
        (Some(filter), Some(scan)) => {
            let schema = DFSchema::try_from_qualified_schema(scan.table_name.clone(), &schema)?;
            Some(state.create_physical_expr(filter, &schema)?)
        }
        _ => None,
    };
    let enough = match scans {
        [scan] if scan.filters.is_empty() => scan.fetch,
        _ => None,
    };
    Ok(LiveRows {
        table,
        filter,
        columns: columns.into_iter().collect(),
        enough,
        kept: 0,
        batches: Vec::new(),
        memory: MemoryConsumer::new(table).register(&state.runtime_env().memory_pool),
        memory_max,
        cancelled: cancelled.0.clone(),
        over_budget: false,
        reads_stored,
    })
}
