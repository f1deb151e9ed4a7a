//! A look at every flow in the table, in slices, while packets go on being counted between them.

use crate::table::deliver_to;
use crate::{EndReason, FlowRecord, FlowTable};

/// Free slots that may be looked at for each flow that may be shown: four bytes each, in sequence, against the lines of a
/// flow and the making of its record.
pub(crate) const FREE_SLOTS_A_FLOW: usize = 16;

/// How far a walk over the flows of a table has come.
///
/// A flow keeps its slot as long as it lasts, and a walk looks once at each slot that was in use when it began. So a flow
/// is shown at most once, with what had been counted by then, and one that is in the table from the first slice to the
/// last is shown. A flow that ends meanwhile may have been shown before; one that begins meanwhile is shown if it took a
/// slot that another had left and the walk had not come to.
#[derive(Clone, Copy, Debug)]
pub struct FlowWalk {
    /// The next slot to look at; `next <= end`.
    next: u32,
    end: u32,
}

impl FlowTable {
    /// A walk over the flows that are in the table now.
    pub fn walk(&self) -> FlowWalk {
        FlowWalk { next: 0, end: self.states.len() as u32 }
    }

    /// The next slice of a walk that this table gave: shows at most `flows_max` flows, and looks at 16 slots for each of
    /// them at most. `see` is given the record that would be exported now, its reason [`EndReason::Active`], and its
    /// texts; where it returns `false` the slice ends, and the next one begins with that flow. Gives how many flows `see`
    /// took, and whether the walk is over.
    pub fn step(
        &self,
        walk: &mut FlowWalk,
        flows_max: usize,
        mut see: impl FnMut(&FlowRecord, &[u8]) -> bool,
    ) -> (usize, bool) {
        let until = (walk.next as usize).saturating_add(flows_max.saturating_mul(FREE_SLOTS_A_FLOW));
        let until = until.min(walk.end as usize);
        let mut shown = 0;
        while (walk.next as usize) < until && shown < flows_max {
            let slot = walk.next as usize;
            if !self.expiry.is_free(slot) {
                let (state, birth, extras) = self.parts_of(slot);
                if !deliver_to(state, birth, extras, EndReason::Active, &mut see) {
                    break;
                }
                shown += 1;
            }
            walk.next += 1;
        }
        (shown, walk.next == walk.end)
    }
}
