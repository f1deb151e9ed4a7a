use traffic::Rng;

/// Numbers that lengths and counts go wrong at.
const EDGES: [u32; 12] = [0, 1, 2, 4, 0x3f, 0x7f, 0x80, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0xffff_ffff];
/// Longest input made by mutation.
const LEN_MAX: usize = 4096;

/// Breaks seeds without knowing what they are: a stand-in for libFuzzer that needs no nightly toolchain and does the same
/// every time. It sees no coverage, so it finds what is near the seeds.
pub struct Mutator<'a> {
    rng: Rng,
    seeds: &'a [Vec<u8>],
    input: Vec<u8>,
}

impl<'a> Mutator<'a> {
    /// `seed` names the sequence of inputs. There has to be at least one seed.
    pub fn new(seeds: &'a [Vec<u8>], seed: u64) -> Mutator<'a> {
        assert!(!seeds.is_empty(), "mutation begins with something");
        Mutator { rng: Rng::new(seed), seeds, input: Vec::new() }
    }

    /// The next input: a seed, broken in one to six places.
    pub fn next_input(&mut self) -> &[u8] {
        self.input.clear();
        let seed = self.below(self.seeds.len());
        self.input.extend_from_slice(&self.seeds[seed]);
        for _ in 0..=self.below(6) {
            self.step();
        }
        self.input.truncate(LEN_MAX);
        &self.input
    }

    fn below(&mut self, bound: usize) -> usize {
        self.rng.below(bound as u64) as usize
    }

    fn step(&mut self) {
        let len = self.input.len();
        match self.below(9) {
            0 if len > 0 => {
                let at = self.below(len);
                let bit = self.below(8);
                self.input[at] ^= 1 << bit;
            }
            1 if len > 0 => {
                let at = self.below(len);
                self.input[at] = self.rng.next_u32() as u8;
            }
            // A length that lies, in either byte order.
            2 if len > 0 => {
                let value = EDGES[self.below(EDGES.len())];
                self.write_number(value);
            }
            3 if len > 0 => {
                let value = (len as u32).wrapping_add(self.rng.next_u32() % 9).wrapping_sub(4);
                self.write_number(value);
            }
            4 => {
                let at = self.below(len + 1);
                self.input.truncate(at);
            }
            5 => {
                let (at, count) = (self.below(len + 1), self.below(16));
                let more: Vec<u8> = (0..count).map(|_| self.rng.next_u32() as u8).collect();
                self.input.splice(at..at, more);
            }
            6 => {
                let (from, to) = self.range();
                self.input.drain(from..to);
            }
            7 => {
                // The same again, behind itself.
                let (from, to) = self.range();
                let again = self.input[from..to].to_vec();
                self.input.splice(to..to, again);
            }
            _ => {
                // The beginning of this and the end of another.
                let other = &self.seeds[self.below(self.seeds.len())];
                let at = self.below(len + 1);
                let from = at.min(other.len());
                self.input.truncate(at);
                self.input.extend_from_slice(&other[from..]);
            }
        }
    }

    fn range(&mut self) -> (usize, usize) {
        let (a, b) = (self.below(self.input.len() + 1), self.below(self.input.len() + 1));
        (a.min(b), a.max(b))
    }

    fn write_number(&mut self, value: u32) {
        let width = [1, 2, 2, 4][self.below(4)].min(self.input.len());
        let at = self.below(self.input.len() - width + 1);
        let (big, little) = (value.to_be_bytes(), value.to_le_bytes());
        let bytes = if self.below(2) == 0 { &big[4 - width..] } else { &little[..width] };
        self.input[at..at + width].copy_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_names_one_sequence_and_no_input_is_too_long() {
        let seeds = [vec![1; 5000], vec![], vec![2, 3, 4]];
        let run = |seed| {
            let mut mutator = Mutator::new(&seeds, seed);
            (0..2_000).map(|_| mutator.next_input().to_vec()).collect::<Vec<_>>()
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
        assert!(run(3).iter().all(|input| input.len() <= LEN_MAX));
        assert!(run(3).iter().any(|input| input.is_empty()) && run(3).iter().any(|input| input.len() > 1000));
    }
}
