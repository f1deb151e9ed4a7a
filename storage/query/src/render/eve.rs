//! Flows as `flow` events of Suricata's EVE log.
//!
//! `toserver` is the originator's direction. Bytes are those of IP, Suricata's are those of frames. What EVE has no name
//! for stands under `taphouse`.

use super::flow::{Document, FlowRow};
use chrono::{DateTime, Utc};
use wire::proto;

/// Suricata's flow ids have 51 bits, so that a reader with doubles keeps them; so do these. `taphouse.flow_id` is whole.
const FLOW_ID_MASK: u64 = (1 << 51) - 1;

pub(super) fn line(row: &FlowRow<'_>) -> String {
    let mut d = Document::default();
    let protocol: Option<u8> = row.small("proto");
    d.set("timestamp", row.end().map(time));
    d.set("flow_id", row.count("flow_id").map(|id| id & FLOW_ID_MASK));
    d.set("in_iface", row.text("tap"));
    d.set("event_type", Some("flow"));
    let vlans: Vec<u64> = ["vlan", "vlan_inner"].into_iter().filter_map(|name| row.count(name)).collect();
    d.set("vlan", (!vlans.is_empty()).then_some(vlans));
    d.set("src_ip", row.text("src_ip"));
    d.set("src_port", row.port("src_port"));
    d.set("dest_ip", row.text("dst_ip"));
    d.set("dest_port", row.port("dst_port"));
    d.set("ip_v", row.is_v4().map(|v4| if v4 { 4 } else { 6 }));
    d.set("proto", protocol.map(protocol_name));
    d.set("icmp_type", row.icmp().map(|(kind, _)| kind));
    d.set("icmp_code", row.icmp().map(|(_, code)| code));
    d.set("app_proto", row.text("app"));
    flow(row, &mut d);
    d.set("community_id", row.community_id());
    if protocol == Some(proto::TCP) {
        tcp(row, &mut d);
    }
    d.set("taphouse.flow_id", row.text("flow_id"));
    d.set("taphouse.part", row.count("part"));
    d.set("taphouse.end_reason", row.text("end_reason"));
    if let Some((tunnel, id)) = row.tunnel() {
        d.set("taphouse.tunnel", Some(tunnel));
        d.set("taphouse.tunnel_id", id);
    }
    for name in ["name", "alpn", "agent", "ja4"] {
        d.set(&format!("taphouse.{name}"), row.text(name));
    }
    d.into_line()
}

fn flow(row: &FlowRow<'_>, d: &mut Document) {
    d.set("flow.pkts_toserver", row.count("pkts_o"));
    d.set("flow.pkts_toclient", row.count("pkts_r"));
    d.set("flow.bytes_toserver", row.count("bytes_o"));
    d.set("flow.bytes_toclient", row.count("bytes_r"));
    let (start, end) = (row.start(), row.end());
    d.set("flow.start", start.map(time));
    d.set("flow.end", end.map(time));
    // Suricata subtracts the whole seconds.
    d.set("flow.age", start.zip(end).map(|(start, end)| end.timestamp() - start.timestamp()));
    d.set("flow.state", Some(flow_state(row)));
    let reason = row.text("end_reason");
    d.set("flow.reason", reason.as_deref().map(reason_name));
    d.set("flow.alerted", Some(false));
}

/// `new` before an answer, `closed` after RST or FIN from both sides, `established` between.
fn flow_state(row: &FlowRow<'_>) -> &'static str {
    let is_answered = row.count("pkts_r").unwrap_or(0) > 0;
    match (row.text("tcp_state").as_deref(), row.text("conn_state").as_deref()) {
        (Some("closed" | "time_wait"), _) => "closed",
        (_, Some("SF" | "REJ" | "RSTO" | "RSTR" | "RSTOS0" | "RSTRH")) => "closed",
        (_, Some("S0")) => "new",
        (_, Some("SH" | "SHR")) if !is_answered || row.count("pkts_o") == Some(0) => "new",
        (_, None) if !is_answered => "new",
        _ => "established",
    }
}

/// Why a flow ended, in Suricata's words; it knows no parts of a flow that goes on.
fn reason_name(reason: &str) -> &'static str {
    match reason {
        "idle" | "closed" => "timeout",
        "shutdown" => "shutdown",
        "evicted" => "forced",
        _ => "unknown",
    }
}

fn tcp(row: &FlowRow<'_>, d: &mut Document) {
    let (Some(ts), Some(tc)) = (row.small::<u8>("flags_o"), row.small::<u8>("flags_r")) else { return };
    d.set("tcp.tcp_flags", Some(format!("{:02x}", ts | tc)));
    d.set("tcp.tcp_flags_ts", Some(format!("{ts:02x}")));
    d.set("tcp.tcp_flags_tc", Some(format!("{tc:02x}")));
    let names = ["fin", "syn", "rst", "psh", "ack", "urg", "ecn", "cwr"];
    for (bit, name) in names.into_iter().enumerate() {
        // Flags that were not seen are left out.
        d.set(&format!("tcp.{name}"), ((ts | tc) >> bit & 1 == 1).then_some(true));
    }
    d.set("tcp.state", tcp_state(row));
}

/// The connection's last state. The column is newer than others; Zeek's state tells most of it.
fn tcp_state(row: &FlowRow<'_>) -> Option<&'static str> {
    if let Some(state) = row.text("tcp_state") {
        return Some(match state.as_str() {
            "syn_sent" => "syn_sent",
            "syn_received" => "syn_recv",
            "established" => "established",
            "fin_wait" => "fin_wait1",
            "close_wait" => "close_wait",
            "time_wait" => "time_wait",
            "closed" => "closed",
            _ => return None,
        });
    }
    Some(match row.text("conn_state")?.as_str() {
        "S0" => "syn_sent",
        "S1" | "OTH" => "established",
        "S2" | "SH" => "fin_wait1",
        "S3" | "SHR" => "close_wait",
        "SF" | "REJ" | "RSTO" | "RSTR" | "RSTOS0" | "RSTRH" => "closed",
        _ => return None,
    })
}

fn time(time: DateTime<Utc>) -> String {
    time.format("%Y-%m-%dT%H:%M:%S%.6f%z").to_string()
}

/// Names of protocols as Suricata writes them; a number in three digits for others.
fn protocol_name(protocol: u8) -> String {
    let name = match protocol {
        proto::ICMP => "ICMP",
        2 => "IGMP",
        proto::TCP => "TCP",
        proto::UDP => "UDP",
        proto::DCCP => "DCCP",
        proto::GRE => "GRE",
        proto::ESP => "ESP",
        proto::AH => "AH",
        proto::ICMPV6 => "IPv6-ICMP",
        proto::SCTP => "SCTP",
        _ => return format!("{protocol:03}"),
    };
    name.to_owned()
}
