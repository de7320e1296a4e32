"""The coverage table of docs/outputs/drift.md, made again. `python tests/drift/test_coverage.py` prints it."""

import re
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from test_series import bounds, known, least_squares

DOCS = Path(__file__).parents[2] / "docs/outputs/drift.md"
COEFFICIENTS, LENGTHS, RUNS, STARTS = (0.0, 0.5, 0.9), (6, 12, 50, 200), (8, 16, 64), (0.0, 3.0)
STUDIES, AT_ONCE = 1000, 100


def coverage(b: float, length: int, runs: int, off: float) -> tuple[float, float]:
    """Share of studies whose interval holds b, and the median width."""
    rng = np.random.default_rng(5)
    parts = [known(rng, b, AT_ONCE * runs, length, off) for _ in range(STUDIES // AT_ONCE)]
    estimates = np.concatenate([least_squares(x.reshape(AT_ONCE, runs, length)) for x in parts])
    low, _, high = bounds(estimates, runs, length)
    return float(((low <= b) & (b <= high)).mean()), float(np.median(high - low))


def table() -> str:
    """Rows of runs and steps; columns of coefficient and start."""
    names = [f"b = {b:g}" for b in COEFFICIENTS] + [f"b = {b:g}, 3 sd off" for b in COEFFICIENTS]
    lines = [f"| runs | steps | {' | '.join(names)} |", "|---|---" + "|---" * len(names) + "|"]
    for runs, length in product(RUNS, LENGTHS):
        cells = [coverage(b, length, runs, off) for off, b in product(STARTS, COEFFICIENTS)]
        lines.append(f"| {runs} | {length} | " + " | ".join(f"{c:.0%} ({w:.2f})" for c, w in cells) + " |")
    return "\n".join(lines)


@pytest.mark.system
def test_the_docs_say_what_the_intervals_cover():
    numbers = re.compile(r"(\d+)% \((\d\.\d+)\)")
    printed, computed = (numbers.findall(text) for text in (DOCS.read_text(), table()))
    assert len(printed) == len(computed) == len(COEFFICIENTS) * len(LENGTHS) * len(RUNS) * len(STARTS)
    for (cover, width), (again, wide) in zip(printed, computed, strict=True):
        assert abs(int(cover) - int(again)) <= 4 and abs(float(width) - float(wide)) <= 0.03


if __name__ == "__main__":
    print(table())
