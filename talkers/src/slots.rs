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
use std::sync::atomic::{AtomicU64, Ordering, fence};

/// Of a slot that the worker may fill.
const CLEAN: u64 = 0;
/// In place of a window's number plus one: the worker has ended.
const ENDED: u64 = u64::MAX >> 1;

/// What a worker fills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Filling {
    /// No packet has come yet.
    Nothing,
    /// This window, in this slot.
    Window(u64, usize),
    /// The worker has ended.
    Ended,
}

impl Filling {
    /// No window before this one is being filled any more.
    pub(crate) fn past(self) -> u64 {
        match self {
            Filling::Nothing => 0,
            Filling::Window(window, _) => window,
            Filling::Ended => u64::MAX,
        }
    }
}

#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Slots {
    sketches: [Sketch; 2],
    /// `CLEAN`, or the number of the window it is to be taken for, plus one.
    states: [AtomicU64; 2],
    /// Number of the window that is being filled plus one, times two, plus the slot; 0 before the first. No window before that is
    /// being filled any more.
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
        self.filling.store((window + 1) << 1 | slot as u64, Ordering::Release);
    }

    pub(crate) fn end(&self) {
        self.filling.store(ENDED << 1, Ordering::Release);
    }

    pub(crate) fn is_late(&self) {
        self.late.store(self.late.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// What is being filled.
    pub(crate) fn filling(&self) -> Filling {
        match self.filling.load(Ordering::Acquire) {
            0 => Filling::Nothing,
            filling if filling >> 1 == ENDED => Filling::Ended,
            filling => Filling::Window((filling >> 1) - 1, (filling & 1) as usize),
        }
    }

    /// [`filling`](Slots::filling) once more, after something was read of its slot: if it is the same, nothing of that was of another
    /// window.
    pub(crate) fn filling_still(&self) -> Filling {
        // Pairs with the fence in `give_back`: who saw a cell of an emptied slot sees that it is not filled any more.
        fence(Ordering::Acquire);
        self.filling()
    }

    /// The slots that wait for the collector, and for which window; not yet one that a reader may still take for the one being
    /// filled. For the collector.
    pub(crate) fn handed_over(&self) -> impl Iterator<Item = (usize, u64)> {
        let states = self.states.each_ref().map(|state| state.load(Ordering::Acquire));
        let filling = self.filling();
        let waiting = states.into_iter().enumerate().filter(|(_, state)| *state != CLEAN);
        let waiting = waiting.map(|(slot, state)| (slot, state - 1));
        waiting.filter(move |(slot, _)| !matches!(filling, Filling::Window(_, filled) if filled == *slot))
    }

    /// Whether all that was filled has been given back.
    pub(crate) fn is_clear(&self) -> bool {
        self.states.iter().all(|state| state.load(Ordering::Acquire) == CLEAN)
    }

    /// Empties a slot and gives it back to the worker. For the collector.
    pub(crate) fn give_back(&self, slot: usize) {
        fence(Ordering::Release);
        self.sketches[slot].reset();
        self.states[slot].store(CLEAN, Ordering::Release);
    }
}
