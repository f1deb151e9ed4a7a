use crate::{Alert, DetectError};
use rustix::fs::FallocateFlags;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

const CURRENT: &str = "alerts.ndjson";
const PREVIOUS: &str = "alerts.1.ndjson";
/// Smallest `max_bytes`: a few alerts.
const MAX_BYTES_MIN: u64 = 4_096;
/// Longest line, whatever `max_bytes` is.
const LINE_BYTES_MAX: u64 = 256 * 1024;
/// Space kept beyond the end of the file, so that a full disk can still be told of: about a hundred alerts.
const RESERVE_BYTES: u64 = 64 * 1024;

/// The durable, numbered list of alerts: one JSON object a line in `alerts.ndjson`.
///
/// An alert that [`append`](AlertLog::append) returned is on disk (fdatasync) and has the next number, from 1 without
/// gaps, across restarts and rotations. When a line would make the file longer than `max_bytes`, the file becomes
/// `alerts.1.ndjson`, replacing the one before it: the log takes at most `2 * max_bytes`. Space for about a hundred
/// alerts is set aside beyond that, for those about a full disk.
///
/// One process writes, guarded by whoever owns the folder; any number of others [`read`](AlertLog::read) meanwhile.
#[derive(Debug)]
pub struct AlertLog {
    dir: PathBuf,
    path: PathBuf,
    /// Opened for appending.
    file: File,
    /// Length of the complete, durable lines in `file`; what lies beyond failed to be written.
    len: u64,
    /// Whether something may lie beyond `len`.
    dirty: bool,
    /// Whether a rotation still has to be made durable.
    folder_dirty: bool,
    next_seq: u64,
    max_bytes: u64,
    line: Vec<u8>,
    recovery: Recovery,
}

/// What opening a log found amiss. All zero after an orderly stop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Bytes cut off the end: a line whose writing was interrupted, and which was therefore never reported as logged.
    pub torn_bytes: u64,
    /// Complete lines that are no alert. They stay in the file, and each keeps a number: readers see the gap.
    pub unreadable_lines: u64,
}

impl AlertLog {
    /// Opens the log in `dir`, creating both, and repairs what an interrupted write left behind.
    ///
    /// # Errors
    /// `max_bytes` is below 4,096, or the folder or a file cannot be made, read or written.
    pub fn open(dir: &Path, max_bytes: u64) -> Result<AlertLog, DetectError> {
        if max_bytes < MAX_BYTES_MIN {
            return Err(DetectError::config("max_bytes", max_bytes, "4096 or more"));
        }
        fs::create_dir_all(dir).map_err(DetectError::io("create folder", dir))?;
        let (path, previous) = (dir.join(CURRENT), dir.join(PREVIOUS));
        let earlier = scan(&previous)?;
        let current = scan(&path)?;
        let file = open_for_append(&path)?;
        sync_folder(dir)?;
        let mut log = AlertLog {
            dir: dir.to_owned(),
            path,
            file,
            len: current.complete_bytes,
            dirty: !current.tail.is_empty(),
            folder_dirty: false,
            next_seq: earlier.next_seq.max(current.next_seq),
            max_bytes,
            line: Vec::new(),
            recovery: Recovery { torn_bytes: 0, unreadable_lines: earlier.unreadable_lines + current.unreadable_lines },
        };
        log.recover(&current.tail)?;
        log.reserve();
        Ok(log)
    }

    /// The number the next alert gets.
    pub fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// What opening found amiss.
    pub fn recovery(&self) -> Recovery {
        self.recovery
    }

    /// Numbers the alert, writes it and waits until it is on disk. Cost: one fdatasync.
    ///
    /// # Errors
    /// The alert cannot be expressed or is too long, or the disk refused. The number is then given to the next alert, and
    /// a part that was written is removed before it.
    pub fn append(&mut self, mut alert: Alert) -> Result<Alert, DetectError> {
        alert.seq = self.next_seq;
        self.encode(&alert)?;
        self.cut_unfinished()?;
        let bytes = self.line.len() as u64;
        if self.len > 0 && self.len + bytes > self.max_bytes {
            self.rotate()?;
        }
        if self.folder_dirty {
            sync_folder(&self.dir)?;
            self.folder_dirty = false;
        }
        self.dirty = true;
        let written = self.file.write_all(&self.line).and_then(|()| self.file.sync_data());
        if let Err(source) = written {
            // If this fails too, the next append tries again before it writes.
            let _ = self.cut_unfinished();
            return Err(DetectError::io("append to", &self.path)(source));
        }
        self.dirty = false;
        self.len += bytes;
        self.next_seq += 1;
        self.reserve();
        Ok(alert)
    }

    /// Has the file system set space aside for what comes next (fallocate(2)), which does not change the file's length.
    /// One that cannot, or is full, leaves the log as it is: alerts that do not fit are errors then.
    fn reserve(&self) {
        let bytes = RESERVE_BYTES.min(self.max_bytes);
        let _ = rustix::fs::fallocate(&self.file, FallocateFlags::KEEP_SIZE, self.len, bytes);
    }

    /// Up to `limit` alerts with numbers above `after_seq`, in order, and the lowest number still there (1 if there is
    /// none). Something was lost to rotation if `after_seq + 1` is below that number; a jump within the alerts is a line
    /// that the disk damaged. For any process, while another writes: a line still being written is not seen.
    ///
    /// Cost: a pass over the file, or over both if `after_seq` lies in the older one.
    ///
    /// # Errors
    /// A file is there and cannot be read. A missing folder or file is an empty log.
    pub fn read(dir: &Path, after_seq: u64, limit: usize) -> Result<(Vec<Alert>, u64), DetectError> {
        // The current file first: if it is rotated away before the other is opened, both are the same file, and nothing
        // between them is skipped.
        let current = Lines::open(&dir.join(CURRENT))?;
        let previous = Lines::open(&dir.join(PREVIOUS))?;
        let mut files =
            [previous, current].into_iter().flatten().filter(|file| file.first_seq.is_some()).collect::<Vec<_>>();
        files.sort_by_key(|file| file.first_seq);
        let first_available = files.first().and_then(|file| file.first_seq).unwrap_or(1);
        if let [_, newer] = &files[..]
            && newer.first_seq.is_some_and(|first| first <= after_seq.saturating_add(1))
        {
            files.remove(0);
        }
        let (mut alerts, mut last) = (Vec::new(), after_seq);
        for mut file in files {
            while alerts.len() < limit
                && let Some(line) = file.next_line()?
            {
                if line_seq(line).is_some_and(|seq| seq > last)
                    && let Ok(alert) = serde_json::from_slice::<Alert>(line)
                {
                    last = alert.seq;
                    alerts.push(alert);
                }
            }
        }
        Ok((alerts, first_available))
    }

    fn encode(&mut self, alert: &Alert) -> Result<(), DetectError> {
        if !alert.score.is_finite() {
            return Err(DetectError::config("alert score", alert.score, "0 to 1"));
        }
        self.line.clear();
        serde_json::to_writer(&mut self.line, alert)
            .map_err(|source| DetectError::Encode { key: alert.key.clone(), source })?;
        self.line.push(b'\n');
        let (bytes, allowed) = (self.line.len() as u64, self.max_bytes.min(LINE_BYTES_MAX));
        if bytes > allowed {
            return Err(DetectError::AlertTooLarge { key: alert.key.clone(), bytes, allowed });
        }
        Ok(())
    }

    /// Keeps an interrupted last line if only its end of line is missing, else cuts it off.
    fn recover(&mut self, tail: &[u8]) -> Result<(), DetectError> {
        let whole = serde_json::from_slice::<Alert>(tail).is_ok_and(|alert| alert.seq == self.next_seq);
        if whole {
            let ended = self.file.write_all(b"\n").and_then(|()| self.file.sync_data());
            ended.map_err(DetectError::io("complete the last line of", &self.path))?;
            self.len += tail.len() as u64 + 1;
            self.next_seq += 1;
            self.dirty = false;
            return Ok(());
        }
        self.recovery.torn_bytes = tail.len() as u64;
        self.cut_unfinished()
    }

    /// Removes what a failed write left after the last complete line.
    fn cut_unfinished(&mut self) -> Result<(), DetectError> {
        if self.dirty {
            let cut = self.file.set_len(self.len).and_then(|()| self.file.sync_data());
            cut.map_err(DetectError::io("cut the unfinished last line off", &self.path))?;
            self.dirty = false;
        }
        Ok(())
    }

    /// A crash between the steps leaves no current file, or an empty one: numbering then goes on from the other.
    fn rotate(&mut self) -> Result<(), DetectError> {
        let previous = self.dir.join(PREVIOUS);
        self.folder_dirty = true;
        match fs::rename(&self.path, &previous) {
            // An earlier rotation came as far as this; lines appended since are in the renamed file.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            renamed => renamed.map_err(DetectError::io("rotate to", &previous))?,
        }
        self.file = open_for_append(&self.path)?;
        self.len = 0;
        Ok(())
    }
}

fn open_for_append(path: &Path) -> Result<File, DetectError> {
    OpenOptions::new().create(true).append(true).open(path).map_err(DetectError::io("open", path))
}

/// Makes creations and renames in the folder durable.
fn sync_folder(dir: &Path) -> Result<(), DetectError> {
    File::open(dir).and_then(|folder| folder.sync_all()).map_err(DetectError::io("sync folder", dir))
}

/// What a log file holds.
struct Scan {
    /// The number after the last one used, 1 if none is.
    next_seq: u64,
    complete_bytes: u64,
    unreadable_lines: u64,
    /// What follows the last end of line.
    tail: Vec<u8>,
}

fn scan(path: &Path) -> Result<Scan, DetectError> {
    let mut scan = Scan { next_seq: 1, complete_bytes: 0, unreadable_lines: 0, tail: Vec::new() };
    let Some(mut lines) = Lines::open_at_start(path)? else { return Ok(scan) };
    while let Some(line) = lines.next_line()? {
        scan.complete_bytes += line.len() as u64;
        match line_seq(line) {
            Some(seq) => scan.next_seq = seq.saturating_add(1),
            None => {
                scan.unreadable_lines += 1;
                scan.next_seq = scan.next_seq.saturating_add(1);
            }
        }
    }
    scan.tail = lines.line;
    Ok(scan)
}

/// The number of a line as this log writes them, without parsing the rest.
fn line_seq(line: &[u8]) -> Option<u64> {
    let rest = line.strip_prefix(b"{\"seq\":")?;
    let end = rest.iter().position(|b| *b == b',')?;
    let whole = line.ends_with(b"}\n");
    std::str::from_utf8(&rest[..end]).ok()?.parse().ok().filter(|seq| whole && *seq > 0)
}

/// The complete lines of a file.
struct Lines {
    path: PathBuf,
    reader: BufReader<File>,
    /// The line last read; after the last complete one, what follows it.
    line: Vec<u8>,
    /// Whether `line` was read ahead and is still to be given out.
    ahead: bool,
    /// Number of the first line that has one, if it was looked for.
    first_seq: Option<u64>,
}

impl Lines {
    fn open_at_start(path: &Path) -> Result<Option<Lines>, DetectError> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(DetectError::io("open", path)(error)),
        };
        let reader = BufReader::with_capacity(128 * 1024, file);
        Ok(Some(Lines { path: path.to_owned(), reader, line: Vec::new(), ahead: false, first_seq: None }))
    }

    /// Opens and looks for the first number.
    fn open(path: &Path) -> Result<Option<Lines>, DetectError> {
        let Some(mut lines) = Lines::open_at_start(path)? else { return Ok(None) };
        while lines.first_seq.is_none()
            && let Some(line) = lines.next_line()?
        {
            lines.first_seq = line_seq(line);
            lines.ahead = lines.first_seq.is_some();
        }
        Ok(Some(lines))
    }

    fn next_line(&mut self) -> Result<Option<&[u8]>, DetectError> {
        if !std::mem::take(&mut self.ahead) {
            self.line.clear();
            self.reader.read_until(b'\n', &mut self.line).map_err(DetectError::io("read", &self.path))?;
        }
        Ok(self.line.ends_with(b"\n").then_some(&self.line[..]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn space_for_alerts_is_set_aside_and_changes_no_length() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let probe = File::create(dir.path().join("probe")).unwrap();
        if let Err(error) = rustix::fs::fallocate(&probe, FallocateFlags::KEEP_SIZE, 0, RESERVE_BYTES) {
            println!("SKIPPED: this file system sets no space aside ({error})");
            return;
        }
        let log = AlertLog::open(&dir.path().join("log"), 1 << 20).unwrap();
        let found = log.file.metadata().unwrap();
        assert_eq!(found.len(), 0);
        assert!(found.blocks() * 512 >= RESERVE_BYTES, "{} blocks", found.blocks());
        drop(log);
        // A small log takes no more than it may grow to.
        let log = AlertLog::open(&dir.path().join("small"), MAX_BYTES_MIN).unwrap();
        assert!(log.file.metadata().unwrap().blocks() * 512 < RESERVE_BYTES);
    }

    #[test]
    fn only_whole_lines_have_a_number() {
        assert_eq!(line_seq(b"{\"seq\":12,\"x\":1}\n"), Some(12));
        for line in
            [&b"{\"seq\":0,}\n"[..], b"{\"seq\":12,\"x\":1}", b"{\"seq\":12}\n", b"{\"seq\":-1,}\n", b"\0\0\n", b"\n"]
        {
            assert_eq!(line_seq(line), None, "{line:?}");
        }
    }
}
