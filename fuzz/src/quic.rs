//! Initial packets of QUIC that decrypt: an authenticated cipher keeps a fuzzer out, so what is inside is sealed here.

use crate::flows::check_dns;
use aes_gcm::aead::inout::InOutBuf;
use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::aes::Aes128;
use aes_gcm::aes::cipher::BlockCipherEncrypt;
use aes_gcm::{Aes128Gcm, Nonce};
use hints::{App, DnsRecord, Hint, HintSink, InspectLimits, Inspector, Payload, Progress, TEXT_MAX};
use hkdf::Hkdf;
use sha2::Sha256;
use wire::{Addr, Nanos, TapId, proto};

/// Salt of version 1 (RFC 9001 section 5.2).
const SALT: [u8; 20] = *b"\x38\x76\x2c\xf7\xf5\x59\x34\xb3\x4d\x17\x9a\xe6\xa4\xc8\x0c\xad\xcc\xbb\x7f\x0a";
/// The client's first choice of a connection id for the server, from which the keys follow.
const DESTINATION: [u8; 8] = [0x83, 0x94, 0xc8, 0xf0, 0x3e, 0x51, 0x57, 0x08];

/// Frames of Initial packets, each behind a byte of how they travel and their length (16 bits, big-endian): sealed with the
/// client's keys and given to the inspector.
pub fn quic_sealed(bytes: &[u8]) {
    let keys = Keys::client();
    let limits = InspectLimits { assemblies_max: 2, dns_pending_max: 4, ..InspectLimits::default() };
    let (mut inspector, mut progress, mut sink) = (Inspector::new(limits), Progress::default(), Checking);
    let (mut left, mut number) = (bytes, 0_u8);
    while let Some((&[how, high, low], rest)) = left.split_first_chunk() {
        let (frames, rest) = rest.split_at(rest.len().min(usize::from(u16::from_be_bytes([high, low]))));
        left = rest;
        number = number.wrapping_add(how & 3);
        let mut datagram = keys.seal(number, frames);
        if how & 4 != 0 {
            // A damaged packet, and a whole one behind it.
            let mut damaged = datagram.clone();
            damaged[30 % datagram.len()] ^= 1;
            datagram.splice(..0, damaged);
        }
        // Datagrams of two flows, so that their pieces compete.
        let payload = payload(&datagram, u64::from(how >> 3 & 1));
        if progress.wants() {
            inspector.inspect(&payload, &mut progress, &mut sink);
        }
    }
    inspector.finish(&mut sink);
    let counts = inspector.counts();
    // The label, and the texts of a hello.
    assert!(counts.hellos_malformed <= counts.payloads && counts.hints <= 2 * counts.payloads);
}

/// An Initial packet that the inspector decrypts.
pub(crate) fn seal_client(number: u8, frames: &[u8]) -> Vec<u8> {
    Keys::client().seal(number, frames)
}

fn payload(bytes: &[u8], flow_id: u64) -> Payload<'_> {
    Payload {
        bytes,
        len: bytes.len() as u32,
        seq: 0,
        missing: 0,
        proto: proto::UDP,
        src_port: 50_000,
        dst_port: 443,
        from_originator: true,
        src: Addr::v4([192, 0, 2, 1]),
        dst: Addr::v4([192, 0, 2, 2]),
        flow_id,
        tap: TapId(0),
        vlan: 0,
        ts: Nanos(1),
        clock: Nanos(1),
    }
}

struct Keys {
    key: [u8; 16],
    iv: [u8; 12],
    hp: [u8; 16],
}

impl Keys {
    fn client() -> Keys {
        let mut secret = [0; 32];
        expand(&Hkdf::new(Some(&SALT), &DESTINATION), b"client in", &mut secret);
        let secret = Hkdf::from_prk(&secret).expect("as long as the hash");
        let mut keys = Keys { key: [0; 16], iv: [0; 12], hp: [0; 16] };
        expand(&secret, b"quic key", &mut keys.key);
        expand(&secret, b"quic iv", &mut keys.iv);
        expand(&secret, b"quic hp", &mut keys.hp);
        keys
    }

    /// An Initial packet (RFC 9000 section 17.2.2) of version 1, without source id and token, protected as RFC 9001
    /// section 5 says.
    fn seal(&self, number: u8, frames: &[u8]) -> Vec<u8> {
        let mut packet = vec![0xc3, 0, 0, 0, 1, DESTINATION.len() as u8];
        packet.extend(DESTINATION);
        packet.extend([0, 0]);
        // Packet number, text, tag; 30 bits are enough for any.
        packet.extend((0x8000_0000 | (4 + frames.len() + 16) as u32).to_be_bytes());
        let number_at = packet.len();
        packet.extend([0, 0, 0, number]);
        let mut nonce = self.iv;
        nonce[11] ^= number;
        let mut text = frames.to_vec();
        let tag = Aes128Gcm::new(&self.key.into())
            .encrypt_inout_detached(&Nonce::from(nonce), &packet, InOutBuf::from(&mut text[..]))
            .expect("far shorter than the cipher takes");
        packet.extend(text);
        packet.extend(&tag[..]);
        let mut mask: [u8; 16] = *packet[number_at + 4..].first_chunk().expect("a tag is as long");
        Aes128::new(&self.hp.into()).encrypt_block((&mut mask).into());
        packet[0] ^= mask[0] & 0x0f;
        for (byte, mask) in packet[number_at..].iter_mut().zip(&mask[1..5]) {
            *byte ^= mask;
        }
        packet
    }
}

/// HKDF-Expand-Label with an empty context (RFC 8446 section 7.1).
fn expand(secret: &Hkdf<Sha256>, label: &[u8], out: &mut [u8]) {
    let lengths = [0, out.len() as u8, 6 + label.len() as u8];
    secret.expand_multi_info(&[&lengths, b"tls13 ", label, &[0]], out).expect("at most one hash");
}

struct Checking;

impl HintSink for Checking {
    fn hint(&mut self, hint: &Hint<'_>) {
        assert_eq!(hint.app, App::Quic);
        for text in [hint.name, hint.alpn, hint.agent, hint.ja4] {
            assert!(text.len() <= TEXT_MAX && !text.chars().any(char::is_control));
        }
        assert!(hint.ja4.is_empty() || hint.ja4.len() == 36 && hint.ja4.starts_with('q'));
    }

    fn dns(&mut self, record: &DnsRecord, text: &[u8]) {
        check_dns(record, text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_those_of_rfc_9001() {
        // Appendix A.1.
        let keys = Keys::client();
        assert_eq!(keys.key[..4], [0x1f, 0x36, 0x96, 0x13]);
        assert_eq!(keys.iv[..4], [0xfa, 0x04, 0x4b, 0x2f]);
        assert_eq!(keys.hp[..4], [0x9f, 0x50, 0x44, 0x9e]);
    }

    #[test]
    fn what_is_sealed_is_read() {
        let mut inspector = Inspector::new(InspectLimits::default());
        let packet = Keys::client().seal(1, &[1; 40]);
        inspector.inspect(&payload(&packet, 0), &mut Progress::default(), &mut Checking);
        assert_eq!((inspector.counts().payloads, inspector.counts().quic_not_decrypted), (1, 0));
    }
}
