"""The refiner's data: what is written is what is read, splits are stable, statistics are of the training split."""

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ditscope.core.errors import InputError
from ditscope.core.shards import read_tar
from ditscope.models.settings import Model
from ditscope.refine.adapter import load_adapter
from ditscope.refine.adapters.maze import in_walls, off_walls
from ditscope.refine.data_settings import Source
from ditscope.refine.dataset import Dataset, open_dataset, read_raw, read_text, read_values
from ditscope.refine.mazes import ends, make_maze, maze_tokens, resampled, shortest_path, walls_of
from ditscope.refine.prepare import prepare
from ditscope.refine.text import load_text_encoder
from ditscope.shapes.moving import MOTIONS, VALUES, all_moves, held_out_moves, way
from ditscope.shapes.world import caption, held_out, parse_caption
from workflow import ROOT

FAKE = Source(kind="fake", count=70, shape=[3, 4, 4], shard_samples=32)
MODELS = {"flux": Model("flux", f"{ROOT}/models/shapes-flux", width=64, height=64)}


def made(folder: Path, source: Source, images=()) -> Dataset:
    prepare(MODELS, folder / "samples.parquet", folder / "data.json", folder / "data", list(images), source)
    return open_dataset(folder / "samples.parquet", folder / "data.json")


@pytest.fixture(scope="module")
def fake(tmp_path_factory) -> tuple[Path, Dataset]:
    folder = tmp_path_factory.mktemp("fake")
    return folder, made(folder, FAKE)


def stored(folder: Path) -> list[dict]:
    return [sample for shard in sorted((folder / "data").glob("*.tar")) for sample in read_tar(shard)]


def test_any_rows_are_read_as_they_were_written(fake):
    folder, data = fake
    samples = stored(folder)
    assert [len(list(read_tar(p))) for p in sorted((folder / "data").glob("*.tar"))] == [32, 32, 6]
    rows = np.array([69, 0, 33, 33, 5])
    raw = read_raw(data, rows)
    np.testing.assert_array_equal(raw, np.stack([samples[r]["values.npy"] for r in rows]).astype(np.float32))
    text, there = read_text(data, rows)
    np.testing.assert_array_equal(text, np.stack([samples[r]["text.npy"] for r in rows]).astype(np.float32))
    assert there.all()
    assert data.samples["key"][69] == samples[69]["json"]["key"]


def test_statistics_are_those_of_the_training_split(fake):
    _, data = fake
    raw = read_raw(data, data.rows("train")).astype(np.float64)
    np.testing.assert_allclose(data.mean, raw.mean((0, 2, 3)), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(data.std, raw.std((0, 2, 3)), rtol=1e-5)
    standard = read_values(data, data.rows("train"))
    np.testing.assert_allclose(standard.mean((0, 2, 3)), 0, atol=1e-5)
    assert set(data.rows("train")) | set(data.rows("held-out")) == set(range(70))


def test_the_same_source_gives_the_same_bytes(fake, tmp_path):
    folder, _ = fake
    made(tmp_path, FAKE)
    for file in ("samples.parquet", "data.json", "data/00000.tar", "data/00002.tar"):
        assert (tmp_path / file).read_bytes() == (folder / file).read_bytes()


def test_an_interrupted_run_goes_on_to_the_same_bytes_and_encodes_nothing_twice(tmp_path, monkeypatch):
    source = Source(kind="renders", model="flux", count=72, shard_samples=16)

    def run(folder: Path) -> list[Path]:
        files = folder / "samples.parquet", folder / "data.json", folder / "data"
        prepare(MODELS, *files, [], source, tmp_path / "partial" / folder.name)
        return [*files[:2], *sorted(files[2].glob("*.tar"))]

    whole = [path.read_bytes() for path in run(tmp_path / "whole")]
    assert not list((tmp_path / "partial" / "whole").glob("*/*.tar"))
    encoded = []

    def adapter_that_counts(about):
        plain = load_adapter(about)

        def encode(pictures):
            encoded.append(len(pictures))
            if stopped and len(encoded) > 1:
                raise KeyboardInterrupt
            return plain.encode(pictures)

        return replace(plain, encode=encode)

    monkeypatch.setattr("ditscope.refine.prepare.load_adapter", adapter_that_counts)
    stopped = True
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "again")
    stopped = False
    assert [path.read_bytes() for path in run(tmp_path / "again")] == whole
    assert encoded == [64, 8, 8]  # the first group once, the second when it was stopped and then


def test_a_hash_holds_out_the_same_samples_of_a_larger_set(fake, tmp_path):
    _, data = fake
    larger = made(tmp_path, replace(FAKE, count=140))
    assert data.samples["split"].to_list() == larger.samples["split"].to_list()[:70]
    share = len(larger.rows("held-out")) / 140
    assert 0.05 < share < 0.28  # 0.15 by a hash: binomial, 140


def test_one_group_is_held_out_where_the_share_leaves_none(tmp_path):
    data = made(tmp_path, replace(FAKE, count=6, held_out=0.001))
    assert len(data.rows("held-out")) == 1
    assert len(made(tmp_path, replace(FAKE, count=6, held_out=0.0)).rows("held-out")) == 0


def test_by_label_a_class_is_on_one_side(tmp_path):
    data = made(tmp_path, replace(FAKE, held_out_by="label", held_out=0.4))
    sides = data.samples.group_by("label").agg(n=data.samples["split"].n_unique() * 0 + 1).height
    assert sides == data.samples.select("label", "split").unique().height


def test_renders_hold_out_the_combinations_that_no_model_knows(tmp_path):
    data = made(tmp_path, Source(kind="renders", count=24, model="flux"))
    kept = {caption(scene) for scene in held_out()}
    assert data.samples["label"].n_unique() == 24
    for prompt, label, split in data.samples.select("prompt", "label", "split").rows():
        assert parse_caption(prompt) == parse_caption(label)
        assert (split == "held-out") == (label in kept)
    assert (data.channels, data.space) == (8, (16, 16))
    text, there = read_text(data, np.arange(24))
    assert text.shape == (24, data.words, 64)
    assert len(set(there.sum(1))) > 1  # prompts differ in length
    encoder = load_text_encoder(data.text)
    prompt = data.samples["prompt"][3]
    np.testing.assert_allclose(encoder([prompt])[0], text[3, there[3]], atol=2e-3)
    assert len(encoder(["red " * 99, prompt])[0]) == encoder.longest and encoder.cut == {"red " * 99}
    pictures = load_adapter(data.adapter).decode(read_raw(data, np.arange(2)))
    assert pictures.shape == (2, 64, 64, 3) and pictures.dtype == np.uint8


def test_latents_of_a_film_are_those_of_its_frames(tmp_path):
    data = made(tmp_path, Source(kind="clips", count=2, frames=3, model="flux", text_encoder=""))
    assert (data.channels, data.space, data.words) == (8, (3, 16, 16), 0)
    adapter = load_adapter(data.adapter)
    film = adapter.decode(read_raw(data, np.arange(2)))
    assert film.shape == (2, 3, 64, 64, 3)
    again = adapter.encode(film)
    np.testing.assert_allclose(adapter.encode(film[:, 1]), again[:, :, 1], atol=1e-5)
    np.testing.assert_array_equal(film[:, 1], adapter.decode(read_raw(data, np.arange(2))[:, :, 1]))


def test_pixels_come_back():
    adapter = load_adapter({"kind": "pixels"})
    film = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 5, 3), dtype=np.uint8)
    assert adapter.encode(film).shape == (2, 3, 3, 4, 5)
    np.testing.assert_array_equal(adapter.decode(adapter.encode(film)), film)


@pytest.mark.parametrize("motion", MOTIONS)
def test_a_shape_keeps_within_the_picture(motion):
    for seed in range(20):
        points = way(motion, 9, np.random.default_rng(seed))
        assert points.shape == (9, 2) and points.min() > 8 and points.max() < 56
    assert (way(motion, 9, np.random.default_rng(0)) != way(motion, 9, np.random.default_rng(1))).any()


def test_moves_that_are_held_out_leave_every_pair_to_train_on():
    moves = all_moves()
    assert len(moves) == 3072 and len(held_out_moves()) == 461
    trained = [m for m in moves if m not in held_out_moves()]
    pairs = {(m.motion, m.shape) for m in trained}
    assert len(pairs) == len(VALUES["motion"]) * len(VALUES["shape"])


def test_a_path_is_the_shortest_and_keeps_off_the_walls():
    import networkx

    for seed in range(5):
        rng = np.random.default_rng(seed)
        walls = make_maze(5, rng)
        start, goal = ends(5, rng)
        path = shortest_path(walls, start, goal)
        graph = networkx.grid_2d_graph(*walls.shape)
        graph.remove_nodes_from(list(zip(*np.nonzero(walls), strict=True)))
        assert networkx.is_connected(graph)
        assert len(path) == networkx.shortest_path_length(graph, start, goal) + 1
        values, text = resampled(path, 24)[None], maze_tokens(walls, start, goal)[None]
        np.testing.assert_array_equal(walls_of(text)[0], walls)
        assert values.shape == (1, 2, 24) and (values[0, :, 0] == start).all() and (values[0, :, -1] == goal).all()
        assert off_walls(values, values, text) == 1.0
        straight = np.stack([np.linspace(a, b, 24) for a, b in zip(start, goal, strict=True)])[None]
        assert in_walls(straight, values, text) > 0
        assert in_walls(values - 100, values, text) == 1.0  # outside


def test_what_cannot_be_is_refused(tmp_path):
    with pytest.raises(InputError, match="name the model whose VAE"):
        made(tmp_path, Source(kind="renders", count=2))
    with pytest.raises(InputError, match=r"held_out: all samples would be held out"):
        made(tmp_path, replace(FAKE, count=1, held_out=1.0))
    data = made(tmp_path, replace(FAKE, count=8))
    told = json.loads((tmp_path / "data.json").read_text())
    (tmp_path / "data.json").write_text(json.dumps(told | {"schema_version": "0"}))
    with pytest.raises(InputError, match="schema version 0"):
        open_dataset(tmp_path / "samples.parquet", tmp_path / "data.json")
    whole = (tmp_path / "data" / "00000.tar").read_bytes()
    (tmp_path / "data" / "00000.tar").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"00000.tar: shorter than its table says"):
        read_values(data, np.arange(8))
    (tmp_path / "data" / "00000.tar").unlink()
    with pytest.raises(InputError, match=r"00000.tar: no such shard"):
        read_values(data, np.arange(2))


def test_memory_does_not_grow_with_the_set(tmp_path):
    """Making a set and reading it once holds a few batches, whatever its size."""
    peaks = []
    for count in (128, 384):
        tracemalloc.start()
        data = made(tmp_path / str(count), Source(kind="fake", count=count, shape=[4, 32, 32], shard_samples=64))
        for start in range(0, count, 32):
            read_values(data, np.arange(start, start + 32))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


def test_a_shorter_set_leaves_no_shards_of_a_longer_one(tmp_path):
    made(tmp_path, FAKE)
    made(tmp_path, replace(FAKE, count=20))
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["00000.tar"]


def test_workers_of_a_loader_read_what_was_opened_before_they_forked(fake):
    _, data = fake
    loader = torch.utils.data.DataLoader(Reader(data), batch_size=None, num_workers=2, timeout=120)
    for number, (values, text) in enumerate(loader):
        np.testing.assert_array_equal(values, read_values(data, np.arange(number, number + 2)))
        np.testing.assert_array_equal(text, read_text(data, np.arange(2))[0])
    assert number == 3


class Reader(torch.utils.data.Dataset):
    """Some rows by number."""

    def __init__(self, data: Dataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return 4

    def __getitem__(self, number: int):
        return read_values(self.data, np.arange(number, number + 2)), read_text(self.data, np.arange(2))[0]
