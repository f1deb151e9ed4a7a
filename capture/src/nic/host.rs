//! Which interfaces the host itself speaks through: addresses, default routes, and what is stacked on what.

use super::client::{CallError, Client, Partial};
use super::link::Link;
use super::netlink::{Attributes, Malformed, Request, u32_at};
use std::collections::HashSet;
use std::ffi::c_int;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// linux/if_addr.h
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
/// linux/rtnetlink.h
const RTN_UNICAST: u8 = 1;
const RTM_NEWADDR: u16 = libc::RTM_NEWADDR;

/// An address of the host's, and the interface it is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HostAddress {
    pub(super) index: u32,
    pub(super) address: IpAddr,
}

/// What the host has configured, of one network namespace.
#[derive(Clone, Debug, Default)]
pub(super) struct Host {
    pub(super) addresses: Vec<HostAddress>,
    /// Interfaces that a default route of the main table leads through.
    pub(super) default_routes: HashSet<u32>,
}

impl Host {
    pub(super) fn read(client: &mut Client) -> Result<Host, CallError> {
        let mut host = Host::default();
        for family in [libc::AF_INET, libc::AF_INET6] {
            host.addresses.extend(dump_addresses(client, family as u8)?);
            host.default_routes.extend(dump_default_routes(client, family as u8)?.into_iter().flatten());
        }
        Ok(host)
    }

    /// Addresses of an interface that make it the host's: all but IPv6 link-local ones, which any interface gets.
    pub(super) fn addresses_of(&self, index: u32) -> impl Iterator<Item = IpAddr> {
        self.addresses.iter().filter(move |a| a.index == index && !is_link_local(a.address)).map(|a| a.address)
    }

    /// Why taking packets away from the interface would cut the host off; reads on after "interface 'eth0' carries the
    /// host's own traffic: ". Looks at the interface and at all that is built on it: its bridge or bond, its VLANs.
    pub(super) fn reason(&self, index: u32, links: &[Link]) -> Option<String> {
        if let Some(what) = self.what_it_has(index) {
            return Some(format!("it has {what}"));
        }
        let mut seen = HashSet::from([index]);
        let mut next = vec![index];
        while let Some(lower) = next.pop() {
            let master = links.iter().find(|l| l.index == lower).and_then(|l| l.master);
            for upper in links.iter().filter(|l| Some(l.index) == master || l.lower() == Some(lower)) {
                if !seen.insert(upper.index) {
                    continue;
                }
                if let Some(what) = self.what_it_has(upper.index) {
                    let how = if Some(upper.index) == master { "it belongs to" } else { "on top of it is" };
                    return Some(format!("{how} '{}', which has {what}", upper.name));
                }
                next.push(upper.index);
            }
        }
        None
    }

    fn what_it_has(&self, index: u32) -> Option<String> {
        if let Some(address) = self.addresses_of(index).next() {
            return Some(format!("the address {address}"));
        }
        self.default_routes.contains(&index).then(|| "the default route".to_owned())
    }
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

fn dump_addresses(client: &mut Client, family: u8) -> Result<Vec<HostAddress>, CallError> {
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
    // struct ifaddrmsg: family, prefix length, flags, scope, index.
    let request = Request::new(libc::RTM_GETADDR, flags, &[family, 0, 0, 0, 0, 0, 0, 0]);
    client.dump("RTM_GETADDR", &request, Partial::Refused, |kind, body| match kind {
        RTM_NEWADDR => parse_address(body),
        _ => Ok(None),
    })
}

fn parse_address(body: &[u8]) -> Result<Option<HostAddress>, Malformed> {
    let (fixed, attributes) = Attributes::behind::<8>(body)?;
    // On a point-to-point link IFA_ADDRESS is the other side, and IFA_LOCAL ours.
    let (mut address, mut local) = (None, None);
    for attribute in attributes {
        let attribute = attribute?;
        match attribute.kind {
            IFA_ADDRESS => address = ip(fixed[0], attribute.value),
            IFA_LOCAL => local = ip(fixed[0], attribute.value),
            _ => {}
        }
    }
    Ok(local.or(address).map(|address| HostAddress { index: u32_at(fixed, 4), address }))
}

fn ip(family: u8, bytes: &[u8]) -> Option<IpAddr> {
    match c_int::from(family) {
        libc::AF_INET => <[u8; 4]>::try_from(bytes).ok().map(|b| IpAddr::V4(Ipv4Addr::from(b))),
        libc::AF_INET6 => <[u8; 16]>::try_from(bytes).ok().map(|b| IpAddr::V6(Ipv6Addr::from(b))),
        _ => None,
    }
}

/// Interfaces of default routes. A router's table is long and changes all the time: entries are kept from interrupted
/// dumps, since one route too many only asks the operator for a `force`.
fn dump_default_routes(client: &mut Client, family: u8) -> Result<Vec<Vec<u32>>, CallError> {
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
    // struct rtmsg: family, destination length, source length, TOS, table, protocol, scope, type, flags.
    let mut fixed = [0; 12];
    fixed[0] = family;
    fixed[4] = libc::RT_TABLE_MAIN;
    let request = Request::new(libc::RTM_GETROUTE, flags, &fixed);
    let routes = client.dump("RTM_GETROUTE", &request, Partial::Kept, |kind, body| match kind {
        libc::RTM_NEWROUTE => parse_default_route(body),
        _ => Ok(None),
    });
    match routes {
        // There is no main table before its first route.
        Err(e) if e.errno() == Some(libc::ENOENT) => Ok(Vec::new()),
        other => other,
    }
}

fn parse_default_route(body: &[u8]) -> Result<Option<Vec<u32>>, Malformed> {
    let (fixed, attributes) = Attributes::behind::<12>(body)?;
    if fixed[1] != 0 || fixed[7] != RTN_UNICAST {
        return Ok(None);
    }
    let (mut table, mut interfaces) = (u32::from(fixed[4]), Vec::new());
    for attribute in attributes {
        let attribute = attribute?;
        match attribute.kind {
            libc::RTA_TABLE => table = attribute.u32()?,
            libc::RTA_OIF => interfaces.push(attribute.u32()?),
            libc::RTA_MULTIPATH => next_hops(attribute.value, &mut interfaces),
            _ => {}
        }
    }
    Ok((table == u32::from(libc::RT_TABLE_MAIN) && !interfaces.is_empty()).then_some(interfaces))
}

/// Interfaces of `struct rtnexthop`: length (16 bits), flags, hops, interface, then attributes up to the length.
fn next_hops(mut bytes: &[u8], interfaces: &mut Vec<u32>) {
    while let Some(hop) = bytes.first_chunk::<8>() {
        interfaces.push(u32_at(hop, 4));
        let length = usize::from(u16::from_ne_bytes([hop[0], hop[1]])).max(8).next_multiple_of(4);
        bytes = bytes.get(length..).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nic::netlink::Messages;
    use proptest::prelude::*;

    fn body(request: &mut Request) -> Vec<u8> {
        Messages::new(request.numbered(1)).next().unwrap().unwrap().body.to_vec()
    }

    fn route(length: u8, table: u8, kind: u8) -> Request {
        Request::new(libc::RTM_NEWROUTE, 0, &[libc::AF_INET as u8, length, 0, 0, table, 3, 0, kind, 0, 0, 0, 0])
    }

    #[test]
    fn default_routes_are_told_from_others() {
        let parse = |mut request| parse_default_route(&body(&mut request)).unwrap();
        assert_eq!(parse(route(0, 254, 1).u32(libc::RTA_OIF, 5)), Some(vec![5]));
        assert_eq!(parse(route(24, 254, 1).u32(libc::RTA_OIF, 5)), None);
        assert_eq!(parse(route(0, 254, 7).u32(libc::RTA_OIF, 5)), None, "unreachable");
        assert_eq!(parse(route(0, 254, 1).u32(libc::RTA_TABLE, 1000).u32(libc::RTA_OIF, 5)), None);
        assert_eq!(parse(route(0, 252, 1).u32(libc::RTA_TABLE, 254).u32(libc::RTA_OIF, 5)), Some(vec![5]));
        let hop = |index: u32| [&8_u16.to_ne_bytes()[..], &[0, 0], &index.to_ne_bytes()].concat();
        let hops = [hop(8), hop(9)].concat();
        assert_eq!(parse(route(0, 254, 1).attribute(libc::RTA_MULTIPATH, &hops)), Some(vec![8, 9]));
    }

    #[test]
    fn our_side_of_a_point_to_point_link_is_the_address() {
        let fixed = [libc::AF_INET as u8, 32, 0, 0, 6, 0, 0, 0];
        let mut request =
            Request::new(RTM_NEWADDR, 0, &fixed).attribute(1, &[10, 0, 0, 2]).attribute(2, &[10, 0, 0, 1]);
        let parsed = parse_address(&body(&mut request)).unwrap().unwrap();
        assert_eq!(parsed.address, IpAddr::from([10, 0, 0, 1]));
    }

    #[test]
    fn traffic_of_what_is_built_on_an_interface_is_found() {
        let link = |index, name: &str, master, lower| Link {
            index,
            name: name.into(),
            master,
            link: lower,
            ..Link::default()
        };
        let links = [
            link(1, "eth0", Some(3), None),
            link(2, "eth1", None, None),
            link(3, "bond0", None, None),
            link(4, "bond0.5", None, Some(3)),
            link(5, "eth2", Some(6), None),
            link(6, "br0", Some(5), None),
        ];
        let address = |index, address: &str| HostAddress { index, address: address.parse().unwrap() };
        let host = Host {
            addresses: vec![address(4, "192.0.2.1"), address(2, "fe80::1"), address(5, "fe80::2")],
            default_routes: HashSet::new(),
        };
        assert_eq!(host.reason(1, &links).unwrap(), "on top of it is 'bond0.5', which has the address 192.0.2.1");
        assert_eq!(host.reason(4, &links).unwrap(), "it has the address 192.0.2.1");
        assert_eq!(host.reason(2, &links), None);
        assert_eq!(host.reason(5, &links), None, "a loop of masters ends");
        let routed = Host { default_routes: HashSet::from([3]), ..Host::default() };
        assert_eq!(routed.reason(1, &links).unwrap(), "it belongs to 'bond0', which has the default route");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_address(&bytes);
            let _ = parse_default_route(&bytes);
            let mut interfaces = Vec::new();
            next_hops(&bytes, &mut interfaces);
            prop_assert!(interfaces.len() <= bytes.len() / 8 + 1);
        }
    }
}
