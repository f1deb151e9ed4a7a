//! The folder of the slices: names, and what is found there at start.

use super::file::{Interface, PARTIAL_SUFFIX, SliceFile, count_packet};
use super::pcapng::{self, Header, InterfaceCounts, Summary};
use super::{EndReason, SliceId, SliceInfo, SliceState};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use wire::TapId;
use zstd::zstd_safe;

const PREFIX: &str = "slice-";
const SUFFIX: &str = ".pcapng.zst";

/// The statistics of a slice, compressed, are shorter than this.
const TAIL_BYTES: u64 = 64 << 10;
/// The section header of a slice is shorter than this.
const HEADER_BYTES_MAX: u64 = 64 << 10;
/// No frame is longer, compressed or not: a frame's worth of packets and the longest packet a capture may have.
const FRAME_BYTES_MAX: usize = 32 << 20;
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// File of a slice; `label` as [`clean_label`] leaves it.
pub(super) fn path_of(dir: &Path, id: SliceId, label: &str) -> PathBuf {
    dir.join(format!("{PREFIX}{id}-{label}{SUFFIX}"))
}

/// The part of `label` that is safe in a file name, on a command line and in a URL: at most 64 of a-z, 0-9 and single
/// hyphens between them.
pub(super) fn clean_label(label: &str) -> String {
    let mut clean = String::new();
    for c in label.chars().map(|c| c.to_ascii_lowercase()) {
        if clean.len() == 64 {
            break;
        }
        match c {
            'a'..='z' | '0'..='9' => clean.push(c),
            _ if clean.is_empty() || clean.ends_with('-') => {}
            _ => clean.push('-'),
        }
    }
    let clean = clean.trim_end_matches('-');
    if clean.is_empty() { "slice".to_owned() } else { clean.to_owned() }
}

/// The slices in `dir`, by number. What a crash left is completed, or removed where there is nothing in it. Files of
/// other names are nobody's business.
pub(super) fn scan(dir: &Path) -> io::Result<Vec<SliceInfo>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        match name.strip_suffix(PARTIAL_SUFFIX) {
            Some(whole) if parse_name(whole).is_some() => {
                let complete = path.with_file_name(whole);
                if recover(&complete, &path).unwrap_or(false) {
                    paths.push(complete);
                }
            }
            None if parse_name(name).is_some() => paths.push(path),
            _ => {}
        }
    }
    let mut slices: Vec<_> = paths.iter().filter_map(|path| info_or_failure(path)).collect();
    slices.sort_by_key(|slice| slice.id);
    slices.dedup_by_key(|slice| slice.id);
    Ok(slices)
}

/// Number and label of a slice's file.
fn parse_name(name: &str) -> Option<(SliceId, &str)> {
    let (id, label) = name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?.split_once('-')?;
    let id = id.parse().ok().filter(|id| *id > 0)?;
    (clean_label(label) == label).then_some((SliceId(id), label))
}

fn info_or_failure(path: &Path) -> Option<SliceInfo> {
    let (id, label) = parse_name(path.file_name()?.to_str()?)?;
    let failed = |reason: String| {
        let header = Header { id, label: label.to_owned(), reason: String::new(), filter: String::new() };
        let file_bytes = fs::metadata(path).map_or(0, |meta| meta.len());
        info(header, Summary::default(), path, file_bytes, SliceState::Failed(reason))
    };
    Some(match read_info(path) {
        Ok(info) if info.id == id => info,
        Ok(info) => failed(format!("the file says that it is slice {}", info.id)),
        Err(error) => failed(format!("the file cannot be read: {error}")),
    })
}

/// What the file of a complete slice says of itself. Reads its beginning and its end only.
pub(super) fn read_info(path: &Path) -> io::Result<SliceInfo> {
    let wrong = |what| io::Error::new(io::ErrorKind::InvalidData, what);
    let mut file = File::open(path)?;
    let bytes = file.metadata()?.len();
    let header = read_header(&file)?.ok_or_else(|| wrong("it does not begin as a slice does"))?;
    let tail_bytes = bytes.min(TAIL_BYTES);
    let mut tail = Vec::new();
    file.seek(SeekFrom::Start(bytes - tail_bytes))?;
    file.take(tail_bytes).read_to_end(&mut tail)?;
    let summary = find_summary(&tail).ok_or_else(|| wrong("it does not end as a slice does"))?;
    Ok(info(header, summary, path, bytes, SliceState::Complete))
}

fn read_header(file: &File) -> io::Result<Option<Header>> {
    let mut header = Vec::new();
    zstd::Decoder::new(file)?.single_frame().take(HEADER_BYTES_MAX).read_to_end(&mut header)?;
    Ok(pcapng::split_block(&header).and_then(|(block, _)| pcapng::parse_section_header(&block)))
}

/// The statistics are the last frame of the file; where that begins is found from the back.
fn find_summary(tail: &[u8]) -> Option<Summary> {
    (0..tail.len().saturating_sub(3)).rev().filter(|at| tail[*at..].starts_with(&ZSTD_MAGIC)).find_map(|at| {
        let blocks = zstd::bulk::decompress(&tail[at..], TAIL_BYTES as usize).ok()?;
        pcapng::parse_statistics(&pcapng::split_block(&blocks)?.0)
    })
}

fn info(header: Header, summary: Summary, path: &Path, file_bytes: u64, state: SliceState) -> SliceInfo {
    SliceInfo {
        id: header.id,
        label: header.label,
        reason: header.reason,
        filter: header.filter,
        state,
        packets: summary.packets,
        bytes: summary.bytes,
        file_bytes,
        dropped_queue_full: summary.dropped_queue_full,
        overwritten: summary.overwritten,
        lost_disk: summary.lost_disk,
        ended_by: summary.ended_by,
        path: path.to_owned(),
        at: summary.at,
        first_ts: summary.first_ts,
        last_ts: summary.last_ts,
    }
}

/// Completes `partial` with the frames of it that are whole, as `path`; removes it where there is no packet in them.
/// Whether there is a slice now.
pub(super) fn recover(path: &Path, partial: &Path) -> io::Result<bool> {
    let file = OpenOptions::new().read(true).write(true).open(partial)?;
    let found = whole_frames(&file)?;
    if found.summary.packets == 0 {
        fs::remove_file(partial)?;
        return Ok(false);
    }
    let Found { bytes, summary, interfaces } = found;
    let ended = Summary { ended_by: Some(EndReason::Crash), ..summary };
    SliceFile::resume(path, file, bytes, summary, interfaces)?.finish(&ended, String::new)?;
    Ok(true)
}

/// The whole frames at the start of a partial file.
#[derive(Default)]
struct Found {
    bytes: u64,
    summary: Summary,
    interfaces: Vec<Interface>,
}

fn whole_frames(file: &File) -> io::Result<Found> {
    let (mut found, mut window, mut at) = (Found::default(), Vec::new(), 0);
    loop {
        while let Ok(frame_bytes) = zstd_safe::find_frame_compressed_size(&window[at..]) {
            // Statistics are those of a file that only lacked its name; they are written anew.
            let Some(next) = found.with_frame(&window[at..at + frame_bytes]) else { return Ok(found) };
            found = next;
            at += frame_bytes;
        }
        window.drain(..at);
        at = 0;
        let read = file.take(1 << 20).read_to_end(&mut window)?;
        if read == 0 || window.len() > FRAME_BYTES_MAX {
            return Ok(found);
        }
    }
}

impl Found {
    /// With the blocks of one more frame; `None` where it is damaged or not one of packets.
    fn with_frame(&self, frame: &[u8]) -> Option<Found> {
        let blocks = zstd::bulk::decompress(frame, FRAME_BYTES_MAX).ok()?;
        let mut next = Found {
            bytes: self.bytes + frame.len() as u64,
            summary: self.summary,
            interfaces: self.interfaces.clone(),
        };
        let mut rest = &blocks[..];
        while !rest.is_empty() {
            let (block, behind) = pcapng::split_block(rest)?;
            rest = behind;
            match block.kind {
                pcapng::SECTION_HEADER if self.bytes == 0 => drop(pcapng::parse_section_header(&block)?),
                pcapng::INTERFACE_DESCRIPTION => {
                    // Only the counts matter from here on: the description itself is in the file.
                    next.interfaces.push(Interface { tap: TapId(0), link: 0, counts: InterfaceCounts::default() });
                }
                pcapng::ENHANCED_PACKET => {
                    let (interface, ts, bytes) = pcapng::parse_packet(&block)?;
                    let interface = next.interfaces.get_mut(interface as usize)?;
                    count_packet(&mut next.summary, &mut interface.counts, ts, bytes as usize);
                }
                _ => return None,
            }
        }
        Some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_safe_in_names() {
        let cases = [
            ("port scan", "port-scan"),
            ("../../etc/passwd", "etc-passwd"),
            ("Ünïcode — X", "n-code-x"),
            ("", "slice"),
            ("///", "slice"),
            ("a\0b\n", "a-b"),
            ("x--y-", "x-y"),
        ];
        for (label, clean) in cases {
            assert_eq!(clean_label(label), clean, "{label:?}");
            assert_eq!(clean_label(clean), clean);
        }
        let long = "ab-".repeat(100);
        assert!(clean_label(&long).len() <= 64);
    }

    #[test]
    fn names_say_number_and_label() {
        let path = path_of(Path::new("d"), SliceId(17), "a-b");
        let name = path.file_name().and_then(|name| name.to_str()).unwrap();
        assert_eq!(parse_name(name), Some((SliceId(17), "a-b")));
        for other in ["slice-0-a.pcapng.zst", "slice-x-a.pcapng.zst", "slice-1-A.pcapng.zst", "slice-1.pcapng.zst", "a"]
        {
            assert_eq!(parse_name(other), None, "{other}");
        }
    }

    #[test]
    fn files_that_are_no_slices_are_listed_as_such_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("notes.txt"), "mine").unwrap();
        fs::write(dir.path().join("slice-5-x.pcapng.zst"), "nonsense").unwrap();
        fs::write(dir.path().join("slice-6-x.pcapng.zst.tmp"), "nonsense").unwrap();
        fs::create_dir(dir.path().join("slice-7-x.pcapng.zst")).unwrap();
        let found = scan(dir.path()).unwrap();
        assert_eq!(found.iter().map(|slice| slice.id.0).collect::<Vec<_>>(), [5, 7]);
        assert!(
            found.iter().all(|slice| matches!(&slice.state, SliceState::Failed(why) if why.contains("cannot be read")))
        );
        assert_eq!(found[0].file_bytes, 8);
        let left = fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(left, 3, "the partial file without packets is gone");
    }
}
