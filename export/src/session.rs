//! The way to the collector: a UDP socket or a TCP connection, and what the network says of it.

use crate::config::{Collector, Transport};
use std::io::{self, ErrorKind, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs, UdpSocket};
use std::time::Duration;

/// How long a collector may take to accept a connection.
const CONNECT_MAX: Duration = Duration::from_secs(3);

/// A socket on its way to the collector.
pub(crate) enum Session {
    Udp(UdpSocket),
    Tcp(TcpStream),
}

impl Session {
    /// Looks the name up and connects to the first of its addresses that answers. Over UDP nobody answers: the socket is
    /// connected so that the kernel tells what ICMP says.
    pub(crate) fn connect(collector: &Collector, transport: Transport) -> io::Result<Session> {
        let mut last = io::Error::new(ErrorKind::NotFound, "the name has no address");
        for address in (collector.host(), collector.port()).to_socket_addrs()? {
            let connected = match transport {
                Transport::Udp => connect_udp(address).map(Session::Udp),
                Transport::Tcp => TcpStream::connect_timeout(&address, CONNECT_MAX).and_then(|stream| {
                    // A message is worth sending when it is complete: we wait for that ourselves.
                    stream.set_nodelay(true)?;
                    Ok(Session::Tcp(stream))
                }),
            };
            match connected {
                Ok(session) => return Ok(session),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Bounds how long one send may take.
    pub(crate) fn set_patience(&self, longest: Duration) -> io::Result<()> {
        let longest = Some(longest.max(Duration::from_millis(1)));
        match self {
            Session::Udp(socket) => socket.set_write_timeout(longest),
            Session::Tcp(stream) => stream.set_write_timeout(longest),
        }
    }

    /// Sends a whole message. After an error the session is over: a connection may have taken a part of it, and a
    /// collector that finds the connection closed throws that part away.
    pub(crate) fn send(&mut self, message: &[u8]) -> io::Result<()> {
        match self {
            Session::Udp(socket) => socket.send(message).map(drop),
            Session::Tcp(stream) => stream.write_all(message),
        }
    }

    /// What the network has said since it was last asked: over UDP an ICMP error that answers a message sent before;
    /// over TCP that the collector has closed the connection. Two or three system calls.
    pub(crate) fn fault(&self) -> Option<io::Error> {
        match self {
            Session::Udp(socket) => socket.take_error().unwrap_or_else(Some),
            Session::Tcp(stream) => closed(stream).err(),
        }
    }
}

fn connect_udp(address: SocketAddr) -> io::Result<UdpSocket> {
    let any: SocketAddr = if address.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any)?;
    socket.connect(address)?;
    Ok(socket)
}

/// A collector sends nothing; what can be read is the end of the connection.
fn closed(stream: &TcpStream) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    let peeked = stream.peek(&mut [0]);
    stream.set_nonblocking(false)?;
    match peeked {
        Ok(0) => Err(io::Error::new(ErrorKind::ConnectionReset, "the collector has closed the connection")),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
        Err(error) => Err(error),
    }
}
