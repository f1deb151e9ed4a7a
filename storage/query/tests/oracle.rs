//! Random filters, answered by the engine and by a linear scan with SQL's three-valued logic.

mod common;

use common::{ADDRS, Flows, HOUR, PORTS, Rng, SECOND, T0, TAPS, addr, csv, mac, one, wait};
use flowtable::FlowRecord;
use query::FlowQuery;
use wire::Prefix;

type Eval = Box<dyn Fn(&FlowRecord) -> Option<bool>>;

/// A filter as text, and what it says of a row; `None` is SQL's unknown.
struct Filter {
    text: String,
    eval: Eval,
}

fn filter(text: String, eval: impl Fn(&FlowRecord) -> Option<bool> + 'static) -> Filter {
    Filter { text, eval: Box::new(eval) }
}

fn end(r: &FlowRecord) -> i64 {
    r.end.as_micros() as i64
}

fn start(r: &FlowRecord) -> i64 {
    r.start.as_micros() as i64
}

fn rfc3339(micros: i64) -> String {
    chrono::DateTime::from_timestamp_micros(micros).unwrap().to_rfc3339()
}

fn leaf(rng: &mut Rng) -> Filter {
    let a = rng.pick(&ADDRS);
    let b = rng.pick(&ADDRS);
    let (x, y) = (addr(a), addr(b));
    let port = rng.pick(&PORTS);
    let time = T0 + rng.below(7 * HOUR as u64) as i64 - HOUR / 2;
    let block = rng.pick(&["10.0.0.0/8", "192.168.1.0/24", "2001:db8::/32", "0.0.0.0/0", "::/0", "10.1.2.3"]);
    let prefix: Prefix = block.parse().unwrap();
    match rng.below(22) {
        0 => filter(format!("src_ip = '{a}'"), move |r| Some(r.src_ip == x)),
        1 => filter(format!("'{a}' = dst_ip"), move |r| Some(r.dst_ip == x)),
        2 => filter(format!("src_ip <> '{a}'"), move |r| Some(r.src_ip != x)),
        3 => filter(format!("src_ip >= '{a}'"), move |r| Some(r.src_ip >= x)),
        4 => filter(format!("'{a}' > dst_ip"), move |r| Some(x > r.dst_ip)),
        5 => filter(format!("src_ip IN ('{a}', '{b}')"), move |r| Some(r.src_ip == x || r.src_ip == y)),
        6 => filter(format!("dst_ip NOT IN ('{a}', '{b}')"), move |r| Some(r.dst_ip != x && r.dst_ip != y)),
        7 => filter(format!("src_ip BETWEEN '{a}' AND '{b}'"), move |r| Some(x <= r.src_ip && r.src_ip <= y)),
        8 => filter(format!("host('{a}')"), move |r| Some(r.src_ip == x || r.dst_ip == x)),
        9 => filter(format!("host('{a}', '{b}')"), move |r| {
            Some([r.src_ip, r.dst_ip].iter().any(|i| *i == x || *i == y))
        }),
        10 => filter(format!("net('{block}')"), move |r| Some(prefix.contains(r.src_ip) || prefix.contains(r.dst_ip))),
        11 => filter(format!("in_cidr(dst_ip, '{block}')"), move |r| Some(prefix.contains(r.dst_ip))),
        12 => filter(format!("port({port})"), move |r| Some(r.src_port == port || r.dst_port == port)),
        13 => filter(format!("src_ip = ip('{a}')"), move |r| Some(r.src_ip == x)),
        14 => filter("proto = 'tcp'".to_owned(), |r| Some(r.proto == 6)),
        15 => filter("proto IN (1, 17)".to_owned(), |r| Some(r.proto == 1 || r.proto == 17)),
        16 => {
            let n = rng.below(4) as u8;
            filter(format!("src_mac = '{}'", mac(n)), move |r| r.src_mac.map(|m| m == mac(n)))
        }
        17 => {
            let tap = rng.below(3) as u16;
            filter(format!("tap = '{}'", TAPS[tap as usize]), move |r| Some(r.tap.0 == tap))
        }
        18 => filter(format!("t_end < '{}'", rfc3339(time)), move |r| Some(end(r) < time)),
        19 => filter(format!("t_start >= '{}'", rfc3339(time)), move |r| Some(start(r) >= time)),
        20 => filter("rtt_us > 20000".to_owned(), |r| r.rtt_us.map(|v| v > 20_000)),
        _ => filter("conn_state IS NULL".to_owned(), |r| Some(r.conn_state.is_none())),
    }
}

fn tree(rng: &mut Rng, depth: u32) -> Filter {
    if depth == 0 {
        return leaf(rng);
    }
    match rng.below(5) {
        0 => leaf(rng),
        1 => {
            let inner = tree(rng, depth - 1);
            filter(format!("NOT ({})", inner.text), move |r| (inner.eval)(r).map(|v| !v))
        }
        n => {
            let (l, r) = (tree(rng, depth - 1), tree(rng, depth - 1));
            // What settles an AND is false, what settles an OR is true.
            let (word, settles) = if n < 4 { ("AND", false) } else { ("OR", true) };
            filter(format!("({}) {word} ({})", l.text, r.text), move |row| match ((l.eval)(row), (r.eval)(row)) {
                (Some(v), _) | (_, Some(v)) if v == settles => Some(settles),
                (Some(_), Some(_)) => Some(!settles),
                _ => None,
            })
        }
    }
}

#[test]
fn random_filters_agree_with_a_linear_scan() {
    let seed = 0x7a90_0001;
    let flows = Flows::sample(seed);
    let engine = flows.engine();
    let mut rng = Rng(seed ^ 0xffff);
    for trial in 0..120 {
        let f = tree(&mut rng, 3);
        let context = format!("seed {seed:#x}, trial {trial}: {}", f.text);
        let mut expected: Vec<&FlowRecord> = flows.rows.iter().filter(|r| (f.eval)(r) == Some(true)).collect();
        expected.sort_by_key(|r| (std::cmp::Reverse(end(r)), r.flow_id, r.part));
        let expected: Vec<String> = expected.iter().map(|r| format!("{},{}", r.flow_id, r.part)).collect();
        let columns = vec!["flow_id".to_owned(), "part".to_owned()];
        let query = FlowQuery { filter: Some(f.text.clone()), columns, ..FlowQuery::default() };
        let stream = wait(engine.flows(query)).unwrap_or_else(|e| panic!("{context}: {e}"));
        assert_eq!(csv(stream)[1..], expected, "{context}");
        let count = one(&engine, &format!("SELECT count(*) FROM flows WHERE {}", f.text));
        assert_eq!(count, expected.len().to_string(), "{context}");
    }
}

#[test]
fn time_ranges_are_flows_that_overlap() {
    let seed = 0x7a90_0002;
    let flows = Flows::sample(seed);
    let engine = flows.engine();
    let mut rng = Rng(seed);
    for trial in 0..40 {
        let since = (rng.below(4) > 0).then(|| T0 + rng.below(6 * HOUR as u64) as i64);
        let length = rng.below(2 * HOUR as u64) as i64 + SECOND;
        let until = (rng.below(4) > 0).then(|| since.unwrap_or(T0) + length);
        let limit = (rng.below(2) == 0).then(|| rng.below(50));
        let overlaps = |r: &&FlowRecord| since.is_none_or(|s| end(r) >= s) && until.is_none_or(|u| start(r) < u);
        let mut expected: Vec<&FlowRecord> = flows.rows.iter().filter(overlaps).collect();
        expected.sort_by_key(|r| (std::cmp::Reverse(end(r)), r.flow_id, r.part));
        expected.truncate(limit.unwrap_or(u64::MAX) as usize);
        let expected: Vec<String> = expected.iter().map(|r| r.flow_id.to_string()).collect();
        let columns = vec!["flow_id".to_owned()];
        let query = FlowQuery { since, until, limit, columns, ..FlowQuery::default() };
        let got = csv(wait(engine.flows(query)).unwrap());
        assert_eq!(got[1..], expected, "seed {seed:#x}, trial {trial}: {since:?} to {until:?} limit {limit:?}");
    }
}
