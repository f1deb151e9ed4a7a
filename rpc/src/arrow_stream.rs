//! Arrow IPC streams cut into messages, and put together again.

use arrow::array::{Array, ArrayRef, RecordBatch};
use arrow::buffer::Buffer;
use arrow::datatypes::{Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::ipc::reader::StreamDecoder;
use arrow::ipc::writer::StreamWriter;
use prost::bytes::Bytes;

/// Bytes in one message at most: well under [`crate::MESSAGE_BYTES_MAX`], and small enough that a slow reader holds
/// little of the server's memory.
pub(crate) const CHUNK_BYTES_MAX: usize = 1024 * 1024;

/// Writes record batches as one Arrow IPC stream, uncompressed since not every reader can undo that, and hands it out
/// in chunks of at most [`CHUNK_BYTES_MAX`]. The schema is never cut.
pub(crate) struct Encoder {
    writer: StreamWriter<Vec<u8>>,
}

impl Encoder {
    /// Begins a stream: the schema waits in the first chunk.
    pub(crate) fn new(schema: &Schema) -> Result<Encoder, ArrowError> {
        Ok(Encoder { writer: StreamWriter::try_new(Vec::new(), schema)? })
    }

    /// What was written since the last call, cut into chunks; the first call gives the schema, whole.
    pub(crate) fn schema(&mut self) -> Bytes {
        Bytes::from(std::mem::take(self.writer.get_mut()))
    }

    /// One batch as chunks.
    pub(crate) fn batch(&mut self, batch: &RecordBatch) -> Result<Vec<Bytes>, ArrowError> {
        self.writer.write(batch)?;
        Ok(chunks(std::mem::take(self.writer.get_mut())))
    }

    /// The end mark.
    pub(crate) fn finish(&mut self) -> Result<Bytes, ArrowError> {
        self.writer.finish()?;
        Ok(Bytes::from(std::mem::take(self.writer.get_mut())))
    }
}

/// A batch in parts of some [`CHUNK_BYTES_MAX`], of one row at least. A batch without rows has none.
pub(crate) fn parts(batch: &RecordBatch) -> impl Iterator<Item = RecordBatch> {
    // What a part refers to: a batch may be a slice of a much larger one.
    let bytes = |column: &ArrayRef| column.to_data().get_slice_memory_size().unwrap_or(0);
    let bytes: usize = batch.columns().iter().map(bytes).sum();
    let rows = batch.num_rows();
    let step = (rows / bytes.div_ceil(CHUNK_BYTES_MAX).max(1)).max(1);
    (0..rows).step_by(step).map(move |start| batch.slice(start, step.min(rows - start)))
}

/// Cuts without copying.
fn chunks(bytes: Vec<u8>) -> Vec<Bytes> {
    let mut rest = Bytes::from(bytes);
    let mut chunks = Vec::with_capacity(rest.len() / CHUNK_BYTES_MAX + 1);
    while rest.len() > CHUNK_BYTES_MAX {
        chunks.push(rest.split_to(CHUNK_BYTES_MAX));
    }
    if !rest.is_empty() {
        chunks.push(rest);
    }
    chunks
}

/// Puts the chunks of a `Query` call together again.
#[derive(Debug, Default)]
pub struct Decoder {
    inner: StreamDecoder,
}

impl Decoder {
    /// A decoder at the start of a stream.
    pub fn new() -> Decoder {
        Decoder::default()
    }

    /// Takes the next chunk and gives the batches that it completes.
    ///
    /// # Errors
    /// When the bytes are no Arrow IPC stream.
    pub fn push(&mut self, chunk: Bytes) -> Result<Vec<RecordBatch>, ArrowError> {
        let mut buffer = Buffer::from(chunk);
        let mut batches = Vec::new();
        while let Some(batch) = self.inner.decode(&mut buffer)? {
            batches.push(batch);
        }
        Ok(batches)
    }

    /// The columns, once known: Arrow reads the schema when the chunk after it arrives.
    pub fn schema(&self) -> Option<SchemaRef> {
        self.inner.schema()
    }

    /// Says that no chunk follows.
    ///
    /// # Errors
    /// When the stream was cut off inside a message.
    pub fn finish(&mut self) -> Result<(), ArrowError> {
        self.inner.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{DictionaryArray, Int64Array};
    use arrow::datatypes::Int32Type;
    use std::sync::Arc;

    fn batch(rows: i64) -> RecordBatch {
        let taps: DictionaryArray<Int32Type> = (0..rows).map(|i| Some(if i % 3 == 0 { "a" } else { "b" })).collect();
        let numbers = Int64Array::from_iter_values(0..rows);
        RecordBatch::try_from_iter([("n", Arc::new(numbers) as ArrayRef), ("tap", Arc::new(taps))]).unwrap()
    }

    #[test]
    fn batches_survive_any_cut() {
        let batches = [batch(3), batch(0), batch(300_000)];
        let mut encoder = Encoder::new(&batches[0].schema()).unwrap();
        let mut stream = vec![encoder.schema()];
        for batch in &batches {
            stream.extend(encoder.batch(batch).unwrap());
        }
        stream.push(encoder.finish().unwrap());
        assert!(stream.len() > 4, "the large batch was cut: {} chunks", stream.len());
        assert!(stream.iter().all(|chunk| chunk.len() <= CHUNK_BYTES_MAX));

        let whole: Vec<u8> = stream.concat();
        for cut in [7, 4096, CHUNK_BYTES_MAX] {
            let mut decoder = Decoder::new();
            let mut decoded = Vec::new();
            for piece in whole.chunks(cut) {
                decoded.extend(decoder.push(Bytes::copy_from_slice(piece)).unwrap());
            }
            decoder.finish().unwrap();
            assert_eq!(decoder.schema().unwrap(), batches[0].schema());
            assert_eq!(decoded, batches, "pieces of {cut}");
        }
    }

    #[test]
    fn parts_are_all_of_a_batch() {
        let large = batch(400_000);
        let sizes: Vec<usize> = parts(&large).map(|part| part.num_rows()).collect();
        assert!(sizes.len() >= 4 && sizes.iter().sum::<usize>() == 400_000, "{sizes:?}");
        // A slice is as small as it looks.
        assert_eq!(parts(&large.slice(7, 100)).collect::<Vec<_>>(), [large.slice(7, 100)]);
        assert_eq!(parts(&batch(0)).count(), 0);
    }

    #[test]
    fn an_empty_stream_still_tells_its_columns() {
        let mut encoder = Encoder::new(&batch(1).schema()).unwrap();
        let mut decoder = Decoder::new();
        assert!(decoder.push(encoder.schema()).unwrap().is_empty());
        assert!(decoder.push(encoder.finish().unwrap()).unwrap().is_empty());
        assert_eq!(decoder.schema().unwrap(), batch(1).schema());
        decoder.finish().unwrap();
    }

    #[test]
    fn a_cut_stream_is_an_error() {
        let mut encoder = Encoder::new(&batch(1).schema()).unwrap();
        let schema = encoder.schema();
        let mut decoder = Decoder::new();
        decoder.push(schema.slice(..schema.len() - 3)).unwrap();
        assert!(decoder.finish().is_err());
        let mut decoder = Decoder::new();
        let refused = decoder.push(Bytes::from_static(b"not an arrow stream")).is_err() || decoder.finish().is_err();
        assert!(refused);
    }
}
