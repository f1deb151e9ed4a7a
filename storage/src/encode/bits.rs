//! The encodings of Parquet that segments use, over slices of plain numbers (apache/parquet-format, Encodings.md).

/// A number as Parquet stores it: 4 or 8 bytes, little endian, whatever sign its reader gives it.
pub(super) trait Word: Copy + Default + Ord {
    const BYTES: usize;
    fn bits(self) -> u64;
    /// With the sign of a number of `BYTES` bytes.
    fn signed(self) -> i64;
    fn minus(self, other: Self) -> Self;
}

impl Word for u32 {
    const BYTES: usize = 4;
    fn bits(self) -> u64 {
        u64::from(self)
    }
    fn signed(self) -> i64 {
        i64::from(self as i32)
    }
    fn minus(self, other: u32) -> u32 {
        self.wrapping_sub(other)
    }
}

impl Word for u64 {
    const BYTES: usize = 8;
    fn bits(self) -> u64 {
        self
    }
    fn signed(self) -> i64 {
        self as i64
    }
    fn minus(self, other: u64) -> u64 {
        self.wrapping_sub(other)
    }
}

/// PLAIN.
pub(super) fn plain<W: Word>(out: &mut Vec<u8>, values: &[W]) {
    for value in values {
        out.extend_from_slice(&value.bits().to_le_bytes()[..W::BYTES]);
    }
}

/// BYTE_STREAM_SPLIT: the first bytes of all values, then the second ones, and so on.
pub(super) fn split<W: Word>(out: &mut Vec<u8>, values: &[W]) {
    let all = values.iter().fold(0, |all, value| all | value.bits());
    for byte in 0..W::BYTES {
        if all >> (8 * byte) & 0xff == 0 {
            // Most numbers are much smaller than their type lets them be.
            out.resize(out.len() + values.len(), 0);
        } else {
            out.extend(values.iter().map(|value| (value.bits() >> (8 * byte)) as u8));
        }
    }
}

const DELTA_BLOCK: usize = 128;
const DELTA_MINIBLOCKS: usize = 4;
const DELTA_MINIBLOCK: usize = DELTA_BLOCK / DELTA_MINIBLOCKS;

/// DELTA_BINARY_PACKED, in blocks of 128 of four parts.
pub(super) fn delta<W: Word>(out: &mut Vec<u8>, values: &[W]) {
    varint(out, DELTA_BLOCK as u64);
    varint(out, DELTA_MINIBLOCKS as u64);
    varint(out, values.len() as u64);
    varint(out, zigzag(values.first().map_or(0, |first| first.signed())));
    for from in (1..values.len()).step_by(DELTA_BLOCK) {
        let until = (from + DELTA_BLOCK).min(values.len());
        let mut deltas = [0i64; DELTA_BLOCK];
        let pairs = values[from - 1..until].windows(2);
        let used = pairs.zip(&mut deltas).map(|(pair, delta)| *delta = pair[1].minus(pair[0]).signed()).count();
        let least = deltas[..used].iter().copied().min().unwrap_or(0);
        // Of the last block, what is not used counts as the least: it takes no bits.
        let mut above = [0u64; DELTA_BLOCK];
        for (above, delta) in above.iter_mut().zip(&deltas[..used]) {
            *above = delta.wrapping_sub(least) as u64;
        }
        varint(out, zigzag(least));
        let widths: [u32; DELTA_MINIBLOCKS] = std::array::from_fn(|part| {
            let part = &above[part * DELTA_MINIBLOCK..][..DELTA_MINIBLOCK];
            u64::BITS - part.iter().fold(0, |all, above| all | above).leading_zeros()
        });
        out.extend(widths.map(|width| width as u8));
        for (part, width) in above.as_chunks::<DELTA_MINIBLOCK>().0.iter().zip(widths) {
            pack(out, width, part.iter().copied());
        }
    }
}

/// Runs of at least this many equal values are told by length.
const RUN: usize = 32;

/// The hybrid of runs and packed values (RLE), of values of `width` bits.
pub(super) fn hybrid(out: &mut Vec<u8>, width: u32, values: &[u32]) {
    let (mut at, mut packed_from) = (0, 0);
    while at < values.len() {
        let run = equal_from(&values[at..]);
        // Packed values come in groups of eight, so a run inside them begins where a group does.
        if run >= RUN || (run == values.len() - at && run > 0) {
            packed(out, width, &values[packed_from..at]);
            self::run(out, width, values[at], run);
            at += run;
            packed_from = at;
        } else {
            at = (at + 8).min(values.len());
        }
    }
    packed(out, width, &values[packed_from..]);
}

/// One value, `length` times, as the hybrid has it.
pub(super) fn run(out: &mut Vec<u8>, width: u32, value: u32, length: usize) {
    varint(out, (length as u64) << 1);
    out.extend_from_slice(&value.to_le_bytes()[..width.div_ceil(8) as usize]);
}

/// The hybrid of flags: of values of one bit.
pub(super) fn flags(out: &mut Vec<u8>, flags: &[bool]) {
    let byte = |flags: &[bool]| flags.iter().enumerate().fold(0u8, |byte, (at, flag)| byte | u8::from(*flag) << at);
    let (groups, rest) = flags.as_chunks::<8>();
    let bytes: Vec<u8> = groups.iter().map(|group| byte(group)).collect();
    let packed = |out: &mut Vec<u8>, bytes: &[u8], more: usize| {
        if bytes.len() + more > 0 {
            varint(out, ((bytes.len() + more) as u64) << 1 | 1);
            out.extend_from_slice(bytes);
        }
    };
    let (mut at, mut packed_from) = (0, 0);
    while at < bytes.len() {
        let same = match bytes[at] {
            first @ (0 | 0xff) => bytes[at..].iter().take_while(|byte| **byte == first).count(),
            _ => 0,
        };
        if same * 8 >= RUN {
            packed(out, &bytes[packed_from..at], 0);
            run(out, 1, u32::from(bytes[at] & 1), same * 8);
            packed_from = at + same;
        }
        at += same.max(1);
    }
    packed(out, &bytes[packed_from..], usize::from(!rest.is_empty()));
    if !rest.is_empty() {
        out.push(byte(rest));
    }
}

/// How many values from the first on are equal to it. A run that goes on to the end may have any length; another one
/// takes whole groups of eight.
fn equal_from(values: &[u32]) -> usize {
    let Some(&first) = values.first() else { return 0 };
    let (groups, rest) = values.as_chunks::<8>();
    let whole = groups.iter().take_while(|group| group.iter().fold(0, |all, value| all | (value ^ first)) == 0).count();
    match whole == groups.len() && rest.iter().all(|value| *value == first) {
        true => values.len(),
        false => whole * 8,
    }
}

fn packed(out: &mut Vec<u8>, width: u32, values: &[u32]) {
    if values.is_empty() {
        return;
    }
    let (groups, rest) = values.as_chunks::<8>();
    varint(out, (values.len().div_ceil(8) as u64) << 1 | 1);
    pack_groups(out, width, groups);
    if !rest.is_empty() {
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        pack_groups(out, width, &[last]);
    }
}

/// Values of `width` bits one after the other, from the lowest bit of a byte up; their bits are a multiple of 8.
fn pack(out: &mut Vec<u8>, width: u32, values: impl Iterator<Item = u64>) {
    if width == 0 {
        return;
    }
    if width <= 32 {
        let (mut held, mut bits) = (0u64, 0);
        for value in values {
            held |= value << bits;
            bits += width;
            if bits >= 32 {
                out.extend_from_slice(&(held as u32).to_le_bytes());
                held >>= 32;
                bits -= 32;
            }
        }
        out.extend_from_slice(&held.to_le_bytes()[..bits.div_ceil(8) as usize]);
    } else {
        let (mut held, mut bits) = (0u128, 0);
        for value in values {
            held |= u128::from(value) << bits;
            bits += width;
            if bits >= 64 {
                out.extend_from_slice(&(held as u64).to_le_bytes());
                held >>= 64;
                bits -= 64;
            }
        }
        out.extend_from_slice(&held.to_le_bytes()[..bits.div_ceil(8) as usize]);
    }
}

/// Groups of eight values of `width` bits, which take `width` bytes each.
fn pack_groups(out: &mut Vec<u8>, width: u32, groups: &[[u32; 8]]) {
    // With the width known when this is compiled, eight values are a handful of shifts.
    fn of_width<const WIDTH: usize>(out: &mut Vec<u8>, groups: &[[u32; 8]]) {
        let first = out.len();
        out.resize(first + groups.len() * WIDTH, 0);
        for (bytes, group) in out[first..].as_chunks_mut::<WIDTH>().0.iter_mut().zip(groups) {
            let half = |at: usize| (0..4).fold(0, |held, to| held | u64::from(group[at + to]) << (to * WIDTH));
            let whole = u128::from(half(0)) | u128::from(half(4)) << (4 * WIDTH);
            bytes.copy_from_slice(&whole.to_le_bytes()[..WIDTH]);
        }
    }
    macro_rules! widths {
        ($($width:literal)*) => {
            match width {
                $($width => of_width::<$width>(out, groups),)*
                _ => pack(out, width, groups.as_flattened().iter().map(|value| u64::from(*value))),
            }
        };
    }
    widths!(1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16)
}

/// Bits that `values` values from 0 on take.
pub(super) fn width_of(values: usize) -> u32 {
    usize::BITS - values.saturating_sub(1).leading_zeros()
}

/// ULEB128.
fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_of_the_specification() {
        // Encodings.md: 0 to 7 in three bits.
        let mut out = Vec::new();
        pack(&mut out, 3, 0..8);
        assert_eq!(out, [0b1000_1000, 0b1100_0110, 0b1111_1010]);
        // Its first example of deltas: 1, 2, 3, 4, 5 are one after the other: nothing is left to pack.
        out.clear();
        delta(&mut out, &[1u32, 2, 3, 4, 5]);
        assert_eq!(out, [0x80, 1, 4, 5, 2, 2, 0, 0, 0, 0]);
        // The second: 7, 5, 3, 1, 2, 3, 4, 5; least delta -2, above it 0 0 0 3 3 3 3 in two bits.
        out.clear();
        delta(&mut out, &[7u32, 5, 3, 1, 2, 3, 4, 5]);
        assert_eq!(out, [0x80, 1, 4, 8, 14, 3, 2, 0, 0, 0, 0b1100_0000, 0b0011_1111, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn runs_are_told_by_length_and_others_packed() {
        let mut out = Vec::new();
        hybrid(&mut out, 2, &[1; 100]);
        assert_eq!(out, [200, 1, 1]);
        out.clear();
        let values: Vec<u32> = (0..8).map(|n| n % 4).chain([3; 40]).chain([2]).collect();
        hybrid(&mut out, 2, &values);
        assert_eq!(out, [3, 0b1110_0100, 0b1110_0100, 80, 3, 2, 2]);
        out.clear();
        hybrid(&mut out, 0, &[0; 5]);
        assert_eq!(out, [10]);
    }

    #[test]
    fn groups_and_flags_are_what_single_values_are() {
        let mut random = 1u64;
        let mut next = || {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            random >> 32
        };
        for width in 0..=32 {
            let groups: Vec<[u32; 8]> =
                (0..20).map(|_| std::array::from_fn(|_| (next() & ((1 << width) - 1)) as u32)).collect();
            let (mut one, mut other) = (Vec::new(), Vec::new());
            pack_groups(&mut one, width, &groups);
            pack(&mut other, width, groups.as_flattened().iter().map(|value| u64::from(*value)));
            assert_eq!(one, other, "{width} bits");
        }
        for _ in 0..200 {
            let mut flags: Vec<bool> = Vec::new();
            for _ in 0..next() % 6 {
                match next() % 2 {
                    0 => flags.extend(std::iter::repeat_n(next() % 2 == 0, next() as usize % 90)),
                    _ => flags.extend((0..next() % 90).map(|_| next() % 2 == 0)),
                }
            }
            let mut encoded = Vec::new();
            super::flags(&mut encoded, &flags);
            assert_eq!(decoded(&encoded, flags.len()), flags);
        }
    }

    /// The hybrid of one bit.
    fn decoded(mut encoded: &[u8], length: usize) -> Vec<bool> {
        let mut flags = Vec::new();
        while let Some((first, rest)) = encoded.split_first() {
            let (mut head, mut rest, mut shift) = (u64::from(first & 0x7f), rest, 7);
            let mut more = first & 0x80 != 0;
            while more {
                head |= u64::from(rest[0] & 0x7f) << shift;
                more = rest[0] & 0x80 != 0;
                (rest, shift) = (&rest[1..], shift + 7);
            }
            let count = (head >> 1) as usize;
            encoded = if head & 1 == 0 {
                assert!(count >= RUN);
                flags.extend(std::iter::repeat_n(rest[0] == 1, count));
                &rest[1..]
            } else {
                flags.extend(rest[..count].iter().flat_map(|byte| (0..8).map(move |at| byte >> at & 1 == 1)));
                &rest[count..]
            };
        }
        assert!(flags[length..].iter().all(|flag| !flag) && flags.len() < length + 8);
        flags.truncate(length);
        flags
    }

    #[test]
    fn widths() {
        assert_eq!([0, 1, 2, 3, 4, 5, 256, 257].map(width_of), [0, 0, 1, 2, 2, 3, 8, 9]);
    }
}
