//! Which segments a filter cannot match, decided from the manifest alone, in memory: 100,000 segments in milliseconds.

use crate::table::{T_START, with_start};
use arrow::array::{ArrayRef, BooleanArray, StringArray, TimestampMicrosecondArray, UInt8Array, UInt64Array};
use arrow::datatypes::Schema;
use datafusion::catalog::Session;
use datafusion::common::pruning::PruningStatistics;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, DFSchema, Result, ScalarValue};
use datafusion::logical_expr::Expr;
use datafusion::logical_expr::utils::conjunction;
use datafusion::physical_optimizer::pruning::PruningPredicateBuilder;
use std::collections::HashSet;
use std::sync::Arc;
use storage::Segment;

/// One `bool` a segment: whether a row in it may match. In doubt it may.
pub(crate) fn segments(segments: &[Arc<Segment>], schema: &Schema, filters: &[Expr], state: &dyn Session) -> Vec<bool> {
    let Some(filter) = conjunction(filters.iter().cloned()) else { return vec![true; segments.len()] };
    match try_prune(segments, schema, filter, state) {
        Ok(keep) => keep,
        Err(error) => {
            // Pruning only saves time: what it cannot judge is read.
            tracing::debug!(%error, "cannot prune segments by this filter");
            vec![true; segments.len()]
        }
    }
}

fn try_prune(segments: &[Arc<Segment>], schema: &Schema, filter: Expr, state: &dyn Session) -> Result<Vec<bool>> {
    let time = schema.field(0).name().clone();
    let schema = with_start(schema);
    let filter = filter.transform_up(start_as_column)?.data;
    let df_schema = DFSchema::try_from(schema.as_ref().clone())?;
    let filter = state.create_physical_expr(filter, &df_schema)?;
    PruningPredicateBuilder::new()
        .with_file_schema(schema)
        .try_build(filter)?
        .prune(&ZoneMaps { segments, time: &time })
}

/// `t_start(t_end, dur_us)` is a column as far as the manifest goes.
fn start_as_column(expr: Expr) -> Result<Transformed<Expr>> {
    Ok(match &expr {
        Expr::ScalarFunction(f) if f.func.name() == T_START => {
            Transformed::yes(Expr::Column(Column::new_unqualified(T_START)))
        }
        _ => Transformed::no(expr),
    })
}

/// The manifest's knowledge in the form the pruning predicate reads.
struct ZoneMaps<'a> {
    segments: &'a [Arc<Segment>],
    /// Column of the time rows are sorted by: the first of every table.
    time: &'a str,
}

impl ZoneMaps<'_> {
    fn times(&self, of: impl Fn(&Segment) -> i64) -> ArrayRef {
        let times: TimestampMicrosecondArray = self.segments.iter().map(|s| Some(of(s))).collect();
        Arc::new(times.with_timezone("UTC"))
    }

    fn protos(&self, of: impl Fn(&[u8]) -> Option<u8>) -> ArrayRef {
        Arc::new(self.segments.iter().map(|s| of(&s.protos)).collect::<UInt8Array>())
    }

    fn taps(&self, of: impl Fn(&[String]) -> Option<&String>) -> ArrayRef {
        Arc::new(self.segments.iter().map(|s| of(&s.taps)).collect::<StringArray>())
    }
}

impl PruningStatistics for ZoneMaps<'_> {
    fn min_values(&self, column: &Column) -> Option<ArrayRef> {
        match column.name.as_str() {
            name if name == self.time => Some(self.times(|s| s.t_end_min)),
            T_START => Some(self.times(|s| s.t_start_min)),
            "proto" => Some(self.protos(|p| p.first().copied())),
            "tap" => Some(self.taps(|t| t.first())),
            _ => None,
        }
    }

    fn max_values(&self, column: &Column) -> Option<ArrayRef> {
        match column.name.as_str() {
            // A flow starts before it ends, so the latest end bounds the latest start.
            name if name == self.time || name == T_START => Some(self.times(|s| s.t_end_max)),
            "proto" => Some(self.protos(|p| p.last().copied())),
            "tap" => Some(self.taps(|t| t.last())),
            _ => None,
        }
    }

    fn num_containers(&self) -> usize {
        self.segments.len()
    }

    fn null_counts(&self, column: &Column) -> Option<ArrayRef> {
        let never_null = column.name == self.time || matches!(column.name.as_str(), T_START | "proto" | "tap");
        never_null.then(|| Arc::new(UInt64Array::from(vec![0; self.segments.len()])) as ArrayRef)
    }

    fn row_counts(&self) -> Option<ArrayRef> {
        Some(Arc::new(self.segments.iter().map(|s| Some(s.rows)).collect::<UInt64Array>()))
    }

    /// For the columns whose every value is in the manifest: `false` where none of `values` is in the segment.
    fn contained(&self, column: &Column, values: &HashSet<ScalarValue>) -> Option<BooleanArray> {
        match column.name.as_str() {
            "proto" => {
                let wanted: Vec<u8> = values.iter().map(as_u8).collect::<Option<_>>()?;
                Some(self.segments.iter().map(|s| member(&s.protos, &wanted)).collect())
            }
            "tap" => {
                let wanted: Vec<String> = values.iter().map(as_text).collect::<Option<_>>()?;
                Some(self.segments.iter().map(|s| member(&s.taps, &wanted)).collect())
            }
            _ => None,
        }
    }
}

/// As [`PruningStatistics::contained`] has it: only wanted values, none, or some of each (or unknown: empty).
fn member<T: PartialEq>(present: &[T], wanted: &[T]) -> Option<bool> {
    let hits = present.iter().filter(|p| wanted.contains(p)).count();
    match hits {
        _ if present.is_empty() => None,
        0 => Some(false),
        n if n == present.len() => Some(true),
        _ => None,
    }
}

fn as_u8(value: &ScalarValue) -> Option<u8> {
    match value {
        ScalarValue::UInt8(Some(v)) => Some(*v),
        _ => None,
    }
}

fn as_text(value: &ScalarValue) -> Option<String> {
    match value {
        ScalarValue::Dictionary(_, inner) => as_text(inner),
        other => other.try_as_str().flatten().map(str::to_owned),
    }
}
