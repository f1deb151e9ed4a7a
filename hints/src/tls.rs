//! TLS records (RFC 8446 section 5.1) up to the first handshake message.

use crate::cursor::Cursor;

/// Handshake message types (RFC 8446 section 4).
pub(crate) mod handshake {
    pub(crate) const CLIENT_HELLO: u8 = 1;
}

/// Content types.
const CHANGE_CIPHER_SPEC: u8 = 20;
const HANDSHAKE: u8 = 22;
const HEARTBEAT: u8 = 24;

/// Longest record with what encryption adds: 2^14 + 2048 before TLS 1.3.
const RECORD_MAX: usize = (1 << 14) + 2048;

/// What a stream begins with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Opening<'a> {
    /// No TLS.
    Foreign,
    /// Records, but not those of a beginning handshake.
    Midstream,
    /// Too little to tell what.
    More,
    /// A handshake message: its type, what is there of its body, and the length it announces.
    Message { kind: u8, body: &'a [u8], len: usize },
}

/// Type and length of the record that begins here, if one can.
fn record_header(bytes: &[u8]) -> Option<(u8, usize)> {
    let &[kind @ CHANGE_CIPHER_SPEC..=HEARTBEAT, 3, 0..=4, high, low, ..] = bytes else { return None };
    let len = usize::from(u16::from_be_bytes([high, low]));
    (1..=RECORD_MAX).contains(&len).then_some((kind, len))
}

/// Whether bytes too few for a record header can become one of a handshake.
#[inline]
pub(crate) fn could_begin(bytes: &[u8]) -> bool {
    matches!(bytes, [HANDSHAKE] | [HANDSHAKE, 3] | [HANDSHAKE, 3, 0..=4] | [HANDSHAKE, 3, 0..=4, _])
}

/// Reads a stream from its start. `scratch` is where a message is put together that is spread over records; what goes
/// beyond it is missing from the body.
pub(crate) fn open<'a>(stream: &'a [u8], scratch: &'a mut [u8]) -> Opening<'a> {
    let Some((kind, len)) = record_header(stream) else {
        return if could_begin(stream) { Opening::More } else { Opening::Foreign };
    };
    let fragment = &stream[5..];
    if kind != HANDSHAKE {
        // Three bytes and a length are little: where the next record is there, it has to be one.
        let next = fragment.get(len..).unwrap_or_default();
        return match next.len() < 5 || record_header(next).is_some() {
            true => Opening::Midstream,
            false => Opening::Foreign,
        };
    }
    let fragment = &fragment[..fragment.len().min(len)];
    let mut message = Cursor::new(fragment);
    if let (Some(kind), Some(body_len)) = (message.u8(), message.u24()) {
        let body_len = body_len as usize;
        // In one record, as good as always.
        if len >= body_len + 4 || fragment.len() < len {
            return checked(kind, &message.left()[..message.left().len().min(body_len)], body_len);
        }
    }
    spread(stream, scratch)
}

/// A message over several records.
fn spread<'a>(stream: &'a [u8], scratch: &'a mut [u8]) -> Opening<'a> {
    let (mut at, mut filled) = (0, 0);
    while let Some((kind, len)) = record_header(&stream[at..]) {
        if kind != HANDSHAKE {
            return Opening::Foreign;
        }
        let fragment = &stream[at + 5..];
        let fragment = &fragment[..fragment.len().min(len)];
        let fits = fragment.len().min(scratch.len() - filled);
        scratch[filled..filled + fits].copy_from_slice(&fragment[..fits]);
        filled += fits;
        at += 5 + fragment.len();
        if fragment.len() < len || fits < fragment.len() {
            break;
        }
    }
    // What is no record, where one should begin, ends it.
    let rest = &stream[at.min(stream.len())..];
    if rest.len() >= 5 && record_header(rest).is_none() && filled < scratch.len() {
        let needed = Cursor::new(&scratch[..filled]).u32().map(|head| (head & 0xff_ffff) as usize + 4);
        if needed.is_none_or(|needed| filled < needed) {
            return Opening::Foreign;
        }
    }
    let mut message = Cursor::new(&scratch[..filled]);
    match (message.u8(), message.u24()) {
        (Some(kind), Some(len)) => {
            let len = len as usize;
            checked(kind, &message.left()[..message.left().len().min(len)], len)
        }
        _ => Opening::More,
    }
}

/// A message of a type that exists.
fn checked(kind: u8, body: &[u8], len: usize) -> Opening<'_> {
    match kind {
        // Encrypted: its first bytes say nothing.
        _ if len > 0x3_ffff => Opening::Midstream,
        0..=26 => Opening::Message { kind, body, len },
        _ => Opening::Midstream,
    }
}

/// A ClientHello in the frame of SSL 2.0 (RFC 5246 appendix E.2): its lengths have to fill it exactly.
pub(crate) fn is_v2_hello(bytes: &[u8]) -> bool {
    let mut cursor = Cursor::new(bytes);
    let header = (cursor.u16(), cursor.u8(), cursor.u16(), cursor.u16(), cursor.u16(), cursor.u16());
    let (Some(len), Some(1), Some(0x0002 | 0x0300..=0x0303), Some(ciphers), Some(session), Some(challenge)) = header
    else {
        return false;
    };
    let sum = 9 + u32::from(ciphers) + u32::from(session) + u32::from(challenge);
    len & 0x8000 != 0
        && u32::from(len & 0x7fff) == sum
        && ciphers != 0
        && ciphers.is_multiple_of(3)
        && [0, 16].contains(&session)
        && (16..=32).contains(&challenge)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::hello::tests::chrome;
    use proptest::prelude::*;

    /// A handshake message in records of at most `each` bytes.
    pub(crate) fn records(message: &[u8], each: usize) -> Vec<u8> {
        let record = |part: &[u8]| [&[22, 3, 1], &(part.len() as u16).to_be_bytes()[..], part].concat();
        message.chunks(each).flat_map(record).collect()
    }

    #[test]
    fn a_message_is_found_over_any_number_of_records() {
        let message = chrome().message();
        let len = message.len() - 4;
        for each in [1, 2, 3, 4, 5, 100, message.len() - 1, message.len()] {
            let stream = records(&message, each);
            let mut scratch = [0; 4096];
            let opening = open(&stream, &mut scratch);
            assert_eq!(opening, Opening::Message { kind: 1, body: &message[4..], len }, "{each} bytes a record");
        }
    }

    #[test]
    fn every_truncation_asks_for_more_or_shows_a_part() {
        let message = chrome().message();
        for each in [3, 100, message.len()] {
            let stream = records(&message, each);
            for end in 1..stream.len() {
                match open(&stream[..end], &mut [0; 4096]) {
                    Opening::More => assert!(end < 16),
                    Opening::Message { kind: 1, body, len } => {
                        assert!(body.len() < len && message[4..].starts_with(body));
                    }
                    other => panic!("{end} of {each}: {other:?}"),
                }
            }
        }
    }

    #[test]
    fn records_of_a_running_connection() {
        let application = [&[23, 3, 3, 0, 4, 1, 2, 3, 4][..], &[23, 3, 3, 0, 200, 1]].concat();
        assert_eq!(open(&application, &mut []), Opening::Midstream);
        let mut noise = application;
        noise[10] = 9;
        assert_eq!(open(&noise, &mut []), Opening::Foreign);
        assert_eq!(open(&[23, 3, 3, 0, 0, 1], &mut []), Opening::Foreign);
        assert_eq!(open(&[23, 3, 3, 0xff, 0, 1], &mut []), Opening::Foreign);
    }

    #[test]
    fn a_hello_in_the_frame_of_ssl_2() {
        let hello = [&[0x80, 28, 1, 3, 1, 0, 3, 0, 0, 0, 16, 0, 0, 0x2f][..], &[5; 16]].concat();
        assert!(is_v2_hello(&hello));
        for at in [0, 1, 2, 3, 6, 8, 10] {
            let mut other = hello.clone();
            other[at] ^= 0x44;
            assert!(!is_v2_hello(&other), "byte {at}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(mut bytes in prop::collection::vec(any::<u8>(), 0..200), scratch in 0..100usize) {
            open(&bytes, &mut vec![0; scratch]);
            bytes.splice(0..0, [22, 3, 1, 0, 30]);
            open(&bytes, &mut vec![0; scratch]);
        }
    }
}
