//! Numbers for distinct values, in the order they first come.

use hashbrown::{DefaultHashBuilder, HashMap, HashTable};
use std::hash::BuildHasher;

/// No value has this number: there are fewer.
pub(super) const NONE: u32 = u32::MAX;

/// Of whole numbers, and of bytes of fixed length.
pub(super) struct Numbers<T> {
    /// By value, while they are small.
    direct: Vec<u32>,
    /// Of the others.
    others: HashMap<T, u32>,
    pub(super) values: Vec<T>,
}

impl<T: Copy + Eq + std::hash::Hash + TryInto<usize>> Numbers<T> {
    /// `direct`: values below this have a place of their own.
    pub(super) fn new(direct: usize) -> Self {
        Numbers { direct: vec![NONE; direct], others: HashMap::new(), values: Vec::new() }
    }

    #[inline]
    pub(super) fn number(&mut self, value: T) -> u32 {
        let next = self.values.len() as u32;
        let number = match value.try_into().ok().and_then(|at| self.direct.get_mut(at)) {
            Some(number) => number,
            None => self.others.entry(value).or_insert(NONE),
        };
        if *number == NONE {
            *number = next;
            self.values.push(value);
        }
        *number
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
