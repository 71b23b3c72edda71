"""The examples of docs/extending.md work: each file goes where its title says, in a copy of the package."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r'^```python title="([^"]+)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)
ADDED = re.compile(r"^(\S+) \(add\)$")


def test_every_example_works(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "riskaudit", tmp_path / "riskaudit", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "tests", tmp_path / "tests", ignore=shutil.ignore_patterns("__pycache__", "test_*.py"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    blocks = BLOCK.findall((ROOT / "docs" / "extending.md").read_text(encoding="utf-8"))
    tests = []
    for title, code in blocks:
        added = ADDED.match(title)
        path = tmp_path / (added[1] if added else title)
        if added:
            assert path.exists(), title
            path.write_text(path.read_text(encoding="utf-8") + code, encoding="utf-8")
            continue
        assert not path.exists(), f"{title} exists already"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code, encoding="utf-8")
        tests += [str(path)] if path.name.startswith("test_") else []
    assert len(tests) == 4
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
