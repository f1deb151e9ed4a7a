use crate::bucket::{self, WAYS, bucket_of, tag_at, tag_of, with_tag, with_tag_at};
use crate::frame::{Kind, Reader, Writer};
use crate::hyper_log_log::raw_estimate;
use crate::{SketchError, mix};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// With how many distinct others each key was seen, of all keys at once, so that those with most can be listed:
/// superspreaders and scanners, or with keys and elements swapped their victims.
///
/// Buckets of eight cells. A cell has a key, and a HyperLogLog of 96 registers of four bits (Flajolet et al. 2007) whose
/// estimate is kept up to date: when a register changes it grows by one over the probability that some register would
/// (Cohen, *All-distances sketches, revisited*, PODS 2014; Ting, *Streamed approximate counting of distinct elements*,
/// KDD 2014), which has a relative standard error of `sqrt(ln 2 / 96)`, 8.5 %, up to about a million elements.
///
/// A key that finds its bucket full takes the place of the one with the least estimate once one of its elements has a hash
/// that ends in enough zeros: with `2^l` at least that estimate, one in `2^l` does, as a source with so many elements has on
/// average (the idea of SpreadSketch: Tang, Huang and Lee, INFOCOM 2020). It starts with the `2^l` elements that it took on
/// average, and counts those again that come again: too high by twice as much as the least of its bucket had, at most. What is
/// listed is right within the error above while there are fewer keys than cells, and beyond that for keys with many more
/// elements than the least of eight.
///
/// A key is `WORDS` words of 64 bits ([`key_words`](crate::key_words)); a bucket is `2 + 8 * (7 + WORDS)` words.
///
/// One writer, any number of readers; a reader that meets a change of keys looks again.
#[derive(Debug)]
pub struct Spreaders<const WORDS: usize> {
    cells: Box<[AtomicU64]>,
    buckets: usize,
    hash_id: u64,
}

const VERSION: usize = 0;
const TAGS: usize = 1;
const CELLS: usize = 2;

// Of a cell.
const SPREAD: usize = 0;
const REGISTERS: usize = 1;
const KEY: usize = REGISTERS + REGISTER_WORDS;

const REGISTER_WORDS: usize = 6;
/// Of a cell: 16 in a word.
const REGISTER_COUNT: usize = 16 * REGISTER_WORDS;
/// Largest value of a register. 1 is that of every second element.
const RANK_MAX: u32 = 15;
/// What a register without an element adds to `Spread::chance`.
const CHANCE_OF_EMPTY: u32 = 1 << (RANK_MAX - 1);

const BODY: u8 = 1;

/// What a cell knows in one word.
#[derive(Clone, Copy)]
struct Spread {
    estimate: f32,
    /// How likely a new element changes a register, in parts of `96 * 2^14`.
    chance: u32,
}

impl Spread {
    const EMPTY: Spread = Spread { estimate: 0.0, chance: REGISTER_COUNT as u32 * CHANCE_OF_EMPTY };

    fn load(cell: &AtomicU64) -> Spread {
        let bits = cell.load(Relaxed);
        Spread { estimate: f32::from_bits((bits >> 32) as u32), chance: bits as u32 }
    }

    fn store(self, cell: &AtomicU64) {
        cell.store(u64::from(self.estimate.to_bits()) << 32 | u64::from(self.chance), Relaxed);
    }
}

/// What a register of this value adds to `Spread::chance`.
fn chance_of(rank: u32) -> u32 {
    // Nothing is above the last.
    CHANCE_OF_EMPTY >> rank
}

impl<const WORDS: usize> Spreaders<WORDS> {
    const CELL: usize = KEY + WORDS;
    const STRIDE: usize = CELLS + WAYS * Self::CELL;

    /// A sketch in at most `memory_bytes`, for keys hashed by the hash that is called `hash_id`. Allocates at once, and
    /// nothing later.
    ///
    /// # Errors
    /// The memory is less than a bucket, or more than 8 GiB.
    pub fn new(memory_bytes: usize, hash_id: u64) -> Result<Spreaders<WORDS>, SketchError> {
        Ok(Self::with_buckets(bucket::buckets_in(memory_bytes, Self::STRIDE * size_of::<u64>())?, hash_id))
    }

    fn with_buckets(buckets: usize, hash_id: u64) -> Spreaders<WORDS> {
        Spreaders { cells: bucket::cells(buckets * Self::STRIDE), buckets, hash_id }
    }

    /// Keys it holds at most.
    pub fn capacity(&self) -> usize {
        self.buckets * WAYS
    }

    /// Bytes of cells.
    pub fn memory_bytes(&self) -> usize {
        size_of_val(&*self.cells)
    }

    /// Relative standard error of the estimate of a key that was there from the start.
    pub fn standard_error(&self) -> f64 {
        (std::f64::consts::LN_2 / REGISTER_COUNT as f64).sqrt()
    }

    /// Notes that `key`, which hashes to `hash`, was seen with what hashes to `element`. For the one writer.
    #[inline]
    pub fn insert(&self, hash: u64, key: &[u64; WORDS], element: u64) {
        let (bucket, tag) = (self.bucket(hash), tag_of(hash));
        // Two keys with the same elements are not to err alike.
        let element = mix(element ^ hash);
        let lane = Self::find(bucket, tag, key).or_else(|| Self::admit(bucket, tag, key, element));
        if let Some(lane) = lane {
            Self::note(cell_of(bucket, lane, Self::CELL), element);
        }
    }

    /// Notes many; memory is waited for once, not each time. The same as [`Spreaders::insert`] of each in order.
    pub fn insert_all(&self, items: &[(u64, [u64; WORDS], u64)]) {
        /// So many cache lines are on their way at a time.
        const AHEAD: usize = 16;
        for items in items.chunks(AHEAD) {
            // Loads that do not depend on each other are waited for together; nothing is decided by what they give.
            let mut seen = [0; AHEAD];
            for (seen, (hash, ..)) in seen.iter_mut().zip(items) {
                *seen = self.bucket(*hash)[TAGS].load(Relaxed);
            }
            let mut touched = 0;
            for (tags, (hash, ..)) in seen.iter().zip(items) {
                let lane = with_tag(*tags, tag_of(*hash)).next().unwrap_or(0);
                touched ^= cell_of(self.bucket(*hash), lane, Self::CELL)[SPREAD].load(Relaxed);
            }
            std::hint::black_box(touched);
            for (hash, key, element) in items {
                self.insert(*hash, key, *element);
            }
        }
    }

    fn note(cell: &[AtomicU64], element: u64) {
        let register = (((element >> 32) * REGISTER_COUNT as u64) >> 32) as usize;
        let rank = (element as u32 | 1 << (RANK_MAX - 1)).trailing_zeros() + 1;
        let (word, shift) = (&cell[REGISTERS + register / 16], register % 16 * 4);
        let registers = word.load(Relaxed);
        let before = (registers >> shift) as u32 & 0xf;
        if rank > before {
            word.store(registers & !(0xf << shift) | u64::from(rank) << shift, Relaxed);
            let Spread { estimate, chance } = Spread::load(&cell[SPREAD]);
            let grown = estimate + Spread::EMPTY.chance as f32 / chance as f32;
            let chance = chance - chance_of(before) + chance_of(rank);
            Spread { estimate: grown, chance }.store(&cell[SPREAD]);
        }
    }

    /// A cell for a key that has none, if there is one or if the element says so.
    fn admit(bucket: &[AtomicU64], tag: u8, key: &[u64; WORDS], element: u64) -> Option<usize> {
        let tags = bucket[TAGS].load(Relaxed);
        let (lane, missed) = match with_tag(tags, 0).next() {
            Some(lane) => (lane, 0.0),
            None => {
                let (lane, least) = Self::least(bucket);
                let zeros = least.max(1.0).log2().ceil() as u32;
                if mix(element).trailing_zeros() < zeros {
                    return None;
                }
                (lane, (1_u64 << zeros.min(63)) as f32 - 1.0)
            }
        };
        Self::take(bucket, lane, tag, key, Spread { estimate: missed, ..Spread::EMPTY }, [0; REGISTER_WORDS]);
        Some(lane)
    }

    /// The cell of a full bucket with the least estimate, and that.
    fn least(bucket: &[AtomicU64]) -> (usize, f32) {
        let estimate = |lane| Spread::load(&cell_of(bucket, lane, Self::CELL)[SPREAD]).estimate;
        let all = (0..WAYS).map(|lane| (lane, estimate(lane)));
        all.fold((0, f32::INFINITY), |least, other| if other.1 < least.1 { other } else { least })
    }

    fn take(
        bucket: &[AtomicU64],
        lane: usize,
        tag: u8,
        key: &[u64; WORDS],
        spread: Spread,
        registers: [u64; REGISTER_WORDS],
    ) {
        let cell = cell_of(bucket, lane, Self::CELL);
        bucket::write(&bucket[VERSION], || {
            spread.store(&cell[SPREAD]);
            cell[REGISTERS..KEY].iter().zip(registers).for_each(|(cell, word)| cell.store(word, Relaxed));
            cell[KEY..].iter().zip(key).for_each(|(cell, word)| cell.store(*word, Relaxed));
            bucket[TAGS].store(with_tag_at(bucket[TAGS].load(Relaxed), lane, tag), Relaxed);
        });
    }

    /// With how many distinct elements `key`, which hashes to `hash`, was seen; `None` if it is not held.
    pub fn estimate(&self, hash: u64, key: &[u64; WORDS]) -> Option<f64> {
        let bucket = self.bucket(hash);
        bucket::read(&bucket[VERSION], || {
            let lane = Self::find(bucket, tag_of(hash), key)?;
            Some(f64::from(Spread::load(&cell_of(bucket, lane, Self::CELL)[SPREAD]).estimate))
        })
    }

    /// The keys seen with at least `least` distinct elements, those with most first.
    pub fn list(&self, least: f64) -> Vec<([u64; WORDS], f64)> {
        let mut all = Vec::new();
        for bucket in self.cells.chunks_exact(Self::STRIDE) {
            let held = Self::held(bucket).into_iter().map(|cell| (cell.key, f64::from(cell.spread.estimate)));
            all.extend(held.filter(|(_, estimate)| *estimate >= least));
        }
        all.sort_unstable_by(|(a, x), (b, y)| y.total_cmp(x).then_with(|| a.cmp(b)));
        all
    }

    /// Adds what `other` saw. Of a key that both hold the registers are those of both streams together, and its error
    /// becomes that of HyperLogLog, 10.6 %.
    ///
    /// # Errors
    /// They have different sizes or hashes; `self` is then unchanged.
    pub fn merge(&self, other: &Spreaders<WORDS>) -> Result<(), SketchError> {
        bucket::same_shape((self.memory_bytes(), self.hash_id), (other.memory_bytes(), other.hash_id))?;
        for (ours, theirs) in self.cells.chunks_exact(Self::STRIDE).zip(other.cells.chunks_exact(Self::STRIDE)) {
            // Those that both have first: none of them is to lose its cell to another one. Then the larger ones.
            let (both, mut others): (Vec<_>, Vec<_>) =
                Self::held(theirs).into_iter().partition(|held| Self::find(ours, held.tag, &held.key).is_some());
            others.sort_by(|a, b| b.spread.estimate.total_cmp(&a.spread.estimate));
            for Held { key, tag, spread, registers } in both {
                let Some(lane) = Self::find(ours, tag, &key) else { continue };
                let cell = cell_of(ours, lane, Self::CELL);
                let before = Spread::load(&cell[SPREAD]);
                let mut counts = [0; RANK_MAX as usize + 1];
                let mut chance = 0;
                for (cell, theirs) in cell[REGISTERS..KEY].iter().zip(registers) {
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
                Spread { estimate, chance }.store(&cell[SPREAD]);
            }
            for Held { key, tag, spread, registers } in others {
                let free = with_tag(ours[TAGS].load(Relaxed), 0).next().map(|lane| (lane, 0.0));
                let (lane, least) = free.unwrap_or_else(|| Self::least(ours));
                if spread.estimate > least {
                    Self::take(ours, lane, tag, &key, spread, registers);
                }
            }
        }
        Ok(())
    }

    /// Forgets everything. For the one writer; a reader meanwhile sees some buckets as they were.
    pub fn reset(&self) {
        for bucket in self.cells.chunks_exact(Self::STRIDE) {
            bucket::write(&bucket[VERSION], || bucket[TAGS].store(0, Relaxed));
        }
    }

    /// The sketch as bytes, for [`Spreaders::from_bytes`].
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Writer::new(Kind::Spreaders, BODY);
        out.number(WORDS as u64);
        out.number(self.buckets as u64);
        out.word(self.hash_id);
        for bucket in self.cells.chunks_exact(Self::STRIDE) {
            let held = Self::held(bucket);
            out.number(held.len() as u64);
            for Held { key, tag, spread, registers } in held {
                out.bytes(&[tag]);
                out.word(spread.estimate.to_bits().into());
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
        for bucket in sketch.cells.chunks_exact(Self::STRIDE) {
            let held = body.size()?;
            if held > WAYS {
                return Err(SketchError::damaged(format!("a bucket of {held} keys")));
            }
            for lane in 0..held {
                let tag = body.bytes(1)?[0];
                let estimate = f32::from_bits(body.word()? as u32);
                if tag == 0 || !estimate.is_finite() || estimate < 0.0 {
                    return Err(SketchError::damaged("a key without a tag or an estimate"));
                }
                let mut registers = [0; REGISTER_WORDS];
                for word in &mut registers {
                    *word = body.word()?;
                }
                let mut key = [0; WORDS];
                for word in &mut key {
                    *word = body.word()?;
                }
                let ranks = registers.iter().flat_map(|word| (0..16).map(move |at| (word >> (4 * at)) as u32 & 0xf));
                let chance = ranks.map(chance_of).sum();
                Self::take(bucket, lane, tag, &key, Spread { estimate, chance }, registers);
            }
        }
        body.finish()?;
        Ok(sketch)
    }

    fn bucket(&self, hash: u64) -> &[AtomicU64] {
        &self.cells[bucket_of(hash, self.buckets) * Self::STRIDE..][..Self::STRIDE]
    }

    #[inline]
    fn find(bucket: &[AtomicU64], tag: u8, key: &[u64; WORDS]) -> Option<usize> {
        with_tag(bucket[TAGS].load(Relaxed), tag).find(|lane| {
            let held = &cell_of(bucket, *lane, Self::CELL)[KEY..];
            held.iter().zip(key).all(|(cell, word)| cell.load(Relaxed) == *word)
        })
    }

    /// The cells of a bucket that are in use, as they were at one moment.
    fn held(bucket: &[AtomicU64]) -> Vec<Held<WORDS>> {
        bucket::read(&bucket[VERSION], || {
            let tags = bucket[TAGS].load(Relaxed);
            let held = (0..WAYS).filter(|lane| tag_at(tags, *lane) != 0).map(|lane| {
                let cell = cell_of(bucket, lane, Self::CELL);
                Held {
                    key: std::array::from_fn(|word| cell[KEY + word].load(Relaxed)),
                    tag: tag_at(tags, lane),
                    spread: Spread::load(&cell[SPREAD]),
                    registers: std::array::from_fn(|word| cell[REGISTERS + word].load(Relaxed)),
                }
            });
            held.collect()
        })
    }
}

/// A cell that is in use.
struct Held<const WORDS: usize> {
    key: [u64; WORDS],
    tag: u8,
    spread: Spread,
    registers: [u64; REGISTER_WORDS],
}

fn cell_of(bucket: &[AtomicU64], lane: usize, words: usize) -> &[AtomicU64] {
    &bucket[CELLS + lane * words..][..words]
}

/// Of sixteen registers in a word each, the larger ones.
fn largest(a: u64, b: u64) -> u64 {
    (0..16).map(|at| ((a >> (4 * at)) & 0xf).max((b >> (4 * at)) & 0xf) << (4 * at)).fold(0, |all, one| all | one)
}
