"""The structured Jacobian of a model against plain autograd, sample by sample, and against the generic one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from contracts.linear_operator import normal
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from riskaudit.jacobian import GenericJacobian, StructuredJacobian
from riskaudit.jacobian.structured import find_layout
from riskaudit.release import Batch, PerSampleRelease, Release

SIZES = (5, 7)


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Double precision, eval mode, and no weight of one or bias of zero, which hide mistakes."""
    torch.manual_seed(seed)
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.copy_(torch.rand_like(buffer) + 0.3)
    return model


def random_batch(count: int, *shape: int, classes: int = 4, seed: int = 0) -> Batch:
    return Batch(normal(count, *shape, seed=seed), torch.arange(count) % classes)


def structured(release: Release, batch: Batch, sizes: tuple[int, int] = SIZES) -> StructuredJacobian:
    """Straight from the layout: nothing falls back."""
    return StructuredJacobian(release, batch, find_layout(release, batch, sizes))


def by_autograd(model: nn.Module, x: Tensor, target: Tensor, v: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient [P], J v and J^T u of one sample by two passes of plain autograd, no transforms."""
    x = x.clone().requires_grad_()
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with sdpa_kernel(SDPBackend.MATH):
        loss = F.cross_entropy(model(x.unsqueeze(0)), target.unsqueeze(0))
        found = torch.autograd.grad(loss, trainable, create_graph=True, allow_unused=True)
        zeros = [torch.zeros_like(parameter) for parameter in trainable]
        gradient = torch.cat([(z if g is None else g).flatten() for g, z in zip(found, zeros, strict=True)])
        cotangent = u.clone().requires_grad_()
        (pulled,) = torch.autograd.grad(gradient, x, cotangent, create_graph=True)
        (pushed,) = torch.autograd.grad(pulled, cotangent, v.reshape(x.shape))
    return gradient.detach(), pushed, pulled.detach().flatten()


def close(found: Tensor, expected: Tensor, tolerance: float, what: str, scale: float = 1e-30) -> None:
    """Relative to the expected numbers, or to ``scale`` where they are smaller."""
    assert found.shape == expected.shape, what
    assert not found.requires_grad, what
    scale = max(scale, float(expected.norm()))
    assert float((found - expected).norm()) / scale < tolerance, what


def check_products(
    model: nn.Module, batch: Batch, *, tolerance: float = 1e-9, sizes: tuple[int, int] = SIZES
) -> StructuredJacobian:
    """Every product of a plain gradient's Jacobian, in batches and alone."""
    release = PerSampleRelease(model, F.cross_entropy)
    jacobian = structured(release, batch, sizes)
    B, (P, d) = len(batch), jacobian.shape
    V, U = normal(B, d, 3, seed=1), normal(B, P, 3, seed=2)
    exact = [
        by_autograd(model, x, target, V[i, :, 0], U[i, :, 0])
        for i, (x, target) in enumerate(zip(batch.inputs, batch.targets, strict=True))
    ]
    gradient, pushed, pulled = (torch.stack(parts) for parts in zip(*exact, strict=True))
    close(jacobian.mean(), gradient, tolerance, "mean")
    close(jacobian.norms, gradient.norm(dim=1), tolerance, "norms")
    close(jacobian.matvec(V[..., 0]), pushed, tolerance, "J v")
    close(jacobian.rmatvec(U[..., 0]), pulled, tolerance, "J^T u")
    product = jacobian.hessian().matvec(V[..., 0])
    along = [
        by_autograd(model, x, target, V[i, :, 0], pushed[i])[2]
        for i, (x, target) in enumerate(zip(batch.inputs, batch.targets, strict=True))
    ]
    close(product, torch.stack(along), tolerance, "H v")
    unit = gradient / gradient.norm(dim=1, keepdim=True)
    overlap = (unit * jacobian.matvec(V[..., 1])).sum(1)
    close((jacobian.pull_mean() * V[..., 1]).sum(1), overlap, 1e3 * tolerance, "J^T r / ||r||")
    for name, multiply, columns in (
        ("J V", jacobian.matmat, V), ("J^T U", jacobian.rmatmat, U), ("H V", jacobian.hessian().matmat, V),
    ):  # fmt: skip
        single = torch.stack([multiply(columns[..., k : k + 1])[..., 0] for k in range(3)], dim=-1)
        close(multiply(columns), single, tolerance, name)
    rows = jacobian.gram_rows(V)
    full = jacobian.matmat(V)
    close(rows @ rows.mT, full.mT @ full, tolerance, "inner products of rows")
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        losses = F.cross_entropy(model(batch.inputs), batch.targets, reduction="none")
    close(jacobian.losses(), losses, tolerance, "losses")
    for indices in ([B - 1], [B - 1, 0, 0]):
        chosen = jacobian.select(indices)
        close(chosen.mean(), gradient[indices], tolerance, "mean of a selection")
        close(chosen.matvec(V[indices, :, 0]), pushed[indices], tolerance, "J v of a selection")
        close(chosen.rmatvec(U[indices, :, 0]), pulled[indices], tolerance, "J^T u of a selection")
        close(chosen.hessian().matvec(V[indices, :, 0]), product[indices], tolerance, "H v of a selection")
    return jacobian


def check_generic(jacobian: StructuredJacobian, *, tolerance: float = 1e-9) -> None:
    """The same numbers as `GenericJacobian`, any release."""
    generic = GenericJacobian(jacobian.release, jacobian.batch)
    B, (P, d) = jacobian.num_samples, jacobian.shape
    V, U = normal(B, d, 2, seed=1).to(jacobian.dtype), normal(B, P, 2, seed=2).to(jacobian.dtype)
    products: Sequence[tuple[str, Callable[[GenericJacobian | StructuredJacobian], Tensor]]] = (
        ("mean", lambda one: one.mean()),
        ("losses", lambda one: one.losses()),
        ("norms", lambda one: one.norms),
        ("J v", lambda one: one.matvec(V[..., 0])),
        ("J V", lambda one: one.matmat(V)),
        ("J^T u", lambda one: one.rmatvec(U[..., 0])),
        ("J^T U", lambda one: one.rmatmat(U)),
        ("H v", lambda one: one.hessian().matvec(V[..., 0])),
        ("H V", lambda one: one.hessian().matmat(V)),
        ("inner products of rows", lambda one: one.gram_rows(V) @ one.gram_rows(V).mT),
    )
    for what, product in products:
        close(product(jacobian), product(generic).detach(), tolerance, what)
    # 0 where the vector is clipped: a change of length is all that the clipping takes away.
    scale = float(generic.rmatvec(U[..., 0]).norm() / U[..., 0].norm())
    close(jacobian.pull_mean(), generic.pull_mean().detach(), tolerance, "J^T r / ||r||", scale)


def check_float32(model: nn.Module, batch: Batch, *, tolerance: float = 1e-4) -> None:
    """Single precision, whose convolutions are torch's own, near double precision; the model ends up in double."""
    double = structured(PerSampleRelease(model.double(), F.cross_entropy), batch)
    v, u = normal(len(batch), double.shape[1], seed=3), normal(len(batch), double.shape[0], seed=4)
    expected = [double.mean(), double.matvec(v), double.rmatvec(u), double.hessian().matvec(v)]
    single = structured(PerSampleRelease(model.float(), F.cross_entropy), Batch(batch.inputs.float(), batch.targets))
    found = [single.mean(), single.matvec(v.float()), single.rmatvec(u.float()), single.hessian().matvec(v.float())]
    model.double()
    for what, one, other in zip(("mean", "J v", "J^T u", "H v"), found, expected, strict=True):
        assert one.dtype == torch.float32
        close(one.double(), other, tolerance, f"{what} in float32")
