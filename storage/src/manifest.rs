//! The list of published segments: a log of additions and removals, one checksummed JSON line each.
//!
//! Appending keeps the cost of publishing the same however many segments there are; the file is rewritten as a whole
//! (and replaced atomically) at each start, after a failed write, and when removals make up most of it.

use crate::StorageError;
use crate::error::IoContext;
use crate::folder::{FORMAT_VERSION, replace};
use crate::segment::SegmentMeta;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    /// First line: the format, and the lowest number no segment or log file has had yet.
    Manifest { format: u32, next_id: u64 },
    /// A segment was published.
    Add(SegmentMeta),
    /// Retention dropped segments; their files go when the last reader lets go.
    Remove { segments: Vec<Removed> },
}

/// A segment that is no longer listed but whose file may still be there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Removed {
    pub(crate) id: u64,
    pub(crate) file: String,
}

/// What the lines add up to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Listing {
    pub(crate) segments: BTreeMap<u64, SegmentMeta>,
    pub(crate) removed: Vec<Removed>,
    pub(crate) next_id: u64,
    /// Why reading stopped before the end of the file, and at which byte.
    pub(crate) damage: Option<(u64, String)>,
}

impl Listing {
    fn apply(&mut self, line: Line) {
        match line {
            Line::Manifest { next_id, .. } => self.next_id = self.next_id.max(next_id),
            Line::Add(meta) => {
                self.next_id = self.next_id.max(meta.id + 1);
                self.segments.insert(meta.id, meta);
            }
            Line::Remove { segments } => {
                for removed in segments {
                    self.next_id = self.next_id.max(removed.id + 1);
                    self.segments.remove(&removed.id);
                    self.removed.push(removed);
                }
            }
        }
    }

    /// Reads a manifest; a missing one lists nothing. A line that does not check out ends the listing: it can only be
    /// the torn last one, unless the file was damaged, which `damage` tells.
    pub(crate) fn read(path: &Path) -> Result<Listing, StorageError> {
        let text = match fs::read(path) {
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
                Ok(line) => listing.apply(line),
                // A crash while appending: what the line says was never acknowledged.
                Err(_) if is_last && at > 0 => break,
                Err(reason) => {
                    listing.damage = Some((at as u64, reason));
                    break;
                }
            }
            at += line.len();
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
    path: PathBuf,
    listing: Listing,
    /// Open for appending; `None` after a failed write, until the file has been rewritten.
    file: Option<File>,
    /// Lines in the file.
    lines: usize,
}

impl Manifest {
    /// Starts from `listing`, rewriting the file.
    pub(crate) fn create(path: PathBuf, mut listing: Listing) -> Result<Manifest, StorageError> {
        listing.damage = None;
        let mut manifest = Manifest { path, listing, file: None, lines: 0 };
        manifest.rewrite()?;
        Ok(manifest)
    }

    /// Lists a segment. Durable when it returns.
    pub(crate) fn add(&mut self, meta: SegmentMeta) -> Result<(), StorageError> {
        self.push(Line::Add(meta))
    }

    /// Takes segments off the list. Durable when it returns; only then may their files go.
    pub(crate) fn remove(&mut self, segments: Vec<Removed>) -> Result<(), StorageError> {
        self.push(Line::Remove { segments })
    }

    fn push(&mut self, line: Line) -> Result<(), StorageError> {
        let dead = self.lines.saturating_sub(self.listing.segments.len());
        if self.file.is_none() || dead > 1_024 + self.listing.segments.len() {
            self.rewrite()?;
        }
        let Some(file) = &mut self.file else { return Ok(()) };
        let written = file.write_all(print(&line).as_bytes()).and_then(|()| file.sync_data());
        if let Err(error) = written {
            // The line may be there in part: what follows must not come after it.
            self.file = None;
            return Err(error).at("write", &self.path);
        }
        self.lines += 1;
        self.listing.apply(line);
        Ok(())
    }

    fn rewrite(&mut self) -> Result<(), StorageError> {
        let segments = self.path.with_file_name("segments");
        self.listing.removed.retain(|removed| segments.join(&removed.file).exists());
        let mut text = print(&Line::Manifest { format: FORMAT_VERSION, next_id: self.listing.next_id });
        for meta in self.listing.segments.values() {
            text += &print(&Line::Add(meta.clone()));
        }
        if !self.listing.removed.is_empty() {
            text += &print(&Line::Remove { segments: self.listing.removed.clone() });
        }
        // The file is still open where its content ends, under its new name.
        self.file = Some(replace(&self.path, text.as_bytes())?);
        self.lines = self.listing.segments.len() + 2;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        }
    }

    fn write_three(dir: &Path) -> (PathBuf, Vec<Listing>) {
        let path = dir.join("manifest.ndjson");
        let mut manifest = Manifest::create(path.clone(), Listing::default()).unwrap();
        let mut states = vec![manifest.listing.clone()];
        manifest.add(meta(1)).unwrap();
        states.push(manifest.listing.clone());
        manifest.add(meta(7)).unwrap();
        states.push(manifest.listing.clone());
        manifest.remove(vec![Removed { id: 1, file: meta(1).file }]).unwrap();
        states.push(manifest.listing.clone());
        (path, states)
    }

    #[test]
    fn a_manifest_cut_anywhere_gives_a_state_it_once_had() {
        let dir = tempfile::tempdir().unwrap();
        let (path, states) = write_three(dir.path());
        let text = fs::read(&path).unwrap();
        assert_eq!(Listing::read(&path).unwrap(), states[3]);
        assert_eq!(states[3].next_id, 8);
        for cut in 0..text.len() {
            fs::write(&path, &text[..cut]).unwrap();
            let listing = Listing::read(&path).unwrap();
            assert!(states.contains(&Listing { damage: None, ..listing }), "cut at {cut}");
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
            let listing = Listing::read(&path).unwrap();
            let whole = listing == states[3];
            // The checksum itself may be written in capitals.
            let case = text[at].is_ascii_alphabetic() && bad[at] == text[at] ^ 0x20;
            assert!(!whole || case || text[at] == b' ', "flip at {at}");
        }
    }

    #[test]
    fn removals_are_forgotten_once_the_file_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let (path, states) = write_three(dir.path());
        let again = Manifest::create(path.clone(), Listing::read(&path).unwrap()).unwrap();
        assert!(again.listing.removed.is_empty());
        assert_eq!(again.listing.segments, states[3].segments);
        assert_eq!(Listing::read(&path).unwrap().next_id, 8, "numbers are not used twice");
    }
}
