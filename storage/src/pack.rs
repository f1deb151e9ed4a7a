//! Rows as the log has them: each column in the narrowest type that its values fit, and nothing at all for one that has
//! no values. That leaves a quarter of the bytes for some nanoseconds a row, of which lz4 has less to do, or nothing that
//! is worth its time.
//!
//! Types of a log only ever widen, and seldom: when they do, the log begins a new Arrow stream. What becomes of a column:
//!
//! | column | in the log |
//! |---|---|
//! | whole numbers | the smallest unsigned type |
//! | a time | `uint32`, microseconds since the field's metadata `since` |
//! | a dictionary | the same values, the smallest unsigned keys |
//! | 16-byte addresses | 4 bytes if all of them are IPv4 |
//! | nothing but null, or nothing but 0 | `null`; in the latter case the field has the metadata `zero` |
//! | others | the same |

use crate::StorageError;
use arrow::array::{
    Array, ArrayRef, ArrowNativeTypeOp, AsArray, DictionaryArray, FixedSizeBinaryArray, NullArray, PrimitiveArray,
    TimestampMicrosecondArray, new_null_array,
};
use arrow::buffer::Buffer;
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{
    ArrowDictionaryKeyType, ArrowNativeType, ArrowPrimitiveType, DataType, Field, Int32Type, Int64Type, Schema,
    SchemaRef, TimestampMicrosecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;
use std::collections::HashMap;
use std::sync::Arc;

/// A field of nothing but 0.
const ZERO: &str = "zero";
/// The time a field counts from, in µs since 1970.
const SINCE: &str = "since";
/// How much earlier than the first rows of a log later ones may be, µs: the rest of 2^32, about an hour, is for those after.
const EARLIER_US: i64 = 600_000_000;
/// Of an IPv4 address among 16-byte ones.
const MAPPED: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

/// What a column needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    Null,
    Zero,
    /// Numbers, keys or addresses of so many bytes.
    Bytes(u8),
    Since(i64),
    Whole,
}

impl Shape {
    /// What holds both.
    fn with(self, other: Shape) -> Shape {
        match (self, other) {
            _ if self == other => self,
            (Shape::Null, Shape::Zero) | (Shape::Zero, Shape::Null) => Shape::Bytes(1),
            (Shape::Null | Shape::Zero, shape) | (shape, Shape::Null | Shape::Zero) => shape,
            (Shape::Bytes(one), Shape::Bytes(other)) => Shape::Bytes(one.max(other)),
            _ => Shape::Whole,
        }
    }
}

/// Packs the batches of one log.
#[derive(Default)]
pub(crate) struct Packer {
    shapes: Vec<Shape>,
    schema: Option<SchemaRef>,
}

impl Packer {
    /// The batch, packed. Its schema is a new one if it has to be.
    pub(crate) fn pack(&mut self, batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
        let schema = match self.schema.take().filter(|_| !self.widen(batch)) {
            Some(schema) => schema,
            None => self.schema_of(batch),
        };
        let packed = batch.columns().iter().zip(&self.shapes).map(|(column, shape)| pack(column, *shape));
        let packed = RecordBatch::try_new(schema.clone(), packed.collect::<Result<_, _>>()?);
        self.schema = Some(schema);
        packed
    }

    /// Whether a column does not fit what it has been so far; it does afterwards.
    fn widen(&mut self, batch: &RecordBatch) -> bool {
        let is_first = self.shapes.is_empty();
        let mut widened = false;
        for (at, column) in batch.columns().iter().enumerate() {
            let before = self.shapes.get(at).copied();
            let needed = shape(column, before);
            let now = before.map_or(needed, |before| before.with(needed));
            match self.shapes.get_mut(at) {
                Some(shape) => *shape = now,
                None => self.shapes.push(now),
            }
            widened |= before != Some(now);
        }
        widened || is_first
    }

    fn schema_of(&mut self, batch: &RecordBatch) -> SchemaRef {
        if self.shapes.is_empty() {
            self.widen(batch);
        }
        let fields = batch.schema_ref().fields().iter().zip(&self.shapes);
        Arc::new(Schema::new(fields.map(|(field, shape)| packed_field(field, *shape)).collect::<Vec<_>>()))
    }
}

fn packed_field(field: &Field, shape: Shape) -> Field {
    let unsigned = |bytes| match bytes {
        1 => DataType::UInt8,
        2 => DataType::UInt16,
        _ => DataType::UInt32,
    };
    let note = |key: &str, value: String| HashMap::from([(key.to_owned(), value)]);
    let name = field.name();
    match (shape, field.data_type()) {
        (Shape::Null, _) => Field::new(name, DataType::Null, true),
        (Shape::Zero, _) => Field::new(name, DataType::Null, true).with_metadata(note(ZERO, String::new())),
        (Shape::Since(base), _) => {
            Field::new(name, DataType::UInt32, false).with_metadata(note(SINCE, base.to_string()))
        }
        (Shape::Bytes(bytes), DataType::FixedSizeBinary(_)) => {
            Field::new(name, DataType::FixedSizeBinary(bytes.into()), field.is_nullable())
        }
        (Shape::Bytes(bytes), DataType::Dictionary(_, values)) => {
            let keys = Box::new(unsigned(bytes));
            Field::new(name, DataType::Dictionary(keys, values.clone()), field.is_nullable())
        }
        (Shape::Bytes(bytes), _) => Field::new(name, unsigned(bytes), field.is_nullable()),
        (Shape::Whole, _) => field.clone(),
    }
}

/// What the values of a column need; `before`: what those before them did.
fn shape(column: &ArrayRef, before: Option<Shape>) -> Shape {
    if column.null_count() == column.len() {
        return Shape::Null;
    }
    match column.data_type() {
        DataType::UInt8 => numbers::<UInt8Type>(column),
        DataType::UInt16 => numbers::<UInt16Type>(column),
        DataType::UInt32 => numbers::<UInt32Type>(column),
        DataType::UInt64 => numbers::<UInt64Type>(column),
        DataType::Int64 => numbers::<Int64Type>(column),
        DataType::Timestamp(_, _) => {
            let times = column.as_primitive::<TimestampMicrosecondType>().values();
            let (least, most) =
                times.iter().fold((i64::MAX, i64::MIN), |(least, most), time| (least.min(*time), most.max(*time)));
            let base = match before {
                Some(Shape::Since(base)) => base,
                _ => least.saturating_sub(EARLIER_US),
            };
            let fits = |time: i64| time.checked_sub(base).is_some_and(|since| u32::try_from(since).is_ok());
            if fits(least) && fits(most) { Shape::Since(base) } else { Shape::Whole }
        }
        DataType::Dictionary(_, _) => match column.as_any_dictionary().values().len() {
            0..=0x100 => Shape::Bytes(1),
            0x101..=0x1_0000 => Shape::Bytes(2),
            _ => Shape::Whole,
        },
        DataType::FixedSizeBinary(16) => {
            let addresses = column.as_fixed_size_binary().value_data().as_chunks::<16>().0;
            let is_mapped = |address: &[u8; 16]| u128::from_be_bytes(*address) >> 32 == 0xffff;
            let all = match column.nulls() {
                None => addresses.iter().all(is_mapped),
                Some(nulls) => nulls.valid_indices().all(|row| is_mapped(&addresses[row])),
            };
            if all { Shape::Bytes(4) } else { Shape::Whole }
        }
        _ => Shape::Whole,
    }
}

fn numbers<T: ArrowPrimitiveType>(column: &ArrayRef) -> Shape {
    let column = column.as_primitive::<T>();
    // A row without a value has 0 there.
    let all = column.values().iter().fold(0, |all, value| all | value.as_usize() as u64);
    match all {
        0 if column.null_count() == 0 => Shape::Zero,
        _ => match (u64::BITS - all.leading_zeros()).div_ceil(8).max(1) {
            bytes if bytes as usize > T::Native::get_byte_width() / 2 => Shape::Whole,
            1 => Shape::Bytes(1),
            2 => Shape::Bytes(2),
            _ => Shape::Bytes(4),
        },
    }
}

fn pack(column: &ArrayRef, shape: Shape) -> Result<ArrayRef, ArrowError> {
    let bytes = match shape {
        Shape::Null | Shape::Zero => return Ok(Arc::new(NullArray::new(column.len()))),
        Shape::Whole => return Ok(column.clone()),
        Shape::Since(base) => {
            let times = column.as_primitive::<TimestampMicrosecondType>().values();
            let since: Vec<u32> = times.iter().map(|time| time.wrapping_sub(base) as u32).collect();
            return Ok(Arc::new(PrimitiveArray::<UInt32Type>::new(since.into(), None)));
        }
        Shape::Bytes(bytes) => bytes,
    };
    match (column.data_type(), bytes) {
        (DataType::UInt8, _) => Ok(column.clone()),
        (DataType::UInt16, _) => Ok(narrow::<UInt16Type>(column, bytes)),
        (DataType::UInt32, _) => Ok(narrow::<UInt32Type>(column, bytes)),
        (DataType::UInt64, _) => Ok(narrow::<UInt64Type>(column, bytes)),
        (DataType::Int64, _) => Ok(narrow::<Int64Type>(column, bytes)),
        (DataType::Dictionary(_, _), 1) => narrow_keys::<UInt8Type>(column),
        (DataType::Dictionary(_, _), _) => narrow_keys::<UInt16Type>(column),
        (DataType::FixedSizeBinary(16), _) => {
            let addresses = column.as_fixed_size_binary().value_data().as_chunks::<16>().0;
            let ends: Vec<[u8; 4]> = addresses.iter().map(|a| [a[12], a[13], a[14], a[15]]).collect();
            Ok(Arc::new(FixedSizeBinaryArray::try_new(
                4,
                Buffer::from_vec(ends.into_flattened()),
                column.nulls().cloned(),
            )?))
        }
        (other, _) => Err(ArrowError::SchemaError(format!("a column of {other} is not packed in {bytes} bytes"))),
    }
}

fn narrow<T: ArrowPrimitiveType>(column: &ArrayRef, bytes: u8) -> ArrayRef {
    let column = column.as_primitive::<T>();
    match bytes {
        1 => Arc::new(narrowed::<T, UInt8Type>(column)),
        2 => Arc::new(narrowed::<T, UInt16Type>(column)),
        _ => Arc::new(narrowed::<T, UInt32Type>(column)),
    }
}

fn narrowed<T: ArrowPrimitiveType, To: ArrowPrimitiveType>(column: &PrimitiveArray<T>) -> PrimitiveArray<To> {
    let values: Vec<To::Native> = column.values().iter().map(|value| To::Native::usize_as(value.as_usize())).collect();
    PrimitiveArray::new(values.into(), column.nulls().cloned())
}

fn narrow_keys<K: ArrowDictionaryKeyType>(column: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    let column = column.as_dictionary::<Int32Type>();
    Ok(Arc::new(DictionaryArray::<K>::try_new(narrowed(column.keys()), column.values().clone())?))
}

/// A batch of a log with the types it was packed from, which `schema` has; columns that `schema` does not have, and those
/// that were never packed, are as they are.
///
/// # Errors
/// If a column cannot have been packed from that.
pub(crate) fn unpack(schema: &Schema, batch: &RecordBatch) -> Result<RecordBatch, StorageError> {
    let (mut fields, mut columns) = (Vec::new(), Vec::new());
    for (stored, column) in batch.schema_ref().fields().iter().zip(batch.columns()) {
        let wanted =
            schema.field_with_name(stored.name()).ok().filter(|wanted| wanted.data_type() != stored.data_type());
        let Some(wanted) = wanted else {
            fields.push(stored.clone());
            columns.push(column.clone());
            continue;
        };
        columns
            .push(unpacked(column, stored, wanted.data_type()).map_err(StorageError::arrow("unpack rows of a log"))?);
        fields.push(Arc::new(wanted.clone()));
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).map_err(StorageError::arrow("unpack rows of a log"))
}

fn unpacked(column: &ArrayRef, stored: &Field, wanted: &DataType) -> Result<ArrayRef, ArrowError> {
    let since = stored.metadata().get(SINCE).and_then(|since| since.parse::<i64>().ok());
    match (stored.data_type(), wanted, since) {
        (DataType::Null, _, _) if stored.metadata().contains_key(ZERO) => zeros(wanted, column.len()),
        (DataType::Null, _, _) => Ok(new_null_array(wanted, column.len())),
        (DataType::UInt32, DataType::Timestamp(_, zone), Some(since)) => {
            let times = column.as_primitive::<UInt32Type>().values();
            let times: Vec<i64> = times.iter().map(|time| since.wrapping_add(i64::from(*time))).collect();
            Ok(Arc::new(TimestampMicrosecondArray::new(times.into(), None).with_timezone_opt(zone.clone())))
        }
        (DataType::FixedSizeBinary(4), DataType::FixedSizeBinary(16), _) => {
            let ends = column.as_fixed_size_binary().value_data().as_chunks::<4>().0;
            let whole = |end: &[u8; 4]| {
                let mut whole = [0; 16];
                whole[..12].copy_from_slice(&MAPPED);
                whole[12..].copy_from_slice(end);
                whole
            };
            let whole: Vec<[u8; 16]> = ends.iter().map(whole).collect();
            let whole = Buffer::from_vec(whole.into_flattened());
            Ok(Arc::new(FixedSizeBinaryArray::try_new(16, whole, column.nulls().cloned())?))
        }
        (DataType::UInt8 | DataType::UInt16 | DataType::UInt32, to, _) if to.is_integer() => widened(column, wanted),
        (DataType::Dictionary(keys, stored), DataType::Dictionary(_, values), _)
            if stored == values && matches!(**keys, DataType::UInt8 | DataType::UInt16) =>
        {
            widened(column, wanted)
        }
        (from, to, _) => Err(ArrowError::SchemaError(format!("{from} is not what {to} is packed in"))),
    }
}

fn widened(column: &ArrayRef, wanted: &DataType) -> Result<ArrayRef, ArrowError> {
    cast_with_options(column, wanted, &CastOptions { safe: false, ..CastOptions::default() })
}

fn zeros(data_type: &DataType, rows: usize) -> Result<ArrayRef, ArrowError> {
    fn of<T: ArrowPrimitiveType>(rows: usize) -> ArrayRef {
        Arc::new(PrimitiveArray::<T>::new(vec![T::Native::ZERO; rows].into(), None))
    }
    match data_type {
        DataType::UInt8 => Ok(of::<UInt8Type>(rows)),
        DataType::UInt16 => Ok(of::<UInt16Type>(rows)),
        DataType::UInt32 => Ok(of::<UInt32Type>(rows)),
        DataType::UInt64 => Ok(of::<UInt64Type>(rows)),
        DataType::Int64 => Ok(of::<Int64Type>(rows)),
        other => Err(ArrowError::SchemaError(format!("a column of {other} is not packed as zeros"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::columns::{FlowBatchBuilder, flow_schema};
    use crate::table::BatchBuilder;
    use crate::talkers::TalkerColumns;
    use flowtable::FlowRecord;
    use talkers::{KeyFields, TalkerRow};
    use wire::{Addr, Nanos, TapId};

    fn batch(rows: &[FlowRecord]) -> RecordBatch {
        let mut builder = FlowBatchBuilder::new(&["a".into(), "b".into()], rows.len());
        builder.extend(rows, &[]);
        builder.finish().unwrap()
    }

    fn record(n: u64) -> FlowRecord {
        let end = Nanos::from_secs(1_700_000_000 + n);
        FlowRecord {
            start: end,
            end,
            flow_id: u64::MAX - n,
            src_ip: Addr::v4([10, 0, 0, n as u8]),
            dst_ip: Addr::v4([10, 0, 1, n as u8]),
            ..FlowRecord::default()
        }
    }

    /// Packs batches of one log; each has to come back as it was. Returns the types of a column in each.
    fn types(column: &str, batches: &[RecordBatch]) -> Vec<String> {
        let mut packer = Packer::default();
        let types = batches.iter().map(|batch| {
            let packed = packer.pack(batch).unwrap();
            assert_eq!(&unpack(batch.schema_ref(), &packed).unwrap(), batch);
            packed.schema().field_with_name(column).unwrap().data_type().to_string()
        });
        types.collect()
    }

    #[test]
    fn numbers_take_the_bytes_they_need_and_never_fewer_than_before() {
        let values = [0, 0, 255, 3, 256, 65_536, u64::from(u32::MAX), 1 << 32, 0];
        let batches = values.map(|pkts_o| batch(&[record(1), FlowRecord { pkts_o, ..record(2) }]));
        let wanted = ["Null", "Null", "UInt8", "UInt8", "UInt16", "UInt32", "UInt32", "Int64", "Int64"];
        assert_eq!(types("pkts_o", &batches), wanted);
    }

    #[test]
    fn null_and_0_are_told_apart() {
        let batches = [None, Some(0), None].map(|rtt_us| batch(&[FlowRecord { rtt_us, ..record(1) }]));
        assert_eq!(types("rtt_us", &batches), ["Null", "UInt8", "UInt8"]);
        let both = batch(&[FlowRecord { rtt_us: Some(0), ..record(1) }, record(2)]);
        assert_eq!(types("rtt_us", &[both]), ["UInt8"]);
        let zero = batch(&[FlowRecord { rtt_us: Some(0), ..record(1) }]);
        assert_eq!(types("rtt_us", &[zero]), ["Null"]);
    }

    #[test]
    fn times_count_from_the_first_until_an_hour_is_over() {
        let at = |s: u64| batch(&[FlowRecord { end: Nanos::from_secs(s), ..record(1) }]);
        let times = types("t_end", &[at(10_000), at(9_401), at(13_000), at(9_400), at(10_000)]);
        assert_eq!(times[..4], ["UInt32"; 4]);
        assert_eq!(types("t_end", &[at(10_000), at(20_000)])[1], "Timestamp(µs, \"UTC\")");
        assert_eq!(types("t_end", &[at(10_000), at(9_000)])[1], "Timestamp(µs, \"UTC\")");
    }

    #[test]
    fn addresses_and_words() {
        let v6 = batch(&[FlowRecord { dst_ip: Addr([7; 16]), tap: TapId(1), ..record(1) }]);
        let batches = [batch(&[record(1)]), v6];
        assert_eq!(types("dst_ip", &batches), ["FixedSizeBinary(4)", "FixedSizeBinary(16)"]);
        assert!(types("tap", &batches)[0].starts_with("Dictionary(UInt8"));
        assert_eq!(types("flow_id", &batches), ["UInt64"; 2]);
    }

    #[test]
    fn addresses_that_are_missing_take_nothing_and_stay_missing() {
        let batch = |addresses: &[Option<Addr>]| {
            let mut builder = BatchBuilder::<TalkerColumns>::new(&["a".into()], addresses.len());
            let row = |src_ip: &Option<Addr>| TalkerRow {
                key: KeyFields { src_ip: *src_ip, ..KeyFields::default() },
                ..TalkerRow::default()
            };
            builder.extend(&addresses.iter().map(row).collect::<Vec<_>>(), &[]);
            builder.finish().unwrap()
        };
        let v4 = Some(Addr::v4([10, 0, 0, 1]));
        let batches = [batch(&[None, None]), batch(&[v4, None]), batch(&[v4, v4]), batch(&[None, Some(Addr([7; 16]))])];
        let wanted = ["Null", "FixedSizeBinary(4)", "FixedSizeBinary(4)", "FixedSizeBinary(16)"];
        assert_eq!(types("src_ip", &batches), wanted);
        assert_eq!(types("estimate", &batches), ["Float64"; 4]);
        assert_eq!(types("quantile", &batches), ["Null"; 4]);
    }

    #[test]
    fn what_was_never_packed_stays_as_it_is() {
        let batch = batch(&[record(1)]);
        assert_eq!(unpack(&flow_schema(), &batch).unwrap(), batch);
    }
}
