"""The data folder as other engines mount it: Hive partitions by tap, day and hour; and what retention would drop."""
import json
from datetime import datetime, timezone

import chdb
import duckdb
import polars
import pyarrow.dataset
import pyarrow.compute as pc
import pytest

from conftest import rows, taphouse

#: A name with every kind of character that folders have trouble with.
ODD = "edge/1 =näh%"
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def capture(path, base, packets):
    """A capture of UDP packets, one flow each: (seconds after `base`, source port)."""
    import struct

    with open(path, "wb") as out:
        out.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1))
        for second, port in packets:
            payload = b"x" * 10
            udp = struct.pack("!HHHH", port, 9, 8 + len(payload), 0) + payload
            ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), port, 0, 64, 17, 0, bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2]))
            frame = bytes(12) + b"\x08\x00" + ip + udp
            out.write(struct.pack("<IIII", base + second, 0, len(frame), len(frame)) + frame)


#: 29 May 2024, 22:30 UTC.
BASE = 1_717_021_800
#: (tap, flows of each hour from 22 on).
TAPS = {"core": [3, 4, 2], ODD: [1, 0, 5]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Rows of two taps and three hours over midnight, in several segments of some hours."""
    base = tmp_path_factory.mktemp("layout")
    data = base / "data"
    port = 1000
    for tap, hours in TAPS.items():
        for part in range(2):
            packets = []
            for hour, count in enumerate(hours):
                for n in range(count)[part::2]:
                    packets.append((hour * 3600 + n, port := port + 1))
            name = base / f"{'core' if tap == 'core' else 'odd'}-{part}.pcap"
            capture(name, BASE, packets)
            taphouse("replay", name, "--data-dir", data, "--tap", tap, "--set", "sketches.enabled=false")
    return data


def expected():
    return {(tap, hour): count for tap, hours in TAPS.items() for hour, count in enumerate(hours) if count}


def partitions(segments):
    return sorted({str(f.parent.relative_to(segments)) for f in segments.rglob("*.parquet")})


def test_folders_are_those_of_hive(folder):
    segments = folder / "segments"
    found = partitions(segments)
    assert "tap_name=core/date=2024-05-29/hour=23" in found
    assert "tap_name=core/date=2024-05-30/hour=00" in found
    assert "tap_name=edge%2F1 %3Dnäh%25/date=2024-05-30/hour=00" in found
    ours = rows("SELECT tap, count(*) AS n FROM flows GROUP BY tap ORDER BY tap", folder)
    assert ours == [{"tap": "core", "n": 9}, {"tap": ODD, "n": 6}]


def test_duckdb(folder):
    table = f"read_parquet('{folder}/segments/**/*.parquet', hive_partitioning=true)"
    found = duckdb.sql(f"SELECT tap, tap_name, date, hour, count(*) FROM {table} GROUP BY ALL").fetchall()
    assert sum(n for *_, n in found) == 15 and all(tap == name for tap, name, *_ in found)
    one = f"SELECT count(*) FROM {table} WHERE tap_name = 'core' AND date = '2024-05-29' AND hour = 23"
    assert duckdb.sql(one).fetchall() == [(4,)]
    assert duckdb.sql(f"SELECT count(*) FROM {table} WHERE tap_name = '{ODD}'").fetchall() == [(6,)]
    # The filter skips files: only those of the partition are scanned.
    plan = duckdb.sql(f"EXPLAIN ANALYZE {one}").fetchall()[0][1]
    files = len(list((folder / "segments/tap_name=core/date=2024-05-29/hour=23").iterdir()))
    assert f"Total Files Read: {files}" in plan, plan


def test_pyarrow(folder):
    data = pyarrow.dataset.dataset(folder / "segments", partitioning="hive")
    assert data.count_rows() == 15
    field = pyarrow.dataset.field
    found = data.to_table(filter=(field("tap_name") == "core") & (field("date") == "2024-05-29") & (field("hour") == 23))
    assert found.num_rows == 4 and set(found["tap"].to_pylist()) == {"core"}
    assert data.to_table(filter=field("tap_name") == ODD).num_rows == 6
    assert len(list(data.get_fragments(filter=field("hour") == 23))) == len(list((folder / "segments").glob("*/*/hour=23/*.parquet")))
    # `tap` in the file is what the rows say.
    assert pc.count_distinct(data.to_table(columns=["tap"])["tap"].cast("string")).as_py() == 2


def test_polars(folder):
    scan = polars.scan_parquet(folder / "segments", hive_partitioning=True)
    assert scan.select(polars.len()).collect().item() == 15
    col = polars.col
    one = scan.filter((col("tap_name") == "core") & (col("date") == datetime(2024, 5, 29).date()) & (col("hour") == 23))
    assert one.select(polars.len()).collect().item() == 4
    assert scan.filter(col("tap_name") == ODD).select(polars.len()).collect().item() == 6


def test_clickhouse(folder):
    def ask(select):
        answer = chdb.query(f"{select} SETTINGS use_hive_partitioning = 1", "CSV")
        return str(answer).strip()

    table = f"file('{folder}/segments/**/*.parquet')"
    assert ask(f"SELECT count() FROM {table}") == "15"
    assert ask(f"SELECT count() FROM {table} WHERE tap_name = 'core' AND date = '2024-05-29' AND hour = '23'") == "4"
    # ClickHouse does not undo the escapes of a folder's name; the column in the file has the name as it is.
    assert ask(f"SELECT count() FROM {table} WHERE tap_name = 'edge%2F1 %3Dnäh%25'") == "6"
    assert ask(f"SELECT count() FROM {table} WHERE tap = '{ODD}'") == "6"


def test_a_capture_that_spans_months_stays_whole(tmp_path):
    """More hours than a log has partitions for: the rest is in those without a date, and every engine counts it."""
    capture(tmp_path / "months.pcap", 1_700_000_000, [(n * 5000, 2000 + n) for n in range(300)])
    data = tmp_path / "data"
    taphouse("replay", tmp_path / "months.pcap", "--data-dir", data, "--tap", "core")
    null = "tap_name=core/date=__HIVE_DEFAULT_PARTITION__/hour=__HIVE_DEFAULT_PARTITION__"
    found = partitions(data / "segments")
    assert null in found and len(found) <= 65 * 2
    assert rows("SELECT count(*) AS n FROM flows", data) == [{"n": 300}]
    table = f"read_parquet('{data}/segments/**/*.parquet', hive_partitioning=true)"
    total, undated = duckdb.sql(f"SELECT count(*), count(*) FILTER (WHERE date IS NULL) FROM {table}").fetchall()[0]
    assert total == 300 and 0 < undated < 300
    assert pyarrow.dataset.dataset(data / "segments", partitioning="hive").count_rows() == 300
    scan = polars.scan_parquet(data / "segments", hive_partitioning=True)
    assert scan.select(polars.len(), polars.col("date").is_null().sum()).collect().row(0) == (300, undated)
    files = f"file('{data}/segments/**/*.parquet')"
    assert str(chdb.query(f"SELECT count() FROM {files} SETTINGS use_hive_partitioning = 1", "CSV")).strip() == "300"


def test_a_dry_run_tells_what_would_go_and_changes_nothing(folder):
    before = sorted((f, f.stat().st_mtime_ns) for f in folder.rglob("*") if f.is_file())
    files = {str(f.relative_to(folder)) for f in (folder / "segments").rglob("*.parquet")}
    old = json.loads(taphouse("retention", "--dry-run", "--data-dir", folder, "--max-age", "1d", "--output", "json").stdout)
    assert {one["file"] for one in old["dropped"]} == files and {one["limit"] for one in old["dropped"]} == {"max_age"}
    assert old["kept"] == {"segments": 0, "rows": 0, "bytes": 0}
    tight = json.loads(taphouse("retention", "--dry-run", "--data-dir", folder, "--max-bytes", "1B", "--output", "json").stdout)
    assert len(tight["dropped"]) == len(files) - 1 and tight["kept"]["segments"] == 1, "the newest stays"
    assert [one["newest"] for one in tight["dropped"]] == sorted(one["newest"] for one in tight["dropped"])
    none = json.loads(taphouse("retention", "--dry-run", "--data-dir", folder, "--max-size", "1TiB", "--output", "json").stdout)
    assert none["dropped"] == [] and none["kept"]["rows"] == 15 and none["free_bytes"] > 0
    text = taphouse("retention", "--dry-run", "--data-dir", folder, "--max-age", "1d").stdout
    assert "older than 1day" in text and f"would go    {len(files)} segments, 15 rows" in text
    lines = taphouse("retention", "--dry-run", "--data-dir", folder, "--max-age", "1d", "--output", "ndjson").stdout
    assert len(lines.splitlines()) == len(files)
    assert before == sorted((f, f.stat().st_mtime_ns) for f in folder.rglob("*") if f.is_file())


@pytest.mark.parametrize(
    "args, told",
    [
        ([], "use --dry-run"),
        (["--dry-run", "--max-age", "7x"], "--max-age is '7x', expected a duration such as 7d"),
        (["--dry-run", "--max-size", "much"], "--max-size is 'much', expected a size such as 10GiB"),
        (["--dry-run", "--data-dir", "/nowhere/at/all"], "there is no data folder at /nowhere/at/all"),
    ],
)
def test_what_cannot_be_tried_is_told(args, told):
    done = taphouse("retention", *args, ok=False)
    assert done.returncode in (1, 2) and told in done.stderr, done.stderr
