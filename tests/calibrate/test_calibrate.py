"""Calibration sets: the NPZ contract, resume with equal bytes, every alias and layout, every way to be broken."""

import io
import json
import pickle
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ditscope.calibrate import stage
from ditscope.calibrate.files import (
    calibration_images,
    check_fits,
    guidance_of,
    load_calibration,
    read_sample,
    validate_calibration,
    write_manifest,
    write_npz,
)
from ditscope.calibrate.settings import Calibrate
from ditscope.calibrate.stage import calibrate, calibrate_shard
from ditscope.core.errors import InputError
from ditscope.models.families.common import Conditioning
from ditscope.models.sampling import pictures, predict, sample
from ditscope.prompts.files import read_prompts
from tiny_models import ENTRIES, tiny_generator

SETTINGS = Calibrate(num_images=3, num_steps=6, cfg_weight=2.5, shard_size=2, slice_size=1)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.csv"
    path.write_text("prompt_id,prompt\na,a red ring\nb,a blue star\n")
    return path


@pytest.fixture
def made(tmp_path: Path, prompts: Path, monkeypatch):
    """A function that calibrates a tiny model of some kind and returns its folder."""

    def make(kind: str = "sd3", folder: str = "set", **changes) -> Path:
        monkeypatch.setattr(stage, "load_generator", lambda name, entry: tiny_generator(kind, name))
        calibrate("tiny", ENTRIES[kind], prompts, tmp_path / folder, replace(SETTINGS, **changes))
        return tmp_path / folder

    return make


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize(
    ("kind", "halves", "guidance"), [("sd3", 2, 2.5), ("flux", 1, 0.0), ("flux-distilled", 1, 3.5)]
)
def test_samples_hold_what_the_transformer_was_given(made, kind, halves, guidance):
    folder = made(kind)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["n_completed"], manifest["num_steps"], manifest["model"]) == (3, 6, "tiny")
    assert len(manifest["sample_files"]) == 18
    assert [i["prompt_id"] for i in manifest["images"]] == ["a", "b", "a"]
    assert [i["seed"] for i in manifest["images"]] == [0, 1, 2]
    order = []
    for file in manifest["sample_files"]:
        with np.load(folder / file, allow_pickle=False) as npz:
            assert npz["x"].shape == (1, 16, 16, 4)
            assert npz["conditioning"].shape == (halves, 5, 24)
            assert npz["pooled_conditioning"].shape == (halves, 20)
            assert npz["timestep"] == pytest.approx(npz["sigma"] * 1000)
            assert npz["guidance"] == guidance
            order.append((int(npz["image_id"]), int(npz["step_index"])))
    assert order == [(image, step) for image in range(3) for step in range(6)]
    # From the last sample alone the model must reach the image that was saved beside it.
    model = tiny_generator(kind)
    last = read_sample(load_calibration(folder).samples[-1])
    x = torch.from_numpy(last["x"]).permute(0, 3, 1, 2)
    keys = ("conditioning", "pooled_conditioning")
    parts = [torch.from_numpy(last[key])[half : half + 1] for half in range(halves) for key in keys]
    with torch.no_grad():
        v = predict(model, x, torch.tensor(last["sigma"]), Conditioning(*parts), last["guidance"])
        pixels = pictures(model, x - last["sigma"] * v)
    expected = (pixels[0] * 255).round().permute(1, 2, 0).numpy()
    saved = np.asarray(Image.open(folder / manifest["images"][2]["file"]), float)
    assert np.abs(saved - expected).max() <= 1


def test_interrupted_job_resumes_to_equal_bytes(made, tmp_path, prompts, monkeypatch):
    whole = contents(made())
    sampled = []

    def failing(model, *rest, **options):
        sampled.append(rest)
        if len(sampled) == 2:
            raise KeyboardInterrupt
        return sample(model, *rest, **options)

    monkeypatch.setattr(stage, "sample", failing)
    with pytest.raises(KeyboardInterrupt):
        calibrate("tiny", ENTRIES["sd3"], prompts, tmp_path / "again", SETTINGS)
    monkeypatch.setattr(time, "time", lambda: 2e9)  # member dates must not enter the files
    calibrate("tiny", ENTRIES["sd3"], prompts, tmp_path / "again", SETTINGS)
    assert len(sampled) == 4  # image 0, the interrupted one, it again, and the third; image 0 was not sampled twice
    assert contents(tmp_path / "again") == whole


def test_finished_set_is_kept_and_other_settings_are_refused(made, monkeypatch):
    folder = made()
    monkeypatch.setattr(stage, "record_slice", None)
    made()
    with pytest.raises(InputError, match=r"made with other settings \(num_steps\); choose another --calib-dir"):
        made(num_steps=4)
    assert load_calibration(folder).num_steps == 6


@pytest.mark.parametrize(
    ("kind", "change"),
    [("sd3", {"use_t5": False}), ("sd3", {"max_sequence_length": 4}), ("sd3", {"backend": "mlx"}),
     ("flux", {"call": {"true_cfg_scale": 2.0}}), ("flux-distilled", {"guidance": 1.0})],
)  # fmt: skip
def test_a_finished_set_of_another_model_entry_is_refused(made, prompts, kind, change):
    folder = made(kind)
    before = contents(folder)
    name = {"guidance": "model_guidance"}.get(*change, *change)
    with pytest.raises(InputError, match=rf"made with other settings \({name}\)"):
        calibrate("tiny", replace(ENTRIES[kind], **change), prompts, folder, SETTINGS)
    assert contents(folder) == before
    made(kind)  # its own entry finds it complete


def test_packed_holds_the_same_samples_and_conditioning_once(made):
    plain, packed = load_calibration(made()), load_calibration(made(folder="packed", format="packed"))
    assert len({s.file for s in packed.samples}) == 3
    assert [(s.image, s.step_index) for s in packed.samples] == [(s.image, s.step_index) for s in plain.samples]
    for one, other in zip(plain.samples, packed.samples, strict=True):
        one, other = read_sample(one), read_sample(other)
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])


def test_steps_default_to_the_model_s_own(made):
    calibration = load_calibration(made("flux", num_steps=0))
    assert calibration.num_steps == calibration.manifest["num_steps"] == ENTRIES["flux"].steps


def test_subset_by_images_and_stride(made):
    subset = load_calibration(made(), max_images=2, step_stride=4)
    assert [(s.image, s.step_index) for s in subset.samples] == [(0, 0), (0, 4), (1, 0), (1, 4)]
    assert subset.num_steps == 6


# Files of other programs ---------------------------------------------------------------------------------------------


def arrays(step: int = 0, **changes) -> dict:
    rng = np.random.default_rng(step)
    plain = {
        "x": rng.normal(size=(1, 4, 4, 2)), "timestep": np.array([1000.0 - 100 * step]),
        "sigma": np.array(1 - step / 10),
        "conditioning": rng.normal(size=(2, 3, 4)), "pooled_conditioning": rng.normal(size=(2, 5)), "step_index": step,
    }  # fmt: skip
    return plain | changes


def positional(step: int) -> dict:
    return {f"arr_{i}": value for i, value in enumerate(arrays(step).values())}


def half(step: int) -> dict:
    """Without guidance: one half of the conditioning."""
    return {k: v[:1] if "conditioning" in k else v for k, v in arrays(step).items()}


def latent(step: int) -> dict:
    return {"latent" if key == "x" else key: value for key, value in arrays(step).items()}


@pytest.mark.parametrize("form", [arrays, positional, latent])
@pytest.mark.parametrize("layout", ["samples", "."])
def test_every_alias_and_layout_without_manifest(tmp_path, form, layout):
    (tmp_path / layout).mkdir(exist_ok=True)
    for image in range(2):
        for step in range(3):
            np.savez(tmp_path / layout / f"{image:04d}_{step:03d}.npz", **form(step), guidance=2.0)
        np.savez(tmp_path / layout / f"{image:04d}_003.npz", **form(3), is_final=True)
    calibration = validate_calibration(tmp_path)
    assert [(s.image, s.step_index) for s in calibration.samples] == [(i, s) for i in range(2) for s in range(3)]
    for reference in calibration.samples:
        expected, got = arrays(reference.step_index), read_sample(reference)
        for key in ("x", "conditioning", "pooled_conditioning"):
            np.testing.assert_array_equal(got[key], expected[key].astype(np.float32))
        assert (got["timestep"], got["sigma"]) == (expected["timestep"][0], pytest.approx(float(expected["sigma"])))


def test_plural_form(tmp_path):
    for image in range(2):
        steps = [arrays(s) for s in range(3)]
        np.savez(
            tmp_path / f"{image}.npz",
            xs=np.stack([s["x"] for s in steps]),
            timesteps=[s["timestep"][0] for s in steps],
            sigmas=[float(s["sigma"]) for s in steps],
            conditioning=steps[0]["conditioning"],
            pooled_conditioning=steps[0]["pooled_conditioning"],
            guidance=2.0,
        )
    calibration = validate_calibration(tmp_path)
    assert [(s.image, s.step_index) for s in calibration.samples] == [(i, s) for i in range(2) for s in range(3)]
    np.testing.assert_array_equal(read_sample(calibration.samples[4])["x"], arrays(1)["x"].astype(np.float32))


# Broken files --------------------------------------------------------------------------------------------------------


def written(folder: Path, **changes) -> Path:
    """Three good samples, the second with `changes` (None removes a key)."""
    for step in range(3):
        content = arrays(step) | {"guidance": 2.0} | (changes if step == 1 else {})
        np.savez(folder / f"s{step}.npz", **{k: v for k, v in content.items() if v is not None})
    return folder / "s1.npz"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sigma": None}, "key `sigma` is missing"),
        ({"conditioning": None}, "key `conditioning` is missing"),
        ({"x": np.zeros((4, 4, 2))}, r"key `x` has shape \(4, 4, 2\)"),
        ({"conditioning": np.zeros((3, 3, 4))}, r"key `conditioning` has shape \(3, 3, 4\)"),
        ({"pooled_conditioning": np.zeros(5)}, "key `pooled_conditioning` has shape"),
        ({"x": np.full((1, 4, 4, 2), np.nan)}, "key `x` has NaN"),
        ({"timestep": np.inf}, "key `timestep` has NaN or infinite"),
        ({"sigma": np.nan}, "key `sigma` has NaN"),
        ({"x": np.array([{}], dtype=object)}, "key `x` is a pickled object"),
    ],
)
def test_validator_names_file_and_key(tmp_path, changes, message):
    file = written(tmp_path, **changes)
    with pytest.raises(InputError, match=f"^{file}: {message}") as caught:
        validate_calibration(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sigma": 900.0, "timestep": 0.9}, "key `sigma` is 900 and key `timestep` is 0.9: they are swapped"),
        ({"sigma": 0.9, "timestep": 400}, "key `sigma` is 0.9 and key `timestep` is 400; sigma must be in"),
        ({"sigma": 9.0, "timestep": 9.0}, r"key `sigma` is 9 .*; sigma must be in \[0, 1\]"),
        ({"sigma": -0.1, "timestep": -100}, "key `sigma` is -0.1"),
        ({"sigma": [0.9, 0.8]}, "key `sigma` holds 2 numbers, not one"),
        ({"step_index": 1.5}, "key `step_index` holds 1.5, no whole number"),
        ({"x": np.zeros((1, 4, 4, 2), complex)}, "key `x` is of type complex128; store it as float32"),
        ({"x": np.zeros((1, 4, 4, 2), "S3")}, "key `x` is of type"),
        ({"x": np.zeros((1, 4, 4, 2), bool)}, "key `x` is of type bool"),
        ({"x": np.full((1, 4, 4, 2), 1e300)}, "key `x` has NaN or infinite values"),
        ({"x": np.zeros((1, 0, 4, 2))}, "key `x` has shape"),
        ({"pooled_conditioning": np.zeros((1, 5))}, "halves .of guidance. of {'conditioning': 2, 'pooled"),
        ({"sigma": "0.9"}, "key `sigma` is of type"),
        ({"guidance": np.nan}, "key `guidance` has NaN"),
        ({"guidance": np.array([{}], dtype=object)}, "key `guidance` is a pickled object"),
    ],
)
def test_numbers_that_do_not_fit_together_are_refused(tmp_path, changes, message):
    file = written(tmp_path, **changes)
    with pytest.raises(InputError, match=f"^{file}: {message}") as caught:
        validate_calibration(tmp_path)
    assert "\n" not in str(caught.value)


def bfloat16(values: np.ndarray) -> np.ndarray:
    """As ml_dtypes and safetensors leave bfloat16 in NumPy: 2-byte void."""
    return (values.astype("<f4").view("<u4") >> 16).astype("<u2").view("V2")


@pytest.mark.parametrize(
    "form",
    [
        lambda v: v.astype(np.float16), lambda v: v.astype(np.float64), lambda v: v.astype(">f4"), bfloat16,
        lambda v: np.asfortranarray(v), lambda v: v.astype(np.int16), lambda v: v[..., ::-1][..., ::-1],
    ],
)  # fmt: skip
def test_foreign_types_and_orders_are_the_same_numbers(tmp_path, form):
    """Small whole numbers and halves, which every type here holds exactly."""
    plain = {k: np.round(2 * v) if isinstance(v, np.ndarray) and v.ndim > 1 else v for k, v in half(0).items()}
    np.savez(tmp_path / "s0.npz", **{k: form(v) if np.ndim(v) > 1 else v for k, v in plain.items()})
    (reference,) = validate_calibration(tmp_path).samples
    sample = read_sample(reference)
    for key in ("x", "conditioning", "pooled_conditioning"):
        assert sample[key].dtype == np.float32 and sample[key].flags.c_contiguous and sample[key].dtype.isnative
        np.testing.assert_array_equal(sample[key], plain[key])


def test_files_are_taken_by_number_or_by_their_keys(tmp_path):
    for folder in ("numbers", "names"):
        (tmp_path / folder).mkdir()
    steps = range(11)
    for step in steps:
        np.savez(tmp_path / f"numbers/sample_{step}.npz", **arrays(step))
        for image in range(2):
            name = f"names/{(7 * (step + 11 * image)) % 23}.npz"
            np.savez(tmp_path / name, **arrays(step), image_id=image, guidance=2.0)
    assert [s.step_index for s in load_calibration(tmp_path / "numbers").samples] == list(steps)
    named = validate_calibration(tmp_path / "names")
    assert [(s.image, s.step_index) for s in named.samples] == [(i, s) for i in range(2) for s in steps]
    np.savez(tmp_path / "names/30.npz", **arrays(0))
    with pytest.raises(InputError, match=r"30\.npz: key `image_id` is in some files and not in others"):
        load_calibration(tmp_path / "names")


def test_guidance_is_written_down_or_refused(tmp_path):
    for step in range(3):
        np.savez(tmp_path / f"s{step}.npz", **arrays(step))
    line = r's0\.npz: made under guidance, .*write `{"n_completed": 1, "num_steps": 3, "cfg_scale": 7.5}` there'
    with pytest.raises(InputError, match=line):
        validate_calibration(tmp_path)
    manifest = {"n_completed": 1, "num_steps": 3}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r'write `"cfg_scale": 7\.5` there'):
        validate_calibration(tmp_path)
    for key in ("cfg_weight", "cfg_scale", "guidance"):
        (tmp_path / "manifest.json").write_text(json.dumps(manifest | {key: 4.5}))
        calibration = validate_calibration(tmp_path)
        sample = read_sample(calibration.samples[0])
        assert guidance_of(calibration, sample, calibration.samples[0].file) == 4.5
    for wrong in ({"cfg_scale": "high"}, {"cfg_scale": 7, "cfg_weight": 2}, {"cfg_scale": True}):
        (tmp_path / "manifest.json").write_text(json.dumps(manifest | wrong))
        with pytest.raises(InputError, match="give one number"):
            validate_calibration(tmp_path)
    for wrong in (float("nan"), float("inf"), -3):  # Python's JSON reads and writes the first two
        (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"cfg_scale": wrong}))
        with pytest.raises(InputError, match=r"manifest\.json beside .*: guidance (nan|inf|-3) is no scale"):
            validate_calibration(tmp_path)
        np.savez(tmp_path / "s0.npz", **arrays(0), guidance=wrong)
        with pytest.raises(InputError, match=r"s0\.npz: key `guidance`.*(is no scale|infinite)"):
            validate_calibration(tmp_path)
        np.savez(tmp_path / "s0.npz", **arrays(0))
    calibration = load_calibration(tmp_path)
    sample = read_sample(calibration.samples[0])
    assert guidance_of(calibration, sample | {"guidance": 3.0}, tmp_path) == 3.0, "a sample's own comes first"
    (tmp_path / "manifest.json").unlink()
    calibration = load_calibration(tmp_path)
    one = {key: sample[key][:1] for key in ("conditioning", "pooled_conditioning")} | {"guidance": None}
    assert guidance_of(calibration, one, tmp_path) == 0
    with pytest.raises(InputError, match="made under guidance"):
        guidance_of(calibration, one, tmp_path, embedded=True)


SD3 = {"in_channels": 2, "joint_attention_dim": 4, "pooled_projection_dim": 5, "patch_size": 2, "pos_embed_max_size": 2}
FLUX = {"in_channels": 8, "joint_attention_dim": 4, "pooled_projection_dim": 5, "guidance_embeds": False}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (SD3, ""), (FLUX, ""),
        (FLUX | {"in_channels": 2}, "key `x` is 2 channels, `m` takes 0; calibrate `m`"),
        (SD3 | {"in_channels": 16}, "key `x` is 2 channels, `m` takes 16"),
        (SD3 | {"joint_attention_dim": 4096}, "key `conditioning` is 4 wide, `m` takes 4096"),
        (SD3 | {"pooled_projection_dim": 768}, "key `pooled_conditioning` is 5 wide, `m` takes 768"),
        (SD3 | {"patch_size": 3}, "key `x` is 4 x 4; the sides that `m` takes are multiples of 3"),
        (SD3 | {"pos_embed_max_size": 1}, "multiples of 2 up to 2"),
    ],
)  # fmt: skip
def test_a_sample_of_another_model_is_refused(config, message):
    sample = {k: v for k, v in arrays(0).items() if k in ("x", "conditioning", "pooled_conditioning")}
    if not message:
        assert check_fits(sample, "f.npz", "m", config) is None
        return
    with pytest.raises(InputError, match=f"^f.npz: .*{message}"):
        check_fits(sample, "f.npz", "m", config)


def test_a_folder_an_empty_file_and_an_empty_archive(tmp_path):
    file = written(tmp_path)
    for make in (lambda: file.write_bytes(b""), lambda: np.savez(file), lambda: (file.unlink(), file.mkdir())):
        make()
        with pytest.raises(InputError, match=f"^{file}: ") as caught:
            validate_calibration(tmp_path)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="a file; give the folder"):
        load_calibration(tmp_path / "s0.npz")


def test_truncated_zip_damaged_member_and_foreign_files(tmp_path):
    file = written(tmp_path)
    whole = file.read_bytes()
    file.write_bytes(whole[:-30])
    with pytest.raises(InputError, match=f"{file}: truncated or damaged NPZ"):
        validate_calibration(tmp_path)
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        start = archive.getinfo("x.npy").header_offset
    file.write_bytes(whole[: start + 200] + bytes([whole[start + 200] ^ 255]) + whole[start + 201 :])
    with pytest.raises(InputError, match=f"{file}: key `x` is damaged"):
        validate_calibration(tmp_path)
    file.write_bytes(pickle.dumps({"x": 1}))
    with pytest.raises(InputError, match=f"{file}: pickled object"):
        validate_calibration(tmp_path)
    with open(file, "wb") as opened:
        np.save(opened, np.zeros(3))
    with pytest.raises(InputError, match=f"{file}: a single array"):
        validate_calibration(tmp_path)


def test_counts_must_match(tmp_path):
    written(tmp_path)
    manifest = {"n_completed": 2, "num_steps": 3, "sample_files": ["s0.npz", "s1.npz", "s2.npz"]}
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=f"{path}: n_completed is 2, the files hold 1 images"):
        load_calibration(tmp_path)
    path.write_text(json.dumps(manifest | {"n_completed": 1, "num_steps": 4}))
    with pytest.raises(InputError, match="image 0 has 3 samples, not steps 0 to 3"):
        load_calibration(tmp_path)
    path.write_text(json.dumps(manifest | {"n_completed": 1, "sample_files": ["s0.npz", "s1.npz", "s3.npz"]}))
    with pytest.raises(InputError, match=r"s3\.npz: no such calibration sample"):
        load_calibration(tmp_path)
    path.write_text(json.dumps(manifest | {"n_completed": 1, "sample_files": ["../s0.npz"]}))
    with pytest.raises(InputError, match="is not a plain file inside the folder"):
        load_calibration(tmp_path)


def test_other_model_other_steps_and_empty_folder(made, tmp_path):
    folder = made()
    validate_calibration(folder, "tiny", 6)
    with pytest.raises(InputError, match="made with model `tiny`, not `other`"):
        validate_calibration(folder, "other")
    with pytest.raises(InputError, match="made with 6 steps, not 50"):
        validate_calibration(folder, "tiny", 50)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no calibration samples"):
        load_calibration(tmp_path / "empty")


def test_manifest_refuses_shards_of_different_settings(made, tmp_path, prompts):
    folder = made()
    shard = folder / "shards/00001"
    images = calibration_images(read_prompts(prompts), 3, 0)[2:]
    calibrate_shard("tiny", ENTRIES["sd3"], images, shard, replace(SETTINGS, cfg_weight=3.0))
    with pytest.raises(InputError, match=f"{shard}: made with other settings"):
        write_manifest([folder / "shards/00000", shard], folder / "manifest.json")


def test_equal_arrays_give_equal_bytes(tmp_path, monkeypatch):
    write_npz(tmp_path / "a.npz", arrays(1))
    monkeypatch.setattr(time, "time", lambda: 1e9)
    monkeypatch.setattr(time, "localtime", lambda *_: time.gmtime(1e9))
    write_npz(tmp_path / "b.npz", arrays(1))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
