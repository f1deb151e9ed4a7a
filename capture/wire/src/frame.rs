use crate::{Nanos, TapId};

/// One captured frame, lent by a source for the length of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// The captured bytes, from the start of the link header; at most `wire_len` of them.
    pub data: &'a [u8],
    /// Length on the wire in bytes, link header included, FCS excluded.
    pub wire_len: u32,
    /// When the frame was seen, by the source's clock; may run backwards within a capture.
    pub ts: Nanos,
    /// What `data` starts with.
    pub link: LinkType,
    /// Where it was seen.
    pub tap: TapId,
}

/// The link types this crate decodes; numbers are those of the LINKTYPE registry (tcpdump.org/linktypes.html).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LinkType {
    /// 1: Ethernet II or 802.3.
    Ethernet,
    /// 0 and 108: BSD loopback, a 4-byte address family (host or network byte order) before the packet.
    Null,
    /// 12, 14, 101, 228, 229: the packet starts with its IP header.
    RawIp,
    /// 9 and 50: PPP, with or without HDLC address and control bytes.
    Ppp,
    /// 113: Linux cooked capture v1.
    LinuxSll,
    /// 276: Linux cooked capture v2.
    LinuxSll2,
    /// 51: PPPoE without its Ethernet header (RFC 2516).
    PppEther,
    /// 166 and 204: PPP behind a byte that tells the direction, or that stands in the place of the HDLC address.
    PppDirection,
    /// 104: Cisco HDLC, address and control before an Ethernet type.
    CiscoHdlc,
    /// 100: RFC 2684 (once 1483) over ATM, LLC first.
    AtmLlc,
    /// 105: an 802.11 header.
    Wlan,
    /// 127: radiotap, then an 802.11 header.
    Radiotap,
    /// 192: Per-Packet Information, which names the link type that follows.
    Ppi,
    /// 109: OpenBSD's `enc`, 12 bytes before the packet that IPsec carried.
    Enc,
    /// 226: Solaris IP observability, 24 bytes before the packet.
    IpNet,
    /// 239: Linux netfilter log, attributes of which one is the packet.
    Nflog,
    /// 242: IP over InfiniBand (RFC 4391), 4 bytes.
    IpOverInfiniband,
    /// 138: Apple's IP over IEEE 1394, 18 bytes.
    IpOverFirewire,
    /// Any other LINKTYPE_ value: frames are counted, not decoded.
    Unsupported(u16),
}

impl LinkType {
    /// From a LINKTYPE_ value of a capture file.
    pub const fn from_linktype(value: u16) -> LinkType {
        match value {
            1 => LinkType::Ethernet,
            0 | 108 => LinkType::Null,
            12 | 14 | 101 | 228 | 229 => LinkType::RawIp,
            9 | 50 => LinkType::Ppp,
            113 => LinkType::LinuxSll,
            276 => LinkType::LinuxSll2,
            51 => LinkType::PppEther,
            166 | 204 => LinkType::PppDirection,
            104 => LinkType::CiscoHdlc,
            100 => LinkType::AtmLlc,
            105 => LinkType::Wlan,
            127 => LinkType::Radiotap,
            192 => LinkType::Ppi,
            109 => LinkType::Enc,
            226 => LinkType::IpNet,
            239 => LinkType::Nflog,
            242 => LinkType::IpOverInfiniband,
            138 => LinkType::IpOverFirewire,
            other => LinkType::Unsupported(other),
        }
    }

    /// The LINKTYPE_ value that [`LinkType::from_linktype`] turns back into this.
    pub const fn linktype(self) -> u16 {
        match self {
            LinkType::Ethernet => 1,
            LinkType::Null => 0,
            LinkType::RawIp => 101,
            LinkType::Ppp => 9,
            LinkType::LinuxSll => 113,
            LinkType::LinuxSll2 => 276,
            LinkType::PppEther => 51,
            LinkType::PppDirection => 204,
            LinkType::CiscoHdlc => 104,
            LinkType::AtmLlc => 100,
            LinkType::Wlan => 105,
            LinkType::Radiotap => 127,
            LinkType::Ppi => 192,
            LinkType::Enc => 109,
            LinkType::IpNet => 226,
            LinkType::Nflog => 239,
            LinkType::IpOverInfiniband => 242,
            LinkType::IpOverFirewire => 138,
            LinkType::Unsupported(value) => value,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_link_types_agree() {
        for value in 0..=u16::MAX {
            let link = LinkType::from_linktype(value);
            assert_eq!(LinkType::from_linktype(link.linktype()), link, "{value}");
        }
    }
}
