"""Jobs a minute through SLURM: empty jobs as one array, one by one, and on one machine without SLURM.

The array comes twice: as the executor runs its tasks, and as `ditscope.workflow.array_task` does.

python perf/slurm.py [JOBS]

It starts the test suite's cluster (two virtual nodes on this machine), so every job's own start, Snakemake's twice, is
paid by this machine's cores: with more than one real node the first two rows grow until sbatch is the limit.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import slurm_cluster  # noqa: E402
from workflow import SNAKEMAKE  # noqa: E402

SNAKEFILE = """
import sys

sys.path.insert(0, LIBRARY)
from ditscope.workflow.array_task import go_on_as_own_task

if "executors_way" not in config:
    go_on_as_own_task()

rule all:
    input: expand("done/{i}", i=range(JOBS))

# The profile submits this rule's jobs as an array.
rule image_shard:
    output: "done/{i}"
    shell: "touch {output}"
"""
# Polls at once, or the interval between two status checks would be what is measured.
SLURM = ("--profile", "slurm", "--sdm", "env-modules", "--slurm-init-seconds-before-status-checks", "2")
WAYS = {
    "array": SLURM,
    "array of the executor": (*SLURM, "--config", "executors_way=1"),
    "one by one": (*SLURM, "--slurm-array-jobs", "none"),
    "without SLURM": ("--profile", "local", "--cores", "2"),
}


def seconds(folder: Path, arguments: tuple[str, ...], environment: dict[str, str], jobs: int) -> float:
    """Wall-clock seconds of a workflow of empty jobs, its start and end included."""
    folder.mkdir()
    rules = SNAKEFILE.replace("JOBS", str(jobs)).replace("LIBRARY", repr(str(ROOT / "scripts")))
    (folder / "Snakefile").write_text(rules)
    for link in ("profiles", "slurm", "local"):
        (folder / link).symlink_to(ROOT / link)
    began = time.perf_counter()
    with (folder / "out.txt").open("w") as out:
        subprocess.run(
            [*SNAKEMAKE, *arguments], cwd=folder, env=environment, stdout=out, stderr=subprocess.STDOUT, check=True
        )
    return time.perf_counter() - began


def main(jobs: int = 40) -> None:
    """Print jobs per minute for each way of running them."""
    if slurm_cluster.MISSING:
        raise SystemExit(f"no SLURM here: {', '.join(slurm_cluster.MISSING)} missing")
    with tempfile.TemporaryDirectory() as scratch:
        cluster = slurm_cluster.start(Path(scratch) / "cluster")
        environment = cluster.environment | {
            "HOME": scratch,
            "SNAKEMAKE_SLURM_PARTITIONS": str(cluster.root / "partitions.yaml"),
        }
        try:
            for way, arguments in WAYS.items():
                wall = seconds(Path(scratch) / way.replace(" ", "-"), arguments, environment, jobs)
                print(f"{way}: {jobs} jobs in {wall:.0f} s, {60 * jobs / wall:.0f} a minute", flush=True)
        finally:
            cluster.stop()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
