use super::error::Subject;
use super::{Interface, NicError, sys};
use std::os::fd::OwnedFd;

/// Holds an interface in promiscuous mode, in which it receives frames for other stations, too: the point of a tap. AF_XDP
/// has no such option of its own. Ends with this value, and with the process however it dies; the kernel counts who asked
/// for it, so that others are not disturbed.
#[derive(Debug)]
#[must_use = "promiscuous mode ends when this is dropped"]
pub struct Promiscuous {
    /// A packet socket that receives nothing; closing it ends its membership.
    _socket: OwnedFd,
}

impl Promiscuous {
    /// Switches promiscuous mode on.
    ///
    /// # Errors
    /// [`Permission`](NicError::Permission) without CAP_NET_RAW, [`Gone`](NicError::Gone), or where the kernel refuses it.
    pub fn enable(interface: &Interface) -> Result<Promiscuous, NicError> {
        let subject = Subject::Interface(&interface.name);
        sys::promiscuous_socket(interface.index)
            .map(|socket| Promiscuous { _socket: socket })
            .map_err(|e| NicError::system(subject, "AF_PACKET PACKET_ADD_MEMBERSHIP", None, e))
    }
}
