//! Captures built by hand, readers that misbehave, and a handler that remembers.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use capture::{BatchHandler, FileOptions, FileSource, Polled, Source, SourceCounts, SourceError};
use std::io::{self, Read};
use wire::{Frame, LinkType, Nanos, TapId};

pub(crate) const TAP: TapId = TapId(7);

/// A frame that outlives its batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Packet {
    pub(crate) data: Vec<u8>,
    pub(crate) wire_len: u32,
    pub(crate) ts: u64,
    pub(crate) link: LinkType,
}

impl Packet {
    pub(crate) fn new(ts: u64, data: &[u8]) -> Packet {
        Packet { data: data.to_vec(), wire_len: data.len() as u32, ts, link: LinkType::Ethernet }
    }
}

#[derive(Default)]
pub(crate) struct Keep {
    pub(crate) packets: Vec<Packet>,
    pub(crate) idles: u64,
    pub(crate) counts: SourceCounts,
}

impl BatchHandler for Keep {
    fn batch(&mut self, frames: &[Frame<'_>]) {
        assert!((1..=capture::BATCH_FRAMES_MAX).contains(&frames.len()));
        for f in frames {
            assert_eq!(f.tap, TAP);
            assert!(f.data.len() as u64 <= u64::from(f.wire_len));
            self.packets.push(Packet { data: f.data.to_vec(), wire_len: f.wire_len, ts: f.ts.0, link: f.link });
        }
    }

    fn idle(&mut self, _: Nanos) {
        self.idles += 1;
    }

    fn counted(&mut self, delta: &SourceCounts) {
        self.counts += *delta;
    }
}

/// Polls to the end. Panics on a source that does not come to one within `polls_max` polls.
pub(crate) fn drain(source: &mut dyn Source, polls_max: usize) -> (Keep, Result<(), SourceError>) {
    let mut keep = Keep::default();
    for _ in 0..polls_max {
        let before = keep.packets.len();
        let result = match source.poll(&mut keep) {
            Ok(Polled::End) => Ok(()),
            Ok(Polled::Packets(n)) => {
                assert_eq!(n, keep.packets.len() - before);
                continue;
            }
            Ok(Polled::Idle) => continue,
            Err(e) => Err(e),
        };
        source.finish(&mut keep).unwrap();
        assert_eq!(source.poll(&mut keep).unwrap(), Polled::End, "the end, and an error, come once");
        let counts = source.counts();
        assert_eq!(counts.delivered, keep.packets.len() as u64);
        assert_eq!(counts.offered, counts.delivered + counts.undelivered.iter().sum::<u64>());
        assert_eq!(counts.captured_bytes, keep.packets.iter().map(|p| p.data.len() as u64).sum::<u64>());
        assert_eq!(counts.wire_bytes, keep.packets.iter().map(|p| u64::from(p.wire_len)).sum::<u64>());
        assert_eq!(keep.idles, 0, "a replay has no wall clock");
        return (keep, result);
    }
    panic!("no end after {polls_max} polls, {} packets", keep.packets.len());
}

/// Reads a capture that is in memory.
pub(crate) fn read(bytes: &[u8]) -> (Vec<Packet>, Result<(), SourceError>) {
    read_with(io::Cursor::new(bytes.to_vec()), &FileOptions::default(), 100 + bytes.len())
}

pub(crate) fn read_with(
    reader: impl Read + Send + 'static,
    options: &FileOptions,
    polls_max: usize,
) -> (Vec<Packet>, Result<(), SourceError>) {
    let (keep, result) = drain(&mut FileSource::from_reader("test", reader, TAP, options), polls_max);
    (keep.packets, result)
}

pub(crate) fn u16_bytes(big: bool, v: u16) -> [u8; 2] {
    if big { v.to_be_bytes() } else { v.to_le_bytes() }
}

pub(crate) fn u32_bytes(big: bool, v: u32) -> [u8; 4] {
    if big { v.to_be_bytes() } else { v.to_le_bytes() }
}

/// A pcap file under construction.
#[derive(Clone)]
pub(crate) struct PcapFile {
    pub(crate) bytes: Vec<u8>,
    big: bool,
    modified: bool,
}

impl PcapFile {
    pub(crate) fn new(big: bool, magic: u32, network: u32) -> PcapFile {
        let mut bytes = u32_bytes(big, magic).to_vec();
        bytes.extend(u16_bytes(big, 2));
        bytes.extend(u16_bytes(big, 4));
        for v in [0, 0, 262_144, network] {
            bytes.extend(u32_bytes(big, v));
        }
        PcapFile { bytes, big, modified: magic == 0xa1b2_cd34 }
    }

    pub(crate) fn record(&mut self, secs: u32, sub: u32, wire_len: u32, data: &[u8]) -> &mut PcapFile {
        for v in [secs, sub, data.len() as u32, wire_len] {
            self.bytes.extend(u32_bytes(self.big, v));
        }
        if self.modified {
            self.bytes.extend([9; 8]);
        }
        self.bytes.extend(data);
        self
    }
}

/// A pcapng file under construction.
#[derive(Clone)]
pub(crate) struct PcapngFile {
    pub(crate) bytes: Vec<u8>,
    /// Offset of each block.
    pub(crate) blocks: Vec<usize>,
    pub(crate) big: bool,
}

impl PcapngFile {
    pub(crate) fn new(big: bool) -> PcapngFile {
        let mut file = PcapngFile { bytes: Vec::new(), blocks: Vec::new(), big };
        file.section(big);
        file
    }

    pub(crate) fn section(&mut self, big: bool) -> &mut PcapngFile {
        self.big = big;
        let mut body = u32_bytes(big, 0x1a2b_3c4d).to_vec();
        body.extend(u16_bytes(big, 1));
        body.extend(u16_bytes(big, 0));
        body.extend([0xff; 8]);
        self.block(0x0a0d_0d0a, &body)
    }

    pub(crate) fn block(&mut self, kind: u32, body: &[u8]) -> &mut PcapngFile {
        let padded = body.len().next_multiple_of(4);
        let length = u32_bytes(self.big, padded as u32 + 12);
        self.blocks.push(self.bytes.len());
        self.bytes.extend(u32_bytes(self.big, kind));
        self.bytes.extend(length);
        self.bytes.extend(body);
        self.bytes.resize(self.bytes.len() + padded - body.len(), 0);
        self.bytes.extend(length);
        self
    }

    pub(crate) fn option(&self, code: u16, value: &[u8]) -> Vec<u8> {
        let mut o = u16_bytes(self.big, code).to_vec();
        o.extend(u16_bytes(self.big, value.len() as u16));
        o.extend(value);
        o.resize(o.len().next_multiple_of(4), 0);
        o
    }

    pub(crate) fn interface(&mut self, link: u16, snaplen: u32, options: &[u8]) -> &mut PcapngFile {
        let mut body = u16_bytes(self.big, link).to_vec();
        body.extend([0; 2]);
        body.extend(u32_bytes(self.big, snaplen));
        body.extend(options);
        self.block(1, &body)
    }

    pub(crate) fn enhanced(&mut self, interface: u32, units: u64, wire_len: u32, data: &[u8]) -> &mut PcapngFile {
        let mut body = u32_bytes(self.big, interface).to_vec();
        body.extend(self.packet(units, wire_len, data));
        self.block(6, &body)
    }

    pub(crate) fn obsolete(&mut self, interface: u16, units: u64, wire_len: u32, data: &[u8]) -> &mut PcapngFile {
        let mut body = u16_bytes(self.big, interface).to_vec();
        body.extend(u16_bytes(self.big, 0xffff));
        body.extend(self.packet(units, wire_len, data));
        self.block(2, &body)
    }

    pub(crate) fn simple(&mut self, wire_len: u32, data: &[u8]) -> &mut PcapngFile {
        let mut body = u32_bytes(self.big, wire_len).to_vec();
        body.extend(data);
        self.block(3, &body)
    }

    fn packet(&self, units: u64, wire_len: u32, data: &[u8]) -> Vec<u8> {
        let mut p = Vec::new();
        for v in [(units >> 32) as u32, units as u32, data.len() as u32, wire_len] {
            p.extend(u32_bytes(self.big, v));
        }
        p.extend(data);
        p.resize(p.len().next_multiple_of(4), 0);
        if units.is_multiple_of(2) {
            p.extend(self.option(2, &[0; 4]));
            p.extend([0; 4]);
        }
        p
    }
}

/// Returns a few bytes at a time, and now and then none yet, as a slow pipe does.
pub(crate) struct Trickle {
    pub(crate) bytes: Vec<u8>,
    pub(crate) at: usize,
    /// Bytes of successive reads, in turn; 0 is `WouldBlock`.
    pub(crate) steps: Vec<usize>,
    pub(crate) step: usize,
}

impl Trickle {
    pub(crate) fn new(bytes: &[u8], steps: &[usize]) -> Trickle {
        assert!(steps.iter().any(|n| *n > 0));
        Trickle { bytes: bytes.to_vec(), at: 0, steps: steps.to_vec(), step: 0 }
    }
}

impl Read for Trickle {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let step = self.steps[self.step % self.steps.len()];
        self.step += 1;
        if step == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let n = step.min(into.len()).min(self.bytes.len() - self.at);
        into[..n].copy_from_slice(&self.bytes[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    use io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn zstd(bytes: &[u8]) -> Vec<u8> {
    use io::Write;
    let mut encoder = ::zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Bytes that do not compress to nothing, the same in every run.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        })
        .collect()
}
