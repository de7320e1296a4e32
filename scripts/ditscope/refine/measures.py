"""What a refined sample is worth beside the true one: pure functions of arrays, one number per sample.

Tokens are (samples, tokens, size) in standard deviations of the values, pictures (samples, [frames,] height, width, 3)
uint8, features (samples, frames, dimensions), of a still picture one frame.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from PIL import Image

from ditscope.core import metrics
from ditscope.core.intervals import jackknife_interval, mean_interval, share_interval
from ditscope.refine.warps import FlowOf, warp
from ditscope.shapes.oracle import oracle
from ditscope.shapes.world import parse_caption

HIGHER_IS_BETTER = frozenset({"psnr_db", "oracle_all", "oracle_frames", "off_walls"})
SHARES = frozenset({"oracle_all", "oracle_frames", "off_walls", "in_walls"})  # from 0 to 1
READ = 3  # frames of a film that the oracle reads; each takes some 50 ms
PLACE = "place"  # what a film has none of


def masked_error(tokens: np.ndarray, clean: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Mean squared error (samples,) over the tokens in `mask` (samples, tokens)."""
    squared = np.square(tokens - clean).mean(-1)
    return np.where(mask, squared, 0).sum(1) / mask.sum(1)


def psnr_db(pictures: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio (samples,) in dB; of a film over all its frames."""
    return np.array([metrics.psnr(b, a) for a, b in zip(pictures, truth, strict=True)])


def feature_distance(features: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Euclidean distance (samples,) to the features of the true sample, mean over frames."""
    return np.linalg.norm(features - truth, axis=-1).mean(1)


def flicker(pictures: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Mean absolute difference (samples,), in grey levels, of the change from frame to frame to that of the true film.

    0 where everything changes as in truth, however far off a frame is: an offset of all frames does not flicker.
    """
    steps = [np.diff(films.astype(np.float64), axis=1) for films in (pictures, truth)]
    return np.abs(steps[0] - steps[1]).mean((1, 2, 3, 4))


VISIBLE = 12.75  # grey levels by which true frames may differ along their flow; 5 % of the range

Flow = list[tuple[np.ndarray, np.ndarray]]  # of each frame but the first: the flow to the one before, where it holds


def true_flow(film: np.ndarray, flow_of: FlowOf) -> Flow:
    """The flow (2, height, width) of each frame of a film (frames, height, width, 3) to the one before, and where.

    It does not hold where the frames do not match along it: there something comes out from behind another.
    """
    frames = np.moveaxis(film.astype(np.float64), -1, 1)
    pairs = []
    for before, after in pairwise(frames):
        flow = flow_of(after / 255, before / 255)
        pairs.append((flow, np.abs(after - warp(before, flow)).max(0) <= VISIBLE))
    return pairs


def warp_error(pictures: np.ndarray, flows: Sequence[Flow]) -> np.ndarray:
    """Root mean squared difference (samples,), in grey levels, of each frame to the one before moved along the flow.

    The flow is that of the true film (Lai et al. 2018, equation 12), so what moves otherwise is an error too.
    """
    errors = []
    for film, flow in zip(pictures, flows, strict=True):
        frames = np.moveaxis(film.astype(np.float64), -1, 1)
        squared = [
            np.square(after - warp(before, along)).mean(0)[holds]
            for (before, after), (along, holds) in zip(pairwise(frames), flow, strict=True)
        ]
        errors.append(np.sqrt(np.concatenate(squared).mean()))
    return np.array(errors)


def attributes_of(label: str, film: bool) -> dict[str, str]:
    """The attributes of the shapes world that a label names; empty where it is no whole description."""
    named = parse_caption(label)
    if film:
        named.pop(PLACE)
    whole = {name: value for name, value in named.items() if value is not None}
    return whole if len(whole) == len(named) else {}


def oracle_share(pictures: np.ndarray, wanted: Sequence[Mapping[str, str]]) -> np.ndarray:
    """Share (samples,) of frames in which the oracle reads every wanted attribute; of a picture 0 or 1.

    Of a film at most READ frames are read, evenly between the first and the last, which are keys most often.
    """
    shares = []
    for picture, attributes in zip(pictures, wanted, strict=True):
        frames = picture[None] if picture.ndim == 3 else picture[inner(len(picture))]
        read = [oracle(Image.fromarray(frame)) for frame in frames]
        shares.append(np.mean([all(seen[k] == v for k, v in attributes.items()) for seen in read]))
    return np.array(shares, float)


def inner(frames: int) -> np.ndarray:
    """At most READ numbers of frames, evenly between the first and the last."""
    count = max(min(READ, frames - 2), 1)
    return np.unique(np.linspace(0, frames - 1, count + 2).round().astype(int)[1:-1])


# Sets ---------------------------------------------------------------------------------------------------------------


def kernel_distances(truth: np.ndarray, features: np.ndarray, units: np.ndarray) -> tuple[float, np.ndarray]:
    """Squared kernel distance (KID) of features (samples, dimensions) to true ones; and without each unit (units,).

    With the kernel (x . y / dimensions + 1)^3 (Binkowski et al. 2018) over all pairs of samples of different units,
    which `units` (samples,) numbers from 0: unbiased though each sample has its own true one in the other set (Gretton
    et al. 2012, lemma 6), so it may be below 0. NaN where there is no such pair.
    """
    member = np.eye(units.max() + 1)[units]
    pairs = left_out(np.outer(member.sum(0), member.sum(0)))

    def sums(a: np.ndarray, b: np.ndarray) -> tuple[float, np.ndarray]:
        kernel = (a.astype(np.float64) @ b.T.astype(np.float64) / a.shape[1] + 1) ** 3
        return left_out(member.T @ kernel @ member)

    parts = [sums(truth, truth), sums(features, features), sums(truth, features)]
    with np.errstate(divide="ignore", invalid="ignore"):
        whole, without = (np.divide(parts[0][i] + parts[1][i] - 2 * parts[2][i], pairs[i]) for i in (0, 1))
    return float(whole), without


def left_out(blocks: np.ndarray) -> tuple[float, np.ndarray]:
    """Sum of (units, units) off its diagonal, and the same without each unit (units,)."""
    apart = blocks * (1 - np.eye(len(blocks)))
    return float(apart.sum()), apart.sum() - apart.sum(0) - apart.sum(1)


# Estimates ----------------------------------------------------------------------------------------------------------


def mean_row(values: np.ndarray, plain: np.ndarray | None, units: np.ndarray, metric: str) -> dict[str, float | None]:
    """Mean of a metric (samples,) over units with its 95 % interval, and how much better it is than `plain`.

    `plain` is the metric of the interpolation of the same samples, or None for the interpolation itself. The gain is
    paired: its interval is that of the mean difference.
    """
    own = mean_interval(values, units.tolist())
    low, high = own.low, own.high
    if metric in SHARES and own.std is not None:
        bounds = share_interval(np.array(own.mean), np.array(own.std / np.sqrt(own.units)), np.array(own.units))
        low, high = map(finite, bounds)
    row: dict[str, float | None] = {"value": own.mean, "low": low, "high": high}
    if plain is None:
        return row | {"gain": None, "gain_low": None, "gain_high": None}
    better = values - plain if metric in HIGHER_IS_BETTER else plain - values
    gain = mean_interval(better, units.tolist())
    return row | {"gain": gain.mean, "gain_low": gain.low, "gain_high": gain.high}


def kernel_row(own: tuple[float, np.ndarray], plain: tuple[float, np.ndarray] | None) -> dict[str, float | None]:
    """The same of a kernel distance, given as `kernel_distances` gives it; intervals by the jackknife over units."""
    low, high = jackknife_interval(own[0], own[1])
    row = {"value": own[0], "low": finite(low), "high": finite(high)}
    if plain is None:
        return row | {"gain": None, "gain_low": None, "gain_high": None}
    gain = plain[0] - own[0]
    with np.errstate(invalid="ignore"):  # without one of two units there is no pair
        low, high = jackknife_interval(gain, plain[1] - own[1])
    return row | {"gain": gain, "gain_low": finite(low), "gain_high": finite(high)}


def finite(value: np.ndarray) -> float | None:
    """A number, or None for NaN, which stands for an interval of too few units."""
    return float(value) if np.isfinite(value) else None
