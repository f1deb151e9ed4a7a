//! Prepared statements: what a client has to be able to come back to. Bounded in number and size, and forgotten when
//! nobody uses them.

use crate::metrics::QueryMetrics;
use prost::bytes::Bytes;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tonic::Status;

/// Statements held at once, of all clients together.
pub(crate) const STATEMENTS_MAX: usize = 1_024;
/// Bytes of their texts and values at once.
pub(crate) const BYTES_MAX: usize = 16 * 1024 * 1024;
/// A statement that was not used for so long is forgotten: connection pools keep theirs over a quiet hour.
pub(crate) const IDLE_MAX: Duration = Duration::from_secs(2 * 3600);

/// A prepared statement.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Statement {
    pub(crate) sql: String,
    /// How many parameters it has.
    pub(crate) parameters_count: usize,
    /// Their values as an Arrow IPC stream of one row; `None` until the client binds some.
    pub(crate) parameters: Option<Bytes>,
}

impl Statement {
    fn bytes(&self) -> usize {
        self.sql.len() + self.parameters.as_ref().map_or(0, Bytes::len)
    }
}

/// All prepared statements of a server.
pub(crate) struct PreparedStatements {
    table: Mutex<Table>,
    metrics: Arc<QueryMetrics>,
}

#[derive(Default)]
struct Table {
    statements: HashMap<Bytes, (Statement, Instant)>,
    bytes: usize,
    /// Handles given out.
    count: u64,
    /// Makes handles that another client does not guess.
    secret: RandomState,
}

impl PreparedStatements {
    pub(crate) fn new(metrics: Arc<QueryMetrics>) -> PreparedStatements {
        PreparedStatements { table: Mutex::default(), metrics }
    }

    /// Takes on a statement and gives its handle. When full, statements that have expired are forgotten first; then it
    /// is refused.
    pub(crate) fn open(&self, statement: Statement, now: Instant) -> Result<Bytes, Status> {
        let mut table = self.table();
        let bytes = statement.bytes();
        let has_room = |table: &Table| table.statements.len() < STATEMENTS_MAX && table.bytes + bytes <= BYTES_MAX;
        if !has_room(&table) {
            self.forget_expired(&mut table, now);
        }
        if !has_room(&table) {
            self.metrics.prepared.refused.inc();
            return Err(full());
        }
        table.count += 1;
        let handle: [u64; 2] = [table.count, table.secret.hash_one(table.count)];
        let handle = Bytes::from(handle.map(u64::to_be_bytes).concat());
        table.bytes += bytes;
        table.statements.insert(handle.clone(), (statement, now));
        self.metrics.prepared.opened.inc();
        self.metrics.prepared.open.set(table.statements.len() as i64);
        Ok(handle)
    }

    /// The statement behind a handle.
    pub(crate) fn get(&self, handle: &Bytes, now: Instant) -> Result<Statement, Status> {
        let mut table = self.table();
        let statement = self.find(&mut table, handle, now)?;
        Ok(statement.clone())
    }

    /// Sets the values of a statement's parameters.
    pub(crate) fn bind(&self, handle: &Bytes, parameters: Bytes, now: Instant) -> Result<(), Status> {
        let mut table = self.table();
        let before = self.find(&mut table, handle, now)?.bytes();
        let room = BYTES_MAX - (table.bytes - before);
        let statement = self.find(&mut table, handle, now)?;
        if statement.sql.len() + parameters.len() > room {
            self.metrics.prepared.refused.inc();
            return Err(full());
        }
        statement.parameters = Some(parameters);
        let after = statement.bytes();
        table.bytes = table.bytes - before + after;
        Ok(())
    }

    /// Forgets a statement. One that is not known has been forgotten already.
    pub(crate) fn close(&self, handle: &Bytes) {
        let mut table = self.table();
        if let Some((statement, _)) = table.statements.remove(handle) {
            table.bytes -= statement.bytes();
        }
        self.metrics.prepared.open.set(table.statements.len() as i64);
    }

    fn find<'t>(&self, table: &'t mut Table, handle: &Bytes, now: Instant) -> Result<&'t mut Statement, Status> {
        self.forget_expired(table, now);
        match table.statements.get_mut(handle) {
            Some((statement, used)) => {
                *used = now;
                Ok(statement)
            }
            None => Err(Status::not_found(format!(
                "the prepared statement is not known: it was closed, or not used for {} hours; prepare it again",
                IDLE_MAX.as_secs() / 3600
            ))),
        }
    }

    fn forget_expired(&self, table: &mut Table, now: Instant) {
        let before = table.statements.len();
        let mut freed = 0;
        table.statements.retain(|_, (statement, used)| {
            let keep = now.duration_since(*used) <= IDLE_MAX;
            freed += if keep { 0 } else { statement.bytes() };
            keep
        });
        table.bytes -= freed;
        self.metrics.prepared.expired.inc_by((before - table.statements.len()) as u64);
        self.metrics.prepared.open.set(table.statements.len() as i64);
    }

    /// What a panic left half done is at worst a byte count that is off.
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn full() -> Status {
    Status::resource_exhausted(format!(
        "{STATEMENTS_MAX} prepared statements, or {} MiB of them, are held already, which is the most allowed: close \
         some, or ask without preparing",
        BYTES_MAX >> 20
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;

    fn statement(sql: &str) -> Statement {
        Statement { sql: sql.to_owned(), ..Statement::default() }
    }

    fn table() -> (PreparedStatements, Arc<QueryMetrics>) {
        let metrics = Arc::new(QueryMetrics::default());
        (PreparedStatements::new(metrics.clone()), metrics)
    }

    #[test]
    fn handles_are_bounded_and_counted() {
        let (table, metrics) = table();
        let begun = Instant::now();
        let handles: Vec<_> = (0..STATEMENTS_MAX).map(|_| table.open(statement("SELECT 1"), begun).unwrap()).collect();
        assert_eq!(table.open(statement("SELECT 1"), begun).unwrap_err().code(), Code::ResourceExhausted);
        assert_eq!((metrics.prepared_open(), metrics.prepared.refused.get()), (STATEMENTS_MAX as u64, 1));
        table.close(&handles[3]);
        table.close(&handles[3]);
        assert_eq!(table.get(&handles[3], begun).unwrap_err().code(), Code::NotFound);
        table.open(statement("SELECT 2"), begun).unwrap();
        assert_eq!(metrics.prepared_open(), STATEMENTS_MAX as u64);
    }

    #[test]
    fn what_nobody_uses_is_forgotten() {
        let (table, metrics) = table();
        let begun = Instant::now();
        let [used, unused] = ["a", "b"].map(|sql| table.open(statement(sql), begun).unwrap());
        let later = begun + IDLE_MAX;
        assert_eq!(table.get(&used, later).unwrap(), statement("a"));
        let still_later = later + Duration::from_secs(1);
        assert_eq!(table.get(&unused, still_later).unwrap_err().code(), Code::NotFound);
        assert_eq!(table.get(&used, still_later).unwrap(), statement("a"));
        assert_eq!((metrics.prepared_open(), metrics.prepared.expired.get()), (1, 1));
    }

    #[test]
    fn their_bytes_are_bounded_too() {
        let (table, metrics) = table();
        let now = Instant::now();
        let handle = table.open(statement("SELECT ?"), now).unwrap();
        let large = Bytes::from(vec![0; BYTES_MAX / 2]);
        table.bind(&handle, large.clone(), now).unwrap();
        table.bind(&handle, large.clone(), now).unwrap();
        let other = table.open(statement("SELECT ?"), now).unwrap();
        assert_eq!(table.bind(&other, large.clone(), now).unwrap_err().code(), Code::ResourceExhausted);
        assert_eq!(table.get(&other, now).unwrap(), statement("SELECT ?"));
        table.close(&handle);
        table.bind(&other, large, now).unwrap();
        assert_eq!(metrics.prepared.refused.get(), 1);
    }

    #[test]
    fn a_full_table_makes_room_by_what_has_expired() {
        let (table, metrics) = table();
        let begun = Instant::now();
        for _ in 0..STATEMENTS_MAX {
            table.open(statement("SELECT 1"), begun).unwrap();
        }
        table.open(statement("SELECT 1"), begun + IDLE_MAX + Duration::from_secs(1)).unwrap();
        assert_eq!(metrics.prepared_open(), 1);
    }
}
