//! How packets arrive: queues, VLAN offload, XDP. Generic netlink families "ethtool" (linux/ethtool_netlink.h) and
//! "netdev" (linux/netdev.h).

use super::client::{CallError, Client, Family, Partial, generic_header};
use super::error::Subject;
use super::netlink::{Attributes, Malformed, Nest, Request};
use super::{Interface, NicError};

pub(super) const ETHTOOL_FAMILY: (&str, &str) = ("ethtool", "5.6");
pub(super) const NETDEV_FAMILY: (&str, &str) = ("netdev", "6.3");

const ETHTOOL_MSG_FEATURES_GET: u8 = 11;
const ETHTOOL_MSG_CHANNELS_GET: u8 = 17;
/// The header is the first attribute of each ethtool message.
pub(super) const ETHTOOL_A_HEADER: u16 = 1;
pub(super) const ETHTOOL_A_HEADER_DEV_INDEX: u16 = 1;
pub(super) const ETHTOOL_A_HEADER_DEV_NAME: u16 = 2;
const ETHTOOL_A_FEATURES_ACTIVE: u16 = 4;
const ETHTOOL_A_BITSET_BITS: u16 = 3;
const ETHTOOL_A_BITSET_BITS_BIT: u16 = 1;
const ETHTOOL_A_BITSET_BIT_NAME: u16 = 2;
/// Names of NETIF_F_HW_VLAN_CTAG_RX and _STAG_RX, net/ethtool/common.c.
const VLAN_STRIPPING: [&str; 2] = ["rx-vlan-hw-parse", "rx-vlan-stag-hw-parse"];

const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_CMD_QUEUE_GET: u8 = 10;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;
const NETDEV_A_DEV_XDP_ZC_MAX_SEGS: u16 = 4;
const NETDEV_A_DEV_XDP_RX_METADATA_FEATURES: u16 = 5;
const NETDEV_A_QUEUE_IFINDEX: u16 = 2;
const NETDEV_A_QUEUE_TYPE: u16 = 3;
const NETDEV_QUEUE_TYPE_RX: u32 = 0;

/// Channels of an interface: groups of queues with an interrupt of their own (`ethtool -l`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Channels {
    /// Channels that receive only.
    pub rx: u32,
    /// Channels that send only.
    pub tx: u32,
    /// Channels for anything else, as link interrupts.
    pub other: u32,
    /// Channels that do both.
    pub combined: u32,
    /// Most that `rx` can be set to.
    pub max_rx: u32,
    /// Most that `tx` can be set to.
    pub max_tx: u32,
    /// Most that `other` can be set to.
    pub max_other: u32,
    /// Most that `combined` can be set to.
    pub max_combined: u32,
}

impl Channels {
    /// Queues that packets can arrive on: 0 to `receive() - 1`.
    pub fn receive(&self) -> u32 {
        self.combined.saturating_add(self.rx)
    }

    /// Reads an ETHTOOL_A_CHANNELS_ list; what the driver does not have is absent, and 0.
    pub(super) fn parse(attributes: Attributes<'_>) -> Result<Channels, Malformed> {
        let mut channels = Channels::default();
        for attribute in attributes {
            let attribute = attribute?;
            let field = match attribute.kind {
                2 => &mut channels.max_rx,
                3 => &mut channels.max_tx,
                4 => &mut channels.max_other,
                5 => &mut channels.max_combined,
                6 => &mut channels.rx,
                7 => &mut channels.tx,
                8 => &mut channels.other,
                9 => &mut channels.combined,
                _ => continue,
            };
            *field = attribute.u32()?;
        }
        Ok(channels)
    }
}

/// What the driver can do for AF_XDP, by its own word (NETDEV_CMD_DEV_GET, Linux 6.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XdpSupport {
    /// XDP programs in driver mode.
    pub driver_mode: bool,
    /// Redirecting to AF_XDP sockets in driver mode.
    pub redirect: bool,
    /// AF_XDP without a copy. The last word is the socket's, when it is bound.
    pub zero_copy: bool,
    /// Packets over several buffers, in driver mode: jumbo frames.
    pub multi_buffer: bool,
    /// Most buffers of one packet without a copy; 1 means no jumbo frames there.
    pub zero_copy_buffers_max: u32,
    /// Hardware receive timestamps as XDP metadata.
    pub rx_timestamp: bool,
    /// The hash that chose the queue, as XDP metadata.
    pub rx_hash: bool,
    /// The VLAN tag that the hardware took off, as XDP metadata.
    pub rx_vlan_tag: bool,
}

/// Channels of an interface; `None` where the driver has none to speak of.
///
/// # Errors
/// [`Gone`](NicError::Gone), [`Family`](NicError::Family), or where the kernel does not answer.
pub fn channels(interface: &Interface) -> Result<Option<Channels>, NicError> {
    let mut asked = Asked::open(&ETHTOOL_FAMILY).map_err(of(interface))?;
    let request = asked.ethtool(ETHTOOL_MSG_CHANNELS_GET, interface.index);
    let answer = asked
        .client
        .get("ETHTOOL_MSG_CHANNELS_GET", request, |_, body| Channels::parse(Attributes::behind::<4>(body)?.1));
    if_supported(answer).map_err(of(interface))
}

/// On how many queues packets can arrive now. Those are numbered from 0.
///
/// The number an interface was made with ([`Interface::rx_queues`]) does not follow `ethtool -L`, channels do. Where the
/// driver has none, the queues are counted (family "netdev", Linux 6.8, interface up), and only then that number is it.
///
/// # Errors
/// As [`channels`].
pub fn receive_queues(interface: &Interface) -> Result<u32, NicError> {
    if let Some(count) = channels(interface)?.map(|c| c.receive()).filter(|count| *count > 0) {
        return Ok(count);
    }
    match count_receive_queues(interface.index) {
        Ok(0) => Ok(interface.rx_queues),
        Ok(count) => Ok(count),
        Err(CallError::Family { .. }) => Ok(interface.rx_queues),
        Err(e) if e.is_unsupported() => Ok(interface.rx_queues),
        Err(e) => Err(of(interface)(e)),
    }
}

/// An interface that is down has none.
fn count_receive_queues(index: u32) -> Result<u32, CallError> {
    let mut asked = Asked::open(&NETDEV_FAMILY)?;
    let request = asked.netdev_dump(NETDEV_CMD_QUEUE_GET, NETDEV_A_QUEUE_IFINDEX, index);
    let queues = asked.client.dump("NETDEV_CMD_QUEUE_GET", &request, Partial::Refused, |_, body| {
        for attribute in Attributes::behind::<4>(body)?.1 {
            let attribute = attribute?;
            if attribute.kind == NETDEV_A_QUEUE_TYPE && attribute.u32()? == NETDEV_QUEUE_TYPE_RX {
                return Ok(Some(()));
            }
        }
        Ok(None)
    })?;
    Ok(u32::try_from(queues.len()).unwrap_or(u32::MAX))
}

/// Whether the hardware takes VLAN tags (802.1Q or 802.1ad) off received packets: AF_XDP does not see them then.
/// `ethtool -K <interface> rxvlan off` ends it, where the driver lets it. `None` where the interface has no features.
///
/// # Errors
/// As [`channels`].
pub fn rx_vlan_offload(interface: &Interface) -> Result<Option<bool>, NicError> {
    let mut asked = Asked::open(&ETHTOOL_FAMILY).map_err(of(interface))?;
    let request = asked.ethtool(ETHTOOL_MSG_FEATURES_GET, interface.index);
    let answer = asked.client.get("ETHTOOL_MSG_FEATURES_GET", request, |_, body| {
        for attribute in Attributes::behind::<4>(body)?.1 {
            let attribute = attribute?;
            if attribute.kind == ETHTOOL_A_FEATURES_ACTIVE {
                return has_vlan_stripping(attribute.nested());
            }
        }
        Ok(false)
    });
    if_supported(answer).map_err(of(interface))
}

/// Reads a bit set in its verbose form, a list of the bits that are set.
fn has_vlan_stripping(bit_set: Attributes<'_>) -> Result<bool, Malformed> {
    for bits in bit_set {
        let bits = bits?;
        if bits.kind != ETHTOOL_A_BITSET_BITS {
            continue;
        }
        for bit in bits.nested() {
            let bit = bit?;
            if bit.kind != ETHTOOL_A_BITSET_BITS_BIT {
                continue;
            }
            for part in bit.nested() {
                let part = part?;
                if part.kind == ETHTOOL_A_BITSET_BIT_NAME && VLAN_STRIPPING.contains(&part.text().as_str()) {
                    return Ok(true);
                }
            }
        }
    }
    Ok(false)
}

/// What the driver can do for AF_XDP; `None` where the kernel is too old to say.
///
/// # Errors
/// [`Gone`](NicError::Gone), or where the kernel does not answer.
pub fn xdp_support(interface: &Interface) -> Result<Option<XdpSupport>, NicError> {
    let mut asked = match Asked::open(&NETDEV_FAMILY) {
        Err(CallError::Family { .. }) => return Ok(None),
        other => other.map_err(of(interface))?,
    };
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
    let request = Request::new(asked.family.id, flags, &generic_header(NETDEV_CMD_DEV_GET))
        .u32(NETDEV_A_DEV_IFINDEX, interface.index);
    let answer =
        asked.client.get("NETDEV_CMD_DEV_GET", request, |_, body| parse_xdp_support(Attributes::behind::<4>(body)?.1));
    if_supported(answer).map_err(of(interface))
}

fn parse_xdp_support(attributes: Attributes<'_>) -> Result<XdpSupport, Malformed> {
    let (mut actions, mut metadata, mut buffers) = (0, 0, 0);
    for attribute in attributes {
        let attribute = attribute?;
        match attribute.kind {
            NETDEV_A_DEV_XDP_FEATURES => actions = attribute.uint()?,
            NETDEV_A_DEV_XDP_RX_METADATA_FEATURES => metadata = attribute.uint()?,
            NETDEV_A_DEV_XDP_ZC_MAX_SEGS => buffers = attribute.u32()?,
            _ => {}
        }
    }
    // enum netdev_xdp_act and netdev_xdp_rx_metadata.
    Ok(XdpSupport {
        driver_mode: actions & 1 != 0,
        redirect: actions & 2 != 0,
        zero_copy: actions & 8 != 0,
        multi_buffer: actions & 32 != 0,
        zero_copy_buffers_max: buffers,
        rx_timestamp: metadata & 1 != 0,
        rx_hash: metadata & 2 != 0,
        rx_vlan_tag: metadata & 4 != 0,
    })
}

/// A client and the family it speaks to.
pub(super) struct Asked {
    pub(super) client: Client,
    pub(super) family: Family,
}

impl Asked {
    pub(super) fn open(&(name, since): &(&'static str, &'static str)) -> Result<Asked, CallError> {
        let mut client = Client::generic()?;
        let family = client.family(name, since)?;
        Ok(Asked { client, family })
    }

    fn ethtool(&self, command: u8, index: u32) -> Request {
        let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
        Request::new(self.family.id, flags, &generic_header(command))
            .nested(ETHTOOL_A_HEADER, &Nest::default().u32(ETHTOOL_A_HEADER_DEV_INDEX, index))
    }

    /// A list of the family "netdev", of one interface.
    pub(super) fn netdev_dump(&self, command: u8, index_attribute: u16, index: u32) -> Request {
        let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
        Request::new(self.family.id, flags, &generic_header(command)).u32(index_attribute, index)
    }
}

fn if_supported<T>(answer: Result<T, CallError>) -> Result<Option<T>, CallError> {
    match answer {
        Err(e) if e.is_unsupported() => Ok(None),
        other => other.map(Some),
    }
}

fn of(interface: &Interface) -> impl Fn(CallError) -> NicError {
    |e| NicError::new(Subject::Interface(&interface.name), e)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nic::netlink::Messages;
    use proptest::prelude::*;

    fn attributes<R>(mut request: Request, read: impl FnOnce(Attributes<'_>) -> R) -> R {
        let message = Messages::new(request.numbered(1)).next().unwrap().unwrap();
        read(Attributes::new(message.body))
    }

    #[test]
    fn channels_are_read_and_absent_ones_are_zero() {
        let request = Request::new(0, 0, &[]).u32(2, 8).u32(5, 16).u32(6, 1).u32(9, 4);
        let read = attributes(request, Channels::parse).unwrap();
        assert_eq!(read, Channels { max_rx: 8, max_combined: 16, rx: 1, combined: 4, ..Channels::default() });
        assert_eq!(read.receive(), 5);
        let endless = Channels { rx: u32::MAX, combined: 1, ..Channels::default() };
        assert_eq!(endless.receive(), u32::MAX);
    }

    #[test]
    fn xdp_support_is_read_from_its_bits() {
        let request = Request::new(0, 0, &[]).attribute(3, &(1_u64 | 2 | 32).to_ne_bytes()).u32(4, 1);
        let read = attributes(request.attribute(5, &4_u64.to_ne_bytes()), parse_xdp_support).unwrap();
        assert!(read.driver_mode && read.redirect && read.multi_buffer && read.rx_vlan_tag);
        assert!(!read.zero_copy && !read.rx_timestamp && !read.rx_hash);
        assert_eq!(read.zero_copy_buffers_max, 1);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Channels::parse(Attributes::new(&bytes));
            let _ = parse_xdp_support(Attributes::new(&bytes));
            let _ = has_vlan_stripping(Attributes::new(&bytes));
        }
    }
}
