//! What planning costs when there are very many segments: a manifest of 100,000, each of a minute, over one real file.
//!
//! `cargo run --profile dist -p query --example many_segments -- [SEGMENTS]`

use flowtable::FlowRecord;
use futures::StreamExt;
use query::{Engine, FlowSource, QueryLimits};
use std::fmt::Write;
use std::fs;
use std::time::Instant;
use storage::{Snapshot, StorageError, Store, StoreOptions, StoreReader, Table};
use wire::{Addr, Nanos};

const MINUTE: u64 = 60_000_000;
const T0: u64 = 1_767_225_600_000_000;

/// One snapshot for every query, as the server has it in memory.
struct Fixed(Vec<Snapshot>);

impl FlowSource for Fixed {
    fn snapshot_of(&self, table: Table) -> Result<Snapshot, StorageError> {
        Ok(self.0[table as usize].clone())
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let count: u64 = std::env::args().nth(1).map_or(Ok(100_000), |arg| arg.parse())?;
    let dir = tempfile::tempdir()?;
    let mut store = Store::open(StoreOptions::new(dir.path(), vec!["core".to_owned()]))?;
    let row = |n: u64| FlowRecord {
        start: Nanos((T0 + n * 1_000) * 1_000),
        end: Nanos((T0 + n * 1_000) * 1_000),
        src_ip: Addr::v4([10, 0, (n >> 8) as u8, n as u8]),
        dst_ip: Addr::v4([192, 0, 2, 1]),
        ..FlowRecord::default()
    };
    store.append(&(0..50_000).map(row).collect::<Vec<_>>(), &[])?;
    store.flush()?;
    drop(store);
    let path = dir.path().join("manifest.ndjson");
    let text = fs::read_to_string(&path)?;
    let first = text.lines().find_map(|line| line.split_once(' ').filter(|(_, json)| json.contains("\"add\"")));
    let (_, add) = first.ok_or("the manifest lists no segment")?;
    let mut lines = String::new();
    let mut push = |json: &str| writeln!(lines, "{:08x} {json}", crc32fast::hash(json.as_bytes()));
    push(&format!(r#"{{"manifest":{{"format":1,"next_id":{}}}}}"#, count + 1))?;
    let mut line: serde_json::Value = serde_json::from_str(add)?;
    for n in 0..count {
        let segment = &mut line["add"];
        segment["id"] = (n + 1).into();
        segment["t_start_min"] = (T0 + n * MINUTE).into();
        segment["t_end_min"] = (T0 + n * MINUTE).into();
        segment["t_end_max"] = (T0 + n * MINUTE + MINUTE - 1).into();
        push(&line.to_string())?;
    }
    println!("manifest: {} bytes a segment", lines.len() as u64 / count);
    fs::write(&path, lines)?;
    let reader = StoreReader::open(dir.path())?;
    let since = Instant::now();
    let snapshots = Table::ALL.into_iter().map(|table| reader.snapshot_of(table)).collect::<Result<_, _>>()?;
    println!("reading the manifests: {:.1} ms", since.elapsed().as_secs_f64() * 1e3);
    let engine = Engine::new(Fixed(snapshots), QueryLimits { concurrent_max: 4, ..QueryLimits::default() })?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let time = |minute: u64| {
        let micros = i64::try_from(T0 + minute * MINUTE).unwrap_or(i64::MAX);
        chrono::DateTime::from_timestamp_micros(micros).map(|time| time.to_rfc3339()).unwrap_or_default()
    };
    for (name, text) in [
        ("no table", "SELECT 1".to_owned()),
        // The real rows are those of the first minute.
        (
            "one minute",
            format!("SELECT count(src_ip) FROM flows WHERE t_end >= '{}' AND t_end < '{}'", time(0), time(1)),
        ),
        (
            "an address in one hour",
            format!("SELECT count(src_ip) FROM flows WHERE host('10.0.7.7') AND t_end < '{}'", time(60)),
        ),
        (
            "an absent address in one hour",
            format!("SELECT count(src_ip) FROM flows WHERE host('10.1.7.7') AND t_end < '{}'", time(60)),
        ),
        ("an absent address in all", "SELECT count(src_ip) FROM flows WHERE host('10.1.7.7')".to_owned()),
    ] {
        let mut took = Vec::new();
        let mut last = None;
        for _ in 0..11 {
            let since = Instant::now();
            let stats = runtime.block_on(async {
                let mut stream = engine.sql(&text).await?;
                while let Some(batch) = stream.next().await {
                    batch?;
                }
                Ok::<_, query::QueryError>(stream.stats())
            })?;
            took.push(since.elapsed());
            last = Some(stats);
        }
        took.sort();
        println!("{name}: median {:.2} ms, worst {:.2} ms", took[5].as_secs_f64() * 1e3, took[10].as_secs_f64() * 1e3);
        println!("  {:?}", last.unwrap_or_default());
    }
    Ok(())
}
