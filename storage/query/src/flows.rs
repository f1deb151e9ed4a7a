use crate::engine::{Failure, Session};
use crate::error::{Complaint, Culprit, nearest};
use crate::parse;
use crate::table::T_START;
use crate::{Located, QueryError};
use arrow::array::AsArray;
use arrow::datatypes::{DataType, TimestampMicrosecondType, UInt16Type, UInt64Type};
use arrow::record_batch::RecordBatch;
use datafusion::common::{Column, DFSchema, ScalarValue};
use datafusion::datasource::provider_as_source;
use datafusion::logical_expr::expr::WindowFunction;
use datafusion::logical_expr::utils::{find_aggregate_exprs, find_window_exprs};
use datafusion::logical_expr::{Expr, ExprSchemable, LogicalPlan, LogicalPlanBuilder, SortExpr, lit};
use datafusion::sql::sqlparser::ast::ExprWithAlias;
use std::collections::BinaryHeap;
use storage::{Segments, Table, TimeRange};

/// A listing of flows, newest first: by `t_end` descending, then by `flow_id` and `part`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlowQuery {
    /// One SQL boolean expression over the columns of `flows`, such as `host('10.0.0.1') AND proto = 6`.
    pub filter: Option<String>,
    /// With `until`: flows that overlap `[since, until)`; those that ended at or after this time, µs since 1970.
    pub since: Option<i64>,
    /// Flows that started before this time, µs since 1970.
    pub until: Option<i64>,
    /// Columns of the answer, in this order; `t_start` is one. Empty for all stored ones.
    pub columns: Vec<String>,
    /// Most rows.
    pub limit: Option<u64>,
    /// Where the page before ended. Pages follow each other without gap or repetition, also while rows arrive: new
    /// ones with a later `t_end` come before the first page.
    pub after: Option<Cursor>,
}

/// Place of a row in the order of a listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cursor {
    /// Its `t_end`, µs since 1970.
    pub t_end: i64,
    /// Its `flow_id`.
    pub flow_id: u64,
    /// Its `part`.
    pub part: u16,
}

/// The columns a [`Cursor`] is made of, in the order of the listing.
const KEY: [&str; 3] = ["t_end", "flow_id", "part"];

impl Cursor {
    /// The place of the batch's last row, to continue after it; `None` if the batch is empty or lacks one of the
    /// columns `t_end`, `flow_id`, `part`.
    pub fn last_of(batch: &RecordBatch) -> Option<Cursor> {
        let row = batch.num_rows().checked_sub(1)?;
        let [t_end, flow_id, part] = KEY.map(|name| batch.column_by_name(name));
        Some(Cursor {
            t_end: t_end?.as_primitive_opt::<TimestampMicrosecondType>()?.value(row),
            flow_id: flow_id?.as_primitive_opt::<UInt64Type>()?.value(row),
            part: part?.as_primitive_opt::<UInt16Type>()?.value(row),
        })
    }
}

impl FlowQuery {
    pub(crate) async fn plan(&self, session: &Session) -> Result<LogicalPlan, Failure> {
        let state = &session.state;
        let table = state.schema_for_ref(Table::Flows.name())?.table(Table::Flows.name()).await?;
        let table =
            table.ok_or_else(|| QueryError::Execution { message: "the table of flows is missing".to_owned() })?;
        let mut plan = LogicalPlanBuilder::scan(Table::Flows.name(), provider_as_source(table), None)?;
        let columns = self.columns(plan.schema())?;
        if let Some(text) = &self.filter {
            let filter = parse::filter(text)?;
            let filter = ExprWithAlias { expr: filter, alias: None };
            let filter = state.create_logical_expr_from_sql_expr(filter, plan.schema())?;
            check(text, &filter, plan.schema())?;
            plan = plan.filter(filter)?;
        }
        let snapshot = session.snapshot_of(Table::Flows);
        let newest = snapshot.and_then(|snapshot| self.newest(&snapshot.segments));
        let newest = newest.map(|time_min| column("t_end").gt_eq(time(time_min)));
        for bound in self.bounds().into_iter().chain(newest) {
            plan = plan.filter(bound)?;
        }
        let order = KEY.map(|name| SortExpr::new(column(name), name != "t_end", false));
        let limit = self.limit.map(|n| usize::try_from(n).unwrap_or(usize::MAX));
        // Sorted before it is projected: the key may not be among the columns asked for.
        let plan = match limit {
            // A sort that keeps nothing makes DataFusion panic.
            Some(0) => plan.limit(0, Some(0))?,
            limit => plan.sort_with_limit(order, limit)?,
        };
        Ok(plan.project(columns)?.build()?)
    }

    fn columns(&self, schema: &DFSchema) -> Result<Vec<Expr>, QueryError> {
        let known: Vec<&str> = schema.fields().iter().map(|f| f.name().as_str()).collect();
        if self.columns.is_empty() {
            return Ok(known.into_iter().filter(|name| *name != T_START).map(column).collect());
        }
        let list = self.columns.join(", ");
        let mut seen = Vec::new();
        for (i, name) in self.columns.iter().enumerate() {
            let at = self.columns[..i].iter().map(|c| c.chars().count() as u64 + 2).sum::<u64>() + 1;
            let error = |message: String, hint| QueryError::Filter(Located::at(&list, 1, at, message, hint));
            if !known.contains(&name.as_str()) {
                let hint = nearest(name, known.iter().copied()).map(|n| format!("did you mean `{n}`?"));
                return Err(error(format!("there is no column `{name}`"), hint));
            }
            if seen.contains(&name) {
                return Err(error(format!("column `{name}` is asked for twice"), None));
            }
            seen.push(name);
        }
        Ok(self.columns.iter().map(|name| column(name)).collect())
    }

    /// A time that no row of an unfiltered listing ends before, told by the rows of whole segments: of very many segments,
    /// all but the newest need not be planned.
    fn newest(&self, segments: &Segments) -> Option<i64> {
        let limit = self.limit.filter(|limit| *limit > 0 && self.filter.is_none())?;
        let before = self.after.map_or(i64::MAX, |cursor| cursor.t_end).min(self.until.unwrap_or(i64::MAX));
        let is_whole = |t: &TimeRange| t.t_end_max < before && self.since.is_none_or(|since| t.t_end_min >= since);
        let times = segments.times().iter().enumerate();
        let mut latest: BinaryHeap<(i64, usize)> =
            times.filter(|(_, t)| is_whole(t)).map(|(at, t)| (t.t_end_min, at)).collect();
        let mut rows = 0;
        while let Some((t_end_min, at)) = latest.pop() {
            rows += segments[at].rows;
            if rows >= limit {
                return Some(t_end_min);
            }
        }
        None
    }

    /// Time range and page, as conditions.
    fn bounds(&self) -> Vec<Expr> {
        let since = self.since.map(|since| column("t_end").gt_eq(time(since)));
        let until = self.until.map(|until| column(T_START).lt(time(until)));
        // The first condition of the two says nothing new, but segments are pruned by it.
        let page = self.after.map(|cursor| column("t_end").lt_eq(time(cursor.t_end)));
        let after = self.after.map(|Cursor { t_end, flow_id, part }| {
            let same_flow = column("flow_id").eq(lit(flow_id)).and(column("part").gt(lit(part)));
            let same_time = column("t_end").eq(time(t_end)).and(column("flow_id").gt(lit(flow_id)).or(same_flow));
            column("t_end").lt(time(t_end)).or(same_time)
        });
        [since, until, page, after].into_iter().flatten().collect()
    }
}

fn column(name: &str) -> Expr {
    Expr::Column(Column::from_name(name))
}

fn time(micros: i64) -> Expr {
    lit(ScalarValue::TimestampMicrosecond(Some(micros), Some("UTC".into())))
}

/// A filter says yes or no of one row.
fn check(text: &str, filter: &Expr, schema: &DFSchema) -> Result<(), Failure> {
    let say = |message: String, culprit, hint| {
        QueryError::Filter(Located::complaint(text, Complaint { message, culprit, hint }))
    };
    let over_rows = find_aggregate_exprs([filter])
        .first()
        .map(|e| match e {
            Expr::AggregateFunction(f) => f.func.name().to_owned(),
            other => other.to_string(),
        })
        .or_else(|| {
            find_window_exprs([filter]).first().map(|e| match e {
                Expr::WindowFunction(f) => window_name(f),
                other => other.to_string(),
            })
        });
    if let Some(name) = over_rows {
        let message = format!("`{name}` looks at many rows, a filter only at one: use SQL");
        return Err(say(message, Culprit::Word(name), None).into());
    }
    let given = filter.get_type(schema)?;
    if !matches!(given, DataType::Boolean | DataType::Null) {
        let message = format!("the filter gives {}, not yes or no", crate::render::type_name(&given));
        let hint = Some("compare it with something, as in `bytes_o > 1000`".to_owned());
        return Err(say(message, Culprit::At(1, 1), hint).into());
    }
    Ok(())
}

fn window_name(f: &WindowFunction) -> String {
    f.fun.name().to_owned()
}
