//! 802.11 data frames, bare or behind radiotap.

use crate::cursor::Cursor;
use crate::link::{Announced, llc};
use crate::{DropReason, Mac, PacketMeta};

const CUT: DropReason = DropReason::LinkTruncated;

/// Radiotap (radiotap.org): version, length and a bitmap of fields, all little-endian. Only the field `flags` matters
/// here: some cards pad the 802.11 header to 4 bytes, and say so there.
pub(crate) fn radiotap<'a>(c: Cursor<'a>, meta: &mut PacketMeta) -> Result<Announced<'a>, DropReason> {
    const TSFT: u8 = 0x01;
    const FLAGS: u8 = 0x02;
    const HEADER_IS_PADDED: u8 = 0x20;
    /// Bit 31 of a bitmap word: another follows. More words than this are not known to exist.
    const WORDS_MAX: usize = 16;
    let &[version, _, l0, l1, present, ..] = c.bytes::<8>(0).ok_or(CUT)?;
    let len = usize::from(u16::from_le_bytes([l0, l1]));
    if version != 0 || len < 8 {
        return Err(DropReason::LinkUnsupported);
    }
    let mut words = 1;
    while words < WORDS_MAX && c.u8(4 * words + 3).ok_or(CUT)? & 0x80 != 0 {
        words += 1;
    }
    let mut padded = false;
    if present & FLAGS != 0 {
        let at = 4 + 4 * words;
        // The timestamp before it is 8 bytes, aligned to 8 from the start of the header.
        let at = if present & TSFT != 0 { at.next_multiple_of(8) + 8 } else { at };
        padded = at < len && c.u8(at).ok_or(CUT)? & HEADER_IS_PADDED != 0;
    }
    wlan(c.skip(len), padded, meta)
}

/// An 802.11 header (IEEE 802.11 clause 9.2): only data frames in the clear carry IP that can be read, each behind
/// LLC/SNAP. Aggregates of several packets (A-MSDU) and later fragments are not taken apart.
pub(crate) fn wlan<'a>(c: Cursor<'a>, padded: bool, meta: &mut PacketMeta) -> Result<Announced<'a>, DropReason> {
    const VERSION_AND_TYPE: u8 = 0x0f;
    const DATA: u8 = 0x08;
    const NO_DATA: u8 = 0x40;
    const QOS: u8 = 0x80;
    const TO_DS: u8 = 0x01;
    const FROM_DS: u8 = 0x02;
    const PROTECTED: u8 = 0x40;
    /// In a QoS data frame: a field of HT control follows.
    const ORDER: u8 = 0x80;
    const AGGREGATE: u8 = 0x80;
    let h: &[u8; 24] = c.bytes(0).ok_or(CUT)?;
    let (kind, flags) = (h[0], h[1]);
    let fragment = h[22] & 0x0f;
    if kind & VERSION_AND_TYPE != DATA || kind & NO_DATA != 0 || flags & PROTECTED != 0 || fragment != 0 {
        return Err(DropReason::NotIp);
    }
    let address = |at: usize| c.bytes::<6>(at).map(|b| Mac(*b)).ok_or(CUT);
    // Which address is whose: IEEE 802.11 table 9-60.
    (meta.dst_mac, meta.src_mac) = match (flags & TO_DS != 0, flags & FROM_DS != 0) {
        (false, false) => (address(4)?, address(10)?),
        (false, true) => (address(4)?, address(16)?),
        (true, false) => (address(16)?, address(10)?),
        (true, true) => (address(16)?, address(24)?),
    };
    meta.has_mac = true;
    let mut len = if flags & (TO_DS | FROM_DS) == TO_DS | FROM_DS { 30 } else { 24 };
    if kind & QOS != 0 {
        if c.u8(len).ok_or(CUT)? & AGGREGATE != 0 {
            return Err(DropReason::NotIp);
        }
        len += if flags & ORDER != 0 { 6 } else { 2 };
    }
    llc(c.skip(if padded { len.next_multiple_of(4) } else { len }))
}
