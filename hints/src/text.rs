use crate::TEXT_MAX;
use std::fmt;

/// Text of at most [`TEXT_MAX`] bytes; what is longer is cut at a character.
#[derive(Clone)]
pub(crate) struct Text {
    bytes: [u8; TEXT_MAX],
    len: u8,
    /// Something was cut off: nothing more is added, so that no text has a hole.
    cut: bool,
}

impl Text {
    pub(crate) const EMPTY: Text = Text { bytes: [0; TEXT_MAX], len: 0, cut: false };

    #[inline]
    pub(crate) fn clear(&mut self) {
        self.len = 0;
        self.cut = false;
    }

    #[inline]
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    #[inline]
    pub(crate) fn as_str(&self) -> &str {
        // Only whole characters are ever added.
        std::str::from_utf8(self.as_bytes()).unwrap_or_default()
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn is_cut(&self) -> bool {
        self.cut
    }

    /// Becomes a copy of `other`, of which only what is used is copied.
    pub(crate) fn copy_from(&mut self, other: &Text) {
        (self.len, self.cut) = (0, other.cut);
        self.append(other.as_bytes());
    }

    /// Takes back what was added since the text had `len` bytes and was not cut.
    pub(crate) fn take_back(&mut self, len: usize) {
        debug_assert!(len <= usize::from(self.len));
        (self.len, self.cut) = (len as u8, false);
    }

    /// Printable characters of ASCII.
    pub(crate) fn push_printable(&mut self, bytes: &[u8]) {
        debug_assert!(is_printable(bytes));
        let end = if self.cut { 0 } else { bytes.len().min(TEXT_MAX - usize::from(self.len)) };
        self.cut |= end < bytes.len();
        self.append(&bytes[..end]);
    }

    /// Text without control characters.
    pub(crate) fn push_str(&mut self, text: &str) {
        let room = TEXT_MAX - usize::from(self.len);
        let end = if self.cut { 0 } else { text.floor_char_boundary(room) };
        self.cut |= end < text.len();
        self.append(&text.as_bytes()[..end]);
    }

    pub(crate) fn push_char(&mut self, c: char) {
        self.push_str(c.encode_utf8(&mut [0; 4]));
    }

    /// The bytes as text: what is not UTF-8, and control characters, become U+FFFD.
    pub(crate) fn push_lossy(&mut self, bytes: &[u8]) {
        // All that can be kept, and a character that is cut.
        let bytes = &bytes[..bytes.len().min(TEXT_MAX + 4)];
        if is_printable(bytes) {
            return self.push_printable(bytes);
        }
        for chunk in bytes.utf8_chunks() {
            for c in chunk.valid().chars() {
                self.push_char(if c.is_control() { char::REPLACEMENT_CHARACTER } else { c });
            }
            if !chunk.invalid().is_empty() {
                self.push_char(char::REPLACEMENT_CHARACTER);
            }
        }
    }

    /// A number in decimal.
    pub(crate) fn push_number(&mut self, number: u32) {
        let mut digits = [0; 10];
        let (mut at, mut left) = (digits.len(), number);
        loop {
            at -= 1;
            digits[at] = b'0' + (left % 10) as u8;
            left /= 10;
            if left == 0 {
                break;
            }
        }
        self.push_printable(&digits[at..]);
    }

    /// Bytes that are whole characters and fit.
    fn append(&mut self, bytes: &[u8]) {
        let start = usize::from(self.len);
        self.bytes[start..start + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len() as u8;
    }
}

/// Whether all of it are printable characters of ASCII.
#[inline]
pub(crate) fn is_printable(bytes: &[u8]) -> bool {
    // Without an early end: these are short.
    bytes.iter().fold(true, |all, b| all & (0x20..0x7f).contains(b))
}

impl fmt::Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.push_str(text);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn control_characters_and_what_is_no_text_are_replaced() {
        let mut text = Text::EMPTY;
        text.push_lossy(b"a\0b\xff\xc3\xa9\x7f");
        assert_eq!(text.as_str(), "a\u{fffd}b\u{fffd}\u{e9}\u{fffd}");
        text.push_number(4_294_967_295);
        text.push_number(0);
        assert!(text.as_str().ends_with("42949672950"));
    }

    #[test]
    fn long_text_is_cut_at_a_character_and_stays_cut() {
        let mut text = Text::EMPTY;
        text.push_str(&"a".repeat(254));
        text.push_str("\u{e9}");
        text.push_str("b");
        assert_eq!(text.as_str(), "a".repeat(254));
        assert!(text.is_cut());
    }

    proptest! {
        #[test]
        fn any_bytes_become_text(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..4)) {
            let mut text = Text::EMPTY;
            for piece in &pieces {
                text.push_lossy(piece);
            }
            prop_assert!(std::str::from_utf8(text.as_bytes()).is_ok());
            prop_assert!(!text.as_str().chars().any(char::is_control));
            let all: usize = pieces.iter().map(Vec::len).sum();
            prop_assert_eq!(text.is_empty(), all == 0);
        }
    }
}
