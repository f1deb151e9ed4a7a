//! One flow while it lasts: three cache lines that every packet updates, and one that only beginnings and ends touch.

use crate::pressure::Patience;
use crate::tcp::{Tcp, seen};
use crate::{EndReason, FlowRecord, TcpOpening};
use hints::Progress;
use wire::{Direction, FlowKey, Mac, Nanos, PacketMeta, TcpFlags, proto};

/// What one side has sent. 60 bytes, so that two of them and what they share fill two cache lines.
#[derive(Clone, Copy, Default)]
#[repr(C, packed(4))]
pub(crate) struct Side {
    pub(crate) bytes: u64,
    pub(crate) pkts: u32,
    /// Next sequence number expected from this side (RFC 9293 SND.NXT as the tap sees it).
    pub(crate) next_seq: u32,
    /// Latest acknowledgment number this side has sent.
    pub(crate) ack: u32,
    /// Time of this side's highest data, low 32 bits of µs since 1970: only short distances are asked for.
    pub(crate) newest_us: u32,
    /// While a round trip is being timed: the acknowledgment number that ends it.
    pub(crate) timed_seq: u32,
    /// When the timed segment was sent; while the other side repeats acknowledgments, when it last did.
    pub(crate) timed_us: u32,
    /// Low and high part of the goodput counter.
    goodput_lo: u32,
    goodput_hi: u16,
    pub(crate) retrans: u16,
    pub(crate) ooo: u16,
    pub(crate) lost: u16,
    pub(crate) dup_ack: u16,
    pub(crate) zwin: u16,
    pub(crate) fast: u16,
    pub(crate) spurious: u16,
    pub(crate) keep_alive: u16,
    /// Latest window, unscaled.
    pub(crate) window: u16,
    /// Union of control bits; of an ICMP flow its type (originator's side) and code (responder's side).
    pub(crate) flags: u8,
    pub(crate) ttl: u8,
    /// Acknowledgments repeated in a row, at most 15.
    repeats: u8,
    /// Of the originator's side the DSCP, of the responder's the protocol label.
    pub(crate) mark: u8,
}

impl Side {
    #[inline]
    pub(crate) fn add_goodput(&mut self, bytes: u32) {
        let (low, carry) = self.goodput_lo.overflowing_add(bytes);
        self.goodput_lo = low;
        // 2^48 bytes are more than a part can last for.
        self.goodput_hi = self.goodput_hi.wrapping_add(u16::from(carry));
    }

    pub(crate) fn goodput(&self) -> u64 {
        u64::from(self.goodput_hi) << 32 | u64::from(self.goodput_lo)
    }

    #[inline]
    pub(crate) fn repeats(&self) -> u8 {
        self.repeats
    }

    pub(crate) fn repeat(&mut self) {
        self.repeats += u8::from(self.repeats < 15);
    }

    #[inline]
    pub(crate) fn end_repeats(&mut self) {
        self.repeats = 0;
    }

    /// The same side at the start of the next part: what is counted starts again, what is known stays.
    fn next_part(&self) -> Side {
        Side {
            next_seq: self.next_seq,
            ack: self.ack,
            newest_us: self.newest_us,
            timed_seq: self.timed_seq,
            timed_us: self.timed_us,
            window: self.window,
            ttl: self.ttl,
            repeats: self.repeats,
            mark: self.mark,
            ..Side::default()
        }
    }
}

const _: () = assert!(size_of::<Side>() == 60);

/// Bits of `FlowState::bits`.
pub(crate) mod bits {
    /// The originator is the key's higher end.
    pub(crate) const FROM_HI: u8 = 1 << 0;
    /// `Birth::src_mac` and `dst_mac` hold addresses.
    pub(crate) const HAS_MAC: u8 = 1 << 1;
    /// ICMP type and code were captured.
    pub(crate) const HAS_ICMP: u8 = 1 << 2;
    /// Some packet of this part was older than the clock: `Birth::end` holds the latest time.
    pub(crate) const LATE: u8 = 1 << 3;
    /// A counter is full: the part ends before the next packet.
    pub(crate) const FULL: u8 = 1 << 4;
    /// `Deltas::told` holds what had been counted when the flow last told.
    pub(crate) const TOLD: u8 = 1 << 5;
    /// On which side of the last turn the flow has told, or begun.
    pub(crate) const TURN: u8 = 1 << 6;
}

/// No entry in the side arena.
pub(crate) const NO_EXTRA: u32 = u32::MAX;

#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct FlowState {
    pub(crate) key: FlowKey,
    /// Pipeline clock at the last packet: idle and closed timeouts count from here. Never decreases.
    pub(crate) last_clock: Nanos,
    /// Pipeline clock at the first packet of this part: the active timeout counts from here.
    pub(crate) part_clock: Nanos,
    /// Index 0 is the originator.
    pub(crate) sides: [Side; 2],
    /// Entry in the side arena; of a free slot the next free one.
    pub(crate) extra: u32,
    pub(crate) tcp: Tcp,
    pub(crate) bits: u8,
    /// What was seen of the first payloads.
    pub(crate) hint: Progress,
}

const _: () = assert!(size_of::<FlowState>() == 192);

/// What is written when a flow or a part begins and read when it ends. 48 bytes beside the state.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Birth {
    pub(crate) flow_id: u64,
    /// Earliest packet of this part.
    start: Nanos,
    /// Latest packet of this part; meaningful where `bits::LATE` is set, else that is `last_clock`.
    end: Nanos,
    src_mac: Mac,
    dst_mac: Mac,
    /// Where `seen::RTT_SRV` is set: from the SYN to the SYN/ACK, µs.
    pub(crate) rtt_srv_us: u32,
    /// Time of the latest SYN (of the SYN/ACK where no SYN was seen), in the unit of `Side::newest_us`; once `seen::RTT` is
    /// set, the distance from there to the first acknowledgment, µs.
    pub(crate) handshake_us: u32,
    part: u16,
    /// Packets of this part that were fragments.
    fragments: u16,
}

const _: () = assert!(size_of::<Birth>() == 48);

/// Adds one; a counter that is then full is told, so that the part ends before the next packet.
#[inline]
pub(crate) fn bump(counter: u16, bits: &mut u8) -> u16 {
    let counter = counter.saturating_add(1);
    if counter == u16::MAX {
        *bits |= bits::FULL;
    }
    counter
}

impl FlowState {
    /// A flow that begins with `p`, not yet counting it.
    #[inline]
    pub(crate) fn new(p: &PacketMeta) -> FlowState {
        // A SYN/ACK answers a SYN the tap did not see: its receiver opened the connection.
        let from_hi = (p.direction == Direction::HiToLo) != (p.has_tcp && p.flags.is_syn_ack());
        let bit = |on: bool, bit: u8| if on { bit } else { 0 };
        let mut sides = [Side::default(); 2];
        sides[0].mark = p.dscp;
        if p.has_icmp {
            sides[0].flags = p.icmp_type;
            sides[1].flags = p.icmp_code;
        }
        FlowState {
            key: p.key,
            last_clock: p.clock,
            part_clock: p.clock,
            sides,
            extra: NO_EXTRA,
            tcp: Tcp::default(),
            bits: bit(from_hi, bits::FROM_HI) | bit(p.has_mac, bits::HAS_MAC) | bit(p.has_icmp, bits::HAS_ICMP),
            hint: Progress::default(),
        }
    }

    /// Whether the slot holds a flow: one that does has counted a packet or is about to.
    #[inline]
    pub(crate) fn in_use(&self) -> bool {
        self.last_clock != Nanos::MAX
    }

    /// Marks the slot free, with another one behind it in the list.
    pub(crate) fn set_free(&mut self, next: u32) {
        self.last_clock = Nanos::MAX;
        self.extra = next;
    }

    /// In which direction the originator sends.
    pub(crate) fn originator(&self) -> Direction {
        if self.bits & bits::FROM_HI == 0 { Direction::LoToHi } else { Direction::HiToLo }
    }

    /// 0 for the originator, 1 for the responder.
    #[inline]
    pub(crate) fn side_of(&self, p: &PacketMeta) -> usize {
        usize::from(p.direction as u8 != self.bits & bits::FROM_HI)
    }

    /// Whether both sides have sent something in this part, or TCP was answered before it.
    #[inline]
    pub(crate) fn answered(&self) -> bool {
        self.sides[1].ttl != 0
    }

    /// Whether the originator acknowledges something that the responder must have sent.
    pub(crate) fn acknowledges(&self) -> bool {
        self.sides[0].pkts > 1 && self.sides[0].flags & TcpFlags::ACK != 0 && self.sides[0].flags & TcpFlags::RST == 0
    }

    /// Counts a packet of `side`. `birth` is touched only where the packet is late or a fragment.
    #[inline]
    pub(crate) fn update(&mut self, p: &PacketMeta, side: usize, birth: &mut Birth) {
        if p.ts != p.clock || p.fragment {
            self.unusual(p, birth);
        } else {
            self.bits &= !bits::LATE;
        }
        self.last_clock = p.clock;
        let s = &mut self.sides[side];
        // A packet with a TTL of 0 must not be on a wire; that it came is what counts here.
        s.ttl = if s.ttl == 0 { p.ttl.max(1) } else { s.ttl };
        s.pkts += 1;
        s.bytes += u64::from(p.ip_bytes);
        if s.pkts == u32::MAX {
            self.bits |= bits::FULL;
        }
    }

    #[cold]
    fn unusual(&mut self, p: &PacketMeta, birth: &mut Birth) {
        if p.fragment {
            birth.fragments = bump(birth.fragments, &mut self.bits);
        }
        if p.ts == p.clock {
            self.bits &= !bits::LATE;
        } else {
            // Before the first packet of a part is counted, `end` is its own time.
            let first = self.sides[0].pkts == 0 && self.sides[1].pkts == 0;
            let end = if self.bits & bits::LATE != 0 || first { birth.end } else { self.last_clock };
            birth.end = end.max(p.ts);
            birth.start = birth.start.min(p.ts);
            self.bits |= bits::LATE;
        }
    }

    /// When this flow is over unless a packet comes, in the pipeline's clock.
    #[inline]
    pub(crate) fn deadline(&self, patience: &Patience) -> Nanos {
        let after = if self.tcp.closed() { patience.closed() } else { patience.idle(self.key.proto, self.answered()) };
        if after == Nanos::MAX { Nanos::MAX } else { self.last_clock + after }
    }

    /// Whether the part must be exported before `p` is counted: the active timeout, or a counter that is full.
    #[inline]
    pub(crate) fn part_is_over(&self, p: &PacketMeta, active: Nanos) -> bool {
        (p.clock - self.part_clock >= active && active != Nanos::MAX) || self.bits & bits::FULL != 0
    }

    /// Starts the next part at `p`, after the previous one was exported.
    pub(crate) fn next_part(&mut self, p: &PacketMeta, birth: &mut Birth) {
        birth.part = birth.part.saturating_add(1);
        birth.fragments = 0;
        birth.start = p.ts;
        birth.end = p.ts;
        self.part_clock = p.clock;
        self.bits &= !(bits::FULL | bits::LATE | bits::TOLD);
        let icmp = [self.sides[0].flags, self.sides[1].flags];
        for side in &mut self.sides {
            *side = side.next_part();
        }
        if self.bits & bits::HAS_ICMP != 0 {
            [self.sides[0].flags, self.sides[1].flags] = icmp;
        }
    }

    /// What was counted since the last export, without what the side arena knows.
    pub(crate) fn record(&self, birth: &Birth, end_reason: EndReason) -> FlowRecord {
        let [o, r] = &self.sides;
        let k = &self.key;
        let (src_ip, src_port, dst_ip, dst_port) = match self.bits & bits::FROM_HI {
            0 => (k.lo, k.lo_port, k.hi, k.hi_port),
            _ => (k.hi, k.hi_port, k.lo, k.lo_port),
        };
        let is_tcp = k.proto == proto::TCP;
        let has_mac = self.bits & bits::HAS_MAC != 0;
        let has_icmp = self.bits & bits::HAS_ICMP != 0;
        let (rtt_us, rtt_srv_us, rtt_cli_us) = self.handshake(birth);
        FlowRecord {
            flow_id: birth.flow_id,
            start: birth.start,
            end: if self.bits & bits::LATE != 0 { birth.end } else { self.last_clock },
            src_ip,
            dst_ip,
            src_port,
            dst_port,
            proto: k.proto,
            part: birth.part,
            tap: k.tap,
            vlan: k.vlan,
            vlan_inner: k.vlan_inner,
            tunnel: k.tunnel,
            tunnel_id: k.tunnel_id,
            src_mac: has_mac.then_some(birth.src_mac),
            dst_mac: has_mac.then_some(birth.dst_mac),
            icmp: has_icmp.then_some((o.flags, r.flags)),
            fragments: u32::from(birth.fragments),
            pkts_o: u64::from(o.pkts),
            pkts_r: u64::from(r.pkts),
            bytes_o: o.bytes,
            bytes_r: r.bytes,
            goodput_o: o.goodput(),
            goodput_r: r.goodput(),
            flags_o: if is_tcp { o.flags } else { 0 },
            flags_r: if is_tcp { r.flags } else { 0 },
            conn_state: is_tcp.then(|| self.tcp.conn_state()),
            tcp_state: is_tcp.then(|| self.tcp.state()),
            end_reason,
            rtt_us,
            rtt_srv_us,
            rtt_cli_us,
            rtt_srv_life: None,
            rtt_cli_life: None,
            retrans_o: u32::from(o.retrans),
            retrans_r: u32::from(r.retrans),
            fast_retrans_o: u32::from(o.fast),
            fast_retrans_r: u32::from(r.fast),
            spurious_retrans_o: u32::from(o.spurious),
            spurious_retrans_r: u32::from(r.spurious),
            ooo_o: u32::from(o.ooo),
            ooo_r: u32::from(r.ooo),
            lost_o: u32::from(o.lost),
            lost_r: u32::from(r.lost),
            dup_ack_o: u32::from(o.dup_ack),
            dup_ack_r: u32::from(r.dup_ack),
            keep_alive_o: u32::from(o.keep_alive),
            keep_alive_r: u32::from(r.keep_alive),
            zwin_o: u32::from(o.zwin),
            zwin_r: u32::from(r.zwin),
            ttl_o: o.ttl,
            ttl_r: r.ttl,
            dscp: o.mark,
            app: hints::App::default(),
            text: hints::TextLens::default(),
        }
    }

    /// The handshake's round trip, and its halves: tap to responder, tap to originator. µs.
    fn handshake(&self, birth: &Birth) -> (Option<u32>, Option<u32>, Option<u32>) {
        let whole = self.tcp.has(seen::RTT).then_some(birth.handshake_us);
        let srv = self.tcp.has(seen::RTT_SRV).then_some(birth.rtt_srv_us);
        if self.tcp.has(seen::SYN) {
            (whole, srv, whole.zip(srv).and_then(|(whole, srv)| whole.checked_sub(srv)))
        } else {
            (None, None, whole)
        }
    }

    /// Why the flow is over once its deadline has passed.
    pub(crate) fn timeout_reason(&self) -> EndReason {
        if self.tcp.closed() { EndReason::Closed } else { EndReason::Idle }
    }

    pub(crate) fn opening(&self, p: &PacketMeta, birth: &Birth) -> TcpOpening {
        let k = &self.key;
        let (src_ip, dst_ip, dst_port) =
            if self.bits & bits::FROM_HI == 0 { (k.lo, k.hi, k.hi_port) } else { (k.hi, k.lo, k.lo_port) };
        TcpOpening { clock: p.clock, flow_id: birth.flow_id, src_ip, dst_ip, dst_port, tap: k.tap }
    }
}

impl Birth {
    /// Of a flow that begins with `p`; `from_hi` as in `FlowState::bits`.
    #[inline]
    pub(crate) fn new(p: &PacketMeta, from_hi: bool) -> Birth {
        let sent_by_originator = from_hi == (p.direction == Direction::HiToLo);
        let (src_mac, dst_mac) = if sent_by_originator { (p.src_mac, p.dst_mac) } else { (p.dst_mac, p.src_mac) };
        Birth {
            flow_id: flow_id(&p.key, p.ts),
            start: p.ts,
            end: p.ts,
            src_mac,
            dst_mac,
            rtt_srv_us: 0,
            handshake_us: 0,
            part: 0,
            fragments: 0,
        }
    }
}

/// Same in every run over the same packets. Two flows of one key that start in the same nanosecond share it.
fn flow_id(key: &FlowKey, start: Nanos) -> u64 {
    let h = key.stable_hash() ^ start.0.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let h = (h ^ h >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
    h ^ h >> 29
}
