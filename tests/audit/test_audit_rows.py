"""Rows of an audit: samples that fail alone, class rows and unfairness against independent sums, warnings."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scan_cases import PROXY_IDS, demo_model, demo_samples
from scipy import stats
from torch import nn

import riskaudit
from riskaudit.audit.summaries import noise_curve
from riskaudit.errors import ArchitectureError, CoupledReleaseError, RiskauditError
from riskaudit.results import AuditResult, Estimate, Thresholds
from riskaudit.results.verdicts import verdict
from riskaudit.sensitivity.information import ExactInformation

NOISY = "gaussian:0.01"


@pytest.fixture(scope="module")
def whole() -> AuditResult:
    """All 60 demo samples, with noise."""
    return riskaudit.audit(demo_model(), demo_samples(), release=NOISY)


LOSS = """
import torch
import torch.nn.functional as F

def loss(outputs, targets):
    bad = torch.as_tensor({value}, dtype=outputs.dtype)
    return torch.where(targets.squeeze() == {label}, bad, F.cross_entropy(outputs, targets))
"""


@pytest.mark.sampled(1)
@pytest.mark.parametrize("value", ["float('nan')", "float('inf')"])
@pytest.mark.parametrize("solver", ["dense", "lanczos"])
def test_a_sample_without_a_loss_fails_alone(tmp_path, value, solver) -> None:
    samples = demo_samples(6)
    label = int(samples.targets[1])
    (tmp_path / "mine.py").write_text(LOSS.format(value=value, label=label), encoding="utf-8")
    options = {"release": NOISY, "solver": solver, "prior_mean": 0.3, "prior_std": 0.4}
    result = riskaudit.audit(demo_model(), samples, loss=f"{tmp_path / 'mine.py'}:loss", **options)
    expected = riskaudit.audit(demo_model(), samples, **options)
    failed = [index for index, target in enumerate(samples.targets.tolist()) if target == label]
    assert 0 < len(failed) < 6
    for index, (row, other) in enumerate(zip(result.samples, expected.samples, strict=True)):
        assert row.id == str(index)
        if index in failed:
            assert (row.status, row.verdict, row.loss, row.target) == ("failed", "not_assessed", None, label)
            assert "not finite" in row.reason
            assert list(row.proxies) == PROXY_IDS
            assert {estimate.status for estimate in row.proxies.values()} == {"failed"}
        else:
            assert row.status == other.status
            for name in PROXY_IDS:
                number, known = row.proxies[name].value, other.proxies[name].value
                assert number == known if known is None else number == pytest.approx(known, rel=1e-6, abs=1e-10), name
    assert any(one.startswith(f"{len(failed)} of 6 samples could not be audited") for one in result.warnings)
    result.from_json(result.to_json())


def test_when_no_sample_has_a_loss_the_audit_is_refused(tmp_path) -> None:
    samples = demo_samples(1)
    text = LOSS.format(value="float('nan')", label=int(samples.targets[0]))
    (tmp_path / "mine.py").write_text(text, encoding="utf-8")
    with pytest.raises(RiskauditError, match="none of the 1 samples"):
        riskaudit.audit(demo_model(), samples, loss=f"{tmp_path / 'mine.py'}:loss")


class BatchStatistics(nn.Module):
    """Normalises with its batch through a function, which no list of layers shows."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.linear(nn.functional.batch_norm(inputs, None, None, training=True).flatten(1))


class Dropout(BatchStatistics):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(self.linear(inputs.flatten(1)), training=True)


@pytest.mark.parametrize(
    ("model", "cause"),
    [(BatchStatistics, "depends on the other samples of its batch"), (Dropout, "make it deterministic in eval mode")],
)
def test_samples_that_depend_on_their_company_are_refused(model, cause) -> None:
    with pytest.raises(CoupledReleaseError, match=cause):
        riskaudit.audit(model(), demo_samples(3), release=NOISY)


def test_recurrent_layers_are_audited() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = nn.GRU(8, 10, batch_first=True)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.gru(inputs[:, 0])[0][:, -1]

    result = riskaudit.audit(Recurrent(), demo_samples(2), release=NOISY)
    assert result.settings.jacobian == "sample_by_sample"
    assert [row.status for row in result.samples] == ["exact", "exact"]


def test_columns_of_different_units_are_warned_of() -> None:
    inputs = torch.rand(6, 4, dtype=torch.float64) * torch.tensor([1.0, 1.0, 50.0, 1.0])
    samples = riskaudit.Samples.from_tensors(inputs, torch.tensor([0, 1, 2, 0, 1, 2]))
    model = nn.Linear(4, 3)
    found = riskaudit.audit(model, samples, release=NOISY).warnings
    assert sum("standard deviations differ" in warning for warning in found) == 1
    even = riskaudit.Samples.from_tensors(inputs / inputs.std(dim=0), samples.targets)
    # Labels at random are an alarm of their own.
    assert [one for one in riskaudit.audit(model, even, release=NOISY).warnings if "mean loss" not in one] == []


def test_noise_needed_is_enough_and_not_too_much() -> None:
    samples = demo_samples(6)
    needs = riskaudit.audit(demo_model(), samples, release=NOISY, max_revealed=0.3, min_rmse=0.1).noise_needed
    tau = float(samples.inputs.std(correction=0))
    assert [need.max_revealed for need in needs] == pytest.approx(sorted([0.5, 0.3, 0.1, 1 - (0.1 / tau) ** 2])[::-1])
    for need in needs:
        again = riskaudit.audit(demo_model(), samples, release=f"gaussian:{need.std!r}")
        revealed = {row.id: row.proxies["revealed_fraction"].value for row in again.samples}
        assert max(revealed, key=revealed.get) == need.sample_id
        assert revealed[need.sample_id] == pytest.approx(need.max_revealed, rel=1e-6)
        assert need.median_std <= need.std


def test_outputs_that_overflow_are_no_audit() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    nn.init.constant_(model[1].weight, 3e38)
    with pytest.raises(RiskauditError, match="none of the 1 samples"):
        riskaudit.audit(model, demo_samples(1), dtype="float32")


@pytest.mark.parametrize("proxy", ["revealed_fraction", "posterior_rmse"])
def test_class_rows(whole, proxy) -> None:
    values = np.array([row.proxies[proxy].value for row in whole.samples])
    targets = np.array([row.target for row in whole.samples])
    assert [row.target for row in whole.classes] == sorted(set(targets.tolist()))
    for row in whole.classes:
        members = values[targets == row.target]
        found = row.proxies[proxy]
        assert (row.name, row.num_samples, found.num_samples) == (str(row.target), len(members), len(members))
        assert found.mean == pytest.approx(members.mean(), rel=1e-12)
        assert (found.min, found.max) == (members.min(), members.max())
        assert found.std == pytest.approx(np.std(members, ddof=1), rel=1e-12)
        assert found.low < found.mean < found.high
        ends = stats.bootstrap(
            (members,), np.mean, method="percentile", n_resamples=9999, rng=np.random.default_rng(1)
        ).confidence_interval
        spread = ends.high - ends.low
        assert found.low == pytest.approx(ends.low, abs=0.1 * spread)
        assert found.high == pytest.approx(ends.high, abs=0.1 * spread)


@pytest.mark.parametrize(("proxy", "riskier"), [("revealed_fraction", "higher"), ("posterior_rmse", "lower")])
def test_unfairness(whole, proxy, riskier) -> None:
    values = np.array([row.proxies[proxy].value for row in whole.samples])
    targets = np.array([row.target for row in whole.samples])
    found = whole.fairness.proxies[proxy]
    differences = np.abs(values[:, None] - values[None, :]).mean()
    assert found.gini == pytest.approx(differences / (2 * values.mean()), rel=1e-9)
    assert found.max_min_ratio == pytest.approx(values.max() / values.min(), rel=1e-12)
    test = stats.kruskal(*[values[targets == target] for target in np.unique(targets)])
    assert found.kruskal_wallis.statistic == pytest.approx(test.statistic, rel=1e-9)
    assert found.kruskal_wallis.p_value == pytest.approx(test.pvalue, rel=1e-9)
    order = np.argsort(-values if riskier == "higher" else values, kind="stable")
    assert found.worst_samples == [str(index) for index in order[:5]]
    means = {target: values[targets == target].mean() for target in np.unique(targets)}
    pick = max if riskier == "higher" else min
    assert found.worst_class == pick(means, key=means.get)


def test_one_sample_can_not_be_unequal() -> None:
    result = riskaudit.audit(demo_model(), demo_samples(1), release=NOISY)
    found = result.fairness.proxies["revealed_fraction"]
    assert found.note.startswith("too few samples")
    assert found.worst_class is None
    assert found.kruskal_wallis.status == "not_applicable"
    assert len(result.classes) == 1


def test_without_values_there_is_nothing_to_compare() -> None:
    result = riskaudit.audit(demo_model(), demo_samples(3), release=NOISY, solver="power")
    assert result.fairness.proxies["revealed_fraction"].note == "no sample has a value"
    assert result.noise_curve == []
    assert [row.proxies for row in result.classes] == [{}] * len(result.classes)
    (warning,) = [one for one in result.warnings if "3 of 3 samples" in one]
    assert "not assessed, not safe" in warning


@pytest.mark.slow
def test_noise_curve_is_the_posterior_at_its_noise(whole) -> None:
    for before, after in itertools.pairwise(whole.noise_curve):
        assert before.revealed_fraction_mean >= after.revealed_fraction_mean
        assert before.posterior_rmse_min <= after.posterior_rmse_min
    point = whole.noise_curve[12]
    again = riskaudit.audit(demo_model(), demo_samples(), release=f"gaussian:{point.std!r}")
    revealed = [row.proxies["revealed_fraction"].value for row in again.samples]
    errors = [row.proxies["posterior_rmse"].value for row in again.samples]
    assert point.revealed_fraction_mean == pytest.approx(np.mean(revealed), rel=1e-9)
    assert point.revealed_fraction_max == pytest.approx(max(revealed), rel=1e-9)
    assert point.posterior_rmse_mean == pytest.approx(np.mean(errors), rel=1e-9)
    assert point.posterior_rmse_min == pytest.approx(min(errors), rel=1e-9)


@pytest.mark.parametrize("spectra", [[], [np.zeros(3)]], ids=["none", "zero"])
def test_no_curve_where_nothing_leaks(spectra) -> None:
    assert noise_curve([ExactInformation(values, 0.3) for values in spectra]) == []


@pytest.mark.parametrize(
    ("estimate", "expected"),
    [
        (Estimate(value=None, status="not_applicable"), "not_assessed"),
        (Estimate(value=0.02, low=0.0, high=1.0, status="not_converged"), "not_assessed"),
        (Estimate(value=0.51, status="exact"), "high"),
        (Estimate(value=0.5, status="exact"), "medium"),
        (Estimate(value=0.1, status="exact"), "medium"),
        (Estimate(value=0.0999, status="exact"), "low"),
        (Estimate(value=0.0, status="exact"), "low"),
        # What can't be excluded counts.
        (Estimate(value=0.05, low=0.01, high=0.2, status="bracketed"), "medium"),
        (Estimate(value=0.3, low=0.01, high=0.6, status="bracketed"), "high"),
        (Estimate(value=0.05, low=0.01, high=0.09, status="bracketed"), "low"),
    ],
)
def test_verdict(estimate, expected) -> None:
    assert verdict(estimate, Thresholds(), defended=True) == expected
    assert verdict(estimate, Thresholds(), defended=False) == "high"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"release": "laplace:0.1"}, "Laplace noise: the posterior uses Gaussian noise"),
        ({"dtype": "float32"}, "float32 rounding can matter"),
        ({"dtype": "float32", "release": "gaussian:0.5"}, None),
        ({}, None),
    ],
    ids=["laplace", "float32-little-noise", "float32", "plain"],
)
def test_warnings(options, words) -> None:
    found = riskaudit.audit(demo_model(), demo_samples(1), **options).warnings
    assert (found == []) if words is None else (len(found) == 1 and words in found[0])


class Normed(nn.Module):
    """A small model with batch norm and statistics of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.last = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Linear(108, 10)
        self.norm.running_mean.uniform_(-1, 1)
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.norm(self.conv(x))).flatten(1))


def test_batch_norm_is_audited_in_eval_mode_and_said_so() -> None:
    model = Normed().train()
    statistics = model.norm.running_mean.clone()
    result = riskaudit.audit(model, demo_samples(2), release=NOISY)
    assert model.training
    assert torch.equal(model.norm.running_mean, statistics)
    assert result.threat_model.evaluation == "diagnostic"
    assert "(first: norm (BatchNorm2d))" in result.threat_model.reason
    assert any("eval mode: batch-norm layers norm" in note for note in result.warnings)
    quiet = riskaudit.audit(model.eval(), demo_samples(2), release=NOISY)
    assert quiet.samples == result.samples
    assert quiet.threat_model == result.threat_model
    # The network is untrained.
    assert ["mean loss of the samples is 2.3" in one for one in quiet.warnings] == [True]


def test_batch_norm_without_statistics_is_refused() -> None:
    model = Normed()
    model.norm = nn.BatchNorm2d(3, track_running_stats=False)
    with pytest.raises(RiskauditError, match=r"norm.*running statistics"):
        riskaudit.audit(model, demo_samples(2))


def test_models_without_batch_norm_are_as_deployed() -> None:
    assert riskaudit.audit(demo_model(), demo_samples(1)).threat_model.evaluation == "deployment"


def test_an_operation_without_second_derivative_is_named() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Hardsigmoid())
    with pytest.raises(ArchitectureError, match="the model's operation aten::hardsigmoid"):
        riskaudit.audit(model, demo_samples(1), release=NOISY)
