"""`--sdm conda` for real, over a local channel: a wiring test (conda_channel.py says what it does not show)."""

import os
import subprocess
import sys

import duckdb
import pytest
import test_envs
import yaml

import workflow

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(sys.platform != "linux" or os.uname().machine != "x86_64", reason="the channel is linux-64's"),
    pytest.mark.skipif(
        sys.version_info[:2] != (3, 11), reason="the environments have Python 3.11; the channel has this one"
    ),
]

# Prompts (environment `tables`) and their catalog (environment `figures`).
OVERLAY = """
experiment: wiring
stages: [prompts, publish]
prompts: {csv: prompts/tiny.csv, shard_size: 2, seeds: [0]}
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A conda installation whose channel `conda-forge` has what the environments `tables` and `figures` need."""
    base = tmp_path_factory.mktemp("conda")
    builder = workflow.ROOT / "tests" / "conda_channel.py"
    wanted = {conda: conda for env in ("tables", "figures") for conda in conda_names(env)}
    pairs = [f"{name}={test_envs.CONDA_NAMES.get(name, name)}" for name in wanted if name != "python"]
    # A process of its own: py-rattler may abort when its interpreter ends.
    subprocess.run([sys.executable, builder, base / "channels" / "conda-forge", *pairs], check=True)
    subprocess.run(
        [
            sys.executable,
            "-c",
            f"import conda_channel, pathlib; conda_channel.install_conda(pathlib.Path({str(base)!r}))",
        ],
        check=True,
        cwd=builder.parent,
    )
    return base


def conda_names(env):
    return [item.partition("=")[0] for item in yaml.safe_load(test_envs.ENVS[env].read_text())["dependencies"]]


@pytest.fixture(scope="module")
def run(base, tmp_path_factory):
    """Run Snakemake with `--sdm conda` in a checkout of its own."""
    folder = workflow.checkout(tmp_path_factory.mktemp("wiring"))
    (folder / "wiring.yaml").write_text(OVERLAY)

    def run(*arguments):
        path = os.environ["PATH"]
        os.environ["PATH"] = f"{base / 'bin'}{os.pathsep}{path}"
        try:
            options = ("--cores", "1", *arguments, "--sdm", "conda", "--configfile", "wiring.yaml")
            return workflow.snakemake(folder, *options, root=folder, timeout=500)
        finally:
            os.environ["PATH"] = path

    run.folder = folder
    return run


@pytest.fixture(scope="module")
def finished(run):
    """The output of a run that made prompts and their catalog."""
    done = run("results/wiring/catalog.duckdb")
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


def environments(folder):
    """Prefix of each environment that Snakemake made, by the packages that only it has."""
    prefixes = [path for path in (folder / ".snakemake" / "conda").iterdir() if path.is_dir()]
    return {"figures" if list(prefix.glob("conda-meta/matplotlib-*.json")) else "tables": prefix for prefix in prefixes}


def test_each_rule_runs_in_its_environment(run, finished):
    made = environments(run.folder)
    assert set(made) == {"tables", "figures"}
    for prefix in made.values():
        assert f"Activating conda environment: {prefix.relative_to(run.folder)}" in finished
    with duckdb.connect(str(run.folder / "results/wiring/catalog.duckdb"), read_only=True) as catalog:
        assert catalog.execute("select count(*) from prompts").fetchone() == (3,)


def test_environments_have_what_their_scripts_import_and_nothing_of_ours(run, finished):
    """Isolated interpreters: the scripts' modules come from the environment's own packages, torch from nowhere."""
    for name, prefix in environments(run.folder).items():
        needed = set().union(
            *(test_envs.closure(script) for env, script in test_envs.rules().values() if env == test_envs.ENVS[name])
        )
        code = "; ".join(
            f"import {module}; assert {module}.__file__.startswith({str(prefix)!r}), {module}.__file__"
            for module in sorted(needed)
        )
        assert needed >= {"polars"}
        subprocess.run([prefix / "bin" / "python", "-I", "-c", code], check=True)
        assert subprocess.run([prefix / "bin" / "python", "-I", "-c", "import torch"], capture_output=True).returncode


def test_second_run_is_idle_and_an_edited_environment_runs_its_rules_again(run, finished):
    assert "Nothing to be done" in run("results/wiring/catalog.duckdb", "--dry-run").stdout
    env = run.folder / "envs" / "figures.yaml"
    text = env.read_text()
    env.write_text(text.replace("  - webdataset=1.0.2\n", ""))
    try:
        done = run("results/wiring/catalog.duckdb", "--dry-run")
    finally:
        env.write_text(text)
    assert env.read_text() == text and "Software environment definition has changed" in done.stdout
    assert "rule catalog" in done.stdout and "rule prompt_shard" not in done.stdout


def test_environment_that_cannot_be_solved_is_refused_with_the_solver_s_reason(run, finished):
    env = run.folder / "envs" / "figures.yaml"
    text = env.read_text()
    env.write_text(text.replace("polars=2.1.0", "polars=99.0"))
    try:
        done = run("results/wiring/catalog.duckdb")
    finally:
        env.write_text(text)
    assert done.returncode
    assert "CreateCondaEnvironmentException" in done.stdout and "polars" in done.stdout


@pytest.mark.parametrize("kind", ["dockerfile", "apptainer"])
def test_containerize_writes_an_image_with_every_environment_that_rules_name(run, kind):
    done = run("--containerize", kind)
    assert done.returncode == 0, done.stdout[-3000:]
    named = {env.name for env, _ in test_envs.rules().values()} - {"mlx.yaml"}  # no model of the study is on MLX
    assert all(f"envs/{name} /conda-envs/" in done.stdout for name in named)
    assert done.stdout.count("conda env create --prefix /conda-envs/") == len(named)
