"""What the analyses of trajectories cost at size, against the obvious way in pandas; what the sampled ones cost.

python perf/analysis.py [INVOCATIONS] [COMPARED]     default 1,000,000 and 100,000
python perf/analysis.py bounds                       each sampled analysis at its bound

The first command draws INVOCATIONS of text and images, each embedded in 384 numbers: runs of 100 invocations of four
networks, a fifth of them ended in a loop. One process then reads the tables, continues loops, measures drift,
autoregression, run lengths, dwell times, transitions, returns and phases, and writes their tables; its peak memory is
printed. The same is done with COMPARED invocations, and with these in pandas by group-by and apply, without the
intervals of the autoregression and without reading: results must agree, and the ratio is printed. Two cores are
used where a library does so by itself. Labels of clusters are planted: clustering itself looks at a sample, whose
cost is `bounds`.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import polars as pl

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

from ditscope.core.tables import SCHEMA_VERSION, read_table, write_table  # noqa: E402

DIMENSION, LENGTH, PLACES, SHARD = 384, 100, 30, 250
NETWORKS = ("net-a", "net-b", "net-c", "net-d")
KINDS = {"text": -1, "image": 0}  # the modalities, by which an embedder is named here, and their first states
RUN = ["embedder", "network", "run_id"]
SPENT: dict[str, float] = {}


@contextmanager
def timed(name: str) -> Iterator[None]:
    """Add the seconds of a block to SPENT."""
    began = time.perf_counter()
    yield
    SPENT[name] = SPENT.get(name, 0.0) + time.perf_counter() - began


# The study --------------------------------------------------------------------------------------------------------


def write_study(folder: Path, invocations: int) -> None:
    """Tables `trajectories`, `embeddings` and `clusters` of runs that hop between places, in shards of SHARD runs."""
    rng = np.random.default_rng(0)
    places = rng.normal(size=(PLACES, DIMENSION)).astype(np.float32)
    runs = max(len(NETWORKS), invocations // LENGTH) // len(NETWORKS)
    for network in NETWORKS:
        for first in range(0, runs, SHARD):
            shard = [shard_of_run(rng, network, number) for number in range(first, min(runs, first + SHARD))]
            write_shard(folder, rng, network, first // SHARD, pl.concat(shard), places)


def shard_of_run(rng: np.random.Generator, network: str, number: int) -> pl.DataFrame:
    """The states of one run: sequence -1 to 99 with the place of each, or fewer and a loop of four invocations."""
    loops = number % 5 == 0
    length = int(rng.integers(12, LENGTH)) if loops else LENGTH
    moves = rng.random(length + 1) < 0.3
    place = np.maximum.accumulate(np.where(moves, np.arange(length + 1), 0))
    place = rng.integers(PLACES, size=length + 1)[place]
    if loops:
        place[-1] = place[-5]
    return pl.DataFrame(
        {
            "network": network,
            "run_id": f"{network}:p{number // 4:06d}/{number % 4}",
            "prompt_id": f"p{number // 4:06d}",
            "seed": pl.Series([number % 4] * (length + 1), dtype=pl.Int64),
            "derived_seed": False,
            "sequence_number": np.arange(-1, length, dtype=np.int32),
            "loop_length": pl.Series([4 if loops else None] * (length + 1), dtype=pl.Int32),
            "place": place,
        }
    ).with_columns(pl.format("{} at {}", "prompt_id", "place").alias("output_text"))


def write_shard(
    folder: Path, rng: np.random.Generator, network: str, number: int, steps: pl.DataFrame, places: np.ndarray
) -> None:
    """One shard of each table; the last state of a loop has the vector of the state that it came back to."""
    name = f"{network}-{number:05d}.parquet"
    save(steps.drop("place"), folder / "trajectories" / name, "trajectories")
    x = places[steps["place"]] + 0.3 * rng.normal(size=(len(steps), DIMENSION)).astype(np.float32)
    last = (
        steps["loop_length"].is_not_null() & (steps["run_id"] != steps["run_id"].shift(-1)).fill_null(True)
    ).arg_true()
    x[last] = x[last.to_numpy() - 4]
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    for kind, start in KINDS.items():
        keep = ((steps["sequence_number"] - start) % 2 == 0).arg_true()
        part = steps[keep].with_columns(pl.lit(kind).alias("embedder"), pl.lit(kind).alias("modality"))
        vector = pl.Series("vector", x[keep.to_numpy()]).cast(pl.List(pl.Float32))
        table = part.select(*RUN, "sequence_number", "modality").with_columns(vector)
        save(table, folder / "embeddings" / kind / name, "embeddings")
        labels = part.filter(pl.col("sequence_number") >= 0).select(
            *RUN, "modality", "prompt_id", "seed", "sequence_number",
            (pl.col("sequence_number").cast(pl.Int64) // 2).alias("position"),
            (pl.col("place") - 1).alias("label"),  # the first place is of the outliers
            pl.lit(None, pl.String).alias("reason"),
        )  # fmt: skip
        save(labels, folder / "labels" / kind / name, "clusters")


def save(table: pl.DataFrame, path: Path, name: str) -> None:
    """Write the columns that the analyses read of a table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table.write_parquet(path, metadata={"table": name, "schema_version": SCHEMA_VERSION})


def files(folder: Path, name: str) -> list[Path]:
    """The shards of a table."""
    return sorted((folder / name).rglob("*.parquet"))


# Ours -------------------------------------------------------------------------------------------------------------


def ours(folder: Path, out: Path) -> None:
    """Every analysis that looks at all states, as the stages `drift` and `cluster` do them."""
    from ditscope.cluster import sequences
    from ditscope.cluster import tables as of_clusters
    from ditscope.cluster.dwell import dwell_times
    from ditscope.core.tables import concat_tables
    from ditscope.drift.autoregression import autoregression
    from ditscope.drift.stage import drift_table
    from ditscope.drift.tables import AUTOREGRESSION, DRIFT, STEPS
    from ditscope.embed.files import continue_loops, degenerate_networks, marked, read_states, run_ends

    with timed("read"):
        states = read_states(files(folder, "embeddings"), files(folder, "trajectories"))
        ends = run_ends(states, files(folder, "trajectories"))
    with timed("write"):
        poor = degenerate_networks(states)
    with timed("drift"):
        computed = drift_table(states, 1)
    with timed("autoregression"):
        found = autoregression(computed, STEPS)
        del computed
    with timed("read"):
        whole = continue_loops(states, ends, LENGTH)
        del states
    with timed("drift"):
        table = drift_table(whole, 1)
        del whole
    with timed("write"):
        write_table(marked(table, poor), out / "drift.parquet", DRIFT)
        write_table(marked(found, poor), out / "autoregression.parquet", AUTOREGRESSION)
        del table
    with timed("read"):
        clusters = concat_tables(files(folder, "labels"), "clusters")
        followed = continue_loops(clusters, ends, LENGTH)
    functions: dict[str, Callable[[], pl.DataFrame]] = {
        "run_lengths": lambda: sequences.run_lengths(followed),
        "longest_runs": lambda: sequences.longest_runs(left["run_lengths"]),
        "dwell_times": lambda: dwell_times(left["run_lengths"]),
        "transitions": lambda: sequences.transitions(followed),
        "returns": lambda: sequences.returns(clusters),
        "label_phases": lambda: sequences.label_phases(clusters),
    }
    left: dict[str, pl.DataFrame] = {}
    for name, function in functions.items():
        with timed(name):
            left[name] = function()
        with timed("write"):
            write_table(marked(left[name], poor), out / f"{name}.parquet", getattr(of_clusters, name.upper()))


# The obvious way --------------------------------------------------------------------------------------------------


def plain(folder: Path, out: Path) -> None:
    """The same numbers by pandas: a group per run, and Python for each."""
    import pandas as pd

    def frame(name: str, columns: list[str]) -> pd.DataFrame:
        table = pl.concat([pl.read_parquet(path, columns=columns) for path in files(folder, name)])
        return pd.DataFrame({column: table[column].to_list() for column in columns})

    states = frame("embeddings", [*RUN, "sequence_number", "vector"])
    steps = frame("trajectories", ["run_id", "sequence_number", "loop_length"])
    labels = frame("labels", [*RUN, "sequence_number", "label"])
    with timed("read"):
        ends = steps.groupby("run_id").agg(last=("sequence_number", "max"), loop=("loop_length", "first"))
        states, followed = (looped(table.merge(ends, on="run_id")) for table in (states, labels))
    with timed("drift"):
        drift = pd.concat([run_drift(group) for _, group in states.groupby(RUN)], ignore_index=True)
    with timed("autoregression"):
        rows = drift[~drift["continued"]]
        groups = rows.groupby(["embedder", "network", "control"])
        slopes = {key: {measure: slope(group, measure) for measure in MEASURES} for key, group in groups}
    with timed("run_lengths"):
        lengths = pd.concat(run_lengths(group) for _, group in followed.groupby(RUN))
    with timed("transitions"):
        after = followed.groupby(RUN)["label"].shift(-1)
        counts = followed.assign(target=after).dropna(subset="target").groupby(
            ["embedder", "network", "label", "target"]).size()  # fmt: skip
    with timed("returns"):
        returns = labels.groupby(RUN)["label"].apply(
            lambda x: ((x == x.iloc[0]) & (x.shift() != x.iloc[0])).iloc[1:].sum()
        )
    with timed("label_phases"):
        third = labels.groupby(RUN).cumcount() * 3 // labels.groupby(RUN)["label"].transform("size")
        phases = labels.assign(phase=third).groupby(["embedder", "network", "phase", "label"]).size()
    sums = {
        "drift": drift[drift["control"] == "observed"]["euclidean"].sum(),
        "steps": drift[drift["control"] == "observed"]["step_angle_rad"].sum(),
        "rows": len(drift),
        "slope": sum(found["step_angle_rad"] for key, found in slopes.items() if "observed" in key),
        "stretches": len(lengths),
        "transitions": int(counts.sum()),
        "pairs": len(counts),
        "returns": int(returns[labels.groupby(RUN)["label"].first() >= 0].sum()),
        "phases": int(phases.max()),
    }
    (out / "sums.json").write_text(json.dumps({name: float(value) for name, value in sums.items()}))


MEASURES = ("step_euclidean", "step_cosine_distance", "step_angle_rad")


def looped(table):
    """The rows of runs that ended in a loop once more, up to LENGTH invocations."""
    import pandas as pd

    table["continued"] = False
    parts = [table]
    for number in range(LENGTH):
        source = table["last"] - table["loop"] + (number - table["last"]) % table["loop"]
        again = table[(table["last"] < number) & (table["sequence_number"] == source)]
        parts.append(again.assign(sequence_number=number, continued=True))
    return pd.concat(parts).sort_values([*RUN, "sequence_number"])


def run_drift(group):
    """Distances of one run, in order and shuffled."""
    import pandas as pd

    x = np.stack(group["vector"].to_numpy()).astype(np.float64)
    parts = []
    for control in ("observed", "shuffled"):
        order = np.arange(len(x))
        if control == "shuffled":
            order[1:] = np.random.default_rng(0).permutation(order[1:])
        y = x[order]
        part = group.drop(columns="vector").assign(control=control)
        for prefix, to in (("", np.repeat(x[:1], len(x), axis=0)), ("step_", np.vstack([y[:1], y[:-1]]))):
            cosine = (y * to).sum(axis=1) / np.linalg.norm(y, axis=1) / np.linalg.norm(to, axis=1)
            part[f"{prefix}euclidean"] = np.linalg.norm(y - to, axis=1)
            part[f"{prefix}cosine_distance"] = 1 - cosine
            part[f"{prefix}angle_rad"] = np.arccos(np.clip(cosine, -1, 1))
        part.loc[part.index[0], list(MEASURES)] = np.nan
        parts.append(part)
    return pd.concat(parts)


def slope(group, measure: str) -> float:
    """Least-squares coefficient of the next step on a step, with an intercept per run."""
    runs, x = group["run_id"], group[measure]
    y = x.groupby(runs).shift(-1)
    keep = x.notna() & y.notna()
    runs, x, y = runs[keep], x[keep], y[keep]
    x, y = x - x.groupby(runs).transform("mean"), y - y.groupby(runs).transform("mean")
    return float((x * y).sum() / (x * x).sum())


def run_lengths(group):
    """Stretches of equal labels of one run."""
    stretch = (group["label"] != group["label"].shift()).cumsum()
    return group.groupby(stretch)["label"].agg(["first", "size"])


def sums_of_ours(out: Path) -> dict[str, float]:
    """What `plain` sums up, of the tables that `ours` left."""
    drift, found = (
        read_table(out / "drift.parquet", "drift"),
        read_table(out / "autoregression.parquet", "drift.autoregression"),
    )
    observed = drift.filter(pl.col("control").cast(pl.String) == "observed")
    angle = found.filter(
        pl.col("measure").cast(pl.String) == "step_angle_rad", pl.col("control").cast(pl.String) == "observed"
    )
    counts, lengths, returns, phases = (
        read_table(out / f"{name}.parquet", f"clusters.{name}")
        for name in ("transitions", "run_lengths", "returns", "label_phases")
    )
    return {
        "drift": observed["euclidean"].sum(),
        "steps": observed["step_angle_rad"].sum(),
        "rows": drift.height,
        "slope": angle["least_squares"].sum(),
        "stretches": lengths.height,
        "transitions": counts["count"].sum(),
        "pairs": counts.height,
        "returns": returns["returns"].sum(),
        "phases": phases["states"].max(),
    }


# What looks at a sample -----------------------------------------------------------------------------------------------


def bounds(names: list[str]) -> None:
    """Seconds of each sampled analysis (or of those named) at the bound that its setting has by default.

    Of the clock, and of the processor: these hardly depend on what else the machine does.
    """
    print(f"load {Path('/proc/loadavg').read_text().split()[0]} on entry\n")
    print("| analysis | at | seconds | processor seconds |\n|---|---|---|---|")
    for name in names or BOUNDED:
        at, work = BOUNDED[name]()
        began, before = time.perf_counter(), time.process_time()
        work()
        ended, after = time.perf_counter(), time.process_time()
        print(f"| {name} | {at} | {ended - began:.1f} | {after - before:.1f} |", flush=True)


def similarity() -> tuple[str, Callable[[], object]]:
    """Pairs of runs, of text alone."""
    from ditscope.drift.settings import Drift
    from ditscope.drift.stage import run_similarity

    most = Drift().max_runs
    x, _ = hopping(2 * most * LENGTH // 2)
    run = np.repeat(np.arange(2 * most), LENGTH // 2)
    states = pl.DataFrame(
        {"embedder": "text", "network": "net-a", "run_id": pl.Series(run).cast(pl.String).str.zfill(6),
         "prompt_id": pl.Series(run).cast(pl.String).str.zfill(6), "seed": 0,
         "position": np.tile(np.arange(LENGTH // 2), 2 * most)}
    ).with_columns(pl.Series("vector", x).cast(pl.List(pl.Float32)))  # fmt: skip
    return f"{most} of {2 * most} runs of {LENGTH // 2} states", lambda: run_similarity(states, most)


def clustering() -> tuple[str, Callable[[], object]]:
    """HDBSCAN of the sample; the others take the label of the nearest."""
    from ditscope.cluster.settings import Cluster
    from ditscope.cluster.stage import cluster_labels
    from ditscope.embed.files import unit

    u, n = unit(hopping(100_000)[0]), Cluster().max_points
    return f"{n:,} of {len(u):,} states", lambda: cluster_labels(u)


def labelling() -> tuple[str, Callable[[], object]]:
    """Labels of 10^6 states from the sample; HDBSCAN itself aside."""
    from ditscope.cluster.settings import Cluster
    from ditscope.cluster.stage import nearest

    u, n = hopping(100_000)[0], Cluster().max_points
    return f"10 times 100,000 states from {n:,}", lambda: [nearest(u, u[:n]) for _ in range(10)]


def mapping() -> tuple[str, Callable[[], object]]:
    """t-SNE."""
    from ditscope.cluster.settings import Cluster
    from ditscope.cluster.stage import map_states
    from ditscope.embed.files import unit

    n = Cluster().max_map_points
    u = unit(hopping(2 * n)[0])
    names = dict.fromkeys(("embedder", "modality", "network", "run_id", "prompt_id"), "a")
    states = pl.DataFrame(names | {"sequence_number": np.arange(len(u)), "position": np.arange(len(u))})
    return f"{n:,} of {len(u):,} states", lambda: map_states(states, u, n)


def comparing() -> tuple[str, Callable[[], object]]:
    """Adjusted mutual information of two labellings of many clusters."""
    from ditscope.cluster.agreement import scores
    from ditscope.cluster.settings import Cluster

    rng, n = np.random.default_rng(0), Cluster().max_compared
    labels = pl.DataFrame({"label": rng.integers(1000, size=5 * n), "label_b": rng.integers(1000, size=5 * n)})
    return f"{n:,} of {5 * n:,} states, 1,000 clusters each", lambda: scores(labels, n)


def topology() -> tuple[str, Callable[[], object]]:
    """Diagrams up to H2 of as many runs, each with as many points."""
    from ditscope.embed.files import unit
    from ditscope.topology.diagrams import persistence
    from ditscope.topology.settings import Topology

    runs, points = Topology().max_runs, Topology().max_points
    u = unit(hopping(runs * points)[0]).reshape(runs, points, -1)
    return f"{runs} runs of {points} states", lambda: [persistence(x, 2) for x in u]


BOUNDED = {
    "similarity": similarity, "clustering": clustering, "labelling": labelling, "mapping": mapping,
    "comparing": comparing, "topology": topology,
}  # fmt: skip


def hopping(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Vectors (count, DIMENSION) around the places, in float32, and the place of each."""
    rng = np.random.default_rng(0)
    places = rng.normal(size=(PLACES, DIMENSION)).astype(np.float32)
    place = rng.integers(PLACES, size=count)
    noise = rng.standard_normal((count, DIMENSION), np.float32)
    noise *= 0.3
    noise += places[place]
    return noise, place


# Both -------------------------------------------------------------------------------------------------------------


def in_its_own_process(name: str, folder: Path, out: Path) -> dict[str, float]:
    """Seconds of each part of `ours` or `plain`, and the peak memory of the process in bytes as `memory`."""
    out.mkdir()
    words = [sys.executable, __file__, name, str(folder), str(out)]
    return json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def shown(spent: dict[str, float]) -> str:
    """One row of the table."""
    parts = [f"{spent.get(name, 0):.1f}" for name in PARTS]
    whole = f"{sum(spent.get(name, 0) for name in PARTS):.1f}"
    return " | ".join([*parts, whole, f"{spent['processor']:.1f}", f"{spent['memory'] / 1e9:.2f}"])


PARTS = (
    "read", "drift", "autoregression", "run_lengths", "longest_runs", "dwell_times", "transitions", "returns",
    "label_phases", "write",
)  # fmt: skip


def main(invocations: int = 1_000_000, compared: int = 100_000) -> None:
    """Print seconds and memory of both ways."""
    print(f"load {Path('/proc/loadavg').read_text().split()[0]} on entry; seconds, of the clock but for `processor`,")
    print("which has imports, too; GB at the peak\n")
    print(f"| way | invocations | {' | '.join(PARTS)} | all | processor | GB |\n|{'---|' * (len(PARTS) + 5)}")
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        write_study(home / "few", compared)
        few = in_its_own_process("ours", home / "few", home / "ours")
        print(f"| ditscope | {compared:,} | {shown(few)} |", flush=True)
        peer = in_its_own_process("plain", home / "few", home / "plain")
        print(f"| pandas | {compared:,} | {shown(peer)} |", flush=True)
        mine, theirs = sums_of_ours(home / "ours"), json.loads((home / "plain/sums.json").read_text())
        for name, value in theirs.items():
            if not np.isclose(mine[name], value, rtol=1e-6):
                raise SystemExit(f"{name} differs: {mine[name]} and {value}")
        if invocations > compared:
            write_study(home / "many", invocations)
            print(f"| ditscope | {invocations:,} | {shown(in_its_own_process('ours', home / 'many', home / 'out'))} |")
        shared = [name for name in PARTS if name in peer]
        ratio = sum(peer[name] for name in shared) / sum(few[name] for name in shared)
        print(f"\nthe two agree; pandas takes {ratio:.1f} times as long for {', '.join(shared)}")


if __name__ == "__main__":
    if sys.argv[1:2] in (["ours"], ["plain"]):
        {"ours": ours, "plain": plain}[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
        used = resource.getrusage(resource.RUSAGE_SELF)
        print(json.dumps(SPENT | {"processor": used.ru_utime + used.ru_stime, "memory": 1024 * used.ru_maxrss}))
    elif sys.argv[1:2] == ["bounds"]:
        bounds(sys.argv[2:])
    else:
        main(*map(int, sys.argv[1:]))
