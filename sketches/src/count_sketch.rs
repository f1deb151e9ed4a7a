use crate::frame::{Kind, Reader, Writer};
use crate::{SketchError, mix};
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

/// How often each item was seen, right on average: Charikar, Chen and Farach-Colton, *Finding frequent items in data
/// streams* (ICALP 2002).
///
/// `depth x width` cells of 8 bytes, row-major. An item owns one cell in each row and a sign there, which is added; its
/// estimate is the median of its cells, signs taken back. Where a few items have most of the stream this errs less than
/// [`CountMin`](crate::CountMin): off by more than `epsilon` times the root of the sum of all squared counts
/// ([`CountSketch::second_moment`]), not of their sum, with probability `delta` at most ([`CountSketch::bound`]). It is linear: sketches can be
/// subtracted, and what is left tells what changed.
///
/// One writer, any number of readers, relaxed order: a reader during an update sees some rows before and some after it.
#[derive(Debug)]
pub struct CountSketch {
    cells: Box<[AtomicI64]>,
    /// `63 - log2(width)`: the bits of a product below the one that is the sign choose the cell.
    shift: u32,
    /// One odd multiplier a row; the same in every process.
    multipliers: Box<[u64]>,
}

const WIDTH_MAX: usize = 1 << 30;
const DEPTH_MAX: usize = 31;
const CELLS_MAX: usize = 1 << 30;
const BODY: u8 = 1;

impl CountSketch {
    /// A sketch of `depth` rows of `width` cells. Allocates `8 * width * depth` bytes, and nothing later.
    ///
    /// # Errors
    /// `width` is no power of two in 2..=2^30, `depth` is not odd or not in 1..=31, or their product exceeds 2^30.
    pub fn new(width: usize, depth: usize) -> Result<CountSketch, SketchError> {
        if !width.is_power_of_two() || !(2..=WIDTH_MAX).contains(&width) {
            return Err(SketchError::out_of_range("width", width, "a power of two from 2 to 2^30"));
        }
        if depth.is_multiple_of(2) || depth > DEPTH_MAX {
            return Err(SketchError::out_of_range("depth", depth, "an odd number from 1 to 31"));
        }
        if width * depth > CELLS_MAX {
            return Err(SketchError::out_of_range("width x depth", format!("{width} x {depth}"), "up to 2^30"));
        }
        // Not those of Count-Min, so that both may be given one hash.
        let multiplier = |row: u64| mix(row.wrapping_mul(0xd1b5_4a32_d192_ed03)) | 1;
        Ok(CountSketch {
            cells: (0..width * depth).map(|_| AtomicI64::new(0)).collect(),
            shift: 63 - width.trailing_zeros(),
            multipliers: (1..=depth as u64).map(multiplier).collect(),
        })
    }

    /// Cells in a row.
    pub fn width(&self) -> usize {
        1 << (63 - self.shift)
    }

    /// Rows.
    pub fn depth(&self) -> usize {
        self.multipliers.len()
    }

    /// Bytes of cells.
    pub fn memory_bytes(&self) -> usize {
        size_of_val(&*self.cells)
    }

    /// What this size promises, as `(epsilon, delta)`: a row is off by more than `sqrt(4 / width)` times the root of the
    /// second moment with probability a quarter at most (Chebyshev), and the median only if half of the rows are.
    pub fn bound(&self) -> (f64, f64) {
        let depth = self.depth();
        let mut delta = 0.0;
        let mut chance = 0.75_f64.powi(depth as i32);
        for off in 0..=depth {
            if off > depth / 2 {
                delta += chance;
            }
            chance *= (depth - off) as f64 / (off + 1) as f64 / 3.0;
        }
        ((4.0 / self.width() as f64).sqrt(), delta)
    }

    /// Adds `n`, which may be negative, to the item that hashes to `hash`. For the one writer.
    #[inline]
    pub fn update(&self, hash: u64, n: i64) {
        for (cell, is_negative) in self.cells_of(hash) {
            let n = if is_negative { n.saturating_neg() } else { n };
            cell.store(cell.load(Relaxed).saturating_add(n), Relaxed);
        }
    }

    /// About the count of the item that hashes to `hash`.
    pub fn estimate(&self, hash: u64) -> i64 {
        let mut rows = [0; DEPTH_MAX];
        for (row, (cell, is_negative)) in rows.iter_mut().zip(self.cells_of(hash)) {
            let n = cell.load(Relaxed);
            *row = if is_negative { n.saturating_neg() } else { n };
        }
        *rows[..self.depth()].select_nth_unstable(self.depth() / 2).1
    }

    /// About the sum of the squared counts of all items (Alon, Matias and Szegedy 1996): the median of the rows' sums.
    pub fn second_moment(&self) -> f64 {
        let square = |cell: &AtomicI64| (cell.load(Relaxed) as f64).powi(2);
        let mut rows: Vec<f64> =
            self.cells.chunks_exact(self.width()).map(|row| row.iter().map(square).sum()).collect();
        let middle = rows.len() / 2;
        *rows.select_nth_unstable_by(middle, f64::total_cmp).1
    }

    /// Adds what `other` counted.
    ///
    /// # Errors
    /// Width or depth differ; `self` is then unchanged.
    pub fn merge(&self, other: &CountSketch) -> Result<(), SketchError> {
        self.combine(other, i64::saturating_add)
    }

    /// Takes away what `other` counted: what is left is how much each item changed.
    ///
    /// # Errors
    /// Width or depth differ; `self` is then unchanged.
    pub fn subtract(&self, other: &CountSketch) -> Result<(), SketchError> {
        self.combine(other, i64::saturating_sub)
    }

    fn combine(&self, other: &CountSketch, op: fn(i64, i64) -> i64) -> Result<(), SketchError> {
        if self.width() != other.width() {
            return Err(SketchError::mismatch("width", self.width(), other.width()));
        }
        if self.depth() != other.depth() {
            return Err(SketchError::mismatch("depth", self.depth(), other.depth()));
        }
        for (ours, theirs) in self.cells.iter().zip(&other.cells) {
            ours.store(op(ours.load(Relaxed), theirs.load(Relaxed)), Relaxed);
        }
        Ok(())
    }

    /// Forgets everything. For the one writer.
    pub fn reset(&self) {
        self.cells.iter().for_each(|cell| cell.store(0, Relaxed));
    }

    /// The sketch as bytes, for [`CountSketch::from_bytes`].
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Writer::new(Kind::CountSketch, BODY);
        out.number(self.width() as u64);
        out.number(self.depth() as u64);
        for cell in &self.cells {
            let n = cell.load(Relaxed);
            // Zigzag, so that small negative numbers are small.
            out.number((n << 1 ^ n >> 63) as u64);
        }
        out.finish()
    }

    /// The sketch of [`CountSketch::to_bytes`].
    ///
    /// # Errors
    /// The bytes are of another kind of sketch or of another version, or damaged.
    pub fn from_bytes(bytes: &[u8]) -> Result<CountSketch, SketchError> {
        let mut body = Reader::new(bytes, Kind::CountSketch, BODY)?;
        let (width, depth) = (body.size()?, body.size()?);
        // Each cell has a byte at least.
        if width.checked_mul(depth).is_none_or(|cells| cells > body.left()) {
            return Err(SketchError::damaged(format!("{width} x {depth} cells do not fit into it")));
        }
        let sketch = CountSketch::new(width, depth)?;
        for cell in &sketch.cells {
            let n = body.number()?;
            cell.store((n >> 1) as i64 ^ -((n & 1) as i64), Relaxed);
        }
        body.finish()?;
        Ok(sketch)
    }

    /// The item's cell in each row, and whether its sign there is minus. Multiply-shift, as in Count-Min: the top bit of
    /// the product is the sign, the next ones choose the cell.
    #[inline]
    fn cells_of(&self, hash: u64) -> impl Iterator<Item = (&AtomicI64, bool)> {
        let (shift, cells) = (self.shift, &*self.cells);
        self.multipliers.iter().enumerate().map(move |(row, multiplier)| {
            let product = hash.wrapping_mul(*multiplier);
            let index = (product << 1 >> 1 >> shift) as usize;
            (&cells[(row << (63 - shift)) + index], product >> 63 != 0)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_is_the_tail_of_a_binomial_distribution() {
        let (epsilon, delta) = CountSketch::new(400_usize.next_power_of_two(), 3).unwrap().bound();
        assert!((epsilon - (4.0_f64 / 512.0).sqrt()).abs() < 1e-12);
        // Two or three of three: 3/16 * 3/4 + 1/64.
        assert!((delta - 10.0 / 64.0).abs() < 1e-12, "{delta}");
    }

    #[test]
    fn even_depths_and_odd_widths_are_refused() {
        let text = |r: Result<CountSketch, SketchError>| r.unwrap_err().to_string();
        assert_eq!(text(CountSketch::new(100, 3)), "width is 100, allowed is a power of two from 2 to 2^30");
        assert_eq!(text(CountSketch::new(128, 4)), "depth is 4, allowed is an odd number from 1 to 31");
        assert!(text(CountSketch::new(1 << 29, 5)).starts_with("width x depth is 536870912 x 5"));
    }
}
