//! TCP analysis of every capture of the test data against what tshark counted, connection by connection.

use capture::{BatchHandler, FileOptions, FileSource, Polled, Source};
use flate2::read::GzDecoder;
use flowtable::{FlowRecord, FlowSink, FlowTable, FlowTableConfig, Timeouts};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use wire::{Frame, Limits, Nanos, PacketMeta, TapId, decode, proto};

/// Lower endpoint, higher endpoint.
type Key = ((String, u64), (String, u64));

const COUNTS: [&str; 8] = [
    "retransmission",
    "fast_retransmission",
    "spurious_retransmission",
    "out_of_order",
    "duplicate_ack",
    "lost_segment",
    "zero_window",
    "keep_alive",
];

/// Packets by kind of one connection, both ways; from the lower endpoint first.
#[derive(Clone, Default, PartialEq, Debug)]
struct Counts([[u64; 2]; COUNTS.len()]);

/// What is expected to differ: file, count, connections that differ in it, why.
const EXCEPTIONS: &[(&str, &str, usize, &str)] = &[
    ("fmt_pcapng_mixed_link", "initial_rtt", 1, "its times lie before 1970, which no clock here can tell apart"),
    ("fuzz_2006", "retransmission", 1, FUZZED),
    ("fuzz_2006", "spurious_retransmission", 1, FUZZED),
    ("gtp_frag", "lost_segment", 1, CUT),
    ("pppoe_qinq", "duplicate_ack", 1, PPPOE),
    ("pppoe_qinq", "out_of_order", 1, PPPOE),
    ("pppoe_qinq", "retransmission", 1, PPPOE),
    ("tcp_syn_retransmit", "fast_retransmission", 1, TAGS),
    ("tcp_syn_retransmit", "out_of_order", 1, TAGS),
    ("tcp_syn_retransmit", "retransmission", 1, TAGS),
    (
        "ts_invalid_nano",
        "initial_rtt",
        1,
        "nanoseconds beyond a second; half of a microsecond counter's range is all a distance can have",
    ),
];
const FUZZED: &str = "its SYN has an acknowledgment number without the flag, which tshark believes";
const PPPOE: &str = "its IP length says 46 where PPPoE says 42: tshark believes PPPoE, Taphouse IP, so that acknowledgments have payload";
const CUT: &str = "its tunnel's datagrams are fragmented: tshark takes a segment for as long as what stands in the first fragment, and misses the rest; here the length that the inner header tells counts";
const TAGS: &str = "one direction is tagged and the other is not: two flows, as VLAN ids are part of the key";

#[derive(Default)]
struct Records(Vec<FlowRecord>);

impl FlowSink for Records {
    fn record(&mut self, record: &FlowRecord, _text: &[u8]) {
        self.0.push(*record);
    }
}

struct Table {
    table: FlowTable,
    clock: Nanos,
    out: Records,
}

impl BatchHandler for Table {
    fn batch(&mut self, frames: &[Frame<'_>]) {
        let mut packets: Vec<PacketMeta> = Vec::new();
        for frame in frames {
            self.clock = self.clock.max(frame.ts.min(Nanos(u64::MAX - 1)));
            if let Ok(packet) = decode(frame, &Limits::default()) {
                packets.push(PacketMeta { clock: self.clock, ..packet });
            }
        }
        self.table.process(&packets, &mut self.out);
    }
    fn idle(&mut self, _: Nanos) {}
}

fn records(capture: &Path) -> Vec<FlowRecord> {
    let config = FlowTableConfig { flows_max: 100_000, timeouts: Timeouts::OFF, ..FlowTableConfig::default() };
    let mut table = Table { table: FlowTable::new(config).unwrap(), clock: Nanos::ZERO, out: Records::default() };
    let Ok(mut source) = FileSource::open(capture, TapId(0), &FileOptions::default()) else { return Vec::new() };
    while let Ok(Polled::Packets(_)) = source.poll(&mut table) {}
    table.table.finish(table.clock, &mut table.out);
    table.out.0
}

fn key(a: (String, u64), b: (String, u64)) -> (Key, usize) {
    if a <= b { ((a, b), 0) } else { ((b, a), 1) }
}

type Connections = BTreeMap<Key, (Counts, Vec<Option<f64>>)>;

fn truth(path: &Path) -> Connections {
    let file = BufReader::new(File::open(path).unwrap());
    let truth: Value = match path.extension() {
        Some(gz) if gz == "gz" => serde_json::from_reader(GzDecoder::new(file)),
        _ => serde_json::from_reader(file),
    }
    .unwrap();
    let mut all = Connections::new();
    for stream in truth["tcp_streams"].as_array().into_iter().flatten() {
        let end = |ip: &str, port: &str| (stream[ip].as_str().unwrap().to_owned(), stream[port].as_u64().unwrap());
        let (key, flipped) = key(end("a", "port_a"), end("b", "port_b"));
        let (counts, rtts) = all.entry(key).or_default();
        for (sum, name) in counts.0.iter_mut().zip(COUNTS) {
            sum[flipped] += stream[format!("{name}_ab")].as_u64().unwrap();
            sum[1 - flipped] += stream[format!("{name}_ba")].as_u64().unwrap();
        }
        rtts.push(stream["initial_rtt_s"].as_str().map(|s| s.parse().unwrap()));
    }
    all
}

fn found(capture: &Path) -> Connections {
    let mut all = Connections::new();
    for r in records(capture).iter().filter(|r| r.proto == proto::TCP) {
        let end = |ip: wire::Addr, port| (ip.to_string(), u64::from(port));
        let (key, flipped) = key(end(r.src_ip, r.src_port), end(r.dst_ip, r.dst_port));
        let (counts, rtts) = all.entry(key).or_default();
        let both = [
            [r.retrans_o, r.retrans_r],
            [r.fast_retrans_o, r.fast_retrans_r],
            [r.spurious_retrans_o, r.spurious_retrans_r],
            [r.ooo_o, r.ooo_r],
            [r.dup_ack_o, r.dup_ack_r],
            [r.lost_o, r.lost_r],
            [r.zwin_o, r.zwin_r],
            [r.keep_alive_o, r.keep_alive_r],
        ];
        for (sum, [o, r]) in counts.0.iter_mut().zip(both) {
            sum[flipped] += u64::from(o);
            sum[1 - flipped] += u64::from(r);
        }
        rtts.push(r.rtt_us.map(|us| f64::from(us) / 1e6));
    }
    all
}

/// By name of what differs: how many connections do, and the first.
fn differences(want: &Connections, got: &Connections) -> BTreeMap<String, (usize, String)> {
    let mut wrong: BTreeMap<String, (usize, String)> = BTreeMap::new();
    let mut differ = |what: &str, key: &Key, told: String| {
        let (count, _) = wrong.entry(what.to_owned()).or_insert_with(|| (0, format!("{key:?}: {told}")));
        *count += 1;
    };
    let none = (Counts::default(), Vec::new());
    for (key, (counts, rtts)) in want {
        let (found, found_rtts) = got.get(key).unwrap_or(&none);
        for ((name, want), got) in COUNTS.iter().zip(counts.0).zip(found.0) {
            if want != got {
                differ(name, key, format!("{got:?} instead of {want:?}"));
            }
        }
        // Where ports were used again only the first handshake is in the record.
        if let ([want], [got]) = (rtts.as_slice(), found_rtts.as_slice()) {
            let equal = match (want, got) {
                (Some(want), Some(got)) => (want - got).abs() < 1.5e-6,
                (want, got) => want.is_none() && got.is_none(),
            };
            if !equal {
                differ("initial_rtt", key, format!("{got:?} instead of {want:?}"));
            }
        }
    }
    wrong
}

#[test]
fn analysis_equals_the_truth() {
    let Some(testdata) = std::env::var_os("TAPHOUSE_TESTDATA").map(PathBuf::from) else {
        println!("SKIPPED: TAPHOUSE_TESTDATA is not set; it names the folder of captures with ground truth");
        return;
    };
    let mut captures: Vec<_> = std::fs::read_dir(testdata.join("pcap")).unwrap().map(|e| e.unwrap().path()).collect();
    captures.sort();
    let (mut connections, mut failed) = (0, Vec::new());
    for capture in captures {
        let stem = capture.file_stem().unwrap().to_str().unwrap();
        let paths = ["json", "json.gz"].map(|ext| testdata.join("truth").join(format!("{stem}.{ext}")));
        let Some(path) = paths.iter().find(|p| p.exists()) else { continue };
        let want = truth(path);
        connections += want.len();
        let wrong = differences(&want, &found(&capture));
        for (what, (count, first)) in &wrong {
            match EXCEPTIONS.iter().find(|(file, name, ..)| file == &stem && name == what) {
                Some((_, _, expected, why)) if expected == count => println!("{stem:28} {what}: {count} differ: {why}"),
                _ => failed.push(format!("{stem}: {what} of {count} connections, first {first}")),
            }
        }
        for (file, what, ..) in EXCEPTIONS.iter().filter(|(file, what, ..)| file == &stem && !wrong.contains_key(*what))
        {
            failed.push(format!("{file}: {what} is equal, though listed as an exception"));
        }
    }
    assert!(connections > 1000, "only {connections} connections were found");
    assert!(failed.is_empty(), "{failed:#?}");
}
