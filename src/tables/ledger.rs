//! Table `ledger`: where every packet and every record ended, by tap, queue and cause.

use super::{text, time};
use crate::pipeline::WorkerView;
use arrow::array::{
    ArrayRef, BooleanArray, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray, UInt32Array,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use capture::ledger::{QueueCounts, Row};
use query::{LiveRows, LiveTable, LiveTableError};
use std::sync::{Arc, LazyLock};
use std::time::SystemTime;

pub(super) const NAME: &str = "ledger";

/// Reads the counters of all workers, as `taphouse status` does.
pub(crate) struct LedgerTable {
    /// Of each worker: its tap, its queue, and what is seen of it.
    workers: Vec<(String, u32, WorkerView)>,
}

impl LedgerTable {
    pub(crate) fn new(workers: impl Iterator<Item = (String, u32, WorkerView)>) -> LedgerTable {
        LedgerTable { workers: workers.collect() }
    }
}

fn schema() -> SchemaRef {
    static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
        Arc::new(Schema::new(vec![
            time("time"),
            text("tap", false),
            Field::new("queue", DataType::UInt32, false),
            text("unit", false),
            text("cause", false),
            Field::new("count", DataType::Int64, false),
            Field::new("offered", DataType::Int64, false),
            Field::new("loss", DataType::Boolean, false),
            text("hint", false),
        ]))
    });
    SCHEMA.clone()
}

/// A line of the ledger with the queue it is of.
struct Line<'a> {
    tap: &'a str,
    queue: u32,
    unit: &'static str,
    offered: u64,
    row: Row,
}

/// All lines of a queue. Causes of records are named after what they count: `records_stored`, `dns_ring_full`.
fn lines<'a>(tap: &'a str, queue: u32, counts: &'a QueueCounts) -> impl Iterator<Item = Line<'a>> {
    let packets = counts.rows().map(|row| ("packets", counts.offered, row));
    let records = counts.record_rows().map(|row| match row.name.starts_with("dns_") {
        true => ("dns", counts.dns_records, row),
        false => ("records", counts.records, row),
    });
    packets.chain(records).map(move |(unit, offered, row)| Line { tap, queue, unit, offered, row })
}

impl LiveTable for LedgerTable {
    fn name(&self) -> &'static str {
        NAME
    }

    fn schema(&self) -> SchemaRef {
        schema()
    }

    fn read(&self, rows: &mut LiveRows) -> Result<(), LiveTableError> {
        let counts: Vec<QueueCounts> = self.workers.iter().map(|(.., view)| view.ledger.snapshot()).collect();
        let workers = self.workers.iter().zip(&counts);
        let lines: Vec<Line<'_>> = workers.flat_map(|((tap, queue, _), counts)| lines(tap, *queue, counts)).collect();
        rows.push(&batch(&lines, SystemTime::now()).map_err(|e| LiveTableError::Failed(Box::new(e)))?)
    }
}

fn batch(lines: &[Line<'_>], now: SystemTime) -> Result<RecordBatch, arrow::error::ArrowError> {
    let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let now = i64::try_from(since.as_micros()).unwrap_or(i64::MAX);
    let texts =
        |of: fn(&Line<'_>) -> String| -> ArrayRef { Arc::new(StringArray::from_iter_values(lines.iter().map(of))) };
    let counts = |of: fn(&Line<'_>) -> u64| -> ArrayRef {
        let signed = lines.iter().map(|line| i64::try_from(of(line)).unwrap_or(i64::MAX));
        Arc::new(Int64Array::from_iter_values(signed))
    };
    let columns: Vec<ArrayRef> = vec![
        Arc::new(TimestampMicrosecondArray::from_value(now, lines.len()).with_timezone("UTC")),
        texts(|line| line.tap.to_owned()),
        Arc::new(UInt32Array::from_iter_values(lines.iter().map(|line| line.queue))),
        texts(|line| line.unit.to_owned()),
        texts(|line| line.row.name.to_owned()),
        counts(|line| line.row.count),
        counts(|line| line.offered),
        Arc::new(lines.iter().map(|line| Some(line.row.is_loss)).collect::<BooleanArray>()),
        texts(|line| line.row.hint.to_owned()),
    ];
    RecordBatch::try_new(schema(), columns)
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::AsArray;
    use arrow::datatypes::Int64Type;
    use capture::ledger::QueueLedger;
    use std::collections::BTreeMap;

    #[test]
    fn the_causes_of_each_unit_add_up_to_what_was_offered() {
        let ledger = QueueLedger::default();
        ledger.worker.offered.add(10);
        ledger.worker.handoff_full.add(3);
        ledger.worker.processed.add(7);
        ledger.worker.records.add(5);
        ledger.writer.records_stored.add(5);
        ledger.worker.dns_records.add(2);
        ledger.worker.dns_ring_full.add(2);
        let counts = ledger.snapshot();
        let lines: Vec<_> = lines("core", 3, &counts).collect();
        let batch = batch(&lines, SystemTime::UNIX_EPOCH).unwrap();
        let number = |name: &str| batch.column_by_name(name).unwrap().as_primitive::<Int64Type>().clone();
        let (count, offered) = (number("count"), number("offered"));
        let mut sums = BTreeMap::new();
        for (row, unit) in batch.column_by_name("unit").unwrap().as_string::<i32>().iter().enumerate() {
            let sum = sums.entry(unit.unwrap()).or_insert((0, offered.value(row)));
            sum.0 += count.value(row);
            assert_eq!(sum.1, offered.value(row));
        }
        assert_eq!(sums, BTreeMap::from([("packets", (10, 10)), ("records", (5, 5)), ("dns", (2, 2))]));
        let lost = lines.iter().filter(|line| line.row.is_loss).map(|line| line.row.count).sum::<u64>();
        assert_eq!((lost, batch.num_rows()), (5, lines.len()));
    }
}
