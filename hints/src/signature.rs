//! Protocols that one payload gives away. Each check is a few compares on bytes that the protocol's own document fixes;
//! what could be something else is told only on the protocol's port, or not at all.

use crate::App;
use crate::cursor::{u16_at, u32_at};

/// Labels by a TCP payload that is no TLS, HTTP, SSH or DNS.
pub(crate) fn tcp(bytes: &[u8], len: usize, src_port: u16, dst_port: u16) -> App {
    let on = |port: u16| src_port == port || dst_port == port;
    let Some(head) = bytes.first_chunk::<4>() else { return App::None };
    if is_text(head) {
        return tcp_text(bytes, on);
    }
    match *head {
        // NetBIOS session service (RFC 1002 section 4.3.1), then SMB 1, 2 or 3.
        [0, _, _, _] if matches!(bytes.get(4..8), Some(b"\xffSMB" | b"\xfeSMB" | b"\xfdSMB")) => App::Smb,
        // TPKT (RFC 1006), then a connection request or confirm of X.224 class 0; RDP is what asks so.
        [3, 0, high, low] if usize::from(u16::from_be_bytes([high, low])) == len && on(3389) => App::Rdp,
        [3, 0, high, low]
            if usize::from(u16::from_be_bytes([high, low])) == len
                && bytes.get(5) == Some(&0xe0)
                && bytes.get(11..).is_some_and(|rest| rest.starts_with(b"Cookie: mstshash=")) =>
        {
            App::Rdp
        }
        // CONNECT of MQTT 3.1, 3.1.1 and 5 (section 3.1).
        [0x10, ..] if [2, 3].into_iter().any(|at| is_mqtt_name(bytes.get(at..))) => App::Mqtt,
        // Handshake of BEP 3.
        [0x13, ..] if bytes.starts_with(b"\x13BitTorrent protocol") => App::Bittorrent,
        // Startup, SSL and GSS requests, cancel: length, then 3.0 or 1234.56xx.
        [0, 0, _, _] if is_postgres_start(bytes, len) => App::Postgres,
        // First packet of a server: number 0, protocol 10, a version as text.
        [_, _, 0, 0] if on(3306) && bytes.get(4) == Some(&10) && bytes.get(5).is_some_and(u8::is_ascii_digit) => {
            App::Mysql
        }
        // Data link header of IEEE 1815: start, length, control, addresses, checksum.
        [0x05, 0x64, 5..=255, _] if bytes.len() >= 10 && (on(20000) || dnp3_checksum_fits(bytes)) => App::Dnp3,
        // Modbus header: transaction, protocol 0, length.
        [_, _, 0, 0] if on(502) && u16_at(bytes, 4).is_some_and(|n| usize::from(n) + 6 == len) => App::Modbus,
        // LDAPMessage: a sequence that begins with a small message id, then an operation.
        [0x30, ..] if on(389) && is_ldap(bytes) => App::Ldap,
        // Record mark, then [APPLICATION n] of RFC 4120.
        [0, 0, _, _] if on(88) && matches!(bytes.get(4), Some(0x6a..=0x7e)) => App::Kerberos,
        // OpenVPN behind its length: reset of client (7) or server (8), version 2.
        [_, _, 0x38 | 0x40, _] if on(1194) && usize::from(u16::from_be_bytes([head[0], head[1]])) + 2 == len => {
            App::Openvpn
        }
        _ => App::None,
    }
}

/// The first bytes are printable, or end a line.
fn is_text(head: &[u8; 4]) -> bool {
    head.iter().all(|b| matches!(b, 0x20..0x7f | b'\r' | b'\n'))
}

fn tcp_text(bytes: &[u8], on: impl Fn(u16) -> bool) -> App {
    let starts = |text: &[u8]| bytes.starts_with(text);
    let first_line = bytes.split(|b| *b == b'\n').next().unwrap_or_default();
    let says = |words: &[&[u8]]| {
        words.iter().any(|word| first_line.windows(word.len()).take(200).any(|w| w.eq_ignore_ascii_case(word)))
    };
    match bytes[0] {
        b'2' if starts(b"220") && matches!(bytes.get(3), Some(b' ' | b'-')) => match () {
            () if on(21) => App::Ftp,
            () if on(25) || on(587) => App::Smtp,
            () if says(&[b"SMTP"]) => App::Smtp,
            () if says(&[b"FTP"]) => App::Ftp,
            () => App::None,
        },
        b'E' | b'H' if starts(b"EHLO ") || starts(b"HELO ") => App::Smtp,
        b'U' if starts(b"USER ") && on(21) => App::Ftp,
        b'*' if starts(b"* OK") || starts(b"* PREAUTH") => App::Imap,
        // An array of bulk strings (RESP): `*3\r\n$3\r\nSET\r\n`.
        b'*' if is_redis_array(bytes) => App::Redis,
        b'+' if starts(b"+OK") && on(110) => App::Pop3,
        b'P' if starts(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n") => App::Http2,
        b'R' if starts(b"RFB 00") && bytes.get(11) == Some(&b'\n') => App::Vnc,
        _ => App::None,
    }
}

fn is_redis_array(bytes: &[u8]) -> bool {
    let mut rest = &bytes[1..bytes.len().min(16)];
    for mark in [&b"\r\n$"[..], b"\r\n"] {
        let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
        if !(1..=4).contains(&digits) || !rest[digits..].starts_with(mark) {
            return false;
        }
        rest = &rest[digits + mark.len()..];
    }
    true
}

fn is_mqtt_name(bytes: Option<&[u8]>) -> bool {
    let Some(bytes) = bytes else { return false };
    bytes.starts_with(b"\0\x04MQTT") || bytes.starts_with(b"\0\x06MQIsdp")
}

fn is_postgres_start(bytes: &[u8], len: usize) -> bool {
    let (Some(announced), Some(code)) = (u32_at(bytes, 0), u32_at(bytes, 4)) else { return false };
    let whole = announced as usize == len;
    match code {
        // 1234.5678 to 1234.5680.
        80_877_102..=80_877_104 => whole,
        0x0003_0000..=0x0003_0002 => {
            whole && bytes.get(8..13).is_some_and(|key| key.iter().all(u8::is_ascii_graphic) || key == b"user\0")
        }
        _ => false,
    }
}

/// Checksum of a data link header: CRC-16/DNP over its first eight bytes (IEEE 1815 section 9).
fn dnp3_checksum_fits(bytes: &[u8]) -> bool {
    let Some((data, crc)) = bytes.get(..10).map(|header| header.split_at(8)) else { return false };
    let step = |crc: u16, _| if crc & 1 == 1 { crc >> 1 ^ 0xa6bc } else { crc >> 1 };
    let sum = data.iter().fold(0_u16, |crc, byte| (0..8).fold(crc ^ u16::from(*byte), step));
    crc == (!sum).to_le_bytes()
}

fn is_ldap(bytes: &[u8]) -> bool {
    // Length in one to five bytes, then INTEGER of one to four, then [APPLICATION 0..=25].
    let Some(length) = bytes.get(1) else { return false };
    let at = 2 + match length {
        0..=0x7f => 0,
        0x81..=0x84 => usize::from(length & 7),
        _ => return false,
    };
    match bytes.get(at..) {
        Some([2, id_len @ 1..=4, rest @ ..]) => {
            matches!(rest.get(usize::from(*id_len)), Some(0x40..=0x59 | 0x60..=0x79))
        }
        _ => false,
    }
}

/// Labels by a UDP payload that is no QUIC, DNS or DHCP.
#[inline]
pub(crate) fn udp(bytes: &[u8], len: usize, src_port: u16, dst_port: u16) -> App {
    let Some(head) = bytes.first_chunk::<8>() else { return App::None };
    // Magic cookie (RFC 8489 section 5), types of two zero bits, attributes in words.
    if head[4..] == [0x21, 0x12, 0xa4, 0x42]
        && head[0] < 4
        && usize::from(u16::from_be_bytes([head[2], head[3]])) + 20 == len
    {
        return App::Stun;
    }
    match head {
        // Initiation, response, cookie: type, three zero bytes, a fixed length (Donenfeld 2017, section 5.4).
        [1, 0, 0, 0, ..] if len == 148 => return App::Wireguard,
        [2, 0, 0, 0, ..] if len == 92 => return App::Wireguard,
        [3, 0, 0, 0, ..] if len == 64 => return App::Wireguard,
        // Bencoded dictionaries of BEP 5 begin with one of its keys.
        b"d1:ad2:i" | b"d1:rd2:i" => return App::Bittorrent,
        [b'd', b'1', b':', b'e', b'l', ..] | [b'd', b'2', b':', b'i', b'p', ..] => return App::Bittorrent,
        _ => {}
    }
    // A well-known port is the lower one, as good as always; both above is what most payloads end with.
    match src_port.min(dst_port) {
        69 if is_tftp_request(bytes) => App::Tftp,
        88 if matches!(head[0], 0x6a..=0x7e) => App::Kerberos,
        123 if is_ntp(head[0], len) => App::Ntp,
        137 if len >= 12 && head[4] == 0 && head[5] <= 1 => App::Netbios,
        161 | 162 if is_snmp(bytes) => App::Snmp,
        389 if is_ldap(bytes) => App::Ldap,
        514 if is_syslog(bytes) => App::Syslog,
        // Reset of client (7) or server (8), version 2.
        1194 if matches!(head[0], 0x38 | 0x40) => App::Openvpn,
        20000 if bytes.starts_with(&[0x05, 0x64]) => App::Dnp3,
        _ => App::None,
    }
}

/// Versions 1 to 4, a mode (RFC 5905 section 7.3); symmetric and client-server packets have at least a whole header.
fn is_ntp(first: u8, len: usize) -> bool {
    let (version, mode) = (first >> 3 & 7, first & 7);
    (1..=4).contains(&version)
        && match mode {
            1..=5 => len >= 48,
            6 | 7 => len >= 8,
            _ => false,
        }
}

/// A sequence whose first element is the version, INTEGER 0, 1 or 3.
fn is_snmp(bytes: &[u8]) -> bool {
    let at = match bytes {
        [0x30, 0..=0x7f, ..] => 2,
        [0x30, n @ 0x81..=0x84, ..] => 2 + usize::from(n & 7),
        _ => return false,
    };
    matches!(bytes.get(at..), Some([2, 1, 0 | 1 | 3, ..]))
}

/// `<` priority `>` (RFC 5424 section 6.2.1).
fn is_syslog(bytes: &[u8]) -> bool {
    let digits = bytes[1..].iter().take(4).take_while(|b| b.is_ascii_digit()).count();
    bytes[0] == b'<' && (1..=3).contains(&digits) && bytes.get(1 + digits) == Some(&b'>')
}

/// Read or write request: opcode, name, mode (RFC 1350 section 5).
fn is_tftp_request(bytes: &[u8]) -> bool {
    let [0, 1 | 2, rest @ ..] = bytes else { return false };
    let mut parts = rest.split(|b| *b == 0);
    let name = parts.next().unwrap_or_default();
    let mode = parts.next().unwrap_or_default();
    let modes: [&[u8]; 3] = [b"octet", b"netascii", b"mail"];
    !name.is_empty() && name.len() < 256 && modes.iter().any(|known| mode.eq_ignore_ascii_case(known))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of_tcp(bytes: &[u8], port: u16) -> App {
        tcp(bytes, bytes.len(), 50000, port)
    }

    fn of_udp(bytes: &[u8], port: u16) -> App {
        udp(bytes, bytes.len(), port, 50000)
    }

    #[test]
    fn first_payloads_over_tcp() {
        let cases: &[(&[u8], u16, App)] = &[
            (b"\0\0\0\x54\xfeSMB\x40", 1, App::Smb),
            (b"\x03\0\0\x13\x0e\xe0\0\0\0\0\0\x01\0\x08\0\x03\0\0\0", 3389, App::Rdp),
            (b"\x10\x10\0\x04MQTT\x04\x02", 1, App::Mqtt),
            (b"\x13BitTorrent protocol\0\0", 1, App::Bittorrent),
            (b"\0\0\0\x08\x04\xd2\x16\x2f", 1, App::Postgres),
            (b"\0\0\0\x0f\0\x03\0\0user\0a\0", 1, App::Postgres),
            (b"\x4a\0\0\0\x0a8.0.36\0", 3306, App::Mysql),
            // Link reset of the standard's own checksum example.
            (b"\x05\x64\x05\xc0\x01\0\0\x04\xe9\x21", 1, App::Dnp3),
            (b"\0\x01\0\0\0\x06\x01\x03\0\0\0\x01", 502, App::Modbus),
            (b"\x30\x0c\x02\x01\x01\x60\x07\x02\x01\x03\x04\0\x80\0", 389, App::Ldap),
            (b"220 mail ESMTP ready\r\n", 1, App::Smtp),
            (b"220 (vsFTPd 3)\r\n", 1, App::Ftp),
            (b"220 hello\r\n", 1, App::None),
            (b"EHLO a\r\n", 1, App::Smtp),
            (b"* OK IMAP4 ready\r\n", 1, App::Imap),
            (b"*2\r\n$4\r\nLLEN\r\n", 1, App::Redis),
            (b"*2\r\n!4\r\nLLEN\r\n", 1, App::None),
            (b"+OK POP3\r\n", 110, App::Pop3),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 1, App::Http2),
            (b"RFB 003.008\n", 1, App::Vnc),
        ];
        for (bytes, port, app) in cases {
            assert_eq!(of_tcp(bytes, *port), *app, "{}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn first_payloads_over_udp() {
        let stun = [&[0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42][..], &[7; 12]].concat();
        let wireguard = [&[1, 0, 0, 0][..], &[7; 144]].concat();
        let ntp = [&[0x23][..], &[0; 47]].concat();
        let cases: &[(&[u8], u16, App)] = &[
            (&stun, 1, App::Stun),
            (&stun[..19], 1, App::None),
            (&wireguard, 1, App::Wireguard),
            (&ntp, 123, App::Ntp),
            (&ntp, 124, App::None),
            (b"d1:ad2:id20:", 1, App::Bittorrent),
            (b"\x30\x26\x02\x01\x01\x04\x06public", 161, App::Snmp),
            (b"\x30\x82\x01\x26\x02\x01\x03\x04", 161, App::Snmp),
            (b"<34>Oct 11 22:14:15", 514, App::Syslog),
            (b"<3400>Oct 11", 514, App::None),
            (b"\0\x01a.bin\0octet\0", 69, App::Tftp),
            (b"\x38\x01\x02\x03\x04\x05\x06\x07\x08", 1194, App::Openvpn),
        ];
        for (bytes, port, app) in cases {
            assert_eq!(of_udp(bytes, *port), *app, "{}", String::from_utf8_lossy(bytes));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(
            bytes in prop::collection::vec(any::<u8>(), 1..60),
            port in prop::sample::select(vec![21, 25, 69, 88, 110, 123, 137, 161, 389, 502, 514, 1194, 3306, 3389, 20000]),
        ) {
            of_tcp(&bytes, port);
            of_udp(&bytes, port);
        }
    }
}
