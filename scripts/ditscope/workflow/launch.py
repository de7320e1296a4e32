"""Run a stage in several processes, one for each GPU of its job."""

import logging
import os
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

SCRIPTS = Path(__file__).resolve().parents[2]


def torchrun(stage: str, processes: int, **arguments: Any) -> None:
    """Run the command line of a stage under torchrun; its messages go to this job's log. Raises where it fails."""
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    words += ["-m", "ditscope.cli", stage, *options(**arguments)]
    search = os.pathsep.join(filter(None, [str(SCRIPTS), os.environ.get("PYTHONPATH")]))
    with subprocess.Popen(
        words,
        env=os.environ | {"PYTHONPATH": search},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout
        for line in process.stdout:
            log.info("%s", line.rstrip())
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, words)


def options(**arguments: Any) -> list[str]:
    """The options of `ditscope STAGE` that stand for a call's arguments; a settings dataclass is one for each field."""
    words: list[str] = []
    for name, value in arguments.items():
        if is_dataclass(value):
            kept = [f.name for f in fields(value) if not f.metadata["config_only"]]
            words += options(**{key: getattr(value, key) for key in kept})
        elif value is not None:
            values = value if isinstance(value, list) else [value]
            words += [f"--{name.replace('_', '-')}", *map(str, values)]
    return words
