//! Live capture, without privilege: each test runs itself again in a user and network namespace of its own, where it
//! may open packet sockets. Needs `unshare` (util-linux) and `ip` (iproute2).

#[allow(unsafe_code, reason = "std has no packet sockets")]
#[path = "support/packet_socket.rs"]
mod packet_socket;
mod support;

use capture::{AfPacketOptions, AfPacketSource, Polled, Source, SourceError, Undelivered, worker};
use std::collections::HashMap;
use std::io::Write;
use std::net::UdpSocket;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};
use support::{Keep, TAP, noise};
use wire::LinkType;

const INSIDE: &str = "TAPHOUSE_TEST_NAMESPACE";
/// Ethernet, IPv4 and UDP headers.
const HEADERS: usize = 14 + 20 + 8;

/// True inside the namespace. Outside it runs the test `name` there, and returns false when that has passed.
fn in_namespace(name: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        // Nobody but the test speaks: no neighbour discovery, no router solicitation.
        std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap();
        std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").unwrap();
        return true;
    }
    let probe = Command::new("unshare").args(["-Urn", "ip", "link", "show", "lo"]).output();
    if !probe.as_ref().is_ok_and(|output| output.status.success()) {
        let why = match probe {
            Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            Err(e) => format!("unshare: {e}"),
        };
        assert!(std::env::var_os("REQUIRE_XDP").is_none_or(|v| v != "1"), "REQUIRE_XDP=1, but: {why}");
        println!("SKIPPED: no user and network namespace with `ip` in it: {why}");
        return false;
    }
    let status = Command::new("unshare")
        .arg("-Urn")
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .status()
        .unwrap();
    assert!(status.success(), "{name} failed in its namespace");
    false
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

fn options(block_bytes: u32, blocks: u32) -> AfPacketOptions {
    AfPacketOptions { block_bytes, blocks, ..AfPacketOptions::default() }
}

fn small() -> AfPacketOptions {
    options(1 << 18, 16)
}

/// What a stopped worker still delivers, which is all there is in the ring.
fn finish(source: &mut AfPacketSource) -> Keep {
    let mut keep = Keep::default();
    let before = source.counts().delivered;
    worker::run(source, &mut keep, &AtomicBool::new(true)).unwrap();
    let counts = source.counts();
    assert_eq!(counts.delivered - before, keep.packets.len() as u64);
    assert_eq!(counts.offered, counts.delivered + counts.undelivered.iter().sum::<u64>());
    keep
}

/// Polls until `enough`; panics after ten seconds without.
fn poll_until(source: &mut AfPacketSource, keep: &mut Keep, enough: impl Fn(&Keep) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !enough(keep) {
        source.poll(keep).unwrap();
        assert!(Instant::now() < deadline, "{} packets, {} idle polls", keep.packets.len(), keep.idles);
    }
}

/// Sends until something arrives: a link that just came up swallows frames until the kernel has activated its queue.
fn wait_for_link(source: &mut AfPacketSource, from: &str) {
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut keep = Keep::default();
    while keep.packets.is_empty() || keep.idles == 0 {
        assert!(Instant::now() < deadline, "the link of {from} does not come up");
        if keep.packets.is_empty() {
            assert_eq!(packet_socket::send(from, &[vec![2; 60]]), 0);
            keep.idles = 0;
        }
        source.poll(&mut keep).unwrap();
    }
}

fn now_ns() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos() as u64
}

#[test]
fn loopback_delivers_each_datagram_once() {
    if !in_namespace("loopback_delivers_each_datagram_once") {
        return;
    }
    let error = AfPacketSource::open("lo", TAP, &small()).err().unwrap();
    assert!(matches!(error, SourceError::InterfaceDown { .. }), "{error}");
    ip("link set lo up");

    let mut source = AfPacketSource::open("lo", TAP, &small()).unwrap();
    assert_eq!((source.link(), source.name()), (LinkType::Ethernet, "lo"));
    let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    let stop = AtomicBool::new(false);
    let sent: Vec<Vec<u8>> = (0..3000).map(|i| noise(i, (i as usize * 7) % 1400)).collect();
    let mut keep = Keep::default();
    let before = now_ns();
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| worker::run(&mut source, &mut keep, &stop));
        for datagram in &sent {
            sender.send_to(datagram, receiver.local_addr().unwrap()).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
        worker.join().unwrap().unwrap();
    });
    let after = now_ns();
    assert_eq!(keep.packets.len(), sent.len());
    for (packet, datagram) in keep.packets.iter().zip(&sent) {
        assert!(packet.data[HEADERS..] == datagram[..]);
        assert_eq!(packet.wire_len as usize, packet.data.len());
        assert!((before..=after).contains(&packet.ts), "{} is not within {before}..={after}", packet.ts);
    }
    let counts = source.counts();
    assert_eq!(
        (counts.offered, counts.delivered, counts.undelivered(Undelivered::KernelDrop), counts.cut),
        (3000, 3000, 0, 0)
    );
    assert_eq!(counts, keep.counts, "the handler was told of all of it");
    assert_eq!(source.poll(&mut keep).unwrap(), Polled::End);
}

#[test]
fn what_a_full_ring_loses_is_counted_to_the_packet() {
    if !in_namespace("what_a_full_ring_loses_is_counted_to_the_packet") {
        return;
    }
    ip("link set lo up");
    let mut source = AfPacketSource::open("lo", TAP, &options(1 << 16, 2)).unwrap();
    let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    for i in 0..5000 {
        sender.send_to(&noise(i, 1000), receiver.local_addr().unwrap()).unwrap();
    }
    finish(&mut source);
    let counts = source.counts();
    assert_eq!(counts.offered, 5000);
    assert!(
        counts.delivered > 50 && counts.undelivered(Undelivered::KernelDrop) > 4000 && counts.ring_freezes > 0,
        "{counts:?}"
    );
}

#[test]
fn an_idle_interface_tells_the_time_and_delivers_partial_blocks() {
    if !in_namespace("an_idle_interface_tells_the_time_and_delivers_partial_blocks") {
        return;
    }
    ip("link set lo up");
    let mut source = AfPacketSource::open("lo", TAP, &small()).unwrap();
    let mut keep = Keep::default();
    let began = Instant::now();
    assert_eq!(source.poll(&mut keep).unwrap(), Polled::Idle);
    assert_eq!(keep.idles, 1);
    assert!(began.elapsed() < Duration::from_secs(5));
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.send_to(b"one", socket.local_addr().unwrap()).unwrap();
    poll_until(&mut source, &mut keep, |keep| keep.packets.len() == 1);
    assert_eq!(&keep.packets[0].data[HEADERS..], b"one");
}

#[test]
fn vlan_tags_come_through_whole() {
    if !in_namespace("vlan_tags_come_through_whole") {
        return;
    }
    ip("link add veth-a type veth peer name veth-b");
    ip("link set veth-a up");
    ip("link set veth-b up");
    let mut source = AfPacketSource::open("veth-b", TAP, &small()).unwrap();
    wait_for_link(&mut source, "veth-a");
    let addresses = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    let sent: Vec<Vec<u8>> = (0..200_u16)
        .map(|i| {
            let mut frame = addresses.to_vec();
            if i % 4 == 3 {
                frame.extend([0x88, 0xa8, 0x20, i as u8]);
            }
            if i % 4 >= 1 {
                frame.extend([0x81, 0x00, 0xe0 | (i >> 8) as u8, i as u8]);
            }
            // An ethertype for experiments (IEEE 802).
            frame.extend([0x88, 0xb5]);
            frame.extend(noise(u64::from(i), 50 + usize::from(i)));
            frame
        })
        .collect();
    assert_eq!(packet_socket::send("veth-a", &sent), 0);
    let mut keep = Keep::default();
    poll_until(&mut source, &mut keep, |keep| keep.packets.len() >= sent.len());
    for (packet, frame) in keep.packets.iter().zip(&sent) {
        assert_eq!(&packet.data, frame);
        assert_eq!(packet.wire_len as usize, frame.len());
    }
    assert_eq!(
        (finish(&mut source).packets.len(), source.counts().undelivered(Undelivered::KernelDrop)),
        (0, 0),
        "and nothing else"
    );
}

#[test]
fn a_group_deals_both_directions_of_a_flow_to_one_worker() {
    if !in_namespace("a_group_deals_both_directions_of_a_flow_to_one_worker") {
        return;
    }
    ip("link set lo up");
    let mut sources = AfPacketSource::open_group("lo", TAP, &small(), 3).unwrap();
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let clients: Vec<_> = (0..60).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
    for _ in 0..10 {
        for client in &clients {
            client.send_to(b"question", server.local_addr().unwrap()).unwrap();
            let (_, from) = server.recv_from(&mut [0; 64]).unwrap();
            server.send_to(b"answer", from).unwrap();
        }
    }
    let mut packets = 0;
    let mut worker_of = HashMap::new();
    let server_port = server.local_addr().unwrap().port();
    for (worker, source) in sources.iter_mut().enumerate() {
        let keep = finish(source);
        assert!(!keep.packets.is_empty(), "worker {worker} was left out");
        packets += keep.packets.len();
        for packet in &keep.packets {
            let port = |at: usize| u16::from_be_bytes([packet.data[at], packet.data[at + 1]]);
            let client_port = if port(34) == server_port { port(36) } else { port(34) };
            assert_eq!(*worker_of.entry(client_port).or_insert(worker), worker, "flow of port {client_port}");
        }
    }
    assert_eq!((packets, worker_of.len()), (60 * 10 * 2, 60));
}

#[test]
fn a_link_may_come_back_but_an_interface_that_is_gone_is_the_end() {
    if !in_namespace("a_link_may_come_back_but_an_interface_that_is_gone_is_the_end") {
        return;
    }
    ip("link add veth-a type veth peer name veth-b");
    ip("link set veth-a up");
    ip("link set veth-b up");
    let mut source = AfPacketSource::open("veth-b", TAP, &small()).unwrap();
    let mut keep = Keep::default();
    wait_for_link(&mut source, "veth-a");
    ip("link set veth-b down");
    assert_eq!(source.poll(&mut keep).unwrap(), Polled::Idle);
    ip("link set veth-b up");
    wait_for_link(&mut source, "veth-a");

    ip("link delete veth-a");
    let deadline = Instant::now() + Duration::from_secs(10);
    let error = loop {
        match source.poll(&mut keep) {
            Ok(polled) => assert!(polled == Polled::Idle && Instant::now() < deadline),
            Err(e) => break e,
        }
    };
    assert!(matches!(error, SourceError::InterfaceGone { packets: 2.., .. }), "{error}");
    assert_eq!(source.poll(&mut keep).unwrap(), Polled::End);
    let error = AfPacketSource::open("veth-b", TAP, &small()).err().unwrap();
    assert_eq!(error.to_string(), "no interface 'veth-b', there are: lo");
}

#[test]
fn a_tunnel_shows_ip_and_other_hardware_is_refused() {
    if !in_namespace("a_tunnel_shows_ip_and_other_hardware_is_refused") {
        return;
    }
    let mut tunnel = match raw::tunnel("tun-a") {
        Ok(tunnel) => tunnel,
        Err(e) => return println!("SKIPPED: no tunnel device: {e}"),
    };
    ip("link set tun-a up");
    let mut source = AfPacketSource::open("tun-a", TAP, &small()).unwrap();
    assert_eq!(source.link(), LinkType::RawIp);
    let mut datagram = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    datagram.extend([0, 53, 0, 53, 0, 8, 0, 0]);
    tunnel.write_all(&datagram).unwrap();
    let keep = finish(&mut source);
    assert_eq!((keep.packets.len(), &keep.packets[0].data, keep.packets[0].link), (1, &datagram, LinkType::RawIp));

    // ARPHRD_IEEE80211_RADIOTAP: frames that begin with a radio header.
    ip("link set tun-a down");
    raw::set_hardware(&tunnel, 803).unwrap();
    ip("link set tun-a up");
    let error = AfPacketSource::open("tun-a", TAP, &small()).err().unwrap();
    assert!(matches!(error, SourceError::Hardware { arphrd: 803, .. }), "{error}");
}

#[allow(unsafe_code, reason = "std has no packet sockets")]
mod raw {
    use std::fs::File;
    use std::io;
    use std::os::fd::AsRawFd;

    /// A new tunnel interface; what is written to it is received there.
    pub(crate) fn tunnel(name: &str) -> io::Result<File> {
        let device = File::options().read(true).write(true).open("/dev/net/tun")?;
        let mut request = libc::ifreq {
            ifr_name: [0; libc::IFNAMSIZ],
            ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: (libc::IFF_TUN | libc::IFF_NO_PI) as i16 },
        };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        // SAFETY: TUNSETIFF reads and writes one `ifreq`, which `request` is.
        let result = unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        if result == 0 { Ok(device) } else { Err(io::Error::last_os_error()) }
    }

    /// Gives a tunnel another hardware type, while it is down.
    pub(crate) fn set_hardware(tunnel: &File, arphrd: libc::c_ulong) -> io::Result<()> {
        // SAFETY: TUNSETLINK takes a number.
        let result = unsafe { libc::ioctl(tunnel.as_raw_fd(), libc::TUNSETLINK, arphrd) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}
