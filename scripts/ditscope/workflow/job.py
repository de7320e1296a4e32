"""What every rule's script does around its one library call: logging and one-line refusals."""

import errno
import logging
import os
import platform
import re
import resource
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ditscope.core.checksums import record_checksums
from ditscope.core.errors import IncompleteError, InputError, machine_error
from ditscope.core.identity import digest
from ditscope.core.settings import decode
from ditscope.models.settings import Embedder, Model, Scheme
from ditscope.workflow.orphans import end_with_workflow
from ditscope.workflow.slots import gpu_slots
from ditscope.workflow.warm import hand_over

log = logging.getLogger("ditscope")
SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN")  # variables that tokens are given in
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
TOKEN = re.compile(r"hf_[A-Za-z0-9]{16,}|(?<=[Bb]earer )[A-Za-z0-9._~+/=-]{8,}|(?<=://)[^\s/@:]+:[^\s/@]+(?=@)")


class Redacted(logging.Formatter):
    """Log lines, tracebacks included, in which access tokens are replaced by stars."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def redact(text: str) -> str:
    """`text` without tokens: values of the variables that hold them, and what looks like one."""
    for value in filter(None, map(os.environ.get, SECRETS)):
        text = text.replace(value, "***")
    return TOKEN.sub("***", text)


@contextmanager
def job(snakemake: Any, warm: bool = False) -> Iterator[list[str]]:
    """Log to the rule's log file and to stderr; end on bad input with its one line instead of a traceback.

    A rule with `resources: gpu` gets that many GPUs, where the machine has any, and their list: of its own, or shared
    with others that say what they take of one (`gpu_mem_mb`) where the user lets them. CUDA must not have started:
    such a rule's script imports its stage inside. So does one whose stage imports torch; where the run has a process
    that has it, a fork of that does the work of a `warm` job (`warm.py`).
    """
    if warm:
        hand_over()
    end_with_workflow()
    file = logging.FileHandler(snakemake.log[0], mode="w")
    with logged(file):
        try:
            asked = [int(snakemake.resources.get(name, 0)) for name in ("gpu", "gpu_mem_mb")]
            with gpu_slots(asked[0], memory_mb=asked[1]) as gpus:
                log.info("rule %s on %s, GPU %s", snakemake.rule, node_name(), ", ".join(gpus) or "none")
                yield gpus
                log.info("peak: %s", peak_memory())
            record_checksums(results_of(snakemake), snakemake.rule, snakemake.output)
            with suppress(OSError):  # never made, or slices of the rule's other jobs are in it
                partial_root(snakemake).rmdir()
        except InputError as error:
            log.error("%s", error)
            raise SystemExit(redact(f"Error: {error}")) from None
        except IncompleteError as error:
            log.exception("rule %s failed", snakemake.rule)
            raise SystemExit(redact(f"Error: {error}")) from None
        except Exception as error:
            log.exception("rule %s failed", snakemake.rule)
            if isinstance(error, OSError) and error.errno in NO_ROOM:
                what = f"rule {snakemake.rule}: {error.strerror}"
                raise SystemExit(f"Error: {what}; make room and run again, finished slices are kept") from None
            if reason := machine_error(error):
                raise SystemExit(redact(f"Error: rule {snakemake.rule}: {reason}")) from None
            text = "".join(traceback.format_exception(error))
            if redact(text) != text:  # Python's own traceback would show the token
                raise SystemExit(redact(text)) from None
            raise


@contextmanager
def logged(*handlers: logging.Handler) -> Iterator[None]:
    """Send the library's messages to stderr and to `handlers`."""
    handlers = (logging.StreamHandler(sys.stderr), *handlers)
    for handler in handlers:
        handler.setFormatter(Redacted("%(asctime)s %(message)s", "%H:%M:%S"))
        log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        for handler in handlers:
            log.removeHandler(handler)
            handler.close()


def node_name() -> str:
    """The machine that this process runs on, by its scheduler's name where it has one."""
    return os.environ.get("SLURMD_NODENAME") or platform.node()


def peak_memory() -> str:
    """What this process took at most on the host and on its GPUs."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform == "linux" else 1024**2)
    text = f"{peak} MiB of host memory"
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            text += f", {torch.cuda.max_memory_allocated(i) // 1024**2} MiB of GPU {i}"
    return text


def results_of(snakemake: Any) -> Path:
    """The folder of this study's results."""
    return Path("results") / snakemake.config["experiment"]


def partial_root(snakemake: Any) -> Path:
    """Where unfinished slices of this study's jobs are kept; apart for each version of code, weights and settings.

    The rule's parameters hold digests of all three: a job that resumes after any of them changed starts anew.
    """
    params = {name: str(value) for name, value in snakemake.params.items()}
    return results_of(snakemake) / ".partial" / f"{snakemake.rule}-{digest(params, 64)}"


def model_entry(params: dict[str, Any]) -> Model:
    """The registry entry in a rule's `model` parameter, less the digest that only makes the rule stale."""
    return decode(Model, without_digest(params))


def embedder_entry(params: dict[str, Any]) -> Embedder:
    """The registry entry in a rule's parameter for an embedder, less its digest."""
    return decode(Embedder, without_digest(params))


def scheme_entry(params: dict[str, Any]) -> Scheme:
    """The scheme in a rule's parameter, less the digest of its code."""
    return decode(Scheme, without_digest(params))


def without_digest(params: dict[str, Any]) -> dict[str, Any]:
    """A registry entry without the digest of its weights."""
    return {key: value for key, value in params.items() if key != "digest"}
