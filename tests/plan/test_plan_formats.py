"""Plans over formats and parts of the schedule: against brute force, applied step by step, and refused where wrong."""

import itertools
import json
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

from ditscope.benchmark.checkpoints import save_checkpoint
from ditscope.core.errors import InputError
from ditscope.core.tables import write_table
from ditscope.models.bit_plan import load_plan, to_fqn_config, to_mlx
from ditscope.models.by_step import SteppedLinear, schedule_of
from ditscope.models.prepare import prepare
from ditscope.models.quantize import apply_scheme, is_simulated, mean_bits, nominal_bytes
from ditscope.models.sampling import Observer, sample
from ditscope.models.schedule_parts import DIVISIONS, PIECES, part_of_step, piece_of_step
from ditscope.models.settings import Scheme
from ditscope.plan.formats import Menu, frontier, limit_of, measured, menu_of, solve, undominated
from ditscope.plan.settings import Budget, Plan
from ditscope.plan.stage import plan
from ditscope.sensitivity.tables import FORMATS, FORMATS_TIMING
from tiny_models import tiny_generator

SCHEMES = {
    "low": Scheme("intx-weight-only", bits=3, group_size=4),
    "high": Scheme("int8-weight-only"),
    "w8a8": Scheme("int8-dynamic"),
    "base": Scheme("base"),
}
STEPS = {"first": 1, "early": 1, "mid": 2, "late": 1, "last": 1}
BYTES = {"low": 3, "high": 8, "w8a8": 8, "base": 32}
NOISE = {"low": 1.0, "high": 0.05, "w8a8": 0.1, "base": 0.0}
PROBES = 5


def effects(layers: list[str], seed: int) -> dict[tuple[str, str, str], np.ndarray]:
    """Made-up effects of each probe, by layer, format and piece; those of successive pieces are alike."""
    rng = np.random.default_rng(seed)
    found = {}
    for layer in layers:
        size = 10.0 ** rng.uniform(-3, 0)
        for name in SCHEMES:
            common = rng.normal(size=PROBES)
            for piece in PIECES:
                weight = rng.exponential()
                found[layer, name, piece] = size * NOISE[name] * weight * (common + 0.5 * rng.normal(size=PROBES))
    return found


def table_of(layers: dict[str, int], seed: int = 0, model: str = "tiny") -> pl.DataFrame:
    """A table `sensitivity.formats` of made-up effects; `layers` are names and weights."""
    found, rows = effects(list(layers), seed), []
    for depth, (layer, weights) in enumerate(layers.items()):
        cells = list(itertools.product(SCHEMES, PIECES))
        for i, (name, piece) in enumerate(cells):
            for other, other_piece in cells[i:]:
                moment = float((found[layer, name, piece] * found[layer, other, other_piece]).mean())
                rows.append({
                    "model": model, "layer": layer, "kind": "mlp", "depth": depth, "format": name, "piece": piece,
                    "other_format": other, "other_piece": other_piece, "moment": moment, "piece_steps": STEPS[piece],
                    "metric": "image_rms", "n_probes": PROBES, "n_images": 1, "parameters": weights,
                    "format_bytes": weights * BYTES[name] // 8, "full_bytes": weights * 4,
                })  # fmt: skip
    return pl.DataFrame(rows, FORMATS.schema())


def six_layers(formats: list[str], steps: str, seed: int) -> Menu:
    rng = np.random.default_rng(seed)
    layers = {f"l{i}": int(rng.choice([64, 128, 1024])) for i in range(6)}
    times = {(layer, name): float(rng.uniform(0.1, 1)) for layer in layers for name in [*SCHEMES, "full"]}
    rows = table_of(layers, seed).filter(pl.col("format").is_in(formats), pl.col("other_format").is_in(formats))
    return menu_of(rows, Budget(formats=formats, steps=steps), times)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["bytes", "mean_bits", "latency_ms"])
@pytest.mark.parametrize(("formats", "steps"), [(list(SCHEMES), "all"), (["low", "high"], "edges")])
def test_plan_against_brute_force_on_six_layers(formats, steps, kind, seed):
    """Costs are taken from the effects themselves: the mean over probes of the square of their sum over the parts."""
    menu = six_layers(formats, steps, seed)
    found, size = effects(menu.layers, seed), menu.size(kind)
    least, most = size.min(axis=1).sum(), size.max(axis=1).sum()
    limit = int(least + 0.4 * (most - least))
    best, rows = np.inf, np.arange(6)
    cost = np.zeros(size.shape)
    for (row, layer), (column, chosen) in itertools.product(enumerate(menu.layers), enumerate(menu.combinations)):
        by_part = [
            (name, np.sum([found[layer, name, piece] for piece in DIVISIONS[steps][part]], axis=0))
            for part, name in zip(menu.parts, chosen, strict=True)
        ]
        cost[row, column] = np.square(np.sum([effect for _, effect in by_part], axis=0)).mean()
        for (one, first), (two, second) in itertools.combinations(by_part, 2):
            if one != two:  # unlike formats are not counted on to cancel
                cost[row, column] -= 2 * min((first * second).mean(), 0)
    np.testing.assert_allclose(menu.cost, cost, rtol=1e-9, atol=1e-15)
    for every in itertools.product(range(len(menu.combinations)), repeat=6):
        if size[rows, every].sum() <= limit:
            best = min(best, cost[rows, every].sum())
    chosen = solve(menu, kind, limit)
    assert size[rows, chosen].sum() <= limit
    assert menu.totals(chosen)["predicted"] == pytest.approx(best, rel=1e-9, abs=1e-15)


def test_sizes_count_every_variant_and_average_over_steps():
    menu = six_layers(["low", "high"], "thirds", 0)
    column = menu.combinations.index(("low", "high", "low"))
    weights, steps = menu.parameters[0], 6
    assert menu.stored[0, column] == weights * 3 // 8 + weights
    assert menu.in_use[0, column] == 4 * (weights * 3 // 8) + 2 * weights
    same = menu.combinations.index(("high",) * 3)
    assert menu.stored[0, same] == weights and menu.steps == steps
    assert menu.totals(np.full(6, same))["mean_bits"] == 8.0


@pytest.mark.parametrize("steps", list(DIVISIONS))
def test_frontier_falls_and_by_step_is_never_predicted_worse(steps):
    menu, whole = six_layers(list(SCHEMES)[:3], steps, 3), six_layers(list(SCHEMES)[:3], "all", 3)
    for kind in ("bytes", "mean_bits", "latency_ms"):
        points = frontier(menu, kind)
        assert [p["predicted"] for p in points] == sorted((p["predicted"] for p in points), reverse=True)
        for share in (0.2, 0.5, 0.8):
            limit = int(whole.size(kind).min(axis=1).sum() * (1 + share))
            predicted = [m.totals(solve(m, kind, limit))["predicted"] for m in (menu, whole)]
            assert predicted[0] <= predicted[1] * (1 + 1e-9)


def test_cells_that_are_undercut_are_left_out():
    cost, size = np.array([[3.0, 2, 2, 1, 0]]), np.array([[1, 1, 2, 3, 4]])
    permitted = np.array([[True, True, True, True, False]])
    assert undominated(cost, size, permitted).tolist() == [[False, True, False, True, False]]


def test_pieces_make_up_the_parts():
    assert [piece_of_step(i, 8) for i in range(8)] == ["first", *["early"] * 2, *["mid"] * 3, "late", "last"]
    assert [part_of_step("edges", i, 4) for i in range(4)] == ["edge", "inner", "inner", "edge"]
    assert [part_of_step("thirds", i, 6) for i in range(6)] == ["early", "early", "mid", "mid", "late", "late"]
    for parts in DIVISIONS.values():
        assert sorted(itertools.chain(*parts.values())) == sorted(PIECES)


# The stage and its plans ---------------------------------------------------------------------------------------------


@pytest.fixture
def generator():
    return tiny_generator("sd3")


def linear(transformer: nn.Module) -> dict[str, int]:
    return {n: m.weight.numel() for n, m in transformer.named_modules() if isinstance(m, nn.Linear)}


@pytest.fixture
def table(tmp_path: Path, generator) -> Path:
    write_table(table_of(linear(generator.pipe.transformer)), tmp_path / "formats.parquet", FORMATS)
    return tmp_path / "formats.parquet"


def made(table: Path, tmp_path: Path, **budget) -> dict:
    names = budget.pop("formats", list(SCHEMES))
    plan("tiny", [table], tmp_path / "p.json", Budget(formats=names, **budget), Plan(), "b", SCHEMES)
    return load_plan(tmp_path / "p.json")


def test_plan_is_applied_as_its_formats_would_be(table, tmp_path, generator):
    document = made(table, tmp_path, mean_bits=6.0)
    used = set(document["assignment"].values())
    assert len(used) > 2 and used <= SCHEMES.keys()
    assert document["mean_bits"] <= 6.0 and document["predicted"] <= document["uniform"]["predicted"]
    transformer = generator.pipe.transformer
    whole = {name: deepcopy(transformer) for name in SCHEMES}
    for name, scheme in SCHEMES.items():
        apply_scheme(whole[name], scheme)
    planned = deepcopy(transformer)
    apply_scheme(planned, Scheme("plan", plan="b"), tmp_path / "p.json")
    for layer, name in document["assignment"].items():
        ours, theirs = planned.get_submodule(layer), whole[name].get_submodule(layer)
        assert type(ours.weight.data) is type(theirs.weight.data)
        x = torch.randn(3, ours.in_features)
        assert torch.equal(ours(x), theirs(x))
    assert to_fqn_config(document, transformer).fqn_to_config.keys() == {
        layer for layer, name in document["assignment"].items() if name != "base"
    }
    assert first_again(table, tmp_path)


def first_again(table: Path, tmp_path: Path) -> bool:
    """Whether the plan is byte for byte the same when it is made again."""
    before = (tmp_path / "p.json").read_bytes()
    made(table, tmp_path, mean_bits=6.0)
    return before == (tmp_path / "p.json").read_bytes()


def by_hand(tmp_path: Path, transformer: nn.Module, chosen, steps: str) -> Path:
    """A plan's file with one choice for all layers."""
    layers = linear(transformer)
    document = {
        "schema_version": "2",
        "budget": "b",
        "steps": steps,
        "layers": dict.fromkeys(layers, 8.0),
        "formats": {k: asdict(v) for k, v in SCHEMES.items()},
        "assignment": dict.fromkeys(layers, chosen),
    }
    (tmp_path / "hand.json").write_text(json.dumps(document))
    return tmp_path / "hand.json"


class Weights(Observer):
    """Notes what one layer is at each call of the transformer."""

    def __init__(self, layer: SteppedLinear) -> None:
        self.layer, self.seen = layer, []

    def called(self, call) -> None:
        self.seen.append(self.layer.of_part[self.layer.schedule.part])


def drawn(generator) -> torch.Tensor:
    return sample(generator, ["a", "b"], ["", ""], [1, 2])


@pytest.mark.parametrize(
    ("steps", "chosen", "expected"),
    [
        ("thirds", {"early": "low", "mid": "base", "late": "high"}, [0, 0, 1, 1, 2, 2]),
        ("edges", {"edge": "high", "inner": "low"}, [0, 1, 1, 1, 1, 0]),
    ],
)
def test_weights_are_switched_at_step_borders(tmp_path, generator, steps, chosen, expected):
    path = by_hand(tmp_path, generator.pipe.transformer, chosen, steps)
    assert prepare(generator, Scheme("plan", plan="b"), "eager", path) == ""
    layer = generator.pipe.transformer.proj_out
    watcher = Weights(layer)
    first = sample(generator, ["a", "b"], ["", ""], [1, 2], [watcher])
    assert watcher.seen == expected
    assert torch.equal(first, drawn(generator))  # a run begins at the first part again
    assert len(layer.variants) == len(set(chosen.values()))
    assert all(variant.bias is layer.bias for variant in layer.variants)


def test_a_plan_that_never_switches_gives_the_same_latents(tmp_path, generator):
    transformer = generator.pipe.transformer
    copies = [deepcopy(generator.pipe) for _ in range(2)]
    found = []
    for pipe, (chosen, steps) in zip(
        copies, [("high", "all"), ({"edge": "high", "inner": "high"}, "edges")], strict=True
    ):
        pipe.encode_prompt = generator.pipe.encode_prompt
        other = type(generator)(generator.name, generator.entry, generator.family, pipe, generator.device)
        assert prepare(other, Scheme("plan", plan="b"), "eager", by_hand(tmp_path, transformer, chosen, steps)) == ""
        found.append(drawn(other))
    assert torch.equal(*found)
    assert schedule_of(copies[0].transformer) is None and schedule_of(copies[1].transformer) is not None


def test_sizes_of_a_stepped_plan_and_what_cannot_take_it(tmp_path, generator):
    transformer, scheme = generator.pipe.transformer, Scheme("plan", plan="b")
    path = by_hand(tmp_path, transformer, {"edge": "high", "inner": "low"}, "edges")
    one = [by_hand(tmp_path / name, transformer, name, "all") for name in ("high", "low")
           if not (tmp_path / name).mkdir()]  # fmt: skip
    weights = sum(linear(transformer).values()) * 4
    whole = sum(t.nbytes for t in [*transformer.parameters(), *transformer.buffers()])
    rest = [nominal_bytes(transformer, scheme, p) - (whole - weights) for p in (*one, path)]
    assert rest[2] == rest[0] + rest[1]
    assert mean_bits(transformer, scheme, path) == pytest.approx(8 * rest[2] / (weights / 4))
    assert is_simulated(transformer, scheme, path) and not is_simulated(transformer, scheme, one[0])
    with pytest.raises(InputError, match="switches weights between steps, which torchao has not"):
        to_fqn_config(load_plan(path), transformer)
    with pytest.raises(InputError, match="plans over formats are torch's"):
        to_mlx(load_plan(path), transformer)
    apply_scheme(transformer, scheme, path)
    with pytest.raises(InputError, match="cannot be saved as one checkpoint"):
        save_checkpoint(transformer, scheme, tmp_path / "c.safetensors", path)


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({"mean_bits": 2.0}, r"budgets\.b: no assignment of low, high, w8a8, base meets 2 mean bits; the least is 3"),
        ({"bytes": 10}, r"no assignment of .* meets 10 bytes; the least is \d+"),
        ({"latency_ms": 1.0}, r"latency_ms: give the table `sensitivity\.formats\.timing`, by --timing"),
        ({}, r"with `formats` set exactly one of mean_bits, bytes and latency_ms \(set: none\)"),
        ({"uniform_bits": 4}, r"\(set: uniform_bits\)"),
        ({"mean_bits": 5.0, "formats": ["low", "int5"]}, "format `int5` was not measured; there are base, high, low"),
    ],
)  # fmt: skip
def test_budgets_that_no_assignment_meets(table, tmp_path, budget, message):
    with pytest.raises(InputError, match=message):
        made(table, tmp_path, **budget)
    assert not (tmp_path / "p.json").exists()


def test_other_bad_input(table, tmp_path, generator):
    with pytest.raises(InputError, match="no rows of model `other`; run `ditscope sensitivity-formats` for it"):
        measured([table], "other", ["low"])
    with pytest.raises(InputError, match=r"plan\.budgets\.b: latency_ms and steps are of budgets with `formats`"):
        plan("tiny", [table], tmp_path / "p.json", Budget(mean_bits=4.0, steps="thirds"), Plan(), "b", SCHEMES)
    times = pl.DataFrame({"model": ["tiny"], "layer": ["gone"], "format": ["full"], "latency_median_ms": [1.0],
                          "latency_p10_ms": [1.0], "latency_p90_ms": [1.0], "repeats": [1], "rows": [1],
                          "hardware": ["x"]}, FORMATS_TIMING.schema())  # fmt: skip
    write_table(times, tmp_path / "t.parquet", FORMATS_TIMING)
    with pytest.raises(InputError, match=r"t\.parquet: layer `.*` of `tiny` was not timed"):
        plan("tiny", [table], tmp_path / "p.json", Budget(latency_ms=9.0, formats=["low"]), Plan(), "b", SCHEMES,
             [tmp_path / "t.parquet"])  # fmt: skip
    good = json.loads(by_hand(tmp_path, generator.pipe.transformer, "low", "all").read_text())
    for change, message in (
        ({"assignment": good["assignment"] | {"proj_out": "int5"}}, "has the format `int5`, which `formats` lacks"),
        ({"assignment": {"proj_out": "low"}}, "`assignment` does not name the layers of `layers`"),
        ({"steps": "halves"}, "`steps` is 'halves', not one of all, thirds, edges"),
        ({"assignment": good["assignment"] | {"proj_out": {"early": "low"}}}, "has not a format for each of all"),
        ({"formats": good["formats"] | {"low": {"kind": "int9"}}}, r"formats\.low\.kind"),
        ({"layers": {"gone": 4.0}, "assignment": {"gone": "low"}}, "the model has no layer `gone`; make the plan from"),
        ({"schema_version": "1"}, "schema version 1, this ditscope reads 2"),
    ):
        (tmp_path / "bad.json").write_text(json.dumps(good | change))
        with pytest.raises(InputError, match=message):
            load_plan(tmp_path / "bad.json", generator.pipe.transformer)


def test_a_budget_that_is_just_met_is_solved(table):
    rows = measured([table], "tiny", ["low", "high"])
    menu = menu_of(rows, Budget(formats=["low", "high"], steps="edges"), None)
    with pytest.raises(InputError) as caught:
        limit_of(menu, Budget(bytes=1), "b")
    least = int(float(str(caught.value).split("the least is ")[1]))
    kind, limit = limit_of(menu, Budget(bytes=least), "b")
    assert menu.totals(solve(menu, kind, limit))["nominal_bytes"] == least
