use crate::Rng;

/// What to generate. Ratios are clamped to 0..=1; what else is clamped is said at each field, so that every value works.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Packets in all, attacks included: exactly as many are emitted.
    pub packets: u64,
    /// Background flows; clamped to 1..=packets. Attack flows come on top.
    pub flows: u64,
    /// Names the whole output.
    pub seed: u64,
    /// Time the traffic is spread over, ns; nominal: the last flows may end a little later. At least 1 ms.
    pub duration_ns: u64,
    /// Time of the beginning, ns since 1970.
    pub start_ns: u64,
    /// Share of background flows that are IPv6.
    pub v6_ratio: f64,
    /// Share of background flows that are UDP.
    pub udp_ratio: f64,
    /// Share of TCP data segments that are sent twice.
    pub retransmit_ratio: f64,
    /// Exponent of the Zipf distribution of flow sizes, 0 to 4; 0 makes all flows equal.
    pub zipf_exponent: f64,
    /// Packet lengths.
    pub sizes: Sizes,
    /// Whether frames are padded to 60 bytes, FCS not counted: the least that a wire carries. Without, the shortest are
    /// 54 bytes, as a capture on the sending host has them.
    pub pad: bool,
    /// Packets of the largest DNS flow; UDP flows of more go to other ports. Real resolvers ask little on one port.
    pub dns_packets_max: u32,
    /// Whether to mix in one attack of each [`AttackKind`](crate::AttackKind). They take some 6,000 packets plus a SYN
    /// flood of a twentieth of all packets (at most 20,000), and are left out where they would be more than half.
    pub attacks: bool,
    /// Whether to count per flow and per DNS name; about 120 bytes a flow. Totals and attacks are always counted.
    pub truth: bool,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            packets: 1_000_000,
            flows: 20_000,
            seed: 1,
            duration_ns: 300_000_000_000,
            start_ns: 1_700_000_000_000_000_000,
            v6_ratio: 0.25,
            udp_ratio: 0.35,
            retransmit_ratio: 0.01,
            zipf_exponent: 1.1,
            sizes: Sizes::Imix,
            pad: false,
            dns_packets_max: u32::MAX,
            attacks: true,
            truth: true,
        }
    }
}

/// Lengths of the packets that carry data; handshakes, acknowledgments, DNS and attacks have their natural lengths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sizes {
    /// IP packets of 40 bytes (58 %), 576 bytes (33 %) and 1500 bytes (9 %), the shortest raised to 46: what fills
    /// the smallest Ethernet frame.
    Imix,
    /// IP packets of 40, 576 and 1500 bytes as 7 to 4 to 1 of all packets, acknowledgments included, the shortest raised to
    /// 46: simple IMIX, 358 bytes a frame. Lengths are drawn apart from all else, so that the flows, packet by packet and to
    /// the nanosecond, are those that [`Sizes::Fixed`] gives for the same seed.
    Imix741,
    /// Ethernet frames of this many bytes, FCS not counted; clamped to 60..=9014, and raised where the headers need more.
    Fixed(u16),
}

/// Bytes of the Ethernet header.
pub(crate) const ETHERNET_LEN: usize = 14;
/// Largest payload that [`Sizes`] can ask for.
pub(crate) const PAYLOAD_LEN_MAX: usize = 9_000;
/// IP bytes in the smallest Ethernet frame.
const IP_LEN_MIN: u16 = 46;
/// Bytes of the smallest frame on a wire, FCS not counted.
pub(crate) const FRAME_LEN_MIN: usize = ETHERNET_LEN + IP_LEN_MIN as usize;

impl Sizes {
    /// IP bytes of the next data packet, 46 to 9000. `acked` says that every second packet is followed by an acknowledgment.
    #[inline]
    pub(crate) fn draw(self, rng: &mut Rng, sizes_rng: &mut Rng, acked: bool) -> u16 {
        match self {
            // Eight segments are followed by four acknowledgments: 3, 4 and 1 of the one make 7, 4 and 1 of both.
            Sizes::Imix741 => match sizes_rng.below(if acked { 8 } else { 12 }) {
                0 => 1500,
                1..5 => 576,
                _ => IP_LEN_MIN,
            },
            Sizes::Imix => match rng.below(100) {
                0..58 => IP_LEN_MIN,
                58..91 => 576,
                _ => 1500,
            },
            Sizes::Fixed(frame) => frame.saturating_sub(ETHERNET_LEN as u16).clamp(IP_LEN_MIN, PAYLOAD_LEN_MAX as u16),
        }
    }
}
