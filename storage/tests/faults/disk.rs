//! A disk in memory that knows what is durable, keeps an image of itself before each operation, fails when told to,
//! and runs the store's threads in an order the test chooses.
//!
//! What a power cut may leave follows POSIX at its least: a file's pages are durable after its fsync, its name after
//! an fsync of its folder; of everything else any part may survive, in any combination.

use crate::rig::Known;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{self, Write};
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use storage::{Disk, DiskFile, Open, Stat};

const PAGE: usize = 4096;

/// xorshift64*.
#[derive(Clone)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        random.next();
        random
    }
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 11) % n
    }
}

/// What of the unsynced survives a crash.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Survives {
    /// Nothing: a power cut before the kernel wrote anything.
    Nothing,
    /// Everything: the process died, the machine did not.
    All,
    /// Some pages, parts of pages, some names; sizes without content.
    Some,
}

/// What goes wrong with an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// EIO, nothing done.
    Io,
    /// A write stops half-way with EIO; all else works.
    Short,
    /// ENOSPC for whatever needs space: writes (which stop half-way), new names.
    NoSpace,
    /// EROFS for whatever changes something; reads work.
    ReadOnly,
    /// EIO from fsync, whose pages are lost then and never reported again; all else works.
    Sync,
    /// EIO from renaming.
    Rename,
}

impl Fault {
    pub(crate) const ALL: [Fault; 6] =
        [Fault::Sync, Fault::Rename, Fault::ReadOnly, Fault::NoSpace, Fault::Short, Fault::Io];

    pub(crate) fn error(self, kind: Kind) -> Option<io::Error> {
        let code = match self {
            Fault::Io => libc::EIO,
            Fault::Short if kind == Kind::Write => libc::EIO,
            Fault::NoSpace if matches!(kind, Kind::Write | Kind::Create) => libc::ENOSPC,
            Fault::ReadOnly if kind != Kind::Read => libc::EROFS,
            Fault::Sync if matches!(kind, Kind::SyncFile | Kind::SyncDir) => libc::EIO,
            Fault::Rename if kind == Kind::Rename => libc::EIO,
            _ => return None,
        };
        Some(io::Error::from_raw_os_error(code))
    }
}

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write,
    Create,
    Rename,
    Remove,
    SyncFile,
    SyncDir,
}

type Ino = usize;

/// The durable and the present state of everything.
#[derive(Clone, Default)]
struct Image {
    nodes: Vec<Node>,
    /// Changes of names that are not durable yet, in the order they were made.
    changes: Vec<NameChange>,
}

#[derive(Clone)]
enum Node {
    Dir { now: BTreeMap<String, Ino>, durable: BTreeMap<String, Ino> },
    File(Arc<File>),
}

#[derive(Clone, Default)]
struct File {
    now: Vec<u8>,
    durable: Vec<u8>,
    /// Pages of `now` that differ from `durable` and are still to be written.
    dirty: BTreeSet<usize>,
    /// What a test made of `now`.
    rows: OnceLock<Vec<u64>>,
}

/// One operation on names, which a crash keeps whole or not at all: names set (to a file) or removed.
#[derive(Clone)]
struct NameChange(Vec<(Ino, String, Option<Ino>)>);

const ROOT: Ino = 0;

impl Image {
    fn new() -> Image {
        Image { nodes: vec![Node::Dir { now: BTreeMap::new(), durable: BTreeMap::new() }], changes: Vec::new() }
    }

    fn names(&self, dir: Ino) -> io::Result<&BTreeMap<String, Ino>> {
        match &self.nodes[dir] {
            Node::Dir { now, .. } => Ok(now),
            Node::File(_) => Err(io::Error::from_raw_os_error(libc::ENOTDIR)),
        }
    }

    fn file(&mut self, ino: Ino) -> &mut File {
        match &mut self.nodes[ino] {
            Node::File(file) => {
                let file = Arc::make_mut(file);
                file.rows = OnceLock::new();
                file
            }
            Node::Dir { .. } => panic!("inode {ino} is no file"),
        }
    }

    fn content(&self, ino: Ino) -> &File {
        match &self.nodes[ino] {
            Node::File(file) => file,
            Node::Dir { .. } => panic!("inode {ino} is no file"),
        }
    }

    fn find(&self, path: &Path) -> io::Result<Ino> {
        let mut at = ROOT;
        for part in path.components() {
            if let Component::Normal(name) = part {
                let name = name.to_string_lossy();
                at = *self.names(at)?.get(&*name).ok_or_else(not_found)?;
            }
        }
        Ok(at)
    }

    /// The folder a path is in, and its name there.
    fn place(&self, path: &Path) -> io::Result<(Ino, String)> {
        let dir = self.find(path.parent().unwrap_or(Path::new("")))?;
        self.names(dir)?;
        Ok((dir, path.file_name().expect("a name").to_string_lossy().into_owned()))
    }

    fn change(&mut self, changes: Vec<(Ino, String, Option<Ino>)>) {
        for (dir, name, to) in &changes {
            let Node::Dir { now, .. } = &mut self.nodes[*dir] else { panic!("inode {dir} is no folder") };
            apply(now, name, *to);
        }
        self.changes.push(NameChange(changes));
    }

    fn make_names_durable(&mut self, keep: impl Fn(&NameChange) -> bool) {
        for change in std::mem::take(&mut self.changes) {
            if !keep(&change) {
                self.changes.push(change);
                continue;
            }
            for (dir, name, to) in &change.0 {
                let Node::Dir { durable, .. } = &mut self.nodes[*dir] else { panic!("inode {dir} is no folder") };
                apply(durable, name, *to);
            }
        }
    }

    /// What a start finds after a crash now.
    fn crash(mut self, survives: Survives, random: &mut Random) -> Image {
        let changes = std::mem::take(&mut self.changes);
        self.changes = changes
            .into_iter()
            .filter(|_| match survives {
                Survives::Nothing => false,
                Survives::All => true,
                Survives::Some => random.below(2) == 0,
            })
            .collect();
        self.make_names_durable(|_| true);
        for node in &mut self.nodes {
            match node {
                Node::Dir { now, durable } => now.clone_from(durable),
                Node::File(file) => {
                    let content = file.after_crash(survives, random);
                    if content != file.now || content != file.durable {
                        *file = Arc::new(File { durable: content.clone(), now: content, ..File::default() });
                    }
                }
            }
        }
        self
    }
}

fn apply(names: &mut BTreeMap<String, Ino>, name: &str, to: Option<Ino>) {
    match to {
        Some(ino) => drop(names.insert(name.to_owned(), ino)),
        None => drop(names.remove(name)),
    }
}

impl File {
    fn write(&mut self, at: usize, bytes: &[u8]) {
        let end = at + bytes.len();
        if self.now.len() < end {
            self.now.resize(end, 0);
        }
        self.now[at..end].copy_from_slice(bytes);
        self.dirty.extend(at / PAGE..end.div_ceil(PAGE));
    }

    fn set_len(&mut self, length: usize) {
        self.now.resize(length, 0);
        self.dirty.retain(|page| page * PAGE < length);
    }

    fn sync(&mut self) {
        self.durable.resize(self.now.len(), 0);
        for page in std::mem::take(&mut self.dirty) {
            let end = (page * PAGE + PAGE).min(self.now.len());
            self.durable[page * PAGE..end].copy_from_slice(&self.now[page * PAGE..end]);
        }
    }

    fn after_crash(&self, survives: Survives, random: &mut Random) -> Vec<u8> {
        match survives {
            Survives::Nothing => self.durable.clone(),
            // Pages a failed fsync forgot are still read from memory while the machine runs.
            Survives::All => self.now.clone(),
            Survives::Some => {
                let [short, long] = [self.durable.len().min(self.now.len()), self.durable.len().max(self.now.len())];
                let length = match random.below(3) {
                    0 => self.durable.len(),
                    1 => self.now.len(),
                    _ => short + random.below((long - short) as u64 + 1) as usize,
                };
                let mut content = self.durable.clone();
                content.resize(length, 0);
                for page in &self.dirty {
                    let end = (page * PAGE + PAGE).min(length).min(self.now.len());
                    let survives = match random.below(4) {
                        0 => 0,
                        1 => random.below(PAGE as u64) as usize,
                        _ => PAGE,
                    };
                    let end = end.min(page * PAGE + survives);
                    if end > page * PAGE {
                        content[page * PAGE..end].copy_from_slice(&self.now[page * PAGE..end]);
                    }
                }
                content
            }
        }
    }
}

fn not_found() -> io::Error {
    io::Error::from_raw_os_error(libc::ENOENT)
}

/// A moment: what a crash there finds, and what the test knew of it.
pub(crate) struct Moment {
    image: Image,
    /// Number of the operation that was about to be done.
    pub(crate) operation: u64,
    /// What it was.
    pub(crate) what: String,
    /// What the test knew.
    pub(crate) known: Known,
}

impl Moment {
    /// The disk after a crash at this moment.
    pub(crate) fn crash(&self, survives: Survives, random: &mut Random) -> SimDisk {
        SimDisk::of(self.image.clone().crash(survives, random), self.known.clone())
    }
}

/// Which operations are kept as moments: all, some of a number, or none.
#[derive(Clone, Debug)]
pub(crate) enum Keep {
    None,
    All,
    OneOf(u64),
}

struct State {
    image: Image,
    /// What the operations so far were.
    operations: Vec<Kind>,
    faults: Vec<(std::ops::Range<u64>, Fault)>,
    /// Faults that hit something.
    hits: u64,
    /// Space for content of files.
    capacity: Option<u64>,
    keep: Keep,
    random: Random,
    moments: Vec<Moment>,
    known: Known,
    /// Operations the encoder threads may still do, by name; `None` once all threads run freely.
    allowed: Option<BTreeMap<String, u64>>,
}

/// A handle to the disk.
#[derive(Clone)]
pub(crate) struct SimDisk(Arc<(Mutex<State>, Condvar)>);

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SimDisk")
    }
}

impl SimDisk {
    pub(crate) fn new() -> SimDisk {
        SimDisk::of(Image::new(), Known::default())
    }

    fn of(image: Image, known: Known) -> SimDisk {
        let state = State {
            image,
            operations: Vec::new(),
            faults: Vec::new(),
            hits: 0,
            capacity: None,
            keep: Keep::None,
            random: Random::new(1),
            moments: Vec::new(),
            known,
            allowed: None,
        };
        SimDisk(Arc::new((Mutex::new(state), Condvar::new())))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn keep(&self, keep: Keep, seed: u64) {
        let mut state = self.state();
        state.keep = keep;
        state.random = Random::new(seed);
    }
    pub(crate) fn take_moments(&self) -> Vec<Moment> {
        std::mem::take(&mut self.state().moments)
    }
    /// A moment now.
    pub(crate) fn moment(&self) -> Moment {
        let state = self.state();
        let (operation, known) = (state.operations.len() as u64, state.known.clone());
        Moment { image: state.image.clone(), operation, what: "end".into(), known }
    }
    pub(crate) fn know(&self, change: impl FnOnce(&mut Known)) {
        change(&mut self.state().known);
    }
    pub(crate) fn operations(&self) -> Vec<Kind> {
        self.state().operations.clone()
    }
    /// Makes operations of these numbers fail.
    pub(crate) fn fail(&self, operations: std::ops::Range<u64>, fault: Fault) {
        self.state().faults.push((operations, fault));
    }
    /// Nothing fails any more.
    pub(crate) fn heal(&self) {
        self.state().faults.clear();
    }
    pub(crate) fn hits(&self) -> u64 {
        self.state().hits
    }
    /// Limits the content of all files together.
    pub(crate) fn set_capacity(&self, bytes: u64) {
        self.state().capacity = Some(bytes);
    }
    /// Content of all files together.
    pub(crate) fn used(&self) -> u64 {
        self.state().used()
    }

    /// From now on encoder threads wait until they are allowed to do something.
    pub(crate) fn hold_encoders(&self) {
        self.state().allowed = Some(BTreeMap::new());
    }
    /// All threads run freely.
    pub(crate) fn release_encoders(&self) {
        self.state().allowed = None;
        self.0.1.notify_all();
    }
    /// Lets an encoder thread do this many operations; returns when they are done or `is_idle` says that it has no
    /// more to do.
    pub(crate) fn allow(&self, thread: &str, operations: u64, is_idle: impl Fn() -> bool) {
        let mut state = self.state();
        let Some(allowed) = &mut state.allowed else { return };
        allowed.insert(thread.to_owned(), operations);
        self.0.1.notify_all();
        loop {
            drop(state);
            let idle = is_idle();
            thread::yield_now();
            state = self.state();
            let Some(allowed) = &mut state.allowed else { return };
            if idle || allowed.get(thread).is_none_or(|left| *left == 0) {
                allowed.remove(thread);
                return;
            }
        }
    }

    /// Begins an operation: waits for its turn, keeps the moment, and fails if that is planned. `Some` with a fault
    /// that lets part of a write through.
    fn begin(&self, kind: Kind, path: &Path) -> Result<MutexGuard<'_, State>, (MutexGuard<'_, State>, Failure)> {
        let mut state = self.state();
        if let Some(name) = thread::current().name().filter(|name| name.ends_with("-encoder")) {
            loop {
                match &mut state.allowed {
                    None => break,
                    Some(allowed) => {
                        if let Some(left) = allowed.get_mut(name).filter(|left| **left > 0) {
                            *left -= 1;
                            break;
                        }
                    }
                }
                state = self.0.1.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
        let operation = state.operations.len() as u64;
        state.operations.push(kind);
        let keep = kind != Kind::Read
            && match state.keep {
                Keep::None => false,
                Keep::All => true,
                Keep::OneOf(n) => state.random.below(n) == 0,
            };
        if keep {
            let what = format!("{kind:?} {}", path.display());
            let moment = Moment { image: state.image.clone(), operation, what, known: state.known.clone() };
            state.moments.push(moment);
        }
        let fault =
            state.faults.iter().find(|(operations, _)| operations.contains(&operation)).map(|(_, fault)| *fault);
        if let Some((fault, error)) = fault.and_then(|fault| Some((fault, fault.error(kind)?))) {
            state.hits += 1;
            return Err((state, Failure { fault, error }));
        }
        Ok(state)
    }

    /// As `begin`, for operations that are done or not.
    fn whole(&self, kind: Kind, path: &Path) -> io::Result<MutexGuard<'_, State>> {
        self.begin(kind, path).map_err(|(_, failure)| failure.error)
    }

    /// What `decode` makes of the content of a file, as long as nobody writes to it. Not counted as an operation.
    pub(crate) fn rows(&self, path: &Path, decode: fn(&[u8]) -> Vec<u64>) -> io::Result<Vec<u64>> {
        let state = self.state();
        let file = state.image.content(state.image.find(path)?);
        Ok(file.rows.get_or_init(|| decode(&file.now)).clone())
    }
}

struct Failure {
    fault: Fault,
    error: io::Error,
}

impl State {
    fn used(&self) -> u64 {
        fn below(image: &Image, dir: Ino) -> u64 {
            let Node::Dir { now, .. } = &image.nodes[dir] else { return 0 };
            now.values()
                .map(|ino| match &image.nodes[*ino] {
                    Node::File(file) => file.now.len() as u64,
                    Node::Dir { .. } => below(image, *ino),
                })
                .sum()
        }
        below(&self.image, ROOT)
    }
}

impl Disk for SimDisk {
    fn open(&self, path: &Path, how: Open) -> io::Result<Box<dyn DiskFile>> {
        let kind = if how == Open::Read { Kind::Read } else { Kind::Create };
        let mut state = self.whole(kind, path)?;
        let image = &mut state.image;
        let (dir, name) = image.place(path)?;
        let found = image.names(dir)?.get(&name).copied();
        let ino = match (found, how) {
            (Some(_), Open::CreateNew) => return Err(io::Error::from_raw_os_error(libc::EEXIST)),
            (None, Open::Read) => return Err(not_found()),
            (Some(ino), _) if matches!(image.nodes[ino], Node::Dir { .. }) => {
                return Err(io::Error::from_raw_os_error(libc::EISDIR));
            }
            (Some(ino), Open::Create) => {
                image.file(ino).set_len(0);
                ino
            }
            (Some(ino), _) => ino,
            (None, _) => {
                let ino = image.nodes.len();
                image.nodes.push(Node::File(Arc::default()));
                image.change(vec![(dir, name, Some(ino))]);
                ino
            }
        };
        drop(state);
        Ok(Box::new(SimFile { disk: self.clone(), path: path.to_owned(), ino, at: 0 }))
    }

    fn stat(&self, path: &Path) -> io::Result<Stat> {
        let state = self.whole(Kind::Read, path)?;
        Ok(match &state.image.nodes[state.image.find(path)?] {
            Node::Dir { .. } => Stat { is_dir: true, bytes: 0 },
            Node::File(file) => Stat { is_dir: false, bytes: file.now.len() as u64 },
        })
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        let state = self.whole(Kind::Read, dir)?;
        let ino = state.image.find(dir)?;
        Ok(state.image.names(ino)?.keys().map(|name| dir.join(name)).collect())
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.whole(Kind::Create, path)?;
        let image = &mut state.image;
        if path.file_name().is_none() || image.find(path).is_ok() {
            return Err(io::Error::from_raw_os_error(libc::EEXIST));
        }
        let (dir, name) = image.place(path)?;
        let ino = image.nodes.len();
        image.nodes.push(Node::Dir { now: BTreeMap::new(), durable: BTreeMap::new() });
        image.change(vec![(dir, name, Some(ino))]);
        Ok(())
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.whole(Kind::Remove, path)?;
        let image = &mut state.image;
        let ino = image.find(path)?;
        if !image.names(ino)?.is_empty() {
            return Err(io::Error::from_raw_os_error(libc::ENOTEMPTY));
        }
        let (dir, name) = image.place(path)?;
        image.change(vec![(dir, name, None)]);
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.whole(Kind::Rename, from)?;
        let image = &mut state.image;
        let ino = image.find(from)?;
        let ((from_dir, from_name), (to_dir, to_name)) = (image.place(from)?, image.place(to)?);
        image.change(vec![(from_dir, from_name, None), (to_dir, to_name, Some(ino))]);
        Ok(())
    }

    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.whole(Kind::Create, to)?;
        let image = &mut state.image;
        let ino = image.find(from)?;
        if image.find(to).is_ok() {
            return Err(io::Error::from_raw_os_error(libc::EEXIST));
        }
        let (dir, name) = image.place(to)?;
        image.change(vec![(dir, name, Some(ino))]);
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut state = self.whole(Kind::Remove, path)?;
        let image = &mut state.image;
        image.find(path)?;
        let (dir, name) = image.place(path)?;
        image.change(vec![(dir, name, None)]);
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.whole(Kind::SyncDir, path)?;
        let dir = state.image.find(path)?;
        state.image.names(dir)?;
        state.image.make_names_durable(|change| change.0.iter().any(|(of, ..)| *of == dir));
        Ok(())
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        let state = self.whole(Kind::Read, path)?;
        Ok(state.capacity.unwrap_or(u64::MAX / 2).saturating_sub(state.used()))
    }
}

struct SimFile {
    disk: SimDisk,
    path: PathBuf,
    ino: Ino,
    at: usize,
}

impl fmt::Debug for SimFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimFile({})", self.path.display())
    }
}

impl Write for SimFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (mut state, room, failed) = match self.disk.begin(Kind::Write, &self.path) {
            Ok(mut state) => {
                let free = state.capacity.map_or(u64::MAX, |capacity| capacity.saturating_sub(state.used()));
                let room = bytes.len().min(usize::try_from(free).unwrap_or(usize::MAX));
                let full = (room < bytes.len()).then(|| io::Error::from_raw_os_error(libc::ENOSPC));
                state.hits += u64::from(full.is_some());
                (state, room, full)
            }
            Err((state, failure)) => {
                let room = if matches!(failure.fault, Fault::Short | Fault::NoSpace) { bytes.len() / 2 } else { 0 };
                (state, room, Some(failure.error))
            }
        };
        state.image.file(self.ino).write(self.at, &bytes[..room]);
        self.at += room;
        // The kernel would return the part as written and fail the next write; callers write all or fail.
        failed.map_or(Ok(room), Err)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl DiskFile for SimFile {
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        let state = self.disk.whole(Kind::Read, &self.path)?;
        let content = &state.image.content(self.ino).now;
        let rest = content.get(offset as usize..).unwrap_or_default();
        let length = rest.len().min(bytes.len());
        bytes[..length].copy_from_slice(&rest[..length]);
        Ok(length)
    }
    fn bytes(&self) -> io::Result<u64> {
        Ok(self.disk.state().image.content(self.ino).now.len() as u64)
    }
    fn set_len(&self, bytes: u64) -> io::Result<()> {
        let mut state = self.disk.whole(Kind::Write, &self.path)?;
        state.image.file(self.ino).set_len(bytes as usize);
        Ok(())
    }
    fn sync(&self) -> io::Result<()> {
        match self.disk.begin(Kind::SyncFile, &self.path) {
            Ok(mut state) => {
                state.image.file(self.ino).sync();
                Ok(())
            }
            Err((mut state, failure)) => {
                // The kernel marks the pages clean: no later fsync writes them.
                state.image.file(self.ino).dirty.clear();
                Err(failure.error)
            }
        }
    }
    fn try_lock(&self) -> io::Result<bool> {
        Ok(true)
    }
}
