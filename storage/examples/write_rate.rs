//! Writes made-up but realistic flows and prints rows per second and bytes per flow.
//!
//! `cargo run --profile dist -p storage --example write_rate -- [MILLION_ROWS] [DIR] [tuned|compatible]`

use flowtable::{ConnState, EndReason, FlowRecord};
use std::time::Instant;
use storage::{FlowBatchBuilder, SegmentProfile, Store, StoreOptions};
use wire::{Addr, Mac, Nanos, TapId, Tunnel};

/// xorshift64*: reproducible, and no part of the time measured.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
    /// Rank in a population of `n`, few of which make up most (density 1/rank).
    fn rank(&mut self, n: u64) -> u64 {
        ((n as f64).powf(self.unit()) as u64).min(n - 1)
    }
    /// Heavy-tailed count with the given median.
    fn pareto(&mut self, median: f64) -> u64 {
        (median * 0.5 / (1.0 - self.unit()).max(1e-6).powf(0.8)) as u64 + 1
    }
}

/// A campus link: 20,000 clients, 200,000 servers, two thirds TCP, a quarter DNS, 5,000 flows a second.
fn record(r: &mut Random, n: u64) -> FlowRecord {
    let end = Nanos(1_717_000_000_000_000_000 + n * 200_000 + r.below(400_000));
    let kind = r.below(100);
    let (client, server) = (r.rank(20_000), r.rank(200_000));
    let tcp = kind < 65;
    let dns = (65..90).contains(&kind);
    let icmp = kind >= 98;
    let scan = tcp && r.below(12) == 0;
    let pkts = if dns || icmp || scan { 1 } else { r.pareto(12.0).min(1 << 22) };
    let answered = !scan && r.below(50) > 0;
    let rtt = (tcp && !scan).then(|| 300 + (server % 997) as u32 * 40 + r.below(400) as u32);
    let server_mac = Mac([0, 0x1b, 0x21, 0, 0, 1]);
    FlowRecord {
        flow_id: r.next(),
        start: Nanos(end.0 - if dns { 200_000 + r.below(30_000_000) } else { r.pareto(200e6).min(600_000_000_000) }),
        end,
        src_ip: Addr::v4([10, 20, (client >> 8) as u8, client as u8]),
        dst_ip: if dns {
            Addr::v4([10, 0, 0, 53])
        } else {
            Addr::v4((server.wrapping_mul(0x9e37_79b1) as u32).to_be_bytes())
        },
        src_port: if icmp { 0 } else { 32_768 + r.below(28_000) as u16 },
        dst_port: if dns {
            53
        } else if icmp {
            0
        } else {
            [443, 443, 443, 443, 80, 22, 993, 8_080][server as usize % 8]
        },
        proto: if icmp {
            1
        } else if tcp {
            6
        } else {
            17
        },
        part: 0,
        tap: TapId(0),
        vlan: 100 + (client % 8) as u16,
        vlan_inner: 0,
        tunnel: Tunnel::None,
        tunnel_id: 0,
        src_mac: Some(Mac([2, 0, 0, 0, (client >> 8) as u8, client as u8])),
        dst_mac: Some(server_mac),
        icmp: icmp.then_some((8, 0)),
        pkts_o: pkts,
        pkts_r: if answered { pkts + r.below(pkts + 1) } else { 0 },
        bytes_o: pkts * 60 + r.below(pkts * 200 + 40),
        bytes_r: if answered { pkts * 90 + r.below(pkts * 1_200 + 200) } else { 0 },
        flags_o: if scan {
            0x02
        } else if tcp {
            0x1b
        } else {
            0
        },
        flags_r: if tcp && answered { 0x1b } else { 0 },
        conn_state: tcp.then_some(match (scan, answered) {
            (true, _) => ConnState::S0,
            (_, true) if n.is_multiple_of(9) => ConnState::RstO,
            (_, true) => ConnState::SF,
            _ => ConnState::S1,
        }),
        end_reason: if tcp && answered { EndReason::Closed } else { EndReason::Idle },
        rtt_us: rtt,
        rtt_srv_us: rtt.map(|rtt| rtt - rtt / 5),
        rtt_cli_us: rtt.map(|rtt| rtt / 5),
        retrans_o: if tcp && r.below(25) == 0 { r.below(4) as u32 } else { 0 },
        retrans_r: if tcp && r.below(20) == 0 { r.below(6) as u32 } else { 0 },
        ooo_o: 0,
        ooo_r: if tcp && r.below(60) == 0 { 1 } else { 0 },
        lost_o: 0,
        lost_r: 0,
        zwin_o: 0,
        zwin_r: if tcp && r.below(500) == 0 { 1 } else { 0 },
        ttl_o: 64,
        ttl_r: if answered { 40 + (server % 24) as u8 } else { 0 },
        dscp: if server.is_multiple_of(40) { 46 } else { 0 },
        ..FlowRecord::default()
    }
}

/// CPU time of this process.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let ticks: u64 = stat
        .rsplit(')')
        .next()
        .map(|rest| rest.split_whitespace().skip(11).take(2).filter_map(|n| n.parse::<u64>().ok()).sum())
        .unwrap_or(0);
    ticks as f64 / 100.0
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let millions: u64 = args.first().map_or(Ok(4), |arg| arg.parse())?;
    let dir = args.get(1).map_or_else(|| std::env::temp_dir().join("taphouse-write-rate"), |arg| arg.into());
    let profile = match args.get(2).map(String::as_str) {
        Some("compatible") => SegmentProfile::Compatible,
        _ => SegmentProfile::Tuned,
    };
    let mut random = Random(42);
    let rows: Vec<FlowRecord> = (0..1 << 20).map(|n| record(&mut random, n)).collect();

    let since = Instant::now();
    let mut builder = FlowBatchBuilder::new(&["core".into()], 8_192);
    for run in rows.chunks(8_192) {
        builder.extend(run, &[]);
        builder.finish()?;
    }
    println!("columns only: {:.1} ns a row", since.elapsed().as_nanos() as f64 / rows.len() as f64);

    let mut store = Store::open(StoreOptions { profile, ..StoreOptions::new(&dir, vec!["core".into()]) })?;
    let (since, cpu) = (Instant::now(), cpu_seconds());
    for _ in 0..millions {
        for run in rows.chunks(1_024) {
            store.append(run, &[])?;
        }
    }
    store.sync()?;
    let appended = since.elapsed().as_secs_f64();
    store.flush()?;
    let (elapsed, cpu) = (since.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    let counts = store.counts();
    let count = (millions * (1 << 20)) as f64;
    println!(
        "{:.2} Mrows in {elapsed:.2} s ({cpu:.2} CPU s): {:.2} Mrows/s wall, {:.2} Mrows per CPU second",
        count / 1e6,
        count / elapsed / 1e6,
        count / cpu / 1e6
    );
    println!(
        "append took {appended:.2} s, of it waiting for the encoder {:.2} s, syncing {:.2} s ({} syncs)",
        counts.stall_ns as f64 / 1e9,
        counts.sync_ns as f64 / 1e9,
        counts.syncs
    );
    println!(
        "encoding: {:.2} Mrows/s; {:.1} bytes a row in segments, {:.1} in the log",
        count / (counts.encode_ns as f64 / 1e9) / 1e6,
        counts.segment_bytes as f64 / counts.segment_rows as f64,
        counts.wal_bytes as f64 / count
    );
    Ok(())
}
