use super::NicError;
use super::client::{CallError, receive};
use super::error::Subject;
use super::link::Link;
use super::netlink::{Attributes, Malformed, Message, Messages};
use super::queues::{
    Asked, Channels, ETHTOOL_A_HEADER, ETHTOOL_A_HEADER_DEV_INDEX, ETHTOOL_A_HEADER_DEV_NAME, ETHTOOL_FAMILY,
};
use super::sys::{NetlinkSocket, readable_when_any};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Room for events that nobody has read yet: about a thousand.
const RECEIVE_BUFFER_BYTES: i32 = 1 << 21;
/// Most events of one call; the rest stays readable.
const EVENTS_MAX: usize = 1024;
/// Room for a datagram at first; it grows.
const DATAGRAM_BYTES: usize = 1 << 13;
/// linux/ethtool_netlink.h
const ETHTOOL_MSG_CHANNELS_NTF: u8 = 19;
const ETHTOOL_MONITOR_GROUP: &str = "monitor";

/// Something about an interface changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkEvent {
    /// How an interface is now. Comes for any change, for some that are not shown here, and for new interfaces.
    State(LinkState),
    /// An interface was removed, or moved to another network namespace.
    Removed {
        /// Number it had.
        index: u32,
        /// Name it had.
        name: String,
    },
    /// The numbers of queues were set (`ethtool -L`).
    Channels {
        /// Number of the interface.
        index: u32,
        /// Name of the interface.
        name: String,
        /// As they are now.
        channels: Channels,
    },
    /// Events were lost: look at everything again.
    Overflow,
}

/// State of an interface at the time of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkState {
    /// Number of the interface.
    pub index: u32,
    /// Name, which may have changed.
    pub name: String,
    /// Switched on by the administrator.
    pub is_up: bool,
    /// Up, and the other side is there.
    pub has_carrier: bool,
    /// Longest packet behind the link-layer header, bytes.
    pub mtu: u32,
    /// Id of the XDP program that is attached. That it came or went makes no event of its own where it was attached
    /// through a BPF link.
    pub xdp_program: Option<u32>,
    /// Index of the bridge, bond or other interface it belongs to.
    pub master: Option<u32>,
}

/// Tells of changes to the interfaces of a network namespace, from its opening on: look interfaces up *after* it, and no
/// change goes unseen.
pub struct LinkWatch {
    route: NetlinkSocket,
    /// `None` where the kernel has no ethtool family.
    ethtool: Option<Ethtool>,
    either: OwnedFd,
    datagram: Vec<u8>,
}

struct Ethtool {
    socket: NetlinkSocket,
    family: u16,
}

impl LinkWatch {
    /// Watches the network namespace of the calling thread.
    ///
    /// # Errors
    /// Where the kernel refuses a socket.
    pub fn open() -> Result<LinkWatch, NicError> {
        let system = |call| move |e| NicError::system(Subject::Watch, call, None, e);
        let route = subscribe(libc::NETLINK_ROUTE, libc::RTNLGRP_LINK).map_err(system("RTNLGRP_LINK"))?;
        let ethtool = match ethtool_group() {
            Ok((family, group)) => {
                let socket = subscribe(libc::NETLINK_GENERIC, group).map_err(system("group 'monitor' of 'ethtool'"))?;
                Some(Ethtool { socket, family })
            }
            Err(CallError::Family { .. }) => None,
            Err(e) => return Err(NicError::new(Subject::Watch, e)),
        };
        let mut sockets = vec![route.as_fd()];
        sockets.extend(ethtool.as_ref().map(|e| e.socket.as_fd()));
        let either = readable_when_any(&sockets).map_err(system("epoll"))?;
        Ok(LinkWatch { route, ethtool, either, datagram: vec![0; DATAGRAM_BYTES] })
    }

    /// Whether [`LinkEvent::Channels`] will be told; it needs Linux 5.6.
    pub fn sees_channels(&self) -> bool {
        self.ethtool.is_some()
    }

    /// The events since the last call, oldest first by source: link states, then channels. Does not wait; empty where
    /// nothing happened, or nothing that is told here. At most a thousand or so of each at a time: the descriptor stays
    /// readable while there are more.
    ///
    /// # Errors
    /// Where the kernel's messages cannot be read. Lost events are no error but [`LinkEvent::Overflow`].
    #[allow(clippy::should_implement_trait, reason = "an iterator would end where this goes on")]
    pub fn next(&mut self) -> Result<Vec<LinkEvent>, NicError> {
        let mut events = Vec::new();
        let datagram = &mut self.datagram;
        drain(&self.route, "RTNLGRP_LINK", datagram, &mut events, parse_link_event)?;
        if let Some(Ethtool { socket, family }) = &self.ethtool {
            let call = "ETHTOOL_MSG_CHANNELS_NTF";
            drain(socket, call, datagram, &mut events, |message| parse_channels_event(*family, message))?;
        }
        Ok(events)
    }
}

impl AsFd for LinkWatch {
    /// Readable when there are events.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.either.as_fd()
    }
}

fn ethtool_group() -> Result<(u16, u32), CallError> {
    let asked = Asked::open(&ETHTOOL_FAMILY)?;
    let (family, since) = ETHTOOL_FAMILY;
    let group = asked.family.group(ETHTOOL_MONITOR_GROUP).ok_or(CallError::Family { family, since })?;
    Ok((asked.family.id, group))
}

fn subscribe(family: i32, group: u32) -> io::Result<NetlinkSocket> {
    let socket = NetlinkSocket::open(family, false)?;
    socket.set_receive_buffer(RECEIVE_BUFFER_BYTES)?;
    let group = i32::try_from(group).map_err(|_| io::ErrorKind::InvalidInput)?;
    socket.set(libc::NETLINK_ADD_MEMBERSHIP, group)?;
    Ok(socket)
}

/// Reads until the socket is empty or `events` has enough.
fn drain(
    socket: &NetlinkSocket,
    call: &'static str,
    datagram: &mut Vec<u8>,
    events: &mut Vec<LinkEvent>,
    parse: impl Fn(&Message<'_>) -> Result<Option<LinkEvent>, Malformed>,
) -> Result<(), NicError> {
    let before = events.len();
    while events.len() - before < EVENTS_MAX {
        let bytes = match receive(socket, datagram) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => {
                events.push(LinkEvent::Overflow);
                continue;
            }
            Err(e) => return Err(NicError::system(Subject::Watch, call, None, e)),
        };
        for message in Messages::new(bytes) {
            let event = message.and_then(|message| parse(&message));
            events
                .extend(event.map_err(|reason| NicError::new(Subject::Watch, CallError::Malformed { call, reason }))?);
        }
    }
    Ok(())
}

fn parse_link_event(message: &Message<'_>) -> Result<Option<LinkEvent>, Malformed> {
    let removed = match message.kind {
        libc::RTM_NEWLINK => false,
        libc::RTM_DELLINK => true,
        _ => return Ok(None),
    };
    Ok(Link::parse(message.body)?.map(|link| match removed {
        true => LinkEvent::Removed { index: link.index, name: link.name },
        false => LinkEvent::State(LinkState {
            index: link.index,
            is_up: link.is_up(),
            has_carrier: link.has_carrier(),
            name: link.name,
            mtu: link.mtu,
            xdp_program: link.xdp_program,
            master: link.master,
        }),
    }))
}

fn parse_channels_event(family: u16, message: &Message<'_>) -> Result<Option<LinkEvent>, Malformed> {
    if message.kind != family || message.body.first() != Some(&ETHTOOL_MSG_CHANNELS_NTF) {
        return Ok(None);
    }
    let (_, attributes) = Attributes::behind::<4>(message.body)?;
    let (mut index, mut name) = (None, String::new());
    for attribute in attributes.clone() {
        let attribute = attribute?;
        if attribute.kind != ETHTOOL_A_HEADER {
            continue;
        }
        for part in attribute.nested() {
            let part = part?;
            match part.kind {
                ETHTOOL_A_HEADER_DEV_INDEX => index = Some(part.u32()?),
                ETHTOOL_A_HEADER_DEV_NAME => name = part.text(),
                _ => {}
            }
        }
    }
    let channels = Channels::parse(attributes)?;
    Ok(index.map(|index| LinkEvent::Channels { index, name, channels }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 16_u16..18) {
            let _ = parse_link_event(&Message { kind, flags: 0, sequence: 0, body: &bytes });
            if let Some(command) = bytes.first_mut() {
                *command = ETHTOOL_MSG_CHANNELS_NTF;
            }
            let _ = parse_channels_event(kind, &Message { kind, flags: 0, sequence: 0, body: &bytes });
        }
    }
}
