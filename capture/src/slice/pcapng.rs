//! Blocks of a slice's file: pcapng (draft-ietf-opsawg-pcapng), little-endian, times in nanoseconds.
//!
//! What is known of a slice when it begins is in comments of the section header, one `key: value` each. What is known
//! at its end is in a comment of the first interface statistics block, `key=value` pairs. The file is all there is.

use super::{EndReason, SliceId};
use wire::Nanos;

pub(super) const SECTION_HEADER: u32 = 0x0a0d_0d0a;
pub(super) const INTERFACE_DESCRIPTION: u32 = 1;
pub(super) const INTERFACE_STATISTICS: u32 = 5;
pub(super) const ENHANCED_PACKET: u32 = 6;

const BYTE_ORDER: u32 = 0x1a2b_3c4d;

const OPTION_END: u16 = 0;
const OPTION_COMMENT: u16 = 1;
const SHB_USERAPPL: u16 = 4;
const IF_NAME: u16 = 2;
const IF_TSRESOL: u16 = 9;
const ISB_STARTTIME: u16 = 2;
const ISB_ENDTIME: u16 = 3;
const ISB_IFRECV: u16 = 4;
const ISB_IFDROP: u16 = 5;

/// Type and length.
pub(super) const HEAD_BYTES: usize = 8;

/// First word of the comment that makes a pcapng file a slice.
const MARK: &str = "taphouse slice ";

/// What the section header says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) id: SliceId,
    pub(super) label: String,
    pub(super) reason: String,
    pub(super) filter: String,
}

/// What the first interface statistics block says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Summary {
    pub(super) ended_by: Option<EndReason>,
    pub(super) packets: u64,
    pub(super) bytes: u64,
    pub(super) dropped_queue_full: u64,
    pub(super) overwritten: u64,
    pub(super) lost_disk: u64,
    pub(super) at: Option<Nanos>,
    pub(super) first_ts: Option<Nanos>,
    pub(super) last_ts: Option<Nanos>,
}

/// Numbers of one interface.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct InterfaceCounts {
    pub(super) received: u64,
    pub(super) first_ts: Option<Nanos>,
    pub(super) last_ts: Option<Nanos>,
}

/// Appends a block of `kind`, whose body `fill` appends.
fn block(into: &mut Vec<u8>, kind: u32, fill: impl FnOnce(&mut Vec<u8>)) {
    let start = into.len();
    into.extend_from_slice(&kind.to_le_bytes());
    into.extend_from_slice(&[0; 4]);
    fill(into);
    into.resize(into.len().next_multiple_of(4), 0);
    let length = ((into.len() - start + 4) as u32).to_le_bytes();
    into[start + 4..start + 8].copy_from_slice(&length);
    into.extend_from_slice(&length);
}

/// Appends an option; a value too long for one is cut, which no caller's bounds allow.
fn option(into: &mut Vec<u8>, code: u16, value: &[u8]) {
    let value = &value[..value.len().min(usize::from(u16::MAX))];
    into.extend_from_slice(&code.to_le_bytes());
    into.extend_from_slice(&(value.len() as u16).to_le_bytes());
    into.extend_from_slice(value);
    into.resize(into.len() + value.len().next_multiple_of(4) - value.len(), 0);
}

/// A time as the format has it: the high half first.
fn time(ts: Nanos) -> [u8; 8] {
    let ([h0, h1, h2, h3], [l0, l1, l2, l3]) = (((ts.0 >> 32) as u32).to_le_bytes(), (ts.0 as u32).to_le_bytes());
    [h0, h1, h2, h3, l0, l1, l2, l3]
}

/// Appends a section header block of unknown section length.
pub(super) fn section_header(into: &mut Vec<u8>, header: &Header) {
    block(into, SECTION_HEADER, |into| {
        into.extend_from_slice(&BYTE_ORDER.to_le_bytes());
        into.extend_from_slice(&[1, 0, 0, 0]);
        into.extend_from_slice(&[0xff; 8]);
        option(into, SHB_USERAPPL, concat!("taphouse ", env!("CARGO_PKG_VERSION")).as_bytes());
        option(into, OPTION_COMMENT, format!("{MARK}{}", header.id).as_bytes());
        for (key, value) in [("label", &header.label), ("reason", &header.reason), ("filter", &header.filter)] {
            option(into, OPTION_COMMENT, format!("{key}: {value}").as_bytes());
        }
        option(into, OPTION_END, &[]);
    });
}

/// Appends an interface description block.
pub(super) fn interface(into: &mut Vec<u8>, linktype: u16, name: &str) {
    block(into, INTERFACE_DESCRIPTION, |into| {
        into.extend_from_slice(&u32::from(linktype).to_le_bytes());
        // No limit: what was cut, each packet says of itself.
        into.extend_from_slice(&[0; 4]);
        option(into, IF_NAME, name.as_bytes());
        option(into, IF_TSRESOL, &[9]);
        option(into, OPTION_END, &[]);
    });
}

/// Appends an enhanced packet block.
pub(super) fn packet(into: &mut Vec<u8>, interface: u32, ts: Nanos, wire_len: u32, data: &[u8]) {
    block(into, ENHANCED_PACKET, |into| {
        into.extend_from_slice(&interface.to_le_bytes());
        into.extend_from_slice(&time(ts));
        into.extend_from_slice(&(data.len() as u32).to_le_bytes());
        into.extend_from_slice(&wire_len.to_le_bytes());
        into.extend_from_slice(data);
    });
}

/// Appends the interface statistics blocks that end a slice. Drops are not known by interface: the first has them all.
pub(super) fn statistics(into: &mut Vec<u8>, interfaces: &[InterfaceCounts], summary: &Summary) {
    for (number, counts) in interfaces.iter().enumerate() {
        block(into, INTERFACE_STATISTICS, |into| {
            into.extend_from_slice(&(number as u32).to_le_bytes());
            into.extend_from_slice(&time(summary.last_ts.or(summary.at).unwrap_or_default()));
            let drops = summary.dropped_queue_full + summary.overwritten + summary.lost_disk;
            let drops = if number == 0 { drops } else { 0 };
            if number == 0 {
                option(into, OPTION_COMMENT, summary.to_string().as_bytes());
            }
            if let (Some(first), Some(last)) = (counts.first_ts, counts.last_ts) {
                option(into, ISB_STARTTIME, &time(first));
                option(into, ISB_ENDTIME, &time(last));
            }
            option(into, ISB_IFRECV, &(counts.received + drops).to_le_bytes());
            option(into, ISB_IFDROP, &drops.to_le_bytes());
            option(into, OPTION_END, &[]);
        });
    }
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "ended_by={} packets={} bytes={}",
            self.ended_by.map_or("", EndReason::name),
            self.packets,
            self.bytes
        )?;
        write!(f, " dropped_queue_full={} overwritten={}", self.dropped_queue_full, self.overwritten)?;
        write!(f, " lost_disk={}", self.lost_disk)?;
        for (key, ts) in [("trigger_ns", self.at), ("first_ns", self.first_ts), ("last_ns", self.last_ts)] {
            if let Some(Nanos(ns)) = ts {
                write!(f, " {key}={ns}")?;
            }
        }
        Ok(())
    }
}

impl Summary {
    fn parse(text: &str) -> Option<Summary> {
        let mut summary = Summary::default();
        for pair in text.split(' ') {
            let (key, value) = pair.split_once('=')?;
            if key == "ended_by" {
                summary.ended_by = Some(EndReason::from_name(value)?);
                continue;
            }
            let number = value.parse().ok()?;
            match key {
                "packets" => summary.packets = number,
                "bytes" => summary.bytes = number,
                "dropped_queue_full" => summary.dropped_queue_full = number,
                "overwritten" => summary.overwritten = number,
                "lost_disk" => summary.lost_disk = number,
                "trigger_ns" => summary.at = Some(Nanos(number)),
                "first_ns" => summary.first_ts = Some(Nanos(number)),
                "last_ns" => summary.last_ts = Some(Nanos(number)),
                // Of a later version.
                _ => {}
            }
        }
        summary.ended_by.map(|_| summary)
    }
}

/// A block as [`split_block`] finds it, without type and lengths.
pub(super) struct Block<'a> {
    pub(super) kind: u32,
    pub(super) body: &'a [u8],
}

/// The block `bytes` starts with and what follows it; `None` where it is incomplete or none of ours.
pub(super) fn split_block(bytes: &[u8]) -> Option<(Block<'_>, &[u8])> {
    let length = word(bytes, 4)? as usize;
    let body = bytes.get(HEAD_BYTES..length.checked_sub(4)?)?;
    let whole = length.is_multiple_of(4) && word(bytes, length - 4)? as usize == length;
    whole.then_some((Block { kind: word(bytes, 0)?, body }, &bytes[length..]))
}

/// What the section header block of a slice says; `None` if it is none.
pub(super) fn parse_section_header(block: &Block<'_>) -> Option<Header> {
    if block.kind != SECTION_HEADER || word(block.body, 0)? != BYTE_ORDER {
        return None;
    }
    let mut header = Header { id: SliceId(0), label: String::new(), reason: String::new(), filter: String::new() };
    for comment in comments(block.body.get(16..)?) {
        if let Some(id) = comment.strip_prefix(MARK) {
            header.id = SliceId(id.parse().ok()?);
        }
        match comment.split_once(": ") {
            Some(("label", value)) => header.label = value.to_owned(),
            Some(("reason", value)) => header.reason = value.to_owned(),
            Some(("filter", value)) => header.filter = value.to_owned(),
            _ => {}
        }
    }
    (header.id != SliceId(0)).then_some(header)
}

/// What the first interface statistics block of a slice says; `None` if it is none.
pub(super) fn parse_statistics(block: &Block<'_>) -> Option<Summary> {
    match block.kind {
        INTERFACE_STATISTICS => comments(block.body.get(12..)?).find_map(Summary::parse),
        _ => None,
    }
}

/// Interface, time and captured length of an enhanced packet block.
pub(super) fn parse_packet(block: &Block<'_>) -> Option<(u32, Nanos, u32)> {
    let body = block.body;
    let ts = u64::from(word(body, 4)?) << 32 | u64::from(word(body, 8)?);
    Some((word(body, 0)?, Nanos(ts), word(body, 12)?))
}

fn comments(mut options: &[u8]) -> impl Iterator<Item = &str> {
    std::iter::from_fn(move || {
        loop {
            let ([c0, c1, l0, l1], rest) = options.split_first_chunk::<4>()?;
            let (code, length) = (u16::from_le_bytes([*c0, *c1]), usize::from(u16::from_le_bytes([*l0, *l1])));
            let value = rest.get(..length)?;
            options = rest.get(length.next_multiple_of(4)..)?;
            match code {
                OPTION_END => return None,
                OPTION_COMMENT => return std::str::from_utf8(value).ok(),
                _ => {}
            }
        }
    })
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let (word, _) = bytes.get(at..)?.split_first_chunk::<4>()?;
    Some(u32::from_le_bytes(*word))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_was_written_is_read_again(
            id in 1_u64..,
            texts in ("[a-z-]{0,9}", "\\PC{0,40}", ".{0,40}"),
            numbers in prop::array::uniform5(any::<u64>()),
            at in prop::option::of(any::<u64>()),
            interfaces in 1_usize..4,
        ) {
            let (label, reason, filter) = texts;
            let header = Header { id: SliceId(id), label, reason, filter };
            let mut bytes = Vec::new();
            section_header(&mut bytes, &header);
            let (block, rest) = split_block(&bytes).unwrap();
            prop_assert_eq!(parse_section_header(&block), Some(header));
            prop_assert!(rest.is_empty());

            let [packets, bytes, ..] = numbers.map(|n| n / 4);
            let [.., dropped_queue_full, overwritten, lost_disk] = numbers.map(|n| n / 4);
            let summary = Summary {
                ended_by: Some(EndReason::DiskFull), packets, bytes, dropped_queue_full, overwritten, lost_disk,
                at: at.map(Nanos), first_ts: at.map(Nanos), last_ts: None,
            };
            let mut bytes = Vec::new();
            statistics(&mut bytes, &vec![InterfaceCounts::default(); interfaces], &summary);
            let (block, mut rest) = split_block(&bytes).unwrap();
            prop_assert_eq!(parse_statistics(&block), Some(summary));
            for _ in 1..interfaces {
                rest = split_block(rest).unwrap().1;
            }
            prop_assert!(rest.is_empty());
        }

        /// A folder may hold anything under our names.
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(prop_oneof![0_u8..16, any::<u8>()], 0..80)) {
            if let Some((block, _)) = split_block(&bytes) {
                let block = Block { kind: SECTION_HEADER, ..block };
                let _ = (parse_section_header(&block), parse_packet(&block));
                let _ = parse_statistics(&Block { kind: INTERFACE_STATISTICS, ..block });
            }
        }
    }
}
