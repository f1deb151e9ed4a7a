//! The tests of a capture filter, decided by the XDP program. `twin` decides the same in plain Rust.
//!
//! What is kept without a look at the tests, since they cannot tell: frames shorter than an Ethernet header, frames
//! with a VLAN tag, and IPv4 or IPv6 frames whose fixed header is not whole or whose IPv4 header length is below 5
//! words. Of a multi-buffer frame only the first part counts, which is where drivers put the headers. Only a port can
//! still be out of reach then (options, short payload): the first test that would look at it ends in "keep", whatever
//! surrounds it, a `Not` included.

#[cfg(test)]
pub(super) mod twin;

use super::asm::{Alu, Asm, If, Label, Reg, Reg::*, Width};
use crate::filter::early::{Early, Side};
use std::net::IpAddr;

/// Nesting that is compiled. The walk is recursive.
pub(crate) const DEPTH_MAX: usize = 64;

const ETHERNET_BYTES: usize = 14;
const ETHER_TYPE_AT: usize = 12;
/// 802.1Q, 802.1ad, and what was used for the latter before it was standardised: tags as libpcap knows them.
const VLAN_TYPES: [u16; 3] = [0x8100, 0x88a8, 0x9100];
/// Fragment offset in the last two bytes of flags and offset (RFC 791).
const FRAGMENT_AT: usize = ETHERNET_BYTES + 6;
const FRAGMENT_MASK: u16 = 0x1fff;
/// Least IPv4 header length, in words of 4 bytes, and the greatest that its field can tell.
const IHL_MIN: usize = 5;
const IHL_MAX: usize = 15;
/// Source and destination port.
const PORTS_BYTES: usize = 4;

/// The protocols whose headers are looked into. The discriminant is what the program has in [`FAMILY`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
enum Family {
    V4 = 4,
    V6 = 6,
}

impl Family {
    /// `None` for an Ethernet type that is neither: a test for it never holds.
    fn of(ether_type: u16) -> Option<Family> {
        match ether_type {
            0x0800 => Some(Family::V4),
            0x86dd => Some(Family::V6),
            _ => None,
        }
    }

    /// Bytes up to the end of the fixed header.
    const fn fixed_end(self) -> usize {
        ETHERNET_BYTES
            + match self {
                Family::V4 => 20,
                Family::V6 => 40,
            }
    }

    const fn protocol_at(self) -> usize {
        ETHERNET_BYTES
            + match self {
                Family::V4 => 9,
                Family::V6 => 6,
            }
    }

    const fn address_bytes(self) -> usize {
        match self {
            Family::V4 => 4,
            Family::V6 => 16,
        }
    }

    /// The source address. The destination follows it, and ends the fixed header.
    const fn source_at(self) -> usize {
        self.fixed_end() - 2 * self.address_bytes()
    }
}

/// A block of addresses as words in network order: a word of the address, masked, must equal the network's.
struct Block {
    family: Family,
    /// Mask and network of each word that the prefix reaches into, neither of them in the machine's order.
    words: Vec<(u32, u32)>,
}

impl Block {
    /// `bits` beyond the length of an address count as that.
    fn new(network: IpAddr, bits: u8) -> Block {
        let (family, octets) = match network {
            IpAddr::V4(ip) => (Family::V4, ip.octets().to_vec()),
            IpAddr::V6(ip) => (Family::V6, ip.octets().to_vec()),
        };
        let words = octets.chunks_exact(4).zip(0_u32..).map_while(|(word, i)| {
            let left = u32::from(bits).checked_sub(32 * i).filter(|left| *left > 0)?;
            let mask = u32::MAX.checked_shl(32_u32.saturating_sub(left)).unwrap_or(0);
            let network = u32::from_be_bytes([word[0], word[1], word[2], word[3]]);
            Some((mask, network & mask))
        });
        Block { family, words: words.collect() }
    }
}

// --- In plain Rust. ---

/// Ethernet type, as in the frame (big endian).
const ETHER_TYPE: Reg = R0;
const SCRATCH: Reg = R1;
/// First byte of the frame.
const DATA: Reg = R2;
/// Behind its last byte.
const DATA_END: Reg = R3;
/// A [`Family`], or 0.
const FAMILY: Reg = R5;
/// In the machine's order; or one of these, and then the destination port does not count:
const SOURCE_PORT: Reg = R4;
const UNSURE: i32 = -1;
const NONE: i32 = -2;
const DESTINATION_PORT: Reg = R9;

/// Offsets of `struct xdp_md` (linux/bpf.h).
const XDP_MD_DATA: i16 = 0;
const XDP_MD_DATA_END: i16 = 4;

/// Appends code that jumps to `keep` or `drop` for the frame of the `struct xdp_md` in `context`, which must be one of the
/// registers R6-R8: the others are changed. False where `early` is nested deeper than [`DEPTH_MAX`]: nothing is appended.
pub(super) fn compile(early: &Early, a: &mut Asm, context: Reg, keep: Label, drop: Label) -> bool {
    if depth(early, 0) > DEPTH_MAX {
        return false;
    }
    headers(a, context, keep);
    if looks_at_ports(early) {
        ports(a);
    }
    Compiler { a, unsure: keep }.test(early, keep, drop);
    true
}

/// Levels of the tree, counted no further than is of interest.
fn depth(early: &Early, above: usize) -> usize {
    match early {
        _ if above > DEPTH_MAX => above,
        Early::All(list) | Early::Any(list) => {
            list.iter().map(|one| depth(one, above + 1)).max().unwrap_or(0).max(above + 1)
        }
        Early::Not(not) => depth(not, above + 1),
        _ => above + 1,
    }
}

/// Called on trees of bounded depth only.
fn looks_at_ports(early: &Early) -> bool {
    match early {
        Early::All(list) | Early::Any(list) => list.iter().any(looks_at_ports),
        Early::Not(not) => looks_at_ports(not),
        Early::Port { .. } => true,
        Early::EtherType(_) | Early::Protocol { .. } | Early::Net { .. } => false,
    }
}

/// Sets ETHER_TYPE and FAMILY, and proves to the verifier that the fixed header of that family is there.
fn headers(a: &mut Asm, context: Reg, keep: Label) {
    let (v4, v6, done) = (a.label(), a.label(), a.label());
    a.load(Width::U32, DATA, context, XDP_MD_DATA);
    a.load(Width::U32, DATA_END, context, XDP_MD_DATA_END);
    unless_bytes(a, ETHERNET_BYTES, keep);
    a.load(Width::U16, ETHER_TYPE, DATA, ETHER_TYPE_AT as i16);
    // On each path the verifier knows FAMILY as a constant, and with it how many bytes were checked: the tests rely on
    // that for looking at headers without another check.
    a.jump_if(If::Eq, ETHER_TYPE, network_order(0x0800), v4);
    a.jump_if(If::Eq, ETHER_TYPE, network_order(0x86dd), v6);
    for vlan in VLAN_TYPES {
        a.jump_if(If::Eq, ETHER_TYPE, network_order(vlan), keep);
    }
    a.mov(FAMILY, 0);
    a.jump(done);
    a.bind(v6);
    unless_bytes(a, Family::V6.fixed_end(), keep);
    a.mov(FAMILY, Family::V6 as i32);
    a.jump(done);
    a.bind(v4);
    unless_bytes(a, Family::V4.fixed_end(), keep);
    a.load(Width::U8, SCRATCH, DATA, ETHERNET_BYTES as i16);
    a.alu(Alu::And, SCRATCH, 0x0f);
    a.jump_if(If::Lt, SCRATCH, IHL_MIN as i32, keep);
    a.mov(FAMILY, Family::V4 as i32);
    a.bind(done);
}

/// Sets SOURCE_PORT and DESTINATION_PORT. A header length is matched against each value it can have, since the verifier lets programs without
/// CAP_PERFMON read packets at constant offsets only.
fn ports(a: &mut Asm) {
    let (v4, none, found, done) = (a.label(), a.label(), a.label(), a.label());
    a.mov(SOURCE_PORT, UNSURE);
    a.mov(DESTINATION_PORT, UNSURE);
    a.jump_if(If::Eq, FAMILY, Family::V4 as i32, v4);
    a.jump_if(If::Ne, FAMILY, Family::V6 as i32, done);
    ports_at(a, Family::V6.fixed_end(), done, found);
    a.bind(v4);
    a.load(Width::U16, SCRATCH, DATA, FRAGMENT_AT as i16);
    a.alu(Alu::And, SCRATCH, network_order(FRAGMENT_MASK));
    a.jump_if(If::Ne, SCRATCH, 0, none);
    a.load(Width::U8, SCRATCH, DATA, ETHERNET_BYTES as i16);
    a.alu(Alu::And, SCRATCH, 0x0f);
    for words in IHL_MIN..IHL_MAX {
        let longer = a.label();
        a.jump_if(If::Ne, SCRATCH, words as i32, longer);
        ports_at(a, ETHERNET_BYTES + 4 * words, done, found);
        a.bind(longer);
    }
    ports_at(a, ETHERNET_BYTES + 4 * IHL_MAX, done, found);
    a.bind(none);
    a.mov(SOURCE_PORT, NONE);
    a.jump(done);
    a.bind(found);
    a.big_endian(SOURCE_PORT, 16);
    a.big_endian(DESTINATION_PORT, 16);
    a.bind(done);
}

/// Loads both ports as they are in the frame, or goes to `beyond`.
fn ports_at(a: &mut Asm, at: usize, beyond: Label, found: Label) {
    unless_bytes(a, at + PORTS_BYTES, beyond);
    a.load(Width::U16, SOURCE_PORT, DATA, at as i16);
    a.load(Width::U16, DESTINATION_PORT, DATA, at as i16 + 2);
    a.jump(found);
}

/// Jumps to `short` if the frame has fewer than `bytes` bytes. Behind it the verifier lets that many be read.
fn unless_bytes(a: &mut Asm, bytes: usize, short: Label) {
    a.mov(SCRATCH, DATA);
    a.alu(Alu::Add, SCRATCH, bytes as i32);
    a.jump_if(If::Gt, SCRATCH, DATA_END, short);
}

/// What a 16-bit load of this value in network order gives.
fn network_order(value: u16) -> i32 {
    i32::from(value.to_be())
}

struct Compiler<'a> {
    a: &'a mut Asm,
    /// Where to go when a test cannot tell.
    unsure: Label,
}

impl Compiler<'_> {
    /// Appends code that jumps to `yes` or `no`, as `early` holds or not.
    fn test(&mut self, early: &Early, yes: Label, no: Label) {
        match early {
            Early::All(all) => {
                for one in all {
                    let next = self.a.label();
                    self.test(one, next, no);
                    self.a.bind(next);
                }
                self.a.jump(yes);
            }
            Early::Any(any) => {
                for one in any {
                    let next = self.a.label();
                    self.test(one, yes, next);
                    self.a.bind(next);
                }
                self.a.jump(no);
            }
            Early::Not(not) => self.test(not, no, yes),
            Early::EtherType(ether_type) => {
                self.a.jump_if(If::Ne, ETHER_TYPE, network_order(*ether_type), no);
                self.a.jump(yes);
            }
            Early::Protocol { ether_type, protocol } => {
                if let Some(family) = self.unless_family(*ether_type, no) {
                    self.a.load(Width::U8, SCRATCH, DATA, family.protocol_at() as i16);
                    self.a.jump_if(If::Ne, SCRATCH, i32::from(*protocol), no);
                    self.a.jump(yes);
                }
            }
            Early::Port { ether_type, side, first, last } => {
                if self.unless_family(*ether_type, no).is_some() {
                    self.a.jump_if(If::Eq, SOURCE_PORT, UNSURE, self.unsure);
                    self.a.jump_if(If::Eq, SOURCE_PORT, NONE, no);
                    self.sides(*side, yes, no, |this, source, yes, no| this.port(source, *first, *last, yes, no));
                }
            }
            Early::Net { side, network, bits } => {
                let block = Block::new(*network, *bits);
                self.a.jump_if(If::Ne, FAMILY, block.family as i32, no);
                self.sides(*side, yes, no, |this, source, yes, no| this.net(source, &block, yes, no));
            }
        }
    }

    /// Goes on where the frame is of this family, and jumps to `no` otherwise.
    fn unless_family(&mut self, ether_type: u16, no: Label) -> Option<Family> {
        let family = Family::of(ether_type);
        match family {
            Some(family) => self.a.jump_if(If::Ne, FAMILY, family as i32, no),
            None => self.a.jump(no),
        }
        family
    }

    /// `one` side after the other (true: the source), combined as told.
    fn sides(&mut self, side: Side, yes: Label, no: Label, one: impl Fn(&mut Self, bool, Label, Label)) {
        let second = self.a.label();
        match side {
            Side::Source => one(self, true, yes, no),
            Side::Destination => one(self, false, yes, no),
            Side::Either => one(self, true, yes, second),
            Side::Both => one(self, true, second, no),
        }
        self.a.bind(second);
        if matches!(side, Side::Either | Side::Both) {
            one(self, false, yes, no);
        }
    }

    fn port(&mut self, source: bool, first: u16, last: u16, yes: Label, no: Label) {
        let port = if source { SOURCE_PORT } else { DESTINATION_PORT };
        if first == last {
            self.a.jump_if(If::Ne, port, i32::from(first), no);
        } else {
            self.a.jump_if(If::Lt, port, i32::from(first), no);
            self.a.jump_if(If::Gt, port, i32::from(last), no);
        }
        self.a.jump(yes);
    }

    fn net(&mut self, source: bool, block: &Block, yes: Label, no: Label) {
        let at = block.family.source_at() + if source { 0 } else { block.family.address_bytes() };
        for ((mask, network), at) in block.words.iter().zip((at..).step_by(4)) {
            self.a.load(Width::U32, SCRATCH, DATA, at as i16);
            if *mask != u32::MAX {
                // The upper half of the register is 0, so that the sign extension of the mask does no harm.
                self.a.alu(Alu::And, SCRATCH, mask.to_be().cast_signed());
            }
            self.a.jump_if32(If::Ne, SCRATCH, network.to_be().cast_signed(), no);
        }
        self.a.jump(yes);
    }
}

#[cfg(test)]
mod tests {
    use super::twin::verdict;
    use super::*;

    fn udp(source: [u8; 4], destination: [u8; 4], ports: [u16; 2]) -> Vec<u8> {
        let mut frame = vec![0; 42];
        frame[12..14].copy_from_slice(&[8, 0]);
        frame[14] = 0x45;
        frame[23] = 17;
        frame[26..30].copy_from_slice(&source);
        frame[30..34].copy_from_slice(&destination);
        frame[34..36].copy_from_slice(&ports[0].to_be_bytes());
        frame[36..38].copy_from_slice(&ports[1].to_be_bytes());
        frame
    }

    fn port(side: Side, first: u16, last: u16) -> Early {
        Early::Port { ether_type: 0x0800, side, first, last }
    }

    fn nothing() -> Early {
        Early::Any(vec![])
    }

    #[test]
    fn verdicts() {
        let frame = udp([10, 1, 2, 3], [192, 168, 0, 1], [53, 4000]);
        let net = |side, network: &str, bits| Early::Net { side, network: network.parse().unwrap(), bits };
        for (early, keep) in [
            (Early::All(vec![]), true),
            (nothing(), false),
            (Early::Not(Box::new(nothing())), true),
            (Early::EtherType(0x0800), true),
            (Early::EtherType(0x0806), false),
            (Early::Protocol { ether_type: 0x0800, protocol: 17 }, true),
            (Early::Protocol { ether_type: 0x0800, protocol: 6 }, false),
            (Early::Protocol { ether_type: 0x86dd, protocol: 17 }, false),
            (Early::Protocol { ether_type: 0x1234, protocol: 17 }, false),
            (port(Side::Source, 53, 53), true),
            (port(Side::Destination, 53, 53), false),
            (port(Side::Either, 3999, 4001), true),
            (port(Side::Both, 53, 4000), true),
            (port(Side::Both, 54, 4000), false),
            (net(Side::Source, "10.1.0.0", 16), true),
            (net(Side::Source, "10.1.99.99", 16), true),
            (net(Side::Destination, "10.1.0.0", 16), false),
            (net(Side::Either, "192.168.0.1", 32), true),
            (net(Side::Either, "192.168.0.0", 32), false),
            (net(Side::Both, "0.0.0.0", 0), true),
            (net(Side::Both, "::", 0), false),
        ] {
            assert_eq!(verdict(&early, &frame), keep, "{early:?}");
        }
    }

    #[test]
    fn what_cannot_be_told_is_kept() {
        let frame = udp([10, 1, 2, 3], [192, 168, 0, 1], [53, 4000]);
        assert!(!verdict(&nothing(), &frame[..34]));
        for bytes in (0..14).chain(14..34) {
            assert!(verdict(&nothing(), &frame[..bytes]), "{bytes} bytes");
        }
        for vlan in VLAN_TYPES {
            let mut tagged = frame.clone();
            tagged[12..14].copy_from_slice(&vlan.to_be_bytes());
            assert!(verdict(&nothing(), &tagged));
        }
        let mut malformed = frame.clone();
        malformed[14] = 0x44;
        assert!(verdict(&nothing(), &malformed));

        let away = port(Side::Source, 1, 1);
        assert!(!verdict(&away, &frame[..38]));
        assert!(verdict(&away, &frame[..37]));
        assert!(verdict(&Early::Not(Box::new(port(Side::Source, 53, 53))), &frame[..37]));
        assert!(!verdict(&Early::All(vec![Early::EtherType(0x0806), away.clone()]), &frame[..37]), "never looked at");
        assert!(verdict(&Early::All(vec![away.clone(), nothing()]), &frame[..37]));
        let mut fragment = frame.clone();
        fragment[21] = 1;
        assert!(!verdict(&away, &fragment[..37]), "has no ports, for certain");
        let mut options = frame;
        options[14] = 0x4f;
        assert!(verdict(&away, &options));
        options.resize(14 + 60 + 4, 0);
        assert!(!verdict(&away, &options));
        options[75] = 1;
        assert!(verdict(&away, &options));
    }

    #[test]
    fn depth_is_bounded() {
        let nested = |levels| (1..levels).fold(nothing(), |inner, _| Early::Not(Box::new(inner)));
        assert_eq!(depth(&nested(DEPTH_MAX), 0), DEPTH_MAX);
        for (levels, compiled) in [(1, true), (DEPTH_MAX, true), (DEPTH_MAX + 1, false), (10 * DEPTH_MAX, false)] {
            let mut a = Asm::new(2000);
            let (keep, drop) = (a.label(), a.label());
            assert_eq!(compile(&nested(levels), &mut a, R6, keep, drop), compiled, "{levels}");
        }
        let frame = udp([10, 1, 2, 3], [192, 168, 0, 1], [53, 4000]);
        assert!(!verdict(&nested(DEPTH_MAX - 1), &frame));
        assert!(verdict(&nested(DEPTH_MAX), &frame));
        assert!(verdict(&nested(DEPTH_MAX + 1), &frame), "too deep to tell");
    }

    #[test]
    fn prefixes_become_masks() {
        let words = |network: &str, bits| Block::new(network.parse().unwrap(), bits).words;
        assert_eq!(words("10.1.2.3", 0), []);
        assert_eq!(words("10.1.2.3", 1), [(0x8000_0000, 0)]);
        assert_eq!(words("10.1.2.3", 24), [(0xffff_ff00, 0x0a01_0200)]);
        assert_eq!(words("10.1.2.3", 32), [(u32::MAX, 0x0a01_0203)]);
        assert_eq!(words("10.1.2.3", 255), [(u32::MAX, 0x0a01_0203)]);
        assert_eq!(words("2001:db8::1", 33), [(u32::MAX, 0x2001_0db8), (0x8000_0000, 0)]);
        assert_eq!(words("2001:db8::1", 128).len(), 4);
    }
}
