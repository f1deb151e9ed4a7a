//! The packets of one ring block (`struct tpacket_block_desc` and `tpacket3_hdr`, linux/if_packet.h), read as bytes:
//! no pointer is followed, every offset is checked, and blocks can be built by hand in tests.

use crate::BATCH_FRAMES_MAX;
use std::mem::offset_of;
use wire::{Frame, LinkType, Nanos, TapId};

/// Where the kernel puts the block status, the hand-over word.
pub(super) const STATUS_AT: usize =
    offset_of!(libc::tpacket_block_desc, hdr) + offset_of!(libc::tpacket_hdr_v1, block_status);
const PACKETS_AT: usize = offset_of!(libc::tpacket_block_desc, hdr) + offset_of!(libc::tpacket_hdr_v1, num_pkts);
const FIRST_AT: usize =
    offset_of!(libc::tpacket_block_desc, hdr) + offset_of!(libc::tpacket_hdr_v1, offset_to_first_pkt);

/// Packet header, then the `sockaddr_ll` the packet came with.
const HEADER_BYTES: usize = libc::TPACKET3_HDRLEN;
const TCI_AT: usize = offset_of!(libc::tpacket3_hdr, hv1) + offset_of!(libc::tpacket_hdr_variant1, tp_vlan_tci);
const TPID_AT: usize = offset_of!(libc::tpacket3_hdr, hv1) + offset_of!(libc::tpacket_hdr_variant1, tp_vlan_tpid);

/// Bytes of an 802.1Q tag, and where in an Ethernet header it stands. The ring reserves as much before each frame.
pub(super) const VLAN_TAG_BYTES: usize = 4;
const VLAN_TAG_AT: usize = 12;
const TPID_8021Q: u16 = 0x8100;

/// What is the same for all frames of a ring.
#[derive(Clone, Copy, Debug)]
pub(super) struct View {
    pub(super) link: LinkType,
    pub(super) tap: TapId,
}

/// How far a block was read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cursor {
    /// Offset of the next packet header.
    next: usize,
    /// Packets from there on.
    left: u32,
}

/// A header or a frame reaches beyond its block; the offset of that header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BeyondBlock(pub(super) usize);

impl Cursor {
    /// At the first packet of a block. `block` is at least as long as a block header.
    pub(super) fn new(block: &[u8]) -> Cursor {
        Cursor { next: u32_at(block, FIRST_AT) as usize, left: u32_at(block, PACKETS_AT) }
    }

    pub(super) fn is_at_end(&self) -> bool {
        self.left == 0
    }

    /// Lends packets from the cursor on until the block or the batch is at its end.
    ///
    /// The kernel takes the outer VLAN tag out of the frame and stores it in the header. It is put back in place: the
    /// addresses move into the reserved bytes before the frame, as libpcap does.
    pub(super) fn frames<'a>(
        &mut self,
        block: &'a mut [u8],
        view: &View,
        frames: &mut Vec<Frame<'a>>,
    ) -> Result<(), BeyondBlock> {
        let mut rest = block.get_mut(self.next..).ok_or(BeyondBlock(self.next))?;
        while self.left > 0 && frames.len() < BATCH_FRAMES_MAX {
            let beyond = BeyondBlock(self.next);
            if rest.len() < HEADER_BYTES {
                return Err(beyond);
            }
            let bytes = match u32_at(rest, offset_of!(libc::tpacket3_hdr, tp_next_offset)) as usize {
                // The last packet of a block may have no successor to point at.
                0 if self.left == 1 => rest.len(),
                bytes if (HEADER_BYTES..=rest.len()).contains(&bytes) => bytes,
                _ => return Err(beyond),
            };
            let (packet, behind) = rest.split_at_mut(bytes);
            rest = behind;
            frames.push(frame(packet, view).ok_or(beyond)?);
            self.next += bytes;
            self.left -= 1;
        }
        Ok(())
    }
}

/// The frame behind a packet header of at least `HEADER_BYTES`.
fn frame<'a>(packet: &'a mut [u8], view: &View) -> Option<Frame<'a>> {
    let word = |at| u32_at(packet, at);
    let secs = word(offset_of!(libc::tpacket3_hdr, tp_sec));
    let nanos = word(offset_of!(libc::tpacket3_hdr, tp_nsec));
    let status = word(offset_of!(libc::tpacket3_hdr, tp_status));
    let captured = word(offset_of!(libc::tpacket3_hdr, tp_snaplen)) as usize;
    let mut wire_len = word(offset_of!(libc::tpacket3_hdr, tp_len));
    let mut start = usize::from(u16_at(packet, offset_of!(libc::tpacket3_hdr, tp_mac)));
    let end = start + captured;
    if end > packet.len() {
        return None;
    }
    if status & libc::TP_STATUS_VLAN_VALID != 0
        && view.link == LinkType::Ethernet
        && captured >= VLAN_TAG_AT
        && start >= HEADER_BYTES + VLAN_TAG_BYTES
    {
        let tci = word(TCI_AT) as u16;
        let tpid = match u16_at(packet, TPID_AT) {
            tpid if status & libc::TP_STATUS_VLAN_TPID_VALID != 0 => tpid,
            _ => TPID_8021Q,
        };
        packet.copy_within(start..start + VLAN_TAG_AT, start - VLAN_TAG_BYTES);
        start -= VLAN_TAG_BYTES;
        packet[start + VLAN_TAG_AT..][..2].copy_from_slice(&tpid.to_be_bytes());
        packet[start + VLAN_TAG_AT + 2..][..2].copy_from_slice(&tci.to_be_bytes());
        wire_len = wire_len.saturating_add(VLAN_TAG_BYTES as u32);
    }
    let data = &packet[start..end];
    Some(Frame {
        data,
        wire_len: wire_len.max(data.len() as u32),
        // Cannot overflow: 2^32 s are 4.3e18 ns.
        ts: Nanos(u64::from(secs) * 1_000_000_000 + u64::from(nanos)),
        link: view.link,
        tap: view.tap,
    })
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([bytes[at], bytes[at + 1]])
}

#[cfg(test)]
mod tests {
    use super::*;

    const VIEW: View = View { link: LinkType::Ethernet, tap: TapId(3) };
    const FIRST: usize = 48;
    /// As the kernel computes it for Ethernet with 4 bytes in reserve.
    const MAC: usize = 86;

    struct Packet<'a> {
        data: &'a [u8],
        wire_len: u32,
        vlan: Option<(Option<u16>, u16)>,
    }

    fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
        bytes[at..at + value.len()].copy_from_slice(value);
    }

    fn block(packets: &[Packet<'_>]) -> Vec<u8> {
        let mut block = vec![0; FIRST];
        put(&mut block, PACKETS_AT, &(packets.len() as u32).to_ne_bytes());
        put(&mut block, FIRST_AT, &(FIRST as u32).to_ne_bytes());
        for (i, p) in packets.iter().enumerate() {
            let mut b = vec![0; (MAC + p.data.len()).next_multiple_of(8)];
            let next = if i + 1 == packets.len() { 0 } else { b.len() as u32 };
            put(&mut b, offset_of!(libc::tpacket3_hdr, tp_next_offset), &next.to_ne_bytes());
            put(&mut b, offset_of!(libc::tpacket3_hdr, tp_sec), &1_700_000_000_u32.to_ne_bytes());
            put(&mut b, offset_of!(libc::tpacket3_hdr, tp_nsec), &(i as u32).to_ne_bytes());
            put(&mut b, offset_of!(libc::tpacket3_hdr, tp_snaplen), &(p.data.len() as u32).to_ne_bytes());
            put(&mut b, offset_of!(libc::tpacket3_hdr, tp_len), &p.wire_len.to_ne_bytes());
            put(&mut b, offset_of!(libc::tpacket3_hdr, tp_mac), &(MAC as u16).to_ne_bytes());
            if let Some((tpid, tci)) = p.vlan {
                let mut status = libc::TP_STATUS_USER | libc::TP_STATUS_VLAN_VALID;
                if let Some(tpid) = tpid {
                    status |= libc::TP_STATUS_VLAN_TPID_VALID;
                    put(&mut b, TPID_AT, &tpid.to_ne_bytes());
                }
                put(&mut b, offset_of!(libc::tpacket3_hdr, tp_status), &status.to_ne_bytes());
                put(&mut b, TCI_AT, &u32::from(tci).to_ne_bytes());
            }
            put(&mut b, MAC, p.data);
            block.extend(b);
        }
        block
    }

    /// Data and wire length of each frame.
    type Frames = Vec<(Vec<u8>, u32)>;

    fn read(block: &mut [u8]) -> Result<Frames, BeyondBlock> {
        let mut cursor = Cursor::new(block);
        let mut out = Vec::new();
        while !cursor.is_at_end() {
            let mut frames = Vec::new();
            cursor.frames(block, &VIEW, &mut frames)?;
            out.extend(frames.iter().map(|f| (f.data.to_vec(), f.wire_len)));
        }
        Ok(out)
    }

    #[test]
    fn vlan_tags_are_put_back_where_they_were() {
        let plain: Vec<u8> = (0..64).collect();
        let tagged =
            |tpid: u16, tci: u16| [&plain[..12], &tpid.to_be_bytes(), &tci.to_be_bytes(), &plain[12..]].concat();
        let mut packets = block(&[
            Packet { data: &plain, wire_len: 64, vlan: None },
            Packet { data: &plain, wire_len: 64, vlan: Some((None, 0x2fff)) },
            Packet { data: &plain, wire_len: 90, vlan: Some((Some(0x88a8), 7)) },
            // Cut inside the addresses: there is no place for a tag.
            Packet { data: &plain[..11], wire_len: 64, vlan: Some((None, 7)) },
        ]);
        let frames = read(&mut packets).unwrap();
        let expected =
            [(plain.clone(), 64), (tagged(0x8100, 0x2fff), 68), (tagged(0x88a8, 7), 94), (plain[..11].to_vec(), 64)];
        assert_eq!(frames, expected);
    }

    #[test]
    fn batches_continue_where_the_last_one_ended() {
        let data: Vec<Vec<u8>> = (0..600_u32).map(|i| i.to_be_bytes().repeat(4)).collect();
        let packets: Vec<_> = data.iter().map(|data| Packet { data, wire_len: 16, vlan: None }).collect();
        let frames = read(&mut block(&packets)).unwrap();
        assert!(frames.iter().map(|(frame, _)| frame).eq(&data));
    }

    #[test]
    fn offsets_beyond_the_block_are_errors() {
        let data = [9; 40];
        let packets = [(); 2].map(|()| Packet { data: &data, wire_len: 40, vlan: Some((None, 1)) });
        let good = block(&packets);
        read(&mut good.clone()).unwrap();
        for (at, value) in [
            (FIRST_AT, good.len() as u32 + 1),
            (FIRST_AT, good.len() as u32 - 8),
            (PACKETS_AT, 3),
            (FIRST, 0),
            (FIRST, 8),
            (FIRST, u32::MAX),
            (FIRST + offset_of!(libc::tpacket3_hdr, tp_snaplen), u32::MAX),
            (FIRST + offset_of!(libc::tpacket3_hdr, tp_mac), u32::MAX),
        ] {
            let mut bad = good.clone();
            put(&mut bad, at, &value.to_ne_bytes());
            assert!(read(&mut bad).is_err(), "{value} at {at}");
        }
    }

    #[test]
    fn a_block_of_any_bytes_is_read_without_panic() {
        use proptest::prelude::*;
        let data = [7; 60];
        let packets = [(); 6].map(|()| Packet { data: &data, wire_len: 60, vlan: Some((None, 1)) });
        let good = block(&packets);
        proptest!(|(changes in prop::collection::vec((0..good.len(), any::<u8>()), 1..20))| {
            let mut bad = good.clone();
            for (at, value) in changes {
                bad[at] = value;
            }
            let _ = read(&mut bad);
        });
    }
}
