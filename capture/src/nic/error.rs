use super::client::CallError;
use std::io;

/// Why something about a network interface could not be learnt or set.
#[derive(Debug, thiserror::Error)]
pub enum NicError {
    /// No interface of that name in this network namespace.
    #[error("no interface '{name}', there are: {}", list(existing))]
    NoInterface {
        /// Name as given.
        name: String,
        /// What there is, sorted.
        existing: Vec<String>,
    },
    /// The interface existed before, and does not now.
    #[error(
        "interface '{name}' is gone: it was removed, or moved to another network namespace; look it up again by name"
    )]
    Gone {
        /// Its last known name.
        name: String,
    },
    /// The process lacks a capability.
    #[error(
        "{subject}: {call} needs the capability {capability}{}: run with sudo, or keep it when privileges are dropped",
        said(message.as_deref())
    )]
    Permission {
        /// What was looked at.
        subject: String,
        /// Request that failed.
        call: &'static str,
        /// Its name in capabilities(7).
        capability: &'static str,
        /// The kernel's own words, where it has some.
        message: Option<String>,
    },
    /// The kernel has no such generic netlink family.
    #[error("this kernel has no netlink family '{family}': it needs Linux {since} or later{}", option(family))]
    Family {
        /// Name of the family.
        family: &'static str,
        /// First version that has it.
        since: &'static str,
    },
    /// The list changed while it was read, each time.
    #[error("{subject}: {call} was interrupted by changes {attempts} times in a row: try again")]
    Interrupted {
        /// What was looked at.
        subject: String,
        /// Request that failed.
        call: &'static str,
        /// How often it was tried.
        attempts: u32,
    },
    /// An answer that contradicts its own lengths: kernel and program disagree on the format.
    #[error("{subject}: the answer to {call} is unreadable: {reason}")]
    Malformed {
        /// What was looked at.
        subject: String,
        /// Request whose answer it is.
        call: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// More driver counters than are accepted.
    #[error("interface '{name}' has {count} driver counters, at most {max} are read")]
    TooManyCounters {
        /// Interface.
        name: String,
        /// How many there are.
        count: u32,
        /// Most that are accepted.
        max: u32,
    },
    /// Any other failure of a request to the kernel.
    #[error("{subject}: {call} failed: {source}{}", said(message.as_deref()))]
    System {
        /// What was looked at.
        subject: String,
        /// Request, or system call.
        call: &'static str,
        /// The kernel's own words, where it has some (extended ACK).
        message: Option<String>,
        /// What the operating system said.
        source: io::Error,
    },
}

impl NicError {
    /// Adds what a request was about.
    pub(super) fn new(subject: Subject<'_>, error: CallError) -> NicError {
        match error {
            CallError::System { call, message, source } => NicError::system(subject, call, message, source),
            CallError::Family { family, since } => NicError::Family { family, since },
            CallError::Interrupted { call, attempts } => {
                NicError::Interrupted { subject: subject.to_string(), call, attempts }
            }
            CallError::Malformed { call, reason } => {
                NicError::Malformed { subject: subject.to_string(), call, reason: reason.to_string() }
            }
            CallError::Unanswered { call } => {
                let reason = "the kernel sent none".to_owned();
                NicError::Malformed { subject: subject.to_string(), call, reason }
            }
        }
    }

    pub(super) fn system(
        subject: Subject<'_>,
        call: &'static str,
        message: Option<String>,
        source: io::Error,
    ) -> NicError {
        match (source.raw_os_error(), subject) {
            (Some(libc::ENODEV), Subject::Interface(name)) => NicError::Gone { name: name.to_owned() },
            (Some(libc::EPERM | libc::EACCES), _) => {
                let capability = if call.contains("AF_PACKET") { "CAP_NET_RAW" } else { "CAP_NET_ADMIN" };
                NicError::Permission { subject: subject.to_string(), call, capability, message }
            }
            _ => NicError::System { subject: subject.to_string(), call, message, source },
        }
    }
}

/// What a request is about.
#[derive(Clone, Copy, Debug)]
pub(super) enum Subject<'a> {
    /// One interface, by name.
    Interface(&'a str),
    /// All of them.
    List,
    /// Changes to come.
    Watch,
}

impl std::fmt::Display for Subject<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Subject::Interface(name) => write!(f, "interface '{name}'"),
            Subject::List => f.write_str("listing network interfaces"),
            Subject::Watch => f.write_str("watching network interfaces"),
        }
    }
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

fn said(message: Option<&str>) -> String {
    message.map(|m| format!(" ({m})")).unwrap_or_default()
}

/// The kernel's build option that a family hangs on.
fn option(family: &str) -> &'static str {
    if family == "ethtool" { ", built with CONFIG_ETHTOOL_NETLINK" } else { "" }
}
