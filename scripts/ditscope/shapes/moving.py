"""Moving shapes: films of one shape of the shapes world that travels over a plain background, with captions."""

import hashlib
import itertools
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ditscope.shapes.world import BACKGROUNDS, COLOURS, HELD_OUT_SHARE, IMAGE_SIZE, SHAPES, SIZES, coverage

MOTIONS = {
    "to the right": "straight",
    "to the left": "straight",
    "upwards": "straight",
    "downwards": "straight",
    "in hops to the right": "bouncing",
    "in hops to the left": "bouncing",
    "clockwise": "curved",
    "counterclockwise": "curved",
}
ATTRIBUTES = ("shape", "colour", "size", "motion", "background")
VALUES = {
    "shape": SHAPES,
    "colour": tuple(COLOURS),
    "size": tuple(SIZES),
    "motion": tuple(MOTIONS),
    "background": tuple(BACKGROUNDS),
}
TEMPLATES = (
    "a {size} {colour} {shape} moves {motion} on a {background} background",
    "on a {background} background a {size} {colour} {shape} moves {motion}",
    "{size} {colour} {shape} moving {motion}, {background} background",
)
MARGIN = 16.0  # pixels that centres keep from the borders


@dataclass(frozen=True)
class Move:
    """One combination of the five attributes of a film."""

    shape: str
    colour: str
    size: str
    motion: str
    background: str

    def attributes(self) -> dict[str, str]:
        """The attributes by name, in the order of ATTRIBUTES."""
        return {name: getattr(self, name) for name in ATTRIBUTES}


def all_moves() -> list[Move]:
    """All 3,072 combinations in a fixed order."""
    return [Move(*values) for values in itertools.product(*VALUES.values())]


def describe_move(move: Move, template: int = 0) -> str:
    """The caption of a film; template 0 is the canonical one."""
    return TEMPLATES[template].format(**move.attributes())


@lru_cache(maxsize=1)
def held_out_moves() -> frozenset[Move]:
    """The 461 combinations that nothing is trained on: the 15 % with the smallest SHA-256 of their caption."""
    moves = all_moves()
    ranked = sorted(moves, key=lambda move: hashlib.sha256(describe_move(move).encode()).hexdigest())
    return frozenset(ranked[: round(HELD_OUT_SHARE * len(moves))])


def way(motion: str, frames: int, rng: np.random.Generator) -> np.ndarray:
    """Centres (frames, 2), x and y in pixels, of a shape that moves so; start, height and length vary."""
    t = np.linspace(0, 1, frames)
    low, high = MARGIN, IMAGE_SIZE - MARGIN
    if MOTIONS[motion] == "curved":
        radius, phase = rng.uniform(11, 15), rng.uniform(0, 2 * np.pi)
        turn = (1 if motion == "clockwise" else -1) * rng.uniform(0.7, 0.9) * 2 * np.pi
        centre = IMAGE_SIZE / 2 + rng.uniform(-2, 2, 2)
        return centre + radius * np.stack([np.cos(phase + turn * t), np.sin(phase + turn * t)], 1)
    along = rng.uniform(low, low + 4) + (high - low - 4 + rng.uniform(-2, 2)) * t
    if MOTIONS[motion] == "bouncing":
        hops, floor = rng.uniform(1, 1.8), high - rng.uniform(0, 3)
        across = floor - rng.uniform(16, 26) * np.abs(np.sin(np.pi * (hops * t + rng.uniform(0, 0.5))))
    else:
        across = np.full(frames, rng.uniform(low, high))
    if motion.endswith(("left", "upwards")):
        along = IMAGE_SIZE - along
    return np.stack([across, along] if motion in ("upwards", "downwards") else [along, across], 1)


def render_move(move: Move, frames: int, rng: np.random.Generator) -> np.ndarray:
    """A film (frames, 64, 64, 3) uint8: colours, radius and background vary between films, never within one."""
    radius = SIZES[move.size] * rng.uniform(0.93, 1.07)
    colour = np.asarray(COLOURS[move.colour]) + rng.uniform(-8, 8, 3)
    ground = np.asarray(BACKGROUNDS[move.background]) + rng.uniform(-6, 6)
    alpha = np.stack([coverage(move.shape, x, y, radius) for x, y in way(move.motion, frames, rng)])[..., None]
    return np.clip(np.rint(alpha * colour + (1 - alpha) * ground), 0, 255).astype(np.uint8)
