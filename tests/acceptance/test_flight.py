"""Arrow Flight SQL with clients nobody here wrote: the ADBC driver and pyarrow.flight."""
import ipaddress
import re
import threading
import time
import urllib.request

import adbc_driver_flightsql.dbapi as flightsql
import adbc_driver_manager
import pyarrow as pa
import pytest
from adbc_driver_flightsql import DatabaseOptions
from pyarrow import flight

from conftest import rows

HEADER = DatabaseOptions.RPC_CALL_HEADER_PREFIX.value + "taphouse-addresses"

# The server's own traffic is of another tap; what was replayed stands still.
QUERIES = [
    "SELECT count(*) AS n FROM flows WHERE tap = 'replay'",
    "SELECT proto, count(*) AS n, sum(bytes_o) AS bytes FROM flows WHERE tap = 'replay' GROUP BY proto ORDER BY proto",
    "SELECT src_ip, count(*) AS n FROM flows WHERE tap = 'replay' GROUP BY src_ip ORDER BY n DESC, src_ip LIMIT 20",
    "SELECT flow_id, part, src_ip, dst_ip, src_port, dst_port FROM flows WHERE tap = 'replay' ORDER BY t_end, flow_id, part LIMIT 500",
    "SELECT tap, app, name, conn_state, end_reason FROM flows WHERE tap = 'replay' ORDER BY flow_id, part LIMIT 2000",
    "SELECT src_mac, dst_mac FROM flows WHERE tap = 'replay' ORDER BY flow_id, part LIMIT 50",
    "SELECT t_end, t_start, dur_us FROM flows WHERE tap = 'replay' ORDER BY flow_id, part LIMIT 50",
    "SELECT src_ip, array_agg(DISTINCT dst_port ORDER BY dst_port) AS ports FROM flows "
    "WHERE tap = 'replay' AND net('10.0.0.0/8') GROUP BY src_ip ORDER BY src_ip LIMIT 20",
    "SELECT qname, count(*) AS n FROM dns WHERE tap = 'replay' GROUP BY qname ORDER BY n DESC, qname LIMIT 20",
    "SELECT max(rtt_us) AS rtt, avg(bytes_r) AS mean FROM flows WHERE tap = 'replay' AND proto = 'tcp'",
]


@pytest.fixture
def serving(server, stored, tmp_path):
    """A server over the folder of the replayed capture; its own traffic, of another tap, is next to nothing."""
    return server(["demo", "--rate", "1", "--data-dir", stored[0]])


def connect(serving, **options):
    return flightsql.connect(f"grpc://{serving.grpc}", db_kwargs=options, autocommit=True)


def as_json(value):
    """A value of pyarrow as `taphouse sql --output json` writes it."""
    if isinstance(value, list):
        return [as_json(v) for v in value]
    if hasattr(value, "isoformat"):
        return value.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return value


def metric(serving, name):
    text = urllib.request.urlopen(f"http://{serving.http}/metrics", timeout=10).read().decode()
    found = re.search(rf"^{re.escape(name)} ([0-9.e+]+)$", text, re.M)
    return float(found[1]) if found else 0.0


def until(condition, what):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_gives_what_the_command_line_gives(serving, stored, query):
    expected = rows(query, stored[0])
    with connect(serving, **{HEADER: "text"}) as connection, connection.cursor() as cursor:
        cursor.execute(query)
        table = cursor.fetch_arrow_table()
    assert not any(pa.types.is_dictionary(field.type) for field in table.schema)
    got = [{name: as_json(value) for name, value in row.items()} for row in table.to_pylist()]
    for row in got:
        if "flow_id" in row:
            row["flow_id"] = str(row["flow_id"])
    assert got == expected and (expected or "dns" in query)


def test_addresses_are_bytes_with_a_name_or_text(serving):
    query = "SELECT src_ip, src_mac, tap FROM flows WHERE tap = 'replay' ORDER BY flow_id, part LIMIT 1000"
    answers = {}
    for view in ("binary", "text"):
        with connect(serving, **{HEADER: view}) as connection, connection.cursor() as cursor:
            cursor.execute(query)
            answers[view] = cursor.fetch_arrow_table()
    binary, text = answers["binary"], answers["text"]
    field = binary.schema.field("src_ip")
    assert field.type == pa.binary(16) and field.metadata[b"ARROW:extension:name"] == b"taphouse.ip"
    assert binary.schema.field("src_mac").metadata[b"ARROW:extension:name"] == b"taphouse.mac"
    assert text.schema.field("src_ip").type == pa.string() and text.schema.field("src_mac").type == pa.string()

    def spelled(raw):
        address = ipaddress.IPv6Address(raw)
        return str(address.ipv4_mapped or address)

    assert [spelled(raw) for raw in binary["src_ip"].to_pylist()] == text["src_ip"].to_pylist()


def test_parameters_are_bound_and_not_read_as_sql(serving, stored):
    busiest = rows("SELECT src_ip, dst_port, count(*) AS n FROM flows WHERE tap = 'replay' GROUP BY 1, 2 ORDER BY n DESC LIMIT 3", stored[0])
    with connect(serving, **{HEADER: "text"}) as connection, connection.cursor() as cursor:
        count = "SELECT count(*) AS n FROM flows WHERE tap = 'replay' AND src_ip = ? AND dst_port = ?"
        for row in busiest:
            cursor.execute(count, (row["src_ip"], row["dst_port"]))
            assert cursor.fetchall() == [(row["n"],)]
        cursor.execute("SELECT count(*) AS n FROM flows WHERE tap = $1 OR tap = $1", ("' OR 1 = 1 --",))
        assert cursor.fetchall() == [(0,)]
        # An address as the bytes that a binary answer has.
        packed = b"\0" * 10 + b"\xff\xff" + ipaddress.ip_address(busiest[0]["src_ip"]).packed
        cursor.execute(count, (packed, busiest[0]["dst_port"]))
        assert cursor.fetchall() == [(busiest[0]["n"],)]
        cursor.execute("SELECT $2 AS b, $1 AS a, $3 AS c", (-7, None, "x"))
        assert cursor.fetchall() == [(None, -7, "x")]
        for text, values in [("SELECT ?", (1, 2)), ("SELECT 1", (1,)), ("SELECT ?, ?", (1,))]:
            with pytest.raises(adbc_driver_manager.Error, match="parameters"):
                cursor.execute(text, values)


def test_prepared_statements(serving):
    with connect(serving, **{HEADER: "text"}) as connection, connection.cursor() as cursor:
        query = "SELECT src_ip, bytes_o FROM flows WHERE src_ip = ? AND bytes_o > ? AND tap = ? LIMIT 1"
        parameters = cursor.adbc_prepare(query)
        assert [field.type for field in parameters] == [pa.string(), pa.int64(), pa.string()]
        assert metric(serving, "taphouse_prepared_statements_open") == 1
        assert [field.type for field in cursor.adbc_execute_schema(query.replace("?", "NULL"))] == [pa.string(), pa.int64()]
    with connect(serving) as connection, connection.cursor() as cursor:
        assert cursor.adbc_prepare(query)[0].type == pa.binary(16)
        with pytest.raises(adbc_driver_manager.Error, match=r"did you mean `src_ip`\?"):
            cursor.adbc_prepare("SELECT srcip FROM flows WHERE proto = ?")
    until(lambda: metric(serving, "taphouse_prepared_statements_open") == 0, "closed statements are still held")
    # Two of them here, and one by which the driver finds out a schema.
    assert metric(serving, "taphouse_prepared_statements_total") == 3


def test_catalogs_schemas_tables_and_info(serving):
    with connect(serving, **{HEADER: "text"}) as connection:
        objects = connection.adbc_get_objects(depth="all").read_all().to_pylist()
        catalog, = objects
        assert catalog["catalog_name"] == "taphouse"
        schema, = catalog["catalog_db_schemas"]
        assert schema["db_schema_name"] == "public"
        tables = {table["table_name"]: table for table in schema["db_schema_tables"]}
        assert {"flows", "dns", "talkers"} <= set(tables) and tables["flows"]["table_type"] == "TABLE"
        columns = [column["column_name"] for column in tables["flows"]["table_columns"]]
        assert columns[0] == "t_end" and columns[-1] == "t_start"
        filtered = connection.adbc_get_objects(depth="tables", table_name_filter="fl%").read_all().to_pylist()
        assert [t["table_name"] for t in filtered[0]["catalog_db_schemas"][0]["db_schema_tables"]] == ["flows"]
        described = connection.adbc_get_table_schema("flows", db_schema_filter="public")
        assert described.names == columns and described.field("src_ip").type == pa.string()
        assert connection.adbc_get_table_types() == ["TABLE"]
        info = connection.adbc_get_info()
        assert info["vendor_name"] == "Taphouse" and info["vendor_version"]
    with connect(serving) as connection:
        assert connection.adbc_get_table_schema("flows").field("src_ip").type == pa.binary(16)


def test_errors_are_those_of_the_command_line(serving):
    with connect(serving) as connection, connection.cursor() as cursor:
        for text, told in [
            ("SELECT srcip FROM flows", ["there is no column `srcip` (line 1, column 8)", "^", "did you mean `src_ip`?"]),
            ("SELECT * FROM flow", ["there is no table `flow`", "did you mean `flows`?"]),
            ("DROP TABLE flows", ["DROP is refused: queries only read"]),
            ("SELECT * FROM flows WHERE src_ip = '10.0.0.0/8'", ["is not an IPv4 or IPv6 address", "net("]),
        ]:
            with pytest.raises(adbc_driver_manager.Error) as e:
                cursor.execute(text)
            assert all(part in str(e.value) for part in told), str(e.value)
        with pytest.raises(adbc_driver_manager.Error, match="INSERT is refused: queries only read"):
            cursor.executemany("INSERT INTO flows VALUES (?)", [(1,)])
        with pytest.raises(adbc_driver_manager.Error, match="updates are refused: queries only read"):
            cursor.adbc_statement.set_sql_query("SELECT 1")
            cursor.adbc_statement.execute_update()
        with pytest.raises(adbc_driver_manager.Error):
            cursor.adbc_ingest("flows", pa.table({"a": [1]}), mode="append")
    with connect(serving, **{HEADER: "hex"}) as connection, connection.cursor() as cursor:
        with pytest.raises(adbc_driver_manager.Error, match="taphouse-addresses is 'hex'"):
            cursor.execute("SELECT 1")


ENDLESS = "SELECT a.flow_id, a.src_ip, b.dst_ip FROM flows a, flows b"


def test_a_query_is_cancelled_or_left_and_ends(serving):
    with connect(serving) as connection, connection.cursor() as cursor:
        cursor.execute(ENDLESS)
        reader = cursor.fetch_record_batch()
        reader.read_next_batch()
        assert metric(serving, "taphouse_queries_in_flight") >= 1
        cursor.adbc_cancel()
        with pytest.raises((pa.ArrowInvalid, pa.ArrowCancelled, OSError, adbc_driver_manager.Error)):
            while True:
                reader.read_next_batch()
    until(lambda: metric(serving, "taphouse_queries_in_flight") == 0, "a cancelled query still runs")


def test_a_deadline_ends_a_query(serving):
    with connect(serving, **{DatabaseOptions.TIMEOUT_FETCH.value: "1.5"}) as connection, connection.cursor() as cursor:
        cursor.execute(ENDLESS)
        reader = cursor.fetch_record_batch()
        with pytest.raises((pa.ArrowInvalid, pa.ArrowException, OSError, adbc_driver_manager.Error)) as e:
            while True:
                reader.read_next_batch()
        assert re.search("deadline|time", str(e.value), re.I), str(e.value)
    until(lambda: metric(serving, "taphouse_queries_in_flight") == 0, "a query outlives its deadline")


def test_pyarrow_flight_by_hand(serving, stored):
    client = flight.connect(f"grpc://{serving.grpc}")
    options = flight.FlightCallOptions(headers=[(b"taphouse-addresses", b"text")])
    info = client.get_flight_info(flight.FlightDescriptor.for_path("dns"), options)
    assert info.schema.field("client_ip").type == pa.string()
    table = client.do_get(info.endpoints[0].ticket).read_all()
    assert table.num_rows == rows("SELECT count(*) AS n FROM dns", stored[0])[0]["n"] and table.schema == info.schema
    # A ticket holds nothing on the server: it can be used again.
    assert client.do_get(info.endpoints[0].ticket).read_all().num_rows == table.num_rows
    assert {action.type for action in client.list_actions()} >= {"CreatePreparedStatement", "CancelFlightInfo"}
    with pytest.raises(pa.ArrowInvalid, match="no Flight SQL command"):
        client.get_flight_info(flight.FlightDescriptor.for_command(b"\xff\xff"))
    with pytest.raises(pa.ArrowInvalid, match="no Flight SQL command"):
        client.do_get(flight.Ticket(b"\xff\xff")).read_all()
    with pytest.raises(pa.ArrowInvalid, match="there is no table"):
        client.get_flight_info(flight.FlightDescriptor.for_path('flows" WHERE 1=1 --'))


def test_many_clients_at_once(serving):
    counts, errors = [], []

    def ask():
        try:
            with connect(serving) as connection, connection.cursor() as cursor:
                cursor.execute("SELECT count(*) FROM flows WHERE tap = ?", ("replay",))
                counts.append(cursor.fetchall()[0][0])
        except adbc_driver_manager.Error as error:
            errors.append(error)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert not errors and len(counts) == 8 and len(set(counts)) == 1
    until(lambda: metric(serving, "taphouse_queries_in_flight") == 0, "a query still runs")
    assert metric(serving, 'taphouse_query_rows_total{method="flight_get"}') >= 8
    assert metric(serving, 'taphouse_query_sent_bytes_total{method="flight_get"}') > 0


def test_duckdb_and_pandas_read_the_answer(serving, stored):
    import duckdb

    with connect(serving, **{HEADER: "text"}) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT src_ip, bytes_o + bytes_r AS bytes FROM flows WHERE tap = 'replay'")
        answer = cursor.fetch_arrow_table()
        frame = answer.to_pandas()
    top = duckdb.sql("SELECT src_ip, sum(bytes)::BIGINT AS bytes FROM answer GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 5").fetchall()
    expected = rows("SELECT src_ip, sum(bytes_o + bytes_r) AS bytes FROM flows WHERE tap = 'replay' GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 5", stored[0])
    assert top == [(row["src_ip"], row["bytes"]) for row in expected]
    assert int(frame["bytes"].sum()) == rows("SELECT sum(bytes_o + bytes_r) AS n FROM flows WHERE tap = 'replay'", stored[0])[0]["n"]
