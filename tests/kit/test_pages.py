"""Giving back pages that only a library's start used (kit.pages)."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import pyarrow as arrow
from kit.pages import release_clean_pages
def resident():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS"))
before = resident()
released = release_clean_pages("libarrow")
assert released > 1024, released
assert before - resident() > released // 2, (before, resident(), released)
assert arrow.array(range(1000)).slice(10, 2).to_pylist() == [10, 11]
assert release_clean_pages("no such library") == 0
"""


def test_the_pages_go_and_the_library_still_works() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
