//! Stopping a query that computes. Dropping its task takes effect where the task yields, and its time limit is looked
//! at there; but a join of millions of pairs that match nothing yields nowhere. So every join yields after some
//! batches, and the condition of a join, evaluated over and over inside it, looks whether to stop.

use arrow::datatypes::{DataType, FieldRef, Schema};
use arrow::record_batch::RecordBatch;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DataFusionError, Result};
use datafusion::logical_expr::ColumnarValue;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::physical_plan::joins::utils::JoinFilter;
use datafusion::physical_plan::joins::{CrossJoinExec, HashJoinExec, NestedLoopJoinExec};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Whether a query should stop: its reader is gone, or its time is up.
#[derive(Debug)]
pub(crate) struct Stop {
    begun: Instant,
    dropped: AtomicBool,
    /// Since `begun`, µs; `u64::MAX` for never, and while the query waits for its reader.
    deadline_us: AtomicU64,
}

impl Stop {
    pub(crate) fn new() -> Stop {
        Stop { begun: Instant::now(), dropped: AtomicBool::new(false), deadline_us: AtomicU64::new(u64::MAX) }
    }

    /// Nobody waits for the answer any more.
    pub(crate) fn drop_query(&self) {
        self.dropped.store(true, Relaxed);
    }

    /// Lets the query compute for so long, from now.
    pub(crate) fn allow(&self, time: Option<Duration>) {
        let deadline = time.map(|t| (self.begun.elapsed() + t).as_micros());
        self.deadline_us.store(deadline.and_then(|us| u64::try_from(us).ok()).unwrap_or(u64::MAX), Relaxed);
    }

    /// Whether the time allowed is over.
    pub(crate) fn timed_out(&self) -> bool {
        self.begun.elapsed().as_micros() > u128::from(self.deadline_us.load(Relaxed))
    }

    fn check(&self) -> Result<()> {
        if self.dropped.load(Relaxed) || self.timed_out() {
            return Err(DataFusionError::Execution("stopped".to_owned()));
        }
        Ok(())
    }
}

/// The plan with joins that can be stopped.
pub(crate) fn stoppable(plan: Arc<dyn ExecutionPlan>, stop: &Arc<Stop>) -> Result<Arc<dyn ExecutionPlan>> {
    plan.transform_up(|node| {
        let join: Arc<dyn ExecutionPlan> = if let Some(join) = node.downcast_ref::<NestedLoopJoinExec>() {
            let filter = join.filter().map(|f| checked(f, stop));
            let projection = join.projection().as_ref().map(|p| p.to_vec());
            let (left, right) = (join.left().clone(), join.right().clone());
            Arc::new(NestedLoopJoinExec::try_new(left, right, filter, join.join_type(), projection)?)
        } else if let Some(join) = node.downcast_ref::<HashJoinExec>() {
            match join.filter() {
                Some(filter) => join.builder().with_filter(Some(checked(filter, stop))).build_exec()?,
                None => node,
            }
        } else if node.downcast_ref::<CrossJoinExec>().is_some() {
            node
        } else {
            return Ok(Transformed::no(node));
        };
        Ok(Transformed::yes(Arc::new(CooperativeExec::new(join))))
    })
    .map(|t| t.data)
}

fn checked(filter: &JoinFilter, stop: &Arc<Stop>) -> JoinFilter {
    let expression = Checked { inner: filter.expression().clone(), stop: stop.clone() };
    JoinFilter::new(Arc::new(expression), filter.column_indices().to_vec(), filter.schema().clone())
}

/// An expression that fails once the query should stop.
#[derive(Debug, Clone)]
struct Checked {
    inner: Arc<dyn PhysicalExpr>,
    stop: Arc<Stop>,
}

impl PartialEq for Checked {
    fn eq(&self, other: &Checked) -> bool {
        self.inner.eq(&other.inner) && Arc::ptr_eq(&self.stop, &other.stop)
    }
}

impl Eq for Checked {}

impl Hash for Checked {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.inner.hash(state);
    }
}

impl fmt::Display for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl PhysicalExpr for Checked {
    fn data_type(&self, schema: &Schema) -> Result<DataType> {
        self.inner.data_type(schema)
    }

    fn nullable(&self, schema: &Schema) -> Result<bool> {
        self.inner.nullable(schema)
    }

    fn return_field(&self, schema: &Schema) -> Result<FieldRef> {
        self.inner.return_field(schema)
    }

    fn evaluate(&self, batch: &RecordBatch) -> Result<ColumnarValue> {
        self.stop.check()?;
        self.inner.evaluate(batch)
    }

    fn children(&self) -> Vec<&Arc<dyn PhysicalExpr>> {
        vec![&self.inner]
    }

    fn with_new_children(self: Arc<Self>, mut children: Vec<Arc<dyn PhysicalExpr>>) -> Result<Arc<dyn PhysicalExpr>> {
        match children.pop() {
            Some(inner) => Ok(Arc::new(Checked { inner, stop: self.stop.clone() })),
            None => Ok(self),
        }
    }

    fn fmt_sql(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt_sql(f)
    }
}
