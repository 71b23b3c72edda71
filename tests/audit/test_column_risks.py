"""Columns of a table: their numbers against dense float64 oracles and attackers that are run, and what follows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from table_cases import network, samples_of
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev

import riskaudit
from riskaudit.inputs import Samples, load_samples
from riskaudit.inputs.discrete import are_sparse_codes
from riskaudit.policy import Policy
from riskaudit.report.recomputation import recompute
from riskaudit.results import AuditResult, Estimate


@lru_cache
def table(count: int) -> Samples:
    with TemporaryDirectory() as folder:
        return samples_of(Path(folder), count)


def released(model: nn.Module, targets: Tensor) -> Callable[[Tensor], Tensor]:
    """The mean gradient of samples [n, d], as one vector."""
    parameters = {name: value.detach() for name, value in model.named_parameters()}

    def loss(weights: dict[str, Tensor], inputs: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, weights, (inputs,)), targets)

    def vector(inputs: Tensor) -> Tensor:
        return torch.cat([part.flatten() for part in grad(loss)(parameters, inputs).values()])

    return vector


def prior_variance(samples: Samples) -> Tensor:
    """Of every input: 1 of standardised numbers, that of evenly likely codes of categories."""
    encoding, variance = samples.encoding, torch.ones(samples.inputs.shape[1], dtype=torch.float64)
    assert encoding is not None
    for category in encoding.categories:
        variance[category.span] = torch.from_numpy(category.codes.var(axis=0))
    return variance


def recognised(function: Callable[[Tensor], Tensor], inputs: Tensor, place: int, category, sigma: float) -> float:
    """How often the likeliest category is the right one, over draws of the noise."""
    candidates = []
    for code in torch.from_numpy(category.codes):
        changed = inputs.clone()
        changed[place, category.span] = code
        candidates.append(function(changed))
    points, truth = torch.stack(candidates), function(inputs)
    own = int(torch.cdist(truth[None], points).argmin())
    noise = torch.randn(3000, len(truth), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    nearest = torch.cdist(truth + sigma * noise, points).argmin(1)
    return float((nearest == own).double().mean())


def audited(samples: Samples, release: str, model: nn.Module | None = None, **options: object) -> AuditResult:
    return riskaudit.audit(model or network(14), samples, release=release, checks=False, **options)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("sigma", [1e-3, 1e-2, 0.1])
def test_columns_of_single_samples(sigma: float) -> None:
    samples, model = table(5), network(14)
    result = audited(samples, f"gaussian:{sigma}", model)
    encoding, variance = samples.encoding, prior_variance(samples)
    assert encoding is not None
    for place, row in enumerate(result.samples):
        function, inputs = released(model, samples.targets[[place]]), samples.inputs[[place]]
        assert list(row.columns) == [each.name for each in (*encoding.numbers, *encoding.categories)]
        jacobian = jacrev(function)(inputs).flatten(1)
        covariance = torch.linalg.inv(jacobian.T @ jacobian / sigma**2 + torch.diag(1 / variance))
        for number in encoding.numbers:
            risk, left = row.columns[number.name], float(covariance[number.position, number.position])
            assert (risk.kind, risk.estimate.status) == ("number", "exact")
            assert risk.estimate.value == pytest.approx(number.std * left**0.5, rel=1e-6)
            assert risk.guess == pytest.approx(number.std, rel=1e-12)
            assert risk.revealed.value == pytest.approx(1 - left, abs=1e-6)
        for category in encoding.categories:
            risk = row.columns[category.name]
            rate = recognised(function, inputs, 0, category, sigma)
            assert risk.guess == 1 / len(category.codes)
            assert risk.estimate.value == pytest.approx(rate, abs=0.03)
            low, high = risk.estimate.ends
            assert low - 0.03 <= rate <= high + 0.03


@pytest.mark.parametrize("copies", [False, True])
def test_columns_of_uploads_are_those_of_an_attacker_who_knows_the_others(copies: bool) -> None:
    samples, model, sigma = table(4), network(14), 3e-3
    if copies:
        # The first sample is there twice, under one label, so that both change together.
        order = [0, 0, 2, 3]
        samples = replace(samples.select(order), ids=("0", "1", "2", "3"))
    result = audited(samples, f"mean:4,gaussian:{sigma}", model)
    encoding, variance, function = samples.encoding, prior_variance(samples), released(model, samples.targets)
    assert encoding is not None
    jacobian = jacrev(function)(samples.inputs)
    for place, row in enumerate(result.samples):
        same = [0, 1] if copies and place < 2 else [place]
        own = jacobian[:, same].sum(1)
        covariance = torch.linalg.inv(own.T @ own / sigma**2 + torch.diag(1 / variance))
        for number in encoding.numbers:
            left = float(covariance[number.position, number.position])
            assert row.columns[number.name].estimate.value == pytest.approx(number.std * left**0.5, rel=1e-5)
        category = encoding.categories[1]
        rate = recognised(function, samples.inputs, same, category, sigma)
        assert row.columns[category.name].estimate.value == pytest.approx(rate, abs=0.03)


def test_a_prior_that_knows_columns_decides(tmp_path: Path) -> None:
    """A fitted prior's own covariance in the place of independent columns."""
    samples, model, sigma = table(30), network(14), 0.02
    result = audited(samples, f"gaussian:{sigma}", model, prior="data")
    prior = riskaudit.priors.fit_prior(samples, "data")
    bound = prior.bind(samples.targets[:1], samples.inputs[:1])
    root = bound.root_of_rows(0, torch.eye(14, dtype=torch.float64))
    jacobian = jacrev(released(model, samples.targets[[0]]))(samples.inputs[[0]]).flatten(1)
    inner = torch.linalg.inv(root @ jacobian.T @ jacobian @ root / sigma**2 + torch.eye(14, dtype=torch.float64))
    covariance = root @ inner @ root
    number = samples.encoding.numbers[2]
    expected = number.std * float(covariance[number.position, number.position]) ** 0.5
    assert result.samples[0].columns[number.name].estimate.value == pytest.approx(expected, rel=1e-6)


def test_one_hot_inputs_are_assessed_where_they_are_declared(tmp_path: Path) -> None:
    words = [f"w{number:02}" for number in range(24)]
    drawn = np.random.default_rng(0).integers(24, size=(8, 2))
    lines = ["a,b,y", *(f"{words[first]},{words[second]},{(first + second) % 2}" for first, second in drawn)]
    (tmp_path / "t.csv").write_text("\n".join(lines), encoding="utf-8")
    columns = "\n".join(f'[columns.{name}]\nkind = "category"\ncategories = {words}' for name in "ab")
    (tmp_path / "e.toml").write_text(columns, encoding="utf-8")
    samples = load_samples(tmp_path / "t.csv", encoding=tmp_path / "e.toml")
    assert are_sparse_codes(samples.inputs)
    model = network(48)
    undeclared = audited(replace(samples, encoding=None), "gaussian:300", model)
    assert "one-hot" in undeclared.data.doubt
    assert {row.verdict for row in undeclared.samples} == {"not_assessed"}
    quiet, loud = audited(samples, "gaussian:300", model), audited(samples, "gaussian:0.01", model)
    assert quiet.data.doubt is None
    assert {row.verdict for row in quiet.samples} == {"low"}
    assert {row.verdict for row in loud.samples} == {"high"}
    assert all(row.columns["a"].estimate.low > 0.9 for row in loud.samples)


def test_of_very_many_categories_pairs_say_what_they_prove(tmp_path: Path) -> None:
    words = [f"w{number:03}" for number in range(300)]
    (tmp_path / "t.csv").write_text("zip,y\nw007,0\nw123,1\n", encoding="utf-8")
    (tmp_path / "e.toml").write_text(f'[columns.zip]\nkind = "category"\ncategories = {words}\n', encoding="utf-8")
    samples = load_samples(tmp_path / "t.csv", encoding=tmp_path / "e.toml")
    model = network(300)
    quiet, loud = audited(samples, "gaussian:50", model), audited(samples, "gaussian:0.001", model)
    for row in quiet.samples:
        risk = row.columns["zip"]
        assert (risk.estimate.value, risk.estimate.status) == (None, "bracketed")
        assert risk.revealed.high < 0.1
        assert row.verdict == "low"
    assert all(row.columns["zip"].estimate.low > 0.99 for row in loud.samples)
    assert {row.verdict for row in loud.samples} == {"high"}


def test_the_most_revealed_column_decides() -> None:
    """One column of fourteen reaches what is sent: the mean over inputs would call that little."""
    samples = table(4)
    model = network(14)
    with torch.no_grad():
        model[0].weight[:, :13] *= 0.1
    result = audited(samples, "share:4.*,gaussian:0.1", model)
    for row in result.samples:
        mean, worst = row.proxies["revealed_fraction"].value, row.columns["is large"].revealed.value
        assert mean < 0.1
        assert worst > 0.5
        assert row.verdict == "high"
    limits = Policy(max_revealed=0.3)
    assert limits.decide(result).exceeded == [row.id for row in result.samples]
    assert Policy(min_rmse=0.8 * result.prior.std).decide(result).exceeded == [row.id for row in result.samples]
    # Drawn from the numbers again, whatever the file says.
    calm = [row.model_copy(update={"verdict": "low"}) for row in result.samples]
    again, contradictions = recompute(result.model_copy(update={"samples": calm}))
    assert {row.verdict for row in again.samples} == {"high"}
    assert contradictions


def test_noise_that_is_recommended_hides_every_column() -> None:
    samples, model = table(4), network(14)
    result = audited(samples, "gaussian:0.02", model, max_revealed=0.3)
    needed = {need.max_revealed: need.std for need in result.noise_needed}
    assert set(needed) == {0.5, 0.3, 0.1}
    for limit, std in needed.items():
        again = audited(samples, f"gaussian:{std * 1.001}", model)
        most = max(risk.revealed.ends[1] for row in again.samples for risk in row.columns.values())
        assert limit - 0.03 < most <= limit
    assert all(row.noise_std_for_target.status == "bracketed" for row in result.samples)


def test_other_noise_is_not_assessed() -> None:
    result = audited(table(3), "laplace:0.5")
    for row in result.samples:
        risk = row.columns["mean symmetry"]
        assert (risk.estimate.value, risk.estimate.status) == (None, "not_applicable")
        assert "Gaussian" in risk.reason
        assert row.reason == risk.reason
        assert row.verdict == "not_assessed"
        assert row.columns["mean radius"].estimate.status == "exact"
    assert result.noise_needed == []
    assert Policy(max_revealed=0.99).decide(result).decision == "block"
    assert {row.verdict for row in audited(table(3), "gradient").samples} == {"high"}


def test_results_with_columns_come_back_from_json(tmp_path: Path) -> None:
    result = audited(table(3), "gaussian:0.1")
    assert AuditResult.from_json(result.to_json()) == result
    assert result.samples[0].columns["is large"].estimate == Estimate(
        value=result.samples[0].columns["is large"].estimate.value, status="exact"
    )
    assert {"tiny", "huge"} <= {word for category in table(3).encoding.categories for word in category.words}
    assert not any(word in result.to_json() for word in ("tiny", "huge"))
