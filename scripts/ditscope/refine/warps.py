"""Frames between two key frames by moving both along a flow; shared by the ways to estimate that flow.

A frame is (channels, rows, columns) float64; a flow (2, rows, columns) tells in cells how far what is at each place of
one frame has gone in the other: a(x) = b(x + flow(x)).
"""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
from scipy.ndimage import map_coordinates

from ditscope.core.errors import InputError
from ditscope.refine.known import Known, cells, nearness
from ditscope.refine.patches import patchify

FlowOf = Callable[[np.ndarray, np.ndarray], np.ndarray]
STILL = 0.01  # weight of what does not move where it meets what does; squared cells


def fill_by_flow(known: Known, flow_of: FlowOf, method: str) -> tuple[np.ndarray, np.ndarray]:
    """Fill missing frames of videos by warping the keys before and after; beyond the first and last key, copy it.

    Confidence of a frame is exp(-m / 2), m the mean squared difference of the two warped keys; of a copy, what the
    distance to its key gives. Raises InputError where keys are not frames of a video.
    """
    if len(known.grid) != 3 or known.nodes != known.grid[:1]:
        raise InputError(f"refine.interpolation: `{method}` moves key frames; it needs a video and `keys: frames`")
    videos, confidence = cells(known.tokens, known).copy(), nearness(known)
    for video, keys, sure in zip(videos, known.keys, confidence, strict=True):
        where = np.flatnonzero(keys)
        video[:, : where[0]] = video[:, where[:1]]
        video[:, where[-1] + 1 :] = video[:, where[-1:]]
        for start, stop in pairwise(where):
            if stop - start < 2:
                continue
            a, b = video[:, start], video[:, stop]
            forward, backward = flow_of(a, b), flow_of(b, a)
            for t in range(start + 1, stop):
                video[:, t], sure[t] = between(a, b, forward, backward, (t - start) / (stop - start))
    return patchify(videos, known.patch), confidence


def between(
    a: np.ndarray, b: np.ndarray, forward: np.ndarray, backward: np.ndarray, share: float
) -> tuple[np.ndarray, float]:
    """The frame at `share` of the way from a to b, and its confidence.

    Both flows are carried along to that time (Baker et al. 2011, section 3.3.4, with a weighted mean where several
    arrive at one place), then both frames are read where the flow at that time comes from and goes to.
    """
    moves = [carried(forward, share), carried(backward, 1 - share)]
    weight = moves[0][1] + moves[1][1]
    flow = np.where(weight > 0, (moves[0][0] - moves[1][0]) / np.maximum(weight, 1e-300), 0.0)
    first, second = warp(a, -share * flow), warp(b, (1 - share) * flow)
    frame = (1 - share) * first + share * second
    return frame, float(np.exp(-((first - second) ** 2).mean() / 2))


def carried(flow: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """A flow moved `share` of its way and spread over the four nearest cells: weighted sum (2, ...) and weight (...).

    What moves weighs more than what stands still: it is mostly in front.
    """
    size = np.array(flow.shape[1:])
    place = np.indices(flow.shape[1:]).reshape(2, -1) + share * flow.reshape(2, -1)
    importance = STILL + (flow**2).sum(0).ravel()
    corner = np.floor(place).astype(int)
    fraction = place - corner
    total, weight = np.zeros((2, size.prod())), np.zeros(size.prod())
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        step = np.array([[row], [column]])
        cell = corner + step
        inside = ((cell >= 0) & (cell < size[:, None])).all(0)
        w = (importance * np.where(step, fraction, 1 - fraction).prod(0))[inside]
        index = np.ravel_multi_index(tuple(cell[:, inside]), tuple(size))
        weight += np.bincount(index, w, size.prod())
        for axis in (0, 1):
            total[axis] += np.bincount(index, w * flow.reshape(2, -1)[axis, inside], size.prod())
    return total.reshape(flow.shape), weight.reshape(flow.shape[1:])


def warp(frame: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """The frame read at x + flow(x), linear between cells; outside, its nearest cell."""
    place = np.indices(frame.shape[1:]) + flow
    return np.stack([map_coordinates(channel, place, order=1, mode="nearest") for channel in frame])
