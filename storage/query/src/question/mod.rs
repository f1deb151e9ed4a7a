//! What people ask of flows again and again, as SQL made in one place: listings in any order ([`Listing`]), who has the
//! most ([`Top`]), how much when ([`Timeline`]).
//!
//! The parts are typed, and only what went through them gets into the text: columns that exist, numbers, and filters
//! that were parsed as one expression.

mod column;
mod grid;
mod listing;
mod timeline;
mod top;

pub use column::{Column, Measure, SortKey};
pub use grid::{Grid, GridBuilder};
pub use listing::Listing;
pub use timeline::{INTERVALS_MAX, Timeline};
pub use top::{Top, TopTable};

use crate::{QueryError, parse};
use datafusion::sql::sqlparser::ast::Expr;
use std::fmt;

/// The column with bars, in tables to look at.
pub const PLOT: &str = "plot";

/// Why a question cannot be asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuestionError {
    /// No column has this name.
    #[error("there is no column `{name}`{}", hint(nearest, "`taphouse sql \"DESCRIBE flows\"` lists them"))]
    NoColumn {
        /// The name.
        name: String,
        /// The column that was meant, perhaps.
        nearest: Option<String>,
    },
    /// Nothing of this name can be added up.
    #[error(
        "`{name}` cannot be added up{}",
        hint(nearest, "use flows, bytes, packets or another count, such as retrans_o")
    )]
    NoMeasure {
        /// The name.
        name: String,
        /// The one that was meant, perhaps.
        nearest: Option<String>,
    },
    /// A column is there twice.
    #[error("`{name}` is named twice")]
    Twice {
        /// The column.
        name: String,
    },
    /// An order that is neither.
    #[error("`{text}` is no order: write COLUMN, COLUMN:asc or COLUMN:desc")]
    Order {
        /// What was written behind the colon.
        text: String,
    },
    /// More intervals than can be shown.
    #[error(
        "there are {count} intervals in this time, allowed are {INTERVALS_MAX}: make them longer, or the time shorter"
    )]
    Intervals {
        /// How many.
        count: i64,
    },
    /// An answer to another question.
    #[error("the answer lacks the column `{name}`; are client and server of one version?")]
    Answer {
        /// The column.
        name: &'static str,
    },
}

fn hint(nearest: &Option<String>, otherwise: &str) -> String {
    match nearest {
        Some(name) => format!("; did you mean `{name}`?"),
        None => format!(": {otherwise}"),
    }
}

/// Which rows of `flows`.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Those for which this is true.
    pub filter: Option<Filter>,
    /// Those that ended at or after this time, µs since 1970.
    pub since: Option<i64>,
    /// Those that started (of a [`Timeline`]: ended) before this time, µs since 1970.
    pub until: Option<i64>,
}

impl Selection {
    /// The clause, with a space before it; nothing for all rows. `until` bounds the column `bounded`.
    fn clause(&self, bounded: &str) -> String {
        let since = self.since.map(|us| format!("\"t_end\" >= {}", time(us)));
        let until = self.until.map(|us| format!("\"{bounded}\" < {}", time(us)));
        let filter = self.filter.as_ref().map(|filter| format!("({filter})"));
        let all: Vec<String> = [since, until, filter].into_iter().flatten().collect();
        if all.is_empty() { String::new() } else { format!(" WHERE {}", all.join(" AND ")) }
    }
}

/// A literal of the type that time columns have.
fn time(us: i64) -> String {
    format!("arrow_cast({us}, 'Timestamp(Microsecond, Some(\"UTC\"))')")
}

/// A condition on the columns of `flows`: exactly one SQL expression, without subqueries. Its names and types are
/// checked where it is answered. Displays as SQL, with `host`, `net` and `port` spelled out.
#[derive(Clone, Debug)]
pub struct Filter(Expr);

impl Filter {
    /// Reads one expression.
    ///
    /// # Errors
    /// [`QueryError::Filter`] with the place where it is wrong, [`QueryError::TooLong`].
    pub fn parse(text: &str) -> Result<Filter, QueryError> {
        parse::filter(text).map(Filter)
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// `items` with commas between them.
fn list(items: impl IntoIterator<Item = String>) -> String {
    items.into_iter().collect::<Vec<_>>().join(", ")
}
