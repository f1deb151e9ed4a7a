//! What EXPLAIN tells of segments, as a last row of its answer.

use crate::reader::{Scan, ScanBudget, ScanStats};
use arrow::array::{ArrayRef, StringArray};
use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use std::sync::Arc;

/// The row, in the columns of an answer to EXPLAIN: `plan_type` and `plan`. None if no table is scanned.
pub(crate) fn row(schema: &SchemaRef, budget: &ScanBudget) -> Option<RecordBatch> {
    let mut lines: Vec<String> = budget.scans().iter().map(line).collect();
    if lines.is_empty() {
        return None;
    }
    let ScanStats { bloom_blocks_read, files_opened, bytes_read, .. } = budget.stats();
    let files = plural(files_opened, "file");
    lines.push(format!(
        "read: {files} opened, {bytes_read} bytes, {bloom_blocks_read} blocks of 32 bytes of bloom filters among them"
    ));
    let columns =
        ["segments".to_owned(), lines.join("\n")].map(|text| Arc::new(StringArray::from(vec![text])) as ArrayRef);
    RecordBatch::try_new(schema.clone(), columns.to_vec()).ok()
}

fn line(scan: &Scan) -> String {
    let Scan { table, segments, by_time, by_zone, by_bloom, kept, bytes, live_rows } = scan;
    let segments = plural(*segments, "segment");
    format!(
        "{table}: {segments}, pruned {by_time} by time, {by_zone} by ranges of values, {by_bloom} by bloom filters; \
         {kept} to read, of {bytes} bytes; {live_rows} rows in no segment yet"
    )
}

fn plural(count: u64, of: &str) -> String {
    format!("{count} {of}{}", if count == 1 { "" } else { "s" })
}
