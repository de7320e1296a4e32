"""Whether a machine was quiet: spread, load and throttling of a timing, the verdict, repeating until it is quiet."""

import os
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
import scipy.stats

from ditscope.benchmark import latency, quiet
from ditscope.benchmark.quiet import ProcessorTimes, others_share, verdict
from ditscope.core.intervals import ratio_interval
from tiny_models import tiny_generator


@pytest.mark.parametrize(
    ("busy", "own", "expected"),
    [(4.0, 4.0, 0.0), (20.0, 10.0, 0.5), (20.0, 0.0, 1.0), (3.99, 4.0, 0.0), (15.0, 10.0, 0.25)],
)
def test_share_of_others_is_busy_less_own_over_elapsed(busy, own, expected):
    before = ProcessorTimes(1000.0, 700.0, 30.0, 2)  # two processors for ten seconds
    after = ProcessorTimes(1020.0, 700.0 + busy, 30.0 + own, 2)
    assert others_share(before, after) == (pytest.approx(expected), "")


def test_an_unknown_load_is_null_with_the_reason():
    now = ProcessorTimes(1.0, 1.0, 1.0, 2)
    assert others_share(None, now) == (None, "this system does not tell processor times")
    soon = ProcessorTimes(1.9, 1.9, 1.0, 2)
    assert others_share(now, soon) == (None, "timed for less than 0.5 s, too short for the steps of processor times")


def test_work_of_children_is_no_work_of_others():
    before = quiet.processor_times()
    subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.4: pass"], check=True)
    after = quiet.processor_times()
    assert after.own - before.own >= 0.3 and after.busy - before.busy >= 0.3 and after.moment > before.moment


@pytest.mark.parametrize(
    ("spread", "others", "throttling", "expected", "why"),
    [
        (0.1, 0.1, "power cap", "quiet", ""),
        (0.11, 0.0, "", "noisy", "interquartile range 11% of the median"),
        (0.0, 0.11, None, "noisy", "others took 11% of the processors' time"),
        (0.01, None, None, "quiet", ""),
        (0.0, 0.0, "power cap, thermal slowdown", "noisy", "the GPU was slowed (thermal slowdown)"),
        (0.5, 0.5, "power brake", "noisy", "interquartile range 50% of the median; others took 50% of the processors' "
         "time; the GPU was slowed (power brake)"),
    ],
)  # fmt: skip
def test_the_verdict_follows_the_thresholds(spread, others, throttling, expected, why):
    assert verdict(spread, others, throttling) == (expected, why)


def test_spread_of_samples():
    samples = [100.0, 110.0, 90.0, 105.0, 400.0]
    spread = quiet.spread_of(samples)
    assert spread["latency_cv"] == pytest.approx(scipy.stats.variation(samples, ddof=1))
    assert spread["latency_relative_iqr"] == pytest.approx(scipy.stats.iqr(samples) / 105)
    assert quiet.spread_of([5.0]) == {"latency_cv": 0, "latency_relative_iqr": 0}


def test_clocks_and_reasons_of_nvidia_smi():
    lines = ["1980, 0x0000000000000001", "1755, 0x0000000000000004", "1200, 0x0000000000000024", "[N/A], [N/A]", ""]
    expected = {"gpu_mhz_low": 1200, "gpu_mhz_high": 1980, "gpu_throttling": "power cap, thermal slowdown"}
    assert quiet.clocks(lines) == expected
    assert quiet.clocks(["Field is not a valid field to query."]) == {}
    assert quiet.clocks(["1980, 0x0"])["gpu_throttling"] == ""


def test_a_gpu_is_watched_while_it_works(tmp_path, monkeypatch):
    smi = tmp_path / "nvidia-smi"
    smi.write_text(
        '#!/bin/sh\ncase "$1" in --help*) echo clocks_event_reasons.active; exit;; esac\n'
        f'echo "1500, 0x40"; echo "$@" > {tmp_path}/asked; exec sleep 20\n'
    )
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    quiet.reasons_field.cache_clear()
    with quiet.watching("3") as seen:
        while not (tmp_path / "asked").exists():
            pass
    quiet.reasons_field.cache_clear()
    assert (seen["gpu_mhz_low"], seen["gpu_throttling"]) == (1500, "hardware thermal slowdown")
    asked = (tmp_path / "asked").read_text()
    assert "--id=3 " in asked and "clocks.sm,clocks_event_reasons.active" in asked
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    with quiet.watching("0") as seen:
        pass
    assert "gpu_mhz_low" not in seen and seen["load_reason"] is not None


@pytest.fixture
def scripted(monkeypatch):
    """Time the tiny generator with latencies (ms) and loads that a test names, one list or share per measurement."""

    def timed(measurements, **options):
        times = iter([ms / 1000 for samples, _ in measurements for ms in samples])
        loads = iter([load for _, load in measurements])

        @contextmanager
        def watching(gpu):
            yield {"others_share": next(loads), "load_reason": ""}

        monkeypatch.setattr(latency, "run_once", lambda *a: (0.0, next(times), 0.0))
        monkeypatch.setattr(latency, "watching", watching)
        return latency.timed(tiny_generator("flux"), [{}], repeats=len(measurements[0][0]), warmup=0, **options)

    return timed


CALM, WILD = [100.0, 101.0, 102.0, 103.0], [50.0, 200.0, 80.0, 400.0]


def test_a_noisy_measurement_is_repeated_until_it_is_quiet(scripted):
    row = scripted([(WILD, 0.0), (CALM, 0.6), (CALM, 0.02), (WILD, 0.0)], until_quiet=5)
    assert (row["verdict"], row["measurements"], row["latencies_ms"]) == ("quiet", 3, pytest.approx(CALM))
    assert row["others_share"] == 0.02 and row["reason"] == ""


def test_the_quietest_is_kept_whatever_its_latency(scripted):
    fast = [ms / 10 for ms in WILD]
    row = scripted([(fast, 0.9), (CALM, 0.3), (CALM, 0.5)], until_quiet=2)
    assert (row["verdict"], row["measurements"], row["others_share"]) == ("noisy", 3, 0.3)
    assert row["noisy_because"] == "others took 30% of the processors' time"
    row = scripted([(CALM, 0.3)])
    assert (row["verdict"], row["measurements"]) == ("noisy", 1), "not repeated unless it is asked for"


def test_intervals_of_latencies_need_eight_runs(scripted):
    assert scripted([(CALM, 0.0)])["latency_mean_low_ms"] is None
    row = scripted([(CALM * 2, 0.0)])
    assert row["latency_mean_low_ms"] < row["latency_mean_ms"] == pytest.approx(np.mean(CALM))
    assert row["latency_mean_ms"] < row["latency_mean_high_ms"]


@pytest.mark.parametrize(("n", "m"), [(8, 8), (10, 20)])
def test_intervals_of_ratios_cover_the_true_ratio(n, m):
    rng, true, inside, trials = np.random.default_rng(0), 1.7, 0, 2000
    for _ in range(trials):
        base, scheme = true * np.exp(0.2 * rng.standard_normal(n)), np.exp(0.05 * rng.standard_normal(m))
        low, high = ratio_interval(base, scheme)
        inside += low <= true <= high
    assert abs(inside / trials - 0.95) < 4 * np.sqrt(0.95 * 0.05 / trials)
    assert ratio_interval([1.0] * 7, [1.0] * 9) == (None, None)
