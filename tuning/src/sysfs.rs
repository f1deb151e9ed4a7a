use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Where `/proc` and `/sys` are found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sysfs {
    /// The folder that holds `proc` and `sys`: `/` on a real host.
    pub root: PathBuf,
}

impl Default for Sysfs {
    fn default() -> Sysfs {
        Sysfs { root: PathBuf::from("/") }
    }
}

impl Sysfs {
    /// A tree below `root`.
    pub fn new(root: impl Into<PathBuf>) -> Sysfs {
        Sysfs { root: root.into() }
    }

    pub(crate) fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        self.root.join(path)
    }

    /// A file's text without surrounding white space; `None` where it is absent, unreadable or empty. Kernel files
    /// may also refuse to be read (`speed` of an interface that is down), which means the same here.
    pub(crate) fn text(&self, path: impl AsRef<Path>) -> Option<String> {
        let text = fs::read_to_string(self.path(path)).ok()?;
        let text = text.trim();
        (!text.is_empty()).then(|| text.to_owned())
    }

    /// A file that holds one number.
    pub(crate) fn number<T: FromStr>(&self, path: impl AsRef<Path>) -> Option<T> {
        self.text(path)?.parse().ok()
    }

    /// Names in a folder, sorted; empty where it is absent.
    pub(crate) fn names(&self, path: impl AsRef<Path>) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.path(path)) else { return Vec::new() };
        let mut names: Vec<String> = entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect();
        names.sort();
        names
    }
}

/// CPUs or nodes as the kernel lists them: `0-3,8` (Documentation/admin-guide/cputopology.rst). `None` if it is no
/// such list, or names a number of 65,536 or more.
pub(crate) fn parse_list(text: &str) -> Option<Vec<u32>> {
    let mut all = Vec::new();
    for range in text.split(',').map(str::trim).filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
        all.extend(u32::from(first)..=u32::from(last));
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_ranges_and_numbers() {
        assert_eq!(parse_list("0-2,5, 7-7"), Some(vec![0, 1, 2, 5, 7]));
        assert_eq!(parse_list(""), Some(vec![]));
        for bad in ["a", "1-", "-1", "0-99999999"] {
            assert_eq!(parse_list(bad), None, "{bad}");
        }
    }
}
