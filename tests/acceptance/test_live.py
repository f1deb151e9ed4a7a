"""Live capture in network namespaces joined by veth: what is injected is what is counted."""
import json
import os
import socket
import struct
import subprocess
import time

import pytest

from conftest import rows, taphouse


def sh(*command):
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture
def link():
    """Two namespaces and a veth pair without addresses: nothing but our packets crosses it."""
    if os.geteuid() != 0:
        if os.environ.get("REQUIRE_XDP") == "1":
            pytest.fail("network namespaces need root")
        pytest.skip("network namespaces need root")
    name = f"th{os.getpid()}"
    near, far = f"{name}a", f"{name}b"
    try:
        for ns in (near, far):
            sh("ip", "netns", "add", ns)
            sh("ip", "netns", "exec", ns, "sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1", "net.ipv6.conf.all.disable_ipv6=1")
        sh("ip", "-n", near, "link", "add", "tap0", "type", "veth", "peer", "name", "tap1", "netns", far)
        for ns, dev in ((near, "tap0"), (far, "tap1")):
            sh("ip", "-n", ns, "link", "set", dev, "mtu", "9000", "up")
        sh("ip", "-n", far, "link", "set", "lo", "up")
        yield near, far
    finally:
        for ns in (near, far):
            subprocess.run(["ip", "netns", "del", ns], capture_output=True)


def packets_of(capture, limit):
    """The first packets of a little-endian microsecond pcap."""
    data = capture.read_bytes()
    at, out = 24, []
    while len(out) < limit and at < len(data):
        length = struct.unpack_from("<I", data, at + 8)[0]
        out.append(data[at + 16 : at + 16 + length])
        at += 16 + length
    return out


INJECT = """
import socket, sys, struct
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(("tap0", 0))
data = sys.stdin.buffer.read()
at = 0
while at < len(data):
    n = struct.unpack_from("<I", data, at)[0]
    s.send(data[at + 4 : at + 4 + n])
    at += 4 + n
"""


def test_injected_packets_are_counted_exactly(link, server, generated, tmp_path):
    near, far = link
    data = tmp_path / "data"
    frames = packets_of(generated[0], 20_000)
    running = server(["run", "-i", "tap1", "--data-dir", data], prefix=["ip", "netns", "exec", far])
    subprocess.run(
        ["ip", "netns", "exec", near, "python3", "-c", INJECT],
        input=b"".join(struct.pack("<I", len(f)) + f for f in frames),
        check=True,
    )
    status = {}
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        done = subprocess.run(
            ["ip", "netns", "exec", far, os.environ["TAPHOUSE"], "status", "--server", running.grpc, "--output", "json"],
            capture_output=True, text=True, check=True,
        )
        status = json.loads(done.stdout)
        if sum(q["offered"] for q in status["queues"]) >= len(frames) and all(q["balanced"] for q in status["queues"]):
            break
        time.sleep(0.1)
    causes = {}
    for queue in status["queues"]:
        for cause, count in queue["causes"].items():
            causes[cause] = causes.get(cause, 0) + count
    assert sum(q["offered"] for q in status["queues"]) == len(frames)
    assert causes["processed"] == len(frames), causes
    assert {c for c, n in causes.items() if n} == {"processed"}
    log = running.stop()
    assert f"{len(frames)} packets offered, {len(frames)} processed, 0 lost" in log, log

    # Every flow right: the same packets replayed from the file give the same flows.
    clipped = tmp_path / "clipped.pcap"
    header = generated[0].read_bytes()[:24]
    clipped.write_bytes(header + b"".join(struct.pack("<IIII", 1_700_000_000, i, len(f), len(f)) + f for i, f in enumerate(frames)))
    replayed = tmp_path / "replayed"
    taphouse("replay", clipped, "--data-dir", replayed)
    query = (
        "SELECT src_ip, src_port, dst_ip, dst_port, proto, sum(pkts_o) AS po, sum(pkts_r) AS pr, sum(bytes_o) AS bo, "
        "sum(bytes_r) AS br, min(src_mac) AS mac FROM flows GROUP BY 1, 2, 3, 4, 5 ORDER BY 1, 2, 3, 4, 5"
    )
    assert rows(query, data) == rows(query, replayed)


def test_without_the_capability_the_way_out_is_named(link, tmp_path):
    _, far = link
    done = subprocess.run(
        ["ip", "netns", "exec", far, "setpriv", "--reuid", "65534", "--bounding-set", "-all", "--inh-caps", "-all",
         "--clear-groups", os.environ["TAPHOUSE"], "run", "-i", "tap1", "--data-dir", tmp_path / "none"],
        capture_output=True, text=True,
    )
    if "Permission denied" in done.stderr and "setpriv" in done.stderr:
        pytest.skip("the binary lies where only root can start it")
    assert done.returncode == 4, done.stderr
    for word in ("CAP_NET_RAW", "setcap", "sudo", "replay", "demo"):
        assert word in done.stderr
    assert not (tmp_path / "none").exists()


def test_the_default_route_interface_is_found(link, server, tmp_path):
    _, far = link
    sh("ip", "-n", far, "addr", "add", "192.0.2.1/24", "dev", "tap1")
    sh("ip", "-n", far, "route", "add", "default", "via", "192.0.2.2")
    running = server(["run", "--data-dir", tmp_path / "data"], prefix=["ip", "netns", "exec", far])
    assert "watching tap1" in running.stop()


def test_no_such_interface(tmp_path):
    done = taphouse("run", "-i", "nosuch0", "--data-dir", tmp_path / "x", ok=False)
    assert done.returncode == 1 and "nosuch0" in done.stderr and "lo" in done.stderr
    assert not (tmp_path / "x").exists()
