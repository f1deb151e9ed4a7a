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
    /// Ethernet frames of this many bytes, FCS not counted; clamped to 60..=9014, and raised where the headers need more.
    Fixed(u16),
}

/// Bytes of the Ethernet header.
pub(crate) const ETHERNET_LEN: usize = 14;
/// Largest payload that [`Sizes`] can ask for.
pub(crate) const PAYLOAD_LEN_MAX: usize = 9_000;
/// IP bytes in the smallest Ethernet frame.
const IP_LEN_MIN: u16 = 46;

impl Sizes {
    /// IP bytes of the next data packet, 46 to 9000.
    #[inline]
    pub(crate) fn draw(self, rng: &mut Rng) -> u16 {
        match self {
            Sizes::Imix => match rng.below(100) {
                0..58 => IP_LEN_MIN,
                58..91 => 576,
                _ => 1500,
            },
            Sizes::Fixed(frame) => frame.saturating_sub(ETHERNET_LEN as u16).clamp(IP_LEN_MIN, PAYLOAD_LEN_MAX as u16),
        }
    }
}
