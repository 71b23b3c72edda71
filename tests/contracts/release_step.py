"""What every `Step` must do. Inherit, and give ``covers``, ``step`` and its text's numbers as ``arguments``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch import Tensor
from torch.func import jacfwd, jvp, vmap

from riskaudit.errors import ReleaseError
from riskaudit.release.arguments import Argument, positive_number
from riskaudit.release.derivatives import AutomaticDerivative, change_through, derivative_of
from riskaudit.release.grammar import ReleaseSpec
from riskaudit.release.steps import STEPS, BoundStep, Step, StepContext
from riskaudit.release.steps.base import VectorFunction
from riskaudit.release.steps.closed_forms import Kept, Projected

P = 40


def vectors(count: int, seed: int = 0, size: int = P) -> torch.Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def context(num_entries: int = P, dtype: torch.dtype = torch.float64) -> StepContext:
    """Vectors of a weight and a bias."""
    shapes = {"weight": torch.Size([num_entries // 4, 3]), "bias": torch.Size([num_entries - 3 * (num_entries // 4)])}
    return StepContext(shapes, dtype, torch.device("cpu"))


@dataclass(frozen=True)
class LayerClip(Step):
    """Each parameter's part scaled down to 2-norm ``bound``: a step that is nothing but a function."""

    bound: float
    name: ClassVar[str] = "layer-clip"
    summary: ClassVar[str] = "scale every layer's part of each sample's vector down to 2-norm C"
    arguments: ClassVar[tuple[Argument, ...]] = (positive_number("C"),)

    def bind(self, context: StepContext) -> VectorFunction:
        def apply(released: Tensor) -> Tensor:
            parts = context.split(released).values()
            return torch.cat([part / (part.norm() / self.bound).clamp_min(1) for part in parts])

        return apply


@dataclass(frozen=True)
class Rounding(Step):
    """To multiples of ``grid``, with the derivative that it has: 0."""

    grid: float
    name: ClassVar[str] = "round"
    summary: ClassVar[str] = "round entries to multiples of GRID"
    arguments: ClassVar[tuple[Argument, ...]] = (positive_number("GRID"),)
    before_mean: ClassVar[bool] = True

    def bind(self, context: StepContext) -> VectorFunction:
        return lambda released: (released / self.grid).round() * self.grid


@dataclass(frozen=True)
class RelativeRounding(Rounding):
    """To multiples of ``grid`` times the largest entry, whose part in it is all that the derivative tells of."""

    name: ClassVar[str] = "round-relative"

    def bind(self, context: StepContext) -> VectorFunction:
        rounded = super().bind(context)
        return lambda released: rounded(released / released.abs().amax()) * released.abs().amax()


@dataclass(frozen=True)
class StraightThroughRounding(Rounding):
    """With the derivative of what it rounds."""

    name: ClassVar[str] = "round-through"

    def bind(self, context: StepContext) -> VectorFunction:
        rounded = super().bind(context)
        return lambda released: released + (rounded(released) - released).detach()


@dataclass(frozen=True)
class Squashing(Step):
    """``scale`` tanh(r / ``scale``): flat in entries far beyond the scale."""

    scale: float
    name: ClassVar[str] = "squash"
    summary: ClassVar[str] = "draw entries beyond S in smoothly"
    arguments: ClassVar[tuple[Argument, ...]] = (positive_number("S"),)

    def bind(self, context: StepContext) -> VectorFunction:
        return lambda released: self.scale * (released / self.scale).tanh()


class StepContract:
    """``flat`` says that the step is constant between jumps, so that its derivative is given straight through."""

    covers: ClassVar[type[Step]]
    arguments: str = ""
    flat: ClassVar[bool] = False

    @pytest.fixture
    def step(self) -> Step:
        raise NotImplementedError

    def context(self, dtype: torch.dtype = torch.float64) -> StepContext:
        return context(dtype=dtype)

    def inputs(self, count: int) -> Tensor | None:
        """Of as many samples, all alike, for steps that look at them."""
        inputs = self.context().inputs
        return None if inputs is None else inputs.expand(count, *inputs.shape)

    def bound(self, step: Step, dtype: torch.dtype = torch.float64):
        return step.bind(self.context(dtype))

    def test_is_registered_under_its_name(self, step: Step) -> None:
        assert STEPS[step.name] is type(step) is self.covers
        assert step.usage().partition(":")[0] == step.name
        assert step.summary

    def sent(self, step: Step) -> int:
        """Numbers in what the step makes of a vector."""
        return step.context_after(self.context()).num_entries

    def test_its_text_is_read_back(self, step: Step) -> None:
        # What is drawn for every upload needs uploads.
        before = ReleaseSpec.parse("mean:2" if step.redrawn else "gradient")
        spec = ReleaseSpec((*before.steps, step))
        assert ReleaseSpec.parse(f"{before},{step}") == spec
        assert ReleaseSpec.parse(f"{before},{step.name}{self.arguments}") == spec
        assert str(spec) == f"{before},{step}"

    def test_a_value_too_many_is_refused(self, step: Step) -> None:
        with pytest.raises(ReleaseError, match=r"release step 1 \("):
            ReleaseSpec.parse(f"{step}:1:1:1")

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
    def test_shape_and_dtype_are_as_told(self, step: Step, dtype: torch.dtype) -> None:
        released = self.bound(step, dtype)(vectors(1)[0].to(dtype))
        assert (released.shape, released.dtype) == ((self.sent(step),), dtype)

    def test_parameters_that_are_left_keep_their_shapes(self, step: Step) -> None:
        before, after = self.context(), step.context_after(self.context())
        assert list(after.shapes.items()) == [each for each in before.shapes.items() if each[0] in after.shapes]
        assert (after.dtype, after.device, after.upload) == (before.dtype, before.device, before.upload)

    def test_drawn_for_every_upload_where_claimed(self, step: Step) -> None:
        vector = vectors(1)[0]
        first, again, other = (step.bind(replace(self.context(), upload=upload))(vector) for upload in (0, 0, 1))
        assert torch.equal(first, again)
        assert torch.equal(first, other) is not step.redrawn

    def test_input_is_not_overwritten(self, step: Step) -> None:
        vector = vectors(1)[0]
        before = vector.clone()
        self.bound(step)(vector)
        assert torch.equal(vector, before)

    def test_same_under_vmap_as_alone(self, step: Step) -> None:
        apply, batch = self.bound(step), vectors(5)
        together = vmap(apply)(batch)
        torch.testing.assert_close(together, torch.stack([apply(vector) for vector in batch]), rtol=1e-14, atol=0)

    def test_derivative_is_that_of_finite_differences(self, step: Step) -> None:
        if self.flat:
            pytest.skip("flat between its jumps")
        apply, vector, direction = self.bound(step), vectors(1)[0], vectors(1, seed=1)[0]
        _, pushed = jvp(apply, (vector,), (direction,))
        differences = (apply(vector + 1e-6 * direction) - apply(vector - 1e-6 * direction)) / 2e-6
        torch.testing.assert_close(pushed, differences, rtol=1e-6, atol=1e-8)

    def test_zero_vector_has_finite_value_and_derivative(self, step: Step) -> None:
        zero = torch.zeros(P, dtype=torch.float64)
        value, pushed = jvp(self.bound(step), (zero,), (vectors(1)[0],))
        assert value.abs().max() == 0
        assert torch.isfinite(pushed).all()

    @pytest.mark.parametrize("scale", [0.1, 1.0, 10.0, 1e3])
    def test_derivative_tells_of_large_steps(self, step: Step, scale: float) -> None:
        """A step that is flat at a vector hides from audits what its values show."""
        if step.chooses:
            pytest.skip("its choices change")
        apply = self.bound(step)
        for vector, direction in zip(vectors(8), scale * vectors(8, seed=1), strict=True):
            _, pushed = jvp(apply, (vector,), (direction,))
            change = (apply(vector + direction) - apply(vector)).norm()
            assert float(change) <= 20 * float(pushed.norm()) + 1e-12 * float(vector.norm() + direction.norm())
        bound = BoundStep(step, self.context(), apply)
        found = change_through(vectors(8), scale * vectors(8, seed=1), [bound], self.inputs(8))
        assert bool((found.unseen <= found.seen).all())

    def test_chooses_where_claimed(self, step: Step) -> None:
        if not step.chooses:
            pytest.skip("no choices")
        released = vectors(8) * torch.logspace(-3, 3, 8, dtype=torch.float64)[:, None]
        expected = torch.stack([self.bound(step)(row) for row in released])
        match BoundStep(step, self.context(), self.bound(step)).derivative(released, self.inputs(8)):
            case Kept(mask):
                torch.testing.assert_close(mask * released, expected, rtol=1e-12, atol=0)
            case Projected(scale, unit):
                torch.testing.assert_close(scale[:, None] * released, expected, rtol=1e-12, atol=0)
                along = unit * (unit * released).sum(1, keepdim=True)
                torch.testing.assert_close(along, released * (unit != 0).any(1, keepdim=True), rtol=1e-12, atol=1e-12)
            case other:
                pytest.fail(f"a step that chooses has its derivative in closed form, found {other}")

    def test_keeps_noise_where_claimed(self, step: Step) -> None:
        """Some entries are set to 0 or left out, the same whatever the vector."""
        if not step.keeps_noise:
            pytest.skip("changes the law of noise")
        apply, released = self.bound(step), vectors(2)
        first, second = (jacfwd(apply)(vector) for vector in released)
        assert torch.equal(first, second)
        assert set(first.flatten().tolist()) <= {0.0, 1.0}
        if first.shape == (P, P):
            assert torch.equal(first, torch.diag(first.diagonal()))
        else:
            assert torch.equal(first, torch.eye(P, dtype=torch.float64)[first.argmax(1).unique()])
        for vector in released:
            torch.testing.assert_close(apply(vector), first @ vector, rtol=0, atol=0)

    def test_closed_form_is_the_automatic_derivative(self, step: Step) -> None:
        released, directions, cotangents = vectors(3), vectors(3, seed=1), vectors(3, seed=2, size=self.sent(step))
        apply = self.bound(step)
        derivative = derivative_of(released, [BoundStep(step, self.context(), apply)], self.inputs(3))
        automatic = AutomaticDerivative(apply, released)
        for found, expected in (
            (derivative.apply(directions), automatic.apply(directions)),
            (derivative.transpose(cotangents), automatic.transpose(cotangents)),
        ):
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)

    def test_transposed_derivative_is_its_adjoint(self, step: Step) -> None:
        released, v, u = vectors(3), vectors(3, seed=1), vectors(3, seed=2, size=self.sent(step))
        derivative = derivative_of(released, [BoundStep(step, self.context(), self.bound(step))], self.inputs(3))
        pushed, pulled = (derivative.apply(v) * u).sum(1), (v * derivative.transpose(u)).sum(1)
        torch.testing.assert_close(pushed, pulled, rtol=1e-11, atol=1e-13)
