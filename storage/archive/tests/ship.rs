//! Segments of a real store into an object store that fails, changes bytes and goes away: what the archive then lists is
//! what the folder holds, each segment once.

use archive::{Archive, ArchiveConfig, ArchiveCounts, ArchiveReader, Place};
use async_trait::async_trait;
use bytes::Bytes;
use flowtable::FlowRecord;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, UNIX_EPOCH};
use storage::{Claim, Compaction, Now, Retention, Segment, Store, StoreOptions, Table};
use talkers::TalkerRow;
use tempfile::TempDir;
use wire::Nanos;

/// xorshift64*: a seed gives the same numbers everywhere.
#[derive(Debug)]
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) % n
    }
}

/// Objects in memory behind a line that is bad as told.
#[derive(Debug)]
struct BadLine {
    objects: InMemory,
    rng: Mutex<Rng>,
    /// Of a hundred requests, so many fail: half of them before they are carried out, half of them after.
    failing: AtomicU64,
    /// So many next segments arrive changed.
    changing: AtomicU64,
    /// Times each segment arrived as it was sent.
    arrived: Mutex<BTreeMap<String, u64>>,
}

impl BadLine {
    fn new(seed: u64) -> Arc<BadLine> {
        Arc::new(BadLine {
            objects: InMemory::new(),
            rng: Mutex::new(Rng(seed)),
            failing: AtomicU64::new(0),
            changing: AtomicU64::new(0),
            arrived: Mutex::default(),
        })
    }

    /// Whether a request fails before it is carried out, and whether it does so after.
    fn luck(&self) -> (bool, bool) {
        let drawn = self.rng.lock().unwrap().below(200);
        let failing = self.failing.load(Relaxed);
        (drawn < failing, (100..100 + failing).contains(&drawn))
    }

    async fn ask<T>(&self, request: impl Future<Output = Result<T>>) -> Result<T> {
        let gone = || Error::Generic { store: "BadLine", source: "the line is bad".into() };
        let (before, after) = self.luck();
        if before {
            return Err(gone());
        }
        let answer = request.await?;
        if after { Err(gone()) } else { Ok(answer) }
    }

    fn arrivals(&self) -> BTreeMap<String, u64> {
        self.arrived.lock().unwrap().clone()
    }
}

impl fmt::Display for BadLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bad-line")
    }
}

#[async_trait]
impl ObjectStore for BadLine {
    async fn put_opts(&self, at: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let mut bytes: Vec<u8> = Bytes::from(payload).to_vec();
        let is_segment = at.extension() == Some("parquet");
        let change = |n: u64| n.checked_sub(1);
        if is_segment && self.changing.fetch_update(Relaxed, Relaxed, change).is_ok() {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
        } else if is_segment {
            *self.arrived.lock().unwrap().entry(at.to_string()).or_default() += 1;
        }
        self.ask(self.objects.put_opts(at, bytes.into(), options)).await
    }
    async fn put_multipart_opts(&self, at: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        *self.arrived.lock().unwrap().entry(at.to_string()).or_default() += 1;
        self.ask(self.objects.put_multipart_opts(at, options)).await
    }
    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        self.ask(self.objects.get_opts(at, options)).await
    }
    fn delete_stream(&self, at: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.objects.delete_stream(at)
    }
    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.objects.list(prefix)
    }
    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.ask(self.objects.list_with_delimiter(prefix)).await
    }
    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.objects.copy_opts(from, to, options).await
    }
}

fn flow(n: u64) -> FlowRecord {
    let end = Nanos::from_secs(n);
    FlowRecord {
        flow_id: n,
        start: end,
        end,
        src_port: n as u16,
        dst_port: 443,
        proto: 6,
        pkts_o: 1,
        ..Default::default()
    }
}

/// Segments stay as they are written, so that tests can count them.
fn open(dir: &TempDir) -> Store {
    open_with(dir, Compaction { enabled: false, ..Compaction::default() })
}

fn open_with(dir: &TempDir, compaction: Compaction) -> Store {
    let left = archive::left(dir.path()).unwrap();
    let options = StoreOptions::new(dir.path(), vec!["core".into(), "edge".into()]);
    Store::open(StoreOptions { left, compaction, ..options }).unwrap()
}

/// Adds a segment of rows that end in the given seconds, from a day to the next.
fn add(store: &mut Store, seconds: std::ops::Range<u64>) {
    let rows: Vec<FlowRecord> = seconds.map(flow).collect();
    store.append(&rows, &[]).unwrap();
    store.flush().unwrap();
}

fn config(place: &Arc<BadLine>) -> ArchiveConfig {
    ArchiveConfig {
        objects: Some(Place::new(place.clone(), "fleet/flows")),
        retry_min: Duration::from_millis(1),
        retry_max: Duration::from_millis(4),
        ..ArchiveConfig::new("edge-1")
    }
}

fn counts(archive: &Archive) -> ArchiveCounts {
    archive.places()[0].1.read()
}

/// Looks until it is so.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(120), "{what} did not come about");
        std::thread::yield_now();
    }
}

/// Looks until so many segments have been shipped, and everything that is told of them agrees.
fn until_shipped(archive: &Archive, segments: u64) {
    until("shipping", || {
        let c = counts(archive);
        c.segments == segments && c.due_segments == 0 && c.lag == Duration::ZERO
    });
}

fn wait<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// What the archive lists, and that each of it is the file the folder has.
fn listed(place: &Arc<BadLine>, store: &Store) -> Vec<String> {
    let reader = ArchiveReader::new(Place::new(place.clone(), "fleet/flows"));
    let snapshot = wait(reader.snapshot_of(Table::Flows)).unwrap();
    let own: BTreeMap<String, Arc<Segment>> =
        store.reader().snapshot().unwrap().segments.iter().map(|s| (s.file.clone(), s.clone())).collect();
    let mut files = Vec::new();
    for segment in snapshot.segments.iter() {
        let object = Path::parse(segment.path.to_str().unwrap()).unwrap();
        let bytes = wait(async { place.objects.get(&object).await.unwrap().bytes().await.unwrap() });
        if let Some(own) = own.get(&segment.file) {
            assert_eq!(bytes, fs::read(&own.path).unwrap());
            assert_eq!(segment.description(), own.description());
        }
        files.push(segment.file.clone());
    }
    files.sort();
    let count = files.len();
    files.dedup();
    assert_eq!(files.len(), count, "a segment is listed twice");
    files
}

fn files(store: &Store) -> Vec<String> {
    let mut files: Vec<String> =
        store.reader().snapshot().unwrap().segments.iter().map(|segment| segment.file.clone()).collect();
    files.sort();
    files
}

#[test]
fn every_segment_arrives_once_and_no_start_sends_it_again() {
    let (dir, place) = (TempDir::new().unwrap(), BadLine::new(1));
    let mut store = open(&dir);
    for day in 0..3 {
        add(&mut store, day * 86_400..day * 86_400 + 50);
        add(&mut store, day * 86_400 + 50..day * 86_400 + 80);
    }
    let archive = archive::start(&config(&place), &store.reader()).unwrap();
    until_shipped(&archive, 6);
    let c = counts(&archive);
    assert_eq!((c.rows, c.due_segments, c.early_segments, c.failures, c.lag), (240, 0, 0, 0, Duration::ZERO));
    assert_eq!(c.bytes, store.reader().snapshot().unwrap().segments.iter().map(|s| s.bytes).sum::<u64>());
    assert_eq!(c.read_back, 6, "the tag of this store is no checksum");
    assert_eq!(listed(&place, &store), files(&store));
    drop(archive);
    drop(store);

    let mut store = open(&dir);
    let archive = archive::start(&config(&place), &store.reader()).unwrap();
    assert_eq!(counts(&archive).due_segments, 0, "known before anything is asked");
    assert!(store.reader().snapshot().unwrap().segments.iter().all(|s| s.is_shipped(1) && !s.claim(Claim::Compaction)));
    add(&mut store, 300_000..300_010);
    until_shipped(&archive, 1);
    assert_eq!(listed(&place, &store), files(&store));
    assert!(place.arrivals().values().all(|&times| times == 1), "{:?}", place.arrivals());
}

#[test]
fn whatever_fails_and_wherever_it_ends_each_segment_is_listed_once() {
    for seed in 1..=12 {
        let (dir, place) = (TempDir::new().unwrap(), BadLine::new(seed));
        let mut rng = Rng(seed ^ 0x5eed);
        let mut store = open(&dir);
        let mut day = 0;
        for _ in 0..4 {
            for _ in 0..1 + rng.below(4) {
                add(&mut store, day * 50_000..day * 50_000 + 20);
                day += 1;
            }
            place.failing.store(rng.below(60), Relaxed);
            let archive = archive::start(&config(&place), &store.reader()).unwrap();
            // Ends after some of it, in the middle of whatever it is at.
            let (some, tries) = (rng.below(4), 1 + rng.below(20));
            until("some", || {
                let c = counts(&archive);
                c.segments >= some || c.failures >= tries || c.due_segments == 0
            });
            drop(archive);
            if rng.below(2) == 0 {
                drop(store);
                store = open(&dir);
            }
        }
        let failed_before = place.arrivals();
        place.failing.store(0, Relaxed);
        let archive = archive::start(&config(&place), &store.reader()).unwrap();
        until("all", || counts(&archive).due_segments == 0 && !counts(&archive).failing);
        assert_eq!(listed(&place, &store), files(&store), "seed {seed}");
        let done = place.arrivals();
        assert_eq!(done.len(), files(&store).len(), "seed {seed}");
        drop(archive);
        // And nothing of it moves again.
        let archive = archive::start(&config(&place), &store.reader()).unwrap();
        assert_eq!(counts(&archive).due_segments, 0, "seed {seed}");
        drop(archive);
        assert_eq!(place.arrivals(), done, "seed {seed}, before: {failed_before:?}");
    }
}

#[test]
fn what_is_merged_and_what_has_left_are_never_the_same_rows() {
    let compaction = Compaction { enabled: true, segments_min: 2, bytes_per_s: 1 << 40 };
    let mut merged = 0;
    for seed in 1..=8 {
        let (dir, place) = (TempDir::new().unwrap(), BadLine::new(seed));
        let mut rng = Rng(seed ^ 0xc1a1);
        let mut store = open_with(&dir, compaction);
        let mut rows = 0;
        for _ in 0..4 {
            place.failing.store(rng.below(40), Relaxed);
            let archive = archive::start(&config(&place), &store.reader()).unwrap();
            for _ in 0..3 + rng.below(8) {
                // Hours in turn, and small segments in each: worth merging whenever the compactor looks.
                let (from, count) = (3_600 * rng.below(3) + rng.below(3_000), 5 + rng.below(20));
                add(&mut store, from..from + count);
                rows += count;
            }
            let (some, tries) = (1 + rng.below(4), 1 + rng.below(20));
            until("some", || {
                let c = counts(&archive);
                c.segments >= some || c.failures >= tries || c.due_segments == 0
            });
            drop(archive);
            if rng.below(2) == 0 {
                merged += store.counts().segments_merged;
                drop(store);
                store = open_with(&dir, compaction);
            }
        }
        place.failing.store(0, Relaxed);
        let archive = archive::start(&config(&place), &store.reader()).unwrap();
        until("all", || counts(&archive).due_segments == 0 && !counts(&archive).failing);
        drop(archive);
        // Nothing of it can be merged any more.
        assert_eq!(listed(&place, &store), files(&store), "seed {seed}");
        let reader = ArchiveReader::new(Place::new(place.clone(), "fleet/flows"));
        assert_eq!(wait(reader.snapshot_of(Table::Flows)).unwrap().rows(), rows, "seed {seed}");
        merged += store.counts().segments_merged;
    }
    assert!(merged > 0, "the two never met");
}

#[test]
fn what_arrives_changed_is_found_and_sent_again() {
    let (dir, place) = (TempDir::new().unwrap(), BadLine::new(3));
    let mut store = open(&dir);
    add(&mut store, 0..100);
    place.changing.store(2, Relaxed);
    let archive = archive::start(&config(&place), &store.reader()).unwrap();
    until("shipping", || counts(&archive).segments == 1 && !counts(&archive).failing);
    let c = counts(&archive);
    assert_eq!((c.corrupt, c.failures, c.failing), (2, 2, false));
    assert!(c.last_error.unwrap().contains("arrived changed (SHA-256 differs)"));
    assert_eq!(listed(&place, &store), files(&store));
}

#[test]
fn the_name_of_a_sensor_is_one_folders() {
    let place = BadLine::new(4);
    let (one, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let (mut store, mut second) = (open(&one), open(&other));
    add(&mut store, 0..10);
    add(&mut second, 0..10);
    let archive = archive::start(&config(&place), &store.reader()).unwrap();
    until_shipped(&archive, 1);
    let refused = archive::start(&config(&place), &second.reader()).unwrap();
    until("the refusal", || counts(&refused).failures > 0);
    let c = counts(&refused);
    let error = c.last_error.unwrap();
    assert!(error.contains("'edge-1'") && error.contains("another archive.sensor"), "{error}");
    assert_eq!((c.segments, c.due_segments), (0, 1));
    assert_eq!(place.arrivals().values().sum::<u64>(), 1);
    let renamed = ArchiveConfig { sensor: "edge-2".into(), ..config(&place) };
    let renamed = archive::start(&renamed, &second.reader()).unwrap();
    until_shipped(&renamed, 1);
    let reader = ArchiveReader::new(Place::new(place.clone(), "fleet/flows"));
    assert_eq!(wait(reader.sensors()).unwrap(), ["edge-1", "edge-2"]);
    assert_eq!(wait(reader.snapshot_of(Table::Flows)).unwrap().rows(), 20);
    let one = ArchiveReader::new(Place::new(place, "fleet/flows/sensor=edge-2"));
    assert_eq!(wait(one.snapshot_of(Table::Flows)).unwrap().rows(), 10);
}

/// An archive from before there was one of the tables has nothing of it, and takes it.
#[test]
fn every_table_is_shipped() {
    let (dir, place) = (TempDir::new().unwrap(), BadLine::new(10));
    let mut store = open(&dir);
    add(&mut store, 0..10);
    let archive = archive::start(&config(&place), &store.reader()).unwrap();
    until_shipped(&archive, 1);
    let reader = ArchiveReader::new(Place::new(place, "fleet/flows"));
    let rows = || Table::ALL.map(|table| wait(reader.snapshot_of(table)).unwrap().rows());
    assert_eq!(rows(), [10, 0, 0]);
    let row = |n| TalkerRow { end: Nanos::from_secs(n), estimate: n as f64, ..TalkerRow::default() };
    store.append_talkers(&(0..7).map(row).collect::<Vec<_>>(), &[]).unwrap();
    store.flush().unwrap();
    until_shipped(&archive, 2);
    assert_eq!(rows(), [10, 0, 7]);
    let segment = wait(reader.snapshot_of(Table::Talkers)).unwrap().segments[0].clone();
    assert!(segment.path.starts_with("fleet/flows/sensor=edge-1/table=talkers/tap_name=core"));
}

#[test]
fn a_segment_goes_at_its_age_or_when_it_is_full_and_what_compaction_has_stays() {
    let (dir, place) = (TempDir::new().unwrap(), BadLine::new(5));
    let mut store = open(&dir);
    // All within one hour, whatever the clock shows: each hour has segments of its own.
    let now = UNIX_EPOCH.elapsed().unwrap().as_secs() / 3_600 * 3_600;
    add(&mut store, now - 100..now - 80);
    add(&mut store, now - 50..now);
    add(&mut store, 1_000..1_020);
    let snapshot = store.reader().snapshot().unwrap();
    let old = snapshot.segments.iter().find(|s| s.t_end_max < 2_000_000_000).unwrap();
    assert!(old.claim(Claim::Compaction));
    let config = ArchiveConfig { rows_full: 50, delay: Duration::from_secs(86_400), ..config(&place) };
    let archive = archive::start(&config, &store.reader()).unwrap();
    until("the full one", || counts(&archive).segments == 1 && counts(&archive).due_segments == 1);
    let c = counts(&archive);
    assert_eq!((c.rows, c.due_segments, c.early_segments), (50, 1, 1), "one is taken, one is young");
    old.release(Claim::Compaction);
    until_shipped(&archive, 2);
    let c = counts(&archive);
    assert_eq!((c.due_segments, c.early_segments), (0, 1));
}

#[test]
fn retention_waits_for_the_archive_and_a_missing_one_is_no_loss() {
    let (dir, place) = (TempDir::new().unwrap(), BadLine::new(6));
    let mut store = open(&dir);
    for n in 0..4 {
        add(&mut store, n * 10..n * 10 + 10);
    }
    store.set_retention(Retention { max_bytes: Some(1), shipped_to: 1, ..Retention::default() });
    store.tick(Now::read()).unwrap();
    assert_eq!(store.counts().segments, 4, "nothing has left");
    place.failing.store(100, Relaxed);
    let archive = archive::start(&config(&place), &store.reader()).unwrap();
    until("some failures", || counts(&archive).failures > 3);
    assert!(counts(&archive).lag > Duration::ZERO && counts(&archive).failing);
    place.failing.store(0, Relaxed);
    until_shipped(&archive, 4);
    store.set_retention(Retention { max_bytes: Some(1), shipped_to: 1, ..Retention::default() });
    store.tick(Now::read()).unwrap();
    let c = store.counts();
    assert_eq!((c.segments, c.segments_removed, c.segments_removed_unshipped), (1, 3, 0));
    assert_eq!(listed(&place, &store).len(), 4, "the archive keeps them");
}

#[test]
fn an_archive_that_is_none_says_so() {
    let place = BadLine::new(7);
    let reader = ArchiveReader::new(Place::new(place.clone(), "fleet/flows"));
    let error = wait(reader.snapshot_of(Table::Flows)).unwrap_err().to_string();
    assert!(error.contains("holds no archive"), "{error}");
    let reader = ArchiveReader::new(Place::new(place, "fleet/flows/sensor=x"));
    let error = wait(reader.snapshot_of(Table::Flows)).unwrap_err().to_string();
    assert!(error.contains("holds no archive"), "{error}");
}

#[test]
fn a_large_segment_goes_in_parts_and_is_the_same() {
    let (dir, place) = (TempDir::new().unwrap(), BadLine::new(8));
    let mut store = open(&dir);
    add(&mut store, 0..10);
    let segment = store.reader().snapshot().unwrap().segments[0].clone();
    // As large as two parts and a bit: what is in it does not matter to shipping.
    let mut rng = Rng(9);
    let bytes: Vec<u8> = (0..segment.bytes).map(|_| rng.below(256) as u8).collect();
    let config = ArchiveConfig { part_bytes: 5 << 20, parts_max: 2, ..config(&place) };
    let big: Vec<u8> = bytes.iter().copied().cycle().take((10 << 20) + 12_345).collect();
    fs::write(&segment.path, &big).unwrap();
    let manifest = dir.path().join("manifest.ndjson");
    drop((segment, store));
    let text = fs::read_to_string(&manifest).unwrap();
    let lines: Vec<String> = text.lines().map(|line| resized(line, big.len())).collect();
    fs::write(&manifest, lines.join("")).unwrap();

    let store = open(&dir);
    assert_eq!(store.reader().snapshot().unwrap().segments[0].bytes, big.len() as u64);
    let archive = archive::start(&config, &store.reader()).unwrap();
    until_shipped(&archive, 1);
    assert_eq!(listed(&place, &store), files(&store));
}

/// A line of the manifest with another size of its segment.
fn resized(line: &str, bytes: usize) -> String {
    let (_, json) = line.split_at(9);
    let mut value: serde_json::Value = serde_json::from_str(json).unwrap();
    for of in ["/add", "/publish/segments/0"] {
        if let Some(segment) = value.pointer_mut(of) {
            segment["bytes"] = bytes.into();
        }
    }
    let json = value.to_string();
    format!("{:08x} {json}\n", crc32fast::hash(json.as_bytes()))
}
