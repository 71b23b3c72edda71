"""Every script in examples/ runs, and the demo's committed files are what its script makes."""

from __future__ import annotations

import runpy
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scan_cases import CHECKPOINT, DATA

EXAMPLES = Path(__file__).parents[1] / "examples"


# Processes started by one that runs under pytest would import pytest's main module.
STARTS_PROCESSES = {"ddp_guard"}


def run(script: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What a script prints; in this process where it can be, which has loaded torch already."""
    if script.stem in STARTS_PROCESSES:
        command = [sys.executable, str(script), str(folder)]
        done = subprocess.run(command, cwd=folder.parent, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout
    monkeypatch.chdir(folder.parent)
    monkeypatch.setattr(sys, "argv", [str(script), str(folder)])
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("default")
        runpy.run_path(str(script), run_name="__main__")
    return capsys.readouterr().out


# Studies and attacks share their machinery; of them the shortest runs every time. Processes that train together are
# tested in `tests/integrations/test_average_guard.py`.
SLOW = {
    "audit_in_python",
    "audit_lora",
    "study_fairness",
    "ddp_guard",
    "study_directions",
    "study_initialization",
    "study_training",
    "verify_in_python",
}


def others() -> list[object]:
    scripts = [script for script in sorted(EXAMPLES.glob("*.py")) if script.name != "make_demo.py"]
    return [
        pytest.param(script, marks=[pytest.mark.slow] * (script.stem in SLOW), id=script.stem) for script in scripts
    ]


@pytest.mark.sampled(100)
@pytest.mark.parametrize("script", others())
def test_example_runs(script, tmp_path, monkeypatch, capsys) -> None:
    content = script.read_text(encoding="utf-8")
    for module, package in (("sklearn", "scikit-learn"), ("opacus", "opacus")):
        if f"from {module}" in content and find_spec(module) is None:
            pytest.skip(f"{package} is not installed")
    printed = run(script, tmp_path / "made", monkeypatch, capsys)
    assert printed
    made = sorted(path.name for path in (tmp_path / "made").rglob("*"))
    for line in printed.splitlines():
        if line.startswith("wrote "):
            assert Path(line.removeprefix("wrote ")).name in made


@pytest.mark.skipif(find_spec("sklearn") is None, reason="scikit-learn is not installed")
@pytest.mark.slow
def test_the_demo_files_are_what_make_demo_makes(tmp_path, monkeypatch, capsys) -> None:
    run(EXAMPLES / "make_demo.py", tmp_path, monkeypatch, capsys)
    committed, made = load_file(CHECKPOINT), load_file(tmp_path / CHECKPOINT.name)
    assert list(made) == list(committed)
    for name, value in committed.items():
        # Training rounds differently from one processor to the next.
        torch.testing.assert_close(made[name], value, rtol=0.05, atol=0.02)
    with np.load(DATA) as old, np.load(tmp_path / DATA.name) as new:
        assert sorted(old) == sorted(new) == ["images", "labels"]
        for name in old:
            assert old[name].dtype == new[name].dtype
            assert np.array_equal(old[name], new[name])
