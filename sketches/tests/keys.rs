//! The sketches that keep keys against exact counts, over many seeds.

mod streams;

use sketches::{CocoSketch, Estimate, Spreaders, TopK, mix};
use std::collections::{HashMap, HashSet};
use streams::{Rng, exact, zipf};

/// A key of two words, of which the second is shared by many.
fn key(item: u64) -> [u64; 2] {
    [item, mix(item) % 64]
}

fn hash(item: u64) -> u64 {
    mix(item ^ 0x5eed)
}

fn holds(estimate: Estimate, truth: u64, what: &str) {
    assert!(estimate.lower <= truth && truth <= estimate.upper, "{what}: {truth} is not within {estimate:?}");
}

#[test]
fn coco_bounds_hold_always_and_estimates_are_right_on_average() {
    const SEEDS: u64 = 100;
    let mut errors: HashMap<&str, Vec<f64>> = HashMap::new();
    for seed in 1..=SEEDS {
        // Uniform streams are where a sketch can keep least.
        let s = [0.0, 0.8, 1.2][seed as usize % 3];
        let sketch = CocoSketch::<2>::new(16 << 10, seed).unwrap();
        let mut rng = Rng(seed);
        let stream: Vec<(u64, u64)> =
            zipf(seed, s, 4_000, 20_000).into_iter().map(|item| (item, 1 + rng.next() % 3)).collect();
        for (item, n) in &stream {
            sketch.update(hash(*item), &key(*item), *n);
        }
        let truth = exact(stream.iter().copied());
        assert_eq!(sketch.total(), truth.values().sum::<u64>());
        for (item, n) in &truth {
            holds(sketch.estimate(hash(*item), &key(*item)), *n, &format!("seed {seed}, item {item:#x}"));
        }
        let parts = exact(stream.iter().map(|(item, n)| (key(*item)[1], *n)));
        let by_part: HashMap<u64, Estimate> = sketch.by(|key| key[1]).into_iter().collect();
        assert_eq!(by_part.values().map(|estimate| estimate.value).sum::<u64>(), sketch.total(), "seed {seed}");
        let unheld = Estimate { value: 0, lower: 0, upper: sketch.total() };
        for (part, n) in &parts {
            holds(by_part.get(part).copied().unwrap_or(unheld), *n, &format!("seed {seed}, part {part}"));
        }
        // Of sets of keys that are chosen without looking at the sketch.
        let kind = ["uniform", "0.8", "1.2"][seed as usize % 3];
        for part in 0..8 {
            let truth = parts.get(&part).copied().unwrap_or(0) as f64;
            let estimate = by_part.get(&part).map_or(0, |estimate| estimate.value) as f64;
            errors.entry(kind).or_default().push((estimate - truth) / truth.max(1.0));
        }
    }
    for (kind, errors) in errors {
        let n = errors.len() as f64;
        let mean = errors.iter().sum::<f64>() / n;
        let deviation = (errors.iter().map(|e| (e - mean).powi(2)).sum::<f64>() / n).sqrt();
        assert!(mean.abs() < 4.0 * deviation / n.sqrt(), "{kind}: off by {mean} on average, deviation {deviation}");
    }
}

/// The parts of a five-tuple that the CocoSketch paper asks for (section 7.1): the whole, both addresses, each address with its port,
/// each address.
const PARTS: [(&str, [u64; 2]); 6] = [
    ("five-tuple", [u64::MAX, u64::MAX]),
    ("source and destination", [u64::MAX, 0]),
    ("source and its port", [u64::MAX << 32, 0xffff << 16]),
    ("destination and its port", [u64::MAX >> 32, 0xffff]),
    ("source", [u64::MAX << 32, 0]),
    ("destination", [u64::MAX >> 32, 0]),
];

/// A flow of a network in which a few addresses and ports have most flows: `source, destination`, then `protocol, ports`.
fn five_tuple(flow: u64) -> [u64; 2] {
    // Of `n` the first ones are likelier, as in a Zipf distribution of exponent 1.
    let skewed = |n: f64, salt: u64| n.powf((mix(flow ^ salt << 40) >> 11) as f64 / (1_u64 << 53) as f64) as u64;
    let (source, destination) = (0x0a00_0000 + skewed(20_000.0, 1), 0xc0a8_0000 + skewed(5_000.0, 2));
    let (source_port, port) = (1_024 + mix(flow ^ 3) % 60_000, skewed(1_000.0, 4));
    [source << 32 | destination, 6 << 32 | source_port << 16 | port]
}

/// Heavy is what has a thousandth of all packets or more. One sketch of 512 KiB, with room for 15,400 of 30,000 flows, is asked
/// for all six.
#[test]
fn one_sketch_finds_the_heavy_hitters_of_six_keys() {
    const PACKETS: usize = 300_000;
    const HEAVY: u64 = PACKETS as u64 / 1_000;
    for seed in 1..=5 {
        let sketch = CocoSketch::<2>::new(512 << 10, seed).unwrap();
        let stream: Vec<[u64; 2]> = zipf(seed, 1.0, 30_000, PACKETS).into_iter().map(five_tuple).collect();
        stream.iter().for_each(|key| sketch.update(hash(key[0] ^ mix(key[1])), key, 1));
        for (name, mask) in PARTS {
            let part = |key: &[u64; 2]| [key[0] & mask[0], key[1] & mask[1]];
            let truth = exact(stream.iter().map(|key| (part(key), 1)));
            let heavy = truth.values().filter(|n| **n >= HEAVY).count();
            let told: Vec<[u64; 2]> =
                sketch.by(part).into_iter().filter(|(_, n)| n.value >= HEAVY).map(|(key, _)| key).collect();
            let hits = told.iter().filter(|key| truth.get(*key).is_some_and(|n| *n >= HEAVY)).count();
            let f1 = 2.0 * hits as f64 / (told.len() + heavy) as f64;
            assert!(heavy >= 20 && f1 >= 0.97, "seed {seed}, {name}: {heavy} heavy ones, F1 {f1}");
        }
    }
}

#[test]
fn a_frequent_key_is_counted_exactly_once_it_is_held() {
    for seed in 1..=20 {
        let sketch = CocoSketch::<2>::new(16 << 10, seed).unwrap();
        let stream = zipf(seed, 1.3, 10_000, 60_000);
        stream.iter().for_each(|item| sketch.update(hash(*item), &key(*item), 1));
        let truth = exact(stream.into_iter().map(|item| (item, 1)));
        let mut most: Vec<(&u64, &u64)> = truth.iter().collect();
        most.sort_by_key(|(_, n)| std::cmp::Reverse(**n));
        for (item, n) in &most[..20] {
            let Estimate { value, .. } = sketch.estimate(hash(**item), &key(**item));
            assert!(value.abs_diff(**n) <= **n / 50, "seed {seed}: {n} estimated as {value}");
        }
    }
}

#[test]
fn merged_coco_sketches_keep_their_bounds() {
    for seed in 1..=30 {
        let [a, b] = [0, 1].map(|_| CocoSketch::<2>::new(16 << 10, 1).unwrap());
        let streams = [zipf(seed, 1.0, 3_000, 10_000), zipf(seed + 1_000, 0.5, 3_000, 10_000)];
        for (sketch, stream) in [&a, &b].into_iter().zip(&streams) {
            stream.iter().for_each(|item| sketch.update(hash(*item), &key(*item), 1));
        }
        a.merge(&b).unwrap();
        let truth = exact(streams.iter().flatten().map(|item| (*item, 1)));
        assert_eq!(a.total(), 20_000);
        for (item, n) in &truth {
            holds(a.estimate(hash(*item), &key(*item)), *n, &format!("seed {seed}, item {item:#x}"));
        }
    }
    let refused =
        |other: &CocoSketch<2>| CocoSketch::<2>::new(16 << 10, 1).unwrap().merge(other).unwrap_err().to_string();
    assert!(refused(&CocoSketch::new(32 << 10, 1).unwrap()).starts_with("cannot merge: memory_bytes is "));
    assert!(refused(&CocoSketch::new(16 << 10, 2).unwrap()).starts_with("cannot merge: hash_id is 1 here and 2 there"));
}

#[test]
fn top_k_misses_no_key_above_its_offset() {
    for seed in 1..=100 {
        let s = [0.0, 0.9, 1.3][seed as usize % 3];
        let top = TopK::<2>::new(16 << 10, seed).unwrap();
        let mut rng = Rng(seed);
        let stream: Vec<(u64, u64)> =
            zipf(seed, s, 5_000, 20_000).into_iter().map(|item| (item, 1 + rng.next() % 5)).collect();
        stream.iter().for_each(|(item, n)| top.update(hash(*item), &key(*item), *n));
        let truth = exact(stream.iter().copied());
        assert!(top.offset() <= 3 * top.total() / top.capacity() as u64, "seed {seed}: offset {}", top.offset());
        let held: HashMap<[u64; 2], Estimate> = top.entries().into_iter().collect();
        assert!(held.len() <= top.capacity());
        for (item, n) in &truth {
            let estimate = top.estimate(hash(*item), &key(*item));
            holds(estimate, *n, &format!("seed {seed}, item {item:#x}"));
            assert!(*n <= top.offset() || held.contains_key(&key(*item)), "seed {seed}: {n} is missing");
            assert_eq!(held.get(&key(*item)).copied().unwrap_or(estimate), estimate, "seed {seed}");
        }
        // What is held is what came.
        assert!(held.keys().all(|held| truth.contains_key(&held[0])), "seed {seed}");
    }
}

#[test]
fn merged_top_k_keep_their_bounds() {
    for seed in 1..=30 {
        let [a, b] = [0, 1].map(|_| TopK::<2>::new(8 << 10, 3).unwrap());
        let streams = [zipf(seed, 1.0, 3_000, 10_000), zipf(seed + 1_000, 0.5, 3_000, 10_000)];
        for (sketch, stream) in [&a, &b].into_iter().zip(&streams) {
            stream.iter().for_each(|item| sketch.update(hash(*item), &key(*item), 1));
        }
        a.merge(&b).unwrap();
        for (item, n) in exact(streams.iter().flatten().map(|item| (*item, 1))) {
            holds(a.estimate(hash(item), &key(item)), n, &format!("seed {seed}, item {item:#x}"));
        }
    }
}

/// Both have the same places for keys, and the same numbers to decide by: what is merged into another one is not to depend
/// on that.
#[test]
fn merged_coco_sketches_are_right_on_average() {
    let (mut sums, mut squares) = ([0.0; 3], [0.0; 3]);
    const SEEDS: u64 = 3_000;
    for seed in 0..SEEDS {
        // One bucket of eight.
        let [a, b] = [0, 1].map(|_| CocoSketch::<1>::new(8 * (2 + 16 + 8), seed).unwrap());
        (0..8).for_each(|item| a.update(hash(item), &[item], 10));
        (100..109).for_each(|item| b.update(hash(item), &[item], 10));
        a.merge(&b).unwrap();
        for (at, item) in [0, 100, 108].into_iter().enumerate() {
            let error = a.estimate(hash(item), &[item]).value as f64 - 10.0;
            (sums[at], squares[at]) = (sums[at] + error, squares[at] + error * error);
        }
    }
    for (sum, square) in sums.into_iter().zip(squares) {
        let n = SEEDS as f64;
        assert!((sum / n).abs() < 4.0 * (square / n / n).sqrt(), "off by {} on average", sum / n);
    }
}

/// A table is filled from the front where it is filled in the order of another one.
#[test]
fn large_tables_are_merged_in_little_time() {
    let [a, b] = [0, 1].map(|_| TopK::<1>::new(24 << 16, 1).unwrap());
    (0..30_000).for_each(|item| a.update(hash(item), &[item], 1));
    (50_000..90_000).for_each(|item| b.update(hash(item), &[item], 1));
    a.merge(&b).unwrap();
    assert_eq!(a.total(), 70_000);
    let [a, b] = [0, 1].map(|_| sketches::Entropy::new(16 << 16).unwrap());
    (0..30_000).for_each(|item| a.update(hash(item), 1));
    (50_000..90_000).for_each(|item| b.update(hash(item), 1));
    a.merge(&b).unwrap();
    assert!((a.bits([]).items / 70_000.0 - 1.0).abs() < 0.05);
}

/// Who contacted how many others, with repetitions.
fn contacts(seed: u64, sources: usize, length: usize) -> (Vec<(u64, u64)>, HashMap<u64, u64>) {
    let mut rng = Rng(seed);
    let pairs: Vec<(u64, u64)> =
        zipf(seed, 1.0, sources, length).into_iter().map(|source| (source, rng.next() % 3_000)).collect();
    let mut distinct: HashMap<u64, HashSet<u64>> = HashMap::new();
    for (source, peer) in &pairs {
        distinct.entry(*source).or_default().insert(*peer);
    }
    (pairs, distinct.into_iter().map(|(source, peers)| (source, peers.len() as u64)).collect())
}

#[test]
fn spreads_of_keys_that_fit_keep_their_standard_error_without_bias() {
    let (mut errors, mut n) = ((0.0, 0.0), 0.0);
    for seed in 1..=40 {
        let sketch = Spreaders::<2>::new(1 << 20, seed).unwrap();
        let (pairs, truth) = contacts(seed, 2_000, 30_000);
        pairs.iter().for_each(|(source, peer)| sketch.insert(hash(*source), &key(*source), mix(*peer)));
        for (source, spread) in &truth {
            let estimate = sketch.estimate(hash(*source), &key(*source)).expect("all fit");
            if *spread >= 200 {
                let error = estimate / *spread as f64 - 1.0;
                assert!(error.abs() < 6.0 * sketch.standard_error(), "seed {seed}: {spread} estimated as {estimate}");
                errors = (errors.0 + error, errors.1 + error * error);
                n += 1.0;
            }
        }
    }
    let error = (errors.1 / n).sqrt();
    assert!(n > 500.0 && (errors.0 / n).abs() < 4.0 * error / n.sqrt(), "biased by {}", errors.0 / n);
    let expected = Spreaders::<2>::new(1 << 20, 0).unwrap().standard_error();
    assert!((error / expected - 1.0).abs() < 0.2, "error {error}, promised {expected}");
}

#[test]
fn spreaders_are_found_among_more_sources_than_fit() {
    for seed in 1..=10 {
        // Room for 1,450 of 20,000.
        let sketch = Spreaders::<2>::new(128 << 10, seed).unwrap();
        let (mut pairs, mut truth) = contacts(seed, 20_000, 60_000);
        // Late ones, when everything is full.
        for late in 0..5 {
            let source = mix(!seed ^ late);
            pairs.extend((0..2_000).map(|peer| (source, peer)));
            truth.insert(source, 2_000);
        }
        pairs.iter().for_each(|(source, peer)| sketch.insert(hash(*source), &key(*source), mix(*peer)));
        let found: HashMap<u64, f64> = sketch.list(500.0).into_iter().map(|(key, spread)| (key[0], spread)).collect();
        for (source, spread) in &truth {
            match found.get(source) {
                Some(estimate) => {
                    let error = estimate / *spread as f64 - 1.0;
                    assert!(error.abs() < 6.0 * sketch.standard_error(), "seed {seed}: {spread} as {estimate}");
                }
                None => assert!(*spread < 800, "seed {seed}: one with {spread} is missing"),
            }
        }
        let crowding = sketch.crowding();
        assert!(crowding > 0.0);
        // What a cell had before its key is within what it says of it, and what has no cell had few.
        let held: HashMap<u64, f64> = sketch.list(0.0).into_iter().map(|(key, spread)| (key[0], spread)).collect();
        for (source, estimate) in &held {
            let most = truth[source] as f64 * (1.0 + 6.0 * sketch.standard_error()) + 2.0 * crowding;
            assert!(*estimate <= most, "seed {seed}: {} as {estimate}, crowding {crowding}", truth[source]);
        }
        let missing = truth.iter().filter(|(source, _)| !held.contains_key(source));
        let (all, many) = missing
            .fold((0, 0), |(all, many), (_, spread)| (all + 1, many + u32::from(*spread as f64 > 6.0 * crowding)));
        assert!(many * 20 <= all, "seed {seed}: {many} of {all}");
    }
}

#[test]
fn merged_spreads_are_those_of_both_streams() {
    for seed in 1..=10 {
        let [a, b] = [0, 1].map(|_| Spreaders::<2>::new(1 << 20, 1).unwrap());
        let (pairs, truth) = contacts(seed, 1_000, 30_000);
        // Every contact is seen by one or both.
        for (at, (source, peer)) in pairs.iter().enumerate() {
            for (sketch, _) in [&a, &b].into_iter().zip(0..).filter(|(_, part)| at % 3 != *part) {
                sketch.insert(hash(*source), &key(*source), mix(*peer));
            }
        }
        a.merge(&b).unwrap();
        for (source, spread) in truth.iter().filter(|(_, spread)| **spread >= 100) {
            let estimate = a.estimate(hash(*source), &key(*source)).unwrap();
            let error = estimate / *spread as f64 - 1.0;
            assert!(error.abs() < 6.0 * 0.116, "seed {seed}: {spread} estimated as {estimate}");
        }
    }
}

#[test]
fn many_at_a_time_are_the_same_as_one_by_one() {
    let (pairs, _) = contacts(5, 20_000, 50_000);
    let [one, many] = [0, 1].map(|_| Spreaders::<2>::new(64 << 10, 1).unwrap());
    let items: Vec<(u64, [u64; 2], u64)> =
        pairs.iter().map(|(source, peer)| (hash(*source), key(*source), mix(*peer))).collect();
    items.iter().for_each(|(hash, key, element)| one.insert(*hash, key, *element));
    items.chunks(37).for_each(|items| many.insert_all(items));
    assert_eq!(one.list(0.0), many.list(0.0));
}

/// Readers ask in a loop beside a writer: what they are told is of a moment between the one before they ask and the one after.
#[test]
fn many_counts_at_a_time_are_the_same_as_one_by_one() {
    let (one, many) = (CocoSketch::<2>::new(16 << 10, 7).unwrap(), CocoSketch::<2>::new(16 << 10, 7).unwrap());
    let items: Vec<(u64, [u64; 2], u64)> =
        (0..20_000_u64).map(|n| n * n % 3_001).map(|item| (hash(item), key(item), 1 + item % 9)).collect();
    items.iter().for_each(|(hash, key, n)| one.update(*hash, key, *n));
    items.chunks(101).for_each(|items| many.update_all(items));
    assert_eq!(one.to_bytes(), many.to_bytes());
}

#[test]
fn readers_are_told_of_a_moment_while_one_thread_writes() {
    use sketches::{CountMin, UpdateRule};
    use std::sync::atomic::{
        AtomicU64,
        Ordering::{Acquire, Release},
    };
    let (coco, top) = (CocoSketch::<2>::new(8 << 10, 1).unwrap(), TopK::<2>::new(8 << 10, 1).unwrap());
    let count_min = CountMin::new(256, 3, UpdateRule::Plain).unwrap();
    const ROUNDS: u64 = 40_000;
    // How often each of two frequent keys has come. Four others come with them.
    let done = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut before = done.load(Acquire);
                while before < ROUNDS {
                    let told = [0, 1].map(|item| {
                        let (hash, key) = (hash(item), key(item));
                        (coco.estimate(hash, &key), top.estimate(hash, &key), count_min.estimate(hash))
                    });
                    let of_part: u64 = coco.by(|key| key[0]).iter().map(|(_, part)| part.lower).sum();
                    let after = done.load(Acquire) + 1;
                    for (coco, top, count) in told {
                        assert!(coco.upper >= before && coco.lower <= after, "{coco:?}, {before} to {after}");
                        assert!(top.upper >= before && top.lower <= after, "{top:?}, {before} to {after}");
                        assert!(count >= before, "{count}, {before} to {after}");
                    }
                    assert!(of_part <= 6 * after, "{of_part} at {after}");
                    before = after - 1;
                }
            });
        }
        let mut rng = Rng(5);
        for round in 1..=ROUNDS {
            let others = [0; 4].map(|_| 2 + rng.next() % 3_000);
            for item in [0, 1].into_iter().chain(others) {
                coco.update(hash(item), &key(item), 1);
                top.update(hash(item), &key(item), 1);
                count_min.update(hash(item), 1);
            }
            done.store(round, Release);
        }
    });
}

/// Keys never mix: a reader sees none that was not put in, with what belongs to it, while one thread writes.
#[test]
fn readers_see_no_torn_keys() {
    let (coco, top) = (CocoSketch::<5>::new(4 << 10, 1).unwrap(), TopK::<5>::new(4 << 10, 1).unwrap());
    let spreaders = Spreaders::<5>::new(4 << 10, 1).unwrap();
    let whole = |item: u64| -> [u64; 5] { std::array::from_fn(|word| mix(item.wrapping_add(word as u64))) };
    // Words of a key follow from the first one.
    let items: HashMap<u64, u64> = (0..2_000).map(|item| (mix(item), item)).collect();
    let is_whole = |key: &[u64; 5]| items.get(&key[0]).is_some_and(|item| whole(*item) == *key);
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let readers = (0..2).map(|_| {
            scope.spawn(|| {
                let mut looks = 0;
                while !done.load(std::sync::atomic::Ordering::Relaxed) || looks < 10 {
                    for (key, estimate) in coco.entries().into_iter().chain(top.entries()) {
                        assert!(is_whole(&key), "{key:x?}");
                        assert!(estimate.lower <= estimate.value && estimate.value <= estimate.upper, "{estimate:?}");
                    }
                    for (key, spread) in spreaders.list(0.0) {
                        assert!(is_whole(&key) && (0.0..1e9).contains(&spread), "{key:x?} {spread}");
                    }
                    looks += 1;
                }
            })
        });
        let readers: Vec<_> = readers.collect();
        let mut rng = Rng(3);
        for _ in 0..300_000 {
            let item = rng.next() % 2_000;
            coco.update(hash(item), &whole(item), 1);
            top.update(hash(item), &whole(item), 1);
            spreaders.insert(hash(item), &whole(item), rng.next());
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        readers.into_iter().for_each(|reader| reader.join().unwrap());
    });
}
