"""Sketches: who sends most, from history and from a server's memory. Every number is computed again here, from the packets of
the capture or from the flows."""
import collections
import ipaddress
import json
import math
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time

import grpc
import pytest

from conftest import BINARY, Server, rows, taphouse
from test_bad_input import USAGE, refused
from test_flight import metric
from test_history_cli import eventually

MINUTE = 60 * 10**9
#: Room for every key of the capture, so that what is estimated is what was counted.
ROOMY = """sketches.tasks=[
  {name: talkers, kind: heavy_hitters, metric: bytes, key: [src_ip, dst_ip, dst_port, proto], memory: 8MiB, window: 1m,
   lists: [[src_ip], [src_ip, dst_ip], [dst_port, proto]], rows_max: 100000},
  {name: packets, kind: top_k, metric: packets, key: [src_ip], memory: 4MiB, window: 1m, rows_max: 100000},
  {name: openers, kind: heavy_hitters, metric: flows, key: [originator], memory: 4MiB, window: 1m, rows_max: 100000},
  {name: fan_out, kind: spreaders, key: [originator], elements: [responder, responder_port], memory: 8MiB, window: 1m, threshold: 16},
  {name: originators, kind: cardinality, elements: [originator], error: 0.01, window: 1m},
  {name: port_entropy, kind: entropy, metric: flows, elements: [responder_port], window: 1m},
  {name: flow_bytes, kind: quantiles, of: flow_bytes, error: 0.01, window: 1m}]""".replace("\n", " ")
#: Windows of a second.
HASTY = """sketches.tasks=[
  {name: talkers, kind: heavy_hitters, metric: bytes, key: [src_ip, dst_ip, dst_port, proto], memory: 8MiB, window: 1s,
   snapshot_interval: 200ms, lists: [[src_ip], [src_ip, dst_ip]], rows_max: 10000},
  {name: fan_out, kind: spreaders, key: [originator], elements: [responder, responder_port], memory: 2MiB, window: 1s},
  {name: originators, kind: cardinality, elements: [originator], error: 0.01, window: 1s}]""".replace("\n", " ")

Packet = collections.namedtuple("Packet", "time src_ip dst_ip dst_port proto bytes")


def packets_of(capture):
    """The packets of a capture, by hand: Ethernet, IPv4 or IPv6 without options, TCP, UDP or ICMP."""
    data = capture.read_bytes()
    assert struct.unpack_from("<I", data)[0] == 0xA1B2C3D4
    at, found = 24, []
    while at < len(data):
        seconds, micros, captured, _ = struct.unpack_from("<IIII", data, at)
        frame = data[at + 16 : at + 16 + captured]
        at += 16 + captured
        kind = struct.unpack_from(">H", frame, 12)[0]
        if kind == 0x0800:
            size, proto, header = struct.unpack_from(">H", frame, 16)[0], frame[23], 34
            src, dst = frame[26:30], frame[30:34]
        else:
            assert kind == 0x86DD
            size, proto, header = 40 + struct.unpack_from(">H", frame, 18)[0], frame[20], 54
            src, dst = frame[22:38], frame[38:54]
        port = struct.unpack_from(">H", frame, header + 2)[0] if proto in (6, 17) else 0
        src, dst = str(ipaddress.ip_address(src)), str(ipaddress.ip_address(dst))
        found.append(Packet(seconds * 10**9 + micros * 1000, src, dst, port, proto, size))
    return found


@pytest.fixture(scope="module")
def capture(testdata, tmp_path_factory):
    """Traffic of the independent generator, and its packets."""
    file = tmp_path_factory.mktemp("talkers") / "mixed.pcap"
    generator = [sys.executable, testdata / "gen_traffic.py", file, "--packets", "20000", "--seed", "7", "--duration", "200"]
    subprocess.run(generator, check=True, capture_output=True)
    packets = packets_of(file)
    assert len({p.time // MINUTE for p in packets}) >= 3
    return file, packets


@pytest.fixture(scope="module")
def roomy(capture, tmp_path_factory):
    folder = tmp_path_factory.mktemp("roomy") / "data"
    taphouse("replay", capture[0], "--data-dir", folder, "--set", ROOMY)
    return folder


@pytest.fixture(scope="module")
def plain(capture, tmp_path_factory):
    """With the tasks there are out of the box."""
    folder = tmp_path_factory.mktemp("plain") / "data"
    taphouse("replay", capture[0], "--data-dir", folder)
    return folder


def sent(packets, *by, weigh=lambda p: p.bytes):
    sums = collections.Counter()
    for packet in packets:
        sums[tuple(getattr(packet, name) for name in by)] += weigh(packet)
    return dict(sums)


def ask(*args):
    return json.loads(taphouse("talkers", *args, "--output", "json").stdout)


def counted(listed, *by, column="estimate"):
    sums = {tuple(row[name] for name in by): row[column] for row in listed}
    assert len(sums) == len(listed)
    return sums


def test_a_window_that_is_stored_in_parts_counts_once(capture, tmp_path):
    """As a restart leaves it: the same window twice, each part with what it had."""
    file, packets = capture
    for _ in range(2):
        taphouse("replay", file, "--data-dir", tmp_path / "data", "--set", ROOMY)
    found = ask("--by", "src_ip", "--metric", "bytes", "--data-dir", tmp_path / "data", "--limit", "0")
    wanted = {key: 2 * value for key, value in sent(packets, "src_ip").items()}
    assert counted(found, "src_ip") == counted(found, "src_ip", column="lower") == wanted
    assert all(row["upper"] >= row["estimate"] for row in found)
    assert sum(row["share"] for row in found) == pytest.approx(100)



EVERYTHING = ["--limit", "0"]


def test_everything_that_is_stored_equals_the_packets_and_the_flows(capture, roomy):
    for by in (["src_ip"], ["src_ip", "dst_ip"]):
        listed = ask("--by", ",".join(by), "--metric", "bytes", "--data-dir", roomy, *EVERYTHING)
        assert listed == ask("--by", ",".join(by), "--data-dir", roomy, *EVERYTHING), "bytes, where nothing is said"
        truth = sent(capture[1], *by)
        assert counted(listed, *by) == truth
        assert all(row["lower"] == row["estimate"] == row["upper"] for row in listed)
        assert [row["estimate"] for row in listed] == sorted(truth.values(), reverse=True)
        assert list(listed[0]) == [*by, "estimate", "lower", "upper", "share"]
        assert all(abs(row["share"] - 100 * row["estimate"] / sum(truth.values())) < 1e-9 for row in listed)
        proved = ask("--by", ",".join(by), "--metric", "bytes", "--data-dir", roomy, "--exact", *EVERYTHING)
        assert counted(proved, *by, column="exact") == truth and counted(proved, *by) == truth
        assert list(proved[0]) == [*by, "estimate", "lower", "upper", "exact", "share"]
    # Each side of a flow sends.
    both = "SELECT src_ip AS ip, bytes_o AS sent FROM flows UNION ALL SELECT dst_ip, bytes_r FROM flows"
    flows = rows(f"SELECT ip, sum(sent) AS n FROM ({both}) WHERE sent > 0 GROUP BY ip", roomy)
    assert {(row["ip"],): row["n"] for row in flows} == sent(capture[1], "src_ip")
    # Keys in another order are the same keys; a limit leaves the largest.
    turned = ask("--by", "dst_ip,src_ip", "--data-dir", roomy, *EVERYTHING)
    assert counted(turned, "src_ip", "dst_ip") == sent(capture[1], "src_ip", "dst_ip")
    assert ask("--by", "src_ip", "--metric", "bytes", "--data-dir", roomy, "--limit", "3") == ask(
        "--by", "src_ip", "--metric", "bytes", "--data-dir", roomy)[:3]
    packets = ask("--by", "src_ip", "--metric", "packets", "--data-dir", roomy, "--exact", *EVERYTHING)
    assert counted(packets, "src_ip") == counted(packets, "src_ip", column="exact") == sent(capture[1], "src_ip", weigh=lambda p: 1)


def test_what_flows_say_of_who_began_them(roomy):
    begun = rows("SELECT src_ip, count(*) AS n FROM flows WHERE part = 0 GROUP BY 1", roomy)
    truth = {(row["src_ip"],): row["n"] for row in begun}
    listed = ask("--by", "originator", "--metric", "flows", "--data-dir", roomy, "--exact", *EVERYTHING)
    assert counted(listed, "originator") == counted(listed, "originator", column="exact") == truth
    listed = ask("--by", "originator", "--metric", "distinct", "--data-dir", roomy, "--exact", *EVERYTHING)
    # A scan of 1,000 ports, within the bounds.
    assert listed and "share" not in listed[0]
    (scan,) = [row for row in listed if row["exact"] >= 1000]
    assert scan["lower"] <= scan["exact"] <= scan["upper"] and listed[0] == scan


def test_one_window_and_a_time(capture, roomy):
    windows = collections.defaultdict(list)
    for packet in capture[1]:
        windows[packet.time // MINUTE].append(packet)
    last, first = max(windows), min(windows)
    listed = ask("--by", "src_ip", "--metric", "bytes", "--window", "1m", "--data-dir", roomy, *EVERYTHING)
    assert counted(listed, "src_ip") == sent(windows[last], "src_ip")
    proved = ask("--by", "src_ip", "--metric", "bytes", "--window", "1m", "--data-dir", roomy, "--exact", *EVERYTHING)
    assert counted(proved, "src_ip") == sent(windows[last], "src_ip")
    # Flows that overlap it, with all they had.
    assert all(row["exact"] >= row["estimate"] for row in proved)
    instant = lambda ns: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(ns // 10**9))
    middle = (first + 1) * MINUTE
    for options, chosen in (
        (["--since", instant(middle + 10**9), "--until", instant(middle + 2 * 10**9)], [first + 1]),
        (["--since", instant(middle), "--until", instant(middle + MINUTE)], [first + 1]),
        (["--since", instant(middle + 10**9), "--until", instant(middle + MINUTE + 10**9)], [first + 1, first + 2]),
        (["--until", instant(middle)], [first]),
        (["--since", instant(last * MINUTE + 10**9)], [last]),
    ):
        inside = [packet for window in chosen for packet in windows[window]]
        listed = ask("--by", "src_ip,dst_ip", "--data-dir", roomy, "--exact", *options, *EVERYTHING)
        assert counted(listed, "src_ip", "dst_ip") == sent(inside, "src_ip", "dst_ip"), options
        assert all(row["exact"] >= row["estimate"] for row in listed), options
        # Flows that begin belong to one window each.
        start, end = min(chosen) * MINUTE // 1000, (max(chosen) + 1) * MINUTE // 1000
        begun = rows("SELECT src_ip, count(*) AS n FROM flows WHERE part = 0 AND t_start >= "
                     f"to_timestamp_micros({start}) AND t_start < to_timestamp_micros({end}) GROUP BY 1", roomy)
        listed = ask("--by", "originator", "--metric", "flows", "--data-dir", roomy, "--exact", *options, *EVERYTHING)
        truth = {(row["src_ip"],): row["n"] for row in begun}
        assert counted(listed, "originator") == counted(listed, "originator", column="exact") == truth, options


def test_only_what_was_seen_at_a_tap(capture, tmp_path):
    folder = tmp_path / "data"
    for tap in ("north", "south"):
        taphouse("replay", capture[0], "--data-dir", folder, "--tap", tap, "--set", ROOMY)
    truth = sent(capture[1], "src_ip")
    for options, times in ((["--tap", "north"], 1), (["--tap", "south"], 1), ([], 2)):
        listed = ask("--by", "src_ip", "--metric", "bytes", "--data-dir", folder, "--exact", *options, *EVERYTHING)
        assert counted(listed, "src_ip") == {key: times * n for key, n in truth.items()}
        assert counted(listed, "src_ip", column="exact") == counted(listed, "src_ip")
        share = sum(row["share"] for row in listed)
        assert abs(share - 100) < 1e-6
    assert "of this tap" in refused(USAGE, "talkers", "--by", "src_ip", "--data-dir", folder, "--tap", "west")


def test_bounds_hold_with_the_tasks_of_the_box(capture, plain):
    for by in (["src_ip"], ["src_ip", "dst_ip"]):
        truth = sent(capture[1], *by)
        listed = ask("--by", ",".join(by), "--data-dir", plain, "--limit", "100")
        assert len(listed) == min(100, len(truth))
        for row in listed:
            assert row["lower"] <= truth[tuple(row[name] for name in by)] <= row["upper"], row
        best = max(truth, key=truth.get)
        assert tuple(listed[0][name] for name in by) == best


def test_windows_as_a_whole(capture, roomy, plain):
    last = max(packet.time for packet in capture[1]) // MINUTE * MINUTE // 1000
    told = {(row["task"], row["quantile"]): row for row in ask("--data-dir", roomy)}
    assert {task for task, _ in told} == {"originators", "port_entropy", "flow_bytes"}
    begun = f"FROM flows WHERE part = 0 AND t_start >= to_timestamp_micros({last})"
    (row,) = rows(f"SELECT count(DISTINCT src_ip) AS n {begun}", roomy)
    hosts = told["originators", None]
    assert hosts["lower"] <= row["n"] <= hosts["upper"] and hosts["metric"] == "distinct" and hosts["elements"] == "originator"
    ports = [row["n"] for row in rows(f"SELECT dst_port, count(*) AS n {begun} GROUP BY 1", roomy)]
    bits = -sum(n / sum(ports) * math.log2(n / sum(ports)) for n in ports)
    entropy = told["port_entropy", None]
    assert entropy["lower"] <= bits <= entropy["upper"] and entropy["metric"] == "entropy"
    assert sorted(q for task, q in told if task == "flow_bytes") == [0.5, 0.9, 0.99]
    names = {row["task"] for row in ask("--data-dir", plain)}
    assert names == {"originators", "originator_entropy", "port_entropy", "rtt", "flow_bytes"}
    assert [row["task"] for row in ask("--task", "port_entropy", "--data-dir", plain)] == ["port_entropy"]


def test_what_cannot_be_answered_is_told(capture, roomy, tmp_path):
    def told(*args, where=roomy):
        return refused(USAGE, "talkers", *args, "--data-dir", where)

    assert "'src'" in (message := told("--by", "src")) and "src_ip, dst_ip" in message and message.startswith("--by: ")
    assert "src_ip and responder" in told("--by", "src_ip,responder")
    message = told("--by", "src_ip,dst_port")
    assert "history has no list" in message and "talkers (bytes by src_ip,dst_ip)" in message and "sketches.tasks" in message
    assert "history has no list of flows by src_ip" in told("--by", "src_ip", "--metric", "flows")
    message = told("--by", "src_ip", "--since", "2023-11-15T00:00:00Z", "--until", "2023-11-14T00:00:00Z")
    assert "--until lies before --since" in message
    message = told("--task", "nobody")
    assert message.startswith("--task: ") and "'nobody'" in message and "port_entropy" in message
    assert told("--tap", "nowhere").startswith("--tap: ")
    assert "'octets'" in (message := told("--by", "src_ip", "--metric", "octets")) and "bytes, packets, flows or distinct" in message
    assert "no window of this length" in told("--by", "src_ip", "--metric", "bytes", "--window", "7m")
    assert "--window: '1 parsec'" in told("--by", "src_ip", "--window", "1 parsec")
    assert "of this time" in told("--by", "src_ip", "--until", "2001-01-01T00:00:00Z")
    assert "--exact" in told("--by", "src_ip/24", "--exact")
    for option in (["--running"], ["--changes"], ["--follow"]):
        assert "cannot be used with" in told("--by", "src_ip", *option), option
    for option in (["--window", "1m"], ["--metric", "bytes"], ["--exact"], ["--follow"]):
        assert "--by" in refused(USAGE, "talkers", *option), option
    message = refused(USAGE, "talkers", "--by", "src_ip", "--follow")
    assert "--output ndjson" in message
    done = taphouse("talkers", "--by", "src_ip", "--follow", "--output", "parquet", ok=False)
    assert done.returncode == USAGE and "--output ndjson" in done.stderr
    # A folder whose server had no sketches, and one of a version that had no such table.
    for name, make in (("off", lambda folder: None), ("older", lambda folder: shutil.rmtree(folder / "talkers"))):
        taphouse("replay", capture[0], "--data-dir", tmp_path / name, "--set", "sketches.enabled=false")
        make(tmp_path / name)
        message = told("--by", "src_ip", where=tmp_path / name)
        assert "no window of the sketches is stored yet" in message and "sketches.enabled" in message
        assert ask("--data-dir", tmp_path / name) == []


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    """A server whose traffic is generated, with windows of a second."""
    folder = tmp_path_factory.mktemp("live")
    running = Server(["demo", "--rate", "3000", "--data-dir", folder / "data", "--set", HASTY])
    eventually("no window ends", lambda: metric(running, "taphouse_sketch_windows_total") >= 9)
    yield running
    running.stop()


def test_the_last_window_is_the_one_in_history(live):
    server = ["--server", live.grpc]
    listed = ask("--by", "src_ip", "--window", "1s", *server, *EVERYTHING)
    assert len(listed) > 5 and list(listed[0]) == ["src_ip", "estimate", "lower", "upper", "t_start", "t_end", "share"]
    assert len({(row["t_start"], row["t_end"]) for row in listed}) == 1
    assert all(row["lower"] <= row["estimate"] <= row["upper"] for row in listed)
    assert abs(sum(row["share"] for row in listed) - 100) < 1e-6
    query = ("SELECT src_ip, CAST(estimate AS BIGINT) AS n FROM talkers WHERE key_fields = 'src_ip' AND rank IS NOT NULL AND "
             f"t_end = '{listed[0]['t_end']}'")
    history = lambda: json.loads(taphouse("sql", query, *server, "--output", "json").stdout)
    eventually("it does not come to history", history)
    assert {(row["src_ip"],): row["n"] for row in history()} == counted(listed, "src_ip")
    # For people the window stands above the rows.
    shown = taphouse("talkers", "--by", "src_ip", "--window", "1s", "--limit", "3", *server).stdout.splitlines()
    assert re.fullmatch(r"bytes, [-0-9T:]+Z to [-0-9T:]+Z, over; all together [0-9]+ bytes", shown[0]), shown
    assert shown[1].split() == ["src_ip", "estimate", "lower", "upper", "share", "%", "plot"] and shown[-1] == "(3 rows)"
    everything = ask("--by", "src_ip", *server)
    assert everything[0]["estimate"] >= listed[0]["estimate"] and "t_end" not in everything[0]


def test_the_window_being_filled_by_any_part_of_a_key(live):
    server = ["--server", live.grpc]
    running = lambda: ask("--by", "src_ip/24,dst_port", "--running", *server, *EVERYTHING)
    eventually("nothing is counted", running)
    listed = running() or running()
    assert all(row["src_ip"].endswith(".0") or ":" in row["src_ip"] for row in listed)
    assert len(counted(listed, "src_ip", "dst_port")) == len(listed)
    for by in ("proto", "dst_ip,proto", "dst_port"):
        assert ask("--by", by, "--window", "1s", *server), by
    assert len(ask("--by", "src_ip", "--window", "1s", "--limit", "2", *server)) == 2


def test_what_flows_in_history_and_in_progress_prove(live):
    listed = ask("--by", "src_ip", "--window", "1s", "--exact", "--server", live.grpc, "--limit", "50")
    assert listed and all(row["exact"] >= row["lower"] for row in listed), listed
    listed = ask("--by", "originator", "--metric", "distinct", "--window", "1s", "--exact", "--server", live.grpc, "--limit", "50")
    assert listed and all(row["exact"] > 0 for row in listed), listed


def test_who_grew_and_who_shrank(live):
    for option in ([], ["--running"]):
        listed = ask("--by", "src_ip", "--changes", *option, "--server", live.grpc)
        assert list(listed[0]) == ["src_ip", "before", "after", "change", "lower", "upper", "t_start", "t_end"]
        assert all(row["change"] == row["after"] - row["before"] and row["lower"] <= row["change"] <= row["upper"] for row in listed)
        changes = [abs(row["change"]) for row in listed]
        assert changes == sorted(changes, reverse=True) and changes[0] > 0


def test_following_tells_of_the_running_window_and_of_each_that_ends(live):
    command = [BINARY, "talkers", "--by", "src_ip", "--window", "1s", "--limit", "5", "--follow", "--server", live.grpc]
    following = subprocess.Popen([*command, "--output", "ndjson"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    lines = []
    while len({line["t_end"] for line in lines if not line["running"]}) < 3:
        lines.append(json.loads(following.stdout.readline()))
    following.send_signal(signal.SIGINT)
    following.communicate(timeout=30)
    assert following.returncode in (-signal.SIGINT, 130)
    assert list(lines[0]) == ["src_ip", "estimate", "lower", "upper", "t_start", "t_end", "running", "share"]
    over = [line for line in lines if not line["running"]]
    # Each once, one after the other.
    ends = list(dict.fromkeys(line["t_end"] for line in over))
    assert ends == sorted(ends) and all(a["t_end"] == b["t_start"] for a, b in zip(over[4::5], over[5::5]))
    assert len({(line["t_end"], line["src_ip"]) for line in over}) == len(over)
    assert sum(line["running"] for line in lines) > 5
    # Tables for people, and the end of a reader.
    shown = subprocess.run(f"{BINARY} talkers --by src_ip --window 1s --follow --server {live.grpc} | head -n 12", shell=True,
                           capture_output=True, text=True, timeout=60)
    assert "src_ip" in shown.stdout and " to " in shown.stdout and "share %" in shown.stdout
    assert shown.stderr == ""


def test_what_a_server_cannot_answer_is_told(live, server, tmp_path):
    def told(*args, code=USAGE, where=live):
        return refused(code, "talkers", *args, "--server", where.grpc)

    message = told("--by", "src_ip", "--window", "7m")
    assert "talkers (bytes by src_ip,dst_ip,dst_port,proto, 1s)" in message and "7m" in message
    assert "no task counts bytes by vlan" in told("--by", "vlan", "--metric", "bytes", "--running")
    assert "no task" in told("--by", "src_port", "--changes")
    assert "'nobody'" in told("--by", "src_ip", "--running", "--task", "nobody")
    assert "'nowhere'" in told("--by", "src_ip", "--running", "--tap", "nowhere")
    assert "prefix" in told("--by", "src_ip/24", "--running", "--exact")
    silent = server(["demo", "--rate", "1", "--data-dir", tmp_path / "silent", "--set", "sketches.enabled=false"])
    assert "keeps no sketches" in told("--by", "src_ip", "--running", code=1, where=silent)
    assert "no window of the sketches" in told("--by", "src_ip", where=silent)
    assert json.loads(taphouse("status", "--server", silent.grpc, "--output", "json").stdout)["sketches"] is None


def test_status_and_metrics_count_windows(live):
    state = json.loads(taphouse("status", "--server", live.grpc, "--output", "json").stdout)["sketches"]
    assert state["tasks"] == 3 and state["windows"] >= 9 and state["memory_bytes"] > 10 * 2**20
    assert state["stragglers"] == state["rows_lost"] == 0
    shown = [line for line in taphouse("status", "--server", live.grpc).stdout.splitlines() if line.startswith("sketches ")]
    assert len(shown) == 1 and "3 tasks" in shown[0]
    assert metric(live, "taphouse_sketch_tasks") == 3
    assert metric(live, "taphouse_sketch_windows_total") >= state["windows"]
    assert metric(live, "taphouse_sketch_memory_bytes") == state["memory_bytes"]


def test_python_asks_and_watches(stubs, live):
    from taphouse.v1 import sketches_pb2 as pb, sketches_pb2_grpc

    service = sketches_pb2_grpc.SketchServiceStub(grpc.insecure_channel(live.grpc))
    tasks = service.ListTasks(pb.ListTasksRequest(), timeout=30).tasks
    assert [(task.name, task.metric, task.window.seconds) for task in tasks] == [
        ("talkers", "bytes", 1), ("fan_out", "distinct", 1), ("originators", "distinct", 1)]
    top = service.TopK(pb.TopKRequest(by=["src_ip", "dst_port"], limit=7), timeout=30)
    assert len(top.talkers) == 7 and not top.window.running and top.window.task == "talkers"
    assert all(talker.key.HasField("dst_port") and not talker.key.HasField("dst_ip") for talker in top.talkers)
    assert sum(talker.estimated.estimate for talker in top.talkers) + top.others.estimate == top.total
    # Anybody can prove it.
    proved = json.loads(taphouse("sql", top.proof_sql, "--server", live.grpc, "--output", "json").stdout)
    proved = {(row["src_ip"], row["dst_port"]): row["exact"] for row in proved}
    assert all(proved[talker.key.src_ip, talker.key.dst_port] >= talker.estimated.lower for talker in top.talkers)
    key = pb.TalkerKey(src_ip=top.talkers[0].key.src_ip)
    known = service.EstimateKey(pb.EstimateKeyRequest(by=["src_ip"], key=key), timeout=30).talker
    assert known.key == key and known.estimated.upper >= known.estimated.lower >= 0
    assert service.EstimateCardinality(pb.EstimateCardinalityRequest(), timeout=30).distinct.estimate > 1
    with pytest.raises(grpc.RpcError) as error:
        service.TopK(pb.TopKRequest(by=["src"]), timeout=30)
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT and "'src'" in error.value.details()

    stream = service.WatchTopK(pb.TopKRequest(by=["src_ip"], limit=3), timeout=60)
    over, snapshots = [], 0
    for answer in stream:
        snapshots += answer.window.running
        if not answer.window.running:
            over.append((answer.window.start_time.seconds, answer.window.end_time.seconds))
        if len(over) == 4:
            break
    stream.cancel()
    assert all(end == start + 1 for start, end in over) and snapshots > 4
    assert [end for _, end in over[:-1]] == [start for start, _ in over[1:]], "each once, and none missed"


def test_a_watcher_is_told_of_the_end_of_the_server(stubs, server, tmp_path):
    from taphouse.v1 import sketches_pb2 as pb, sketches_pb2_grpc

    demo = server(["demo", "--rate", "1000", "--data-dir", tmp_path / "data", "--set", HASTY])
    service = sketches_pb2_grpc.SketchServiceStub(grpc.insecure_channel(demo.grpc))
    stream = service.WatchTopK(pb.TopKRequest(by=["src_ip"]), timeout=60)
    next(stream)
    os.kill(demo.process.pid, signal.SIGTERM)
    with pytest.raises(grpc.RpcError) as error:
        for _ in stream:
            pass
    assert error.value.code() == grpc.StatusCode.UNAVAILABLE
    demo.stop()
    assert demo.process.returncode == 143 or demo.process.returncode == 0
