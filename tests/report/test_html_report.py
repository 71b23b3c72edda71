"""The HTML, read with the standard library's parser: content, escaping, structure."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from report_reading import Report, words

from riskaudit.report.sections.protect import Recommendation
from riskaudit.results import NoiseNeed
from riskaudit.results.facts import Facts

VOID = {"meta", "img", "br", "link", "input", "path", "use", "rect"}


class Page(HTMLParser):
    """Tags, attributes and visible text of a page."""

    def __init__(self, content: bytes):
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.script = ""
        self._inside = ""
        self.feed(content.decode())
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in {"script", "style", "title"}:
            self._inside = tag

    def handle_endtag(self, tag):
        if tag == self._inside:
            self._inside = ""

    def handle_data(self, data):
        if self._inside == "script":
            self.script += data
        elif not self._inside and data.strip():
            self.texts.append(data.strip())


@pytest.fixture(scope="module")
def page(rendered):
    return lambda name: Page(rendered(name, "html"))


def test_undefended_is_the_first_thing_read(page, report):
    assert "undefended: assume full disclosure" in page("undefended").texts[0]
    assert "reference noise, which is not in the release" in words(report("undefended").verdict).lower()
    assert "undefended" not in report("defended").text.lower()


def test_shown_inputs_are_announced_first(page):
    assert re.match("Private inputs are shown: .* 8 private inputs", page("shown").texts[0])


@pytest.mark.parametrize(
    ("name", "headline"),
    [
        ("exceeded", "Policy exceeded"),
        ("within", "Within policy"),
        ("warned", "Not confirmed within policy"),
        ("lanczos", "Not assessed"),
        ("defended", "No policy given: 10 high"),
    ],
)
def test_headline(report, name, headline):
    verdict = report(name).verdict
    assert verdict.title.startswith(headline)
    assert ("Within policy" in words(verdict)) == (name == "within")


def test_an_allowed_but_unassessed_sample_is_never_within_policy(audit):
    result = audit("within")
    unassessed = result.samples[0].model_copy(update={"verdict": "not_assessed", "reason": "unknown"})
    samples = [unassessed, *result.samples[1:]]
    assert Report.of(result.model_copy(update={"samples": samples})).verdict.title == "Not confirmed within policy"


def test_an_undefended_release_is_never_simply_within_policy(audit):
    report = Report.of(audit("within").model_copy(update={"release": audit("undefended").release}))
    assert re.search("file says allow, .*numbers say block", report.document.banners[0])
    assert report.verdict.title != "Within policy"


def test_every_status_and_reason_is_shown(page, report):
    text = page("failed").text
    for item in ("not converged", "failed", "singular", "bracketed", "the loss is not finite", "did not reach 1e-8"):
        assert item in text
    lanczos = report("lanczos").text
    for item in ("needs the whole spectrum", "not applicable", "not a finding of safety"):
        assert item in lanczos


def test_the_noise_curve_speaks_only_for_samples_with_a_value(report):
    assert "every sample below" in report("defended").figures["noise"].title
    assert "9 samples with a value" in report("failed").figures["noise"].title


def test_no_cell_is_empty(rendered):
    for name in ("defended", "failed", "lanczos", "one", "undefended"):
        assert not re.search(rb"<t[dh][^>]*>\s*</t[dh]>", rendered(name, "html")), name


def test_no_value_that_is_missing_becomes_a_number(report):
    text = report("lanczos").text
    assert "nan" not in text.lower().split()
    assert not re.search(r"\bNone\b(?!: no policy| could be)", text)


def test_thresholds_are_printed_with_decibels(report):
    for level in ("0.5 (3.0 dB)", "0.1 (0.46 dB)"):
        assert level in report("defended").text


@pytest.mark.slow
def test_all_rows_of_a_large_audit_are_there(page):
    rows = [attributes for tag, attributes in page("many").tags if tag == "tr"]
    assert len(rows) > 300


def test_one_noise_is_recommended_and_suffices(report):
    laplace = report("laplace")
    text = laplace.text
    said = re.search(r"Gaussian noise of standard deviation ([\d.]+) per released entry: the least", text)
    release = re.search(r"--release clip:1\.0,gaussian:([\d.]+)", text)
    assert said
    assert release
    assert float(release.group(1)) == pytest.approx(float(said.group(1)), rel=5e-3)
    assert "1.41 times" in text
    # Of the needs of single targets those that the recommendation meets are marked, and it is the largest of them.
    texts = [[cell.text for cell in row] for row in laplace.tables["noise-needed"].rows]
    decisive = [float(row[2].split()[0]) for row in texts if row[-1] == "yes"]
    assert float(release.group(1)) == pytest.approx(max(decisive), rel=2e-2)
    assert f"recommended: {said.group(1)}" in [each.label for each in laplace.figures["noise"].plot.vertical]


def test_of_several_targets_one_noise_is_recommended_and_the_others_are_to_compare(audit):
    result = audit("defended")
    worst = max(row.noise_std_for_target.std for row in result.samples if row.noise_std_for_target is not None)
    needs = [
        NoiseNeed(max_revealed=limit, std=factor * worst, median_std=worst, sample_id=result.samples[0].id)
        for limit, factor in ((0.5, 2.0), (0.1, 9.0))
    ]
    result = result.model_copy(update={"noise_needed": needs})
    recommended, found = Recommendation(Facts(result)), Report.of(result)
    assert float(recommended.std) == pytest.approx(2 * worst, rel=1e-2)
    rows = {row[0].text: row[-1].text for row in found.tables["noise-needed"].rows}
    assert list(rows.values()) == ["yes", "yes", "no, to compare"]
    assert "0.100" in list(rows)[-1]
    assert found.figures["noise"].title.startswith("The recommended noise of")
    assert "at least" in recommended.purpose
    assert "at most 50" in recommended.purpose
    purpose = " ".join(recommended.purpose.split())
    assert purpose in found.text_of("what-would-protect")
    assert purpose in found.text_of("verdict")


def test_baseline_changes(audit, report):
    changed = Report.of(audit("defended"), audit("undefended")).text_of("provenance")
    for item in ("8 samples matched by id, 16 new", "release.spec", "gradient", "gaussian:0.01"):
        assert item in changed
    assert "same as in the baseline" in Report.of(audit("within"), audit("within")).text_of("provenance")
    assert "as in the baseline" not in report("within").text_of("provenance")


def test_a_heuristic_is_not_called_differential_privacy(report):
    assert "not differential privacy" in report("defended").text


def test_hostile_text_stays_text(page, hostile_strings):
    hostile = page("hostile")
    assert {tag for tag, _ in hostile.tags} == {tag for tag, _ in page("exceeded").tags}
    assert not [name for _, attributes in hostile.tags for name in attributes if name.startswith("on")]
    assert [tag for tag, _ in hostile.tags].count("script") == 1
    assert hostile.script == page("defended").script
    for text in hostile_strings[:11]:
        assert " ".join(text.split()) in hostile.text
    assert "49" not in re.findall(r"\{\{ (\S+) \}\}", hostile.text)
    assert "\\u202eright-to-left" in hostile.text


@pytest.mark.parametrize("name", ["hostile", "shown", "defended"])
def test_nothing_is_fetched(page, name):
    for tag, attributes in page(name).tags:
        assert tag not in {"link", "iframe", "object", "base", "form"}
        for key in ("src", "href", "xlink:href", "action", "srcset"):
            value = attributes.get(key) or "#"
            assert value.startswith(("#", "data:image/png;base64,")), (tag, key, value)


def test_the_policy_header_allows_only_the_page_s_own_script(page):
    content = page("defended")
    policy = next(a["content"] for t, a in content.tags if t == "meta" and "http-equiv" in a)
    digest = base64.b64encode(hashlib.sha256(content.script.encode()).digest()).decode()
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy


def test_structure(page):
    tags = page("defended").tags
    headings = [int(tag[1]) for tag, _ in tags if re.fullmatch(r"h[1-6]", tag)]
    assert headings[0] == 1
    assert headings.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(headings))
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    names = [tag for tag, _ in tags]
    assert names.count("table") == names.count("caption")
    assert all("scope" in attributes for tag, attributes in tags if tag == "th")
    assert names.count("figure") == 6
    # Numbers of the figures, and how those of the verdict are computed.
    assert names.count("details") == 7
    assert all(attributes.get("aria-label") for tag, attributes in tags if tag == "svg")
