use crate::bucket::{self, Random, WAYS, add, bucket_of, tag_at, tag_of, with_tag, with_tag_at};
use crate::frame::{Kind, Reader, Writer};
use crate::{SketchError, mix};
use hashbrown::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// How much each key brought, and each part of a key, in fixed memory: CocoSketch (Zhang et al., *CocoSketch:
/// high-performance sketch-based measurement over arbitrary partial key query*, SIGCOMM 2021), with the candidates of a
/// key side by side in one bucket instead of one in each of several arrays.
///
/// A key that is held is added to. Another one goes to the smallest of its bucket's eight entries: that grows by `n`, and
/// becomes the new key's with probability `n / (what it has grown to)`. Thus the estimate of every key, and of every set
/// of keys chosen without looking, is unbiased, so that one sketch over the full key answers for any part of it: add up
/// the entries with that part. A frequent key is soon not the smallest of its bucket, and from then on counted exactly.
///
/// Beside its count an entry knows its slack: how much of it may be other keys'. What a key surely had is `count - slack`;
/// what it may have had at most is that and the slack of its whole bucket, since a bucket's counts sum up to all that came
/// to it. These bounds hold always, not only with some probability (see [`Estimate`]).
///
/// A key is `WORDS` words of 64 bits ([`key_words`](crate::key_words)). A bucket is `2 + 16 + 8 * WORDS` words: its version
/// and its tags, eight counts, eight slacks, eight keys.
///
/// One writer, any number of readers: counts are single words, and a reader that meets a change of keys looks again.
#[derive(Debug)]
pub struct CocoSketch<const WORDS: usize> {
    cells: Box<[AtomicU64]>,
    buckets: usize,
    /// Sum of all counts put in.
    total: AtomicU64,
    random: Random,
    /// Which hash its keys have: sketches of different ones cannot be merged.
    hash_id: u64,
}

/// What is known of one key, or of a part of keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Estimate {
    /// Right on average.
    pub value: u64,
    /// It had no less.
    pub lower: u64,
    /// It had no more.
    pub upper: u64,
}

const VERSION: usize = 0;
const TAGS: usize = 1;
const COUNTS: usize = 2;
const SLACKS: usize = COUNTS + WAYS;
const KEYS: usize = SLACKS + WAYS;

/// Of how its bytes are laid out.
const BODY: u8 = 1;

impl<const WORDS: usize> CocoSketch<WORDS> {
    /// Words of a bucket.
    const STRIDE: usize = KEYS + WAYS * WORDS;

    /// The least memory it can have, in bytes: a bucket.
    pub const MEMORY_MIN: usize = Self::STRIDE * size_of::<u64>();

    /// A sketch in at most `memory_bytes`, for keys hashed by the hash that is called `hash_id`. Allocates at once, and
    /// nothing later. `hash_id` also chooses the random numbers, so that the same stream gives the same sketch.
    ///
    /// # Errors
    /// The memory is less than a bucket, or more than 8 GiB.
    pub fn new(memory_bytes: usize, hash_id: u64) -> Result<CocoSketch<WORDS>, SketchError> {
        let buckets = bucket::buckets_in(memory_bytes, Self::STRIDE * size_of::<u64>())?;
        Ok(Self::with_buckets(buckets, hash_id, hash_id))
    }

    /// With numbers that follow from `seed`.
    fn with_buckets(buckets: usize, hash_id: u64, seed: u64) -> CocoSketch<WORDS> {
        CocoSketch {
            cells: memory::zeroed(buckets * Self::STRIDE),
            buckets,
            total: AtomicU64::new(0),
            random: Random::new(seed),
            hash_id,
        }
    }

    /// Bytes with which a key is off by `error` times the total, on average over keys: the counters of a bucket are those of the keys
    /// that fall into it, and one of `1 / error` buckets has that share of all. Saturates.
    pub fn memory_for(error: f64) -> usize {
        ((1.0 / error).ceil() * (Self::STRIDE * size_of::<u64>()) as f64) as usize
    }

    /// The error of [`CocoSketch::memory_for`] with the memory it has.
    pub fn error(&self) -> f64 {
        1.0 / self.buckets as f64
    }

    /// Keys it holds at most.
    pub fn capacity(&self) -> usize {
        self.buckets * WAYS
    }

    /// Bytes of cells.
    pub fn memory_bytes(&self) -> usize {
        size_of_val(&*self.cells)
    }

    /// Sum of all counts put in.
    pub fn total(&self) -> u64 {
        self.total.load(Relaxed)
    }

    /// Adds `n` to `key`, which hashes to `hash`. For the one writer.
    #[inline]
    pub fn update(&self, hash: u64, key: &[u64; WORDS], n: u64) {
        add(&self.total, n);
        let (bucket, tag) = (self.bucket(hash), tag_of(hash));
        match Self::find(bucket, tag, key) {
            Some(lane) => add(&bucket[COUNTS + lane], n),
            None => Self::put(bucket, tag, key, n, n, &self.random),
        }
    }

    /// Adds to many. The same as [`CocoSketch::update`] of each in order, but what an item needs whose key is held is fetched while those
    /// before it are counted.
    pub fn update_all(&self, items: &[(u64, [u64; WORDS], u64)]) {
        /// Items between asking for a cache line and looking at it.
        const AHEAD: usize = 16;
        for step in 0..items.len() + 2 * AHEAD {
            if let Some((hash, ..)) = items.get(step) {
                let bucket = self.bucket(*hash);
                memory::prefetch(&bucket[TAGS]);
                memory::prefetch(&bucket[COUNTS + WAYS - 1]);
            }
            if let Some((hash, ..)) = items.get(step.wrapping_sub(AHEAD)) {
                let bucket = self.bucket(*hash);
                if let Some(lane) = with_tag(bucket[TAGS].load(Relaxed), tag_of(*hash)).next() {
                    memory::prefetch(&bucket[KEYS + lane * WORDS]);
                    memory::prefetch(&bucket[KEYS + lane * WORDS + WORDS - 1]);
                }
            }
            if let Some((hash, key, n)) = items.get(step.wrapping_sub(2 * AHEAD)) {
                self.update(*hash, key, *n);
            }
        }
    }

    /// Adds `n` to the smallest entry, which `key` then may own; of `n` it surely had `sure`.
    fn put(bucket: &[AtomicU64], tag: u8, key: &[u64; WORDS], n: u64, sure: u64, random: &Random) {
        let counts = &bucket[COUNTS..SLACKS];
        let (mut lane, mut least) = (0, u64::MAX);
        for (at, count) in counts.iter().enumerate() {
            let count = count.load(Relaxed);
            if count < least {
                (lane, least) = (at, count);
            }
        }
        let grown = least.saturating_add(n);
        let is_taken_over = random.chance(n, grown.max(1));
        bucket::write(&bucket[VERSION], || {
            bucket[COUNTS + lane].store(grown, Relaxed);
            if !is_taken_over {
                return add(&bucket[SLACKS + lane], n);
            }
            bucket[SLACKS + lane].store(grown - sure.min(grown), Relaxed);
            for (cell, word) in bucket[KEYS + lane * WORDS..].iter().zip(key) {
                cell.store(*word, Relaxed);
            }
            bucket[TAGS].store(with_tag_at(bucket[TAGS].load(Relaxed), lane, tag), Relaxed);
        });
    }

    /// What is known of `key`, which hashes to `hash`.
    pub fn estimate(&self, hash: u64, key: &[u64; WORDS]) -> Estimate {
        let bucket = self.bucket(hash);
        bucket::read(&bucket[VERSION], || {
            let slack = |lane: usize| bucket[SLACKS + lane].load(Relaxed);
            let slacks = (0..WAYS).map(slack).fold(0, u64::saturating_add);
            let (value, lower) = match Self::find(bucket, tag_of(hash), key) {
                Some(lane) => {
                    let count = bucket[COUNTS + lane].load(Relaxed);
                    (count, count.saturating_sub(slack(lane)))
                }
                None => (0, 0),
            };
            Estimate { value, lower, upper: lower.saturating_add(slacks) }
        })
    }

    /// The keys held and what is known of each, in no order.
    pub fn entries(&self) -> Vec<([u64; WORDS], Estimate)> {
        let mut all = Vec::new();
        for bucket in self.cells.chunks_exact(Self::STRIDE) {
            // Counts and slacks of one moment.
            let held = Self::held(bucket);
            let slacks = held.clone().map(|entry| entry.slack).fold(0, u64::saturating_add);
            all.extend(held.map(|Held { key, count, slack, .. }| {
                let lower = count.saturating_sub(slack);
                (key, Estimate { value: count, lower, upper: lower.saturating_add(slacks) })
            }));
        }
        all
    }

    /// What each part of a key had, the most first: `part` takes it out of a key. Keys that are not held may have had any
    /// part, so that `upper` is that of the sketch as a whole.
    pub fn by<K: Eq + Hash + Ord>(&self, part: impl Fn(&[u64; WORDS]) -> K) -> Vec<(K, Estimate)> {
        let mut groups: HashMap<K, Estimate> = HashMap::new();
        let mut slacks: u64 = 0;
        for bucket in self.cells.chunks_exact(Self::STRIDE) {
            for Held { key, count, slack, .. } in Self::held(bucket) {
                let group = groups.entry(part(&key)).or_default();
                group.value = group.value.saturating_add(count);
                group.lower = group.lower.saturating_add(count.saturating_sub(slack));
                slacks = slacks.saturating_add(slack);
            }
        }
        let mut groups: Vec<(K, Estimate)> = groups.into_iter().collect();
        for (_, estimate) in &mut groups {
            estimate.upper = estimate.lower.saturating_add(slacks);
        }
        groups.sort_unstable_by(|(a, x), (b, y)| y.value.cmp(&x.value).then_with(|| a.cmp(b)));
        groups
    }

    /// Adds what `other` counted, as if its stream had followed this one's: estimates stay unbiased, and bounds bounds.
    ///
    /// # Errors
    /// They have different sizes or hashes; `self` is then unchanged.
    pub fn merge(&self, other: &CocoSketch<WORDS>) -> Result<(), SketchError> {
        bucket::same_shape((self.memory_bytes(), self.hash_id), (other.memory_bytes(), other.hash_id))?;
        // Numbers that have decided nothing in either of them.
        let random = Random::new(self.hash_id ^ mix(self.total()) ^ mix(!other.total()));
        for (ours, theirs) in self.cells.chunks_exact(Self::STRIDE).zip(other.cells.chunks_exact(Self::STRIDE)) {
            if theirs[TAGS].load(Relaxed) == 0 {
                continue;
            }
            for Held { key, tag, count, slack } in Self::held(theirs) {
                add(&self.total, count);
                match Self::find(ours, tag, &key) {
                    Some(lane) => bucket::write(&ours[VERSION], || {
                        add(&ours[COUNTS + lane], count);
                        add(&ours[SLACKS + lane], slack);
                    }),
                    None => Self::put(ours, tag, &key, count, count.saturating_sub(slack), &random),
                }
            }
        }
        Ok(())
    }

    /// Forgets everything. For the one writer; a reader meanwhile sees some buckets as they were.
    pub fn reset(&self) {
        for bucket in self.cells.chunks_exact(Self::STRIDE) {
            bucket::write(&bucket[VERSION], || bucket[TAGS..KEYS].iter().for_each(|cell| cell.store(0, Relaxed)));
        }
        self.total.store(0, Relaxed);
    }

    /// The sketch as bytes, for [`CocoSketch::from_bytes`].
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Writer::new(Kind::Coco, BODY);
        out.number(WORDS as u64);
        out.number(self.buckets as u64);
        out.word(self.hash_id);
        out.number(self.total());
        for bucket in self.cells.chunks_exact(Self::STRIDE) {
            let held: Vec<_> = Self::held(bucket).collect();
            out.number(held.len() as u64);
            for Held { key, tag, count, slack } in held {
                out.bytes(&[tag]);
                out.number(count);
                out.number(slack);
                key.iter().for_each(|word| out.word(*word));
            }
        }
        out.finish()
    }

    /// The sketch of [`CocoSketch::to_bytes`].
    ///
    /// # Errors
    /// The bytes are of another kind of sketch, of another version or of keys of another length, or damaged, or the sketch
    /// takes more than `memory_max` bytes.
    pub fn from_bytes(bytes: &[u8], memory_max: usize) -> Result<CocoSketch<WORDS>, SketchError> {
        let mut body = Reader::new(bytes, Kind::Coco, BODY)?;
        body.key_words(WORDS)?;
        let buckets = body.size()?;
        // Each has a byte at least.
        if buckets == 0 || buckets > body.left() {
            return Err(SketchError::damaged(format!("it cannot have {buckets} buckets")));
        }
        bucket::within(buckets, Self::STRIDE * size_of::<u64>(), memory_max)?;
        let (hash_id, total) = (body.word()?, body.number()?);
        let sketch = Self::with_buckets(buckets, hash_id, hash_id ^ mix(total));
        sketch.total.store(total, Relaxed);
        for bucket in sketch.cells.chunks_exact(Self::STRIDE) {
            let held = body.size()?;
            if held > WAYS {
                return Err(SketchError::damaged(format!("a bucket of {held} keys")));
            }
            for lane in 0..held {
                let tag = body.bytes(1)?[0];
                if tag == 0 {
                    return Err(SketchError::damaged("a key without a tag"));
                }
                bucket[TAGS].store(with_tag_at(bucket[TAGS].load(Relaxed), lane, tag), Relaxed);
                bucket[COUNTS + lane].store(body.number()?, Relaxed);
                bucket[SLACKS + lane].store(body.number()?, Relaxed);
                for cell in &bucket[KEYS + lane * WORDS..][..WORDS] {
                    cell.store(body.word()?, Relaxed);
                }
            }
        }
        body.finish()?;
        Ok(sketch)
    }

    #[inline]
    fn bucket(&self, hash: u64) -> &[AtomicU64] {
        &self.cells[bucket_of(hash, self.buckets) * Self::STRIDE..][..Self::STRIDE]
    }

    #[inline]
    fn find(bucket: &[AtomicU64], tag: u8, key: &[u64; WORDS]) -> Option<usize> {
        with_tag(bucket[TAGS].load(Relaxed), tag).find(|lane| {
            let held = &bucket[KEYS + lane * WORDS..][..WORDS];
            held.iter().zip(key).all(|(cell, word)| cell.load(Relaxed) == *word)
        })
    }

    /// The entries of a bucket as they were at one moment.
    fn held(bucket: &[AtomicU64]) -> impl Iterator<Item = Held<WORDS>> + Clone {
        bucket::read(&bucket[VERSION], || {
            let tags = bucket[TAGS].load(Relaxed);
            let held = |lane: usize| Held {
                key: std::array::from_fn(|word| bucket[KEYS + lane * WORDS + word].load(Relaxed)),
                tag: tag_at(tags, lane),
                count: bucket[COUNTS + lane].load(Relaxed),
                slack: bucket[SLACKS + lane].load(Relaxed),
            };
            std::array::from_fn::<_, WAYS, _>(|lane| (tag_at(tags, lane) != 0).then(|| held(lane)))
        })
        .into_iter()
        .flatten()
    }
}

/// An entry that is not empty.
#[derive(Clone)]
struct Held<const WORDS: usize> {
    key: [u64; WORDS],
    tag: u8,
    count: u64,
    slack: u64,
}
