"""Models of the hub: what is said before a download, what is fetched, and every refusal in one line."""

from types import SimpleNamespace

import pytest
from huggingface_hub import errors

from ditscope import cli
from ditscope.config import ROOT
from ditscope.config_files import read_config
from ditscope.core.errors import InputError
from ditscope.models.folders import resolve_source, source_folder
from ditscope.models.remote_code import cached_copy
from ditscope.models.settings import Model
from ditscope.workflow import download

SHA = "741f7c3ce8b383c54771c7003378a50191e9efe9"
FILES = {
    "model_index.json": 500, "transformer/config.json": 100,
    "transformer/diffusion_pytorch_model.safetensors": 24 * 10**9,
    "transformer/diffusion_pytorch_model.fp16.safetensors": 12 * 10**9, "flux1-schnell.safetensors": 23 * 10**9,
    "text_encoder/pytorch_model.bin": 10**9, "tokenizer/vocab.txt": 1000, "README.md": 100,
}  # fmt: skip
FETCHED = ["transformer/config.json", "transformer/diffusion_pytorch_model.safetensors", "tokenizer/vocab.txt"]


class Hub:
    """A hub of one repository, by the functions of huggingface_hub that are used of it."""

    def __init__(self, files=FILES, gated="auto", token="t", error=None):
        self.files, self.gated, self.token, self.error, self.calls = dict(files), gated, token, error, []

    def model_info(self, source, revision=None, files_metadata=False):
        if self.error:
            raise self.error
        siblings = [SimpleNamespace(rfilename=name, size=size) for name, size in self.files.items()]
        card = SimpleNamespace(license="other", license_name="flux-licence")
        return SimpleNamespace(siblings=siblings, sha=revision or "b" * 40, card_data=card, gated=self.gated, tags=[])

    def snapshot_download(
        self, source, revision, local_dir=None, allow_patterns=(), ignore_patterns=(), cache_dir=None
    ):
        self.calls.append((source, revision))
        if self.error:
            raise self.error
        local_dir = local_dir or cached_copy(source, revision)
        names = download.filter_repo_objects(self.files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns)
        for name in names:
            (local_dir / name).parent.mkdir(parents=True, exist_ok=True)
            (local_dir / name).write_bytes(b"x")

    def hf_hub_download(self, source, name, revision, local_dir):
        assert (local_dir / "transformer/diffusion_pytorch_model.safetensors").exists(), "the index comes last"
        (local_dir / name).write_bytes(b"{}")

    def install(self, monkeypatch, free=10**12):
        monkeypatch.setattr(download, "HfApi", lambda: self)
        monkeypatch.setattr(download, "get_token", lambda: self.token)
        monkeypatch.setattr(download.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
        for name in ("snapshot_download", "hf_hub_download"):
            monkeypatch.setattr(download, name, getattr(self, name))
        return self


def refused(capsys, *arguments) -> str:
    """The one line of a refused `ditscope download`, after what it says first."""
    assert cli.main(["download", *arguments]) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1, said.err
    return said.err


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_size_licence_and_gating_are_said_and_then_all_is_fetched_but_pickles(monkeypatch, capsys, tmp_path):
    hub = Hub().install(monkeypatch)
    assert cli.main(["download", "flux-schnell", "--dry-run"]) == 0
    first = capsys.readouterr().out
    assert "24.00 GB in 4 files" in first and "licence flux-licence, gated" in first and hub.calls == []
    assert cli.main(["download", "flux-schnell"]) == 0
    assert capsys.readouterr().out.startswith(first)
    folder = tmp_path / f"resources/models/black-forest-labs--FLUX.1-schnell@{SHA}"
    there = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    assert there == sorted([*FETCHED, "model_index.json"]) and hub.calls == [("black-forest-labs/FLUX.1-schnell", SHA)]
    assert cli.main(["download", "flux-schnell"]) == 0 and "already in" in capsys.readouterr().out
    assert len(hub.calls) == 1


def test_an_interrupted_download_is_not_taken_for_a_model_and_goes_on(monkeypatch, capsys):
    hub = Hub().install(monkeypatch)
    monkeypatch.setattr(
        download, "hf_hub_download", lambda *a, **k: (_ for _ in ()).throw(ConnectionError("broke off"))
    )
    assert "broke off" in refused(capsys, "flux-schnell") and len(hub.calls) == 1
    entry = read_config([]).models["flux-schnell"]
    with pytest.raises(InputError, match=r"are not all here; `ditscope download flux-schnell` gets them"):
        resolve_source("flux-schnell", entry)
    hub.install(monkeypatch)
    assert cli.main(["download", "flux-schnell"]) == 0 and (source_folder(entry) / "model_index.json").exists()


@pytest.mark.parametrize("name", ["mpnet", "blip2"])
def test_captioners_and_embedders_have_another_index(name, monkeypatch, tmp_path):
    seen = []
    Hub({"config.json": 1, "model.safetensors": 9, "pytorch_model.bin": 9}, gated=False).install(monkeypatch)
    monkeypatch.setattr(download, "hf_hub_download", lambda source, index, **_: seen.append(index))
    assert cli.main(["download", name]) == 0 and seen == ["config.json"]


def test_code_comes_with_the_repositories_that_it_reads(monkeypatch, capsys, tmp_path):
    """Without weights, before the model is taken for whole; and later, where an entry names one more."""
    files = {"config.json": 1, "model.safetensors": 9, "hf_moondream.py": 5, "chat_template.jinja": 1, "a.bin": 9}
    hub = Hub(files, gated=False).install(monkeypatch)
    monkeypatch.setattr(
        download, "hf_hub_download", lambda source, name, revision, local_dir: (local_dir / name).touch()
    )
    assert cli.main(["download", "moondream"]) == 0
    said = capsys.readouterr().out
    assert "code of its own, which runs only with `allow_remote_code: true`; it reads moondream/starmie-v1 too" in said
    entry = read_config([]).models["moondream"]
    ((tokenizer, commit),) = entry.code_revisions.items()
    assert hub.calls == [(tokenizer, commit), (entry.source, entry.revision)]
    there = {file.name for file in source_folder(entry).iterdir()}
    assert there == {"config.json", "model.safetensors", "hf_moondream.py", "chat_template.jinja"}
    assert not list(cached_copy(tokenizer, commit).glob("*.safetensors"))
    assert cli.main(["download", "moondream"]) == 0 and "already in" in capsys.readouterr().out
    (tmp_path / "o.yaml").write_text(f"models: {{moondream: {{code_revisions: {{a/b: {SHA}}}}}}}\n")
    assert cli.main(["download", "moondream", "--configfile", "o.yaml"]) == 0 and ("a/b", SHA) in hub.calls
    plain_config = {"models": {"m": {"source": "x/y", "revision": SHA, "code_revisions": {"a/b": SHA}}}}
    assert download.code_revisions(plain_config, "x/y", SHA) == {"a/b": SHA}
    assert download.code_revisions(plain_config, "x/y", "0" * 40) == {}


def response(status: int):
    return SimpleNamespace(status_code=status, headers={}, request=None, text="")


@pytest.mark.parametrize(
    ("hub", "message"),
    [
        (Hub(token=None), "is gated: accept its licence on its page, and set HF_TOKEN"),
        (Hub({"model_index.json": 1, "unet/model.bin": 9}, gated=False), "pickled weights are refused"),
        (Hub({"a/model.fp16.safetensors": 9}, gated=False), "no safetensors of the whole model"),
        (Hub(error=ConnectionError("no route\nto host")), "cannot be reached, or broke off (no route to host)"),
        (Hub(error=errors.HTTPError("name not known")), "cannot be reached, or broke off (name not known)"),
        (Hub(error=errors.LocalEntryNotFoundError("offline")), "cannot be reached"),
        (Hub(error=errors.GatedRepoError("403", response=response(403))), "gated, and HF_TOKEN has no access to it"),
        (Hub(error=errors.RevisionNotFoundError("404", response=response(404))), f"has no commit {SHA}"),
        (Hub(error=errors.RepositoryNotFoundError("404", response=response(404))), "no such repository on the hub"),
    ],
)  # fmt: skip
def test_refusals_are_one_line(hub, message, monkeypatch, capsys):
    hub.install(monkeypatch)
    assert message in refused(capsys, "flux-schnell") and hub.calls == []


def test_room_is_looked_at_first(monkeypatch, capsys):
    hub = Hub().install(monkeypatch, free=10**9)
    assert "24.00 GB are to come, and 1.00 GB are free" in refused(capsys, "flux-schnell") and hub.calls == []


def test_a_hub_that_is_not_there_for_real(monkeypatch, capsys):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(download, "HfApi", lambda: __import__("huggingface_hub").HfApi(endpoint="http://127.0.0.1:9"))
    assert "the hub cannot be reached" in refused(capsys, "flux-schnell")


def test_what_is_no_hub_model(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert "did you mean `flux-schnell`?" in refused(capsys, "flux-schnel")
    assert "is a folder of this machine; nothing to download" in refused(capsys, "shapes-flux")


def test_an_unpinned_entry_is_told_its_commit(monkeypatch, capsys):
    Hub().install(monkeypatch)
    assert f"`models: {{flux-dev-krea: {{revision: {'b' * 40}}}}}`" in refused(capsys, "flux-dev-krea")


def test_a_model_that_is_not_here_names_the_command_and_a_shipped_one(tmp_path, capsys):
    (tmp_path / "p.csv").write_text("prompt\na ring\n")
    commands = {
        "capture": ["--prompt", "a ring"], "calibrate": ["--prompt-csv", "p.csv"],
        "benchmark": ["--prompts", "p.csv", "--output-dir", "out", "--skip-metrics"],
        "generate": ["--prompts", "p.csv", "--images", "x.tar"], "ablate": ["--prompts", "p.csv", "--out", "x.parquet"],
    }  # fmt: skip
    for command, options in commands.items():
        assert cli.main([command, *options]) == 2
        name, shipped = (
            ("flux-schnell", "shapes-flux")
            if command in ("capture", "generate", "ablate")
            else ("sd3-medium", "shapes-sd3")
        )
        line = capsys.readouterr().err.splitlines()[-1]
        assert f"`ditscope download {name}` gets them, or try a model that ships: `--model {shipped}`" in line


def test_a_revision_that_moves_is_refused(tmp_path):
    for registry, entry in (("models", "flux-dev"), ("embedders", "mpnet")):
        (tmp_path / "o.yaml").write_text(f"{registry}: {{{entry}: {{revision: main}}}}\n")
        with pytest.raises(InputError, match=rf"^{registry}.{entry}.revision: `main` is no commit, and may move; give"):
            read_config([tmp_path / "o.yaml"])


def test_a_hub_id_without_a_commit_has_a_hint():
    with pytest.raises(InputError, match="if `owner/name` is a hub id, set `revision` to its commit"):
        resolve_source("mine", Model("flux", "owner/name"))


def test_home_is_expanded_in_the_config(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "o.yaml").write_text("models: {mine: {family: flux, source: ~/flux}}\nprompts: {csv: ~/p.csv}\n")
    config = read_config([tmp_path / "o.yaml"])
    assert config.models["mine"].source == str(tmp_path / "flux") and config.prompts.csv == str(tmp_path / "p.csv")
    assert source_folder(Model("flux", "~/flux")) == tmp_path / "flux"


def test_every_hub_model_of_the_registry_is_pinned_but_one_that_says_so():
    config = read_config([])
    entries = {**config.models, **config.embedders}
    hub = {name for name, e in entries.items() if e.source and not (ROOT / e.source).exists()}
    assert {name for name in hub if len(entries[name].revision) != 40} == {"flux-dev-krea"}
