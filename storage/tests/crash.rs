//! What a crash leaves behind: every synced row comes back exactly once, whatever the moment.

mod common;

use arrow::record_batch::RecordBatch;
use common::{batches, copy_folder, flow, flows, ids, options};
use flowtable::FlowRecord;
use parquet::arrow::ArrowWriter;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;
use storage::{Compaction, Now, Retention, StorageError, Store, StoreOptions, StoreReader};

/// Where rows of tap `core` in the first hour lie.
const HOUR: &str = "segments/tap_name=core/date=1970-01-01/hour=00";

fn only_file(dir: &Path) -> PathBuf {
    let files: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    files[0].clone()
}

fn reopen_ids(dir: &Path) -> Vec<u64> {
    let mut store = Store::open(options(dir)).unwrap();
    let before = ids(&store.reader().snapshot().unwrap());
    store.flush().unwrap();
    let after = ids(&store.reader().snapshot().unwrap());
    assert_eq!(before, after, "encoding recovered rows changes nothing");
    assert_eq!(fs::read_dir(dir.join("wal")).unwrap().count(), 0, "logs go once their rows are in segments");
    after
}

#[test]
fn synced_rows_survive_and_later_ones_are_gone() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(options(dir.path())).unwrap();
    store.append(&flows(0..40), &[]).unwrap();
    store.sync().unwrap();
    store.append(&flows(40..45), &[]).unwrap();
    let crash = tempfile::tempdir().unwrap();
    copy_folder(dir.path(), crash.path());
    drop(store);
    assert_eq!(reopen_ids(crash.path()), (0..40).collect::<Vec<_>>(), "five rows were not synced");
    assert_eq!(reopen_ids(dir.path()), (0..45).collect::<Vec<_>>(), "dropping a store syncs");
}

#[test]
fn a_log_cut_anywhere_gives_its_whole_batches() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(options(dir.path())).unwrap();
    let log = || only_file(&dir.path().join("wal"));
    let mut ends = Vec::new();
    for batch in 0..3u64 {
        store.append(&flows(batch * 4..batch * 4 + 4), &[]).unwrap();
        store.sync().unwrap();
        ends.push(fs::metadata(log()).unwrap().len());
    }
    let bytes = fs::read(log()).unwrap();
    let name = log().file_name().unwrap().to_owned();
    let crash = tempfile::tempdir().unwrap();
    copy_folder(dir.path(), crash.path());
    let reader = |cut: usize| {
        fs::write(crash.path().join("wal").join(&name), &bytes[..cut]).unwrap();
        StoreReader::open(crash.path()).unwrap()
    };
    // The log's own tests look at every byte; steps of 13 meet every alignment, and all bytes near the frames' borders.
    let near_border = |cut: usize| ends.iter().chain(&[0]).any(|end| cut.abs_diff(*end as usize) < 40);
    for cut in (0..=bytes.len()).filter(|cut| cut % 13 == 0 || near_border(*cut)) {
        let whole = ends.iter().filter(|end| **end <= cut as u64).count() as u64;
        let snapshot = reader(cut).snapshot().unwrap();
        assert_eq!(ids(&snapshot), (0..whole * 4).collect::<Vec<_>>(), "cut at {cut}");
    }
    // Opening for writing takes longer: at the frames' borders and one byte to either side, and in their middle.
    let near = ends.iter().flat_map(|end| [end - 1, *end, end + 1, end - 200]).chain([0, 1, 15, 16, 17]);
    for cut in near.filter(|cut| *cut <= bytes.len() as u64) {
        let crash = tempfile::tempdir().unwrap();
        copy_folder(dir.path(), crash.path());
        fs::write(crash.path().join("wal").join(&name), &bytes[..cut as usize]).unwrap();
        let whole = ends.iter().filter(|end| **end <= cut).count() as u64;
        let store = Store::open(options(crash.path())).unwrap();
        let counts = store.counts();
        assert_eq!((counts.rows_recovered, counts.files_damaged), (whole * 4, 0), "cut at {cut}");
        drop(store);
        assert_eq!(reopen_ids(crash.path()), (0..whole * 4).collect::<Vec<_>>(), "cut at {cut}");
    }
}

#[test]
fn a_tail_of_wrong_bytes_is_left_out_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(options(dir.path())).unwrap();
    store.append(&flows(0..8), &[]).unwrap();
    store.sync().unwrap();
    let crash = tempfile::tempdir().unwrap();
    for tail in [vec![0; 5_000], b"ROWS".repeat(2_000), vec![0xff; 100]] {
        copy_folder(dir.path(), crash.path());
        let mut log = OpenOptions::new().append(true).open(only_file(&crash.path().join("wal"))).unwrap();
        log.write_all(&tail).unwrap();
        drop(log);
        assert_eq!(ids(&StoreReader::open(crash.path()).unwrap().snapshot().unwrap()), (0..8).collect::<Vec<_>>());
        assert_eq!(reopen_ids(crash.path()), (0..8).collect::<Vec<_>>());
        fs::remove_dir_all(crash.path()).unwrap();
    }
}

#[test]
fn a_log_damaged_in_the_middle_gives_the_rest_and_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(options(dir.path())).unwrap();
    let log = || only_file(&dir.path().join("wal"));
    let mut ends = vec![24];
    for batch in 0..3u64 {
        store.append(&flows(batch * 4..batch * 4 + 4), &[]).unwrap();
        store.sync().unwrap();
        ends.push(fs::metadata(log()).unwrap().len() as usize);
    }
    let bytes = fs::read(log()).unwrap();
    let name = log().file_name().unwrap().to_owned();
    // In the mark, the length, the row count, the checksum and the payload of the second frame.
    for at in [0, 4, 8, 12, 16, 400] {
        let crash = tempfile::tempdir().unwrap();
        copy_folder(dir.path(), crash.path());
        let mut bad = bytes.clone();
        bad[ends[1] + at] ^= 0x10;
        fs::write(crash.path().join("wal").join(&name), &bad).unwrap();
        let store = Store::open(options(crash.path())).unwrap();
        assert_eq!(store.counts().files_damaged, 1);
        drop(store);
        assert_eq!(reopen_ids(crash.path()), [0, 1, 2, 3, 8, 9, 10, 11], "byte {at} of the frame");
        assert_eq!(fs::read(crash.path().join("damaged").join(&name)).unwrap(), bad);
    }
    // Without the first frame, which has the schema, nothing can be read; all of it is kept.
    let crash = tempfile::tempdir().unwrap();
    copy_folder(dir.path(), crash.path());
    let mut bad = bytes.clone();
    bad[ends[0] + 100] ^= 1;
    fs::write(crash.path().join("wal").join(&name), &bad).unwrap();
    assert_eq!(reopen_ids(crash.path()), [0u64; 0]);
    assert_eq!(fs::read(crash.path().join("damaged").join(&name)).unwrap(), bad);
}

#[test]
fn a_file_that_is_no_log_is_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    drop(Store::open(options(dir.path())).unwrap());
    fs::write(dir.path().join("wal/0000000000000009.wal"), b"something else entirely").unwrap();
    let mut store = Store::open(options(dir.path())).unwrap();
    assert_eq!(store.counts().files_damaged, 1);
    assert!(dir.path().join("damaged/0000000000000009.wal").exists());
    store.append(&flows(0..1), &[]).unwrap();
    store.flush().unwrap();
    assert_eq!(store.reader().snapshot().unwrap().segments[0].id.number, 10, "numbers are not used twice");
}

/// A copy of the folder at each step of publishing: the log still there, the segment there or not, listed or not.
#[test]
fn a_crash_at_any_step_of_publishing_shows_each_row_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(options(dir.path())).unwrap();
    store.append(&flows(0..32), &[]).unwrap();
    store.flush().unwrap();
    store.append(&flows(32..50), &[]).unwrap();
    store.sync().unwrap();
    let before = tempfile::tempdir().unwrap();
    copy_folder(dir.path(), before.path());
    store.flush().unwrap();
    let after = tempfile::tempdir().unwrap();
    copy_folder(dir.path(), after.path());
    drop(store);
    let wanted: Vec<u64> = (0..50).collect();
    let take = |into: &Path, what: &str| {
        fs::remove_dir_all(into.join(what)).or_else(|_| fs::remove_file(into.join(what))).unwrap();
        let from = after.path().join(what);
        if from.is_dir() {
            copy_folder(&from, &into.join(what))
        } else {
            let _ = fs::copy(from, into.join(what)).unwrap();
        }
    };
    let steps: [&[&str]; 4] =
        [&[], &["segments"], &["segments", "manifest.ndjson"], &["segments", "manifest.ndjson", "wal"]];
    for step in steps {
        let crash = tempfile::tempdir().unwrap();
        copy_folder(before.path(), crash.path());
        for what in step {
            take(crash.path(), what);
        }
        if !step.contains(&"manifest.ndjson") {
            // A segment that was being written.
            fs::write(crash.path().join(HOUR).join("0000000000000002-00.tmp"), b"PAR1 half a segment").unwrap();
        }
        assert_eq!(ids(&StoreReader::open(crash.path()).unwrap().snapshot().unwrap()), wanted, "{step:?}, read only");
        assert_eq!(reopen_ids(crash.path()), wanted, "{step:?}");
        assert_eq!(reopen_ids(crash.path()), wanted, "{step:?}, once more");
        let left: Vec<_> = fs::read_dir(crash.path().join(HOUR)).unwrap().collect();
        assert_eq!(left.len(), 2, "no leftovers: {left:?}");
    }
}

/// Copies taken by a second thread while the first one writes: whatever they catch, it opens, and no row is doubled or
/// missing before the last sync the copy can have seen.
#[test]
fn copies_at_arbitrary_moments_open() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(StoreOptions { segment_rows_max: 48, ..options(dir.path()) }).unwrap();
    let mut next = 0;
    for round in 0..12u64 {
        for _ in 0..7 {
            let rows = 1 + (next * 7 + round) % 23;
            store.append(&flows(next..next + rows), &[]).unwrap();
            next += rows;
            store.sync().unwrap();
        }
        // The encoder is at work here, at a step nobody chose.
        let crash = tempfile::tempdir().unwrap();
        copy_in_writing_order(dir.path(), crash.path());
        assert_eq!(reopen_ids(crash.path()), (0..next).collect::<Vec<_>>(), "round {round}");
    }
}

/// A crash sees all files at one moment; a copy does not. Logs first, then the manifest, then segments is an order in
/// which nothing can fall between: what vanishes before it is copied comes with the next kind.
fn copy_in_writing_order(from: &Path, to: &Path) {
    fs::copy(from.join("taphouse.json"), to.join("taphouse.json")).unwrap();
    copy_folder(&from.join("wal"), &to.join("wal"));
    fs::copy(from.join("manifest.ndjson"), to.join("manifest.ndjson")).unwrap();
    copy_folder(&from.join("segments"), &to.join("segments"));
}

#[test]
fn a_damaged_manifest_is_rebuilt_from_the_segments() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(options(dir.path())).unwrap();
    for part in 0..3 {
        store.append(&flows(part * 10..part * 10 + 10), &[]).unwrap();
        store.flush().unwrap();
    }
    let segments = |store: &Store| {
        let all = store.reader().snapshot().unwrap().segments;
        all.iter()
            .map(|s| (s.id, s.rows, s.bytes, s.t_start_min, s.t_end_max, s.taps.clone(), s.protos.clone()))
            .collect()
    };
    let before: Vec<_> = segments(&store);
    drop(store);
    let path = dir.path().join("manifest.ndjson");
    let mut text = fs::read(&path).unwrap();
    text[20] ^= 1;
    fs::write(&path, text).unwrap();
    assert!(StoreReader::open(dir.path()).unwrap().snapshot().unwrap_err().to_string().contains("damaged at byte 0"));
    let store = Store::open(options(dir.path())).unwrap();
    let after: Vec<_> = segments(&store);
    assert_eq!(before, after);
    assert!(dir.path().join("damaged/manifest.ndjson").exists());
}

/// Of these, a start makes what it can; who only reads says that something is wrong, and finds no empty table.
#[test]
fn a_manifest_that_ends_in_damage_or_is_missing_is_no_empty_one_to_readers() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(options(dir.path())).unwrap();
    store.append(&flows(0..10), &[]).unwrap();
    store.flush().unwrap();
    drop(store);
    let path = dir.path().join("manifest.ndjson");
    let whole = fs::read(&path).unwrap();
    let refused = || StoreReader::open(dir.path()).unwrap().snapshot().unwrap_err().to_string();
    let last = whole[..whole.len() - 1].iter().rposition(|byte| *byte == b'\n').unwrap() + 1;
    let mut damaged = whole.clone();
    damaged[last + 20] ^= 1;
    fs::write(&path, damaged).unwrap();
    assert!(refused().contains(&format!("damaged at byte {last}: checksum")), "{}", refused());
    // One that is being written.
    fs::write(&path, &whole[..whole.len() - 5]).unwrap();
    assert_eq!(StoreReader::open(dir.path()).unwrap().snapshot().unwrap().rows(), 0);
    fs::remove_file(&path).unwrap();
    assert!(refused().contains("it is missing, and there are segments"), "{}", refused());
    drop(Store::open(options(dir.path())).unwrap());
    assert_eq!(StoreReader::open(dir.path()).unwrap().snapshot().unwrap().rows(), 10);
}

#[test]
fn missing_and_damaged_segments_are_told_and_the_rest_is_served() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(options(dir.path())).unwrap();
    for part in 0..3 {
        store.append(&flows(part * 10..part * 10 + 10), &[]).unwrap();
        store.flush().unwrap();
    }
    let paths: Vec<PathBuf> =
        store.reader().snapshot().unwrap().segments.iter().map(|segment| segment.path.clone()).collect();
    drop(store);
    fs::remove_file(&paths[0]).unwrap();
    fs::write(&paths[2], b"short").unwrap();
    let store = Store::open(options(dir.path())).unwrap();
    let counts = store.counts();
    assert_eq!((counts.segments_missing, counts.files_damaged, counts.segments), (1, 1, 1));
    assert_eq!(ids(&store.reader().snapshot().unwrap()), (10..20).collect::<Vec<_>>());
}

/// Files that are no segments of ours, under names of segments: each is named and set aside, and the rest is served.
#[test]
fn foreign_newer_and_broken_segments_are_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(options(dir.path())).unwrap();
    store.append(&flows(0..10), &[]).unwrap();
    store.flush().unwrap();
    let path = store.reader().snapshot().unwrap().segments[0].path.clone();
    drop(store);
    let good = fs::read(&path).unwrap();
    let batch = common::read_parquet(&path).remove(0);
    let parquet = |batch: &RecordBatch, format: &str| {
        let format = KeyValue::new("taphouse.format".to_owned(), format.to_owned());
        let properties = WriterProperties::builder().set_key_value_metadata(Some(vec![format])).build();
        let mut bytes = Vec::new();
        let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), Some(properties)).unwrap();
        writer.write(batch).unwrap();
        writer.close().unwrap();
        bytes
    };
    let mut flipped = good.clone();
    // The length of the footer, which is what everything else is found by.
    let footer = flipped.len() - 5;
    flipped[footer] ^= 0x20;
    let newer = (storage::FORMAT_VERSION + 1).to_string();
    let cases = [
        ("newer", parquet(&batch, &newer)),
        ("foreign", parquet(&batch.project(&[2, 3]).unwrap(), "1")),
        ("no rows", parquet(&batch.slice(0, 0), "1")),
        ("no parquet", b"something else entirely".to_vec()),
        ("empty", Vec::new()),
        ("cut", good[..good.len() / 2].to_vec()),
        ("flipped", flipped),
    ];
    for (number, (_, content)) in (100..).zip(&cases) {
        fs::write(path.with_file_name(format!("{number:016}-00.parquet")), content).unwrap();
    }
    let store = Store::open(options(dir.path())).unwrap();
    let counts = store.counts();
    assert_eq!((counts.files_damaged, counts.segments), (cases.len() as u64, 1));
    assert_eq!(ids(&store.reader().snapshot().unwrap()), (0..10).collect::<Vec<_>>());
    for (number, (what, content)) in (100..).zip(&cases) {
        let kept = dir.path().join(format!("damaged/{number:016}-00.parquet"));
        assert_eq!(&fs::read(kept).unwrap(), content, "{what}");
    }
}

/// A segment that counts may have the rows of one that is found beside it; while it cannot be read, nobody knows.
#[test]
fn nothing_is_removed_or_listed_beside_a_segment_that_does_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(options(dir.path())).unwrap();
    for part in 0..2 {
        store.append(&flows(part * 10..part * 10 + 10), &[]).unwrap();
        store.flush().unwrap();
    }
    let segments = store.reader().snapshot().unwrap().segments;
    let [first, second] = [0, 1].map(|at: usize| segments[at].path.clone());
    drop((store, segments));
    let found = first.with_file_name(format!("{:016}-00.parquet", 100));
    fs::copy(&second, &found).unwrap();
    let good = fs::read(&first).unwrap();
    let mut flipped = good.clone();
    let in_footer = flipped.len() - 60;
    flipped[in_footer] ^= 1;
    fs::write(&first, flipped).unwrap();
    for (content, listed) in [(None, 2), (Some(&good), 3)] {
        if let Some(content) = content {
            fs::write(&first, content).unwrap();
        }
        let store = Store::open(options(dir.path())).unwrap();
        assert_eq!(store.counts().segments, listed);
        assert!(found.exists() && first.exists() && second.exists());
    }
}

/// Retention drops what is just being merged, and the power goes: the merged file is there, complete, and its rows must
/// not come back.
#[test]
fn a_merged_segment_whose_rows_were_dropped_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(options(dir.path())).unwrap();
    for part in 0..2 {
        store.append(&flows(part * 10..part * 10 + 10), &[]).unwrap();
        store.flush().unwrap();
    }
    drop(store);
    let merging = tempfile::tempdir().unwrap();
    copy_folder(dir.path(), merging.path());
    let compaction = Compaction { segments_min: 2, ..Compaction::default() };
    let store = Store::open(StoreOptions { compaction, ..options(merging.path()) }).unwrap();
    let merged = loop {
        let snapshot = store.reader().snapshot().unwrap();
        match &snapshot.segments[..] {
            [one] => break one.path.clone(),
            _ => std::thread::yield_now(),
        }
    };
    let retention = Retention { max_age: Some(Duration::ZERO), ..Retention::default() };
    let mut store = Store::open(StoreOptions { retention, ..options(dir.path()) }).unwrap();
    let held = store.reader().snapshot().unwrap();
    store.tick(Now::read()).unwrap();
    assert_eq!(store.counts().rows_removed, 20);
    let crash = tempfile::tempdir().unwrap();
    copy_folder(dir.path(), crash.path());
    drop(held);
    let target = crash.path().join(merged.strip_prefix(merging.path()).unwrap());
    fs::copy(&merged, &target).unwrap();
    assert_eq!(reopen_ids(crash.path()), [0u64; 0]);
    assert!(!target.exists());
}

#[test]
fn a_manifest_of_a_newer_version_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    drop(Store::open(options(dir.path())).unwrap());
    let path = dir.path().join("manifest.ndjson");
    let json = r#"{"manifest":{"format":9,"next_id":5,"added_later":true}}"#;
    let text = format!("{:08x} {json}\nsomething this version cannot read\n", crc32fast::hash(json.as_bytes()));
    fs::write(&path, &text).unwrap();
    let error = Store::open(options(dir.path())).err().unwrap();
    assert!(matches!(error, StorageError::Newer { found: 9, .. }), "{error}");
    assert!(matches!(
        StoreReader::open(dir.path()).and_then(|reader| reader.snapshot()),
        Err(StorageError::Newer { found: 9, .. })
    ));
    assert_eq!(fs::read_to_string(&path).unwrap(), text);
}

#[test]
fn ticks_sync_and_roll_by_the_clock_they_are_given() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(options(dir.path())).unwrap();
    let other = StoreReader::open(dir.path()).unwrap();
    let start = Now::read();
    let at = |ms: u64| Now {
        mono: start.mono + std::time::Duration::from_millis(ms),
        wall: start.wall + std::time::Duration::from_millis(ms),
    };
    store.tick(at(1_000)).unwrap();
    store.append(&[flow(1)], &[]).unwrap();
    store.tick(at(1_900)).unwrap();
    assert_eq!(other.snapshot().unwrap().rows(), 0, "not due");
    store.tick(at(2_000)).unwrap();
    assert_eq!((other.snapshot().unwrap().rows(), store.counts().syncs), (1, 1));
    store.tick(at(61_800)).unwrap();
    let counts = store.counts();
    assert_eq!((counts.segments + counts.frozen, counts.syncs), (0, 1), "nothing new to sync, a segment not due");
    store.tick(at(61_900)).unwrap();
    store.flush().unwrap();
    assert_eq!(store.counts().segments, 1);
    assert_eq!(batches(&other.snapshot().unwrap()).len(), 1);
}

/// A value of the second batch needs a wider column, so that its frame begins a stream; the third goes on with that.
#[test]
fn frames_whose_stream_began_in_a_damaged_one_are_not_read_as_something_else() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(options(dir.path())).unwrap();
    let log = || only_file(&dir.path().join("wal"));
    let mut ends = Vec::new();
    for pkts_o in [3, 300, 301] {
        store.append(&flows(0..4).iter().map(|flow| FlowRecord { pkts_o, ..*flow }).collect::<Vec<_>>(), &[]).unwrap();
        store.sync().unwrap();
        ends.push(fs::metadata(log()).unwrap().len() as usize);
    }
    let bytes = fs::read(log()).unwrap();
    assert_eq!([&bytes[ends[0]..][..4], &bytes[ends[1]..][..4]], [b"TYPE", b"ROWS"]);
    let crash = tempfile::tempdir().unwrap();
    copy_folder(dir.path(), crash.path());
    let mut bad = bytes.clone();
    bad[ends[0] + 400] ^= 1;
    fs::write(crash.path().join("wal").join(log().file_name().unwrap()), &bad).unwrap();
    let store = Store::open(options(crash.path())).unwrap();
    assert_eq!((store.counts().files_damaged, store.counts().rows_recovered), (1, 4));
}
