"""BERT, DistilBERT, GPT-2 and vision transformers by their layers, against plain torch.func."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from contracts.linear_operator import normal
from contracts.same_jacobian import close
from torch import Tensor, nn
from torch.func import functional_call, grad, jacfwd, jvp, vjp
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformer_models import CASES, CLASSES, MORE_CASES, TransformerCase, library

from riskaudit.jacobian import GenericJacobian, jacobian_maker, joint_jacobian_maker
from riskaudit.linalg import Lanczos
from riskaudit.release import Batch, PerSampleRelease, make_release

# Where a model rounds to single precision, plain torch.func does so too, and the audit doesn't.
TOLERANCE, ROUNDED = 1e-9, 1e-5
COUNT, RATE = 4, 0.1
ALL = {**CASES, **MORE_CASES}
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")
Weights = dict[str, Tensor]


def weights_of(model: nn.Module) -> Weights:
    return {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}


def flat(weights: Weights) -> Tensor:
    return torch.cat([part.flatten() for part in weights.values()])


def slope(case: TransformerCase, model: nn.Module, weights: Weights, x: Tensor, targets: Tensor) -> Weights:
    """Gradient of the mean loss of some samples."""
    return grad(lambda given: case.loss(functional_call(model, given, (x,)), targets))(weights)


def mean_gradient(case: TransformerCase, model: nn.Module, targets: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: flat(slope(case, model, weights_of(model), x, targets))


def two_steps(case: TransformerCase, model: nn.Module, targets: Tensor) -> Callable[[Tensor], Tensor]:
    """What two steps of gradient descent, on the first and the second half of the samples, change."""

    def change(x: Tensor) -> Tensor:
        weights = weights_of(model)
        for part, labels in zip(x.chunk(2), targets.chunk(2), strict=True):
            slopes = slope(case, model, weights, part, labels)
            weights = {name: value - RATE * slopes[name] for name, value in weights.items()}
        return flat(weights_of(model)) - flat(weights)

    return change


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ALL)
def test_single_samples(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Sequences of different lengths, in one batch; nothing falls back."""
    case = ALL[name]
    model, batch = case.model(), case.batch(COUNT)
    with caplog.at_level(logging.WARNING, "riskaudit"):
        maker = jacobian_maker(PerSampleRelease(model, case.loss), batch)
    said = [record.getMessage() for record in caplog.records if record.name.startswith("riskaudit")]
    assert (maker.kind, maker.apart, said) == ("structured", False, []), maker.reason
    jacobian, tolerance = maker(batch), ROUNDED if case.rounds else TOLERANCE
    P, d = jacobian.shape
    V, U = normal(COUNT, d, 2, seed=1), normal(COUNT, P, 2, seed=2)
    found = jacobian.mean(), jacobian.matmat(V), jacobian.rmatmat(U), jacobian.gram_matmat(V)
    singly = jacobian.matvec(V[..., 0]), jacobian.rmatvec(U[..., 0])
    for i in range(COUNT):
        one = Batch(batch.inputs[i : i + 1], batch.targets[i : i + 1])
        released = mean_gradient(case, model, one.targets)
        with sdpa_kernel(SDPBackend.MATH):
            J = jacfwd(released)(one.inputs).reshape(P, d).detach()
            expected = released(one.inputs).detach(), J @ V[i], J.mT @ U[i], J.mT @ (J @ V[i])
        for what, value, other in zip(("gradient", "J V", "J^T U", "H V"), found, expected, strict=True):
            close(value[i], other, tolerance, what)
        close(singly[0][i], expected[1][:, 0], tolerance, "J v")
        close(singly[1][i], expected[2][:, 0], tolerance, "J^T u")
        if i == COUNT - 1:
            generic = GenericJacobian(jacobian.release, one)
            close(singly[0][i], generic.matvec(V[i : i + 1, :, 0])[0].detach(), TOLERANCE, "generic J v")
            close(singly[1][i], generic.rmatvec(U[i : i + 1, :, 0])[0].detach(), TOLERANCE, "generic J^T u")


JOINT = {
    f"mean:{COUNT}": ("structured", mean_gradient),
    f"local:epochs=1:batch={COUNT // 2}:lr={RATE}": ("unrolled", two_steps),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("text", JOINT)
@pytest.mark.parametrize("name", CASES)
def test_several_samples_together(name: str, text: str) -> None:
    case, (kind, make) = CASES[name], JOINT[text]
    model, batch = case.model(), case.batch(COUNT)
    upload = Batch(batch.inputs, batch.targets, COUNT)
    maker = joint_jacobian_maker(make_release(model, case.loss, text), upload)
    assert maker.kind == kind, maker.reason
    jacobian, tolerance = maker(upload), ROUNDED if case.rounds else TOLERANCE
    P, d = jacobian.shape
    v, u = normal(1, d, seed=1), normal(1, P, seed=2)
    with sdpa_kernel(SDPBackend.MATH):
        released = make(case, model, batch.targets)
        mean, pushed = jvp(released, (batch.inputs,), (v.reshape(batch.inputs.shape),))
        (pulled,) = vjp(released, batch.inputs)[1](u[0])
    close(jacobian.mean().detach()[0], mean.detach(), tolerance, "mean")
    close(jacobian.matvec(v)[0].detach(), pushed.detach(), tolerance, "J v")
    close(jacobian.rmatvec(u)[0].detach(), pulled.detach().flatten(), tolerance, "J^T u")


@pytest.mark.slow
def test_vit_at_224_pixels() -> None:
    """197 tokens: a few products bracket the largest eigenvalue of one image's H."""
    timm = library("timm")
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=CLASSES).eval()
    image = Batch(torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0)), torch.tensor([1]))
    maker = jacobian_maker(PerSampleRelease(model, F.cross_entropy), image)
    assert maker.kind == "structured", maker.reason
    jacobian = maker(image)
    start, v = (normal(1, jacobian.shape[1], seed=seed).float() for seed in (1, 2))
    solution = Lanczos(tolerance=0.0, max_matvecs=8).solve(jacobian.hessian(), start)
    assert solution.low is not None
    assert solution.high is not None
    assert 0 < float(solution.low[0]) <= float(solution.value[0]) <= float(solution.high[0])
    # No vector shows more than the largest eigenvalue's end, whichever it is.
    assert float(jacobian.matvec(v).norm() / v.norm()) ** 2 <= float(solution.value[0])
    generic = GenericJacobian(jacobian.release, image)
    close(jacobian.matvec(v), generic.matvec(v).detach(), 1e-3, "J v")
