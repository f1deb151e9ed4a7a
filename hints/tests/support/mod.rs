//! Payloads of the kinds whose cost is watched, and a sink that counts.

use hints::{DnsRecord, Hint, HintSink, Payload};
use wire::{Addr, Nanos, TapId};

/// The client's Initial packet of RFC 9001 appendix A.2.
pub(crate) fn quic_initial() -> Vec<u8> {
    let hex: Vec<u8> =
        include_str!("../data/rfc9001-client-initial.hex").bytes().filter(u8::is_ascii_hexdigit).collect();
    let digit = |b: u8| (b as char).to_digit(16).expect("a digit") as u8;
    hex.chunks(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}

/// A ClientHello of a common size: 15 ciphers, 12 extensions, a key share of 1,216 bytes as clients send today.
pub(crate) fn client_hello() -> Vec<u8> {
    let sized = |bytes: &[u8]| [&(bytes.len() as u16).to_be_bytes(), bytes].concat();
    let ciphers = [
        0x1301_u16, 0x1302, 0x1303, 0xc02b, 0xc02f, 0xc02c, 0xc030, 0xcca9, 0xcca8, 0xc013, 0xc014, 0x009c, 0x009d,
        0x002f, 0x0035,
    ];
    let ciphers: Vec<u8> = ciphers.iter().flat_map(|c| c.to_be_bytes()).collect();
    let name = sized(&[&[0][..], &sized(b"www.example.com")].concat());
    let extensions: [(u16, Vec<u8>); 12] = [
        (0, name),
        (23, vec![]),
        (0xff01, vec![0]),
        (10, vec![0, 4, 0, 29, 0, 23]),
        (11, vec![1, 0]),
        (35, vec![]),
        (16, sized(b"\x02h2\x08http/1.1")),
        (5, vec![1, 0, 0, 0, 0]),
        (13, sized(&[4, 3, 8, 4, 4, 1, 5, 3, 8, 5, 5, 1, 8, 6, 6, 1])),
        (51, sized(&[7; 1216])),
        (45, vec![1, 1]),
        (43, vec![4, 3, 4, 3, 3]),
    ];
    let extensions: Vec<u8> =
        extensions.iter().flat_map(|(kind, data)| [&kind.to_be_bytes()[..], &sized(data)].concat()).collect();
    let body = [&[3, 3][..], &[5; 32], &[0], &sized(&ciphers), &[1, 0], &sized(&extensions)].concat();
    let message = [&[1, 0][..], &sized(&body)].concat();
    [&[22, 3, 1][..], &sized(&message)].concat()
}

pub(crate) const HTTP_REQUEST: &[u8] =
    b"GET /index.html HTTP/1.1\r\nHost: www.example.com\r\nAccept: text/html\r\nUser-Agent: Mozilla/5.0 (X11; Linux)\r\n\r\n";

pub(crate) fn dns_query(id: u16) -> Vec<u8> {
    let [a, b] = id.to_be_bytes();
    [&[a, b, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], b"\x03www\x07example\x03com\0\0\x01\0\x01"].concat()
}

/// The answer to [`dns_query`]: two addresses.
pub(crate) fn dns_answer(id: u16) -> Vec<u8> {
    let mut out = dns_query(id);
    (out[2], out[3], out[7]) = (0x81, 0x80, 2);
    for last in [1, 2] {
        out.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, last]);
    }
    out
}

/// A payload of flow `flow_id` between two hosts.
pub(crate) fn payload(
    bytes: &[u8],
    proto: u8,
    port: u16,
    from_originator: bool,
    flow_id: u64,
    time: u64,
) -> Payload<'_> {
    let (client, server) = ((Addr::v4([192, 0, 2, 1]), 50000), (Addr::v4([192, 0, 2, 2]), port));
    let ((src, src_port), (dst, dst_port)) = if from_originator { (client, server) } else { (server, client) };
    Payload {
        bytes,
        len: bytes.len() as u32,
        seq: 1000,
        missing: 0,
        proto,
        src_port,
        dst_port,
        from_originator,
        src,
        dst,
        flow_id,
        tap: TapId(0),
        vlan: 0,
        ts: Nanos(time),
        clock: Nanos(time),
    }
}

#[derive(Default)]
pub(crate) struct Count {
    pub(crate) hints: u64,
    pub(crate) texts: u64,
    pub(crate) dns: u64,
}

impl HintSink for Count {
    fn hint(&mut self, hint: &Hint<'_>) {
        self.hints += 1;
        self.texts += u64::from(!hint.name.is_empty());
    }

    fn dns(&mut self, _: &DnsRecord, _: &[u8]) {
        self.dns += 1;
    }
}

/// Bytes that nothing is known by, from a generator that gives the same every time.
pub(crate) struct Noise(pub(crate) u64);

impl Noise {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]);
        }
    }
}
