"""Inputs of two values, one of them rare, are told from pictures and tables; nothing that protects is said of them."""

from __future__ import annotations

import pytest
import torch
from cases import cifar, mnist
from guard_cases import guard_of
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_breast_cancer, load_digits, load_iris
from torch import Tensor, nn
from torch.nn import functional as F

import riskaudit
from riskaudit.guard import Policy
from riskaudit.inputs.discrete import are_sparse_codes
from riskaudit.report.recomputation import recompute
from riskaudit.studies.fairness.record import FairnessStudy
from riskaudit.studies.fairness.run import with_fairness


def one_hot(count: int, words: int, values: int, numbers: int = 0, seed: int = 0) -> Tensor:
    """Codes of ``words`` words [count, words * values], then ``numbers`` columns of other numbers."""
    generator = torch.Generator().manual_seed(seed)
    codes = F.one_hot(torch.randint(values, (count, words), generator=generator), values).float()
    return torch.cat([codes.flatten(1), torch.randn(count, numbers, generator=generator)], 1)


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 40), words=st.integers(2, 12), values=st.integers(12, 60), seed=st.integers(0, 10**6),
    scale=st.floats(0.1, 10), shift=st.floats(-3, 3),
)  # fmt: skip
def test_codes_are_found_in_any_units(count, words, values, seed, scale, shift) -> None:
    codes = one_hot(count, words, values, seed=seed)
    assert are_sparse_codes(codes)
    assert are_sparse_codes(codes.double().mul(scale).add(shift)) or count * words < 3


def test_codes_beside_numbers_and_standardised_ones_are_found() -> None:
    assert are_sparse_codes(one_hot(1, 10, 20, 6))
    assert are_sparse_codes(one_hot(64, 10, 20, 6))
    table = one_hot(200, 10, 20, 6)
    assert are_sparse_codes((table - table.mean(0)) / table.std(0))
    assert are_sparse_codes(one_hot(8, 4, 100).reshape(8, 4, 100))


@pytest.mark.parametrize("count", [2, 5, 16, 60])
def test_pictures_and_tables_are_none(count) -> None:
    tables = [torch.tensor(load().data[:count]).float() for load in (load_digits, load_iris, load_breast_cancer)]
    for inputs in (mnist(min(count, 32)).inputs, cifar(min(count, 16)).inputs, torch.randn(count, 3), *tables):
        assert not are_sparse_codes(inputs)
        assert not are_sparse_codes((inputs - inputs.mean()) / inputs.std())
    assert not are_sparse_codes(torch.randint(0, 2, (count, 50)).float())
    assert not are_sparse_codes(one_hot(count, 8, 3))
    assert not are_sparse_codes(torch.zeros(count, 4))


def test_single_pictures_are_rarely_taken_for_codes() -> None:
    assert sum(are_sparse_codes(image[None]) for image in mnist(32).inputs) <= 1


def network(width: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(width, 16), nn.Tanh(), nn.Linear(16, 4)).eval()


def test_no_code_is_called_low_and_no_limit_is_held() -> None:
    inputs, targets = one_hot(3, 4, 64), torch.tensor([0, 1, 2])
    samples = riskaudit.Samples.from_tensors(inputs, targets)
    result = riskaudit.audit(network(256), samples, release="gaussian:30", prior_std=0.125, prior_mean=0.016)
    assert {row.verdict for row in result.samples} == {"not_assessed"}
    assert result.data.doubt in result.warnings
    assert not result.noise_needed
    assert riskaudit.Policy(max_revealed=0.9).decide(result).decision == "block"
    assert (
        riskaudit.Policy(max_revealed=0.9, sparse_codes="accept", max_unassessed=1.0).decide(result).decision != "block"
    )


def test_no_file_and_no_study_says_otherwise() -> None:
    samples = riskaudit.Samples.from_tensors(one_hot(3, 4, 64), torch.tensor([0, 1, 2]))
    result = riskaudit.audit(network(256), samples, release="gaussian:30", prior_std=0.125, prior_mean=0.016)
    assert result.data.doubt in with_fairness(result).studies.get(FairnessStudy).notes
    rows = [row.model_copy(update={"verdict": "low", "reason": None}) for row in result.samples]
    again, contradictions = recompute(result.model_copy(update={"samples": rows}))
    assert {row.verdict for row in again.samples} == {"not_assessed"}
    assert contradictions


@pytest.mark.parametrize(("accepted", "action"), [("block", "block"), ("accept", "allow")])
def test_the_guard_withholds_codes_unless_told(accepted, action) -> None:
    model, batch = network(256), (one_hot(3, 4, 64), torch.tensor([0, 1, 2]))
    policy = Policy(max_revealed=0.9, sparse_codes=accepted)
    guard = guard_of(model, policy, release="gaussian:5", prior_std=0.125)
    gradient = torch.autograd.grad(F.cross_entropy(model(batch[0]), batch[1]), list(model.parameters()))
    decision = guard.review(batch, [value + 5 * torch.randn_like(value) for value in gradient])
    assert decision.action == action, decision.reasons
    assert any("one-hot" in reason for reason in decision.reasons) == (action == "block")
