"""What the pages under docs/ point to is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md"])


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page) -> None:
    text = prose(page)
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)]+)\)", text) if "://" not in target]
    assert [target for target in targets if target and not (page.parent / target).exists()] == []


def test_theory_names_tests_that_exist() -> None:
    text = (ROOT / "docs" / "theory.md").read_text(encoding="utf-8")
    names = set(re.findall(r"`(?:tests/[a-z/]*)?(test_\w+\.py)", text))
    assert len(names) > 15
    assert names <= {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    places = set(re.findall(r"`((?:tests|riskaudit|linalg|proxies)/[\w/.]*?)(?:::\w+)?`", text))
    assert [place for place in places if not any((base / place).exists() for base in (ROOT, ROOT / "riskaudit"))] == []
    sections = set(re.findall(r"^## (\d+)\.", text, re.MULTILINE))
    for path in (ROOT / "riskaudit").rglob("*.py"):
        assert set(re.findall(r"docs/theory\.md,\s+section (\d+)", path.read_text(encoding="utf-8"))) <= sections


@pytest.mark.parametrize("page", ["architecture.md", "extending.md"])
def test_pages_for_developers_name_modules_that_exist(page) -> None:
    text = prose(ROOT / "docs" / page)
    places = set(re.findall(r"`((?:riskaudit|tests)/[\w/.]*)`", text))
    assert places
    assert [place for place in places if not (ROOT / place).exists()] == []
    packages = {path.name for path in (ROOT / "riskaudit").iterdir() if path.is_dir()}
    modules = {name for name in re.findall(r"`([a-z]+\.[a-z_.]+)`", text) if name.partition(".")[0] in packages}
    modules -= {"audit.json", "audit.sarif"}
    paths = [ROOT / "riskaudit" / name.replace(".", "/") for name in modules]
    assert [str(path) for path in paths if not (path.is_dir() or path.with_suffix(".py").exists())] == []
