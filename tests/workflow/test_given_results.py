"""Products of stages that are given by path: what becomes of them, and what is refused before work starts."""

import re
import shutil

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from ditscope.blocks.settings import Blocks
from ditscope.blocks.stage import blocks
from ditscope.capture.files import captures_in, decodes_of, generations_in, read_metadata
from ditscope.capture.load import in_memory, load_capture
from ditscope.capture.source import import_captures
from ditscope.capture.verify import verify
from ditscope.core.errors import InputError
from ditscope.core.shards import read_tar, samples_of_runs
from ditscope.core.tables import read_table
from ditscope.generate.source import import_images
from ditscope.models.embedders.vectors import vectors_of
from ditscope.models.loading import load_generator
from ditscope.models.sampling import decode
from ditscope.models.settings import Model
from ditscope.workflow.doctor import CHECKS, examine
from ditscope.workflow.estimate import parse_job_stats
from workflow import ROOT, snakemake, workdir

FLUX = Model("flux", str(ROOT / "models/shapes-flux"), width=64, height=64, steps=4)
CAPTURED = "results/tiny/captures/shapes-flux/all"
TINY = str(ROOT / "experiments/tiny.yaml")


@pytest.fixture(scope="module")
def generation(study):
    """The captured generation of the tiny study."""
    return captures_in(study / CAPTURED)[0]


@pytest.fixture(scope="module")
def original(generation, tmp_path_factory):
    """The same as a folder of the original program: one .pt file with what that stored, metadata without a version."""
    whole = load_capture(generation)
    metadata, context = whole["metadata"], in_memory(whole["denoising_context"])
    data = {kind: in_memory(whole[kind]) for kind in ("double_blocks", "single_blocks")}
    data["denoising_context"] = {
        key: context[key] for key in ("y", "img_state", "timestep_pairs", "txt_seq_len", "guidance")
    }
    data["metadata"] = {
        "generation_id": "a1b2c3d4",
        "model": "flux-schnell",
        "prompt": metadata["prompt"],
        "num_steps": metadata["num_steps"],
        "seed": 7,
    }
    folder = tmp_path_factory.mktemp("output") / "a1b2c3d4"
    (folder / "intermediates").mkdir(parents=True)
    torch.save(data, folder / "intermediates/capture_20250101_000000_flux-schnell.pt")
    (folder / "intermediates/metadata_20250101_000000_flux-schnell.json").write_text('{"model": "flux-schnell"}')
    shutil.copytree(generation / "intermediates/decoded", folder / "intermediates/decoded")
    shutil.copyfile(generation / "img_0.jpg", folder / "img_0.jpg")
    return folder


# Captures -----------------------------------------------------------------------------------------------------------


def test_a_generation_is_linked_whole(generation, tmp_path):
    import_captures("shapes-flux", FLUX, generation.parent, tmp_path / "set")
    (linked,) = captures_in(tmp_path / "set")
    assert verify(linked) == []
    files = {path.relative_to(generation): path.read_bytes() for path in generation.rglob("*") if path.is_file()}
    assert files == {path.relative_to(linked): path.read_bytes() for path in linked.rglob("*") if path.is_file()}


@pytest.mark.parametrize("single", [True, False], ids=["a .pt file", "its folder"])
def test_a_file_of_the_original_program_gives_the_same_tables_of_blocks(generation, original, single, tmp_path):
    source = next(original.rglob("*.pt")) if single else original
    import_captures("shapes-flux", FLUX, source, tmp_path / "set")
    (unpacked,) = captures_in(tmp_path / "set")
    assert unpacked.name == "a1b2c3d4" and verify(tmp_path / "set/a1b2c3d4/intermediates") == []
    ours = load_file(generation / "intermediates/step_001.safetensors")
    theirs = load_file(unpacked / "intermediates/step_001.safetensors")
    kept = {key for key in ours if not key.endswith(("prediction", "velocity", "temb")) and "embedding" not in key}
    assert theirs.keys() == kept and all(torch.equal(ours[key], theirs[key]) for key in kept)
    statistics = [read_table(folder / "statistics.parquet", "capture_statistics") for folder in (generation, unpacked)]
    assert statistics[0].drop("generation_id", "prompt_id").equals(statistics[1].drop("generation_id", "prompt_id"))
    for folder, out in ((generation.parent, "ours"), (tmp_path / "set", "theirs")):
        blocks(folder, tmp_path / out, {}, Blocks())
    for name in ("similarity", "residual"):
        one, two = (read_table(tmp_path / out / f"{name}.parquet", f"blocks.{name}") for out in ("ours", "theirs"))
        one = one.filter(pl.col("previous") != "embedding")  # which the original did not store
        assert len(two) and one.drop("generation_id", "prompt_id").equals(two.drop("generation_id", "prompt_id"))
    assert [decodes_of(path) for path in generations_in(source)] == [[] if single else ["x_prev"]]
    assert (unpacked / "intermediates/decoded_x_prev/step_0/double_block_0.jpg").exists() is not single
    assert read_metadata(unpacked)["prompt"] == read_metadata(generation)["prompt"]


def test_captures_that_are_none_or_of_another_model_are_refused(generation, original, tmp_path):
    with pytest.raises(InputError, match="captured from `shapes-flux`, not `mine`; give it under its own name"):
        import_captures("mine", FLUX, generation, tmp_path / "a")
    sd3 = Model("sd3", str(ROOT / "models/shapes-sd3"))
    with pytest.raises(InputError, match=r"\.pt: holds the block double_block_0, which `shapes-sd3` has not"):
        import_captures("shapes-sd3", sd3, original, tmp_path / "b")
    broken = tmp_path / "broken"
    shutil.copytree(generation, broken)
    step = broken / "intermediates/step_000.safetensors"
    step.write_bytes(step.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"step_000\.safetensors: has .* bytes, .* were captured"):
        import_captures("shapes-flux", FLUX, broken, tmp_path / "c")
    file = tmp_path / "other.pt"
    torch.save({"denoising_context": {"img_state": [torch.zeros(1)]}, "double_blocks": {}}, file)
    with pytest.raises(InputError, match=r"other\.pt: not a capture of the original program \('y'\)"):
        import_captures("shapes-flux", FLUX, file, tmp_path / "d")
    assert not list(tmp_path.glob("[abcd]"))


# Pictures -----------------------------------------------------------------------------------------------------------


def brought_in(source, tmp_path, name="shapes-flux"):
    out = [tmp_path / f"out{suffix}" for suffix in (".tar", ".parquet", ".timing.parquet")]
    import_images(name, FLUX, source, *out)
    return list(read_tar(out[0])), read_table(out[1], "images")


def test_pictures_become_a_shard_whose_latents_decode_to_them(study, tmp_path):
    made = next(samples_of_runs(study / "results/tiny/images/shapes-flux/shard-00000.tar"))
    given = tmp_path / "given"
    (given / "more").mkdir(parents=True)
    (given / "a.png").write_bytes(made["png"])
    (given / "a.txt").write_text(" a red circle \n")
    Image.open(given / "a.png").resize((100, 70)).save(given / "more" / "b.jpg")
    shutil.copyfile(given / "a.png", given / "c.png")
    (given / "c.txt").write_text("a red circle")
    samples, table = brought_in(given, tmp_path)
    assert table.select("prompt_id", "prompt", "model").rows() == [
        ("a", "a red circle", "shapes-flux"), ("c", "a red circle", "shapes-flux"), ("more/b", "", "shapes-flux"),
    ]  # fmt: skip
    assert len(samples) == 2 and samples[0]["png"] == made["png"]
    assert {made["latent.npy"].shape for made in samples} == {made["latent.npy"].shape}
    generator = load_generator("shapes-flux", FLUX, "cpu")
    back = decode(generator, torch.from_numpy(samples[0]["latent.npy"])[None])[0].numpy()
    first = np.asarray(Image.open(given / "a.png"))
    assert np.abs(back.astype(int) - first).mean() < 6  # grey levels: what the VAE loses


def test_shards_keep_their_latents_and_agree_with_their_manifests(study, tmp_path):
    folder = shutil.copytree(study / "results/tiny/images/shapes-flux", tmp_path / "given")
    samples, table = brought_in(folder, tmp_path)
    wanted = [made for path in sorted(folder.glob("*.tar")) for made in read_tar(path)]
    assert [made["__key__"] for made in samples] == [made["__key__"] for made in wanted]
    assert all(np.array_equal(a["latent.npy"], b["latent.npy"]) for a, b in zip(samples, wanted, strict=True))
    manifests = [read_table(path.with_suffix(".parquet"), "images") for path in sorted(folder.glob("*.tar"))]
    assert table.equals(pl.concat(manifests))
    with pytest.raises(InputError, match="made by `shapes-flux`, not `mine`; give it under its own name"):
        brought_in(folder, tmp_path, "mine")
    shutil.copyfile(folder / "shard-00000.parquet", folder / "shard-00001.parquet")
    with pytest.raises(InputError, match=r"shard-00001\.tar: picture \w+ is not the one that shard-00001\.parquet"):
        brought_in(folder, tmp_path)
    (tmp_path / "text").mkdir()
    (tmp_path / "text/a.png").write_text("no picture")
    with pytest.raises(InputError, match=r"a\.png: not a readable picture"):
        brought_in(tmp_path / "text", tmp_path)


# Vectors ------------------------------------------------------------------------------------------------------------

ROWS = pl.DataFrame({"network": ["n"] * 3, "run_id": ["r", "r", "s"], "sequence_number": [-1, 1, -1]}).cast(
    {"sequence_number": pl.Int32}
)


def test_vectors_are_found_by_their_state_and_brought_to_length_one(tmp_path):
    file = tmp_path / "vectors.parquet"
    table = ROWS.cast({"sequence_number": pl.Int64}).with_columns(
        vector=pl.Series([[3.0, 4.0], [0.0, 2.0], [1.0, 0.0]])
    )
    table.reverse().write_parquet(file)
    assert vectors_of(ROWS, file).tolist() == pytest.approx(np.array([[0.6, 0.8], [0, 1], [1, 0]]))
    for change, refusal in (
        (table[:2], "no vector for n, run s, sequence number -1"),
        (pl.concat([table, table[:1]]), "two vectors for n, run r, sequence number -1"),
        (table.with_columns(vector=pl.Series([[1.0], [1.0, 2.0], [1.0]])), r"vectors of \[1, 2\] numbers"),
        (table.drop("network"), "not a table of vectors .*network"),
    ):
        change.write_parquet(file)
        with pytest.raises(InputError, match=refusal):
            vectors_of(ROWS, file)


# The workflow -------------------------------------------------------------------------------------------------------


@pytest.fixture
def overlay(study, original, tmp_path):
    """The overlay of the docs in a folder like the checkout, with what it names."""
    folder = workdir(tmp_path / "work")
    (folder / "given").mkdir()
    page = (ROOT / "docs/bring-your-own.md").read_text()
    text = re.search(r"`experiments/given.yaml`:\n\n```yaml\n(.*?)```", page, re.S)[1]
    (folder / "given.yaml").write_text(text.replace("flux-schnell", "shapes-flux"))
    shutil.copytree(original, folder / "given/captures" / original.name)
    (folder / "given/pictures").mkdir()
    samples = list(read_tar(study / "results/tiny/images/shapes-flux/shard-00000.tar"))
    for made in samples:
        picture = folder / f"given/pictures/{made['__key__']}.png"
        picture.write_bytes(made["png"])
        picture.with_suffix(".txt").write_text(made["json"]["prompt"])
    tables = sorted((study / "results/tiny/embeddings/minilm").glob("*.parquet"))
    pl.concat([pl.read_parquet(path) for path in tables]).write_parquet(folder / "given/vectors.parquet")
    return folder


def planned(folder, *more):
    return snakemake(folder, "--cores", "2", "--configfile", TINY, "given.yaml", *more)


@pytest.mark.parametrize(
    ("missing", "refusal"),
    [
        ("given/captures", "capture.sources.shapes-flux: no such file or folder: given/captures"),
        ("given/pictures", "generate.sources.shapes-flux: no such file or folder: given/pictures"),
        ("given/vectors.parquet", "embedders.elsewhere.source: no such file or folder: given/vectors.parquet"),
    ],
)
def test_a_path_that_leads_nowhere_is_refused_before_work_starts(overlay, missing, refusal):
    (overlay / missing).rename(overlay / "elsewhere")
    done = planned(overlay, "--dry-run")
    assert done.returncode and refusal in done.stdout and "Traceback" not in done.stdout
    (overlay / missing).mkdir()
    done = planned(overlay, "--dry-run")
    assert done.returncode and f"{missing} holds no " in done.stdout and "Traceback" not in done.stdout


def test_what_is_given_is_not_made(overlay):
    jobs = parse_job_stats(planned(overlay, "--dry-run", "--config", "stages=[generate,blocks,video,drift]").stdout)
    assert jobs["import_images"] == jobs["import_captures"] == jobs["block_analysis"] == jobs["drift"] == 1
    assert not {"image_shard", "capture_set", "prompt_shard", "capture_video"} & jobs.keys()


@pytest.mark.system
def test_a_study_of_given_results_is_sound_and_follows_their_content(overlay, study, monkeypatch):
    for shards in (study / "results/tiny/trajectories").iterdir():
        shutil.copytree(shards, overlay / "results/tiny/trajectories" / shards.name)
    with (overlay / "given.yaml").open("a") as file:  # of two pictures none can be held out
        file.write("refiners: {shapes-flux: {source: {kind: generated, model: shapes-flux, held_out: 0}}}\n")
    asked = ("--config", "stages=[generate,blocks,video,embed,drift,refine]", "video={decode: x_prev}")
    done = planned(overlay, *asked, "--rerun-triggers", "mtime")
    assert done.returncode == 0, done.stdout[-6000:]
    results = overlay / "results/tiny"
    assert (results / "videos/captures/shapes-flux/source.gif").exists()
    drift = "results/tiny/drift/drift.parquet"
    ours, theirs = (read_table(folder / drift, "drift") for folder in (overlay, study))
    wanted = theirs.filter(pl.col("embedder").cast(pl.String) == "minilm")
    assert np.allclose(ours["cosine_distance"].fill_null(0), wanted["cosine_distance"].fill_null(0), atol=1e-6)
    monkeypatch.chdir(overlay)
    checks = [name for name in CHECKS if name not in ("checksums", "trajectories", "leftovers", "prompts", "files")]
    assert [f for f in examine(results, checks).findings if f.stage != "trajectories"] == []
    picture = next((overlay / "given/pictures").glob("*.png"))
    picture.touch()
    idle = parse_job_stats(planned(overlay, *asked, "--dry-run", "--allowed-rules", "import_images").stdout)
    assert "import_images" not in idle
    picture.with_suffix(".txt").write_text("another caption")
    stale = parse_job_stats(planned(overlay, *asked, "--dry-run", "--allowed-rules", "import_images").stdout)
    assert stale["import_images"] == 1
