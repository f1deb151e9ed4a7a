use crate::Sysfs;
use serde::Serialize;
use std::fs;

/// A network interface, as `/sys/class/net` shows it (Documentation/ABI/testing/sysfs-class-net).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// The kernel's number for it.
    pub index: u32,
    /// Whether it is set up (IFF_UP); says nothing about a cable.
    pub up: bool,
    /// Bytes of the largest IP packet.
    pub mtu: u32,
    /// The kernel driver; `None` for virtual interfaces.
    pub driver: Option<String>,
    /// Megabits a second; `None` where it is down or has no speed.
    pub speed_mbps: Option<u32>,
    /// Receive queues.
    pub rx_queues: u32,
    /// Memory node its bus hangs on; `None` where there is one node only, or no bus.
    pub numa_node: Option<u32>,
    /// Hardware address as `aa:bb:cc:dd:ee:ff`; `None` where it has none.
    pub mac: Option<String>,
    /// Whether no device stands behind it (loopback, veth, bridge, tunnel).
    pub is_virtual: bool,
    /// Whether it is a loopback.
    pub is_loopback: bool,
}

/// Interface flags (linux/if.h).
const IFF_UP: u32 = 0x1;
const IFF_LOOPBACK: u32 = 0x8;

impl Sysfs {
    /// Network interfaces, by index.
    pub fn interfaces(&self) -> Vec<Interface> {
        // Names without an index are no interfaces: `bonding_masters` is a plain file beside them.
        let mut all: Vec<Interface> =
            self.names("sys/class/net").into_iter().filter_map(|name| self.interface(name)).collect();
        all.sort_by_key(|interface| interface.index);
        all
    }

    fn interface(&self, name: String) -> Option<Interface> {
        let base = format!("sys/class/net/{name}");
        let index = self.number(format!("{base}/ifindex"))?;
        let flags = self.text(format!("{base}/flags")).unwrap_or_default();
        let flags = u32::from_str_radix(flags.trim_start_matches("0x"), 16).unwrap_or(0);
        let driver = fs::read_link(self.path(format!("{base}/device/driver"))).ok();
        let driver = driver.and_then(|path| Some(path.file_name()?.to_str()?.to_owned()));
        let queues = self.names(format!("{base}/queues"));
        let mac = self.text(format!("{base}/address")).filter(|mac| mac.bytes().any(|b| b != b'0' && b != b':'));
        Some(Interface {
            index,
            up: flags & IFF_UP != 0,
            mtu: self.number(format!("{base}/mtu")).unwrap_or(0),
            driver,
            speed_mbps: self.number(format!("{base}/speed")).filter(|mbps| *mbps > 0 && *mbps != u32::MAX),
            rx_queues: queues.iter().filter(|queue| queue.starts_with("rx-")).count() as u32,
            numa_node: self.number(format!("{base}/device/numa_node")),
            mac,
            is_virtual: !self.path(format!("{base}/device")).exists(),
            is_loopback: flags & IFF_LOOPBACK != 0,
            name,
        })
    }
}
