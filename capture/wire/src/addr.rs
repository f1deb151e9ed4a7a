use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// An IP address in 16 bytes, network order; IPv4 is mapped (`::ffff:a.b.c.d`, RFC 4291 section 2.5.5.2), so that one
/// column and one comparison serve both versions and a prefix is a byte range.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Addr(pub [u8; 16]);

const V4_MAPPED: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

impl Addr {
    /// From the four bytes of an IPv4 header.
    pub const fn v4(b: [u8; 4]) -> Addr {
        Addr([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, b[0], b[1], b[2], b[3]])
    }

    /// Whether this is a mapped IPv4 address.
    pub fn is_v4(&self) -> bool {
        self.0[..12] == V4_MAPPED
    }

    /// The address as the standard library knows it.
    pub fn to_ip(self) -> IpAddr {
        if self.is_v4() {
            IpAddr::V4(Ipv4Addr::new(self.0[12], self.0[13], self.0[14], self.0[15]))
        } else {
            IpAddr::V6(Ipv6Addr::from(self.0))
        }
    }
}

impl From<IpAddr> for Addr {
    fn from(ip: IpAddr) -> Addr {
        match ip {
            IpAddr::V4(v4) => Addr::v4(v4.octets()),
            IpAddr::V6(v6) => Addr(v6.octets()),
        }
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_ip().fmt(f)
    }
}

impl fmt::Debug for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_ip().fmt(f)
    }
}

/// Text that is no address or prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseAddrError {
    text: String,
    expected: &'static str,
}

impl fmt::Display for ParseAddrError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "'{}' is not {}", self.text, self.expected)
    }
}

impl std::error::Error for ParseAddrError {}

impl FromStr for Addr {
    type Err = ParseAddrError;
    fn from_str(text: &str) -> Result<Addr, ParseAddrError> {
        IpAddr::from_str(text).map(Addr::from).map_err(|_| ParseAddrError {
            text: text.to_owned(),
            expected: "an IPv4 or IPv6 address such as 10.0.0.1 or 2001:db8::1",
        })
    }
}

/// An address block in CIDR notation (RFC 4632): every address from `first` to `last`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// Lowest address of the block.
    pub first: Addr,
    /// Highest address of the block.
    pub last: Addr,
}

impl Prefix {
    /// Whether `addr` lies in the block.
    pub fn contains(&self, addr: Addr) -> bool {
        self.first <= addr && addr <= self.last
    }
}

impl FromStr for Prefix {
    type Err = ParseAddrError;
    fn from_str(text: &str) -> Result<Prefix, ParseAddrError> {
        let error = || ParseAddrError {
            text: text.to_owned(),
            expected: "an address block such as 10.0.0.0/8 or 2001:db8::/32",
        };
        let (addr, len) = match text.split_once('/') {
            Some((addr, len)) => (addr, Some(len)),
            None => (text, None),
        };
        let ip = IpAddr::from_str(addr).map_err(|_| error())?;
        let (width, offset) = if ip.is_ipv4() { (32, 96) } else { (128, 0) };
        let len: u32 = match len {
            Some(len) => len.parse().ok().filter(|n| *n <= width).ok_or_else(error)?,
            None => width,
        };
        let host = u128::MAX.checked_shr(offset + len).unwrap_or(0);
        let bits = u128::from_be_bytes(Addr::from(ip).0);
        Ok(Prefix { first: Addr((bits & !host).to_be_bytes()), last: Addr((bits | host).to_be_bytes()) })
    }
}

/// A MAC-48 address as it stands in the Ethernet header.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_print_and_parse_as_people_write_them() {
        for text in ["10.0.0.1", "2001:db8::1", "::1", "255.255.255.255"] {
            assert_eq!(text.parse::<Addr>().unwrap().to_string(), text);
        }
        assert!("10.0.0".parse::<Addr>().is_err());
    }

    #[test]
    fn prefixes_cover_exactly_their_block() {
        let p: Prefix = "10.1.0.0/16".parse().unwrap();
        assert!(p.contains("10.1.0.0".parse().unwrap()) && p.contains("10.1.255.255".parse().unwrap()));
        assert!(!p.contains("10.0.255.255".parse().unwrap()) && !p.contains("10.2.0.0".parse().unwrap()));
        let all: Prefix = "0.0.0.0/0".parse().unwrap();
        assert!(all.contains("255.1.2.3".parse().unwrap()) && !all.contains("::1".parse().unwrap()));
        let v6: Prefix = "::/0".parse().unwrap();
        assert!(v6.contains("2001:db8::1".parse().unwrap()));
        assert!("10.0.0.0/33".parse::<Prefix>().is_err());
    }
}
