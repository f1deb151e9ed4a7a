//! What becomes of the rows before they are printed: nothing, bars beside them, or a timeline without gaps.

use super::answer::Answer;
use crate::failure::Failure;
use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use query::question::{GridBuilder, TopTable};

/// Characters of a bar, where the terminal is narrow and otherwise.
const BAR_WIDTHS: [usize; 2] = [24, 40];

/// How the rows of an answer are shown.
pub(super) enum Shape {
    /// As they are.
    Rows,
    /// Those of `query::question::Top`, or others with a column `share`: bars, where it has one.
    Top,
    /// Those of `query::question::Timeline`.
    Timeline(Box<GridBuilder>),
}

/// The rows to print.
pub(super) struct Shaped<'a> {
    answer: &'a mut Answer,
    schema: SchemaRef,
    rows: Rows,
}

enum Rows {
    Plain,
    Bars(TopTable),
    /// All of them, until they are taken.
    Ready(Option<RecordBatch>),
}

impl<'a> Shaped<'a> {
    /// `looked_at` is a table for people; without it the rows are for programs.
    pub(super) fn new(answer: &'a mut Answer, shape: Shape, looked_at: Option<Look>) -> Result<Shaped<'a>, Failure> {
        let plain = answer.schema();
        let (schema, rows) = match (shape, looked_at) {
            (Shape::Rows, _) | (Shape::Top, None) => (plain, Rows::Plain),
            (Shape::Top, Some(_)) if plain.column_with_name("share").is_none() => (plain, Rows::Plain),
            (Shape::Top, Some(look)) => {
                let mut table = TopTable::new(look.bar_width());
                let schema = table.rows(&RecordBatch::new_empty(plain))?.schema();
                (schema, Rows::Bars(table))
            }
            (Shape::Timeline(mut grid), look) => {
                while let Some(batch) = answer.next()? {
                    grid.push(&batch).map_err(super::usage("--timeline"))?;
                }
                let grid = grid.finish()?;
                let batch = look.map_or_else(|| grid.rows(), |look| grid.plot(look.bar_width()))?;
                (batch.schema(), Rows::Ready(Some(batch)))
            }
        };
        Ok(Shaped { answer, schema, rows })
    }

    /// An error of the output, or that of the signal that came before it.
    pub(super) fn explain(&self, error: std::io::Error) -> Failure {
        self.answer.check().err().unwrap_or_else(|| error.into())
    }

    /// The columns of every batch.
    pub(super) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// The next batch; `None` after the last.
    pub(super) fn next(&mut self) -> Result<Option<RecordBatch>, Failure> {
        match &mut self.rows {
            Rows::Ready(batch) => Ok(batch.take()),
            Rows::Plain => self.answer.next(),
            Rows::Bars(table) => match self.answer.next()? {
                Some(batch) => Ok(Some(table.rows(&batch)?)),
                None => Ok(None),
            },
        }
    }
}

/// A table for people, as wide as their terminal if there is one.
#[derive(Clone, Copy)]
pub(super) struct Look {
    pub(super) width: Option<usize>,
}

impl Look {
    pub(super) fn bar_width(self) -> usize {
        let [narrow, wide] = BAR_WIDTHS;
        if self.width.is_some_and(|width| width < 100) { narrow } else { wide }
    }
}
