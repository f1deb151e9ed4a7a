//! Qualifiers applied to an operand: what `host`, `net`, `port`, `portrange` and `proto` accept.

use super::FilterError;
use super::lexer::Token;
use super::parser::Parser;
use super::syntax::{Direction, Primitive};
use super::words::{self, Protocol};

/// What stands before an operand, and carries over to the next ones.
#[derive(Clone, Copy, Debug)]
pub(super) struct Qualifier {
    pub(super) protocol: Option<Protocol>,
    pub(super) direction: Direction,
    pub(super) kind: Kind,
    /// Byte offset of its first word behind the protocol.
    pub(super) at: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Only a direction was given: a host.
    Default,
    Host,
    Net,
    Port,
    PortRange,
    Protocol,
}

impl Parser<'_> {
    /// One operand under its qualifiers.
    pub(super) fn qualified(&mut self, qualifier: Qualifier) -> Result<Primitive, FilterError> {
        match qualifier.kind {
            Kind::Default | Kind::Host | Kind::Net => self.address(qualifier),
            Kind::Port | Kind::PortRange => self.ports(qualifier),
            Kind::Protocol => self.protocol_number(qualifier),
        }
    }

    fn address(&mut self, qualifier: Qualifier) -> Result<Primitive, FilterError> {
        let at = self.at();
        let ether = qualifier.protocol == Some(Protocol::Link);
        let direction = qualifier.direction;
        match self.peek() {
            Token::Mac(mac) if ether && qualifier.kind != Kind::Net => {
                self.advance();
                Ok(Primitive::EtherHost { direction, mac })
            }
            Token::Mac(_) => {
                Err(self.error(at, "an Ethernet address", " needs 'ether host', 'ether src' or 'ether dst'"))
            }
            Token::Number(_) | Token::Dotted(..) | Token::Ip6(_) if ether => {
                Err(self.error(at, "expected an Ethernet address such as aa:bb:cc:dd:ee:ff", ""))
            }
            Token::Number(value) => {
                self.advance();
                let (address, mask) = number_address(value, qualifier.kind == Kind::Net);
                self.host4(qualifier, address, mask)
            }
            Token::Dotted(address, bits) => self.dotted(qualifier, address, bits),
            Token::Ip6(address) => self.host6(qualifier, address.into()),
            Token::Word(word) | Token::Escaped(word)
                if !words::is_reserved(word) || self.peek() == Token::Escaped(word) =>
            {
                let what = format_args!("names of hosts and networks are not looked up: '{word}'");
                Err(self.error(at, what, ", write its address"))
            }
            _ if ether => Err(self.unexpected("an Ethernet address")),
            _ if qualifier.kind == Kind::Net => Err(self.unexpected("a network such as 10.0.0.0/8")),
            _ => Err(self.unexpected("an address such as 10.0.0.1")),
        }
    }

    /// `10.1`, `10.1.0.0/16`, `10.1.0.0 mask 255.255.0.0`.
    fn dotted(&mut self, qualifier: Qualifier, address: u32, bits: u32) -> Result<Primitive, FilterError> {
        let at = self.at();
        self.advance();
        let mask = if self.take("/") {
            prefix_mask(self.prefix_length(32)?) as u32
        } else if self.take("mask") {
            let Token::Dotted(mask, _) = self.peek() else { return Err(self.unexpected("a mask such as 255.255.0.0")) };
            self.advance();
            mask
        } else {
            return self.host4(qualifier, address, u32::MAX << (32 - bits));
        };
        if qualifier.kind != Kind::Net {
            return Err(self.error(at, "an address with a mask", " needs 'net'"));
        }
        if address & !mask != 0 {
            let (network, mask) = (std::net::Ipv4Addr::from(address & mask), std::net::Ipv4Addr::from(mask));
            let what = "this address has bits that its mask clears";
            return Err(self.error(at, what, format_args!(": the network is {network} mask {mask}")));
        }
        self.host4(qualifier, address, mask)
    }

    fn prefix_length(&mut self, max: u32) -> Result<u32, FilterError> {
        match self.peek() {
            Token::Number(bits) if bits <= max => {
                self.advance();
                // A mask of `u32` is the low half of a mask of `u128`.
                Ok(128 - max + bits)
            }
            Token::Number(bits) => {
                let what = format_args!("prefix length {bits} is out of range");
                Err(self.error(self.at(), what, format_args!(": 0 to {max}")))
            }
            _ => Err(self.unexpected("a prefix length")),
        }
    }

    fn host4(&self, qualifier: Qualifier, address: u32, mask: u32) -> Result<Primitive, FilterError> {
        match qualifier.protocol {
            None | Some(Protocol::Ip | Protocol::Arp | Protocol::Rarp) => {
                Ok(Primitive::Host4 { protocol: qualifier.protocol, direction: qualifier.direction, address, mask })
            }
            Some(_) => {
                let hint = ": 'ip', 'arp' and 'rarp' go with an IPv4 address; join others with 'and'";
                Err(self.error(qualifier.at, "this protocol has no IPv4 addresses", hint))
            }
        }
    }

    fn host6(&mut self, qualifier: Qualifier, address: u128) -> Result<Primitive, FilterError> {
        let at = self.at();
        self.advance();
        let with_prefix = self.take("/");
        let mask = if with_prefix { prefix_mask(self.prefix_length(128)?) } else { u128::MAX };
        if qualifier.kind != Kind::Net && mask != u128::MAX {
            return Err(self.error(at, "an address with a prefix", " needs 'net'"));
        }
        if address & !mask != 0 {
            let network = std::net::Ipv6Addr::from(address & mask);
            let what = "this address has bits that its prefix clears";
            return Err(self.error(at, what, format_args!(": the network is {network}/{}", mask.leading_ones())));
        }
        match qualifier.protocol {
            None | Some(Protocol::Ip6) => Ok(Primitive::Host6 { direction: qualifier.direction, address, mask }),
            Some(_) => {
                let hint = ": only 'ip6' goes with an IPv6 address; join others with 'and'";
                Err(self.error(qualifier.at, "this protocol has no IPv6 addresses", hint))
            }
        }
    }

    fn ports(&mut self, qualifier: Qualifier) -> Result<Primitive, FilterError> {
        let transport = match qualifier.protocol {
            None => None,
            Some(Protocol::Tcp) => Some(6),
            Some(Protocol::Udp) => Some(17),
            Some(Protocol::Sctp) => Some(132),
            Some(_) => {
                let what = "this protocol has no ports";
                return Err(self.error(qualifier.at, what, ": 'tcp', 'udp' and 'sctp' have; join others with 'and'"));
            }
        };
        let at = self.at();
        let range = qualifier.kind == Kind::PortRange;
        let ((first, on), (last, on_last)) = match self.peek() {
            Token::Number(port) => {
                let port = (self.port_number(port, at)?, None);
                (port, port)
            }
            Token::Word(word) if range && word.contains('-') => {
                let (first, last) = word.split_once('-').unwrap_or((word, word));
                (self.port(first, at)?, self.port(last, at + first.len() + 1)?)
            }
            Token::Word(word) if !range && word.split_once('-').is_some_and(|(a, b)| is_number(a) && is_number(b)) => {
                return Err(self.error(at, format_args!("'{word}' is a range"), ": write 'portrange'"));
            }
            Token::Word(word) | Token::Escaped(word)
                if !words::is_reserved(word) || self.peek() == Token::Escaped(word) =>
            {
                let port = self.port(word, at)?;
                (port, port)
            }
            Token::Dotted(..) | Token::Ip6(_) | Token::Mac(_) => {
                return Err(self.error(at, "an address is no port", ": write 'host' before it"));
            }
            _ if range => return Err(self.unexpected("a port range such as 8000-8080")),
            _ => return Err(self.unexpected("a port number or a service name")),
        };
        if first > last {
            let what = format_args!("port range {first}-{last} runs backwards");
            return Err(self.error(at, what, format_args!(": write {last}-{first}")));
        }
        self.advance();
        // A name can be registered for one transport only; of a range, both names have to agree.
        let named = if on == on_last { on } else { None };
        let transport = match (transport, named) {
            (Some(6), Some(17)) | (Some(132), Some(17)) => {
                return Err(self.error(at, "this service runs over udp", ""));
            }
            (Some(17), Some(6)) | (Some(132), Some(6)) => return Err(self.error(at, "this service runs over tcp", "")),
            (asked, named) => asked.or(named),
        };
        Ok(Primitive::Ports { transport, direction: qualifier.direction, first, last })
    }

    fn port(&self, word: &str, at: usize) -> Result<(u16, Option<u8>), FilterError> {
        if is_number(word) {
            return Ok((self.port_number(word.parse().unwrap_or(u32::MAX), at)?, None));
        }
        match (words::service(word), words::nearest_service(word)) {
            (Some(found), _) => Ok(found),
            (None, Some(near)) => {
                let hint = format_args!(", did you mean '{near}'? Others go by number");
                Err(self.error(at, format_args!("unknown service '{word}'"), hint))
            }
            (None, None) => {
                let hint = ": only well-known ones have a name here, write the port number";
                Err(self.error(at, format_args!("unknown service '{word}'"), hint))
            }
        }
    }

    fn port_number(&self, port: u32, at: usize) -> Result<u16, FilterError> {
        u16::try_from(port).map_err(|_| self.error(at, format_args!("port {port} is out of range"), ": 0 to 65535"))
    }

    fn protocol_number(&mut self, qualifier: Qualifier) -> Result<Primitive, FilterError> {
        let at = self.at();
        let (max, expected) = match qualifier.protocol {
            None | Some(Protocol::Ip | Protocol::Ip6 | Protocol::Iso) => (0xff, "a protocol number, 0 to 255"),
            Some(Protocol::Link) => (0xffff, "an Ethernet type, 0 to 65535"),
            Some(_) => {
                let hint = ": 'ip', 'ip6', 'ether' and 'iso' have";
                return Err(self.error(qualifier.at, "this protocol has no protocol number inside", hint));
            }
        };
        let number = match self.peek() {
            Token::Number(number) if number <= max => number as u16,
            Token::Number(number) => {
                return Err(self.error(at, format_args!("{number} is out of range"), format_args!(": {expected}")));
            }
            Token::Word(word) | Token::Escaped(word) => match self.protocol_name(qualifier.protocol, word) {
                Some(number) => number,
                None if self.peek() != Token::Escaped(word) && words::is_reserved(word) => {
                    return Err(self.unexpected(expected));
                }
                None => return Err(self.unknown_protocol(word, at)),
            },
            _ => return Err(self.unexpected(expected)),
        };
        self.advance();
        Ok(match qualifier.protocol {
            Some(Protocol::Link) => Primitive::EtherProtocol(number),
            Some(Protocol::Iso) => Primitive::IsoProtocol(number as u8),
            network => Primitive::IpProtocol { network, number: number as u8 },
        })
    }

    fn protocol_name(&self, of: Option<Protocol>, word: &str) -> Option<u16> {
        match of {
            Some(Protocol::Link) => words::ether_protocol(word),
            Some(Protocol::Iso) => words::iso_protocol(word).map(u16::from),
            _ => words::ip_protocol(word).map(u16::from),
        }
    }

    fn unknown_protocol(&self, word: &str, at: usize) -> FilterError {
        let what = format_args!("unknown protocol '{word}'");
        match words::nearest_ip_protocol(word) {
            Some(near) => self.error(at, what, format_args!(", did you mean '{near}'? Others go by number")),
            None => self.error(at, what, ": only well-known ones have a name here, write its number"),
        }
    }
}

/// A network written as one number is shifted to the left until its first byte is not 0, as libpcap does.
fn number_address(value: u32, net: bool) -> (u32, u32) {
    let shift = if net && value != 0 { value.leading_zeros() / 8 * 8 } else { 0 };
    (value << shift, u32::MAX << shift)
}

/// The first `bits` of 128.
fn prefix_mask(bits: u32) -> u128 {
    u128::MAX.checked_shl(128 - bits).unwrap_or(0)
}

fn is_number(word: &str) -> bool {
    !word.is_empty() && word.bytes().all(|b| b.is_ascii_digit())
}
