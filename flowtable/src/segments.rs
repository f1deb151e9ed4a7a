//! Places each TCP segment: in order, after a gap, sent again, out of order, probing; and times round trips.
//!
//! The meaning of each count is that of tshark's TCP analysis (its default settings), which people compare with. What
//! tshark decides with lists of segments is decided here with a few numbers a side.

use crate::extras::Extras;
use crate::sink::FlowSink;
use crate::state::{Birth, FlowState, Side, bump};
use crate::tcp::seen;
use wire::{Nanos, PacketMeta, TcpFlags};

/// A segment below the expected sequence number is out of order, not sent again, if it comes this soon after the newest
/// data of its side, µs: the round-trip time of the handshake, or this where that is not known.
const OUT_OF_ORDER_US: u32 = 3_000;
/// A segment that duplicate acknowledgments asked for is a fast retransmission if it comes this soon after them, µs.
const FAST_US: u32 = 20_000;
/// Duplicate acknowledgments that ask for a segment (RFC 5681 has three; the first may have been missed).
const FAST_REPEATS: u8 = 2;

const CONTROL: u8 = TcpFlags::SYN | TcpFlags::FIN | TcpFlags::RST;

/// Takes one TCP packet into account. Called after `FlowState::update`; `side` is who sent it.
#[inline]
pub(crate) fn track(
    flow: &mut FlowState,
    birth: &mut Birth,
    extras: &mut Extras,
    p: &PacketMeta,
    side: usize,
    sink: &mut impl FlowSink,
) {
    flow.sides[side].flags |= p.flags.0;
    let end = p.seq.wrapping_add(p.payload_len);
    let (own, other) = (&flow.sides[side], &flow.sides[1 - side]);
    // The next segment of a connection both of whose sides are known, on its way before it was acknowledged. One byte against a closed
    // window is a probe.
    let plain = flow.tcp.has_all(KNOWN)
        && p.seq == own.next_seq
        && p.flags.0 & (CONTROL | TcpFlags::ACK) == TcpFlags::ACK
        && p.window != 0
        && end.wrapping_sub(other.ack) as i32 > 0;
    if plain && (p.payload_len > 1 || p.payload_len == 1 && other.window != 0) {
        let (now, repeats) = (stamp(p.ts), other.repeats());
        let own = &mut flow.sides[side];
        own.next_seq = end;
        own.newest_us = now;
        own.add_goodput(p.payload_len);
        if !flow.tcp.has(seen::TIMED_O << side) && repeats == 0 {
            own.timed_seq = end;
            own.timed_us = now;
            flow.tcp.set(seen::TIMED_O << side);
        }
        acknowledge(flow, extras, p, side);
    } else if p.payload_len == 0
        && flow.tcp.has_all(KNOWN)
        && p.seq == own.next_seq
        && p.ack != own.ack
        && p.flags.0 & (CONTROL | TcpFlags::ACK) == TcpFlags::ACK
        && p.window != 0
    {
        acknowledge(flow, extras, p, side);
    } else {
        unusual(flow, birth, extras, p, side, sink);
    }
}

/// Bytes directly before the segment that were not seen. To be asked before it is taken into account.
#[inline]
pub(crate) fn missing_before(flow: &FlowState, p: &PacketMeta, side: usize) -> u32 {
    let ahead = p.seq.wrapping_sub(flow.sides[side].next_seq) as i32;
    if ahead > 0 && flow.tcp.has(seen::SEQ_O << side) { ahead as u32 } else { 0 }
}

/// Sequence and acknowledgment numbers of both sides are known.
const KNOWN: u16 = seen::SEQ_O | seen::SEQ_R | seen::ACK_O | seen::ACK_R;

/// Remembers what the packet acknowledges, which ends a round trip if one was waited for.
#[inline]
fn acknowledge(flow: &mut FlowState, extras: &mut Extras, p: &PacketMeta, side: usize) {
    let other = 1 - side;
    if flow.tcp.has(seen::TIMED_O << other) && p.ack.wrapping_sub(flow.sides[other].timed_seq) as i32 >= 0 {
        flow.tcp.clear(seen::TIMED_O << other);
        let us = stamp(p.ts).wrapping_sub(flow.sides[other].timed_us);
        // More than half the range of a stamp: the times ran backwards.
        if us <= u32::MAX / 2 {
            extras.round_trip(&mut flow.extra, other, us);
        }
    }
    let s = &mut flow.sides[side];
    if p.ack != s.ack {
        s.ack = p.ack;
        s.end_repeats();
    } else if s.repeats() > 0 {
        flow.sides[other].timed_us = stamp(p.ts);
    }
    flow.sides[side].window = p.window;
    flow.tcp.set(seen::ACK_O << side);
    flow.tcp.clear(seen::PROBE_O << side);
}

/// Anything but the next data and new acknowledgments.
#[inline(never)]
fn unusual(
    flow: &mut FlowState,
    birth: &mut Birth,
    extras: &mut Extras,
    p: &PacketMeta,
    side: usize,
    sink: &mut impl FlowSink,
) {
    let f = p.flags;
    if f.any(CONTROL) {
        control(flow, birth, extras, p, side, sink);
    }
    if f.0 & (TcpFlags::SYN | TcpFlags::ACK) == TcpFlags::ACK
        && flow.tcp.has(seen::SYN | seen::SYN_ACK)
        && !flow.tcp.has(seen::RTT)
        && (side == 1 || !f.any(TcpFlags::RST) || flow.tcp.has(seen::SYN_ACK))
    {
        // A refusal (RST with ACK) has made the round trip as well; an originator that gives up has not.
        birth.handshake_us = stamp(p.ts).wrapping_sub(birth.handshake_us);
        flow.tcp.set(seen::RTT);
    }
    let kind = classify(flow, birth, p, side);
    count(flow, p, side, kind);
    if kind != Kind::Probe {
        advance(flow, extras, p, side, kind);
    }
    if f.any(TcpFlags::ACK) {
        acknowledge(flow, extras, p, side);
    } else {
        // As in tshark: a RST that acknowledges nothing says 0, and what comes behind it is not called acknowledged.
        let s = &mut flow.sides[side];
        (s.ack, s.window) = (p.ack, p.window);
    }
    if kind == Kind::KeepAlive {
        flow.tcp.set(seen::PROBE_O << side);
    }
    if kind == Kind::DuplicateAck {
        flow.sides[side].repeat();
        // A segment may have been lost: its round trip would be timed wrong (Karn's algorithm, RFC 6298 section 3).
        flow.tcp.clear(seen::TIMED_O << (1 - side));
        flow.sides[1 - side].timed_us = stamp(p.ts);
    }
}

/// What a segment is in the sequence of its side.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The next one expected, or the first.
    Next,
    /// Past what was expected: something before it was not seen.
    AfterGap,
    /// The same, of data that was acknowledged already: the tap missed something, and sees this for a second time.
    AfterGapAgain,
    /// RFC 9293 section 3.8.4.
    KeepAlive,
    /// One byte against a closed window (RFC 9293 section 3.8.6.1); moves nothing.
    Probe,
    DuplicateAck,
    OutOfOrder,
    Again,
    FastAgain,
    SpuriousAgain,
}

fn classify(flow: &FlowState, birth: &Birth, p: &PacketMeta, side: usize) -> Kind {
    let (own, other) = (&flow.sides[side], &flow.sides[1 - side]);
    let f = p.flags;
    let other_acked = flow.tcp.has(seen::ACK_O << (1 - side));
    let end = p.seq.wrapping_add(p.payload_len);
    let acknowledged = p.payload_len > 0 && other_acked && other.ack != 0 && end.wrapping_sub(other.ack) as i32 <= 0;
    if !flow.tcp.has(seen::SEQ_O << side) {
        return if acknowledged { Kind::SpuriousAgain } else { Kind::Next };
    }
    let ahead = p.seq.wrapping_sub(own.next_seq) as i32;
    let control = f.any(CONTROL);
    if p.payload_len == 1 && ahead == 0 && other_acked && other.window == 0 {
        return Kind::Probe;
    }
    if ahead > 0 {
        return match f.any(TcpFlags::RST) {
            true => Kind::Next,
            false if acknowledged => Kind::AfterGapAgain,
            false => Kind::AfterGap,
        };
    }
    if p.payload_len <= 1 && ahead == -1 && !control {
        return Kind::KeepAlive;
    }
    let known = flow.tcp.has(seen::ACK_O << side);
    if p.payload_len == 0 && ahead == 0 && !control && known {
        let same = p.window != 0 && p.window == own.window && p.ack == own.ack;
        let answers_probe = flow.tcp.has(seen::PROBE_O << (1 - side));
        return if same && !answers_probe { Kind::DuplicateAck } else { Kind::Next };
    }
    if p.payload_len == 0 && !f.any(TcpFlags::SYN | TcpFlags::FIN) {
        return Kind::Next;
    }
    // More than one byte from one before the expected: new data behind a probe.
    let advances = ahead >= 0 || (p.payload_len > 1 && ahead == -1);
    if acknowledged {
        return Kind::SpuriousAgain;
    }
    if advances {
        return Kind::Next;
    }
    below(flow, birth, p, side, own, other)
}

/// A segment with something in it that lies below what was expected, and was not acknowledged yet.
fn below(flow: &FlowState, birth: &Birth, p: &PacketMeta, side: usize, own: &Side, other: &Side) -> Kind {
    let now = stamp(p.ts);
    let asked_for = other.repeats() >= FAST_REPEATS && other.ack == p.seq;
    if asked_for && now.wrapping_sub(own.timed_us) < FAST_US && !flow.tcp.has(seen::TIMED_O << side) {
        return Kind::FastAgain;
    }
    let has_rtt = flow.tcp.has_all(seen::SYN | seen::RTT) && birth.handshake_us > 0;
    let window_us = if has_rtt { birth.handshake_us } else { OUT_OF_ORDER_US };
    if now.wrapping_sub(own.newest_us) < window_us && own.next_seq != end_of(p) {
        return Kind::OutOfOrder;
    }
    Kind::Again
}

fn count(flow: &mut FlowState, p: &PacketMeta, side: usize, kind: Kind) {
    let (s, full) = (&mut flow.sides[side], &mut flow.bits);
    if p.window == 0 && !p.flags.any(CONTROL) && kind != Kind::Probe {
        s.zwin = bump(s.zwin, full);
    }
    match kind {
        Kind::Next | Kind::Probe => {}
        Kind::AfterGap => {
            s.lost = bump(s.lost, full);
        }
        Kind::AfterGapAgain => {
            s.lost = bump(s.lost, full);
            s.retrans = bump(s.retrans, full);
            s.spurious = bump(s.spurious, full);
        }
        Kind::KeepAlive => s.keep_alive = bump(s.keep_alive, full),
        Kind::DuplicateAck => s.dup_ack = bump(s.dup_ack, full),
        Kind::OutOfOrder => s.ooo = bump(s.ooo, full),
        Kind::Again => s.retrans = bump(s.retrans, full),
        Kind::FastAgain => {
            s.retrans = bump(s.retrans, full);
            s.fast = bump(s.fast, full);
        }
        Kind::SpuriousAgain => {
            s.retrans = bump(s.retrans, full);
            s.spurious = bump(s.spurious, full);
        }
    }
}

/// Moves what is expected, and counts payload that is new: what reaches beyond what was seen, and what fills gaps in that.
fn advance(flow: &mut FlowState, extras: &mut Extras, p: &PacketMeta, side: usize, kind: Kind) {
    let end = end_of(p);
    let known = flow.tcp.has(seen::SEQ_O << side);
    let next = flow.sides[side].next_seq;
    let gain = end.wrapping_sub(next) as i32;
    let ahead = p.seq.wrapping_sub(next) as i32;
    // A SYN is before its data, a FIN behind them.
    let first = p.seq.wrapping_add(u32::from(p.flags.any(TcpFlags::SYN)));
    if known && ahead < 0 && p.payload_len > 0 {
        let filled = extras.fill_gaps(flow.extra, side, first, p.payload_len);
        flow.sides[side].add_goodput(filled);
    }
    if known && ahead > 0 {
        extras.open_gap(&mut flow.extra, side, next, p.seq);
    }
    if known && gain <= 0 {
        if matches!(kind, Kind::Again | Kind::FastAgain | Kind::SpuriousAgain) {
            // Which one is acknowledged is not known: its round trip would be timed wrong (Karn's algorithm).
            flow.tcp.clear(seen::TIMED_O << side);
        }
        return;
    }
    let now = stamp(p.ts);
    // Nothing is timed while a segment may have been lost, as above.
    let is_timed = kind == Kind::Next && p.payload_len > 0 && flow.sides[1 - side].repeats() == 0;
    if is_timed && !flow.tcp.has(seen::TIMED_O << side) {
        let s = &mut flow.sides[side];
        (s.timed_seq, s.timed_us) = (end, now);
        flow.tcp.set(seen::TIMED_O << side);
    }
    flow.tcp.set(seen::SEQ_O << side);
    let s = &mut flow.sides[side];
    let beyond = first.wrapping_add(p.payload_len).wrapping_sub(next) as i32;
    s.add_goodput(if known { p.payload_len.min(beyond.max(0) as u32) } else { p.payload_len });
    (s.next_seq, s.newest_us) = (end, now);
}

/// The sequence number after the segment: SYN and FIN take one as well.
fn end_of(p: &PacketMeta) -> u32 {
    let control = u32::from(p.flags.any(TcpFlags::SYN | TcpFlags::FIN));
    p.seq.wrapping_add(p.payload_len).wrapping_add(control)
}

/// SYN, SYN/ACK, FIN and RST.
#[cold]
fn control(
    flow: &mut FlowState,
    birth: &mut Birth,
    extras: &mut Extras,
    p: &PacketMeta,
    side: usize,
    sink: &mut impl FlowSink,
) {
    let f = p.flags;
    let opens = f.is_syn() || (f.is_syn_ack() && !flow.tcp.has(seen::SYN_ACK));
    if opens && begins_anew(flow, extras, p, side) {
        // Another connection of the same ends: nothing of the old one's numbers holds.
        flow.tcp.clear(KNOWN | seen::TIMED_O | seen::TIMED_R | seen::PROBE_O | seen::PROBE_R);
        flow.sides.iter_mut().for_each(Side::end_repeats);
        extras.forget_gaps(flow.extra);
    }
    if f.is_syn() && side == 0 {
        if !flow.tcp.has(seen::SYN) {
            flow.tcp.set(seen::SYN);
            sink.syn(&flow.opening(p, birth));
        }
        // The latest SYN counts, as in tshark: the earlier ones were lost.
        if !flow.tcp.has(seen::RTT) {
            birth.handshake_us = stamp(p.ts);
        }
    }
    if f.is_syn_ack() && side == 1 && !flow.tcp.has(seen::SYN_ACK) {
        if flow.tcp.has(seen::SYN) {
            if !flow.tcp.has(seen::RTT) {
                birth.rtt_srv_us = stamp(p.ts).wrapping_sub(birth.handshake_us);
                flow.tcp.set(seen::RTT_SRV);
            }
            sink.established(&flow.opening(p, birth));
        } else if !flow.tcp.has(seen::RTT) {
            birth.handshake_us = stamp(p.ts);
        }
        flow.tcp.set(seen::SYN_ACK);
    }
    if f.any(TcpFlags::FIN) {
        flow.tcp.set(seen::FIN_O << side);
    }
    if f.any(TcpFlags::RST) && !flow.tcp.has(seen::RST_O | seen::RST_R) {
        flow.tcp.set(seen::RST_O << side);
    }
}

/// Whether a SYN opens another connection of the same ends: the one so far is closed, or it was answered and goes on at other sequence
/// numbers, as when its end was not seen. Without an answer it is still the same that is tried, and a flood of SYNs is one flow.
#[cold]
pub(crate) fn is_reused(flow: &FlowState, extras: &Extras, p: &PacketMeta) -> bool {
    flow.tcp.closed() || (flow.answered() && begins_anew(flow, extras, p, flow.side_of(p)))
}

/// Whether a SYN or SYN/ACK opens another connection than the one seen so far: it is not the one that began it, sent again, which
/// lies as far below what is expected as data was sent since, seen or not. Nobody sends it again after an active timeout or 2 GiB.
fn begins_anew(flow: &FlowState, extras: &Extras, p: &PacketMeta, side: usize) -> bool {
    let own = &flow.sides[side];
    let since = u64::from(own.next_seq.wrapping_sub(p.seq.wrapping_add(1)));
    let sent = own.goodput() + extras.missing(flow.extra, side);
    flow.tcp.has(seen::SEQ_O << side) && (since > sent + 1 || sent > u64::from(u32::MAX / 2))
}

/// Low 32 bits of the time in µs: distances up to 71 minutes come out right, which is all that is asked of it.
#[inline]
pub(crate) fn stamp(now: Nanos) -> u32 {
    now.as_micros() as u32
}
