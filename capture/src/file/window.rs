use std::io::{self, Read};

/// The stretch of the input that is in memory: one buffer, filled by `read`, from which records are lent.
///
/// Reading into a reused buffer that stays in cache was measured at a quarter of the cost of mapping the file.
pub(super) struct Window {
    bytes: Box<[u8]>,
    /// Size the buffer has unless a record needs more.
    size: usize,
    /// `start <= end <= bytes.len()`: what was read and not consumed.
    start: usize,
    end: usize,
    /// Offset of `start` in the input.
    position: u64,
}

impl Window {
    pub(super) fn new(size: usize) -> Window {
        Window { bytes: vec![0; size].into_boxed_slice(), size, start: 0, end: 0, position: 0 }
    }

    /// What was read and not consumed.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// Offset of `bytes()` in the input.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// Offset of the first byte that was not read yet.
    pub(super) fn end_position(&self) -> u64 {
        self.position + (self.end - self.start) as u64
    }

    pub(super) fn consume(&mut self, bytes: usize) {
        debug_assert!(bytes <= self.end - self.start);
        self.start += bytes;
        self.position += bytes as u64;
    }

    /// One `read` behind what is there, after making room for `need` bytes in all. Moves at most one incomplete
    /// record to the front; allocates only where a record exceeds every one before it.
    ///
    /// # Errors
    /// Whatever the reader says; nothing is lost by it.
    pub(super) fn fill(&mut self, input: &mut dyn Read, need: usize) -> io::Result<usize> {
        self.bytes.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        if need > self.bytes.len() {
            let mut grown = vec![0; need.next_multiple_of(64 * 1024)].into_boxed_slice();
            grown[..self.end].copy_from_slice(&self.bytes[..self.end]);
            self.bytes = grown;
        }
        // A buffer that one jumbo record made large is not filled further than usual: it would fall out of cache.
        let room = &mut self.bytes[self.end..self.size.max(need).max(self.end)];
        let read = input.read(room)?;
        self.end += read;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_larger_than_the_buffer_grows_it_and_keeps_what_is_there() {
        let input: Vec<u8> = (0..100u8).collect();
        let mut reader = &input[..];
        let mut window = Window::new(16);
        assert_eq!(window.fill(&mut reader, 4).unwrap(), 16);
        window.consume(10);
        assert_eq!((window.bytes(), window.position()), (&input[10..16], 10));
        while window.bytes().len() < 50 {
            assert!(window.fill(&mut reader, 50).unwrap() > 0);
        }
        assert_eq!(window.bytes(), &input[10..60]);
        window.consume(50);
        assert_eq!(window.fill(&mut reader, 1).unwrap(), 16, "back to the usual size");
        assert_eq!((window.bytes(), window.end_position()), (&input[60..76], 76));
    }
}
