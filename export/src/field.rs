//! The information elements we export, each with what it says of a record: one line here is a line of a template and
//! the bytes of every record under it, so that they cannot disagree.

use crate::config::TimeUnit;
use flowtable::FlowRecord;
use wire::{Nanos, Tunnel};

/// Private enterprise number of reverse elements (RFC 5103 section 6.1).
pub(crate) const REVERSE_PEN: u32 = 29_305;
/// Length of a field whose length each record says (RFC 7011 section 7).
pub(crate) const VARIABLE: u16 = 65_535;

/// One field of a template.
#[derive(Clone, Copy)]
pub(crate) struct Field {
    /// Number in the IANA registry of IPFIX elements.
    pub(crate) element: u16,
    /// It tells about the responder's packets: the element's number under [`REVERSE_PEN`].
    pub(crate) reverse: bool,
    /// Bytes, or [`VARIABLE`]. Shorter than the element's type where our value is (RFC 7011 section 6.2).
    pub(crate) length: u16,
    /// Appends so many bytes.
    pub(crate) put: fn(&FlowRecord, &mut Vec<u8>),
}

const fn field(element: u16, length: u16, put: fn(&FlowRecord, &mut Vec<u8>)) -> Field {
    Field { element, reverse: false, length, put }
}

const fn reverse(element: u16, length: u16, put: fn(&FlowRecord, &mut Vec<u8>)) -> Field {
    Field { element, reverse: true, length, put }
}

macro_rules! big_endian {
    ($out:ident, $value:expr) => {
        $out.extend_from_slice(&$value.to_be_bytes())
    };
}

/// sourceIPv4Address, destinationIPv4Address.
pub(crate) const ADDRESSES_V4: [Field; 2] = [
    field(8, 4, |r, out| out.extend_from_slice(&r.src_ip.0[12..])),
    field(12, 4, |r, out| out.extend_from_slice(&r.dst_ip.0[12..])),
];

/// sourceIPv6Address, destinationIPv6Address.
pub(crate) const ADDRESSES_V6: [Field; 2] = [
    field(27, 16, |r, out| out.extend_from_slice(&r.src_ip.0)),
    field(28, 16, |r, out| out.extend_from_slice(&r.dst_ip.0)),
];

/// sourceTransportPort, destinationTransportPort.
pub(crate) const PORTS: [Field; 2] =
    [field(7, 2, |r, out| big_endian!(out, r.src_port)), field(11, 2, |r, out| big_endian!(out, r.dst_port))];

/// icmpTypeCodeIPv4: type * 256 + code.
pub(crate) const ICMP_V4: [Field; 1] = [field(32, 2, put_icmp)];
/// icmpTypeCodeIPv6.
pub(crate) const ICMP_V6: [Field; 1] = [field(139, 2, put_icmp)];

fn put_icmp(record: &FlowRecord, out: &mut Vec<u8>) {
    let (kind, code) = record.icmp.unwrap_or_default();
    out.extend_from_slice(&[kind, code]);
}

/// Start and end.
pub(crate) const fn times(unit: TimeUnit) -> [Field; 2] {
    match unit {
        TimeUnit::Milliseconds => [
            field(152, 8, |r, out| big_endian!(out, r.start.0 / 1_000_000)),
            field(153, 8, |r, out| big_endian!(out, r.end.0 / 1_000_000)),
        ],
        TimeUnit::Microseconds => [
            field(154, 8, |r, out| big_endian!(out, ntp_micros(r.start))),
            field(155, 8, |r, out| big_endian!(out, ntp_micros(r.end))),
        ],
        TimeUnit::Nanoseconds => [
            field(156, 8, |r, out| big_endian!(out, ntp_nanos(r.start))),
            field(157, 8, |r, out| big_endian!(out, ntp_nanos(r.end))),
        ],
    }
}

/// What every record has, whatever its addresses and protocol.
pub(crate) const COMMON: [Field; 22] = [
    // protocolIdentifier
    field(4, 1, |r, out| out.push(r.proto)),
    // octetDeltaCount, packetDeltaCount
    field(1, 8, |r, out| big_endian!(out, r.bytes_o)),
    field(2, 8, |r, out| big_endian!(out, r.pkts_o)),
    reverse(1, 8, |r, out| big_endian!(out, r.bytes_r)),
    reverse(2, 8, |r, out| big_endian!(out, r.pkts_r)),
    // tcpControlBits: one byte of the element's two, as RFC 7125 allows.
    field(6, 1, |r, out| out.push(r.flags_o)),
    reverse(6, 1, |r, out| out.push(r.flags_r)),
    // flowEndReason: ours are its numbers.
    field(136, 1, |r, out| out.push(r.end_reason as u8)),
    // biflowDirection 1: the source is the initiator (RFC 5103 section 6.3).
    field(239, 1, |_, out| out.push(1)),
    // ipTTL of the first packet
    field(192, 1, |r, out| out.push(r.ttl_o)),
    reverse(192, 1, |r, out| out.push(r.ttl_r)),
    // ipDiffServCodePoint
    field(195, 1, |r, out| out.push(r.dscp)),
    // dot1qVlanId, dot1qCustomerVlanId; 0 for none
    field(243, 2, |r, out| big_endian!(out, r.vlan)),
    field(245, 2, |r, out| big_endian!(out, r.vlan_inner)),
    // sourceMacAddress, destinationMacAddress; zeros where the link has none
    field(56, 6, |r, out| out.extend_from_slice(&r.src_mac.unwrap_or_default().0)),
    field(80, 6, |r, out| out.extend_from_slice(&r.dst_mac.unwrap_or_default().0)),
    // layer2SegmentId
    field(351, 8, |r, out| big_endian!(out, segment_id(r))),
    // observationPointId: taps in their order, from 1
    field(138, 4, |r, out| big_endian!(out, (u32::from(r.tap.0) + 1))),
    // flowId
    field(148, 8, |r, out| big_endian!(out, r.flow_id)),
    // applicationName; empty where it is not known
    field(96, VARIABLE, |r, out| {
        let name = r.app.name().unwrap_or_default();
        // Names are ours and a few letters long: below 255 the length is one byte.
        debug_assert!(name.len() < 255);
        out.push(name.len() as u8);
        out.extend_from_slice(name.as_bytes());
    }),
    // ingressInterface: the tap once more, since many tools show and filter only this
    field(10, 4, |r, out| big_endian!(out, (u32::from(r.tap.0) + 1))),
    // ipVersion of the flow's addresses
    field(60, 1, |r, out| out.push(if is_v4(r) { 4 } else { 6 })),
];

/// Whether both addresses are IPv4. Records hold them mapped into IPv6; a collector gets them as they were.
pub(crate) fn is_v4(record: &FlowRecord) -> bool {
    record.src_ip.is_v4() && record.dst_ip.is_v4()
}

/// Encapsulation in the highest byte, the segment in the lowest three (IANA, layer2SegmentId); 1 is VXLAN, and the
/// registry has no number for the other tunnels we see into.
fn segment_id(record: &FlowRecord) -> u64 {
    match record.tunnel {
        Tunnel::Vxlan => 1 << 56 | u64::from(record.tunnel_id & 0x00ff_ffff),
        _ => 0,
    }
}

/// Seconds from 1900, NTP's epoch, to 1970.
const NTP_TO_UNIX: u64 = 2_208_988_800;
const NANOS: u64 = 1_000_000_000;

/// dateTimeNanoseconds (RFC 7011 section 6.1.10): seconds since 1900 modulo 2^32, and a fraction of 2^32. Rounded up, so
/// that a reader who rounds down finds the nanosecond.
fn ntp_nanos(time: Nanos) -> u64 {
    let seconds = (time.0 / NANOS + NTP_TO_UNIX) & 0xffff_ffff;
    let fraction = ((time.0 % NANOS) << 32).div_ceil(NANOS);
    seconds << 32 | fraction
}

/// dateTimeMicroseconds (RFC 7011 section 6.1.9): the same, the lowest 11 bits of the fraction zero.
fn ntp_micros(time: Nanos) -> u64 {
    let micros = Nanos(time.0 / 1000 * 1000);
    // 999,999 microseconds are far enough below the next second for this not to carry.
    (ntp_nanos(micros) + 0x7ff) & !0x7ff
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ntp_times_come_back_to_the_last_digit() {
        let back = |ntp: u64, per_second: u64| {
            let fraction = (u128::from(ntp & 0xffff_ffff) * u128::from(per_second)) >> 32;
            ((ntp >> 32) + (1 << 32) - NTP_TO_UNIX) % (1 << 32) * per_second + fraction as u64
        };
        for seconds in [0, 1, 1_700_000_000, 2_085_978_495, 2_085_978_496, 4_000_000_000] {
            for nanos in [0, 1, 999, 1000, 1001, 499_999_999, 500_000_000, 999_999_000, 999_999_999] {
                let time = Nanos(seconds * NANOS + nanos);
                assert_eq!(back(ntp_nanos(time), NANOS), time.0, "{seconds} {nanos}");
                let micros = ntp_micros(time);
                assert_eq!(micros & 0x7ff, 0);
                assert_eq!(back(micros, 1_000_000), time.as_micros(), "{seconds} {nanos}");
            }
        }
        // 1 January 1970, half a second past.
        assert_eq!(ntp_nanos(Nanos(500_000_000)), 2_208_988_800 << 32 | 0x8000_0000);
    }

    #[test]
    fn every_field_writes_the_bytes_it_announces() {
        let record = FlowRecord::default();
        let all = [&ADDRESSES_V4[..], &ADDRESSES_V6, &PORTS, &ICMP_V4, &ICMP_V6, &COMMON];
        let units = [TimeUnit::Milliseconds, TimeUnit::Microseconds, TimeUnit::Nanoseconds].map(times);
        for field in all.into_iter().flatten().chain(units.as_flattened()) {
            let mut out = Vec::new();
            (field.put)(&record, &mut out);
            match field.length {
                VARIABLE => assert_eq!(out.len(), 1 + usize::from(out[0])),
                length => assert_eq!(out.len(), usize::from(length), "element {}", field.element),
            }
        }
    }
}
