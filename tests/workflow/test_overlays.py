"""The studies in experiments/: each is valid, can be planned, and plans nothing on a model that it did not select."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import pytest
import yaml

from ditscope.config_files import read_config
from workflow import ROOT, STUDIES, fake_conda, snakemake, workdir

PROFILES = ("local", "slurm", "apple")
SHIPPED = {"shapes-flux", "shapes-sd3", "shapes-clip", "shapes-blip"}


def overlay(study):
    return ROOT / "experiments" / f"{study}.yaml"


@pytest.mark.parametrize("study", STUDIES)
def test_study_is_named_after_its_file(study):
    assert read_config([overlay(study)]).experiment == study


@pytest.mark.parametrize("study", STUDIES)
def test_hub_models_are_pinned(study):
    """A commit of 40 hex digits; a branch only with a comment that asks for one."""
    data, text = yaml.safe_load(overlay(study).read_text()), overlay(study).read_text()
    for entry in [*data.get("models", {}).values(), *data.get("embedders", {}).values()]:
        if "source" in entry and not (ROOT / entry["source"]).exists():
            revision = entry.get("revision", "")
            assert re.fullmatch(r"[0-9a-f]{40}", revision) or re.search(rf"revision: {revision} +# .*commit", text), (
                entry
            )


@pytest.fixture(scope="module")
def plans(tmp_path_factory) -> Iterator[Callable[[str], dict[str, subprocess.CompletedProcess[str]]]]:
    """Dry runs of all studies under a profile, made when first asked for, as many at a time as there are cores."""

    @cache
    def plan(profile: str) -> dict[str, subprocess.CompletedProcess[str]]:
        def one(study: str) -> subprocess.CompletedProcess[str]:
            folder = workdir(tmp_path_factory.mktemp(profile))
            command = ("--profile", profile, "--dry-run", "--configfile", str(overlay(study)))
            return snakemake(folder, *command)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return dict(zip(STUDIES, pool.map(one, STUDIES), strict=True))

    with pytest.MonkeyPatch.context() as patch:
        if not shutil.which("conda"):  # the SLURM profile wants it
            bin_folder = fake_conda(tmp_path_factory.mktemp("conda") / "conda")
            patch.setenv("PATH", f"{bin_folder}{os.pathsep}{os.environ['PATH']}")
        yield plan


ON_SHIPPED = (
    "tiny", "benchmark-full", "benchmark-mlx", "formats", "shapes-refiners",
    *(f"refiner-{study}" for study in ("corruption", "imputation", "levels", "storyboard")),
)  # fmt: skip


@pytest.mark.parametrize("study", STUDIES)
def test_study_plans_only_models_that_it_selects(study, plans):
    done = plans("local")[study]
    assert done.returncode == 0, done.stdout
    config = read_config([overlay(study)])
    chosen = {*config.selected_models(), *config.embed.embedders}
    chosen |= {config.benchmark.features} if config.benchmark.models else set()
    named = {model for model in SHIPPED if re.search(rf"\b{model}\b(?!-mlx)", done.stdout)}
    assert named <= chosen
    assert bool(chosen & SHIPPED) == (study in ON_SHIPPED)
    for model in config.selected_models():
        entry = config.models[model]
        assert not entry.revision or f"{entry.source.replace('/', '--')}@{entry.revision}" in done.stdout


@pytest.mark.system
def test_timed_jobs_have_their_node_alone_whatever_the_command_line_sets(tmp_path):
    """A list on the command line replaces the profile's: what must hold stands in the rule."""
    given = ["--profile", "slurm", "--sdm", "env-modules", "--set-resources", "image_shard:mem_mb=64000", "--dry-run"]
    done = snakemake(workdir(tmp_path), *given, "--configfile", str(overlay("tiny")), "--", "benchmark")
    timed = re.findall(r"^rule benchmark_run:\n(?:    .+\n)+", done.stdout, flags=re.M)
    assert timed and all("slurm_extra=--exclusive" in job for job in timed), done.stdout


@pytest.mark.system
@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("study", STUDIES)
def test_study_is_planned_under_every_profile(study, profile, plans):
    done = plans(profile)[study]
    assert done.returncode == 0, done.stdout
    assert "This was a dry-run" in done.stdout


def test_snakemake_s_lint_is_clean(tmp_path):
    done = snakemake(workdir(tmp_path), "--lint")
    assert done.returncode == 0, done.stdout
    assert "Congratulations" in done.stdout
