"""What sources of data give: samples, and what of them is damaged."""

import logging
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ditscope.core.errors import InputError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """One sample, as a picture or film that an adapter encodes, or as values that are there."""

    key: str  # what it is known by; pictures that several runs share have one
    prompt: str
    label: str = ""  # what it is: a combination of attributes, a folder
    prompt_id: str = ""
    seed: int = 0
    held_out: bool | None = None  # whether it is held out of training; None: a hash says so
    pictures: np.ndarray | None = None  # (height, width, 3) or (frames, height, width, 3) uint8
    values: np.ndarray | None = None  # (channels, *space)
    text: np.ndarray | None = None  # (words, width), tokens of a condition; None: those of the prompt


@dataclass
class Damage:
    """What was found damaged: refused at once, or noted and left out."""

    policy: str  # refuse | skip
    noted: list[dict[str, Any]] = field(default_factory=list)  # file, reason and number of the samples left out
    short: list[dict[str, Any]] = field(
        default_factory=list
    )  # shards of fewer samples than the first, all of them kept

    def note(self, file: Any, reason: str, samples: int = 1) -> None:
        """Refuse the file, by one line, or note how many samples are left out of it and why."""
        if self.policy == "refuse":
            raise InputError(f"{file}: {reason}; mend or remove it, or leave it out by `damaged: skip`")
        log.warning("%s: %s; left out, %d samples", file, reason, samples)
        self.noted.append({"file": str(file), "reason": reason, "samples": samples})

    def note_short(self, file: Any, samples: int, expected: int) -> None:
        """Refuse a whole shard of fewer samples than the first, by one line, or note it; its samples are kept."""
        if self.policy == "refuse":
            raise InputError(
                f"{file}: {samples} samples, the first shard has {expected}; if it is whole, keep them by "
                "`damaged: skip`"
            )
        log.warning("%s: %d samples, the first shard has %d", file, samples, expected)
        self.short.append({"file": str(file), "samples": samples})
