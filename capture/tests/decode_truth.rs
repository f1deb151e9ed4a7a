//! Captures from elsewhere, decoded to the innermost IP header, against what tshark read there: packets and IP bytes of
//! each flow and direction, fragments, tunnels, VLAN ids, frames without IP. They are not in the repository:
//! `TAPHOUSE_TESTDATA` names the folder.

mod support;

use capture::{FileOptions, FileSource};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use support::{Packet, TAP, drain};
use wire::{Direction, FlowKey, Frame, Limits, Nanos, PacketMeta, Tunnel, decode};

/// Where the truth and this decoder part for a reason: file, how many lines of the comparison, why.
const EXCEPTIONS: &[(&str, usize, &str)] = &[
    (
        "bigtcp_v6_vxlan",
        3,
        "a BIG TCP frame of 80,156 bytes in VXLAN: tshark 4.0 takes its IPv6 payload length of 0 literally and reads no \
         UDP header, and so nothing inside",
    ),
    (
        "malformed_mpls6in6",
        10,
        "fuzzed: tshark takes IPv4 headers of 28 to 44 bytes in packets of 20 to 38 for packets, one of them for a \
         fragment; a header that says it is longer than its packet is counted as ip_header_length here",
    ),
];

/// Protocol and unordered endpoints.
type Key = (i64, String, i64, String, i64);
/// Packets and IP bytes, from the lower endpoint and from the higher one.
type Counts = [i64; 4];

/// What a file holds, told the same way by tshark and by us.
#[derive(Default)]
struct Summary {
    flows: BTreeMap<Key, Counts>,
    /// Fragments, and those that are not the first.
    fragments: [i64; 2],
    /// Packets with an IP header inside another one.
    tunnelled: i64,
    /// Frames in which no IP header was found.
    without_ip: i64,
    /// Packets by their first two VLAN ids.
    vlans: BTreeMap<(i64, i64), i64>,
}

impl Summary {
    fn add(&mut self, proto: i64, a: (String, i64), b: (String, i64), [ab, ba, ab_bytes, ba_bytes]: Counts) {
        let (key, counts) = if a <= b {
            ((proto, a.0, a.1, b.0, b.1), [ab, ba, ab_bytes, ba_bytes])
        } else {
            ((proto, b.0, b.1, a.0, a.1), [ba, ab, ba_bytes, ab_bytes])
        };
        for (sum, n) in self.flows.entry(key).or_default().iter_mut().zip(counts) {
            *sum += n;
        }
    }

    fn of_truth(truth: &Value) -> Summary {
        let mut summary = Summary::default();
        let inner = truth["flows_inner"].as_array().or_else(|| truth["flows_outer"].as_array()).expect("flows");
        let n = |f: &Value, name: &str| f[name].as_i64().unwrap_or_else(|| panic!("{name} in {f}"));
        for f in inner {
            let end = |ip: &str, port: &str| (f[ip].as_str().expect("an address").to_owned(), n(f, port));
            let counts = ["pkts_ab", "pkts_ba", "ip_bytes_ab", "ip_bytes_ba"].map(|name| n(f, name));
            summary.add(n(f, "proto"), end("a", "port_a"), end("b", "port_b"), counts);
        }
        let fragments = &truth["fragments_inner"];
        summary.fragments = [n(fragments, "packets"), n(fragments, "non_first")];
        for (depth, packets) in truth["ip_depth"].as_object().expect("ip_depth") {
            let packets = packets.as_i64().expect("packets");
            match depth.as_str() {
                "0" => summary.without_ip = packets,
                "1" => {}
                _ => summary.tunnelled += packets,
            }
        }
        for (stack, packets) in truth["vlan_id_stacks"].as_object().expect("vlan_id_stacks") {
            let mut ids = stack.split(',').map(|id| id.parse().expect("a VLAN id"));
            let ids = (ids.next().unwrap_or(0), ids.next().unwrap_or(0));
            *summary.vlans.entry(ids).or_default() += packets.as_i64().expect("packets");
        }
        summary
    }

    fn of_packets(packets: &[Packet]) -> Summary {
        let mut summary = Summary::default();
        for p in packets {
            let frame = Frame { data: &p.data, wire_len: p.wire_len, ts: Nanos(p.ts), link: p.link, tap: TAP };
            match decode(&frame, &Limits::default()) {
                Ok(meta) => summary.packet(&meta, &frame),
                Err(_) => summary.without_ip += 1,
            }
        }
        summary
    }

    fn packet(&mut self, meta: &PacketMeta, frame: &Frame<'_>) {
        let FlowKey { lo, hi, lo_port, hi_port, proto, vlan, vlan_inner, tunnel, .. } = meta.key;
        let (lo, hi) = ((lo.to_string(), i64::from(lo_port)), (hi.to_string(), i64::from(hi_port)));
        let bytes = i64::from(meta.ip_bytes);
        let counts = match meta.direction {
            Direction::LoToHi => [1, 0, bytes, 0],
            Direction::HiToLo => [0, 1, 0, bytes],
        };
        self.add(i64::from(proto), lo, hi, counts);
        self.fragments[0] += i64::from(meta.fragment);
        self.fragments[1] += i64::from(meta.fragment_offset > 0);
        self.tunnelled += i64::from(tunnel != Tunnel::None);
        if (vlan, vlan_inner) != (0, 0) {
            *self.vlans.entry((vlan.into(), vlan_inner.into())).or_default() += 1;
        }
        assert_eq!(meta.fragment, meta.more_fragments || meta.fragment_offset > 0);
        assert!(meta.payload(frame).len() <= meta.payload_len as usize);
    }
}

/// What differs, a line each. VLAN ids of `got` are of IP packets only, those of `want` of all.
fn differences(want: &Summary, got: &Summary, non_ip: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    for (key, counts) in &want.flows {
        if got.flows.get(key) != Some(counts) {
            lines.push(format!("{key:?}: {:?} instead of {counts:?}", got.flows.get(key)));
        }
    }
    for (key, counts) in got.flows.iter().filter(|(key, _)| !want.flows.contains_key(*key)) {
        lines.push(format!("{key:?}: {counts:?}, not in the truth"));
    }
    for (what, want, got) in [
        ("fragments", want.fragments[0], got.fragments[0]),
        ("later fragments", want.fragments[1], got.fragments[1]),
        ("tunnelled packets", want.tunnelled, got.tunnelled),
        ("frames without IP", want.without_ip, got.without_ip),
    ] {
        if want != got {
            lines.push(format!("{what}: {got} instead of {want}"));
        }
    }
    let tagged_without_ip: i64 = non_ip
        .as_object()
        .expect("non_ip")
        .iter()
        .filter(|(layers, _)| layers.split(':').any(|layer| layer == "vlan"))
        .map(|(_, packets)| packets.as_i64().expect("packets"))
        .sum();
    let (want_tagged, got_tagged): (i64, i64) = (want.vlans.values().sum(), got.vlans.values().sum());
    if want_tagged - tagged_without_ip != got_tagged {
        lines.push(format!("packets with a VLAN: {got_tagged} instead of {want_tagged} - {tagged_without_ip}"));
    }
    for (ids, packets) in &got.vlans {
        if want.vlans.get(ids).is_none_or(|most| packets > most) {
            lines.push(format!("VLAN {ids:?}: {packets} packets, {:?} in the truth", want.vlans.get(ids)));
        }
    }
    lines
}

fn truth(folder: &Path, stem: &str) -> Option<Value> {
    if let Ok(file) = std::fs::File::open(folder.join(format!("{stem}.json.gz"))) {
        let mut json = String::new();
        flate2::read::MultiGzDecoder::new(file).read_to_string(&mut json).ok()?;
        return serde_json::from_str(&json).ok();
    }
    serde_json::from_slice(&std::fs::read(folder.join(format!("{stem}.json"))).ok()?).ok()
}

#[test]
fn every_capture_decodes_to_what_tshark_says() {
    let Some(root) = std::env::var_os("TAPHOUSE_TESTDATA").map(PathBuf::from) else {
        println!("SKIPPED: TAPHOUSE_TESTDATA is not set");
        return;
    };
    // Relative to the workspace, where cargo was called.
    let root = if root.is_relative() { Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(root) } else { root };
    let mut paths: Vec<_> = std::fs::read_dir(root.join("pcap")).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort();
    let (mut equal, mut failed) = (0, Vec::new());
    for path in paths.iter().filter(|p| p.extension().is_some_and(|e| e == "pcap" || e == "pcapng")) {
        let stem = path.file_stem().unwrap().to_str().unwrap();
        let truth = truth(&root.join("truth"), stem).unwrap_or_else(|| panic!("{stem}: no truth file"));
        let mut source = FileSource::open(path, TAP, &FileOptions::default()).unwrap();
        // Broken ends of files are another test's matter.
        let (keep, _) = drain(&mut source, usize::MAX);
        let (want, got) = (Summary::of_truth(&truth), Summary::of_packets(&keep.packets));
        let lines = differences(&want, &got, &truth["non_ip"]);
        match EXCEPTIONS.iter().find(|(name, ..)| *name == stem) {
            Some((_, expected, reason)) if lines.len() == *expected => println!("{stem:32} differs: {reason}"),
            None if lines.is_empty() => {
                equal += 1;
                println!("{stem:32} {:>6} packets, {} flows equal", keep.packets.len(), want.flows.len());
            }
            exception => {
                println!("{stem:32} DIFFERS in {} lines, {exception:?}", lines.len());
                failed.push(format!("{stem}: {} lines:\n  {}", lines.len(), lines.join("\n  ")));
            }
        }
    }
    println!("{equal} captures are equal, {} differ for a reason", EXCEPTIONS.len());
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    assert!(equal > 70, "only {equal} captures were compared");
}
