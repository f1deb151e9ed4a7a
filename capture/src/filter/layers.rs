//! What each primitive reads, and where, by link type: the meaning that libpcap's gencode.c gives them, to the order of
//! the tests, since the first byte that was not captured ends a filter.

use super::program::{Field, Load, Program, TESTS_MAX};
use super::syntax::{Direction, Expr, Join, Primitive};
use super::tree::{NodeId, Tree};
use super::words::{Protocol, ether_type, sap};

/// How the frames of one link type are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    Ethernet,
    Raw,
    Null,
    Ppp,
    Sll,
    Sll2,
    /// Only lengths and `ether[N]` are known.
    Other,
}

impl Link {
    pub(super) const ALL: [Link; 7] =
        [Link::Ethernet, Link::Raw, Link::Null, Link::Ppp, Link::Sll, Link::Sll2, Link::Other];

    fn name(self) -> &'static str {
        match self {
            Link::Ethernet => "Ethernet",
            Link::Raw => "raw IP",
            Link::Null => "BSD loopback",
            Link::Ppp => "PPP",
            Link::Sll => "Linux cooked",
            Link::Sll2 => "Linux cooked v2",
            Link::Other => "an unknown link layer",
        }
    }
}

/// Why a filter means nothing for a link type, and the byte offset of the primitive.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    pub(super) what: String,
    pub(super) at: usize,
}

/// Compiles for one link type.
pub(super) fn compile(expr: &Expr, link: Link) -> Result<Program, Refusal> {
    let mut layers = Layers::new(link);
    let root = layers.expr(expr)?;
    Program::new(layers.tree, root).ok_or_else(|| too_long(0))
}

fn too_long(at: usize) -> Refusal {
    Refusal { what: format!("the filter needs more than the {TESTS_MAX} tests that are accepted"), at }
}

/// Where the headers are at this point of the text: `vlan`, `mpls` and `pppoes` move them for all that follows.
pub(super) struct Layers {
    pub(super) tree: Tree,
    link: Link,
    /// Start of the link header.
    link_header: u32,
    /// The field that tells the protocol behind the link header.
    link_type: u32,
    /// End of the link header.
    payload: u32,
    /// Network header, from `payload`; and where 802.2 without SNAP has it.
    network: u32,
    network_802_2: u32,
    mpls_labels: u32,
    /// Byte offset of the primitive at hand.
    at: usize,
}

type Result_ = Result<NodeId, Refusal>;

impl Layers {
    fn new(link: Link) -> Layers {
        let (link_type, payload, network_802_2) = match link {
            Link::Ethernet => (12, 14, 3),
            Link::Raw | Link::Other => (0, 0, 0),
            Link::Null => (0, 4, 0),
            Link::Ppp => (2, 4, 0),
            Link::Sll => (14, 16, 0),
            Link::Sll2 => (0, 20, 0),
        };
        Layers {
            tree: Tree::default(),
            link,
            link_header: 0,
            link_type,
            payload,
            network: 0,
            network_802_2,
            mpls_labels: 0,
            at: 0,
        }
    }

    pub(super) fn refuse<T>(&self, what: impl Into<String>) -> Result<T, Refusal> {
        Err(Refusal { what: what.into(), at: self.at })
    }

    fn expr(&mut self, expr: &Expr) -> Result_ {
        match expr {
            Expr::Primitive(primitive, at) => {
                self.at = *at;
                if self.tree.len() > TESTS_MAX * 3 {
                    return Err(too_long(*at));
                }
                self.primitive(primitive)
            }
            Expr::Not(inner) => {
                let inner = self.expr(inner)?;
                Ok(self.tree.not(inner))
            }
            Expr::Chain(first, rest) => {
                let mut left = self.expr(first)?;
                for (join, right) in rest {
                    let right = self.expr(right)?;
                    left = match join {
                        Join::And => self.tree.and(left, right),
                        Join::Or => self.tree.or(left, right),
                    };
                }
                Ok(left)
            }
        }
    }

    pub(super) fn primitive(&mut self, primitive: &Primitive) -> Result_ {
        match *primitive {
            Primitive::Host4 { protocol, direction, address, mask } => self.host4(protocol, direction, address, mask),
            Primitive::Host6 { direction, address, mask } => self.host6(direction, address, mask),
            Primitive::EtherHost { direction, mac } => self.ether_host(direction, mac),
            Primitive::Ports { transport, direction, first, last } => {
                let six = self.ports(Protocol::Ip6, transport, direction, first, last)?;
                let four = self.ports(Protocol::Ip, transport, direction, first, last)?;
                Ok(self.tree.or(six, four))
            }
            Primitive::EtherProtocol(protocol) => self.link_type(protocol),
            Primitive::IpProtocol { network: Some(Protocol::Ip), number } => self.ip_protocol(number),
            Primitive::IpProtocol { network: Some(_), number } => self.ip6_protocol(number),
            Primitive::IpProtocol { network: None, number } => {
                let four = self.ip_protocol(number)?;
                let six = self.ip6_protocol(number)?;
                Ok(self.tree.or(four, six))
            }
            Primitive::IsoProtocol(number) => {
                let iso = self.link_type(sap::ISO)?;
                let at = self.payload + self.network_802_2;
                let protocol = self.tree.equal(byte(at), number.into());
                Ok(self.tree.and(iso, protocol))
            }
            Primitive::LinkBroadcast => self.ether_host(Direction::Destination, [0xff; 6]),
            Primitive::LinkMulticast if self.link == Link::Ethernet => Ok(self.tree.any_bit(byte(self.link_header), 1)),
            Primitive::LinkMulticast => self.refuse(format!("{} has no multicast addresses", self.link.name())),
            Primitive::IpMulticast => {
                let ip = self.link_type(ether_type::IP)?;
                let group = self.tree.at_least(byte(self.network_at() + 16), 224);
                Ok(self.tree.and(ip, group))
            }
            Primitive::Ip6Multicast => {
                let ip6 = self.link_type(ether_type::IP6)?;
                let group = self.tree.equal(byte(self.network_at() + 24), 255);
                Ok(self.tree.and(ip6, group))
            }
            Primitive::LengthMost(bytes) => {
                let above = self.tree.above(LENGTH, bytes);
                Ok(self.tree.not(above))
            }
            Primitive::LengthLeast(bytes) => Ok(self.tree.at_least(LENGTH, bytes)),
            Primitive::Vlan(id) => self.vlan(id),
            Primitive::Mpls(label) => self.mpls(label),
            Primitive::PppoeDiscovery => self.link_type(ether_type::PPPOED),
            Primitive::PppoeSession(session) => self.pppoe_session(session),
            Primitive::Relation { ref left, relation, ref right } => self.relation(left, relation, right),
        }
    }

    /// Start of the network header.
    pub(super) fn network_at(&self) -> u32 {
        self.payload + self.network
    }

    pub(super) fn link_header_at(&self) -> u32 {
        self.link_header
    }

    /// Whether the frame carries this Ethernet type, or 802.2 service access point up to 1500.
    pub(super) fn link_type(&mut self, protocol: u16) -> Result_ {
        if self.mpls_labels > 0 {
            return self.mpls_payload(protocol);
        }
        let field = half(self.link_type);
        Ok(match self.link {
            Link::Ethernet => self.ethernet_type(protocol),
            Link::Sll => self.sll_type(protocol),
            Link::Sll2 => self.tree.equal(field, protocol.into()),
            Link::Ppp => self.tree.equal(field, ppp_protocol(protocol).into()),
            Link::Raw => {
                let version = Field { mask: 0xf0, ..byte(self.link_header) };
                match protocol {
                    ether_type::IP => self.tree.equal(version, 0x40),
                    ether_type::IP6 => self.tree.equal(version, 0x60),
                    _ => self.tree.constant(false),
                }
            }
            Link::Null => match protocol {
                ether_type::IP => self.address_family(&[2]),
                // Linux, NetBSD and OpenBSD, FreeBSD, macOS.
                ether_type::IP6 => self.address_family(&[10, 24, 28, 30]),
                _ => self.tree.constant(false),
            },
            Link::Other => return self.refuse(format!("{} has no known headers", self.link.name())),
        })
    }

    /// The family is in the byte order of the machine that captured it, which a frame does not tell.
    fn address_family(&mut self, families: &[u32]) -> NodeId {
        let mut any = self.tree.constant(false);
        for family in families {
            for value in [*family, family.swap_bytes()] {
                let is = self.tree.equal(word(self.link_header), value);
                any = self.tree.or(any, is);
            }
        }
        any
    }

    fn ethernet_type(&mut self, protocol: u16) -> NodeId {
        let field = half(self.link_type);
        let length = |tree: &mut Tree| {
            let above = tree.above(field, ether_type::LENGTH_MAX.into());
            tree.not(above)
        };
        match protocol {
            sap::ISO | sap::IP | sap::NETBEUI => {
                let length = length(&mut self.tree);
                let saps = self.tree.equal(half(self.payload), u32::from(protocol << 8 | protocol));
                self.tree.and(length, saps)
            }
            sap::IPX => {
                let sap = self.tree.equal(byte(self.payload), sap::IPX.into());
                let raw = self.tree.equal(half(self.payload), 0xffff);
                let either = self.tree.or(sap, raw);
                let snap = self.snap(0, ether_type::IPX);
                let any = self.tree.or(snap, either);
                let length = length(&mut self.tree);
                let ieee = self.tree.and(length, any);
                let ethernet = self.tree.equal(field, ether_type::IPX.into());
                self.tree.or(ethernet, ieee)
            }
            ether_type::ATALK | ether_type::AARP => {
                let length = length(&mut self.tree);
                let snap = self.snap(if protocol == ether_type::ATALK { 0x08_0007 } else { 0 }, protocol);
                let ieee = self.tree.and(length, snap);
                let ethernet = self.tree.equal(field, protocol.into());
                self.tree.or(ethernet, ieee)
            }
            0..=ether_type::LENGTH_MAX => {
                let length = length(&mut self.tree);
                let sap = self.tree.equal(byte(self.link_type + 2), protocol.into());
                self.tree.and(length, sap)
            }
            _ => self.tree.equal(field, protocol.into()),
        }
    }

    /// Linux cooked captures say 4 for 802.2 and 1 for raw 802.3 where Ethernet has a length.
    fn sll_type(&mut self, protocol: u16) -> NodeId {
        let field = half(self.link_type);
        match protocol {
            sap::ISO | sap::IP | sap::NETBEUI => {
                let llc = self.tree.equal(field, 4);
                let saps = self.tree.equal(half(self.payload), u32::from(protocol << 8 | protocol));
                self.tree.and(llc, saps)
            }
            sap::IPX => {
                let sap = self.tree.equal(byte(self.payload), sap::IPX.into());
                let snap = self.snap(0, ether_type::IPX);
                let either = self.tree.or(sap, snap);
                let llc = self.tree.equal(field, 4);
                let ieee = self.tree.and(llc, either);
                let raw = self.tree.equal(field, 1);
                let any = self.tree.or(raw, ieee);
                let ethernet = self.tree.equal(field, ether_type::IPX.into());
                self.tree.or(ethernet, any)
            }
            ether_type::ATALK | ether_type::AARP => {
                let llc = self.tree.equal(field, 4);
                let snap = self.snap(if protocol == ether_type::ATALK { 0x08_0007 } else { 0 }, protocol);
                let ieee = self.tree.and(llc, snap);
                let ethernet = self.tree.equal(field, protocol.into());
                self.tree.or(ethernet, ieee)
            }
            0..=ether_type::LENGTH_MAX => {
                let llc = self.tree.equal(field, 4);
                let sap = self.tree.equal(byte(self.payload), protocol.into());
                self.tree.and(llc, sap)
            }
            _ => self.tree.equal(field, protocol.into()),
        }
    }

    /// 802.2 with a SNAP header of this organization and protocol; its second half is read first.
    fn snap(&mut self, organization: u32, protocol: u16) -> NodeId {
        let second = self.tree.equal(word(self.payload + 4), organization << 16 | u32::from(protocol));
        let saps = u32::from(sap::SNAP << 8 | sap::SNAP) << 16;
        let first = self.tree.equal(word(self.payload), saps | 0x03 << 8 | organization >> 16);
        self.tree.and(second, first)
    }

    /// Behind the last label only the version nibble tells IPv4 and IPv6 apart.
    fn mpls_payload(&mut self, protocol: u16) -> Result_ {
        let version = match protocol {
            ether_type::IP => 0x40,
            ether_type::IP6 => 0x60,
            _ => return self.refuse("only IPv4 and IPv6 are known behind 'mpls'"),
        };
        let bottom = self.tree.equal(Field { mask: 1, ..byte(self.network_at() - 2) }, 1);
        let version = self.tree.equal(Field { mask: 0xf0, ..byte(self.network_at()) }, version);
        Ok(self.tree.and(bottom, version))
    }

    fn directed(&mut self, direction: Direction, test: &mut dyn FnMut(&mut Layers, bool) -> Result_) -> Result_ {
        match direction {
            Direction::Source => test(self, true),
            Direction::Destination => test(self, false),
            Direction::Either | Direction::Both => {
                let source = test(self, true)?;
                let destination = test(self, false)?;
                Ok(match direction {
                    Direction::Both => self.tree.and(source, destination),
                    _ => self.tree.or(source, destination),
                })
            }
        }
    }

    fn host4(&mut self, protocol: Option<Protocol>, direction: Direction, address: u32, mask: u32) -> Result_ {
        let (ether_type, source_at, destination_at) = match protocol {
            Some(Protocol::Arp) => (ether_type::ARP, 14, 24),
            Some(Protocol::Rarp) => (ether_type::RARP, 14, 24),
            Some(_) => (ether_type::IP, 12, 16),
            None => {
                let mut any = self.host4(Some(Protocol::Ip), direction, address, mask)?;
                if self.mpls_labels == 0 {
                    for protocol in [Protocol::Arp, Protocol::Rarp] {
                        let other = self.host4(Some(protocol), direction, address, mask)?;
                        any = self.tree.or(any, other);
                    }
                }
                return Ok(any);
            }
        };
        self.directed(direction, &mut |layers, source| {
            let carries = layers.link_type(ether_type)?;
            let at = layers.network_at() + if source { source_at } else { destination_at };
            let is = layers.tree.masked(word(at), mask, address);
            Ok(layers.tree.and(carries, is))
        })
    }

    fn host6(&mut self, direction: Direction, address: u128, mask: u128) -> Result_ {
        self.directed(direction, &mut |layers, source| {
            let mut all = layers.link_type(ether_type::IP6)?;
            let at = layers.network_at() + if source { 8 } else { 24 };
            for part in 0..4 {
                let shift = 96 - 32 * part;
                let is = layers.tree.masked(word(at + 4 * part), (mask >> shift) as u32, (address >> shift) as u32);
                all = layers.tree.and(all, is);
            }
            Ok(all)
        })
    }

    /// The last four bytes are read first.
    fn ether_host(&mut self, direction: Direction, mac: [u8; 6]) -> Result_ {
        if self.link != Link::Ethernet {
            return self.refuse(format!("{} has no Ethernet addresses", self.link.name()));
        }
        let [a, b, c, d, e, f] = mac;
        self.directed(direction, &mut |layers, source| {
            let at = layers.link_header + if source { 6 } else { 0 };
            let last = layers.tree.equal(word(at + 2), u32::from_be_bytes([c, d, e, f]));
            let first = layers.tree.equal(half(at), u32::from(u16::from_be_bytes([a, b])));
            Ok(layers.tree.and(last, first))
        })
    }

    /// Ports over IPv4 in first fragments only; over IPv6 only straight behind the fixed header.
    fn ports(
        &mut self,
        network: Protocol,
        transport: Option<u8>,
        direction: Direction,
        first: u16,
        last: u16,
    ) -> Result_ {
        let ip6 = network == Protocol::Ip6;
        let carries = self.link_type(if ip6 { ether_type::IP6 } else { ether_type::IP })?;
        let transports: &[u8] = if transport.is_some() { transport.as_slice() } else { &[6, 17, 132] };
        let mut any = None;
        for number in transports {
            let protocol_at = self.network_at() + if ip6 { 6 } else { 9 };
            let mut is = self.tree.equal(byte(protocol_at), (*number).into());
            if !ip6 {
                let first_fragment = self.first_fragment();
                is = self.tree.and(is, first_fragment);
            }
            let ports = self.directed(direction, &mut |layers, source| {
                let at = layers.network_at();
                let offset = if source { 0 } else { 2 };
                let port = if ip6 { half(at + 40 + offset) } else { Field { offset, ..transport_half(at) } };
                Ok(layers.tree.within(port, first.into(), last.into()))
            })?;
            let both = self.tree.and(is, ports);
            any = Some(any.map_or(both, |before| self.tree.or(before, both)));
        }
        let any = any.unwrap_or_else(|| self.tree.constant(false));
        Ok(self.tree.and(carries, any))
    }

    pub(super) fn first_fragment(&mut self) -> NodeId {
        let later = self.tree.any_bit(half(self.network_at() + 6), 0x1fff);
        self.tree.not(later)
    }

    fn ip_protocol(&mut self, number: u8) -> Result_ {
        let ip = self.link_type(ether_type::IP)?;
        let is = self.tree.equal(byte(self.network_at() + 9), number.into());
        Ok(self.tree.and(ip, is))
    }

    /// The next header, also that of a fragment header (44) which comes first.
    fn ip6_protocol(&mut self, number: u8) -> Result_ {
        let ip6 = self.link_type(ether_type::IP6)?;
        let at = self.network_at();
        let is = self.tree.equal(byte(at + 6), number.into());
        let fragment = self.tree.equal(byte(at + 6), 44);
        let behind = self.tree.equal(byte(at + 40), number.into());
        let behind = self.tree.and(fragment, behind);
        let either = self.tree.or(is, behind);
        Ok(self.tree.and(ip6, either))
    }

    fn vlan(&mut self, id: Option<u16>) -> Result_ {
        if self.mpls_labels > 0 {
            return self.refuse("'vlan' cannot come behind 'mpls'");
        }
        if self.link != Link::Ethernet {
            return self.refuse(format!("{} has no VLAN tags", self.link.name()));
        }
        let mut is = self.link_type(ether_type::VLAN)?;
        for tag in [ether_type::VLAN_SERVICE, ether_type::VLAN_QINQ] {
            let other = self.link_type(tag)?;
            is = self.tree.or(is, other);
        }
        if let Some(id) = id {
            let field = Field { mask: 0x0fff, ..half(self.network_at()) };
            let id = self.tree.equal(field, id.into());
            is = self.tree.and(is, id);
        }
        self.payload += 4;
        self.link_type += 4;
        Ok(is)
    }

    fn mpls(&mut self, label: Option<u32>) -> Result_ {
        let mut is = if self.mpls_labels > 0 {
            // The label before is not the last one.
            self.tree.equal(Field { mask: 1, ..byte(self.network_at() - 2) }, 0)
        } else {
            match self.link {
                Link::Ethernet => self.link_type(ether_type::MPLS)?,
                Link::Ppp => self.link_type(PPP_MPLS)?,
                _ => return self.refuse(format!("{} has no MPLS labels", self.link.name())),
            }
        };
        if let Some(label) = label {
            let field = Field { mask: 0xffff_f000, ..word(self.network_at()) };
            let label = self.tree.equal(field, label << 12);
            is = self.tree.and(is, label);
        }
        self.network += 4;
        self.network_802_2 += 4;
        self.mpls_labels += 1;
        Ok(is)
    }

    fn pppoe_session(&mut self, session: Option<u16>) -> Result_ {
        let mut is = self.link_type(ether_type::PPPOES)?;
        if let Some(session) = session {
            let field = Field { mask: 0xffff, ..word(self.network_at()) };
            let session = self.tree.equal(field, session.into());
            is = self.tree.and(is, session);
        }
        // What follows is about the PPP frame behind the six bytes of the PPPoE header.
        self.link = Link::Ppp;
        self.link_header = self.network_at() + 6;
        self.link_type = self.link_header;
        self.payload = self.link_header + 2;
        (self.network, self.network_802_2) = (0, 0);
        Ok(is)
    }
}

/// PPP protocol number of MPLS unicast.
const PPP_MPLS: u16 = 0x0281;

/// PPP protocol numbers (IANA) of Ethernet types and service access points; others stand for themselves.
fn ppp_protocol(protocol: u16) -> u16 {
    match protocol {
        ether_type::IP => 0x0021,
        ether_type::IP6 => 0x0057,
        ether_type::DECNET => 0x0027,
        ether_type::ATALK => 0x0029,
        // Xerox NS.
        0x0600 => 0x0025,
        sap::ISO => 0x0023,
        sap::STP => 0x0031,
        sap::IPX => 0x002b,
        other => other,
    }
}

const LENGTH: Field = Field { load: Load::Length, at: 0, offset: 0, mask: u32::MAX };

fn byte(at: u32) -> Field {
    Field { load: Load::Byte, at, offset: 0, mask: 0xff }
}

fn half(at: u32) -> Field {
    Field { load: Load::Half, at, offset: 0, mask: 0xffff }
}

fn word(at: u32) -> Field {
    Field { load: Load::Word, at, offset: 0, mask: u32::MAX }
}

fn transport_half(at: u32) -> Field {
    Field { load: Load::TransportHalf, at, offset: 0, mask: 0xffff }
}
