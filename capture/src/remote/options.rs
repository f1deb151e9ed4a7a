use crate::SourceError;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Longest snapshot `tcpdump` takes (`MAXIMUM_SNAPLEN`), in bytes.
pub(super) const SNAPLEN_MAX: u32 = 262_144;
/// Host, interface, command: longer ones are mistakes.
const NAME_BYTES_MAX: usize = 1024;
/// Linux passes one argument of at most 128 KiB, and quoting can make it four times longer.
const FILTER_BYTES_MAX: usize = 16 * 1024;

/// Where a remote tap is, and how it is reached. What is not said here (user, port, keys, jump hosts) is what the
/// `ssh_config` of the user we run as says about the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SshOptions {
    /// `host`, `user@host` or an alias of `ssh_config`.
    pub host: String,
    /// TCP port of the SSH server.
    pub port: Option<u16>,
    /// Private key without a passphrase (or one an agent holds); no other is then tried.
    pub identity: Option<PathBuf>,
    /// File with the host's key; no other is then read.
    pub known_hosts: Option<PathBuf>,
    /// Read in place of the user's and the system's `ssh_config`.
    pub config: Option<PathBuf>,
    /// Interface of the remote host, `any` for all.
    pub interface: String,
    /// In the syntax of pcap-filter(7), evaluated on the remote host.
    pub filter: Option<String>,
    /// Bytes kept of each packet, at most 262144; 0 for all.
    pub snaplen: u32,
    /// What is run in place of `tcpdump`: words separated by blanks, no shell interprets them. `sudo -n tcpdump`,
    /// `tcpdump -B 65536`. Behind them come `-U -w - -i INTERFACE -s SNAPLEN FILTER`.
    pub command: Option<String>,
    /// From the start of `ssh` to the first byte of the capture; 1 s to 5 min.
    pub connect_timeout: Duration,
    /// Wait before the first attempt to connect again; doubled after each that fails. From 10 ms.
    pub retry_min: Duration,
    /// Longest such wait, at most 1 h.
    pub retry_max: Duration,
}

impl SshOptions {
    /// All packets of an interface, whole; attempts to connect take 10 s and are 1 s to 60 s apart.
    pub fn new(host: impl Into<String>, interface: impl Into<String>) -> SshOptions {
        SshOptions {
            host: host.into(),
            port: None,
            identity: None,
            known_hosts: None,
            config: None,
            interface: interface.into(),
            filter: None,
            snaplen: SNAPLEN_MAX,
            command: None,
            connect_timeout: Duration::from_secs(10),
            retry_min: Duration::from_secs(1),
            retry_max: Duration::from_secs(60),
        }
    }

    /// The words of the command.
    pub(super) fn command_words(&self) -> impl Iterator<Item = &str> {
        self.command.as_deref().unwrap_or("tcpdump").split_ascii_whitespace()
    }

    /// Refuses what `ssh`, the remote shell or `tcpdump` could take for something else than it is. Looks at files, so
    /// that a wrong path is told at the start; connects to nothing.
    ///
    /// # Errors
    /// [`SourceError::RemoteOption`] for the first field that is wrong.
    pub fn check(&self) -> Result<(), SourceError> {
        let refuse = |field, value: &str, expected| {
            let value = super::stderr::printable(value);
            Err(SourceError::RemoteOption { field, value, expected })
        };
        if !is_host(&self.host) {
            let expected = "host, user@host or an alias of ssh_config, without blanks, quotes and leading '-'";
            return refuse("host", &self.host, expected);
        }
        if self.port == Some(0) {
            return refuse("port", "0", "1 to 65535");
        }
        let interface = &self.interface;
        if !is_plain(interface, NAME_BYTES_MAX) || interface.starts_with('-') || interface.contains(char::is_whitespace)
        {
            return refuse("interface", interface, "an interface of the remote host, without blanks and leading '-'");
        }
        if let Some(filter) = &self.filter {
            if filter.len() > FILTER_BYTES_MAX || filter.contains(char::is_control) {
                return refuse("filter", filter, "one line of pcap-filter syntax of at most 16384 bytes");
            }
            if !is_balanced(filter) {
                return refuse("filter", filter, "as many closing as opening parentheses, each behind its own");
            }
        }
        if self.snaplen > SNAPLEN_MAX {
            return refuse("snaplen", &self.snaplen.to_string(), "0 (whole packets) to 262144");
        }
        if let Some(command) = &self.command {
            let first = self.command_words().next();
            if !is_plain(command, NAME_BYTES_MAX) || first.is_none_or(|word| word.starts_with('-')) {
                return refuse("command", command, "a command and its arguments, such as: sudo -n tcpdump");
            }
        }
        for (field, path) in
            [("identity", &self.identity), ("known_hosts", &self.known_hosts), ("config", &self.config)]
        {
            let Some(path) = path else { continue };
            if !is_literal(path) {
                return refuse(field, &path.to_string_lossy(), "a path without quotes, backslash, '%', '$' and '~'");
            }
            if std::fs::File::open(path).is_err() {
                return refuse(field, &path.to_string_lossy(), "a file that this user may read");
            }
        }
        self.check_times()
    }

    fn check_times(&self) -> Result<(), SourceError> {
        let refuse = |field, value: Duration, expected| {
            Err(SourceError::RemoteOption { field, value: format!("{value:?}"), expected })
        };
        if !(Duration::from_secs(1)..=Duration::from_secs(300)).contains(&self.connect_timeout) {
            return refuse("connect_timeout", self.connect_timeout, "1s to 5min");
        }
        if self.retry_min < Duration::from_millis(10) {
            return refuse("retry_min", self.retry_min, "10ms or more");
        }
        if self.retry_max < self.retry_min || self.retry_max > Duration::from_secs(3600) {
            return refuse("retry_max", self.retry_max, "retry_min to 1h");
        }
        Ok(())
    }

    /// What messages call the tap.
    pub(super) fn name(&self) -> String {
        format!("ssh:{}:{}", self.host, self.interface)
    }
}

/// Not empty, not endless, no control character.
fn is_plain(text: &str, bytes_max: usize) -> bool {
    !text.is_empty() && text.len() <= bytes_max && !text.contains(char::is_control)
}

/// What OpenSSH 9.6 accepts as user and host (`valid_ruser`, `valid_hostname` in ssh.c); older versions hand on the
/// rest to the shell of a `ProxyCommand`.
fn is_host(host: &str) -> bool {
    let (user, name) = host.rsplit_once('@').map_or((None, host), |(user, name)| (Some(user), name));
    let is_part = |part: &str| {
        is_plain(part, NAME_BYTES_MAX)
            && !part.starts_with('-')
            && !part.contains(|c: char| c.is_whitespace() || "'`\"$;&<>|(){},".contains(c))
    };
    is_part(name) && !name.contains('\\') && user.is_none_or(|user| is_part(user) && !user.ends_with('\\'))
}

/// Whether `ssh` takes a path as it stands: it expands `~`, `%` and `$`, and splits what is not quoted.
fn is_literal(path: &Path) -> bool {
    let path = path.as_os_str().as_encoded_bytes();
    !path.is_empty() && path[0] != b'~' && !path.iter().any(|b| b.is_ascii_control() || b"\"'\\%$".contains(b))
}

/// A filter that closes more than it opens would escape from the one that keeps out our own connection.
fn is_balanced(filter: &str) -> bool {
    let mut depth = 0_u32;
    for c in filter.bytes() {
        match c {
            b'(' => depth += 1,
            b')' if depth == 0 => return false,
            b')' => depth -= 1,
            _ => {}
        }
    }
    depth == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_options_pass() {
        for host in ["sensor", "tap@sensor.example", "tap@192.0.2.1", "fe80::1%eth0", r"DOMAIN\tap@h", "ssh://h:22"] {
            SshOptions::new(host, "eth0").check().unwrap();
        }
        for filter in ["", "tcp port 80", "(tcp or udp) and not (arp)", "tcp[13] & 2 != 0 and host a$b"] {
            let options = SshOptions { filter: Some(filter.to_owned()), ..SshOptions::new("h", "any") };
            options.check().unwrap();
        }
        SshOptions { command: Some("sudo -n tcpdump".to_owned()), snaplen: 0, ..SshOptions::new("h", "eth0") }
            .check()
            .unwrap();
    }

    #[test]
    fn what_could_be_taken_for_something_else_is_refused_by_name() {
        let good = || SshOptions::new("h", "eth0");
        let text = |s: &str| Some(s.to_owned());
        let ms = Duration::from_millis;
        let mut wrong = vec![
            (SshOptions { port: Some(0), ..good() }, "port"),
            (SshOptions { snaplen: 262_145, ..good() }, "snaplen"),
            (SshOptions { filter: text("tcp) or (udp"), ..good() }, "filter"),
            (SshOptions { filter: text("(tcp"), ..good() }, "filter"),
            (SshOptions { filter: text("tcp\nudp"), ..good() }, "filter"),
            (SshOptions { filter: Some("x".repeat(20_000)), ..good() }, "filter"),
            (SshOptions { command: text(""), ..good() }, "command"),
            (SshOptions { command: text("  "), ..good() }, "command"),
            (SshOptions { command: text("-c tcpdump"), ..good() }, "command"),
            (SshOptions { command: text("a\0b"), ..good() }, "command"),
            (SshOptions { identity: Some("/no/such/key".into()), ..good() }, "identity"),
            (SshOptions { known_hosts: Some("/etc/%h".into()), ..good() }, "known_hosts"),
            (SshOptions { known_hosts: Some("".into()), ..good() }, "known_hosts"),
            (SshOptions { config: Some("~/.ssh/config".into()), ..good() }, "config"),
            (SshOptions { connect_timeout: ms(999), ..good() }, "connect_timeout"),
            (SshOptions { retry_min: ms(9), ..good() }, "retry_min"),
            (SshOptions { retry_min: ms(2000), retry_max: ms(1000), ..good() }, "retry_max"),
            (SshOptions { retry_max: ms(3_600_001), ..good() }, "retry_max"),
        ];
        let hosts = ["", "-oProxyCommand=x", "-l@h", "a b", "h\n", "h;id", "$(id)", "u@-h", "@h", "u@", "a\\b"];
        wrong.extend(hosts.map(|host| (SshOptions::new(host, "eth0"), "host")));
        wrong.extend(
            ["", "-w", "eth 0", "eth\x1b0", "e\0"].map(|interface| (SshOptions::new("h", interface), "interface")),
        );
        for (options, field) in wrong {
            let error = options.check().unwrap_err();
            assert!(matches!(&error, SourceError::RemoteOption { field: f, .. } if *f == field), "{error}");
            assert!(!error.to_string().contains(char::is_control), "{error:?}");
        }
    }
}
