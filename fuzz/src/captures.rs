//! Capture files, read in pieces of any size.

use crate::decode::check_packet;
use capture::{BATCH_FRAMES_MAX, BatchHandler, FileOptions, FileSource, Polled, Source, SourceCounts};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read};
use wire::{Frame, Nanos, TapId};

/// Polls that any input gets: of a compressed one a few bytes may stand for any number, so that it need not come to its end.
const POLLS_MIN: usize = 2_000;

/// A capture behind two bytes, which tell in what pieces it arrives, and the sizes of the reader. Read a second time as a
/// whole, it has to say the same: packets, counts, error.
pub fn captures(bytes: &[u8]) {
    let Some((&[piece, sizes], file)) = bytes.split_first_chunk() else { return };
    let packet_bytes_max = 256 << (sizes >> 4);
    let options = FileOptions { buffer_bytes: 64 << (sizes & 7), packet_bytes_max };
    let pieces = Pieces {
        bytes: file.to_vec(),
        at: 0,
        piece: usize::from(piece).max(1),
        stalls: piece & 1 != 0,
        stalled: false,
    };
    let in_pieces = read(pieces, &options);
    let is_compressed =
        matches!(file, [0x1f, 0x8b, ..] | [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..]);
    if !is_compressed {
        assert!(in_pieces.ended, "a file has an end");
        let whole = Pieces { bytes: file.to_vec(), at: 0, piece: file.len().max(1), stalls: false, stalled: false };
        let whole = read(whole, &FileOptions { buffer_bytes: 1 << 16, packet_bytes_max });
        assert_eq!(in_pieces, whole);
    }
}

/// A reader that gives a few bytes at a time, and between them, if it `stalls`, has none yet.
struct Pieces {
    bytes: Vec<u8>,
    at: usize,
    piece: usize,
    stalls: bool,
    stalled: bool,
}

impl Read for Pieces {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.stalled = self.stalls && !self.stalled;
        if self.stalled {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let left = &self.bytes[self.at..];
        let len = left.len().min(self.piece).min(into.len());
        into[..len].copy_from_slice(&left[..len]);
        self.at += len;
        Ok(len)
    }
}

/// What a capture said.
#[derive(Debug, PartialEq)]
struct Told {
    packets: u64,
    /// Of all frames: bytes, lengths, times, link types.
    digest: u64,
    counts: SourceCounts,
    /// The message of the error it ended with.
    error: Option<String>,
    ended: bool,
}

struct Frames {
    packets: u64,
    digest: DefaultHasher,
    packet_bytes_max: usize,
}

impl BatchHandler for Frames {
    fn batch(&mut self, frames: &[Frame<'_>]) {
        assert!((1..=BATCH_FRAMES_MAX).contains(&frames.len()));
        self.packets += frames.len() as u64;
        for frame in frames {
            // Options of a pcapng block stand in the room of a packet that is shorter.
            assert!(frame.data.len() <= self.packet_bytes_max + 64 * 1024);
            assert!(frame.data.len() as u64 <= u64::from(frame.wire_len));
            (frame.data, frame.wire_len, frame.ts.0, frame.link).hash(&mut self.digest);
            let _ = check_packet(frame);
        }
    }

    fn idle(&mut self, _: Nanos) {
        panic!("a replay has no time of its own");
    }
}

fn read(pieces: Pieces, options: &FileOptions) -> Told {
    // Each poll reads at least a byte, delivers a packet, or has stalled; a few see the format and the end.
    let polls_max = (pieces.bytes.len() * 4 + 64).max(POLLS_MIN);
    let mut source = FileSource::from_reader("fuzz", pieces, TapId(3), options);
    let mut frames = Frames { packets: 0, digest: DefaultHasher::new(), packet_bytes_max: options.packet_bytes_max };
    let (mut error, mut ended) = (None, false);
    for _ in 0..polls_max {
        match source.poll(&mut frames) {
            Ok(Polled::End) => {
                ended = true;
                break;
            }
            Ok(Polled::Packets(count)) => assert!(count <= BATCH_FRAMES_MAX && error.is_none()),
            Ok(Polled::Idle) => assert!(error.is_none(), "the end follows an error"),
            Err(e) => {
                assert!(error.is_none(), "one error is enough");
                error = Some(e.to_string());
            }
        }
    }
    let counts = source.counts();
    assert_eq!((counts.offered, counts.delivered), (frames.packets, frames.packets));
    assert_eq!(counts.undelivered.iter().sum::<u64>(), 0);
    Told { packets: frames.packets, digest: frames.digest.finish(), counts, error, ended }
}
