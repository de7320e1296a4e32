"""A conda channel of the packages that this very environment has, and a `conda` that installs from it: no network.

Test doubles. They check the workflow's wiring (`conda:` lines, environment files, activation, what a job can import),
not that conda-forge has those builds. Packages are real conda archives, solved and linked by py-rattler; files of more
than a megabyte enter them as links to the originals, so that a channel is made in seconds.
"""

import asyncio
import hashlib
import io
import json
import sys
import sysconfig
import tarfile
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
SITE = f"lib/python{PYTHON}/site-packages"
COPIED = 1_000_000  # bytes up to which a file is copied

CONDA = '''#!{python}
"""The few calls that Snakemake makes of conda, answered from local channels by py-rattler."""
import asyncio, json, os, sys
from pathlib import Path

import yaml
from rattler import ChannelPriority, VirtualPackage, install, solve

BASE = Path(__file__).resolve().parents[1]


async def create(file, prefix):
    env = yaml.safe_load(Path(file).read_text())
    specs = [item for item in env["dependencies"] if isinstance(item, str)]
    assert specs == env["dependencies"], "pip sections need an index"
    channels = [(BASE / "channels" / name).as_uri() for name in env["channels"] if name != "nodefaults"]
    records = await solve(
        sources=channels, specs=specs, platforms=["linux-64", "noarch"],
        virtual_packages=VirtualPackage.detect(), channel_priority=ChannelPriority.Strict,
    )
    await install(records=records, target_prefix=prefix, cache_dir=BASE / "pkgs", show_progress=False)


def main(arguments):
    match arguments:
        case ["--version"]:
            print("conda 26.9.4")
        case ["info", "--json"]:
            print(json.dumps({{"conda_prefix": str(BASE), "platform": "linux-64", "conda_version": "26.9.4"}}))
        case ["config", "--get", *_]:
            print(json.dumps({{"get": {{"channel_priority": "strict"}}}}))
        case ["clean", *_]:
            pass
        case ["env", "create", *options]:
            asyncio.run(create(options[options.index("--file") + 1], options[options.index("--prefix") + 1]))
        case _:
            raise ValueError(f"unexpected: conda {{' '.join(arguments)}}")


try:
    main(sys.argv[1:])
except BaseException as error:
    print(f"{{type(error).__name__}}: {{error}}", file=sys.stderr, flush=True)
    os._exit(1)
sys.stdout.flush()
os._exit(0)  # py-rattler may abort when the interpreter ends
'''

ACTIVATE = """# Sourced with the environment's folder.
export CONDA_PREFIX="$1" CONDA_DEFAULT_ENV="$1" CONDA_SHLVL=1 PATH="$1/bin:$PATH"
unset PYTHONHOME PYTHONPATH
"""


def install_conda(base: Path) -> Path:
    """Put the `conda` under `base`, whose channels are in `base`/channels; give the folder for PATH."""
    programs = base / "bin"
    programs.mkdir(parents=True)
    (programs / "conda").write_text(CONDA.format(python=sys.executable))
    (programs / "conda").chmod(0o755)
    (programs / "activate").write_text(ACTIVATE)
    return programs


def write_channel(channel: Path, packages: dict[str, str]) -> None:
    """A channel with Python and `packages` (conda name -> name of the installed distribution), and all they need."""
    from rattler.index import index_fs

    home = Path(sys.base_prefix) / "bin"
    version = sysconfig.get_config_var("py_version")
    settings = f"home = {home}\ninclude-system-site-packages = false\nversion = {version}\n"
    links = {"bin/python": str(home / f"python{PYTHON}"), "bin/python3": "python", f"bin/python{PYTHON}": "python"}
    write_package(channel, "python", version, [], {"pyvenv.cfg": settings.encode()}, links)
    names = {canonicalize_name(installed): name for name, installed in packages.items()}
    waiting, written = list(names), set[str]()
    while waiting:
        installed = waiting.pop()
        if installed in written:
            continue
        written.add(installed)
        package = distribution(installed)
        needed = requirements(package)
        waiting += [canonicalize_name(requirement.name) for requirement in needed]
        depends = [f"python {PYTHON}.*"]
        depends += [conda_spec(r, names.get(canonicalize_name(r.name), canonicalize_name(r.name))) for r in needed]
        files, links = contents(package)
        write_package(channel, names.get(installed, installed), package.version, depends, files, links)
    (channel / "noarch").mkdir()
    asyncio.run(index_fs(channel, force=True))


def requirements(package: Distribution) -> list[Requirement]:
    """What a distribution needs here, extras left out."""
    every = [Requirement(line) for line in package.requires or []]
    return [r for r in every if r.marker is None or r.marker.evaluate({"extra": ""})]


def conda_spec(requirement: Requirement, name: str) -> str:
    """A requirement as conda writes it."""
    return f"{name} {','.join(sorted(str(requirement.specifier).split(',')))}".strip()


def contents(package: Distribution) -> tuple[dict[str, bytes], dict[str, str]]:
    """The installed files of a distribution by their place in a prefix: small ones' bytes, large ones as links."""
    files, links = {}, {}
    for file in package.files or []:
        source = Path(str(file.locate()))
        if ".." in file.parts or "__pycache__" in file.parts or not source.is_file():
            continue
        if source.stat().st_size > COPIED:
            links[f"{SITE}/{file}"] = str(source)
        else:
            files[f"{SITE}/{file}"] = source.read_bytes()
    return files, links


def write_package(
    channel: Path, name: str, version: str, depends: list[str], files: dict[str, bytes], links: dict[str, str]
) -> None:
    """One conda package (.tar.bz2) with its index and the list of its paths."""
    index = {"name": name, "version": version, "build": "0", "build_number": 0, "depends": depends}
    index |= {"subdir": "linux-64", "arch": "x86_64", "platform": "linux", "timestamp": 1700000000000}
    if name == "python":
        index["python_site_packages_path"] = SITE
    paths = [
        {"_path": p, "path_type": "hardlink", "sha256": hashlib.sha256(data).hexdigest(), "size_in_bytes": len(data)}
        for p, data in files.items()
    ]
    empty = hashlib.sha256(b"").hexdigest()
    paths += [{"_path": p, "path_type": "softlink", "sha256": empty, "size_in_bytes": 0} for p in links]
    info = {
        "info/index.json": json.dumps(index).encode(),
        "info/paths.json": json.dumps({"paths": paths, "paths_version": 1}).encode(),
        "info/files": "\n".join([*files, *links, ""]).encode(),
    }
    folder = channel / "linux-64"
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / f"{name}-{version}-0.tar.bz2", "w:bz2", compresslevel=1) as tar:
        for path, data in (info | files).items():
            member = tarfile.TarInfo(path)
            member.size, member.mode = len(data), 0o644
            tar.addfile(member, io.BytesIO(data))
        for path, target in links.items():
            member = tarfile.TarInfo(path)
            member.type, member.linkname = tarfile.SYMTYPE, target
            tar.addfile(member)


if __name__ == "__main__":
    import os

    write_channel(Path(sys.argv[1]), dict(pair.split("=") for pair in sys.argv[2:]))
    sys.stdout.flush()
    os._exit(0)  # py-rattler may abort when the interpreter ends
