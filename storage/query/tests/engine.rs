//! Snapshots, paging, pruning, limits, cancelling.

mod common;

use common::{Broken, Flows, HOUR, SECOND, T0, TAPS, csv, one, sql, sql_error, wait};
use datafusion::parquet::file::reader::{FileReader, SerializedFileReader};
use futures::StreamExt;
use query::{Cursor, Engine, FlowQuery, QueryError, QueryLimits};
use std::collections::HashSet;
use std::time::Duration;
use storage::StoreReader;

#[test]
fn paging_gives_every_row_once_while_rows_arrive() {
    let seed = 0x9a6e;
    let mut flows = Flows::sample(seed);
    // Many rows of one microsecond, so that pages end inside a tie.
    flows.add(60, T0 + 3 * HOUR, T0 + 3 * HOUR + 1);
    let engine = flows.engine();
    let at_start: HashSet<u64> = flows.rows.iter().map(|r| r.flow_id).collect();
    let mut seen: Vec<u64> = Vec::new();
    let mut after = None;
    loop {
        let query = FlowQuery {
            columns: ["t_end", "flow_id", "part"].map(str::to_owned).to_vec(),
            limit: Some(37),
            after,
            ..FlowQuery::default()
        };
        let batches = wait(async { engine.flows(query).await?.collect_all().await }).unwrap();
        let mut rows = 0;
        for batch in batches.iter().filter(|b| b.num_rows() > 0) {
            use arrow::array::AsArray;
            let ids = batch.column(1).as_primitive::<arrow::datatypes::UInt64Type>();
            seen.extend(ids.values());
            rows += batch.num_rows();
            after = Cursor::last_of(batch);
        }
        if rows == 0 {
            break;
        }
        // New flows end later than those shown; some of them go into a segment at once.
        flows.add(5, T0 + 7 * HOUR, T0 + 8 * HOUR);
        if seen.len().is_multiple_of(5) {
            flows.store.flush().unwrap();
        }
    }
    let distinct: HashSet<u64> = seen.iter().copied().collect();
    assert_eq!(distinct.len(), seen.len(), "seed {seed:#x}: a row was shown twice");
    assert_eq!(distinct, at_start, "seed {seed:#x}");
}

#[test]
fn segments_outside_the_range_are_not_opened() {
    let flows = Flows::sample(0x21);
    let engine = flows.engine();
    let segments = flows.store.reader().snapshot().unwrap().segments;
    // One an hour and tap.
    assert_eq!(segments.len(), 5 * TAPS.len());
    // Without these files, only a query that needs them fails.
    for gone in [0, 1, 4] {
        let of_hour = &segments[gone * TAPS.len()..][..TAPS.len()];
        of_hour.iter().for_each(|segment| std::fs::remove_file(&segment.path).unwrap());
    }
    let time = |t: i64| chrono::DateTime::from_timestamp_micros(t).unwrap().to_rfc3339();
    let (from, to) = (T0 + 2 * HOUR, T0 + 4 * HOUR - 600 * SECOND);
    let expected = flows.rows.iter().filter(|r| (from..to).contains(&(r.end.as_micros() as i64))).count();
    let text = format!("SELECT count(src_ip) FROM flows WHERE t_end >= '{}' AND t_end < '{}'", time(from), time(to));
    assert_eq!(one(&engine, &text), expected.to_string());
    // By the start as well: nothing that starts after the last segment's end is in a segment.
    let text = format!("SELECT count(src_ip) FROM flows WHERE t_start > '{}'", time(T0 + 5 * HOUR));
    one(&engine, &text);
    // The newest rows are the live ones, of which there are enough.
    let query = FlowQuery { since: Some(T0 + 5 * HOUR), limit: Some(10), ..FlowQuery::default() };
    let stream = wait(engine.flows(query)).unwrap();
    assert_eq!(stream.stats().segments, 5 * TAPS.len() as u64);
    assert_eq!(stream.stats().segments_kept, 0);
    assert_eq!(csv(stream).len(), 11);
    let error = wait(async { engine.sql("SELECT sum(bytes_o) FROM flows").await?.collect_all().await }).unwrap_err();
    assert!(matches!(&error, QueryError::SegmentGone { path } if path.ends_with(".parquet")), "{error}");
}

#[test]
fn the_newest_rows_are_found_without_opening_old_segments() {
    let mut flows = Flows::new(0x22);
    for hour in 0..30 {
        flows.add(100, T0 + hour * HOUR, T0 + (hour + 1) * HOUR);
        flows.store.flush().unwrap();
    }
    let engine = flows.engine_with(QueryLimits { threads: 1, ..QueryLimits::default() });
    let mut stream = wait(engine.flows(FlowQuery { limit: Some(20), ..FlowQuery::default() })).unwrap();
    let mut rows = 0;
    while let Some(batch) = wait(stream.next()) {
        rows += batch.unwrap().num_rows();
    }
    assert_eq!(rows, 20);
    assert!(stream.stats().files_opened <= 6, "{:?}", stream.stats());
    // Without a filter the manifest alone says which segments these rows are in: those of the last hour.
    assert_eq!(stream.stats().segments_kept, TAPS.len() as u64, "{:?}", stream.stats());
}

#[test]
fn protocols_and_taps_prune_segments() {
    let mut flows = Flows::new(0x23);
    for proto in [6, 17, 1] {
        let mut row = common::record(&mut flows.rng, u64::from(proto), T0 + i64::from(proto));
        (row.proto, row.tap.0) = (proto, u16::from(proto % 3));
        flows.store.append(&[row], &[]).unwrap();
        flows.store.flush().unwrap();
    }
    let engine = flows.engine();
    for (filter, kept) in [
        ("proto = 6", 1),
        ("proto = 'udp'", 1),
        ("proto IN (6, 17)", 2),
        ("proto = 47", 0),
        ("proto > 6", 1),
        ("tap = 'lab'", 1),
        ("tap = 'nowhere'", 0),
        ("tap = 'core' OR proto = 1", 2),
        ("bytes_o >= 0", 3),
    ] {
        let query = FlowQuery { filter: Some(filter.to_owned()), ..FlowQuery::default() };
        let stream = wait(engine.flows(query)).unwrap();
        assert_eq!(stream.stats().segments_kept, kept, "{filter}");
    }
}

#[test]
fn one_query_sees_one_snapshot() {
    let mut flows = Flows::sample(0x24);
    let engine = flows.engine();
    let before = flows.rows.len();
    let text = "SELECT (SELECT count(src_port) FROM flows), (SELECT count(dst_port) FROM flows)";
    let stream = wait(engine.sql(text)).unwrap();
    flows.add(50, T0 + 6 * HOUR, T0 + 7 * HOUR);
    flows.store.flush().unwrap();
    assert_eq!(csv(stream)[1], format!("{before},{before}"));
    assert_eq!(one(&engine, "SELECT count(*) FROM flows"), flows.rows.len().to_string());
}

#[test]
fn a_folder_is_read_while_a_server_writes_it() {
    let mut flows = Flows::sample(0x25);
    flows.store.sync().unwrap();
    let engine = Engine::new(StoreReader::open(flows.store.reader().dir()).unwrap(), QueryLimits::default()).unwrap();
    assert_eq!(one(&engine, "SELECT count(*) FROM flows"), flows.rows.len().to_string());
    flows.add(10, T0 + 6 * HOUR, T0 + 7 * HOUR);
    flows.store.sync().unwrap();
    assert_eq!(one(&engine, "SELECT count(*) FROM flows"), flows.rows.len().to_string());
}

#[test]
fn an_empty_store_answers() {
    let flows = Flows::new(0x26);
    let engine = flows.engine();
    assert_eq!(one(&engine, "SELECT count(*) FROM flows"), "0");
    assert!(sql(&engine, "SELECT src_ip, t_start FROM flows WHERE host('10.0.0.1')").is_empty());
    assert_eq!(csv(wait(engine.flows(FlowQuery::default())).unwrap()).len(), 1);
}

#[test]
fn limits_end_a_query_with_a_sentence() {
    let flows = Flows::sample(0x27);
    let run = |limits: QueryLimits, text: &str| {
        let engine = flows.engine_with(limits);
        wait(async { engine.sql(text).await?.collect_all().await }).unwrap_err()
    };
    let all = QueryLimits::default();
    let error = run(QueryLimits { rows_max: Some(100), ..all.clone() }, "SELECT * FROM flows");
    assert!(matches!(error, QueryError::RowLimit { limit: 100 }), "{error}");
    let error = run(QueryLimits { scan_bytes_max: Some(1000), ..all.clone() }, "SELECT sum(bytes_o) FROM flows");
    assert!(matches!(error, QueryError::ScanLimit { limit: 1000, .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("bytes in 15 segments: ") && text.ends_with("raise `query.scan_max`"), "{text}");
    let error =
        run(QueryLimits { memory_bytes: 10_000, ..all.clone() }, "SELECT flow_id, count(*) FROM flows GROUP BY 1");
    assert!(matches!(error, QueryError::MemoryLimit { limit: 10_000, .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains(" were in use when ") && text.ends_with("raise `query.memory`"), "{text}");
    // Joins that never end, on one thread and on two: with and without a condition, matching nothing and everything.
    for (threads, text) in [
        (1, "SELECT count(*) FROM flows a, flows b, flows c WHERE a.bytes_o + b.bytes_o + c.bytes_o = -1"),
        (2, "SELECT count(*) FROM flows a, flows b, flows c WHERE a.bytes_o + b.bytes_o + c.bytes_o = -1"),
        (1, "SELECT sum(a.bytes_o + b.bytes_o + c.bytes_o) FROM flows a, flows b, flows c"),
        (
            1,
            "SELECT count(*) FROM flows a JOIN flows b ON a.ttl_o = b.ttl_o JOIN flows c ON b.ttl_o = c.ttl_o \
             AND a.bytes_o + b.bytes_o + c.bytes_o = -1",
        ),
        (1, "WITH RECURSIVE r AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM r) SELECT count(*) FROM r"),
    ] {
        let error = run(QueryLimits { time_max: Some(Duration::from_millis(300)), threads, ..all.clone() }, text);
        assert!(matches!(error, QueryError::TimeLimit { .. } | QueryError::MemoryLimit { .. }), "{text}: {error}");
        if matches!(error, QueryError::TimeLimit { .. }) {
            assert!(error.to_string().ends_with("raise `query.time_max`"), "{error}");
        }
    }
}

#[test]
fn dropping_a_stream_ends_its_query() {
    let flows = Flows::sample(0x28);
    let engine = flows.engine_with(QueryLimits { concurrent_max: 1, ..QueryLimits::default() });
    let endless = "SELECT a.flow_id FROM flows a, flows b, flows c";
    let stream = wait(engine.sql(endless)).unwrap();
    let busy = wait(engine.sql("SELECT 1")).unwrap_err();
    assert!(matches!(busy, QueryError::Busy { max: 1 }), "{busy}");
    assert!(busy.to_string().contains("`query.concurrent_max`"), "{busy}");
    drop(stream);
    // Cancelling takes effect when the query next yields; its slot is then free.
    let freed = wait(async {
        for _ in 0..1_000_000 {
            match engine.sql("SELECT 1").await {
                Err(QueryError::Busy { .. }) => tokio::task::yield_now().await,
                other => return other.is_ok(),
            }
        }
        false
    });
    assert!(freed);
}

#[test]
fn a_stream_outlives_its_engine() {
    let flows = Flows::sample(0x29);
    let stream = wait(flows.engine().sql("SELECT * FROM flows")).unwrap();
    assert_eq!(csv(stream).len(), flows.rows.len() + 1);
}

#[test]
fn the_stores_errors_come_through() {
    let engine = Engine::new(Broken, QueryLimits::default()).unwrap();
    assert!(matches!(wait(engine.sql("SELECT 1")), Err(QueryError::Storage(_))));
}

#[test]
fn a_damaged_segment_is_named_and_the_others_are_read() {
    let flows = Flows::sample(31);
    let segments = flows.store.reader().snapshot().unwrap().segments;
    let bad = &segments[2];
    // The footer stays whole: that the pages are not shows when they are read.
    let mut bytes = std::fs::read(&bad.path).unwrap();
    let footer = SerializedFileReader::new(std::fs::File::open(&bad.path).unwrap()).unwrap();
    for chunk in footer.metadata().row_group(0).columns() {
        let (start, length) = chunk.byte_range();
        bytes[start as usize..(start + length) as usize].fill(0xa5);
    }
    std::fs::write(&bad.path, bytes).unwrap();
    let engine = flows.engine();
    for text in [
        "SELECT * FROM flows",
        "SELECT flow_id FROM flows WHERE host('10.0.0.1')",
        "SELECT src_ip, sum(bytes_o) FROM flows GROUP BY 1",
    ] {
        let error = sql_error(&engine, text);
        let name = bad.path.file_name().unwrap().to_str().unwrap();
        assert!(error.starts_with("segment /") && error.matches(name).count() == 1, "{text}: {error}");
        assert!(error.contains("leave its time out of the query"), "{text}: {error}");
    }
    let until = chrono::DateTime::from_timestamp_micros(bad.t_end_min).unwrap().to_rfc3339();
    let before = flows.rows.iter().filter(|row| (row.end.as_micros() as i64) < bad.t_end_min).count();
    assert_eq!(one(&engine, &format!("SELECT count(src_ip) FROM flows WHERE t_end < '{until}'")), before.to_string());
}

/// One bit of a segment flipped: what is asked of it is answered as before, or not at all. Of a file, all is watched over
/// but bloom filters; of headers of pages most bits show.
#[test]
fn a_flipped_bit_makes_no_answer() {
    let seed = std::env::var("FLIP_SEED").map_or(0xf11b, |seed| seed.parse().unwrap());
    let flips = std::env::var("FLIPS").map_or(60, |flips| flips.parse().unwrap());
    let flows = Flows::sample(seed);
    let segment = flows.store.reader().snapshot().unwrap().segments[2].clone();
    let until = chrono::DateTime::from_timestamp_micros(segment.t_end_max + 1).unwrap().to_rfc3339();
    let time = format!("t_end < '{until}' AND tap = '{}'", segment.taps[0]);
    let questions = [
        format!("SELECT * FROM flows WHERE {time} ORDER BY flow_id"),
        format!("SELECT flow_id FROM flows WHERE {time} AND host('10.0.0.1') ORDER BY flow_id"),
        format!("SELECT proto, sum(bytes_o), max(dur_us), min(src_ip) FROM flows WHERE {time} GROUP BY 1 ORDER BY 1"),
    ];
    let ask = |question: &String| {
        let engine = flows.engine();
        wait(async { engine.sql(question).await?.collect_all().await })
    };
    let right: Vec<_> = questions.iter().map(|question| ask(question).unwrap()).collect();
    let bytes = std::fs::read(&segment.path).unwrap();
    let watched = watched(&segment.path, &segment);
    let total: u64 = watched.iter().map(|range| range.end - range.start).sum();
    let (mut rng, mut refused) = (common::Rng(seed), 0);
    for _ in 0..flips {
        let mut at = rng.below(total);
        let range = watched.iter().find(|range| {
            let length = range.end - range.start;
            let is_here = at < length;
            at -= if is_here { 0 } else { length };
            is_here
        });
        let (byte, bit) = ((range.unwrap().start + at) as usize, rng.below(8));
        let mut flipped = bytes.clone();
        flipped[byte] ^= 1 << bit;
        std::fs::write(&segment.path, flipped).unwrap();
        for (question, right) in questions.iter().zip(&right) {
            match ask(question) {
                Ok(answer) => assert_eq!(&answer, right, "seed {seed}, byte {byte}, bit {bit}: {question}"),
                Err(error) => {
                    refused += 1;
                    let name = segment.path.file_name().unwrap().to_str().unwrap();
                    let at = format!("seed {seed}, byte {byte}, bit {bit}: {question}: {error:?}");
                    assert!(matches!(error, QueryError::BadSegment { .. }) && error.to_string().contains(name), "{at}");
                }
            }
        }
    }
    assert!(refused > flips, "seed {seed}: {refused} of {} questions were refused", 3 * flips);
}

/// The pages of a segment, and its end.
fn watched(path: &std::path::Path, segment: &storage::Segment) -> Vec<std::ops::Range<u64>> {
    let file = std::fs::File::open(path).unwrap();
    let reader = SerializedFileReader::new(file).unwrap();
    let mut ranges = vec![segment.footer.unwrap().range(segment.bytes)];
    for chunk in reader.metadata().row_group(0).columns() {
        let (start, length) = chunk.byte_range();
        ranges.push(start..start + length);
    }
    ranges
}

#[test]
fn a_query_that_fails_by_itself_blames_no_segment() {
    let flows = Flows::sample(32);
    let engine = flows.engine();
    for text in [
        "SELECT bytes_o / (dur_us - dur_us) FROM flows",
        "SELECT * FROM flows WHERE bytes_o / (dur_us - dur_us) > 1",
        "SELECT flow_id FROM flows WHERE bytes_o / (dur_us - dur_us) > 1",
        "SELECT * FROM flows WHERE host('10.0.0.1') AND bytes_o / (dur_us - dur_us) > 1",
    ] {
        let error = sql_error(&engine, text);
        assert!(error.starts_with("the query failed: ") && error.contains("ivide by zero"), "{text}: {error}");
        let failed = wait(async { engine.sql(text).await?.collect_all().await }).unwrap_err();
        assert!(matches!(failed, QueryError::Computing { .. }), "{text}: {failed:?}");
        assert!(!error.contains("segment"), "{text}: {error}");
    }
}
