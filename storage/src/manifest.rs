//! The list of published segments: a log of additions and removals, one checksummed JSON line each. What a line says
//! happened in one step.
//!
//! Appending keeps the cost of publishing the same however many segments there are; the file is rewritten as a whole
//! (and replaced atomically) at each start, after a failed write, and when removals make up most of it.

use crate::StorageError;
use crate::disk::{self, Disk, DiskFile};
use crate::error::IoContext;
use crate::folder::{FORMAT_VERSION, replace};
use crate::segment::{Claimed, Segment, SegmentId, SegmentMeta, is_first};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    /// First line: the format, the lowest number no segment or log file has had yet, and the highest of a log whose rows
    /// are in segments: those below are too.
    Manifest {
        format: u32,
        next_id: u64,
        #[serde(default)]
        published: u64,
    },
    /// A segment there is; in format 1, where a log became one segment, also that it was published.
    Add(SegmentMeta),
    /// The rows of a log are in these segments from now on.
    Publish { log: u64, segments: Vec<SegmentMeta> },
    /// The rows of some segments are in this one from now on.
    Merge { into: SegmentMeta, segments: Vec<Removed> },
    /// Retention dropped segments.
    Remove { segments: Vec<Removed> },
}

/// A segment that is no longer listed but whose file may still be there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Removed {
    pub(crate) id: u64,
    #[serde(default, skip_serializing_if = "is_first")]
    pub(crate) part: u8,
    pub(crate) file: String,
}

impl Removed {
    pub(crate) fn of(segment: &Segment) -> Removed {
        let SegmentId { number, part } = segment.id;
        Removed { id: number, part, file: segment.file.clone() }
    }

    pub(crate) fn key(&self) -> SegmentId {
        SegmentId { number: self.id, part: self.part }
    }
}

/// What the lines add up to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Listing {
    pub(crate) segments: BTreeMap<SegmentId, SegmentMeta>,
    /// Their files go when no reader holds them.
    pub(crate) removed: Vec<Removed>,
    pub(crate) next_id: u64,
    /// The rows of every log up to this number are in segments, or were.
    pub(crate) published: u64,
    /// Of the file; 0 where there is none.
    pub(crate) format: u32,
    /// Why reading stopped before the end of the file, and at which byte.
    pub(crate) damage: Option<(u64, String)>,
}

impl Listing {
    fn apply(&mut self, line: Line) {
        match line {
            Line::Manifest { format, next_id, published } => {
                self.format = format;
                self.next_id = self.next_id.max(next_id);
                self.published = self.published.max(published);
            }
            Line::Add(meta) => self.add(meta),
            Line::Publish { log, segments } => {
                self.published = self.published.max(log);
                self.next_id = self.next_id.max(log.saturating_add(1));
                segments.into_iter().for_each(|meta| self.add(meta));
            }
            Line::Merge { into, segments } => {
                self.add(into);
                segments.into_iter().for_each(|removed| self.remove(removed));
            }
            Line::Remove { segments } => segments.into_iter().for_each(|removed| self.remove(removed)),
        }
    }

    fn add(&mut self, meta: SegmentMeta) {
        self.saw(meta.id);
        self.segments.insert(meta.key(), meta);
    }

    fn remove(&mut self, removed: Removed) {
        self.saw(removed.id);
        self.segments.remove(&removed.key());
        self.removed.push(removed);
    }

    fn saw(&mut self, number: u64) {
        self.next_id = self.next_id.max(number.saturating_add(1));
        if self.format == 1 {
            self.published = self.published.max(number);
        }
    }

    /// Reads a manifest; a missing one lists nothing. A line that does not check out ends the listing: it can only be
    /// the torn last one, unless the file was damaged, which `damage` tells.
    pub(crate) fn read(disk: &dyn Disk, path: &Path) -> Result<Listing, StorageError> {
        let text = match disk::read(disk, path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Listing::default()),
            Err(error) => return Err(error).at("read", path),
        };
        let mut listing = Listing::default();
        let mut at = 0;
        for line in text.split_inclusive(|&byte| byte == b'\n') {
            let parsed = match line.strip_suffix(b"\n") {
                Some(line) => parse(line),
                None => Err("the line is not complete".to_owned()),
            };
            let is_last = at + line.len() == text.len();
            match parsed {
                Ok(Line::Manifest { format, .. }) if format > FORMAT_VERSION => {
                    let dir = disk::parent(path).to_owned();
                    return Err(StorageError::Newer { dir, found: format, supported: FORMAT_VERSION });
                }
                Ok(line) => listing.apply(line),
                // A crash while appending: what the line says was never acknowledged.
                Err(_) if is_last && at > 0 && !line.ends_with(b"\n") => break,
                Err(reason) => {
                    listing.damage = Some((at as u64, reason));
                    break;
                }
            }
            at += line.len();
        }
        // One is written whole, with its first line, and then replaces the one before.
        if at == 0 && listing.damage.is_none() {
            listing.damage = Some((0, "it is empty".to_owned()));
        }
        Ok(listing)
    }
}

/// `crc32 json` without the newline: the checksum (IEEE, eight hexadecimal digits) covers the JSON text.
fn parse(line: &[u8]) -> Result<Line, String> {
    let (crc, json) = line.split_at_checked(9).ok_or("line too short")?;
    let crc = std::str::from_utf8(&crc[..8]).ok().and_then(|hex| u32::from_str_radix(hex, 16).ok());
    if crc != Some(crc32fast::hash(json)) {
        return Err("checksum does not match".to_owned());
    }
    serde_json::from_slice(json).map_err(|error| error.to_string())
}

fn print(line: &Line) -> String {
    // Strings, numbers and lists of them: nothing here can fail to serialise.
    let json = serde_json::to_string(line).unwrap_or_default();
    format!("{:08x} {json}\n", crc32fast::hash(json.as_bytes()))
}

/// The writer's side. One owner at a time.
pub(crate) struct Manifest {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    listing: Listing,
    /// Open for appending; `None` after a failed write, until the file has been rewritten.
    file: Option<Box<dyn DiskFile>>,
    /// Segments in the file that are not listed any more.
    dead: usize,
    in_doubt: Option<InDoubt>,
}

/// A merged segment whose line failed.
struct InDoubt {
    file: String,
    /// What it was merged from. Nobody may have these before it is certain that it is not listed: shipped, their rows
    /// would be in an archive twice after a start that finds it listed.
    _inputs: Claimed,
}

impl Manifest {
    /// Starts from `listing`, rewriting the file. If that fails, the next addition or removal tries again: a start on a
    /// full disk must come as far as retention, which makes room.
    pub(crate) fn create(disk: Arc<dyn Disk>, path: PathBuf, mut listing: Listing) -> Manifest {
        listing.damage = None;
        let mut manifest = Manifest { disk, path, listing, file: None, dead: 0, in_doubt: None };
        if let Err(error) = manifest.rewrite() {
            tracing::warn!(%error, "cannot rewrite the manifest; trying again with the next segment");
        }
        manifest
    }

    /// Whether the file says what is listed.
    pub(crate) fn is_written(&self) -> bool {
        self.file.is_some()
    }

    /// Lists the segments a log has become. Durable when it returns.
    pub(crate) fn publish(&mut self, log: u64, segments: Vec<SegmentMeta>) -> Result<(), StorageError> {
        self.push(Line::Publish { log, segments })
    }

    /// Lists a segment instead of those it was merged from. Durable when it returns; only then may their files go. After
    /// an error the file may say either, and all files have to stay until `settle` has succeeded.
    pub(crate) fn merge(&mut self, into: SegmentMeta, inputs: Claimed) -> Result<(), StorageError> {
        let file = into.file.clone();
        let segments = inputs.segments().iter().map(|segment| Removed::of(segment)).collect();
        let merged = self.push(Line::Merge { into, segments });
        match merged {
            Ok(()) => inputs.keep(),
            Err(_) => self.in_doubt = Some(InDoubt { file, _inputs: inputs }),
        }
        merged
    }

    /// Whether a segment is listed.
    pub(crate) fn lists(&self, id: SegmentId) -> bool {
        self.listing.segments.contains_key(&id)
    }

    /// Makes certain that a merged segment whose line failed is not listed, removes its file, and gives its inputs back.
    pub(crate) fn settle(&mut self) -> Result<(), StorageError> {
        let Some(InDoubt { file, .. }) = &self.in_doubt else { return Ok(()) };
        let path = self.path.with_file_name("segments").join(file);
        if self.file.is_none() {
            self.rewrite()?;
        }
        self.disk.remove_file(&path).at("remove", &path)?;
        self.in_doubt = None;
        Ok(())
    }

    /// Takes segments off the list. Durable when it returns; only then may their files go. Except on a full disk,
    /// which only their going can help: the removal is written with what is next, and a crash before that makes the
    /// next start find them missing, or there again.
    pub(crate) fn remove(&mut self, segments: Vec<Removed>) -> Result<(), StorageError> {
        match self.push(Line::Remove { segments: segments.clone() }) {
            Err(error) if error.is_full() => {
                self.listing.apply(Line::Remove { segments });
                Ok(())
            }
            pushed => pushed,
        }
    }

    fn push(&mut self, line: Line) -> Result<(), StorageError> {
        if self.file.is_none() || self.dead > 1_024 + self.listing.segments.len() {
            self.rewrite()?;
        }
        let Some(file) = &mut self.file else { return Ok(()) };
        let written = file.write_all(print(&line).as_bytes()).and_then(|()| file.sync());
        if let Err(error) = written {
            // The line may be there in part: what follows must not come after it.
            self.file = None;
            return Err(error).at("write", &self.path);
        }
        self.dead += match &line {
            Line::Manifest { .. } | Line::Add(_) | Line::Publish { .. } => 0,
            Line::Merge { segments, .. } | Line::Remove { segments } => segments.len(),
        };
        self.listing.apply(line);
        Ok(())
    }

    fn rewrite(&mut self) -> Result<(), StorageError> {
        self.file = None;
        self.forget_removed();
        self.listing.format = FORMAT_VERSION;
        let Listing { next_id, published, format, .. } = self.listing;
        let mut text = print(&Line::Manifest { format, next_id, published });
        for meta in self.listing.segments.values() {
            text += &print(&Line::Add(meta.clone()));
        }
        if !self.listing.removed.is_empty() {
            text += &print(&Line::Remove { segments: self.listing.removed.clone() });
        }
        // It is still open where its content ends, under its new name.
        self.file = Some(replace(&*self.disk, &self.path, text.as_bytes())?);
        self.dead = self.listing.removed.len();
        Ok(())
    }

    /// Forgets removals whose files are gone for good. One that is gone but not durably so may be back after a power
    /// cut: without the removal its rows would count again.
    fn forget_removed(&mut self) {
        let segments = self.path.with_file_name("segments");
        let is_gone = |removed: &Removed| {
            disk::exists(&*self.disk, &segments.join(&removed.file)).is_ok_and(|is_there| !is_there)
        };
        let (gone, waiting): (Vec<_>, Vec<_>) = self.listing.removed.iter().cloned().partition(is_gone);
        let mut dirs = BTreeSet::new();
        for removed in &gone {
            let path = segments.join(&removed.file);
            dirs.extend(path.ancestors().skip(1).take_while(|dir| dir.starts_with(&segments)).map(Path::to_owned));
        }
        // A folder that is gone too needs no sync but that of the folder it was in.
        let is_durable = |dir: &PathBuf| match self.disk.sync_dir(dir) {
            Err(error) => error.kind() == io::ErrorKind::NotFound,
            Ok(()) => true,
        };
        if !gone.is_empty() && dirs.iter().all(is_durable) {
            self.listing.removed = waiting;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::OsDisk;
    use crate::segment::Claim;
    use std::fs;

    fn meta(id: u64) -> SegmentMeta {
        SegmentMeta {
            id,
            file: Path::new("1970-01-01").join(format!("{id:016}.parquet")).display().to_string(),
            rows: 10 + id,
            bytes: 1_000,
            t_end_min: 5,
            t_end_max: 9,
            t_start_min: -3,
            taps: vec!["a \"quoted\"\nname".into()],
            protos: vec![6, 17],
            zones: serde_json::from_str(r#"{"bytes_o":[40,9000],"vlan":null}"#).unwrap(),
            blooms: serde_json::from_str(r#"{"src_ip":[[70,64],[0,0]]}"#).unwrap(),
            ..SegmentMeta::default()
        }
    }

    fn removed(meta: &SegmentMeta) -> Removed {
        Removed { id: meta.id, part: meta.part, file: meta.file.clone() }
    }

    fn claimed(metas: &[SegmentMeta]) -> Claimed {
        let segments: Vec<_> = metas.iter().map(|meta| Segment::of_test(Path::new("none"), meta)).collect();
        Claimed::take(&segments).unwrap()
    }

    fn write_three(dir: &Path) -> (PathBuf, Vec<Listing>) {
        let path = dir.join("manifest.ndjson");
        let mut manifest = Manifest::create(Arc::new(OsDisk), path.clone(), Listing::default());
        let mut states = vec![manifest.listing.clone()];
        let second = SegmentMeta { part: 1, file: "another".into(), ..meta(1) };
        manifest.publish(1, vec![meta(1), second.clone()]).unwrap();
        states.push(manifest.listing.clone());
        manifest.merge(meta(7), claimed(&[meta(1), second])).unwrap();
        states.push(manifest.listing.clone());
        manifest.publish(8, vec![meta(8)]).unwrap();
        states.push(manifest.listing.clone());
        manifest.remove(vec![removed(&meta(7))]).unwrap();
        states.push(manifest.listing.clone());
        (path, states)
    }

    #[test]
    fn a_manifest_cut_anywhere_gives_a_state_it_once_had() {
        let dir = tempfile::tempdir().unwrap();
        let (path, states) = write_three(dir.path());
        let text = fs::read(&path).unwrap();
        assert_eq!(Listing::read(&OsDisk, &path).unwrap(), states[4]);
        assert_eq!((states[4].next_id, states[4].published), (9, 8));
        assert_eq!(states[2].segments.keys().map(SegmentId::to_string).collect::<Vec<_>>(), ["7-0"]);
        for cut in 0..text.len() {
            fs::write(&path, &text[..cut]).unwrap();
            let listing = Listing::read(&OsDisk, &path).unwrap();
            // Nothing at all says no format.
            let format = FORMAT_VERSION;
            assert!(states.contains(&Listing { damage: None, format, ..listing }), "cut at {cut}");
        }
    }

    #[test]
    fn a_flipped_bit_never_goes_unnoticed() {
        let dir = tempfile::tempdir().unwrap();
        let (path, states) = write_three(dir.path());
        let text = fs::read(&path).unwrap();
        for at in 0..text.len() {
            let mut bad = text.clone();
            bad[at] ^= 1 << (at % 8);
            fs::write(&path, &bad).unwrap();
            let listing = Listing::read(&OsDisk, &path).unwrap();
            let whole = listing == states[4];
            // The checksum itself may be written in capitals.
            let case = text[at].is_ascii_alphabetic() && bad[at] == text[at] ^ 0x20;
            assert!(!whole || case || text[at] == b' ', "flip at {at}");
        }
    }

    #[test]
    fn removals_are_forgotten_once_the_file_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let (path, states) = write_three(dir.path());
        let again = Manifest::create(Arc::new(OsDisk), path.clone(), Listing::read(&OsDisk, &path).unwrap());
        assert!(again.listing.removed.is_empty());
        assert_eq!(again.listing.segments, states[4].segments);
        assert_eq!(Listing::read(&OsDisk, &path).unwrap().next_id, 9, "numbers are not used twice");
    }

    #[test]
    fn a_manifest_of_format_1_tells_of_logs_by_their_segments() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("manifest.ndjson");
        let line = |json: &str| format!("{:08x} {json}\n", crc32fast::hash(json.as_bytes()));
        let segment = |id: u64| format!(r#""id":{id},"file":"1970-01-01/{id:016}.parquet""#);
        let numbers = r#""rows":1,"bytes":1,"t_end_min":1,"t_end_max":1,"t_start_min":1"#;
        let text = [
            line(r#"{"manifest":{"format":1,"next_id":3}}"#),
            line(&format!(r#"{{"add":{{{},{numbers}}}}}"#, segment(4))),
            line(&format!(r#"{{"add":{{{},{numbers}}}}}"#, segment(6))),
            line(&format!(r#"{{"remove":{{"segments":[{{{}}}]}}}}"#, segment(6))),
        ];
        fs::write(&path, text.concat()).unwrap();
        let listing = Listing::read(&OsDisk, &path).unwrap();
        assert_eq!((listing.damage, listing.next_id, listing.published), (None, 7, 6));
        assert_eq!(listing.segments.keys().map(SegmentId::to_string).collect::<Vec<_>>(), ["4-0"]);
    }

    #[test]
    fn a_merge_that_failed_is_settled_before_its_file_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("manifest.ndjson");
        let mut manifest = Manifest::create(Arc::new(OsDisk), path.clone(), Listing::default());
        manifest.publish(1, vec![meta(1)]).unwrap();
        let merged = dir.path().join("segments").join(meta(2).file);
        fs::create_dir_all(merged.parent().unwrap()).unwrap();
        fs::write(&merged, "").unwrap();
        manifest.file = Some(Box::new(fs::File::options().write(true).open("/dev/full").unwrap()));
        let input = Segment::of_test(Path::new("none"), &meta(1));
        assert!(manifest.merge(meta(2), Claimed::take(std::slice::from_ref(&input)).unwrap()).is_err());
        assert!(manifest.lists(meta(1).key()) && !manifest.lists(meta(2).key()) && merged.exists());
        fs::create_dir(path.with_extension("tmp")).unwrap();
        assert!(manifest.settle().is_err());
        assert!(merged.exists(), "the file on disk may list it");
        assert!(!input.claim(Claim::Shipping), "its rows may be in the merged one for good");
        fs::remove_dir(path.with_extension("tmp")).unwrap();
        manifest.settle().unwrap();
        assert!(!merged.exists() && input.claim(Claim::Shipping));
        assert_eq!(Listing::read(&OsDisk, &path).unwrap().segments, manifest.listing.segments);
    }
}
