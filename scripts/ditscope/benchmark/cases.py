"""Which runs a benchmark is made of."""

from ditscope.benchmark.settings import Benchmark


def benchmark_cases(bench: Benchmark) -> list[tuple[str, str]]:
    """Scheme and compile state of every run: each scheme in eager mode, those to be compiled in the other states."""
    compiled = bench.compiled or bench.schemes
    return [(s, state) for s in bench.schemes for state in bench.compile if state == "eager" or s in compiled]
