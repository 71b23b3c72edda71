"""What every `Contraction` and its registration must do. Inherit, and give ``contraction`` and ``cases``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch
from contracts.linear_operator import normal
from torch import Tensor

from riskaudit.jacobian.structured.batch_axis import BatchAxis
from riskaudit.jacobian.structured.contraction import Contraction, Parameters, flattened
from riskaudit.jacobian.structured.recording import Recorder

TOLERANCE = 1e-11


@dataclass(frozen=True)
class LayerCase:
    """A function of torch at samples along the first axis.

    Attributes:
        function: of one input [B, ...] and of parameters by role.
        shape: of a sample.
        parameters: their shapes, by role.
        integers: the input is whole numbers below this; None for real numbers.
    """

    function: Callable[..., Tensor]
    shape: tuple[int, ...]
    parameters: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    integers: int | None = None

    def inputs(self, count: int) -> Tensor:
        if self.integers is None:
            return normal(count, *self.shape, seed=1)
        return torch.randint(self.integers, (count, *self.shape), generator=torch.Generator().manual_seed(1))


class Recorded:
    """A case recorded at ``count`` samples, with random signals at its output."""

    def __init__(self, case: LayerCase, count: int) -> None:
        self.case, self.count = case, count
        self.inputs = case.inputs(count)
        if case.integers is None:
            self.inputs.requires_grad_()
        self.parameters = {
            role: normal(*shape, seed=seed).requires_grad_()
            for seed, (role, shape) in enumerate(case.parameters.items(), 2)
        }
        recorder = Recorder(self.parameters, count, [True])
        with recorder:
            output = case.function(self.inputs, **self.parameters)
        (self.call,) = recorder.calls
        self.signals = normal(*output.shape, seed=9)

    def contraction(self, roles: Sequence[str] | None = None) -> Contraction:
        factors = [*(tensor.detach() for tensor in self.call.inputs), self.signals]
        return self.call.make(factors, frozenset(self.case.parameters if roles is None else roles), BatchAxis(0, 1))

    def tangents(self) -> tuple[Tensor, list[Tensor]]:
        """A random tangent of the input, and what it and a random tangent of the signals make of the factors."""
        step, signals = normal(self.count, *self.case.shape, seed=11), normal(*self.signals.shape, seed=12)
        inputs = [] if self.case.integers else [pushed(tensor, self.inputs, step) for tensor in self.call.inputs]
        return step, [*inputs, signals]

    def cotangents(self) -> Parameters:
        return {role: normal(self.count, *shape, seed=21) for role, shape in self.case.parameters.items()}

    def pulled(self, cotangents: list[Tensor]) -> Tensor:
        """Cotangents of the factors as one of the input, [B, ...]."""
        if not self.call.inputs or self.case.integers:
            return torch.zeros(self.count, *self.case.shape, dtype=torch.float64)
        (pulled,) = torch.autograd.grad(self.call.inputs, self.inputs, cotangents[:-1], retain_graph=True)
        return pulled

    def by_autograd(
        self, step: Tensor, signal_step: Tensor, cotangents: Parameters
    ) -> tuple[Parameters, Parameters, Tensor, Tensor]:
        """Gradient, its tangent, and the cotangents of inputs and signals: plain autograd, sample by sample."""
        gradients: dict[str, list[Tensor]] = {role: [] for role in self.parameters}
        tangents: dict[str, list[Tensor]] = {role: [] for role in self.parameters}
        inputs, signals = [], []
        for i in range(self.count):
            x = self.inputs[i : i + 1].detach()
            s = self.signals[i : i + 1].clone().requires_grad_()
            variables = [s] if self.case.integers else [x.requires_grad_(), s]
            output = self.case.function(x, **self.parameters)
            gradient = torch.autograd.grad(output, list(self.parameters.values()), s, create_graph=True)
            weights = [torch.zeros_like(part).requires_grad_() for part in gradient]
            pulls = torch.autograd.grad(gradient, variables, weights, create_graph=True, allow_unused=True)
            paired = sum(
                (
                    (pull * along).sum()
                    for pull, along in zip(pulls[::-1], (signal_step[i : i + 1], step[i : i + 1]), strict=False)
                    if pull is not None
                ),
                torch.zeros((), dtype=torch.float64),
            )
            along = torch.autograd.grad(paired, weights, retain_graph=True)
            given = [cotangents[role][i] for role in self.parameters]
            *input_pull, signal_pull = torch.autograd.grad(gradient, variables, given, allow_unused=True)
            inputs.append(
                torch.zeros_like(x, dtype=torch.float64) if not input_pull or input_pull[0] is None else input_pull[0]
            )
            signals.append(signal_pull)
            for role, value, tangent in zip(self.parameters, gradient, along, strict=True):
                gradients[role].append(value.detach())
                tangents[role].append(tangent)
        stacked = [{role: torch.stack(parts) for role, parts in each.items()} for each in (gradients, tangents)]
        return stacked[0], stacked[1], torch.cat(inputs), torch.cat(signals)


def pushed(output: Tensor, inputs: Tensor, step: Tensor) -> Tensor:
    """Derivative of an output along a step of the inputs, by reverse mode twice."""
    weights = torch.zeros_like(output).requires_grad_()
    (pull,) = torch.autograd.grad(output, inputs, weights, create_graph=True)
    (tangent,) = torch.autograd.grad(pull, weights, step)
    return tangent


def same(value: Tensor, expected: Tensor) -> None:
    assert value.shape == expected.shape
    assert float((value - expected).norm()) <= TOLERANCE * max(float(expected.norm()), 1e-30)


class ContractionContract:
    contraction: ClassVar[type[Contraction]]
    cases: ClassVar[Mapping[str, LayerCase]]

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "recorded" in metafunc.fixturenames:
            pairs = [(case, count) for case in self.cases for count in (1, 3)]
            metafunc.parametrize("recorded", pairs, indirect=True, ids=[f"{case}, {count}" for case, count in pairs])

    @pytest.fixture
    def recorded(self, request: pytest.FixtureRequest) -> Recorded:
        case, count = request.param
        return Recorded(self.cases[case], count)

    def test_registered(self, recorded: Recorded) -> None:
        assert type(recorded.contraction()) is self.contraction

    def test_against_autograd(self, recorded: Recorded) -> None:
        contraction, cotangents = recorded.contraction(), recorded.cotangents()
        step, tangents = recorded.tangents()
        gradient, tangent, input_pull, signal_pull = recorded.by_autograd(step, tangents[-1], cotangents)
        found = contraction.cotangent(cotangents)
        for role in recorded.case.parameters:
            same(contraction.gradient()[role], gradient[role])
            same(contraction.tangent(tangents)[role], tangent[role])
        same(recorded.pulled(found), input_pull)
        same(found[-1], signal_pull)

    def test_adjoint(self, recorded: Recorded) -> None:
        """<J v, u> = <v, J^T u>."""
        contraction, cotangents = recorded.contraction(), recorded.cotangents()
        tangents = recorded.tangents()[1]
        pushed = sum((value * cotangents[role]).sum() for role, value in contraction.tangent(tangents).items())
        pulled = sum((a * b).sum() for a, b in zip(contraction.cotangent(cotangents), tangents, strict=True))
        assert float(pushed) == pytest.approx(float(pulled), rel=1e-9)

    def test_gram(self, recorded: Recorded) -> None:
        contraction, tangents = recorded.contraction(), recorded.tangents()[1]
        expected = contraction.cotangent(contraction.tangent(tangents))
        for value, other in zip(contraction.gram(tangents), expected, strict=True):
            same(value, other)

    def test_norms(self, recorded: Recorded) -> None:
        contraction, tangents = recorded.contraction(), recorded.tangents()[1]
        rotated, tangent = contraction.rotated_tangent(tangents), flattened(contraction.tangent(tangents))
        assert rotated.shape[1] <= tangent.shape[1]
        same(rotated.norm(dim=1), tangent.norm(dim=1))
        other = [torch.flip(part, [-1]) for part in tangents]
        inner = (rotated * contraction.rotated_tangent(other)).sum(1)
        assert torch.allclose(inner, (tangent * flattened(contraction.tangent(other))).sum(1), rtol=1e-9, atol=1e-11)

    def test_frozen(self, recorded: Recorded) -> None:
        """Each role alone is what it is among all."""
        every, tangents, cotangents = recorded.contraction(), recorded.tangents()[1], recorded.cotangents()
        parts = [torch.zeros_like(factor) for factor in every.cotangent(cotangents)]
        for role in recorded.case.parameters:
            alone = recorded.contraction([role])
            assert set(alone.gradient()) == set(alone.tangent(tangents)) == {role}
            same(alone.gradient()[role], every.gradient()[role])
            same(alone.tangent(tangents)[role], every.tangent(tangents)[role])
            parts = [a + b for a, b in zip(parts, alone.cotangent({role: cotangents[role]}), strict=True)]
        for value, whole in zip(parts, every.cotangent(cotangents), strict=True):
            same(value, whole)

    def test_samples_are_apart(self, recorded: Recorded) -> None:
        if recorded.count == 1:
            pytest.skip("one sample")
        alone = Recorded(recorded.case, 1)
        factors = [factor[:1] for factor in (*(tensor.detach() for tensor in recorded.call.inputs), recorded.signals)]
        first = alone.call.make(factors, frozenset(recorded.case.parameters), BatchAxis(0, 1))
        for role, value in first.gradient().items():
            same(value, recorded.contraction().gradient()[role][:1])

    def test_numbers_held(self, recorded: Recorded) -> None:
        assert recorded.contraction().held_numbers() >= 0
