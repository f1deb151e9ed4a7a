"""Tables of what a server has in memory: flows in progress, the ledger, and the alert log beside them."""
import json
from datetime import datetime, timezone

import pytest

from conftest import rows, taphouse


@pytest.fixture
def demo(server, tmp_path):
    """A server whose traffic is generated, in which flows end and are cut into parts within seconds."""
    hasty = ["tcp_idle=3s", "udp_idle=1s", "other_idle=1s", "closed=500ms", "active=2s"]
    settings = [word for timeout in hasty for word in ("--set", f"flowtable.timeouts.{timeout}")]
    return server(["demo", "--rate", "20000", "--data-dir", tmp_path / "data", *settings])


def status(running):
    return json.loads(taphouse("status", "--server", running.grpc, "--output", "json").stdout)


def asked(running, query):
    return json.loads(taphouse("sql", query, "--server", running.grpc, "--output", "json").stdout)


def until(running, what):
    """The state of the server once `what` holds of it."""
    for _ in range(3000):
        now = status(running)
        if what(now):
            return now
    raise AssertionError(f"it never came to that: {now}")


def ended(flows):
    """Flows that ended, going by the records."""
    return sum(count for reason, count in flows["exported"].items() if reason != "active")


def test_active_flows_are_those_of_the_gauge_and_become_records(demo, tmp_path):
    until(demo, lambda s: s["flows"]["active"] > 200)
    before = status(demo)["flows"]
    seen = asked(demo, "SELECT flow_id, part, pkts_o + pkts_r AS pkts, end_reason, t_start, t_end FROM active_flows")
    after = status(demo)["flows"]
    # Those that stayed are there, and none that was never begun.
    stayed = before["active"] - (ended(after) - ended(before))
    begun = before["active"] + after["created"] - before["created"]
    assert stayed <= len(seen) <= begun, (before, len(seen), after)
    assert len({f["flow_id"] for f in seen}) == len(seen) > 0
    assert all(f["end_reason"] is None and f["pkts"] > 0 and f["t_start"] <= f["t_end"] for f in seen)

    demo.stop()
    records = rows("SELECT flow_id, part, pkts_o + pkts_r AS pkts FROM flows", tmp_path / "data")
    stored = {(r["flow_id"], r["part"]): r["pkts"] for r in records}
    # Each part is a record in the end, of as many packets or more.
    assert all(stored[f["flow_id"], f["part"]] >= f["pkts"] for f in seen)


def test_flows_and_active_flows_together_miss_none(demo):
    """However flows move from one to the other while the query is at work."""
    until(demo, lambda s: ended(s["flows"]) > 500)
    both = "SELECT {0} FROM (SELECT flow_id, part, end_reason FROM flows UNION ALL SELECT flow_id, part, end_reason FROM active_flows)"
    for _ in range(10):
        begun = status(demo)["flows"]["created"]
        (found,) = asked(demo, both.format("count(DISTINCT flow_id) AS flows"))
        assert begun <= found["flows"] <= status(demo)["flows"]["created"]
    once = (
        "SELECT max(n) AS most, count(*) AS parts FROM (SELECT flow_id, part, count(*) AS n FROM ("
        "SELECT flow_id, part FROM flows UNION ALL SELECT flow_id, part FROM active_flows a "
        "WHERE NOT EXISTS (SELECT 1 FROM flows f WHERE f.flow_id = a.flow_id AND f.part = a.part)) GROUP BY 1, 2)"
    )
    (found,) = asked(demo, once)
    assert found["most"] == 1 and found["parts"] >= begun
    # What is in both is the same part: the one with a reason is the later.
    doubles = both.format("flow_id, part, count(*) AS n, count(end_reason) AS ended") + " GROUP BY 1, 2 HAVING count(*) > 1"
    assert all((d["n"], d["ended"]) == (2, 1) for d in asked(demo, doubles))


def test_filters_joins_and_columns_of_active_flows(demo):
    until(demo, lambda s: s["flows"]["active"] > 200)
    (found,) = asked(
        demo,
        "SELECT count(*) AS n, count(DISTINCT proto) AS protos, min(dst_port) AS low, max(dst_port) AS high "
        "FROM active_flows WHERE proto = 'tcp' AND port(443)",
    )
    assert found["n"] > 0 and found["protos"] == 1
    described = asked(demo, "DESCRIBE active_flows")
    stored = asked(demo, "DESCRIBE flows")
    names = lambda columns: [(c["column_name"], c["data_type"]) for c in columns]
    assert names(described) == names(stored)
    nullable = lambda columns: {c["column_name"]: c["is_nullable"] for c in columns}
    assert nullable(described) == {**nullable(stored), "end_reason": "YES"}
    assert {t["table_name"] for t in asked(demo, "SHOW TABLES") if t["table_schema"] == "public"} == {
        "flows", "dns", "talkers", "active_flows", "alerts", "ledger",
    }


def test_the_ledger_says_what_status_says(demo):
    until(demo, lambda s: s["queues"][0]["offered"] > 5000)
    before = status(demo)["queues"]
    table = asked(demo, "SELECT tap, queue, unit, cause, count, offered, loss, hint, time FROM ledger")
    after = status(demo)["queues"]
    packets = {(r["tap"], r["queue"], r["cause"]): r for r in table if r["unit"] == "packets"}
    shown = {(q["tap"], q["queue"], cause): n for q in before for cause, n in q["causes"].items()}
    later = {(q["tap"], q["queue"], cause): n for q in after for cause, n in q["causes"].items()}
    assert packets.keys() == shown.keys()
    assert all(shown[key] <= packets[key]["count"] <= later[key] for key in packets)
    assert all(row["hint"] for row in table)
    assert {r["unit"] for r in table} == {"packets", "records", "dns"}
    assert packets["generated", 0, "kernel_drop"]["loss"] and not packets["generated", 0, "processed"]["loss"]


def test_alerts_are_the_log(demo, tmp_path):
    # The first attack of generated traffic begins after 12 s.
    until(demo, lambda s: s["alerts"]["last_seq"] > 0)
    live = asked(demo, "SELECT rule, evidence FROM alerts WHERE seq = 1")
    demo.stop()
    data = tmp_path / "data"
    log = json.loads(taphouse("alerts", "--data-dir", data, "--output", "json").stdout)
    table = rows("SELECT * FROM alerts ORDER BY seq", data)
    assert len(log) == len(table) > 0
    assert [(a["rule"], json.loads(a["evidence"])) for a in live] == [(log[0]["rule"], log[0]["evidence"])]

    def micros(text):
        whole, fraction = text.removesuffix("Z").split(".") if "." in text else (text.removesuffix("Z"), "")
        seconds = datetime.fromisoformat(whole).replace(tzinfo=timezone.utc).timestamp()
        return int(seconds) * 1_000_000 + int(fraction[:6].ljust(6, "0"))

    for row, alert in zip(table, log):
        assert json.loads(row.pop("evidence")) == alert.pop("evidence")
        for time in ("time", "started"):
            assert micros(row.pop(time)) == micros(alert.pop(time))
        assert row == alert


def test_a_folder_has_no_memory(demo, tmp_path):
    demo.stop()
    for table in ("active_flows", "ledger"):
        done = taphouse("sql", f"SELECT * FROM {table}", "--data-dir", tmp_path / "data", ok=False)
        assert done.returncode == 2
        assert f"there is no table `{table}`" in done.stderr and "ask the server, without --data-dir" in done.stderr
