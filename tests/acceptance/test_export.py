"""Flow records in other tools: an IPFIX collector of other people, one of our own over TCP, ECS and EVE documents."""
import ipaddress
import json
import shutil
import signal
import socket
import struct
import subprocess
import threading
from collections import Counter
from datetime import datetime

import pytest

from conftest import rows, taphouse
from test_cli import until

KEY = "src_ip, dst_ip, src_port, dst_port, proto, pkts_o, bytes_o, pkts_r, bytes_r"
FLOWS = f"SELECT {KEY}, icmp_type, icmp_code, flow_id, part, t_start, t_end, tap FROM flows"
REVERSE = 29305


def free_port(kind):
    with socket.socket(socket.AF_INET, kind) as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def key(row):
    return tuple(row[name.strip()] for name in KEY.split(","))


def test_nfcapd_has_the_same_flows_packets_and_bytes(generated, tmp_path):
    if not shutil.which("nfcapd"):
        pytest.skip("nfcapd is not installed; apt-get install nfdump")
    port, kept = free_port(socket.SOCK_DGRAM), tmp_path / "nfdump"
    kept.mkdir()
    with (tmp_path / "log").open("w") as log:
        collector = subprocess.Popen(["nfcapd", "-w", kept, "-b", "127.0.0.1", "-p", str(port)], stdout=log, stderr=log)
    try:
        until("nfcapd does not start", lambda: "Startup" in (tmp_path / "log").read_text())
        args = ["--data-dir", tmp_path / "data", "--ipfix", f"127.0.0.1:{port}", "--set", "ipfix.rate_max=20000"]
        summary = json.loads(taphouse("replay", generated[0], *args, "--output", "json").stdout)
        exported = summary["export"]
        assert exported["offered"] == exported["sent"] == summary["records"] > 10_000
    finally:
        collector.send_signal(signal.SIGTERM)
        collector.wait(timeout=30)
    log = (tmp_path / "log").read_text()
    said = next(line for line in log.splitlines() if "Sequence Errors" in line)
    assert "Sequence Errors: 0," in said and "Bad Packets: 0" in said, log
    assert f"Flows: {summary['records']}, Packets: {summary['ledger']['causes']['processed']}, " in said, log

    fields = "fmt:%sa,%da,%sp,%dp,%pr,%pkt,%byt,%opkt,%obyt,%ts"
    printed = subprocess.run(["nfdump", "-R", kept, "-q", "-N", "-6", "-o", fields], capture_output=True, text=True, check=True)
    seen = Counter()
    for line in printed.stdout.splitlines():
        src, dst, sport, dport, proto, *counts, start = (word.strip() for word in line.split(","))
        if proto in ("1", "58"):
            sport, dport = 0, dport.replace(".", "/")
        packets = tuple(map(int, counts))
        ends = ipaddress.ip_address(src), ipaddress.ip_address(dst)
        seen[(*ends, int(sport), str(dport), int(proto), *packets, datetime.fromisoformat(start))] += 1
    right = Counter()
    for r in rows(FLOWS, tmp_path / "data"):
        port = str(r["dst_port"]) if r["icmp_type"] is None else f"{r['icmp_type']}/{r['icmp_code']}"
        ends = ipaddress.ip_address(r["src_ip"]), ipaddress.ip_address(r["dst_ip"])
        start = datetime.fromisoformat(r["t_start"]).replace(tzinfo=None)
        start = start.replace(microsecond=start.microsecond // 1000 * 1000)
        counts = (r["pkts_o"], r["bytes_o"], r["pkts_r"], r["bytes_r"])
        right[(*ends, r["src_port"], port, r["proto"], *counts, start)] += 1
    assert seen == right


class Collector(threading.Thread):
    """Accepts one connection and reads IPFIX from it by its templates, to its end."""

    def __init__(self):
        super().__init__(daemon=True)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.templates, self.records, self.sequence, self.error = {}, [], 0, None
        self.start()

    def run(self):
        try:
            connection, _ = self.listener.accept()
            with connection, connection.makefile("rb") as stream:
                while header := stream.read(16):
                    version, length, _, sequence, domain = struct.unpack(">HHIII", header)
                    assert (version, sequence, domain) == (10, self.sequence, 42)
                    self.message(stream.read(length - 16))
        except Exception as error:
            self.error = error

    def message(self, body):
        at = 0
        while at < len(body):
            number, length = struct.unpack_from(">HH", body, at)
            part = body[at + 4 : at + length]
            self.template_set(part) if number == 2 else self.data_set(self.templates[number], part)
            at += length

    def template_set(self, part):
        at = 0
        while at < len(part):
            (number, count), at, fields = struct.unpack_from(">HH", part, at), at + 4, []
            for _ in range(count):
                (element, length), at, enterprise = struct.unpack_from(">HH", part, at), at + 4, 0
                if element & 0x8000:
                    (enterprise,), at = struct.unpack_from(">I", part, at), at + 4
                fields.append((enterprise, element & 0x7FFF, length))
            assert number not in self.templates, "once a connection"
            self.templates[number] = fields

    def data_set(self, fields, part):
        at = 0
        while at < len(part):
            record = {}
            for enterprise, element, length in fields:
                if length == 65535:
                    length, at = part[at], at + 1
                record[enterprise, element] = part[at : at + length]
                at += length
            self.records.append(record)
            self.sequence += 1


def test_a_collector_over_tcp_has_every_record(generated, tmp_path):
    collector = Collector()
    settings = ["ipfix.transport=tcp", "ipfix.observation_domain=42", "ipfix.ring=64", "pipeline.workers=2"]
    args = ["--data-dir", tmp_path, "--ipfix", f"127.0.0.1:{collector.port}", *(w for s in settings for w in ("--set", s))]
    exported = json.loads(taphouse("replay", generated[0], *args, "--output", "json").stdout)["export"]
    collector.join(timeout=60)
    assert collector.error is None and not collector.is_alive()
    assert exported["sent"] == exported["offered"] == len(collector.records)

    def decoded(r):
        number = lambda element, enterprise=0: int.from_bytes(r.get((enterprise, element), b""), "big")
        ends = (ipaddress.ip_address(r.get((0, a)) or r[0, b]) for a, b in ((8, 27), (12, 28)))
        counts = (number(2), number(1), number(2, REVERSE), number(1, REVERSE))
        return (*map(str, ends), number(7), number(11), number(4), *counts, str(number(148)))

    right = Counter((*key(r), r["flow_id"]) for r in rows(FLOWS, tmp_path))
    assert Counter(map(decoded, collector.records)) == right


@pytest.mark.parametrize("transport, kind", [("udp", socket.SOCK_DGRAM), ("tcp", socket.SOCK_STREAM)])
def test_a_collector_that_is_away_costs_nothing_that_is_stored(generated, tmp_path, transport, kind):
    args = ["--data-dir", tmp_path, "--ipfix", f"127.0.0.1:{free_port(kind)}", "--set", f"ipfix.transport={transport}"]
    done = taphouse("replay", generated[0], *args, "--set", "ipfix.ring=64", "--output", "json")
    summary = json.loads(done.stdout)
    exported = summary["export"]
    assert exported["sent"] == 0 and exported["offered"] == summary["records"] > 0
    assert exported["dropped_ring_full"] + exported["dropped_unreachable"] == exported["offered"]
    assert rows("SELECT count(*) AS n FROM flows", tmp_path)[0]["n"] == summary["records"]
    assert 1 <= done.stderr.count("cannot export to") <= 2, done.stderr
    assert "NOT SENT" in taphouse("replay", generated[0], "--data-dir", tmp_path / "again", *args[2:]).stdout


def test_a_server_tells_what_it_exports(server, tmp_path):
    collector = Collector()
    settings = ["ipfix.transport=tcp", "ipfix.observation_domain=42", "flowtable.timeouts.active=1s"]
    words = [w for s in settings for w in ("--set", s)]
    running = server(["demo", "--rate", "5000", "--data-dir", tmp_path, "--ipfix", f"127.0.0.1:{collector.port}", *words])
    status = lambda: json.loads(taphouse("status", "--server", running.grpc, "--output", "json").stdout)["export"]
    seen = until("nothing is exported", lambda: s if (s := status())["sent"] > 0 else None)
    assert seen["up"] and seen["transport"] == "tcp" and seen["collector"].endswith(str(collector.port))
    assert "export " in taphouse("status", "--server", running.grpc).stdout
    running.stop()
    collector.join(timeout=30)
    assert collector.error is None
    stored = rows("SELECT count(*) AS n FROM flows", tmp_path)[0]["n"]
    assert len(collector.records) == stored > 0, "what was left went out at the stop"


@pytest.mark.parametrize("bad, word", [("collector", "host:port"), ("127.0.0.1:0", "host:port"), ("::1:4739", "host:port")])
def test_a_collector_that_cannot_be_is_refused(tmp_path, bad, word):
    done = taphouse("demo", "--data-dir", tmp_path / "d", "--ipfix", bad, ok=False)
    assert done.returncode == 2 and word in done.stderr and "ipfix.collector" in done.stderr
    assert not (tmp_path / "d").exists()


def documents(output, *args):
    return [json.loads(line) for line in taphouse("flows", "--limit", "0", "--output", output, *args).stdout.splitlines()]


def test_ecs_and_eve_have_what_the_rows_have(stored, server):
    running = server(["demo", "--rate", "1", "--data-dir", stored[0]])
    where = "tap = 'replay'"
    right = {(r["flow_id"], r["part"]): r for r in rows(f"{FLOWS} WHERE {where}", stored[0])}
    for source in (["--data-dir", stored[0]], ["--server", running.grpc]):
        ecs = {(d["flow"]["id"], d["taphouse"]["part"]): d for d in documents("ecs", where, *source)}
        eve = {(d["taphouse"]["flow_id"], d["taphouse"]["part"]): d for d in documents("eve", where, *source)}
        assert ecs.keys() == eve.keys() == right.keys()
        for at, r in right.items():
            e, v = ecs[at], eve[at]
            ports = (r["src_port"], r["dst_port"]) if r["proto"] in (6, 17, 132) else (None, None)
            assert (e["source"]["ip"], e["destination"]["ip"]) == (v["src_ip"], v["dest_ip"]) == (r["src_ip"], r["dst_ip"])
            assert (e["source"].get("port"), e["destination"].get("port")) == (v.get("src_port"), v.get("dest_port")) == ports
            assert e["source"]["packets"] == v["flow"]["pkts_toserver"] == r["pkts_o"]
            assert e["destination"]["bytes"] == v["flow"]["bytes_toclient"] == r["bytes_r"]
            assert e["network"]["bytes"] == r["bytes_o"] + r["bytes_r"]
            assert e["network"]["iana_number"] == str(r["proto"])
            assert e["network"]["community_id"] == v["community_id"]
            assert e["observer"]["name"] == v["in_iface"] == "replay"
            start, end = datetime.fromisoformat(r["t_start"]), datetime.fromisoformat(r["t_end"])
            assert datetime.fromisoformat(e["event"]["start"]) == start == datetime.strptime(v["flow"]["start"], "%Y-%m-%dT%H:%M:%S.%f%z")
            assert e["event"]["duration"] == round((end - start).total_seconds() * 1e6) * 1000
            assert ("tcp" in v) == (r["proto"] == 6)


@pytest.mark.parametrize("capture", ["cid_tcp", "cid_udp", "cid_icmp", "cid_icmp6", "cid_ipv6", "cid_sctp"])
def test_community_ids_are_those_of_the_reference(testdata, tmp_path, capture):
    truth = json.loads((testdata / "truth" / f"{capture}.json").read_text())
    ids = [set(flow.get("community_ids") or [flow["community_id"]]) for flow in truth["flows_outer"]]
    taphouse("replay", testdata / "pcap" / f"{capture}.pcap", "--data-dir", tmp_path)
    for output, field in (("eve", lambda d: d["community_id"]), ("ecs", lambda d: d["network"]["community_id"])):
        ours = {field(d) for d in documents(output, "--data-dir", tmp_path)}
        # One flow holds all ICMP between two hosts, the reference has an id for each type: ours is that of the first packet.
        assert ours and ours <= set().union(*ids) and all(ours & of_flow for of_flow in ids)


def test_documents_are_for_flows_alone_and_errors_are_json(stored):
    folder = ["--data-dir", stored[0]]
    for output in ("ecs", "eve"):
        for command in (["sql", "SELECT 1", *folder], ["status"], ["alerts", *folder], ["replay", "x", *folder]):
            done = taphouse(*command, "--output", output, ok=False)
            assert done.returncode == 2 and f"taphouse flows --output {output}" in done.stderr, command
            assert json.loads(done.stdout)["error"]["code"] == "usage"
        for wrong, word in ((["nonsense = 1"], "nonsense"), (["--columns", "src_ip"], "--columns")):
            done = taphouse("flows", *wrong, *folder, "--output", output, ok=False)
            assert done.returncode == 2 and word in done.stderr
            assert word in json.loads(done.stdout)["error"]["message"]
        assert documents(output, "proto = 254", *folder) == []
