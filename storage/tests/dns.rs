//! Table `dns`: its columns come back, and it shares the folder, the lock and retention with `flows`.

mod common;

use arrow::array::{Array, AsArray};
use arrow::datatypes::*;
use arrow::record_batch::RecordBatch;
use common::{batches, copy_folder, flows, ids, options};
use hints::DnsRecord;
use std::fs;
use storage::{Now, Retention, SegmentProfile, Snapshot, Store, StoreOptions, StoreReader, Table, dns_schema};
use wire::{Addr, Nanos, TapId};

/// A transaction and its texts; `n` tells it from others and decides what is missing.
fn transaction(n: u64) -> (DnsRecord, String) {
    let (question, answers) = match n % 5 {
        0 => (String::new(), String::new()),
        1 => ("example.org".to_owned(), "192.0.2.1,192.0.2.2".to_owned()),
        2 => (format!("host-{}.example.net", n % 40), String::new()),
        3 => ("x".repeat(255), "y".repeat(255)),
        _ => ("bücher.example".to_owned(), "2001:db8::1".to_owned()),
    };
    let record = DnsRecord {
        time: Nanos::from_secs(n),
        flow_id: n.wrapping_mul(0x9e37_79b9_7f4a_7c15),
        tap: TapId((n % 2) as u16),
        client: Addr::v4([10, 0, (n >> 8) as u8, n as u8]),
        server: Addr([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, (n % 3) as u8]),
        client_port: 1_024 + n as u16,
        server_port: 53,
        proto: if n.is_multiple_of(7) { 6 } else { 17 },
        vlan: (n % 3) as u16,
        id: (n * 31) as u16,
        qtype: [1, 28, 65][n as usize % 3],
        has_query: !n.is_multiple_of(4),
        rcode: (!n.is_multiple_of(6)).then_some((n % 24) as u16),
        latency_us: (n.is_multiple_of(3)).then_some(n as u32 * 17),
        flags: 0x8180,
        answer_count: (n % 9) as u16,
        ttl_min: (n.is_multiple_of(2)).then_some(n as u32),
        question_len: question.len() as u8,
        answers_len: answers.len() as u8,
    };
    (record, question + &answers)
}

fn transactions(numbers: std::ops::Range<u64>) -> (Vec<DnsRecord>, Vec<u8>) {
    let (records, texts): (Vec<_>, Vec<_>) = numbers.map(transaction).unzip();
    (records, texts.concat().into_bytes())
}

fn append(store: &mut Store, numbers: std::ops::Range<u64>) {
    let (records, texts) = transactions(numbers);
    store.append_dns(&records, &texts).unwrap();
}

/// Rows as they were given, by other means than the crate's own.
fn read(batch: &RecordBatch) -> Vec<(DnsRecord, String)> {
    fn opt<T: ArrowPrimitiveType>(batch: &RecordBatch, name: &str, row: usize) -> Option<T::Native> {
        let column = batch[name].as_primitive::<T>();
        column.is_valid(row).then(|| column.value(row))
    }
    let text = |name: &str, row: usize| {
        let column = batch[name].as_dictionary::<Int32Type>();
        column.key(row).map(|key| column.values().as_string::<i32>().value(key).to_owned())
    };
    let address = |name: &str, row: usize| Addr(batch[name].as_fixed_size_binary().value(row).try_into().unwrap());
    let number = |name: &str, row: usize| opt::<UInt16Type>(batch, name, row).unwrap();
    let one = |row: usize| {
        let [question, answers] = ["qname", "answers"].map(|name| text(name, row).unwrap_or_default());
        let record = DnsRecord {
            time: Nanos(opt::<TimestampMicrosecondType>(batch, "t", row).unwrap() as u64 * 1_000),
            flow_id: opt::<UInt64Type>(batch, "flow_id", row).unwrap(),
            tap: TapId(
                ["core", "edge"].iter().position(|name| text("tap", row).as_deref() == Some(name)).unwrap() as u16
            ),
            client: address("client_ip", row),
            server: address("server_ip", row),
            client_port: number("client_port", row),
            server_port: number("server_port", row),
            proto: opt::<UInt8Type>(batch, "proto", row).unwrap(),
            vlan: opt::<UInt16Type>(batch, "vlan", row).unwrap_or(0),
            id: number("id", row),
            qtype: number("qtype", row),
            has_query: batch["has_query"].as_boolean().value(row),
            rcode: opt::<UInt16Type>(batch, "rcode", row),
            latency_us: opt::<UInt32Type>(batch, "latency_us", row),
            flags: number("flags", row),
            answer_count: number("answer_count", row),
            ttl_min: opt::<UInt32Type>(batch, "ttl_min", row),
            question_len: question.len() as u8,
            answers_len: answers.len() as u8,
        };
        (record, question + &answers)
    };
    (0..batch.num_rows()).map(one).collect()
}

fn all(snapshot: &Snapshot) -> Vec<(DnsRecord, String)> {
    let mut rows: Vec<_> = batches(snapshot).iter().flat_map(read).collect();
    rows.sort_by_key(|(record, _)| record.time);
    rows
}

fn wanted(numbers: std::ops::Range<u64>) -> Vec<(DnsRecord, String)> {
    numbers.map(transaction).collect()
}

#[test]
fn every_column_comes_back_from_memory_log_and_segment() {
    for profile in [SegmentProfile::Tuned, SegmentProfile::Compatible] {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(StoreOptions { profile, segment_rows_max: 1_000, ..options(dir.path()) }).unwrap();
        append(&mut store, 0..200);
        assert_eq!(all(&store.reader().snapshot_of(Table::Dns).unwrap()), wanted(0..200), "from memory");
        store.sync().unwrap();
        let other = StoreReader::open(dir.path()).unwrap();
        assert_eq!(all(&other.snapshot_of(Table::Dns).unwrap()), wanted(0..200), "from the log");
        store.flush().unwrap();
        let snapshot = other.snapshot_of(Table::Dns).unwrap();
        assert_eq!((snapshot.segments.len(), snapshot.live.len()), (2, 0), "one of each tap");
        assert_eq!(all(&snapshot), wanted(0..200), "from segments");
        assert_eq!(batches(&snapshot)[0].schema(), dns_schema());
        let segment = &snapshot.segments[1];
        assert_eq!((segment.t_end_min, segment.t_start_min, segment.t_end_max), (1_000_000, 1_000_000, 199_000_000));
        assert_eq!(
            (segment.protos.as_slice(), segment.taps.as_slice()),
            ([6, 17].as_slice(), ["edge".to_owned()].as_slice())
        );
        assert!(segment.path.starts_with(dir.path().join("dns/segments")));
        assert_eq!(store.reader().snapshot().unwrap().rows(), 0, "no flows");
        assert_eq!((store.counts().rows_appended, store.dns_counts().segment_rows), (0, 200));
        assert_eq!(store.dns_rows_logged_and_lost(), (200, 0));
    }
}

#[test]
fn a_crash_leaves_both_tables_whole() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(options(dir.path())).unwrap();
    store.append(&flows(0..100), &[]).unwrap();
    append(&mut store, 0..100);
    store.sync().unwrap();
    store.append(&flows(100..105), &[]).unwrap();
    append(&mut store, 100..105);
    let crash = tempfile::tempdir().unwrap();
    for part in
        ["wal", "dns/wal", "manifest.ndjson", "dns/manifest.ndjson", "segments", "dns/segments", "taphouse.json"]
    {
        let (from, to) = (dir.path().join(part), crash.path().join(part));
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        match from.is_dir() {
            true => copy_folder(&from, &to),
            false => assert!(fs::copy(from, to).is_ok()),
        }
    }
    drop(store);
    for round in 0..2 {
        let mut store = Store::open(options(crash.path())).unwrap();
        let reader = store.reader();
        assert_eq!(ids(&reader.snapshot().unwrap()), (0..100).collect::<Vec<_>>(), "{round}");
        assert_eq!(all(&reader.snapshot_of(Table::Dns).unwrap()), wanted(0..100), "{round}");
        store.flush().unwrap();
        assert_eq!(all(&reader.snapshot_of(Table::Dns).unwrap()), wanted(0..100), "{round}, published");
    }
}

#[test]
fn a_damaged_frame_takes_no_text_of_others_along() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(options(dir.path())).unwrap();
    // The second and the third batch have the same dictionaries, the first has others.
    let mut ends = Vec::new();
    let log = dir.path().join("dns/wal/0000000000000001.wal");
    for numbers in [0..3, 3..6, 3..6] {
        append(&mut store, numbers);
        store.sync().unwrap();
        ends.push(fs::metadata(&log).unwrap().len() as usize);
    }
    let mut bytes = fs::read(&log).unwrap();
    bytes[ends[0] + 200] ^= 1;
    let crash = tempfile::tempdir().unwrap();
    copy_folder(dir.path(), crash.path());
    fs::write(crash.path().join("dns/wal/0000000000000001.wal"), bytes).unwrap();
    assert_eq!(all(&StoreReader::open(crash.path()).unwrap().snapshot_of(Table::Dns).unwrap()), wanted(0..6));
    assert_eq!(all(&StoreReader::open(dir.path()).unwrap().snapshot_of(Table::Dns).unwrap()).len(), 9);
}

#[test]
fn retention_counts_both_tables_and_leaves_the_newest_of_each() {
    let dir = tempfile::tempdir().unwrap();
    let retention = Retention { max_bytes: Some(1), ..Retention::default() };
    let mut store = Store::open(StoreOptions { retention, ..options(dir.path()) }).unwrap();
    for part in 0..3u64 {
        store.append(&flows(part * 10..part * 10 + 10), &[]).unwrap();
        append(&mut store, part * 10..part * 10 + 10);
        store.flush().unwrap();
    }
    store.tick(Now::read()).unwrap();
    assert_eq!(ids(&store.reader().snapshot().unwrap()), (20..30).collect::<Vec<_>>());
    // The newest segment of table `dns` is that of the tap with the last row.
    let edge = wanted(20..30).into_iter().filter(|(row, _)| row.tap.0 == 1).collect::<Vec<_>>();
    assert_eq!(all(&store.reader().snapshot_of(Table::Dns).unwrap()), edge);
    assert_eq!((store.counts().segments_removed, store.dns_counts().segments_removed), (2, 5));
}

#[test]
fn a_folder_from_before_there_was_dns_reads_and_gets_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(options(dir.path())).unwrap();
    store.append(&flows(0..10), &[]).unwrap();
    store.close().unwrap();
    fs::remove_dir_all(dir.path().join("dns")).unwrap();
    let reader = StoreReader::open(dir.path()).unwrap();
    assert_eq!((reader.snapshot().unwrap().rows(), reader.snapshot_of(Table::Dns).unwrap().rows()), (10, 0));
    let mut store = Store::open(options(dir.path())).unwrap();
    append(&mut store, 0..5);
    store.close().unwrap();
    assert_eq!(all(&reader.snapshot_of(Table::Dns).unwrap()), wanted(0..5));
}
