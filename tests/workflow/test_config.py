"""The config: what is refused, with which words, and that schema, reference and config.yaml agree."""

import copy
import datetime
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_type_hints

import jsonschema
import pytest
import yaml

from ditscope.config import Config, load_config
from ditscope.config_files import read_config
from ditscope.core.errors import InputError
from ditscope.core.ranges import complaint
from ditscope.core.settings import decode, plain
from ditscope.core.yaml_file import read_yaml
from ditscope.workflow.reference import json_schema, reference

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def data():
    return yaml.safe_load((ROOT / "config.yaml").read_text())


def put(data, path, value):
    """`data` with the dotted `path` set to `value`."""
    data = copy.deepcopy(data)
    *folders, last = path.split(".")
    section = data
    for folder in folders:
        section = section.setdefault(folder, {})
    section[last] = value
    return data


REFUSALS = {
    "misspelt section": ("generat", {}, "generat: `generat` is not a setting; did you mean `generate`?"),
    "misspelt key": ("video.fsp", 2.0, "video.fsp: `fsp` is not a setting; did you mean `fps`?"),
    "misspelt key of an entry": ("models.shapes-flux.widht", 64, "did you mean `width`?"),
    "far-off key": ("plan.zzzz", 1, "plan.zzzz: `zzzz` is not a setting; valid: budgets"),
    "number for a list": ("prompts.seeds", 3, "prompts.seeds: expected a list, got 3"),
    "text in a list of numbers": ("prompts.seeds", [0, "one"], "prompts.seeds[1]: expected int, got 'one'"),
    "fraction for an integer": ("generate.slice_size", 1.5, "generate.slice_size: expected int, got 1.5"),
    "truth value for a number": ("video.fps", True, "video.fps: expected float, got True"),
    "text for a truth value": ("benchmark.skip_metrics", "no", "expected bool, got 'no'"),
    "nothing where a map belongs": ("video", None, "video: expected a map of settings, got None"),
    "list for a map": ("models", [], "models: expected a map, got []"),
    "missing required key": ("models.new", {"family": "flux"}, "models.new: the required key `source` is missing"),
    "format of figures": ("publish.formats", ["jpg"], "publish.formats: `jpg` is not one of svg, png, pdf"),
    "no format of figures": ("publish.formats", [], "the list is empty"),
    "a decode": ("capture.sets.x.decode", ["x1"], "`x1` is not one of x0, x_prev"),
    "a compile state": ("benchmark.compile", ["ful"], "did you mean `full`?"),
    "misspelt choice": ("video.output_format", "gfi", "`gfi` is not one of gif, mp4, mp4-h265; did you mean `gif`?"),
    "misspelt scheme kind": ("schemes.int4.kind", "int8-weight-onli", "did you mean `int8-weight-only`?"),
    "unknown model": ("generate.models", ["shape-flux"], "did you mean `shapes-flux`?"),
    "unknown scheme": ("benchmark.schemes", ["int-8"], "is not in the config's `schemes`"),
    "unknown network": ("trajectories.networks", ["flux-bilp"], "did you mean `flux-blip`?"),
    "unknown embedder": ("embed.embedders", ["minilm2"], "did you mean `minilm`?"),
    "unknown model of a network": ("networks.flux-blip", ["shapes-flx", "shapes-blip"], "did you mean `shapes-flux`?"),
    "unknown scheme of a network": ("networks.flux-blip", ["shapes-flux:int5", "shapes-blip"], "did you mean `int4`?"),
    "captioner first in a network": ("networks.flux-blip", ["shapes-blip", "shapes-flux"], "starts with a generator"),
    "unknown budget of a scheme": ("schemes.plan-4bit.plan", "4bits", "did you mean `4bit`?"),
    "width not a multiple of 16": (
        "models.shapes-flux.width",
        72,
        "models.shapes-flux.width: 72 is not a multiple of 16",
    ),
    "zero where it means nothing": ("sensitivity.step_stride", 0, "sensitivity.step_stride: 0 is not above 0"),
    "negative count": ("sensitivity.max_images", -1, "sensitivity.max_images: -1 is below 0"),
    "zero in a list": ("sensitivity.bits", [0, 4], "sensitivity.bits: 0 is not above 0"),
    "too many bits": ("sensitivity.bits", [4, 33], "sensitivity.bits: 33 is more than 16"),
    "the same twice": ("sensitivity.bits", [4, 3, 4], "sensitivity.bits: 4 is named twice"),
    "a seed twice": ("prompts.seeds", [-1, 0, -1, 0], "prompts.seeds: 0 is named twice"),
    "a model twice": ("generate.models", ["shapes-flux"] * 2, "generate.models: shapes-flux is named twice"),
    "empty list": ("sensitivity.bits", [], "sensitivity.bits: the list is empty; name at least one"),
    "number in a map": ("plan.floors", {"modulation": 40}, "plan.floors: 40 is more than 16"),
    "number of an entry": ("models.shapes-flux.steps", 0, "models.shapes-flux.steps: 0 is not above 0"),
    "share above one": ("refine.mask_ratio", 1.5, "refine.mask_ratio: 1.5 is more than 1"),
    "not a number": ("video.fps", float("nan"), "video.fps: nan is not a finite number"),
    "experiment with a slash": ("experiment", "a/b", "experiment: `a/b` is not a plain name; use letters, digits"),
    "braces in the path of the CSV": (
        "prompts.csv",
        "a {b}.csv",
        "prompts.csv: `a {b}.csv` has a {, by which Snakemake",
    ),
    "experiment up and out": ("experiment", "..", "experiment: `..` is not a plain name"),
    "seed beyond 2^63 - 1": ("prompts.seeds", [2**63], "prompts.seeds: 9223372036854775808 is more than 2^63 - 1"),
    "seed below -1": ("prompts.seeds", [-2], "prompts.seeds: -2 is below 0 and not -1"),
    "other number beyond 2^63 - 1": ("prompts.limit", 2**64, "prompts.limit: 18446744073709551616 is more than 2^63"),
    "length beyond 2^31 - 1": ("trajectories.max_length", 2**31, "is more than 2147483647"),
    "number in quotes": ("models.shapes-flux.steps", "8", "expected int, got '8'; write 8, without quotes"),
    "number with an exponent": ("models.shapes-flux.steps", "1e3", "got '1e3'; write 1000, without quotes"),
    "fraction with an exponent": ("refine.learning_rate", "1e-4", "got '1e-4'; write 1.000000e-04, without quotes"),
    "bare yes for text": ("embedders.minilm.prompt", True, "(YAML reads true (or yes, on) as a truth value); write it"),
    "date for text": ("experiment", datetime.date(2026, 1, 2), "(YAML reads 2026-01-02 as a date); write it in quotes"),
    "name that is a number": (
        "models",
        {1.1: {}},
        "models: YAML reads 1.1 as a number, not a name; write it in quotes",
    ),
    "name that is a truth value": ("schemes", {False: {}}, "schemes: YAML reads false (or no, off) as a truth value"),
    "steps that leave a third without a sample": (
        "sensitivity.step_stride",
        25,
        "every 25th of 8 steps (model `shapes-flux`) leaves a third of them without a sample; set it lower",
    ),
    "a judge of paths": (
        "refiners.pictures.source",
        {"kind": "mazes"},
        "refiners.pictures: its values are no pictures to judge; set `judge: ''` in its settings",
    ),
    "refiner's source without a folder": (
        "refiners.pictures.source",
        {"kind": "shards"},
        "refiners.pictures.source.folder: name the folder of the `shards`",
    ),
    "refiner's source without a VAE": (
        "refiners.pictures.source",
        {"kind": "renders"},
        "refiners.pictures.source.model: name the model whose VAE makes the latents, or set `adapter: pixels`",
    ),
    "unknown source of a refiner": (
        "refiners.pictures.source",
        {"kind": "render"},
        "refiners.pictures.source.kind: `render` is not one of",
    ),
    "offload with multi_gpu": (
        "capture.sets.all",
        {"offload": True, "multi_gpu": True},
        "capture.sets.all: `offload` and `multi_gpu` exclude each other",
    ),
}


REGISTRIES = ("models", "schemes", "embedders", "networks", "plan.budgets", "capture.sets", "benchmark.targets")


@pytest.mark.parametrize("registry", REGISTRIES)
@pytest.mark.parametrize(
    "name", ["org/name", "../../evil", "flux (dev)", "a{b}", ".hidden", "a..b", "", "a\nb", "ä", "-x"]
)
def test_names_that_are_no_file_names_are_refused_in_every_registry(data, registry, name):
    *folders, last = registry.split(".")
    section = data
    for folder in folders:
        section = section.setdefault(folder, {})
    some = {"model": "shapes-flux", "latency_ms": 1.0} if last == "targets" else {}
    entry = copy.deepcopy(next(iter((section.get(last) or {"": some}).values())))
    with pytest.raises(InputError) as refused:
        load_config(put(data, registry, (section.get(last) or {}) | {name: entry}))
    assert str(refused.value).startswith(f"{registry}: `{' '.join(name.split())}` is not a plain name; use letters")
    load_config(put(data, registry, (section.get(last) or {}) | {"flux+lora_v1.1-b": entry}))
    with pytest.raises(InputError, match=f"{registry}: `One` and `onE` differ in case only"):
        load_config(put(data, registry, (section.get(last) or {}) | {"One": entry, "onE": entry}))


YAML_REFUSALS = {
    "a: 1\nb: 2\na: 3\n": "line 3: the key `a` is already in line 1; merge the two",
    "models:\n  x: {steps: 4, steps: 8}\n": "line 2: the key `steps` is already in line 2",
    "prompts:\n  limit: 010\n": "line 2: YAML reads 010 in another base than 10",
    "video: {fps: 1:30}\n": "line 1: YAML reads 1:30 in another base than 10",
    "- a\n": "not a map of settings; write `key: value` lines",
    "a: [\n": "not YAML (",
    "a: !!timestamp x\n": "not YAML (",
    "a: \xe9\n": "not YAML (",
}


@pytest.mark.parametrize("text", YAML_REFUSALS)
def test_yaml_that_reads_otherwise_than_it_looks_is_refused_by_line(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError) as refused:
        read_config([path])
    assert str(refused.value).startswith(f"{path}: {YAML_REFUSALS[text]}")


def test_folders_and_missing_files_are_no_configs(tmp_path):
    for path, message in ((tmp_path, "a folder, where a file is meant"), (tmp_path / "c", "no such config file")):
        with pytest.raises(InputError, match=message):
            read_config([path])


def test_quoted_numbers_aliases_and_empty_files_are_yaml(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text('a: &x {b: "010", c: 0x10}\nd: *x\ne: {<<: *x, b: "1:30"}\n')
    assert read_yaml(path)["e"] == {"b": "1:30", "c": 16}
    path.write_text("# nothing\n")
    assert read_yaml(path) == {}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusal_names_the_key_and_the_mend(data, case):
    path, value, message = REFUSALS[case]
    load_config(data)
    with pytest.raises(InputError) as refused:
        load_config(put(data, path, value))
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_schema_accepts_the_config_and_is_closed(data):
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    assert not list(validator.iter_errors(data))
    for path, value in (("generat", {}), ("video.fsp", 2.0), ("models.shapes-flux.widht", 64), ("video.fps", "fast")):
        assert list(validator.iter_errors(put(data, path, value))), path


def numbers(kind=Config, path=""):
    """Dotted path and field of every number in the config, those of registry entries left out."""
    for f in fields(kind):
        kind_of_field = get_type_hints(kind)[f.name]
        if is_dataclass(kind_of_field):
            yield from numbers(kind_of_field, f"{path}{f.name}.")
        elif kind_of_field in (int, float):
            yield f"{path}{f.name}", kind_of_field, f


def test_schema_and_reader_agree_on_every_number(data):
    validator = jsonschema.Draft202012Validator(json_schema())
    settings = list(numbers())
    assert len(settings) > 60
    for path, kind, field in settings:
        for value in (-1, 0, 1, 2, 17):
            reason = complaint(kind(value), field.metadata["allowed"])
            errors = list(validator.iter_errors(put(data, path, kind(value))))
            if not field.metadata["choices"]:
                assert bool(reason) == bool(errors), (path, value, reason, errors)


def test_defaults_are_in_their_ranges():
    for path, _, field in numbers():
        assert complaint(field.default, field.metadata["allowed"]) == "", path


def test_config_survives_a_round_trip(data):
    config = load_config(data)
    assert decode(Config, plain(config)) == config


def test_whole_numbers_stand_for_fractions(data):
    assert load_config(put(data, "video.fps", 3)).video.fps == 3.0


def test_keys_of_snakemake_are_ignored(data):
    assert load_config(data | {"pathvars": {"results": "results/x"}}) == load_config(data)


def test_reference_is_up_to_date():
    assert (ROOT / "docs" / "config.md").read_text() == reference(), "run `make docs`"
