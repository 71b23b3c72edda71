"""Soteria against its definition: scores by plain autograd of one feature at a time, the percentile by numpy."""

from __future__ import annotations

import numpy as np
import oracles
import pytest
import torch
import torch.nn.functional as F
from cases import mnist
from contracts.linear_operator import normal
from torch import Tensor, nn

from riskaudit.errors import ReleaseError
from riskaudit.jacobian import GenericJacobian, jacobian_maker, joint_jacobian_maker
from riskaudit.release import Batch, PerSampleRelease, make_release
from riskaudit.release.steps.soteria import Soteria


def network() -> nn.Sequential:
    """A convolution and three linear layers, the first of them the largest; 8 x 8 inputs."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 2, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(18, 12), nn.ReLU(), nn.Linear(12, 10)]
    return nn.Sequential(*layers).double().eval()


def batch(count: int = 2) -> Batch:
    return mnist(count, 8)


def scores(model: nn.Sequential, position: int, x: Tensor) -> np.ndarray:
    """Of the features that enter the layer at a position of the model."""
    x = x.clone().requires_grad_()
    features = model[:position](x[None])[0]
    rows = [torch.autograd.grad(feature, x, retain_graph=True)[0] for feature in features]
    norms = np.array([np.linalg.norm(row.numpy()) for row in rows])
    return np.abs(norms / (features.detach().numpy() + 0.1))


def defended(model: nn.Sequential, position: int, percentile: float, x: Tensor) -> oracles.Change:
    """Columns of that layer's weight below the percentile set to 0 in a released vector."""
    own = scores(model, position, x)
    kept = torch.from_numpy(own >= np.percentile(own, percentile))
    parts = [
        kept.expand_as(value).reshape(-1) if name == f"{position}.weight" else torch.ones(value.numel()).bool()
        for name, value in model.named_parameters()
    ]
    return lambda released: torch.where(torch.cat(parts), released, 0.0)


@pytest.mark.parametrize(("text", "position", "percentile"), [("soteria:80", 3, 80), ("soteria:50:5", 5, 50)])
def test_release_and_both_jacobians_are_those_of_the_definition(text: str, position: int, percentile: float) -> None:
    model, samples = network(), batch()
    release = PerSampleRelease(model, F.cross_entropy, text)
    maker = jacobian_maker(release, samples)
    assert maker.kind == "structured"
    structured, generic = maker(samples), GenericJacobian(release, samples)
    for place, (x, target) in enumerate(samples.pairs()):
        change = defended(model, position, percentile, x)
        mean = oracles.released_mean(model, F.cross_entropy, x, target, (change,))
        assert bool((mean == 0).any())
        J = oracles.jacobian(model, F.cross_entropy, x, target, (change,))
        for jacobian in (structured, generic):
            own = jacobian.select([place])
            torch.testing.assert_close(own.mean()[0].detach(), mean.detach(), rtol=1e-12, atol=1e-14)
            dense = own.matmat(torch.eye(64, dtype=torch.float64)[None])[0].detach()
            np.testing.assert_allclose(dense.numpy(), J, rtol=1e-10, atol=1e-12)
            gram = own.hessian().matmat(torch.eye(64, dtype=torch.float64)[None])[0].detach()
            np.testing.assert_allclose(gram.numpy(), J.T @ J, rtol=1e-9, atol=1e-12)


def test_samples_of_a_mean_are_defended_one_by_one() -> None:
    model, samples = network(), batch(4)
    release = make_release(model, F.cross_entropy, "soteria:70,mean:2,secagg:2")
    upload = samples.in_uploads(release.uploads(4))
    means = [
        oracles.released_mean(model, F.cross_entropy, x, target, (defended(model, 3, 70, x),))
        for x, target in samples.pairs()
    ]
    mean = torch.stack(means).mean(0).detach()
    torch.testing.assert_close(release.mean(upload)[0].detach(), mean, rtol=1e-12, atol=0)
    maker = joint_jacobian_maker(release, upload)
    assert maker.kind == "structured"
    v, u = normal(1, 256), normal(1, release.num_entries, seed=1)
    structured, generic = maker(upload), GenericJacobian(release, upload)
    torch.testing.assert_close(structured.matvec(v), generic.matvec(v).detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(structured.rmatvec(u), generic.rmatvec(u).detach(), rtol=1e-10, atol=1e-12)


def test_code_that_no_transform_runs_has_the_same_scores() -> None:
    class Untransformed(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient

    class Opaque(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(Untransformed.apply(x))

    model, samples = network(), batch()
    opaque = PerSampleRelease(Opaque(*model).eval(), F.cross_entropy, "soteria:80")
    expected = PerSampleRelease(model, F.cross_entropy, "soteria:80").mean(samples)
    torch.testing.assert_close(opaque.mean(samples), expected, rtol=1e-12, atol=1e-15)


def test_the_layer_with_the_largest_weight_is_defended_unless_one_is_named() -> None:
    context = PerSampleRelease(network(), F.cross_entropy).context
    assert Soteria(80).spoiled(context) == {"3.weight"}
    assert Soteria(80, "5").spoiled(context) == {"5.weight"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("soteria:80:fc9", "expected one of the linear layers 3, 5"),
        ("soteria:80:0", "expected one of the linear layers 3, 5"),
        ("share:0.*,soteria:80", "a linear layer whose weight is sent"),
        ("soteria:101", "0 <= Q <= 100"),
        ("mean:2,soteria:80", "put it before the mean"),
        ("local:epochs=1:batch=2:lr=0.1,soteria:80", "local training sends no sample's"),
        ("gaussian:1,soteria:80", "put it before the noise"),
    ],
)
def test_what_cannot_be_defended_is_refused(text: str, words: str) -> None:
    with pytest.raises(ReleaseError, match=words):
        make_release(network(), F.cross_entropy, text)


def test_a_layer_that_takes_several_vectors_of_a_sample_is_refused() -> None:
    model = nn.Sequential(nn.Linear(8, 5), nn.Flatten(), nn.Linear(40, 10)).double().eval()
    with pytest.raises(ReleaseError, match="one vector of features for a sample"):
        PerSampleRelease(model, F.cross_entropy, "soteria:80:0").mean(Batch(batch().inputs[:, 0], batch().targets))
