"""The shapes world: 64 x 64 pictures of one shape on a plain background, with captions."""

import hashlib
import io
import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

IMAGE_SIZE = 64
SHAPES = ("circle", "square", "triangle", "ring", "cross", "star")
COLOURS = {
    "red": (222, 28, 32),
    "orange": (246, 136, 16),
    "yellow": (250, 228, 36),
    "green": (30, 150, 60),
    "cyan": (36, 208, 218),
    "blue": (36, 66, 222),
    "purple": (124, 40, 170),
    "pink": (248, 92, 180),
}
SIZES = {"small": 8.0, "large": 14.0}
PLACES = {"left": (17, 32), "right": (47, 32), "top": (32, 17), "bottom": (32, 47), "center": (32, 32)}
BACKGROUNDS = {"white": (248, 248, 248), "black": (14, 14, 14), "gray": (128, 128, 128), "beige": (226, 206, 166)}
ATTRIBUTES = ("shape", "colour", "size", "place", "background")
VALUES = {
    "shape": SHAPES,
    "colour": tuple(COLOURS),
    "size": tuple(SIZES),
    "place": tuple(PLACES),
    "background": tuple(BACKGROUNDS),
}
TEMPLATES = (
    "a {size} {colour} {shape} at the {place} on a {background} background",
    "{size} {colour} {shape}, {place}, {background} background",
    "a {background} background with a {size} {colour} {shape} at the {place}",
    "at the {place} there is a {size} {colour} {shape} on {background}",
    "on a {background} background, a {colour} {shape} of {size} size at the {place}",
    "the {shape} is {colour} and {size}, placed at the {place} of a {background} background",
    "picture of a {colour} {shape}, {size}, at the {place}, against {background}",
)
SYNONYMS = {
    "shape": {"disc": "circle", "disk": "circle", "donut": "ring", "plus": "cross"},
    "colour": {"violet": "purple", "turquoise": "cyan"},
    "size": {"big": "large", "huge": "large", "tiny": "small", "little": "small"},
    "place": {"middle": "center", "centre": "center", "upper": "top", "lower": "bottom"},
    "background": {"grey": "gray"},
}
HELD_OUT_SHARE = 0.15


@dataclass(frozen=True)
class Scene:
    """One combination of the five attributes."""

    shape: str
    colour: str
    size: str
    place: str
    background: str

    def attributes(self) -> dict[str, str]:
        """The attributes by name, in the order of ATTRIBUTES."""
        return {name: getattr(self, name) for name in ATTRIBUTES}


def all_scenes() -> list[Scene]:
    """All 1,920 combinations in a fixed order."""
    return [Scene(*values) for values in itertools.product(*(VALUES[name] for name in ATTRIBUTES))]


@lru_cache(maxsize=1)
def held_out() -> tuple[Scene, ...]:
    """The 288 combinations that no model is trained on: the 15 % with the smallest SHA-256 of their caption."""
    scenes = all_scenes()
    ranked = sorted(scenes, key=lambda scene: hashlib.sha256(caption(scene).encode()).hexdigest())
    chosen = set(ranked[: round(HELD_OUT_SHARE * len(scenes))])
    for first, second in itertools.combinations(ATTRIBUTES, 2):
        seen = {(getattr(s, first), getattr(s, second)) for s in scenes if s not in chosen}
        assert len(seen) == len(VALUES[first]) * len(VALUES[second]), (first, second)
    return tuple(scene for scene in scenes if scene in chosen)


def train_scenes() -> tuple[Scene, ...]:
    """The 1,632 combinations that models may be trained on."""
    excluded = set(held_out())
    return tuple(scene for scene in all_scenes() if scene not in excluded)


def caption(scene: Scene, template: int = 0) -> str:
    """The caption of a scene; template 0 is the canonical one."""
    return TEMPLATES[template].format(**scene.attributes())


def describe(named: Mapping[str, str]) -> str:
    """The canonical caption of the attributes that are named; the others are left out, the shape becomes `shape`.

    All five give `caption(scene)`; none gives `a shape`.
    """
    words = ["a", named.get("size"), named.get("colour"), named.get("shape", "shape")]
    if "place" in named:
        words.append(f"at the {named['place']}")
    if "background" in named:
        words.append(f"on a {named['background']} background")
    return " ".join(word for word in words if word)


def is_description(text: str) -> bool:
    """Whether a text is one that `describe` writes."""
    named = {name: value for name, value in parse_caption(text).items() if value is not None}
    return text == describe(named)


def parse_caption(text: str) -> dict[str, str | None]:
    """The attributes a text names; None where it names none or two different values."""
    words = re.findall(r"[a-z]+", text.lower())
    attributes: dict[str, str | None] = {}
    for name in ATTRIBUTES:
        values = {SYNONYMS[name].get(word, word) for word in words}.intersection(VALUES[name])
        attributes[name] = values.pop() if len(values) == 1 else None
    return attributes


def _inside(shape: str, dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """Whether points, in units of the shape's radius and with y downwards, lie inside the shape."""
    distance = np.hypot(dx, dy)
    if shape == "circle":
        return distance <= 1.0
    if shape == "square":
        return np.maximum(np.abs(dx), np.abs(dy)) <= 0.86
    if shape == "ring":
        return (distance <= 1.0) & (distance >= 0.56)
    if shape == "cross":
        near, far = np.minimum(np.abs(dx), np.abs(dy)), np.maximum(np.abs(dx), np.abs(dy))
        return (near <= 0.3) & (far <= 1.0)
    if shape == "triangle":
        return (dy <= 0.8) & (np.abs(dx) <= (dy + 1.0) * (1.0 / 1.8))
    if shape == "star":
        sector = np.pi / 5
        angle = np.abs((np.arctan2(dx, -dy) + sector) % (2 * sector) - sector)
        inner = 0.46
        x, y = distance * np.cos(angle), distance * np.sin(angle)
        ex, ey = inner * np.cos(sector) - 1.0, inner * np.sin(sector)
        return (x - 1.0) * ey - y * ex <= 0.0
    raise ValueError(f"unknown shape {shape!r}; choose from {', '.join(SHAPES)}")


def coverage(shape: str, x: float, y: float, radius: float, supersample: int = 4) -> np.ndarray:
    """The share of each pixel that the shape covers, (64, 64) float32, by supersampling."""
    alpha = np.zeros((IMAGE_SIZE, IMAGE_SIZE), np.float32)
    left, top = (max(int(np.floor(c - radius - 1)), 0) for c in (x, y))
    right, bottom = (min(int(np.ceil(c + radius + 1)), IMAGE_SIZE) for c in (x, y))
    if right <= left or bottom <= top:
        return alpha
    grid_x = left + (np.arange((right - left) * supersample) + 0.5) / supersample
    grid_y = top + (np.arange((bottom - top) * supersample) + 0.5) / supersample
    inside = _inside(shape, (grid_x[None, :] - x) / radius, (grid_y[:, None] - y) / radius)
    blocks = inside.reshape(bottom - top, supersample, right - left, supersample)
    alpha[top:bottom, left:right] = blocks.mean((1, 3))
    return alpha


def render(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """A picture of the scene with jittered position (2 px), radius (7 %) and colours (8 levels)."""
    x, y = np.asarray(PLACES[scene.place]) + rng.uniform(-2, 2, 2)
    radius = SIZES[scene.size] * rng.uniform(0.93, 1.07)
    colour = np.asarray(COLOURS[scene.colour]) + rng.uniform(-8, 8, 3)
    ground = np.asarray(BACKGROUNDS[scene.background]) + rng.uniform(-6, 6)
    alpha = coverage(scene.shape, x, y, radius)[..., None]
    pixels = alpha * colour + (1 - alpha) * ground
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def augment(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Brightness and colour jitter, then softness or blur, noise and JPEG, each in part of the calls."""
    from scipy.ndimage import gaussian_filter

    pixels: np.ndarray = np.asarray(image, np.float32)
    if rng.random() < 0.6:
        pixels = (pixels - 128) * rng.uniform(0.93, 1.07) + 128 + rng.uniform(-8, 8) + rng.uniform(-5, 5, 3)
    if rng.random() < 0.4:
        sigma = rng.uniform(0.3, 1.0)
        pixels = gaussian_filter(pixels, (sigma, sigma, 0))
    if rng.random() < 0.3:
        texture = gaussian_filter(rng.normal(0, 1, pixels.shape), (2, 2, 0))
        pixels = pixels + texture * (rng.uniform(1, 5) / texture.std())
    if rng.random() < 0.4:
        pixels = pixels + rng.normal(0, rng.uniform(1, 8), pixels.shape)
    result = Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))
    if rng.random() < 0.3:
        buffer = io.BytesIO()
        result.save(buffer, "JPEG", quality=int(rng.integers(60, 96)))
        result = Image.open(buffer).convert("RGB")
    return result
