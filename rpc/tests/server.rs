//! Status, health, reflection, metrics, and what a newcomer's first errors say.

mod common;

use common::{Fixture, record, status};
use rpc::metrics::{self, Method, QueryMetrics};
use rpc::{HttpServices, RpcError};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

#[tokio::test]
async fn status_is_what_the_server_supplied() {
    let mut fixture = Fixture::start(&[]).await;
    assert_eq!(fixture.client.status().await.unwrap(), status());
}

#[tokio::test]
async fn health_answers_for_each_service() {
    let fixture = Fixture::start(&[]).await;
    let mut health = HealthClient::new(fixture.channel().await);
    for service in [
        "",
        "taphouse.v1.FlowService",
        "taphouse.v1.AlertService",
        "taphouse.v1.CaptureService",
        "arrow.flight.protocol.FlightService",
    ] {
        let answer = health.check(HealthCheckRequest { service: service.into() }).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{service}");
    }
    let status = health.check(HealthCheckRequest { service: "nothing".into() }).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
}

macro_rules! reflected_services {
    ($version:ident, $fixture:expr) => {{
        use tonic_reflection::pb::$version::ServerReflectionRequest;
        use tonic_reflection::pb::$version::server_reflection_client::ServerReflectionClient;
        use tonic_reflection::pb::$version::server_reflection_request::MessageRequest;
        use tonic_reflection::pb::$version::server_reflection_response::MessageResponse;
        let mut client = ServerReflectionClient::new($fixture.channel().await);
        let request = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::ListServices(String::new())),
        };
        let mut answers = client.server_reflection_info(tokio_stream::once(request)).await.unwrap().into_inner();
        match answers.message().await.unwrap().unwrap().message_response.unwrap() {
            MessageResponse::ListServicesResponse(list) => {
                list.service.into_iter().map(|service| service.name).collect::<Vec<_>>()
            }
            other => panic!("{other:?}"),
        }
    }};
}

#[tokio::test]
async fn reflection_lists_every_service() {
    let fixture = Fixture::start(&[]).await;
    for services in [reflected_services!(v1, fixture), reflected_services!(v1alpha, fixture)] {
        for name in [
            "taphouse.v1.FlowService",
            "taphouse.v1.AlertService",
            "taphouse.v1.CaptureService",
            "grpc.health.v1.Health",
        ] {
            assert!(services.iter().any(|service| service == name), "{name} not in {services:?}");
        }
    }
}

async fn get(addr: SocketAddr, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

#[tokio::test]
async fn http_serves_metrics_health_and_an_index() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let fixture = Fixture::start(&[record(1)]).await;
    let queries = Arc::new(QueryMetrics::default());
    let metrics = metrics::exporter(Arc::new(status), queries.clone());
    let services = HttpServices { metrics, engine: fixture.engine.clone(), queries };
    let serving = tokio::spawn(rpc::serve_http(listener, services, async {
        let _ = stopped.await;
    }));

    let (head, body) = get(addr, "/metrics").await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(head.contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8"), "{head}");
    check_openmetrics(&body);
    assert_eq!(get(addr, "/healthz").await.1, "ok\n");
    assert!(get(addr, "/").await.1.contains("/metrics"));
    assert!(get(addr, "/nothing").await.0.starts_with("HTTP/1.1 404"));
    assert!(get(addr, "/api/v1/flows?columns=proto&format=csv").await.1.contains("proto\n6\n"));

    stop.send(()).unwrap();
    serving.await.unwrap().unwrap();
}

#[tokio::test]
async fn metrics_say_what_the_status_says_and_count_queries() {
    let mut fixture = Fixture::start(&(0..50).map(record).collect::<Vec<_>>()).await;
    let mut answer = fixture.client.query("select * from flows").await.unwrap();
    while answer.next().await.unwrap().is_some() {}
    let list = |filter: &str| rpc::v1::ListFlowsRequest { filter: filter.into(), ..Default::default() };
    fixture.client.flows.list_flows(list("proto = 6")).await.unwrap();
    fixture.client.flows.list_flows(list("nonsense = 6")).await.unwrap_err();
    while fixture.queries.in_flight() > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(fixture.queries.started(Method::ListFlows), 2);

    let text = metrics::render(&status(), &fixture.queries);
    let samples = check_openmetrics(&text);
    for (name, value) in [
        (r#"taphouse_build_info{version="1.2.3",generated_traffic="true"}"#, 1.0),
        ("taphouse_uptime_seconds", 90.5),
        ("taphouse_packet_clock_timestamp_seconds", 1_700_000_001.0),
        (r#"taphouse_packets_offered_total{tap="core",queue="0"}"#, 100.0),
        (r#"taphouse_packets_total{tap="core",queue="0",cause="processed",loss="false"}"#, 90.0),
        (r#"taphouse_packets_total{tap="core",queue="0",cause="rx_ring_full",loss="true"}"#, 10.0),
        (r#"taphouse_packets_offered_total{tap="odd \"name\" \\ \n",queue="1"}"#, 5.0),
        (r#"taphouse_capture_bytes_total{tap="core",queue="0"}"#, 6_400.0),
        (r#"taphouse_ledger_balanced{tap="core",queue="0"}"#, 1.0),
        (r#"taphouse_ledger_balanced{tap="odd \"name\" \\ \n",queue="1"}"#, 0.0),
        (r#"taphouse_records_total{outcome="stored"}"#, 7.0),
        (r#"taphouse_records_total{outcome="dropped_ring_full"}"#, 2.0),
        (r#"taphouse_records_total{outcome="dropped_disk"}"#, 1.0),
        (r#"taphouse_dns_records_total{outcome="stored"}"#, 70.0),
        (r#"taphouse_dns_records_total{outcome="dropped_ring_full"}"#, 20.0),
        (r#"taphouse_dns_records_total{outcome="dropped_disk"}"#, 10.0),
        ("taphouse_flow_tables_in_emergency", 1.0),
        ("taphouse_flow_table_emergencies_total", 52.0),
        ("taphouse_flows_evicted_answered_total", 53.0),
        (r#"taphouse_tcp_connections_ended_total{sides="both"}"#, 54.0),
        (r#"taphouse_tcp_connections_ended_total{sides="one"}"#, 55.0),
        ("taphouse_flow_side_memory_refused_total", 56.0),
        (r#"taphouse_fragments_total{kind="first"}"#, 61.0),
        (r#"taphouse_fragments_total{kind="assigned"}"#, 62.0),
        (r#"taphouse_fragments_total{kind="unassigned"}"#, 63.0),
        ("taphouse_fragments_overlapping_total", 64.0),
        ("taphouse_fragments_evicted_total", 65.0),
        ("taphouse_hint_payloads_total", 81.0),
        ("taphouse_hints_total", 82.0),
        ("taphouse_hint_assemblies_total", 83.0),
        (r#"taphouse_hint_assemblies_given_up_total{reason="evicted"}"#, 84.0),
        (r#"taphouse_hint_assemblies_given_up_total{reason="expired"}"#, 85.0),
        (r#"taphouse_hint_assemblies_given_up_total{reason="oversized"}"#, 86.0),
        ("taphouse_hellos_malformed_total", 87.0),
        ("taphouse_quic_not_decrypted_total", 88.0),
        ("taphouse_dns_messages_total", 89.0),
        ("taphouse_dns_malformed_total", 90.0),
        ("taphouse_dns_evicted_total", 91.0),
        ("taphouse_dns_unanswered_total", 92.0),
        ("taphouse_dns_unasked_total", 93.0),
        (r#"taphouse_archive_up{place="s3://flows/fleet"}"#, 0.0),
        (r#"taphouse_archive_segments_total{place="s3://flows/fleet"}"#, 101.0),
        (r#"taphouse_archive_rows_total{place="s3://flows/fleet"}"#, 102.0),
        (r#"taphouse_archive_bytes_total{place="s3://flows/fleet"}"#, 103.0),
        (r#"taphouse_archive_due_segments{place="s3://flows/fleet"}"#, 104.0),
        (r#"taphouse_archive_due_bytes{place="s3://flows/fleet"}"#, 105.0),
        (r#"taphouse_archive_early_segments{place="s3://flows/fleet"}"#, 106.0),
        (r#"taphouse_archive_early_bytes{place="s3://flows/fleet"}"#, 107.0),
        (r#"taphouse_archive_lag_seconds{place="s3://flows/fleet"}"#, 108.5),
        (r#"taphouse_archive_failures_total{place="s3://flows/fleet"}"#, 109.0),
        (r#"taphouse_archive_corrupt_total{place="s3://flows/fleet"}"#, 110.0),
        (r#"taphouse_archive_read_back_total{place="s3://flows/fleet"}"#, 111.0),
        (r#"taphouse_archive_lost_total{place="s3://flows/fleet"}"#, 112.0),
        (r#"taphouse_archive_unreadable_total{place="s3://flows/fleet"}"#, 113.0),
        ("taphouse_storage_removed_unshipped_total", 114.0),
        ("taphouse_sketch_tasks", 121.0),
        ("taphouse_sketch_memory_bytes", 122.0),
        ("taphouse_sketch_windows_total", 123.0),
        ("taphouse_sketch_windows_late_total", 124.0),
        ("taphouse_sketch_stragglers_total", 125.0),
        ("taphouse_sketch_rows_lost_total", 126.0),
        ("taphouse_storage_dns_segments", 4.0),
        ("taphouse_storage_dns_rows", 41.0),
        ("taphouse_storage_dns_bytes", 42.0),
        ("taphouse_storage_talkers_segments", 43.0),
        ("taphouse_storage_talkers_rows", 44.0),
        ("taphouse_storage_talkers_bytes", 45.0),
        ("taphouse_storage_compactions_total", 21.0),
        ("taphouse_storage_segments_merged_total", 22.0),
        ("taphouse_storage_rows_merged_total", 23.0),
        (r#"taphouse_storage_compaction_bytes_total{direction="read"}"#, 24.0),
        (r#"taphouse_storage_compaction_bytes_total{direction="written"}"#, 26.0),
        ("taphouse_storage_compactions_abandoned_total", 27.0),
        ("taphouse_storage_compaction_errors_total", 28.0),
        ("taphouse_storage_waiting_bytes", 29.0),
        ("taphouse_storage_segments_removed_total", 31.0),
        ("taphouse_storage_rows_removed_total", 32.0),
        ("taphouse_storage_removed_bytes_total", 33.0),
        ("taphouse_export_up", 1.0),
        (r#"taphouse_export_records_total{outcome="sent"}"#, 11.0),
        (r#"taphouse_export_records_total{outcome="dropped_ring_full"}"#, 8.0),
        (r#"taphouse_export_records_total{outcome="dropped_unreachable"}"#, 2.0),
        ("taphouse_export_messages_total", 3.0),
        ("taphouse_export_bytes_total", 1_234.0),
        ("taphouse_export_reconnects_total", 5.0),
        ("taphouse_export_faults_total", 6.0),
        ("taphouse_flows_active", 25.0),
        ("taphouse_flows_capacity", 100.0),
        ("taphouse_flow_table_fill_ratio", 0.25),
        ("taphouse_flow_originators_estimate", 17.5),
        ("taphouse_flows_created_total", 30.0),
        ("taphouse_detector_openings_total", 40.0),
        ("taphouse_detector_openings_dropped_total", 3.0),
        ("taphouse_detector_ticks_late_total", 2.0),
        ("taphouse_detector_ticks_dropped_total", 1.0),
        ("taphouse_detector_sources_tracked", 6.0),
        ("taphouse_detector_sources_evicted_total", 4.0),
        (r#"taphouse_flow_records_exported_total{reason="idle"}"#, 5.0),
        ("taphouse_storage_segments", 3.0),
        ("taphouse_storage_rows", 1_000.0),
        ("taphouse_storage_bytes", 25_000.0),
        ("taphouse_storage_wal_bytes", 512.0),
        ("taphouse_storage_oldest_timestamp_seconds", 1_600_000_000.0),
        ("taphouse_storage_newest_timestamp_seconds", 1_700_000_000.0),
        ("taphouse_alerts_firing", 1.0),
        ("taphouse_alert_log_seq", 12.0),
        ("taphouse_alert_log_errors_total", 0.0),
        (r#"taphouse_queries_total{method="list_flows"}"#, 2.0),
        (r#"taphouse_queries_total{method="stream_flows"}"#, 0.0),
        (r#"taphouse_query_errors_total{method="list_flows",code="INVALID_ARGUMENT"}"#, 1.0),
        (r#"taphouse_query_duration_seconds_count{method="query"}"#, 1.0),
        (r#"taphouse_query_rows_total{method="query"}"#, 50.0),
        ("taphouse_queries_in_flight", 0.0),
    ] {
        assert_eq!(samples.get(name).copied(), Some(value), "{name} in\n{text}");
    }
}

#[test]
fn an_empty_status_renders() {
    let samples = check_openmetrics(&metrics::render(&rpc::v1::Status::default(), &QueryMetrics::default()));
    assert_eq!(samples["taphouse_flow_table_fill_ratio"], 0.0);
    assert!(!samples.contains_key("taphouse_packet_clock_timestamp_seconds"), "0 would read as 1970");
}

/// Checks line by line what OpenMetrics 1.0 asks of text, as far as this server uses it, and gives the samples.
fn check_openmetrics(text: &str) -> BTreeMap<String, f64> {
    let mut samples = BTreeMap::new();
    let mut families: BTreeMap<&str, (&str, Option<&str>)> = BTreeMap::new();
    let mut current = "";
    let (body, end) = text.split_at(text.len() - "# EOF\n".len());
    assert_eq!(end, "# EOF\n");
    for line in body.lines() {
        if let Some(rest) = line.strip_prefix("# ") {
            let (keyword, rest) = rest.split_once(' ').unwrap();
            let (name, value) = rest.split_once(' ').unwrap();
            assert!(
                name.starts_with("taphouse_") && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'),
                "{line}"
            );
            match keyword {
                "HELP" => {
                    assert!(families.insert(name, ("unknown", None)).is_none(), "{name} stands twice");
                    assert!(value.len() > 5, "{line}");
                }
                "TYPE" => families.get_mut(name).unwrap().0 = value,
                "UNIT" => {
                    assert!(name.ends_with(&format!("_{value}")), "{line}");
                    families.get_mut(name).unwrap().1 = Some(value);
                }
                _ => panic!("{line}"),
            }
            current = name;
            continue;
        }
        let (series, value) = line.rsplit_once(' ').unwrap();
        let name = series.split('{').next().unwrap();
        let suffix = name.strip_prefix(current).unwrap_or_else(|| panic!("{line} stands under {current}"));
        let allowed: &[&str] = match families[current].0 {
            "counter" => &["_total"],
            "gauge" => &[""],
            "histogram" => &["_bucket", "_sum", "_count"],
            other => panic!("{current} is a {other}"),
        };
        assert!(allowed.contains(&suffix), "{line}");
        if let Some(labels) = series.strip_prefix(name).filter(|labels| !labels.is_empty()) {
            assert!(labels.starts_with('{') && labels.ends_with('}'), "{line}");
            check_labels(&labels[1..labels.len() - 1]);
        }
        assert!(samples.insert(series.to_owned(), value.parse().unwrap()).is_none(), "{line} stands twice");
    }
    samples
}

/// `key="value"` with `\\`, `\"` and `\n` escaped, separated by commas.
fn check_labels(mut text: &str) {
    loop {
        let (key, rest) = text.split_once("=\"").unwrap();
        assert!(!key.is_empty() && key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{key}");
        let mut escaped = false;
        let end = rest
            .bytes()
            .position(|b| {
                let ends = b == b'"' && !escaped;
                assert!(b != b'\n', "{rest}");
                escaped = b == b'\\' && !escaped;
                ends
            })
            .unwrap();
        match &rest[end + 1..] {
            "" => return,
            more => text = more.strip_prefix(',').unwrap(),
        }
    }
}

#[tokio::test]
async fn an_address_in_use_says_which_key_to_change() {
    let taken = rpc::bind("127.0.0.1:0".parse().unwrap(), "rpc.grpc_listen").await.unwrap();
    let addr = taken.local_addr().unwrap();
    let error = rpc::bind(addr, "rpc.grpc_listen").await.unwrap_err();
    assert!(matches!(error, RpcError::AddressInUse { .. }));
    let message = error.to_string();
    assert!(message.starts_with(&format!("{addr} is in use")), "{message}");
    assert!(message.contains("--set rpc.grpc_listen=127.0.0.1:"), "{message}");
    // 192.0.2.0/24 is for documentation (RFC 5737): no host has it.
    let error = rpc::bind("192.0.2.1:0".parse().unwrap(), "rpc.http_listen").await.unwrap_err();
    assert!(error.to_string().contains("rpc.http_listen"), "{error}");
}

#[tokio::test]
async fn a_missing_server_is_named_with_what_to_do() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    drop(listener);
    let error = rpc::client::connect(&addr).await.unwrap_err().to_string();
    assert!(error.starts_with(&format!("no taphouse server at {addr}: connection refused")), "{error}");
    assert!(error.contains("taphouse run"), "{error}");
    for bad in ["", "localhost", "localhost:", ":50051", "localhost:99999", "a b:1"] {
        let error = rpc::client::connect(bad).await.unwrap_err();
        assert!(matches!(error, RpcError::Address { .. }), "{bad}: {error}");
    }
}
