//! Every untunnelled capture of the test data, replayed and asked in SQL, gives the packets and IP bytes of each flow
//! that an independent tool counted.

mod support;

use flate2::read::GzDecoder;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use support::{replay, sql, testdata};

/// Files in which the truth errs: how many flows differ for it, and why.
const EXCEPTIONS: &[(&str, usize, &str)] = &[
    (
        "bigtcp_v6_vxlan",
        2,
        "a BIG TCP frame of 80,156 bytes: tshark 4.0 takes its IPv6 payload length of 0 literally and reads no UDP header",
    ),
    (
        "malformed_mpls6in6",
        7,
        "fuzzed: tshark takes IPv4 headers of 28 to 44 bytes in packets of 22 to 38 (frames 217, 342, 535, 685) for \
         packets; a header that says it is longer than its packet is counted as ip_header_length here",
    ),
];

/// Unordered endpoints and protocol.
type Key = (i64, String, i64, String, i64);
/// Packets and IP bytes, from the lower endpoint and from the higher one.
type Counts = [i64; 4];

fn add(flows: &mut BTreeMap<Key, Counts>, proto: i64, a: (String, i64), b: (String, i64), counts: Counts) {
    let [ab_pkts, ba_pkts, ab_bytes, ba_bytes] = counts;
    let (key, counts) = if a <= b {
        ((proto, a.0, a.1, b.0, b.1), [ab_pkts, ba_pkts, ab_bytes, ba_bytes])
    } else {
        ((proto, b.0, b.1, a.0, a.1), [ba_pkts, ab_pkts, ba_bytes, ab_bytes])
    };
    for (sum, n) in flows.entry(key).or_default().iter_mut().zip(counts) {
        *sum += n;
    }
}

fn truth_flows(truth: &Value) -> BTreeMap<Key, Counts> {
    let mut flows = BTreeMap::new();
    for f in truth["flows_outer"].as_array().expect("flows_outer") {
        let n = |name: &str| f[name].as_i64().unwrap_or_else(|| panic!("{name} in {f}"));
        let end = |ip: &str, port: &str| (f[ip].as_str().expect("an address").to_owned(), n(port));
        let counts = [n("pkts_ab"), n("pkts_ba"), n("ip_bytes_ab"), n("ip_bytes_ba")];
        add(&mut flows, n("proto"), end("a", "port_a"), end("b", "port_b"), counts);
    }
    flows
}

fn stored_flows(dir: &Path) -> BTreeMap<Key, Counts> {
    let rows = sql(
        "SELECT ip_text(src_ip) AS src, src_port, ip_text(dst_ip) AS dst, dst_port, proto, sum(pkts_o) AS po, \
         sum(pkts_r) AS pr, sum(bytes_o) AS bo, sum(bytes_r) AS br FROM flows GROUP BY 1, 2, 3, 4, 5",
        dir,
    );
    let mut flows = BTreeMap::new();
    for row in rows {
        let n = |name: &str| row[name].as_i64().unwrap_or_else(|| panic!("{name} in {row}"));
        let end = |ip: &str, port: &str| (row[ip].as_str().expect("an address").to_owned(), n(port));
        let counts = [n("po"), n("pr"), n("bo"), n("br")];
        add(&mut flows, n("proto"), end("src", "src_port"), end("dst", "dst_port"), counts);
    }
    flows
}

fn read_truth(path: &Path) -> Value {
    let file = BufReader::new(File::open(path).expect("a truth file"));
    let parsed = match path.extension() {
        Some(gz) if gz == "gz" => serde_json::from_reader(GzDecoder::new(file)),
        _ => serde_json::from_reader(file),
    };
    parsed.unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The number of flows that agree, or how many differ and the first of them.
fn compare(truth: &Value, capture: &Path) -> Result<usize, (usize, String)> {
    let dir = tempfile::tempdir().expect("a folder");
    let summary = replay(capture, dir.path(), &["flowtable.timeouts=off"]);
    if summary["packets"] != truth["packets"] {
        return Err((usize::MAX, format!("{} packets instead of {}", summary["packets"], truth["packets"])));
    }
    if summary["ledger"]["balanced"] != true {
        return Err((usize::MAX, format!("the ledger does not add up: {}", summary["ledger"])));
    }
    let (want, got) = (truth_flows(truth), stored_flows(dir.path()));
    let wrong: Vec<String> = want
        .iter()
        .filter(|(key, counts)| got.get(*key) != Some(*counts))
        .map(|(key, counts)| format!("{key:?}: {:?} instead of {counts:?}", got.get(key)))
        .chain(
            got.keys()
                .filter(|key| !want.contains_key(*key))
                .map(|key| format!("{key:?}: {:?}, not in the truth", got[key])),
        )
        .collect();
    match wrong.first() {
        None => Ok(want.len()),
        Some(first) => Err((wrong.len(), format!("{} of {} flows differ, first {first}", wrong.len(), want.len()))),
    }
}

#[test]
fn packets_and_bytes_of_every_flow_equal_the_truth() {
    let Some(testdata) = testdata() else { return };
    let mut captures: Vec<_> =
        std::fs::read_dir(testdata.join("pcap")).expect("captures").map(|e| e.expect("an entry").path()).collect();
    captures.sort();
    let (mut checked, mut failed) = (0, Vec::new());
    for capture in captures {
        let Some(stem) = capture.file_stem().and_then(|s| s.to_str()) else { continue };
        let truth = ["json", "json.gz"].map(|ext| testdata.join("truth").join(format!("{stem}.{ext}")));
        let Some(truth) = truth.iter().find(|t| t.exists()) else { continue };
        let truth = read_truth(truth);
        if truth["tunnelled"] != false {
            println!("{stem:32} tunnelled");
            continue;
        }
        checked += 1;
        match (compare(&truth, &capture), EXCEPTIONS.iter().find(|(name, ..)| *name == stem)) {
            (Ok(flows), None) => println!("{stem:32} {:>8} packets {flows:>7} flows equal", truth["packets"]),
            (Err((differ, _)), Some((_, expected, reason))) if differ == *expected => {
                println!("{stem:32} {differ} flows differ, the truth errs: {reason}");
            }
            (Err((_, difference)), _) => {
                println!("{stem:32} DIFFERS: {difference}");
                failed.push(format!("{stem}: {difference}"));
            }
            (Ok(_), Some(_)) => failed.push(format!("{stem}: equal, though listed as an exception")),
        }
    }
    println!("{checked} captures checked, {} differ", failed.len());
    assert!(checked > 50, "only {checked} captures were found");
    assert!(failed.is_empty(), "{failed:#?}");
}
