//! How an answer is asked for and written: JSON, NDJSON, CSV, Arrow.

use super::error::ApiError;
use crate::arrow_stream::{Encoder, parts};
use crate::status::ToStatus;
use arrow::array::RecordBatch;
use arrow::datatypes::Schema;
use axum::http::StatusCode;
use prost::bytes::Bytes;
use query::render::{OutputFormat, Renderer};
use query::{Addresses, View};
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};
use tonic::Status;

/// How an answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// As the command line writes it.
    Text(OutputFormat),
    /// An Arrow IPC stream.
    Arrow,
}

/// Name in `format=`, content type. The first is what a client gets that does not care.
const FORMATS: [(Format, &str, &str); 4] = [
    (Format::Text(OutputFormat::Json), "json", "application/json"),
    (Format::Text(OutputFormat::Ndjson), "ndjson", "application/x-ndjson"),
    (Format::Text(OutputFormat::Csv), "csv", "text/csv"),
    (Format::Arrow, "arrow", "application/vnd.apache.arrow.stream"),
];

impl Format {
    /// From `format=` if it is given, else from the `Accept` header.
    pub(crate) fn choose(named: Option<&str>, accept: Option<&str>) -> Result<Format, ApiError> {
        if let Some(named) = named {
            let found = FORMATS.iter().find(|(_, name, _)| *name == named);
            let unknown = || ApiError::invalid(format!("format is '{named}', allowed are json, ndjson, csv and arrow"));
            return found.map(|(format, ..)| *format).ok_or_else(unknown);
        }
        let Some(accept) = accept else { return Ok(FORMATS[0].0) };
        // The best of what we have; among equals the one named first.
        let mut best: Option<(f32, Format)> = None;
        for (wanted, quality) in accept.split(',').map(media_range) {
            let found = FORMATS.iter().find(|(.., content_type)| matches(wanted, content_type));
            if let Some((format, ..)) = found
                && quality > best.map_or(0.0, |(best, _)| best)
            {
                best = Some((quality, *format));
            }
        }
        let types = || FORMATS.map(|(.., content_type)| content_type).join(", ");
        best.map(|(_, format)| format).ok_or_else(|| {
            let message = format!("the header accept is '{accept}', to be had are {}", types());
            ApiError::new(StatusCode::NOT_ACCEPTABLE, "not_acceptable", message)
        })
    }

    pub(crate) fn content_type(self) -> &'static str {
        FORMATS
            .iter()
            .find(|(format, ..)| *format == self)
            .map_or("application/json", |(.., content_type)| content_type)
    }
}

/// `text/csv;q=0.5` as type and quality.
fn media_range(range: &str) -> (&str, f32) {
    let mut parts = range.split(';').map(str::trim);
    let name = parts.next().unwrap_or_default();
    let quality = parts.find_map(|part| part.strip_prefix("q=")).and_then(|q| q.parse().ok());
    (name, quality.unwrap_or(1.0))
}

fn matches(wanted: &str, content_type: &str) -> bool {
    match wanted.strip_suffix('*') {
        Some("*/") => true,
        Some(prefix) => content_type.starts_with(prefix),
        None => wanted.eq_ignore_ascii_case(content_type),
    }
}

/// Rows written at once as text: some 2 MiB of JSON with all columns.
const TEXT_ROWS_MAX: usize = 1_000;

/// Writes an answer, chunk by chunk.
pub(crate) enum BodyWriter {
    Text(Box<Renderer<Buffer>>, Buffer),
    Arrow(Box<Encoder>, View),
}

impl BodyWriter {
    /// Begins an answer with these columns. `addresses` matter to Arrow alone.
    pub(crate) fn new(format: Format, columns: &Schema, addresses: Addresses) -> Result<BodyWriter, Status> {
        match format {
            Format::Text(format) => {
                let buffer = Buffer::default();
                let renderer = Renderer::new(format, columns, buffer.clone()).map_err(unwritten)?;
                Ok(BodyWriter::Text(Box::new(renderer), buffer))
            }
            Format::Arrow => {
                let view = View::new(columns, addresses);
                let encoder = Encoder::new(&view.schema()).map_err(|e| e.to_status())?;
                Ok(BodyWriter::Arrow(Box::new(encoder), view))
            }
        }
    }

    /// A batch in parts that are small when written; each is to be given to [`BodyWriter::write`].
    pub(crate) fn parts(&self, batch: &RecordBatch) -> Vec<RecordBatch> {
        match self {
            BodyWriter::Text(..) => {
                let starts = (0..batch.num_rows()).step_by(TEXT_ROWS_MAX);
                starts.map(|at| batch.slice(at, TEXT_ROWS_MAX.min(batch.num_rows() - at))).collect()
            }
            BodyWriter::Arrow(..) => parts(batch).collect(),
        }
    }

    /// What there is to send after these rows.
    pub(crate) fn write(&mut self, part: &RecordBatch) -> Result<Vec<Bytes>, Status> {
        match self {
            BodyWriter::Text(renderer, buffer) => {
                renderer.write(part).map_err(unwritten)?;
                Ok(vec![buffer.take()])
            }
            BodyWriter::Arrow(encoder, view) => {
                let seen = view.batch(part).map_err(|e| e.to_status())?;
                encoder.batch(&seen).map_err(|e| e.to_status())
            }
        }
    }

    /// The end of the answer.
    pub(crate) fn finish(self) -> Result<Bytes, Status> {
        match self {
            BodyWriter::Text(renderer, buffer) => {
                renderer.finish().map_err(unwritten)?;
                Ok(buffer.take())
            }
            BodyWriter::Arrow(mut encoder, _) => encoder.finish().map_err(|e| e.to_status()),
        }
    }
}

/// A buffer does not fail; this is what the signature asks for.
fn unwritten(error: io::Error) -> Status {
    Status::internal(format!("the answer could not be written: {error}"))
}

/// What a renderer has written and nobody has taken yet.
#[derive(Clone, Default)]
pub(crate) struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Buffer {
    fn take(&self) -> Bytes {
        Bytes::from(std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_gets_what_it_prefers() {
        let [json, ndjson, csv, arrow] = FORMATS.map(|(format, ..)| format);
        for (named, accept, expected) in [
            (None, None, json),
            (None, Some("*/*"), json),
            (None, Some("text/html, application/xhtml+xml, */*;q=0.1"), json),
            (None, Some("text/csv"), csv),
            (None, Some("text/*"), csv),
            (None, Some("application/json;q=0.5, application/x-ndjson"), ndjson),
            (None, Some("Application/vnd.apache.arrow.stream"), arrow),
            (Some("csv"), Some("application/json"), csv),
        ] {
            assert_eq!(Format::choose(named, accept).unwrap(), expected, "{named:?} {accept:?}");
        }
        let refused = Format::choose(None, Some("text/html, application/json;q=0")).unwrap_err();
        assert_eq!(refused.status, StatusCode::NOT_ACCEPTABLE);
        assert_eq!(Format::choose(Some("xml"), None).unwrap_err().status, StatusCode::BAD_REQUEST);
    }
}
