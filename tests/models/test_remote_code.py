"""Code of hub repositories: refused until it is allowed, then run from what lies in the project, with the hub off."""

import importlib
import socket
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jinja2
import numpy as np
import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import load_file

import remote_models
from ditscope.config import load_config
from ditscope.config_files import read_config
from ditscope.core.errors import InputError
from ditscope.core.settings import plain
from ditscope.models.captioners import caption, load_captioner
from ditscope.models.embedders.registry import load_embedder
from ditscope.models.registry import runs_remote_code
from ditscope.models.remote_code import instance
from ditscope.models.settings import Embedder, Model
from ditscope.trajectories.invocations import ask_captioner
from ditscope.trajectories.networks import Entry
from remote_models import COMMITS
from tiny_captioners import WORDS
from workflow import ROOT

WORDS_PIN = {"owner/words": COMMITS["owner/words"]}
TOWERS_PIN = {"owner/towers": COMMITS["owner/towers"]}
PICTURES = [Image.fromarray(p) for p in np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A working folder with a cache of its own, in a process that has not run remote code yet, without a network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        monkeypatch.delitem(sys.modules, name)
    importlib.invalidate_caches()
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("no code reaches the network"))
    return tmp_path


@pytest.fixture
def moondream(project) -> Model:
    remote_models.words_repository()
    source = str(remote_models.fake_moondream(project / "moondream"))
    return Model("moondream", source, max_new_tokens=6, allow_remote_code=True, code_revisions=WORDS_PIN)


@pytest.fixture
def jina(project) -> Embedder:
    remote_models.towers_repository()
    source = str(remote_models.fake_jina(project / "jina"))
    return Embedder("jina-clip", source, modality="image", allow_remote_code=True, code_revisions=TOWERS_PIN)


# Moondream ------------------------------------------------------------------------------------------------------------


def test_moondream_captions_each_picture_whatever_the_batch(moondream):
    captioner = load_captioner("c", moondream, "cpu")
    texts = caption(captioner, PICTURES)
    assert len(set(texts)) > 1 and all(set(text.split()) <= set(WORDS) for text in texts)
    assert [caption(captioner, [picture])[0] for picture in PICTURES] == texts
    assert caption(load_captioner("c", moondream, "cpu"), PICTURES, [1, 2, 3, 4, 5]) == texts
    asked = caption(load_captioner("c", replace(moondream, caption_prompt="what is on the left?"), "cpu"), PICTURES)
    assert asked != texts


def test_an_instance_is_filled_with_all_that_its_class_makes(moondream):
    """The table that no file holds is there, and weights are those of the file."""
    folder = Path(moondream.source)
    model = instance("models.c", moondream, folder, "AutoModelForCausalLM")
    assert torch.equal(model.model.table, torch.arange(1.0, 9.0) / 4)
    for name, weight in load_file(folder / "model.safetensors").items():
        assert torch.equal(model.get_parameter(name), weight)


def test_drawn_captions_depend_on_their_seeds_alone(moondream):
    captioner = load_captioner("c", replace(moondream, temperature=1.0, top_p=0.9), "cpu")
    seeds = [3, 1, 4, 1, 5]
    together = caption(captioner, PICTURES, seeds)
    assert [caption(captioner, [p], [s])[0] for p, s in zip(PICTURES, seeds, strict=True)] == together
    assert caption(captioner, PICTURES[::-1], seeds[::-1]) == together[::-1]
    assert len(set(caption(captioner, PICTURES[:1] * 8, range(8)))) > 1
    before = torch.random.get_rng_state()
    caption(captioner, PICTURES, seeds)
    assert torch.equal(torch.random.get_rng_state(), before)
    nucleus = load_captioner("c", replace(moondream, temperature=1.0, top_p=0.01), "cpu")
    assert caption(nucleus, PICTURES, seeds) == caption(load_captioner("c", moondream, "cpu"), PICTURES)


def test_a_caption_s_hash_knows_which_code_made_it(moondream):
    image = np.zeros((4, 4, 3), np.uint8)
    keys = {
        ask_captioner(Entry("c", "c", replace(moondream, code_revisions=pins)), image, 0, "")
        for pins in ({}, WORDS_PIN, {"owner/words": "3" * 40})
    }
    assert len(keys) == 3


# Jina -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("modality", ["image", "text"])
def test_jina_gives_unit_vectors_whatever_the_batch(jina, modality):
    embed = load_embedder("j", replace(jina, modality=modality), "cpu")
    items = PICTURES if modality == "image" else ["a red ring", "the blue star", "a", "large black bell", "left"]
    vectors = embed(items)
    assert vectors.shape == (5, 6) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(np.concatenate([embed([item]) for item in items]), vectors, atol=1e-6)
    assert len(np.unique(vectors.round(4), axis=0)) == 5
    np.testing.assert_array_equal(load_embedder("j", replace(jina, modality=modality), "cpu")(items), vectors)


def test_the_report_says_whose_code_ran():
    config = plain(read_config([]))
    config["networks"]["n"], config["trajectories"]["networks"] = ["drawer", "moondream"], ["n"]
    config["models"]["drawer"] = {"family": "dummy"}
    config["embed"]["embedders"] = ["minilm", "jina-clip"]
    page = jinja2.Template((ROOT / "report/workflow.rst").read_text())
    calm = page.render(snakemake=SimpleNamespace(config=config))
    assert "* ``drawer``: family dummy" in calm and "* ``minilm``: family minilm" in calm and "runs code" not in calm
    for entry in (config["models"]["moondream"], config["embedders"]["jina-clip"]):
        entry["allow_remote_code"] = True
    said = page.render(snakemake=SimpleNamespace(config=config))
    assert said.count("(runs code of its hub repository, with") == 2
    assert "with moondream/starmie-v1 35192e10" in said and "jina-clip-implementation 39e6a55a" in said


# What is refused ------------------------------------------------------------------------------------------------------


def test_nothing_runs_until_it_is_allowed(moondream, jina, project, monkeypatch):
    message = r"^{}: `{}` runs code of .*; read it, and set `allow_remote_code: true` in an overlay"
    with pytest.raises(InputError, match=message.format("models.c", "moondream")):
        load_captioner("c", replace(moondream, allow_remote_code=False), "cpu")
    with pytest.raises(InputError, match=message.format("embedders.j", "jina-clip")):
        load_embedder("j", replace(jina, allow_remote_code=False), "cpu")
    assert not (project / "resources/.cache/huggingface/modules").exists()
    assert not [name for name in sys.modules if name.startswith("transformers_modules")]


def test_the_config_refuses_what_it_selects_and_nothing_else():
    config = plain(read_config([]))
    assert runs_remote_code(read_config([]).models["moondream"])
    networks = {"networks": {"n": ["shapes-flux", "moondream"]}, "trajectories": {"networks": ["n"]}, "drift": {}}
    with pytest.raises(InputError, match=r"^models\.moondream: `moondream` runs code of vikhyatk/moondream2"):
        load_config(config | networks)
    with pytest.raises(InputError, match=r"^embedders\.jina-clip: `jina-clip` runs code of jinaai/jina-clip-v2"):
        load_config(config | {"embed": {"embedders": ["jina-clip"]}})
    allowed = config["models"]["moondream"] | {"allow_remote_code": True}
    load_config(config | networks | {"models": config["models"] | {"moondream": allowed}})


def test_a_branch_of_the_code_is_refused():
    entry = {"family": "moondream", "source": "x", "code_revisions": {"owner/words": "main"}}
    with pytest.raises(InputError, match=r"^models\.c\.code_revisions\.owner/words: `main` is no commit"):
        load_config({"experiment": "x", "models": {"c": entry}})


def test_code_that_is_not_here_is_named_with_the_command(moondream, jina):
    with pytest.raises(InputError, match=r"^models\.c\.code_revisions: owner/words is not here; `ditscope download c`"):
        load_captioner("c", replace(moondream, code_revisions={"owner/words": "3" * 40}), "cpu")
    with pytest.raises(InputError, match=r"^embedders\.j\.code_revisions: owner/towers is not here"):
        load_embedder("j", replace(jina, code_revisions={"owner/towers": "3" * 40}), "cpu")


def test_a_repository_that_no_entry_names_is_not_fetched(moondream, project):
    (project / "resources/.cache/huggingface/hub/models--owner--words").rename(project / "gone")
    with pytest.raises(InputError, match=r"^models\.c: the code of .* does not run here .*`code_revisions`"):
        load_captioner("c", replace(moondream, code_revisions={}), "cpu")
    assert not constants.HF_HUB_OFFLINE, "the hub is off while code loads alone"


def test_packages_that_the_code_wants_are_named(moondream, project):
    code = project / "moondream/hf_moondream.py"
    code.write_text("import no_such_package\n" + code.read_text())
    with pytest.raises(InputError, match=r"does not run here \(.*no_such_package.*\); install the packages"):
        load_captioner("c", moondream, "cpu")


def test_a_folder_of_another_family_runs_no_code(moondream, project):
    config = project / "moondream/config.json"
    config.write_text(config.read_text().replace("moondream1", "phi"))
    (project / "moondream/hf_moondream.py").write_text("raise SystemExit('run')")
    with pytest.raises(
        InputError, match=r"a model of type `phi`, but models\.c\.family is `moondream` \(`moondream1`\)"
    ):
        load_captioner("c", moondream, "cpu")


def test_weights_of_other_code_are_refused(moondream, project):
    code = project / "moondream/hf_moondream.py"
    code.write_text(
        code.read_text().replace(
            "self.see = nn.Linear(12, 8)", "self.saw = nn.Linear(12, 8)\n        self.see = self.saw"
        )
    )
    with pytest.raises(InputError, match=r"the weights in .* are not those of its code \(.*saw.weight"):
        load_captioner("c", moondream, "cpu")
    config = project / "moondream/config.json"
    config.write_text(config.read_text().replace("AutoModelForCausalLM", "AutoModel"))
    with pytest.raises(InputError, match=r"names no code for AutoModelForCausalLM"):
        load_captioner("c", moondream, "cpu")


def test_main_is_the_commit_that_the_entry_names(jina, project):
    """Two commits of the code in one cache: each entry gets its own, though it asks for `main`."""
    other = "3" * 40
    second = remote_models.cached_copy("owner/towers", other)
    second.mkdir(parents=True)
    (second / "towers.py").write_text(remote_models.JINA.replace("/ 255", "/ 255 + 1"))
    first = load_embedder("j", jina, "cpu")(PICTURES)
    changed = load_embedder("j", replace(jina, code_revisions={"owner/towers": other}), "cpu")(PICTURES)
    assert not np.allclose(first, changed)
    np.testing.assert_array_equal(load_embedder("j", jina, "cpu")(PICTURES), first)
