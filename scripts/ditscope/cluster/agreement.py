"""Whether two labellings of the same states agree, beside what labellings that know nothing of each other give."""

from itertools import combinations

import numpy as np
import polars as pl
from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score, v_measure_score
from sklearn.metrics.cluster import expected_mutual_information

from ditscope.cluster.sequences import OUTLIER
from ditscope.cluster.tables import AGREEMENT
from ditscope.core.identity import derived_seed
from ditscope.core.nulls import as_large, draws_for, holm
from ditscope.embed.files import RUN, sampled, unmarked

# By what the states of two labellings are matched; run ids name one network's runs.
MATCHED = {"embedders": ["run_id", "position"], "networks": ["prompt_id", "seed", "position"]}
SCORES = {"ari": adjusted_rand_score, "ami": adjusted_mutual_info_score, "v_measure": v_measure_score}
HELD = 2_000_000  # numbers of permuted labels and contingency tables that are held at once
UPPER = 0.95  # of the null: agreement is a claim of more than chance


def agreement(clusters: pl.DataFrame, most: int = 0) -> pl.DataFrame:
    """Agreement of two labellings of the same states: adjusted Rand, adjusted mutual information, V-measure.

    `between` embedders: each pair within a network, matched by position along the run (of a text and an image embedder:
    an image and the caption that followed it). `between` networks: each pair under one embedder, matched by prompt,
    seed and position: do networks that start alike go to the same clusters? Outliers count as a cluster of their own
    (`outliers` = kept) or are left out where either labelling has one (excluded). Two labellings of a single label each
    agree by convention, which says nothing: null, with the `reason`, as where fewer than two states can be compared.
    The adjusted mutual information is of a sample of `most` states (0: of all): what chance gives takes time that grows
    with states times clusters. Of more states the null is that of the prompts of `most` of them, drawn at random.

    States of a run resemble each other, so that labellings of unrelated runs agree: the null permutes whole runs, all
    of a prompt together, among the prompts whose runs are as long (`null_scores`). p-values are one-sided and corrected
    (Holm 1979) for the pairs of the same `between` and `outliers`; the draws are 999, or 20 per pair if that is more.
    """
    rows = clusters.select(*RUN, "prompt_id", "seed", "position", "label").drop_nulls("label")
    parts = rows.partition_by("embedder", "network", as_dict=True)
    embedders, networks = (clusters[name].unique().sort().to_list() for name in ("embedder", "network"))
    pairs = {
        "embedders": [((a, n), (b, n)) for n in networks for a, b in combinations(embedders, 2)],
        "networks": [((e, a), (e, b)) for e in embedders for a, b in combinations(networks, 2)],
    }
    records = []
    for between, sides in pairs.items():
        for a, b in sides:
            left, right = (parts.get(key, rows.clear()) for key in (a, b))
            shared = left.join(right, on=MATCHED[between], suffix="_b").sort("prompt_id", "seed", "run_id", "position")
            key = {"between": between, "embedder_a": a[0], "embedder_b": b[0], "network_a": a[1], "network_b": b[1]}
            seed = derived_seed("agreement", *key.values())
            drawn = null_scores(of_prompts(shared, most, seed), draws_for(len(sides), sides=1), seed)
            records += [key | {"outliers": name} | row for name, row in compared(shared, most, *drawn).items()]
    schema = unmarked(AGREEMENT)
    table = pl.DataFrame(records, schema=schema)
    family = ["between", "outliers"]
    corrected = [holm(pl.col(f"{score}_p")).over(family).alias(f"{score}_p_holm") for score in SCORES]
    return table.with_columns(corrected).select(list(schema)).sort(*key_of(schema))


def key_of(schema: dict) -> list[str]:
    """The columns that name a pair of labellings."""
    return [name for name in schema if name in AGREEMENT.key]


def of_prompts(shared: pl.DataFrame, most: int, seed: int) -> pl.DataFrame:
    """The states of as many prompts, drawn at random, as have at most `most` states together (0: of all)."""
    if not most or shared.height <= most:
        return shared
    prompts = shared.group_by("prompt_id").len("states").sort("prompt_id").sample(fraction=1, shuffle=True, seed=seed)
    kept = prompts.filter(pl.col("states").cum_sum() <= most)
    return shared.join(kept, on="prompt_id", how="semi", maintain_order="left")


def compared(
    shared: pl.DataFrame, most: int, prompts: int, null: dict[str, dict[str, np.ndarray]], no_null: str | None
) -> dict[str, dict]:
    """The scores of two labellings, outliers `kept` and `excluded`, each beside its null (see `null_scores`)."""
    inside = shared.filter((pl.col("label") != OUTLIER) & (pl.col("label_b") != OUTLIER))
    rows = {}
    for name, pairs in (("kept", shared), ("excluded", inside)):
        states, *values, reason = scores(pairs.select("label", "label_b"), most)
        row = {"states": states, "prompts": prompts, "reason": reason, "null_reason": reason or no_null}
        row |= dict(zip(SCORES, values, strict=True))
        for score, drawn in null.get(name, {}).items():
            observed, known = drawn[0], drawn[1:][~np.isnan(drawn[1:])]
            if row[score] is not None and known.size:
                row |= {"draws": len(known), f"{score}_p": as_large(observed, known)}
                row[f"{score}_null_median"], row[f"{score}_null_high"] = map(float, np.quantile(known, [0.5, UPPER]))
        rows[name] = row
    return rows


def scores(pairs: pl.DataFrame, most: int = 0) -> tuple:
    """Number of pairs of labels, their scores in the order of `SCORES`, and the reason where there are none."""
    reason = None
    if pairs.height < 2:
        reason = "fewer than two states that both label"
    elif pairs["label"].n_unique() == pairs["label_b"].n_unique() == 1:
        reason = "both have a single label"
    of = {"ami": pairs[sampled(pairs.height, most)]}
    values = [None if reason else float(score(*of.get(name, pairs).get_columns())) for name, score in SCORES.items()]
    return pairs.height, *values, reason


def null_scores(
    shared: pl.DataFrame, draws: int, seed: int
) -> tuple[int, dict[str, dict[str, np.ndarray]], str | None]:
    """Number of prompts; scores (1 + draws,) by `outliers` and score: the observed, and with whole prompts permuted.

    Prompts change places with those that have as many runs, labelled at the same positions. The last value says why
    there are no draws, where no two prompts can. AMI is not drawn with outliers excluded: its expected value would be
    another in each draw. O(draws (n + clusters^2)) for n states.
    """
    units, groups = exchangeable(shared)
    if not groups or shared.height < 2:
        return units, {}, "no two prompts have runs of equal lengths, so none can change places"
    a, b = (np.unique(shared[name].to_numpy(), return_inverse=True)[1] for name in ("label", "label_b"))
    marks = [int(OUTLIER in shared[name].unique().to_list()) for name in ("label", "label_b")]  # -1 is the first label
    shape = a.max() + 1, b.max() + 1
    rng = np.random.default_rng(seed)
    drawn: dict[str, dict[str, list]] = {"kept": {s: [] for s in SCORES}, "excluded": {"ari": [], "v_measure": []}}
    chunk = max(1, HELD // max(len(a), shape[0] * shape[1]))
    for start in range(0, 1 + draws, chunk):
        many = min(chunk, 1 + draws - start)
        moved = np.tile(b, (many, 1))
        for rows in groups:  # (prompts, states)
            order = rng.permuted(np.tile(np.arange(len(rows)), (many, 1)), axis=1)
            if start == 0:
                order[0] = np.arange(len(rows))
            moved[:, rows] = b[rows][order]
        codes = (np.arange(many)[:, None] * shape[0] + a) * shape[1] + moved
        counts = np.bincount(codes.ravel(), minlength=many * shape[0] * shape[1]).reshape(many, *shape)
        for name, table in (("kept", counts), ("excluded", counts[:, marks[0] :, marks[1] :])):
            for score, values in contingency_scores(table, with_ami=name == "kept").items():
                drawn[name][score].append(values)
    return units, {name: {s: np.concatenate(v) for s, v in part.items()} for name, part in drawn.items()}, None


def exchangeable(shared: pl.DataFrame) -> tuple[int, list[np.ndarray]]:
    """Number of prompts of the sorted states, and row numbers (prompts, states) of each set that can change places."""
    patterns: dict[tuple, list[np.ndarray]] = {}
    parts = shared.with_row_index("row").partition_by("prompt_id", maintain_order=True)
    for part in parts:
        run = part["run_id"].rle_id().to_list()
        patterns.setdefault(tuple(zip(run, part["position"], strict=True)), []).append(part["row"].to_numpy())
    return len(parts), [np.stack(rows) for rows in patterns.values() if len(rows) > 1]


def contingency_scores(counts: np.ndarray, with_ami: bool = True) -> dict[str, np.ndarray]:
    """The scores of contingency tables (draws, a, b); AMI for tables of the same margins alone. NaN without states.

    Hubert & Arabie 1985; Vinh, Epps & Bailey 2010 (arithmetic mean); Rosenberg & Hirschberg 2007.
    """
    counts = counts.astype(np.float64)
    n, rows, columns = counts.sum(axis=(1, 2)), counts.sum(axis=2), counts.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        both, one, other = ((x * (x - 1)).sum(axis=-1) / 2 for x in (counts.reshape(len(counts), -1), rows, columns))
        expected = one * other / (n * (n - 1) / 2)
        ari = np.where(one + other == 2 * expected, 1.0, (both - expected) / ((one + other) / 2 - expected))
        share = counts / n[:, None, None]
        information = xlogx(share).sum(axis=(1, 2)) - sum(xlogx(x / n[:, None]).sum(axis=1) for x in (rows, columns))
        mean = -sum(xlogx(x / n[:, None]).sum(axis=1) for x in (rows, columns)) / 2
        v = np.where(mean <= 0, 1.0, information / mean)
        by_score = {"ari": ari, "v_measure": v}
        if with_ami:
            chance = expected_mutual_information(counts[0].astype(np.int64), int(n[0]))
            by_score["ami"] = (information - chance) / (mean - chance)
    return {score: np.where(n > 1, values, np.nan) for score, values in by_score.items()}


def xlogx(x: np.ndarray) -> np.ndarray:
    """X ln x, 0 at 0."""
    return x * np.log(np.where(x > 0, x, 1))
