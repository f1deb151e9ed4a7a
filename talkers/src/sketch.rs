//! The sketch of a task, whatever its kind.

use crate::TaskError;
use crate::field::WORDS;
use crate::task::{Kind, Size, Task};
use sketches::{Bits, CocoSketch, Entropy, Estimate, HyperLogLog, Quantiles, SketchError, Spreaders, TopK};

#[derive(Debug)]
pub(crate) enum Sketch {
    HeavyHitters(CocoSketch<WORDS>),
    TopK(TopK<WORDS>),
    Spreaders(Spreaders<WORDS>),
    Cardinality(HyperLogLog),
    /// A sample of all elements; and the largest of them, once the sample does not have all.
    Entropy(Entropy, TopK<1>),
    Quantiles(Quantiles),
}

impl Sketch {
    pub(crate) fn new(task: &Task) -> Result<Sketch, TaskError> {
        Self::of_size(task).map_err(|error| match (error, task.config.size) {
            // A sketch speaks of its own parameters; the configuration has these.
            (TaskError::Sketch { source: SketchError::OutOfRange { .. }, .. }, Size::Memory(bytes)) => {
                let least = match task.config.kind {
                    Kind::HeavyHitters => CocoSketch::<WORDS>::MEMORY_MIN,
                    Kind::Spreaders => Spreaders::<WORDS>::MEMORY_MIN,
                    _ => TopK::<WORDS>::MEMORY_MIN,
                };
                let name = task.config.kind.name();
                TaskError::new("memory", bytes.to_string(), format!("{least}B to 8GiB for a task of kind {name}"))
            }
            (TaskError::Sketch { source: SketchError::OutOfRange { .. }, .. }, Size::Error(error)) => {
                TaskError::new("error", error.to_string(), "no sketch is of this size; use a larger one")
            }
            (error, _) => error,
        })
    }

    fn of_size(task: &Task) -> Result<Sketch, TaskError> {
        let (kind, size, seed) = (task.config.kind, task.config.size, task.seed);
        let bytes = || Self::wanted_bytes(kind, size);
        Ok(match kind {
            Kind::HeavyHitters => Sketch::HeavyHitters(CocoSketch::new(bytes()?, seed)?),
            Kind::TopK => Sketch::TopK(TopK::new(bytes()?, seed)?),
            Kind::Spreaders => Sketch::Spreaders(Spreaders::new(bytes()?, seed)?),
            Kind::Cardinality => {
                let (bytes, allowed) = (bytes()?, "16B to 256KiB: a byte for each of 2^4 to 2^18 registers");
                let sketch = u8::try_from(bytes.max(1).ilog2()).ok().and_then(|p| HyperLogLog::new(p).ok());
                Sketch::Cardinality(sketch.ok_or_else(|| TaskError::new("memory", bytes.to_string(), allowed))?)
            }
            Kind::Entropy => {
                let bytes = bytes()?;
                let refused = |_| TaskError::new("memory", bytes.to_string(), "512B to 16GiB: half of it for a sample");
                let (sample, head) = (Entropy::new(bytes / 2), TopK::new(bytes / 2, seed));
                Sketch::Entropy(sample.map_err(refused)?, head.map_err(refused)?)
            }
            Kind::Quantiles => match size {
                Size::Error(alpha) => Sketch::Quantiles(Quantiles::new(alpha)?),
                Size::Memory(bytes) => {
                    let allowed = "quantiles take `error` instead, such as 0.01";
                    return Err(TaskError::new("memory", bytes.to_string(), allowed));
                }
            },
        })
    }

    /// About as many bytes as a sketch of this size takes, without making one.
    pub(crate) fn wanted_bytes(kind: Kind, size: Size) -> Result<usize, TaskError> {
        let error = match size {
            Size::Memory(bytes) => return Ok(bytes),
            Size::Error(error) => error,
        };
        Ok(match kind {
            Kind::HeavyHitters => CocoSketch::<WORDS>::memory_for(checked(error, 1e-7, 0.5)?),
            Kind::TopK => TopK::<WORDS>::memory_for(checked(error, 1e-7, 0.5)?),
            // A register is a byte.
            Kind::Cardinality => 1 << HyperLogLog::precision_for(checked(error, 0.0021, 0.2)?),
            Kind::Quantiles => Quantiles::memory_for(checked(error, 0.0001, 0.5)?),
            Kind::Spreaders | Kind::Entropy => {
                let allowed = format!("a task of kind {} takes `memory` instead", kind.name());
                return Err(TaskError::new("error", error.to_string(), allowed));
            }
        })
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        match self {
            Sketch::HeavyHitters(sketch) => sketch.memory_bytes(),
            Sketch::TopK(sketch) => sketch.memory_bytes(),
            Sketch::Spreaders(sketch) => sketch.memory_bytes(),
            Sketch::Cardinality(sketch) => sketch.memory_bytes(),
            Sketch::Entropy(sample, head) => sample.memory_bytes() + head.memory_bytes(),
            Sketch::Quantiles(sketch) => sketch.memory_bytes(),
        }
    }

    /// Adds what `other` has. Both are of one task.
    pub(crate) fn merge(&self, other: &Sketch) -> Result<(), SketchError> {
        match (self, other) {
            (Sketch::HeavyHitters(ours), Sketch::HeavyHitters(theirs)) => ours.merge(theirs),
            (Sketch::TopK(ours), Sketch::TopK(theirs)) => ours.merge(theirs),
            (Sketch::Spreaders(ours), Sketch::Spreaders(theirs)) => ours.merge(theirs),
            (Sketch::Cardinality(ours), Sketch::Cardinality(theirs)) => ours.merge(theirs),
            (Sketch::Entropy(ours, head), Sketch::Entropy(theirs, other_head)) => {
                // Sample and head of theirs may grow meanwhile. In this order: the head was filled before the sample let go of any.
                let seen = theirs.seen();
                if !seen.is_whole() {
                    Sketch::begin_head(ours, head);
                    head.merge(other_head)?;
                } else if head.total() > 0 || !ours.has_room_for(seen.items().len()) {
                    Sketch::begin_head(ours, head);
                    seen.items().iter().for_each(|(hash, count)| head.update(*hash, &[*hash], *count));
                }
                ours.merge_seen(&seen)
            }
            (Sketch::Quantiles(ours), Sketch::Quantiles(theirs)) => ours.merge(theirs),
            _ => Err(SketchError::Foreign { found: other.kind().name().to_owned(), wanted: self.kind().name() }),
        }
    }

    pub(crate) fn reset(&self) {
        match self {
            Sketch::HeavyHitters(sketch) => sketch.reset(),
            Sketch::TopK(sketch) => sketch.reset(),
            Sketch::Spreaders(sketch) => sketch.reset(),
            Sketch::Cardinality(sketch) => sketch.reset(),
            Sketch::Entropy(sample, head) => {
                sample.reset();
                head.reset();
            }
            Sketch::Quantiles(sketch) => sketch.reset(),
        }
    }

    /// Counts `n` of the item that hashes to `hash`. While the sample has all items, they are not counted a second time.
    #[inline]
    pub(crate) fn count_item(sample: &Entropy, head: &TopK<1>, hash: u64, n: u64) {
        if head.total() > 0 {
            head.update(hash, &[hash], n);
        } else if !sample.has_room_for(1) {
            Sketch::begin_head(sample, head);
            head.update(hash, &[hash], n);
        }
        sample.update(hash, n);
    }

    /// The head begins when the sample, which has all items up to now, is about to let go of some.
    fn begin_head(sample: &Entropy, head: &TopK<1>) {
        if head.total() == 0 {
            sample.each(|hash, count| head.update(hash, &[hash], count));
        }
    }

    /// The entropy it estimates.
    pub(crate) fn bits(sample: &Entropy, head: &TopK<1>) -> Bits {
        // Only those that are known well: of the others the sample knows more.
        let is_known = |known: &Estimate| known.lower >= (known.upper - known.lower).saturating_mul(16);
        let known = head.entries().into_iter().filter(|(_, known)| is_known(known));
        sample.bits(known.map(|([hash], known)| (hash, known.lower.midpoint(known.upper))))
    }

    fn kind(&self) -> Kind {
        match self {
            Sketch::HeavyHitters(_) => Kind::HeavyHitters,
            Sketch::TopK(_) => Kind::TopK,
            Sketch::Spreaders(_) => Kind::Spreaders,
            Sketch::Cardinality(_) => Kind::Cardinality,
            Sketch::Entropy(..) => Kind::Entropy,
            Sketch::Quantiles(_) => Kind::Quantiles,
        }
    }
}

fn checked(error: f64, least: f64, most: f64) -> Result<f64, TaskError> {
    match (least..=most).contains(&error) {
        true => Ok(error),
        false => Err(TaskError::new("error", error.to_string(), format!("wanted is {least} to {most}"))),
    }
}
