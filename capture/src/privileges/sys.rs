//! System calls on credentials. Each is sound for any caller: what goes wrong with credentials is safety of another kind.

use std::ffi::{CStr, CString};
use std::io;
use std::mem::MaybeUninit;
use std::ptr;

/// The capability sets of one thread that capget(2) and capset(2) know; bit n is capability n.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sets {
    pub(super) effective: u64,
    pub(super) permitted: u64,
    pub(super) inheritable: u64,
}

/// `__user_cap_header_struct`, `linux/capability.h`.
#[repr(C)]
struct CapHeader {
    version: u32,
    pid: i32,
}

/// `__user_cap_data_struct`: one 32-bit half of the sets.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// `_LINUX_CAPABILITY_VERSION_3`: two halves.
const CAP_VERSION: u32 = 0x2008_0522;
/// Of the calling thread.
const CAP_HEADER: CapHeader = CapHeader { version: CAP_VERSION, pid: 0 };

const _: () = assert!(size_of::<CapHeader>() == 8 && size_of::<[CapData; 2]>() == 24);

/// The sets of the calling thread.
pub(super) fn capabilities() -> io::Result<Sets> {
    let mut header = CAP_HEADER;
    let mut data = [CapData::default(); 2];
    // SAFETY: the header is one, writable as the call demands; version 3 writes two `CapData`, which is what there is.
    let result = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) };
    check(result)?;
    let join = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    let [low, high] = data;
    Ok(Sets {
        effective: join(low.effective, high.effective),
        permitted: join(low.permitted, high.permitted),
        inheritable: join(low.inheritable, high.inheritable),
    })
}

/// Replaces the sets of the calling thread.
pub(super) fn set_capabilities(sets: Sets) -> io::Result<()> {
    let half = |shift: u32| CapData {
        effective: (sets.effective >> shift) as u32,
        permitted: (sets.permitted >> shift) as u32,
        inheritable: (sets.inheritable >> shift) as u32,
    };
    let mut header = CAP_HEADER;
    let data = [half(0), half(32)];
    // SAFETY: the header is one, writable as the call demands; version 3 reads two `CapData`, which is what there is.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) };
    check(result)
}

/// Whether the bounding set of the calling thread holds a capability; `None` where the kernel has none of that number.
pub(super) fn bounding(capability: u8) -> Option<bool> {
    prctl(libc::PR_CAPBSET_READ, libc::c_ulong::from(capability), 0).ok().map(|held| held != 0)
}

/// Takes a capability out of the bounding set of the calling thread. Needs CAP_SETPCAP.
pub(super) fn drop_bounding(capability: u8) -> io::Result<()> {
    prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(capability), 0).map(drop)
}

/// Empties the ambient set of the calling thread.
pub(super) fn clear_ambient() -> io::Result<()> {
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong, 0).map(drop)
}

/// Whether the permitted set of the calling thread survives that its user ids leave 0.
pub(super) fn set_keep_capabilities(keep: bool) -> io::Result<()> {
    prctl(libc::PR_SET_KEEPCAPS, libc::c_ulong::from(keep), 0).map(drop)
}

/// From now on no execve(2) of the calling thread, nor of threads it starts, gains a privilege. Cannot be undone.
pub(super) fn set_no_new_privs() -> io::Result<()> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0).map(drop)
}

pub(super) fn no_new_privs() -> io::Result<bool> {
    prctl(libc::PR_GET_NO_NEW_PRIVS, 0, 0).map(|set| set != 0)
}

/// Processes of the same user can no longer attach to this one, nor does it leave a core dump.
pub(super) fn clear_dumpable() -> io::Result<()> {
    prctl(libc::PR_SET_DUMPABLE, 0, 0).map(drop)
}

/// The options above all take integers only.
fn prctl(option: libc::c_int, a: libc::c_ulong, b: libc::c_ulong) -> io::Result<libc::c_int> {
    let none: libc::c_ulong = 0;
    // SAFETY: none of the options that the functions above pass takes a pointer, so no memory is touched.
    let result = unsafe { libc::prctl(option, a, b, none, none) };
    check(libc::c_long::from(result))?;
    Ok(result)
}

/// Sets the supplementary groups of all threads.
pub(super) fn set_groups(groups: &[u32]) -> io::Result<()> {
    // SAFETY: `groups` is as many readable group ids as its length says.
    let result = unsafe { libc::setgroups(groups.len(), groups.as_ptr()) };
    check(libc::c_long::from(result))
}

/// Sets real, effective and saved group id of all threads.
pub(super) fn set_gids(gid: u32) -> io::Result<()> {
    // SAFETY: integers only.
    let result = unsafe { libc::setresgid(gid, gid, gid) };
    check(libc::c_long::from(result))
}

/// Sets real, effective and saved user id of all threads.
pub(super) fn set_uids(uid: u32) -> io::Result<()> {
    // SAFETY: integers only.
    let result = unsafe { libc::setresuid(uid, uid, uid) };
    check(libc::c_long::from(result))
}

/// Kernel id of the calling thread, its name under `/proc/self/task`.
pub(super) fn thread_id() -> i32 {
    // SAFETY: no arguments.
    unsafe { libc::gettid() }
}

/// Soft and hard RLIMIT_MEMLOCK of the process, in bytes; `u64::MAX` is no limit.
pub(super) fn memlock() -> io::Result<(u64, u64)> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a writable rlimit.
    let result = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) };
    check(libc::c_long::from(result))?;
    Ok((limit.rlim_cur, limit.rlim_max))
}

pub(super) fn set_memlock(soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
    // SAFETY: `limit` is a readable rlimit.
    let result = unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) };
    check(libc::c_long::from(result))
}

/// How an entry of the account database is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Key<'a> {
    Name(&'a CStr),
    Uid(u32),
}

/// What is needed of an entry of the account database.
#[derive(Debug)]
pub(super) struct Account {
    pub(super) name: CString,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// Most bytes that the strings of one entry may take.
const ACCOUNT_BYTES_MAX: usize = 1 << 20;

/// The entry of a user, `None` where there is none.
pub(super) fn account(key: Key<'_>) -> io::Result<Option<Account>> {
    let mut strings = vec![0_u8; 1024];
    loop {
        match account_into(key, &mut strings) {
            Err(e) if e.raw_os_error() == Some(libc::ERANGE) && strings.len() < ACCOUNT_BYTES_MAX => {
                strings.resize(strings.len() * 2, 0);
            }
            // getpwnam(3) lists these as ways to say "not found".
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ESRCH | libc::EBADF | libc::EPERM)) => {
                return Ok(None);
            }
            result => return result,
        }
    }
}

fn account_into(key: Key<'_>, strings: &mut [u8]) -> io::Result<Option<Account>> {
    let mut entry = MaybeUninit::<libc::passwd>::uninit();
    let mut found: *mut libc::passwd = ptr::null_mut();
    let (at, buffer, bytes) = (entry.as_mut_ptr(), strings.as_mut_ptr().cast(), strings.len());
    let code = match key {
        // SAFETY: `name` ends in NUL; `at` is room for an entry, `buffer` for `bytes` bytes; `found` can be written.
        Key::Name(name) => unsafe { libc::getpwnam_r(name.as_ptr(), at, buffer, bytes, &raw mut found) },
        // SAFETY: as above.
        Key::Uid(uid) => unsafe { libc::getpwuid_r(uid, at, buffer, bytes, &raw mut found) },
    };
    if code != 0 {
        return Err(io::Error::from_raw_os_error(code));
    }
    if found.is_null() {
        return Ok(None);
    }
    // SAFETY: the call succeeded and found an entry, so it wrote all of it.
    let entry = unsafe { entry.assume_init() };
    // SAFETY: the name of an entry found is a NUL-terminated string in `strings`, which is still borrowed.
    let name = unsafe { CStr::from_ptr(entry.pw_name) };
    Ok(Some(Account { name: name.to_owned(), uid: entry.pw_uid, gid: entry.pw_gid }))
}

/// NGROUPS_MAX of Linux: no process can have more.
const GROUPS_MAX: usize = 65_536;

/// The groups of a user in the group database, `gid` among them.
pub(super) fn groups_of(name: &CStr, gid: u32) -> io::Result<Vec<u32>> {
    let mut groups = vec![0_u32; 64];
    loop {
        let mut count = groups.len() as libc::c_int;
        // SAFETY: `name` ends in NUL; `groups` has room for `count` group ids; `count` can be written.
        let result = unsafe { libc::getgrouplist(name.as_ptr(), gid, groups.as_mut_ptr(), &raw mut count) };
        if result >= 0 {
            groups.truncate(usize::try_from(count).unwrap_or(0));
            return Ok(groups);
        }
        if groups.len() >= GROUPS_MAX {
            return Err(io::Error::other(format!("more than {GROUPS_MAX} groups")));
        }
        groups.resize(groups.len() * 2, 0);
    }
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result >= 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
