//! The data folder: its layout, its marker, and the lock that makes one process its writer.

use crate::StorageError;
use crate::columns::FLOWS;
use crate::disk::{self, Disk, DiskFile, Open};
use crate::error::IoContext;
use crate::segment::SegmentId;
use crate::table::{Table, TableInfo};
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

/// Version of everything in a data folder. Raised when an older taphouse could no longer read it.
pub const FORMAT_VERSION: u32 = 2;

/// Where the things of one table lie in a data folder. The marker and the lock are those of the whole, and in the
/// folder of table `flows`, which is the data folder itself.
#[derive(Clone)]
pub(crate) struct Layout {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) dir: PathBuf,
    pub(crate) table: &'static TableInfo,
}

impl Layout {
    /// The layout of a table below the data folder `dir`.
    pub(crate) fn of(disk: Arc<dyn Disk>, dir: &Path, table: &'static TableInfo) -> Layout {
        let dir = if table.folder.is_empty() { dir.to_owned() } else { dir.join(table.folder) };
        Layout { disk, dir, table }
    }
    pub(crate) fn marker(&self) -> PathBuf {
        self.dir.join("taphouse.json")
    }
    pub(crate) fn lock(&self) -> PathBuf {
        self.dir.join("lock")
    }
    pub(crate) fn manifest(&self) -> PathBuf {
        self.dir.join("manifest.ndjson")
    }
    pub(crate) fn wal_dir(&self) -> PathBuf {
        self.dir.join("wal")
    }
    pub(crate) fn wal(&self, id: u64) -> PathBuf {
        self.dir.join("wal").join(format!("{id:016}.wal"))
    }
    pub(crate) fn segments_dir(&self) -> PathBuf {
        self.dir.join("segments")
    }
    /// Path of a segment below `segments_dir`, in the folder of its partition.
    pub(crate) fn segment_file(dir: &str, id: SegmentId) -> String {
        let SegmentId { number, part } = id;
        format!("{dir}/{number:016}-{part:02}.parquet")
    }
    pub(crate) fn damaged_dir(&self) -> PathBuf {
        self.dir.join("damaged")
    }

    /// The numbered files of a folder (`0000000000000042.wal`), lowest first. A missing folder holds none.
    pub(crate) fn numbered(&self, dir: &Path, extension: &str) -> Result<Vec<(u64, PathBuf)>, StorageError> {
        let mut found = Vec::new();
        let entries = match self.disk.list(dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
            Err(error) => return Err(error).at("list", dir),
        };
        for path in entries {
            let id = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse().ok());
            if let (Some(id), true) = (id, path.extension().is_some_and(|e| e == extension)) {
                found.push((id, path));
            }
        }
        found.sort();
        Ok(found)
    }

    /// Moves a file that does not check out to `damaged/`, under a name that is not taken there.
    pub(crate) fn set_aside(&self, path: &Path) -> Result<PathBuf, StorageError> {
        let dir = self.damaged_dir();
        disk::make_dir(&*self.disk, &dir).at("create", &dir)?;
        let name = path.file_name().map_or_else(|| "file".into(), |name| name.to_string_lossy().into_owned());
        let mut target = dir.join(&name);
        let mut copy = 1;
        while disk::exists(&*self.disk, &target).at("look at", &target)? {
            target = dir.join(format!("{name}.{copy}"));
            copy += 1;
        }
        self.disk.rename(path, &target).at("move aside", path)?;
        self.disk.sync_dir(&dir).at("sync", &dir)?;
        Ok(target)
    }

    /// Checks that this is a data folder this version can read; returns its format.
    pub(crate) fn check(&self) -> Result<u32, StorageError> {
        let path = self.marker();
        let text = match disk::read(&*self.disk, &path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(self.without_marker()),
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                return Err(StorageError::NotAFolder { dir: self.dir.clone() });
            }
            Err(error) => return Err(error).at("read", &path),
        };
        let bad = |reason: String| StorageError::BadMarker { path: path.clone(), reason };
        let marker: Marker = serde_json::from_slice(&text).map_err(|error| bad(error.to_string()))?;
        if marker.product != PRODUCT {
            return Err(bad(format!("product is '{}', expected '{PRODUCT}'", marker.product)));
        }
        if marker.format > FORMAT_VERSION {
            return Err(StorageError::Newer { dir: self.dir.clone(), found: marker.format, supported: FORMAT_VERSION });
        }
        Ok(marker.format)
    }

    fn without_marker(&self) -> StorageError {
        match foreign_entry(&*self.disk, &self.dir) {
            Ok(Some(found)) => StorageError::Foreign { dir: self.dir.clone(), found },
            Ok(None) | Err(_) => StorageError::NoSuchFolder { dir: self.dir.clone() },
        }
    }
}

const PRODUCT: &str = "taphouse";

#[derive(Serialize, Deserialize)]
struct Marker {
    product: String,
    /// Missing only in a file that is not ours.
    format: u32,
}

/// A locked data folder; the lock goes with the value, or with the process however it ends (flock(2)).
pub(crate) struct DataFolder {
    _lock: Box<dyn DiskFile>,
}

impl DataFolder {
    /// Creates the folder if it is missing, refuses it if it is not ours, and locks it.
    pub(crate) fn open(disk: Arc<dyn Disk>, dir: &Path) -> Result<DataFolder, StorageError> {
        let layout = Layout::of(disk.clone(), dir, &FLOWS);
        let disk = &*disk;
        create_data_dir(disk, dir)?;
        let marker = layout.marker();
        let is_marked = || disk::exists(disk, &marker).at("look at", &marker);
        if is_marked()? {
            layout.check()?;
        } else if let Some(found) = foreign_entry(disk, dir).at("list", dir)? {
            return Err(StorageError::Foreign { dir: dir.to_owned(), found });
        }
        let lock = lock(&layout)?;
        // Only the owner of the lock writes the marker; over one of an older format before anything newer is written.
        if !is_marked()? || layout.check()? < FORMAT_VERSION {
            let content = Marker { product: PRODUCT.to_owned(), format: FORMAT_VERSION };
            let text = serde_json::to_string(&content).unwrap_or_default() + "\n";
            replace(disk, &marker, text.as_bytes())?;
        }
        layout.check()?;
        for table in Table::ALL {
            let layout = Layout::of(layout.disk.clone(), dir, table.info());
            for sub in [&layout.dir, &layout.wal_dir(), &layout.segments_dir()] {
                if sub != dir {
                    create_dir(disk, sub)?;
                }
            }
        }
        Ok(DataFolder { _lock: lock })
    }
}

/// Replaces a file so that a crash leaves either the old or the new one: write beside it, sync, rename, sync the folder.
pub(crate) fn replace(disk: &dyn Disk, path: &Path, content: &[u8]) -> Result<Box<dyn DiskFile>, StorageError> {
    let (tmp, dir) = (path.with_extension("tmp"), disk::parent(path));
    let mut file = disk.open(&tmp, Open::Create).at("create", &tmp)?;
    file.write_all(content).at("write", &tmp)?;
    file.sync().at("sync", &tmp)?;
    disk.rename(&tmp, path).at("rename", &tmp)?;
    disk.sync_dir(dir).at("sync", dir)?;
    Ok(file)
}

fn create_data_dir(disk: &dyn Disk, dir: &Path) -> Result<(), StorageError> {
    if !disk.stat(dir).is_ok_and(|found| found.is_dir) {
        create_dir(disk, dir)?;
    }
    // An earlier start may have created folders on the way, and ended before their names were durable. One that does not
    // let itself be synced was there before, unless the disk fails.
    for above in dir.ancestors().filter(|above| above.parent().is_some()).map(disk::parent) {
        match disk.sync_dir(above) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EIO | libc::EROFS)) => {
                return Err(error).at("sync", above);
            }
            _ => {}
        }
    }
    Ok(())
}

fn create_dir(disk: &dyn Disk, dir: &Path) -> Result<(), StorageError> {
    match disk::make_dir(disk, dir) {
        Ok(()) => Ok(()),
        Err(error) if refused(&error) => Err(StorageError::ReadOnly { dir: dir.to_owned(), source: error }),
        Err(error) if matches!(error.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory) => {
            Err(StorageError::NotAFolder { dir: dir.to_owned() })
        }
        Err(error) => Err(error).at("create", dir),
    }
}

fn refused(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem)
}

/// A file that shows that a folder without marker is somebody else's. What a first start that was cut short leaves
/// behind does not count, nor does the root of a fresh file system.
fn foreign_entry(disk: &dyn Disk, dir: &Path) -> io::Result<Option<String>> {
    for entry in disk.list(dir)? {
        let name = entry.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !["lock", "taphouse.tmp", "lost+found"].contains(&name.as_str()) {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

fn lock(layout: &Layout) -> Result<Box<dyn DiskFile>, StorageError> {
    let path = layout.lock();
    let mut file = match layout.disk.open(&path, Open::Keep) {
        Ok(file) => file,
        Err(error) if refused(&error) => {
            return Err(StorageError::ReadOnly { dir: layout.dir.clone(), source: error });
        }
        Err(error) => return Err(error).at("open", &path),
    };
    if !file.try_lock().at("lock", &path)? {
        // The number is for the message only; an owner that is just starting has not written it.
        let text = disk::read_from(&*file, 0).unwrap_or_default();
        let pid = String::from_utf8_lossy(&text).trim().parse().ok();
        return Err(StorageError::Locked { dir: layout.dir.clone(), pid });
    }
    // Not being able to write the number (a full disk) is no reason not to start: retention may free space.
    let written = file.set_len(0).and_then(|()| file.write_all(format!("{}\n", std::process::id()).as_bytes()));
    if let Err(error) = written {
        tracing::warn!(path = %path.display(), %error, "cannot write the process id into the lock file");
    }
    Ok(file)
}

/// The folder by a path without `..`, which query engines refuse in names of files. What is not there stays as it is.
pub(crate) fn without_parents(dir: &Path) -> PathBuf {
    match dir.components().any(|part| part == Component::ParentDir) {
        true => dir.canonicalize().unwrap_or_else(|_| dir.to_owned()),
        false => dir.to_owned(),
    }
}
