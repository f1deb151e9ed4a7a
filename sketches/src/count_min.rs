use crate::bucket::add;
use crate::frame::{Kind, Reader, Writer};
use crate::{SketchError, mix};
use std::f64::consts::E;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// How often each item was seen, in fixed memory: Cormode and Muthukrishnan, *An improved data stream summary: the
/// count-min sketch and its applications*, Journal of Algorithms 55 (2005).
///
/// `depth x width` cells of 8 bytes, row-major. An item owns one cell in each row; its estimate is the smallest of them.
/// With total `N = total()` the estimate is never below the true count, and above it by more than `epsilon * N` with
/// probability `delta` at most (see [`ErrorBound`]). Cells and total saturate instead of wrapping.
///
/// One writer, any number of readers: a reader during an update sees some rows before and some after it, and so at worst
/// the count before. Memory order is relaxed, since nothing else is published through a cell.
#[derive(Debug)]
pub struct CountMin {
    /// `depth * width` counters, row-major. Written by one thread at a time.
    cells: Box<[AtomicU64]>,
    /// Sum of all counts put in.
    total: AtomicU64,
    /// `64 - log2(width)`: the top bits of a product choose the cell. In 32..=63, since `width` is in 2..=2^32.
    shift: u32,
    /// One odd multiplier a row; the same in every process, so that sketches of different workers can be merged.
    multipliers: Box<[u64]>,
    rule: UpdateRule,
}

/// What an update does to the cells of an item.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UpdateRule {
    /// Adds to every cell. Cheapest.
    #[default]
    Plain,
    /// Raises cells only as far as the new estimate needs (Estan and Varghese, *New directions in traffic measurement
    /// and accounting*, SIGCOMM 2002): the same bound, and a smaller error on skewed streams, at several times the cost.
    Conservative,
}

/// What a Count-Min sketch promises: an estimate exceeds the truth by more than `epsilon` times the total of all counts
/// with probability `delta` at most.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ErrorBound {
    /// Error relative to the total, in (0, 1).
    pub epsilon: f64,
    /// Probability of a larger error for one item, in (0, 1).
    pub delta: f64,
}

/// Of how its bytes are laid out.
const BODY: u8 = 1;

const WIDTH_MAX: usize = 1 << 32;
const DEPTH_MAX: usize = 32;
/// Bounds the allocation that a misread parameter can ask for: 2^30 cells are 8 GiB.
const CELLS_MAX: usize = 1 << 30;

impl CountMin {
    /// A sketch of `depth` rows of `width` cells. Allocates `8 * width * depth` bytes, and nothing later.
    ///
    /// # Errors
    /// `width` is no power of two in 2..=2^32, `depth` is not in 1..=32, or their product exceeds 2^30.
    pub fn new(width: usize, depth: usize, rule: UpdateRule) -> Result<CountMin, SketchError> {
        if !width.is_power_of_two() || !(2..=WIDTH_MAX).contains(&width) {
            return Err(SketchError::out_of_range("width", width, "a power of two from 2 to 2^32"));
        }
        if !(1..=DEPTH_MAX).contains(&depth) {
            return Err(SketchError::out_of_range("depth", depth, "1 to 32"));
        }
        let cells = width
            .checked_mul(depth)
            .filter(|cells| *cells <= CELLS_MAX)
            .ok_or_else(|| SketchError::out_of_range("width x depth", format!("{width} x {depth}"), "up to 2^30"))?;
        Ok(CountMin {
            cells: memory::zeroed(cells),
            total: AtomicU64::new(0),
            shift: 64 - width.trailing_zeros(),
            multipliers: (1..=depth as u64).map(|row| mix(row.wrapping_mul(0x9e37_79b9_7f4a_7c15)) | 1).collect(),
            rule,
        })
    }

    /// The smallest sketch that keeps `bound`.
    ///
    /// # Errors
    /// As [`ErrorBound::size`] and [`CountMin::new`].
    pub fn with_bound(bound: ErrorBound, rule: UpdateRule) -> Result<CountMin, SketchError> {
        let (width, depth) = bound.size()?;
        CountMin::new(width, depth, rule)
    }

    /// Cells in a row.
    pub fn width(&self) -> usize {
        1 << (64 - self.shift)
    }

    /// Rows.
    pub fn depth(&self) -> usize {
        self.multipliers.len()
    }

    /// What an update does.
    pub fn rule(&self) -> UpdateRule {
        self.rule
    }

    /// What this size promises.
    pub fn bound(&self) -> ErrorBound {
        ErrorBound { epsilon: E / self.width() as f64, delta: (-(self.depth() as f64)).exp() }
    }

    /// Bytes of cells.
    pub fn memory_bytes(&self) -> usize {
        size_of_val(&*self.cells)
    }

    /// Sum of all counts put in: the `N` of the bound.
    pub fn total(&self) -> u64 {
        self.total.load(Relaxed)
    }

    /// Adds `n` to the item that hashes to `hash`. For the one writer.
    #[inline]
    pub fn update(&self, hash: u64, n: u64) {
        self.update_all([(hash, n)]);
    }

    /// Adds many, each a hash and what is added to its item: the same as [`CountMin::update`] of each in order, in less time.
    /// For the one writer; what it adds is in the total at the end.
    #[inline]
    pub fn update_all(&self, items: impl IntoIterator<Item = (u64, u64)>) {
        match self.depth() {
            1 => self.update_rows::<1>(items),
            2 => self.update_rows::<2>(items),
            3 => self.update_rows::<3>(items),
            4 => self.update_rows::<4>(items),
            5 => self.update_rows::<5>(items),
            _ => self.update_any(items),
        }
    }

    /// [`CountMin::update_all`] of `DEPTH` rows. Against [`CountMin::update_any`]: rows and multipliers are loaded once, the loop
    /// over rows is unrolled, and cells are looked up once where the rule needs them twice.
    #[inline]
    fn update_rows<const DEPTH: usize>(&self, items: impl IntoIterator<Item = (u64, u64)>) {
        let mut rows = self.cells.chunks_exact(self.width()).zip(&self.multipliers);
        let rows: [(&[AtomicU64], u64); DEPTH] =
            std::array::from_fn(|_| rows.next().map(|(row, multiplier)| (row, *multiplier)).unwrap_or_default());
        let (shift, rule) = (self.shift, self.rule);
        // In a register: in memory every update would wait for what the one before it stores.
        let mut sum: u64 = 0;
        for (hash, n) in items {
            let cells = rows.map(|(row, multiplier)| &row[(hash.wrapping_mul(multiplier) >> shift) as usize]);
            put(rule, cells.into_iter(), n);
            sum = sum.saturating_add(n);
        }
        add(&self.total, sum);
    }

    /// [`CountMin::update_all`] of any number of rows.
    fn update_any(&self, items: impl IntoIterator<Item = (u64, u64)>) {
        for (hash, n) in items {
            put(self.rule, self.cells_of(hash), n);
            add(&self.total, n);
        }
    }

    /// At least the count of the item that hashes to `hash`.
    pub fn estimate(&self, hash: u64) -> u64 {
        least(self.cells_of(hash))
    }

    /// Adds what `other` counted, as if its stream had followed this one's. A sum of conservative sketches still never
    /// falls below the truth, but is looser than one conservative sketch over both streams.
    ///
    /// # Errors
    /// Width, depth or rule differ; `self` is then unchanged.
    pub fn merge(&self, other: &CountMin) -> Result<(), SketchError> {
        if self.width() != other.width() {
            return Err(SketchError::mismatch("width", self.width(), other.width()));
        }
        if self.depth() != other.depth() {
            return Err(SketchError::mismatch("depth", self.depth(), other.depth()));
        }
        if self.rule != other.rule {
            return Err(SketchError::mismatch("rule", format!("{:?}", self.rule), format!("{:?}", other.rule)));
        }
        for (ours, theirs) in self.cells.iter().zip(&other.cells) {
            add(ours, theirs.load(Relaxed));
        }
        add(&self.total, other.total());
        Ok(())
    }

    /// Forgets everything. For the one writer; a reader meanwhile sees a mixture that may be too low.
    pub fn reset(&self) {
        for cell in &self.cells {
            cell.store(0, Relaxed);
        }
        self.total.store(0, Relaxed);
    }

    /// The sketch as bytes, for [`CountMin::from_bytes`].
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Writer::new(Kind::CountMin, BODY);
        out.number(self.width() as u64);
        out.number(self.depth() as u64);
        out.number((self.rule == UpdateRule::Conservative).into());
        out.number(self.total());
        self.cells.iter().for_each(|cell| out.number(cell.load(Relaxed)));
        out.finish()
    }

    /// The sketch of [`CountMin::to_bytes`].
    ///
    /// # Errors
    /// The bytes are of another kind of sketch or of another version, or damaged.
    pub fn from_bytes(bytes: &[u8]) -> Result<CountMin, SketchError> {
        let mut body = Reader::new(bytes, Kind::CountMin, BODY)?;
        let (width, depth) = (body.size()?, body.size()?);
        let rule = match body.number()? {
            0 => UpdateRule::Plain,
            1 => UpdateRule::Conservative,
            other => return Err(SketchError::damaged(format!("update rule {other}"))),
        };
        let total = body.number()?;
        // Each cell has a byte at least.
        if width.checked_mul(depth).is_none_or(|cells| cells > body.left()) {
            return Err(SketchError::damaged(format!("{width} x {depth} cells do not fit into it")));
        }
        let sketch = CountMin::new(width, depth, rule)?;
        for cell in &sketch.cells {
            cell.store(body.number()?, Relaxed);
        }
        sketch.total.store(total, Relaxed);
        body.finish()?;
        Ok(sketch)
    }

    /// The item's cell in each row. Multiply-shift (Dietzfelbinger et al., *A reliable randomized algorithm for the
    /// closest-pair problem*, 1997): one odd multiplier a row, top bits of the product.
    #[inline]
    fn cells_of(&self, hash: u64) -> impl Iterator<Item = &AtomicU64> + Clone {
        // Taken out of the sketch once: a store to a cell might change it, for all the compiler knows.
        let (shift, cells) = (self.shift, &*self.cells);
        self.multipliers.iter().enumerate().map(move |(row, multiplier)| {
            let index = (hash.wrapping_mul(*multiplier) >> shift) as usize;
            &cells[(row << (64 - shift)) + index]
        })
    }
}

/// Adds `n` to an item that owns `cells`.
#[inline]
fn put<'a>(rule: UpdateRule, cells: impl Iterator<Item = &'a AtomicU64> + Clone, n: u64) {
    match rule {
        UpdateRule::Plain => cells.for_each(|cell| add(cell, n)),
        UpdateRule::Conservative => {
            let target = least(cells.clone()).saturating_add(n);
            cells.filter(|cell| cell.load(Relaxed) < target).for_each(|cell| cell.store(target, Relaxed));
        }
    }
}

#[inline]
fn least<'a>(cells: impl Iterator<Item = &'a AtomicU64>) -> u64 {
    cells.map(|cell| cell.load(Relaxed)).min().unwrap_or(0)
}

impl ErrorBound {
    /// The `(width, depth)` that keeps this bound: `e / epsilon` rounded up to a power of two, `ln(1 / delta)` rounded up.
    ///
    /// # Errors
    /// `epsilon` or `delta` is not inside (0, 1), or asks for more than 2^32 cells a row or 32 rows.
    pub fn size(&self) -> Result<(usize, usize), SketchError> {
        let inside = |p: f64| p > 0.0 && p < 1.0;
        if !inside(self.epsilon) || E / self.epsilon > WIDTH_MAX as f64 {
            return Err(SketchError::out_of_range("epsilon", self.epsilon, "between 1e-9 and 1, both excluded"));
        }
        // A bound taken from a sketch must give its size back, so forgive the last digits of exp and ln.
        let depth = ((1.0 / self.delta).ln() - 1e-9).ceil().max(1.0);
        if !inside(self.delta) || depth > DEPTH_MAX as f64 {
            return Err(SketchError::out_of_range("delta", self.delta, "between 1.3e-14 and 1, both excluded"));
        }
        let width = ((E / self.epsilon) * (1.0 - 1e-12)).ceil() as usize;
        Ok((width.max(2).next_power_of_two(), depth as usize))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_bounds_are_each_others_inverse() {
        for log_width in 2..20 {
            for depth in 1..=DEPTH_MAX {
                let sketch = ErrorBound { epsilon: E / f64::from(1 << log_width), delta: (-(depth as f64)).exp() };
                assert_eq!(sketch.size(), Ok((1 << log_width, depth)));
            }
        }
        let asked = ErrorBound { epsilon: 0.001, delta: 0.01 };
        let got = CountMin::with_bound(asked, UpdateRule::Plain).unwrap().bound();
        assert!(got.epsilon <= asked.epsilon && got.delta <= asked.delta, "{got:?}");
    }

    #[test]
    fn errors_name_the_field_the_value_and_what_is_allowed() {
        let text = |r: Result<CountMin, SketchError>| r.unwrap_err().to_string();
        assert_eq!(
            text(CountMin::new(1000, 4, UpdateRule::Plain)),
            "width is 1000, allowed is a power of two from 2 to 2^32"
        );
        assert_eq!(text(CountMin::new(1024, 0, UpdateRule::Plain)), "depth is 0, allowed is 1 to 32");
        assert!(text(CountMin::new(1 << 30, 2, UpdateRule::Plain)).starts_with("width x depth is 1073741824 x 2"));
        for epsilon in [0.0, 1.0, -1.0, f64::NAN, 1e-12] {
            assert!(ErrorBound { epsilon, delta: 0.1 }.size().is_err(), "{epsilon}");
        }
        for delta in [0.0, 1.0, -1.0, f64::NAN, 1e-30] {
            assert!(ErrorBound { epsilon: 0.1, delta }.size().is_err(), "{delta}");
        }
    }

    #[test]
    fn cells_and_total_saturate() {
        let sketch = CountMin::new(2, 2, UpdateRule::Plain).unwrap();
        sketch.update(1, u64::MAX - 1);
        sketch.update(1, 5);
        assert_eq!((sketch.estimate(1), sketch.total()), (u64::MAX, u64::MAX));
    }

    #[test]
    fn a_merge_of_different_shapes_is_refused() {
        let a = CountMin::new(4, 2, UpdateRule::Plain).unwrap();
        for b in [
            CountMin::new(8, 2, UpdateRule::Plain).unwrap(),
            CountMin::new(4, 3, UpdateRule::Plain).unwrap(),
            CountMin::new(4, 2, UpdateRule::Conservative).unwrap(),
        ] {
            b.update(1, 1);
            assert!(a.merge(&b).is_err());
            assert_eq!(a.total(), 0);
        }
    }
}
