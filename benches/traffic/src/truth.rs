use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::IpAddr;

/// What was generated, counted while it was emitted. Final once the generator has returned `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Truth {
    /// Packets.
    pub packets: u64,
    /// Bytes of all frames, Ethernet header included, FCS not.
    pub frame_bytes: u64,
    /// Bytes of all IP packets.
    pub ip_bytes: u64,
    /// Time of the first packet, ns since 1970; 0 before it.
    pub first_ns: u64,
    /// Time of the latest packet, ns since 1970.
    pub last_ns: u64,
    /// TCP segments that were a retransmission.
    pub retransmits: u64,
    /// Every flow in order of its first packet; a 5-tuple stands here once. Empty unless [`Config::truth`](crate::Config::truth).
    pub flows: Vec<FlowTruth>,
    /// The attacks begun so far, in order of their start.
    pub attacks: Vec<Attack>,
    /// DNS questions by name. Empty unless [`Config::truth`](crate::Config::truth).
    pub dns_names: BTreeMap<String, u64>,
}

/// One bidirectional flow; the client sent its first packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowTruth {
    /// IANA protocol number.
    pub proto: u8,
    /// Who sent the first packet.
    pub client: IpAddr,
    /// 0 for ICMP.
    pub client_port: u16,
    /// The other end.
    pub server: IpAddr,
    /// 0 for ICMP.
    pub server_port: u16,
    /// Packets the client sent.
    pub packets_client: u64,
    /// Packets the server sent.
    pub packets_server: u64,
    /// IP bytes the client sent.
    pub ip_bytes_client: u64,
    /// IP bytes the server sent.
    pub ip_bytes_server: u64,
    /// Time of the first packet, ns since 1970.
    pub first_ns: u64,
    /// Time of the last packet, ns since 1970.
    pub last_ns: u64,
    /// Segments the client sent again.
    pub retransmits_client: u64,
    /// Segments the server sent again.
    pub retransmits_server: u64,
    /// How a TCP connection ended.
    pub closed: Closed,
    /// The attack this flow is part of.
    pub attack: Option<AttackKind>,
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Closed {
    /// It did not, or it is not TCP.
    #[default]
    Open,
    /// FIN from both sides.
    Fin,
    /// RST from either side.
    Rst,
}

/// An attack (or other event worth finding) and when it took place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attack {
    /// What it is.
    pub kind: AttackKind,
    /// Time of its first packet, ns since 1970.
    pub start_ns: u64,
    /// Time of its last packet so far, ns since 1970.
    pub end_ns: u64,
    /// Who does it; `None` where there are many (SYN flood).
    pub source: Option<IpAddr>,
    /// Whom it is done to; `None` where there are many.
    pub target: Option<IpAddr>,
    /// Target port, where there is one.
    pub port: Option<u16>,
    /// How much of it there is when complete; the unit is said at each [`AttackKind`].
    pub count: u64,
}

/// The kinds of attack, in the order of their appearance in a capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum AttackKind {
    /// One SSH-like session over IPv6, an exchange every 5 s, never closed. Count: exchanges.
    LongLived,
    /// One TCP session every 10 s, give or take 100 ms. Count: sessions.
    Beaconing,
    /// SYNs from one host to ports 1 to `count` of another, 2 ms apart; 22, 80 and 443 are open. Count: ports.
    PortScanVertical,
    /// SYNs from one host to port 445 of many, 5 ms apart, none answered. Count: hosts.
    PortScanHorizontal,
    /// SYNs from a new random source each, within 4 s. Count: packets.
    SynFlood,
    /// UDP from one host to many, 7 ms apart. Count: distinct destinations.
    Superspreader,
    /// One upload of full segments within 10 s. Count: payload bytes.
    ExfilSpike,
    /// TXT queries for names with labels of 50 random hexadecimal digits, 40 ms apart. Count: queries.
    DnsTunnel,
    /// Echo requests from one host to 256, 10 ms apart; every sixteenth is answered. Count: hosts.
    IcmpSweep,
}

impl AttackKind {
    /// The name in JSON and on screens.
    pub const fn name(self) -> &'static str {
        match self {
            AttackKind::Beaconing => "beaconing",
            AttackKind::LongLived => "long_lived",
            AttackKind::PortScanVertical => "port_scan_vertical",
            AttackKind::PortScanHorizontal => "port_scan_horizontal",
            AttackKind::SynFlood => "syn_flood",
            AttackKind::Superspreader => "superspreader",
            AttackKind::ExfilSpike => "exfil_spike",
            AttackKind::DnsTunnel => "dns_tunnel",
            AttackKind::IcmpSweep => "icmp_sweep",
        }
    }
}

impl Truth {
    /// Writes the truth as one JSON object: totals, `attacks`, `dns_query_names`, `flow_columns`, and `flow_rows` as
    /// arrays in that order of columns.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write_json(&self, out: &mut impl Write) -> io::Result<()> {
        write!(
            out,
            "{{\"packets\":{},\"frame_bytes\":{},\"ip_bytes\":{},\"first_ns\":{},\"last_ns\":{},\"flows\":{},\"tcp_retransmitted_segments\":{},\n\"attacks\":[",
            self.packets,
            self.frame_bytes,
            self.ip_bytes,
            self.first_ns,
            self.last_ns,
            self.flows.len(),
            self.retransmits
        )?;
        for (i, attack) in self.attacks.iter().enumerate() {
            attack.write_json(out, separator(i))?;
        }
        write!(out, "],\n\"dns_query_names\":{{")?;
        for (i, (name, count)) in self.dns_names.iter().enumerate() {
            write!(out, "{}\"{name}\":{count}", separator(i))?; // names are letters, digits and dots: nothing to escape
        }
        write!(
            out,
            "}},\n\"flow_columns\":[\"proto\",\"client\",\"client_port\",\"server\",\"server_port\",\"packets_client\",\"packets_server\",\"ip_bytes_client\",\"ip_bytes_server\",\"first_ns\",\"last_ns\",\"retransmits_client\",\"retransmits_server\",\"closed\",\"attack\"],\n\"flow_rows\":["
        )?;
        for (i, flow) in self.flows.iter().enumerate() {
            flow.write_json(out, separator(i))?;
        }
        writeln!(out, "]}}")
    }
}

fn separator(index: usize) -> &'static str {
    if index == 0 { "" } else { ",\n" }
}

impl Attack {
    fn write_json(&self, out: &mut impl Write, separator: &str) -> io::Result<()> {
        write!(
            out,
            "{separator}{{\"kind\":\"{}\",\"start_ns\":{},\"end_ns\":{}",
            self.kind.name(),
            self.start_ns,
            self.end_ns
        )?;
        for (key, address) in [("source", self.source), ("target", self.target)] {
            if let Some(address) = address {
                write!(out, ",\"{key}\":\"{address}\"")?;
            }
        }
        if let Some(port) = self.port {
            write!(out, ",\"port\":{port}")?;
        }
        write!(out, ",\"count\":{}}}", self.count)
    }
}

impl FlowTruth {
    fn write_json(&self, out: &mut impl Write, separator: &str) -> io::Result<()> {
        let closed = match self.closed {
            Closed::Open => "open",
            Closed::Fin => "fin",
            Closed::Rst => "rst",
        };
        write!(
            out,
            "{separator}[{},\"{}\",{},\"{}\",{},{},{},{},{},{},{},{},{},\"{closed}\",",
            self.proto,
            self.client,
            self.client_port,
            self.server,
            self.server_port,
            self.packets_client,
            self.packets_server,
            self.ip_bytes_client,
            self.ip_bytes_server,
            self.first_ns,
            self.last_ns,
            self.retransmits_client,
            self.retransmits_server
        )?;
        match self.attack {
            Some(kind) => write!(out, "\"{}\"]", kind.name()),
            None => write!(out, "null]"),
        }
    }
}
