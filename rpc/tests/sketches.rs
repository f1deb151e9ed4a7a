//! `SketchService` over windows that are fed here, against plain counting of the same flows, which are stored or in progress.

mod common;

use arrow::datatypes::SchemaRef;
use common::Fixture;
use flowtable::{FlowDelta, FlowRecord};
use futures::StreamExt;
use query::render::cell;
use query::{Engine, FlowSource, LiveRows, LiveTable, LiveTableError, QueryLimits};
use rpc::v1::sketch_selector::Window as Asked;
use rpc::v1::{self, TopKRequest};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use storage::{FlowBatchBuilder, Snapshot, StorageError, StoreReader, Table};
use talkers::{Collector, Feed, Kind, Measure, Metric, Size, TaskConfig, WhenBehind};
use tonic::Code;
use wire::{Addr, Direction, FlowKey, Nanos, PacketMeta, TapId};

const SECOND: u64 = 1_000_000_000;
const WINDOW: u64 = 10 * SECOND;
/// Start of the first window.
const EPOCH: u64 = 1_700_000_000 * SECOND;
const TAPS: [&str; 2] = ["core", "edge"];

/// Flows in progress.
#[derive(Clone, Default)]
struct Active(Arc<Mutex<Vec<FlowRecord>>>);

impl LiveTable for Active {
    fn name(&self) -> &'static str {
        "active_flows"
    }

    fn schema(&self) -> SchemaRef {
        storage::flow_schema()
    }

    fn read(&self, rows: &mut LiveRows) -> Result<(), LiveTableError> {
        let flows = self.0.lock().unwrap().clone();
        let mut builder = FlowBatchBuilder::new(&TAPS.map(str::to_owned), flows.len());
        builder.extend(&flows, &[]);
        rows.push(&builder.finish().unwrap())
    }
}

struct Source {
    reader: StoreReader,
    active: Active,
}

impl FlowSource for Source {
    fn snapshot_of(&self, table: Table) -> Result<Snapshot, StorageError> {
        self.reader.snapshot_of(table)
    }

    fn live_tables(&self) -> Vec<Arc<dyn LiveTable>> {
        vec![Arc::new(self.active.clone())]
    }
}

fn tasks() -> Vec<TaskConfig> {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<String>>();
    let task = |name: &str, kind, key: &[&str]| TaskConfig {
        name: name.to_owned(),
        kind,
        metric: Metric::Flows,
        key: names(key),
        elements: Vec::new(),
        measure: None,
        quantiles: Vec::new(),
        lists: Vec::new(),
        size: Size::Memory(1 << 20),
        window: Nanos(WINDOW),
        snapshot_interval: Nanos(SECOND / 10),
        threshold: 0,
        rows_max: 100,
    };
    let all = ["src_ip", "dst_ip", "src_port", "dst_port", "proto", "vlan"];
    vec![
        TaskConfig { metric: Metric::Bytes, ..task("talkers", Kind::HeavyHitters, &all) },
        TaskConfig { metric: Metric::Packets, threshold: 40, ..task("senders", Kind::TopK, &["src_ip"]) },
        task("openers", Kind::HeavyHitters, &["originator", "responder_port"]),
        TaskConfig {
            elements: names(&["responder", "responder_port"]),
            ..task("fan_out", Kind::Spreaders, &["originator"])
        },
        TaskConfig {
            elements: names(&["originator"]),
            size: Size::Error(0.01),
            ..task("hosts", Kind::Cardinality, &[])
        },
        TaskConfig { elements: names(&["responder_port"]), ..task("ports", Kind::Entropy, &[]) },
        TaskConfig {
            measure: Some(Measure::FlowBytes),
            quantiles: vec![0.5, 0.9],
            size: Size::Error(0.01),
            ..task("sizes", Kind::Quantiles, &[])
        },
    ]
}

/// A flow that lasts half a second within a window, from one of 13 hosts, the first of which begin more than others.
fn flow(n: u64, window: u64) -> FlowRecord {
    let mixed = sketches_mix(n << 8 | window);
    let host = |n: u64, net: u8| match n % 4 {
        0 => Addr([0x20, 1, 0xd, 0xb8, 0, net, 0, 0, 0, 0, 0, 0, 0, 0, 0, n as u8]),
        _ => Addr::v4([10, 0, net, n as u8]),
    };
    let start = EPOCH + window * WINDOW + mixed % 90 * SECOND / 10;
    let (pkts_o, pkts_r) = (1 + mixed % 3, mixed % 2);
    FlowRecord {
        flow_id: mixed | 1,
        start: Nanos(start),
        end: Nanos(start + SECOND / 2),
        src_ip: host((mixed >> 8) % 13 * ((mixed >> 16) % 13) / 12, 1),
        dst_ip: host((mixed >> 24) % 7, 2),
        src_port: 40_000 + (mixed >> 32) as u16 % 5,
        dst_port: [53, 443, 8080][(mixed >> 36) as usize % 3],
        proto: if mixed.is_multiple_of(3) { 17 } else { 6 },
        vlan: if mixed.is_multiple_of(5) { 7 } else { 0 },
        tap: TapId((n % 2) as u16),
        pkts_o,
        pkts_r,
        bytes_o: pkts_o * (40 + (mixed >> 40) % 1400),
        bytes_r: pkts_r * 99,
        ..common::record(1)
    }
}

/// SplitMix64's last step.
fn sketches_mix(n: u64) -> u64 {
    let mut z = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn flows(window: u64) -> Vec<FlowRecord> {
    (0..400 + 100 * window).map(|n| flow(n, window)).collect()
}

/// A server over three windows, the third of which is being filled by flows in progress.
struct World {
    fixture: Fixture,
    /// One for each tap.
    feeds: Vec<Feed>,
    collector: Collector,
    active: Active,
}

impl World {
    /// With `windows` begun.
    async fn new(windows: u64) -> World {
        let taps = TAPS.map(str::to_owned);
        let (feeds, collector, board) = talkers::start(tasks(), &taps, &[0, 1], 1 << 30, 7, WhenBehind::GoOn).unwrap();
        let stored: Vec<FlowRecord> = (0..windows.saturating_sub(1)).flat_map(flows).collect();
        let active = Active::default();
        let of_source = active.clone();
        let fixture = Fixture::with(&stored, 1 << 20, Some(board), |reader| {
            Engine::new(Source { reader, active: of_source }, QueryLimits::default()).unwrap()
        })
        .await;
        let mut world = World { fixture, feeds, collector, active };
        for window in 0..windows {
            world.begin(window);
            world.feed(&flows(window));
        }
        if windows > 0 {
            *world.active.0.lock().unwrap() = flows(windows - 1);
        }
        world
    }

    /// Time comes to a window.
    fn begin(&mut self, window: u64) {
        for feed in &mut self.feeds {
            let clock = Nanos(EPOCH + window * WINDOW);
            assert!(feed.is_due(clock));
            feed.turn(clock);
            // What flows have sent is told at once here.
            feed.swept();
        }
        self.collector.poll().unwrap();
    }

    fn feed(&mut self, flows: &[FlowRecord]) {
        for record in flows {
            let feed = &mut self.feeds[usize::from(record.tap.0)];
            let forth = packet(record, true, record.bytes_o.checked_div(record.pkts_o).unwrap_or(0));
            let back = packet(record, false, record.bytes_r.checked_div(record.pkts_r).unwrap_or(0));
            feed.packets(&vec![forth; record.pkts_o as usize]);
            feed.packets(&vec![back; record.pkts_r as usize]);
            feed.begun(&forth.key, forth.direction);
            let (pkts, bytes) = ([record.pkts_o as u32, record.pkts_r as u32], [record.bytes_o, record.bytes_r]);
            feed.delta(&FlowDelta { key: &forth.key, originator: forth.direction, pkts, bytes }, false);
            feed.ended(record);
        }
        self.feeds.iter_mut().for_each(Feed::flush);
    }

    async fn top(&mut self, request: TopKRequest) -> Result<v1::TopKResponse, tonic::Status> {
        self.fixture.client.sketches.top_k(request).await.map(tonic::Response::into_inner)
    }

    /// The rows of a proof, by key.
    async fn proved(&mut self, sql: &str) -> Counts {
        let mut answer = self.fixture.client.query(sql).await.unwrap_or_else(|e| panic!("{e}: {sql}"));
        let mut proved = Counts::new();
        while let Some(batch) = answer.next().await.unwrap() {
            for row in 0..batch.num_rows() {
                let mut texts: Vec<String> =
                    batch.columns().iter().map(|column| cell(column, row).to_text().into_owned()).collect();
                let exact = texts.pop().unwrap().parse().unwrap();
                assert!(proved.insert(texts, exact).is_none());
            }
        }
        proved
    }
}

fn packet(record: &FlowRecord, forth: bool, bytes: u64) -> PacketMeta {
    let (originator, responder) = ((record.src_ip, record.src_port), (record.dst_ip, record.dst_port));
    let (lo, hi) = (originator.min(responder), originator.max(responder));
    let from = if forth { originator } else { responder };
    let (proto, vlan, tap) = (record.proto, record.vlan, record.tap);
    PacketMeta {
        key: FlowKey { lo: lo.0, hi: hi.0, lo_port: lo.1, hi_port: hi.1, proto, vlan, tap, ..FlowKey::default() },
        clock: record.start,
        ip_bytes: bytes as u32,
        direction: if from == lo { Direction::LoToHi } else { Direction::HiToLo },
        ..PacketMeta::EMPTY
    }
}

type Counts = BTreeMap<Vec<String>, f64>;

/// What each key sent, or began.
fn truth(flows: &[FlowRecord], by: &[&str], metric: Metric) -> Counts {
    let mut counts = Counts::new();
    let mut seen = BTreeSet::new();
    for r in flows {
        let ends = [(r.src_ip, r.src_port), (r.dst_ip, r.dst_port)];
        let sides = [(ends[0], ends[1], r.bytes_o, r.pkts_o), (ends[1], ends[0], r.bytes_r, r.pkts_r)];
        let value = |name: &str, (from, to): ((Addr, u16), (Addr, u16))| match name {
            "src_ip" | "originator" => from.0.to_string(),
            "dst_ip" | "responder" => to.0.to_string(),
            "src_ip/24/48" => net(from.0),
            "dst_ip/24/48" => net(to.0),
            "src_port" | "originator_port" => from.1.to_string(),
            "dst_port" | "responder_port" => to.1.to_string(),
            "proto" => r.proto.to_string(),
            _ => r.vlan.to_string(),
        };
        let key = |ends| by.iter().map(|name| value(name, ends)).collect::<Vec<String>>();
        match metric {
            Metric::Bytes | Metric::Packets => {
                for (from, to, bytes, packets) in sides.into_iter().filter(|side| side.3 > 0) {
                    let count = if metric == Metric::Bytes { bytes } else { packets };
                    *counts.entry(key((from, to))).or_default() += count as f64;
                }
            }
            Metric::Flows => *counts.entry(key((ends[0], ends[1]))).or_default() += 1.0,
            _ => {
                if seen.insert((key((ends[0], ends[1])), ends[1])) {
                    *counts.entry(key((ends[0], ends[1]))).or_default() += 1.0;
                }
            }
        }
    }
    counts
}

/// An address cut to 24 or 48 bits.
fn net(mut address: Addr) -> String {
    let from = if address.is_v4() { 15 } else { 6 };
    address.0[from..].fill(0);
    address.to_string()
}

fn key(key: Option<&v1::TalkerKey>) -> Vec<String> {
    let k = key.unwrap();
    let numbers = [k.src_port, k.dst_port, k.originator_port, k.responder_port, k.proto, k.vlan];
    let texts = [&k.src_ip, &k.dst_ip, &k.originator, &k.responder].into_iter().flatten().cloned();
    texts.chain(numbers.into_iter().flatten().map(|n| n.to_string())).collect()
}

fn by(fields: &[&str]) -> Vec<String> {
    fields.iter().map(|field| (*field).to_owned()).collect()
}

fn from(task: &str, tap: &str, window: Asked) -> Option<v1::SketchSelector> {
    Some(v1::SketchSelector { task: task.to_owned(), tap: tap.to_owned(), window: window.into() })
}

fn seconds(time: Option<prost_types::Timestamp>) -> u64 {
    time.unwrap().seconds as u64
}

#[tokio::test]
async fn tasks_are_listed() {
    let mut world = World::new(0).await;
    let listed = world.fixture.client.sketches.list_tasks(v1::ListTasksRequest {}).await.unwrap().into_inner().tasks;
    let shown: Vec<_> = listed.iter().map(|t| (&*t.name, &*t.kind, &*t.metric, &*t.key, &*t.elements)).collect();
    assert_eq!(
        shown,
        [
            ("talkers", "heavy_hitters", "bytes", "src_ip,dst_ip,src_port,dst_port,proto,vlan", ""),
            ("senders", "top_k", "packets", "src_ip", ""),
            ("openers", "heavy_hitters", "flows", "originator,responder_port", ""),
            ("fan_out", "spreaders", "distinct", "originator", "responder,responder_port"),
            ("hosts", "cardinality", "distinct", "", "originator"),
            ("ports", "entropy", "entropy", "", "responder_port"),
            ("sizes", "quantiles", "quantile", "", "flow_bytes"),
        ]
    );
    let duration = |seconds, nanos| Some(prost_types::Duration { seconds, nanos });
    assert!(listed.iter().all(|t| t.window == duration(10, 0) && t.snapshot_interval == duration(0, 100_000_000)));
    assert!(listed.iter().all(|t| t.memory_bytes > 0) && listed[1].threshold == 40);
}

/// Every window, tap and part of a key: the sketch, the flows that the server asks for it, and the query anybody can ask.
#[tokio::test]
async fn lists_equal_the_flows_in_every_window() {
    let mut world = World::new(3).await;
    let windows = [(Asked::Last, 1), (Asked::Previous, 0), (Asked::Running, 2), (Asked::Unspecified, 1)];
    let questions: [(&[&str], &str, Metric); 5] = [
        (&["src_ip"], "", Metric::Bytes),
        (&["src_ip", "dst_ip"], "bytes", Metric::Bytes),
        (&["src_port", "dst_port", "proto", "vlan"], "", Metric::Bytes),
        (&["src_ip"], "packets", Metric::Packets),
        (&["originator", "responder_port"], "flows", Metric::Flows),
    ];
    let mut asked_for = 0;
    for (asked, window) in windows {
        for tap in ["", "core", "edge"] {
            let of_tap = |r: &FlowRecord| tap.is_empty() || TAPS[usize::from(r.tap.0)] == tap;
            let flows: Vec<_> = flows(window).into_iter().filter(of_tap).collect();
            for (fields, name, metric) in questions {
                let told = format!("{fields:?} {name} {asked:?} {tap}");
                let wanted = truth(&flows, fields, metric);
                // Queries take their time: every seventh, so that each question, tap and window has its turn.
                asked_for += 1;
                let exact = asked_for % 7 == 0;
                let request = TopKRequest {
                    from: from("", tap, asked),
                    by: by(fields),
                    metric: name.to_owned(),
                    threshold: Some(0),
                    limit: 1_000,
                    exact,
                };
                let answer = world.top(request).await.unwrap_or_else(|e| panic!("{told}: {e}"));
                let place = answer.window.unwrap();
                assert_eq!((&*place.tap, place.running), (tap, asked == Asked::Running));
                assert_eq!(seconds(place.start_time), EPOCH / SECOND + 10 * window);
                assert_eq!(seconds(place.end_time), EPOCH / SECOND + 10 * window + 10);
                let found: Counts = answer
                    .talkers
                    .iter()
                    .map(|talker| {
                        let known = talker.estimated.unwrap();
                        assert_eq!((known.lower, known.upper), (known.estimate, known.estimate), "{told}");
                        assert_eq!(talker.exact, exact.then_some(known.estimate), "{told}");
                        (key(talker.key.as_ref()), known.estimate)
                    })
                    .collect();
                assert_eq!(found, wanted, "{told}");
                assert!(answer.talkers.is_sorted_by_key(|t| -t.estimated.unwrap().estimate), "{told}");
                assert_eq!(answer.total, Some(wanted.values().sum()), "{told}");
                assert_eq!(answer.others.unwrap().estimate, 0.0);
                if !exact {
                    continue;
                }
                let proved = world.proved(&answer.proof_sql).await;
                // Who sent nothing has a row of nothing there.
                assert_eq!(proved.into_iter().filter(|(_, n)| *n > 0.0).collect::<Counts>(), wanted, "{told}");
            }
        }
    }
}

#[tokio::test]
async fn networks_limits_and_thresholds() {
    let mut world = World::new(2).await;
    let nets: [&[&str]; 2] = [&["src_ip/24/48"], &["src_ip/24/48", "dst_ip/24/48"]];
    for fields in nets {
        let request = TopKRequest { by: by(fields), limit: 100, ..Default::default() };
        let answer = world.top(request).await.unwrap();
        let found: Counts =
            answer.talkers.iter().map(|t| (key(t.key.as_ref()), t.estimated.unwrap().estimate)).collect();
        assert_eq!(found, truth(&flows(0), fields, Metric::Bytes), "{fields:?}");
        assert_eq!(answer.proof_sql, "");
    }
    let wanted = truth(&flows(0), &["src_ip"], Metric::Bytes);
    let total: f64 = wanted.values().sum();
    for limit in [1, 3] {
        let request = TopKRequest { by: by(&["src_ip"]), limit, ..Default::default() };
        let answer = world.top(request).await.unwrap();
        assert_eq!(answer.talkers.len(), limit as usize);
        let listed: f64 = answer.talkers.iter().map(|t| t.estimated.unwrap().estimate).sum();
        assert_eq!(answer.others.unwrap().estimate, total - listed);
        let listed: Vec<_> = answer.talkers.iter().map(|t| key(t.key.as_ref())).collect();
        let most = wanted.iter().filter(|(key, _)| !listed.contains(key)).map(|(_, n)| *n).fold(0.0, f64::max);
        assert!(answer.others.unwrap().upper >= most);
    }
    let least = 20_000;
    let request = TopKRequest { by: by(&["src_ip"]), threshold: Some(least), ..Default::default() };
    let listed = world.top(request).await.unwrap().talkers.len();
    assert_eq!(listed, wanted.values().filter(|n| **n >= least as f64).count());
    assert!((1..wanted.len()).contains(&listed), "{wanted:?}");
    // A task has a threshold of its own, which a request may lower.
    let packets = truth(&flows(0), &["src_ip"], Metric::Packets);
    for (threshold, least) in [(None, 40.0), (Some(0), 0.0)] {
        let request =
            TopKRequest { by: by(&["src_ip"]), metric: "packets".to_owned(), threshold, ..Default::default() };
        let listed = world.top(request).await.unwrap().talkers.len();
        assert_eq!(listed, packets.values().filter(|n| **n >= least).count());
    }
}

#[tokio::test]
async fn spreaders_have_bounds_and_a_proof() {
    let mut world = World::new(3).await;
    let request =
        TopKRequest { by: by(&["originator"]), metric: "distinct".to_owned(), exact: true, ..Default::default() };
    let answer = world.top(request).await.unwrap();
    let wanted = truth(&flows(1), &["originator"], Metric::Distinct);
    assert_eq!((answer.talkers.len(), answer.total), (wanted.len(), None));
    let mut within = 0;
    for talker in &answer.talkers {
        let exact = wanted[&key(talker.key.as_ref())];
        assert_eq!(talker.exact, Some(exact));
        let known = talker.estimated.unwrap();
        within += usize::from(known.lower <= exact && exact <= known.upper);
    }
    assert!(within * 100 >= wanted.len() * 90, "{within} of {}", wanted.len());
    assert_eq!(world.proved(&answer.proof_sql).await, wanted);
}

#[tokio::test]
async fn a_key_that_is_held_and_one_that_is_not() {
    let mut world = World::new(2).await;
    let wanted = truth(&flows(0), &["src_ip", "dst_port"], Metric::Bytes);
    let ask = |src_ip: &str, dst_port: u32| v1::EstimateKeyRequest {
        by: by(&["src_ip", "dst_port"]),
        key: Some(v1::TalkerKey { src_ip: Some(src_ip.to_owned()), dst_port: Some(dst_port), ..Default::default() }),
        exact: true,
        ..Default::default()
    };
    for (texts, bytes) in wanted.iter().step_by(9) {
        let request = ask(&texts[0], texts[1].parse().unwrap());
        let answer = world.fixture.client.sketches.estimate_key(request).await.unwrap().into_inner();
        let talker = answer.talker.unwrap();
        assert_eq!((key(talker.key.as_ref()), talker.exact), (texts.clone(), Some(*bytes)));
        assert_eq!(talker.estimated.unwrap(), v1::Estimated { estimate: *bytes, lower: *bytes, upper: *bytes });
        assert_eq!(world.proved(&answer.proof_sql).await, Counts::from([(texts.clone(), *bytes)]));
    }
    let answer = world.fixture.client.sketches.estimate_key(ask("192.0.2.77", 1)).await.unwrap().into_inner();
    let talker = answer.talker.unwrap();
    assert_eq!((talker.estimated.unwrap(), talker.exact), (v1::Estimated::default(), Some(0.0)));
    // Prefixes cut what is given; who is not held by a spreader may have had anything.
    let request =
        v1::EstimateKeyRequest { by: by(&["src_ip/24/48", "dst_port"]), exact: false, ..ask("10.0.1.77", 443) };
    let known = world.fixture.client.sketches.estimate_key(request).await.unwrap().into_inner().talker.unwrap();
    let wanted = truth(&flows(0), &["src_ip/24/48", "dst_port"], Metric::Bytes);
    assert_eq!(known.estimated.unwrap().estimate, wanted[&vec!["10.0.1.0".to_owned(), "443".to_owned()]]);
    let request = v1::EstimateKeyRequest {
        by: by(&["originator"]),
        metric: "distinct".to_owned(),
        key: Some(v1::TalkerKey { originator: Some("192.0.2.77".to_owned()), ..Default::default() }),
        ..Default::default()
    };
    let known = world.fixture.client.sketches.estimate_key(request).await.unwrap().into_inner().talker.unwrap();
    assert_eq!(known.estimated.unwrap(), v1::Estimated::default(), "there was room for every key");
}

#[tokio::test]
async fn changers_are_those_that_changed_most() {
    let mut world = World::new(3).await;
    for (asked, [before, after]) in [(Asked::Last, [0, 1]), (Asked::Unspecified, [0, 1]), (Asked::Running, [1, 2])] {
        let [then, now] = [before, after].map(|window| truth(&flows(window), &["src_ip"], Metric::Bytes));
        let request = v1::ListChangersRequest {
            from: from("", "", asked),
            by: by(&["src_ip"]),
            limit: 1_000,
            ..Default::default()
        };
        let answer = world.fixture.client.sketches.list_changers(request).await.unwrap().into_inner();
        assert_eq!(seconds(answer.before.unwrap().start_time), EPOCH / SECOND + 10 * before);
        assert_eq!(seconds(answer.after.unwrap().start_time), EPOCH / SECOND + 10 * after);
        let all: BTreeSet<_> = then.keys().chain(now.keys()).collect();
        for changer in &answer.changers {
            let key = key(changer.key.as_ref());
            let [then, now] = [&then, &now].map(|counts| counts.get(&key).copied().unwrap_or(0.0));
            assert_eq!(changer.before.unwrap().estimate, then);
            assert_eq!(changer.after.unwrap().estimate, now);
            let change = changer.change.unwrap();
            assert_eq!((change.estimate, change.lower, change.upper), (now - then, now - then, now - then));
        }
        assert!(answer.changers.len() <= all.len() && answer.changers.len() + 1 >= all.len());
        assert!(answer.changers.is_sorted_by_key(|c| -c.change.unwrap().estimate.abs()));
    }
}

#[tokio::test]
async fn windows_as_a_whole() {
    let mut world = World::new(3).await;
    let flows = flows(1);
    let sketches = &mut world.fixture.client.sketches;
    let answer = sketches.estimate_cardinality(v1::EstimateCardinalityRequest::default()).await.unwrap().into_inner();
    let originators = flows.iter().map(|r| r.src_ip).collect::<BTreeSet<_>>().len() as f64;
    let known = answer.distinct.unwrap();
    assert!(known.lower <= originators && originators <= known.upper, "{known:?} {originators}");
    assert_eq!((&*answer.elements, &*answer.window.unwrap().task), ("originator", "hosts"));

    let answer = sketches.estimate_entropy(v1::EstimateEntropyRequest::default()).await.unwrap().into_inner();
    let ports = truth(&flows, &["responder_port"], Metric::Flows);
    let shares: Vec<f64> = ports.values().map(|n| n / flows.len() as f64).collect();
    let bits: f64 = shares.iter().map(|share| -share * share.log2()).sum();
    assert!((answer.bits.unwrap().estimate - bits).abs() < 1e-9, "{answer:?} {bits}");
    assert!(
        (answer.evenness - bits / (shares.len() as f64).log2()).abs() < 1e-9 && answer.elements == "responder_port"
    );

    let mut sizes: Vec<u64> = flows.iter().map(|r| r.bytes_o + r.bytes_r).collect();
    sizes.sort_unstable();
    for quantiles in [vec![], vec![0.0, 0.25, 1.0]] {
        let request = v1::EstimateQuantilesRequest { from: None, quantiles: quantiles.clone() };
        let answer = sketches.estimate_quantiles(request).await.unwrap().into_inner();
        assert_eq!((answer.count, &*answer.elements), (flows.len() as u64, "flow_bytes"));
        let asked = if quantiles.is_empty() { vec![0.5, 0.9] } else { quantiles };
        assert_eq!(answer.quantiles.iter().map(|q| q.quantile).collect::<Vec<_>>(), asked);
        for q in &answer.quantiles {
            let exact = sizes[(q.quantile * (sizes.len() - 1) as f64).floor() as usize] as f64;
            let known = q.value.unwrap();
            assert!(known.lower <= exact * 1.0001 && exact <= known.upper * 1.0001, "{q:?} {exact}");
        }
    }
}

/// The next message of a stream within a time that is far too long.
async fn next(stream: &mut tonic::Streaming<v1::TopKResponse>) -> Result<v1::TopKResponse, tonic::Status> {
    let next = tokio::time::timeout(Duration::from_secs(20), stream.next()).await;
    next.expect("a message").expect("no end")
}

fn place(answer: &v1::TopKResponse) -> (u64, bool) {
    let window = answer.window.as_ref().unwrap();
    ((seconds(window.start_time) - EPOCH / SECOND) / 10, window.running)
}

#[tokio::test]
async fn a_watcher_gets_snapshots_and_each_window_once() {
    let mut world = World::new(2).await;
    let request = TopKRequest { by: by(&["src_ip"]), limit: 5, ..Default::default() };
    let mut watched = world.fixture.client.sketches.watch_top_k(request.clone()).await.unwrap().into_inner();
    let only = |asked| TopKRequest { from: from("", "", asked), ..request.clone() };
    let mut over = world.fixture.client.sketches.watch_top_k(only(Asked::Last)).await.unwrap().into_inner();
    let mut running = world.fixture.client.sketches.watch_top_k(only(Asked::Running)).await.unwrap().into_inner();
    let first = next(&mut watched).await.unwrap();
    assert_eq!((place(&first), first.talkers.len()), ((0, false), 5), "what is over already");
    let total = |flows: &[FlowRecord]| truth(flows, &["src_ip"], Metric::Bytes).values().sum::<f64>();
    for window in 1..4 {
        // What is being filled grows.
        let snapshot = next(&mut watched).await.unwrap();
        assert_eq!((place(&snapshot), snapshot.total), ((window, true), Some(total(&flows(window)))));
        let more: Vec<_> = (10_000..10_050).map(|n| flow(n, window)).collect();
        world.feed(&more);
        let grown = total(&flows(window)) + total(&more);
        while next(&mut watched).await.unwrap().total != Some(grown) {}
        world.begin(window + 1);
        let last = loop {
            let answer = next(&mut watched).await.unwrap();
            if !answer.window.as_ref().unwrap().running {
                break answer;
            }
        };
        assert_eq!((place(&last), last.total), ((window, false), Some(grown)), "once, when it is over");
        world.feed(&flows(window + 1));
        // One snapshot may have come before these were fed.
        while next(&mut watched).await.unwrap().total != Some(total(&flows(window + 1))) {}
    }
    for window in 0..4 {
        assert_eq!(place(&next(&mut over).await.unwrap()), (window, false));
    }
    while place(&next(&mut running).await.unwrap()) != (4, true) {}

    world.fixture.begin_stop();
    for mut stream in [watched, over, running] {
        let end = loop {
            match next(&mut stream).await {
                Ok(_) => {}
                Err(status) => break status,
            }
        };
        assert_eq!(end.code(), Code::Unavailable, "{end}");
    }
    world.fixture.stopped().await;
}

/// Two windows that end between two looks are both told of.
#[tokio::test]
async fn a_watcher_misses_no_window_that_ends_with_another() {
    let mut world = World::new(1).await;
    let request = TopKRequest { by: by(&["src_ip"]), from: from("", "", Asked::Last), ..Default::default() };
    let mut watched = world.fixture.client.sketches.watch_top_k(request).await.unwrap().into_inner();
    world.begin(1);
    assert_eq!(place(&next(&mut watched).await.unwrap()), (0, false));
    for window in [1, 2] {
        world.feed(&flows(window));
        world.begin(window + 1);
    }
    assert_eq!(place(&next(&mut watched).await.unwrap()), (1, false));
    assert_eq!(place(&next(&mut watched).await.unwrap()), (2, false));
}

#[tokio::test]
async fn before_the_first_packet_there_is_no_window() {
    let mut world = World::new(0).await;
    for asked in [Asked::Unspecified, Asked::Last, Asked::Previous, Asked::Running] {
        let request = TopKRequest { by: by(&["src_ip"]), from: from("", "", asked), ..Default::default() };
        let status = world.top(request).await.unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
        assert!(status.message().contains("'talkers'"), "{status}");
    }
    // What is wrong is told all the same.
    let status = world.top(TopKRequest { by: by(&["src"]), ..Default::default() }).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    let request = v1::ListChangersRequest { by: by(&["src_ip"]), ..Default::default() };
    let status = world.fixture.client.sketches.list_changers(request).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    // A watcher waits.
    let request = TopKRequest { by: by(&["src_ip"]), ..Default::default() };
    let mut watched = world.fixture.client.sketches.watch_top_k(request).await.unwrap().into_inner();
    world.begin(0);
    world.feed(&flows(0));
    assert_eq!(place(&next(&mut watched).await.unwrap()), (0, true));
    let request = TopKRequest { by: by(&["src_ip"]), from: from("", "", Asked::Last), ..Default::default() };
    let status = world.top(request).await.unwrap_err();
    assert!(status.code() == Code::FailedPrecondition && status.message().contains("10 s of packet time"), "{status}");
}

#[tokio::test]
async fn a_server_without_sketches_does_not_have_the_service() {
    let mut fixture = Fixture::start(&[]).await;
    let status = fixture.client.sketches.list_tasks(v1::ListTasksRequest {}).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
}

#[tokio::test]
async fn what_is_wrong_is_named_with_its_value_and_what_is_allowed() {
    let mut world = World::new(3).await;
    let ip = || TopKRequest { by: by(&["src_ip"]), ..Default::default() };
    let sized = |metric: &str, fields: &[&str]| TopKRequest { metric: metric.to_owned(), by: by(fields), ..ip() };
    let selected = |task: &str, tap: &str| TopKRequest { from: from(task, tap, Asked::Last), ..ip() };
    let numbered = v1::SketchSelector { window: 9, ..Default::default() };
    let cases: Vec<(TopKRequest, &[&str])> = vec![
        (sized("", &[]), &["by has 0 fields", "1 to 16"]),
        (sized("", &["src"]), &["by is 'src'", "src_ip, dst_ip"]),
        (sized("", &["src_ip,dst_ip"]), &["by is 'src_ip,dst_ip'"]),
        (sized("", &["src_ip", "src_ip"]), &["by is 'src_ip'", "once"]),
        (sized("", &["src_ip/40/40"]), &["by is 'src_ip/40/40'", "/0 to /32"]),
        (sized("", &["src_ip", "responder"]), &["by is 'src_ip and responder'", "either"]),
        (sized("", &["responder"]), &["by responder", "openers (flows by originator,responder_port)"]),
        (sized("octets", &["src_ip"]), &["metric is 'octets'", "bytes, packets, flows, distinct"]),
        (sized("quantile", &["src_ip"]), &["metric is 'quantile'", "bytes, packets, flows, distinct"]),
        (sized("flows", &["src_ip"]), &["no task counts flows by src_ip", "talkers (bytes by src_ip"]),
        (
            TopKRequest { metric: "packets".to_owned(), ..selected("talkers", "") },
            &["from.task is 'talkers'", "bytes", "packets by src_ip"],
        ),
        (selected("nobody", ""), &["from.task", "'nobody'", "talkers (bytes"]),
        (selected("fan_out", ""), &["from.task is 'fan_out'", "by originator", "by src_ip"]),
        (selected("hosts", ""), &["from.task is 'hosts'", "as a whole", "by src_ip"]),
        (selected("", "nowhere"), &["from.tap is 'nowhere'", "core, edge"]),
        (TopKRequest { from: Some(numbered), ..ip() }, &["from.window is 9", "0", "3"]),
        (TopKRequest { limit: -1, ..ip() }, &["limit is -1", "0", "10000"]),
        (TopKRequest { exact: true, ..sized("", &["src_ip/24"]) }, &["exact", "prefix"]),
    ];
    let check = |status: tonic::Status, words: &[&str]| {
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(words.iter().all(|word| status.message().contains(word)), "{words:?}: {status}");
    };
    for (request, words) in cases {
        let status = world.fixture.client.sketches.watch_top_k(request.clone()).await.unwrap_err();
        check(status, words);
        check(world.top(request).await.unwrap_err(), words);
    }
    let previous = TopKRequest { from: from("", "", Asked::Previous), ..ip() };
    check(world.fixture.client.sketches.watch_top_k(previous).await.unwrap_err(), &["from.window is WINDOW_PREVIOUS"]);

    let keyed = |key: v1::TalkerKey| v1::EstimateKeyRequest {
        by: by(&["src_ip", "proto"]),
        key: Some(v1::TalkerKey { src_ip: Some("10.0.0.1".to_owned()), proto: Some(6), ..key }),
        ..Default::default()
    };
    let of = |key: v1::TalkerKey| v1::EstimateKeyRequest { key: Some(key), ..keyed(v1::TalkerKey::default()) };
    let cases: Vec<(v1::EstimateKeyRequest, &[&str])> = vec![
        (of(v1::TalkerKey::default()), &["key.src_ip has no value"]),
        (v1::EstimateKeyRequest { key: None, ..keyed(v1::TalkerKey::default()) }, &["key.src_ip has no value"]),
        (keyed(v1::TalkerKey { vlan: Some(3), ..Default::default() }), &["key.vlan is 3", "src_ip,proto"]),
        (keyed(v1::TalkerKey { vlan: Some(4_096), ..Default::default() }), &["key.vlan is 4096", "4095"]),
        (
            of(v1::TalkerKey { src_ip: Some("x".to_owned()), ..Default::default() }),
            &["key.src_ip is 'x'", "IP address"],
        ),
        (keyed(v1::TalkerKey { src_port: Some(70_000), ..Default::default() }), &["key.src_port is 70000", "65535"]),
        (
            v1::EstimateKeyRequest { exact: true, by: by(&["src_ip/8", "proto"]), ..keyed(v1::TalkerKey::default()) },
            &["prefix"],
        ),
    ];
    for (request, words) in cases {
        check(world.fixture.client.sketches.estimate_key(request).await.unwrap_err(), words);
    }

    let changers = |metric: &str, field: &str, asked| v1::ListChangersRequest {
        by: by(&[field]),
        metric: metric.to_owned(),
        from: from("", "", asked),
        ..Default::default()
    };
    let cases: Vec<(v1::ListChangersRequest, &[&str])> = vec![
        (changers("", "src_ip", Asked::Previous), &["from.window is WINDOW_PREVIOUS"]),
        (changers("distinct", "originator", Asked::Last), &["'fan_out'", "bytes, packets or flows"]),
        (v1::ListChangersRequest { limit: -7, ..changers("", "src_ip", Asked::Last) }, &["limit is -7"]),
    ];
    for (request, words) in cases {
        check(world.fixture.client.sketches.list_changers(request).await.unwrap_err(), words);
    }

    for (q, shown) in [(2.0, "2"), (-0.1, "-0.1"), (f64::NAN, "NaN")] {
        let request = v1::EstimateQuantilesRequest { from: None, quantiles: vec![0.5, q] };
        let status = world.fixture.client.sketches.estimate_quantiles(request).await.unwrap_err();
        check(status, &[&format!("quantiles has {shown}"), "0 to 1"]);
    }
    let request = v1::EstimateQuantilesRequest { from: None, quantiles: vec![0.5; 1_001] };
    check(world.fixture.client.sketches.estimate_quantiles(request).await.unwrap_err(), &["1001", "1000"]);
    let request = v1::EstimateEntropyRequest { from: from("talkers", "", Asked::Last) };
    let status = world.fixture.client.sketches.estimate_entropy(request).await.unwrap_err();
    check(status, &["from.task is 'talkers'", "any part of", "entropy as a whole"]);
    let request = v1::EstimateCardinalityRequest { from: from("fan_out", "", Asked::Last) };
    let status = world.fixture.client.sketches.estimate_cardinality(request).await.unwrap_err();
    check(status, &["from.task is 'fan_out'", "by originator", "as a whole"]);
}

/// Of all taps together a window is over once it is over at each of them.
#[tokio::test]
async fn a_window_of_all_taps_waits_for_the_slowest() {
    let mut world = World::new(1).await;
    let request =
        |tap: &str| TopKRequest { by: by(&["src_ip"]), from: from("", tap, Asked::Last), ..Default::default() };
    world.feeds[0].turn(Nanos(EPOCH + WINDOW));
    world.feeds[0].swept();
    world.collector.poll().unwrap();
    assert_eq!(world.top(request("")).await.unwrap_err().code(), Code::FailedPrecondition);
    let one = world.top(request(TAPS[0])).await.unwrap().total.unwrap();
    world.feeds[1].turn(Nanos(EPOCH + WINDOW));
    world.feeds[1].swept();
    world.collector.poll().unwrap();
    let other = world.top(request(TAPS[1])).await.unwrap().total.unwrap();
    assert_eq!(world.top(request("")).await.unwrap().total, Some(one + other));
}
