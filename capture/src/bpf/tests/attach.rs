//! Programs on veth interfaces, in network namespaces that end with the test.

use super::super::sys::stub::{FILLER, Stub};
use super::super::{AttachMode, AttachOptions, Attached, BpfError, LiveFrames, QueueCounters, TimestampsRefused};
use super::{again, can_load, command, role};
use crate::filter::early::{Early, Side};
use crate::sys::{pin_thread, wait_readable};
use std::io::{BufRead, BufReader};
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// True inside a network namespace. Outside it runs the test `name` there, and returns false when that has passed.
fn in_namespace(name: &str) -> bool {
    if role().is_some() {
        // Nobody but the test speaks: no neighbour discovery, no router solicitation.
        for scope in ["default", "all"] {
            std::fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6"), "1").unwrap();
        }
        return true;
    }
    if can_load() {
        let wrapper = ["unshare", "-n"];
        assert!(again(&wrapper, &format!("bpf::tests::attach::{name}"), "inside").success(), "{name} failed");
    }
    false
}

fn ip(arguments: &str) {
    assert!(Command::new("ip").args(arguments.split(' ')).status().unwrap().success(), "ip {arguments}");
}

/// A pair of interfaces that are up, with as many queues each way; the indices of `near` and `far`.
fn veth(queues: u32) -> (u32, u32) {
    let queues = format!("numtxqueues {queues} numrxqueues {queues}");
    ip(&format!("link add near {queues} type veth peer name far {queues}"));
    ip("link set near up");
    ip("link set far up");
    (index("near"), index("far"))
}

/// From the namespace's own list of interfaces (/sys would show those of another).
fn index(name: &str) -> u32 {
    let output = Command::new("ip").args(["-o", "link", "show", "dev", name]).output().unwrap();
    let line = String::from_utf8(output.stdout).unwrap();
    line.split(':').next().unwrap().parse().unwrap()
}

fn native(queues: u32) -> AttachOptions<'static> {
    AttachOptions { mode: AttachMode::Native, queues, early: None, timestamps: false }
}

fn generic(queues: u32) -> AttachOptions<'static> {
    AttachOptions { mode: AttachMode::Generic, ..native(queues) }
}

fn frame(bytes: usize) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5];
    frame.extend((frame.len()..bytes).map(|i| i as u8));
    frame
}

/// Frames that `near` had no room for, from the namespace's own statistics.
fn dropped_on_the_way() -> u64 {
    let table = std::fs::read_to_string("/proc/net/dev").unwrap();
    let line = table.lines().find_map(|line| line.trim().strip_prefix("near:")).unwrap();
    line.split_whitespace().nth(11).unwrap().parse().unwrap()
}

/// The sum over the queues, once all `sent` frames are seen or dropped on the way.
fn counted(attached: &Attached, queues: u32, sent: u64) -> QueueCounters {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let mut sum = QueueCounters::default();
        for counters in (0..queues).map(|queue| attached.counters(queue).unwrap()) {
            sum.seen += counters.seen;
            sum.filtered += counters.filtered;
            sum.passed += counters.passed;
            sum.unstamped += counters.unstamped;
        }
        if sum.seen + dropped_on_the_way() >= sent && sum.filtered + sum.passed <= sum.seen {
            return sum;
        }
        assert!(Instant::now() < deadline, "{sum:?} of {sent}, {} dropped", dropped_on_the_way());
        std::thread::yield_now();
    }
}

#[test]
fn live_frames_are_counted_exactly() {
    if !in_namespace("live_frames_are_counted_exactly") {
        return;
    }
    let (near, far) = veth(2);
    let attached = Attached::attach(far, &native(2)).unwrap();
    assert!(attached.frags() && attached.metadata_bytes() == 0);
    assert!(attached.early_refused().is_none() && attached.timestamps_refused().is_none());
    assert_eq!(attached.counters(2).unwrap_err().kind(), std::io::ErrorKind::InvalidInput);
    let live = LiveFrames::new(near).unwrap();
    let mut sent = 0;
    for (bytes, count) in [(14, 1), (60, 20_000), (1514, 5_000), (60, 0), (1000, 64)] {
        live.send(&frame(bytes), count).unwrap();
        sent += u64::from(count);
        let sum = counted(&attached, 2, sent);
        assert_eq!(sum.seen + dropped_on_the_way(), sent);
        assert_eq!(sum, QueueCounters { seen: sum.seen, passed: sum.seen, ..QueueCounters::default() });
    }
    println!("{sent} sent, {} dropped on the way", dropped_on_the_way());
    for bytes in [0, 13, 5000] {
        assert_eq!(live.send(&vec![0; bytes], 1).unwrap_err().kind(), std::io::ErrorKind::InvalidInput);
    }
}

/// A veth takes what CPU n sends into its queue n.
#[test]
fn queues_are_told_apart() {
    if !in_namespace("queues_are_told_apart") {
        return;
    }
    if pin_thread(1).is_err() {
        println!("SKIPPED: one CPU");
        return;
    }
    let (near, far) = veth(2);
    let live = LiveFrames::new(near).unwrap();
    for table in [2, 1] {
        let attached = Attached::attach(far, &native(table)).unwrap();
        let before = dropped_on_the_way();
        for (cpu, count) in [(0, 1000), (1, 300)] {
            pin_thread(cpu).unwrap();
            live.send(&frame(60), count).unwrap();
        }
        counted(&attached, table, if table == 2 { 1300 } else { 1000 });
        assert_eq!(dropped_on_the_way(), before);
        assert_eq!(attached.counters(0).unwrap().seen, 1000);
        // A queue beyond the table is the host's, uncounted.
        assert_eq!(attached.counters(1).ok().map(|counters| counters.seen), (table == 2).then_some(300));
    }
}

#[test]
fn early_tests_drop() {
    if !in_namespace("early_tests_drop") {
        return;
    }
    let (near, far) = veth(1);
    let live = LiveFrames::new(near).unwrap();
    let early = Early::EtherType(0x88b5);
    let not = Early::Not(Box::new(early.clone()));
    for (early, drops) in [(&early, false), (&not, true)] {
        let attached = Attached::attach(far, &AttachOptions { early: Some(early), ..native(1) }).unwrap();
        assert!(attached.early_refused().is_none());
        live.send(&frame(60), 500).unwrap();
        let [filtered, passed] = if drops { [500, 0] } else { [0, 500] };
        let expected = QueueCounters { seen: 500, filtered, passed, unstamped: 0 };
        assert_eq!(counted(&attached, 1, 500), expected);
    }
    let wide = Early::Any((0..3000).map(Early::EtherType).collect());
    let attached = Attached::attach(far, &AttachOptions { early: Some(&wide), ..native(1) }).unwrap();
    assert!(attached.early_refused().unwrap().to_string().contains("more than 2000 instructions"));
    live.send(&frame(60), 50).unwrap();
    assert_eq!(counted(&attached, 1, 50).filtered, 0);
}

#[test]
fn generic_mode_counts_datagrams() {
    if !in_namespace("generic_mode_counts_datagrams") {
        return;
    }
    let (_, far) = veth(1);
    ip("link set far address 02:00:00:00:00:02");
    ip("addr add 10.9.0.1/24 dev near");
    ip("neigh replace 10.9.0.2 lladdr 02:00:00:00:00:02 dev near");
    let udp = Early::Protocol { ether_type: 0x0800, protocol: 17 };
    let options = AttachOptions { timestamps: true, early: Some(&udp), ..generic(1) };
    let attached = Attached::attach(far, &options).unwrap();
    assert!(matches!(attached.timestamps_refused(), Some(TimestampsRefused::Generic)));
    assert_eq!(attached.metadata_bytes(), 0);
    // From several CPUs at once, all into queue 0.
    std::thread::scope(|scope| {
        for cpu in [0, 1, 0, 1] {
            scope.spawn(move || {
                let _ = pin_thread(cpu);
                let socket = UdpSocket::bind("10.9.0.1:0").unwrap();
                for _ in 0..5000 {
                    socket.send_to(b"datagram", "10.9.0.2:9").unwrap();
                }
            });
        }
    });
    let sum = counted(&attached, 1, 20_000);
    assert_eq!(sum, QueueCounters { seen: sum.seen, passed: sum.seen, ..QueueCounters::default() });
    assert_eq!(sum.seen + dropped_on_the_way(), 20_000);
}

#[test]
fn sockets_get_their_queue() {
    if !in_namespace("sockets_get_their_queue") {
        return;
    }
    let (near, far) = veth(1);
    let live = LiveFrames::new(near).unwrap();
    let attached = Attached::attach(far, &native(1)).unwrap();
    let other = UdpSocket::bind("0.0.0.0:0").unwrap();
    attached.set_socket(0, other.as_fd()).unwrap_err();

    let socket = Stub::bind(far, 0, 0).unwrap();
    assert_eq!(attached.set_socket(1, socket.as_fd()).unwrap_err().raw_os_error(), Some(libc::E2BIG));
    attached.set_socket(0, socket.as_fd()).unwrap();
    live.send(&frame(60), 700).unwrap();
    let sum = counted(&attached, 1, 700);
    assert_eq!((sum.seen, sum.passed, sum.seen - sum.filtered - sum.passed), (700, 0, 700));
    // It has no frames to receive into, and says so twice: in copy mode such a frame counts as dropped, too.
    let deadline = Instant::now() + Duration::from_secs(10);
    while socket.statistics().unwrap() != [700, 0, 0, 0, 700, 0] {
        assert!(Instant::now() < deadline, "{:?}", socket.statistics());
    }
    // A closed socket leaves its slot.
    drop(socket);
    live.send(&frame(60), 30).unwrap();
    let sum = counted(&attached, 1, 730);
    assert_eq!((sum.seen, sum.passed, sum.seen - sum.filtered - sum.passed), (730, 30, 700));
}

#[test]
fn receive_times_stand_before_the_frame() {
    if !in_namespace("receive_times_stand_before_the_frame") {
        return;
    }
    let (near, far) = veth(1);
    let attached = Attached::attach(far, &AttachOptions { timestamps: true, ..native(1) }).unwrap();
    if let Some(refused) = attached.timestamps_refused() {
        assert!(std::env::var_os("REQUIRE_XDP").is_none_or(|v| v != "1"), "REQUIRE_XDP=1, but: {refused}");
        println!("SKIPPED: {refused}");
        return;
    }
    assert_eq!(attached.metadata_bytes(), 8);
    let socket = Stub::bind(far, 0, 8).unwrap();
    attached.set_socket(0, socket.as_fd()).unwrap();
    let frame = frame(60);
    LiveFrames::new(near).unwrap().send(&frame, 5).unwrap();
    assert_eq!(counted(&attached, 1, 5), QueueCounters { seen: 5, ..QueueCounters::default() });
    assert!(wait_readable(socket.as_fd(), 10_000).unwrap());
    let umem = socket.umem();
    let starts: Vec<usize> =
        (0..umem.len() - frame.len()).filter(|at| umem[*at..*at + frame.len()] == frame[..]).collect();
    assert_eq!(starts.len(), 5);
    for start in starts {
        // A veth knows no time of a frame that was none of the stack's; and the program wrote no more than that.
        assert_eq!(umem[start - 8..start], [0; 8]);
        assert_eq!(umem[start - 9], FILLER);
    }
}

#[test]
fn refusals_have_names() {
    if !in_namespace("refusals_have_names") {
        return;
    }
    let (near, far) = veth(1);
    let refused = |index, options: &AttachOptions<'_>| Attached::attach(index, options).unwrap_err();
    let first = Attached::attach(far, &native(1)).unwrap();
    for again in [native(1), AttachOptions { timestamps: true, ..native(1) }, generic(1)] {
        let error = refused(far, &again);
        assert!(matches!(&error, BpfError::Occupied { interface, .. } if interface == "far"), "{error}");
    }
    drop(first);
    drop(Attached::attach(far, &generic(1)).unwrap());
    drop(Attached::attach(far, &native(1)).unwrap());

    assert!(matches!(refused(4_000_000, &native(1)), BpfError::NoInterface { index: 4_000_000 }));
    assert!(matches!(LiveFrames::new(4_000_000), Err(BpfError::NoInterface { .. })));
    for queues in [0, u32::MAX] {
        assert!(matches!(refused(far, &native(queues)), BpfError::QueueCount { .. }));
    }
    assert!(matches!(refused(index("lo"), &native(1)), BpfError::NoNative { .. }));

    ip("link add many numtxqueues 4 numrxqueues 4 type veth peer name few numtxqueues 1 numrxqueues 1");
    let error = refused(index("few"), &native(1));
    assert!(matches!(error, BpfError::Queues { .. }), "{error}");

    // With frames of several buffers any MTU is good.
    ip("link set near mtu 9000");
    ip("link set far mtu 9000");
    assert!(Attached::attach(far, &native(1)).unwrap().frags());
    drop(LiveFrames::new(near).unwrap());
}

#[test]
fn a_large_mtu_without_frags_is_refused() {
    if !in_namespace("a_large_mtu_without_frags_is_refused") {
        return;
    }
    use super::super::sys::{LoadOptions, Program};
    let (_, far) = veth(1);
    ip("link set near mtu 9000");
    let mut a = super::super::asm::Asm::new(2);
    a.mov(super::super::asm::Reg::R0, 2);
    a.exit();
    let program = Program::load(&a.finish().unwrap(), &LoadOptions { frags: false, bound_to: None }).unwrap();
    let error = BpfError::of_attach("far".to_owned(), true, false, program.attach(far, true).unwrap_err());
    assert!(matches!(error, BpfError::Mtu { mtu: Some(1500), .. }), "{error}");
}

#[test]
fn capabilities_decide() {
    if !in_namespace("capabilities_decide") {
        return;
    }
    let confined = |set, role| {
        let wrapper = ["setpriv", "--bounding-set", set];
        assert!(again(&wrapper, "bpf::tests::attach::capabilities_decide", role).success(), "{set}");
    };
    match role().as_deref() {
        Some("enough") => {
            // Tests and receive times included, the same as for the almighty.
            let early = Early::Port { ether_type: 0x0800, side: Side::Either, first: 53, last: 53 };
            let options = AttachOptions { early: Some(&early), timestamps: true, ..native(1) };
            let attached = Attached::attach(index("far"), &options).unwrap();
            assert!(attached.early_refused().is_none());
            assert!(!matches!(attached.timestamps_refused(), Some(TimestampsRefused::Program(_))));
        }
        Some("lacking") => {
            let error = Attached::attach(index("far"), &native(1)).unwrap_err();
            assert!(matches!(error, BpfError::Permission { .. }), "{error}");
        }
        _ => {
            veth(1);
            for set in ["-all", "-all,+net_admin", "-all,+bpf"] {
                confined(set, "lacking");
            }
            confined("-all,+bpf,+net_admin", "enough");
        }
    }
}

/// However a process ends, its program goes.
#[test]
fn a_killed_process_leaves_nothing() {
    if !in_namespace("a_killed_process_leaves_nothing") {
        return;
    }
    if role().is_some_and(|role| role == "holder") {
        let attached = Attached::attach(index("far"), &native(1)).unwrap();
        println!("\nREADY");
        // Until killed.
        let _ = std::io::stdin().lines().next();
        drop(attached);
        return;
    }
    let (_, far) = veth(1);
    let mut holder = command(&["env"], "bpf::tests::attach::a_killed_process_leaves_nothing", "holder")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(holder.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap() == "READY"));
    assert!(matches!(Attached::attach(far, &native(1)), Err(BpfError::Occupied { .. })));
    holder.kill().unwrap();
    assert!(!holder.wait().unwrap().success());
    Attached::attach(far, &native(1)).unwrap();
}

/// Prints how fast frames come. `cargo test --release -p capture -- --ignored --nocapture live_rate`.
#[test]
#[ignore = "a measurement"]
fn live_rate() {
    if !in_namespace("live_rate") {
        return;
    }
    let (near, far) = veth(1);
    let nothing = Early::Any(vec![]);
    let attached = Attached::attach(far, &AttachOptions { early: Some(&nothing), ..native(1) }).unwrap();
    let mut udp = frame(60);
    udp[12..16].copy_from_slice(&[0x08, 0, 0x45, 0]);
    udp[23] = 17;
    let mut sent = 0;
    for flows in [1, 2, 100_000] {
        let live = LiveFrames::with_flows(near, flows).unwrap();
        let start = Instant::now();
        live.send(&udp, 5_000_000).unwrap();
        let seconds = start.elapsed().as_secs_f64();
        sent += 5_000_000;
        let sum = counted(&attached, 1, sent);
        println!("{flows} flows: {:.2} Mpps, {} dropped on the way", 5.0 / seconds, sent - sum.seen);
    }
}
