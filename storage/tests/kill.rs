//! A process that writes is killed with SIGKILL at 200 random points; another goes on in its folder.
//!
//! This test starts itself as the process to be killed. It prints the seed of a failure; `KILL_SEED=n` repeats that run
//! as far as the scheduler allows, and `KILLS=n` makes it longer or shorter.

mod common;

use arrow::array::AsArray;
use arrow::datatypes::UInt64Type;
use common::{flows, options};
use hints::DnsRecord;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use std::env;
use std::fs::File;
use std::hint::spin_loop;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};
use storage::{Compaction, Now, Snapshot, Store, StoreOptions, StoreReader, Table};
use wire::Nanos;

/// Unless `KILLS` says otherwise.
const KILLS: u64 = 200;
/// Kills before a folder is looked at as a whole and a new one is begun.
const KILLS_PER_FOLDER: u64 = 10;
const CHILD: &str = "KILL_TEST_CHILD";

/// xorshift64*.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) % n
    }
}

fn compacting(folder: &Path) -> StoreOptions {
    StoreOptions { compaction: Compaction { segments_min: 2, ..Compaction::default() }, ..options(folder) }
}

/// Writes rows to two tables until it is killed. Says `ack ROWS DNS_ROWS` when all before these numbers are durable.
fn write_until_killed(folder: &Path, mut next: [u64; 2], mut random: Random) -> ! {
    let mut store = Store::open(compacting(folder)).unwrap();
    let mut told = std::io::stdout().lock();
    loop {
        for _ in 0..random.below(6) {
            let rows = 1 + random.below(12);
            store.append(&flows(next[0]..next[0] + rows), &[]).unwrap();
            next[0] += rows;
        }
        let rows = random.below(8);
        let dns = |n| DnsRecord { time: Nanos::from_secs(n), flow_id: n, ..DnsRecord::default() };
        store.append_dns(&(next[1]..next[1] + rows).map(dns).collect::<Vec<_>>(), &[]).unwrap();
        next[1] += rows;
        match random.below(12) {
            0 => store.flush().unwrap(),
            1 | 2 => store.tick(Now::read()).unwrap(),
            _ => {}
        }
        store.sync().unwrap();
        writeln!(told, "ack {} {}", next[0], next[1]).unwrap();
    }
}

fn start_child(folder: &Path, next: [u64; 2], seed: u64) -> (Child, BufReader<ChildStdout>) {
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "rows_survive_200_kills", "--nocapture"])
        .env(CHILD, format!("{} {} {seed} {}", next[0], next[1], folder.display()))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let told = BufReader::new(child.stdout.take().unwrap());
    (child, told)
}

/// The numbers of an `ack` line; other lines are the test harness's.
fn acknowledged(line: &str) -> Option<[u64; 2]> {
    let mut words = line.strip_prefix("ack ")?.split_whitespace().map(|word| word.parse().ok());
    Some([words.next()??, words.next()??])
}

fn row_numbers(snapshot: &Snapshot) -> Vec<u64> {
    let mut numbers = Vec::new();
    for segment in snapshot.segments.iter() {
        let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(&segment.path).unwrap()).unwrap();
        let column = ProjectionMask::columns(reader.parquet_schema(), ["flow_id"]);
        let batches = reader.with_projection(column).build().unwrap();
        batches.for_each(|batch| numbers.extend(batch.unwrap()["flow_id"].as_primitive::<UInt64Type>().values()));
    }
    for batch in &snapshot.live {
        numbers.extend(batch["flow_id"].as_primitive::<UInt64Type>().values());
    }
    numbers.sort_unstable();
    numbers
}

/// Rows are numbered as they are written, so what is there is all up to some number, each once.
fn check(snapshots: [Snapshot; 2], durable: [u64; 2]) -> [u64; 2] {
    let rows = snapshots.map(|snapshot| row_numbers(&snapshot));
    for (table, rows) in rows.iter().enumerate() {
        let wrong = rows.iter().zip(0..).find(|(row, wanted)| *row != wanted);
        assert_eq!(wrong, None, "table {table}: row found, and the row that should be there");
        assert!(rows.len() as u64 >= durable[table], "table {table}: {} of {durable:?} rows", rows.len());
    }
    rows.map(|rows| rows.len() as u64)
}

fn files(folder: &Path) -> [Snapshot; 2] {
    let reader = StoreReader::open(folder).unwrap();
    [reader.snapshot().unwrap(), reader.snapshot_of(Table::Dns).unwrap()]
}

#[test]
fn rows_survive_200_kills() {
    if let Ok(order) = env::var(CHILD) {
        let words: Vec<&str> = order.splitn(4, ' ').collect();
        let [a, b, seed] = [0, 1, 2].map(|at| words[at].parse().unwrap());
        write_until_killed(Path::new(words[3]), [a, b], Random(seed));
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    let seed = env::var("KILL_SEED").map_or(now, |seed| seed.parse().expect("KILL_SEED is a number")) | 1;
    println!("KILL_SEED={seed}");
    let mut random = Random(seed);
    let kills = env::var("KILLS").map_or(KILLS, |kills| kills.parse().expect("KILLS is a number"));
    for _ in 0..kills.div_ceil(KILLS_PER_FOLDER) {
        let dir = tempfile::tempdir().unwrap();
        // A first start that is killed may not even have marked its folder.
        drop(Store::open(compacting(dir.path())).unwrap());
        let (mut durable, mut next) = ([0, 0], [0, 0]);
        for kill in 0..KILLS_PER_FOLDER {
            let (mut child, mut told) = start_child(dir.path(), next, random.below(u64::MAX) | 1);
            let mut line = String::new();
            for _ in 0..random.below(6) {
                line.clear();
                while acknowledged(&line).is_none() {
                    line.clear();
                    assert!(told.read_line(&mut line).unwrap() > 0, "kill {kill}: the child ended by itself");
                }
                durable = acknowledged(&line).unwrap();
            }
            // While it starts, recovers, writes or encodes.
            for _ in 0..random.below(2_000_000) {
                spin_loop();
            }
            child.kill().unwrap();
            child.wait().unwrap();
            for line in told.lines() {
                durable = acknowledged(&line.unwrap()).unwrap_or(durable);
            }
            next = check(files(dir.path()), durable);
        }
        let mut store = Store::open(compacting(dir.path())).unwrap();
        let counts = [store.counts(), store.dns_counts()];
        assert!(counts.iter().all(|c| c.files_damaged == 0 && c.segments_missing == 0), "{counts:?}");
        assert_eq!(counts.map(|c| c.rows_found + c.rows_recovered), next);
        store.flush().unwrap();
        let reader = store.reader();
        assert_eq!(check([reader.snapshot().unwrap(), reader.snapshot_of(Table::Dns).unwrap()], durable), next);
    }
}
