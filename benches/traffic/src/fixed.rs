//! Logarithms, powers and the distributions made of them, in integers: `f64::powf` and its family may differ in the
//! last bit between platforms, and one bit is enough to change every byte after it.
//!
//! `Q32` means a number scaled by 2^32.

use crate::Rng;

const ONE_Q32: i64 = 1 << 32;
/// ln 2 in Q32.
const LN2_Q32: u64 = 2_977_044_472;

/// 2^(2^-i) in Q62 for i = 1..=32, each the square root of the one before.
const ROOTS_OF_TWO: [u64; 32] = {
    let mut roots = [0; 32];
    let mut root: u128 = 1 << 63;
    let mut i = 0;
    while i < 32 {
        root = (root << 62).isqrt();
        roots[i] = root as u64;
        i += 1;
    }
    roots
};

/// log2 of `x` in Q32; 0 for `x` of 0 or 1. Off by less than 2^-31.
pub(crate) fn log2_q32(x: u64) -> i64 {
    let x = x.max(1);
    let whole = 63 - x.leading_zeros();
    let mut mantissa = u128::from(x) << (63 - whole); // 1 <= mantissa < 2 in Q63
    let mut fraction = 0_i64;
    for bit in (0..32).rev() {
        mantissa = (mantissa * mantissa) >> 63;
        if mantissa >= 1 << 64 {
            mantissa >>= 1;
            fraction |= 1 << bit;
        }
    }
    (i64::from(whole) << 32) + fraction
}

/// 2^(y / 2^32) in Q32, saturating above and 0 far below.
pub(crate) fn exp2_q32(y: i64) -> u64 {
    let (whole, fraction) = (y >> 32, y & (ONE_Q32 - 1));
    let mut power: u128 = 1 << 62;
    for (i, root) in ROOTS_OF_TWO.iter().enumerate() {
        if fraction & (1 << (31 - i)) != 0 {
            power = (power * u128::from(*root)) >> 62;
        }
    }
    match whole - 30 {
        shift @ 0.. => u64::try_from(power.checked_shl(shift.min(64) as u32).unwrap_or(u128::MAX)).unwrap_or(u64::MAX),
        shift => power.checked_shr(shift.unsigned_abs().min(128) as u32).unwrap_or(0) as u64,
    }
}

/// The Zipf weight `rank^-exponent` in Q32, for rank 1 and up.
pub(crate) fn zipf_weight_q32(rank: u64, exponent_q32: u64) -> u64 {
    let y = (i128::from(log2_q32(rank)) * i128::from(exponent_q32)) >> 32;
    exp2_q32(-(y.min(i128::from(i64::MAX)) as i64)).max(1)
}

/// Draws whose quantiles are tabled once.
pub(crate) struct Distributions {
    /// Quantiles of the exponential distribution with mean 1, in Q16.
    exponential_q16: [u32; 1024],
    /// Quantiles of a Pareto distribution (index 1.1) from 1, cut at 2,000: packets of a background flow.
    flow_packets: [u16; 1024],
}

impl Distributions {
    pub(crate) fn new() -> Distributions {
        // The middle of the k-th of 1024 slices leaves (2047 - 2k) / 2048 above it.
        let log2_inverse_tail = |k: usize| log2_q32(2048) - log2_q32(2047 - 2 * k as u64);
        Distributions {
            exponential_q16: std::array::from_fn(|k| {
                ((log2_inverse_tail(k) as u128 * u128::from(LN2_Q32)) >> 48) as u32
            }),
            flow_packets: std::array::from_fn(|k| (exp2_q32(log2_inverse_tail(k) * 10 / 11) >> 32).min(2_000) as u16),
        }
    }

    /// Exponentially distributed with the given mean.
    #[inline]
    pub(crate) fn exponential(&self, rng: &mut Rng, mean: u64) -> u64 {
        let q16 = self.exponential_q16[(rng.next_u64() >> 54) as usize];
        ((u128::from(mean) * u128::from(q16)) >> 16) as u64
    }

    /// Packets of a flow: most are tiny, few are large.
    pub(crate) fn flow_packets(&self, rng: &mut Rng) -> u32 {
        u32::from(self.flow_packets[(rng.next_u64() >> 54) as usize])
    }

    /// Mean of [`Distributions::flow_packets`] times 1024.
    pub(crate) fn flow_packets_sum(&self) -> u64 {
        self.flow_packets.iter().map(|n| u64::from(*n)).sum()
    }

    /// A round-trip time, ns: log-normal, median 20 ms, sigma 0.7.
    pub(crate) fn rtt_ns(&self, rng: &mut Rng) -> u64 {
        // The sum of four uniform 16-bit draws has standard deviation 2^16 / sqrt(3); close enough to normal.
        let bits = rng.next_u64();
        let sum = (0..4).map(|i| (bits >> (16 * i)) & 0xffff).sum::<u64>() as i64 - 2 * 0xffff;
        // sigma / ln 2 * sqrt(3) = 1.7492: Q32 exponent from a Q16 draw.
        let y = log2_q32(20_000_000) + sum * ((17_492 << 16) / 10_000);
        exp2_q32(y) >> 32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logarithms_and_powers_agree_with_floats() {
        for x in [1, 2, 3, 7, 1000, 1 << 33, u64::MAX] {
            let exact = (x as f64).log2();
            assert!((log2_q32(x) as f64 / ONE_Q32 as f64 - exact).abs() < 1e-8, "log2 {x}");
        }
        for y in [-20.5_f64, -1.0, -0.3, 0.0, 0.5, 1.0, 17.123] {
            let got = exp2_q32((y * ONE_Q32 as f64) as i64) as f64 / ONE_Q32 as f64;
            assert!((got - y.exp2()).abs() < 1e-8 * y.exp2() + 1e-9, "exp2 {y}: {got}");
        }
        assert_eq!(exp2_q32(i64::MAX), u64::MAX);
        assert_eq!(exp2_q32(i64::MIN), 0);
    }

    #[test]
    fn distributions_have_their_moments() {
        let d = Distributions::new();
        let mut rng = Rng::new(1);
        let n = 50_000;
        let mean = (0..n).map(|_| d.exponential(&mut rng, 1_000_000)).sum::<u64>() / n;
        assert!((980_000..1_020_000).contains(&mean), "{mean}");
        let mut rtts: Vec<u64> = (0..n).map(|_| d.rtt_ns(&mut rng)).collect();
        rtts.sort_unstable();
        let median = rtts[rtts.len() / 2];
        assert!((19_000_000..21_000_000).contains(&median), "{median}");
        let p84 = rtts[rtts.len() * 8413 / 10_000];
        assert!((38_000_000..42_500_000).contains(&p84), "one sigma above is e^0.7 = 2.01 times: {p84}");
    }
}
