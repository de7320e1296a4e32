"""Which runs a benchmark is made of."""

from ditscope.benchmark.settings import Benchmark
from ditscope.core.study import Study


def benchmark_cases(bench: Benchmark) -> list[tuple[str, str]]:
    """Scheme and compile state of every run: each scheme in eager mode, those to be compiled in the other states."""
    compiled = bench.compiled or bench.schemes
    return [(s, state) for s in bench.schemes for state in bench.compile if state == "eager" or s in compiled]


def benchmark_stems(study: Study) -> list[str]:
    """Runs of the benchmark without extension: those that are planned here, and those that other machines made."""
    bench = study.config.benchmark
    planned = [tar.removesuffix(".tar") for tar in study.targets("benchmark") if tar.endswith(".tar")]
    elsewhere = [
        f"benchmarks/{model}/{host.name}/{scheme}-{compile}"
        for model in bench.models
        for host in sorted((study.results / "benchmarks" / model).glob("*/"))
        for scheme, compile in benchmark_cases(bench)
        if (host / f"{scheme}-{compile}.parquet").exists()
    ]
    return list(dict.fromkeys([*planned, *elsewhere]))
