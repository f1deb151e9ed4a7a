use crate::bucket::{self, Lines, WAYS, bucket_of, tag_at, tag_of, with_tag, with_tag_at};
use crate::frame::{Kind, Reader, Writer};
use crate::hyper_log_log::raw_estimate;
use crate::{SketchError, mix};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// With how many distinct others each key was seen, of all keys at once, so that those with most can be listed:
/// superspreaders and scanners, or with keys and elements swapped their victims.
///
/// Buckets of eight cells. A cell has a key, and a HyperLogLog of `m` registers of four bits (Flajolet et al. 2007) whose
/// estimate is kept up to date: when a register changes it grows by one over the probability that some register would
/// (Cohen, *All-distances sketches, revisited*, PODS 2014; Ting, *Streamed approximate counting of distinct elements*,
/// KDD 2014), which has a relative standard error of `sqrt(ln 2 / m)` up to about a million elements: 9.3 % with the 80
/// registers beside a key of two words, 8.5 % with the 96 beside one of one or five.
///
/// A key that finds its bucket full takes the place of the one with the least estimate once one of its elements has a hash
/// that ends in enough zeros: with `2^l` at least that estimate, one in `2^l` does, as a source with so many elements has on
/// average (the idea of SpreadSketch: Tang, Huang and Lee, INFOCOM 2020). It starts with the `2^l` elements that it took on
/// average, and counts those again that come again: too high by twice as much as the least of its bucket had, at most. What is
/// listed is right within the error above while there are fewer keys than cells, and beyond that for keys with many more
/// elements than the least of eight.
///
/// A key is `WORDS` words of 64 bits ([`key_words`](crate::key_words)). A bucket is a cache line, of its version, its tags and
/// the sizes of its keys, and eight cells of `WORDS + 6` words, rounded up to half a cache line: an estimate, a key, registers. A
/// key of one or two words thus has one cache line, in the place of its bucket that its hash says if that was free when it came:
/// an insert looks there before it looks at the tags.
///
/// One writer, any number of readers; a reader that meets a change of keys looks again.
#[derive(Debug)]
pub struct Spreaders<const WORDS: usize> {
    cells: Lines,
    buckets: usize,
    hash_id: u64,
}

const VERSION: usize = 0;
const TAGS: usize = 1;
/// A byte for each cell: [`Spread::size`], so that a key that finds a bucket full of large ones sees that without a look at any
/// cell.
const SIZES: usize = 2;
/// Behind a cache line.
const CELLS: usize = 8;

// Of a cell.
/// 0 of a cell that is empty.
const SPREAD: usize = 0;
const KEY: usize = 1;

/// Of a cell with keys of any length.
const REGISTER_WORDS_MAX: usize = 8;
/// Largest value of a register. 1 is that of every second element.
const RANK_MAX: u32 = 15;
/// What a register without an element adds to `Spread::chance`.
const CHANCE_OF_EMPTY: u32 = 1 << (RANK_MAX - 1);

/// Of how its bytes are laid out. 1 did not say which cells are in use.
const BODY: u8 = 2;

/// What a cell knows in one word.
#[derive(Clone, Copy)]
struct Spread {
    estimate: f32,
    /// How likely a new element changes a register, in parts of `m * 2^14`.
    chance: u32,
}

impl Spread {
    /// The logarithm of the least power of two that is not below the estimate; 0 if that is small. Most keys never have one.
    #[inline]
    fn size(self) -> u8 {
        if self.estimate <= SMALL { 0 } else { zeros_of(self.estimate) }
    }

    #[inline]
    fn load(cell: &AtomicU64) -> Spread {
        let bits = cell.load(Relaxed);
        Spread { estimate: f32::from_bits((bits >> 32) as u32), chance: bits as u32 }
    }

    #[inline]
    fn store(self, cell: &AtomicU64) {
        cell.store(u64::from(self.estimate.to_bits()) << 32 | u64::from(self.chance), Relaxed);
    }
}

/// An estimate up to which a cell's size is not noted.
const SMALL: f32 = 16.0;

/// The logarithm of the least power of two that is not below `estimate`: with as many elements, one has a hash that ends in so
/// many zeros.
#[inline]
fn zeros_of(estimate: f32) -> u8 {
    // The exponent, or the next one unless the fraction is 0.
    ((estimate.max(1.0).to_bits() - 1) >> 23) as u8 - 126
}

/// What a register of this value adds to `Spread::chance`.
#[inline]
fn chance_of(rank: u32) -> u32 {
    // Nothing is above the last.
    CHANCE_OF_EMPTY >> rank
}

impl<const WORDS: usize> Spreaders<WORDS> {
    /// Words of a cell: half a cache line, or two halves, or three.
    const CELL: usize = (KEY + WORDS + 5).next_multiple_of(4);
    const STRIDE: usize = CELLS + WAYS * Self::CELL;

    const REGISTERS: usize = KEY + WORDS;
    /// Of a cell, the `m` of its error: 16 in each word that is left.
    const REGISTER_COUNT: usize = 16 * (Self::CELL - Self::REGISTERS);
    /// Of a key with no element.
    const EMPTY: Spread = Spread { estimate: 0.0, chance: Self::REGISTER_COUNT as u32 * CHANCE_OF_EMPTY };

    /// The least memory it can have, in bytes: a bucket.
    pub const MEMORY_MIN: usize = Self::STRIDE * size_of::<u64>();

    /// A sketch in at most `memory_bytes`, for keys hashed by the hash that is called `hash_id`. Allocates at once, and
    /// nothing later.
    ///
    /// # Errors
    /// The memory is less than a bucket, or more than 8 GiB.
    pub fn new(memory_bytes: usize, hash_id: u64) -> Result<Spreaders<WORDS>, SketchError> {
        Ok(Self::with_buckets(bucket::buckets_in(memory_bytes, Self::STRIDE * size_of::<u64>())?, hash_id))
    }

    fn with_buckets(buckets: usize, hash_id: u64) -> Spreaders<WORDS> {
        Spreaders { cells: Lines::new(buckets * Self::STRIDE), buckets, hash_id }
    }

    /// Keys it holds at most.
    pub fn capacity(&self) -> usize {
        self.buckets * WAYS
    }

    /// Bytes of cells.
    pub fn memory_bytes(&self) -> usize {
        size_of_val(self.cells.words())
    }

    /// Relative standard error of the estimate of a key that was there from the start.
    pub fn standard_error(&self) -> f64 {
        (std::f64::consts::LN_2 / Self::REGISTER_COUNT as f64).sqrt()
    }

    /// Notes that `key`, which hashes to `hash`, was seen with what hashes to `element`. For the one writer.
    #[inline]
    pub fn insert(&self, hash: u64, key: &[u64; WORDS], element: u64) {
        let bucket = self.bucket(hash);
        // Two keys with the same elements are not to err alike.
        let element = mix(element ^ hash);
        let lane = Self::find(bucket, hash, key).or_else(|| Self::admit(bucket, hash, key, element));
        if let Some(lane) = lane {
            Self::note(bucket, lane, element);
        }
    }

    /// Notes many. The same as [`Spreaders::insert`] of each in order, but nothing is waited for: what an item needs is fetched
    /// while those before it are noted.
    pub fn insert_all(&self, items: &[(u64, [u64; WORDS], u64)]) {
        /// Items between asking for a cache line and looking at it.
        const AHEAD: usize = 24;
        /// Which of the last items are not at home.
        const RING: usize = 2 * AHEAD.next_power_of_two();
        let mut is_away = [false; RING];
        // Home; where it is not there, the tags of its bucket; and the cell that they say.
        for step in 0..items.len() + 3 * AHEAD {
            if let Some((hash, ..)) = items.get(step) {
                Self::prefetch(Self::cell_of(self.bucket(*hash), home_of(*hash)));
            }
            let at = step.wrapping_sub(AHEAD);
            if let Some((hash, key, _)) = items.get(at) {
                let bucket = self.bucket(*hash);
                is_away[at % RING] = !Self::is_in(Self::cell_of(bucket, home_of(*hash)), key);
                if is_away[at % RING] {
                    memory::prefetch(&bucket[TAGS]);
                }
            }
            let at = step.wrapping_sub(2 * AHEAD);
            if let Some((hash, ..)) = items.get(at)
                && is_away[at % RING]
            {
                let bucket = self.bucket(*hash);
                if let Some(lane) = with_tag(bucket[TAGS].load(Relaxed), tag_of(*hash)).next() {
                    Self::prefetch(Self::cell_of(bucket, lane));
                }
            }
            if let Some((hash, key, element)) = items.get(step.wrapping_sub(3 * AHEAD)) {
                self.insert(*hash, key, *element);
            }
        }
    }

    /// Asks for a cell: a line, or with long keys its first and its last one.
    #[inline]
    fn prefetch(cell: &[AtomicU64]) {
        memory::prefetch(&cell[0]);
        if Self::CELL > CELLS {
            memory::prefetch(&cell[Self::CELL - 1]);
        }
    }

    #[inline]
    fn note(bucket: &[AtomicU64], lane: usize, element: u64) {
        let cell = Self::cell_of(bucket, lane);
        let register = (((element >> 32) * Self::REGISTER_COUNT as u64) >> 32) as usize;
        let rank = (element as u32 | 1 << (RANK_MAX - 1)).trailing_zeros() + 1;
        let (word, shift) = (&cell[Self::REGISTERS + register / 16], register % 16 * 4);
        let registers = word.load(Relaxed);
        let before = (registers >> shift) as u32 & 0xf;
        if rank > before {
            word.store(registers & !(0xf << shift) | u64::from(rank) << shift, Relaxed);
            let spread = Spread::load(&cell[SPREAD]);
            let grown = Spread {
                estimate: spread.estimate + Self::EMPTY.chance as f32 / spread.chance as f32,
                chance: spread.chance - chance_of(before) + chance_of(rank),
            };
            Self::set(bucket, lane, spread.size(), grown);
        }
    }

    /// Sets what a cell in use, whose size was `before`, knows.
    #[inline]
    fn set(bucket: &[AtomicU64], lane: usize, before: u8, spread: Spread) {
        spread.store(&Self::cell_of(bucket, lane)[SPREAD]);
        // Which it seldom changes: the line of the bucket is not looked at else.
        if spread.size() != before {
            bucket[SIZES].store(with_tag_at(bucket[SIZES].load(Relaxed), lane, spread.size()), Relaxed);
        }
    }

    /// A cell for a key that has none, if there is one or if the element says so.
    #[inline(never)]
    fn admit(bucket: &[AtomicU64], hash: u64, key: &[u64; WORDS], element: u64) -> Option<usize> {
        let (lane, missed) = match Self::free(bucket, home_of(hash)) {
            Some(lane) => (lane, 0.0),
            None => {
                let sizes = bucket[SIZES].load(Relaxed);
                let is_let_in = |zeros: u8| mix(element).trailing_zeros() >= zeros.into();
                if !is_let_in(sizes.to_le_bytes().into_iter().min().unwrap_or(0)) {
                    return None;
                }
                let (lane, least) = Self::least(bucket);
                let zeros = zeros_of(least);
                if !is_let_in(zeros) {
                    return None;
                }
                (lane, (1_u64 << zeros.min(63)) as f32 - 1.0)
            }
        };
        let spread = Spread { estimate: missed, ..Self::EMPTY };
        Self::take(bucket, lane, tag_of(hash), key, spread, &[0; REGISTER_WORDS_MAX]);
        Some(lane)
    }

    /// An empty cell, the one at `home` before others.
    fn free(bucket: &[AtomicU64], home: usize) -> Option<usize> {
        let tags = bucket[TAGS].load(Relaxed);
        if tag_at(tags, home) == 0 { Some(home) } else { with_tag(tags, 0).next() }
    }

    /// The cell of a full bucket with the least estimate, and that.
    fn least(bucket: &[AtomicU64]) -> (usize, f32) {
        let estimate = |lane| Spread::load(&Self::cell_of(bucket, lane)[SPREAD]).estimate;
        let all = (0..WAYS).map(|lane| (lane, estimate(lane)));
        all.fold((0, f32::INFINITY), |least, other| if other.1 < least.1 { other } else { least })
    }

    fn take(
        bucket: &[AtomicU64],
        lane: usize,
        tag: u8,
        key: &[u64; WORDS],
        spread: Spread,
        registers: &[u64; REGISTER_WORDS_MAX],
    ) {
        let cell = Self::cell_of(bucket, lane);
        bucket::write(&bucket[VERSION], || {
            spread.store(&cell[SPREAD]);
            cell[KEY..Self::REGISTERS].iter().zip(key).for_each(|(cell, word)| cell.store(*word, Relaxed));
            cell[Self::REGISTERS..].iter().zip(registers).for_each(|(cell, word)| cell.store(*word, Relaxed));
            bucket[TAGS].store(with_tag_at(bucket[TAGS].load(Relaxed), lane, tag), Relaxed);
            bucket[SIZES].store(with_tag_at(bucket[SIZES].load(Relaxed), lane, spread.size()), Relaxed);
        });
    }

    /// With how many distinct elements `key`, which hashes to `hash`, was seen; `None` if it is not held.
    pub fn estimate(&self, hash: u64, key: &[u64; WORDS]) -> Option<f64> {
        let bucket = self.bucket(hash);
        bucket::read(&bucket[VERSION], || {
            let lane = Self::find(bucket, hash, key)?;
            Some(f64::from(Spread::load(&Self::cell_of(bucket, lane)[SPREAD]).estimate))
        })
    }

    /// The largest estimate that the least key of a full bucket has; 0 while there is room for every key. Where it is `l`, a key that
    /// took a cell from another is counted too high by `2 l` at most; and one in `2 l` elements of a key without a cell takes one, so
    /// that of `6 l` none did with a probability of `e^-3`: 5 %.
    pub fn crowding(&self) -> f64 {
        let full = self.all().map(|bucket| {
            bucket::read(&bucket[VERSION], || match with_tag(bucket[TAGS].load(Relaxed), 0).next() {
                Some(_) => 0.0,
                None => f64::from(Self::least(bucket).1),
            })
        });
        full.fold(0.0, f64::max)
    }

    /// The keys seen with at least `least` distinct elements, those with most first.
    pub fn list(&self, least: f64) -> Vec<([u64; WORDS], f64)> {
        let mut all = Vec::new();
        for bucket in self.all() {
            let held = Self::held(bucket).map(|cell| (cell.key, f64::from(cell.spread.estimate)));
            all.extend(held.filter(|(_, estimate)| *estimate >= least));
        }
        all.sort_unstable_by(|(a, x), (b, y)| y.total_cmp(x).then_with(|| a.cmp(b)));
        all
    }

    /// Adds what `other` saw. Of a key that both hold the registers are those of both streams together, and its error
    /// becomes that of HyperLogLog, `1.04 / sqrt(m)`: 11.6 % of one of two words.
    ///
    /// # Errors
    /// They have different sizes or hashes; `self` is then unchanged.
    pub fn merge(&self, other: &Spreaders<WORDS>) -> Result<(), SketchError> {
        bucket::same_shape((self.memory_bytes(), self.hash_id), (other.memory_bytes(), other.hash_id))?;
        for (ours, theirs) in self.all().zip(other.all()) {
            if theirs[TAGS].load(Relaxed) == 0 {
                continue;
            }
            if ours[TAGS].load(Relaxed) == 0 {
                Self::copy(ours, theirs);
                continue;
            }
            // Those that both have first: none of them is to lose its cell to another one. Then the larger ones.
            let (both, mut others): (Vec<_>, Vec<_>) =
                Self::held(theirs).partition(|held| Self::find_by_tag(ours, held.tag, &held.key).is_some());
            others.sort_by(|a, b| b.spread.estimate.total_cmp(&a.spread.estimate));
            for Held { key, tag, spread, registers, .. } in both {
                let Some(lane) = Self::find_by_tag(ours, tag, &key) else { continue };
                let cell = Self::cell_of(ours, lane);
                let before = Spread::load(&cell[SPREAD]);
                let mut counts = [0; RANK_MAX as usize + 1];
                let mut chance = 0;
                for (cell, theirs) in cell[Self::REGISTERS..].iter().zip(registers) {
                    let both = largest(cell.load(Relaxed), theirs);
                    cell.store(both, Relaxed);
                    for register in 0..16 {
                        let rank = (both >> (4 * register)) as u32 & 0xf;
                        counts[rank as usize] += 1;
                        chance += chance_of(rank);
                    }
                }
                // Not fewer than either saw, nor more than both.
                let (more, fewer) = (before.estimate.max(spread.estimate), before.estimate.min(spread.estimate));
                let estimate = (raw_estimate(&counts) as f32).clamp(more, more + fewer);
                Self::set(ours, lane, before.size(), Spread { estimate, chance });
            }
            for Held { lane, key, tag, spread, registers } in others {
                let free = Self::free(ours, lane).map(|lane| (lane, 0.0));
                let (lane, least) = free.unwrap_or_else(|| Self::least(ours));
                if spread.estimate > least {
                    Self::take(ours, lane, tag, &key, spread, &registers);
                }
            }
        }
        Ok(())
    }

    /// Makes a bucket what another one is.
    fn copy(ours: &[AtomicU64], theirs: &[AtomicU64]) {
        let copy = || ours.iter().zip(theirs).skip(TAGS).for_each(|(to, from)| to.store(from.load(Relaxed), Relaxed));
        bucket::write(&ours[VERSION], || {
            bucket::read(&theirs[VERSION], copy);
            // Estimates may have grown while they were copied.
            let size = |lane| Spread::load(&Self::cell_of(ours, lane)[SPREAD]).size();
            let sizes = (0..WAYS)
                .filter(|lane| tag_at(ours[TAGS].load(Relaxed), *lane) != 0)
                .fold(0, |sizes, lane| with_tag_at(sizes, lane, size(lane)));
            ours[SIZES].store(sizes, Relaxed);
        });
    }

    /// Forgets everything. For the one writer; a reader meanwhile sees some buckets as they were.
    pub fn reset(&self) {
        for bucket in self.all() {
            if bucket[TAGS].load(Relaxed) != 0 {
                bucket::write(&bucket[VERSION], || {
                    (0..WAYS).for_each(|lane| Self::cell_of(bucket, lane)[SPREAD].store(0, Relaxed));
                    [TAGS, SIZES].into_iter().for_each(|word| bucket[word].store(0, Relaxed));
                });
            }
        }
    }

    /// The sketch as bytes, for [`Spreaders::from_bytes`].
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Writer::new(Kind::Spreaders, BODY);
        out.number(WORDS as u64);
        out.number(self.buckets as u64);
        out.word(self.hash_id);
        for bucket in self.all() {
            let held: Vec<_> = Self::held(bucket).collect();
            out.bytes(&[held.iter().map(|held| 1 << held.lane).sum()]);
            for Held { key, tag, spread, registers, .. } in held {
                out.bytes(&[tag]);
                out.word(spread.estimate.to_bits().into());
                let registers = &registers[..Self::CELL - Self::REGISTERS];
                registers.iter().chain(&key).for_each(|word| out.word(*word));
            }
        }
        out.finish()
    }

    /// The sketch of [`Spreaders::to_bytes`].
    ///
    /// # Errors
    /// The bytes are of another kind of sketch, of another version or of keys of another length, or damaged, or the sketch
    /// takes more than `memory_max` bytes.
    pub fn from_bytes(bytes: &[u8], memory_max: usize) -> Result<Spreaders<WORDS>, SketchError> {
        let mut body = Reader::new(bytes, Kind::Spreaders, BODY)?;
        body.key_words(WORDS)?;
        let buckets = body.size()?;
        // Each has a byte at least.
        if buckets == 0 || buckets > body.left() {
            return Err(SketchError::damaged(format!("it cannot have {buckets} buckets")));
        }
        bucket::within(buckets, Self::STRIDE * size_of::<u64>(), memory_max)?;
        let sketch = Self::with_buckets(buckets, body.word()?);
        for bucket in sketch.all() {
            let held = body.bytes(1)?[0];
            for lane in (0..WAYS).filter(|lane| held >> lane & 1 == 1) {
                let tag = body.bytes(1)?[0];
                let estimate = f32::from_bits(body.word()? as u32);
                if tag == 0 || !estimate.is_finite() || estimate < 0.0 {
                    return Err(SketchError::damaged("a key without a tag or an estimate"));
                }
                let mut registers = [0; REGISTER_WORDS_MAX];
                for word in &mut registers[..Self::CELL - Self::REGISTERS] {
                    *word = body.word()?;
                }
                let mut key = [0; WORDS];
                for word in &mut key {
                    *word = body.word()?;
                }
                let ranks = registers.iter().flat_map(|word| (0..16).map(move |at| (word >> (4 * at)) as u32 & 0xf));
                let chance = ranks.take(Self::REGISTER_COUNT).map(chance_of).sum();
                Self::take(bucket, lane, tag, &key, Spread { estimate, chance }, &registers);
            }
        }
        body.finish()?;
        Ok(sketch)
    }

    #[inline]
    fn bucket(&self, hash: u64) -> &[AtomicU64] {
        &self.cells.words()[bucket_of(hash, self.buckets) * Self::STRIDE..][..Self::STRIDE]
    }

    fn all(&self) -> std::slice::ChunksExact<'_, AtomicU64> {
        self.cells.words().chunks_exact(Self::STRIDE)
    }

    #[inline]
    fn cell_of(bucket: &[AtomicU64], lane: usize) -> &[AtomicU64] {
        &bucket[CELLS + lane * Self::CELL..][..Self::CELL]
    }

    #[inline]
    fn find(bucket: &[AtomicU64], hash: u64, key: &[u64; WORDS]) -> Option<usize> {
        let home = home_of(hash);
        if Self::is_in(Self::cell_of(bucket, home), key) {
            return Some(home);
        }
        Self::find_by_tag(bucket, tag_of(hash), key)
    }

    #[inline(never)]
    fn find_by_tag(bucket: &[AtomicU64], tag: u8, key: &[u64; WORDS]) -> Option<usize> {
        with_tag(bucket[TAGS].load(Relaxed), tag).find(|lane| Self::is_in(Self::cell_of(bucket, *lane), key))
    }

    #[inline]
    fn is_in(cell: &[AtomicU64], key: &[u64; WORDS]) -> bool {
        let is_key = cell[KEY..].iter().zip(key).all(|(cell, word)| cell.load(Relaxed) == *word);
        is_key && cell[SPREAD].load(Relaxed) != 0
    }

    /// The cells of a bucket that are in use, as they were at one moment.
    fn held(bucket: &[AtomicU64]) -> impl Iterator<Item = Held<WORDS>> {
        bucket::read(&bucket[VERSION], || {
            let tags = bucket[TAGS].load(Relaxed);
            let held = |lane: usize| {
                let cell = Self::cell_of(bucket, lane);
                let mut registers = [0; REGISTER_WORDS_MAX];
                registers.iter_mut().zip(&cell[Self::REGISTERS..]).for_each(|(word, cell)| *word = cell.load(Relaxed));
                Held {
                    lane,
                    key: std::array::from_fn(|word| cell[KEY + word].load(Relaxed)),
                    tag: tag_at(tags, lane),
                    spread: Spread::load(&cell[SPREAD]),
                    registers,
                }
            };
            std::array::from_fn::<_, WAYS, _>(|lane| (tag_at(tags, lane) != 0).then(|| held(lane)))
        })
        .into_iter()
        .flatten()
    }
}

/// A cell that is in use.
struct Held<const WORDS: usize> {
    lane: usize,
    key: [u64; WORDS],
    tag: u8,
    spread: Spread,
    /// Zeros behind those it has.
    registers: [u64; REGISTER_WORDS_MAX],
}

/// Where a key is in its bucket if it may choose.
#[inline]
fn home_of(hash: u64) -> usize {
    // Bits that choose neither bucket nor tag.
    (hash >> 8) as usize % WAYS
}

/// Of sixteen registers in a word each, the larger ones.
fn largest(a: u64, b: u64) -> u64 {
    (0..16).map(|at| ((a >> (4 * at)) & 0xf).max((b >> (4 * at)) & 0xf) << (4 * at)).fold(0, |all, one| all | one)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is written twice agrees: the line of a bucket and its cells.
    fn check(sketch: &Spreaders<2>) {
        for bucket in sketch.all() {
            for lane in 0..WAYS {
                let cell = Spreaders::<2>::cell_of(bucket, lane);
                let spread = Spread::load(&cell[SPREAD]);
                assert_eq!(tag_at(bucket[TAGS].load(Relaxed), lane) != 0, cell[SPREAD].load(Relaxed) != 0);
                assert_eq!(tag_at(bucket[SIZES].load(Relaxed), lane), spread.size(), "{}", spread.estimate);
                if spread.chance != 0 {
                    let words = cell[Spreaders::<2>::REGISTERS..].iter().map(|word| word.load(Relaxed));
                    let ranks = words.flat_map(|word| (0..16).map(move |at| (word >> (4 * at)) as u32 & 0xf));
                    assert_eq!(ranks.map(chance_of).sum::<u32>(), spread.chance);
                }
            }
        }
    }

    #[test]
    fn a_bucket_knows_the_sizes_of_its_cells() {
        let [a, b] = [0, 1].map(|_| Spreaders::<2>::new(20_000, 1).unwrap());
        let random = bucket::Random::new(3);
        for step in 0..200_000 {
            let item = random.next() % (1 << (step % 12));
            [&a, &b][step % 2].insert(mix(item), &[item, 0], random.next());
        }
        check(&a);
        a.merge(&b).unwrap();
        check(&a);
        let read = Spreaders::<2>::from_bytes(&a.to_bytes(), 20_000).unwrap();
        check(&read);
        assert_eq!(read.to_bytes(), a.to_bytes());
        a.reset();
        check(&a);
        assert_eq!(a.estimate(mix(1), &[1, 0]), None);
    }

    #[test]
    fn zeros_follow_the_estimate() {
        for (estimate, zeros) in [(0.0, 0), (1.0, 0), (1.5, 1), (2.0, 1), (2.1, 2), (1_024.0, 10), (1_025.0, 11)] {
            assert_eq!(zeros_of(estimate), zeros, "{estimate}");
        }
    }

    /// A key of one or two words has a cache line of its own.
    #[test]
    fn cells_are_cache_lines() {
        assert_eq!([Spreaders::<1>::CELL, Spreaders::<2>::CELL, Spreaders::<5>::CELL], [8, 8, 12]);
        assert_eq!([Spreaders::<1>::REGISTER_COUNT, Spreaders::<2>::REGISTER_COUNT], [96, 80]);
        let sketch = Spreaders::<2>::new(10_000, 1).unwrap();
        assert_eq!(sketch.cells.words().as_ptr().align_offset(64), 0);
        assert_eq!(sketch.memory_bytes(), 10_000 / 576 * 576);
    }
}
