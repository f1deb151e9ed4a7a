//! Reading while the store writes: no row twice, none missing, and nothing removed under a reader.

mod common;

use common::{batches, flow, flows, ids, options};
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;
use storage::{Now, Retention, Store, StoreOptions, StoreReader};

/// Counts rows until told to stop: never fewer than before or than were acknowledged, never more than were offered.
fn watch(reader: &StoreReader, acknowledged: &AtomicU64, offered: &AtomicU64, stop: &AtomicBool) -> u64 {
    let (mut seen, mut snapshots) = (0, 0);
    loop {
        let last = stop.load(Ordering::SeqCst);
        let least = acknowledged.load(Ordering::SeqCst);
        let snapshot = reader.snapshot().unwrap();
        let rows = snapshot.rows();
        assert!(rows >= least.max(seen), "{rows} rows, {least} acknowledged, {seen} seen before");
        assert!(rows <= offered.load(Ordering::SeqCst));
        seen = rows;
        snapshots += 1;
        if snapshots % 8 == 0 {
            let ids = ids(&snapshot);
            assert_eq!(ids, (0..ids.len() as u64).collect::<Vec<_>>());
        }
        if last {
            return snapshots;
        }
    }
}

#[test]
fn snapshots_show_each_row_once_while_segments_are_published() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(options(dir.path())).unwrap();
    let inside = store.reader();
    let outside = StoreReader::open(dir.path()).unwrap();
    let (appended, offered, synced, stop) =
        (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        let a = scope.spawn(|| watch(&inside, &appended, &offered, &stop));
        let b = scope.spawn(|| watch(&outside, &synced, &offered, &stop));
        let mut next = 0;
        for round in 0..400u64 {
            let rows = 1 + round * 13 % 29;
            offered.store(next + rows, Ordering::SeqCst);
            store.append(&flows(next..next + rows), &[]).unwrap();
            next += rows;
            appended.store(next, Ordering::SeqCst);
            if round % 10 == 0 {
                store.sync().unwrap();
                synced.store(next, Ordering::SeqCst);
            }
        }
        store.flush().unwrap();
        synced.store(next, Ordering::SeqCst);
        stop.store(true, Ordering::SeqCst);
        assert!(a.join().unwrap() > 1 && b.join().unwrap() > 1);
        let counts = store.counts();
        assert!(counts.segments_published > 50, "{counts:?}");
        assert_eq!((counts.segment_rows, counts.rows_appended, counts.rows_logged), (next, next, next));
    });
}

fn with_retention(dir: &std::path::Path, retention: Retention) -> StoreOptions {
    StoreOptions { retention, ..options(dir) }
}

#[test]
fn retention_waits_for_the_last_reader_of_a_segment() {
    let dir = tempfile::tempdir().unwrap();
    let retention = Retention { max_bytes: Some(1), ..Retention::default() };
    let mut store = Store::open(with_retention(dir.path(), retention)).unwrap();
    for part in 0..3 {
        store.append(&flows(part * 10..part * 10 + 10), &[]).unwrap();
        store.flush().unwrap();
    }
    let held = store.reader().snapshot().unwrap();
    store.tick(Now::read()).unwrap();
    let counts = store.counts();
    assert_eq!((counts.segments, counts.segments_removed, counts.rows_removed), (1, 2, 20));
    assert_eq!((counts.unlinks_waiting, counts.unlinks_waiting_bytes), (2, counts.bytes_removed));
    assert_eq!(ids(&store.reader().snapshot().unwrap()), (20..30).collect::<Vec<_>>());
    assert_eq!(ids(&StoreReader::open(dir.path()).unwrap().snapshot().unwrap()), (20..30).collect::<Vec<_>>());
    assert_eq!(ids(&held), (0..30).collect::<Vec<_>>(), "a query in progress reads on");
    let one = held.segments[1].clone();
    let paths: Vec<_> = held.segments.iter().map(|segment| segment.path.clone()).collect();
    drop(held);
    assert_eq!((paths[0].exists(), paths[1].exists(), paths[2].exists()), (false, true, true));
    // The server goes before the reader; the next start finishes the job.
    drop(store);
    std::mem::forget(one);
    let store = Store::open(options(dir.path())).unwrap();
    assert!(!paths[1].exists());
    assert_eq!(ids(&store.reader().snapshot().unwrap()), (20..30).collect::<Vec<_>>());
}

#[test]
fn age_is_told_by_packet_time_and_the_wall_clock() {
    let dir = tempfile::tempdir().unwrap();
    let retention = Retention { max_age: Some(Duration::from_secs(100)), ..Retention::default() };
    let mut store = Store::open(with_retention(dir.path(), retention)).unwrap();
    for second in [1_000, 1_050] {
        store.append(&[flow(second)], &[]).unwrap();
        store.flush().unwrap();
    }
    let start = Now::read();
    let mut at = |mono: u64, wall: u64| {
        let mono = start.mono + Duration::from_secs(mono);
        store.tick(Now { mono, wall: std::time::UNIX_EPOCH + Duration::from_secs(wall) }).unwrap();
        store.counts().segments
    };
    // Both flows end a quarter of a second after they begin.
    assert_eq!(at(0, 1_100), 2);
    assert_eq!(at(5, 1_101), 2, "not looked at again so soon");
    assert_eq!(at(10, 1_101), 1);
    assert_eq!(at(20, 1_151), 0);
    assert_eq!(fs::read_dir(dir.path().join("segments")).unwrap().count(), 0, "folders go with their last segment");
}

#[test]
fn free_space_is_kept_by_dropping_all_but_the_newest() {
    let dir = tempfile::tempdir().unwrap();
    let retention = Retention { min_free_bytes: Some(u64::MAX), ..Retention::default() };
    let mut store = Store::open(with_retention(dir.path(), retention)).unwrap();
    for part in 0..4 {
        store.append(&flows(part * 10..part * 10 + 10), &[]).unwrap();
        store.flush().unwrap();
    }
    store.tick(Now::read()).unwrap();
    assert_eq!(ids(&store.reader().snapshot().unwrap()), (30..40).collect::<Vec<_>>());
}

#[test]
fn a_reader_outside_reads_only_what_was_added() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(StoreOptions { segment_rows_max: 1_000, ..options(dir.path()) }).unwrap();
    let outside = StoreReader::open(dir.path()).unwrap();
    for round in 1..20u64 {
        store.append(&flows((round - 1) * 5..round * 5), &[]).unwrap();
        store.sync().unwrap();
        let snapshot = outside.snapshot().unwrap();
        assert_eq!(batches(&snapshot).len() as u64, round, "one batch a sync");
        assert_eq!(ids(&snapshot), (0..round * 5).collect::<Vec<_>>());
    }
}
