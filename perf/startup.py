"""Start-up cost: importing the library module of each rule, against `import torch`; and Snakemake's dry run.

python perf/startup.py [repeats]
"""

import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
IMPORT = re.compile(r"^ *from (ditscope\.[\w.]+) import", re.MULTILINE)


def seconds(command: list[str], repeats: int) -> float:
    """Median wall-clock seconds of a command, after one run that warms the disk cache."""
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def modules(script: Path) -> list[str]:
    """The ditscope modules that a rule's script imports."""
    return IMPORT.findall(script.read_text())


def main(repeats: int = 3) -> None:
    """Print the seconds of every measured start."""
    python = [sys.executable, "-c"]
    bare = seconds([*python, "pass"], repeats)
    torch = seconds([*python, "import torch"], repeats) - bare
    print(f"python starts in {bare:.2f} s; `import torch` adds {torch:.2f} s\n")
    print("| script | imports / s | of `import torch` |\n|---|---|---|")
    for script in sorted((ROOT / "scripts").glob("*.py")):
        if names := modules(script):
            code = f"import sys; sys.path.insert(0, 'scripts'); import {', '.join(names)}"
            cost = seconds([*python, code], repeats) - bare
            print(f"| {script.stem} | {cost:.2f} | {cost / torch:.2f} |")
    dry = seconds([sys.executable, "-m", "snakemake", "--dry-run", "--quiet", "all"], repeats)
    print(f"\n`snakemake --dry-run` of the demo: {dry:.2f} s")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
