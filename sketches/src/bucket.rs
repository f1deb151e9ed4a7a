//! What sketches that keep keys have in common: buckets of eight entries, of which a key may be in any. A bucket has eight
//! tags of one byte in a word, so that a key is found, or found missing, by one comparison.

use crate::SketchError;
use std::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
    fence,
};

/// Entries of a bucket.
pub(crate) const WAYS: usize = 8;

/// Bounds the allocation that a misread parameter can ask for: 8 GiB.
pub(crate) const MEMORY_MAX: usize = 8 << 30;

const LOW: u64 = 0x0101_0101_0101_0101;
const HIGH: u64 = LOW << 7;

/// The bucket of a hash, by its upper bits.
#[inline]
pub(crate) fn bucket_of(hash: u64, buckets: usize) -> usize {
    ((u128::from(hash) * buckets as u128) >> 64) as usize
}

/// The tag of a hash, by its lowest byte. 0 is that of an empty entry.
#[inline]
pub(crate) fn tag_of(hash: u64) -> u8 {
    (((hash & 0xff) * 255) >> 8) as u8 + 1
}

/// Entries whose tag is `tag`, the first one lowest.
#[inline]
pub(crate) fn with_tag(tags: u64, tag: u8) -> Lanes {
    let different = tags ^ (LOW * u64::from(tag));
    // Exactly the bytes that are zero: no carry leaves a byte of which the highest bit has been taken out.
    Lanes(!(((different & !HIGH) + !HIGH) | different) & HIGH)
}

/// Numbers of entries, in order.
pub(crate) struct Lanes(u64);

impl Iterator for Lanes {
    type Item = usize;

    #[inline]
    fn next(&mut self) -> Option<usize> {
        (self.0 != 0).then(|| {
            let lane = self.0.trailing_zeros() as usize / 8;
            self.0 &= self.0 - 1;
            lane
        })
    }
}

#[inline]
pub(crate) fn tag_at(tags: u64, lane: usize) -> u8 {
    (tags >> (8 * lane)) as u8
}

#[inline]
pub(crate) fn with_tag_at(tags: u64, lane: usize, tag: u8) -> u64 {
    tags & !(0xff << (8 * lane)) | u64::from(tag) << (8 * lane)
}

/// Cells that are zero, the first at the beginning of a cache line of 64 bytes.
#[derive(Debug)]
pub(crate) struct Lines {
    /// Some more than are asked for, since an allocation begins anywhere.
    cells: Box<[AtomicU64]>,
    start: usize,
}

impl Lines {
    const MORE: usize = 7;

    pub(crate) fn new(count: usize) -> Lines {
        let cells = memory::zeroed(count + Self::MORE);
        let start = cells.as_ptr().align_offset(64).min(Self::MORE);
        Lines { cells, start }
    }

    #[inline]
    pub(crate) fn words(&self) -> &[AtomicU64] {
        &self.cells[self.start..][..self.cells.len() - Self::MORE]
    }
}

/// A plain read-modify-write: cells have one writer, so no locked instruction is needed.
#[inline]
pub(crate) fn add(cell: &AtomicU64, n: u64) {
    cell.store(cell.load(Relaxed).saturating_add(n), Relaxed);
}

/// Numbers without end (xorshift64*, Marsaglia 2003, Vigna 2016), for the one writer.
#[derive(Debug)]
pub(crate) struct Random(AtomicU64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(AtomicU64::new(crate::mix(seed) | 1))
    }

    #[inline]
    pub(crate) fn next(&self) -> u64 {
        let mut x = self.0.load(Relaxed);
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.0.store(x, Relaxed);
        x.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// True with probability `part / whole`, of which `whole` is not 0.
    #[inline]
    pub(crate) fn chance(&self, part: u64, whole: u64) -> bool {
        ((u128::from(self.next()) * u128::from(whole)) >> 64) < u128::from(part)
    }
}

/// Changes what readers must see as one. For the one writer.
#[inline]
pub(crate) fn write<T>(version: &AtomicU64, change: impl FnOnce() -> T) -> T {
    let before = version.load(Relaxed);
    version.store(before.wrapping_add(1), Relaxed);
    // No store of the change is seen before the odd version is.
    fence(Release);
    let changed = change();
    version.store(before.wrapping_add(2), Release);
    changed
}

/// Reads what [`write`] changes: again where it was changed meanwhile.
#[inline]
pub(crate) fn read<T>(version: &AtomicU64, mut look: impl FnMut() -> T) -> T {
    loop {
        let before = version.load(Acquire);
        if before & 1 == 0 {
            let seen = look();
            // All loads of the look come before that of the version.
            fence(Acquire);
            if version.load(Relaxed) == before {
                return seen;
            }
        }
        std::hint::spin_loop();
    }
}

/// Refuses to put together what is of another size, or whose keys have another hash: `(memory_bytes, hash_id)` of both.
pub(crate) fn same_shape(ours: (usize, u64), theirs: (usize, u64)) -> Result<(), SketchError> {
    if ours.0 != theirs.0 {
        return Err(SketchError::mismatch("memory_bytes", ours.0, theirs.0));
    }
    if ours.1 != theirs.1 {
        return Err(SketchError::mismatch("hash_id", ours.1, theirs.1));
    }
    Ok(())
}

/// Refuses what would take more memory than is allowed.
pub(crate) fn within(count: usize, bytes_each: usize, memory_max: usize) -> Result<(), SketchError> {
    let bytes = count.saturating_mul(bytes_each);
    match bytes <= memory_max.min(MEMORY_MAX) {
        true => Ok(()),
        false => Err(SketchError::out_of_range("memory_bytes", bytes, "as much as its reader allows")),
    }
}

/// As many buckets of `bucket_bytes` as fit into `memory_bytes`.
pub(crate) fn buckets_in(memory_bytes: usize, bucket_bytes: usize) -> Result<usize, SketchError> {
    match memory_bytes {
        bytes if bytes < bucket_bytes => {
            Err(SketchError::out_of_range("memory_bytes", bytes, "at least a bucket of eight keys"))
        }
        bytes if bytes > MEMORY_MAX => Err(SketchError::out_of_range("memory_bytes", bytes, "up to 8 GiB")),
        bytes => Ok(bytes / bucket_bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_found_exactly() {
        let random = Random::new(1);
        for _ in 0..100_000 {
            // Bytes that differ in one bit, or by one, are what a careless comparison takes for equal.
            let tags = random.next() & (LOW * (random.next() & 0xff));
            let tag = (random.next() % 255) as u8 + 1;
            let found: Vec<usize> = with_tag(tags, tag).collect();
            let naive: Vec<usize> = (0..WAYS).filter(|lane| tags.to_le_bytes()[*lane] == tag).collect();
            assert_eq!(found, naive, "{tags:#x} {tag:#x}");
            let lane = (tag % 8).into();
            assert_eq!(tag_at(with_tag_at(tags, lane, tag), lane), tag);
        }
    }

    #[test]
    fn no_hash_has_the_tag_of_nothing() {
        for hash in 0..=255 {
            assert!(tag_of(hash) > 0);
        }
        assert_eq!((bucket_of(0, 7), bucket_of(u64::MAX, 7)), (0, 6));
    }

    #[test]
    fn chances_are_kept() {
        let random = Random::new(7);
        let hits = (0..100_000).filter(|_| random.chance(3, 10)).count();
        assert!((29_000..31_000).contains(&hits), "{hits}");
        assert!((0..1_000).all(|_| random.chance(u64::MAX, u64::MAX) && !random.chance(0, u64::MAX)));
    }
}
