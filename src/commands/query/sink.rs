//! Rows into one format, text or columns.

use crate::cli::Addresses;
use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use query::render::{ColumnFormat, ColumnWriter, OutputFormat, Renderer, TableLayout, text_batch};
use std::io::{self, Write};

/// A format, and what it needs to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Text(OutputFormat, TableLayout),
    Columns(ColumnFormat, Addresses),
}

/// Writes batches of one schema.
pub(super) enum Sink<W: Write + Send> {
    Text(Renderer<W>),
    Columns(ColumnWriter<W>, Addresses),
}

impl<W: Write + Send> Sink<W> {
    pub(super) fn new(format: Format, schema: &SchemaRef, out: W) -> io::Result<Sink<W>> {
        match format {
            Format::Text(format, layout) => Renderer::with_layout(format, layout, schema, out).map(Sink::Text),
            Format::Columns(format, addresses) => {
                let schema = shown(&RecordBatch::new_empty(schema.clone()), addresses)?.schema();
                ColumnWriter::new(format, &schema, out).map(|writer| Sink::Columns(writer, addresses))
            }
        }
    }

    pub(super) fn write(&mut self, batch: &RecordBatch) -> io::Result<()> {
        match self {
            Sink::Text(renderer) => renderer.write(batch),
            Sink::Columns(writer, addresses) => writer.write(&shown(batch, *addresses)?),
        }
    }

    /// Completes what was written, also where an error cut it short, and gives back where to.
    pub(super) fn into_inner(self) -> io::Result<W> {
        match self {
            Sink::Text(renderer) => renderer.into_inner().map(|(_, out)| out),
            Sink::Columns(writer, _) => writer.into_inner(),
        }
    }
}

fn shown(batch: &RecordBatch, addresses: Addresses) -> io::Result<RecordBatch> {
    match addresses {
        Addresses::Text => text_batch(batch).map_err(io::Error::other),
        Addresses::Binary => Ok(batch.clone()),
    }
}
