use super::grid::Columns;
use super::{Column, Measure, PLOT, QuestionError, Selection, list};
use crate::render::bar;
use arrow::array::{AsArray, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type};
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;
use std::sync::Arc;

/// Whether all that is known of a flow is this one record. A flow that lasts has several: each but the last says
/// `active`, and each but the first has a part above 0. Counting the distinct ids of those alone, and the others by
/// number, is exact, and needs memory for long flows only.
const SINGLE: &str = "\"part\" = 0 AND \"end_reason\" <> 'active'";

/// What has the most of something: groups of flows, the largest first.
///
/// Its answer has the columns of `by`, then `flows`, `packets`, `bytes`, the measure if it is none of these, and
/// `share`, the measure's part of the sum over all groups, in percent.
#[derive(Clone, Debug)]
pub struct Top {
    /// Which rows.
    pub selection: Selection,
    /// What makes a group; at least one.
    pub by: Vec<Column>,
    /// What is compared.
    pub measure: Measure,
    /// Most groups.
    pub limit: u64,
}

impl Top {
    /// The question as SQL.
    ///
    /// # Errors
    /// [`QuestionError::Twice`] if a column of `by` is the measure too.
    pub fn to_sql(&self) -> Result<String, QuestionError> {
        let sums = Sums::new(&self.measure, &self.by)?;
        let keys: Vec<String> = self.by.iter().map(Column::sql).collect();
        let groups = sums.grouped(&keys, &self.selection.clause("t_start"));
        let measure = sums.measure();
        let share = format!("coalesce(100.0 * {measure} / nullif(sum({measure}) OVER (), 0), 0.0)");
        let named = self.by.iter().enumerate().map(|(i, column)| format!("k{i} AS \"{}\"", column.name()));
        let order = list((0..keys.len()).map(|i| format!("k{i}")));
        let limit = self.limit;
        Ok(format!(
            "SELECT {}, {}, share FROM (SELECT *, {share} AS share FROM ({groups})) ORDER BY {measure} DESC, {order} LIMIT {limit}",
            list(named),
            sums.named(),
        ))
    }
}

/// Rows of the answer to a [`Top`] to look at: percentages with one decimal, and a bar for the measure.
#[derive(Debug)]
pub struct TopTable {
    width: usize,
    /// The share of the first row, which is the largest.
    largest: Option<f64>,
}

impl TopTable {
    /// With bars of at most `width` characters.
    pub fn new(width: usize) -> TopTable {
        TopTable { width, largest: None }
    }

    /// The next rows.
    ///
    /// # Errors
    /// When Arrow cannot build the columns, or these are rows of something else.
    pub fn rows(&mut self, batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
        let missing = || ArrowError::SchemaError("the answer lacks the column `share`".to_owned());
        let shares = batch.column_by_name("share").and_then(|c| c.as_primitive_opt::<Float64Type>());
        let shares = shares.ok_or_else(missing)?;
        if self.largest.is_none() && !shares.is_empty() {
            self.largest = Some(shares.value(0));
        }
        let largest = self.largest.unwrap_or(0.0);
        let mut columns = Columns::default();
        for (field, column) in batch.schema_ref().fields().iter().zip(batch.columns()) {
            if field.name() == "share" {
                columns.push("share %", cast(column, &DataType::Decimal128(4, 1))?);
                let bars = shares.values().iter().map(|share| Some(bar(share / largest, self.width)));
                columns.push(PLOT, Arc::new(bars.collect::<StringArray>()));
            } else {
                columns.push(field.name(), column.clone());
            }
        }
        columns.batch()
    }
}

/// What is added up in each group: flows, packets, bytes, and the measure if it is none of these.
pub(super) struct Sums {
    columns: Vec<Column>,
    /// The place of the measure in `columns`; `None` for flows.
    measure: Option<usize>,
}

impl Sums {
    pub(super) fn new(measure: &Measure, by: &[Column]) -> Result<Sums, QuestionError> {
        let mut columns: Vec<Column> =
            ["packets", "bytes"].iter().map(|name| name.parse()).collect::<Result<_, _>>()?;
        let at = match measure {
            Measure::Flows => None,
            Measure::Sum(column) => Some(columns.iter().position(|c| c == column).unwrap_or_else(|| {
                columns.push(column.clone());
                columns.len() - 1
            })),
        };
        match by.iter().find(|column| columns.contains(column)) {
            Some(column) => Err(QuestionError::Twice { name: column.name().to_owned() }),
            None => Ok(Sums { columns, measure: at }),
        }
    }

    /// Names in the answer.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        ["flows"].into_iter().chain(self.columns.iter().map(Column::name))
    }

    /// The measure's column in what [`Sums::grouped`] gives.
    pub(super) fn measure(&self) -> String {
        self.measure.map_or_else(|| "flows".to_owned(), |i| format!("s{i}"))
    }

    /// The measure's place among the names.
    pub(super) fn measure_index(&self) -> usize {
        self.measure.map_or(0, |i| i + 1)
    }

    /// Its columns in what [`Sums::grouped`] gives.
    pub(super) fn plain(&self) -> impl Iterator<Item = String> {
        ["flows".to_owned()].into_iter().chain((0..self.columns.len()).map(|i| format!("s{i}")))
    }

    /// The same with their names in the answer.
    pub(super) fn named(&self) -> String {
        list(self.plain().zip(self.names()).map(|(plain, name)| format!("{plain} AS \"{name}\"")))
    }

    /// The groups of `keys` (SQL over the columns of `flows`) as `k0`, `k1`, ..., `flows`, `s0`, `s1`, ...
    pub(super) fn grouped(&self, keys: &[String], clause: &str) -> String {
        let named = list(keys.iter().enumerate().map(|(i, key)| format!("{key} AS k{i}")));
        let sums = list(self.columns.iter().enumerate().map(|(i, c)| format!("sum({}) AS s{i}", c.sql())));
        let places = list((1..=keys.len() + 1).map(|i| i.to_string()));
        let records = format!(
            "SELECT {named}, CASE WHEN {SINGLE} THEN NULL ELSE \"flow_id\" END AS long_flow, count(*) AS n, {sums} \
             FROM flows{clause} GROUP BY {places}"
        );
        let keys = list((0..keys.len()).map(|i| format!("k{i}")));
        let sums = list((0..self.columns.len()).map(|i| format!("coalesce(sum(s{i}), 0) AS s{i}")));
        let flows = "sum(CASE WHEN long_flow IS NULL THEN n ELSE 1 END) AS flows";
        format!("SELECT {keys}, {flows}, {sums} FROM ({records}) GROUP BY {keys}")
    }
}
