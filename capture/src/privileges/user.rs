//! The account that a process becomes.

use super::{PrivilegeError, sys};
use std::ffi::CString;

/// An account of this machine, as its databases know it (passwd(5), group(5), or what nsswitch.conf names instead).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    name: String,
    uid: u32,
    gid: u32,
    /// Ascending, `gid` among them.
    groups: Vec<u32>,
}

/// setresuid(2) and setresgid(2) take this id as "leave it as it is".
const UNCHANGED: u32 = u32::MAX;

impl User {
    /// Looks an account up by name, or by number if there is none of that name and it is one. Reads files or asks a
    /// name service: not for a worker.
    ///
    /// # Errors
    /// No such account, a name service that fails, or an account with an id that no process can have.
    pub fn lookup(name_or_uid: &str) -> Result<User, PrivilegeError> {
        let unknown = || PrivilegeError::NoUser { name: name_or_uid.to_owned() };
        let failed = |source| PrivilegeError::Lookup { name: name_or_uid.to_owned(), source };
        if name_or_uid.is_empty() {
            return Err(unknown());
        }
        let key = CString::new(name_or_uid).map_err(|_| unknown())?;
        let mut account = sys::account(sys::Key::Name(&key)).map_err(failed)?;
        if let (None, Ok(uid)) = (&account, name_or_uid.parse()) {
            account = sys::account(sys::Key::Uid(uid)).map_err(failed)?;
        }
        let account = account.ok_or_else(unknown)?;
        if account.uid == UNCHANGED || account.gid == UNCHANGED {
            return Err(PrivilegeError::ReservedId { name: name_or_uid.to_owned() });
        }
        let mut groups = sys::groups_of(&account.name, account.gid).map_err(failed)?;
        groups.sort_unstable();
        groups.dedup();
        let name = account.name.to_string_lossy().into_owned();
        Ok(User { name, uid: account.uid, gid: account.gid, groups })
    }

    /// Login name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// User id.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// Id of the primary group.
    pub fn gid(&self) -> u32 {
        self.gid
    }

    /// All its groups, ascending, the primary one among them.
    pub fn groups(&self) -> &[u32] {
        &self.groups
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_name_and_by_number() {
        let root = User::lookup("root").unwrap();
        assert_eq!((root.name(), root.uid(), root.gid()), ("root", 0, 0));
        assert!(root.groups().contains(&0) && root.groups().is_sorted());
        assert_eq!(User::lookup("0").unwrap(), root);
    }

    #[test]
    fn an_unknown_account_is_named() {
        for name in ["", "no such user", "4294967295", "99999999999", "-1", "a\0b"] {
            let error = User::lookup(name).unwrap_err();
            assert!(matches!(&error, PrivilegeError::NoUser { name: n } if n == name), "{error}");
            assert!(error.to_string().contains(&format!("'{name}'")), "{error}");
        }
    }

    /// Each account is in the groups that `id` says.
    #[test]
    fn groups_are_those_of_the_group_database() {
        let groups = std::fs::read_to_string("/etc/group").unwrap_or_default();
        for name in groups.lines().filter_map(|line| line.rsplit(':').next()).flat_map(|list| list.split(',')) {
            let Ok(user) = User::lookup(name) else { continue };
            let output = std::process::Command::new("id").args(["-G", name]).output().unwrap();
            let mut expected: Vec<u32> =
                String::from_utf8(output.stdout).unwrap().split_whitespace().map(|g| g.parse().unwrap()).collect();
            expected.sort_unstable();
            assert_eq!(user.groups(), expected, "{name}");
        }
    }
}
