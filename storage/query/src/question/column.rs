use super::QuestionError;
use crate::error::nearest;
use crate::table::T_START;
use std::str::FromStr;

/// Counts that are kept for each direction, under the name both of them together have here, and the stem of the
/// columns: `bytes_o` and `bytes_r`.
const BOTH: [(&str, &str); 11] = [
    ("bytes", "bytes"),
    ("packets", "pkts"),
    ("goodput", "goodput"),
    ("retrans", "retrans"),
    ("fast_retrans", "fast_retrans"),
    ("spurious_retrans", "spurious_retrans"),
    ("ooo", "ooo"),
    ("lost", "lost"),
    ("zwin", "zwin"),
    ("dup_ack", "dup_ack"),
    ("keep_alive", "keep_alive"),
];

/// Counts that are kept once a flow.
const ONCE: [&str; 2] = ["fragments", "dur_us"];

/// A column of `flows` that exists: a stored one, `t_start`, or the sum of both directions of a count, such as `bytes`
/// for `bytes_o + bytes_r`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    name: String,
    /// Both directions: the stem of the stored columns.
    both: Option<&'static str>,
}

impl FromStr for Column {
    type Err = QuestionError;
    fn from_str(name: &str) -> Result<Column, QuestionError> {
        let name = name.trim();
        let both = BOTH.iter().find(|(sum, _)| *sum == name).map(|(_, stem)| *stem);
        if both.is_some() || Column::stored().any(|known| known == name) {
            return Ok(Column { name: name.to_owned(), both });
        }
        let known: Vec<String> = Column::stored().chain(BOTH.map(|(sum, _)| sum.to_owned())).collect();
        Err(QuestionError::NoColumn { name: name.to_owned(), nearest: nearest(name, known.iter().map(String::as_str)) })
    }
}

impl Column {
    fn stored() -> impl Iterator<Item = String> {
        let schema = storage::flow_schema();
        let names: Vec<String> = schema.fields().iter().map(|f| f.name().clone()).collect();
        names.into_iter().chain([T_START.to_owned()])
    }

    /// Every stored column, in its order.
    pub fn all() -> Vec<Column> {
        let columns = Column::stored().filter(|name| name != T_START);
        columns.map(|name| Column { name, both: None }).collect()
    }

    /// Columns from a list of names.
    ///
    /// # Errors
    /// [`QuestionError::NoColumn`], [`QuestionError::Twice`].
    pub fn list(names: &[String]) -> Result<Vec<Column>, QuestionError> {
        let mut columns = Vec::new();
        for name in names {
            let column: Column = name.parse()?;
            if columns.contains(&column) {
                return Err(QuestionError::Twice { name: column.name });
            }
            columns.push(column);
        }
        Ok(columns)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it is computed from both directions, and not a column of the table.
    pub fn is_sum(&self) -> bool {
        self.both.is_some()
    }

    /// As SQL over the columns of `flows`.
    pub(super) fn sql(&self) -> String {
        match self.both {
            Some(stem) => format!("(CAST(\"{stem}_o\" AS BIGINT) + CAST(\"{stem}_r\" AS BIGINT))"),
            None => format!("\"{}\"", self.name),
        }
    }

    /// As SQL with its name, for a list of results.
    pub(super) fn named(&self) -> String {
        if self.is_sum() { format!("{} AS \"{}\"", self.sql(), self.name) } else { self.sql() }
    }
}

/// One column of an order; rows without a value come last. Written `COLUMN`, `COLUMN:asc` or `COLUMN:desc`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SortKey {
    /// By what.
    pub column: Column,
    /// Largest first, which is also what a column alone means.
    pub descending: bool,
}

impl FromStr for SortKey {
    type Err = QuestionError;
    fn from_str(text: &str) -> Result<SortKey, QuestionError> {
        let (column, order) = text.split_once(':').unwrap_or((text, "desc"));
        let descending = match order.trim().to_ascii_lowercase().as_str() {
            "asc" => false,
            "desc" => true,
            _ => return Err(QuestionError::Order { text: order.to_owned() }),
        };
        Ok(SortKey { column: column.parse()?, descending })
    }
}

impl SortKey {
    pub(super) fn sql(&self) -> String {
        format!("{} {} NULLS LAST", self.column.sql(), if self.descending { "DESC" } else { "ASC" })
    }
}

/// What is counted or added up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Measure {
    /// Flows, each once however many records it has.
    Flows,
    /// The sum of a count over all records.
    Sum(Column),
}

impl FromStr for Measure {
    type Err = QuestionError;
    fn from_str(name: &str) -> Result<Measure, QuestionError> {
        let name = name.trim();
        if name == "flows" {
            return Ok(Measure::Flows);
        }
        let known = Measure::names();
        if known.iter().any(|k| k == name) {
            return name.parse().map(Measure::Sum);
        }
        let nearest = nearest(name, known.iter().map(String::as_str));
        Err(QuestionError::NoMeasure { name: name.to_owned(), nearest })
    }
}

impl Measure {
    /// Every name that is one.
    pub fn names() -> Vec<String> {
        let both = BOTH.iter().map(|(sum, _)| (*sum).to_owned());
        let each = BOTH.iter().flat_map(|(_, stem)| [format!("{stem}_o"), format!("{stem}_r")]);
        let once = ONCE.iter().map(|name| (*name).to_owned());
        ["flows".to_owned()].into_iter().chain(both).chain(each).chain(once).collect()
    }

    /// Its name, which is the column's in the answer.
    pub fn name(&self) -> &str {
        match self {
            Measure::Flows => "flows",
            Measure::Sum(column) => column.name(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_measure_is_a_whole_number_of_the_table() {
        for name in Measure::names().iter().filter(|name| *name != "flows") {
            let measure: Measure = name.parse().unwrap();
            assert_eq!(measure.name(), name);
            let Measure::Sum(column) = measure else { panic!("{name}") };
            let stored = match column.both {
                Some(stem) => vec![format!("{stem}_o"), format!("{stem}_r")],
                None => vec![name.clone()],
            };
            for name in stored {
                assert!(storage::flow_schema().field_with_name(&name).unwrap().data_type().is_integer(), "{name}");
            }
        }
    }

    #[test]
    fn names_are_known_or_the_nearest_is_told() {
        let error = |text: &str| text.parse::<SortKey>().unwrap_err().to_string();
        assert_eq!(error("byts"), "there is no column `byts`; did you mean `bytes`?");
        assert_eq!(error("zzz"), "there is no column `zzz`: `taphouse sql \"DESCRIBE flows\"` lists them");
        assert_eq!(error("bytes:up"), "`up` is no order: write COLUMN, COLUMN:asc or COLUMN:desc");
        assert_eq!(error("flow_id\" --"), "there is no column `flow_id\" --`; did you mean `flow_id`?");
        let error = |text: &str| text.parse::<Measure>().unwrap_err().to_string();
        assert_eq!(error("packts"), "`packts` cannot be added up; did you mean `packets`?");
        assert!(error("src_ip").starts_with("`src_ip` cannot be added up"));
        let names = ["src_ip", "src_ip"].map(str::to_owned);
        assert_eq!(Column::list(&names), Err(QuestionError::Twice { name: "src_ip".to_owned() }));
    }

    #[test]
    fn orders_are_read() {
        let key = |text: &str| text.parse::<SortKey>().unwrap();
        assert_eq!(key("t_end"), key("t_end:DESC"));
        assert!(!key("src_ip:asc").descending);
        assert_eq!(
            key("packets:asc").sql(),
            "(CAST(\"pkts_o\" AS BIGINT) + CAST(\"pkts_r\" AS BIGINT)) ASC NULLS LAST"
        );
    }
}
