//! The two sketches of a task at a worker: one that is being filled, one that is being taken away.
//!
//! ```text
//!            worker                                  collector
//!  fills slot 0 in window w
//!  window w ends: fills slot 1 too
//!  all of w has come:
//!                 state[0] = w + 1 ──────────────→ merges slot 0 into what other workers had of w
//!                 filling = (w + 1, slot 1)         resets it
//!                                 ←─────────────── state[0] = clean
//! ```
//!
//! Whoever writes a sketch is thus always one thread: the worker while it fills it, the collector between the two stores to
//! its state. Who only reads looks at `filling` before and after.

use crate::TaskError;
use crate::sketch::Sketch;
use crate::task::Task;
use std::sync::atomic::{AtomicU64, Ordering};

/// Of a slot that the worker may fill.
const CLEAN: u64 = 0;
/// In place of a window's number: the worker has ended.
const ENDED: u64 = u64::MAX >> 1;

#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Slots {
    sketches: [Sketch; 2],
    /// `CLEAN`, or the number of the window it is to be taken for, plus one.
    states: [AtomicU64; 2],
    /// Number of the window that is being filled times two, plus the slot. No window before that is being filled any more.
    filling: AtomicU64,
    /// Windows that went on in the slot of the one before, because the collector still had the other slot.
    late: AtomicU64,
}

impl Slots {
    pub(crate) fn new(task: &Task) -> Result<Slots, TaskError> {
        Ok(Slots {
            sketches: [Sketch::new(task)?, Sketch::new(task)?],
            states: Default::default(),
            filling: AtomicU64::new(0),
            late: AtomicU64::new(0),
        })
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.sketches.iter().map(Sketch::memory_bytes).sum()
    }

    pub(crate) fn late(&self) -> u64 {
        self.late.load(Ordering::Relaxed)
    }

    /// What the worker fills. For the worker.
    #[inline]
    pub(crate) fn sketch(&self, slot: usize) -> &Sketch {
        &self.sketches[slot & 1]
    }

    /// Whether the worker may go over to `slot`. For the worker.
    pub(crate) fn is_clean(&self, slot: usize) -> bool {
        // Acquire: pairs with `give_back`; the reset is seen.
        self.states[slot].load(Ordering::Acquire) == CLEAN
    }

    /// Hands a slot over as that of a window. For the worker.
    pub(crate) fn hand_over(&self, slot: usize, window: u64) {
        // Release: pairs with `handed_over`; who sees the number sees all that was counted.
        self.states[slot].store(window + 1, Ordering::Release);
    }

    /// The worker fills `slot` in `window` from now on. For the worker, after `hand_over`.
    pub(crate) fn fill(&self, slot: usize, window: u64) {
        // Release: pairs with `filling`; who sees the window sees what was handed over before.
        self.filling.store(window << 1 | slot as u64, Ordering::Release);
    }

    pub(crate) fn end(&self) {
        self.filling.store(ENDED << 1, Ordering::Release);
    }

    pub(crate) fn is_late(&self) {
        self.late.store(self.late.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// The window that is being filled, and where; `None` after the end.
    pub(crate) fn filling(&self) -> Option<(u64, usize)> {
        let filling = self.filling.load(Ordering::Acquire);
        (filling >> 1 != ENDED).then_some((filling >> 1, (filling & 1) as usize))
    }

    /// The slots that wait for the collector, and for which window. For the collector.
    pub(crate) fn handed_over(&self) -> impl Iterator<Item = (usize, u64)> {
        let states = self.states.each_ref().map(|state| state.load(Ordering::Acquire));
        states.into_iter().enumerate().filter(|(_, state)| *state != CLEAN).map(|(slot, state)| (slot, state - 1))
    }

    /// Empties a slot and gives it back to the worker. For the collector.
    pub(crate) fn give_back(&self, slot: usize) {
        self.sketches[slot].reset();
        self.states[slot].store(CLEAN, Ordering::Release);
    }
}
