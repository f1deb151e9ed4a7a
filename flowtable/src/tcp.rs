//! What a passive observer can tell of a TCP connection (RFC 9293): who opened it, how far it has come, the two halves of
//! its handshake.

use crate::{ConnState, TcpState};

/// Facts about a connection, as bits of `Tcp`. `_O` by the originator, `_R` by the responder; where a fact comes in both,
/// the responder's bit is the next one up, so that `_O << side` names either.
pub(crate) mod seen {
    pub(crate) const SYN: u16 = 1 << 0;
    pub(crate) const SYN_ACK: u16 = 1 << 1;
    /// `Birth::rtt_srv_us` holds a distance: SYN, then SYN/ACK were seen.
    pub(crate) const RTT_SRV: u16 = 1 << 2;
    /// `Birth::handshake_us` is a distance: the first acknowledgment after SYN or SYN/ACK was seen.
    pub(crate) const RTT: u16 = 1 << 3;
    pub(crate) const FIN_O: u16 = 1 << 4;
    pub(crate) const FIN_R: u16 = 1 << 5;
    /// RST, by whoever sent the first one.
    pub(crate) const RST_O: u16 = 1 << 6;
    pub(crate) const RST_R: u16 = 1 << 7;
    /// `Side::next_seq` holds a number.
    pub(crate) const SEQ_O: u16 = 1 << 8;
    pub(crate) const SEQ_R: u16 = 1 << 9;
    /// `Side::ack` and `Side::window` hold numbers.
    pub(crate) const ACK_O: u16 = 1 << 10;
    pub(crate) const ACK_R: u16 = 1 << 11;
    /// A round trip of this side's data is being timed.
    pub(crate) const TIMED_O: u16 = 1 << 12;
    pub(crate) const TIMED_R: u16 = 1 << 13;
    /// This side's latest segment was a keep-alive probe.
    pub(crate) const PROBE_O: u16 = 1 << 14;
    pub(crate) const PROBE_R: u16 = 1 << 15;
}

/// Connection facts that belong to both sides.
#[derive(Clone, Copy, Default)]
#[repr(transparent)]
pub(crate) struct Tcp(u16);

impl Tcp {
    /// Whether any of `bits` is set.
    #[inline]
    pub(crate) fn has(self, bits: u16) -> bool {
        self.0 & bits != 0
    }

    #[inline]
    pub(crate) fn has_all(self, bits: u16) -> bool {
        self.0 & bits == bits
    }

    #[inline]
    pub(crate) fn set(&mut self, bits: u16) {
        self.0 |= bits;
    }

    #[inline]
    pub(crate) fn clear(&mut self, bits: u16) {
        self.0 &= !bits;
    }

    /// FIN from both sides, or RST from either.
    #[inline]
    pub(crate) fn closed(self) -> bool {
        const FINS: u16 = seen::FIN_O | seen::FIN_R;
        self.has(seen::RST_O | seen::RST_R) || self.0 & FINS == FINS
    }

    /// The state of the connection as both ends together show it (RFC 9293 section 3.3.2).
    pub(crate) fn state(self) -> TcpState {
        match (self.has(seen::FIN_O), self.has(seen::FIN_R)) {
            _ if self.has(seen::RST_O | seen::RST_R) => TcpState::Closed,
            (true, true) => TcpState::TimeWait,
            (true, false) => TcpState::FinWait,
            (false, true) => TcpState::CloseWait,
            (false, false) if self.0 & (seen::SYN | seen::SYN_ACK | seen::ACK_R) == seen::SYN => TcpState::SynSent,
            (false, false) if self.0 & (seen::SYN_ACK | seen::RTT) == seen::SYN_ACK => TcpState::SynReceived,
            (false, false) => TcpState::Established,
        }
    }

    /// Zeek's summary of the connection (its function `conn_state`, scripts/base/protocols/conn/main.zeek).
    pub(crate) fn conn_state(self) -> ConnState {
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
            // The responder's own SYN was not seen: it counts as inactive until it closes.
            (true, false) if rst_r && fin_o => ConnState::RstR,
            (true, false) if rst_r => ConnState::Rej,
            (true, false) if rst_o && fin_r => ConnState::RstO,
            (true, false) if rst_o => ConnState::RstOs0,
            (true, false) => match (fin_o, fin_r) {
                (true, true) => ConnState::SF,
                (true, false) => ConnState::Sh,
                (false, true) => ConnState::S3,
                (false, false) => ConnState::S0,
            },
            (false, _) if rst_r && fin_o => ConnState::RstR,
            (false, _) if rst_r => ConnState::RstRh,
            (false, _) if rst_o && (fin_r || syn_ack) => ConnState::RstO,
            (false, _) if rst_o => ConnState::Oth,
            (false, _) => match (fin_o, fin_r) {
                (true, true) => ConnState::SF,
                (true, false) if syn_ack => ConnState::S2,
                (true, false) => ConnState::Sh,
                (false, true) => ConnState::Shr,
                (false, false) => ConnState::Oth,
            },
        }
    }
}
