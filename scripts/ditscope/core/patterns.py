"""Selections of blocks and steps by pattern: `double:0-5,single:*`, `0,2,-1`."""

import re
from collections.abc import Sequence
from itertools import groupby

from ditscope.core.errors import InputError

RANGE = re.compile(r"(-?\d+)(?:-(-?\d+))?")


def block_type(block: str) -> str:
    """`double` of `double_block_3`."""
    return block.rpartition("_block_")[0]


def block_index(block: str) -> int:
    """`3` of `double_block_3`."""
    return int(block.rpartition("_")[2])


def select_indices(pattern: str, count: int, what: str) -> list[int]:
    """Those of 0..count-1 that `pattern` names, sorted: `*`, single numbers, ranges `0-5`; -1 is the last.

    A range is cut at the end; a part of the pattern that matches nothing raises InputError.
    """
    chosen: set[int] = set()
    for part in pattern.split(","):
        indices = part_indices(part.strip(), count)
        if not indices:
            exist = f"0-{count - 1}" if count else "none"
            raise InputError(f"{what} `{pattern}`: `{part.strip()}` matches nothing; there are {exist}")
        chosen.update(indices)
    return sorted(chosen)


def select_blocks(pattern: str, blocks: Sequence[str], what: str = "blocks") -> list[str]:
    """Those of `blocks` that `pattern` names, in network order: `*`, or parts `type`, `type:*`, `type:0-5`, `type:-1`.

    A number or range without a type belongs to the type before it: `double:0,9,18,single:0`; where there is none, it
    counts all blocks as they run: `0,5,-1`. `blocks` are all block names of a model in network order. Raises
    InputError, with the blocks that exist, for a part that matches none.
    """
    chosen: set[str] = set()
    before = ""
    for part in pattern.split(","):
        kind, _, indices = part.strip().partition(":")
        if RANGE.fullmatch(kind):
            kind, indices = before or "*", kind
        before = kind
        of_kind = [b for b in blocks if kind in ("*", block_type(b))]
        named = [of_kind[i] for i in part_indices(indices or "*", len(of_kind))]
        if not named:
            raise InputError(f"{what} `{pattern}`: `{part.strip()}` matches no block; there are {list_blocks(blocks)}")
        chosen.update(named)
    return [b for b in blocks if b in chosen]


def part_indices(part: str, count: int) -> list[int]:
    """Indices below `count` that one part of a pattern (`*`, `3`, `-1`, `0-5`) names; none where it names nothing."""
    if part == "*":
        return list(range(count))
    match = RANGE.fullmatch(part)
    if not match:
        return []
    first, last = (int(end) + count * (int(end) < 0) for end in (match[1], match[2] or match[1]))
    return [i for i in range(first, last + 1) if 0 <= i < count]


def list_blocks(blocks: Sequence[str]) -> str:
    """The blocks of a model as one would write their pattern: `double:0-18, single:0-37`."""
    counts = {kind: len(list(group)) for kind, group in groupby(blocks, block_type)}
    return ", ".join(f"{kind}:0-{count - 1}" for kind, count in counts.items())
