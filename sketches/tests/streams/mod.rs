//! Seeded streams, and what is true of them.
#![allow(dead_code, reason = "each test has its own part of it")]

use sketches::mix;
use std::collections::HashMap;
use std::hash::Hash;

/// SplitMix64: a seeded stream of well-mixed numbers.
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    pub(crate) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Items of a Zipf stream (exponent `s`; 0 is uniform) over `items` items.
pub(crate) fn zipf(seed: u64, s: f64, items: usize, length: usize) -> Vec<u64> {
    let mut rng = Rng(seed);
    let mut cumulative = Vec::with_capacity(items);
    let mut sum = 0.0;
    for rank in 1..=items {
        sum += (rank as f64).powf(-s);
        cumulative.push(sum);
    }
    (0..length)
        .map(|_| {
            let at = rng.unit() * sum;
            mix(seed ^ ((cumulative.partition_point(|c| *c < at) as u64) << 20))
        })
        .collect()
}

/// How much each had.
pub(crate) fn exact<K: Eq + Hash>(stream: impl IntoIterator<Item = (K, u64)>) -> HashMap<K, u64> {
    let mut counts = HashMap::new();
    for (key, n) in stream {
        *counts.entry(key).or_default() += n;
    }
    counts
}
