"""Sampling and generation: equal to the diffusers pipelines, resumable, independent of how work is cut."""

import hashlib
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import torch

from ditscope.core.shards import read_tar
from ditscope.core.tables import read_table
from ditscope.generate.settings import Generate
from ditscope.generate.stage import generate
from ditscope.models.loading import load_generator
from ditscope.models.sampling import Observer, sample
from ditscope.models.settings import Model

MODELS = {
    "shapes-flux": Model(family="flux", source="models/shapes-flux", width=64, height=64, steps=3),
    "shapes-sd3": Model(family="sd3", source="models/shapes-sd3", width=64, height=64, steps=3, guidance=2.0),
}
PROMPTS = ["a small red ring at the left on a white background", "a large blue star at the top on a gray background"]


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return load_generator(request.param, MODELS[request.param], "cpu")


@pytest.fixture(scope="module")
def csv(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "p.csv"
    path.write_text("prompt,seed\n" + "".join(f"{p},{i}\n" for i, p in enumerate([*PROMPTS, PROMPTS[0]])))
    return path


def test_euler_steps_add_up(model):
    """Observers see every step, and x_next = x + (sigma_next - sigma) v in float64."""
    steps = []

    class Recorder(Observer):
        def after(self, step):
            steps.append(step)

    final = sample(model, PROMPTS, ["", ""], [0, 1], [Recorder()])
    assert [s.index for s in steps] == [0, 1, 2]
    assert float(steps[0].sigma) == 1 and float(steps[-1].sigma_next) == 0
    x = steps[0].x.double()
    for row, seed in zip(steps[0].x, (0, 1), strict=True):
        noise = torch.randn(1, 8, 16, 16, generator=torch.Generator("cpu").manual_seed(seed))
        assert torch.equal(row, noise[0]), "one CPU generator per seed"
    for step in steps:
        x = x + (step.sigma_next.double() - step.sigma.double()) * step.velocity.double()
    torch.testing.assert_close(final.double(), x, rtol=0, atol=1e-5)


def test_images_do_not_depend_on_the_batch(model):
    together = sample(model, PROMPTS, ["", ""], [0, 1])
    alone = torch.cat([sample(model, PROMPTS[i : i + 1], [""], [i]) for i in range(2)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_generate_resumes_at_finished_slices_with_the_same_bytes(csv, tmp_path):
    entry = MODELS["shapes-flux"]
    settings = Generate(slice_size=1)
    generate("shapes-flux", entry, csv, tmp_path / "whole.tar", settings=settings)
    # A job that dies in its last slice: the entry's steps stay, the loader fails.
    partial = tmp_path / "partial"
    output = tmp_path / "resumed.tar"
    generate("shapes-flux", entry, csv, output, settings=settings, partial=partial)
    assert digest(output) == digest(tmp_path / "whole.tar")
    assert not any(partial.iterdir()), "finished slices are removed once published"


def test_generate_reuses_slices_of_a_killed_job(csv, tmp_path, monkeypatch):
    import ditscope.generate.stage as module

    settings, partial, output = Generate(slice_size=1), tmp_path / "partial", tmp_path / "images.tar"
    real, calls = module.generate_slice, []

    def dies_at_third(model, rows):
        calls.append(rows[0]["prompt_id"])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(model, rows)

    monkeypatch.setattr(module, "generate_slice", dies_at_third)
    with pytest.raises(KeyboardInterrupt):
        generate("shapes-flux", MODELS["shapes-flux"], csv, output, settings=settings, partial=partial)
    assert not output.exists()
    generate("shapes-flux", MODELS["shapes-flux"], csv, output, settings=settings, partial=partial)
    assert calls == ["p00000", "p00001", "p00002", "p00002"], "only the unfinished slice ran again"


def test_manifest_describes_each_image(csv, tmp_path):
    generate("shapes-flux", MODELS["shapes-flux"], csv, tmp_path / "i.tar", settings=Generate(slice_size=2))
    manifest = read_table(tmp_path / "i.parquet", "images")
    samples = list(read_tar(tmp_path / "i.tar"))
    assert manifest["prompt"].to_list() == [*PROMPTS, PROMPTS[0]]
    assert manifest["request_hash"].n_unique() == 3
    assert manifest["key"].to_list() == [s["__key__"] for s in samples]
    assert manifest["png_sha256"].to_list() == [hashlib.sha256(s["png"]).hexdigest() for s in samples]
    assert not manifest["prompt_truncated"].any()
    assert samples[0]["latent.npy"].shape == (8, 16, 16)


def test_long_prompts_are_cut_and_recorded(tmp_path, caplog):
    path = tmp_path / "p.csv"
    path.write_text("prompt\n" + "a small red ring " * 60 + "\n")
    generate("shapes-flux", replace(MODELS["shapes-flux"], steps=1), path, tmp_path / "i.tar")
    manifest = read_table(tmp_path / "i.parquet", "images")
    assert manifest["prompt_truncated"].to_list() == [True]
    assert manifest["prompt_tokens"][0] > 100
    assert "cut" in caplog.text


def test_seed_and_prompt_change_the_image(csv, tmp_path):
    generate("shapes-flux", MODELS["shapes-flux"], csv, tmp_path / "i.tar")
    hashes = read_table(tmp_path / "i.parquet", "images")["png_sha256"]
    assert hashes.n_unique() == 3  # rows 0 and 2 share the prompt, not the seed
    assert isinstance(hashes, pl.Series)
