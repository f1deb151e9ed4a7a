//! What the kernel says of a thread: `/proc/self/task/TID/status` (proc(5)).

use super::{Capabilities, PrivilegeError};
use std::io;

/// Credentials of one thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ThreadStatus {
    pub(super) tid: i32,
    /// At most 15 bytes.
    pub(super) name: String,
    /// Real, effective, saved, file system.
    pub(super) uids: [u32; 4],
    /// Real, effective, saved, file system.
    pub(super) gids: [u32; 4],
    /// Supplementary groups, ascending.
    pub(super) groups: Vec<u32>,
    pub(super) inheritable: Capabilities,
    pub(super) permitted: Capabilities,
    pub(super) effective: Capabilities,
    pub(super) bounding: Capabilities,
    pub(super) ambient: Capabilities,
    pub(super) no_new_privs: bool,
}

impl ThreadStatus {
    /// Of the calling thread.
    pub(super) fn own() -> Result<ThreadStatus, PrivilegeError> {
        let path = "/proc/thread-self/status";
        let text = std::fs::read_to_string(path).map_err(|source| unreadable(path, source))?;
        ThreadStatus::parse(path, &text)
    }

    /// Of every thread of the process, by its id.
    pub(super) fn all() -> Result<Vec<ThreadStatus>, PrivilegeError> {
        const TASKS: &str = "/proc/self/task";
        let mut threads = Vec::new();
        for entry in std::fs::read_dir(TASKS).map_err(|source| unreadable(TASKS, source))? {
            let path = entry.map_err(|source| unreadable(TASKS, source))?.path().join("status");
            let path = path.to_string_lossy();
            match std::fs::read_to_string(&*path) {
                Ok(text) => threads.push(ThreadStatus::parse(&path, &text)?),
                // The thread ended since the folder was read.
                Err(e) if e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(libc::ESRCH) => {}
                Err(source) => return Err(unreadable(&path, source)),
            }
        }
        threads.sort_by_key(|thread| thread.tid);
        Ok(threads)
    }

    fn parse(path: &str, text: &str) -> Result<ThreadStatus, PrivilegeError> {
        let field = |name: &'static str| {
            let values = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            values.ok_or_else(|| PrivilegeError::StatusField { path: path.to_owned(), field: name })
        };
        let unlike = |field| PrivilegeError::StatusField { path: path.to_owned(), field };
        let four = |name| numbers(field(name)?).and_then(|n| n.try_into().ok()).ok_or_else(|| unlike(name));
        let set = |name| {
            let bits = u64::from_str_radix(field(name)?.trim(), 16).map_err(|_| unlike(name))?;
            Ok::<_, PrivilegeError>(Capabilities::from_bits(bits))
        };
        Ok(ThreadStatus {
            tid: field("Pid")?.trim().parse().map_err(|_| unlike("Pid"))?,
            name: field("Name")?.trim().to_owned(),
            uids: four("Uid")?,
            gids: four("Gid")?,
            groups: numbers(field("Groups")?).ok_or_else(|| unlike("Groups"))?,
            inheritable: set("CapInh")?,
            permitted: set("CapPrm")?,
            effective: set("CapEff")?,
            bounding: set("CapBnd")?,
            ambient: set("CapAmb")?,
            no_new_privs: field("NoNewPrivs")?.trim() == "1",
        })
    }
}

fn numbers(text: &str) -> Option<Vec<u32>> {
    text.split_whitespace().map(|n| n.parse().ok()).collect()
}

fn unreadable(path: &str, source: io::Error) -> PrivilegeError {
    PrivilegeError::Status { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "Name:\topener\nUmask:\t0022\nState:\tS (sleeping)\nTgid:\t7\nPid:\t9\nUid:\t1\t2\t3\t4\n\
        Gid:\t5\t6\t7\t8\nGroups:\t4 24 27 \nNSpid:\t9\nCapInh:\t0000000000000000\nCapPrm:\t0000008000003000\n\
        CapEff:\t0000000000002000\nCapBnd:\t000001fffeffffff\nCapAmb:\t0000000000000001\nNoNewPrivs:\t1\nSeccomp:\t0\n";

    #[test]
    fn every_field_is_read() {
        let status = ThreadStatus::parse("x", TEXT).unwrap();
        assert_eq!((status.tid, status.name.as_str()), (9, "opener"));
        assert_eq!((status.uids, status.gids), ([1, 2, 3, 4], [5, 6, 7, 8]));
        assert_eq!(status.groups, [4, 24, 27]);
        assert_eq!((status.permitted, status.effective.bits()), (Capabilities::CAPTURE, 0x2000));
        assert_eq!((status.inheritable, status.ambient.bits()), (Capabilities::EMPTY, 1));
        assert_eq!(status.bounding.bits(), 0x1ff_feff_ffff);
        assert!(status.no_new_privs);
    }

    #[test]
    fn a_field_that_is_missing_or_odd_is_named() {
        for (from, to, field) in [
            ("NoNewPrivs:\t1\n", "", "NoNewPrivs"),
            ("CapEff:\t0000000000002000", "CapEff:\tx", "CapEff"),
            ("Uid:\t1\t2\t3\t4", "Uid:\t1\t2\t3", "Uid"),
            ("Gid:\t5", "Gid:\t-5", "Gid"),
        ] {
            let error = ThreadStatus::parse("x", &TEXT.replace(from, to)).unwrap_err();
            assert!(error.to_string().contains(field), "{error}");
        }
    }

    #[test]
    fn the_kernel_is_understood() {
        let own = ThreadStatus::own().unwrap();
        assert_eq!(own.tid, super::super::sys::thread_id());
        let sets = super::super::sys::capabilities().unwrap();
        assert_eq!((own.effective.bits(), own.permitted.bits()), (sets.effective, sets.permitted));
        assert_eq!(own.no_new_privs, super::super::sys::no_new_privs().unwrap());
        for capability in super::super::Capability::ALL {
            let held = super::super::sys::bounding(capability as u8).unwrap_or(false);
            assert_eq!(held, own.bounding.contains(capability), "{capability:?}");
        }
        assert!(ThreadStatus::all().unwrap().iter().any(|thread| thread.tid == own.tid));
    }
}
