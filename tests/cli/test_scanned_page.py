"""The HTML of a real scan in a real browser."""

from __future__ import annotations

from importlib.resources import files

import pytest


@pytest.fixture
def page_of(browser, complete):
    """Open the complete scan's report; requests and errors are collected on the page object."""
    pages = []

    def open_(**options):
        page = browser.new_page(**options)
        pages.append(page)
        page.problems = []
        page.on("request", lambda request: page.problems.append(request.url))
        page.on("console", lambda message: page.problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.goto((complete.folder / "audit.html").as_uri())
        return page

    yield open_
    for page in pages:
        page.close()


def test_nothing_is_fetched_and_nothing_fails(page_of, complete) -> None:
    page = page_of()
    page.wait_for_timeout(100)
    assert page.problems == [(complete.folder / "audit.html").as_uri()]
    assert "digits-lenet.safetensors" in page.title()


def test_samples_sort_by_what_they_reveal(page_of, complete) -> None:
    page = page_of()
    header = page.locator("#table-samples thead th", has_text="Revealed fraction")
    column = page.locator("#table-samples thead th").all_inner_texts()
    position = next(index for index, text in enumerate(column, 1) if "revealed fraction" in text.lower())
    header.locator("button").click()
    cells = page.locator(f"#table-samples tbody tr > :nth-child({position})").all()
    shown = [float(cell.get_attribute("data-value")) for cell in cells]
    assert shown == sorted(complete.values("revealed_fraction"), reverse=True)
    header.locator("button").click()
    cells = page.locator(f"#table-samples tbody tr > :nth-child({position})").all()
    assert [float(cell.get_attribute("data-value")) for cell in cells] == shown[::-1]


def test_readable_without_javascript(page_of, complete) -> None:
    text = page_of(java_script_enabled=False).locator("body").inner_text()
    for words in (
        "No policy given",
        "Threat model",
        "What would protect",
        "Sign-off",
        complete.result.checkpoint.sha256,
    ):
        assert words in text


# Of other reports that is seen every time: `tests/report/test_browser.py`.
@pytest.mark.slow
def test_accessibility(page_of) -> None:
    axe = pytest.importorskip("axe_core_python", reason="axe-core-python is not installed")
    page = page_of(color_scheme="dark")
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    page.evaluate((files(axe) / "axe.min.js").read_text(encoding="utf-8"))
    report = page.evaluate("axe.run()")
    serious = [
        (found["id"], found["nodes"][0]["html"][:200])
        for found in report["violations"]
        if found["impact"] in {"serious", "critical"}
    ]
    assert serious == []
    assert len(report["passes"]) > 15
