//! One flow while it lasts: three cache lines, updated in place.

use crate::tcp::Tcp;
use crate::{EndReason, FlowRecord, TcpOpening, Timeouts};
use wire::{Direction, FlowKey, Mac, Nanos, PacketMeta, proto};

/// Counters of one side, by who sent.
#[derive(Clone, Copy, Default)]
pub(crate) struct Side {
    pub(crate) bytes: u64,
    pub(crate) pkts: u32,
    pub(crate) retrans: u32,
    pub(crate) ooo: u32,
    pub(crate) lost: u32,
    /// Next sequence number expected from this side (RFC 9293 SND.NXT as the tap sees it).
    pub(crate) next_seq: u32,
    pub(crate) zwin: u16,
    pub(crate) flags: u8,
    pub(crate) ttl: u8,
}

#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct FlowState {
    pub(crate) key: FlowKey,
    pub(crate) flow_id: u64,
    /// Pipeline clock at the last packet: idle and closed timeouts count from here. Never decreases.
    pub(crate) last_clock: Nanos,
    /// Index 0 is the originator.
    pub(crate) sides: [Side; 2],
    /// Earliest packet of this part.
    part_start: Nanos,
    /// Latest packet of this part, `>= part_start`.
    part_end: Nanos,
    /// Pipeline clock at the first packet of this part: the active timeout counts from here.
    part_clock: Nanos,
    pub(crate) tcp: Tcp,
    src_mac: Mac,
    dst_mac: Mac,
    part: u16,
    /// Which end of the key is the originator.
    pub(crate) originator: Direction,
    dscp: u8,
    icmp: (u8, u8),
    has_mac: bool,
    has_icmp: bool,
}

const _: () = assert!(size_of::<FlowState>() == 192);

impl FlowState {
    /// A flow that begins with `p`, not yet counting it.
    pub(crate) fn new(p: &PacketMeta) -> FlowState {
        // A SYN/ACK answers a SYN the tap did not see: its receiver opened the connection.
        let originator = match (p.has_tcp && p.flags.is_syn_ack(), p.direction) {
            (false, d) => d,
            (true, Direction::LoToHi) => Direction::HiToLo,
            (true, Direction::HiToLo) => Direction::LoToHi,
        };
        let (src_mac, dst_mac) =
            if originator == p.direction { (p.src_mac, p.dst_mac) } else { (p.dst_mac, p.src_mac) };
        FlowState {
            key: p.key,
            flow_id: flow_id(&p.key, p.ts),
            last_clock: p.clock,
            sides: [Side::default(); 2],
            part_start: p.ts,
            part_end: p.ts,
            part_clock: p.clock,
            tcp: Tcp::default(),
            src_mac,
            dst_mac,
            part: 0,
            originator,
            dscp: p.dscp,
            icmp: (p.icmp_type, p.icmp_code),
            has_mac: p.has_mac,
            has_icmp: p.has_icmp,
        }
    }

    /// Whether the slot holds a flow: one that does has counted a packet or is about to.
    pub(crate) fn in_use(&self) -> bool {
        self.last_clock != Nanos::MAX
    }

    /// Marks the slot free.
    pub(crate) fn set_free(&mut self) {
        self.last_clock = Nanos::MAX;
    }

    /// 0 for the originator, 1 for the responder.
    #[inline]
    pub(crate) fn side_of(&self, p: &PacketMeta) -> usize {
        usize::from(p.direction != self.originator)
    }

    /// Counts a packet.
    #[inline]
    pub(crate) fn update(&mut self, p: &PacketMeta) {
        self.last_clock = p.clock;
        self.part_start = self.part_start.min(p.ts);
        self.part_end = self.part_end.max(p.ts);
        let side = &mut self.sides[usize::from(p.direction != self.originator)];
        if side.ttl == 0 {
            side.ttl = p.ttl;
        }
        side.pkts += 1;
        side.bytes += u64::from(p.ip_bytes);
    }

    /// When this flow is over unless a packet comes, in the pipeline's clock.
    #[inline]
    pub(crate) fn deadline(&self, timeouts: &Timeouts) -> Nanos {
        let after =
            if self.tcp.closed() { timeouts.closed.min(timeouts.tcp_idle) } else { timeouts.idle(self.key.proto) };
        if after == Nanos::MAX { Nanos::MAX } else { self.last_clock + after }
    }

    /// Whether the part must be exported before `p` is counted: the active timeout, or a counter about to overflow.
    #[inline]
    pub(crate) fn part_is_over(&self, p: &PacketMeta, timeouts: &Timeouts) -> bool {
        (timeouts.active != Nanos::MAX && p.clock - self.part_clock >= timeouts.active)
            || self.sides[0].pkts.max(self.sides[1].pkts) == u32::MAX
    }

    /// Starts the next part at `p`, after the previous one was exported.
    pub(crate) fn next_part(&mut self, p: &PacketMeta) {
        self.part = self.part.saturating_add(1);
        self.part_start = p.ts;
        self.part_end = p.ts;
        self.part_clock = p.clock;
        for side in &mut self.sides {
            *side = Side { next_seq: side.next_seq, ttl: side.ttl, ..Side::default() };
        }
    }

    /// What was counted since the last export.
    pub(crate) fn record(&self, end_reason: EndReason) -> FlowRecord {
        let [o, r] = &self.sides;
        let k = &self.key;
        let lo_first = self.originator == Direction::LoToHi;
        let (src_ip, src_port, dst_ip, dst_port) =
            if lo_first { (k.lo, k.lo_port, k.hi, k.hi_port) } else { (k.hi, k.hi_port, k.lo, k.lo_port) };
        let is_tcp = k.proto == proto::TCP;
        FlowRecord {
            flow_id: self.flow_id,
            start: self.part_start,
            end: self.part_end,
            src_ip,
            dst_ip,
            src_port,
            dst_port,
            proto: k.proto,
            part: self.part,
            tap: k.tap,
            vlan: k.vlan,
            vlan_inner: k.vlan_inner,
            tunnel: k.tunnel,
            tunnel_id: k.tunnel_id,
            src_mac: self.has_mac.then_some(self.src_mac),
            dst_mac: self.has_mac.then_some(self.dst_mac),
            icmp: self.has_icmp.then_some(self.icmp),
            pkts_o: u64::from(o.pkts),
            pkts_r: u64::from(r.pkts),
            bytes_o: o.bytes,
            bytes_r: r.bytes,
            flags_o: o.flags,
            flags_r: r.flags,
            conn_state: is_tcp.then(|| self.tcp.conn_state()),
            end_reason,
            rtt_us: self.tcp.rtt_us(),
            rtt_srv_us: self.tcp.rtt_srv_us(),
            rtt_cli_us: self.tcp.rtt_cli_us(),
            retrans_o: o.retrans,
            retrans_r: r.retrans,
            ooo_o: o.ooo,
            ooo_r: r.ooo,
            lost_o: o.lost,
            lost_r: r.lost,
            zwin_o: u32::from(o.zwin),
            zwin_r: u32::from(r.zwin),
            ttl_o: o.ttl,
            ttl_r: r.ttl,
            dscp: self.dscp,
            ..FlowRecord::default()
        }
    }

    /// Why the flow is over once its deadline has passed.
    pub(crate) fn timeout_reason(&self) -> EndReason {
        if self.tcp.closed() { EndReason::Closed } else { EndReason::Idle }
    }

    pub(crate) fn opening(&self, p: &PacketMeta) -> TcpOpening {
        let k = &self.key;
        let (src_ip, dst_ip, dst_port) =
            if self.originator == Direction::LoToHi { (k.lo, k.hi, k.hi_port) } else { (k.hi, k.lo, k.lo_port) };
        TcpOpening { clock: p.clock, flow_id: self.flow_id, src_ip, dst_ip, dst_port, tap: k.tap }
    }
}

/// Same in every run over the same packets. Two flows of one key that start in the same nanosecond share it.
fn flow_id(key: &FlowKey, start: Nanos) -> u64 {
    let h = key.stable_hash() ^ start.0.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let h = (h ^ h >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
    h ^ h >> 29
}
