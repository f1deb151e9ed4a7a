//! Names in captures from elsewhere against what tshark read in them. They are not in the repository:
//! `TAPHOUSE_TESTDATA` names the folder.

use capture::{BatchHandler, FileOptions, FileSource, Polled, Source};
use hints::{App, DnsRecord, Hint, HintSink, InspectLimits, Inspector, Payload, Progress};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Read;
use std::path::{Path, PathBuf};
use wire::{Direction, FlowKey, Frame, Limits, Nanos, TapId, proto};

/// Where names differ, and why.
struct Exception {
    file: &'static str,
    field: &'static str,
    names: Which,
    reason: &'static str,
}

enum Which {
    /// Whatever differs in the file.
    Any,
    /// Those that begin so, missing here or there.
    These(&'static [&'static str]),
}
use Which::{Any, These};

const EXCEPTIONS: &[Exception] = &[
    Exception {
        file: "gtp_frag",
        field: "http_hosts",
        names: Any,
        reason: "the datagram of the tunnel is in fragments, which are not put together: its request is cut",
    },
    Exception { file: "sctp_www", field: "http_hosts", names: Any, reason: "payloads of SCTP are not inspected" },
    Exception {
        file: "lab_small_snap128",
        field: "dns_query_names",
        names: These(&["version.bind"]),
        reason: "a port scanner asks over an odd port; tshark reads DNS on its own ports",
    },
    Exception {
        file: "dns_tunnel_iodine",
        field: "dns_query_names",
        names: These(&["1udah82", "1yebk82"]),
        reason: "tshark takes bytes 0xf8 to 0xfd as the start of longer UTF-8 sequences",
    },
    Exception {
        file: "fuzz_2006",
        field: "dns_query_names",
        names: These(&[
            "<Unknown extended label>",
            "EFEDEJFPEEEPENEBEJEOCACACACACABM",
            "_sip.]udp.sip.cybercity.dk",
            "_sip._udp.sip.cybercity.dk",
            "_sip._udp.sip.cybescity.dk",
            "_sip._udp.sip.cy\u{fffd}ercity.dk",
            "_sip._udp.sip.syberTity.dk",
        ]),
        reason: "flipped bits: labels of RFC 2673, other ports, headers that contradict their length",
    },
];

#[derive(Default)]
struct Names {
    sni: BTreeSet<String>,
    hosts: BTreeSet<String>,
    questions: BTreeMap<String, u64>,
}

/// One flow: where it stands, and who sent its first packet.
struct Flow {
    progress: Progress,
    originator: Direction,
    id: u64,
}

struct Reader {
    flows: HashMap<FlowKey, Flow>,
    inspector: Inspector,
    names: Names,
    clock: Nanos,
    flow_ids: u64,
}

impl HintSink for Names {
    fn hint(&mut self, hint: &Hint<'_>) {
        let set = match hint.app {
            App::Tls | App::Quic => &mut self.sni,
            App::Http | App::Ssdp => &mut self.hosts,
            _ => return,
        };
        if !hint.name.is_empty() {
            set.insert(hint.name.to_owned());
        }
    }

    fn dns(&mut self, record: &DnsRecord, text: &[u8]) {
        let name = std::str::from_utf8(&text[..usize::from(record.question_len)]).expect("text");
        if record.has_query {
            *self.questions.entry(name.to_owned()).or_default() += 1;
        }
    }
}

impl BatchHandler for Reader {
    fn batch(&mut self, frames: &[Frame<'_>]) {
        for frame in frames {
            let Ok(meta) = wire::decode(frame, &Limits::default()) else { continue };
            self.clock = Nanos(self.clock.0.max(meta.ts.0));
            self.inspector.advance(self.clock, &mut self.names);
            let key = meta.key;
            self.flow_ids += 1;
            let fresh = Flow { progress: Progress::default(), originator: meta.direction, id: self.flow_ids };
            // A new connection, maybe under the ports of an earlier one.
            if meta.has_tcp && meta.flags.is_syn() {
                self.flows.remove(&key);
            }
            let flow = self.flows.entry(key).or_insert(fresh);
            if !flow.progress.wants() || ![proto::TCP, proto::UDP].contains(&key.proto) || meta.payload_len == 0 {
                continue;
            }
            let start = usize::from(meta.payload_at).min(frame.data.len());
            let end = frame.data.len().min(start + meta.payload_len as usize);
            let ((src, src_port), (dst, dst_port)) = match meta.direction {
                Direction::LoToHi => ((key.lo, key.lo_port), (key.hi, key.hi_port)),
                Direction::HiToLo => ((key.hi, key.hi_port), (key.lo, key.lo_port)),
            };
            let payload = Payload {
                bytes: &frame.data[start..end],
                len: meta.payload_len,
                seq: meta.seq,
                missing: 0,
                proto: key.proto,
                src_port,
                dst_port,
                from_originator: meta.direction == flow.originator,
                src,
                dst,
                flow_id: flow.id,
                tap: key.tap,
                vlan: key.vlan,
                ts: meta.ts,
                clock: self.clock,
            };
            self.inspector.inspect(&payload, &mut flow.progress, &mut self.names);
        }
    }

    fn idle(&mut self, _: Nanos) {}
}

fn read(path: &Path) -> Reader {
    let mut source = FileSource::open(path, TapId(0), &FileOptions::default()).expect("a capture");
    let inspector = Inspector::new(InspectLimits::default());
    let mut reader =
        Reader { flows: HashMap::new(), inspector, names: Names::default(), clock: Nanos::ZERO, flow_ids: 0 };
    // A file that is cut short ends in an error, behind the packets it holds.
    while !matches!(source.poll(&mut reader), Ok(Polled::End) | Err(_)) {}
    reader.inspector.finish(&mut reader.names);
    reader
}

#[test]
fn names_are_those_that_tshark_reads() {
    let Some(root) = std::env::var_os("TAPHOUSE_TESTDATA").map(PathBuf::from) else {
        println!("SKIPPED: TAPHOUSE_TESTDATA is not set");
        return;
    };
    // Relative to the workspace, where cargo was called.
    let root = if root.is_relative() { Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(root) } else { root };
    let mut paths: Vec<_> = std::fs::read_dir(root.join("pcap")).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort();
    let mut used = vec![false; EXCEPTIONS.len()];
    let (mut wrong, mut equal) = (Vec::new(), 0);
    for path in paths.iter().filter(|p| p.extension().is_some_and(|e| e == "pcap" || e == "pcapng")) {
        let file = path.file_stem().unwrap().to_str().unwrap();
        let Some(truth) = truth(&root.join("truth"), file) else {
            wrong.push(format!("{file}: no truth file"));
            continue;
        };
        let names = read(path).names;
        // A flow has one name, so of TLS and HTTP the sets are compared; of DNS every question counts.
        let set = |names: BTreeSet<String>| names.into_iter().map(|name| (name, 1)).collect();
        for (field, ours, counted) in [
            ("tls_sni", set(names.sni), false),
            ("http_hosts", set(names.hosts), false),
            ("dns_query_names", names.questions, true),
        ] {
            let theirs = tshark(&truth[field], counted);
            for name in theirs.keys().chain(ours.keys()).collect::<BTreeSet<_>>() {
                let (there, here) = (theirs.get(name).copied(), ours.get(name).copied());
                if there == here {
                    equal += 1;
                    continue;
                }
                let excepted = EXCEPTIONS.iter().position(|e| {
                    e.file == file
                        && e.field == field
                        && match e.names {
                            Any => true,
                            These(names) => names.iter().any(|begin| name.starts_with(begin)),
                        }
                });
                match excepted {
                    Some(index) => used[index] = true,
                    None => wrong.push(format!("{file}: {field} {name:?}: {here:?}, tshark says {there:?}")),
                }
            }
        }
    }
    for (exception, _) in EXCEPTIONS.iter().zip(&used).filter(|(_, used)| !**used) {
        wrong.push(format!("{}: {} has no difference any more: {}", exception.file, exception.field, exception.reason));
    }
    println!("{equal} names are equal");
    assert!(equal > 1000 && wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Names as they are kept here: cut at 255 bytes.
fn tshark(field: &Value, counted: bool) -> BTreeMap<String, u64> {
    let mut names = BTreeMap::new();
    for (name, count) in field.as_object().into_iter().flatten() {
        let cut = name[..name.floor_char_boundary(hints::TEXT_MAX)].to_owned();
        *names.entry(cut).or_default() += if counted { count.as_u64().unwrap() } else { 1 };
    }
    if !counted {
        names.values_mut().for_each(|n| *n = 1);
    }
    names
}

fn truth(folder: &Path, stem: &str) -> Option<Value> {
    if let Ok(file) = std::fs::File::open(folder.join(format!("{stem}.json.gz"))) {
        let mut json = String::new();
        flate2::read::MultiGzDecoder::new(file).read_to_string(&mut json).ok()?;
        return serde_json::from_str(&json).ok();
    }
    serde_json::from_slice(&std::fs::read(folder.join(format!("{stem}.json"))).ok()?).ok()
}
