//! What all traffic is made of: actors that emit one packet at a time and say when they want to go on, a heap that
//! picks the next of them, and the state they share.

use crate::attack::Attacker;
use crate::config::{Config, ETHERNET_LEN, FRAME_LEN_MIN};
use crate::encode::{self, Encoder, Ends, From, Payload, SYN, SYN_OPTIONS, TcpHeader};
use crate::fixed::Distributions;
use crate::rng::{Chance, Rng};
use crate::session::{TcpSession, UdpSession};
use crate::truth::{Attack, AttackKind, Closed, FlowTruth, Truth};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;
use std::net::IpAddr;

/// About one emitted packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Its time, ns since 1970; never before that of the packet before it.
    pub ts_ns: u64,
    /// Bytes of the frame, Ethernet header included, FCS not.
    pub len: u32,
}

/// Something that emits packets.
pub(crate) enum Actor {
    Tcp(TcpSession),
    Udp(UdpSession),
    Attack(Attacker),
}

/// What [`Generator`](crate::Generator) says a flow in progress takes.
const _: () = assert!(size_of::<Option<Actor>>() <= 224);

impl Actor {
    /// Emits exactly one packet at `now` into `out` and returns when the next one is due, or `None` after the last.
    fn step(&mut self, now: u64, core: &mut Core, out: &mut Vec<u8>) -> Option<u64> {
        match self {
            Actor::Tcp(session) => session.step(now, core, out),
            Actor::Udp(session) => session.step(now, core, out),
            Actor::Attack(attacker) => attacker.step(now, core, out),
        }
    }
}

/// The actors in progress, each once in `due`.
#[derive(Default)]
pub(crate) struct Schedule {
    /// (time, slot), earliest first; equal times go by slot, so that the order is total.
    due: BinaryHeap<Reverse<(u64, u32)>>,
    slots: Vec<Option<Actor>>,
    free: Vec<u32>,
}

impl Schedule {
    pub(crate) fn add(&mut self, at: u64, actor: Actor) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() as u32 - 1
        });
        self.slots[slot as usize] = Some(actor);
        self.due.push(Reverse((at, slot)));
    }

    /// When the next packet is due.
    pub(crate) fn next_at(&self) -> Option<u64> {
        self.due.peek().map(|Reverse((at, _))| *at)
    }

    /// Emits the packet that is due first.
    pub(crate) fn step(&mut self, core: &mut Core, out: &mut Vec<u8>) -> Option<Meta> {
        let mut top = self.due.peek_mut()?;
        let Reverse((now, slot)) = *top;
        let actor = &mut self.slots[slot as usize];
        match actor.as_mut().and_then(|actor| actor.step(now, core, out)) {
            Some(next) => top.0.0 = next.max(now),
            None => {
                *actor = None;
                PeekMut::pop(top);
                self.free.push(slot);
            }
        }
        Some(Meta { ts_ns: now, len: out.len() as u32 })
    }
}

/// A flow that packets are emitted for: its ends and its row in the truth.
#[derive(Clone, Copy)]
pub(crate) struct Flow {
    pub(crate) ends: Ends,
    /// Index in `Truth::flows`; `NO_ROW` where flows are not counted.
    row: u32,
}

const NO_ROW: u32 = u32::MAX;

/// Background clients: 10.0.0.1 to 10.0.15.160, and as many in 2001:db8:0:1::/64.
const CLIENTS: u64 = 4_000;
/// Keeps the sequence of lengths apart from that of everything else.
const SIZES_SEED: u64 = 0x517e_5eed_0000_0001;
/// Client ports from 1024.
const CLIENT_PORTS: u64 = 64_000;
/// Background servers: 192.168.0.1 to 192.168.5.220, and as many in 2001:db8:0:2::/64.
const SERVERS: u64 = 1_500;

/// State shared by all actors.
pub(crate) struct Core {
    pub(crate) rng: Rng,
    /// Draws what [`Sizes::Imix741`](crate::Sizes::Imix741) draws, and nothing else.
    pub(crate) sizes_rng: Rng,
    pub(crate) distributions: Distributions,
    pub(crate) truth: Truth,
    pub(crate) config: Config,
    pub(crate) retransmit: Chance,
    /// Payload under construction, reused.
    pub(crate) scratch: Vec<u8>,
    encoder: Encoder,
    v6: Chance,
    udp: Chance,
    /// Background flows opened, IPv4 and IPv6.
    opened: [u64; 2],
    /// Attacks that were removed from the front of `truth.attacks`.
    attacks_forgotten: u32,
    /// How many attacks `truth.attacks` may hold.
    attacks_max: usize,
}

impl Core {
    pub(crate) fn new(config: Config, attacks_max: usize) -> Core {
        Core {
            rng: Rng::new(config.seed),
            sizes_rng: Rng::new(config.seed.wrapping_add(SIZES_SEED)),
            distributions: Distributions::new(),
            truth: Truth::default(),
            retransmit: Chance::from_ratio(config.retransmit_ratio),
            scratch: Vec::with_capacity(512),
            encoder: Encoder::new(),
            v6: Chance::from_ratio(config.v6_ratio),
            udp: Chance::from_ratio(config.udp_ratio),
            opened: [0, 0],
            attacks_forgotten: 0,
            attacks_max,
            config,
        }
    }

    /// A background flow of exactly `packets` packets, `gap_ns` apart on average.
    pub(crate) fn background(&mut self, packets: u32, gap_ns: u32) -> Actor {
        let v6 = self.rng.chance(self.v6);
        if self.rng.chance(self.udp) {
            let port = self.rng.pick(&[53, 123, 443, 3478]);
            let port = if port == 53 && packets > self.config.dns_packets_max { 3478 } else { port };
            let ends = self.background_ends(v6, port);
            let flow = self.open(encode::UDP, ends, None);
            Actor::Udp(UdpSession::new(flow, packets, gap_ns, self))
        } else {
            let port = self.rng.pick(&[80, 443, 443, 443, 8080, 25]);
            let ends = self.background_ends(v6, port);
            let flow = self.open(encode::TCP, ends, None);
            Actor::Tcp(TcpSession::new(flow, packets, gap_ns, self))
        }
    }

    /// Ends no background flow had before: the client's address and port walk through all 256 million pairs in an
    /// order that looks random, since the step shares no factor with their number.
    fn background_ends(&mut self, v6: bool, server_port: u16) -> Ends {
        const PAIRS: u64 = CLIENTS * CLIENT_PORTS;
        const STEP: u64 = 179_424_673;
        const { assert!(STEP % 2 == 1 && !STEP.is_multiple_of(5) && PAIRS == 256_000_000) };
        let index = &mut self.opened[usize::from(v6)];
        let pair = (u128::from(*index) * u128::from(STEP) + u128::from(self.config.seed)) % u128::from(PAIRS);
        *index += 1;
        let (client, port) = (pair as u64 % CLIENTS, pair as u64 / CLIENTS);
        let server = 1 + self.rng.below(SERVERS) as u32;
        Ends {
            v6,
            client: if v6 { address_v6(1, 1 + client) } else { address_v4(10, 1 + client as u32) },
            server: if v6 { address_v6(2, u64::from(server)) } else { address_v4(192, 168 << 16 | server) },
            client_port: 1024 + port as u16,
            server_port,
        }
    }

    /// IP bytes of the next data packet; `acked` as in [`Sizes::draw`](crate::Sizes).
    #[inline]
    pub(crate) fn size(&mut self, acked: bool) -> u16 {
        self.config.sizes.draw(&mut self.rng, &mut self.sizes_rng, acked)
    }

    /// Begins a flow. Its packets are counted from now on.
    pub(crate) fn open(&mut self, proto: u8, ends: Ends, attack: Option<AttackKind>) -> Flow {
        if !self.config.truth || self.truth.flows.len() >= NO_ROW as usize {
            return Flow { ends, row: NO_ROW };
        }
        let row = self.truth.flows.len() as u32;
        self.truth.flows.push(FlowTruth {
            proto,
            client: ip(ends.v6, &ends.client),
            client_port: ends.client_port,
            server: ip(ends.v6, &ends.server),
            server_port: ends.server_port,
            packets_client: 0,
            packets_server: 0,
            ip_bytes_client: 0,
            ip_bytes_server: 0,
            first_ns: 0,
            last_ns: 0,
            retransmits_client: 0,
            retransmits_server: 0,
            closed: Closed::Open,
            attack,
        });
        Flow { ends, row }
    }

    pub(crate) fn tcp(
        &mut self,
        now: u64,
        out: &mut Vec<u8>,
        flow: &Flow,
        from: From,
        header: &TcpHeader<'_>,
        payload: Payload<'_>,
    ) {
        self.encoder.tcp(out, &flow.ends, from, header, payload);
        self.count(now, out, flow, from);
    }

    pub(crate) fn udp(&mut self, now: u64, out: &mut Vec<u8>, flow: &Flow, from: From, payload: Payload<'_>) {
        self.encoder.udp(out, &flow.ends, from, payload);
        self.count(now, out, flow, from);
    }

    /// [`Core::udp`] with the payload in `scratch`.
    pub(crate) fn udp_scratch(&mut self, now: u64, out: &mut Vec<u8>, flow: &Flow, from: From) {
        self.encoder.udp(out, &flow.ends, from, Payload::Bytes(&self.scratch));
        self.count(now, out, flow, from);
    }

    pub(crate) fn echo(&mut self, now: u64, out: &mut Vec<u8>, flow: &Flow, from: From, sequence: u16) {
        self.encoder.echo(out, &flow.ends, from, 77, sequence, Payload::Pattern(56));
        self.count(now, out, flow, from);
    }

    /// Counts the packet in `frame`, and pads it if the wire would.
    fn count(&mut self, now: u64, frame: &mut Vec<u8>, flow: &Flow, from: From) {
        let ip_bytes = (frame.len() - ETHERNET_LEN) as u64;
        if self.config.pad && frame.len() < FRAME_LEN_MIN {
            frame.resize(FRAME_LEN_MIN, 0);
        }
        let truth = &mut self.truth;
        if truth.packets == 0 {
            truth.first_ns = now;
        }
        truth.packets += 1;
        truth.frame_bytes += frame.len() as u64;
        truth.ip_bytes += ip_bytes;
        truth.last_ns = now;
        let Some(row) = truth.flows.get_mut(flow.row as usize) else { return };
        if row.packets_client + row.packets_server == 0 {
            row.first_ns = now;
        }
        row.last_ns = now;
        match from {
            From::Client => {
                row.packets_client += 1;
                row.ip_bytes_client += ip_bytes;
            }
            From::Server => {
                row.packets_server += 1;
                row.ip_bytes_server += ip_bytes;
            }
        }
    }

    /// The packet just emitted repeated an earlier segment.
    pub(crate) fn retransmitted(&mut self, flow: &Flow, from: From) {
        self.truth.retransmits += 1;
        if let Some(row) = self.truth.flows.get_mut(flow.row as usize) {
            match from {
                From::Client => row.retransmits_client += 1,
                From::Server => row.retransmits_server += 1,
            }
        }
    }

    pub(crate) fn closed(&mut self, flow: &Flow, closed: Closed) {
        if let Some(row) = self.truth.flows.get_mut(flow.row as usize) {
            row.closed = closed;
        }
    }

    pub(crate) fn asked(&mut self, name: &str) {
        if !self.config.truth {
            return;
        }
        match self.truth.dns_names.get_mut(name) {
            Some(count) => *count += 1,
            None => {
                self.truth.dns_names.insert(name.to_owned(), 1);
            }
        }
    }

    /// Records the beginning of an attack and returns a handle for [`Core::attack_goes_on`].
    pub(crate) fn attack_begins(&mut self, attack: Attack) -> u32 {
        if self.truth.attacks.len() >= self.attacks_max {
            self.truth.attacks.remove(0);
            self.attacks_forgotten += 1;
        }
        self.truth.attacks.push(attack);
        self.attacks_forgotten + self.truth.attacks.len() as u32 - 1
    }

    pub(crate) fn attack_goes_on(&mut self, id: u32, now: u64) {
        let attack = id.checked_sub(self.attacks_forgotten).and_then(|i| self.truth.attacks.get_mut(i as usize));
        if let Some(attack) = attack {
            attack.end_ns = now;
        }
    }

    /// Attacks begun, those forgotten included.
    pub(crate) fn attacks_begun(&self) -> u64 {
        u64::from(self.attacks_forgotten) + self.truth.attacks.len() as u64
    }
}

/// Both directions of a TCP connection, with sequence numbers that add up.
pub(crate) struct Connection {
    pub(crate) flow: Flow,
    /// Next sequence number of client and server.
    next_seq: [u32; 2],
}

impl Connection {
    pub(crate) fn new(flow: Flow, core: &mut Core) -> Connection {
        Connection { flow, next_seq: [core.rng.next_u32(), core.rng.next_u32()] }
    }

    pub(crate) fn next_seq(&self, from: From) -> u32 {
        self.next_seq[from as usize]
    }

    /// Sends a segment that follows on what `from` sent before.
    pub(crate) fn send(&mut self, now: u64, core: &mut Core, out: &mut Vec<u8>, from: From, flags: u8, len: u16) {
        self.send_at(now, core, out, from, flags, len, self.next_seq(from));
        let phantom = u32::from(flags & (SYN | encode::FIN) != 0); // SYN and FIN occupy one number (RFC 9293, 3.4)
        let next = &mut self.next_seq[from as usize];
        *next = next.wrapping_add(u32::from(len) + phantom);
    }

    /// Sends a segment again that began at `seq`.
    pub(crate) fn resend(&mut self, now: u64, core: &mut Core, out: &mut Vec<u8>, from: From, len: u16, seq: u32) {
        self.send_at(now, core, out, from, encode::ACK | encode::PSH, len, seq);
        core.retransmitted(&self.flow, from);
    }

    #[allow(clippy::too_many_arguments, reason = "the private half of the two functions above")]
    fn send_at(&self, now: u64, core: &mut Core, out: &mut Vec<u8>, from: From, flags: u8, len: u16, seq: u32) {
        let options = if flags & SYN != 0 { SYN_OPTIONS } else { &[] };
        let header = TcpHeader { flags, seq, ack: self.next_seq(from.other()), options };
        core.tcp(now, out, &self.flow, from, &header, Payload::Pattern(len));
    }
}

/// `net.x.y.z` with the low 24 bits of `host`.
pub(crate) fn address_v4(net: u8, host: u32) -> [u8; 16] {
    let [_, x, y, z] = host.to_be_bytes();
    let mut address = [0; 16];
    address[..4].copy_from_slice(&[net, x, y, z]);
    address
}

/// `2001:db8:0:net::host`.
pub(crate) fn address_v6(net: u16, host: u64) -> [u8; 16] {
    let mut address = [0; 16];
    address[..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
    address[6..8].copy_from_slice(&net.to_be_bytes());
    address[8..].copy_from_slice(&host.to_be_bytes());
    address
}

pub(crate) fn ip(v6: bool, address: &[u8; 16]) -> IpAddr {
    if v6 { IpAddr::from(*address) } else { IpAddr::from([address[0], address[1], address[2], address[3]]) }
}
