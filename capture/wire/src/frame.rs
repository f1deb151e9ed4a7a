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
            other => LinkType::Unsupported(other),
        }
    }
}
