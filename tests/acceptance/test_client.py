"""Python grpcio with stubs made from the proto files: lists, pages, streams, subscribes."""
import threading
import time
import urllib.request

import grpc
import pytest

from conftest import rows, taphouse
from test_flight import metric, until
from test_rest import resident


@pytest.fixture
def demo(server, tmp_path):
    """A server whose traffic is generated: needs no privilege."""
    return server(["demo", "--rate", "5000", "--data-dir", tmp_path / "demo"])


@pytest.fixture
def serving(server, stored, tmp_path):
    """A server over the folder of the replayed capture; its own traffic is next to nothing."""
    return server(["demo", "--rate", "1", "--data-dir", stored[0]])


def services(stubs, address):
    from taphouse.v1 import alerts_pb2_grpc, capture_pb2_grpc, flows_pb2_grpc

    channel = grpc.insecure_channel(address)
    return (
        channel,
        flows_pb2_grpc.FlowServiceStub(channel),
        alerts_pb2_grpc.AlertServiceStub(channel),
        capture_pb2_grpc.CaptureServiceStub(channel),
    )


def test_lists_pages_and_streams_flows(stubs, serving, stored, generated):
    from taphouse.v1 import flows_pb2

    _, flows, _, _ = services(stubs, serving.grpc)
    scan = next(a for a in generated[1]["attacks"] if a["kind"] == "port_scan_vertical")
    where = f"src_ip = '{scan['source']}' AND tap = 'replay'"
    pages, token = [], ""
    while True:
        page = flows.ListFlows(flows_pb2.ListFlowsRequest(filter=where, page_size=300, page_token=token))
        pages.append(page.flows)
        token = page.next_page_token
        if not token:
            break
    listed = [f for page in pages for f in page]
    assert [len(p) for p in pages] == [300, 300, 300, 100]
    assert {f.dst_port for f in listed} == set(range(1, 1001))
    assert all(f.src_ip == scan["source"] and f.dst_ip == scan["target"] for f in listed)
    assert len({(f.flow_id, f.part) for f in listed}) == 1000

    streamed = [f for r in flows.StreamFlows(flows_pb2.StreamFlowsRequest(filter=where)) for f in r.flows]
    key = lambda f: (f.flow_id, f.part)
    assert sorted(map(key, streamed)) == sorted(map(key, listed))

    with pytest.raises(grpc.RpcError) as e:
        flows.ListFlows(flows_pb2.ListFlowsRequest(filter="src_ipp = '10.0.0.1'"))
    assert e.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "src_ip" in e.value.details() and "^" in e.value.details()


def test_the_port_scan_of_the_truth_is_an_alert_within_a_second_of_packet_time(stubs, serving, generated):
    from taphouse.v1 import alerts_pb2

    _, _, alerts, _ = services(stubs, serving.grpc)
    scan = next(a for a in generated[1]["attacks"] if a["kind"] == "port_scan_vertical")
    stream = alerts.SubscribeAlerts(alerts_pb2.SubscribeAlertsRequest(resume_after=0, rules=["port_scan"]), timeout=30)
    for event in stream:
        if event.HasField("alert") and event.alert.src_ip == scan["source"]:
            fired = event.alert.time.seconds * 10**9 + event.alert.time.nanos
            assert 0 <= fired - scan["start_ns"] <= 10**9
            assert event.alert.state == alerts_pb2.ALERT_STATE_FIRING
            break
    stream.cancel()


def test_a_live_port_scan_reaches_a_subscriber(stubs, demo):
    from taphouse.v1 import alerts_pb2

    _, _, alerts, _ = services(stubs, demo.grpc)
    # The first attack of the demo's generator, a port scan, begins 12 s after the start.
    for event in alerts.SubscribeAlerts(alerts_pb2.SubscribeAlertsRequest(rules=["port_scan"]), timeout=60):
        if event.HasField("alert"):
            assert event.alert.rule == "port_scan" and "port" in event.alert.summary
            break


def test_status_health_reflection_and_metrics(stubs, demo):
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
    from taphouse.v1 import capture_pb2

    channel, _, _, capture = services(stubs, demo.grpc)
    status = capture.GetStatus(capture_pb2.GetStatusRequest()).status
    assert status.generated_traffic and status.taps[0].source == "generator"
    health = health_pb2_grpc.HealthStub(channel)
    for name in ("", "taphouse.v1.FlowService", "taphouse.v1.AlertService", "taphouse.v1.CaptureService"):
        assert health.Check(health_pb2.HealthCheckRequest(service=name)).status == health_pb2.HealthCheckResponse.SERVING
    names = ProtoReflectionDescriptorDatabase(channel).get_services()
    assert {"taphouse.v1.FlowService", "taphouse.v1.AlertService", "taphouse.v1.CaptureService"} <= set(names)
    text = urllib.request.urlopen(f"http://{demo.http}/metrics", timeout=10).read().decode()
    for metric in ("taphouse_packets_offered_total", "taphouse_flows_active", "taphouse_storage_segments", "taphouse_queries_total"):
        assert metric in text, text[:2000]


def test_a_folder_is_read_while_a_server_writes_it(demo, tmp_path):
    import time

    deadline = time.monotonic() + 30
    seen = 0
    while not seen and time.monotonic() < deadline:
        seen = rows("SELECT count(*) AS n FROM flows", tmp_path / "demo")[0]["n"]
        time.sleep(0.2)
    assert seen > 0
    assert taphouse("flows", "--server", demo.grpc, "--limit", "5").stdout.count("\n") > 5


def test_many_clients_at_once(stubs, serving):
    from taphouse.v1 import flows_pb2

    _, flows, _, _ = services(stubs, serving.grpc)
    counts, errors = [], []

    def ask():
        try:
            counts.append(len(flows.ListFlows(flows_pb2.ListFlowsRequest(filter="proto = 6", page_size=50), timeout=60).flows))
        except grpc.RpcError as error:
            errors.append(error)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert not errors and counts == [50] * 8


def test_a_client_that_does_not_read_on_holds_little_of_the_server(stubs, serving):
    """Back-pressure: an answer without end stops where nobody takes it, goes on when somebody does, and ends with its call."""
    from taphouse.v1 import flows_pb2

    _, flows, _, _ = services(stubs, serving.grpc)
    sent = lambda: metric(serving, 'taphouse_query_sent_bytes_total{method="query"}')
    before = resident(serving)
    call = flows.Query(flows_pb2.QueryRequest(sql="SELECT a.flow_id, a.src_ip, b.dst_ip FROM flows a, flows b"))
    next(call)
    seen = []
    while len(seen) < 4 or len(set(seen[-4:])) > 1:
        seen.append(sent())
        assert seen[-1] < 64 * 2**20, "the server goes on without a reader"
        time.sleep(0.25)
    assert resident(serving) - before < 256 * 2**20
    assert metric(serving, "taphouse_queries_in_flight") == 1
    for _ in range(200):
        next(call)
    until(lambda: sent() > seen[-1], "the server does not go on with its reader")
    call.cancel()
    until(lambda: metric(serving, "taphouse_queries_in_flight") == 0, "a query outlives its call")
