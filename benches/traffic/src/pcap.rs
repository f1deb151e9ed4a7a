//! Capture files in the classic pcap format (draft-ietf-opsawg-pcap), little-endian, Ethernet, written by hand.

use crate::{Generator, Meta};
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

/// Bytes gathered before they are written.
const BUFFER_BYTES: usize = 256 << 10;
/// The snapshot length the file claims: nothing is cut.
const SNAPLEN: u32 = 262_144;

/// Writes everything `generator` has left as a capture; time stamps in nanoseconds if `nano`, else rounded down to
/// microseconds.
///
/// # Errors
/// Those of `out`, and a time after the year 2106, which the format cannot hold.
pub fn write_pcap(out: &mut impl Write, generator: &mut Generator, nano: bool) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(BUFFER_BYTES + 16 * 1024);
    write_header(&mut buffer, nano);
    let mut frame = Vec::with_capacity(10 * 1024);
    while let Some(meta) = generator.next(&mut frame) {
        write_record(&mut buffer, meta, &frame, nano)?;
        if buffer.len() >= BUFFER_BYTES {
            out.write_all(&buffer)?;
            buffer.clear();
        }
    }
    out.write_all(&buffer)?;
    out.flush()
}

/// [`write_pcap`] to a file, created or replaced.
///
/// # Errors
/// As [`write_pcap`].
pub fn write_pcap_file(path: impl AsRef<Path>, generator: &mut Generator, nano: bool) -> io::Result<()> {
    write_pcap(&mut File::create(path)?, generator, nano)
}

/// Appends the 24 bytes that begin a capture of Ethernet frames.
pub fn write_header(out: &mut Vec<u8>, nano: bool) {
    let magic: u32 = if nano { 0xa1b2_3c4d } else { 0xa1b2_c3d4 };
    out.extend_from_slice(&magic.to_le_bytes());
    out.extend_from_slice(&[2, 0, 4, 0]); // version 2.4
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(&SNAPLEN.to_le_bytes());
    out.extend_from_slice(&1_u32.to_le_bytes()); // LINKTYPE_ETHERNET
}

/// Appends one packet record.
///
/// # Errors
/// A time after the year 2106.
pub fn write_record(out: &mut Vec<u8>, meta: Meta, frame: &[u8], nano: bool) -> io::Result<()> {
    let seconds = u32::try_from(meta.ts_ns / 1_000_000_000).map_err(|_| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("time {} ns is after the year 2106, which pcap cannot hold: start earlier", meta.ts_ns),
        )
    })?;
    let nanos = (meta.ts_ns % 1_000_000_000) as u32;
    let fraction = if nano { nanos } else { nanos / 1_000 };
    for word in [seconds, fraction, frame.len() as u32, meta.len] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    out.extend_from_slice(frame);
    Ok(())
}
