//! The sketches against exact counts, over many seeds, with the published bounds.

use proptest::prelude::*;
use sketches::{CountMin, HyperLogLog, UpdateRule, mix};
use std::collections::HashMap;

/// SplitMix64: a seeded stream of well-mixed numbers.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Item hashes of a Zipf stream (exponent `s`; 0 is uniform) over `items` items.
fn zipf(seed: u64, s: f64, items: usize, length: usize) -> Vec<u64> {
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

fn exact(stream: &[u64]) -> HashMap<u64, u64> {
    let mut counts = HashMap::new();
    for hash in stream {
        *counts.entry(*hash).or_default() += 1;
    }
    counts
}

/// Items whose estimate exceeds the truth by more than `epsilon * N`, and the summed error; fails on any too low.
fn errors(sketch: &CountMin, counts: &HashMap<u64, u64>, what: &str) -> (usize, u64) {
    let allowed = sketch.bound().epsilon * sketch.total() as f64;
    let (mut over, mut sum) = (0, 0);
    for (hash, count) in counts {
        let estimate = sketch.estimate(*hash);
        assert!(estimate >= *count, "{what}: item {hash:#x} has {count}, estimated {estimate}");
        over += usize::from((estimate - count) as f64 > allowed);
        sum += estimate - count;
    }
    (over, sum)
}

#[test]
fn count_min_keeps_its_bound_on_zipf_and_uniform_streams() {
    for s in [0.0, 0.8, 1.1] {
        let (mut items, mut over) = (0, 0);
        let mut delta = 0.0;
        for seed in 0..30 {
            let what = format!("zipf {s}, seed {seed}");
            let stream = zipf(seed, s, 5_000, 20_000);
            let counts = exact(&stream);
            let plain = CountMin::new(256, 3, UpdateRule::Plain).unwrap();
            let conservative = CountMin::new(256, 3, UpdateRule::Conservative).unwrap();
            for hash in &stream {
                plain.update(*hash, 1);
                conservative.update(*hash, 1);
            }
            assert_eq!((plain.total(), conservative.total()), (20_000, 20_000));
            let (plain_over, plain_sum) = errors(&plain, &counts, &what);
            let (conservative_over, conservative_sum) = errors(&conservative, &counts, &what);
            assert!(conservative_over <= plain_over && conservative_sum < plain_sum, "{what}");
            items += counts.len();
            over += plain_over;
            delta = plain.bound().delta;
        }
        let share = over as f64 / items as f64;
        assert!(share <= delta, "zipf {s}: {share} of the items are beyond the bound, promised {delta}");
    }
}

#[test]
fn hyper_log_log_keeps_its_standard_error_without_bias() {
    // From counts far below the number of registers through the range where the first estimators were biased.
    for (precision, n) in
        [(4, 100), (10, 10), (10, 1_000), (10, 2_500), (10, 5_000), (10, 50_000), (12, 10_000), (14, 40_000)]
    {
        let trials = 60;
        let (mut sum, mut squares) = (0.0, 0.0);
        let sketch = HyperLogLog::new(precision).unwrap();
        for seed in 0..trials {
            sketch.reset();
            let mut rng = Rng(mix(seed + 1));
            for _ in 0..n {
                let hash = rng.next();
                sketch.insert(hash);
                sketch.insert(hash);
            }
            let error = sketch.estimate() / f64::from(n) - 1.0;
            sum += error;
            squares += error * error;
        }
        let (bias, rms) = (sum / trials as f64, (squares / trials as f64).sqrt());
        let expected = sketch.standard_error();
        // The root mean square of 60 draws stays within 1.35 sigma, and their mean within 4 sigma / sqrt(60).
        assert!(rms <= 1.35 * expected, "p {precision}, n {n}: rms error {rms}, expected {expected}");
        assert!(bias.abs() <= 4.0 * expected / (trials as f64).sqrt(), "p {precision}, n {n}: bias {bias}");
    }
}

#[test]
fn small_counts_are_nearly_exact() {
    let sketch = HyperLogLog::new(14).unwrap();
    let mut rng = Rng(7);
    for n in 1..=100_u32 {
        sketch.insert(rng.next());
        assert!((sketch.estimate() - f64::from(n)).abs() < 1.5, "{n} estimated as {}", sketch.estimate());
    }
}

#[test]
fn readers_see_growing_estimates_while_one_thread_writes() {
    let count_min = CountMin::new(1024, 4, UpdateRule::Plain).unwrap();
    let distinct = HyperLogLog::new(10).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for i in 0..50_000_u64 {
                count_min.update(42, 1);
                distinct.insert(mix(i));
            }
        });
        let (mut seen, mut cells) = (0, 0.0);
        while seen < 50_000 {
            let now = count_min.estimate(42);
            assert!(now >= seen && now <= 50_000, "{seen} then {now}");
            seen = now;
            let now = distinct.estimate();
            assert!(now >= cells, "{cells} then {now}");
            cells = now;
            std::thread::yield_now();
        }
    });
}

proptest! {
    #[test]
    fn merged_plain_sketches_equal_one_over_both_streams(a in prop::collection::vec((any::<u64>(), 0..1000_u64), 0..200),
                                                          b in prop::collection::vec((any::<u64>(), 0..1000_u64), 0..200)) {
        let make = || (CountMin::new(64, 3, UpdateRule::Plain).unwrap(), HyperLogLog::new(6).unwrap());
        let fill = |(cm, hll): &(CountMin, HyperLogLog), stream: &[(u64, u64)]| {
            for (hash, n) in stream {
                cm.update(*hash, *n);
                hll.insert(*hash);
            }
        };
        let (left, right, both) = (make(), make(), make());
        fill(&left, &a);
        fill(&right, &b);
        fill(&both, &a);
        fill(&both, &b);
        left.0.merge(&right.0).unwrap();
        left.1.merge(&right.1).unwrap();
        prop_assert_eq!(left.0.total(), both.0.total());
        prop_assert_eq!(left.1.estimate(), both.1.estimate());
        for (hash, _) in a.iter().chain(&b) {
            prop_assert_eq!(left.0.estimate(*hash), both.0.estimate(*hash));
        }
        left.0.reset();
        prop_assert!(a.iter().all(|(hash, _)| left.0.estimate(*hash) == 0) && left.0.total() == 0);
    }

    #[test]
    fn no_estimate_is_ever_too_low(stream in prop::collection::vec((0..50_u64, 0..100_u64), 0..300), merged in any::<bool>()) {
        for rule in [UpdateRule::Plain, UpdateRule::Conservative] {
            let (first, second) = (CountMin::new(8, 2, rule).unwrap(), CountMin::new(8, 2, rule).unwrap());
            let mut counts = HashMap::<u64, u64>::new();
            for (i, (item, n)) in stream.iter().enumerate() {
                let sketch = if merged && i % 2 == 0 { &second } else { &first };
                sketch.update(mix(*item), *n);
                *counts.entry(*item).or_default() += n;
            }
            first.merge(&second).unwrap();
            for (item, count) in counts {
                prop_assert!(first.estimate(mix(item)) >= count);
            }
        }
    }
}
