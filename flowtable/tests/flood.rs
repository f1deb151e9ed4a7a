//! A flood of spoofed flows, far more than there is room for, takes nothing away from the flows that were there before.

use flowtable::{EndReason, FlowRecord, FlowSink, FlowTable, FlowTableConfig};
use wire::{Addr, Direction, FlowKey, Nanos, PacketMeta, TcpFlags, proto};

const REAL: u32 = 1000;
const ROOM: u32 = 8192;
const SPOOFED: u32 = 200_000;

#[derive(Default)]
struct Records(Vec<FlowRecord>);

impl FlowSink for Records {
    fn record(&mut self, record: &FlowRecord, _text: &[u8]) {
        self.0.push(*record);
    }
}

/// Packet `n` of a real connection, from the client if `n` is even.
fn real(flow: u32, n: u32, at: Nanos) -> PacketMeta {
    let flags = [TcpFlags::SYN, TcpFlags::SYN | TcpFlags::ACK, TcpFlags::ACK][n.min(2) as usize];
    PacketMeta {
        key: key(Addr::v4([10, 0, (flow >> 8) as u8, flow as u8]), proto::TCP),
        direction: if n.is_multiple_of(2) { Direction::LoToHi } else { Direction::HiToLo },
        flags: TcpFlags(flags),
        has_tcp: true,
        ..packet(at)
    }
}

/// A flow of one packet that nobody answers; SYN and UDP by turns.
fn spoofed(n: u32, at: Nanos) -> PacketMeta {
    let tcp = n.is_multiple_of(2);
    let [a, b, c, d] = (n | 0x0b00_0000).to_be_bytes();
    PacketMeta {
        key: key(Addr::v4([a, b, c, d]), if tcp { proto::TCP } else { proto::UDP }),
        flags: TcpFlags(if tcp { TcpFlags::SYN } else { 0 }),
        has_tcp: tcp,
        ..packet(at)
    }
}

fn key(lo: Addr, proto: u8) -> FlowKey {
    FlowKey { lo, hi: Addr::v4([192, 0, 2, 1]), lo_port: 4000, hi_port: 443, proto, ..FlowKey::default() }
}

fn packet(at: Nanos) -> PacketMeta {
    PacketMeta { ts: at, clock: at, ip_bytes: 40, window: 100, ttl: 64, ..PacketMeta::default() }
}

#[test]
fn a_flood_evicts_itself() {
    let config = FlowTableConfig { flows_max: ROOM, side_bytes_max: 1 << 16, ..FlowTableConfig::default() };
    let mut table = FlowTable::new(config).unwrap();
    let mut out = Records::default();
    let mut clock = Nanos::from_secs(1_000);
    for n in 0..3 {
        let packets: Vec<_> = (0..REAL).map(|flow| real(flow, n, clock)).collect();
        table.process(&packets, &mut out);
    }
    // 100,000 flows a second; each real connection sends one packet a second.
    let mut sent = 3 * u64::from(REAL);
    for n in 0..SPOOFED {
        clock = clock + Nanos(10_000);
        table.process(&[spoofed(n, clock)], &mut out);
        if n % 100 == 0 {
            table.process(&[real(n / 100 % REAL, 2 + n / 100 / REAL, clock)], &mut out);
            sent += 1;
        }
    }
    let counts = table.counts();
    assert!(counts.emergency && counts.emergencies == 1);
    assert!(counts.active <= u64::from(ROOM));
    assert_eq!(counts.evicted_answered, 0);
    assert!(out.0.iter().all(|r| r.dst_port != 443 || r.pkts_o + r.pkts_r == 1), "a real flow has ended");
    table.finish(clock, &mut out);
    let is_real = |r: &&FlowRecord| r.src_ip < Addr::v4([11, 0, 0, 0]);
    let reals: Vec<_> = out.0.iter().filter(is_real).collect();
    assert_eq!(reals.len(), REAL as usize, "one record each: none was cut");
    assert!(reals.iter().all(|r| r.end_reason == EndReason::Shutdown));
    assert_eq!(reals.iter().map(|r| r.pkts_o + r.pkts_r).sum::<u64>(), sent);
    // Every flow that was begun has ended in a record, for a reason that is counted.
    let counts = table.counts();
    assert_eq!(counts.created, u64::from(SPOOFED + REAL));
    assert_eq!(counts.exported.iter().sum::<u64>(), out.0.len() as u64);
    assert_eq!(out.0.len() as u64, counts.created);
    assert!(counts.exported[EndReason::Evicted as usize - 1] > 0);
}
