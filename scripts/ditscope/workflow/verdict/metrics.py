"""What a verdict measures of the pictures of both sides: picture by picture, and as sets."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ditscope.benchmark.features import feature_extractor
from ditscope.benchmark.quality import judged, pair_values
from ditscope.benchmark.settings import Benchmark
from ditscope.core.intervals import jackknife_error
from ditscope.core.paired import Centre
from ditscope.core.picture_file import rgb_image
from ditscope.models.embedders.registry import embedder_named
from ditscope.models.settings import Embedder
from ditscope.shapes.oracle import oracle
from ditscope.shapes.world import IMAGE_SIZE, parse_caption
from ditscope.workflow.verdict.sides import Sides

CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0
COSINE = "cosine_"  # how the metric of a further encoder begins
CACHE = Path("resources/.cache/features")


@dataclass(frozen=True)
class Metric:
    """One metric of a verdict.

    `gain` is 1 where more is better, else -1. `margin` is the largest difference that counts as none, in the metric's
    own unit; None: it is shown and decides nothing unless a margin is given. `fidelity` metrics are of pairs with the
    base's pictures, `sets` of all pictures at once. `shares` lie within 0 to 1 and differ in few pictures.
    """

    title: str
    gain: int
    margin: float | None
    fidelity: bool = False
    sets: bool = False
    shares: bool = False


METRICS = {
    "psnr_db": Metric("PSNR, dB", 1, 0.5, fidelity=True),
    "ssim": Metric("SSIM", 1, 0.01, fidelity=True),
    "lpips": Metric("LPIPS", -1, 0.01, fidelity=True),
    "feature_cosine": Metric("feature cosine", 1, 0.01, fidelity=True),
    "prompt_alignment": Metric("prompt alignment", 1, 0.01),
    "objects": Metric("objects right (oracle)", 1, 0.05, shares=True),
    "kid": Metric("KID", -1, None, sets=True),
    "cmmd": Metric("CMMD", -1, None, sets=True),
}


def metric_named(name: str) -> Metric:
    """A metric by its name, that of a further encoder among them."""
    if name.startswith(COSINE):
        return Metric(f"feature cosine, {name.removeprefix(COSINE)}", 1, 0.01, fidelity=True)
    return METRICS[name]


@dataclass(frozen=True)
class Measured:
    """Metrics of both sides, in one order of n pictures.

    `prompts`: of each picture; `ids`: a prompt's id by its text; `values`: of each metric those of A and of B, (n,)
    each; `sets`: of each metric of sets A's, B's and the centre of their difference; `reasons`: why one is missing.
    """

    prompts: list[str]
    ids: dict[str, str]
    values: dict[str, tuple[np.ndarray, np.ndarray]]
    sets: dict[str, tuple[float, float, Centre]]
    reasons: dict[str, str]


def measure(
    sides: Sides, encoders: Sequence[str], embedders: Mapping[str, Embedder], wanted: Collection[str] = ()
) -> Measured:
    """The `wanted` metrics of both sides, or every one that their pictures and these encoders allow.

    The first encoder is that of `feature_cosine`, prompt alignment, KID and CMMD; each other one is a `cosine_NAME`.
    """
    settings = Benchmark(features=encoders[0], cosines=list(encoders[1:]))
    extractors = {n: feature_extractor(n, embedder_named(n, embedders, "--encoders")) for n in encoders}
    a, b, base = (judged(images, sides.images[2], extractors, settings, CACHE) for images in sides.images)
    (of_a, reasons), (of_b, _) = (pair_values(base, side) for side in (a, b))
    values = {name: (of_a[name], of_b[name]) for name in of_b if name in METRICS or name.startswith(COSINE)}
    about = [sides.images[2][pair]["json"] for pair in sorted(sides.images[2])]
    if reason := no_objects(about):
        reasons |= {"objects": reason}
    elif not wanted or "objects" in wanted:
        values["objects"] = (objects_right(a), objects_right(b))
    prompts = np.array(a["prompts"])
    raw = a["features"], b["features"], base["features"]
    unit = unit_rows(raw[0]), unit_rows(raw[1]), unit_rows(raw[2])
    sets = {
        "kid": set_difference(*raw, prompts, polynomial_kernel),
        "cmmd": set_difference(*unit, prompts, gaussian_kernel),
    }
    ids = {sample["prompt"]: sample["prompt_id"] for sample in reversed(about)}
    reasons = {name: reason for name, reason in reasons.items() if name in METRICS and (not wanted or name in wanted)}
    return Measured(a["prompts"], ids, values, sets, reasons)


def no_objects(about: Sequence[dict]) -> str:
    """Why the oracle of the shapes world cannot check pictures of such records; empty where it can."""
    if any((sample["width"], sample["height"]) != (IMAGE_SIZE, IMAGE_SIZE) for sample in about):
        return f"the oracle reads pictures of the shapes world, {IMAGE_SIZE} x {IMAGE_SIZE} pixels"
    if not all(any(parse_caption(sample["prompt"]).values()) for sample in about):
        return "the oracle needs prompts that name a shape, colour, size, place or background each"
    return ""


def objects_right(side: dict) -> np.ndarray:
    """Share (n,) of the attributes that each prompt names which the oracle reads from the picture."""
    shares = []
    for png, prompt in zip(side["pngs"], side["prompts"], strict=True):
        named = {name: value for name, value in parse_caption(prompt).items() if value}
        seen = oracle(rgb_image(png))
        shares.append(sum(seen[name] == value for name, value in named.items()) / len(named))
    return np.array(shares)


# Sets of pictures ----------------------------------------------------------------------------------------------------

Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]


def polynomial_kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(x . y / d + 1)^3 of rows (n, d) and (m, d): that of KID (Binkowski et al. 2018)."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def gaussian_kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """1000 exp(-|x - y|^2 / 200) of rows (n, d) and (m, d): that of CMMD (Jayasumana et al. 2024), on unit vectors."""
    squares = (x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T
    return CMMD_SCALE * np.exp(-np.maximum(squares, 0) / (2 * CMMD_SIGMA**2))


def unit_rows(features: np.ndarray) -> np.ndarray:
    """Rows (n, d) at length 1."""
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def set_difference(
    a: np.ndarray, b: np.ndarray, base: np.ndarray, prompts: np.ndarray, kernel: Kernel
) -> tuple[float, float, Centre]:
    """Squared MMD of A (n, d) and of B to the base, and the centre of B's less A's over prompts.

    U-statistics over pairs of different prompts (Gretton et al. 2012), whose terms average the pictures of a prompt: so
    pictures of one prompt, alike on all sides, bias nothing. The error is the jackknife's over prompts.
    """
    _, unit = np.unique(prompts, return_inverse=True)
    members = np.eye(unit.max() + 1)[unit] / np.bincount(unit)[unit][:, None]  # (n, prompts), columns sum to 1

    def term(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return members.T @ kernel(x, y) @ members

    own = term(base, base)
    terms = []
    for side in (a, b):
        cross = term(side, base)
        terms.append(term(side, side) - cross - cross.T + own)
    whole, without = off_diagonal_means(terms[1] - terms[0])
    return (
        off_diagonal_means(terms[0])[0],
        off_diagonal_means(terms[1])[0],
        Centre(whole, float(jackknife_error(without)), len(without)),
    )


def off_diagonal_means(terms: np.ndarray) -> tuple[float, np.ndarray]:
    """The mean of a symmetric matrix (n, n) off its diagonal, and the same without each of the n rows and columns."""
    n = len(terms)
    rows = terms.sum(axis=1) - np.diag(terms)
    total = rows.sum()
    without = (total - 2 * rows) / ((n - 1) * (n - 2)) if n > 2 else np.full(n, total / (n * (n - 1)))
    return float(total / (n * (n - 1))), without
