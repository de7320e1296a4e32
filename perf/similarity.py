"""What the cosine of two captions of the shapes world says: the same scene in other words, or one attribute changed.

python perf/similarity.py

Pairs of captions of 64 scenes under all-MiniLM-L6-v2, the demo's text embedder: one scene under two templates, under
the same words in random order, with one attribute changed, with all five changed, and texts of other subjects. Of each
kind the mean over scenes with its 95 % interval (Student's t; a scene is a unit), and how often a pair that means
something else is nearer than the scene's own paraphrase. Cosines do not depend on the machine but for rounding.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

from ditscope.core.intervals import mean_interval  # noqa: E402
from ditscope.models.embedders.sentence import load  # noqa: E402
from ditscope.models.settings import Embedder  # noqa: E402
from ditscope.shapes.world import ATTRIBUTES, TEMPLATES, VALUES, Scene, caption, held_out  # noqa: E402

SCENES = 64
OTHER_SUBJECTS = (
    "a man is playing the violin in the street",
    "stock markets fell sharply on Monday",
    "two dogs run along the beach",
    "how to reset a forgotten password",
)


def pairs(scene: Scene, rng: np.random.Generator) -> Iterator[tuple[str, str, str]]:
    """Kinds of pairs of texts, the first of which is the scene's canonical caption."""
    text = caption(scene)
    for template in range(1, len(TEMPLATES)):
        yield "same scene, other words", text, caption(scene, template)
    yield "same words, in random order", text, " ".join(rng.permutation(text.split()))
    for name in ATTRIBUTES:
        others = [value for value in VALUES[name] if value != getattr(scene, name)]
        changed = Scene(**scene.attributes() | {name: str(rng.choice(others))})
        yield f"another {name}", text, caption(changed)
    all_changed = {n: str(rng.choice([v for v in VALUES[n] if v != getattr(scene, n)])) for n in ATTRIBUTES}
    yield "all five attributes changed", text, caption(Scene(**all_changed))
    yield "said not to be so", text, f"there is no {text.removeprefix('a ')}"
    for other in OTHER_SUBJECTS:
        yield "another subject", text, other


def main() -> None:
    """Print the table."""
    embed = load("minilm", Embedder("minilm", modality="text"), "cpu")
    rng = np.random.default_rng(0)
    scenes = held_out()
    found: dict[str, list[list[float]]] = {}
    for number in np.linspace(0, len(scenes) - 1, SCENES).astype(int):
        kinds, first, second = zip(*pairs(scenes[number], rng), strict=True)
        cosines = (np.asarray(embed(list(first))) * np.asarray(embed(list(second)))).sum(axis=1)
        of_scene: dict[str, list[float]] = {}
        for kind, cosine in zip(kinds, cosines, strict=True):
            of_scene.setdefault(kind, []).append(float(cosine))
        for kind, values in of_scene.items():
            found.setdefault(kind, []).append(values)
    paraphrase = np.array([np.mean(values) for values in found["same scene, other words"]])
    print("| pair | mean cosine | nearer than a paraphrase |\n|---|---|---|")
    for kind, rows in found.items():
        means = np.array([np.mean(values) for values in rows])
        interval = mean_interval(means)
        nearer = "" if kind.startswith("same scene") else f"{(means > paraphrase).mean():.0%} of {len(means)} scenes"
        print(f"| {kind} | {interval.mean:.2f} [{interval.low:.2f}, {interval.high:.2f}] | {nearer} |")


if __name__ == "__main__":
    main()
