"""The README of each shipped model and of the models folder, from what was measured."""

import csv
import json
from pathlib import Path

from safetensors import safe_open

from ditscope.shapes.world import ATTRIBUTES, caption, held_out
from training.loop import summary

ABOUT = {
    "shapes-flux": (
        "A `FluxPipeline` for the shapes world: FluxTransformer2DModel with 2 double and 4 single blocks of width 128 "
        "(4 heads of 32), the text tower of shapes-clip for the pooled vector, a T5 encoder of 2 layers for the "
        "sequence (32 tokens), and an AutoencoderKL with f = 4 and 8 latent channels.",
        ("flux", "tune-flux", "vae", "decoder", "text", "cliptext"),
    ),
    "shapes-sd3": (
        "A `StableDiffusion3Pipeline` for the shapes world: SD3Transformer2DModel with 5 joint blocks of width 128 "
        "(4 heads of 32), the text tower of shapes-clip twice, the T5 encoder and the VAE of shapes-flux. Trained with "
        "the empty prompt in 10 % and zeros for T5 in 15 % of the samples: guidance works, and so does "
        "`text_encoder_3=None`.",
        ("sd3", "tune-sd3", "vae", "decoder", "text", "cliptext"),
    ),
    "shapes-clip": (
        "A `CLIPModel` for the shapes world: pictures of 64 pixels in patches of 8 (4 layers of width 128), texts of "
        "up to 32 tokens (3 layers of width 64), 64 common dimensions. The text tower was trained first and is frozen; "
        "it conditions both generators.",
        ("clip", "cliptext"),
    ),
    "shapes-blip": (
        "A `BlipForConditionalGeneration` for the shapes world: pictures of 64 pixels in patches of 8 (4 layers of "
        "width 128) and a text decoder of 3 layers. It writes the canonical caption.",
        ("blip", "tune-blip", "vae"),
    ),
}
USE = {
    "shapes-flux": """from diffusers import FluxPipeline

pipeline = FluxPipeline.from_pretrained("models/shapes-flux")
prompt = "a large red ring at the left on a beige background"
pipeline(prompt, height=64, width=64, num_inference_steps=8, max_sequence_length=32).images[0]""",
    "shapes-sd3": """from diffusers import StableDiffusion3Pipeline

pipeline = StableDiffusion3Pipeline.from_pretrained("models/shapes-sd3")
prompt = "a large red ring at the left on a beige background"
pipeline(
    prompt, height=64, width=64, num_inference_steps=8, guidance_scale=GUIDANCE, max_sequence_length=32
).images[0]""",
    "shapes-clip": """from transformers import CLIPModel, CLIPProcessor

model = CLIPModel.from_pretrained("models/shapes-clip")
processor = CLIPProcessor.from_pretrained("models/shapes-clip")
inputs = processor(text=captions, images=picture, padding="max_length", max_length=32, return_tensors="pt")
model(**inputs).logits_per_image""",
    "shapes-blip": """from transformers import BlipForConditionalGeneration, BlipProcessor

model = BlipForConditionalGeneration.from_pretrained("models/shapes-blip")
processor = BlipProcessor.from_pretrained("models/shapes-blip")
tokens = model.generate(**processor(images=picture, return_tensors="pt"))
processor.decode(tokens[0], skip_special_tokens=True)""",
}
RECORDS = "training.json"
PART = {
    "flux": "transformer",
    "sd3": "transformer",
    "tune-flux": "transformer, fine-tuned",
    "tune-sd3": "transformer, fine-tuned",
    "tune-blip": "captioner, fine-tuned",
    "vae": "autoencoder (shared)",
    "decoder": "its decoder, trained on (shared)",
    "text": "T5 encoder (shared)",
    "cliptext": "CLIP text tower (shared)",
    "clip": "CLIP image tower",
    "blip": "captioner",
}


def parameters(folder: Path) -> dict[str, int]:
    """Parameters by safetensors file below a folder."""
    counts = {}
    for path in sorted(folder.rglob("*.safetensors")):
        with safe_open(path, "pt") as tensors:
            shapes = [tensors.get_slice(key).get_shape() for key in tensors.keys()]  # noqa: SIM118
        total = 0
        for shape in shapes:
            size = 1
            for n in shape:
                size *= n
            total += size
        counts[path.relative_to(folder).as_posix()] = total
    return counts


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def table(report: dict[str, dict]) -> str:
    """The measured figures of one model as a Markdown table."""
    lines = ["| on | what | share | 95 % interval | N | lower bound wanted | met |", "|---|---|---|---|---|---|---|"]
    for source, rows in report.items():
        for what, r in rows.items():
            interval = f"{100 * r['low']:.1f} - {100 * r['high']:.1f} %"
            wanted, met = "", ""
            if r["target"] is not None:
                wanted, met = f"{100 * r['target']:.1f} %", "yes" if r["met"] else "no"
            share = f"{100 * r['share']:.1f} %"
            lines.append(f"| {source} | {what} | {share} | {interval} | {r['n']} | {wanted} | {met} |")
    return "\n".join(lines)


def training_records(out: Path) -> dict[str, dict]:
    """Steps, seconds and settings of each trained stage: the checkpoints' own, else those of the shipped models."""
    shipped = Path("models") / RECORDS
    records = json.loads(shipped.read_text()) if shipped.exists() else {}
    for path in sorted((out / ".partial").glob("*/state.json")):
        state = summary(json.loads(path.read_text()))
        records[path.parent.name] = {key: state[key] for key in ("step", "seconds", "settings")}
    return records


def training_table(stages: tuple[str, ...], records: dict[str, dict]) -> str:
    """Steps, batch, seed and time of each trained part, from the record of trainings."""
    lines = ["| part | steps | batch | optimizer | seed | minutes |", "|---|---|---|---|---|---|"]
    for stage in stages:
        state = records[stage]
        s = state["settings"]
        optimizer = ("Muon + " if s.get("muon") else "") + f"AdamW {s['lr']:g}"
        minutes = f"{state['seconds'] / 60:.0f}"
        lines.append(f"| {PART[stage]} | {state['step']} | {s['batch']} | {optimizer} | {s['seed']} | {minutes} |")
    return "\n".join(lines)


def model_readme(name: str, report: dict, out: Path, guidance: float) -> str:
    """The README of one model."""
    about, stages = ABOUT[name]
    counts = parameters(out / "models" / name)
    sizes = "\n".join(f"| `{file}` | {count:,} |" for file, count in counts.items())
    return f"""# {name}

{about}

```python
{USE[name].replace("GUIDANCE", f"{guidance:g}")}
```

Weights are bfloat16 safetensors; the figures are measured through `from_pretrained` in float32.

| file | parameters |
|---|---|
{sizes}

## Measured

On combinations of attributes that no model was trained on ([held-out.csv](../held-out.csv): 288 of 1,920, four
pictures each, one for the longer texts). Intervals are Wilson's; a figure is met when its lower bound is.

{table(report)}

## Training

On 2 CPU cores shared with other work, by the stages of `models/train.smk`; minutes of wall time. The runs were
stopped and resumed, and some planned lengths changed on the way: a new run has the same settings, not the same rate
at each step.

{training_table(stages, training_records(out))}

Licence: Apache-2.0. The training pictures and texts are procedural (`scripts/ditscope/shapes/world.py`).
"""


def overview(report: dict, out: Path) -> str:
    """The README of the models folder."""
    lines = ["| model | on | all right | 95 % interval | N | targets met |", "|---|---|---|---|---|---|"]
    for name, parts in report.items():
        for source, rows in parts.items():
            what = "all five" if "all five" in rows else next(iter(rows))
            r = rows[what]
            unmet = [name for name, entry in rows.items() if not entry["met"]]
            met = f"not yet: {', '.join(unmet)}" if unmet else "yes"
            lines.append(
                f"| {name} | {source}: {what} | {100 * r['share']:.1f} % | {100 * r['low']:.1f} - "
                f"{100 * r['high']:.1f} % | {r['n']} | {met} |"
            )
    sizes = {name: folder_bytes(out / "models" / name) / 1e6 for name in ABOUT}
    shares = "\n".join(f"| [{name}]({name}/README.md) | {size:.1f} |" for name, size in sizes.items())
    return f"""# The shipped models

Four small models of the shapes world: 64 x 64 pictures of one shape (6 shapes, 8 colours, 2 sizes, 5 places, 4
backgrounds). Real architectures, so that every stage runs on them as it does on the large ones. 288 of the 1,920
combinations ([held-out.csv](held-out.csv)) were in no training set; the models' figures are on these, the oracle's on
all.

{chr(10).join(lines)}

| folder | MB |
|---|---|
{shares}
| together | {sum(sizes.values()):.1f} |

`snakemake -s models/train.smk --cores 2` trains them again under `results/training/`; `make install-models` copies
them here; the weights then differ a little, because these generators were first trained to 2,800 (flux) and 1,900 (sd3)
steps, and from there on with the longer schedule. Licence: Apache-2.0.
"""


def write(report: dict, out: Path, guidance: dict[str, float]) -> None:
    """Write every README and held-out.csv into out/models."""
    folder = out / "models"
    for name in ABOUT:
        (folder / name / "README.md").write_text(model_readme(name, report[name], out, guidance.get(name, 1.0)))
    (folder / "README.md").write_text(overview(report, out))
    (folder / RECORDS).write_text(json.dumps(training_records(out), indent=1) + "\n")
    with (folder / "held-out.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*ATTRIBUTES, "caption"])
        writer.writerows([*scene.attributes().values(), caption(scene)] for scene in held_out())
