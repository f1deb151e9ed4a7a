use super::cell::{Cell, cell, is_number};
use crate::question::PLOT;
use arrow::datatypes::{DataType, Schema, TimeUnit};
use arrow::record_batch::RecordBatch;
use std::borrow::Cow;
use std::io::{self, Write};
use std::ops::RangeInclusive;

/// Rows that decide how wide the columns are. They are held back; those after them are written as they come, and a
/// wider value then pushes its row to the right.
const SAMPLE_ROWS: usize = 1000;

/// What bars are made of: from the whole of a character to an eighth.
const BAR_CHARS: RangeInclusive<char> = '\u{2588}'..='\u{258f}';

/// Bars become no shorter than this many characters.
const BAR_WIDTH_MIN: usize = 10;

/// Length of a time to the second, as in `2026-01-01T00:00:00Z`.
const SECONDS_WIDTH: usize = 20;

/// How a table is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableLayout {
    /// Characters of a line. In a table that is wider bars are drawn shorter, texts cut (at an ellipsis), times told to
    /// the second, and in the end bars left out; what is too wide even then is written with a line for each value. `None` for as wide as it is.
    pub width: Option<usize>,
    /// Whether a line at the end tells the number of rows.
    pub row_count: bool,
}

impl Default for TableLayout {
    fn default() -> TableLayout {
        TableLayout { width: None, row_count: true }
    }
}

/// An aligned table: header, rule, rows, and how many there were.
pub(super) struct TableWriter {
    layout: TableLayout,
    columns: Vec<TableColumn>,
    /// Values of these columns are texts of our own that have several lines.
    multi_line: bool,
    /// Each value has a line of its own.
    vertical: bool,
    /// `None` once the widths are settled.
    held: Option<Vec<Vec<String>>>,
    /// Rows that came, and rows that were written.
    rows: u64,
    written: u64,
}

struct TableColumn {
    name: String,
    kind: Kind,
    width: usize,
    /// What the width would be if all of it were shown.
    whole: usize,
    /// Times are told to the second; texts are cut to the width, and bars drawn to it.
    short: bool,
    left_out: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Number,
    Time,
    /// A time that has no fraction.
    Seconds,
    Text,
    Bar,
    /// What cannot be cut: addresses, yes and no.
    Whole,
}

impl Kind {
    fn of(name: &str, data_type: &DataType) -> Kind {
        match data_type {
            t if is_number(t) => Kind::Number,
            DataType::Timestamp(TimeUnit::Second, _) => Kind::Seconds,
            DataType::Timestamp(..) => Kind::Time,
            t if t.is_string() && name == PLOT => Kind::Bar,
            DataType::Dictionary(_, value) if value.is_string() => Kind::Text,
            DataType::FixedSizeBinary(_) | DataType::Boolean => Kind::Whole,
            _ => Kind::Text,
        }
    }
}

impl TableWriter {
    pub(super) fn new(schema: &Schema, layout: TableLayout) -> TableWriter {
        let columns = schema.fields().iter().map(|f| {
            let name = escaped(f.name());
            let width = width(&name);
            TableColumn {
                kind: Kind::of(f.name(), f.data_type()),
                name,
                width,
                whole: width,
                short: false,
                left_out: false,
            }
        });
        let columns: Vec<TableColumn> = columns.collect();
        let multi_line = columns.iter().map(|c| c.name.as_str()).eq(["plan_type", "plan"]);
        TableWriter { layout, columns, multi_line, vertical: false, held: Some(Vec::new()), rows: 0, written: 0 }
    }

    pub(super) fn write(&mut self, batch: &RecordBatch, out: &mut impl Write) -> io::Result<()> {
        for row in 0..batch.num_rows() {
            self.rows += 1;
            let cells = batch.columns().iter().zip(&self.columns);
            let texts: Vec<String> = cells.map(|(c, column)| self.text(column.kind, &cell(c.as_ref(), row))).collect();
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
        if self.layout.row_count {
            writeln!(out, "({} {})", self.rows, if self.rows == 1 { "row" } else { "rows" })?;
        }
        Ok(())
    }

    fn text(&self, kind: Kind, value: &Cell<'_>) -> String {
        match value {
            Cell::Null => "-".to_owned(),
            Cell::Text(text) if self.multi_line => text.lines().map(escaped).collect::<Vec<_>>().join("\n"),
            Cell::Text(text) if kind == Kind::Seconds => to_seconds(text),
            other => escaped(&other.to_text()),
        }
    }

    /// Fixes the widths and writes what was held back.
    fn settle(&mut self, out: &mut impl Write) -> io::Result<()> {
        let Some(held) = self.held.take() else { return Ok(()) };
        for row in &held {
            for (text, column) in row.iter().zip(&mut self.columns) {
                column.width = text.lines().map(width).max().unwrap_or(0).max(column.width);
            }
        }
        if let Some(line) = self.layout.width
            && !self.multi_line
        {
            self.vertical = !fit(&mut self.columns, line);
        }
        if !self.vertical {
            let names: Vec<String> = self.columns.iter().map(|c| c.name.clone()).collect();
            self.line(&names, out)?;
            let rule = self.columns.iter().filter(|c| !c.left_out).map(|c| "-".repeat(c.width));
            writeln!(out, "{}", rule.collect::<Vec<_>>().join("  "))?;
        }
        held.iter().try_for_each(|row| self.row(row, out))
    }

    fn row(&mut self, texts: &[String], out: &mut impl Write) -> io::Result<()> {
        self.written += 1;
        if !self.vertical {
            return self.line(texts, out);
        }
        let title = format!("-[ row {} ]", self.written);
        let names = self.columns.iter().map(|c| c.width_of_name()).max().unwrap_or(0);
        writeln!(out, "{title:-<0$}", names.max(38) + 2)?;
        for (text, column) in texts.iter().zip(&self.columns).filter(|(_, c)| c.kind != Kind::Bar) {
            let pad = " ".repeat(names - column.width_of_name());
            writeln!(out, "{}{pad}  {text}", column.name)?;
        }
        Ok(())
    }

    fn line(&self, texts: &[String], out: &mut impl Write) -> io::Result<()> {
        let texts: Vec<Cow<'_, str>> = texts.iter().zip(&self.columns).map(|(text, c)| c.shortened(text)).collect();
        let lines = texts.iter().map(|t| t.lines().count()).max().unwrap_or(0).max(1);
        for line in 0..lines {
            let mut printed = String::new();
            for (text, column) in texts.iter().zip(&self.columns).filter(|(_, c)| !c.left_out) {
                let part = text.lines().nth(line).unwrap_or("");
                let pad = " ".repeat(column.width.saturating_sub(width(part)));
                if !printed.is_empty() {
                    printed.push_str("  ");
                }
                let (before, after) = if column.kind == Kind::Number { (pad.as_str(), "") } else { ("", pad.as_str()) };
                printed.push_str(before);
                printed.push_str(part);
                printed.push_str(after);
            }
            writeln!(out, "{}", printed.trim_end())?;
        }
        Ok(())
    }
}

impl TableColumn {
    fn width_of_name(&self) -> usize {
        width(&self.name)
    }

    fn shortened<'a>(&self, text: &'a str) -> Cow<'a, str> {
        match self.kind {
            Kind::Time if self.short => to_seconds(text).into(),
            Kind::Text if self.short && width(text) > self.width => {
                let kept: String = text.chars().take(self.width.saturating_sub(1)).collect();
                format!("{kept}\u{2026}").into()
            }
            // Not the heading.
            Kind::Bar if self.short && text.chars().all(|c| BAR_CHARS.contains(&c)) => {
                bar(eighths(text) as f64 / (self.whole * 8) as f64, self.width).into()
            }
            _ => text.into(),
        }
    }
}

/// What is given up so that a table fits, step by step.
#[derive(Clone, Copy)]
struct Step {
    /// Texts are cut to no less than this.
    text_width: usize,
    /// Times are told to the second.
    short_times: bool,
    bars: bool,
}

const STEPS: [Step; 4] = [
    Step { text_width: 24, short_times: false, bars: true },
    Step { text_width: 24, short_times: true, bars: true },
    Step { text_width: 12, short_times: true, bars: true },
    Step { text_width: 12, short_times: true, bars: false },
];

/// Makes the columns fit into a line, if they can be made to.
fn fit(columns: &mut [TableColumn], line: usize) -> bool {
    columns.iter_mut().for_each(|c| c.whole = c.width);
    STEPS.into_iter().any(|step| {
        for column in columns.iter_mut() {
            column.short = column.kind == Kind::Time && step.short_times && column.whole > SECONDS_WIDTH;
            column.width = if column.short { SECONDS_WIDTH.max(column.width_of_name()) } else { column.whole };
            column.left_out = column.kind == Kind::Bar && !step.bars;
        }
        cut_bars(columns, line);
        cut_texts(columns, line, step.text_width);
        excess(columns, line) == 0
    })
}

/// Characters by which a line is too long.
fn excess(columns: &[TableColumn], line: usize) -> usize {
    let shown = columns.iter().filter(|c| !c.left_out);
    let (widths, count) = shown.fold((0, 0), |(widths, count), c| (widths + c.width, count + 1));
    (widths + 2 * usize::from(count > 0) * (count.max(1) - 1)).saturating_sub(line)
}

fn cut_bars(columns: &mut [TableColumn], line: usize) {
    let too_much = excess(columns, line);
    for column in columns.iter_mut().filter(|c| c.kind == Kind::Bar && !c.left_out && too_much > 0) {
        column.width = column.whole.saturating_sub(too_much).max(BAR_WIDTH_MIN).min(column.whole);
        column.short = true;
    }
}

/// Takes from the widest text, as long as that is too much and the text has more than `least`.
fn cut_texts(columns: &mut [TableColumn], line: usize, least: usize) {
    for _ in 0..excess(columns, line) {
        let texts = columns.iter_mut().filter(|c| c.kind == Kind::Text && c.width > least.max(c.width_of_name()));
        let Some(widest) = texts.max_by_key(|c| c.width) else { return };
        widest.width -= 1;
        widest.short = true;
    }
}

/// A time in RFC 3339 without its fraction.
fn to_seconds(text: &str) -> String {
    match text.split_once('.') {
        Some((seconds, fraction)) => format!("{seconds}{}", fraction.trim_start_matches(|c: char| c.is_ascii_digit())),
        None => text.to_owned(),
    }
}

/// What a bar shows, eighths of a character.
fn eighths(bar: &str) -> usize {
    bar.chars().map(|c| 0x2590_usize.saturating_sub(c as usize).min(8)).sum()
}

/// A bar for a part of the whole, 0 to 1, to eighths of a character.
pub(crate) fn bar(part: f64, width: usize) -> String {
    let eighths = if part.is_finite() { (part.clamp(0.0, 1.0) * width as f64 * 8.0).round() as usize } else { 0 };
    let rest = ["", "\u{258f}", "\u{258e}", "\u{258d}", "\u{258c}", "\u{258b}", "\u{258a}", "\u{2589}"][eighths % 8];
    format!("{}{rest}", "\u{2588}".repeat(eighths / 8))
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
