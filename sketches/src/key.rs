//! Keys as sketches hold them: words of 64 bits.

/// The bytes of a key as words, the first byte lowest, and zeros behind the last one: keys of different lengths that are
/// equal so far are the same key. Bytes beyond `8 * WORDS` are left out.
pub fn key_words<const WORDS: usize>(bytes: &[u8]) -> [u64; WORDS] {
    std::array::from_fn(|word| {
        let rest = bytes.get(word * 8..).unwrap_or_default();
        match rest.first_chunk() {
            Some(whole) => u64::from_le_bytes(*whole),
            None => {
                let mut last = [0; 8];
                last[..rest.len()].copy_from_slice(rest);
                u64::from_le_bytes(last)
            }
        }
    })
}

/// The bytes of [`key_words`], zeros behind them included.
pub fn key_bytes<const WORDS: usize>(key: &[u64; WORDS]) -> Vec<u8> {
    key.iter().flat_map(|word| word.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_have_all_bytes() {
        let bytes: Vec<u8> = (1..=37).collect();
        let key: [u64; 5] = key_words(&bytes);
        assert_eq!(key_bytes(&key)[..37], bytes);
        assert_eq!(key_bytes(&key)[37..], [0; 3]);
        assert_eq!(key_words::<2>(&bytes), [key[0], key[1]]);
        assert_eq!(key_words::<1>(&[]), [0]);
    }
}
