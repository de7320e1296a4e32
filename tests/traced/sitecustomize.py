"""On the path of a study's jobs: each notes which modules of the library it loaded, in the folder DITSCOPE_TRACE."""

import atexit
import json
import os
import sys
from pathlib import Path


def note_modules() -> None:
    job = getattr(sys.modules.get("__main__"), "snakemake", None)  # what Snakemake gives a rule's script
    if job is not None:
        modules = sorted(name for name in sys.modules if name.startswith("ditscope."))
        file = Path(os.environ["DITSCOPE_TRACE"]) / f"{job.rule}-{os.getpid()}.json"
        file.write_text(json.dumps({"rule": job.rule, "modules": modules}))


if "DITSCOPE_TRACE" in os.environ:
    atexit.register(note_modules)
