"""What a stage answers: one question, one sentence with its number, and how far that may be trusted."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

SHORTEST = 3  # characters that are left of a text that is cut


@dataclass(frozen=True)
class Answer:
    """The answer of a stage, made from its tables by `answer` in `<stage>/answer.py`."""

    question: str
    sentence: str  # with its number, its interval and n
    figure: str  # the figure that shows it, a name of `publish.figures.FIGURES`
    n: int  # how many units the number rests on
    unit: str  # what these are, as `prompt`
    value: float | None = None  # the number; None where there is none
    low: float | None = None  # its interval; None where there is none
    high: float | None = None
    caveats: tuple[str, ...] = ()  # what else a reader must know: degenerate, noisy, simulated, left out


def counted(n: int, unit: str) -> str:
    """A number and what it counts, as `1 prompt` or `1,015 states`."""
    return f"{n:,} {unit if n == 1 else f'{unit}s'}"


def percent(share: float) -> str:
    """A share in percent, three significant digits."""
    return f"{100 * share:.3g} %"


def measured(value: float, low: float | None, high: float | None, n: int, unit: str, form: str = ".3g") -> str:
    """A number with its 95 % interval and n; without an interval it says so. None and NaN stand for no interval."""
    if low is None or high is None or not (isfinite(low) and isfinite(high)):
        return f"{value:{form}} (n = {counted(n, unit)}, no interval)"
    return f"{value:{form}} (95 % interval {low:{form}} to {high:{form}}, n = {counted(n, unit)})"


def listed(words: Sequence[str], most: int = 3, comma: str = ", ") -> str:
    """Words in one line: all of them, or the first `most` and how many more there are."""
    shown = list(words[:most]) + ([f"{len(words) - most} more"] if len(words) > most else [])
    return " and ".join([comma.join(shown[:-1]), shown[-1]]) if len(shown) > 1 else "".join(shown)


def cut(text: str, length: int = 60) -> str:
    """A text of anybody's on one line, at most `length` characters: the middle of a longer one is left out."""
    line = " ".join(text.split())
    if len(line) <= length:
        return line
    half = max(SHORTEST, length // 2 - 2)
    return f"{line[:half].rstrip()} … {line[-half:].lstrip()}"
