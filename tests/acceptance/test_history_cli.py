"""Questions about the past on the command line: order, tops, timelines, exports, terminals. Every number is computed
again here, from the lines of all flows."""
import collections
import csv
import fcntl
import gzip
import io
import json
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
import urllib.request
from datetime import datetime, timezone

import duckdb
import polars
import pyarrow
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest

from conftest import BINARY, Server, taphouse

#: Rows of the server's own generator are not those of the capture.
OURS = "tap = 'replay'"


@pytest.fixture(scope="module")
def stored(testdata, tmp_path_factory):
    """A folder of some thousand flows of the independent generator."""
    folder = tmp_path_factory.mktemp("history")
    capture = folder / "mixed.pcap"
    generator = [sys.executable, testdata / "gen_traffic.py", capture, "--packets", "20000", "--seed", "5"]
    subprocess.run(generator, check=True, capture_output=True)
    summary = json.loads(taphouse("replay", capture, "--data-dir", folder / "data", "--output", "json").stdout)
    return folder / "data", summary


@pytest.fixture(scope="module")
def serving(stored):
    """A server over the replayed capture."""
    running = Server(["demo", "--rate", "1", "--data-dir", stored[0]])
    yield running
    running.stop()


@pytest.fixture(scope="module")
def flows(stored):
    """All flows, from their lines, with times as µs beside the texts."""
    text = taphouse("sql", f"SELECT * FROM flows WHERE {OURS}", "--data-dir", stored[0], "--output", "ndjson").stdout
    rows = [json.loads(line) for line in text.splitlines()]
    for row in rows:
        row["end_us"], row["start_us"] = micros(row["t_end"]), micros(row["t_start"])
        row["bytes"], row["packets"] = row["bytes_o"] + row["bytes_r"], row["pkts_o"] + row["pkts_r"]
    assert len(rows) > 1000 and any(row["part"] > 0 for row in rows), "some flows have several records"
    return rows


@pytest.fixture(params=["folder", "server"])
def where(request, stored, serving):
    return ["--data-dir", stored[0]] if request.param == "folder" else ["--server", serving.grpc]


def micros(text):
    time = datetime.fromisoformat(text)
    return int(time.timestamp()) * 1_000_000 + time.microsecond


def instant(us):
    return datetime.fromtimestamp(us // 1_000_000, timezone.utc).replace(microsecond=us % 1_000_000).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def ask(*args, output="json"):
    text = taphouse(*args, "--output", output).stdout
    if output == "json":
        return json.loads(text)
    if output == "ndjson":
        return [json.loads(line) for line in text.splitlines()]
    return list(csv.DictReader(io.StringIO(text)))


def middle(flows):
    """A time range that leaves rows out at both ends."""
    ends = sorted(row["end_us"] for row in flows)
    return ends[len(ends) // 4], ends[3 * len(ends) // 4]


def sums(rows):
    return len({row["flow_id"] for row in rows}), sum(row["packets"] for row in rows), sum(row["bytes"] for row in rows)


def test_any_order(flows, where):
    since, until = middle(flows)
    chosen = [r for r in flows if r["proto"] == 6 and r["end_us"] >= since and r["start_us"] < until]
    key = lambda r: (r["flow_id"], r["part"])
    unknown_last = lambda value: (value is None, value or 0)
    orders = {
        "bytes": lambda r: (-r["bytes"],),
        "dst_port:asc,packets:desc": lambda r: (r["dst_port"], -r["packets"]),
        "rtt_us:asc": lambda r: unknown_last(r["rtt_us"]),
        "t_start:asc": lambda r: (r["start_us"],),
    }
    options = ["--since", instant(since), "--until", instant(until), "--limit", "40", *where]
    for order, model in orders.items():
        right = sorted(chosen, key=lambda r: (*model(r), -r["end_us"], int(r["flow_id"]), r["part"]))[:40]
        got = ask("flows", f"{OURS} AND proto = 'tcp'", "--sort", order, *options)
        assert [key(r) for r in got] == [key(r) for r in right], order
        assert list(got[0])[:3] == ["t_end", "dur_us", "flow_id"] and len(got[0]) > 40, "every stored column"
    named = ask("flows", OURS, "--columns", "bytes,src_ip,retrans", "--sort", "retrans", "--limit", "5", *where)
    assert [list(r) for r in named] == [["bytes", "src_ip", "retrans"]] * 5
    assert named[0]["retrans"] == max(r["retrans_o"] + r["retrans_r"] for r in flows)


def test_the_top_of_anything(flows, where):
    since, until = middle(flows)
    questions = [
        ([], OURS, ["src_ip"], "bytes", lambda r: True),
        ([], f"{OURS} AND proto = 'udp'", ["dst_port", "proto"], "flows", lambda r: r["proto"] == 17),
        (["--since", instant(since), "--until", instant(until)], OURS, ["app"], "packets", lambda r: r["end_us"] >= since and r["start_us"] < until),
        ([], f"{OURS} AND host('10.0.0.1') = false", ["dst_ip", "src_ip", "end_reason"], "retrans", lambda r: "10.0.0.1" not in (r["src_ip"], r["dst_ip"])),
    ]
    for options, filter_, by, metric, model in questions:
        groups = collections.defaultdict(list)
        for row in filter(model, flows):
            groups[tuple(row[c] for c in by)].append(row)
        measure = {"flows": lambda g: sums(g)[0], "packets": lambda g: sums(g)[1], "bytes": lambda g: sums(g)[2],
                   "retrans": lambda g: sum(r["retrans_o"] + r["retrans_r"] for r in g)}[metric]
        total = sum(map(measure, groups.values()))
        got = ask("flows", filter_, "--top", "8", "--by", ",".join(by), "--metric", metric, *options, *where)
        assert [r[metric] for r in got] == sorted(map(measure, groups.values()), reverse=True)[:8] and total > 0
        for row in got:
            group = groups[tuple(row[c] for c in by)]
            assert (row["flows"], row["packets"], row["bytes"]) == sums(group), (by, row)
            assert row[metric] == measure(group) and abs(row["share"] - 100 * row[metric] / total) < 1e-9
        names = [*by, "flows", "packets", "bytes", *([metric] if metric == "retrans" else []), "share"]
        assert list(got[0]) == names, "the columns and their order are stable"
        assert ask("flows", filter_, "--top", "8", "--by", ",".join(by), "--metric", metric, "--limit", "3", *options, *where) == got[:3]
        lines = ask("flows", filter_, "--top", "8", "--by", ",".join(by), "--metric", metric, *options, *where, output="csv")
        assert list(lines[0]) == names and [int(r["bytes"]) for r in lines] == [r["bytes"] for r in got]


@pytest.mark.parametrize("every, us", [("1s", 1_000_000), ("7s", 7_000_000), ("1m", 60_000_000)])
def test_a_timeline_has_every_interval(flows, where, every, us):
    by_slot = collections.defaultdict(list)
    for row in flows:
        by_slot[row["end_us"] // us].append(row)
    slots = range(min(by_slot), max(by_slot) + 1)
    right = [dict(zip(("time", "flows", "packets", "bytes"), (instant(slot * us), *sums(by_slot.get(slot, []))))) for slot in slots]
    got = ask("flows", OURS, "--timeline", every, *where)
    assert got == right and sum(r["bytes"] for r in got) == sum(r["bytes"] for r in flows)
    assert ask("flows", OURS, "--timeline", every, *where, output="ndjson") == right
    assert ask("flows", OURS, "--timeline", every, "--limit", "2", *where) == right[-2:], "the newest"
    # Bounds are those of ends, and show what is empty.
    since, until = (min(by_slot) - 3) * us, (max(by_slot)) * us
    got = ask("flows", OURS, "--timeline", every, "--since", instant(since), "--until", instant(until), *where)
    assert got[:3] == [{"time": instant(since + i * us), "flows": 0, "packets": 0, "bytes": 0} for i in range(3)]
    assert got[3:] == right[: len(got) - 3] and len(got) == max(by_slot) - min(by_slot) + 3


def test_a_timeline_by_group_has_the_largest_and_all_others(flows, where):
    us = 5_000_000
    groups = collections.defaultdict(list)
    for row in flows:
        groups[row["dst_port"]].append(row)
    ranked = sorted(groups, key=lambda port: (-sum(r["packets"] for r in groups[port]), port))
    assert len(ranked) > 3
    slots = range(min(r["end_us"] for r in flows) // us, max(r["end_us"] for r in flows) // us + 1)
    right = []
    for slot in slots:
        inside = lambda rows: [r for r in rows if r["end_us"] // us == slot]
        for port in ranked[:3]:
            right.append({"time": instant(slot * us), "dst_port": port, "other": False, **dict(zip(("flows", "packets", "bytes"), sums(inside(groups[port]))))})
        rest = [sums(inside(groups[port])) for port in ranked[3:]]
        right.append({"time": instant(slot * us), "dst_port": None, "other": True, **dict(zip(("flows", "packets", "bytes"), map(sum, zip(*rest))))})
    got = ask("flows", OURS, "--timeline", "5s", "--by", "dst_port", "--top", "3", "--metric", "packets", *where)
    assert got == right
    assert sum(r["packets"] for r in got) == sum(r["packets"] for r in flows)
    assert len({r["dst_port"] for r in ask("flows", OURS, "--timeline", "1h", "--by", "dst_port", *where) if not r["other"]}) == 5


#: A file's name, and rows of it with other people's readers.
READERS = {
    "a.parquet": [
        lambda f: pq.read_table(f).to_pylist(),
        lambda f: polars.read_parquet(f).to_dicts(),
        lambda f: duck(f"read_parquet('{f}')"),
    ],
    "a.arrow": [lambda f: pyarrow.ipc.open_file(f).read_all().to_pylist(), lambda f: polars.read_ipc(f).to_dicts()],
    "a.csv": [lambda f: duck(f"read_csv('{f}', all_varchar = true, nullstr = '')"), lambda f: list(csv.DictReader(open(f, newline="")))],
    "a.csv.gz": [lambda f: list(csv.DictReader(gzip.open(f, "rt", newline=""))), lambda f: duck(f"read_csv('{f}', all_varchar = true)")],
    "a.csv.zst": [lambda f: list(csv.DictReader(io.StringIO(unpacked(f))))],
    "a.ndjson": [lambda f: [json.loads(line) for line in open(f)], lambda f: polars.read_ndjson(f, infer_schema_length=None).to_dicts()],
    "a.jsonl.zst": [lambda f: [json.loads(line) for line in unpacked(f).splitlines()]],
    "a.json.gz": [lambda f: json.load(gzip.open(f))],
}


def duck(what):
    answer = duckdb.sql(f"SET TimeZone = 'UTC'; SELECT * FROM {what}")
    return [dict(zip(answer.columns, row)) for row in answer.fetchall()]


def unpacked(file):
    with pyarrow.input_stream(str(file), compression="zstd") as stream:
        return stream.read().decode()


def plain(value):
    """A value of any reader, as text; nothing as None."""
    if value is None or value == "":
        return None
    if isinstance(value, datetime):
        return value.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return str(value)


@pytest.mark.parametrize("name", READERS)
def test_other_readers_read_what_is_exported(name, flows, where, tmp_path):
    file = tmp_path / name
    told = json.loads(taphouse("flows", OURS, "--export", file, "--output", "json", *where).stdout)
    assert told["rows"] == len(flows), "an export has all rows unless told otherwise"
    assert told["file"] == str(file) and told["bytes"] == file.stat().st_size and list(tmp_path.iterdir()) == [file]
    computed = {"end_us", "start_us", "bytes", "packets", "t_start"}
    right = sorted(({k: plain(v) for k, v in row.items() if k not in computed} for row in flows), key=lambda r: (r["flow_id"], r["part"]))
    for read in READERS[name]:
        got = read(str(file))
        assert sorted(got[0]) == sorted(right[0])
        got = sorted(({k: plain(v) for k, v in row.items()} for row in got), key=lambda r: (r["flow_id"], r["part"]))
        assert got == right


def test_addresses_can_stay_bytes(stored, tmp_path):
    query = f"SELECT src_ip, src_mac, array_agg(DISTINCT dst_ip) AS peers FROM flows WHERE {OURS} GROUP BY 1, 2 ORDER BY 1, 2"
    folder = ["--data-dir", stored[0]]
    taphouse("sql", query, "--export", tmp_path / "text.parquet", *folder)
    taphouse("sql", query, "--export", tmp_path / "bytes.parquet", "--addresses", "binary", *folder)
    text, raw = pq.read_table(tmp_path / "text.parquet"), pq.read_table(tmp_path / "bytes.parquet")
    assert [str(t) for t in text.schema.types] == ["string", "string", "list<item: string>"]
    assert [str(t) for t in raw.schema.types][:2] == ["fixed_size_binary[16]", "fixed_size_binary[6]"]
    assert text["src_ip"].to_pylist() == [r["src_ip"] for r in ask("sql", query, *folder)]
    assert all(len(address) == 16 for address in raw["src_ip"].to_pylist()) and len(raw) == len(text)


def test_binary_formats_go_through_pipes(flows, where):
    question = [BINARY, "sql", f"SELECT flow_id, part, src_ip, t_end FROM flows WHERE {OURS} ORDER BY flow_id, part", *map(str, where)]
    right = sorted(((int(r["flow_id"]), r["part"], r["src_ip"], r["t_end"]) for r in flows))
    stream = subprocess.run([*question, "--output", "arrow"], capture_output=True, check=True).stdout
    file = subprocess.run([*question, "--output", "parquet"], capture_output=True, check=True).stdout
    for table in (pyarrow.ipc.open_stream(stream).read_all(), pq.read_table(io.BytesIO(file))):
        assert [tuple(map(plain, row.values())) for row in table.to_pylist()] == [tuple(map(str, row)) for row in right]


def test_an_export_replaces_nothing_and_leaves_nothing_half(stored, tmp_path):
    folder = ["--data-dir", stored[0]]
    file = tmp_path / "a.csv"
    file.write_text("precious")
    refused = taphouse("flows", "--export", file, *folder, ok=False)
    assert refused.returncode == 2 and "is there already: --force" in refused.stderr and file.read_text() == "precious"
    taphouse("flows", "--limit", "3", "--export", file, "--force", *folder)
    assert len(file.read_text().splitlines()) == 4
    # An error in the middle: the sum overflows only when rows are read.
    broken = taphouse("sql", "SELECT arrow_cast(ip_text(src_ip), 'Int64') AS n FROM flows", "--export", tmp_path / "b.parquet", *folder, ok=False)
    assert broken.returncode != 0 and [p.name for p in tmp_path.iterdir()] == ["a.csv"], broken.stderr
    for name, part in {"a.xlsx": ".parquet", "a": ".ndjson", "a.parquet.gz": ".parquet"}.items():
        refused = taphouse("flows", "--export", tmp_path / name, *folder, ok=False)
        assert refused.returncode == 2 and "must end in" in refused.stderr and part in refused.stderr
    refused = taphouse("flows", "--export", tmp_path / "no/such/a.csv", *folder, ok=False)
    assert refused.returncode == 1 and "cannot write" in refused.stderr and "a.csv" in refused.stderr
    assert taphouse("flows", "--force", *folder, ok=False).returncode == 2


def test_queries_from_files_and_pipes(stored, where, tmp_path):
    text = f"-- Two lines\nSELECT count(*) AS n\nFROM flows WHERE {OURS};\n"
    file = tmp_path / "q.sql"
    file.write_text(text)
    right = ask("sql", text.partition("\n")[2], *where)
    assert ask("sql", "-f", file, *where) == ask("sql", "--file", file, *where) == right and right[0]["n"] > 0
    for dash in (["-"], ["-f", "-"]):
        assert json.loads(taphouse("sql", *dash, *where, "--output", "json", input=text).stdout) == right
    wrong = taphouse("sql", "-", *where, ok=False, input="SELECT 1\nFROM flowz")
    assert wrong.returncode == 2 and "`flows`" in wrong.stderr and "line 2" in wrong.stderr
    for args, said in {("sql",): "QUERY", ("sql", "-f", tmp_path / "none.sql"): "none.sql", ("sql", "SELECT 1", "-f", file): "--file"}.items():
        refused = taphouse(*args, *where, ok=False)
        assert refused.returncode in (1, 2) and said in refused.stderr and len(refused.stderr.splitlines()) == 1
    huge = taphouse("sql", "-", *where, ok=False, input="SELECT 1 " + " " * 300_000)
    assert huge.returncode == 2 and "262144 bytes" in huge.stderr
    file.write_bytes(b"SELECT '\xff'")
    assert "UTF-8" in taphouse("sql", "-f", file, *where, ok=False).stderr


def test_mistakes_name_the_option_and_what_is_allowed(where):
    cases = {
        ("--sort", "byts"): ["--sort", "`byts`", "did you mean `bytes`?"],
        ("--sort", "bytes:up"): ["--sort", "`up`", "COLUMN:asc or COLUMN:desc"],
        ("--sort", "src_ip; DROP TABLE flows"): ["--sort", "there is no column"],
        ("--columns", "srcip"): ["--columns", "`srcip`", "did you mean `src_ip`?"],
        ("--columns", "proto,proto"): ["--columns", "`proto` is named twice"],
        ("--top", "5"): ["--top needs --by"],
        ("--top", "0", "--by", "app"): ["--top", "1..=1000000"],
        ("--top", "5", "--by", "ap"): ["--by", "`ap`", "did you mean `app`?"],
        ("--top", "5", "--by", "app", "--metric", "byte"): ["--metric", "did you mean `bytes`?"],
        ("--top", "5", "--by", "app", "--metric", "src_ip"): ["--metric", "`src_ip` cannot be added up"],
        ("--top", "5", "--by", "app", "--sort", "bytes"): ["--sort", "--top"],
        ("--top", "5", "--by", "bytes"): ["--by", "`bytes` is named twice"],
        ("--by", "app"): ["--by", "--top or --timeline"],
        ("--metric", "bytes"): ["--metric", "--top and --timeline"],
        ("--timeline", "1x"): ["--timeline", "'1x'", "1m"],
        ("--timeline", "0s"): ["--timeline", "'0s'"],
        ("--timeline", "1us"): ["--timeline", "intervals", "100000"],
        ("--timeline", "1m", "--by", "app", "--top", "101"): ["--top", "100"],
        ("--since", "yesterday"): ["--since", "'yesterday'", "RFC 3339"],
        ("--top", "5", "--by", "app", "--output", "ecs"): ["--output ecs", "--top"],
        ("--addresses", "binary"): ["--addresses", "arrow and parquet"],
    }
    for args, parts in cases.items():
        refused = taphouse("flows", OURS, *args, *where, ok=False)
        assert refused.returncode == 2 and all(part in refused.stderr for part in parts), (args, refused.stderr)
    # A mistake in the filter has its place in the filter, however it is asked.
    plain = taphouse("flows", "proto = 6 AND srcip = '10.0.0.1'", *where, ok=False)
    assert "line 1, column 15" in plain.stderr and "`src_ip`" in plain.stderr
    for args in (["--top", "5", "--by", "app"], ["--timeline", "1m"], ["--sort", "bytes"]):
        refused = taphouse("flows", "proto = 6 AND srcip = '10.0.0.1'", *args, *where, ok=False)
        assert refused.returncode == 2 and refused.stderr == plain.stderr, args
        refused = taphouse("flows", "true) OR (true", *args, *where, ok=False)
        assert refused.returncode == 2 and "write one expression" in refused.stderr
    for command in ("alerts", "status"):
        refused = taphouse(command, "--output", "parquet", ok=False)
        assert refused.returncode == 2 and "--output parquet" in refused.stderr


class Terminal:
    """A command in a terminal of some size; what it shows."""

    def __init__(self, args, width=80, height=1000, **env):
        self.ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
        environment = {**os.environ, "TERM": "xterm", "PAGER": "", **env}
        self.process = subprocess.Popen([BINARY, *map(str, args)], stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True)
        os.close(theirs)
        self.shown = b""

    def until(self, word=None, seconds=60):
        """Reads until the word is shown, or to the end."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and (word is None or word not in self.shown):
            if not select.select([self.ours], [], [], 1)[0]:
                continue
            try:
                chunk = os.read(self.ours, 65536)
            except OSError:
                chunk = b""  # The other side has closed: Linux says EIO.
            if not chunk:
                break
            self.shown += chunk
        assert word is None or word in self.shown, self.shown[-2000:]
        return self

    def lines(self):
        self.until()
        self.code = self.process.wait(timeout=60)
        os.close(self.ours)
        return self.shown.decode().replace("\r\n", "\n").splitlines()


@pytest.mark.parametrize("width", [80, 120, 200])
def test_tables_fit_their_terminal(width, stored, where):
    commands = {
        "flows": ["flows", f"{OURS} AND net('0.0.0.0/0')", "--limit", "5"],
        "sort": ["flows", f"{OURS} AND net('0.0.0.0/0')", "--limit", "5", "--sort", "bytes"],
        "top": ["flows", OURS, "--top", "5", "--by", "src_ip,dst_port"],
        "timeline": ["flows", OURS, "--timeline", "10s", "--limit", "5"],
        "by": ["flows", OURS, "--timeline", "10s", "--by", "app", "--top", "3", "--limit", "5"],
        "sql": ["sql", f"SELECT t_end, src_ip, name, agent, ja4 FROM flows WHERE {OURS} AND name IS NOT NULL ORDER BY flow_id LIMIT 5"],
    }
    for name, command in commands.items():
        terminal = Terminal([*command, *where], width=width)
        lines = terminal.lines()
        assert terminal.code == 0, lines
        assert re.fullmatch(r"\(5 rows in [0-9.]+ m?s\)", lines[-1]), lines
        body = lines[:-1]
        if lines[0].startswith("-[ row 1 ]"):
            assert sum(line.startswith("-[ row ") for line in body) == 5
        else:
            assert len(body) == 7 and max(map(len, body)) <= width, (name, body)
        if name in ("flows", "sort"):
            assert not lines[0].startswith("-["), "the columns are chosen so that IPv4 fits"
        # Nothing of it where it is not looked at.
        piped = taphouse(*command, *where)
        assert piped.stderr == "" and piped.stdout.endswith("\n(5 rows)\n")


def test_rows_too_wide_are_blocks(stored):
    lines = Terminal(["flows", OURS, "--limit", "2", "--columns", ",".join(column_names(stored)), "--data-dir", stored[0]]).lines()
    assert lines[0].startswith("-[ row 1 ]--") and lines[1].startswith("t_end ")
    assert len(lines) == 2 * (1 + len(column_names(stored))) + 1


def column_names(stored):
    return [r["column_name"] for r in ask("sql", "DESCRIBE flows", "--data-dir", stored[0])]


def test_a_long_answer_goes_through_the_pager(stored, tmp_path):
    paged = tmp_path / "paged"
    command = ["flows", OURS, "--limit", "50", "--output", "csv", "--data-dir", stored[0]]
    right = taphouse(*command).stdout
    lines = Terminal(command, height=20, PAGER=f"cat > {paged}").lines()
    assert paged.read_text() == right and len(lines) == 1 and "50 rows" in lines[0]
    # What fits is not paged, nor what should not be.
    for args, height in (([], 1000), (["--no-pager"], 20)):
        paged.unlink(missing_ok=True)
        lines = Terminal([*command, *args], height=height, width=2000, PAGER=f"cat > {paged}").lines()
        assert not paged.exists() and "\n".join(lines[:-1]) + "\n" == right
    # A pager that is left early ends the question quietly.
    terminal = Terminal(["sql", "SELECT a.* FROM flows a, flows b", "--data-dir", stored[0]], height=20, PAGER="head -n 3")
    lines = terminal.lines()
    assert terminal.code == 0 and len([line for line in lines if line]) == 3, lines


def test_binary_is_not_shown_on_a_terminal(stored):
    for output in ("arrow", "parquet"):
        terminal = Terminal(["flows", "--output", output, "--data-dir", stored[0]])
        lines = terminal.lines()
        assert terminal.code == 2 and len(lines) == 1 and f"--export FILE.{output}" in lines[0]


def test_an_export_shows_its_progress_on_a_terminal(stored, tmp_path):
    lines = Terminal(["flows", OURS, "--export", tmp_path / "a.parquet", "--data-dir", stored[0]]).lines()
    shown = "\n".join(lines)
    assert " rows, " in shown and "rows/s" in shown and re.search(r"a\.parquet: [0-9,]+ rows, .*B, in [0-9.]+ s", shown), shown
    assert taphouse("flows", "--export", tmp_path / "b.parquet", "--data-dir", stored[0]).stderr == ""


def test_a_closed_pipe_ends_it_quietly(where):
    for output in ("table", "csv", "arrow", "parquet"):
        command = [BINARY, "sql", "SELECT a.flow_id FROM flows a, flows b", "--output", output, *map(str, where)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout.read(100)
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait(timeout=60) == 0, output


ENDLESS = "SELECT count(*) FROM flows a, flows b, flows c WHERE a.bytes_o + b.bytes_o + c.bytes_o = -1"


def in_flight(serving):
    text = urllib.request.urlopen(f"http://{serving.http}/metrics").read().decode()
    return float(re.search(r"^taphouse_queries_in_flight ([0-9.]+)$", text, re.M)[1])


def eventually(what, ask, seconds=30):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if ask():
            return
        time.sleep(0.05)
    raise AssertionError(what)


@pytest.mark.parametrize("stop, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_cancels_the_query_on_the_server(serving, stop, code, tmp_path):
    for export in ([], ["--export", tmp_path / "a.parquet"]):
        command = [BINARY, "sql", ENDLESS, *map(str, export), "--server", serving.grpc]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        eventually("the query does not begin", lambda: in_flight(serving) == 1)
        process.send_signal(stop)
        out, err = process.communicate(timeout=30)
        assert (process.returncode, out, err) == (code, b"", b"")
        eventually("the query goes on", lambda: in_flight(serving) == 0)
        assert not list(tmp_path.iterdir())


def test_a_signal_ends_a_folder_query_and_a_write_that_hangs(stored):
    for query in (ENDLESS, "SELECT a.* FROM flows a, flows b"):
        command = [BINARY, "sql", query, "--output", "ndjson", "--data-dir", stored[0]]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        if query != ENDLESS:
            assert process.stdout.read(1)  # From now on nobody reads: the pipe fills.
        else:
            eventually("no signal handler", lambda: handles(process.pid, signal.SIGINT))
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130 and process.stderr.read() == b""
        process.stdout.close()


def handles(pid, number):
    """Whether a process has a handler for the signal."""
    caught = re.search(r"^SigCgt:\s*([0-9a-f]+)$", open(f"/proc/{pid}/status").read(), re.M)[1]
    return bool(int(caught, 16) >> (number - 1) & 1)


def test_an_interrupt_in_a_pager_waits_for_it(serving, tmp_path):
    """The terminal is the pager's until it is left; the query ends at once."""
    left = tmp_path / "left"
    pager = f"trap '' INT; head -n 30; until [ -e {left} ]; do sleep 0.05; done"
    terminal = Terminal(["sql", "SELECT a.t_end FROM flows a, flows b", "--server", serving.grpc], height=20, PAGER=pager)
    terminal.until(b"t_end")
    eventually("the query does not begin", lambda: in_flight(serving) == 1)
    os.killpg(terminal.process.pid, signal.SIGINT)
    eventually("the query goes on", lambda: in_flight(serving) == 0)
    assert terminal.process.poll() is None
    left.touch()
    terminal.lines()
    assert terminal.code == 130


def test_help_has_examples():
    for command, words in {"flows": ["--top 10 --by src_ip,dst_port", "--timeline 5m", "--sort bytes", "--export", "ends"], "sql": ["-f report.sql", "--export"]}.items():
        text = taphouse(command, "--help").stdout
        assert all(word in text for word in ["Examples:", *words]), command


def test_segments_that_no_line_of_the_manifest_lists_are_told(stored, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(stored[0], data)
    manifest = data / "manifest.ndjson"
    whole = manifest.read_bytes()
    count = ["sql", f"SELECT count(*) FROM flows WHERE {OURS}", "--data-dir", data, "--output", "csv"]
    rows = taphouse(*count)
    assert rows.stderr == ""

    manifest.write_bytes(whole.splitlines(keepends=True)[0])
    cut = taphouse(*count)
    assert cut.stdout.splitlines()[-1] == "0"
    assert "the manifest does not list 1 segment file(s)" in cut.stderr and "first=" in cut.stderr

    manifest.write_bytes(b"")
    empty = taphouse(*count, ok=False)
    assert empty.returncode == 1 and "manifest.ndjson is damaged" in empty.stderr and "it is empty" in empty.stderr

    # A start finds out from the segments.
    Server(["demo", "--rate", "1", "--data-dir", data]).stop()
    assert taphouse(*count).stdout == rows.stdout


def test_a_folder_is_read_by_any_path_to_it(stored):
    query = ["sql", f"SELECT count(*) FROM flows WHERE {OURS}", "--output", "csv", "--data-dir"]
    folder = os.path.relpath(stored[0], stored[0].parent / "elsewhere")
    (stored[0].parent / "elsewhere").mkdir(exist_ok=True)
    assert ".." in folder
    assert taphouse(*query, folder, cwd=stored[0].parent / "elsewhere").stdout == taphouse(*query, stored[0]).stdout
