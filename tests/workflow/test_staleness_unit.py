"""What makes results stale: import closures, digests of code and of source files, the parse cache."""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ditscope
from ditscope.core import digests
from ditscope.core.errors import InputError
from ditscope.workflow import staleness

PACKAGE = Path(ditscope.__file__).parent


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A small package in place of the library: a -> b -> sub.c, and lazily a -> d."""
    sources = {
        "__init__.py": "",
        "a.py": "import os\nfrom ditscope.b import f\n\ndef g():\n    from ditscope import d\n    return d, f, os\n",
        "b.py": "import ditscope.sub.c\n\ndef f(): ...\n",
        "d.py": "import numpy\n",
        "e.py": "from ditscope.cli import main\n",
        "cli.py": "from ditscope.a import g\n\ndef main(): ...\n",
        "sub/__init__.py": "",
        "sub/c.py": "x = 1\n",
    }
    for name, text in sources.items():
        path = tmp_path / "ditscope" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(staleness, "SCRIPTS", tmp_path)
    forget()
    yield tmp_path / "ditscope"
    forget()


def forget():
    """Read every module anew, as a new process would."""
    for remembered in (staleness.import_closure, staleness.module_path, staleness.facts_of):
        remembered.cache_clear()


def edited_digest(package, edited, asked):
    """Digest of `asked` before and after a line is added to `edited`."""
    before = staleness.code_digest(asked)
    path = package / edited
    path.write_text(path.read_text() + "\ny = 2\n")
    forget()
    return before, staleness.code_digest(asked)


def test_closure_follows_every_kind_of_import(package):
    closure = staleness.import_closure("ditscope.a")
    assert {"ditscope.a", "ditscope.b", "ditscope.d", "ditscope.sub.c"} <= set(closure)
    assert "ditscope.e" not in closure


def test_command_line_is_left_out(package):
    assert staleness.import_closure("ditscope.e") == ("ditscope.e",)


@pytest.mark.parametrize("edited", ["a.py", "b.py", "d.py", "sub/c.py"])
def test_editing_what_a_module_reaches_changes_its_digest(package, edited):
    before, after = edited_digest(package, edited, "ditscope.a")
    assert before != after


@pytest.mark.parametrize("edited", ["e.py", "cli.py"])
def test_editing_what_it_does_not_reach_changes_nothing(package, edited):
    before, after = edited_digest(package, edited, "ditscope.a")
    assert before == after


def test_touching_changes_nothing(package):
    before = staleness.code_digest("ditscope.a")
    os.utime(package / "b.py", (1, 1))
    forget()
    assert staleness.code_digest("ditscope.a") == before


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ("def f():\n    return 1\n", 'def f():\n    """New."""\n    # why\n    return 1\n', True),
        ('"""Old."""\nx = 1\n', '"""Another\ntext."""\n\n\nx = 1  # one\n', True),
        ("class A:\n    x: int = 1\n", 'class A:\n    """What."""\n\n    x: int = 1\n', True),
        ("x = (1, 2)\n", "x = (\n    1,\n    2,\n)\n", True),
        ("x = 'a'\n", 'x = "a"\n', True),
        ("x = 1\n", "x = 1.0\n", False),
        ("x = 'a'\n", "x = b'a'\n", False),
        ("def f(a, b): ...\n", "def f(b, a): ...\n", False),
        ("def f(a, b=1): ...\n", "def f(a, *, b=1): ...\n", False),
        ("def f():\n    g()\n    'text'\n", "def f():\n    g()\n", False),
        ("x = [y for y in z if y]\n", "x = [y for y in z]\n", False),
        ("if a:\n    b()\nc()\n", "if a:\n    b()\n    c()\n", False),
        ("async def f(): ...\n", "def f(): ...\n", False),
        ("from a import b\n", "from a import b as c\n", False),
        ("x = a < b\n", "x = a <= b\n", False),
    ],
)
def test_only_what_python_runs_is_digested(package, before, after, same):
    digests_of = []
    for text in (before, after):
        (package / "d.py").write_text(text)
        forget()
        digests_of.append(staleness.code_digest("ditscope.a"))
    assert (digests_of[0] == digests_of[1]) == same


@pytest.mark.parametrize(
    ("after", "same"),
    [
        ('X = Table("x", "x.parquet", "a row, reworded", ("a",), {"a": Column("Int64", "steps")})\n', True),
        ('X = Table("x", "x.parquet", "row", ("a",), {"a": Column("Int64", "steps,\\n" + "reworded")})\n', True),
        ('X = Table("x", "x.parquet", "row", ("a",), {"a": Column("Int32", "steps")})\n', False),
        ('X = Table("x", "x.parquet", "row", ("b",), {"b": Column("Int64", "steps")})\n', False),
        ('X = Table("x", "x.parquet", "row", ("a",), {"a": Column("Int64", "steps", True)})\n', False),
    ],
)
def test_words_of_a_table_s_declaration_are_documentation(package, after, same):
    (package / "d.py").write_text("import ditscope.sub.tables\n")
    digests_of = []
    for text in ('X = Table("x", "x.parquet", "row", ("a",), {"a": Column("Int64", "steps")})\n', after):
        (package / "sub" / "tables.py").write_text(text)
        forget()
        digests_of.append(staleness.code_digest("ditscope.a"))
    assert (digests_of[0] == digests_of[1]) == same


def test_equal_trees_of_other_pythons_have_equal_digests():
    """Newer Pythons add fields to nodes, empty where nothing is said: a function's `type_params`, from 3.12 on."""
    tree = ast.parse("def f(x): return x\nclass A: pass\n")
    plain = b"".join(staleness.canonical(tree))
    for node in tree.body:
        node.type_params, node._fields = [], (*type(node)._fields, "type_params")
    assert b"".join(staleness.canonical(tree)) == plain


def test_settings_and_what_only_a_type_checker_reads_do_not_count(package):
    (package / "settings.py").write_text("x = 1\n")
    (package / "d.py").write_text(
        "from typing import TYPE_CHECKING\nimport ditscope.settings\nif TYPE_CHECKING:\n    import ditscope.e\n"
    )
    forget()
    closure = staleness.import_closure("ditscope.a")
    assert "ditscope.d" in closure and not {"ditscope.settings", "ditscope.e"} & set(closure)


def test_a_package_of_the_user_s_own_is_followed(package, tmp_path, monkeypatch):
    own = tmp_path / "work" / "own_package"
    own.mkdir(parents=True)
    (own / "__init__.py").write_text("")
    (own / "scheme.py").write_text("from own_package.parts import x\nfrom ditscope.b import f\nimport json\n")
    (own / "parts.py").write_text("x = 1\n")
    monkeypatch.chdir(own.parent)
    forget()
    names = {"own_package", "own_package.scheme", "own_package.parts", "ditscope.b", "ditscope.sub", "ditscope.sub.c"}
    assert names <= set(staleness.import_closure("own_package.scheme"))
    before = staleness.code_digest("own_package.scheme")
    (own / "parts.py").write_text("x = 2\n")
    forget()
    assert staleness.code_digest("own_package.scheme") != before


def test_release_swaps_code_for_version(package):
    before = staleness.code_digest("ditscope.a", "release")
    (package / "a.py").write_text("x = 3\n")
    assert staleness.code_digest("ditscope.a", "release") == before == f"ditscope {ditscope.__version__}"


def test_closure_covers_what_python_really_imports():
    """Against the interpreter: after the import, every loaded ditscope module is in the closure."""
    code = "import sys, json, ditscope.generate.stage; print(json.dumps([m for m in sys.modules if 'ditscope.' in m]))"
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout))
    loaded = {name for name in loaded if not staleness.never_counts(name)}
    assert "ditscope.models.sampling" in loaded
    assert loaded <= set(staleness.import_closure("ditscope.generate.stage"))


def test_parse_time_modules_import_nothing_heavy():
    """Every cluster job reads the Snakefile again: what it imports must not load torch, scikit-learn or polars."""
    root = PACKAGE.parents[1]
    lines = [line for file in (root / "Snakefile", *root.glob("rules/*.smk")) for line in file.read_text().splitlines()]
    imports = "\n".join(line for line in lines if line.startswith("from ditscope"))
    heavy = {"torch", "sklearn", "polars", "numpy", "diffusers"}
    code = f"import sys\n{imports}\nprint(sorted({heavy} & set(sys.modules)))"
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_source_digest_is_of_names_and_bytes(tmp_path):
    folder = tmp_path / "model"
    (folder / "vae").mkdir(parents=True)
    (folder / "a.json").write_text("{}")
    (folder / "vae" / "w.safetensors").write_bytes(b"weights")
    first = digests.source_digest(folder)
    os.utime(folder / "a.json", (1, 1))
    assert digests.source_digest(folder) == first
    shutil.copytree(folder, tmp_path / "clone")
    assert digests.source_digest(tmp_path / "clone") == first
    (folder / "a.json").rename(folder / "b.json")
    renamed = digests.source_digest(folder)
    (folder / "b.json").write_text("{ }")
    assert len({first, renamed, digests.source_digest(folder)}) == 3


def test_source_digest_cache_notices_an_edit_of_the_same_length(tmp_path):
    file, cache = tmp_path / "p.csv", tmp_path / "cache"
    file.write_text("prompt\na\n")
    first = digests.source_digest(file, cache)
    assert digests.source_digest(file, cache) == first == digests.source_digest(file)
    file.write_text("prompt\nb\n")
    os.utime(file, (5, 5))
    assert digests.source_digest(file, cache) != first


def test_missing_source_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match=r"gone\.csv: no such file or folder"):
        digests.source_digest(tmp_path / "gone.csv")


def test_cached_computes_once_for_a_key_and_survives_a_broken_file(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return {"n": len(calls)}

    assert digests.cached("x", [1, "a"], compute, tmp_path) == {"n": 1}
    assert digests.cached("x", [1, "a"], compute, tmp_path) == {"n": 1}
    assert digests.cached("x", [2, "a"], compute, tmp_path) == {"n": 2}
    for file in tmp_path.iterdir():
        file.write_text("{broken")
    assert digests.cached("x", [2, "a"], compute, tmp_path) == {"n": 3}
