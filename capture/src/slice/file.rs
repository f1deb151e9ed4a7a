//! The file of one slice while it is written.

use super::EndReason;
use super::pcapng::{self, Header, InterfaceCounts, Summary};
use super::queue::Staged;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use wire::{Nanos, TapId};
use zstd::bulk::Compressor;

/// Uncompressed bytes of a zstd frame. Each frame is whole in itself, so that a disk that fills up or a machine that
/// dies costs the frame that is being written and none before it.
const FRAME_BYTES: usize = 1 << 20;
/// A frame is written after this time even if little is in it: what a crash can cost.
const FRAME_MAX: Duration = Duration::from_secs(1);
/// Measured on captures, higher levels cost far more than they save.
const ZSTD_LEVEL: i32 = 1;
/// Interfaces (a tap and a link type) of one slice. A capture file may describe thousands.
const INTERFACES_MAX: usize = 256;
/// What the file's name ends with until it is complete.
pub(super) const PARTIAL_SUFFIX: &str = ".tmp";

/// A slice's file, under its partial name until [`finish`](SliceFile::finish).
pub(super) struct SliceFile {
    path: PathBuf,
    partial: PathBuf,
    disk: Disk,
    compressor: Compressor<'static>,
    /// Blocks of the frame that is being gathered.
    raw: Vec<u8>,
    /// When the last frame was written.
    written_at: Instant,
    now: Mark,
    /// After the last frame and the one before: where to go back to when the disk is full.
    marks: [Mark; 2],
}

/// What the file holds up to some place.
#[derive(Clone, Default)]
struct Mark {
    /// Compressed.
    bytes: u64,
    summary: Summary,
    interfaces: Vec<Interface>,
}

#[derive(Clone, Copy)]
pub(super) struct Interface {
    pub(super) tap: TapId,
    /// LINKTYPE_ value.
    pub(super) link: u16,
    pub(super) counts: InterfaceCounts,
}

/// The file, or in tests one on a disk that is as full as they like.
struct Disk {
    file: File,
    #[cfg(test)]
    room: u64,
}

impl Disk {
    fn new(file: File) -> Disk {
        Disk {
            file,
            #[cfg(test)]
            room: u64::MAX,
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        #[cfg(test)]
        if bytes.len() as u64 > self.room {
            self.file.write_all(&bytes[..self.room as usize])?;
            self.room = 0;
            return Err(io::ErrorKind::StorageFull.into());
        }
        #[cfg(test)]
        {
            self.room -= bytes.len() as u64;
        }
        self.file.write_all(bytes)
    }

    /// Back to a length the file had before.
    fn cut(&mut self, bytes: u64) -> io::Result<()> {
        use io::Seek;
        #[cfg(test)]
        {
            let back = self.file.metadata()?.len() - bytes;
            self.room = self.room.saturating_add(back);
        }
        self.file.set_len(bytes)?;
        self.file.seek(io::SeekFrom::Start(bytes)).map(|_| ())
    }
}

impl SliceFile {
    /// Creates the file and writes its section header, as a frame of its own.
    pub(super) fn create(path: &Path, header: &Header) -> io::Result<SliceFile> {
        let partial = partial_path(path);
        let file = OpenOptions::new().write(true).create_new(true).open(&partial)?;
        let mut slice = SliceFile::new(path, partial, file, Mark::default())?;
        pcapng::section_header(&mut slice.raw, header);
        slice.write_frame().inspect_err(|_| slice.remove())?;
        Ok(slice)
    }

    /// Goes on with a partial file that ends after `bytes`, to finish it.
    pub(super) fn resume(
        path: &Path,
        file: File,
        bytes: u64,
        summary: Summary,
        interfaces: Vec<Interface>,
    ) -> io::Result<SliceFile> {
        let mark = Mark { bytes, summary, interfaces };
        let mut slice = SliceFile::new(path, partial_path(path), file, mark)?;
        slice.disk.cut(bytes)?;
        Ok(slice)
    }

    fn new(path: &Path, partial: PathBuf, file: File, now: Mark) -> io::Result<SliceFile> {
        let mut compressor = Compressor::new(ZSTD_LEVEL)?;
        // Damage shows when the file is read, or searched for what is whole.
        compressor.include_checksum(true)?;
        Ok(SliceFile {
            path: path.to_owned(),
            partial,
            disk: Disk::new(file),
            compressor,
            raw: Vec::new(),
            written_at: Instant::now(),
            marks: [now.clone(), now.clone()],
            now,
        })
    }

    /// Numbers of what was added so far.
    pub(super) fn summary(&self) -> &Summary {
        &self.now.summary
    }

    /// Compressed bytes on the disk.
    pub(super) fn bytes(&self) -> u64 {
        self.now.bytes
    }

    /// Adds a packet; `name` is that of its tap. Writes a frame when one is full.
    pub(super) fn add(&mut self, packet: &Staged, name: impl FnOnce() -> String) -> io::Result<()> {
        let known = self.now.interfaces.iter().position(|i| (i.tap, i.link) == (packet.tap, packet.link));
        let number = match known {
            Some(number) => number,
            None if self.now.interfaces.len() == INTERFACES_MAX => {
                self.now.summary.lost_disk += 1;
                return Ok(());
            }
            None => self.describe(packet.tap, packet.link, &name()),
        };
        pcapng::packet(&mut self.raw, number as u32, packet.ts, packet.wire_len, &packet.data);
        self.now.count(number, packet.ts, packet.data.len());
        if self.raw.len() >= FRAME_BYTES { self.write_frame() } else { Ok(()) }
    }

    fn describe(&mut self, tap: TapId, link: u16, name: &str) -> usize {
        pcapng::interface(&mut self.raw, link, name);
        self.now.interfaces.push(Interface { tap, link, counts: InterfaceCounts::default() });
        self.now.interfaces.len() - 1
    }

    /// Writes what has waited for long enough.
    pub(super) fn write_if_due(&mut self, now: Instant) -> io::Result<()> {
        let is_due = !self.raw.is_empty() && now.duration_since(self.written_at) >= FRAME_MAX;
        if is_due { self.write_frame() } else { Ok(()) }
    }

    /// Writes the gathered blocks as one frame. After an error the file is as it was before the call, and the packets
    /// of the frame count as lost.
    fn write_frame(&mut self) -> io::Result<()> {
        if self.raw.is_empty() {
            return Ok(());
        }
        let frame = self.compressor.compress(&self.raw)?;
        self.raw.clear();
        self.written_at = Instant::now();
        if let Err(error) = self.disk.write(&frame) {
            self.go_back(1)?;
            return Err(error);
        }
        self.now.bytes += frame.len() as u64;
        self.marks = [std::mem::take(&mut self.marks[1]), self.now.clone()];
        Ok(())
    }

    /// Back to `marks[which]`. What came after is lost.
    fn go_back(&mut self, which: usize) -> io::Result<()> {
        let mut mark = self.marks[which].clone();
        let (now, then) = (self.now.summary, mark.summary);
        mark.summary.lost_disk = now.lost_disk + (now.packets - then.packets);
        self.disk.cut(mark.bytes)?;
        self.raw.clear();
        self.now = mark.clone();
        self.marks[1] = mark;
        Ok(())
    }

    /// Completes the file and gives it its name. `summary` has what only the writer knows: reason, drops, trigger.
    /// The final numbers, and the error for which the slice is shorter than it should be.
    pub(super) fn finish(mut self, ended: &Summary, name: impl FnOnce() -> String) -> io::Result<(Summary, u64)> {
        let mut full = self.write_frame().err();
        if self.now.interfaces.is_empty() {
            // Readers insist on one. No packet says which, so that of Ethernet is as good as any.
            self.describe(TapId(0), 1, &name());
        }
        if let Err(error) = self.write_statistics(ended, full.is_some()) {
            // One frame less is better than no file.
            self.go_back(0)?;
            if self.now.interfaces.is_empty() {
                return Err(error);
            }
            full = Some(error);
            self.write_statistics(ended, true)?;
        }
        if let Some(error) = full.filter(|error| error.kind() != io::ErrorKind::StorageFull) {
            return Err(error);
        }
        self.disk.file.sync_all()?;
        fs::rename(&self.partial, &self.path)?;
        sync_folder(&self.path)?;
        Ok((self.now.summary, self.now.bytes))
    }

    fn write_statistics(&mut self, ended: &Summary, full: bool) -> io::Result<()> {
        // In a frame of its own, so that it can be read without those before; what describes an interface is not.
        self.write_frame()?;
        let ended_by = if full { Some(EndReason::DiskFull) } else { ended.ended_by };
        let summary = &mut self.now.summary;
        (summary.ended_by, summary.at) = (ended_by, ended.at);
        (summary.dropped_queue_full, summary.overwritten) = (ended.dropped_queue_full, ended.overwritten);
        let counts: Vec<_> = self.now.interfaces.iter().map(|interface| interface.counts).collect();
        pcapng::statistics(&mut self.raw, &counts, &self.now.summary);
        self.write_frame()
    }

    /// Removes the partial file.
    pub(super) fn remove(&self) {
        // What cannot be removed now is, when the folder is next read.
        let _ = fs::remove_file(&self.partial);
    }
}

impl Mark {
    fn count(&mut self, interface: usize, ts: Nanos, bytes: usize) {
        count_packet(&mut self.summary, &mut self.interfaces[interface].counts, ts, bytes);
    }
}

/// Adds a packet to the numbers.
pub(super) fn count_packet(summary: &mut Summary, counts: &mut InterfaceCounts, ts: Nanos, bytes: usize) {
    summary.packets += 1;
    summary.bytes += bytes as u64;
    counts.received += 1;
    let pairs = [(&mut summary.first_ts, &mut summary.last_ts), (&mut counts.first_ts, &mut counts.last_ts)];
    for (first, last) in pairs {
        *first = Some(first.map_or(ts, |first| first.min(ts)));
        *last = Some(last.map_or(ts, |last| last.max(ts)));
    }
}

/// Where a file is while it is incomplete.
fn partial_path(path: &Path) -> PathBuf {
    let mut partial = path.as_os_str().to_owned();
    partial.push(PARTIAL_SUFFIX);
    partial.into()
}

/// Makes a name durable (fsync(2): the fsync of a file does not cover its name).
fn sync_folder(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::super::SliceId;
    use super::super::folder;
    use super::super::queue::queue;
    use super::*;
    use crate::{BatchHandler, FileOptions, FileSource, Polled, Source};
    use wire::{Frame, LinkType};

    fn header() -> Header {
        Header { id: SliceId(7), label: "x".into(), reason: "test".into(), filter: String::new() }
    }

    fn ended() -> Summary {
        Summary { ended_by: Some(EndReason::Duration), at: Some(Nanos(3)), ..Summary::default() }
    }

    /// Packets that do not compress.
    fn packets(count: u64) -> Vec<Staged> {
        let (mut sender, mut receiver) = queue(16 << 20);
        let mut state = 1_u64;
        let mut staged = Vec::new();
        for i in 0..count {
            let data: Vec<u8> = (0..1000)
                .map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    (state >> 56) as u8
                })
                .collect();
            let frame =
                Frame { data: &data, wire_len: 1500, ts: Nanos(i + 10), link: LinkType::Ethernet, tap: TapId(0) };
            sender.send(SliceId(7), &frame);
            receiver.receive(|_, packet| staged.push(packet));
        }
        assert_eq!(staged[0].link, LinkType::Ethernet.linktype());
        staged
    }

    #[derive(Default)]
    struct Times(Vec<u64>);

    impl BatchHandler for Times {
        fn batch(&mut self, frames: &[Frame<'_>]) {
            assert!(frames.iter().all(|frame| frame.wire_len == 1500 && frame.data.len() == 1000));
            self.0.extend(frames.iter().map(|frame| frame.ts.0));
        }
        fn idle(&mut self, _: Nanos) {}
    }

    fn times(path: &Path) -> Vec<u64> {
        let mut source = FileSource::open(path, TapId(0), &FileOptions::default()).unwrap();
        let mut times = Times::default();
        while source.poll(&mut times).unwrap() != Polled::End {}
        times.0
    }

    /// Whatever the room, the file is complete, holds the first packets, and says how many are missing.
    #[test]
    fn a_full_disk_costs_the_last_frames_and_nothing_else() {
        let packets = packets(3000);
        for room in [0, 10, 1_048_000, 1_049_000, 1_300_000, 2_099_000, 2_100_000, 2_500_000, 3_200_000] {
            let dir = tempfile::tempdir().unwrap();
            let path = folder::path_of(dir.path(), SliceId(7), "x");
            let mut file = SliceFile::create(&path, &header()).unwrap();
            file.disk.room = room;
            let mut failed = false;
            for packet in &packets {
                if let Err(error) = file.add(packet, String::new) {
                    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
                    failed = true;
                    break;
                }
            }
            let ended =
                Summary { ended_by: Some(if failed { EndReason::DiskFull } else { EndReason::Duration }), ..ended() };
            let result = file.finish(&ended, || "tap".into());
            let Ok((summary, bytes)) = result else {
                assert!(room < 1_050_000, "with room for {room} bytes: {:?}", result.err());
                continue;
            };
            assert_eq!(bytes, fs::metadata(&path).unwrap().len());
            let found = times(&path);
            assert_eq!(found, (10..10 + found.len() as u64).collect::<Vec<_>>());
            assert_eq!(summary.packets, found.len() as u64);
            assert_eq!(failed || found.len() < 3000, summary.ended_by == Some(EndReason::DiskFull), "room {room}");
            assert_eq!(summary.lost_disk == 0, found.len() == 3000, "room {room}");
            let info = folder::read_info(&path).unwrap();
            assert_eq!(
                (info.packets, info.ended_by, info.lost_disk),
                (summary.packets, summary.ended_by, summary.lost_disk)
            );
        }
    }

    #[test]
    fn an_empty_slice_is_a_capture_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = folder::path_of(dir.path(), SliceId(7), "x");
        let file = SliceFile::create(&path, &header()).unwrap();
        file.finish(&ended(), || "tap".into()).unwrap();
        assert_eq!(times(&path), [0_u64; 0]);
        let info = folder::read_info(&path).unwrap();
        assert_eq!((info.packets, info.at, info.reason.as_str()), (0, Some(Nanos(3)), "test"));
    }

    /// What a crash leaves, cut anywhere: the whole frames of it come back.
    #[test]
    fn a_partial_file_is_completed_with_its_whole_frames() {
        let packets = packets(2500);
        let dir = tempfile::tempdir().unwrap();
        let path = folder::path_of(dir.path(), SliceId(7), "x");
        let mut file = SliceFile::create(&path, &header()).unwrap();
        let mut frames = vec![(file.bytes(), 0)];
        for packet in &packets {
            file.add(packet, String::new).unwrap();
            if frames.last().is_some_and(|(bytes, _)| *bytes != file.bytes()) {
                frames.push((file.bytes(), file.summary().packets));
            }
        }
        assert_eq!(frames.len(), 3, "a header and two full frames");
        let partial = partial_path(&path);
        let whole = fs::read(&partial).unwrap();
        drop(file);
        for cut in
            [0, 5, frames[0].0, frames[0].0 + 9, frames[1].0 - 1, frames[1].0, frames[1].0 + 400_000, frames[2].0]
        {
            fs::write(&partial, &whole[..cut as usize]).unwrap();
            let recovered = folder::recover(&path, &partial);
            let expected = frames.iter().rev().find(|(bytes, _)| *bytes <= cut).map_or(0, |(_, packets)| *packets);
            assert_eq!(recovered.is_ok_and(|found| found), expected > 0, "cut at {cut}");
            if expected > 0 {
                assert_eq!(times(&path).len() as u64, expected);
                let info = folder::read_info(&path).unwrap();
                assert_eq!(
                    (info.packets, info.bytes, info.ended_by),
                    (expected, expected * 1000, Some(EndReason::Crash))
                );
                fs::remove_file(&path).unwrap();
            }
            assert!(fs::read_dir(dir.path()).unwrap().next().is_none(), "cut at {cut}");
        }
    }
}
