//! A bounded table whose entries are kept in the order they came: what is full gives up its oldest, and what is too old
//! is found without looking for it. Which entry goes does not depend on the hash, so every run decides alike.

use ahash::RandomState;
use std::hash::Hash;

/// No slot.
const NONE: u32 = u32::MAX;

/// Place of an entry until it is removed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Slot(u32);

impl Slot {
    /// Its number, below the most entries there can be.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

struct Entry<K, V> {
    key: K,
    since: u64,
    /// Neighbours by age. A free entry has the next free one in `newer`.
    older: u32,
    newer: u32,
    value: V,
}

/// Where an entry is, beside enough of its hash that others in its way are passed, and moved, without a look at them.
#[derive(Clone, Copy)]
struct Place {
    slot: u32,
    hash: u32,
}

const EMPTY: Place = Place { slot: NONE, hash: 0 };

/// Up to a fixed number of entries under `K`, each with the time it came at, in whatever unit: times never decrease. Values stay
/// where they are when an entry goes, for the next to reuse.
pub struct Expiring<K, V> {
    /// Those that were needed so far. There is room for all from the start; what nobody needs is never touched.
    entries: Vec<Entry<K, V>>,
    entries_max: usize,
    /// Makes the value of one.
    value: fn() -> V,
    /// Open addressing with linear probing: twice as many places as entries, at least one of them empty.
    index: Vec<Place>,
    free: u32,
    oldest: u32,
    newest: u32,
    hasher: RandomState,
}

impl<K: Copy + Eq + Hash, V> Expiring<K, V> {
    /// An empty one for so many entries, 1 to 2^24, whose values `value` makes when they are first needed.
    ///
    /// # Panics
    /// If that is out of range.
    pub fn new(entries_max: usize, value: fn() -> V) -> Expiring<K, V> {
        assert!((1..=1 << 24).contains(&entries_max));
        Expiring {
            entries: Vec::with_capacity(entries_max),
            value,
            entries_max,
            index: vec![EMPTY; (entries_max * 2).next_power_of_two()],
            free: NONE,
            oldest: NONE,
            newest: NONE,
            hasher: RandomState::new(),
        }
    }

    /// Bytes of memory it may come to hold.
    pub fn memory_bytes(&self) -> usize {
        self.entries.capacity() * size_of::<Entry<K, V>>() + self.index.capacity() * size_of::<Place>()
    }

    /// The value of an entry.
    pub fn value(&self, slot: Slot) -> &V {
        &self.entries[slot.index()].value
    }

    /// The value of an entry, to be changed.
    pub fn value_mut(&mut self, slot: Slot) -> &mut V {
        &mut self.entries[slot.index()].value
    }

    /// Whether there is no room for another entry.
    pub fn is_full(&self) -> bool {
        self.free == NONE && self.entries.len() == self.entries_max
    }

    /// The entry that has been there the longest.
    #[inline]
    pub fn oldest(&self) -> Option<Slot> {
        (self.oldest != NONE).then_some(Slot(self.oldest))
    }

    /// The oldest, if it came at `limit` or before.
    #[inline]
    pub fn expired(&self, limit: u64) -> Option<Slot> {
        self.oldest().filter(|slot| self.entries[slot.index()].since <= limit)
    }

    /// The key of an entry.
    pub fn key(&self, slot: Slot) -> &K {
        &self.entries[slot.index()].key
    }

    /// Entries whose keys have the hash of this one, and by bad luck some others, in the order they came.
    pub fn alike(&self, key: &K) -> impl Iterator<Item = Slot> {
        let hash = self.hash(key);
        let mut place = self.home(hash);
        std::iter::from_fn(move || {
            loop {
                let found = self.index[place];
                if found.slot == NONE {
                    return None;
                }
                place = self.next(place);
                if found.hash == hash {
                    return Some(Slot(found.slot));
                }
            }
        })
    }

    /// The entry of a key.
    pub fn find(&self, key: &K) -> Option<Slot> {
        self.place(key).map(|place| Slot(self.index[place].slot))
    }

    /// A slot for a key that is not there, with the value of an earlier entry; `None` where the table is full.
    pub fn insert(&mut self, key: K, since: u64) -> Option<Slot> {
        debug_assert!(self.place(&key).is_none());
        if self.is_full() {
            return None;
        }
        let (slot, older) = (self.free, self.newest);
        let slot = match self.entries.get_mut(slot as usize) {
            Some(entry) => {
                self.free = entry.newer;
                (entry.key, entry.since, entry.older, entry.newer) = (key, since, older, NONE);
                slot
            }
            None => {
                self.entries.push(Entry { key, since, older, newer: NONE, value: (self.value)() });
                (self.entries.len() - 1) as u32
            }
        };
        match older {
            NONE => self.oldest = slot,
            _ => self.entries[older as usize].newer = slot,
        }
        self.newest = slot;
        let hash = self.hash(&key);
        let mut place = self.home(hash);
        while self.index[place].slot != NONE {
            place = self.next(place);
        }
        self.index[place] = Place { slot, hash };
        Some(Slot(slot))
    }

    /// Removes an entry.
    pub fn remove(&mut self, slot: Slot) {
        let hash = self.hash(&self.entries[slot.index()].key);
        let mut place = self.home(hash);
        // Its own number: no other entry needs to be looked at.
        while self.index[place].slot != slot.0 {
            if self.index[place].slot == NONE {
                debug_assert!(false, "a slot is removed once");
                return;
            }
            place = self.next(place);
        }
        self.remove_at(place);
    }

    /// Removes the entry of a key and lends its value, which the next one to be inserted will reuse.
    pub fn take(&mut self, key: &K) -> Option<&V> {
        let place = self.place(key)?;
        let slot = self.index[place].slot;
        self.remove_at(place);
        Some(&self.entries[slot as usize].value)
    }

    /// Removes the entry that a place of the index leads to.
    fn remove_at(&mut self, place: usize) {
        let slot = Slot(self.index[place].slot);
        self.close_gap(place);
        let Entry { older, newer, .. } = self.entries[slot.index()];
        match older {
            NONE => self.oldest = newer,
            _ => self.entries[older as usize].newer = newer,
        }
        match newer {
            NONE => self.newest = older,
            _ => self.entries[newer as usize].older = older,
        }
        self.entries[slot.index()].newer = self.free;
        self.free = slot.0;
    }

    /// Empties a place of the index and moves what probing would no longer find behind it.
    fn close_gap(&mut self, mut gap: usize) {
        let mask = self.index.len() - 1;
        let mut place = gap;
        loop {
            place = self.next(place);
            let next = self.index[place];
            if next.slot == NONE {
                break;
            }
            // It may move back as far as its home.
            if place.wrapping_sub(self.home(next.hash)) & mask >= place.wrapping_sub(gap) & mask {
                self.index[gap] = next;
                gap = place;
            }
        }
        self.index[gap] = EMPTY;
    }

    fn place(&self, key: &K) -> Option<usize> {
        let hash = self.hash(key);
        let mut place = self.home(hash);
        loop {
            let found = self.index[place];
            if found.slot == NONE {
                return None;
            }
            if found.hash == hash && self.entries[found.slot as usize].key == *key {
                return Some(place);
            }
            place = self.next(place);
        }
    }

    fn hash(&self, key: &K) -> u32 {
        self.hasher.hash_one(key) as u32
    }

    fn home(&self, hash: u32) -> usize {
        hash as usize & (self.index.len() - 1)
    }

    fn next(&self, place: usize) -> usize {
        (place + 1) & (self.index.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Op {
        Insert(u8),
        Remove(u8),
        Take(u8),
        RemoveOldest,
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            3 => (0..40u8).prop_map(Op::Insert),
            1 => (0..40u8).prop_map(Op::Remove),
            1 => (0..40u8).prop_map(Op::Take),
            1 => Just(Op::RemoveOldest),
        ]
    }

    proptest! {
        #[test]
        fn it_does_what_a_list_does(ops in prop::collection::vec(op(), 0..400), entries_max in 1..20usize) {
            let mut table = Expiring::<u8, u8>::new(entries_max, || 0);
            let mut model: Vec<u8> = Vec::new();
            for (time, op) in ops.into_iter().enumerate() {
                match op {
                    Op::Insert(key) if !model.contains(&key) => {
                        prop_assert_eq!(table.is_full(), model.len() == entries_max);
                        if let Some(slot) = table.insert(key, time as u64) {
                            *table.value_mut(slot) = key;
                            model.push(key);
                        } else {
                            prop_assert_eq!(model.len(), entries_max);
                        }
                    }
                    Op::Insert(_) => {}
                    Op::Remove(key) => {
                        if let Some(slot) = table.find(&key) {
                            table.remove(slot);
                        }
                        model.retain(|k| *k != key);
                    }
                    Op::Take(key) => {
                        let taken = table.take(&key).copied();
                        prop_assert_eq!(taken, model.contains(&key).then_some(key));
                        model.retain(|k| *k != key);
                    }
                    Op::RemoveOldest => {
                        if let Some(slot) = table.oldest() {
                            table.remove(slot);
                            model.remove(0);
                        }
                    }
                }
                prop_assert_eq!(table.oldest().map(|slot| *table.value(slot)), model.first().copied());
                for key in 0..40 {
                    let alike: Vec<u8> = table.alike(&key).map(|slot| *table.key(slot)).collect();
                    prop_assert_eq!(alike, if model.contains(&key) { vec![key] } else { vec![] });
                    prop_assert_eq!(table.find(&key).map(|slot| *table.value(slot)), model.contains(&key).then_some(key));
                }
            }
        }
    }

    /// A key whose hash says nothing.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    struct Alike(u8);

    impl Hash for Alike {
        fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
            0u8.hash(state);
        }
    }

    proptest! {
        #[test]
        fn entries_of_one_hash_stay_in_order(ops in prop::collection::vec(op(), 0..200)) {
            let mut table = Expiring::<Alike, ()>::new(20, || ());
            let mut model: Vec<Alike> = Vec::new();
            for (time, op) in ops.into_iter().enumerate() {
                match op {
                    Op::Insert(key) if !model.contains(&Alike(key)) => {
                        if table.insert(Alike(key), time as u64).is_some() {
                            model.push(Alike(key));
                        }
                    }
                    Op::Insert(_) => {}
                    Op::Remove(key) | Op::Take(key) => {
                        table.take(&Alike(key));
                        model.retain(|k| *k != Alike(key));
                    }
                    Op::RemoveOldest => {
                        if let Some(slot) = table.oldest() {
                            table.remove(slot);
                            model.remove(0);
                        }
                    }
                }
                prop_assert_eq!(table.alike(&Alike(0)).map(|slot| *table.key(slot)).collect::<Vec<_>>(), model.clone());
            }
        }
    }

    #[test]
    fn only_what_is_old_expires() {
        let mut table = Expiring::<u32, ()>::new(4, || ());
        table.insert(1, 10);
        table.insert(2, 20);
        assert_eq!(table.expired(9), None);
        let first = table.expired(10).expect("the first");
        table.remove(first);
        assert_eq!(table.expired(19), None);
    }
}
