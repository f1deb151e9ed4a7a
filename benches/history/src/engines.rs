//! Taphouse, DuckDB and nfdump, each of which answers and says what it took.

use crate::questions::Question;
use arrow::array::Array;
use arrow::record_batch::RecordBatch;
use arrow::util::display::array_value_to_string;
use benches::capture::cpu;
use futures::StreamExt;
use query::{Engine, QueryLimits};
use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};
use storage::StoreReader;
use tokio::runtime::Runtime;

/// One answer.
pub(crate) struct Answer {
    /// Question to last row.
    pub(crate) elapsed: Duration,
    /// Processor time of all threads.
    pub(crate) cpu: Duration,
    /// The rows, for comparison; empty where an engine prints others.
    pub(crate) rows: Vec<String>,
}

/// The engine of this repository, in this process.
pub(crate) struct Taphouse {
    pub(crate) engine: Engine,
    runtime: Runtime,
}

impl Taphouse {
    pub(crate) fn new(source: impl query::FlowSource, threads: usize) -> Result<Taphouse, Box<dyn Error>> {
        let engine = Engine::new(source, QueryLimits { threads, ..QueryLimits::default() })?;
        Ok(Taphouse { engine, runtime: tokio::runtime::Builder::new_current_thread().enable_all().build()? })
    }

    pub(crate) fn open(dir: &Path, threads: usize) -> Result<Taphouse, Box<dyn Error>> {
        Taphouse::new(StoreReader::open(dir)?, threads)
    }

    pub(crate) fn ask(&self, sql: &str) -> Result<Answer, Box<dyn Error>> {
        let (since, before) = (Instant::now(), cpu::of_this_process());
        let batches = self.runtime.block_on(async { self.engine.sql(sql).await?.collect_all().await })?;
        let (elapsed, cpu) = (since.elapsed(), cpu::of_this_process() - before);
        let mut rows = Vec::new();
        for batch in &batches {
            rows.extend(texts(batch)?);
        }
        Ok(Answer { elapsed, cpu, rows })
    }

    /// Segments that a query opens.
    pub(crate) fn opened(&self, sql: &str) -> Result<u64, Box<dyn Error>> {
        self.runtime.block_on(async {
            let mut stream = self.engine.sql(sql).await?;
            while let Some(batch) = stream.next().await {
                batch?;
            }
            Ok(stream.stats().files_opened)
        })
    }
}

/// Rows as DuckDB's half of this comparison prints them: numbers as they are, addresses in hexadecimal.
fn texts(batch: &RecordBatch) -> Result<Vec<String>, Box<dyn Error>> {
    let cell = |column: &dyn Array, row: usize| -> Result<String, Box<dyn Error>> {
        if column.is_null(row) {
            return Ok("0".to_owned());
        }
        let text = array_value_to_string(column, row)?;
        Ok(text.trim_end_matches('Z').replace('T', " "))
    };
    let line = |row| -> Result<String, Box<dyn Error>> {
        let cells: Result<Vec<String>, _> = batch.columns().iter().map(|c| cell(c.as_ref(), row)).collect();
        Ok(cells?.join("|"))
    };
    (0..batch.num_rows()).map(line).collect()
}

/// DuckDB's Python package over the folder's files, in a process of its own that stays.
pub(crate) struct DuckDb {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

/// Answers a line of SQL with a line of figures, the rows, and an empty line.
const SERVER: &str = r#"
import sys, time, datetime, duckdb
files, threads = sys.argv[1], int(sys.argv[2])
db = duckdb.connect()
db.execute("SET enable_progress_bar=false")
db.execute(f"SET threads={threads}")
db.execute("SET TimeZone='UTC'")
db.execute("SET parquet_metadata_cache=true")
db.execute(f"CREATE VIEW flows AS SELECT * FROM read_parquet('{files}/**/*.parquet', hive_partitioning=false)")
def text(value):
    if value is None: return "0"
    if isinstance(value, bytes): return value.hex()
    if isinstance(value, datetime.datetime): return value.strftime("%Y-%m-%d %H:%M:%S")
    return str(value)
print("ready", flush=True)
for sql in sys.stdin:
    wall, cpu = time.perf_counter(), time.process_time()
    rows = db.execute(sql).fetchall()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(wall, cpu)
    for row in rows: print("|".join(map(text, row)))
    print(flush=True)
"#;

impl DuckDb {
    /// `None` where Python has no `duckdb`.
    pub(crate) fn start(python: &str, dir: &Path, threads: usize) -> Option<DuckDb> {
        let mut command = Command::new(python);
        command.args(["-c", SERVER]).arg(dir.join("segments")).arg(threads.to_string());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().ok()?;
        let (input, output) = (child.stdin.take()?, BufReader::new(child.stdout.take()?));
        let mut duckdb = DuckDb { child, input, output };
        (duckdb.line().ok()? == "ready").then_some(duckdb)
    }

    fn line(&mut self) -> Result<String, Box<dyn Error>> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            return Err("DuckDB ended; what it said is above".into());
        }
        Ok(line.trim_end().to_owned())
    }

    pub(crate) fn ask(&mut self, sql: &str) -> Result<Answer, Box<dyn Error>> {
        writeln!(self.input, "{sql}")?;
        let figures = self.line()?;
        let (elapsed, cpu) = figures.split_once(' ').ok_or("DuckDB gave no figures")?;
        let (elapsed, cpu) = (elapsed.parse()?, cpu.parse()?);
        let mut rows = Vec::new();
        loop {
            match self.line()? {
                line if line.is_empty() => break,
                line => rows.push(line),
            }
        }
        Ok(Answer { elapsed: Duration::from_secs_f64(elapsed), cpu: Duration::from_secs_f64(cpu), rows })
    }
}

impl Drop for DuckDb {
    fn drop(&mut self) {
        // It has nothing to lose, and its end is all that is waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// nfdump over files that nfcapd wrote of the same flows.
pub(crate) struct Nfdump {
    pub(crate) dir: PathBuf,
}

impl Nfdump {
    /// One run of the program: it has no memory of the one before.
    pub(crate) fn ask(&self, question: &Question) -> Option<Result<Answer, Box<dyn Error>>> {
        let arguments = question.nfdump.as_ref()?;
        Some(self.run(arguments))
    }

    fn run(&self, arguments: &[String]) -> Result<Answer, Box<dyn Error>> {
        let (since, before) = (Instant::now(), children_cpu());
        let output = Command::new("nfdump").arg("-R").arg(&self.dir).arg("-q").args(arguments).output()?;
        let (elapsed, cpu) = (since.elapsed(), children_cpu() - before);
        if !output.status.success() {
            return Err(format!("nfdump: {}", String::from_utf8_lossy(&output.stderr).trim()).into());
        }
        let rows = String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
        Ok(Answer { elapsed, cpu, rows })
    }
}

/// Processor time of children that have ended and were waited for (fields 16 and 17 of /proc/self/stat, in ticks of
/// 10 ms).
fn children_cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(13).take(2);
    Duration::from_millis(10 * fields.filter_map(|n| n.parse::<u64>().ok()).sum::<u64>())
}
