"""Every path option of every command, given every wrong kind of path: one line that names both, before any work."""

import inspect
import os
import socket
from functools import wraps
from pathlib import Path

import pytest

from ditscope import cli
from ditscope.core.paths import PathKind, complaint

OPTIONS = [
    (command, option)
    for command, (target, _) in cli.COMMANDS.items()
    for option in cli.options_of(cli.function_of(target), command)
    if option.path
]
WRONG = {
    PathKind.INPUT_FILE: ("missing", "folder", "empty", "below a file", "unreadable", "dangling"),
    PathKind.INPUT_FOLDER: ("missing", "file", "below a file", "dangling"),
    PathKind.OUTPUT_FILE: ("folder", "below a file", "below dangling"),
    PathKind.OUTPUT_FOLDER: ("file", "below a file", "below dangling"),
}


@pytest.fixture
def paths(tmp_path) -> dict[str, Path]:
    """A path of each kind."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file.csv").write_text("prompt\na red ring\n")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    return {
        "missing": tmp_path / "none" / "none.csv", "folder": tmp_path / "folder", "file": tmp_path / "file.csv",
        "empty": tmp_path / "empty.csv", "below a file": tmp_path / "file.csv" / "x.csv",
        "unreadable": Path("/proc/self/mem"), "dangling": tmp_path / "dangling",
        "below dangling": tmp_path / "dangling" / "x.csv", "new": tmp_path / "new",
    }  # fmt: skip


def typed(option: cli.Option, value: str) -> list[str]:
    """An option with its value, as it is typed."""
    return [value] if option.by_place else [option.spellings[-1], value]


def good(option: cli.Option, paths: dict[str, Path]) -> list[str]:
    """An option with a value that it takes, as it is typed."""
    place = {PathKind.INPUT_FILE: "file", PathKind.INPUT_FOLDER: "folder"}.get(option.path, "new")
    value = str(paths[place]) if option.path else option.choices[0] if option.choices else "1"
    return typed(option, value)


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that nobody can read at its start")
@pytest.mark.parametrize(("command", "option"), OPTIONS, ids=[f"{c} {o.name}" for c, o in OPTIONS])
def test_a_path_of_the_wrong_kind_is_one_line(command, option, paths, tmp_path, monkeypatch, capsys):
    function = cli.function_of(cli.COMMANDS[command][0])
    monkeypatch.setattr(cli, "function_of", lambda _: wraps(function)(lambda *a, **k: pytest.fail("work began")))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "all_prompts.csv").write_text("prompt\na red ring\n")
    others = [o for o in cli.options_of(function, command) if o.default is inspect.Parameter.empty and o != option]
    needed = [word for other in others for word in good(other, paths)]
    for kind in WRONG[option.path]:
        before = sorted(tmp_path.rglob("*"))
        assert cli.main([command, *needed, *typed(option, str(paths[kind]))]) == 2, kind
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and f"{option.spellings[0]}: {paths[kind]}: " in said, said
        assert sorted(tmp_path.rglob("*")) == before


def test_a_config_file_of_the_wrong_kind_is_one_line(paths, capsys):
    for kind in WRONG[PathKind.INPUT_FILE]:
        assert cli.main(["check", "--configfile", str(paths[kind])]) == 2, kind
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and f"--configfile: {paths[kind]}: " in said


def test_pipes_and_sockets_are_left_to_the_command(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert complaint(tmp_path / "pipe", PathKind.INPUT_FILE) == ""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        assert complaint(tmp_path / "s", PathKind.INPUT_FILE) == ""


def test_a_default_file_that_is_not_there_is_refused_by_its_option(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["calibrate"]) == 2
    assert "--prompt-csv: all_prompts.csv: no such file" in capsys.readouterr().err


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cli.path("~/x") == tmp_path / "x"


FILES = (PathKind.INPUT_FILE, PathKind.OUTPUT_FILE)
PAIRS = [
    (command, first, second)
    for command, first in OPTIONS
    for other, second in OPTIONS
    if command == other and first.name != second.name and first.path in FILES and second.path is PathKind.OUTPUT_FILE
]


@pytest.mark.parametrize(("command", "first", "second"), PAIRS, ids=[f"{c} {a.name} {b.name}" for c, a, b in PAIRS])
def test_no_file_is_written_over_one_that_is_read_or_written(
    command, first, second, paths, tmp_path, monkeypatch, capsys
):
    function = cli.function_of(cli.COMMANDS[command][0])
    monkeypatch.setattr(cli, "function_of", lambda _: wraps(function)(lambda *a, **k: pytest.fail("work began")))
    monkeypatch.chdir(tmp_path)
    name = "file.csv" if first.path is PathKind.INPUT_FILE else "other.csv"
    (tmp_path / "link").symlink_to(name)
    others = [o for o in cli.options_of(function, command) if o.default is inspect.Parameter.empty]
    needed = [word for o in others if o.name not in (first.name, second.name) for word in good(o, paths)]
    needed = [word.replace(str(paths["new"]), f"{paths['new']}{i}") for i, word in enumerate(needed)]
    for one, two in ((str(tmp_path / name), name), (f"folder/../{name}", "link")):
        assert cli.main([command, *needed, *typed(first, one), *typed(second, two)]) == 2
        said = capsys.readouterr().err
        assert ("is read" if first.path is PathKind.INPUT_FILE else "written twice") in said, said


def test_outputs_that_are_not_named_are_not_written_over_what_is_read(tmp_path, capsys):
    for name in ("shard.parquet", "shard.tar"):
        (tmp_path / name).write_text("prompt\na large red ring\n")
    for command in (
        f"generate --prompts {tmp_path}/shard.parquet --images {tmp_path}/shard.tar",
        f"generate --prompts {tmp_path}/shard.tar --images {tmp_path}/x --timing {tmp_path}/x.parquet",
        f"ablate --prompts {tmp_path}/shard.tar --out {tmp_path}/shard.parquet",
    ):
        assert cli.main([*command.split(), "--model", "shapes-flux"]) == 2
        said = capsys.readouterr().err
        assert "is read, so nothing is written over it" in said or "written twice" in said, said
    assert {p.read_text() for p in tmp_path.iterdir()} == {"prompt\na large red ring\n"}


def test_devices_and_pipes_are_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/null")):
        assert complaint(path, PathKind.OUTPUT_FILE) == "no plain file, and would be replaced by one; name another"
