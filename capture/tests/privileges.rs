//! Dropping privileges, for real. Credentials belong to processes and cannot be had back, so each test runs scenes of
//! this file in processes of their own. A scene needs a process of one thread, which the usual test harness has not:
//! this binary is its own (`harness = false`), with the names, filters and exit codes of the usual one.
//!
//! Most tests need root, and `setpriv` and `unshare` (util-linux).

#[path = "support/kernel.rs"]
mod kernel;

use capture::privileges::{self, Capabilities, Capability, Opener, OpenerError, PrivilegeError, User};
use std::collections::HashMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::mpsc::channel;
use std::{env, fs, io, panic, thread};

/// Tells a process which scene it is to play.
const SCENE: &str = "TAPHOUSE_TEST_SCENE";
/// Tells it where it may write, and where the programs of `Stage` are.
const STAGE: &str = "TAPHOUSE_TEST_STAGE";
const NOBODY: u32 = 65534;
const EPERM: Option<i32> = Some(libc::EPERM);
const CAPTURE: [Capability; 3] = [Capability::NetRaw, Capability::NetAdmin, Capability::Bpf];

/// What a test came to.
enum Outcome {
    Passed,
    Skipped(String),
}

type Test = (&'static str, fn() -> Outcome);
type Scene = (&'static str, fn());

const TESTS: &[Test] = &[
    ("a_user_and_an_opener", || as_root("user_and_opener")),
    ("an_opener_that_gives_up", || as_root("opener_gives_up")),
    ("exec_gains_nothing", exec_gains_nothing),
    ("root_without_a_user", || as_root("root_without_user")),
    ("other_threads_are_refused", || as_root("other_threads")),
    ("a_service_with_ambient_capabilities", || as_service("ambient_with_opener")),
    ("a_service_without_an_opener", || as_service("ambient_alone")),
    ("no_privileges_at_all", || as_nobody("unprivileged")),
    ("root_of_a_user_namespace", root_of_a_user_namespace),
    ("memlock_is_raised_to_the_hard_limit", memlock_is_raised_to_the_hard_limit),
    ("what_works_without_privileges", what_works_without_privileges),
];

const SCENES: &[Scene] = &[
    ("user_and_opener", user_and_opener),
    ("opener_gives_up", opener_gives_up),
    ("exec", exec),
    ("report", report),
    ("root_without_user", root_without_user),
    ("other_threads", other_threads),
    ("ambient_with_opener", ambient_with_opener),
    ("ambient_alone", ambient_alone),
    ("unprivileged", unprivileged),
    ("namespace_root", namespace_root),
    ("memlock", memlock),
    ("descriptors", descriptors),
];

fn main() -> ExitCode {
    if let Ok(name) = env::var(SCENE) {
        let (_, scene) = SCENES.iter().find(|(n, _)| *n == name).expect("a scene of that name");
        scene();
        return ExitCode::SUCCESS;
    }
    let arguments: Vec<String> = env::args().skip(1).collect();
    let exact = arguments.iter().any(|a| a == "--exact");
    let filters: Vec<&String> = arguments.iter().filter(|a| !a.starts_with('-')).collect();
    let chosen = |name: &str| {
        filters.is_empty() || filters.iter().any(|f| if exact { *f == name } else { name.contains(f.as_str()) })
    };
    let ignored = arguments.iter().any(|a| a == "--ignored");
    let tests: Vec<&Test> = TESTS.iter().filter(|(name, _)| chosen(name) && !ignored).collect();
    if arguments.iter().any(|a| a == "--list") {
        tests.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    run(&tests)
}

fn run(tests: &[&Test]) -> ExitCode {
    let required = env::var("REQUIRE_XDP").is_ok_and(|v| v == "1");
    println!("\nrunning {} tests", tests.len());
    let mut failed = 0;
    for (name, test) in tests {
        let result = match panic::catch_unwind(test) {
            Ok(Outcome::Passed) => "ok".to_owned(),
            Ok(Outcome::Skipped(why)) if !required => format!("ok (SKIPPED: {why})"),
            Ok(Outcome::Skipped(why)) => format!("FAILED: REQUIRE_XDP=1, but {why}"),
            Err(_) => "FAILED".to_owned(),
        };
        failed += usize::from(result.starts_with("FAILED"));
        println!("test {name} ... {result}");
    }
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    println!("\ntest result: {verdict}. {} passed; {failed} failed\n", tests.len() - failed);
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::from(101) }
}

// How a scene is started.

/// A folder that everybody may enter and write, with a copy of this binary in it: a scene's user may not be able to
/// reach the folder of the build.
struct Stage(tempfile::TempDir);

impl Stage {
    fn new() -> Stage {
        let stage = Stage(tempfile::tempdir().unwrap());
        fs::set_permissions(stage.path(), fs::Permissions::from_mode(0o1777)).unwrap();
        stage.program("plain", 0o755);
        stage
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn program(&self, name: &str, mode: u32) -> PathBuf {
        let path = self.path().join(name);
        fs::copy(env::current_exe().unwrap(), &path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    /// Plays `scene` in a process that `wrapper` starts.
    fn play(&self, wrapper: &[&str], scene: &str) -> Outcome {
        let plain = self.path().join("plain");
        let mut command = match wrapper {
            [] => Command::new(plain),
            [program, arguments @ ..] => {
                let mut command = Command::new(program);
                command.args(arguments).arg(plain);
                command
            }
        };
        let status = command.env(SCENE, scene).env(STAGE, self.path()).status().unwrap();
        assert!(status.success(), "{scene} failed ({status}), see above");
        Outcome::Passed
    }
}

/// Why this process cannot become others, if it cannot.
fn no_root() -> Option<String> {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap();
    let effective = u64::from_str_radix(field(&status, "CapEff"), 16).unwrap();
    let missing = [(6, "SETGID"), (7, "SETUID"), (8, "SETPCAP"), (12, "NET_ADMIN"), (13, "NET_RAW"), (39, "BPF")]
        .into_iter()
        .find(|(bit, _)| effective >> bit & 1 == 0)?;
    Some(format!("root with CAP_{} is needed", missing.1))
}

/// Why a program cannot be run, if it cannot.
fn no_program(program: &str, arguments: &[&str]) -> Option<String> {
    match Command::new(program).args(arguments).output() {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim())),
        Err(e) => Some(format!("{program}: {e}")),
    }
}

fn as_root(scene: &str) -> Outcome {
    match no_root() {
        Some(why) => Outcome::Skipped(why),
        None => Stage::new().play(&[], scene),
    }
}

/// What systemd does for `User=` with `AmbientCapabilities=`.
fn as_service(scene: &str) -> Outcome {
    let capabilities = "+net_raw,+net_admin,+bpf";
    let wrapper = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "--inh-caps",
        capabilities,
        "--ambient-caps",
        capabilities,
    ];
    if let Some(why) = no_root().or_else(|| no_program(wrapper[0], &[&wrapper[1..], &["true"]].concat())) {
        return Outcome::Skipped(why);
    }
    Stage::new().play(&wrapper, scene)
}

/// Without any privilege: as this process runs, or as nobody if it is root.
fn as_nobody(scene: &str) -> Outcome {
    let stage = Stage::new();
    let mut command = Command::new(stage.path().join("plain"));
    if no_root().is_none() {
        command.uid(NOBODY).gid(NOBODY);
    } else if effective().bits() != 0 {
        return Outcome::Skipped("this process has some capabilities, but cannot give them away".to_owned());
    }
    assert!(command.env(SCENE, scene).env(STAGE, stage.path()).status().unwrap().success(), "see above");
    Outcome::Passed
}

// What a scene looks at.

fn stage() -> PathBuf {
    PathBuf::from(env::var_os(STAGE).unwrap())
}

fn nobody() -> User {
    User::lookup("nobody").unwrap()
}

fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let line = status.lines().find(|line| line.split(':').next() == Some(name)).unwrap_or_else(|| panic!("{status}"));
    line[name.len() + 1..].trim()
}

fn effective() -> Capabilities {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap();
    Capabilities::from_bits(u64::from_str_radix(field(&status, "CapEff"), 16).unwrap())
}

/// What /proc says of each thread, by its name.
fn threads() -> HashMap<String, String> {
    let statuses = fs::read_dir("/proc/self/task").unwrap().map(|e| e.unwrap().path().join("status"));
    let statuses = statuses.map(|path| fs::read_to_string(path).unwrap());
    statuses.map(|status| (field(&status, "Name").to_owned(), status)).collect()
}

/// Asserts the credentials of one thread.
fn assert_thread(status: &str, uid: u32, holds: Capabilities) {
    let uids = [uid.to_string(), uid.to_string(), uid.to_string(), uid.to_string()].join("\t");
    assert_eq!(field(status, "Uid"), uids, "{status}");
    for set in ["CapPrm", "CapEff"] {
        assert_eq!(field(status, set), format!("{:016x}", holds.bits()), "{set} of {status}");
    }
    for set in ["CapInh", "CapAmb"] {
        assert_eq!(field(status, set), "0000000000000000", "{set} of {status}");
    }
    assert_eq!(field(status, "NoNewPrivs"), "1", "{status}");
}

/// Asserts the credentials of all threads: main, the opener, and one that is started now.
fn assert_threads(uid: u32, opener: Option<Capabilities>) {
    let (ready, started) = channel::<()>();
    let (go, stop) = channel::<()>();
    let later = thread::Builder::new().name("later".to_owned());
    let later = later.spawn(move || {
        ready.send(()).unwrap();
        stop.recv().unwrap_err();
        assert_eq!(kernel::open(libc::AF_PACKET).unwrap_err().raw_os_error(), EPERM);
        assert_eq!(kernel::open(libc::AF_XDP).unwrap_err().raw_os_error(), EPERM);
    });
    started.recv().unwrap();
    let threads = threads();
    assert_eq!(threads.len(), 2 + usize::from(opener.is_some()), "{:?}", threads.keys());
    for (name, status) in &threads {
        let holds = if name == "opener" { opener.unwrap() } else { Capabilities::EMPTY };
        assert_thread(status, uid, holds);
    }
    drop(go);
    later.unwrap().join().unwrap();
}

/// Asserts that the calling thread can open no socket that captures, load no program, and become nobody else.
fn assert_powerless() {
    assert_eq!(kernel::open(libc::AF_PACKET).unwrap_err().raw_os_error(), EPERM);
    assert_eq!(kernel::open(libc::AF_XDP).unwrap_err().raw_os_error(), EPERM);
    assert_eq!(kernel::load_program().unwrap_err().raw_os_error(), EPERM);
    // EINVAL in a namespace without a user 1.
    kernel::set_own_uid(1).unwrap_err();
}

/// Asserts that the opener can open interfaces, and nothing else.
fn assert_opener(opener: &Opener) {
    drop(opener.run(|| kernel::open(libc::AF_PACKET)).unwrap().unwrap());
    drop(opener.run(|| kernel::open(libc::AF_XDP)).unwrap().unwrap());
    drop(opener.run(kernel::load_program).unwrap().unwrap());
    drop(opener.run(kernel::create_map).unwrap().unwrap());
    assert_eq!(opener.run(|| kernel::set_own_uid(1)).unwrap().unwrap_err().raw_os_error(), EPERM);
    assert_eq!(
        opener.run(|| panic!("a panic that is meant")).unwrap_err(),
        OpenerError::Panicked { message: "a panic that is meant".to_owned() }
    );
    drop(opener.run(|| kernel::open(libc::AF_PACKET)).unwrap().unwrap());
}

/// What a program started from the calling thread has: effective user id and permitted capabilities.
fn started(program: &Path) -> io::Result<(u32, u64)> {
    let output = Command::new(program).env(SCENE, "report").output()?;
    let text = String::from_utf8(output.stdout).unwrap();
    let uid = field(&text, "Uid").split_whitespace().nth(1).unwrap().parse().unwrap();
    Ok((uid, u64::from_str_radix(field(&text, "CapPrm"), 16).unwrap()))
}

// Tests and their scenes.

fn user_and_opener() {
    privileges::check(&CAPTURE).unwrap();
    let (before, shadow) = (effective(), Path::new("/etc/shadow"));
    assert!(fs::read(shadow).is_ok() || !shadow.exists(), "root reads everything");
    let opener = Opener::spawn(true).unwrap();
    let opened_before = opener.run(|| kernel::open(libc::AF_PACKET)).unwrap().unwrap();

    let dropped = opener.drop_to(Some(&nobody())).unwrap();
    assert_eq!((dropped.uid, dropped.kept, dropped.before), (NOBODY, Capabilities::REOPEN, before));
    assert!(dropped.bounding_cleared && !dropped.is_root());
    assert_eq!(
        dropped.to_string(),
        "now user nobody (uid 65534) with no capabilities; the opener thread keeps CAP_NET_ADMIN, CAP_NET_RAW, \
         CAP_IPC_LOCK, CAP_BPF"
    );

    assert_threads(NOBODY, Some(Capabilities::REOPEN));
    for status in threads().values() {
        assert_eq!(field(status, "CapBnd"), "0000000000000000");
        assert_eq!(field(status, "Groups"), "65534");
    }
    assert_powerless();
    assert_opener(&opener);
    let error = privileges::check(&CAPTURE).unwrap_err();
    assert!(error.to_string().contains("CAP_BPF must first be allowed where it is started"), "{error}");
    assert!(error.to_string().contains("no_new_privs is set"), "{error}");
    assert_eq!(opener.run(|| kernel::set_own_uid(0)).unwrap().unwrap_err().raw_os_error(), EPERM);
    assert_eq!(kernel::set_own_uid(0).unwrap_err().raw_os_error(), EPERM);
    drop(opened_before);

    // Files: written as nobody, those of root out of reach, for the opener too.
    let write = |name| fs::write(stage().join(name), "x").unwrap();
    write("by main");
    opener.run(move || write("by opener")).unwrap();
    for name in ["by main", "by opener"] {
        let file = fs::metadata(stage().join(name)).unwrap();
        assert_eq!((file.uid(), file.gid()), (NOBODY, NOBODY), "{name}");
    }
    if shadow.exists() {
        assert_eq!(fs::read(shadow).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        assert_eq!(opener.run(move || fs::read(shadow)).unwrap().unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    }

    // Others of this account may not attach: /proc/PID/environ is root's.
    assert_eq!(fs::metadata("/proc/self/environ").unwrap().uid(), 0);

    // Again: nothing is left to drop, and nothing comes back.
    let again = opener.drop_to(Some(&nobody())).unwrap();
    assert_eq!((again.user, again.before, again.kept), (None, Capabilities::EMPTY, Capabilities::REOPEN));
    assert_threads(NOBODY, Some(Capabilities::REOPEN));
}

fn opener_gives_up() {
    let opener = Opener::spawn(false).unwrap();
    drop(opener.run(|| kernel::open(libc::AF_PACKET)).unwrap().unwrap());
    let dropped = opener.drop_to(Some(&nobody())).unwrap();
    assert_eq!((dropped.uid, dropped.kept), (NOBODY, Capabilities::EMPTY));
    assert_eq!(dropped.to_string(), "now user nobody (uid 65534) with no capabilities");
    assert_threads(NOBODY, Some(Capabilities::EMPTY));
    assert_powerless();
    let error = opener.run(|| kernel::open(libc::AF_PACKET)).unwrap_err();
    assert_eq!(error, OpenerError::GaveUp);
    assert!(error.to_string().contains("restart"), "{error}");
    drop(opener);
    privileges::drop_to(Some(&nobody())).unwrap();
    assert_threads(NOBODY, None);
}

/// Programs that give root, or capabilities, to whoever starts them.
fn exec_gains_nothing() -> Outcome {
    if let Some(why) = no_root() {
        return Outcome::Skipped(why);
    }
    let stage = Stage::new();
    let set_uid = stage.program("set_uid", 0o4755);
    let with_capability = stage.program("with_capability", 0o755);
    let path = with_capability.to_str().unwrap();
    if let Some(why) = no_program("setcap", &["cap_net_raw+ep", path]) {
        return Outcome::Skipped(why);
    }
    // Without no_new_privs both work, or the scene shows nothing.
    let as_nobody = |program: &Path| {
        let mut command = Command::new(program);
        command.uid(NOBODY).gid(NOBODY).env(SCENE, "report");
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    };
    let uids = as_nobody(&set_uid);
    if field(&uids, "Uid").split_whitespace().nth(1) != Some("0") {
        return Outcome::Skipped(format!("{} is mounted nosuid", stage.path().display()));
    }
    assert_eq!(field(&as_nobody(&with_capability), "CapPrm"), "0000000000002000");
    stage.play(&[], "exec")
}

fn exec() {
    let opener = Opener::spawn(true).unwrap();
    opener.drop_to(Some(&nobody())).unwrap();
    for name in ["set_uid", "plain"] {
        let program = stage().join(name);
        assert_eq!(started(&program).unwrap(), (NOBODY, 0), "{name}");
        assert_eq!(opener.run(move || started(&program)).unwrap().unwrap(), (NOBODY, 0), "{name} from the opener");
    }
    // Outside the bounding set, the kernel does not start such a program at all.
    let program = stage().join("with_capability");
    assert_eq!(started(&program).unwrap_err().raw_os_error(), EPERM);
    assert_eq!(opener.run(move || started(&program)).unwrap().unwrap_err().raw_os_error(), EPERM);
}

fn report() {
    print!("{}", fs::read_to_string("/proc/self/status").unwrap());
}

fn root_without_user() {
    assert_ne!(started(&stage().join("plain")).unwrap().1, 0, "root gets capabilities by starting anything");
    let dropped = privileges::drop_to(None).unwrap();
    assert!(dropped.is_root() && dropped.user.is_none() && dropped.kept.is_empty());
    assert!(dropped.to_string().contains("name a user to become"), "{dropped}");
    assert_threads(0, None);
    assert_powerless();
    assert_eq!(started(&stage().join("plain")).unwrap(), (0, 0));
}

fn other_threads() {
    let before = effective();
    let opener = Opener::spawn(true).unwrap();
    let (go, stop) = channel::<()>();
    let other = thread::Builder::new().name("too early".to_owned()).spawn(move || stop.recv()).unwrap();
    for result in [privileges::drop_to(Some(&nobody())), opener.drop_to(Some(&nobody()))] {
        let error = result.unwrap_err();
        assert!(matches!(error, PrivilegeError::OtherThreads { .. }), "{error}");
        assert!(error.to_string().contains("too early ("), "{error}");
    }
    assert_eq!(effective(), before, "nothing has changed");
    let status = fs::read_to_string("/proc/thread-self/status").unwrap();
    assert_eq!((field(&status, "Uid"), field(&status, "NoNewPrivs")), ("0\t0\t0\t0", "0"));
    assert_eq!(opener.run(|| ()).unwrap_err(), OpenerError::GaveUp, "after a failed drop nothing is opened");

    // A thread that was joined is no obstacle, even if the kernel lists it for a moment longer.
    drop(go);
    other.join().unwrap().unwrap_err();
    drop(opener);
    let dropped = privileges::drop_to(Some(&nobody())).unwrap();
    assert_eq!(dropped.before, before);
    assert_threads(NOBODY, None);
}

fn ambient_with_opener() {
    privileges::check(&[&CAPTURE[..], &[Capability::IpcLock]].concat()).unwrap();
    let error = User::lookup("root").and_then(|root| privileges::drop_to(Some(&root))).unwrap_err();
    assert!(error.to_string().starts_with("cannot become user 'root' (setgroups: "), "{error}");

    assert_ne!(started(&stage().join("plain")).unwrap().1, 0, "ambient capabilities are inherited");
    let opener = Opener::spawn(true).unwrap();
    // The user that it is already is none to become.
    let dropped = opener.drop_to(Some(&nobody())).unwrap();
    assert_eq!((dropped.uid, &dropped.user, dropped.kept), (NOBODY, &None, Capabilities::CAPTURE));
    assert!(!dropped.bounding_cleared, "that takes CAP_SETPCAP");
    assert_threads(NOBODY, Some(Capabilities::CAPTURE));
    assert_powerless();
    assert_opener(&opener);
    let program = stage().join("plain");
    assert_eq!(started(&program).unwrap(), (NOBODY, 0));
    assert_eq!(opener.run(move || started(&program)).unwrap().unwrap(), (NOBODY, 0));
    assert_eq!(fs::metadata("/proc/self/environ").unwrap().uid(), 0, "not dumpable");
}

fn ambient_alone() {
    drop(kernel::open(libc::AF_XDP).unwrap());
    let dropped = privileges::drop_to(None).unwrap();
    assert_eq!((dropped.uid, dropped.before, dropped.kept), (NOBODY, Capabilities::CAPTURE, Capabilities::EMPTY));
    assert_eq!(dropped.to_string(), "still uid 65534, with no capabilities");
    assert_threads(NOBODY, None);
    assert_powerless();
    assert_eq!(fs::metadata("/proc/self/environ").unwrap().uid(), NOBODY, "nothing to protect");
}

fn unprivileged() {
    privileges::check(&[]).unwrap();
    privileges::check(&[Capability::IpcLock]).unwrap();
    let PrivilegeError::Missing(missing) =
        privileges::check(&[&CAPTURE[..], &[Capability::IpcLock]].concat()).unwrap_err()
    else {
        panic!("not missing")
    };
    assert_eq!((&missing.missing[..], &missing.needed[..]), (&CAPTURE[..], &CAPTURE[..]));
    let text = missing.to_string();
    for part in [
        "this process lacks CAP_NET_RAW (open packet and XDP sockets), CAP_NET_ADMIN (attach XDP programs), CAP_BPF (load",
        "'sudo setcap cap_net_raw,cap_net_admin,cap_bpf+ep /",
        "'AmbientCapabilities=CAP_NET_RAW CAP_NET_ADMIN CAP_BPF'",
        "RLIMIT_MEMLOCK limits the memory",
    ] {
        assert!(text.contains(part), "{text}");
    }
    let error = privileges::check(&[Capability::NetAdmin]).unwrap_err().to_string();
    assert!(error.contains("CAP_NET_ADMIN") && !error.contains("CAP_NET_RAW"), "{error}");

    // With nothing to keep, an opener is as good as any thread.
    let opener = Opener::spawn(true).unwrap();
    let dropped = opener.drop_to(None).unwrap();
    assert_eq!((dropped.before, dropped.kept), (Capabilities::EMPTY, Capabilities::EMPTY));
    assert_threads(dropped.uid, Some(Capabilities::EMPTY));
    let open = opener.run(|| kernel::open(libc::AF_PACKET)).unwrap();
    assert_eq!(open.unwrap_err().raw_os_error(), EPERM);
    let root = User::lookup("root").unwrap();
    let error = privileges::drop_to(Some(&root)).unwrap_err();
    assert!(matches!(error, PrivilegeError::OtherThreads { .. }), "{error}");
    drop(opener);
    let error = privileges::drop_to(Some(&root)).unwrap_err();
    assert!(matches!(error, PrivilegeError::Become { call: "setgroups", .. }), "{error}");
}

fn root_of_a_user_namespace() -> Outcome {
    match no_program("unshare", &["-Urn", "true"]) {
        Some(why) => Outcome::Skipped(why),
        None => Stage::new().play(&["unshare", "-Urn"], "namespace_root"),
    }
}

fn namespace_root() {
    privileges::check(&[Capability::NetRaw, Capability::NetAdmin]).unwrap();
    let error = privileges::check(&CAPTURE).unwrap_err();
    assert!(matches!(error, PrivilegeError::UserNamespace), "{error}");
    assert_eq!(kernel::load_program().unwrap_err().raw_os_error(), EPERM);

    let opener = Opener::spawn(true).unwrap();
    assert!(opener.drop_to(None).unwrap().is_root());
    assert_threads(0, Some(Capabilities::REOPEN));
    assert_powerless();
    drop(opener.run(|| kernel::open(libc::AF_PACKET)).unwrap().unwrap());
}

fn memlock_is_raised_to_the_hard_limit() -> Outcome {
    as_nobody("memlock")
}

fn memlock() {
    kernel::limit_memlock(64 << 10, 1 << 20);
    assert_eq!(privileges::raise_memlock().unwrap(), 1 << 20);
    assert_eq!(privileges::raise_memlock().unwrap(), 1 << 20, "nothing left to raise");
    let text = privileges::explain_memlock(4 << 20).to_string();
    assert!(
        text.starts_with("cannot lock 4194304 bytes") && text.contains("allows this user 1048576 in all"),
        "{text}"
    );
    assert!(text.contains("LimitMEMLOCK=infinity"), "{text}");
}

fn what_works_without_privileges() -> Outcome {
    if let Some(why) = no_root().or_else(|| no_program("unshare", &["-n", "ip", "link", "set", "lo", "up"])) {
        return Outcome::Skipped(why);
    }
    let script = "ip link set lo up && exec \"$0\"";
    Stage::new().play(&["unshare", "-n", "sh", "-c", script], "descriptors")
}

/// The table in the documentation of `capture::privileges`. Kernels before 6.1 refuse more of it.
fn descriptors() {
    let map = kernel::create_map().unwrap();
    let program = kernel::load_program().unwrap();
    let xsk = kernel::open(libc::AF_XDP).unwrap();
    let packet = kernel::open(libc::AF_PACKET).unwrap();
    privileges::raise_memlock().unwrap();
    privileges::drop_to(Some(&nobody())).unwrap();

    let works = [
        ("XDP_UMEM_REG, rings, bind(AF_XDP)", kernel::bind_xsk(&xsk)),
        ("XDP_STATISTICS", kernel::get(&xsk, libc::SOL_XDP, libc::XDP_STATISTICS)),
        ("XDP_OPTIONS", kernel::get(&xsk, libc::SOL_XDP, libc::XDP_OPTIONS)),
        ("BPF_MAP_UPDATE_ELEM", kernel::update(&map, &xsk)),
        ("BPF_MAP_DELETE_ELEM", kernel::delete(&map)),
        ("BPF_OBJ_GET_INFO_BY_FD", kernel::info(&program)),
        ("BPF_LINK_CREATE, BPF_LINK_DETACH", kernel::attach(&program).and_then(|link| kernel::detach(&link))),
        ("SO_BUSY_POLL", kernel::set(&xsk, libc::SOL_SOCKET, libc::SO_BUSY_POLL, 1_000)),
        ("bind(AF_PACKET)", kernel::bind_packet(&packet)),
        ("PACKET_RX_RING", kernel::packet_ring(&packet)),
        ("PACKET_ADD_MEMBERSHIP", kernel::promiscuous(&packet)),
        ("PACKET_STATISTICS", kernel::get(&packet, libc::SOL_PACKET, libc::PACKET_STATISTICS)),
    ];
    let refused = [
        ("BPF_MAP_CREATE", kernel::create_map().map(drop)),
        ("BPF_PROG_LOAD", kernel::load_program().map(drop)),
        ("socket(AF_XDP)", kernel::open(libc::AF_XDP).map(drop)),
        ("socket(AF_PACKET)", kernel::open(libc::AF_PACKET).map(drop)),
        ("SO_PREFER_BUSY_POLL", kernel::set(&xsk, libc::SOL_SOCKET, kernel::SO_PREFER_BUSY_POLL, 1)),
        ("SO_BUSY_POLL_BUDGET", kernel::set(&xsk, libc::SOL_SOCKET, kernel::SO_BUSY_POLL_BUDGET, 256)),
    ];
    for (call, result) in works.iter().chain(&refused) {
        println!(
            "without privileges: {call}: {}",
            result.as_ref().map_or_else(ToString::to_string, |()| "works".into())
        );
    }
    if !kernel::is_at_least(6, 1) {
        return;
    }
    for (call, result) in works {
        assert!(result.is_ok(), "{call}: {result:?}");
    }
    for (call, result) in refused {
        assert_eq!(result.unwrap_err().raw_os_error(), EPERM, "{call}");
    }
}
