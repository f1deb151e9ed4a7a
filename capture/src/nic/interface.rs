use super::client::Client;
use super::error::Subject;
use super::host::Host;
use super::link::{Link, dump_links};
use super::netlink::text;
use super::{NicError, sys};
use std::net::IpAddr;
use std::path::Path;

/// A network interface, as it was when it was looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Name, which the administrator can change.
    pub name: String,
    /// Number in its network namespace, which stays. Never 0.
    pub index: u32,
    /// What the kernel made it as: `veth`, `bond`, `vlan`… `None` for hardware.
    pub kind: Option<String>,
    /// Name of the driver; `None` where there is none, as on loopback.
    pub driver: Option<String>,
    /// Switched on by the administrator.
    pub is_up: bool,
    /// Up, and the other side is there.
    pub has_carrier: bool,
    /// Longest packet behind the link-layer header, bytes.
    pub mtu: u32,
    /// `ARPHRD_` type (linux/if_arp.h): 1 is Ethernet.
    pub hardware_type: u16,
    /// Receive queues the interface was made with. How many are in use is told by
    /// [`receive_queues`](super::receive_queues).
    pub rx_queues: u32,
    /// Transmit queues the interface was made with.
    pub tx_queues: u32,
    /// Memory node next to the hardware; `None` on machines with one, and for virtual interfaces.
    pub numa_node: Option<u32>,
    /// Id of the XDP program that is attached; of the one in driver mode where there are several.
    pub xdp_program: Option<u32>,
    /// The other end of a pair such as veth.
    pub peer: Option<PeerLink>,
    /// Index of the bridge, bond or other interface this one belongs to.
    pub master: Option<u32>,
    /// Addresses of the host on it, without IPv6 link-local ones, which any interface gets by itself.
    pub addresses: Vec<IpAddr>,
    /// A default route of the main table leads through it, IPv4 or IPv6.
    pub has_default_route: bool,
    host_traffic: Option<String>,
}

/// The other end of a pair of interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerLink {
    /// Its number in its network namespace.
    pub index: u32,
    /// Number by which our network namespace knows the peer's (`ip netns list-id`); `None` where both ends are in ours.
    pub namespace: Option<u32>,
}

impl Interface {
    /// Why it would cut the host off if packets were taken away here, as AF_XDP does: an address or a default route, on
    /// the interface or on what is built on it (its bridge or bond, its VLANs). Reads on after "it carries the host's own
    /// traffic: ". `None` where nothing speaks against it.
    ///
    /// Not seen: what was moved to another network namespace (a macvlan of a container), bridges of Open vSwitch, and
    /// routes of other tables than main.
    pub fn carries_host_traffic(&self) -> Option<&str> {
        self.host_traffic.as_deref()
    }
}

/// Looks an interface up by name, alternative names (`ip link property add altname`) included.
///
/// # Errors
/// [`NoInterface`](NicError::NoInterface), which lists what there is; other variants where the kernel does not answer.
pub fn interface(name: &str) -> Result<Interface, NicError> {
    let survey = Survey::take()?;
    let found = survey
        .links
        .iter()
        .find(|l| l.name == name)
        .or_else(|| survey.links.iter().find(|l| l.other_names.iter().any(|n| n == name)));
    match found {
        Some(link) => Ok(survey.interface(link)),
        None => {
            let mut existing: Vec<String> = survey.links.iter().map(|l| l.name.clone()).collect();
            existing.sort();
            Err(NicError::NoInterface { name: name.to_owned(), existing })
        }
    }
}

/// All interfaces of this network namespace, by index.
///
/// # Errors
/// Where the kernel does not answer.
pub fn interfaces() -> Result<Vec<Interface>, NicError> {
    let survey = Survey::take()?;
    let mut interfaces: Vec<Interface> = survey.links.iter().map(|link| survey.interface(link)).collect();
    interfaces.sort_by_key(|i| i.index);
    Ok(interfaces)
}

/// What is there, and what the host does with it.
struct Survey {
    client: Client,
    links: Vec<Link>,
    host: Host,
}

impl Survey {
    fn take() -> Result<Survey, NicError> {
        let list = |e| NicError::new(Subject::List, e);
        let mut client = Client::route().map_err(list)?;
        let links = dump_links(&mut client).map_err(list)?;
        let host = Host::read(&mut client).map_err(list)?;
        Ok(Survey { client, links, host })
    }

    fn interface(&self, link: &Link) -> Interface {
        Interface {
            name: link.name.clone(),
            index: link.index,
            kind: link.kind.clone(),
            driver: sys::ethtool_driver(self.client.socket(), link.index)
                .ok()
                .map(|name| text(&name))
                .filter(|name| !name.is_empty()),
            is_up: link.is_up(),
            has_carrier: link.has_carrier(),
            mtu: link.mtu,
            hardware_type: link.hardware_type,
            rx_queues: link.rx_queues,
            tx_queues: link.tx_queues,
            numa_node: link.parent.as_ref().and_then(|(bus, device)| numa_node(Path::new("/sys"), bus, device)),
            xdp_program: link.xdp_program,
            peer: peer(link),
            master: link.master,
            addresses: self.host.addresses_of(link.index).collect(),
            has_default_route: self.host.default_routes.contains(&link.index),
            host_traffic: self.host.reason(link.index, &self.links),
        }
    }
}

/// A namespace without a number cannot be asked: as if there were no peer.
fn peer(link: &Link) -> Option<PeerLink> {
    let index = link.link.filter(|_| link.is_pair())?;
    match link.link_namespace {
        None => Some(PeerLink { index, namespace: None }),
        Some(id) => u32::try_from(id).ok().map(|id| PeerLink { index, namespace: Some(id) }),
    }
}

/// Memory node of a device, or of the one it hangs on: virtio has none itself, the PCI function below has. Goes by bus,
/// since /sys/class/net shows the network namespace of whoever mounted it.
fn numa_node(sys: &Path, bus: &str, device: &str) -> Option<u32> {
    let is_name = |s: &str| !s.is_empty() && s != "." && s != ".." && !s.contains('/');
    if !is_name(bus) || !is_name(device) {
        return None;
    }
    let path = std::fs::canonicalize(sys.join("bus").join(bus).join("devices").join(device)).ok()?;
    path.ancestors()
        .take_while(|p| p.starts_with(sys) && *p != sys)
        .find_map(|p| std::fs::read_to_string(p.join("numa_node")).ok())
        // -1 where the firmware does not say.
        .and_then(|node| node.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_node_is_that_of_the_nearest_device_with_one() {
        let folder = tempfile::tempdir().unwrap();
        let sys = folder.path().canonicalize().unwrap();
        let pci = sys.join("devices/pci0000:00/0000:00:03.0");
        std::fs::create_dir_all(pci.join("virtio2")).unwrap();
        std::fs::create_dir_all(sys.join("devices/platform/other")).unwrap();
        for (bus, device, to) in [
            ("virtio", "virtio2", pci.join("virtio2")),
            ("pci", "0000:00:03.0", pci.clone()),
            ("platform", "other", sys.join("devices/platform/other")),
        ] {
            let devices = sys.join("bus").join(bus).join("devices");
            std::fs::create_dir_all(&devices).unwrap();
            std::os::unix::fs::symlink(to, devices.join(device)).unwrap();
        }
        std::fs::write(pci.join("numa_node"), "1\n").unwrap();
        assert_eq!(numa_node(&sys, "pci", "0000:00:03.0"), Some(1));
        assert_eq!(numa_node(&sys, "virtio", "virtio2"), Some(1));
        assert_eq!(numa_node(&sys, "platform", "other"), None);
        assert_eq!(numa_node(&sys, "platform", "none"), None);
        assert_eq!(numa_node(&sys, "pci", "../../.."), None);
        std::fs::write(pci.join("numa_node"), "-1\n").unwrap();
        assert_eq!(numa_node(&sys, "pci", "0000:00:03.0"), None);
    }

    #[test]
    fn a_peer_is_told_by_kind_and_namespace() {
        let veth = Link { index: 2, link: Some(9), kind: Some("veth".into()), ..Link::default() };
        assert_eq!(peer(&veth), Some(PeerLink { index: 9, namespace: None }));
        let far = Link { link_namespace: Some(4), ..veth.clone() };
        assert_eq!(peer(&far), Some(PeerLink { index: 9, namespace: Some(4) }));
        assert_eq!(peer(&Link { link_namespace: Some(-1), ..veth.clone() }), None);
        assert_eq!(peer(&Link { kind: Some("vlan".into()), ..veth }), None);
    }
}
