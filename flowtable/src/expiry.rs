//! When flows end by themselves: deadlines in an array of their own, swept a bounded number at a time; and who goes when
//! there is no room.
//!
//! A deadline here is a lower bound. A packet moves its flow's real deadline on and writes nothing; the sweep, when it
//! meets a bound that has passed, looks at the flow and sets the bound anew. Four bytes a flow, read in sequence: a round
//! over ten million flows reads 40 MB.

use crate::{FlowSink, FlowTable};
use std::collections::TryReserveError;
use wire::Nanos;

/// Slots whose bound is examined per batch at most, so that no jump in time stalls a worker.
const SWEEP_SLOTS_MAX: usize = 65_536;
/// A whole round over all slots takes this long in packet time: how late an idle flow may be exported.
const SWEEP_ROUND: Nanos = Nanos::from_secs(1);
/// Slots of one comparison, and flows that are compared for eviction at most.
const BLOCK: usize = 64;
/// Unit of a bound: 2^24 ns, 16.8 ms; 31 bits of it span more than a year.
const TICK_SHIFT: u32 = 24;
/// Marks a free slot.
const FREE: u32 = u32::MAX;
/// Greatest bound: of flows that never time out, and of those that do so beyond the span.
const LATEST: u32 = (u32::MAX >> 1) - 1;
/// Slots looked through for them at most. A run of answered flows is skipped at a sixteenth of a nanosecond a slot.
const SEARCH_MAX: usize = 1 << 16;
/// After a search in vain, none for this long: answered flows are then compared instead.
const SEARCH_PAUSE: Nanos = Nanos::from_millis(100);

pub(crate) struct Expiry {
    /// By slot: bound in ticks after `epoch`, times two; the low bit is set once both sides have sent something.
    bounds: Vec<u32>,
    /// Clock of the first flow.
    epoch: Option<Nanos>,
    sweep_at: usize,
    swept_until: Nanos,
    victim_at: usize,
    search_from: Nanos,
}

impl Expiry {
    pub(crate) fn new(flows_max: u32) -> Result<Expiry, TryReserveError> {
        Ok(Expiry {
            bounds: memory::reserve(flows_max as usize)?,
            epoch: None,
            sweep_at: 0,
            swept_until: Nanos::ZERO,
            victim_at: 0,
            search_from: Nanos::ZERO,
        })
    }

    /// Ticks count from the clock of the first flow.
    #[inline]
    pub(crate) fn epoch(&mut self, clock: Nanos) {
        self.epoch.get_or_insert(clock);
    }

    /// Begins to count anew long before ticks run out, which they would after 417 days; the sweep then looks at every flow.
    #[inline]
    fn renew_epoch(&mut self, clock: Nanos) {
        if self.epoch.is_some() && self.tick(clock) > LATEST / 2 {
            self.epoch = Some(clock);
            self.look_at_all();
        }
    }

    /// Ticks after the epoch, rounded down, so that a bound is never later than its deadline.
    #[inline]
    fn tick(&self, time: Nanos) -> u32 {
        let ticks = (time - self.epoch.unwrap_or(Nanos::ZERO)).0 >> TICK_SHIFT;
        u32::try_from(ticks).unwrap_or(LATEST).min(LATEST)
    }

    /// The bound of a flow that takes a slot.
    #[inline]
    pub(crate) fn set_fresh(&mut self, slot: u32, deadline: Nanos) {
        let bound = self.tick(deadline) << 1;
        match self.bounds.get_mut(slot as usize) {
            Some(at) => *at = bound,
            None => self.bounds.push(bound),
        }
    }

    /// The bound of a flow in its slot.
    #[inline]
    pub(crate) fn set(&mut self, slot: u32, deadline: Nanos) {
        let tick = self.tick(deadline);
        let bound = &mut self.bounds[slot as usize];
        *bound = tick << 1 | *bound & 1;
    }

    /// Both sides of the flow have sent something.
    #[inline]
    pub(crate) fn answered(&mut self, slot: u32) {
        self.bounds[slot as usize] |= 1;
    }

    /// The slot is free.
    #[inline]
    pub(crate) fn clear(&mut self, slot: u32) {
        self.bounds[slot as usize] = FREE;
    }

    /// Whether the slot is free. Answered from four bytes of an array read in sequence.
    #[inline]
    pub(crate) fn is_free(&self, slot: usize) -> bool {
        self.bounds[slot] == FREE
    }

    /// Timeouts have changed: the bounds were computed from others, so the sweep is to look at every flow again.
    pub(crate) fn look_at_all(&mut self) {
        self.bounds.iter_mut().filter(|bound| **bound != FREE).for_each(|bound| *bound &= 1);
    }

    /// Who is to go: of some flows that nobody answered the one whose time is up first, or of any where there are none.
    /// Decided by the bounds alone: looking at the flows themselves would cost a cache miss each.
    pub(crate) fn victim(&mut self, clock: Nanos) -> Option<u32> {
        let unanswered = if clock >= self.search_from { self.unanswered() } else { None };
        let (from, until) = match unanswered {
            Some(range) => range,
            None => {
                if clock >= self.search_from {
                    self.search_from = clock + SEARCH_PAUSE;
                }
                let from = self.victim_at;
                self.victim_at = if from + BLOCK < self.bounds.len() { from + BLOCK } else { 0 };
                (from, (from + BLOCK).min(self.bounds.len()))
            }
        };
        let wanted = |slot: &usize| match unanswered {
            Some(_) => self.bounds[*slot] & 1 == 0,
            None => self.bounds[*slot] != FREE,
        };
        (from..until).filter(wanted).min_by_key(|slot| self.bounds[*slot]).map(|slot| slot as u32)
    }

    /// The next block of slots with a flow that nobody answered; the search goes on behind it next time.
    fn unanswered(&mut self) -> Option<(usize, usize)> {
        let count = self.bounds.len();
        let mut looked = 0;
        while looked < SEARCH_MAX.min(count) {
            let from = self.victim_at;
            let until = (from + BLOCK).min(count);
            looked += until - from;
            self.victim_at = if until == count { 0 } else { until };
            // The low bit of all: set where every flow of the block was answered, or its slot is free.
            if self.bounds[from..until].iter().fold(1, |all, bound| all & *bound) == 0 {
                return Some((from, until));
            }
        }
        None
    }
}

impl FlowTable {
    /// Lets time pass: exports flows whose deadline lies behind `clock`, a bounded number of slots at a call.
    pub fn advance(&mut self, clock: Nanos, sink: &mut impl FlowSink) {
        self.clock = self.clock.max(clock);
        self.expiry.renew_epoch(self.clock);
        let round = self.expiry.bounds.len();
        if round == 0 {
            self.expiry.swept_until = self.clock;
            return;
        }
        let elapsed = self.clock - self.expiry.swept_until;
        let due = if elapsed >= SWEEP_ROUND {
            round
        } else {
            // Below 2^30 ns times below 2^27 slots.
            (elapsed.0 * round as u64 / SWEEP_ROUND.0) as usize
        };
        if due >= BLOCK || due == round {
            self.expiry.swept_until = self.clock;
            self.sweep(due.min(SWEEP_SLOTS_MAX), sink);
        }
    }

    /// Looks at the next `slots` bounds.
    fn sweep(&mut self, slots: usize, sink: &mut impl FlowSink) {
        let now = self.expiry.tick(self.clock) << 1 | 1;
        let mut left = slots;
        while left > 0 {
            let bounds = &self.expiry.bounds;
            let run = left.min(bounds.len() - self.expiry.sweep_at);
            let from = self.expiry.sweep_at;
            for block in (from..from + run).step_by(BLOCK) {
                let until = (block + BLOCK).min(from + run);
                // Whole lines of bounds ahead of now are the rule: one comparison of vectors tells.
                if self.expiry.bounds[block..until].iter().fold(FREE, |least, bound| least.min(*bound)) <= now {
                    self.sweep_block(block, until, now, sink);
                }
            }
            left -= run;
            let next = from + run;
            self.expiry.sweep_at = if next == self.expiry.bounds.len() { 0 } else { next };
        }
    }

    fn sweep_block(&mut self, from: usize, until: usize, now: u32, sink: &mut impl FlowSink) {
        let is_due = |table: &FlowTable, slot: &usize| table.expiry.bounds[*slot] <= now;
        // One after the other they would wait for memory: first for the flow, then for its line of the index.
        (from..until).filter(|slot| is_due(self, slot)).for_each(|slot| self.prefetch_flow(slot));
        (from..until).filter(|slot| is_due(self, slot)).for_each(|slot| self.prefetch_rest(slot));
        for slot in from..until {
            if !is_due(self, &slot) {
                continue;
            }
            let state = &self.states[slot];
            let deadline = state.deadline(&self.patience);
            if deadline <= self.clock {
                let reason = state.timeout_reason();
                self.end(slot as u32, reason, sink);
            } else {
                self.expiry.set(slot as u32, deadline);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ticks would run out after 417 days, and then each sweep would look at every flow.
    #[test]
    fn bounds_tell_times_apart_after_years() {
        let mut expiry = Expiry::new(4).expect("memory");
        let day = |n: u64| Nanos::from_secs(n * 86_400);
        expiry.epoch(day(20_000));
        for years in 1..=5 {
            let now = day(20_000 + 300 * years);
            expiry.renew_epoch(now);
            expiry.set_fresh(0, now + Nanos::from_secs(1));
            expiry.set_fresh(0, now + Nanos::from_secs(30));
            assert!(expiry.tick(now) < expiry.tick(now + Nanos::from_secs(1)), "{years}");
        }
    }
}
