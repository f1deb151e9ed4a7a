//! Telling the service manager how it goes: readiness, reloads, the watchdog (sd_notify(3), `Type=notify`).
//!
//! One datagram to the socket named in `NOTIFY_SOCKET` says it all, so there is no library for it here.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// How long a message may wait for room in the manager's socket. A server must not hang because its manager does.
const SEND_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest status text in bytes; the rest is cut off. `systemctl status` shows one line of it.
const STATUS_BYTES_MAX: usize = 512;

/// The service manager of this process. Every method sends one datagram; an error means that the manager did not get it,
/// which is for the log and no reason to stop.
#[derive(Debug)]
pub(crate) struct Notify {
    socket: UnixDatagram,
    /// Looked up at each message: the manager may make its socket anew.
    manager: SocketAddr,
    watchdog_interval: Option<Duration>,
}

impl Notify {
    /// `None` where no manager waits for messages (`NOTIFY_SOCKET` is not set), or none that can be reached: an address
    /// that is neither an absolute path nor abstract (`@name`). Leaves the environment as it is: what processes started
    /// from here say, the manager ignores by `NotifyAccess=main`, the default of `Type=notify`.
    pub(crate) fn from_env() -> Option<Notify> {
        Notify::from_variables(|name| std::env::var_os(name), std::process::id())
    }

    fn from_variables(variable: impl Fn(&str) -> Option<OsString>, pid: u32) -> Option<Notify> {
        let manager = address(&variable("NOTIFY_SOCKET")?)?;
        let socket = UnixDatagram::unbound().ok()?;
        socket.set_write_timeout(Some(SEND_TIMEOUT)).ok()?;
        let number = |name| variable(name)?.to_str()?.parse::<u64>().ok();
        // The variables of a parent that forgot to take them away are not meant for this process.
        let ours = variable("WATCHDOG_PID").is_none() || number("WATCHDOG_PID") == Some(u64::from(pid));
        let timeout_us = number("WATCHDOG_USEC").filter(|us| ours && *us > 0);
        let watchdog_interval = timeout_us.map(|us| Duration::from_micros((us / 2).max(1)));
        Some(Notify { socket, manager, watchdog_interval })
    }

    /// The service does its work. Also ends what [`Notify::reloading`] began.
    pub(crate) fn ready(&self, status: &str) -> io::Result<()> {
        self.send(&format!("READY=1\nSTATUS={}", line(status)))
    }

    /// The configuration is being read again; [`Notify::ready`] must follow. The time lets the manager tell this reload
    /// from an earlier one (`Type=notify-reload`, systemd 253).
    pub(crate) fn reloading(&self) -> io::Result<()> {
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={}", monotonic_us()))
    }

    /// The service has begun to stop.
    pub(crate) fn stopping(&self) -> io::Result<()> {
        self.send("STOPPING=1")
    }

    /// The service is alive. To be sent every [`Notify::watchdog_interval`], by whoever sees that work gets done.
    pub(crate) fn watchdog(&self) -> io::Result<()> {
        self.send("WATCHDOG=1")
    }

    /// The manager is to wait `from_now` for what is going on, beyond its `TimeoutStartSec=` or `TimeoutStopSec=`: for
    /// replaying a long log at the start, or writing many flows at the end. To be repeated before it is over.
    pub(crate) fn extend_timeout(&self, from_now: Duration) -> io::Result<()> {
        self.send(&format!("EXTEND_TIMEOUT_USEC={}", from_now.as_micros()))
    }

    /// How often [`Notify::watchdog`] is due: half of what the manager allows (`WatchdogSec=`). `None` where it does not
    /// ask for it.
    pub(crate) fn watchdog_interval(&self) -> Option<Duration> {
        self.watchdog_interval
    }

    fn send(&self, message: &str) -> io::Result<()> {
        self.socket.send_to_addr(message.as_bytes(), &self.manager).map(drop)
    }
}

/// An absolute path, or `@` and an abstract name.
fn address(name: &OsStr) -> Option<SocketAddr> {
    match name.as_bytes() {
        [b'@', name @ ..] if !name.is_empty() => SocketAddr::from_abstract_name(name).ok(),
        [b'/', ..] => SocketAddr::from_pathname(name).ok(),
        _ => None,
    }
}

/// `text` without line breaks, which would begin another assignment, and not too long.
fn line(text: &str) -> String {
    let mut line = String::new();
    for c in text.chars().map(|c| if c.is_control() { ' ' } else { c }) {
        if line.len() + c.len_utf8() > STATUS_BYTES_MAX {
            break;
        }
        line.push(c);
    }
    line
}

/// CLOCK_MONOTONIC in microseconds, which `Instant` does not tell.
fn monotonic_us() -> i64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec * 1_000_000 + now.tv_nsec / 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notify(variables: &[(&str, &str)]) -> Option<Notify> {
        let get = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| OsString::from(value));
        Notify::from_variables(get, 7)
    }

    fn received(manager: &UnixDatagram) -> String {
        let mut buffer = [0; 2048];
        let bytes = manager.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..bytes].to_vec()).unwrap()
    }

    /// A manager at a path or an abstract name gets each message as one datagram.
    fn converse(address: &str, manager: &UnixDatagram) {
        manager.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let notify = notify(&[("NOTIFY_SOCKET", address)]).unwrap();
        notify.ready("capturing on eth0").unwrap();
        assert_eq!(received(manager), "READY=1\nSTATUS=capturing on eth0");
        notify.ready("1\nREADY=0\t2").unwrap();
        assert_eq!(received(manager), "READY=1\nSTATUS=1 READY=0 2");
        notify.watchdog().unwrap();
        assert_eq!(received(manager), "WATCHDOG=1");
        notify.extend_timeout(Duration::from_secs(30)).unwrap();
        assert_eq!(received(manager), "EXTEND_TIMEOUT_USEC=30000000");
        notify.stopping().unwrap();
        assert_eq!(received(manager), "STOPPING=1");

        let before = monotonic_us();
        notify.reloading().unwrap();
        let message = received(manager);
        let time: i64 = message.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap().parse().unwrap();
        assert!((before..=monotonic_us()).contains(&time), "{message}");
    }

    /// A name that no other test, and no other run at the same time, has.
    fn unique(name: &str) -> String {
        format!("taphouse-notify-{}-{name}", std::process::id())
    }

    #[test]
    fn a_manager_at_a_path() {
        let path = std::env::temp_dir().join(unique("path"));
        let manager = UnixDatagram::bind(&path).unwrap();
        converse(path.to_str().unwrap(), &manager);

        // A manager that went away is an error, one that came back is found.
        let notify = notify(&[("NOTIFY_SOCKET", path.to_str().unwrap())]).unwrap();
        drop(manager);
        assert_eq!(notify.watchdog().unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(notify.watchdog().unwrap_err().kind(), io::ErrorKind::NotFound);
        let manager = UnixDatagram::bind(&path).unwrap();
        notify.watchdog().unwrap();
        assert_eq!(received(&manager), "WATCHDOG=1");
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_manager_at_an_abstract_name() {
        let name = unique("abstract");
        let manager = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        converse(&format!("@{name}"), &manager);
    }

    /// A manager that reads nothing holds a message up for a second, not for ever.
    #[test]
    fn a_manager_that_hangs() {
        let name = unique("hangs");
        let manager = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        let notify = notify(&[("NOTIFY_SOCKET", &format!("@{name}"))]).unwrap();
        // The queue of a datagram socket is net.unix.max_dgram_qlen long.
        let error = (0..1_000_000).find_map(|_| notify.watchdog().err()).unwrap();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert_eq!(received(&manager), "WATCHDOG=1");
        notify.watchdog().unwrap();
    }

    #[test]
    fn no_manager() {
        assert!(notify(&[]).is_none());
        for address in ["", "@", "relative/path", "vsock:2:1234"] {
            assert!(notify(&[("NOTIFY_SOCKET", address)]).is_none(), "{address}");
        }
        let long = format!("/{}", "x".repeat(200));
        assert!(notify(&[("NOTIFY_SOCKET", &long)]).is_none());
    }

    #[test]
    fn the_watchdog_is_due_at_half_of_its_time() {
        let interval = |variables: &[(&str, &str)]| {
            notify(&[&[("NOTIFY_SOCKET", "@x")], variables].concat()).unwrap().watchdog_interval()
        };
        assert_eq!(interval(&[("WATCHDOG_USEC", "30000000")]), Some(Duration::from_secs(15)));
        assert_eq!(interval(&[("WATCHDOG_USEC", "30000000"), ("WATCHDOG_PID", "7")]), Some(Duration::from_secs(15)));
        assert_eq!(interval(&[("WATCHDOG_USEC", "1")]), Some(Duration::from_micros(1)));
        assert_eq!(interval(&[("WATCHDOG_USEC", "30000000"), ("WATCHDOG_PID", "8")]), None, "another process");
        assert_eq!(interval(&[("WATCHDOG_USEC", "30000000"), ("WATCHDOG_PID", "x")]), None);
        for value in ["0", "", "-1", "soon"] {
            assert_eq!(interval(&[("WATCHDOG_USEC", value)]), None, "{value}");
        }
        assert_eq!(interval(&[]), None);
    }

    #[test]
    fn a_long_status_is_cut_between_characters() {
        let text = "ä".repeat(STATUS_BYTES_MAX);
        assert_eq!(line(&text), "ä".repeat(STATUS_BYTES_MAX / 2));
        assert_eq!(line(&format!("x{text}")).len(), STATUS_BYTES_MAX - 1);
    }
}
