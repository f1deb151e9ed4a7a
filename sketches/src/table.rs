//! Counters of keys, in a table of open addressing with linear probing: what sketches have in common that hold some keys of
//! many, and let go of some when there is no more room.

use crate::bucket::{self, add};
use std::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};

const COUNT: usize = 0;
const HASH: usize = 1;
const KEY: usize = 2;

/// More steps from its home than any key makes in a table of which a quarter is free, unless somebody aims keys at one place.
pub(crate) const STEPS_MAX: usize = 4_096;

/// A slot is a count, a hash and a key of `WORDS` words; three of four are used at most, and one whose count is 0 is free.
#[derive(Debug)]
pub(crate) struct Table<const WORDS: usize> {
    cells: Box<[AtomicU64]>,
    /// Odd while counters move.
    version: AtomicU64,
    used: AtomicU64,
}

/// Where a key is, or would be.
pub(crate) struct Place<'a> {
    slot: &'a [AtomicU64],
    /// 0 of a key that is not there.
    pub(crate) count: u64,
    /// From its home.
    pub(crate) steps: usize,
}

/// A key that is there.
pub(crate) struct Counter<const WORDS: usize> {
    pub(crate) hash: u64,
    pub(crate) key: [u64; WORDS],
    pub(crate) count: u64,
}

impl<const WORDS: usize> Table<WORDS> {
    const STRIDE: usize = KEY + WORDS;
    pub(crate) const SLOT_BYTES: usize = Self::STRIDE * size_of::<u64>();

    /// `slots`: a power of two, of at least 4.
    pub(crate) fn new(slots: usize) -> Table<WORDS> {
        Table { cells: memory::zeroed(slots * Self::STRIDE), version: AtomicU64::new(0), used: AtomicU64::new(0) }
    }

    pub(crate) fn slots(&self) -> usize {
        self.cells.len() / Self::STRIDE
    }

    pub(crate) fn capacity(&self) -> usize {
        self.slots() / 4 * 3
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        size_of_val(&*self.cells)
    }

    pub(crate) fn is_full(&self) -> bool {
        self.used() >= self.capacity()
    }

    /// How many keys are there.
    pub(crate) fn used(&self) -> usize {
        self.used.load(Relaxed) as usize
    }

    /// Asks the cache for where a key is, most likely.
    #[inline]
    pub(crate) fn prefetch(&self, hash: u64) {
        memory::prefetch(&self.slot(self.home(hash))[COUNT]);
    }

    #[inline]
    pub(crate) fn find(&self, hash: u64, key: &[u64; WORDS]) -> Place<'_> {
        let mut at = self.home(hash);
        let mut steps = 0;
        loop {
            let slot = self.slot(at);
            let count = slot[COUNT].load(Acquire);
            let is_key = || slot[KEY..].iter().zip(key).all(|(cell, word)| cell.load(Relaxed) == *word);
            if count == 0 || (slot[HASH].load(Relaxed) == hash && is_key()) {
                return Place { slot, count, steps };
            }
            steps += 1;
            at = (at + 1) & (self.slots() - 1);
        }
    }

    /// Adds `n`, which is not 0, to a key that is there.
    #[inline]
    pub(crate) fn grow(&self, place: &Place<'_>, n: u64) {
        place.slot[COUNT].store(place.count.saturating_add(n), Relaxed);
    }

    /// Puts a key with `n`, which is not 0, where it would be. Only if the table is not full.
    pub(crate) fn put(&self, place: &Place<'_>, hash: u64, key: &[u64; WORDS], n: u64) {
        place.slot[HASH].store(hash, Relaxed);
        place.slot[KEY..].iter().zip(key).for_each(|(cell, word)| cell.store(*word, Relaxed));
        // Whoever sees the count sees the key.
        place.slot[COUNT].store(n, Release);
        add(&self.used, 1);
    }

    /// Leaves each counter with what `left` says of its hash and its count, and lets go of those with nothing. `beside` is what
    /// readers must see change together with them.
    pub(crate) fn reduce(&self, left: impl Fn(u64, u64) -> u64, beside: impl FnOnce()) {
        bucket::write(&self.version, || {
            beside();
            let last = self.slots() - 1;
            let is_empty = |at: &usize| self.slot(*at)[COUNT].load(Relaxed) == 0;
            // A quarter of them are.
            let start = (0..=last).find(is_empty).unwrap_or(0);
            // Behind an empty slot, in order: what has been moved is never before its home, and is in its place.
            for step in 1..=last {
                let from = self.slot((start + step) & last);
                let (count, hash) = (from[COUNT].load(Relaxed), from[HASH].load(Relaxed));
                if count == 0 {
                    continue;
                }
                from[COUNT].store(0, Relaxed);
                let count = left(hash, count);
                if count == 0 {
                    self.used.store(self.used.load(Relaxed) - 1, Relaxed);
                    continue;
                }
                let mut at = self.home(hash);
                while !is_empty(&at) {
                    at = (at + 1) & last;
                }
                let to = self.slot(at);
                to[HASH..].iter().zip(&from[HASH..]).for_each(|(to, from)| to.store(from.load(Relaxed), Relaxed));
                to[COUNT].store(count, Relaxed);
            }
        });
    }

    /// Forgets everything, `beside` with it.
    pub(crate) fn clear(&self, beside: impl FnOnce()) {
        bucket::write(&self.version, || {
            beside();
            self.cells.chunks_exact(Self::STRIDE).for_each(|slot| slot[COUNT].store(0, Relaxed));
            self.used.store(0, Relaxed);
        });
    }

    /// What readers see: `look`, again where counters moved meanwhile.
    pub(crate) fn read<T>(&self, look: impl FnMut() -> T) -> T {
        bucket::read(&self.version, look)
    }

    /// The counters, in an order that has nothing to do with where they lie: a table that is filled, or sampled, in the order of
    /// another one with the same places would begin at its front.
    pub(crate) fn counters(&self) -> impl Iterator<Item = Counter<WORDS>> {
        scattered(self.slots()).filter_map(|at| {
            let slot = self.slot(at);
            let count = slot[COUNT].load(Acquire);
            (count > 0).then(|| Counter {
                hash: slot[HASH].load(Relaxed),
                key: std::array::from_fn(|word| slot[KEY + word].load(Relaxed)),
                count,
            })
        })
    }

    /// By the lowest bits: samples go by the highest ones.
    fn home(&self, hash: u64) -> usize {
        hash as usize & (self.slots() - 1)
    }

    fn slot(&self, at: usize) -> &[AtomicU64] {
        &self.cells[at * Self::STRIDE..][..Self::STRIDE]
    }
}

/// All of `slots`, a power of two, each once.
fn scattered(slots: usize) -> impl Iterator<Item = usize> {
    // The golden ratio spreads any number of them evenly; odd, so that each comes once.
    let stride = (slots as f64 * 0.618_033_988_749_895) as usize | 1;
    (0..slots).map(move |at| at.wrapping_mul(stride) & (slots - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_slot_comes_once() {
        for log in 0..12 {
            let mut seen: Vec<usize> = scattered(1 << log).collect();
            seen.sort_unstable();
            assert!(seen.into_iter().eq(0..1 << log), "2^{log}");
        }
    }
}
