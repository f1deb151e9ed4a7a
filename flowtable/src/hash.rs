//! The hash that decides where a flow lies: keyed anew in every process, so that nobody can aim at a bucket.

use ahash::RandomState;
use wire::FlowKey;

/// Three folded multiplications of keyed words, which a processor does side by side, and one that mixes them: the scheme
/// of wyhash (Wang Yi, 2019) over the 48 bytes of a key.
pub(crate) struct KeyHasher([u64; 7]);

impl KeyHasher {
    pub(crate) fn new() -> KeyHasher {
        let random = RandomState::new();
        KeyHasher(std::array::from_fn(|i| random.hash_one(i)))
    }

    #[inline]
    pub(crate) fn hash(&self, key: &FlowKey) -> u64 {
        let w = key.words();
        let k = &self.0;
        let a = fold(w[0] ^ k[0], w[1] ^ k[1]);
        let b = fold(w[2] ^ k[2], w[3] ^ k[3]);
        let c = fold(w[4] ^ k[4], w[5] ^ k[5]);
        fold(a ^ b.rotate_left(23) ^ c.rotate_left(41), k[6] | 1)
    }
}

/// Both halves of the 128-bit product.
#[inline]
fn fold(a: u64, b: u64) -> u64 {
    let p = u128::from(a) * u128::from(b);
    (p as u64) ^ ((p >> 64) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::Addr;

    /// Keys that differ in few bits must spread over buckets (high half) and tags (low bits) as random ones would.
    #[test]
    fn near_keys_spread() {
        let hasher = KeyHasher::new();
        const BUCKETS: usize = 1 << 10;
        let (mut buckets, mut tags) = (vec![0u32; BUCKETS], vec![0u32; BUCKETS]);
        const KEYS: u32 = 1 << 16;
        for n in 0..KEYS {
            let [_, b, c, d] = n.to_be_bytes();
            let key = FlowKey {
                lo: Addr::v4([10, b, c, d]),
                hi: Addr::v4([192, 168, 0, 1]),
                lo_port: 1024 + (n % 7) as u16,
                hi_port: 443,
                proto: 6,
                ..FlowKey::default()
            };
            let h = hasher.hash(&key);
            buckets[(h >> 54) as usize] += 1;
            tags[h as usize & (BUCKETS - 1)] += 1;
        }
        for counts in [buckets, tags] {
            let mean = f64::from(KEYS) / BUCKETS as f64;
            let chi2: f64 = counts.iter().map(|n| (f64::from(*n) - mean).powi(2) / mean).sum();
            // 1023 degrees of freedom: mean 1023, deviation 45.
            assert!((700.0..1400.0).contains(&chi2), "chi-squared {chi2}");
        }
    }

    #[test]
    fn processes_do_not_share_their_keys() {
        let key = FlowKey { proto: 17, ..FlowKey::default() };
        assert_ne!(KeyHasher::new().hash(&key), KeyHasher::new().hash(&key));
    }
}
