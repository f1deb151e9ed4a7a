/// What a flow speaks, told from its payload; ports only decide where a payload could be several things.
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
    /// Link-local multicast name resolution (RFC 4795).
    Llmnr,
    /// HTTP/2 (RFC 9113) in clear, by its connection preface.
    Http2,
    /// Simple service discovery: HTTP-like messages over UDP (UPnP device architecture 2.0).
    Ssdp,
    /// Network time (RFC 5905).
    Ntp,
    /// STUN and TURN (RFC 8489, RFC 8656).
    Stun,
    /// Server message block, any dialect (MS-CIFS, MS-SMB2).
    Smb,
    /// Remote desktop (MS-RDPBCGR).
    Rdp,
    /// File transfer protocol, control connection (RFC 959).
    Ftp,
    /// Mail transfer (RFC 5321).
    Smtp,
    /// Mail access, IMAP4 (RFC 9051).
    Imap,
    /// Mail access, POP3 (RFC 1939).
    Pop3,
    /// MQTT (OASIS MQTT 3.1.1 and 5).
    Mqtt,
    /// Session initiation (RFC 3261).
    Sip,
    /// Real-time streaming (RFC 7826).
    Rtsp,
    /// Network management (RFC 3411 and before).
    Snmp,
    /// Directory access (RFC 4511).
    Ldap,
    /// Kerberos 5 (RFC 4120).
    Kerberos,
    /// BitTorrent peer wire and DHT (BEP 3, BEP 5).
    Bittorrent,
    /// WireGuard.
    Wireguard,
    /// OpenVPN.
    Openvpn,
    /// Modbus over TCP.
    Modbus,
    /// DNP3 (IEEE 1815).
    Dnp3,
    /// Redis (RESP).
    Redis,
    /// PostgreSQL, protocol 3.
    Postgres,
    /// MySQL and MariaDB.
    Mysql,
    /// NetBIOS name service (RFC 1002).
    Netbios,
    /// Syslog over UDP (RFC 5424, RFC 3164).
    Syslog,
    /// Trivial file transfer (RFC 1350).
    Tftp,
    /// VNC (RFC 6143).
    Vnc,
}

/// Labels and their names, in discriminant order.
const NAMES: [(App, &str); 37] = [
    (App::None, ""),
    (App::Tls, "tls"),
    (App::Quic, "quic"),
    (App::Http, "http"),
    (App::Dns, "dns"),
    (App::Mdns, "mdns"),
    (App::Ssh, "ssh"),
    (App::Dhcp, "dhcp"),
    (App::Llmnr, "llmnr"),
    (App::Http2, "http2"),
    (App::Ssdp, "ssdp"),
    (App::Ntp, "ntp"),
    (App::Stun, "stun"),
    (App::Smb, "smb"),
    (App::Rdp, "rdp"),
    (App::Ftp, "ftp"),
    (App::Smtp, "smtp"),
    (App::Imap, "imap"),
    (App::Pop3, "pop3"),
    (App::Mqtt, "mqtt"),
    (App::Sip, "sip"),
    (App::Rtsp, "rtsp"),
    (App::Snmp, "snmp"),
    (App::Ldap, "ldap"),
    (App::Kerberos, "kerberos"),
    (App::Bittorrent, "bittorrent"),
    (App::Wireguard, "wireguard"),
    (App::Openvpn, "openvpn"),
    (App::Modbus, "modbus"),
    (App::Dnp3, "dnp3"),
    (App::Redis, "redis"),
    (App::Postgres, "postgres"),
    (App::Mysql, "mysql"),
    (App::Netbios, "netbios"),
    (App::Syslog, "syslog"),
    (App::Tftp, "tftp"),
    (App::Vnc, "vnc"),
];

impl App {
    /// Every label, in discriminant order.
    pub const ALL: [App; NAMES.len()] = {
        let mut all = [App::None; NAMES.len()];
        let mut at = 0;
        while at < all.len() {
            all[at] = NAMES[at].0;
            at += 1;
        }
        all
    };

    /// The name in records and tables; `None` where nothing is known.
    pub const fn name(self) -> Option<&'static str> {
        match self {
            App::None => None,
            known => Some(NAMES[known as usize].1),
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
        assert_eq!(App::Vnc as usize + 1, App::ALL.len());
    }

    #[test]
    fn names_are_told_apart() {
        let mut names: Vec<_> = App::ALL.iter().filter_map(|app| app.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len() + 1, App::ALL.len());
    }
}
