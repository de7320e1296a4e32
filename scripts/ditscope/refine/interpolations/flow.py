"""Missing frames by optical flow between key frames."""

import numpy as np
from scipy.ndimage import convolve, gaussian_filter, median_filter, zoom

from ditscope.refine.known import Known
from ditscope.refine.settings import Refine
from ditscope.refine.warps import fill_by_flow, warp

SMOOTHNESS = 0.1  # weight of the flow's smoothness against the match, in variances of the frames
COARSEST = 6  # cells along the shorter side where the pyramid begins
WARPS, SWEEPS = 5, 40  # linearisations per scale, and Jacobi sweeps of each
REACH = 1.0  # cells that one linearisation is trusted for
NEIGHBOURS = np.array([[1, 2, 1], [2, 0, 2], [1, 2, 1]]) / 12  # the mean around a cell (Horn and Schunck 1981)


def fill(known: Known, settings: Refine) -> tuple[np.ndarray, np.ndarray]:
    """See `fill_by_flow` and `optical_flow`."""
    return fill_by_flow(known, optical_flow, "flow")


def optical_flow(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Flow (2, rows, columns) from frame a to frame b, each (channels, rows, columns).

    Horn and Schunck (1981) over all channels, from coarse to fine, b being warped back before each linearisation.
    """
    variance = max(float(np.concatenate([a, b]).var() * len(a)), 1e-12)
    a, b = a / np.sqrt(variance), b / np.sqrt(variance)
    scales = max(int(np.log2(min(a.shape[1:]) / COARSEST)), 0)
    flow = np.zeros((2, *a.shape[1:]))
    for scale in range(scales, -1, -1):
        size = tuple(max(-(-n // 2**scale), 1) for n in a.shape[1:])
        small, moved = (resized(x, size, scale) for x in (a, b))
        ratio = np.array(size) / flow.shape[1:]
        flow = resized(flow, size, 0) * ratio[:, None, None]
        for _ in range(WARPS):
            flow = linearised(small, moved, flow)
    return flow


def resized(frame: np.ndarray, size: tuple[int, ...], scale: int) -> np.ndarray:
    """A frame at another size; blurred first where it shrinks by 2^scale."""
    if scale:
        frame = gaussian_filter(frame, (0, *(0.5 * 2**scale,) * 2), mode="nearest")
    factors = (1, *(n / m for n, m in zip(size, frame.shape[1:], strict=True)))
    return zoom(frame, factors, order=1, mode="nearest", grid_mode=True)


def linearised(a: np.ndarray, b: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """A better flow: minimises |b(x + flow) + gradient . d - a|^2 + SMOOTHNESS |gradient(flow + d)|^2 by Jacobi.

    The step d is bounded and the flow median filtered, against outliers (Sun, Roth and Black 2010).
    """
    seen = warp(b, flow)
    slope = np.stack([np.gradient(seen, axis=axis) if seen.shape[axis] > 1 else 0 * seen for axis in (1, 2)])
    yy, xx, yx = ((slope[i] * slope[j]).sum(0) for i, j in ((0, 0), (1, 1), (0, 1)))
    pull = (slope * (seen - a)).sum(1)
    yy, xx = yy + SMOOTHNESS, xx + SMOOTHNESS
    determinant = yy * xx - yx**2
    better = flow
    for _ in range(SWEEPS):
        around = np.stack([convolve(f, NEIGHBOURS, mode="nearest") for f in better])
        y, x = SMOOTHNESS * (around - flow) - pull
        better = flow + np.stack([xx * y - yx * x, yy * x - yx * y]) / determinant
    better = flow + np.clip(better - flow, -REACH, REACH)
    return np.stack([median_filter(f, 3, mode="nearest") for f in better])
