//! Table `talkers`: filters over what may be missing and over floating-point numbers, as a linear scan has them.

mod common;

use common::{Flows, HOUR, Rng, SECOND, T0, TAPS, addr, one, sql};
use storage::StoreReader;
use talkers::{KeyFields, Metric, TalkerRow};
use wire::{Nanos, TapId};

const WINDOW: i64 = 300 * SECOND;
const HOURS: i64 = 4;
const SOURCES: [&str; 3] = ["10.0.0.1", "10.0.0.2", "2001:db8::7"];

/// A row of the window that ends at `end` µs; none has a responder's port.
fn row(rng: &mut Rng, end: i64) -> (TalkerRow, String) {
    let mut key = KeyFields::default();
    let (task, fields) = match rng.below(3) {
        0 => ("total", ""),
        1 => {
            key.src_ip = Some(addr(rng.pick(&SOURCES)));
            ("senders", "src_ip")
        }
        _ => {
            key.originator = Some(addr(rng.pick(&SOURCES)));
            key.dst_port = Some(rng.pick(&[53, 443]));
            key.proto = Some(rng.pick(&[6, 17]));
            ("services", "originator,dst_port,proto")
        }
    };
    let metric = rng.pick(&Metric::ALL);
    let estimate = rng.below(10_000) as f64 / 4.0;
    let row = TalkerRow {
        start: Nanos((end - WINDOW) as u64 * 1_000),
        end: Nanos(end as u64 * 1_000),
        tap: TapId(rng.below(TAPS.len() as u64) as u16),
        metric,
        rank: (!fields.is_empty()).then(|| 1 + rng.below(10) as u32),
        key,
        quantile: (metric == Metric::Quantile).then(|| rng.pick(&[0.5, 0.99])),
        estimate,
        lower: estimate - 0.5,
        upper: estimate + 0.5,
        task_len: task.len() as u8,
        key_len: fields.len() as u8,
        elements_len: 0,
    };
    (row, task.to_owned() + fields)
}

/// Segments of three hours, and rows of a fourth in none.
fn sample(seed: u64) -> (Flows, Vec<TalkerRow>) {
    let mut flows = Flows::new(seed);
    let mut rng = Rng(seed);
    let mut all = Vec::new();
    for hour in 0..HOURS {
        for window in 0..HOUR / WINDOW {
            for _ in 0..20 {
                let (row, texts) = row(&mut rng, T0 + hour * HOUR + window * WINDOW);
                flows.store.append_talkers(&[row], texts.as_bytes()).unwrap();
                all.push(row);
            }
        }
        if hour < HOURS - 1 {
            flows.store.flush().unwrap();
        }
    }
    (flows, all)
}

#[test]
fn rows_are_counted_as_a_linear_scan_counts_them() {
    let (flows, rows) = sample(0x7a1);
    let engine = flows.engine();
    let count = |predicate: &dyn Fn(&TalkerRow) -> bool| rows.iter().filter(|r| predicate(r)).count().to_string();
    let asked = |sql: &str| one(&engine, &format!("SELECT count(*) FROM talkers WHERE {sql}"));
    let (first, middle) = (Some(addr("10.0.0.1")), T0 + 2 * HOUR);
    assert_eq!(asked("true"), rows.len().to_string());
    assert_eq!(asked("src_ip = '10.0.0.1'"), count(&|r| r.key.src_ip == first));
    assert_eq!(asked("src_ip <> '10.0.0.1'"), count(&|r| r.key.src_ip.is_some_and(|ip| Some(ip) != first)));
    let either = count(&|r| [r.key.src_ip, r.key.originator].contains(&first));
    assert_eq!(asked("src_ip = '10.0.0.1' OR originator = '10.0.0.1'"), either);
    assert_eq!(asked("in_cidr(originator, '2001:db8::/32')"), count(&|r| r.key.originator == Some(addr(SOURCES[2]))));
    assert_eq!(asked("src_ip IS NULL"), count(&|r| r.key.src_ip.is_none()));
    assert_eq!(asked("rank IS NULL"), count(&|r| r.rank.is_none()));
    assert_eq!(asked("rank <= 3"), count(&|r| r.rank.is_some_and(|rank| rank <= 3)));
    assert_eq!(asked("proto = 'udp'"), count(&|r| r.key.proto == Some(17)));
    assert_eq!(asked("proto <> 6"), count(&|r| r.key.proto == Some(17)));
    assert_eq!(asked("dst_port = 443"), count(&|r| r.key.dst_port == Some(443)));
    assert_eq!(asked("metric = 'entropy'"), count(&|r| r.metric == Metric::Entropy));
    assert_eq!(asked("task = 'senders'"), count(&|r| r.key_len == 6));
    assert_eq!(asked("key_fields IS NULL"), count(&|r| r.key_len == 0));
    assert_eq!(asked("quantile = 0.5"), count(&|r| r.quantile == Some(0.5)));
    assert_eq!(asked("quantile IS NULL"), count(&|r| r.quantile.is_none()));
    for bound in [0.0, 12.25, 1_249.75, 1e9] {
        assert_eq!(asked(&format!("estimate > {bound}")), count(&|r| r.estimate > bound), "{bound}");
        assert_eq!(asked(&format!("estimate = {bound}")), count(&|r| r.estimate == bound), "{bound}");
        assert_eq!(asked(&format!("lower < {bound}")), count(&|r| r.lower < bound), "{bound}");
    }
    let started = format!("t_start >= to_timestamp_micros({middle})");
    assert_eq!(asked(&started), count(&|r| r.start.as_micros() as i64 >= middle));
    let late = format!("t_end >= to_timestamp_micros({middle}) AND src_ip = '2001:db8::7'");
    assert_eq!(
        asked(&late),
        count(&|r| r.end.as_micros() as i64 >= middle && r.key.src_ip == Some(addr("2001:db8::7")))
    );

    let sum: f64 = rows.iter().filter(|r| r.key.src_ip == first).map(|r| r.estimate).sum();
    let asked = one(&engine, "SELECT sum(estimate) FROM talkers WHERE src_ip = '10.0.0.1'");
    assert_eq!(asked.parse::<f64>().unwrap(), sum, "quarters add up exactly");
    let groups = sql(&engine, "SELECT src_ip, count(*) FROM talkers GROUP BY src_ip ORDER BY src_ip NULLS FIRST");
    let wanted = |source: Option<&str>| {
        let source = source.map(addr);
        format!("{},{}", source.map_or(String::new(), |ip| ip.to_string()), count(&|r| r.key.src_ip == source))
    };
    let sources: Vec<_> = [None].into_iter().chain(SOURCES.map(Some)).map(wanted).collect();
    assert_eq!(groups, [&sources[0], &sources[1], &sources[2], &sources[3]].map(String::as_str));
    let spans = "SELECT DISTINCT t_end - t_start = INTERVAL '5 minutes', dur_us FROM talkers";
    assert_eq!(sql(&engine, spans), [format!("true,{WINDOW}")]);
    // From the files alone, as another process sees them.
    let outside =
        query::Engine::new(StoreReader::open(flows.store.reader().dir()).unwrap(), Default::default()).unwrap();
    assert_eq!(one(&outside, "SELECT count(*) FROM talkers"), (rows.len() / 4 * 3).to_string());
}

#[test]
fn segments_are_pruned_by_time_by_what_no_key_has_and_by_addresses() {
    let (flows, _) = sample(0x7a2);
    let engine = flows.engine();
    let all = 3 * TAPS.len();
    let plan =
        |filter: &str| sql(&engine, &format!("EXPLAIN SELECT sum(estimate) FROM talkers WHERE {filter}")).join("\n");
    let hour = format!("t_start >= to_timestamp_micros({})", T0 + 2 * HOUR);
    assert!(
        plan(&hour).contains(&format!("talkers: {all} segments, pruned {} by time", 2 * TAPS.len())),
        "{}",
        plan(&hour)
    );
    let port = plan("responder_port = 443");
    assert!(port.contains(&format!("0 by time, {all} by ranges of values")), "{port}");
    let address = plan("src_ip = '203.0.113.77'");
    assert!(address.contains(&format!("{all} by bloom filters; 0 to read")), "{address}");
    let proto = plan("proto = 1");
    assert!(proto.contains(&format!("0 by time, {all} by ranges of values")), "{proto}");
}

#[test]
fn it_describes_itself() {
    let engine = Flows::new(0x7a3).engine();
    let columns = sql(&engine, "DESCRIBE talkers");
    assert_eq!(columns.len(), storage::talkers_schema().fields().len() + 1);
    assert!(columns[0].starts_with("t_end,") && columns.last().unwrap().starts_with("t_start,"), "{columns:?}");
    assert_eq!(one(&engine, "SELECT count(*) FROM talkers WHERE host('10.0.0.1')"), "0", "a sender and a receiver");
}
