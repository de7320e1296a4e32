"""What is called damage is damage: errors of the machine and faults of this library pass as what they are."""

import errno

import numpy as np
import polars as pl
import pytest

from ditscope import cli
from ditscope.core.checksums import read_record
from ditscope.core.errors import IncompleteError, InputError, again
from ditscope.core.shards import read_tar, write_tar
from ditscope.core.study_plan import read_plan
from ditscope.core.tables import read_table
from ditscope.video.mosaic import TarImages
from loose_tables import write_loosely


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "t.parquet"
    write_loosely(pl.DataFrame({"a": [1]}), path, "t")
    return path


@pytest.fixture
def tar(tmp_path):
    path = tmp_path / "s.tar"
    write_tar([{"__key__": "k", "json": {"a": 1}, "latent.npy": np.zeros(3, np.float32)}], path)
    return path


MACHINE = {
    "stale handle": OSError(errno.ESTALE, "Stale file handle"),
    "broken disk": OSError(errno.EIO, "Input/output error"),
    "no rights": PermissionError(errno.EACCES, "Permission denied"),
    "too many open files": OSError(errno.EMFILE, "Too many open files"),
    "out of memory": MemoryError(),
    "our own slip": AttributeError("'NoneType' object has no attribute 'x'"),
}


@pytest.mark.parametrize("case", MACHINE)
def test_errors_of_the_machine_and_our_own_are_not_called_damage(table, tar, monkeypatch, case):
    def fails(*arguments, **named):
        raise MACHINE[case]

    monkeypatch.setattr(pl, "read_parquet_metadata", fails)
    monkeypatch.setattr("ditscope.core.shards.decode", fails)
    for read in (lambda: read_table(table, "t"), lambda: list(read_tar(tar))):
        with pytest.raises(type(MACHINE[case])) as raised:
            read()
        assert raised.value is MACHINE[case]


@pytest.mark.parametrize("case", [case for case in MACHINE if case != "our own slip"])
def test_the_command_line_says_in_one_line_what_the_machine_lacks(monkeypatch, capsys, case):
    def fails(*arguments, **named):
        raise MACHINE[case]

    monkeypatch.setattr(cli, "call", fails)
    assert cli.main(["progress"]) == 1
    said = capsys.readouterr().err.strip()
    assert "\n" not in said and said.startswith("ditscope progress: ") and "delete" not in said
    assert "memory" in said or "an error of the machine" in said


def test_the_command_line_says_in_one_line_that_rows_were_lost(monkeypatch, capsys):
    def fails(*arguments, **named):
        raise IncompleteError("images: lacks 1 of 2 runs")

    monkeypatch.setattr(cli, "call", fails)
    assert cli.main(["progress"]) == 1
    assert capsys.readouterr().err == "ditscope progress: images: lacks 1 of 2 runs\n"


def test_a_slip_of_our_own_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(cli, "call", lambda *_: None + 1)
    with pytest.raises(TypeError):
        cli.main(["progress"])


def test_delete_it_is_said_of_files_of_a_study_only(table, tar, tmp_path):
    for read, path in ((lambda p: read_table(p, "t"), table), (lambda p: list(read_tar(p)), tar)):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 20])
        for mark, said in ((None, "make or copy it again"), (".checksums", "delete it and run again")):
            if mark:
                (tmp_path / mark).mkdir(exist_ok=True)
            with pytest.raises(InputError) as refused:
                read(path)
            assert str(refused.value).endswith(f"; {said}")
        (tmp_path / ".checksums").rmdir()
    assert again(tmp_path / "a") == "make or copy it again"


@pytest.mark.parametrize("content", [b"", b"PAR1", b"[]", b"{", b"null", b'{"files": []}', b'{"targets": 1}'])
def test_empty_and_foreign_files_of_every_kind_are_refused_in_one_line(tmp_path, content):
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    readers = (lambda p: read_table(p, "t"), lambda p: list(read_tar(p)), read_record, lambda p: read_plan(p.parent))
    for read in readers:
        with pytest.raises(InputError) as refused:
            read(path)
        assert str(refused.value).startswith(f"{path}: ") and "delete it" not in str(refused.value)


def test_folders_in_the_place_of_files_are_refused_in_one_line(tmp_path):
    folder = tmp_path / "plan.json"
    folder.mkdir()
    readers = (lambda p: read_table(p, "t"), lambda p: list(read_tar(p)), read_record, lambda p: read_plan(p.parent))
    for read in readers:
        with pytest.raises(InputError, match="a folder, where a file is meant"):
            read(folder)


def test_members_of_one_name_are_refused_rather_than_merged(tmp_path):
    """Two samples of one key, one after the other, would become one."""
    path = tmp_path / "s.tar"
    write_tar([{"__key__": "k", "json": {"a": 1}}, {"__key__": "k", "json": {"a": 2}}], path)
    with pytest.raises(InputError, match="is there twice"):
        list(read_tar(path))


def test_a_header_that_promises_too_much_is_damage_and_not_out_of_memory(tar):
    data = bytearray(tar.read_bytes())
    at = data.index(b"(3,)")
    data[at : at + 20] = b"(3000000000000000,),"[:20].ljust(20)
    tar.write_bytes(bytes(data))
    with pytest.raises(InputError, match=r"latent\.npy' is damaged"):
        list(read_tar(tar))


def test_a_readable_table_passes(table):
    assert read_table(table, "t")["a"].to_list() == [1]


def test_a_sound_file_of_another_kind_is_never_to_be_deleted(tmp_path):
    """A study's own table in the place of a shard, and the reverse: the advice would lose what is whole."""
    (tmp_path / ".checksums").mkdir()
    tar, table, plan = tmp_path / "a.tar", tmp_path / "a.parquet", tmp_path / "a.json"
    write_tar([{"__key__": "x", "json": {}}], tar)
    write_loosely(pl.DataFrame({"a": [1]}), table, "a")
    plan.write_text("{}")
    for wrong in (tar, plan):
        with pytest.raises(InputError, match=r"; name a file \*\.parquet"):
            read_table(wrong, "a")
    for wrong in (table, plan):
        with pytest.raises(InputError, match=r"; name a file \*\.tar"):
            list(read_tar(wrong))
        with pytest.raises(InputError, match=r"; name a file \*\.tar"):
            TarImages([wrong])
    with pytest.raises(InputError, match=r"no image y\.png in the shards"):
        TarImages([tar])["y"]
