//! What the table tells of TCP connections, packet by packet.

use flowtable::{
    ConnState, EndReason, FlowInView, FlowRecord, FlowSink, FlowTable, FlowTableConfig, HintSlot, TcpOpening, Timeouts,
};
use proptest::prelude::*;
use wire::{Addr, Direction, FlowKey, Nanos, PacketMeta, TcpFlags, proto};

const FIN: u8 = TcpFlags::FIN;
const SYN: u8 = TcpFlags::SYN;
const RST: u8 = TcpFlags::RST;
const ACK: u8 = TcpFlags::ACK;

#[derive(Default)]
struct Sink {
    records: Vec<FlowRecord>,
    syns: Vec<TcpOpening>,
    established: Vec<TcpOpening>,
    /// Bytes missing before each payload.
    missing: Vec<u32>,
}

impl FlowSink for Sink {
    fn record(&mut self, record: &FlowRecord, _text: &[u8]) {
        self.records.push(*record);
    }
    fn syn(&mut self, opening: &TcpOpening) {
        self.syns.push(*opening);
    }
    fn established(&mut self, opening: &TcpOpening) {
        self.established.push(*opening);
    }
    fn payload(&mut self, _: usize, _: &PacketMeta, flow: FlowInView, _: HintSlot<'_>) {
        self.missing.push(flow.missing);
    }
}

/// `(from the client?, µs, flags, seq, payload)`
type Packet = (bool, u64, u8, u32, u32);

fn sink_of(packets: &[Packet]) -> Sink {
    sink_of_acks(&packets.iter().map(|packet| (*packet, 0)).collect::<Vec<_>>())
}

/// With what each acknowledges.
fn sink_of_acks(packets: &[(Packet, u32)]) -> Sink {
    let sink = sink_with(Timeouts::OFF, packets);
    assert_eq!(sink.records.len(), 1);
    sink
}

fn sink_with(timeouts: Timeouts, packets: &[(Packet, u32)]) -> Sink {
    let mut table = FlowTable::new(FlowTableConfig { flows_max: 16, timeouts, ..FlowTableConfig::default() }).unwrap();
    let mut sink = Sink::default();
    let metas: Vec<PacketMeta> = packets
        .iter()
        .map(|&((client, us, flags, seq, payload_len), ack)| PacketMeta {
            key: FlowKey {
                // The client has the higher address.
                lo: Addr::v4([10, 0, 0, 1]),
                hi: Addr::v4([10, 0, 0, 2]),
                lo_port: 80,
                hi_port: 4000,
                proto: proto::TCP,
                ..FlowKey::default()
            },
            ts: Nanos(us * 1000),
            clock: Nanos(us * 1000),
            ip_bytes: 40 + payload_len,
            seq,
            ack,
            payload_len,
            window: 100,
            flags: TcpFlags(flags),
            direction: if client { Direction::HiToLo } else { Direction::LoToHi },
            has_tcp: true,
            ..PacketMeta::default()
        })
        .collect();
    table.process(&metas, &mut sink);
    table.finish(Nanos(u64::MAX - 1), &mut sink);
    sink
}

fn flow(packets: &[Packet]) -> FlowRecord {
    sink_of(packets).records[0]
}

const C: bool = true;
const S: bool = false;
const OPEN: [Packet; 3] = [(C, 0, SYN, 100, 0), (S, 300, SYN | ACK, 500, 0), (C, 1000, ACK, 101, 0)];

fn after_open(more: &[Packet]) -> FlowRecord {
    flow(&[&OPEN[..], more].concat())
}

#[test]
fn handshake_and_its_halves() {
    let sink = sink_of(&OPEN);
    let r = sink.records[0];
    assert_eq!((r.rtt_srv_us, r.rtt_cli_us, r.rtt_us), (Some(300), Some(700), Some(1000)));
    assert_eq!((r.src_ip, r.src_port), (Addr::v4([10, 0, 0, 2]), 4000));
    assert_eq!((sink.syns.len(), sink.established.len()), (1, 1));
    assert_eq!((sink.syns[0].dst_port, sink.syns[0].flow_id), (80, r.flow_id));
    // A repeated SYN is no second opening; the time counts from the latest.
    let sink = sink_of(&[(C, 0, SYN, 100, 0), (C, 50, SYN, 100, 0), (S, 300, SYN | ACK, 500, 0)]);
    assert_eq!((sink.syns.len(), sink.records[0].rtt_srv_us, sink.records[0].rtt_us), (1, Some(250), None));
}

#[test]
fn a_lone_syn_ack_tells_who_opened() {
    let r = flow(&[(S, 0, SYN | ACK, 500, 0), (C, 10, ACK, 101, 0)]);
    assert_eq!((r.src_port, r.dst_port, r.pkts_o, r.pkts_r), (4000, 80, 1, 1));
    assert_eq!((r.rtt_us, r.rtt_cli_us), (None, Some(10)));
}

#[test]
fn states_are_those_of_zeek() {
    let state = |p: &[Packet]| flow(p).conn_state.unwrap();
    assert_eq!(state(&[(C, 0, SYN, 1, 0)]), ConnState::S0);
    assert_eq!(state(&[(C, 0, SYN, 1, 0), (S, 1, RST | ACK, 0, 0)]), ConnState::Rej);
    assert_eq!(state(&[(C, 0, SYN, 1, 0), (C, 1, RST, 2, 0)]), ConnState::RstOs0);
    assert_eq!(state(&[(C, 0, SYN, 1, 0), (C, 1, FIN, 2, 0)]), ConnState::Sh);
    assert_eq!(state(&[(C, 0, SYN, 1, 0), (C, 1, FIN, 2, 0), (S, 2, RST, 0, 0)]), ConnState::RstR);
    assert_eq!(state(&[(C, 0, SYN, 1, 0), (S, 1, FIN, 2, 0), (C, 2, RST, 2, 0)]), ConnState::RstO);
    assert_eq!(state(&[(S, 0, SYN | ACK, 1, 0), (S, 1, RST, 2, 0)]), ConnState::RstRh);
    assert_eq!(state(&[(S, 0, SYN | ACK, 1, 0), (S, 1, FIN, 2, 0)]), ConnState::Shr);
    // Picked up in the middle: it has closed all the same.
    let middle = [(C, 0, ACK, 1, 10), (S, 1, ACK, 1, 10)];
    let closed = |p: &[Packet]| state(&[&middle[..], p].concat());
    assert_eq!(closed(&[]), ConnState::Oth);
    assert_eq!(closed(&[(C, 2, FIN | ACK, 11, 0)]), ConnState::Sh);
    assert_eq!(closed(&[(S, 2, FIN | ACK, 11, 0)]), ConnState::Shr);
    assert_eq!(closed(&[(S, 2, FIN | ACK, 11, 0), (C, 3, FIN | ACK, 11, 0)]), ConnState::SF);
    assert_eq!(closed(&[(C, 2, RST, 11, 0)]), ConnState::Oth);
    assert_eq!(closed(&[(S, 2, RST, 11, 0)]), ConnState::RstRh);
    assert_eq!(closed(&[(C, 2, FIN | ACK, 11, 0), (S, 3, RST, 11, 0)]), ConnState::RstR);
    assert_eq!(closed(&[(S, 2, FIN | ACK, 11, 0), (C, 3, RST, 11, 0)]), ConnState::RstO);
    // Without the SYN.
    let answer = [(S, 0, SYN | ACK, 1, 0), (C, 1, ACK, 1, 0)];
    let closed = |p: &[Packet]| state(&[&answer[..], p].concat());
    assert_eq!(closed(&[(C, 2, RST, 1, 0)]), ConnState::RstO);
    assert_eq!(closed(&[(C, 2, FIN | ACK, 1, 0)]), ConnState::S2);
    assert_eq!(closed(&[(C, 2, FIN | ACK, 1, 0), (S, 3, FIN | ACK, 2, 0)]), ConnState::SF);
    let state = |p: &[Packet]| after_open(p).conn_state.unwrap();
    assert_eq!(state(&[]), ConnState::S1);
    assert_eq!(state(&[(C, 2000, FIN | ACK, 101, 0)]), ConnState::S2);
    assert_eq!(state(&[(S, 2000, FIN | ACK, 501, 0)]), ConnState::S3);
    assert_eq!(state(&[(C, 2000, FIN | ACK, 101, 0), (S, 2001, FIN | ACK, 501, 0)]), ConnState::SF);
    assert_eq!(state(&[(C, 2000, RST, 101, 0)]), ConnState::RstO);
    assert_eq!(state(&[(S, 2000, RST, 501, 0), (C, 2001, RST, 101, 0)]), ConnState::RstR);
}

#[test]
fn retransmission_gap_and_reordering_are_told_apart() {
    let counts = |p: &[Packet]| {
        let r = after_open(p);
        (r.retrans_o, r.ooo_o, r.lost_o)
    };
    assert_eq!(counts(&[(C, 2000, ACK, 101, 10), (C, 3000, ACK, 111, 10)]), (0, 0, 0));
    assert_eq!(counts(&[(C, 2000, ACK, 101, 10), (C, 203_000, ACK, 101, 10)]), (1, 0, 0));
    // 111 is missing, then comes 1 ms later: out of order.
    assert_eq!(counts(&[(C, 2000, ACK, 101, 10), (C, 2100, ACK, 121, 10), (C, 3000, ACK, 111, 10)]), (0, 1, 1));
    // The same 200 ms later: sent again.
    assert_eq!(counts(&[(C, 2000, ACK, 101, 10), (C, 2100, ACK, 121, 10), (C, 202_000, ACK, 111, 10)]), (1, 0, 1));
    // One byte before the next expected is a keep-alive probe (RFC 9293, 3.8.4).
    assert_eq!(counts(&[(C, 2000, ACK, 101, 10), (C, 60_000_000, ACK, 110, 1)]), (0, 0, 0));
}

#[test]
fn who_looks_at_payloads_is_told_what_is_missing() {
    let data = [(C, 2000, ACK, 111, 10), (C, 2001, ACK, 101, 10), (C, 2002, ACK, 121, 10), (C, 2003, ACK, 141, 10)];
    assert_eq!(sink_of(&[&OPEN[..], &data].concat()).missing, [10, 0, 0, 10]);
    assert_eq!(sink_of(&data).missing, [0, 0, 0, 10], "nobody knows where it began");
    assert_eq!(sink_of(&[&OPEN[..], &[(S, 2000, ACK, 508, 1)]].concat()).missing, [7]);
}

proptest! {
    /// Goodput is what was seen at least once, however it was lost, repeated, cut anew and put out of order, in one part or in many, and
    /// wherever sequence numbers wrap.
    #[test]
    fn goodput_is_the_union_of_what_was_seen(
        pieces in proptest::collection::vec((0..60u32, 1..6u32, 0..4_000u64), 1..80),
        first in prop_oneof![Just(101), Just(u32::MAX - 300)],
        parts in any::<bool>(),
    ) {
        let mut time = 1000;
        let mut packets = vec![(C, 0, SYN, first - 1, 0), (S, 300, SYN | ACK, 500, 0), (C, time, ACK, first, 0)];
        let (mut seen, mut most) = ([false; 66], 0);
        for (start, len, wait) in pieces {
            time += wait;
            packets.push((C, time, ACK, first.wrapping_add(start * 10), len * 10));
            seen[start as usize..(start + len) as usize].fill(true);
            let last = seen.iter().rposition(|seen| *seen).unwrap();
            most = most.max(seen[..last].chunk_by(|a, b| a == b).filter(|run| !run[0]).count());
        }
        let active = if parts { Nanos(20_000_000) } else { Nanos::MAX };
        let packets: Vec<_> = packets.into_iter().map(|packet| (packet, 0)).collect();
        let records = sink_with(Timeouts { active, ..Timeouts::OFF }, &packets).records;
        let goodput = records.iter().map(|r| r.goodput_o).sum::<u64>();
        let truth = seen.iter().filter(|seen| **seen).count() as u64 * 10;
        if most <= 15 {
            prop_assert_eq!(goodput, truth);
        } else {
            // More gaps at a time than are remembered.
            prop_assert!(goodput <= truth);
        }
    }
}

/// Controls take a sequence number, which is no byte; and what comes behind a RST was not there before.
#[test]
fn controls_are_no_goodput() {
    let goodput = |packets: &[Packet]| after_open(packets).goodput_o;
    assert_eq!(goodput(&[(C, 2000, ACK, 101, 100), (C, 2001, FIN | ACK, 101, 100)]), 100);
    assert_eq!(goodput(&[(C, 2000, ACK, 101, 100), (C, 2001, FIN | ACK, 151, 100)]), 150);
    assert_eq!(goodput(&[(C, 2000, RST, 1101, 0), (C, 2001, ACK, 101, 1000)]), 1000);
}

/// One byte at a time, as keys are typed; and an answer that closes its connection.
#[test]
fn small_and_last_segments_measure_the_round_trip() {
    let mut packets: Vec<_> = OPEN.iter().map(|packet| (*packet, 0)).collect();
    packets.extend([((C, 2000, ACK, 101, 1), 501), ((S, 2700, ACK, 501, 1), 102), ((C, 2900, ACK, 102, 0), 502)]);
    let typed = sink_of_acks(&packets).records[0];
    assert_eq!((typed.rtt_srv_life.unwrap().max_us, typed.rtt_cli_life.unwrap().max_us), (700, 200));
    packets.truncate(3);
    packets.extend([((S, 2700, FIN | ACK, 501, 1000), 101), ((C, 2950, ACK, 101, 0), 1502)]);
    assert_eq!(sink_of_acks(&packets).records[0].rtt_cli_life.unwrap().max_us, 250);
}

#[test]
fn sequence_numbers_wrap() {
    let r = flow(&[(C, 0, ACK, u32::MAX - 4, 10), (C, 10, ACK, 5, 10), (C, 20, ACK, 15, 10)]);
    assert_eq!((r.retrans_o, r.ooo_o, r.lost_o), (0, 0, 0));
}

/// What was acknowledged comes behind a gap: the tap lost something, and what it sees was sent before (tshark 4.0 says both).
#[test]
fn acknowledged_data_behind_a_gap_is_lost_and_spurious() {
    let mut packets =
        vec![((C, 0, ACK, 1000, 100), 500), ((S, 250, ACK, 500, 0), 2101), ((C, 1600, ACK, 1101, 1000), 500)];
    let record = sink_of_acks(&packets).records[0];
    let of = |r: &FlowRecord| (r.lost_o, r.retrans_o, r.spurious_retrans_o, r.ooo_o);
    assert_eq!((of(&record), record.goodput_o), ((1, 1, 1, 0), 1100));
    // Acknowledged but for its last byte: not seen before.
    packets[1].1 = 2100;
    assert_eq!(of(&sink_of_acks(&packets).records[0]), (1, 0, 0, 0));
}

/// The end of a connection was not seen, or its client had no time for one: a SYN at other sequence numbers begins the next record,
/// whichever side it is from. The same SYN again does not, nor another try that was not answered.
#[test]
fn a_syn_that_opens_another_connection_begins_another_record() {
    let split = |more: &[Packet]| {
        let packets: Vec<_> = OPEN.iter().chain(more).map(|packet| (*packet, 0)).collect();
        let records = sink_with(Timeouts::default(), &packets).records;
        records.iter().map(|r| (r.pkts_o, r.pkts_r, r.end_reason as u8, r.conn_state.unwrap())).collect::<Vec<_>>()
    };
    let (closed, idle) = (EndReason::Closed as u8, EndReason::Idle as u8);
    let data = (C, 1100, ACK, 101, 1000);
    let first = (3, 1, closed, ConnState::S1);
    assert_eq!(split(&[data, (C, 2000, SYN, 9_000_000, 0)]), [first, (1, 0, idle, ConnState::S0)]);
    assert_eq!(split(&[data, (C, 2000, SYN, 90, 0)]), [first, (1, 0, idle, ConnState::S0)]);
    assert_eq!(split(&[data, (S, 2000, SYN, 99, 0)]), [first, (1, 0, idle, ConnState::S0)]);
    assert_eq!(split(&[data, (C, 2000, SYN, 100, 0)]), [(4, 1, idle, ConnState::S1)]);
    // Some of what was sent was not seen, and then the SYN comes once more.
    assert_eq!(split(&[(C, 1100, ACK, 1101, 100), (C, 2000, SYN, 100, 0)]).len(), 1);
    let tries = [(C, 0, SYN, 100, 0), (C, 1, SYN, 5_000, 0), (C, 2, SYN, 9_000, 0)].map(|packet| (packet, 0));
    assert_eq!(sink_with(Timeouts::default(), &tries).records.len(), 1);
    // Long after: idle is what it was.
    let late = 1_000_000 * 200;
    assert_eq!(split(&[(C, late, SYN, 7, 0)])[0], (2, 1, idle, ConnState::S1));
}

/// A RST without ACK says 0 where the acknowledgment number is, and that is the latest.
#[test]
fn a_reset_acknowledges_nothing() {
    let packets = [((C, 0, ACK, 700, 0), 1560), ((C, 10, RST, 700, 0), 0), ((S, 895, ACK, 1000, 100), 700)];
    assert_eq!(sink_of_acks(&packets).records[0].spurious_retrans_r, 0);
    assert_eq!(sink_of_acks(&[packets[0], packets[2]]).records[0].spurious_retrans_r, 1);
}
