"""How often `ditscope verdict` errs: thousands of simulated pairs of runs whose true difference is known.

`python perf/verdict.py [PAIRS]` prints Markdown tables: coverage of the 95 % interval, false alarms (better or worse
where nothing differs), false equivalence (at a difference of exactly the margin), misses (not found worse at two
margins), and the same for metrics of sets. A prompt has three seeds whose errors are correlated (0.5).
"""

import sys
from collections.abc import Callable, Iterator

import numpy as np

from ditscope.core.intervals import unit_means
from ditscope.core.paired import units_to_decide
from ditscope.workflow.verdict.judge import BETTER, EQUIVALENT, UNDECIDED, WORSE, judge, overall
from ditscope.workflow.verdict.metrics import Measured, gaussian_kernel, set_difference, unit_rows

SEEDS, SIZES = 3, (8, 16, 64)
# Zero mean, unit variance; skewness and excess kurtosis of a single picture's difference.
SHAPES: dict[str, Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]] = {
    "normal": lambda rng, size: rng.standard_normal(size),
    "skewed (exponential)": lambda rng, size: 1 - rng.exponential(size=size),
    "heavy tails (t, 3 degrees)": lambda rng, size: rng.standard_t(3, size) / np.sqrt(3),
    "failures (10 % of prompts lose 4 sd)": lambda rng, size: (
        (rng.standard_normal(size) - np.where(rng.random(size) < 0.1, 4.0, 0.0) + 0.4) / np.sqrt(1 + 16 * 0.09)
    ),
}


def differences(rng: np.random.Generator, shape: str, prompts: int) -> np.ndarray:
    """Differences (prompts * SEEDS,) of true mean 0 whose prompt and seed parts have half of the variance each."""
    draw = SHAPES[shape]
    own = np.repeat(draw(rng, (prompts,)), SEEDS)
    return np.sqrt(0.5) * own + np.sqrt(0.5) * rng.standard_normal(prompts * SEEDS)


def measured(values: dict[str, np.ndarray], prompts: int) -> Measured:
    """Metrics as a verdict takes them, of which A has zeros and B these differences."""
    texts = [f"p{i // SEEDS}" for i in range(prompts * SEEDS)]
    pairs = {name: (np.zeros(len(d)), d) for name, d in values.items()}
    return Measured(texts, dict(zip(texts, texts, strict=True)), pairs, {}, {})


def rates(rng: np.random.Generator, pairs: int) -> Iterator[tuple[str, int, dict[str, float]]]:
    """Per shape and number of prompts: shares of `pairs` simulated comparisons in per cent, of one metric."""
    for shape in SHAPES:
        for n in SIZES:
            spread = np.sqrt(0.5 + 0.5 / SEEDS)  # standard deviation of a prompt's mean
            margin = 3.5 * spread / np.sqrt(n)  # so that both errors can occur at every n
            found = dict.fromkeys(("covered", "false alarm", "false equivalence", "miss", "undecided at 0"), 0)
            for _ in range(pairs):
                d = differences(rng, shape, n)
                for truth in (0.0, -margin, -2 * margin):
                    (row,) = judge(measured({"ssim": d + truth}, n), "", {"ssim": 1e-12 if truth == 0 else margin})
                    if truth == 0:
                        found["covered"] += row.low <= 0 <= row.high
                        found["false alarm"] += row.verdict in (BETTER, WORSE)
                    elif truth == -margin:
                        found["false equivalence"] += row.verdict == EQUIVALENT
                    else:
                        found["miss"] += row.verdict != WORSE
                (row,) = judge(measured({"ssim": d}, n), "", {"ssim": margin})
                found["undecided at 0"] += row.verdict == UNDECIDED
            yield shape, n, {name: 100 * count / pairs for name, count in found.items()}


def families(rng: np.random.Generator, pairs: int) -> Iterator[tuple[int, float]]:
    """Per number of prompts how often five correlated metrics without a difference are judged better or worse, in %."""
    names = ("ssim", "lpips", "feature_cosine", "prompt_alignment", "cosine_other")
    for n in SIZES:
        alarms = 0
        for _ in range(pairs):
            common = differences(rng, "skewed (exponential)", n)
            values = {name: 0.6 * common + 0.8 * differences(rng, "normal", n) for name in names}
            rows = judge(measured(values, n), "", dict.fromkeys(names, 1e-12))
            alarms += overall(rows) in (WORSE, BETTER) or any(row.verdict in (WORSE, BETTER) for row in rows)
        yield n, 100 * alarms / pairs


def sets(rng: np.random.Generator, pairs: int) -> Iterator[tuple[int, str, float, float]]:
    """Per number of prompts and comparison, in %: coverage of 0 and false alarms of the CMMD's difference, none being.

    Features of a prompt (32 dimensions) are alike on all sides, as those of one starting noise are.
    """
    for n in SIZES:
        prompts = np.repeat(np.arange(n), SEEDS)
        for name in ("two schemes", "A is the base"):
            covered = alarms = 0
            for _ in range(pairs):
                own = np.repeat(rng.standard_normal((n, 32)), SEEDS, axis=0)
                base, a, b = (unit_rows(own + 0.3 * rng.standard_normal(own.shape)) for _ in range(3))
                if name == "A is the base":
                    a = base
                _, _, middle = set_difference(a, b, base, prompts, gaussian_kernel)
                low, high = middle.interval()
                covered += low <= 0 <= high
                alarms += middle.p() <= 0.05
            yield n, name, 100 * covered / pairs, 100 * alarms / pairs


def planned(rng: np.random.Generator, pairs: int) -> Iterator[tuple[float, int, float]]:
    """True difference in margins (half a standard deviation each), prompts that are planned for it, decided in %."""
    spread, margin = np.sqrt(0.5 + 0.5 / SEEDS), 0.5
    for truth in (0.0, 0.5, 2.0):
        n = units_to_decide(-truth * margin, spread, margin) or 0
        decided = 0
        for _ in range(pairs):
            d = differences(rng, "skewed (exponential)", n) - truth * margin
            (row,) = judge(measured({"ssim": d}, n), "", {"ssim": margin})
            decided += row.verdict != UNDECIDED
        yield truth, n, 100 * decided / pairs


def main() -> None:
    """Print the tables."""
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    rng = np.random.default_rng(24)
    assert len(unit_means(differences(rng, "normal", 8), [i // SEEDS for i in range(8 * SEEDS)])) == 8
    print(f"{pairs:,} pairs each; one standard error of 5 % is {100 * np.sqrt(0.05 * 0.95 / pairs):.2f} %.\n")
    names = ("covered", "false alarm", "false equivalence", "miss", "undecided at 0")
    print(f"| differences | prompts | {' | '.join(names)} |\n|{'---|' * 7}")
    for shape, n, found in rates(rng, pairs):
        print(f"| {shape} | {n} | {' | '.join(f'{found[name]:.1f} %' for name in names)} |", flush=True)
    print("\n| prompts | any false alarm of five metrics (Holm) |\n|---|---|")
    for n, alarms in families(rng, pairs):
        print(f"| {n} | {alarms:.1f} % |", flush=True)
    print("\n| CMMD | prompts | covered | false alarm |\n|---|---|---|---|")
    for n, name, covered, alarms in sets(rng, pairs):
        print(f"| {name} | {n} | {covered:.1f} % | {alarms:.1f} % |", flush=True)
    print("\n| true difference, margins | prompts planned | decided |\n|---|---|---|")
    for truth, n, decided in planned(rng, pairs):
        print(f"| {truth:g} | {n} | {decided:.1f} % |", flush=True)


if __name__ == "__main__":
    main()
