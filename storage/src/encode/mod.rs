//! Batches of rows into one Parquet file, sorted by their time.

mod bits;
mod chunk;
mod column;
mod dictionary;
mod page;

use crate::StorageError;
use crate::bloom::Blooms;
use crate::cells::is_all_zero;
use crate::compact::Gate;
use crate::disk::{self, DiskFile, Open};
use crate::error::IoContext;
use crate::folder::{FORMAT_VERSION, Layout};
use crate::segment::{Footer, Segment, SegmentId, SegmentMeta};
use crate::table::TableInfo;
use crate::zones::Zones;
use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{Int32Type, Int64Type, TimestampMicrosecondType, UInt8Type};
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use chunk::Zstd;
pub(crate) use column::Place;
use column::{Column, Scratch};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::arrow::{ArrowSchemaConverter, ProjectionMask, add_encoded_arrow_schema_to_metadata};
use parquet::errors::ParquetError;
use parquet::file::metadata::{KeyValue, SortingColumn};
use parquet::file::properties::{WriterProperties, WriterVersion};
use parquet::file::reader::{ChunkReader, Length};
use parquet::file::writer::SerializedFileWriter;
use std::io::{self, BufWriter, Read, Write};
use std::ops::Range;
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
/// Bytes handed to the operating system at a time.
const WRITE_BYTES: usize = 1 << 20;
/// Rows of a batch read from a segment.
const READ_ROWS: usize = 8_192;

/// A segment to be written: some rows of some batches of one table.
#[derive(Clone, Copy)]
pub(crate) struct NewSegment<'a> {
    pub(crate) id: SegmentId,
    /// Folder of the rows' partition, below `segments/`.
    pub(crate) dir: &'a str,
    pub(crate) origin: Origin<'a>,
    pub(crate) batches: &'a [RecordBatch],
    /// At least one, by time.
    pub(crate) rows: &'a [Place],
    pub(crate) profile: SegmentProfile,
}

/// Where the rows of a segment come from, which its file says too.
#[derive(Clone, Copy)]
pub(crate) enum Origin<'a> {
    /// The log of its number, which became so many segments.
    Log { parts: usize },
    /// All rows that these logs had in its partition, from segments merged into this one.
    Merged { logs: &'a [u64] },
}

/// Writes a segment, as fast as `gate` lets it, and gives it its final name. Afterwards the file and its name are durable.
pub(crate) fn write_segment(
    layout: &Layout,
    new: &NewSegment<'_>,
    gate: Option<&Gate<'_>>,
) -> Result<SegmentMeta, StorageError> {
    let described = describe(layout.table, new.batches, new.rows);
    let NewSegment { id, dir, .. } = *new;
    let file = Layout::segment_file(dir, id);
    let segments = layout.segments_dir();
    let path = segments.join(&file);
    let tmp = path.with_extension("tmp");
    let (disk, dir) = (&*layout.disk, disk::parent(&path));
    disk::make_dirs(disk, &segments, dir).at("create", dir)?;
    let created = match disk.open(&tmp, Open::Create) {
        // Its last segment went, and the folder with it, since it was looked at.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            disk::make_dirs(disk, &segments, dir).at("create", dir)?;
            disk.open(&tmp, Open::Create)
        }
        created => created,
    };
    let written = write_rows(created.at("create", &tmp)?, &tmp, layout.table, new, gate).inspect_err(|_| {
        // Frees what a full disk needs most; a start would remove it too.
        let _ = disk.remove_file(&tmp);
    })?;
    let bytes = disk.stat(&tmp).at("look at", &tmp)?.bytes;
    disk.rename(&tmp, &path).at("rename", &tmp)?;
    disk.sync_dir(dir).at("sync", dir)?;
    let WrittenRows { blooms, footer } = written;
    Ok(SegmentMeta { id: id.number, part: id.part, file, bytes, blooms, footer, ..described })
}

/// What is known of a file once it is written.
struct WrittenRows {
    blooms: Blooms,
    footer: Option<Footer>,
}

fn write_rows(
    file: Box<dyn DiskFile>,
    path: &Path,
    table: &TableInfo,
    new: &NewSegment<'_>,
    gate: Option<&Gate<'_>>,
) -> Result<WrittenRows, StorageError> {
    let failed = StorageError::parquet("write segment", path);
    let schema = (table.schema)();
    let mut properties = properties(new);
    add_encoded_arrow_schema_to_metadata(&schema, &mut properties);
    let columns = ArrowSchemaConverter::new().convert(&schema).map_err(&failed)?;
    let file = BufWriter::with_capacity(WRITE_BYTES, Gated { file, gate });
    let file = Watched { file, at: 0, footer_at: None, footer: crc32fast::Hasher::new() };
    let mut writer =
        SerializedFileWriter::new(file, columns.root_schema_ptr(), Arc::new(properties)).map_err(&failed)?;
    for rows in new.rows.chunks(ROW_GROUP_ROWS) {
        write_row_group(&mut writer, table, &NewSegment { rows, ..*new }, gate).map_err(&failed)?;
    }
    // Filters follow their row group, so their places are known before the footer is.
    let blooms = Blooms::of(writer.flushed_row_groups());
    let footer_at = writer.bytes_written() as u64;
    writer.inner_mut().footer_at = Some(footer_at);
    let Watched { file, at, footer, .. } = writer.into_inner().map_err(&failed)?;
    let footer = Footer::new(at - footer_at, footer.finalize());
    let Gated { file, .. } = file.into_inner().map_err(|error| error.into_error()).at("write", path)?;
    file.sync().at("sync", path)?;
    Ok(WrittenRows { blooms, footer })
}

/// A file of which the end is remembered by its checksum.
struct Watched<W> {
    file: W,
    /// Bytes written.
    at: u64,
    /// Where its end begins, once that is known.
    footer_at: Option<u64>,
    footer: crc32fast::Hasher,
}

impl<W: Write> Write for Watched<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        if let Some(from) = self.footer_at {
            // What comes before it may have waited in a buffer.
            let before = from.saturating_sub(self.at).min(written as u64);
            self.footer.update(&bytes[before as usize..written]);
        }
        self.at += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// A file that is written no faster than its gate lets it.
struct Gated<'a> {
    file: Box<dyn DiskFile>,
    gate: Option<&'a Gate<'a>>,
}

impl Write for Gated<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let bytes = &bytes[..bytes.len().min(WRITE_BYTES)];
        if let Some(gate) = self.gate {
            gate.spend(bytes.len() as u64).map_err(io::Error::other)?;
        }
        self.file.write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// All columns page by page, so that what is known of a page's rows stays in the cache.
fn write_row_group(
    writer: &mut SerializedFileWriter<Watched<BufWriter<Gated<'_>>>>,
    table: &TableInfo,
    new: &NewSegment<'_>,
    gate: Option<&Gate<'_>>,
) -> Result<(), ParquetError> {
    let NewSegment { batches, rows, profile, .. } = *new;
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
        if let Some(gate) = gate {
            gate.spend(0).map_err(|stopped| ParquetError::External(Box::new(stopped)))?;
        }
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
pub(crate) fn order_by_time(batches: &[RecordBatch]) -> Vec<Place> {
    let mut keys: Vec<(i64, Place)> = Vec::with_capacity(batches.iter().map(RecordBatch::num_rows).sum());
    for (b, batch) in batches.iter().enumerate() {
        let ends = batch.column(0).as_primitive::<TimestampMicrosecondType>().values();
        keys.extend(ends.iter().enumerate().map(|(row, &end)| (end, (b as u32, row as u32))));
    }
    in_order(keys)
}

/// The places of rows given by their time, by time, then by place.
pub(crate) fn in_order(mut rows: Vec<(i64, Place)>) -> Vec<Place> {
    let (Some(first), Some(last)) = (rows.iter().map(|row| row.0).min(), rows.iter().map(|row| row.0).max()) else {
        return Vec::new();
    };
    let bits = |most: u64| u64::BITS - most.leading_zeros();
    let span = bits(last.abs_diff(first));
    let most = rows.iter().fold((0, 0), |(batches, rows), (_, place)| (batches | place.0, rows | place.1));
    let (of_batch, of_row) = (bits(most.0.into()), bits(most.1.into()));
    if span + of_batch + of_row > u64::BITS {
        rows.sort_unstable();
        return rows.into_iter().map(|(_, place)| place).collect();
    }
    // In one word each they are sorted several times as fast.
    let key = |&(time, (batch, row)): &(i64, Place)| {
        let shifted = |value: u64, by: u32| value.checked_shl(by).unwrap_or(0);
        shifted(time.abs_diff(first), of_batch + of_row) | shifted(batch.into(), of_row) | u64::from(row)
    };
    let mut keys: Vec<u64> = rows.iter().map(key).collect();
    keys.sort_unstable();
    let mask = |bits: u32| 1u64.checked_shl(bits).map_or(u64::MAX, |above| above - 1);
    let place = |key: u64| (((key >> of_row) & mask(of_batch)) as u32, (key & mask(of_row)) as u32);
    keys.into_iter().map(place).collect()
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

/// What the manifest keeps of the rows; file and filters are not known yet. The batches have the columns `described`,
/// and those of zones unless they are of an older version.
fn describe(table: &TableInfo, batches: &[RecordBatch], rows: &[Place]) -> SegmentMeta {
    let times: Vec<&[i64]> = batches
        .iter()
        .map(|batch| &batch[table.time()].as_primitive::<TimestampMicrosecondType>().values()[..])
        .collect();
    let durations: Option<Vec<&[i64]>> = table
        .duration
        .map(|name| batches.iter().map(|batch| &batch[name].as_primitive::<Int64Type>().values()[..]).collect());
    let protos: Vec<_> = batches.iter().map(|batch| batch["proto"].as_primitive::<UInt8Type>()).collect();
    let taps: Vec<_> = batches.iter().map(|batch| batch["tap"].as_dictionary::<Int32Type>()).collect();
    let mut used: Vec<Vec<bool>> = taps.iter().map(|tap| vec![false; tap.values().len()]).collect();
    let (mut end_min, mut end_max, mut start_min) = (i64::MAX, i64::MIN, i64::MAX);
    let mut seen = [false; 256];
    for &(batch, row) in rows {
        let (batch, row) = (batch as usize, row as usize);
        let end = times[batch][row];
        end_min = end_min.min(end);
        end_max = end_max.max(end);
        let duration = durations.as_ref().map_or(0, |durations| durations[batch][row]);
        start_min = start_min.min(end.saturating_sub(duration));
        if protos[batch].is_valid(row) {
            seen[usize::from(protos[batch].values()[row])] = true;
        }
        let key = usize::try_from(taps[batch].keys().values()[row]).ok();
        if let Some(used) = key.and_then(|key| used[batch].get_mut(key)) {
            *used = true;
        }
    }
    let mut names: Vec<String> = Vec::new();
    for (tap, used) in taps.iter().zip(used) {
        for (name, _) in tap.values().as_string::<i32>().iter().zip(used).filter(|(_, used)| *used) {
            let name = name.unwrap_or_default();
            if let Err(at) = names.binary_search_by(|tap| tap.as_str().cmp(name)) {
                names.insert(at, name.to_owned());
            }
        }
    }
    SegmentMeta {
        rows: rows.len() as u64,
        t_end_min: end_min,
        t_end_max: end_max,
        t_start_min: start_min,
        taps: names,
        protos: (0..=255u8).filter(|&proto| seen[usize::from(proto)]).collect(),
        zones: Zones::of(table.zones, batches, rows),
        ..SegmentMeta::default()
    }
}

/// A segment file the manifest does not list: what it would keep of it, and what the file says of its rows.
pub(crate) struct FoundSegment {
    pub(crate) meta: SegmentMeta,
    /// The logs whose rows of its partition it has.
    pub(crate) logs: Vec<u64>,
    /// Segments its log became; `None` of one merged from others.
    pub(crate) parts: Option<usize>,
}

/// What the manifest would keep of a segment it does not list.
///
/// # Errors
/// If the file is no segment.
pub(crate) fn describe_file(layout: &Layout, id: SegmentId, file: String) -> Result<FoundSegment, StorageError> {
    let path = layout.segments_dir().join(&file);
    let failed = StorageError::parquet("read segment", &path);
    let table = layout.table;
    let (reader, bytes) = open_segment(layout, &path, None)?;
    if let Some(format) = value_of(&reader, FORMAT).and_then(|format| format.parse::<u32>().ok())
        && format > FORMAT_VERSION
    {
        let reason = format!("it has format {format}, this version reads up to {FORMAT_VERSION}");
        return Err(StorageError::Damaged { path, offset: 0, reason });
    }
    let schema = (table.schema)();
    for name in described(table) {
        let [found, wanted] = [reader.schema(), &schema].map(|schema| schema.field_with_name(name).ok());
        if found.map(|field| field.data_type()) != wanted.map(|field| field.data_type()) {
            let reason = format!("it has no column {name} of the right type");
            return Err(StorageError::Damaged { path, offset: 0, reason });
        }
    }
    let (logs, parts) = origin(&reader, id);
    let blooms = Blooms::of(reader.metadata().row_groups());
    let wanted = described(table).into_iter().chain(table.zones.iter().copied());
    let columns = ProjectionMask::columns(reader.parquet_schema(), wanted);
    let batches = reader.with_projection(columns).build().map_err(&failed)?.collect::<Result<Vec<_>, _>>();
    let batches = batches.map_err(unread(&path))?;
    let rows = order_by_time(&batches);
    if rows.is_empty() {
        return Err(StorageError::Damaged { path, offset: 0, reason: "it has no rows".to_owned() });
    }
    let described = describe(table, &batches, &rows);
    Ok(FoundSegment {
        meta: SegmentMeta { id: id.number, part: id.part, file, bytes, blooms, ..described },
        logs,
        parts,
    })
}

/// The logs whose rows of its partition a segment has, as its file says.
///
/// # Errors
/// If the file is no segment.
pub(crate) fn logs_of(
    layout: &Layout,
    id: SegmentId,
    path: &Path,
    footer: Option<Footer>,
) -> Result<Vec<u64>, StorageError> {
    let (reader, _) = open_segment(layout, path, footer)?;
    Ok(origin(&reader, id).0)
}

/// The rows of a segment, with the table's columns, read as fast as `gate` lets it.
pub(crate) fn read_segment(
    layout: &Layout,
    segment: &Segment,
    gate: &Gate<'_>,
) -> Result<Vec<RecordBatch>, StorageError> {
    let path = &segment.path;
    let failed = StorageError::parquet("read segment", path);
    let (reader, bytes) = open_segment(layout, path, segment.footer)?;
    let rows = reader.metadata().file_metadata().num_rows().max(1) as u64;
    let mut batches = Vec::new();
    for batch in reader.with_batch_size(READ_ROWS).build().map_err(&failed)? {
        let batch = batch.map_err(unread(path))?;
        let share = bytes as f64 * batch.num_rows() as f64 / rows as f64;
        gate.spend(share as u64).map_err(io::Error::other).at("read", path)?;
        batches.push(layout.table.conform(&batch)?);
    }
    Ok(batches)
}

/// Rows that a segment does not give, with its name.
fn unread(path: &Path) -> impl Fn(ArrowError) -> StorageError + use<> {
    let failed = StorageError::parquet("read segment", path);
    move |error| {
        failed(match error {
            ArrowError::ParquetError(message) => ParquetError::General(message),
            error => ParquetError::External(Box::new(error)),
        })
    }
}

type SegmentReader = ParquetRecordBatchReaderBuilder<SegmentFile>;

/// A segment and its size. `footer`: its end, if that is known.
fn open_segment(layout: &Layout, path: &Path, footer: Option<Footer>) -> Result<(SegmentReader, u64), StorageError> {
    let failed = StorageError::parquet("read segment", path);
    let file = layout.disk.open(path, Open::Read).at("open", path)?;
    let bytes = file.bytes().at("look at", path)?;
    let content = SegmentFile { file: file.into(), bytes };
    if let Some(footer) = footer {
        let Range { start, end } = footer.range(bytes);
        if !footer.is(&content.get_bytes(start, (end - start) as usize).map_err(&failed)?) {
            let reason = "its footer is not what was written".to_owned();
            return Err(StorageError::Damaged { path: path.to_owned(), offset: start, reason });
        }
    }
    Ok((SegmentReader::try_new(content).map_err(failed)?, bytes))
}

/// Logs and parts, as in `FoundSegment`. Segments of format 1 say nothing: they have all rows of the log of their number.
fn origin(reader: &SegmentReader, id: SegmentId) -> (Vec<u64>, Option<usize>) {
    let value = |key| value_of(reader, key);
    match value(LOGS) {
        Some(logs) => (logs.split(',').filter_map(|log| log.parse().ok()).collect(), None),
        None => (vec![id.number], Some(value(PARTS).and_then(|parts| parts.parse().ok()).unwrap_or(1))),
    }
}

fn value_of<'a>(reader: &'a SegmentReader, key: &str) -> Option<&'a str> {
    let pairs = reader.metadata().file_metadata().key_value_metadata()?;
    pairs.iter().find(|pair| pair.key == key)?.value.as_deref()
}

/// A segment being read.
struct SegmentFile {
    file: Arc<dyn DiskFile>,
    bytes: u64,
}

impl Length for SegmentFile {
    fn len(&self) -> u64 {
        self.bytes
    }
}

impl ChunkReader for SegmentFile {
    type T = SegmentPart;

    fn get_read(&self, start: u64) -> Result<SegmentPart, ParquetError> {
        Ok(SegmentPart { file: self.file.clone(), at: start })
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        // A footer that does not check out may ask for more than memory holds.
        if start.saturating_add(length as u64) > self.bytes {
            return Err(ParquetError::EOF(format!("{length} bytes at {start} of {}", self.bytes)));
        }
        let mut bytes = vec![0; length];
        let read = disk::read_full(&*self.file, &mut bytes, start)?;
        bytes.truncate(read);
        Ok(bytes.into())
    }
}

struct SegmentPart {
    file: Arc<dyn DiskFile>,
    at: u64,
}

impl Read for SegmentPart {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(bytes, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

/// Key of the version of the format.
const FORMAT: &str = "taphouse.format";
/// Key of the logs whose rows a merged segment has, separated by commas.
const LOGS: &str = "taphouse.logs";
/// Key of the number of segments a log became.
const PARTS: &str = "taphouse.parts";

fn properties(new: &NewSegment<'_>) -> WriterProperties {
    let origin = match new.origin {
        Origin::Log { parts } => KeyValue::new(PARTS.to_owned(), parts.to_string()),
        Origin::Merged { logs } => {
            let logs: Vec<String> = logs.iter().map(u64::to_string).collect();
            KeyValue::new(LOGS.to_owned(), logs.join(","))
        }
    };
    WriterProperties::builder()
        .set_created_by(concat!("taphouse version ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_sorting_columns(Some(vec![SortingColumn { column_idx: 0, descending: false, nulls_first: false }]))
        .set_key_value_metadata(Some(vec![
            KeyValue::new(FORMAT.to_owned(), FORMAT_VERSION.to_string()),
            KeyValue::new("taphouse.segment".to_owned(), new.id.to_string()),
            origin,
        ]))
        .set_writer_version(match new.profile {
            SegmentProfile::Tuned => WriterVersion::PARQUET_2_0,
            SegmentProfile::Compatible => WriterVersion::PARQUET_1_0,
        })
        .build()
}

#[cfg(test)]
mod tests;
