//! Answers of one window.

use crate::board::times;
use crate::field::{Key, WORDS};
use crate::sketch::Sketch;
use crate::task::Task;
use crate::{KeyFields, KeySpec, TalkerRow, TaskError};
use sketches::{Change, Estimate, changes};
use std::sync::Arc;
use wire::{Nanos, TapId};

/// What a task counted in one window, over all workers of a tap, or of all taps.
#[derive(Debug)]
pub struct Window {
    pub(crate) task: Arc<Task>,
    pub(crate) sketch: Sketch,
    pub(crate) number: u64,
    tap: Option<TapId>,
    is_running: bool,
}

/// What is known of a key, of a number of distinct elements, of an entropy or of a quantile.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Known {
    /// Right on average.
    pub estimate: f64,
    /// It is no less: always for counts and quantiles, with a confidence of 95 % for distinct elements and entropy.
    pub lower: f64,
    /// It is no more.
    pub upper: f64,
}

/// The keys of a window that had most.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Listing {
    /// Those first that had most.
    pub keys: Vec<(KeyFields, Known)>,
    /// What all others had together; its `upper` is what any one of them had at most.
    pub others: Known,
}

/// How much more or less a key had than in the window before.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Changed {
    /// Which.
    pub key: KeyFields,
    /// What it had before.
    pub before: Known,
    /// What it has now.
    pub after: Known,
    /// By how much it grew; negative where it shrank.
    pub change: Known,
}

/// Of twice the standard error 95 % are within.
const CONFIDENCE: f64 = 1.96;
/// By how much the error of a spreader's estimate grows in a merge: from that of counting on, sqrt(ln 2 / m), to HyperLogLog's,
/// 1.04 / sqrt(m).
const MERGED: f64 = 1.25;
/// Of [`Spreaders::crowding`](sketches::Spreaders::crowding): what a key that is not held had at most, and by how much one that took
/// another's cell is counted too high at most.
const UNHELD: f64 = 6.0;
const TAKEN_OVER: f64 = 2.0;

/// Counts by key, and what a key that is not among them may have had.
struct Counts {
    keys: Vec<(Key, Estimate)>,
    unheld: u64,
    total: u64,
}

impl Window {
    pub(crate) fn new(task: Arc<Task>, tap: Option<TapId>, number: u64, is_running: bool, sketch: Sketch) -> Window {
        Window { task, sketch, number, tap, is_running }
    }

    /// The task.
    pub fn task(&self) -> &Arc<Task> {
        &self.task
    }

    /// The tap; `None` if it is of several.
    pub fn tap(&self) -> Option<TapId> {
        self.tap
    }

    /// When it began, and when it ended or will end.
    pub fn times(&self) -> (Nanos, Nanos) {
        times(&self.task, self.number)
    }

    /// Whether it is being filled.
    pub fn is_running(&self) -> bool {
        self.is_running
    }

    /// Sum of all that was counted; `None` of a sketch that has none.
    pub fn total(&self) -> Option<u64> {
        match &self.sketch {
            Sketch::HeavyHitters(sketch) => Some(sketch.total()),
            Sketch::TopK(sketch) => Some(sketch.total()),
            Sketch::Entropy(sample, _) => Some(sample.total()),
            Sketch::Quantiles(sketch) => Some(sketch.count()),
            Sketch::Spreaders(_) | Sketch::Cardinality(_) => None,
        }
    }

    /// The keys with at least `least`, those first that had most, `rows_max` of them.
    ///
    /// # Errors
    /// The task cannot answer by these fields.
    pub fn list(&self, by: &KeySpec, least: u64, rows_max: usize) -> Result<Listing, TaskError> {
        if let Sketch::Spreaders(sketch) = &self.sketch {
            self.check(by)?;
            let crowding = sketch.crowding();
            let spread = |estimate| spread(estimate, sketch.standard_error(), crowding);
            let all = sketch.list(0.0);
            let listed = all.iter().take(rows_max).take_while(|(_, estimate)| *estimate >= least as f64).count();
            let (keys, others) = all.split_at(listed);
            let others = Known {
                estimate: others.iter().map(|(_, estimate)| estimate).sum(),
                lower: 0.0,
                upper: others.first().map_or(0.0, |(_, estimate)| spread(*estimate).upper).max(UNHELD * crowding),
            };
            let keys = keys.iter().map(|(key, estimate)| (by.fields(key), spread(*estimate))).collect();
            return Ok(Listing { keys, others });
        }
        let Counts { keys, unheld, total } = self.counts(by)?;
        let (mut listed, mut sum, mut most) = (Vec::new(), 0_u64, unheld);
        // Of whole keys those that surely had so much: a crowded entry makes small ones look large.
        let is_sure = matches!(self.sketch, Sketch::HeavyHitters(_)) && by.is_same(&self.task.key);
        let had = |estimate: &Estimate| if is_sure { estimate.lower } else { estimate.value };
        for (key, estimate) in &keys {
            if had(estimate) >= least && listed.len() < rows_max {
                sum = sum.saturating_add(estimate.value);
                listed.push((by.fields(key), known(*estimate)));
            } else {
                most = most.max(estimate.upper);
            }
        }
        let others = Known { estimate: total.saturating_sub(sum) as f64, lower: 0.0, upper: most.min(total) as f64 };
        Ok(Listing { keys: listed, others })
    }

    /// What is known of one key.
    ///
    /// # Errors
    /// The task cannot answer by these fields, or `values` does not have them.
    pub fn estimate(&self, by: &KeySpec, values: &KeyFields) -> Result<Known, TaskError> {
        let key = by.key(values)?;
        if let Sketch::Spreaders(sketch) = &self.sketch {
            self.check(by)?;
            let crowding = sketch.crowding();
            let none = || Known { upper: UNHELD * crowding, ..Known::default() };
            let held = sketch.estimate(self.task.hasher().hash(&key), &key);
            return Ok(held.map_or_else(none, |estimate| spread(estimate, sketch.standard_error(), crowding)));
        }
        if by.is_same(&self.task.key) {
            let hash = self.task.hasher().hash(&key);
            match &self.sketch {
                Sketch::HeavyHitters(sketch) => return Ok(known(sketch.estimate(hash, &key))),
                Sketch::TopK(sketch) => return Ok(known(sketch.estimate(hash, &key))),
                _ => {}
            }
        }
        let Counts { keys, unheld, total } = self.counts(by)?;
        let held = keys.iter().find(|(held, _)| *held == key).map(|(_, estimate)| *estimate);
        Ok(known(held.unwrap_or(Estimate { value: 0, lower: 0, upper: unheld.min(total) })))
    }

    /// Counts by the fields of `by`, the most first.
    fn counts(&self, by: &KeySpec) -> Result<Counts, TaskError> {
        self.check(by)?;
        let is_whole = by.is_same(&self.task.key);
        let slack = |(_, known): &(Key, Estimate)| known.upper - known.lower;
        let (mut keys, unheld, total) = match &self.sketch {
            Sketch::HeavyHitters(sketch) => {
                let keys = if is_whole { sketch.entries() } else { sketch.by(|key| by.cut(key)) };
                // All that may be other keys': of a whole key those of its bucket, of every part of one the same.
                let unheld = keys.iter().map(slack).max().unwrap_or(0);
                (keys, unheld, sketch.total())
            }
            Sketch::TopK(sketch) => (sketch.entries(), sketch.offset(), sketch.total()),
            _ => return Err(self.cannot("by keys")),
        };
        for (_, known) in &mut keys {
            // No key had more than all of them.
            known.upper = known.upper.min(total.max(known.lower));
        }
        // A key that took over a crowded entry has the count of those before it: of whole keys those first that surely had most. In a
        // part of a key that evens out.
        let order = |known: &Estimate| match is_whole {
            true => (known.lower, known.value),
            false => (known.value, known.lower),
        };
        keys.sort_unstable_by(|(a, x), (b, y)| order(y).cmp(&order(x)).then_with(|| a.cmp(b)));
        Ok(Counts { keys, unheld, total })
    }

    /// How many distinct elements there were.
    ///
    /// # Errors
    /// The task does not count them.
    pub fn distinct(&self) -> Result<Known, TaskError> {
        match &self.sketch {
            Sketch::Cardinality(sketch) => {
                let (estimate, error) = (sketch.estimate(), sketch.standard_error() * CONFIDENCE);
                Ok(Known { estimate, lower: estimate * (1.0 - error), upper: estimate * (1.0 + error) })
            }
            _ => Err(self.cannot("how many distinct elements there were")),
        }
    }

    /// The entropy in bits, and what share of the largest possible it is.
    ///
    /// # Errors
    /// The task does not know it.
    pub fn entropy(&self) -> Result<(Known, f64), TaskError> {
        match &self.sketch {
            Sketch::Entropy(sample, head) => {
                let bits = Sketch::bits(sample, head);
                let most = if bits.items > 1.0 { bits.items.log2() } else { 0.0 };
                let error = if bits.standard_error.is_nan() { most } else { bits.standard_error * CONFIDENCE };
                let (lower, upper) = ((bits.value - error).max(0.0), bits.value + error);
                Ok((Known { estimate: bits.value, lower, upper }, bits.evenness()))
            }
            _ => Err(self.cannot("for an entropy")),
        }
    }

    /// The value that a share `q` of all are not above; `None` if there is none.
    ///
    /// # Errors
    /// The task does not know it.
    pub fn quantile(&self, q: f64) -> Result<Option<Known>, TaskError> {
        match &self.sketch {
            Sketch::Quantiles(sketch) => Ok(sketch.quantile(q).map(|estimate| {
                let error = sketch.alpha();
                Known { estimate, lower: estimate / (1.0 + error), upper: estimate / (1.0 - error) }
            })),
            _ => Err(self.cannot("for quantiles")),
        }
    }

    /// The keys that changed most since `before`, an earlier window of the same task.
    ///
    /// # Errors
    /// The task cannot answer by these fields.
    pub fn changed(&self, before: &Window, by: &KeySpec, rows_max: usize) -> Result<Vec<Changed>, TaskError> {
        let (now, then) = (self.counts(by)?, before.counts(by)?);
        let all = changes(&then.keys, &now.keys, (then.unheld.min(then.total), now.unheld.min(now.total)));
        let changed = |change: Change<[u64; WORDS]>| {
            let (lower, upper) = change.bounds();
            Changed {
                key: by.fields(&change.key),
                before: known(change.before),
                after: known(change.after),
                change: Known { estimate: change.value() as f64, lower: lower as f64, upper: upper as f64 },
            }
        };
        Ok(all.into_iter().take(rows_max).map(changed).collect())
    }

    fn check(&self, by: &KeySpec) -> Result<(), TaskError> {
        match !by.is_empty() && self.task.answers(by) {
            true => Ok(()),
            false => {
                let by = if by.is_empty() { "without a key".to_owned() } else { format!("by {by}") };
                Err(self.cannot(&by))
            }
        }
    }

    fn cannot(&self, what: &str) -> TaskError {
        let task = &self.task;
        let has = match task.key.is_empty() {
            true => format!("it knows the {} of {}", task.metric().name(), task.elements()),
            false if task.config.kind == crate::Kind::HeavyHitters => format!("it answers by any part of {}", task.key),
            false => format!("it answers by {}", task.key),
        };
        TaskError::Question(format!("task '{}' cannot be asked {what}: {has}", task.name()))
    }

    /// The window as rows of table `talkers`, and their texts one after the other.
    ///
    /// # Errors
    /// As the questions, which would be a fault of this crate.
    pub fn rows(&self, rows: &mut Vec<TalkerRow>, texts: &mut Vec<u8>) -> Result<(), TaskError> {
        let task = &*self.task;
        let (start, end) = self.times();
        let name = task.name();
        let elements = task.elements();
        let mut push = |key: &str, row: TalkerRow| {
            let tap = self.tap.unwrap_or_default();
            let length = |text: &str| u8::try_from(text.len()).unwrap_or(u8::MAX);
            rows.push(TalkerRow {
                start,
                end,
                tap,
                metric: task.metric(),
                task_len: length(name),
                key_len: length(key),
                elements_len: length(&elements),
                ..row
            });
            [name, key, &elements].into_iter().for_each(|text| texts.extend_from_slice(text.as_bytes()));
        };
        let row = |known: Known| TalkerRow {
            estimate: known.estimate,
            lower: known.lower,
            upper: known.upper,
            ..TalkerRow::default()
        };
        for by in &task.lists {
            let names = by.to_string();
            let listing = self.list(by, task.config.threshold, task.config.rows_max)?;
            for (at, (key, known)) in listing.keys.into_iter().enumerate() {
                push(&names, TalkerRow { rank: u32::try_from(at + 1).ok(), key, ..row(known) });
            }
            push(&names, row(listing.others));
        }
        match &self.sketch {
            Sketch::Cardinality(_) => push("", row(self.distinct()?)),
            Sketch::Entropy(..) => push("", row(self.entropy()?.0)),
            Sketch::Quantiles(_) => {
                for q in &task.config.quantiles {
                    if let Some(known) = self.quantile(*q)? {
                        push("", TalkerRow { quantile: Some(*q), ..row(known) });
                    }
                }
            }
            Sketch::HeavyHitters(_) | Sketch::TopK(_) | Sketch::Spreaders(_) => {}
        }
        Ok(())
    }
}

fn known(estimate: Estimate) -> Known {
    Known { estimate: estimate.value as f64, lower: estimate.lower as f64, upper: estimate.upper as f64 }
}

fn spread(estimate: f64, standard_error: f64, crowding: f64) -> Known {
    let error = standard_error * MERGED * CONFIDENCE;
    let lower = estimate * (1.0 - error) - TAKEN_OVER * crowding;
    Known { estimate, lower: lower.max(1.0), upper: estimate * (1.0 + error) }
}
