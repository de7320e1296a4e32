"""The house around the code: profiles resolve from a fresh clone, generated pages are true, files agree."""

import json
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import duckdb
import polars as pl
import pytest
import yaml
from safetensors import safe_open

import ditscope
import rulegraph
from workflow import ROOT, fake_conda, snakemake, workdir

LIBRARY = ROOT / "scripts" / "ditscope"
PROFILES = ("local", "slurm", "apple")
TARGETS = (
    "setup",
    "demo",
    "test",
    "test-system",
    "test-all",
    "test-envs",
    "lint",
    "report",
    "figures",
    "paper",
    "dag",
    "docs",
    "docs-site",
    "lock",
    "clean",
)


@pytest.mark.parametrize("profile", PROFILES)
def test_profile_is_one_file_with_a_reason_above_each_value(profile):
    (file,) = (ROOT / "profiles" / profile).iterdir()
    assert (ROOT / profile).resolve() == file.parent
    lines = file.read_text().splitlines()
    for number, line in enumerate(lines):
        if re.match(r"[a-z]", line):
            assert lines[number - 1].startswith("#"), f"{file}: no reason above `{line}`"


@pytest.mark.parametrize(
    "spelling",
    [("--profile", "local"), ("--profile", "slurm"), ("--workflow-profile", "local"), ("--profile", "profiles/local")],
    ids=" ".join,
)
def test_profile_resolves(spelling, tmp_path, monkeypatch):
    if "slurm" in spelling and not shutil.which("conda"):
        monkeypatch.setenv("PATH", f"{fake_conda(tmp_path / 'conda')}{os.pathsep}{os.environ['PATH']}")
    done = snakemake(workdir(tmp_path), *spelling, "--dry-run", "--configfile", str(ROOT / "experiments" / "tiny.yaml"))
    assert done.returncode == 0, done.stdout
    assert "This was a dry-run" in done.stdout


def test_a_missing_conda_is_one_line_with_the_way_out(tmp_path, monkeypatch):
    tools = [folder for folder in os.environ["PATH"].split(os.pathsep) if not (Path(folder) / "conda").exists()]
    monkeypatch.setenv("PATH", os.pathsep.join(tools))
    tiny = ("--configfile", str(ROOT / "experiments" / "tiny.yaml"))
    refused = snakemake(workdir(tmp_path), "--profile", "slurm", "--dry-run", *tiny)
    assert refused.returncode != 0 and "command not found" not in refused.stdout
    (line,) = [line for line in refused.stdout.splitlines() if "conda" in line and "--profile" not in line]
    assert "`conda` is not on PATH" in line and "--sdm env-modules" in line and "docs/slurm.md" in line
    out = snakemake(workdir(tmp_path), "--profile", "slurm", "--sdm", "env-modules", "--dry-run", *tiny)
    assert out.returncode == 0 and "This was a dry-run" in out.stdout, out.stdout[-3000:]


def test_profiles_name_no_site():
    for profile in PROFILES:
        values = yaml.safe_load((ROOT / "profiles" / profile / "config.yaml").read_text())
        assert not re.search(r"partition|account|qos|constraint", str(values))


def test_rule_graph_is_up_to_date(tmp_path):
    page = rulegraph.page_with(rulegraph.rule_graph(tmp_path))
    assert rulegraph.PAGE.read_text() == page, "run `make docs`"


def test_config_typo_is_one_line_of_snakemake_s_error(tmp_path):
    overlay = tmp_path / "typo.yaml"
    overlay.write_text("video: {fsp: 3}\n")
    done = snakemake(workdir(tmp_path / "run"), "--cores", "1", "--dry-run", "--configfile", str(overlay))
    assert done.returncode != 0
    assert "video.fsp: `fsp` is not a setting; did you mean `fps`?" in done.stdout
    assert "Traceback" not in done.stdout


def test_every_rule_logs_and_names_its_environment(tmp_path):
    """Every rule that runs something, as Snakemake has read it."""
    told = "{r.name: [bool(r.log), bool(r.conda_env)] for r in workflow.rules if r.script or r.shellcmd or r.is_run}"
    outer = f'include: "{ROOT}/Snakefile"\nimport json\nprint("\\nRULES", json.dumps({told}))\n'
    (workdir(tmp_path) / "Snakefile").write_text(outer)
    listed = snakemake(tmp_path, "--list-rules", root=tmp_path).stdout
    rules = json.loads(re.search(r"^RULES (.*)$", listed, re.M)[1])
    assert len(rules) > 25 and not [name for name, declared in rules.items() if declared != [True, True]]


def test_memory_and_minutes_of_every_rule_grow_at_a_retry():
    for file in sorted((ROOT / "rules").glob("*.smk")):
        for amount in re.findall(r"^        (?:mem_mb|runtime)=(.+),$", file.read_text(), flags=re.M):
            assert re.fullmatch(r"scaled\(\d+\)|memory\(\d+.*\)", amount), f"{file.name}: {amount}"


def test_every_rules_file_says_what_it_needs_and_leaves():
    for file in sorted((ROOT / "rules").glob("*.smk")):
        if file.name not in ("common.smk", "outputs.smk"):
            header = re.match(r"(#.*\n)+", file.read_text())
            assert header and "Needs:" in header[0] and "Leaves" in header[0], file.name


def test_version_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert str(citation["version"]) == ditscope.__version__
    assert f"## {ditscope.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_licence_is_the_one_that_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert project["license"] == citation["license"] == "Apache-2.0"
    assert "Version 2.0, January 2004" in (ROOT / "LICENSE").read_text()


def test_entry_of_continuous_integration_runs_both_tiers():
    entry = ROOT / ".ci" / "run"
    assert os.access(entry, os.X_OK)
    assert {"make test", "make test-system"} <= set(entry.read_text().splitlines())
    subprocess.run(["bash", "-n", str(entry)], check=True)


def test_github_runs_the_same_commands():
    """Targets of the Makefile and the entry of continuous integration, nothing of its own."""
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"].values()
    commands = [step["run"].split() for job in jobs for step in job["steps"] if "run" in step]
    assert ["make", "test-envs"] in commands and any(command[-1] == ".ci/run" for command in commands)
    for command in commands:
        assert command[-1] == ".ci/run" or (command[0] == "make" and command[1] in TARGETS)


def test_make_has_the_documented_targets():
    text = (ROOT / "Makefile").read_text()
    for target in TARGETS:
        assert re.search(rf"^{target}:.*## ", text, flags=re.M), target


def test_links_of_the_docs_lead_somewhere():
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.relative_to(ROOT)}: {target}"


def walk() -> str:
    """The walk of docs/how-it-fits.md: one prompt and one tensor, room by room."""
    page = rulegraph.PAGE.read_text()
    return page[page.index("## One prompt and one tensor") : page.index("## Two ways")]


def test_what_the_walk_names_is_there():
    """Modules, functions and settings by their dotted names, rules, files."""
    for name in re.findall(r"`(\w+(?:\.\w+)+)`", walk()):
        *rooms, last = name.split(".")
        sources = [LIBRARY.joinpath(*rooms).with_suffix(".py"), LIBRARY / rooms[0] / "settings.py"]
        if (LIBRARY / rooms[0]).exists() or sources[0].exists():
            text = "".join(file.read_text() for file in sources if file.exists())
            module = LIBRARY.joinpath(*rooms, f"{last}.py").exists()
            assert module or re.search(rf"^(def |    ){last}[(:]", text, re.M), name
    rules = "".join(file.read_text() for file in (ROOT / "rules").glob("*.smk"))
    assert all(f"\nrule {name}:" in rules for name in ("prompt_shard", "prompt_slice", "capture_set", "figures"))
    for path in re.findall(r"`((?:rules|scripts|report)/[\w./-]+)`", walk()):
        assert (ROOT / path).exists(), path


def test_the_walk_is_what_the_tiny_study_left(study):
    """Its prompt, its tensor, its row: as the page says them."""
    results = study / "results/tiny"
    run = pl.read_parquet(results / "prompts/runs-0-1.parquet").row(0, named=True)
    assert f"*{run['prompt']}*" in walk()
    assert run == pl.read_parquet(results / "prompts/shard-00000.parquet").row(0, named=True)
    (folder,) = (results / "captures/shapes-flux/all").glob("*/intermediates")
    tokens, width = re.search(r"(\d+) image tokens of width (\d+)", walk()).groups()
    with safe_open(folder / "step_000.safetensors", "np") as file:
        assert file.get_slice("double_block_1.img").get_shape() == [1, int(tokens), int(width)]
    table = pl.read_parquet(results / "analysis/shapes-flux/all/similarity.parquet")
    (row,) = table.filter(prompt_id=run["prompt_id"], step=0, block="double_block_1", stream="img").to_dicts()
    assert row["previous"] == "double_block_0" and 0 < row["cosine"] <= 1 and 0 < row["linear_cka"] <= 1
    assert (results / "figures/block-similarity.csv").exists()
    with duckdb.connect(results / "catalog.duckdb", read_only=True) as database:
        assert ("blocks_similarity",) in database.execute("SHOW TABLES").fetchall()
