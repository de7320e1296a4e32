"""The oracle of the shapes world: reads the five attributes back from pixels, or says that it cannot.

It models nothing of how a picture was made but the templates of the shapes: the same for renders and for what a
generator drew.
"""

from functools import lru_cache

import numpy as np
from PIL import Image

from ditscope.shapes.world import ATTRIBUTES, BACKGROUNDS, COLOURS, IMAGE_SIZE, PLACES, SHAPES, coverage

UNCLEAR = "unclear"
SMOOTH = 0.7  # pixels of blur before anything is read


@lru_cache(maxsize=1)
def _moments() -> dict[str, tuple[float, float]]:
    """For each shape its area over radius squared, and its centroid's downward offset over the radius."""
    result = {}
    for shape in SHAPES:
        alpha = coverage(shape, 32, 32, 24, 8)
        area = float(alpha.sum())
        centroid = float((alpha.sum(1) * (np.arange(IMAGE_SIZE) + 0.5)).sum() / area)
        result[shape] = (area / 24**2, (centroid - 32) / 24)
    return result


def _nearest(colour: np.ndarray, table: dict[str, tuple[int, int, int]], limit: float) -> str:
    """The table's colour nearest to an RGB value, or unclear beyond the limit or half-way between two."""
    names = list(table)
    distance = np.linalg.norm(np.asarray([table[n] for n in names], float) - colour, axis=1)
    first, second = np.argsort(distance)[:2]
    if distance[first] > limit or distance[first] > 0.8 * distance[second]:
        return UNCLEAR
    return names[int(first)]


def _foreground(pixels: np.ndarray, ground: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """The shape's colour (3,) and how much of each pixel it fills (H, W), or None where nothing stands out."""
    from scipy.ndimage import binary_dilation, gaussian_filter, label

    smooth = gaussian_filter(pixels, (SMOOTH, SMOOTH, 0))
    distance = np.linalg.norm(smooth - ground, axis=-1)
    peak = np.partition(distance.ravel(), -24)[-24]
    if peak < 45:
        return None
    parts, count = label(distance > 0.5 * peak)
    if count == 0:
        return None
    sizes = np.bincount(parts.ravel())[1:]
    main = parts == 1 + int(sizes.argmax())
    if sizes.sum() - sizes.max() > 0.2 * sizes.max():
        return None
    core = main & (distance > 0.85 * np.quantile(distance[main], 0.8))
    colour = np.median(pixels[core], axis=0)
    axis = colour - ground
    alpha = np.clip((smooth - ground) @ axis / (axis @ axis), 0, 1)
    return colour, np.where(binary_dilation(main, iterations=2), alpha, 0.0)


def _template(shape: str, x: float, y: float, radius: float, softness: float) -> np.ndarray:
    """A shape's coverage blurred by `softness` pixels, (64, 64)."""
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(coverage(shape, x, y, radius, 3), softness)


def _scaled(alpha: np.ndarray, template: np.ndarray) -> np.ndarray:
    """The template times the factor, within a quarter of one, that brings it nearest to alpha."""
    power = float(np.square(template).sum())
    factor = float((template * alpha).sum()) / power if power else 1.0
    return template * min(max(factor, 0.8), 1.25)


def _fit(alpha: np.ndarray) -> tuple[str, float, float, float, float, float]:
    """The nearest template (shape, x, y, radius), its soft overlap, and its lead over the next shape.

    Least squares: a coarse look at every shape, then a Nelder-Mead search over place, radius and softness for the
    three nearest. The lead is the difference of squared errors over the squared norm of alpha.
    """
    from scipy.optimize import minimize

    def error(values: np.ndarray, shape: str) -> float:
        x, y, radius, softness = values
        if not (3 < radius < 24 and 0.3 < softness < 2.5):
            return float("inf")
        return float(np.square(alpha - _scaled(alpha, _template(shape, x, y, radius, softness))).sum())

    area = float(alpha.sum())
    pixels = np.arange(IMAGE_SIZE) + 0.5
    centre_x, centre_y = float((alpha.sum(0) * pixels).sum() / area), float((alpha.sum(1) * pixels).sum() / area)
    coarse = []
    for shape, (unit_area, offset) in _moments().items():
        base = float(np.sqrt(area / unit_area))
        if base > 22:
            continue
        starts = [
            (centre_x, centre_y - offset * base * scale, base * scale, softness)
            for scale in (0.92, 1.0, 1.08)
            for softness in (SMOOTH, 1.2)
        ]
        coarse.append(min((error(np.asarray(start), shape), shape, start) for start in starts))
    fits: list[tuple[float, str, float, float, float, float]] = []
    for _, shape, start in sorted(coarse)[:3]:
        x, y, radius, softness = start
        simplex = [
            start,
            (x + 0.5, y, radius, softness),
            (x, y + 0.5, radius, softness),
            (x, y, 1.04 * radius, softness),
            (x, y, radius, softness + 0.2),
        ]
        fit = minimize(
            error,
            start,
            args=(shape,),
            method="Nelder-Mead",
            options={"maxfev": 60, "initial_simplex": np.asarray(simplex)},
        )
        x, y, radius, softness = (float(value) for value in fit.x)
        fits.append((float(fit.fun), shape, x, y, radius, softness))
    fits.sort()
    if len(fits) < 2:
        return UNCLEAR, centre_x, centre_y, 32.0, 0.0, 0.0
    nearest, shape, x, y, radius, softness = fits[0]
    template = _scaled(alpha, _template(shape, x, y, radius, softness))
    overlap = float(np.minimum(alpha, template).sum() / np.maximum(alpha, template).sum())
    return shape, x, y, radius, overlap, (fits[1][0] - nearest) / float(np.square(alpha).sum())


def oracle(image: Image.Image) -> dict[str, str]:
    """The five attributes read back from the pixels; each may be unclear, which counts as wrong.

    The background is the border's median; the shape is the template nearest to what stands out from it;
    size and place are that template's radius and centre.
    """
    pixels = np.asarray(image.convert("RGB").resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BOX), np.float32)
    border = np.concatenate([pixels[:3].reshape(-1, 3), pixels[-3:].reshape(-1, 3)])
    border = np.concatenate([border, pixels[:, :3].reshape(-1, 3), pixels[:, -3:].reshape(-1, 3)])
    ground = np.median(border, axis=0)
    attributes = dict.fromkeys(ATTRIBUTES, UNCLEAR)
    attributes["background"] = _nearest(ground, BACKGROUNDS, 60)
    foreground = _foreground(pixels, ground)
    if foreground is None:
        return attributes
    colour, alpha = foreground
    attributes["colour"] = _nearest(colour, COLOURS, 75)
    if alpha.sum() < 25:
        return attributes
    shape, x, y, radius, overlap, lead = _fit(alpha)
    if overlap >= 0.66 and lead >= 0.004:
        attributes["shape"] = shape
    if 5.5 <= radius <= 10.8:
        attributes["size"] = "small"
    elif 11.2 <= radius <= 17.5:
        attributes["size"] = "large"
    distance = {name: float(np.hypot(x - px, y - py)) for name, (px, py) in PLACES.items()}
    place = min(distance, key=distance.__getitem__)
    if distance[place] <= 5.5:
        attributes["place"] = place
    return attributes
