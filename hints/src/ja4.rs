//! JA4, the fingerprint of a TLS client (FoxIO, BSD-3-Clause; the plain JA4 alone): what the client offers, in an order
//! of its own so that shuffled extensions change nothing.
//!
//! `t13d1516h2_8daaf6152771_e5627efa2ab1`: transport, highest version, whether a server is named, numbers of ciphers and
//! of extensions, first and last character of the first ALPN value; hash of the sorted ciphers; hash of the sorted
//! extensions and of the signature algorithms as they come. GREASE (RFC 8701) does not count.

use crate::hello::{Hello, extension};
use sha2::{Digest, Sha256};

/// Bytes of a fingerprint.
pub(crate) const LEN: usize = 36;

/// Values of one list that are sorted; a longer list has no fingerprint. IANA knows fewer than 400 ciphers.
const LIST_MAX: usize = 1024;

/// What carried the ClientHello.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Transport {
    Tcp,
    Quic,
}

/// Where lists are sorted.
pub(crate) struct Sorter([u16; LIST_MAX]);

impl Sorter {
    pub(crate) const fn new() -> Sorter {
        Sorter([0; LIST_MAX])
    }

    fn sort(&mut self, values: impl Iterator<Item = u16>) -> Option<&[u16]> {
        let mut len = 0;
        for value in values {
            *self.0.get_mut(len)? = value;
            len += 1;
        }
        self.0[..len].sort_unstable();
        Some(&self.0[..len])
    }
}

/// GREASE values of two bytes: both alike, low nibbles `a`.
pub(crate) const fn is_grease(value: u16) -> bool {
    value & 0x0f0f == 0x0a0a && value >> 8 == value & 0xff
}

/// The fingerprint of a complete ClientHello; `None` where a list is longer than any client's.
pub(crate) fn fingerprint(hello: &Hello<'_>, transport: Transport, sorter: &mut Sorter) -> Option<[u8; LEN]> {
    let mut out = *b"t00i000000_000000000000_000000000000";
    if transport == Transport::Quic {
        out[0] = b'q';
    }
    out[1..3].copy_from_slice(version_chars(hello.version()));
    if hello.has_name {
        out[3] = b'd';
    }
    let ciphers = sorter.sort(hello.ciphers().filter(|v| !is_grease(*v)))?;
    out[4..6].copy_from_slice(&two_digits(ciphers.len()));
    if !ciphers.is_empty() {
        let mut hash = Sha256::new();
        update_list(&mut hash, ciphers.iter().copied());
        out[11..23].copy_from_slice(&hash_chars(hash));
    }
    let extensions = || hello.extensions().map(|(kind, _)| kind).filter(|v| !is_grease(*v));
    out[6..8].copy_from_slice(&two_digits(extensions().count()));
    out[8..10].copy_from_slice(&alpn_chars(hello.alpn));
    let hashed = extensions().filter(|kind| ![extension::SERVER_NAME, extension::ALPN].contains(kind));
    let extensions = sorter.sort(hashed)?;
    if !extensions.is_empty() {
        let mut hash = Sha256::new();
        update_list(&mut hash, extensions.iter().copied());
        let mut algorithms = hello.signature_algorithms().filter(|v| !is_grease(*v)).peekable();
        if algorithms.peek().is_some() {
            hash.update(b"_");
            update_list(&mut hash, algorithms);
        }
        out[24..36].copy_from_slice(&hash_chars(hash));
    }
    Some(out)
}

fn version_chars(version: u16) -> &'static [u8; 2] {
    match version {
        0x0304 => b"13",
        0x0303 => b"12",
        0x0302 => b"11",
        0x0301 => b"10",
        0x0300 => b"s3",
        0x0002 => b"s2",
        _ => b"00",
    }
}

fn two_digits(number: usize) -> [u8; 2] {
    let number = number.min(99) as u8;
    [b'0' + number / 10, b'0' + number % 10]
}

/// First and last character of the value, or of its hexadecimal form where one of them is no letter or digit.
fn alpn_chars(alpn: Option<&[u8]>) -> [u8; 2] {
    let Some((&[first, ..], &[.., last])) = alpn.map(|value| (value, value)) else { return *b"00" };
    if first.is_ascii_alphanumeric() && last.is_ascii_alphanumeric() {
        [first, last]
    } else {
        [HEX[usize::from(first >> 4)], HEX[usize::from(last & 15)]]
    }
}

const HEX: &[u8; 16] = b"0123456789abcdef";

/// Values as four hexadecimal digits each, with commas between, a block of them at a time.
fn update_list(hash: &mut Sha256, values: impl Iterator<Item = u16>) {
    let mut block = [0; 64 * 5];
    let (mut len, mut first) = (0, true);
    for value in values {
        if !first {
            block[len] = b',';
            len += 1;
        }
        first = false;
        for shift in [12, 8, 4, 0] {
            block[len] = HEX[usize::from(value >> shift & 15)];
            len += 1;
        }
        if len + 5 > block.len() {
            hash.update(&block[..len]);
            len = 0;
        }
    }
    hash.update(&block[..len]);
}

/// The first twelve hexadecimal digits.
fn hash_chars(hash: Sha256) -> [u8; 12] {
    let digest = hash.finalize();
    std::array::from_fn(|at| HEX[usize::from(digest[at / 2] >> (4 - at % 2 * 4) & 15)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hello::tests::{HelloBuilder, chrome};

    fn of(hello: &[u8], transport: Transport) -> String {
        let hello = Hello::parse(hello, hello.len()).expect("a hello");
        let chars = fingerprint(&hello, transport, &mut Sorter::new()).expect("short lists");
        String::from_utf8(chars.to_vec()).expect("ASCII")
    }

    #[test]
    fn the_example_of_the_specification() {
        // The ciphers, extensions and signature algorithms of the example are published with its fingerprint.
        assert_eq!(of(&chrome().body(), Transport::Tcp), "t13d1516h2_8daaf6152771_e5627efa2ab1");
    }

    #[test]
    fn order_of_extensions_and_grease_do_not_matter() {
        let mut shuffled = chrome();
        shuffled.extensions.reverse();
        shuffled.extensions.push((0x3a3a, vec![]));
        shuffled.ciphers.insert(3, 0xdada);
        assert_eq!(of(&shuffled.body(), Transport::Tcp), of(&chrome().body(), Transport::Tcp));
        assert!(is_grease(0x0a0a) && is_grease(0xfafa) && !is_grease(0x0a1a) && !is_grease(0x1301));
    }

    #[test]
    fn nothing_offered_is_zeros() {
        let bare = HelloBuilder { version: 0x0301, ciphers: vec![], extensions: vec![] };
        assert_eq!(of(&bare.body(), Transport::Quic), "q10i000000_000000000000_000000000000");
    }

    #[test]
    fn signature_algorithms_are_left_out_where_there_are_none() {
        let hello = HelloBuilder { version: 0x0303, ciphers: vec![0x002f], extensions: vec![(0x0017, vec![])] };
        let digest = Sha256::digest(b"0017");
        let hex: String = digest.iter().take(6).map(|b| format!("{b:02x}")).collect();
        assert!(of(&hello.body(), Transport::Tcp).ends_with(&format!("_{hex}")));
    }

    #[test]
    fn alpn_values_of_all_kinds() {
        assert_eq!(&alpn_chars(Some(b"h2")), b"h2");
        assert_eq!(&alpn_chars(Some(b"http/1.1")), b"h1");
        assert_eq!(&alpn_chars(Some(b"x")), b"xx");
        assert_eq!(&alpn_chars(Some(&[0xab, 0xcd])), b"ad");
        assert_eq!(&alpn_chars(Some(&[b'0', 0xcd])), b"3d");
        assert_eq!(&alpn_chars(Some(b"")), b"00");
        assert_eq!(&alpn_chars(None), b"00");
    }

    #[test]
    fn counts_stop_at_99_and_endless_lists_have_no_fingerprint() {
        let many = HelloBuilder { version: 0x0303, ciphers: (1..=200).collect(), extensions: vec![] };
        assert!(of(&many.body(), Transport::Tcp).starts_with("t12i9900"));
        let endless = HelloBuilder { version: 0x0303, ciphers: (1..=2000).collect(), extensions: vec![] }.body();
        let hello = Hello::parse(&endless, endless.len()).expect("a hello");
        assert_eq!(fingerprint(&hello, Transport::Tcp, &mut Sorter::new()), None);
    }
}
