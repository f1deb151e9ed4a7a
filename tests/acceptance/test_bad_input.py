"""Bad input of every kind: one clear sentence, a documented exit code, valid JSON, and nothing lost that was stored."""
import gzip
import json
import os
import re
import socket
import struct
import subprocess
import threading
import time

import pytest

from conftest import BINARY, rows, taphouse

FAILED, USAGE, DAMAGED, NOT_PERMITTED, UNREACHABLE = 1, 2, 3, 4, 5
CODES = {FAILED: "failed", USAGE: "usage", DAMAGED: "damaged_input", NOT_PERMITTED: "not_permitted", UNREACHABLE: "unreachable"}
NO_RETENTION = ["--set", "storage.retention.min_free=null"]
LOG_LINE = re.compile(r"^\d{4}-\d\d-\d\dT[0-9:.]+Z +(ERROR|WARN|INFO)")

# Ethernet, IPv4, TCP: a SYN from 192.0.2.1:80 to 198.51.100.1:80.
FRAME = bytes.fromhex(
    "ffffffffffff 020000000001 0800 4500002800010000 4006 0000 c0000201 c6336401 0050 0050 00000000 00000000 5002 0000 0000 0000"
)


def pcap(*records, magic=0xA1B2C3D4, version=2, link=1):
    return struct.pack("<IHHiIII", magic, version, 4, 0, 0, 65535, link) + b"".join(records)


def record(data=FRAME, seconds=1_700_000_000, micros=0, captured=None, wire=None):
    captured = len(data) if captured is None else captured
    return struct.pack("<IIII", seconds, micros, captured, len(data) if wire is None else wire) + data


def block(kind, body):
    length = struct.pack("<I", 12 + len(body))
    return struct.pack("<I", kind) + length + body + length


SECTION = block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1))
INTERFACE = block(1, struct.pack("<HHI", 1, 0, 0))


def enhanced(data=FRAME, interface=0, high=395_000, captured=None):
    padded = data + bytes(-len(data) % 4)
    return block(6, struct.pack("<IIIII", interface, high, 0, len(data) if captured is None else captured, len(data)) + padded)


def sentence(done, code):
    """The one sentence of a command that must fail; the JSON it printed holds the same."""
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    assert "panicked" not in done.stderr
    own = [line for line in done.stderr.splitlines() if not LOG_LINE.match(line)]
    assert own and own[0].startswith("taphouse: "), done.stderr
    assert sum(line.startswith("taphouse: ") for line in own) == 1, done.stderr
    message = "\n".join(own).removeprefix("taphouse: ")
    error = json.loads(done.stdout)["error"]
    assert error == {"code": CODES[code], "message": message}
    assert not message.endswith(".") and len(set(message.split(": "))) == len(message.split(": ")), message
    return message


def refused(code, *args, **kwargs):
    return sentence(taphouse(*args, "--output", "json", ok=False, **kwargs), code)


EVERYTHING = "SELECT * FROM flows ORDER BY t_end, flow_id, part, tap"


@pytest.fixture
def kept(testdata, tmp_path):
    """A folder that holds rows; they must still be there, unchanged, when the test is over."""
    folder = tmp_path / "kept"
    taphouse("replay", testdata / "pcap/mix_example.pcap", "--data-dir", folder)
    before = rows(EVERYTHING, folder)
    assert len(before) > 100
    yield folder
    after = rows(EVERYTHING, folder)
    seen = {json.dumps(row, sort_keys=True) for row in after}
    assert all(json.dumps(row, sort_keys=True) in seen for row in before)


def count(folder):
    return rows("SELECT count(*) AS n FROM flows", folder)[0]["n"]


NO_CAPTURE = {
    "empty": (b"", "is empty"),
    "zero_length_header": (bytes(24), "00000000"),
    "text": (b"these are no packets\n" * 9, "expected pcap"),
    "three_bytes": (pcap()[:3], "cut short: the header at byte 0"),
    "header_cut": (pcap()[:20], "cut short: the header at byte 0"),
    "version": (pcap(version=9), "version 9.4"),
    "xz": (b"\xfd7zXZ\0" + bytes(40), "this is xz"),
    "gzip_garbage": (b"\x1f\x8b" + bytes(range(200)), "gzip stream fails"),
    "zstd_garbage": (b"\x28\xb5\x2f\xfd" + b"\xff" * 200, "zstd stream fails"),
    "gzip_empty": (gzip.compress(b""), "is empty"),
}


@pytest.mark.parametrize("name", NO_CAPTURE)
def test_what_is_no_capture_is_refused_and_costs_nothing(name, kept, tmp_path):
    content, word = NO_CAPTURE[name]
    file = tmp_path / "bad.pcap"
    file.write_bytes(content)
    message = refused(DAMAGED, "replay", file, "--data-dir", tmp_path / "new")
    assert word in message and "bad.pcap" in message
    assert not (tmp_path / "new").exists()
    before = count(kept)
    refused(DAMAGED, "replay", file, "--data-dir", kept)
    assert count(kept) == before


GOOD = pcap(record(), record(micros=1))
# Content, packets before the damage, the byte where the damaged record begins, what the message says.
DAMAGE = {
    "data_cut": (GOOD + record()[:-1], 2, len(GOOD), "cut short"),
    "record_header_cut": (GOOD + record()[:9], 2, len(GOOD), "cut short"),
    "impossible_length": (GOOD + record(captured=0x7FFF_FFFF) + record(), 2, len(GOOD), "2147483647"),
    "first_record_cut": (pcap() + record()[:8], 0, 24, "cut short"),
    "pcapng_block_cut": (SECTION + INTERFACE + enhanced() + enhanced()[:-5], 1, 48 + 88, "cut short"),
    "pcapng_lengths_differ": (SECTION + INTERFACE + enhanced() + enhanced()[:-4] + b"\x10\0\0\0", 1, 136, "behind"),
    "pcapng_length_impossible": (SECTION + INTERFACE + enhanced() + struct.pack("<II", 6, 13) + bytes(80), 1, 136, "13"),
    "pcapng_packet_too_long": (SECTION + INTERFACE + enhanced() + enhanced(captured=70_000), 1, 136, "70000"),
    "pcapng_no_such_interface": (SECTION + INTERFACE + enhanced() + enhanced(interface=7), 1, 136, "interface 7"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_keeps_what_came_before_and_says_at_which_byte(name, kept, tmp_path):
    content, packets, at, word = DAMAGE[name]
    before = count(kept)
    for file, data in ((tmp_path / "bad.pcap", content), (tmp_path / "bad.pcap.gz", gzip.compress(content))):
        file.write_bytes(data)
        done = taphouse("replay", file, "--data-dir", kept, "--output", "json", ok=False)
        message = sentence_with_summary(done)
        assert f"at byte {at}" in message and word in message, message
        summary = json.loads(done.stdout)
        assert summary["packets"] == packets and summary["ledger"]["balanced"]
        assert summary["records"] == (1 if packets else 0)
        before += summary["records"]
        assert count(kept) == before


def sentence_with_summary(done):
    """Damage in the midst: the summary of what came before, with the error in it."""
    assert done.returncode == DAMAGED, (done.stdout, done.stderr)
    assert done.stderr.startswith("taphouse: ") and done.stderr.count("\n") == 1, done.stderr
    message = done.stderr.strip().removeprefix("taphouse: ")
    assert json.loads(done.stdout)["error"] == {"code": "damaged_input", "message": message}
    return message


def test_a_compressed_stream_that_ends_early(testdata, tmp_path):
    plain = (testdata / "pcap/mix_example.pcap").read_bytes()
    cut = tmp_path / "cut.pcap.gz"
    cut.write_bytes(gzip.compress(plain)[:-2000])
    done = taphouse("replay", cut, "--data-dir", tmp_path / "data", "--output", "json", ok=False)
    message = sentence_with_summary(done)
    summary = json.loads(done.stdout)
    assert "gzip stream fails after" in message and f"the {summary['packets']} packets before" in message
    assert summary["packets"] > 1000 and count(tmp_path / "data") == summary["records"] > 100


def test_every_format_tells_of_damage(tmp_path):
    bad = tmp_path / "bad.pcap"
    bad.write_bytes(GOOD + record()[:-1])
    for output in ("table", "json", "ndjson", "csv"):
        done = taphouse("replay", bad, "--data-dir", tmp_path / output, "--output", output, ok=False)
        assert done.returncode == DAMAGED and done.stderr.count("taphouse: ") == 1
        assert "2" in done.stdout


def test_a_bad_file_among_several_is_found_before_anything_is_stored(testdata, kept, tmp_path):
    good, bad = testdata / "pcap/cid_udp.pcap", tmp_path / "bad.pcap"
    bad.write_bytes(b"not a capture")
    before = count(kept)
    assert "bad.pcap" in refused(DAMAGED, "replay", good, bad, "--data-dir", kept)
    assert "missing.pcap" in refused(FAILED, "replay", good, tmp_path / "missing.pcap", "--data-dir", kept)
    assert count(kept) == before


def test_unreadable_files(kept, tmp_path):
    message = refused(FAILED, "replay", tmp_path / "missing.pcap", "--data-dir", kept)
    assert message.count("No such file or directory") == 1
    assert "is a directory" in refused(FAILED, "replay", tmp_path, "--data-dir", kept)

    garbage = taphouse("replay", "-", "--data-dir", kept, "--output", "json", ok=False, input="garbage " * 20)
    assert "standard input" in sentence_with_summary(garbage) and "67617262" in garbage.stderr
    silent = taphouse("replay", "-", "--data-dir", kept, "--output", "json", ok=False, stdin=subprocess.DEVNULL)
    assert silent.returncode == DAMAGED and "is empty" in silent.stderr

    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = threading.Thread(target=lambda: fifo.write_bytes(b"garbage" * 9))
    writer.start()
    done = taphouse("replay", fifo, "--data-dir", kept, "--output", "json", ok=False)
    writer.join()
    assert "no capture" in sentence_with_summary(done)


def test_odd_timestamps_and_snaplen_cut_packets_lose_nothing(tmp_path):
    captures = {
        "highest": pcap(record(seconds=0xFFFF_FFFF, micros=999_999)),
        "impossible": pcap(record(), record(micros=1_000_000), record(seconds=0xFFFF_FFFF, micros=0xFFFF_FFFF)),
        "nothing": pcap(record(seconds=0)),
        "backwards": pcap(record(seconds=100), record(seconds=50), record(seconds=0xFFFF_FFFF), record(seconds=10)),
        "beyond": SECTION + INTERFACE + enhanced(high=0xFFFF_FFFF),
    }
    for name, content in captures.items():
        file = tmp_path / f"{name}.pcap"
        file.write_bytes(content)
        done = taphouse("replay", file, "--data-dir", tmp_path / name, "--output", "json", ok=False)
        if name == "impossible":
            assert done.returncode == DAMAGED and "2 packets with an impossible time" in done.stderr
            assert done.stderr.count("\n") == 1
        else:
            assert done.returncode == 0
            assert "dated long after" in done.stderr if name == "backwards" else not done.stderr, done.stderr
        summary = json.loads(done.stdout)
        assert summary["ledger"]["balanced"] and summary["ledger"]["causes"]["processed"] == summary["packets"] > 0
        stored = rows("SELECT sum(pkts_o + pkts_r) AS n, min(dur_us) AS least FROM flows", tmp_path / name)[0]
        assert stored["n"] == summary["packets"] and stored["least"] >= 0

    # Each length of the same packet: what the cut leaves decides where the packet is counted, and nothing is lost.
    cut = tmp_path / "cut.pcap"
    cut.write_bytes(pcap(*(record(FRAME[:n], micros=n, wire=len(FRAME)) for n in range(len(FRAME) + 1))))
    summary = json.loads(taphouse("replay", cut, "--data-dir", tmp_path / "cut", "--output", "json").stdout)
    assert summary["packets"] == len(FRAME) + 1 and summary["ledger"]["balanced"]
    assert summary["decode_errors"]["link_truncated"] == 14 and summary["decode_errors"]["ip_truncated"] == 20
    assert rows("SELECT sum(bytes_o) AS n FROM flows", tmp_path / "cut")[0]["n"] == 40 * summary["ledger"]["causes"]["processed"]


def test_folders_that_are_not_ours(testdata, tmp_path):
    capture = testdata / "pcap/cid_udp.pcap"
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    for command in (["replay", capture], ["flows"], ["sql", "SELECT 1"], ["alerts"]):
        message = refused(FAILED, *command, "--data-dir", foreign)
        assert "thesis.txt" in message and str(foreign) in message
    assert [p.name for p in foreign.iterdir()] == ["thesis.txt"]

    file = tmp_path / "file"
    file.write_text("a file")
    for command in (["replay", capture], ["flows"]):
        assert "is a file, not a folder" in refused(FAILED, *command, "--data-dir", file)
    assert "no data folder at" in refused(FAILED, "flows", "--data-dir", tmp_path / "missing")

    for text, word in (("{", "marker"), ('{"product":"other","format":1}', "other"), ('{"product":"taphouse","format":99}', "99")):
        broken = tmp_path / f"broken-{word}"
        broken.mkdir()
        (broken / "taphouse.json").write_text(text)
        for command in (["replay", capture], ["flows"]):
            assert word in refused(FAILED, *command, "--data-dir", broken)
        assert (broken / "taphouse.json").read_text() == text


def test_a_damaged_segment_is_told_and_then_set_aside(testdata, tmp_path):
    folder = tmp_path / "data"
    for name in ("mix_example", "cid_udp"):
        taphouse("replay", testdata / f"pcap/{name}.pcap", "--data-dir", folder)
    segments = sorted(folder.glob("segments/**/*.parquet"), key=lambda p: p.stat().st_size)
    assert len(segments) == 2
    whole = count(folder)
    os.truncate(segments[1], segments[1].stat().st_size // 2)
    message = refused(FAILED, "sql", "SELECT sum(bytes_o) FROM flows", "--data-dir", folder)
    assert segments[1].name in message, message
    # The next writer goes on with what is good and keeps the rest for whoever wants to look.
    done = taphouse("replay", testdata / "pcap/cid_udp.pcap", "--data-dir", folder)
    assert "set aside" in done.stderr
    assert (folder / "damaged" / segments[1].name).exists()
    assert 0 < count(folder) < whole


def needs_root():
    if os.geteuid() == 0:
        return
    if os.environ.get("REQUIRE_XDP") == "1":
        pytest.fail("mount namespaces need root")
    pytest.skip("mount namespaces need root")


class Disk:
    """A small file system in a mount namespace of its own, which goes with the process that holds it."""

    def __init__(self, at, size):
        at.mkdir()
        script = f'mount -t tmpfs -o size={size} none "{at}" && echo mounted && exec cat'
        self.at = at
        self.holder = subprocess.Popen(["unshare", "-m", "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.holder.stdout.readline() == "mounted\n"
        self.prefix = ["nsenter", "-m", "-t", str(self.holder.pid)]

    def run(self, *args, ok=True, output="json"):
        command = [*self.prefix, BINARY, *map(str, args), "--output", output]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert not ok or done.returncode == 0, (done.stdout, done.stderr)
        return done

    def shell(self, command):
        subprocess.run([*self.prefix, "sh", "-c", command], check=True, capture_output=True)

    def count(self, folder):
        return json.loads(self.run("sql", "SELECT count(*) AS n FROM flows", "--data-dir", folder).stdout)[0]["n"]

    def release(self):
        self.holder.stdin.close()
        self.holder.wait(timeout=10)
        self.holder.stdout.close()


@pytest.fixture
def disk(tmp_path):
    needs_root()
    made = []

    def make(size):
        made.append(Disk(tmp_path / f"disk{len(made)}", size))
        return made[-1]

    yield make
    for d in made:
        d.release()


def test_a_read_only_folder(disk, testdata):
    small = disk("8m")
    capture, data = testdata / "pcap/mix_example.pcap", small.at / "data"
    small.run("replay", capture, "--data-dir", data, *NO_RETENTION)
    stored = small.count(data)
    small.shell(f'mount -o remount,ro "{small.at}"')
    for folder in (data, small.at / "new"):
        message = sentence(small.run("replay", capture, "--data-dir", folder, ok=False), NOT_PERMITTED)
        assert str(folder) in message and "cannot be written" in message
    assert small.count(data) == stored, "reading needs no right to write"


def test_a_disk_that_fills_up_ends_a_replay_and_loses_nothing(disk, testdata, generated):
    # The log fits and the segment does not; then not even the log fits.
    for size, word in (("4600k", "in the log"), ("2800k", "could not be stored")):
        small = disk(size)
        data = small.at / "data"
        small.run("replay", testdata / "pcap/mix_example.pcap", "--data-dir", data, *NO_RETENTION)
        everything = lambda: json.loads(small.run("sql", EVERYTHING, "--data-dir", data).stdout)
        before = everything()
        failed = small.run("replay", generated[0], "--data-dir", data, *NO_RETENTION, ok=False)
        message = sentence(failed, FAILED)
        assert "is full" in message and str(data) in message and "not complete" in message and word in message, message
        after = everything()
        assert len(after) > len(before)
        seen = {json.dumps(row) for row in after}
        assert all(json.dumps(row) in seen for row in before)


def test_a_replay_never_drops_segments_to_make_room(disk, testdata):
    small = disk("8m")
    data = small.at / "data"
    for _ in range(3):
        # The default keeps 1 GiB free, which this disk never has.
        small.run("replay", testdata / "pcap/mix_example.pcap", "--data-dir", data)
    assert small.count(data) == 3 * 136


def test_a_server_on_a_full_disk_goes_on_counts_and_recovers(disk, server):
    small = disk("24m")
    data = small.at / "data"
    small.shell(f'dd if=/dev/zero of="{small.at}/ballast" bs=1M count=22')
    short = [f"flowtable.timeouts.{key}=1s" for key in ("tcp_idle", "udp_idle", "other_idle", "closed", "active")]
    settings = [*short, "storage.retention.min_free=null", "storage.sync_interval=100ms", "storage.segment_age=2s"]
    sets = [word for s in settings for word in ("--set", s)]
    running = server(["demo", "--rate", "200000", "--data-dir", data, *sets], prefix=small.prefix)
    status = lambda: json.loads(taphouse("status", "--server", running.grpc, "--output", "json").stdout)
    offered = lambda s: sum(q["offered"] for q in s["queues"])

    def wait(what, until):
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            now = status()
            if until(now):
                return now
            time.sleep(0.1)
        raise AssertionError(f"{what}: {now}")

    full = wait("the disk does not fill up", lambda s: s["records"]["dropped_disk"] > 0)
    wait("capture stopped", lambda s: offered(s) > offered(full) and s["records"]["dropped_disk"] > full["records"]["dropped_disk"])
    assert small.count(data) > 0, "what was stored is there"
    small.shell(f'rm "{small.at}/ballast"')
    last = [status()]

    def resumed(now):
        before, last[0] = last[0], now
        records, earlier = now["records"], before["records"]
        return records["stored"] > earlier["stored"] and records["dropped_disk"] == earlier["dropped_disk"]

    wait("writing does not resume", resumed)
    log = running.stop()
    assert running.process.returncode == 0, log
    stored = int(re.search(r"(\d+) records stored", log).group(1))
    assert small.count(data) == stored > 0
    assert "is full" in log and log.count("not stored as they should be") <= 3, "told, but not over and over"


def test_two_servers_on_one_folder(server, testdata, tmp_path):
    data = tmp_path / "data"
    first = server(["demo", "--rate", "10", "--data-dir", data])
    ports = ["--set", "rpc.grpc_listen=127.0.0.1:0", "--set", "rpc.http_listen=127.0.0.1:0"]
    demo = taphouse("demo", "--data-dir", data, *ports, ok=False)
    assert demo.returncode == FAILED
    replay = refused(FAILED, "replay", testdata / "pcap/cid_udp.pcap", "--data-dir", data)
    for message in (demo.stderr, replay):
        assert f"pid {first.process.pid}" in message and str(data) in message
    first.stop()
    taphouse("replay", testdata / "pcap/cid_udp.pcap", "--data-dir", data)


def test_a_port_in_use(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = "127.0.0.1:%d" % taken.getsockname()[1]
        for key, other in (("rpc.grpc_listen", "rpc.http_listen"), ("rpc.http_listen", "rpc.grpc_listen")):
            sets = ["--set", f"{key}={address}", "--set", f"{other}=127.0.0.1:0"]
            done = taphouse("demo", "--data-dir", tmp_path / "data", *sets, ok=False)
            assert done.returncode == FAILED and address in done.stderr and key in done.stderr
            assert not (tmp_path / "data").exists()


WRONG_FILTERS = [
    # Filter, the column the caret stands under (from 1), words of the message.
    ("srcip = '10.0.0.1'", 1, ["`srcip`", "`src_ip`"]),
    ("proto = 6 AND dst_prt = 80", 15, ["`dst_prt`", "`dst_port`"]),
    ("src_ip = 'banana'", 10, ["'banana'", "10.0.0.1"]),
    ("src_ip =", 9, ["expected an expression"]),
    ("hots('10.0.0.1')", 1, ["`hots`", "`host`"]),
    ("net('10.0.0.0/99')", 5, ["10.0.0.0/99"]),
    ("bytes_o", 1, ["yes or no"]),
    ("sum(bytes_o) > 5", 1, ["SQL"]),
]


def test_a_bad_filter_is_pointed_at(kept, server):
    running = server(["demo", "--rate", "1", "--data-dir", kept])
    for text, column, words in WRONG_FILTERS:
        told = [refused(USAGE, "flows", text, *where) for where in (["--data-dir", kept], ["--server", running.grpc])]
        assert told[0] == told[1], "server and folder say the same"
        lines = told[0].splitlines()
        caret = next(i for i, line in enumerate(lines) if line.strip() == "^")
        assert lines[caret - 1] == f"  {text}" and lines[caret].index("^") == column + 1, told[0]
        assert all(word in told[0] for word in words), told[0]
    for query, word in (
        ("DROP TABLE flows", "DROP is refused"),
        ("INSERT INTO flows SELECT * FROM flows", "INSERT is refused"),
        ("COPY flows TO '/tmp/x.csv'", "COPY is refused"),
        ("CREATE TABLE x AS SELECT 1", "CREATE is refused"),
        ("SELECT * FROM flow", "`flows`"),
        ("SELECT src_pi FROM flows", "`src_ip`"),
        ("SELECT 1; SELECT 2", "more than one statement"),
        ("", "empty"),
    ):
        told = [refused(USAGE, "sql", query, *where) for where in (["--data-dir", kept], ["--server", running.grpc])]
        assert told[0] == told[1] and word in told[0], told
    assert "`src_ip`" in refused(USAGE, "flows", "--columns", "srcip", "--data-dir", kept)
    for where in (["--data-dir", kept], ["--server", running.grpc]):
        assert "ivide by zero" in refused(USAGE, "sql", "SELECT 1 / (proto - proto) FROM flows", *where)
    running.stop()


def test_more_memory_than_there_is(testdata, tmp_path):
    sizes = ("flowtable.flows_max=134217728", "flowtable.side_memory=64GiB")
    for size in sizes:
        replay = [BINARY, "replay", testdata / "pcap/cid_udp.pcap", "--data-dir", tmp_path / "data", "--set", size]
        done = subprocess.run(["prlimit", f"--as={16 << 30}", *replay], capture_output=True, text=True)
        assert done.returncode == FAILED, done
        assert "flowtable.flows_max" in done.stderr and "this host does not give" in done.stderr, done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr


def test_a_bad_configuration(testdata, tmp_path):
    capture, data = testdata / "pcap/cid_udp.pcap", tmp_path / "data"
    config = tmp_path / "taphouse.yaml"
    for text, words in (
        ("storage:\n  segment_row: 5\n", ["line 2", "'segment_row'", "'segment_rows'"]),
        ("flowtable:\n  timeouts:\n    tcp_idel: 5s\n", ["line 3", "'tcp_idel'", "'tcp_idle'"]),
        ("storag: {}\n", ["line 1", "'storag'", "'storage'"]),
        ("storage:\n  segment_age: 60\n", ["line 2", "30s"]),
        ("capture: [\n", ["line"]),
        ("pipeline:\n  workers: 9999\n", ["pipeline.workers", "256"]),
        ("- a\n- b\n", ["taphouse.yaml"]),
        ("rpc:\n  grpc_listen: nowhere\n", ["line 2"]),
        ("decode:\n  tags_max: 256\n", ["line 2", "`tags_max: 256`", "whole number from 0 to 255"]),
        ("pipeline:\n  pin: maybe\n", ["line 2", "`pin: maybe`", "true nor false"]),
        ("flowtable: 5\n", ["line 1", "`key: value`"]),
        ("flowtable:\n  flows_max: 99\nflowtable:\n  flows_max: 100\n", ["line 3", "'flowtable'", "second time"]),
    ):
        config.write_text(text)
        told = refused(USAGE, "validate", config)
        assert refused(USAGE, "replay", capture, "--config", config, "--data-dir", data) == told
        assert all(word in told for word in words), told
        assert "taphouse.yaml" in told, told
    config.write_bytes(b"\xff\xfe\x00")
    refused(USAGE, "validate", config)
    assert "missing.yaml" in refused(USAGE, "validate", tmp_path / "missing.yaml")
    refused(USAGE, "validate", tmp_path)
    for override, word in (
        ("storage.segment_row=5", "'storage.segment_rows'"),
        ("storage.segment_rows", "KEY=VALUE"),
        ("storage.segment_rows=many", "storage.segment_rows"),
        ("storage.segment_age=60", "30s"),
        ("log=[[[", "log=[[["),
        ("flowtable.flows_max=1", "flowtable.flows_max"),
    ):
        assert word in refused(USAGE, "replay", capture, "--set", override, "--data-dir", data)
    assert not data.exists()


def test_bad_times_numbers_addresses_and_commands(kept):
    for text in ("yesterday", "-15", "2026-13-45T00:00:00Z", "-99999999y", "-5000000000y", "", "-"):
        for option in ("--since", "--until"):
            assert f"'{text}'" in refused(USAGE, "flows", f"{option}={text}", "--data-dir", kept)
    assert "--limit" in refused(USAGE, "flows", "--limit", "many")
    assert "'replay'" in refused(USAGE, "repla")
    assert "<FILE>" in refused(USAGE, "replay")
    assert "--data-dir" in refused(USAGE, "flows", "--server", "127.0.0.1:1", "--data-dir", kept)
    assert "bash" in refused(USAGE, "completions", "tcsh-9")
    assert "host:port" in refused(USAGE, "status", "--server", "somewhere")
    for command in (["status"], ["flows"], ["sql", "SELECT 1"], ["alerts"]):
        assert "127.0.0.1:1" in refused(UNREACHABLE, *command, "--server", "127.0.0.1:1")
