//! Transport payloads beside decoded packets, for whoever looks at the first ones of a flow.

use capture::BATCH_FRAMES_MAX;
use wire::{Frame, PacketMeta};

/// Bytes of a payload that anybody looks at: more than any but a jumbogram has. The same however many workers there are.
pub(super) const LOOKED_AT_MAX: usize = 1 << 16;

/// Payloads of a batch, by number of the packet.
pub(crate) trait Payloads {
    /// What was captured of the payload of packet number `at`; empty where there is none, or it was not passed on.
    fn payload(&self, at: usize) -> &[u8];
}

/// Still in the frames that the source lends.
pub(crate) struct Lent<'a> {
    pub(crate) frames: &'a [Frame<'a>],
    pub(crate) packets: &'a [PacketMeta],
    /// By packet, the number of its frame.
    pub(crate) frame_of: &'a [u16],
}

const _: () = assert!(BATCH_FRAMES_MAX <= u16::MAX as usize);

impl Payloads for Lent<'_> {
    fn payload(&self, at: usize) -> &[u8] {
        let (Some(packet), Some(frame)) = (self.packets.get(at), self.frame_of.get(at)) else { return &[] };
        let payload = self.frames.get(usize::from(*frame)).map_or(&[][..], |frame| packet.payload(frame));
        &payload[..payload.len().min(LOOKED_AT_MAX)]
    }
}

/// Copied one after the other, since the frames do not travel. Bounded by their owner.
#[derive(Default)]
pub(crate) struct Copied {
    bytes: Vec<u8>,
    /// By packet, where its payload starts; it ends where the next one starts.
    starts: Vec<u32>,
}

impl Copied {
    /// Adds the payload of the next packet.
    pub(crate) fn push(&mut self, payload: &[u8]) {
        self.starts.push(self.bytes.len() as u32);
        self.bytes.extend_from_slice(payload);
    }

    /// Bytes copied.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.starts.clear();
    }
}

impl Payloads for Copied {
    fn payload(&self, at: usize) -> &[u8] {
        let Some(start) = self.starts.get(at) else { return &[] };
        let end = self.starts.get(at + 1).map_or(self.bytes.len(), |end| *end as usize);
        &self.bytes[*start as usize..end]
    }
}

/// The payloads of packets from number `from` on.
pub(crate) struct From<'a, P> {
    pub(crate) all: &'a P,
    pub(crate) from: usize,
}

impl<P: Payloads> Payloads for From<'_, P> {
    #[inline]
    fn payload(&self, at: usize) -> &[u8] {
        self.all.payload(self.from + at)
    }
}
