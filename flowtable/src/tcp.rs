//! What a passive observer can tell of a TCP connection (RFC 9293) from one packet after the other.

use crate::state::{FlowState, Side};
use crate::{ConnState, FlowSink};
use wire::{Nanos, PacketMeta, TcpFlags};

/// A segment below the expected sequence number is out of order, not resent, if it comes this soon after the newest
/// data of its side (the default of tshark's TCP analysis).
const OUT_OF_ORDER_WINDOW: Nanos = Nanos(3_000_000);

/// Facts about the connection, as bits of `Tcp::seen`. `_O` by the originator, `_R` by the responder.
mod seen {
    pub(super) const SYN: u16 = 1 << 0;
    pub(super) const SYN_ACK: u16 = 1 << 1;
    /// `Tcp::rtt_cli_us` is a distance: the handshake's ACK was seen.
    pub(super) const RTT_CLI: u16 = 1 << 2;
    pub(super) const FIN_O: u16 = 1 << 3;
    pub(super) const FIN_R: u16 = 1 << 4;
    /// RST, by whoever sent the first one.
    pub(super) const RST_O: u16 = 1 << 5;
    pub(super) const RST_R: u16 = 1 << 6;
    /// `Side::next_seq` holds a number.
    pub(super) const SEQ_O: u16 = 1 << 7;
    pub(super) const SEQ_R: u16 = 1 << 8;
    /// `Tcp::rtt_srv_us` is a distance: SYN, then SYN/ACK were seen.
    pub(super) const RTT_SRV: u16 = 1 << 9;
}

/// Connection facts that belong to both sides.
#[derive(Clone, Copy, Default)]
pub(crate) struct Tcp {
    /// Time of the newest data of each side, low 32 bits of µs since 1970: only short distances are asked for.
    newest_us: [u32; 2],
    /// Until `RTT_SRV` is seen: the time of the first SYN, in the unit of `newest_us`. From then on the distance.
    rtt_srv_us: u32,
    /// Until `RTT_CLI` is seen: the time of the SYN/ACK. From then on the distance.
    rtt_cli_us: u32,
    seen: u16,
}

impl Tcp {
    fn has(&self, bits: u16) -> bool {
        self.seen & bits != 0
    }

    /// FIN from both sides, or RST from either.
    #[inline]
    pub(crate) fn closed(&self) -> bool {
        self.has(seen::RST_O | seen::RST_R) || self.seen & (seen::FIN_O | seen::FIN_R) == seen::FIN_O | seen::FIN_R
    }

    /// SYN seen and not answered.
    pub(crate) fn half_open(&self) -> bool {
        self.seen & (seen::SYN | seen::SYN_ACK) == seen::SYN
    }

    pub(crate) fn rtt_srv_us(&self) -> Option<u32> {
        self.has(seen::RTT_SRV).then_some(self.rtt_srv_us)
    }

    pub(crate) fn rtt_cli_us(&self) -> Option<u32> {
        self.has(seen::RTT_CLI).then_some(self.rtt_cli_us)
    }

    pub(crate) fn rtt_us(&self) -> Option<u32> {
        Some(self.rtt_srv_us()?.saturating_add(self.rtt_cli_us()?))
    }

    /// Zeek's summary of the connection (Zeek manual, conn.log, `conn_state`).
    pub(crate) fn conn_state(&self) -> ConnState {
        let (syn, syn_ack) = (self.has(seen::SYN), self.has(seen::SYN_ACK));
        let (fin_o, fin_r) = (self.has(seen::FIN_O), self.has(seen::FIN_R));
        let (rst_o, rst_r) = (self.has(seen::RST_O), self.has(seen::RST_R));
        match (syn, syn_ack) {
            (true, true) if rst_o => ConnState::RstO,
            (true, true) if rst_r => ConnState::RstR,
            (true, true) => match (fin_o, fin_r) {
                (true, true) => ConnState::SF,
                (true, false) => ConnState::S2,
                (false, true) => ConnState::S3,
                (false, false) => ConnState::S1,
            },
            (true, false) if rst_r => ConnState::Rej,
            (true, false) if rst_o => ConnState::RstOs0,
            (true, false) if fin_o => ConnState::Sh,
            (true, false) => ConnState::S0,
            (false, true) if rst_r => ConnState::RstRh,
            (false, true) if fin_r => ConnState::Shr,
            (false, _) => ConnState::Oth,
        }
    }
}

/// Takes one TCP packet into account. Called after `FlowState::update`; `side` is who sent it.
#[inline]
pub(crate) fn track(flow: &mut FlowState, p: &PacketMeta, side: usize, sink: &mut impl FlowSink) {
    let f = p.flags;
    flow.sides[side].flags |= f.0;
    if f.any(TcpFlags::SYN | TcpFlags::FIN | TcpFlags::RST) {
        control(flow, p, side, sink);
    } else if side == 0 && flow.tcp.seen & (seen::SYN_ACK | seen::RTT_CLI) == seen::SYN_ACK {
        flow.tcp.rtt_cli_us = stamp(p.ts).wrapping_sub(flow.tcp.rtt_cli_us);
        flow.tcp.seen |= seen::RTT_CLI;
    }
    if p.window == 0 && !f.any(TcpFlags::RST | TcpFlags::FIN | TcpFlags::SYN) {
        let zwin = &mut flow.sides[side].zwin;
        *zwin = zwin.saturating_add(1);
    }
    let len = p.payload_len + u32::from(f.any(TcpFlags::SYN)) + u32::from(f.any(TcpFlags::FIN));
    if len > 0 && !f.any(TcpFlags::RST) {
        sequence(&mut flow.sides[side], &mut flow.tcp, p, side, len);
    }
}

/// SYN, SYN/ACK, FIN and RST.
#[cold]
fn control(flow: &mut FlowState, p: &PacketMeta, side: usize, sink: &mut impl FlowSink) {
    let f = p.flags;
    let by = |o, r| if side == 0 { o } else { r };
    if f.is_syn() && side == 0 && !flow.tcp.has(seen::SYN) {
        flow.tcp.seen |= seen::SYN;
        flow.tcp.rtt_srv_us = stamp(p.ts);
        sink.syn(&flow.opening(p));
    }
    if f.is_syn_ack() && side == 1 && !flow.tcp.has(seen::SYN_ACK) {
        if flow.tcp.has(seen::SYN) {
            flow.tcp.rtt_srv_us = stamp(p.ts).wrapping_sub(flow.tcp.rtt_srv_us);
            flow.tcp.seen |= seen::RTT_SRV;
            sink.established(&flow.opening(p));
        }
        flow.tcp.rtt_cli_us = stamp(p.ts);
        flow.tcp.seen |= seen::SYN_ACK;
    }
    if f.any(TcpFlags::FIN) {
        flow.tcp.seen |= by(seen::FIN_O, seen::FIN_R);
    }
    if f.any(TcpFlags::RST) && !flow.tcp.has(seen::RST_O | seen::RST_R) {
        flow.tcp.seen |= by(seen::RST_O, seen::RST_R);
    }
}

/// Places a segment of `len` sequence numbers: in order, after a gap, resent or out of order.
#[inline]
fn sequence(sender: &mut Side, tcp: &mut Tcp, p: &PacketMeta, side: usize, len: u32) {
    let known = if side == 0 { seen::SEQ_O } else { seen::SEQ_R };
    let end = p.seq.wrapping_add(len);
    let now_us = stamp(p.ts);
    if tcp.seen & known == 0 {
        tcp.seen |= known;
        sender.next_seq = end;
        tcp.newest_us[side] = now_us;
        return;
    }
    let ahead = p.seq.wrapping_sub(sender.next_seq) as i32;
    if ahead >= 0 {
        sender.lost += u32::from(ahead > 0);
        sender.next_seq = end;
        tcp.newest_us[side] = now_us;
    } else {
        let keep_alive = ahead == -1 && p.payload_len <= 1 && !p.flags.any(TcpFlags::SYN | TcpFlags::FIN);
        if !keep_alive {
            let since_newest = now_us.wrapping_sub(tcp.newest_us[side]);
            if u64::from(since_newest) < OUT_OF_ORDER_WINDOW.as_micros() && sender.lost > 0 {
                sender.ooo += 1;
            } else {
                sender.retrans += 1;
            }
        }
        if (end.wrapping_sub(sender.next_seq) as i32) > 0 {
            sender.next_seq = end;
        }
    }
}

/// Low 32 bits of the time in µs: distances up to 71 minutes come out right, which is all that is asked of it.
fn stamp(now: Nanos) -> u32 {
    now.as_micros() as u32
}
