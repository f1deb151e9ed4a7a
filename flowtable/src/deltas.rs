//! What flows have sent since they last told, for those who count in windows of time.
//!
//! Counting every packet a second time would cost a cache miss each. A flow's state counts them anyway; so a flow tells what
//! was added since it told last when it ends, when a part of it ends, and when time turns: at a border of windows, or when
//! somebody wants to know. Then all flows are swept, a slice at a time, while packets go on being counted. A packet whose flow has
//! not been swept yet has it tell first, so that no packet behind the turn is told with those before it.
//!
//! One bit of a state says on which side of the last turn the flow has told, and one that it has told at all; what it had
//! counted by then lies in an array beside the states, which flows that do not live to see a turn leave alone.

use crate::state::{FlowState, bits};
use crate::walk::FREE_SLOTS_A_FLOW;
use crate::{FlowSink, FlowTable, FlowTableError};
use wire::{Direction, FlowKey};

/// What a flow has sent since it last told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowDelta<'a> {
    /// The flow.
    pub key: &'a FlowKey,
    /// In which direction its originator sends.
    pub originator: Direction,
    /// Packets of originator and responder.
    pub pkts: [u32; 2],
    /// Their IP bytes.
    pub bytes: [u64; 2],
}

#[derive(Default)]
pub(crate) struct Deltas {
    /// Whether flows tell.
    pub(crate) wanted: bool,
    /// `bits::TURN` of a flow that has told since the last turn.
    pub(crate) turn: u8,
    /// By slot, where `bits::TOLD` is set: bytes of both sides when it last told, and their packets, 32 bits each. If flows tell, as
    /// long as the states: growing with them, no turn has to make much of it at once.
    pub(crate) told: Vec<[u64; 3]>,
    /// The next slot to sweep, and the end of those that were in use at the turn.
    at: usize,
    end: usize,
}

impl Deltas {
    /// Fetches what the flow in a slot has told.
    #[inline]
    pub(crate) fn prefetch(&self, state: &FlowState, slot: usize) {
        if self.wanted && state.bits & bits::TOLD != 0 {
            memory::prefetch(&self.told[slot]);
        }
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.told.capacity() * size_of::<[u64; 3]>()
    }
}

impl FlowTable {
    /// From now on flows tell what they sent ([`FlowSink::delta`]). Takes 24 bytes for each flow that may be in the table, touched when
    /// its slot is first used.
    ///
    /// # Errors
    /// The system does not give so much memory.
    pub fn want_deltas(&mut self) -> Result<(), FlowTableError> {
        self.deltas.told = memory::reserve(self.flows_max as usize).map_err(|_| self.out_of_memory())?;
        self.deltas.told.resize(self.states.len(), [0; 3]);
        self.deltas.wanted = true;
        Ok(())
    }

    /// Time turns: what was sent before this is told apart from what comes, if flows tell. All of them must have been swept since the
    /// last turn.
    pub fn turn(&mut self) {
        debug_assert!(self.is_swept());
        if !self.deltas.wanted {
            return;
        }
        self.deltas.turn ^= bits::TURN;
        (self.deltas.at, self.deltas.end) = (0, self.states.len());
    }

    /// Whether all flows have told what they sent before the last turn.
    #[inline]
    pub fn is_swept(&self) -> bool {
        self.deltas.at == self.deltas.end
    }

    /// Has up to `flows` flows tell, the next ones. 16 free slots count as one. Gives [`is_swept`](FlowTable::is_swept).
    pub fn sweep_deltas(&mut self, flows: usize, sink: &mut impl FlowSink) -> bool {
        let mut left = flows.saturating_mul(FREE_SLOTS_A_FLOW);
        while left > 0 && self.deltas.at < self.deltas.end {
            let slot = self.deltas.at;
            self.deltas.at += 1;
            if self.expiry.is_free(slot) {
                left -= 1;
            } else {
                left = left.saturating_sub(FREE_SLOTS_A_FLOW);
                if self.states[slot].is_before_turn(self.deltas.turn) {
                    self.tell(slot, sink);
                }
            }
        }
        self.is_swept()
    }

    /// Has the flow in a slot tell, and notes what it has told.
    #[cold]
    pub(crate) fn tell(&mut self, slot: usize, sink: &mut impl FlowSink) {
        self.tell_rest(slot, sink);
        let state = &mut self.states[slot];
        let [o, r] = &state.sides;
        self.deltas.told[slot] = [o.bytes, r.bytes, u64::from(o.pkts) | u64::from(r.pkts) << 32];
        state.bits = state.bits & !bits::TURN | self.deltas.turn | bits::TOLD;
    }

    /// Has the flow in a slot tell for the last time before it is gone, or its part is.
    pub(crate) fn tell_rest(&mut self, slot: usize, sink: &mut impl FlowSink) {
        let state = &self.states[slot];
        let [o, r] = &state.sides;
        let [bytes_o, bytes_r, pkts] = if state.bits & bits::TOLD == 0 { [0; 3] } else { self.deltas.told[slot] };
        let delta = FlowDelta {
            key: &state.key,
            originator: state.originator(),
            pkts: [o.pkts - pkts as u32, r.pkts - (pkts >> 32) as u32],
            bytes: [o.bytes - bytes_o, r.bytes - bytes_r],
        };
        if delta.pkts != [0; 2] {
            sink.delta(&delta, state.is_before_turn(self.deltas.turn));
        }
    }
}

impl FlowState {
    /// Whether the flow has not told since the last turn.
    #[inline]
    pub(crate) fn is_before_turn(&self, turn: u8) -> bool {
        (self.bits ^ turn) & bits::TURN != 0
    }
}
