"""Parts of a sampling schedule, for which a plan may choose different formats."""

PIECES = ("first", "early", "mid", "late", "last")  # of every schedule: its edge steps, and thirds of what is between
# Ways to divide a schedule: parts, each of some of the pieces.
DIVISIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "all": {"all": PIECES},
    "thirds": {"early": ("first", "early"), "mid": ("mid",), "late": ("late", "last")},
    "edges": {"edge": ("first", "last"), "inner": ("early", "mid", "late")},
}


def piece_of_step(step: int, steps: int) -> str:
    """The piece of the schedule that step `step` of `steps` is."""
    edge = "first" if step == 0 else "last" if step == steps - 1 else ""
    return edge or PIECES[1 + step * 3 // steps]


def part_of_step(division: str, step: int, steps: int) -> str:
    """The part of the schedule that step `step` of `steps` belongs to, in one of the `DIVISIONS`."""
    piece = piece_of_step(step, steps)
    return next(part for part, pieces in DIVISIONS[division].items() if piece in pieces)
