//! Batches of rows into one Parquet file, sorted by their time.

use crate::cells::{ROWS_MAX, all_zero, is_all_zero};
use crate::error::IoContext;
use crate::folder::{FORMAT_VERSION, Layout};
use crate::segment::SegmentMeta;
use crate::table::{Encoding, TableInfo};
use crate::{StorageError, sys};
use arrow::array::{Array, ArrayRef, AsArray, FixedSizeBinaryArray, new_null_array};
use arrow::buffer::{BooleanBuffer, Buffer, NullBuffer};
use arrow::compute::interleave;
use arrow::datatypes::{DataType, Int32Type, Int64Type, TimestampMicrosecondType, UInt8Type};
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::arrow::{ArrowWriter, ProjectionMask};
use parquet::basic::{Compression, Encoding as ParquetEncoding, ZstdLevel};
use parquet::file::metadata::{KeyValue, SortingColumn};
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterVersion};
use parquet::schema::types::ColumnPath;
use std::fs::{self, File};
use std::io::BufWriter;
use std::path::Path;
use std::sync::Arc;

/// Which Parquet features segments use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SegmentProfile {
    /// Smallest and fastest: DELTA_BINARY_PACKED and BYTE_STREAM_SPLIT (of integers: Parquet 2.11, 2024),
    /// version 2 pages. DuckDB, ClickHouse, Polars and pyarrow read it.
    #[default]
    Tuned,
    /// PLAIN and dictionary encodings in version 1 pages only, for readers of any age. Larger by about a quarter.
    Compatible,
}

/// Rows of a row group: the unit readers work on in parallel.
const ROW_GROUP_ROWS: usize = 1 << 20;
/// Rows of a page: the smallest unit that is skipped and decompressed.
const PAGE_ROWS: usize = 20_000;
/// Above the writer's default of 1 MiB, at which it silently falls back to PLAIN.
const DICTIONARY_BYTES_MAX: usize = 16 << 20;
/// Share of addresses a bloom filter takes for present though they are not.
const BLOOM_FALSE_POSITIVES: f64 = 0.01;
/// Rows sorted into one batch at a time, so that encoding needs little memory beside the rows themselves.
const GATHER_ROWS: usize = ROWS_MAX;

/// Writes `batches` (all of the table, at least one row) as segment `id` and gives it its final name. Afterwards
/// the file and its name are durable.
pub(crate) fn write_segment(
    layout: &Layout,
    id: u64,
    batches: &[RecordBatch],
    profile: SegmentProfile,
) -> Result<SegmentMeta, StorageError> {
    let mut meta = describe(layout.table, id, batches);
    let path = layout.segments_dir().join(&meta.file);
    let tmp = path.with_extension("tmp");
    let day = path.parent().unwrap_or(&layout.dir);
    let day_is_new = !day.exists();
    fs::create_dir_all(day).at("create", day)?;
    let written = write_rows(&tmp, layout.table, id, batches, meta.rows, profile);
    if let Err(error) = written {
        // Frees what a full disk needs most; a start would remove it too.
        let _ = fs::remove_file(&tmp);
        return Err(error);
    }
    meta.bytes = fs::metadata(&tmp).at("look at", &tmp)?.len();
    fs::rename(&tmp, &path).at("rename", &tmp)?;
    sys::sync_dir(day).at("sync", day)?;
    if day_is_new {
        sys::sync_dir(&layout.segments_dir()).at("sync", &layout.segments_dir())?;
    }
    Ok(meta)
}

fn write_rows(
    path: &Path,
    table: &TableInfo,
    id: u64,
    batches: &[RecordBatch],
    rows: u64,
    profile: SegmentProfile,
) -> Result<(), StorageError> {
    let file = File::create(path).at("create", path)?;
    let failed = StorageError::parquet("write segment", path);
    let zero: Vec<bool> =
        (0..table.columns.len()).map(|at| batches.iter().all(|batch| is_all_zero(batch.column(at)))).collect();
    let properties = properties(table, profile, id, rows, &zero);
    let mut writer = ArrowWriter::try_new(BufWriter::with_capacity(1 << 20, file), (table.schema)(), Some(properties))
        .map_err(&failed)?;
    let mut order = order_by_time(batches);
    for run in order.chunks_mut(GATHER_ROWS) {
        let sources = sources(batches, run);
        let batch = gather(&sources, run).map_err(StorageError::arrow("sort rows by time"))?;
        writer.write(&batch).map_err(&failed)?;
    }
    let file = writer.into_inner().map_err(&failed)?;
    let file = file.into_inner().map_err(|error| error.into_error()).at("write", path)?;
    file.sync_all().at("sync", path)
}

/// Position of each row as (batch, row), by time; rows of one time keep the order they came in.
fn order_by_time(batches: &[RecordBatch]) -> Vec<(usize, usize)> {
    let mut keys: Vec<(i64, u32, u32)> = Vec::with_capacity(batches.iter().map(RecordBatch::num_rows).sum());
    for (b, batch) in batches.iter().enumerate() {
        let ends = batch.column(0).as_primitive::<TimestampMicrosecondType>().values();
        keys.extend(ends.iter().enumerate().map(|(row, &end)| (end, b as u32, row as u32)));
    }
    keys.sort_unstable();
    keys.into_iter().map(|(_, batch, row)| (batch as usize, row as usize)).collect()
}

/// The batches `run` takes rows from, by which it counts afterwards. Rows come nearly in order, so these are few, and
/// the dictionaries of all others need not be looked at.
fn sources<'a>(batches: &'a [RecordBatch], run: &mut [(usize, usize)]) -> Vec<&'a RecordBatch> {
    let mut place = vec![usize::MAX; batches.len()];
    let mut used = Vec::new();
    for (batch, _) in run {
        if place[*batch] == usize::MAX {
            place[*batch] = used.len();
            used.push(&batches[*batch]);
        }
        *batch = place[*batch];
    }
    used
}

/// The rows at `order` as one batch.
fn gather(batches: &[&RecordBatch], order: &[(usize, usize)]) -> Result<RecordBatch, ArrowError> {
    let schema = batches[0].schema();
    let columns: Result<Vec<ArrayRef>, ArrowError> = (0..schema.fields().len())
        .map(|c| {
            let arrays: Vec<&dyn Array> = batches.iter().map(|batch| batch.column(c).as_ref()).collect();
            // Columns of nothing, of which there are many, are not walked.
            if arrays.iter().all(|array| is_all_zero(*array)) {
                return Ok(all_zero(order.len()));
            }
            if arrays.iter().all(|array| array.null_count() == array.len()) {
                return Ok(new_null_array(schema.field(c).data_type(), order.len()));
            }
            match schema.field(c).data_type() {
                // Arrow's own interleave copies these row by row through a virtual call.
                DataType::FixedSizeBinary(16) => gather_bytes::<16>(&arrays, order),
                DataType::FixedSizeBinary(6) => gather_bytes::<6>(&arrays, order),
                _ => interleave(&arrays, order),
            }
        })
        .collect();
    RecordBatch::try_new(schema, columns?)
}

fn gather_bytes<const N: usize>(arrays: &[&dyn Array], order: &[(usize, usize)]) -> Result<ArrayRef, ArrowError> {
    let arrays: Vec<&FixedSizeBinaryArray> = arrays.iter().map(|array| array.as_fixed_size_binary()).collect();
    let values: Vec<&[[u8; N]]> = arrays.iter().map(|array| array.value_data().as_chunks::<N>().0).collect();
    let bytes: Vec<[u8; N]> = order.iter().map(|&(batch, row)| values[batch][row]).collect();
    let nulls = arrays.iter().any(|array| array.null_count() > 0).then(|| {
        NullBuffer::new(BooleanBuffer::collect_bool(order.len(), |i| arrays[order[i].0].is_valid(order[i].1)))
    });
    Ok(Arc::new(FixedSizeBinaryArray::try_new(N as i32, Buffer::from_vec(bytes.into_flattened()), nulls)?))
}

/// The columns `describe` looks at.
fn described(table: &TableInfo) -> Vec<&'static str> {
    [Some(table.time()), table.duration, Some("tap"), Some("proto")].into_iter().flatten().collect()
}

/// What the manifest keeps of the rows; `bytes` is not known yet. The batches have the columns `described`.
fn describe(table: &TableInfo, id: u64, batches: &[RecordBatch]) -> SegmentMeta {
    let (mut end_min, mut end_max, mut start_min) = (i64::MAX, i64::MIN, i64::MAX);
    let mut protos = [false; 256];
    let mut taps: Vec<String> = Vec::new();
    for batch in batches {
        let ends = batch[table.time()].as_primitive::<TimestampMicrosecondType>().values();
        for &end in ends {
            end_min = end_min.min(end);
            end_max = end_max.max(end);
        }
        match table.duration {
            Some(duration) => {
                for (end, duration) in ends.iter().zip(batch[duration].as_primitive::<Int64Type>().values()) {
                    start_min = start_min.min(end.saturating_sub(*duration));
                }
            }
            None => start_min = end_min,
        }
        for &proto in batch["proto"].as_primitive::<UInt8Type>().values() {
            protos[usize::from(proto)] = true;
        }
        let tap = batch["tap"].as_dictionary::<Int32Type>();
        let names = tap.values().as_string::<i32>();
        let mut used = vec![false; names.len()];
        for &key in tap.keys().values() {
            if let Some(used) = usize::try_from(key).ok().and_then(|key| used.get_mut(key)) {
                *used = true;
            }
        }
        for (name, _) in names.iter().zip(used).filter(|(_, used)| *used) {
            let name = name.unwrap_or_default();
            if let Err(at) = taps.binary_search_by(|tap| tap.as_str().cmp(name)) {
                taps.insert(at, name.to_owned());
            }
        }
    }
    SegmentMeta {
        id,
        file: Layout::segment_file(id, end_max),
        rows: batches.iter().map(|batch| batch.num_rows() as u64).sum(),
        bytes: 0,
        t_end_min: end_min,
        t_end_max: end_max,
        t_start_min: start_min,
        taps,
        protos: (0..=255u8).filter(|&proto| protos[usize::from(proto)]).collect(),
    }
}

/// What the manifest would keep of a segment it does not list.
///
/// # Errors
/// If the file is no segment.
pub(crate) fn describe_file(
    table: &TableInfo,
    path: &Path,
    id: u64,
    file: String,
) -> Result<SegmentMeta, StorageError> {
    let failed = StorageError::parquet("read segment", path);
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(path).at("open", path)?).map_err(&failed)?;
    let schema = (table.schema)();
    for name in described(table) {
        let [found, wanted] = [reader.schema(), &schema].map(|schema| schema.field_with_name(name).ok());
        if found.map(|field| field.data_type()) != wanted.map(|field| field.data_type()) {
            let reason = format!("it has no column {name} of the right type");
            return Err(StorageError::Damaged { path: path.to_owned(), offset: 0, reason });
        }
    }
    let columns = ProjectionMask::columns(reader.parquet_schema(), described(table));
    let batches = reader.with_projection(columns).build().map_err(&failed)?.collect::<Result<Vec<_>, _>>();
    let batches = batches.map_err(StorageError::arrow("read rows of a segment"))?;
    if batches.iter().all(|batch| batch.num_rows() == 0) {
        return Err(StorageError::Damaged { path: path.to_owned(), offset: 0, reason: "it has no rows".to_owned() });
    }
    let bytes = fs::metadata(path).at("look at", path)?.len();
    Ok(SegmentMeta { file, bytes, ..describe(table, id, &batches) })
}

fn properties(table: &TableInfo, profile: SegmentProfile, id: u64, rows: u64, zero: &[bool]) -> WriterProperties {
    let mut builder = WriterProperties::builder()
        .set_created_by(concat!("taphouse version ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .set_data_page_row_count_limit(PAGE_ROWS)
        .set_dictionary_page_size_limit(DICTIONARY_BYTES_MAX)
        .set_statistics_enabled(EnabledStatistics::Page)
        .set_sorting_columns(Some(vec![SortingColumn { column_idx: 0, descending: false, nulls_first: false }]))
        .set_key_value_metadata(Some(vec![
            KeyValue::new("taphouse.format".to_owned(), FORMAT_VERSION.to_string()),
            KeyValue::new("taphouse.segment".to_owned(), id.to_string()),
        ]))
        .set_writer_version(match profile {
            // Version 1 has no dictionaries of fixed-length bytes: addresses would take 16 bytes a row before zstd.
            SegmentProfile::Tuned => WriterVersion::PARQUET_2_0,
            SegmentProfile::Compatible => WriterVersion::PARQUET_1_0,
        });
    for (column, &zero) in table.columns.iter().zip(zero) {
        let path = || ColumnPath::from(column.name);
        let encoding = match (profile, column.encoding) {
            // Zeros cost least as they are: nothing is computed, and zstd makes a few bytes of a page.
            _ if zero => Some(ParquetEncoding::PLAIN),
            (SegmentProfile::Compatible, _) | (_, Encoding::Dict) => None,
            (_, Encoding::Delta) => Some(ParquetEncoding::DELTA_BINARY_PACKED),
            (_, Encoding::Split) => Some(ParquetEncoding::BYTE_STREAM_SPLIT),
            (_, Encoding::Plain) => Some(ParquetEncoding::PLAIN),
        };
        builder = builder.set_column_dictionary_enabled(path(), encoding.is_none());
        if let Some(encoding) = encoding {
            builder = builder.set_column_encoding(path(), encoding);
        }
        if !column.statistics {
            builder = builder.set_column_statistics_enabled(path(), EnabledStatistics::None);
        }
        if column.bloom {
            // Sized for every row being distinct, then folded down by the writer to what the values need.
            builder = builder
                .set_column_bloom_filter_enabled(path(), true)
                .set_column_bloom_filter_fpp(path(), BLOOM_FALSE_POSITIVES)
                .set_column_bloom_filter_max_ndv(path(), rows.clamp(1, ROW_GROUP_ROWS as u64));
        }
    }
    builder.build()
}
