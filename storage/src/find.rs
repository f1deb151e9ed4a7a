//! The rows of a column chunk that have a value, found without decoding the others: the value's number is looked up in
//! the dictionary, and the rows' packed numbers are compared with it where they lie. Parquet's readers make an array of
//! each page first, and compare its values then, which takes ten times as long.

use bytes::Bytes;
use parquet::basic::{Encoding, Type};
use parquet::column::page::{Page, PageReader};
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::page_index::offset_index::PageLocation;
use parquet::file::reader::{ChunkReader, Length};
use parquet::file::serialized_reader::SerializedPageReader;
use std::io::{Cursor, Read};
use std::ops::Range;
use std::sync::Arc;

/// What has been read of a file: pieces, and where each begins.
#[derive(Clone, Debug, Default)]
pub struct FileParts(Vec<(u64, Bytes)>);

impl FileParts {
    /// Adds the bytes from `offset` on.
    pub fn push(&mut self, offset: u64, bytes: Bytes) {
        self.0.push((offset, bytes));
    }

    /// The bytes of a range that lies within one piece.
    pub fn get(&self, range: &Range<u64>) -> Option<Bytes> {
        self.0.iter().find_map(|(offset, bytes)| {
            let from = usize::try_from(range.start.checked_sub(*offset)?).ok()?;
            let to = usize::try_from(range.end.checked_sub(*offset)?).ok()?;
            (from <= to && to <= bytes.len()).then(|| bytes.slice(from..to))
        })
    }
}

/// The parts as a file that Parquet's reader of pages reads.
struct PartsReader<'a>(&'a FileParts);

impl Length for PartsReader<'_> {
    fn len(&self) -> u64 {
        self.0.0.iter().map(|(offset, bytes)| offset + bytes.len() as u64).max().unwrap_or(0)
    }
}

impl ChunkReader for PartsReader<'_> {
    type T = Box<dyn Read>;

    fn get_read(&self, start: u64) -> Result<Box<dyn Read>> {
        let holds = |(offset, bytes): &&(u64, Bytes)| *offset <= start && start < offset + bytes.len() as u64;
        let (offset, bytes) = self.0.0.iter().find(holds).ok_or_else(|| cut_off("a page"))?;
        Ok(Box::new(Cursor::new(bytes.slice((start - offset) as usize..))))
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes> {
        self.0.get(&(start..start.saturating_add(length as u64))).ok_or_else(|| cut_off("a page"))
    }
}

fn out_of_step(what: &str) -> ParquetError {
    ParquetError::General(what.to_owned())
}

fn cut_off(what: &str) -> ParquetError {
    ParquetError::General(format!("{what} is cut off"))
}

/// The bytes of a file that hold what of a column chunk concerns `rows`: its dictionary, and the pages of these rows; or
/// all of it where nothing tells which these are.
pub fn chunk_ranges(
    chunk: &ColumnChunkMetaData,
    locations: Option<&[PageLocation]>,
    rows: &Range<usize>,
) -> Vec<Range<u64>> {
    let (start, length) = chunk.byte_range();
    let whole = start..start + length;
    let Some([first, ..]) = locations else { return [whole].into() };
    let of_page = |page: &PageLocation| {
        let start = page.offset.max(0) as u64;
        start..start + page.compressed_page_size.max(0) as u64
    };
    let wanted = locations.into_iter().flatten().zip(rows_of_pages(locations, usize::MAX));
    let mut wanted = wanted.filter(|(_, of_page)| overlap(of_page, rows)).map(|(page, _)| of_page(page));
    let Some(pages) = wanted.next().map(|first| first.start..wanted.last().map_or(first.end, |last| last.end)) else {
        return Vec::new();
    };
    // In one piece where they touch: who reads the chunk whole asks for that.
    let dictionary = start..of_page(first).start;
    let mut ranges = vec![pages];
    match &mut ranges[..] {
        [pages] if dictionary.end == pages.start => pages.start = dictionary.start,
        _ if !dictionary.is_empty() => ranges.insert(0, dictionary),
        _ => {}
    }
    ranges
}

fn rows_of_pages(locations: Option<&[PageLocation]>, rows: usize) -> impl Iterator<Item = Range<usize>> {
    let starts = locations.unwrap_or_default().iter().map(|page| page.first_row_index.max(0) as usize);
    let ends = starts.clone().skip(1).chain([rows]);
    starts.zip(ends).map(|(start, end)| start..end)
}

fn overlap(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start < b.end && b.start < a.end
}

/// Pages of a column that is not nested, unpacked but not decoded.
#[derive(Debug)]
pub struct ColumnPages {
    physical: Type,
    rows_of_chunk: usize,
    /// Bytes of a value of fixed length.
    length: usize,
    is_nullable: bool,
    dictionary: Option<Bytes>,
    pages: Vec<DataPage>,
}

#[derive(Debug)]
struct DataPage {
    rows: Range<usize>,
    encoding: Encoding,
    /// Which rows have a value, as the hybrid of runs and packed bits; empty for all.
    levels: Bytes,
    values: Bytes,
}

impl ColumnPages {
    /// Of a chunk, those pages that concern `rows`, from the parts of its file that [`chunk_ranges`] names.
    ///
    /// # Errors
    /// What is there is no column chunk, or not of a column that is not nested.
    pub fn read(
        chunk: &ColumnChunkMetaData,
        locations: Option<&[PageLocation]>,
        rows_of_chunk: usize,
        rows: &Range<usize>,
        parts: &FileParts,
    ) -> Result<ColumnPages> {
        // An index without pages tells nothing.
        let locations = locations.filter(|pages| !pages.is_empty());
        let column = chunk.column_descr();
        if column.max_rep_level() > 0 || column.max_def_level() > 1 {
            return Err(ParquetError::General(format!("column {} is nested", column.name())));
        }
        let reader = Arc::new(PartsReader(parts));
        let mut pages = ColumnPages {
            physical: column.physical_type(),
            rows_of_chunk,
            length: column.type_length().max(0) as usize,
            is_nullable: column.max_def_level() > 0,
            dictionary: None,
            pages: Vec::new(),
        };
        // Nothing of the dictionary's place tells whether it is one: the first page does.
        let has_dictionary = match locations {
            Some([first, ..]) => first.offset.max(0) as u64 > chunk.byte_range().0,
            _ => false,
        };
        let owned = locations.map(<[PageLocation]>::to_vec);
        let mut reader = SerializedPageReader::new(reader, chunk, rows_of_chunk, owned)?;
        match locations {
            Some(_) => {
                if has_dictionary && pages.take(reader.get_next_page()?, 0)? != 0 {
                    return Err(out_of_step("a page lies where the dictionary should"));
                }
                for of_page in rows_of_pages(locations, rows_of_chunk) {
                    if !overlap(&of_page, rows) {
                        reader.skip_next_page()?;
                    } else if pages.take(reader.get_next_page()?, of_page.start)? != of_page.end {
                        return Err(out_of_step("a page has other rows than its index says"));
                    }
                }
            }
            None => {
                let mut row = 0;
                while let page @ Some(_) = reader.get_next_page()? {
                    row = pages.take(page, row)?;
                }
                if row != rows_of_chunk {
                    return Err(out_of_step("a column chunk has fewer rows than its row group"));
                }
            }
        }
        Ok(pages)
    }

    /// Takes the page that begins with row `row`. Returns the row after it.
    fn take(&mut self, page: Option<Page>, row: usize) -> Result<usize> {
        let (rows, encoding, levels, values) = match page {
            None => return Err(cut_off("a column chunk")),
            Some(Page::DictionaryPage { buf, .. }) => {
                self.dictionary = Some(buf);
                return Ok(row);
            }
            Some(Page::DataPage { mut buf, num_values, encoding, .. }) => {
                let mut levels = Bytes::new();
                if self.is_nullable {
                    let length = buf.first_chunk().map(|length| u32::from_le_bytes(*length) as usize);
                    let length = length.filter(|length| *length <= buf.len() - 4).ok_or_else(|| cut_off("a page"))?;
                    levels = buf.slice(4..4 + length);
                    buf = buf.slice(4 + length..);
                }
                (num_values, encoding, levels, buf)
            }
            Some(Page::DataPageV2 { buf, num_rows, num_nulls, encoding, def_levels_byte_len, .. }) => {
                let length = def_levels_byte_len as usize;
                if length > buf.len() {
                    return Err(cut_off("a page"));
                }
                let levels = if num_nulls > 0 { buf.slice(..length) } else { Bytes::new() };
                (num_rows, encoding, levels, buf.slice(length..))
            }
        };
        let rows = row..row + rows as usize;
        let end = rows.end;
        if end > self.rows_of_chunk {
            return Err(out_of_step("a column chunk has more rows than its row group"));
        }
        self.pages.push(DataPage { rows, encoding, levels, values });
        Ok(end)
    }

    /// The rows, of those the pages concern, that may have the value `plain`: all that have it, and whole pages where it
    /// cannot be told. In order, none twice; `None` if they are more than `most`. `plain` is as PLAIN has it, text without
    /// its length.
    ///
    /// # Errors
    /// A page is damaged.
    pub fn rows_with(&self, plain: &[u8], most: usize) -> Result<Option<Vec<Range<usize>>>> {
        let number = match &self.dictionary {
            Some(dictionary) => self.number_of(dictionary, plain)?,
            // No page should have numbers then.
            None => Number::Many,
        };
        let (mut found, mut count) = (Vec::new(), 0);
        let mut positions = Vec::new();
        for page in &self.pages {
            positions.clear();
            let known = match (page.encoding, number) {
                (Encoding::RLE_DICTIONARY | Encoding::PLAIN_DICTIONARY, Number::None) => true,
                (Encoding::RLE_DICTIONARY | Encoding::PLAIN_DICTIONARY, Number::One(number)) => {
                    numbers_equal(&page.values, number, page.rows.len(), &mut positions)?;
                    true
                }
                (Encoding::PLAIN, _) => self.plain_equal(&page.values, plain, |at| positions.push(at))?,
                _ => false,
            };
            count += if known { positions.len() } else { page.rows.len() };
            if count > most {
                return Ok(None);
            }
            match known {
                true => page.add_rows(&positions, &mut found)?,
                false => add(&mut found, page.rows.clone()),
            }
        }
        Ok(Some(found))
    }

    /// The value's number in the dictionary.
    fn number_of(&self, dictionary: &[u8], plain: &[u8]) -> Result<Number> {
        let mut number = Number::None;
        let known = self.plain_equal(dictionary, plain, |at| {
            number = match number {
                Number::None => Number::One(at),
                _ => Number::Many,
            }
        })?;
        Ok(if known { number } else { Number::Many })
    }

    /// Tells which of `values` are the value, both PLAIN. Returns false where it cannot be told.
    fn plain_equal(&self, values: &[u8], plain: &[u8], mut equal: impl FnMut(u32)) -> Result<bool> {
        let mut all = |equals: &mut dyn Iterator<Item = bool>| {
            equals.enumerate().filter(|(_, is_equal)| *is_equal).for_each(|(at, _)| equal(at as u32));
        };
        match (self.physical, self.length) {
            (Type::FIXED_LEN_BYTE_ARRAY, 16) => {
                let Ok(plain) = <[u8; 16]>::try_from(plain) else { return Ok(false) };
                let plain = u128::from_ne_bytes(plain);
                all(&mut values.as_chunks().0.iter().map(|value| u128::from_ne_bytes(*value) == plain));
            }
            (Type::FIXED_LEN_BYTE_ARRAY, length) if length == plain.len() && length > 0 => {
                all(&mut values.chunks_exact(length).map(|value| value == plain));
            }
            (Type::INT32, _) => {
                let Ok(plain) = <[u8; 4]>::try_from(plain) else { return Ok(false) };
                all(&mut values.as_chunks().0.iter().map(|value| *value == plain));
            }
            (Type::BYTE_ARRAY, _) => {
                let (mut rest, mut at) = (values, 0);
                while let Some((length, after)) = rest.split_first_chunk() {
                    let length = u32::from_le_bytes(*length) as usize;
                    let (value, after) = after.split_at_checked(length).ok_or_else(|| cut_off("a text"))?;
                    if value == plain {
                        equal(at);
                    }
                    (rest, at) = (after, at + 1);
                }
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// A value in a dictionary.
#[derive(Clone, Copy)]
enum Number {
    None,
    One(u32),
    /// Cannot be told, or there is more than one.
    Many,
}

impl DataPage {
    /// Adds the rows of values, which are counted without nulls.
    fn add_rows(&self, positions: &[u32], found: &mut Vec<Range<usize>>) -> Result<()> {
        let mut row_of = |row: usize| {
            if row < self.rows.len() {
                add(found, self.rows.start + row..self.rows.start + row + 1);
            }
        };
        if self.levels.is_empty() || positions.is_empty() {
            positions.iter().for_each(|at| row_of(*at as usize));
            return Ok(());
        }
        let mut has_value = Vec::new();
        numbers_equal_of(&self.levels, 1, 1, self.rows.len(), &mut has_value)?;
        positions.iter().filter_map(|at| has_value.get(*at as usize)).for_each(|row| row_of(*row as usize));
        Ok(())
    }
}

fn add(found: &mut Vec<Range<usize>>, rows: Range<usize>) {
    match found.last_mut() {
        Some(last) if last.end == rows.start => last.end = rows.end,
        _ => found.push(rows),
    }
}

/// Where among the values of a page their number is `number`. `most`: how many values there may be.
fn numbers_equal(page: &[u8], number: u32, most: usize, found: &mut Vec<u32>) -> Result<()> {
    match page.split_first() {
        // A page of nulls alone may be empty.
        None => Ok(()),
        Some((width @ 0..=32, hybrid)) => numbers_equal_of(hybrid, u32::from(*width), number, most, found),
        Some((width, _)) => Err(ParquetError::General(format!("numbers of {width} bits"))),
    }
}

/// Where among the numbers of a hybrid of runs and packed numbers (RLE in apache/parquet-format, Encodings.md), of `width`
/// bits each, one is `number`.
fn numbers_equal_of(hybrid: &[u8], width: u32, number: u32, most: usize, found: &mut Vec<u32>) -> Result<()> {
    let (mut rest, mut at) = (hybrid, 0);
    while !rest.is_empty() && at < most {
        let (header, after) = varint(rest)?;
        let count = usize::try_from(header >> 1).unwrap_or(usize::MAX);
        if header & 1 == 0 {
            let bytes = width.div_ceil(8) as usize;
            let (value, after) = after.split_at_checked(bytes).ok_or_else(|| cut_off("a run"))?;
            let mut word = [0; 4];
            word[..bytes].copy_from_slice(value);
            let until = at.saturating_add(count).min(most);
            if u32::from_le_bytes(word) == number {
                found.extend(at as u32..until as u32);
            }
            (rest, at) = (after, until);
        } else {
            // The last group may be cut off behind its last value.
            let length = count.saturating_mul(width as usize).min(after.len());
            let (packed, after) = after.split_at(length);
            let count = count.saturating_mul(8).min(most - at);
            packed_equal(packed, width, number, count, at, found);
            (rest, at) = (after, at + count);
        }
    }
    Ok(())
}

fn varint(bytes: &[u8]) -> Result<(u64, &[u8])> {
    let mut value = 0;
    for (at, byte) in bytes.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f).wrapping_shl(7 * at as u32);
        if byte & 0x80 == 0 {
            return Ok((value, &bytes[at + 1..]));
        }
    }
    Err(cut_off("a number"))
}

/// Where among `count` packed numbers, of which the first is the one at `first`, one is `number`.
fn packed_equal(packed: &[u8], width: u32, number: u32, count: usize, first: usize, found: &mut Vec<u32>) {
    // Numbers come in groups of eight, of `width` bytes; each is read from eight bytes, up to four of them behind its own.
    const BEHIND: usize = 8;
    let width = width as usize;
    let groups = count.div_ceil(8);
    let inside = match width {
        0 => groups,
        _ => (packed.len().saturating_sub(BEHIND) / width).min(groups),
    };
    let mut group = |bytes: &[u8], at: usize| {
        let equal = group_equal(bytes, width, number);
        if equal != 0 {
            let here = (0..8).filter(|i| equal >> i & 1 != 0).map(|i| at + i).filter(|at| *at < count);
            found.extend(here.map(|at| (first + at) as u32));
        }
    };
    for at in 0..inside {
        group(packed.get(at * width..).unwrap_or_default(), at * 8);
    }
    for at in inside..groups {
        let mut last = [0; 32 + BEHIND];
        let from = packed.len().min(at * width);
        let bytes = &packed[from..packed.len().min(from + width)];
        last[..bytes.len()].copy_from_slice(bytes);
        group(&last, at * 8);
    }
}

/// Which of the eight numbers of a group are `number`, a bit each.
fn group_equal(bytes: &[u8], width: usize, number: u32) -> u32 {
    let mask = (1u64 << width) - 1;
    let mut equal = 0;
    for i in 0..8 {
        let bit = i * width;
        let word = match bytes.get(bit / 8..).and_then(|from| from.first_chunk()) {
            Some(word) => u64::from_le_bytes(*word),
            None => 0,
        };
        equal |= u32::from(word >> (bit % 8) & mask == u64::from(number)) << i;
    }
    equal
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{ArrayRef, FixedSizeBinaryBuilder, RecordBatch, StringArray, UInt16Array};
    use parquet::arrow::ArrowWriter;
    use parquet::basic::{Compression, ZstdLevel};
    use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader};
    use parquet::file::properties::{WriterProperties, WriterVersion};

    /// xorshift64*.
    struct Random(u64);

    impl Random {
        fn below(&mut self, n: u64) -> u64 {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 20) % n
        }
    }

    fn file(batch: &RecordBatch, properties: WriterProperties) -> (Bytes, ParquetMetaData) {
        let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties)).unwrap();
        writer.write(batch).unwrap();
        let file = Bytes::from(writer.into_inner().unwrap());
        let reader = ParquetMetaDataReader::new().with_page_index_policy(PageIndexPolicy::Required);
        let metadata = reader.parse_and_finish(&file).unwrap();
        (file, metadata)
    }

    /// The bytes of the file that are named, and nothing else of it.
    fn parts(file: &Bytes, ranges: &[Range<u64>]) -> FileParts {
        let mut parts = FileParts::default();
        ranges.iter().for_each(|range| parts.push(range.start, file.slice(range.start as usize..range.end as usize)));
        parts
    }

    #[test]
    fn rows_are_those_a_loop_over_the_values_finds() {
        for seed in 1..=60 {
            let mut random = Random(seed);
            let rows = 1 + random.below(20_000) as usize;
            let distinct = [1, 2, 7, 300, 5_000, 70_000][random.below(6) as usize];
            let mut last = 0;
            let numbers: Vec<u64> = (0..rows)
                .map(|_| {
                    // Runs now and then.
                    if random.below(4) == 0 || rows.is_multiple_of(2) {
                        last = random.below(distinct);
                    }
                    last
                })
                .collect();
            let nulls = [0, 3, 90, 100][random.below(4) as usize];
            let is_null: Vec<bool> = (0..rows).map(|_| random.below(100) < nulls).collect();
            let plain = |n: u64| [&[0xfe; 8][..], &n.to_be_bytes()].concat();
            let text = |n: u64| "x".repeat((n % 40) as usize) + &n.to_string();
            let mut addresses = FixedSizeBinaryBuilder::new(16);
            numbers.iter().for_each(|n| addresses.append_value(plain(*n)).unwrap());
            let present = |n: &u64, null: &bool| (!null).then_some(*n);
            let ports = numbers.iter().zip(&is_null).map(|(n, null)| present(n, null).map(|n| n as u16));
            let names = numbers.iter().zip(&is_null).map(|(n, null)| present(n, null).map(text));
            let columns: [(&str, ArrayRef); 3] = [
                ("address", Arc::new(addresses.finish())),
                ("port", Arc::new(ports.collect::<UInt16Array>())),
                ("name", Arc::new(names.collect::<StringArray>())),
            ];
            let batch = RecordBatch::try_from_iter(columns).unwrap();
            let properties = WriterProperties::builder()
                .set_writer_version([WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0][random.below(2) as usize])
                .set_compression(
                    [Compression::UNCOMPRESSED, Compression::ZSTD(ZstdLevel::default())][random.below(2) as usize],
                )
                .set_dictionary_enabled(random.below(4) > 0)
                .set_dictionary_page_size_limit(1 << random.below(20))
                .set_data_page_row_count_limit(1 + random.below(3_000) as usize)
                .set_write_batch_size(64)
                .set_encoding(Encoding::PLAIN)
                .build();
            let (file, metadata) = file(&batch, properties);
            for at in 0..3 {
                let chunk = metadata.row_group(0).column(at);
                let locations = metadata.offset_index().map(|index| &index[0][at].page_locations()[..]);
                let with_index = random.below(3) > 0;
                let locations = locations.filter(|_| with_index);
                let from = random.below(rows as u64) as usize;
                let wanted = from..from + 1 + random.below((rows - from) as u64) as usize;
                let parts = parts(&file, &chunk_ranges(chunk, locations, &wanted));
                let pages = ColumnPages::read(chunk, locations, rows, &wanted, &parts).unwrap();
                for _ in 0..5 {
                    let n = random.below(distinct + 1);
                    let (plain, is_it): (Vec<u8>, &dyn Fn(usize) -> bool) = match at {
                        0 => (plain(n), &|row| numbers[row] == n),
                        1 => ((n as u16 as u32).to_le_bytes().to_vec(), &|row| {
                            !is_null[row] && numbers[row] as u16 == n as u16
                        }),
                        _ => (text(n).into_bytes(), &|row| !is_null[row] && numbers[row] == n),
                    };
                    let found: Vec<usize> = pages
                        .rows_with(&plain, rows)
                        .unwrap()
                        .unwrap()
                        .into_iter()
                        .flatten()
                        .filter(|row| wanted.contains(row))
                        .collect();
                    let expected: Vec<usize> = wanted.clone().filter(|row| is_it(*row)).collect();
                    assert_eq!(found, expected, "seed {seed}, column {at}, value {n}, rows {wanted:?} of {rows}");
                }
            }
        }
    }

    #[test]
    fn what_cannot_be_told_is_all_rows_of_the_page() {
        let ports = UInt16Array::from_iter_values((0..1_000).map(|n| n % 7));
        let batch = RecordBatch::try_from_iter([("port", Arc::new(ports) as ArrayRef)]).unwrap();
        let properties = WriterProperties::builder()
            .set_dictionary_enabled(false)
            .set_encoding(Encoding::DELTA_BINARY_PACKED)
            .set_data_page_row_count_limit(100)
            .set_write_batch_size(10)
            .build();
        let (file, metadata) = file(&batch, properties);
        let chunk = metadata.row_group(0).column(0);
        let locations = &metadata.offset_index().unwrap()[0][0].page_locations()[..];
        let wanted = 150..151;
        let parts = parts(&file, &chunk_ranges(chunk, Some(locations), &wanted));
        let pages = ColumnPages::read(chunk, Some(locations), 1_000, &wanted, &parts).unwrap();
        let rows = |plain: &[u8], most| {
            pages.rows_with(plain, most).unwrap().map(|rows| rows.into_iter().flatten().collect::<Vec<_>>())
        };
        let page = Some((100..200).collect());
        assert_eq!(rows(&3u32.to_le_bytes(), 100), page);
        assert_eq!(rows(&3u32.to_le_bytes(), 99), None);
        assert_eq!(rows(&[3], 100), page);
    }

    #[test]
    fn damage_is_an_error_or_rows_but_no_panic() {
        let names: StringArray = (0..3_000).map(|n| (n % 5 > 0).then(|| format!("name {}", n % 400))).collect();
        let batch = RecordBatch::try_from_iter([("name", Arc::new(names) as ArrayRef)]).unwrap();
        let properties = WriterProperties::builder().set_data_page_row_count_limit(500).set_write_batch_size(10);
        let (file, metadata) = file(&batch, properties.build());
        let chunk = metadata.row_group(0).column(0);
        let (start, length) = chunk.byte_range();
        let mut random = Random(7);
        for _ in 0..3_000 {
            let mut damaged = file.to_vec();
            for _ in 0..1 + random.below(3) {
                damaged[(start + random.below(length)) as usize] = random.below(256) as u8;
            }
            for locations in [None, metadata.offset_index().map(|index| &index[0][0].page_locations()[..])] {
                let parts = parts(&damaged.clone().into(), &chunk_ranges(chunk, locations, &(0..3_000)));
                let pages = ColumnPages::read(chunk, locations, 3_000, &(0..3_000), &parts);
                if let Ok(Some(found)) = pages.and_then(|pages| pages.rows_with(b"name 77", 3_000)) {
                    let ends: Vec<usize> = found.iter().flat_map(|rows| [rows.start, rows.end]).collect();
                    assert!(ends.is_sorted() && ends.iter().all(|end| *end <= 3_000), "{found:?}");
                }
            }
        }
    }
}
