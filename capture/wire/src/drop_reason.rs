/// Why a frame became no flow packet. A discriminant indexes a counter array; nothing is formatted per packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum DropReason {
    /// Not an error: a frame that carries no IP (ARP, LLDP, spanning tree).
    NotIp,
    /// The link type of the capture is not decoded here.
    LinkUnsupported,
    /// The capture ends inside the link header or one of its tags.
    LinkTruncated,
    /// The capture ends inside an IP header.
    IpTruncated,
    /// The version nibble of an IP header is neither 4 nor 6; which of them it is need not be what announced it.
    IpVersion,
    /// An IP header that says it is shorter than it can be, or longer than its packet.
    IpHeaderLength,
    /// More nested encapsulations than `Limits::encapsulations_max`.
    EncapsulationDepth,
    /// More VLAN tags and MPLS labels than `Limits::tags_max`.
    TagDepth,
    /// More IPv6 extension headers than `Limits::extensions_max`.
    ExtensionDepth,
}

impl DropReason {
    /// Number of reasons: the length of a counter array indexed by `self as usize`.
    pub const COUNT: usize = Self::ALL.len();

    /// Every reason, in discriminant order.
    pub const ALL: [DropReason; 9] = [
        DropReason::NotIp,
        DropReason::LinkUnsupported,
        DropReason::LinkTruncated,
        DropReason::IpTruncated,
        DropReason::IpVersion,
        DropReason::IpHeaderLength,
        DropReason::EncapsulationDepth,
        DropReason::TagDepth,
        DropReason::ExtensionDepth,
    ];

    /// The name used in metrics, JSON and tables.
    pub const fn name(self) -> &'static str {
        match self {
            DropReason::NotIp => "not_ip",
            DropReason::LinkUnsupported => "link_unsupported",
            DropReason::LinkTruncated => "link_truncated",
            DropReason::IpTruncated => "ip_truncated",
            DropReason::IpVersion => "ip_version",
            DropReason::IpHeaderLength => "ip_header_length",
            DropReason::EncapsulationDepth => "encapsulation_depth",
            DropReason::TagDepth => "tag_depth",
            DropReason::ExtensionDepth => "extension_depth",
        }
    }

    /// Whether the frame was malformed, as opposed to merely not IP.
    pub const fn is_error(self) -> bool {
        !matches!(self, DropReason::NotIp)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn discriminants_index_the_list() {
        for (index, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
        }
    }
}
