//! What is run: the arguments of the local `ssh`, and the line its remote shell is given.

use super::SshOptions;
use std::ffi::OsString;

/// Runs on the remote host as `sh -c SCRIPT taphouse FILTER COMMAND...`: nothing of an operator's is part of its text.
///
/// - The login shell of some accounts has no `sbin` in its path, where `tcpdump` is.
/// - `date` gives the remote clock, which idle time is counted from.
/// - `SSH_CONNECTION` (addresses and ports of both ends) names the one connection that must not be captured: each
///   packet of it would make another one. `%` starts the scope of a link-local address, which pcap filters do not know.
/// - The end of standard input is the order to stop, and comes also when the connection dies: `tcpdump` then writes out
///   what it has and tells what was dropped. A line asks for these statistics right away (SIGINFO, on Linux SIGUSR1).
/// - When the command ends by itself, the reader of standard input would keep the session open, so it is ended too; it
///   is a loop over a builtin because ending a subshell does not end a `cat` in it.
///
/// One line, since csh knows no quoted line breaks.
const SCRIPT: &str = concat!(
    "set -f; PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin; LC_ALL=C; export PATH LC_ALL; ",
    "echo \"taphouse: clock $(date +%s)\" >&2; ",
    "f=$1; shift; ",
    "e=$(set -- $SSH_CONNECTION; case \"$# $1\" in (\"4 UNKNOWN\") ;; (\"4 \"*) ",
    "echo \"not (tcp and host ${1%%%*} and port $2 and host ${3%%%*} and port $4)\" ;; esac); ",
    "if [ -n \"$f\" ]; then e=\"${e:+$e and }($f)\"; fi; ",
    "exec 3<&0; ",
    "\"$@\" ${e:+\"$e\"} </dev/null 3<&- & p=$!; ",
    "(while read -r x; do kill -INFO $p || kill -USR1 $p; done; kill -TERM $p) <&3 3<&- >/dev/null 2>&1 & w=$!; ",
    "exec 3<&-; wait $p; s=$?; kill $w 2>/dev/null; exit $s",
);

/// Arguments of `ssh`, all of `options` having been checked.
pub(super) fn ssh_arguments(options: &SshOptions) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = Vec::new();
    if let Some(config) = &options.config {
        arguments.extend(["-F".into(), config.into()]);
    }
    // No terminal, agent, X11 or escape character: the stream is binary and the remote host gets nothing of ours.
    arguments.extend(["-T", "-a", "-x", "-e", "none"].map(OsString::from));
    let timeout = format!("ConnectTimeout={}", options.connect_timeout.as_secs_f64().ceil() as u64);
    let fixed = [
        "BatchMode=yes",
        "StrictHostKeyChecking=yes",
        "ServerAliveInterval=5",
        "ServerAliveCountMax=3",
        "ClearAllForwardings=yes",
        "ExitOnForwardFailure=yes",
        "Tunnel=no",
        "PermitLocalCommand=no",
        "RemoteCommand=none",
        // A shared connection would outlive us, or end with somebody else.
        "ControlMaster=no",
        "ControlPath=none",
        // At less, a server that stops answering is not told.
        "LogLevel=INFO",
        &timeout,
    ];
    for option in fixed {
        arguments.extend(["-o".into(), option.into()]);
    }
    if let Some(port) = options.port {
        arguments.extend(["-p".into(), port.to_string().into()]);
    }
    if let Some(identity) = &options.identity {
        arguments.extend(["-o".into(), "IdentitiesOnly=yes".into(), "-i".into(), identity.into()]);
    }
    if let Some(known_hosts) = &options.known_hosts {
        let mut option = OsString::from("UserKnownHostsFile=\"");
        option.push(known_hosts);
        option.push("\"");
        arguments.extend(["-o".into(), option, "-o".into(), "GlobalKnownHostsFile=/dev/null".into()]);
    }
    arguments.extend(["--".into(), options.host.clone().into(), remote_line(options).into()]);
    arguments
}

/// The line for the remote login shell.
fn remote_line(options: &SshOptions) -> String {
    let filter = options.filter.as_deref().map_or("", str::trim);
    let snaplen = options.snaplen.to_string();
    let mut line = format!("exec sh -c {} taphouse {}", quote(SCRIPT), quote(filter));
    let tcpdump = ["-U", "-w", "-", "-i", &options.interface, "-s", &snaplen];
    for word in options.command_words().chain(tcpdump) {
        line.push(' ');
        line.push_str(&quote(word));
    }
    line
}

/// One word to any login shell. Within single quotes only a single quote means anything to the Bourne shells, but `!`
/// does to csh and a backslash to fish: all three are put outside, behind a backslash, where they agree.
fn quote(word: &str) -> String {
    let mut quoted = String::with_capacity(word.len() + 2);
    quoted.push('\'');
    for c in word.chars() {
        match c {
            '\'' | '!' | '\\' => quoted.extend(['\'', '\\', c, '\'']),
            _ => quoted.push(c),
        }
    }
    quoted.push('\'');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Read;
    use std::process::{Command, Stdio};

    fn texts(options: &SshOptions) -> Vec<String> {
        ssh_arguments(options).into_iter().map(|a| a.into_string().unwrap()).collect()
    }

    /// What a login shell makes of `line`: standard output, once the command has ended. `None`: no such shell here.
    fn run(shell: &str, line: &str, connection: &str) -> Option<String> {
        let mut words = shell.split(' ');
        let mut child = Command::new(words.next()?)
            .args(words)
            .args(["-c", line])
            .env("SSH_CONNECTION", connection)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        // Its end would be the order to stop.
        let stdin = child.stdin.take();
        let mut out = String::new();
        child.stdout.take()?.read_to_string(&mut out).unwrap();
        let status = child.wait().unwrap();
        drop(stdin);
        assert!(status.success(), "{shell}: {status}, {out}");
        Some(out)
    }

    fn printed(filter: Option<&str>) -> SshOptions {
        SshOptions {
            command: Some("printf <%s>".to_owned()),
            filter: filter.map(str::to_owned),
            ..SshOptions::new("h", "eth0")
        }
    }

    #[test]
    fn host_and_remote_line_come_behind_the_end_of_options() {
        let options = SshOptions {
            port: Some(2222),
            identity: Some("/k/id key".into()),
            known_hosts: Some("/k/known hosts".into()),
            config: Some("/k/config".into()),
            ..SshOptions::new("tap@sensor", "eth0")
        };
        let arguments = texts(&options);
        let (options, rest) = arguments.split_at(arguments.iter().position(|a| a == "--").unwrap());
        assert_eq!(rest[1], "tap@sensor");
        assert!(rest[2].starts_with("exec sh -c '") && rest.len() == 3);
        assert_eq!(options[..2], ["-F", "/k/config"]);
        for pair in [
            ["-p", "2222"],
            ["-i", "/k/id key"],
            ["-o", "BatchMode=yes"],
            ["-o", "StrictHostKeyChecking=yes"],
            ["-o", "IdentitiesOnly=yes"],
            ["-o", "UserKnownHostsFile=\"/k/known hosts\""],
            ["-o", "ConnectTimeout=10"],
        ] {
            assert!(options.windows(2).any(|two| two == pair), "{pair:?} in {options:?}");
        }
    }

    #[test]
    fn one_s_own_connection_is_excluded_and_the_filter_kept_together() {
        let tail = "<-U><-w><-><-i><eth0><-s><262144>";
        let own = "not (tcp and host 192.0.2.1 and port 50000 and host 192.0.2.9 and port 22)";
        let connection = "192.0.2.1 50000 192.0.2.9 22";
        for (filter, connection, expected) in [
            (None, "", tail.to_owned()),
            (None, connection, format!("{tail}<{own}>")),
            (Some("tcp or udp"), connection, format!("{tail}<{own} and (tcp or udp)>")),
            (Some(" udp "), "", format!("{tail}<(udp)>")),
            (Some("udp"), "UNKNOWN 65535 UNKNOWN 65535", format!("{tail}<(udp)>")),
            (
                None,
                "fe80::1%eth0 1 fe80::2%eth0 22",
                format!("{tail}<not (tcp and host fe80::1 and port 1 and host fe80::2 and port 22)>"),
            ),
        ] {
            let line = remote_line(&printed(filter));
            assert_eq!(run("sh", &line, connection).unwrap(), expected);
            // Other shells that are `sh` somewhere, as far as they are installed.
            for sh in ["dash", "bash --posix", "busybox sh", "ksh", "zsh --emulate sh"] {
                let line = line.replacen("exec sh ", &format!("exec {sh} "), 1);
                assert!(
                    run("sh", &format!("command -v {sh} >/dev/null || exit 0; {line}"), connection)
                        .is_some_and(|out| out == expected || out.is_empty()),
                    "{sh}"
                );
            }
        }
    }

    #[test]
    fn no_shell_interprets_a_filter() {
        let filter = r#"port 80 $(touch x) `id` "a" 'b' ''' \n \\ \' * ~ ; & | > y # z != 2 and !udp"#;
        for shell in ["sh", "bash", "dash", "zsh", "tcsh", "fish", "ksh"] {
            // Those that are installed; `sh` is.
            match run(shell, &remote_line(&printed(Some(filter))), "") {
                Some(out) => assert!(out.ends_with(&format!("<({filter})>")), "{shell}: {out}"),
                None => assert_ne!(shell, "sh"),
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_word_is_one_word(word in "[ -~äß]{0,40}") {
            let output = Command::new("sh").args(["-c", &format!("printf '<%s>' {}", quote(&word))]).output().unwrap();
            prop_assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("<{word}>"));
        }
    }

    #[test]
    fn the_end_of_the_command_is_the_end_of_the_script_and_its_status() {
        for (command, status) in [("false", 1), ("no-such-command-here", 127), ("/etc/passwd", 126)] {
            let options = SshOptions { command: Some(command.to_owned()), ..SshOptions::new("h", "eth0") };
            // Standard input stays open: the script must not wait for its end.
            let mut child = Command::new("sh")
                .args(["-c", &remote_line(&options)])
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let stdin = child.stdin.take();
            assert_eq!(child.wait().unwrap().code(), Some(status), "{command}");
            drop(stdin);
        }
    }
}
