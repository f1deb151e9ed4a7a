use hints::{App, TextLens};
use wire::{Addr, Mac, Nanos, TapId, Tunnel};

/// A finished flow, or the part of a long one since its last export. Fixed size, no heap: it travels by value
/// through the ring to the writer. `_o` is what the originator sent, `_r` what the responder sent.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct FlowRecord {
    /// Same for all parts of a flow, and in every run over the same packets.
    pub flow_id: u64,
    /// First packet of this part (flowStartNanoseconds), earliest time of its packets.
    pub start: Nanos,
    /// Last packet of this part (flowEndNanoseconds), latest time of its packets.
    pub end: Nanos,
    /// Originator's address (sourceIPv4Address, sourceIPv6Address).
    pub src_ip: Addr,
    /// Responder's address.
    pub dst_ip: Addr,
    /// Originator's port (sourceTransportPort); 0 without ports.
    pub src_port: u16,
    /// Responder's port.
    pub dst_port: u16,
    /// protocolIdentifier, innermost.
    pub proto: u8,
    /// 0 for the first part, counting up at each active timeout.
    pub part: u16,
    /// Capture point (observationPointId).
    pub tap: TapId,
    /// dot1qVlanId, 0 for none.
    pub vlan: u16,
    /// dot1qCustomerVlanId, 0 for none.
    pub vlan_inner: u16,
    /// Kind of the innermost tunnel.
    pub tunnel: Tunnel,
    /// VNI or GRE key, 0 for none.
    pub tunnel_id: u32,
    /// Originator's MAC, where the link has one.
    pub src_mac: Option<Mac>,
    /// Responder's MAC, where the link has one.
    pub dst_mac: Option<Mac>,
    /// ICMP type and code of the flow's first packet.
    pub icmp: Option<(u8, u8)>,
    /// Packets of either side that were fragments of a datagram.
    pub fragments: u32,
    /// Packets (packetDeltaCount).
    pub pkts_o: u64,
    /// Packets from the responder.
    pub pkts_r: u64,
    /// IP bytes (octetDeltaCount).
    pub bytes_o: u64,
    /// IP bytes from the responder.
    pub bytes_r: u64,
    /// Transport payload bytes, those sent again not counted again.
    pub goodput_o: u64,
    /// Transport payload bytes from the responder, those sent again not counted again.
    pub goodput_r: u64,
    /// Union of TCP control bits (tcpControlBits).
    pub flags_o: u8,
    /// Union of the responder's TCP control bits.
    pub flags_r: u8,
    /// Zeek's state code; `None` unless TCP.
    pub conn_state: Option<ConnState>,
    /// State of the connection when this record was made; `None` unless TCP.
    pub tcp_state: Option<TcpState>,
    /// Why this record was exported.
    pub end_reason: EndReason,
    /// SYN to the ACK that completes the handshake, µs; `None` unless all of it was seen.
    pub rtt_us: Option<u32>,
    /// SYN to SYN/ACK, µs: the half between tap and responder.
    pub rtt_srv_us: Option<u32>,
    /// SYN/ACK to ACK, µs: the half between tap and originator.
    pub rtt_cli_us: Option<u32>,
    /// Round trips between tap and responder during this part: data of the originator to its acknowledgment.
    pub rtt_srv_life: Option<RttLife>,
    /// Round trips between tap and originator during this part.
    pub rtt_cli_life: Option<RttLife>,
    /// Retransmitted segments, of whatever kind.
    pub retrans_o: u32,
    /// Retransmitted segments from the responder.
    pub retrans_r: u32,
    /// Of the retransmitted segments, those answering duplicate acknowledgments (fast retransmission, RFC 5681).
    pub fast_retrans_o: u32,
    /// Fast retransmissions from the responder.
    pub fast_retrans_r: u32,
    /// Of the retransmitted segments, those that had been acknowledged already.
    pub spurious_retrans_o: u32,
    /// Spurious retransmissions from the responder.
    pub spurious_retrans_r: u32,
    /// Segments out of order.
    pub ooo_o: u32,
    /// Segments out of order from the responder.
    pub ooo_r: u32,
    /// Gaps seen: segments the tap missed or that were lost before it.
    pub lost_o: u32,
    /// Gaps seen in what the responder sent.
    pub lost_r: u32,
    /// Duplicate acknowledgments.
    pub dup_ack_o: u32,
    /// Duplicate acknowledgments from the responder.
    pub dup_ack_r: u32,
    /// Keep-alive probes.
    pub keep_alive_o: u32,
    /// Keep-alive probes from the responder.
    pub keep_alive_r: u32,
    /// Zero-window advertisements.
    pub zwin_o: u32,
    /// Zero-window advertisements from the responder.
    pub zwin_r: u32,
    /// TTL or hop limit of the originator's first packet.
    pub ttl_o: u8,
    /// TTL or hop limit of the responder's first packet, 0 if it sent none.
    pub ttl_r: u8,
    /// DSCP of the flow's first packet.
    pub dscp: u8,
    /// What the flow speaks.
    pub app: App,
    /// Lengths of the texts that travel beside the record.
    pub text: TextLens,
}

/// Round-trip times over a part of a flow, µs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RttLife {
    /// Least.
    pub min_us: u32,
    /// Arithmetic mean, rounded.
    pub mean_us: u32,
    /// Greatest.
    pub max_us: u32,
    /// Estimate of the median, within a factor of two and between least and greatest.
    pub median_us: u32,
}

/// State of a TCP connection (RFC 9293 section 3.3.2), as far as both ends together can be told from between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum TcpState {
    /// SYN seen, not answered.
    SynSent,
    /// SYN/ACK seen, not acknowledged.
    SynReceived,
    /// Data may flow; also where the beginning was not seen.
    Established,
    /// The originator has sent FIN, not yet acknowledged, or acknowledged and the responder goes on.
    FinWait,
    /// The responder has sent FIN and the originator goes on.
    CloseWait,
    /// Both have sent FIN.
    TimeWait,
    /// Reset by either.
    Closed,
}

impl TcpState {
    /// Every state, in discriminant order.
    pub const ALL: [TcpState; 7] = [
        TcpState::SynSent,
        TcpState::SynReceived,
        TcpState::Established,
        TcpState::FinWait,
        TcpState::CloseWait,
        TcpState::TimeWait,
        TcpState::Closed,
    ];

    /// The name in records and tables.
    pub const fn name(self) -> &'static str {
        match self {
            TcpState::SynSent => "syn_sent",
            TcpState::SynReceived => "syn_received",
            TcpState::Established => "established",
            TcpState::FinWait => "fin_wait",
            TcpState::CloseWait => "close_wait",
            TcpState::TimeWait => "time_wait",
            TcpState::Closed => "closed",
        }
    }
}

/// Why a record was exported (flowEndReason, IANA IPFIX registry, plus eviction).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum EndReason {
    /// No packet for the idle timeout (1).
    #[default]
    Idle = 1,
    /// Still going on: the active timeout cut a part off (2).
    Active = 2,
    /// FIN from both sides, RST, or a SYN that opens another connection of the same ends (3).
    Closed = 3,
    /// The capture ended, or the server was stopped (4).
    Shutdown = 4,
    /// The table was at its cap (5, lack of resources).
    Evicted = 5,
}

impl EndReason {
    /// Every reason.
    pub const ALL: [EndReason; 5] =
        [EndReason::Idle, EndReason::Active, EndReason::Closed, EndReason::Shutdown, EndReason::Evicted];

    /// The name in records and tables.
    pub const fn name(self) -> &'static str {
        match self {
            EndReason::Idle => "idle",
            EndReason::Active => "active",
            EndReason::Closed => "closed",
            EndReason::Shutdown => "shutdown",
            EndReason::Evicted => "evicted",
        }
    }
}

/// State of a TCP connection as Zeek's `conn_state` codes it (Zeek manual, conn.log).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ConnState {
    /// SYN seen, no answer.
    S0,
    /// Established, not terminated.
    S1,
    /// Normal establishment and termination.
    SF,
    /// SYN answered by RST.
    Rej,
    /// Established, originator's FIN seen, none from the responder.
    S2,
    /// Established, responder's FIN seen, none from the originator.
    S3,
    /// Established, originator aborted with RST.
    RstO,
    /// Established, responder aborted with RST.
    RstR,
    /// Originator sent SYN then RST, no SYN/ACK seen.
    RstOs0,
    /// Responder sent SYN/ACK then RST, no SYN from the originator seen.
    RstRh,
    /// Originator sent SYN then FIN, no SYN/ACK seen.
    Sh,
    /// Responder sent SYN/ACK then FIN, no SYN from the originator seen.
    Shr,
    /// No SYN seen: midstream traffic.
    Oth,
}

impl ConnState {
    /// Every state, in discriminant order.
    pub const ALL: [ConnState; 13] = [
        ConnState::S0,
        ConnState::S1,
        ConnState::SF,
        ConnState::Rej,
        ConnState::S2,
        ConnState::S3,
        ConnState::RstO,
        ConnState::RstR,
        ConnState::RstOs0,
        ConnState::RstRh,
        ConnState::Sh,
        ConnState::Shr,
        ConnState::Oth,
    ];

    /// Zeek's code.
    pub const fn name(self) -> &'static str {
        match self {
            ConnState::S0 => "S0",
            ConnState::S1 => "S1",
            ConnState::SF => "SF",
            ConnState::Rej => "REJ",
            ConnState::S2 => "S2",
            ConnState::S3 => "S3",
            ConnState::RstO => "RSTO",
            ConnState::RstR => "RSTR",
            ConnState::RstOs0 => "RSTOS0",
            ConnState::RstRh => "RSTRH",
            ConnState::Sh => "SH",
            ConnState::Shr => "SHR",
            ConnState::Oth => "OTH",
        }
    }
}
