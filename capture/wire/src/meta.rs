use crate::{Addr, FlowKey, Frame, Mac, Nanos, TapId, Tunnel};

/// Which endpoint of the key sent the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Direction {
    /// From `lo` to `hi`.
    #[default]
    LoToHi = 0,
    /// From `hi` to `lo`.
    HiToLo = 1,
}

/// TCP control bits (IPFIX tcpControlBits, RFC 9293 section 3.1), low byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// No more data from sender.
    pub const FIN: u8 = 0x01;
    /// Synchronize sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset the connection.
    pub const RST: u8 = 0x04;
    /// Push.
    pub const PSH: u8 = 0x08;
    /// Acknowledgment field is significant.
    pub const ACK: u8 = 0x10;

    /// Whether any of `bits` is set.
    pub const fn any(self, bits: u8) -> bool {
        self.0 & bits != 0
    }

    /// SYN without ACK: the opening of a connection.
    pub const fn is_syn(self) -> bool {
        self.0 & (Self::SYN | Self::ACK) == Self::SYN
    }

    /// SYN with ACK: the answer to an opening.
    pub const fn is_syn_ack(self) -> bool {
        self.0 & (Self::SYN | Self::ACK) == Self::SYN | Self::ACK
    }
}

/// What decoding found in one packet: everything later stages need, so that none reads the frame again
/// (payload hints excepted, which get the frame while it is still lent).
///
/// All of it is of the innermost IP header, save the VLAN ids, the MACs and `frame_bytes`. The order of the fields lets
/// the decoder of plain packets write several at once.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C)]
pub struct PacketMeta {
    /// The flow.
    pub key: FlowKey,
    /// Capture time as the source gave it; may run backwards.
    pub ts: Nanos,
    /// The pipeline's clock at this packet: the highest `ts` of the source so far. Every timeout uses this.
    pub clock: Nanos,
    /// IP bytes of the innermost level as its header says (octetDeltaCount): total length, or 40 + payload length.
    pub ip_bytes: u32,
    /// Bytes on the wire, link header included.
    pub frame_bytes: u32,
    /// TCP acknowledgment number; 0 unless `has_tcp`.
    pub ack: u32,
    /// TCP sequence number; 0 unless `has_tcp`.
    pub seq: u32,
    /// Transport payload bytes as the headers say; the capture may hold fewer. Of a later fragment, all behind its IP headers.
    pub payload_len: u32,
    /// What the fragments of one datagram share: IPv4 identification (fragmentIdentification), which every packet has,
    /// or that of an IPv6 fragment header, 0 without one.
    pub fragment_id: u32,
    /// Offset of the transport payload in the frame; past the capture's end if it was cut before. 65535 in a later fragment.
    pub payload_at: u16,
    /// TCP window, unscaled.
    pub window: u16,
    /// TCP control bits.
    pub flags: TcpFlags,
    /// Who sent it.
    pub direction: Direction,
    /// Time to live or hop limit, innermost level.
    pub ttl: u8,
    /// Differentiated services code point, 0-63 (RFC 2474), innermost level.
    pub dscp: u8,
    /// Destination MAC of the frame; meaningful when `has_mac`.
    pub dst_mac: Mac,
    /// Source MAC of the frame; meaningful when `has_mac`.
    pub src_mac: Mac,
    /// Where `fragment` is set, what IPv4 fragments of one datagram share besides: the protocol as their header says (RFC 791),
    /// whatever stands behind an authentication header. Of IPv6, where the identification is enough (RFC 8200 section 4.5), 0 unless
    /// that was cut off.
    pub fragment_proto: u8,
    /// Place in the datagram in units of 8 bytes (fragmentOffset); 0 in a first fragment and in a whole packet.
    pub fragment_offset: u16,
    /// ICMP or ICMPv6 type; meaningful when `has_icmp`.
    pub icmp_type: u8,
    /// ICMP or ICMPv6 code; meaningful when `has_icmp`.
    pub icmp_code: u8,
    /// The whole fixed TCP header (20 bytes) was captured.
    pub has_tcp: bool,
    /// ICMP type and code were captured.
    pub has_icmp: bool,
    /// The frame has an Ethernet or 802.11 header.
    pub has_mac: bool,
    /// Part of a fragmented datagram (an atomic IPv6 fragment is not): `more_fragments`, or an offset.
    pub fragment: bool,
    /// Further fragments follow this one.
    pub more_fragments: bool,
}

// One a packet of a batch: two cache lines hold it.
const _: () = assert!(size_of::<PacketMeta>() <= 128);

impl PacketMeta {
    /// All zero. A constant, since `Default` of arrays is a loop.
    pub const EMPTY: PacketMeta = PacketMeta {
        key: FlowKey {
            lo: Addr([0; 16]),
            hi: Addr([0; 16]),
            lo_port: 0,
            hi_port: 0,
            proto: 0,
            tunnel: Tunnel::None,
            vlan: 0,
            vlan_inner: 0,
            tap: TapId(0),
            tunnel_id: 0,
        },
        ts: Nanos::ZERO,
        clock: Nanos::ZERO,
        ip_bytes: 0,
        frame_bytes: 0,
        ack: 0,
        seq: 0,
        payload_len: 0,
        fragment_id: 0,
        payload_at: 0,
        window: 0,
        flags: TcpFlags(0),
        direction: Direction::LoToHi,
        ttl: 0,
        dscp: 0,
        dst_mac: Mac([0; 6]),
        src_mac: Mac([0; 6]),
        fragment_proto: 0,
        fragment_offset: 0,
        icmp_type: 0,
        icmp_code: 0,
        has_tcp: false,
        has_icmp: false,
        has_mac: false,
        fragment: false,
        more_fragments: false,
    };

    /// The transport payload as far as it was captured: never beyond the end of the IP packet, so that Ethernet padding
    /// is no payload; empty in a later fragment, or where the capture ends before it. `frame` is the one decoded.
    #[inline]
    pub fn payload<'a>(&self, frame: &Frame<'a>) -> &'a [u8] {
        let at = usize::from(self.payload_at);
        let end = (at + self.payload_len as usize).min(frame.data.len());
        // The highest offset also stands for those that do not fit.
        if self.payload_at == u16::MAX { &[] } else { frame.data.get(at..end).unwrap_or(&[]) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_is_the_default() {
        assert_eq!(PacketMeta::EMPTY, PacketMeta::default());
    }
}
