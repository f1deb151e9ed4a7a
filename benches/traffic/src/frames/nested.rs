//! Packets in tunnels in tunnels: [`random`](super::random) frames with up to so many encapsulations around the packet
//! that counts, each with the fields that its header may have.

use super::{Built, Expect, Link, link_header, network, prepend, push_addresses, random_bytes};
use crate::encode;
use crate::rng::Rng;
use std::net::IpAddr;

/// How one packet is put into another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// IP in IP, any version in any (RFC 2003, 2473, 4213).
    IpIp,
    /// GRE version 0 with checksum, key, sequence number and source routes at random; IP or Ethernet inside.
    Gre,
    /// GRE version 1 with PPP inside (RFC 2637).
    Pptp,
    /// ERSPAN without a header of its own.
    ErspanI,
    /// ERSPAN with a header of 8 bytes.
    ErspanII,
    /// ERSPAN with a header of 12 or 20 bytes; IP or Ethernet inside.
    ErspanIII,
    /// VXLAN (RFC 7348) on its own port or on the one Linux used before.
    Vxlan,
    /// VXLAN-GPE: IP, Ethernet, or either behind a network service header.
    VxlanGpe,
    /// GENEVE with options (RFC 8926); IP or Ethernet inside.
    Geneve,
    /// GTP-U with sequence number and extension headers at random.
    Gtpu,
    /// Teredo with authentication and origin indication at random (RFC 4380); IPv6 inside.
    Teredo,
    /// MPLS in UDP (RFC 7510).
    MplsUdp,
    /// MPLS in IP (RFC 4023).
    MplsIp,
    /// L2TP version 2 with PPP inside (RFC 2661).
    L2tp,
    /// Ethernet in IP (RFC 3378).
    EtherIp,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 15] = [
        Kind::IpIp,
        Kind::Gre,
        Kind::Pptp,
        Kind::ErspanI,
        Kind::ErspanII,
        Kind::ErspanIII,
        Kind::Vxlan,
        Kind::VxlanGpe,
        Kind::Geneve,
        Kind::Gtpu,
        Kind::Teredo,
        Kind::MplsUdp,
        Kind::MplsIp,
        Kind::L2tp,
        Kind::EtherIp,
    ];
}

/// A frame with a packet in tunnels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nested {
    /// The frame. `expect` is of the innermost packet; its VLAN ids are those of the outermost link header that has any.
    pub frame: Built,
    /// The tunnels, outermost first.
    pub kinds: Vec<Kind>,
    /// VNI or GRE key of the innermost tunnel, 0 for none.
    pub id: u32,
}

/// A packet in `depth` random tunnels, on a random link.
pub fn random(rng: &mut Rng, depth: usize) -> Nested {
    let kinds: Vec<Kind> = (0..depth).map(|_| rng.pick(&Kind::ALL)).collect();
    in_tunnels(rng, &kinds)
}

/// A packet in these tunnels, outermost first, on a random link.
pub fn in_tunnels(rng: &mut Rng, kinds: &[Kind]) -> Nested {
    // Teredo carries IPv6 only, and each kind says what the carrier of the next one inside has to be.
    let v6_in = |index: usize, rng: &mut Rng| {
        let outer = index.checked_sub(1).and_then(|outer| kinds.get(outer));
        outer == Some(&Kind::Teredo) || rng.below(2) == 0
    };
    let v6 = v6_in(kinds.len(), rng);
    let (packet, expect) = network(rng, v6);
    let mut layer = Layer { bytes: packet, v6, vlans: Vec::new(), expect };
    let mut id = 0;
    for (index, kind) in kinds.iter().enumerate().rev() {
        let this = layer.wrap(rng, *kind);
        if index + 1 == kinds.len() {
            id = this;
        }
        let v6 = v6_in(index, rng);
        layer.carrier(rng, v6);
    }
    let Layer { bytes: packet, v6, mut expect, vlans } = layer;
    let (link, mut bytes) = (rng.pick(&Link::ALL), Vec::new());
    link_header(link, rng, v6, packet.len(), &mut bytes, &mut expect);
    if expect.vlans.is_empty() {
        expect.vlans = vlans;
    }
    if let Some((at, _)) = &mut expect.payload {
        *at += bytes.len();
    }
    bytes.extend_from_slice(&packet);
    Nested { frame: Built { link, bytes, expect }, kinds: kinds.to_vec(), id }
}

/// A packet on its way into the next tunnel.
struct Layer {
    /// An IP packet, or between [`wrap`](Layer::wrap) and [`carrier`](Layer::carrier) what follows an IP header, which
    /// is announced by the last byte.
    bytes: Vec<u8>,
    v6: bool,
    /// Of the outermost Ethernet header so far that has any.
    vlans: Vec<u16>,
    expect: Expect,
}

impl Layer {
    /// Puts a tunnel's headers before the packet, and the protocol number that announces them behind it. Returns the id.
    fn wrap(&mut self, rng: &mut Rng, kind: Kind) -> u32 {
        let id = rng.next_u32();
        let vni = id >> 8;
        let proto = match kind {
            Kind::IpIp => {
                if self.v6 {
                    41
                } else {
                    4
                }
            }
            Kind::Gre => {
                let protocol = if rng.below(2) == 0 { self.ethertype() } else { self.ethernet(rng) };
                let key = self.gre(rng, protocol);
                self.bytes.push(47);
                return key;
            }
            Kind::Pptp => {
                self.ppp(rng);
                let (seq, ack) = (0x30, rng.below(2) as u8 * 0x80);
                let mut h = vec![seq, ack | 1, 0x88, 0x0b];
                h.extend(random_bytes(rng, 8 + usize::from(ack > 0) * 4));
                self.put(h);
                47
            }
            Kind::ErspanI | Kind::ErspanII | Kind::ErspanIII => {
                self.erspan(rng, kind);
                47
            }
            Kind::Vxlan => {
                self.ethernet(rng);
                self.put([&[0x08, 0, 0, 0], &(vni << 8).to_be_bytes()[..]].concat());
                let port = rng.pick(&[4789, 8472]);
                self.udp(rng, port)
            }
            Kind::VxlanGpe => {
                let mut next = self.service(rng);
                if rng.below(3) == 0 {
                    let words = rng.between(2, 6) as u8;
                    let mut h = vec![0, words, 2, next];
                    h.extend(random_bytes(rng, usize::from(words) * 4 - 4));
                    self.put(h);
                    next = 4;
                }
                self.put([&[0x0c, 0, 0, next], &(vni << 8).to_be_bytes()[..]].concat());
                self.udp(rng, 4790)
            }
            Kind::Geneve => {
                let protocol = if rng.below(2) == 0 { self.ethertype() } else { self.ethernet(rng) };
                let words = rng.below(8) as u8;
                let mut h = vec![words, rng.below(2) as u8 * 0x40];
                h.extend_from_slice(&protocol.to_be_bytes());
                h.extend_from_slice(&(vni << 8).to_be_bytes());
                h.extend(random_bytes(rng, usize::from(words) * 4));
                self.put(h);
                self.udp(rng, 6081)
            }
            Kind::Gtpu => self.gtpu(rng),
            Kind::Teredo => self.teredo(rng),
            Kind::MplsUdp => {
                self.labels(rng);
                self.udp(rng, 6635)
            }
            Kind::MplsIp => {
                self.labels(rng);
                137
            }
            Kind::L2tp => self.l2tp(rng),
            Kind::EtherIp => {
                self.ethernet(rng);
                self.put(vec![0x30, 0]);
                97
            }
        };
        self.bytes.push(proto);
        if matches!(kind, Kind::Vxlan | Kind::VxlanGpe | Kind::Geneve) { vni } else { 0 }
    }

    fn put(&mut self, header: Vec<u8>) {
        prepend(&mut self.bytes, header, &mut self.expect);
    }

    fn ethertype(&self) -> u16 {
        if self.v6 { 0x86dd } else { 0x0800 }
    }

    /// An Ethernet header with up to two VLAN tags; returns the type that announces such a frame.
    fn ethernet(&mut self, rng: &mut Rng) -> u16 {
        let mut header = random_bytes(rng, 12);
        let mut vlans = Vec::new();
        for _ in 0..rng.below(5).saturating_sub(2) {
            let tci = rng.next_u32() as u16;
            vlans.push(tci & 0x0fff);
            header.extend_from_slice(&rng.pick(&super::ETHERTYPES_VLAN).to_be_bytes());
            header.extend_from_slice(&tci.to_be_bytes());
        }
        header.extend_from_slice(&self.ethertype().to_be_bytes());
        self.put(header);
        if !vlans.is_empty() {
            self.vlans = vlans;
        }
        0x6558
    }

    /// A PPP protocol field, compressed or not, behind address and control or not.
    fn ppp(&mut self, rng: &mut Rng) {
        let protocol = if self.v6 { 0x57 } else { 0x21 };
        let mut header = if rng.below(2) == 0 { vec![0xff, 0x03] } else { Vec::new() };
        if rng.below(2) == 0 {
            header.push(0);
        }
        header.push(protocol);
        self.put(header);
    }

    fn labels(&mut self, rng: &mut Rng) {
        let labels = rng.between(1, 4);
        let mut header = Vec::new();
        for label in 1..=labels {
            let bottom = u32::from(label == labels) << 8;
            header.extend_from_slice(&(rng.next_u32() & !0x100 | bottom).to_be_bytes());
        }
        self.put(header);
    }

    /// The payload of a network service header or VXLAN-GPE; returns its number there.
    fn service(&mut self, rng: &mut Rng) -> u8 {
        match rng.below(3) {
            0 => {
                self.ethernet(rng);
                3
            }
            1 => {
                self.labels(rng);
                5
            }
            _ => 1 + u8::from(self.v6),
        }
    }

    fn gre(&mut self, rng: &mut Rng, protocol: u16) -> u32 {
        let [checksum, routing, has_key, sequence] = [0x80, 0x40, 0x20, 0x10].map(|bit| rng.below(2) as u8 * bit);
        let mut header = vec![checksum | routing | has_key | sequence, 0];
        header.extend_from_slice(&protocol.to_be_bytes());
        if checksum | routing != 0 {
            header.extend(random_bytes(rng, 4));
        }
        let key = rng.next_u32();
        if has_key != 0 {
            header.extend_from_slice(&key.to_be_bytes());
        }
        if sequence != 0 {
            header.extend(random_bytes(rng, 4));
        }
        if routing != 0 {
            for _ in 0..rng.below(3) {
                let addresses = rng.between(1, 3) as u8 * 4;
                header.extend_from_slice(&[8, 0, 0, addresses]);
                header.extend(random_bytes(rng, usize::from(addresses)));
            }
            header.extend_from_slice(&[0; 4]);
        }
        self.put(header);
        if has_key != 0 { key } else { 0 }
    }

    fn erspan(&mut self, rng: &mut Rng, kind: Kind) {
        let sequence = random_bytes(rng, 4);
        let gre = |protocol: [u8; 2]| [&[0x10, 0], &protocol[..], &sequence].concat();
        match kind {
            Kind::ErspanII => {
                self.ethernet(rng);
                let mut header = random_bytes(rng, 8);
                header[0] = 0x10 | header[0] & 0x0f;
                self.put(header);
                self.put(gre([0x88, 0xbe]));
            }
            Kind::ErspanIII => {
                let is_ip = !self.v6 && rng.below(2) == 0;
                if !is_ip {
                    self.ethernet(rng);
                }
                let with_subheader = rng.below(2) as u8;
                let mut header = random_bytes(rng, 12 + usize::from(with_subheader) * 8);
                header[0] = 0x20 | header[0] & 0x0f;
                // Frame type in bits 10 to 14, optional subheader in bit 0 of the last word.
                header[10] = header[10] & 0x83 | u8::from(is_ip) << 3;
                header[11] = header[11] & 0xfe | with_subheader;
                self.put(header);
                self.put(gre([0x22, 0xeb]));
            }
            _ => {
                self.ethernet(rng);
                self.put(vec![0, 0, 0x88, 0xbe]);
            }
        }
    }

    fn gtpu(&mut self, rng: &mut Rng) -> u8 {
        let flags = rng.below(8) as u8;
        let mut fields = Vec::new();
        if flags != 0 {
            fields.extend(random_bytes(rng, 3));
            let extensions = if flags & 4 != 0 { rng.below(3) } else { 0 };
            // Without the flag E the field is there and means nothing.
            let next = |last: bool, rng: &mut Rng| if last { 0 } else { rng.between(1, 255) as u8 };
            let first = if flags & 4 != 0 { next(extensions == 0, rng) } else { rng.next_u32() as u8 };
            fields.push(first);
            for extension in 1..=extensions {
                let words = rng.between(1, 3) as u8;
                fields.push(words);
                fields.extend(random_bytes(rng, usize::from(words) * 4 - 2));
                fields.push(next(extension == extensions, rng));
            }
        }
        let mut header = vec![0x30 | flags, 0xff];
        header.extend_from_slice(&((self.bytes.len() + fields.len()) as u16).to_be_bytes());
        header.extend(random_bytes(rng, 4));
        header.extend(fields);
        self.put(header);
        self.udp(rng, 2152)
    }

    fn teredo(&mut self, rng: &mut Rng) -> u8 {
        if rng.below(2) == 0 {
            let mut origin = vec![0, 0];
            origin.extend(random_bytes(rng, 6));
            self.put(origin);
        }
        if rng.below(2) == 0 {
            let (id, value) = (rng.below(9) as u8, rng.below(9) as u8);
            let mut header = vec![0, 1, id, value];
            header.extend(random_bytes(rng, usize::from(id) + usize::from(value) + 9));
            self.put(header);
        }
        self.udp(rng, 3544)
    }

    fn l2tp(&mut self, rng: &mut Rng) -> u8 {
        self.ppp(rng);
        let [length, sequence, offset] = [0x4000, 0x0800, 0x0200].map(|bit| rng.below(2) as u16 * bit);
        let mut header = (length | sequence | offset | 2).to_be_bytes().to_vec();
        header.extend(random_bytes(rng, usize::from(length > 0) * 2 + 4 + usize::from(sequence > 0) * 4));
        if offset > 0 {
            let padding = rng.below(8) as u16;
            header.extend_from_slice(&padding.to_be_bytes());
            header.extend(random_bytes(rng, usize::from(padding)));
        }
        self.put(header);
        self.udp(rng, 1701)
    }

    /// A UDP header; the tunnel's port is the destination's, or now and then the source's.
    fn udp(&mut self, rng: &mut Rng, port: u16) -> u8 {
        // Ports above all that mean something here.
        let other = rng.between(20_000, 65_535) as u16;
        let (src, dst) = if rng.below(4) == 0 { (port, other) } else { (other, port) };
        let len = 8 + self.bytes.len() as u16;
        self.put([src, dst, len, 0].map(u16::to_be_bytes).concat());
        encode::UDP
    }

    /// The IP header of the packet that carries what [`wrap`](Layer::wrap) left.
    fn carrier(&mut self, rng: &mut Rng, v6: bool) {
        let proto = self.bytes.pop().unwrap_or(0);
        let address = |rng: &mut Rng| match random_bytes(rng, 16).first_chunk::<16>() {
            Some(bytes) if v6 => IpAddr::from(*bytes),
            _ => IpAddr::from(rng.next_u32().to_be_bytes()),
        };
        let ends = [address(rng), address(rng)];
        if v6 {
            let with_options = rng.below(4) == 0;
            if with_options {
                self.put(vec![proto, 0, 1, 4, 0, 0, 0, 0]);
            }
            let mut header = vec![0x60, 0, 0, 0];
            header.extend_from_slice(&(self.bytes.len() as u16).to_be_bytes());
            header.extend_from_slice(&[if with_options { 60 } else { proto }, 64]);
            push_addresses(&mut header, 8, ends);
            self.put(header);
        } else {
            let options = rng.below(8).saturating_sub(6) as usize * 4;
            let mut header = vec![0x45 + (options / 4) as u8, 0];
            header.extend_from_slice(&((20 + options + self.bytes.len()) as u16).to_be_bytes());
            header.extend_from_slice(&[0, 7, 0x40, 0, 64, proto, 0, 0]);
            push_addresses(&mut header, 12, ends);
            header.resize(20 + options, 1);
            self.put(header);
        }
        self.v6 = v6;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_packets_end_where_the_frame_does() {
        let mut rng = Rng::new(3);
        for n in 0..20_000 {
            let Nested { frame, kinds, .. } = random(&mut rng, n % 5);
            assert_eq!(kinds.len(), n % 5);
            if let Some((at, len)) = frame.expect.payload {
                assert_eq!(at + len, frame.bytes.len(), "{kinds:?} {:?}", frame.expect);
            }
            assert!(frame.bytes.len() < 3_000);
        }
    }
}
