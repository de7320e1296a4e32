"""The rooms of the library: which may import which, and no circles. docs/house.md tells the law."""

import ast
from pathlib import Path

import pytest

from ditscope.cli import COMMANDS
from ditscope.config import STAGES
from ditscope.core.schema import STAGE_OF
from ditscope.workflow.inventory import PLACES
from ditscope.workflow.staleness import imported
from workflow import ROOT

LIBRARY = ROOT / "scripts" / "ditscope"
# From the foundation up: a module imports from its own floor's room and from the floors below.
FLOORS = [
    {"core"},
    {"shapes", "style"},
    {"layer_maps"},
    {"models"},
    set(STAGES) - {"publish"},
    {"config"},
    {"config_files"},
    {"publish"},
]
FLOORS += [{"workflow"}, {"cli"}]
# What a stage may import of another stage: what that one leaves, never how it makes it.
OPEN = {"settings", "tables", "files", "load"}


def modules() -> dict[str, Path]:
    paths = sorted(LIBRARY.rglob("*.py"))
    return {".".join(path.relative_to(LIBRARY).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


def arrows() -> dict[str, set[str]]:
    """The modules that each module imports, wherever the statement stands; what only a type checker reads is not."""
    known = modules()
    return {
        name: {
            short
            for target in imported(ast.parse(path.read_text()))
            if (short := target.removeprefix("ditscope.")) in known and short != name and path.name != "__init__.py"
            if known[short].name != "__init__.py"
        }
        for name, path in known.items()
    }


def floor(module: str) -> int:
    return next(i for i, rooms in enumerate(FLOORS) if module.partition(".")[0] in rooms)


def allowed(source: str, target: str) -> bool:
    """Whether one module may import another."""
    (room, _, part), (other, _, open_part) = source.partition("."), target.partition(".")
    if room == other or floor(target) < floor(source):
        return True
    if open_part == "settings":
        return floor(target) <= floor("publish")
    return floor(target) == floor(source) and (open_part in OPEN or part == open_part == "check")


def test_every_module_is_in_a_room():
    assert {name.partition(".")[0] for name in modules()} - {"__init__"} <= set().union(*FLOORS)


def test_no_import_climbs():
    climbing = [f"{a} -> {b}" for a, targets in arrows().items() for b in targets if not allowed(a, b)]
    assert not climbing


def test_there_are_no_circles():
    left = {name: set(targets) for name, targets in arrows().items()}
    while free := {name for name, targets in left.items() if not targets}:
        left = {name: targets - free for name, targets in left.items() if name not in free}
    assert not left, f"in or above a circle: {sorted(left)}"


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_is_one_room(stage):
    """Whoever knows a stage's name finds its rule, settings, function, check, page and tests."""
    rules = "capture" if stage in ("blocks", "ablate") else stage  # what reads captures stands beside them
    assert (ROOT / "rules" / f"{rules}.smk").exists()
    for part in ("settings.py", "check.py"):
        assert (LIBRARY / stage / part).exists()
    assert (ROOT / "tests" / stage).is_dir() or stage in ("prompts", "ablate")
    assert (ROOT / "docs" / "outputs" / f"{stage}.md").exists() or stage == "ablate"


def test_no_list_of_stages_lacks_one():
    """A stage is known by its tables' names, by its place among the results and, once or in parts, as a command."""
    assert set(STAGE_OF.values()) == {stage for stage in STAGES if (LIBRARY / stage / "tables.py").exists()}
    assert set(PLACES.values()) == set(STAGES) - {"analyse"}  # beside the tables of `blocks`
    assert all(any(name == stage or name.startswith(f"{stage}-") for name in COMMANDS) for stage in STAGES)


def functions() -> dict[str, ast.FunctionDef]:
    """Every function of the project by file and line, methods and nested ones among them."""
    files = [file for folder in ("scripts", "tools", "tests", "perf") for file in sorted((ROOT / folder).rglob("*.py"))]
    return {
        f"{file.relative_to(ROOT)}:{node.lineno} {node.name}": node
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef)
    }


def test_functions_are_at_most_60_lines_long():
    assert not [name for name, node in functions().items() if node.end_lineno - node.lineno >= 60]
