"""The caches of this project: which they are, and their removal."""

import shutil
from pathlib import Path

from ditscope.core.errors import InputError
from ditscope.core.paths import InputFolder

CACHES = ("resources/.cache", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis")


def clean_caches(project: InputFolder = Path("."), dry_run: bool = False) -> None:
    """Remove the caches of this project, and nothing outside its folder; say how many bytes.

    Features, compiled kernels and digests in resources/.cache, and those of the development tools. Downloaded models,
    results and the caches of your home folder stay. A link is left alone, wherever it leads.
    """
    if not (project / "config.yaml").exists():
        raise InputError(f"{project}: no folder of a study (it has no config.yaml); say which with --project")
    total = 0
    for folder in cache_folders(project):
        size = sum(file.lstat().st_size for file in folder.rglob("*") if not file.is_dir() or file.is_symlink())
        if not dry_run:
            shutil.rmtree(folder)
        total += size
        print(f"{'would remove' if dry_run else 'removed'} {folder}: {size:,} bytes")
    print(f"{total:,} bytes in all")


def cache_folders(project: Path) -> list[Path]:
    """The project's cache folders that exist. Folders on the way to one, and it itself, must be no links."""
    named = [project / name for name in CACHES]
    compiled = [p for name in ("scripts", "tests", "rules") for p in sorted((project / name).rglob("__pycache__"))]
    root = project.resolve()
    return [p for p in (*named, *compiled) if p.is_dir() and p.resolve() == root / p.relative_to(project)]
