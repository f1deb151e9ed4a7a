"""A disk that fills up under a running server: a small tmpfs in a mount namespace of its own."""
import errno
import json
import os

import pytest

from conftest import rows, taphouse
from test_cli import HASTY, until

FILES = ["--set", "storage.segment_age=1s", "--set", "storage.alert_log=1MiB"]
KEY = "/records_disk_full"


@pytest.fixture
def small_disk(server, tmp_path):
    """Starts a demo whose data folder is on 48 MiB; gives the server and the folder as seen from here."""
    if os.geteuid() != 0:
        pytest.skip("a mount needs root")

    def start(*settings):
        mount = 'mount -t tmpfs -o size=48m none "$0" && exec "$@"'
        prefix = ["unshare", "--mount", "sh", "-c", mount, tmp_path]
        running = server(["demo", "--rate", "5000", "--data-dir", tmp_path / "data", *HASTY, *FILES, *settings], prefix)
        # `unshare` and `sh` have become the server.
        return running, f"/proc/{running.process.pid}/root{tmp_path}"

    return start


def fill(folder):
    """Takes what is free, to the last byte."""
    with open(f"{folder}/filler", "ab", buffering=0) as filler:
        for size in (1 << 20, 4096, 1):
            try:
                while True:
                    filler.write(b"\0" * size)
            except OSError as error:
                assert error.errno == errno.ENOSPC, error


def status(running):
    return json.loads(taphouse("status", "--server", running.grpc, "--output", "json").stdout)


def alerts(running):
    told = json.loads(taphouse("alerts", "--server", running.grpc, "--output", "json").stdout)
    return [alert["state"] for alert in told if alert["key"].endswith(KEY)]


def processed(status):
    return sum(queue["causes"]["processed"] for queue in status["queues"])


def test_a_full_disk_costs_only_what_came_then_and_is_told(small_disk):
    running, folder = small_disk()
    until("no rows", lambda: status(running)["records"]["stored"] > 2000)
    until("no segment", lambda: status(running)["storage"]["segments"] > 0)
    assert status(running)["records"]["dropped_disk"] == 0 and alerts(running) == []

    # Space comes back when a segment takes the place of its log: fill again until rows are lost.
    until("nothing was lost", lambda: fill(folder) or status(running)["records"]["dropped_disk"] > 0)
    until("no alert", lambda: alerts(running) == ["firing"], seconds=60)
    before = status(running)
    until("capture stands still", lambda: processed(status(running)) > processed(before) + 5000)
    until("not every row is counted", lambda: status(running)["records"]["dropped_disk"] > before["records"]["dropped_disk"])
    assert running.process.poll() is None

    os.remove(f"{folder}/filler")
    stored = status(running)["records"]["stored"]
    until("writing does not resume", lambda: status(running)["records"]["stored"] > stored + 5000)
    dropped = status(running)["records"]["dropped_disk"]
    # 30 seconds of packet time, which in a demo is the wall clock's.
    until("the alert does not resolve", lambda: alerts(running) == ["firing", "resolved"], seconds=90)
    assert status(running)["records"]["dropped_disk"] == dropped, "nothing is lost any more"
    # The alert was written while the disk was full.
    told = taphouse("alerts", "--data-dir", f"{folder}/data", "--output", "json").stdout
    assert [a["state"] for a in json.loads(told) if a["key"].endswith(KEY)] == ["firing", "resolved"]
    # Every row the ledger has as stored is there, once.
    lowest = status(running)["records"]["stored"]
    count = "SELECT sum(n) AS n, count(*) AS d FROM (SELECT count(*) AS n FROM flows GROUP BY flow_id, part)"
    found = rows(count, f"{folder}/data")[0]
    highest = status(running)["records"]["stored"]
    assert found["n"] == found["d"] and found["n"] <= highest
    # Logged rows show up once their batch is written: a reader of files sees all that were stored when it began.
    assert found["n"] >= lowest, (found, lowest)
    running.stop()
    assert running.process.returncode == 0


def test_retention_makes_room_on_a_full_disk(small_disk):
    running, folder = small_disk("--set", "storage.retention.min_free=8MiB")
    until("no segments", lambda: status(running)["storage"]["segments"] >= 5)
    # To the last byte, again and again: whatever a removal frees is taken.
    until("retention drops nothing", lambda: fill(folder) or status(running)["storage"]["segments"] <= 2, seconds=120)
    os.remove(f"{folder}/filler")
    stored = status(running)["records"]["stored"]
    until("writing does not resume", lambda: status(running)["records"]["stored"] > stored + 5000)
    assert running.process.poll() is None
    running.stop()
    assert running.process.returncode == 0
