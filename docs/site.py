"""Hooks of MkDocs: README.md is the first page, and files of the repository that pages link to come along."""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

LINK = re.compile(r'(\]\(|src="|href=")([^)#"\s]+)')
SOURCE = "source"  # where files from outside docs/ stand in the site


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add README.md as `index.md`, and every file from outside docs/ that a page links to."""
    root = Path(config.config_file_path).parent
    files.append(File.generated(config, "index.md", content=(root / "README.md").read_text(encoding="utf-8")))
    for page in files.documentation_pages():
        for _, link in LINK.findall(page.content_string):
            outside = place(page.src_uri, link)
            if outside and (root / outside).is_file() and not files.get_file_from_path(f"{SOURCE}/{outside}"):
                # As text, so that a browser shows it.
                files.append(
                    File.generated(config, f"{SOURCE}/{outside}.txt", content=(root / outside).read_text("utf-8"))
                )
    return files


def on_page_markdown(markdown: str, page, config: MkDocsConfig, files: Files) -> str:
    """Links as they lead in the site: those of README.md from docs/, and those to files outside of docs/."""
    root = Path(config.config_file_path).parent

    def moved(found: re.Match) -> str:
        uri, link = page.file.src_uri, found[2]
        outside = place(uri, link)
        if outside and (root / outside).is_file():
            return found[1] + relative(uri, f"{SOURCE}/{outside}.txt")
        if uri == "index.md" and link.startswith("docs/"):
            inside = "outputs/publish.md" if (root / link).is_dir() else link.removeprefix("docs/")
            return found[1] + (re.sub(r"\.md$", ".html", inside) if found[1].startswith("href") else inside)
        return found[0]

    return LINK.sub(moved, markdown)


def place(page: str, link: str) -> str:
    """Where a link of a page leads to in the repository, if that is outside of docs/; else empty."""
    if "://" in link or link.startswith(("mailto:", "data:", "/")):
        return ""
    folder = "" if page == "index.md" else posixpath.dirname(f"docs/{page}")
    target = posixpath.normpath(posixpath.join(folder, link))
    return "" if target.startswith(("docs/", "..")) or target == "docs" else target


def relative(page: str, target: str) -> str:
    """The path from a page to a file of the site."""
    return posixpath.relpath(target, posixpath.dirname(page) or ".")
