"""Names of things by their content: request hashes, generation ids, derived seeds, file digests."""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any


def digest(value: Any, bits: int = 128) -> str:
    """Hex digest (SHA-256, truncated to `bits`) of plain data in canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[: bits // 4]


def request_hash(
    *,
    model: str,
    revision: str,
    scheme: str,
    backend: str,
    dtype: str,
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
    """
    request = locals()
    return digest({k: v for k, v in request.items() if v and (k != "frames" or v > 1) or k not in ("frames", "call")})


def generation_id(request: str) -> str:
    """The first 40 bits of a request hash as 8 characters of lower-case base32."""
    return base64.b32encode(bytes.fromhex(request[:10])).decode().lower()


def derived_seed(*parts: Any) -> int:
    """A 32-bit seed from what identifies a run; stands in for seed -1 and is recorded."""
    return int(digest(list(parts), 32), 16)


def file_digest(path: Path, bits: int = 128) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[: bits // 4]
