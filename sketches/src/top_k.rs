use crate::SketchError;
use crate::bucket::{self, MEMORY_MAX, add};
use crate::coco::Estimate;
use crate::frame::{Kind, Reader, Writer};
use crate::table::{Counter, STEPS_MAX, Table};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

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
    table: Table<WORDS>,
    offset: AtomicU64,
    total: AtomicU64,
    hash_id: u64,
}

const SAMPLE: usize = 1_024;
const BODY: u8 = 1;

impl<const WORDS: usize> TopK<WORDS> {
    /// The least memory it can have, in bytes: eight slots.
    pub const MEMORY_MIN: usize = 8 * Table::<WORDS>::SLOT_BYTES;

    /// A table in at most `memory_bytes`, for keys hashed by the hash that is called `hash_id`. Allocates at once, and
    /// nothing later.
    ///
    /// # Errors
    /// The memory is less than eight slots, or more than 8 GiB.
    pub fn new(memory_bytes: usize, hash_id: u64) -> Result<TopK<WORDS>, SketchError> {
        if memory_bytes > MEMORY_MAX {
            return Err(SketchError::out_of_range("memory_bytes", memory_bytes, "up to 8 GiB"));
        }
        let fit = memory_bytes / Table::<WORDS>::SLOT_BYTES;
        if fit < 8 {
            return Err(SketchError::out_of_range("memory_bytes", memory_bytes, "at least eight keys"));
        }
        Ok(Self::with_slots(1 << fit.ilog2(), hash_id))
    }

    fn with_slots(slots: usize, hash_id: u64) -> TopK<WORDS> {
        TopK { table: Table::new(slots), offset: AtomicU64::new(0), total: AtomicU64::new(0), hash_id }
    }

    /// Bytes with which the offset stays below `error` times the total. Saturates.
    pub fn memory_for(error: f64) -> usize {
        // Three slots of four, of a power of two.
        let slots = (4.0 / error).ceil().log2().ceil().exp2();
        (slots * Table::<WORDS>::SLOT_BYTES as f64) as usize
    }

    /// What [`TopK::offset`] stays below, as a share of the total: `3 / k`.
    pub fn error(&self) -> f64 {
        3.0 / self.capacity() as f64
    }

    /// Keys it holds at most: the `k` of its bound.
    pub fn capacity(&self) -> usize {
        self.table.capacity()
    }

    /// Bytes of cells.
    pub fn memory_bytes(&self) -> usize {
        self.table.memory_bytes()
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

    /// Asks the cache for what an update of a key that hashes to `hash` will look at.
    #[inline]
    pub fn prefetch(&self, hash: u64) {
        self.table.prefetch(hash);
    }

    fn count(&self, hash: u64, key: &[u64; WORDS], n: u64) {
        // A counter of nothing is no counter.
        if n == 0 {
            return;
        }
        let mut place = self.table.find(hash, key);
        if place.count > 0 {
            return self.table.grow(&place, n);
        }
        if self.table.is_full() {
            self.purge();
            place = self.table.find(hash, key);
        }
        self.table.put(&place, hash, key, n);
    }

    /// Takes the median of the counters from each, and lets go of those that have nothing left.
    fn purge(&self) {
        let median = self.median();
        self.table.reduce(|_, count| count.saturating_sub(median), || add(&self.offset, median));
    }

    /// Of some of the counters; of all of them, where they are few. It is that of one that is there, which thus goes.
    fn median(&self) -> u64 {
        let mut sample = [0; SAMPLE];
        let mut taken = 0;
        for (place, counter) in sample.iter_mut().zip(self.table.counters()) {
            *place = counter.count;
            taken += 1;
        }
        let sample = &mut sample[..taken.max(1)];
        let middle = (sample.len() - 1) / 2;
        (*sample.select_nth_unstable(middle).1).max(1)
    }

    /// What is known of `key`, which hashes to `hash`.
    pub fn estimate(&self, hash: u64, key: &[u64; WORDS]) -> Estimate {
        self.table.read(|| self.between(self.table.find(hash, key).count))
    }

    fn between(&self, lower: u64) -> Estimate {
        let upper = lower.saturating_add(self.offset());
        // A key that is held has most likely been there all the time that things were taken.
        Estimate { value: if lower == 0 { 0 } else { upper }, lower, upper }
    }

    /// The keys held, those first that may have had most.
    pub fn entries(&self) -> Vec<([u64; WORDS], Estimate)> {
        let held =
            || self.table.counters().map(|counter| (counter.key, self.between(counter.count))).collect::<Vec<_>>();
        let mut all = self.table.read(held);
        all.sort_unstable_by(|(a, x), (b, y)| y.value.cmp(&x.value).then_with(|| a.cmp(b)));
        all
    }

    /// Adds what `other` counted, as if its stream had followed this one's: the offsets add up.
    ///
    /// # Errors
    /// They have different sizes or hashes; `self` is then unchanged.
    pub fn merge(&self, other: &TopK<WORDS>) -> Result<(), SketchError> {
        bucket::same_shape((self.memory_bytes(), self.hash_id), (other.memory_bytes(), other.hash_id))?;
        let (offset, total, counters) = other.look();
        // First, so that a reader never sees less than there may be.
        add(&self.offset, offset);
        counters.into_iter().for_each(|Counter { hash, key, count }| self.count(hash, &key, count));
        add(&self.total, total);
        Ok(())
    }

    /// Offset, total and counters as they were at one moment.
    fn look(&self) -> (u64, u64, Vec<Counter<WORDS>>) {
        self.table.read(|| (self.offset(), self.total(), self.table.counters().collect()))
    }

    /// Forgets everything. For the one writer.
    pub fn reset(&self) {
        self.table.clear(|| [&self.offset, &self.total].into_iter().for_each(|cell| cell.store(0, Relaxed)));
    }

    /// The sketch as bytes, for [`TopK::from_bytes`].
    pub fn to_bytes(&self) -> Vec<u8> {
        let (offset, total, counters) = self.look();
        let mut out = Writer::new(Kind::TopK, BODY);
        out.number(WORDS as u64);
        out.number(self.table.slots() as u64);
        out.word(self.hash_id);
        out.number(total);
        out.number(offset);
        out.number(counters.len() as u64);
        for Counter { hash, key, count } in counters {
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
        body.key_words(WORDS)?;
        let slots = body.size()?;
        if slots < 8 || !slots.is_power_of_two() {
            return Err(SketchError::damaged(format!("it cannot have {slots} slots")));
        }
        bucket::within(slots, Table::<WORDS>::SLOT_BYTES, memory_max)?;
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
            if sketch.table.find(hash, &key).steps > STEPS_MAX {
                return Err(SketchError::damaged("its keys are all in one place"));
            }
            sketch.count(hash, &key, count);
        }
        sketch.offset.store(offset, Relaxed);
        body.finish()?;
        Ok(sketch)
    }
}
