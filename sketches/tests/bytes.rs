//! Sketches written down and read again, and bytes that are none.

mod streams;

use sketches::{
    Bloom, CocoSketch, CountMin, CountSketch, Entropy, HyperLogLog, Quantiles, SketchError, Spreaders, TopK,
    UpdateRule, mix,
};
use streams::{Rng, zipf};

/// The bytes of a sketch of each kind, and how each is read and written again.
type Again = fn(&[u8]) -> Result<Vec<u8>, SketchError>;

fn all(seed: u64) -> Vec<(&'static str, Vec<u8>, Again)> {
    let count_min = CountMin::new(64, 3, UpdateRule::Conservative).unwrap();
    let count_sketch = CountSketch::new(64, 3).unwrap();
    let coco = CocoSketch::<2>::new(4_096, seed).unwrap();
    let top = TopK::<2>::new(4_096, seed).unwrap();
    let spreaders = Spreaders::<2>::new(8_192, seed).unwrap();
    let hyper_log_log = HyperLogLog::new(6).unwrap();
    let quantiles = Quantiles::new(0.05).unwrap();
    let bloom = Bloom::new(1_024).unwrap();
    let entropy = Entropy::new(1_024).unwrap();
    let mut rng = Rng(seed);
    for item in zipf(seed, 1.0, 500, 3_000) {
        let (hash, key) = (mix(item), [item, !item]);
        count_min.update(hash, 3);
        count_sketch.update(hash, -2);
        coco.update(hash, &key, 5);
        top.update(hash, &key, 5);
        spreaders.insert(hash, &key, rng.next());
        hyper_log_log.insert(hash);
        quantiles.insert(rng.next() >> (rng.next() % 64), 1);
        bloom.insert(hash);
        entropy.update(hash, 1);
    }
    vec![
        ("Count-Min", count_min.to_bytes(), |bytes| Ok(CountMin::from_bytes(bytes)?.to_bytes())),
        ("Count-Sketch", count_sketch.to_bytes(), |bytes| Ok(CountSketch::from_bytes(bytes)?.to_bytes())),
        ("CocoSketch", coco.to_bytes(), |bytes| Ok(CocoSketch::<2>::from_bytes(bytes, 1 << 20)?.to_bytes())),
        ("top-k", top.to_bytes(), |bytes| Ok(TopK::<2>::from_bytes(bytes, 1 << 20)?.to_bytes())),
        ("superspreader", spreaders.to_bytes(), |bytes| Ok(Spreaders::<2>::from_bytes(bytes, 1 << 20)?.to_bytes())),
        ("HyperLogLog", hyper_log_log.to_bytes(), |bytes| Ok(HyperLogLog::from_bytes(bytes)?.to_bytes())),
        ("quantile", quantiles.to_bytes(), |bytes| Ok(Quantiles::from_bytes(bytes)?.to_bytes())),
        ("Bloom", bloom.to_bytes(), |bytes| Ok(Bloom::from_bytes(bytes)?.to_bytes())),
        ("entropy", entropy.to_bytes(), |bytes| Ok(Entropy::from_bytes(bytes, 1 << 20)?.to_bytes())),
    ]
}

#[test]
fn what_is_read_is_what_was_written() {
    for seed in 1..=10 {
        for (kind, bytes, again) in all(seed) {
            let read = again(&bytes).unwrap();
            match kind {
                // Counters that share a place may change it.
                "top-k" => assert_eq!(read.len(), bytes.len(), "seed {seed}"),
                _ => assert_eq!(read, bytes, "seed {seed}: {kind}"),
            }
        }
    }
}

#[test]
fn a_top_k_that_is_read_says_the_same() {
    let top = TopK::<1>::new(1_024, 9).unwrap();
    zipf(9, 1.0, 300, 2_000).iter().for_each(|item| top.update(mix(*item), &[*item], 7));
    let read = TopK::<1>::from_bytes(&top.to_bytes(), 1 << 20).unwrap();
    assert_eq!((read.entries(), read.offset(), read.total()), (top.entries(), top.offset(), top.total()));
}

#[test]
fn bytes_that_are_no_sketch_are_refused() {
    let sketches = all(3);
    for (kind, bytes, again) in &sketches {
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(again(&flipped).is_err(), "{kind}: bit {bit}");
        }
        for length in 0..bytes.len() {
            assert!(again(&bytes[..length]).is_err(), "{kind}: {length} bytes");
        }
        for (other, foreign, _) in sketches.iter().filter(|(other, ..)| other != kind) {
            let told = again(foreign).unwrap_err().to_string();
            assert_eq!(told, format!("the bytes are of a {other} sketch, a {kind} sketch was expected"));
        }
    }
    let told = |bytes: &[u8]| HyperLogLog::from_bytes(bytes).unwrap_err().to_string();
    assert_eq!(told(b"PAR1"), "the bytes of a sketch are damaged: 4 bytes are none");
    assert_eq!(told(b"a text that is no sketch"), "the bytes of a sketch are damaged: it does not begin with TPSK");
}

#[test]
fn a_sketch_that_takes_more_than_its_reader_allows_is_refused() {
    let told = |result: Result<(), SketchError>| result.unwrap_err().to_string();
    let bytes = TopK::<1>::new(1 << 20, 1).unwrap().to_bytes();
    assert!(bytes.len() < 40);
    let expected = "memory_bytes is 786432, allowed is as much as its reader allows";
    assert_eq!(told(TopK::<1>::from_bytes(&bytes, 700_000).map(drop)), expected);
    let bytes = Entropy::new(1 << 20).unwrap().to_bytes();
    assert!(told(Entropy::from_bytes(&bytes, 1_000).map(drop)).starts_with("memory_bytes is 1048576"));
    let bytes = CocoSketch::<1>::new(1 << 20, 1).unwrap().to_bytes();
    assert!(told(CocoSketch::<1>::from_bytes(&bytes, 1_000).map(drop)).starts_with("memory_bytes is 10"));
}

/// Whatever stands behind a checksum that fits: an answer or an error, and not more memory than there are bytes for.
#[test]
fn what_a_checksum_covers_is_judged_all_the_same() {
    let mut rng = Rng(11);
    for (_, bytes, again) in all(4) {
        for _ in 0..2_000 {
            let mut changed = bytes[..bytes.len() - 4].to_vec();
            for _ in 0..1 + rng.next() % 3 {
                let at = 8 + (rng.next() % (changed.len() as u64 - 8)).min(rng.next() % 64) as usize;
                changed[at] = rng.next() as u8;
            }
            let crc = crc32fast::hash(&changed);
            changed.extend(crc.to_le_bytes());
            let _ = again(&changed);
        }
    }
}
