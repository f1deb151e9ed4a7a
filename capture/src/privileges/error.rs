//! What goes wrong with privileges, and what to do about it.

use super::{Capabilities, Capability, OpenerError};
use std::fmt;
use std::io;

/// Why privileges are missing, or could not be dropped.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegeError {
    /// Capabilities that the calling thread does not have.
    #[error("{0}")]
    Missing(Box<Missing>),
    /// Root of a user namespace only.
    #[error(
        "this process is in a user namespace, where CAP_BPF does not count for bpf(2): start it outside, or capture by AF_PACKET"
    )]
    UserNamespace,
    /// No such account.
    #[error("no user '{name}' on this machine: give the name or the number of one that 'getent passwd' lists")]
    NoUser {
        /// As given.
        name: String,
    },
    /// The account database failed.
    #[error("cannot look up user '{name}': {source}")]
    Lookup {
        /// As given.
        name: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// An account whose uid or gid is 4294967295, which system calls take for "unchanged".
    #[error("user '{name}' has the uid or gid 4294967295, which no process can have: give another user")]
    ReservedId {
        /// As given.
        name: String,
    },
    /// Threads that would keep privileges.
    #[error(
        "privileges must be dropped before other threads start, each has its own: already running: {}",
        threads.join(", ")
    )]
    OtherThreads {
        /// Name and id of each.
        threads: Vec<String>,
    },
    /// The process may not become that user.
    #[error(
        "cannot become user '{user}' ({call}: {source}): start as root, or as '{user}' with capabilities, or leave the user out"
    )]
    Become {
        /// Whom.
        user: String,
        /// System call.
        call: &'static str,
        /// What the operating system said.
        source: io::Error,
    },
    /// Any other system call on credentials failed.
    #[error("{call} failed: {source}")]
    System {
        /// System call and option.
        call: &'static str,
        /// What the operating system said.
        source: io::Error,
    },
    /// Without /proc nothing can be verified.
    #[error("cannot read {path}, which tells whether privileges were dropped: {source}; mount /proc")]
    Status {
        /// File or folder.
        path: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// A status file without a field of Linux 4.10.
    #[error("{path} has no field '{field}' of the expected form: Linux 4.10 or later is needed")]
    StatusField {
        /// File.
        path: String,
        /// Field.
        field: &'static str,
    },
    /// The drop did not take.
    #[error(
        "privileges were not dropped: thread {thread} has {field} {found}, expected {expected}; this process must end"
    )]
    NotDropped {
        /// Name and id of the thread.
        thread: String,
        /// Field of `/proc/self/task/TID/status`.
        field: &'static str,
        /// What it is.
        found: String,
        /// What it should be.
        expected: String,
    },
    /// Memory for packets cannot be locked: what ENOBUFS of XDP_UMEM_REG means.
    #[error(
        "cannot lock {need_bytes} bytes for packets: RLIMIT_MEMLOCK allows this user {limit_bytes} in all; set \
         LimitMEMLOCK=infinity in the systemd unit, or 'ulimit -l unlimited', or start with CAP_IPC_LOCK, or configure less memory"
    )]
    Memlock {
        /// Size of the region.
        need_bytes: u64,
        /// Soft limit in force.
        limit_bytes: u64,
    },
    /// The opener thread could not be started.
    #[error("cannot start the opener thread: {0}")]
    Spawn(#[source] io::Error),
    /// The opener thread did not do its part.
    #[error("{0}")]
    Opener(#[from] OpenerError),
}

/// Capabilities that are missing, and why giving them may not have helped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// Those that the calling thread lacks.
    pub missing: Vec<Capability>,
    /// All that were asked for, without mere hints.
    pub needed: Vec<Capability>,
    /// Those missing that no program started from here can have.
    pub outside_bounding: Vec<Capability>,
    /// Those missing that the thread could raise, but has not.
    pub not_effective: Vec<Capability>,
    /// Whether capabilities of the binary's file are ignored.
    pub no_new_privs: bool,
    /// Whether RLIMIT_MEMLOCK counts for this process: CAP_IPC_LOCK was asked for, and is missing too.
    pub memlock_counts: bool,
    /// Path of the binary.
    pub binary: String,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let missing: Vec<String> = self.missing.iter().map(|c| format!("{} ({})", c.name(), c.purpose())).collect();
        let file = join(&self.needed, ",").to_lowercase();
        write!(
            f,
            "this process lacks {}: start it as root, or once 'sudo setcap {file}+ep {}', or in its systemd unit \
             'AmbientCapabilities={}'",
            missing.join(", "),
            self.binary,
            join(&self.needed, " ")
        )?;
        if !self.outside_bounding.is_empty() {
            let names = join(&self.outside_bounding, ", ");
            write!(f, "; {names} must first be allowed where it is started (CapabilityBoundingSet=, --cap-add)")?;
        }
        if !self.not_effective.is_empty() {
            write!(f, "; {} is permitted, but not effective: setcap with +ep", join(&self.not_effective, ", "))?;
        }
        if self.no_new_privs {
            f.write_str("; no_new_privs is set, so setcap has no effect here")?;
        }
        if self.memlock_counts {
            f.write_str("; without CAP_IPC_LOCK, RLIMIT_MEMLOCK limits the memory for packets")?;
        }
        Ok(())
    }
}

fn join(capabilities: &[Capability], by: &str) -> String {
    capabilities.iter().map(|c| c.name()).collect::<Vec<_>>().join(by)
}

/// What a thread should hold.
pub(super) fn shown(set: Capabilities) -> String {
    format!("{:x} ({set})", set.bits())
}
