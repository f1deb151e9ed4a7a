//! The sketches against exact counts, over many seeds, with the published bounds.

mod streams;

use proptest::prelude::*;
use sketches::{Bloom, CocoSketch, CountMin, CountSketch, Entropy, HyperLogLog, Quantiles, TopK, UpdateRule, mix};
use std::collections::HashMap;
use streams::{Rng, exact, zipf};

/// Memory made for an error keeps it, and no more than four times less would.
#[test]
fn memory_follows_from_the_error_and_the_error_from_memory() {
    for error in [0.2, 0.1, 0.03, 0.01, 0.0031] {
        let coco = CocoSketch::<3>::new(CocoSketch::<3>::memory_for(error), 1).unwrap();
        assert!(coco.error() <= error && coco.error() * 2.0 > error, "{error}: {}", coco.error());
        let top = TopK::<3>::new(TopK::<3>::memory_for(error), 1).unwrap();
        assert!(top.error() <= error && top.error() * 4.0 > error, "{error}: {}", top.error());
        let distinct = HyperLogLog::new(HyperLogLog::precision_for(error)).unwrap();
        assert!(distinct.standard_error() <= error, "{error}: {}", distinct.standard_error());
        if distinct.precision() > HyperLogLog::PRECISION_MIN {
            assert!(HyperLogLog::new(distinct.precision() - 1).unwrap().standard_error() > error);
        }
        assert_eq!(Quantiles::memory_for(error), Quantiles::new(error).unwrap().memory_bytes());
    }
    assert_eq!(HyperLogLog::precision_for(0.0), HyperLogLog::PRECISION_MAX);
    assert!(CocoSketch::<3>::new(CocoSketch::<3>::memory_for(0.0), 1).is_err());
}

fn exact_of(stream: &[u64]) -> HashMap<u64, u64> {
    exact(stream.iter().map(|hash| (*hash, 1)))
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
            let counts = exact_of(&stream);
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
fn many_counts_at_a_time_are_the_same_as_one_by_one() {
    for depth in 1..=7 {
        for rule in [UpdateRule::Plain, UpdateRule::Conservative] {
            let [one, many] = [0, 1].map(|_| CountMin::new(64, depth, rule).unwrap());
            let mut rng = Rng(depth as u64);
            let mut stream: Vec<(u64, u64)> =
                zipf(3, 0.9, 300, 5_000).into_iter().map(|hash| (hash, rng.next() % 9)).collect();
            // Near the end of what a cell holds.
            stream.extend([(1, u64::MAX - 7), (1, 9), (2, u64::MAX)]);
            stream.iter().for_each(|(hash, n)| one.update(*hash, *n));
            stream.chunks(37).for_each(|items| many.update_all(items.iter().copied()));
            assert_eq!(one.to_bytes(), many.to_bytes(), "{depth} rows, {rule:?}");
        }
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

#[test]
fn count_sketch_keeps_its_bound_without_bias() {
    for (width, depth, s) in [(256, 5, 1.1), (1_024, 3, 0.8), (64, 7, 0.0)] {
        let (mut over, mut items, mut sum, mut squares) = (0.0, 0.0, 0.0, 0.0);
        for seed in 0..100 {
            let stream = zipf(seed, s, 400, 4_000);
            let sketch = CountSketch::new(width, depth).unwrap();
            stream.iter().for_each(|item| sketch.update(*item, 1));
            let counts = exact_of(&stream);
            let moment: f64 = counts.values().map(|count| (*count as f64).powi(2)).sum();
            let told = sketch.second_moment();
            assert!((told / moment - 1.0).abs() < 8.0 / (width as f64).sqrt(), "seed {seed}: {told}, {moment}");
            let (epsilon, _) = sketch.bound();
            for (item, count) in &counts {
                let error = sketch.estimate(*item) as f64 - *count as f64;
                over += f64::from(error.abs() > epsilon * moment.sqrt());
                (sum, squares, items) = (sum + error, squares + error * error, items + 1.0);
            }
        }
        let (_, delta) = CountSketch::new(width, depth).unwrap().bound();
        assert!(over / items <= delta, "{width} x {depth}: {over} of {items} beyond the bound, allowed {delta}");
        let deviation = (squares / items).sqrt();
        // Items of one stream err together, so there are as many samples as streams.
        assert!((sum / items).abs() < 4.0 * deviation / 10.0, "{width} x {depth}: biased by {}", sum / items);
    }
}

#[test]
fn what_two_count_sketches_differ_by_is_what_changed() {
    let [before, after] = [0, 1].map(|_| CountSketch::new(4_096, 5).unwrap());
    let stream = zipf(3, 0.9, 1_000, 20_000);
    for item in &stream {
        before.update(*item, 1);
        after.update(*item, 1);
    }
    after.update(mix(77), 500);
    after.update(stream[0], -3);
    after.subtract(&before).unwrap();
    assert_eq!((after.estimate(mix(77)), after.estimate(stream[0]), after.estimate(mix(78))), (500, -3, 0));
    before.merge(&after).unwrap();
    let refused = before.merge(&CountSketch::new(4_096, 3).unwrap()).unwrap_err().to_string();
    assert_eq!(refused, "cannot merge: depth is 5 here and 3 there; build both with the same depth");
}

#[test]
fn quantiles_are_within_their_error_always() {
    for seed in 1..=100 {
        let mut rng = Rng(seed);
        let alpha = [0.005, 0.02, 0.1][seed as usize % 3];
        let parts = [0, 1].map(|_| Quantiles::new(alpha).unwrap());
        let mut values: Vec<u64> = (0..2_000)
            .map(|_| match seed % 4 {
                0 => rng.next() >> (rng.next() % 64),
                1 => rng.next() % 3,
                2 => 40_000 + rng.next() % 100,
                _ => (1.0 / (1.0 - rng.unit()).powf(2.0)) as u64,
            })
            .collect();
        values.iter().for_each(|value| parts[(rng.next() % 2) as usize].insert(*value, 1));
        let sketch = &parts[0];
        sketch.merge(&parts[1]).unwrap();
        values.sort_unstable();
        assert_eq!((sketch.count(), sketch.extremes()), (2_000, Some((values[0], values[1_999]))));
        for percent in 0..=100 {
            let q = f64::from(percent) / 100.0;
            let truth = values[(q * 1_999.0).floor() as usize] as f64;
            let told = sketch.quantile(q).unwrap();
            assert!((told - truth).abs() <= truth * alpha * (1.0 + 1e-9), "seed {seed}, q {q}: {told}, truth {truth}");
        }
        sketch.reset();
        assert_eq!((sketch.quantile(0.5), sketch.extremes(), sketch.count()), (None, None, 0));
    }
    let extreme = Quantiles::new(0.01).unwrap();
    [0, 1, u64::MAX].iter().for_each(|value| extreme.insert(*value, 1));
    assert_eq!([0.0, 0.5, 1.0].map(|q| extreme.quantile(q).unwrap()), [0.0, 0.99, u64::MAX as f64]);
}

#[test]
fn bloom_forgets_nothing_and_errs_as_it_says() {
    for (items, share) in [(1_000, 0.01), (5_000, 0.001), (100, 0.2), (20_000, 0.05)] {
        let (mut taken, mut predicted) = (0, 0.0);
        for seed in 0..20 {
            let filter = Bloom::with_bound(items, share).unwrap();
            let mut rng = Rng(seed);
            let there: Vec<u64> = (0..items).map(|_| rng.next()).collect();
            let new = there.iter().filter(|hash| filter.insert(**hash)).count();
            assert!(filter.len() == new as u64 && new as f64 >= items as f64 * (1.0 - 2.0 * share));
            assert!(there.iter().all(|hash| filter.contains(*hash) && !filter.insert(*hash)), "seed {seed}");
            taken += (0..5_000).filter(|_| filter.contains(rng.next())).count();
            predicted += filter.false_positives();
        }
        let (told, measured) = (predicted / 20.0, taken as f64 / 100_000.0);
        assert!(
            told <= share && measured <= share * 1.1 + 1e-4,
            "{items}: {measured} measured, {told} told, {share} asked"
        );
        assert!((measured - told).abs() <= told * 0.3 + 2e-4, "{items}: {measured} measured, {told} told");
    }
    let told = |result: Result<Bloom, sketches::SketchError>| result.unwrap_err().to_string();
    assert_eq!(told(Bloom::with_bound(0, 0.1)), "items is 0, allowed is at least 1");
    assert_eq!(told(Bloom::with_bound(1, 1.0)), "false_positives is 1, allowed is between 0 and 1, both excluded");
    assert_eq!(told(Bloom::new(63)), "memory_bytes is 63, allowed is 64 to 8 GiB");
}

fn entropy_of(counts: &HashMap<u64, u64>) -> f64 {
    let total = counts.values().sum::<u64>() as f64;
    counts.values().map(|count| *count as f64 / total).map(|share| -share * share.log2()).sum()
}

#[test]
fn entropy_of_few_items_is_exact() {
    for seed in 1..=20 {
        let stream = zipf(seed, 0.7, 700, 5_000);
        let (a, b) = (Entropy::new(16 << 10).unwrap(), Entropy::new(16 << 10).unwrap());
        stream.iter().enumerate().for_each(|(at, hash)| [&a, &b][at % 2].update(*hash, 1));
        a.merge(&b).unwrap();
        let counts = exact_of(&stream);
        // What a sketch says of an item that is counted does not matter.
        for head in [None, Some((stream[0], 7))] {
            let bits = a.bits(head);
            assert!((bits.value - entropy_of(&counts)).abs() < 1e-9, "seed {seed}: {bits:?}");
            assert_eq!((bits.standard_error, bits.items), (0.0, counts.len() as f64), "seed {seed}");
        }
    }
    let none = Entropy::new(256).unwrap();
    assert_eq!((none.bits([]).value, none.bits([]).evenness()), (0.0, 1.0));
    none.update(5, 3);
    assert_eq!((none.bits([]).value, none.bits([]).evenness()), (0.0, 1.0));
}

#[test]
fn entropy_of_many_items_keeps_its_standard_error() {
    for (s, head) in [(0.0, 0), (0.8, 50), (1.1, 200), (1.3, 200)] {
        let (mut errors, mut told) = (0.0, 0.0);
        const SEEDS: u64 = 60;
        for seed in 1..=SEEDS {
            let stream = zipf(seed, s, 20_000, 60_000);
            let sketch = Entropy::new(64 << 10).unwrap();
            stream.iter().for_each(|hash| sketch.update(*hash, 1));
            let counts = exact_of(&stream);
            let mut most: Vec<(u64, u64)> = counts.iter().map(|(hash, count)| (*hash, *count)).collect();
            most.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
            let bits = sketch.bits(most[..head].iter().copied());
            let error = bits.value - entropy_of(&counts);
            assert!(error.abs() < 6.0 * bits.standard_error, "seed {seed}, s {s}: off by {error}, {bits:?}");
            assert!((bits.items / counts.len() as f64 - 1.0).abs() < 0.25, "seed {seed}: {bits:?}");
            (errors, told) = (errors + error * error, told + bits.standard_error * bits.standard_error);
        }
        let ratio = (errors / told).sqrt();
        assert!((0.6..1.5).contains(&ratio), "s {s}: errors are {ratio} times what was told");
        assert!((told / SEEDS as f64).sqrt() < 0.15, "s {s}: {} bits", (told / SEEDS as f64).sqrt());
    }
}
