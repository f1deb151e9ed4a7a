/// Finishes a weak 64-bit hash (a counter, an address) so that each input bit reaches each output bit.
///
/// A bijection, so distinct inputs stay distinct. Constants: "Mix13" of David Stafford, *Better Bit Mixing* (2011), as
/// used by SplitMix64. Not keyed: whoever can choose inputs can choose outputs.
#[inline]
pub const fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flipping_one_input_bit_flips_about_half_of_the_output() {
        for bit in 0..64 {
            let flipped: u32 = (1..=1_000_u64).map(|x| (mix(x) ^ mix(x ^ (1 << bit))).count_ones()).sum();
            let mean = f64::from(flipped) / 1_000.0;
            assert!((31.0..33.0).contains(&mean), "bit {bit} flips {mean} bits on average");
        }
    }
}
