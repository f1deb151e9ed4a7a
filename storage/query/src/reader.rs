//! Parquet readers that count what they read, and stop where the query's budget ends.

use bytes::Bytes;
use datafusion::common::Result;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::ParquetFileReaderFactory;
use datafusion::datasource::physical_plan::parquet::CachedParquetFileReaderFactory;
use datafusion::execution::cache::cache_manager::FileMetadataCache;
use datafusion::object_store::ObjectStore;
use datafusion::parquet::arrow::arrow_reader::ArrowReaderOptions;
use datafusion::parquet::arrow::async_reader::AsyncFileReader;
use datafusion::parquet::errors::{ParquetError, Result as ParquetResult};
use datafusion::parquet::file::metadata::ParquetMetaData;
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use futures::FutureExt;
use futures::future::BoxFuture;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// What a query has read so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScanStats {
    /// Segments in the query's snapshot, once for each scan of `flows` in the plan.
    pub segments: u64,
    /// Those the manifest could not rule out.
    pub segments_kept: u64,
    /// Segments opened, counted each time (large ones are read in several pieces).
    pub files_opened: u64,
    /// Bytes of column data and filters read; footers, which are cached, are not in it.
    pub bytes_read: u64,
}

/// Counters of one query, and its limit.
#[derive(Debug)]
pub(crate) struct ScanBudget {
    bytes_max: u64,
    exceeded: AtomicBool,
    segments: AtomicU64,
    segments_kept: AtomicU64,
    files_opened: AtomicU64,
    bytes_read: AtomicU64,
}

impl ScanBudget {
    pub(crate) fn new(bytes_max: Option<u64>) -> ScanBudget {
        ScanBudget {
            bytes_max: bytes_max.unwrap_or(u64::MAX),
            exceeded: AtomicBool::new(false),
            segments: AtomicU64::new(0),
            segments_kept: AtomicU64::new(0),
            files_opened: AtomicU64::new(0),
            bytes_read: AtomicU64::new(0),
        }
    }

    pub(crate) fn planned(&self, segments: u64, kept: u64) {
        self.segments.fetch_add(segments, Relaxed);
        self.segments_kept.fetch_add(kept, Relaxed);
    }

    /// The limit, if reading stopped at it.
    pub(crate) fn exceeded(&self) -> Option<u64> {
        self.exceeded.load(Relaxed).then_some(self.bytes_max)
    }

    pub(crate) fn stats(&self) -> ScanStats {
        ScanStats {
            segments: self.segments.load(Relaxed),
            segments_kept: self.segments_kept.load(Relaxed),
            files_opened: self.files_opened.load(Relaxed),
            bytes_read: self.bytes_read.load(Relaxed),
        }
    }

    fn take(&self, bytes: u64) -> ParquetResult<()> {
        if self.bytes_read.fetch_add(bytes, Relaxed).saturating_add(bytes) > self.bytes_max {
            self.exceeded.store(true, Relaxed);
            return Err(ParquetError::General("scan limit reached".to_owned()));
        }
        Ok(())
    }
}

/// Opens segments through the engine's cache of footers.
#[derive(Debug)]
pub(crate) struct BudgetedReaders {
    readers: CachedParquetFileReaderFactory,
    budget: Arc<ScanBudget>,
}

impl BudgetedReaders {
    pub(crate) fn new(
        store: Arc<dyn ObjectStore>,
        footers: Arc<FileMetadataCache>,
        budget: Arc<ScanBudget>,
    ) -> BudgetedReaders {
        BudgetedReaders { readers: CachedParquetFileReaderFactory::new(store, footers), budget }
    }
}

impl ParquetFileReaderFactory for BudgetedReaders {
    fn create_reader(
        &self,
        partition: usize,
        file: PartitionedFile,
        metadata_size_hint: Option<usize>,
        metrics: &ExecutionPlanMetricsSet,
    ) -> Result<Box<dyn AsyncFileReader + Send>> {
        let reader = self.readers.create_reader(partition, file, metadata_size_hint, metrics)?;
        Ok(Box::new(BudgetedReader { reader, opened: false, budget: self.budget.clone() }))
    }
}

struct BudgetedReader {
    reader: Box<dyn AsyncFileReader + Send>,
    /// Readers are made for files that are then skipped by what the manifest knows; the first read decides.
    opened: bool,
    budget: Arc<ScanBudget>,
}

impl BudgetedReader {
    fn open(&mut self) {
        if !std::mem::replace(&mut self.opened, true) {
            self.budget.files_opened.fetch_add(1, Relaxed);
        }
    }
}

impl AsyncFileReader for BudgetedReader {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, ParquetResult<Bytes>> {
        self.open();
        match self.budget.take(range.end.saturating_sub(range.start)) {
            Ok(()) => self.reader.get_bytes(range),
            Err(e) => futures::future::err(e).boxed(),
        }
    }

    fn get_byte_ranges(&mut self, ranges: Vec<Range<u64>>) -> BoxFuture<'_, ParquetResult<Vec<Bytes>>> {
        self.open();
        match self.budget.take(ranges.iter().map(|r| r.end.saturating_sub(r.start)).sum()) {
            Ok(()) => self.reader.get_byte_ranges(ranges),
            Err(e) => futures::future::err(e).boxed(),
        }
    }

    fn get_metadata<'a>(
        &'a mut self,
        options: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, ParquetResult<Arc<ParquetMetaData>>> {
        self.open();
        self.reader.get_metadata(options)
    }
}
