//! Numbers for distinct values, in the order they first come.

use hashbrown::{DefaultHashBuilder, HashMap, HashTable};
use std::hash::{BuildHasher, Hash, RandomState};

/// No value has this number: there are fewer.
pub(super) const NONE: u32 = u32::MAX;

/// Of whole numbers, and of bytes of fixed length.
pub(super) struct Numbers<T> {
    /// By value, while they are small.
    direct: Vec<u32>,
    /// Of larger ones of up to 48 bits: ports and such, but IPv4 and MAC addresses as well.
    short: Short,
    /// Of the others.
    long: HashMap<T, u32>,
    pub(super) values: Vec<T>,
}

impl<T: Copy + Eq + Hash + TryInto<u64>> Numbers<T> {
    /// `direct`: values below this have a place of their own.
    pub(super) fn new(direct: usize) -> Self {
        Numbers { direct: vec![NONE; direct], short: Short::default(), long: HashMap::new(), values: Vec::new() }
    }

    /// The numbers of many values, in place of what was in `out`.
    pub(super) fn number_all<V: Copy>(&mut self, values: &[V], convert: impl Fn(V) -> T, out: &mut Vec<u32>) {
        out.clear();
        // Most have been numbered before: these are found without a branch, and without one waiting for the other's
        // cache miss; the few others afterwards.
        if self.direct.is_empty() {
            out.extend(values.iter().map(|value| self.short.at_home(convert(*value).try_into().unwrap_or(u64::MAX))));
        } else {
            let direct = &self.direct;
            let place = |value: &V| direct.get(usize::try_from(convert(*value).try_into().ok()?).ok()?).copied();
            out.extend(values.iter().map(|value| place(value).unwrap_or(NONE)));
        }
        for (number, value) in out.iter_mut().zip(values).filter(|(number, _)| **number == NONE) {
            *number = self.number(convert(*value));
        }
    }

    pub(super) fn number(&mut self, value: T) -> u32 {
        let next = self.values.len() as u32;
        let number = match value.try_into() {
            Ok(short) if short <= SHORT_MAX => match self.direct.get_mut(short as usize) {
                Some(number) => number,
                None => self.short.entry(short),
            },
            _ => self.long.entry(value).or_insert(NONE),
        };
        if *number == NONE {
            *number = next;
            self.values.push(value);
        }
        *number
    }
}

/// Largest value of a table of short ones.
const SHORT_MAX: u64 = (1 << 48) - 1;

/// Numbers by value in open addressing, a slot of 12 bytes each: of a general map a lookup takes two cache misses, here
/// one.
struct Short {
    /// A power of two, at most five eighths of them taken.
    slots: Vec<Slot>,
    taken: usize,
    /// Odd, and nobody's to know: who sends packets does not choose which addresses collide.
    factor: u64,
}

#[derive(Clone, Copy)]
struct Slot {
    low: u32,
    high: u32,
    number: u32,
}

impl Slot {
    /// No value has this.
    const FREE: Slot = Slot { low: u32::MAX, high: u32::MAX, number: NONE };

    fn has(self, value: u64) -> bool {
        u64::from(self.high) << 32 | u64::from(self.low) == value
    }
}

impl Default for Short {
    fn default() -> Short {
        Short { slots: vec![Slot::FREE; 16], taken: 0, factor: RandomState::new().hash_one(0) | 1 }
    }
}

impl Short {
    fn home(&self, value: u64) -> usize {
        (value.wrapping_mul(self.factor) >> (u64::BITS - self.slots.len().trailing_zeros())) as usize
    }

    /// The number of a value that lies in its first place.
    fn at_home(&self, value: u64) -> u32 {
        let slot = self.slots[self.home(value)];
        if slot.has(value) { slot.number } else { NONE }
    }

    /// Where a value's number is, `NONE` if it is new.
    fn entry(&mut self, value: u64) -> &mut u32 {
        if self.taken * 8 >= self.slots.len() * 5 {
            let slots = vec![Slot::FREE; self.slots.len() * 2];
            for slot in std::mem::replace(&mut self.slots, slots) {
                if slot.number != NONE {
                    let at = self.find(u64::from(slot.high) << 32 | u64::from(slot.low));
                    self.slots[at] = slot;
                }
            }
        }
        let at = self.find(value);
        let slot = &mut self.slots[at];
        if slot.number == NONE {
            (slot.low, slot.high) = (value as u32, (value >> 32) as u32);
            self.taken += 1;
        }
        &mut slot.number
    }

    /// The slot of a value, or the free one it would take.
    fn find(&self, value: u64) -> usize {
        let mut at = self.home(value);
        while self.slots[at].number != NONE && !self.slots[at].has(value) {
            at = (at + 1) & (self.slots.len() - 1);
        }
        at
    }
}

/// Of texts that come as numbers in dictionaries of their batches. A text is looked at once a batch, not once a row.
#[derive(Default)]
pub(super) struct Texts {
    /// The distinct texts, one after the other.
    bytes: Vec<u8>,
    /// Where each ends.
    ends: Vec<u32>,
    index: HashTable<u32>,
    hasher: DefaultHashBuilder,
}

impl Texts {
    pub(super) fn number(&mut self, text: &[u8]) -> u32 {
        let hash = self.hasher.hash_one(text);
        let (bytes, ends) = (&self.bytes, &self.ends);
        if let Some(number) = self.index.find(hash, |number| get(bytes, ends, *number) == text) {
            return *number;
        }
        let number = self.ends.len() as u32;
        self.bytes.extend_from_slice(text);
        self.ends.push(self.bytes.len() as u32);
        let (bytes, ends, hasher) = (&self.bytes, &self.ends, &self.hasher);
        self.index.insert_unique(hash, number, |number| hasher.hash_one(get(bytes, ends, *number)));
        number
    }

    pub(super) fn get(&self, number: u32) -> &[u8] {
        get(&self.bytes, &self.ends, number)
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.ends.len() as u32).map(|number| self.get(number))
    }

    /// Bytes of a page of them.
    pub(super) fn page_bytes(&self) -> usize {
        self.bytes.len() + 4 * self.ends.len()
    }
}

fn get<'a>(bytes: &'a [u8], ends: &[u32], number: u32) -> &'a [u8] {
    let number = number as usize;
    let start = if number == 0 { 0 } else { ends[number - 1] as usize };
    &bytes[start..ends[number] as usize]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Small, short and long values, new and known ones, in pages.
    #[test]
    fn values_are_numbered_in_the_order_they_first_come() {
        for direct in [0, 256] {
            let mut numbers = Numbers::<u128>::new(direct);
            let mut first = HashMap::new();
            let mut random = 1u64;
            for _ in 0..40 {
                let page: Vec<u128> = (0..1_000)
                    .map(|_| {
                        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                        let value = u128::from(random >> 40) * u128::from(random >> 40) % 5_000;
                        [value, value << 34, value << 90, u128::from(SHORT_MAX) + value % 3, u128::MAX - value % 2]
                            [(random >> 30) as usize % 5]
                    })
                    .collect();
                let mut found = Vec::new();
                numbers.number_all(&page, |value| value, &mut found);
                for (value, number) in page.iter().zip(found) {
                    let next = first.len() as u32;
                    assert_eq!(*first.entry(*value).or_insert(next), number, "{value:x}");
                    assert_eq!(numbers.values[number as usize], *value);
                }
            }
            assert_eq!(numbers.values.len(), first.len());
        }
    }
}
