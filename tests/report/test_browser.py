"""The HTML in a real browser: no script runs but its own, no request leaves, axe finds nothing serious."""

from __future__ import annotations

from importlib.resources import files

import pytest


@pytest.fixture
def open_page(browser, rendered, tmp_path):
    """Open a case; requests, dialogs and console errors are collected on the page object."""
    pages = []

    def open_(name, **options):
        path = tmp_path / f"{name}.html"
        path.write_bytes(rendered(name, "html"))
        page = browser.new_page(**options)
        pages.append(page)
        page.problems = []
        page.on(
            "request", lambda request: page.problems.append(request.url) if "file:" not in request.url[:5] else None
        )
        page.on("dialog", lambda dialog: (page.problems.append(dialog.message), dialog.dismiss()))
        page.on("console", lambda message: page.problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.goto(path.as_uri())
        return page

    yield open_
    for page in pages:
        page.close()


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    "name", ["defended", "hostile", "shown", "failed", "uploads", "attacked-hostile", "attacked-shown"]
)
def test_nothing_runs_and_nothing_is_fetched(open_page, name):
    page = open_page(name)
    page.wait_for_timeout(100)
    assert [problem for problem in page.problems if not problem.startswith("data:image/png")] == []


@pytest.mark.sampled(4)
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", ["defended", "hostile", "lanczos", "calibrated", "uploads", "attacked-hostile"])
def test_the_page_never_scrolls_sideways(open_page, name, width):
    page = open_page(name, viewport={"width": width, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_sorting(open_page):
    page = open_page("failed")
    header = page.locator("#table-samples thead th", has_text="Revealed fraction")

    def values():
        cells = page.locator("#table-samples tbody tr td:nth-child(5)")
        return [cell.get_attribute("data-value") for cell in cells.all()]

    header.locator("button").click()
    assert header.get_attribute("aria-sort") == "descending"
    falling = values()
    assert falling[-1] is None
    assert falling[:-1] == sorted(falling[:-1], key=float, reverse=True)
    header.locator("button").press("Enter")
    assert header.get_attribute("aria-sort") == "ascending"
    assert values() == [*falling[:-1][::-1], None]
    page.locator("#table-samples thead th", has_text="Sample").locator("button").click()
    assert header.get_attribute("aria-sort") is None
    assert page.locator("#table-samples tbody th").first.inner_text() == "0"


def test_rows_are_narrowed_by_verdict_and_all_are_printed(open_page):
    page = open_page("defended")
    rows = page.locator("#table-samples tbody tr")
    bar = page.get_by_role("group", name="Rows of the table All 24 audited samples")
    everything = bar.get_by_role("button", name="all (24)")
    assert everything.get_attribute("aria-pressed") == "true"
    high = bar.get_by_role("button", name="high")
    high.click()
    shown = [row.inner_text() for row in rows.all() if row.is_visible()]
    assert high.inner_text() == f"▲ high ({len(shown)})"
    assert 0 < len(shown) < 24
    assert all("▲ high" in text for text in shown)
    # Sorting keeps the choice.
    page.locator("#table-samples thead th", has_text="Loss").locator("button").click()
    assert sum(row.is_visible() for row in rows.all()) == len(shown)
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert all(row.is_visible() for row in rows.all())
    assert everything.get_attribute("aria-pressed") == "true"


def test_a_table_of_one_verdict_has_nothing_to_narrow(open_page):
    assert open_page("undefended").locator(".filter").count() == 0


def test_commands_can_be_copied(open_page):
    page = open_page("defended")
    # Stands for the clipboard, which a browser without a window need not have.
    page.evaluate(
        "Object.defineProperty(navigator, 'clipboard', {value: {writeText: t => { window.copied = t; "
        "return Promise.resolve(); }}})"
    )
    snippet = page.locator(".snippet").last
    snippet.get_by_role("button", name="Copy").click()
    assert snippet.locator("button").inner_text() == "Copied"
    assert page.evaluate("window.copied") == snippet.locator("code").inner_text()


def test_readable_without_javascript(open_page):
    page = open_page("defended", java_script_enabled=False)
    text = page.locator("body").inner_text()
    for words in ("No policy given", "Threat model", "All 24 audited samples", "What would protect", "Sign-off"):
        assert words in text
    assert page.locator("button").count() == 0
    assert page.locator("#table-samples tbody tr").count() == 24
    page.get_by_text("How these numbers are computed").click()
    assert "Formula:" in page.locator(".computed").inner_text()
    page.locator("#verdict h2 .permalink").click()
    assert page.url.endswith("#verdict")


def test_print_opens_the_tables_of_the_figures(open_page):
    page = open_page("defended")
    table = page.locator("#table-revealed-distribution caption")
    assert not table.is_visible()
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert table.is_visible()


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        ("exceeded", "light"),
        pytest.param("undefended", "dark", marks=pytest.mark.slow),
        pytest.param("lanczos", "light", marks=pytest.mark.slow),
        pytest.param("attacked-shown", "dark", marks=pytest.mark.slow),
        pytest.param("attacked-shown", "light", marks=pytest.mark.slow),
    ],
)
def test_accessibility(open_page, name, scheme):
    axe = pytest.importorskip("axe_core_python", reason="axe-core-python is not installed")
    source = (files(axe) / "axe.min.js").read_text(encoding="utf-8")
    page = open_page(name, color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    page.evaluate(source)
    report = page.evaluate("axe.run()")
    serious = [
        (found["id"], found["nodes"][0]["html"][:200])
        for found in report["violations"]
        if found["impact"] in {"serious", "critical"}
    ]
    assert serious == []
    # Proof that the check ran and saw the page.
    assert len(report["passes"]) > 15
