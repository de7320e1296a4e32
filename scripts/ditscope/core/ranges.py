"""What `settings.setting` allows of a number, and of a list or map of them."""

import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from ditscope.core.errors import InputError

INT64 = 2**63 - 1  # what tables, random generators and file systems count with


def check_ranges(kind: type, values: Mapping[str, Any], naming: Callable[[str], str]) -> None:
    """Refuse the first value of a dataclass's settings that is out of its range; `naming` says where it stands."""
    for f in fields(kind):
        if f.name in values and (reason := complaint(values[f.name], f.metadata["allowed"])):
            raise InputError(f"{naming(f.name)}: {reason}")


def complaint(value: Any, allowed: Mapping[str, Any]) -> str:
    """What is wrong with the value of a setting that allows this, as `0 is not above 0`; nothing where it is right."""
    if isinstance(value, dict):
        return next(filter(None, (complaint(v, allowed) for v in value.values() if not isinstance(v, list))), "")
    if isinstance(value, list):
        if allowed["filled"] and not value:
            return "the list is empty; name at least one"
        if twice := [v for i, v in enumerate(value) if v in value[:i] and v not in allowed["again"]]:
            return f"{twice[0]} is named twice"
        return next(filter(None, (complaint(v, allowed) for v in value)), "")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return ""
    if not math.isfinite(value):
        return f"{value} is not a finite number"
    if allowed["positive"] and value <= 0:
        return f"{value} is not above 0"
    if value < 0 and not (allowed["signed"] and value == -1):
        return f"{value} is below 0" + (" and not -1" if allowed["signed"] else "")
    if isinstance(value, int) and value > INT64:
        return f"{value} is more than 2^63 - 1"
    if allowed["most"] is not None and value > allowed["most"]:
        return f"{value} is more than {allowed['most']}"
    return ""
