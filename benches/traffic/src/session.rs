//! Background flows.

use crate::dns;
use crate::encode::{ACK, FIN, From, PSH, Payload, RST, SYN};
use crate::schedule::{Connection, Core, Flow};
use crate::truth::Closed;
use std::fmt::Write;

/// Least IP payload after a TCP or UDP header: fills the smallest Ethernet frame over IPv4.
const TCP_PAYLOAD_MIN: u16 = 6;
const UDP_PAYLOAD_MIN: u16 = 18;
/// Shortest connection that ends with FIN.
const REGULAR_PACKETS_MIN: u32 = 8;
const ABORT_PACKETS: u32 = 1;
const CLOSE_PACKETS: u32 = 3;
/// Longest wait before a segment is sent again, ns.
const RETRANSMIT_NS_MAX: u64 = 200_000_000;

/// A TCP connection of a given number of packets:
/// 1 an unanswered SYN, 2 a refused one, 3 to 7 a connection that the client aborts, more a regular one.
pub(crate) struct TcpSession {
    connection: Connection,
    /// Packets still to be sent.
    left: u32,
    gap_ns: u32,
    rtt_ns: u32,
    /// Wait before a segment is sent again; at least twice the round trip, so that it cannot pass for reordering.
    retransmit_ns: u32,
    stage: Stage,
    /// Packets that the end takes: an RST, or FIN, FIN and ACK.
    end_packets: u32,
    /// Data segments sent, without retransmissions.
    segments: u32,
    /// A data segment to be sent again: by whom, sequence number, length.
    again: Option<(From, u32, u16)>,
    /// Who owes a pure acknowledgment.
    ack_due: Option<From>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Syn,
    Refuse,
    SynAck,
    Ack,
    Data,
    Abort,
    ClientFin,
    ServerFin,
    LastAck,
}

impl TcpSession {
    pub(crate) fn new(flow: Flow, packets: u32, gap_ns: u32, core: &mut Core) -> TcpSession {
        // A flow whose packets follow closely lives near by; else acknowledgments would take most of its time.
        let rtt_ns = core.distributions.rtt_ns(&mut core.rng).min((4 * u64::from(gap_ns)).max(100_000)) as u32;
        // All waits together may take a tenth of the capture.
        let again = core.retransmit.expected_in(u64::from(packets)).max(1);
        let budget = (core.config.duration_ns / 10 / again).min(RETRANSMIT_NS_MAX);
        TcpSession {
            connection: Connection::new(flow, core),
            left: packets.max(1),
            gap_ns,
            rtt_ns,
            retransmit_ns: budget.max(2 * u64::from(rtt_ns)) as u32,
            stage: Stage::Syn,
            end_packets: if packets < REGULAR_PACKETS_MIN { ABORT_PACKETS } else { CLOSE_PACKETS },
            segments: 0,
            again: None,
            ack_due: None,
        }
    }

    pub(crate) fn step(&mut self, now: u64, core: &mut Core, out: &mut Vec<u8>) -> Option<u64> {
        use From::{Client, Server};
        let rtt = u64::from(self.rtt_ns);
        self.left -= 1;
        let (wait, next) = match self.stage {
            Stage::Syn => {
                self.connection.send(now, core, out, Client, SYN, 0);
                let next = if self.left == 1 { Stage::Refuse } else { Stage::SynAck };
                (rtt / 4 * 3, next)
            }
            Stage::Refuse => {
                self.connection.send(now, core, out, Server, RST | ACK, 0);
                core.closed(&self.connection.flow, Closed::Rst);
                (0, Stage::Refuse)
            }
            Stage::SynAck => {
                self.connection.send(now, core, out, Server, SYN | ACK, 0);
                (rtt / 4, if self.left == 1 { Stage::Abort } else { Stage::Ack })
            }
            Stage::Ack => {
                self.connection.send(now, core, out, Client, ACK, 0);
                (1_000, self.data_or_end())
            }
            Stage::Data => (self.data(now, core, out), self.data_or_end()),
            Stage::Abort => {
                self.connection.send(now, core, out, Client, RST | ACK, 0);
                core.closed(&self.connection.flow, Closed::Rst);
                (0, Stage::Abort)
            }
            Stage::ClientFin => {
                self.connection.send(now, core, out, Client, FIN | ACK, 0);
                (rtt, Stage::ServerFin)
            }
            Stage::ServerFin => {
                self.connection.send(now, core, out, Server, FIN | ACK, 0);
                (1_000, Stage::LastAck)
            }
            Stage::LastAck => {
                self.connection.send(now, core, out, Client, ACK, 0);
                core.closed(&self.connection.flow, Closed::Fin);
                (0, Stage::LastAck)
            }
        };
        self.stage = next;
        (self.left > 0).then_some(now + wait)
    }

    fn data_or_end(&self) -> Stage {
        match (self.left == self.end_packets, self.end_packets) {
            (false, _) => Stage::Data,
            (true, ABORT_PACKETS) => Stage::Abort,
            (true, _) => Stage::ClientFin,
        }
    }

    /// One packet of the middle: a segment again, an acknowledgment that is due, or new data, two thirds of it from
    /// the server. Returns the wait after it.
    fn data(&mut self, now: u64, core: &mut Core, out: &mut Vec<u8>) -> u64 {
        if let Some((from, seq, len)) = self.again.take() {
            self.connection.resend(now, core, out, from, len, seq);
        } else if let Some(from) = self.ack_due.take() {
            self.connection.send(now, core, out, from, ACK, 0);
        } else {
            let from = if core.rng.below(3) == 0 { From::Client } else { From::Server };
            let headers = if self.connection.flow.ends.v6 { 60 } else { 40 };
            let len = core.size(true).saturating_sub(headers).max(TCP_PAYLOAD_MIN);
            let seq = self.connection.next_seq(from);
            self.connection.send(now, core, out, from, ACK | PSH, len);
            self.segments = self.segments.wrapping_add(1);
            if self.segments.is_multiple_of(2) {
                self.ack_due = Some(from.other());
            }
            if self.left > self.end_packets && core.rng.chance(core.retransmit) {
                self.again = Some((from, seq, len));
                return u64::from(self.retransmit_ns);
            }
        }
        if self.ack_due.is_some() {
            return u64::from(self.rtt_ns / 4).min(u64::from(self.gap_ns)) + 1_000;
        }
        core.distributions.exponential(&mut core.rng, u64::from(self.gap_ns)) + 2_000
    }
}

/// A UDP flow of a given number of packets; on port 53 DNS questions and answers in turn.
pub(crate) struct UdpSession {
    flow: Flow,
    left: u32,
    sent: u32,
    gap_ns: u32,
    rtt_ns: u32,
    /// Of the DNS query not yet answered: id and number of the name.
    asked: Option<(u16, u16)>,
}

const DNS_PORT: u16 = 53;
/// Background names are h0 to h499.example.org.
const DNS_NAMES: u64 = 500;

impl UdpSession {
    pub(crate) fn new(flow: Flow, packets: u32, gap_ns: u32, core: &mut Core) -> UdpSession {
        let rtt_ns = core.distributions.rtt_ns(&mut core.rng).min(u64::from(gap_ns).max(100_000)) as u32;
        UdpSession { flow, left: packets.max(1), sent: 0, gap_ns, rtt_ns, asked: None }
    }

    pub(crate) fn step(&mut self, now: u64, core: &mut Core, out: &mut Vec<u8>) -> Option<u64> {
        self.left -= 1;
        if self.flow.ends.server_port == DNS_PORT {
            self.dns(now, core, out);
        } else {
            let from = if self.sent == 0 || core.rng.below(2) == 0 { From::Client } else { From::Server };
            let headers = if self.flow.ends.v6 { 48 } else { 28 };
            let len = core.size(false).saturating_sub(headers).max(UDP_PAYLOAD_MIN);
            core.udp(now, out, &self.flow, from, Payload::Pattern(len));
        }
        self.sent = self.sent.wrapping_add(1);
        let wait = match self.asked {
            Some(_) => u64::from(self.rtt_ns),
            None => core.distributions.exponential(&mut core.rng, u64::from(self.gap_ns)) + 1_000,
        };
        (self.left > 0).then_some(now + wait)
    }

    fn dns(&mut self, now: u64, core: &mut Core, out: &mut Vec<u8>) {
        let mut name = String::with_capacity(24);
        match self.asked.take() {
            Some((id, number)) => {
                write_name(&mut name, number);
                let address = [10, 0, (number >> 8) as u8, number as u8];
                dns::answer(&mut core.scratch, id, &name, dns::TYPE_A, &address);
                core.udp_scratch(now, out, &self.flow, From::Server);
            }
            None => {
                let (id, number) = (self.sent as u16, core.rng.below(DNS_NAMES) as u16);
                write_name(&mut name, number);
                dns::query(&mut core.scratch, id, &name, dns::TYPE_A);
                core.asked(&name);
                core.udp_scratch(now, out, &self.flow, From::Client);
                self.asked = Some((id, number));
            }
        }
    }
}

fn write_name(name: &mut String, number: u16) {
    write!(name, "h{number}.example.org").expect("writing to a String cannot fail");
}
