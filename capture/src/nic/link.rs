//! `RTM_NEWLINK` as the kernel tells it: rtnetlink(7), linux/if_link.h, linux/rtnetlink.h.

use super::client::{CallError, Client, Partial};
use super::netlink::{Attribute, Attributes, Malformed, Request, u32_at};
use std::ffi::c_int;

/// `RTEXT_FILTER_SKIP_STATS`: no counters, which cost more than all the rest.
const WITHOUT_COUNTERS: u32 = 1 << 3;

/// Attributes of IFLA_XDP.
const IFLA_XDP_PROG_ID: u16 = 4;
/// Programs by mode (driver, generic, hardware) where there are several.
const IFLA_XDP_BY_MODE: [u16; 3] = [5, 6, 7];

/// Kinds whose IFLA_LINK is the other end, not the device below.
const PAIRS: [&str; 3] = ["veth", "netkit", "vxcan"];

/// An interface as in one message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    /// `IFF_` flags.
    pub(super) flags: u32,
    /// `ARPHRD_` type.
    pub(super) hardware_type: u16,
    pub(super) name: String,
    pub(super) other_names: Vec<String>,
    pub(super) kind: Option<String>,
    pub(super) mtu: u32,
    /// Bridge, bond, … it belongs to.
    pub(super) master: Option<u32>,
    /// The device below, or the other end.
    pub(super) link: Option<u32>,
    /// Number of the network namespace that `link` is in, where it is another one; negative where it has no number.
    pub(super) link_namespace: Option<i32>,
    pub(super) rx_queues: u32,
    pub(super) tx_queues: u32,
    pub(super) xdp_program: Option<u32>,
    /// Bus and name of the hardware.
    pub(super) parent: Option<(String, String)>,
    pub(super) counters: LinkCounters,
}

/// The part of `struct rtnl_link_stats64` that is of use here: numbers at their place in it, zero where the kernel is
/// too old to have one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LinkCounters(pub(super) [u64; 25]);

impl Link {
    pub(super) fn is_up(&self) -> bool {
        self.flags & libc::IFF_UP as u32 != 0
    }

    /// Carrier, which only an interface that is up reports.
    pub(super) fn has_carrier(&self) -> bool {
        self.flags & libc::IFF_LOWER_UP as u32 != 0
    }

    pub(super) fn is_pair(&self) -> bool {
        self.kind.as_deref().is_some_and(|kind| PAIRS.contains(&kind))
    }

    /// The device below, where it is in the same network namespace.
    pub(super) fn lower(&self) -> Option<u32> {
        let here = !self.is_pair() && self.link_namespace.is_none();
        self.link.filter(|lower| here && *lower != self.index)
    }

    /// Reads the body of RTM_NEWLINK or RTM_DELLINK. `None` for what is no interface: bridges tell of their ports by the
    /// same messages, with an address family.
    pub(super) fn parse(body: &[u8]) -> Result<Option<Link>, Malformed> {
        // struct ifinfomsg: family, padding, type (16 bits), index, flags, change.
        let (fixed, attributes) = Attributes::behind::<16>(body)?;
        if c_int::from(fixed[0]) != libc::AF_UNSPEC {
            return Ok(None);
        }
        let hardware_type = u16::from_ne_bytes([fixed[2], fixed[3]]);
        let mut link = Link { index: u32_at(fixed, 4), flags: u32_at(fixed, 8), hardware_type, ..Link::default() };
        let (mut bus, mut device) = (None, None);
        for attribute in attributes {
            let attribute = attribute?;
            match attribute.kind {
                libc::IFLA_PARENT_DEV_BUS_NAME => bus = Some(attribute.text()),
                libc::IFLA_PARENT_DEV_NAME => device = Some(attribute.text()),
                _ => link.take(&attribute)?,
            }
        }
        link.parent = bus.zip(device);
        Ok(Some(link))
    }

    fn take(&mut self, attribute: &Attribute<'_>) -> Result<(), Malformed> {
        match attribute.kind {
            libc::IFLA_IFNAME => self.name = attribute.text(),
            libc::IFLA_MTU => self.mtu = attribute.u32()?,
            libc::IFLA_MASTER => self.master = Some(attribute.u32()?).filter(|index| *index != 0),
            libc::IFLA_LINK => self.link = Some(attribute.u32()?).filter(|index| *index != 0),
            libc::IFLA_LINK_NETNSID => self.link_namespace = Some(attribute.i32()?),
            libc::IFLA_NUM_RX_QUEUES => self.rx_queues = attribute.u32()?,
            libc::IFLA_NUM_TX_QUEUES => self.tx_queues = attribute.u32()?,
            libc::IFLA_LINKINFO => {
                for inner in attribute.nested() {
                    let inner = inner?;
                    if inner.kind == libc::IFLA_INFO_KIND {
                        self.kind = Some(inner.text());
                    }
                }
            }
            libc::IFLA_PROP_LIST => {
                for inner in attribute.nested() {
                    let inner = inner?;
                    if inner.kind == libc::IFLA_ALT_IFNAME {
                        self.other_names.push(inner.text());
                    }
                }
            }
            libc::IFLA_XDP => self.xdp_program = xdp_program(attribute.nested())?,
            libc::IFLA_STATS64 => self.counters = LinkCounters::parse(attribute.value),
            _ => {}
        }
        Ok(())
    }
}

impl LinkCounters {
    fn parse(bytes: &[u8]) -> LinkCounters {
        let mut counters = LinkCounters::default();
        for (counter, bytes) in counters.0.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *counter = u64::from_ne_bytes(*bytes);
        }
        counters
    }
}

/// The one program, or the first of several: driver mode sees packets before generic mode.
fn xdp_program(attributes: Attributes<'_>) -> Result<Option<u32>, Malformed> {
    let (mut only, mut by_mode) = (None, [None; 3]);
    for attribute in attributes {
        let attribute = attribute?;
        if attribute.kind == IFLA_XDP_PROG_ID {
            only = Some(attribute.u32()?);
        } else if let Some(mode) = IFLA_XDP_BY_MODE.iter().position(|kind| *kind == attribute.kind) {
            by_mode[mode] = Some(attribute.u32()?);
        }
    }
    Ok(only.or(by_mode.into_iter().flatten().next()).filter(|id| *id != 0))
}

/// All interfaces of the client's network namespace, without their counters.
pub(super) fn dump_links(client: &mut Client) -> Result<Vec<Link>, CallError> {
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
    let request = Request::new(libc::RTM_GETLINK, flags, &[0; 16]).u32(libc::IFLA_EXT_MASK, WITHOUT_COUNTERS);
    client.dump("RTM_GETLINK", &request, Partial::Refused, |kind, body| match kind {
        libc::RTM_NEWLINK => Link::parse(body),
        _ => Ok(None),
    })
}

/// One interface with its counters, of another network namespace where `namespace` is its number in ours.
pub(super) fn get_link(client: &mut Client, index: u32, namespace: Option<u32>) -> Result<Link, CallError> {
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
    let mut fixed = [0; 16];
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    let mut request = Request::new(libc::RTM_GETLINK, flags, &fixed);
    if let Some(namespace) = namespace {
        request = request.u32(libc::IFLA_TARGET_NETNSID, namespace);
    }
    let call = "RTM_GETLINK";
    client.get(call, request, |_, body| Link::parse(body))?.ok_or(CallError::Unanswered { call })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nic::netlink::{Message, Messages, Nest};
    use proptest::prelude::*;

    fn body(request: &mut Request) -> Vec<u8> {
        let message: Message<'_> = Messages::new(request.numbered(1)).next().unwrap().unwrap();
        message.body.to_vec()
    }

    fn fixed(family: u8, index: u32, flags: u32) -> [u8; 16] {
        let mut fixed = [0; 16];
        fixed[0] = family;
        fixed[2..4].copy_from_slice(&1_u16.to_ne_bytes());
        fixed[4..8].copy_from_slice(&index.to_ne_bytes());
        fixed[8..12].copy_from_slice(&flags.to_ne_bytes());
        fixed
    }

    #[test]
    fn a_link_is_read_from_its_attributes() {
        let up = (libc::IFF_UP | libc::IFF_LOWER_UP) as u32;
        let kind = [&8_u16.to_ne_bytes()[..], &libc::IFLA_INFO_KIND.to_ne_bytes(), b"vlan"].concat();
        let stats: Vec<u8> = (1..=23_u64).flat_map(u64::to_ne_bytes).collect();
        let mut request = Request::new(libc::RTM_NEWLINK, 0, &fixed(0, 7, up))
            .text(libc::IFLA_IFNAME, "eth0.5")
            .u32(libc::IFLA_MTU, 9000)
            .u32(libc::IFLA_LINK, 3)
            .u32(libc::IFLA_MASTER, 0)
            .attribute(libc::IFLA_LINKINFO, &kind)
            .nested(libc::IFLA_XDP, &Nest::default().u32(6, 41).u32(5, 40))
            .attribute(libc::IFLA_STATS64, &stats);
        let link = Link::parse(&body(&mut request)).unwrap().unwrap();
        assert_eq!((link.index, link.name.as_str(), link.mtu, link.hardware_type), (7, "eth0.5", 9000, 1));
        assert!(link.is_up() && link.has_carrier());
        assert_eq!((link.kind.as_deref(), link.lower(), link.master), (Some("vlan"), Some(3), None));
        assert_eq!(link.xdp_program, Some(40));
        assert_eq!((link.counters.0[0], link.counters.0[22], link.counters.0[23]), (1, 23, 0));
    }

    #[test]
    fn the_other_end_of_a_pair_is_not_below_it() {
        let link = Link { index: 2, link: Some(3), kind: Some("veth".into()), ..Link::default() };
        assert_eq!(link.lower(), None);
        assert_eq!(Link { kind: None, ..link.clone() }.lower(), Some(3));
        assert_eq!(Link { kind: None, link_namespace: Some(0), ..link.clone() }.lower(), None);
        assert_eq!(Link { kind: None, index: 3, ..link }.lower(), None);
    }

    #[test]
    fn what_bridges_say_of_their_ports_is_no_link() {
        assert_eq!(Link::parse(&fixed(libc::AF_BRIDGE as u8, 7, 0)), Ok(None));
        assert!(Link::parse(&[0; 15]).is_err());
        let mut wrong = Request::new(libc::RTM_NEWLINK, 0, &fixed(0, 7, 0)).attribute(libc::IFLA_MTU, &[1, 2]);
        assert!(Link::parse(&body(&mut wrong)).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let mut shaped = bytes;
            if let Some(family) = shaped.first_mut() {
                *family = 0;
            }
            let _ = Link::parse(&shaped);
        }
    }
}
