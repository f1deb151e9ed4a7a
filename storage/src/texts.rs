//! A growing column of free text: each distinct value once a batch, and a number for each row.

use arrow::array::{ArrayRef, DictionaryArray, Int32Array, StringArray};
use arrow::buffer::{BooleanBuffer, Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::Int32Type;
use arrow::error::ArrowError;
use hashbrown::{DefaultHashBuilder, HashTable};
use std::hash::BuildHasher;
use std::sync::Arc;

/// Bounded by the batch: as many entries as rows, of at most 255 bytes each (a record's lengths are bytes). A row
/// without text costs nothing until one with text comes after it.
#[derive(Clone)]
pub(crate) struct Texts {
    /// Numbers of values, -1 for none; rows after the last are none too.
    keys: Vec<i32>,
    /// The distinct values, one after the other.
    bytes: Vec<u8>,
    /// Where each begins, and where the last ends.
    offsets: Vec<i32>,
    /// Numbers of values by their hash.
    index: HashTable<i32>,
    hasher: DefaultHashBuilder,
}

impl Default for Texts {
    fn default() -> Texts {
        Texts {
            keys: Vec::new(),
            bytes: Vec::new(),
            offsets: vec![0],
            index: HashTable::new(),
            hasher: DefaultHashBuilder::default(),
        }
    }
}

impl Texts {
    /// Gives row `row` a text, the rows since the last one none. Bytes that are no UTF-8 are replaced (U+FFFD).
    pub(crate) fn set(&mut self, row: usize, text: &[u8]) {
        match std::str::from_utf8(text) {
            Ok(text) => self.set_text(row, text),
            Err(_) => self.set_text(row, &String::from_utf8_lossy(text)),
        }
    }

    fn set_text(&mut self, row: usize, text: &str) {
        if text.is_empty() {
            return;
        }
        let hash = self.hasher.hash_one(text.as_bytes());
        let value = |bytes: &[u8], offsets: &[i32], key: i32| {
            bytes[offsets[key as usize] as usize..offsets[key as usize + 1] as usize] == *text.as_bytes()
        };
        let key = match self.index.find(hash, |&key| value(&self.bytes, &self.offsets, key)) {
            Some(&key) => key,
            None => {
                let key = self.offsets.len() as i32 - 1;
                self.bytes.extend_from_slice(text.as_bytes());
                self.offsets.push(self.bytes.len() as i32);
                let (bytes, offsets, hasher) = (&self.bytes, &self.offsets, &self.hasher);
                let rehash = |&key: &i32| {
                    hasher.hash_one(&bytes[offsets[key as usize] as usize..offsets[key as usize + 1] as usize])
                };
                self.index.insert_unique(hash, key, rehash);
                key
            }
        };
        self.keys.resize(row, -1);
        self.keys.push(key);
    }

    /// The column, `rows` long. If `odd`, its dictionary ends in an empty text that no row has: dictionaries of even
    /// and odd batches are never equal, so that the log writes one into each of its frames, and a frame can be read
    /// though the one before it is damaged.
    pub(crate) fn finish(mut self, rows: usize, odd: bool) -> Result<ArrayRef, ArrowError> {
        if odd {
            self.offsets.push(self.bytes.len() as i32);
        }
        self.keys.resize(rows, -1);
        let nulls = NullBuffer::new(BooleanBuffer::collect_bool(rows, |i| self.keys[i] >= 0));
        let keys: Vec<i32> = self.keys.iter().map(|&key| key.max(0)).collect();
        let keys = Int32Array::try_new(keys.into(), Some(nulls))?;
        let offsets = OffsetBuffer::new(ScalarBuffer::from(self.offsets));
        let values = StringArray::try_new(offsets, Buffer::from_vec(self.bytes), None)?;
        Ok(Arc::new(DictionaryArray::<Int32Type>::try_new(keys, Arc::new(values))?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{Array, AsArray};

    fn read(column: &ArrayRef) -> Vec<Option<String>> {
        let column = column.as_dictionary::<Int32Type>();
        let values = column.values().as_string::<i32>();
        (0..column.len()).map(|row| column.key(row).map(|key| values.value(key).to_owned())).collect()
    }

    #[test]
    fn rows_keep_their_texts_and_distinct_ones_are_kept_once() {
        let mut texts = Texts::default();
        let mut wanted = vec![None; 5_000];
        for row in (0..5_000).filter(|row| row % 7 == 3) {
            let text = format!("host-{}.example", row % 400);
            texts.set(row, text.as_bytes());
            wanted[row] = Some(text);
        }
        texts.set(4_999, b"");
        let column = texts.finish(5_000, false).unwrap();
        assert_eq!(read(&column), wanted);
        let distinct: std::collections::BTreeSet<_> = wanted.iter().flatten().collect();
        assert_eq!(column.as_dictionary::<Int32Type>().values().len(), distinct.len());
    }

    #[test]
    fn what_is_no_text_is_replaced_and_nothing_is_a_column_of_nulls() {
        let mut texts = Texts::default();
        texts.set(1, b"a\xffb");
        assert_eq!(read(&texts.finish(3, true).unwrap()), [None, Some("a\u{fffd}b".to_owned()), None]);
        assert_eq!(read(&Texts::default().finish(2, true).unwrap()), [None, None]);
        assert_eq!(Texts::default().finish(0, false).unwrap().len(), 0);
    }
}
