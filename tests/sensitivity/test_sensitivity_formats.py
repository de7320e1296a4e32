"""Sensitivity by format against sampling again with the layer in that format, and against a plain loop of products."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

from ditscope.calibrate import stage as calibrate_stage
from ditscope.calibrate.settings import Calibrate
from ditscope.core.errors import InputError
from ditscope.core.tables import read_table
from ditscope.models.quantize import nominal_bytes
from ditscope.models.sampling import pictures, sample
from ditscope.models.schedule_parts import PIECES, piece_of_step
from ditscope.models.settings import Scheme
from ditscope.plan.formats import menu_of
from ditscope.plan.settings import Budget
from ditscope.sensitivity import formats as module
from ditscope.sensitivity.check import format_faults, timing_faults
from ditscope.sensitivity.formats import known_formats, quantized_copy, steps_of_pieces, weight_alone
from ditscope.sensitivity.settings import Sensitivity
from ditscope.sensitivity.tables import FORMATS, FORMATS_TIMING
from mutations import column_mutants, row_mutants
from tiny_models import ENTRIES, tiny_generator

SCHEMES = {
    "low": Scheme("intx-weight-only", bits=4),
    "w8a8": Scheme("int8-dynamic", skip_layers=["proj_out"]),
    "base": Scheme("base"),
    "plan": Scheme("plan", plan="b"),
    "fused": Scheme("int8-weight-only", fuse_qkv=True),
}
STEPS = 4


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A tiny model, and its tables."""
    folder, model = tmp_path_factory.mktemp("formats"), tiny_generator("sd3")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibrate_stage, "load_generator", lambda name, entry: model)
        patch.setattr(module, "load_generator", lambda name, entry: model)
        (folder / "p.csv").write_text("prompt\na\nb\n")
        made = Calibrate(num_images=2, num_steps=STEPS, cfg_weight=3.0, statistics="")
        calibrate_stage.calibrate("tiny", ENTRIES["sd3"], folder / "p.csv", folder / "set", made)
        names = ["low", "w8a8", "base"]
        settings = Sensitivity(probes=40, gradient_batch=10)
        module.sensitivity_formats(
            "tiny", ENTRIES["sd3"], folder / "set", folder / "formats.parquet", SCHEMES, names, settings,
            folder / "times.parquet",
        )  # fmt: skip
    return model, folder


def test_predicted_change_is_that_of_sampling_again(measured):
    """One layer at a time, quantized in all steps: mean square change of the pictures' values."""
    model, folder = measured
    table = read_table(folder / "formats.parquet", "sensitivity.formats")
    asked, transformer = (["a", "b"], ["", ""], [0, 1]), model.pipe.transformer

    def finished() -> torch.Tensor:
        return pictures(model, sample(model, *asked, steps=STEPS, guidance=3.0)).double()

    with torch.no_grad():
        reference = finished()
        for layer, name in [("transformer_blocks.0.ff.net.2", "low"), ("transformer_blocks.1.ff.net.2", "w8a8")]:
            rows = table.filter(layer=layer)
            menu = menu_of(rows, Budget(formats=["low", "w8a8", "base"]), None)
            predicted = menu.cost[0, menu.combinations.index((name,))]
            own = transformer.get_submodule(layer)
            config = module.kind_of(SCHEMES[name]).config(SCHEMES[name])
            transformer.set_submodule(layer, quantized_copy(own, config, torch.float32))
            changed = (finished() - reference).square().mean()
            transformer.set_submodule(layer, own)
            assert predicted == pytest.approx(float(changed), rel=0.6)
            assert menu.cost[0, menu.combinations.index(("base",))] == 0


def test_rows_hold_each_pair_of_cells_once_and_sizes_of_the_scheme(measured):
    model, folder = measured
    table = read_table(folder / "formats.parquet", "sensitivity.formats")
    layers = [n for n, m in model.pipe.transformer.named_modules() if isinstance(m, nn.Linear)]
    assert set(table["layer"]) == set(layers) and set(table["metric"]) == {"image_rms"}
    for layer, rows in table.group_by("layer"):
        formats = 2 if layer[0] == "proj_out" else 3  # its filter leaves proj_out
        cells = formats * 4  # of 4 steps none is in `late`
        assert len(rows) == cells * (cells + 1) // 2
    assert steps_of_pieces(STEPS) == {"first": 1, "early": 1, "mid": 1, "last": 1}
    squares = table.filter(pl.col("format") == pl.col("other_format"), pl.col("piece") == pl.col("other_piece"))
    assert (squares["moment"] >= 0).all()
    sizes = table.filter(format="low").select("layer", "format_bytes", "full_bytes").unique()
    transformer = model.pipe.transformer
    whole = nominal_bytes(transformer, SCHEMES["base"])
    assert nominal_bytes(transformer, SCHEMES["low"]) - whole == (sizes["format_bytes"] - sizes["full_bytes"]).sum()
    times = read_table(folder / "times.parquet", "sensitivity.formats.timing")
    assert times.filter(layer="proj_out")["format"].to_list() == ["full", "low", "base"]
    assert (times["latency_median_ms"] > 0).all()


def test_by_step_moments_make_up_any_choice(measured):
    """Second moments are those of some vectors: no choice of formats for the parts has a negative cost."""
    _, folder = measured
    table = read_table(folder / "formats.parquet", "sensitivity.formats")
    for steps in ("thirds", "edges"):
        menu = menu_of(table, Budget(formats=["low", "w8a8", "base"], steps=steps), None)
        assert (menu.cost >= -1e-18).all()
        assert menu.permitted[menu.layers.index("proj_out")].sum() == 2 ** len(menu.parts)
    whole = menu_of(table, Budget(formats=["low"], steps="all"), None).cost
    np.testing.assert_allclose(menu_of(table, Budget(formats=["low"], steps="thirds"), None).cost, whole, rtol=1e-9)


def test_only_formats_of_weights_are_taken_for_them():
    torch.manual_seed(0)
    layer = nn.Linear(32, 16)
    for scheme, alone in ((Scheme("intx-weight-only", bits=3, group_size=8), True), (Scheme("int8-weight-only"), True),
                          (Scheme("fp8-weight-only"), True), (Scheme("int8-dynamic"), False)):  # fmt: skip
        copied = quantized_copy(layer, module.kind_of(scheme).config(scheme), torch.float32)
        weight = weight_alone(copied, layer)
        assert (weight is not None) == alone
        assert weight is None or torch.equal(weight, copied.weight.dequantize())
    assert weight_alone(quantized_copy(layer, None, torch.float32), layer) is not None
    assert [piece_of_step(i, 1) for i in range(1)] == [PIECES[0]]


# No check can see these: they need the probes, the clock or the weights again.
UNSEEN = {"moment", "n_images", "n_probes", "format_bytes", "latency_median_ms", "latency_p10_ms", "latency_p90_ms"}


def test_every_falsified_column_is_found(measured):
    """What the doctor says of the tables, in which one column is falsified at a time."""
    _, folder = measured
    table = read_table(folder / "formats.parquet", "sensitivity.formats")
    times = read_table(folder / "times.parquet", "sensitivity.formats.timing")
    asked = {"low", "w8a8", "base"}
    assert not [*format_faults(table, "tiny", asked), *timing_faults(times, table)]

    def found(frame: pl.DataFrame, declared) -> bool:
        if [*declared.faults(frame)]:
            return True
        faults = format_faults(frame, "tiny", asked) if declared is FORMATS else timing_faults(frame, table)
        return bool([*faults])

    unseen = {
        column
        for frame, declared in ((table, FORMATS), (times, FORMATS_TIMING))
        for column in ["", *frame.columns]
        for what, mutant in (column_mutants(frame, column) if column else row_mutants(frame))
        if not found(mutant, declared)
    }
    assert unseen <= UNSEEN
    broken = table.with_columns(moment=-pl.col("moment"))
    assert any("no effects" in fault for fault in format_faults(broken, "tiny", asked))


@pytest.mark.parametrize(
    ("formats", "message"),
    [
        ([], "formats: name at least one entry"),
        (["int5"], r"formats: `int5` is not in the config's `schemes`|formats.*int5"),
        (["plan"], "formats: `plan` is no format of a single layer"),
        (["fused"], "formats: `fused` is no format of a single layer"),
    ],
)
def test_what_is_no_format(formats, message):
    with pytest.raises(InputError, match=message):
        known_formats(formats, SCHEMES)


def test_a_set_of_another_model_and_what_cannot_run_here(measured, tmp_path, monkeypatch):
    model, folder = measured
    with pytest.raises(InputError, match="made with model `tiny`, not `other`; calibrate `other`"):
        module.sensitivity_formats("other", ENTRIES["sd3"], folder / "set", tmp_path / "f.parquet", SCHEMES, ["low"])
    monkeypatch.setattr(module, "load_generator", lambda name, entry: model)
    cuda = {"fp8": Scheme("fp8-dynamic-row")}
    with pytest.raises(InputError, match=r"formats: `fp8`: fp8-dynamic-row needs CUDA .*; leave it out here"):
        module.sensitivity_formats("tiny", replace(ENTRIES["sd3"], dtype="bfloat16"), folder / "set",
                                   tmp_path / "f.parquet", cuda, ["fp8"])  # fmt: skip
