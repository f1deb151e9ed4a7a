//! Smallest and largest values of a segment's columns, as the manifest keeps them.

use crate::encode::Place;
use crate::table::column_name;
use arrow::array::{Array, AsArray, PrimitiveArray};
use arrow::datatypes::{ArrowPrimitiveType, DataType, Int64Type, UInt16Type, UInt32Type};
use arrow::record_batch::RecordBatch;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};
use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;

/// By column, the range of its values; an empty one if all are null.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Zones(Arc<[(&'static str, RangeInclusive<i64>)]>);

/// Of a column without a value.
const NOTHING: RangeInclusive<i64> = RangeInclusive::new(1, 0);

impl Zones {
    /// The zones of `columns` over some rows; those are left out that a batch does not have.
    pub(crate) fn of(columns: &[&'static str], batches: &[RecordBatch], rows: &[Place]) -> Zones {
        Zones(columns.iter().filter_map(|name| Some((*name, zone(name, batches, rows)?))).collect())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn get(&self, column: &str) -> Option<&RangeInclusive<i64>> {
        self.0.iter().find(|(name, _)| *name == column).map(|(_, range)| range)
    }
}

fn zone(name: &str, batches: &[RecordBatch], rows: &[Place]) -> Option<RangeInclusive<i64>> {
    match batches.first()?.column_by_name(name)?.data_type() {
        DataType::Int64 => range::<Int64Type>(name, batches, rows),
        DataType::UInt32 => range::<UInt32Type>(name, batches, rows),
        DataType::UInt16 => range::<UInt16Type>(name, batches, rows),
        _ => None,
    }
}

fn range<T: ArrowPrimitiveType<Native: Into<i64>>>(
    name: &str,
    batches: &[RecordBatch],
    rows: &[Place],
) -> Option<RangeInclusive<i64>> {
    let column = |batch: &RecordBatch| batch.column_by_name(name)?.as_primitive_opt::<T>().cloned();
    let columns: Vec<PrimitiveArray<T>> = batches.iter().map(column).collect::<Option<_>>()?;
    let mut range = (i64::MAX, i64::MIN);
    let with = |(min, max): (i64, i64), value: T::Native| {
        let value = value.into();
        (min.min(value), max.max(value))
    };
    if rows.len() == batches.iter().map(RecordBatch::num_rows).sum::<usize>() {
        // All of them, as a rule: then without looking where each lies.
        for column in &columns {
            range = match column.null_count() {
                0 => column.values().iter().copied().fold(range, with),
                _ => column.iter().flatten().fold(range, with),
            };
        }
    } else {
        for &(batch, row) in rows {
            let column = &columns[batch as usize];
            if column.is_valid(row as usize) {
                range = with(range, column.value(row as usize));
            }
        }
    }
    let (min, max) = range;
    Some(if min <= max { min..=max } else { NOTHING })
}

/// `{"bytes_o":[min,max],...}`, `null` for a column of nothing but null.
impl Serialize for Zones {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, range) in self.0.iter() {
            map.serialize_entry(name, &(!range.is_empty()).then(|| (range.start(), range.end())))?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Zones {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Zones, D::Error> {
        struct Columns;

        impl<'de> Visitor<'de> for Columns {
            type Value = Zones;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("ranges of values by column")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Zones, A::Error> {
                let mut columns = Vec::new();
                while let Some((name, range)) = map.next_entry::<String, Option<(i64, i64)>>()? {
                    // Of a newer version's column nobody asks.
                    if let Some(name) = column_name(&name) {
                        columns.push((name, range.map_or(NOTHING, |(min, max)| min..=max)));
                    }
                }
                Ok(Zones(columns.into()))
            }
        }

        deserializer.deserialize_map(Columns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{ArrayRef, Int64Array, UInt32Array};

    #[test]
    fn ranges_are_of_the_rows_asked_for_and_of_values_alone() {
        let all = |batches: &[RecordBatch]| -> Vec<Place> {
            let rows =
                |(at, batch): (usize, &RecordBatch)| (0..batch.num_rows()).map(move |row| (at as u32, row as u32));
            batches.iter().enumerate().flat_map(rows).collect()
        };
        let batch = |bytes: Vec<i64>, rtt: Vec<Option<u32>>| {
            let columns: [(&str, ArrayRef); 2] =
                [("bytes_o", Arc::new(Int64Array::from(bytes))), ("rtt_us", Arc::new(UInt32Array::from(rtt)))];
            RecordBatch::try_from_iter_with_nullable(columns.map(|(name, column)| (name, column, true))).unwrap()
        };
        let columns = ["bytes_o", "rtt_us", "vlan"];
        let batches = [batch(vec![5, -7], vec![None; 2]), batch(vec![9], vec![None])];
        assert_eq!(Zones::of(&columns, &batches, &[(0, 0), (1, 0)]).get("bytes_o"), Some(&(5..=9)));
        let zones = Zones::of(&columns, &batches, &all(&batches));
        assert_eq!(zones.get("bytes_o"), Some(&(-7..=9)));
        assert!(zones.get("rtt_us").unwrap().is_empty());
        assert_eq!(zones.get("vlan"), None, "no such column");
        let json = serde_json::to_string(&zones).unwrap();
        assert_eq!(json, r#"{"bytes_o":[-7,9],"rtt_us":null}"#);
        assert_eq!(serde_json::from_str::<Zones>(&json).unwrap(), zones);
        let batches = [batch(vec![1], vec![None]), batch(vec![1], vec![Some(u32::MAX)])];
        let zones = Zones::of(&columns, &batches, &all(&batches));
        assert_eq!(zones.get("rtt_us"), Some(&(4_294_967_295..=4_294_967_295)));
        assert!(serde_json::from_str::<Zones>(r#"{"a_new_one":[1,2]}"#).unwrap().is_empty());
    }
}
