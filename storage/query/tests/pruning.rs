//! Segments that a filter cannot match are not opened, and none that it can match is left out.

mod common;

use common::{Flows, HOUR, Rng, SECOND, T0, addr, record, wait};
use datafusion::parquet::arrow::ArrowWriter;
use datafusion::parquet::file::properties::WriterProperties;
use flowtable::FlowRecord;
use futures::StreamExt;
use query::{Engine, FlowQuery, QueryError, QueryLimits, ScanStats};
use std::collections::HashSet;
use std::fs;
use storage::{FlowBatchBuilder, Store, StoreOptions};

const SEGMENTS: u64 = 24;
const ROWS: u64 = 60;

/// Flows of which each segment has its own addresses, ports, names and sizes, and some that all have.
struct Sample {
    flows: Flows,
    /// With the segment each row is in, and its name.
    rows: Vec<(u64, FlowRecord, String)>,
}

fn host(segment: u64, n: u64) -> String {
    format!("10.{segment}.{}.{}", n / 256, n % 256)
}

fn sample(seed: u64) -> Sample {
    let mut flows = Flows::new(seed);
    let mut rows = Vec::new();
    for segment in 0..SEGMENTS {
        for n in 0..ROWS {
            let rng = &mut flows.rng;
            let end = T0 + segment as i64 * HOUR + rng.below(HOUR as u64) as i64;
            let mut row = record(rng, segment * ROWS + n, end);
            row.src_ip = addr(&host(segment, rng.below(500)));
            row.dst_ip =
                if rng.below(3) == 0 { addr("10.255.0.1") } else { addr(&host(segment, 500 + rng.below(500))) };
            row.src_port = 40_000 + rng.below(1_000) as u16;
            row.dst_port = if rng.below(2) == 0 { 443 } else { 1_000 + segment as u16 };
            row.vlan = if segment % 3 == 0 { 0 } else { segment as u16 };
            row.bytes_o = rng.below(10u64.pow(2 + segment as u32 % 6));
            row.tap.0 = (segment % 3) as u16;
            let name =
                if rng.below(3) == 0 { String::new() } else { format!("host{}.example", segment * 10 + rng.below(4)) };
            row.text.name = name.len() as u8;
            flows.store.append(&[row], name.as_bytes()).unwrap();
            rows.push((segment, row, name));
        }
        flows.store.flush().unwrap();
    }
    Sample { flows, rows }
}

fn read(engine: &Engine, text: &str) -> Result<(Vec<u64>, ScanStats), QueryError> {
    use arrow::array::AsArray;
    let mut stream = wait(engine.sql(text))?;
    let mut ids = Vec::new();
    while let Some(batch) = wait(stream.next()) {
        ids.extend(batch?.column(0).as_primitive::<arrow::datatypes::UInt64Type>().values());
    }
    ids.sort_unstable();
    Ok((ids, stream.stats()))
}

type Eval = Box<dyn Fn(&FlowRecord, &str) -> Option<bool>>;

fn leaf(rng: &mut Rng) -> (String, Eval) {
    let segment = rng.below(SEGMENTS);
    let text = if rng.below(6) == 0 { "10.255.0.1".to_owned() } else { host(segment, rng.below(1_000)) };
    let (x, port) = (addr(&text), rng.pick(&[443, 22, 40_500, 1_000 + segment as u16]));
    let (vlan, bytes) = (segment as u16, rng.below(1_000_000));
    let from = T0 + rng.below(SEGMENTS * HOUR as u64) as i64;
    let until = from + rng.below(4 * HOUR as u64) as i64;
    let time = |t: i64| chrono::DateTime::from_timestamp_micros(t).unwrap().to_rfc3339();
    let name = format!("host{}.example", segment * 10 + rng.below(5));
    match rng.below(16) {
        0 => (format!("src_ip = '{text}'"), Box::new(move |r, _| Some(r.src_ip == x))),
        1 => (format!("dst_ip <> '{text}'"), Box::new(move |r, _| Some(r.dst_ip != x))),
        2 | 3 => (format!("host('{text}')"), Box::new(move |r, _| Some(r.src_ip == x || r.dst_ip == x))),
        4 => {
            let other = host(rng.below(SEGMENTS), rng.below(1_000));
            let y = addr(&other);
            let text = format!("src_ip IN ('{text}', '{other}', '10.99.0.1', '10.99.0.2')");
            (text, Box::new(move |r, _| Some(r.src_ip == x || r.src_ip == y)))
        }
        5 => (format!("net('{text}/32')"), Box::new(move |r, _| Some(r.src_ip == x || r.dst_ip == x))),
        6 => (format!("port({port})"), Box::new(move |r, _| Some(r.src_port == port || r.dst_port == port))),
        7 => (format!("dst_port > {port}"), Box::new(move |r, _| Some(r.dst_port > port))),
        8 => (format!("vlan = {vlan}"), Box::new(move |r, _| (r.vlan != 0).then_some(r.vlan == vlan))),
        9 => (format!("vlan <> {vlan}"), Box::new(move |r, _| (r.vlan != 0).then_some(r.vlan != vlan))),
        10 => (format!("bytes_o >= {bytes}"), Box::new(move |r, _| Some(r.bytes_o >= bytes))),
        11 => (format!("bytes_o < {}.5", bytes / 1000), Box::new(move |r, _| Some(r.bytes_o <= bytes / 1000))),
        12 => (format!("name = '{name}'"), Box::new(move |_, n| (!n.is_empty()).then_some(n == name))),
        13 => (
            format!("t_end BETWEEN '{}' AND '{}'", time(from), time(until)),
            Box::new(move |r, _| Some((from..=until).contains(&(r.end.as_micros() as i64)))),
        ),
        14 => (format!("t_start > '{}'", time(from)), Box::new(move |r, _| Some(r.start.as_micros() as i64 > from))),
        _ => (format!("vlan IS NOT DISTINCT FROM {vlan}"), Box::new(move |r, _| Some(r.vlan != 0 && r.vlan == vlan))),
    }
}

fn tree(rng: &mut Rng, depth: u32) -> (String, Eval) {
    if depth == 0 {
        return leaf(rng);
    }
    match rng.below(6) {
        0 => leaf(rng),
        1 => {
            let (text, inner) = tree(rng, depth - 1);
            (format!("NOT ({text})"), Box::new(move |r, n| inner(r, n).map(|v| !v)))
        }
        kind => {
            let ((left, l), (right, r)) = (tree(rng, depth - 1), tree(rng, depth - 1));
            // What settles an AND is false, what settles an OR is true.
            let (word, settles) = if kind < 4 { ("AND", false) } else { ("OR", true) };
            let eval = move |row: &FlowRecord, name: &str| match (l(row, name), r(row, name)) {
                (Some(v), _) | (_, Some(v)) if v == settles => Some(settles),
                (Some(_), Some(_)) => Some(!settles),
                _ => None,
            };
            (format!("({left}) {word} ({right})"), Box::new(eval))
        }
    }
}

#[test]
fn random_filters_lose_no_row_and_open_few_files() {
    let seed = 0xb1_0001;
    let Sample { flows, rows } = sample(seed);
    let engine = flows.engine();
    let mut rng = Rng(seed ^ 0x5eed);
    let (mut needed, mut kept, mut all) = (0, 0, 0);
    for trial in 0..60 {
        let (text, eval) = tree(&mut rng, 2);
        let context = format!("seed {seed:#x}, trial {trial}: {text}");
        let matching: Vec<_> = rows.iter().filter(|(_, r, name)| eval(r, name) == Some(true)).collect();
        let expected: Vec<u64> = matching.iter().map(|(_, r, _)| r.flow_id).collect();
        let (ids, stats) = read(&engine, &format!("SELECT flow_id FROM flows WHERE {text}"))
            .unwrap_or_else(|e| panic!("{context}: {e}"));
        assert_eq!(ids, expected, "{context}");
        // Folded to nothing, a filter does not even ask for the segments.
        if stats.segments > 0 {
            let pruned = stats.pruned_by_time + stats.pruned_by_zone + stats.pruned_by_bloom;
            assert_eq!(stats.segments, pruned + stats.segments_kept, "{context}");
            assert!(stats.files_opened <= stats.segments_kept, "{context}: {stats:?}");
        }
        needed += matching.iter().map(|(segment, ..)| segment).collect::<HashSet<_>>().len();
        kept += stats.segments_kept;
        all += stats.segments;
    }
    println!("{needed} segments needed, {kept} read, of {all}");
    assert!(kept < all * 2 / 3, "{needed} segments needed, {kept} read, of {all}");
}

#[test]
fn either_side_is_pruned_to_the_segments_that_have_it() {
    let seed = 0xb1_0002;
    let Sample { flows, rows } = sample(seed);
    let engine = flows.engine();
    let mut rng = Rng(seed);
    let mut extra = 0;
    for _ in 0..60 {
        let address = host(rng.below(SEGMENTS), rng.below(1_000));
        let x = addr(&address);
        let in_segments: HashSet<u64> =
            rows.iter().filter(|(_, r, _)| r.src_ip == x || r.dst_ip == x).map(|(segment, ..)| *segment).collect();
        let (_, stats) = read(&engine, &format!("SELECT flow_id FROM flows WHERE host('{address}')")).unwrap();
        // Of those that are read, both sides may be asked again before a column is.
        let most = 2 * SEGMENTS + 2 * stats.files_opened;
        assert!((SEGMENTS..=most).contains(&stats.bloom_blocks_read), "{stats:?}");
        extra += stats.segments_kept - in_segments.len() as u64;
    }
    // 60 queries of 48 filters, of which one in a thousand may be wrong.
    assert!(extra <= 15, "seed {seed:#x}: {extra} segments opened in vain");
    for (filter, kept) in [
        ("port(1005)", 1),
        ("port(22)", 0),
        ("port(443)", SEGMENTS),
        ("name = 'host71.example'", 1),
        ("name = 'absent.example'", 0),
        ("dst_ip = '10.255.0.1' AND dst_port = 1007", 1),
        ("NOT (src_ip <> '10.99.0.1')", 0),
        ("vlan = 7", 1),
        ("bytes_o > 1000000000", 0),
        ("bytes_o > 1e9", 0),
        (&format!("t_end > to_timestamp_nanos({})", (T0 + 20 * HOUR) * 1_000 + 1), 4),
        (&format!("t_end < to_timestamp_millis({})", (T0 + 20 * HOUR) / 1_000), 20),
        ("date_trunc('day', t_end) = '2026-01-01'", SEGMENTS),
        ("proto IS NOT DISTINCT FROM 200", 0),
        ("proto IS DISTINCT FROM 200", SEGMENTS),
        ("src_ip = '10.99.0.1' OR bytes_r >= 0", SEGMENTS),
    ] {
        let query = FlowQuery { filter: Some(filter.to_owned()), ..FlowQuery::default() };
        let stats = wait(engine.flows(query)).unwrap().stats();
        assert!((kept..=kept + 1).contains(&stats.segments_kept), "seed {seed:#x}, {filter}: {stats:?}");
    }
}

#[test]
fn absent_addresses_open_no_file() {
    let seed = 0xb1_0003;
    let flows = sample(seed).flows;
    let engine = flows.engine();
    let (mut kept, queries) = (0, 100);
    for n in 0..queries {
        let text = format!("SELECT flow_id FROM flows WHERE host('172.16.{}.{}')", n / 256, n % 256);
        let (ids, stats) = read(&engine, &text).unwrap();
        assert!(ids.is_empty());
        assert_eq!(stats.files_opened, stats.segments_kept, "{stats:?}");
        assert!(stats.files_opened > 0 || stats.bytes_read == 32 * stats.bloom_blocks_read, "{stats:?}");
        kept += stats.segments_kept;
    }
    // 4,800 filters asked, of which one in a thousand may be wrong.
    assert!(kept <= 15, "seed {seed:#x}: {kept} files opened by {queries} queries");
}

#[test]
fn explain_tells_what_was_pruned_and_read() {
    let flows = sample(0xb1_0004).flows;
    let engine = flows.engine();
    let since = chrono::DateTime::from_timestamp_micros(T0 + 4 * HOUR).unwrap().to_rfc3339();
    let text =
        format!("SELECT count(*) FROM flows WHERE host('10.5.0.1', '10.99.0.1') AND vlan > 4 AND t_end >= '{since}'");
    let plan = common::sql(&engine, &format!("EXPLAIN {text}")).join("\n");
    let row = plan.split_once("\nsegments,").unwrap_or_else(|| panic!("{plan}")).1;
    assert!(row.starts_with("\"flows: 24 segments, pruned 4 by time, 7 by ranges of values, "), "{row}");
    assert!(row.contains(" by bloom filters; ") && row.contains("; 0 rows in no segment yet"), "{row}");
    assert!(row.contains("read: 0 files opened, "), "{row}");
    let run = common::sql(&engine, &format!("EXPLAIN ANALYZE {text}")).join("\n");
    assert!(run.contains("flows: 24 segments, pruned 4 by time"), "{run}");
    let all = common::sql(&engine, "EXPLAIN ANALYZE SELECT sum(bytes_o) FROM flows").join("\n");
    assert!(all.contains("24 to read, of ") && all.contains("read: 24 files opened, "), "{all}");
    assert!(!all.contains(" 0 bytes, "), "{all}");
    let both =
        common::sql(&engine, "EXPLAIN SELECT count(*) FROM flows f JOIN dns d ON f.flow_id = d.flow_id").join("\n");
    assert!(both.contains("\nflows: 24 segments") || both.contains("\"flows: 24 segments"), "{both}");
    assert!(both.contains("dns: 0 segments"), "{both}");
    assert!(!common::sql(&engine, "EXPLAIN SELECT 1").join("\n").contains("segments"));
}

#[test]
fn asking_filters_is_charged_to_the_budget() {
    let flows = sample(0xb1_0005).flows;
    let engine = flows.engine_with(QueryLimits { scan_bytes_max: Some(100), ..QueryLimits::default() });
    match read(&engine, "SELECT flow_id FROM flows WHERE host('10.99.0.1')") {
        Err(error @ QueryError::ScanLimit { limit: 100, .. }) => {
            assert!(error.to_string().contains("query.scan_max"), "{error}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_file_that_cannot_be_asked_is_kept() {
    let flows = sample(0xb1_0006).flows;
    let segments = flows.store.reader().snapshot().unwrap().segments;
    fs::remove_file(&segments[3].path).unwrap();
    let engine = flows.engine();
    let stream = wait(engine.sql("SELECT flow_id FROM flows WHERE host('10.99.0.1')")).unwrap();
    assert!((1..=2).contains(&stream.stats().segments_kept), "{:?}", stream.stats());
    let error = wait(stream.collect_all()).unwrap_err();
    assert!(matches!(error, QueryError::SegmentGone { .. }), "{error}");
}

/// Segments come with more than one row group, and without any filter, from other versions.
#[test]
fn row_groups_are_pruned_one_by_one() {
    let mut rng = Rng(0xb1_0007);
    for filters in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let options = || StoreOptions::new(dir.path(), vec!["core".to_owned()]);
        drop(Store::open(options()).unwrap());
        let day = dir.path().join("segments/2026-01-01");
        fs::create_dir_all(&day).unwrap();
        let properties = WriterProperties::builder()
            .set_column_bloom_filter_enabled("src_ip".into(), filters)
            .set_column_bloom_filter_enabled("dst_ip".into(), filters)
            .build();
        let mut builder = FlowBatchBuilder::new(&["core".to_owned()], 1_000);
        let file = fs::File::create(day.join("0000000000000001.parquet")).unwrap();
        let mut writer = ArrowWriter::try_new(file, storage::flow_schema(), Some(properties)).unwrap();
        for group in 0..4u64 {
            let row = |n: u64| FlowRecord {
                src_ip: addr(&host(group, n)),
                dst_ip: addr("10.255.0.1"),
                ..record(&mut rng, group * 1_000 + n, T0 + (group * 1_000 + n) as i64 * SECOND)
            };
            builder.extend(&(0..1_000).map(row).collect::<Vec<_>>(), &[]);
            writer.write(&builder.finish().unwrap()).unwrap();
            writer.flush().unwrap();
        }
        writer.close().unwrap();
        let store = Store::open(options()).unwrap();
        assert_eq!(store.counts().segments, 1);
        let engine = Engine::new(store.reader(), QueryLimits::default()).unwrap();
        let ask = |filter: &str| read(&engine, &format!("SELECT flow_id FROM flows WHERE {filter}")).unwrap();
        let (one, one_stats) = ask("host('10.2.0.7')");
        assert_eq!(one, [2_007]);
        let (all, all_stats) = ask("host('10.255.0.1')");
        assert_eq!(all.len(), 4_000);
        let (none, stats) = ask("src_ip = '10.1.0.7' AND dst_ip = '10.2.0.7'");
        assert!(none.is_empty());
        if filters {
            assert!(one_stats.bytes_read < all_stats.bytes_read / 2, "{one_stats:?}, {all_stats:?}");
            assert_eq!((stats.segments_kept, stats.pruned_by_bloom), (0, 1));
        } else {
            assert_eq!((one_stats.bloom_blocks_read, stats.segments_kept), (0, 1));
        }
    }
}
