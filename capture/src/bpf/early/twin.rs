//! What the program decides, decided in plain Rust: its twin, that tests hold it against.

use super::{Block, DEPTH_MAX, ETHER_TYPE_AT, ETHERNET_BYTES, FRAGMENT_AT, FRAGMENT_MASK, Family, IHL_MIN, VLAN_TYPES};
use crate::filter::early::{Early, Side};
use std::ops::ControlFlow;

/// Whether the program keeps a frame.
pub(in crate::bpf) fn verdict(early: &Early, frame: &[u8]) -> bool {
    match Headers::of(frame) {
        // Unsure is kept.
        Some(headers) => !matches!(headers.test(early, 0), ControlFlow::Continue(false)),
        None => true,
    }
}

struct Headers<'a> {
    frame: &'a [u8],
    ether_type: u16,
    family: Option<Family>,
}

/// Ports of a frame that has the headers of a family.
enum Ports {
    /// Source, destination.
    Both(u16, u16),
    /// A fragment other than the first has none.
    None,
    /// They lie outside of what is there.
    Unsure,
}

/// Breaks off where nothing more can be said.
type Tested = ControlFlow<(), bool>;

impl<'a> Headers<'a> {
    /// `None` for frames that are kept untested.
    fn of(frame: &'a [u8]) -> Option<Headers<'a>> {
        let ether_type = u16_at(frame, ETHER_TYPE_AT)?;
        let family = Family::of(ether_type);
        let whole = match family {
            Some(family) => frame.len() >= family.fixed_end(),
            None => !VLAN_TYPES.contains(&ether_type),
        };
        let sound = whole && (family != Some(Family::V4) || ihl(frame) >= IHL_MIN);
        sound.then_some(Headers { frame, ether_type, family })
    }

    fn test(&self, early: &Early, depth: usize) -> Tested {
        if depth >= DEPTH_MAX {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(match early {
            Early::All(all) => {
                for one in all {
                    if !self.test(one, depth + 1)? {
                        return ControlFlow::Continue(false);
                    }
                }
                true
            }
            Early::Any(any) => {
                for one in any {
                    if self.test(one, depth + 1)? {
                        return ControlFlow::Continue(true);
                    }
                }
                false
            }
            Early::Not(not) => !self.test(not, depth + 1)?,
            Early::EtherType(ether_type) => self.ether_type == *ether_type,
            Early::Protocol { ether_type, protocol } => {
                self.has(*ether_type).is_some_and(|family| self.frame[family.protocol_at()] == *protocol)
            }
            Early::Port { ether_type, side, first, last } => match self.has(*ether_type).map(|f| self.ports(f)) {
                Some(Ports::Both(source, destination)) => either_or_both(*side, |source_side| {
                    (*first..=*last).contains(if source_side { &source } else { &destination })
                }),
                Some(Ports::Unsure) => return ControlFlow::Break(()),
                Some(Ports::None) | None => false,
            },
            Early::Net { side, network, bits } => {
                let block = Block::new(*network, *bits);
                self.family == Some(block.family)
                    && either_or_both(*side, |source_side| self.address_in(&block, source_side))
            }
        })
    }

    fn has(&self, ether_type: u16) -> Option<Family> {
        self.family.filter(|family| Family::of(ether_type) == Some(*family))
    }

    fn ports(&self, family: Family) -> Ports {
        let at = match family {
            Family::V4 if u16_at(self.frame, FRAGMENT_AT).is_some_and(|f| f & FRAGMENT_MASK != 0) => {
                return Ports::None;
            }
            Family::V4 => ETHERNET_BYTES + 4 * ihl(self.frame),
            Family::V6 => family.fixed_end(),
        };
        match (u16_at(self.frame, at), u16_at(self.frame, at + 2)) {
            (Some(source), Some(destination)) => Ports::Both(source, destination),
            _ => Ports::Unsure,
        }
    }

    fn address_in(&self, block: &Block, source_side: bool) -> bool {
        let at = block.family.source_at() + if source_side { 0 } else { block.family.address_bytes() };
        let words = self.frame[at..].chunks_exact(4);
        block
            .words
            .iter()
            .zip(words)
            .all(|((mask, network), word)| u32::from_be_bytes([word[0], word[1], word[2], word[3]]) & mask == *network)
    }
}

/// `holds` of the source (true), the destination (false), or as told.
fn either_or_both(side: Side, holds: impl Fn(bool) -> bool) -> bool {
    match side {
        Side::Source => holds(true),
        Side::Destination => holds(false),
        Side::Either => holds(true) || holds(false),
        Side::Both => holds(true) && holds(false),
    }
}

/// IPv4 header length, in words of 4 bytes, of a frame that has the fixed header.
fn ihl(frame: &[u8]) -> usize {
    usize::from(frame[ETHERNET_BYTES] & 0x0f)
}

fn u16_at(frame: &[u8], at: usize) -> Option<u16> {
    frame.get(at..)?.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
}

// --- In eBPF. No call is made, so that the registers for arguments can be used throughout. ---
