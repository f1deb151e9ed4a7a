//! Table `talkers`: its columns come back, missing ones missing, and it shares folder, lock and compaction with the others.

mod common;

use arrow::array::{Array, AsArray};
use arrow::datatypes::*;
use arrow::record_batch::RecordBatch;
use common::{batches, flows, ids, options};
use std::fs;
use storage::{Compaction, SegmentProfile, Snapshot, Store, StoreOptions, StoreReader, Table, talkers_schema};
use talkers::{KeyFields, Metric, TalkerRow};
use wire::{Addr, Nanos, TapId};

/// A row and its texts; `n` tells it from others and decides what is missing.
fn row(n: u64) -> (TalkerRow, String) {
    let v4 = |n: u64| Addr::v4([10, 0, (n >> 8) as u8, n as u8]);
    let v6 = |n: u64| Addr((0x2001_0db8_u128 << 96 | u128::from(n % 40)).to_be_bytes());
    let (key, fields) = match n % 5 {
        0 => (KeyFields::default(), ""),
        1 => (KeyFields { src_ip: Some(v4(n)), proto: Some(17), ..KeyFields::default() }, "src_ip,proto"),
        2 => (
            KeyFields { dst_ip: Some(v6(n)), dst_port: Some(0), vlan: Some(0), ..KeyFields::default() },
            "dst_ip,dst_port,vlan",
        ),
        3 => (
            KeyFields {
                src_ip: Some(v6(n)),
                dst_ip: Some(v4(n)),
                src_port: Some(n as u16),
                dst_port: Some(443),
                proto: Some(6),
                vlan: Some(7),
                originator: Some(v4(n + 1)),
                responder: Some(v6(n + 2)),
                originator_port: Some(u16::MAX),
                responder_port: Some(53),
            },
            "everything",
        ),
        _ => (KeyFields { originator: Some(v4(n)), responder_port: Some(n as u16), ..KeyFields::default() }, "both"),
    };
    let (metric, elements) = match Metric::ALL[n as usize % 6] {
        Metric::Distinct => (Metric::Distinct, "responder,responder_port"),
        Metric::Quantile => (Metric::Quantile, "rtt_us"),
        metric => (metric, ""),
    };
    let task = if n.is_multiple_of(2) { "top-senders" } else { "fan-out" };
    let estimate = match n % 4 {
        0 => 0.0,
        1 => n as f64 * 1e12,
        _ => n as f64 / 3.0,
    };
    let row = TalkerRow {
        start: Nanos::from_secs(n),
        end: Nanos::from_secs(n) + Nanos::from_secs(10),
        tap: TapId((n % 2) as u16),
        metric,
        rank: (!fields.is_empty()).then_some(n as u32 % 100 + 1),
        key,
        quantile: (metric == Metric::Quantile).then_some(0.95),
        estimate,
        lower: estimate - 1.5,
        upper: estimate * 2.0,
        task_len: task.len() as u8,
        key_len: fields.len() as u8,
        elements_len: elements.len() as u8,
    };
    (row, format!("{task}{fields}{elements}"))
}

fn rows(numbers: std::ops::Range<u64>) -> Vec<(TalkerRow, String)> {
    numbers.map(row).collect()
}

fn append(store: &mut Store, numbers: std::ops::Range<u64>) {
    let (rows, texts): (Vec<_>, Vec<_>) = numbers.map(row).unzip();
    store.append_talkers(&rows, texts.concat().as_bytes()).unwrap();
}

/// Rows as they were given, by other means than the crate's own.
fn read(batch: &RecordBatch) -> Vec<(TalkerRow, String)> {
    fn opt<T: ArrowPrimitiveType>(batch: &RecordBatch, name: &str, row: usize) -> Option<T::Native> {
        let column = batch[name].as_primitive::<T>();
        column.is_valid(row).then(|| column.value(row))
    }
    let text = |name: &str, row: usize| {
        let column = batch[name].as_dictionary::<Int32Type>();
        column.key(row).map(|key| column.values().as_string::<i32>().value(key).to_owned())
    };
    let address = |name: &str, row: usize| {
        let column = batch[name].as_fixed_size_binary();
        column.is_valid(row).then(|| Addr(column.value(row).try_into().unwrap()))
    };
    let port = |name: &str, row: usize| opt::<UInt16Type>(batch, name, row);
    let float = |name: &str, row: usize| opt::<Float64Type>(batch, name, row);
    let one = |row: usize| {
        let [task, fields, elements] =
            ["task", "key_fields", "elements"].map(|name| text(name, row).unwrap_or_default());
        let end = opt::<TimestampMicrosecondType>(batch, "t_end", row).unwrap();
        let start = end - opt::<Int64Type>(batch, "dur_us", row).unwrap();
        let tap = text("tap", row).unwrap();
        let talker = TalkerRow {
            start: Nanos(start as u64 * 1_000),
            end: Nanos(end as u64 * 1_000),
            tap: TapId(["core", "edge"].iter().position(|name| *name == tap).unwrap() as u16),
            metric: Metric::of_name(&text("metric", row).unwrap()).unwrap(),
            rank: opt::<UInt32Type>(batch, "rank", row),
            key: KeyFields {
                src_ip: address("src_ip", row),
                dst_ip: address("dst_ip", row),
                src_port: port("src_port", row),
                dst_port: port("dst_port", row),
                proto: opt::<UInt8Type>(batch, "proto", row),
                vlan: port("vlan", row),
                originator: address("originator", row),
                responder: address("responder", row),
                originator_port: port("originator_port", row),
                responder_port: port("responder_port", row),
            },
            quantile: float("quantile", row),
            estimate: float("estimate", row).unwrap(),
            lower: float("lower", row).unwrap(),
            upper: float("upper", row).unwrap(),
            task_len: task.len() as u8,
            key_len: fields.len() as u8,
            elements_len: elements.len() as u8,
        };
        (talker, task + &fields + &elements)
    };
    (0..batch.num_rows()).map(one).collect()
}

fn all(snapshot: &Snapshot) -> Vec<(TalkerRow, String)> {
    let mut rows: Vec<_> = batches(snapshot).iter().flat_map(read).collect();
    rows.sort_by_key(|(row, _)| row.end);
    rows
}

#[test]
fn every_column_comes_back_from_memory_log_segment_and_merged_segment() {
    for profile in [SegmentProfile::Tuned, SegmentProfile::Compatible] {
        let dir = tempfile::tempdir().unwrap();
        let compaction = Compaction { enabled: false, segments_min: 2, ..Compaction::default() };
        let options = StoreOptions { profile, segment_rows_max: 1_000, compaction, ..options(dir.path()) };
        let mut store = Store::open(options).unwrap();
        append(&mut store, 0..200);
        assert_eq!(all(&store.reader().snapshot_of(Table::Talkers).unwrap()), rows(0..200), "from memory");
        store.sync().unwrap();
        let other = StoreReader::open(dir.path()).unwrap();
        assert_eq!(all(&other.snapshot_of(Table::Talkers).unwrap()), rows(0..200), "from the log");
        store.flush().unwrap();
        let snapshot = other.snapshot_of(Table::Talkers).unwrap();
        assert_eq!((snapshot.segments.len(), snapshot.live.len()), (2, 0), "one of each tap");
        assert_eq!(all(&snapshot), rows(0..200), "from segments");
        assert_eq!(batches(&snapshot)[0].schema(), talkers_schema());
        let segment = &snapshot.segments[1];
        assert_eq!((segment.t_end_min, segment.t_start_min, segment.t_end_max), (11_000_000, 1_000_000, 209_000_000));
        assert_eq!((segment.protos.as_slice(), segment.taps.as_slice()), (&[6, 17][..], &["edge".to_owned()][..]));
        assert_eq!(segment.zone("rank"), Some(&(2..=100)));
        assert!(segment.bloom("originator", 0).is_some());
        assert!(segment.path.starts_with(dir.path().join("talkers/segments")));

        append(&mut store, 200..400);
        store.flush().unwrap();
        assert_eq!(store.compact().unwrap(), 2);
        let snapshot = other.snapshot_of(Table::Talkers).unwrap();
        assert_eq!(snapshot.segments.len(), 2);
        assert_eq!(all(&snapshot), rows(0..400), "from merged segments");
        let counts = store.talkers_counts();
        assert_eq!((store.counts().rows_appended, counts.segment_rows), (0, 400));
        assert_eq!((counts.rows_logged, counts.rows_lost()), (400, 0));
        assert_eq!(store.reader().counts_of(Table::Talkers), Some(counts));
    }
}

#[test]
fn a_window_without_keys_has_no_protocol_and_no_address() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(options(dir.path())).unwrap();
    let total = |n: u64| TalkerRow { end: Nanos::from_secs(n), estimate: n as f64, ..TalkerRow::default() };
    store.append_talkers(&(0..10).map(total).collect::<Vec<_>>(), &[]).unwrap();
    store.flush().unwrap();
    let segment = store.reader().snapshot_of(Table::Talkers).unwrap().segments[0].clone();
    assert!(segment.protos.is_empty());
    assert!(segment.zone("src_port").unwrap().is_empty());
    let batch = &batches(&store.reader().snapshot_of(Table::Talkers).unwrap())[0];
    for name in ["rank", "src_ip", "responder", "dst_port", "vlan", "proto", "quantile", "task", "elements"] {
        assert_eq!(batch[name].null_count(), 10, "{name}");
    }
    // Found without a manifest, it is the same.
    drop(store);
    fs::remove_file(dir.path().join("talkers/manifest.ndjson")).unwrap();
    let store = Store::open(options(dir.path())).unwrap();
    let found = store.reader().snapshot_of(Table::Talkers).unwrap().segments[0].clone();
    assert_eq!((found.rows, &found.protos, found.t_end_max), (10, &segment.protos, segment.t_end_max));
}

#[test]
fn a_crash_leaves_its_rows_and_a_folder_from_before_there_was_the_table_gets_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(options(dir.path())).unwrap();
    store.append(&flows(0..10), &[]).unwrap();
    store.close().unwrap();
    fs::remove_dir_all(dir.path().join("talkers")).unwrap();
    let reader = StoreReader::open(dir.path()).unwrap();
    assert_eq!(Table::ALL.map(|table| reader.snapshot_of(table).unwrap().rows()), [10, 0, 0]);
    assert!(reader.segments().unwrap().iter().all(|(table, found)| found.is_empty() == (*table != Table::Flows)));
    let mut store = Store::open(options(dir.path())).unwrap();
    append(&mut store, 0..50);
    store.sync().unwrap();
    let crash = tempfile::tempdir().unwrap();
    common::copy_folder(dir.path(), crash.path());
    store.close().unwrap();
    assert_eq!(all(&reader.snapshot_of(Table::Talkers).unwrap()), rows(0..50));
    let store = Store::open(options(crash.path())).unwrap();
    assert_eq!(all(&store.reader().snapshot_of(Table::Talkers).unwrap()), rows(0..50));
    assert_eq!(ids(&store.reader().snapshot().unwrap()), (0..10).collect::<Vec<_>>());
}

#[test]
fn the_compactor_knows_the_table() {
    let dir = tempfile::tempdir().unwrap();
    let compaction = Compaction { segments_min: 2, ..Compaction::default() };
    let mut store = Store::open(StoreOptions { compaction, ..options(dir.path()) }).unwrap();
    for part in 0..4 {
        append(&mut store, part * 10..part * 10 + 10);
        store.flush().unwrap();
    }
    let begun = std::time::Instant::now();
    while store.talkers_counts().compactions == 0 {
        assert!(begun.elapsed().as_secs() < 60, "{:?}", store.talkers_counts());
        std::thread::yield_now();
    }
    assert_eq!(all(&store.reader().snapshot_of(Table::Talkers).unwrap()), rows(0..40));
}
