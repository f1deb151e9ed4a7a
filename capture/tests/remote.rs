//! Remote taps against an `sshd` of the test's own on loopback. Needs OpenSSH's server and client and `tcpdump`; what
//! captures for real needs root, for a network namespace of its own.

mod support;

use capture::{
    BatchHandler, FileOptions, FileSource, Polled, RemoteFault, Source, SourceCounts, SourceError, SshOptions,
    SshSource, Undelivered, worker,
};
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};
use support::{Keep, Packet, PcapFile, TAP, noise};
use wire::{Frame, Nanos};

const SSHD: &str = "/usr/sbin/sshd";
const INSIDE: &str = "TAPHOUSE_TEST_NAMESPACE";
/// Longer than anything here takes on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(8);

/// Prints why a test cannot run; fails where that is not allowed.
fn skip(why: &str) {
    assert!(std::env::var_os("REQUIRE_XDP").is_none_or(|v| v != "1"), "REQUIRE_XDP=1, but: {why}");
    println!("SKIPPED: {why}");
}

fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// An SSH server with one host key and one user key, all in a folder of its own; gone on drop.
struct Server {
    folder: tempfile::TempDir,
    port: u16,
    user: String,
    sshd: Option<Child>,
}

impl Server {
    /// `None`, and the reason printed, where something is missing.
    fn start() -> Option<Server> {
        let mut server = Server::prepare()?;
        server.listen();
        Some(server)
    }

    /// All but the listener.
    fn prepare() -> Option<Server> {
        if !Path::new(SSHD).exists() {
            skip("no /usr/sbin/sshd: apt install openssh-server");
            return None;
        }
        for (program, argument) in [("ssh", "-V"), ("ssh-keygen", "-?"), ("tcpdump", "--version")] {
            if Command::new(program).arg(argument).output().is_err() {
                skip(&format!("no {program}: apt install openssh-client tcpdump"));
                return None;
            }
        }
        let user = output("id", &["-un"]).unwrap();
        if output("id", &["-u"]).unwrap() == "0" {
            // Where Debian's sshd confines what has not logged in yet; the service makes it at its start.
            fs::create_dir_all("/run/sshd").unwrap();
        }
        let folder = tempfile::Builder::new().prefix("taphouse-ssh-").tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let server = Server { folder, port, user, sshd: None };
        for key in ["host_key", "other_host_key", "user_key", "other_user_key"] {
            let path = server.path(key);
            output("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", path.to_str().unwrap()]).unwrap();
        }
        fs::copy(server.path("user_key.pub"), server.path("authorized_keys")).unwrap();
        server.know("known_hosts", "host_key.pub");
        let config = format!(
            "ListenAddress 127.0.0.1\nPort {port}\nHostKey {host_key}\nAuthorizedKeysFile {keys}\nPidFile none\n\
             UsePAM no\nStrictModes no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n\
             PermitRootLogin prohibit-password\n",
            host_key = server.path("host_key").display(),
            keys = server.path("authorized_keys").display(),
        );
        fs::write(server.path("sshd_config"), config).unwrap();
        Some(server)
    }

    fn listen(&mut self) {
        let mut sshd = Command::new(SSHD)
            .args(["-D", "-e", "-f"])
            .arg(self.path("sshd_config"))
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(sshd.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("Server listening") {
            line.clear();
            assert!(log.read_line(&mut line).unwrap() > 0, "sshd does not start: {:?}", sshd.wait());
        }
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        self.sshd = Some(sshd);
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Makes a known hosts file that says the server has this key.
    fn know(&self, file: &str, key: &str) {
        let key = fs::read_to_string(self.path(key)).unwrap();
        fs::write(self.path(file), format!("[127.0.0.1]:{} {key}", self.port)).unwrap();
    }

    fn options(&self, command: &str) -> SshOptions {
        SshOptions {
            port: Some(self.port),
            identity: Some(self.path("user_key")),
            known_hosts: Some(self.path("known_hosts")),
            config: Some("/dev/null".into()),
            command: Some(command.to_owned()),
            retry_min: Duration::from_millis(20),
            retry_max: Duration::from_millis(100),
            ..SshOptions::new(format!("{}@127.0.0.1", self.user), "lo")
        }
    }

    /// A command in place of `tcpdump`: writes `capture` out, then `at_end` is run when it is told to end.
    fn stub(&self, capture: &[u8], at_end: &str) -> String {
        let (script, file) = (self.path("stub"), self.path("stub.pcap"));
        fs::write(&file, capture).unwrap();
        let text = format!("trap '{at_end}; exit 0' TERM\ncat {}\nwhile :; do sleep 0.02; done\n", file.display());
        fs::write(&script, text).unwrap();
        format!("sh {}", script.display())
    }

    /// Sessions of the server.
    fn sessions(&self) -> Vec<u32> {
        self.sshd.as_ref().map_or(Vec::new(), |listener| children(listener.id()))
    }

    /// Waits until nothing runs any more that has to do with a tap: `ssh`, its helpers, sessions, remote commands.
    fn assert_nothing_left(&self) {
        let folder = self.folder.path().to_str().unwrap();
        let listener = self.sshd.as_ref().map_or(0, Child::id);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left: Vec<_> = processes()
                .into_iter()
                .filter(|(pid, parent, line)| *pid != listener && (line.contains(folder) || *parent == listener))
                .collect();
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "left behind: {left:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.sessions().into_iter().for_each(kill_session);
        if let Some(mut sshd) = self.sshd.take() {
            sshd.kill().unwrap();
            sshd.wait().unwrap();
        }
    }
}

fn kill(pid: u32) {
    // One that has just ended by itself is as good.
    let _ = Command::new("kill").args(["-KILL", &pid.to_string()]).stderr(Stdio::null()).status();
}

/// Ends a session, and the process that speaks for it on the network where the user is not root.
fn kill_session(session: u32) {
    let speakers = children(session);
    kill(session);
    for (pid, _, line) in processes() {
        if speakers.contains(&pid) && line.starts_with("sshd: ") {
            kill(pid);
        }
    }
}

fn children(of: u32) -> Vec<u32> {
    processes().into_iter().filter(|(_, parent, _)| *parent == of).map(|(pid, ..)| pid).collect()
}

/// Number, parent and command line of every process that is no zombie.
fn processes() -> Vec<(u32, u32, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else { continue };
        let (Ok(stat), Ok(line)) =
            (fs::read_to_string(entry.path().join("stat")), fs::read(entry.path().join("cmdline")))
        else {
            continue;
        };
        // The name in parentheses may hold anything; state and parent come behind it.
        let mut fields = stat.rsplit(')').next().unwrap().split_whitespace();
        let (state, parent) = (fields.next().unwrap(), fields.next().unwrap().parse().unwrap());
        if state != "Z" {
            found.push((pid, parent, String::from_utf8_lossy(&line).replace('\0', " ")));
        }
    }
    found
}

/// Remembers packets, faults and the clock.
#[derive(Default)]
struct Seen {
    keep: Keep,
    failures: Vec<String>,
    clocks: Vec<Nanos>,
}

impl BatchHandler for Seen {
    fn batch(&mut self, frames: &[Frame<'_>]) {
        self.keep.batch(frames);
    }
    fn idle(&mut self, now: Nanos) {
        self.clocks.push(now);
    }
    fn counted(&mut self, delta: &SourceCounts) {
        self.keep.counted(delta);
    }
    fn failed(&mut self, error: &SourceError) {
        self.failures.push(error.to_string());
    }
}

/// Polls until `enough`. No poll takes much longer than the 100 ms it may wait.
fn poll_until(source: &mut SshSource, seen: &mut Seen, enough: impl Fn(&SshSource, &Seen) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !enough(source, seen) {
        let began = Instant::now();
        assert_ne!(source.poll(seen).unwrap(), Polled::End);
        assert!(began.elapsed() < Duration::from_secs(2), "a poll took {:?}", began.elapsed());
        let (n, failures) = (seen.keep.packets.len(), &seen.failures);
        assert!(Instant::now() < deadline, "{n} packets, {failures:?}, {:?}", source.gaps());
    }
}

/// What a stopped worker does.
fn stop(source: &mut SshSource, seen: &mut Seen) {
    worker::run(source, seen, &AtomicBool::new(true)).unwrap();
    let counts = source.counts();
    assert_eq!(counts.delivered, seen.keep.packets.len() as u64);
    assert_eq!(counts.offered, counts.delivered + counts.undelivered(Undelivered::KernelDrop));
    assert_eq!(source.poll(seen).unwrap(), Polled::End);
    assert!(!source.view().is_connected());
}

fn refused(options: &SshOptions) -> (RemoteFault, String) {
    let began = Instant::now();
    match SshSource::open(options, TAP) {
        Err(error) => {
            assert!(began.elapsed() < PATIENCE, "{error} came after {:?}", began.elapsed());
            let message = error.to_string();
            let SourceError::Remote { reason, .. } = error else { panic!("{message}") };
            (*reason, message)
        }
        Ok(source) => panic!("opened, {:?}", source.gaps()),
    }
}

/// `n` UDP packets, to port 1000 and up.
fn capture_of(n: u16) -> Vec<u8> {
    let mut file = PcapFile::new(false, 0xa1b2_c3d4, 1);
    for i in 0..n {
        let payload = noise(u64::from(i), usize::from(i % 700));
        let mut data = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0];
        data.extend((28 + payload.len() as u16).to_be_bytes());
        data.extend([0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        for word in [5000, 1000 + i % 100, 8 + payload.len() as u16, 0] {
            data.extend(word.to_be_bytes());
        }
        data.extend(payload);
        file.record(1_700_000_000 + u32::from(i) / 10, u32::from(i), data.len() as u32, &data);
    }
    file.bytes
}

fn packets_of_file(path: &Path) -> Vec<Packet> {
    let mut source = FileSource::open(path, TAP, &FileOptions::default()).unwrap();
    let (keep, result) = support::drain(&mut source, 1_000_000);
    result.unwrap();
    keep.packets
}

#[test]
fn the_packets_are_those_of_reading_the_file() {
    let Some(server) = Server::start() else { return };
    let ours = server.path("ours.pcap");
    fs::write(&ours, capture_of(3000)).unwrap();
    let mut files = vec![ours];
    match std::env::var_os("TAPHOUSE_TESTDATA") {
        Some(folder) => {
            let names = ["http_many.pcap", "fmt_bigendian.pcap", "fmt_sll2.pcap", "dns_mixed_random.pcap"];
            files.extend(names.map(|name| Path::new(&folder).join("pcap").join(name)));
        }
        None => println!("SKIPPED: TAPHOUSE_TESTDATA is not set, only a capture of our own is read"),
    }
    for file in files {
        let expected = packets_of_file(&file);
        let options = SshOptions {
            retry_min: Duration::from_secs(60),
            retry_max: Duration::from_secs(60),
            ..server.options(&format!("tcpdump -r {}", file.display()))
        };
        let mut source = SshSource::open(&options, TAP).unwrap();
        assert!(source.name().starts_with("ssh:") && source.view().is_connected());
        let mut seen = Seen::default();
        poll_until(&mut source, &mut seen, |_, seen| !seen.failures.is_empty());
        assert_eq!(seen.keep.packets.len(), expected.len(), "{}", file.display());
        assert!(seen.keep.packets == expected, "{}", file.display());
        assert!(seen.failures[0].contains("ended with status 0"), "{:?}", seen.failures);
        let gaps = source.gaps();
        assert_eq!((gaps.count, gaps.reconnects, gaps.remote_kernel_drops), (1, 0, 0));
        stop(&mut source, &mut seen);
    }
    server.assert_nothing_left();
}

#[test]
fn host_and_user_are_checked() {
    let Some(server) = Server::start() else { return };
    let good = server.options(&server.stub(&capture_of(1), ":"));
    fs::write(server.path("empty"), "").unwrap();
    server.know("wrong", "other_host_key.pub");

    let (fault, message) = refused(&SshOptions { known_hosts: Some(server.path("empty")), ..good.clone() });
    assert!(matches!(fault, RemoteFault::HostKeyUnknown { .. }), "{message}");
    assert!(message.contains("connect once by hand") && message.contains("ssh-keyscan"), "{message}");
    let (fault, message) = refused(&SshOptions { known_hosts: Some(server.path("wrong")), ..good.clone() });
    assert!(matches!(fault, RemoteFault::HostKeyChanged { .. }), "{message}");
    let (fault, message) = refused(&SshOptions { identity: Some(server.path("other_user_key")), ..good.clone() });
    assert!(matches!(fault, RemoteFault::Login { .. }), "{message}");
    assert!(message.contains("refuses our key (publickey)"), "{message}");
    let nowhere = SshOptions { host: "no-such-host.invalid".to_owned(), ..good.clone() };
    match SshSource::open(&nowhere, TAP) {
        Err(error) => assert!(error.to_string().contains("there is no host 'no-such-host.invalid'"), "{error}"),
        // Without a resolver that is temporary.
        Ok(source) => assert_eq!(source.gaps().count, 1),
    }
    drop(SshSource::open(&good, TAP).unwrap());
    server.assert_nothing_left();
}

#[test]
fn what_the_remote_host_cannot_do_is_told_at_the_start() {
    let Some(server) = Server::start() else { return };
    let (fault, message) = refused(&server.options("/no/such/tcpdump -B 1"));
    assert!(matches!(fault, RemoteFault::CommandMissing { .. }), "{message}");
    assert!(message.contains("'/no/such/tcpdump -B 1'"), "{message}");
    let (fault, message) = refused(&server.options("echo Welcome to"));
    assert!(matches!(fault, RemoteFault::NotCapture { .. }) && message.contains("'Welc'"), "{message}");
    let (fault, message) = refused(&server.options("false"));
    assert!(matches!(fault, RemoteFault::Ended { status: 1, .. }), "{message}");
    let error = SshSource::open(&SshOptions { interface: "-w".into(), ..server.options("x") }, TAP).err().unwrap();
    assert!(matches!(error, SourceError::RemoteOption { field: "interface", .. }), "{error}");
    server.assert_nothing_left();
}

#[test]
fn a_filter_is_one_argument_whatever_is_in_it() {
    let Some(server) = Server::start() else { return };
    let file = server.path("ours.pcap");
    fs::write(&file, capture_of(1000)).unwrap();
    let command = format!("tcpdump -r {}", file.display());
    let trap = server.path("executed");
    for filter in ["$(touch X)", "`touch X`", "udp'; touch X; '", "udp\"; touch X; \"", "udp | touch X", "udp; touch X"]
    {
        let filter = filter.replace('X', trap.to_str().unwrap());
        let options = SshOptions { filter: Some(filter.clone()), ..server.options(&command) };
        let (fault, message) = refused(&options);
        assert!(matches!(fault, RemoteFault::Filter { .. }), "{message}");
        assert!(message.contains(&filter), "{message}");
        assert!(!trap.exists(), "{filter} was executed");
    }
    let filter = Some("udp dst port 1007 or (udp and dst port 1009)".to_owned());
    let retry = Duration::from_secs(60);
    let options = SshOptions { filter, retry_min: retry, retry_max: retry, ..server.options(&command) };
    let mut source = SshSource::open(&options, TAP).unwrap();
    let mut seen = Seen::default();
    poll_until(&mut source, &mut seen, |_, seen| !seen.failures.is_empty());
    assert_eq!(seen.keep.packets.len(), 20);
}

#[test]
fn a_lost_connection_is_one_gap_and_packets_go_on_after_it() {
    let Some(mut server) = Server::start() else { return };
    let mut source = SshSource::open(&server.options(&server.stub(&capture_of(500), ":")), TAP).unwrap();
    let view = source.view();
    let mut seen = Seen::default();
    poll_until(&mut source, &mut seen, |_, seen| seen.keep.packets.len() == 500);
    assert_eq!((source.gaps(), view.is_connected()), (Default::default(), true));

    // The listener first: a connection made again at once would leave nothing to look at.
    let mut listener = server.sshd.take().unwrap();
    let sessions = children(listener.id());
    assert_eq!(sessions.len(), 1, "{sessions:?}");
    listener.kill().unwrap();
    listener.wait().unwrap();
    let began = Instant::now();
    kill_session(sessions[0]);
    poll_until(&mut source, &mut seen, |_, seen| seen.failures.len() == 2);
    assert!(seen.failures[0].contains("was lost") && seen.failures[0].contains("500 packets"), "{:?}", seen.failures);
    assert!(seen.failures[1].contains("refuses the connection"), "{:?}", seen.failures);
    let gaps = view.gaps();
    assert_eq!((gaps.count, gaps.reconnects, view.is_connected()), (1, 0, false));
    for _ in 0..5 {
        source.poll(&mut seen).unwrap();
    }
    assert!(view.gaps().total > gaps.total, "a gap grows while it lasts");
    assert_eq!(seen.failures.len(), 2, "each reason once: {:?}", seen.failures);

    server.listen();
    poll_until(&mut source, &mut seen, |_, seen| seen.keep.packets.len() == 1000);
    let took = began.elapsed();
    let gaps = source.gaps();
    assert_eq!((gaps.count, gaps.reconnects, view.is_connected()), (1, 1, true));
    assert!(gaps.total > Duration::ZERO && gaps.total <= took, "{gaps:?} within {took:?}");
    assert_eq!(seen.keep.packets[..500], seen.keep.packets[500..]);
    stop(&mut source, &mut seen);
    assert_eq!(source.gaps(), gaps, "a stop is no gap");
    server.assert_nothing_left();
}

#[test]
fn a_host_that_is_down_is_waited_for() {
    let Some(mut server) = Server::prepare() else { return };
    let mut source = SshSource::open(&server.options(&server.stub(&capture_of(10), ":")), TAP).unwrap();
    assert!(!source.view().is_connected());
    let mut seen = Seen::default();
    poll_until(&mut source, &mut seen, |_, seen| !seen.failures.is_empty());
    assert!(seen.failures[0].contains("refuses the connection: is sshd running"), "{:?}", seen.failures);
    server.listen();
    poll_until(&mut source, &mut seen, |_, seen| seen.keep.packets.len() == 10);
    assert_eq!((source.gaps().count, source.gaps().reconnects, seen.failures.len()), (1, 1, 1));
    stop(&mut source, &mut seen);
    server.assert_nothing_left();
}

#[test]
fn a_stop_ends_the_remote_command_in_order_and_counts_its_drops() {
    let Some(server) = Server::start() else { return };
    let rest = server.path("rest");
    let whole = capture_of(700);
    let records = &whole[24..];
    fs::write(&rest, records).unwrap();
    let at_end = format!("cat {}; echo \"9 packets dropped by kernel\" >&2", rest.display());
    let mut source = SshSource::open(&server.options(&server.stub(&whole, &at_end)), TAP).unwrap();
    let mut seen = Seen::default();
    poll_until(&mut source, &mut seen, |_, seen| seen.keep.packets.len() == 700);
    let began = Instant::now();
    stop(&mut source, &mut seen);
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert_eq!(seen.keep.packets.len(), 1400, "what was on its way is delivered");
    assert_eq!(source.counts().undelivered(Undelivered::KernelDrop), 9);
    let told = seen.keep.counts;
    assert_eq!(
        (told.offered, told.delivered, told.undelivered(Undelivered::KernelDrop)),
        (709, 700, 9),
        "the handler was told of the end"
    );
    assert_eq!(source.gaps().remote_kernel_drops, 9);
    assert!(seen.failures.is_empty(), "{:?}", seen.failures);
    server.assert_nothing_left();
}

#[test]
fn a_command_that_will_not_end_holds_nothing_up() {
    let Some(server) = Server::start() else { return };
    // Told to end, it goes on.
    let mut source = SshSource::open(&server.options(&server.stub(&capture_of(5), "cat; sleep 3")), TAP).unwrap();
    let mut seen = Seen::default();
    poll_until(&mut source, &mut seen, |_, seen| seen.keep.packets.len() == 5);
    let began = Instant::now();
    stop(&mut source, &mut seen);
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert!(seen.failures[0].contains("did not end when told to"), "{:?}", seen.failures);
    server.assert_nothing_left();
}

#[test]
fn a_drop_leaves_no_process_behind_jump_hosts_included() {
    let Some(server) = Server::start() else { return };
    let command = server.stub(&capture_of(5), ":");
    drop(SshSource::open(&server.options(&command), TAP).unwrap());
    server.assert_nothing_left();

    let config = format!(
        "Host tap jump\nHostName 127.0.0.1\nPort {}\nUser {}\nIdentityFile {}\nIdentitiesOnly yes\n\
         UserKnownHostsFile {}\nHost tap\nProxyJump jump\n",
        server.port,
        server.user,
        server.path("user_key").display(),
        server.path("known_hosts").display(),
    );
    fs::write(server.path("config"), config).unwrap();
    let options =
        SshOptions { config: Some(server.path("config")), command: Some(command), ..SshOptions::new("tap", "lo") };
    let source = SshSource::open(&options, TAP).unwrap();
    assert_eq!(server.sessions().len(), 2, "one is the jump host's");
    drop(source);
    server.assert_nothing_left();
}

#[test]
fn idle_time_is_the_remote_clock_and_never_ahead_of_it() {
    let Some(server) = Server::start() else { return };
    let mut source = SshSource::open(&server.options(&server.stub(&capture_of(0), ":")), TAP).unwrap();
    let mut seen = Seen::default();
    for _ in 0..3 {
        source.poll(&mut seen).unwrap();
    }
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos() as u64;
    let last = seen.clocks.last().unwrap().0;
    assert!(last <= now && last > now - 12_000_000_000, "{last} at {now}");
    assert!(seen.clocks.is_sorted());

    // A clock that is years behind, as the packets show.
    let mut source = SshSource::open(&server.options(&server.stub(&capture_of(5), ":")), TAP).unwrap();
    let mut seen = Seen::default();
    poll_until(&mut source, &mut seen, |_, seen| seen.keep.packets.len() == 5 && seen.clocks.len() > 1);
    let (last, latest) = (seen.clocks.last().unwrap().0, seen.keep.packets.last().unwrap().ts);
    assert!(last >= latest && last < latest + 10_000_000_000, "{last} after {latest}");
}

/// True inside a network namespace. Outside it runs the test `name` there, and returns false when that has passed.
fn in_namespace(name: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        // Nobody but the test speaks: no neighbour discovery, no router solicitation.
        for which in ["default", "all"] {
            fs::write(format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6"), "1").unwrap();
        }
        ip("link set lo up");
        return true;
    }
    // Not a user namespace: sshd has to change to users that would not be in it.
    if output("unshare", &["-n", "ip", "link", "show", "lo"]).is_none() {
        skip("a network namespace with sshd in it needs root, util-linux and iproute2");
        return false;
    }
    let status = Command::new("unshare")
        .arg("-n")
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .status()
        .unwrap();
    assert!(status.success(), "{name} failed in its namespace");
    false
}

fn ip(arguments: &str) {
    assert!(Command::new("ip").args(arguments.split(' ')).status().unwrap().success(), "ip {arguments}");
}

#[test]
fn a_real_capture_is_exact_and_leaves_out_its_own_connection() {
    if !in_namespace("a_real_capture_is_exact_and_leaves_out_its_own_connection") {
        return;
    }
    let Some(server) = Server::start() else { return };
    // Without a filter, on the interface that carries the stream.
    let mut source = SshSource::open(&server.options("tcpdump"), TAP).unwrap();
    let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut seen = Seen::default();
    let before = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_micros() as u64 * 1000;
    for round in 1..=2 {
        for i in 0..500_u64 {
            sender.send_to(&noise(i, 10 + i as usize), receiver.local_addr().unwrap()).unwrap();
        }
        poll_until(&mut source, &mut seen, |_, seen| seen.keep.packets.len() == round * 500);
    }
    for _ in 0..5 {
        assert_eq!(source.poll(&mut seen).unwrap(), Polled::Idle, "and nothing else");
    }
    for (i, packet) in seen.keep.packets.iter().enumerate() {
        assert_eq!(packet.data[42..], noise(i as u64 % 500, 10 + i % 500));
        assert!(packet.ts >= before);
    }
    stop(&mut source, &mut seen);
    assert_eq!((seen.keep.packets.len(), source.counts().undelivered(Undelivered::KernelDrop)), (1000, 0));
    assert!(seen.failures.is_empty(), "{:?}", seen.failures);

    let (fault, message) = refused(&SshOptions { interface: "no-such0".to_owned(), ..server.options("tcpdump") });
    assert!(matches!(fault, RemoteFault::NoInterface { .. }), "{message}");
    let (fault, message) = refused(&server.options("setpriv --reuid 65534 --clear-groups tcpdump"));
    assert!(matches!(fault, RemoteFault::CapturePermission { .. }), "{message}");
    assert!(message.contains("setcap"), "{message}");
    server.assert_nothing_left();
}

#[test]
fn what_the_remote_kernel_drops_is_counted_to_the_packet() {
    if !in_namespace("what_the_remote_kernel_drops_is_counted_to_the_packet") {
        return;
    }
    let Some(server) = Server::start() else { return };
    // What goes to a neighbour behind veth-a comes in at veth-b, where nobody answers. Not loopback: there the kernel
    // counts each packet twice, out and in, of which tcpdump shows one.
    ip("link add veth-a type veth peer name veth-b");
    ip("link set veth-b up");
    ip("link set veth-a up");
    // A link that just came up swallows packets until the kernel has activated its queue.
    while !output("ip", &["link", "show", "veth-a"]).unwrap().contains("state UP") {}
    ip("address add 10.9.0.1/24 dev veth-a");
    ip("neighbour add 10.9.0.2 lladdr 02:00:00:00:00:02 dev veth-a");
    let sender = UdpSocket::bind("10.9.0.1:0").unwrap();
    let send = |payload: &[u8]| sender.send_to(payload, "10.9.0.2:9").unwrap();
    let options = SshOptions { interface: "veth-b".to_owned(), ..server.options("tcpdump -B 256") };
    let mut source = SshSource::open(&options, TAP).unwrap();
    let mut seen = Seen::default();
    // A small ring, and nobody who reads: pipes, the connection and the ring fill up.
    for _ in 0..20_000 {
        send(&[7; 1400]);
    }
    // The packets come in order: when the last has come, so have all that were not dropped.
    let mut sent = 20_000;
    let deadline = Instant::now() + PATIENCE;
    poll_until(&mut source, &mut seen, |_, seen| !seen.keep.packets.is_empty());
    while seen.keep.packets.last().is_none_or(|packet| packet.data.len() > 1000) {
        send(b"last");
        sent += 1;
        source.poll(&mut seen).unwrap();
        assert!(Instant::now() < deadline);
    }
    // Asked for while the capture runs, not at its end only.
    poll_until(&mut source, &mut seen, |source, _| source.gaps().remote_kernel_drops > 0);
    for _ in 0..15 {
        source.poll(&mut seen).unwrap();
    }
    stop(&mut source, &mut seen);
    let counts = source.counts();
    assert!(counts.undelivered(Undelivered::KernelDrop) > 1000, "{counts:?}");
    assert_eq!(counts.offered, sent, "{counts:?}");
}

#[test]
fn a_worker_can_be_stopped_at_any_time() {
    let Some(server) = Server::start() else { return };
    let stop = AtomicBool::new(false);
    let mut source = SshSource::open(&server.options(&server.stub(&capture_of(100), ":")), TAP).unwrap();
    let mut seen = Seen::default();
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| worker::run(&mut source, &mut seen, &stop));
        server.sessions().into_iter().for_each(kill_session);
        stop.store(true, Ordering::Relaxed);
        worker.join().unwrap().unwrap();
    });
    assert_eq!(seen.keep.packets.len() as u64, source.counts().delivered);
    drop(source);
    server.assert_nothing_left();
}
