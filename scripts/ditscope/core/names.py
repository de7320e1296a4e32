"""Names of registry entries: what they may be, and the nearest valid one."""

import difflib
import re
from collections.abc import Iterable
from typing import Any

from ditscope.core.errors import InputError

NAME = re.compile(r"[A-Za-z0-9_+][A-Za-z0-9._+-]*")


def check_name(where: str, name: str) -> None:
    """Refuse a name that is to be part of paths and patterns, unless it is plain: the one rule for every registry."""
    if not NAME.fullmatch(name) or ".." in name:
        raise InputError(
            f"{where}: `{name}` is not a plain name; use letters, digits and . _ + - (first no dot or -, no two dots)"
        )


def check_apart(where: str, names: Iterable[str]) -> None:
    """Refuse two names of a registry that are one file name where the file system ignores case, as on a Mac."""
    seen: dict[str, str] = {}
    for name in names:
        if (other := seen.setdefault(name.lower(), name)) != name:
            raise InputError(
                f"{where}: `{other}` and `{name}` differ in case only, which some disks ignore; rename one"
            )


def unknown(where: str, name: Any, valid: Any, what: str) -> str:
    """One line that refuses `name` and offers the nearest valid one."""
    valid = [str(v) for v in valid]
    near = difflib.get_close_matches(str(name), valid, 1, 0.5)
    hint = f"did you mean `{near[0]}`?" if near else f"valid: {', '.join(valid) or 'none'}"
    return f"{where}: `{name}` is not {what}; {hint}"
