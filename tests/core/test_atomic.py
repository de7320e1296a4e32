"""Atomic writes: the helper, and that no module of the library writes a file in another way."""

import ast
import errno
import resource
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import save_file

from ditscope.core.atomic import replacing, write_text
from workflow import ROOT

LIBRARY = ROOT / "scripts" / "ditscope"
# Calls that write a file, by the last part of their name.
WRITERS = {
    "write_text", "write_bytes", "write_csv", "write_parquet", "write_ipc", "write_json", "write_ndjson", "write_excel",
    "sink_parquet", "sink_csv", "savefig", "imwrite", "imsave", "mimwrite", "savez", "savez_compressed", "savetxt",
    "tofile", "save", "save_file", "save_safetensors", "save_pretrained", "write_frames", "TarWriter", "ShardWriter",
    "copyfile", "copy2", "copytree", "touch", "symlink_to", "hardlink_to", "link", "make_archive", "to_parquet",
}  # fmt: skip
# Written straight to their place, each for its reason.
EXCEPTIONS = {
    ("workflow/slots.py", "take"): "a lock holds one and the same file",
    ("cli.py", "main"): "to the null device, where nobody reads on",
    ("benchmark/memory.py", "reset_peaks"): "a switch of the kernel in /proc",
    ("capture/source.py", "import_captures"): "into a folder that is renamed as a whole",
    ("capture/source.py", "unpack"): "into a folder that is renamed as a whole",
    ("models/exports/torchao.py", "write"): "into a folder that is renamed as a whole",
    ("calibrate/stage.py", "calibrate_shard"): "a folder that is renamed as a whole",
    ("workflow/warm_worker.py", "supervise"): "a few bytes, in a temporary folder that is not to be made anew",
}


def direct_writes(source: str) -> list[tuple[str, int]]:
    """Function and line of each call of a module that writes a file outside `with replacing(...)`."""
    calls = []

    def visit(node: ast.AST, inside: str, safe: bool, memory: frozenset[str]) -> None:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            inside = f"{inside}.{node.name}".lstrip(".")
        if isinstance(node, ast.FunctionDef):
            memory |= {
                target.id
                for part in ast.walk(node)
                if isinstance(part, ast.Assign) and ast.unparse(part.value) in ("io.BytesIO()", "BytesIO()")
                for target in part.targets
                if isinstance(target, ast.Name)
            }
        if isinstance(node, ast.With):
            safe = safe or any(ast.unparse(item.context_expr).startswith("replacing(") for item in node.items)
        if isinstance(node, ast.Call) and writes(node) and not safe:
            arguments = {a.id for a in node.args[:1] if isinstance(a, ast.Name)}
            if not arguments & memory:
                calls.append((inside, node.lineno))
        for child in ast.iter_child_nodes(node):
            visit(child, inside, safe, memory)

    visit(ast.parse(source), "", False, frozenset())
    return calls


def writes(call: ast.Call) -> bool:
    """Whether a call writes a file, by its name; one without arguments gives what it would write."""
    name, whole = ast.unparse(call.func), ast.unparse(call)
    last = name.rpartition(".")[2]
    if name == "duckdb.connect":
        return "read_only=True" not in whole
    if name == "os.open":
        return "O_RDONLY" not in whole
    if last == "open":
        modes = [a.value for a in (*call.args, *(k.value for k in call.keywords)) if isinstance(a, ast.Constant)]
        return any(isinstance(m, str) and len(m) <= 3 and set(m) & set("wax+") for m in modes)
    if name in ("write_text", "save"):  # the helper, and functions of the library's own
        return False
    return name in ("json.dump", "pickle.dump") or (last in WRITERS and bool(call.args))


def library_modules() -> list[Path]:
    """The library's modules; those that train the shipped models are another matter."""
    return [file for file in sorted(LIBRARY.rglob("*.py")) if "training" not in file.parts]


def test_no_module_writes_a_file_directly():
    calls = {
        (file.relative_to(LIBRARY).as_posix(), function): line
        for file in library_modules()
        if file != LIBRARY / "core" / "atomic.py"
        for function, line in direct_writes(file.read_text())
    }
    direct = [f"{file}:{line} ({function})" for (file, function), line in calls.items()]
    assert set(calls) <= set(EXCEPTIONS), "\n".join(direct)
    assert set(EXCEPTIONS) <= set(calls), "an exception that is none any more"


@pytest.mark.parametrize(
    ("line", "direct"),
    [
        ("path.write_text('a')", True),
        ("write_text(path, 'a')", False),
        ("open(path, 'wb')", True),
        ("open(path, mode='x')", True),
        ("path.open('a')", True),
        ("open(path)", False),
        ("open(path, 'rb')", False),
        ("figure.savefig(path)", True),
        ("np.save(buffer, a)", False),
        ("np.save(path, a)", True),
        ("image.save(buffer, 'PNG')", False),
        ("json.dump(a, file)", True),
        ("table.write_csv()", False),
        ("table.write_csv(path)", True),
    ],
)
def test_the_walk_tells_writes(line, direct):
    source = f"def f(path):\n    buffer = io.BytesIO()\n    {line}\n"
    assert bool(direct_writes(source)) == direct
    guarded = f"def f(path):\n    buffer = io.BytesIO()\n    with replacing(path) as partial:\n        {line}\n"
    assert not direct_writes(guarded)


def test_a_failed_write_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "new" / "a.txt"
    write_text(path, "whole")
    with pytest.raises(RuntimeError), replacing(path) as partial:
        partial.write_text("ha")
        raise RuntimeError
    assert path.read_text() == "whole" and list(path.parent.iterdir()) == [path]


def test_a_refused_write_is_an_oserror_whatever_library_writes(tmp_path):
    """The kernel refuses bytes beyond a limit: safetensors and polars have errors of their own for that."""
    tensors, table = {"a": np.zeros(100_000)}, pl.DataFrame({"a": np.random.default_rng(0).random(100_000)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        for write in (table.write_parquet, lambda path: save_file(tensors, path)):
            with pytest.raises(OSError) as refused, replacing(tmp_path / "a") as partial:
                write(partial)
            assert refused.value.errno == errno.EFBIG
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_writers_of_a_shared_file_do_not_meet(tmp_path):
    with replacing(tmp_path / "a", shared=True) as first, replacing(tmp_path / "a") as another:
        assert first != another and first.parent == another.parent == tmp_path
        first.write_text("1")
        another.write_text("2")
    assert (tmp_path / "a").read_text() == "1" and len(list(tmp_path.iterdir())) == 1
