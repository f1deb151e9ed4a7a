//! The flows that are not background: attacks and other things worth finding, each a script that emits one packet a step.

use crate::dns;
use crate::encode::{self, ACK, BARE_SYN_OPTIONS, Ends, FIN, From, PSH, Payload, RST, SYN, TcpHeader};
use crate::schedule::{Connection, Core, Flow, address_v4, ip};
use crate::truth::{Attack, AttackKind, Closed};

const MS: u64 = 1_000_000;
const SECOND: u64 = 1_000_000_000;

/// An attack to come: what, by whom (the low 24 bits of an address in 10.0.0.0/8) and how much.
#[derive(Clone, Copy)]
pub(crate) enum Plan {
    Beaconing { source: u32, sessions: u32 },
    LongLived { exchanges: u32 },
    PortScanVertical { source: u32, ports: u16 },
    PortScanHorizontal { source: u32, hosts: u32 },
    SynFlood { packets: u32 },
    Superspreader { source: u32, destinations: u32 },
    ExfilSpike { source: u32, segments: u32, over_ns: u64 },
    DnsTunnel { source: u32, queries: u32 },
    IcmpSweep { source: u32, hosts: u32 },
}

/// Ports a vertical scan finds open.
const OPEN_PORTS: [u16; 3] = [22, 80, 443];
/// Every so many hosts of a sweep answer.
const SWEEP_ANSWERS_EVERY: u32 = 16;

/// One session of a beacon: wait before, sender, flags, payload length.
const BEACON_SESSION: [(u64, From, u8, u16); 8] = [
    (0, From::Client, SYN, 0),
    (20 * MS, From::Server, SYN | ACK, 0),
    (MS / 10, From::Client, ACK, 0),
    (MS, From::Client, ACK | PSH, 120),
    (21 * MS, From::Server, ACK | PSH, 80),
    (MS, From::Client, FIN | ACK, 0),
    (20 * MS, From::Server, FIN | ACK, 0),
    (MS / 10, From::Client, ACK, 0),
];

/// The host that is scanned and flooded.
const VICTIM: [u8; 16] = [192, 168, 1, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

impl Plan {
    /// Packets it emits from beginning to end, exactly.
    pub(crate) fn packets(&self) -> u64 {
        match *self {
            Plan::Beaconing { sessions, .. } => u64::from(sessions) * BEACON_SESSION.len() as u64,
            Plan::LongLived { exchanges } => 3 + 2 * u64::from(exchanges),
            Plan::PortScanVertical { ports, .. } => {
                2 * u64::from(ports) + OPEN_PORTS.iter().filter(|port| **port <= ports).count() as u64
            }
            Plan::PortScanHorizontal { hosts, .. } => u64::from(hosts),
            Plan::SynFlood { packets } => u64::from(packets),
            Plan::Superspreader { destinations, .. } => u64::from(destinations),
            Plan::ExfilSpike { segments, .. } => 6 + u64::from(segments) + u64::from(segments / 2),
            Plan::DnsTunnel { queries, .. } => 2 * u64::from(queries),
            Plan::IcmpSweep { hosts, .. } => u64::from(hosts) + u64::from(hosts.div_ceil(SWEEP_ANSWERS_EVERY)),
        }
    }

    fn kind(&self) -> AttackKind {
        match self {
            Plan::Beaconing { .. } => AttackKind::Beaconing,
            Plan::LongLived { .. } => AttackKind::LongLived,
            Plan::PortScanVertical { .. } => AttackKind::PortScanVertical,
            Plan::PortScanHorizontal { .. } => AttackKind::PortScanHorizontal,
            Plan::SynFlood { .. } => AttackKind::SynFlood,
            Plan::Superspreader { .. } => AttackKind::Superspreader,
            Plan::ExfilSpike { .. } => AttackKind::ExfilSpike,
            Plan::DnsTunnel { .. } => AttackKind::DnsTunnel,
            Plan::IcmpSweep { .. } => AttackKind::IcmpSweep,
        }
    }

    /// What the truth says about it.
    fn describe(&self, now: u64) -> Attack {
        let v4 = |address: [u8; 16]| Some(ip(false, &address));
        let inside = |host: u32| v4(address_v4(10, host));
        let (source, target, port, count) = match *self {
            Plan::Beaconing { source, sessions } => (inside(source), v4(BEACON_SERVER), Some(8443), sessions.into()),
            Plan::LongLived { exchanges } => {
                let [client, server] = LONG_LIVED_ENDS.map(|address| Some(ip(true, &address)));
                (client, server, Some(22), exchanges.into())
            }
            Plan::PortScanVertical { source, ports } => (inside(source), v4(VICTIM), None, ports.into()),
            Plan::PortScanHorizontal { source, hosts } => (inside(source), None, Some(445), hosts.into()),
            Plan::SynFlood { packets } => (None, v4(VICTIM), Some(80), packets.into()),
            Plan::Superspreader { source, destinations } => (inside(source), None, Some(6881), destinations.into()),
            Plan::ExfilSpike { source, segments, .. } => {
                let bytes = u64::from(segments) * u64::from(EXFIL_SEGMENT_LEN);
                (inside(source), v4(EXFIL_SERVER), Some(443), bytes)
            }
            Plan::DnsTunnel { source, queries } => (inside(source), v4(RESOLVER), Some(53), queries.into()),
            Plan::IcmpSweep { source, hosts } => (inside(source), None, None, hosts.into()),
        };
        Attack { kind: self.kind(), start_ns: now, end_ns: now, source, target, port, count }
    }
}

/// Client and server of the long-lived session: 2001:db8:0:1::beef and 2001:db8:0:2::cafe.
const LONG_LIVED_ENDS: [[u8; 16]; 2] = [
    [0x20, 1, 0xd, 0xb8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xbe, 0xef],
    [0x20, 1, 0xd, 0xb8, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0xca, 0xfe],
];
const BEACON_SERVER: [u8; 16] = [198, 1, 2, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const EXFIL_SERVER: [u8; 16] = [198, 51, 68, 85, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const RESOLVER: [u8; 16] = [10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const EXFIL_SEGMENT_LEN: u16 = 1460;
const DNS_TUNNEL_DOMAIN: &str = "t.example.net";

/// A plan being carried out.
pub(crate) struct Attacker {
    plan: Plan,
    /// Handle of the entry in the truth, once begun.
    record: Option<u32>,
    /// Packets emitted.
    sent: u32,
    /// Which port, host, session or query it is at.
    item: u32,
    /// Packets emitted for this item.
    stage: u32,
    /// Where the attack's pseudo-random addresses begin.
    scramble: u32,
    /// When the current period of a periodic script began.
    period_ns: u64,
    connection: Option<Connection>,
    /// A query or echo request that is about to be answered.
    awaiting: Option<Flow>,
    /// The name a DNS tunnel asks for.
    name: String,
}

impl Attacker {
    pub(crate) fn new(plan: Plan) -> Attacker {
        Attacker {
            plan,
            record: None,
            sent: 0,
            item: 0,
            stage: 0,
            scramble: 0,
            period_ns: 0,
            connection: None,
            awaiting: None,
            name: String::new(),
        }
    }

    pub(crate) fn step(&mut self, now: u64, core: &mut Core, out: &mut Vec<u8>) -> Option<u64> {
        let record = match self.record {
            Some(record) => record,
            None => {
                self.scramble = core.rng.next_u32();
                self.period_ns = now;
                *self.record.insert(core.attack_begins(self.plan.describe(now)))
            }
        };
        let wait = match self.plan {
            Plan::Beaconing { source, .. } => self.beacon(now, core, out, source),
            Plan::LongLived { .. } => self.long_lived(now, core, out),
            Plan::PortScanVertical { source, .. } => self.port_scan(now, core, out, source),
            Plan::PortScanHorizontal { source, .. } => self.host_scan(now, core, out, source),
            Plan::SynFlood { packets } => self.flood(now, core, out, packets),
            Plan::Superspreader { source, .. } => self.spread(now, core, out, source),
            Plan::ExfilSpike { source, segments, over_ns } => self.exfil(now, core, out, source, segments, over_ns),
            Plan::DnsTunnel { source, .. } => self.tunnel(now, core, out, source),
            Plan::IcmpSweep { source, .. } => self.sweep(now, core, out, source),
        };
        core.attack_goes_on(record, now);
        self.sent += 1;
        (u64::from(self.sent) < self.plan.packets()).then_some(now + wait)
    }

    /// Goes on to the next port, host, session or query.
    fn next_item(&mut self) {
        self.item += 1;
        self.stage = 0;
        self.connection = None;
    }

    /// The connection of this item, opened if this is its first packet.
    fn connect(&mut self, core: &mut Core, ends: Ends) -> Connection {
        let kind = self.plan.kind();
        self.connection.take().unwrap_or_else(|| {
            let flow = core.open(encode::TCP, ends, Some(kind));
            Connection::new(flow, core)
        })
    }

    /// The n-th address of `net`.0.0.0/8 in an order that looks random and repeats nothing: an odd step modulo 2^24.
    fn scattered(&self, net: u8, n: u32) -> [u8; 16] {
        address_v4(net, n.wrapping_mul(0x9e_3779).wrapping_add(self.scramble) & 0xff_ffff)
    }

    fn beacon(&mut self, now: u64, core: &mut Core, out: &mut Vec<u8>, source: u32) -> u64 {
        let ends = v4(address_v4(10, source), 1024 + (self.item % 60_000) as u16, BEACON_SERVER, 8443);
        let mut connection = self.connect(core, ends);
        let (_, from, flags, len) = BEACON_SESSION[self.stage as usize];
        connection.send(now, core, out, from, flags, len);
        self.stage += 1;
        if let Some((wait, ..)) = BEACON_SESSION.get(self.stage as usize) {
            self.connection = Some(connection);
            return *wait;
        }
        core.closed(&connection.flow, Closed::Fin);
        self.next_item();
        let next = self.period_ns + u64::from(self.item) * 10 * SECOND + core.rng.below(200 * MS);
        next.saturating_sub(now + 100 * MS)
    }

    fn long_lived(&mut self, now: u64, core: &mut Core, out: &mut Vec<u8>) -> u64 {
        let [client, server] = LONG_LIVED_ENDS;
        let ends = Ends { v6: true, client, server, client_port: 52_000, server_port: 22 };
        let mut connection = self.connect(core, ends);
        let (from, flags, len, wait) = match self.sent {
            0 => (From::Client, SYN, 0, 30 * MS),
            1 => (From::Server, SYN | ACK, 0, MS / 10),
            2 => (From::Client, ACK, 0, SECOND),
            n if n % 2 == 1 => (From::Client, ACK | PSH, 36, 30 * MS),
            _ => (From::Server, ACK | PSH, 36, 5 * SECOND - 30 * MS),
        };
        connection.send(now, core, out, from, flags, len);
        self.connection = Some(connection);
        wait
    }

    fn port_scan(&mut self, now: u64, core: &mut Core, out: &mut Vec<u8>, source: u32) -> u64 {
        let port = self.item as u16 + 1;
        let mut connection = self.connect(core, v4(address_v4(10, source), 40_000, VICTIM, port));
        let open = OPEN_PORTS.contains(&port);
        let (from, flags) = match (self.stage, open) {
            (0, _) => (From::Client, SYN),
            (1, true) => (From::Server, SYN | ACK),
            (1, false) => (From::Server, RST | ACK),
            _ => (From::Client, RST | ACK),
        };
        connection.send(now, core, out, from, flags, 0);
        self.stage += 1;
        match (self.stage, open) {
            (1, _) => {
                self.connection = Some(connection);
                MS * 3 / 10
            }
            (2, true) => {
                self.connection = Some(connection);
                MS / 20
            }
            (stage, _) => {
                core.closed(&connection.flow, Closed::Rst);
                self.next_item();
                2 * MS - if stage == 3 { MS * 35 / 100 } else { MS * 3 / 10 }
            }
        }
    }

    fn host_scan(&mut self, now: u64, core: &mut Core, out: &mut Vec<u8>, source: u32) -> u64 {
        let host = address_v4(192, 168 << 16 | (0x2000 + self.item) & 0xffff);
        let port = 41_000 + (self.item % 20_000) as u16;
        self.bare_syn(now, core, out, v4(address_v4(10, source), port, host, 445));
        5 * MS
    }

    fn flood(&mut self, now: u64, core: &mut Core, out: &mut Vec<u8>, packets: u32) -> u64 {
        let port = 1024 + core.rng.below(64_000) as u16;
        self.bare_syn(now, core, out, v4(self.scattered(100, self.item), port, VICTIM, 80));
        4 * SECOND / u64::from(packets)
    }

    /// A SYN that is a flow of its own.
    fn bare_syn(&mut self, now: u64, core: &mut Core, out: &mut Vec<u8>, ends: Ends) {
        let flow = core.open(encode::TCP, ends, Some(self.plan.kind()));
        let header = TcpHeader { flags: SYN, seq: core.rng.next_u32(), ack: 0, options: BARE_SYN_OPTIONS };
        core.tcp(now, out, &flow, From::Client, &header, Payload::Pattern(0));
        self.next_item();
    }

    fn spread(&mut self, now: u64, core: &mut Core, out: &mut Vec<u8>, source: u32) -> u64 {
        let ends = v4(address_v4(10, source), 5353, self.scattered(203, self.item), 6881);
        let flow = core.open(encode::UDP, ends, Some(AttackKind::Superspreader));
        core.udp(now, out, &flow, From::Client, Payload::Pattern(60));
        self.next_item();
        7 * MS
    }

    fn exfil(&mut self, now: u64, core: &mut Core, out: &mut Vec<u8>, source: u32, segments: u32, over_ns: u64) -> u64 {
        let mut connection = self.connect(core, v4(address_v4(10, source), 50_123, EXFIL_SERVER, 443));
        let gap = over_ns / u64::from(segments.max(1));
        let ack_wait = gap / 10;
        let body = segments + segments / 2; // two segments, one acknowledgment, and so on
        let (from, flags, len, wait) = match (self.sent, self.sent.checked_sub(3)) {
            (0, _) => (From::Client, SYN, 0, 20 * MS),
            (1, _) => (From::Server, SYN | ACK, 0, MS / 10),
            (_, None) => (From::Client, ACK, 0, MS),
            (_, Some(i)) if i < body => match i % 3 {
                0 => (From::Client, ACK | PSH, EXFIL_SEGMENT_LEN, gap),
                1 => (From::Client, ACK | PSH, EXFIL_SEGMENT_LEN, ack_wait),
                _ => (From::Server, ACK, 0, gap - ack_wait),
            },
            (_, Some(i)) => match i - body {
                0 => (From::Client, FIN | ACK, 0, 20 * MS),
                1 => (From::Server, FIN | ACK, 0, MS / 10),
                _ => (From::Client, ACK, 0, 0),
            },
        };
        connection.send(now, core, out, from, flags, len);
        if u64::from(self.sent) + 1 == self.plan.packets() {
            core.closed(&connection.flow, Closed::Fin);
        }
        self.connection = Some(connection);
        wait
    }

    fn tunnel(&mut self, now: u64, core: &mut Core, out: &mut Vec<u8>, source: u32) -> u64 {
        let id = self.item as u16;
        if let Some(flow) = self.awaiting.take() {
            let mut text = [b'x'; 201];
            text[0] = 200; // a character string: its length, then its bytes
            dns::answer(&mut core.scratch, id, &self.name, dns::TYPE_TXT, &text);
            core.udp_scratch(now, out, &flow, From::Server);
            self.next_item();
            return 25 * MS;
        }
        self.name.clear();
        for _ in 0..50 {
            self.name.push(char::from(b"0123456789abcdef"[core.rng.below(16) as usize]));
        }
        self.name.push('.');
        self.name.push_str(DNS_TUNNEL_DOMAIN);
        let port = 20_000 + (self.item % 40_000) as u16;
        let flow = core.open(encode::UDP, v4(address_v4(10, source), port, RESOLVER, 53), Some(AttackKind::DnsTunnel));
        dns::query(&mut core.scratch, id, &self.name, dns::TYPE_TXT);
        core.asked(&self.name);
        core.udp_scratch(now, out, &flow, From::Client);
        self.awaiting = Some(flow);
        15 * MS
    }

    fn sweep(&mut self, now: u64, core: &mut Core, out: &mut Vec<u8>, source: u32) -> u64 {
        let sequence = self.item as u16;
        if let Some(flow) = self.awaiting.take() {
            core.echo(now, out, &flow, From::Server, sequence);
            self.next_item();
            return 10 * MS - MS * 4 / 10;
        }
        let host = address_v4(192, 168 << 16 | (0x3000 + self.item) & 0xffff);
        let flow = core.open(encode::ICMP, v4(address_v4(10, source), 0, host, 0), Some(AttackKind::IcmpSweep));
        core.echo(now, out, &flow, From::Client, sequence);
        if self.item.is_multiple_of(SWEEP_ANSWERS_EVERY) {
            self.awaiting = Some(flow);
            return MS * 4 / 10;
        }
        self.next_item();
        10 * MS
    }
}

fn v4(client: [u8; 16], client_port: u16, server: [u8; 16], server_port: u16) -> Ends {
    Ends { v6: false, client, server, client_port, server_port }
}
