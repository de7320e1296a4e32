"""Shards and tables: deterministic, self-describing, closed to hostile members."""

import io
import tarfile

import numpy as np
import polars as pl
import pytest

from ditscope.core.errors import InputError
from ditscope.core.shards import read_tar, write_tar
from ditscope.core.tables import concat_tables, read_table
from loose_tables import write_loosely

SAMPLES = [
    {"__key__": f"k{i}", "png": b"\x89PNG" + bytes([i]), "json": {"b": 1, "a": i}, "latent.npy": np.full((2, 3), i)}
    for i in range(3)
]


def test_a_shard_gives_back_what_was_written(tmp_path):
    write_tar(SAMPLES, tmp_path / "s.tar")
    back = list(read_tar(tmp_path / "s.tar"))
    assert [s["__key__"] for s in back] == ["k0", "k1", "k2"]
    assert [s["json"] for s in back] == [s["json"] for s in SAMPLES]
    assert all(np.array_equal(a["latent.npy"], b["latent.npy"]) for a, b in zip(back, SAMPLES, strict=True))


def test_webdataset_itself_reads_our_shards(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    write_tar(SAMPLES, tmp_path / "s.tar")
    rows = list(webdataset.WebDataset(f"file:{tmp_path / 's.tar'}", shardshuffle=False))
    assert [row["__key__"] for row in rows] == ["k0", "k1", "k2"]
    assert rows[1]["png"] == SAMPLES[1]["png"]


def test_equal_samples_give_equal_bytes(tmp_path):
    write_tar(SAMPLES, tmp_path / "a.tar")
    write_tar(SAMPLES, tmp_path / "b.tar")
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


@pytest.mark.parametrize(
    "name, kind", [("../evil.png", tarfile.REGTYPE), ("/evil.png", tarfile.REGTYPE), ("k.png", tarfile.SYMTYPE)]
)
def test_members_that_leave_the_shard_are_refused(tmp_path, name, kind):
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, "target"
        tar.addfile(member, io.BytesIO())
    with pytest.raises(InputError, match=r"s\.tar: member"):
        list(read_tar(tmp_path / "s.tar"))


def test_pickled_arrays_are_refused(tmp_path):
    buffer = io.BytesIO()
    np.save(buffer, np.array([{}], dtype=object), allow_pickle=True)
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        member = tarfile.TarInfo("k.latent.npy")
        member.size = buffer.tell()
        tar.addfile(member, io.BytesIO(buffer.getvalue()))
    with pytest.raises(ValueError, match="pickle"):
        list(read_tar(tmp_path / "s.tar"))


def test_truncated_shards_are_named(tmp_path):
    write_tar(SAMPLES, tmp_path / "s.tar")
    (tmp_path / "s.tar").write_bytes((tmp_path / "s.tar").read_bytes()[:700])
    with pytest.raises(InputError, match=r"s\.tar: not a readable tar"):
        list(read_tar(tmp_path / "s.tar"))


def test_tables_know_their_name_and_version(tmp_path):
    table = pl.DataFrame({"x": [1.5, 2.5]})
    write_loosely(table, tmp_path / "t.parquet", "drift")
    assert read_table(tmp_path / "t.parquet", "drift").equals(table)
    with pytest.raises(InputError, match="holds the table `drift`, not `images`"):
        read_table(tmp_path / "t.parquet", "images")
    table.write_parquet(tmp_path / "old.parquet", metadata={"table": "drift", "schema_version": "0"})
    with pytest.raises(InputError, match="schema version 0"):
        read_table(tmp_path / "old.parquet", "drift")
    with pytest.raises(InputError, match="no such table"):
        read_table(tmp_path / "none.parquet", "drift")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(InputError, match="not a readable Parquet"):
        read_table(tmp_path / "bad.parquet", "drift")
    assert len(concat_tables([tmp_path / "t.parquet"] * 2, "drift")) == 4
