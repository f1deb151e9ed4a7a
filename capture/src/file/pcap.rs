use super::Stop;
use crate::{BATCH_FRAMES_MAX, Corruption};
use wire::{Frame, LinkType, Nanos, TapId};

/// Length of the file header.
pub(super) const HEADER_BYTES: usize = 24;
const RECORD_BYTES: usize = 16;
/// Interface index, protocol and packet type, which Kuznetzov's variant appends to each record header.
const MODIFIED_BYTES: usize = 8;

/// A classic pcap file (draft-ietf-opsawg-pcap).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pcap {
    swapped: bool,
    subsecond_ns: u64,
    /// Records so far whose fraction of a second is a second or more.
    pub(super) impossible_times: u64,
    record_bytes: usize,
    link: LinkType,
}

/// Why a file header is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeaderError {
    Magic,
    Version { major: u16, minor: u16 },
}

/// Whether four bytes start a pcap file, in either byte order.
pub(super) fn is_magic(magic: [u8; 4]) -> bool {
    variant(magic).is_some()
}

/// (byte-swapped, nanoseconds in a subsecond unit, length of a record header)
fn variant(magic: [u8; 4]) -> Option<(bool, u64, usize)> {
    let value = u32::from_le_bytes(magic);
    [
        (0xa1b2_c3d4_u32, 1_000, RECORD_BYTES),
        (0xa1b2_3c4d, 1, RECORD_BYTES),
        (0xa1b2_cd34, 1_000, RECORD_BYTES + MODIFIED_BYTES),
    ]
    .into_iter()
    .find(|(known, ..)| value == *known || value == known.swap_bytes())
    .map(|(known, ns, bytes)| (value != known, ns, bytes))
}

impl Pcap {
    pub(super) fn new(header: &[u8; HEADER_BYTES]) -> Result<Pcap, HeaderError> {
        let (swapped, subsecond_ns, record_bytes) =
            variant([header[0], header[1], header[2], header[3]]).ok_or(HeaderError::Magic)?;
        let word = |at: usize| order(swapped, [header[at], header[at + 1], header[at + 2], header[at + 3]]);
        // Two 16-bit fields: swapping the word also swaps their places.
        let (major, minor) =
            if swapped { ((word(4) >> 16) as u16, word(4) as u16) } else { (word(4) as u16, (word(4) >> 16) as u16) };
        if major != 2 {
            return Err(HeaderError::Version { major, minor });
        }
        // The upper half tells of a frame check sequence and is reserved otherwise: "ignored by readers".
        let link = LinkType::from_linktype(word(20) as u16);
        Ok(Pcap { swapped, subsecond_ns, impossible_times: 0, record_bytes, link })
    }

    /// Lends the complete records at the start of `window`; says how many bytes they take and why it stopped.
    pub(super) fn frames<'a>(
        &mut self,
        window: &'a [u8],
        tap: TapId,
        packet_bytes_max: usize,
        frames: &mut Vec<Frame<'a>>,
    ) -> (usize, Stop) {
        let mut at = 0;
        while frames.len() < BATCH_FRAMES_MAX {
            // The header as a whole, where it has more than the usual fields: what a damaged end of file is called must
            // not depend on how much of it was read at once.
            let header = window[at..].first_chunk::<RECORD_BYTES>();
            let Some(header) = header.filter(|_| window.len() - at >= self.record_bytes) else {
                return (at, Stop::Need(self.record_bytes));
            };
            let word = |at: usize| order(self.swapped, [header[at], header[at + 1], header[at + 2], header[at + 3]]);
            let captured = word(8) as usize;
            if captured > packet_bytes_max {
                let (bytes, max) = (captured as u64, packet_bytes_max as u64);
                return (at, Stop::Corrupt(Corruption::PacketLength { bytes, max }));
            }
            let end = self.record_bytes + captured;
            let Some(data) = window[at..].get(self.record_bytes..end) else {
                return (at, Stop::Need(end));
            };
            // Cannot overflow: 2^32 s are 4.3e18 ns, the subsecond field adds 4.3e12 at most. A field of a second or
            // more is added all the same, as tshark does.
            let subsecond = u64::from(word(4)) * self.subsecond_ns;
            if subsecond >= 1_000_000_000 {
                self.impossible_times += 1;
            }
            let ts = Nanos(u64::from(word(0)) * 1_000_000_000 + subsecond);
            let (data, wire_len) = super::lengths(data, word(12));
            frames.push(Frame { data, wire_len, ts, link: self.link, tap });
            at += end;
        }
        (at, Stop::Full)
    }
}

#[inline]
fn order(swapped: bool, bytes: [u8; 4]) -> u32 {
    let value = u32::from_le_bytes(bytes);
    if swapped { value.swap_bytes() } else { value }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(magic: u32, big: bool, version: (u16, u16), network: u32) -> [u8; HEADER_BYTES] {
        let mut h = Vec::new();
        let put32 = |h: &mut Vec<u8>, v: u32| h.extend(if big { v.to_be_bytes() } else { v.to_le_bytes() });
        put32(&mut h, magic);
        for v in [version.0, version.1] {
            h.extend(if big { v.to_be_bytes() } else { v.to_le_bytes() });
        }
        for v in [0, 0, 65535, network] {
            put32(&mut h, v);
        }
        h.try_into().unwrap()
    }

    #[test]
    fn every_magic_is_known_in_both_orders() {
        for (magic, ns, bytes) in [(0xa1b2_c3d4, 1000, 16), (0xa1b2_3c4d, 1, 16), (0xa1b2_cd34, 1000, 24)] {
            for big in [false, true] {
                let pcap = Pcap::new(&header(magic, big, (2, 4), 1)).unwrap();
                assert_eq!(
                    pcap,
                    Pcap {
                        swapped: big,
                        subsecond_ns: ns,
                        impossible_times: 0,
                        record_bytes: bytes,
                        link: LinkType::Ethernet
                    }
                );
            }
        }
        assert_eq!(Pcap::new(&header(0xa1b2_c3d5, false, (2, 4), 1)), Err(HeaderError::Magic));
    }

    #[test]
    fn the_version_is_read_in_the_order_of_the_file() {
        for big in [false, true] {
            let error = Pcap::new(&header(0xa1b2_c3d4, big, (3, 7), 1)).unwrap_err();
            assert_eq!(error, HeaderError::Version { major: 3, minor: 7 });
        }
    }

    #[test]
    fn a_record_header_is_read_when_it_is_whole() {
        // Kuznetzov's variant, whose header is cut behind a length that is too large.
        let mut pcap = Pcap::new(&header(0xa1b2_cd34, false, (2, 4), 1)).unwrap();
        let record = [&[0; 8][..], &u32::MAX.to_le_bytes(), &[0; 12]].concat();
        for len in 0..24 {
            let (used, stop) = pcap.frames(&record[..len], TapId(0), 1000, &mut Vec::new());
            assert_eq!((used, stop), (0, Stop::Need(24)), "{len}");
        }
        let (used, stop) = pcap.frames(&record, TapId(0), 1000, &mut Vec::new());
        let length = Corruption::PacketLength { bytes: u64::from(u32::MAX), max: 1000 };
        assert_eq!((used, stop), (0, Stop::Corrupt(length)));
    }

    #[test]
    fn frame_check_sequence_bits_are_no_part_of_the_link_type() {
        for big in [false, true] {
            // 4 bytes of FCS, the "present" bit, and Linux cooked capture v2.
            let pcap = Pcap::new(&header(0xa1b2_c3d4, big, (2, 4), 0x2400_0000 | 276)).unwrap();
            assert_eq!(pcap.link, LinkType::LinuxSll2);
        }
        let pcap = Pcap::new(&header(0xa1b2_c3d4, false, (2, 4), 147)).unwrap();
        assert_eq!(pcap.link, LinkType::Unsupported(147));
    }
}
