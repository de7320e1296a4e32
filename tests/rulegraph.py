"""The demo's rule graph in docs/how-it-fits.md: `python tests/rulegraph.py --fix` writes it (`make docs`)."""

import re
import sys
import tempfile
from pathlib import Path

from workflow import ROOT, snakemake, workdir

PAGE = ROOT / "docs" / "how-it-fits.md"
BLOCK = re.compile(r"(?<=```mermaid\n).*?(?=```)", re.S)


def rule_graph(folder: Path, *arguments: str) -> str:
    """The demo's rules and what each waits for, as mermaid; what follows from other arrows is left out."""
    done = snakemake(workdir(folder), "--cores", "1", "--forceall", "--rulegraph", "mermaid-js", *arguments)
    if done.returncode:
        raise RuntimeError(done.stdout)
    names = dict(re.findall(r"^\s*(id\d+)\[(\w+)\]", done.stdout, flags=re.M))
    arrows = re.findall(r"^\s*(id\d+) --> (id\d+)", done.stdout, flags=re.M)
    needs: dict[str, set[str]] = {name: set() for name in names.values()}
    for before, after in arrows:
        needs[names[after]].add(names[before])
    del needs["all"]

    def reach(rule: str) -> set[str]:
        """Every rule that `rule` waits for, directly or not."""
        return needs[rule].union(*(reach(before) for before in needs[rule]))

    lines = ["flowchart LR"]
    for rule in sorted(needs):
        direct = needs[rule] - set().union(*(reach(before) for before in needs[rule]))
        lines += [f"    {before} --> {rule}" for before in sorted(direct)] or [f"    {rule}"]
    return "\n".join(lines) + "\n"


def page_with(graph: str) -> str:
    """The page with `graph` in the place of its mermaid block."""
    page, count = BLOCK.subn(lambda _: graph, PAGE.read_text())
    if count != 1:
        raise RuntimeError(f"{PAGE}: {count} mermaid blocks instead of one")
    return page


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        page = page_with(rule_graph(Path(scratch), *[a for a in sys.argv[1:] if a != "--fix"]))
    if "--fix" in sys.argv:
        PAGE.write_text(page)
    elif page != PAGE.read_text():
        sys.exit(f"{PAGE}: the rule graph has changed; run `make docs`")
