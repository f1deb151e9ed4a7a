//! Small capture files, written by hand in both formats, both byte orders, and with what is rare in them.

use traffic::pcap::{write_header, write_record};
use traffic::{Config, Generator, Meta};

fn frames() -> Vec<(Meta, Vec<u8>)> {
    let mut generator = Generator::new(Config { packets: 6, flows: 2, ..Config::default() });
    let (mut frame, mut all) = (Vec::new(), Vec::new());
    while let Some(meta) = generator.next(&mut frame) {
        frame.truncate(90);
        all.push((meta, frame.clone()));
    }
    all
}

pub(super) fn files() -> Vec<Vec<u8>> {
    let mut files = Vec::new();
    for nano in [false, true] {
        let mut file = Vec::new();
        write_header(&mut file, nano);
        for (meta, frame) in frames() {
            write_record(&mut file, meta, &frame, nano).expect("a time of this century");
        }
        // The other byte order: header words and record words turned round.
        files.push(turned(&file));
        // Kuznetzov's variant has eight more bytes in each record header.
        if !nano {
            let mut modified = file.clone();
            modified[..4].copy_from_slice(&0xa1b2_cd34_u32.to_le_bytes());
            files.push(modified);
        }
        files.push(file);
    }
    for big in [false, true] {
        files.push(pcapng(big));
    }
    files
}

/// A pcap file in the other byte order.
fn turned(file: &[u8]) -> Vec<u8> {
    let turn =
        |bytes: &[u8], width: usize| bytes.chunks(width).flat_map(|w| w.iter().rev().copied()).collect::<Vec<u8>>();
    let mut out = [turn(&file[..4], 4), turn(&file[4..8], 2), turn(&file[8..24], 4)].concat();
    let mut left = &file[24..];
    while let Some((header, rest)) = left.split_at_checked(16) {
        out.extend(turn(header, 4));
        let len = u32::from_le_bytes([header[8], header[9], header[10], header[11]]) as usize;
        let (frame, rest) = rest.split_at(len);
        out.extend(frame);
        left = rest;
    }
    out
}

/// Numbers in one byte order.
struct Writer {
    big: bool,
    out: Vec<u8>,
}

impl Writer {
    fn u16(&mut self, value: u16) {
        self.out.extend(if self.big { value.to_be_bytes() } else { value.to_le_bytes() });
    }

    fn u32(&mut self, value: u32) {
        self.out.extend(if self.big { value.to_be_bytes() } else { value.to_le_bytes() });
    }

    /// A block (draft-ietf-opsawg-pcapng section 3.1) around what `body` writes.
    fn block(&mut self, kind: u32, body: impl FnOnce(&mut Writer)) {
        let mut inner = Writer { big: self.big, out: Vec::new() };
        body(&mut inner);
        inner.out.resize(inner.out.len().next_multiple_of(4), 0);
        let len = 12 + inner.out.len() as u32;
        self.u32(kind);
        self.u32(len);
        self.out.extend(inner.out);
        self.u32(len);
    }

    fn option(&mut self, code: u16, value: &[u8]) {
        self.u16(code);
        self.u16(value.len() as u16);
        self.out.extend(value);
        self.out.resize(self.out.len().next_multiple_of(4), 0);
    }
}

/// Two sections, interfaces of several resolutions and an offset, and every kind of block.
fn pcapng(big: bool) -> Vec<u8> {
    let frames = frames();
    let mut w = Writer { big, out: Vec::new() };
    for section in 0..2_u8 {
        w.block(0x0a0d_0d0a, |w| {
            w.u32(0x1a2b_3c4d);
            w.u16(1);
            w.u16(0);
            w.u32(u32::MAX);
            w.u32(u32::MAX);
        });
        for resolution in [6, 9, 12, 0x80 | 20] {
            w.block(1, |w| {
                w.u16(if section == 0 { 1 } else { 101 });
                w.u16(0);
                w.u32(64);
                w.option(2, b"eth0");
                w.option(9, &[resolution]);
                w.option(14, &[section; 8]);
                w.option(0, &[]);
            });
        }
        // Names and statistics are passed over.
        w.block(4, |w| w.u32(0));
        for (n, (meta, frame)) in frames.iter().enumerate() {
            w.block(6, |w| {
                w.u32(n as u32 % 4);
                w.u32((meta.ts_ns >> 32) as u32);
                w.u32(meta.ts_ns as u32);
                w.u32(frame.len() as u32);
                w.u32(meta.len);
                w.out.extend(frame);
                w.out.resize(w.out.len().next_multiple_of(4), 0);
                w.option(1, b"a comment");
                w.option(0, &[]);
            });
        }
        let (meta, frame) = &frames[0];
        w.block(3, |w| {
            w.u32(meta.len);
            w.out.extend(&frame[..64]);
        });
        w.block(2, |w| {
            w.u16(1);
            w.u16(7);
            w.u32(0);
            w.u32(9);
            w.u32(frame.len() as u32);
            w.u32(meta.len);
            w.out.extend(frame);
        });
        w.block(5, |w| w.u32(1));
    }
    w.out
}
