//! The exporter against a collector of the tests, on loopback.

mod support;

use export::{ExportConfig, ExportCounts, Exporter, LinkState, TimeUnit, Transport, WhenFull};
use flowtable::{EndReason, FlowRecord};
use hints::App;
use proptest::prelude::*;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;
use support::{Collector, REVERSE, Record, number};
use wire::{Addr, Mac, Nanos, TapId, Tunnel};

fn config(to: SocketAddr, transport: Transport) -> ExportConfig {
    ExportConfig { transport, ..ExportConfig::new(to.to_string().parse().unwrap()) }
}

/// Record number `n`: its packet count tells it from others.
fn numbered(n: u64) -> FlowRecord {
    FlowRecord { src_ip: Addr::v4([10, 0, 0, 1]), dst_ip: Addr::v4([10, 0, 0, 2]), pkts_o: n, ..FlowRecord::default() }
}

fn packets(records: &[Record]) -> Vec<u64> {
    records.iter().map(|r| number(r, 0, 2)).collect()
}

/// A socket and all that it gets until the exporter has ended.
struct UdpCollector {
    socket: UdpSocket,
    datagrams: Vec<Vec<u8>>,
}

impl UdpCollector {
    fn bind() -> (UdpCollector, SocketAddr) {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        (UdpCollector { socket, datagrams: Vec::new() }, address)
    }

    /// Takes what has arrived: on loopback, all that was sent.
    fn drain(&mut self) {
        self.socket.set_nonblocking(true).unwrap();
        let mut datagram = vec![0; 65_536];
        while let Ok(count) = self.socket.recv(&mut datagram) {
            self.datagrams.push(datagram[..count].to_vec());
        }
    }

    fn decoded(&self) -> Collector {
        let mut collector = Collector::default();
        self.datagrams.iter().for_each(|datagram| collector.message(datagram));
        collector
    }
}

/// Pushes, ends, and gives what became of the records.
fn export(config: ExportConfig, records: &[FlowRecord]) -> ExportCounts {
    let (mut handle, thread) = Exporter::start(config).unwrap();
    records.iter().for_each(|record| handle.push(record));
    let counters = handle.counters();
    drop(handle);
    thread.join().unwrap();
    let counts = counters.snapshot();
    assert_eq!(counts.pending(), 0, "{counts:?}");
    counts
}

fn over_udp(change: impl Fn(ExportConfig) -> ExportConfig, records: &[FlowRecord]) -> (Collector, UdpCollector) {
    let (mut udp, to) = UdpCollector::bind();
    let counts = export(change(config(to, Transport::Udp)), records);
    udp.drain();
    let decoded = udp.decoded();
    assert_eq!(counts.sent, records.len() as u64);
    assert_eq!(counts.messages, udp.datagrams.len() as u64);
    assert_eq!(counts.bytes, udp.datagrams.iter().map(|d| d.len() as u64).sum::<u64>());
    (decoded, udp)
}

#[test]
fn every_element_says_what_the_record_says() {
    let v4 = FlowRecord {
        flow_id: 0xfeed_0000_0000_0001,
        start: Nanos(1_700_000_000_123_456_789),
        end: Nanos(1_700_000_007_999_999_999),
        src_ip: Addr::v4([192, 0, 2, 1]),
        dst_ip: Addr::v4([198, 51, 100, 7]),
        src_port: 49_152,
        dst_port: 443,
        proto: 6,
        tap: TapId(2),
        vlan: 100,
        vlan_inner: 7,
        tunnel: Tunnel::Vxlan,
        tunnel_id: 5001,
        src_mac: Some(Mac([2, 0, 0, 0, 0, 1])),
        pkts_o: 11,
        pkts_r: 9,
        bytes_o: 1 << 40,
        bytes_r: 12_345,
        flags_o: 0x1b,
        flags_r: 0x13,
        end_reason: EndReason::Closed,
        ttl_o: 64,
        ttl_r: 57,
        dscp: 46,
        app: App::Tls,
        ..FlowRecord::default()
    };
    let v6 = Addr([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    let icmp6 = FlowRecord { src_ip: v6, dst_ip: v6, proto: 58, icmp: Some((128, 3)), ..FlowRecord::default() };
    let icmp4 = FlowRecord { icmp: Some((8, 1)), proto: 1, tunnel: Tunnel::Gre, tunnel_id: 9, ..v4 };
    let udp6 = FlowRecord { src_ip: v6, dst_ip: v6, src_port: 53, proto: 17, ..FlowRecord::default() };
    let (collector, _) = over_udp(|c| ExportConfig { observation_domain: 77, ..c }, &[v4, icmp6, icmp4, udp6]);
    assert_eq!(collector.domain, 77);
    let [tcp, ping6, ping4, dns6] = &collector.records[..] else { panic!("{}", collector.records.len()) };
    assert_eq!((&tcp[&(0, 8)][..], &tcp[&(0, 12)][..]), (&[192, 0, 2, 1][..], &[198, 51, 100, 7][..]));
    for (enterprise, element, value) in [
        (0, 7, 49_152),
        (0, 11, 443),
        (0, 4, 6),
        (0, 60, 4),
        (0, 152, 1_700_000_000_123),
        (0, 153, 1_700_000_007_999),
        (0, 1, 1 << 40),
        (0, 2, 11),
        (REVERSE, 1, 12_345),
        (REVERSE, 2, 9),
        (0, 6, 0x1b),
        (REVERSE, 6, 0x13),
        (0, 136, 3),
        (0, 239, 1),
        (0, 192, 64),
        (REVERSE, 192, 57),
        (0, 195, 46),
        (0, 243, 100),
        (0, 245, 7),
        (0, 56, 0x0200_0000_0001),
        (0, 80, 0),
        (0, 351, 1 << 56 | 5001),
        (0, 138, 3),
        (0, 10, 3),
        (0, 148, 0xfeed_0000_0000_0001),
    ] {
        assert_eq!(number(tcp, enterprise, element), value, "element {enterprise}/{element}");
    }
    assert_eq!(tcp[&(0, 96)], b"tls");
    assert_eq!(tcp.len(), 28, "no element that this test does not know");
    assert_eq!(ping6[&(0, 27)], v6.0);
    assert_eq!((number(ping6, 0, 139), number(ping6, 0, 60), ping6.contains_key(&(0, 7))), (128 << 8 | 3, 6, false));
    assert_eq!((number(ping4, 0, 32), number(ping4, 0, 351), ping4.contains_key(&(0, 11))), (8 << 8 | 1, 0, false));
    assert_eq!((number(dns6, 0, 7), &dns6[&(0, 28)][..], &dns6[&(0, 96)][..]), (53, &v6.0[..], &b""[..]));
}

#[test]
fn times_come_in_the_unit_asked_for() {
    let record = FlowRecord { start: Nanos(1_700_000_000_123_456_789), ..numbered(1) };
    for (times, element, per_second, expected) in [
        (TimeUnit::Microseconds, 154, 1_000_000, 1_700_000_000_123_456),
        (TimeUnit::Nanoseconds, 156, 1_000_000_000, 1_700_000_000_123_456_789),
    ] {
        let (collector, _) = over_udp(|c| ExportConfig { times, ..c }, &[record]);
        let ntp = number(&collector.records[0], 0, element);
        let fraction = (u128::from(ntp as u32) * per_second) >> 32;
        let since_1970 = u128::from((ntp >> 32) - 2_208_988_800) * per_second + fraction;
        assert_eq!(since_1970, expected);
    }
}

#[test]
fn messages_keep_to_their_size_and_templates_come_again() {
    let records: Vec<FlowRecord> = (0..100).map(numbered).collect();
    let (collector, udp) = over_udp(|c| ExportConfig { message_bytes_max: 600, template_messages: 5, ..c }, &records);
    assert_eq!(packets(&collector.records), (0..100).collect::<Vec<_>>());
    assert!(udp.datagrams.iter().all(|d| d.len() <= 600));
    // Five records a message: 20 messages, the templates before each fifth.
    assert_eq!(collector.templates_seen, 4 * 4);
}

#[test]
fn a_connection_has_its_templates_once() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let settings = ExportConfig {
        message_bytes_max: 600,
        template_messages: 1,
        when_full: WhenFull::Wait,
        ring_records: 64,
        ..config(listener.local_addr().unwrap(), Transport::Tcp)
    };
    let exporting = std::thread::spawn(|| export(settings, &(0..10_000).map(numbered).collect::<Vec<_>>()));
    let (mut stream, _) = listener.accept().unwrap();
    let mut collector = Collector::default();
    while collector.read(&mut stream) {}
    assert_eq!(packets(&collector.records), (0..10_000).collect::<Vec<_>>(), "a ring of 64 waits and loses nothing");
    assert_eq!(collector.templates_seen, 4);
    let counts = exporting.join().unwrap();
    assert_eq!((counts.sent, counts.faults, counts.reconnects), (10_000, 0, 0));
}

#[test]
fn a_connection_that_breaks_is_made_again() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let settings = config(listener.local_addr().unwrap(), Transport::Tcp);
    let (mut handle, thread) = Exporter::start(settings).unwrap();
    let counters = handle.counters();
    handle.push(&numbered(1));
    let (mut first, mut collector) = (listener.accept().unwrap().0, Collector::default());
    while collector.records.is_empty() && collector.read(&mut first) {}
    assert_eq!(packets(&collector.records), [1]);
    drop(first);
    // The exporter finds out by itself, without having to lose a record.
    let (mut second, mut collector) = (listener.accept().unwrap().0, Collector::default());
    handle.push(&numbered(2));
    drop(handle);
    while collector.read(&mut second) {}
    thread.join().unwrap();
    assert_eq!(packets(&collector.records), [2], "numbered from 0 again, with templates");
    let counts = counters.snapshot();
    assert_eq!((counts.sent, counts.reconnects, counts.faults, counts.pending()), (2, 1, 1, 0));
}

#[test]
fn without_a_collector_records_are_dropped_and_counted() {
    // A port that was ours a moment ago and that nobody listens on.
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for (to, transport) in [(tcp, Transport::Tcp), (udp, Transport::Udp)] {
        for when_full in [WhenFull::Drop, WhenFull::Wait] {
            let linger = Duration::from_millis(50);
            let settings = ExportConfig { ring_records: 64, linger, when_full, ..config(to, transport) };
            let counts = export(settings, &(0..1000).map(numbered).collect::<Vec<_>>());
            assert_eq!((counts.offered, counts.sent, counts.state), (1000, 0, LinkState::Away));
            assert_eq!(counts.dropped_ring_full + counts.dropped_unreachable, 1000);
            assert!(counts.faults > 0 && counts.dropped_unreachable >= 64, "{counts:?}");
        }
    }
}

#[test]
fn records_wait_for_a_collector_that_comes_late() {
    let (held, to) = UdpCollector::bind();
    drop(held);
    let (mut handle, thread) = Exporter::start(config(to, Transport::Udp)).unwrap();
    let counters = handle.counters();
    (0..100).for_each(|n| handle.push(&numbered(n)));
    while counters.snapshot().state != LinkState::Away {
        std::thread::yield_now();
    }
    let mut udp = UdpCollector { socket: UdpSocket::bind(to).unwrap(), datagrams: Vec::new() };
    drop(handle);
    thread.join().unwrap();
    udp.drain();
    assert_eq!(packets(&udp.decoded().records), (0..100).collect::<Vec<_>>());
    assert_eq!((counters.snapshot().sent, counters.snapshot().pending()), (100, 0));
}

#[test]
fn the_rate_is_kept() {
    let begun = std::time::Instant::now();
    let records: Vec<FlowRecord> = (0..300).map(numbered).collect();
    over_udp(|c| ExportConfig { records_per_second_max: 1000, when_full: WhenFull::Wait, ..c }, &records);
    // The last message and a burst may go ahead of their time.
    assert!(begun.elapsed() >= Duration::from_millis(250), "{:?}", begun.elapsed());
}

prop_compose! {
    fn any_record()(
        addresses in any::<([u8; 16], [u8; 16], bool)>(),
        ports in any::<(u16, u16, u8)>(),
        counts in any::<(u64, u64, u64, u64)>(),
        icmp in any::<Option<(u8, u8)>>(),
        app in 0..App::ALL.len(),
        times in any::<(u64, u64)>(),
        tap in any::<u16>(),
    ) -> FlowRecord {
        let address = |bytes: [u8; 16]| match addresses.2 {
            true => Addr::v4([bytes[0], bytes[1], bytes[2], bytes[3]]),
            false => Addr(bytes),
        };
        FlowRecord {
            src_ip: address(addresses.0), dst_ip: address(addresses.1),
            src_port: ports.0, dst_port: ports.1, proto: ports.2, icmp, app: App::ALL[app],
            pkts_o: counts.0, pkts_r: counts.1, bytes_o: counts.2, bytes_r: counts.3,
            start: Nanos(times.0), end: Nanos(times.1), tap: TapId(tap), ..FlowRecord::default()
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn what_is_decoded_is_what_was_encoded(
        records in proptest::collection::vec(any_record(), 1..80),
        bytes in 512u16..3000,
    ) {
        let (collector, udp) = over_udp(|c| ExportConfig { message_bytes_max: bytes, ..c }, &records);
        prop_assert!(udp.datagrams.iter().all(|d| d.len() <= usize::from(bytes)));
        prop_assert_eq!(collector.records.len(), records.len());
        for (got, record) in collector.records.iter().zip(&records) {
            let is_v4 = record.src_ip.is_v4() && record.dst_ip.is_v4();
            let (element, source) = if is_v4 { (8, &record.src_ip.0[12..]) } else { (27, &record.src_ip.0[..]) };
            prop_assert_eq!(&got[&(0, element)][..], source);
            match record.icmp {
                Some((kind, code)) => {
                    let element = if is_v4 { 32 } else { 139 };
                    prop_assert_eq!(&got[&(0, element)][..], &[kind, code][..]);
                }
                None => prop_assert_eq!(number(got, 0, 11), u64::from(record.dst_port)),
            }
            prop_assert_eq!(number(got, REVERSE, 1), record.bytes_r);
            prop_assert_eq!(number(got, 0, 2), record.pkts_o);
            prop_assert_eq!(number(got, 0, 153), record.end.0 / 1_000_000);
            prop_assert_eq!(number(got, 0, 10), u64::from(record.tap.0) + 1);
            prop_assert_eq!(&got[&(0, 96)][..], record.app.name().unwrap_or_default().as_bytes());
        }
    }
}
