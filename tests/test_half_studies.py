"""One study on two machines: each makes the images of its models, one gets the other's files and makes the rest."""

import shutil

import pytest

import workflow
from ditscope.estimate import parse_job_stats

pytestmark = pytest.mark.system

STUDY = ("--configfile", "experiments/tiny.yaml", "study.yaml")


def snakemake(folder, *arguments):
    done = workflow.snakemake(folder, "--cores", "1", *arguments, root=folder, timeout=600)
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


def machine(folder, models):
    """A checkout with the study's overlay, and one that selects the models of this machine."""
    workflow.checkout(folder)
    (folder / "study.yaml").write_text("prompts: {limit: 2}\n")
    (folder / "half.yaml").write_text(f"generate: {{models: [{models}]}}\n")
    return folder


def test_halves_of_a_study_join(tmp_path):
    first, second = machine(tmp_path / "first", "shapes-flux"), machine(tmp_path / "second", "shapes-sd3")
    snakemake(first, "prompts", *STUDY)
    shutil.copytree(first / "results", second / "results")
    for folder, other in ((first, "shapes-sd3"), (second, "shapes-flux")):
        snakemake(folder, "generate", *STUDY, "half.yaml")
        assert not (folder / "results/tiny/images" / other).exists()
    shutil.copytree(second / "results/tiny/images", first / "results/tiny/images", dirs_exist_ok=True)
    assert "Nothing to be done" in snakemake(first, "generate", "--dry-run", *STUDY)
    jobs = parse_job_stats(snakemake(first, "--dry-run", *STUDY))
    assert jobs["refine_codebook"] and not {"image_shard", "prompt_shard"} & set(jobs)
