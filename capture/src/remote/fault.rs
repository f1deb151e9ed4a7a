use super::SshOptions;
use std::io;
use std::time::Duration;

/// Why a remote tap has no connection. Reads on after "remote tap 'X':".
#[derive(Debug, thiserror::Error)]
pub enum RemoteFault {
    /// The system's `ssh` could not be started.
    #[error("cannot run ssh: {0}; install the OpenSSH client (Debian and Ubuntu: apt install openssh-client)")]
    NoSsh(io::Error),
    /// No known host key, or of another kind only.
    #[error(
        "the host key of '{host}' is not known: connect once by hand as the user taphouse runs as and compare the \
         fingerprint ({login}), or add what ssh-keyscan prints for it to {known_hosts}"
    )]
    HostKeyUnknown {
        /// As given.
        host: String,
        /// How to do so.
        login: String,
        /// The file that was given, or `~/.ssh/known_hosts`.
        known_hosts: String,
    },
    /// Another host key than the known one.
    #[error(
        "the host key of '{host}' is not the known one: the host was installed anew, or somebody is in between; \
         compare its fingerprint, then ssh-keygen -R and connect once by hand"
    )]
    HostKeyChanged {
        /// As given.
        host: String,
    },
    /// The server accepts none of our keys.
    #[error(
        "'{host}' refuses our key ({methods}): add the public key to ~/.ssh/authorized_keys there; a key with a \
         passphrase needs an agent"
    )]
    Login {
        /// As given.
        host: String,
        /// What the server would accept.
        methods: String,
    },
    /// No such name, as far as the resolver knows.
    #[error("there is no host '{host}': {message}")]
    Resolve {
        /// As given.
        host: String,
        /// In the words of `ssh`.
        message: String,
        /// Whether the resolver says to ask again.
        temporary: bool,
    },
    /// Nothing listens there.
    #[error("'{host}' refuses the connection: is sshd running, and on that port? ({message})")]
    Refused {
        /// As given.
        host: String,
        /// In the words of `ssh`.
        message: String,
    },
    /// No way to the host, or no answer.
    #[error("'{host}' is not reached: {message}")]
    Unreachable {
        /// As given.
        host: String,
        /// In the words of `ssh`.
        message: String,
    },
    /// The connection stands, but no capture has come.
    #[error("no capture came from '{host}' within {timeout:?}: {message}")]
    NoAnswer {
        /// As given.
        host: String,
        /// [`SshOptions::connect_timeout`].
        timeout: Duration,
        /// The last that was said.
        message: String,
    },
    /// The connection was lost.
    #[error("the connection to '{host}' was lost: {message}")]
    Closed {
        /// As given.
        host: String,
        /// In the words of `ssh`.
        message: String,
    },
    /// The remote command does not exist.
    #[error("there is no '{command}' on '{host}': install tcpdump there, or name the command with its path")]
    CommandMissing {
        /// As given.
        host: String,
        /// Its first words.
        command: String,
    },
    /// The remote user may not capture.
    #[error(
        "the user on '{host}' may not capture on '{interface}': allow it there with sudo setcap cap_net_raw+ep on \
         tcpdump, or set the command to: sudo -n tcpdump"
    )]
    CapturePermission {
        /// As given.
        host: String,
        /// As given.
        interface: String,
    },
    /// `sudo` does not run the command without asking.
    #[error("sudo on '{host}' does not run tcpdump without a password: allow it there with NOPASSWD ({message})")]
    Sudo {
        /// As given.
        host: String,
        /// In the words of `sudo`.
        message: String,
    },
    /// No such interface there.
    #[error("there is no interface '{interface}' on '{host}': tcpdump -D lists what there is")]
    NoInterface {
        /// As given.
        host: String,
        /// As given.
        interface: String,
    },
    /// The filter is none.
    #[error("'{host}' does not understand the filter '{filter}': {message}")]
    Filter {
        /// As given.
        host: String,
        /// As given.
        filter: String,
        /// In the words of `tcpdump`.
        message: String,
    },
    /// What comes is no capture.
    #[error(
        "what comes from '{host}' begins with '{start}' and is no capture: does a start-up file of its shell print \
         something?"
    )]
    NotCapture {
        /// As given.
        host: String,
        /// The first bytes.
        start: String,
    },
    /// The stream cannot be read on.
    #[error("the stream of '{host}' is damaged: {message}")]
    Damaged {
        /// As given.
        host: String,
        /// What the reader says.
        message: String,
    },
    /// The remote command ended by itself.
    #[error("the capture on '{host}' ended with status {status}{message}")]
    Ended {
        /// As given.
        host: String,
        /// Exit status.
        status: i32,
        /// The last it said, behind a colon.
        message: String,
    },
    /// The remote command goes on when told to end.
    #[error(
        "the capture on '{host}' did not end when told to: what it saw last may be missing, and what it dropped since it \
         was last asked is not known; may its user signal it?"
    )]
    NotEnded {
        /// As given.
        host: String,
    },
    /// `ssh` gave up for another reason.
    #[error("ssh to '{host}' fails: {message}")]
    Other {
        /// As given.
        host: String,
        /// In the words of `ssh`.
        message: String,
    },
}

impl RemoteFault {
    /// Whether this can pass without anybody changing the configuration. [`SshSource::open`](super::SshSource::open)
    /// goes on with such a fault and fails with any other.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            RemoteFault::Refused { .. }
                | RemoteFault::Unreachable { .. }
                | RemoteFault::NoAnswer { .. }
                | RemoteFault::Closed { .. }
                | RemoteFault::Resolve { temporary: true, .. }
        )
    }
}

/// How a connection ended.
pub(super) struct Outcome<'a> {
    /// Exit status of `ssh`; `None` where it had to be killed, or was.
    pub(super) status: Option<i32>,
    /// Whether the capture had begun.
    pub(super) was_live: bool,
    pub(super) lines: &'a [String],
}

/// Status of `ssh` for failures of its own; every other one is the remote command's.
const SSH_FAILED: i32 = 255;

/// What the end of a connection means.
pub(super) fn explain(options: &SshOptions, outcome: &Outcome<'_>) -> RemoteFault {
    match outcome.status {
        None | Some(SSH_FAILED) => of_ssh(options, outcome),
        Some(status) => of_command(options, outcome, status),
    }
}

/// The latest line that holds one of `needles`.
fn find<'a>(lines: &'a [String], needles: &[&str]) -> Option<&'a str> {
    lines.iter().rev().find(|line| needles.iter().any(|needle| line.contains(needle))).map(String::as_str)
}

fn of_ssh(options: &SshOptions, outcome: &Outcome<'_>) -> RemoteFault {
    let lines = outcome.lines;
    let host = options.host.clone();
    let said = |message: &str| message.strip_prefix("ssh: ").unwrap_or(message).to_owned();
    if find(lines, &["Host key verification failed"]).is_some() {
        if find(lines, &["HOST IDENTIFICATION HAS CHANGED", "has changed and you have requested"]).is_some() {
            return RemoteFault::HostKeyChanged { host };
        }
        let known_hosts = options.known_hosts.as_ref().map(|path| path.display().to_string());
        let known_hosts = known_hosts.unwrap_or_else(|| "~/.ssh/known_hosts".to_owned());
        let port = options.port.map_or(String::new(), |port| format!("-p {port} "));
        let login = format!("ssh {port}{host}");
        return RemoteFault::HostKeyUnknown { host, login, known_hosts };
    }
    if let Some(line) = find(lines, &["Permission denied (", "Too many authentication failures"]) {
        let methods = line.rsplit_once('(').map_or(line, |(_, methods)| methods.trim_end_matches([')', '.']));
        return RemoteFault::Login { host, methods: methods.to_owned() };
    }
    if let Some(line) = find(lines, &["Could not resolve hostname"]) {
        let temporary = line.contains("Temporary failure");
        return RemoteFault::Resolve { host, message: said(line), temporary };
    }
    if let Some(line) = find(lines, &["Connection refused"]) {
        return RemoteFault::Refused { host, message: said(line) };
    }
    if let Some(line) = find(lines, &["timed out", "No route to host", "is unreachable", "Host is down"]) {
        return RemoteFault::Unreachable { host, message: said(line) };
    }
    let lost = ["not responding", "closed by", "Connection closed", "Connection reset", "Broken pipe", "disconnect"];
    if let Some(line) = find(lines, &lost) {
        return RemoteFault::Closed { host, message: said(line) };
    }
    let last = lines.last().map_or("", |line| line.as_str());
    if outcome.was_live || outcome.status.is_none() {
        let message = if last.is_empty() { "ssh gave no reason".to_owned() } else { said(last) };
        return RemoteFault::Closed { host, message };
    }
    let message = if last.is_empty() { "it gave no reason".to_owned() } else { said(last) };
    RemoteFault::Other { host, message }
}

fn of_command(options: &SshOptions, outcome: &Outcome<'_>, status: i32) -> RemoteFault {
    let lines = outcome.lines;
    let (host, interface) = (options.host.clone(), options.interface.clone());
    if status == 127 || find(lines, &["command not found"]).is_some() {
        let command = options.command_words().collect::<Vec<_>>().join(" ");
        return RemoteFault::CommandMissing { host, command };
    }
    if let Some(message) = find(lines, &["sudo: "]) {
        return RemoteFault::Sudo { host, message: message.to_owned() };
    }
    if find(lines, &["permission to perform this capture", "permission to capture", "Operation not permitted"])
        .is_some()
    {
        return RemoteFault::CapturePermission { host, interface };
    }
    if find(lines, &["No such device"]).is_some() {
        return RemoteFault::NoInterface { host, interface };
    }
    if let Some(message) = find(lines, &["filter expression", "syntax error", "expression rejects all packets"]) {
        let filter = options.filter.clone().unwrap_or_default();
        return RemoteFault::Filter { host, filter, message: message.to_owned() };
    }
    let last = lines.last().filter(|_| status != 0);
    RemoteFault::Ended { host, status, message: last.map_or(String::new(), |line| format!(": {line}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explained(status: i32, was_live: bool, lines: &[&str]) -> RemoteFault {
        let lines: Vec<String> = lines.iter().map(|&line| line.to_owned()).collect();
        let options =
            SshOptions { filter: Some("foo bar".into()), port: Some(2222), ..SshOptions::new("tap@sensor", "eth0") };
        explain(&options, &Outcome { status: Some(status), was_live, lines: &lines })
    }

    /// As OpenSSH 9.2, tcpdump 4.99.3, dash and sudo 1.9.13 say it.
    #[test]
    fn each_way_to_fail_gets_its_sentence() {
        let cases: &[(i32, &[&str], &str, bool)] = &[
            (
                255,
                &[
                    "No ED25519 host key is known for [h]:2 and you have requested strict checking.",
                    "Host key verification failed.",
                ],
                "compare the fingerprint (ssh -p 2222 tap@sensor)",
                false,
            ),
            (
                255,
                &["@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @", "Host key verification failed."],
                "is not the known one",
                false,
            ),
            (
                255,
                &["tap@sensor: Permission denied (publickey,password)."],
                "refuses our key (publickey,password)",
                false,
            ),
            (
                255,
                &["ssh: Could not resolve hostname sensor: Name or service not known"],
                "there is no host 'tap@sensor': Could not",
                false,
            ),
            (
                255,
                &["ssh: Could not resolve hostname sensor: Temporary failure in name resolution"],
                "there is no host",
                true,
            ),
            (255, &["ssh: connect to host 127.0.0.1 port 2: Connection refused"], "is sshd running", true),
            (255, &["ssh: connect to host 192.0.2.1 port 22: Connection timed out"], "is not reached", true),
            (255, &["Timeout, server 192.0.2.1 not responding."], "was lost: Timeout, server", true),
            (255, &["kex_exchange_identification: Connection closed by remote host"], "was lost", true),
            (255, &["/x/config: line 1: Bad configuration option: foo"], "fails: /x/config: line 1", false),
            (255, &[], "gave no reason", false),
            (127, &["sh: 1: tcpdump: not found"], "there is no 'tcpdump' on 'tap@sensor'", false),
            (1, &["sudo: tcpdump: command not found"], "there is no 'tcpdump'", false),
            (1, &["sudo: a password is required"], "NOPASSWD", false),
            (
                1,
                &[
                    "tcpdump: eth0: You don't have permission to perform this capture on that device",
                    "(socket: Operation not permitted)",
                ],
                "may not capture on 'eth0'",
                false,
            ),
            (1, &["tcpdump: eth0: No such device exists", "(No such device exists)"], "no interface 'eth0' on", false),
            (
                1,
                &["tcpdump: can't parse filter expression: syntax error"],
                "the filter 'foo bar': tcpdump: can't parse",
                false,
            ),
            (1, &["tcpdump: eth0: That device is not up"], "status 1: tcpdump: eth0: That device is not up", false),
            (0, &["reading from file x"], "ended with status 0", false),
        ];
        for (status, lines, text, transient) in cases {
            let fault = explained(*status, false, lines);
            assert!(fault.to_string().contains(text), "{lines:?} gave: {fault}");
            assert_eq!(fault.is_transient(), *transient, "{fault}");
        }
    }

    #[test]
    fn a_capture_that_had_begun_was_lost_whatever_the_words() {
        assert!(matches!(explained(255, true, &["something new"]), RemoteFault::Closed { .. }));
        assert!(matches!(explained(255, false, &["something new"]), RemoteFault::Other { .. }));
    }
}
