"""The fairness part of section 4: of every audit, and of a fairness study."""

from __future__ import annotations

import re
from typing import Any

import pytest
from attack_cases import with_raw_study
from report_cases import PRIOR_STD, build
from report_hostile import HOSTILE

from riskaudit.document.blocks import Figure, Paragraph, Table
from riskaudit.report import render
from riskaudit.results import AuditResult, Estimate
from riskaudit.results.facts import Facts
from riskaudit.studies.fairness.exposure import fairness
from riskaudit.studies.fairness.section import fairness_study_blocks


def blocks(result: AuditResult) -> list[Any]:
    return fairness_study_blocks(Facts(result))


def prose(result: AuditResult) -> str:
    return " ".join(f"{one.lead} {one.text}" for one in blocks(result) if isinstance(one, Paragraph))


def table(result: AuditResult, name: str) -> Table:
    found = [one.table if isinstance(one, Figure) else one for one in blocks(result)]
    return next(one for one in found if isinstance(one, Table) and one.id == name)


def with_errors(result: AuditResult, errors: dict[int, Estimate]) -> AuditResult:
    samples = list(result.samples)
    for place, error in errors.items():
        share = Estimate(value=_share(error.value), low=_share(error.high), high=_share(error.low), status=error.status)
        both = {"posterior_rmse": error, "revealed_fraction": share}
        samples[place] = samples[place].model_copy(update={"proxies": samples[place].proxies | both})
    return result.model_copy(update={"samples": samples})


def _share(error: float | None) -> float | None:
    """The revealed fraction that goes with a posterior error."""
    return None if error is None else 1 - (error / PRIOR_STD) ** 2


def studied(result: AuditResult, groups: dict[str, str] | None = None) -> AuditResult:
    return result.with_study(fairness(result, groups, groups_name="sites.csv"))


def test_every_scan_says_how_evenly_protection_falls() -> None:
    figure = next(one for one in blocks(build()) if isinstance(one, Figure))
    assert figure.title.startswith("The most exposed tenth")
    assert [panel.title for panel in figure.plot.panels] == ["Revealed fraction", "Posterior error"]
    assert all(panel.points[0] == (0, 0) and panel.points[-1] == (1, 1) for panel in figure.plot.panels)
    assert "No assessed sample has less than a tenth" in prose(build())
    assert len(table(build(), "least-protected").rows) == 10


def test_the_study_is_rendered_as_it_stands() -> None:
    result = build()
    assert blocks(studied(result)) == blocks(result)
    broken = with_raw_study(result, "fairness", {"samples": 3})
    assert blocks(broken) == blocks(result)


def test_hidden_samples_are_the_finding() -> None:
    result = with_errors(build(), {5: Estimate(value=0.2, low=0.004, high=0.3, status="bracketed")})
    assert "1 of 24 samples has less" in prose(result)
    assert table(result, "least-protected").rows[0][0].text == "5"
    assert b"1 of 24 samples has less" in render(result, ["md"])["audit.md"]


def test_what_is_not_assessed_may_be_less_protected() -> None:
    result = with_errors(build(), {5: Estimate(value=0.3, status="not_converged")})
    assert "1 more sample is not assessed" in prose(result)
    assert "5" not in [row[0].text for row in table(result, "least-protected").rows]
    nothing = with_errors(build(3), dict.fromkeys(range(3), Estimate(value=None, status="not_converged")))
    samples = [
        row.model_copy(update={"proxies": {"posterior_rmse": row.proxies["posterior_rmse"]}}) for row in nothing.samples
    ]
    assert "not a finding of safety" in prose(nothing.model_copy(update={"samples": samples}))


def test_classes_that_differ_and_those_that_do_not() -> None:
    alike = build(60, 2, seed=3)
    proxies = [{**row.proxies, "revealed_fraction": Estimate(value=0.3 + 0.001 * place, status="exact")}
               for place, row in enumerate(alike.samples)]  # fmt: skip
    same = [row.model_copy(update={"proxies": own}) for row, own in zip(alike.samples, proxies, strict=True)]
    no_difference = prose(alike.model_copy(update={"samples": same}))
    assert re.search(r"No difference .*Kruskal-Wallis p = 0?\.\d", no_difference)
    apart = [row.model_copy(update={"target": int(place >= 30)}) for place, row in enumerate(same)]
    result = alike.model_copy(update={"samples": apart})
    assert re.search("1 of 1 pairs differ .*Holm", prose(result))
    pairs = table(result, "class-pairs")
    assert "Cliff's delta −1.00 (large)" in pairs.caption


def test_groups_have_a_table_of_their_own() -> None:
    result = studied(build(), {str(place): ("east", "west")[place % 2] for place in range(23)})
    assert "Groups of sites.csv compared" in [getattr(one, "text", "") for one in blocks(result)]
    assert {row[0].text for row in table(result, "groups").rows} == {"east", "west", "none"}
    assert "1 of 24 samples without a group" in prose(result)
    assert table(result, "least-protected").columns[2].title == "Group"


def test_attacks_are_a_measure(audit) -> None:
    assert table(audit("attacked"), "fairness").rows[-1][0].text == "Strongest attack's RMSE"
    assert "failed their positive control" in prose(audit("control-failed"))


@pytest.mark.parametrize(("samples", "classes"), [(1, 1), (4, 1), (8, 1)])
def test_few_samples_and_one_class(samples: int, classes: int) -> None:
    result = build(samples, classes)
    assert any(isinstance(one, Figure) for one in blocks(result)) == (samples >= 5)
    assert "differ" not in prose(result)
    assert render(result, ["html" if samples == 8 else "md"])


def test_undefended_numbers_only_rank(audit) -> None:
    figure = next(one for one in blocks(audit("undefended")) if isinstance(one, Figure))
    assert re.search("reference noise, .*client does not add", figure.caption)


@pytest.mark.slow
def test_hostile_names_are_escaped() -> None:
    groups = {str(place): HOSTILE[place % 5] for place in range(24)}
    files = render(studied(build(), groups), ["html", "pdf", "md"])
    assert b"<img src=x" not in files["audit.html"]
