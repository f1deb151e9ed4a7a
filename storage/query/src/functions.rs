//! The SQL functions of this project. `host`, `net` and `port` are not here: they are rewritten in the syntax tree
//! (see `parse`).

use crate::address::{self, Kind};
use crate::community_id::community_id;
use crate::ports::port_name;
use arrow::array::{
    Array, ArrayRef, AsArray, BooleanBuilder, FixedSizeBinaryArray, FixedSizeBinaryBuilder, StringBuilder,
    TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Int64Type, TimeUnit, TimestampMicrosecondType};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, TypeSignature, Volatility,
};
use std::sync::{Arc, LazyLock};
use wire::{Addr, Prefix};

/// Which function. One type for all: they differ in their types and in one loop each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Name {
    /// `ip(text)`: the address a text denotes.
    Ip,
    /// `mac(text)`: the MAC address a text denotes.
    Mac,
    /// `ip_text(address)`: as people write it.
    IpText,
    /// `mac_text(mac)`: as people write it.
    MacText,
    /// `in_cidr(address, text)`: whether the address lies in the block.
    InCidr,
    /// `proto_name(number)`: `tcp`, `udp`, ...; the number where it has no short name here.
    Protocol,
    /// `community_id(src, dst, src port, dst port, protocol [, ICMP type, ICMP code] [, seed])`; without type and code,
    /// the ports of ICMP are taken for them.
    CommunityId,
    /// `dns_type_name(number)`: `A`, `AAAA`, ...; `TYPE` and the number where it has no name here (RFC 3597).
    DnsType,
    /// `rcode_name(number)`: `NOERROR`, `NXDOMAIN`, ...; the number where it has no name here.
    Rcode,
    /// `port_name(port [, protocol])`: `ssh`, `https`, ...; the number where it has no name here.
    Port,
    /// `t_start(t_end, dur_us)`: what the column `t_start` is made of.
    TStart,
}

impl Name {
    pub(crate) const ALL: [Name; 11] = [
        Name::Ip,
        Name::Mac,
        Name::IpText,
        Name::MacText,
        Name::InCidr,
        Name::Protocol,
        Name::CommunityId,
        Name::DnsType,
        Name::Rcode,
        Name::Port,
        Name::TStart,
    ];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Name::Ip => "ip",
            Name::Mac => "mac",
            Name::IpText => "ip_text",
            Name::MacText => "mac_text",
            Name::InCidr => "in_cidr",
            Name::Protocol => "proto_name",
            Name::CommunityId => "community_id",
            Name::DnsType => "dns_type_name",
            Name::Rcode => "rcode_name",
            Name::Port => "port_name",
            Name::TStart => "t_start",
        }
    }
}

/// One of this crate's functions, as the planner knows it.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct FlowFunction {
    pub(crate) name: Name,
    signature: Signature,
}

/// The function of that name; the same instance every time.
pub(crate) fn function(name: Name) -> Arc<ScalarUDF> {
    static ALL: LazyLock<Vec<(Name, Arc<ScalarUDF>)>> = LazyLock::new(|| {
        Name::ALL.iter().map(|n| (*n, Arc::new(ScalarUDF::new_from_impl(FlowFunction::new(*n))))).collect()
    });
    match ALL.iter().find(|(n, _)| *n == name) {
        Some((_, f)) => f.clone(),
        None => Arc::new(ScalarUDF::new_from_impl(FlowFunction::new(name))),
    }
}

/// Type of the time columns.
pub(crate) fn time_type() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

impl FlowFunction {
    fn new(name: Name) -> FlowFunction {
        let (ip, mac) = (Kind::Ip.data_type(), Kind::Mac.data_type());
        // Where an address is taken, its text is as well.
        let args = match name {
            Name::Ip | Name::Mac => vec![vec![DataType::Utf8]],
            Name::IpText => vec![vec![ip], vec![DataType::Utf8]],
            Name::MacText => vec![vec![mac], vec![DataType::Utf8]],
            Name::InCidr => vec![vec![ip, DataType::Utf8], vec![DataType::Utf8, DataType::Utf8]],
            Name::Protocol | Name::DnsType | Name::Rcode => vec![vec![DataType::Int64]],
            Name::Port => vec![vec![DataType::Int64], vec![DataType::Int64, DataType::Int64]],
            Name::CommunityId => community_id_args(&ip),
            Name::TStart => vec![vec![time_type(), DataType::Int64]],
        };
        let args = args.into_iter().map(TypeSignature::Exact).collect();
        FlowFunction { name, signature: Signature::one_of(args, Volatility::Immutable) }
    }
}

impl ScalarUDFImpl for FlowFunction {
    fn name(&self) -> &str {
        self.name.as_str()
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(match self.name {
            Name::Ip => Kind::Ip.data_type(),
            Name::Mac => Kind::Mac.data_type(),
            Name::IpText
            | Name::MacText
            | Name::Protocol
            | Name::CommunityId
            | Name::DnsType
            | Name::Rcode
            | Name::Port => DataType::Utf8,
            Name::InCidr => DataType::Boolean,
            Name::TStart => time_type(),
        })
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let all_scalar = args.args.iter().all(|a| matches!(a, ColumnarValue::Scalar(_)));
        let rows = if all_scalar { 1 } else { args.number_rows };
        let arrays = args.args.iter().map(|a| a.to_array(rows)).collect::<Result<Vec<_>>>()?;
        let result = match self.name {
            Name::Ip => parse_each(&arrays[0], Kind::Ip)?,
            Name::Mac => parse_each(&arrays[0], Kind::Mac)?,
            Name::IpText => text_each(&as_addresses(&arrays[0], Kind::Ip)?, Kind::Ip),
            Name::MacText => text_each(&as_addresses(&arrays[0], Kind::Mac)?, Kind::Mac),
            Name::InCidr => in_cidr(&as_addresses(&arrays[0], Kind::Ip)?, &arrays[1])?,
            Name::Protocol => names(&arrays[0], |n| u8::try_from(n).ok().and_then(proto_name), ""),
            Name::CommunityId => community_ids(&arrays)?,
            Name::DnsType => names(&arrays[0], dns_type_name, "TYPE"),
            Name::Rcode => names(&arrays[0], rcode_name, ""),
            Name::Port => port_names(&arrays[0], arrays.get(1)),
            Name::TStart => t_start(&arrays[0], &arrays[1]),
        };
        if all_scalar {
            return ScalarValue::try_from_array(&result, 0).map(ColumnarValue::Scalar);
        }
        Ok(ColumnarValue::Array(result))
    }
}

fn as_addresses(values: &ArrayRef, kind: Kind) -> Result<ArrayRef> {
    match values.data_type() {
        DataType::Utf8 => parse_each(values, kind),
        _ => Ok(values.clone()),
    }
}

fn parse_each(texts: &ArrayRef, kind: Kind) -> Result<ArrayRef> {
    let mut out = FixedSizeBinaryBuilder::with_capacity(texts.len(), kind.width());
    for text in texts.as_string::<i32>() {
        match text {
            Some(text) => out.append_value(address::parse(kind, text)?)?,
            None => out.append_null(),
        }
    }
    Ok(Arc::new(out.finish()))
}

fn text_each(addresses: &ArrayRef, kind: Kind) -> ArrayRef {
    let addresses = addresses.as_fixed_size_binary();
    let mut out = StringBuilder::with_capacity(addresses.len(), addresses.len() * 16);
    for bytes in addresses {
        out.append_option(bytes.and_then(|b| kind.to_text(b)));
    }
    Arc::new(out.finish())
}

fn in_cidr(addresses: &ArrayRef, blocks: &ArrayRef) -> Result<ArrayRef> {
    let addresses = addresses.as_fixed_size_binary();
    let mut out = BooleanBuilder::with_capacity(addresses.len());
    // Blocks repeat: the text of one row is almost always that of the row before.
    let mut last: Option<(&str, Prefix)> = None;
    for (bytes, text) in addresses.iter().zip(blocks.as_string::<i32>()) {
        let (Some(bytes), Some(text)) = (bytes.and_then(|b| <[u8; 16]>::try_from(b).ok()), text) else {
            out.append_null();
            continue;
        };
        let block = match last {
            Some((same, block)) if same == text => block,
            _ => address::parse_block(text)?,
        };
        last = Some((text, block));
        out.append_value(block.contains(Addr(bytes)));
    }
    Ok(Arc::new(out.finish()))
}

fn t_start(ends: &ArrayRef, durations: &ArrayRef) -> ArrayRef {
    let ends = ends.as_primitive::<TimestampMicrosecondType>();
    let durations = durations.as_primitive::<Int64Type>();
    let starts: TimestampMicrosecondArray =
        ends.iter().zip(durations).map(|(end, dur)| Some(end?.saturating_sub(dur?))).collect();
    Arc::new(starts.with_timezone("UTC"))
}

/// The name of each number; `prefix` and the number where there is none.
fn names(numbers: &ArrayRef, name: impl Fn(i64) -> Option<&'static str>, prefix: &str) -> ArrayRef {
    let numbers = numbers.as_primitive::<Int64Type>();
    let mut out = StringBuilder::with_capacity(numbers.len(), numbers.len() * 4);
    for number in numbers {
        match number {
            None => out.append_null(),
            Some(n) => match name(n) {
                Some(name) => out.append_value(name),
                None => out.append_value(format!("{prefix}{n}")),
            },
        }
    }
    Arc::new(out.finish())
}

/// The name of each port; the number where there is none, null where port or protocol is.
fn port_names(ports: &ArrayRef, protos: Option<&ArrayRef>) -> ArrayRef {
    let ports = ports.as_primitive::<Int64Type>();
    let protos = protos.map(|protos| protos.as_primitive::<Int64Type>());
    let mut out = StringBuilder::with_capacity(ports.len(), ports.len() * 6);
    for (row, port) in ports.iter().enumerate() {
        let proto = protos.map(|protos| protos.is_valid(row).then(|| protos.value(row)));
        match (port, proto) {
            (None, _) | (_, Some(None)) => out.append_null(),
            (Some(port), proto) => {
                let proto = proto.flatten().and_then(|n| u8::try_from(n).ok());
                match u16::try_from(port).ok().and_then(|port| port_name(port, proto)) {
                    Some(name) => out.append_value(name),
                    None => out.append_value(port.to_string()),
                }
            }
        }
    }
    Arc::new(out.finish())
}

/// Five arguments, or with type and code, and each of these with a seed; addresses also as text.
fn community_id_args(ip: &DataType) -> Vec<Vec<DataType>> {
    let text = &DataType::Utf8;
    let mut all = Vec::new();
    for numbers in [3, 4, 5, 6] {
        // Text last: the planner takes an address for something that could become text.
        for [src, dst] in [[ip, ip], [ip, text], [text, ip], [text, text]] {
            let mut args = vec![src.clone(), dst.clone()];
            args.extend(std::iter::repeat_n(DataType::Int64, numbers));
            all.push(args);
        }
    }
    all
}

/// Null where an address, a port or the protocol is, or is no such number. The type and code of a flow that is not
/// ICMP are null in `flows`, and do not matter.
fn community_ids(args: &[ArrayRef]) -> Result<ArrayRef> {
    let [src, dst] = [as_addresses(&args[0], Kind::Ip)?, as_addresses(&args[1], Kind::Ip)?];
    let (src, dst) = (src.as_fixed_size_binary(), dst.as_fixed_size_binary());
    let numbers: Vec<_> = args[2..].iter().map(|arg| arg.as_primitive::<Int64Type>()).collect();
    let number = |at: usize, row: usize| numbers.get(at).filter(|n| n.is_valid(row)).map(|n| n.value(row));
    let port = |at: usize, row: usize| number(at, row).and_then(|n| u16::try_from(n).ok());
    let address = |of: &FixedSizeBinaryArray, row: usize| {
        of.is_valid(row).then(|| of.value(row)).and_then(|bytes| <[u8; 16]>::try_from(bytes).ok()).map(Addr)
    };
    let has_icmp = numbers.len() >= 5;
    let seed_at = match numbers.len() {
        4 => Some(3),
        6 => Some(5),
        _ => None,
    };
    let id = |row: usize| {
        let proto = number(2, row).and_then(|n| u8::try_from(n).ok())?;
        let small = |at: usize| number(at, row).and_then(|n| u8::try_from(n).ok());
        let icmp = if has_icmp { small(3).zip(small(4)) } else { None };
        let (src_port, dst_port) = port(0, row).zip(port(1, row))?;
        let seed = match seed_at {
            Some(at) => port(at, row)?,
            None => 0,
        };
        let (src, dst) = (address(src, row)?, address(dst, row)?);
        Some(community_id(seed, (src, src_port), (dst, dst_port), proto, icmp))
    };
    let mut out = StringBuilder::with_capacity(src.len(), src.len() * 30);
    (0..src.len()).for_each(|row| out.append_option(id(row)));
    Ok(Arc::new(out.finish()))
}

/// Names of IANA's registry of DNS resource record types; those one meets on a wire.
fn dns_type_name(number: i64) -> Option<&'static str> {
    Some(match number {
        1 => "A",
        2 => "NS",
        5 => "CNAME",
        6 => "SOA",
        12 => "PTR",
        13 => "HINFO",
        15 => "MX",
        16 => "TXT",
        28 => "AAAA",
        29 => "LOC",
        33 => "SRV",
        35 => "NAPTR",
        36 => "KX",
        37 => "CERT",
        39 => "DNAME",
        41 => "OPT",
        43 => "DS",
        44 => "SSHFP",
        45 => "IPSECKEY",
        46 => "RRSIG",
        47 => "NSEC",
        48 => "DNSKEY",
        50 => "NSEC3",
        51 => "NSEC3PARAM",
        52 => "TLSA",
        53 => "SMIMEA",
        59 => "CDS",
        60 => "CDNSKEY",
        61 => "OPENPGPKEY",
        64 => "SVCB",
        65 => "HTTPS",
        99 => "SPF",
        108 => "EUI48",
        109 => "EUI64",
        249 => "TKEY",
        250 => "TSIG",
        251 => "IXFR",
        252 => "AXFR",
        255 => "ANY",
        256 => "URI",
        257 => "CAA",
        _ => return None,
    })
}

/// Names of IANA's registry of DNS response codes.
fn rcode_name(number: i64) -> Option<&'static str> {
    Some(match number {
        0 => "NOERROR",
        1 => "FORMERR",
        2 => "SERVFAIL",
        3 => "NXDOMAIN",
        4 => "NOTIMP",
        5 => "REFUSED",
        6 => "YXDOMAIN",
        7 => "YXRRSET",
        8 => "NXRRSET",
        9 => "NOTAUTH",
        10 => "NOTZONE",
        11 => "DSOTYPENI",
        16 => "BADVERS",
        17 => "BADKEY",
        18 => "BADTIME",
        19 => "BADMODE",
        20 => "BADNAME",
        21 => "BADALG",
        22 => "BADTRUNC",
        23 => "BADCOOKIE",
        _ => return None,
    })
}

/// Names of IANA's registry of protocol numbers, in small letters; those one meets on a wire.
fn proto_name(number: u8) -> Option<&'static str> {
    Some(match number {
        0 => "hopopt",
        1 => "icmp",
        2 => "igmp",
        4 => "ipv4",
        6 => "tcp",
        8 => "egp",
        9 => "igp",
        17 => "udp",
        33 => "dccp",
        41 => "ipv6",
        43 => "ipv6-route",
        44 => "ipv6-frag",
        46 => "rsvp",
        47 => "gre",
        50 => "esp",
        51 => "ah",
        58 => "ipv6-icmp",
        59 => "ipv6-nonxt",
        60 => "ipv6-opts",
        88 => "eigrp",
        89 => "ospf",
        94 => "ipip",
        97 => "etherip",
        103 => "pim",
        108 => "ipcomp",
        112 => "vrrp",
        115 => "l2tp",
        132 => "sctp",
        135 => "mobility",
        136 => "udplite",
        137 => "mpls-in-ip",
        139 => "hip",
        140 => "shim6",
        _ => return None,
    })
}

/// The number of a protocol, so that `proto = 'tcp'` reads as people say it.
pub(crate) fn proto_number(name: &str) -> Option<u8> {
    let name = name.to_ascii_lowercase();
    let alias = match name.as_str() {
        "icmpv6" | "icmp6" => "ipv6-icmp",
        "ospfigp" => "ospf",
        other => other,
    };
    (0..=u8::MAX).find(|n| proto_name(*n) == Some(alias))
}
