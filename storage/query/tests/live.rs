//! Tables whose rows are made when a query asks for them, beside a real store.

mod common;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use common::{Flows, HOUR, T0, TAPS, one, sql, sql_error, wait};
use flowtable::FlowRecord;
use query::{Engine, FlowSource, LiveRows, LiveTable, LiveTableError, QueryLimits};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use storage::{FlowBatchBuilder, Snapshot, StorageError, Store, StoreReader};

/// What a table does when it is read.
type Read = dyn Fn(&mut LiveRows) -> Result<(), LiveTableError> + Send + Sync;

/// A table of flows.
struct Table {
    name: &'static str,
    reads: Arc<AtomicUsize>,
    read: Box<Read>,
}

impl LiveTable for Table {
    fn name(&self) -> &'static str {
        self.name
    }

    fn schema(&self) -> SchemaRef {
        storage::flow_schema()
    }

    fn read(&self, rows: &mut LiveRows) -> Result<(), LiveTableError> {
        self.reads.fetch_add(1, SeqCst);
        (self.read)(rows)
    }
}

struct Source {
    reader: StoreReader,
    table: Arc<Table>,
}

impl FlowSource for Source {
    fn snapshot_of(&self, table: storage::Table) -> Result<Snapshot, StorageError> {
        self.reader.snapshot_of(table)
    }

    fn live_tables(&self) -> Vec<Arc<dyn LiveTable>> {
        vec![self.table.clone()]
    }

    fn absent(&self, table: &str) -> Option<String> {
        (table == "elsewhere").then(|| "`elsewhere` is on another planet".to_owned())
    }
}

/// An engine with a live table of this name over a store, and how often the table was read.
fn engine(
    reader: StoreReader,
    limits: QueryLimits,
    read: impl Fn(&mut LiveRows) -> Result<(), LiveTableError> + Send + Sync + 'static,
) -> (Engine, Arc<AtomicUsize>) {
    let reads = Arc::new(AtomicUsize::new(0));
    let table = Table { name: "active_flows", reads: reads.clone(), read: Box::new(read) };
    (Engine::new(Source { reader, table: Arc::new(table) }, limits).unwrap(), reads)
}

fn batches(rows: &[FlowRecord]) -> Vec<RecordBatch> {
    let batch = |rows: &[FlowRecord]| {
        let mut builder = FlowBatchBuilder::new(&TAPS.map(str::to_owned), rows.len());
        builder.extend(rows, &[]);
        builder.finish().unwrap()
    };
    rows.chunks(100).map(batch).collect()
}

fn push_all(batches: &[RecordBatch], rows: &mut LiveRows) -> Result<(), LiveTableError> {
    batches.iter().try_for_each(|batch| rows.push(batch))
}

/// A live table that holds what the store holds: every question has the same answer of either.
#[test]
fn answers_are_those_of_a_stored_table_with_the_same_rows() {
    let seed = 0x11fe;
    let flows = Flows::sample(seed);
    let same = batches(&flows.rows);
    let (engine, reads) = engine(flows.store.reader(), QueryLimits::default(), move |rows| push_all(&same, rows));
    let questions = [
        "SELECT * FROM flows ORDER BY flow_id, part",
        "SELECT flow_id, t_start FROM flows WHERE host('10.0.0.1') AND proto = 'tcp' ORDER BY 1",
        "SELECT dst_port, sum(bytes_o) FROM flows WHERE port(443) OR net('192.168.0.0/16') GROUP BY 1 ORDER BY 1",
        "SELECT count(*) FROM flows WHERE t_start >= '2026-01-01T02:00:00Z' AND tap = 'dmz'",
        "SELECT count(*) FROM flows a JOIN flows b ON a.flow_id = b.flow_id AND a.src_port = 443 AND b.dst_port = 53",
        "SELECT (SELECT max(bytes_o) FROM flows WHERE dst_port = 53), (SELECT count(*) FROM flows WHERE src_port = 80)",
        "SELECT count(*) FROM flows WHERE src_ip IN (SELECT dst_ip FROM flows WHERE pkts_o > 90)",
        "SELECT 1 FROM flows WHERE vlan = 7 AND vlan = 8",
    ];
    for (asked, question) in questions.into_iter().enumerate() {
        let live = question.replace("FROM flows", "FROM active_flows").replace("JOIN flows", "JOIN active_flows");
        let answer = sql(&engine, &live);
        assert_eq!(answer, sql(&engine, question), "seed {seed:#x}: {question}");
        assert!(reads.load(SeqCst) <= asked + 1, "read once a query: {question}");
    }
    assert!(sql(&engine, questions[1]).len() > 10 && sql(&engine, questions[2]).len() > 1);
}

/// A row that goes from the live table to the store while a query is at work is in one of the two, or in both.
#[test]
fn nothing_is_lost_between_a_live_table_and_the_store() {
    let mut flows = Flows::new(0x12fe);
    flows.add(10, T0, T0 + HOUR);
    let mut moved = flows.rows[0];
    moved.flow_id = 4242;
    let reader = flows.store.reader();
    let store: Arc<Mutex<Store>> = Arc::new(Mutex::new(flows.store));
    let told = Arc::new(Mutex::new(Vec::new()));
    let (engine, _) = engine(reader, QueryLimits::default(), {
        let (store, told) = (store.clone(), told.clone());
        move |rows| {
            told.lock().unwrap().push(rows.reads_stored());
            store.lock().unwrap().append(&[moved], &[]).unwrap();
            Ok(())
        }
    });
    let both = "SELECT count(*) FROM (SELECT * FROM flows UNION ALL SELECT * FROM active_flows) WHERE flow_id = 4242";
    assert_eq!(one(&engine, both), "1");
    assert_eq!(one(&engine, "SELECT count(*) FROM active_flows"), "0");
    assert_eq!(
        one(&engine, "SELECT (SELECT count(*) FROM active_flows) AS a, (SELECT count(*) FROM flows) AS f"),
        "0,13"
    );
    // Asked of itself alone, it need not wait for the store.
    assert_eq!(*told.lock().unwrap(), [true, false, true]);
}

#[test]
fn only_what_the_query_keeps_counts_and_too_much_of_it_is_refused() {
    let flows = Flows::sample(0x13fe);
    let same = batches(&flows.rows);
    let limits = QueryLimits { memory_bytes: 150_000, ..QueryLimits::default() };
    let (engine, _) = engine(flows.store.reader(), limits, move |rows| push_all(&same, rows));
    let count = flows.rows.iter().filter(|r| r.dst_port == 53).count();
    assert!(count > 100);
    assert_eq!(sql(&engine, "SELECT flow_id FROM active_flows WHERE dst_port = 53").len(), count);
    let error = sql_error(&engine, "SELECT * FROM active_flows");
    assert_eq!(
        error,
        "what the query keeps of `active_flows` needs more memory than the 150000 bytes all queries share: narrow it with \
         WHERE (addresses, ports, tap), name fewer columns, or raise the memory limit"
    );
    // It was given back.
    assert_eq!(sql(&engine, "SELECT flow_id FROM active_flows WHERE dst_port = 53").len(), count);
}

#[test]
fn a_table_is_not_read_further_than_the_query_needs() {
    let flows = Flows::sample(0x14fe);
    let same = batches(&flows.rows);
    let pushed = Arc::new(AtomicUsize::new(0));
    let (engine, reads) = engine(flows.store.reader(), QueryLimits::default(), {
        let pushed = pushed.clone();
        move |rows| {
            pushed.store(0, SeqCst);
            same.iter().try_for_each(|batch| {
                pushed.fetch_add(1, SeqCst);
                rows.push(batch)
            })
        }
    });
    assert_eq!(sql(&engine, "SELECT flow_id FROM active_flows LIMIT 150").len(), 150);
    assert_eq!(pushed.load(SeqCst), 3, "two batches of 100 rows, and the third is refused");
    for other in ["EXPLAIN SELECT * FROM active_flows", "SELECT count(*) FROM flows", "DESCRIBE active_flows"] {
        sql(&engine, other);
    }
    assert_eq!(reads.load(SeqCst), 1);
    assert!(sql(&engine, "EXPLAIN ANALYZE SELECT * FROM active_flows").join("\n").contains("output_rows"));
    assert_eq!(reads.load(SeqCst), 2);
}

#[test]
fn tables_are_listed_and_missing_ones_explained() {
    let flows = Flows::new(0x15fe);
    let (engine, _) = engine(flows.store.reader(), QueryLimits::default(), |_| Ok(()));
    let listed = sql(&engine, "SHOW TABLES").join("\n");
    assert!(
        ["active_flows", "flows", "dns", "talkers"].iter().all(|table| listed.contains(&format!("public,{table},"))),
        "{listed}"
    );
    let columns = |table: &str| sql(&engine, &format!("DESCRIBE {table}"));
    assert_eq!(columns("active_flows"), columns("flows"));
    assert!(columns("active_flows").last().unwrap().starts_with("t_start,"));
    let error = sql_error(&engine, "SELECT * FROM active_flow");
    assert!(error.contains("did you mean `active_flows`?"), "{error}");
    let error = sql_error(&engine, "SELECT * FROM elsewhere");
    assert!(error.starts_with("there is no table `elsewhere` (line 1, column 15)"), "{error}");
    assert!(error.contains("`elsewhere` is on another planet"), "{error}");
    let error = sql_error(&engine, "SELECT * FROM zzz");
    assert!(error.contains("the tables are `flows`, `dns`, `talkers`, `active_flows`"), "{error}");
}

#[test]
fn a_table_that_fails_says_why() {
    let flows = Flows::new(0x16fe);
    let (engine, _) =
        engine(flows.store.reader(), QueryLimits::default(), |_| Err(LiveTableError::Failed("worker 3 hangs".into())));
    assert_eq!(sql_error(&engine, "SELECT 1 FROM active_flows"), "`active_flows` cannot be read: worker 3 hangs");
    // A batch that is not of the schema is refused where it is given.
    let other = RecordBatch::new_empty(storage::dns_schema());
    let (engine, _) = self::engine(flows.store.reader(), QueryLimits::default(), move |rows| rows.push(&other));
    assert!(sql_error(&engine, "SELECT zwin_r FROM active_flows").starts_with("`active_flows` cannot be read: "));
}

/// A table that has nothing to give for as long as anybody waits, and tells when nobody does.
#[test]
fn reading_ends_with_the_query() {
    fn until_closed(ended: Sender<()>) -> impl Fn(&mut LiveRows) -> Result<(), LiveTableError> + Send + Sync {
        move |rows| {
            while !rows.is_closed() {
                std::thread::yield_now();
            }
            ended.send(()).unwrap();
            Err(LiveTableError::Closed)
        }
    }
    let flows = Flows::new(0x17fe);
    let (ended, end) = channel();
    let limits = QueryLimits { time_max: Some(Duration::from_millis(20)), ..QueryLimits::default() };
    let (timed, _) = engine(flows.store.reader(), limits, until_closed(ended.clone()));
    assert!(sql_error(&timed, "SELECT * FROM active_flows").contains("took more than 20ms"));
    end.recv().unwrap();
    let (engine, reads) = engine(flows.store.reader(), QueryLimits::default(), until_closed(ended));
    wait(async {
        let mut query = Box::pin(engine.sql("SELECT * FROM active_flows"));
        while reads.load(SeqCst) == 0 {
            tokio::select! { biased; _ = &mut query => panic!("answered"), () = tokio::task::yield_now() => {} }
        }
    });
    end.recv().unwrap();
}
