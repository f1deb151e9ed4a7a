"""What a query may cost, and the files its functions look into, as configured."""
import time

import pytest

from conftest import Server, rows, taphouse

HASTY = [word for key in ("tcp_idle", "udp_idle", "other_idle", "closed", "active") for word in ("--set", f"flowtable.timeouts.{key}=1s")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A few thousand flows, all of them in segments."""
    data = tmp_path_factory.mktemp("budget") / "data"
    running = Server(["demo", "--rate", "20000", "--data-dir", data, *HASTY])
    try:
        deadline = time.monotonic() + 60
        while rows("SELECT count(*) AS n FROM flows", data)[0]["n"] <= 2000:
            assert time.monotonic() < deadline, "no flows"
    finally:
        running.stop()
    return data


def test_limits_are_the_configured_ones(server, folder):
    running = server(["demo", "--rate", "1", "--data-dir", folder, "--set", "query.scan_max=1KiB"])
    refused = taphouse("sql", "SELECT sum(bytes_o) FROM flows", "--server", running.grpc, ok=False)
    assert refused.returncode == 1
    assert "more than 1024 bytes, the most allowed, and had read " in refused.stderr, refused.stderr
    assert "raise `query.scan_max`" in refused.stderr
    plan = taphouse("sql", "EXPLAIN SELECT sum(bytes_o) FROM flows", "--server", running.grpc).stdout
    assert "pruned 0 by time, 0 by ranges of values, 0 by bloom filters" in plan
    running.stop()
    running = server(["demo", "--rate", "1", "--data-dir", folder, "--set", "query.memory=10KiB"])
    refused = taphouse("sql", "SELECT flow_id, count(*) FROM flows GROUP BY 1", "--server", running.grpc, ok=False)
    assert "raise `query.memory`" in refused.stderr, refused.stderr


def test_an_absent_address_reads_next_to_nothing(folder):
    query = "EXPLAIN ANALYZE SELECT flow_id FROM flows WHERE host('203.0.113.77')"
    plan = taphouse("sql", query, "--data-dir", folder).stdout
    assert "read: 0 files opened" in plan, plan


def test_files_that_are_no_databases_are_named_at_the_start(tmp_path):
    wrong = tmp_path / "country.mmdb"
    for make in (lambda: None, lambda: wrong.write_text("no such file format")):
        make()
        settings = ["--set", f"query.geoip.country={wrong}"]
        refused = taphouse("demo", "--rate", "1", "--data-dir", tmp_path / "data", *settings, ok=False)
        assert refused.returncode != 0
        assert f"{wrong}: " in refused.stderr and "name a MaxMind DB file" in refused.stderr, refused.stderr


def test_a_folder_is_asked_with_the_configuration_of_a_server(folder, tmp_path):
    """Budgets and files of its section `query`; without a folder, the server's own hold."""
    config = tmp_path / "taphouse.yaml"
    config.write_text("query:\n  scan_max: 1KiB\n")
    everything = ("sql", "SELECT * FROM flows", "--data-dir", folder)
    refused = taphouse(*everything, "--config", config, ok=False)
    assert refused.returncode == 1 and "raise `query.scan_max`" in refused.stderr, refused.stderr
    taphouse(*everything, "--config", config, "--set", "query.scan_max=1GiB")
    wrong = taphouse(*everything, "--set", f"query.geoip.asn={config}", ok=False)
    assert f"{config}: " in wrong.stderr and "name a MaxMind DB file" in wrong.stderr, wrong.stderr
    assert taphouse("sql", "SELECT 1", "--config", config, ok=False).returncode == 2


def test_a_function_without_its_file_says_what_to_set(folder):
    refused = taphouse("sql", "SELECT country(src_ip) FROM flows", "--data-dir", folder, ok=False)
    assert refused.returncode == 2
    assert "query.geoip.country" in refused.stderr, refused.stderr
