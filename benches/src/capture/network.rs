//! A network of our own: one namespace, one veth pair, nothing else.
//!
//! The namespace has no name. The kernel removes it, and the pair in it, when the last process in it has ended: no clean-up
//! can be forgotten, and no other interface can be touched.

use super::{CaptureBenchError, file};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// The end frames are sent out of.
pub const SENDER: &str = "gen";
/// The end that is captured.
pub const TAP: &str = "tap";
/// Set in the environment of the process inside the namespace.
const INSIDE: &str = "TAPHOUSE_BENCH_INSIDE";

/// Goes on in a network and mount namespace of our own: the process becomes `unshare`, which becomes this program again.
/// Returns in there.
///
/// # Errors
/// Not root; no `unshare`.
pub fn enter() -> Result<(), CaptureBenchError> {
    let uid = effective_uid()?;
    if uid != 0 {
        return Err(CaptureBenchError::NotRoot { uid });
    }
    if std::env::var_os(INSIDE).is_some() {
        return Ok(());
    }
    let own = file("find", "/proc/self/exe", std::env::current_exe())?;
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount", "--"]).arg(own).args(std::env::args_os().skip(1)).env(INSIDE, "1");
    // Only returns where it fails.
    let source = command.exec();
    Err(CaptureBenchError::Program { program: "unshare".to_owned(), package: "util-linux", source })
}

/// From proc_pid_status(5): real, effective, saved and file system user id.
fn effective_uid() -> Result<u32, CaptureBenchError> {
    let path = "/proc/self/status";
    let status = file("read", path, fs::read_to_string(path))?;
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    let uid = line.and_then(|ids| ids.split_ascii_whitespace().nth(1)).and_then(|id| id.parse().ok());
    uid.ok_or_else(|| CaptureBenchError::Failed {
        command: format!("reading {path}"),
        message: "there is no line of user ids".to_owned(),
    })
}

/// Makes the veth pair: one queue each way, up, without addresses and without IPv6, so that no frame but ours passes. A
/// second sysfs shows it, in our own mount namespace.
///
/// # Errors
/// A program is missing or failed.
pub fn make() -> Result<(), CaptureBenchError> {
    run("mount", "mount", ["-t", "sysfs", "sysfs", "/sys"])?;
    for scope in ["all", "default"] {
        let path = format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6");
        // A kernel without IPv6 has no such file, and needs none.
        if fs::exists(&path).unwrap_or(false) {
            file("write", &path, fs::write(&path, "1"))?;
        }
    }
    let queues = ["numrxqueues", "1", "numtxqueues", "1"];
    let pair = ["link", "add", SENDER].into_iter().chain(queues).chain(["type", "veth", "peer", "name", TAP]);
    run("ip", "iproute2", pair.chain(queues))?;
    for interface in ["lo", SENDER, TAP] {
        run("ip", "iproute2", ["link", "set", interface, "up"])?;
    }
    Ok(())
}

/// Lets the captured end take live frames where no XDP program is attached to it.
///
/// # Errors
/// No `ethtool`.
pub fn receive_without_xdp() -> Result<(), CaptureBenchError> {
    run("ethtool", "ethtool", ["-K", TAP, "gro", "on"])
}

/// Has the kernel's receive work for the captured end done by a thread of its own on `core`, and returns the thread's id.
/// To be called while an XDP program is attached: only then has a veth a receive loop (NAPI).
///
/// # Errors
/// No such thread came up, or `taskset` failed.
pub fn receive_thread(core: usize) -> Result<u32, CaptureBenchError> {
    let path = format!("/sys/class/net/{TAP}/threaded");
    file("write", &path, fs::write(&path, "1"))?;
    let wanted = format!("napi/{TAP}-");
    let found = file("read", "/proc", fs::read_dir("/proc"))?.flatten().find_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let name = fs::read_to_string(entry.path().join("comm")).ok()?;
        name.starts_with(&wanted).then_some(pid)
    });
    let pid = found.ok_or_else(|| CaptureBenchError::Failed {
        command: format!("writing 1 to {path}"),
        message: format!("no kernel thread {wanted}* came up"),
    })?;
    run("taskset", "util-linux", ["-p", "-c", &core.to_string(), &pid.to_string()])?;
    Ok(pid)
}

/// Number of an interface of ours.
///
/// # Errors
/// There is none of that name.
pub fn index_of(interface: &str) -> Result<u32, CaptureBenchError> {
    counter_file(format!("/sys/class/net/{interface}/ifindex").into()).map(|n| n as u32)
}

/// One of the kernel's counters of an interface, such as `tx_dropped`.
///
/// # Errors
/// There is none of that name.
pub fn counter(interface: &str, name: &str) -> Result<u64, CaptureBenchError> {
    counter_file(format!("/sys/class/net/{interface}/statistics/{name}").into())
}

fn counter_file(path: PathBuf) -> Result<u64, CaptureBenchError> {
    let text = file("read", &path, fs::read_to_string(&path))?;
    text.trim().parse().map_err(|_| CaptureBenchError::Failed {
        command: format!("reading {}", path.display()),
        message: format!("'{}' is no number", text.trim()),
    })
}

/// Runs a program to its end.
fn run(
    program: &str,
    package: &'static str,
    arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
) -> Result<(), CaptureBenchError> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    let output = command.output().map_err(|source| CaptureBenchError::Program {
        program: program.to_owned(),
        package,
        source,
    })?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(CaptureBenchError::Failed { command: format!("{command:?}"), message })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effective_user_is_known() {
        effective_uid().unwrap();
    }

    #[test]
    fn a_failed_command_says_what_it_was_and_what_it_said() {
        let error = run("sh", "dash", ["-c", "echo no such thing >&2; exit 3"]).unwrap_err().to_string();
        assert!(error.contains("\"sh\"") && error.contains("no such thing"), "{error}");
        let error = run("no-such-program", "nothing", ["x"]).unwrap_err().to_string();
        assert!(error.contains("no-such-program") && error.contains("install nothing"), "{error}");
    }
}
