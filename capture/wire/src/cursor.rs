//! A bounds-checked position in the captured bytes.

use crate::Frame;

/// A position in the captured bytes of one frame. Every read is checked; `at` may lie past the end, where each fails.
#[derive(Clone, Copy)]
pub(crate) struct Cursor<'a> {
    /// What was captured of the packet the cursor is in; from the frame's first byte on, so that `at` is an offset in
    /// the frame at every level.
    data: &'a [u8],
    /// Offset in the frame.
    pub(crate) at: usize,
    /// Where the enclosing packet ends by what its header says, which may be beyond `data`.
    pub(crate) end: usize,
}

impl<'a> Cursor<'a> {
    /// The start of a frame.
    pub(crate) fn new(frame: &Frame<'a>) -> Cursor<'a> {
        Cursor { data: frame.data, at: 0, end: frame.data.len().max(frame.wire_len as usize) }
    }

    /// `N` bytes, `offset` from here.
    #[inline]
    pub(crate) fn bytes<const N: usize>(&self, offset: usize) -> Option<&'a [u8; N]> {
        self.data.get(self.at + offset..)?.first_chunk()
    }

    /// One byte, `offset` from here.
    #[inline]
    pub(crate) fn u8(&self, offset: usize) -> Option<u8> {
        self.data.get(self.at + offset).copied()
    }

    /// A number in network order, `offset` from here.
    #[inline]
    pub(crate) fn u16(&self, offset: usize) -> Option<u16> {
        self.bytes(offset).map(|b| u16::from_be_bytes(*b))
    }

    /// A number in network order, `offset` from here.
    #[inline]
    pub(crate) fn u32(&self, offset: usize) -> Option<u32> {
        self.bytes(offset).map(|b| u32::from_be_bytes(*b))
    }

    /// `n` bytes on, captured or not.
    #[inline]
    pub(crate) fn skip(mut self, n: usize) -> Cursor<'a> {
        self.at += n;
        self
    }

    /// The same place in a packet that ends at `end` by its own header: nothing behind that is read.
    pub(crate) fn within(mut self, end: usize) -> Cursor<'a> {
        self.data = self.data.get(..end).unwrap_or(self.data);
        self.end = end;
        self
    }

    /// Whether the capture ends before this place.
    pub(crate) fn is_beyond(&self) -> bool {
        self.at > self.data.len()
    }

    /// Bytes from here to the end of the packet, by what its header says.
    pub(crate) fn len(&self) -> usize {
        self.end.saturating_sub(self.at)
    }
}
