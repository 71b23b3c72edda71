"""Reviews in single precision allow for what a tiny loss does to it, and claim nothing where nothing is left."""

from __future__ import annotations

import math

import pytest
import torch
from scan_cases import demo_model, demo_samples
from torch import nn

from riskaudit.guard import Guard, Policy
from riskaudit.guard.estimation import Estimator
from riskaudit.guard.information import BatchInformation
from riskaudit.guard.joint_estimation import JointEstimator
from riskaudit.jacobian import Jacobian
from riskaudit.linalg import Spectrum
from riskaudit.linalg.operators import identity_columns
from riskaudit.sensitivity.information import ExactInformation

COUNT, TAU, STDS = 6, 0.3, (1e-6, 1e-4, 1e-2, 0.1)


def certain(factor: float) -> nn.Module:
    """The demo's network, so many times as sure of its answers."""
    model = demo_model()
    with torch.no_grad():
        for parameter in list(model.parameters())[-2:]:
            parameter.mul_(factor)
    return model


def guard_of(model: nn.Module, dtype: torch.dtype, release: str = "gradient") -> Guard:
    guard = Guard(model, "cross-entropy", Policy(max_revealed=0.5), prior_std=TAU, release=release, dtype=dtype)
    guard.client.refresh()
    return guard


def review_of(guard: Guard) -> BatchInformation:
    samples, client = demo_samples(COUNT), guard.client
    batch = client.batch(samples.inputs, samples.targets)
    empty = BatchInformation.empty(batch, batch.inputs, [str(place) for place in range(COUNT)], True)
    if client.is_joint:
        return JointEstimator(client, guard.prior, guard.policy, math.inf, 1e-3, COUNT).quick(empty)
    return Estimator(client, guard.prior, guard.policy, math.inf, 1e-3).quick(empty)


def jacobian_of(model: nn.Module, dtype: torch.dtype) -> Jacobian:
    samples, client = demo_samples(COUNT), guard_of(model, dtype).client
    return client.jacobian(client.batch(samples.inputs, samples.targets), 0.0)


def test_products_are_no_further_off_than_is_allowed_for() -> None:
    single, double = (jacobian_of(demo_model(), dtype).hessian() for dtype in (torch.float32, torch.float64))
    exact = double.matmat(identity_columns(double))
    error = torch.linalg.matrix_norm(single.matmat(identity_columns(single)).double() - exact, 2)
    relative = error / torch.linalg.matrix_norm(exact, 2)
    allowed = 4 * math.sqrt(double.shape[1]) * torch.tensor(single.rounding)
    assert bool((relative <= allowed).all())
    # What is allowed for without the losses isn't enough.
    assert bool((relative > 4 * math.sqrt(double.shape[1]) * torch.finfo(torch.float32).eps).any())


@pytest.mark.parametrize("factor", [1.0, 4.0])
def test_intervals_of_a_batch_hold_the_values_of_double_precision(factor) -> None:
    """Of the surest network most gradients are 0 in single precision."""
    model = certain(factor)
    values = Spectrum.of(jacobian_of(model, torch.float64).hessian()).values.numpy()
    for sample, of_sample in zip(review_of(guard_of(model, torch.float32)).samples, values, strict=True):
        assert sample.information is not None
        for std in STDS:
            truth, found = ExactInformation(of_sample, TAU).revealed(std).value, sample.information.revealed(std)
            assert found.low <= truth * (1 + 1e-6) + 1e-15
            assert truth * (1 - 1e-6) - 1e-15 <= found.high  # less than a rounding of 1


class OnlySingle(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        assert inputs.dtype == torch.float32
        out: torch.Tensor = self.model(inputs)
        return out


def test_what_single_precision_alone_cannot_tell_is_not_assessed() -> None:
    guard = Guard(
        OnlySingle(certain(4.0)),
        "cross-entropy",
        Policy(max_revealed=0.5, unknown_layers="differentiate"),
        prior_std=TAU,
        release="gaussian:0.1",
    )
    guard.client.refresh()
    information = review_of(guard)
    assert information.num_assessed < COUNT
    assert len(information.warnings) == 1
    assert guard.policy.judge(information.exposures(0.1)).unassessed


@pytest.mark.parametrize("factor", [1.0, 4.0])
def test_samples_that_leave_together(factor) -> None:
    model = certain(factor)
    single, double = (review_of(guard_of(model, dtype, "mean:all")) for dtype in (torch.float32, torch.float64))
    assert double.num_assessed == COUNT
    for narrow, wide in zip(double.samples, single.samples, strict=True):
        if wide.information is None:
            assert factor == 4.0
            continue
        for std in STDS:
            assert narrow.information.revealed(std).low <= wide.information.revealed(std).high
    assert (single.num_assessed < COUNT) == (factor == 4.0)


def test_tf32_is_off_in_reviews_and_as_before_after_them() -> None:
    seen: list[bool] = []

    class Noting(nn.Linear):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            seen.append(torch.backends.cudnn.allow_tf32)
            return super().forward(inputs)

    before = torch.backends.cudnn.allow_tf32
    guard = Guard(Noting(4, 2), "cross-entropy", Policy(max_revealed=0.5), prior_std=TAU, release="gaussian:0.1")
    guard.assess((torch.rand(2, 4), torch.tensor([0, 1])))
    assert seen
    assert not any(seen)
    assert torch.backends.cudnn.allow_tf32 is before
