use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::ipc::writer::{FileWriter, StreamWriter};
use arrow::record_batch::RecordBatch;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use std::error::Error;
use std::io::{self, Write};

/// Rows of a row group of Parquet: what is encoded stays in memory until one is complete.
const ROW_GROUP_ROWS: usize = 256 * 1024;

/// Formats of columns, not lines: binary, typed, for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColumnFormat {
    /// Arrow IPC as a stream, for pipes.
    ArrowStream,
    /// Arrow IPC as a file, also known as Feather version 2.
    ArrowFile,
    /// Parquet, zstd.
    Parquet,
}

/// Writes batches of one schema into one of these formats. Memory is bounded by a row group.
pub struct ColumnWriter<W: Write + Send>(Inner<W>);

enum Inner<W: Write + Send> {
    Stream(Box<StreamWriter<W>>),
    File(Box<FileWriter<W>>),
    Parquet(Box<ArrowWriter<W>>),
}

impl<W: Write + Send> ColumnWriter<W> {
    /// Begins an answer with these columns. They are written as they are: see [`super::text_batch`] for addresses as text.
    ///
    /// # Errors
    /// When `out` cannot be written, or the format has nothing for the type of a column.
    pub fn new(format: ColumnFormat, schema: &SchemaRef, out: W) -> io::Result<ColumnWriter<W>> {
        Ok(ColumnWriter(match format {
            ColumnFormat::ArrowStream => Inner::Stream(Box::new(StreamWriter::try_new(out, schema).map_err(of_arrow)?)),
            ColumnFormat::ArrowFile => Inner::File(Box::new(FileWriter::try_new(out, schema).map_err(of_arrow)?)),
            ColumnFormat::Parquet => {
                let properties = WriterProperties::builder()
                    .set_compression(Compression::ZSTD(ZstdLevel::default()))
                    .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
                    .set_created_by(concat!("taphouse ", env!("CARGO_PKG_VERSION")).to_owned())
                    .build();
                let writer = ArrowWriter::try_new(out, schema.clone(), Some(properties)).map_err(of_parquet)?;
                Inner::Parquet(Box::new(writer))
            }
        }))
    }

    /// Writes the rows of a batch.
    ///
    /// # Errors
    /// When `out` cannot be written, or the format has nothing for a value.
    pub fn write(&mut self, batch: &RecordBatch) -> io::Result<()> {
        match &mut self.0 {
            Inner::Stream(writer) => writer.write(batch).map_err(of_arrow),
            Inner::File(writer) => writer.write(batch).map_err(of_arrow),
            Inner::Parquet(writer) => writer.write(batch).map_err(of_parquet),
        }
    }

    /// Completes the answer. Gives back what it was written to.
    ///
    /// # Errors
    /// When `out` cannot be written.
    pub fn into_inner(self) -> io::Result<W> {
        let mut out = match self.0 {
            Inner::Stream(writer) => writer.into_inner().map_err(of_arrow)?,
            Inner::File(writer) => writer.into_inner().map_err(of_arrow)?,
            Inner::Parquet(writer) => writer.into_inner().map_err(of_parquet)?,
        };
        out.flush()?;
        Ok(out)
    }
}

/// The error of the output itself, where it is one: a closed pipe is told by its kind.
fn of_arrow(error: ArrowError) -> io::Error {
    match error {
        ArrowError::IoError(_, error) => error,
        ArrowError::ExternalError(error) => of_any(error),
        other => io::Error::other(other),
    }
}

fn of_parquet(error: ParquetError) -> io::Error {
    match error {
        ParquetError::External(error) => of_any(error),
        other => io::Error::other(other),
    }
}

fn of_any(error: Box<dyn Error + Send + Sync>) -> io::Error {
    match error.downcast::<io::Error>() {
        Ok(error) => *error,
        Err(other) => io::Error::other(other),
    }
}
