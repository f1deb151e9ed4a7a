//! Capture files in every variant, and what is wrong with the wrong ones.

mod support;

use capture::{Corruption, FileOptions, FileSource, Source, SourceError};
use std::io::Write;
use support::*;
use wire::LinkType;

const US: u32 = 0xa1b2_c3d4;
const NS: u32 = 0xa1b2_3c4d;
const MODIFIED: u32 = 0xa1b2_cd34;

#[test]
fn pcap_in_both_orders_and_all_magics() {
    for big in [false, true] {
        for (magic, ns) in [(US, 123_456_000), (NS, 123_456), (MODIFIED, 123_456_000)] {
            let mut file = PcapFile::new(big, magic, 1);
            file.record(1_700_000_000, 123_456, 60, &[1; 60]).record(1_700_000_001, 0, 1500, &[2; 96]);
            let (packets, result) = read(&file.bytes);
            result.unwrap();
            let second = Packet { wire_len: 1500, ..Packet::new(1_700_000_001_000_000_000, &[2; 96]) };
            assert_eq!(packets, [Packet::new(1_700_000_000_000_000_000 + ns, &[1; 60]), second]);
        }
    }
}

#[test]
fn pcap_link_types_and_lengths_as_the_writer_left_them() {
    for (network, link) in [
        (0, LinkType::Null),
        (101, LinkType::RawIp),
        (9, LinkType::Ppp),
        (113, LinkType::LinuxSll),
        (276, LinkType::LinuxSll2),
        (127, LinkType::Radiotap),
        (147, LinkType::Unsupported(147)),
    ] {
        let mut file = PcapFile::new(false, US, network);
        file.record(1, 1, 0, &[5; 20]).record(2, 2, 12, &[5; 20]).record(3, 3, 0, &[]);
        let (packets, result) = read(&file.bytes);
        result.unwrap();
        assert!(packets.iter().all(|p| p.link == link));
        let lengths: Vec<_> = packets.iter().map(|p| (p.data.len(), p.wire_len)).collect();
        assert_eq!(lengths, [(20, 20), (12, 12), (0, 0)], "unknown wire length, shorter than captured, empty");
    }
}

#[test]
fn impossible_times_are_kept_as_sums() {
    let mut file = PcapFile::new(false, US, 1);
    file.record(10, 3_000_000, 1, &[0]).record(u32::MAX, u32::MAX, 1, &[0]);
    let (packets, result) = read(&file.bytes);
    assert!(matches!(result, Err(SourceError::Times { packets: 2, impossible: 2, .. })), "{result:?}");
    assert_eq!(packets[0].ts, 13_000_000_000);
    assert_eq!(packets[1].ts, u64::from(u32::MAX) * 1_000_001_000);
}

#[test]
fn a_pcap_without_packets_is_a_capture() {
    for file in [PcapFile::new(false, US, 1).bytes, PcapngFile::new(true).bytes] {
        let (packets, result) = read(&file);
        result.unwrap();
        assert!(packets.is_empty());
    }
}

/// Everything a pcapng file may hold, and the packets in it.
fn rich_pcapng() -> (PcapngFile, Vec<Packet>) {
    let mut f = PcapngFile::new(false);
    let micros = f.option(2, b"eth0");
    let nanos = [f.option(9, &[9]), f.option(14, &5_i64.to_le_bytes()), f.option(0, &[]), vec![0xff; 4]].concat();
    let binary = f.option(9, &[0x80 | 10]);
    f.interface(1, 0, &micros).interface(101, 64, &nanos).interface(276, 0, &binary);
    f.enhanced(0, 1_700_000_000_000_001, 70, &[1; 61]);
    f.block(0x0bad_cafe, &noise(1, 1001));
    f.enhanced(1, 1_700_000_000_000_000_002, 1400, &[2; 64]);
    f.obsolete(2, 1536, 33, &[3; 33]);
    f.simple(50, &[4; 50]);
    f.block(5, &[0; 12]).block(4, &[0; 4]);
    // A second section starts with no interface, and in the other byte order.
    f.section(true);
    let millis = [f.option(9, &[3]), f.option(14, &(-1_i64).to_be_bytes())].concat();
    f.interface(113, 16, &millis);
    f.simple(40, &[5; 40]);
    f.enhanced(0, 2_001, 20, &[6; 20]);
    let packet = |ts, wire_len, data: &[u8], link| Packet { data: data.to_vec(), wire_len, ts, link };
    let packets = vec![
        packet(1_700_000_000_000_001_000, 70, &[1; 61], LinkType::Ethernet),
        packet(1_700_000_005_000_000_002, 1400, &[2; 64], LinkType::RawIp),
        packet(1_500_000_000, 33, &[3; 33], LinkType::LinuxSll2),
        packet(1_500_000_000, 50, &[4; 50], LinkType::Ethernet),
        packet(1_500_000_000, 40, &[5; 16], LinkType::LinuxSll),
        packet(1_001_000_000, 20, &[6; 20], LinkType::LinuxSll),
    ];
    (f, packets)
}

#[test]
fn pcapng_sections_interfaces_resolutions_and_all_packet_blocks() {
    let (file, expected) = rich_pcapng();
    let (packets, result) = read(&file.bytes);
    result.unwrap();
    assert_eq!(packets, expected);
}

#[test]
fn pcapng_times_saturate() {
    let mut f = PcapngFile::new(false);
    let options = [f.option(9, &[0]), f.option(14, &i64::MAX.to_le_bytes())].concat();
    f.interface(1, 0, &options).enhanced(0, u64::MAX, 1, &[0]);
    let (packets, result) = read(&f.bytes);
    result.unwrap();
    assert_eq!(packets[0].ts, u64::MAX);
}

#[test]
fn compressed_captures_stream_whatever_the_reader_returns() {
    let mut file = PcapFile::new(true, NS, 1);
    for i in 0..300 {
        file.record(i, i, 1500, &noise(u64::from(i), 100 + i as usize));
    }
    let (expected, _) = read(&file.bytes);
    assert_eq!(expected.len(), 300);
    let (head, tail) = file.bytes.split_at(10_000);
    let two_members = [gzip(head), gzip(tail)].concat();
    let two_frames = [b"\x50\x2a\x4d\x18\x03\0\0\0abc".to_vec(), zstd(head), zstd(tail)].concat();
    for bytes in [&file.bytes, &gzip(&file.bytes), &zstd(&file.bytes), &two_members, &two_frames] {
        for steps in [&[usize::MAX][..], &[1], &[0, 1], &[7, 0, 0, 1000, 3], &[4096]] {
            let polls = 10 * bytes.len() + 1000;
            let (packets, result) = read_with(Trickle::new(bytes, steps), &FileOptions::default(), polls);
            result.unwrap();
            assert!(packets == expected, "steps {steps:?}, first bytes {:02x?}", &bytes[..4]);
        }
    }
}

#[test]
fn records_straddle_the_buffer_wherever_it_ends() {
    let mut pcap = PcapFile::new(false, US, 1);
    let mut ng = PcapngFile::new(false);
    ng.interface(1, 0, &[]);
    for i in 0..2000_u32 {
        let data = noise(u64::from(i), (i as usize * 37) % 1500);
        pcap.record(i, 0, data.len() as u32, &data);
        ng.enhanced(0, u64::from(i) * 1_000_000, data.len() as u32, &data);
        if i % 100 == 0 {
            ng.block(0x4000_0001, &noise(1, 3000));
        }
    }
    let (expected, _) = read(&pcap.bytes);
    assert!(expected.len() == 2000 && pcap.bytes.len() > 4 * 256 * 1024);
    for buffer_bytes in [64, 1000, 4096, 65_537, 256 * 1024] {
        let options = FileOptions { buffer_bytes, ..FileOptions::default() };
        for bytes in [&pcap.bytes, &ng.bytes] {
            for steps in [&[usize::MAX][..], &[1, 4095, 77], &[1448]] {
                let (packets, result) = read_with(Trickle::new(bytes, steps), &options, bytes.len());
                result.unwrap();
                assert!(packets == expected, "buffer of {buffer_bytes} bytes, reads of {steps:?}");
            }
        }
    }
}

#[test]
fn a_jumbo_packet_grows_the_buffer_up_to_the_limit() {
    let data = noise(3, 1 << 20);
    let mut file = PcapFile::new(false, US, 1);
    file.record(1, 0, 5, &[1; 5]).record(2, 0, 1 << 20, &data).record(3, 0, 5, &[3; 5]);
    let (packets, result) = read(&file.bytes);
    result.unwrap();
    assert_eq!(packets.iter().map(|p| p.data.len()).collect::<Vec<_>>(), [5, 1 << 20, 5]);
    assert!(packets[1].data == data);

    let options = FileOptions { packet_bytes_max: (1 << 20) - 1, ..FileOptions::default() };
    let (packets, result) = read_with(std::io::Cursor::new(file.bytes), &options, 1000);
    assert_eq!(packets.len(), 1);
    let Err(SourceError::Corrupt { at_byte: 45, packets: 1, reason, .. }) = result else { panic!("{result:?}") };
    assert_eq!(reason, Corruption::PacketLength { bytes: 1 << 20, max: (1 << 20) - 1 });
}

#[test]
fn what_is_no_capture_is_refused_with_its_first_bytes() {
    for (bytes, text) in [
        (&b"GET / HTTP/1.1"[..], "starts with 47455420"),
        (b"\xfd7zXZ\0\0", "this is xz"),
        (b"BZh91AY", "this is bzip2"),
        (b"PK\x03\x04..", "zip archive"),
        (b"snoop\0\0\0", "snoop"),
        (b"\x0a\x0d\x0a\x0d", "text-mode"),
        (&gzip(&gzip(b"x")), "compressed twice"),
        (&zstd(b"not a capture"), "starts with 6e6f7420"),
    ] {
        let (_, result) = read(bytes);
        let error = result.unwrap_err();
        assert!(matches!(error, SourceError::Magic { .. }) && !error.is_partial(), "{error}");
        let message = error.to_string();
        assert!(message.contains(text) && message.contains("0a0d0d0a") && !message.contains('\n'), "{message}");
    }
    let (_, result) = read(&[0xd4, 0xc3, 0xb2, 0xa1, 3, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
    assert!(matches!(result, Err(SourceError::Version { major: 3, minor: 1, .. })));
    for empty in [&b""[..], &gzip(b""), &zstd(b"")] {
        assert!(matches!(read(empty).1, Err(SourceError::Empty { .. })));
    }
}

#[test]
fn corrupt_pcapng_blocks_are_named() {
    let base = || {
        let mut f = PcapngFile::new(false);
        f.interface(1, 0, &[]).enhanced(0, 1, 4, &[1; 4]);
        f
    };
    type Damage = Box<dyn Fn(&mut PcapngFile)>;
    let cases: Vec<(&str, Damage)> = vec![
        (
            "of interface 1, the section describes 1",
            Box::new(|f| {
                f.enhanced(1, 1, 4, &[1; 4]);
            }),
        ),
        ("block length 8,", Box::new(|f| f.bytes.extend([6, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0, 0]))),
        ("block length 34,", Box::new(|f| f.bytes.extend([6, 0, 0, 0, 34, 0, 0, 0, 0, 0, 0, 0]))),
        ("block length 4294967292,", Box::new(|f| f.bytes.extend([6, 0, 0, 0, 0xfc, 0xff, 0xff, 0xff, 0, 0, 0, 0]))),
        (
            "20 in front and 21 behind",
            Box::new(|f| {
                f.block(0x99, &[0; 8]);
                let last = f.bytes.len() - 4;
                f.bytes[last] += 1;
            }),
        ),
        (
            "36 in front and 35 behind",
            Box::new(|f| {
                f.enhanced(0, 1, 4, &[1; 4]);
                let last = f.bytes.len() - 4;
                f.bytes[last] -= 1;
            }),
        ),
        (
            "packet of 5 bytes in a block with room for 4",
            Box::new(|f| {
                f.enhanced(0, 1, 4, &[1; 4]);
                let captured = f.bytes.len() - 16;
                f.bytes[captured] += 1;
            }),
        ),
        (
            "option 9 with impossible length 0",
            Box::new(|f| {
                let option = f.option(9, &[]);
                f.interface(1, 0, &option);
            }),
        ),
        (
            "option 14 with impossible length 4",
            Box::new(|f| {
                let option = f.option(14, &[0; 4]);
                f.interface(1, 0, &option);
            }),
        ),
        (
            "option 3 with impossible length 65535",
            Box::new(|f| {
                f.interface(1, 0, &[3, 0, 0xff, 0xff]);
            }),
        ),
        (
            "byte-order magic 00000000",
            Box::new(|f| {
                f.block(0x0a0d_0d0a, &[0; 16]);
            }),
        ),
        (
            "pcapng version 2.0",
            Box::new(|f| {
                f.section(false);
                let major = f.bytes.len() - 16;
                f.bytes[major] = 2;
            }),
        ),
    ];
    for (text, damage) in cases {
        let mut file = base();
        let at = file.bytes.len() as u64;
        damage(&mut file);
        let (packets, result) = read(&file.bytes);
        let error = result.unwrap_err();
        assert!(error.to_string().contains(text), "{error}");
        assert_eq!((packets.len(), error.packets(), error.at_byte()), (1, 1, Some(at)), "{error}");
        assert!(error.is_partial());
    }
}

#[test]
fn damaged_compression_keeps_what_came_before() {
    let mut file = PcapFile::new(false, US, 1);
    for i in 0..5000 {
        file.record(i, 0, 200, &noise(u64::from(i), 200));
    }
    for (format, bytes) in [("gzip", gzip(&file.bytes)), ("zstd", zstd(&file.bytes))] {
        let (packets, result) = read(&bytes[..bytes.len() / 2]);
        let error = result.unwrap_err();
        assert!(matches!(error, SourceError::Decompress { .. }), "{error}");
        assert!(error.to_string().contains(format) && error.is_partial(), "{error}");
        assert!(packets.len() > 1000, "{format}: {}", packets.len());
        let mut damaged = bytes.clone();
        let middle = bytes.len() / 2;
        damaged[middle..middle + 64].fill(0xff);
        let (packets, result) = read(&damaged);
        let error = result.unwrap_err();
        // A checksum may be all that tells, and it comes last.
        assert_eq!(error.packets(), packets.len() as u64, "{error}");
    }
}

#[test]
fn paths_are_opened_and_their_progress_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.pcap.gz");
    let mut file = PcapFile::new(false, US, 1);
    file.record(1, 0, 3, &[1, 2, 3]);
    let compressed = gzip(&file.bytes);
    std::fs::write(&path, &compressed).unwrap();
    let mut source = FileSource::open(&path, TAP, &FileOptions::default()).unwrap();
    let progress = source.progress().unwrap();
    assert_eq!(progress.total_bytes(), Some(compressed.len() as u64));
    let (keep, result) = drain(&mut source, 10);
    result.unwrap();
    assert_eq!((keep.packets.len(), progress.consumed_bytes()), (1, compressed.len() as u64));
    assert_eq!(source.name(), path.display().to_string());

    let refused = |path: &std::path::Path| FileSource::open(path, TAP, &FileOptions::default()).err().unwrap();
    let missing = refused(&dir.path().join("missing.pcap")).to_string();
    assert!(missing.contains("missing.pcap") && missing.contains("No such file"), "{missing}");
    assert!(matches!(refused(dir.path()), SourceError::Open { .. }));
    let wrong = dir.path().join("wrong");
    for (bytes, is_expected) in [
        (&b""[..], (|e| matches!(e, SourceError::Empty { .. })) as fn(&SourceError) -> bool),
        (b"text", |e| matches!(e, SourceError::Magic { .. })),
        (b"\xd4\xc3\xb2", |e| matches!(e, SourceError::Truncated { at_byte: 0, have_bytes: 3, .. })),
        (b"\xd4\xc3\xb2\xa1\x02", |e| {
            matches!(e, SourceError::Truncated { at_byte: 0, need_bytes: 24, have_bytes: 5, packets: 0, .. })
        }),
        (b"\x1f\x8b\x08\x00", |e| matches!(e, SourceError::Decompress { .. })),
    ] {
        std::fs::write(&wrong, bytes).unwrap();
        let error = refused(&wrong);
        assert!(is_expected(&error), "{error}");
        assert!(error.to_string().contains("wrong"), "{error}");
    }
}

#[test]
fn a_named_pipe_is_idle_until_it_is_written_to() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&path).status();
    if !made.is_ok_and(|status| status.success()) {
        println!("SKIPPED: no mkfifo here");
        return;
    }
    // Opened for both directions, so that neither end waits for the other to open.
    let mut writer = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let mut source = FileSource::open(&path, TAP, &FileOptions::default()).unwrap();
    let mut keep = Keep::default();
    assert_eq!(source.poll(&mut keep).unwrap(), capture::Polled::Idle);
    let mut file = PcapFile::new(false, US, 1);
    file.record(1, 0, 3, &[1, 2, 3]);
    writer.write_all(&file.bytes[..30]).unwrap();
    while source.poll(&mut keep).unwrap() != capture::Polled::Idle {}
    assert!(keep.packets.is_empty());
    writer.write_all(&file.bytes[30..]).unwrap();
    assert_eq!(source.poll(&mut keep).unwrap(), capture::Polled::Packets(1));
    drop(writer);
    assert_eq!(source.poll(&mut keep).unwrap(), capture::Polled::End);
    assert_eq!(source.progress().unwrap().total_bytes(), None);
}

#[test]
fn an_impossible_time_does_not_hide_the_other_packets() {
    let mut file = PcapFile::new(false, US, 1);
    file.record(10, 1, 1, &[0]).record(10, 1_000_000, 1, &[0]).record(11, 2, 1, &[0]);
    let (packets, result) = read(&file.bytes);
    let error = result.unwrap_err();
    assert_eq!((packets.len(), error.packets()), (3, 3));
    assert!(error.to_string().contains("has 1 packet with an impossible time"), "{error}");
}

#[test]
fn a_capture_cut_at_any_byte_keeps_what_came_before() {
    let mut pcap = PcapFile::new(true, US, 1);
    let mut starts = vec![24];
    for len in [0_usize, 1, 60, 7] {
        pcap.record(1, 1, len as u32, &noise(1, len));
        starts.push(pcap.bytes.len());
    }
    for cut in 0..=pcap.bytes.len() {
        for (options, steps) in readers() {
            let (packets, result) = read_with(Trickle::new(&pcap.bytes[..cut], steps), &options, 1000);
            let complete = starts.iter().filter(|start| **start <= cut).count();
            assert_eq!(packets.len(), complete.saturating_sub(1), "cut at {cut}");
            let start = starts[..complete].last().copied().unwrap_or(0);
            match result {
                Ok(()) => assert_eq!(cut, start),
                Err(SourceError::Empty { .. }) => assert_eq!(cut, 0),
                Err(SourceError::Truncated { at_byte, need_bytes, have_bytes, packets: before, .. }) => {
                    assert_eq!((at_byte, have_bytes), (start as u64, (cut - start) as u64), "cut at {cut}");
                    assert_eq!(before, packets.len() as u64);
                    assert!(need_bytes > have_bytes, "cut at {cut}");
                    assert!(cut > start && (cut < 24 || cut < starts[complete]));
                }
                Err(e) => panic!("cut at {cut}: {e}"),
            }
        }
    }
}

#[test]
fn a_pcapng_cut_at_any_byte_keeps_what_came_before() {
    let (file, all) = rich_pcapng();
    let mut ends = file.blocks.clone();
    ends.push(file.bytes.len());
    for cut in 0..=file.bytes.len() {
        for (options, steps) in readers() {
            let (packets, result) = read_with(Trickle::new(&file.bytes[..cut], steps), &options, 5000);
            assert_eq!(packets, all[..packets.len()]);
            let start = *ends.iter().rfind(|end| **end <= cut).unwrap_or(&0);
            match result {
                Ok(()) => assert_eq!(cut, start),
                Err(SourceError::Empty { .. }) => assert_eq!(cut, 0),
                Err(SourceError::Truncated { at_byte, need_bytes, have_bytes, packets: before, .. }) => {
                    assert_eq!((at_byte, have_bytes), (start as u64, (cut - start) as u64), "cut at {cut}");
                    assert!(need_bytes > have_bytes && cut > start, "cut at {cut}");
                    assert_eq!(before, packets.len() as u64);
                }
                Err(e) => panic!("cut at {cut}: {e}"),
            }
            if cut == file.bytes.len() {
                assert_eq!(packets.len(), all.len());
            }
        }
    }
}

/// All at once; byte by byte through the smallest buffer.
fn readers() -> [(FileOptions, &'static [usize]); 2] {
    let tiny = FileOptions { buffer_bytes: 1, ..FileOptions::default() };
    [(FileOptions::default(), &[usize::MAX]), (tiny, &[1])]
}

#[test]
fn damage_anywhere_ends_in_order() {
    use proptest::prelude::*;
    let mut pcap = PcapFile::new(false, US, 1);
    for i in 0..20 {
        pcap.record(i, i, 80, &noise(u64::from(i), 40));
    }
    let (ng, _) = rich_pcapng();
    let files = [&pcap.bytes, &ng.bytes, &gzip(&pcap.bytes), &zstd(&ng.bytes)].map(Clone::clone);
    let change = (any::<prop::sample::Index>(), any::<u8>());
    let changes = prop::collection::vec(change, 0..12);
    let case = (0..4_usize, changes, any::<prop::sample::Index>(), prop::sample::select(vec![64, 256 * 1024]));
    proptest!(ProptestConfig::with_cases(2000), |((which, changes, cut, buffer_bytes) in case)| {
        let mut bytes = files[which].clone();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        bytes.truncate(bytes.len() - cut.index(bytes.len()) / 8);
        let options = FileOptions { buffer_bytes, packet_bytes_max: 1 << 20 };
        // `drain` checks that it ends, that an error comes once, and that the counts agree.
        let (packets, result) = read_with(std::io::Cursor::new(bytes), &options, 100_000);
        if let Err(e) = result {
            prop_assert_eq!(e.packets(), packets.len() as u64);
            prop_assert!(!e.to_string().contains('\n'));
        }
    });
}
