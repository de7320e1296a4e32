"""Get a model of the hub: a repository at a pinned commit, safetensors and configs only; interrupted, it resumes."""

import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from huggingface_hub import HfApi, get_token, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import filter_repo_objects

from ditscope.config import Config
from ditscope.core.errors import InputError, line
from ditscope.core.names import unknown
from ditscope.models.folders import HUB_ID, download_mark, source_folder
from ditscope.models.registry import runs_remote_code
from ditscope.models.remote_code import hub_cache, missing_code

log = logging.getLogger(__name__)

PIPELINE = "model_index.json"
SMALL = ("*.json", "*.txt", "*.model", "*.jinja")  # configs, tokenizers, chat templates


def download(
    name: Annotated[str, "an entry of the config's `models` or `embedders`"], /, config: Config, dry_run: bool = False
) -> None:
    """Get a model of the hub, after saying how large it is, its licence, and whether it is gated.

    It goes to resources/models/<id>@<revision>: safetensors, configs and tokenizers, no pickles; code as well, which
    runs only where the entry has `allow_remote_code`, and then with that of its `code_revisions`. Run again after an
    interruption: what is here is kept. A gated repository wants its licence accepted on the hub and HF_TOKEN set. With
    dry_run it only says so.
    """
    entries: dict[str, Any] = {**config.embedders, **config.models}
    if name not in entries:
        raise InputError(unknown("download", name, entries, "in the config's `models` or `embedders`"))
    entry = entries[name]
    where = f"{'models' if name in config.models else 'embedders'}.{name}"
    folder, index = source_folder(entry), download_mark(entry).name
    if not entry.revision and (folder.is_dir() or not HUB_ID.fullmatch(entry.source)):
        raise InputError(f"{where}: `{entry.source}` is a folder of this machine; nothing to download")
    if entry.revision and download_mark(entry).is_file() and not missing_code(entry.code_revisions):
        print(f"{name}: already in {folder}")
        return
    with hub_errors(entry.source, entry.revision):
        info = HfApi().model_info(entry.source, revision=entry.revision or None, files_metadata=True)
    sizes = wanted_files(info, index)
    size = sum(sizes.values())
    gated = "gated: accept its licence there, and set HF_TOKEN" if info.gated else "not gated"
    print(
        f"{name}: https://huggingface.co/{entry.source} at {info.sha}: {size / 1e9:.2f} GB in {len(sizes)} files, "
        f"licence {licence_of(info)}, {gated}",
        flush=True,
    )
    if runs_remote_code(entry) or entry.allow_remote_code:
        run = "allowed to run" if entry.allow_remote_code else "which runs only with `allow_remote_code: true`"
        print(f"{name}: has code of its own, {run}; it reads {', '.join(entry.code_revisions) or 'no repository'} too")
    if not entry.revision:
        raise InputError(
            f"{where}: no `revision`; that is where the branch main stands now: put "
            f"`{where.partition('.')[0]}: {{{name}: {{revision: {info.sha}}}}}` into an overlay or config.yaml"
        )
    if not any(file.endswith(".safetensors") for file in sizes):
        raise InputError(f"{where}: {entry.source} has no safetensors of the whole model; pickled weights are refused")
    if dry_run:
        return
    if info.gated and not get_token():
        raise InputError(f"{where}: {entry.source} is gated: accept its licence on its page, and set HF_TOKEN")
    missing = size - sum(f.stat().st_size for f in folder.rglob("*.safetensors"))
    if missing > (free := shutil.disk_usage(Path.cwd()).free):
        raise InputError(f"{where}: {missing / 1e9:.2f} GB are to come, and {free / 1e9:.2f} GB are free; make room")
    fetch_code(entry.code_revisions)
    fetch(entry.source, entry.revision, folder, index)
    print(f"{name}: in {folder}")


def fetch(source: str, revision: str, folder: Path, index: str) -> None:
    """Download a repository at a commit into `folder`, its `index` last: where that is, the download is whole."""
    allowed, ignored = patterns(index)
    with hub_errors(source, revision):
        snapshot_download(
            source, revision=revision, local_dir=folder, allow_patterns=allowed, ignore_patterns=[*ignored, index]
        )
        if not any(folder.rglob("*.safetensors")):
            raise InputError(f"{source}: no safetensors of the whole model at {revision[:8]}; pickles are refused")
        hf_hub_download(source, index, revision=revision, local_dir=folder)


def fetch_code(revisions: Mapping[str, str]) -> None:
    """Get the repositories that a model's code reads, each at its commit, into the project's own cache: no weights."""
    for source in missing_code(revisions):
        with hub_errors(source, revisions[source]):
            snapshot_download(
                source, revision=revisions[source], cache_dir=hub_cache(), allow_patterns=["*.py", *SMALL]
            )


def code_revisions(config: Mapping[str, Any], source: str, revision: str) -> dict[str, str]:
    """What the entries of a plain config say of the repositories that the code of a hub model reads."""
    entries = [*config.get("models", {}).values(), *config.get("embedders", {}).values()]
    same = [e for e in entries if (e.get("source"), e.get("revision")) == (source, revision)]
    return {key: commit for entry in same for key, commit in entry.get("code_revisions", {}).items()}


def patterns(index: str) -> tuple[list[str], list[str]]:
    """Names of the files to get and, of these, to leave out."""
    # A pipeline's weights lie in its components' folders; single files beside them would double the download.
    weights = "*/*.safetensors" if index == PIPELINE else "*.safetensors"
    code = [] if index == PIPELINE else ["*.py"]
    return [weights, *code, *SMALL], ["*.fp16.*"]  # the same weights once more; `dtype` casts them


def wanted_files(info: Any, index: str) -> dict[str, int]:
    """The files of a repository that `fetch` gets, and their sizes in bytes."""
    allowed, ignored = patterns(index)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    return {name: sizes[name] for name in filter_repo_objects(sizes, allow_patterns=allowed, ignore_patterns=ignored)}


def licence_of(info: Any) -> str:
    """The licence that a repository's card names."""
    names = [getattr(info.card_data, key, None) for key in ("license_name", "license")]
    return next(filter(None, names), "not said")


@contextmanager
def hub_errors(source: str, revision: str) -> Iterator[None]:
    """Turn the hub's refusals, and a network that is not there, into one line each."""
    page = f"https://huggingface.co/{source}"
    try:
        yield
    except InputError:
        raise
    except GatedRepoError:
        token = "HF_TOKEN has no access to it" if get_token() else "HF_TOKEN is not set"
        raise InputError(f"{source}: gated, and {token}: accept its licence at {page}, and set HF_TOKEN") from None
    except RevisionNotFoundError:
        raise InputError(f"{source}: has no commit {revision}; set `revision` to one of {page}/commits/main") from None
    except RepositoryNotFoundError:
        raise InputError(
            f"{source}: no such repository on the hub, or a private one that HF_TOKEN may not read"
        ) from None
    except HFValidationError as error:
        raise InputError(f"{source}: no hub id ({line(error)}); write it as owner/name") from None
    except (HTTPError, OSError) as error:
        if isinstance(error, OSError) and error.errno and not isinstance(error, HfHubHTTPError | ConnectionError):
            raise  # of this machine: no room, no right to write
        raise InputError(
            f"{source}: the hub cannot be reached, or broke off ({line(error)[:160]}); check the network and run "
            "again: what is here is kept"
        ) from None
