//! Messages for bad input, bounds, and the approximation for XDP. That filters keep what tcpdump keeps is tested in
//! `tests/filter.rs`.

use super::early::{Early, Side};
use super::program::TESTS_MAX;
use super::*;
use crate::{BatchHandler, FileOptions, FileSource, Polled, Source};
use proptest::prelude::*;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use wire::{Nanos, TapId};

const LINKS: [LinkType; 7] = [
    LinkType::Ethernet,
    LinkType::RawIp,
    LinkType::Null,
    LinkType::Ppp,
    LinkType::LinuxSll,
    LinkType::LinuxSll2,
    LinkType::Unsupported(147),
];

fn frame(data: &[u8], link: LinkType) -> Frame<'_> {
    Frame { data, wire_len: data.len() as u32, ts: Nanos(0), link, tap: TapId(0) }
}

fn keeps(text: &str, data: &[u8], link: LinkType) -> bool {
    Filter::parse(text).unwrap().matches(&frame(data, link))
}

fn expressions() -> impl Iterator<Item = &'static str> {
    include_str!("../../tests/filters.txt").lines().filter(|line| !line.is_empty() && !line.starts_with('#'))
}

#[test]
fn bad_input_is_refused_by_name_and_column() {
    for (text, column, message) in [
        ("tcp prt 80", 5, "unknown word 'prt' at column 5, did you mean 'port'?"),
        ("tpc", 1, "unknown word 'tpc' at column 1, did you mean 'tcp'?"),
        ("xyzzy", 1, "unknown word 'xyzzy' at column 1"),
        ("()", 2, "unexpected ')' at column 2, expected a test such as 'tcp' or 'host 10.0.0.1'"),
        ("tcp and", 8, "the filter ends at column 8, expected a test such as 'tcp' or 'host 10.0.0.1'"),
        ("tcp or ", 7, "the filter ends at column 7, expected a test such as 'tcp' or 'host 10.0.0.1'"),
        ("not", 4, "the filter ends at column 4, expected a test such as 'tcp' or 'host 10.0.0.1'"),
        ("and tcp", 1, "unexpected 'and' at column 1, expected a test such as 'tcp' or 'host 10.0.0.1'"),
        ("tcp udp", 5, "unexpected 'udp' at column 5, expected 'and', 'or' or the end"),
        ("(tcp", 1, "unmatched '(' at column 1"),
        ("tcp)", 4, "unmatched ')' at column 4"),
        ("host 10.0.0.256", 6, "'256' in '10.0.0.256' is not 0 to 255 at column 6: an IPv4 address"),
        ("host", 5, "the filter ends at column 5, expected an address such as 10.0.0.1"),
        (
            "host www.example.com",
            6,
            "names of hosts and networks are not looked up: 'www.example.com' at column 6, write its address",
        ),
        ("net lan", 5, "names of hosts and networks are not looked up: 'lan' at column 5, write its address"),
        ("host 10.0.0.0/8", 6, "an address with a mask at column 6 needs 'net'"),
        (
            "net 10.0.0.1/8",
            5,
            "this address has bits that its mask clears at column 5: the network is 10.0.0.0 mask 255.0.0.0",
        ),
        ("net 10.0.0.0/33", 14, "prefix length 33 is out of range at column 14: 0 to 32"),
        ("net fe80::1/10", 5, "this address has bits that its prefix clears at column 5: the network is fe80::/10"),
        ("net ::/129", 8, "prefix length 129 is out of range at column 8: 0 to 128"),
        (
            "tcp host 10.0.0.1",
            5,
            "this protocol has no IPv4 addresses at column 5: 'ip', 'arp' and 'rarp' go with an IPv4 address; join others with 'and'",
        ),
        (
            "ip host ::1",
            4,
            "this protocol has no IPv6 addresses at column 4: only 'ip6' goes with an IPv6 address; join others with 'and'",
        ),
        ("port 65536", 6, "port 65536 is out of range at column 6: 0 to 65535"),
        ("port 80-90", 6, "'80-90' is a range at column 6: write 'portrange'"),
        ("portrange 90-80", 11, "port range 90-80 runs backwards at column 11: write 80-90"),
        ("portrange 80-70000", 14, "port 70000 is out of range at column 14: 0 to 65535"),
        ("port htttp", 6, "unknown service 'htttp' at column 6, did you mean 'http'? Others go by number"),
        (
            "port frobnicate",
            6,
            "unknown service 'frobnicate' at column 6: only well-known ones have a name here, write the port number",
        ),
        ("udp port ssh", 10, "this service runs over tcp at column 10"),
        ("port 10.0.0.1", 6, "an address is no port at column 6: write 'host' before it"),
        (
            "icmp port 80",
            6,
            "this protocol has no ports at column 6: 'tcp', 'udp' and 'sctp' have; join others with 'and'",
        ),
        ("ip proto 256", 10, "256 is out of range at column 10: a protocol number, 0 to 255"),
        (
            "ip proto quux",
            10,
            "unknown protocol 'quux' at column 10: only well-known ones have a name here, write its number",
        ),
        ("ether proto 65536", 13, "65536 is out of range at column 13: an Ethernet type, 0 to 65535"),
        ("ether host 10.0.0.1", 12, "expected an Ethernet address such as aa:bb:cc:dd:ee:ff at column 12"),
        ("host aa:bb:cc:dd:ee:ff", 6, "an Ethernet address at column 6 needs 'ether host', 'ether src' or 'ether dst'"),
        (
            "ether host aa:bb:cc",
            12,
            "'aa:bb:cc' is neither an IPv6 nor an Ethernet address at column 12: fe80::1 and aa:bb:cc:dd:ee:ff are",
        ),
        ("10.0.0.1", 1, "nothing says what '10.0.0.1' is at column 1: for example 'host 10.0.0.1'"),
        ("tcp or 443", 8, "nothing says what '443' is at column 8: for example 'port 443'"),
        ("vlan 4096", 6, "VLAN id 4096 is out of range at column 6: 0 to 4095"),
        ("mpls 1048576", 6, "MPLS label 1048576 is out of range at column 6: 0 to 1048575"),
        ("mpls and arp", 10, "only IPv4 and IPv6 are known behind 'mpls' at column 10"),
        ("mpls and vlan", 10, "'vlan' cannot come behind 'mpls' at column 10"),
        (
            "ip broadcast",
            1,
            "'ip broadcast' is not supported at column 1: the netmask is not known; write 'dst host' with the broadcast address",
        ),
        ("tcp protochain 6", 5, "'protochain' is not supported at column 5: header chains are not followed"),
        (
            "geneve 7",
            1,
            "'geneve' is not supported at column 1: tunnels are not looked into; test the outer 'udp port'",
        ),
        ("tcp and inbound", 9, "'inbound' is not supported at column 9: frames do not tell their direction"),
        ("gateway foo", 1, "'gateway' is not supported at column 1: host names are not looked up"),
        ("wlan addr1 aa:bb:cc:dd:ee:ff", 6, "'addr1' is not supported at column 6: 802.11 frames are not captured"),
        ("less ten", 6, "unknown word 'ten' at column 6, did you mean 'len'?"),
        ("tcp[13", 7, "the filter ends at column 7, expected ']'"),
        ("tcp[13:3] = 0", 8, "3 bytes cannot be compared at column 8: 1, 2 or 4 can"),
        ("tcp[13]", 8, "the filter ends at column 8, expected an operator such as '=' or '&'"),
        ("ip[0] = ", 8, "the filter ends at column 8, expected a number, 'len' or bytes such as 'ip[9]'"),
        ("len / 0 = 1", 5, "division by zero at column 5"),
        ("len << 32 = 1", 5, "shift by more than 31 bits at column 5"),
        ("esp[0] = 1", 1, "the bytes of 'esp' cannot be indexed at column 1"),
        ("port 4294967296", 6, "'4294967296' is more than 4294967295 at column 6"),
        ("tcp ; udp", 5, "unexpected character ';' at column 5"),
        (
            "ether",
            6,
            "the filter ends at column 6, expected 'host', 'src', 'dst', 'proto', 'broadcast', 'multicast' or '['",
        ),
    ] {
        let e = Filter::parse(text).expect_err(text);
        assert_eq!((e.message(), e.column()), (message, column), "{text}");
        let shown = e.to_string();
        let caret = shown.lines().last().unwrap();
        assert_eq!(caret.len(), column + 2, "{shown}");
    }
}

#[test]
fn size_is_bounded() {
    let long = "tcp or ".repeat(2000) + "tcp";
    assert!(Filter::parse(&long).unwrap_err().message().starts_with("14003 bytes are too long, at most 8192"));
    let nested = |n: usize| "(".repeat(n) + "tcp" + &")".repeat(n);
    assert!(Filter::parse(&nested(64)).is_ok());
    assert!(Filter::parse(&nested(65)).unwrap_err().message().contains("nested too deeply"));
    assert!(Filter::parse(&nested(4000)).unwrap_err().message().contains("nested too deeply"));
    let loads = "ip[".repeat(2000) + "0" + &"]".repeat(2000) + " = 1";
    assert!(Filter::parse(&loads).unwrap_err().message().contains("nested too deeply"));
    assert!(Filter::parse(&("-".repeat(4000) + "1 = 1")).unwrap_err().message().contains("nested too deeply"));
    assert!(Filter::parse(&("not ".repeat(2000) + "tcp")).is_ok());
    let sum = "1".to_owned() + &" + len".repeat(1300) + " > 5";
    assert!(Filter::parse(&sum).is_ok());
    let ports = "port 1".to_owned() + &(2..1000).map(|i| format!(" or {i}")).collect::<String>();
    assert!(Filter::parse(&ports).unwrap_err().message().contains("more than the 8192 tests"));
    let hosts = "host 1.1.1.1".to_owned() + &" or 1.1.1.2".repeat(600);
    let program_tests = Filter::parse(&hosts).unwrap().inner.programs[0].as_ref().unwrap().len();
    assert!((1..=TESTS_MAX).contains(&program_tests));
}

#[test]
fn nothing_missing_is_read() {
    // A byte that was not captured drops the frame, behind `not` too.
    let mut data = [0; 60];
    data[12..14].copy_from_slice(&[0x08, 0x00]);
    data[14] = 0x45;
    for (text, long, short) in [
        ("ip", true, true),
        ("tcp", false, false),
        ("not tcp", true, false),
        ("tcp or ip", true, false),
        ("ip or tcp", true, true),
        ("not ip[19] = 1", true, false),
        ("ip[100] = 1 or len > 0", false, false),
        ("len > 0 or ip[100] = 1", true, true),
        ("len / ip[0:4] = 0", true, false),
        // Division by a byte of 0 drops the frame as well.
        ("not len / ip[9] = 0", false, false),
    ] {
        assert_eq!(keeps(text, &data, LinkType::Ethernet), long, "{text}");
        assert_eq!(keeps(text, &data[..16], LinkType::Ethernet), short, "{text}, cut");
    }
    assert!(!keeps("ip", &data[..13], LinkType::Ethernet) && !keeps("not ip", &data[..13], LinkType::Ethernet));
}

#[test]
fn link_types_know_what_they_carry() {
    let empty = Filter::parse(" \n").unwrap();
    for link in LINKS {
        assert!(empty.matches(&frame(&[], link)));
    }
    // Where libpcap refuses a filter for a link type, its frames do not pass, and neither do those of the opposite.
    for text in ["vlan or len > 0", "not vlan or len > 0", "ether host ff:ff:ff:ff:ff:ff or len > 0"] {
        assert!(!keeps(text, &[0; 64], LinkType::LinuxSll), "{text}");
        assert!(keeps(text, &[0; 64], LinkType::Ethernet), "{text}");
    }
    let other = LinkType::Unsupported(147);
    assert!(keeps("greater 64 and ether[3] = 0", &[0; 64], other) && !keeps("not ip", &[0; 64], other));
    // Loopback frames tell the family in the byte order of another machine.
    for family in [[2, 0, 0, 0], [0, 0, 0, 2]] {
        assert!(keeps("ip", &family, LinkType::Null) && !keeps("ip6", &family, LinkType::Null));
    }
    assert!(keeps("ip6", &[10, 0, 0, 0], LinkType::Null) && keeps("ip6", &[0, 0, 0, 30], LinkType::Null));
}

#[test]
fn words_without_a_backslash_name_protocols() {
    let mut udp = [0; 40];
    udp[12..15].copy_from_slice(&[0x08, 0x00, 0x45]);
    udp[23] = 17;
    assert!(keeps("ip proto udp", &udp, LinkType::Ethernet) && !keeps("ip proto tcp", &udp, LinkType::Ethernet));
    assert!(keeps("ether proto ip", &udp, LinkType::Ethernet) && keeps("proto udp or tcp", &udp, LinkType::Ethernet));
    assert_eq!(format!("{:?}", Filter::parse("udp").unwrap()), "Filter(\"udp\")");
}

#[test]
fn shortcuts_shorten_programs() {
    let tests = |text| Filter::parse(text).unwrap().inner.programs[0].as_ref().unwrap().len();
    assert_eq!(tests("ip"), 1);
    // IPv6: type, next header, two ports. IPv4: type, protocol, fragment, two ports.
    assert_eq!(tests("tcp port 443"), 9);
    assert_eq!(tests("ip and ip and not ip6"), 1);
}

#[test]
fn early_is_simple_enough() {
    let early = |text| Filter::parse(text).unwrap().early();
    let ip4 = |protocol| Early::Protocol { ether_type: 0x0800, protocol };
    assert_eq!(early("arp"), Some(Early::EtherType(0x0806)));
    assert_eq!(early("icmp"), Some(ip4(1)));
    assert_eq!(early("ip proto 6 and tcp[13] & 2 != 0"), Some(ip4(6)));
    assert_eq!(early("not (ip proto 6 and tcp[13] & 2 != 0)"), None);
    assert_eq!(early("not ip proto 6"), Some(Early::Not(Box::new(ip4(6)))));
    let net = Early::Net { side: Side::Source, network: IpAddr::from([10, 0, 0, 0]), bits: 8 };
    assert_eq!(early("ip src net 10"), Some(net.clone()));
    // ARP and RARP of that network cannot be told early, so they are kept.
    assert_eq!(
        early("src net 10"),
        Some(Early::Any(vec![net.clone(), Early::EtherType(0x0806), Early::EtherType(0x8035)]))
    );
    assert_eq!(early("not src net 10"), Some(Early::Not(Box::new(net))));
    for text in ["", "vlan and tcp", "mpls", "len > 5", "tcp or len > 5", "not tcp[0] = 1"] {
        assert_eq!(early(text), None, "{text}");
    }
    assert!(early(&("tcp or ".repeat(100) + "udp")).is_none());
}

/// What an XDP program would decide. `None` where a byte that it needs is missing.
fn holds(early: &Early, data: &[u8]) -> Option<bool> {
    let byte = |at: usize| data.get(at).copied();
    let half = |at: usize| Some(u16::from_be_bytes([byte(at)?, byte(at + 1)?]));
    let ether_type = half(12);
    match early {
        // Decided as soon as one of them decides it, in whichever order they are looked at.
        Early::All(parts) => {
            let parts: Vec<_> = parts.iter().map(|p| holds(p, data)).collect();
            if parts.contains(&Some(false)) { Some(false) } else { (!parts.contains(&None)).then_some(true) }
        }
        Early::Any(parts) => {
            let parts: Vec<_> = parts.iter().map(|p| holds(p, data)).collect();
            if parts.contains(&Some(true)) { Some(true) } else { (!parts.contains(&None)).then_some(false) }
        }
        Early::Not(inner) => Some(!holds(inner, data)?),
        Early::EtherType(t) => Some(ether_type? == *t),
        Early::Protocol { ether_type: t, protocol } => {
            Some(ether_type? == *t && byte(if *t == 0x0800 { 23 } else { 20 })? == *protocol)
        }
        Early::Port { ether_type: t, side, first, last } => {
            if ether_type? != *t {
                return Some(false);
            }
            let at = match *t {
                0x0800 if half(20)? & 0x1fff != 0 => return Some(false),
                0x0800 => 14 + usize::from(byte(14)? & 0x0f) * 4,
                _ => 54,
            };
            let is = |at| Some((*first..=*last).contains(&half(at)?));
            sided(*side, is(at)?, is(at + 2)?)
        }
        Early::Net { side, network, bits } => {
            let (t, source, len, network) = match network {
                IpAddr::V4(a) => (0x0800, 26, 4, u128::from(u32::from(*a)) << 96),
                IpAddr::V6(a) => (0x86dd, 22, 16, u128::from(*a)),
            };
            if ether_type? != t {
                return Some(false);
            }
            let mask = u128::MAX.checked_shl(128 - u32::from(*bits)).unwrap_or(0);
            let is = |at: usize| {
                let mut address = [0; 16];
                address[..len].copy_from_slice(data.get(at..at + len)?);
                Some((u128::from_be_bytes(address) ^ network) & mask == 0)
            };
            sided(*side, is(source)?, is(source + len)?)
        }
    }
}

fn sided(side: Side, source: bool, destination: bool) -> Option<bool> {
    Some(match side {
        Side::Source => source,
        Side::Destination => destination,
        Side::Either => source || destination,
        Side::Both => source && destination,
    })
}

fn kept_early(early: &Early, data: &[u8]) -> bool {
    let tagged = matches!(data.get(12..14), Some([0x81, 0x00] | [0x88, 0xa8] | [0x91, 0x00]));
    tagged || holds(early, data) != Some(false)
}

struct Collect(Vec<Vec<u8>>);

impl BatchHandler for Collect {
    fn batch(&mut self, frames: &[Frame<'_>]) {
        let ethernet = frames.iter().filter(|f| f.link == LinkType::Ethernet);
        self.0.extend(ethernet.map(|f| f.data.to_vec()));
    }

    fn idle(&mut self, _: Nanos) {}
}

#[test]
fn early_keeps_what_the_filter_keeps() {
    let Some(root) = std::env::var_os("TAPHOUSE_TESTDATA").map(PathBuf::from) else {
        println!("SKIPPED: TAPHOUSE_TESTDATA is not set");
        assert!(std::env::var_os("REQUIRE_XDP").is_none_or(|v| v != "1"), "REQUIRE_XDP=1 needs TAPHOUSE_TESTDATA");
        return;
    };
    let root = if root.is_relative() { Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(root) } else { root };
    let mut frames = Collect(Vec::new());
    for entry in std::fs::read_dir(root.join("pcap")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "pcap" || e == "pcapng") {
            let mut source = FileSource::open(&path, TapId(0), &FileOptions::default()).unwrap();
            while !matches!(source.poll(&mut frames), Ok(Polled::End) | Err(_)) {}
        }
    }
    let mut frames: Vec<Vec<u8>> = frames.0.into_iter().step_by(17).collect();
    // The same frames cut at many places.
    let cut: Vec<Vec<u8>> = frames.iter().enumerate().map(|(i, f)| f[..f.len().min(i % 90)].to_vec()).collect();
    frames.extend(cut);
    let (mut early_ones, mut dropped) = (0, 0);
    for text in expressions().chain(expressions().map(|t| Box::leak(format!("not ({t})").into_boxed_str()) as &str)) {
        let filter = Filter::parse(text).unwrap();
        let Some(early) = filter.early() else { continue };
        early_ones += 1;
        for data in &frames {
            let keeps = kept_early(&early, data);
            dropped += usize::from(!keeps);
            assert!(keeps || !filter.matches(&frame(data, LinkType::Ethernet)), "'{text}' {early:?} drops {data:02x?}");
        }
    }
    println!("{} frames, {early_ones} filters with an early part, {dropped} frames dropped early", frames.len());
    assert!(early_ones > 100 && dropped > 0);
}

static FILTERS: LazyLock<Vec<Filter>> = LazyLock::new(|| expressions().map(|t| Filter::parse(t).unwrap()).collect());

proptest! {
    #[test]
    fn any_text_is_parsed_or_refused(text in "\\PC{0,60}") {
        let _ = Filter::parse(&text).map_err(|e| e.to_string());
    }

    #[test]
    fn any_words_are_parsed_or_refused(words in prop::collection::vec(prop::sample::select(WORDS), 0..25)) {
        for text in [words.join(" "), words.concat()] {
            match Filter::parse(&text) {
                Ok(filter) => {
                    prop_assert_eq!(filter.text(), &text);
                    for link in LINKS {
                        filter.matches(&frame(&[0x45; 70], link));
                    }
                }
                Err(e) => prop_assert!((1..=text.chars().count() + 1).contains(&e.column()), "{e}"),
            }
        }
    }

    #[test]
    fn any_bytes_are_filtered(data in prop::collection::vec(any::<u8>(), 0..120), ether_type in any::<prop::sample::Index>()) {
        let types: [[u8; 2]; 7] =
            [[8, 0], [0x86, 0xdd], [8, 6], [0x81, 0], [0x88, 0x47], [0x88, 0x64], [0, 40]];
        let mut data = data;
        if let Some(t) = data.get_mut(12..).and_then(|d| d.first_chunk_mut::<2>()) {
            *t = *ether_type.get(&types);
        }
        for filter in FILTERS.iter() {
            for link in LINKS {
                let keeps = filter.matches(&frame(&data, link));
                if let (LinkType::Ethernet, true, Some(early)) = (link, keeps, filter.early()) {
                    prop_assert!(kept_early(&early, &data), "{:?} {:?}", filter, early);
                }
            }
        }
    }
}

const WORDS: &[&str] = &[
    "tcp",
    "udp",
    "ip",
    "ip6",
    "arp",
    "ether",
    "host",
    "net",
    "port",
    "portrange",
    "proto",
    "src",
    "dst",
    "and",
    "or",
    "not",
    "(",
    ")",
    "[",
    "]",
    ":",
    "/",
    "mask",
    "vlan",
    "mpls",
    "pppoes",
    "len",
    "less",
    "80",
    "0",
    "4",
    "0x800",
    "80-90",
    "10.0.0.1",
    "10",
    "::1",
    "fe80::",
    "aa:bb:cc:dd:ee:ff",
    "http",
    "=",
    "!=",
    "<",
    ">",
    "&",
    "|",
    "+",
    "-",
    "*",
    "%",
    "^",
    "<<",
    "!",
    "\\tcp",
    "tcp-syn",
    "multicast",
    "broadcast",
    "geneve",
    "foo",
    "tcp[",
    "ip[0]",
    "= 1",
];
