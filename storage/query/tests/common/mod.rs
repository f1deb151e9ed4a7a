//! Random flows in a real store, and the plain list of the same flows to compare answers with.
#![allow(dead_code, unreachable_pub, reason = "shared by test binaries, each of which uses a part of it")]

use flowtable::{ConnState, EndReason, FlowRecord};
use query::{Engine, FlowSource, QueryLimits, QueryStream};
use storage::{Store, StoreOptions};
use tempfile::TempDir;
use wire::{Addr, Mac, Nanos, TapId, Tunnel};

/// 2026-01-01T00:00:00Z, µs.
pub const T0: i64 = 1_767_225_600_000_000;
pub const SECOND: i64 = 1_000_000;
pub const HOUR: i64 = 3600 * SECOND;

pub const ADDRS: [&str; 8] = [
    "10.0.0.1",
    "10.0.0.2",
    "10.1.2.3",
    "192.168.1.1",
    "192.168.1.77",
    "2001:db8::1",
    "2001:db8:0:1::99",
    "fe80::1234:5678:9abc:def0",
];
pub const PORTS: [u16; 6] = [0, 53, 80, 443, 8080, 51_234];
pub const TAPS: [&str; 3] = ["core", "dmz", "lab"];

/// xorshift64*: a seed gives the same numbers everywhere.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 16) % n
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

pub fn addr(text: &str) -> Addr {
    text.parse().unwrap()
}

pub fn mac(last: u8) -> Mac {
    Mac([0x02, 0, 0, 0, 0, last])
}

/// A flow that ends at `end` µs.
pub fn record(rng: &mut Rng, flow_id: u64, end: i64) -> FlowRecord {
    let dur = rng.below(600 * SECOND as u64) as i64;
    let proto = rng.pick(&[1, 6, 6, 17]);
    let tcp = proto == 6;
    FlowRecord {
        flow_id,
        start: Nanos((end - dur) as u64 * 1000),
        end: Nanos(end as u64 * 1000),
        src_ip: addr(rng.pick(&ADDRS)),
        dst_ip: addr(rng.pick(&ADDRS)),
        src_port: rng.pick(&PORTS),
        dst_port: rng.pick(&PORTS),
        proto,
        part: rng.below(3) as u16,
        tap: TapId(rng.below(TAPS.len() as u64) as u16),
        vlan: rng.pick(&[0, 0, 7]),
        vlan_inner: 0,
        tunnel: rng.pick(&[Tunnel::None, Tunnel::None, Tunnel::Vxlan]),
        tunnel_id: 0,
        src_mac: (rng.below(3) > 0).then(|| mac(rng.below(4) as u8)),
        dst_mac: None,
        icmp: (proto == 1).then_some((8, 0)),
        pkts_o: 1 + rng.below(100),
        pkts_r: rng.below(100),
        bytes_o: rng.below(100_000),
        bytes_r: rng.below(100_000),
        flags_o: 0,
        flags_r: 0,
        conn_state: tcp.then(|| rng.pick(&[ConnState::SF, ConnState::S0])),
        end_reason: rng.pick(&[EndReason::Idle, EndReason::Closed]),
        rtt_us: (tcp && rng.below(2) == 0).then(|| rng.below(50_000) as u32),
        rtt_srv_us: None,
        rtt_cli_us: None,
        retrans_o: 0,
        retrans_r: 0,
        ooo_o: 0,
        ooo_r: 0,
        lost_o: 0,
        lost_r: 0,
        zwin_o: 0,
        zwin_r: 0,
        ttl_o: 64,
        ttl_r: 0,
        dscp: 0,
        ..FlowRecord::default()
    }
}

/// A store under a temporary folder, and all that was put into it.
pub struct Flows {
    pub store: Store,
    pub rows: Vec<FlowRecord>,
    pub rng: Rng,
    pub dir: TempDir,
}

impl Flows {
    pub fn new(seed: u64) -> Flows {
        let dir = TempDir::new().unwrap();
        // A name that needs escaping wherever paths become URLs.
        let options = StoreOptions::new(dir.path().join("flows of 100%41 ü"), TAPS.map(str::to_owned).to_vec());
        Flows { store: Store::open(options).unwrap(), rows: Vec::new(), rng: Rng(seed), dir }
    }

    /// Adds rows that end in `[from, to)` µs.
    pub fn add(&mut self, count: usize, from: i64, to: i64) {
        for _ in 0..count {
            let end = from + self.rng.below((to - from) as u64) as i64;
            // Large ids, as hashes are.
            let id = (self.rows.len() as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let row = record(&mut self.rng, id, end);
            self.rows.push(row);
            self.store.append(&[row], &[]).unwrap();
        }
    }

    /// Five segments, an hour each, and rows of a sixth hour that are in none.
    pub fn sample(seed: u64) -> Flows {
        let mut flows = Flows::new(seed);
        for hour in 0..5 {
            flows.add(400, T0 + hour * HOUR, T0 + (hour + 1) * HOUR);
            flows.store.flush().unwrap();
        }
        flows.add(300, T0 + 5 * HOUR, T0 + 6 * HOUR);
        flows
    }

    pub fn engine(&self) -> Engine {
        self.engine_with(QueryLimits::default())
    }

    pub fn engine_with(&self, limits: QueryLimits) -> Engine {
        Engine::new(self.store.reader(), limits).unwrap()
    }
}

/// Waits for a future without a runtime of its own: the engine has its threads.
pub fn wait<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// The answer as lines of CSV, header first.
pub fn csv(stream: QueryStream) -> Vec<String> {
    let mut out = Vec::new();
    let mut renderer =
        query::render::Renderer::new(query::render::OutputFormat::Csv, &stream.schema(), &mut out).unwrap();
    for batch in wait(stream.collect_all()).unwrap() {
        renderer.write(&batch).unwrap();
    }
    renderer.finish().unwrap();
    String::from_utf8(out).unwrap().lines().map(str::to_owned).collect()
}

/// The lines of a SQL query's answer without the header.
pub fn sql(engine: &Engine, text: &str) -> Vec<String> {
    let stream = wait(engine.sql(text)).unwrap_or_else(|e| panic!("{text}: {e}"));
    csv(stream).split_off(1)
}

/// The one value of a query's answer.
pub fn one(engine: &Engine, text: &str) -> String {
    let lines = sql(engine, text);
    assert_eq!(lines.len(), 1, "{text}: {lines:?}");
    lines.into_iter().next().unwrap()
}

pub fn sql_error(engine: &Engine, text: &str) -> String {
    match wait(async { engine.sql(text).await?.collect_all().await }) {
        Ok(batches) => panic!("{text} was answered: {batches:?}"),
        Err(error) => error.to_string(),
    }
}

/// A source that fails.
pub struct Broken;

impl FlowSource for Broken {
    fn snapshot_of(&self, _: storage::Table) -> Result<storage::Snapshot, storage::StorageError> {
        Err(storage::StorageError::NoSuchFolder { dir: "nowhere".into() })
    }
}
