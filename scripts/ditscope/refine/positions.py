"""Where keys stand in a film or on a path; read when the workflow is parsed, so without numpy."""

from collections.abc import Sequence
from itertools import pairwise

from ditscope.core.errors import InputError


def check_positions(positions: Sequence[int], nodes: int, kind: str = "frames") -> None:
    """Refuse keys (positions from 0) that are none or more than nodes, out of order, there twice, or outside."""
    if not positions:
        raise InputError("keys: none given; give at least one")
    if len(positions) > nodes:
        raise InputError(f"keys: {len(positions)} given, but there are only {nodes} {kind}; give fewer, or more {kind}")
    if outside := [p for p in positions if not 0 <= p < nodes]:
        raise InputError(f"keys: position {outside[0]} is outside the {nodes} {kind} (0 to {nodes - 1})")
    for before, after in pairwise(positions):
        if after <= before:
            what = "is there twice" if after == before else f"comes after {before}"
            raise InputError(f"keys: position {after} {what}; list positions in rising order, each once")
