"""A refiner's data from what users have: folders of pictures, WebDataset shards in place; damaged ones, counted."""

import io
import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image

from ditscope.core.errors import InputError
from ditscope.core.films import write_film
from ditscope.core.shards import read_tar, write_tar
from ditscope.refine.data_settings import Source, check_source_of
from ditscope.refine.dataset import Dataset, open_dataset, read_raw, read_text, read_values
from ditscope.refine.prepare import prepare
from ditscope.refine.shard_index import entries


def made(folder: Path, source: Source) -> tuple[Dataset, dict]:
    prepare({}, folder / "samples.parquet", folder / "data.json", folder / "data", [], source)
    return open_dataset(folder / "samples.parquet", folder / "data.json"), json.loads(
        (folder / "data.json").read_text()
    )


def saved(tensor: torch.Tensor) -> bytes:
    torch.save(tensor, buffer := io.BytesIO())
    return buffer.getvalue()


def clip(number: int, shape=(4, 3, 4, 6), ending="npy", **also) -> dict:
    """A sample as of Wan latents: latent, embed and prompt."""
    torch.manual_seed(number)
    latent, embed = torch.randn(shape), torch.randn(5, 8)
    embed[3:] = 0  # padding
    arrays = {"latent": latent, "embed": embed.bfloat16() if ending == "pth" else embed.half()}
    members = {f"{k}.{ending}": saved(v) if ending == "pth" else v.numpy() for k, v in arrays.items()}
    return {"__key__": f"{number:09d}"} | members | {"prompt.txt": f"clip {number}".encode()} | also


def shards_of(folder: Path, counts=(6, 6, 4), **kwargs) -> Path:
    """A folder of shards with these many samples."""
    start = 0
    for shard, count in enumerate(counts):
        write_tar((clip(n, **kwargs) for n in range(start, start + count)), folder / f"shard-{shard:05d}.tar")
        start += count
    return folder


@pytest.mark.parametrize("ending", ["npy", "pth"])
def test_shards_are_read_where_they_lie(tmp_path, ending):
    folder = shards_of(tmp_path / "wan", ending=ending)
    data, told = made(tmp_path / "out", Source(kind="shards", folder=str(folder)))
    assert list((tmp_path / "out/data").glob("*.tar")) == []
    assert (told["shards"], told["estimated"], sum(told["samples"].values())) == (3, 18, 16)
    assert (data.channels, data.space, data.words, data.text_width) == (4, (3, 4, 6), 5, 8)
    assert data.text_dtype == ("bfloat16" if ending == "pth" else "float16")
    rows = np.array([15, 0, 7])
    torch.manual_seed(7)
    latent, embed = torch.randn(4, 3, 4, 6), torch.randn(5, 8)
    np.testing.assert_array_equal(read_raw(data, rows)[2], latent.numpy())
    text, there = read_text(data, rows)
    cast = embed.bfloat16() if ending == "pth" else embed.half()
    np.testing.assert_array_equal(text[2, :3], cast[:3].float().numpy())
    assert there.tolist() == [[True, True, True, False, False]] * 3
    assert data.samples["prompt"].to_list() == [f"clip {n}" for n in range(16)]


def test_a_clip_of_wan_is_one_sample(tmp_path):
    shape = (16, 21, 60, 104)
    write_tar([{"__key__": "0", "latent.npy": np.ones(shape, np.float16)},
               {"__key__": "1", "latent.npy": np.zeros(shape, np.float16)}], tmp_path / "wan/0.tar")  # fmt: skip
    data, _ = made(tmp_path, Source(kind="shards", folder=str(tmp_path / "wan"), held_out=0.0))
    assert (data.channels, data.space) == (16, (21, 60, 104))
    np.testing.assert_allclose((data.mean, data.std), 0.5, atol=1e-5)
    assert read_values(data, np.array([0])).shape == (1, *shape)


def damage(folder: Path, how: str) -> str:
    """Damage one of the shards; the reason that is to be given."""
    path = folder / "shard-00001.tar"
    samples = list(read_tar(path))
    if how == "cut":
        path.write_bytes(path.read_bytes()[:5120])
        return "not a readable tar shard"
    if how == "short":
        write_tar(samples[:4], path)
        return "4 samples, the first shard has 6"
    if how == "no latent":
        del samples[2]["latent.npy"]
        reason = r"sample 000000008 has no values"
    elif how == "NaN":
        samples[2]["latent.npy"][0, 0, 0, 0] = np.nan
        reason = r"sample 000000008 has NaN or Inf"
    elif how == "another shape":
        samples[2]["latent.npy"] = samples[2]["latent.npy"][:, :2]
        reason = r"sample 000000008 has shape \[4, 2, 4, 6\], the first \[4, 3, 4, 6\]"
    elif how == "no text":
        del samples[2]["embed.npy"]
        reason = r"sample 000000008 has text_width 0, the first 8"
    elif how == "another type":
        samples[2]["latent.npy"] = samples[2]["latent.npy"].astype(np.float64)
        reason = r"sample 000000008 has dtype float64, the first float32"
    write_tar(samples, path)
    return reason


@pytest.mark.parametrize("how", ["cut", "short", "no latent", "NaN", "another shape", "no text", "another type"])
def test_damage_is_refused_or_skipped_with_its_count(tmp_path, how, caplog):
    folder = shards_of(tmp_path / "wan")
    reason = damage(folder, how)
    source = Source(kind="shards", folder=str(folder), held_out=0.0)
    with pytest.raises(InputError, match=reason) as refused:
        made(tmp_path / "refused", source)
    assert "\n" not in str(refused.value) and ("shard-00001.tar" in str(refused.value) or how == "NaN")
    with caplog.at_level(logging.WARNING):
        data, told = made(tmp_path / "skipped", replace(source, damaged="skip"))
    assert "shard-00001.tar" in caplog.text
    lost = {"cut": 6, "short": 0}.get(how, 1)
    there = 14 if how == "short" else 16 - lost
    assert len(data) == there == sum(told["samples"].values())
    assert sum(noted["samples"] for noted in told["left_out"]) == lost
    assert [s["samples"] for s in told["short"]] == ([4] if how == "short" else [])
    assert np.isfinite(read_values(data, np.arange(len(data)))).all()


def test_nan_that_the_statistics_did_not_see_is_named_when_it_is_drawn(tmp_path):
    folder = shards_of(tmp_path / "wan")
    damage(folder, "NaN")
    data, _ = made(tmp_path / "out", Source(kind="shards", folder=str(folder), held_out=0.0, statistics=2))
    with pytest.raises(InputError, match=r"shard-00001.tar: sample 000000008 has NaN or Inf in its values"):
        read_values(data, np.array([3, 8]))


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"latent.npy": np.zeros((2, 3), np.int32)}, "numbers of type int32"),
        ({"latent.npy": np.asfortranarray(np.zeros((2, 3)))}, "Fortran order"),
        ({"latent.npy": np.zeros((2, 0), np.float32)}, "more than there is, or nothing"),
        ({"latent.pth": saved(torch.zeros(2, 3, dtype=torch.int64))}, "not one whole tensor of floats"),
        ({"latent.pth": saved(torch.zeros(4, 3)[1:])}, "not one whole tensor of floats"),
        ({"latent.pth": saved({"a": torch.zeros(2), "b": torch.zeros(3)})}, "not one tensor of torch"),
        ({"latent.pth": b"x" * 100}, "damaged"),
        ({"latent.npy": np.zeros((2, 3)), "values.npy": np.zeros((2, 3))}, "a second array of values"),
        ({"latent.npy": np.zeros((2, 3)), "json": b"[1]"}, "not a map"),
        ({"latent.npy": np.zeros((2, 3)), "prompt.txt": b"\xff\xfe"}, "codec can't decode"),
    ],
)
def test_members_of_no_use_are_named(tmp_path, members, reason):
    samples = [{"__key__": "7"} | {k.replace("json", "json_"): v for k, v in members.items()}]
    write_tar(samples, tmp_path / "a.tar")
    if "json" in members:
        whole = (tmp_path / "a.tar").read_bytes().replace(b"7.json_", b"7.json\0")
        header = bytearray(whole)
        at = whole.index(b"7.json\0")
        header[at + 148 : at + 156] = b" " * 8
        header[at + 148 : at + 156] = b"%06o\0 " % sum(header[at : at + 512])
        (tmp_path / "a.tar").write_bytes(header)
    with pytest.raises(InputError, match=r"a.tar: member '7\..*" + reason):
        list(entries(tmp_path / "a.tar"))


def picture(path: Path, colour, size=(40, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def test_class_folders_give_labels_and_captions_prompts(tmp_path):
    for n in range(3):
        picture(tmp_path / f"p/red_things/{n}.png", (255, 0, 0))
        picture(tmp_path / f"p/blue/{n}.jpg", (0, 0, 255), (30, 50))
    (tmp_path / "p/blue/1.txt").write_text("a blue sheet\n")
    source = Source(kind="images", folder=str(tmp_path / "p"), adapter="pixels", size=8)
    data, told = made(tmp_path / "out", source)
    assert (data.channels, data.space, data.words, told["samples"]["train"]) == (3, (8, 8), 0, len(data.rows("train")))
    assert data.samples["key"].to_list() == [f"{c}/{n}" for c in ("blue", "red_things") for n in range(3)]
    assert data.samples["label"].to_list() == ["blue"] * 3 + ["red_things"] * 3
    assert data.samples["prompt"].to_list() == ["blue", "a blue sheet", "blue", *["red things"] * 3]
    raw = read_raw(data, np.array([5]))[0]
    np.testing.assert_allclose(raw[:, 4, 4], [1, -1, -1], atol=0.02)


def test_pictures_that_are_none_are_refused_or_counted(tmp_path):
    for n in range(4):
        picture(tmp_path / f"p/a/{n}.png", (n, 0, 0))
    whole = (tmp_path / "p/a/2.png").read_bytes()
    (tmp_path / "p/a/2.png").write_bytes(whole[: len(whole) // 2])
    source = Source(kind="images", folder=str(tmp_path / "p"), adapter="pixels", size=8)
    with pytest.raises(InputError, match=r"2\.png: not a readable picture"):
        made(tmp_path / "refused", source)
    data, told = made(tmp_path / "skipped", replace(source, damaged="skip"))
    assert len(data) == 3 and [noted["samples"] for noted in told["left_out"]] == [1]
    (tmp_path / "p/empty").mkdir()
    with pytest.raises(InputError, match=r"p/empty: a class without pictures"):
        made(tmp_path / "refused", source)


def test_films_are_files_or_folders_of_frames(tmp_path):
    rng = np.random.default_rng(0)
    frames = [Image.fromarray(np.full((20, 30, 3), 25 * n, np.uint8)) for n in range(9)]
    folder = tmp_path / "f/slow"
    folder.mkdir(parents=True)
    frames[0].save(folder / "a.gif", save_all=True, append_images=frames[1:])
    write_film([frame.resize((32, 32)) for frame in frames], folder / "b.mp4", 8)
    for n, frame in enumerate(frames):
        picture(folder / f"c/{n:02d}.png", tuple(frame.getpixel((0, 0))))
    (folder / "c.txt").write_text("gets brighter")
    source = Source(kind="films", folder=str(tmp_path / "f"), adapter="pixels", size=8, frames=3, held_out=0.0)
    data, _ = made(tmp_path / "out", source)
    assert (data.channels, data.space) == (3, (3, 8, 8))
    assert data.samples.select("key", "prompt").rows() == [
        ("slow/a", "slow"), ("slow/b", "slow"), ("slow/c", "gets brighter"),
    ]  # fmt: skip
    for film in read_raw(data, np.arange(3)):
        np.testing.assert_allclose((film[0, :, 4, 4] + 1) * 127.5, [0, 100, 200], atol=3)
    with pytest.raises(InputError, match=r"slow/a\.gif: 9 frames, where `frames` asks for 10"):
        made(tmp_path / "out", replace(source, frames=10))
    picture(folder / "c/03.png", (1, 2, 3), (9, 9))
    data, told = made(tmp_path / "out", replace(source, damaged="skip"))
    assert [n["reason"] for n in told["left_out"]] == ["frame 3 has 9 x 9 and the first 40 x 30 pixels"]
    (folder / "b.mp4").write_bytes(rng.bytes(3000))
    with pytest.raises(InputError, match=r"slow/b\.mp4: not a readable film"):
        made(tmp_path / "out", source)


def test_a_source_of_the_users_own_is_a_module(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ownpackage").mkdir()
    (tmp_path / "ownpackage/ramps.py").write_text(
        "import numpy as np\nfrom ditscope.refine.samples import Sample\nHELD_OUT_BY = 'prompt'\n"
        "def samples(source, images, damage):\n"
        "    for n in range(source.count):\n"
        "        yield Sample(key=str(n), prompt=f'ramp {n % 5}', values=np.linspace(0, n, 24).reshape(2, 12))\n"
    )
    data, _ = made(tmp_path / "out", Source(kind="ownpackage.ramps", count=20))
    assert (data.channels, data.space, len(data)) == (2, (12,), 20)
    split = data.samples.group_by("prompt").agg(n=pl.col("split").n_unique())
    assert split["n"].to_list() == [1] * 5


def test_sources_that_lack_something_are_refused_at_once(tmp_path):
    for kind in ("images", "shards"):
        with pytest.raises(InputError, match=r"r\.source\.folder: name the folder"):
            check_source_of("r.source", Source(kind=kind, adapter="pixels"))
        (tmp_path / "none").mkdir(exist_ok=True)
        with pytest.raises(InputError, match=r"none: holds no"):
            made(tmp_path, Source(kind=kind, folder=str(tmp_path / "none"), adapter="pixels"))
    with pytest.raises(InputError, match=r"size: 40 is not a multiple of 16"):
        check_source_of("r.source", Source(kind="images", folder="x", model="m", size=40))
    with pytest.raises(InputError, match=r"source\.shape: \[3\] is not channels and one to three sides"):
        check_source_of("r.source", Source(kind="fake", shape=[3]))
