//! Sought in memory: rows that are in no segment yet.

use super::seeks;
use crate::prune::{Number, Pruner, Test};
use arrow::array::{Array, ArrayRef, AsArray, BooleanArray};
use arrow::buffer::BooleanBuffer;
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Int32Type, TimestampMicrosecondType, UInt16Type};
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;

/// Where one of so many rows has been found, they are many: a batch is left as it is.
const MANY: usize = 4;

/// The rows of `batches` that the filter may match, of them some columns.
///
/// # Errors
/// The batches have not so many columns.
pub(crate) fn sought(
    pruner: &Pruner,
    batches: &[RecordBatch],
    columns: &[usize],
) -> Result<Vec<RecordBatch>, ArrowError> {
    let (test, _) = pruner.test();
    let seeks = seeks(test);
    let sought = batches.iter().filter_map(|batch| {
        let mask = seeks.then(|| mask(test, batch)).flatten();
        let found = mask.as_ref().map_or(batch.num_rows(), BooleanBuffer::count_set_bits);
        (found > 0).then(|| {
            let wanted = batch.project(columns)?;
            match mask {
                Some(mask) if found < batch.num_rows() / MANY => {
                    filter_record_batch(&wanted, &BooleanArray::new(mask, None))
                }
                _ => Ok(wanted),
            }
        })
    });
    sought.collect()
}

/// Which rows may match; `None` for all.
fn mask(test: &Test, batch: &RecordBatch) -> Option<BooleanBuffer> {
    match test {
        Test::Maybe | Test::Tap(..) | Test::Sensor(..) => None,
        Test::Never => Some(BooleanBuffer::new_unset(batch.num_rows())),
        Test::All(tests) => {
            let mut all: Option<BooleanBuffer> = None;
            for test in tests {
                all = match (all, mask(test, batch)) {
                    (Some(all), Some(mask)) => Some(&all & &mask),
                    (all, mask) => all.or(mask),
                };
                if all.as_ref().is_some_and(|all| all.count_set_bits() == 0) {
                    break;
                }
            }
            all
        }
        Test::Any(tests) => {
            let mut any = BooleanBuffer::new_unset(batch.num_rows());
            for test in tests {
                any = &any | &mask(test, batch)?;
            }
            Some(any)
        }
        Test::Number(Number::Time, range) => {
            let times = batch.columns().first()?.as_primitive_opt::<TimestampMicrosecondType>()?.values();
            Some(BooleanBuffer::collect_bool(times.len(), |row| range.contains(&times[row])))
        }
        Test::Number(..) => None,
        Test::Has(column, value) => equal(batch.column_by_name(column)?, value.plain()),
    }
}

/// Which rows have the value; those without one may be among them.
fn equal(column: &ArrayRef, plain: &[u8]) -> Option<BooleanBuffer> {
    match column.data_type() {
        DataType::FixedSizeBinary(16) => {
            let value = u128::from_ne_bytes(plain.try_into().ok()?);
            let column = column.as_fixed_size_binary_opt()?;
            let (rows, _) = column.value_data().as_chunks();
            let same = |row: usize| rows.get(row).is_some_and(|bytes| u128::from_ne_bytes(*bytes) == value);
            Some(BooleanBuffer::collect_bool(column.len(), same))
        }
        DataType::UInt16 => {
            let value = u32::from_le_bytes(plain.try_into().ok()?);
            let column = column.as_primitive_opt::<UInt16Type>()?.values();
            Some(BooleanBuffer::collect_bool(column.len(), |row| u32::from(column[row]) == value))
        }
        DataType::Dictionary(..) => {
            let column = column.as_dictionary_opt::<Int32Type>()?;
            let texts = column.values().as_string_opt::<i32>()?;
            let keys = column.keys().values();
            let mut numbers = (0..texts.len()).filter(|at| texts.value(*at).as_bytes() == plain);
            match (numbers.next(), numbers.next()) {
                (None, _) => Some(BooleanBuffer::new_unset(keys.len())),
                (Some(number), None) => {
                    Some(BooleanBuffer::collect_bool(keys.len(), |row| keys[row] as usize == number))
                }
                _ => None,
            }
        }
        _ => None,
    }
}
