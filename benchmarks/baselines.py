"""What others do, written plainly: double back-propagation sample by sample, torch.func, one gradient.

J = dr/dx is [P, d] per sample, r the gradient of the loss with respect to the parameters.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor
from torch.func import functional_call, grad, jvp, vjp, vmap

from riskaudit.release import Batch, Release


class DoubleBackprop:
    """J of one sample by double back-propagation, as Zhang et al. (NeurIPS 2023) compute I2F.

    With u and v held constant, J^T u is the gradient of <dL/dtheta, u> in x, and J v that of <dL/dx, v>
    in theta. Their procedure builds the graph anew for each product.

    Args:
        release: the plain gradient of a model and a loss.
        inputs: of one sample, [*S].
        target: of one sample, [...].
        cached: keep one graph for all products instead: a stronger baseline.
    """

    def __init__(self, release: Release, inputs: Tensor, target: Tensor, *, cached: bool) -> None:
        self.release = release
        self.inputs = inputs.detach().unsqueeze(0).requires_grad_(True)
        self.target = target.unsqueeze(0)
        self.parameters = [value for value in release.model.parameters() if value.requires_grad]
        self.sizes = [value.numel() for value in self.parameters]
        self._kept = self._gradients([*self.parameters, self.inputs]) if cached else None

    def push(self, tangent: Tensor) -> tuple[Tensor, ...]:
        """J v for v [d], one part per parameter."""
        kept = self._kept is not None
        by_inputs = self._kept[-1] if self._kept is not None else self._gradients([self.inputs])[0]
        return torch.autograd.grad(by_inputs, self.parameters, tangent.view_as(by_inputs), retain_graph=kept)

    def pull(self, cotangents: Sequence[Tensor]) -> Tensor:
        """J^T u [d] for u in one part per parameter."""
        kept = self._kept is not None
        by_parameters = self._kept[:-1] if self._kept is not None else self._gradients(self.parameters)
        (pulled,) = torch.autograd.grad(by_parameters, self.inputs, cotangents, retain_graph=kept)
        return pulled.reshape(-1)

    def apply(self, vector: Tensor) -> Tensor:
        """H v for v [d]."""
        return self.pull(self.push(vector))

    def apply_outer(self, flat: Tensor) -> Tensor:
        """J J^T u for u [P]."""
        parts = [part.view_as(value) for part, value in zip(flat.split(self.sizes), self.parameters, strict=True)]
        return torch.cat([part.reshape(-1) for part in self.push(self.pull(parts))])

    def _gradients(self, places: Sequence[Tensor]) -> tuple[Tensor, ...]:
        loss = self.release.loss(self.release.model(self.inputs), self.target)
        return torch.autograd.grad(loss, places, create_graph=True)


def largest_by_arpack(
    sample: DoubleBackprop, tolerance: float, basis: int | None = None, seed: int = 0
) -> tuple[float, int]:
    """Largest eigenvalue of J J^T [P, P], which is l_1, and the products that it took.

    ARPACK builds a basis of ``basis`` vectors (scipy's own choice is 20) before it looks at ``tolerance``
    (relative residual) for the first time.
    """
    num_products = 0
    inputs = sample.inputs

    def multiply(vector: NDArray[np.floating]) -> NDArray[np.floating]:
        nonlocal num_products
        num_products += 1
        flat = torch.from_numpy(np.ascontiguousarray(vector).reshape(-1)).to(inputs)
        return sample.apply_outer(flat).cpu().numpy()

    total = sum(sample.sizes)
    number = torch.empty(0, dtype=inputs.dtype).numpy().dtype
    operator = LinearOperator((total, total), matvec=multiply, dtype=number)
    start = np.random.default_rng(seed).standard_normal(total).astype(number)
    values = eigsh(operator, k=1, ncv=basis, tol=tolerance, v0=start, return_eigenvectors=False)
    return float(values[0]), num_products


def largest_by_power(sample: DoubleBackprop, tolerance: float, max_products: int, seed: int = 0) -> tuple[float, int]:
    """Largest eigenvalue of H by power iteration, half of the L2 matching loss's (LAVP), and the products it took.

    The stopping rule is that of the usual code for Hessians (PyHessian): relative change of the value below
    ``tolerance``, which says nothing of the distance from l_1.
    """
    generator = torch.Generator().manual_seed(seed)
    vector = torch.randn(sample.inputs.numel(), generator=generator, dtype=torch.float64).to(sample.inputs)
    value, number = 0.0, 0
    for number in range(1, max_products + 1):  # noqa: B007, the last one is returned
        vector = vector / vector.norm()
        product = sample.apply(vector)
        before, value = value, float(vector @ product)
        if abs(value - before) <= tolerance * abs(value):
            break
        vector = product
    return value, number


class Textbook:
    """H v = J^T (J v) of a batch by ``vmap(jvp(grad))`` and ``vmap(vjp(grad))``, each from the start."""

    def __init__(self, release: Release, batch: Batch) -> None:
        self.release = release
        self.batch = batch
        self.constants = dict(release.model.named_buffers())

    def apply(self, vectors: Tensor) -> Tensor:
        """H v for v [B, d]."""
        return self.pull(self.push(vectors))

    def push(self, tangents: Tensor) -> dict[str, Tensor]:
        """J v for v [B, d], [B, *shape] per parameter."""
        inputs, targets = self.batch.inputs, self.batch.targets

        def sample(x: Tensor, target: Tensor, tangent: Tensor) -> dict[str, Tensor]:
            return jvp(lambda value: self._gradient(value, target), (x,), (tangent,))[1]

        return vmap(sample)(inputs, targets, tangents.view_as(inputs))

    def pull(self, cotangents: dict[str, Tensor]) -> Tensor:
        """J^T u [B, d] for u in [B, *shape] per parameter."""

        def sample(x: Tensor, target: Tensor, cotangent: dict[str, Tensor]) -> Tensor:
            return vjp(lambda value: self._gradient(value, target), x)[1](cotangent)[0]

        return vmap(sample)(self.batch.inputs, self.batch.targets, cotangents).flatten(1)

    def _gradient(self, x: Tensor, target: Tensor) -> dict[str, Tensor]:
        return grad(self._loss)(self.release.parameters, x, target)

    def _loss(self, parameters: dict[str, Tensor], x: Tensor, target: Tensor) -> Tensor:
        outputs = functional_call(self.release.model, {**parameters, **self.constants}, (x.unsqueeze(0),))
        return self.release.loss(outputs, target.unsqueeze(0))


def batch_gradient(release: Release, batch: Batch) -> tuple[Tensor, ...]:
    """The gradient of a batch's summed cross-entropy: one forward and one backward pass, the unit of cost."""
    loss = F.cross_entropy(release.model(batch.inputs), batch.targets, reduction="sum")
    return torch.autograd.grad(loss, list(release.model.parameters()))
