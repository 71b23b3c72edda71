"""Audits of uploads of several samples: batch norm, frozen parameters, single precision, and what can't be audited."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cases import digits
from torch import nn

import riskaudit
from riskaudit.errors import CoupledReleaseError, ReleaseError, SettingsError
from riskaudit.inputs import Samples
from riskaudit.results import AuditResult

NOISE = "gaussian:0.02"
FACTORY = """
from torch import nn

def build():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 10)
    )
"""


def network(norm: bool = True) -> nn.Module:
    torch.manual_seed(1)
    middle = [nn.BatchNorm1d(8)] if norm else []
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), *middle, nn.Tanh(), nn.Linear(8, 10)).eval()


def audit(model: nn.Module, count: int, release: str, **options: object) -> AuditResult:
    batch = digits(count)
    samples = Samples.from_tensors(batch.inputs, batch.targets)
    return riskaudit.audit(model, samples, release=f"{release},{NOISE}", **options)


def revealed(result: AuditResult, proxy: str = "informed_revealed_fraction") -> list[float | None]:
    return [row.proxies[proxy].value for row in result.samples]


@pytest.mark.parametrize(
    ("count", "release"),
    [
        (1, "mean:1"),
        (3, "mean:1"),
        (1, "local:epochs=1:batch=2:lr=0.1"),
        (5, "local:epochs=1:batch=2:lr=0.1"),
        (4, "local:epochs=1:batch=1:lr=0.1"),
        (6, "local:epochs=1:batch=2:lr=0.1,secagg:2"),
    ],
)
def test_batch_norm_needs_two_values_per_channel_at_least(count: int, release: str) -> None:
    words = r"^expected two values per channel at least .* in a batch of 1 sample, .*`batch_norm=running` in a scan"
    with pytest.raises(CoupledReleaseError, match=words):
        audit(network(), count, release)
    # Running statistics need none.
    assert audit(network(), count, release, batch_norm="running", proxies=("gradient_norm",)).samples


def test_steps_of_single_samples_have_none_under_batch_norm() -> None:
    with pytest.raises(CoupledReleaseError, match=r"put it after the mean, or .*`batch_norm=running`"):
        audit(network(), 2, "clip:1,mean:2")


def test_mini_batches_that_the_samples_do_not_fill_are_told() -> None:
    result = audit(network(norm=False), 2, "local:epochs=1:batch=400:lr=0.1", proxies=("gradient_norm",))
    assert any("names mini-batches of 400, and a client has 2 samples here" in text for text in result.warnings)


def test_statistics_of_the_batch_are_those_that_training_has() -> None:
    default, batch, running = (
        audit(network(), 4, "mean:4", batch_norm=statistics) for statistics in (None, "batch", "running")
    )
    assert revealed(default) == revealed(batch) != revealed(running)
    assert running.threat_model.evaluation == "diagnostic"
    assert default.threat_model.evaluation != "diagnostic"
    with pytest.raises(SettingsError, match=r"expected a model with batch norm for `batch_norm=batch`, found none"):
        audit(network(norm=False), 4, "mean:4", batch_norm="batch")


@pytest.mark.slow
def test_checkpoints_with_batch_norm_are_those_in_memory(tmp_path: Path) -> None:
    model = network()
    with torch.no_grad():
        model[2].running_mean.uniform_(-1, 1)
        model[2].running_var.uniform_(0.5, 2)
    (tmp_path / "net.py").write_text(FACTORY, encoding="utf-8")
    torch.save(model.state_dict(), tmp_path / "net.pt")
    checkpoint = riskaudit.load_checkpoint(tmp_path / "net.pt", arch=f"{tmp_path / 'net.py'}:build")
    before = {name: value.clone() for name, value in checkpoint.model.state_dict().items()}
    for options in ({}, {"batch_norm": "running"}):
        assert revealed(audit(checkpoint, 4, "mean:2", **options)) == revealed(audit(model, 4, "mean:2", **options))
    # The user's model keeps its statistics.
    assert all(torch.equal(value, before[name]) for name, value in checkpoint.model.state_dict().items())


def test_frozen_parameters_are_no_part_to_share() -> None:
    model = network(norm=False)
    model[1].requires_grad_(False)
    with pytest.raises(ReleaseError, match=r"trainable parameters 3\.weight, 3\.bias, found '1\.\*'"):
        audit(model, 2, "mean:2,share:1.*")
    whole, head = audit(model, 2, "mean:2"), audit(model, 2, "mean:2,share:3.*")
    assert revealed(whole) == pytest.approx(revealed(head), rel=1e-9)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("release", ["mean:2", "local:epochs=2:batch=2:lr=0.2:momentum=0.5"])
def test_single_precision_has_the_numbers_of_double(release: str) -> None:
    model = network(norm=False)
    single, double = (audit(model, 2, release, dtype=dtype, prior_std=0.3) for dtype in ("float32", "float64"))
    assert {row.status for row in single.samples} == {"exact"}
    for proxy in ("revealed_fraction", "informed_revealed_fraction", "map_rmse"):
        assert revealed(single, proxy) == pytest.approx(revealed(double, proxy), rel=1e-3)


def test_attackers_without_a_prior_have_their_errors() -> None:
    """Of two samples in one mean the first layer's gradient tells both, so that nothing is singular."""
    result = audit(network(norm=False), 2, "mean:2")
    for row in result.samples:
        known = [row.proxies[name].value for name in ("i2f", "expected_rmse", "posterior_rmse")]
        assert all(value is None or value > 0 for value in known)
        if row.proxies["expected_rmse"].status == "exact":
            assert row.proxies["expected_rmse"].value >= row.proxies["posterior_rmse"].value


def test_one_sample_alone_is_the_same_to_both_attackers() -> None:
    result = audit(network(norm=False), 1, "local:epochs=2:batch=1:lr=0.1")
    (row,) = result.samples
    for name in ("revealed_fraction", "posterior_rmse"):
        assert row.proxies[f"informed_{name}"].value == pytest.approx(row.proxies[name].value, rel=1e-9)


def test_who_asks_for_the_outsider_is_told_of_the_informed_attacker_whom_verdicts_go_by() -> None:
    asked = audit(network(norm=False), 2, "mean:2", proxies=("revealed_fraction",), prior_std=0.3)
    whole = audit(network(norm=False), 2, "mean:2", prior_std=0.3)
    assert revealed(asked) == revealed(whole)
    assert [row.verdict for row in asked.samples] == [row.verdict for row in whole.samples]
    assert "not_assessed" not in {row.verdict for row in asked.samples}
