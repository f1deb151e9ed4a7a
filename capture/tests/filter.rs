//! Capture filters against tcpdump: what one keeps, the other keeps.

mod support;

use capture::{FileOptions, FileSource, Filter};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use support::{Packet, TAP, drain};
use wire::{Frame, LinkType, Nanos};

/// Link types that filters know, with the number that a pcap file has for them.
const LINKS: [(LinkType, u32); 6] = [
    (LinkType::Ethernet, 1),
    (LinkType::RawIp, 101),
    (LinkType::Null, 0),
    (LinkType::Ppp, 9),
    (LinkType::LinuxSll, 113),
    (LinkType::LinuxSll2, 276),
];

fn expressions() -> Vec<&'static str> {
    include_str!("filters.txt").lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect()
}

fn kept(filter: &Filter, packets: &[Packet]) -> Vec<u32> {
    let keeps = |p: &Packet| {
        filter.matches(&Frame { data: &p.data, wire_len: p.wire_len, ts: Nanos(p.ts), link: p.link, tap: TAP })
    };
    (0..).zip(packets).filter(|(_, p)| keeps(p)).map(|(i, _)| i).collect()
}

/// A pcap file with the index of each packet as its time.
fn write_pcap(path: &Path, packets: &[Packet], linktype: u32) {
    let mut file = std::io::BufWriter::new(File::create(path).unwrap());
    let mut put = |v: u32| file.write_all(&v.to_le_bytes());
    for word in [0xa1b2_c3d4, 0x0004_0002, 0, 0, 262_144, linktype] {
        put(word).unwrap();
    }
    for (i, packet) in (0u32..).zip(packets) {
        for word in [i / 1_000_000, i % 1_000_000, packet.data.len() as u32, packet.wire_len] {
            file.write_all(&word.to_le_bytes()).unwrap();
        }
        file.write_all(&packet.data).unwrap();
    }
    file.flush().unwrap();
}

/// Indices of the packets that tcpdump keeps, or why it refuses the filter.
fn tcpdump(path: &Path, expression: &str, options: &[&str]) -> Result<Vec<u32>, String> {
    let output = Command::new("tcpdump")
        .args(["-r", "-", "-w", "-"])
        .args(options)
        .args(["--", expression])
        .stdin(File::open(path).unwrap())
        .stdout(Stdio::piped())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if said.contains("expression rejects all packets") {
        return Ok(Vec::new());
    }
    if !output.status.success() {
        return Err(said);
    }
    let word = |at: usize| u32::from_le_bytes(output.stdout[at..at + 4].try_into().unwrap());
    let (mut at, mut indices) = (24, Vec::new());
    while at < output.stdout.len() {
        indices.push(word(at) * 1_000_000 + word(at + 4));
        at += 16 + word(at + 8) as usize;
    }
    Ok(indices)
}

/// Both are in ascending order.
fn first_difference(a: &[u32], b: &[u32]) -> Option<u32> {
    let same = a.iter().zip(b).take_while(|(a, b)| a == b).count();
    a.get(same).into_iter().chain(b.get(same)).min().copied()
}

/// Prints why a test does nothing; fails instead where everything has to run.
fn skip(why: &str) {
    println!("SKIPPED: {why}");
    assert!(std::env::var_os("REQUIRE_XDP").is_none_or(|v| v != "1"), "REQUIRE_XDP=1, but {why}");
}

fn has_tcpdump() -> bool {
    Command::new("tcpdump").arg("--version").output().is_ok_and(|o| o.status.success())
}

/// Every packet of every capture, by link type.
fn captures() -> Option<Vec<Packet>> {
    let root = std::env::var_os("TAPHOUSE_TESTDATA").map(PathBuf::from)?;
    // Relative to the workspace, where cargo was called.
    let root = if root.is_relative() { Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(root) } else { root };
    let mut paths: Vec<PathBuf> = ["pcap", "nat"]
        .iter()
        .filter_map(|folder| std::fs::read_dir(root.join(folder)).ok())
        .flat_map(|entries| entries.map(|e| e.unwrap().path()))
        .filter(|p| p.extension().is_some_and(|e| e == "pcap" || e == "pcapng"))
        .collect();
    paths.sort();
    let mut packets = Vec::new();
    for path in &paths {
        let mut source = FileSource::open(path, TAP, &FileOptions::default()).unwrap();
        packets.append(&mut drain(&mut source, usize::MAX).0.packets);
    }
    println!("{} captures, {} packets", paths.len(), packets.len());
    Some(packets)
}

/// The same packet as another link type would have it; IPv4 and IPv6 only for those that carry nothing else.
fn carried_as(packet: &Packet, link: LinkType) -> Option<Packet> {
    let (addresses, rest) = packet.data.split_first_chunk::<12>()?;
    let (ether_type, payload) = rest.split_first_chunk::<2>()?;
    let family = match ether_type {
        [0x08, 0x00] => Some((2, [0x00, 0x21])),
        [0x86, 0xdd] => Some((30, [0x00, 0x57])),
        _ => None,
    };
    let header = match link {
        LinkType::Ethernet => return Some(packet.clone()),
        LinkType::RawIp => family.map(|_| Vec::new())?,
        LinkType::Null => vec![family?.0, 0, 0, 0],
        LinkType::Ppp => [[0xff, 0x03], family.map_or(*ether_type, |f| f.1)].concat(),
        LinkType::LinuxSll => [&[0, 0, 0, 1, 0, 6], &addresses[6..], &[0, 0], ether_type].concat(),
        LinkType::LinuxSll2 => [ether_type, &[0; 6][..], &[0, 1, 0, 6], &addresses[6..], &[0, 0]].concat(),
        _ => return None,
    };
    let wire_len = packet.wire_len - 14 + header.len() as u32;
    Some(Packet { data: [&header, payload].concat(), wire_len, link, ..*packet })
}

/// What both keep of some packets, for each expression.
#[derive(Default)]
struct Comparison {
    pairs: usize,
    refused: usize,
    kept: usize,
    /// Packets that tcpdump with and without its optimizer do not agree on.
    doubtful: usize,
    wrong: Vec<String>,
}

impl Comparison {
    fn compare(&mut self, path: &Path, packets: &[Packet], expression: &str, plainly: bool) {
        let filter = Filter::parse(expression);
        let ours = filter.as_ref().map(|f| kept(f, packets)).unwrap_or_default();
        let optimized = tcpdump(path, expression, &[]);
        // The optimizer drops reads whose outcome does not matter, and with them the end of a filter at a missing
        // byte; it also sees divisions by zero where there are none.
        let theirs = match (plainly.then(|| tcpdump(path, expression, &["-O"])), optimized) {
            (Some(Ok(plain)), optimized) => {
                let other = optimized.unwrap_or_else(|_| plain.clone());
                let (both, doubtful) = (merged(&plain, &other, &ours), difference(&plain, &other));
                self.doubtful += doubtful;
                Ok(both)
            }
            (_, optimized) => optimized,
        };
        match theirs {
            Err(_) if ours.is_empty() => self.refused += 1,
            // It takes bytes at offset 0 for the number 0: `len / ip[0]`.
            Err(why) if why.contains("by zero") => self.refused += 1,
            // No /etc/services or /etc/protocols here.
            Err(why) if why.contains("unknown port") || why.contains("unknown ip proto") => self.refused += 1,
            Err(why) => self.wrong.push(format!("'{expression}' keeps {}, tcpdump: {why}", ours.len())),
            Ok(_) if filter.is_err() => self.wrong.push(format!("'{expression}': {}", filter.unwrap_err())),
            Ok(theirs) => {
                self.pairs += 1;
                self.kept += theirs.len();
                if let Some(i) = first_difference(&ours, &theirs) {
                    let Packet { link, data, wire_len, .. } = &packets[i as usize];
                    self.wrong.push(format!(
                        "'{expression}' keeps {}, tcpdump {}; they differ in packet {i} ({link:?}, {wire_len} bytes): {}",
                        ours.len(),
                        theirs.len(),
                        data.iter().take(100).map(|b| format!("{b:02x}")).collect::<String>(),
                    ));
                }
            }
        }
    }
}

/// What is in both, and of the rest what is in `ours`.
fn merged(a: &[u32], b: &[u32], ours: &[u32]) -> Vec<u32> {
    let has = |list: &[u32], i: &u32| list.binary_search(i).is_ok();
    let mut all: Vec<u32> = a.iter().filter(|i| has(b, i) || has(ours, i)).copied().collect();
    all.extend(b.iter().filter(|i| !has(a, i) && has(ours, i)));
    all.sort_unstable();
    all
}

/// How many are in one of the two.
fn difference(a: &[u32], b: &[u32]) -> usize {
    let missing = |a: &[u32], b: &[u32]| a.iter().filter(|i| b.binary_search(i).is_err()).count();
    missing(a, b) + missing(b, a)
}

/// A small generator of its own, so that a seed means the same packets and filters for ever.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        // SplitMix64 (Steele, Lea, Flood 2014).
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.below(256) as u8).collect()
    }
}

/// Few addresses and ports, so that filters hit.
const IP4: [[u8; 4]; 5] = [[10, 0, 0, 1], [10, 0, 0, 2], [10, 1, 2, 3], [192, 168, 1, 1], [224, 0, 0, 251]];
const IP6: [u8; 3] = [1, 2, 0xfb];
const PORTS: [u16; 5] = [53, 80, 443, 1024, 40000];
const MACS: [[u8; 6]; 3] = [[0xff; 6], [2, 0, 0, 0, 0, 1], [1, 0, 0x5e, 0, 0, 0xfb]];

fn segment(dice: &mut Dice, protocol: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    match protocol {
        6 | 17 | 132 => {
            bytes.extend(dice.one(&PORTS).to_be_bytes());
            bytes.extend(dice.one(&PORTS).to_be_bytes());
            let mut rest = dice.bytes(16);
            rest[8] = dice.one(&[0x50, 0x60, 0x80]);
            rest[9] = dice.one(&[0x02, 0x12, 0x10, 0x11, 0x18, 0x04]);
            bytes.extend(rest);
        }
        1 | 58 => bytes.extend([dice.one(&[0, 3, 8, 128, 129, 135]), dice.one(&[0, 1, 3]), 0, 0]),
        _ => {}
    }
    let payload = dice.below(60);
    bytes.extend(dice.bytes(payload));
    bytes
}

fn ip4(dice: &mut Dice) -> Vec<u8> {
    let protocol = dice.one(&[6, 6, 6, 17, 17, 132, 1, 2, 47, 50, 51, 103, 112]);
    let words = if dice.chance(20) { 5 + dice.below(4) } else { 5 };
    let body = segment(dice, protocol);
    let fragment = dice.one(&[0u16, 0, 0, 0x4000, 0x2000, 0x00b9]);
    let mut bytes = vec![0x40 | words as u8, 0];
    bytes.extend(((4 * words + body.len()) as u16).to_be_bytes());
    bytes.extend([0, dice.below(256) as u8]);
    bytes.extend(fragment.to_be_bytes());
    bytes.extend([dice.one(&[1, 64, 128]), protocol, 0, 0]);
    bytes.extend(dice.one(&IP4));
    bytes.extend(dice.one(&IP4));
    bytes.extend(dice.bytes(4 * (words - 5)));
    bytes.extend(body);
    bytes
}

fn ip6(dice: &mut Dice) -> Vec<u8> {
    let protocol = dice.one(&[6, 6, 17, 17, 58, 132, 50]);
    let mut body = segment(dice, protocol);
    let mut next = protocol;
    if dice.chance(20) {
        let header = dice.one(&[0u8, 44, 43]);
        body.splice(0..0, [next, 0, 0, 0, 0, 0, 0, 1]);
        next = header;
    }
    let mut bytes = vec![0x60, 0, 0, 0];
    bytes.extend((body.len() as u16).to_be_bytes());
    bytes.extend([next, 64]);
    for _ in 0..2 {
        bytes.extend(dice.one(&[[0x20, 0x01, 0x0d, 0xb8], [0xfe, 0x80, 0, 0], [0xff, 0x02, 0, 0]]));
        bytes.extend([0; 11]);
        bytes.push(dice.one(&IP6));
    }
    bytes.extend(body);
    bytes
}

/// What a protocol field says, and what follows it.
fn payload(dice: &mut Dice) -> (u16, Vec<u8>) {
    match dice.below(20) {
        0..=8 => (0x0800, ip4(dice)),
        9..=12 => (0x86dd, ip6(dice)),
        13 => {
            let mut bytes = vec![0, 1, 8, 0, 6, 4, 0, dice.one(&[1, 2])];
            bytes.extend(dice.one(&MACS));
            bytes.extend(dice.one(&IP4));
            bytes.extend(dice.one(&MACS));
            bytes.extend(dice.one(&IP4));
            (dice.one(&[0x0806, 0x0806, 0x8035]), bytes)
        }
        14 => {
            let labels = 1 + dice.below(3);
            let mut bytes = Vec::new();
            for i in 1..=labels {
                bytes.extend([0, 0, dice.one(&[0x10, 0x20]), 64]);
                let last = bytes.len() - 2;
                bytes[last] |= u8::from(i == labels);
            }
            bytes.extend(if dice.chance(60) { ip4(dice) } else { ip6(dice) });
            (0x8847, bytes)
        }
        15 => {
            let six = dice.chance(40);
            let inner = if six { ip6(dice) } else { ip4(dice) };
            let mut bytes = vec![0x11, 0, 0, dice.one(&[1, 2])];
            bytes.extend(((inner.len() + 2) as u16).to_be_bytes());
            bytes.extend(if six { [0x00, 0x57] } else { [0x00, 0x21] });
            bytes.extend(inner);
            (dice.one(&[0x8864, 0x8864, 0x8863]), bytes)
        }
        16 => {
            let sap = dice.one(&[0x42u8, 0xfe, 0xe0, 0xf0, 0x06, 0xaa, 0xff]);
            let mut bytes = vec![sap, sap, 3];
            bytes.extend(dice.one(&[[0u8, 0, 0, 0x81, 0x37], [8, 0, 7, 0x80, 0x9b], [0, 0, 0, 0x80, 0xf3], [0x83; 5]]));
            bytes.extend(dice.bytes(30));
            (bytes.len() as u16, bytes)
        }
        17 => (dice.one(&[0x8137, 0x809b, 0x80f3, 0x6003, 0x88cc]), dice.bytes(40)),
        _ => {
            let len = dice.below(80);
            (dice.below(65536) as u16, dice.bytes(len))
        }
    }
}

fn frame(dice: &mut Dice, ts: u64) -> Packet {
    let mut data = [dice.one(&MACS), dice.one(&MACS)].concat();
    for _ in 0..dice.one(&[0, 0, 0, 0, 1, 1, 2]) {
        data.extend(dice.one(&[0x8100u16, 0x8100, 0x88a8, 0x9100]).to_be_bytes());
        data.extend([dice.one(&[0, 0x20]), dice.one(&[10, 20])]);
    }
    let (ether_type, payload) = payload(dice);
    data.extend(ether_type.to_be_bytes());
    data.extend(payload);
    let wire_len = data.len() as u32;
    if dice.chance(35) {
        data.truncate(dice.below(data.len() + 1));
    }
    Packet { wire_len, ..Packet::new(ts, &data) }
}

fn address(dice: &mut Dice) -> String {
    let direction = dice.one(&["", "src ", "dst ", "src or dst ", "src and dst "]);
    let [a, b, c, d] = dice.one(&IP4);
    let last = dice.one(&IP6);
    match dice.below(8) {
        0 => format!("{direction}net {a}.0.0.0/8"),
        1 => format!("{direction}net {a}.{b}"),
        2 => format!("{direction}net {a}.{b}.{c}.0 mask 255.255.255.0"),
        3 => format!("{direction}host 2001:db8::{last:x}"),
        4 => format!("ip6 {direction}net fe80::/{}", dice.one(&[10, 16, 64])),
        5 => format!("{}{direction}host {a}.{b}.{c}.{d}", dice.one(&["ip ", "arp ", "rarp "])),
        6 => format!("{direction}host {a}.{b}.{c}.{d} or {}.0.0.1", dice.one(&["10", "192"])),
        _ => format!("{direction}host {a}.{b}.{c}.{d}"),
    }
}

fn port(dice: &mut Dice) -> String {
    let protocol = dice.one(&["", "", "tcp ", "udp ", "sctp "]);
    let direction = dice.one(&["", "", "src ", "dst ", "src or dst ", "src and dst "]);
    let (a, b) = (dice.one(&PORTS), dice.one(&PORTS));
    match dice.below(4) {
        0 => format!("{protocol}{direction}portrange {}-{}", a.min(b), a.max(b)),
        1 => format!("{protocol}{direction}port {a} or {b}"),
        2 => format!("{protocol}{direction}port ({a} or {b} or not 1)"),
        _ => format!("{protocol}{direction}port {a}"),
    }
}

fn number(dice: &mut Dice, depth: usize) -> String {
    if depth == 0 || dice.chance(35) {
        return match dice.below(4) {
            0 => "len".to_owned(),
            1 | 2 => {
                let protocol = dice.one(&["ip", "tcp", "udp", "icmp", "ip6", "ether", "arp", "icmp6", "sctp"]);
                format!(
                    "{protocol}[{}{}]",
                    dice.one(&["0", "2", "9", "12", "13", "20"]),
                    dice.one(&["", ":1", ":2", ":4"])
                )
            }
            _ => dice
                .one(&["0", "1", "2", "6", "17", "40", "0xff", "80", "443", "0x1fff", "1000", "0xffffffff"])
                .to_owned(),
        };
    }
    let left = number(dice, depth - 1);
    let right = number(dice, depth - 1);
    match dice.below(10) {
        0 => format!("{}[{left}]", dice.one(&["ip", "tcp", "ether", "ip6"])),
        // A number alone in parentheses is no arithmetic to the grammar unless an operator follows.
        1 => format!("(-{left} + {right})"),
        2 => format!("(1 + {left}) & {right}"),
        n => format!("{left} {} {right}", ["+", "-", "*", "&", "|", "^", "%", "/"][n - 3 + usize::from(n > 8)]),
    }
}

fn test(dice: &mut Dice) -> String {
    match dice.below(12) {
        0 | 1 => address(dice),
        2 | 3 => port(dice),
        4 | 5 => dice
            .one(&[
                "ip", "ip6", "arp", "rarp", "tcp", "udp", "icmp", "icmp6", "sctp", "igmp", "pim", "vrrp", "ah", "esp",
                "stp", "ipx", "netbeui", "iso", "isis", "atalk", "aarp", "decnet",
            ])
            .to_owned(),
        6 => dice
            .one(&[
                "vlan",
                "vlan 10",
                "vlan 20",
                "mpls",
                "mpls 1",
                "pppoes",
                "pppoes 1",
                "pppoed",
                "vlan and vlan",
                "multicast",
                "broadcast",
                "ip multicast",
                "ip6 multicast",
                "ether src 02:00:00:00:00:01",
                "ether host 01:00:5e:00:00:fb",
                "ether dst ff:ff:ff:ff:ff:ff",
            ])
            .to_owned(),
        7 => format!("{} {}", dice.one(&["less", "greater"]), dice.one(&[40, 60, 100])),
        8 => format!("{}proto {}", dice.one(&["", "ip ", "ip6 "]), dice.one(&[6, 17, 58, 44, 47])),
        9 => format!("ether proto {}", dice.one(&["0x800", "0x8137", "0x42", "6", "0xfe", "0x88cc", "100"])),
        _ => {
            let relation = dice.one(&["=", "!=", ">", "<", ">=", "<="]);
            format!("{} {relation} {}", number(dice, 2), number(dice, 1))
        }
    }
}

fn filter(dice: &mut Dice, depth: usize) -> String {
    let not = if dice.chance(25) { "not " } else { "" };
    if depth == 0 || dice.chance(25) {
        return format!("{not}{}", test(dice));
    }
    let join = dice.one(&["and", "or", "and"]);
    let (left, right) = (filter(dice, depth - 1), filter(dice, depth - 1));
    if dice.chance(50) { format!("{not}({left} {join} {right})") } else { format!("{left} {join} {right}") }
}

#[test]
fn random_filters_are_those_of_tcpdump() {
    const SEED: u64 = 20_260_805;
    if !has_tcpdump() {
        return skip("no tcpdump");
    }
    let seed = std::env::var("FILTER_SEED").map_or(SEED, |s| s.parse().unwrap());
    let count = std::env::var("FILTER_COUNT").map_or(200, |s| s.parse().unwrap());
    let mut dice = Dice(seed);
    let packets: Vec<Packet> = (0..1500).map(|i| frame(&mut dice, i)).collect();
    let folder = tempfile::tempdir().unwrap();
    let links: Vec<(PathBuf, Vec<Packet>)> = LINKS
        .iter()
        .map(|(link, linktype)| {
            let path = folder.path().join(format!("{linktype}.pcap"));
            let packets: Vec<Packet> = packets.iter().filter_map(|p| carried_as(p, *link)).collect();
            write_pcap(&path, &packets, *linktype);
            (path, packets)
        })
        .collect();
    let mut comparison = Comparison::default();
    for i in 0..count {
        let expression = filter(&mut dice, 3);
        let other = &links[1 + i % (links.len() - 1)];
        for (path, packets) in [&links[0], other] {
            comparison.compare(path, packets, &expression, true);
        }
    }
    let Comparison { pairs, refused, kept, doubtful, wrong } = comparison;
    println!(
        "seed {seed}: {pairs} pairs compared, {kept} packets kept, {doubtful} in doubt; tcpdump refused {refused} pairs"
    );
    assert!(wrong.is_empty(), "seed {seed}: {} of {pairs} differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn captures_are_filtered_as_by_tcpdump() {
    if !has_tcpdump() {
        return skip("no tcpdump");
    }
    let Some(packets) = captures() else { return skip("TAPHOUSE_TESTDATA is not set") };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("merged.pcap");
    let expressions = expressions();
    let mut comparison = Comparison::default();
    for (link, linktype) in LINKS {
        // There are few captures of other link types than Ethernet: some frames of those join them.
        let joined = packets.iter().filter(|p| p.link == LinkType::Ethernet && link != p.link).step_by(50);
        let joined = joined.filter_map(|p| carried_as(p, link));
        let packets: Vec<Packet> = packets.iter().filter(|p| p.link == link).cloned().chain(joined).collect();
        write_pcap(&path, &packets, linktype);
        for expression in &expressions {
            comparison.compare(&path, &packets, expression, false);
        }
        println!("{link:?}: {} packets, {} pairs so far", packets.len(), comparison.pairs);
    }
    let Comparison { pairs, refused, kept, wrong, .. } = comparison;
    println!(
        "{} filters, {pairs} pairs of filter and link type compared, {kept} packets kept; tcpdump refused {refused} pairs",
        expressions.len()
    );
    assert!(wrong.is_empty(), "{} of {pairs} differ:\n{}", wrong.len(), wrong.join("\n"));
}

/// Prints nanoseconds; run with `cargo test --release -p capture --test filter -- --ignored --nocapture speed`.
#[test]
#[ignore = "measures, and tells nothing in a debug build"]
fn speed() {
    let mut dice = Dice(1);
    let tcp = |dice: &mut Dice, source: [u8; 4], port: u16| {
        let mut data = vec![2; 12];
        data.extend([0x08, 0x00]);
        data.extend([0x45, 0, 0, 52, 0, 1, 0x40, 0, 64, 6, 0, 0]);
        data.extend(source);
        data.extend([192, 168, 0, 1]);
        data.extend(port.to_be_bytes());
        data.extend(dice.one(&PORTS).to_be_bytes());
        data.extend(dice.bytes(28));
        data
    };
    let same: Vec<Vec<u8>> = (0..256).map(|_| tcp(&mut dice, [10, 0, 0, 2], 443)).collect();
    let mixed: Vec<Vec<u8>> = (0..256).map(|i| frame(&mut dice, i).data).collect();
    for text in [
        "tcp port 443 and not host 10.0.0.1",
        "ip",
        "port 53",
        "tcp[tcpflags] & (tcp-syn|tcp-fin) != 0",
        "ip6 net 2001:db8::/32 or net 10.0.0.0/8",
        "tcp[((tcp[12:1] & 0xf0) >> 2):4] = 0x47455420",
        "vlan and tcp port 443",
    ] {
        let filter = Filter::parse(text).unwrap();
        for (name, frames) in [("TCP port 443", &same), ("mixed", &mixed)] {
            let mut best = f64::INFINITY;
            let mut kept = 0;
            // The best of many short rounds: the machine may be busy.
            for _ in 0..2000 {
                let start = std::time::Instant::now();
                kept = 0;
                for data in frames {
                    let frame =
                        Frame { data, wire_len: data.len() as u32, ts: Nanos(0), link: LinkType::Ethernet, tap: TAP };
                    kept += usize::from(std::hint::black_box(&filter).matches(std::hint::black_box(&frame)));
                }
                best = best.min(start.elapsed().as_nanos() as f64 / frames.len() as f64);
            }
            println!("{best:6.1} ns a frame, {name}: '{text}' keeps {}%", kept * 100 / frames.len());
        }
    }
    for text in ["tcp".to_owned(), "host 1.1.1.1".to_owned() + &" or 1.1.1.2".repeat(600)] {
        let start = std::time::Instant::now();
        Filter::parse(&text).unwrap();
        println!("{:?} to compile {} bytes", start.elapsed(), text.len());
    }
}
