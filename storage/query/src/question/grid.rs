use super::{INTERVALS_MAX, PLOT, QuestionError, Timeline};
use crate::render::{bar, cell};
use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Int64Array, StringArray, UInt32Array};
use arrow::array::{TimestampMicrosecondArray, TimestampSecondArray};
use arrow::compute::{concat_batches, take};
use arrow::datatypes::{Field, Int64Type, Schema};
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

const SECOND_US: i64 = 1_000_000;

/// Takes the answer to a [`Timeline`] in. Holds at most [`INTERVALS_MAX`] intervals of each group.
#[derive(Debug)]
pub struct GridBuilder {
    every_us: i64,
    keys: usize,
    groups_max: i64,
    limit: Option<i64>,
    names: Vec<String>,
    measure: usize,
    /// First and last interval, as far as they are known.
    span: Option<(i64, i64)>,
    /// One row of the groups' columns for each rank.
    groups: BTreeMap<i64, RecordBatch>,
    /// The sums of an interval and a rank.
    sums: BTreeMap<(i64, i64), Vec<i64>>,
}

impl GridBuilder {
    pub(super) fn new(question: &Timeline, names: Vec<String>, measure: usize) -> Result<GridBuilder, QuestionError> {
        let every_us = question.every_us.max(1);
        let mut grid = GridBuilder {
            every_us,
            keys: question.by.len(),
            groups_max: i64::try_from(question.groups_max).unwrap_or(i64::MAX),
            limit: question.limit.and_then(|limit| i64::try_from(limit).ok()),
            names,
            measure,
            span: None,
            groups: BTreeMap::new(),
            sums: BTreeMap::new(),
        };
        if let (Some(since), Some(until)) = (question.selection.since, question.selection.until)
            && since < until
        {
            grid.cover(since.div_euclid(every_us))?;
            grid.cover((until - 1).div_euclid(every_us))?;
        } else if let Some(bound) = question.selection.since.filter(|_| question.selection.until.is_none()) {
            grid.cover(bound.div_euclid(every_us))?;
        }
        Ok(grid)
    }

    fn cover(&mut self, slot: i64) -> Result<(), QuestionError> {
        let (first, last) = self.span.map_or((slot, slot), |(first, last)| (first.min(slot), last.max(slot)));
        let count = last.saturating_sub(first).saturating_add(1);
        if count > INTERVALS_MAX {
            return Err(QuestionError::Intervals { count });
        }
        self.span = Some((first, last));
        Ok(())
    }

    /// Takes rows in.
    ///
    /// # Errors
    /// [`QuestionError::Intervals`] when there are more than can be held, [`QuestionError::Answer`] when these are
    /// rows of something else.
    pub fn push(&mut self, batch: &RecordBatch) -> Result<(), QuestionError> {
        let (slots, ranks) = (numbers(batch, 0, "slot")?, numbers(batch, 1, "rank")?);
        let first = 2 + self.keys;
        let sums = (0..self.names.len()).map(|i| numbers(batch, first + i, "flows")).collect::<Result<Vec<_>, _>>()?;
        let keys: Vec<usize> = (2..first).collect();
        for row in 0..batch.num_rows() {
            let (slot, rank) = (slots.value(row), ranks.value(row));
            self.cover(slot)?;
            if let Entry::Vacant(free) = self.groups.entry(rank) {
                let group = batch.slice(row, 1).project(&keys);
                free.insert(group.map_err(|_| QuestionError::Answer { name: "rank" })?);
            }
            self.sums.insert((slot, rank), sums.iter().map(|s| s.value(row)).collect());
        }
        Ok(())
    }

    /// The whole timeline, from the first interval to the last; those without rows have zeros.
    ///
    /// # Errors
    /// When Arrow cannot put the groups together.
    pub fn finish(mut self) -> Result<Grid, ArrowError> {
        if let (Some((first, last)), Some(limit)) = (self.span, self.limit) {
            self.span = Some((first.max(last.saturating_sub(limit) + 1), last));
        }
        if self.keys == 0 && self.span.is_some() {
            // In total there is one group, also where there is no row.
            self.groups.entry(1).or_insert_with(|| RecordBatch::new_empty(Arc::new(Schema::empty())));
        }
        let keys = match self.groups.values().next() {
            Some(first) if self.keys > 0 => Some(concat_batches(&first.schema(), self.groups.values())?),
            _ => None,
        };
        Ok(Grid {
            every_us: self.every_us,
            span: self.span,
            others: self.groups.keys().map(|rank| *rank > self.groups_max).collect(),
            ranks: self.groups.into_keys().collect(),
            keys,
            names: self.names,
            measure: self.measure,
            sums: self.sums,
        })
    }
}

fn numbers<'a>(batch: &'a RecordBatch, at: usize, name: &'static str) -> Result<&'a Int64Array, QuestionError> {
    let column = batch.columns().get(at).and_then(|c| c.as_primitive_opt::<Int64Type>());
    column.ok_or(QuestionError::Answer { name })
}

/// A timeline without gaps: intervals x groups, each with its sums.
#[derive(Debug)]
pub struct Grid {
    every_us: i64,
    span: Option<(i64, i64)>,
    /// Groups, the largest first; `others` tells which one is all that have no place of their own.
    ranks: Vec<i64>,
    others: Vec<bool>,
    /// The groups' columns, a row for each of `ranks`; `None` for the total alone.
    keys: Option<RecordBatch>,
    names: Vec<String>,
    measure: usize,
    sums: BTreeMap<(i64, i64), Vec<i64>>,
}

impl Grid {
    fn slots(&self) -> impl Iterator<Item = i64> + Clone {
        self.span.into_iter().flat_map(|(first, last)| first..=last)
    }

    fn sum(&self, slot: i64, rank: i64, which: usize) -> i64 {
        self.sums.get(&(slot, rank)).map_or(0, |sums| sums[which])
    }

    /// A row for each interval and group, by time, then the largest group of the whole time first. The columns are
    /// `time` (begin of the interval), those of the groups and `other` (true for all other groups together, whose
    /// columns are NULL), and the sums.
    ///
    /// # Errors
    /// When Arrow cannot build the columns.
    pub fn rows(&self) -> Result<RecordBatch, ArrowError> {
        let cells = || self.slots().flat_map(|slot| self.ranks.iter().map(move |rank| (slot, *rank)));
        let times = cells().map(|(slot, _)| slot.saturating_mul(self.every_us));
        let times = TimestampMicrosecondArray::from_iter_values(times).with_timezone("UTC");
        let mut columns = Columns::default();
        columns.push("time", Arc::new(times));
        if let Some(keys) = &self.keys {
            let groups = u32::try_from(self.ranks.len()).unwrap_or(u32::MAX);
            let which = UInt32Array::from_iter_values(self.slots().flat_map(|_| 0..groups));
            for (field, column) in keys.schema_ref().fields().iter().zip(keys.columns()) {
                columns.push(field.name(), take(column.as_ref(), &which, None)?);
            }
            let others = self.slots().flat_map(|_| self.others.iter().copied().map(Some));
            columns.push("other", Arc::new(others.collect::<BooleanArray>()));
        }
        for (i, name) in self.names.iter().enumerate() {
            let sums = cells().map(|(slot, rank)| self.sum(slot, rank, i));
            columns.push(name, Arc::new(Int64Array::from_iter_values(sums)));
        }
        columns.batch()
    }

    /// The same to look at, a row for each interval: the sums, or where there are groups the measure of each and of
    /// all, and a bar of at most `width` characters for the measure.
    ///
    /// # Errors
    /// When Arrow cannot build the columns.
    pub fn plot(&self, width: usize) -> Result<RecordBatch, ArrowError> {
        let total = |slot| self.ranks.iter().map(|rank| self.sum(slot, *rank, self.measure)).sum::<i64>();
        let largest = self.slots().map(total).max().unwrap_or(0);
        let mut columns = Columns::default();
        columns.push("time", self.times());
        match &self.keys {
            Some(keys) => {
                for (row, rank) in self.ranks.iter().enumerate() {
                    let values = self.slots().map(|slot| self.sum(slot, *rank, self.measure));
                    columns.push(&self.heading(keys, row), Arc::new(Int64Array::from_iter_values(values)));
                }
                columns
                    .push(&self.names[self.measure], Arc::new(Int64Array::from_iter_values(self.slots().map(total))));
            }
            None => {
                for (i, name) in self.names.iter().enumerate() {
                    let values = self.slots().map(|slot| self.ranks.iter().map(|r| self.sum(slot, *r, i)).sum::<i64>());
                    columns.push(name, Arc::new(Int64Array::from_iter_values(values)));
                }
            }
        }
        let bars = self.slots().map(|slot| Some(bar(total(slot) as f64 / largest.max(1) as f64, width)));
        columns.push(PLOT, Arc::new(bars.collect::<StringArray>()));
        columns.batch()
    }

    /// Begins of intervals, as fine as they need be.
    fn times(&self) -> ArrayRef {
        let times = self.slots().map(|slot| slot.saturating_mul(self.every_us));
        if self.every_us % SECOND_US == 0 {
            Arc::new(TimestampSecondArray::from_iter_values(times.map(|t| t / SECOND_US)))
        } else {
            Arc::new(TimestampMicrosecondArray::from_iter_values(times))
        }
    }

    fn heading(&self, keys: &RecordBatch, row: usize) -> String {
        if self.others[row] {
            return "(other)".to_owned();
        }
        let texts = keys.columns().iter().map(|column| match cell(column.as_ref(), row).to_text() {
            text if text.is_empty() => "-".to_owned(),
            text => text.into_owned(),
        });
        texts.collect::<Vec<_>>().join(" ")
    }
}

/// A batch under construction.
#[derive(Default)]
pub(super) struct Columns(Vec<Field>, Vec<ArrayRef>);

impl Columns {
    pub(super) fn push(&mut self, name: &str, column: ArrayRef) {
        self.0.push(Field::new(name, column.data_type().clone(), true));
        self.1.push(column);
    }

    pub(super) fn batch(self) -> Result<RecordBatch, ArrowError> {
        RecordBatch::try_new(Arc::new(Schema::new(self.0)), self.1)
    }
}
