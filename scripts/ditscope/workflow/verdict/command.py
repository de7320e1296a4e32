"""`ditscope verdict`: whether one run of the benchmark is as good as another."""

from collections.abc import Mapping, Sequence
from typing import Annotated

from ditscope.benchmark.settings import Benchmark
from ditscope.core.atomic import write_text
from ditscope.core.errors import InputError
from ditscope.core.metrics import lpips_unavailable
from ditscope.core.names import unknown
from ditscope.core.paths import OutputFile
from ditscope.models.embedders import efficientnet_lite
from ditscope.models.settings import Embedder
from ditscope.workflow.verdict.judge import EXIT, judge, overall
from ditscope.workflow.verdict.metrics import COSINE, METRICS, Measured, measure, metric_named
from ditscope.workflow.verdict.sides import Run, config_beside, sides_of
from ditscope.workflow.verdict.text import as_json, as_markdown

IMAGENET = "imagenet"  # the encoder of config.yaml whose weights a package carries


def verdict(
    a: Annotated[str, "a run of the benchmark: EXPERIMENT:MODEL/SCHEME[/COMPILE], or the file of its table"],
    b: Annotated[str, "the run to judge against it"],
    /,
    embedders: dict[str, Embedder],
    metrics: Sequence[Annotated[str, "to judge by; none: all that these pictures allow"]] = (),
    margins: Sequence[Annotated[str, "METRIC=NUMBER, the largest difference that counts as none"]] = (),
    encoders: Sequence[Annotated[str, "of the config's `embedders`; none: the benchmark's, and imagenet"]] = (),
    json: OutputFile | None = None,
) -> None:
    """Judge run B of the benchmark against run A, of the same prompts and seeds, as a table for a pull request.

    `ditscope verdict results/demo:shapes-flux/base results/demo:shapes-flux/int4`: PSNR, SSIM, LPIPS and feature
    cosines to the pictures of A's eager base, prompt alignment, the shapes oracle, KID and CMMD, each with the
    difference over prompts, its 95 % interval, the worst prompts, a test of equivalence and how many more prompts would
    decide.

    Exit status: 0 better or equivalent, 1 worse, 2 bad input, 3 undecided. docs/verdict.md has how often it errs.
    """
    given = margins_of(margins)
    sides = sides_of(a, b)
    names, registry = encoders_of(sides.a, encoders, embedders)
    for name in metrics:
        check_metric("--metrics", name, names)
    for name in given:
        check_metric("--margins", name, names)
    if "lpips" in {*metrics, *given} and (reason := lpips_unavailable()):
        raise InputError(f"lpips: {reason}")
    if metrics and not any(name in given or metric_named(name).margin for name in metrics):
        raise InputError(f"--metrics: {', '.join(metrics)}: no margin to judge by; give --margins {metrics[0]}=NUMBER")
    measured = measure(sides, names, registry, metrics)
    rows = judge(measured, sides.perfect, chosen(measured, metrics, given))
    print(as_markdown(rows, sides, measured), end="")
    if json:
        write_text(json, as_json(rows, sides, measured))
    raise SystemExit(EXIT[overall(rows)])


def margins_of(given: Sequence[str]) -> dict[str, float]:
    """Margins by metric. Raises InputError for what is no `METRIC=NUMBER` above 0."""
    margins = {}
    for item in given:
        name, _, value = item.partition("=")
        try:
            margins[name] = float(value)
        except ValueError:
            raise InputError(f"--margins: `{item}` is not METRIC=NUMBER, as ssim=0.01") from None
        if not 0 < margins[name] < float("inf"):
            raise InputError(f"--margins: {item}: a margin is above 0: the largest difference that counts as none")
    return margins


def check_metric(where: str, name: str, encoders: Sequence[str]) -> None:
    """Refuse a name that is no metric."""
    known = [*METRICS, *(f"{COSINE}{encoder}" for encoder in encoders[1:])]
    if name not in known:
        raise InputError(unknown(where, name, known, "a metric"))


def encoders_of(
    run: Run, given: Sequence[str], embedders: Mapping[str, Embedder]
) -> tuple[list[str], dict[str, Embedder]]:
    """The encoders to judge by, and the registry that they are of: the study's, over that of the config at hand."""
    config = config_beside(run)
    registry = {**embedders, **(config.embedders if config else {})}
    settings = config.benchmark if config else Benchmark()
    names = list(dict.fromkeys(given or [settings.features, *settings.cosines]))
    if not given and IMAGENET in registry and not efficientnet_lite.missing():
        names.append(IMAGENET)
    return list(dict.fromkeys(names)), registry


def chosen(measured: Measured, metrics: Sequence[str], given: Mapping[str, float]) -> dict[str, float | None]:
    """The margin of each metric to judge by. Raises InputError for one that was asked for and cannot be measured."""
    for name in (*metrics, *given):
        if name in measured.reasons:
            raise InputError(f"{name} is not measured here: {measured.reasons[name]}")
    there = [*measured.values, *measured.sets]
    return {name: given.get(name, metric_named(name).margin) for name in there if not metrics or name in metrics}
