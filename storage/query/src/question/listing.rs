use super::{Column, Selection, SortKey, list};

/// Rows of `flows` in any order. The newest rows first are cheaper to have with a [`crate::FlowQuery`].
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// Which rows.
    pub selection: Selection,
    /// What of them; empty for every stored column.
    pub columns: Vec<Column>,
    /// The order, ties broken by the newest first; empty for the order in which rows are read, which costs no memory.
    pub sort: Vec<SortKey>,
    /// Most rows.
    pub limit: Option<u64>,
}

impl Listing {
    /// The question as SQL.
    pub fn to_sql(&self) -> String {
        let all = Column::all();
        let columns = if self.columns.is_empty() { &all } else { &self.columns };
        let columns = list(columns.iter().map(Column::named));
        let mut sql = format!("SELECT {columns} FROM flows{}", self.selection.clause("t_start"));
        if !self.sort.is_empty() {
            let order = list(self.sort.iter().map(SortKey::sql));
            sql.push_str(&format!(" ORDER BY {order}, \"t_end\" DESC, \"flow_id\", \"part\""));
        }
        if let Some(limit) = self.limit {
            sql.push_str(&format!(" LIMIT {limit}"));
        }
        sql
    }
}
