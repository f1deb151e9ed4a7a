//! `taphouse flows` and `taphouse sql`: questions about the past, to a server or to a data folder.

use crate::cli::{FlowsArgs, FromArgs, Output, SqlArgs};
use crate::config::QuerySection;
use crate::failure::{Code, Failure};
use archive::ArchiveReader;
use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use chrono::Utc;
use futures::StreamExt;
use query::render::{OutputFormat, Renderer};
use query::{Engine, FlowQuery, QueryError, QueryLimits, QueryStream};
use rpc::RpcError;
use rpc::client::BatchStream;
use std::io::BufWriter;
use std::path::Path;
use storage::StoreReader;

/// What fits a terminal and answers most questions; `--columns` chooses others.
const TABLE_COLUMNS: [&str; 13] = [
    "t_end",
    "dur_us",
    "src_ip",
    "src_port",
    "dst_ip",
    "dst_port",
    "proto",
    "pkts_o",
    "pkts_r",
    "bytes_o",
    "bytes_r",
    "conn_state",
    "end_reason",
];

/// A format that has names for flows alone was asked of another command.
pub(crate) fn not_flows(output: Output) -> Failure {
    let name = format(output);
    let told =
        anyhow::anyhow!("--output {name} prints flows alone: use `taphouse flows --output {name}`, or ndjson here");
    Failure::new(Code::Usage, told)
}

pub(crate) fn flows(args: &FlowsArgs, output: Output) -> Result<(), Failure> {
    let now = Utc::now();
    let time = |text: &Option<String>| {
        text.as_deref().map(|t| crate::time::parse(t, now)).transpose().map_err(|e| Failure::new(Code::Usage, e))
    };
    if output.is_for_flows() && !args.columns.is_empty() {
        let told = anyhow::anyhow!("--output {} has fields of its own; leave --columns out", format(output));
        return Err(Failure::new(Code::Usage, told));
    }
    let columns = match (args.columns.is_empty(), output) {
        (true, Output::Table) => TABLE_COLUMNS.map(str::to_owned).to_vec(),
        _ => args.columns.clone(),
    };
    let question = FlowQuery {
        filter: args.filter.clone(),
        since: time(&args.since)?,
        until: time(&args.until)?,
        columns,
        limit: (args.limit > 0).then_some(args.limit),
        after: None,
    };
    ask(&args.from, output, Question::Flows(question))
}

pub(crate) fn sql(args: &SqlArgs, output: Output) -> Result<(), Failure> {
    ask(&args.from, output, Question::Sql(args.query.clone()))
}

/// Limits of a query from the configuration.
pub(crate) fn limits(config: &QuerySection) -> QueryLimits {
    QueryLimits {
        memory_bytes: usize::try_from(config.memory.0).unwrap_or(usize::MAX),
        time_max: Some(config.time_max.0),
        threads: match config.threads {
            0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            n => usize::from(n),
        },
        ..QueryLimits::default()
    }
}

enum Question {
    Flows(FlowQuery),
    Sql(String),
}

/// Batches from a server or from a folder.
enum Answer {
    Remote(Box<BatchStream>),
    Local(QueryStream),
}

impl Answer {
    fn schema(&self) -> SchemaRef {
        match self {
            Answer::Remote(stream) => stream.schema(),
            Answer::Local(stream) => stream.schema(),
        }
    }

    async fn next(&mut self) -> Result<Option<RecordBatch>, Failure> {
        match self {
            Answer::Remote(stream) => stream.next().await.map_err(remote),
            Answer::Local(stream) => stream.next().await.transpose().map_err(local),
        }
    }
}

fn ask(from: &FromArgs, output: Output, question: Question) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let printed = runtime.block_on(async {
        let mut answer = match &from.data_dir {
            Some(dir) => local_answer(dir, question).await?,
            None => remote_answer(&from.server, question).await?,
        };
        print(&mut answer, output).await
    });
    runtime.shutdown_background();
    printed
}

async fn local_answer(dir: &Path, question: Question) -> Result<Answer, Failure> {
    let limits = limits(&QuerySection::default());
    let engine = match dir.to_str().filter(|dir| archive::is_url(dir)) {
        Some(url) => Engine::new(ArchiveReader::open(url).map_err(|e| Failure::new(Code::Usage, e))?, limits)?,
        None => Engine::new(StoreReader::open(dir)?, limits)?,
    };
    let stream = match question {
        Question::Flows(flows) => engine.flows(flows).await,
        Question::Sql(text) => engine.sql(&text).await,
    };
    stream.map(Answer::Local).map_err(local)
}

async fn remote_answer(server: &str, question: Question) -> Result<Answer, Failure> {
    let mut client = rpc::client::connect(server).await.map_err(remote)?;
    let stream = match question {
        Question::Sql(text) => client.query(&text).await,
        Question::Flows(flows) => client.flows(&flows).await,
    };
    stream.map(|stream| Answer::Remote(Box::new(stream))).map_err(remote)
}

async fn print(answer: &mut Answer, output: Output) -> Result<(), Failure> {
    let out = BufWriter::new(std::io::stdout().lock());
    let mut renderer = Renderer::new(format(output), &answer.schema(), out)?;
    let mut rows = 0;
    loop {
        match answer.next().await {
            Ok(Some(batch)) => {
                rows += batch.num_rows();
                renderer.write(&batch)?;
            }
            Ok(None) => {
                renderer.finish()?;
                return Ok(());
            }
            // What was printed is closed, so that it stays valid: a begun array cannot take the error in, which goes to
            // standard error alone. Before the first row, and in a stream of lines, it is told in JSON too.
            Err(failure) => {
                if rows > 0 || output != Output::Json {
                    renderer.finish()?;
                }
                return Err(Failure { reported: rows > 0 && output == Output::Json, ..failure });
            }
        }
    }
}

pub(super) fn format(output: Output) -> OutputFormat {
    match output {
        Output::Table => OutputFormat::Table,
        Output::Json => OutputFormat::Json,
        Output::Ndjson => OutputFormat::Ndjson,
        Output::Csv => OutputFormat::Csv,
        Output::Ecs => OutputFormat::Ecs,
        Output::Eve => OutputFormat::Eve,
    }
}

/// A wrong question is the caller's, anything else is ours.
fn local(error: QueryError) -> Failure {
    let code = match error {
        QueryError::Sql(_) | QueryError::Filter(_) | QueryError::ReadOnly { .. } | QueryError::TooLong { .. } => {
            Code::Usage
        }
        _ => Code::Failed,
    };
    Failure::new(code, error)
}

pub(super) fn remote(error: RpcError) -> Failure {
    let code = match &error {
        RpcError::NoServer { .. } => Code::Unreachable,
        RpcError::Address { .. } => Code::Usage,
        RpcError::Status(status) if status.code() == tonic::Code::InvalidArgument => Code::Usage,
        _ => Code::Failed,
    };
    // The text alone: the status behind it would repeat the server's message.
    Failure::new(code, anyhow::anyhow!("{error}"))
}
