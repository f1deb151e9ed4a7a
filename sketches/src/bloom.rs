use crate::SketchError;
use crate::bucket::{self, MEMORY_MAX};
use crate::frame::{Kind, Reader, Writer};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Whether something was seen before: a Bloom filter of blocks of a cache line (Putze, Sanders and Singler, *Cache-, hash-
/// and space-efficient Bloom filters*, 2007), with one bit in each of a block's eight words.
///
/// What was inserted is always found. Something else is taken for it with probability [`Bloom::false_positives`].
///
/// One writer, any number of readers.
#[derive(Debug)]
pub struct Bloom {
    /// Eight to a block.
    words: Box<[AtomicU64]>,
    /// How often something new was inserted.
    inserted: AtomicU64,
}

/// Words of a block, each with one bit of an item.
const BLOCK: usize = 8;
/// Items of a block with which practically all its bits are set.
const LOAD_MAX: usize = 4_096;
const BODY: u8 = 1;

impl Bloom {
    /// A filter in at most `memory_bytes`. Allocates at once, and nothing later.
    ///
    /// # Errors
    /// The memory is less than a block of 64 bytes, or more than 8 GiB.
    pub fn new(memory_bytes: usize) -> Result<Bloom, SketchError> {
        if !(BLOCK * 8..=MEMORY_MAX).contains(&memory_bytes) {
            return Err(SketchError::out_of_range("memory_bytes", memory_bytes, "64 to 8 GiB"));
        }
        let words = memory_bytes / (BLOCK * 8) * BLOCK;
        Ok(Bloom { words: memory::zeroed(words), inserted: AtomicU64::new(0) })
    }

    /// The smallest filter that takes something else for one of `items` with at most this probability.
    ///
    /// # Errors
    /// `items` is 0, the probability is not inside (0, 1), or the filter would need more than 8 GiB.
    pub fn with_bound(items: usize, false_positives: f64) -> Result<Bloom, SketchError> {
        if !(false_positives > 0.0 && false_positives < 1.0) {
            return Err(SketchError::out_of_range(
                "false_positives",
                false_positives,
                "between 0 and 1, both excluded",
            ));
        }
        if items == 0 {
            return Err(SketchError::out_of_range("items", items, "at least 1"));
        }
        let keeps = |blocks: usize| share_taken(items as f64 / blocks as f64) <= false_positives;
        // With as many to a block nothing is told apart.
        let (mut too_few, mut enough) = (0, (items / LOAD_MAX).max(1));
        while !keeps(enough) {
            if enough * BLOCK * 8 > MEMORY_MAX {
                return Err(SketchError::out_of_range("items", items, "what fits into 8 GiB at this probability"));
            }
            (too_few, enough) = (enough, enough * 2);
        }
        while enough - too_few > 1 {
            let middle = too_few + (enough - too_few) / 2;
            if keeps(middle) { enough = middle } else { too_few = middle }
        }
        Bloom::new(enough * BLOCK * 8)
    }

    /// Bytes of blocks.
    pub fn memory_bytes(&self) -> usize {
        size_of_val(&*self.words)
    }

    /// How many items were new when they were inserted; fewer than there were by the share taken for others.
    pub fn len(&self) -> u64 {
        self.inserted.load(Relaxed)
    }

    /// Whether nothing was inserted.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// With what probability something is taken for one of the items there are now, by the bits that are set. Cost: one pass
    /// over the filter.
    pub fn false_positives(&self) -> f64 {
        let set = |word: &AtomicU64| f64::from(word.load(Relaxed).count_ones()) / 64.0;
        let blocks = self.words.chunks_exact(BLOCK).map(|block| block.iter().map(set).product::<f64>());
        blocks.sum::<f64>() * BLOCK as f64 / self.words.len() as f64
    }

    /// Inserts the item that hashes to `hash`; true if it is new. For the one writer.
    #[inline]
    pub fn insert(&self, hash: u64) -> bool {
        let mut is_new = false;
        for (word, bit) in self.bits(hash) {
            let before = word.load(Relaxed);
            is_new |= before & bit == 0;
            word.store(before | bit, Relaxed);
        }
        if is_new {
            bucket::add(&self.inserted, 1);
        }
        is_new
    }

    /// Whether the item that hashes to `hash` may have been inserted. If not, it was not.
    pub fn contains(&self, hash: u64) -> bool {
        self.bits(hash).all(|(word, bit)| word.load(Relaxed) & bit != 0)
    }

    /// The word and the bit of an item in each word of its block.
    fn bits(&self, hash: u64) -> impl Iterator<Item = (&AtomicU64, u64)> {
        let block = bucket::bucket_of(hash, self.words.len() / BLOCK);
        // What chose the block says nothing about the bits.
        let bits = crate::mix(hash);
        let words = &self.words[block * BLOCK..][..BLOCK];
        words.iter().enumerate().map(move |(at, word)| (word, 1 << (bits >> (6 * at) & 63)))
    }

    /// Adds what `other` has seen.
    ///
    /// # Errors
    /// They have different sizes; `self` is then unchanged.
    pub fn merge(&self, other: &Bloom) -> Result<(), SketchError> {
        if self.words.len() != other.words.len() {
            return Err(SketchError::mismatch("memory_bytes", self.memory_bytes(), other.memory_bytes()));
        }
        for (ours, theirs) in self.words.iter().zip(&other.words) {
            ours.store(ours.load(Relaxed) | theirs.load(Relaxed), Relaxed);
        }
        // Of what both had nothing is known; what they had together is at most this.
        self.inserted.store(self.len().saturating_add(other.len()), Relaxed);
        Ok(())
    }

    /// Forgets everything. For the one writer.
    pub fn reset(&self) {
        self.words.iter().for_each(|word| word.store(0, Relaxed));
        self.inserted.store(0, Relaxed);
    }

    /// The filter as bytes, for [`Bloom::from_bytes`].
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Writer::new(Kind::Bloom, BODY);
        out.number(self.words.len() as u64);
        out.number(self.len());
        self.words.iter().for_each(|word| out.word(word.load(Relaxed)));
        out.finish()
    }

    /// The filter of [`Bloom::to_bytes`].
    ///
    /// # Errors
    /// The bytes are of another kind of sketch or of another version, or damaged.
    pub fn from_bytes(bytes: &[u8]) -> Result<Bloom, SketchError> {
        let mut body = Reader::new(bytes, Kind::Bloom, BODY)?;
        let (words, inserted) = (body.size()?, body.number()?);
        if words == 0 || !words.is_multiple_of(BLOCK) || words > body.left() / 8 {
            return Err(SketchError::damaged(format!("it cannot have {words} words")));
        }
        let filter = Bloom::new(words * 8)?;
        for word in &filter.words {
            word.store(body.word()?, Relaxed);
        }
        filter.inserted.store(inserted, Relaxed);
        body.finish()?;
        Ok(filter)
    }
}

/// The share of other items that is taken for one there is, with `load` items to a block on average: blocks have them as
/// Poisson says, and with `i` items a bit of a word is set with probability `1 - (63/64)^i`.
fn share_taken(load: f64) -> f64 {
    if load > LOAD_MAX as f64 {
        return 1.0;
    }
    let (mut share, mut weight) = (0.0, -load);
    // Nothing is left of the distribution beyond this.
    let most = (load + 12.0 * load.sqrt() + 32.0) as u32;
    for items in 0..=most {
        let all_set = (1.0 - (63.0_f64 / 64.0).powi(items as i32)).powi(BLOCK as i32);
        share += weight.exp() * all_set;
        weight += (load / f64::from(items + 1)).ln();
    }
    share.clamp(0.0, 1.0)
}
