//! Batches of rows into one Parquet file, sorted by their time.

mod bits;
mod chunk;
mod column;
mod dictionary;

use crate::bloom::Blooms;
use crate::cells::is_all_zero;
use crate::error::IoContext;
use crate::folder::{FORMAT_VERSION, Layout};
use crate::segment::SegmentMeta;
use crate::table::TableInfo;
use crate::zones::Zones;
use crate::{StorageError, sys};
use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{Int32Type, Int64Type, TimestampMicrosecondType, UInt8Type};
use arrow::record_batch::RecordBatch;
use chunk::Zstd;
use column::{Column, Place, Scratch};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::arrow::{ArrowSchemaConverter, ProjectionMask, add_encoded_arrow_schema_to_metadata};
use parquet::errors::ParquetError;
use parquet::file::metadata::{KeyValue, SortingColumn};
use parquet::file::properties::{WriterProperties, WriterVersion};
use parquet::file::writer::SerializedFileWriter;
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
    /// PLAIN and dictionary encodings in version 1 pages only, for readers of any age. Larger by about a tenth.
    Compatible,
}

/// Rows of a row group: the unit readers work on in parallel.
const ROW_GROUP_ROWS: usize = 1 << 20;
/// Rows of a page: the smallest unit that is skipped and decompressed.
const PAGE_ROWS: usize = 20_000;

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
    meta.blooms = write_rows(&tmp, layout.table, id, batches, profile).inspect_err(|_| {
        // Frees what a full disk needs most; a start would remove it too.
        let _ = fs::remove_file(&tmp);
    })?;
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
    profile: SegmentProfile,
) -> Result<Blooms, StorageError> {
    let file = File::create(path).at("create", path)?;
    let failed = StorageError::parquet("write segment", path);
    let schema = (table.schema)();
    let mut properties = properties(profile, id);
    add_encoded_arrow_schema_to_metadata(&schema, &mut properties);
    let columns = ArrowSchemaConverter::new().convert(&schema).map_err(&failed)?;
    let file = BufWriter::with_capacity(1 << 20, file);
    let mut writer =
        SerializedFileWriter::new(file, columns.root_schema_ptr(), Arc::new(properties)).map_err(&failed)?;
    for rows in order_by_time(batches).chunks(ROW_GROUP_ROWS) {
        write_row_group(&mut writer, table, batches, rows, profile).map_err(&failed)?;
    }
    // Filters follow their row group, so their places are known before the footer is.
    let blooms = Blooms::of(writer.flushed_row_groups());
    let file = writer.into_inner().map_err(&failed)?;
    let file = file.into_inner().map_err(|error| error.into_error()).at("write", path)?;
    file.sync_all().at("sync", path)?;
    Ok(blooms)
}

/// All columns page by page, so that what is known of a page's rows stays in the cache.
fn write_row_group(
    writer: &mut SerializedFileWriter<BufWriter<File>>,
    table: &TableInfo,
    batches: &[RecordBatch],
    rows: &[Place],
    profile: SegmentProfile,
) -> Result<(), ParquetError> {
    let schema = (table.schema)();
    let mut columns = Vec::with_capacity(table.columns.len());
    for (at, info) in table.columns.iter().enumerate() {
        let field = schema.field(at);
        let is_zero = batches.iter().all(|batch| is_all_zero(batch.column(at)));
        let column = writer.schema_descr().column(at);
        columns.push(Column::new(info, field.data_type(), field.is_nullable(), column, profile, is_zero)?);
    }
    let (mut zstd, mut scratch) = (Zstd::new()?, Scratch::default());
    for page in rows.chunks(PAGE_ROWS) {
        let (sources, places) = sources(batches, page);
        for (at, column) in columns.iter_mut().enumerate() {
            let arrays: Vec<&ArrayRef> = sources.iter().map(|batch| batch.column(at)).collect();
            column.page(&arrays, &places, &mut scratch, &mut zstd)?;
        }
    }
    let mut group = writer.next_row_group()?;
    for column in columns {
        let (chunk, close) = column.finish(&mut zstd)?;
        group.append_column(&chunk, close)?;
    }
    group.close()?;
    Ok(())
}

/// Where each row lies, by time; rows of one time keep the order they came in.
fn order_by_time(batches: &[RecordBatch]) -> Vec<Place> {
    let mut keys: Vec<(i64, Place)> = Vec::with_capacity(batches.iter().map(RecordBatch::num_rows).sum());
    for (b, batch) in batches.iter().enumerate() {
        let ends = batch.column(0).as_primitive::<TimestampMicrosecondType>().values();
        keys.extend(ends.iter().enumerate().map(|(row, &end)| (end, (b as u32, row as u32))));
    }
    keys.sort_unstable();
    keys.into_iter().map(|(_, place)| place).collect()
}

/// The batches a page takes rows from, and where its rows lie in these. Rows come nearly in order, so they are few.
fn sources<'a>(batches: &'a [RecordBatch], page: &[Place]) -> (Vec<&'a RecordBatch>, Vec<Place>) {
    let mut number = vec![u32::MAX; batches.len()];
    let mut used = Vec::new();
    let places = page.iter().map(|&(batch, row)| {
        let number = &mut number[batch as usize];
        if *number == u32::MAX {
            *number = used.len() as u32;
            used.push(&batches[batch as usize]);
        }
        (*number, row)
    });
    let places = places.collect();
    (used, places)
}

/// The columns `describe` looks at.
fn described(table: &TableInfo) -> Vec<&'static str> {
    [Some(table.time()), table.duration, Some("tap"), Some("proto")].into_iter().flatten().collect()
}

/// What the manifest keeps of the rows; `bytes` and filters are not known yet. The batches have the columns `described`,
/// and those of zones unless they are of an older version.
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
        zones: Zones::of(table.zones, batches),
        blooms: Blooms::default(),
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
    let blooms = Blooms::of(reader.metadata().row_groups());
    let wanted = described(table).into_iter().chain(table.zones.iter().copied());
    let columns = ProjectionMask::columns(reader.parquet_schema(), wanted);
    let batches = reader.with_projection(columns).build().map_err(&failed)?.collect::<Result<Vec<_>, _>>();
    let batches = batches.map_err(StorageError::arrow("read rows of a segment"))?;
    if batches.iter().all(|batch| batch.num_rows() == 0) {
        return Err(StorageError::Damaged { path: path.to_owned(), offset: 0, reason: "it has no rows".to_owned() });
    }
    let bytes = fs::metadata(path).at("look at", path)?.len();
    Ok(SegmentMeta { file, bytes, blooms, ..describe(table, id, &batches) })
}

fn properties(profile: SegmentProfile, id: u64) -> WriterProperties {
    WriterProperties::builder()
        .set_created_by(concat!("taphouse version ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_sorting_columns(Some(vec![SortingColumn { column_idx: 0, descending: false, nulls_first: false }]))
        .set_key_value_metadata(Some(vec![
            KeyValue::new("taphouse.format".to_owned(), FORMAT_VERSION.to_string()),
            KeyValue::new("taphouse.segment".to_owned(), id.to_string()),
        ]))
        .set_writer_version(match profile {
            SegmentProfile::Tuned => WriterVersion::PARQUET_2_0,
            SegmentProfile::Compatible => WriterVersion::PARQUET_1_0,
        })
        .build()
}

#[cfg(test)]
mod tests;
