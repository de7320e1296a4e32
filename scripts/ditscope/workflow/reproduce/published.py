"""Published tables of quantized models: what was printed, where, and how near a measurement must come."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ditscope.benchmark.cases import benchmark_cases
from ditscope.config import ROOT, Config
from ditscope.core.errors import InputError
from ditscope.core.names import unknown
from ditscope.core.settings import decode, setting
from ditscope.core.yaml_file import read_yaml
from ditscope.models.settings import COMPILE_STATES

FOLDER = ROOT / "experiments" / "published"
TIMED = ("latency_median_ms", "peak_memory_gib")  # of a batch size, within a share of the value
JUDGED = ("psnr_db", "ssim", "lpips")  # of the pictures of a run, within so much in their own unit


@dataclass(frozen=True)
class PublishedRow:
    """A value that was printed, and the run of the overlay that measures it again."""

    model: str = setting(help="A model of the overlay")
    scheme: str = setting(help="A scheme of the overlay")
    metric: str = setting(help="What was printed", choices=(*TIMED, *JUDGED))
    value: float = setting(help="The printed value, in the metric's unit", positive=True)
    compile: str = setting("eager", "Compile state of the run", choices=COMPILE_STATES)
    batch: int = setting(1, "Pictures of a batch, of what is timed", positive=True)
    without: str = setting("", "Why no run of the overlay measures it; empty where one does")


@dataclass(frozen=True)
class Published:
    """A published table."""

    source: str = setting(help="Where it was published")
    hardware: str = setting(help="What it was measured on")
    overlay: str = setting(help="The experiment that measures it again, a file")
    rows: dict[str, PublishedRow] = setting(help="Its values by name")
    tolerances: dict[str, float] = setting(
        help="Per metric how far a measurement may be: a share of the value where it is timed, else in its unit"
    )
    differs: str = setting("", "In what the overlay is not what was measured then")


def names() -> list[str]:
    """The published tables at hand."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read_published(name: str) -> Published:
    """A published table by its name. Raises InputError for a name that is none, and for rows without a tolerance."""
    if name not in names():
        raise InputError(unknown("reproduce", name, names(), "a published table"))
    path = FOLDER / f"{name}.yaml"
    table = decode(Published, read_yaml(path), str(path))
    for key, row in table.rows.items():
        if table.tolerances.get(row.metric, 0) <= 0:
            raise InputError(f"{path}: rows.{key}: no tolerance above 0 for {row.metric} in `tolerances`")
    return table


def overlay_of(table: Published) -> Path:
    """The overlay's file."""
    return ROOT / table.overlay


def without_run(table: Published, config: Config) -> Mapping[str, str]:
    """Rows that no run of the overlay's config measures, each with what it lacks, but for those that say so."""
    cases, bench = set(benchmark_cases(config.benchmark)), config.benchmark
    lacking = {}
    for key, row in table.rows.items():
        if row.without:
            continue
        if row.model not in bench.models:
            lacking[key] = f"no model {row.model}"
        elif (row.scheme, row.compile) not in cases:
            lacking[key] = f"no run of {row.scheme}, {row.compile}"
        elif row.metric in TIMED and row.batch not in bench.batches:
            lacking[key] = f"no batch of {row.batch}"
        elif row.metric in JUDGED and bench.skip_metrics:
            lacking[key] = "no pictures are judged"
    return lacking
