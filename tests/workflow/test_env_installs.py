"""Each environment from the package index, in a clean virtual one: conda's part by the lock's names, pip's as it is.

Nightly (`make test-envs`): gigabytes. What conda-forge itself has is only known where conda is; this shows that the
versions exist, agree with each other, and hold every module that the rules' scripts import.
"""

import os
import subprocess
import sys

import pytest
import test_envs
import yaml

pytestmark = pytest.mark.network


def uv(*arguments):
    """Run uv; its last lines where it fails."""
    done = subprocess.run([sys.executable, "-m", "uv", *map(str, arguments)], capture_output=True, text=True)
    return done.returncode, done.stderr[-2000:]


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """Skip where no index answers: one small package of the lock is asked for."""
    folder = tmp_path_factory.mktemp("index")
    code, message = uv("pip", "install", "-q", "--no-cache", "--target", folder, "--no-deps", "braceexpand==0.1.7")
    if code:
        pytest.skip(f"no package index: {message.splitlines()[-1]}")


def requirements(env):
    """The pip part of an environment, and its conda part by the lock's names."""
    conda, pip = [], []
    for item in yaml.safe_load(env.read_text())["dependencies"]:
        if isinstance(item, dict):
            pip += item["pip"]
        elif not item.startswith(("python=", "pip")):
            name, _, version = item.partition("=")
            conda.append(f"{test_envs.CONDA_NAMES.get(name, name)}=={version}")
    return conda, pip


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", test_envs.ENVS)
def test_environment_installs_and_its_scripts_modules_import(index, name, tmp_path):
    env = test_envs.ENVS[name]
    conda, pip = requirements(env)
    code, message = uv("venv", "-q", "--seed", "--python", "3.11", tmp_path / "env")
    assert code == 0, message
    python = tmp_path / "env" / "bin" / "python"
    for part in (
        conda,
        [*pip, *conda] if pip else [],
    ):  # conda's first, as conda does it; pip's may change none of them
        if part:
            code, message = uv("pip", "install", "-q", "--python", python, *part)
            assert code == 0, message
    post_deploy = env.with_suffix(".post-deploy.sh")
    if post_deploy.exists():
        path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
        subprocess.run(["bash", post_deploy], check=True, env=os.environ | {"PATH": path})
    scripts = [script for used, script in test_envs.rules().values() if used == env]
    needed = set().union(*(test_envs.closure(script) for script in scripts)) - {"snakemake"}
    needed |= {"mlx.core", "diffusionkit.mlx.mmdit"} if name == "mlx" else set()
    assert needed or name == "mlx"
    code = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)"
    subprocess.run([python, "-I", "-c", code, *sorted(needed)], check=True)
