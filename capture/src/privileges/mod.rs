//! Privileges: which are missing, and how a process gets rid of them once its interfaces are open.
//!
//! # Order
//! 1. [`check`] what opening will need, [`raise_memlock`].
//! 2. [`Opener::spawn`]; the opener opens the interfaces ([`Opener::run`]).
//! 3. [`Opener::drop_to`], or [`drop_to`] in a process without an opener, while nothing but the calling thread and the
//!    opener runs. Credentials belong to threads, and threads inherit them: those started later have nothing. Other
//!    threads would keep what they have, so the drop is refused, by their names.
//! 4. Everything else is started.
//!
//! A drop that fails leaves the process with some privileges and without others: it must end. One that succeeds was
//! verified by what `/proc` says of each thread.
//!
//! # What it is worth
//! Afterwards no thread that looks at packets can open a socket that captures, load a program, change a file of another
//! user, or gain anything by execve(2). The opener looks at no packets. But threads share their memory: this confines
//! mistakes, and what a parser can be talked into asking the system for. Whoever executes code of their own in the
//! process can also hand the opener a job. An opener in a process of its own, which passes descriptors, would resist
//! that too; one that keeps nothing (`Opener::spawn(false)`) does so at the price that an interface that comes back
//! stays closed until a restart.
//!
//! Other processes of the same user cannot attach to one whose opener keeps something: it is marked as not dumpable
//! (`PR_SET_DUMPABLE`), so it leaves no core dump either, and its `/proc/PID/{environ,io,…}` are root's.
//!
//! # What works without privileges
//! Seen on Linux 6.18 with `kernel.unprivileged_bpf_disabled` at 2, by a thread without capabilities on descriptors that
//! were opened before (`tests/privileges.rs`, `what_works_without_privileges`):
//!
//! | works | refused |
//! |---|---|
//! | BPF_MAP_UPDATE_ELEM, DELETE_ELEM on an XSK map | BPF_MAP_CREATE, BPF_PROG_LOAD: EPERM |
//! | BPF_OBJ_GET_INFO_BY_FD | socket(AF_XDP), socket(AF_PACKET): EPERM |
//! | BPF_LINK_CREATE with a loaded XDP program, BPF_LINK_DETACH | SO_PREFER_BUSY_POLL, larger SO_BUSY_POLL_BUDGET: EPERM |
//! | XDP_UMEM_REG, rings, bind(2), XDP_STATISTICS, XDP_OPTIONS, SO_BUSY_POLL | |
//! | PACKET_ADD_MEMBERSHIP, PACKET_STATISTICS, ring, bind(2) | |
//!
//! So a socket that is open is fully usable; another one, a program, and busy polling take the opener. UMEM counts
//! against RLIMIT_MEMLOCK, which needs to be raised before.

mod capability;
mod error;
mod opener;
mod status;
#[allow(unsafe_code, reason = "system calls on credentials")]
mod sys;
mod user;

pub use capability::{Capabilities, Capability};
pub use error::{Missing, PrivilegeError};
pub use opener::{Opener, OpenerError};
pub use user::User;

use status::ThreadStatus;
use std::fmt;
use std::io;
use std::time::Duration;

/// Says which of the capabilities that opening interfaces needs the calling thread lacks (in its effective set), and
/// how to give them.
///
/// For [`Capability::Bpf`], CAP_SYS_ADMIN is as good, and what it takes before Linux 5.8. [`Capability::IpcLock`] is a
/// hint: not missed by itself, but mentioned beside others.
///
/// # Errors
/// [`PrivilegeError::Missing`]; [`PrivilegeError::UserNamespace`] where CAP_BPF is there and does not count.
pub fn check(need: &[Capability]) -> Result<(), PrivilegeError> {
    let sets = system("capget", sys::capabilities())?;
    let (effective, permitted) = (Capabilities::from_bits(sets.effective), Capabilities::from_bits(sets.permitted));
    let knows_bpf = sys::bounding(Capability::Bpf as u8).is_some();
    let needed: Vec<Capability> = need
        .iter()
        .map(|c| if *c == Capability::Bpf && !knows_bpf { Capability::SysAdmin } else { *c })
        .filter(|c| *c != Capability::IpcLock)
        .collect();
    let has = |c: Capability| effective.contains(c) || c == Capability::Bpf && effective.contains(Capability::SysAdmin);
    let missing: Vec<Capability> = needed.iter().copied().filter(|c| !has(*c)).collect();
    if missing.is_empty() {
        let bpf = need.contains(&Capability::Bpf);
        return if bpf && in_user_namespace() { Err(PrivilegeError::UserNamespace) } else { Ok(()) };
    }
    let outside = |c: &Capability| sys::bounding(*c as u8) == Some(false);
    Err(PrivilegeError::Missing(Box::new(Missing {
        outside_bounding: missing.iter().copied().filter(outside).collect(),
        not_effective: missing.iter().copied().filter(|c| permitted.contains(*c)).collect(),
        no_new_privs: system("prctl(PR_GET_NO_NEW_PRIVS)", sys::no_new_privs())?,
        memlock_counts: need.contains(&Capability::IpcLock) && !effective.contains(Capability::IpcLock),
        binary: std::env::current_exe().map_or_else(|_| "BINARY".to_owned(), |path| path.display().to_string()),
        missing,
        needed,
    })))
}

/// Whether this process is in a user namespace other than the first, whose number the kernel fixes
/// (`PROC_USER_INIT_INO`, `linux/proc_ns.h`). Without /proc it is taken not to be.
fn in_user_namespace() -> bool {
    std::fs::read_link("/proc/self/ns/user").is_ok_and(|link| link.as_os_str() != "user:[4026531837]")
}

/// Raises the limit on locked memory (RLIMIT_MEMLOCK) as far as this process may: away with CAP_SYS_RESOURCE, to the
/// hard limit without. UMEM is locked memory, of all processes of a user together, unless the thread that registers it
/// has CAP_IPC_LOCK. Returns the bytes now in force, `u64::MAX` for no limit.
///
/// # Errors
/// The limit cannot be read.
pub fn raise_memlock() -> Result<u64, PrivilegeError> {
    const NO_LIMIT: u64 = libc::RLIM_INFINITY;
    let (soft, hard) = system("getrlimit(RLIMIT_MEMLOCK)", sys::memlock())?;
    if soft == NO_LIMIT {
        return Ok(NO_LIMIT);
    }
    if sys::set_memlock(NO_LIMIT, NO_LIMIT).is_err() && soft < hard {
        system("setrlimit(RLIMIT_MEMLOCK)", sys::set_memlock(hard, hard))?;
    }
    system("getrlimit(RLIMIT_MEMLOCK)", sys::memlock()).map(|(soft, _)| soft)
}

/// What ENOBUFS of XDP_UMEM_REG means for a region of `need_bytes`: the limit in force, and how to raise it.
pub fn explain_memlock(need_bytes: u64) -> PrivilegeError {
    match sys::memlock() {
        Ok((limit_bytes, _)) => PrivilegeError::Memlock { need_bytes, limit_bytes },
        Err(source) => PrivilegeError::System { call: "getrlimit(RLIMIT_MEMLOCK)", source },
    }
}

/// What a process was left with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// The user it became; `None` where it stayed who it was.
    pub user: Option<User>,
    /// User id it has now.
    pub uid: u32,
    /// What the calling thread was permitted before.
    pub before: Capabilities,
    /// What the opener keeps. All other threads have nothing.
    pub kept: Capabilities,
    /// Whether the bounding sets are empty too, which takes CAP_SETPCAP. `no_new_privs` does without them.
    pub bounding_cleared: bool,
}

impl Dropped {
    /// Whether the process is still root, for want of a user: without capabilities, but the owner of root's files.
    pub fn is_root(&self) -> bool {
        self.uid == 0
    }
}

impl fmt::Display for Dropped {
    /// "now user nobody (uid 65534) with no capabilities; the opener thread keeps CAP_NET_RAW".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.user {
            Some(user) => write!(f, "now user {} (uid {}) with no capabilities", user.name(), self.uid)?,
            None => write!(f, "still uid {}, with no capabilities", self.uid)?,
        }
        if !self.kept.is_empty() {
            write!(f, "; the opener thread keeps {}", self.kept)?;
        }
        if self.is_root() {
            f.write_str("; files of root can still be written: name a user to become")?;
        }
        Ok(())
    }
}

/// Becomes `user`, if one is given and the process is not that user already: its groups, group and user id, in all
/// threads. Then empties the capability sets of the calling thread and sets `no_new_privs`. Verifies all of it.
/// A process that already is `user` keeps the supplementary groups it was started with.
///
/// Without a user, identity stays as it is: what a service started with capabilities of its own wants.
///
/// # Errors
/// [`PrivilegeError::OtherThreads`] before anything has changed. After any other error the process must end: it may
/// have lost some privileges and kept others.
pub fn drop_to(user: Option<&User>) -> Result<Dropped, PrivilegeError> {
    drop_process(user, None)
}

fn drop_process(user: Option<&User>, opener: Option<&Opener>) -> Result<Dropped, PrivilegeError> {
    let before = ThreadStatus::own()?;
    refuse_other_threads(before.tid, opener.map(Opener::tid))?;
    let user = user.filter(|user| before.uids != [user.uid(); 4] || before.gids != [user.gid(); 4]);

    // First, since the capability for it goes with the rest.
    let own_bounding_cleared = clear_bounding()?;
    let (kept, bounding_cleared) = match opener {
        Some(opener) => opener.prepare()?,
        None => (Capabilities::EMPTY, own_bounding_cleared),
    };
    if let Some(user) = user {
        become_user(user)?;
    }
    if let Some(opener) = opener {
        opener.confine(kept)?;
    }
    confine_thread(Capabilities::EMPTY)?;
    if !kept.is_empty() {
        system("prctl(PR_SET_DUMPABLE)", sys::clear_dumpable())?;
    }

    let bounding_cleared = own_bounding_cleared && bounding_cleared;
    for thread in ThreadStatus::all()? {
        let holds = if opener.is_some_and(|o| o.tid() == thread.tid) { kept } else { Capabilities::EMPTY };
        verify(&thread, &before, user, holds, bounding_cleared)?;
    }
    let uid = user.map_or(before.uids[1], User::uid);
    Ok(Dropped { user: user.cloned(), uid, before: before.permitted, kept, bounding_cleared })
}

/// How often, and how long apart, threads are looked at: one that was joined is listed for a moment longer.
const LOOKS: u32 = 50;
const LOOK_INTERVAL: Duration = Duration::from_millis(2);

fn refuse_other_threads(caller: i32, opener: Option<i32>) -> Result<(), PrivilegeError> {
    let mut threads = Vec::new();
    for _ in 0..LOOKS {
        threads = ThreadStatus::all()?;
        threads.retain(|thread| thread.tid != caller && Some(thread.tid) != opener);
        if threads.is_empty() {
            return Ok(());
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
    Err(PrivilegeError::OtherThreads { threads: threads.iter().map(label).collect() })
}

fn label(thread: &ThreadStatus) -> String {
    format!("{} ({})", thread.name, thread.tid)
}

/// Empties the bounding set of the calling thread if it may. It bounds what execve(2) can give, which `no_new_privs`
/// makes nothing anyway.
fn clear_bounding() -> Result<bool, PrivilegeError> {
    let effective = Capabilities::from_bits(system("capget", sys::capabilities())?.effective);
    let may = effective.contains(Capability::SetPcap);
    let mut cleared = true;
    for capability in 0..64 {
        match sys::bounding(capability) {
            None => break,
            Some(false) => {}
            Some(true) if may => system("prctl(PR_CAPBSET_DROP)", sys::drop_bounding(capability))?,
            Some(true) => cleared = false,
        }
    }
    Ok(cleared)
}

/// Group before user: afterwards it is no longer allowed.
fn become_user(user: &User) -> Result<(), PrivilegeError> {
    let refused = |call| move |source| PrivilegeError::Become { user: user.name().to_owned(), call, source };
    sys::set_groups(user.groups()).map_err(refused("setgroups"))?;
    sys::set_gids(user.gid()).map_err(refused("setresgid"))?;
    sys::set_uids(user.uid()).map_err(refused("setresuid"))
}

/// Leaves the calling thread `kept`, of what it is permitted, and no way to gain anything.
fn confine_thread(kept: Capabilities) -> Result<(), PrivilegeError> {
    let sets = sys::Sets { effective: kept.bits(), permitted: kept.bits(), inheritable: 0 };
    system("capset", sys::set_capabilities(sets))?;
    system("prctl(PR_CAP_AMBIENT)", sys::clear_ambient())?;
    system("prctl(PR_SET_NO_NEW_PRIVS)", sys::set_no_new_privs())
}

/// Compares what the kernel says of a thread with what it should have.
fn verify(
    thread: &ThreadStatus,
    before: &ThreadStatus,
    user: Option<&User>,
    holds: Capabilities,
    bounding_cleared: bool,
) -> Result<(), PrivilegeError> {
    let differs = |field, found: String, expected: String| match found == expected {
        true => Ok(()),
        false => Err(PrivilegeError::NotDropped { thread: label(thread), field, found, expected }),
    };
    let (uids, gids, groups) = match user {
        Some(user) => ([user.uid(); 4], [user.gid(); 4], user.groups()),
        None => (before.uids, before.gids, &before.groups[..]),
    };
    differs("Uid", format!("{:?}", thread.uids), format!("{uids:?}"))?;
    differs("Gid", format!("{:?}", thread.gids), format!("{gids:?}"))?;
    differs("Groups", format!("{:?}", thread.groups), format!("{groups:?}"))?;
    for (field, found, expected) in [
        ("CapPrm", thread.permitted, holds),
        ("CapEff", thread.effective, holds),
        ("CapInh", thread.inheritable, Capabilities::EMPTY),
        ("CapAmb", thread.ambient, Capabilities::EMPTY),
    ] {
        differs(field, error::shown(found), error::shown(expected))?;
    }
    if bounding_cleared {
        differs("CapBnd", error::shown(thread.bounding), error::shown(Capabilities::EMPTY))?;
    }
    differs("NoNewPrivs", u8::from(thread.no_new_privs).to_string(), "1".to_owned())
}

fn system<T>(call: &'static str, result: io::Result<T>) -> Result<T, PrivilegeError> {
    result.map_err(|source| PrivilegeError::System { call, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dropped() -> ThreadStatus {
        ThreadStatus {
            tid: 9,
            name: "worker".to_owned(),
            uids: [7; 4],
            gids: [8; 4],
            groups: vec![8, 9],
            inheritable: Capabilities::EMPTY,
            permitted: Capabilities::EMPTY,
            effective: Capabilities::EMPTY,
            bounding: Capabilities::EMPTY,
            ambient: Capabilities::EMPTY,
            no_new_privs: true,
        }
    }

    #[test]
    fn whatever_was_not_dropped_is_named() {
        verify(&dropped(), &dropped(), None, Capabilities::EMPTY, true).unwrap();
        let raw = Capabilities::from_bits(1 << Capability::NetRaw as u8);
        type Spoil = fn(&mut ThreadStatus, Capabilities);
        let spoil: [(&str, Spoil); 9] = [
            ("Uid", |t, _| t.uids[2] = 0),
            ("Gid", |t, _| t.gids[3] = 0),
            ("Groups", |t, _| t.groups.push(10)),
            ("CapPrm", |t, raw| t.permitted = raw),
            ("CapEff", |t, raw| t.effective = raw),
            ("CapInh", |t, raw| t.inheritable = raw),
            ("CapAmb", |t, raw| t.ambient = raw),
            ("CapBnd", |t, raw| t.bounding = raw),
            ("NoNewPrivs", |t, _| t.no_new_privs = false),
        ];
        for (name, spoil) in spoil {
            let mut thread = dropped();
            spoil(&mut thread, raw);
            let error = verify(&thread, &dropped(), None, Capabilities::EMPTY, true).unwrap_err();
            assert!(matches!(&error, PrivilegeError::NotDropped { field, .. } if *field == name), "{error}");
            assert!(error.to_string().starts_with("privileges were not dropped: thread worker (9) has "), "{error}");
        }
        let error = verify(&dropped(), &dropped(), None, raw, true).unwrap_err().to_string();
        assert!(error.contains("CapPrm 0 (no capabilities), expected 2000 (CAP_NET_RAW)"), "{error}");
        let bounded = ThreadStatus { bounding: raw, ..dropped() };
        verify(&bounded, &dropped(), None, Capabilities::EMPTY, false).unwrap();
    }

    #[test]
    fn a_user_is_verified_against_the_account() {
        let root = User::lookup("root").unwrap();
        let became = ThreadStatus { uids: [0; 4], gids: [0; 4], groups: root.groups().to_vec(), ..dropped() };
        verify(&became, &dropped(), Some(&root), Capabilities::EMPTY, true).unwrap();
        verify(&dropped(), &dropped(), Some(&root), Capabilities::EMPTY, true).unwrap_err();
    }

    /// The test harness runs more than one thread, so nothing may be dropped here, and nothing is.
    #[test]
    fn a_process_of_several_threads_is_refused() {
        let before = ThreadStatus::own().unwrap();
        let (go, stop) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || stop.recv());
        assert!(matches!(drop_to(None).unwrap_err(), PrivilegeError::OtherThreads { .. }));
        drop(go);
        other.join().unwrap().unwrap_err();
        assert_eq!(ThreadStatus::own().unwrap(), before);
    }

    #[test]
    fn a_ring_that_cannot_be_locked_names_the_limit() {
        let (soft, _) = sys::memlock().unwrap();
        let text = explain_memlock(123).to_string();
        assert!(text.contains("123 bytes") && text.contains(&soft.to_string()), "{text}");
    }
}
