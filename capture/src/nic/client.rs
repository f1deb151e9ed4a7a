//! Requests to the kernel over netlink, and their answers: one at a time, blocking.

use super::netlink::{Attributes, Malformed, Message, Messages, Outcome, Request};
use super::sys::NetlinkSocket;
use std::ffi::c_int;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

/// Room for a datagram at first: twice what the kernel fills when it dumps (32 KiB).
const DATAGRAM_BYTES: usize = 1 << 16;
/// Longest datagram that is accepted. One interface with all of its virtual functions is a few hundred KiB.
const DATAGRAM_BYTES_MAX: usize = 1 << 24;
/// How often a dump is started again because something changed during it.
const DUMP_ATTEMPTS_MAX: u32 = 16;
/// As that, for dumps of which a part is welcome, too.
const PARTIAL_ATTEMPTS_MAX: u32 = 3;

/// Version of both families asked here.
const GENERIC_VERSION: u8 = 1;

/// Why a request failed.
#[derive(Debug)]
pub(super) enum CallError {
    /// The kernel refused it, or a system call failed.
    System { call: &'static str, message: Option<String>, source: io::Error },
    /// No such generic netlink family.
    Family { family: &'static str, since: &'static str },
    /// Changes during each attempt of a dump.
    Interrupted { call: &'static str, attempts: u32 },
    /// The answer cannot be read.
    Malformed { call: &'static str, reason: Malformed },
    /// Success without an answer.
    Unanswered { call: &'static str },
}

impl CallError {
    fn io(call: &'static str) -> impl Fn(io::Error) -> CallError {
        move |source| CallError::System { call, message: None, source }
    }

    /// The errno of a refusal.
    pub(super) fn errno(&self) -> Option<i32> {
        match self {
            CallError::System { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }

    /// The interface, its driver or the kernel knows nothing of what was asked.
    pub(super) fn is_unsupported(&self) -> bool {
        matches!(self.errno(), Some(libc::EOPNOTSUPP | libc::ENOTTY))
    }
}

/// What to do with a dump that something changed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Partial {
    /// It may lack an entry: start again, and fail in the end.
    Refused,
    /// Entries are kept from every attempt, and a few attempts will do.
    Kept,
}

/// How an attempt at a dump ended.
enum Dumped {
    Whole,
    Interrupted,
}

/// A generic netlink family of this kernel.
#[derive(Clone, Debug)]
pub(super) struct Family {
    /// Type of its messages.
    pub(super) id: u16,
    /// Multicast groups: name and number.
    groups: Vec<(String, u32)>,
}

impl Family {
    /// Number of a multicast group.
    pub(super) fn group(&self, name: &str) -> Option<u32> {
        self.groups.iter().find(|(n, _)| n == name).map(|(_, id)| *id)
    }
}

/// A netlink socket with one conversation at a time.
pub(super) struct Client {
    socket: NetlinkSocket,
    sequence: u32,
    datagram: Vec<u8>,
}

impl Client {
    /// Speaks to rtnetlink(7), in the network namespace of the calling thread.
    pub(super) fn route() -> Result<Client, CallError> {
        Client::open(libc::NETLINK_ROUTE)
    }

    /// Speaks to generic netlink families, in the network namespace of the calling thread.
    pub(super) fn generic() -> Result<Client, CallError> {
        Client::open(libc::NETLINK_GENERIC)
    }

    fn open(family: c_int) -> Result<Client, CallError> {
        let socket = NetlinkSocket::open(family, true).map_err(CallError::io("socket(AF_NETLINK)"))?;
        // Each of these only makes answers better: words with errors, errors without a copy of the request, and dumps
        // that heed their filters. A kernel that lacks one (before 4.12, 4.3, 4.20) is understood as well.
        for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK, libc::NETLINK_GET_STRICT_CHK] {
            socket.set(option, 1).ok();
        }
        Ok(Client { socket, sequence: 0, datagram: vec![0; DATAGRAM_BYTES] })
    }

    /// A socket for ioctl calls, in the same network namespace.
    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Asks for one thing. `parse` sees the message type and the body of the answer.
    pub(super) fn get<T>(
        &mut self,
        call: &'static str,
        request: Request,
        mut parse: impl FnMut(u16, &[u8]) -> Result<T, Malformed>,
    ) -> Result<T, CallError> {
        let mut answer = None;
        self.converse(call, request, &mut |message| {
            answer = Some(parse(message.kind, message.body)?);
            Ok(())
        })?;
        answer.ok_or(CallError::Unanswered { call })
    }

    /// Asks for a list. `parse` is given each entry, and leaves out what the caller has no use for.
    pub(super) fn dump<T>(
        &mut self,
        call: &'static str,
        request: &Request,
        partial: Partial,
        mut parse: impl FnMut(u16, &[u8]) -> Result<Option<T>, Malformed>,
    ) -> Result<Vec<T>, CallError> {
        let mut entries = Vec::new();
        let attempts = if partial == Partial::Kept { PARTIAL_ATTEMPTS_MAX } else { DUMP_ATTEMPTS_MAX };
        for _ in 0..attempts {
            let dumped = self.converse(call, request.clone(), &mut |message| {
                entries.extend(parse(message.kind, message.body)?);
                Ok(())
            });
            match dumped {
                Ok(Dumped::Whole) => return Ok(entries),
                Ok(Dumped::Interrupted) => {}
                // No room for an answer: it is lost, and so is the list.
                Err(e) if e.errno() == Some(libc::ENOBUFS) => {}
                Err(e) => return Err(e),
            }
            if partial == Partial::Refused {
                entries.clear();
            }
        }
        if partial == Partial::Kept { Ok(entries) } else { Err(CallError::Interrupted { call, attempts }) }
    }

    /// Looks a generic netlink family up.
    pub(super) fn family(&mut self, name: &'static str, since: &'static str) -> Result<Family, CallError> {
        let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
        let fixed = generic_header(libc::CTRL_CMD_GETFAMILY as u8);
        let request = Request::new(libc::GENL_ID_CTRL as u16, flags, &fixed);
        let request = request.text(libc::CTRL_ATTR_FAMILY_NAME as u16, name);
        match self.get("CTRL_CMD_GETFAMILY", request, |_, body| parse_family(body)) {
            Err(e) if e.errno() == Some(libc::ENOENT) => Err(CallError::Family { family: name, since }),
            other => other,
        }
    }

    /// Sends a request and shows each message of the answer, up to its end.
    fn converse(
        &mut self,
        call: &'static str,
        mut request: Request,
        each: &mut dyn FnMut(&Message<'_>) -> Result<(), Malformed>,
    ) -> Result<Dumped, CallError> {
        self.sequence = self.sequence.wrapping_add(1);
        let sequence = self.sequence;
        self.socket.send(request.numbered(sequence)).map_err(CallError::io(call))?;
        let (mut dumped, mut refused) = (Dumped::Whole, None);
        loop {
            let datagram = receive(&self.socket, &mut self.datagram).map_err(CallError::io(call))?;
            for message in Messages::new(datagram) {
                let malformed = |reason| CallError::Malformed { call, reason };
                let message = message.map_err(malformed)?;
                // What is left of an answer that was given up.
                if message.sequence != sequence {
                    continue;
                }
                if message.flags & libc::NLM_F_DUMP_INTR as u16 != 0 {
                    dumped = Dumped::Interrupted;
                }
                match c_int::from(message.kind) {
                    libc::NLMSG_ERROR | libc::NLMSG_DONE => {
                        let outcome = Outcome::parse(&message).map_err(malformed)?;
                        return match (outcome.errno, refused) {
                            (0, None) => Ok(dumped),
                            (0, Some(reason)) => Err(malformed(reason)),
                            (errno, _) => {
                                let source = io::Error::from_raw_os_error(errno);
                                Err(CallError::System { call, message: outcome.text, source })
                            }
                        };
                    }
                    libc::NLMSG_NOOP | libc::NLMSG_OVERRUN => {}
                    // The rest is read all the same: a dump that is left half-way stands in the way of the next.
                    _ if refused.is_none() => refused = each(&message).err(),
                    _ => {}
                }
            }
        }
    }
}

/// Receives the next datagram of the kernel, whole, whatever its length; `buffer` grows to it.
///
/// # Errors
/// EAGAIN where a socket that does not block has none, or where a blocking one got none in ten seconds; EMSGSIZE for a
/// datagram over 16 MiB; ENOBUFS where datagrams were lost.
pub(super) fn receive<'a>(socket: &NetlinkSocket, buffer: &'a mut Vec<u8>) -> io::Result<&'a [u8]> {
    loop {
        let next = match socket.receive(buffer, true) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        if next.bytes > DATAGRAM_BYTES_MAX {
            return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
        }
        if next.bytes > buffer.len() {
            buffer.resize(next.bytes, 0);
        }
        let got = match socket.receive(buffer, false) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        if got.from_kernel && got.bytes <= buffer.len() {
            return Ok(&buffer[..got.bytes]);
        }
    }
}

/// `struct genlmsghdr`.
pub(super) fn generic_header(command: u8) -> [u8; 4] {
    [command, GENERIC_VERSION, 0, 0]
}

fn parse_family(body: &[u8]) -> Result<Family, Malformed> {
    let (_, attributes) = Attributes::behind::<4>(body)?;
    let mut family = Family { id: 0, groups: Vec::new() };
    for attribute in attributes {
        let attribute = attribute?;
        match c_int::from(attribute.kind) {
            libc::CTRL_ATTR_FAMILY_ID => family.id = attribute.u16()?,
            libc::CTRL_ATTR_MCAST_GROUPS => {
                for group in attribute.nested() {
                    family.groups.extend(parse_group(group?.nested())?);
                }
            }
            _ => {}
        }
    }
    Ok(family)
}

fn parse_group(attributes: Attributes<'_>) -> Result<Option<(String, u32)>, Malformed> {
    let (mut name, mut id) = (None, None);
    for attribute in attributes {
        let attribute = attribute?;
        match c_int::from(attribute.kind) {
            libc::CTRL_ATTR_MCAST_GRP_NAME => name = Some(attribute.text()),
            libc::CTRL_ATTR_MCAST_GRP_ID => id = Some(attribute.u32()?),
            _ => {}
        }
    }
    Ok(name.zip(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_control_family_knows_itself_and_refuses_strangers() {
        let mut client = Client::generic().unwrap();
        let family = client.family("nlctrl", "2.6").unwrap();
        assert_eq!(i32::from(family.id), libc::GENL_ID_CTRL);
        assert!(family.group("notify").is_some());
        assert!(family.group("no such group").is_none());
        assert!(matches!(client.family("taphouse-none", "99"), Err(CallError::Family { family: "taphouse-none", .. })));
    }

    #[test]
    fn a_refusal_carries_the_kernels_own_words() {
        let mut client = Client::generic().unwrap();
        let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
        // A family id of one byte, where two are needed.
        let request = Request::new(libc::GENL_ID_CTRL as u16, flags, &generic_header(libc::CTRL_CMD_GETFAMILY as u8));
        let request = request.attribute(libc::CTRL_ATTR_FAMILY_ID as u16, &[1]);
        let error = client.get("CTRL_CMD_GETFAMILY", request, |_, _| Ok(())).unwrap_err();
        let CallError::System { message: Some(message), source, .. } = error else { panic!("{error:?}") };
        assert!(!message.is_empty());
        assert!(source.raw_os_error().is_some());
    }

    #[test]
    fn a_new_request_ignores_what_is_left_of_the_last() {
        let mut client = Client::route().unwrap();
        let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
        let mut given_up = Request::new(libc::RTM_GETLINK, flags, &[0; 16]);
        client.socket.send(given_up.numbered(u32::MAX)).unwrap();
        let mut family = client.dump(
            "RTM_GETLINK",
            &Request::new(libc::RTM_GETLINK, flags, &[0; 16]),
            Partial::Refused,
            |kind, _| Ok(Some(kind)),
        );
        // The kernel refuses a second dump while one is under way.
        for _ in 0..3 {
            if family.as_ref().is_err_and(|e| e.errno() == Some(libc::EBUSY)) {
                let again = Request::new(libc::RTM_GETLINK, flags, &[0; 16]);
                family = client.dump("RTM_GETLINK", &again, Partial::Refused, |kind, _| Ok(Some(kind)));
            }
        }
        assert!(family.unwrap().iter().all(|kind| *kind == libc::RTM_NEWLINK));
    }
}
