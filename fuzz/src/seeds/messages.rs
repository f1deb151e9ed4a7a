//! Messages of the protocols that the inspector knows, written by hand.

fn sized8(bytes: &[u8]) -> Vec<u8> {
    [&[bytes.len() as u8], bytes].concat()
}

fn sized16(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes(), bytes].concat()
}

/// A ClientHello (RFC 8446 section 4.1.2), handshake header included.
fn client_hello(name: &str, quic: bool) -> Vec<u8> {
    let ciphers: Vec<u8> = [0x1a1a_u16, 0x1301, 0x1302, 0xc02b, 0xc02f, 0x002f].map(u16::to_be_bytes).concat();
    let mut extensions = vec![
        (0x0a0a_u16, vec![]),
        (0, sized16(&[&[0][..], &sized16(name.as_bytes())].concat())),
        (10, sized16(&[0, 29, 0, 23])),
        (13, sized16(&[4, 3, 8, 4, 4, 1])),
        (16, sized16(&[sized8(b"h2"), sized8(b"http/1.1")].concat())),
        (43, sized8(&[0x0a, 0x0a, 3, 4, 3, 3])),
        (51, sized16(&[&[0, 29][..], &sized16(&[7; 32])].concat())),
    ];
    if quic {
        extensions.push((57, vec![1, 2, 0x43, 0x44]));
    }
    let extensions: Vec<u8> =
        extensions.iter().flat_map(|(kind, data)| [&kind.to_be_bytes()[..], &sized16(data)].concat()).collect();
    let session: &[u8] = if quic { &[] } else { &[9; 32] };
    let body = [&[3, 3][..], &[5; 32], &sized8(session), &sized16(&ciphers), &[1, 0], &sized16(&extensions)].concat();
    [&[1, 0][..], &sized16(&body)].concat()
}

/// Records with at most `each` bytes of a message.
fn records(message: &[u8], each: usize) -> Vec<u8> {
    message.chunks(each).flat_map(|part| [&[22, 3, 1][..], &sized16(part)].concat()).collect()
}

pub(super) fn tls_streams() -> Vec<Vec<u8>> {
    let hello = client_hello("www.example.com", false);
    let server_hello = [&[2, 0, 0, 38, 3, 3][..], &[6; 32], &[0, 0x13, 1, 0]].concat();
    let v2 = [&[0x80, 46, 1, 3, 1, 0, 21, 0, 0, 0, 16][..], &[0x33; 37]].concat();
    vec![
        records(&hello, 1 << 14),
        records(&hello, 100),
        records(&hello, 3),
        records(&client_hello("", false), 1 << 14),
        records(&server_hello, 1 << 14),
        [vec![23, 3, 3, 0, 4, 1, 2, 3, 4], vec![20, 3, 3, 0, 1, 1]].concat(),
        v2,
    ]
}

/// CRYPTO frames with a ClientHello (RFC 9000 section 19.6), whole, in pieces out of order, and among other frames.
pub(super) fn crypto_frames() -> Vec<Vec<u8>> {
    let hello = client_hello("quic.example.com", true);
    let frame = |from: usize, to: usize| {
        let bytes = &hello[from.min(hello.len())..to.min(hello.len())];
        let varint = |value: usize| (0x4000 | value as u16).to_be_bytes();
        [&[6][..], &varint(from), &varint(bytes.len()), bytes].concat()
    };
    vec![
        frame(0, 4096),
        [frame(60, 4096), vec![0; 9], frame(0, 40), vec![1], frame(30, 70)].concat(),
        [vec![2, 5, 0, 1, 0, 0, 0], frame(0, 4096), vec![3, 5, 0, 0, 0, 1, 2, 3]].concat(),
        frame(0, 100),
        frame(100, 4096),
    ]
}

/// As `quic_sealed` reads them: a hello in one datagram, and in two.
pub(super) fn sealed() -> Vec<Vec<u8>> {
    let datagram = |how: u8, frames: &[u8]| [&[how][..], &sized16(frames)].concat();
    let frames = crypto_frames();
    let mut seeds: Vec<Vec<u8>> = frames.iter().map(|f| datagram(1, f)).collect();
    seeds.push([datagram(0, &frames[3]), datagram(1, &frames[4])].concat());
    seeds.push([datagram(9, &frames[4]), datagram(1, &frames[4]), datagram(5, &frames[3])].concat());
    seeds
}

pub(super) fn http() -> Vec<Vec<u8>> {
    [
        "GET /index.html HTTP/1.1\r\nHost: www.example.com\r\nUser-Agent: Mozilla/5.0 (X11)\r\nAccept: */*\r\n\r\n",
        "POST http://example.com:8080/x HTTP/1.0\r\nhost:example.com\r\nContent-Length: 3\r\n\r\nabc",
        "CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n",
        "HTTP/1.1 200 OK\r\nServer: x\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: \"ssdp:discover\"\r\n\r\n",
        "INVITE sip:bob@example.com SIP/2.0\r\nUser-Agent: phone\r\nVia: SIP/2.0/UDP x\r\n\r\n",
        "SIP/2.0 200 OK\r\n\r\n",
        "OPTIONS rtsp://example.com/ RTSP/1.0\r\nCSeq: 1\r\n\r\n",
        "GET / HTTP/1.1\nHost : folded\n continued\nUser-Agent\t: a\u{e9}\n\n",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

/// Answers with many kinds of records, compression pointers and EDNS (RFC 1035, RFC 6891, RFC 9460).
pub(super) fn dns() -> Vec<Vec<u8>> {
    let record =
        |kind: u16, data: &[u8]| [&[0xc0, 12][..], &kind.to_be_bytes(), &[0, 1, 0, 0, 0, 60], &sized16(data)].concat();
    let question = b"\x03www\x07example\x03com\0\0\x01\0\x01";
    let header =
        |flags: [u8; 2], answers: u8, more: u8| [0x12, 0x34, flags[0], flags[1], 0, 1, 0, answers, 0, 0, 0, more];
    let answers = [
        record(1, &[192, 0, 2, 1]),
        record(28, &[0x20; 16]),
        record(5, &[3, b'a', b'b', b'c', 0xc0, 12]),
        record(15, &[0, 10, 0xc0, 12]),
        record(16, b"\x05hello\x03you"),
        record(33, &[0, 1, 0, 2, 0x13, 0x88, 0xc0, 16]),
        record(65, b"\0\x01\0\0\x01\0\x03\x02h2\0\x04\0\x04\xc0\0\x02\x07"),
    ];
    let opt = [&[0, 0, 41, 16, 0, 1, 0, 0, 0][..], &sized16(&[])].concat();
    let whole = [&header([0x81, 0x80], answers.len() as u8, 1)[..], question, &answers.concat(), &opt].concat();
    let looped = [&header([1, 0], 0, 0)[..], &[0xc0, 12, 0, 1, 0, 1]].concat();
    let refused = [&header([0x81, 0x85], 0, 0)[..], question].concat();
    let mut behind_lengths = sized16(&refused);
    behind_lengths.extend(sized16(&whole));
    vec![whole, looped, refused, behind_lengths]
}

/// Beginnings of other protocols.
pub(super) fn first_payloads() -> Vec<Vec<u8>> {
    let mut dhcp = vec![0; 240];
    (dhcp[0], dhcp[1], dhcp[2]) = (1, 1, 6);
    dhcp[236..].copy_from_slice(&[0x63, 0x82, 0x53, 0x63]);
    dhcp.extend(b"\x35\x01\x01\x0c\x06laptop\x3c\x08MSFT 5.0\x51\x06\0\0\0host\xff");
    let dhcp6 = b"\x01\x12\x34\x56\0\x27\0\x07\x01\x04host\x00\0\x10\0\x0c\0\0\x01\x37\0\x06vendor".to_vec();
    let mut stun = vec![0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42];
    stun.resize(20, 7);
    let mut ntp = vec![0x23, 0, 6, 0xec];
    ntp.resize(48, 0);
    let mut wireguard = vec![1, 0, 0, 0];
    wireguard.resize(148, 5);
    vec![
        dhcp,
        dhcp6,
        stun,
        ntp,
        wireguard,
        b"SSH-2.0-OpenSSH_9.6\r\n".to_vec(),
        b"220 mail.example.com ESMTP ready\r\n".to_vec(),
        b"* OK IMAP4rev1\r\n".to_vec(),
        b"+OK POP3\r\n".to_vec(),
        b"\x13BitTorrent protocol\0\0\0\0\0\0\0\0".to_vec(),
        b"\x10\x0c\0\x04MQTT\x04\x02\0\x3c\0\0".to_vec(),
        b"\0\0\0\x2f\xffSMBr\0\0\0\0".to_vec(),
        b"\x03\0\0\x13\x0e\xe0\0\0\0\0\0\x01\0\x08\0\x03\0\0\0".to_vec(),
        b"\0\0\0\x08\x04\xd2\x16\x2f".to_vec(),
        b"\x30\x26\x02\x01\x01\x04\x06public\xa0\x19\x02\x04\0\0\0\x01\x02\x01\0".to_vec(),
        b"\0\x01file.bin\0octet\0".to_vec(),
        b"<34>Oct 11 22:14:15 host su: failed\n".to_vec(),
        b"\x05\x64\x05\xc0\x01\0\0\0\x04\xe9\x21".to_vec(),
        b"\0\x01\0\0\0\x06\x11\x03\0\x6b\0\x03".to_vec(),
        b"\x4a\0\0\0\x0a8.0.36\0".to_vec(),
        b"\0\0\0\x6c\x6a\x81\x6a0h".to_vec(),
    ]
}

/// Capture filters, with a frame behind the zero byte.
pub(super) fn filters() -> Vec<Vec<u8>> {
    let frame = [
        &[2; 12][..],
        &[8, 0, 0x45, 0, 0, 44, 0, 1, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2],
        &[0, 80, 4, 210],
        &[0; 20],
    ]
    .concat();
    [
        "",
        "tcp port 80 or 443",
        "not (src host 10.0.0.1 and dst net 192.0.2.0/24)",
        "ip6 host 2001:db8::1 and udp portrange 1000-2000",
        "vlan 5 and ip proto 47",
        "mpls 100 and mpls and tcp",
        "pppoes 7 and icmp[icmptype] = icmp-echo",
        "ether host 00:11:22:33:44:55 or ether proto 0x88cc",
        "tcp[tcpflags] & (tcp-syn|tcp-fin) != 0",
        "(ip[2:2] - ((ip[0] & 0xf) << 2)) > 100 and len <= 1500",
        "greater 60 and less 1514 and ether[0] & 1 = 0",
        "net 10 mask 255.0.0.0 or broadcast or ip multicast",
        "arp or rarp or icmp6 or sctp or ah or esp",
    ]
    .map(|text| [text.as_bytes(), &[0], &frame].concat())
    .to_vec()
}
