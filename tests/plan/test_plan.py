"""Bit plans: the integer program against brute force, budgets, the frontier, reading back, torchao's export."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn
from torchao.quantization import quantize_

from ditscope.core.errors import InputError
from ditscope.core.tables import read_table
from ditscope.models.bit_plan import load_plan, to_fqn_config
from ditscope.models.packed import intx_bytes, packed_bytes
from ditscope.models.quantize import apply_scheme
from ditscope.models.quantize import mean_bits as scheme_bits
from ditscope.models.quantize import nominal_bytes as scheme_bytes
from ditscope.models.quantizers import group_affine, quantizable
from ditscope.models.settings import Scheme
from ditscope.plan.settings import Budget, Plan
from ditscope.plan.stage import (
    Choices,
    budget_bytes,
    choices_of,
    chosen_metric,
    frontier,
    plan,
    random_plan,
    random_plans,
    solve,
)
from ditscope.sensitivity.buckets import BUCKETS
from ditscope.sensitivity.tables import layer_kind
from loose_tables import write_loosely
from tiny_models import tiny_generator


def random_choices(layers: int, seed: int, bits=(2, 4, 8)) -> Choices:
    """Costs over ten orders of magnitude that fall with the bits, as measured ones do, and layers of many sizes."""
    rng = np.random.default_rng(seed)
    parameters = rng.choice([512, 1024, 4096, 1000], size=layers)
    cost = (
        10.0 ** rng.uniform(-8, 0, size=(layers, 1))
        * 4.0 ** -np.array(bits)
        * rng.uniform(0.8, 1.2, size=(layers, len(bits)))
    )
    size = [[intx_bytes(int(p), b, 8) for b in bits] for p in parameters]
    return Choices([f"layer{i}" for i in range(layers)], list(bits), cost, np.array(size, np.int64), parameters)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_integer_program_against_brute_force(seed, share):
    choices = random_choices(7, seed)
    smallest, largest = choices.bytes[:, 0].sum(), choices.bytes[:, -1].sum()
    limit = int(smallest + share * (largest - smallest))
    rows = np.arange(7)
    every = (np.array(c) for c in itertools.product(range(3), repeat=7))
    best = min(choices.cost[rows, c].sum() for c in every if choices.bytes[rows, c].sum() <= limit)
    solved = choices.totals(solve(choices, limit))
    assert solved["nominal_bytes"] <= limit
    assert solved["predicted"] == pytest.approx(best, rel=1e-9)


def test_frontier_is_monotone_and_never_worse_than_uniform():
    choices = random_choices(40, 0, (2, 3, 4, 6, 8))
    points = frontier(choices)
    assert [p["nominal_bytes"] for p in points] == sorted({p["nominal_bytes"] for p in points})
    assert [p["predicted"] for p in points] == sorted((p["predicted"] for p in points), reverse=True)
    for column in range(5):
        uniform = choices.totals(np.full(40, column))
        assert (
            min(p["predicted"] for p in points if p["nominal_bytes"] <= uniform["nominal_bytes"])
            <= uniform["predicted"]
        )
    assert points[-1]["nominal_bytes"] == choices.bytes[:, -1].sum()


def test_floors_hold_and_cost_no_more_than_they_must():
    choices = replace(random_choices(6, 1), floors=np.array([0, 1, 2, 0, 1, 0]))
    rows = np.arange(6)
    limit = int((choices.least_bytes() + choices.bytes[:, -1].sum()) // 2)
    every = [np.array(c) for c in itertools.product(range(3), repeat=6)]
    allowed = [c for c in every if (c >= choices.floors).all()]
    assert choices.least_bytes() == min(choices.bytes[rows, c].sum() for c in allowed)
    best = min(choices.cost[rows, c].sum() for c in allowed if choices.bytes[rows, c].sum() <= limit)
    chosen = solve(choices, limit)
    assert (chosen >= choices.floors).all()
    assert choices.totals(chosen)["predicted"] == pytest.approx(best, rel=1e-9)
    assert (random_plan(choices, limit, np.random.default_rng(0)) >= choices.floors).all()
    assert frontier(choices)[0]["nominal_bytes"] == choices.least_bytes()


def test_random_plans_fill_the_limit_and_are_worse():
    choices = random_choices(40, 2)
    limit = int(choices.bytes[:, 1].sum())
    for seed in range(5):
        chosen = random_plan(choices, limit, np.random.default_rng(seed))
        size = choices.totals(chosen)["nominal_bytes"]
        rest = [choices.bytes[i, c + 1] - choices.bytes[i, c] for i, c in enumerate(chosen) if c < 2]
        assert size <= limit < size + min(rest)
    random = random_plans(choices, limit)
    assert choices.totals(solve(choices, limit))["predicted"] < random["best"] < random["median"] < random["worst"]


def test_floors_by_kind_and_the_minimum_they_make(table, tmp_path, transformer):
    plan("tiny", [table], tmp_path / "p.json", Budget(uniform_bits=4), Plan(floors={"modulation": 8}))
    bits = load_plan(tmp_path / "p.json", transformer)["layers"]
    assert {b for name, b in bits.items() if layer_kind(name) == "modulation"} == {8}
    assert min(bits.values()) == 2
    with pytest.raises(InputError, match=r"plan\.floors: `norm` is no kind of layer; valid: modulation, "):
        plan("tiny", [table], tmp_path / "q.json", Budget(uniform_bits=4), Plan(floors={"norm": 8}))
    with pytest.raises(InputError, match=r"plan\.floors: `tiny` has no linear layer of kind `mlp_text`; it has att"):
        few = read_table(table, "sensitivity").filter(pl.col("kind") != "mlp_text")
        write_loosely(few, tmp_path / "few.parquet", "sensitivity")
        plan(
            "tiny",
            [tmp_path / "few.parquet"],
            tmp_path / "q.json",
            Budget(uniform_bits=4),
            Plan(floors={"mlp_text": 4}),
        )
    with pytest.raises(InputError, match=r"floors\.mlp: 9 is more than the measured bits"):
        plan("tiny", [table], tmp_path / "q.json", Budget(uniform_bits=4), Plan(floors={"mlp": 9}))
    with pytest.raises(InputError, match="too small; the minimum is"):
        plan("tiny", [table], tmp_path / "q.json", Budget(uniform_bits=2), Plan(floors={"modulation": 8}))


@pytest.mark.parametrize(
    ("parameters", "bits", "shared", "expected"),
    [(1024, 4, 32, 512 + 32 * 20 // 8), (1024, 8, 1024, 1024 + 3), (10, 3, 10, 7), (64, 2, 16, 16 + 4 * 18 // 8)],
)
def test_packed_bytes_count_scales_and_zero_points(parameters, bits, shared, expected):
    assert intx_bytes(parameters, bits, shared) == expected


# The stage -----------------------------------------------------------------------------------------------------------


def sensitivity_rows(
    layers: dict[str, nn.Module], group_size: int = 8, backend: str = "torch", widths=(2, 4, 8)
) -> pl.DataFrame:
    """A table `sensitivity` of made-up errors: the deeper the layer, the smaller, halved by each bit."""
    rows = []
    for depth, (name, layer) in enumerate(layers.items()):
        for bits, (factor, bucket) in itertools.product(widths, zip((1.0, 2.0, 3.0), BUCKETS, strict=True)):
            error = factor * 0.5**bits / (1 + depth)
            power = {"relative_l2": error, "sqnr_db": -20 * np.log10(error), "psnr_db": 10 - 20 * np.log10(error)}
            rows += [
                {
                    "model": "tiny", "backend": backend, "layer": name, "kind": layer_kind(name), "depth": depth,
                    "module": type(layer).__name__.lower(),
                    "bits": bits, "quantizer": "group", "group_size": group_size, "shared_weights": group_size,
                    "bucket": bucket, "metric": metric, "value": float(value), "parameters": layer.weight.numel(),
                    "packed_bytes": packed_bytes(backend, name, *layer.weight.shape[:2], bits, group_size, 4),
                }
                for metric, value in power.items()
            ]  # fmt: skip
    return pl.DataFrame(rows, schema_overrides={"packed_bytes": pl.Int64})


@pytest.fixture
def transformer() -> nn.Module:
    return tiny_generator("sd3").pipe.transformer


@pytest.fixture
def table(tmp_path: Path, transformer) -> Path:
    write_loosely(sensitivity_rows(quantizable(transformer)), tmp_path / "sensitivity.parquet", "sensitivity")
    return tmp_path / "sensitivity.parquet"


def test_cost_is_the_mean_over_buckets_of_the_noise_power(transformer):
    rows = sensitivity_rows(quantizable(transformer))
    by_l2, by_sqnr, by_psnr = (
        choices_of(rows, Plan(metric=metric)) for metric in ("relative_l2", "sqnr_db", "psnr_db")
    )
    expected = (1 + 4 + 9) / 3 * 0.25 ** np.array([2, 4, 8]) / (1 + np.arange(len(by_l2.layers)))[:, None] ** 2
    np.testing.assert_allclose(by_l2.cost, expected)
    np.testing.assert_allclose(by_sqnr.cost, expected)
    np.testing.assert_allclose(by_psnr.cost, expected / 10)
    assert choices_of(rows, Plan(min_bits=3)).bits == [4, 8]
    with pytest.raises(InputError, match=r"plan\.metric: the table `sensitivity` has no `image_rms`, but psnr_db"):
        choices_of(rows, Plan(metric="image_rms"))


def test_effect_on_images_is_that_of_all_steps_and_taken_where_it_was_measured(transformer):
    """Not the sum over buckets: errors of successive steps are alike, and their images' changes add as vectors."""
    rows = sensitivity_rows(quantizable(transformer))
    seen = rows.filter(metric="relative_l2").with_columns(pl.lit("image_rms").alias("metric"), pl.col("value") * 3)
    whole = seen.filter(bucket="early").with_columns(pl.lit("all").alias("bucket"), pl.col("value") * 5)
    assert chosen_metric(rows, "auto") == "relative_l2"
    both = pl.concat([rows, seen, whole])
    assert chosen_metric(both, "auto") == "image_rms" and chosen_metric(both, "sqnr_db") == "sqnr_db"
    np.testing.assert_allclose(
        choices_of(both, Plan()).cost[:, :, None], 225 * 3 / 14 * choices_of(rows, Plan()).cost[:, :, None]
    )


def test_plan_beats_uniform_bits_of_its_size(table, tmp_path, transformer):
    out = tmp_path / "plans/4bit.json"
    plan("tiny", [table], out, Budget(uniform_bits=4), Plan(), "4bit")
    made = load_plan(out, transformer)
    assert made["uniform"]["bits"] == 4
    assert made["nominal_bytes"] <= made["budget_bytes"] == made["uniform"]["nominal_bytes"]
    assert made["predicted"] < made["uniform"]["predicted"]
    linear = {name for name, layer in quantizable(transformer).items() if isinstance(layer, nn.Linear)}
    assert made["layers"].keys() == linear
    assert set(made["layers"].values()) <= {2, 4, 8}
    assert len(set(made["layers"].values())) > 1
    weights = {name: quantizable(transformer)[name].weight for name in made["layers"]}
    sizes = [packed_bytes("torch", n, *weights[n].shape, bits, 8, 4) for n, bits in made["layers"].items()]
    assert made["nominal_bytes"] == sum(sizes)
    first = out.read_bytes()
    plan("tiny", [table], out, Budget(uniform_bits=4), Plan(), "4bit")
    assert out.read_bytes() == first


def bits_as_stored(weight: torch.Tensor, bits: int) -> int:
    """Packed bits of a weight that torchao has quantized, counted from what it holds: values, scales, zero points."""
    names, _ = weight.__tensor_flatten__()
    held = {name: getattr(weight, name).numel() for name in names}
    assert held.keys() == {"qdata", "scale", "zero_point"}
    return held["qdata"] * bits + held["scale"] * 16 + held["zero_point"] * bits


@pytest.mark.parametrize("quantizer", ["group", "palettize"])
@pytest.mark.parametrize("group_size", [8, 16, 0])  # 16 does not divide every row
def test_plan_keeps_its_budget_as_torch_stores_it(tmp_path, transformer, quantizer, group_size):
    """Also where sensitivity was measured with one palette per tensor, which no back end stores."""
    rows = sensitivity_rows(quantizable(transformer), group_size).with_columns(pl.lit(quantizer).alias("quantizer"))
    rows = rows.with_columns(shared_weights=pl.col("parameters"))
    write_loosely(rows, tmp_path / "t.parquet", "sensitivity")
    plan("tiny", [tmp_path / "t.parquet"], tmp_path / "p.json", Budget(mean_bits=6.5))
    made, scheme = load_plan(tmp_path / "p.json", transformer), Scheme("plan", plan="b")
    rest = sum(t.nbytes for t in transformer.parameters()) + sum(t.nbytes for t in transformer.buffers())
    rest -= sum(transformer.get_submodule(name).weight.nbytes for name in made["layers"])
    assert scheme_bytes(transformer, scheme, tmp_path / "p.json") - rest == made["nominal_bytes"]
    assert scheme_bits(transformer, scheme, tmp_path / "p.json") == pytest.approx(made["mean_bits"])
    apply_scheme(transformer, scheme, tmp_path / "p.json")
    weights = {name: transformer.get_submodule(name).weight for name in made["layers"]}
    stored = sum(bits_as_stored(weights[name], bits) for name, bits in made["layers"].items())
    parameters = sum(weight.numel() for weight in weights.values())
    assert 5 < stored / parameters <= 6.5
    assert stored / 8 == pytest.approx(made["nominal_bytes"], abs=len(weights))  # a layer's last byte is whole
    assert made["full_precision"] == [] and made["backend"] == "torch"


def test_bits_that_cannot_be_stored_are_not_planned(tmp_path, transformer):
    rows = sensitivity_rows(quantizable(transformer), widths=(4, 16))
    write_loosely(rows, tmp_path / "t.parquet", "sensitivity")
    plan("tiny", [tmp_path / "t.parquet"], tmp_path / "p.json", Budget(bytes=10**9))
    assert set(load_plan(tmp_path / "p.json", transformer)["layers"].values()) == {4}
    write_loosely(rows.filter(bits=16), tmp_path / "t.parquet", "sensitivity")
    with pytest.raises(InputError, match=r"sensitivity.bits \[16\], .*no layer of `tiny` can be stored so"):
        plan("tiny", [tmp_path / "t.parquet"], tmp_path / "p.json", Budget(bytes=10**9))
    for group_size, bits in ((48, 4), (32, 7)):
        rows = sensitivity_rows(quantizable(transformer), group_size, "mlx", (bits,))
        write_loosely(rows, tmp_path / "t.parquet", "sensitivity")
        with pytest.raises(InputError, match=r"can be stored so; mlx packs bits of \(2, 3, 4, 5, 6, 8\) in groups of"):
            plan("tiny", [tmp_path / "t.parquet"], tmp_path / "p.json", Budget(bytes=10**9))


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (
            Budget(mean_bits=1.5),
            r"plan\.budgets\.b: \d+ bytes \(1\.\d+ mean bits\) is too small; the minimum is \d+ bytes \(4\.\d+ ",
        ),
        (Budget(bytes=10), r"10 bytes .* the minimum is \d+ bytes"),
        (Budget(), r"set exactly one of mean_bits, bytes and uniform_bits \(set: none\)"),
        (Budget(mean_bits=4.0, bytes=5), r"\(set: mean_bits, bytes\)"),
        (
            Budget(uniform_bits=3),
            r"uniform_bits: 3 is not among those that were measured and can be stored: \[2",
        ),
    ],
)
def test_impossible_budgets_say_why(table, tmp_path, budget, message):
    with pytest.raises(InputError, match=message):
        plan("tiny", [table], tmp_path / "plan.json", budget, budget_name="b")
    assert not (tmp_path / "plan.json").exists()


def test_minimum_in_the_message_is_possible(table, tmp_path, transformer):
    choices = choices_of(sensitivity_rows(quantizable(transformer)), Plan())
    with pytest.raises(InputError) as caught:
        budget_bytes(choices, Budget(bytes=10), "b")
    least = int(str(caught.value).split("the minimum is ")[1].split()[0])
    assert choices.totals(solve(choices, least))["nominal_bytes"] == least
    with pytest.raises(InputError):
        budget_bytes(choices, Budget(bytes=least - 1), "b")


def test_rows_that_would_count_twice_and_mixed_measurements_are_refused(table, tmp_path, transformer):
    out, rows = tmp_path / "plan.json", sensitivity_rows(quantizable(transformer))
    fast, other = tmp_path / "fast.parquet", tmp_path / "other.parquet"
    write_loosely(rows.with_columns(value=2 * pl.col("value")), fast, "sensitivity")
    for again in (table, fast):
        with pytest.raises(InputError, match=r"sensitivity\.parquet.*: the row of model tiny, layer .*more than once"):
            plan("tiny", [table, again], out, Budget(uniform_bits=4))
    first = "proj_out"
    write_loosely(rows.filter(pl.col("layer") != first), table, "sensitivity")
    changes = {"group_size": pl.lit(7, pl.Int64), "quantizer": pl.lit("x"), "backend": pl.lit("mlx")}
    for column, value in changes.items():
        write_loosely(rows.filter(pl.col("layer") == first).with_columns(value.alias(column)), other, "sensitivity")
        with pytest.raises(InputError, match=f"measured with {column} .* and .*; give tables of one"):
            plan("tiny", [table, other], out, Budget(uniform_bits=4))
    write_loosely(rows.filter(pl.col("layer") == first), other, "sensitivity")
    plan("tiny", [table, other], out, Budget(uniform_bits=4))
    assert "proj_out" in json.loads(out.read_text())["layers"]


def test_unknown_model_and_incomplete_table(table, tmp_path, transformer):
    with pytest.raises(InputError, match="no rows of model `other`"):
        plan("other", [table], tmp_path / "plan.json", Budget(uniform_bits=4))
    rows = sensitivity_rows(quantizable(transformer)).filter(~((pl.col("layer") == "proj_out") & (pl.col("bits") == 4)))
    write_loosely(rows, table, "sensitivity")
    with pytest.raises(InputError, match="lacks bit widths of some layers"):
        plan("tiny", [table], tmp_path / "plan.json", Budget(uniform_bits=4))


def test_broken_plans_are_refused(tmp_path, transformer):
    path = tmp_path / "plan.json"
    with pytest.raises(InputError, match="no such plan"):
        load_plan(path)
    good = {"schema_version": "1", "group_size": 8, "layers": {"proj_out": 4}}
    for content, message in (
        ("{", "not a bit plan"),
        ("[]", "not a bit plan"),
        (json.dumps(good | {"schema_version": "0"}), "schema version 0, this ditscope reads 1"),
        (json.dumps(good | {"layers": {"proj_out": 16}}), "layer `proj_out` has 16 bits"),
        (json.dumps(good | {"layers": {"proj_in": 4}}), "the model has no layer `proj_in`"),
        (json.dumps(good | {"layers": {"pos_embed.proj": 4}}), "layer `pos_embed.proj` is a convolution"),
    ):
        path.write_text(content)
        with pytest.raises(InputError, match=f"^{path}: .*{message}"):
            load_plan(path, transformer)


def test_export_quantizes_every_layer_to_the_measured_weights(table, tmp_path, transformer):
    out = tmp_path / "plan.json"
    plan("tiny", [table], out, Budget(uniform_bits=4))
    made = load_plan(out, transformer)
    before = {name: layer.weight.detach().clone() for name, layer in quantizable(transformer).items()}
    quantize_(transformer, to_fqn_config(made, transformer), filter_fn=None)
    for name, layer in quantizable(transformer).items():
        if name in made["layers"]:
            expected = group_affine(before[name], made["layers"][name], made["group_size"])
            torch.testing.assert_close(layer.weight.dequantize(), expected, atol=1e-6, rtol=0)
        else:
            assert torch.equal(layer.weight, before[name])
    args = {"hidden_states": torch.randn(1, 4, 16, 16), "timestep": torch.tensor([500.0])}
    text = {"encoder_hidden_states": torch.randn(1, 5, 24), "pooled_projections": torch.randn(1, 20)}
    with torch.no_grad():
        assert transformer(**args, **text, return_dict=False)[0].isfinite().all()
