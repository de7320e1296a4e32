"""Names of things by their content: request hashes, generation ids, derived seeds, file digests."""

import base64
import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

BASE = "base"  # the scheme of a model that is not quantized
LATER = ("text_encoders", "cache", "cache_threshold")  # settings of schemes that, where off, are no part of their id


def digest(value: Any, bits: int = 128) -> str:
    """Hex digest (SHA-256, truncated to `bits`) of plain data in canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[: bits // 4]


def request_hash(
    *,
    model: str,
    revision: str,
    weights: str,
    scheme: str,
    backend: str,
    dtype: str,
    use_t5: bool,
    max_sequence_length: int,
    prompt: str,
    negative_prompt: str,
    seed: int,
    steps: int,
    guidance: float,
    width: int,
    height: int,
    frames: int = 1,
    call: dict[str, Any] | None = None,
) -> str:
    """128-bit hex key of everything that determines one image, or one video where `frames` is more than 1.

    `call` holds further arguments of the pipeline.
    `weights` is their digest or their revision (`weights_id`), `scheme` what `scheme_id` makes of settings and plan.
    """
    request: dict[str, Any] = {
        "model": model,
        "revision": revision,
        "weights": weights,
        "scheme": scheme,
        "backend": backend,
        "dtype": dtype,
        "use_t5": use_t5,
        "max_sequence_length": max_sequence_length,
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        "seed": seed,
        "steps": steps,
        "guidance": guidance,
        "width": width,
        "height": height,
    }
    if frames > 1:
        request["frames"] = frames
    if call:
        request["call"] = call
    return digest(request)


@cache
def weights_id(source: str, revision: str) -> str:
    """What identifies a model's files: the revision of a hub model, the digest of a folder's names and bytes.

    The digest is remembered by size and time in the project's cache, as the workflow's. Empty where there is no folder.
    """
    source = source and str(Path(source).expanduser())
    if revision or not source or not Path(source).exists():
        return revision
    from ditscope.core.digests import source_digest

    resources = Path("resources")
    return source_digest(source, resources / ".cache" if resources.is_dir() else None)


def scheme_id(
    settings: dict[str, Any] | None, plan: Path | None = None, compiled: str = "eager", calibration: str = ""
) -> str:
    """What identifies a quantization: `base`, or a digest of settings, the plan's bytes and the compile state.

    `calibration` is the digest of the set that it is solved from. The name of a scheme says nothing: two studies may
    use one for different settings.
    """
    kept = {
        key: value
        for key, value in (settings or {}).items()
        if key not in ("plan", "calibration") and (value or key not in LATER)
    }
    kept |= {"calibration": calibration} if calibration else {}
    if (
        compiled == "eager"
        and kept.get("kind", "base") == "base"
        and not kept.get("fuse_qkv")
        and not kept.get("cache")
    ):
        return BASE
    return digest({"settings": kept, "plan": plan and file_digest(plan), "compile": compiled})


def generation_id(request: str, settings: Mapping[str, Any]) -> str:
    """40 bits of the hash of a request hash and the capture settings, as 8 characters of lower-case base32."""
    return base64.b32encode(bytes.fromhex(digest({"request": request, **settings}, 40))).decode().lower()


def derived_seed(*parts: Any) -> int:
    """A 32-bit seed from what identifies a run; stands in for seed -1 and is recorded."""
    return int(digest(list(parts), 32), 16)


def file_digest(path: Path, bits: int = 128) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[: bits // 4]
