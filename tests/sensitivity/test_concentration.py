"""A mean over coordinates hides those that are revealed whole: that is told."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import riskaudit
from riskaudit.errors import ResultError
from riskaudit.guard import Guard, Policy, SecureNoise
from riskaudit.linalg import lanczos
from riskaudit.linalg.operators import MatrixOperator
from riskaudit.report.recomputation import recompute
from riskaudit.results import AuditResult
from riskaudit.sensitivity import Concentration, num_reached


class Reading(nn.Module):
    """Reads some of the numbers only; the others are left out, masked, or come in with next to no weight."""

    def __init__(self, how: str, dimension: int = 200, read: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.how, self.read = how, read
        self.net = nn.Sequential(nn.Linear(dimension if how == "masked" else read, 16), nn.Tanh(), nn.Linear(16, 3))

    def forward(self, x):
        if self.how == "masked":
            return self.net(torch.cat([x[:, : self.read], torch.zeros_like(x[:, self.read :])], 1))
        if self.how == "every 25th":
            return self.net(x[:, ::25])
        return self.net(x[:, : self.read])


HOW = ["cropped", "masked", "every 25th"]
INPUTS, TARGETS = torch.rand(4, 200, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0])


@pytest.mark.sampled(2)
@pytest.mark.parametrize("solver", ["dense", "lanczos"])
@pytest.mark.parametrize("how", HOW)
def test_a_scan_of_a_model_that_reads_few_coordinates(how, solver) -> None:
    samples = riskaudit.Samples.from_tensors(INPUTS, TARGETS)
    result = riskaudit.audit(Reading(how).eval(), samples, release="gaussian:1e-3", solver=solver)
    known = [row.proxies["revealed_fraction"].value for row in result.samples if row.status != "failed"]
    assert known
    assert max(known) < 0.1
    told = [one for one in result.warnings if "fewer than half of the 200 input coordinates (on 8 at the least)" in one]
    assert len(told) == 1
    assert "reveal up to 1 on average" in told[0] or "reveal up to 0.9" in told[0]
    assert {row.verdict for row in result.samples if row.status != "failed"} == {"high"}
    assert all(row.concentration == 25 for row in result.samples if row.status != "failed")
    assert riskaudit.Policy(max_revealed=0.5).decide(result).decision == "block"
    assert riskaudit.Policy(min_rmse=0.05).decide(result).decision == "block"
    assert result.noise_needed == []
    if solver == "dense":
        assert any("single coordinates are revealed by up to" in one for one in result.warnings)


def test_a_file_is_decided_by_what_is_read_too() -> None:
    samples = riskaudit.Samples.from_tensors(INPUTS, TARGETS)
    result = riskaudit.audit(Reading(next(iter(HOW))).eval(), samples, release="gaussian:1e-3", solver="dense")
    rows = [row.model_copy(update={"verdict": "low"}) for row in result.samples]
    again, contradictions = recompute(result.model_copy(update={"samples": rows}))
    assert [row.verdict for row in again.samples] == [row.verdict for row in result.samples]
    assert any("the file says low, the numbers say high" in one for one in contradictions)
    document = json.loads(result.to_json())
    document["samples"][0]["concentration"] = 0.5
    with pytest.raises(ResultError, match="concentration"):
        AuditResult.from_json(json.dumps(document))


@pytest.mark.parametrize("solver", ["dense", "lanczos"])
def test_a_model_that_reads_all_gets_no_note(solver) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(200, 16), nn.Tanh(), nn.Linear(16, 3)).eval()
    result = riskaudit.audit(
        model, riskaudit.Samples.from_tensors(INPUTS, TARGETS), release="gaussian:1.0", solver=solver
    )
    assert not any("coordinates" in one for one in result.warnings)


def _reviewed(model: nn.Module, inputs: torch.Tensor, policy: Policy, std: float = 1e-3, **options):  # type: ignore[no-untyped-def]
    noise = SecureNoise("gaussian", std)
    gradients = torch.autograd.grad(nn.functional.cross_entropy(model(inputs), TARGETS), list(model.parameters()))
    guard = Guard(model, "cross-entropy", policy, prior_std=0.3, release=f"gaussian:{std}", local_steps=1, **options)
    return guard.review((inputs, TARGETS), [noise.added(one) for one in gradients])


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("limit", [{"max_revealed": 0.5}, {"min_rmse": 0.2}], ids=str)
def test_the_guard_holds_its_limits_against_what_is_read(how, limit) -> None:
    decision = _reviewed(Reading(how).eval(), INPUTS, Policy(**limit))
    assert decision.action == "block"
    assert any("in 4 of 4 samples the release depends on fewer than half" in one for one in decision.warnings)
    assert any("(on 8 at the least)" in one for one in decision.warnings)


def test_what_is_read_is_reviewed_as_if_it_were_the_whole_input(tmp_path) -> None:
    """The same numbers as of a model that gets the 8 coordinates alone, with and without a ledger."""
    model = Reading("cropped").eval()
    policy = Policy(max_revealed=0.95, max_total_revealed=1.0, max_gradients=None)
    padded = _reviewed(model, INPUTS, policy, 0.03, ledger=tmp_path / "a.db")
    alone = _reviewed(model.net, INPUTS[:, :8], policy, 0.03, ledger=tmp_path / "b.db")
    for one, other in zip(padded.exposures, alone.exposures, strict=True):
        assert one.revealed.low <= other.revealed.high
        assert other.revealed.low <= one.revealed.high
        assert one.rmse.low <= other.rmse.high
        assert one.total_revealed.high >= other.revealed.low
    mended = _reviewed(model, INPUTS, Policy(max_revealed=0.2, on_violation="sanitise"), 0.03)
    assert mended.action == "sanitise"
    assert max(one.revealed.high for one in mended.exposures) <= 0.2


@settings(max_examples=40, deadline=None)
@given(
    dimension=st.integers(4, 300), share=st.floats(0.02, 1), rank=st.integers(1, 20), seed=st.integers(0, 10**6),
    scale=st.floats(1e-6, 1e6), double=st.booleans(),
)  # fmt: skip
def test_rows_of_zeros_are_counted(dimension, share, rank, seed, scale, double) -> None:
    generator = torch.Generator().manual_seed(seed)
    read = torch.rand(dimension, generator=generator) < share
    factor = torch.randn(rank, dimension, generator=generator, dtype=torch.float64) * read * scale
    hessian = (factor.T @ factor).to(torch.float64 if double else torch.float32)[None]
    start = torch.randn(1, dimension, generator=generator).to(hessian)
    space = lanczos(MatrixOperator(hessian, psd=True), start, lambda *_: False, 3)[0]
    assert num_reached(space) == [int(read.sum())]


def test_only_few_coordinates_count_alone() -> None:
    assert Concentration(8, 200).factor == 25
    assert Concentration(100, 200).factor == Concentration(190, 200).factor == Concentration(0, 200).factor == 1
