use crate::Addr;

/// Index of a tap (a named group of interfaces) in the list the server was started with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct TapId(pub u16);

/// The innermost encapsulation a packet was found in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Tunnel {
    /// Not tunnelled.
    #[default]
    None = 0,
    /// IP directly in IP, all four forms (RFC 2003, 2473, 4213).
    IpIp = 1,
    /// GRE (RFC 2784) and what is built on it: NVGRE (RFC 7637), and PPTP (RFC 2637), which has no id here, since its
    /// key differs by direction. The id is the key where there is one (RFC 2890).
    Gre = 2,
    /// VXLAN (RFC 7348) and VXLAN-GPE; the id is the VNI.
    Vxlan = 3,
    /// GENEVE (RFC 8926); the id is the VNI.
    Geneve = 4,
    /// GTP-U (3GPP TS 29.281); TEIDs differ by direction and are no part of a key.
    Gtpu = 5,
    /// Teredo (RFC 4380).
    Teredo = 6,
    /// ERSPAN of any type: a mirrored frame in GRE. A session may be of one direction; it is no part of a key.
    Erspan = 7,
    /// MPLS in UDP (RFC 7510) or IP (RFC 4023); labels differ by direction and are no part of a key.
    Mpls = 8,
    /// L2TP version 2 (RFC 2661); its ids differ by direction and are no part of a key.
    L2tp = 9,
    /// EtherIP (RFC 3378).
    EtherIp = 10,
}

impl Tunnel {
    /// Every kind, in discriminant order.
    pub const ALL: [Tunnel; 11] = [
        Tunnel::None,
        Tunnel::IpIp,
        Tunnel::Gre,
        Tunnel::Vxlan,
        Tunnel::Geneve,
        Tunnel::Gtpu,
        Tunnel::Teredo,
        Tunnel::Erspan,
        Tunnel::Mpls,
        Tunnel::L2tp,
        Tunnel::EtherIp,
    ];

    /// The name in records and tables; `None` for a packet in no tunnel.
    pub const fn name(self) -> Option<&'static str> {
        match self {
            Tunnel::None => None,
            Tunnel::IpIp => Some("ipip"),
            Tunnel::Gre => Some("gre"),
            Tunnel::Vxlan => Some("vxlan"),
            Tunnel::Geneve => Some("geneve"),
            Tunnel::Gtpu => Some("gtpu"),
            Tunnel::Teredo => Some("teredo"),
            Tunnel::Erspan => Some("erspan"),
            Tunnel::Mpls => Some("mpls"),
            Tunnel::L2tp => Some("l2tp"),
            Tunnel::EtherIp => Some("etherip"),
        }
    }
}

/// What makes two packets belong to one bidirectional flow. Both directions give the same key:
/// `(lo, lo_port) <= (hi, hi_port)`, address first.
///
/// 48 bytes without padding, so that hashing and comparing are a few wide loads.
#[derive(Clone, Copy, Debug, Default, Eq)]
#[repr(C)]
pub struct FlowKey {
    /// The lower endpoint's address.
    pub lo: Addr,
    /// The higher endpoint's address.
    pub hi: Addr,
    /// Port at `lo`; 0 without ports (ICMP, non-first fragments).
    pub lo_port: u16,
    /// Port at `hi`.
    pub hi_port: u16,
    /// Innermost protocol, an IANA number.
    pub proto: u8,
    /// Kind of the innermost tunnel.
    pub tunnel: Tunnel,
    /// Outer VLAN id (dot1qVlanId), 0 for none.
    pub vlan: u16,
    /// Second VLAN id (dot1qCustomerVlanId), 0 for none.
    pub vlan_inner: u16,
    /// Tap the packet was seen at.
    pub tap: TapId,
    /// VNI or GRE key, 0 for none.
    pub tunnel_id: u32,
}

const _: () = assert!(size_of::<FlowKey>() == 48);

/// Word by word: of a derived comparison of the addresses the compiler makes calls to memcmp, once a packet.
impl PartialEq for FlowKey {
    #[inline]
    fn eq(&self, other: &FlowKey) -> bool {
        let (a, b) = (self.words(), other.words());
        a.iter().zip(b).fold(0, |differences, (a, b)| differences | (a ^ b)) == 0
    }
}

impl std::hash::Hash for FlowKey {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.words().hash(state);
    }
}

impl FlowKey {
    /// The key as six little-endian words, for hashing: word order is `lo`, `hi`, ports and protocol, the rest.
    #[inline]
    pub fn words(&self) -> [u64; 6] {
        let half = |b: &[u8; 16], at: usize| {
            u64::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3], b[at + 4], b[at + 5], b[at + 6], b[at + 7]])
        };
        [
            half(&self.lo.0, 0),
            half(&self.lo.0, 8),
            half(&self.hi.0, 0),
            half(&self.hi.0, 8),
            u64::from(self.lo_port)
                | u64::from(self.hi_port) << 16
                | u64::from(self.proto) << 32
                | (self.tunnel as u64) << 40
                | u64::from(self.vlan) << 48,
            u64::from(self.vlan_inner) | u64::from(self.tap.0) << 16 | u64::from(self.tunnel_id) << 32,
        ]
    }

    /// A hash that is the same in every process and run: deals packets to workers and names flows.
    /// Not for tables: whoever knows it can aim at a bucket.
    pub fn stable_hash(&self) -> u64 {
        let mut h = 0x9e37_79b9_7f4a_7c15_u64;
        for w in self.words() {
            h = fold(h ^ w, 0xd6e8_feb8_6659_fd93);
        }
        fold(h, 0xa076_1d64_78bd_642f)
    }
}

/// Folded multiply: both halves of the 128-bit product, mixed.
pub(crate) fn fold(a: u64, b: u64) -> u64 {
    let p = u128::from(a) * u128::from(b);
    (p as u64) ^ ((p >> 64) as u64) ^ a.rotate_left(23)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_of_tunnel_stand_at_their_number_and_have_names_of_their_own() {
        for (index, kind) in Tunnel::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, index);
            assert_eq!(Tunnel::ALL.iter().filter(|other| other.name() == kind.name()).count(), 1);
        }
    }
}
