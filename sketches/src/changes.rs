use crate::Estimate;
use std::collections::HashMap;
use std::hash::Hash;

/// How much more or less a key had than before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change<K> {
    /// Which.
    pub key: K,
    /// What it had before.
    pub before: Estimate,
    /// What it has now.
    pub after: Estimate,
}

impl<K> Change<K> {
    /// By how much it grew; negative where it shrank.
    pub fn value(&self) -> i128 {
        i128::from(self.after.value) - i128::from(self.before.value)
    }

    /// By how much it grew at least, and at most.
    pub fn bounds(&self) -> (i128, i128) {
        let (before, after) = (&self.before, &self.after);
        (i128::from(after.lower) - i128::from(before.upper), i128::from(after.upper) - i128::from(before.lower))
    }
}

/// The keys that changed most from one window to the next, those first, grown or shrunk: from what a sketch of each says
/// of the keys it holds ([`CocoSketch::by`](crate::CocoSketch::by), [`TopK::entries`](crate::TopK::entries)). A key that one
/// of them does not hold had at most `unheld` there: its first number for the window before, the second for that after.
pub fn changes<K: Copy + Eq + Hash + Ord>(
    before: &[(K, Estimate)],
    after: &[(K, Estimate)],
    unheld: (u64, u64),
) -> Vec<Change<K>> {
    let none = |upper| Estimate { value: 0, lower: 0, upper };
    let mut all: HashMap<K, Change<K>> = HashMap::new();
    for (key, estimate) in before {
        all.insert(*key, Change { key: *key, before: *estimate, after: none(unheld.1) });
    }
    for (key, estimate) in after {
        let change = all.entry(*key).or_insert(Change { key: *key, before: none(unheld.0), after: none(unheld.1) });
        change.after = *estimate;
    }
    let mut all: Vec<Change<K>> = all.into_values().filter(|change| change.value() != 0).collect();
    all.sort_unstable_by(|a, b| b.value().abs().cmp(&a.value().abs()).then_with(|| a.key.cmp(&b.key)));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_and_what_went_are_changes() {
        let had = |value| Estimate { value, lower: value - 1, upper: value + 1 };
        let before = [(1, had(100)), (2, had(50)), (3, had(7))];
        let after = [(2, had(90)), (3, had(7)), (4, had(30))];
        let all = changes(&before, &after, (5, 6));
        let found: Vec<_> = all.iter().map(|change| (change.key, change.value(), change.bounds())).collect();
        assert_eq!(found, [(1, -100, (-101, -93)), (2, 40, (38, 42)), (4, 30, (24, 31))]);
    }
}
