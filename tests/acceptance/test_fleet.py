"""Segments beyond one machine: into an S3 server of other people (moto) and into ClickHouse (chDB), through kills, outages
and a line that changes bytes; and read there by DuckDB, pyarrow, Polars, chDB and `taphouse sql`."""
import http.server
import json
import os
import re
import socket
import subprocess
import sys
import threading
import urllib.parse

import duckdb
import polars
import pyarrow.dataset
import pyarrow.fs
import pytest
from fsspec.implementations.arrow import ArrowFSWrapper

from conftest import rows, taphouse
from test_cli import until as until_within
from test_export import free_port

KEYS = {"AWS_ACCESS_KEY_ID": "tap", "AWS_SECRET_ACCESS_KEY": "house", "AWS_REGION": "us-east-1", "AWS_ALLOW_HTTP": "true"}
PARQUET = re.compile(rb"PUT /(\S+\.parquet)\S* HTTP")


def until(what, ask):
    return until_within(what, ask, seconds=120)


class Proxy:
    """A line to a server that can be cut, counts the segments put through it, and changes a byte where asked to."""

    def __init__(self, target):
        self.target, self.puts, self.changing, self.lock = target, [], 0, threading.Lock()
        self.port, self.connections, self.listener = free_port(socket.SOCK_STREAM), set(), None
        self.open()

    def open(self):
        self.listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self.accept, args=(self.listener,), daemon=True).start()

    def cut(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        with self.lock:
            for one in self.connections:
                try:
                    one.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass

    def accept(self, listener):
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self.target))
            with self.lock:
                self.connections |= {client, server}
            threading.Thread(target=self.pump, args=(client, server, True), daemon=True).start()
            threading.Thread(target=self.pump, args=(server, client, False), daemon=True).start()

    def pump(self, source, sink, is_request):
        in_segment, seen = False, 0
        try:
            while data := source.recv(65536):
                if is_request:
                    if found := PARQUET.match(data):
                        in_segment, seen = True, 0
                        with self.lock:
                            self.puts.append(urllib.parse.unquote(found[1].decode()))
                    elif re.match(rb"(PUT|GET|HEAD|POST|DELETE) /", data):
                        in_segment = False
                    # Well behind the headers, and before the end of any segment.
                    if in_segment and seen < 4000 <= seen + len(data) and self.changing > 0:
                        self.changing -= 1
                        at = 4000 - seen
                        data = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
                    seen += len(data)
                sink.sendall(data)
        except OSError:
            pass
        for one in (source, sink):
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


class S3(ArrowFSWrapper):
    protocol = "s3"


class Bucket:
    def __init__(self, port):
        self.server, self.proxy = port, Proxy(port)
        self.url = "s3://fleet-flows/taps"
        self.env = os.environ | KEYS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.proxy.port}"}
        self.fs = pyarrow.fs.S3FileSystem(
            access_key="tap", secret_key="house", region="us-east-1", scheme="http",
            endpoint_override=f"127.0.0.1:{port}", allow_bucket_creation=True,
        )
        self.fs.create_dir("fleet-flows")

    def duck(self):
        """DuckDB over the same objects; its own `httpfs` is not on PyPI for every version, so files come through fsspec."""
        duck = duckdb.connect()
        duck.register_filesystem(S3(self.fs))
        return duck

    def objects(self, end=".parquet"):
        found = self.fs.get_file_info(pyarrow.fs.FileSelector("fleet-flows", recursive=True))
        return {f.path: f.size for f in found if f.is_file and f.path.endswith(end)}

    def rows(self, query, url=None):
        return json.loads(taphouse("sql", query, "--data-dir", url or self.url, "--output", "json", env=self.env).stdout)


@pytest.fixture
def bucket():
    port = free_port(socket.SOCK_STREAM)
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    moto = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        for line in moto.stdout:
            if "Running on" in line:
                break
        # What it says further must not fill the pipe.
        threading.Thread(target=moto.stdout.read, daemon=True).start()
        yield Bucket(port)
    finally:
        moto.kill()
        moto.wait()


@pytest.fixture
def history(server, tmp_path):
    """A data folder with several segments, and its server stopped."""

    def make(name, least=4):
        folder = tmp_path / name
        settings = ["storage.segment_age=300ms", "flowtable.timeouts.active=1s"]
        running = server(["demo", "--rate", "3000", "--data-dir", folder, *sets(settings)])
        until("no segments", lambda: len(segments(folder)) >= least)
        running.stop()
        return folder

    return make


def sets(settings):
    return [word for setting in settings for word in ("--set", setting)]


def segments(folder):
    """Segments of table `flows`, by the path they have below `segments`."""
    return {str(f.relative_to(folder / "segments")): f for f in (folder / "segments").rglob("*.parquet")}


def shipping(folder, bucket, sensor, more=()):
    """Arguments of a server that ships a folder, and makes no segment before it stops."""
    settings = [f"archive.url={bucket.url}", f"archive.sensor={sensor}", "archive.delay=0s", "storage.segment_age=1h", *more]
    return ["demo", "--rate", "100", "--data-dir", folder, *sets(settings)]


@pytest.fixture
def shipped_by(server, bucket, monkeypatch):
    """Starts a server with the bucket's environment."""

    def start(args):
        for name, value in bucket.env.items():
            monkeypatch.setenv(name, value)
        return server(args)

    return start


def archive(running, place=0):
    return json.loads(taphouse("status", "--server", running.grpc, "--output", "json").stdout)["archives"][place]


def is_done(running):
    a = archive(running)
    return a if a["due_segments"] == 0 and not a["failing"] else None


def same(folder, bucket, sensor):
    """Every segment of the folder is in the bucket, byte for byte, and nothing else."""
    root = f"fleet-flows/taps/sensor={sensor}/table=flows/"
    there = {path.removeprefix(root) for path in bucket.objects() if path.startswith(root)}
    own = segments(folder)
    assert there == set(own)
    for name, file in own.items():
        with bucket.fs.open_input_file(root + name) as object:
            assert object.read() == file.read_bytes(), name


def test_a_kill_in_the_middle_and_every_row_once(history, shipped_by, bucket):
    folder = history("edge")
    slow = ["archive.rate_max=10kB"]
    running = shipped_by(shipping(folder, bucket, "edge-1", slow))
    until("nothing is shipped", lambda: any("table=flows" in path for path in bucket.proxy.puts))
    running.process.kill()
    running.process.wait()
    before = len(bucket.proxy.puts)
    assert len(bucket.objects()) < len(segments(folder)) * 2, "it was in the middle"

    running = shipped_by(shipping(folder, bucket, "edge-1"))
    done = until("it does not end", lambda: is_done(running))
    assert done["lag_seconds"] == 0 and done["corrupt"] == done["lost"] == 0
    same(folder, bucket, "edge-1")
    puts = bucket.proxy.puts
    again = {path for path in puts if puts.count(path) > 1}
    assert before < len(puts) and len(again) <= 1, "only what was on its way at the kill goes twice"
    metrics = taphouse("status", "--server", running.grpc).stdout
    assert "archive  " in metrics and bucket.url in metrics

    everything = "s3://fleet-flows/taps/sensor=*/table=flows/**/*.parquet"
    own = duckdb.sql(f"SELECT count(*), count(DISTINCT (flow_id, part)), sum(bytes_o + bytes_r), max(t_end) FROM read_parquet({list(map(str, segments(folder).values()))})").fetchall()[0]
    assert own[0] == own[1] > 0
    duck = bucket.duck().sql(f"SELECT count(*), count(DISTINCT (flow_id, part)), sum(bytes_o + bytes_r), max(t_end) FROM read_parquet('{everything}')").fetchall()[0]
    assert duck == own
    ours = bucket.rows("SELECT count(*) AS n, count(DISTINCT flow_id) AS f, sum(bytes_o + bytes_r) AS b FROM flows")[0]
    assert (ours["n"], ours["b"]) == (own[0], own[2])


def test_engines_agree_over_two_sensors(history, shipped_by, bucket):
    for sensor in ("edge-1", "edge-2"):
        running = shipped_by(shipping(history(sensor, 2), bucket, sensor))
        until("it does not end", lambda: is_done(running))
        running.stop()
    ours = bucket.rows("SELECT sensor, count(*) AS n, sum(pkts_o + pkts_r) AS p FROM flows GROUP BY 1 ORDER BY 1")
    assert [r["sensor"] for r in ours] == ["edge-1", "edge-2"]
    right = [(r["sensor"], r["n"], r["p"]) for r in ours]

    everything = "s3://fleet-flows/taps/sensor=*/table=flows/**/*.parquet"
    duck = bucket.duck()
    query = f"SELECT sensor, count(*), sum(pkts_o + pkts_r) FROM read_parquet('{everything}', hive_partitioning = true) GROUP BY 1 ORDER BY 1"
    assert [(s, n, int(p)) for s, n, p in duck.sql(query).fetchall()] == right
    of_path = f"SELECT DISTINCT tap_name = tap, date = t_end::DATE FROM read_parquet('{everything}', hive_partitioning = true)"
    duck.sql("SET TimeZone = 'UTC'")
    assert duck.sql(of_path).fetchall() == [(True, True)]

    frame = polars.scan_parquet(
        everything, hive_partitioning=True,
        storage_options={"aws_access_key_id": "tap", "aws_secret_access_key": "house", "aws_region": "us-east-1",
                         "aws_endpoint_url": f"http://127.0.0.1:{bucket.server}", "aws_allow_http": "true"},
    )
    packets = polars.col("pkts_o") + polars.col("pkts_r")
    theirs = frame.group_by("sensor").agg(polars.len().alias("n"), packets.sum().alias("p")).sort("sensor").collect()
    assert [(s, n, p) for s, n, p in theirs.rows()] == right

    for sensor, count, packets in right:
        files = [path for path in bucket.objects() if f"sensor={sensor}/table=flows/" in path]
        table = pyarrow.dataset.dataset(files, filesystem=bucket.fs, format="parquet").to_table(columns=["pkts_o", "pkts_r"])
        assert table.num_rows == count
        assert sum(sum(table[c].to_pylist()) for c in ("pkts_o", "pkts_r")) == packets

    import chdb

    url = f"http://127.0.0.1:{bucket.server}/fleet-flows/taps/sensor=*/table=flows/**.parquet"
    answer = chdb.query(
        f"SELECT extract(_path, 'sensor=([^/]+)') AS sensor, count() AS n, sum(pkts_o + pkts_r) AS p FROM s3('{url}', 'tap', 'house', 'Parquet') GROUP BY sensor ORDER BY sensor FORMAT JSONEachRow"
    )
    chosen = [json.loads(line) for line in str(answer).splitlines() if line]
    assert [(r["sensor"], int(r["n"]), int(r["p"])) for r in chosen] == right


def test_sql_in_the_archive_is_sql_in_the_folder(history, shipped_by, bucket):
    folder = history("edge")
    running = shipped_by(shipping(folder, bucket, "edge-1"))
    until("it does not end", lambda: is_done(running))
    shipped = set(segments(folder))
    running.process.kill()
    running.process.wait()
    # Without the rows that had not left: those of the log.
    for log in [*(folder / "wal").iterdir(), *(folder / "dns/wal").iterdir(), *(folder / "talkers/wal").iterdir()]:
        log.unlink()
    assert set(segments(folder)) == shipped
    some = rows("SELECT src_ip, flow_id FROM flows ORDER BY flow_id LIMIT 1", folder)[0]["src_ip"]
    for query in [
        "SELECT count(*) AS n, sum(bytes_o) AS b, min(t_start) AS t FROM flows",
        "SELECT proto, count(*) AS n FROM flows GROUP BY 1 ORDER BY 1",
        f"SELECT flow_id, part FROM flows WHERE src_ip = '{some}' OR dst_ip = '{some}' ORDER BY 1, 2",
        f"SELECT count(*) AS n FROM flows WHERE host('{some}')",
        "SELECT count(*) AS n FROM flows WHERE host('203.0.113.77')",
        "SELECT count(*) AS n FROM flows WHERE t_end < '1999-01-01'",
        "SELECT src_ip, sum(bytes_o) AS b FROM flows GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 20",
        "SELECT qname, count(*) AS n FROM dns GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 5",
    ]:
        assert bucket.rows(query) == rows(query, folder), query
    assert bucket.rows("SELECT count(*) AS n FROM flows WHERE sensor = 'edge-1'") == rows("SELECT count(*) AS n FROM flows", folder)
    assert bucket.rows("SELECT count(*) AS n FROM flows WHERE sensor = 'edge-9'") == [{"n": 0}]
    plan = bucket.rows("EXPLAIN SELECT sum(bytes_o) FROM flows WHERE sensor = 'edge-9'")[-1]["plan"]
    assert "; 0 to read" in plan, plan
    one = f"{bucket.url}/sensor=edge-1"
    assert bucket.rows("SELECT count(*) AS n FROM flows", one) == rows("SELECT count(*) AS n FROM flows", folder)
    listed = taphouse("flows", "--limit", "7", "--data-dir", bucket.url, "--output", "ndjson", env=bucket.env).stdout
    own = taphouse("flows", "--limit", "7", "--data-dir", folder, "--output", "ndjson").stdout
    strip = lambda text: [{k: v for k, v in json.loads(line).items() if k != "sensor"} for line in text.splitlines()]
    assert strip(listed) == strip(own) and len(strip(own)) == 7


def test_an_outage_is_told_and_caught_up(history, shipped_by, bucket):
    folder = history("edge", 2)
    bucket.proxy.cut()
    running = shipped_by(shipping(folder, bucket, "edge-1"))
    first = until("no failure", lambda: a if (a := archive(running))["failures"] >= 1 else None)
    assert first["failing"] and first["due_segments"] >= 2 and first["segments"] == 0
    assert "cannot be reached" in first["last_error"] and bucket.url in first["last_error"]
    later = until("no second failure", lambda: a if (a := archive(running))["failures"] >= 2 else None)
    assert later["lag_seconds"] > first["lag_seconds"] > 0
    assert "not shipping, and tries again" in taphouse("status", "--server", running.grpc).stdout
    bucket.proxy.open()
    done = until("it does not catch up", lambda: is_done(running))
    assert done["lag_seconds"] == 0 and done["segments"] >= 2
    same(folder, bucket, "edge-1")
    log = running.stop()
    assert log.count("cannot ship segments, and tries again") == 1 and "shipping works again" in log, log


def test_what_arrives_changed_is_sent_again(history, shipped_by, bucket):
    folder = history("edge", 2)
    bucket.proxy.changing = 1
    running = shipped_by(shipping(folder, bucket, "edge-1"))
    done = until("it does not end", lambda: is_done(running))
    assert (done["corrupt"], done["failures"]) == (1, 1) and bucket.proxy.changing == 0
    assert "arrived changed" in done["last_error"]
    same(folder, bucket, "edge-1")


def test_a_dry_run_tells_what_stays_until_it_is_shipped(history, shipped_by, bucket):
    folder = history("edge", 2)
    dry = ["retention", "--dry-run", "--data-dir", folder, "--max-age", "0s", *sets([f"archive.url={bucket.url}", "archive.sensor=edge-1"])]
    flows = lambda listed: {one["file"] for one in listed if one["table"] == "flows"}
    own = {f"segments/{name}" for name in segments(folder)}

    def plan():
        return json.loads(taphouse(*dry, "--output", "json", env=bucket.env).stdout)

    before = plan()
    assert (flows(before["dropped"]), flows(before["unshipped"])) == (set(), own)
    # A window of the sketches that the end cut short ends later than now: its segment has no age yet.
    assert before["kept"]["segments"] >= len(before["unshipped"])
    text = taphouse(*dry, env=bucket.env).stdout
    assert text.count("but stays: not shipped") == len(before["unshipped"]) and "until they are shipped" in text
    lines = [json.loads(line) for line in taphouse(*dry, "--output", "ndjson", env=bucket.env).stdout.splitlines()]
    assert [line.pop("fate") for line in lines] == ["unshipped"] * len(lines) and lines == before["unshipped"]
    without = json.loads(taphouse(*dry, "--set", "archive.keep_unshipped=false", "--output", "json", env=bucket.env).stdout)
    assert (flows(without["dropped"]), without["unshipped"]) == (own, [])

    running = shipped_by(shipping(folder, bucket, "edge-1"))
    until("it does not end", lambda: is_done(running))
    after = plan()
    assert flows(after["dropped"]) >= own and after["unshipped"] == []


class Refusal(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_what_is_no_archive_is_told_in_a_sentence(bucket):
    def told(url, env=None):
        done = taphouse("sql", "SELECT 1 FROM flows", "--data-dir", url, env=bucket.env | (env or {}), ok=False)
        assert done.returncode != 0 and done.stdout == "" and done.stderr.count("\n") == 1, done
        return done.stderr

    assert "holds no archive" in told(bucket.url)
    assert "there is no such bucket" in told("s3://fleet-nothing/x")
    assert "cannot be reached" in told(bucket.url, {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port(socket.SOCK_STREAM)}"})
    assert "write s3://BUCKET/PREFIX" in told("gopher://x/y")
    refusal = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusal)
    threading.Thread(target=refusal.serve_forever, daemon=True).start()
    try:
        text = told(bucket.url, {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{refusal.server_port}"})
        assert "access denied (AccessDenied)" in text, text
    finally:
        refusal.shutdown()


def ddl():
    """The statements of docs/fleet.md."""
    from conftest import ROOT

    text = (ROOT / "docs/fleet.md").read_text()
    return [s.strip() for block in re.findall(r"```sql\n-- ClickHouse tables\n(.*?)```", text, re.S) for s in block.split(";") if s.strip()]


class ClickHouse(http.server.ThreadingHTTPServer):
    """ClickHouse's HTTP interface in front of chDB: it runs the very INSERT with the very body, and may lose the answer."""

    def __init__(self, folder):
        from chdb.session import Session

        super().__init__(("127.0.0.1", 0), Insert)
        self.session, self.folder, self.losing, self.inserts = Session(str(folder / "chdb")), folder, 0, []
        self.running = threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Insert(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        asked = dict(urllib.parse.parse_qsl(urllib.parse.urlparse(self.path).query))
        body = self.rfile.read(int(self.headers["Content-Length"]))
        words = re.fullmatch(r"INSERT INTO (\w+\.\w+) FORMAT Parquet", asked["query"])
        token = asked["insert_deduplication_token"]
        with self.server.running:
            file = self.server.folder / "body.parquet"
            file.write_bytes(body)
            status, text = 200, ""
            try:
                # chDB takes a body from a file alone.
                self.server.session.query(
                    f"INSERT INTO {words[1]} FROM INFILE '{file}' SETTINGS insert_deduplication_token = '{token}' FORMAT Parquet"
                )
                self.server.inserts.append(token)
            except Exception as error:
                status, text = 500, str(error)
            lost = self.server.losing > 0
            self.server.losing -= lost
        if lost:
            self.close_connection = True
            return
        self.send_response(status)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass


def test_clickhouse_has_every_row_once_though_answers_are_lost(history, server, tmp_path):
    folder = history("edge", 3)
    clickhouse = ClickHouse(tmp_path)
    try:
        args = ["demo", "--rate", "100", "--data-dir", folder]
        settings = [f"archive.clickhouse.url=http://127.0.0.1:{clickhouse.server_port}", "archive.delay=0s", "storage.segment_age=1h"]
        running = server([*args, *sets(settings)])
        told = until("no failure", lambda: a if (a := archive(running))["failures"] else None)
        assert told["failing"] and "UNKNOWN_DATABASE" in told["last_error"]
        statements = ddl()
        (missing,) = [statement for statement in statements if "taphouse.talkers" in statement]
        with clickhouse.running:
            clickhouse.losing = 2
            for statement in statements:
                if statement is not missing:
                    clickhouse.session.query(statement)
        # A table that is not there yet keeps no other one from coming.
        all_flows = set(segments(folder))
        shipped = lambda: {token.rsplit("-flows-")[-1] for token in clickhouse.inserts if "-flows-" in token}
        until("flows do not come", lambda: len(shipped()) >= len(all_flows))
        told = until("no failure", lambda: a if "UNKNOWN_TABLE" in (a := archive(running))["last_error"] else None)
        assert told["failing"] and told["due_segments"] >= 1
        with clickhouse.running:
            clickhouse.session.query(missing)
        done = until("it does not end", lambda: is_done(running))
        assert done["segments"] >= 3 and done["lag_seconds"] == 0
        assert len(clickhouse.inserts) == len(set(clickhouse.inserts)) + 2, "two came twice, their answers being lost"
        own = segments(folder)
        files = list(map(str, own.values()))
        right = duckdb.sql(f"SELECT count(*), sum(bytes_o + bytes_r) FROM read_parquet({files})").fetchall()[0]
        ask = lambda query: [int(n) for n in str(clickhouse.session.query(query, "TSV")).split()]
        assert ask("SELECT count(), sum(bytes_o + bytes_r) FROM taphouse.flows") == [right[0], int(right[1])]
        assert ask("SELECT uniqExact(flow_id, part) FROM taphouse.flows") == [right[0]]
        # Once more, under the tokens it had: nothing new.
        again = len(clickhouse.inserts)
        running.stop()
        state = next((folder / "archive").glob("*.ndjson"))
        kept = [line for line in state.read_text().splitlines(keepends=True) if '"shipped"' not in line and '"uploaded"' not in line]
        state.write_text("".join(kept))
        running = server([*args, *sets(settings)])
        until("it does not end", lambda: len(clickhouse.inserts) > again and is_done(running))
        own = duckdb.sql(f"SELECT count(*) FROM read_parquet({list(map(str, segments(folder).values()))})").fetchall()[0]
        assert ask("SELECT count() FROM taphouse.flows") == [own[0]]
    finally:
        clickhouse.shutdown()
        clickhouse.session.close()


def test_a_place_that_cannot_be_is_refused(tmp_path):
    for setting, word in [("archive.url=/srv/x", "s3://BUCKET"), ("archive.clickhouse.url=tcp://h", "http://HOST"), ("archive.sensor=a/b", "archive.sensor")]:
        done = taphouse("demo", "--data-dir", tmp_path / "d", "--set", setting, ok=False)
        assert done.returncode == 2 and word in done.stderr, done.stderr
        assert not (tmp_path / "d").exists()
