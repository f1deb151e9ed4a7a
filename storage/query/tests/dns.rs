//! Table `dns`, and the functions that name what it and `flows` hold.

mod common;

use common::{Flows, HOUR, Rng, SECOND, T0, TAPS, addr, csv, one, sql, sql_error, wait};
use hints::DnsRecord;
use std::fs;
use std::path::PathBuf;
use storage::StoreReader;
use wire::{Nanos, TapId};

const NAMES: [&str; 4] = ["example.org", "www.example.org", "bücher.example", ""];

fn transaction(rng: &mut Rng, time: i64) -> (DnsRecord, String) {
    let question = rng.pick(&NAMES);
    let answered = rng.below(4) > 0;
    let answers = if answered { "192.0.2.1,2001:db8::1" } else { "" };
    let record = DnsRecord {
        time: Nanos(time as u64 * 1_000),
        flow_id: rng.next(),
        tap: TapId(rng.below(3) as u16),
        client: addr(rng.pick(&["10.0.0.1", "10.0.0.2", "2001:db8::7"])),
        server: addr("10.0.0.53"),
        client_port: 40_000,
        server_port: 53,
        proto: rng.pick(&[17, 17, 6]),
        qtype: rng.pick(&[1, 28, 65, 4_711]),
        has_query: true,
        rcode: answered.then(|| rng.pick(&[0, 0, 3])),
        latency_us: answered.then(|| rng.below(90_000) as u32),
        ttl_min: answered.then_some(300),
        question_len: question.len() as u8,
        answers_len: answers.len() as u8,
        ..DnsRecord::default()
    };
    (record, question.to_owned() + answers)
}

/// Three segments, an hour each, and rows in none.
fn sample(seed: u64) -> (Flows, Vec<(DnsRecord, String)>) {
    let mut flows = Flows::new(seed);
    let mut rng = Rng(seed);
    let mut all = Vec::new();
    for hour in 0..4 {
        for _ in 0..200 {
            let time = T0 + hour * HOUR + rng.below(HOUR as u64) as i64;
            let (record, texts) = transaction(&mut rng, time);
            flows.store.append_dns(&[record], texts.as_bytes()).unwrap();
            all.push((record, texts));
        }
        if hour < 3 {
            flows.store.flush().unwrap();
        }
    }
    (flows, all)
}

#[test]
fn transactions_are_counted_as_a_linear_scan_counts_them() {
    let (flows, rows) = sample(0xd0);
    let engine = flows.engine();
    let count = |predicate: &dyn Fn(&DnsRecord, &str) -> bool| {
        rows.iter().filter(|(r, texts)| predicate(r, &texts[..usize::from(r.question_len)])).count().to_string()
    };
    let asked = |sql: &str| one(&engine, &format!("SELECT count(*) FROM dns WHERE {sql}"));
    let (x, middle) = (addr("10.0.0.1"), T0 + 5 * HOUR / 2);
    assert_eq!(asked("true"), "800");
    assert_eq!(asked("client_ip = '10.0.0.1'"), count(&|r, _| r.client == x));
    assert_eq!(asked("in_cidr(server_ip, '10.0.0.0/24')"), "800");
    assert_eq!(asked("qname = 'example.org'"), count(&|_, name| name == "example.org"));
    assert_eq!(asked("qname LIKE '%.example.org'"), count(&|_, name| name.ends_with(".example.org")));
    assert_eq!(asked("qname IS NULL"), count(&|_, name| name.is_empty()));
    assert_eq!(asked("rcode_name(rcode) = 'NXDOMAIN'"), count(&|r, _| r.rcode == Some(3)));
    assert_eq!(asked("rcode IS NULL"), count(&|r, _| r.rcode.is_none()));
    assert_eq!(asked("latency_us > 45000"), count(&|r, _| r.latency_us.is_some_and(|us| us > 45_000)));
    assert_eq!(asked("proto = 'tcp'"), count(&|r, _| r.proto == 6));
    assert_eq!(asked("tap = 'dmz'"), count(&|r, _| TAPS[usize::from(r.tap.0)] == "dmz"));
    assert_eq!(asked("has_query"), "800");
    let late = format!("t >= to_timestamp_micros({middle})");
    assert_eq!(asked(&late), count(&|r, _| r.time.as_micros() as i64 >= middle));
    assert_eq!(
        sql(&engine, "SELECT DISTINCT dns_type_name(qtype) AS n FROM dns ORDER BY n"),
        ["A", "AAAA", "HTTPS", "TYPE4711"]
    );
    assert_eq!(one(&engine, "SELECT count(DISTINCT answers) FROM dns"), "1");
    assert_eq!(one(&engine, "SELECT count(*) FROM flows"), "0");
    // From the files alone, as another process sees them.
    let outside =
        query::Engine::new(StoreReader::open(flows.store.reader().dir()).unwrap(), Default::default()).unwrap();
    assert_eq!(one(&outside, "SELECT count(*) FROM dns"), "600", "what is not in the log yet is not there");
}

#[test]
fn segments_of_other_times_are_not_opened() {
    let (flows, rows) = sample(0xd1);
    let engine = flows.engine();
    let (from, to) = (T0 + HOUR, T0 + 2 * HOUR - SECOND);
    let text = format!(
        "SELECT count(*) FROM dns WHERE t BETWEEN to_timestamp_micros({from}) AND to_timestamp_micros({to}) AND rcode = 0"
    );
    let stream = wait(engine.sql(&text)).unwrap();
    let taps = TAPS.len() as u64;
    assert_eq!((stream.stats().segments, stream.stats().segments_kept), (3 * taps, taps));
    let wanted = rows.iter().filter(|(r, _)| (from..=to).contains(&(r.time.as_micros() as i64)) && r.rcode == Some(0));
    assert_eq!(csv(stream)[1..], [wanted.count().to_string()]);
}

#[test]
fn dns_describes_itself_and_joins_with_flows() {
    let mut flows = Flows::new(0xd2);
    flows.add(20, T0, T0 + HOUR);
    let (mut record, texts) = transaction(&mut Rng(7), T0);
    record.flow_id = flows.rows[3].flow_id;
    flows.store.append_dns(&[record], texts.as_bytes()).unwrap();
    let engine = flows.engine();
    let columns = sql(&engine, "DESCRIBE dns");
    assert_eq!(columns.len(), storage::dns_schema().fields().len());
    assert!(columns[0].starts_with("t,"), "{columns:?}");
    let joined = "SELECT count(*) FROM flows f JOIN dns d ON f.flow_id = d.flow_id WHERE f.bytes_o >= 0";
    assert_eq!(one(&engine, joined), "1");
    assert!(sql_error(&engine, "SELECT 1 FROM dnss").contains("did you mean `dns`?"));
    assert!(sql_error(&engine, "SELECT 1 FROM packets").contains("the tables are `flows`, `dns`, `talkers`"));
}

#[test]
fn community_ids_are_those_of_other_tools() {
    let flows = Flows::new(0xd3);
    let engine = flows.engine();
    for (arguments, wanted) in [
        ("'128.232.110.120', '66.35.250.204', 34855, 80, 6", "1:LQU9qZlK+B5F3KDmev6m5PMibrg="),
        ("'66.35.250.204', '128.232.110.120', 80, 34855, 6", "1:LQU9qZlK+B5F3KDmev6m5PMibrg="),
        ("'128.232.110.120', '66.35.250.204', 34855, 80, 6, 1", "1:3V71V58M3Ksw/yuFALMcW0LAHvc="),
        ("ip('128.232.110.120'), '66.35.250.204', 34855, 80, 6, NULL, NULL", "1:LQU9qZlK+B5F3KDmev6m5PMibrg="),
        ("'128.232.110.120', '66.35.250.204', 34855, 80, 6, NULL, NULL", "1:LQU9qZlK+B5F3KDmev6m5PMibrg="),
        ("'128.232.110.120', ip('66.35.250.204'), 34855, 80, 6, NULL, NULL", "1:LQU9qZlK+B5F3KDmev6m5PMibrg="),
        ("'192.168.0.89', '192.168.0.1', 0, 0, 1, 8, 0", "1:X0snYXpgwiv9TZtqg64sgzUn6Dk="),
        ("'192.168.0.89', '192.168.0.1', 8, 0, 1", "1:X0snYXpgwiv9TZtqg64sgzUn6Dk="),
        ("'192.168.0.89', '192.168.0.1', 0, 0, 1, 8, 0, 1", "1:03g6IloqVBdcZlPyX8r0hgoE7kA="),
        ("'192.168.0.89', NULL, 8, 0, 1", ""),
        ("'192.168.0.89', '192.168.0.1', 99999, 0, 6", ""),
    ] {
        assert_eq!(one(&engine, &format!("SELECT community_id({arguments})")).trim_matches('"'), wanted, "{arguments}");
    }
    let flows = Flows::sample(0xd4);
    let each = "SELECT count(DISTINCT community_id(src_ip, dst_ip, src_port, dst_port, proto, icmp_type, icmp_code)) > 50, \
                count(*) FILTER (WHERE community_id(src_ip, dst_ip, src_port, dst_port, proto) <> \
                community_id(dst_ip, src_ip, dst_port, src_port, proto) AND proto <> 1) FROM flows";
    assert_eq!(one(&flows.engine(), each), "true,0");
}

/// Segments from before a column was there are read, with null in it.
#[test]
fn columns_an_older_segment_lacks_are_null() {
    let mut flows = Flows::new(0xd5);
    flows.add(30, T0, T0 + HOUR);
    flows.store.flush().unwrap();
    let segments = flows.store.reader().snapshot().unwrap().segments;
    let paths: Vec<_> = segments.iter().map(|segment| segment.path.clone()).collect();
    let number = segments[0].id.number;
    drop(segments);
    let dir = flows.store.reader().dir().to_owned();
    let Flows { store, rows, .. } = flows;
    store.close().unwrap();
    // The same rows as the first version wrote them: in one file, without the columns behind `dscp`.
    use datafusion::parquet::arrow::ArrowWriter;
    use datafusion::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
    let read = |path: &PathBuf| {
        let reader = ParquetRecordBatchReaderBuilder::try_new(fs::File::open(path).unwrap()).unwrap().build().unwrap();
        reader.map(|batch| batch.unwrap().project(&(0..40).collect::<Vec<_>>()).unwrap()).collect::<Vec<_>>()
    };
    let batches: Vec<_> = paths.iter().flat_map(read).collect();
    fs::remove_dir_all(dir.join("segments")).unwrap();
    let path = dir.join(format!("segments/2024-05-29/{number:016}.parquet"));
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut writer = ArrowWriter::try_new(fs::File::create(&path).unwrap(), batches[0].schema(), None).unwrap();
    batches.iter().for_each(|batch| writer.write(batch).unwrap());
    writer.close().unwrap();
    fs::remove_file(dir.join("manifest.ndjson")).unwrap();
    let options = storage::StoreOptions::new(&dir, TAPS.map(str::to_owned).to_vec());
    let mut store = storage::Store::open(options).unwrap();
    store.append(&rows[..2], &[]).unwrap();
    let engine = query::Engine::new(store.reader(), Default::default()).unwrap();
    let text =
        "SELECT count(*), count(dscp), count(fragments), count(goodput_o), count(name), sum(dup_ack_o) FROM flows";
    assert_eq!(one(&engine, text), "32,32,2,2,0,0");
    assert_eq!(one(&engine, "SELECT count(*) FROM flows WHERE fragments IS NULL"), "30");
    assert_eq!(sql(&engine, "SELECT * FROM flows").len(), 32);
}
