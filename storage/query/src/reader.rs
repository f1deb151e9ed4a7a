//! Parquet readers that count what they read, stop where the query's budget ends, and take no footer that is not the one
//! that was written.

use crate::Reading;
use crate::seek::ReadBefore;
use bytes::Bytes;
use datafusion::common::Result;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::ParquetFileReaderFactory;
use datafusion::datasource::physical_plan::parquet::{CachedParquetFileReaderFactory, CachedParquetMetaData};
use datafusion::execution::cache::cache_manager::{CachedFileMetadataEntry, FileMetadataCache};
use datafusion::object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};
use datafusion::parquet::DecodeResult;
use datafusion::parquet::arrow::arrow_reader::ArrowReaderOptions;
use datafusion::parquet::arrow::async_reader::AsyncFileReader;
use datafusion::parquet::errors::{ParquetError, Result as ParquetResult};
use datafusion::parquet::file::metadata::{PageIndexPolicy, ParquetMetaData, ParquetMetaDataPushDecoder};
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use futures::FutureExt;
use futures::future::BoxFuture;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use storage::{BLOOM_BLOCK_BYTES, FileParts, Footer, Segment};

/// What a query has read so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScanStats {
    /// Segments in the query's snapshot, once for each scan of a table in the plan.
    pub segments: u64,
    /// Of those, ruled out by the times they cover.
    pub pruned_by_time: u64,
    /// Ruled out by what else the manifest knows: protocols, taps, smallest and largest values.
    pub pruned_by_zone: u64,
    /// Ruled out by bloom filters.
    pub pruned_by_bloom: u64,
    /// Those left to read.
    pub segments_kept: u64,
    /// Size of their files, bytes; of these, only the columns and pages that are needed are read.
    pub bytes_kept: u64,
    /// Blocks read of bloom filters, of 32 bytes each.
    pub bloom_blocks_read: u64,
    /// Segments opened, counted each time (large ones are read in several pieces).
    pub files_opened: u64,
    /// Bytes of column data and filters read, `bloom_blocks_read` among them; footers, which are cached, are not in it.
    pub bytes_read: u64,
}

/// Which segments a scan of a table is left with.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Scan {
    pub(crate) table: &'static str,
    pub(crate) segments: u64,
    pub(crate) by_time: u64,
    pub(crate) by_zone: u64,
    pub(crate) by_bloom: u64,
    pub(crate) kept: u64,
    /// Of files kept.
    pub(crate) bytes: u64,
    /// Rows in no segment.
    pub(crate) live_rows: u64,
}

/// Counters of one query, and its limit.
#[derive(Debug)]
pub(crate) struct ScanBudget {
    bytes_max: u64,
    exceeded: AtomicBool,
    /// What each scan of the plan has been left with, in the order they were planned.
    scans: Mutex<Vec<Scan>>,
    bloom_blocks_read: AtomicU64,
    files_opened: AtomicU64,
    bytes_read: AtomicU64,
}

impl ScanBudget {
    pub(crate) fn new(bytes_max: Option<u64>) -> ScanBudget {
        ScanBudget {
            bytes_max: bytes_max.unwrap_or(u64::MAX),
            exceeded: AtomicBool::new(false),
            scans: Mutex::default(),
            bloom_blocks_read: AtomicU64::new(0),
            files_opened: AtomicU64::new(0),
            bytes_read: AtomicU64::new(0),
        }
    }

    pub(crate) fn planned(&self, scan: Scan) {
        self.scans().push(scan);
    }

    pub(crate) fn scans(&self) -> MutexGuard<'_, Vec<Scan>> {
        self.scans.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a block of a bloom filter may still be read.
    pub(crate) fn take_block(&self) -> bool {
        self.bloom_blocks_read.fetch_add(1, Relaxed);
        self.take(BLOOM_BLOCK_BYTES as u64).is_ok()
    }

    /// The limit, if reading stopped at it.
    pub(crate) fn exceeded(&self) -> Option<u64> {
        self.exceeded.load(Relaxed).then_some(self.bytes_max)
    }

    pub(crate) fn stats(&self) -> ScanStats {
        let scans = self.scans();
        let sum = |of: fn(&Scan) -> u64| scans.iter().map(of).sum();
        ScanStats {
            segments: sum(|scan| scan.segments),
            pruned_by_time: sum(|scan| scan.by_time),
            pruned_by_zone: sum(|scan| scan.by_zone),
            pruned_by_bloom: sum(|scan| scan.by_bloom),
            segments_kept: sum(|scan| scan.kept),
            bytes_kept: sum(|scan| scan.bytes),
            bloom_blocks_read: self.bloom_blocks_read.load(Relaxed),
            files_opened: self.files_opened.load(Relaxed),
            bytes_read: self.bytes_read.load(Relaxed),
        }
    }

    /// How far reading has come.
    pub(crate) fn reading(&self) -> Reading {
        let ScanStats { segments_kept, bytes_kept, bytes_read, .. } = self.stats();
        Reading { segments: segments_kept, bytes: bytes_kept, bytes_read }
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
    footers: Footers,
    budget: Arc<ScanBudget>,
}

impl BudgetedReaders {
    pub(crate) fn new(
        store: Arc<dyn ObjectStore>,
        cache: Arc<FileMetadataCache>,
        budget: Arc<ScanBudget>,
    ) -> BudgetedReaders {
        let readers = CachedParquetFileReaderFactory::new(store.clone(), cache.clone());
        BudgetedReaders { readers, footers: Footers { store, cache }, budget }
    }

    /// One of the blocks that are read is of a bloom filter.
    pub(crate) fn count_block(&self) {
        self.budget.bloom_blocks_read.fetch_add(1, Relaxed);
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
        let before = file.extension::<ReadBefore>().cloned();
        let footer = file.extension::<Arc<Segment>>().and_then(|segment| segment.footer);
        let footer = footer.map(|footer| (file.object_meta.clone(), footer));
        let reader = self.readers.create_reader(partition, file, metadata_size_hint, metrics)?;
        Ok(Box::new(BudgetedReader {
            reader,
            footer,
            footers: self.footers.clone(),
            opened: before.is_some(),
            before: before.map(|ReadBefore(parts)| parts).unwrap_or_default(),
            budget: self.budget.clone(),
        }))
    }
}

/// Footers of segments of which it is known what they should be, with their page indexes.
#[derive(Clone, Debug)]
struct Footers {
    store: Arc<dyn ObjectStore>,
    cache: Arc<FileMetadataCache>,
}

impl Footers {
    async fn get(&self, file: &ObjectMeta, footer: Footer) -> ParquetResult<Arc<ParquetMetaData>> {
        let cached = self.cache.get(&file.location).filter(|cached| cached.is_valid_for(file));
        let cached = cached.and_then(|cached| {
            Some(cached.file_metadata.as_any().downcast_ref::<CachedParquetMetaData>()?.parquet_metadata().clone())
        });
        if let Some(cached) = cached {
            return Ok(cached);
        }
        let range = footer.range(file.size);
        let read = self.store.get_range(&file.location, range.clone()).await;
        let bytes = read.map_err(|error| ParquetError::External(Box::new(error)))?;
        let damaged = || ParquetError::General("its footer is not what was written".to_owned());
        if !footer.is(&bytes) {
            return Err(damaged());
        }
        let decoder = ParquetMetaDataPushDecoder::try_new(file.size)?;
        let mut decoder = decoder.with_page_index_policy(PageIndexPolicy::Optional);
        decoder.push_range(range, bytes)?;
        let DecodeResult::Data(metadata) = decoder.try_decode()? else { return Err(damaged()) };
        let metadata = Arc::new(metadata);
        let entry = CachedFileMetadataEntry::new(file.clone(), Arc::new(CachedParquetMetaData::new(metadata.clone())));
        self.cache.put(&file.location, entry);
        Ok(metadata)
    }
}

struct BudgetedReader {
    reader: Box<dyn AsyncFileReader + Send>,
    /// Of a segment whose footer is known.
    footer: Option<(ObjectMeta, Footer)>,
    footers: Footers,
    /// Readers are made for files that are then skipped by what the manifest knows; the first read decides.
    opened: bool,
    /// What the query has read of the file already.
    before: FileParts,
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
        if let Some(bytes) = self.before.get(&range) {
            return futures::future::ok(bytes).boxed();
        }
        self.open();
        match self.budget.take(range.end.saturating_sub(range.start)) {
            Ok(()) => self.reader.get_bytes(range),
            Err(e) => futures::future::err(e).boxed(),
        }
    }

    fn get_byte_ranges(&mut self, ranges: Vec<Range<u64>>) -> BoxFuture<'_, ParquetResult<Vec<Bytes>>> {
        let mut bytes: Vec<Option<Bytes>> = ranges.iter().map(|range| self.before.get(range)).collect();
        let missing = ranges.into_iter().zip(&bytes).filter(|(_, bytes)| bytes.is_none()).map(|(range, _)| range);
        let missing: Vec<Range<u64>> = missing.collect();
        if !missing.is_empty() {
            self.open();
        }
        if let Err(e) = self.budget.take(missing.iter().map(|r| r.end.saturating_sub(r.start)).sum()) {
            return futures::future::err(e).boxed();
        }
        async move {
            let mut read = match missing.is_empty() {
                true => Vec::new(),
                false => self.reader.get_byte_ranges(missing).await?,
            }
            .into_iter();
            bytes.iter_mut().filter(|bytes| bytes.is_none()).for_each(|bytes| *bytes = read.next());
            let bytes: Option<Vec<Bytes>> = bytes.into_iter().collect();
            bytes.ok_or_else(|| ParquetError::General("fewer ranges were read than asked for".to_owned()))
        }
        .boxed()
    }

    fn get_metadata<'a>(
        &'a mut self,
        options: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, ParquetResult<Arc<ParquetMetaData>>> {
        self.open();
        match &self.footer {
            Some((file, footer)) => self.footers.get(file, *footer).boxed(),
            None => self.reader.get_metadata(options),
        }
    }
}
