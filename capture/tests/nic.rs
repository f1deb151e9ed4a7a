//! What capture learns of network interfaces, against `ip` and `ethtool`, on pairs of veth interfaces in namespaces of
//! their own.

#[allow(unsafe_code, reason = "std has no packet sockets")]
#[path = "support/packet_socket.rs"]
mod packet_socket;
use capture::nic::{
    self, CounterReader, Interface, LinkEvent, LinkWatch, MissedSource, NicError, PeerLink, Promiscuous,
};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::process::Command;
use std::time::{Duration, Instant};

const INSIDE: &str = "TAPHOUSE_TEST_NAMESPACE";

/// True inside a network namespace of the test's own, with another one called `far` reached by `ip -n far`. Outside it
/// runs the test `name` there, and returns false when that has passed. Everything ends with the process: `/run/netns` and
/// /sys are mounts of its own.
fn in_namespace(name: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        for (program, arguments) in
            [("mount", "-t tmpfs tmpfs /run"), ("mount", "-t sysfs sysfs /sys"), ("ip", "netns add far")]
        {
            run(program, arguments);
        }
        for namespace in ["", "ip netns exec far "] {
            sh(&format!("{namespace}sysctl -qw net.ipv6.conf.default.disable_ipv6=1 net.ipv6.conf.all.disable_ipv6=1"));
        }
        return true;
    }
    // Root has all that it needs; anybody else is root in a user namespace, where BPF programs cannot be loaded.
    let unshare: &[&str] = if is_root() { &["-nm"] } else { &["-Urnm"] };
    let probe = Command::new("unshare")
        .args(unshare)
        .args(["sh", "-ec", "mount -t tmpfs tmpfs /run; ip netns add probe; ip link add v0 type veth peer name v1"])
        .output();
    if !probe.as_ref().is_ok_and(|output| output.status.success()) {
        let why = match probe {
            Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            Err(e) => format!("unshare: {e}"),
        };
        skip(&format!("no namespaces with `ip` and veth in them: {why}"));
        return false;
    }
    let status = Command::new("unshare")
        .args(unshare)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .status()
        .unwrap();
    assert!(status.success(), "{name} failed in its namespace");
    false
}

fn skip(why: &str) {
    assert!(std::env::var_os("REQUIRE_XDP").is_none_or(|v| v != "1"), "REQUIRE_XDP=1, but: {why}");
    println!("SKIPPED: {why}");
}

fn is_root() -> bool {
    std::fs::read_to_string("/proc/self/status").unwrap().lines().any(|line| line.starts_with("Uid:\t0\t0"))
}

fn has(program: &str) -> bool {
    let found = Command::new("sh").args(["-c", &format!("command -v {program}")]).output();
    found.is_ok_and(|output| output.status.success())
}

/// Runs a program and returns what it printed.
fn run(program: &str, arguments: &str) -> String {
    let output = Command::new(program).args(arguments.split(' ')).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

fn ip(arguments: &str) -> String {
    run("ip", arguments)
}

fn sh(script: &str) -> String {
    let output = Command::new("sh").args(["-ec", script]).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// `v0` here and `v1` in the namespace `far`, both up, with 4 queues each.
fn pair() -> Interface {
    ip("link add v0 numrxqueues 4 numtxqueues 4 type veth peer name v1 netns far numrxqueues 4 numtxqueues 4");
    ip("link set v0 up");
    ip("-n far link set v1 up");
    wait_until("v0 has carrier", || nic::interface("v0").unwrap().has_carrier);
    // The kernel tells of it later, when it sets the operational state: on a busy machine, in the middle of a test.
    wait_until("v0 is told to be up", || ip("-o link show v0").contains("state UP"));
    nic::interface("v0").unwrap()
}

/// Carrier is switched on by a work queue of the kernel's.
fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < deadline, "not within 10 s: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A number of `ip -j -d -s -s link show`, by JSON pointer.
fn ip_number(link: &str, pointer: &str) -> u64 {
    let text = ip(&format!("-j -d -s -s {link}"));
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    json.pointer(&format!("/0{pointer}")).and_then(serde_json::Value::as_u64).unwrap_or(u64::MAX)
}

#[test]
fn an_interface_is_as_ip_says() {
    if !in_namespace("an_interface_is_as_ip_says") {
        return;
    }
    let v0 = pair();
    let text = ip("-j -d link show v0");
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let number = |key: &str| json[0][key].as_u64().unwrap();
    assert_eq!(u64::from(v0.index), number("ifindex"));
    assert_eq!((u64::from(v0.rx_queues), u64::from(v0.tx_queues)), (number("num_rx_queues"), number("num_tx_queues")));
    assert_eq!((v0.mtu, v0.hardware_type, v0.rx_queues), (1500, libc::ARPHRD_ETHER, 4));
    assert_eq!((v0.kind.as_deref(), v0.driver.as_deref()), (Some("veth"), Some("veth")));
    assert!(v0.is_up && v0.has_carrier);
    assert_eq!((v0.numa_node, v0.xdp_program, v0.master), (None, None, None));
    let far = ip_number("-n far link show v1", "/ifindex") as u32;
    let namespace = json[0]["link_netnsid"].as_u64().unwrap() as u32;
    assert_eq!(v0.peer, Some(PeerLink { index: far, namespace: Some(namespace) }));

    ip("link set v0 down");
    ip("link set v0 mtu 3000");
    ip("link property add dev v0 altname tap-to-somewhere");
    let down = nic::interface("tap-to-somewhere").unwrap();
    assert_eq!((down.name.as_str(), down.index, down.mtu), ("v0", v0.index, 3000));
    assert!(!down.is_up && !down.has_carrier);

    ip("link add near0 type veth peer name near1");
    let near0 = nic::interface("near0").unwrap();
    let near1 = nic::interface("near1").unwrap();
    assert_eq!(near0.peer, Some(PeerLink { index: near1.index, namespace: None }));
    let all = nic::interfaces().unwrap();
    let names: Vec<&str> = all.iter().map(|i| i.name.as_str()).collect();
    assert!(["lo", "v0", "near0", "near1"].iter().all(|name| names.contains(name)), "{names:?}");
    assert!(all.is_sorted_by_key(|i| i.index));
    let lo = all.iter().find(|i| i.name == "lo").unwrap();
    assert_eq!((lo.hardware_type, lo.driver.clone(), lo.peer), (libc::ARPHRD_LOOPBACK, None, None));

    let error = nic::interface("eth77").unwrap_err();
    assert!(matches!(error, NicError::NoInterface { .. }));
    let text = error.to_string();
    assert!(text.starts_with("no interface 'eth77', there are: ") && text.contains("near0, near1"), "{text}");
}

#[test]
fn a_list_that_changes_is_read_again() {
    if !in_namespace("a_list_that_changes_is_read_again") {
        return;
    }
    // More than the kernel puts into one datagram.
    let commands: String = (0..40).map(|i| format!("link add near{i} type veth peer name tap{i}\n")).collect();
    std::fs::write("/run/pairs", commands).unwrap();
    ip("-batch /run/pairs");
    let commands: String = (0..150).map(|_| "link add churn type veth\nlink del churn\n").collect();
    std::fs::write("/run/churn", commands).unwrap();
    std::thread::scope(|scope| {
        let churn = scope.spawn(|| ip("-batch /run/churn"));
        let (mut lists, mut interrupted) = (0, 0);
        while !churn.is_finished() || lists == 0 {
            match nic::interfaces() {
                Ok(all) => {
                    lists += 1;
                    let stable = all.iter().filter(|i| i.name.starts_with("near") || i.name.starts_with("tap"));
                    assert_eq!(stable.count(), 80, "list {lists} lacks some or has some twice");
                }
                Err(NicError::Interrupted { attempts, .. }) => {
                    interrupted += 1;
                    assert!(attempts > 1);
                }
                Err(e) => panic!("{e}"),
            }
        }
        println!("{lists} lists, {interrupted} given up");
    });
}

#[test]
fn what_is_gone_is_said_to_be_gone() {
    if !in_namespace("what_is_gone_is_said_to_be_gone") {
        return;
    }
    let v0 = pair();
    let mut reader = CounterReader::open(&v0).unwrap();
    ip("link del v0");
    let gone = |error: NicError| assert!(matches!(&error, NicError::Gone { name } if name == "v0"), "{error:?}");
    gone(reader.read().unwrap_err());
    gone(nic::channels(&v0).unwrap_err());
    gone(nic::receive_queues(&v0).unwrap_err());
    gone(nic::rx_vlan_offload(&v0).unwrap_err());
    gone(nic::xdp_support(&v0).unwrap_err());
    gone(CounterReader::open(&v0).err().unwrap());
    gone(Promiscuous::enable(&v0).unwrap_err());
    assert_eq!(reader.peer_dropped(), None);
}

#[test]
fn traffic_of_the_host_is_seen() {
    if !in_namespace("traffic_of_the_host_is_seen") {
        return;
    }
    let reason = |name: &str| nic::interface(name).unwrap().carries_host_traffic().map(str::to_owned);
    sh("sysctl -qw net.ipv6.conf.default.disable_ipv6=0 net.ipv6.conf.all.disable_ipv6=0");
    for link in ["a", "b", "c", "d"] {
        ip(&format!("link add {link}0 type veth peer name {link}1"));
        ip(&format!("link set {link}0 up"));
        ip(&format!("link set {link}1 up"));
    }
    let has_link_local = || ip("-6 addr show dev a0 scope link").contains("fe80");
    wait_until("a link-local address", has_link_local);
    assert_eq!(reason("a0"), None, "any interface has a link-local address");
    assert!(nic::interface("a0").unwrap().addresses.is_empty());

    ip("addr add 192.0.2.7/24 dev a0");
    assert_eq!(reason("a0").unwrap(), "it has the address 192.0.2.7");
    assert_eq!(reason("a1"), None, "the other end of a veth is not built on it");
    ip("addr add 2001:db8::7/64 dev b0 nodad");
    let b0 = nic::interface("b0").unwrap();
    assert_eq!(b0.carries_host_traffic(), Some("it has the address 2001:db8::7"));
    assert_eq!(b0.addresses, ["2001:db8::7".parse::<IpAddr>().unwrap()]);

    ip("route add default dev c0");
    let c0 = nic::interface("c0").unwrap();
    assert!(c0.has_default_route && c0.addresses.is_empty());
    assert_eq!(c0.carries_host_traffic(), Some("it has the default route"));
    ip("route del default dev c0");
    assert_eq!(reason("c0"), None);
    ip("route add default dev c0 table 77");
    ip("route add 198.51.100.0/24 dev c0");
    assert_eq!(reason("c0"), None, "neither another table nor another route");
    ip("-6 route add default dev c0");
    assert!(nic::interface("c0").unwrap().has_default_route);
    ip("route add default nexthop dev d0 nexthop dev a0");
    assert!(nic::interface("d0").unwrap().has_default_route && nic::interface("a0").unwrap().has_default_route);

    // What is built on an interface counts for it.
    let built = Command::new("ip").args("link add link b1 name b1.5 type vlan id 5".split(' ')).status().unwrap();
    let bridged = Command::new("ip").args("link add br0 type bridge".split(' ')).status().unwrap();
    if built.success() {
        ip("addr add 203.0.113.1/24 dev b1.5");
        assert_eq!(reason("b1").unwrap(), "on top of it is 'b1.5', which has the address 203.0.113.1");
    }
    if bridged.success() {
        ip("link set c1 master br0");
        ip("addr add 203.0.113.2/24 dev br0");
        assert_eq!(reason("c1").unwrap(), "it belongs to 'br0', which has the address 203.0.113.2");
    }
    println!("VLAN on top: {}, bridge: {}", built.success(), bridged.success());
}

#[test]
fn queues_follow_ethtool() {
    if !in_namespace("queues_follow_ethtool") {
        return;
    }
    let v0 = pair();
    let before = nic::channels(&v0).unwrap().unwrap();
    assert_eq!((before.rx, before.tx, before.combined, before.max_rx, before.max_tx), (4, 4, 0, 4, 4));
    assert_eq!(nic::receive_queues(&v0).unwrap(), 4);

    let lo = nic::interface("lo").unwrap();
    assert_eq!(nic::channels(&lo).unwrap(), None);
    assert_eq!(nic::receive_queues(&lo).unwrap(), 1);
    ip("link set lo up");
    assert_eq!(nic::receive_queues(&lo).unwrap(), 1);

    if !has("ethtool") {
        return skip("no ethtool");
    }
    run("ethtool", "-L v0 rx 2 tx 3");
    let after = nic::channels(&v0).unwrap().unwrap();
    assert_eq!((after.rx, after.tx, after.max_rx), (2, 3, 4));
    assert_eq!(nic::receive_queues(&v0).unwrap(), 2);
    assert_eq!(nic::interface("v0").unwrap().rx_queues, 4, "the number it was made with stays");
    assert_eq!(std::fs::read_dir("/sys/class/net/v0/queues").unwrap().count(), 5);
}

#[test]
fn offload_of_vlan_tags_is_seen() {
    if !in_namespace("offload_of_vlan_tags_is_seen") {
        return;
    }
    let v0 = pair();
    assert_eq!(nic::rx_vlan_offload(&v0).unwrap(), Some(true), "veth passes tags beside the packet");
    assert_eq!(nic::rx_vlan_offload(&nic::interface("lo").unwrap()).unwrap(), Some(false));
    if !has("ethtool") {
        return skip("no ethtool");
    }
    run("ethtool", "-K v0 rxvlan off rx-vlan-stag-hw-parse off");
    assert_eq!(nic::rx_vlan_offload(&v0).unwrap(), Some(false));
    run("ethtool", "-K v0 rx-vlan-stag-hw-parse on");
    assert_eq!(nic::rx_vlan_offload(&v0).unwrap(), Some(true));
}

#[test]
fn support_for_xdp_is_the_drivers_word() {
    if !in_namespace("support_for_xdp_is_the_drivers_word") {
        return;
    }
    let v0 = pair();
    let Some(veth) = nic::xdp_support(&v0).unwrap() else { return skip("Linux before 6.3") };
    assert!(veth.driver_mode && veth.redirect && veth.multi_buffer && !veth.zero_copy, "{veth:?}");
    let lo = nic::xdp_support(&nic::interface("lo").unwrap()).unwrap().unwrap();
    assert!(!lo.driver_mode && !lo.zero_copy, "{lo:?}");
}

#[test]
fn promiscuous_mode_lasts_as_long_as_its_guard() {
    if !in_namespace("promiscuous_mode_lasts_as_long_as_its_guard") {
        return;
    }
    let v0 = pair();
    let promiscuity = || ip_number("link show v0", "/promiscuity");
    assert_eq!(promiscuity(), 0);
    let first = Promiscuous::enable(&v0).unwrap();
    let second = Promiscuous::enable(&v0).unwrap();
    assert_eq!(promiscuity(), 2);
    drop(first);
    assert_eq!(promiscuity(), 1);
    drop(second);
    assert_eq!(promiscuity(), 0);
}

#[test]
fn counters_are_those_of_ip() {
    if !in_namespace("counters_are_those_of_ip") {
        return;
    }
    let v0 = pair();
    let mut reader = CounterReader::open(&v0).unwrap();
    let before = reader.read().unwrap();
    assert_eq!(before.missed_source, MissedSource::Standard("rx_missed_errors"));
    raw::send_from("far", "v1", &vec![vec![2; 200]; 30]);
    let after = reader.read().unwrap();
    assert_eq!((after.rx_packets - before.rx_packets, after.rx_bytes - before.rx_bytes), (30, 6000));
    assert_eq!(after.rx_packets, ip_number("link show v0", "/stats64/rx/packets"));
    assert_eq!(after.rx_dropped, ip_number("link show v0", "/stats64/rx/dropped"));
    assert_eq!(after.rx_errors, ip_number("link show v0", "/stats64/rx/errors"));
    assert_eq!((after.rx_missed, after.rx_crc_errors, after.rx_length_errors), (0, 0, 0));
    let names = |counters: &nic::NicCounters| counters.details.iter().map(|(n, _)| n.clone()).collect::<Vec<_>>();
    assert_eq!(names(&after).len(), 8, "{:?}", after.details);
    assert!(names(&after).contains(&"rx_queue_3_xdp_drops".to_owned()));

    if !has("ethtool") {
        return skip("no ethtool");
    }
    // The reader learns the names again when their number changes.
    run("ethtool", "-L v0 rx 1");
    let fewer = reader.read().unwrap();
    assert_eq!(names(&fewer), ["rx_queue_0_drops", "rx_queue_0_xdp_drops"]);
    assert_eq!(reader.read().unwrap(), fewer);
}

#[test]
fn what_a_pair_loses_is_counted_at_its_other_end() {
    if !in_namespace("what_a_pair_loses_is_counted_at_its_other_end") {
        return;
    }
    let v0 = pair();
    let mut reader = CounterReader::open(&v0).unwrap();
    let far_dropped = || ip_number("-n far link show v1", "/stats64/tx/dropped");
    assert_eq!(reader.peer_dropped(), Some(far_dropped()));
    let before = far_dropped();

    // Longer than the receiver takes.
    ip("link set v0 mtu 500");
    raw::send_from("far", "v1", &vec![vec![2; 1000]; 10]);
    assert_eq!(reader.peer_dropped(), Some(before + 10));
    assert_eq!(far_dropped(), before + 10);

    // Nobody takes packets out of the receiver's ring, as when its core is busy: after a first poll, the next waits for a
    // timer (net/core/dev.c, napi_defer_hard_irqs). Where the receiver has GRO and the sender no TSO, packets go through
    // that ring of 256.
    if !has("ethtool") {
        return skip("no ethtool");
    }
    run("ethtool", "-L v0 rx 1");
    run("ethtool", "-K v0 gro on");
    ip("netns exec far ethtool -L v1 tx 1");
    ip("netns exec far ethtool -K v1 tso off tx-tcp-mangleid-segmentation off");
    for (file, value) in [("napi_defer_hard_irqs", "1000"), ("gro_flush_timeout", "60000000000")] {
        if let Err(e) = std::fs::write(format!("/sys/class/net/v0/{file}"), value) {
            return skip(&format!("{file}: {e}"));
        }
    }
    let dropped = |reader: &mut CounterReader| reader.peer_dropped().unwrap() - before - 10;
    let received_before = reader.read().unwrap().rx_packets;
    let mut sent = 0_u64;
    wait_until("the ring overflows", || {
        raw::send_from("far", "v1", &vec![vec![2; 100]; 300]);
        sent += 300;
        dropped(&mut reader) > 0
    });
    assert_eq!(reader.peer_dropped(), Some(far_dropped()));
    let (lost, received) = (dropped(&mut reader), reader.read().unwrap().rx_packets - received_before);
    println!("sent {sent}, received {received}, dropped at the sender {lost}");
    assert!((1..=256).contains(&(sent - received - lost)), "what is left is in the ring");
    assert_eq!(reader.read().unwrap().rx_missed, 0, "this end knows nothing of it");
}

#[test]
fn a_peer_in_the_same_namespace_needs_no_number() {
    if !in_namespace("a_peer_in_the_same_namespace_needs_no_number") {
        return;
    }
    ip("link add near0 type veth peer name near1");
    ip("link set near0 up");
    ip("link set near1 up");
    ip("link set near0 mtu 500");
    let near0 = nic::interface("near0").unwrap();
    wait_until("near0 has carrier", || nic::interface("near0").unwrap().has_carrier);
    let mut reader = CounterReader::open(&near0).unwrap();
    let before = reader.peer_dropped().unwrap();
    packet_socket::send("near1", &vec![vec![2; 1000]; 3]);
    assert_eq!(reader.peer_dropped(), Some(before + 3));
    let mut lo = CounterReader::open(&nic::interface("lo").unwrap()).unwrap();
    assert_eq!(lo.peer_dropped(), None);
    assert!(lo.read().unwrap().details.is_empty());
}

#[test]
fn changes_are_told() {
    if !in_namespace("changes_are_told") {
        return;
    }
    let v0 = pair();
    let mut watch = LinkWatch::open().unwrap();
    assert!(watch.sees_channels());
    assert!(watch.next().unwrap().is_empty(), "only what comes after the opening");
    assert!(!raw::is_readable(watch.as_fd(), 0));

    let mut wait = |what: &str, wanted: &dyn Fn(&LinkEvent) -> bool| {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            assert!(Instant::now() < deadline, "not told: {what}");
            if raw::is_readable(watch.as_fd(), 1000) {
                let events = watch.next().unwrap();
                if let Some(event) = events.into_iter().find(|e| wanted(e)) {
                    return event;
                }
            }
        }
    };
    let state = |check: fn(&nic::LinkState) -> bool| move |event: &LinkEvent| matches!(event, LinkEvent::State(s) if s.name == "v0" && check(s));
    ip("-n far link set v1 down");
    wait("carrier lost", &state(|s| s.is_up && !s.has_carrier));
    ip("-n far link set v1 up");
    wait("carrier back", &state(|s| s.is_up && s.has_carrier));
    ip("link set v0 down");
    wait("down", &state(|s| !s.is_up && !s.has_carrier));
    ip("link set v0 mtu 4000");
    wait("MTU", &state(|s| s.mtu == 4000));
    ip("link set v0 up");
    wait("up", &state(|s| s.is_up));
    if has("ethtool") {
        run("ethtool", "-L v0 rx 2");
        let event = wait("channels", &|event| matches!(event, LinkEvent::Channels { .. }));
        let LinkEvent::Channels { index, name, channels } = event else { unreachable!() };
        assert_eq!((index, name.as_str(), channels.rx, channels.tx), (v0.index, "v0", 2, 4));
    } else {
        skip("no ethtool");
    }
    ip("link add new0 type veth peer name new1");
    wait("new", &|event| matches!(event, LinkEvent::State(s) if s.name == "new0"));
    ip("link del v0");
    let removed = LinkEvent::Removed { index: v0.index, name: "v0".to_owned() };
    wait("removed", &|event| *event == removed);
    ip("link set new0 netns far");
    wait("moved away", &|event| matches!(event, LinkEvent::Removed { name, .. } if name == "new0"));
}

#[test]
fn lost_changes_are_told() {
    if !in_namespace("lost_changes_are_told") {
        return;
    }
    ip("link add near0 type veth peer name near1");
    let mut watch = LinkWatch::open().unwrap();
    // Each command is a few messages of two KiB or so, and the buffer has room for a thousand or two.
    let commands: String = (0..4000).map(|i| format!("link set near0 mtu {}\n", 1000 + i % 2)).collect();
    std::fs::write("/run/commands", commands).unwrap();
    ip("-batch /run/commands");
    let mut events = Vec::new();
    while raw::is_readable(watch.as_fd(), 0) {
        events.extend(watch.next().unwrap());
    }
    assert!(events.contains(&LinkEvent::Overflow), "{} events", events.len());
    assert!(events.iter().any(|e| matches!(e, LinkEvent::State(s) if s.name == "near0")));
    ip("link set near0 mtu 1300");
    let after = watch.next().unwrap();
    assert!(after.iter().any(|e| matches!(e, LinkEvent::State(s) if s.mtu == 1300)), "it goes on: {after:?}");
}

#[test]
fn an_xdp_program_is_seen() {
    if !in_namespace("an_xdp_program_is_seen") {
        return;
    }
    let v0 = pair();
    for (mode, flags) in [("driver", 1 << 2), ("generic", 1 << 1)] {
        let mut watch = LinkWatch::open().unwrap();
        let (id, attached) = match raw::attach_xdp_pass(v0.index, flags) {
            Ok(attached) => attached,
            Err(e) => return skip(&format!("no XDP program in {mode} mode: {e}")),
        };
        assert_eq!(nic::interface("v0").unwrap().xdp_program, Some(id), "{mode}");
        assert_eq!(u64::from(id), ip_number("link show v0", "/xdp/prog/id"), "{mode}");
        drop(attached);
        assert_eq!(nic::interface("v0").unwrap().xdp_program, None, "{mode}");
        assert_eq!(watch.next().unwrap(), [], "{mode}: a program attached by a link of its own makes no event");
    }
}

#[test]
fn a_process_without_privileges_reads_all_but_the_far_end() {
    if !in_namespace("a_process_without_privileges_reads_all_but_the_far_end") {
        return;
    }
    let v0 = pair();
    let mut reader = CounterReader::open(&v0).unwrap();
    assert!(reader.peer_dropped().is_some());
    raw::drop_capabilities();
    reader.read().unwrap();
    assert_eq!(reader.peer_dropped(), None);
    assert_eq!(nic::receive_queues(&nic::interface("v0").unwrap()).unwrap(), 4);
    assert!(nic::rx_vlan_offload(&v0).unwrap().is_some());
    assert!(CounterReader::open(&v0).unwrap().read().is_ok());
    let error = Promiscuous::enable(&v0).unwrap_err();
    assert!(error.to_string().contains("CAP_NET_RAW"), "{error}");
    LinkWatch::open().unwrap().next().unwrap();
}

mod raw {
    use super::packet_socket;
    use std::fs::File;
    use std::io;
    use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

    /// Sends frames out of an interface of another namespace.
    pub(crate) fn send_from(namespace: &str, interface: &str, frames: &[Vec<u8>]) {
        let there = File::open(format!("/run/netns/{namespace}")).unwrap();
        std::thread::scope(|scope| {
            let sender = scope.spawn(|| {
                // SAFETY: no pointers are passed; the thread ends right after.
                let result = unsafe { libc::setns(there.as_raw_fd(), libc::CLONE_NEWNET) };
                assert_eq!(result, 0, "{}", io::Error::last_os_error());
                packet_socket::send(interface, frames);
            });
            sender.join().unwrap();
        });
    }

    /// Waits for an event, up to `timeout_ms`.
    pub(crate) fn is_readable(fd: BorrowedFd<'_>, timeout_ms: i32) -> bool {
        let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one initialised pollfd that outlives the call.
        unsafe { libc::poll(&raw mut poll, 1, timeout_ms) > 0 }
    }

    /// Gives up all capabilities of this thread, as after privileges are dropped.
    pub(crate) fn drop_capabilities() {
        // linux/capability.h: header (version 3, this thread), two words of effective, permitted, inheritable.
        let (header, none) = ([0x2008_0522_u32, 0], [0_u32; 6]);
        // SAFETY: both point at as many bytes as version 3 has.
        let result = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
    }

    /// Loads a program that passes everything and attaches it. Returns its id, and what detaches it.
    pub(crate) fn attach_xdp_pass(interface: u32, flags: u32) -> io::Result<(u32, [OwnedFd; 2])> {
        // r0 = XDP_PASS; exit
        let program: [u64; 2] = [0x0000_0002_0000_00b7, 0x95];
        let licence = c"GPL";
        let mut load = [0_u64; 16];
        load[0] = 6 | 2 << 32;
        load[1] = program.as_ptr() as u64;
        load[2] = licence.as_ptr() as u64;
        let program = bpf(5, &load)?;
        let (fd, xdp) = (program.as_raw_fd() as u64, 37_u64);
        let mut attach = [0_u64; 16];
        attach[0] = fd | u64::from(interface) << 32;
        attach[1] = xdp | u64::from(flags) << 32;
        let link = bpf(28, &attach)?;
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", program.as_raw_fd()))?;
        let id = info.lines().find_map(|line| line.strip_prefix("prog_id:")).unwrap().trim().parse().unwrap();
        Ok((id, [link, program]))
    }

    fn bpf(command: i32, attributes: &[u64; 16]) -> io::Result<OwnedFd> {
        let bytes = size_of_val(attributes);
        // SAFETY: `attributes` is `bytes` readable bytes, and what they point at outlives the call.
        let fd = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), bytes) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a descriptor that was opened just now and is nobody else's.
        Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
    }
}
