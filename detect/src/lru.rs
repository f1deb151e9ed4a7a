/// No neighbour, no element.
pub(crate) const NONE: u32 = u32::MAX;

/// A doubly linked list over slots of a [`Chain`], oldest first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct List {
    pub(crate) head: u32,
    pub(crate) tail: u32,
}

impl List {
    pub(crate) const EMPTY: List = List { head: NONE, tail: NONE };
}

/// The links of any number of lists whose elements are slots 0 to n; a slot is in one list at most.
#[derive(Debug, Default)]
pub(crate) struct Chain {
    /// `(before, after)` of each slot.
    links: Vec<(u32, u32)>,
}

impl Chain {
    /// The slot after `slot`, or [`NONE`].
    pub(crate) fn after(&self, slot: u32) -> u32 {
        self.links[slot as usize].1
    }

    /// The slot before `slot`, or [`NONE`].
    pub(crate) fn before(&self, slot: u32) -> u32 {
        self.links[slot as usize].0
    }

    /// Appends a slot that is in no list.
    pub(crate) fn push(&mut self, list: &mut List, slot: u32) {
        if self.links.len() <= slot as usize {
            self.links.resize(slot as usize + 1, (NONE, NONE));
        }
        self.links[slot as usize] = (list.tail, NONE);
        match list.tail {
            NONE => list.head = slot,
            tail => self.links[tail as usize].1 = slot,
        }
        list.tail = slot;
    }

    /// Removes a slot that is in `list`.
    pub(crate) fn remove(&mut self, list: &mut List, slot: u32) {
        let (before, after) = self.links[slot as usize];
        match before {
            NONE => list.head = after,
            before => self.links[before as usize].1 = after,
        }
        match after {
            NONE => list.tail = before,
            after => self.links[after as usize].0 = before,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn lists_behave_as_vectors(ops in prop::collection::vec((0..3_usize, 0..20_u32), 0..200)) {
            let mut chain = Chain::default();
            let mut lists = [List::EMPTY; 3];
            let mut model: [Vec<u32>; 3] = Default::default();
            for (which, slot) in ops {
                if let Some(at) = model.iter().position(|m| m.contains(&slot)) {
                    chain.remove(&mut lists[at], slot);
                    model[at].retain(|s| *s != slot);
                }
                chain.push(&mut lists[which], slot);
                model[which].push(slot);
                for (list, model) in lists.iter().zip(&model) {
                    let some = |s: u32| (s != NONE).then_some(s);
                    let forward = std::iter::successors(some(list.head), |s| some(chain.after(*s))).collect::<Vec<_>>();
                    let mut backward =
                        std::iter::successors(some(list.tail), |s| some(chain.before(*s))).collect::<Vec<_>>();
                    backward.reverse();
                    prop_assert_eq!(&forward, model);
                    prop_assert_eq!(&backward, model);
                }
            }
        }
    }
}
