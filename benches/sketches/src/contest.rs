//! The sketches, and how each is fed and judged.

use crate::stream::{Rng, Zipf};
use benches::capture::cpu;
use datasketches::countmin::CountMinSketch;
use datasketches::frequencies::FrequentItemsSketch;
use datasketches::hll::{HllSketch, HllType};
use datasketches::tdigest::TDigestMut;
use hashbrown::HashMap;
use sketches::{
    Bloom, CocoSketch, CountMin, CountSketch, Entropy, Estimate, HyperLogLog, Quantiles, Spreaders, TopK, UpdateRule,
    mix,
};
use std::hint::black_box;
use std::time::Duration;

/// Memory of sketches of heavy hitters, bytes.
pub(crate) const HEAVY_BYTES: usize = 512 << 10;
/// Of superspreaders.
const SPREAD_BYTES: usize = 84_000_000;
/// As many are given at a time, where a sketch takes many.
pub(crate) const BATCH: usize = 1_024;
/// A key is heavy from this share of the stream on.
const HEAVY: f64 = 1e-4;
/// Sources of the stream of contacts, and what makes one of them a superspreader.
const SOURCES: u64 = 600_000;
const SPREAD: u64 = 1_000;

/// What is fed.
pub(crate) struct Data {
    /// A Zipf stream.
    pub(crate) items: Vec<u64>,
    /// The same number of items, all equally likely.
    uniform: Vec<u64>,
    /// How often each item of the first is in it.
    pub(crate) truth: HashMap<u64, u64>,
    /// Who contacted whom.
    pub(crate) contacts: Vec<(u64, u64)>,
    /// How often each source is in it.
    pub(crate) sources: HashMap<u64, u64>,
    /// How many distinct ones each contacted.
    spreads: HashMap<u64, u64>,
    /// Values such as round-trip times, and the same in order.
    values: Vec<u64>,
    sorted: Vec<u64>,
}

impl Data {
    pub(crate) fn new(length: u64, items: u64, skew: f64) -> Data {
        let mut rng = Rng(42);
        let zipf = Zipf::new(items, skew);
        let stream: Vec<u64> = (0..length).map(|_| zipf.next(&mut rng)).collect();
        let mut truth = HashMap::new();
        stream.iter().for_each(|item| *truth.entry(*item).or_default() += 1);
        let sources = Zipf::new(SOURCES, 1.0);
        let contacts: Vec<(u64, u64)> = (0..length).map(|_| (sources.next(&mut rng), rng.next() % 1_000_000)).collect();
        let mut of_sources = HashMap::new();
        contacts.iter().for_each(|(source, _)| *of_sources.entry(*source).or_default() += 1);
        let mut distinct = contacts.clone();
        distinct.sort_unstable();
        distinct.dedup();
        let mut spreads = HashMap::new();
        distinct.iter().for_each(|(source, _)| *spreads.entry(*source).or_default() += 1);
        let values: Vec<u64> = (0..length).map(|_| 200 + (rng.next() >> (34 + rng.next() % 16))).collect();
        let mut sorted = values.clone();
        sorted.sort_unstable();
        let uniform = (0..length).map(|_| rng.next() % items).collect();
        Data { items: stream, uniform, truth, contacts, sources: of_sources, spreads, values, sorted }
    }
}

/// How a sketch did.
pub(crate) struct Outcome {
    pub(crate) updates: usize,
    pub(crate) cpu: Duration,
    pub(crate) memory_bytes: usize,
    pub(crate) errors: String,
}

pub(crate) struct Contestant {
    pub(crate) group: &'static str,
    pub(crate) name: &'static str,
    pub(crate) run: fn(&Data) -> Outcome,
}

const COUNTS: &str = "how often, u64 keys, Zipf";
const COUNTS_UNIFORM: &str = "how often, u64 keys, uniform";
const HEAVY_SHORT: &str = "heavy hitters, u64 keys, Zipf";
const HEAVY_LONG: &str = "heavy hitters, 37-byte keys, Zipf";
const DISTINCT: &str = "how many distinct";
const VALUES: &str = "quantiles";
const OTHERS: &str = "others, u64 keys, Zipf";
const CONTACTS: &str = "superspreaders, 600,000 sources, 16-byte keys";

pub(crate) fn all() -> Vec<Contestant> {
    let one = |group, name, run| Contestant { group, name, run };
    vec![
        one(COUNTS, "Count-Min, 4 x 32768", |data| count_min(&data.items, data, 4, 1 << 15, UpdateRule::Plain)),
        one(COUNTS, "Count-Min, 2 x 65536", |data| count_min(&data.items, data, 2, 1 << 16, UpdateRule::Plain)),
        one(COUNTS, "Count-Min, 4 x 32768, many at a time", |data| {
            count_min_many(&data.items, data, 4, 1 << 15, UpdateRule::Plain)
        }),
        one(COUNTS, "Count-Min, 2 x 65536, many at a time", |data| {
            count_min_many(&data.items, data, 2, 1 << 16, UpdateRule::Plain)
        }),
        one(COUNTS, "Count-Min, conservative, 4 x 32768, many at a time", |data| {
            count_min_many(&data.items, data, 4, 1 << 15, UpdateRule::Conservative)
        }),
        one(COUNTS, "Count-Min, conservative, 4 x 32768", |data| {
            count_min(&data.items, data, 4, 1 << 15, UpdateRule::Conservative)
        }),
        one(COUNTS, "Count-Sketch, 3 x 32768", |data| {
            let sketch = CountSketch::new(1 << 15, 3).expect("a good shape");
            let cpu = timed(|| data.items.iter().for_each(|item| sketch.update(mix(*item), 1)));
            let errors = of_counts(&data.truth, |item| sketch.estimate(mix(item)).max(0) as u64);
            Outcome { updates: data.items.len(), cpu, memory_bytes: sketch.memory_bytes(), errors }
        }),
        one(COUNTS, "datasketches CountMin, 4 x 32768", |data| {
            let mut sketch: CountMinSketch<i64> = CountMinSketch::new(4, 1 << 15).expect("a good shape");
            let cpu = timed(|| data.items.iter().for_each(|item| sketch.update(*item)));
            let errors = of_counts(&data.truth, |item| sketch.estimate(item) as u64);
            Outcome { updates: data.items.len(), cpu, memory_bytes: sketch.estimated_size(), errors }
        }),
        one(COUNTS, "exact (hashbrown)", |data| {
            let mut counts: HashMap<u64, u64> = HashMap::new();
            let cpu = timed(|| data.items.iter().for_each(|item| *counts.entry(*item).or_default() += 1));
            let memory_bytes = counts.allocation_size();
            Outcome { updates: data.items.len(), cpu, memory_bytes, errors: "none".to_owned() }
        }),
        one(COUNTS_UNIFORM, "Count-Min, 4 x 32768", |data| Outcome {
            errors: String::new(),
            ..count_min(&data.uniform, data, 4, 1 << 15, UpdateRule::Plain)
        }),
        one(COUNTS_UNIFORM, "CocoSketch", |data| Outcome { errors: String::new(), ..coco::<1>(&data.uniform, data) }),
        one(HEAVY_SHORT, "CocoSketch", |data| coco::<1>(&data.items, data)),
        one(HEAVY_SHORT, "top-k", top_k::<1>),
        one(HEAVY_SHORT, "datasketches FrequentItems", |data| {
            let mut sketch: FrequentItemsSketch<u64> = FrequentItemsSketch::new(1 << 14).expect("a power of two");
            let cpu = timed(|| data.items.iter().for_each(|item| sketch.update(*item)));
            let held = data.truth.keys().map(|item| (*item, sketch.estimate(item))).filter(|(_, n)| *n > 0);
            let errors = of_heavy(&data.truth, held.collect());
            Outcome { updates: data.items.len(), cpu, memory_bytes: sketch.estimated_size(), errors }
        }),
        one(HEAVY_SHORT, "heavykeeper", |data| {
            // Its cells and its queue together take about as much.
            let mut sketch: heavykeeper::TopK<u64> = heavykeeper::TopK::new(2_000, 1 << 13, 4, 0.9);
            let cpu = timed(|| data.items.iter().for_each(|item| sketch.add(item, 1)));
            let held = sketch.list().into_iter().map(|node| (node.item, node.count));
            let errors = of_heavy(&data.truth, held.collect());
            Outcome { updates: data.items.len(), cpu, memory_bytes: HEAVY_BYTES, errors }
        }),
        one(HEAVY_LONG, "CocoSketch", |data| coco::<5>(&data.items, data)),
        one(HEAVY_LONG, "top-k", top_k::<5>),
        one(CONTACTS, "superspreaders, one by one", |data| spreaders(data, false)),
        one(CONTACTS, "superspreaders, 1,024 at a time", |data| spreaders(data, true)),
        one(DISTINCT, "HyperLogLog, p = 14", |data| {
            let sketch = HyperLogLog::new(14).expect("a good precision");
            let cpu = timed(|| data.items.iter().for_each(|item| sketch.insert(mix(*item))));
            let errors = relative(sketch.estimate(), data.truth.len() as f64);
            Outcome { updates: data.items.len(), cpu, memory_bytes: sketch.memory_bytes(), errors }
        }),
        one(DISTINCT, "datasketches HLL8, lg k = 14", |data| {
            let mut sketch = HllSketch::new(14, HllType::Hll8).expect("a good size");
            let cpu = timed(|| data.items.iter().for_each(|item| sketch.update(*item)));
            let errors = relative(sketch.estimate(), data.truth.len() as f64);
            Outcome { updates: data.items.len(), cpu, memory_bytes: sketch.estimated_size(), errors }
        }),
        one(VALUES, "DDSketch, 1 %", |data| {
            let sketch = Quantiles::new(0.01).expect("a good error");
            let cpu = timed(|| data.values.iter().for_each(|value| sketch.insert(*value, 1)));
            let errors = of_quantiles(data, |q| sketch.quantile(q).unwrap_or(0.0));
            Outcome { updates: data.values.len(), cpu, memory_bytes: sketch.memory_bytes(), errors }
        }),
        one(VALUES, "sketches-ddsketch, 1 %", |data| {
            let mut sketch = sketches_ddsketch::DDSketch::new(sketches_ddsketch::Config::new(0.01, 2_048, 1e-9));
            let cpu = timed(|| data.values.iter().for_each(|value| sketch.add(*value as f64)));
            let errors = of_quantiles(data, |q| sketch.quantile(q).ok().flatten().unwrap_or(0.0));
            Outcome { updates: data.values.len(), cpu, memory_bytes: 8 * sketch.length(), errors }
        }),
        one(VALUES, "datasketches t-digest, k = 200", |data| {
            let mut sketch = TDigestMut::new(200).expect("a good size");
            let cpu = timed(|| data.values.iter().for_each(|value| sketch.update(*value as f64)));
            let memory_bytes = sketch.estimated_size();
            let errors = of_quantiles(data, |q| sketch.quantile(q).ok().flatten().unwrap_or(0.0));
            Outcome { updates: data.values.len(), cpu, memory_bytes, errors }
        }),
        one(OTHERS, "entropy, 64 KiB", |data| {
            let sketch = Entropy::new(64 << 10).expect("a good size");
            let cpu = timed(|| data.items.iter().for_each(|item| sketch.update(mix(*item), 1)));
            let heavy = (data.items.len() as f64 * HEAVY) as u64;
            let head = data.truth.iter().filter(|(_, n)| **n >= heavy).map(|(item, n)| (mix(*item), *n));
            let all = data.items.len() as f64;
            let truth: f64 = data.truth.values().map(|n| *n as f64 / all).map(|share| -share * share.log2()).sum();
            let bits = sketch.bits(head);
            let errors =
                format!("{:.3} bits of {truth:.3}, told {:.3}", (bits.value - truth).abs(), bits.standard_error);
            Outcome { updates: data.items.len(), cpu, memory_bytes: sketch.memory_bytes(), errors }
        }),
        one(OTHERS, "Bloom, 1 MiB", |data| {
            let sketch = Bloom::new(1 << 20).expect("a good size");
            let cpu = timed(|| {
                data.items.iter().for_each(|item| {
                    black_box(sketch.insert(mix(*item)));
                })
            });
            let wrong = (0..1_000_000).filter(|n| sketch.contains(mix(u64::MAX - n))).count();
            let errors =
                format!("{:.3} % taken for one, told {:.3}", wrong as f64 / 1e4, 100.0 * sketch.false_positives());
            Outcome { updates: data.items.len(), cpu, memory_bytes: sketch.memory_bytes(), errors }
        }),
    ]
}

pub(crate) fn timed(work: impl FnOnce()) -> Duration {
    let before = cpu::of_this_thread();
    work();
    cpu::of_this_thread() - before
}

fn count_min(stream: &[u64], data: &Data, depth: usize, width: usize, rule: UpdateRule) -> Outcome {
    let sketch = CountMin::new(width, depth, rule).expect("a good shape");
    let cpu = timed(|| stream.iter().for_each(|item| sketch.update(mix(*item), 1)));
    let errors = of_counts(&data.truth, |item| sketch.estimate(mix(item)));
    Outcome { updates: stream.len(), cpu, memory_bytes: sketch.memory_bytes(), errors }
}

fn count_min_many(stream: &[u64], data: &Data, depth: usize, width: usize, rule: UpdateRule) -> Outcome {
    let sketch = CountMin::new(width, depth, rule).expect("a good shape");
    let cpu = timed(|| {
        stream.chunks(BATCH).for_each(|items| sketch.update_all(items.iter().map(|item| (mix(*item), 1))));
    });
    let errors = of_counts(&data.truth, |item| sketch.estimate(mix(item)));
    Outcome { updates: stream.len(), cpu, memory_bytes: sketch.memory_bytes(), errors }
}

/// A key of `WORDS` words of an item, as different as those of flows: in some of them.
pub(crate) fn key<const WORDS: usize>(item: u64) -> [u64; WORDS] {
    std::array::from_fn(|word| if word % 2 == 0 { item } else { 0x1bb_0006 })
}

/// A hash of all words.
pub(crate) fn hash<const WORDS: usize>(key: &[u64; WORDS]) -> u64 {
    match &key[..] {
        [one] => mix(*one),
        words => words.iter().fold(0x9e37_79b9_7f4a_7c15, |state, word| {
            let product = u128::from(state ^ word) * 0xd6e8_feb8_6659_fd93;
            product as u64 ^ (product >> 64) as u64
        }),
    }
}

fn coco<const WORDS: usize>(stream: &[u64], data: &Data) -> Outcome {
    let sketch = CocoSketch::<WORDS>::new(HEAVY_BYTES, 1).expect("a good size");
    let cpu = timed(|| {
        for item in stream {
            let key = key::<WORDS>(*item);
            sketch.update(hash(&key), &key, 1);
        }
    });
    let held = |of: fn(Estimate) -> u64| sketch.entries().into_iter().map(|(key, told)| (key[0], of(told))).collect();
    let errors = format!(
        "{}; by `lower` {}",
        of_heavy(&data.truth, held(|told| told.value)),
        of_heavy(&data.truth, held(|told| told.lower))
    );
    Outcome { updates: stream.len(), cpu, memory_bytes: sketch.memory_bytes(), errors }
}

fn top_k<const WORDS: usize>(data: &Data) -> Outcome {
    let sketch = TopK::<WORDS>::new(HEAVY_BYTES, 1).expect("a good size");
    let cpu = timed(|| {
        for item in &data.items {
            let key = key::<WORDS>(*item);
            sketch.update(hash(&key), &key, 1);
        }
    });
    let held = sketch.entries().into_iter().map(|(key, estimate)| (key[0], estimate.value)).collect();
    Outcome { updates: data.items.len(), cpu, memory_bytes: sketch.memory_bytes(), errors: of_heavy(&data.truth, held) }
}

pub(crate) fn spreaders(data: &Data, many: bool) -> Outcome {
    let sketch = Spreaders::<2>::new(SPREAD_BYTES, 1).expect("a good size");
    let key = |source: u64| [source, !source];
    let cpu = timed(|| {
        let mut batch = Vec::with_capacity(BATCH);
        for contacts in data.contacts.chunks(BATCH) {
            let items = contacts.iter().map(|(source, peer)| (mix(*source), key(*source), mix(!*peer)));
            if many {
                batch.clear();
                batch.extend(items);
                sketch.insert_all(&batch);
            } else {
                items.for_each(|(hash, key, element)| sketch.insert(hash, &key, element));
            }
        }
    });
    let truth = |source: u64| data.spreads.get(&source).copied().unwrap_or(0);
    let listed = sketch.list(SPREAD as f64);
    let hits = listed.iter().filter(|(key, _)| truth(key[0]) >= SPREAD).count();
    let spreaders: Vec<(&u64, &u64)> = data.spreads.iter().filter(|(_, n)| **n >= SPREAD).collect();
    let error = |(source, n): &(&u64, &u64)| {
        (sketch.estimate(mix(**source), &key(**source)).unwrap_or(0.0) / **n as f64 - 1.0).abs()
    };
    let error = spreaders.iter().map(error).sum::<f64>() / spreaders.len() as f64;
    let errors =
        format!("{} there, F1 {:.4}, MRE {error:.4}", spreaders.len(), f1(hits, listed.len(), spreaders.len()));
    Outcome { updates: data.contacts.len(), cpu, memory_bytes: sketch.memory_bytes(), errors }
}

pub(crate) fn f1(hits: usize, said: usize, there: usize) -> f64 {
    2.0 * hits as f64 / (said + there) as f64
}

fn relative(told: f64, truth: f64) -> String {
    format!("{:.2} %", 100.0 * (told / truth - 1.0).abs())
}

/// What an item must have had to be heavy.
fn heavy_of(truth: &HashMap<u64, u64>) -> u64 {
    (truth.values().sum::<u64>() as f64 * HEAVY) as u64
}

/// Of heavy items, on average.
pub(crate) fn of_counts(truth: &HashMap<u64, u64>, estimate: impl Fn(u64) -> u64) -> String {
    let heavy = heavy_of(truth);
    let errors: Vec<f64> = truth
        .iter()
        .filter(|(_, n)| **n >= heavy)
        .map(|(item, n)| estimate(*item).abs_diff(*n) as f64 / *n as f64)
        .collect();
    format!("ARE {:.5}", errors.iter().sum::<f64>() / errors.len() as f64)
}

pub(crate) fn of_heavy(truth: &HashMap<u64, u64>, held: HashMap<u64, u64>) -> String {
    let heavy = heavy_of(truth);
    let truth: Vec<(&u64, &u64)> = truth.iter().filter(|(_, n)| **n >= heavy).collect();
    let told = |item: &u64| held.get(item).copied().unwrap_or(0);
    let hits = truth.iter().filter(|(item, _)| told(item) >= heavy).count();
    let said = held.values().filter(|n| **n >= heavy).count();
    let error = truth.iter().map(|(item, n)| told(item).abs_diff(**n) as f64 / **n as f64).sum::<f64>();
    format!("{} there, F1 {:.4}, ARE {:.5}", truth.len(), f1(hits, said, truth.len()), error / truth.len() as f64)
}

/// The largest of some quantiles' relative errors.
fn of_quantiles(data: &Data, mut quantile: impl FnMut(f64) -> f64) -> String {
    let error = |q: f64| {
        let truth = data.sorted[(q * (data.sorted.len() - 1) as f64) as usize] as f64;
        (quantile(q) / truth - 1.0).abs()
    };
    let worst = [0.01, 0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999].map(error).into_iter().fold(0.0, f64::max);
    format!("at most {:.2} %", 100.0 * worst)
}
