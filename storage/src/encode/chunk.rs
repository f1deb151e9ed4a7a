//! The pages of one column in a row group, and what the file says of them.

use super::SegmentProfile;
use super::page::{self, PageHeader, PageKind, PagePlace};
use bytes::Bytes;
use parquet::basic::{BoundaryOrder, Compression, Encoding, Type, ZstdLevel};
use parquet::bloom_filter::Sbbf;
use parquet::column::writer::ColumnCloseResult;
use parquet::data_type::{ByteArray, FixedLenByteArray};
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::{ColumnChunkMetaData, ColumnIndexBuilder, OffsetIndexBuilder, PageEncodingStats};
use parquet::file::statistics::{Statistics, ValueStatistics};
use parquet::schema::types::ColumnDescPtr;

/// Longest text that stands in statistics.
const BOUND_BYTES_MAX: usize = 64;

/// The values of one page, encoded.
pub(super) struct PageData<'a> {
    pub(super) rows: usize,
    /// Rows without a value.
    pub(super) nulls: usize,
    /// Which rows have one (RLE, one bit); empty in a column that always has.
    pub(super) levels: &'a [u8],
    pub(super) values: &'a [u8],
    pub(super) encoding: Encoding,
    /// Smallest and largest value, if the column has statistics and the page values.
    pub(super) bounds: Option<(Bound, Bound)>,
}

/// A smallest or largest value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Bound {
    /// Of an unsigned column.
    Unsigned(u64),
    Signed(i64),
    /// Of a floating-point one, as [`in_order`] has it.
    Float(i64),
    /// Of fixed length, as long as the column says, with zeros before it.
    Bytes(u128),
    Text(Vec<u8>),
}

/// A number as one whose order is the same, -0 before 0 (IEEE 754, totalOrder).
pub(super) fn in_order(number: f64) -> i64 {
    let bits = number.to_bits() as i64;
    bits ^ ((bits >> 63) as u64 >> 1) as i64
}

/// The number that [`in_order`] was given.
fn number_of(in_order: i64) -> f64 {
    f64::from_bits((in_order ^ ((in_order >> 63) as u64 >> 1) as i64) as u64)
}

struct Written {
    place: PagePlace,
    rows: usize,
    nulls: usize,
    bounds: Option<(Bound, Bound)>,
    encoding: Encoding,
}

/// One column chunk under construction.
pub(super) struct Chunk {
    column: ColumnDescPtr,
    profile: SegmentProfile,
    /// Whether it has statistics.
    statistics: bool,
    data: Vec<u8>,
    pages: Vec<Written>,
}

impl Chunk {
    pub(super) fn new(column: ColumnDescPtr, profile: SegmentProfile, statistics: bool) -> Chunk {
        Chunk { column, profile, statistics, data: Vec::new(), pages: Vec::new() }
    }

    /// Adds a page.
    pub(super) fn page(&mut self, page: PageData<'_>, zstd: &mut Zstd) -> Result<()> {
        let place = match self.profile {
            SegmentProfile::Tuned => self.page_v2(&page, zstd)?,
            SegmentProfile::Compatible => self.page_v1(&page, zstd)?,
        };
        let PageData { rows, nulls, encoding, bounds, .. } = page;
        self.pages.push(Written { place, rows, nulls, bounds, encoding });
        Ok(())
    }

    /// Version 2: levels as they are, then values, compressed where that makes them smaller.
    fn page_v2(&mut self, page: &PageData<'_>, zstd: &mut Zstd) -> Result<PagePlace> {
        // Hashes do not get smaller.
        let compressed = match page.encoding {
            Encoding::PLAIN if self.column.physical_type() == Type::INT64 => page.values,
            _ => zstd.compress(page.values)?,
        };
        let is_compressed = compressed.len() < page.values.len();
        let header = PageHeader {
            kind: PageKind::DataV2 { nulls: page.nulls, levels: page.levels.len(), is_compressed },
            values: page.rows,
            encoding: page.encoding,
            uncompressed: page.levels.len() + page.values.len(),
        };
        page::append(&mut self.data, &header, [page.levels, if is_compressed { compressed } else { page.values }])
    }

    /// Version 1: levels behind their length, and values, compressed together.
    fn page_v1(&mut self, page: &PageData<'_>, zstd: &mut Zstd) -> Result<PagePlace> {
        let mut whole = Vec::with_capacity(4 + page.levels.len() + page.values.len());
        if self.column.max_def_level() > 0 {
            whole.extend_from_slice(&(page.levels.len() as u32).to_le_bytes());
            whole.extend_from_slice(page.levels);
        }
        whole.extend_from_slice(page.values);
        let header = PageHeader {
            kind: PageKind::DataV1,
            values: page.rows,
            encoding: page.encoding,
            uncompressed: whole.len(),
        };
        page::append(&mut self.data, &header, [zstd.compress(&whole)?, &[]])
    }

    /// The chunk, ready for the file. `dictionary`: number of entries, and these as PLAIN.
    pub(super) fn finish(
        self,
        dictionary: Option<(usize, &[u8])>,
        bloom_filter: Option<Sbbf>,
        zstd: &mut Zstd,
    ) -> Result<(Bytes, ColumnCloseResult)> {
        let Chunk { column, profile: _, statistics, data, pages } = self;
        let mut file = Vec::new();
        let mut encodings = vec![];
        let (mut compressed, mut uncompressed) = (0, 0);
        let mut count = |place: &PagePlace, encoding| {
            let page_type = place.kind;
            compressed += place.length as i64;
            uncompressed += place.uncompressed as i64;
            match encodings.last_mut() {
                Some(PageEncodingStats { page_type: last_type, encoding: last, count })
                    if (*last_type, *last) == (page_type, encoding) =>
                {
                    *count += 1;
                }
                _ => encodings.push(PageEncodingStats { page_type, encoding, count: 1 }),
            }
        };
        if let Some((entries, plain)) = dictionary {
            let header = PageHeader {
                kind: PageKind::Dictionary,
                values: entries,
                encoding: Encoding::PLAIN,
                uncompressed: plain.len(),
            };
            count(&page::append(&mut file, &header, [zstd.compress(plain)?, &[]])?, Encoding::PLAIN);
        }
        let first = file.len() as i64;
        let mut offsets = OffsetIndexBuilder::new();
        for page in &pages {
            count(&page.place, page.encoding);
            offsets.append_offset_and_size(first + page.place.offset as i64, i32::try_from(page.place.length)?);
            offsets.append_row_count(page.rows as i64);
        }
        file.extend_from_slice(&data);
        let rows: usize = pages.iter().map(|page| page.rows).sum();
        let mut masks: Vec<Encoding> = encodings.iter().map(|page| page.encoding).collect();
        // Of the levels.
        masks.push(Encoding::RLE);
        let mut meta = ColumnChunkMetaData::builder(column.clone())
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .set_encodings(masks)
            .set_page_encoding_stats(encodings)
            .set_total_compressed_size(compressed)
            .set_total_uncompressed_size(uncompressed)
            .set_num_values(rows as i64)
            .set_data_page_offset(first)
            .set_dictionary_page_offset(dictionary.map(|_| 0));
        let all_bounded = pages.iter().all(|page| page.bounds.is_some() || page.nulls == page.rows);
        if statistics && all_bounded {
            meta = meta.set_statistics(chunk_statistics(&column, &pages)?);
        }
        let close = ColumnCloseResult {
            bytes_written: file.len() as u64,
            rows_written: rows as u64,
            metadata: meta.build()?,
            bloom_filter,
            column_index: match statistics && all_bounded {
                true => Some(column_index(&column, &pages)?.build()?),
                false => None,
            },
            offset_index: Some(offsets.build()),
        };
        Ok((file.into(), close))
    }
}

/// Smallest and largest value of each page.
fn column_index(column: &ColumnDescPtr, pages: &[Written]) -> Result<ColumnIndexBuilder> {
    let mut index = ColumnIndexBuilder::new(column.physical_type());
    for page in pages {
        let (min, max) = match &page.bounds {
            Some((min, max)) => (plain_bound(column, &cut_min(min).0), plain_bound(column, &cut_max(max).0)),
            None => (Vec::new(), Vec::new()),
        };
        index.append(page.bounds.is_none(), min, max, page.nulls as i64);
    }
    let bounds: Vec<_> = pages.iter().filter_map(|page| page.bounds.as_ref()).collect();
    let up = bounds.is_sorted_by(|a, b| a.0 <= b.0 && a.1 <= b.1);
    let down = bounds.is_sorted_by(|a, b| a.0 >= b.0 && a.1 >= b.1);
    index.set_boundary_order(match (up, down) {
        (true, _) => BoundaryOrder::ASCENDING,
        (false, true) => BoundaryOrder::DESCENDING,
        (false, false) => BoundaryOrder::UNORDERED,
    });
    Ok(index)
}

fn chunk_statistics(column: &ColumnDescPtr, pages: &[Written]) -> Result<Statistics> {
    let nulls = Some(pages.iter().map(|page| page.nulls as u64).sum());
    let bounds = || pages.iter().filter_map(|page| page.bounds.as_ref());
    let (min, min_is_exact) = bounds().map(|(min, _)| min).min().map(cut_min).unzip();
    let (max, max_is_exact) = bounds().map(|(_, max)| max).max().map(cut_max).unzip();
    let plain = |bound: &Bound| plain_bound(column, bound);
    let (min, max) = (min.as_ref().map(plain), max.as_ref().map(plain));
    macro_rules! statistics {
        ($kind:ident, $value:expr) => {{
            let value = $value;
            Statistics::$kind(
                ValueStatistics::new(min.map(value), max.map(value), None, nulls, false)
                    .with_min_is_exact(min_is_exact == Some(true))
                    .with_max_is_exact(max_is_exact == Some(true)),
            )
        }};
    }
    fn number<const N: usize>(plain: Vec<u8>) -> [u8; N] {
        plain.first_chunk().copied().unwrap_or([0; N])
    }
    Ok(match column.physical_type() {
        Type::BOOLEAN => statistics!(Boolean, |plain: Vec<u8>| plain == [1]),
        Type::INT32 => statistics!(Int32, |plain| i32::from_le_bytes(number(plain))),
        Type::INT64 => statistics!(Int64, |plain| i64::from_le_bytes(number(plain))),
        Type::DOUBLE => statistics!(Double, |plain| f64::from_le_bytes(number(plain))),
        Type::BYTE_ARRAY => statistics!(ByteArray, ByteArray::from),
        Type::FIXED_LEN_BYTE_ARRAY => {
            statistics!(FixedLenByteArray, |plain| FixedLenByteArray::from(ByteArray::from(plain)))
        }
        other => return Err(ParquetError::General(format!("no column of a table is {other}"))),
    })
}

/// As statistics store it.
fn plain_bound(column: &ColumnDescPtr, bound: &Bound) -> Vec<u8> {
    let bits = match bound {
        Bound::Unsigned(value) => *value,
        Bound::Signed(value) => *value as u64,
        Bound::Float(value) => number_of(*value).to_bits(),
        Bound::Bytes(value) => return value.to_be_bytes()[16 - column.type_length().clamp(0, 16) as usize..].to_vec(),
        Bound::Text(value) => return value.clone(),
    };
    let bytes = match column.physical_type() {
        Type::BOOLEAN => 1,
        Type::INT32 => 4,
        _ => 8,
    };
    bits.to_le_bytes()[..bytes].to_vec()
}

/// Not greater than `bound` and of limited length; and whether it is the same.
fn cut_min(bound: &Bound) -> (Bound, bool) {
    match bound {
        Bound::Text(text) if text.len() > BOUND_BYTES_MAX => (Bound::Text(start_of(text).to_vec()), false),
        // Of the two zeros the format wants the lesser here, and the greater in `cut_max`.
        Bound::Float(0) => (Bound::Float(in_order(-0.0)), true),
        other => (other.clone(), true),
    }
}

/// Not less than `bound` and of limited length, unless there is no such text; and whether it is the same.
fn cut_max(bound: &Bound) -> (Bound, bool) {
    let text = match bound {
        Bound::Text(text) => text,
        Bound::Float(value) if *value == in_order(-0.0) => return (Bound::Float(0), true),
        other => return (other.clone(), true),
    };
    if text.len() <= BOUND_BYTES_MAX {
        return (bound.clone(), true);
    }
    let mut start = String::from_utf8_lossy(start_of(text)).into_owned();
    // The last letter that has a next one becomes that, and what follows it goes.
    while let Some(last) = start.pop() {
        if let Some(next) = char::from_u32(last as u32 + 1) {
            start.push(next);
            return (Bound::Text(start.into_bytes()), false);
        }
    }
    (bound.clone(), true)
}

/// What fits, in whole letters.
fn start_of(text: &[u8]) -> &[u8] {
    let mut end = BOUND_BYTES_MAX;
    while end > 0 && text[end] & 0xc0 == 0x80 {
        end -= 1;
    }
    &text[..end]
}

/// A zstd context and its buffer, made once a segment.
pub(super) struct Zstd {
    context: zstd::bulk::Compressor<'static>,
    out: Vec<u8>,
}

impl Zstd {
    pub(super) fn new() -> Result<Zstd> {
        let context = zstd::bulk::Compressor::new(ZstdLevel::default().compression_level()).map_err(failed)?;
        Ok(Zstd { context, out: Vec::new() })
    }

    /// `data` as one frame.
    fn compress(&mut self, data: &[u8]) -> Result<&[u8]> {
        self.out.resize(zstd::zstd_safe::compress_bound(data.len()), 0);
        let length = self.context.compress_to_buffer(data, &mut self.out[..]).map_err(failed)?;
        Ok(&self.out[..length])
    }
}

fn failed(error: std::io::Error) -> ParquetError {
    ParquetError::External(Box::new(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_bounded_from_both_sides() {
        let text = |text: &str| Bound::Text(text.as_bytes().to_vec());
        assert_eq!(cut_max(&text("short")), (text("short"), true));
        let long = text(&"é".repeat(100));
        let (min, max) = (cut_min(&long), cut_max(&long));
        assert_eq!(min, (text(&"é".repeat(32)), false));
        assert_eq!(max, (text(&format!("{}ê", "é".repeat(31))), false));
        assert!(min.0 < long && long < max.0);
        // A cut in the middle of a letter takes none of it.
        let odd = text(&format!("a{}", "é".repeat(100)));
        assert_eq!(cut_min(&odd).0, text(&format!("a{}", "é".repeat(31))));
        let last = text(&char::MAX.to_string().repeat(100));
        assert_eq!(cut_max(&last), (last.clone(), true));
    }

    #[test]
    fn floating_point_numbers_are_ordered_as_numbers_are() {
        let numbers =
            [f64::NEG_INFINITY, -1e300, -1.5, -1e-310, -0.0, 0.0, 5e-324, 0.1, 1.0, 2.0, f64::MAX, f64::INFINITY];
        assert!(numbers.is_sorted_by(|a, b| in_order(*a) < in_order(*b)));
        for number in numbers {
            assert_eq!(number_of(in_order(number)).to_bits(), number.to_bits());
        }
        let bound = |number| Bound::Float(in_order(number));
        for zero in [0.0, -0.0] {
            assert_eq!((cut_min(&bound(zero)).0, cut_max(&bound(zero)).0), (bound(-0.0), bound(0.0)));
        }
        assert_eq!((cut_min(&bound(-3.0)), cut_max(&bound(3.0))), ((bound(-3.0), true), (bound(3.0), true)));
    }
}
