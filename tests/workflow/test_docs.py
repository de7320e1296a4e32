"""README and docs: every command that they print is one, every link leads somewhere, every page is short."""

import argparse
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from snakemake.cli import get_argument_parser

from ditscope import cli
from workflow import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
GENERATED = {"docs/config.md", "docs/outputs"}  # from declarations: as long as these
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```", re.M | re.S)
INLINE = re.compile(r"`((?:ditscope|snakemake|make) [^`]+)`")
SOURCES = [ROOT / "Snakefile", *(ROOT / "rules").glob("*.smk")]
RULES = set(re.findall(r"^rule (\w+):", "".join(path.read_text() for path in SOURCES), re.M))
OF_THE_READER = ("experiments/mine.yaml", "experiments/half-drift.yaml")  # what a page has its reader write
SHELL = ("", "sh", "bash")
NAMES = {"NAME", "FOLDER", "CSV", "FILE", "DIR", "ID", "M", "P.csv", "OUT", "STUDY.yaml", "A", "B", "SCHEME", "PROFILE"}


def commands(page: Path) -> list[str]:
    """The commands of a page: lines of its blocks of shell, and what its text names in full."""
    text = page.read_text()
    lines = [
        line.split(" # ")[0].split(" | ")[0].split(" > ")[0].strip()
        for _, language, body in FENCE.findall(text)
        if language in SHELL
        for line in re.sub(r"\\\n\s*", " ", body).splitlines()
    ]
    named = [" ".join(command.split()) for command in INLINE.findall(FENCE.sub("", text))]
    return [line for line in [*lines, *named] if re.match(r"(ditscope|snakemake|make)\b", line) and "<" not in line]


PRINTED = list(dict.fromkeys(command for page in PAGES for command in commands(page)))
SNAKEMAKE = get_argument_parser()


def refuse(parser: argparse.ArgumentParser, message: str) -> None:
    raise AssertionError(message)


@pytest.mark.parametrize("command", PRINTED)
def test_every_printed_command_is_one(command, monkeypatch):
    """Options, targets and files of it are there; only names in capitals stand for something."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(argparse.ArgumentParser, "error", refuse)
    program, *words = shlex.split(command)
    if words and words[-1] == "...":
        words.pop()
    if program == "make":
        targets = [word for word in words if "=" not in word]
        assert all(re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M) for target in targets)
    elif program == "snakemake":
        words = [re.sub("^(PROFILE|NAME)$", "local", word) for word in words]
        given = SNAKEMAKE.parse_args([w for w in words if not w.startswith("--slurm-partition-config")])
        for target in given.targets or []:
            assert target in RULES or target.startswith("results/") or target == "partitions.yaml", target
    else:
        ditscope(words)
    for path in re.findall(r"(?:experiments|prompts|models|profiles)/[\w./-]+", command):
        assert (ROOT / path).exists() or "NAME" in path or path in OF_THE_READER


def ditscope(words: list[str]) -> None:
    """Parse a command of ditscope as far as it is printed: what a sentence leaves out need not be there."""
    name, *rest = words or ["--help"]
    assert name in cli.COMMANDS or name in ("--help", "reference", "schema"), name
    if name in cli.COMMANDS and rest and rest != ["--help"]:
        parser = argparse.ArgumentParser(argument_default=argparse.SUPPRESS, allow_abbrev=False)
        cli.add_function(parser, cli.function_of(cli.COMMANDS[name][0]), name)
        for action in parser._actions:
            action.required = action.required and action.option_strings != []
            if NAMES & set(rest):
                action.choices = None
        if re.fullmatch(r"--[\w-]+", rest[-1]):  # an option that is only named
            assert rest.pop() in parser._option_string_actions
        parser.parse_args(rest)


def test_both_commands_of_the_readme_stand_first():
    (_, _, first), *_ = FENCE.findall((ROOT / "README.md").read_text())
    assert re.findall(r"^make \w+", first, re.M) == ["make demo", "make test"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_are_short(page):
    name = str(page.relative_to(ROOT))
    if not any(name.startswith(generated) for generated in GENERATED):
        assert len(page.read_text().split()) <= 2600
    for path in re.findall(r"!\[[^\]]+\]\(([^)]+)\)|<img src=\"([^\"]+)\"", page.read_text()):
        file = page.parent / "".join(path)
        assert file.stat().st_size < 300_000
        Image.open(file).verify()


def test_pictures_are_all_shown():
    shown = "".join(page.read_text() for page in PAGES)
    assert not [path.name for path in (ROOT / "docs/images").iterdir() if path.name not in shown]


def test_every_page_is_in_the_menu_of_the_site():
    menu = set(re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M))
    assert menu - {"index.md"} == {str(page.relative_to(ROOT / "docs")) for page in PAGES[1:]}


@pytest.mark.system  # loads torch and draws a picture
def test_the_script_by_hand_runs(monkeypatch):
    monkeypatch.chdir(ROOT)
    (script,) = [
        body for _, language, body in FENCE.findall((ROOT / "docs/by-hand.md").read_text()) if language == "python"
    ]
    names: dict = {}
    exec(script, names)
    assert len(names["seen"]) == 2 * 8 and names["picture"].size == (64, 64)


@pytest.mark.system
@pytest.mark.skipif(not shutil.which("mkdocs", path=str(Path(sys.executable).parent)), reason="mkdocs is not installed")
def test_the_site_is_built_without_a_dead_link(tmp_path):
    """`--strict` ends at the first link, anchor or page that leads nowhere; links out of the site are followed here."""
    mkdocs = Path(sys.executable).parent / "mkdocs"
    command = [mkdocs, "build", "--strict", "--quiet", "--config-file", ROOT / "mkdocs.yml", "--site-dir", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    for page in tmp_path.rglob("*.html"):
        for target in re.findall(r'(?:href|src)="([^"#?]+)', page.read_text()):
            if "://" not in target and not target.startswith(("data:", "/", "mailto:")):
                assert (page.parent / target).exists(), f"{page.relative_to(tmp_path)}: {target}"
        loaded = re.findall(r'<(?:script|img|link)[^>]*(?:src|href)="(https?://[^"]+)', page.read_text())
        assert not loaded, f"{page.name} asks other hosts for {loaded}"
