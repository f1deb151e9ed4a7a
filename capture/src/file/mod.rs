//! Capture files: pcap and pcapng, as they are or compressed, from a path, standard input or any reader.

mod input;
mod pcap;
mod pcapng;
mod window;

use crate::{BatchHandler, Corruption, Polled, Progress, Source, SourceCounts, SourceError};
use input::Input;
use std::io::{self, Read};
use std::path::Path;
use window::Window;
use wire::{Frame, TapId};

/// Sizes of a [`FileSource`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileOptions {
    /// Bytes of the buffer that the file is read into; a larger record makes it grow. Best kept within the L2 cache.
    pub buffer_bytes: usize,
    /// Longest packet that is accepted, in bytes: a longer one counts as corruption.
    pub packet_bytes_max: usize,
}

impl Default for FileOptions {
    fn default() -> FileOptions {
        FileOptions { buffer_bytes: 256 * 1024, packet_bytes_max: 16 * 1024 * 1024 }
    }
}

/// Replays a capture. Frames are lent out of the read buffer: nothing is copied or allocated per packet.
pub struct FileSource {
    name: String,
    tap: TapId,
    packet_bytes_max: usize,
    input: Input,
    window: Window,
    format: Format,
    /// Bytes the window must hold before it is worth looking at again.
    need: usize,
    counts: SourceCounts,
    done: bool,
    /// Empty; its allocation is what each batch is gathered in.
    frames: Vec<Frame<'static>>,
}

enum Format {
    Unknown,
    Pcap(pcap::Pcap),
    Pcapng(pcapng::Pcapng),
}

/// Why the walk over a window ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    /// The batch is full.
    Full,
    /// What follows is incomplete: it takes this many bytes, from the first that was not consumed.
    Need(usize),
    Corrupt(Corruption),
}

impl FileSource {
    /// Opens a capture file, or standard input for `-`. Of a regular file the header is read here, so that a wrong
    /// file is refused before anything is started; of a pipe it is read by the first polls.
    ///
    /// # Errors
    /// [`SourceError::Open`], [`Empty`](SourceError::Empty), [`Magic`](SourceError::Magic),
    /// [`Version`](SourceError::Version), [`Read`](SourceError::Read), or [`Truncated`](SourceError::Truncated) and
    /// [`Decompress`](SourceError::Decompress) within the header.
    pub fn open(path: impl AsRef<Path>, tap: TapId, options: &FileOptions) -> Result<FileSource, SourceError> {
        let path = path.as_ref();
        let name = match path.as_os_str() == "-" {
            true => "standard input".to_owned(),
            false => path.display().to_string(),
        };
        let (input, prompt) = Input::open(path).map_err(|source| SourceError::Open { name: name.clone(), source })?;
        let mut file = FileSource::new(name, input, tap, options);
        while prompt && matches!(file.format, Format::Unknown) {
            file.detect()?;
        }
        Ok(file)
    }

    /// Reads a capture from any reader; `name` is what errors call it. A reader may say `WouldBlock`: the poll is then
    /// idle.
    pub fn from_reader(
        name: impl Into<String>,
        reader: impl Read + Send + 'static,
        tap: TapId,
        options: &FileOptions,
    ) -> FileSource {
        FileSource::new(name.into(), Input::new(Box::new(reader), None), tap, options)
    }

    /// As [`from_reader`](FileSource::from_reader), of bytes that nobody may have compressed: a remote host does not get
    /// to choose what we run over what it sends.
    pub(crate) fn from_stream(
        name: &str,
        reader: impl Read + Send + 'static,
        tap: TapId,
        options: &FileOptions,
    ) -> FileSource {
        FileSource::new(name.to_owned(), Input::plain(Box::new(reader)), tap, options)
    }

    /// Whether the header was read: packets may follow.
    pub(crate) fn has_header(&self) -> bool {
        !matches!(self.format, Format::Unknown)
    }

    fn new(name: String, input: Input, tap: TapId, options: &FileOptions) -> FileSource {
        FileSource {
            name,
            tap,
            packet_bytes_max: options.packet_bytes_max,
            input,
            window: Window::new(options.buffer_bytes.max(64)),
            format: Format::Unknown,
            need: 1,
            counts: SourceCounts::default(),
            done: false,
            frames: Vec::with_capacity(crate::BATCH_FRAMES_MAX),
        }
    }

    /// Finds out what the file is, or reads more of it.
    fn detect(&mut self) -> Result<Polled, SourceError> {
        let header = self.window.bytes();
        let Some((&magic, _)) = header.split_first_chunk::<4>() else {
            return self.read(4);
        };
        if magic == pcapng::MAGIC {
            self.format = Format::Pcapng(pcapng::Pcapng::default());
        } else if !pcap::is_magic(magic) {
            self.done = true;
            return Err(SourceError::Magic { name: self.name.clone(), magic });
        } else if let Some((header, _)) = header.split_first_chunk() {
            self.format = Format::Pcap(pcap::Pcap::new(header).map_err(|e| {
                self.done = true;
                let name = self.name.clone();
                match e {
                    pcap::HeaderError::Magic => SourceError::Magic { name, magic },
                    pcap::HeaderError::Version { major, minor } => SourceError::Version { name, major, minor },
                }
            })?);
            self.window.consume(pcap::HEADER_BYTES);
        } else {
            return self.read(pcap::HEADER_BYTES);
        }
        Ok(Polled::Packets(0))
    }

    /// Delivers the packets that are complete in the window, or says what they lack.
    fn deliver(&mut self, handler: &mut dyn BatchHandler) -> Result<usize, Stop> {
        if self.window.bytes().len() < self.need {
            return Err(Stop::Need(self.need));
        }
        let mut frames = recycle(std::mem::take(&mut self.frames));
        let (bytes, position) = (self.window.bytes(), self.window.position());
        let (used, stop) = match &mut self.format {
            Format::Unknown => (0, Stop::Need(4)),
            Format::Pcap(pcap) => pcap.frames(bytes, self.tap, self.packet_bytes_max, &mut frames),
            Format::Pcapng(pcapng) => pcapng.frames(bytes, position, self.tap, self.packet_bytes_max, &mut frames),
        };
        let count = frames.len();
        if count > 0 {
            handler.batch(&frames);
            self.counts.deliver(&frames);
        }
        self.frames = recycle(frames);
        self.window.consume(used);
        self.need = match stop {
            Stop::Need(bytes) => bytes,
            _ => 1,
        };
        if count > 0 { Ok(count) } else { Err(stop) }
    }

    /// Reads once, after making room for `need` bytes; the end of the input is an error unless it ends in order.
    fn read(&mut self, need: usize) -> Result<Polled, SourceError> {
        match self.window.fill(&mut self.input, need) {
            Ok(0) => self.end(need as u64),
            Ok(_) => Ok(Polled::Packets(0)),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(Polled::Idle),
            Err(source) => {
                self.done = true;
                let (name, at_byte, packets) = (self.name.clone(), self.window.end_position(), self.counts.delivered);
                Err(match self.input.compression() {
                    Some(format) => SourceError::Decompress { name, format, at_byte, packets, source },
                    None => SourceError::Read { name, at_byte, packets, source },
                })
            }
        }
    }

    #[cold]
    fn end(&mut self, need: u64) -> Result<Polled, SourceError> {
        self.done = true;
        let (position, end) = (self.window.position(), self.window.end_position());
        let (at_byte, need_bytes) = match &self.format {
            Format::Unknown if end == 0 => return Err(SourceError::Empty { name: self.name.clone() }),
            Format::Pcap(pcap) if position == end && pcap.impossible_times > 0 => {
                let (name, packets) = (self.name.clone(), self.counts.delivered);
                return Err(SourceError::Times { name, packets, impossible: pcap.impossible_times });
            }
            Format::Pcap(_) if position == end => return Ok(Polled::End),
            Format::Pcapng(pcapng) if position == end && pcapng.between_blocks() => return Ok(Polled::End),
            Format::Pcapng(pcapng) => pcapng.record_at(position, need),
            _ => (position, need),
        };
        let (name, have_bytes, packets) = (self.name.clone(), end - at_byte, self.counts.delivered);
        Err(SourceError::Truncated { name, at_byte, need_bytes, have_bytes, packets })
    }

    #[cold]
    fn corrupt(&mut self, reason: Corruption) -> SourceError {
        self.done = true;
        let at_byte = match &self.format {
            Format::Pcapng(pcapng) => pcapng.record_at(self.window.position(), 0).0,
            _ => self.window.position(),
        };
        SourceError::Corrupt { name: self.name.clone(), at_byte, packets: self.counts.delivered, reason }
    }
}

impl Source for FileSource {
    fn poll(&mut self, handler: &mut dyn BatchHandler) -> Result<Polled, SourceError> {
        if self.done {
            return Ok(Polled::End);
        }
        if matches!(self.format, Format::Unknown) {
            return self.detect();
        }
        let mut polled = Polled::Packets(0);
        for look_again in [true, false] {
            match self.deliver(handler) {
                Ok(count) => return Ok(Polled::Packets(count)),
                Err(Stop::Full) => break,
                Err(Stop::Corrupt(reason)) => return Err(self.corrupt(reason)),
                Err(Stop::Need(bytes)) if look_again => polled = self.read(bytes)?,
                Err(Stop::Need(_)) => break,
            }
            if polled != Polled::Packets(0) {
                break;
            }
        }
        Ok(polled)
    }

    fn counts(&self) -> SourceCounts {
        self.counts
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn progress(&self) -> Option<Progress> {
        Some(Progress::new(self.input.consumed(), self.input.total()))
    }
}

/// What of a record is data, and how long its packet was. A wire length below what was captured leaves the rest of the
/// record out, as tshark does; a wire length of 0 means that the writer did not know it.
#[inline]
fn lengths(captured: &[u8], wire_len: u32) -> (&[u8], u32) {
    let len = captured.len() as u32;
    match wire_len {
        0 => (captured, len),
        _ if wire_len < len => (&captured[..wire_len as usize], wire_len),
        _ => (captured, wire_len),
    }
}

/// An empty vector of frames of any lifetime in the allocation of another: collecting from `IntoIter` of an element
/// type of the same layout reuses it (a test with a counting allocator holds the standard library to that).
pub(crate) fn recycle<'b>(mut frames: Vec<Frame<'_>>) -> Vec<Frame<'b>> {
    frames.clear();
    frames.into_iter().map(|_| unreachable!("the vector was cleared")).collect()
}
