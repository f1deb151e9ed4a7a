//! Hash to slab slot: open addressing over cache-line buckets.
//!
//! Plain version: a `HashMap<FlowKey, u32>`. What changed: a bucket is one 64-byte line of ten 16-bit tags and ten
//! slots, so that a lookup touches one line of the index and, tags being 16 bits, almost never a wrong state; the line
//! is known from the hash alone and can be fetched some packets ahead. Bought: 28-36 ns a packet down to 11-16 at one
//! million flows. Removal leaves no tombstones: each bucket counts the entries that wanted it and went on
//! (the scheme of F14, Bronson and Shi 2019).

use std::collections::TryReserveError;

/// What fits a cache line beside a count: tags of 2 bytes, slots of 4.
const WAYS: usize = 10;
/// Share of the ways that may be taken, in hundredths.
const LOAD: usize = 85;

/// A tag of 0 marks an empty way.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Bucket {
    tags: [u16; WAYS],
    slots: [u32; WAYS],
    /// Entries whose probe passed this bucket because it was full. 0: a lookup may stop here. Saturated: never again.
    passed: u16,
}

const _: () = assert!(size_of::<Bucket>() == 64);

impl Bucket {
    const EMPTY: Bucket = Bucket { tags: [0; WAYS], slots: [0; WAYS], passed: 0 };

    /// Bit i is set where way i holds `tag`.
    #[inline]
    fn matches(&self, tag: u16) -> u32 {
        let mut mask = 0;
        // Eight at a time is what a vector holds.
        let (eight, rest) = self.tags.split_at(8);
        for (way, t) in eight.iter().enumerate() {
            mask |= u32::from(*t == tag) << way;
        }
        for (way, t) in rest.iter().enumerate() {
            mask |= u32::from(*t == tag) << (8 + way);
        }
        mask
    }
}

/// Where an entry for a hash is looked for: its home bucket first, then on in steps that its tag decides.
#[derive(Clone, Copy)]
struct Probe {
    at: usize,
    tag: u16,
}

pub(crate) struct Index {
    /// A prime number of them, so that every step visits each bucket once.
    buckets: Vec<Bucket>,
}

impl Index {
    /// Room for `entries`.
    pub(crate) fn new(entries: u32) -> Result<Index, TryReserveError> {
        let count = next_prime((entries as usize * 100).div_ceil(WAYS * LOAD).max(2));
        let mut buckets = memory::reserve(count)?;
        buckets.resize(count, Bucket::EMPTY);
        Ok(Index { buckets })
    }

    #[inline]
    fn probe(&self, hash: u64) -> Probe {
        // High half picks the bucket (as a fraction of 2^32), low half the tag: independent bits. Tag 0 means empty and is
        // folded into 1.
        let tag = (hash as u16).max(1);
        let at = ((hash >> 32) * self.buckets.len() as u64) >> 32;
        Probe { at: at as usize, tag }
    }

    /// The bucket after `at` for an entry with this tag.
    fn next(&self, at: usize, tag: u16) -> usize {
        let count = self.buckets.len();
        let next = at + 1 + usize::from(tag) % (count - 1);
        if next >= count { next - count } else { next }
    }

    /// Fetches the home bucket.
    #[inline]
    pub(crate) fn prefetch(&self, hash: u64) {
        memory::prefetch(&self.buckets[self.probe(hash).at]);
    }

    /// The first slot in the home bucket that may be the one, without looking at any state.
    #[inline]
    pub(crate) fn likely(&self, hash: u64) -> Option<u32> {
        let p = self.probe(hash);
        let bucket = &self.buckets[p.at];
        let mask = bucket.matches(p.tag);
        if mask == 0 { None } else { Some(bucket.slots[mask.trailing_zeros() as usize]) }
    }

    /// The slot for which `is_it` holds.
    #[inline]
    pub(crate) fn find(&self, hash: u64, mut is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        let mut p = self.probe(hash);
        // A step over a prime number of buckets visits every one once, so the walk ends.
        for _ in 0..self.buckets.len() {
            let bucket = &self.buckets[p.at];
            let mut mask = bucket.matches(p.tag);
            while mask != 0 {
                let slot = bucket.slots[mask.trailing_zeros() as usize];
                if is_it(slot) {
                    return Some(slot);
                }
                mask &= mask - 1;
            }
            if bucket.passed == 0 {
                return None;
            }
            p.at = self.next(p.at, p.tag);
        }
        None
    }

    /// Enters `slot`, which must not be there. The caller keeps the number of entries within what `new` was given, so
    /// there is always a free way.
    pub(crate) fn insert(&mut self, hash: u64, slot: u32) {
        let mut p = self.probe(hash);
        for _ in 0..self.buckets.len() {
            let bucket = &mut self.buckets[p.at];
            let free = bucket.matches(0);
            if free != 0 {
                let way = free.trailing_zeros() as usize;
                bucket.tags[way] = p.tag;
                bucket.slots[way] = slot;
                return;
            }
            bucket.passed = bucket.passed.saturating_add(1);
            p.at = self.next(p.at, p.tag);
        }
        debug_assert!(false, "more entries than the index was made for");
    }

    /// Removes `slot`; nothing happens if it is not there.
    pub(crate) fn remove(&mut self, hash: u64, slot: u32) {
        let mut p = self.probe(hash);
        let first = p;
        for passed in 0..self.buckets.len() {
            let bucket = &mut self.buckets[p.at];
            let mut mask = bucket.matches(p.tag);
            while mask != 0 {
                let way = mask.trailing_zeros() as usize;
                if bucket.slots[way] == slot {
                    bucket.tags[way] = 0;
                    self.unpass(first, passed);
                    return;
                }
                mask &= mask - 1;
            }
            if bucket.passed == 0 {
                return;
            }
            p.at = self.next(p.at, p.tag);
        }
    }

    /// Takes an entry back from the counts of the `steps` buckets it had passed.
    fn unpass(&mut self, mut p: Probe, steps: usize) {
        for _ in 0..steps {
            let bucket = &mut self.buckets[p.at];
            // A saturated count has lost track and stays: lookups walk on, which is slower, never wrong.
            if bucket.passed != u16::MAX {
                bucket.passed -= 1;
            }
            p.at = self.next(p.at, p.tag);
        }
    }

    /// Removes everything.
    pub(crate) fn clear(&mut self) {
        self.buckets.fill(Bucket::EMPTY);
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.buckets.len() * size_of::<Bucket>()
    }
}

/// The least prime number that is not below `from`; `from` is at least 2.
fn next_prime(from: usize) -> usize {
    let is_prime =
        |n: usize| n == 2 || (n % 2 == 1 && (3..).step_by(2).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d)));
    (from..).find(|n| is_prime(*n)).unwrap_or(from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hashbrown::HashMap;
    use proptest::prelude::*;

    proptest! {
        /// Few distinct hashes, so that buckets overflow and tags collide; a map is the oracle.
        #[test]
        fn agrees_with_a_map(ops in proptest::collection::vec((any::<bool>(), 0u64..6, 0u64..40), 1..400)) {
            let mut index = Index::new(64).expect("memory");
            let mut model: HashMap<u64, u32> = HashMap::new();
            for (at, (insert, bucket, low)) in ops.into_iter().enumerate() {
                let hash = (bucket << 60) | (low % 3);
                let key = bucket << 16 | low;
                let slot = key as u32;
                if insert && model.len() < 64 {
                    if model.insert(key, slot).is_none() {
                        index.insert(hash, slot);
                    }
                } else if model.remove(&key).is_some() {
                    index.remove(hash, slot);
                }
                for (key, slot) in &model {
                    let hash = ((key >> 16) << 60) | ((key & 0xffff) % 3);
                    prop_assert_eq!(index.find(hash, |s| s == *slot), Some(*slot), "after step {}", at);
                }
                prop_assert_eq!(index.find(hash, |s| s == slot).is_some(), model.contains_key(&key));
            }
        }
    }

    #[test]
    fn sizes_are_prime() {
        assert_eq!([2, 3, 4, 8, 9, 14, 100, 7918].map(next_prime), [2, 3, 5, 11, 11, 17, 101, 7919]);
    }

    #[test]
    fn removal_leaves_no_trace() {
        let mut index = Index::new(1000).expect("memory");
        for round in 0..50u64 {
            for i in 0..1000u64 {
                index.insert((i * 7 + round) << 48 | (i & 3), i as u32);
            }
            for i in 0..1000u64 {
                index.remove((i * 7 + round) << 48 | (i & 3), i as u32);
            }
        }
        assert!(index.buckets.iter().all(|b| b.passed == 0 && b.tags == [0; WAYS]));
    }
}
