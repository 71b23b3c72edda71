"""Derivatives of steps and of chains of them against forward differentiation of the steps themselves."""

from __future__ import annotations

import pytest
import torch
from contracts.release import samples
from contracts.release_step import context, vectors
from torch import Tensor, nn
from torch.func import jacfwd, jvp

from riskaudit.release import PerSampleRelease
from riskaudit.release.derivatives import AutomaticDerivative, Chain, Product, derivative_of
from riskaudit.release.grammar import ReleaseSpec
from riskaudit.release.steps import STEPS, BoundStep, Step, StepContext
from riskaudit.release.steps.base import VectorFunction
from riskaudit.release.steps.clip import Clip
from riskaudit.release.steps.closed_forms import Kept, Projected
from riskaudit.release.steps.prune import Prune

P = 40
STEP_TEXTS = {
    "clip": ["clip:2.5", "clip:100", "clip:6"],
    "prune": ["prune:0", "prune:0.3", "prune:0.99"],
    "mask": ["mask:0", "mask:0.3:5"],
}
TEXTS = [text for texts in STEP_TEXTS.values() for text in texts]
PIPELINES = [
    "gradient",
    "clip:2,prune:0.3",
    "prune:0.3,clip:2",
    "mask:0.3,clip:2,gaussian:1",
    "clip:6,clip:2",
    "mask:0.2,prune:0.4,mask:0.3:7",
    "clip:6,mask:0.2,clip:3,prune:0.5,clip:1,mask:0.1:2",
    "clip:100,clip:50",
    "clip:2,gaussian:1,mask:0.5",
]


def step_of(text: str) -> Step:
    return ReleaseSpec.parse(text).steps[-1]


def scaled_vectors(count: int) -> Tensor:
    """Some of norm about 3, some of norm about 9, so that a bound between holds for one half only."""
    return vectors(count) * torch.tensor([0.5, 1.5], dtype=torch.float64).repeat(count)[:count, None]


def of(step: Step, released: Tensor) -> Chain:
    chain = Chain()
    chain.then(step.derivative(released, context()))
    return chain


def release(text: str) -> PerSampleRelease:
    return PerSampleRelease(nn.Linear(9, 4).double().eval(), nn.functional.cross_entropy, text)


def dense(text: str, released: Tensor) -> Tensor:
    """The pipeline's derivative as a matrix for each of the vectors, [B, P, P], by forward differentiation."""
    functions = [step.bind(context()) for step in ReleaseSpec.parse(text).all_steps]

    def whole(vector: Tensor) -> Tensor:
        for function in functions:
            vector = function(vector)
        return vector

    return torch.stack([jacfwd(whole)(vector) for vector in released])


def test_every_step_with_a_closed_form_is_here() -> None:
    # What looks at inputs has a test of its own.
    closed = {name for name, step in STEPS.items() if step.derivative is not Step.derivative}
    assert set(STEP_TEXTS) == closed - {name for name, step in STEPS.items() if step.looks_at_input}


@pytest.mark.parametrize("text", TEXTS)
def test_derivative_is_that_of_the_bound_step(text: str) -> None:
    step, released, directions = step_of(text), scaled_vectors(6), vectors(6, seed=1)
    apply = step.bind(context())
    expected = torch.stack([jvp(apply, (x,), (v,))[1] for x, v in zip(released, directions, strict=True)])
    torch.testing.assert_close(of(step, released).apply(directions), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("text", TEXTS)
def test_derivative_at_zero_is_finite_and_that_of_the_bound_step(text: str) -> None:
    if text.startswith("prune"):
        pytest.skip("of equal entries, any may be kept")
    step, zero, directions = step_of(text), torch.zeros(2, P, dtype=torch.float64), vectors(2)
    apply = step.bind(context())
    expected = torch.stack([jvp(apply, (x,), (v,))[1] for x, v in zip(zero, directions, strict=True)])
    torch.testing.assert_close(of(step, zero).apply(directions), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("text", TEXTS)
def test_derivative_keeps_the_dtype(text: str) -> None:
    derivative = step_of(text).derivative(vectors(3).float(), context(dtype=torch.float32))
    tensors = {Kept: lambda d: [d.mask], Projected: lambda d: [d.scale, d.unit]}.get(type(derivative), lambda d: [])
    assert all(tensor.dtype == torch.float32 for tensor in tensors(derivative))


def test_without_steps_the_derivative_is_the_identity() -> None:
    assert derivative_of(vectors(2), []) == release("gaussian:1").derivative(vectors(2), samples(2)) == Chain()


def test_clipping_derivative_has_unit_vectors_or_none() -> None:
    derivative = Clip(6).derivative(scaled_vectors(6), context())
    norms = derivative.unit.norm(dim=1)
    assert ((norms - 1).abs() < 1e-12).tolist() == [False, True] * 3
    assert norms[::2].tolist() == [0, 0, 0]
    assert derivative.scale[::2].tolist() == [1, 1, 1]


def test_pruning_derivative_keeps_the_count() -> None:
    assert Prune(0.3).derivative(vectors(4), context()).mask.sum(1).tolist() == [28] * 4


@pytest.mark.parametrize("text", PIPELINES)
def test_chain_is_the_dense_matrix(text: str) -> None:
    released, v, u = scaled_vectors(4), vectors(4, seed=1), vectors(4, seed=2)
    chain, matrix = release(text).derivative(released, samples(4)), dense(text, released)
    pushed, pulled = torch.einsum("bij,bj->bi", matrix, v), torch.einsum("bij,bi->bj", matrix, u)
    torch.testing.assert_close(chain.apply(v), pushed, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(chain.transpose(u), pulled, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close((chain.apply(v) * u).sum(1), (v * chain.transpose(u)).sum(1), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("text", PIPELINES)
def test_chain_holds_what_it_says(text: str) -> None:
    """D = c (diag(m) - sum_i p_i q_i^T)."""
    released = scaled_vectors(4)
    chain = release(text).derivative(released, samples(4))
    matrix = torch.eye(P, dtype=torch.float64).expand(4, P, P)
    if chain.kept is not None:
        matrix = torch.diag_embed(chain.kept.expand(4, P))
        assert set(chain.kept.unique().tolist()) <= {0.0, 1.0}
    for left, right in zip(chain.left, chain.right, strict=True):
        matrix = matrix - left[:, :, None] * right[:, None, :]
    if chain.scale is not None:
        matrix = chain.scale[:, None, None] * matrix
    torch.testing.assert_close(matrix, dense(text, released), rtol=1e-11, atol=1e-13)


def test_means_after_the_gradient_are_the_pipeline() -> None:
    released, text = scaled_vectors(3), "clip:6,prune:0.3,mask:0.2"
    expected = []
    for vector in released:
        for step in ReleaseSpec.parse(text).all_steps:
            vector = step.bind(context())(vector)  # noqa: PLW2901
        expected.append(vector)
    found = release(text).after_gradient(released, samples(3))
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-14, atol=0)


def test_automatic_derivatives_join_those_in_closed_form() -> None:
    """A step without a closed form between two that have one."""
    released, v, u = scaled_vectors(4), vectors(4, seed=1), vectors(4, seed=2)
    functions = [step.bind(context()) for step in ReleaseSpec.parse("clip:6,mask:0.2,clip:3").steps]
    pairs = zip([Clip(6), Unknown(), Clip(3)], functions, strict=True)
    found = derivative_of(released, [BoundStep(step, context(), function) for step, function in pairs])
    assert isinstance(found, Product)
    assert [type(factor) for factor in found.factors] == [Chain, AutomaticDerivative, Chain]
    expected = release("clip:6,mask:0.2,clip:3").derivative(released, samples(4))
    torch.testing.assert_close(found.apply(v), expected.apply(v), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found.transpose(u), expected.transpose(u), rtol=1e-12, atol=1e-14)


class Unknown(Step):
    """A step that says nothing of its derivative."""

    def bind(self, context: StepContext) -> VectorFunction:
        raise NotImplementedError
