use super::cell::{Cell, cell, is_number};
use arrow::datatypes::Schema;
use arrow::record_batch::RecordBatch;
use std::io::{self, Write};

/// Rows that decide how wide the columns are. They are held back; those after them are written as they come, and a
/// wider value then pushes its row to the right.
const SAMPLE_ROWS: usize = 1000;

/// An aligned table: header, rule, rows, and how many there were.
pub(super) struct TableWriter {
    names: Vec<String>,
    right: Vec<bool>,
    /// Values of these columns are texts of our own that have several lines.
    multi_line: bool,
    widths: Vec<usize>,
    /// `None` once the widths are settled.
    held: Option<Vec<Vec<String>>>,
    rows: u64,
}

impl TableWriter {
    pub(super) fn new(schema: &Schema) -> TableWriter {
        let names: Vec<String> = schema.fields().iter().map(|f| escaped(f.name())).collect();
        let multi_line = names == ["plan_type", "plan"];
        TableWriter {
            widths: names.iter().map(|n| width(n)).collect(),
            right: schema.fields().iter().map(|f| is_number(f.data_type())).collect(),
            names,
            multi_line,
            held: Some(Vec::new()),
            rows: 0,
        }
    }

    pub(super) fn write(&mut self, batch: &RecordBatch, out: &mut impl Write) -> io::Result<()> {
        for row in 0..batch.num_rows() {
            self.rows += 1;
            let texts: Vec<String> = batch.columns().iter().map(|c| self.text(&cell(c.as_ref(), row))).collect();
            match &mut self.held {
                None => self.row(&texts, out)?,
                Some(held) => {
                    held.push(texts);
                    if held.len() >= SAMPLE_ROWS {
                        self.settle(out)?;
                    }
                }
            }
        }
        Ok(())
    }

    pub(super) fn finish(mut self, out: &mut impl Write) -> io::Result<()> {
        self.settle(out)?;
        writeln!(out, "({} {})", self.rows, if self.rows == 1 { "row" } else { "rows" })
    }

    fn text(&self, value: &Cell<'_>) -> String {
        match value {
            Cell::Null => "-".to_owned(),
            Cell::Text(text) if self.multi_line => text.lines().map(escaped).collect::<Vec<_>>().join("\n"),
            other => escaped(&other.to_text()),
        }
    }

    /// Fixes the widths and writes what was held back.
    fn settle(&mut self, out: &mut impl Write) -> io::Result<()> {
        let Some(held) = self.held.take() else { return Ok(()) };
        for row in &held {
            for (text, w) in row.iter().zip(&mut self.widths) {
                *w = text.lines().map(width).max().unwrap_or(0).max(*w);
            }
        }
        self.row(&self.names, out)?;
        let rule: Vec<String> = self.widths.iter().map(|w| "-".repeat(*w)).collect();
        writeln!(out, "{}", rule.join("  "))?;
        held.iter().try_for_each(|row| self.row(row, out))
    }

    fn row(&self, texts: &[String], out: &mut impl Write) -> io::Result<()> {
        let lines = texts.iter().map(|t| t.lines().count()).max().unwrap_or(0).max(1);
        for line in 0..lines {
            let mut printed = String::new();
            for (column, text) in texts.iter().enumerate() {
                let part = text.lines().nth(line).unwrap_or("");
                let pad = " ".repeat(self.widths[column].saturating_sub(width(part)));
                if column > 0 {
                    printed.push_str("  ");
                }
                let (before, after) = if self.right[column] { (pad.as_str(), "") } else { ("", pad.as_str()) };
                printed.push_str(before);
                printed.push_str(part);
                printed.push_str(after);
            }
            writeln!(out, "{}", printed.trim_end())?;
        }
        Ok(())
    }
}

fn width(text: &str) -> usize {
    text.chars().count()
}

/// Text that came over the wire must not move the cursor, colour the terminal or reverse the reading direction.
fn escaped(text: &str) -> String {
    let acts = |c: char| {
        c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !text.chars().any(acts) {
        return text.to_owned();
    }
    let mut out = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if acts(c) {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}
