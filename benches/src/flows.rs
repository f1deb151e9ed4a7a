//! Made-up but realistic flow records, the same for the same seed: what storage and queries are measured with.

use flowtable::{ConnState, EndReason, FlowRecord};
use wire::{Addr, Mac, Nanos, TapId, Tunnel};

/// xorshift64*: reproducible, and no part of the time measured.
#[derive(Debug)]
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

/// When the first flow ends: 2024-05-29 16:00 UTC, a full hour.
pub const FIRST_END: Nanos = Nanos(1_716_998_400_000_000_000);

/// An originator of four flows, whatever else there is (RFC 5737).
pub const RARE: Addr = Addr::v4([192, 0, 2, 77]);

/// An address no flow has.
pub const ABSENT: Addr = Addr::v4([192, 0, 2, 78]);

/// A campus link: 20,000 clients, 200,000 servers, two thirds TCP, a quarter DNS. Flows come in the order of their
/// ends, nearly: `gap` on average lies between two.
#[derive(Debug)]
pub struct Flows {
    random: Random,
    gap: Nanos,
    /// Flows in all.
    count: u64,
    /// Of these, made.
    made: u64,
}

impl Flows {
    /// `count` flows over `count` times `gap`. Four of them are of [`RARE`], in four quarters of the time.
    pub fn new(seed: u64, count: u64, gap: Nanos) -> Flows {
        Flows { random: Random(seed.max(1)), gap, count, made: 0 }
    }

    /// When the last flow has ended, a little more than that.
    pub fn end(&self) -> Nanos {
        Nanos(FIRST_END.0 + (self.count + 2) * self.gap.0)
    }
}

impl Iterator for Flows {
    type Item = FlowRecord;

    fn next(&mut self) -> Option<FlowRecord> {
        if self.made == self.count {
            return None;
        }
        let n = self.made;
        self.made += 1;
        let mut flow = record(&mut self.random, n, self.gap);
        if n % (self.count / 4).max(1) == self.count / 8 {
            flow.src_ip = RARE;
        }
        Some(flow)
    }
}

fn record(r: &mut Random, n: u64, gap: Nanos) -> FlowRecord {
    let end = Nanos(FIRST_END.0 + n * gap.0 + r.below(2 * gap.0));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_flows_and_four_of_the_rare_address() {
        let flows: Vec<FlowRecord> = Flows::new(7, 10_000, Nanos(200_000)).collect();
        assert_eq!(flows, Flows::new(7, 10_000, Nanos(200_000)).collect::<Vec<_>>());
        assert_ne!(flows, Flows::new(8, 10_000, Nanos(200_000)).collect::<Vec<_>>());
        let of = |address| flows.iter().filter(|f| f.src_ip == address || f.dst_ip == address).count();
        assert_eq!((flows.len(), of(RARE), of(ABSENT)), (10_000, 4, 0));
        let ends = flows.iter().map(|f| f.end);
        assert!(
            ends.clone().min() >= Some(FIRST_END) && ends.max() < Some(Flows::new(7, 10_000, Nanos(200_000)).end())
        );
    }
}
