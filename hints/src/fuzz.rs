//! Parsers as functions of bytes, for fuzzers. No part of the interface.

use crate::dns::{Check, Message};
use crate::hello::Hello;
use crate::ja4::{self, Transport};
use crate::text::Text;
use crate::{DnsRecord, Hint, HintSink, InspectLimits, Inspector, Payload, Progress, dhcp, http, quic, signature, tls};
use wire::{Addr, Nanos, TapId, proto};

/// A TLS stream: records, ClientHello, fingerprint.
pub fn tls(bytes: &[u8]) {
    let mut scratch = [0; 2048];
    if let tls::Opening::Message { body, len, .. } = tls::open(bytes, &mut scratch)
        && let Ok(hello) = Hello::parse(body, len)
    {
        ja4::fingerprint(&hello, Transport::Tcp, &mut ja4::Sorter::new());
    }
    tls::is_v2_hello(bytes);
}

/// A DNS message, as surely one and as perhaps one.
pub fn dns(bytes: &[u8]) {
    for (check, cut) in [(Check::Header, false), (Check::Header, true), (Check::Whole, false)] {
        let (mut scratch, mut text) = (Text::EMPTY, Text::EMPTY);
        if let Some(message) = Message::read(bytes, cut, check, &mut scratch) {
            let answers = message.answers(&mut text);
            message.rcode(&answers);
            for index in 0..message.questions_count {
                message.question(index, &mut scratch);
            }
            assert!(std::str::from_utf8(text.as_bytes()).is_ok());
        }
    }
}

/// A datagram of QUIC, and frames as if they had decrypted.
pub fn quic(bytes: &[u8]) {
    quic::is_long_header(bytes);
    let mut scratch = [0; 2048];
    for packet in quic::packets(bytes) {
        packet.decrypt(&packet.client_keys(), &mut scratch);
    }
    quic::crypto_frames(bytes).for_each(drop);
}

/// A message of HTTP and what looks like it.
pub fn http(bytes: &[u8]) {
    http::open(bytes);
    http::names(bytes);
}

/// The rest: DHCP and signatures.
pub fn others(bytes: &[u8]) {
    let (mut name, mut agent) = (Text::EMPTY, Text::EMPTY);
    dhcp::read_v4(bytes, &mut name, &mut agent);
    dhcp::read_v6(bytes, &mut name, &mut agent);
    for port in [21, 25, 69, 88, 110, 123, 137, 161, 389, 502, 514, 1194, 3306, 3389, 20000] {
        signature::tcp(bytes, bytes.len(), port, 50000);
        signature::udp(bytes, bytes.len(), port, 50000);
    }
}

/// Whole flows: bytes say ports, protocol, and where payloads are cut. Checks what holds for any input.
pub fn inspector(bytes: &[u8]) {
    let limits = InspectLimits { assemblies_max: 4, dns_pending_max: 4, ..InspectLimits::default() };
    let mut inspector = Inspector::new(limits);
    let mut sink = Checking;
    let Some((&[ports, transport, step], mut left)) = bytes.split_first_chunk::<3>() else { return };
    let port = [53, 443, 80, 5353, 5355, 67, 547, 40000][usize::from(ports & 7)];
    let (mut progress, mut seq, mut time) = (Progress::default(), 0_u32, 0);
    while let Some((&len, rest)) = left.split_first() {
        let (payload, rest) = rest.split_at(rest.len().min(usize::from(len)));
        left = rest;
        let from_originator = len & 1 == 0 || ports & 8 != 0;
        let (src_port, dst_port) = if from_originator { (50000, port) } else { (port, 50000) };
        time += u64::from(step) << 24;
        // What is ahead of its turn leaves a gap for the next one to fill.
        let missing = if ports & 16 != 0 && transport & 1 == 0 { u32::from(len >> 2) } else { 0 };
        let payload = Payload {
            bytes: payload,
            len: payload.len() as u32 + u32::from(ports >> 7),
            seq: seq.wrapping_add(missing),
            missing,
            proto: if transport & 1 == 0 { proto::TCP } else { proto::UDP },
            src_port,
            dst_port,
            from_originator,
            src: Addr::v4([192, 0, 2, 1]),
            dst: Addr::v4([192, 0, 2, 2]),
            flow_id: u64::from(transport >> 1),
            tap: TapId(0),
            vlan: 0,
            ts: Nanos(time),
            clock: Nanos(time),
        };
        inspector.advance(payload.clock, &mut sink);
        if progress.wants() {
            inspector.inspect(&payload, &mut progress, &mut sink);
        }
        seq = if missing == 0 { seq.wrapping_add(payload.len) } else { seq };
    }
    inspector.flow_ended(u64::from(transport >> 1));
    inspector.finish(&mut sink);
}

/// Texts are within their bounds.
struct Checking;

impl HintSink for Checking {
    fn hint(&mut self, hint: &Hint<'_>) {
        for text in [hint.name, hint.alpn, hint.agent, hint.ja4] {
            assert!(text.len() <= crate::TEXT_MAX && !text.chars().any(char::is_control));
        }
    }

    fn dns(&mut self, record: &DnsRecord, text: &[u8]) {
        assert_eq!(usize::from(record.question_len) + usize::from(record.answers_len), text.len());
        assert!(std::str::from_utf8(text).is_ok());
    }
}
