"""J of a release by layers: H v = DPhi^T M DPhi v, nothing of the size B x P ever formed for a plain gradient.

docs/theory.md, section 5. Phi is in `signals`, the layers' part of M in `layers`; the release's steps after the
gradient (kept entries, projections) are the rest of M: entries of the gradient's tangent are multiplied
by 0 or 1, and projections become downdates by vectors [d] that are pulled back once.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TypeAlias, final

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from riskaudit.jacobian.base import Draw, Jacobian
from riskaudit.jacobian.response import StepResponse, joined, shrinking
from riskaudit.jacobian.structured.contraction import Parameters
from riskaudit.jacobian.structured.gradient import Gradient
from riskaudit.jacobian.structured.layers.linear import LinearContraction
from riskaudit.jacobian.structured.registry import UnsupportedLayer
from riskaudit.jacobian.structured.signals import Layout, Signals
from riskaudit.jacobian.structured.values import GradientValues, front_layers
from riskaudit.release import Batch, PerSampleRelease
from riskaudit.release.derivatives import Chain, Derivative, ReleasedChange
from riskaudit.release.mean import MeanRelease

# What a Jacobian by layers is of: single samples, or plain means of several, the parts of a joint release.
GradientRelease: TypeAlias = PerSampleRelease | MeanRelease
# Two random tangents give the same ratio in every coordinate only where it is a constant, which it is up to
# this many times the precision.
RATIO_ROUNDING = 64
# At most this many samples, copies included, in one pass over several columns.
MAX_COPIES = 64
# Products of copies are those of their samples up to this many roots of the precision.
COPIES_ROOTS = 10
# Tensors of the size of Phi in its graph and that of its derivative, and of the largest weight in a product.
GRAPH_COPIES, WEIGHT_COPIES = 6, 3


@final
class StructuredJacobian(Jacobian):
    """J of B samples, each [P, d], or of B plain means of n samples each, [P, n d]; all layers have contractions.

    Args:
        release: see `Jacobian`.
        batch: see `Jacobian`.
        layout: of the release's model, from `find_layout`.
        alone: loss of every sample in a batch of its own, [B], that any batch of them is held against; None for no
            comparison.
        most_copies: samples, copies included, in one pass over several columns.
    """

    def __init__(
        self,
        release: GradientRelease,
        batch: Batch,
        layout: Layout,
        alone: Tensor | None = None,
        most_copies: int = MAX_COPIES,
    ) -> None:
        super().__init__(release, batch)
        self.release: GradientRelease = release
        self.layout = layout
        # Steps after the gradient are part of single samples' releases only.
        self._steps = release if isinstance(release, PerSampleRelease) and release.changes_gradient else None
        self._alone, self._most_copies = alone, most_copies
        self._copies: tuple[int, StructuredJacobian] | None = None

    @override
    def select(self, indices: list[int]) -> Jacobian:
        part = self._selected(indices)
        return part if part.agrees_with_samples else SeparateJacobian(self.release, part.batch, self.layout)

    def _selected(self, indices: list[int]) -> StructuredJacobian:
        alone = None if self._alone is None else self._alone[indices]
        return StructuredJacobian(self.release, self.batch.select(indices), self.layout, alone, self._most_copies)

    @cached_property
    def agrees_with_samples(self) -> bool:
        """Whether every sample has the loss in this batch that it has alone; True where nothing is compared.

        A model may look at the whole batch, whatever its layers are.
        """
        if self._alone is None:
            return True
        try:
            together = self.losses()
        except UnsupportedLayer:  # the layers themselves depend on the batch
            return False
        return agree(together, self._alone)

    @override
    def losses(self) -> Tensor:
        return self._signals.losses

    @override
    def mean(self) -> Tensor:
        gradients = self.gradients()
        return gradients if self._steps is None else self._steps.after_gradient(gradients, self.batch)

    def held_bytes(self) -> int:
        """Memory that products take, about: the graphs of Phi and of its derivative, and the layers' tangents."""
        parts = sum(part.numel() for part in self._signals.parts)
        factors = sum(call.contraction.held_numbers() for call in self._signals.calls)
        names = [name for _, names in self._gradient.groups for name in names]
        weights = max((self.release.parameters[name].numel() for name in names), default=0)
        released = self.shape[0] if self._steps else 0
        numbers = GRAPH_COPIES * parts + 2 * factors + self.num_samples * (WEIGHT_COPIES * weights + 6 * released)
        return numbers * self.dtype.itemsize

    @torch.no_grad()
    def smallest_eigenvalue_bound(self) -> Tensor:
        """||b||^2 / (1 + ||a||^2) of a fully connected layer with a bias that sees the whole input.

        docs/theory.md, section 2 (LAVP). The input may come scaled, coordinate by coordinate: the smallest
        squared scale is a factor. Only for a plain gradient.
        """
        best = torch.zeros(self.num_samples, dtype=torch.float64, device=self.device)
        if self._steps:
            return best
        generator = torch.Generator().manual_seed(0)
        probes = [torch.randn(self.batch.inputs.shape, generator=generator, dtype=torch.float64) for _ in range(2)]
        probes = [probe.to(self.batch.inputs) for probe in probes]
        pushed = [self._signals.push(probe) for probe in probes]
        for calls, names in self._gradient.groups:
            call = calls[0]
            whole = isinstance(call.contraction, LinearContraction) and len(names) == len(call.sources) == 2
            if len(calls) > 1 or not whole or call.contraction.factors[0].shape[1:] != (1, self.shape[1]):
                continue
            ratios = [
                self._gradient.factors(call, tangents)[0].flatten(1) / probe.flatten(1)
                for tangents, probe in zip(pushed, probes, strict=True)
            ]
            tolerance = RATIO_ROUNDING * torch.finfo(self.dtype).eps
            scaled = ((ratios[0] - ratios[1]).abs() <= tolerance * ratios[0].abs()).all(-1)
            a, b = (factor.flatten(1).double() for factor in call.contraction.factors)
            # The ratio is known to rounding only, and the bound must hold.
            scale = ratios[0].double().square().amin(-1) * (1 - 2 * tolerance)
            bound = scale * b.square().sum(-1) / (1 + a.square().sum(-1))
            best = torch.where(scaled, torch.maximum(best, bound), best)
        return best

    @torch.no_grad()
    def _matmat(self, columns: Tensor) -> Tensor:
        if columns.shape[-1] > 1:
            return self._with_copies(columns, StructuredJacobian._matmat)
        flat = self._gradient.push(self._pushed(columns))
        return (self._derivative.apply(flat) if self._steps else flat).unsqueeze(-1)

    @torch.no_grad()
    def _rmatmat(self, columns: Tensor) -> Tensor:
        if columns.shape[-1] > 1:
            return self._with_copies(columns, StructuredJacobian._rmatmat)
        released = columns[..., 0]
        gradients = self._derivative.transpose(released) if self._steps else released
        return self._gradient.pull(gradients).unsqueeze(-1)

    @torch.no_grad()
    def _gram_matmat(self, columns: Tensor) -> Tensor:
        if columns.shape[-1] > 1:
            return self._with_copies(columns, StructuredJacobian._gram_matmat)
        if not isinstance(self._derivative, Chain):
            return self._rmatmat(self._matmat(columns))
        product = self._gradient.push_and_pull(self._pushed(columns), self._mask).unsqueeze(-1)
        return self._downdated(product, columns) if self._steps else product

    @torch.no_grad()
    def _gram_rows(self, columns: Tensor) -> Tensor:
        if self._steps:
            return self._matmat(columns).mT
        if columns.shape[-1] > 1:
            return self._with_copies(columns, StructuredJacobian._single_gram_row).mT
        return self._single_gram_row(columns).mT

    def _single_gram_row(self, columns: Tensor) -> Tensor:
        return self._gradient.push_rotated(self._pushed(columns)).unsqueeze(-1)

    @torch.no_grad()
    @override
    def step(self, direction: Tensor, draw: Draw | None = None, predicted: Tensor | None = None) -> StepResponse:
        # No vector of the parameters' size for a plain gradient.
        tangent = direction.reshape(self.batch.inputs.shape)
        try:
            with torch.enable_grad():
                batch = self.batch.with_inputs(self.batch.inputs + tangent)
                moved = Signals(self.release, batch, self.layout, differentiable=False)
        except UnsupportedLayer:  # a step away, the model has other layers
            return super().step(direction, draw, predicted)
        change = self._change(Gradient(self.release.parameters, moved))
        norms = self.norms if self._steps else self._values.norms
        if predicted is not None:
            return StepResponse(norms, predicted, change, [])
        tangents = self._signals.push(tangent)
        front = front_layers(self._signals, moved, tangents)
        if self._steps:
            rows = self._derivative.apply(self._gradient.push(tangents))
            front = [
                replace(layer, precision=layer.precision * self._left_of(layer.weight).square()) for layer in front
            ]
        else:
            rows = self._gradient.push_rotated(tangents)
        gap = None if draw is None else self._signals.adjoint_gap(tangent, tangents, draw)
        return StepResponse(norms, rows.norm(dim=1).double(), change, front, gap)

    def _left_of(self, name: str) -> Tensor:
        """How large what a parameter's gradient says is after the release's steps, relative to before, [B], float64.

        Told by a change of that parameter's gradient alone, as large as it is entry by entry and at a right angle to
        it, so that the norm hardly changes: a clip shrinks it, a parameter that isn't sent says nothing.
        """
        assert self._steps is not None
        sizes = {other: parameter.numel() for other, parameter in self.release.parameters.items()}
        first = sum(size for _, size in itertools.takewhile(lambda item: item[0] != name, sizes.items()))
        gradients = self.gradients()
        own = gradients[:, first : first + sizes[name]]
        normal = torch.randn(sizes[name], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        change = own * normal.to(own)
        change = change - own * ((change * own).sum(1) / own.square().sum(1)).nan_to_num()[:, None]
        whole = torch.zeros_like(gradients)
        whole[:, first : first + sizes[name]] = change
        released = self._steps.released_change(gradients, whole, self.batch).norms
        left: Tensor = (released / change.norm(dim=1).double()).nan_to_num()
        return left

    def _change(self, moved: Gradient) -> ReleasedChange:
        """`StepResponse.change`, given the gradient at x + v."""
        before, after = self._values, GradientValues(moved)
        scale = shrinking(before.norms, after.norms)
        if not self._steps:
            return ReleasedChange.told(before.change(after, scale))
        gradients = self.gradients()
        change = scale[:, None].to(gradients) * moved.values() - gradients
        return self.release.released_change(gradients, change, self.batch)

    def _with_copies(self, columns: Tensor, multiply: Callable[[StructuredJacobian, Tensor], Tensor]) -> Tensor:
        """K columns per sample as one column for each of some copies of it, block by block."""
        size = max(1, min(columns.shape[-1], self._most_copies // len(self.batch)))
        if self._copies is None or self._copies[0] not in (size, 1):
            indices = [index for index in range(self.num_samples) for _ in range(size)]
            copies = self._selected(indices)
            # Where copies would change each other, one column at a time, with these samples as they are.
            alike = size == 1 or (copies.agrees_with_samples and self._agrees_with(copies, multiply, columns))
            self._copies = (size, copies) if alike else (1, self)
        size = self._copies[0]
        products = []
        for first in range(0, columns.shape[-1], size):
            block = columns[..., first : first + size]
            missing = size - block.shape[-1]
            single = F.pad(block, (0, missing)).mT.reshape(-1, columns.shape[1], 1)
            product = multiply(self._copies[1], single).reshape(self.num_samples, size, -1).mT
            products.append(product[..., : block.shape[-1]])
        return products[0] if len(products) == 1 else torch.cat(products, dim=-1)

    def _agrees_with(
        self, copies: StructuredJacobian, multiply: Callable[[StructuredJacobian, Tensor], Tensor], columns: Tensor
    ) -> bool:
        """Whether copies of these samples leave each other's derivatives alone: alike, they may hide it in losses."""
        generator = torch.Generator().manual_seed(0)
        size = copies.num_samples // self.num_samples
        shapes = (self.num_samples, columns.shape[1], 1), (copies.num_samples, 1, 1)
        draws = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
        probe, factors = (draw.to(columns) for draw in draws)
        expected = factors * multiply(self, probe).repeat_interleave(size, 0)
        product = multiply(copies, factors * probe.repeat_interleave(size, 0))
        allowed = COPIES_ROOTS * torch.finfo(self.dtype).eps ** 0.5 * expected.norm(dim=1)
        return bool(((product - expected).norm(dim=1) <= allowed).all()) or not bool(torch.isfinite(expected).all())

    @cached_property
    def _signals(self) -> Signals:
        with torch.enable_grad():
            return Signals(self.release, self.batch, self.layout)

    @cached_property
    def _gradient(self) -> Gradient:
        return Gradient(self.release.parameters, self._signals)

    @torch.no_grad()
    def gradients(self) -> Tensor:
        """The gradient before any step, [B, P]."""
        return self._gradient.values()

    @cached_property
    def _values(self) -> GradientValues:
        return GradientValues(self._gradient)

    def _pushed(self, columns: Tensor) -> list[Tensor]:
        """DPhi v for v [B, d, 1]."""
        return self._signals.push(columns.reshape(self.batch.inputs.shape))

    # The release's steps after the gradient.

    @cached_property
    def _derivative(self) -> Derivative:
        return self.release.derivative(self.gradients(), self.batch) if self._steps else Chain()

    @property
    def _chain(self) -> Chain:
        """The steps' derivative in closed form, where all of them have one."""
        assert isinstance(self._derivative, Chain)
        return self._derivative

    @cached_property
    def _mask(self) -> Parameters | None:
        return None if self._chain.kept is None else self._gradient.pieces(self._chain.kept)

    @cached_property
    def _low_rank(self) -> tuple[Tensor, Tensor, Tensor]:
        """A = J^T (m p), Q = J^T q [B, d, r] and the Gram matrix of p [B, r, r], J the gradient's own."""
        chain = self._chain
        scaled = chain.left if chain.kept is None else [chain.kept * vector for vector in chain.left]
        pulled = [torch.stack([self._gradient.pull(v) for v in side], dim=-1) for side in (scaled, chain.right)]
        left = torch.stack(chain.left, dim=1)
        return pulled[0], pulled[1], left @ left.mT

    def _downdated(self, product: Tensor, columns: Tensor) -> Tensor:
        """c^2 (J^T m J - A Q^T - Q A^T + Q G Q^T) applied, given J^T m J applied; all [B, d, 1]."""
        chain = self._chain
        if chain.left:
            A, Q, gram = self._low_rank
            along_a, along_q = A.mT @ columns, Q.mT @ columns
            product = product - A @ along_q - Q @ along_a + Q @ (gram @ along_q)
        return product if chain.scale is None else chain.scale[:, None, None].square() * product


@final
class SeparateJacobian(Jacobian):
    """J of B samples, each [P, d], every one in a batch of its own, without copies beside it.

    Args:
        release: see `Jacobian`.
        batch: see `Jacobian`.
        layout: of the release's model, from `find_layout`.
    """

    separate = True

    def __init__(self, release: GradientRelease, batch: Batch, layout: Layout) -> None:
        super().__init__(release, batch)
        self.release: GradientRelease = release
        self.layout = layout
        samples = [batch.select([index]) for index in range(batch.num_uploads)]
        self._parts = [StructuredJacobian(release, sample, layout, most_copies=1) for sample in samples]

    @override
    def select(self, indices: list[int]) -> SeparateJacobian:
        return SeparateJacobian(self.release, self.batch.select(indices), self.layout)

    @override
    def mean(self) -> Tensor:
        return torch.cat([part.mean() for part in self._parts])

    @override
    def losses(self) -> Tensor:
        return torch.cat([part.losses() for part in self._parts])

    @override
    def smallest_eigenvalue_bound(self) -> Tensor:
        return torch.cat([part.smallest_eigenvalue_bound() for part in self._parts])

    def held_bytes(self) -> int:
        """See `StructuredJacobian.held_bytes`."""
        return sum(part.held_bytes() for part in self._parts)

    def gradients(self) -> Tensor:
        """The gradient before any step, [B, P]."""
        return torch.cat([part.gradients() for part in self._parts])

    @override
    def step(self, direction: Tensor, draw: Draw | None = None, predicted: Tensor | None = None) -> StepResponse:
        lengths: Sequence[Tensor | None] = [None] * len(self._parts) if predicted is None else torch.split(predicted, 1)
        parts = zip(self._parts, torch.split(direction, 1), lengths, strict=True)
        return joined([part.step(step, draw, length) for part, step, length in parts])

    def _matmat(self, columns: Tensor) -> Tensor:
        return self._each(StructuredJacobian.matmat, columns)

    def _rmatmat(self, columns: Tensor) -> Tensor:
        return self._each(StructuredJacobian.rmatmat, columns)

    def _gram_matmat(self, columns: Tensor) -> Tensor:
        return self._each(StructuredJacobian.gram_matmat, columns)

    def _gram_rows(self, columns: Tensor) -> Tensor:
        return self._each(StructuredJacobian.gram_rows, columns)

    def _each(self, multiply: Callable[[StructuredJacobian, Tensor], Tensor], columns: Tensor) -> Tensor:
        """Products of every sample with its own columns [B, n, K]."""
        return torch.cat([multiply(part, columns[index : index + 1]) for index, part in enumerate(self._parts)])


def by_layers(
    release: GradientRelease, batch: Batch, layout: Layout, alone: Tensor
) -> StructuredJacobian | SeparateJacobian:
    """The samples together where each has the loss that it has alone, else one by one.

    Args:
        release: see `Jacobian`.
        batch: see `Jacobian`.
        layout: of the release's model.
        alone: loss of every sample in a batch of its own, [B].
    """
    together = StructuredJacobian(release, batch, layout, alone)
    return together if together.agrees_with_samples else SeparateJacobian(release, batch, layout)


def agree(together: Tensor, alone: Tensor) -> bool:
    """Whether numbers of samples in a batch are, up to rounding, those of every sample alone, [B] each.

    What isn't finite either way agrees: it is refused for what it is.
    """
    tolerance = torch.finfo(alone.dtype).eps ** 0.5
    finite = alone[torch.isfinite(alone)]
    largest = float(finite.abs().max()) if len(finite) else 0.0
    return torch.allclose(together, alone.to(together), rtol=tolerance, atol=tolerance * largest, equal_nan=True)
