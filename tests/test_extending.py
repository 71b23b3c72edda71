"""The examples of docs/extending.md work: each file goes where its title says, in a copy of the package."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r'^```(python|diff|markdown) title="([^"]+)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)

# What looks at everything that is registered, each as if run alone.
BESIDE = (
    "tests/attacks/test_attack_contracts.py::test_every_attack_has_a_contract",
    "tests/checks/test_checks.py::test_every_check_is_here",
    "tests/checks/received/test_signs.py::test_every_sign_has_a_case",
    "tests/cli/test_audit_json.py::test_old_audits_load_and_render",
    "tests/jacobian/structured/test_contractions.py::test_every_contraction_has_its_contract",
    "tests/metrics/test_metric_contracts.py::test_every_metric_has_its_contract",
    "tests/metrics/test_metrics.py::test_what_is_applicable",
    "tests/metrics/test_metrics.py::test_reports_show_every_metric_that_says_so",
    "tests/proxies/test_proxy_contracts.py::test_every_proxy_has_a_contract",
    "tests/release/test_release_derivatives.py::test_every_step_with_a_closed_form_is_here",
    "tests/release/test_release_steps.py::test_every_step_has_a_contract",
)


def insert(path: Path, difference: str) -> None:
    """Put lines behind the one that a difference shows before them."""
    before, *added = (line[1:] + "\n" for line in difference.splitlines())
    text = path.read_text(encoding="utf-8")
    assert text.count(before) == 1, before
    path.write_text(text.replace(before, before + "".join(added)), encoding="utf-8")


@pytest.mark.slow
def test_every_example_works(tmp_path: Path) -> None:
    for folder in ("riskaudit", "tests", "benchmarks"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    blocks = BLOCK.findall((ROOT / "docs" / "extending.md").read_text(encoding="utf-8"))
    tests = []
    for kind, title, code in blocks:
        path = tmp_path / title
        if kind == "diff":
            insert(path, code)
            continue
        assert not path.exists(), f"{title} exists already"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code, encoding="utf-8")
        tests += [str(path)] if path.name.startswith("test_") else []
    assert len(tests) == 10
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests, *BESIDE],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
