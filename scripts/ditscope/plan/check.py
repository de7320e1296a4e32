"""What `ditscope doctor` checks of the stage `plan`."""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ditscope.core.study import Study, alike
from ditscope.models.bit_plan import FORMATS_VERSION, SCHEMA_VERSION
from ditscope.sensitivity.check import parts_of, sensitivity_quietly


def check_plan(study: Study) -> None:
    """Plans choose a measured bit width for every linear layer, keep their budget, and are what sensitivity gives."""
    table = sensitivity_quietly(study)
    for file in study.targets("plan"):
        plan = study.json("plan", file, versions=(SCHEMA_VERSION, FORMATS_VERSION))
        if plan is None:
            continue
        _, model, name = file.split("/")
        with study.noting("plan", file):
            study.same("plan", file, plan, {"model": model, "budget": name.removesuffix(".json")})
            if study.config.plan.metric != "auto":
                study.same("plan", file, plan, {"metric": study.config.plan.metric})
            if "formats" in plan:
                check_format_plan(study, file, plan, name.removesuffix(".json"))
                continue
            if plan["nominal_bytes"] > plan["budget_bytes"]:
                study.note("plan", file, f"takes {plan['nominal_bytes']} bytes of {plan['budget_bytes']}")
            if unknown := set(plan["layers"].values()) - set(study.config.sensitivity.bits):
                study.note("plan", file, f"chooses {unknown.pop()} bits, which were not measured")
            if table is not None:
                rows = table.filter((pl.col("model") == model) & (pl.col("module") == "linear"))
                measured = sorted(rows["layer"].unique())
                planned = sorted([*plan["layers"], *plan["full_precision"]])
                study.same_rows("plan", file, planned, measured, "measured layers")
                for key in ("quantizer", "group_size"):
                    if len(rows) and plan[key] != rows[key][0]:
                        problem = f"made with {key} {plan[key]!r}, sensitivity was measured with {rows[key][0]!r}"
                        study.note("plan", file, problem)
                check_solution(study, file, plan, rows, name.removesuffix(".json"))


def check_format_plan(study: Study, file: str, plan: dict[str, Any], budget: str) -> None:
    """A plan over formats is what its tables give; of several equally good assignments any will do."""
    from ditscope.plan.formats import FREE, plan_formats
    from ditscope.sensitivity.files import format_file

    settings, table = study.config.plan.budgets[budget], study.results / format_file(plan["model"])

    def solved() -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            out, times = Path(folder) / "plan.json", [table.with_suffix(".timing.parquet")]
            plan_formats(plan["model"], [table], out, settings, budget, study.config.schemes, times)
            return json.loads(out.read_text())

    wanted = study.once(f"plan {plan['model']} {budget}", solved)
    for key, value in wanted.items():
        if key not in FREE and not alike(plan.get(key), value):
            study.note("plan", file, f"its `{key}` is not what the table `sensitivity.formats` gives")
    for key in ("layers", "assignment"):
        study.same_rows("plan", file, sorted(plan[key]), sorted(wanted[key]), "measured layers")
    if not alike(sum(plan["layers"].values()), sum(wanted["layers"].values()), 1e-3, 1e-2):
        study.note("plan", file, "its `layers` are not the bits of its assignment")


def check_solution(study: Study, file: str, plan: dict[str, Any], rows: pl.DataFrame, budget: str) -> None:
    """A plan is solved again; of several equally good ones any will do, if its totals are those of its layers."""
    from ditscope.plan.stage import can_be_stored, choices_of

    model, settings = plan["model"], study.config.plan

    def solved() -> dict[str, Any]:
        from ditscope.plan import stage

        with tempfile.TemporaryDirectory() as folder:
            tables = [study.results / part for part in parts_of(study, "layers") if part.split("/")[1] == model]
            out = Path(folder) / "plan.json"
            stage.plan(model, tables, out, study.config.plan.budgets[budget], settings, budget)
            return json.loads(out.read_text())

    wanted = study.once(f"plan {model} {budget}", solved)
    for key, value in wanted.items():
        if key != "layers" and not alike(plan.get(key), value):
            study.note("plan", file, f"its `{key}` is not what the sensitivity table gives")
    choices = choices_of(can_be_stored(rows.sort("depth", "layer", "bits", "bucket", "metric")), settings)
    if set(choices.layers) == set(plan["layers"]) and set(plan["layers"].values()) <= set(choices.bits):
        chosen = np.array([choices.bits.index(plan["layers"][layer]) for layer in choices.layers])
        for key, value in choices.totals(chosen).items():
            if not alike(plan.get(key), value):
                study.note("plan", file, f"its `{key}` is not that of its layers' bits")
