//! Folders of every version of the format, kept in `folders/`: newer versions read all of them.

mod common;

use arrow::array::AsArray;
use arrow::datatypes::Int32Type;
use common::{batches, copy_folder, flow, ids, options};
use flowtable::FlowRecord;
use hints::TextLens;
use std::fs;
use std::path::{Path, PathBuf};
use storage::{Compaction, FORMAT_VERSION, Retention, SegmentProfile, Store, StoreOptions, StoreReader};
use wire::{Nanos, TapId};

fn kept(version: u32) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/folders/format-{version}"))
}

/// Row `n` of a kept folder: two taps, ten minutes from one row to the next, a name now and then.
fn row(n: u64) -> (FlowRecord, &'static str) {
    let start = Nanos::from_secs(1_700_000_000 + 600 * n);
    let name = if n.is_multiple_of(3) { "example.org" } else { "" };
    let text = TextLens { name: name.len() as u8, ..TextLens::default() };
    let row = FlowRecord { start, end: start + Nanos::from_millis(250), tap: TapId((n % 2) as u16), text, ..flow(n) };
    (row, name)
}

fn append(store: &mut Store, numbers: std::ops::Range<u64>) {
    let (rows, texts): (Vec<FlowRecord>, Vec<&str>) = numbers.map(row).unzip();
    store.append(&rows, texts.concat().as_bytes()).unwrap();
}

/// Writes the folder of the present version: `cargo test -p storage --test folders -- --ignored keep`, once, when the
/// version is new. Rows 0 to 9 have been dropped by retention, some segments are merged, 40 to 49 are in a log.
#[test]
#[ignore = "writes into the source tree"]
fn keep_a_folder_of_this_version() {
    let dir = kept(FORMAT_VERSION);
    assert!(!dir.exists(), "{} is there", dir.display());
    let mut store = Store::open(options(&dir)).unwrap();
    append(&mut store, 0..10);
    store.flush().unwrap();
    append(&mut store, 10..25);
    store.flush().unwrap();
    let since = row(10).0.end.as_micros() as i64;
    let segments = store.reader().snapshot().unwrap().segments;
    let bytes = segments.iter().filter(|segment| segment.t_end_max >= since).map(|segment| segment.bytes).sum();
    drop(store);
    let retention = Retention { max_bytes: Some(bytes), ..Retention::default() };
    let compatible = StoreOptions { profile: SegmentProfile::Compatible, ..options(&dir) };
    let mut store = Store::open(StoreOptions { retention, ..compatible.clone() }).unwrap();
    store.tick(storage::Now::read()).unwrap();
    drop(store);
    let compaction = Compaction { enabled: true, segments_min: 2, ..Compaction::default() };
    let mut store = Store::open(StoreOptions { compaction, ..compatible }).unwrap();
    append(&mut store, 25..27);
    store.flush().unwrap();
    append(&mut store, 27..40);
    store.flush().unwrap();
    while store.counts().compactions == 0 {
        std::thread::yield_now();
    }
    append(&mut store, 40..50);
    store.sync().unwrap();
    drop(store);
    fs::remove_file(dir.join("lock")).unwrap();
}

#[test]
fn every_version_is_read_and_goes_on_being_written() {
    for version in 1..=FORMAT_VERSION {
        let dir = tempfile::tempdir().unwrap();
        copy_folder(&kept(version), dir.path());
        let wanted: Vec<u64> = (10..50).collect();
        let outside = StoreReader::open(dir.path()).unwrap();
        let snapshot = outside.snapshot().unwrap();
        assert_eq!(ids(&snapshot), wanted, "format {version}, read only");
        let read = batches(&snapshot);
        let named = read.iter().map(|batch| {
            let names = batch["name"].as_dictionary::<Int32Type>();
            names.keys().iter().flatten().count()
        });
        assert_eq!(named.sum::<usize>(), wanted.iter().filter(|n| n.is_multiple_of(3)).count(), "format {version}");

        let mut store = Store::open(options(dir.path())).unwrap();
        let counts = store.counts();
        assert_eq!((counts.rows_recovered, counts.files_damaged, counts.segments_missing), (10, 0, 0));
        append(&mut store, 50..60);
        store.flush().unwrap();
        assert_eq!(ids(&store.reader().snapshot().unwrap()), (10..60).collect::<Vec<_>>(), "format {version}");
        drop(store);
        let marker: serde_json::Value =
            serde_json::from_slice(&fs::read(dir.path().join("taphouse.json")).unwrap()).unwrap();
        assert_eq!(marker["format"], FORMAT_VERSION, "older programs refuse it from now on");
        // The manifest of the older format may also be damaged.
        fs::write(dir.path().join("manifest.ndjson"), "no manifest\n").unwrap();
        let store = Store::open(options(dir.path())).unwrap();
        assert_eq!(ids(&store.reader().snapshot().unwrap()), (10..60).collect::<Vec<_>>(), "format {version}, rebuilt");
        drop(store);
        assert_eq!(ids(&outside.snapshot().unwrap()), (10..60).collect::<Vec<_>>());
    }
}
