//! The seam between this crate and the disk: whatever it does with files goes through [`Disk`], so that tests can hand
//! in one that fails, or forgets what was not synced.

use crate::sys;
use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Files by name. Names created, renamed or removed in a folder are durable once [`sync_dir`](Disk::sync_dir) of that
/// folder has returned; a file's own [`sync`](DiskFile::sync) covers its content only. Calls are per batch of rows or
/// rarer. Each fails with the operating system's errors.
pub trait Disk: fmt::Debug + Send + Sync {
    /// Opens a file.
    fn open(&self, path: &Path, how: Open) -> io::Result<Box<dyn DiskFile>>;
    /// What is at a path, links followed.
    fn stat(&self, path: &Path) -> io::Result<Stat>;
    /// The paths of all entries of a folder, in no order.
    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>>;
    /// Creates a folder in one that exists.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;
    /// Removes an empty folder.
    fn remove_dir(&self, dir: &Path) -> io::Result<()>;
    /// Gives a file another name, in one step; a file that has that name goes.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Gives a file a second name.
    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a name of a file. Its content stays while the file is open.
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Makes the names in a folder durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Bytes that can still be written to the file system that holds `path`.
    fn free_bytes(&self, path: &Path) -> io::Result<u64>;
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Open {
    /// For reading.
    Read,
    /// For writing; created, or emptied if it is there.
    Create,
    /// For writing; an error if it is there.
    CreateNew,
    /// For reading and writing; created if it is missing, otherwise left as it is.
    Keep,
}

/// What is known of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// It is a folder.
    pub is_dir: bool,
    /// Size of a file.
    pub bytes: u64,
}

/// An open file. What is written goes after what this value has written before.
pub trait DiskFile: Write + fmt::Debug + Send + Sync {
    /// Reads some of the content from `offset` on, as many bytes as returned; 0 at the end. Does not move writing.
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Size of the file.
    fn bytes(&self) -> io::Result<u64>;
    /// Cuts the file, or extends it with zeros.
    fn set_len(&self, bytes: u64) -> io::Result<()>;
    /// Makes content and size durable. After an error what was written since the last success is to be taken as lost,
    /// also if another call succeeds.
    fn sync(&self) -> io::Result<()>;
    /// Locks the file for this process until the value is dropped; `false` if another has it.
    fn try_lock(&self) -> io::Result<bool>;
}

/// The file system of the machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct OsDisk;

impl Disk for OsDisk {
    fn open(&self, path: &Path, how: Open) -> io::Result<Box<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        match how {
            Open::Read => options.read(true),
            Open::Create => options.write(true).create(true).truncate(true),
            Open::CreateNew => options.write(true).create_new(true),
            Open::Keep => options.read(true).write(true).create(true).truncate(false),
        };
        Ok(Box::new(options.open(path)?))
    }
    fn stat(&self, path: &Path) -> io::Result<Stat> {
        let found = fs::metadata(path)?;
        Ok(Stat { is_dir: found.is_dir(), bytes: found.len() })
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect()
    }
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        fs::create_dir(dir)
    }
    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        fs::remove_dir(dir)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }
    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::hard_link(from, to)
    }
    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }
    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        sys::free_bytes(path)
    }
}

impl DiskFile for File {
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(self, bytes, offset)
    }
    fn bytes(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
    fn set_len(&self, bytes: u64) -> io::Result<()> {
        File::set_len(self, bytes)
    }
    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
    fn try_lock(&self) -> io::Result<bool> {
        match File::try_lock(self) {
            Ok(()) => Ok(true),
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

/// Whether anything is at a path. A path that cannot be looked at is an error, not a missing file.
pub(crate) fn exists(disk: &dyn Disk, path: &Path) -> io::Result<bool> {
    match disk.stat(path) {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Content of a file.
pub(crate) fn read(disk: &dyn Disk, path: &Path) -> io::Result<Vec<u8>> {
    read_from(&*disk.open(path, Open::Read)?, 0)
}

/// Content of a file from `offset` on, as far as it goes when the end is met.
pub(crate) fn read_from(file: &dyn DiskFile, offset: u64) -> io::Result<Vec<u8>> {
    let mut content = vec![0; usize::try_from(file.bytes()?.saturating_sub(offset)).unwrap_or(0)];
    let length = read_full(file, &mut content, offset)?;
    content.truncate(length);
    Ok(content)
}

/// Fills `bytes` from `offset` on; fewer only where the file ends. Returns how many.
pub(crate) fn read_full(file: &dyn DiskFile, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut length = 0;
    while length < bytes.len() {
        match file.read_at(&mut bytes[length..], offset + length as u64) {
            Ok(0) => break,
            Ok(more) => length += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

/// Creates a folder, and those above it, where they are missing. Its name is durable afterwards, also if an earlier
/// call created it and went no further; of those above, the names of the ones this call has created.
pub(crate) fn make_dir(disk: &dyn Disk, dir: &Path) -> io::Result<()> {
    match disk.create_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && disk.stat(dir)?.is_dir => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound && parent(dir) != dir => {
            make_dir(disk, parent(dir))?;
            disk.create_dir(dir)?;
        }
        created => {
            created?;
            // Those above may have been created by a call that went no further, or may be none of ours.
            for above in dir.ancestors().skip(2) {
                let _ = disk.sync_dir(if above == Path::new("") { Path::new(".") } else { above });
            }
        }
    }
    disk.sync_dir(parent(dir))
}

/// Creates a folder and those between it and `root`, where they are missing. All their names are durable afterwards,
/// whatever earlier calls have left undone.
pub(crate) fn make_dirs(disk: &dyn Disk, root: &Path, dir: &Path) -> io::Result<()> {
    let below: Vec<&Path> = dir.ancestors().take_while(|above| *above != root).collect();
    below.into_iter().rev().try_for_each(|dir| make_dir(disk, dir))
}

/// The folder a path is in.
pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}
