//! Frame to [`PacketMeta`]: link header, tags, IP with its extension headers, tunnels, transport.
//!
//! Every read is bounds-checked against the captured bytes; every loop is bounded by [`Limits`] or a constant. What the
//! capture cut off is taken from what the headers say.

use crate::{DropReason, Frame, LinkType, PacketMeta, general, plain};

/// Bounds on what one frame may nest, so that no packet costs more than a fixed amount of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Headers between a link header and IP: VLAN tags, MPLS labels, PPPoE and the like. Inside a tunnel they are
    /// counted anew.
    pub tags_max: u8,
    /// IPv6 extension headers at one level.
    pub extensions_max: u8,
    /// Encapsulations inside one another: tunnels around the innermost IP header.
    pub encapsulations_max: u8,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { tags_max: 64, extensions_max: 32, encapsulations_max: 8 }
    }
}

/// Decodes one frame. `clock` is left zero: the caller owns time.
///
/// # Errors
/// The reason why the frame is part of no flow.
pub fn decode(frame: &Frame<'_>, limits: &Limits) -> Result<PacketMeta, DropReason> {
    let mut meta = PacketMeta::EMPTY;
    decode_into(frame, limits, &mut meta)?;
    Ok(meta)
}

/// [`decode`] into a slot of a batch. Whatever it held is overwritten: a slot need not be reset before.
///
/// # Errors
/// As [`decode`]; the slot is then partly written and means nothing.
#[inline]
pub fn decode_into(frame: &Frame<'_>, limits: &Limits, meta: &mut PacketMeta) -> Result<(), DropReason> {
    if frame.link == LinkType::Ethernet && plain::decode(frame, meta) {
        return Ok(());
    }
    general::decode(frame, limits, meta)
}
