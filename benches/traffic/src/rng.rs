/// xoshiro256** (Blackman and Vigna, 2018), seeded through splitmix64: integers only, so that a seed means the same
/// bytes on every platform. Not for secrets.
#[derive(Clone, Debug)]
pub struct Rng {
    state: [u64; 4],
}

impl Rng {
    /// A generator whose whole sequence follows from `seed`; every seed is valid.
    pub fn new(seed: u64) -> Rng {
        let mut x = seed;
        let state = std::array::from_fn(|_| {
            x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = x;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        });
        Rng { state }
    }

    /// The next 64 bits.
    #[inline]
    pub fn next_u64(&mut self) -> u64 {
        let s = &mut self.state;
        let result = s[1].wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// The next 32 bits: the upper half, which is the better one.
    #[inline]
    pub fn next_u32(&mut self) -> u32 {
        (self.next_u64() >> 32) as u32
    }

    /// A value in `0..bound`; 0 if `bound` is 0. By multiplication (Lemire), biased by less than `bound / 2^64`.
    #[inline]
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    /// A value in `low..=high`; `low` if `high < low`.
    #[inline]
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high.saturating_sub(low).saturating_add(1))
    }

    /// True with probability `chance`.
    #[inline]
    pub(crate) fn chance(&mut self, chance: Chance) -> bool {
        u64::from(self.next_u32()) < chance.0
    }

    /// One of `items`, which must not be empty.
    #[inline]
    pub(crate) fn pick<T: Copy, const N: usize>(&mut self, items: &[T; N]) -> T {
        const { assert!(N > 0) };
        items[self.below(N as u64) as usize]
    }
}

/// A probability in units of 2^-32, 0 to 2^32.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chance(u64);

impl Chance {
    /// From a ratio, clamped to 0..=1; not a number counts as 0. One multiplication and a truncation: exact in IEEE 754.
    pub(crate) fn from_ratio(ratio: f64) -> Chance {
        Chance((ratio.clamp(0.0, 1.0) * 4_294_967_296.0) as u64)
    }

    /// The expected number of hits in `n` tries, rounded up.
    pub(crate) fn expected_in(self, n: u64) -> u64 {
        ((u128::from(n) * u128::from(self.0)).div_ceil(1 << 32)) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_names_one_sequence_forever() {
        // Reference values: the published C code of splitmix64 and xoshiro256**, seed 0.
        let mut rng = Rng::new(0);
        assert_eq!(rng.state[0], 0xe220_a839_7b1d_cdaf);
        assert_eq!(rng.next_u64(), 0x99ec_5f36_cb75_f2b4);
        assert_eq!(rng.next_u64(), 0xbf6e_1f78_4956_452a);
    }

    #[test]
    fn chances_are_kept() {
        let mut rng = Rng::new(3);
        let chance = Chance::from_ratio(0.25);
        let hits = (0..100_000).filter(|_| rng.chance(chance)).count();
        assert!((24_000..26_000).contains(&hits), "{hits}");
        assert!(!rng.chance(Chance::from_ratio(0.0)) && rng.chance(Chance::from_ratio(1.0)));
        assert!(!rng.chance(Chance::from_ratio(f64::NAN)));
        assert!((0..1000).all(|_| rng.below(7) < 7) && rng.below(0) == 0);
    }
}
