//! What questions about the past cost: beside DuckDB on the same files and nfdump on the same flows, over very many
//! segments, and while rows are being written.

mod engines;
mod folder;
mod many;
mod netflow;
mod questions;
mod report;
mod together;

use benches::capture::cpu;
use clap::Parser;
use engines::{Answer, DuckDb, Nfdump, Taphouse};
use folder::{Content, Folder};
use questions::Question;
use report::{Asked, Results, Took};
use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

/// Writes made-up flows once, then asks Taphouse, DuckDB and nfdump the same questions in turn; prints medians as
/// Markdown. Without options, everything. Ends with an error if two engines disagree, not if one is slow.
#[derive(Parser)]
struct Options {
    /// Questions, beside DuckDB and nfdump
    #[arg(long)]
    questions: bool,
    /// One minute out of very many segments (some GB of memory)
    #[arg(long)]
    many: bool,
    /// Questions while rows are written
    #[arg(long)]
    together: bool,
    /// Of the questions, only those whose name has this in it
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// Million flows
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=1000))]
    millions: u64,
    /// Hours of packet time they cover
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u64).range(2..=10_000))]
    hours: u64,
    /// Segments of the very many
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(10..=1_000_000))]
    segments: u64,
    /// Rows a second to write while questions are asked
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1_000..=10_000_000))]
    rate: u64,
    /// Rounds; each engine answers each question once in every one, and medians count
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,
    /// Threads of Taphouse and of DuckDB
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    threads: u16,
    /// Folder for the data, which stays there for the next run
    #[arg(long, value_name = "DIR", default_value = "target/history")]
    dir: PathBuf,
    /// A Python that has the package duckdb
    #[arg(long, value_name = "PROGRAM", default_value = "python3")]
    python: String,
    /// Also write everything as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), Box<dyn Error>> {
    let is_all = !(options.questions || options.many || options.together);
    let (rounds, threads) = (usize::from(options.rounds), usize::from(options.threads));
    let mut results = Results { machine: cpu::machine(), ..Results::default() };
    if is_all || options.questions {
        let content = Content { rows: options.millions * 1_000_000, seed: 42, hours: options.hours };
        std::fs::create_dir_all(&options.dir)?;
        let folder = Folder::open(&options.dir, content)?;
        results.bytes_per_flow = Some(folder.bytes as f64 / folder.content.rows as f64);
        results.asked = ask_all(&folder, options, rounds, threads)?;
        print!("{}", report::questions(&folder, &results.asked));
    }
    if is_all || options.many {
        let many = many::measure(options.segments, rounds, threads)?;
        print!("{}", report::many(&many));
        results.many_ms = Some(many.ms);
    }
    if is_all || options.together {
        std::fs::create_dir_all(&options.dir)?;
        // Its flows cover minutes: the questions that name no time.
        let points: Vec<Question> = questions::questions(options.hours).into_iter().skip(1).take(2).collect();
        let together = together::measure(&options.dir, options.rate, 20, rounds, &points)?;
        print!("{}", report::together(&together));
        results.together_p99_ms = Some(together.p99_ms);
    }
    println!("{}; load average {:.1}.", results.machine, cpu::load_average());
    if let Some(path) = &options.json {
        std::fs::write(path, serde_json::to_string_pretty(&results)?)?;
    }
    Ok(())
}

fn ask_all(folder: &Folder, options: &Options, rounds: usize, threads: usize) -> Result<Vec<Asked>, Box<dyn Error>> {
    let taphouse = Taphouse::open(&folder.dir, threads)?;
    let mut duckdb = DuckDb::start(&options.python, &folder.dir, threads);
    if duckdb.is_none() {
        eprintln!(
            "no DuckDB: {} has no package duckdb (pip install duckdb, and name it with --python)",
            options.python
        );
    }
    let nfdump = netflow::files(&options.dir, &folder.content)?.map(|dir| Nfdump { dir });
    if nfdump.is_none() {
        eprintln!("no nfdump: apt install nfdump");
    }
    let mut asked = Vec::new();
    for question in questions::questions(options.hours).into_iter().filter(|q| q.name.contains(&options.only)) {
        eprintln!("{}", question.name);
        let (mut ours, mut theirs, mut others) = (Vec::new(), Vec::new(), Vec::new());
        // The first round fills caches and is compared, the rest is timed.
        for round in 0..=rounds {
            let answer = taphouse.ask(&question.taphouse)?;
            let from_duckdb = duckdb.as_mut().map(|duckdb| duckdb.ask(&question.duckdb)).transpose()?;
            let from_nfdump = nfdump.as_ref().and_then(|nfdump| nfdump.ask(&question)).transpose()?;
            if round == 0 {
                compare(&question, &answer, from_duckdb.as_ref())?;
                continue;
            }
            ours.push(answer);
            theirs.extend(from_duckdb);
            others.extend(from_nfdump);
        }
        asked.push(Asked {
            name: question.name.to_owned(),
            goal_ms: question.goal_ms,
            taphouse: Took::of(&ours),
            duckdb: Took::of(&theirs),
            nfdump: Took::of(&others),
            opened: taphouse.opened(&question.taphouse)?,
        });
    }
    Ok(asked)
}

fn compare(question: &Question, ours: &Answer, theirs: Option<&Answer>) -> Result<(), Box<dyn Error>> {
    let Some(theirs) = theirs else { return Ok(()) };
    let differs = ours.rows.len() != theirs.rows.len() || ours.rows.iter().zip(&theirs.rows).any(|(a, b)| a != b);
    if differs {
        let first = ours.rows.iter().zip(&theirs.rows).find(|(a, b)| a != b);
        return Err(format!(
            "{}: {} rows from Taphouse, {} from DuckDB; first that differs: {first:?}",
            question.name,
            ours.rows.len(),
            theirs.rows.len()
        )
        .into());
    }
    Ok(())
}
