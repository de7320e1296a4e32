"""What is written in a figure as it is drawn: each line with its size and place, read from the renderer."""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.figure import Figure

from ditscope.style import place

DPI = 72  # one pixel is a point


@dataclass(frozen=True)
class Line:
    """A line of text: its size in points, whether it is a formula, and its box (left, bottom, right, top) in points."""

    text: str
    size: float
    formula: bool
    box: tuple[float, float, float, float]
    angle: float = 0

    def overlaps(self, other: "Line", slack: float = 1.5) -> bool:
        """Whether two lines hide parts of each other, by more than `slack` points in both directions."""
        wide = min(self.box[2], other.box[2]) - max(self.box[0], other.box[0])
        high = min(self.box[3], other.box[3]) - max(self.box[1], other.box[1])
        return wide > slack and high > slack


class Recorder(RendererAgg):
    """A renderer that keeps each line of text it is given."""

    def __init__(self, width: float, height: float) -> None:
        super().__init__(width, height, DPI)
        self.lines: list[Line] = []

    def draw_text(self, gc, x, y, s, prop, angle, ismath=False, mtext=None):
        w, h, d = self.get_text_width_height_descent(s, prop, ismath)
        cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
        corners = np.array([(a * cos - b * sin, a * sin + b * cos) for a in (0, w) for b in (-d, h - d)])
        corners += (x, self.height - y)
        box = (*corners.min(axis=0).tolist(), *corners.max(axis=0).tolist())
        self.lines.append(Line(s, prop.get_size_in_points(), bool(ismath), box, angle))


def lines_of(figure: Figure) -> list[Line]:
    """Every line that is written in a figure, placed as `style.save` places it."""
    place(figure, DPI)
    width, height = figure.bbox.size
    recorder = Recorder(width, height)
    figure.draw(recorder)
    return [line for line in recorder.lines if line.text.strip()]


def faults(figure: Figure, least: float = 6) -> list[str]:
    """What cannot be read: lines that are too small, formulas (their exponents are), cut off, or hidden by others."""
    lines = lines_of(figure)
    width, height = figure.bbox.size
    told = [f"{line.size:g} pt: {line.text}" for line in lines if line.size < least or line.formula]
    for line in lines:
        left, bottom, right, top = line.box
        if left < -1 or bottom < -1 or right > width + 1 or top > height + 1:
            told.append(f"cut off: {line.text}")
    upright = [line for line in lines if line.angle == 0]
    told += [f"overlap: {a.text} | {b.text}" for a, b in combinations(upright, 2) if a.overlaps(b)]
    return told
