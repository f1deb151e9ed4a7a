use super::top::Sums;
use super::{Column, GridBuilder, Measure, QuestionError, Selection, list};

/// Most intervals of a timeline.
pub const INTERVALS_MAX: i64 = 100_000;

/// How much there was when: flows, packets and bytes for each interval of time, in total or for the largest groups
/// and all others together. A record counts in the interval in which it ends; a flow that lasts has a record each
/// active timeout, and counts once in each interval that has one of its.
///
/// Its answer is read by a [`GridBuilder`], which fills the intervals in which nothing was.
#[derive(Clone, Debug)]
pub struct Timeline {
    /// Which rows. `until` bounds their end, not their start.
    pub selection: Selection,
    /// Length of an interval, µs; at least 1. Intervals begin at multiples of it since 1970.
    pub every_us: i64,
    /// What makes a group; empty for the total alone.
    pub by: Vec<Column>,
    /// By what the largest groups are chosen, over the whole time.
    pub measure: Measure,
    /// How many groups are told apart.
    pub groups_max: u64,
    /// Most intervals, the newest; `None` for all.
    pub limit: Option<u64>,
}

impl Timeline {
    /// The question as SQL. The columns are `slot` (the interval's number since 1970), `rank` (1 is the largest group;
    /// `groups_max + 1` has all others), the groups' columns, and the sums.
    ///
    /// # Errors
    /// [`QuestionError::Twice`] if a column of `by` is the measure too.
    pub fn to_sql(&self) -> Result<String, QuestionError> {
        let sums = Sums::new(&self.measure, &self.by)?;
        let slot = format!("CAST(\"t_end\" AS BIGINT) / {}", self.every_us.max(1));
        let keys: Vec<String> = [slot].into_iter().chain(self.by.iter().map(Column::sql)).collect();
        let groups = sums.grouped(&keys, &self.selection.clause("t_end"));
        if self.by.is_empty() {
            return Ok(format!("SELECT k0 AS slot, 1 AS rank, {} FROM ({groups}) ORDER BY slot", sums.named()));
        }
        let keys: Vec<String> = (1..keys.len()).map(|i| format!("k{i}")).collect();
        let by = list(keys.iter().cloned());
        let totals = format!("SELECT *, sum({}) OVER (PARTITION BY {by}) AS total FROM ({groups})", sums.measure());
        let ranks = format!("SELECT *, dense_rank() OVER (ORDER BY total DESC, {by}) AS place FROM ({totals})");
        let max = self.groups_max;
        let named = list(keys.iter().zip(&self.by).map(|(key, column)| {
            let name = column.name();
            format!("CASE WHEN place <= {max} THEN {key} END AS \"{name}\"")
        }));
        let rank = format!("CASE WHEN place <= {max} THEN CAST(place AS BIGINT) ELSE {max} + 1 END AS rank");
        let added = list(sums.plain().zip(sums.names()).map(|(plain, name)| format!("sum({plain}) AS \"{name}\"")));
        let places = list((1..=2 + keys.len()).map(|i| i.to_string()));
        Ok(format!("SELECT k0 AS slot, {rank}, {named}, {added} FROM ({ranks}) GROUP BY {places} ORDER BY slot, rank"))
    }

    /// What takes the answer in.
    ///
    /// # Errors
    /// [`QuestionError::Twice`] as above, [`QuestionError::Intervals`] if the selection's own bounds are too far apart.
    pub fn grid(&self) -> Result<GridBuilder, QuestionError> {
        let sums = Sums::new(&self.measure, &self.by)?;
        let names = sums.names().map(str::to_owned).collect();
        GridBuilder::new(self, names, sums.measure_index())
    }
}
