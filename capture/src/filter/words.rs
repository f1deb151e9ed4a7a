//! The vocabulary: protocols, names of numbers, services, and the words of pcap-filter(7) that are refused.

/// A protocol that can qualify an address, stand alone, or be indexed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Link,
    Ip,
    Ip6,
    Arp,
    Rarp,
    Tcp,
    Udp,
    Sctp,
    Icmp,
    Icmp6,
    Igmp,
    Igrp,
    Pim,
    Vrrp,
    Carp,
    Ah,
    Esp,
    Atalk,
    Aarp,
    Decnet,
    Lat,
    Sca,
    Moprc,
    Mopdl,
    Iso,
    Esis,
    Isis,
    Clnp,
    Stp,
    Ipx,
    Netbeui,
}

use Protocol::*;

/// Words that name a protocol. Those of other link layers are the same to libpcap as `ether`.
const PROTOCOLS: &[(&str, Protocol)] = &[
    ("ether", Link),
    ("link", Link),
    ("ppp", Link),
    ("slip", Link),
    ("fddi", Link),
    ("tr", Link),
    ("wlan", Link),
    ("ip", Ip),
    ("ip6", Ip6),
    ("arp", Arp),
    ("rarp", Rarp),
    ("tcp", Tcp),
    ("udp", Udp),
    ("sctp", Sctp),
    ("icmp", Icmp),
    ("icmp6", Icmp6),
    ("igmp", Igmp),
    ("igrp", Igrp),
    ("pim", Pim),
    ("vrrp", Vrrp),
    ("carp", Carp),
    ("ah", Ah),
    ("esp", Esp),
    ("atalk", Atalk),
    ("aarp", Aarp),
    ("decnet", Decnet),
    ("lat", Lat),
    ("sca", Sca),
    ("moprc", Moprc),
    ("mopdl", Mopdl),
    ("iso", Iso),
    ("esis", Esis),
    ("es-is", Esis),
    ("isis", Isis),
    ("is-is", Isis),
    ("clnp", Clnp),
    ("stp", Stp),
    ("ipx", Ipx),
    ("netbeui", Netbeui),
];

/// Every other word of the language that is supported.
const KEYWORDS: &[&str] = &[
    "host",
    "net",
    "mask",
    "port",
    "portrange",
    "proto",
    "src",
    "dst",
    "and",
    "or",
    "not",
    "less",
    "greater",
    "len",
    "length",
    "broadcast",
    "multicast",
    "vlan",
    "mpls",
    "pppoed",
    "pppoes",
];

/// Words of pcap-filter(7) that are not supported, and why or what to write instead.
const REFUSED: &[(&[&str], &str)] = &[
    (&["protochain"], "header chains are not followed"),
    (&["gateway"], "host names are not looked up"),
    (&["inbound", "outbound"], "frames do not tell their direction"),
    (&["ifindex"], "a filter belongs to one interface already"),
    (&["byte"], "write 'ether[N]' instead"),
    (&["geneve", "vxlan"], "tunnels are not looked into; test the outer 'udp port'"),
    (&["llc"], "write 'ether[12:2] <= 1500' and test the bytes from 'ether[14]' instead"),
    (
        &[
            "radio",
            "type",
            "subtype",
            "direction",
            "dir",
            "address1",
            "addr1",
            "address2",
            "addr2",
            "address3",
            "addr3",
            "address4",
            "addr4",
            "ra",
            "ta",
        ],
        "802.11 frames are not captured",
    ),
    (&["l1", "l2", "iih", "lsp", "snp", "csnp", "psnp"], "kinds of IS-IS packets are not told apart; write 'isis'"),
    (
        &[
            "lane",
            "metac",
            "bcc",
            "oam",
            "oamf4",
            "oamf4ec",
            "oamf4sc",
            "sc",
            "ilmic",
            "vpi",
            "vci",
            "connectmsg",
            "metaconnect",
        ],
        "ATM is not captured",
    ),
    (
        &["on", "ifname", "rset", "ruleset", "rnr", "rulenum", "srnr", "subrulenum", "reason", "action"],
        "logs of the pf packet filter are not captured",
    ),
    (
        &[
            "fisu", "lssu", "lsu", "msu", "hfisu", "hlssu", "hmsu", "sio", "opc", "dpc", "sls", "hsio", "hopc", "hdpc",
            "hsls",
        ],
        "SS7 is not captured",
    ),
];

/// Names that stand for a number anywhere: offsets and values of ICMP, ICMPv6 and TCP.
const CONSTANTS: &[(&str, u32)] = &[
    ("icmptype", 0),
    ("icmpcode", 1),
    ("icmp-echoreply", 0),
    ("icmp-unreach", 3),
    ("icmp-sourcequench", 4),
    ("icmp-redirect", 5),
    ("icmp-echo", 8),
    ("icmp-routeradvert", 9),
    ("icmp-routersolicit", 10),
    ("icmp-timxceed", 11),
    ("icmp-paramprob", 12),
    ("icmp-tstamp", 13),
    ("icmp-tstampreply", 14),
    ("icmp-ireq", 15),
    ("icmp-ireqreply", 16),
    ("icmp-maskreq", 17),
    ("icmp-maskreply", 18),
    ("icmp6type", 0),
    ("icmp6code", 1),
    ("icmp6-destinationunreach", 1),
    ("icmp6-packettoobig", 2),
    ("icmp6-timeexceeded", 3),
    ("icmp6-parameterproblem", 4),
    ("icmp6-echo", 128),
    ("icmp6-echoreply", 129),
    ("icmp6-multicastlistenerquery", 130),
    ("icmp6-multicastlistenerreportv1", 131),
    ("icmp6-multicastlistenerdone", 132),
    ("icmp6-routersolicit", 133),
    ("icmp6-routeradvert", 134),
    ("icmp6-neighborsolicit", 135),
    ("icmp6-neighboradvert", 136),
    ("icmp6-redirect", 137),
    ("icmp6-routerrenum", 138),
    ("icmp6-nodeinformationquery", 139),
    ("icmp6-nodeinformationresponse", 140),
    ("icmp6-ineighbordiscoverysolicit", 141),
    ("icmp6-ineighbordiscoveryadvert", 142),
    ("icmp6-multicastlistenerreportv2", 143),
    ("icmp6-homeagentdiscoveryrequest", 144),
    ("icmp6-homeagentdiscoveryreply", 145),
    ("icmp6-mobileprefixsolicit", 146),
    ("icmp6-mobileprefixadvert", 147),
    ("icmp6-certpathsolicit", 148),
    ("icmp6-certpathadvert", 149),
    ("icmp6-multicastrouteradvert", 151),
    ("icmp6-multicastroutersolicit", 152),
    ("icmp6-multicastrouterterm", 153),
    ("tcpflags", 13),
    ("tcp-fin", 0x01),
    ("tcp-syn", 0x02),
    ("tcp-rst", 0x04),
    ("tcp-push", 0x08),
    ("tcp-ack", 0x10),
    ("tcp-urg", 0x20),
    ("tcp-ece", 0x40),
    ("tcp-cwr", 0x80),
];

/// IANA numbers that port and protocol names stand for.
pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;

/// A service that runs over both TCP and UDP: its name also finds SCTP, as a plain number does.
const BOTH: Option<u8> = None;

/// Port names, with the transport that Debian's /etc/services has them on: `port ssh` is `tcp port 22`, as in libpcap.
const SERVICES: &[(&str, u16, Option<u8>)] = &[
    ("auth", 113, Some(TCP)),
    ("bgp", 179, Some(TCP)),
    ("bootpc", 68, Some(UDP)),
    ("bootps", 67, Some(UDP)),
    ("dhcpv6-client", 546, Some(UDP)),
    ("dhcpv6-server", 547, Some(UDP)),
    ("domain", 53, BOTH),
    ("domain-s", 853, BOTH),
    ("epmap", 135, Some(TCP)),
    ("ftp", 21, Some(TCP)),
    ("ftp-data", 20, Some(TCP)),
    ("git", 9418, Some(TCP)),
    ("http", 80, Some(TCP)),
    ("http-alt", 8080, Some(TCP)),
    ("https", 443, BOTH),
    ("imap2", 143, Some(TCP)),
    ("imaps", 993, Some(TCP)),
    ("isakmp", 500, Some(UDP)),
    ("kerberos", 88, BOTH),
    ("ldap", 389, BOTH),
    ("ldaps", 636, BOTH),
    ("mdns", 5353, Some(UDP)),
    ("microsoft-ds", 445, Some(TCP)),
    ("ms-sql-s", 1433, Some(TCP)),
    ("ms-wbt-server", 3389, Some(TCP)),
    ("mysql", 3306, Some(TCP)),
    ("netbios-dgm", 138, Some(UDP)),
    ("netbios-ns", 137, Some(UDP)),
    ("netbios-ssn", 139, Some(TCP)),
    ("nfs", 2049, BOTH),
    ("nntp", 119, Some(TCP)),
    ("ntp", 123, Some(UDP)),
    ("openvpn", 1194, BOTH),
    ("pop3", 110, Some(TCP)),
    ("pop3s", 995, Some(TCP)),
    ("postgresql", 5432, Some(TCP)),
    ("radius", 1812, BOTH),
    ("radius-acct", 1813, BOTH),
    ("redis", 6379, Some(TCP)),
    ("rsync", 873, Some(TCP)),
    ("rtsp", 554, BOTH),
    ("sip", 5060, BOTH),
    ("smtp", 25, Some(TCP)),
    ("snmp", 161, BOTH),
    ("snmp-trap", 162, BOTH),
    ("ssh", 22, Some(TCP)),
    ("submission", 587, Some(TCP)),
    ("sunrpc", 111, BOTH),
    ("syslog", 514, Some(UDP)),
    ("tacacs", 49, BOTH),
    ("telnet", 23, Some(TCP)),
    ("tftp", 69, Some(UDP)),
    ("whois", 43, Some(TCP)),
    ("x11", 6000, Some(TCP)),
    ("xmpp-client", 5222, Some(TCP)),
];

/// Names after `proto`, `ip proto` and `ip6 proto`: IANA protocol numbers, by Debian's /etc/protocols and the words of
/// this language.
const IP_PROTOCOLS: &[(&str, u8)] = &[
    ("hopopt", 0),
    ("icmp", 1),
    ("igmp", 2),
    ("ipencap", 4),
    ("tcp", 6),
    ("egp", 8),
    ("igrp", 9),
    ("udp", 17),
    ("dccp", 33),
    ("ipv6", 41),
    ("ipv6-route", 43),
    ("ipv6-frag", 44),
    ("rsvp", 46),
    ("gre", 47),
    ("esp", 50),
    ("ah", 51),
    ("icmp6", 58),
    ("ipv6-icmp", 58),
    ("ipv6-nonxt", 59),
    ("ipv6-opts", 60),
    ("eigrp", 88),
    ("ospf", 89),
    ("etherip", 97),
    ("pim", 103),
    ("ipcomp", 108),
    ("vrrp", 112),
    ("carp", 112),
    ("l2tp", 115),
    ("sctp", 132),
    ("udplite", 136),
    ("mpls-in-ip", 137),
];

/// Names after `ether proto`: Ethernet types, and 802.2 service access points (up to 255).
const ETHER_PROTOCOLS: &[(&str, u16)] = &[
    ("aarp", ether_type::AARP),
    ("arp", ether_type::ARP),
    ("atalk", ether_type::ATALK),
    ("decnet", ether_type::DECNET),
    ("ip", ether_type::IP),
    ("ip6", ether_type::IP6),
    ("lat", ether_type::LAT),
    ("loopback", ether_type::LOOPBACK),
    ("mopdl", ether_type::MOPDL),
    ("moprc", ether_type::MOPRC),
    ("rarp", ether_type::RARP),
    ("sca", ether_type::SCA),
    ("iso", sap::ISO),
    ("stp", sap::STP),
    ("ipx", sap::IPX),
    ("netbeui", sap::NETBEUI),
];

/// Names after `iso proto`: network layer protocol identifiers (ISO/IEC TR 9577).
const ISO_PROTOCOLS: &[(&str, u8)] = &[("clnp", 0x81), ("esis", 0x82), ("isis", 0x83)];

/// Ethernet types (IEEE registry).
pub(super) mod ether_type {
    pub(in super::super) const IP: u16 = 0x0800;
    pub(in super::super) const ARP: u16 = 0x0806;
    pub(in super::super) const RARP: u16 = 0x8035;
    pub(in super::super) const IP6: u16 = 0x86dd;
    pub(in super::super) const MOPDL: u16 = 0x6001;
    pub(in super::super) const MOPRC: u16 = 0x6002;
    pub(in super::super) const DECNET: u16 = 0x6003;
    pub(in super::super) const LAT: u16 = 0x6004;
    pub(in super::super) const SCA: u16 = 0x6007;
    pub(in super::super) const ATALK: u16 = 0x809b;
    pub(in super::super) const AARP: u16 = 0x80f3;
    pub(in super::super) const IPX: u16 = 0x8137;
    pub(in super::super) const VLAN: u16 = 0x8100;
    pub(in super::super) const VLAN_SERVICE: u16 = 0x88a8;
    pub(in super::super) const VLAN_QINQ: u16 = 0x9100;
    pub(in super::super) const MPLS: u16 = 0x8847;
    pub(in super::super) const PPPOED: u16 = 0x8863;
    pub(in super::super) const PPPOES: u16 = 0x8864;
    pub(in super::super) const LOOPBACK: u16 = 0x9000;
    /// Greatest 802.3 length; what is above is a type.
    pub(in super::super) const LENGTH_MAX: u16 = 1500;
}

/// Service access points of 802.2 (IEEE 802).
pub(super) mod sap {
    pub(in super::super) const IP: u16 = 0x06;
    pub(in super::super) const STP: u16 = 0x42;
    pub(in super::super) const SNAP: u16 = 0xaa;
    pub(in super::super) const IPX: u16 = 0xe0;
    pub(in super::super) const NETBEUI: u16 = 0xf0;
    pub(in super::super) const ISO: u16 = 0xfe;
}

fn find<T: Copy>(table: &[(&str, T)], word: &str) -> Option<T> {
    table.iter().find(|(name, _)| *name == word).map(|(_, value)| *value)
}

pub(super) fn protocol(word: &str) -> Option<Protocol> {
    find(PROTOCOLS, word)
}

pub(super) fn constant(word: &str) -> Option<u32> {
    find(CONSTANTS, word)
}

/// Port and transport; `None` as transport is any.
pub(super) fn service(word: &str) -> Option<(u16, Option<u8>)> {
    SERVICES.iter().find(|(name, ..)| *name == word).map(|(_, port, transport)| (*port, *transport))
}

pub(super) fn ip_protocol(word: &str) -> Option<u8> {
    find(IP_PROTOCOLS, word)
}

pub(super) fn ether_protocol(word: &str) -> Option<u16> {
    find(ETHER_PROTOCOLS, word)
}

pub(super) fn iso_protocol(word: &str) -> Option<u8> {
    find(ISO_PROTOCOLS, word)
}

/// Whether the word has a meaning of its own, supported or not: it then never names a host, a port or a protocol.
pub(super) fn is_reserved(word: &str) -> bool {
    protocol(word).is_some() || KEYWORDS.contains(&word) || refused(word).is_some()
}

/// Why a word of the language is not supported.
pub(super) fn refused(word: &str) -> Option<&'static str> {
    REFUSED.iter().find(|(words, _)| words.contains(&word)).map(|(_, why)| *why)
}

/// The nearest word that the language knows, for a message.
pub(super) fn nearest(word: &str) -> Option<&'static str> {
    let known = PROTOCOLS.iter().map(|(w, _)| *w).chain(KEYWORDS.iter().copied());
    nearest_of(word, known.chain(CONSTANTS.iter().map(|(w, _)| *w)))
}

pub(super) fn nearest_service(word: &str) -> Option<&'static str> {
    nearest_of(word, SERVICES.iter().map(|(w, ..)| *w))
}

pub(super) fn nearest_ip_protocol(word: &str) -> Option<&'static str> {
    nearest_of(word, IP_PROTOCOLS.iter().map(|(w, _)| *w))
}

fn nearest_of(word: &str, known: impl Iterator<Item = &'static str>) -> Option<&'static str> {
    let word = word.to_ascii_lowercase();
    let (distance, best) = known.map(|w| (strsim::osa_distance(&word, w), w)).min()?;
    // Two letters of a long word, one of a short one.
    (distance <= 2.min(word.chars().count() / 2)).then_some(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_agree() {
        for (word, _) in PROTOCOLS {
            assert!(refused(word).is_none() && !KEYWORDS.contains(word), "{word} is in two tables");
        }
        for word in KEYWORDS {
            assert!(refused(word).is_none(), "{word} is in two tables");
        }
        let twice = SERVICES.windows(2).find(|w| w[0].0 >= w[1].0);
        assert!(twice.is_none(), "{twice:?} are out of order");
    }

    #[test]
    fn near_words() {
        assert_eq!(nearest("prt"), Some("port"));
        assert_eq!(nearest("TCP"), Some("tcp"));
        assert_eq!(nearest("hots"), Some("host"));
        assert_eq!(nearest("xyzzy"), None);
        assert_eq!(nearest_service("htttp"), Some("http"));
    }
}
