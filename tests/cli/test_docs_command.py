"""``riskaudit docs``: the site that is installed with the package."""

from __future__ import annotations

import webbrowser

import pytest

from riskaudit.cli import docs


@pytest.mark.parametrize("options", [(), ("--path",)], ids=["open", "path"])
def test_docs_opens_the_site_and_says_where_it_is(command, tmp_path, monkeypatch, options) -> None:
    page = tmp_path / "site" / "index.html"
    page.parent.mkdir()
    page.write_text("<html>")
    opened: list[str] = []
    monkeypatch.setattr(docs, "SITE", page.parent)
    monkeypatch.setattr(webbrowser, "open", opened.append)
    outcome = command("docs", *options)
    assert (outcome.code, outcome.out.strip()) == (0, str(page))
    assert opened == ([] if options else [page.as_uri()])


def test_docs_without_a_browser(command, tmp_path, monkeypatch) -> None:
    def none(address: str) -> bool:
        raise webbrowser.Error

    (tmp_path / "index.html").write_text("<html>")
    monkeypatch.setattr(docs, "SITE", tmp_path)
    monkeypatch.setattr(webbrowser, "open", none)
    outcome = command("docs")
    assert (outcome.code, outcome.out.strip()) == (0, str(tmp_path / "index.html"))


def test_docs_of_a_checkout_that_did_not_build_them(command, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(docs, "SITE", tmp_path / "site")
    outcome = command("docs")
    assert outcome.code == 2
    assert "make docs" in outcome.err
