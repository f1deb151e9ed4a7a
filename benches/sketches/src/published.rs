//! The settings of figures that others have published, with our sketches in place of theirs.

use crate::contest::{
    BATCH, Contestant, Data, HEAVY_BYTES, Outcome, f1, hash, key, of_counts, of_heavy, spreaders, timed,
};
use hashbrown::HashMap;
use sketches::{CocoSketch, CountMin, Estimate, TopK, UpdateRule, mix};

/// Decade-qiu/Go2NetSpectra, `doc/technology.md`: a minute of CAIDA, about 30 million parsed packets in memory, 2 x 8192 cells of
/// 40 bytes, of which each keeps the key of a majority vote; 583 ms with 28 threads of an i7-14700, F1 above 0.98.
const GO: &str = "Go2NetSpectra's setting on one core: 30 M packets in memory, 16-byte source keys, 600,000 sources";
const SIX: &str = "heavy hitters by six keys at once, five-tuples";

const GO_COUNTS_MS: f64 = 583.0;
/// Superspreaders, 84 MB, also 28 threads.
const GO_SPREADS_MS: f64 = 1_880.0;

pub(crate) fn all() -> Vec<Contestant> {
    let one = |group, name, run| Contestant { group, name, run };
    vec![
        one(GO, "Count-Min, 2 x 8192, no keys", |data| {
            let sketch = CountMin::new(8_192, 2, UpdateRule::Plain).expect("a good shape");
            let cpu = timed(|| {
                let hashes = |contact: &(u64, u64)| (hash::<2>(&key(contact.0)), 1);
                data.contacts.chunks(BATCH).for_each(|contacts| sketch.update_all(contacts.iter().map(hashes)));
            });
            let errors = of_counts(&data.sources, |source| sketch.estimate(hash::<2>(&key(source))));
            beside(
                GO_COUNTS_MS,
                Outcome { updates: data.contacts.len(), cpu, memory_bytes: sketch.memory_bytes(), errors },
            )
        }),
        one(GO, "CocoSketch", |data| {
            let sketch = CocoSketch::<2>::new(HEAVY_BYTES, 1).expect("a good size");
            by_source(data, sketch.memory_bytes(), |hash, key| sketch.update(hash, key, 1), || sketch.entries())
        }),
        one(GO, "top-k", |data| {
            let sketch = TopK::<2>::new(HEAVY_BYTES, 1).expect("a good size");
            by_source(data, sketch.memory_bytes(), |hash, key| sketch.update(hash, key, 1), || sketch.entries())
        }),
        one(GO, "superspreaders, 1,024 at a time", |data| beside(GO_SPREADS_MS, spreaders(data, true))),
        one(SIX, "CocoSketch, 512 KiB, one update for all six", |data| six_keys(data, HEAVY_BYTES)),
        one(SIX, "CocoSketch, 2 MiB, one update for all six", |data| six_keys(data, 4 * HEAVY_BYTES)),
    ]
}

/// Packets by their source.
fn by_source(
    data: &Data,
    memory_bytes: usize,
    update: impl Fn(u64, &[u64; 2]),
    entries: impl Fn() -> Vec<([u64; 2], Estimate)>,
) -> Outcome {
    let cpu = timed(|| {
        for (source, _) in &data.contacts {
            let key = key(*source);
            update(hash(&key), &key);
        }
    });
    let held = entries().into_iter().map(|(key, estimate)| (key[0], estimate.value)).collect();
    let errors = of_heavy(&data.sources, held);
    beside(GO_COUNTS_MS, Outcome { updates: data.contacts.len(), cpu, memory_bytes, errors })
}

/// Says how long 30 million take, and how long theirs took.
fn beside(theirs_ms: f64, outcome: Outcome) -> Outcome {
    let ms = outcome.cpu.as_secs_f64() * 1e3 / outcome.updates as f64 * 30e6;
    let errors = format!("{ms:.0} ms for 30 M, theirs {theirs_ms:.0} ms on 28 threads; {}", outcome.errors);
    Outcome { errors, ..outcome }
}

/// The parts that the CocoSketch paper asks for (SIGCOMM 2021, section 7.1): the whole, both addresses, each address with its port,
/// each address.
const PARTS: [(&str, [u64; 2]); 6] = [
    ("five-tuple", [u64::MAX, u64::MAX]),
    ("addresses", [u64::MAX, 0]),
    ("source and port", [u64::MAX << 32, 0xffff << 16]),
    ("destination and port", [u64::MAX >> 32, 0xffff]),
    ("source", [u64::MAX << 32, 0]),
    ("destination", [u64::MAX >> 32, 0]),
];

/// A flow of a network in which a few addresses and ports have most flows.
fn five_tuple(flow: u64) -> [u64; 2] {
    let (a, b) = (mix(flow), mix(!flow));
    // Of `2^bits` the first ones are likelier, about as in a Zipf distribution of exponent 1.
    let skewed = |word: u64, bits: u64| (word & ((1 << bits) - 1)) >> (((word >> 40 & 0xff) * bits) >> 8);
    let (source, destination) = (0x0a00_0000 | skewed(a, 18), 0xc0a8_0000 | skewed(b, 14));
    [source << 32 | destination, 6 << 32 | (1_024 + (a >> 48) / 2) << 16 | skewed(b >> 14, 10)]
}

fn six_keys(data: &Data, memory_bytes: usize) -> Outcome {
    let sketch = CocoSketch::<2>::new(memory_bytes, 1).expect("a good size");
    let cpu = timed(|| {
        for item in &data.items {
            let key = five_tuple(*item);
            sketch.update(hash(&key), &key, 1);
        }
    });
    let mut errors = Vec::new();
    for share in [1e-3, 1e-4] {
        let heavy = (data.items.len() as f64 * share) as u64;
        let f1s = PARTS.map(|(name, mask)| {
            let part = |key: &[u64; 2]| [key[0] & mask[0], key[1] & mask[1]];
            let mut truth: HashMap<[u64; 2], u64> = HashMap::new();
            data.truth.iter().for_each(|(item, n)| *truth.entry(part(&five_tuple(*item))).or_default() += n);
            let told = sketch.by(part).into_iter().filter(|(_, estimate)| estimate.value >= heavy);
            let (hits, said) = told.fold((0, 0), |(hits, said), (key, _)| {
                (hits + usize::from(truth.get(&key).is_some_and(|n| *n >= heavy)), said + 1)
            });
            let f1 = f1(hits, said, truth.values().filter(|n| **n >= heavy).count());
            format!("{name} {f1:.3}")
        });
        errors.push(format!("F1 above {share}: {}", f1s.join(", ")));
    }
    Outcome { updates: data.items.len(), cpu, memory_bytes: sketch.memory_bytes(), errors: errors.join("; ") }
}
