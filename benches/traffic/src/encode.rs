//! Bytes of a packet: Ethernet II, IPv4 or IPv6, TCP, UDP or ICMP echo, with valid checksums.
//!
//! The plain version summed every payload byte for its checksum. Payloads are prefixes of one fixed pattern, whose sums
//! are tabled once: a packet then costs its headers and one copy.

use crate::config::{ETHERNET_LEN, PAYLOAD_LEN_MAX};

/// IANA protocol numbers.
pub(crate) const ICMP: u8 = 1;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMPV6: u8 = 58;

/// TCP control bits.
pub(crate) const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const PSH: u8 = 0x08;
pub(crate) const ACK: u8 = 0x10;

/// Of a TCP client's SYN and a server's SYN/ACK: MSS 1460, window scale 7, SACK permitted.
pub(crate) const SYN_OPTIONS: &[u8] = &[2, 4, 5, 180, 1, 3, 3, 7, 1, 1, 4, 2];
/// Of a scanner's SYN: MSS 1460 only.
pub(crate) const BARE_SYN_OPTIONS: &[u8] = &[2, 4, 5, 180];

const CLIENT_SIDE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const SERVER_SIDE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// The two ends of a flow. IPv4 addresses stand in the first four bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ends {
    pub(crate) v6: bool,
    pub(crate) client: [u8; 16],
    pub(crate) server: [u8; 16],
    pub(crate) client_port: u16,
    pub(crate) server_port: u16,
}

/// Who sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum From {
    Client,
    Server,
}

impl From {
    pub(crate) fn other(self) -> From {
        match self {
            From::Client => From::Server,
            From::Server => From::Client,
        }
    }
}

/// What follows the transport header.
#[derive(Clone, Copy)]
pub(crate) enum Payload<'a> {
    /// So many bytes of the fixed pattern.
    Pattern(u16),
    /// These bytes.
    Bytes(&'a [u8]),
}

pub(crate) struct TcpHeader<'a> {
    pub(crate) flags: u8,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    /// Length a multiple of four, at most 12.
    pub(crate) options: &'a [u8],
}

pub(crate) struct Encoder {
    pattern: Vec<u8>,
    /// One's-complement sum, unfolded, of the first n bytes of `pattern`; an odd last byte is padded with zero.
    pattern_sums: Vec<u32>,
    /// IPv4 identification of the next packet: one counter for the whole link.
    ip_id: u16,
}

impl Encoder {
    pub(crate) fn new() -> Encoder {
        let pattern: Vec<u8> = (0..PAYLOAD_LEN_MAX).map(|i| (i * 7 + 13) as u8).collect();
        let mut pattern_sums = vec![0_u32];
        let mut even_sum = 0;
        for pair in pattern.chunks_exact(2) {
            pattern_sums.push(even_sum + (u32::from(pair[0]) << 8));
            even_sum += u32::from(u16::from_be_bytes([pair[0], pair[1]]));
            pattern_sums.push(even_sum);
        }
        Encoder { pattern, pattern_sums, ip_id: 0 }
    }

    /// Writes a TCP segment to `out`, replacing what is there.
    pub(crate) fn tcp(&mut self, out: &mut Vec<u8>, ends: &Ends, from: From, header: &TcpHeader<'_>, payload: Payload) {
        debug_assert!(header.options.len().is_multiple_of(4) && header.options.len() <= 12);
        let (source, target) = ports(ends, from);
        let len = 20 + header.options.len();
        let mut h = [0_u8; 32];
        h[0..2].copy_from_slice(&source.to_be_bytes());
        h[2..4].copy_from_slice(&target.to_be_bytes());
        h[4..8].copy_from_slice(&header.seq.to_be_bytes());
        let ack = if header.flags & ACK != 0 { header.ack } else { 0 };
        h[8..12].copy_from_slice(&ack.to_be_bytes());
        h[12] = (len as u8 / 4) << 4;
        h[13] = header.flags;
        let window: u16 = if header.flags & RST != 0 { 0 } else { 64_240 };
        h[14..16].copy_from_slice(&window.to_be_bytes());
        h[20..len].copy_from_slice(header.options);
        self.packet(out, ends, from, TCP, &mut h[..len], 16, payload);
    }

    /// Writes a UDP datagram to `out`, replacing what is there.
    pub(crate) fn udp(&mut self, out: &mut Vec<u8>, ends: &Ends, from: From, payload: Payload) {
        let (source, target) = ports(ends, from);
        let mut h = [0_u8; 8];
        h[0..2].copy_from_slice(&source.to_be_bytes());
        h[2..4].copy_from_slice(&target.to_be_bytes());
        h[4..6].copy_from_slice(&(8 + self.len(payload) as u16).to_be_bytes());
        self.packet(out, ends, from, UDP, &mut h, 6, payload);
    }

    /// Writes an ICMP echo request or, from the server, its reply; replaces what is there.
    pub(crate) fn echo(
        &mut self,
        out: &mut Vec<u8>,
        ends: &Ends,
        from: From,
        id: u16,
        sequence: u16,
        payload: Payload,
    ) {
        let (proto, types) = if ends.v6 { (ICMPV6, [128, 129]) } else { (ICMP, [8, 0]) };
        let mut h = [0_u8; 8];
        h[0] = types[usize::from(from == From::Server)];
        h[4..6].copy_from_slice(&id.to_be_bytes());
        h[6..8].copy_from_slice(&sequence.to_be_bytes());
        self.packet(out, ends, from, proto, &mut h, 2, payload);
    }

    fn len(&self, payload: Payload) -> usize {
        match payload {
            Payload::Pattern(len) => usize::from(len).min(self.pattern.len()),
            Payload::Bytes(bytes) => bytes.len(),
        }
    }

    /// The layers around a transport header whose checksum field, at `checksum_at`, is still zero.
    #[allow(clippy::too_many_arguments, reason = "called from the three functions above only, each naming its part")]
    fn packet(
        &mut self,
        out: &mut Vec<u8>,
        ends: &Ends,
        from: From,
        proto: u8,
        transport: &mut [u8],
        checksum_at: usize,
        payload: Payload,
    ) {
        let (body, body_sum) = match payload {
            Payload::Pattern(len) => {
                let len = usize::from(len).min(self.pattern.len());
                (&self.pattern[..len], u64::from(self.pattern_sums[len]))
            }
            Payload::Bytes(bytes) => (bytes, sum(bytes)),
        };
        let (source, target) = match from {
            From::Client => (&ends.client, &ends.server),
            From::Server => (&ends.server, &ends.client),
        };
        let (macs, ttl) = match from {
            From::Client => ([SERVER_SIDE_MAC, CLIENT_SIDE_MAC], 64),
            From::Server => ([CLIENT_SIDE_MAC, SERVER_SIDE_MAC], 57),
        };
        let transport_len = transport.len() + body.len();
        let address_len = if ends.v6 { 16 } else { 4 };
        let (source, target) = (&source[..address_len], &target[..address_len]);

        let pseudo = sum(source) + sum(target) + u64::from(proto) + transport_len as u64;
        let pseudo = if proto == ICMP { 0 } else { pseudo };
        let mut checksum = fold(pseudo + sum(transport) + body_sum);
        if proto == UDP && checksum == 0 {
            checksum = 0xffff; // zero would mean "none" (RFC 768)
        }
        transport[checksum_at..checksum_at + 2].copy_from_slice(&checksum.to_be_bytes());

        out.clear();
        out.extend_from_slice(&macs[0]);
        out.extend_from_slice(&macs[1]);
        if ends.v6 {
            let mut h = [0_u8; 2 + 40];
            h[..2].copy_from_slice(&[0x86, 0xdd]);
            h[2] = 0x60;
            h[6..8].copy_from_slice(&(transport_len as u16).to_be_bytes());
            h[8] = proto;
            h[9] = ttl;
            h[10..26].copy_from_slice(source);
            h[26..42].copy_from_slice(target);
            out.extend_from_slice(&h);
        } else {
            self.ip_id = self.ip_id.wrapping_add(1);
            let mut h = [0_u8; 2 + 20];
            h[0] = 0x08;
            h[2] = 0x45;
            h[4..6].copy_from_slice(&(20 + transport_len as u16).to_be_bytes());
            h[6..8].copy_from_slice(&self.ip_id.to_be_bytes());
            h[8] = 0x40; // don't fragment
            h[10] = ttl;
            h[11] = proto;
            h[14..18].copy_from_slice(source);
            h[18..22].copy_from_slice(target);
            let checksum = fold(sum(&h[2..]));
            h[12..14].copy_from_slice(&checksum.to_be_bytes());
            out.extend_from_slice(&h);
        }
        out.extend_from_slice(transport);
        out.extend_from_slice(body);
        debug_assert!(out.len() > ETHERNET_LEN);
    }
}

fn ports(ends: &Ends, from: From) -> (u16, u16) {
    match from {
        From::Client => (ends.client_port, ends.server_port),
        From::Server => (ends.server_port, ends.client_port),
    }
}

/// Sum of big-endian 16-bit words, an odd last byte padded with zero (RFC 1071). Cannot overflow below 2^48 words.
pub(crate) fn sum(bytes: &[u8]) -> u64 {
    let pairs = bytes.chunks_exact(2);
    let odd = pairs.remainder().first().map_or(0, |b| u64::from(*b) << 8);
    pairs.map(|pair| u64::from(u16::from_be_bytes([pair[0], pair[1]]))).sum::<u64>() + odd
}

/// The Internet checksum (RFC 1071) of what [`sum`] added up.
pub(crate) fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tabled_sums_equal_plain_ones() {
        let encoder = Encoder::new();
        for len in [0, 1, 2, 3, 39, 536, 1459, 1460, 8_999, 9_000] {
            assert_eq!(u64::from(encoder.pattern_sums[len]), sum(&encoder.pattern[..len]), "{len}");
        }
    }

    #[test]
    fn checksum_of_the_rfc_1071_example() {
        assert_eq!(fold(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7])), !0xddf2);
    }
}
