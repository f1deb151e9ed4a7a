//! A table as one query sees it: the segments of one snapshot and the rows not yet in any.

use crate::functions::{self, Name};
use crate::probe::{self, Candidate};
use crate::prune::Pruner;
use crate::reader::{BudgetedReaders, Scan, ScanBudget};
use crate::seek::{seeking, sought};
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::stats::Precision;
use datafusion::common::{Column, ColumnStatistics, DataFusionError, Result, ScalarValue, Statistics};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::datasource::physical_plan::parquet::{ParquetAccessPlan, RowGroupAccess};
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::datasource::table_schema::TableSchema;
use datafusion::datasource::{TableType, ViewTable, provider_as_source};
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{Expr, LogicalPlanBuilder, TableProviderFilterPushDown, col};
use datafusion::object_store::path::Path as StorePath;
use datafusion::object_store::{Error as StoreError, ObjectMeta, ObjectStore};
use datafusion::physical_expr::expressions::Column as PhysicalColumn;
use datafusion::physical_expr::{PhysicalExpr, ScalarFunctionExpr};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::empty::EmptyExec;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::union::UnionExec;
use std::cmp::Reverse;
use std::collections::HashSet;
use std::sync::{Arc, OnceLock};
use storage::{Segment, Snapshot, Table};

/// Files whose times the scan is told, the newest. What it is told takes some 20 kB a file, nearly all of it to say that
/// nothing is known of the other columns; older files are opened to learn their times.
const FILES_WITH_TIMES_MAX: usize = 2_048;

/// Name of the column of an archive that says which sensor a row is from.
pub(crate) const SENSOR: &str = "sensor";

/// Columns beside those a filter needs that are read whole. More of them are read of the rows only that the filter lets
/// through, which takes it inside Parquet's reader: for a filter that lets many rows through that costs more than it saves.
const READ_WHOLE_MAX: usize = 2;

/// Bytes read from the end of an object at first: the footer, and with it the page index, of a segment of a million rows.
const FOOTER_BYTES: usize = 512 << 10;

/// Name of the computed column.
pub(crate) const T_START: &str = "t_start";

/// Whether rows last, so that there is a `t_start`.
fn has_t_start(schema: &Schema) -> bool {
    ["t_end", "dur_us"].iter().all(|column| schema.column_with_name(column).is_some())
}

/// A live table of what lasts with the computed column `t_start` behind its own: a view, so that the optimizer replaces the
/// column by its expression wherever it is used, and nothing is computed where it is not. Other tables as they are.
pub(crate) fn with_t_start(name: &str, table: Arc<dyn TableProvider>) -> Result<Arc<dyn TableProvider>> {
    let schema = table.schema();
    if !has_t_start(&schema) {
        return Ok(table);
    }
    let start = ScalarFunction::new_udf(functions::function(Name::TStart), vec![col("t_end"), col("dur_us")]);
    let mut columns: Vec<Expr> = schema.fields().iter().map(|f| col(f.name())).collect();
    columns.push(Expr::ScalarFunction(start).alias(T_START));
    let plan = LogicalPlanBuilder::scan(name, provider_as_source(table), None)?.project(columns)?.build()?;
    Ok(Arc::new(ViewTable::new(plan, None)))
}

/// A snapshot to be: the plan is made before it is taken, and what live tables the plan names is read before.
pub(crate) type SnapshotCell = Arc<OnceLock<Snapshot>>;

/// What a scan is asked for: columns, rows that no filter may rule out, and how many of them are enough.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    columns: &'a [usize],
    filters: &'a [Expr],
    limit: Option<usize>,
}

/// The stored columns of one snapshot.
#[derive(Debug)]
pub(crate) struct StoredTable {
    table: Table,
    snapshot: SnapshotCell,
    /// Columns of the files, and behind them `sensor` where they lie in an archive.
    columns: TableSchema,
    /// Behind these `t_start`, if the table has it. A view would do as well, but every query would be planned with all
    /// of its columns, which takes as long as everything else in planning.
    schema: SchemaRef,
    budget: Arc<ScanBudget>,
    /// What the files lie in, if not this machine's file system.
    objects: Option<Arc<dyn ObjectStore>>,
}

impl StoredTable {
    pub(crate) fn new(
        table: Table,
        snapshot: SnapshotCell,
        budget: Arc<ScanBudget>,
        objects: Option<Arc<dyn ObjectStore>>,
    ) -> StoredTable {
        let sensor = || Arc::new(Field::new(SENSOR, sensor_type(), false));
        let of_path: Vec<FieldRef> = objects.iter().map(|_| sensor()).collect();
        let columns = TableSchema::builder(table.schema()).with_table_partition_cols(of_path).build();
        let mut fields = columns.table_schema().fields().to_vec();
        if has_t_start(columns.file_schema()) {
            fields.push(Arc::new(Field::new(T_START, functions::time_type(), true)));
        }
        let schema = Arc::new(Schema::new(fields));
        StoredTable { table, snapshot, columns, schema, budget, objects }
    }

    /// The segments `filters` may match in, newest first: a listing of the newest rows then fills up from the first
    /// files, and what it has learnt prunes the others before they are opened. Also whether filters are left that Parquet's
    /// reader may ask: those of segments whose filters the manifest does not know.
    async fn candidates(
        &self,
        snapshot: &Snapshot,
        threads: usize,
        pruner: &Arc<Pruner>,
    ) -> Result<(Vec<Candidate>, bool)> {
        let all = &snapshot.segments;
        let in_time = pruner.by_time(all.times());
        let in_zones: Vec<Arc<Segment>> =
            in_time.iter().map(|&at| &all[at]).filter(|segment| pruner.by_zones(segment)).cloned().collect();
        let (in_time, in_zones_count) = (in_time.len(), in_zones.len());
        let asks = pruner.asks_blooms();
        let blooms_left = asks && in_zones.iter().any(|segment| segment.bloom_row_groups() == 0);
        let mut kept = match asks {
            true => probe::ask(pruner, in_zones, threads, &self.budget, self.objects.as_ref())
                .await
                .map_err(|e| DataFusionError::Execution(format!("cannot ask bloom filters: {e}")))?,
            false => in_zones.into_iter().map(|segment| Candidate { segment, row_groups: None }).collect(),
        };
        kept.sort_by_key(|c| Reverse((c.segment.t_end_max, c.segment.id)));
        self.budget.planned(Scan {
            table: self.table.name(),
            segments: all.len() as u64,
            by_time: (all.len() - in_time) as u64,
            by_zone: (in_time - in_zones_count) as u64,
            by_bloom: (in_zones_count - kept.len()) as u64,
            kept: kept.len() as u64,
            bytes: kept.iter().map(|c| c.segment.bytes).sum(),
            live_rows: snapshot.live.iter().map(|batch| batch.num_rows() as u64).sum(),
        });
        Ok((kept, blooms_left))
    }

    /// Reads columns of the files.
    async fn scan_stored(&self, state: &dyn Session, wanted: Wanted<'_>) -> Result<Arc<dyn ExecutionPlan>> {
        let Wanted { columns, filters, .. } = wanted;
        let Some(snapshot) = self.snapshot.get() else {
            return Err(DataFusionError::Internal("a table is scanned before its snapshot was taken".to_owned()));
        };
        let pruner = Arc::new(Pruner::new(filters, &self.schema));
        let (candidates, blooms_left) = self.candidates(snapshot, state.config().target_partitions(), &pruner).await?;
        let mut inputs: Vec<Arc<dyn ExecutionPlan>> = Vec::new();
        let projected = || self.columns.table_schema().project(columns).map(Arc::new);
        let live = sought(&pruner, &snapshot.live, columns)?;
        if !live.is_empty() {
            inputs.push(MemorySourceConfig::try_new_exec(std::slice::from_ref(&live), projected()?, None)?);
        }
        if !candidates.is_empty() {
            inputs.push(self.parquet_scan(state, &pruner, &candidates, blooms_left, wanted)?);
        }
        match inputs.len() {
            0 => Ok(Arc::new(EmptyExec::new(projected()?))),
            1 => Ok(inputs.remove(0)),
            _ => UnionExec::try_new(inputs),
        }
    }

    fn parquet_scan(
        &self,
        state: &dyn Session,
        pruner: &Arc<Pruner>,
        candidates: &[Candidate],
        blooms_left: bool,
        Wanted { columns, filters, limit }: Wanted<'_>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let url = match self.objects {
            Some(_) => objects_url(),
            None => ObjectStoreUrl::local_filesystem(),
        };
        let readers = Arc::new(BudgetedReaders::new(
            state.runtime_env().object_store(&url)?,
            state.runtime_env().cache_manager.get_file_metadata_cache(),
            self.budget.clone(),
        ));
        let mut source = ParquetSource::new(self.columns.clone())
            .with_pushdown_filters(self.beside(filters, columns) > READ_WHOLE_MAX)
            .with_reorder_filters(true)
            .with_enable_page_index(true)
            // It would read them whole.
            .with_bloom_filter_on_read(blooms_left)
            .with_parquet_file_reader_factory(readers.clone());
        let footer_bytes = self.objects.as_ref().map(|_| FOOTER_BYTES);
        if let Some(bytes) = footer_bytes {
            source = source.with_metadata_size_hint(bytes);
        }
        let groups = state.config().target_partitions().clamp(1, candidates.len());
        let mut files: Vec<Vec<PartitionedFile>> = vec![Vec::new(); groups];
        for (i, candidate) in candidates.iter().enumerate() {
            files[i % groups].push(self.file(candidate, i < FILES_WITH_TIMES_MAX)?);
        }
        let config = FileScanConfigBuilder::new(url, seeking(source, pruner, &readers, footer_bytes))
            .with_file_groups(files.into_iter().map(FileGroup::new).collect())
            .with_statistics(statistics(self.columns.table_schema(), candidates))
            .with_projection_indices(Some(columns.to_vec()))?
            .with_limit(limit)
            .build();
        Ok(DataSourceExec::from_data_source(config))
    }

    /// Of columns, how many no filter names.
    fn beside(&self, filters: &[Expr], columns: &[usize]) -> usize {
        let named: HashSet<&Column> = filters.iter().flat_map(Expr::column_refs).collect();
        let is_beside = |at: &&usize| !named.iter().any(|column| column.name == *self.schema.field(**at).name());
        columns.iter().filter(is_beside).count()
    }

    /// A segment as the scan knows it. It carries the segment along, so that retention leaves the file alone until
    /// the scan has let go of it.
    fn file(&self, candidate: &Candidate, with_times: bool) -> Result<PartitionedFile> {
        let Candidate { segment, row_groups } = candidate;
        let location = match self.objects {
            Some(_) => StorePath::parse(segment.path.to_string_lossy()),
            None => StorePath::from_absolute_path(std::path::absolute(&segment.path)?),
        };
        let location =
            location.map_err(|source| DataFusionError::ObjectStore(Box::new(StoreError::InvalidPath { source })))?;
        let meta = ObjectMeta {
            location,
            last_modified: chrono::DateTime::UNIX_EPOCH,
            size: segment.bytes,
            e_tag: None,
            version: None,
        };
        let sensor = self.objects.iter().map(|_| sensor_value(segment)).collect();
        let mut file =
            PartitionedFile::new_from_meta(meta).with_partition_values(sensor).with_extension(segment.clone());
        if with_times {
            let known = statistics(self.columns.file_schema(), std::slice::from_ref(candidate));
            file = file.with_statistics(Arc::new(known));
        }
        Ok(match row_groups {
            None => file,
            Some(row_groups) => {
                let access = |may: &bool| if *may { RowGroupAccess::Scan } else { RowGroupAccess::Skip };
                file.with_extension(ParquetAccessPlan::new(row_groups.iter().map(access).collect()))
            }
        })
    }
}

#[async_trait]
impl TableProvider for StoredTable {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    /// All filters are shown to [`TableProvider::scan`], which drops segments by them; their rows are filtered by what
    /// the physical optimizer then pushes into the Parquet reader.
    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let all = || (0..self.schema.fields().len()).collect();
        let wanted: Vec<usize> = projection.cloned().unwrap_or_else(all);
        let stored = self.columns.table_schema();
        let start = stored.fields().len();
        if !wanted.contains(&start) {
            return self.scan_stored(state, Wanted { columns: &wanted, filters, limit }).await;
        }
        // What it is computed of is read with the rest.
        let (ends, durations) = (0, stored.index_of("dur_us")?);
        let mut read: Vec<usize> = wanted.iter().copied().filter(|at| *at != start).collect();
        read.extend([ends, durations].into_iter().filter(|at| !wanted.contains(at)));
        let rows = self.scan_stored(state, Wanted { columns: &read, filters, limit }).await?;
        let column = |at: usize| -> Arc<dyn PhysicalExpr> {
            let place = read.iter().position(|read| *read == at).unwrap_or_default();
            Arc::new(PhysicalColumn::new(stored.field(at).name(), place))
        };
        let expressions = wanted.iter().map(|&at| match at == start {
            true => {
                let (function, of) = (functions::function(Name::TStart), vec![column(ends), column(durations)]);
                let start =
                    ScalarFunctionExpr::try_new(function, of, &rows.schema(), state.config_options().clone().into())?;
                Ok((Arc::new(start) as Arc<dyn PhysicalExpr>, T_START.to_owned()))
            }
            false => Ok((column(at), stored.field(at).name().clone())),
        });
        let expressions = expressions.collect::<Result<Vec<_>>>()?;
        Ok(Arc::new(ProjectionExec::try_new(expressions, rows)?))
    }
}

/// What the manifest knows: rows, and the range of their time, the first column.
fn statistics(schema: &Schema, candidates: &[Candidate]) -> Statistics {
    let segments = || candidates.iter().map(|c| &c.segment);
    let time = |t: i64| Precision::Exact(ScalarValue::TimestampMicrosecond(Some(t), Some("UTC".into())));
    let mut statistics = Statistics::new_unknown(schema);
    statistics.num_rows = Precision::Exact(segments().map(|s| s.rows as usize).sum());
    statistics.total_byte_size = Precision::Inexact(segments().map(|s| s.bytes as usize).sum());
    let min = segments().map(|s| s.t_end_min).min();
    let max = segments().map(|s| s.t_end_max).max();
    if let (Some(min), Some(max)) = (min, max) {
        statistics.column_statistics[0] = ColumnStatistics {
            null_count: Precision::Exact(0),
            min_value: time(min),
            max_value: time(max),
            ..ColumnStatistics::new_unknown()
        };
    }
    statistics
}

/// Where tables in an archive find their objects.
pub(crate) fn objects_url() -> ObjectStoreUrl {
    // No store of the file system's: local tables have that.
    ObjectStoreUrl::parse("archive://objects").unwrap_or_else(|_| ObjectStoreUrl::local_filesystem())
}

fn sensor_type() -> DataType {
    DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8))
}

/// The sensor an object comes from, as its name says.
pub(crate) fn sensor_of(segment: &Segment) -> &str {
    let parts = segment.path.components().filter_map(|part| part.as_os_str().to_str());
    parts.filter_map(|part| part.strip_prefix("sensor=")).next_back().unwrap_or_default()
}

fn sensor_value(segment: &Segment) -> ScalarValue {
    let name = sensor_of(segment).to_owned();
    ScalarValue::Dictionary(Box::new(DataType::Int32), Box::new(ScalarValue::Utf8(Some(name))))
}
