use crate::SketchError;
use crate::bucket::add;
use crate::frame::{Kind, Reader, Writer};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// How values are spread: DDSketch (Masson, Rim and Lee, *DDSketch: a fast and fully-mergeable quantile sketch with
/// relative-error guarantees*, VLDB 2019), for whole numbers from 0 to 2^64 - 1.
///
/// Counters of values from `gamma^(i-1)` (excluded) to `gamma^i`, with `gamma = (1 + alpha) / (1 - alpha)`. There are enough for all
/// values, so that none are ever put together: every quantile is off by `alpha` times itself at most, always.
///
/// One writer, any number of readers.
#[derive(Debug)]
pub struct Quantiles {
    counters: Box<[AtomicU64]>,
    zeros: AtomicU64,
    sum: AtomicU64,
    /// `u64::MAX` while there are no values.
    least: AtomicU64,
    most: AtomicU64,
    alpha: f64,
    /// `1 / ln(gamma)`.
    scale: f64,
}

const BODY: u8 = 1;

impl Quantiles {
    /// A sketch with quantiles off by `alpha` of their value at most. Allocates some `178 / alpha` bytes, and nothing later.
    ///
    /// # Errors
    /// `alpha` is not in 0.0001..=0.5.
    pub fn new(alpha: f64) -> Result<Quantiles, SketchError> {
        if !(0.0001..=0.5).contains(&alpha) {
            return Err(SketchError::out_of_range("alpha", alpha, "0.0001 to 0.5"));
        }
        let (counters, scale) = shape(alpha);
        Ok(Quantiles {
            counters: memory::zeroed(counters),
            zeros: AtomicU64::new(0),
            sum: AtomicU64::new(0),
            least: AtomicU64::new(u64::MAX),
            most: AtomicU64::new(0),
            alpha,
            scale,
        })
    }

    /// Bytes that a sketch with this error takes.
    pub fn memory_for(alpha: f64) -> usize {
        shape(alpha).0.saturating_mul(size_of::<u64>())
    }

    /// Largest error of a quantile, relative to it.
    pub fn alpha(&self) -> f64 {
        self.alpha
    }

    /// Bytes of counters.
    pub fn memory_bytes(&self) -> usize {
        size_of_val(&*self.counters)
    }

    /// Adds `n` times `value`. For the one writer.
    pub fn insert(&self, value: u64, n: u64) {
        if n == 0 {
            return;
        }
        match value {
            0 => add(&self.zeros, n),
            value => add(&self.counters[self.index(value)], n),
        }
        add(&self.sum, value.saturating_mul(n));
        if value < self.least.load(Relaxed) {
            self.least.store(value, Relaxed);
        }
        if value > self.most.load(Relaxed) {
            self.most.store(value, Relaxed);
        }
    }

    fn index(&self, value: u64) -> usize {
        let index = ((value as f64).ln() * self.scale).ceil() as usize;
        index.min(self.counters.len() - 1)
    }

    /// How many values there were.
    pub fn count(&self) -> u64 {
        let counters = self.counters.iter().map(|counter| counter.load(Relaxed));
        counters.fold(self.zeros.load(Relaxed), u64::saturating_add)
    }

    /// The sum of all values.
    pub fn sum(&self) -> u64 {
        self.sum.load(Relaxed)
    }

    /// The smallest value and the largest, exactly; `None` if there was none.
    pub fn extremes(&self) -> Option<(u64, u64)> {
        let (least, most) = (self.least.load(Relaxed), self.most.load(Relaxed));
        (least <= most).then_some((least, most))
    }

    /// The value that a share `q` of all are not above, off by `alpha` of itself at most: of `n` values in order the one
    /// number `floor(q * (n - 1))`, from 0. `None` if there is none. `q` below 0 is 0, above 1 it is 1.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        // One look, so that all of it belongs together as well as it can.
        let counters: Vec<u64> = self.counters.iter().map(|counter| counter.load(Relaxed)).collect();
        let zeros = self.zeros.load(Relaxed);
        let count = counters.iter().fold(zeros, |all, n| all.saturating_add(*n));
        let (least, most) = self.extremes()?;
        let rank = (q.clamp(0.0, 1.0) * count.checked_sub(1)? as f64).floor() as u64;
        // These two are known.
        if rank == 0 || rank == count - 1 {
            return Some(if rank == 0 { least } else { most } as f64);
        }
        let mut before = zeros;
        if rank < before {
            return Some(0.0);
        }
        for (index, n) in counters.into_iter().enumerate() {
            before = before.saturating_add(n);
            if rank < before {
                let middle = (index as f64 / self.scale).exp() * (1.0 - self.alpha);
                return Some(middle.clamp(least as f64, most as f64));
            }
        }
        Some(most as f64)
    }

    /// Adds the values of `other`: exactly the sketch of both streams together.
    ///
    /// # Errors
    /// Their errors differ; `self` is then unchanged.
    pub fn merge(&self, other: &Quantiles) -> Result<(), SketchError> {
        if self.alpha != other.alpha {
            return Err(SketchError::mismatch("alpha", self.alpha, other.alpha));
        }
        for (ours, theirs) in self.counters.iter().zip(&other.counters) {
            add(ours, theirs.load(Relaxed));
        }
        add(&self.zeros, other.zeros.load(Relaxed));
        add(&self.sum, other.sum());
        self.least.store(self.least.load(Relaxed).min(other.least.load(Relaxed)), Relaxed);
        self.most.store(self.most.load(Relaxed).max(other.most.load(Relaxed)), Relaxed);
        Ok(())
    }

    /// Forgets everything. For the one writer.
    pub fn reset(&self) {
        self.counters.iter().chain([&self.zeros, &self.sum, &self.most]).for_each(|cell| cell.store(0, Relaxed));
        self.least.store(u64::MAX, Relaxed);
    }

    /// The sketch as bytes, for [`Quantiles::from_bytes`].
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Writer::new(Kind::Quantiles, BODY);
        out.word(self.alpha.to_bits());
        for cell in [&self.zeros, &self.sum, &self.least, &self.most].into_iter().chain(&self.counters) {
            out.number(cell.load(Relaxed));
        }
        out.finish()
    }

    /// The sketch of [`Quantiles::to_bytes`].
    ///
    /// # Errors
    /// The bytes are of another kind of sketch or of another version, or damaged.
    pub fn from_bytes(bytes: &[u8]) -> Result<Quantiles, SketchError> {
        let mut body = Reader::new(bytes, Kind::Quantiles, BODY)?;
        let sketch = Quantiles::new(f64::from_bits(body.word()?))?;
        for cell in [&sketch.zeros, &sketch.sum, &sketch.least, &sketch.most].into_iter().chain(&sketch.counters) {
            cell.store(body.number()?, Relaxed);
        }
        body.finish()?;
        Ok(sketch)
    }
}

/// How many counters there are, and `1 / ln(gamma)`.
fn shape(alpha: f64) -> (usize, f64) {
    let ln_gamma = ((1.0 + alpha) / (1.0 - alpha)).ln();
    ((f64::from(u64::BITS) * std::f64::consts::LN_2 / ln_gamma).ceil() as usize + 1, 1.0 / ln_gamma)
}
