//! Rows that have a sought value are found wherever they are: in memory, in a segment of either profile, in one of several
//! pages; and little else is read for them.

mod common;

use arrow::array::AsArray;
use arrow::datatypes::UInt64Type;
use common::{Rng, SECOND, T0, addr, record, wait};
use flowtable::FlowRecord;
use futures::StreamExt;
use query::{Engine, QueryLimits, ScanStats};
use storage::{SegmentProfile, Store, StoreOptions};
use tempfile::TempDir;

const ROWS: u64 = 60_000;

fn host(n: u64) -> String {
    format!("10.{}.{}.{}", n >> 16, n >> 8 & 0xff, n & 0xff)
}

/// Many hosts, of which some are in few rows, and one is in a third of them.
fn rows(seed: u64) -> Vec<(FlowRecord, String)> {
    let mut rng = Rng(seed);
    let address = |rng: &mut Rng| match rng.below(9) {
        0..3 => host(1 << 20),
        _ => host(rng.below(40_000)),
    };
    (0..ROWS)
        .map(|n| {
            let end = T0 + n as i64 * SECOND / 20 + rng.below(SECOND as u64) as i64;
            let mut row = record(&mut rng, n, end);
            row.src_ip = addr(&address(&mut rng));
            row.dst_ip = addr(&address(&mut rng));
            row.src_port = rng.below(1 << 16) as u16;
            row.dst_port = if rng.below(3) > 0 { 443 } else { rng.below(3_000) as u16 };
            let name = if rng.below(4) == 0 { String::new() } else { format!("host{}.example", rng.below(20_000)) };
            row.text.name = name.len() as u8;
            (row, name)
        })
        .collect()
}

fn read(engine: &Engine, text: &str) -> (Vec<u64>, ScanStats) {
    let mut stream = wait(engine.sql(text)).unwrap();
    let mut ids = Vec::new();
    while let Some(batch) = wait(stream.next()) {
        ids.extend(batch.unwrap().column(0).as_primitive::<UInt64Type>().values());
    }
    ids.sort_unstable();
    (ids, stream.stats())
}

fn check(rng: &mut Rng, engine: &Engine, rows: &[(FlowRecord, String)]) {
    let some = &rows[rng.below(ROWS) as usize];
    let (a, name) = (some.0.src_ip, some.1.as_str());
    let b = addr(&host(if rng.below(3) == 0 { 1 << 20 } else { rng.below(40_000) }));
    let (port, rare) = (443, some.0.src_port);
    let (from, until) = (T0 + rng.below(3_000) as i64 * SECOND, T0 + rng.below(3_000) as i64 * SECOND);
    let time = |t: i64| chrono::DateTime::from_timestamp_micros(t).unwrap().to_rfc3339();
    let (from_text, until_text) = (time(from), time(until));
    let of = |r: &FlowRecord, x| r.src_ip == x || r.dst_ip == x;
    let end = |r: &FlowRecord| r.end.as_micros() as i64;
    type Matches<'a> = Box<dyn Fn(&FlowRecord, &str) -> bool + 'a>;
    let filters: Vec<(String, Matches<'_>)> = vec![
        (format!("src_ip = '{a}'"), Box::new(|r, _| r.src_ip == a)),
        (format!("host('{a}')"), Box::new(|r, _| of(r, a))),
        (format!("host('{a}', '{b}')"), Box::new(|r, _| of(r, a) || of(r, b))),
        (
            format!("host('{b}') AND port({port})"),
            Box::new(|r, _| of(r, b) && (r.src_port == port || r.dst_port == port)),
        ),
        (format!("src_ip = '{b}' AND dst_ip = '{a}'"), Box::new(|r, _| r.src_ip == b && r.dst_ip == a)),
        (format!("port({rare})"), Box::new(|r, _| r.src_port == rare || r.dst_port == rare)),
        (format!("name = '{name}'"), Box::new(|_, n| n == name && !name.is_empty())),
        (format!("name = '{name}' OR host('{a}')"), Box::new(|r, n| (n == name && !name.is_empty()) || of(r, a))),
        (
            format!("NOT (src_ip <> '{a}' AND port <> {rare})").replace("port", "dst_port"),
            Box::new(|r, _| r.src_ip == a || r.dst_port == rare),
        ),
        (format!("host('{b}') AND bytes_o > 50000"), Box::new(|r, _| of(r, b) && r.bytes_o > 50_000)),
        (
            format!("host('{b}') AND t_end >= '{from_text}' AND t_end < '{until_text}'"),
            Box::new(|r, _| of(r, b) && end(r) >= from && end(r) < until),
        ),
        (
            format!("(t_end < '{from_text}' AND src_ip = '{a}') OR (t_end >= '{until_text}' AND dst_ip = '{b}')"),
            Box::new(|r, _| (end(r) < from && r.src_ip == a) || (end(r) >= until && r.dst_ip == b)),
        ),
    ];
    for (text, matches) in filters {
        let expected: Vec<u64> = rows.iter().filter(|(r, n)| matches(r, n)).map(|(r, _)| r.flow_id).collect();
        let (found, _) = read(engine, &format!("SELECT flow_id FROM flows WHERE {text}"));
        assert_eq!(found, expected, "{text}");
    }
}

#[test]
fn they_are_the_ones_a_loop_finds() {
    for (seed, profile) in [(11, SegmentProfile::Tuned), (12, SegmentProfile::Compatible)] {
        let dir = TempDir::new().unwrap();
        let options = StoreOptions { profile, ..StoreOptions::new(dir.path().join("flows"), vec!["core".to_owned()]) };
        let mut store = Store::open(options).unwrap();
        let engine = Engine::new(store.reader(), QueryLimits::default()).unwrap();
        let mut rows = rows(seed);
        rows.iter_mut().for_each(|(row, _)| row.tap.0 = 0);
        rows.iter().for_each(|(row, name)| store.append(&[*row], name.as_bytes()).unwrap());
        let mut rng = Rng(seed);
        // In memory first, then in a segment.
        check(&mut rng, &engine, &rows);
        store.flush().unwrap();
        for _ in 0..3 {
            check(&mut rng, &engine, &rows);
        }
    }
}

#[test]
fn little_else_is_read() {
    let dir = TempDir::new().unwrap();
    let mut store = Store::open(StoreOptions::new(dir.path().join("flows"), vec!["core".to_owned()])).unwrap();
    let engine = Engine::new(store.reader(), QueryLimits::default()).unwrap();
    let mut rows = rows(5);
    rows.iter_mut().for_each(|(row, _)| row.tap.0 = 0);
    rows.iter().for_each(|(row, name)| store.append(&[*row], name.as_bytes()).unwrap());
    store.flush().unwrap();
    let a = rows[ROWS as usize / 2].0.src_ip;
    let (_, all) = read(&engine, "SELECT flow_id, bytes_o, bytes_r, dur_us, pkts_o FROM flows WHERE bytes_o < 1000000");
    let (found, sought) = read(
        &engine,
        &format!("SELECT flow_id, bytes_o, bytes_r, dur_us, pkts_o, src_ip FROM flows WHERE src_ip = '{a}'"),
    );
    assert!(!found.is_empty() && found.len() < 20);
    assert_eq!(sought.files_opened, all.files_opened, "nothing is opened twice");
    // Of the address's column all, of the others a page or two.
    let (_, column) = read(&engine, "SELECT flow_id FROM flows WHERE src_ip < '255.0.0.0'");
    assert!(sought.bytes_read < column.bytes_read, "{sought:?} {column:?}");
    let (_, narrow) = read(&engine, &format!("SELECT flow_id FROM flows WHERE src_ip = '{a}'"));
    assert!(narrow.bytes_read < column.bytes_read, "one page of the other column: {narrow:?} {column:?}");
    // What is frequent is not worth seeking, and what was read for that is not read again.
    let common = host(1 << 20);
    let (_, frequent) = read(&engine, &format!("SELECT flow_id FROM flows WHERE host('{common}')"));
    let (_, both) = read(&engine, "SELECT flow_id FROM flows WHERE src_ip < '255.0.0.0' OR dst_ip < '255.0.0.0'");
    assert!(frequent.bytes_read <= both.bytes_read + 1_000, "bloom filters apart: {frequent:?} {both:?}");
    // Where the values are and the rows are not, nothing else is read.
    let b = rows
        .iter()
        .map(|(r, _)| r.dst_ip)
        .find(|b| !rows.iter().any(|(r, _)| r.src_ip == a && r.dst_ip == *b))
        .unwrap();
    let (found, neither) = read(&engine, &format!("SELECT flow_id FROM flows WHERE src_ip = '{a}' AND dst_ip = '{b}'"));
    assert!(found.is_empty());
    assert!(neither.bytes_read < 2 * column.bytes_read, "{neither:?} {column:?}");
}
