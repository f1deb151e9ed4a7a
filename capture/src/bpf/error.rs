//! Why a program is not on its interface.

use super::QUEUES_MAX;
use super::sys::{self, LoadError};
use std::io;

/// Why an XDP program could not be loaded or attached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BpfError {
    /// The process may not.
    #[error(
        "not permitted to {what}: XDP takes CAP_BPF and CAP_NET_ADMIN, outside of user namespaces (and on Linux before \
         5.11 a larger memlock limit); grant them, or capture with AF_PACKET"
    )]
    Permission {
        /// What was refused.
        what: &'static str,
        /// What the operating system said.
        source: io::Error,
    },
    /// There is no interface of this index in this network namespace.
    #[error("no interface has index {index} in this network namespace")]
    NoInterface {
        /// The index asked for.
        index: u32,
    },
    /// Another program holds the interface, or it has one of the other mode.
    #[error(
        "interface '{interface}' has another XDP program already: see which with `ip link show dev {interface}` or \
         `bpftool net`, and stop what attached it"
    )]
    Occupied {
        /// Its name.
        interface: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// The driver has no native XDP, or not in its present settings.
    #[error(
        "the driver of interface '{interface}' does not run XDP programs as it is set up (see the kernel log; large \
         receive offload may be in the way): use generic mode, or capture with AF_PACKET"
    )]
    NoNative {
        /// Its name.
        interface: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// The driver refuses the program with these settings, which nearly always is about the MTU.
    #[error(
        "the driver of interface '{interface}' refuses the XDP program ({source}): mostly its MTU{}{} is too large for \
         one buffer{}; lower it, or use generic mode",
        mtu.map(|mtu| format!(" of {mtu}")).unwrap_or_default(),
        if *frags { "" } else { " (or that of a veth's peer)" },
        if *frags { " and for multi-buffer frames too" } else { ", and multi-buffer frames take Linux 5.18" }
    )]
    Mtu {
        /// Its name.
        interface: String,
        /// Its MTU in bytes, where it could be read.
        mtu: Option<u32>,
        /// Whether the program takes frames of several buffers.
        frags: bool,
        /// What the operating system said.
        source: io::Error,
    },
    /// The driver has too few queues for XDP.
    #[error(
        "interface '{interface}' has too few queues for XDP: a NIC needs spare ones to send on, a veth as many receive \
         queues as its peer has for sending; change them with `ethtool -L {interface}`"
    )]
    Queues {
        /// Its name.
        interface: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// The verifier, or the kernel's lack of a feature.
    #[error("the kernel refuses the XDP program ({source}){}", if log.is_empty() { String::new() } else { format!(": {log}") })]
    Rejected {
        /// The line in which the verifier gives its reason, if it did.
        log: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// No room for so many queues.
    #[error("an interface of {queues} queues cannot be served, expected 1 to {QUEUES_MAX}")]
    QueueCount {
        /// Queues asked for.
        queues: u32,
    },
    /// Any other failure.
    #[error("cannot {what}: {source}")]
    System {
        /// What was attempted.
        what: &'static str,
        /// What the operating system said.
        source: io::Error,
    },
}

impl BpfError {
    /// Of a system call on maps.
    pub(super) fn of_call(what: &'static str, source: io::Error) -> BpfError {
        match source.raw_os_error() {
            Some(libc::EPERM) => BpfError::Permission { what, source },
            _ => BpfError::System { what, source },
        }
    }

    /// Of a program that does not fit its own assembler.
    pub(super) fn assembling(error: impl std::error::Error + Send + Sync + 'static) -> BpfError {
        BpfError::System { what: "assemble the XDP program", source: io::Error::other(error) }
    }

    /// Of loading a program. The verifier says EPERM, too, to programs that need more capabilities, but then it says why.
    pub(super) fn of_load(error: LoadError) -> BpfError {
        let LoadError { source, log } = error;
        let log = last_words(&log).to_owned();
        match source.raw_os_error() {
            Some(libc::EPERM) if log.is_empty() => BpfError::Permission { what: "load an XDP program", source },
            _ => BpfError::Rejected { log, source },
        }
    }

    /// Of attaching a program to an interface that exists. The kernel's own words do not come back from bpf(2), so that
    /// the number has to do: veth.c has ENOSPC and ERANGE for queues and MTU, most NICs EINVAL for the latter.
    pub(super) fn of_attach(interface: String, native: bool, frags: bool, source: io::Error) -> BpfError {
        match source.raw_os_error() {
            Some(libc::EPERM) => BpfError::Permission { what: "attach an XDP program", source },
            // EEXIST: in the other mode.
            Some(libc::EBUSY | libc::EEXIST) => BpfError::Occupied { interface, source },
            Some(libc::EOPNOTSUPP) if native => BpfError::NoNative { interface, source },
            Some(libc::EINVAL | libc::ERANGE) if native => {
                let mtu = sys::interface_mtu(&interface).ok();
                BpfError::Mtu { interface, mtu, frags, source }
            }
            Some(libc::ENOSPC) if native => BpfError::Queues { interface, source },
            _ => BpfError::System { what: "attach an XDP program", source },
        }
    }
}

/// The last line of a verifier's log that is no statistics.
fn last_words(log: &str) -> &str {
    let statistics = ["processed ", "verification time", "stack depth"];
    let is_reason = |line: &&str| !line.is_empty() && !statistics.iter().any(|s| line.starts_with(s));
    log.lines().map(str::trim).rfind(is_reason).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_say_what_to_do() {
        let attach = |code, native, frags| {
            BpfError::of_attach("tap9".to_owned(), native, frags, io::Error::from_raw_os_error(code)).to_string()
        };
        for (code, native, part) in [
            (libc::EPERM, true, "CAP_BPF and CAP_NET_ADMIN"),
            (libc::EBUSY, true, "`ip link show dev tap9`"),
            (libc::EEXIST, false, "another XDP program already"),
            (libc::EOPNOTSUPP, true, "use generic mode"),
            (libc::EOPNOTSUPP, false, "cannot attach an XDP program"),
            (libc::ERANGE, true, "MTU (or that of a veth's peer) is too large for one buffer, and multi-buffer"),
            (libc::ENOSPC, true, "`ethtool -L tap9`"),
        ] {
            let message = attach(code, native, false);
            assert!(message.contains(part), "{message}");
        }
        assert!(attach(libc::EINVAL, true, true).contains("its MTU is too large for one buffer and for multi-buffer"));
    }

    #[test]
    fn the_verifiers_reason_is_found() {
        let log = "func#0 @0\n0: (b7) r0 = 1\nR2 invalid mem access 'scalar'\nverification time 12 usec\n\
                   stack depth 4\nprocessed 2 insns (limit 1000000)\n\n";
        assert_eq!(last_words(log), "R2 invalid mem access 'scalar'");
        assert_eq!(last_words("processed 0 insns"), "");
        let of_load = |code, log: &str| {
            BpfError::of_load(LoadError { source: io::Error::from_raw_os_error(code), log: log.to_owned() })
        };
        assert!(matches!(of_load(libc::EPERM, ""), BpfError::Permission { .. }));
        assert!(of_load(libc::EACCES, log).to_string().ends_with(": R2 invalid mem access 'scalar'"));
    }
}
