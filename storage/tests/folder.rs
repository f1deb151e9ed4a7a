//! Folders that are not ours, not current, in use, or do not take what is written.

mod common;

use common::{flows, ids, options};
use std::fs;
use std::path::Path;
use storage::{OnError, StorageError, Store, StoreOptions, StoreReader};

fn refusal(dir: &Path) -> StorageError {
    Store::open(options(dir)).err().expect("refused")
}

#[test]
fn a_missing_folder_is_created_and_marked() {
    let dir = tempfile::tempdir().unwrap();
    let deep = dir.path().join("not/there/yet");
    drop(Store::open(options(&deep)).unwrap());
    let marker: serde_json::Value = serde_json::from_slice(&fs::read(deep.join("taphouse.json")).unwrap()).unwrap();
    assert_eq!(marker, serde_json::json!({"product": "taphouse", "format": storage::FORMAT_VERSION}));
}

#[test]
fn a_second_server_is_refused_and_told_who_the_first_is() {
    let dir = tempfile::tempdir().unwrap();
    let first = Store::open(options(dir.path())).unwrap();
    let error = refusal(dir.path());
    assert!(matches!(error, StorageError::Locked { pid: Some(pid), .. } if pid == std::process::id()), "{error}");
    let text = error.to_string();
    assert!(
        text.contains(&dir.path().display().to_string()) && text.contains(&std::process::id().to_string()),
        "{text}"
    );
    assert!(StoreReader::open(dir.path()).is_ok(), "reading needs no lock");
    drop(first);
    assert!(Store::open(options(dir.path())).is_ok(), "the lock goes with its owner");
}

#[test]
fn somebody_elses_folder_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("thesis.doc"), "years of work").unwrap();
    let error = refusal(dir.path());
    assert!(matches!(&error, StorageError::Foreign { found, .. } if found == "thesis.doc"), "{error}");
    assert!(error.to_string().contains("is not a taphouse data folder"), "{error}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing was added");
    assert!(matches!(StoreReader::open(dir.path()), Err(StorageError::Foreign { .. })));
}

#[test]
fn what_a_first_start_leaves_when_cut_short_is_ours() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["lock", "taphouse.tmp"] {
        fs::write(dir.path().join(name), "").unwrap();
    }
    fs::create_dir(dir.path().join("lost+found")).unwrap();
    assert!(Store::open(options(dir.path())).is_ok());
}

#[test]
fn a_newer_format_and_a_broken_marker_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let marker = dir.path().join("taphouse.json");
    fs::write(&marker, r#"{"product":"taphouse","format":7,"added_later":true}"#).unwrap();
    assert!(matches!(refusal(dir.path()), StorageError::Newer { found: 7, .. }));
    assert!(matches!(StoreReader::open(dir.path()), Err(StorageError::Newer { .. })));
    for text in ["", "{", r#"{"product":"winehouse","format":1}"#, r#"{"product":"taphouse"}"#, "\u{0}\u{0}"] {
        fs::write(&marker, text).unwrap();
        assert!(matches!(refusal(dir.path()), StorageError::BadMarker { .. }), "{text:?}");
        assert_eq!(fs::read_to_string(&marker).unwrap(), text, "left as it was");
    }
}

#[test]
fn a_file_and_a_missing_folder_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(matches!(refusal(&file), StorageError::NotAFolder { .. }));
    assert!(matches!(refusal(&file.join("below")), StorageError::NotAFolder { .. }));
    assert!(matches!(StoreReader::open(&file), Err(StorageError::NotAFolder { .. })));
    assert!(matches!(StoreReader::open(dir.path().join("none")), Err(StorageError::NoSuchFolder { .. })));
}

#[test]
fn a_folder_that_cannot_be_written_is_told() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o555)).unwrap();
    if fs::write(dir.path().join("probe"), "").is_ok() {
        println!("SKIPPED: this user may write anywhere");
        return;
    }
    let error = refusal(dir.path());
    assert!(matches!(error, StorageError::ReadOnly { .. }), "{error}");
    assert!(matches!(refusal(&dir.path().join("below")), StorageError::ReadOnly { .. }));
}

#[test]
fn options_out_of_range_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let error = Store::open(StoreOptions { batch_rows: 0, ..options(dir.path()) }).err().unwrap();
    assert_eq!(error.to_string(), "batch_rows is 0, allowed is 1 to 65536");
    assert!(Store::open(StoreOptions { frozen_max: 0, ..options(dir.path()) }).is_err());
    assert!(Store::open(StoreOptions { segment_rows_max: 0, ..options(dir.path()) }).is_err());
}

/// The folder of logs becomes unusable and usable again. (A full disk behaves alike; that takes a mount to show.)
#[test]
fn rows_that_cannot_be_logged_are_counted_and_the_store_recovers() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(options(dir.path())).unwrap();
    store.append(&flows(0..20), &[]).unwrap();
    store.flush().unwrap();
    fs::rename(dir.path().join("wal"), dir.path().join("away")).unwrap();
    store.append(&flows(20..50), &[]).unwrap();
    store.sync().unwrap();
    let counts = store.counts();
    assert_eq!((counts.rows_lost_disk, counts.wal_errors, counts.live_rows), (30, 2, 0));
    assert!(counts.last_error.unwrap().contains("rows could not be stored"));
    fs::rename(dir.path().join("away"), dir.path().join("wal")).unwrap();
    store.append(&flows(50..60), &[]).unwrap();
    store.close().unwrap();
    let wanted: Vec<u64> = (0..20).chain(50..60).collect();
    assert_eq!(ids(&StoreReader::open(dir.path()).unwrap().snapshot().unwrap()), wanted);
}

#[test]
fn a_replay_is_told_when_rows_are_lost() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(StoreOptions { on_error: OnError::Fail, ..options(dir.path()) }).unwrap();
    fs::rename(dir.path().join("wal"), dir.path().join("away")).unwrap();
    store.append(&flows(0..3), &[]).unwrap();
    assert!(matches!(store.flush(), Err(StorageError::RowsLost { rows: 3, .. })));
    assert_eq!(store.counts().rows_lost_disk, 3);
}

/// Segments cannot be written for a while: rows wait in the log, then memory runs out, then all is well again.
#[test]
fn unpublished_rows_wait_and_stay_visible() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(StoreOptions { frozen_max: 1, ..options(dir.path()) }).unwrap();
    let segments = dir.path().join("segments");
    fs::remove_dir(&segments).unwrap();
    fs::write(&segments, "in the way").unwrap();
    store.append(&flows(0..64), &[]).unwrap();
    assert!(matches!(store.flush(), Err(StorageError::Unpublished { .. })));
    let reader = store.reader();
    assert_eq!(ids(&reader.snapshot().unwrap()), (0..64).collect::<Vec<_>>());
    // Room for 192 rows: 64 frozen, and active ones past a segment's size.
    store.append(&flows(64..400), &[]).unwrap();
    store.sync().unwrap();
    let counts = store.counts();
    assert!(counts.rows_lost_backlog > 0, "{counts:?}");
    assert_eq!(counts.live_rows + counts.rows_lost_backlog, 400);
    assert!((192..=208).contains(&counts.live_rows), "{counts:?}");
    let kept = ids(&reader.snapshot().unwrap());
    fs::remove_file(&segments).unwrap();
    store.flush().unwrap();
    assert_eq!(ids(&reader.snapshot().unwrap()), kept);
    let counts = store.counts();
    assert_eq!((counts.live_rows, counts.segment_rows), (0, kept.len() as u64));
    store.append(&flows(400..410), &[]).unwrap();
    store.flush().unwrap();
    assert_eq!(store.counts().segment_rows, kept.len() as u64 + 10);
}

/// A folder with two segments, at rest.
fn two_segments(dir: &Path) {
    let mut store = Store::open(options(dir)).unwrap();
    for from in [0, 10] {
        store.append(&flows(from..from + 10), &[]).unwrap();
        store.flush().unwrap();
    }
    store.close().unwrap();
}

#[test]
fn a_manifest_that_was_cut_short_is_told_and_a_start_mends_it() {
    let dir = tempfile::tempdir().unwrap();
    two_segments(dir.path());
    let manifest = dir.path().join("manifest.ndjson");
    let whole = fs::read(&manifest).unwrap();
    let reader = StoreReader::open(dir.path()).unwrap();
    assert_eq!(reader.unlisted().unwrap(), Vec::<std::path::PathBuf>::new());

    fs::write(&manifest, "").unwrap();
    let error = reader.snapshot().unwrap_err().to_string();
    assert!(error.contains("manifest.ndjson") && error.contains("it is empty"), "{error}");

    // Lines that are whole, and not all.
    let first = whole.split_inclusive(|byte| *byte == b'\n').next().unwrap();
    fs::write(&manifest, first).unwrap();
    assert_eq!(reader.snapshot().unwrap().rows(), 0);
    assert_eq!(reader.unlisted().unwrap().len(), 2);

    for cut in ["".as_bytes(), first] {
        fs::write(&manifest, cut).unwrap();
        let store = Store::open(options(dir.path())).unwrap();
        assert_eq!(ids(&store.reader().snapshot().unwrap()), (0..20).collect::<Vec<u64>>());
    }
    assert_eq!(reader.unlisted().unwrap(), Vec::<std::path::PathBuf>::new());
}

/// Turns a bit in the last line of the manifest.
fn damage_last_line(dir: &Path) {
    let manifest = dir.join("manifest.ndjson");
    let mut text = fs::read(&manifest).unwrap();
    let at = text.len() - 5;
    text[at] ^= 1;
    fs::write(&manifest, text).unwrap();
}

#[test]
fn a_last_line_that_does_not_check_out_is_counted_and_its_rows_found() {
    let dir = tempfile::tempdir().unwrap();
    two_segments(dir.path());
    damage_last_line(dir.path());
    let store = Store::open(options(dir.path())).unwrap();
    assert_eq!(ids(&store.reader().snapshot().unwrap()), (0..20).collect::<Vec<u64>>());
    assert_eq!(store.counts().files_damaged, 1);
    assert!(dir.path().join("damaged/manifest.ndjson").exists());
}

/// What the line says has been done: one of the segments that were merged is gone, the other is there again, as after a kill between
/// their removals.
#[test]
fn a_damaged_line_of_a_merge_costs_no_rows() {
    let dir = tempfile::tempdir().unwrap();
    two_segments(dir.path());
    let compaction = storage::Compaction { segments_min: 2, ..options(dir.path()).compaction };
    let mut store = Store::open(StoreOptions { compaction, ..options(dir.path()) }).unwrap();
    let before = store.reader().snapshot().unwrap();
    let left = before.segments.iter().last().unwrap().path.clone();
    let bytes = fs::read(&left).unwrap();
    drop(before);
    assert_eq!(store.compact().unwrap(), 1);
    store.close().unwrap();
    fs::write(&left, bytes).unwrap();
    damage_last_line(dir.path());
    let store = Store::open(options(dir.path())).unwrap();
    assert_eq!(ids(&store.reader().snapshot().unwrap()), (0..20).collect::<Vec<u64>>());
}

#[test]
fn a_foreign_file_among_the_logs_is_set_aside_however_short() {
    let dir = tempfile::tempdir().unwrap();
    two_segments(dir.path());
    let log = |number: u64| dir.path().join(format!("wal/{number:016}.wal"));
    fs::write(log(77), "x\n").unwrap();
    fs::write(log(78), "TAPHWAL9 and more than a head has").unwrap();
    // What a crash leaves of a log that was begun.
    fs::write(log(79), "TAPHW").unwrap();
    fs::write(log(80), [0; 9]).unwrap();
    fs::write(log(81), b"TAPH\0\0\0\0\0\0").unwrap();
    // Of a number whose rows are in segments.
    fs::write(log(1), "y").unwrap();
    let store = Store::open(options(dir.path())).unwrap();
    assert_eq!(store.counts().files_damaged, 3);
    let kept = |number: u64| dir.path().join(format!("damaged/{number:016}.wal")).exists();
    assert_eq!([1, 77, 78, 79, 80, 81].map(kept), [true, true, true, false, false, false]);
    assert!([1, 77, 78, 79, 80, 81].iter().all(|number| !log(*number).exists()));
    assert_eq!(ids(&store.reader().snapshot().unwrap()), (0..20).collect::<Vec<u64>>());
}

#[test]
fn the_quota_holds_after_a_stop() {
    let dir = tempfile::tempdir().unwrap();
    two_segments(dir.path());
    let sizes: Vec<u64> =
        StoreReader::open(dir.path()).unwrap().snapshot().unwrap().segments.iter().map(|s| s.bytes).collect();
    // Room for two and a half.
    let max_bytes = Some(sizes.iter().sum::<u64>() + sizes[0] / 2);
    let retention = storage::Retention { max_bytes, ..storage::Retention::default() };
    let mut store = Store::open(StoreOptions { retention, ..options(dir.path()) }).unwrap();
    store.append(&flows(20..30), &[]).unwrap();
    store.close().unwrap();
    let left = StoreReader::open(dir.path()).unwrap().snapshot().unwrap();
    assert_eq!(ids(&left), (10..30).collect::<Vec<u64>>());
}
