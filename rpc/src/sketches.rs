//! `SketchService` over the windows of the sketches.

use crate::alerts::message::timestamp;
use crate::scope::{Scope, reader_gone};
use crate::status::ToStatus;
use crate::v1;
use crate::v1::sketch_selector::Window as Asked;
use crate::v1::sketch_service_server::SketchService;
use arrow::array::RecordBatch;
use futures::StreamExt;
use query::Engine;
use query::render::cell;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use talkers::{Board, Estimand, Flows, KeyFields, KeySpec, Kind, Known, Metric, Task, TaskError, Which, Window};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use wire::{Addr, Nanos};

const LIMIT_DEFAULT: usize = 20;
const LIMIT_MAX: usize = 10_000;
/// Fields a key may be asked by.
const FIELDS_MAX: usize = 16;
/// Quantiles of one request.
const QUANTILES_MAX: usize = 1_000;
/// Of the thousand operators and names that a query may have, those for the keys it is to prove: each takes four for each field, and
/// one.
const PROOF_WORDS_MAX: usize = 800;
/// Keys that one request has proved.
const EXACT_MAX: usize = 1_000;
/// How often two windows are read again because one ended meanwhile.
const PAIR_ATTEMPTS: usize = 8;
/// What keys have of.
const COUNTED: [Metric; 4] = [Metric::Bytes, Metric::Packets, Metric::Flows, Metric::Distinct];
/// How often a watcher looks whether a window is over.
const LOOK: Duration = Duration::from_millis(100);

/// `SketchService` over a board.
#[derive(Clone)]
pub(crate) struct Sketches {
    pub(crate) board: Arc<Board>,
    pub(crate) engine: Engine,
    pub(crate) closing: watch::Receiver<bool>,
    /// Questions that may be answered at a time: each may take as much memory as a sketch.
    pub(crate) turns: Arc<Semaphore>,
}

/// Questions answered at a time; others wait.
pub(crate) const READS_MAX: usize = 4;

impl Sketches {
    /// Reads the board on a thread that may take its time: a question may be a pass over megabytes.
    async fn read<T: Send + 'static>(
        &self,
        f: impl FnOnce(&Board) -> Result<T, Status> + Send + 'static,
    ) -> Result<T, Status> {
        let board = self.board.clone();
        let closed = |_| Status::unavailable("the server is shutting down");
        let turn = self.turns.clone().acquire_owned().await.map_err(closed)?;
        let done = tokio::task::spawn_blocking(move || {
            // Also where the caller has gone meanwhile, until it is done.
            let _turn = turn;
            f(&board)
        })
        .await;
        done.map_err(|_| Status::internal("the sketches could not be read"))?
    }

    async fn window(&self, from: &Selector) -> Result<Arc<Window>, Status> {
        let from = from.clone();
        self.read(move |board| from.window(board)).await
    }

    /// What a window says.
    async fn answer(&self, top: &Top, window: Arc<Window>) -> Result<v1::TopKResponse, Status> {
        let (asked, of) = (top.clone(), window.clone());
        let mut answer = self.read(move |_| asked.answer(&of)).await?;
        if top.exact {
            self.prove(&top.from, &window, &top.by, &mut answer.talkers).await?;
        }
        Ok(answer)
    }

    /// Fills what the flows say.
    async fn prove(
        &self,
        from: &Selector,
        window: &Window,
        by: &KeySpec,
        talkers: &mut [v1::Talker],
    ) -> Result<(), Status> {
        for some in talkers.chunks_mut((PROOF_WORDS_MAX / (4 * by.names().len() + 1)).max(1)) {
            let keys: Vec<KeyFields> = some.iter().map(|t| key_fields(t.key.as_ref())).collect::<Result<_, _>>()?;
            let sql = proof(from, window, by, &keys).ok_or_else(|| Status::invalid_argument(UNPROVEN))?;
            let exact = self.exact(&sql).await?;
            for (talker, key) in some.iter_mut().zip(keys) {
                // Who is not among them has nothing.
                talker.exact = Some(exact.get(&text_of(by, &key)).copied().unwrap_or(0.0));
            }
        }
        Ok(())
    }

    /// The answer to a proof, by the texts of its key.
    async fn exact(&self, sql: &str) -> Result<HashMap<Vec<String>, f64>, Status> {
        let mut stream = self.engine.sql(sql).await.map_err(|e| e.to_status())?;
        let mut exact = HashMap::new();
        while let Some(batch) = stream.next().await {
            read_proof(&batch.map_err(|e| e.to_status())?, &mut exact);
        }
        Ok(exact)
    }
}

const UNPROVEN: &str = "exact: flows do not tell of keys with a prefix; leave the prefix or `exact` out";

/// The query that proves what a window says of some keys, or of all.
fn proof(from: &Selector, window: &Window, by: &KeySpec, keys: &[KeyFields]) -> Option<String> {
    let estimand = Estimand::of(window.task(), by, from.tap.as_deref());
    estimand.proof(keys, Some(window.times()), Flows::StoredAndActive)
}

fn read_proof(batch: &RecordBatch, exact: &mut HashMap<Vec<String>, f64>) {
    let Some((last, key)) = batch.columns().split_last() else { return };
    for row in 0..batch.num_rows() {
        let texts = key.iter().map(|column| cell(column, row).to_text().into_owned()).collect();
        exact.insert(texts, cell(last, row).to_text().parse().unwrap_or(f64::NAN));
    }
}

/// The values of a key in the order of its fields, as a query prints them.
fn text_of(by: &KeySpec, key: &KeyFields) -> Vec<String> {
    let values = key.values();
    let value = |name| values.iter().find(|(other, _)| *other == name).and_then(|(_, value)| *value);
    by.names().into_iter().map(|name| value(name).map_or(String::new(), |value| value.to_string())).collect()
}

/// A checked `SketchSelector`, with the task it stands for.
#[derive(Clone)]
struct Selector {
    task: Arc<Task>,
    tap: Option<String>,
    asked: Asked,
}

impl Selector {
    /// `metric` is what a request names, or none; `kind` what it wants anyway.
    fn new(
        board: &Board,
        from: Option<v1::SketchSelector>,
        metric: &str,
        by: &KeySpec,
        kind: Option<Metric>,
    ) -> Result<Selector, Status> {
        let from = from.unwrap_or_default();
        let asked = Asked::try_from(from.window).map_err(|_| {
            let told = "allowed are 0 (the latest there is), 1 (the last), 2 (the previous) and 3 (the running one)";
            Status::invalid_argument(format!("from.window is {}, {told}", from.window))
        })?;
        if !from.tap.is_empty() && !board.taps().contains(&from.tap) {
            let (tap, taps) = (&from.tap, board.taps().join(", "));
            return Err(Status::invalid_argument(format!("from.tap is '{tap}', which is no tap; there are {taps}")));
        }
        let metric = match metric {
            "" => kind,
            name => Some(counted(name)?),
        };
        let task = match from.task.as_str() {
            "" => board.find(None, metric, by).map_err(refused)?,
            name => {
                let unknown = |error| Status::invalid_argument(format!("from.task: {error}"));
                board.find(Some(name), metric, by).map_err(unknown)?
            }
        };
        if !task.answers(by) || metric.is_some_and(|metric| metric != task.metric()) {
            return Err(cannot(task, metric, by));
        }
        Ok(Selector { task: task.clone(), tap: Some(from.tap).filter(|tap| !tap.is_empty()), asked })
    }

    fn get(&self, board: &Board, which: Which) -> Result<Option<Arc<Window>>, Status> {
        board.window(&self.task, self.tap.as_deref(), which).map_err(|error| match error {
            TaskError::Busy => Status::unavailable(error.to_string()),
            other => refused(other),
        })
    }

    /// The window that was asked for.
    fn window(&self, board: &Board) -> Result<Arc<Window>, Status> {
        let window = match self.asked {
            Asked::Unspecified => match self.get(board, Which::Last)? {
                None => self.get(board, Which::Running)?,
                last => last,
            },
            Asked::Last => self.get(board, Which::Last)?,
            Asked::Previous => self.get(board, Which::Previous)?,
            Asked::Running => self.get(board, Which::Running)?,
        };
        window.ok_or_else(|| self.none(self.asked))
    }

    /// The windows that are over and began after `told`, the oldest first; without that the last one alone.
    fn over(&self, board: &Board, told: Option<Nanos>) -> Result<Vec<Arc<Window>>, Status> {
        // In this order: one that ends in between is then seen the next time, and none is missed.
        let Some(last) = self.get(board, Which::Last)? else { return Ok(Vec::new()) };
        let Some(told) = told else { return Ok(vec![last]) };
        let begin = |window: &Arc<Window>| window.times().0;
        let previous = self.get(board, Which::Previous)?.filter(|previous| begin(previous) < begin(&last));
        Ok(previous.into_iter().chain([last]).filter(|window| begin(window) > told).collect())
    }

    /// Two windows, the earlier one first.
    fn pair(&self, board: &Board, earlier: Which, later: Which) -> Result<[Arc<Window>; 2], Status> {
        let get = |which| self.get(board, which)?.ok_or_else(|| self.none(Asked::Last));
        for _ in 0..PAIR_ATTEMPTS {
            let (before, after) = (get(earlier)?, get(later)?);
            // No window has ended in between.
            if before.times() == get(earlier)?.times() && before.times().0 < after.times().0 {
                return Ok([before, after]);
            }
        }
        Err(Status::unavailable("windows end faster than they can be read; ask again, or set longer ones"))
    }

    fn none(&self, asked: Asked) -> Status {
        let (name, seconds) = (self.task.name(), self.task.config().window.0 as f64 / 1e9);
        Status::failed_precondition(match asked {
            Asked::Running | Asked::Unspecified => {
                format!("no packet has come yet, and no window of task '{name}' has begun")
            }
            _ => format!(
                "no such window of task '{name}' is over yet: a window lasts {seconds} s of packet time; ask for the one being \
                 filled, or wait"
            ),
        })
    }
}

/// The metric of that name, of those that keys have.
fn counted(name: &str) -> Result<Metric, Status> {
    Metric::of_name(name).filter(|metric| COUNTED.contains(metric)).ok_or_else(|| {
        let known = COUNTED.map(Metric::name).join(", ");
        Status::invalid_argument(format!("metric is '{name}', allowed are {known}"))
    })
}

fn cannot(task: &Task, metric: Option<Metric>, by: &KeySpec) -> Status {
    let (name, has, key) = (task.name(), task.metric().name(), task.key());
    let answers = match task.config().kind {
        Kind::HeavyHitters => format!("by any part of {key}"),
        Kind::TopK | Kind::Spreaders => format!("by {key}"),
        Kind::Cardinality | Kind::Entropy | Kind::Quantiles => format!("of {} as a whole", task.elements()),
    };
    let metric = metric.map_or(String::new(), |metric| format!("{} ", metric.name()));
    let by = if by.is_empty() { "as a whole".to_owned() } else { format!("by {by}") };
    Status::invalid_argument(format!("from.task is '{name}', which knows {has} {answers}, not {metric}{by}"))
}

/// A checked `TopKRequest`.
#[derive(Clone)]
struct Top {
    from: Selector,
    by: KeySpec,
    threshold: u64,
    limit: usize,
    exact: bool,
}

impl Top {
    fn new(board: &Board, request: v1::TopKRequest) -> Result<Top, Status> {
        let by = key_spec(&request.by)?;
        let from = Selector::new(board, request.from, &request.metric, &by, None)?;
        provable(&from.task, &by, request.exact)?;
        let limit = limit(request.limit)?;
        if request.exact && limit > EXACT_MAX {
            let told = format!("limit is {limit}, allowed are up to {EXACT_MAX} with exact: each few keys are a query");
            return Err(Status::invalid_argument(told));
        }
        Ok(Top {
            threshold: request.threshold.unwrap_or(from.task.config().threshold),
            limit,
            exact: request.exact,
            from,
            by,
        })
    }

    fn answer(&self, window: &Window) -> Result<v1::TopKResponse, Status> {
        let listing = window.list(&self.by, self.threshold, self.limit).map_err(refused)?;
        Ok(v1::TopKResponse {
            window: Some(window_message(&self.from, window)),
            talkers: listing.keys.iter().map(|(key, known)| talker(key, *known)).collect(),
            others: Some(estimated(listing.others)),
            total: window.total().map(|total| total as f64),
            proof_sql: proof(&self.from, window, &self.by, &[]).unwrap_or_default(),
        })
    }
}

#[tonic::async_trait]
impl SketchService for Sketches {
    async fn list_tasks(&self, _: Request<v1::ListTasksRequest>) -> Result<Response<v1::ListTasksResponse>, Status> {
        let tasks = self.board.tasks().iter().map(|task| task_message(task)).collect();
        Ok(Response::new(v1::ListTasksResponse { tasks }))
    }

    async fn top_k(&self, request: Request<v1::TopKRequest>) -> Result<Response<v1::TopKResponse>, Status> {
        let scope = Scope::new(request.metadata(), self.closing.clone());
        let top = Top::new(&self.board, request.into_inner())?;
        let work = async {
            let window = self.window(&top.from).await?;
            self.answer(&top, window).await
        };
        scope.run(work).await.map(Response::new)
    }

    type WatchTopKStream = ReceiverStream<Result<v1::TopKResponse, Status>>;

    async fn watch_top_k(&self, request: Request<v1::TopKRequest>) -> Result<Response<Self::WatchTopKStream>, Status> {
        let scope = Scope::new(request.metadata(), self.closing.clone());
        let top = Top::new(&self.board, request.into_inner())?;
        if top.from.asked == Asked::Previous {
            let told = "from.window is WINDOW_PREVIOUS, which does not change; allowed are the last, the running one, or 0 for both";
            return Err(Status::invalid_argument(told));
        }
        let sketches = self.clone();
        let answers = scope.stream(move |sender| watch(sketches, top, sender), |_| ());
        Ok(Response::new(ReceiverStream::new(answers)))
    }

    async fn estimate_key(
        &self,
        request: Request<v1::EstimateKeyRequest>,
    ) -> Result<Response<v1::EstimateKeyResponse>, Status> {
        let scope = Scope::new(request.metadata(), self.closing.clone());
        let request = request.into_inner();
        let by = key_spec(&request.by)?;
        let from = Selector::new(&self.board, request.from, &request.metric, &by, None)?;
        provable(&from.task, &by, request.exact)?;
        let key = key_fields(request.key.as_ref())?;
        check_key(&by, &key)?;
        let work = async {
            let window = self.window(&from).await?;
            let (spec, of) = (by.clone(), window.clone());
            let known = self.read(move |_| of.estimate(&spec, &key).map_err(refused)).await?;
            // Of a network its first address.
            let key = by.network(&key).map_err(refused)?;
            let mut talkers = [talker(&key, known)];
            if request.exact {
                self.prove(&from, &window, &by, &mut talkers).await?;
            }
            let [talker] = talkers;
            Ok(v1::EstimateKeyResponse {
                window: Some(window_message(&from, &window)),
                talker: Some(talker),
                proof_sql: proof(&from, &window, &by, &[key]).unwrap_or_default(),
            })
        };
        scope.run(work).await.map(Response::new)
    }

    async fn list_changers(
        &self,
        request: Request<v1::ListChangersRequest>,
    ) -> Result<Response<v1::ListChangersResponse>, Status> {
        let scope = Scope::new(request.metadata(), self.closing.clone());
        let request = request.into_inner();
        let by = key_spec(&request.by)?;
        let from = Selector::new(&self.board, request.from, &request.metric, &by, None)?;
        let limit = limit(request.limit)?;
        if from.task.metric() == Metric::Distinct {
            let told = "changes are of bytes, packets or flows: name another with metric or from.task";
            let name = from.task.name();
            return Err(Status::invalid_argument(format!("task '{name}' counts distinct elements, and {told}")));
        }
        let (earlier, later) = match from.asked {
            Asked::Running => (Which::Last, Which::Running),
            Asked::Unspecified | Asked::Last => (Which::Previous, Which::Last),
            Asked::Previous => {
                let told =
                    "from.window is WINDOW_PREVIOUS: what came before it is not kept; ask for the last or the running";
                return Err(Status::invalid_argument(told));
            }
        };
        let answer = self.read(move |board| {
            let [before, after] = from.pair(board, earlier, later)?;
            let changed = after.changed(&before, &by, limit).map_err(refused)?;
            Ok(v1::ListChangersResponse {
                before: Some(window_message(&from, &before)),
                after: Some(window_message(&from, &after)),
                changers: changed
                    .into_iter()
                    .map(|changed| v1::Changer {
                        key: Some(key_message(&changed.key)),
                        before: Some(estimated(changed.before)),
                        after: Some(estimated(changed.after)),
                        change: Some(estimated(changed.change)),
                    })
                    .collect(),
            })
        });
        scope.run(answer).await.map(Response::new)
    }

    async fn estimate_cardinality(
        &self,
        request: Request<v1::EstimateCardinalityRequest>,
    ) -> Result<Response<v1::EstimateCardinalityResponse>, Status> {
        let scope = Scope::new(request.metadata(), self.closing.clone());
        let from = self.whole(request.into_inner().from, Metric::Distinct)?;
        let answer = self.read(move |board| {
            let window = from.window(board)?;
            Ok(v1::EstimateCardinalityResponse {
                window: Some(window_message(&from, &window)),
                elements: window.task().elements(),
                distinct: Some(estimated(window.distinct().map_err(refused)?)),
            })
        });
        scope.run(answer).await.map(Response::new)
    }

    async fn estimate_entropy(
        &self,
        request: Request<v1::EstimateEntropyRequest>,
    ) -> Result<Response<v1::EstimateEntropyResponse>, Status> {
        let scope = Scope::new(request.metadata(), self.closing.clone());
        let from = self.whole(request.into_inner().from, Metric::Entropy)?;
        let answer = self.read(move |board| {
            let window = from.window(board)?;
            let (bits, evenness) = window.entropy().map_err(refused)?;
            Ok(v1::EstimateEntropyResponse {
                window: Some(window_message(&from, &window)),
                elements: window.task().elements(),
                bits: Some(estimated(bits)),
                evenness,
            })
        });
        scope.run(answer).await.map(Response::new)
    }

    async fn estimate_quantiles(
        &self,
        request: Request<v1::EstimateQuantilesRequest>,
    ) -> Result<Response<v1::EstimateQuantilesResponse>, Status> {
        let scope = Scope::new(request.metadata(), self.closing.clone());
        let v1::EstimateQuantilesRequest { from, quantiles } = request.into_inner();
        let from = self.whole(from, Metric::Quantile)?;
        if quantiles.len() > QUANTILES_MAX {
            let told = format!("quantiles has {} numbers, allowed are up to {QUANTILES_MAX}", quantiles.len());
            return Err(Status::invalid_argument(told));
        }
        if let Some(q) = quantiles.iter().find(|q| !(0.0..=1.0).contains(*q)) {
            let told = format!("quantiles has {q}, allowed are numbers from 0 to 1, such as 0.99");
            return Err(Status::invalid_argument(told));
        }
        let answer = self.read(move |board| {
            let window = from.window(board)?;
            let asked = if quantiles.is_empty() { window.task().config().quantiles.clone() } else { quantiles };
            let value = |quantile: f64| {
                let value = window.quantile(quantile).map_err(refused)?.map(estimated);
                Ok(v1::estimate_quantiles_response::Quantile { quantile, value })
            };
            Ok(v1::EstimateQuantilesResponse {
                window: Some(window_message(&from, &window)),
                elements: window.task().elements(),
                count: window.total().unwrap_or(0),
                quantiles: asked.into_iter().map(value).collect::<Result<_, Status>>()?,
            })
        });
        scope.run(answer).await.map(Response::new)
    }
}

impl Sketches {
    /// A task that is asked for its window as a whole.
    fn whole(&self, from: Option<v1::SketchSelector>, metric: Metric) -> Result<Selector, Status> {
        Selector::new(&self.board, from, "", &KeySpec::nothing(), Some(metric))
    }
}

/// Sends the window being filled at each interval, and each window once more when it is over; one of the two, if that was asked
/// for.
async fn watch(
    sketches: Sketches,
    top: Top,
    sender: mpsc::Sender<Result<v1::TopKResponse, Status>>,
) -> Result<(), Status> {
    let interval = Duration::from_nanos(top.from.task.config().snapshot_interval.0);
    let (mut told, mut next) = (None, Instant::now());
    loop {
        if top.from.asked != Asked::Running {
            let from = top.from.clone();
            for window in sketches.read(move |board| from.over(board, told)).await? {
                told = Some(window.times().0);
                let answer = sketches.answer(&top, window).await?;
                sender.send(Ok(answer)).await.map_err(reader_gone)?;
            }
        }
        if top.from.asked != Asked::Last && Instant::now() >= next {
            // Of a reader who is slow there are fewer.
            next = Instant::now() + interval;
            let from = top.from.clone();
            let running = sketches.read(move |board| from.get(board, Which::Running)).await;
            // Nothing may have begun yet; and where a window just ended, there is another snapshot.
            let running = running.or_else(|status| match status.code() {
                tonic::Code::Unavailable => Ok(None),
                _ => Err(status),
            });
            if let Some(window) = running? {
                let answer = sketches.answer(&top, window).await?;
                sender.send(Ok(answer)).await.map_err(reader_gone)?;
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Requests are checked before the sketches are asked: what they refuse all the same is of the request, what fails is not.
fn refused(error: TaskError) -> Status {
    match error {
        TaskError::Sketch { .. } => Status::internal(error.to_string()),
        other => Status::invalid_argument(other.to_string()),
    }
}

fn provable(task: &Task, by: &KeySpec, is_wanted: bool) -> Result<(), Status> {
    let is_told = || Estimand::of(task, by, None).proof(&[], None, Flows::StoredAndActive).is_some();
    if !is_wanted || is_told() { Ok(()) } else { Err(Status::invalid_argument(UNPROVEN)) }
}

fn key_spec(by: &[String]) -> Result<KeySpec, Status> {
    if by.is_empty() || by.len() > FIELDS_MAX {
        let told = format!("by has {} fields, wanted are 1 to {FIELDS_MAX}, such as src_ip", by.len());
        return Err(Status::invalid_argument(told));
    }
    KeySpec::new(by).map_err(|error| match error {
        TaskError::Setting { value, allowed, .. } => Status::invalid_argument(format!("by is '{value}': {allowed}")),
        other => refused(other),
    })
}

/// Whether a key has a value for each of its fields, and for no other one.
fn check_key(by: &KeySpec, key: &KeyFields) -> Result<(), Status> {
    let names = by.names();
    for (name, value) in key.values() {
        let told = match (names.contains(&name), value) {
            (true, None) => "has no value; give it one".to_owned(),
            (false, Some(value)) => format!("is {value}, and no field of the key {by}; leave it out"),
            _ => continue,
        };
        return Err(Status::invalid_argument(format!("key.{name} {told}")));
    }
    Ok(())
}

fn limit(asked: i32) -> Result<usize, Status> {
    match usize::try_from(asked) {
        Ok(0) => Ok(LIMIT_DEFAULT),
        Ok(limit) => Ok(limit.min(LIMIT_MAX)),
        Err(_) => Err(Status::invalid_argument(format!(
            "limit is {asked}, allowed are 0 (which stands for {LIMIT_DEFAULT}) to {LIMIT_MAX}"
        ))),
    }
}

fn task_message(task: &Task) -> v1::SketchTask {
    let config = task.config();
    let duration = |time: wire::Nanos| prost_types::Duration {
        seconds: (time.0 / 1_000_000_000) as i64,
        nanos: (time.0 % 1_000_000_000) as i32,
    };
    v1::SketchTask {
        name: task.name().to_owned(),
        kind: config.kind.name().to_owned(),
        metric: task.metric().name().to_owned(),
        key: task.key().to_string(),
        elements: task.elements(),
        window: Some(duration(config.window)),
        snapshot_interval: Some(duration(config.snapshot_interval)),
        threshold: config.threshold,
        memory_bytes: task.memory_bytes() as u64,
    }
}

/// The window as it was asked for: of all taps also where only one of them had it.
fn window_message(from: &Selector, window: &Window) -> v1::SketchWindow {
    let (start, end) = window.times();
    v1::SketchWindow {
        task: window.task().name().to_owned(),
        tap: from.tap.clone().unwrap_or_default(),
        start_time: Some(timestamp(start)),
        end_time: Some(timestamp(end)),
        running: window.is_running(),
    }
}

fn talker(key: &KeyFields, known: Known) -> v1::Talker {
    v1::Talker { key: Some(key_message(key)), estimated: Some(estimated(known)), exact: None }
}

fn estimated(known: Known) -> v1::Estimated {
    v1::Estimated { estimate: known.estimate, lower: known.lower, upper: known.upper }
}

fn key_message(key: &KeyFields) -> v1::TalkerKey {
    let address = |address: Option<Addr>| address.map(|address| address.to_string());
    v1::TalkerKey {
        src_ip: address(key.src_ip),
        dst_ip: address(key.dst_ip),
        src_port: key.src_port.map(u32::from),
        dst_port: key.dst_port.map(u32::from),
        proto: key.proto.map(u32::from),
        vlan: key.vlan.map(u32::from),
        originator: address(key.originator),
        responder: address(key.responder),
        originator_port: key.originator_port.map(u32::from),
        responder_port: key.responder_port.map(u32::from),
    }
}

fn key_fields(key: Option<&v1::TalkerKey>) -> Result<KeyFields, Status> {
    let Some(key) = key else { return Ok(KeyFields::default()) };
    let address = |field: &str, text: &Option<String>| match text {
        None => Ok(None),
        Some(text) => match text.parse::<std::net::IpAddr>() {
            Ok(address) => Ok(Some(Addr::from(address))),
            Err(_) => Err(Status::invalid_argument(format!("key.{field} is '{text}', which is no IP address"))),
        },
    };
    fn number<T: TryFrom<u32>>(field: &str, most: u32, value: Option<u32>) -> Result<Option<T>, Status> {
        let refuse = |value| Status::invalid_argument(format!("key.{field} is {value}, allowed are 0 to {most}"));
        let fits = |value| T::try_from(value).ok().filter(|_| value <= most);
        value.map(|value| fits(value).ok_or_else(|| refuse(value))).transpose()
    }
    Ok(KeyFields {
        src_ip: address("src_ip", &key.src_ip)?,
        dst_ip: address("dst_ip", &key.dst_ip)?,
        src_port: number("src_port", 65_535, key.src_port)?,
        dst_port: number("dst_port", 65_535, key.dst_port)?,
        proto: number("proto", 255, key.proto)?,
        vlan: number("vlan", 4_095, key.vlan)?,
        originator: address("originator", &key.originator)?,
        responder: address("responder", &key.responder)?,
        originator_port: number("originator_port", 65_535, key.originator_port)?,
        responder_port: number("responder_port", 65_535, key.responder_port)?,
    })
}
