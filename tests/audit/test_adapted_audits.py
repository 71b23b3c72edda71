"""Audits of defences that spoil single parameters: beside the release without them, of every number the riskier."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cases import mnist
from torch import nn

from riskaudit import audit
from riskaudit.audit import shards
from riskaudit.audit.worse import riskier_of
from riskaudit.inputs import Samples
from riskaudit.jacobian import jacobian_maker
from riskaudit.proxies import PROXIES
from riskaudit.release import PerSampleRelease, make_release
from riskaudit.release.adapted import without_spoiled
from riskaudit.results import AuditResult, Estimate

DEFENDED, ADAPTED = "gradient,soteria:80.0,gaussian:0.01", "gradient,gaussian:0.01,share:!3.weight"


def network() -> nn.Sequential:
    torch.manual_seed(0)
    act = nn.Softplus
    layers = [nn.Conv2d(1, 3, 3, stride=2), act(), nn.Flatten(), nn.Linear(12, 12), act(), nn.Linear(12, 10)]
    return nn.Sequential(*layers).double().eval()


def audited(release: str) -> AuditResult:
    batch = mnist(3, 6)
    return audit(network(), Samples.from_tensors(batch.inputs, batch.targets), release=release)


@pytest.fixture(scope="module")
def both() -> AuditResult:
    return audited(DEFENDED)


def test_of_every_number_the_riskier_stands(both: AuditResult, monkeypatch: pytest.MonkeyPatch) -> None:
    assert both.release.adapted == ADAPTED
    adapted = audited(ADAPTED)
    monkeypatch.setattr(shards, "without_spoiled", lambda release: None)
    defended = audited(DEFENDED)
    named = set()
    for merged, own, other in zip(both.samples, defended.samples, adapted.samples, strict=True):
        named |= set(merged.adapted)
        for name, estimate in merged.proxies.items():
            values = own.proxies[name].value, other.proxies[name].value
            if None in values:
                assert estimate == own.proxies[name]
                continue
            pick = max if PROXIES[name].riskier == "higher" else min
            assert estimate.value == pick(values)
            assert (name in merged.adapted) == (estimate.value != values[0])
        # With the choices known, fewer entries never tell more.
        assert other.proxies["revealed_fraction"].value <= own.proxies["revealed_fraction"].value
        assert other.proxies["posterior_rmse"].value >= own.proxies["posterior_rmse"].value
    # Of one draw of the noise.
    assert named == {"map_i2f"}


def test_result_is_read_back_with_whose_numbers_stand(both: AuditResult) -> None:
    again = AuditResult.from_json(both.to_json())
    assert [row.adapted for row in again.samples] == [row.adapted for row in both.samples]
    assert again.release.adapted == ADAPTED


def test_without_its_rows_a_release_is_a_part_of_the_defended_one() -> None:
    release = PerSampleRelease(network(), F.cross_entropy, DEFENDED)
    adapted, batch = without_spoiled(release), mnist(2, 6)
    assert adapted is not None
    assert str(adapted.spec) == ADAPTED
    weight = slice(30, 30 + 144)
    expected = torch.cat([release.mean(batch)[:, : weight.start], release.mean(batch)[:, weight.stop :]], 1)
    torch.testing.assert_close(adapted.mean(batch), expected, rtol=1e-12, atol=0)
    maker, v = jacobian_maker(release, batch), torch.randn(2, 36, dtype=torch.float64)
    quadratic = [(v * maker.of(each)(batch).hessian().matvec(v)).sum(1) for each in (release, adapted)]
    assert bool((quadratic[0] >= quadratic[1]).all())


@pytest.mark.parametrize(
    ("text", "adapted"),
    [
        ("gradient,clip:1.0", None),
        # What the clipping makes of all entries depends on those that are spoiled.
        ("gradient,soteria:80.0:5,clip:1.0", "gradient,soteria:80.0:5,clip:1.0,share:!5.weight"),
        ("gradient,clip:1.0,soteria:80.0,mean:2", "gradient,clip:1.0,mean:2,share:!3.weight"),
    ],
)
def test_steps_that_others_depend_on_stay(text: str, adapted: str | None) -> None:
    found = without_spoiled(make_release(network(), F.cross_entropy, text))
    assert (None if found is None else str(found.spec)) == adapted


@pytest.mark.parametrize(
    ("own", "other", "riskier", "expected"),
    [
        ((0.5, None, None), (0.6, None, None), "higher", (0.6, None, None, True)),
        ((0.5, None, None), (0.5, None, None), "higher", (0.5, None, None, False)),
        ((0.5, 0.4, 0.7), (0.6, 0.3, 0.65), "higher", (0.6, 0.4, 0.7, True)),
        ((None, 0.1, 0.7), (0.2, 0.1, 0.3), "lower", (None, 0.1, 0.3, False)),
    ],
)
def test_ends_hold_for_the_riskier_of_two(own, other, riskier, expected) -> None:
    estimates = [Estimate(value=value, low=low, high=high, status="bracketed") for value, low, high in (own, other)]
    found, is_other = riskier_of(*estimates, riskier)
    assert (found.value, found.low, found.high, is_other) == expected
