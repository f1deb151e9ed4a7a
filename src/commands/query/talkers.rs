//! `taphouse talkers`: what the sketches estimate. One window comes from a server's memory, everything else from table
//! `talkers`.

use super::answer::Question;
use super::print::HEADING;
use super::shape::{Look, Shape};
use super::{NO_TIME_BETWEEN, ask, remote, usage};
use crate::cli::{Output, TalkersArgs};
use crate::failure::{Code, Failure};
use arrow::array::{
    ArrayRef, BooleanArray, FixedSizeBinaryBuilder, Float64Array, Int64Array, RecordBatch, TimestampMicrosecondArray,
    UInt8Array, UInt16Array,
};
use query::question::TopTable;
use query::render::{Renderer, TableLayout};
use rpc::client::Client;
use rpc::v1;
use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;
use std::time::SystemTime;
use talkers::{Estimand, Flows, KeySpec, Metric, View};
use wire::{Addr, Nanos};

/// Keys that a server proves at most.
const EXACT_MAX: i32 = 1_000;
/// Characters of a line with all columns of windows that have no key.
const WHOLES_WIDTH: usize = 130;

pub(crate) fn talkers(args: &TalkersArgs, output: Output) -> Result<(), Failure> {
    let asked = Asked::new(args)?;
    if asked.by.is_empty() {
        let width = super::screen::Size::of_stdout().map(|size| size.width);
        let is_narrow = output == Output::Table && width.is_some_and(|width| width < WHOLES_WIDTH);
        return ask(&args.answer, output, asked.wholes(is_narrow), Shape::Rows);
    }
    if args.follow {
        return follow(&asked, output);
    }
    let is_live = args.answer.from.data_dir.is_none() && (args.window.is_some() || args.running || args.changes);
    // Without shares where elements of two keys may be the same ones.
    let shape = if args.changes { Shape::Rows } else { Shape::Top };
    if is_live {
        let live = Live { for_people: output == Output::Table && args.answer.export.is_none(), ..asked.live() };
        return ask(&args.answer, output, Question::Talkers(Box::new(live)), shape);
    }
    let stored = asked.stored()?;
    ask(&args.answer, output, Question::then(stored.lists(), move |lists| stored.sql(lists)), shape)
}

/// The options, understood.
struct Asked<'a> {
    args: &'a TalkersArgs,
    by: KeySpec,
    metric: Option<Metric>,
    window_us: Option<u64>,
    since: Option<i64>,
    until: Option<i64>,
}

impl<'a> Asked<'a> {
    fn new(args: &'a TalkersArgs) -> Result<Asked<'a>, Failure> {
        let now = SystemTime::now();
        let time = |option: &'static str, text: &Option<String>| {
            let time = text.as_deref().map(|text| rpc::parse_time(text, now)).transpose();
            time.map_err(anyhow::Error::msg).map_err(usage(option))
        };
        let metric = |name: &String| {
            let allowed = "is no metric: use bytes, packets, flows or distinct";
            let counts = Metric::of_name(name).filter(|m| !matches!(m, Metric::Entropy | Metric::Quantile));
            counts.ok_or_else(|| Failure::new(Code::Usage, anyhow::anyhow!("--metric: '{name}' {allowed}")))
        };
        let window = |text: &String| {
            let window = humantime::parse_duration(text).ok().and_then(|window| u64::try_from(window.as_micros()).ok());
            window.filter(|us| *us > 0).ok_or_else(|| {
                let told = "is no length of a window: use one of a task's, such as 1m";
                Failure::new(Code::Usage, anyhow::anyhow!("--window: '{text}' {told}"))
            })
        };
        let (since, until) = (time("--since", &args.since)?, time("--until", &args.until)?);
        if since.zip(until).is_some_and(|(since, until)| since > until) {
            return Err(Failure::new(Code::Usage, anyhow::anyhow!(NO_TIME_BETWEEN)));
        }
        Ok(Asked {
            args,
            by: KeySpec::new(&args.by).map_err(usage("--by"))?,
            metric: args.metric.as_ref().map(metric).transpose()?,
            window_us: args.window.as_ref().map(window).transpose()?,
            since,
            until,
        })
    }

    fn live(&self) -> Live {
        let args = self.args;
        use v1::sketch_selector::Window;
        let window = match args.window {
            _ if args.running => Window::Running,
            // One that is over, not the best there is.
            Some(_) if !args.follow && !args.changes => Window::Last,
            _ => Window::Unspecified,
        };
        // A server has bounds of its own.
        let most = if args.exact { EXACT_MAX } else { i32::MAX };
        let limit = if args.limit == 0 { most } else { i32::try_from(args.limit).unwrap_or(i32::MAX) };
        Live {
            changes: args.changes,
            for_people: false,
            by: self.by.clone(),
            window_us: self.window_us,
            request: v1::TopKRequest {
                from: Some(v1::SketchSelector {
                    task: args.task.clone().unwrap_or_default(),
                    tap: args.tap.clone().unwrap_or_default(),
                    window: window.into(),
                }),
                by: args.by.clone(),
                metric: self.metric.map_or(String::new(), |metric| metric.name().to_owned()),
                threshold: None,
                limit,
                exact: args.exact,
            },
        }
    }

    fn stored(&self) -> Result<Stored, Failure> {
        if self.args.exact && self.by.has_prefix() {
            let told = "--exact: flows do not tell of keys with a prefix; leave one of them out";
            return Err(Failure::new(Code::Usage, anyhow::anyhow!(told)));
        }
        Ok(Stored {
            by: self.by.clone(),
            metric: self.metric,
            task: self.args.task.clone(),
            tap: self.args.tap.clone(),
            window_us: self.window_us,
            since: self.since,
            until: self.until,
            limit: self.args.limit,
            exact: self.args.exact,
            // Those in progress are in windows that are over, too.
            flows: match self.args.answer.from.data_dir {
                Some(_) => Flows::Stored,
                None => Flows::StoredAndActive,
            },
        })
    }

    /// What the latest windows of tasks without a key say; a task or tap that there is not is no empty answer.
    fn wholes(&self, is_narrow: bool) -> Question {
        let all = "rank IS NULL AND key_fields IS NULL".to_owned();
        let mut only = all.clone();
        for (column, value) in [("task", &self.args.task), ("tap", &self.args.tap)] {
            if let Some(value) = value {
                only.push_str(&format!(" AND {column} = {}", quoted(value)));
            }
        }
        let latest = self.latest(&format!("{only}{}", within(self.since, self.until)), is_narrow);
        let (task, tap) = (self.args.task.clone(), self.args.tap.clone());
        if task.is_none() && tap.is_none() {
            return Question::Sql(latest);
        }
        let times = within(self.since, self.until);
        let there = format!("SELECT DISTINCT task, tap FROM talkers WHERE {all}{times} ORDER BY task, tap");
        Question::then(there, move |there| {
            let hint = "; what a task with a key lists is asked for with --by";
            for (option, at, value, hint) in [("--task", 0, task, hint), ("--tap", 1, tap, "")] {
                let known = texts(there, at);
                // Where there is nothing at all, the answer is that.
                if let Some(value) = value.filter(|value| !known.is_empty() && !known.contains(value)) {
                    let known = known.join(", ");
                    let told =
                        format!("{option}: no window without a key is stored of '{value}'; there are {known}{hint}");
                    return Err(Failure::new(Code::Usage, anyhow::anyhow!(told)));
                }
            }
            Ok(latest)
        })
    }

    /// Bounds are rounded so that they stay bounds.
    fn latest(&self, only: &str, is_narrow: bool) -> String {
        let limit = if self.args.limit == 0 { String::new() } else { format!(" LIMIT {}", self.args.limit) };
        let [metric, end] = if is_narrow { ["", ""] } else { ["t.metric, ", ", t.t_end"] };
        format!(
            "SELECT t.task, t.tap, {metric}t.elements, t.quantile, round(t.estimate, 3) AS estimate, \
             floor(1000.0 * t.lower) / 1000.0 AS lower, ceil(1000.0 * t.upper) / 1000.0 AS upper{end} FROM talkers t JOIN \
             (SELECT task AS of_task, tap AS of_tap, max(t_end) AS last FROM talkers WHERE {only} GROUP BY task, tap) l ON \
             t.task = l.of_task AND t.tap = l.of_tap AND t.t_end = l.last WHERE rank IS NULL AND key_fields IS NULL ORDER BY \
             t.task, t.tap, t.quantile{limit}"
        )
    }
}

/// The different texts of a column.
fn texts(batches: &[RecordBatch], column: usize) -> Vec<String> {
    let rows = batches.iter().flat_map(|batch| (0..batch.num_rows()).map(move |row| (batch.column(column), row)));
    let all: std::collections::BTreeSet<String> =
        rows.map(|(column, row)| query::render::cell(column, row).to_text().into_owned()).collect();
    all.into_iter().collect()
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn within(since: Option<i64>, until: Option<i64>) -> String {
    let mut only = String::new();
    if let Some(since) = since {
        only.push_str(&format!(" AND t_end > to_timestamp_micros({since})"));
    }
    if let Some(until) = until {
        only.push_str(&format!(" AND t_start < to_timestamp_micros({until})"));
    }
    only
}

/// A question about what is stored.
struct Stored {
    by: KeySpec,
    metric: Option<Metric>,
    task: Option<String>,
    tap: Option<String>,
    window_us: Option<u64>,
    since: Option<i64>,
    until: Option<i64>,
    limit: u64,
    exact: bool,
    /// Which flows prove it.
    flows: Flows,
}

/// A list that history has: of which task, by which key, of what, in windows of which length.
#[derive(Clone)]
struct List {
    task: String,
    key_fields: String,
    metric: Metric,
    elements: String,
    window_us: u64,
    /// End of its latest window, in µs since 1970.
    last: u64,
}

impl Stored {
    /// The lists that there are at the time and tap that is asked for; without a time those of the last day, since a list may have
    /// been given up long ago.
    fn lists(&self) -> String {
        let mut only = within(self.since, self.until);
        if only.is_empty() {
            only.push_str(" AND t_end > (SELECT max(t_end) FROM talkers) - INTERVAL '1 day'");
        }
        only.push_str(&self.of_tap());
        format!(
            "SELECT task, key_fields, metric, elements, dur_us, CAST(max(t_end) AS BIGINT) AS last FROM talkers WHERE rank IS NULL \
             AND key_fields IS NOT NULL{only} GROUP BY task, key_fields, metric, elements, dur_us ORDER BY task, key_fields, \
             metric, elements, last DESC"
        )
    }

    fn of_tap(&self) -> String {
        self.tap.as_ref().map_or(String::new(), |tap| format!(" AND tap = {}", quoted(tap)))
    }

    /// Why there is no list at all.
    fn nothing(&self) -> Failure {
        let told = match (self.window_us, &self.tap) {
            _ if self.since.is_some() || self.until.is_some() => {
                "no window of the sketches is stored of this time; without --since and --until the answer is over all there are"
            }
            (Some(_), _) => {
                "--window: no window of this length is stored; without --window the answer is over all there are"
            }
            (None, Some(_)) => "--tap: no window of the sketches is stored of this tap",
            (None, None) => {
                "no window of the sketches is stored yet: a window is written when it is over, or the sketches are switched off \
                 (sketches.enabled)"
            }
        };
        Failure::new(Code::Usage, anyhow::anyhow!(told))
    }

    /// The question, of the list that answers it.
    ///
    /// # Errors
    /// There is no such list, or more than one.
    fn sql(&self, lists: &[RecordBatch]) -> Result<String, Failure> {
        let text = |batch: &RecordBatch, at: usize, row: usize| {
            query::render::cell(batch.column(at), row).to_text().into_owned()
        };
        let rows = lists.iter().flat_map(|batch| (0..batch.num_rows()).map(move |row| (batch, row)));
        let mut all: Vec<List> = rows
            .filter_map(|(batch, row)| {
                let [task, key_fields, metric, elements, window_us, last] =
                    [0, 1, 2, 3, 4, 5].map(|at| text(batch, at, row));
                let (window_us, last) = (window_us.parse().ok()?, last.parse().ok()?);
                Some(List { task, key_fields, metric: Metric::of_name(&metric)?, elements, window_us, last })
            })
            .filter(|list| self.window_us.is_none_or(|window| window == list.window_us))
            .collect();
        // Of one whose windows had other lengths before.
        let of = |list: &List| (list.task.clone(), list.key_fields.clone(), list.metric, list.elements.clone());
        all.dedup_by(|a, b| of(a) == of(b));
        let answers = |list: &&List| {
            let same = list.key_fields.parse::<KeySpec>().is_ok_and(|key| key.is_same(&self.by));
            same && self.metric.is_none_or(|metric| metric == list.metric)
                && self.task.as_ref().is_none_or(|task| *task == list.task)
        };
        let found: Vec<&List> = all.iter().filter(answers).collect();
        let told = |lists: &mut dyn Iterator<Item = &List>| {
            lists
                .map(|l| format!("{} ({} by {})", l.task, l.metric.name(), l.key_fields))
                .collect::<Vec<_>>()
                .join(", ")
        };
        // Whoever does not say of what means bytes, where history has them.
        let of_bytes: Vec<&List> = found.iter().copied().filter(|list| list.metric == Metric::Bytes).collect();
        let is_open = self.metric.is_none() && self.task.is_none();
        let found = if is_open && of_bytes.len() == 1 { of_bytes } else { found };
        match found[..] {
            [list] => Ok(self.of(list)),
            [] if all.is_empty() => Err(self.nothing()),
            [] => {
                let (by, all) = (&self.by, told(&mut all.iter()));
                let metric = self.metric.map_or(String::new(), |metric| format!("of {} ", metric.name()));
                let task = self.task.as_ref().map_or(String::new(), |task| format!("of a task '{task}' "));
                let told = format!(
                    "history has no list {task}{metric}by {by}; there are {all}; more can be set under sketches.tasks"
                );
                Err(Failure::new(Code::Usage, anyhow::anyhow!(told)))
            }
            _ => {
                let told =
                    format!("several lists answer: {}; name one with --task or --metric", told(&mut found.into_iter()));
                Err(Failure::new(Code::Usage, anyhow::anyhow!(told)))
            }
        }
    }

    fn of(&self, list: &List) -> String {
        let (task, key_fields, metric) = (quoted(&list.task), quoted(&list.key_fields), quoted(list.metric.name()));
        let mut only = format!("task = {task} AND key_fields = {key_fields} AND metric = {metric}");
        only.push_str(&match list.elements.as_str() {
            "" => " AND elements IS NULL".to_owned(),
            elements => format!(" AND elements = {}", quoted(elements)),
        });
        only.push_str(&self.of_tap());
        only.push_str(&within(self.since, self.until));
        // Windows count as a whole, and so do the flows that are to prove them.
        let length = i64::try_from(list.window_us).unwrap_or(i64::MAX).max(1);
        let begin = |us: i64| us.div_euclid(length).saturating_mul(length);
        let end = |us: i64| begin(us.saturating_add(length - 1));
        let mut times = match (self.since, self.until) {
            (None, None) => None,
            (since, until) => Some((since.map_or(0, begin), until.map_or(i64::MAX / 1_000, end))),
        };
        if let Some(window) = self.window_us {
            let last = list.last;
            only.push_str(&format!(" AND dur_us = {window} AND t_end = to_timestamp_micros({last})"));
            times = Some((last.saturating_sub(window) as i64, last as i64));
        }
        let names: Vec<String> = self.by.names().into_iter().map(str::to_owned).collect();
        let names = names.join(", ");
        let whole = |name: &str| format!("CAST(round({name}) AS BIGINT)");
        // Of windows in which a key is not listed all that is known is how much one that is not listed had at most. A window may be
        // stored in two parts, of before and after a restart; the smaller bound is then one for both. What was distinct in each window may have been the same again.
        let (estimate, lower, share) = match list.metric {
            Metric::Distinct => ("max(w.estimate)", "max(w.lower)", String::new()),
            _ => {
                let share = "coalesce(100.0 * sum(w.estimate) / nullif((SELECT sum(estimate) FROM w), 0), 0.0)";
                ("sum(w.estimate)", "sum(w.lower)", format!(", {share} AS share"))
            }
        };
        let upper = "sum(w.upper) + (SELECT coalesce(sum(upper), 0) FROM w WHERE rank IS NULL) - sum(o.unlisted)";
        let (estimate, lower, upper) = (whole(estimate), whole(lower), whole(upper));
        let limit = if self.limit == 0 { String::new() } else { format!(" LIMIT {}", self.limit) };
        let top = format!(
            "WITH w AS (SELECT * FROM talkers WHERE {only}), o AS (SELECT t_end AS o_end, dur_us AS o_dur, tap AS o_tap, \
             min(upper) AS unlisted FROM w WHERE rank IS NULL GROUP BY t_end, dur_us, tap) SELECT {names}, {estimate} AS estimate, {lower} AS lower, {upper} AS \
             upper{share} FROM w JOIN o ON w.t_end = o.o_end AND w.dur_us = o.o_dur AND w.tap = o.o_tap WHERE w.rank IS NOT NULL \
             GROUP BY {names} ORDER BY estimate DESC, {names}{limit}"
        );
        if !self.exact {
            return top;
        }
        let elements = match list.metric {
            Metric::Distinct => list.elements.parse().unwrap_or(KeySpec::nothing()),
            _ => KeySpec::nothing(),
        };
        let view = self.by.view().or(elements.view()).unwrap_or(match list.metric {
            Metric::Flows => View::Flows,
            _ => View::Packets,
        });
        let tap = self.tap.as_deref();
        let estimand = Estimand { view, metric: list.metric, by: &self.by, elements: &elements, tap };
        let nanos = |us: i64| Nanos(u64::try_from(us).unwrap_or(0).saturating_mul(1_000));
        let times = times.map(|(since, until)| (nanos(since), nanos(until)));
        let Some(proof) = estimand.proof(&[], times, self.flows) else { return top };
        let on: Vec<String> = self.by.names().iter().map(|name| format!("t.{name} = e.{name}")).collect();
        let listed: Vec<String> = self.by.names().iter().map(|name| format!("t.{name}")).collect();
        let share = if list.metric == Metric::Distinct { "" } else { ", t.share" };
        format!(
            "SELECT {}, t.estimate, t.lower, t.upper, coalesce(e.exact, 0) AS exact{share} FROM ({top}) t LEFT JOIN ({proof}) e ON \
             {} ORDER BY t.estimate DESC, {}",
            listed.join(", "),
            on.join(" AND "),
            listed.join(", ")
        )
    }
}

/// A question to a server's memory.
pub(super) struct Live {
    request: v1::TopKRequest,
    by: KeySpec,
    window_us: Option<u64>,
    changes: bool,
    /// The window stands above the rows instead of in each.
    for_people: bool,
}

impl Live {
    /// The task with a window of the length that is wanted.
    async fn choose(&mut self, client: &mut Client) -> Result<(), Failure> {
        let Some(window_us) = self.window_us else { return Ok(()) };
        let tasks = client.sketches.list_tasks(v1::ListTasksRequest {}).await.map_err(refused)?;
        let tasks = tasks.into_inner().tasks;
        let length = |task: &v1::SketchTask| {
            task.window.map_or(0, |w| u64::try_from(w.seconds).unwrap_or(0) * 1_000_000 + w.nanos as u64 / 1_000)
        };
        let Some(from) = &mut self.request.from else { return Ok(()) };
        let answers = |task: &&v1::SketchTask| {
            let key = task.key.parse::<KeySpec>().unwrap_or(KeySpec::nothing());
            let whole = task.kind == "heavy_hitters" || key.is_part_of(&self.by);
            length(task) == window_us
                && (from.task.is_empty() || from.task == task.name)
                && (self.request.metric.is_empty() || self.request.metric == task.metric)
                && whole
                && self.by.is_part_of(&key)
        };
        if let Some(task) = tasks.iter().find(answers) {
            from.task.clone_from(&task.name);
            return Ok(());
        }
        let shown = |us| humantime::format_duration(std::time::Duration::from_micros(us)).to_string();
        let keyed = tasks.iter().filter(|task| !task.key.is_empty());
        if tasks.is_empty() {
            let told = "the server counts nothing: sketches.tasks is empty";
            return Err(Failure::new(Code::Usage, anyhow::anyhow!(told)));
        }
        let all: Vec<String> =
            keyed.map(|t| format!("{} ({} by {}, {})", t.name, t.metric, t.key, shown(length(t)))).collect();
        let task = if from.task.is_empty() { "task".to_owned() } else { format!("task '{}'", from.task) };
        let metric = if self.request.metric.is_empty() { "answers" } else { &format!("has {}", self.request.metric) };
        let (by, window, all) = (&self.by, shown(window_us), all.join(", "));
        let told = format!("no {task} {metric} by {by} in windows of {window}; there are {all}");
        Err(Failure::new(Code::Usage, anyhow::anyhow!("{told}; more can be set under sketches.tasks")))
    }

    /// Asks.
    pub(super) async fn ask(mut self, client: &mut Client) -> Result<RecordBatch, Failure> {
        self.choose(client).await?;
        let (rows, heading) = if self.changes {
            let v1::TopKRequest { from, by, metric, limit, .. } = self.request;
            let request = v1::ListChangersRequest { from, by, metric, limit };
            let answer = client.sketches.list_changers(request).await.map_err(refused)?.into_inner();
            let before = answer.before.as_ref().map_or(String::new(), shown);
            let heading = format!("{}; before: {before}", answer.after.as_ref().map_or(String::new(), shown));
            (changed(&self.by, &answer)?, heading)
        } else {
            let exact = self.request.exact;
            let answer = client.sketches.top_k(self.request).await.map_err(refused)?.into_inner();
            let metrics = if self.for_people { metrics(client).await? } else { BTreeMap::new() };
            (listed(&self.by, &answer, exact)?, heading(&answer, &metrics, exact))
        };
        if !self.for_people {
            return Ok(rows);
        }
        let rows = without_times(&rows)?;
        let told = [(HEADING.to_owned(), heading)].into();
        let schema = rows.schema_ref().as_ref().clone().with_metadata(told);
        Ok(rows.with_schema(Arc::new(schema))?)
    }
}

/// A server without sketches does not have the service.
fn refused(status: tonic::Status) -> Failure {
    match status.code() {
        tonic::Code::Unimplemented => {
            let told = "the server keeps no sketches: sketches.enabled is false; what history has is told without --window, \
                        --running, --changes and --follow";
            Failure::new(Code::Failed, anyhow::anyhow!(told))
        }
        _ => remote(status.into()),
    }
}

type Columns = Vec<(&'static str, ArrayRef)>;

/// The columns of keys.
fn keys<'k>(by: &KeySpec, keys: impl Iterator<Item = Option<&'k v1::TalkerKey>>) -> Columns {
    let keys: Vec<v1::TalkerKey> = keys.map(|key| key.cloned().unwrap_or_default()).collect();
    let addresses = |of: fn(&v1::TalkerKey) -> &Option<String>| -> ArrayRef {
        let bytes = |key| of(key).as_deref().and_then(|text| text.parse::<Addr>().ok()).map(|address| address.0);
        let mut column = FixedSizeBinaryBuilder::with_capacity(keys.len(), 16);
        for bytes in keys.iter().map(bytes) {
            match bytes {
                // It is of that width.
                Some(bytes) => drop(column.append_value(bytes)),
                None => column.append_null(),
            }
        }
        Arc::new(column.finish())
    };
    let ports = |of: fn(&v1::TalkerKey) -> Option<u32>| -> ArrayRef {
        Arc::new(keys.iter().map(|key| of(key).and_then(|n| u16::try_from(n).ok())).collect::<UInt16Array>())
    };
    let column = |name: &'static str| {
        let column = match name {
            "src_ip" => addresses(|key| &key.src_ip),
            "dst_ip" => addresses(|key| &key.dst_ip),
            "originator" => addresses(|key| &key.originator),
            "responder" => addresses(|key| &key.responder),
            "src_port" => ports(|key| key.src_port),
            "dst_port" => ports(|key| key.dst_port),
            "originator_port" => ports(|key| key.originator_port),
            "responder_port" => ports(|key| key.responder_port),
            "proto" => {
                let protos = keys.iter().map(|key| key.proto.and_then(|n| u8::try_from(n).ok()));
                Arc::new(protos.collect::<UInt8Array>())
            }
            _ => ports(|key| key.vlan),
        };
        (name, column)
    };
    by.names().into_iter().map(column).collect()
}

fn whole(values: impl Iterator<Item = f64>) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(values.map(|value| value.round() as i64)))
}

fn times(window: Option<&v1::SketchWindow>, rows: usize) -> Columns {
    let time = |time: Option<prost_types::Timestamp>| -> ArrayRef {
        let us = time.map_or(0, |time| time.seconds * 1_000_000 + i64::from(time.nanos) / 1_000);
        Arc::new(TimestampMicrosecondArray::from_value(us, rows).with_timezone("UTC"))
    };
    vec![("t_start", time(window.and_then(|w| w.start_time))), ("t_end", time(window.and_then(|w| w.end_time)))]
}

/// A list as rows; with `exact`, also where there is none.
fn listed(by: &KeySpec, answer: &v1::TopKResponse, exact: bool) -> anyhow::Result<RecordBatch> {
    let talkers = || answer.talkers.iter();
    let of = |of: fn(&v1::Estimated) -> f64| whole(talkers().map(move |t| t.estimated.as_ref().map_or(0.0, of)));
    let mut columns = keys(by, talkers().map(|talker| talker.key.as_ref()));
    columns.push(("estimate", of(|e| e.estimate)));
    columns.push(("lower", of(|e| e.lower)));
    columns.push(("upper", of(|e| e.upper)));
    if exact {
        columns.push(("exact", whole(talkers().map(|talker| talker.exact.unwrap_or(0.0)))));
    }
    columns.extend(times(answer.window.as_ref(), answer.talkers.len()));
    if let Some(total) = answer.total {
        let share = |t: &v1::Talker| 100.0 * t.estimated.as_ref().map_or(0.0, |e| e.estimate) / total.max(1.0);
        columns.push(("share", Arc::new(talkers().map(share).collect::<Float64Array>())));
    }
    Ok(RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, column)| (name, column, true)))?)
}

/// Changes as rows.
fn changed(by: &KeySpec, answer: &v1::ListChangersResponse) -> anyhow::Result<RecordBatch> {
    let changers = || answer.changers.iter();
    let of = |pick: fn(&v1::Changer) -> Option<&v1::Estimated>, of: fn(&v1::Estimated) -> f64| {
        whole(changers().map(move |changer| pick(changer).map_or(0.0, of)))
    };
    let mut columns = keys(by, changers().map(|changer| changer.key.as_ref()));
    columns.push(("before", of(|c| c.before.as_ref(), |e| e.estimate)));
    columns.push(("after", of(|c| c.after.as_ref(), |e| e.estimate)));
    columns.push(("change", of(|c| c.change.as_ref(), |e| e.estimate)));
    columns.push(("lower", of(|c| c.change.as_ref(), |e| e.lower)));
    columns.push(("upper", of(|c| c.change.as_ref(), |e| e.upper)));
    columns.extend(times(answer.after.as_ref(), answer.changers.len()));
    Ok(RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, column)| (name, column, true)))?)
}

/// Prints a list for every snapshot until a signal ends it: a table of its own each time, or more lines.
fn follow(asked: &Asked<'_>, output: Output) -> Result<(), Failure> {
    let told = match output {
        Output::Table | Output::Ndjson | Output::Csv => None,
        Output::Json => Some("--follow does not end, and a JSON array would never close: use --output ndjson"),
        _ => Some("--follow does not end, and a file of columns would never close: use --output ndjson or csv"),
    };
    if let Some(told) = told {
        return Err(Failure::new(Code::Usage, anyhow::anyhow!(told)));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut client = rpc::client::connect(&asked.args.answer.from.server).await.map_err(remote)?;
        let mut live = asked.live();
        live.choose(&mut client).await?;
        let exact = live.request.exact;
        let metrics = if output == Output::Table { metrics(&mut client).await? } else { BTreeMap::new() };
        let stream = client.sketches.watch_top_k(live.request).await.map_err(refused)?;
        let mut stream = stream.into_inner();
        let mut lines: Option<Renderer<std::io::Stdout>> = None;
        while let Some(answer) = stream.message().await.map_err(|s| remote(s.into()))? {
            let rows = listed(&asked.by, &answer, exact)?;
            if output == Output::Table {
                table(&heading(&answer, &metrics, exact), &rows)?;
                continue;
            }
            let rows = marked(&rows, answer.window.as_ref().is_some_and(|window| window.running))?;
            let renderer = match &mut lines {
                Some(renderer) => renderer,
                None => {
                    let schema = rows.schema();
                    lines.insert(Renderer::new(super::text_format(output), &schema, std::io::stdout())?)
                }
            };
            renderer.write(&rows)?;
            std::io::stdout().flush()?;
        }
        Ok(())
    })
}

/// Lines tell by themselves whether there will be more of their window.
fn marked(rows: &RecordBatch, running: bool) -> anyhow::Result<RecordBatch> {
    let mut columns: Vec<(String, ArrayRef)> = Vec::new();
    for (field, column) in rows.schema_ref().fields().iter().zip(rows.columns()) {
        columns.push((field.name().clone(), column.clone()));
        if field.name() == "t_end" {
            columns.push(("running".to_owned(), Arc::new(BooleanArray::from(vec![running; rows.num_rows()]))));
        }
    }
    Ok(RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, column)| (name, column, true)))?)
}

/// A window, for people.
fn shown(window: &v1::SketchWindow) -> String {
    let time = |time: Option<prost_types::Timestamp>| {
        let time = time.and_then(|t| chrono::DateTime::from_timestamp(t.seconds, u32::try_from(t.nanos).ok()?));
        time.map_or(String::new(), |time| time.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true))
    };
    let state = if window.running { "so far" } else { "over" };
    format!("{} to {}, {state}", time(window.start_time), time(window.end_time))
}

/// What each task counts.
async fn metrics(client: &mut Client) -> Result<BTreeMap<String, String>, Failure> {
    let tasks = client.sketches.list_tasks(v1::ListTasksRequest {}).await.map_err(refused)?.into_inner().tasks;
    Ok(tasks.into_iter().map(|task| (task.name, task.metric)).collect())
}

/// What a list is of.
fn heading(answer: &v1::TopKResponse, metrics: &BTreeMap<String, String>, exact: bool) -> String {
    let task = answer.window.as_ref().map_or("", |window| &window.task);
    let metric = metrics.get(task).map_or("", String::as_str);
    let total = answer.total.map_or(String::new(), |total| format!("; all together {total} {metric}"));
    let of_flows = match metric {
        "bytes" | "packets" if exact => "; exact counts the whole of the flows that overlap the window",
        _ => "",
    };
    format!("{metric}, {}{total}{of_flows}", answer.window.as_ref().map_or(String::new(), shown))
}

fn without_times(rows: &RecordBatch) -> anyhow::Result<RecordBatch> {
    let is_time = |at: &usize| rows.schema_ref().field(*at).name().starts_with("t_");
    let kept: Vec<usize> = (0..rows.num_columns()).filter(|at| !is_time(at)).collect();
    Ok(rows.project(&kept)?)
}

/// A list as a table of its own, its window above it.
fn table(heading: &str, rows: &RecordBatch) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{heading}")?;
    let rows = without_times(rows)?;
    let width = super::screen::Size::of_stdout().map(|size| size.width);
    let rows = match rows.column_by_name("share") {
        Some(_) => TopTable::new(Look { width }.bar_width()).rows(&rows)?,
        None => rows,
    };
    let format = super::text_format(Output::Table);
    let mut renderer =
        Renderer::with_layout(format, TableLayout { width, row_count: false }, &rows.schema(), &mut out)?;
    renderer.write(&rows)?;
    renderer.finish()?;
    writeln!(out)?;
    out.flush()?;
    Ok(())
}
