"""Which rules an edit makes stale: places of the library edited one at a time, against a written expectation."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from ditscope.config_files import read_config
from ditscope.core.schema import STAGE_OF
from ditscope.models.registry import is_generator, module_of_family
from ditscope.models.settings import EMBEDDER_FAMILIES, SCHEMES
from ditscope.publish.figures import ANSWERING, FIGURES, PAPER_TABLES
from ditscope.refine.data_settings import ADAPTERS, SOURCES, adapter_of
from ditscope.refine.settings import ENCODERS, INTERPOLATIONS
from ditscope.sensitivity.back_ends import BACK_ENDS
from ditscope.workflow import staleness
from workflow import ROOT

CONFIG = read_config([ROOT / "experiments/tiny.yaml"])


def digested() -> dict[str, set[str]]:
    """The modules whose code each rule's parameters digest, in the tiny study."""
    models = [CONFIG.models[name] for name in CONFIG.selected_models()]
    families = {module_of_family(entry) for entry in models if is_generator(entry)}
    embedders = {EMBEDDER_FAMILIES[entry.family] for entry in CONFIG.embedders.values()}
    schemes = {SCHEMES[CONFIG.schemes[name].kind] for name in CONFIG.benchmark.schemes}
    variants = {entry.partition(":")[2] for name in CONFIG.trajectories.networks for entry in CONFIG.networks[name]}
    in_networks = {SCHEMES[CONFIG.schemes[name].kind] for name in variants & CONFIG.schemes.keys()}
    by_helper = {
        "model_params(": families,
        "network_params(": families | in_networks,
        "scheme_params(": schemes,
        "embedder_params(": embedders,
        "chosen_embedders(": embedders,
        "sensitivity_code(": {"ditscope.sensitivity.stage", BACK_ENDS["torch"]},
        "declarations(": {f"ditscope.{stage}.tables" for stage in STAGE_OF.values()},
        "=interpolation_digest": {INTERPOLATIONS[CONFIG.refine.interpolation]},
        "=storyboard_interpolation": {INTERPOLATIONS[CONFIG.refine.interpolation]},
        "=encoder_digest": {ENCODERS[CONFIG.refine.encoder]},
        "=refiner_source": {plugin for kinds in map(kinds_of, CONFIG.refine.refiners) for plugin in kinds},
        "figure_rooms(": {f"ditscope.{figure.source}" for figure in FIGURES.values()},
        "in answer_inputs(": {f"ditscope.{stage}.answer" for stage in ANSWERING},
        "in paper_table_inputs(": {f"ditscope.{stage}.figures" for stage in PAPER_TABLES.values()},
    }
    rules = {}
    for file in sorted((ROOT / "rules").glob("*.smk")):
        for block in re.split(r"^rule ", file.read_text(), flags=re.M)[1:]:
            modules = {f"ditscope.{name}" for name in re.findall(r'code\("([\w.]+)"\)', block)}
            modules |= {module for helper, used in by_helper.items() if helper in block for module in used}
            if modules:
                rules[block[: block.index(":")]] = modules
    return rules


def kinds_of(refiner: str) -> set[str]:
    """The modules of a refiner's source and adapter."""
    source = CONFIG.refiners[refiner].source
    return {SOURCES[source.kind], ADAPTERS[adapter_of(source)]}


RULES = digested()


ALL = set(RULES)
OWN = {
    "import_images",
    "import_captures",
    "analysis",
    "refine_storyboard",
    "sensitivity_formats",
}  # of what users bring of their own, which the tiny study has not
# Rules whose jobs sample pictures, make features of them or quantize a transformer.
SAMPLE = {"image_shard", "capture_set", "ablation", "calibration_shard", "sensitivity_layers", "benchmark_run"}
SAMPLE |= {"trajectory_shard", "import_images"}
EMBED = {"embedding_shard", "block_analysis", "ablation", "benchmark_quality"}
FORMATS = {"sensitivity_formats", "bit_plan"}  # what measures and assigns formats, which are schemes
QUANTIZE = {"benchmark_run", "quantized_checkpoint", "trajectory_shard"}
DOCSTRING, COMMENT = '"""Reworded."""\n', "# Why, in other words.\n"
CODE = "ANOTHER = 1\n"
# What is edited (below scripts/ditscope), what is put at its end (a docstring: at its beginning), and what that
# makes stale by its code. What these rules leave makes others stale in turn.
EDITS = [
    ("capture/stage.py", DOCSTRING, set()),
    ("capture/stage.py", COMMENT, set()),
    ("capture/stage.py", CODE, {"capture_set"}),
    ("capture/recorder.py", CODE, {"capture_set"}),
    ("capture/settings.py", CODE, set()),
    ("capture/check.py", CODE, set()),
    ("capture/figures.py", CODE, {"figures"}),
    (
        "capture/files.py",
        CODE,
        {"capture_set", "import_captures", "block_analysis", "capture_video", "figures", "explorer"},
    ),
    ("generate/stage.py", CODE, {"image_shard", "import_images"}),
    ("generate/settings.py", DOCSTRING, set()),
    ("models/requests.py", CODE, SAMPLE - {"calibration_shard", "sensitivity_layers"}),
    ("models/sampling.py", CODE, SAMPLE | {"refine_diagnose", "quantized_checkpoint", "sensitivity_formats"}),
    ("models/families/wan.py", CODE, set()),
    ("models/families/sdxl.py", CODE, set()),
    ("models/families/flux.py", CODE, SAMPLE | {"quantized_checkpoint", "refine_diagnose", "sensitivity_formats"}),
    ("models/families/__init__.py", DOCSTRING, set()),
    ("models/schemes/int8_weight_only.py", CODE, {"benchmark_run", "quantized_checkpoint"} | FORMATS),
    ("models/schemes/intx_weight_only.py", CODE, {"trajectory_shard"}),
    ("models/schemes/fp8_dynamic_row.py", CODE, set()),
    ("models/quantize.py", CODE, QUANTIZE | {"sensitivity_formats"}),
    ("models/schemes/gptq.py", CODE, set()),
    ("models/emulate/gptq.py", CODE, set()),
    ("models/emulate/formats.py", CODE, QUANTIZE | FORMATS),
    ("calibrate/load.py", CODE, QUANTIZE | {"sensitivity_layers", "sensitivity_formats"}),
    ("models/embedders/towers.py", CODE, EMBED | {"refine_diagnose"}),
    ("models/captioners.py", CODE, {"trajectory_shard"}),
    ("models/dummy_captioner.py", CODE, set()),
    ("models/families/dummy.py", CODE, set()),
    ("models/mlx/transformer.py", CODE, set()),
    ("models/hardware.py", CODE, set()),
    ("core/films.py", CODE, {"capture_video", "trajectory_video", "refine_diagnose", "refine_storyboard"}),
    ("video/stage.py", CODE, {"capture_video"}),
    ("video/mosaic.py", CODE, {"trajectory_video"}),
    ("video/grid.py", CODE, {"trajectory_video", "timelines"}),
    ("video/timeline.py", CODE, {"timelines"}),
    ("embed/files.py", CODE, {"drift", "cluster", "topology", "figures"}),
    ("drift/series.py", CODE, {"drift"}),
    ("drift/figures.py", CODE, {"figures", "paper_tables"}),
    ("cluster/__init__.py", CODE, {"cluster", "figures", "paper_tables", "explorer", "catalog", "answers", "captions"}),
    ("drift/answer.py", CODE, {"answers"}),
    ("publish/captions.py", CODE, {"captions"}),
    ("benchmark/recommend.py", CODE, {"benchmark_table"}),
    ("benchmark/quiet.py", CODE, {"benchmark_run"}),
    ("refine/drifting.py", CODE, {"refine_train", "refine_diagnose"}),
    ("refine/corruption.py", CODE, {"refine_train", "refine_diagnose", "refine_storyboard"}),
    ("refine/interpolations/laplacian.py", CODE, {"refine_train", "refine_diagnose", "refine_storyboard"}),
    ("refine/interpolations/sinkhorn.py", CODE, set()),
    ("style.py", CODE, {"figures", "paper_tables", "explorer"}),
    ("core/errors.py", CODE, set()),
    ("core/settings.py", CODE, set()),
    ("core/tables.py", CODE, ALL - {"catalog", "capture_video"}),
    ("core/atomic.py", CODE, ALL),
    ("workflow/job.py", CODE, set()),
    ("workflow/doctor.py", CODE, set()),
    ("shapes/oracle.py", CODE, {"drift", "refine_diagnose", "refine_storyboard"}),
    ("config.py", CODE, set()),
    ("cli.py", CODE, set()),
]


def test_no_job_ran_code_that_its_digest_does_not_cover(study):
    """Of every job of the tiny study, the modules of the library that its process had loaded as it ended."""
    traced = [json.loads(file.read_text()) for file in (study / ".traced").glob("*.json")]
    if not traced:
        pytest.skip("the study of DITSCOPE_STUDY was not run by these tests, and its jobs left no traces")
    assert {job["rule"] for job in traced} == ALL - OWN
    closures = {rule: {n for m in modules for n in staleness.import_closure(m)} for rule, modules in RULES.items()}
    code = "import sys, ditscope.workflow.job; print(*sys.modules)"  # what every script has loaded before its stage
    harness = subprocess.check_output(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": "scripts"}, cwd=ROOT
    )
    uncovered = {
        (job["rule"], module)
        for job in traced
        for module in job["modules"]
        if module not in closures[job["rule"]] and module not in harness.decode().split()
        if not staleness.never_counts(module)
    }
    assert not uncovered


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """A copy of the library in place of it."""
    copy = tmp_path_factory.mktemp("copy")
    shutil.copytree(staleness.SCRIPTS, copy / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(staleness, "SCRIPTS", copy / "scripts")
        patch.setattr(staleness, "CACHE", copy / "cache")
        forget()
        yield copy / "scripts" / "ditscope"
    forget()


def forget() -> None:
    """Read every module anew, as the next parse would."""
    for remembered in (staleness.import_closure, staleness.module_path, staleness.facts_of):
        remembered.cache_clear()


def digests() -> dict[str, list[str]]:
    return {rule: [staleness.code_digest(module) for module in sorted(modules)] for rule, modules in RULES.items()}


def test_every_rule_that_runs_the_library_digests_code():
    with_script = set()
    for file in (ROOT / "rules").glob("*.smk"):
        for block in re.split(r"^rule ", file.read_text(), flags=re.M)[1:]:
            with_script |= {block[: block.index(":")]} if "script:" in block else set()
    assert with_script - ALL == {"download_model"}, "weights are what their commit says, whatever fetched them"


@pytest.mark.parametrize(("file", "edit", "stale"), EDITS, ids=[f"{file}: {edit.strip()}" for file, edit, _ in EDITS])
def test_an_edit_makes_exactly_these_rules_stale(library, file, edit, stale):
    path = library / file
    before, source = digests(), path.read_text()
    try:
        if edit == DOCSTRING:
            body = source[source.index('"""', 3) + 3 :] if source.startswith('"""') else source
            path.write_text(edit + body)
        else:
            path.write_text(source + "\n\n" + edit)
        forget()
        after = digests()
    finally:
        path.write_text(source)
        forget()
    assert {rule for rule in before if before[rule] != after[rule]} == stale
