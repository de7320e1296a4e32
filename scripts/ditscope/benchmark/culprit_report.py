"""What `ditscope culprit` prints: the layers to keep, the certificate and the proof of effect, as Markdown."""

from collections.abc import Collection, Sequence
from typing import Any

import polars as pl


def markdown(
    model: str,
    settings: Any,
    layers: pl.DataFrame,
    sets: pl.DataFrame,
    kept: Collection[str] | None,
    certificate: Sequence[tuple[int, int, int]],
) -> str:
    """The outcome as text for an issue or a pull request."""
    base = sets.filter(pl.col("size") == 0).row(0, named=True)
    lines = [
        f"## Layers of {model} to keep in full precision",
        "",
        f"{criterion(settings)} With every covered layer quantized: {quality(base)}.",
        "",
        verdict(settings, layers, sets, kept, certificate),
        "",
        *kept_table(layers),
        *proof(layers),
    ]
    return "\n".join(lines)


def criterion(settings: Any) -> str:
    """What passing means."""
    side = "at least" if settings.metric == "psnr_db" else "at most"
    return f"Passes: the whole 95 % interval of the mean {settings.metric} is {side} {settings.threshold:g}."


def quality(row: dict[str, Any], prefix: str = "quality") -> str:
    """A mean with its interval and the number of its prompts."""
    ends = f" [{row[f'{prefix}_low']:.4g}, {row[f'{prefix}_high']:.4g}]" if row[f"{prefix}_low"] is not None else ""
    counted = f", n = {row['n_prompts']}" if "n_prompts" in row else ""
    return f"{row[prefix]:.4g}{ends}{counted}"


def verdict(
    settings: Any, layers: pl.DataFrame, sets: pl.DataFrame, kept: Collection[str] | None,
    certificate: Sequence[tuple[int, int, int]],
) -> str:  # fmt: skip
    """What was found, and what speaks for it."""
    if kept is None:
        return f"**No set of at most {settings.max_layers} layers passes** ({len(sets)} sets tried)."
    if not kept:
        return "**It passes as it is**: there is nothing to keep."
    chosen = sets.filter(pl.col("kept").list.sort() == pl.lit(sorted(kept), dtype=pl.List(pl.String)).list.sort())
    found = quality(chosen.row(0, named=True)) if len(chosen) else ""
    told = [f"**{len(kept)} of {len(layers)} layers** make it pass: {found}."]
    told.append("Each of them taken out makes it fail." if all_fail(layers) else "A layer of them may be taken out.")
    for size, tried, of in certificate:
        told.append(f"{tried} of {of} sets of {size} layer{'s' if size > 1 else ''} were tried, and fail.")
    complete = all(tried == of for _, tried, of in certificate)
    if complete and len(kept) <= len(certificate) + 1:
        told.append("So no smaller set passes.")
    return " ".join(told)


def all_fail(layers: pl.DataFrame) -> bool:
    """Whether every kept layer was taken out of the set, and the rest failed."""
    return not layers.filter("kept")["passes_without"].fill_null(True).any()


def kept_table(layers: pl.DataFrame) -> list[str]:
    """The kept layers, with quality where one is taken out."""
    rows = layers.filter("kept").to_dicts()
    if not rows:
        return []
    told = [f"| `{r['layer']}` | {r['alone']:.3g} | {quality(r, 'without')} |" for r in rows]
    head = "| layer | change of the latents where it alone is quantized | quality without it in the set |"
    return [head, "|---|---|---|", *told, ""]


def proof(layers: pl.DataFrame) -> list[str]:
    """What quantization did to the layers, by type of weight; each layer that it left as it was is named."""
    done = layers.filter(pl.col("left_because") == "")
    by_type = done.group_by("weight_type", maintain_order=True).agg(
        pl.len().alias("layers"), pl.col("stored_bytes", "full_bytes").sum(),
        pl.col("weight_error", "output_error").median(),
    )  # fmt: skip
    head = "| type of the weight | layers | stored bytes | in full precision | error of the weight | of the output |"
    lines = ["Took effect (relative errors, medians over layers):", "", head, "|---|---|---|---|---|---|"]
    for r in by_type.to_dicts():
        errors = [f"{r[key]:.2g}" if r[key] is not None else "-" for key in ("weight_error", "output_error")]
        lines.append(f"| {r['weight_type']} | {r['layers']} | {r['stored_bytes']:,} | {r['full_bytes']:,} | "
                     f"{' | '.join(errors)} |")  # fmt: skip
    for reason, rows in layers.filter(pl.col("left_because") != "").group_by("left_because", maintain_order=True):
        lines.append(f"\n{len(rows)} layers are left in full precision: {reason[0]}.")
    lines += [f"\n**Finding**: `{r['layer']}`: {r['finding']}." for r in layers.to_dicts() if r["finding"]]
    return lines
