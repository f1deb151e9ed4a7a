use crate::SketchError;
use crate::bucket::{self, MEMORY_MAX, add};
use crate::frame::{Kind, Reader, Writer};
use crate::table::{Counter, STEPS_MAX, Table};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// How evenly a stream is spread over its items, from some of them counted exactly: adaptive sampling (Flajolet, *On adaptive
/// sampling*, Computing 43, 1990, after Wegman).
///
/// A table of counters of all items whose hash begins with `level` zeros. When it is full `level` grows by one, and about half
/// of them go; those that stay have been there from their first occurrence on. An item is thus in the sample with probability
/// `2^-level`, whatever its count, and while there are no more items than counters all of them are.
///
/// Entropy hangs on few items with much and many with little. The former are known from a sketch of heavy hitters and given
/// as `head`; what the others contribute is estimated from those of them in the sample, as a share of what they have together,
/// which is known exactly.
///
/// A slot is two words; three of four are used at most. One writer, any number of readers; a reader that meets a change of level
/// looks again.
#[derive(Debug)]
pub struct Entropy {
    /// The hash is all there is of an item.
    table: Table<0>,
    level: AtomicU64,
    total: AtomicU64,
}

/// What an [`Entropy`] counted up to some moment.
#[derive(Clone, Debug)]
pub struct Seen {
    level: u64,
    total: u64,
    items: Vec<(u64, u64)>,
    memory_bytes: usize,
}

impl Seen {
    /// The items in the sample, as `(hash, count)`.
    pub fn items(&self) -> &[(u64, u64)] {
        &self.items
    }

    /// Whether these are all there were.
    pub fn is_whole(&self) -> bool {
        self.level == 0
    }
}

/// An entropy, in bits.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Bits {
    /// From 0, for one item alone, to the logarithm of their number, for all alike.
    pub value: f64,
    /// Its standard error, as the sample tells: 0 if all items were counted, NaN if there are too few of the others in it.
    pub standard_error: f64,
    /// About how many items there are.
    pub items: f64,
}

impl Bits {
    /// The entropy as a share of the largest that so many items can have: from 0 to 1. 1 of one item and of none.
    pub fn evenness(&self) -> f64 {
        if self.items <= 1.0 { 1.0 } else { (self.value / self.items.log2()).clamp(0.0, 1.0) }
    }
}

const SLOT_BYTES: usize = Table::<0>::SLOT_BYTES;
const BODY: u8 = 1;

impl Entropy {
    /// A sample in at most `memory_bytes`. Allocates at once, and nothing later.
    ///
    /// # Errors
    /// The memory is less than 16 slots of 16 bytes, or more than 8 GiB.
    pub fn new(memory_bytes: usize) -> Result<Entropy, SketchError> {
        if !(256..=MEMORY_MAX).contains(&memory_bytes) {
            return Err(SketchError::out_of_range("memory_bytes", memory_bytes, "256 to 8 GiB"));
        }
        let slots = 1_usize << (memory_bytes / SLOT_BYTES).ilog2();
        Ok(Entropy { table: Table::new(slots), level: AtomicU64::new(0), total: AtomicU64::new(0) })
    }

    /// Items it counts at most.
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

    /// The share of items that are counted.
    pub fn sampled(&self) -> f64 {
        (-(self.level.load(Relaxed) as f64)).exp2()
    }

    /// Adds `n` to the item that hashes to `hash`, of which all 64 bits must be well mixed. For the one writer.
    #[inline]
    pub fn update(&self, hash: u64, n: u64) {
        add(&self.total, n);
        self.count(hash, n);
    }

    /// Asks the cache for what an update of an item that hashes to `hash` will look at.
    #[inline]
    pub fn prefetch(&self, hash: u64) {
        self.table.prefetch(hash);
    }

    /// Whether all items are counted, and `more` would be, too.
    pub fn has_room_for(&self, more: usize) -> bool {
        self.level.load(Relaxed) == 0 && self.items() + more <= self.capacity()
    }

    /// Items it counts now.
    pub fn items(&self) -> usize {
        self.table.used()
    }

    /// Those, as `(hash, count)`. For the one writer, who alone knows that none goes meanwhile.
    pub fn each(&self, mut take: impl FnMut(u64, u64)) {
        self.table.counters().for_each(|Counter { hash, count, .. }| take(hash, count));
    }

    /// What it counted, as it was at one moment.
    pub fn seen(&self) -> Seen {
        let (level, total, items) = self.sample();
        Seen { level, total, items, memory_bytes: self.memory_bytes() }
    }

    fn count(&self, hash: u64, n: u64) {
        if u64::from(hash.leading_zeros()) < self.level.load(Relaxed) || n == 0 {
            return;
        }
        let mut place = self.table.find(hash, &[]);
        if place.count > 0 {
            return self.table.grow(&place, n);
        }
        while self.table.is_full() {
            let level = self.level.load(Relaxed) + 1;
            self.rise(level);
            if u64::from(hash.leading_zeros()) < level {
                return;
            }
            place = self.table.find(hash, &[]);
        }
        self.table.put(&place, hash, &[], n);
    }

    /// Lets go of items whose hash does not begin with `level` zeros.
    fn rise(&self, level: u64) {
        let left = |hash: u64, count| if u64::from(hash.leading_zeros()) < level { 0 } else { count };
        self.table.reduce(left, || self.level.store(level, Relaxed));
    }

    /// Level, total, and the items in the sample as `(hash, count)`, as they were at one moment.
    fn sample(&self) -> (u64, u64, Vec<(u64, u64)>) {
        self.table.read(|| {
            let counted = self.table.counters().map(|Counter { hash, count, .. }| (hash, count));
            (self.level.load(Relaxed), self.total(), counted.collect())
        })
    }

    /// The entropy of the stream. `head`: items that are known to have much, as `(hash, count)`; what it says of an item in the
    /// sample is not needed.
    pub fn bits(&self, head: impl IntoIterator<Item = (u64, u64)>) -> Bits {
        let (level, total, sample) = self.sample();
        if total == 0 {
            return Bits::default();
        }
        let mut known: HashMap<u64, u64> = head.into_iter().filter(|(_, count)| *count > 0).collect();
        // Counted exactly, unlike in a sketch.
        for (hash, count) in &sample {
            known.entry(*hash).and_modify(|known| *known = *count);
        }
        let part = |count: u64| count as f64 * (count as f64).log2();
        let (mut all, mut rest) = (0.0, total as f64);
        for count in known.values() {
            all += part(*count);
            rest -= *count as f64;
        }
        let tail: Vec<u64> = sample.iter().filter(|(hash, _)| !known.contains_key(hash)).map(|(_, n)| *n).collect();
        let (counts, parts) = tail.iter().fold((0.0, 0.0), |(n, p), count| (n + *count as f64, p + part(*count)));
        let weight = (level as f64).exp2();
        let (mut squares, rest) = (0.0, rest.max(0.0));
        if counts > 0.0 {
            let ratio = parts / counts;
            all += rest * ratio;
            squares = tail.iter().map(|count| (part(*count) - ratio * *count as f64).powi(2)).sum();
        }
        let total = total as f64;
        Bits {
            value: (total.log2() - all / total).max(0.0),
            // Of a sample in which each is with the same probability: Horvitz and Thompson.
            standard_error: match level > 0 && tail.len() < 2 && rest > 0.0 {
                true => f64::NAN,
                false => (weight * (weight - 1.0) * squares).sqrt() / total,
            },
            items: known.len() as f64 + tail.len() as f64 * weight,
        }
    }

    /// Adds what `other` counted: exactly the sample of both streams together, if it has room for it.
    ///
    /// # Errors
    /// They have different sizes; `self` is then unchanged.
    pub fn merge(&self, other: &Entropy) -> Result<(), SketchError> {
        self.merge_seen(&other.seen())
    }

    /// [`Entropy::merge`] of what another sketch counted up to some moment.
    ///
    /// # Errors
    /// As there.
    pub fn merge_seen(&self, seen: &Seen) -> Result<(), SketchError> {
        bucket::same_shape((self.memory_bytes(), 0), (seen.memory_bytes, 0))?;
        if seen.level > self.level.load(Relaxed) {
            self.rise(seen.level);
        }
        seen.items.iter().for_each(|(hash, count)| self.count(*hash, *count));
        add(&self.total, seen.total);
        Ok(())
    }

    /// Forgets everything. For the one writer.
    pub fn reset(&self) {
        self.table.clear(|| [&self.level, &self.total].into_iter().for_each(|cell| cell.store(0, Relaxed)));
    }

    /// The sample as bytes, for [`Entropy::from_bytes`].
    pub fn to_bytes(&self) -> Vec<u8> {
        let (level, total, mut sample) = self.sample();
        sample.sort_unstable();
        let mut out = Writer::new(Kind::Entropy, BODY);
        out.number(self.table.slots() as u64);
        out.number(level);
        out.number(total);
        out.number(sample.len() as u64);
        for (hash, count) in sample {
            out.word(hash);
            out.number(count);
        }
        out.finish()
    }

    /// The sample of [`Entropy::to_bytes`].
    ///
    /// # Errors
    /// The bytes are of another kind of sketch or of another version, or damaged, or the sample takes more than `memory_max`
    /// bytes.
    pub fn from_bytes(bytes: &[u8], memory_max: usize) -> Result<Entropy, SketchError> {
        let mut body = Reader::new(bytes, Kind::Entropy, BODY)?;
        let slots = body.size()?;
        if !slots.is_power_of_two() {
            return Err(SketchError::damaged(format!("it cannot have {slots} slots")));
        }
        bucket::within(slots, SLOT_BYTES, memory_max)?;
        let sketch = Entropy::new(slots * SLOT_BYTES)?;
        let (level, total, counted) = (body.number()?, body.number()?, body.size()?);
        if level > 64 || counted > sketch.capacity() {
            return Err(SketchError::damaged(format!("{counted} items of level {level} in {slots} slots")));
        }
        sketch.level.store(level, Relaxed);
        for _ in 0..counted {
            let (hash, count) = (body.word()?, body.number()?);
            if sketch.table.find(hash, &[]).steps > STEPS_MAX {
                return Err(SketchError::damaged("its items are all in one place"));
            }
            sketch.count(hash, count);
        }
        sketch.total.store(total, Relaxed);
        body.finish()?;
        Ok(sketch)
    }
}
