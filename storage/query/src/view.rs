//! Answers as clients of other makes read them best: dictionaries spelled out, and addresses as bytes or as text.

use crate::address::Kind;
use arrow::array::{Array, ArrayRef, AsArray, GenericListArray, OffsetSizeTrait, RecordBatch, StringBuilder};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use arrow::error::ArrowError;
use std::sync::Arc;

/// How addresses and MACs leave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Addresses {
    /// As 16 and 6 bytes, the columns marked with the Arrow extension types `taphouse.ip` and `taphouse.mac`.
    #[default]
    Binary,
    /// As people write them: `10.0.0.1`, `2001:db8::1`, `02:00:00:00:00:01`.
    Text,
}

/// An answer as a client is to see it. Text columns are plain: what a dictionary saves within a batch costs more when
/// the dictionary is sent again with each.
#[derive(Clone, Debug)]
pub struct View {
    addresses: Addresses,
    schema: SchemaRef,
}

impl View {
    /// A view of answers with these columns.
    pub fn new(columns: &Schema, addresses: Addresses) -> View {
        let fields: Vec<FieldRef> = columns.fields().iter().map(|field| seen_field(field, addresses)).collect();
        View { addresses, schema: Arc::new(Schema::new(fields)) }
    }

    /// The columns seen.
    pub fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    /// A batch of the answer as it is seen.
    ///
    /// # Errors
    /// When the batch has other columns than the answer.
    pub fn batch(&self, batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
        let columns = batch.columns().iter().map(|column| seen(column, self.addresses));
        let columns = columns.collect::<Result<Vec<_>, _>>()?;
        let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        RecordBatch::try_new_with_options(self.schema.clone(), columns, &options)
    }
}

fn seen_field(field: &FieldRef, addresses: Addresses) -> FieldRef {
    let seen = seen_type(field.data_type(), addresses);
    if seen == *field.data_type() {
        return field.clone();
    }
    let mut new = Field::new(field.name(), seen, field.is_nullable());
    if Kind::of(field.data_type()).is_none() {
        new = new.with_metadata(field.metadata().clone());
    }
    Arc::new(new)
}

fn seen_type(data_type: &DataType, addresses: Addresses) -> DataType {
    match data_type {
        DataType::Dictionary(_, value) => seen_type(value, addresses),
        DataType::List(item) => DataType::List(seen_field(item, addresses)),
        DataType::LargeList(item) => DataType::LargeList(seen_field(item, addresses)),
        other if addresses == Addresses::Text && Kind::of(other).is_some() => DataType::Utf8,
        other => other.clone(),
    }
}

fn seen(column: &ArrayRef, addresses: Addresses) -> Result<ArrayRef, ArrowError> {
    match column.data_type() {
        DataType::Dictionary(_, value) => seen(&cast(column, value)?, addresses),
        DataType::List(_) => Ok(Arc::new(list(column.as_list::<i32>(), addresses)?)),
        DataType::LargeList(_) => Ok(Arc::new(list(column.as_list::<i64>(), addresses)?)),
        other => match Kind::of(other).filter(|_| addresses == Addresses::Text) {
            Some(kind) => Ok(Arc::new(texts(column.as_ref(), kind).finish())),
            None => Ok(column.clone()),
        },
    }
}

fn list<O: OffsetSizeTrait>(
    lists: &GenericListArray<O>,
    addresses: Addresses,
) -> Result<GenericListArray<O>, ArrowError> {
    let (item, offsets, values, nulls) = lists.clone().into_parts();
    GenericListArray::try_new(seen_field(&item, addresses), offsets, seen(&values, addresses)?, nulls)
}

fn texts(column: &dyn Array, kind: Kind) -> StringBuilder {
    // Most are IPv4.
    let mut texts = StringBuilder::with_capacity(column.len(), column.len() * 14);
    for value in column.as_fixed_size_binary() {
        texts.append_option(value.and_then(|bytes| kind.to_text(bytes)));
    }
    texts
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{DictionaryArray, FixedSizeBinaryArray, Int64Array, ListArray, StringArray};
    use arrow::buffer::OffsetBuffer;
    use arrow::datatypes::Int32Type;

    fn addresses() -> FixedSizeBinaryArray {
        let v4 = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 1];
        FixedSizeBinaryArray::try_from_sparse_iter_with_size([Some(v4), None, Some([0; 16])].into_iter(), 16).unwrap()
    }

    fn batch() -> RecordBatch {
        let marked = [("ARROW:extension:name".to_owned(), "taphouse.ip".to_owned())].into();
        let ip = Arc::new(Field::new("ip", DataType::FixedSizeBinary(16), true).with_metadata(marked));
        let taps: DictionaryArray<Int32Type> = [Some("a"), None, Some("a")].into_iter().collect();
        let peers = ListArray::new(ip.clone(), OffsetBuffer::from_lengths([2, 0, 1]), Arc::new(addresses()), None);
        let schema = Schema::new(vec![
            ip,
            Arc::new(Field::new("tap", taps.data_type().clone(), true)),
            Arc::new(Field::new("peers", peers.data_type().clone(), true)),
            Arc::new(Field::new("n", DataType::Int64, false)),
        ]);
        let numbers = Arc::new(Int64Array::from(vec![1, 2, 3]));
        RecordBatch::try_new(Arc::new(schema), vec![Arc::new(addresses()), Arc::new(taps), Arc::new(peers), numbers])
            .unwrap()
    }

    #[test]
    fn text_reaches_every_address() {
        let batch = batch();
        let view = View::new(batch.schema_ref(), Addresses::Text);
        let seen = view.batch(&batch).unwrap();
        assert_eq!(seen.schema(), view.schema());
        let expected = StringArray::from(vec![Some("10.0.0.1"), None, Some("::")]);
        assert_eq!(seen.column(0).as_string::<i32>(), &expected);
        assert_eq!(seen.column(2).as_list::<i32>().values().as_string::<i32>(), &expected);
        assert!(seen.schema().field(0).metadata().is_empty(), "text is no extension type");
    }

    #[test]
    fn dictionaries_are_spelled_out_and_bytes_stay_marked() {
        let batch = batch();
        let view = View::new(batch.schema_ref(), Addresses::Binary);
        let seen = view.batch(&batch).unwrap();
        assert_eq!(seen.column(1).as_string::<i32>(), &StringArray::from(vec![Some("a"), None, Some("a")]));
        assert_eq!(seen.column(0), batch.column(0));
        assert_eq!(seen.schema().field(0), batch.schema().field(0));
    }

    #[test]
    fn rows_without_columns_are_still_rows() {
        let none = batch().project(&[]).unwrap();
        let view = View::new(none.schema_ref(), Addresses::Text);
        assert_eq!(view.batch(&none).unwrap().num_rows(), 3);
    }
}
