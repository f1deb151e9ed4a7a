//! The same capture gives the same records, alerts and flow ids with any number of workers.

mod support;

use serde_json::Value;
use std::path::Path;
use support::{generate, replay, run, sql, taphouse};

/// A capture of IPv4 packets without a link header.
struct Capture(Vec<u8>);

impl Capture {
    fn new() -> Capture {
        let words = [0xa1b2_c3d4, 0x0004_0002, 0, 0, 262_144, 101];
        Capture(words.into_iter().flat_map(u32::to_le_bytes).collect())
    }

    /// `time` in ms since 1970. Between two hosts of their own for each `pair`, so that workers share them.
    fn packet(&mut self, time: u64, pair: u16, proto: u8, ports: [u16; 2], transport: &[u8]) {
        let [high, low] = pair.to_be_bytes();
        let mut hosts = [[10, 0, high, low], [10, 1, high, low]];
        // The well-known port is the server's.
        if ports[0] < ports[1] {
            hosts.swap(0, 1);
        }
        self.ip(time, hosts, proto, [1, 0], &[&ports.map(u16::to_be_bytes).concat(), transport].concat());
    }

    /// `fragment`: identification, and flags with the offset as the header has them.
    fn ip(&mut self, time: u64, hosts: [[u8; 4]; 2], proto: u8, fragment: [u16; 2], body: &[u8]) {
        let total = 20 + body.len() as u16;
        let [number, place] = fragment.map(u16::to_be_bytes);
        let ip = [[0x45, 0], total.to_be_bytes(), number, place, [64, proto], [0, 0]].concat();
        let [seconds, micros] = [time / 1000, time % 1000 * 1000].map(|n| n as u32);
        let record = [seconds, micros, u32::from(total), u32::from(total)];
        self.0.extend(record.into_iter().flat_map(u32::to_le_bytes));
        self.0.extend([&ip[..], &hosts.concat(), body].concat());
    }

    fn udp(&mut self, time: u64, pair: u16, ports: [u16; 2], payload: &[u8]) {
        let len = (payload.len() as u16 + 8).to_be_bytes();
        self.packet(time, pair, 17, ports, &[&len[..], &[0, 0], payload].concat());
    }

    fn tcp(&mut self, time: u64, pair: u16, ports: [u16; 2], seq: u32, payload: &[u8]) {
        let numbers = [seq, 1].map(u32::to_be_bytes).concat();
        self.packet(time, pair, 6, ports, &[&numbers[..], &[0x50, 0x10, 255, 255, 0, 0, 0, 0], payload].concat());
    }
}

/// A DNS message about `a.example`, type A: a query, or an answer that there is no such name.
fn dns(id: u16, is_answer: bool) -> Vec<u8> {
    let flags = if is_answer { [0x81, 0x83] } else { [1, 0] };
    let question = b"\x01a\x07example\0\0\x01\0\x01";
    [&id.to_be_bytes()[..], &flags, &[0, 1, 0, 0, 0, 0, 0, 0], question].concat()
}

/// Payloads larger than frames usually are, and what came too late while a few hundred others passed: neither how much of a payload
/// travels to another worker nor where a batch ends may show.
#[test]
fn large_payloads_and_late_answers_are_the_same_for_any_number_of_workers() {
    const QUERIES: u16 = 1000;
    let mut capture = Capture::new();
    let messages = |is_answer| {
        (0..QUERIES).flat_map(move |id| {
            let message = dns(id, is_answer);
            [&(message.len() as u16).to_be_bytes()[..], &message].concat()
        })
    };
    for pair in 0..4 {
        capture.tcp(0, pair, [40_000, 53], 1, &messages(false).collect::<Vec<u8>>());
        capture.tcp(20, pair, [53, 40_000], 1, &messages(true).collect::<Vec<u8>>());
        let request = format!("GET / HTTP/1.1\r\nCookie: {}\r\nHost: far.example\r\n\r\n", "x".repeat(30_000));
        capture.tcp(30, pair, [40_001, 80], 1, request.as_bytes());
        capture.udp(40, pair, [40_002, 53], &dns(7, false));
        capture.tcp(50, pair, [40_003, 80], 1, b"GET / HTTP/1.1\r\nHost: la");
    }
    for n in 0..800 {
        capture.udp(60 + n, 100 + n as u16, [40_004, 9], b"in between");
    }
    for pair in 0..4 {
        capture.udp(15_040, pair, [53, 40_002], &dns(7, true));
        capture.tcp(15_050, pair, [40_003, 80], 25, b"te.example\r\n\r\n");
    }
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("large.pcap");
    std::fs::write(&path, &capture.0).expect("a file");
    let told = |workers: u16| {
        let dir = tempfile::tempdir().expect("a folder");
        let summary = replay(&path, dir.path(), &["flowtable.timeouts=off", &format!("pipeline.workers={workers}")]);
        assert_eq!(summary["ledger"]["balanced"], true, "{summary}");
        let of = |query: &str| sql(query, dir.path());
        (
            of("SELECT proto, rcode, latency_us, count(*) AS n FROM dns GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"),
            of("SELECT app, name, count(*) AS n FROM flows GROUP BY 1, 2 ORDER BY 1, 2"),
        )
    };
    let row = |proto: u8, rcode: Option<u16>, latency: Option<u32>, n: u32| serde_json::json!({"proto": proto, "rcode": rcode, "latency_us": latency, "n": n});
    let (queries, flows) = told(1);
    let late = [row(17, Some(3), None, 4), row(17, None, None, 4)];
    assert_eq!(queries, [&[row(6, Some(3), Some(20_000), 4 * u32::from(QUERIES))][..], &late].concat());
    let http: Vec<_> = flows.iter().filter(|row| row["app"] == "http").map(|row| (&row["name"], &row["n"])).collect();
    let (far, none) = (Value::from("far.example"), Value::Null);
    assert_eq!(http, [(&far, &4.into()), (&none, &4.into())], "{flows:#?}");
    for workers in [2, 4] {
        assert_eq!(told(workers), (queries.clone(), flows.clone()), "{workers} workers");
    }
}

/// Datagrams in four pieces whose first one comes first, or last, or half a second behind the others, or not at all; with other
/// packets between, so that batches end everywhere.
#[test]
fn fragments_find_their_first_one_wherever_it_is() {
    const MORE: u16 = 1 << 13;
    let piece = |capture: &mut Capture, time: u64, pair: u16, piece: u16| {
        let more = if piece < 3 { MORE } else { 0 };
        let header = [40_000u16, 9, 8 + 128, 0].map(u16::to_be_bytes).concat();
        let body = if piece == 0 { [&header[..], &[7; 24]].concat() } else { vec![7; 32] };
        let [high, low] = pair.to_be_bytes();
        capture.ip(time, [[10, 0, high, low], [10, 1, high, low]], 17, [pair, more | (piece * 4)], &body);
    };
    let mut capture = Capture::new();
    for n in 0..400u16 {
        let time = 10 * u64::from(n);
        match n % 4 {
            0 => (0..4).for_each(|k| piece(&mut capture, time, n, k)),
            1 => (0..4).rev().for_each(|k| piece(&mut capture, time, n, k)),
            2 => (1..4).for_each(|k| piece(&mut capture, time, n, k)),
            _ => [3, 1].into_iter().for_each(|k| piece(&mut capture, time, n, k)),
        }
        capture.udp(time, 1000 + n, [40_001, 9], b"in between");
        if let Some(before) = n.checked_sub(50).filter(|n| n % 4 == 2) {
            piece(&mut capture, time, before, 0);
        }
    }
    // One piece twice.
    [0, 1, 2, 2, 3].into_iter().for_each(|k| piece(&mut capture, 4000, 5000, k));
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("fragments.pcap");
    std::fs::write(&path, &capture.0).expect("a file");
    let told = |workers: u16| {
        let dir = tempfile::tempdir().expect("a folder");
        let summary = replay(&path, dir.path(), &[&format!("pipeline.workers={workers}")]);
        assert_eq!(summary["ledger"]["balanced"], true, "{summary}");
        assert_eq!(summary["fragments"]["overlapping"], 1, "{summary}");
        sql("SELECT * FROM flows ORDER BY src_ip, dst_ip, src_port", dir.path())
    };
    let rows = told(1);
    let goodput = |r: &&Value| (r["src_port"] == 40_000).then(|| r["goodput_o"].as_u64().unwrap());
    assert_eq!(rows.iter().filter_map(|r| goodput(&r)).sum::<u64>(), 287 * 120 + 152, "{rows:#?}");
    let count = |ports: (u16, u16), fragments: u16| {
        rows.iter()
            .filter(|r| (&r["src_port"], &r["dst_port"]) == (&ports.0.into(), &ports.1.into()))
            .filter(|r| (&r["pkts_o"], &r["fragments"]) == (&fragments.into(), &fragments.into()))
            .count()
    };
    // Of the third kind the last 13 wait in vain, of the fourth all do.
    assert_eq!((count((40_000, 9), 4), count((0, 0), 3), count((0, 0), 2)), (287, 13, 100), "{rows:#?}");
    assert_eq!((count((40_000, 9), 5), rows.len()), (1, 801));
    for workers in [2, 4] {
        assert!(told(workers) == rows, "{workers} workers");
    }
}

/// One packet from 2106 among those of five minutes, wherever in a batch it is: nothing ends later for it, or less often. A gap of a day
/// is one, also where its first packet is the last of a batch.
#[test]
fn a_packet_from_the_future_stops_no_timeout() {
    const START: u64 = 1_700_000_000_000;
    const DAY: u64 = 86_400_000;
    let flows = |rogue: Option<u64>, gap: Option<u64>| {
        let mut capture = Capture::new();
        let mut number = 0;
        for second in 0..300 {
            for (ms, pair, payload) in [(0, 1, &b"goes on and on"[..]), (1, 100 + second as u16, &b"once"[..])] {
                let later = if gap.is_some_and(|gap| number >= gap) { DAY } else { 0 };
                let time = START + later + second * 1000 + ms;
                let time = if rogue == Some(number) { u64::from(u32::MAX) * 1000 } else { time };
                capture.udp(time, pair, [40_000, 9], payload);
                number += 1;
            }
        }
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("clock.pcap");
        std::fs::write(&path, &capture.0).expect("a file");
        let summary = replay(&path, &dir.path().join("data"), &[]);
        assert_eq!(summary["packets"], 600, "{summary}");
        let of = |query: &str| sql(query, &dir.path().join("data"));
        let times = "max(t_end) AS last, max(dur_us) AS longest FROM flows";
        let ends = "SELECT end_reason, count(*) AS n FROM flows GROUP BY 1 ORDER BY 1";
        (of(ends), of(&format!("SELECT {times} WHERE t_start <= t_end")))
    };
    let straight = flows(None, None);
    assert!(straight.0.len() == 3, "{straight:?}");
    for rogue in [1, 2, 100, 254, 255, 256, 257, 510, 511, 512, 598] {
        assert_eq!(flows(Some(rogue), None), straight, "packet {rogue}");
    }
    // Nobody but the packet itself can tell.
    assert_ne!(flows(Some(599), None), straight);
    let gap = flows(None, Some(300));
    for number in [254, 255, 256, 257, 510, 511, 512] {
        let (ends, times) = flows(None, Some(number));
        assert_eq!(times[0]["last"], gap.1[0]["last"], "a gap before packet {number}");
        let sum = |ends: &[Value]| ends.iter().map(|row| row["n"].as_i64().unwrap()).sum::<i64>();
        assert!((sum(&ends) - sum(&gap.0)).abs() <= 1, "a gap before packet {number}: {ends:?}, {:?}", gap.0);
    }
}

fn outcome(capture: &Path, workers: u16) -> (Vec<Value>, Vec<Value>) {
    let dir = tempfile::tempdir().expect("a folder");
    let summary = replay(capture, dir.path(), &[&format!("pipeline.workers={workers}")]);
    assert_eq!(summary["ledger"]["balanced"], true, "{summary}");
    let rows = sql("SELECT * FROM flows ORDER BY t_end, flow_id, part", dir.path());
    let alerts = run(taphouse().args(["alerts", "--limit", "0", "--output", "json", "--data-dir"]).arg(dir.path()));
    let alerts: Vec<Value> = serde_json::from_slice(&alerts.stdout).expect("valid JSON");
    (rows, alerts)
}

#[test]
fn one_two_and_four_workers_give_identical_records_and_alerts() {
    let dir = tempfile::tempdir().expect("a folder");
    let config = traffic::Config { packets: 150_000, flows: 3_000, seed: 7, ..traffic::Config::default() };
    let (capture, truth) = generate(dir.path(), config);
    let (rows, alerts) = outcome(&capture, 1);
    let packets: i64 = rows.iter().map(|r| r["pkts_o"].as_i64().unwrap() + r["pkts_r"].as_i64().unwrap()).sum();
    assert_eq!(packets as u64, truth.packets);
    assert!(alerts.iter().any(|a| a["rule"] == "port_scan"), "the generated port scan was not found: {alerts:#?}");
    for workers in [1, 2, 4] {
        let (other_rows, other_alerts) = outcome(&capture, workers);
        let first = rows.iter().zip(&other_rows).find(|(a, b)| a != b);
        assert!(first.is_none() && rows.len() == other_rows.len(), "{workers} workers: {first:#?}");
        assert_eq!(alerts, other_alerts, "{workers} workers");
    }
}

#[test]
fn every_generated_flow_is_counted_exactly() {
    let dir = tempfile::tempdir().expect("a folder");
    for seed in [1, 2, 3] {
        let config = traffic::Config { packets: 100_000, flows: 2_000, seed, ..traffic::Config::default() };
        let (capture, truth) = generate(dir.path(), config);
        let store = tempfile::tempdir().expect("a folder");
        replay(&capture, store.path(), &["flowtable.timeouts=off"]);
        let rows = sql(
            "SELECT count(*) AS flows, sum(pkts_o + pkts_r) AS packets, sum(bytes_o + bytes_r) AS bytes, \
             sum(retrans_o + retrans_r) AS retrans FROM flows",
            store.path(),
        );
        let sum = |f: fn(&traffic::FlowTruth) -> u64| truth.flows.iter().map(f).sum::<u64>();
        let want = serde_json::json!({
            "flows": truth.flows.len(),
            "packets": truth.packets,
            "bytes": sum(|f| f.ip_bytes_client + f.ip_bytes_server),
            "retrans": sum(|f| f.retransmits_client + f.retransmits_server),
        });
        assert_eq!(rows[0], want, "seed {seed}");
    }
}
