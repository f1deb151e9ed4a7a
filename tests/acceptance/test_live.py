"""Live capture in network namespaces joined by veth: what is injected is what is counted."""
import struct
import subprocess

from conftest import BINARY, rows, taphouse
from namespaces import add_pair, inject, packets_of, settled, sh


def test_injected_packets_are_counted_exactly(link, server, generated, tmp_path):
    near, far = link
    data = tmp_path / "data"
    frames = packets_of(generated[0], 20_000)
    running = server(["run", "-i", "tap1", "--data-dir", data], prefix=["ip", "netns", "exec", far])
    inject(near, "tap0", frames)
    status = settled(far, running, len(frames))
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


def test_two_interfaces_are_one_tap(link, server, generated, tmp_path):
    """A passive tap: each direction of the traffic on its own port, both in one flow."""
    near, far = link
    add_pair(near, far, "tap2", "tap3")
    client, host = bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2])

    def udp(source, target, sport, dport):
        body = struct.pack(">HHHH", sport, dport, 12, 0) + b"ping"
        header = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(body), 1, 0, 64, 17, 0, source, target)
        return b"\x02" * 12 + b"\x08\x00" + header + body

    running = server(
        ["run", "--data-dir", tmp_path / "data", "--set", "taps=[{name: core, interfaces: [tap1, tap3]}]",
         "--set", "pipeline.workers=2"],
        prefix=["ip", "netns", "exec", far],
    )
    inject(near, "tap0", [udp(client, host, 1000 + i, 53) for i in range(500)])
    settled(far, running, 500)
    inject(near, "tap2", [udp(host, client, 53, 1000 + i) for i in range(500)])
    status = settled(far, running, 1000)
    assert sum(q["offered"] for q in status["queues"]) == 1000
    assert status["taps"][0]["interfaces"] == ["tap1", "tap3"]
    assert "1000 packets offered, 1000 processed, 0 lost" in running.stop()
    found = rows("SELECT count(*) AS n, sum(pkts_o) AS o, sum(pkts_r) AS r, min(tap) AS tap FROM flows", tmp_path / "data")
    # Each interface deals its packets to workers by the kernel's hash of the flow, which is symmetric.
    assert found == [{"n": 500, "o": 500, "r": 500, "tap": "core"}]


def test_a_stop_stores_every_flow_of_a_table_larger_than_the_ring(link, server, tmp_path):
    near, far = link
    client = bytes([10, 0, 0, 1])

    def udp(i):
        header = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 32, 1, 0, 64, 17, 0, client, bytes([10, 1, i >> 8, i & 255]))
        return b"\x02" * 12 + b"\x08\x00" + header + struct.pack(">HHHH", 1000, 53, 12, 0) + b"ping"

    flows = 5_000
    running = server(
        ["run", "-i", "tap1", "--data-dir", tmp_path / "data", "--set", "pipeline.record_ring=64"],
        prefix=["ip", "netns", "exec", far],
    )
    inject(near, "tap0", [udp(i) for i in range(flows)])
    settled(far, running, flows)
    assert f"{flows} records stored, 0 dropped" in running.stop()
    assert rows("SELECT count(*) AS n FROM flows", tmp_path / "data") == [{"n": flows}]


def test_without_the_capability_the_way_out_is_named(link, tmp_path):
    _, far = link
    done = subprocess.run(
        ["ip", "netns", "exec", far, "setpriv", "--bounding-set", "-all", "--inh-caps", "-all",
         BINARY, "run", "-i", "tap1", "--data-dir", tmp_path / "none",
         "--set", "rpc.grpc_listen=127.0.0.1:0", "--set", "rpc.http_listen=127.0.0.1:0"],
        capture_output=True, text=True,
    )
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
