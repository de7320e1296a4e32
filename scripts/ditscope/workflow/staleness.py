"""What makes a result stale: digests of library code and of source files, cheap enough for every parse.

Light on purpose: every cluster job parses the Snakefile again, so nothing here imports the modules that it reads.
"""

import ast
import hashlib
import os
from functools import cache
from pathlib import Path

import ditscope

PACKAGE = Path(__file__).resolve().parents[1]
# How a result is asked for, logged and shown in a terminal does not change what it is.
IGNORED = {
    "ditscope.cli",
    "ditscope.workflow.job",
    "ditscope.config",
    "ditscope.workflow.staleness",
    "ditscope.core.errors",
}


def prefer_this_library() -> None:
    """Let jobs import the library that is digested here, also where another one is installed in their environment."""
    paths = [str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, dict.fromkeys(paths)))


def code_digest(module: str, staleness: str = "code") -> str:
    """Digest of the source bytes of `module`, of every ditscope module it imports, directly or not, and of its scripts.

    With `staleness="release"` the package's version stands in, so that an update restarts no long study.
    """
    if staleness == "release":
        return f"ditscope {ditscope.__version__}"
    hashed = hashlib.sha256()
    for name in import_closure(module):
        hashed.update(name.encode() + b"\0" + module_path(name).read_bytes())
    for script in scripts_of(module):
        hashed.update(script.name.encode() + b"\0" + script.read_bytes())
    return hashed.hexdigest()[:16]


def scripts_of(module: str) -> list[Path]:
    """The rules' scripts that import `module` by name."""
    line = f"from {module} import "
    return [script for script in sorted(PACKAGE.parent.glob("*.py")) if line in script.read_text()]


@cache
def import_closure(module: str) -> tuple[str, ...]:
    """Names of the ditscope modules that `module` reaches by import statements, itself included, sorted."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in found or name in IGNORED:
            continue
        found.add(name)
        waiting += imported(name)
        if "." in (package := name.rpartition(".")[0]):  # Python runs a package before its module
            waiting.append(package)
    return tuple(sorted(found))


@cache
def imported(module: str) -> list[str]:
    """The ditscope modules that the source of `module` names in import statements, anywhere in the file."""
    names = []
    for node in ast.walk(ast.parse(module_path(module).read_bytes())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [n for n in names if n.startswith("ditscope.") and module_path(n).exists()]


def module_path(module: str) -> Path:
    """The source file of a ditscope module or package."""
    path = PACKAGE.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
