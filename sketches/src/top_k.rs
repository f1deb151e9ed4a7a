use crate::SketchError;
use crate::bucket::{self, MEMORY_MAX, STEPS_MAX, add, scattered};
use crate::coco::Estimate;
use crate::frame::{Kind, Reader, Writer};
use std::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};

/// The keys that brought most, none of them missed: Misra and Gries, *Finding repeated elements* (1982), in the form of
/// Anderson et al., *A high-performance algorithm for identifying frequent items in data streams* (IMC 2017).
///
/// A table of counters. When it is full, the median of 1,024 of them is taken from all, and those that have nothing left
/// go; `offset` is the sum of what was taken. The truth is between a counter and that plus `offset`, of a key without one
/// between 0 and `offset`: every key that had more than `offset` is there. With `k` counters and `N = total()` the offset
/// is below `3 * N / k` (with the probability that a sampled median has a third of all counters below it, which is within
/// 10^-24 of 1).
///
/// A key is `WORDS` words of 64 bits ([`key_words`](crate::key_words)); a slot is `2 + WORDS` words, and three of four slots
/// are used at most.
///
/// One writer, any number of readers; a reader that meets a purge looks again.
#[derive(Debug)]
pub struct TopK<const WORDS: usize> {
    cells: Box<[AtomicU64]>,
    /// Odd while counters move.
    version: AtomicU64,
    /// Counters in use.
    used: AtomicU64,
    offset: AtomicU64,
    total: AtomicU64,
    hash_id: u64,
}

const COUNT: usize = 0;
const HASH: usize = 1;
const KEY: usize = 2;
const SAMPLE: usize = 1_024;
const BODY: u8 = 1;

impl<const WORDS: usize> TopK<WORDS> {
    const STRIDE: usize = KEY + WORDS;

    /// A table in at most `memory_bytes`, for keys hashed by the hash that is called `hash_id`. Allocates at once, and
    /// nothing later.
    ///
    /// # Errors
    /// The memory is less than eight slots, or more than 8 GiB.
    pub fn new(memory_bytes: usize, hash_id: u64) -> Result<TopK<WORDS>, SketchError> {
        if memory_bytes > MEMORY_MAX {
            return Err(SketchError::out_of_range("memory_bytes", memory_bytes, "up to 8 GiB"));
        }
        let fit = memory_bytes / (Self::STRIDE * size_of::<u64>());
        if fit < 8 {
            return Err(SketchError::out_of_range("memory_bytes", memory_bytes, "at least eight keys"));
        }
        Ok(Self::with_slots(1 << fit.ilog2(), hash_id))
    }

    fn with_slots(slots: usize, hash_id: u64) -> TopK<WORDS> {
        TopK {
            cells: bucket::cells(slots * Self::STRIDE),
            version: AtomicU64::new(0),
            used: AtomicU64::new(0),
            offset: AtomicU64::new(0),
            total: AtomicU64::new(0),
            hash_id,
        }
    }

    fn slots(&self) -> usize {
        self.cells.len() / Self::STRIDE
    }

    /// Keys it holds at most: the `k` of its bound.
    pub fn capacity(&self) -> usize {
        self.slots() / 4 * 3
    }

    /// Bytes of cells.
    pub fn memory_bytes(&self) -> usize {
        size_of_val(&*self.cells)
    }

    /// Sum of all counts put in.
    pub fn total(&self) -> u64 {
        self.total.load(Relaxed)
    }

    /// What a key may have had beside its counter: every key that had more is held.
    pub fn offset(&self) -> u64 {
        self.offset.load(Relaxed)
    }

    /// Adds `n` to `key`, which hashes to `hash`. For the one writer.
    #[inline]
    pub fn update(&self, hash: u64, key: &[u64; WORDS], n: u64) {
        add(&self.total, n);
        self.count(hash, key, n);
    }

    fn count(&self, hash: u64, key: &[u64; WORDS], n: u64) {
        // A counter of nothing is no counter.
        if n == 0 {
            return;
        }
        let (found, slot, _) = self.find(hash, key);
        if found {
            return add(&slot[COUNT], n);
        }
        let slot = match self.used.load(Relaxed) as usize == self.capacity() {
            true => {
                self.purge();
                self.find(hash, key).1
            }
            false => slot,
        };
        slot[HASH].store(hash, Relaxed);
        for (cell, word) in slot[KEY..].iter().zip(key) {
            cell.store(*word, Relaxed);
        }
        // Whoever sees the count sees the key.
        slot[COUNT].store(n, Release);
        add(&self.used, 1);
    }

    /// The slot of a key, or the one it would have, and how many steps it is from home.
    #[inline]
    fn find(&self, hash: u64, key: &[u64; WORDS]) -> (bool, &[AtomicU64], usize) {
        let mut at = self.home(hash);
        let mut steps = 0;
        loop {
            let slot = self.slot(at);
            if slot[COUNT].load(Acquire) == 0 {
                return (false, slot, steps);
            }
            let is_key = || slot[KEY..].iter().zip(key).all(|(cell, word)| cell.load(Relaxed) == *word);
            if slot[HASH].load(Relaxed) == hash && is_key() {
                return (true, slot, steps);
            }
            steps += 1;
            at = (at + 1) & (self.slots() - 1);
        }
    }

    fn home(&self, hash: u64) -> usize {
        // At least eight slots, so that this shifts by less than 64.
        (hash >> (u64::BITS - self.slots().trailing_zeros())) as usize
    }

    fn slot(&self, at: usize) -> &[AtomicU64] {
        &self.cells[at * Self::STRIDE..][..Self::STRIDE]
    }

    /// Takes the median of the counters from each, and lets go of those that have nothing left.
    fn purge(&self) {
        let median = self.median();
        bucket::write(&self.version, || {
            let last = self.slots() - 1;
            let is_empty = |at: &usize| self.slot(*at)[COUNT].load(Relaxed) == 0;
            // A quarter of them are.
            let start = (0..=last).find(is_empty).unwrap_or(0);
            // Behind an empty slot, in order: what has been moved is never before its home, and is in its place.
            for step in 1..=last {
                let from = self.slot((start + step) & last);
                let count = from[COUNT].load(Relaxed);
                if count == 0 {
                    continue;
                }
                from[COUNT].store(0, Relaxed);
                if count <= median {
                    self.used.store(self.used.load(Relaxed) - 1, Relaxed);
                    continue;
                }
                let mut at = self.home(from[HASH].load(Relaxed));
                while !is_empty(&at) {
                    at = (at + 1) & last;
                }
                let to = self.slot(at);
                for (to, from) in to[HASH..].iter().zip(&from[HASH..]) {
                    to.store(from.load(Relaxed), Relaxed);
                }
                to[COUNT].store(count - median, Relaxed);
            }
            add(&self.offset, median);
        });
    }

    /// Of counters spread over the table; of all of them, where they are few.
    fn median(&self) -> u64 {
        let mut sample = [0; SAMPLE];
        let mut taken = 0;
        let counts = scattered(self.slots()).map(|at| self.slot(at)[COUNT].load(Relaxed));
        for (place, count) in sample.iter_mut().zip(counts.filter(|count| *count > 0)) {
            *place = count;
            taken += 1;
        }
        let sample = &mut sample[..taken.max(1)];
        let middle = (sample.len() - 1) / 2;
        // One that is there, so that it goes.
        (*sample.select_nth_unstable(middle).1).max(1)
    }

    /// What is known of `key`, which hashes to `hash`.
    pub fn estimate(&self, hash: u64, key: &[u64; WORDS]) -> Estimate {
        bucket::read(&self.version, || {
            let lower = match self.find(hash, key) {
                (true, slot, _) => slot[COUNT].load(Relaxed),
                (false, ..) => 0,
            };
            self.between(lower)
        })
    }

    fn between(&self, lower: u64) -> Estimate {
        let upper = lower.saturating_add(self.offset());
        // A key that is held has most likely been there all the time that things were taken.
        Estimate { value: if lower == 0 { 0 } else { upper }, lower, upper }
    }

    /// The keys held, those first that may have had most.
    pub fn entries(&self) -> Vec<([u64; WORDS], Estimate)> {
        let mut all = bucket::read(&self.version, || {
            let slots = self.cells.chunks_exact(Self::STRIDE);
            let held = slots.filter_map(|slot| {
                let count = slot[COUNT].load(Acquire);
                let key = || std::array::from_fn(|word| slot[KEY + word].load(Relaxed));
                (count > 0).then(|| (key(), self.between(count)))
            });
            held.collect::<Vec<_>>()
        });
        all.sort_unstable_by(|(a, x), (b, y)| y.value.cmp(&x.value).then_with(|| a.cmp(b)));
        all
    }

    /// Adds what `other` counted, as if its stream had followed this one's: the offsets add up.
    ///
    /// # Errors
    /// They have different sizes or hashes; `self` is then unchanged.
    pub fn merge(&self, other: &TopK<WORDS>) -> Result<(), SketchError> {
        if self.slots() != other.slots() {
            return Err(SketchError::mismatch("memory_bytes", self.memory_bytes(), other.memory_bytes()));
        }
        if self.hash_id != other.hash_id {
            return Err(SketchError::mismatch("hash_id", self.hash_id, other.hash_id));
        }
        for (count, hash, key) in other.counters() {
            self.count(hash, &key, count);
        }
        add(&self.offset, other.offset());
        add(&self.total, other.total());
        Ok(())
    }

    fn counters(&self) -> Vec<(u64, u64, [u64; WORDS])> {
        bucket::read(&self.version, || {
            let slots = scattered(self.slots()).map(|at| self.slot(at));
            let counters = slots.filter_map(|slot| {
                let count = slot[COUNT].load(Acquire);
                let key = || std::array::from_fn(|word| slot[KEY + word].load(Relaxed));
                (count > 0).then(|| (count, slot[HASH].load(Relaxed), key()))
            });
            counters.collect()
        })
    }

    /// Forgets everything. For the one writer.
    pub fn reset(&self) {
        bucket::write(&self.version, || {
            self.cells.chunks_exact(Self::STRIDE).for_each(|slot| slot[COUNT].store(0, Relaxed));
            [&self.used, &self.offset, &self.total].into_iter().for_each(|cell| cell.store(0, Relaxed));
        });
    }

    /// The sketch as bytes, for [`TopK::from_bytes`].
    pub fn to_bytes(&self) -> Vec<u8> {
        let counters = self.counters();
        let mut out = Writer::new(Kind::TopK, BODY);
        out.number(WORDS as u64);
        out.number(self.slots() as u64);
        out.word(self.hash_id);
        out.number(self.total());
        out.number(self.offset());
        out.number(counters.len() as u64);
        for (count, hash, key) in counters {
            out.number(count);
            out.word(hash);
            key.iter().for_each(|word| out.word(*word));
        }
        out.finish()
    }

    /// The sketch of [`TopK::to_bytes`].
    ///
    /// # Errors
    /// The bytes are of another kind of sketch, of another version or of keys of another length, or damaged, or the sketch
    /// takes more than `memory_max` bytes.
    pub fn from_bytes(bytes: &[u8], memory_max: usize) -> Result<TopK<WORDS>, SketchError> {
        let mut body = Reader::new(bytes, Kind::TopK, BODY)?;
        let words = body.size()?;
        if words != WORDS {
            return Err(SketchError::out_of_range("words of a key", words, "as many as are asked for"));
        }
        let slots = body.size()?;
        if slots < 8 || !slots.is_power_of_two() {
            return Err(SketchError::damaged(format!("it cannot have {slots} slots")));
        }
        bucket::within(slots, Self::STRIDE * size_of::<u64>(), memory_max)?;
        let sketch = Self::with_slots(slots, body.word()?);
        sketch.total.store(body.number()?, Relaxed);
        let offset = body.number()?;
        let counters = body.size()?;
        if counters > sketch.capacity() {
            return Err(SketchError::damaged(format!("{counters} counters in {slots} slots")));
        }
        for _ in 0..counters {
            let (count, hash) = (body.number()?, body.word()?);
            let mut key = [0; WORDS];
            for word in &mut key {
                *word = body.word()?;
            }
            if sketch.find(hash, &key).2 > STEPS_MAX {
                return Err(SketchError::damaged("its keys are all in one place"));
            }
            sketch.count(hash, &key, count);
        }
        sketch.offset.store(offset, Relaxed);
        body.finish()?;
        Ok(sketch)
    }
}
