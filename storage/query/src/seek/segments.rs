//! Sought when a segment is opened and before it is read: see [`storage::ColumnPages`]. The scan then reads the pages of
//! the rows found only, and applies the filter to nothing but them.
//!
//! A [`SegmentSource`] is a scan of Parquet files that does so, and that names the file in what goes wrong. It leaves
//! everything else to DataFusion's own, which it wraps; and everything at all where a segment cannot be asked, which then
//! says why it cannot be read.

use super::seeks;
use crate::error::{BadSegment, FILTER_FAILED, message_of};
use crate::prune::{Pruner, Test, Value};
use crate::reader::BudgetedReaders;
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{DataFusionError, Result};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::parquet::{ParquetAccessPlan, RowGroupAccess};
use datafusion::datasource::physical_plan::{
    FileOpener, FileScanConfig, FileSource, ParquetFileReaderFactory, ParquetSource,
};
use datafusion::datasource::table_schema::TableSchema;
use datafusion::object_store::{Error as StoreError, ObjectStore};
use datafusion::parquet::arrow::arrow_reader::RowSelection;
use datafusion::parquet::arrow::async_reader::AsyncFileReader;
use datafusion::parquet::errors::{ParquetError, Result as ParquetResult};
use datafusion::parquet::file::metadata::ParquetMetaData;
use datafusion::parquet::file::page_index::column_index::ColumnIndexMetaData;
use datafusion::parquet::file::page_index::offset_index::PageLocation;
use datafusion::physical_expr::projection::ProjectionExprs;
use datafusion::physical_expr::{EquivalenceProperties, LexOrdering, PhysicalExpr, PhysicalSortExpr};
use datafusion::physical_plan::DisplayFormatType;
use datafusion::physical_plan::filter_pushdown::FilterPushdownPropagation;
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use datafusion::physical_plan::sort_pushdown::SortOrderPushdownResult;
use datafusion_datasource::morsel::{Morsel, MorselPlan, MorselPlanner, Morselizer};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use std::collections::{HashMap, HashSet};
use std::error::Error;
use std::ops::{Range, RangeInclusive};
use std::sync::Arc;
use std::{fmt, io};
use storage::{BloomHash, ColumnPages, FileParts, Segment, chunk_ranges};

/// Where no more than one of so many rows is left, the rest of a conjunction is left to the scan.
const FEW: usize = 64;

/// Where one of so many rows has been found, they are many: reading rows here and there takes longer than reading all.
const MANY: usize = 32;

/// What has been read of a file already, as an extension of it: what its readers need not read again.
#[derive(Clone, Debug)]
pub(crate) struct ReadBefore(pub(crate) FileParts);

/// What is sought, and how files are read.
#[derive(Debug)]
pub(crate) struct Seeker {
    pruner: Arc<Pruner>,
    readers: Arc<BudgetedReaders>,
    /// Bytes to read from the end of a file at first.
    footer_bytes: Option<usize>,
}

/// `source`, which seeks the values that the filter asks for before it reads a file.
pub(crate) fn seeking(
    source: ParquetSource,
    pruner: &Arc<Pruner>,
    readers: &Arc<BudgetedReaders>,
    footer_bytes: Option<usize>,
) -> Arc<dyn FileSource> {
    let seeker = seeks(pruner.test().0)
        .then(|| Arc::new(Seeker { pruner: pruner.clone(), readers: readers.clone(), footer_bytes }));
    Arc::new(SegmentSource { source: Arc::new(source), seeker })
}

struct SegmentSource {
    source: Arc<dyn FileSource>,
    seeker: Option<Arc<Seeker>>,
}

impl SegmentSource {
    fn around(&self, source: Arc<dyn FileSource>) -> Arc<dyn FileSource> {
        Arc::new(SegmentSource { source, seeker: self.seeker.clone() })
    }
}

impl FileSource for SegmentSource {
    fn create_file_opener(
        &self,
        store: Arc<dyn ObjectStore>,
        config: &FileScanConfig,
        partition: usize,
    ) -> Result<Arc<dyn FileOpener>> {
        self.source.create_file_opener(store, config, partition)
    }

    fn create_morselizer(
        &self,
        store: Arc<dyn ObjectStore>,
        config: &FileScanConfig,
        partition: usize,
    ) -> Result<Box<dyn Morselizer>> {
        let files: Arc<dyn Morselizer> = self.source.create_morselizer(store, config, partition)?.into();
        let (seeker, metrics) = (self.seeker.clone(), self.source.metrics().clone());
        Ok(Box::new(Segments(Arc::new(Opening { files, seeker, partition, metrics }))))
    }

    fn table_schema(&self) -> &TableSchema {
        self.source.table_schema()
    }

    fn with_batch_size(&self, batch_size: usize) -> Arc<dyn FileSource> {
        self.around(self.source.with_batch_size(batch_size))
    }

    fn filter(&self) -> Option<Arc<dyn PhysicalExpr>> {
        self.source.filter()
    }

    fn projection(&self) -> Option<&ProjectionExprs> {
        self.source.projection()
    }

    fn metrics(&self) -> &ExecutionPlanMetricsSet {
        self.source.metrics()
    }

    fn file_type(&self) -> &str {
        self.source.file_type()
    }

    fn fmt_extra(&self, format: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.source.fmt_extra(format, f)
    }

    fn supports_repartitioning(&self) -> bool {
        self.source.supports_repartitioning()
    }

    fn repartitioned(
        &self,
        partitions: usize,
        file_size_min: usize,
        ordering: Option<LexOrdering>,
        config: &FileScanConfig,
    ) -> Result<Option<FileScanConfig>> {
        self.source.repartitioned(partitions, file_size_min, ordering, config)
    }

    fn try_pushdown_filters(
        &self,
        filters: Vec<Arc<dyn PhysicalExpr>>,
        config: &ConfigOptions,
    ) -> Result<FilterPushdownPropagation<Arc<dyn FileSource>>> {
        let FilterPushdownPropagation { filters, updated_node } = self.source.try_pushdown_filters(filters, config)?;
        Ok(FilterPushdownPropagation { filters, updated_node: updated_node.map(|source| self.around(source)) })
    }

    fn try_pushdown_sort(
        &self,
        order: &[PhysicalSortExpr],
        properties: &EquivalenceProperties,
    ) -> Result<SortOrderPushdownResult<Arc<dyn FileSource>>> {
        use SortOrderPushdownResult::{Exact, Inexact, Unsupported};
        Ok(match self.source.try_pushdown_sort(order, properties)? {
            Exact { inner } => Exact { inner: self.around(inner) },
            Inexact { inner } => Inexact { inner: self.around(inner) },
            Unsupported => Unsupported,
        })
    }

    fn reorder_files(&self, files: Vec<PartitionedFile>) -> Vec<PartitionedFile> {
        self.source.reorder_files(files)
    }

    fn try_pushdown_projection(&self, projection: &ProjectionExprs) -> Result<Option<Arc<dyn FileSource>>> {
        Ok(self.source.try_pushdown_projection(projection)?.map(|source| self.around(source)))
    }

    fn apply_expressions(
        &self,
        f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        self.source.apply_expressions(f)
    }
}

/// How one thread of a scan opens files.
#[derive(Debug)]
struct Opening {
    files: Arc<dyn Morselizer>,
    seeker: Option<Arc<Seeker>>,
    partition: usize,
    metrics: ExecutionPlanMetricsSet,
}

#[derive(Debug)]
struct Segments(Arc<Opening>);

impl Morselizer for Segments {
    fn plan_file(&self, file: PartitionedFile) -> Result<Box<dyn MorselPlanner>> {
        let planner = self.0.files.plan_file(file.clone())?;
        Ok(match &self.0.seeker {
            Some(_) => Box::new(Unopened { planner, file, opening: self.0.clone() }),
            None => Box::new(Opened { planner, path: path_of(&file) }),
        })
    }
}

/// A file of which nothing has been read. It may still be ruled out, by what a query has learnt from others.
#[derive(Debug)]
struct Unopened {
    planner: Box<dyn MorselPlanner>,
    file: PartitionedFile,
    opening: Arc<Opening>,
}

impl MorselPlanner for Unopened {
    fn plan(self: Box<Self>) -> Result<Option<MorselPlan>> {
        let Unopened { planner, file, opening } = *self;
        let Some(mut plan) = planner.plan()? else { return Ok(None) };
        let Some(reading) = plan.take_pending_planner() else {
            let again = |planner| -> Box<dyn MorselPlanner> {
                Box::new(Unopened { planner, file: file.clone(), opening: opening.clone() })
            };
            let planners = plan.take_ready_planners().into_iter().map(again).collect();
            return Ok(Some(plan.with_planners(planners)));
        };
        // Now it would be read.
        Ok(Some(plan.with_pending_planner(async move {
            let path = path_of(&file);
            let planner = match opening.seek(&file).await {
                Ok(Sought::Known(file)) => opening.files.plan_file(*file),
                Ok(Sought::Nothing) => return Ok(Box::new(Nothing) as _),
                Ok(Sought::Unknown) => reading.await,
                Err(error) => {
                    tracing::debug!(%path, %error, "cannot seek in a segment");
                    reading.await
                }
            };
            let planner = planner.map_err(|error| named(&path, error))?;
            Ok(Box::new(Opened { planner, path }) as _)
        })))
    }
}

/// As people find it.
fn path_of(file: &PartitionedFile) -> Arc<str> {
    match file.extension::<Arc<Segment>>() {
        Some(segment) => segment.path.display().to_string().into(),
        None => file.object_meta.location.as_ref().into(),
    }
}

/// A file that is read; what goes wrong is said of it.
#[derive(Debug)]
struct Opened {
    planner: Box<dyn MorselPlanner>,
    path: Arc<str>,
}

impl MorselPlanner for Opened {
    fn plan(self: Box<Self>) -> Result<Option<MorselPlan>> {
        let Opened { planner, path } = *self;
        let Some(mut plan) = planner.plan().map_err(|error| named(&path, error))? else { return Ok(None) };
        let rows = plan
            .take_morsels()
            .into_iter()
            .map(|rows| -> Box<dyn Morsel> { Box::new(Rows { rows, path: path.clone() }) });
        let rows = rows.collect();
        let opened =
            |planner, path: &Arc<str>| -> Box<dyn MorselPlanner> { Box::new(Opened { planner, path: path.clone() }) };
        let planners = plan.take_ready_planners().into_iter().map(|planner| opened(planner, &path)).collect();
        if let Some(reading) = plan.take_pending_planner() {
            plan.set_pending_planner(async move {
                reading.await.map(|planner| opened(planner, &path)).map_err(|error| named(&path, error))
            });
        }
        Ok(Some(plan.with_morsels(rows).with_planners(planners)))
    }
}

/// The rows of a file.
#[derive(Debug)]
struct Rows {
    rows: Box<dyn Morsel>,
    path: Arc<str>,
}

impl Morsel for Rows {
    fn into_stream(self: Box<Self>) -> BoxStream<'static, Result<RecordBatch>> {
        let Rows { rows, path } = *self;
        rows.into_stream().map_err(move |error| named(&path, error)).boxed()
    }
}

/// What went wrong with a file, with the file's name. What went wrong in an expression of the query, which the scan computes
/// as well, is no fault of the file's.
fn named(path: &Arc<str>, error: DataFusionError) -> DataFusionError {
    let message = message_of(&error);
    let damaged = match error.find_root() {
        DataFusionError::ParquetError(_) if message.contains(FILTER_FAILED) => return error,
        // The file is shorter than the manifest says.
        _ if message.contains("Requested range was invalid") => true,
        DataFusionError::ParquetError(error) => !is_of_the_store(error) && !message.contains("Object Store error"),
        DataFusionError::ArrowError(error, _) if matches!(**error, ArrowError::ParquetError(_)) => true,
        DataFusionError::ObjectStore(_) | DataFusionError::IoError(_) => false,
        _ => return error,
    };
    DataFusionError::External(Box::new(BadSegment { path: path.to_string(), message, damaged }))
}

/// Whether the bytes could not be had at all. What cannot be unpacked is an I/O error too, but none of the operating system's.
fn is_of_the_store(error: &ParquetError) -> bool {
    let mut next: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = next {
        let of_system = error.downcast_ref().is_some_and(|error: &io::Error| error.raw_os_error().is_some());
        if error.is::<StoreError>() || of_system {
            return true;
        }
        next = match error.downcast_ref() {
            // It says that it has no source.
            Some(ParquetError::External(inner)) => Some(&**inner),
            _ => error.source(),
        };
    }
    false
}

/// Of a file without a row that matters.
#[derive(Debug)]
struct Nothing;

impl MorselPlanner for Nothing {
    fn plan(self: Box<Self>) -> Result<Option<MorselPlan>> {
        Ok(None)
    }
}

enum Sought {
    /// All rows may match.
    Unknown,
    Nothing,
    /// The file, with the rows that may.
    Known(Box<PartitionedFile>),
}

impl Opening {
    async fn seek(&self, file: &PartitionedFile) -> ParquetResult<Sought> {
        let Some(seeker) = self.seeker.as_deref() else { return Ok(Sought::Unknown) };
        let reader = seeker.readers.create_reader(self.partition, file.clone(), seeker.footer_bytes, &self.metrics);
        let mut reader = reader.map_err(|e| ParquetError::External(Box::new(e)))?;
        let metadata = reader.get_metadata(None).await?;
        let groups = metadata.num_row_groups();
        let mut access = match file.extension::<ParquetAccessPlan>() {
            Some(plan) if plan.len() == groups => plan.inner().to_vec(),
            Some(_) => return Ok(Sought::Unknown),
            None => vec![RowGroupAccess::Scan; groups],
        };
        let mut read = FileParts::default();
        let (mut others, mut any) = (false, false);
        for (group, access) in access.iter_mut().enumerate().filter(|(_, access)| access.should_scan()) {
            // Another thread's.
            if !is_in_range(file, &metadata, group) {
                others = true;
                continue;
            }
            let segment = file.extension::<Arc<Segment>>().map(Arc::as_ref);
            match seek_in_group(seeker, segment, &metadata, group, reader.as_mut(), &mut read).await? {
                None => any = true,
                Some(rows) if rows.selects_any() => (any, *access) = (true, RowGroupAccess::Selection(rows)),
                Some(_) => *access = RowGroupAccess::Skip,
            }
        }
        Ok(match (any, others) {
            // Nobody reads it to the end here, so nobody needs to know.
            (false, false) => Sought::Nothing,
            _ => Sought::Known(Box::new(
                file.clone().with_extension(ParquetAccessPlan::new(access)).with_extension(ReadBefore(read)),
            )),
        })
    }
}

fn is_in_range(file: &PartitionedFile, metadata: &ParquetMetaData, group: usize) -> bool {
    let column = metadata.row_group(group).column(0);
    let offset = column.dictionary_page_offset().unwrap_or_else(|| column.data_page_offset());
    file.range.as_ref().is_none_or(|range| (range.start..range.end).contains(&offset))
}

/// The rows of a row group that may match; `None` for all of them, or nearly.
async fn seek_in_group(
    seeker: &Seeker,
    segment: Option<&Segment>,
    metadata: &ParquetMetaData,
    group: usize,
    reader: &mut (dyn AsyncFileReader + Send),
    read: &mut FileParts,
) -> ParquetResult<Option<RowSelection>> {
    let (test, time) = seeker.pruner.test();
    let rows = usize::try_from(metadata.row_group(group).num_rows())?;
    let in_time = rows_in_time(metadata, group, rows, time);
    let mut seek = SeekInGroup {
        rows,
        in_time: RowSelection::from_consecutive_ranges(std::iter::once(in_time.clone()), rows),
        columns: HashMap::new(),
        found: HashMap::new(),
    };
    // Where the segment has one of several values, its filters were asked until they said so; the others may be absent.
    let filters = segment.filter(|_| super::values(test) > 1);
    let mut asked = HashSet::new();
    loop {
        let (column, value) = match seek.rows(test)? {
            Step::Found(found) => return Ok((found.row_count() <= rows / MANY).then_some(found)),
            Step::Needs(column, value) => (column, value),
        };
        if let Some(bloom) = filters.and_then(|segment| segment.bloom(column, group))
            && asked.insert((column, value))
        {
            let hash = BloomHash::of(value.plain());
            seeker.readers.count_block();
            let block = reader.get_bytes(bloom.block(hash)).await?;
            if block.as_ref().try_into().is_ok_and(|block| !hash.may_be_in(block)) {
                seek.found.insert((column, value), seek.none());
            }
            continue;
        }
        let pages = match column_at(metadata, group, column) {
            Some(at) if !in_time.is_empty() => {
                let chunk = metadata.row_group(group).column(at);
                let locations = page_locations(metadata, group, at);
                let ranges = chunk_ranges(chunk, locations, &in_time);
                let mut parts = FileParts::default();
                for (range, bytes) in ranges.iter().zip(reader.get_byte_ranges(ranges.clone()).await?) {
                    parts.push(range.start, bytes.clone());
                    read.push(range.start, bytes);
                }
                Some(ColumnPages::read(chunk, locations, rows, &in_time, &parts)?)
            }
            // No column of files.
            _ => None,
        };
        seek.columns.insert(column, pages);
    }
}

fn column_at(metadata: &ParquetMetaData, group: usize, column: &str) -> Option<usize> {
    metadata.row_group(group).columns().iter().position(|chunk| chunk.column_path().string() == column)
}

fn page_locations(metadata: &ParquetMetaData, group: usize, column: usize) -> Option<&[PageLocation]> {
    Some(metadata.offset_index()?.get(group)?.get(column)?.page_locations())
}

/// Rows of the pages whose times overlap `time`. The first column is the time, by which rows are sorted.
fn rows_in_time(metadata: &ParquetMetaData, group: usize, rows: usize, time: &RangeInclusive<i64>) -> Range<usize> {
    let index = metadata.column_index().and_then(|index| index.get(group)?.first());
    let (Some(ColumnIndexMetaData::INT64(times)), Some(pages)) = (index, page_locations(metadata, group, 0)) else {
        return 0..rows;
    };
    let overlaps = |page: &usize| match (times.min_value(*page), times.max_value(*page)) {
        (Some(min), Some(max)) => min <= time.end() && max >= time.start(),
        _ => true,
    };
    let row_of = |page: usize| pages.get(page).map_or(rows, |page| rows.min(page.first_row_index.max(0) as usize));
    let mut hits = (0..pages.len()).filter(overlaps);
    match hits.next() {
        Some(first) => row_of(first)..row_of(hits.next_back().unwrap_or(first) + 1),
        None => 0..0,
    }
}

/// What is known of a row group.
struct SeekInGroup<'a> {
    rows: usize,
    in_time: RowSelection,
    /// `None` where the file does not tell.
    columns: HashMap<&'a str, Option<ColumnPages>>,
    found: HashMap<(&'a str, &'a Value), RowSelection>,
}

enum Step<'a> {
    Found(RowSelection),
    /// A column must be read before, or it must be known that it has not this value.
    Needs(&'a str, &'a Value),
}

impl<'a> SeekInGroup<'a> {
    /// Rows for which the test may be true.
    fn rows(&mut self, test: &'a Test) -> ParquetResult<Step<'a>> {
        let rows = match test {
            Test::Maybe | Test::Number(..) | Test::Tap(..) | Test::Sensor(..) => self.in_time.clone(),
            Test::Never => self.none(),
            Test::All(tests) => {
                let mut left = self.in_time.clone();
                for test in tests {
                    if super::values(test) == 0 {
                        continue;
                    }
                    if left.row_count() <= self.rows / FEW {
                        break;
                    }
                    match self.rows(test)? {
                        Step::Found(rows) => left = left.intersection(&rows),
                        needs @ Step::Needs(..) => return Ok(needs),
                    }
                }
                left
            }
            Test::Any(tests) => {
                let mut all = self.none();
                for test in tests {
                    if all.row_count() == self.in_time.row_count() {
                        break;
                    }
                    match self.rows(test)? {
                        Step::Found(rows) => all = all.union(&rows),
                        needs @ Step::Needs(..) => return Ok(needs),
                    }
                }
                all
            }
            Test::Has(column, value) => {
                if let Some(rows) = self.found.get(&(column.as_str(), value)) {
                    return Ok(Step::Found(rows.clone()));
                }
                let Some(pages) = self.columns.get(column.as_str()) else {
                    return Ok(Step::Needs(column, value));
                };
                let rows = match pages {
                    Some(pages) => match pages.rows_with(value.plain(), self.rows / MANY)? {
                        Some(rows) => RowSelection::from_consecutive_ranges(rows.into_iter(), self.rows)
                            .intersection(&self.in_time),
                        None => self.in_time.clone(),
                    },
                    None => self.in_time.clone(),
                };
                self.found.insert((column, value), rows.clone());
                rows
            }
        };
        Ok(Step::Found(rows))
    }

    fn none(&self) -> RowSelection {
        RowSelection::from_consecutive_ranges(std::iter::empty(), self.rows)
    }
}
