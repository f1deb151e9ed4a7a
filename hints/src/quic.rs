//! QUIC long headers (RFC 9000 section 17.2) and what decrypts the client's Initial packets (RFC 9001 section 5, RFC 9369
//! for version 2): their keys come from the packet itself, so that anybody on the path can read them.

use crate::assembly::QuicKeys;
use crate::cursor::Cursor;
use aes_gcm::aead::inout::InOutBuf;
use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::aes::Aes128;
use aes_gcm::aes::cipher::BlockCipherEncrypt;
use aes_gcm::{Aes128Gcm, Nonce, Tag};
use hkdf::Hkdf;
use sha2::Sha256;

/// Longest connection id of versions 1 and 2 (RFC 9000 section 17.2).
const CONNECTION_ID_MAX: usize = 20;

/// Packets of a datagram that are looked at: Initial, 0-RTT, Handshake, and more than any sender has of them.
const PACKETS_MAX: usize = 8;

/// Bytes of the tag of AES-128-GCM.
const TAG_LEN: usize = 16;

/// What a version differs in, as far as Initial packets go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Dialect {
    /// Drafts 29 to 32.
    Draft,
    /// RFC 9000, and drafts 33 and 34, which share its salt.
    V1,
    /// RFC 9369.
    V2,
}

impl Dialect {
    fn of(version: u32) -> Option<Dialect> {
        match version {
            1 | 0xff00_0021..=0xff00_0022 => Some(Dialect::V1),
            0x6b33_43cf => Some(Dialect::V2),
            0xff00_001d..=0xff00_0020 => Some(Dialect::Draft),
            _ => None,
        }
    }

    fn salt(self) -> &'static [u8; 20] {
        match self {
            Dialect::Draft => b"\xaf\xbf\xec\x28\x99\x93\xd2\x4c\x9e\x97\x86\xf1\x9c\x61\x11\xe0\x43\x90\xa8\x99",
            Dialect::V1 => b"\x38\x76\x2c\xf7\xf5\x59\x34\xb3\x4d\x17\x9a\xe6\xa4\xc8\x0c\xad\xcc\xbb\x7f\x0a",
            Dialect::V2 => b"\x0d\xed\xe3\xde\xf7\x00\xa6\xdb\x81\x93\x81\xbe\x6e\x26\x9d\xcb\xf9\xbd\x2e\xd9",
        }
    }

    fn packet_type(self, first: u8) -> PacketType {
        let bits = first >> 4 & 3;
        // Version 2 counts from another start (RFC 9369 section 3.2).
        let bits = if self == Dialect::V2 { bits.wrapping_sub(1) & 3 } else { bits };
        match bits {
            0 => PacketType::Initial,
            3 => PacketType::Retry,
            _ => PacketType::Other,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum PacketType {
    Initial,
    /// 0-RTT or Handshake: shaped like an Initial packet without its token.
    Other,
    Retry,
}

/// A long-header packet at the start of some bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Packet<'a> {
    dialect: Dialect,
    packet_type: PacketType,
    pub(crate) destination: &'a [u8],
    /// From the first byte to the last that the length field counts.
    bytes: &'a [u8],
    /// Where the protected packet number begins.
    number_at: usize,
}

impl<'a> Packet<'a> {
    /// Reads a header of a known version. Retry and other packets without a length take all that is there.
    fn read(bytes: &'a [u8]) -> Option<Packet<'a>> {
        let mut cursor = Cursor::new(bytes);
        let first = cursor.u8()?;
        let dialect = Dialect::of(cursor.u32()?)?;
        let (destination, source) = (cursor.vec8()?, cursor.vec8()?);
        if first & 0x80 == 0 || destination.len() > CONNECTION_ID_MAX || source.len() > CONNECTION_ID_MAX {
            return None;
        }
        let packet_type = dialect.packet_type(first);
        if packet_type == PacketType::Retry {
            return Some(Packet { dialect, packet_type, destination, bytes, number_at: bytes.len() });
        }
        if packet_type == PacketType::Initial {
            let token_len = cursor.varint()?;
            cursor.take(usize::try_from(token_len).ok()?)?;
        }
        let len = usize::try_from(cursor.varint()?).ok()?;
        let number_at = bytes.len() - cursor.left().len();
        cursor.take(len)?;
        Some(Packet { dialect, packet_type, destination, bytes: &bytes[..number_at + len], number_at })
    }

    pub(crate) fn is_initial(&self) -> bool {
        self.packet_type == PacketType::Initial
    }

    /// Keys of the client's Initial packets, if this is its first.
    pub(crate) fn client_keys(&self) -> QuicKeys {
        let secret = Hkdf::<Sha256>::new(Some(self.dialect.salt()), self.destination);
        let mut client = [0; 32];
        expand(&secret, b"client in", &mut client);
        let mut keys = QuicKeys::default();
        let Ok(client) = Hkdf::<Sha256>::from_prk(&client) else { return keys };
        let [key, iv, hp]: [&[u8]; 3] = match self.dialect {
            Dialect::V2 => [b"quicv2 key", b"quicv2 iv", b"quicv2 hp"],
            _ => [b"quic key", b"quic iv", b"quic hp"],
        };
        expand(&client, key, &mut keys.key);
        expand(&client, iv, &mut keys.iv);
        expand(&client, hp, &mut keys.hp);
        keys
    }

    /// Decrypts into `scratch` and returns the frames; `None` where the tag does not match, the packet is not the
    /// client's, or is larger than the scratch.
    pub(crate) fn decrypt<'s>(&self, keys: &QuicKeys, scratch: &'s mut [u8]) -> Option<&'s [u8]> {
        let packet = scratch.get_mut(..self.bytes.len())?;
        packet.copy_from_slice(self.bytes);
        // The mask comes from a sample as if the packet number had four bytes (RFC 9001 section 5.4.2).
        let mut mask: [u8; 16] = *packet.get(self.number_at + 4..)?.first_chunk()?;
        Aes128::new(&keys.hp.into()).encrypt_block((&mut mask).into());
        packet[0] ^= mask[0] & 0x0f;
        let number_len = usize::from(packet[0] & 3) + 1;
        // Numbers start at 0, and four bytes of them are more than a handshake needs.
        let mut nonce = keys.iv;
        for at in 0..number_len {
            packet[self.number_at + at] ^= mask[1 + at];
            nonce[12 - number_len + at] ^= packet[self.number_at + at];
        }
        let (header, rest) = packet.split_at_mut(self.number_at + number_len);
        let (text, tag) = rest.split_last_chunk_mut::<TAG_LEN>()?;
        let cipher = Aes128Gcm::new(&keys.key.into());
        let (nonce, tag) = (Nonce::from(nonce), Tag::from(*tag));
        cipher.decrypt_inout_detached(&nonce, header, InOutBuf::from(&mut *text), &tag).ok()?;
        Some(text)
    }
}

/// HKDF-Expand-Label with an empty context (RFC 8446 section 7.1). Labels are short, outputs at most one hash.
fn expand(secret: &Hkdf<Sha256>, label: &[u8], out: &mut [u8]) {
    let lengths = [0, out.len() as u8, 6 + label.len() as u8];
    let done = secret.expand_multi_info(&[&lengths, b"tls13 ", label, &[0]], out);
    debug_assert!(done.is_ok());
}

/// Whether a datagram begins with a long header that nothing but QUIC has.
#[inline]
pub(crate) fn is_long_header(bytes: &[u8]) -> bool {
    let &[first, a, b, c, d, ..] = bytes else { return false };
    if first & 0x80 == 0 {
        return false;
    }
    match u32::from_be_bytes([a, b, c, d]) {
        0 => is_version_negotiation(bytes),
        version => Dialect::of(version).is_some() && connection_ids(bytes).is_some(),
    }
}

/// Lengths of the connection ids fit; the bytes behind them.
fn connection_ids(bytes: &[u8]) -> Option<&[u8]> {
    let mut cursor = Cursor::new(bytes.get(5..)?);
    let fits = cursor.vec8()?.len() <= CONNECTION_ID_MAX && cursor.vec8()?.len() <= CONNECTION_ID_MAX;
    fits.then_some(cursor.left())
}

/// Version negotiation (RFC 9000 section 17.2.1) that offers a version which is known.
fn is_version_negotiation(bytes: &[u8]) -> bool {
    let Some(versions) = connection_ids(bytes) else { return false };
    let known = |v: &[u8]| Dialect::of(u32::from_be_bytes([v[0], v[1], v[2], v[3]])).is_some();
    versions.len().is_multiple_of(4) && versions.chunks_exact(4).take(64).any(known)
}

/// The packets coalesced in a datagram (RFC 9000 section 12.2), as far as they have long headers.
pub(crate) fn packets(datagram: &[u8]) -> impl Iterator<Item = Packet<'_>> {
    let mut left = datagram;
    let next = move || {
        let packet = Packet::read(left)?;
        left = &left[packet.bytes.len()..];
        Some(packet)
    };
    std::iter::from_fn(next).take(PACKETS_MAX)
}

/// CRYPTO frames of a decrypted Initial packet, as offset and bytes; ends at what may not stand in one (RFC 9000 section
/// 12.4).
pub(crate) fn crypto_frames(frames: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    const PADDING: u64 = 0;
    const PING: u64 = 1;
    const ACK: u64 = 2;
    const ACK_ECN: u64 = 3;
    const CRYPTO: u64 = 6;
    let mut cursor = Cursor::new(frames);
    std::iter::from_fn(move || {
        loop {
            match cursor.varint()? {
                PADDING | PING => {}
                kind @ (ACK | ACK_ECN) => {
                    // Largest, delay; ranges of gap and length behind the first, each of two bytes at least.
                    let (_, _, ranges, _) = (cursor.varint()?, cursor.varint()?, cursor.varint()?, cursor.varint()?);
                    for _ in 0..ranges.checked_mul(2)? {
                        cursor.varint()?;
                    }
                    for _ in 0..if kind == ACK_ECN { 3 } else { 0 } {
                        cursor.varint()?;
                    }
                }
                CRYPTO => {
                    let offset = usize::try_from(cursor.varint()?).ok()?;
                    let len = usize::try_from(cursor.varint()?).ok()?;
                    return Some((offset, cursor.take(len)?));
                }
                _ => return None,
            }
        }
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        let digit = |b: u8| (b as char).to_digit(16).expect("a digit") as u8;
        digits.chunks(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
    }

    pub(crate) fn crypto_frame(offset: usize, bytes: &[u8]) -> Vec<u8> {
        let varint = |value: usize| (0x4000 | value as u16).to_be_bytes();
        [&[6], &varint(offset)[..], &varint(bytes.len()), bytes].concat()
    }

    /// An Initial packet of a client, protected as RFC 9001 section 5 says.
    pub(crate) fn initial(
        version: u32,
        destination: &[u8],
        first_destination: &[u8],
        number: u8,
        frames: &[u8],
    ) -> Vec<u8> {
        let dialect = Dialect::of(version).expect("a known version");
        let first = if dialect == Dialect::V2 { 0xd3 } else { 0xc3 };
        let mut header = vec![first];
        header.extend(version.to_be_bytes());
        header.push(destination.len() as u8);
        header.extend(destination);
        // No source id, no token.
        header.extend([0, 0]);
        let len = (4 + frames.len() + TAG_LEN) as u16;
        header.extend((0x4000 | len).to_be_bytes());
        let number_at = header.len();
        header.extend([0, 0, 0, number]);
        let of =
            Packet { dialect, packet_type: PacketType::Initial, destination: first_destination, bytes: &[], number_at };
        let keys = of.client_keys();
        let mut nonce = keys.iv;
        nonce[11] ^= number;
        let mut text = frames.to_vec();
        let cipher = Aes128Gcm::new(&keys.key.into());
        let tag =
            cipher.encrypt_inout_detached(&Nonce::from(nonce), &header, InOutBuf::from(&mut text[..])).expect("short");
        let mut packet = [&header[..], &text, &tag[..]].concat();
        let mut mask: [u8; 16] = packet[number_at + 4..number_at + 20].try_into().expect("16 bytes");
        Aes128::new(&keys.hp.into()).encrypt_block((&mut mask).into());
        packet[0] ^= mask[0] & 0x0f;
        for at in 0..4 {
            packet[number_at + at] ^= mask[1 + at];
        }
        packet
    }

    #[test]
    fn keys_of_rfc_9001() {
        // Appendix A.1.
        let destination = hex("8394c8f03e515708");
        let packet = initial(1, &destination, &destination, 2, &[0; 40]);
        let keys = Packet::read(&packet).expect("a packet").client_keys();
        assert_eq!(keys.key[..], hex("1f369613dd76d5467730efcbe3b1a22d"));
        assert_eq!(keys.iv[..], hex("fa044b2f42a3fd3b46fb255c"));
        assert_eq!(keys.hp[..], hex("9f50449e04a0e810283a1e9933adedd2"));
    }

    #[test]
    fn keys_of_rfc_9369() {
        // Appendix A.1.
        let destination = hex("8394c8f03e515708");
        let packet = initial(0x6b33_43cf, &destination, &destination, 2, &[0; 40]);
        let keys = Packet::read(&packet).expect("a packet").client_keys();
        assert_eq!(keys.key[..], hex("8b1a0bc121284290a29e0971b5cd045d"));
        assert_eq!(keys.iv[..], hex("91f73e2351d8fa91660e909f"));
        assert_eq!(keys.hp[..], hex("45b95e15235d6f45a6b19cbcb0294ba9"));
    }

    /// The client's Initial packet of RFC 9001 appendix A.2, protected: the published frame, padded to 1,162 bytes.
    pub(crate) fn rfc_9001_initial() -> Vec<u8> {
        let mut frames = hex("060040f1010000ed0303ebf8fa56f12939b9584a3896472ec40bb863cfd3e868
             04fe3a47f06a2b69484c00000413011302010000c000000010000e00000b6578
             616d706c652e636f6dff01000100000a00080006001d00170018001000070005
             04616c706e000500050100000000003300260024001d00209370b2c9caa47fba
             baf4559fedba753de171fa71f50f1ce15d43e994ec74d748002b000302030400
             0d0010000e0403050306030203080408050806002d00020101001c0002400100
             3900320408ffffffffffffffff05048000ffff07048000ffff08011001048000
             75300901100f088394c8f03e51570806048000ffff");
        frames.resize(1162, 0);
        let destination = hex("8394c8f03e515708");
        initial(1, &destination, &destination, 2, &frames)
    }

    #[test]
    fn the_initial_packet_of_rfc_9001() {
        let packet = rfc_9001_initial();
        assert_eq!(packet.len(), 1200);
        assert_eq!(packet[..38], hex("c000000001088394c8f03e5157080000449e7b9aec34d1b1c98dd7689fb8ec11d242b123dc9b"));
        assert_eq!(packet[1184..], hex("e221af44860018ab0856972e194cd934"));
        let read: Vec<_> = packets(&packet).collect();
        assert_eq!(read.len(), 1);
        let mut scratch = [0; 2048];
        let frames = read[0].decrypt(&read[0].client_keys(), &mut scratch).expect("the keys fit");
        let crypto: Vec<_> = crypto_frames(frames).collect();
        assert_eq!((crypto.len(), crypto[0].0, crypto[0].1.len()), (1, 0, 0xf1));
    }

    #[test]
    fn one_changed_bit_is_noticed() {
        let mut packet = rfc_9001_initial();
        packet[600] ^= 1;
        let read = packets(&packet).next().expect("a packet");
        assert!(read.decrypt(&read.client_keys(), &mut [0; 2048]).is_none());
    }

    #[test]
    fn other_frames_are_stepped_over() {
        let frames = [
            &[0, 0, 1][..],
            &[2, 5, 0, 1, 0, 0, 0],
            &[3, 5, 0, 0, 0, 1, 2, 3],
            &crypto_frame(300, b"abc"),
            &crypto_frame(0, b""),
            &[0x1c, 0, 0, 0],
            &crypto_frame(1, b"never"),
        ];
        let frames = frames.concat();
        let found: Vec<_> = crypto_frames(&frames).collect();
        assert_eq!(found, [(300, &b"abc"[..]), (0, b"")]);
    }

    #[test]
    fn negotiation_and_retry_are_known_by_their_headers() {
        let negotiation = [&[0x80, 0, 0, 0, 0, 1, 7, 0][..], &[0x1a, 0x2a, 0x3a, 0x4a], &[0, 0, 0, 1]].concat();
        assert!(is_long_header(&negotiation));
        assert!(!is_long_header(&negotiation[..negotiation.len() - 4]), "no version that is known");
        assert!(!is_long_header(&negotiation[..negotiation.len() - 1]));
        let retry = [&[0xf0, 0, 0, 0, 1, 0, 1, 9][..], &[1; 30]].concat();
        assert!(is_long_header(&retry) && packets(&retry).count() == 1);
        assert!(!is_long_header(&[0xc0, 0, 0, 0, 1, 21, 0]));
        assert!(!is_long_header(&[0x40, 0, 0, 0, 1, 0, 0]));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(
            mut bytes in prop::collection::vec(any::<u8>(), 0..120),
            version in prop::sample::select(vec![0u32, 1, 0x6b33_43cf, 0xff00_001d]),
        ) {
            crypto_frames(&bytes).for_each(drop);
            if let Some(head) = bytes.first_chunk_mut::<5>() {
                head[0] |= 0x80;
                head[1..].copy_from_slice(&version.to_be_bytes());
            }
            is_long_header(&bytes);
            for packet in packets(&bytes) {
                prop_assert!(packet.decrypt(&packet.client_keys(), &mut [0; 200]).is_none());
            }
        }
    }
}
