use super::Stop;
use crate::{BATCH_FRAMES_MAX, Corruption};
use wire::{Frame, LinkType, Nanos, TapId};

/// First four bytes of a pcapng file, the same in both byte orders.
pub(super) const MAGIC: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE_DESCRIPTION: u32 = 1;
const OBSOLETE_PACKET: u32 = 2;
const SIMPLE_PACKET: u32 = 3;
const ENHANCED_PACKET: u32 = 6;

const BYTE_ORDER_LITTLE: [u8; 4] = [0x4d, 0x3c, 0x2b, 0x1a];
const BYTE_ORDER_BIG: [u8; 4] = [0x1a, 0x2b, 0x3c, 0x4d];

const OPTION_END: u16 = 0;
const OPTION_TSRESOL: u16 = 9;
const OPTION_TSOFFSET: u16 = 14;

/// Type and length; a block ends with its length again.
const BLOCK_HEAD_BYTES: usize = 8;
const BLOCK_BYTES_MIN: u32 = 12;
/// Room that options of a packet block get beyond the largest packet.
const OPTIONS_BYTES_MAX: u32 = 64 * 1024;
/// Interfaces one section may describe; each costs 32 bytes here.
const INTERFACES_MAX: usize = 65_536;

/// State of a pcapng file (draft-ietf-opsawg-pcapng) between blocks.
#[derive(Default)]
pub(super) struct Pcapng {
    big: bool,
    /// Those of the current section, in order of their description.
    interfaces: Vec<Interface>,
    /// Time of the latest packet that has one, for those that have none.
    clock: Nanos,
    /// The block that is being passed over.
    skip: Option<Skip>,
}

/// A block of no interest, however long: it is passed over as it streams by.
#[derive(Clone, Copy)]
struct Skip {
    at: u64,
    length: u32,
    left: u32,
}

struct Interface {
    link: LinkType,
    /// Bytes kept of each packet, 0 for all.
    snaplen: u32,
    resolution: Resolution,
    offset_s: i64,
}

/// `if_tsresol`: how a timestamp unit becomes nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Resolution {
    /// 10^-0 to 10^-9 s.
    Times(u64),
    /// 10^-10 s and finer.
    Over(u64),
    /// 2^-n s.
    Binary(u8),
}

/// One block, whole.
struct Block<'a> {
    kind: u32,
    big: bool,
    /// From the type field to the second length field.
    bytes: &'a [u8],
}

impl Pcapng {
    /// Where the record starts that begins or continues at `position`, and its length so far as `need` tells.
    pub(super) fn record_at(&self, position: u64, need: u64) -> (u64, u64) {
        self.skip.map_or((position, need), |skip| (skip.at, u64::from(skip.length)))
    }

    /// Whether the input may end here.
    pub(super) fn between_blocks(&self) -> bool {
        self.skip.is_none()
    }

    /// Lends the packets of the complete blocks at the start of `window`, which is at `position` of the input;
    /// says how many bytes it is done with and why it stopped.
    pub(super) fn frames<'a>(
        &mut self,
        window: &'a [u8],
        position: u64,
        tap: TapId,
        packet_bytes_max: usize,
        frames: &mut Vec<Frame<'a>>,
    ) -> (usize, Stop) {
        let length_max = u32::try_from(packet_bytes_max).unwrap_or(u32::MAX).saturating_add(OPTIONS_BYTES_MAX);
        let mut at = 0;
        while frames.len() < BATCH_FRAMES_MAX {
            let rest = &window[at..];
            if self.skip.is_some() {
                match self.pass_over(rest) {
                    Ok(used) => at += used,
                    Err((used, stop)) => return (at + used, stop),
                }
                continue;
            }
            let (kind, length) = match self.head(rest, length_max) {
                Ok(head) => head,
                Err(stop) => return (at, stop),
            };
            if !is_read(kind) {
                let left = length - BLOCK_BYTES_MIN;
                self.skip = Some(Skip { at: position + at as u64, length, left });
                at += BLOCK_HEAD_BYTES;
                continue;
            }
            let Some(bytes) = rest.get(..length as usize) else {
                return (at, Stop::Need(length as usize));
            };
            let block = Block { kind, big: self.big, bytes };
            match self.block(&block, tap) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => {}
                Err(corruption) => return (at, Stop::Corrupt(corruption)),
            }
            at += length as usize;
        }
        (at, Stop::Full)
    }

    /// Type and length of the block `rest` starts with. Takes over the byte order of a section header.
    fn head(&mut self, rest: &[u8], length_max: u32) -> Result<(u32, u32), Stop> {
        let Some((head, _)) = rest.split_first_chunk::<12>() else {
            return Err(Stop::Need(12));
        };
        let [t0, t1, t2, t3, l0, l1, l2, l3, order @ ..] = *head;
        if [t0, t1, t2, t3] == MAGIC {
            self.big = match order {
                BYTE_ORDER_LITTLE => false,
                BYTE_ORDER_BIG => true,
                other => {
                    let magic = u32::from_be_bytes(other);
                    return Err(Stop::Corrupt(Corruption::ByteOrder { magic }));
                }
            };
        }
        let kind = order_u32(self.big, [t0, t1, t2, t3]);
        let length = order_u32(self.big, [l0, l1, l2, l3]);
        let min = match kind {
            SECTION_HEADER => 28,
            INTERFACE_DESCRIPTION => 20,
            SIMPLE_PACKET => 16,
            ENHANCED_PACKET | OBSOLETE_PACKET => 32,
            _ => BLOCK_BYTES_MIN,
        };
        let max = if is_read(kind) { length_max } else { u32::MAX };
        if length < min || length > max || !length.is_multiple_of(4) {
            return Err(Stop::Corrupt(Corruption::BlockLength { bytes: length, min, max }));
        }
        Ok((kind, length))
    }

    /// Passes over the rest of a block of no interest; how many bytes of `rest` are done with.
    fn pass_over(&mut self, rest: &[u8]) -> Result<usize, (usize, Stop)> {
        let Some(skip) = &mut self.skip else { return Ok(0) };
        let used = (skip.left as usize).min(rest.len());
        skip.left -= used as u32;
        let Some((last, _)) = rest[used..].split_first_chunk::<4>() else {
            return Err((used, Stop::Need(4)));
        };
        let (first, last) = (skip.length, order_u32(self.big, *last));
        if first != last {
            return Err((used, Stop::Corrupt(Corruption::BlockLengths { first, last })));
        }
        self.skip = None;
        Ok(used + 4)
    }

    /// Takes in one block; its packet, if it is one.
    fn block<'a>(&mut self, block: &Block<'a>, tap: TapId) -> Result<Option<Frame<'a>>, Corruption> {
        let (first, last) = (block.bytes.len() as u32, block.u32(block.bytes.len() - 4));
        if first != last {
            return Err(Corruption::BlockLengths { first, last });
        }
        match block.kind {
            SECTION_HEADER => {
                let (major, minor) = (block.u16(12), block.u16(14));
                if major != 1 {
                    return Err(Corruption::SectionVersion { major, minor });
                }
                self.interfaces.clear();
                Ok(None)
            }
            INTERFACE_DESCRIPTION => {
                if self.interfaces.len() == INTERFACES_MAX {
                    return Err(Corruption::Interfaces { max: INTERFACES_MAX as u32 });
                }
                self.interfaces.push(Interface::new(block)?);
                Ok(None)
            }
            SIMPLE_PACKET => self.simple(block, tap).map(Some),
            OBSOLETE_PACKET => self.enhanced(block, u32::from(block.u16(8)), tap).map(Some),
            _ => self.enhanced(block, block.u32(8), tap).map(Some),
        }
    }

    /// Enhanced and obsolete packet blocks differ in the width of the interface index only.
    fn enhanced<'a>(&mut self, block: &Block<'a>, interface: u32, tap: TapId) -> Result<Frame<'a>, Corruption> {
        let interface = self.interface(interface)?;
        // An array, so that its fields are not checked one by one. `head` has seen that it is there.
        let Some(fields) = block.bytes.first_chunk::<28>() else {
            let bytes = block.bytes.len() as u32;
            return Err(Corruption::BlockLength { bytes, min: 32, max: u32::MAX });
        };
        let word = |at: usize| order_u32(block.big, [fields[at], fields[at + 1], fields[at + 2], fields[at + 3]]);
        let ts = interface.nanos(u64::from(word(12)) << 32 | u64::from(word(16)));
        let link = interface.link;
        let (data, wire_len) = super::lengths(block.data(28, word(20))?, word(24));
        self.clock = ts;
        Ok(Frame { data, wire_len, ts, link, tap })
    }

    /// A simple packet block has neither interface (it is the first) nor time nor captured length.
    fn simple<'a>(&self, block: &Block<'a>, tap: TapId) -> Result<Frame<'a>, Corruption> {
        let interface = self.interface(0)?;
        let wire_len = block.u32(8);
        let room = block.bytes.len() as u32 - 16;
        let kept = if interface.snaplen == 0 { room } else { room.min(interface.snaplen) };
        let data = block.data(12, kept.min(wire_len))?;
        Ok(Frame { data, wire_len, ts: self.clock, link: interface.link, tap })
    }

    fn interface(&self, index: u32) -> Result<&Interface, Corruption> {
        let interfaces = self.interfaces.len() as u32;
        self.interfaces.get(index as usize).ok_or(Corruption::Interface { interface: index, interfaces })
    }
}

/// Whether blocks of this type are looked into.
#[inline]
fn is_read(kind: u32) -> bool {
    matches!(kind, SECTION_HEADER | INTERFACE_DESCRIPTION | OBSOLETE_PACKET | SIMPLE_PACKET | ENHANCED_PACKET)
}

impl Interface {
    fn new(block: &Block<'_>) -> Result<Interface, Corruption> {
        let mut interface = Interface {
            link: LinkType::from_linktype(block.u16(8)),
            snaplen: block.u32(12),
            resolution: Resolution::Times(1_000),
            offset_s: 0,
        };
        let (mut at, end) = (16, block.bytes.len() - 4);
        while at + 4 <= end {
            let (code, bytes) = (block.u16(at), block.u16(at + 2));
            if code == OPTION_END {
                break;
            }
            let wrong = Corruption::OptionLength { code, bytes };
            at += 4;
            let value = block.bytes[..end].get(at..at + usize::from(bytes)).ok_or(wrong)?;
            match code {
                OPTION_TSRESOL => interface.resolution = Resolution::new(*value.first().ok_or(wrong)?),
                OPTION_TSOFFSET => {
                    let seconds = <[u8; 8]>::try_from(value).map_err(|_| wrong)?;
                    interface.offset_s =
                        if block.big { i64::from_be_bytes(seconds) } else { i64::from_le_bytes(seconds) };
                }
                _ => {}
            }
            at += usize::from(bytes).next_multiple_of(4);
        }
        Ok(interface)
    }

    #[inline]
    fn nanos(&self, units: u64) -> Nanos {
        let ns = self.resolution.nanos(units);
        if self.offset_s == 0 {
            return Nanos(ns);
        }
        let shifted = i128::from(ns) + i128::from(self.offset_s) * 1_000_000_000;
        Nanos(shifted.clamp(0, i128::from(u64::MAX)) as u64)
    }
}

impl Resolution {
    fn new(code: u8) -> Resolution {
        let exponent = u32::from(code & 0x7f);
        if code & 0x80 != 0 {
            return Resolution::Binary(code & 0x7f);
        }
        match exponent.checked_sub(9) {
            None | Some(0) => Resolution::Times(10_u64.pow(9 - exponent)),
            // Beyond 10^-28 s no count of 64 bits reaches a nanosecond.
            Some(finer) => Resolution::Over(10_u64.checked_pow(finer).unwrap_or(u64::MAX)),
        }
    }

    #[inline]
    fn nanos(self, units: u64) -> u64 {
        match self {
            Resolution::Times(ns) => units.saturating_mul(ns),
            Resolution::Over(per_ns) => units / per_ns,
            Resolution::Binary(bits) => u64::try_from((u128::from(units) * 1_000_000_000) >> bits).unwrap_or(u64::MAX),
        }
    }
}

/// Accessors for offsets below the least length of the block's type, which `Pcapng::head` has checked.
impl<'a> Block<'a> {
    #[inline]
    fn u16(&self, at: usize) -> u16 {
        let bytes = [self.bytes[at], self.bytes[at + 1]];
        if self.big { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) }
    }

    #[inline]
    fn u32(&self, at: usize) -> u32 {
        order_u32(self.big, [self.bytes[at], self.bytes[at + 1], self.bytes[at + 2], self.bytes[at + 3]])
    }

    /// `bytes` bytes of packet at `at`, before the second length.
    #[inline]
    fn data(&self, at: usize, bytes: u32) -> Result<&'a [u8], Corruption> {
        let room = &self.bytes[at..self.bytes.len() - 4];
        room.get(..bytes as usize).ok_or(Corruption::PacketInBlock { bytes, room: room.len() as u32 })
    }
}

#[inline]
fn order_u32(big: bool, bytes: [u8; 4]) -> u32 {
    if big { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolutions_become_nanoseconds_without_overflow() {
        let cases = [
            (0, 7, 7_000_000_000),
            (3, 7, 7_000_000),
            (6, 1_700_000_000_000_000, 1_700_000_000_000_000_000),
            (9, 42, 42),
            (12, 42_999, 42),
            (28, u64::MAX, 1),
            (29, u64::MAX, 1),
            (127, u64::MAX - 1, 0),
            (0x80, 3, 3_000_000_000),
            (0x80 | 10, 1536, 1_500_000_000),
            (0x80 | 32, 0x1_8000_0000, 1_500_000_000),
            (0x80 | 127, u64::MAX, 0),
            (0, u64::MAX, u64::MAX),
            (0x80, u64::MAX, u64::MAX),
        ];
        for (code, units, ns) in cases {
            assert_eq!(Resolution::new(code).nanos(units), ns, "if_tsresol {code:#x}, {units} units");
        }
    }

    #[test]
    fn offsets_shift_within_the_range_of_time() {
        let mut i = Interface { link: LinkType::Ethernet, snaplen: 0, resolution: Resolution::Times(1), offset_s: 10 };
        assert_eq!(i.nanos(5), Nanos(10_000_000_005));
        i.offset_s = -10;
        assert_eq!(i.nanos(10_000_000_005), Nanos(5));
        assert_eq!(i.nanos(5), Nanos::ZERO);
        i.offset_s = i64::MAX;
        assert_eq!(i.nanos(u64::MAX), Nanos::MAX);
    }
}
