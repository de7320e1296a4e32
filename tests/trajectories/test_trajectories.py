"""Trajectories: networks, lockstep, cycles, resumption; pure functions stand in for models, and once the real thing."""

import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

import workflow
from ditscope.config import load_config
from ditscope.core.errors import InputError
from ditscope.core.identity import digest
from ditscope.core.shards import read_tar
from ditscope.core.tables import concat_tables, read_table, write_table
from ditscope.generate.settings import Generate
from ditscope.generate.stage import generate
from ditscope.models.sampling import sample
from ditscope.models.settings import Model, Scheme
from ditscope.prompts.files import Prompt, runs_of
from ditscope.prompts.settings import Prompts
from ditscope.prompts.stage import write_shard, write_slice
from ditscope.trajectories import invocations
from ditscope.trajectories.invocations import (
    Answer,
    Node,
    Request,
    ask_captioner,
    ask_generator,
    node_of,
    state_key,
    state_of,
)
from ditscope.trajectories.networks import Entry, resolve_network, trajectory_index
from ditscope.trajectories.settings import Trajectories
from ditscope.trajectories.stage import distinct_images, run_id, trajectories, walk
from ditscope.trajectories.tables import TRAJECTORIES
from tiny_captioners import tiny_blip
from tiny_pipelines import save_random_flux

FLUX, SD3, BLIP = Model("flux", "a"), Model("sd3", "b"), Model("blip", "c")
MODELS = {"flux": FLUX, "sd3": SD3, "blip": BLIP, "blip-large": BLIP}
INT4 = Scheme("intx-weight-only", bits=4)


# Pure functions as models: an image is a pixel that holds an integer ------------------------------------------------


def draw(value: int) -> np.ndarray:
    """The image of an integer below 65536."""
    return np.array([[[value // 256, value % 256, 0]]], np.uint8)


def read(image: np.ndarray) -> int:
    """The integer of an image."""
    return int(image[0, 0, 0]) * 256 + int(image[0, 0, 1])


def paint(requests: list[Request], batches: list[int], add_seed: bool = False) -> list[Answer]:
    """Draw the number that each text is (plus the seed)."""
    batches.append(len(requests))
    return [Answer(draw((int(r.state) + add_seed * r.seed) % 65536), False) for r in requests]


def say(
    requests: list[Request], batches: list[int], successor: dict[int, int] | None = None, modulus: int = 65536
) -> list[Answer]:
    """Say the number that follows the image's: by a table, or the next one modulo `modulus`."""
    batches.append(len(requests))
    return [Answer(str((successor or {}).get(read(r.state), (read(r.state) + 1) % modulus))) for r in requests]


def network(batches: list[int] | None = None, add_seed: bool = False, sayer: str = "sayer", **kwargs) -> list[Node]:
    """A painter and a sayer; `batches` collects the sizes of the batches they were asked for."""
    batches = [] if batches is None else batches
    painter, talker = Entry("painter", "painter", FLUX), Entry(sayer, sayer, BLIP)
    return [
        Node("painter", "painter", "base", "IMAGE", partial(ask_generator, painter),
             lambda: lambda requests: paint(requests, batches, add_seed)),
        Node(sayer, sayer, "base", "TEXT", partial(ask_captioner, talker),
             lambda: lambda requests: say(requests, batches, **kwargs)),
    ]  # fmt: skip


def runs(*prompts: str, seeds: tuple[int, ...] = (0,)) -> list[dict]:
    """Runs of prompts with ids p0, p1..."""
    return runs_of([Prompt(f"p{i}", prompt) for i, prompt in enumerate(prompts)], list(seeds), "test")


def table(rows: list[dict]) -> pl.DataFrame:
    """Rows of `walk` as the table `trajectories`."""
    return pl.DataFrame(rows, schema=TRAJECTORIES.schema())


def texts(rows: list[dict]) -> dict[str, list[str]]:
    """The texts of each prompt in order."""
    grouped = table(rows).filter(pl.col("type") == "TEXT").group_by("prompt_id", maintain_order=True).agg("output_text")
    return dict(grouped.iter_rows())


def test_states_follow_the_models_and_are_chained_by_keys(tmp_path):
    rows, timing = walk("n", network(), runs("7"), Trajectories(max_length=5), tmp_path)
    assert [r["output_text"] for r in rows] == ["7", None, "8", None, "9", None]
    assert [r["sequence_number"] for r in rows] == [-1, 0, 1, 2, 3, 4]
    assert [r["type"] for r in rows] == ["TEXT", "IMAGE"] * 3
    assert [r["input_key"] for r in rows] == [None] + [r["output_key"] for r in rows[:-1]]
    assert [r["output_key"] for r in rows] == [state_key(state) for state in ("7", draw(7), "8", draw(8), "9", draw(9))]
    assert {(r["stop_reason"], r["loop_length"]) for r in rows} == {("length", None)}
    assert [(t["sequence_number"], t["entry"]) for t in timing] == [(i, ["painter", "sayer"][i % 2]) for i in range(5)]


@pytest.mark.parametrize("modulus", [1, 2, 3, 5])
def test_a_repeated_state_stops_the_run_after_one_loop(tmp_path, modulus):
    rows, _ = walk("n", network(modulus=modulus), runs("0"), Trajectories(max_length=40), tmp_path)
    assert texts(rows)["p0"] == [str(i) for i in range(modulus)] + ["0"]
    assert {(r["stop_reason"], r["loop_length"]) for r in rows} == {("repeat", 2 * modulus)}
    assert rows[-1]["sequence_number"] == 2 * modulus - 1


def test_a_cycle_may_be_entered_after_a_tail(tmp_path):
    successor = {100: 101, 101: 1, 1: 2, 2: 3, 3: 1}
    rows, _ = walk("n", network(successor=successor), runs("100"), Trajectories(max_length=40), tmp_path)
    assert texts(rows)["p0"] == ["100", "101", "1", "2", "3", "1"]
    assert rows[-1]["stop_reason"] == "repeat" and rows[-1]["loop_length"] == 6


def test_the_same_state_at_another_place_of_the_cycle_is_no_repeat(tmp_path):
    first, second = network(successor={5: 5}), network(sayer="other", successor={5: 6})
    rows, _ = walk("n", [*first, *second], runs("5"), Trajectories(max_length=40), tmp_path)
    # 5 -> (first sayer) 5 is a new place; -> (second sayer) 6 -> (first sayer) 7 ...
    assert texts(rows)["p0"][:4] == ["5", "5", "6", "7"]


def test_an_equal_image_of_another_size_is_another_state():
    assert state_key(np.zeros((1, 4, 3), np.uint8)) != state_key(np.zeros((4, 1, 3), np.uint8))
    assert state_key("a") != state_key("b")


def test_derived_seeds_of_invocations_are_alike_in_all_networks_and_differ_between_runs(tmp_path):
    """Else a quantized network would be compared with its base under other noise."""
    seeds = {}
    for name in ("a", "b"):
        rows, _ = walk(name, network(), runs("1", "2", seeds=(-1, -1)), Trajectories(max_length=3), tmp_path / name)
        seeds[name] = [row["seed"] for row in rows if row["sequence_number"] >= 0]
    assert seeds["a"] == seeds["b"] and len(set(seeds["a"])) == 2 * 2 * 3


def test_a_derived_seed_draws_anew_and_never_stops_on_a_repeat(tmp_path):
    settings = Trajectories(max_length=7)
    rows, _ = walk("n", network(modulus=1), runs("0", seeds=(-1,)), settings, tmp_path / "a")
    assert [r["stop_reason"] for r in rows] == ["length"] * 8 and rows[0]["derived_seed"]
    assert len({r["seed"] for r in rows}) == 8
    again, _ = walk("n", network(modulus=1), runs("0", seeds=(-1,)), settings, tmp_path / "b")
    assert rows == again


def test_seeds_reach_the_generator(tmp_path):
    rows, _ = walk("n", network(add_seed=True), runs("10", seeds=(0, 5)), Trajectories(max_length=2), tmp_path)
    assert [r["output_text"] for r in rows if r["sequence_number"] == 1] == ["11", "16"]


def test_lockstep_does_not_depend_on_the_batch(tmp_path):
    prompts = ["3", "9", "9", "40000", "17"]
    settings = Trajectories(max_length=9, batch_size=2)
    sizes: list[int] = []
    together, _ = walk("n", network(sizes, modulus=10), runs(*prompts), settings, tmp_path / "all")
    assert max(sizes) == 2
    for i, run in enumerate(runs(*prompts)):
        alone, _ = walk("n", network(modulus=10), [run], settings, tmp_path / str(i))
        assert alone == [row for row in together if row["prompt_id"] == f"p{i}"]


def test_equal_requests_are_answered_once(tmp_path):
    sizes: list[int] = []
    rows, timing = walk("n", network(sizes), runs("4", "4", "5"), Trajectories(max_length=4), tmp_path)
    assert sizes == [2, 2, 2, 2]
    shared = pl.DataFrame(timing).group_by("run_id", maintain_order=True).agg(pl.col("shared").all())
    assert shared["shared"].to_list() == [False, True, False]
    keys = [sample["__key__"] for sample in distinct_images(tmp_path)]
    assert len(keys) == len(set(keys)) and set(keys) == {r["output_key"] for r in rows if r["type"] == "IMAGE"}


def test_one_prompt_changes_its_own_run_only(tmp_path):
    settings = Trajectories(max_length=6)
    before, _ = walk("n", network(), runs("1", "2", "3"), settings, tmp_path / "a")
    after, _ = walk("n", network(), runs("1", "20", "3"), settings, tmp_path / "b")
    same = [r for r in before if r in after]
    assert {r["prompt_id"] for r in same} == {"p0", "p2"} and len(same) == 14
    assert not {r["output_key"] for r in before if r["prompt_id"] == "p1"} & {
        r["output_key"] for r in after if r["prompt_id"] == "p1"
    }


def test_an_interrupted_walk_resumes_at_its_round(tmp_path):
    settings = Trajectories(max_length=6)
    whole, _ = walk("n", network(), runs("1", "2"), settings, tmp_path / "whole")
    failing = network()
    calls = []

    def fail_late(requests: list[Request]) -> list[Answer]:
        calls.append(len(requests))
        if len(calls) == 3:
            raise RuntimeError("out of memory")
        return say(requests, [])

    failing[1] = Node("sayer", "sayer", "base", "TEXT", failing[1].ask, lambda: fail_late)
    with pytest.raises(RuntimeError):
        walk("n", failing, runs("1", "2"), settings, tmp_path / "cut")
    assert sorted(p.name for p in (tmp_path / "cut").iterdir() if p.suffix == ".tar") == [
        f"{i:05d}.tar" for i in range(5)
    ]
    sizes: list[int] = []
    resumed, timing = walk("n", network(sizes), runs("1", "2"), settings, tmp_path / "cut")
    assert resumed == whole and sizes == [2]  # only the last round was left to compute
    assert all(t["seconds"] > 0 for t in timing)


# Networks -----------------------------------------------------------------------------------------------------------


def test_entries_may_be_quantized_by_a_scheme_or_a_budget():
    entries = resolve_network("n", ["flux:int4", "blip", "sd3:4bit", "blip"], MODELS, {"int4": INT4})
    assert [(e.name, e.variant, e.makes) for e in entries] == [
        ("flux", "int4", "IMAGE"), ("blip", "base", "TEXT"), ("sd3", "4bit", "IMAGE"), ("blip", "base", "TEXT"),
    ]  # fmt: skip
    assert entries[0].scheme == INT4 and entries[1].scheme is None
    assert entries[2].scheme == Scheme("plan", plan="4bit")


@pytest.mark.parametrize(
    ("labels", "complaint"),
    [
        ([], "starts with a generator"),
        (["blip", "flux"], "starts with a generator"),
        (["flux", "sd3", "blip"], "the generator `sd3` follows the generator `flux`"),
        (["flux", "blip", "sd3"], "the generator `flux` follows the generator `sd3`"),
        (["flux"], "the generator `flux` follows the generator `flux`"),
        (["flux", "blip:int4"], "only generators are quantized"),
        (["flax", "blip"], "`flax` is not in the config's `models`"),
    ],
)
def test_a_wrong_network_is_refused_in_one_line(labels, complaint):
    with pytest.raises(InputError, match=r"networks\.n: ") as error:
        resolve_network("n", labels, MODELS, {"int4": INT4})
    assert complaint in str(error.value) and "\n" not in str(error.value)


def test_the_config_refuses_a_network_that_does_not_alternate():
    data = {
        "models": {"f": {"family": "flux", "source": "x"}},
        "networks": {"n": ["f", "f"]},
        "trajectories": {"networks": ["n"]},
    }
    with pytest.raises(InputError, match=r"networks\.n: .*put a captioner between"):
        load_config(data)


@pytest.mark.parametrize(
    ("end", "prompts", "size", "first"),
    [(0, 0, 4, 3), (0, 5, 4, 3), (0, 5, 3, 2), (0, 2, 100, 64), (0, 0, 1, 1), (1, 5, 3, 2), (1, 2, 4, 3), (1, 0, 4, 3)],
)
def test_shards_cover_the_chosen_runs_once_and_in_order(tmp_path, end, prompts, size, first):
    csv = tmp_path / "prompts.csv"
    csv.write_text("prompt,seed\n" + "".join(f"prompt {i},{i if i % 3 == 0 else ''}\n" for i in range(7)))
    settings = Prompts(csv=str(csv), shard_size=first, seeds=[10, 11, -1])
    tables = []
    for shard in range(-(-7 // first)):
        tables.append(tmp_path / f"{shard}.parquet")
        write_shard(csv, shard, tables[-1], settings, "test")
    index = trajectory_index(settings, Trajectories(prompts=prompts, from_end=bool(end), shard_size=size), "test")
    listed = []
    for shard in index:
        assert shard["count"] <= size
        write_slice(csv, shard["start"], shard["count"], tmp_path / "slice.parquet", settings, "test")
        part = read_table(tmp_path / "slice.parquet", "prompts").to_dicts()
        assert len(part) == shard["count"] and digest(part) == shard["digest"]
        listed += part
    everything = pl.concat([read_table(t, "prompts") for t in tables])
    wanted = [f"p{i:05d}" for i in range(7)][-prompts if end else 0 : None if end else prompts or None]
    assert listed == everything.filter(pl.col("prompt_id").is_in(wanted)).to_dicts()


def test_more_prompts_leave_full_shards_as_they_were(tmp_path):
    csv = tmp_path / "prompts.csv"
    csv.write_text("prompt\n" + "".join(f"prompt {i}\n" for i in range(7)))
    few = trajectory_index(Prompts(csv=str(csv), shard_size=3), Trajectories(prompts=4, shard_size=2), "test")
    many = trajectory_index(Prompts(csv=str(csv), shard_size=3), Trajectories(prompts=7, shard_size=2), "test")
    csv.write_text(csv.read_text() + "one more\n")
    more = trajectory_index(Prompts(csv=str(csv), shard_size=3), Trajectories(prompts=0, shard_size=2), "test")
    assert few == many[:2] and many[:3] == more[:3] and len(more) == 4 and more[3] != many[3]


def test_run_ids_tell_runs_and_networks_apart():
    ids = {run_id(name, run) for name in ("a", "b") for run in runs("1", "2", seeds=(0, 1))}
    assert len(ids) == 8


# Compiled generators --------------------------------------------------------------------------------------------------


def test_a_compiled_generator_is_given_whole_batches_and_has_hashes_of_its_own(tmp_path, monkeypatch):
    """With the compiler left out: what is compiled, at which batch sizes, beside the eager pictures."""
    compiled, sizes = [], []

    def sampled(model, texts, *rest):
        sizes.append(len(texts))
        return sample(model, texts, *rest)

    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: compiled.append(type(self).__name__))
    monkeypatch.setattr(invocations, "sample", sampled)
    model = Model("flux", str(save_random_flux(tmp_path / "flux")), width=32, height=32, steps=2)
    entry = Entry("f:int8", "f", model, "int8", Scheme("int8-weight-only"))
    answers, keys = {}, {}
    for state in ("eager", "regional"):
        node = node_of(entry, None, Trajectories(batch_size=4, compile=state))
        requests = [Request(node.ask(text, seed, ""), text, seed, "") for seed, text in enumerate(("a ring", "a star"))]
        answers[state], keys[state] = node.load()(requests), [request.hash for request in requests]
    assert sizes == [2, 4] and len(compiled) == 3  # one double block, two single ones
    assert len(answers["regional"]) == 2 and not set(keys["eager"]) & set(keys["regional"])
    for one, other in zip(answers["eager"], answers["regional"], strict=True):
        assert np.abs(one.state.astype(int) - other.state).max() <= 1  # rounding of a batched matrix product


def test_a_compile_state_that_cannot_run_here_is_refused(tmp_path):
    entry = Entry("f", "f", Model("flux", str(save_random_flux(tmp_path / "flux")), width=32, height=32, steps=2))
    with pytest.raises(InputError, match=r"trajectories: `f` \(reduce-overhead\) cannot run here: .*CUDA graphs"):
        node_of(entry, None, Trajectories(compile="reduce-overhead")).load()
    drawer = node_of(Entry("drawer", "drawer", DUMMIES["drawer"]), None, Trajectories(compile="full", batch_size=1))
    assert drawer.load()([Request("", "a ring", 0, "")])  # a dummy has nothing to compile


# Dummies: a whole network without models -----------------------------------------------------------------------------

DUMMIES = {
    "drawer": Model("dummy", width=32, height=16),
    "namer": Model("dummy-captioner"),
    "sampler": Model("dummy-captioner", temperature=1.0),
}


DUMMY_STUDY = """
experiment: dummies
stages: [prompts, generate, trajectories]
models:
  drawer: {family: dummy, width: 32, height: 32}
  namer: {family: dummy-captioner, temperature: 1.0}
networks: {dummies: [drawer, namer]}
prompts: {csv: prompts/tiny.csv, seeds: [0, -1]}
generate: {models: [drawer]}
trajectories: {networks: [dummies], max_length: 20}
"""


def dummy_nodes(*entries: str) -> list[Node]:
    """The nodes of a network of dummies."""
    return [node_of(entry, None) for entry in resolve_network("n", list(entries), DUMMIES, {})]


def captions_of(rows: list[dict]) -> list[str]:
    return [row["output_text"] for row in rows if row["type"] == "TEXT" and row["sequence_number"] >= 0]


def test_a_network_of_dummies_walks_without_models(tmp_path):
    settings = Trajectories(max_length=50)
    rows, timing = walk("n", dummy_nodes("drawer", "sampler"), runs("a lighthouse", seeds=(-1,)), settings, tmp_path)
    assert len(timing) == 50 and len(set(captions_of(rows))) > 8
    assert len({row["seed"] for row in rows}) == 51 and len({row["request_hash"] for row in rows}) == 51
    assert state_of(next(iter(read_tar(tmp_path / "00000.tar")))).shape == (16, 32, 3)
    again, _ = walk("n", dummy_nodes("drawer", "sampler"), runs("a lighthouse", seeds=(-1,)), settings, tmp_path / "b")
    assert rows == again


@pytest.mark.parametrize("captioner", ["namer", "sampler"])
def test_fixed_seeds_come_back_whether_captions_are_drawn_or_not(tmp_path, captioner):
    """One seed for the whole run: 48 captions, so that a random map on them repeats itself within 50."""
    rows, _ = walk(
        "n", dummy_nodes("drawer", captioner), runs("a", "b", seeds=(0, 1)), Trajectories(max_length=100), tmp_path
    )
    assert {row["stop_reason"] for row in rows} == {"repeat"}
    ends = (
        pl.DataFrame(rows, schema=TRAJECTORIES.schema())
        .group_by("run_id", maintain_order=True)
        .agg("output_key", "loop_length")
    )
    for keys, loops in ends.select("output_key", "loop_length").iter_rows():
        assert keys[-1] == keys[-1 - loops[0]] and len(set(keys)) == len(keys) - 1


def test_runs_of_dummies_do_not_depend_on_the_batch(tmp_path):
    some = runs("a", "b", "c", seeds=(0, -1))
    rows = [
        walk(
            "n", dummy_nodes("drawer", "sampler"), part, Trajectories(max_length=9, batch_size=size), tmp_path / str(i)
        )[0]
        for i, (part, size) in enumerate([(some, 16), (some, 4), (some[3:4], 1)])
    ]
    assert rows[0] == rows[1] and rows[2] == [row for row in rows[0] if row["run_id"] == rows[2][0]["run_id"]]


@pytest.mark.parametrize("change", [{"steps": 9}, {"guidance": 2.0}, {"width": 48}])
def test_a_dummy_draws_by_all_that_it_is_asked(tmp_path, change):
    changed = Entry("drawer", "drawer", replace(DUMMIES["drawer"], **change))
    pictures = [load([Request("", text, seed, "")])[0].state
                for load in (node_of(e, None).load() for e in (changed, Entry("drawer", "drawer", DUMMIES["drawer"])))
                for text in ("a", "b") for seed in (0, 1)]  # fmt: skip
    assert len({state_key(picture) for picture in pictures}) == 8


def test_a_dummy_has_nothing_to_quantize():
    with pytest.raises(InputError, match=r"networks\.n: `drawer:int4`: `drawer` has no weights to quantize"):
        resolve_network("n", ["drawer:int4", "namer"], DUMMIES, {"int4": INT4})


def test_the_workflow_runs_on_dummies(tmp_path):
    """Prompts, images and trajectories; the doctor follows the runs again."""
    folder = workflow.workdir(tmp_path)
    (folder / "dummies.yaml").write_text(DUMMY_STUDY)
    done = workflow.snakemake(folder, "--cores", "1", "--configfile", "dummies.yaml")
    assert done.returncode == 0, done.stdout[-3000:]
    command = [sys.executable, "-m", "ditscope.cli", "doctor", "--results", "results/dummies"]
    report = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(workflow.ROOT / "scripts")},
        capture_output=True,
        text=True,
    )
    assert report.returncode == 0, report.stdout + report.stderr


# Seeds of captions ----------------------------------------------------------------------------------------------------


def test_the_seed_is_in_the_hash_of_a_drawn_caption_alone():
    image = draw(7)
    greedy, drawn = (Entry("c", "c", replace(BLIP, temperature=t)) for t in (0.0, 1.0))
    assert ask_captioner(greedy, image, 0, "") == ask_captioner(greedy, image, 1, "")
    hashes = [ask_captioner(drawn, image, seed, "") for seed in (0, 1)]
    hashes += [ask_captioner(Entry("c", "c", replace(drawn.model, **{k: v})), image, 0, "")
               for k, v in (("temperature", 0.5), ("top_p", 0.9), ("caption_prompt", "scene"))]  # fmt: skip
    assert len({*hashes, ask_captioner(greedy, image, 0, "")}) == 6


def test_the_hash_of_a_greedy_caption_is_what_it_was():
    """Studies made before captions could be drawn keep their requests."""
    request = {"model": "c", "revision": "", "backend": "torch", "dtype": "float32", "weights": ""}
    request |= {"max_new_tokens": 50, "num_beams": 1, "caption_task": "<CAPTION>", "image": state_key(draw(7))}
    assert ask_captioner(Entry("c", "c", BLIP), draw(7), 3, "") == digest(request)


# The stage, with real models ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> dict:
    """Arguments of the stage: the shipped generator, a random captioner, four runs of three prompts."""
    folder = tmp_path_factory.mktemp("study")
    csv = folder / "prompts.csv"
    csv.write_text(
        "prompt_id,prompt,seed\nring,a large red ring at the left on a white background,\n"
        "star,a small blue star,3\nfree,a small blue star,-1\n"
    )
    write_shard(csv, 0, folder / "prompts.parquet", Prompts(csv=str(csv), seeds=[0, 1]), "test")
    return {
        "entries": ["shapes-flux", "blip"],
        "models": {
            "shapes-flux": Model("flux", "models/shapes-flux", width=64, height=64, steps=2),
            "blip": Model("blip", str(tiny_blip(folder / "blip")), max_new_tokens=8),
        },
        "schemes": {"int4": Scheme("intx-weight-only", bits=4, group_size=32)},
        "prompt_tables": [folder / "prompts.parquet"],
        "settings": Trajectories(max_length=4),
    }


def follow(folder: Path, study: dict, **changes) -> tuple[pl.DataFrame, dict[str, bytes]]:
    """Run the stage; its table and its images by key."""
    paths = {"table": folder / "t.parquet", "images": folder / "t.tar", "timing": folder / "t.timing.parquet"}
    trajectories("n", **(study | changes), **paths)
    return read_table(paths["table"], "trajectories"), {s["__key__"]: s["png"] for s in read_tar(paths["images"])}


@pytest.fixture(scope="module")
def followed(study, tmp_path_factory) -> tuple[Path, pl.DataFrame, dict[str, bytes]]:
    folder = tmp_path_factory.mktemp("followed")
    return folder, *follow(folder, study)


def test_the_stage_leaves_a_whole_record(followed, study):
    folder, rows, images = followed
    assert rows.schema == pl.Schema(TRAJECTORIES.schema())
    assert rows["run_id"].n_unique() == 4
    assert rows.filter(pl.col("type") == "IMAGE")["output_key"].is_in(list(images)).all()
    assert set(images) == set(rows.filter(pl.col("type") == "IMAGE")["output_key"])
    assert (
        rows.filter(pl.col("sequence_number") == -1)["output_text"].to_list()
        == rows.unique("run_id", maintain_order=True)["prompt"].to_list()
    )
    free = rows.filter(pl.col("prompt_id") == "free")
    assert free["seed"].n_unique() == 5 and free["stop_reason"].unique().to_list() == ["length"]
    timing = read_table(folder / "t.timing.parquet", "trajectories.timing")
    assert timing.height == rows.filter(pl.col("sequence_number") >= 0).height


def test_the_first_image_is_the_one_that_generate_makes(followed, study, tmp_path):
    _, rows, images = followed
    generate(
        "shapes-flux", study["models"]["shapes-flux"], study["prompt_tables"][0],
        tmp_path / "i.tar", tmp_path / "i.parquet", tmp_path / "i.timing.parquet", Generate(slice_size=4),
    )  # fmt: skip
    first = rows.filter((pl.col("sequence_number") == 0) & ~pl.col("derived_seed"))
    generated = {s["__key__"]: s["png"] for s in read_tar(tmp_path / "i.tar")}
    assert first.height == 3
    for row in first.iter_rows(named=True):
        ours, theirs = pixels(images[row["output_key"]]), pixels(generated[row["request_hash"]])
        assert np.abs(ours - theirs).max() <= 1


def pixels(png: bytes) -> np.ndarray:
    return state_of({"png": png}).astype(int)


def test_the_stage_is_byte_identical_on_a_second_run(followed, study, tmp_path):
    folder, _, _ = followed
    follow(tmp_path, study)
    for name in ("t.parquet", "t.tar"):
        assert (folder / name).read_bytes() == (tmp_path / name).read_bytes()


def test_a_part_of_the_runs_equals_the_whole(followed, study, tmp_path):
    """Batches of another size round differently: pixels may differ by one level, and no more."""
    _, rows, images = followed
    some = study | {"prompt_tables": [tmp_path / "some.parquet"]}
    write_table(concat_tables(study["prompt_tables"], "prompts")[1:3], some["prompt_tables"][0], "prompts")
    part, part_images = follow(tmp_path, some, settings=Trajectories(max_length=2, batch_size=1))
    assert (
        part["run_id"].unique(maintain_order=True).to_list()
        == rows["run_id"].unique(maintain_order=True).to_list()[1:3]
    )
    both = part.join(rows, on=["run_id", "sequence_number"], suffix="_whole")
    assert both.height == part.height == 6
    assert (both["output_text"].fill_null("") == both["output_text_whole"].fill_null("")).all()
    for ours, theirs in both.filter(pl.col("type") == "IMAGE").select("output_key", "output_key_whole").iter_rows():
        assert np.abs(pixels(part_images[ours]) - pixels(images[theirs])).max() <= 1


def test_a_quantized_entry_makes_other_images_of_the_same_prompts(followed, study, tmp_path):
    _, rows, images = followed
    quantized, theirs = follow(
        tmp_path, study, entries=["shapes-flux:int4", "blip"], settings=Trajectories(max_length=1)
    )
    made = quantized.filter(pl.col("type") == "IMAGE")
    assert made["scheme"].unique().to_list() == ["int4"] and made["entry"].unique().to_list() == ["shapes-flux:int4"]
    assert not set(theirs) & set(images)
    assert not set(made["request_hash"]) & set(rows["request_hash"])


def test_a_missing_plan_is_refused_before_any_model_loads(study, tmp_path):
    with pytest.raises(InputError, match=r"plans/shapes-flux/4bit.json: no such bit plan"):
        follow(tmp_path, study, entries=["shapes-flux:4bit", "blip"], plans=Path("plans"))
