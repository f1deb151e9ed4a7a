//! `taphouse flows`: a listing, who has the most, or how much when; each made from options into one question.

use super::answer::Question;
use super::screen::Size;
use super::shape::Shape;
use super::{NO_TIME_BETWEEN, ask, local, name, usage};
use crate::cli::{FlowsArgs, Output};
use crate::failure::{Code, Failure};
use chrono::Utc;
use query::FlowQuery;
use query::question::{Column, Filter, Listing, Measure, Selection, SortKey, Timeline, Top};
use std::time::SystemTime;

/// Most rows of a listing, unless `--limit` says otherwise.
const LIMIT: u64 = 100;

/// Groups of a timeline, unless `--top` says otherwise, and the most there can be.
const SERIES: u64 = 5;
const SERIES_MAX: u64 = 100;

/// What fits a terminal of at least so many characters (0 for no terminal: any) and answers most questions;
/// `--columns` chooses others.
const TABLE_COLUMNS: [(usize, &[&str]); 3] = [
    (
        150,
        &[
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
        ],
    ),
    (110, &["t_end", "dur_us", "src_ip", "src_port", "dst_ip", "dst_port", "proto", "bytes_o", "bytes_r"]),
    (0, &["t_end", "src_ip", "dst_ip", "dst_port", "proto", "bytes"]),
];

pub(crate) fn flows(args: &FlowsArgs, output: Output) -> Result<(), Failure> {
    check(args, output)?;
    let listing = Asked::new(args, output)?;
    let (question, shape) = if args.timeline.is_some() {
        listing.timeline()?
    } else if let Some(count) = args.top {
        listing.top(count)?
    } else {
        listing.list()?
    };
    ask(&args.answer, output, question, shape)
}

/// Options that do not go together.
fn check(args: &FlowsArgs, output: Output) -> Result<(), Failure> {
    let summary = args.top.is_some() || args.timeline.is_some();
    let format = name(output);
    let told = if output.is_for_flows() && !args.columns.is_empty() {
        format!("--output {format} has fields of its own; leave --columns out")
    } else if output.is_for_flows() && summary {
        format!("--output {format} prints flows, not sums: use json, ndjson or csv with --top and --timeline")
    } else if args.top.is_some() && args.by.is_empty() {
        "--top needs --by: the columns that make a group, such as --by src_ip,dst_port".to_owned()
    } else if !args.by.is_empty() && !summary {
        "--by makes groups for --top or --timeline: add one of them".to_owned()
    } else if args.metric.is_some() && !summary {
        "--metric is what --top and --timeline compare: add one of them".to_owned()
    } else if args.timeline.is_some() && args.top.is_some_and(|count| count > SERIES_MAX) {
        format!("--top tells up to {SERIES_MAX} groups apart in a --timeline")
    } else {
        return Ok(());
    };
    Err(Failure::new(Code::Usage, anyhow::anyhow!(told)))
}

/// The options, understood.
struct Asked<'a> {
    args: &'a FlowsArgs,
    output: Output,
    selection: Selection,
    by: Vec<Column>,
    measure: Measure,
}

impl<'a> Asked<'a> {
    fn new(args: &'a FlowsArgs, output: Output) -> Result<Asked<'a>, Failure> {
        let now = SystemTime::now();
        let time = |option: &'static str, text: &Option<String>| {
            text.as_deref()
                .map(|text| rpc::parse_time(text, now))
                .transpose()
                .map_err(anyhow::Error::msg)
                .map_err(usage(option))
        };
        let filter = args.filter.as_deref().filter(|text| !text.trim().is_empty());
        let selection = Selection {
            filter: filter.map(Filter::parse).transpose().map_err(local)?,
            since: time("--since", &args.since)?,
            until: time("--until", &args.until)?,
        };
        if selection.since.zip(selection.until).is_some_and(|(since, until)| since > until) {
            return Err(Failure::new(Code::Usage, anyhow::anyhow!(NO_TIME_BETWEEN)));
        }
        let metric = args.metric.as_deref().unwrap_or("bytes");
        Ok(Asked {
            args,
            output,
            selection,
            by: Column::list(&args.by).map_err(usage("--by"))?,
            measure: metric.parse().map_err(usage("--metric"))?,
        })
    }

    /// The newest flows, those in another order, or all of them as they come.
    fn list(self) -> Result<(Question, Shape), Failure> {
        let mut columns = Column::list(&self.args.columns).map_err(usage("--columns"))?;
        if columns.is_empty() && self.output == Output::Table && self.args.answer.export.is_none() {
            let width = Size::of_stdout().map_or(usize::MAX, |size| size.width);
            let fits = TABLE_COLUMNS.iter().find(|(least, _)| width >= *least).map_or(&[][..], |(_, names)| names);
            let names: Vec<String> = fits.iter().map(|name| (*name).to_owned()).collect();
            columns = Column::list(&names).map_err(usage("--columns"))?;
        }
        let mut sort: Vec<SortKey> =
            self.args.sort.iter().map(|key| key.parse()).collect::<Result<_, _>>().map_err(usage("--sort"))?;
        let exported = self.args.answer.export.is_some();
        let limit = match self.args.limit {
            Some(0) => None,
            None if exported => None,
            limit => limit.or(Some(LIMIT)),
        };
        if sort.is_empty() && (limit.is_some() || !exported) {
            if !columns.iter().any(Column::is_sum) {
                let columns = columns.iter().map(|column| column.name().to_owned()).collect();
                return Ok((Question::Flows(FlowQuery { columns, limit, ..self.filter_alone() }), Shape::Rows));
            }
            sort = vec!["t_end".parse().map_err(usage("--sort"))?];
        }
        let filter = self.filter_alone();
        let sql = Listing { selection: self.selection, columns, sort, limit }.to_sql();
        Ok((Question::Made { sql, filter }, Shape::Rows))
    }

    fn top(self, count: u64) -> Result<(Question, Shape), Failure> {
        let filter = self.filter_alone();
        let limit = self.args.limit.filter(|limit| *limit > 0).map_or(count, |limit| limit.min(count));
        let top = Top { selection: self.selection, by: self.by, measure: self.measure, limit };
        let sql = top.to_sql().map_err(usage("--by"))?;
        Ok((Question::Made { sql, filter }, Shape::Top))
    }

    fn timeline(mut self) -> Result<(Question, Shape), Failure> {
        let text = self.args.timeline.as_deref().unwrap_or_default();
        let every_us = humantime::parse_duration(text).ok().and_then(|every| i64::try_from(every.as_micros()).ok());
        let every_us = every_us.filter(|us| *us > 0).ok_or_else(|| {
            let told = "is no interval: give a duration of at least 1us, such as 10s, 1m or 1h";
            Failure::new(Code::Usage, anyhow::anyhow!("--timeline: '{text}' {told}"))
        })?;
        // Up to now, if that is where it is counted from: that nothing came lately is worth seeing.
        let counted_back = self.args.since.as_ref().is_some_and(|since| since.starts_with('-'));
        if counted_back && self.selection.until.is_none() {
            self.selection.until = Some(Utc::now().timestamp_micros());
        }
        let filter = self.filter_alone();
        let timeline = Timeline {
            selection: self.selection,
            every_us,
            by: self.by,
            measure: self.measure,
            groups_max: self.args.top.unwrap_or(SERIES),
            limit: self.args.limit.filter(|limit| *limit > 0),
        };
        let sql = timeline.to_sql().map_err(usage("--by"))?;
        let grid = timeline.grid().map_err(usage("--timeline"))?;
        Ok((Question::Made { sql, filter }, Shape::Timeline(Box::new(grid))))
    }

    /// One row of the user's own filter.
    fn filter_alone(&self) -> FlowQuery {
        FlowQuery {
            filter: self.args.filter.clone().filter(|text| !text.trim().is_empty()),
            since: self.selection.since,
            until: self.selection.until,
            limit: Some(1),
            ..FlowQuery::default()
        }
    }
}
