"""The command line: formats, signals, crashes, sources, times and columns."""
import csv
import gzip
import io
import ipaddress
import json
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import threading
import time
from datetime import datetime, timedelta, timezone

import pyarrow
import pytest

from conftest import BINARY, ROOT, Server, rows, taphouse

COMMANDS = ["run", "replay", "demo", "flows", "sql", "alerts", "status", "validate", "example-config", "completions", "man"]
EVERYTHING = "SELECT * FROM flows ORDER BY t_end, flow_id, part"
#: Flows end soon and reach the disk soon, so that a test need not wait.
HASTY = [
    word
    for setting in (
        *(f"flowtable.timeouts.{key}=1s" for key in ("tcp_idle", "udp_idle", "other_idle", "closed", "active")),
        "storage.sync_interval=50ms",
        "storage.retention.min_free=null",
    )
    for word in ("--set", setting)
]


def until(what, ask, seconds=30):
    """Asks again and again until the answer is yes; gives the answer."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if answer := ask():
            return answer
        time.sleep(0.05)
    raise AssertionError(what)


def line_of(server, word, seconds=30):
    """Reads the server's log up to the line that has the word."""
    watchdog = threading.Timer(seconds, server.process.kill)
    watchdog.start()
    try:
        for line in server.process.stderr:
            server.log.append(line)
            if word in line:
                return line
    finally:
        watchdog.cancel()
    raise AssertionError(f"no line with {word!r}: {''.join(server.log)}")


def parsed(text, output):
    """Rows of an answer in any of the formats that programs read."""
    if output == "json":
        return json.loads(text)
    if output == "ndjson":
        return [json.loads(line) for line in text.splitlines()]
    return list(csv.DictReader(io.StringIO(text)))


@pytest.fixture(scope="module")
def serving(stored):
    """A server over the replayed capture."""
    running = Server(["demo", "--rate", "1", "--data-dir", stored[0]])
    yield running
    running.stop()


def test_every_format_of_every_command_parses(serving, stored, generated, tmp_path):
    config = tmp_path / "taphouse.yaml"
    config.write_text("log: warn\n")
    folder, server = ["--data-dir", stored[0]], ["--server", serving.grpc]
    where = "tap = 'replay' AND dst_port = 53"
    commands = {
        "flows folder": ["flows", where, "--limit", "7", *folder],
        "flows server": ["flows", where, "--limit", "7", *server],
        "no flows": ["flows", "proto = 254", *folder],
        "sql folder": ["sql", "SELECT 1 AS n, 'a,\"b\"' AS t, NULL AS z, src_ip FROM flows LIMIT 3", *folder],
        "sql server": ["sql", "SELECT 1 AS n, 'a,\"b\"' AS t, NULL AS z, src_ip FROM flows LIMIT 3", *server],
        "describe": ["sql", "DESCRIBE flows", *server],
        "alerts folder": ["alerts", *folder],
        "alerts server": ["alerts", *server],
        "status": ["status", *server],
        "validate": ["validate", config],
    }
    expected = {"flows folder": 7, "flows server": 7, "no flows": 0, "sql folder": 3, "sql server": 3}
    for name, command in commands.items():
        answers = {o: taphouse(*command, "--output", o).stdout for o in ("table", "json", "ndjson", "csv")}
        assert answers["table"].strip(), name
        lists = {o: parsed(answers[o], o) for o in ("json", "ndjson", "csv")}
        if name in ("status", "validate"):
            assert isinstance(lists["json"], dict) and len(lists["ndjson"]) == 1 and lists["ndjson"][0].keys() == lists["json"].keys()
            continue
        assert len(lists["json"]) == len(lists["ndjson"]) == len(lists["csv"]) == expected.get(name, len(lists["json"])), name
        assert lists["json"] == lists["ndjson"], name
        if lists["json"] and name.split()[0] != "alerts":
            assert list(lists["json"][0]) == list(lists["csv"][0]), name
            assert [r.get("src_ip") for r in lists["json"]] == [r.get("src_ip") for r in lists["csv"]]
    assert len(parsed(taphouse("alerts", *folder, "--output", "json").stdout, "json")) > 0
    quoted = parsed(taphouse(*commands["sql folder"], "--output", "csv").stdout, "csv")[0]
    assert quoted["t"] == 'a,"b"' and quoted["z"] == ""

    for output in ("table", "json", "ndjson", "csv"):
        text = taphouse("replay", generated[0], "--data-dir", tmp_path / output, "--output", output).stdout
        if output == "table":
            assert "200,000  packets" in text
        else:
            summary = parsed(text, output)
            summary = summary if isinstance(summary, dict) else summary[0]
            assert int(summary["packets"]) == 200_000


def test_addresses_are_addresses_everywhere(serving, stored):
    query = "SELECT src_ip, dst_ip FROM flows WHERE tap = 'replay' ORDER BY flow_id, part LIMIT 50"
    for where in (["--data-dir", stored[0]], ["--server", serving.grpc]):
        for output in ("json", "ndjson", "csv"):
            for row in parsed(taphouse("sql", query, *where, "--output", output).stdout, output):
                ipaddress.ip_address(row["src_ip"]), ipaddress.ip_address(row["dst_ip"])
        body = taphouse("sql", query, *where).stdout.splitlines()[2:-1]
        assert len(body) == 50
        for line in body:
            [ipaddress.ip_address(word) for word in line.split()]
        table = taphouse("flows", "tap = 'replay'", "--limit", "9", *where).stdout.splitlines()
        place = table[0].split().index("src_ip")
        assert [ipaddress.ip_address(line.split()[place]) for line in table[2:-1]]


def test_addresses_networks_and_ports_in_every_expression(serving, stored):
    everything = rows("SELECT flow_id, part, src_ip, dst_ip, src_port, dst_port FROM flows WHERE tap = 'replay'", stored[0])
    host = everything[0]["src_ip"]
    net = ipaddress.ip_network(f"{host}/{'20' if '.' in host else '48'}", strict=False)
    inside = lambda text: ipaddress.ip_address(text) in net
    models = {
        f"src_ip = '{host}'": lambda r: r["src_ip"] == host,
        f"host('{host}')": lambda r: host in (r["src_ip"], r["dst_ip"]),
        f"net('{net}')": lambda r: inside(r["src_ip"]) or inside(r["dst_ip"]),
        "port(53)": lambda r: 53 in (r["src_port"], r["dst_port"]),
        f"ip_text(src_ip) = '{host}' OR port(443)": lambda r: r["src_ip"] == host or 443 in (r["src_port"], r["dst_port"]),
        f"NOT host('{host}') AND src_ip IN ('{everything[1]['src_ip']}', '{everything[2]['src_ip']}')": lambda r: host
        not in (r["src_ip"], r["dst_ip"]) and r["src_ip"] in (everything[1]["src_ip"], everything[2]["src_ip"]),
    }
    key = lambda r: (r["flow_id"], r["part"])
    for text, model in models.items():
        right = sorted(key(r) for r in everything if model(r))
        assert 0 < len(right) < len(everything), text
        for where in (["--data-dir", stored[0]], ["--server", serving.grpc]):
            sql = f"SELECT flow_id, part FROM flows WHERE tap = 'replay' AND ({text})"
            got = json.loads(taphouse("sql", sql, *where, "--output", "json").stdout)
            assert sorted(map(key, got)) == right, text
            flows = ["flows", f"tap = 'replay' AND ({text})", "--limit", "0", "--columns", "flow_id,part"]
            got = json.loads(taphouse(*flows, *where, "--output", "json").stdout)
            assert sorted(map(key, got)) == right, text


def test_since_until_limit_and_columns(serving, stored):
    everything = rows("SELECT flow_id, part, t_start, t_end FROM flows WHERE tap = 'replay' ORDER BY t_end", stored[0])
    # Fixed width and UTC: text compares as time does.
    since, until_ = everything[len(everything) // 3]["t_end"], everything[2 * len(everything) // 3]["t_end"]
    key = lambda r: (r["flow_id"], r["part"])
    for where in (["--data-dir", stored[0]], ["--server", serving.grpc]):
        ask = ["flows", "tap = 'replay'", "--columns", "t_end,part,flow_id", "--output", "json", *where]
        listing = lambda *more: json.loads(taphouse(*ask, *more).stdout)
        right = [key(r) for r in everything if r["t_end"] >= since and r["t_start"] < until_]
        got = listing("--since", since, "--until", until_, "--limit", "0")
        assert sorted(map(key, got)) == sorted(right) and 0 < len(right) < len(everything)
        assert [r["t_end"] for r in got] == sorted((r["t_end"] for r in got), reverse=True), "newest first"
        assert list(got[0]) == ["t_end", "part", "flow_id"]
        assert len(listing()) == 100 and len(listing("--limit", "3")) == 3
        assert listing("--limit", "3") == listing()[:3]
        assert len(listing("--limit", "0")) == len(everything)
        # The same moment in another zone, and back from now.
        there = datetime.fromisoformat(since).astimezone(timezone(timedelta(hours=5, minutes=30))).isoformat()
        assert listing("--since", there, "--limit", "0") == listing("--since", since, "--limit", "0")
        assert listing("--since=-1m") == [] and listing("--until", "-1m", "--limit", "1") == listing("--limit", "1")


def test_help_lists_exit_codes_and_man_pages_completions_and_example_are_whole(tmp_path):
    for command in (["--help"], *([c, "--help"] for c in COMMANDS[:8])):
        text = taphouse(*command).stdout
        assert "Exit codes:" in text and "damaged" in text and "no server answers" in text, command
    for shell in ("bash", "zsh", "fish"):
        text = taphouse("completions", shell).stdout
        assert all(word in text for word in ("replay", "data-dir", "ndjson", "flows")), shell
        if shutil.which(shell):
            (tmp_path / shell).write_text(text)
            subprocess.run([shell, "-n", tmp_path / shell], check=True)
    pages = tmp_path / "man"
    taphouse("man", pages)
    assert {p.name for p in pages.iterdir()} >= {"taphouse.1", *(f"taphouse-{c}.1" for c in COMMANDS)}
    for page in pages.iterdir():
        text = page.read_text()
        assert re.search(r"^\.TH ", text, re.M) and ".SH NAME" in text and ".SH SYNOPSIS" in text, page
        if shutil.which("groff"):
            done = subprocess.run(["groff", "-man", "-Tascii", "-ww", page], capture_output=True, text=True, check=True)
            # Bold is a letter struck twice.
            assert done.stderr == "" and "SYNOPSIS" in re.sub(".\x08", "", done.stdout), (page, done.stderr)
    assert "Exit codes" in (pages / "taphouse-replay.1").read_text()
    example = tmp_path / "example.yaml"
    example.write_text(taphouse("example-config").stdout)
    assert example.read_text() == (ROOT / "taphouse.example.yaml").read_text()
    assert json.loads(taphouse("validate", example, "--output", "json").stdout) == {"file": str(example), "valid": True}


def cut(capture, packets):
    """Where in a little-endian pcap so many packets end."""
    at = 24
    for _ in range(packets):
        at += 16 + struct.unpack_from("<I", capture, at + 8)[0]
    return at


def test_every_way_to_replay_gives_the_same_rows(generated, tmp_path):
    plain = generated[0].read_bytes()
    plain = plain[: cut(plain, 30_000)]
    (tmp_path / "a.pcap").write_bytes(plain)
    taphouse("replay", tmp_path / "a.pcap", "--data-dir", tmp_path / "plain")
    right = rows(EVERYTHING, tmp_path / "plain")
    assert sum(r["pkts_o"] + r["pkts_r"] for r in right) > 29_000
    (tmp_path / "a.pcap.gz").write_bytes(gzip.compress(plain, 1))
    with pyarrow.CompressedOutputStream(str(tmp_path / "a.pcap.zst"), "zstd") as out:
        out.write(plain)
    # Two files, cut between packets: the second goes on where the first ended.
    at = cut(plain, 11_000)
    (tmp_path / "1.pcap").write_bytes(plain[:at])
    (tmp_path / "2.pcap").write_bytes(plain[:24] + plain[at:])
    ways = {
        "gz": ([tmp_path / "a.pcap.gz"], {}),
        "zst": ([tmp_path / "a.pcap.zst"], {}),
        "several": ([tmp_path / "1.pcap", tmp_path / "2.pcap"], {}),
        "stdin": (["-"], {"stdin": (tmp_path / "a.pcap").open("rb")}),
        "pipe": (["-"], {"stdin": subprocess.Popen(["cat", tmp_path / "a.pcap.gz"], stdout=subprocess.PIPE).stdout}),
    }
    for name, (files, kwargs) in ways.items():
        done = taphouse("replay", *files, "--data-dir", tmp_path / name, "--output", "json", **kwargs)
        assert done.stderr == "" and json.loads(done.stdout)["packets"] == 30_000
        assert rows(EVERYTHING, tmp_path / name) == right, name
        if kwargs:
            kwargs["stdin"].close()


def test_the_progress_bar_is_for_terminals_only(generated, tmp_path):
    ours, theirs = pty.openpty()
    process = subprocess.Popen([BINARY, "replay", generated[0], "--data-dir", tmp_path / "pty"], stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 65536):
            shown += chunk
    except OSError:
        pass  # The other side has closed: Linux says EIO.
    summary, _ = process.communicate(timeout=60)
    os.close(ours)
    assert process.returncode == 0 and b"200,000  packets" in summary
    assert b"% " in shown and b" packets, " in shown and b"eta" in shown, shown[-500:]
    assert b"\x1b" not in summary
    assert taphouse("replay", generated[0], "--data-dir", tmp_path / "pipe").stderr == ""


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_everything_to_disk(stop, server, tmp_path):
    data = tmp_path / "data"
    running = server(["demo", "--rate", "20000", "--data-dir", data, *HASTY])
    until("no rows", lambda: rows("SELECT count(*) AS n FROM flows", data)[0]["n"] > 1000)
    running.process.send_signal(stop)
    log = running.process.stderr.read()
    assert running.process.wait(timeout=30) == 0
    said = re.search(r"(\d+) packets offered, (\d+) processed, (\d+) lost, (\d+) records stored, (\d+) dropped", log)
    offered, processed, lost, stored, dropped = map(int, said.groups())
    assert offered >= processed > 0 and lost == dropped == 0
    count = rows("SELECT count(*) AS n, sum(pkts_o + pkts_r) AS packets FROM flows", data)[0]
    assert count == {"n": stored, "packets": processed}
    assert not list(data.glob("wal/*")), "everything is in segments"
    again = server(["demo", "--rate", "1", "--data-dir", data])
    again.stop()
    assert rows("SELECT count(*) AS n FROM flows", data)[0]["n"] >= stored


def test_an_interrupted_replay_keeps_what_it_read(generated, tmp_path):
    data = tmp_path / "data"
    process = subprocess.Popen(
        [BINARY, "replay", "-", "--data-dir", data, "--output", "json"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    head = generated[0].read_bytes()[: 1 << 20]
    process.stdin.write(head)
    process.stdin.flush()
    # The pipe is empty once the replay has taken everything.
    until("the pipe is not read", lambda: (data / "lock").exists() and not in_pipe(process.stdin))
    process.send_signal(signal.SIGINT)
    # Held open meanwhile: the interrupt ends the replay, not the end of its input.
    held, process.stdin = process.stdin, None
    out, err = process.communicate(timeout=30)
    held.close()
    summary = json.loads(out)
    assert process.returncode == 0 and summary["interrupted"] and summary["packets"] > 1000, err
    stored = rows("SELECT sum(pkts_o + pkts_r) AS n FROM flows", data)[0]["n"]
    assert stored == summary["ledger"]["causes"]["processed"]


def in_pipe(stream):
    """Bytes in a pipe that nobody has read."""
    import array
    import fcntl
    import termios

    count = array.array("i", [0])
    fcntl.ioctl(stream, termios.FIONREAD, count)
    return count[0]


def test_rows_that_were_synced_survive_a_kill_exactly_once(server, tmp_path):
    data = tmp_path / "data"
    ids = "SELECT flow_id, part, t_end FROM flows"
    key = lambda r: (r["flow_id"], r["part"], r["t_end"])
    settings = [*HASTY, "--set", "storage.segment_age=1s"]
    running = server(["demo", "--rate", "20000", "--data-dir", data, *settings])
    # Some in segments, some in the log only.
    until("no segment and log", lambda: list(data.glob("segments/**/*.parquet")) and list(data.glob("wal/*.wal")))
    seen = until("no rows", lambda: (found := rows(ids, data)) if len(found := rows(ids, data)) > 2000 else None)
    running.process.kill()
    running.process.wait()
    again = server(["demo", "--rate", "1", "--data-dir", data])
    for _ in range(2):
        after = [key(r) for r in rows(ids, data)]
        assert len(after) == len(set(after)), "no row twice"
        assert set(map(key, seen)) <= set(after), "no row lost"
        again.stop()


def test_a_folder_is_read_while_it_is_written(server, tmp_path):
    data = tmp_path / "data"
    running = server(["demo", "--rate", "20000", "--data-dir", data, *HASTY, "--set", "storage.segment_age=1s"])
    counts = [0]

    def grown():
        answer = rows("SELECT count(*) AS n, count(DISTINCT flow_id * 65536 + part) AS d FROM flows", data)[0]
        assert answer["n"] == answer["d"], "rows on their way from log to segment are there once"
        assert answer["n"] >= counts[-1], "and never missing"
        counts.append(answer["n"])
        return len(list(data.glob("segments/**/*.parquet"))) >= 3

    until("no segments", grown)
    assert counts[-1] > 0
    running.stop()


def test_a_hangup_rereads_the_configuration(server, tmp_path):
    config = tmp_path / "taphouse.yaml"
    config.write_text("log: info\n")
    running = server(["demo", "--rate", "10", "--config", config, "--data-dir", tmp_path / "data"])

    def hang_up(text):
        config.write_text(text)
        running.process.send_signal(signal.SIGHUP)

    hang_up("log: info\n")
    assert "nothing changed" in line_of(running, "re-read")
    hang_up("log: info\nflowtable: {timeouts: {udp_idle: 7s}}\ndetect: {port_scan: {targets_min: 33}}\n")
    line = line_of(running, "re-read")
    assert "changed detect.port_scan.targets_min, flowtable.timeouts.udp_idle" in line and "restart" not in line
    hang_up("log: info\nflowtable: {timeouts: {udp_idle: 7s}}\npipeline: {workers: 3}\nstorage: {segment_rows: 99}\n")
    line = line_of(running, "re-read")
    assert "changed detect.port_scan.targets_min;" in line and "needs a restart: pipeline.workers, storage.segment_rows" in line
    hang_up("log: info\npipelin: {workers: 3}\n")
    line = line_of(running, "stays as it is")
    assert "'pipelin'" in line and "'pipeline'" in line and "line 2" in line
    hang_up("log: info\nflowtable: {timeouts: off}\n")
    line = line_of(running, "re-read")
    assert "flowtable.timeouts" in line and "flowtable.timeouts." not in line
    log = running.stop()
    assert running.process.returncode == 0 and "\x1b" not in log
