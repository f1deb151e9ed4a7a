//! Domain names (RFC 1035 section 3.1) as text.

use crate::text::{Text, is_printable};

/// Longest name on the wire, length bytes included.
const NAME_MAX: usize = 255;

/// Reads the name at `at` and returns where what follows it begins. Pointers (RFC 1035 section 4.1.4) have to lead
/// backwards, each to before the one it replaces, so that none can be followed twice.
///
/// The text is what tshark prints: labels joined by dots, `<Root>` for the root; control characters as C escapes, what is
/// no UTF-8 as U+FFFD.
pub(crate) fn read(message: &[u8], at: usize, mut text: Option<&mut Text>) -> Option<usize> {
    let (mut at, mut end) = (at, None);
    let (mut limit, mut len) = (at, 0);
    loop {
        let first = usize::from(*message.get(at)?);
        match first {
            0 => break,
            1..64 => {
                let label = message.get(at + 1..at + 1 + first)?;
                if let Some(text) = text.as_deref_mut() {
                    if len > 0 {
                        text.push_printable(b".");
                    }
                    push_label(label, text);
                }
                len += first + 1;
                if len >= NAME_MAX {
                    return None;
                }
                at += first + 1;
            }
            192.. => {
                let target = (first & 0x3f) << 8 | usize::from(*message.get(at + 1)?);
                end = end.or(Some(at + 2));
                if target >= limit {
                    return None;
                }
                (at, limit) = (target, target);
            }
            // Extended labels (RFC 2671) were given up by RFC 6891.
            _ => return None,
        }
    }
    if len == 0
        && let Some(text) = text
    {
        text.push_str("<Root>");
    }
    Some(end.unwrap_or(at + 1))
}

/// Whether a label reads like one of a real name: what a message on an unusual port must have.
pub(crate) fn is_plain(text: &Text) -> bool {
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b"-_.*/:+=@".contains(b);
    text.as_bytes() == b"<Root>" || text.as_bytes().iter().all(plain)
}

fn push_label(label: &[u8], text: &mut Text) {
    if is_printable(label) {
        return text.push_printable(label);
    }
    for chunk in label.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\x07' => text.push_str("\\a"),
                '\x08' => text.push_str("\\b"),
                '\t' => text.push_str("\\t"),
                '\n' => text.push_str("\\n"),
                '\x0b' => text.push_str("\\v"),
                '\x0c' => text.push_str("\\f"),
                '\r' => text.push_str("\\r"),
                '\0'..' ' | '\x7f' => {
                    text.push_str("\\");
                    [6, 3, 0].iter().for_each(|shift| text.push_char(char::from(b'0' + (c as u8 >> shift & 7))));
                }
                c if c.is_control() => text.push_char(char::REPLACEMENT_CHARACTER),
                c => text.push_char(c),
            }
        }
        if !chunk.invalid().is_empty() {
            text.push_char(char::REPLACEMENT_CHARACTER);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(message: &[u8], at: usize) -> Option<(String, usize)> {
        let mut text = Text::EMPTY;
        let end = read(message, at, Some(&mut text))?;
        Some((text.as_str().to_owned(), end))
    }

    #[test]
    fn names_with_and_without_pointers() {
        let message = b"\x01a\x02bc\0\x03www\xc0\x02\xc0\x06\0";
        assert_eq!(text(message, 0), Some(("a.bc".into(), 6)));
        assert_eq!(text(message, 6), Some(("www.bc".into(), 12)));
        assert_eq!(text(message, 12), Some(("www.bc".into(), 14)));
        assert_eq!(text(message, 14), Some(("<Root>".into(), 15)));
    }

    #[test]
    fn loops_and_pointers_ahead_are_refused() {
        assert_eq!(text(b"\xc0\x00", 0), None);
        assert_eq!(text(b"\x01a\xc0\x00", 0), None, "to where it began");
        assert_eq!(text(b"\x01a\xc0\x00\xc0\x04", 4), None);
        assert_eq!(text(b"\xc0\x02\x00", 0), None);
        assert_eq!(text(b"\x01a\x41a\0", 0), None);
        assert_eq!(text(b"\x05ab", 0), None);
    }

    #[test]
    fn a_name_has_at_most_255_bytes() {
        let long = [&[63; 64][..], &[63; 64], &[63; 64]].concat();
        assert!(text(&[&long[..], &[60; 61], &[0]].concat(), 0).is_some());
        assert!(text(&[&long[..], &[62; 63], &[0]].concat(), 0).is_none());
    }

    #[test]
    fn what_cannot_be_printed_is_escaped() {
        assert_eq!(text(b"\x04a\0\r\x7f\x04\xe9 \xc3\xa9\0", 0), Some(("a\\000\\r\\177.\u{fffd} \u{e9}".into(), 11)));
    }
}
