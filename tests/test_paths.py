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


def good(option: cli.Option, paths: dict[str, Path]) -> list[str]:
    """A value that an option takes, as it is typed."""
    place = {PathKind.INPUT_FILE: "file", PathKind.INPUT_FOLDER: "folder"}.get(option.path, "new")
    value = str(paths[place]) if option.path else option.choices[0] if option.choices else "1"
    return [value] if option.by_place else [option.spellings[0], value]


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
        assert cli.main([command, *needed, option.spellings[-1], str(paths[kind])]) == 2, kind
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
