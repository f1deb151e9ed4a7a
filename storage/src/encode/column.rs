//! One column of a row group: rows picked from batches, encoded page by page.
//!
//! The plain way is `parquet::arrow::ArrowWriter`, against which `tests.rs` holds this. What changed: its
//! dictionaries hash every value of every row, of addresses with an allocation each, and of texts although the batches
//! have them numbered already; and it takes rows that were copied into sorted batches before. Here rows are picked where
//! they lie, a text is looked up once a batch, and bloom filters get distinct values only.

use super::SegmentProfile;
use super::bits::{self, Word};
use super::chunk::{Bound, Chunk, PageData, Zstd, in_order};
use super::dictionary::{NONE, Numbers, Texts};
use crate::cells::is_all_zero;
use crate::table::{ColumnInfo, Encoding};
use arrow::array::{Array, ArrayRef, ArrowPrimitiveType, AsArray};
use arrow::buffer::{BooleanBuffer, NullBuffer};
use arrow::datatypes::{
    DataType, Float64Type, Int32Type, Int64Type, TimestampMicrosecondType, UInt8Type, UInt16Type, UInt32Type,
    UInt64Type,
};
use bytes::Bytes;
use parquet::basic::Encoding as ParquetEncoding;
use parquet::bloom_filter::Sbbf;
use parquet::column::writer::ColumnCloseResult;
use parquet::errors::{ParquetError, Result};
use parquet::schema::types::ColumnDescPtr;
use std::collections::HashMap;
use std::sync::Arc;

/// Share of values a bloom filter takes for present though they are not, at most.
const BLOOM_FALSE_POSITIVES: f64 = 0.001;
/// Distinct numbers of a column beyond which a filter says no too rarely to be worth its bytes: half of all ports.
const BLOOM_NUMBERS_MAX: usize = 1 << 15;
/// Texts of a dictionary; once it has so many bytes, later pages have their texts as they are.
const DICTIONARY_BYTES_MAX: usize = 16 << 20;

/// Where a row lies: number of the batch, of those the page takes rows from, and of the row in it.
pub(crate) type Place = (u32, u32);

/// A column of a row group under construction.
pub(super) struct Column {
    info: &'static ColumnInfo,
    nullable: bool,
    encoding: Encoding,
    values: Values,
    chunk: Chunk,
}

/// Values of the page at hand, and the dictionary of all.
enum Values {
    /// Of up to 32 bits.
    Short(Vec<u32>, Numbers<u64>),
    Long(Vec<u64>, Numbers<u64>),
    /// 64 bits with a sign.
    Signed(Vec<u64>, Numbers<u64>),
    /// Floating point, as its bits.
    Float(Vec<u64>, Numbers<u64>),
    Flags(Vec<bool>),
    /// Of fixed length, as numbers whose order is theirs.
    Bytes(Vec<u128>, Numbers<u128>, usize),
    Texts(Box<TextValues>),
}

#[derive(Default)]
struct TextValues {
    numbers: Vec<u32>,
    texts: Texts,
    /// Dictionaries of batches seen: what each of their numbers is here, `NONE` if it was not asked for.
    known: HashMap<usize, usize>,
    here: Vec<Vec<u32>>,
    /// By text: the page that had it last.
    page_of: Vec<u32>,
    page: u32,
    /// The dictionary, once it is full: then `texts` and `known` are those of the page at hand, which is written as it is.
    full: Option<Full>,
}

/// A dictionary that takes no more.
struct Full {
    texts: Texts,
    /// Of all texts, later ones as well; none in a column without.
    bloom: Option<Sbbf>,
}

/// Buffers every column uses in turn.
#[derive(Default)]
pub(super) struct Scratch {
    valid: Vec<bool>,
    numbers: Vec<u32>,
    levels: Vec<u8>,
    encoded: Vec<u8>,
}

impl Column {
    /// `is_zero`: nothing else comes.
    pub(super) fn new(
        info: &'static ColumnInfo,
        data_type: &DataType,
        nullable: bool,
        column: ColumnDescPtr,
        profile: SegmentProfile,
        is_zero: bool,
    ) -> Result<Column> {
        // A place for each number of up to 16 bits, if the column has a dictionary at all.
        let places = |bits: u32| Numbers::new(1 << bits);
        let values = match data_type {
            DataType::UInt8 => Values::Short(Vec::new(), places(8)),
            DataType::UInt16
                if info.encoding == Encoding::Dict || info.bloom || profile == SegmentProfile::Compatible =>
            {
                Values::Short(Vec::new(), places(16))
            }
            DataType::UInt16 | DataType::UInt32 => Values::Short(Vec::new(), places(8)),
            DataType::UInt64 => Values::Long(Vec::new(), places(8)),
            DataType::Int64 | DataType::Timestamp(_, _) => Values::Signed(Vec::new(), places(8)),
            DataType::Float64 => Values::Float(Vec::new(), places(8)),
            DataType::Boolean => Values::Flags(Vec::new()),
            DataType::FixedSizeBinary(length @ 1..=16) => Values::Bytes(Vec::new(), Numbers::new(0), *length as usize),
            DataType::Dictionary(_, _) => Values::Texts(Box::default()),
            other => return Err(ParquetError::General(format!("no column of a table is {other}"))),
        };
        let encoding = match (profile, info.encoding) {
            // One entry, and one run a page.
            _ if is_zero => Encoding::Dict,
            (SegmentProfile::Compatible, Encoding::Delta | Encoding::Split) => match data_type {
                DataType::UInt8 | DataType::UInt16 => Encoding::Dict,
                _ => Encoding::Plain,
            },
            (_, encoding) => encoding,
        };
        Ok(Column { info, nullable, encoding, values, chunk: Chunk::new(column, profile, info.statistics) })
    }

    /// Adds a page of the rows at `places` in `arrays`.
    pub(super) fn page(
        &mut self,
        arrays: &[&ArrayRef],
        places: &[Place],
        scratch: &mut Scratch,
        zstd: &mut Zstd,
    ) -> Result<()> {
        let Scratch { valid, numbers, levels, encoded } = scratch;
        levels.clear();
        encoded.clear();
        let rows = places.len();
        let nulls = pick_valid(arrays, places, valid);
        if self.nullable {
            match nulls {
                0 => bits::run(levels, 1, 1, rows),
                _ => bits::flags(levels, valid),
            }
        }
        let (encoding, bounds) = if nulls == rows {
            (ParquetEncoding::PLAIN, None)
        } else {
            let valid = if nulls == 0 { &[][..] } else { &valid[..] };
            self.values.pick(arrays, places, valid)?;
            self.values.encode(self.encoding, self.info, numbers, encoded)?
        };
        self.chunk.page(PageData { rows, nulls, levels, values: encoded, encoding, bounds }, zstd)
    }

    /// The column chunk, ready for the file.
    pub(super) fn finish(self, zstd: &mut Zstd) -> Result<(Bytes, ColumnCloseResult)> {
        let Column { info, values, chunk, encoding, .. } = self;
        let mut plain = Vec::new();
        let (mut entries, mut bloom) = (0, None);
        match values {
            Values::Short(_, all) => {
                entries = all.values.len();
                all.values.iter().for_each(|value| plain.extend_from_slice(&(*value as u32).to_le_bytes()));
                let is_wanted = info.bloom && entries <= BLOOM_NUMBERS_MAX;
                bloom = is_wanted.then(|| bloom_of(entries, plain.chunks_exact(4))).transpose()?;
            }
            Values::Long(_, all) | Values::Signed(_, all) | Values::Float(_, all) => {
                entries = all.values.len();
                bits::plain(&mut plain, &all.values);
            }
            Values::Flags(_) => {}
            Values::Bytes(_, all, length) => {
                entries = all.values.len();
                all.values.iter().for_each(|value| plain.extend_from_slice(&value.to_be_bytes()[16 - length..]));
                bloom = info.bloom.then(|| bloom_of(entries, plain.chunks_exact(length))).transpose()?;
            }
            Values::Texts(text) => {
                let texts = text.full.as_ref().map_or(&text.texts, |full| &full.texts);
                entries = texts.len();
                texts.iter().for_each(|text| plain_text(&mut plain, text));
                bloom = match text.full {
                    Some(Full { bloom, .. }) => bloom.map(|mut bloom| {
                        bloom.fold_to_target_fpp(BLOOM_FALSE_POSITIVES);
                        bloom
                    }),
                    None => info.bloom.then(|| bloom_of(entries, texts.iter())).transpose()?,
                };
            }
        }
        let has_dictionary = encoding == Encoding::Dict && entries > 0;
        chunk.finish(has_dictionary.then_some((entries, &plain[..])), bloom, zstd)
    }
}

/// Whether each row has a value; returns how many have none. `valid` is not filled if all have.
fn pick_valid(arrays: &[&ArrayRef], places: &[Place], valid: &mut Vec<bool>) -> usize {
    if arrays.iter().all(|array| array.null_count() == 0) {
        return 0;
    }
    if arrays.iter().all(|array| array.null_count() == array.len()) {
        valid.clear();
        valid.resize(places.len(), false);
        return places.len();
    }
    // One of all rows for those without.
    let longest = arrays.iter().map(|array| array.len()).max().unwrap_or(0);
    let all = BooleanBuffer::new_set(longest);
    let flags: Vec<_> = arrays.iter().map(|array| array.nulls().map_or(&all, NullBuffer::inner)).collect();
    let bits: Vec<_> = flags.iter().map(|flags| (flags.values(), flags.offset())).collect();
    valid.clear();
    valid.extend(places.iter().map(|&(batch, row)| {
        let (bytes, offset) = bits[batch as usize];
        let at = offset + row as usize;
        bytes[at / 8] >> (at % 8) & 1 != 0
    }));
    valid.iter().map(|valid| usize::from(!*valid)).sum()
}

/// Adds the values of the rows that have one. Without a branch: which have is anyone's guess.
fn pick_present<V: Copy + Default>(
    places: &[Place],
    valid: &[bool],
    out: &mut Vec<V>,
    value: impl Fn(usize, usize) -> V,
) {
    let first = out.len();
    out.resize(first + places.len(), V::default());
    let mut at = first;
    for (&(batch, row), valid) in places.iter().zip(valid) {
        out[at] = value(batch as usize, row as usize);
        at += usize::from(*valid);
    }
    out.truncate(at);
}

/// The rows that have a value; all of them if `valid` is empty.
fn present<'a>(places: &'a [Place], valid: &'a [bool]) -> impl Iterator<Item = (usize, usize)> + 'a {
    let valid = valid.iter().copied().chain(std::iter::repeat_n(true, if valid.is_empty() { places.len() } else { 0 }));
    places.iter().zip(valid).filter(|(_, valid)| *valid).map(|(&(batch, row), _)| (batch as usize, row as usize))
}

fn pick<T: ArrowPrimitiveType, V>(
    arrays: &[&ArrayRef],
    places: &[Place],
    valid: &[bool],
    out: &mut Vec<V>,
    convert: impl Fn(T::Native) -> V,
) where
    V: Copy + Default,
{
    let slices: Vec<&[T::Native]> = arrays.iter().map(|array| &array.as_primitive::<T>().values()[..]).collect();
    if valid.is_empty() {
        out.extend(places.iter().map(|&(batch, row)| convert(slices[batch as usize][row as usize])));
    } else {
        pick_present(places, valid, out, |batch, row| convert(slices[batch][row]));
    }
}

impl Values {
    /// Takes the values of a page.
    fn pick(&mut self, arrays: &[&ArrayRef], places: &[Place], valid: &[bool]) -> Result<()> {
        let data_type = arrays.first().map_or(&DataType::Null, |array| array.data_type());
        match self {
            Values::Short(out, _) => {
                out.clear();
                match data_type {
                    DataType::UInt8 => pick::<UInt8Type, _>(arrays, places, valid, out, u32::from),
                    DataType::UInt16 => pick::<UInt16Type, _>(arrays, places, valid, out, u32::from),
                    _ if valid.is_empty() && arrays.iter().all(|array| is_all_zero(array)) => {
                        out.resize(places.len(), 0)
                    }
                    _ => pick::<UInt32Type, _>(arrays, places, valid, out, |value| value),
                }
            }
            Values::Long(out, _) => {
                out.clear();
                pick::<UInt64Type, _>(arrays, places, valid, out, |value| value);
            }
            Values::Signed(out, _) => {
                out.clear();
                match data_type {
                    DataType::Int64 => pick::<Int64Type, _>(arrays, places, valid, out, |value| value as u64),
                    _ => pick::<TimestampMicrosecondType, _>(arrays, places, valid, out, |value| value as u64),
                }
            }
            Values::Float(out, _) => {
                out.clear();
                pick::<Float64Type, _>(arrays, places, valid, out, f64::to_bits);
            }
            Values::Flags(out) => {
                out.clear();
                let flags: Vec<_> = arrays.iter().map(|array| array.as_boolean()).collect();
                out.extend(present(places, valid).map(|(batch, row)| flags[batch].value(row)));
            }
            Values::Bytes(out, _, 16) => pick_bytes::<16>(arrays, places, valid, out, u128::from_be_bytes),
            Values::Bytes(out, _, 6) => pick_bytes::<6>(arrays, places, valid, out, |bytes| {
                let mut all = [0; 16];
                all[10..].copy_from_slice(&bytes);
                u128::from_be_bytes(all)
            }),
            Values::Bytes(_, _, length) => {
                return Err(ParquetError::General(format!("no column of a table has {length} bytes a value")));
            }
            Values::Texts(texts) => texts.pick(arrays, places, valid)?,
        }
        Ok(())
    }

    /// Encodes the values of a page, of which there are some.
    fn encode(
        &mut self,
        encoding: Encoding,
        info: &ColumnInfo,
        numbers: &mut Vec<u32>,
        out: &mut Vec<u8>,
    ) -> Result<(ParquetEncoding, Option<(Bound, Bound)>)> {
        let of = |(least, most): (Bound, Bound)| info.statistics.then_some((least, most));
        Ok(match self {
            Values::Short(values, all) => {
                let (least, most) = range(values, |value| *value);
                let bounds = of((Bound::Unsigned(least.into()), Bound::Unsigned(most.into())));
                if info.bloom && encoding != Encoding::Dict {
                    all.number_all(values, u64::from, numbers);
                }
                if least == most && encoding == Encoding::Dict {
                    return Ok((constant(all.number(least.into()), all.values.len(), values.len(), out), bounds));
                }
                (words(encoding, values, all, u64::from, numbers, out), bounds)
            }
            Values::Long(values, all) => {
                let bounds = match info.statistics {
                    true => {
                        let (least, most) = range(values, |value| *value);
                        of((Bound::Unsigned(least), Bound::Unsigned(most)))
                    }
                    false => None,
                };
                (words(encoding, values, all, |value| value, numbers, out), bounds)
            }
            Values::Signed(values, all) => {
                let (least, most) = range(values, |value| *value as i64);
                let bounds = of((Bound::Signed(least), Bound::Signed(most)));
                (words(encoding, values, all, |value| value, numbers, out), bounds)
            }
            Values::Float(values, all) => {
                // Readers order what is no number as they like: then there are no bounds.
                let bounds = match values.iter().any(|bits| f64::from_bits(*bits).is_nan()) {
                    false => {
                        let (least, most) = range(values, |bits| in_order(f64::from_bits(*bits)));
                        of((Bound::Float(least), Bound::Float(most)))
                    }
                    true => None,
                };
                (words(encoding, values, all, |value| value, numbers, out), bounds)
            }
            Values::Flags(values) => {
                out.extend(
                    values.chunks(8).map(|group| {
                        group.iter().enumerate().fold(0u8, |byte, (at, flag)| byte | u8::from(*flag) << at)
                    }),
                );
                let (least, most) = range(values, |flag| u8::from(*flag));
                (ParquetEncoding::PLAIN, of((Bound::Unsigned(least.into()), Bound::Unsigned(most.into()))))
            }
            Values::Bytes(values, all, length) => {
                let (least, most) = range_of_bytes(values);
                let bounds = of((Bound::Bytes(least), Bound::Bytes(most)));
                match encoding {
                    Encoding::Dict if least == most => {
                        (constant(all.number(least), all.values.len(), values.len(), out), bounds)
                    }
                    Encoding::Dict => {
                        all.number_all(values, |value| value, numbers);
                        indices(all.values.len(), numbers, out);
                        (ParquetEncoding::RLE_DICTIONARY, bounds)
                    }
                    _ => {
                        values.iter().for_each(|value| out.extend_from_slice(&value.to_be_bytes()[16 - *length..]));
                        (ParquetEncoding::PLAIN, bounds)
                    }
                }
            }
            Values::Texts(texts) => texts.encode(out, info.bloom)?,
        })
    }
}

fn pick_bytes<const N: usize>(
    arrays: &[&ArrayRef],
    places: &[Place],
    valid: &[bool],
    out: &mut Vec<u128>,
    convert: impl Fn([u8; N]) -> u128,
) {
    out.clear();
    let values: Vec<&[[u8; N]]> =
        arrays.iter().map(|array| array.as_fixed_size_binary().value_data().as_chunks::<N>().0).collect();
    if valid.is_empty() {
        out.extend(places.iter().map(|&(batch, row)| convert(values[batch as usize][row as usize])));
    } else {
        pick_present(places, valid, out, |batch, row| convert(values[batch][row]));
    }
}

/// Smallest and largest of some values, of which there is at least one; compared in lanes, so that no comparison waits for
/// the one before.
fn range<V, K: Copy + Ord>(values: &[V], key: impl Fn(&V) -> K) -> (K, K) {
    const LANES: usize = 8;
    let first = key(&values[0]);
    let (mut least, mut most) = ([first; LANES], [first; LANES]);
    let (lanes, rest) = values.as_chunks::<LANES>();
    for lane in lanes {
        for at in 0..LANES {
            let key = key(&lane[at]);
            least[at] = if key < least[at] { key } else { least[at] };
            most[at] = if key > most[at] { key } else { most[at] };
        }
    }
    let all = |lanes: [K; LANES]| rest.iter().map(&key).chain(lanes);
    (all(least).fold(first, K::min), all(most).fold(first, K::max))
}

/// `range` of addresses, most of which differ in their last bytes only.
fn range_of_bytes(values: &[u128]) -> (u128, u128) {
    const LOW: u128 = u64::MAX as u128;
    let high = values[0] & !LOW;
    if values.iter().fold(0, |all, value| all | (value ^ high) >> 64) != 0 {
        return range(values, |value| *value);
    }
    let (least, most) = range(values, |value| *value as u64);
    (high | u128::from(least), high | u128::from(most))
}

fn words<W: Word>(
    encoding: Encoding,
    values: &[W],
    all: &mut Numbers<u64>,
    convert: impl Fn(W) -> u64,
    numbers: &mut Vec<u32>,
    out: &mut Vec<u8>,
) -> ParquetEncoding {
    match encoding {
        Encoding::Plain => {
            bits::plain(out, values);
            ParquetEncoding::PLAIN
        }
        Encoding::Split => {
            bits::split(out, values);
            ParquetEncoding::BYTE_STREAM_SPLIT
        }
        Encoding::Delta => {
            bits::delta(out, values);
            ParquetEncoding::DELTA_BINARY_PACKED
        }
        Encoding::Dict => {
            all.number_all(values, convert, numbers);
            indices(all.values.len(), numbers, out);
            ParquetEncoding::RLE_DICTIONARY
        }
    }
}

/// A page of one number.
fn constant(number: u32, entries: usize, rows: usize, out: &mut Vec<u8>) -> ParquetEncoding {
    let width = bits::width_of(entries);
    out.push(width as u8);
    bits::run(out, width, number, rows);
    ParquetEncoding::RLE_DICTIONARY
}

/// A page of numbers of dictionary entries, of which there are `entries` so far.
fn indices(entries: usize, numbers: &[u32], out: &mut Vec<u8>) {
    let width = bits::width_of(entries);
    out.push(width as u8);
    bits::hybrid(out, width, numbers);
}

fn bloom_of<'a>(entries: usize, values: impl Iterator<Item = &'a [u8]>) -> Result<Sbbf> {
    let mut bloom = Sbbf::new_with_ndv_fpp(entries.max(1) as u64, BLOOM_FALSE_POSITIVES)?;
    values.for_each(|value| bloom.insert(value));
    Ok(bloom)
}

fn plain_text(out: &mut Vec<u8>, text: &[u8]) {
    out.extend_from_slice(&(text.len() as u32).to_le_bytes());
    out.extend_from_slice(text);
}

impl TextValues {
    fn pick(&mut self, arrays: &[&ArrayRef], places: &[Place], valid: &[bool]) -> Result<()> {
        if self.full.is_some() {
            self.texts = Texts::default();
            self.known.clear();
            self.here.clear();
            self.page_of.clear();
        }
        let columns: Vec<_> = arrays.iter().map(|array| array.as_dictionary::<Int32Type>()).collect();
        let dictionaries: Vec<usize> = columns
            .iter()
            .map(|column| {
                let values = column.values();
                // The batches outlive the row group, so an address means one dictionary.
                *self.known.entry(Arc::as_ptr(values).cast::<()>() as usize).or_insert_with(|| {
                    self.here.push(vec![NONE; values.len()]);
                    self.here.len() - 1
                })
            })
            .collect();
        let keys: Vec<&[i32]> = columns.iter().map(|column| &column.keys().values()[..]).collect();
        self.numbers.clear();
        for (batch, row) in present(places, valid) {
            let key = keys[batch][row] as usize;
            let mut number = self.here[dictionaries[batch]][key];
            if number == NONE {
                number = self.texts.number(columns[batch].values().as_string::<i32>().value(key).as_bytes());
                self.here[dictionaries[batch]][key] = number;
            }
            self.numbers.push(number);
        }
        Ok(())
    }

    fn encode(&mut self, out: &mut Vec<u8>, bloom: bool) -> Result<(ParquetEncoding, Option<(Bound, Bound)>)> {
        self.page += 1;
        self.page_of.resize(self.texts.len(), 0);
        let (mut min, mut max): (Option<&[u8]>, Option<&[u8]>) = (None, None);
        for number in &self.numbers {
            // Each text of the page is compared once.
            if std::mem::replace(&mut self.page_of[*number as usize], self.page) != self.page {
                let text = self.texts.get(*number);
                min = Some(min.map_or(text, |min| min.min(text)));
                max = Some(max.map_or(text, |max| max.max(text)));
            }
        }
        let bounds = min.zip(max).map(|(min, max)| (Bound::Text(min.to_vec()), Bound::Text(max.to_vec())));
        if let Some(full) = &mut self.full {
            self.numbers.iter().for_each(|number| plain_text(out, self.texts.get(*number)));
            if let Some(bloom) = &mut full.bloom {
                self.texts.iter().for_each(|text| bloom.insert(text));
            }
            return Ok((ParquetEncoding::PLAIN, bounds));
        }
        indices(self.texts.len(), &self.numbers, out);
        if self.texts.page_bytes() > DICTIONARY_BYTES_MAX {
            let bloom = bloom.then(|| bloom_of(super::ROW_GROUP_ROWS, self.texts.iter())).transpose()?;
            self.full = Some(Full { texts: std::mem::take(&mut self.texts), bloom });
        }
        Ok((ParquetEncoding::RLE_DICTIONARY, bounds))
    }
}
