//! What has been shipped to one place: a log of checksummed lines beside the data, so that a start goes on where the last
//! one ended.
//!
//! A segment passes `begin` (its description, before the first byte goes), `uploaded` (it arrived, verified) and `shipped`
//! (it is listed there), each durable before the next step. A crash repeats at most the step it was at.

use crate::error::IoContext;
use crate::lines::{parse, print};
use crate::{ArchiveConfig, ArchiveError, ClickHouseConfig};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::hash::BuildHasher;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

/// Version of the lines.
const FORMAT: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    /// First line: whose this is, and where it goes.
    Archive { format: u32, origin: String, place: String, sensor: String },
    /// A segment is on its way; `segment` is its description.
    Begin { table: String, file: String, segment: Value },
    /// It arrived.
    Uploaded { table: String, file: String, sha256: String },
    /// It is listed there.
    Shipped { table: String, file: String },
    /// It has left the data folder: nothing more to remember.
    Gone { table: String, file: String },
}

/// Table, and the segment's file below the table's `segments`: it names one segment for all time.
pub(crate) type Key = (String, String);

/// How far a segment is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Stage {
    Begun { segment: Value },
    Uploaded { segment: Value, sha256: String },
    Shipped,
}

/// The state of one place. One owner.
#[derive(Debug)]
pub(crate) struct State {
    path: PathBuf,
    origin: String,
    place: String,
    sensor: String,
    segments: BTreeMap<Key, Stage>,
    /// Open for appending; `None` after a failed write, until the file has been rewritten.
    file: Option<File>,
    /// Lines in the file.
    lines: usize,
}

impl State {
    /// The folder of all states in a data folder.
    pub(crate) fn dir(data_dir: &Path) -> PathBuf {
        data_dir.join("archive")
    }

    fn file(data_dir: &Path, place: &str, sensor: &str) -> PathBuf {
        let name = crc32fast::hash(format!("{place}\n{sensor}").as_bytes());
        State::dir(data_dir).join(format!("{name:08x}.ndjson"))
    }

    /// Opens the state of a place, new if there is none: each place has a file of its own, so that one that is returned to
    /// is known.
    ///
    /// # Errors
    /// If the file is damaged, of a newer version, or cannot be written.
    pub(crate) fn open(data_dir: &Path, place: &str, sensor: &str) -> Result<State, ArchiveError> {
        let dir = State::dir(data_dir);
        fs::create_dir_all(&dir).at("create", &dir)?;
        let path = State::file(data_dir, place, sensor);
        let random = RandomState::new();
        let mut state = State {
            origin: format!("{:016x}{:016x}", random.hash_one(0), random.hash_one(1)),
            path,
            place: place.to_owned(),
            sensor: sensor.to_owned(),
            segments: BTreeMap::new(),
            file: None,
            lines: 0,
        };
        for line in read(&state.path)? {
            state.apply(line);
        }
        state.rewrite()?;
        Ok(state)
    }

    /// Who this data folder is to the archive: a random number made with the state.
    pub(crate) fn origin(&self) -> &str {
        &self.origin
    }

    pub(crate) fn stage(&self, key: &Key) -> Option<&Stage> {
        self.segments.get(key)
    }

    /// Segments that are not shipped yet, with how far they are.
    pub(crate) fn unfinished(&self) -> impl Iterator<Item = (&Key, &Stage)> {
        self.segments.iter().filter(|(_, stage)| **stage != Stage::Shipped)
    }

    /// Segments that are remembered as shipped.
    pub(crate) fn shipped_count(&self) -> usize {
        self.segments.values().filter(|stage| **stage == Stage::Shipped).count()
    }

    /// Every segment that is remembered.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &Key> {
        self.segments.keys()
    }

    pub(crate) fn begin(&mut self, (table, file): Key, segment: Value) -> Result<(), ArchiveError> {
        self.push(vec![Line::Begin { table, file, segment }])
    }

    pub(crate) fn uploaded(&mut self, (table, file): Key, sha256: String) -> Result<(), ArchiveError> {
        self.push(vec![Line::Uploaded { table, file, sha256 }])
    }

    pub(crate) fn shipped(&mut self, keys: Vec<Key>) -> Result<(), ArchiveError> {
        self.push(keys.into_iter().map(|(table, file)| Line::Shipped { table, file }).collect())
    }

    pub(crate) fn gone(&mut self, keys: Vec<Key>) -> Result<(), ArchiveError> {
        self.push(keys.into_iter().map(|(table, file)| Line::Gone { table, file }).collect())
    }

    fn apply(&mut self, line: Line) {
        match line {
            Line::Archive { origin, .. } => self.origin = origin,
            Line::Begin { table, file, segment } => drop(self.segments.insert((table, file), Stage::Begun { segment })),
            Line::Uploaded { table, file, sha256 } => {
                if let Some(stage) = self.segments.get_mut(&(table, file))
                    && let Stage::Begun { segment } = stage
                {
                    *stage = Stage::Uploaded { segment: segment.take(), sha256 };
                }
            }
            Line::Shipped { table, file } => drop(self.segments.insert((table, file), Stage::Shipped)),
            Line::Gone { table, file } => drop(self.segments.remove(&(table, file))),
        }
    }

    /// Appends lines. Durable when it returns.
    fn push(&mut self, lines: Vec<Line>) -> Result<(), ArchiveError> {
        if lines.is_empty() {
            return Ok(());
        }
        if self.file.is_none() || self.lines > 1_024 + 4 * self.segments.len() {
            self.rewrite()?;
        }
        let Some(file) = &mut self.file else { return Ok(()) };
        let text: String = lines.iter().map(print).collect();
        let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_data());
        if let Err(error) = written {
            // A part of it may be there: what follows must not come after it.
            self.file = None;
            return Err(error).at("write", &self.path);
        }
        self.lines += lines.len();
        lines.into_iter().for_each(|line| self.apply(line));
        Ok(())
    }

    fn rewrite(&mut self) -> Result<(), ArchiveError> {
        let (place, sensor, origin) = (self.place.clone(), self.sensor.clone(), self.origin.clone());
        let mut lines = vec![Line::Archive { format: FORMAT, origin, place, sensor }];
        for ((table, file), stage) in &self.segments {
            let (table, file) = (table.clone(), file.clone());
            match stage.clone() {
                Stage::Shipped => lines.push(Line::Shipped { table, file }),
                Stage::Begun { segment } => lines.push(Line::Begin { table, file, segment }),
                Stage::Uploaded { segment, sha256 } => {
                    lines.push(Line::Begin { table: table.clone(), file: file.clone(), segment });
                    lines.push(Line::Uploaded { table, file, sha256 });
                }
            }
        }
        let text: String = lines.iter().map(print).collect();
        // The file is still open where its content ends, under its new name.
        self.file = Some(replace(&self.path, text.as_bytes())?);
        self.lines = lines.len();
        Ok(())
    }
}

/// Segments that left this data folder for any place, whether or not it is still shipped to, as table and file: for
/// [`storage::StoreOptions::left`], since they are merged no more.
///
/// # Errors
/// If a state does not read.
pub fn left(data_dir: &Path) -> Result<BTreeSet<(String, String)>, ArchiveError> {
    let dir = State::dir(data_dir);
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(BTreeSet::new());
        }
        Err(error) => return Err(error).at("list", &dir),
    };
    let mut keys = BTreeSet::new();
    for entry in entries {
        let path = entry.at("list", &dir)?.path();
        if path.extension().is_none_or(|extension| extension != "ndjson") {
            continue;
        }
        for line in read(&path)? {
            match line {
                Line::Begin { table, file, .. } | Line::Shipped { table, file } => drop(keys.insert((table, file))),
                Line::Gone { table, file } => drop(keys.remove(&(table, file))),
                Line::Archive { .. } | Line::Uploaded { .. } => {}
            }
        }
    }
    Ok(keys)
}

/// Segments of this data folder that have arrived at every place of `config`, as table and file: for
/// [`storage::StoreReader::retention_plan`], where another process ships. Changes nothing.
///
/// # Errors
/// If a state does not read.
pub fn shipped(data_dir: &Path, config: &ArchiveConfig) -> Result<BTreeSet<(String, String)>, ArchiveError> {
    let objects = config.objects.iter().map(|place| place.url().to_owned());
    let places = objects.chain(config.clickhouse.iter().map(ClickHouseConfig::name));
    let mut at_all: Option<BTreeSet<Key>> = None;
    for place in places {
        let mut keys = BTreeSet::new();
        for line in read(&State::file(data_dir, &place, &config.sensor))? {
            match line {
                Line::Shipped { table, file } => drop(keys.insert((table, file))),
                Line::Gone { table, file } => drop(keys.remove(&(table, file))),
                Line::Archive { .. } | Line::Begin { .. } | Line::Uploaded { .. } => {}
            }
        }
        at_all = Some(match at_all {
            Some(others) => others.intersection(&keys).cloned().collect(),
            None => keys,
        });
    }
    Ok(at_all.unwrap_or_default())
}

/// The lines of a state; none if there is no file.
fn read(path: &Path) -> Result<Vec<Line>, ArchiveError> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).at("read", path),
    };
    let name = path.display().to_string();
    let (lines, bad) = parse::<Line>(&text);
    if let Some(bad) = bad.filter(|bad| !bad.torn) {
        let reason = format!(
            "line {}: {}; restore it from a backup, or move it away and give this data folder another archive.sensor",
            bad.number, bad.reason
        );
        return Err(ArchiveError::Damaged { name, reason });
    }
    match lines.first() {
        Some(Line::Archive { format, .. }) if *format > FORMAT => {
            Err(ArchiveError::Newer { name, found: *format, supported: FORMAT })
        }
        Some(Line::Archive { .. }) | None => Ok(lines),
        Some(_) => Err(ArchiveError::Damaged { name, reason: "its first line is missing".to_owned() }),
    }
}

/// Replaces a file as a whole; durable when it returns. The file is open at its end.
fn replace(path: &Path, content: &[u8]) -> Result<File, ArchiveError> {
    let tmp = path.with_extension("tmp");
    let write = || -> io::Result<File> {
        let mut file = File::create(&tmp)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&tmp, path)?;
        if let Some(dir) = path.parent() {
            File::open(dir)?.sync_all()?;
        }
        Ok(file)
    };
    write().at("write", path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Place;
    use serde_json::json;

    fn key(id: u64) -> Key {
        ("flows".to_owned(), format!("{id:016}.parquet"))
    }

    fn open(dir: &Path) -> State {
        State::open(dir, "s3://b/p", "edge").unwrap()
    }

    #[test]
    fn a_start_goes_on_where_the_last_one_ended() {
        let dir = tempfile::tempdir().unwrap();
        let mut state = open(dir.path());
        let origin = state.origin().to_owned();
        for id in 1..=4 {
            state.begin(key(id), json!({ "id": id })).unwrap();
        }
        state.uploaded(key(1), "aa".into()).unwrap();
        state.uploaded(key(2), "bb".into()).unwrap();
        state.shipped(vec![key(1)]).unwrap();
        state.gone(vec![key(4)]).unwrap();
        let mut again = open(dir.path());
        for _ in 0..2 {
            assert_eq!(again.origin(), origin);
            assert_eq!(again.stage(&key(1)), Some(&Stage::Shipped));
            let uploaded = Stage::Uploaded { segment: json!({ "id": 2 }), sha256: "bb".into() };
            assert_eq!(again.stage(&key(2)), Some(&uploaded));
            assert_eq!(again.stage(&key(3)), Some(&Stage::Begun { segment: json!({ "id": 3 }) }));
            assert_eq!(again.stage(&key(4)), None);
            assert_eq!(again.unfinished().count(), 2);
            // Rewritten, it says the same.
            again = open(dir.path());
        }
        assert_eq!(left(dir.path()).unwrap(), (1..=3).map(key).collect());
    }

    #[test]
    fn another_place_has_a_state_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path()).begin(key(1), json!({})).unwrap();
        let other = State::open(dir.path(), "s3://b/other", "edge").unwrap();
        assert_eq!(other.stage(&key(1)), None);
        assert_ne!(other.origin(), open(dir.path()).origin());
        assert_eq!(left(dir.path()).unwrap().len(), 1, "it left, wherever to");
    }

    #[test]
    fn shipped_is_what_has_arrived_everywhere() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = ArchiveConfig::new("edge");
        assert_eq!(shipped(dir.path(), &config).unwrap(), BTreeSet::new());
        config.objects = Some(Place::open("s3://b/p").unwrap());
        let mut objects = open(dir.path());
        for id in 1..=3 {
            objects.begin(key(id), json!({ "id": id })).unwrap();
        }
        objects.uploaded(key(3), "cc".into()).unwrap();
        objects.shipped(vec![key(1), key(2)]).unwrap();
        assert_eq!(shipped(dir.path(), &config).unwrap(), [key(1), key(2)].into());
        let server = ClickHouseConfig::new("http://127.0.0.1:8123", "taphouse").unwrap();
        let mut rows = State::open(dir.path(), &server.name(), "edge").unwrap();
        config.clickhouse = Some(server);
        assert_eq!(shipped(dir.path(), &config).unwrap(), BTreeSet::new());
        rows.shipped(vec![key(2), key(3)]).unwrap();
        assert_eq!(shipped(dir.path(), &config).unwrap(), [key(2)].into());
        objects.gone(vec![key(2)]).unwrap();
        assert_eq!(shipped(dir.path(), &config).unwrap(), BTreeSet::new());
    }

    #[test]
    fn a_state_cut_anywhere_opens_and_a_changed_one_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let mut state = open(dir.path());
        state.begin(key(1), json!({ "id": 1 })).unwrap();
        state.uploaded(key(1), "aa".into()).unwrap();
        state.shipped(vec![key(1)]).unwrap();
        let path = state.path.clone();
        let text = fs::read(&path).unwrap();
        for cut in 0..text.len() {
            fs::write(&path, &text[..cut]).unwrap();
            open(dir.path());
        }
        let mut bad = text.clone();
        bad[text.len() / 2] ^= 1;
        fs::write(&path, &bad).unwrap();
        let error = State::open(dir.path(), "s3://b/p", "edge").unwrap_err().to_string();
        assert!(error.contains("is damaged: line") && error.contains(".ndjson"), "{error}");
    }

    #[test]
    fn a_long_history_is_rewritten() {
        let dir = tempfile::tempdir().unwrap();
        let mut state = open(dir.path());
        for id in 0..700 {
            state.shipped(vec![key(id)]).unwrap();
            state.gone(vec![key(id)]).unwrap();
        }
        assert!(state.lines < 1_100, "{}", state.lines);
        assert_eq!(open(dir.path()).keys().count(), 0);
    }
}
