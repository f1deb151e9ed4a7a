use crate::sys;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Compressed bytes that are read at a time.
const COMPRESSED_BYTES: usize = 128 * 1024;
/// How long a read from a pipe waits before it says `WouldBlock`, so that a stop flag is seen.
const PIPE_WAIT_MS: i32 = 100;

/// The decompressed bytes of a capture. What it is compressed with is known once four bytes were read.
pub(super) struct Input {
    stage: Stage,
    compression: Option<&'static str>,
    consumed: Arc<AtomicU64>,
    total: Option<u64>,
}

enum Stage {
    Sniff {
        raw: Raw,
        head: [u8; 4],
        have: usize,
    },
    Body(Box<dyn Read + Send>),
    /// The decompressor could not be set up.
    Failed,
}

/// The input as stored, with a count.
struct Raw {
    inner: Box<dyn Read + Send>,
    consumed: Arc<AtomicU64>,
}

impl Input {
    /// Opens a path, or standard input for `-`. The second value tells whether reads never wait for somebody else.
    pub(super) fn open(path: &Path) -> io::Result<(Input, bool)> {
        // A duplicate of descriptor 0 instead of `Stdin`, whose buffer `poll` would not see.
        let file = if path.as_os_str() == "-" {
            File::from(io::stdin().as_fd().try_clone_to_owned()?)
        } else {
            File::open(path)?
        };
        let meta = file.metadata()?;
        if meta.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        Ok(if meta.is_file() {
            (Input::new(Box::new(file), Some(meta.len())), true)
        } else {
            (Input::new(Box::new(Pipe(file)), None), false)
        })
    }

    pub(super) fn new(inner: Box<dyn Read + Send>, total: Option<u64>) -> Input {
        let consumed = Arc::new(AtomicU64::new(0));
        let raw = Raw { inner, consumed: Arc::clone(&consumed) };
        Input { stage: Stage::Sniff { raw, head: [0; 4], have: 0 }, compression: None, consumed, total }
    }

    /// An input that is read as it is.
    pub(super) fn plain(inner: Box<dyn Read + Send>) -> Input {
        let consumed = Arc::new(AtomicU64::new(0));
        let raw = Raw { inner, consumed: Arc::clone(&consumed) };
        Input { stage: Stage::Body(Box::new(raw)), compression: None, consumed, total: None }
    }

    /// `gzip` or `zstd`, once that is known.
    pub(super) fn compression(&self) -> Option<&'static str> {
        self.compression
    }

    pub(super) fn consumed(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.consumed)
    }

    pub(super) fn total(&self) -> Option<u64> {
        self.total
    }

    /// Reads the first four bytes and chooses what reads the rest.
    fn sniff(&mut self) -> io::Result<()> {
        let Stage::Sniff { raw, head, have } = &mut self.stage else { return Ok(()) };
        while *have < head.len() {
            match raw.read(&mut head[*have..])? {
                0 => break,
                n => *have += n,
            }
        }
        let (head, have) = (*head, *have);
        let Stage::Sniff { raw, .. } = std::mem::replace(&mut self.stage, Stage::Failed) else { return Ok(()) };
        let whole = io::Cursor::new(head[..have].to_vec()).chain(raw);
        let body: Box<dyn Read + Send> = match head {
            [0x1f, 0x8b, ..] => {
                self.compression = Some("gzip");
                let buffered = BufReader::with_capacity(COMPRESSED_BYTES, whole);
                Box::new(flate2::bufread::MultiGzDecoder::new(buffered))
            }
            // The second is a skippable frame (RFC 8878 section 3.1.2), with which parallel compressors begin.
            [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => {
                self.compression = Some("zstd");
                let buffered = BufReader::with_capacity(COMPRESSED_BYTES, whole);
                Box::new(zstd::stream::read::Decoder::with_buffer(buffered)?)
            }
            _ => Box::new(whole),
        };
        self.stage = Stage::Body(body);
        Ok(())
    }
}

impl Read for Input {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if matches!(self.stage, Stage::Sniff { .. }) {
            self.sniff()?;
        }
        match &mut self.stage {
            Stage::Body(body) => body.read(into),
            Stage::Sniff { .. } | Stage::Failed => Ok(0),
        }
    }
}

impl Read for Raw {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.inner.read(into) {
                Ok(n) => {
                    let consumed = self.consumed.load(Ordering::Relaxed) + n as u64;
                    self.consumed.store(consumed, Ordering::Relaxed);
                    return Ok(n);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
}

/// A pipe, terminal or socket: never blocks for longer than `PIPE_WAIT_MS`.
struct Pipe(File);

impl Read for Pipe {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if !sys::wait_readable(self.0.as_fd(), PIPE_WAIT_MS)? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.0.read(into)
    }
}
