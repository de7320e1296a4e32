"""The numbers of docs/embedding-similarity.md are those that its command prints."""

import re
import subprocess
import sys

import pytest

from workflow import ROOT

ROW = re.compile(r"^\| ([\w ,]+) \| (-?\d\.\d\d) \[(-?\d\.\d\d), (-?\d\.\d\d)\] \| (?:(\d+)% of \d+ scenes)?", re.M)


@pytest.mark.system
def test_the_page_says_what_the_command_prints():
    command = [sys.executable, "perf/similarity.py"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=600).stdout
    page = (ROOT / "docs/embedding-similarity.md").read_text()
    told, wanted = ROW.findall(page), ROW.findall(printed)
    assert len(wanted) == 10 and [row[0] for row in told] == [row[0] for row in wanted]
    for a, b in zip(told, wanted, strict=True):
        assert all(abs(float(x) - float(y)) < 0.011 for x, y in zip(a[1:4], b[1:4], strict=True)), a
        assert abs(int(a[4] or 0) - int(b[4] or 0)) <= 4, a
