"""Other people's readers on our segments."""
import ipaddress

import duckdb
import pyarrow.parquet as pq
import pytest

from conftest import rows, taphouse


@pytest.fixture(params=["tuned", "compatible"])
def segments(request, generated, tmp_path):
    folder = tmp_path / "data"
    taphouse("replay", generated[0], "--data-dir", folder, "--set", f"storage.profile={request.param}")
    files = sorted((folder / "segments").rglob("*.parquet"))
    assert files
    return folder, files


def test_counts_agree(segments):
    folder, files = segments
    ours = rows("SELECT count(*) AS n, sum(pkts_o + pkts_r) AS p, sum(bytes_o + bytes_r) AS b FROM flows", folder)[0]
    duck = duckdb.sql(f"SELECT count(*), sum(pkts_o + pkts_r), sum(bytes_o + bytes_r) FROM read_parquet({[str(f) for f in files]})").fetchall()[0]
    assert duck == (ours["n"], ours["p"], ours["b"])
    tables = [pq.read_table(f) for f in files]
    assert sum(t.num_rows for t in tables) == ours["n"]
    assert sum(sum(t[c].to_pylist()) for t in tables for c in ("pkts_o", "pkts_r")) == ours["p"]


def test_every_column_is_read_and_addresses_agree(segments):
    folder, files = segments
    # What the file itself has, without the names of its folders.
    table = pq.read_table(files[0], partitioning=None)
    # Reading all columns decodes every encoding in use.
    assert all(len(table[name].to_pylist()) == table.num_rows for name in table.column_names)
    duck = duckdb.sql(f"SELECT * FROM read_parquet('{files[0]}', hive_partitioning = false)")
    assert duck.columns == table.column_names and len(duck.fetchall()) == table.num_rows

    def text(raw):
        address = ipaddress.IPv6Address(raw)
        return str(address.ipv4_mapped or address)

    theirs = sorted({text(raw) for f in files for raw in pq.read_table(f, columns=["src_ip"])["src_ip"].to_pylist()})
    ours = sorted(r["a"] for r in rows("SELECT DISTINCT ip_text(src_ip) AS a FROM flows", folder))
    assert theirs == ours


def test_pyarrow_agrees_with_the_checksums_of_pages(segments, tmp_path):
    _, files = segments
    original = files[0].read_bytes()
    metadata = pq.read_metadata(files[0])
    columns = [metadata.row_group(0).column(at) for at in range(metadata.num_columns)]
    # A reader that checks finds nothing to complain about.
    assert pq.read_table(files[0], partitioning=None, page_checksum_verification=True).num_rows == metadata.num_rows
    copy = tmp_path / "flipped.parquet"
    for column in columns:
        end = (column.dictionary_page_offset or column.data_page_offset) + column.total_compressed_size
        flipped = bytearray(original)
        # The last byte of a column chunk belongs to its last page.
        flipped[end - 1] ^= 0x10
        copy.write_bytes(flipped)
        with pytest.raises(OSError, match="(?i)crc"):
            pq.read_table(copy, columns=[column.path_in_schema], page_checksum_verification=True)
