//! Network namespaces with veth pairs in them, for tests that need root.
//!
//! A namespace has no name and no file: it ends with the last thing that holds it, however the test ends. Nobody but the
//! test speaks in it: no addresses, no IPv6. Interfaces in different namespaces may have the same names.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// linux/capability.h
pub(crate) const CAP_IPC_LOCK: u32 = 14;
pub(crate) const CAP_NET_RAW: u32 = 13;

/// Prints why a test is skipped, or fails where REQUIRE_XDP=1 says that it must run.
pub(crate) fn skip(why: &str) {
    assert!(std::env::var_os("REQUIRE_XDP").is_none_or(|v| v != "1"), "REQUIRE_XDP=1, but: {why}");
    println!("SKIPPED: {why}");
}

/// A network namespace.
pub(crate) struct Net {
    file: File,
}

impl Net {
    /// A new namespace; `None` after `skip` where this process may not make one.
    pub(crate) fn new() -> Option<Net> {
        let made = std::thread::spawn(|| {
            // SAFETY: gives the calling thread, which ends soon, a network namespace of its own; no pointers.
            check(unsafe { libc::unshare(libc::CLONE_NEWNET) })?;
            File::open("/proc/thread-self/ns/net")
        });
        let net = match made.join().unwrap() {
            Ok(file) => Net { file },
            Err(e) => {
                skip(&format!("no network namespace, which takes CAP_SYS_ADMIN: {e}"));
                return None;
            }
        };
        net.run(|| {
            // Before there are interfaces: these take their settings from it.
            for scope in ["default", "all"] {
                std::fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6"), "1").unwrap();
            }
        });
        Some(net)
    }

    /// Runs `f` on a thread of its own inside the namespace; sockets that it opens stay there. Panics go through.
    pub(crate) fn run<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        let inside = || {
            // SAFETY: the file is a network namespace, held open by `self`; only the calling thread enters it.
            check(unsafe { libc::setns(self.file.as_raw_fd(), libc::CLONE_NEWNET) }).unwrap();
            f()
        };
        std::thread::scope(|scope| match scope.spawn(inside).join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    /// Runs `ip` with these words, and panics where it fails.
    pub(crate) fn ip(&self, arguments: &str) {
        let output = self.run(|| Command::new("ip").args(arguments.split(' ')).output().unwrap());
        assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Makes a pair of interfaces with `queues` queues each way, which are up. `far` can send at once.
    pub(crate) fn veth(&self, near: &str, far: &str, queues: u32, mtu: u32) {
        let queues = format!("numtxqueues {queues} numrxqueues {queues}");
        self.ip(&format!("link add {near} mtu {mtu} {queues} type veth peer name {far} mtu {mtu} {queues}"));
        self.ip(&format!("link set {near} up"));
        // The second to come up finds its carrier, so that it is activated there and then; the first later.
        self.ip(&format!("link set {far} up"));
    }

    /// Index of an interface.
    pub(crate) fn index(&self, name: &str) -> u32 {
        self.run(|| interface_index(name).unwrap())
    }

    /// Hands an interface over to another namespace.
    pub(crate) fn give(&self, interface: &str, to: &Net) {
        // `ip` finds a namespace by a thread in it.
        let (tell, told) = mpsc::channel();
        let (finish, finished) = mpsc::channel::<()>();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                to.run(move || {
                    // SAFETY: takes nothing, and never fails.
                    tell.send(unsafe { libc::gettid() }).unwrap();
                    finished.recv().unwrap_err();
                });
            });
            let thread = told.recv().unwrap();
            self.ip(&format!("link set {interface} netns {thread}"));
            drop(finish);
        });
    }

    /// Frames that an interface sent, and that it dropped instead of sending (on a veth: that its peer had no room for).
    pub(crate) fn sent_and_dropped(&self, interface: &str) -> (u64, u64) {
        let table = self.run(|| std::fs::read_to_string("/proc/thread-self/net/dev").unwrap());
        let line = table.lines().find_map(|line| line.trim().strip_prefix(&format!("{interface}:"))).unwrap();
        let numbers: Vec<u64> = line.split_whitespace().map(|n| n.parse().unwrap()).collect();
        (numbers[9], numbers[11])
    }

    /// A sender on an interface. If it is to `spread` frames, the kernel chooses a queue by the flow; otherwise it is
    /// that with the number of the sender's core, modulo the number of queues.
    pub(crate) fn injector(&self, interface: &str, spread: bool) -> Injector {
        self.run(|| Injector::open(interface, spread).unwrap())
    }
}

fn interface_index(name: &str) -> io::Result<u32> {
    let name = CString::new(name)?;
    // SAFETY: `name` is a NUL-terminated string that outlives the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    if index == 0 { Err(io::Error::last_os_error()) } else { Ok(index) }
}

/// Sends frames out of an interface through a packet socket. Usable from any thread and namespace.
pub(crate) struct Injector(OwnedFd);

impl Injector {
    fn open(interface: &str, spread: bool) -> io::Result<Injector> {
        // SAFETY: no pointers are passed. Protocol 0: the socket receives nothing.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        check(fd)?;
        // SAFETY: `fd` was opened just now, is valid as `check` has seen, and nobody else knows it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // Past the queueing discipline, which swallows frames until the kernel has got around to activating it; the
        // driver refuses them in so many words. Only with the discipline does the flow decide (packet_pick_tx_queue).
        let (bypass, bytes) = (i32::from(!spread), size_of::<i32>() as libc::socklen_t);
        let option = libc::PACKET_QDISC_BYPASS;
        let value = (&raw const bypass).cast();
        // SAFETY: `value` is `bytes` readable bytes.
        check(unsafe { libc::setsockopt(fd.as_raw_fd(), libc::SOL_PACKET, option, value, bytes) })?;
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: 0,
            sll_ifindex: interface_index(interface)? as i32,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        let bytes = size_of_val(&address) as libc::socklen_t;
        // SAFETY: `address` is `bytes` readable bytes of a `sockaddr_ll`.
        check(unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), bytes) })?;
        Ok(Injector(fd))
    }

    /// Sends one frame. Waits while the interface has no room, up to 5 s.
    pub(crate) fn send(&self, frame: &[u8]) {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            // SAFETY: `frame` is as many readable bytes as its length says.
            let sent = unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
            if sent >= 0 {
                assert_eq!(sent as usize, frame.len());
                return;
            }
            let error = io::Error::last_os_error();
            assert!(error.raw_os_error() == Some(libc::ENOBUFS) && Instant::now() < deadline, "send: {error}");
            std::thread::yield_now();
        }
    }
}

/// An Ethernet frame of `len` bytes, 60 or more: IPv4 and UDP, flow and number in addresses and ports, then bytes that
/// depend on both. Checksums are 0.
pub(crate) fn udp_frame(flow: u16, number: u32, len: usize) -> Vec<u8> {
    assert!((60..=65_000).contains(&len));
    let mut f = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    let (ip_len, udp_len) = ((len - 14) as u16, (len - 34) as u16);
    f.extend([0x45, 0]);
    f.extend(ip_len.to_be_bytes());
    f.extend([0, 0, 0x40, 0, 64, 17, 0, 0, 10, 0]);
    f.extend(flow.to_be_bytes());
    f.extend([10, 1, 0, 1]);
    f.extend((1024 + flow).to_be_bytes());
    f.extend([0, 53]);
    f.extend(udp_len.to_be_bytes());
    f.extend([0, 0]);
    f.extend(number.to_be_bytes());
    f.extend((f.len()..len).map(|i| (i as u32 * 31 + number) as u8));
    f
}

/// Runs `f` on a thread that lacks a capability.
pub(crate) fn without_capability<R: Send>(capability: u32, f: impl FnOnce() -> R + Send) -> R {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    #[derive(Clone, Copy, Default)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    /// _LINUX_CAPABILITY_VERSION_3: two words a set.
    const VERSION_3: u32 = 0x2008_0522;
    let inside = || {
        let (mut header, mut data) = (Header { version: VERSION_3, pid: 0 }, [Data::default(); 2]);
        // SAFETY: capget(2) writes to a header and, of version 3, two sets of words; thread 0 is the caller.
        let result = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) };
        assert_eq!(result, 0);
        data[(capability / 32) as usize].effective &= !(1 << (capability % 32));
        // SAFETY: capset(2) reads the same; it changes the calling thread alone.
        let result = unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) };
        assert_eq!(result, 0);
        f()
    };
    std::thread::scope(|scope| match scope.spawn(inside).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// Lowers what a process without CAP_IPC_LOCK may lock in memory.
pub(crate) fn limit_memlock(bytes: u64) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a writable `rlimit`.
    check(unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) }).unwrap();
    limit.rlim_cur = bytes.min(limit.rlim_max);
    // SAFETY: `limit` is a readable `rlimit`.
    check(unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) }).unwrap();
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result >= 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
