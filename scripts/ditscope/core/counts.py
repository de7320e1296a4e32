"""Counts in equal counts out: what a stage checks before it writes, so that no row is lost without a word."""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditscope.core.errors import IncompleteError

if TYPE_CHECKING:
    import polars as pl


def check_complete(where: Path | str, what: str, asked: Iterable[Hashable], left: Iterable[Hashable]) -> None:
    """Raise IncompleteError unless `left` holds what was `asked`, each as often; the order is free.

    `where` is what would be written, `what` the kind of thing that is counted. O(n).
    """
    wanted, made = Counter(iter(asked)), Counter(iter(left))  # of a map: its keys, not its values
    for verb, difference in (("lacks", wanted - made), ("has more than was asked for:", made - wanted)):
        if difference:
            count, total = difference.total(), wanted.total()
            example = next(iter(difference))
            raise IncompleteError(
                f"{where}: {verb} {count} of {total} {what}, as {example}; this is a fault of ditscope, please report "
                "it with this line; nothing was written"
            )


def check_rows(where: Path | str, what: str, asked: "pl.DataFrame", left: "pl.DataFrame") -> None:
    """`check_complete` for the rows of frames; cheap where they are equal, in order."""
    if not asked.equals(left):
        check_complete(where, what, asked.iter_rows(), left.iter_rows())


def grouped(runs: Iterable[dict[str, Any]], key: Callable[[dict[str, Any]], Hashable]) -> list[list[dict[str, Any]]]:
    """Runs in groups of equal `key`, in order of their first ones."""
    groups: dict[Hashable, list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault(key(run), []).append(run)
    return list(groups.values())
