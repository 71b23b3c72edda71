"""Every proxy, metric and attack says what it is, and reports say what the result says."""

from __future__ import annotations

import pytest
import scan_cases

import riskaudit
from riskaudit.attacks import ATTACKS
from riskaudit.metrics import METRICS
from riskaudit.proxies import PROXIES, proxies_for
from riskaudit.results import AuditResult
from riskaudit.results.facts import Facts
from riskaudit.sensitivity.success import PREDICTED_RMSE

INFOS = [*(proxy.info() for proxy in PROXIES.values()), PREDICTED_RMSE]


@pytest.fixture(scope="module")
def result() -> AuditResult:
    checkpoint = riskaudit.load_checkpoint(scan_cases.CHECKPOINT)
    samples = riskaudit.load_samples(scan_cases.DATA, channels=1, limit=2)
    return riskaudit.audit(checkpoint, samples, release="gaussian:0.01")


@pytest.mark.parametrize("info", INFOS, ids=lambda info: info.id)
def test_nothing_is_left_unsaid(info) -> None:
    assert all((info.title, info.short_title, info.units, info.source, info.summary, info.formula))
    assert sum(info.order == other.order for other in INFOS) == 1
    assert info.predicts_rmse <= (info.units == PREDICTED_RMSE.units)


@pytest.mark.parametrize("thing", [*METRICS.values(), *ATTACKS.values()], ids=lambda thing: thing.name)
def test_metrics_and_attacks_travel_with_the_result(thing) -> None:
    info = thing.info()
    assert info.id == thing.name
    assert all((info.title, info.source))


def test_a_report_tells_what_the_result_tells(result) -> None:
    """Also of a proxy that the report has never heard of, and no more of one than the file holds."""
    first = result.proxies[0]
    changed = first.model_copy(update={"title": "Another title", "formula": "another formula", "order": 1})
    other = result.model_copy(update={"proxies": [changed, *result.proxies[1:]]})
    page = riskaudit.render(other, ["html"])["audit.html"].decode()
    assert "Another title" in page
    assert "another formula" in page
    assert Facts(other).proxy_ids[0] == first.id
    alone = proxies_for(joint=False)
    assert Facts(result).proxy_ids == tuple(sorted(alone, key=lambda name: alone[name].order))
    bare = [info.model_copy(update={"formula": ""}) for info in result.proxies]
    page = riskaudit.render(result.model_copy(update={"proxies": bare}), ["html"])["audit.html"].decode()
    assert "Formula:" not in page


def test_no_file_says_which_end_of_the_deciding_numbers_is_the_risk(result) -> None:
    turned = [
        info.model_copy(update={"riskier": "lower" if info.riskier == "higher" else "higher"})
        for info in result.proxies
    ]
    facts = Facts(result.model_copy(update={"proxies": turned}))
    assert [row.id for row in facts.ranked] == [row.id for row in Facts(result).ranked]
