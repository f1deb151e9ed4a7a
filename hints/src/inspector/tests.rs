//! Flows through the inspector: whatever way their first payloads are cut, ordered and repeated.

use super::*;
use crate::dhcp::tests::request;
use crate::dns::build::{query, response};
use crate::hello::tests::{chrome, name_extension};
use crate::quic::tests::{crypto_frame, initial, rfc_9001_initial};
use crate::tls::tests::records;
use proptest::prelude::*;

/// A hint whose texts outlive it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Told {
    app: App,
    name: String,
    alpn: String,
    agent: String,
    ja4: String,
}

/// Merges hints as a flow does.
#[derive(Default)]
struct Sink {
    told: Told,
    hints: usize,
    dns: Vec<(DnsRecord, String, String)>,
}

impl HintSink for Sink {
    fn hint(&mut self, hint: &Hint<'_>) {
        self.hints += 1;
        if hint.app != App::None {
            self.told.app = hint.app;
        }
        let told = &mut self.told;
        let texts = [(&mut told.name, hint.name), (&mut told.alpn, hint.alpn), (&mut told.agent, hint.agent)];
        for (text, new) in texts.into_iter().chain([(&mut told.ja4, hint.ja4)]) {
            if !new.is_empty() {
                *text = new.to_owned();
            }
        }
    }

    fn dns(&mut self, record: &DnsRecord, text: &[u8]) {
        let (question, answers) = text.split_at(usize::from(record.question_len));
        assert_eq!(answers.len(), usize::from(record.answers_len));
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
        self.dns.push((*record, text(question), text(answers)));
    }
}

/// One flow of a client to a port.
struct Flow {
    inspector: Inspector,
    sink: Sink,
    progress: Progress,
    proto: u8,
    port: u16,
    seq: [u32; 2],
    /// Where what came last in each stream ends, as a flow table knows it.
    next: [u32; 2],
    time: Nanos,
}

impl Flow {
    fn new(proto: u8, port: u16) -> Flow {
        Flow::with(proto, port, InspectLimits::default())
    }

    fn with(proto: u8, port: u16, limits: InspectLimits) -> Flow {
        let (inspector, sink) = (Inspector::new(limits), Sink::default());
        let seq = [u32::MAX - 20, 7];
        let time = Nanos::from_secs(100);
        Flow { inspector, sink, progress: Progress::default(), proto, port, seq, next: seq, time }
    }

    fn send_at(&mut self, from_originator: bool, seq: u32, bytes: &[u8], len: usize) {
        if !self.progress.wants() {
            return;
        }
        let (client, server) = ((Addr::v4([192, 0, 2, 1]), 50000), (Addr::v4([192, 0, 2, 2]), self.port));
        let ((src, src_port), (dst, dst_port)) = if from_originator { (client, server) } else { (server, client) };
        let next = &mut self.next[usize::from(!from_originator)];
        let missing = (seq.wrapping_sub(*next) as i32).max(0) as u32;
        let end = seq.wrapping_add(len as u32);
        *next = if end.wrapping_sub(*next) as i32 > 0 { end } else { *next };
        let payload = Payload {
            bytes,
            len: len as u32,
            seq,
            missing: if self.proto == proto::TCP { missing } else { 0 },
            proto: self.proto,
            src_port,
            dst_port,
            from_originator,
            src,
            dst,
            flow_id: 42,
            tap: TapId(3),
            vlan: 9,
            ts: self.time,
            clock: self.time,
        };
        self.inspector.inspect(&payload, &mut self.progress, &mut self.sink);
    }

    /// The next bytes of one side.
    fn send(&mut self, from_originator: bool, bytes: &[u8]) {
        let side = usize::from(!from_originator);
        self.send_at(from_originator, self.seq[side], bytes, bytes.len());
        self.seq[side] = self.seq[side].wrapping_add(bytes.len() as u32);
    }

    fn client(&mut self, bytes: &[u8]) {
        self.send(true, bytes);
    }

    fn server(&mut self, bytes: &[u8]) {
        self.send(false, bytes);
    }
}

fn hello_told() -> Told {
    Told {
        app: App::Tls,
        name: "example.com".into(),
        alpn: "h2".into(),
        agent: String::new(),
        ja4: "t13d1516h2_8daaf6152771_e5627efa2ab1".into(),
    }
}

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: example.com\r\nAccept: */*\r\nUser-Agent: curl/8\r\n\r\n";

proptest! {
    #[test]
    fn a_hello_cut_anywhere_says_the_same(
        mut cuts in prop::collection::vec(1..600usize, 0..7),
        each in 1..700usize,
        again in any::<prop::sample::Index>(),
    ) {
        let stream = records(&chrome().message(), each);
        let mut flow = Flow::new(proto::TCP, 8443);
        cuts.retain(|cut| *cut < stream.len());
        cuts.extend([0, stream.len()]);
        cuts.sort_unstable();
        cuts.dedup();
        let start = flow.seq[0];
        let again = again.index(cuts.len() - 1);
        for (index, ends) in cuts.windows(2).enumerate() {
            flow.client(&stream[ends[0]..ends[1]]);
            if index == again {
                flow.send_at(true, start, &stream[..ends[1]], ends[1]);
            }
        }
        prop_assert_eq!(&flow.sink.told, &hello_told());
        prop_assert!(!flow.progress.wants());
    }

    #[test]
    fn segments_of_a_hello_in_any_order(
        (order, count) in (2..30usize).prop_flat_map(|count| (Just((0..count).collect::<Vec<_>>()).prop_shuffle(), Just(count))),
        port in prop_oneof![Just(443_u16), Just(53), Just(25)],
    ) {
        let stream = records(&chrome().message(), 5000);
        let mut flow = Flow::new(proto::TCP, port);
        let (start, each) = (flow.seq[0], stream.len().div_ceil(count));
        let pieces: Vec<_> = stream.chunks(each).collect();
        for index in order.into_iter().filter(|index| *index < pieces.len()) {
            let seq = start.wrapping_add((index * each) as u32);
            flow.send_at(true, seq, pieces[index], pieces[index].len());
        }
        prop_assert_eq!(&flow.sink.told, &hello_told());
        prop_assert!(!flow.progress.wants());
        prop_assert_eq!(flow.inspector.counts().assemblies, 1);
    }

    #[test]
    fn a_request_cut_anywhere_says_the_same(cut in 1..REQUEST.len() - 1, second in 1..REQUEST.len() - 1) {
        let mut flow = Flow::new(proto::TCP, 8000);
        let (cut, second) = (cut.min(second), cut.max(second));
        for piece in [&REQUEST[..cut], &REQUEST[cut..second], &REQUEST[second..]] {
            flow.client(piece);
        }
        let told = &flow.sink.told;
        prop_assert_eq!((told.app, &told.name[..], &told.agent[..]), (App::Http, "example.com", "curl/8"));
    }

    #[test]
    fn crypto_frames_in_any_order_over_any_datagrams(
        order in Just((0..12usize).collect::<Vec<_>>()).prop_shuffle(),
        per_packet in 1..13usize,
        per_datagram in 1..4usize,
        version in prop::sample::select(vec![1u32, 0x6b33_43cf, 0xff00_001d]),
    ) {
        let message = chrome().message();
        let each = message.len().div_ceil(12);
        let frame = |index: usize| crypto_frame(index * each, &message[index * each..message.len().min((index + 1) * each)]);
        let frames: Vec<Vec<u8>> = order.into_iter().map(frame).collect();
        let packets: Vec<Vec<u8>> = frames
            .chunks(per_packet)
            .enumerate()
            .map(|(number, frames)| initial(version, b"destination", b"destination", number as u8, &[&[0; 9][..], &frames.concat()].concat()))
            .collect();
        let mut flow = Flow::with(proto::UDP, 443, InspectLimits { assembly_segments_max: 12, ..InspectLimits::default() });
        for datagram in packets.chunks(per_datagram) {
            flow.server(&[0x40, 1, 2, 3]);
            flow.client(&datagram.concat());
        }
        let told = Told { app: App::Quic, ja4: hello_told().ja4.replacen('t', "q", 1), ..hello_told() };
        if packets.len().div_ceil(per_datagram) <= 3 {
            prop_assert_eq!(&flow.sink.told, &told);
        } else {
            // More datagrams than are waited for may be given up, but never wrongly told.
            prop_assert!(flow.sink.told == told || flow.sink.told.name.is_empty());
        }
    }

    #[test]
    fn any_flow_is_inspected(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        crate::fuzz::inspector(&bytes);
    }

    #[test]
    fn messages_over_tcp_cut_anywhere(mut cuts in prop::collection::vec(1..130usize, 0..8)) {
        let messages: Vec<Vec<u8>> = (1..5).map(|id| query(id, &format!("host{id}.example.com"), 28)).collect();
        let framed = |m: &Vec<u8>| [&(m.len() as u16).to_be_bytes()[..], m].concat();
        let stream: Vec<u8> = messages.iter().flat_map(framed).collect();
        cuts.retain(|cut| *cut < stream.len());
        cuts.extend([0, stream.len()]);
        cuts.sort_unstable();
        cuts.dedup();
        let mut flow = Flow::new(proto::TCP, 53);
        for ends in cuts.windows(2) {
            flow.client(&stream[ends[0]..ends[1]]);
        }
        flow.inspector.finish(&mut flow.sink);
        let names: Vec<_> = flow.sink.dns.iter().map(|(_, question, _)| question.clone()).collect();
        prop_assert_eq!(names, ["host1.example.com", "host2.example.com", "host3.example.com", "host4.example.com"]);
        prop_assert_eq!(flow.inspector.counts().dns_malformed, 0);
    }
}

/// The beginning of a side comes late, or never: what it is is told as soon as it is known, from either side.
#[test]
fn a_beginning_that_comes_late() {
    let ahead = |flow: &mut Flow, skip: usize, bytes: &[u8]| {
        let seq = flow.seq[0].wrapping_add(skip as u32);
        flow.send_at(true, seq, bytes, bytes.len());
    };
    // A request, and what goes on behind it.
    let (head, rest) = REQUEST.split_at(9);
    let mut flow = Flow::new(proto::TCP, 8000);
    ahead(&mut flow, 9, rest);
    assert_eq!(flow.sink.hints, 0);
    flow.client(head);
    assert_eq!((flow.sink.told.app, &flow.sink.told.name[..]), (App::Http, "example.com"));
    // What has a signature, not a stream.
    let mut flow = Flow::new(proto::TCP, 445);
    ahead(&mut flow, 6, b"MB\x40\0\0\0\0\0\0\0\0\0\0\0\0\0");
    flow.client(b"\0\0\0\x12\xfeS");
    assert_eq!(flow.sink.told.app, App::Smb);
    // Messages of DNS.
    let message = query(7, "late.example", 1);
    let stream = [&(message.len() as u16).to_be_bytes()[..], &message].concat();
    let mut flow = Flow::new(proto::TCP, 53);
    ahead(&mut flow, 20, &stream[20..]);
    flow.client(&stream[..20]);
    flow.client(&stream);
    flow.inspector.finish(&mut flow.sink);
    let names: Vec<_> = flow.sink.dns.iter().map(|(_, question, _)| &question[..]).collect();
    assert_eq!((flow.sink.told.app, &names[..]), (App::Dns, &["late.example"][..]));
    // Never: the other side tells, and it is given up after some payloads.
    let mut flow = Flow::new(proto::TCP, 8000);
    ahead(&mut flow, 9, rest);
    flow.server(b"HTTP/1.1 200 OK\r\n\r\n");
    assert_eq!(flow.sink.told.app, App::Http);
    let mut flow = Flow::new(proto::TCP, 8000);
    ahead(&mut flow, 9, rest);
    for _ in 0..8 {
        assert!(flow.progress.wants());
        flow.server(&[0xff; 100]);
    }
    assert!(!flow.progress.wants());
    // What follows is more than is kept: the response tells still.
    let mut flow = Flow::new(proto::TCP, 8000);
    ahead(&mut flow, 500, &[b'x'; 10_000]);
    ahead(&mut flow, 17_000, &[b'x'; 10_000]);
    flow.server(b"HTTP/1.1 200 OK\r\n\r\n");
    assert_eq!((flow.sink.told.app, flow.inspector.counts().assemblies_oversized), (App::Http, 1));
    // A beginning that says nothing: the other side may.
    let mut flow = Flow::new(proto::TCP, 8000);
    ahead(&mut flow, 100, &[0xfe; 100]);
    flow.client(&[0xff; 100]);
    flow.server(b"HTTP/1.1 200 OK\r\n\r\n");
    assert_eq!(flow.sink.told.app, App::Http);
    // Too far away to be kept.
    let mut flow = Flow::new(proto::TCP, 8000);
    ahead(&mut flow, 20_000, rest);
    assert_eq!(flow.inspector.counts().assemblies, 0);
    assert!(flow.progress.wants());
}

#[test]
fn noise_is_given_up_after_a_few_payloads() {
    let mut flow = Flow::new(proto::TCP, 40000);
    for _ in 0..4 {
        flow.client(&[0xc7; 100]);
        assert!(flow.progress.wants());
    }
    for _ in 0..4 {
        assert!(flow.progress.wants());
        flow.server(&[0xc7; 100]);
    }
    assert!(!flow.progress.wants());
    assert_eq!(flow.sink.hints, 0);
    // One side alone is given up as well.
    let mut flow = Flow::new(proto::UDP, 40000);
    for _ in 0..7 {
        flow.client(&[0xc7; 100]);
    }
    assert!(!flow.progress.wants());
}

#[test]
fn a_hello_too_large_tells_its_name() {
    let limits = InspectLimits { assembly_bytes_max: 300, ..InspectLimits::default() };
    let mut flow = Flow::with(proto::TCP, 443, limits);
    let mut hello = chrome();
    hello.extensions.push((21, vec![0; 900]));
    let stream = records(&hello.message(), 5000);
    flow.client(&stream[..250]);
    flow.client(&stream[250..]);
    assert_eq!((&flow.sink.told.name[..], &flow.sink.told.ja4[..]), ("example.com", ""));
    assert!(!flow.progress.wants());
    assert_eq!(flow.inspector.counts().assemblies_oversized, 1);
}

#[test]
fn what_the_capture_cut_off_is_not_waited_for() {
    let mut flow = Flow::new(proto::TCP, 443);
    let stream = records(&chrome().message(), 5000);
    flow.send_at(true, 1, &stream[..200], stream.len());
    assert_eq!(flow.sink.told.name, "example.com");
    assert!(!flow.progress.wants());
    assert_eq!(flow.inspector.counts().assemblies, 0);
}

#[test]
fn a_connection_seen_from_its_middle_gets_its_label() {
    let mut flow = Flow::new(proto::TCP, 443);
    flow.server(&[23, 3, 3, 0, 9, 1, 2, 3]);
    assert_eq!(flow.sink.told.app, App::Tls);
    assert!(flow.progress.wants(), "a hello may follow");
}

#[test]
fn a_tunnel_tells_what_goes_through_it() {
    let mut flow = Flow::new(proto::TCP, 3128);
    flow.client(b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\nUser-Agent: x\r\n\r\n");
    assert_eq!((flow.sink.told.app, &flow.sink.told.name[..]), (App::Http, "example.com:443"));
    flow.server(b"HTTP/1.1 200 Connection established\r\n\r\n");
    flow.client(&records(&chrome().message(), 5000));
    assert_eq!(flow.sink.told, Told { agent: "x".into(), ..hello_told() });
}

#[test]
fn mail_that_turns_into_tls() {
    let mut flow = Flow::new(proto::TCP, 25);
    flow.server(b"220 mail ESMTP\r\n");
    assert_eq!(flow.sink.told.app, App::Smtp);
    flow.client(b"EHLO a\r\n");
    flow.server(b"250 STARTTLS\r\n");
    flow.client(b"STARTTLS\r\n");
    flow.server(b"220 go\r\n");
    flow.client(&records(&chrome().message(), 5000));
    assert_eq!(flow.sink.told.name, "example.com");
}

#[test]
fn the_client_of_ssh_is_told_whoever_speaks_first() {
    let mut flow = Flow::new(proto::TCP, 2222);
    flow.server(b"SSH-2.0-Server\r\n");
    flow.client(b"SSH-2.0-Client_1.0 x\r\n");
    let told = &flow.sink.told;
    assert_eq!((told.app, &told.agent[..], flow.progress), (App::Ssh, "SSH-2.0-Client_1.0 x", Progress::DONE));
}

#[test]
fn quic_keys_change_after_a_retry() {
    let frames = crypto_frame(0, &chrome().message());
    let (head, tail) = (crypto_frame(0, &chrome().message()[..200]), crypto_frame(200, &chrome().message()[200..]));
    let mut flow = Flow::new(proto::UDP, 443);
    flow.client(&initial(1, b"first", b"first", 0, &head));
    flow.server(&[&[0xf0, 0, 0, 0, 1, 0, 5][..], b"retry", &[1; 30]].concat());
    // All of it again, under the id that the server chose.
    flow.client(&initial(1, b"retry", b"retry", 1, &frames));
    assert_eq!((flow.sink.told.app, &flow.sink.told.name[..]), (App::Quic, "example.com"));
    // Without a Retry the server's id changes the header, not the keys.
    let mut flow = Flow::new(proto::UDP, 443);
    flow.client(&initial(1, b"first", b"first", 0, &head));
    flow.client(&initial(1, b"server", b"first", 1, &tail));
    assert_eq!(flow.sink.told.name, "example.com");
}

#[test]
fn the_client_of_rfc_9001() {
    let mut flow = Flow::new(proto::UDP, 4433);
    flow.client(&rfc_9001_initial());
    assert_eq!((flow.sink.told.app, &flow.sink.told.name[..]), (App::Quic, "example.com"));
    assert_eq!(flow.sink.told.alpn, "alpn");
    assert!(flow.sink.told.ja4.starts_with("q13d02"));
}

#[test]
fn a_question_meets_its_answer() {
    let mut flow = Flow::new(proto::UDP, 53);
    flow.client(&query(7, "www.Example.com", 1));
    assert_eq!((flow.sink.told.app, &flow.sink.told.name[..]), (App::Dns, "www.Example.com"));
    flow.time = flow.time + Nanos(1_500_000);
    flow.server(&response(7, "www.example.com", 1, 0, &[(1, 60, vec![192, 0, 2, 9])]));
    let (record, question, answers) = &flow.sink.dns[0];
    assert_eq!((&question[..], &answers[..]), ("www.Example.com", "192.0.2.9"));
    let expected = DnsRecord {
        time: Nanos::from_secs(100),
        flow_id: 42,
        tap: TapId(3),
        client: Addr::v4([192, 0, 2, 1]),
        server: Addr::v4([192, 0, 2, 2]),
        client_port: 50000,
        server_port: 53,
        proto: proto::UDP,
        vlan: 9,
        id: 7,
        qtype: 1,
        has_query: true,
        rcode: Some(0),
        latency_us: Some(1500),
        flags: 0x8180,
        answer_count: 1,
        ttl_min: Some(60),
        question_len: 15,
        answers_len: 9,
    };
    assert_eq!(*record, expected);
    assert!(flow.progress.wants(), "every message of the flow");
}

#[test]
fn queries_that_are_repeated_lost_or_never_asked() {
    let mut flow = Flow::new(proto::UDP, 53);
    flow.client(&query(7, "a.example", 1));
    flow.time = flow.time + Nanos::from_secs(1);
    flow.client(&query(7, "a.example", 1));
    assert_eq!(flow.sink.dns.len(), 1, "the repetition has its row");
    flow.time = flow.time + Nanos::from_secs(1);
    flow.server(&response(7, "a.example", 1, 3, &[]));
    assert_eq!(flow.sink.dns[1].0.latency_us, Some(2_000_000), "since it was asked first");
    flow.server(&response(7, "a.example", 1, 3, &[]));
    assert!(!flow.sink.dns[2].0.has_query && flow.sink.dns[2].0.rcode == Some(3));
    flow.client(&query(8, "b.example", 1));
    flow.inspector.advance(flow.time + Nanos::from_secs(9), &mut flow.sink);
    assert_eq!(flow.sink.dns.len(), 3);
    flow.inspector.advance(flow.time + Nanos::from_secs(10), &mut flow.sink);
    assert_eq!((flow.sink.dns[3].0.rcode, &flow.sink.dns[3].1[..]), (None, "b.example"));
    let counts = flow.inspector.counts();
    assert_eq!((counts.dns_unanswered, counts.dns_unasked, counts.dns_messages), (1, 1, 5));
}

/// Nobody lets time pass but the payloads themselves: what is over does not depend on where a batch of packets ends.
#[test]
fn what_comes_too_late_is_too_late_within_a_batch_as_well() {
    let mut flow = Flow::new(proto::UDP, 53);
    flow.client(&query(7, "a.example", 1));
    flow.time = flow.time + Nanos::from_secs(10);
    flow.server(&response(7, "a.example", 1, 0, &[]));
    let rows: Vec<_> = flow.sink.dns.iter().map(|(row, ..)| (row.has_query, row.rcode)).collect();
    assert_eq!(rows, [(true, None), (false, Some(0))]);

    let hello = records(&chrome().message(), 5000);
    for (late, name) in [(9, &hello_told().name[..]), (10, "")] {
        let mut flow = Flow::new(proto::TCP, 443);
        flow.client(&hello[..60]);
        flow.time = flow.time + Nanos::from_secs(late);
        flow.client(&hello[60..]);
        assert_eq!(flow.sink.told.name, name, "{late} s");
    }
}

#[test]
fn a_refusal_need_not_repeat_the_question() {
    let mut flow = Flow::new(proto::UDP, 53);
    flow.client(&query(8, "other.example", 1));
    for name in ["a.example", "b.example"] {
        flow.time = flow.time + Nanos::from_millis(1);
        flow.client(&query(7, name, 28));
    }
    flow.time = flow.time + Nanos::from_millis(5);
    // REFUSED (RFC 1035 section 4.1.1), and nothing but a header.
    let refused = [0, 7, 0x80, 5, 0, 0, 0, 0, 0, 0, 0, 0];
    (0..3).for_each(|_| flow.server(&refused));
    let rows: Vec<_> = flow.sink.dns.iter().map(|(r, name, _)| (&name[..], r.qtype, r.rcode, r.latency_us)).collect();
    let expected =
        [("a.example", 28, Some(5), Some(6000)), ("b.example", 28, Some(5), Some(5000)), ("", 0, Some(5), None)];
    assert_eq!(rows, expected);
}

/// Questions of one id lie in each other's way, so that their number is bounded.
#[test]
fn a_flow_cannot_have_any_number_of_questions_under_one_id() {
    let mut flow = Flow::new(proto::UDP, 53);
    for n in 0..40 {
        flow.client(&query(7, &format!("n{n}.example"), 1));
    }
    assert_eq!((flow.sink.dns.len(), flow.inspector.counts().dns_evicted), (8, 8));
    flow.server(&response(7, "n31.example", 1, 0, &[]));
    assert!(flow.sink.dns[8].0.has_query);
}

/// An answer that no buffer holds is one all the same: its first segment says to what, and how it went.
#[test]
fn the_beginning_of_a_large_answer_is_read() {
    let limits = InspectLimits { assembly_bytes_max: 2048, ..InspectLimits::default() };
    let mut flow = Flow::with(proto::TCP, 53, limits);
    let behind = |message: Vec<u8>| [&(message.len() as u16).to_be_bytes()[..], &message].concat();
    flow.client(&behind(query(7, "a.example", 1)));
    flow.time = flow.time + Nanos::from_millis(3);
    let large = behind(response(7, "a.example", 1, 0, &vec![(1, 60, vec![192, 0, 2, 1]); 200]));
    assert!(large.len() > 3000);
    large.chunks(1400).for_each(|segment| flow.server(segment));
    let (row, question, answers) = &flow.sink.dns[0];
    assert_eq!((&question[..], row.rcode, row.latency_us, row.answer_count), ("a.example", Some(0), Some(3000), 200));
    assert!(answers.starts_with("192.0.2.1,192.0.2.1"), "{answers}");
    assert_eq!((flow.sink.dns.len(), flow.inspector.counts().assemblies_oversized), (1, 1));
}

#[test]
fn tls_on_the_port_of_dns_is_tls() {
    let hello = records(&chrome().message(), 5000);
    let mut flow = Flow::new(proto::TCP, 53);
    flow.client(&hello);
    assert_eq!(flow.sink.told, hello_told());
}

#[test]
fn the_oldest_query_makes_room() {
    let limits = InspectLimits { dns_pending_max: 2, ..InspectLimits::default() };
    let mut flow = Flow::with(proto::UDP, 53, limits);
    for id in 1..=3 {
        flow.client(&query(id, "a.example", 1));
    }
    assert_eq!((flow.sink.dns.len(), flow.sink.dns[0].0.id), (1, 1));
    assert_eq!(flow.inspector.counts().dns_evicted, 1);
}

#[test]
fn dns_on_an_odd_port_has_to_be_whole() {
    let mut flow = Flow::new(proto::UDP, 40000);
    flow.client(&query(7, "a.example", 1));
    assert_eq!(flow.sink.told.app, App::Dns);
    let mut flow = Flow::new(proto::UDP, 40000);
    flow.client(&[&query(7, "a.example", 1)[..], &[0]].concat());
    assert_eq!(flow.sink.told.app, App::None);
}

#[test]
fn names_on_the_local_link_have_labels_of_their_own() {
    for (port, app) in [(5353, App::Mdns), (5355, App::Llmnr)] {
        let mut flow = Flow::new(proto::UDP, port);
        flow.client(&query(0, "printer.local", 12));
        assert_eq!((flow.sink.told.app, &flow.sink.told.name[..]), (app, "printer.local"));
        assert!(flow.sink.dns.is_empty());
    }
}

#[test]
fn dhcp_and_ssdp_tell_names() {
    let mut flow = Flow::new(proto::UDP, 67);
    flow.client(&request(b"\x0c\x04host\x3c\x02os\xff"));
    assert_eq!((flow.sink.told.app, &flow.sink.told.name[..], &flow.sink.told.agent[..]), (App::Dhcp, "host", "os"));
    let mut flow = Flow::new(proto::UDP, 1900);
    flow.client(b"M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\n\r\n");
    assert_eq!((flow.sink.told.app, &flow.sink.told.name[..]), (App::Ssdp, "239.255.255.250:1900"));
}

#[test]
fn texts_are_cut_and_cleaned() {
    let mut hello = chrome();
    hello.extensions[1] = name_extension(&[&b"a\x01\xff"[..], &[b'x'; 400]].concat());
    let mut flow = Flow::new(proto::TCP, 443);
    flow.client(&records(&hello.message(), 5000));
    assert_eq!(flow.sink.told.name.len(), 255);
    assert!(flow.sink.told.name.starts_with("a\u{fffd}\u{fffd}x"));
}

#[test]
fn memory_is_told() {
    let limits = InspectLimits::default();
    let bytes = Inspector::new(limits).memory_bytes_max();
    let least = limits.assemblies_max * limits.assembly_bytes_max + limits.dns_pending_max * 255;
    assert!((least..least * 2).contains(&bytes), "{bytes}");
}
