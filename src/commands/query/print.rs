//! An answer to standard output: a terminal's user sees a table that fits, a pager, how many rows and how long.

use super::answer::{Answer, Question};
use super::screen::{Screen, Size};
use super::shape::{Look, Shape, Shaped};
use super::sink::{Format, Sink};
use crate::cli::{AnswerArgs, Output};
use crate::failure::{Code, Failure};
use query::render::{ColumnFormat, TableLayout};
use std::io::{BufWriter, IsTerminal, Write};
use std::time::{Duration, Instant};

/// Key of a schema's metadata: a line above a table for people.
pub(super) const HEADING: &str = "taphouse.heading";

/// Asks, and prints the answer.
pub(super) fn print(args: &AnswerArgs, output: Output, question: Question, shape: Shape) -> Result<(), Failure> {
    let size = Size::of_stdout();
    // A terminal is told how many rows came when all are there, with the time they took.
    let told = std::io::stdout().is_terminal() && std::io::stderr().is_terminal();
    let layout = TableLayout { width: size.map(|size| size.width), row_count: !told };
    let format = format(args, output, layout)?;
    let begun = Instant::now();
    let mut answer = Answer::ask(args, question)?;
    let look = (output == Output::Table).then_some(Look { width: layout.width });
    let screen = Screen::new(size, !args.no_pager);
    if screen.may_page() {
        answer.be_patient();
    }
    let mut out = BufWriter::new(screen);
    if let Some(heading) = answer.schema().metadata().get(HEADING) {
        writeln!(out, "{heading}")?;
    }
    let mut rows = Shaped::new(&mut answer, shape, look)?;
    let mut sink = Sink::new(format, rows.schema(), out)?;
    let mut count = 0;
    let failure = loop {
        match rows.next() {
            Ok(Some(batch)) => {
                count += batch.num_rows();
                sink.write(&batch).map_err(|e| rows.explain(e))?;
            }
            Ok(None) => break None,
            Err(failure) => break Some(failure),
        }
    };
    let took = begun.elapsed();
    // What was begun is closed, so that it stays valid: an array cannot take the error in, which goes to standard error
    // alone. Before the first row, and in a stream of lines, it is told in JSON too.
    let begun_json = count > 0 && output == Output::Json;
    if failure.is_none() || count > 0 {
        let closed = sink.into_inner().and_then(|out| out.into_inner().map_err(|e| e.into_error()));
        closed.and_then(Screen::close).map_err(|e| rows.explain(e))?;
    }
    match failure {
        Some(failure) => Err(Failure { reported: begun_json, ..failure }),
        None => {
            if told {
                eprintln!("({count} {} in {})", if count == 1 { "row" } else { "rows" }, shown(took));
            }
            Ok(())
        }
    }
}

fn format(args: &AnswerArgs, output: Output, layout: TableLayout) -> Result<Format, Failure> {
    let usage = |told: String| Err(Failure::new(Code::Usage, anyhow::anyhow!(told)));
    let name = super::name(output);
    let columns = match output {
        Output::Arrow => ColumnFormat::ArrowStream,
        Output::Parquet => ColumnFormat::Parquet,
        _ if args.addresses.is_some() => {
            return usage(format!("--addresses is for arrow and parquet: --output {name} always has text"));
        }
        _ => return Ok(Format::Text(super::text_format(output), layout)),
    };
    if std::io::stdout().is_terminal() {
        return usage(format!(
            "--output {name} is binary, and no terminal shows it: use --export FILE.{name}, or > FILE"
        ));
    }
    Ok(Format::Columns(columns, args.addresses.unwrap_or_default()))
}

fn shown(took: Duration) -> String {
    match took.as_millis() {
        ms @ 0..1000 => format!("{ms} ms"),
        _ => format!("{:.2} s", took.as_secs_f64()),
    }
}
