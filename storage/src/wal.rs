//! The write-ahead log: one file for each segment to be.
//!
//! A file is a 24-byte head (`TAPHWAL2`, the file's number as u64, a random u32, 0 as u32, LE) and frames: a mark, length
//! of the payload, rows in it and number of its stream, CRC-32 (IEEE) of these two and the payload (u32 LE each), payload. The payloads, one after the other, are Arrow
//! IPC streams, one batch a frame, of columns as `pack.rs` makes them, in lz4 frames where that is worth it; a frame marked `TYPE` begins a stream, with schema
//! and dictionaries, one marked `ROWS` goes on with it. The frames are there because a stream has no checksum of its own:
//! after a power cut a tail may have the right length and wrong bytes. Their mark lets a reader find the next good frame
//! after a bad one; the number of its stream tells whether what it needs was in the bad one; and the checksums begin with
//! the random number, so that nobody can send packets that look like a frame when they lie in the log. In files of version 1 (`TAPHWAL1`) all is one stream, of the table's own columns, in lz4 frames.

use crate::StorageError;
use crate::disk::{self, Disk, DiskFile, Open};
use crate::error::IoContext;
use crate::pack::{Packer, unpack};
use crate::table::TableInfo;
use arrow::buffer::Buffer;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::ipc::reader::StreamDecoder;
use arrow::ipc::writer::{IpcWriteOptions, StreamWriter};
use arrow::ipc::{CompressionType, MetadataVersion};
use arrow::record_batch::RecordBatch;
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const MAGIC: &[u8; 8] = b"TAPHWAL2";
const MAGIC_1: &[u8; 8] = b"TAPHWAL1";
const HEAD_BYTES: usize = 24;
const HEAD_1_BYTES: usize = 16;
/// Of a frame that goes on with the stream of the one before.
const ROWS: &[u8; 4] = b"ROWS";
/// Of a frame that begins a stream.
const TYPE: &[u8; 4] = b"TYPE";
const FRAME_HEAD_BYTES: usize = 16;
/// Bits of the rows in the second word of a frame's head; above them is the number of its stream, from 1; 0 in version 1.
const ROWS_BITS: u32 = 20;
/// Streams of a file: far more than the widenings its columns can have.
const STREAMS_MAX: u32 = u32::MAX >> ROWS_BITS;
const STUCK: &str = "an earlier frame that this one needs is damaged";

/// A log file being written.
pub(crate) struct WalWriter {
    pub(crate) id: u64,
    pub(crate) path: PathBuf,
    file: Box<dyn DiskFile>,
    packer: Packer,
    /// The stream at hand, and the schema of its batches.
    stream: Option<(StreamWriter<Vec<u8>>, SchemaRef)>,
    /// Streams begun.
    streams: u32,
    /// What the checksums begin with.
    salt: u32,
    /// Bytes written.
    pub(crate) bytes: u64,
    /// Of those, not yet synced.
    pub(crate) bytes_unsynced: u64,
}

impl WalWriter {
    /// Creates the file. Its name becomes durable with the first `sync`.
    pub(crate) fn create(disk: &dyn Disk, path: PathBuf, id: u64) -> Result<WalWriter, StorageError> {
        let mut file = disk.open(&path, Open::CreateNew).at("create", &path)?;
        let salt = RandomState::new().hash_one(id) as u32;
        let mut head = MAGIC.to_vec();
        head.extend_from_slice(&id.to_le_bytes());
        head.extend_from_slice(&u64::from(salt).to_le_bytes());
        let named = file.write_all(&head).and_then(|()| disk.sync_dir(disk::parent(&path)));
        if let Err(error) = named {
            let _ = disk.remove_file(&path);
            return Err(error).at("write", &path);
        }
        let bytes = head.len() as u64;
        let (packer, stream, streams) = (Packer::default(), None, 0);
        Ok(WalWriter { id, path, file, packer, stream, streams, salt, bytes, bytes_unsynced: bytes })
    }

    /// Appends a batch of the table. After an error the file ends where it ended before, or in a torn frame;
    /// nothing may be appended to it any more.
    pub(crate) fn append(&mut self, batch: &RecordBatch) -> Result<(), StorageError> {
        let failed = StorageError::arrow("encode rows for the log");
        let packed = self.packer.pack(batch).map_err(&failed)?;
        let (mark, stream) = match &mut self.stream {
            Some((stream, schema)) if Arc::ptr_eq(schema, packed.schema_ref()) => {
                // The stream's own buffer holds the payload, after room for the frame's head.
                stream.get_mut().extend_from_slice(&[0; FRAME_HEAD_BYTES]);
                stream.write(&packed).map_err(failed)?;
                (ROWS, stream)
            }
            stream => {
                self.streams = (self.streams + 1).min(STREAMS_MAX);
                (TYPE, &mut stream.insert((begin(&packed).map_err(failed)?, packed.schema())).0)
            }
        };
        let buffer = stream.get_mut();
        let (head, payload) = buffer.split_at_mut(FRAME_HEAD_BYTES);
        head[..4].copy_from_slice(mark);
        head[4..8].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        let rows = batch.num_rows() as u32 | self.streams << ROWS_BITS;
        head[8..12].copy_from_slice(&rows.to_le_bytes());
        let crc = checksum(self.salt, &head[4..12], payload);
        head[12..].copy_from_slice(&crc.to_le_bytes());
        let written = self.file.write_all(buffer);
        let length = buffer.len() as u64;
        buffer.clear();
        if let Err(error) = written {
            // Gives a full disk back what the torn frame took; recovery copes if this fails too.
            let _ = self.file.set_len(self.bytes);
            return Err(error).at("write", &self.path);
        }
        self.bytes += length;
        self.bytes_unsynced += length;
        Ok(())
    }

    /// Makes everything appended durable.
    pub(crate) fn sync(&mut self) -> Result<(), StorageError> {
        self.file.sync().at("sync", &self.path)?;
        self.bytes_unsynced = 0;
        Ok(())
    }
}

/// A stream that begins with this batch, behind room for a frame's head: in lz4 frames where that saves more than three
/// quarters, as it does with columns of few values. With others it would cost more time than all else together, for bytes that
/// are gone as soon as the segment is written.
fn begin(batch: &RecordBatch) -> Result<StreamWriter<Vec<u8>>, ArrowError> {
    let stream = |compression| {
        let options = IpcWriteOptions::try_new(8, false, MetadataVersion::V5)?.try_with_compression(compression)?;
        let mut stream = StreamWriter::try_new_with_options(vec![0; FRAME_HEAD_BYTES], batch.schema_ref(), options)?;
        stream.write(batch)?;
        Ok::<_, ArrowError>(stream)
    };
    let (plain, smaller) = (stream(None)?, stream(Some(CompressionType::LZ4_FRAME))?);
    Ok(if smaller.get_ref().len() * 4 < plain.get_ref().len() { smaller } else { plain })
}

fn checksum(salt: u32, head: &[u8], payload: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new_with_initial(salt);
    crc.update(head);
    crc.update(payload);
    crc.finalize()
}

/// Reads a log file, also one that is being written: each call of `read_more` goes on where the last one stopped.
pub(crate) struct WalReader {
    table: &'static TableInfo,
    path: PathBuf,
    file: Box<dyn DiskFile>,
    decoder: StreamDecoder,
    /// The stream it decodes.
    stream: u32,
    /// What the checksums begin with.
    salt: u32,
    /// A good frame could not be decoded (the one with the schema is missing): none of the later ones of its stream can.
    stuck: bool,
    /// Start of the first frame not read yet.
    at: u64,
    /// Batches read so far, with the table's columns.
    pub(crate) batches: Vec<RecordBatch>,
}

/// What a reader could not read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct WalEnd {
    /// Bytes after the last good frame: of a frame cut short, or one still being written.
    pub(crate) torn_bytes: u64,
    /// Rows the torn frame's head says it had, if there is one.
    pub(crate) torn_rows: u64,
    /// Where the first bad stretch begins that has good frames after it, and what is wrong there.
    pub(crate) damage: Option<(u64, String)>,
    /// Bytes in such stretches.
    pub(crate) damaged_bytes: u64,
}

impl WalReader {
    /// Opens a log file. `Ok(None)` if its head is there in part: nothing was ever stored in it.
    ///
    /// # Errors
    /// `Damaged` if it is no log file.
    pub(crate) fn open(
        disk: &dyn Disk,
        path: &Path,
        table: &'static TableInfo,
    ) -> Result<Option<WalReader>, StorageError> {
        let file = disk.open(path, Open::Read).at("open", path)?;
        let mut head = [0; HEAD_BYTES];
        let read = disk::read_full(&*file, &mut head, 0).at("read", path)?;
        // A crash may leave of a head what comes first, and zeros behind it.
        let is_begun = |magic: &&[u8; 8]| {
            let same = head[..read].iter().zip(*magic).take_while(|(a, b)| a == b).count();
            same == magic.len().min(read) || (read < HEAD_BYTES && head[same..read].iter().all(|byte| *byte == 0))
        };
        if ![MAGIC, MAGIC_1].iter().any(is_begun) {
            let is_newer = head.starts_with(&MAGIC[..7]) && head[7] > MAGIC[7];
            let reason =
                if is_newer { "it is a log of a newer version" } else { "it does not begin as a taphouse log does" };
            let reason = reason.to_owned();
            return Err(StorageError::Damaged { path: path.to_owned(), offset: 0, reason });
        }
        let length = if head.starts_with(MAGIC_1) { HEAD_1_BYTES } else { HEAD_BYTES };
        if read < length {
            return Ok(None);
        }
        let reader = WalReader {
            table,
            path: path.to_owned(),
            file,
            decoder: StreamDecoder::new(),
            stream: 0,
            salt: if length == HEAD_BYTES { u32::from_le_bytes([head[16], head[17], head[18], head[19]]) } else { 0 },
            stuck: false,
            at: length as u64,
            batches: Vec::new(),
        };
        Ok(Some(reader))
    }

    /// Reads the frames that have been completed since. Holds what is new of the file in memory.
    pub(crate) fn read_more(&mut self) -> Result<WalEnd, StorageError> {
        let bytes = disk::read_from(&*self.file, self.at).at("read", &self.path)?;
        let mut rest = bytes.as_slice();
        let mut end = WalEnd::default();
        while !rest.is_empty() {
            match Frame::split(rest, self.salt) {
                Ok((frame, after)) => {
                    if frame.begins {
                        (self.decoder, self.stream, self.stuck) = (StreamDecoder::new(), frame.stream, false);
                    }
                    // The frame a stream begins with may be one that was skipped.
                    let read = match self.stuck || frame.stream != self.stream {
                        true => Err(STUCK.to_owned()),
                        false => decode(&mut self.decoder, self.table, &frame),
                    };
                    let length = rest.len() - after.len();
                    match read {
                        Ok(batches) => self.batches.extend(batches),
                        Err(reason) => {
                            self.stuck = true;
                            end.damage.get_or_insert((self.at, reason));
                            end.damaged_bytes += length as u64;
                        }
                    }
                    self.at += length as u64;
                    rest = after;
                }
                Err(reason) => {
                    let Some(skipped) = next_frame(rest, self.salt) else {
                        end.torn_bytes = rest.len() as u64;
                        end.torn_rows = torn_rows(rest);
                        break;
                    };
                    end.damage.get_or_insert((self.at, reason));
                    end.damaged_bytes += skipped as u64;
                    self.at += skipped as u64;
                    rest = &rest[skipped..];
                }
            }
        }
        Ok(end)
    }
}

struct Frame<'a> {
    /// Whether a stream begins here.
    begins: bool,
    /// Its number.
    stream: u32,
    rows: usize,
    payload: &'a [u8],
}

impl Frame<'_> {
    /// The frame `bytes` begin with, and what follows it.
    fn split(bytes: &[u8], salt: u32) -> Result<(Frame<'_>, &[u8]), String> {
        let (head, rest) = bytes.split_first_chunk::<FRAME_HEAD_BYTES>().ok_or("the head of a frame is cut short")?;
        if !is_mark(&head[..4]) {
            return Err("no frame begins here".to_owned());
        }
        let (payload, rest) = rest.split_at_checked(word(head, 4) as usize).ok_or("a frame is cut short")?;
        if checksum(salt, &head[4..12], payload) != word(head, 12) {
            return Err("the checksum of a frame does not match".to_owned());
        }
        let (rows, stream) = rows_and_stream(head);
        Ok((Frame { begins: head.starts_with(TYPE), stream, rows, payload }, rest))
    }
}

fn rows_and_stream(head: &[u8; FRAME_HEAD_BYTES]) -> (usize, u32) {
    let both = word(head, 8);
    ((both & ((1 << ROWS_BITS) - 1)) as usize, both >> ROWS_BITS)
}

fn is_mark(bytes: &[u8]) -> bool {
    bytes == ROWS || bytes == TYPE
}

fn word(head: &[u8; FRAME_HEAD_BYTES], at: usize) -> u32 {
    u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]])
}

/// Where the next good frame begins, after a bad one at 0.
fn next_frame(bytes: &[u8], salt: u32) -> Option<usize> {
    let marks = bytes.windows(ROWS.len()).enumerate().skip(1).filter(|(_, mark)| is_mark(mark));
    marks.map(|(at, _)| at).find(|&at| Frame::split(&bytes[at..], salt).is_ok())
}

/// What the head of a torn frame says; a count no frame has means that the head is torn too.
fn torn_rows(bytes: &[u8]) -> u64 {
    match bytes.first_chunk::<FRAME_HEAD_BYTES>() {
        Some(head) if is_mark(&head[..4]) && rows_and_stream(head).0 <= FRAME_ROWS_MAX => {
            rows_and_stream(head).0 as u64
        }
        _ => 0,
    }
}

/// Rows of a frame at most (`StoreOptions::batch_rows`).
const FRAME_ROWS_MAX: usize = 64 << 10;

/// The batches of one frame: as a rule exactly one.
fn decode(decoder: &mut StreamDecoder, table: &TableInfo, frame: &Frame<'_>) -> Result<Vec<RecordBatch>, String> {
    let mut input = Buffer::from(frame.payload);
    let mut batches = Vec::new();
    while !input.is_empty() {
        if let Some(batch) = decoder.decode(&mut input).map_err(|error| error.to_string())? {
            // Columns of nothing take no bytes: their rows are as many as somebody says.
            if batch.num_rows() != frame.rows {
                return Err(format!("a batch of {} rows in a frame of {}", batch.num_rows(), frame.rows));
            }
            let batch = unpack(&(table.schema)(), &batch).and_then(|batch| table.conform(&batch));
            batches.push(batch.map_err(|error| error.to_string())?);
        }
    }
    Ok(batches)
}

#[cfg(test)]
impl WalWriter {
    /// Makes every write fail as on a full disk.
    pub(crate) fn fill_disk(&mut self) {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full");
        self.file = Box::new(full.expect("every Linux has /dev/full"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SALT: u32 = 0xdead_beef;

    /// Two frames with payloads that look like frames themselves, in part.
    fn two_frames() -> (Vec<u8>, usize) {
        let frame = |payload: &[u8], rows: u32| {
            let mut frame = ROWS.to_vec();
            frame.extend((payload.len() as u32).to_le_bytes());
            frame.extend(rows.to_le_bytes());
            frame.extend(checksum(SALT, &frame[4..12], payload).to_le_bytes());
            frame.extend(payload);
            frame
        };
        let first = frame(b"ROWS\x04\0\0\0ROWSROWS inside", 3);
        let length = first.len();
        ([first, frame(&[7; 300], 5)].concat(), length)
    }

    #[test]
    fn a_frame_cut_at_any_byte_is_torn_and_its_rows_are_told() {
        let (bytes, second) = two_frames();
        for cut in 0..bytes.len() {
            let part = &bytes[..cut];
            match Frame::split(part, SALT) {
                Ok((_, after)) => {
                    assert!(cut >= second, "cut at {cut}");
                    assert_eq!(after.len(), cut - second);
                    assert!(Frame::split(after, SALT).is_err() && next_frame(after, SALT).is_none());
                    assert_eq!(torn_rows(after), if after.len() >= FRAME_HEAD_BYTES { 5 } else { 0 });
                }
                Err(_) => assert!(cut < second && next_frame(part, SALT).is_none(), "cut at {cut}"),
            }
        }
    }

    #[test]
    fn any_flipped_bit_is_seen_and_the_next_frame_found() {
        let (bytes, second) = two_frames();
        for bit in 0..second * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Frame::split(&bad, SALT).is_err(), "bit {bit}");
            assert_eq!(next_frame(&bad, SALT), Some(second), "bit {bit}");
        }
    }
}
