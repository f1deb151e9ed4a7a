/// What a flow speaks, told from its payload first and from its ports last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum App {
    /// Not known.
    #[default]
    None = 0,
    /// TLS over TCP (RFC 8446 and before).
    Tls,
    /// QUIC (RFC 9000).
    Quic,
    /// HTTP/1 (RFC 9112) in clear.
    Http,
    /// DNS (RFC 1035) over UDP or TCP.
    Dns,
    /// Multicast DNS (RFC 6762).
    Mdns,
    /// SSH (RFC 4253).
    Ssh,
    /// DHCP (RFC 2131) and DHCPv6 (RFC 8415).
    Dhcp,
}

impl App {
    /// Every label, in discriminant order.
    pub const ALL: [App; 8] = [App::None, App::Tls, App::Quic, App::Http, App::Dns, App::Mdns, App::Ssh, App::Dhcp];

    /// The name in records and tables; `None` where nothing is known.
    pub const fn name(self) -> Option<&'static str> {
        match self {
            App::None => None,
            App::Tls => Some("tls"),
            App::Quic => Some("quic"),
            App::Http => Some("http"),
            App::Dns => Some("dns"),
            App::Mdns => Some("mdns"),
            App::Ssh => Some("ssh"),
            App::Dhcp => Some("dhcp"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn discriminants_index_the_list() {
        for (index, app) in App::ALL.iter().enumerate() {
            assert_eq!(*app as usize, index);
        }
    }
}
