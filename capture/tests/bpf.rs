//! The source of live frames, from outside: what it sends is what a packet socket on the other end sees. Needs CAP_BPF,
//! CAP_NET_ADMIN, `unshare`, `ip` and `ethtool`.

mod support;

use capture::{AfPacketOptions, AfPacketSource, BpfError, LiveFrames, Polled, Source};
use std::collections::HashMap;
use std::process::Command;
use std::time::{Duration, Instant};
use support::{Keep, Packet, TAP};

const INSIDE: &str = "TAPHOUSE_TEST_NAMESPACE";

/// Runs the test `name` again in a network namespace. False outside, once it has passed there.
fn in_namespace(name: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap();
        return true;
    }
    if let Some(why) = lacks() {
        assert!(std::env::var_os("REQUIRE_XDP").is_none_or(|v| v != "1"), "REQUIRE_XDP=1, but: {why}");
        println!("SKIPPED: {why}");
        return false;
    }
    let status = Command::new("unshare")
        .arg("-n")
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .status()
        .unwrap();
    assert!(status.success(), "{name} failed in its namespace");
    false
}

fn lacks() -> Option<String> {
    for [program, argument] in [["ip", "-V"], ["ethtool", "--version"]] {
        match Command::new("unshare").args(["-n", program, argument]).output() {
            Ok(output) if output.status.success() => {}
            Ok(output) => return Some(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
            Err(e) => return Some(format!("unshare: {e}")),
        }
    }
    // The loopback interface is always the first.
    LiveFrames::new(1).err().map(|e| e.to_string())
}

fn run(command: &str) -> String {
    let (program, arguments) = command.split_once(' ').unwrap();
    let output = Command::new(program).args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A pair of interfaces; the index of the near one, and a source on the far one.
fn pair() -> (u32, AfPacketSource) {
    run("ip link add near type veth peer name far");
    run("ip link set near up");
    run("ip link set far up");
    // What makes a veth take frames that are no socket buffers.
    run("ethtool -K far gro on");
    let near = run("ip -o link show dev near");
    let options = AfPacketOptions { block_bytes: 1 << 20, blocks: 16, ..AfPacketOptions::default() };
    (near.split(':').next().unwrap().parse().unwrap(), AfPacketSource::open("far", TAP, &options).unwrap())
}

/// The next `count` packets.
fn receive(source: &mut AfPacketSource, count: usize) -> Vec<Packet> {
    let mut keep = Keep::default();
    let deadline = Instant::now() + Duration::from_secs(10);
    while keep.packets.len() < count {
        assert_ne!(source.poll(&mut keep).unwrap(), Polled::End);
        assert!(Instant::now() < deadline, "{} of {count} packets, {:?}", keep.packets.len(), source.counts());
    }
    assert_eq!(source.counts().undelivered(capture::Undelivered::KernelDrop), 0);
    keep.packets
}

/// Sum of the 16-bit words of the IPv4 header in one's complement: 0xffff if its checksum is right.
fn header_sum(frame: &[u8]) -> u32 {
    let sum = frame[14..34].chunks_exact(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum::<u32>();
    let folded = (sum & 0xffff) + (sum >> 16);
    (folded & 0xffff) + (folded >> 16)
}

/// A datagram with right checksums.
fn datagram() -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x08, 0];
    frame.extend([0x45, 0, 0, 46, 0x12, 0x34, 0x40, 0, 64, 17, 0, 0, 10, 1, 0xff, 0xee, 10, 2, 0, 1]);
    frame.extend([0x30, 0x39, 0, 53, 0, 26, 0xab, 0xcd]);
    frame.resize(60, 7);
    let sum = !header_sum(&frame) as u16;
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    assert_eq!(header_sum(&frame), 0xffff);
    frame
}

#[test]
fn copies_are_identical() {
    if !in_namespace("copies_are_identical") {
        return;
    }
    let (near, mut source) = pair();
    let live = LiveFrames::new(near).unwrap();
    let other = [&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5][..], &[9; 300]].concat();
    for frame in [datagram(), other] {
        live.send(&frame, 3000).unwrap();
        assert!(receive(&mut source, 3000).iter().all(|packet| packet.data == frame));
    }
}

#[test]
fn flows_take_turns() {
    if !in_namespace("flows_take_turns") {
        return;
    }
    const FLOWS: u32 = 70_000;
    let (near, mut source) = pair();
    let live = LiveFrames::with_flows(near, FLOWS).unwrap();
    let frame = datagram();
    let mut counts: HashMap<u32, u32> = HashMap::new();
    // A round and a half in pieces that the ring has room for.
    for _ in 0..15 {
        live.send(&frame, FLOWS / 10).unwrap();
        for packet in receive(&mut source, FLOWS as usize / 10) {
            let data = packet.data;
            let word = |at: usize| u32::from(u16::from_be_bytes([data[at], data[at + 1]]));
            *counts.entry(word(34) << 16 | word(28)).or_default() += 1;
            assert_eq!((header_sum(&data), word(40)), (0xffff, 0), "checksums");
            for part in [0..24, 26..28, 30..34, 36..40, 42..60] {
                assert_eq!(data[part.clone()], frame[part]);
            }
        }
    }
    assert_eq!(counts.len(), FLOWS as usize);
    for (flow, count) in counts {
        assert_eq!(count, if flow < FLOWS / 2 { 2 } else { 1 }, "flow {flow}");
    }
    let mut tcp = datagram();
    tcp[23] = 6;
    for frame in [tcp, datagram()[..41].to_vec()] {
        assert_eq!(live.send(&frame, 1).unwrap_err().kind(), std::io::ErrorKind::InvalidInput);
    }
}

#[test]
fn an_interface_that_is_not_there() {
    let result = LiveFrames::new(u32::MAX);
    assert!(matches!(result, Err(BpfError::NoInterface { index: u32::MAX })), "{result:?}");
}
