//! Flows under the names of the Elastic Common Schema: network events, as Filebeat or Packetbeat would send them.
//!
//! Fields that ECS does not have stand under `taphouse`; `flow.id` and `flow.final` are Packetbeat's. Bytes are those of IP.

use super::flow::{Document, FlowRow};
use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Value, json};
use wire::{Mac, proto};

/// The version of ECS whose names these are.
const ECS_VERSION: &str = "8.17.0";

pub(super) fn line(row: &FlowRow<'_>) -> String {
    let mut d = Document::default();
    d.set("@timestamp", row.end().map(time));
    d.set("ecs.version", Some(ECS_VERSION));
    event(row, &mut d);
    for (side, ip, port, mac, packets, bytes) in [
        ("source", "src_ip", "src_port", "src_mac", "pkts_o", "bytes_o"),
        ("destination", "dst_ip", "dst_port", "dst_mac", "pkts_r", "bytes_r"),
    ] {
        d.set(&format!("{side}.address"), row.text(ip));
        d.set(&format!("{side}.ip"), row.text(ip));
        d.set(&format!("{side}.port"), row.port(port));
        d.set(&format!("{side}.mac"), row.mac(mac).map(hyphens));
        d.set(&format!("{side}.packets"), row.count(packets));
        d.set(&format!("{side}.bytes"), row.count(bytes));
    }
    network(row, &mut d);
    application(row, &mut d);
    let ends: Vec<Value> = ["src_ip", "dst_ip"].into_iter().filter_map(|ip| row.text(ip).map(Value::from)).collect();
    let differ = ends.len() < 2 || ends[0] != ends[1];
    d.set("related.ip", (!ends.is_empty()).then(|| if differ { ends.clone() } else { vec![ends[0].clone()] }));
    let is_http = row.text("app").as_deref() == Some("http");
    let host = |name: String| if is_http { split_host(&name).0.to_owned() } else { name };
    d.set("related.hosts", row.text("name").map(|name| json!([host(name)])));
    d.set("observer.product", Some("Taphouse"));
    d.set("observer.type", Some("sensor"));
    d.set("observer.name", row.text("tap"));
    d.set("observer.ingress.interface.alias", row.text("tap"));
    own(row, &mut d);
    d.into_line()
}

fn event(row: &FlowRow<'_>, d: &mut Document) {
    let (id, part) = (row.text("flow_id"), row.count("part"));
    let goes_on = row.text("end_reason").map(|reason| reason == "active");
    d.set("event.kind", Some("event"));
    d.set("event.category", Some(json!(["network"])));
    let kind = if goes_on == Some(false) { json!(["connection", "end"]) } else { json!(["connection"]) };
    d.set("event.type", Some(kind));
    d.set("event.action", Some("network_flow"));
    d.set("event.module", Some("taphouse"));
    d.set("event.dataset", Some("taphouse.flow"));
    d.set("event.id", id.as_ref().zip(part).map(|(id, part)| format!("{id}-{part}")));
    d.set("event.start", row.start().map(time));
    d.set("event.end", row.end().map(time));
    d.set("event.duration", row.count("dur_us").and_then(|us| us.checked_mul(1000)));
    d.set("event.reason", row.text("end_reason"));
    d.set("flow.id", id);
    d.set("flow.final", goes_on.map(|goes_on| !goes_on));
}

fn network(row: &FlowRow<'_>, d: &mut Document) {
    let protocol: Option<u8> = row.small("proto");
    d.set("network.type", row.is_v4().map(|v4| if v4 { "ipv4" } else { "ipv6" }));
    d.set("network.iana_number", protocol.map(|p| p.to_string()));
    d.set("network.transport", protocol.and_then(transport));
    d.set("network.protocol", row.text("app"));
    d.set("network.packets", row.sum("pkts_o", "pkts_r"));
    d.set("network.bytes", row.sum("bytes_o", "bytes_r"));
    d.set("network.community_id", row.community_id());
    d.set("network.vlan.id", row.text("vlan"));
    d.set("network.inner.vlan.id", row.text("vlan_inner"));
}

/// What the first payloads said, under the name that depends on what was spoken.
fn application(row: &FlowRow<'_>, d: &mut Document) {
    let app = row.text("app").unwrap_or_default();
    match app.as_str() {
        "tls" | "quic" => {
            d.set("tls.client.server_name", row.text("name"));
            d.set("tls.client.ja4", row.text("ja4"));
            d.set("tls.next_protocol", row.text("alpn"));
        }
        "http" => {
            let name = row.text("name");
            let (domain, port) = name.as_deref().map(split_host).unzip();
            d.set("url.domain", domain);
            d.set("url.port", port.flatten());
            d.set("user_agent.original", row.text("agent"));
        }
        "dns" | "mdns" => d.set("dns.question.name", row.text("name")),
        _ => {
            d.set("taphouse.name", row.text("name"));
            d.set("taphouse.agent", row.text("agent"));
        }
    }
}

/// A `Host`, which may name a port (RFC 9110 section 7.2). An IPv6 address keeps its brackets, as `url.domain` wants it.
fn split_host(host: &str) -> (&str, Option<u16>) {
    match host.rsplit_once(':') {
        Some((domain, port)) if !domain.is_empty() && (domain.ends_with(']') || !domain.contains(':')) => {
            match port.parse() {
                Ok(port) => (domain, Some(port)),
                Err(_) => (if port.is_empty() { domain } else { host }, None),
            }
        }
        _ => (host, None),
    }
}

/// What ECS has no name for.
fn own(row: &FlowRow<'_>, d: &mut Document) {
    d.set("taphouse.part", row.count("part"));
    if let Some((tunnel, id)) = row.tunnel() {
        d.set("taphouse.tunnel", Some(tunnel));
        d.set("taphouse.tunnel_id", id);
    }
    for name in ["icmp_type", "icmp_code", "rtt_us", "rtt_srv_us", "rtt_cli_us"] {
        d.set(&format!("taphouse.{name}"), row.count(name));
    }
    d.set("taphouse.conn_state", row.text("conn_state"));
    if row.small("proto") == Some(proto::TCP) {
        for name in ["flags_o", "flags_r", "retrans_o", "retrans_r", "ooo_o", "ooo_r", "lost_o", "lost_r"] {
            d.set(&format!("taphouse.{name}"), row.count(name));
        }
    }
}

fn time(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Micros, true)
}

/// `00-00-5E-00-53-23`, as ECS asks for (RFC 7042).
fn hyphens(mac: Mac) -> String {
    mac.to_string().replace(':', "-").to_uppercase()
}

/// IANA's keyword in lower case.
fn transport(protocol: u8) -> Option<&'static str> {
    Some(match protocol {
        proto::ICMP => "icmp",
        2 => "igmp",
        proto::IPV4 => "ipv4",
        proto::TCP => "tcp",
        proto::UDP => "udp",
        proto::DCCP => "dccp",
        proto::IPV6 => "ipv6",
        46 => "rsvp",
        proto::GRE => "gre",
        proto::ESP => "esp",
        proto::AH => "ah",
        proto::ICMPV6 => "ipv6-icmp",
        88 => "eigrp",
        89 => "ospf",
        103 => "pim",
        112 => "vrrp",
        proto::SCTP => "sctp",
        proto::UDP_LITE => "udplite",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::split_host;

    #[test]
    fn hosts_and_their_ports() {
        for (host, domain, port) in [
            ("example.com", "example.com", None),
            ("example.com:8080", "example.com", Some(8080)),
            ("192.0.2.1:80", "192.0.2.1", Some(80)),
            ("[2001:db8::1]:443", "[2001:db8::1]", Some(443)),
            ("[2001:db8::1]", "[2001:db8::1]", None),
            ("2001:db8::1", "2001:db8::1", None),
            ("example.com:", "example.com", None),
            ("example.com:http", "example.com:http", None),
            ("example.com:99999", "example.com:99999", None),
            (":80", ":80", None),
        ] {
            assert_eq!(split_host(host), (domain, port), "{host}");
        }
    }
}
