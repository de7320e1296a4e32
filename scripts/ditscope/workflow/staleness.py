"""What makes a result stale: digests of the library's code, over its syntax trees, cheap enough for every parse.

Light on purpose: every cluster job parses the Snakefile again, so nothing here imports the modules that it reads.
"""

import ast
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from functools import cache
from importlib.util import resolve_name
from pathlib import Path

import ditscope
from ditscope.core.digests import cached

SCRIPTS = Path(__file__).resolve().parents[2]
CACHE = Path("resources/.cache")
# Modules that never count: how a result is asked for, checked, logged and said does not change what it is, nor does
# how the device is told that computes it. Settings reach a job as values, never as code.
NEVER = (
    "ditscope.cli", "ditscope.config", "ditscope.config_files", "ditscope.workflow", "ditscope.core.errors",
    "ditscope.core.names", "ditscope.core.paths", "ditscope.core.ranges", "ditscope.core.schema",
    "ditscope.core.settings", "ditscope.models.hardware",
)  # fmt: skip
# What declarations of tables say in words, by its place among the arguments: documentation, as a docstring is.
WORDS = {"Column": 1, "Table": 2}


def prefer_this_library() -> None:
    """Let jobs import the library that is digested here, also where another one is installed in their environment."""
    paths = [str(SCRIPTS), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, dict.fromkeys(paths)))


def code_digest(module: str, staleness: str = "code") -> str:
    """Digest of the code of a module, of every module of its package and of ditscope that it imports, and its scripts.

    `module` is a dotted path of the library or of a package of the user's own. The digest is taken over syntax trees
    without docstrings and comments. Imports are followed where they stand in import statements: a plug-in, which a
    registry names, is digested by who chooses it. With `staleness="release"` the package's version stands in, so that
    an update restarts no long study; a package of the user's own, which has no release here, is digested all the same.
    """
    names = import_closure(module)
    if staleness == "release":
        names = tuple(name for name in names if name.partition(".")[0] != "ditscope")
        if not names:
            return f"ditscope {ditscope.__version__}"
    hashed = hashlib.sha256()
    for name in names:
        hashed.update(f"{name} {facts_of(module_path(name))['tree']}\n".encode())
    for script in scripts_of(module):
        hashed.update(f"{script.name} {facts_of(script)['tree']}\n".encode())
    return hashed.hexdigest()[:16]


def defines(module: str, function: str) -> bool:
    """Whether a module has a function of that name, as its source says; it is not imported."""
    return function in facts_of(module_path(module))["functions"]


def scripts_of(module: str) -> list[Path]:
    """The rules' scripts that import `module` by name."""
    return [script for script in sorted(SCRIPTS.glob("*.py")) if module in facts_of(script)["imports"]]


@cache
def import_closure(module: str) -> tuple[str, ...]:
    """Names of the modules that `module` reaches by import statements, itself and packages included, sorted.

    Modules of ditscope are followed, and those of the package that `module` itself is in.
    """
    packages = {"ditscope", module.partition(".")[0]}
    reached: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in reached or never_counts(name):
            continue
        reached.add(name)
        package = name if module_path(name).name == "__init__.py" else name.rpartition(".")[0]
        candidates = [resolve_name(n, package) for n in facts_of(module_path(name))["imports"]]
        waiting += [n for n in candidates if n.partition(".")[0] in packages and "." in n and module_path(n).exists()]
        parent = name.rpartition(".")[0]  # Python runs a package before its modules
        if parent not in ("", "ditscope") and module_path(parent).exists():
            waiting.append(parent)
    return tuple(sorted(reached))


def never_counts(module: str) -> bool:
    """Whether edits of a module make nothing stale."""
    return module.endswith((".settings", "_settings")) or any(
        module == name or module.startswith(f"{name}.") for name in NEVER
    )


@cache
def module_path(module: str) -> Path:
    """Where the source of a module or package is, whether it exists or not; the user's own is found as Python would."""
    parts = module.split(".")
    homes = [SCRIPTS] if parts[0] == "ditscope" else [Path.cwd(), *map(Path, sys.path)]
    home = next((h for h in homes if (h / parts[0]).is_dir() or (h / f"{parts[0]}.py").exists()), homes[0])
    path = home.joinpath(*parts)
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def facts_of(file: Path) -> dict:
    """A file's digest of its syntax tree (`tree`), modules that it may import (`imports`) and `functions` by name.

    Cached by mtime.
    """
    stat = file.stat()

    def read() -> dict:
        tree = ast.parse(file.read_bytes())
        if file.stem.endswith("tables"):
            remove_words(tree)
        functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
        digest = hashlib.sha256(b"".join(canonical(tree))).hexdigest()[:16]
        return {"tree": digest, "imports": list(imported(tree)), "functions": functions}

    return cached(f"source {file}", [stat.st_mtime_ns, stat.st_size], read, CACHE if CACHE.parent.is_dir() else None)


def remove_words(tree: ast.AST) -> None:
    """Take out of a module's declarations of tables what they say in words."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in WORDS:
            place = WORDS[node.func.id]
            del node.args[place : place + 1]


def canonical(node: ast.AST) -> Iterator[bytes]:
    """A syntax tree as bytes, equal for every Python: no positions, docstrings, comments or empty fields."""
    yield f"({type(node).__name__}".encode()
    for name, value in ast.iter_fields(node):
        if name == "body" and isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            value = value[1:] if ast.get_docstring(node, clean=False) is not None else value
        if value is None or value == [] or name == "type_comment":
            continue
        yield f" {name}=".encode()
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, ast.AST):
                yield from canonical(part)
            else:
                yield json.dumps(repr(part)).encode()
    yield b")"


def imported(tree: ast.AST) -> Iterator[str]:
    """Dotted names in import statements anywhere in a tree: modules, and what may be modules of packages.

    Relative ones keep their dots. Those that only a type checker follows are left out.
    """
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            dots, module = "." * node.level, node.module or ""
            if module:
                yield dots + module
            yield from (f"{dots}{module}.{alias.name}" if module else dots + alias.name for alias in node.names)
        elif not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield from imported(node)
