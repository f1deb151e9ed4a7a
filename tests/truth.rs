//! Captures, replayed and asked in SQL, against what independent tools counted in them and what a generator wrote:
//! packets and IP bytes of each flow at the innermost IP header, fragments, Community IDs, names, retransmissions.

mod support;

use flate2::read::GzDecoder;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::process::Command;
use support::{replay, sql, testdata};

/// Where the truth and this program part for a reason: file, what is compared, lines that differ, why.
const EXCEPTIONS: &[(&str, &str, usize, &str)] = &[
    ("bigtcp_v6_vxlan", "flows", 2, BIG_TCP),
    (
        "dns_tunnel_iodine",
        "dns",
        4,
        "two names: tshark takes bytes 0xf8 to 0xfd as the start of longer UTF-8 sequences",
    ),
    ("frag_ip6_dns", "portless", 1, NO_FIRST),
    ("fuzz_2006", "dns", 7, "flipped bits: labels of RFC 2673, other ports, headers that contradict their length"),
    ("fuzz_2006", "portless", 1, NO_FIRST),
    (
        "gtp_frag",
        "http",
        1,
        "the datagram of the tunnel is in fragments, which are not put together: its request is cut",
    ),
    (
        "gtp_frag",
        "portless",
        1,
        "the first fragment of a tunnel's datagram is a packet of a flow inside, the others are the tunnel's",
    ),
    (
        "lab_small_snap128",
        "dns",
        1,
        "version.bind: a port scanner asks over an odd port; tshark reads DNS on its own ports",
    ),
    ("malformed_mpls6in6", "flows", 7, LONG_HEADER),
    ("malformed_mpls6in6", "fragments", 1, LONG_HEADER),
    ("sctp_www", "http", 1, "payloads of SCTP are not inspected"),
];
const NO_FIRST: &str = "later fragments whose first one does not come";
const BIG_TCP: &str = "a BIG TCP frame of 80,156 bytes in VXLAN: tshark 4.0 takes its IPv6 payload length of 0 literally and \
     reads no UDP header, and so nothing inside";
const LONG_HEADER: &str = "fuzzed: tshark takes IPv4 headers of 28 to 44 bytes in packets of 20 to 38 for packets; a header \
     that says it is longer than its packet is counted as ip_header_length here";

/// Nothing ends by time; a port that is used again begins a flow, as its names are of its own.
const ENDLESS: [&str; 1] =
    ["flowtable.timeouts={tcp_idle: 36500d, udp_idle: 36500d, other_idle: 36500d, closed: 36500d, active: 36500d}"];

/// Protocol and unordered endpoints.
type Key = (i64, String, i64, String, i64);
/// Packets and IP bytes, from the lower endpoint and from the higher one.
type Counts = [i64; 4];
/// Names and how often they came.
type Names = BTreeMap<String, i64>;

/// What a capture holds, told the same way by both.
#[derive(Default)]
struct Told {
    flows: BTreeMap<Key, Counts>,
    /// Fragments among the packets of `flows`.
    fragments: i64,
    /// Fragments in flows without ports, of protocols that have them: no first one was seen.
    portless: i64,
    ids: BTreeMap<Key, BTreeSet<String>>,
    dns: Names,
    /// Server names of TLS and QUIC.
    tls: BTreeSet<String>,
    /// Hosts of HTTP.
    http: BTreeSet<String>,
}

impl Told {
    fn flow(&mut self, proto: i64, a: (String, i64), b: (String, i64), counts: Counts, ids: BTreeSet<String>) {
        let [ab_pkts, ba_pkts, ab_bytes, ba_bytes] = counts;
        let (key, counts) = if a <= b {
            ((proto, a.0, a.1, b.0, b.1), [ab_pkts, ba_pkts, ab_bytes, ba_bytes])
        } else {
            ((proto, b.0, b.1, a.0, a.1), [ba_pkts, ab_pkts, ba_bytes, ab_bytes])
        };
        for (sum, n) in self.flows.entry(key.clone()).or_default().iter_mut().zip(counts) {
            *sum += n;
        }
        self.ids.entry(key).or_default().extend(ids);
    }

    fn by_truth(truth: &Value) -> Told {
        let mut told =
            Told { fragments: truth["fragments_inner"]["packets"].as_i64().expect("fragments"), ..Told::default() };
        let flows = truth["flows_inner"].as_array().or_else(|| truth["flows_outer"].as_array()).expect("flows");
        for f in flows {
            let n = |name: &str| f[name].as_i64().unwrap_or_else(|| panic!("{name} in {f}"));
            let end = |ip: &str, port: &str| (f[ip].as_str().expect("an address").to_owned(), n(port));
            let counts = [n("pkts_ab"), n("pkts_ba"), n("ip_bytes_ab"), n("ip_bytes_ba")];
            let ids = f["community_ids"].as_array().into_iter().flatten().chain([&f["community_id"]]);
            let ids = ids.filter_map(Value::as_str).map(str::to_owned).collect();
            told.flow(n("proto"), end("a", "port_a"), end("b", "port_b"), counts, ids);
        }
        told.dns = dns_names(truth);
        let names = |field: &str| truth[field].as_object().into_iter().flatten().map(|(name, _)| cut(name)).collect();
        (told.tls, told.http) = (names("tls_sni"), names("http_hosts"));
        told
    }

    fn by_us(dir: &Path) -> Told {
        let mut told = Told::default();
        let rows = sql(
            "SELECT ip_text(src_ip) AS src, src_port, ip_text(dst_ip) AS dst, dst_port, proto, \
             community_id(src_ip, dst_ip, src_port, dst_port, proto, icmp_type, icmp_code) AS id, sum(pkts_o) AS po, \
             sum(pkts_r) AS pr, sum(bytes_o) AS bo, sum(bytes_r) AS br, sum(fragments) AS fragments \
             FROM flows GROUP BY 1, 2, 3, 4, 5, 6",
            dir,
        );
        for row in rows {
            let n = |name: &str| number(&row, name);
            let end = |ip: &str, port: &str| (row[ip].as_str().expect("an address").to_owned(), n(port));
            let counts = [n("po"), n("pr"), n("bo"), n("br")];
            let ids = BTreeSet::from([row["id"].as_str().expect("a Community ID").to_owned()]);
            told.flow(n("proto"), end("src", "src_port"), end("dst", "dst_port"), counts, ids);
            told.fragments += n("fragments");
            if has_ports(n("proto")) && (n("src_port"), n("dst_port")) == (0, 0) {
                told.portless += n("fragments");
            }
        }
        let text = |row: &Value, name: &str| row[name].as_str().unwrap_or_default().to_owned();
        for row in sql("SELECT qname, count(*) AS n FROM dns WHERE has_query GROUP BY 1", dir) {
            told.dns.insert(text(&row, "qname"), number(&row, "n"));
        }
        for row in sql("SELECT DISTINCT app, name FROM flows WHERE name IS NOT NULL", dir) {
            match row["app"].as_str() {
                Some("tls" | "quic") => drop(told.tls.insert(text(&row, "name"))),
                Some("http" | "ssdp") => drop(told.http.insert(text(&row, "name"))),
                _ => {}
            }
        }
        told
    }

    /// A later fragment carries no ports: the truth has it in a row with ports 0, we have it in the flow of its first
    /// fragment. Where the truth has such a row, all between these addresses is added up.
    fn fragments_joined(&self, where_: &BTreeSet<(i64, String, String)>) -> BTreeMap<Key, Counts> {
        let mut flows = BTreeMap::<Key, Counts>::new();
        for ((proto, a, a_port, b, b_port), counts) in &self.flows {
            let joined = where_.contains(&(*proto, a.clone(), b.clone()));
            let (a_port, b_port) = if joined { (0, 0) } else { (*a_port, *b_port) };
            for (sum, n) in
                flows.entry((*proto, a.clone(), a_port, b.clone(), b_port)).or_default().iter_mut().zip(counts)
            {
                *sum += n;
            }
        }
        flows
    }
}

fn has_ports(proto: i64) -> bool {
    matches!(proto, 6 | 17 | 132 | 136)
}

fn number(row: &Value, name: &str) -> i64 {
    row[name].as_i64().unwrap_or_else(|| panic!("{name} in {row}"))
}

/// Questions that were asked, each as often as it was.
fn dns_names(truth: &Value) -> Names {
    let mut names = Names::new();
    for (name, n) in truth["dns_query_names"].as_object().into_iter().flatten() {
        *names.entry(cut(name)).or_default() += n.as_i64().expect("a count");
    }
    names
}

/// Names are kept up to this many bytes.
fn cut(name: &str) -> String {
    name[..name.floor_char_boundary(hints::TEXT_MAX)].to_owned()
}

fn read_truth(path: &Path) -> Value {
    let file = BufReader::new(File::open(path).expect("a truth file"));
    let parsed = match path.extension() {
        Some(gz) if gz == "gz" => serde_json::from_reader(GzDecoder::new(file)),
        _ => serde_json::from_reader(file),
    };
    parsed.unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// By what is compared, what differs, a line each.
type Differences = BTreeMap<&'static str, Vec<String>>;

fn compare(want: &Told, got: &Told) -> Differences {
    let mut all = Differences::new();
    let mut differ = |what: &'static str, line: String| all.entry(what).or_default().push(line);
    let keys = want.flows.keys().filter(|k| (k.2, k.4) == (0, 0) && has_ports(k.0));
    let joined: BTreeSet<_> = keys.map(|k| (k.0, k.1.clone(), k.3.clone())).collect();
    each_difference(&want.fragments_joined(&joined), &got.fragments_joined(&joined), |line| differ("flows", line));
    if want.fragments != got.fragments {
        differ("fragments", format!("{} instead of {}", got.fragments, want.fragments));
    }
    if got.portless > 0 {
        differ("portless", format!("{} fragments in flows with ports 0", got.portless));
    }
    for (key, ids) in &got.ids {
        if want.ids.get(key).is_some_and(|want| !want.is_empty() && !ids.is_subset(want)) {
            differ("community_id", format!("{key:?}: {ids:?} instead of {:?}", want.ids[key]));
        }
    }
    each_difference(&want.dns, &got.dns, |line| differ("dns", line));
    for name in want.tls.symmetric_difference(&got.tls) {
        differ(
            "tls",
            format!("{name:?} {}", if got.tls.contains(name) { "is not in the truth" } else { "is missing" }),
        );
    }
    for name in want.http.symmetric_difference(&got.http) {
        differ(
            "http",
            format!("{name:?} {}", if got.http.contains(name) { "is not in the truth" } else { "is missing" }),
        );
    }
    all
}

fn each_difference<K: Ord + std::fmt::Debug, V: PartialEq + std::fmt::Debug>(
    want: &BTreeMap<K, V>,
    got: &BTreeMap<K, V>,
    mut differ: impl FnMut(String),
) {
    for (key, counts) in want.iter().filter(|(key, counts)| got.get(*key) != Some(counts)) {
        differ(format!("{key:?}: {:?} instead of {counts:?}", got.get(key)));
    }
    for (key, counts) in got.iter().filter(|(key, _)| !want.contains_key(*key)) {
        differ(format!("{key:?}: {counts:?}, not in the truth"));
    }
}

/// Replays a capture; the summary has to agree with the truth by itself.
fn replayed(capture: &Path, packets: &Value, dir: &Path) -> Told {
    let summary = replay(capture, dir, &ENDLESS);
    assert_eq!(summary["packets"], *packets, "{}", capture.display());
    assert_eq!(summary["ledger"]["balanced"], true, "{}: {}", capture.display(), summary["ledger"]);
    Told::by_us(dir)
}

#[test]
fn every_capture_gives_what_the_truth_says() {
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
        let dir = tempfile::tempdir().expect("a folder");
        let (want, got) = (Told::by_truth(&truth), replayed(&capture, &truth["packets"], dir.path()));
        let differences = compare(&want, &got);
        checked += 1;
        let names = want.dns.len() + want.tls.len() + want.http.len();
        println!(
            "{stem:32} {:>8} packets {:>7} flows {names:>6} names",
            truth["packets"].to_string(),
            want.flows.len()
        );
        for (what, lines) in &differences {
            match EXCEPTIONS.iter().find(|(file, of, ..)| file == &stem && of == what) {
                Some((_, _, count, reason)) if *count == lines.len() => println!("    {count} {what} differ: {reason}"),
                _ => failed.push(format!(
                    "{stem}: {} {what} differ, first {}",
                    lines.len(),
                    lines[..lines.len().min(4)].join("; ")
                )),
            }
        }
        let stale = EXCEPTIONS.iter().filter(|(file, what, ..)| file == &stem && !differences.contains_key(what));
        failed.extend(stale.map(|(file, what, ..)| format!("{file}: {what} is equal, though listed as an exception")));
    }
    println!("{checked} captures checked, {} differences without a reason", failed.len());
    assert!(checked > 70, "only {checked} captures were found");
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// Bytes of the Ethernet header, which the generator counts in and flows do not.
const ETHERNET: i64 = 14;

/// By originator, responder and protocol: packets, IP bytes and retransmissions each way, start and end in microseconds.
type Written = BTreeMap<(String, i64, String, i64, i64), [i64; 8]>;

fn written_flows(truth: &Value) -> Written {
    let row = |row: &Value| {
        let n = |at: usize| row[at].as_i64().unwrap_or_else(|| panic!("{at} in {row}"));
        let ip = |at: usize| row[at].as_str().expect("an address").to_owned();
        let [pkts_o, pkts_r] = [n(6), n(7)];
        let [bytes_o, bytes_r] = [n(8) - ETHERNET * pkts_o, n(9) - ETHERNET * pkts_r];
        let key = (ip(2), n(3), ip(4), n(5), n(1));
        (key, [pkts_o, pkts_r, bytes_o, bytes_r, n(12), n(13), n(10) / 1000, n(11) / 1000])
    };
    truth["flow_rows"].as_array().expect("rows").iter().map(row).collect()
}

fn stored_flows(dir: &Path) -> Written {
    let rows = sql(
        "SELECT ip_text(src_ip) AS src, src_port, ip_text(dst_ip) AS dst, dst_port, proto, pkts_o, pkts_r, bytes_o, bytes_r, \
         retrans_o, retrans_r, CAST(t_end AS BIGINT) - dur_us AS start, CAST(t_end AS BIGINT) AS end FROM flows",
        dir,
    );
    let mut flows = Written::new();
    for row in &rows {
        let n = |name: &str| number(row, name);
        let ip = |name: &str| row[name].as_str().expect("an address").to_owned();
        let key = (ip("src"), n("src_port"), ip("dst"), n("dst_port"), n("proto"));
        let columns = ["pkts_o", "pkts_r", "bytes_o", "bytes_r", "retrans_o", "retrans_r", "start", "end"];
        assert!(flows.insert(key, columns.map(n)).is_none(), "a flow in two records: {row}");
    }
    flows
}

#[test]
fn generated_traffic_gives_every_count_that_was_written() {
    let Some(testdata) = testdata() else { return };
    if Command::new("python3").arg("--version").output().is_err() {
        println!("SKIPPED: python3 is not there to run the generator");
        return;
    }
    for seed in ["1", "20", "4711"] {
        let dir = tempfile::tempdir().expect("a folder");
        let capture = dir.path().join("generated.pcap");
        let mut generator = Command::new("python3");
        generator.arg(testdata.join("gen_traffic.py")).arg(&capture).args(["--seed", seed]);
        support::run(generator.args(["--packets", "120000", "--flows", "4000"]));
        let truth = read_truth(&capture.with_extension("json"));
        let store = dir.path().join("store");
        let summary = replay(&capture, &store, &["flowtable.timeouts=off"]);
        assert_eq!((&summary["packets"], &summary["bytes"]), (&truth["packets"], &truth["wire_bytes"]), "seed {seed}");
        assert_eq!(summary["flows"], truth["flows"], "seed {seed}");

        let (want, got) = (written_flows(&truth), stored_flows(&store));
        let mut wrong = Vec::new();
        each_difference(&want, &got, |line| wrong.push(line));
        assert!(wrong.is_empty(), "seed {seed}: {} of {} flows differ, first {}", wrong.len(), want.len(), wrong[0]);
        let retransmitted: i64 = got.values().map(|counts| counts[4] + counts[5]).sum();
        assert_eq!(truth["tcp_retransmitted_segments"], retransmitted, "seed {seed}");
        assert!(retransmitted > 100, "seed {seed}: only {retransmitted} retransmissions to compare");

        let told = Told::by_us(&store);
        each_difference(&dns_names(&truth), &told.dns, |line| panic!("seed {seed}: {line}"));
        println!("seed {seed}: {} flows, {retransmitted} retransmissions, {} names equal", got.len(), told.dns.len());
    }
}
