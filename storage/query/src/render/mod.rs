//! Answers as people and programs read them: aligned tables, JSON, newline-delimited JSON, CSV; and flows under the names
//! of the Elastic Common Schema and of Suricata's EVE log.
//!
//! | value | table | JSON, NDJSON | CSV |
//! |---|---|---|---|
//! | address, MAC | `10.0.0.1` | `"10.0.0.1"` | `10.0.0.1` |
//! | time | RFC 3339, microseconds, `Z` | the same, as string | the same |
//! | number | right-aligned | number | number |
//! | `flow_id` | right-aligned | string: it exceeds what a JSON reader with doubles keeps (2^53) | number |
//! | NaN, infinity | `NaN`, `inf` | `null` | `NaN`, `inf` |
//! | NULL | `-` | `null` | nothing (an empty text is `""`) |

mod cell;
mod columns;
mod ecs;
mod eve;
mod flow;
mod table;

pub(crate) use cell::type_name;
pub use cell::{Cell, cell, text_batch};
pub use columns::{ColumnFormat, ColumnWriter};
pub use table::TableLayout;
pub(crate) use table::bar;

use arrow::datatypes::{DataType, Schema};
use arrow::record_batch::RecordBatch;
use flow::{FlowColumns, FlowRow};
use std::fmt;
use std::io::{self, Write};
use std::str::FromStr;
use table::TableWriter;

/// How an answer is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OutputFormat {
    /// Aligned columns, for people.
    #[default]
    Table,
    /// One array of objects.
    Json,
    /// One object a line.
    Ndjson,
    /// RFC 4180 with a header and line feeds.
    Csv,
    /// Rows of `flows`, one object a line, in the Elastic Common Schema.
    Ecs,
    /// Rows of `flows`, one object a line, as `flow` events of Suricata's EVE log.
    Eve,
}

impl OutputFormat {
    /// Every format.
    pub const ALL: [OutputFormat; 6] = [
        OutputFormat::Table,
        OutputFormat::Json,
        OutputFormat::Ndjson,
        OutputFormat::Csv,
        OutputFormat::Ecs,
        OutputFormat::Eve,
    ];

    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            OutputFormat::Table => "table",
            OutputFormat::Json => "json",
            OutputFormat::Ndjson => "ndjson",
            OutputFormat::Csv => "csv",
            OutputFormat::Ecs => "ecs",
            OutputFormat::Eve => "eve",
        }
    }
}

impl fmt::Display for OutputFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Text that names no output format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no output format: use table, json, ndjson, csv, ecs or eve")]
pub struct UnknownFormat(String);

impl FromStr for OutputFormat {
    type Err = UnknownFormat;
    fn from_str(text: &str) -> Result<OutputFormat, UnknownFormat> {
        let found = OutputFormat::ALL.into_iter().find(|f| f.name().eq_ignore_ascii_case(text));
        found.ok_or_else(|| UnknownFormat(text.to_owned()))
    }
}

/// Writes batches of one schema as they come. Memory is bounded: a table holds back the rows that decide its widths.
pub struct Renderer<W: Write> {
    out: W,
    columns: Vec<Column>,
    rows: u64,
    layout: Layout,
}

struct Column {
    /// Its name as a JSON string.
    key: String,
    /// Numbers of it are JSON strings.
    quoted: bool,
}

enum Layout {
    Table(TableWriter),
    Json,
    Ndjson,
    Csv,
    /// What makes the line of a flow.
    Flows(FlowColumns, fn(&FlowRow<'_>) -> String),
}

impl<W: Write> Renderer<W> {
    /// Begins an answer with these columns.
    ///
    /// # Errors
    /// When `out` cannot be written.
    pub fn new(format: OutputFormat, schema: &Schema, out: W) -> io::Result<Renderer<W>> {
        Renderer::with_layout(format, TableLayout::default(), schema, out)
    }

    /// As [`Renderer::new`]; a table is laid out so.
    ///
    /// # Errors
    /// When `out` cannot be written.
    pub fn with_layout(
        format: OutputFormat,
        table: TableLayout,
        schema: &Schema,
        mut out: W,
    ) -> io::Result<Renderer<W>> {
        let columns = schema.fields().iter().map(|f| Column {
            key: json_string(f.name()),
            quoted: f.name() == "flow_id" && *f.data_type() == DataType::UInt64,
        });
        let layout = match format {
            OutputFormat::Table => Layout::Table(TableWriter::new(schema, table)),
            OutputFormat::Json => Layout::Json,
            OutputFormat::Ndjson => Layout::Ndjson,
            OutputFormat::Csv => {
                let names: Vec<String> = schema.fields().iter().map(|f| csv_text(f.name())).collect();
                writeln!(out, "{}", names.join(","))?;
                Layout::Csv
            }
            OutputFormat::Ecs => Layout::Flows(FlowColumns::new(schema), ecs::line),
            OutputFormat::Eve => Layout::Flows(FlowColumns::new(schema), eve::line),
        };
        Ok(Renderer { out, columns: columns.collect(), rows: 0, layout })
    }

    /// Writes the rows of a batch.
    ///
    /// # Errors
    /// When `out` cannot be written.
    pub fn write(&mut self, batch: &RecordBatch) -> io::Result<()> {
        if let Layout::Table(table) = &mut self.layout {
            self.rows += batch.num_rows() as u64;
            return table.write(batch, &mut self.out);
        }
        let mut line = String::new();
        for row in 0..batch.num_rows() {
            line.clear();
            match &self.layout {
                Layout::Flows(columns, of) => line.push_str(&of(&columns.row(batch, row))),
                Layout::Csv => csv_row(batch, row, &mut line),
                Layout::Json => {
                    line.push_str(if self.rows == 0 { "[\n" } else { ",\n" });
                    self.json_row(batch, row, &mut line);
                }
                Layout::Ndjson | Layout::Table(_) => self.json_row(batch, row, &mut line),
            }
            if !matches!(self.layout, Layout::Json) {
                line.push('\n');
            }
            self.out.write_all(line.as_bytes())?;
            self.rows += 1;
        }
        Ok(())
    }

    /// Completes the answer, also one that an error cut short: what was written is then still valid in its format.
    /// Gives the number of rows.
    ///
    /// # Errors
    /// When `out` cannot be written.
    pub fn finish(self) -> io::Result<u64> {
        self.into_inner().map(|(rows, _)| rows)
    }

    /// As [`Renderer::finish`]; gives back what it was written to as well.
    ///
    /// # Errors
    /// When `out` cannot be written.
    pub fn into_inner(mut self) -> io::Result<(u64, W)> {
        match self.layout {
            Layout::Table(table) => table.finish(&mut self.out)?,
            Layout::Json if self.rows == 0 => writeln!(self.out, "[]")?,
            Layout::Json => writeln!(self.out, "\n]")?,
            Layout::Ndjson | Layout::Csv | Layout::Flows(..) => {}
        }
        self.out.flush()?;
        Ok((self.rows, self.out))
    }

    fn json_row(&self, batch: &RecordBatch, row: usize, line: &mut String) {
        line.push('{');
        for (i, (column, values)) in self.columns.iter().zip(batch.columns()).enumerate() {
            if i > 0 {
                line.push(',');
            }
            line.push_str(&column.key);
            line.push(':');
            let value = cell(values.as_ref(), row);
            match value {
                Cell::Uint(number) if column.quoted => line.push_str(&format!("\"{number}\"")),
                value => json_value(&value, line),
            }
        }
        line.push('}');
    }
}

fn json_value(value: &Cell<'_>, line: &mut String) {
    match value {
        Cell::Null => line.push_str("null"),
        // JSON knows neither NaN nor infinity.
        Cell::Float(v) if !v.is_finite() => line.push_str("null"),
        Cell::Float(v) => line.push_str(&serde_json::Value::from(*v).to_string()),
        Cell::Text(text) => line.push_str(&json_string(text)),
        Cell::List(values) => {
            line.push('[');
            for (i, value) in values.iter().enumerate() {
                if i > 0 {
                    line.push(',');
                }
                json_value(value, line);
            }
            line.push(']');
        }
        Cell::Bool(_) | Cell::Int(_) | Cell::Uint(_) => line.push_str(&value.to_text()),
    }
}

fn json_string(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn csv_row(batch: &RecordBatch, row: usize, line: &mut String) {
    for (i, values) in batch.columns().iter().enumerate() {
        if i > 0 {
            line.push(',');
        }
        match cell(values.as_ref(), row) {
            Cell::Null => {}
            Cell::Text(text) => line.push_str(&csv_text(&text)),
            list @ Cell::List(_) => line.push_str(&csv_text(&list.to_text())),
            number => line.push_str(&number.to_text()),
        }
    }
    // A line with nothing on it would be no row.
    if line.is_empty() {
        line.push_str("\"\"");
    }
}

fn csv_text(text: &str) -> String {
    if text.is_empty() || text.contains([',', '"', '\n', '\r']) {
        return format!("\"{}\"", text.replace('"', "\"\""));
    }
    text.to_owned()
}
