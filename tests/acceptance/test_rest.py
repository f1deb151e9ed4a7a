"""REST with Python's urllib: the rows of the command line in every format, pages, errors, slow readers."""
import csv
import http.client
import io
import json
import re
import socket
import time
import urllib.error
import urllib.parse
import urllib.request

import pyarrow as pa
import pytest

from conftest import rows, taphouse
from test_flight import QUERIES, as_json, metric, serving, until  # noqa: F401

ARROW = "application/vnd.apache.arrow.stream"


def call(serving, path, body=None, **headers):
    data = body.encode() if isinstance(body, str) else body
    request = urllib.request.Request(f"http://{serving.http}/api/v1{path}", data=data)
    for name, value in headers.items():
        request.add_header(name.replace("_", "-"), value)
    with urllib.request.urlopen(request, timeout=60) as response:
        return response.headers, response.read()


def refused(serving, path, body=None, **headers):
    with pytest.raises(urllib.error.HTTPError) as e:
        call(serving, path, body, **headers)
    assert e.value.headers["content-type"] == "application/json"
    return e.value.code, json.loads(e.value.read())["error"]


def ask(serving, query, accept):
    return call(serving, "/sql", json.dumps({"sql": query}), content_type="application/json", accept=accept)


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_gives_what_the_command_line_gives_in_every_format(serving, stored, query):
    expected = rows(query, stored[0])
    headers, body = ask(serving, query, "application/json")
    assert headers["content-type"] == "application/json" and headers["transfer-encoding"] == "chunked"
    assert body.decode() == taphouse("sql", query, "--data-dir", stored[0], "--output", "json").stdout
    headers, body = ask(serving, query, "application/x-ndjson")
    assert [json.loads(line) for line in body.splitlines()] == expected
    headers, body = ask(serving, query, "text/csv")
    assert headers["content-type"] == "text/csv"
    assert body.decode() == taphouse("sql", query, "--data-dir", stored[0], "--output", "csv").stdout
    assert len(list(csv.reader(io.StringIO(body.decode())))) == len(expected) + 1
    _, body = call(serving, "/sql?format=arrow&addresses=text", query, content_type="text/plain")
    got = pa.ipc.open_stream(body).read_all().to_pylist()
    for row in got:
        row.update({name: as_json(value) for name, value in row.items()})
        if "flow_id" in row:
            row["flow_id"] = str(row["flow_id"])
    assert got == expected


def test_flows_are_listed_as_by_the_command_line(serving, stored):
    where = "tap = 'replay' AND proto = 6"
    expected = taphouse("flows", where, "--data-dir", stored[0], "--limit", "700", "--output", "ndjson").stdout
    path = "/flows?" + urllib.parse.urlencode({"filter": where, "limit": 700, "format": "ndjson"})
    assert call(serving, path)[1].decode() == expected
    everything = "/flows?" + urllib.parse.urlencode({"filter": where, "limit": 0, "columns": "flow_id,part", "format": "csv"})
    n = rows(f"SELECT count(*) AS n FROM flows WHERE {where}", stored[0])[0]["n"]
    assert len(set(call(serving, everything)[1].splitlines())) == n + 1
    body = call(serving, "/flows?format=arrow&limit=3")[1]
    assert pa.ipc.open_stream(body).read_all().schema.field("src_ip").type == pa.binary(16)


def test_pages_together_are_all_flows(serving, stored):
    where = "tap = 'replay' AND dst_port < 1024"
    expected = [json.loads(line) for line in taphouse(
        "flows", where, "--data-dir", stored[0], "--limit", "1000", "--columns", "src_ip,dst_port", "--output", "ndjson"
    ).stdout.splitlines()]
    query = {"filter": where, "columns": "src_ip,dst_port", "page_size": 137, "since": "2000-01-01T00:00:00Z"}
    path, pages = "/flows?" + urllib.parse.urlencode(query), []
    while path and sum(map(len, pages)) < len(expected):
        headers, body = call(serving, path)
        pages.append(json.loads(body))
        link = headers["link"]
        assert (link is None) == (headers["taphouse-next-page-token"] is None)
        path = re.fullmatch(r'</api/v1(/.*)>; rel="next"', link)[1] if link else None
    assert [flow for page in pages for flow in page][: len(expected)] == expected
    assert {len(page) for page in pages[:-1]} == {137}

    token = call(serving, "/flows?page_size=5&filter=proto%3D6")[0]["taphouse-next-page-token"]
    assert refused(serving, f"/flows?page_size=5&filter=proto%3D17&page_token={token}")[0] == 400
    assert refused(serving, "/flows?page_token=made-up")[1]["message"].startswith("page_token was not given out")


def test_parameters(serving, stored):
    busiest = rows("SELECT src_ip, count(*) AS n FROM flows WHERE tap = 'replay' GROUP BY 1 ORDER BY n DESC LIMIT 1", stored[0])[0]
    question = {"sql": "SELECT count(*) AS n FROM flows WHERE tap = ? AND src_ip = ?", "parameters": ["replay", busiest["src_ip"]]}
    _, body = call(serving, "/sql", json.dumps(question), content_type="application/json")
    assert json.loads(body) == [{"n": busiest["n"]}]
    status, error = refused(serving, "/sql", json.dumps({**question, "parameters": []}), content_type="application/json")
    assert status == 400 and error["message"] == "parameters of the statement: 2, values given: 0"


def test_errors_say_what_and_where(serving):
    status, error = refused(serving, "/sql", "SELECT srcip FROM flows", content_type="text/plain")
    assert (status, error["code"]) == (400, "invalid_argument")
    assert error["message"].splitlines() == [
        "there is no column `srcip` (line 1, column 8)", "  SELECT srcip FROM flows", "         ^", "did you mean `src_ip`?",
    ]
    for path, body, headers, expected, told in [
        ("/flows?filter=dst_prt+%3D+1", None, {}, 400, "did you mean `dst_port`?"),
        ("/flows?columns=src", None, {}, 400, "there is no column `src`"),
        ("/flows?colums=src_ip", None, {}, 400, "there is no parameter 'colums'"),
        ("/flows", None, {"accept": "application/xml"}, 406, "application/xml"),
        ("/sql", "DELETE FROM flows", {"content_type": "text/plain"}, 400, "DELETE is refused"),
        ("/sql", "sql=SELECT+1", {"content_type": "application/x-www-form-urlencoded"}, 415, "application/json"),
        ("/sql", "x" * (1 << 20), {"content_type": "text/plain"}, 413, "the most allowed"),
        ("/sql", None, {}, 405, "openapi"),
        ("/nothing", None, {}, 404, "/api/v1/flows"),
        ("/tables", None, {"origin": "https://example.org"}, 403, "other sites"),
        ("/tables", None, {"host": "rebound.example"}, 403, "loopback"),
    ]:
        status, error = refused(serving, path, body, **headers)
        assert status == expected and told in error["message"], (path, status, error)
    headers, _ = call(serving, "/tables")
    assert not [name for name in headers if name.lower().startswith("access-control-")]


def test_a_query_over_budget_is_told(server, stored):
    small = server(["demo", "--rate", "1", "--data-dir", stored[0], "--set", "query.memory=1MiB"])
    sorting = "SELECT * FROM flows ORDER BY bytes_r, flow_id DESC"
    status, error = refused(small, "/sql", sorting, content_type="text/plain")
    assert (status, error["code"]) == (429, "resource_exhausted") and "memory" in error["message"]


def test_tables_and_the_description(serving):
    tables = {t["name"]: t["columns"] for t in json.loads(call(serving, "/tables")[1])["tables"]}
    assert {"flows", "dns", "talkers"} <= set(tables)
    by_name = {c["name"]: c for c in tables["flows"]}
    assert by_name["src_ip"] == {"name": "src_ip", "type": "FixedSizeBinary(16)", "extension": "taphouse.ip", "nullable": False}
    described = json.loads(call(serving, "/openapi.json")[1])
    for path, item in described["paths"].items():
        for method in item:
            body = '{"sql": "SELECT 1"}' if method == "post" else None
            assert call(serving, path, body, content_type="application/json")[1], path


# Some 100 bytes a row; far more rows than anything between server and reader holds.
ENDLESS = "SELECT a.flow_id, a.src_ip, a.dst_ip, b.src_ip AS other FROM flows a, flows b"


def test_an_answer_that_fails_on_its_way_is_cut_off(serving):
    late = "SELECT 1 / (CASE WHEN value = 50000 THEN 0 ELSE 1 END) AS n FROM generate_series(1, 100000)"
    request = urllib.request.Request(f"http://{serving.http}/api/v1/sql?format=csv", late.encode(), {"content-type": "text/plain"})
    with urllib.request.urlopen(request, timeout=60) as response:
        assert response.status == 200
        with pytest.raises(http.client.IncompleteRead):
            response.read()
    errors = 'taphouse_query_errors_total{method="rest_sql",code="INVALID_ARGUMENT"}'
    until(lambda: metric(serving, errors) == 1, "the error is not counted")


def resident(serving):
    with open(f"/proc/{serving.process.pid}/status") as status:
        return int(re.search(r"VmRSS:\s+(\d+) kB", status.read())[1]) * 1024


def test_a_reader_that_stops_holds_little_and_its_query_ends_with_it(serving):
    host, port = serving.http.split(":")
    sent = lambda: metric(serving, 'taphouse_query_sent_bytes_total{method="rest_sql"}')
    ask(serving, "SELECT * FROM flows LIMIT 1000", "application/json")
    before, base = resident(serving), sent()
    readers = []
    for _ in range(4):
        reader = socket.create_connection((host, int(port)), timeout=60)
        head = f"POST /api/v1/sql?format=ndjson HTTP/1.1\r\nHost: {serving.http}\r\nContent-Type: text/plain\r\nContent-Length: {len(ENDLESS)}\r\n\r\n"
        reader.sendall(head.encode() + ENDLESS.encode())
        assert reader.recv(64).startswith(b"HTTP/1.1 200")
        readers.append(reader)
    # Until the server has stopped, nobody taking anything.
    seen = [base]
    while len(seen) < 4 or len(set(seen[-4:])) > 1:
        seen.append(sent())
        assert seen[-1] - base < 4 * 64 * 2**20, "the server goes on without a reader"
        time.sleep(0.25)
    assert seen[-1] > base
    assert resident(serving) - before < 256 * 2**20
    assert metric(serving, "taphouse_queries_in_flight") == 4
    readers[0].recv(1 << 20)
    [reader.close() for reader in readers]
    until(lambda: metric(serving, "taphouse_queries_in_flight") == 0, "a query outlives its reader")
