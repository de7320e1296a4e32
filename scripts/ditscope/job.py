"""What every rule's script does around its one library call: logging and one-line refusals."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ditscope.config import decode
from ditscope.errors import InputError
from ditscope.settings import Model

log = logging.getLogger("ditscope")


@contextmanager
def job(snakemake: Any) -> Iterator[None]:
    """Log to the rule's log file and to stderr; end on bad input with its one line instead of a traceback."""
    file = logging.FileHandler(snakemake.log[0], mode="w")
    with logged(file):
        try:
            yield
        except InputError as error:
            log.error("%s", error)
            raise SystemExit(f"Error: {error}") from None
        except Exception:
            log.exception("rule %s failed", snakemake.rule)
            raise


@contextmanager
def logged(*handlers: logging.Handler) -> Iterator[None]:
    """Send the library's messages to stderr and to `handlers`."""
    handlers = (logging.StreamHandler(sys.stderr), *handlers)
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        for handler in handlers:
            log.removeHandler(handler)
            handler.close()


def partial_root(snakemake: Any) -> Path:
    """Where unfinished slices of this study's jobs are kept."""
    return Path("results") / snakemake.config["experiment"] / ".partial"


def model_entry(params: dict[str, Any]) -> Model:
    """The registry entry in a rule's `model` parameter, less the digest that only makes the rule stale."""
    return decode(Model, {key: value for key, value in params.items() if key != "digest"})
