//! Small segments become larger ones: each row stays exactly once, for every reader and after every crash.

mod common;

use common::{batches, copy_folder, flow, flows, ids, options, read_parquet};
use flowtable::FlowRecord;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};
use storage::{Claim, Compaction, Now, Retention, Snapshot, Store, StoreCounts, StoreOptions, StoreReader};
use wire::{Nanos, TapId};

const HOUR: u64 = 3_600;

fn compacting(dir: &Path, segments_min: usize) -> StoreOptions {
    let compaction = Compaction { enabled: true, segments_min, bytes_per_s: 1 << 40 };
    StoreOptions { compaction, segment_rows_max: 1_000, ..options(dir) }
}

/// Row `n` at `second`, of one of two taps.
fn row(n: u64, second: u64, tap: u16) -> FlowRecord {
    FlowRecord { start: Nanos::from_secs(second), end: Nanos::from_secs(second), tap: TapId(tap), ..flow(n) }
}

/// Looks again until compaction has come so far; it is a matter of moments.
fn wait_until(store: &Store, what: &str, done: impl Fn(&StoreCounts) -> bool) -> StoreCounts {
    let since = Instant::now();
    loop {
        let counts = store.counts();
        if done(&counts) {
            return counts;
        }
        assert!(since.elapsed() < Duration::from_secs(600), "{what}: {counts:?}");
        thread::yield_now();
    }
}

fn parquet_files(dir: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(parquet_files(&path));
        } else {
            found.insert(path);
        }
    }
    found
}

/// The files of a snapshot.
fn listed(snapshot: &Snapshot) -> BTreeSet<PathBuf> {
    snapshot.segments.iter().map(|segment| segment.path.clone()).collect()
}

/// Looks again until there are no other files than those listed: merged ones go a moment after they are listed no more.
fn wait_for_files(store: &Store) {
    let dir = store.reader().dir().join("segments");
    wait_until(store, "files of merged segments", |_| {
        parquet_files(&dir) == listed(&store.reader().snapshot().unwrap())
    });
}

#[test]
fn segments_of_an_hour_become_one_that_is_sorted_and_described() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(compacting(dir.path(), 4)).unwrap();
    for part in 0..4u64 {
        // Interleaved in time, so that the merge has to sort.
        let rows: Vec<FlowRecord> = (0..10).map(|n| row(part * 10 + n, n * 4 + part, 0)).collect();
        store.append(&rows, &[]).unwrap();
        store.flush().unwrap();
    }
    let counts = wait_until(&store, "four segments", |counts| counts.compactions > 0);
    assert_eq!((counts.segments, counts.segment_rows), (1, 40));
    assert_eq!((counts.compactions, counts.segments_merged, counts.rows_merged), (1, 4, 40));
    assert!(counts.bytes_merged > counts.bytes_merged_into && counts.bytes_merged_into == counts.segment_bytes);
    assert_eq!((counts.compaction_errors, counts.segments_removed), (0, 0));
    let snapshot = store.reader().snapshot().unwrap();
    let segment = &snapshot.segments[0];
    assert_eq!((segment.t_end_min, segment.t_end_max, segment.rows), (0, 39_000_000, 40));
    assert_eq!(segment.taps, ["core"]);
    let merged = read_parquet(&segment.path);
    let times = merged.iter().flat_map(|batch| common::records(batch, &["core"])).map(|row| row.end);
    assert!(times.clone().is_sorted() && times.count() == 40);
    assert_eq!(ids(&snapshot), (0..40).collect::<Vec<_>>());
    wait_for_files(&store);
}

#[test]
fn hours_and_taps_stay_apart() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(compacting(dir.path(), 3)).unwrap();
    let mut n = 0;
    for _ in 0..3 {
        for (hour, tap) in [(0, 0), (0, 1), (1, 0)] {
            let rows: Vec<FlowRecord> = (n..n + 5).map(|n| row(n, hour * HOUR + n, tap)).collect();
            n += 5;
            store.append(&rows, &[]).unwrap();
        }
        store.flush().unwrap();
    }
    wait_until(&store, "three partitions", |counts| counts.segments == 3);
    let snapshot = store.reader().snapshot().unwrap();
    assert_eq!(ids(&snapshot), (0..n).collect::<Vec<_>>());
    let folders: BTreeSet<_> = snapshot.segments.iter().map(|segment| segment.path.parent().unwrap()).collect();
    assert_eq!(folders.len(), 3);
    assert!(snapshot.segments.iter().all(|segment| segment.taps.len() == 1 && segment.rows == 15));
}

#[test]
fn a_reader_keeps_what_was_merged_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(compacting(dir.path(), 3)).unwrap();
    let mut held = Vec::new();
    for part in 0..3u64 {
        store.append(&flows(part * 10..part * 10 + 10), &[]).unwrap();
        store.flush().unwrap();
        held.push(store.reader().snapshot().unwrap());
    }
    let counts = wait_until(&store, "three segments", |counts| counts.unlinks_waiting == 3);
    assert_eq!((counts.unlinks_waiting, counts.unlinks_waiting_bytes), (3, counts.bytes_merged));
    for (part, snapshot) in held.iter().enumerate() {
        assert_eq!(ids(snapshot), (0..part as u64 * 10 + 10).collect::<Vec<_>>());
    }
    assert_eq!(ids(&StoreReader::open(dir.path()).unwrap().snapshot().unwrap()), (0..30).collect::<Vec<_>>());
    drop(held);
    wait_until(&store, "readers", |counts| counts.unlinks_waiting == 0);
    assert_eq!(parquet_files(&dir.path().join("segments")).len(), 1);
}

/// Copies of the folder before and after, put together as a crash could leave them at each step.
#[test]
fn a_crash_at_any_step_of_merging_shows_each_row_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(options(dir.path())).unwrap();
    for part in 0..3u64 {
        store.append(&flows(part * 10..part * 10 + 10), &[]).unwrap();
        store.flush().unwrap();
    }
    drop(store);
    let before = tempfile::tempdir().unwrap();
    copy_folder(dir.path(), before.path());
    let store = Store::open(compacting(dir.path(), 3)).unwrap();
    wait_until(&store, "three segments", |counts| counts.compactions > 0);
    let merged = store.reader().snapshot().unwrap().segments[0].path.clone();
    drop(store);
    let merged = merged.strip_prefix(dir.path()).unwrap().to_owned();
    let old: Vec<PathBuf> = parquet_files(&before.path().join("segments")).into_iter().collect();
    let wanted: Vec<u64> = (0..30).collect();
    for (step, manifest, removed) in [
        ("half written", "before", 0),
        ("complete", "before", 0),
        ("listed", "after", 0),
        ("one of the merged gone", "after", 1),
        ("all of them gone", "after", 3),
        ("complete, the manifest lost", "none", 0),
        ("one gone, the manifest lost", "none", 1),
        ("one gone, the manifest damaged behind its first lines", "damaged", 1),
        ("all gone, the manifest damaged behind its first lines", "damaged", 3),
    ] {
        let crash = tempfile::tempdir().unwrap();
        copy_folder(before.path(), crash.path());
        let target = crash.path().join(&merged);
        match step {
            "half written" => fs::write(target.with_extension("tmp"), b"PAR1 half").unwrap(),
            _ => drop(fs::copy(dir.path().join(&merged), &target).unwrap()),
        }
        let path = crash.path().join("manifest.ndjson");
        match manifest {
            "after" => drop(fs::copy(dir.path().join("manifest.ndjson"), &path).unwrap()),
            "none" => fs::write(&path, "").unwrap(),
            "damaged" => {
                let mut text = fs::read_to_string(before.path().join("manifest.ndjson")).unwrap();
                text.push_str("00000000 {\"merge\":{}}\n00000000 {}\n");
                fs::write(&path, text).unwrap();
            }
            _ => {}
        }
        for path in &old[..removed] {
            fs::remove_file(crash.path().join(path.strip_prefix(before.path()).unwrap())).unwrap();
        }
        if matches!(manifest, "before" | "after") {
            assert_eq!(ids(&StoreReader::open(crash.path()).unwrap().snapshot().unwrap()), wanted, "{step}, read only");
        }
        for time in ["once", "twice"] {
            let store = Store::open(options(crash.path())).unwrap();
            let snapshot = store.reader().snapshot().unwrap();
            assert_eq!(ids(&snapshot), wanted, "{step}, opened {time}");
            assert_eq!(parquet_files(&crash.path().join("segments")), listed(&snapshot), "{step}, opened {time}");
            assert_eq!(store.counts().segments_missing, 0, "{step}");
        }
    }
}

/// A log becomes several segments: a crash between them leaves it to be made into segments again.
#[test]
fn a_crash_between_the_segments_of_a_log_shows_each_row_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(options(dir.path())).unwrap();
    store.append(&flows(0..10), &[]).unwrap();
    store.flush().unwrap();
    let rows: Vec<FlowRecord> = (10..40).map(|n| row(n, n * 400, (n % 2) as u16)).collect();
    store.append(&rows, &[]).unwrap();
    store.sync().unwrap();
    let before = tempfile::tempdir().unwrap();
    copy_folder(dir.path(), before.path());
    store.flush().unwrap();
    let new: Vec<PathBuf> = listed(&store.reader().snapshot().unwrap())
        .into_iter()
        .filter(|path| !before.path().join(path.strip_prefix(dir.path()).unwrap()).exists())
        .collect();
    assert_eq!(new.len(), 8, "four hours of two taps");
    for there in 0..=new.len() {
        for manifest_lost in [false, true] {
            let crash = tempfile::tempdir().unwrap();
            copy_folder(before.path(), crash.path());
            for path in &new[..there] {
                let target = crash.path().join(path.strip_prefix(dir.path()).unwrap());
                fs::create_dir_all(target.parent().unwrap()).unwrap();
                fs::copy(path, target).unwrap();
            }
            if manifest_lost {
                fs::write(crash.path().join("manifest.ndjson"), "lost\n").unwrap();
            } else {
                let outside = StoreReader::open(crash.path()).unwrap();
                assert_eq!(ids(&outside.snapshot().unwrap()), (0..40).collect::<Vec<_>>(), "{there}, read only");
            }
            let mut store = Store::open(options(crash.path())).unwrap();
            let recovered = if there == new.len() { 0 } else { 30 };
            assert_eq!(store.counts().rows_recovered, recovered, "{there} there, manifest lost: {manifest_lost}");
            store.flush().unwrap();
            let snapshot = store.reader().snapshot().unwrap();
            assert_eq!(ids(&snapshot), (0..40).collect::<Vec<_>>(), "{there} there, manifest lost: {manifest_lost}");
            assert_eq!(parquet_files(&crash.path().join("segments")), listed(&snapshot));
        }
    }
}

/// xorshift64*.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % n
    }
}

/// Rows come at random times of three hours, segments begin, are merged, and dropped; readers keep old snapshots. The
/// oracle is the list of all rows: a snapshot has all of them that retention left, each once.
#[test]
fn random_histories_hold_exactly_the_rows() {
    let mut compactions = 0;
    for seed in 1..=3u64 {
        println!("seed {seed}");
        let mut random = Random(seed);
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(compacting(dir.path(), 2)).unwrap();
        let outside = StoreReader::open(dir.path()).unwrap();
        let mut next = 0u64;
        let mut held: Vec<(Snapshot, Vec<u64>)> = Vec::new();
        for step in 0..80 {
            match random.below(10) {
                0..=4 => {
                    let hour = random.below(3);
                    let count = 1 + random.below(40);
                    let rows: Vec<FlowRecord> = (next..next + count)
                        .map(|n| row(n, hour * HOUR + random.below(HOUR), random.below(2) as u16))
                        .collect();
                    next += count;
                    store.append(&rows, &[]).unwrap();
                }
                5 | 6 => store.flush().unwrap(),
                7 => {
                    let snapshot = store.reader().snapshot().unwrap();
                    let rows = ids(&snapshot);
                    held.push((snapshot, rows));
                }
                8 if !held.is_empty() => {
                    let at = random.below(held.len() as u64) as usize;
                    let (snapshot, rows) = held.swap_remove(at);
                    assert_eq!(ids(&snapshot), rows, "seed {seed}, step {step}: an old snapshot reads on");
                }
                _ if random.below(4) == 0 => {
                    drop(std::mem::take(&mut held));
                    compactions += store.counts().compactions;
                    drop(store);
                    store = Store::open(compacting(dir.path(), 2)).unwrap();
                }
                _ => {}
            }
            let snapshot = store.reader().snapshot().unwrap();
            assert_eq!(snapshot.rows(), next, "seed {seed}, step {step}");
            if step % 5 == 0 {
                assert_eq!(ids(&snapshot), (0..next).collect::<Vec<_>>(), "seed {seed}, step {step}");
            }
            if random.below(8) == 0 {
                store.sync().unwrap();
                // Files may be gone when they are opened, so it is asked for their rows alone.
                assert_eq!(outside.snapshot().unwrap().rows(), next, "seed {seed}, step {step}, outside");
            }
        }
        store.flush().unwrap();
        for (snapshot, rows) in held {
            assert_eq!(ids(&snapshot), rows, "seed {seed}");
        }
        // Few are left, if compaction did its work: at most about log2(rows) in each of six partitions.
        let counts = wait_until(&store, "few segments", |counts| counts.segments <= 6 * 8);
        assert_eq!(counts.compaction_errors, 0, "seed {seed}: {counts:?}");
        compactions += counts.compactions;
        drop(store);
        let store = Store::open(options(dir.path())).unwrap();
        assert_eq!(ids(&store.reader().snapshot().unwrap()), (0..next).collect::<Vec<_>>(), "seed {seed}, reopened");
    }
    assert!(compactions > 0);
}

/// A quota of a few segments, writing, merging and readers that hold what they read, until a number of rows is written.
fn retention_at_work(dir: &Path, rounds: u64, until: Option<Instant>) {
    let retention = Retention { max_bytes: Some(400_000), ..Retention::default() };
    let mut store = Store::open(StoreOptions { retention, ..compacting(dir, 3) }).unwrap();
    let done = |round: u64| until.map_or(round >= rounds, |until| Instant::now() >= until);
    let reader = store.reader();
    let stop = std::sync::atomic::AtomicBool::new(false);
    thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut queries = 0u64;
                    while !stop.load(std::sync::atomic::Ordering::SeqCst) {
                        let snapshot = reader.snapshot().unwrap();
                        let rows: usize = batches(&snapshot).iter().map(|batch| batch.num_rows()).sum();
                        assert_eq!(rows as u64, snapshot.rows(), "a query reads all it was promised");
                        queries += 1;
                    }
                    queries
                })
            })
            .collect();
        let (mut round, mut next) = (0, 0);
        while !done(round) {
            let rows: Vec<FlowRecord> = (next..next + 200).map(|n| row(n, n / 10, (n % 2) as u16)).collect();
            next += 200;
            store.append(&rows, &[]).unwrap();
            store.flush().unwrap();
            store.tick(Now::read()).unwrap();
            round += 1;
            if round % 10 == 0 {
                // The thread that merges runs at the lowest priority: here it gets its turn.
                let jobs = |counts: &StoreCounts| counts.compactions + counts.compactions_abandoned;
                let before = jobs(&store.counts());
                store.append(&[row(next, next / 10, 0)], &[]).unwrap();
                next += 1;
                store.flush().unwrap();
                wait_until(&store, "a merge", |counts| jobs(counts) > before);
            }
        }
        stop.store(true, std::sync::atomic::Ordering::SeqCst);
        let queries: u64 = readers.into_iter().map(|reader| reader.join().unwrap()).sum();
        let counts = store.counts();
        println!("{queries} queries over {next} rows: {counts:?}");
        assert!(queries > 0 && counts.segments_removed > 0 && counts.compactions > 0, "{counts:?}");
        assert_eq!((counts.compaction_errors, counts.unlinks_failed), (0, 0), "{counts:?}");
        assert_eq!(counts.segment_rows + counts.rows_removed, next, "{counts:?}");
    });
    store.tick(Now::read()).unwrap();
    let bytes = |store: &Store| -> u64 {
        let files = parquet_files(&store.reader().dir().join("segments"));
        files.iter().filter_map(|path| fs::metadata(path).ok()).map(|meta| meta.len()).sum()
    };
    // A merge may be under way: its file is on the disk beside those that it replaces.
    wait_until(&store, "the quota", |counts| {
        counts.unlinks_waiting == 0 && bytes(&store) <= 400_000 && counts.segment_bytes <= 400_000
    });
    drop(store);
    let snapshot = StoreReader::open(dir).unwrap().snapshot().unwrap();
    assert_eq!(parquet_files(&dir.join("segments")), listed(&snapshot));
}

#[test]
fn no_query_fails_and_the_quota_holds_while_retention_is_at_work() {
    let dir = tempfile::tempdir().unwrap();
    retention_at_work(dir.path(), 40, None);
}

/// The same for ten minutes: `cargo test -p storage --test compaction -- --ignored`.
#[test]
#[ignore = "takes ten minutes"]
fn no_query_fails_for_ten_minutes() {
    let dir = tempfile::tempdir().unwrap();
    retention_at_work(dir.path(), 0, Some(Instant::now() + Duration::from_secs(600)));
}

#[test]
fn a_store_closes_in_the_middle_of_a_merge() {
    let dir = tempfile::tempdir().unwrap();
    let slow = Compaction { enabled: true, segments_min: 2, bytes_per_s: 1 };
    let mut store = Store::open(StoreOptions { compaction: slow, ..compacting(dir.path(), 2) }).unwrap();
    for part in 0..3u64 {
        store.append(&flows(part * 10..part * 10 + 10), &[]).unwrap();
        store.flush().unwrap();
    }
    let since = Instant::now();
    store.close().unwrap();
    assert!(since.elapsed() < Duration::from_secs(30), "a byte a second would take hours");
    let store = Store::open(options(dir.path())).unwrap();
    let snapshot = store.reader().snapshot().unwrap();
    assert_eq!((ids(&snapshot), snapshot.segments.len()), ((0..30).collect::<Vec<_>>(), 3));
    assert_eq!(parquet_files(&dir.path().join("segments")), listed(&snapshot));
}

#[test]
fn a_segment_that_does_not_read_keeps_no_others_from_being_merged() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(options(dir.path())).unwrap();
    for part in 0..4u64 {
        store.append(&flows(part * 10..part * 10 + 10), &[]).unwrap();
        store.flush().unwrap();
    }
    let bad = store.reader().snapshot().unwrap().segments[0].path.clone();
    drop(store);
    let mut bytes = fs::read(&bad).unwrap();
    bytes.iter_mut().for_each(|byte| *byte = 0);
    fs::write(&bad, bytes).unwrap();
    let store = Store::open(compacting(dir.path(), 3)).unwrap();
    let counts = wait_until(&store, "the other three", |counts| counts.compactions > 0);
    assert_eq!((counts.compaction_errors, counts.segments, counts.segments_merged), (1, 2, 3));
    let told = counts.last_error.unwrap();
    assert!(told.contains(bad.to_str().unwrap()), "{told}");
}

/// Times of a segment are those of its rows, in whatever order they came.
#[test]
fn a_clock_that_jumps_back_loses_no_rows_from_time_ranges() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(compacting(dir.path(), 2)).unwrap();
    // Each log goes forward, back by half an hour, and back by a day.
    let day = 24 * HOUR;
    let mut all = Vec::new();
    for log in 0..6u64 {
        let base = 3 * day + log * 60;
        let seconds = [base, base + 5, base - HOUR / 2, base - HOUR / 2 + 1, base - day, base + 1];
        let rows: Vec<FlowRecord> =
            seconds.iter().enumerate().map(|(at, second)| row(log * 6 + at as u64, *second, 0)).collect();
        all.extend(rows.iter().map(|row| (row.flow_id, row.end.as_micros() as i64)));
        store.append(&rows, &[]).unwrap();
        store.flush().unwrap();
    }
    let check = |snapshot: &Snapshot| {
        for from in (0..4 * day).step_by(700) {
            let range = from as i64 * 1_000_000..=(from + 900) as i64 * 1_000_000;
            let mut wanted: Vec<u64> = all.iter().filter(|(_, end)| range.contains(end)).map(|(id, _)| *id).collect();
            let overlaps = |min: i64, max: i64| min <= *range.end() && max >= *range.start();
            let mut found = Vec::new();
            for segment in snapshot.segments.iter().filter(|segment| overlaps(segment.t_end_min, segment.t_end_max)) {
                let rows =
                    read_parquet(&segment.path).iter().flat_map(|b| common::records(b, &["core"])).collect::<Vec<_>>();
                found.extend(
                    rows.iter().filter(|row| range.contains(&(row.end.as_micros() as i64))).map(|row| row.flow_id),
                );
            }
            wanted.sort_unstable();
            found.sort_unstable();
            assert_eq!(found, wanted, "from {from} s");
        }
    };
    check(&store.reader().snapshot().unwrap());
    wait_until(&store, "merged", |counts| counts.compactions > 0);
    check(&store.reader().snapshot().unwrap());
}

/// A row that has left for an archive is in that segment for good: merged, it would leave a second time.
#[test]
fn segments_that_leave_for_an_archive_are_not_merged() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(options(dir.path())).unwrap();
    let add = |store: &mut Store, part: u64| {
        let rows: Vec<FlowRecord> = (0..10).map(|n| row(part * 10 + n, n, 0)).collect();
        store.append(&rows, &[]).unwrap();
        store.flush().unwrap();
    };
    (0..4).for_each(|part| add(&mut store, part));
    let segments = store.reader().snapshot().unwrap().segments;
    let gone: BTreeSet<PathBuf> = segments[1..3].iter().map(|segment| segment.path.clone()).collect();
    let left = segments[1..3].iter().map(|segment| ("flows".to_owned(), segment.file.clone())).collect();
    drop((segments, store));

    let mut store = Store::open(StoreOptions { left, ..compacting(dir.path(), 2) }).unwrap();
    let counts = wait_until(&store, "the other two", |counts| counts.compactions > 0);
    assert_eq!((counts.compactions, counts.segments_merged, counts.segments), (1, 2, 3));
    let snapshot = store.reader().snapshot().unwrap();
    assert!(listed(&snapshot).is_superset(&gone));
    assert!(snapshot.segments.iter().all(|s| s.claim(Claim::Compaction) != gone.contains(&s.path)));
    let merged = snapshot.segments.iter().find(|s| s.rows == 20).unwrap();
    merged.release(Claim::Compaction);
    assert!(merged.claim(Claim::Shipping), "what was merged may leave");
    (4..6).for_each(|part| add(&mut store, part));
    let counts = wait_until(&store, "two more", |counts| counts.compactions > 1);
    assert_eq!((counts.compactions, counts.segments_merged, counts.segments), (2, 4, 4));
    let found: Vec<u64> = ids(&store.reader().snapshot().unwrap());
    assert_eq!(found, (0..60).collect::<Vec<_>>());
    store.close().unwrap();
}

/// What would go is what then goes.
#[test]
fn a_dry_run_tells_what_retention_does() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(options(dir.path())).unwrap();
    for part in 0..5u64 {
        store.append(&flows(part * 10..part * 10 + 10), &[]).unwrap();
        store.flush().unwrap();
    }
    let segments = store.reader().snapshot().unwrap().segments;
    let limit = segments[2..].iter().map(|segment| segment.bytes).sum();
    let retention = Retention { max_bytes: Some(limit), ..Retention::default() };
    let now = Now::read();
    let outside = StoreReader::open(dir.path()).unwrap();
    let none = BTreeSet::new();
    let plan = outside.retention_plan(&retention, now.wall, &none).unwrap();
    let own = store.reader().retention_plan(&retention, now.wall, &none).unwrap();
    assert_eq!(own.dropped, plan.dropped, "from memory, too");
    // What is to be shipped stays until it is.
    let waiting = Retention { shipped_to: 1, ..retention };
    let shipped = BTreeSet::from([("flows".to_owned(), segments[0].file.clone())]);
    let held = outside.retention_plan(&waiting, now.wall, &shipped).unwrap();
    assert_eq!((&held.dropped[..], &held.unshipped[..]), (&plan.dropped[..1], &plan.dropped[1..]));
    assert_eq!((held.kept_segments, held.kept_rows), (4, 40));
    segments[0].set_shipped(0);
    let own = store.reader().retention_plan(&waiting, now.wall, &none).unwrap();
    assert_eq!((own.dropped, own.unshipped), (held.dropped, held.unshipped), "the server knows it itself");
    let would_go: Vec<_> = plan.dropped.iter().map(|one| (dir.path().join(&one.file), one.limit)).collect();
    assert_eq!(would_go, segments[..2].iter().map(|s| (s.path.clone(), storage::Limit::MaxBytes)).collect::<Vec<_>>());
    assert_eq!((plan.kept_segments, plan.kept_rows, plan.kept_bytes, plan.waiting_bytes), (3, 30, limit, 0));
    assert_eq!(store.counts().segments, 5, "nothing changed");
    store.set_retention(retention);
    store.tick(now).unwrap();
    let left = listed(&store.reader().snapshot().unwrap());
    assert_eq!(left, segments[2..].iter().map(|segment| segment.path.clone()).collect());
    let held = outside.retention_plan(&retention, now.wall, &none).unwrap();
    assert_eq!((held.dropped.len(), held.waiting_bytes), (0, plan.dropped.iter().map(|one| one.bytes).sum()));
}
