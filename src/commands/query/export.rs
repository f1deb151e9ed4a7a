//! An answer into a file: written beside it, and there under its name only when it is whole.

use super::answer::{Answer, Question};
use super::shape::{Shape, Shaped};
use super::sink::{Format, Sink};
use crate::cli::{Addresses, AnswerArgs, Output};
use crate::failure::{Code, Failure};
use anyhow::Context;
use flate2::write::GzEncoder;
use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};
use query::render::{ColumnFormat, OutputFormat, TableLayout};
use serde_json::json;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

const ENDINGS: &str = ".parquet, .arrow, .csv, .ndjson or .json, the last three also with .gz or .zst behind";

/// Level of zstd for texts.
const ZSTD_LEVEL: i32 = 3;

/// A file to be written.
pub(super) struct Target {
    path: PathBuf,
    /// Where it grows.
    beside: PathBuf,
    format: Format,
    packing: Packing,
    force: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Packing {
    None,
    Gzip,
    Zstd,
}

impl Target {
    /// Checked before anything is asked: the ending, and that the file is not there already.
    pub(super) fn new(path: &Path, args: &AnswerArgs) -> Result<Target, Failure> {
        let usage = |told: String| Failure::new(Code::Usage, anyhow::anyhow!("--export {}: {told}", path.display()));
        let (format, packing) = format_of(path).ok_or_else(|| usage(format!("the name must end in {ENDINGS}")))?;
        let format = match (format, args.addresses) {
            (Format::Columns(format, _), addresses) => Format::Columns(format, addresses.unwrap_or_default()),
            (text, None) => text,
            (_, Some(_)) => return Err(usage("--addresses is for .parquet and .arrow; texts have text".to_owned())),
        };
        if path.is_dir() {
            return Err(usage("it is a folder".to_owned()));
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let beside = path.with_file_name(format!("{name}.{}.tmp", std::process::id()));
        let target = Target { path: path.to_owned(), beside, format, packing, force: args.force };
        target.check()?;
        Ok(target)
    }

    fn check(&self) -> Result<(), Failure> {
        if self.force || !self.path.exists() {
            return Ok(());
        }
        let path = super::super::show(&self.path);
        Err(Failure::new(Code::Usage, anyhow::anyhow!("{path} is there already: --force writes over it")))
    }
}

/// The format a file's name asks for.
fn format_of(path: &Path) -> Option<(Format, Packing)> {
    let name = path.file_name()?.to_str()?.to_ascii_lowercase();
    let (name, packing) = match name.rsplit_once('.')? {
        (name, "gz") => (name.to_owned(), Packing::Gzip),
        (name, "zst") => (name.to_owned(), Packing::Zstd),
        _ => (name, Packing::None),
    };
    let text = |format| Some((Format::Text(format, TableLayout::default()), packing));
    let columns = |format| (packing == Packing::None).then_some((Format::Columns(format, Addresses::Text), packing));
    match name.rsplit_once('.')?.1 {
        "parquet" => columns(ColumnFormat::Parquet),
        "arrow" | "feather" => columns(ColumnFormat::ArrowFile),
        "csv" => text(OutputFormat::Csv),
        "ndjson" | "jsonl" => text(OutputFormat::Ndjson),
        "json" => text(OutputFormat::Json),
        _ => None,
    }
}

/// Asks, and writes the answer into the file.
pub(super) fn export(
    target: &Target,
    args: &AnswerArgs,
    output: Output,
    question: Question,
    shape: Shape,
) -> Result<(), Failure> {
    let begun = Instant::now();
    let failed = || format!("cannot write {}", super::super::show(&target.path));
    // Before the question, which may take long.
    let beside = Beside::create(&target.beside).with_context(failed)?;
    let mut answer = Answer::ask(args, question)?;
    answer.be_patient();
    let mut rows = Shaped::new(&mut answer, shape, None)?;
    let bytes = Arc::new(AtomicU64::new(0));
    let progress = Progress::start(bytes.clone());
    let file = Counted { file: beside.file.try_clone().with_context(failed)?, bytes: bytes.clone() };
    let packed = Packed::new(target.packing, BufWriter::new(file)).with_context(failed)?;
    let mut sink = Sink::new(target.format, rows.schema(), packed).with_context(failed)?;
    let mut count = 0;
    while let Some(batch) = rows.next()? {
        sink.write(&batch).with_context(failed)?;
        count += batch.num_rows() as u64;
        progress.show(count);
    }
    sink.into_inner().and_then(Packed::finish).with_context(failed)?;
    target.check()?;
    beside.publish(&target.path).with_context(failed)?;
    progress.finish();
    report(target, output, count, bytes.load(Relaxed), begun.elapsed())
}

/// What was done, on standard output.
fn report(target: &Target, output: Output, rows: u64, bytes: u64, took: Duration) -> Result<(), Failure> {
    let file = super::super::show(&target.path);
    let seconds = took.as_secs_f64();
    let mut out = io::stdout().lock();
    match output {
        Output::Table => {
            let (rows, bytes) = (HumanCount(rows), HumanBytes(bytes));
            writeln!(out, "{file}: {rows} rows, {bytes}, in {seconds:.2} s")?;
        }
        Output::Csv => {
            writeln!(out, "file,rows,bytes,seconds")?;
            writeln!(out, "\"{}\",{rows},{bytes},{seconds:.6}", file.replace('"', "\"\""))?;
        }
        _ => writeln!(out, "{}", json!({ "file": file, "rows": rows, "bytes": bytes, "seconds": seconds }))?,
    }
    Ok(())
}

/// The file while it grows; removed if it is never published.
struct Beside {
    path: PathBuf,
    file: File,
    published: bool,
}

impl Beside {
    fn create(path: &Path) -> io::Result<Beside> {
        let file = OpenOptions::new().write(true).create_new(true).open(path)?;
        Ok(Beside { path: path.to_owned(), file, published: false })
    }

    fn publish(mut self, path: &Path) -> io::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.path, path)?;
        self.published = true;
        Ok(())
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        if !self.published {
            // Nothing depends on it; what went wrong is told already.
            drop(fs::remove_file(&self.path));
        }
    }
}

/// Counts the bytes that reach the file.
struct Counted {
    file: File,
    bytes: Arc<AtomicU64>,
}

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.bytes.fetch_add(written as u64, Relaxed);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

enum Packed<W: Write> {
    Plain(W),
    Gzip(GzEncoder<W>),
    Zstd(zstd::Encoder<'static, W>),
}

impl<W: Write> Packed<W> {
    fn new(packing: Packing, out: W) -> io::Result<Packed<W>> {
        Ok(match packing {
            Packing::None => Packed::Plain(out),
            Packing::Gzip => Packed::Gzip(GzEncoder::new(out, flate2::Compression::default())),
            Packing::Zstd => Packed::Zstd(zstd::Encoder::new(out, ZSTD_LEVEL)?),
        })
    }

    /// Writes what ends the file.
    fn finish(self) -> io::Result<()> {
        match self {
            Packed::Plain(out) => out,
            Packed::Gzip(out) => out.finish()?,
            Packed::Zstd(out) => out.finish()?,
        }
        .flush()
    }
}

impl<W: Write> Write for Packed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Packed::Plain(out) => out.write(bytes),
            Packed::Gzip(out) => out.write(bytes),
            Packed::Zstd(out) => out.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Packed::Plain(out) => out.flush(),
            Packed::Gzip(out) => out.flush(),
            Packed::Zstd(out) => out.flush(),
        }
    }
}

/// Rows, bytes and rows a second, on a terminal.
struct Progress {
    bar: ProgressBar,
    begun: Instant,
    bytes: Arc<AtomicU64>,
}

impl Progress {
    fn start(bytes: Arc<AtomicU64>) -> Progress {
        let target =
            if io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target);
        bar.set_style(ProgressStyle::with_template("{spinner} {msg}").unwrap_or_else(|_| ProgressStyle::default_bar()));
        Progress { bar, begun: Instant::now(), bytes }
    }

    fn show(&self, rows: u64) {
        let rate = rows as f64 / self.begun.elapsed().as_secs_f64().max(1e-3);
        let (count, bytes) = (HumanCount(rows), HumanBytes(self.bytes.load(Relaxed)));
        self.bar.set_message(format!("{count} rows, {bytes}, {:.0} k rows/s", rate / 1e3));
        self.bar.tick();
    }

    fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endings_are_formats() {
        let format = |name: &str| format_of(Path::new(name));
        let text = |format| Format::Text(format, TableLayout::default());
        assert_eq!(format("a.CSV"), Some((text(OutputFormat::Csv), Packing::None)));
        assert_eq!(format("x/a.b.csv.gz"), Some((text(OutputFormat::Csv), Packing::Gzip)));
        assert_eq!(format("a.jsonl.zst"), Some((text(OutputFormat::Ndjson), Packing::Zstd)));
        let parquet = Format::Columns(ColumnFormat::Parquet, Addresses::Text);
        assert_eq!(format("a.parquet"), Some((parquet, Packing::None)));
        for name in ["a", "a.txt", "a.gz", "a.parquet.gz", "csv", ".gz", "a.csv.gz.zst", ""] {
            assert_eq!(format(name), None, "{name}");
        }
    }
}
