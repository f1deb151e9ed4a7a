//! Where rows come from: a server, a data folder or an archive of many, read ahead of whoever prints them, until a signal ends it.

use super::talkers::Live;
use super::{local, remote};
use crate::cli::AnswerArgs;
use crate::config::{Config, QuerySection};
use crate::failure::{Code, Failure};
use crate::tables::Tables;
use archive::ArchiveReader;
use arrow::array::RecordBatch;
use arrow::datatypes::{Schema, SchemaRef};
use futures::StreamExt;
use query::{Engine, FlowQuery, QueryError, QueryStream};
use rpc::client::{BatchStream, Client};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering::Relaxed};
use std::time::Duration;
use storage::StoreReader;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{self, Receiver, Sender};

/// Batches read ahead of the printer.
const BATCHES_AHEAD: usize = 2;

/// How long an interrupted command may take to end by itself before it is ended: it may hang in a write.
const GRACE: Duration = Duration::from_millis(500);

/// What a query over a folder is to say beside its answer.
const WARNINGS: &str = "off,storage=warn,taphouse=warn";

/// Times a query begins anew over a folder whose segments are dropped or merged meanwhile.
const TRIES_MAX: usize = 10;

/// Between two looks for the place of a query.
const PAUSE: Duration = Duration::from_millis(1);

/// Segments up to which a folder is looked through for others: of many, listing them would take longer than the question.
const UNLISTED_SOUGHT_MAX: usize = 10_000;

/// Longer than it mostly takes from a segment's name to its line in the manifest.
const PUBLISHING: Duration = Duration::from_millis(300);

/// What makes a statement of an answer.
type Next = Box<dyn FnOnce(&[RecordBatch]) -> Result<String, Failure> + Send>;

/// What is asked.
pub(super) enum Question {
    /// The newest flows.
    Flows(FlowQuery),
    /// A statement of the user's.
    Sql(String),
    /// A statement made here around the user's filter. Should the statement be refused, the filter is asked for alone:
    /// places in the error are then those in the filter.
    Made { sql: String, filter: FlowQuery },
    /// A statement that another one's answer leads to.
    Then(String, Next),
    /// What a server's sketches have in memory.
    Talkers(Box<Live>),
}

impl Question {
    /// A statement, and what makes another one of its answer.
    pub(super) fn then(
        first: String,
        then: impl FnOnce(&[RecordBatch]) -> Result<String, Failure> + Send + 'static,
    ) -> Question {
        Question::Then(first, Box::new(then))
    }
}

/// An answer on its way. Dropping it cancels the query.
pub(super) struct Answer {
    schema: SchemaRef,
    batches: Receiver<Result<RecordBatch, Failure>>,
    stop: Arc<Stop>,
    runtime: Option<Runtime>,
}

/// A signal that came.
#[derive(Default)]
struct Stop {
    /// The exit code it makes; 0 before it comes.
    code: AtomicU8,
    /// The printer will notice by itself, and has things to put in order.
    patient: AtomicBool,
}

impl Stop {
    fn check(&self) -> Result<(), Failure> {
        match self.code.load(Relaxed) {
            0 => Ok(()),
            143 => Err(Failure::new(Code::Terminated, anyhow::anyhow!("ended by SIGTERM"))),
            _ => Err(Failure::new(Code::Interrupted, anyhow::anyhow!("interrupted"))),
        }
    }
}

impl Answer {
    /// Asks, and waits until the columns are known, and over a folder the first rows too.
    pub(super) fn ask(args: &AnswerArgs, question: Question) -> Result<Answer, Failure> {
        let source = match &args.from.data_dir {
            Some(dir) => {
                let config = Config::load(args.config.as_deref(), &args.overrides);
                Source::Folder(dir.clone(), config.map_err(|e| Failure::new(Code::Usage, e))?.query)
            }
            None => Source::Server(args.from.server.clone()),
        };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let stop = Arc::new(Stop::default());
        let (schema_sender, schema) = tokio::sync::oneshot::channel();
        let (sender, batches) = mpsc::channel(BATCHES_AHEAD);
        let reader = runtime.spawn(async move {
            let opened = open(&source, question).await;
            let (told, stream) = opened.map_or_else(|e| (Err(e), None), |stream| (Ok(stream.schema()), Some(stream)));
            // Fails when nobody waits any more.
            let waiting = schema_sender.send(told).is_ok();
            if let Some(stream) = stream.filter(|_| waiting) {
                read(stream, &sender).await;
            }
        });
        let (told, abort) = (stop.clone(), reader.abort_handle());
        let (mut interrupts, mut terminations) = {
            let _runtime = runtime.enter();
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
        };
        runtime.spawn(async move {
            let code = tokio::select! {
                _ = interrupts.recv() => Code::Interrupted,
                _ = terminations.recv() => Code::Terminated,
            };
            told.code.store(code as u8, Relaxed);
            // Ends the stream, which cancels the query.
            abort.abort();
            tokio::time::sleep(GRACE).await;
            if !told.patient.load(Relaxed) {
                std::process::exit(i32::from(code as u8));
            }
        });
        let schema = runtime.block_on(schema);
        let mut answer = Answer { schema: Arc::new(Schema::empty()), batches, stop, runtime: Some(runtime) };
        answer.check()?;
        answer.schema = schema.map_err(|_| anyhow::anyhow!("the query was stopped before it was answered"))??;
        Ok(answer)
    }

    /// Whether a signal came.
    ///
    /// # Errors
    /// What the command then ends with.
    pub(super) fn check(&self) -> Result<(), Failure> {
        self.stop.check()
    }

    /// The columns of every batch.
    pub(super) fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    /// The next batch; `None` after the last.
    pub(super) fn next(&mut self) -> Result<Option<RecordBatch>, Failure> {
        let next = self.batches.blocking_recv().transpose();
        self.check()?;
        next
    }

    /// A signal ends the answer alone: the caller, who may take long to notice, ends the process.
    pub(super) fn be_patient(&self) {
        self.stop.patient.store(true, Relaxed);
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

enum Source {
    Server(String),
    /// And the budgets of the query.
    Folder(PathBuf, QuerySection),
}

/// One side of it, connected.
enum Asked {
    Server(Box<Client>),
    Folder(Engine),
}

enum Batches {
    Remote(Box<BatchStream>),
    /// With the first batch, until it is taken.
    Local(QueryStream, Option<RecordBatch>),
    /// All of it, until it is taken.
    Ready(SchemaRef, Option<RecordBatch>),
}

impl Batches {
    fn schema(&self) -> SchemaRef {
        match self {
            Batches::Remote(stream) => stream.schema(),
            Batches::Local(stream, _) => stream.schema(),
            Batches::Ready(schema, _) => schema.clone(),
        }
    }

    async fn next(&mut self) -> Result<Option<RecordBatch>, Failure> {
        match self {
            Batches::Remote(stream) => stream.next().await.map_err(remote),
            Batches::Local(stream, first) => match first.take() {
                Some(first) => Ok(Some(first)),
                None => stream.next().await.transpose().map_err(local),
            },
            Batches::Ready(_, batch) => Ok(batch.take()),
        }
    }
}

impl Asked {
    async fn connect(source: &Source) -> Result<Asked, Failure> {
        Ok(match source {
            Source::Server(addr) => Asked::Server(Box::new(rpc::client::connect(addr).await.map_err(remote)?)),
            Source::Folder(dir, config) => {
                let (limits, geo) = (super::limits(config), super::geo_files(config));
                let engine = match dir.to_str().filter(|dir| archive::is_url(dir)) {
                    Some(url) => {
                        let archive = ArchiveReader::open(url).map_err(|e| Failure::new(Code::Usage, e))?;
                        Engine::with_geo(archive, limits, &geo)?
                    }
                    None => {
                        // What is left out of an answer is told, even where nothing else is.
                        drop(super::super::start_logging(WARNINGS));
                        let reader = StoreReader::open(dir)?;
                        warn_of_unlisted(&reader).await;
                        Engine::with_geo(Tables::of_folder(reader), limits, &geo)?
                    }
                };
                Asked::Folder(engine)
            }
        })
    }

    async fn sql(&mut self, text: &str) -> Result<Batches, Failure> {
        match self {
            Asked::Server(client) => client.query(text).await.map(|s| Batches::Remote(Box::new(s))).map_err(remote),
            Asked::Folder(engine) => begun(engine, Asking::Sql(text)).await,
        }
    }

    async fn flows(&mut self, query: FlowQuery) -> Result<Batches, Failure> {
        match self {
            Asked::Server(client) => client.flows(&query).await.map(|s| Batches::Remote(Box::new(s))).map_err(remote),
            Asked::Folder(engine) => begun(engine, Asking::Flows(query)).await,
        }
    }
}

/// What is asked of a folder.
enum Asking<'a> {
    Sql(&'a str),
    Flows(FlowQuery),
}

/// Asks again where a segment is gone before anything was answered: a server that writes the folder may drop or merge segments
/// between two looks at it, and the next snapshot has what there is then. One that is gone twice stays so.
async fn begun(engine: &Engine, asking: Asking<'_>) -> Result<Batches, Failure> {
    let mut gone: Vec<String> = Vec::new();
    loop {
        let stream = match &asking {
            Asking::Sql(text) => engine.sql(text).await,
            Asking::Flows(query) => engine.flows(query.clone()).await,
        };
        let mut stream = match stream {
            // The place of the query before, which is being given back.
            Err(QueryError::Busy { .. }) if !gone.is_empty() => {
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            stream => stream.map_err(local)?,
        };
        match stream.next().await.transpose() {
            Err(QueryError::SegmentGone { path }) if gone.len() < TRIES_MAX && !gone.contains(&path) => gone.push(path),
            first => return Ok(Batches::Local(stream, first.map_err(local)?)),
        }
    }
}

/// Tells of segments that no answer has. Those of a moment, while a server publishes or merges, are none. What cannot be looked
/// at is no reason not to answer.
async fn warn_of_unlisted(reader: &StoreReader) {
    let first = unlisted(reader).await;
    if first.is_empty() {
        return;
    }
    tokio::time::sleep(PUBLISHING).await;
    let again = unlisted(reader).await;
    let still: Vec<&PathBuf> = first.iter().filter(|path| again.contains(path)).collect();
    if let Some(first) = still.first() {
        tracing::warn!(
            first = %first.display(),
            "the manifest does not list {} segment file(s), and no answer has rows that only they have: it was cut short, or a crash left \
             them; a start of the server lists those whose rows are nowhere else",
            still.len()
        );
    }
}

async fn unlisted(reader: &StoreReader) -> Vec<PathBuf> {
    let reader = reader.clone();
    let look = move || {
        let listed: usize = reader.segments()?.iter().map(|(_, segments)| segments.len()).sum();
        if listed > UNLISTED_SOUGHT_MAX { Ok(Vec::new()) } else { reader.unlisted() }
    };
    match tokio::task::spawn_blocking(look).await {
        Ok(Ok(unlisted)) => unlisted,
        Ok(Err(error)) => {
            tracing::debug!(%error, "cannot look for segments that are not listed");
            Vec::new()
        }
        Err(_) => Vec::new(),
    }
}

async fn open(source: &Source, question: Question) -> Result<Batches, Failure> {
    let mut asked = Asked::connect(source).await?;
    match question {
        Question::Flows(query) => asked.flows(query).await,
        Question::Sql(text) => asked.sql(&text).await,
        Question::Made { sql, filter } => match asked.sql(&sql).await {
            Err(failure) if failure.code == Code::Usage => match asked.flows(filter).await {
                Err(better) if better.code == Code::Usage => Err(better),
                _ => Err(failure),
            },
            other => other,
        },
        Question::Then(first, then) => {
            let mut batches = asked.sql(&first).await?;
            let mut all = Vec::new();
            while let Some(batch) = batches.next().await? {
                all.push(batch);
            }
            asked.sql(&then(&all)?).await
        }
        Question::Talkers(live) => match &mut asked {
            Asked::Server(client) => {
                let batch = live.ask(client).await?;
                Ok(Batches::Ready(batch.schema(), Some(batch)))
            }
            Asked::Folder(_) => {
                let told = "a data folder has no window in memory: ask the server, without --data-dir";
                Err(Failure::new(Code::Usage, anyhow::anyhow!(told)))
            }
        },
    }
}

/// Hands batches over until the end, an error, or nobody takes them.
async fn read(mut stream: Batches, sender: &Sender<Result<RecordBatch, Failure>>) {
    while let Some(batch) = stream.next().await.transpose() {
        let failed = batch.is_err();
        if sender.send(batch).await.is_err() || failed {
            return;
        }
    }
}
