//! A store on a simulated disk, a history of calls drawn from a seed, and what must be true of it.

use crate::common;
use crate::disk::{Random, SimDisk};
use arrow::array::AsArray;
use arrow::datatypes::UInt64Type;
use bytes::Bytes;
use hints::DnsRecord;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use storage::{Compaction, Now, Retention, Snapshot, Store, StoreCounts, StoreOptions, StoreReader};
use wire::{Addr, Nanos, TapId};

pub(crate) const DIR: &str = "/data/taphouse";
const ENCODERS: [&str; 2] = ["segment-encoder", "dns-encoder"];

/// What the test knows of a table: `flow_id`s of its rows, which are numbered from 0 on in the order of appending.
#[derive(Clone, Debug, Default)]
pub(crate) struct Table {
    /// How many were appended.
    pub(crate) appended: u64,
    /// Rows that must outlive any crash.
    durable: Arc<Rows>,
    /// Rows that retention has dropped, for good.
    removed: Arc<Rows>,
    /// Rows that retention may be dropping right now.
    going: Arc<Rows>,
    /// Rows that retention was dropping when a crash or a fault came: they may be there or not.
    undecided: Arc<Rows>,
}

/// A set of rows, by their number.
#[derive(Clone, Debug, Default)]
struct Rows(Vec<bool>);

impl Rows {
    fn contains(&self, row: u64) -> bool {
        self.0.get(row as usize).copied().unwrap_or(false)
    }
    fn extend(&mut self, rows: impl IntoIterator<Item = u64>) {
        for row in rows {
            if self.0.len() <= row as usize {
                self.0.resize(row as usize + 64, false);
            }
            self.0[row as usize] = true;
        }
    }
    fn numbers(&self) -> impl Iterator<Item = u64> {
        self.0.iter().enumerate().filter(|(_, is_in)| **is_in).map(|(row, _)| row as u64)
    }
}

/// What the test knows at a moment: `flows`, `dns`.
pub(crate) type Known = [Table; 2];

impl Table {
    /// What a start found must agree with what was known when the crash came.
    pub(crate) fn check(&self, found: &[u64]) -> Result<(), String> {
        if let Some(pair) = found.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(format!("row {} is there twice", pair[0]));
        }
        if let Some(row) = found.iter().find(|row| **row >= self.appended) {
            return Err(format!("row {row} was never appended"));
        }
        if let Some(row) = found.iter().find(|row| self.removed.contains(**row)) {
            return Err(format!("row {row} was dropped by retention and is back"));
        }
        let mut there = Rows::default();
        there.extend(found.iter().copied());
        let may_be_gone = [&self.removed, &self.going, &self.undecided];
        let must = self.durable.numbers().filter(|row| !may_be_gone.iter().any(|rows| rows.contains(*row)));
        let lost: Vec<_> = must.filter(|row| !there.contains(*row)).collect();
        match lost.is_empty() {
            true => Ok(()),
            false => Err(format!("{} durable rows are gone: {lost:?}", lost.len())),
        }
    }
}

/// One call of the store, or a turn of an encoder thread.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    Append(u64),
    AppendDns(u64),
    Sync,
    /// After so many milliseconds.
    Tick(u64),
    Flush,
    /// That many operations of an encoder.
    Encode(usize, u64),
    /// Merges what is worth it.
    Compact,
    /// A query begins, or ends.
    Hold,
    LetGo,
}

impl Step {
    pub(crate) fn any(random: &mut Random) -> Step {
        match random.below(23) {
            0..=6 => Step::Append(1 + random.below(24)),
            7..=8 => Step::AppendDns(1 + random.below(24)),
            9..=11 => Step::Sync,
            12 => Step::Tick(random.below(1_500)),
            13 => Step::Tick(61_000),
            14 => Step::Flush,
            15..=17 => Step::Encode(random.below(2) as usize, 1 + random.below(12)),
            18 => Step::Hold,
            19 => Step::LetGo,
            _ => Step::Compact,
        }
    }
}

/// A store at work. Its encoders take turns with the caller, as the history says, so that a seed gives the same run each
/// time.
pub(crate) struct Rig {
    pub(crate) disk: SimDisk,
    store: Option<Store>,
    start: Instant,
    wall: SystemTime,
    clock: Duration,
    held: Vec<[Snapshot; 2]>,
    /// An encoder failed, and waits until it is asked again.
    stuck: [bool; 2],
    roll_errors: [u64; 2],
    pub(crate) known: Known,
}

pub(crate) fn options(disk: &SimDisk, retention: Retention) -> StoreOptions {
    let taps = vec!["core".into(), "edge".into()];
    StoreOptions {
        batch_rows: 16,
        segment_rows_max: 64,
        frozen_max: 64,
        retention,
        // Where it is called for, so that a history is the same in every run.
        compaction: Compaction { enabled: false, segments_min: 3, ..Compaction::default() },
        disk: Arc::new(disk.clone()),
        ..StoreOptions::new(DIR, taps)
    }
}

impl Rig {
    /// Opens the store; encoders wait for their turns.
    pub(crate) fn open(disk: SimDisk, known: Known, retention: Retention) -> Result<Rig, storage::StorageError> {
        disk.hold_encoders();
        let opened = Store::open(options(&disk, retention));
        if opened.is_err() {
            disk.release_encoders();
        }
        let store = opened?;
        let mut known = known;
        for table in &mut known {
            Arc::make_mut(&mut table.undecided).extend(std::mem::take(&mut table.going).numbers());
        }
        let mut rig = Rig {
            disk,
            store: Some(store),
            start: Instant::now(),
            wall: UNIX_EPOCH + Duration::from_secs(1_000_000),
            clock: Duration::from_secs(2),
            held: Vec::new(),
            stuck: [false; 2],
            roll_errors: [0; 2],
            known,
        };
        rig.check();
        Ok(rig)
    }

    fn store(&mut self) -> &mut Store {
        self.store.as_mut().expect("open until dropped")
    }

    pub(crate) fn counts(&self) -> [StoreCounts; 2] {
        let store = self.store.as_ref().expect("open until dropped");
        [store.counts(), store.dns_counts()]
    }

    /// Rows of each table that were lost.
    pub(crate) fn lost(&self) -> [u64; 2] {
        self.counts().map(|counts| counts.rows_lost())
    }

    fn snapshots(&self) -> [Snapshot; 2] {
        let reader: StoreReader = self.store.as_ref().expect("open until dropped").reader();
        [reader.snapshot().unwrap(), reader.snapshot_of(storage::Table::Dns).unwrap()]
    }

    /// Rows in segments, and all rows, sorted.
    fn rows(&self, snapshot: &Snapshot) -> (Vec<u64>, Vec<u64>) {
        let segment = |path: &Path| {
            let rows = self.disk.rows(path, segment_rows);
            rows.unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        };
        let mut stored: Vec<u64> = snapshot.segments.iter().flat_map(|one| segment(&one.path)).collect();
        stored.sort_unstable();
        let live = snapshot.live.iter().flat_map(|batch| batch["flow_id"].as_primitive::<UInt64Type>().values());
        let mut all: Vec<u64> = stored.iter().chain(live).copied().collect();
        all.sort_unstable();
        (stored, all)
    }

    /// All rows of the tables.
    pub(crate) fn all_rows(&self) -> [Vec<u64>; 2] {
        self.snapshots().map(|snapshot| self.rows(&snapshot).1)
    }

    /// What must be true between any two calls. Learns what is durable.
    fn check(&mut self) {
        let (counts, snapshots) = (self.counts(), self.snapshots());
        for (table, (counts, snapshot)) in counts.iter().zip(&snapshots).enumerate() {
            let (stored, all) = self.rows(snapshot);
            let came = counts.rows_found + counts.rows_appended + counts.rows_recovered;
            let left = counts.rows_lost() + counts.rows_removed;
            assert_eq!(came, counts.segment_rows + counts.live_rows + left, "table {table}: {counts:?}");
            assert_eq!(all.len() as u64, counts.segment_rows + counts.live_rows, "table {table}: {counts:?}");
            assert_eq!(stored.len() as u64, counts.segment_rows, "table {table}");
            if let Err(wrong) = self.known[table].check(&all) {
                panic!("table {table}: {wrong}");
            }
            let durable = Arc::make_mut(&mut self.known[table].durable);
            durable.extend(if counts.unsynced_rows == 0 { all } else { stored });
        }
        let known = self.known.clone();
        self.disk.know(|at| *at = known);
    }

    fn now(&self) -> Now {
        Now { mono: self.start + self.clock, wall: self.wall + self.clock }
    }

    /// Does a step, and checks what must be true after it.
    pub(crate) fn step(&mut self, step: Step) {
        let hits = self.disk.hits();
        match step {
            Step::Append(rows) => {
                let first = self.appending(0, rows);
                self.store().append(&common::flows(first..first + rows), &[]).unwrap();
            }
            Step::AppendDns(rows) => {
                let first = self.appending(1, rows);
                let rows: Vec<DnsRecord> = (first..first + rows).map(dns).collect();
                self.store().append_dns(&rows, &[]).unwrap();
            }
            Step::Sync => self.store().sync().unwrap(),
            Step::Tick(millis) => self.tick(millis, hits),
            Step::Flush => drop(self.flush()),
            Step::Encode(table, operations) => self.encode(table, operations),
            Step::Compact => {
                // A merge waits for the manifest, which an encoder may have: it must not be held in between.
                self.drain();
                let merged = self.store().compact();
                assert!(merged.is_ok() || self.disk.hits() > hits, "{merged:?}");
            }
            Step::Hold if self.held.len() < 2 => self.held.push(self.snapshots()),
            Step::Hold => {}
            Step::LetGo => drop(self.held.pop()),
        }
        for (table, counts) in self.counts().iter().enumerate() {
            self.stuck[table] |= counts.roll_errors > self.roll_errors[table];
            self.roll_errors[table] = counts.roll_errors;
        }
        self.check();
    }

    fn appending(&mut self, table: usize, rows: u64) -> u64 {
        let first = self.known[table].appended;
        self.known[table].appended += rows;
        let known = self.known.clone();
        self.disk.know(|at| *at = known);
        first
    }

    fn tick(&mut self, millis: u64, hits: u64) {
        // Retention waits for the manifest, which an encoder may have: it must not be held in between.
        self.drain();
        self.clock += Duration::from_millis(millis);
        let before = self.snapshots().map(|snapshot| self.rows(&snapshot).0);
        for (table, rows) in before.iter().enumerate() {
            Arc::make_mut(&mut self.known[table].going).extend(rows.iter().copied());
        }
        let known = self.known.clone();
        self.disk.know(|at| *at = known);
        let now = self.now();
        self.store().tick(now).unwrap();
        let after = self.snapshots().map(|snapshot| self.rows(&snapshot).0);
        for (table, before) in before.iter().enumerate() {
            let gone = before.iter().copied().filter(|row| after[table].binary_search(row).is_err());
            let known = &mut self.known[table];
            let going = std::mem::take(&mut known.going);
            // A removal that could not be written may be on the disk or not.
            if self.disk.hits() == hits {
                Arc::make_mut(&mut known.removed).extend(gone);
            } else {
                Arc::make_mut(&mut known.undecided).extend(going.numbers());
            }
        }
    }

    /// Puts every row into a segment; whether that worked.
    pub(crate) fn flush(&mut self) -> bool {
        self.drain();
        self.disk.release_encoders();
        let flushed = self.store().flush();
        self.disk.hold_encoders();
        if flushed.is_ok() {
            self.stuck = [false; 2];
        }
        flushed.is_ok()
    }

    fn drain(&mut self) {
        for table in 0..2 {
            self.encode(table, u64::MAX);
        }
    }

    fn encode(&mut self, table: usize, operations: u64) {
        if self.stuck[table] {
            return;
        }
        let errors = self.roll_errors[table];
        let idle = || {
            let counts = &self.counts()[table];
            counts.frozen == 0 || counts.roll_errors > errors
        };
        self.disk.allow(ENCODERS[table], operations, idle);
        self.stuck[table] |= self.counts()[table].roll_errors > errors;
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.disk.release_encoders();
        self.held.clear();
        drop(self.store.take());
    }
}

fn segment_rows(content: &[u8]) -> Vec<u64> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(Bytes::copy_from_slice(content)).unwrap();
    let column = ProjectionMask::columns(reader.parquet_schema(), ["flow_id"]);
    let batches = reader.with_projection(column).build().unwrap();
    batches.flat_map(|batch| batch.unwrap()["flow_id"].as_primitive::<UInt64Type>().values().to_vec()).collect()
}

fn dns(n: u64) -> DnsRecord {
    DnsRecord {
        time: Nanos::from_secs(n),
        flow_id: n,
        tap: TapId((n % 2) as u16),
        client: Addr::v4([10, 0, (n >> 8) as u8, n as u8]),
        server: Addr::v4([10, 0, 0, 53]),
        proto: 17,
        has_query: true,
        ..DnsRecord::default()
    }
}
