//! Rows written before there were all of today's columns read on: those columns are null.

mod common;

use arrow::array::Array;
use arrow::ipc::writer::StreamWriter;
use arrow::record_batch::RecordBatch;
use common::{batches, flow, flows, ids, options};
use parquet::arrow::ArrowWriter;
use std::fs::{self, File};
use storage::{FlowBatchBuilder, Store, StoreReader};

/// The columns of the first version.
const FIRST: usize = 40;

fn old_batch(numbers: std::ops::Range<u64>) -> RecordBatch {
    let mut builder = FlowBatchBuilder::new(&["core".to_owned()], 100);
    builder.extend(&flows(numbers), &[]);
    let batch = builder.finish().unwrap();
    assert_eq!(batch.schema().field(FIRST - 1).name(), "dscp");
    batch.project(&(0..FIRST).collect::<Vec<_>>()).unwrap()
}

/// A log as the first version wrote it, frame by frame.
fn old_log(id: u64, batches: &[RecordBatch]) -> Vec<u8> {
    let mut bytes = b"TAPHWAL1".to_vec();
    bytes.extend(id.to_le_bytes());
    let mut stream = StreamWriter::try_new(Vec::new(), &batches[0].schema()).unwrap();
    for batch in batches {
        stream.write(batch).unwrap();
        let payload = std::mem::take(stream.get_mut());
        let mut head = (payload.len() as u32).to_le_bytes().to_vec();
        head.extend((batch.num_rows() as u32).to_le_bytes());
        let crc = crc32fast::hash(&[head.as_slice(), &payload].concat());
        bytes.extend(b"ROWS");
        bytes.extend(head);
        bytes.extend(crc.to_le_bytes());
        bytes.extend(payload);
    }
    bytes
}

#[test]
fn old_segments_and_old_logs_are_read_and_published() {
    let dir = tempfile::tempdir().unwrap();
    drop(Store::open(options(dir.path())).unwrap());
    let day = dir.path().join("segments/1970-01-01");
    fs::create_dir_all(&day).unwrap();
    let old = old_batch(0..20);
    let mut writer =
        ArrowWriter::try_new(File::create(day.join("0000000000000001.parquet")).unwrap(), old.schema(), None).unwrap();
    writer.write(&old).unwrap();
    writer.close().unwrap();
    let log = old_log(2, &[old_batch(20..30), old_batch(30..33)]);
    fs::write(dir.path().join("wal/0000000000000002.wal"), log).unwrap();

    let mut store = Store::open(options(dir.path())).unwrap();
    assert_eq!((store.counts().files_damaged, store.counts().rows_recovered), (0, 13));
    store.append(&[flow(33)], &[]).unwrap();
    assert_eq!(ids(&store.reader().snapshot().unwrap()), (0..34).collect::<Vec<_>>());
    store.flush().unwrap();
    let snapshot = store.reader().snapshot().unwrap();
    assert_eq!(ids(&snapshot), (0..34).collect::<Vec<_>>());
    assert_eq!(ids(&StoreReader::open(dir.path()).unwrap().snapshot().unwrap()), (0..34).collect::<Vec<_>>());
    // What the log had is in a segment of today's columns, null where nothing was measured; the last row was.
    let all = batches(&snapshot);
    let nulls = |name: &str| {
        all.iter().map(|batch| batch.column_by_name(name).map(|c| (c.len(), c.null_count()))).collect::<Vec<_>>()
    };
    for name in ["fragments", "goodput_o", "dup_ack_r"] {
        assert_eq!(nulls(name), [None, Some((13, 13)), Some((1, 0))], "{name}");
    }
    assert_eq!(nulls("retrans_r"), [Some((20, 0)), Some((13, 0)), Some((1, 0))]);
}
