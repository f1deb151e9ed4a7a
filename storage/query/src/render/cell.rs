use crate::address::Kind;
use arrow::array::{Array, ArrayRef, AsArray, ListArray, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{
    DataType, Field, Float16Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, Schema,
    TimeUnit, TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType,
    UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use chrono::{DateTime, SecondsFormat};
use std::borrow::Cow;
use std::sync::Arc;

/// One value, ready for people: addresses, MACs and times are text already.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell<'a> {
    /// No value.
    Null,
    /// Yes or no.
    Bool(bool),
    /// A signed whole number.
    Int(i64),
    /// An unsigned whole number.
    Uint(u64),
    /// A number; may be NaN or infinite.
    Float(f64),
    /// Text, and all that prints as text: addresses, MACs, times (RFC 3339 with microseconds, UTC), intervals.
    Text(Cow<'a, str>),
    /// Several values, as `array_agg` gives.
    List(Vec<Cell<'a>>),
}

/// The value of a column at a row. The key of a dictionary's row that is not null points into its values: an
/// invariant of Arrow.
///
/// # Panics
/// If `row` is not below `column.len()`.
pub fn cell(column: &dyn Array, row: usize) -> Cell<'_> {
    if column.is_null(row) {
        return Cell::Null;
    }
    match column.data_type() {
        DataType::Null => Cell::Null,
        DataType::Boolean => Cell::Bool(column.as_boolean().value(row)),
        DataType::Int8 => Cell::Int(column.as_primitive::<Int8Type>().value(row).into()),
        DataType::Int16 => Cell::Int(column.as_primitive::<Int16Type>().value(row).into()),
        DataType::Int32 => Cell::Int(column.as_primitive::<Int32Type>().value(row).into()),
        DataType::Int64 => Cell::Int(column.as_primitive::<Int64Type>().value(row)),
        DataType::UInt8 => Cell::Uint(column.as_primitive::<UInt8Type>().value(row).into()),
        DataType::UInt16 => Cell::Uint(column.as_primitive::<UInt16Type>().value(row).into()),
        DataType::UInt32 => Cell::Uint(column.as_primitive::<UInt32Type>().value(row).into()),
        DataType::UInt64 => Cell::Uint(column.as_primitive::<UInt64Type>().value(row)),
        DataType::Float16 => Cell::Float(column.as_primitive::<Float16Type>().value(row).into()),
        DataType::Float32 => Cell::Float(column.as_primitive::<Float32Type>().value(row).into()),
        DataType::Float64 => Cell::Float(column.as_primitive::<Float64Type>().value(row)),
        DataType::Utf8 => Cell::Text(column.as_string::<i32>().value(row).into()),
        DataType::LargeUtf8 => Cell::Text(column.as_string::<i64>().value(row).into()),
        DataType::Utf8View => Cell::Text(column.as_string_view().value(row).into()),
        DataType::FixedSizeBinary(_) => fixed(column, row),
        DataType::Timestamp(unit, _) => time(column, *unit, row),
        DataType::Dictionary(..) => {
            let dictionary = column.as_any_dictionary();
            match cell(dictionary.keys(), row) {
                Cell::Int(key) => cell(dictionary.values().as_ref(), key as usize),
                Cell::Uint(key) => cell(dictionary.values().as_ref(), key as usize),
                _ => Cell::Null,
            }
        }
        DataType::List(_) => list(column.as_list::<i32>().value(row)),
        DataType::LargeList(_) => list(column.as_list::<i64>().value(row)),
        DataType::FixedSizeList(..) => list(column.as_fixed_size_list().value(row)),
        _ => other(column, row),
    }
}

fn fixed(column: &dyn Array, row: usize) -> Cell<'_> {
    let bytes = column.as_fixed_size_binary().value(row);
    let text = Kind::of(column.data_type()).and_then(|kind| kind.to_text(bytes));
    Cell::Text(text.unwrap_or_else(|| bytes.iter().map(|b| format!("{b:02x}")).collect()).into())
}

fn time(column: &dyn Array, unit: TimeUnit, row: usize) -> Cell<'_> {
    let (time, raw) = match unit {
        TimeUnit::Second => {
            let t = column.as_primitive::<TimestampSecondType>().value(row);
            (DateTime::from_timestamp(t, 0), t)
        }
        TimeUnit::Millisecond => {
            let t = column.as_primitive::<TimestampMillisecondType>().value(row);
            (DateTime::from_timestamp_millis(t), t)
        }
        TimeUnit::Microsecond => {
            let t = column.as_primitive::<TimestampMicrosecondType>().value(row);
            (DateTime::from_timestamp_micros(t), t)
        }
        TimeUnit::Nanosecond => {
            let t = column.as_primitive::<TimestampNanosecondType>().value(row);
            (Some(DateTime::from_timestamp_nanos(t)), t)
        }
    };
    match time {
        Some(time) => Cell::Text(time.to_rfc3339_opts(SecondsFormat::Micros, true).into()),
        // Beyond the calendar: the number is better than nothing.
        None => Cell::Int(raw),
    }
}

/// Elements own their text: the slice they are read from is made for this row.
fn list(values: ArrayRef) -> Cell<'static> {
    let owned = |c: Cell<'_>| match c {
        Cell::Null => Cell::Null,
        Cell::Bool(v) => Cell::Bool(v),
        Cell::Int(v) => Cell::Int(v),
        Cell::Uint(v) => Cell::Uint(v),
        Cell::Float(v) => Cell::Float(v),
        Cell::Text(v) => Cell::Text(Cow::Owned(v.into_owned())),
        Cell::List(v) => Cell::Text(Cow::Owned(Cell::List(v).to_text().into_owned())),
    };
    Cell::List((0..values.len()).map(|i| owned(cell(values.as_ref(), i))).collect())
}

/// Dates, intervals, decimals and whatever else a query may produce, as Arrow writes it.
fn other(column: &dyn Array, row: usize) -> Cell<'_> {
    let options = FormatOptions::default();
    let text = ArrayFormatter::try_new(column, &options).and_then(|f| f.value(row).try_to_string());
    text.map_or(Cell::Null, |text| Cell::Text(text.into()))
}

impl<'a> Cell<'a> {
    /// As plain text; empty for no value.
    pub fn to_text(&self) -> Cow<'_, str> {
        match self {
            Cell::Null => "".into(),
            Cell::Bool(v) => if *v { "true" } else { "false" }.into(),
            Cell::Int(v) => v.to_string().into(),
            Cell::Uint(v) => v.to_string().into(),
            Cell::Float(v) => v.to_string().into(),
            Cell::Text(v) => Cow::Borrowed(v),
            Cell::List(v) => {
                let parts: Vec<Cow<'_, str>> = v.iter().map(Cell::to_text).collect();
                format!("[{}]", parts.join(", ")).into()
            }
        }
    }
}

/// Whether values of this type are numbers, to be aligned at the right.
pub(crate) fn is_number(data_type: &DataType) -> bool {
    data_type.is_numeric()
}

/// What a type is to people, for messages.
pub(crate) fn type_name(data_type: &DataType) -> String {
    match data_type {
        DataType::Boolean => "yes or no".to_owned(),
        DataType::FixedSizeBinary(16) => "an address".to_owned(),
        DataType::FixedSizeBinary(6) => "a MAC address".to_owned(),
        DataType::Timestamp(..) => "a time".to_owned(),
        DataType::Dictionary(_, value) => type_name(value),
        t if t.is_numeric() => "a number".to_owned(),
        t if t.is_string() => "text".to_owned(),
        t => format!("a value of type {t}"),
    }
}

/// The batch with addresses, MACs and dictionaries as text columns, also in lists; the others as they are.
///
/// # Errors
/// When Arrow cannot build the columns.
pub fn text_batch(batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let mut fields = Vec::with_capacity(batch.num_columns());
    let mut columns = Vec::with_capacity(batch.num_columns());
    for (field, column) in batch.schema_ref().fields().iter().zip(batch.columns()) {
        match text_array(column)? {
            Some(text) => {
                fields.push(Arc::new(Field::new(field.name(), text.data_type().clone(), field.is_nullable())));
                columns.push(text);
            }
            None => {
                fields.push(field.clone());
                columns.push(column.clone());
            }
        }
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
}

/// Addresses, MACs, dictionaries and lists of them as text; `None` for what stays as it is.
fn text_array(column: &ArrayRef) -> Result<Option<ArrayRef>, ArrowError> {
    Ok(match column.data_type() {
        DataType::FixedSizeBinary(_) => {
            let texts = (0..column.len()).map(|row| match cell(column.as_ref(), row) {
                Cell::Null => None,
                other => Some(other.to_text().into_owned()),
            });
            Some(Arc::new(texts.collect::<StringArray>()))
        }
        DataType::Dictionary(_, value) if value.is_string() => Some(cast(column.as_ref(), &DataType::Utf8)?),
        DataType::List(item) => {
            let list = column.as_list::<i32>();
            let Some(text) = text_array(list.values())? else { return Ok(None) };
            let item = Arc::new(Field::new(item.name(), text.data_type().clone(), item.is_nullable()));
            Some(Arc::new(ListArray::try_new(item, list.offsets().clone(), text, list.nulls().cloned())?))
        }
        _ => None,
    })
}
