r"""stable-diffusion.cpp: the string of `--tensor-type-rules`, a ggml type for each tensor of the original checkpoint.

Rules are `regex=type`, separated by commas; the first whose regex is found in a tensor's name counts. A rule names one
kind of layer in the blocks that have the type: `(^|\.)double_blocks\.(0|3)\.img_attn\.qkv\.weight($|\.)=q4_1`.
Types are ggml's of the plan's bits, with ggml's own groups of 32 or 256. Query, key and value are one tensor there: it
has the widest type of the three, and stays as it is where the plan leaves one. stable-diffusion.cpp never converts
embeddings and the final layer. Source: stable-diffusion.cpp 97d2990 (August 2026), `src/model_loader.cpp`
(`parse_tensor_type_rules`, `set_wtype_override`, `tensor_should_be_converted`).
"""

import re
from collections import defaultdict
from pathlib import Path

from ditscope.core.atomic import write_text
from ditscope.core.errors import InputError
from ditscope.models.exports.format import Export, Format
from ditscope.models.exports.original_names import grouped, originals

VERSION = "stable-diffusion.cpp 97d2990"
# ggml's type of (bits, symmetric), its weights that share a scale.
TYPES = {
    (2, False): ("q2_K", 256),
    (3, False): ("q3_K", 256),
    (4, True): ("q4_0", 32),
    (4, False): ("q4_1", 32),
    (5, True): ("q5_0", 32),
    (5, False): ("q5_1", 32),
    (6, False): ("q6_K", 256),
    (8, True): ("q8_0", 32),
}
# Parts of names that it never converts.
NEVER: tuple[str, ...] = ("img_in.", "txt_in.", "time_in.", "vector_in.", "guidance_in.", "final_layer.")
NEVER += ("x_embedder.", "t_embedder.", "y_embedder.", "pos_embed", "context_embedder.")


def write(export: Export, out: Path) -> str:
    """Write the rules of a plan as one line of text."""
    chosen, kept = types(export)
    write_text(out, rules(chosen) + "\n")
    told = f"; it keeps {len(kept)} layers as they are: {', '.join(kept)}" if kept else ""
    return f'sd-cli --mode convert --model MODEL --output MODEL.gguf --tensor-type-rules "$(cat {out})"{told}'


def types(export: Export) -> tuple[dict[str, str], list[str]]:
    """The type of each original layer, and the layers of the plan that stay as they are.

    Raises InputError for a format that ggml has not, and rows that a type's blocks do not divide.
    """
    names = originals(export.transformer, "stable-diffusion.cpp")
    formats, chosen, kept = export.formats, {}, []
    for name, layers in grouped(export.transformer, names).items():
        planned = [layer for layer in layers if layer in formats]
        if planned and (len(planned) < len(layers) or any(part in f"{name}." for part in NEVER)):
            kept += planned
        elif planned:
            widest = max(layers, key=lambda layer: formats[layer].bits)
            chosen[name] = ggml_type(export, widest, formats[widest])
    if not chosen:
        raise InputError(f"{export.plan}: stable-diffusion.cpp converts none of its layers")
    return chosen, kept


def ggml_type(export: Export, layer: str, form: Format) -> str:
    """The type that ggml has of a format for the rows of a layer."""
    known = TYPES.get((form.bits, form.symmetric)) or TYPES.get((form.bits, not form.symmetric))
    has = [f"{bits} bits ({name})" for (bits, _), (name, _) in TYPES.items()]
    if form.activations or form.name != "int" or known is None:
        raise export.lacks("stable-diffusion.cpp", layer, form, has)
    name, block = known
    row = export.transformer.get_submodule(layer).in_features
    if row % block:
        raise InputError(
            f"{export.plan}: layer `{layer}` has {form.bits} bits and rows of {row}; ggml's {name} has blocks of "
            f"{block}, which do not divide them: plan it with 4, 5 or 8 bits (`plan.bits`)"
        )
    return name


def rules(chosen: dict[str, str]) -> str:
    """`--tensor-type-rules` of original layers and their types."""
    alike: dict[tuple[str, str, str], list[str]] = defaultdict(list)  # (list of blocks, layer in it, type) -> blocks
    for name, type_ in chosen.items():
        block = re.fullmatch(r"(\w+_blocks)\.(\d+)\.(.+)", name)
        alike[(block[1], block[3], type_) if block else ("", name, type_)].append(block[2] if block else "")
    return ",".join(f"{pattern(blocks, numbers, layer)}={type_}" for (blocks, layer, type_), numbers in alike.items())


def pattern(blocks: str, numbers: list[str], layer: str) -> str:
    """The regex of a layer's weight in some blocks of a list, or outside of blocks."""
    within = rf"{blocks}\.({'|'.join(numbers)})\." if blocks else ""
    return rf"(^|\.){within}{re.escape(layer)}\.weight($|\.)"


def read(text: str, tensors: list[str]) -> dict[str, str]:
    """The type that rules give each tensor, as stable-diffusion.cpp reads them; tensors that no rule names are out."""
    given = [item.split("=", 1) for item in text.strip().split(",") if "=" in item]
    found = {tensor: next((type_ for rule, type_ in given if re.search(rule, tensor)), "") for tensor in tensors}
    return {tensor: type_ for tensor, type_ in found.items() if type_}
