"""What a step of the inputs does to the gradient: by layers as by vectors of the parameters' size."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from cases import residual
from contracts.linear_operator import normal
from contracts.same_jacobian import random_batch, randomise, structured
from torch import Tensor, nn

from riskaudit.jacobian import Jacobian
from riskaudit.jacobian.response import joined
from riskaudit.jacobian.structured import SeparateJacobian
from riskaudit.release import Batch, PerSampleRelease


class Tied(nn.Module):
    """One matrix used twice, so that its gradient is a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(torch.tanh(self.first(x.flatten(1))))))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 9), nn.Tanh(), nn.Linear(9, 4)), (1, 4, 4)),
    "no bias": (lambda: nn.Sequential(nn.Linear(16, 9, bias=False), nn.ReLU(), nn.Linear(9, 4)), (16,)),
    "positions": (lambda: nn.Sequential(nn.Linear(5, 9), nn.Tanh(), nn.Flatten(), nn.Linear(27, 4)), (3, 5)),
    "convolution": (lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(27, 4)), (2, 5, 5)),
    "tied": (Tied, (16,)),
    "residual": (residual, (1, 8, 8)),
}


@pytest.mark.parametrize("release", ["gradient", "clip:0.3", "prune:0.5,clip:0.2"])
@pytest.mark.parametrize("name", MODELS)
def test_by_layers_as_by_whole_vectors(name: str, release: str) -> None:
    make, shape = MODELS[name]
    batch = random_batch(3, *shape)
    jacobian = structured(PerSampleRelease(randomise(make()), F.cross_entropy, release), batch)
    direction = 0.7 * normal(3, jacobian.shape[1], seed=3)
    found, expected = jacobian.step(direction), Jacobian.step(jacobian, direction)
    for own, other in (
        (found.norms, expected.norms),
        (found.predicted, expected.predicted),
        (found.change.norms, expected.change.norms),
    ):
        assert torch.allclose(own, other, rtol=1e-10, atol=0)


def test_growth_is_taken_back() -> None:
    model = nn.Linear(4, 2, bias=False).double()
    batch = Batch(normal(2, 4), torch.tensor([0, 1]))
    squares = PerSampleRelease(model, lambda outputs, targets: outputs.square().sum())
    jacobian = structured(squares, batch)
    found = jacobian.step(9 * batch.inputs)
    # g(10 x) = 100 g(x), whose norm is taken back to that of g(x): nothing has changed.
    assert torch.allclose(
        found.change.norms, torch.zeros(2, dtype=torch.float64), atol=1e-10 * float(found.norms.max())
    )
    assert torch.allclose(found.predicted, 18 * found.norms)


@pytest.mark.parametrize("name", ["mlp", "no bias", "convolution", "positions"])
def test_layers_in_front_see_the_input(name: str) -> None:
    make, shape = MODELS[name]
    batch = random_batch(2, *shape)
    jacobian = structured(PerSampleRelease(randomise(make()), F.cross_entropy), batch)
    direction = normal(2, jacobian.shape[1], seed=3)
    (layer,) = jacobian.step(direction).front
    assert torch.allclose(layer.change, layer.predicted)
    if name != "convolution":
        assert torch.equal(layer.value, batch.inputs.flatten(1))
        assert torch.equal(layer.predicted, direction)
    assert layer.outer == (name in ("mlp", "no bias"))


def test_precision_of_what_a_layer_sees_is_that_of_its_gradient() -> None:
    model = randomise(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)))
    batch = random_batch(1, 6, classes=3)
    release = PerSampleRelease(model, F.cross_entropy)
    (layer,) = structured(release, batch).step(normal(1, 6)).front
    signal = release.gradient(batch)[0, 30:35]
    assert torch.allclose(layer.precision, signal.square().sum())


@pytest.mark.parametrize(
    ("spec", "factor"),
    [("share:2.*", 0.0), ("share:0.*", 1.0), ("clip:0.01", None), ("mask:0.5", 0.5), ("share:2.*,clip:0.01", 0.0)],
)
def test_precision_is_that_of_what_leaves(spec: str, factor: float | None) -> None:
    model = randomise(nn.Sequential(nn.Linear(60, 50), nn.Tanh(), nn.Linear(50, 3)))
    batch = random_batch(2, 60, classes=3)
    plain, stepped = (PerSampleRelease(model, F.cross_entropy, each) for each in ("gradient", spec))
    (before,), (after,) = (structured(release, batch).step(normal(2, 60)).front for release in (plain, stepped))
    norms = plain.gradient(batch).norm(dim=1)
    expected = (0.01 / norms).square() if factor is None else torch.full((2,), factor, dtype=torch.float64)
    # The norm changes a little with any change, and a mask keeps half of the entries on average.
    tolerance = {0.0: 0.0, 1.0: 1e-12}.get(factor, 0.25)
    torch.testing.assert_close(after.precision / before.precision, expected, rtol=tolerance, atol=0)


def test_layers_behind_others_or_behind_affine_weights() -> None:
    norm = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 3))
    jacobian = structured(PerSampleRelease(randomise(norm), F.cross_entropy), random_batch(2, 8, classes=3))
    (layer,) = jacobian.step(normal(2, 8)).front
    assert layer.value.shape == (2, 8)


def test_every_sample_apart() -> None:
    make, shape = MODELS["convolution"]
    batch = random_batch(3, *shape)
    together = structured(PerSampleRelease(randomise(make()), F.cross_entropy), batch)
    apart = SeparateJacobian(together.release, batch, together.layout)
    direction, generator = normal(3, together.shape[1], seed=3), torch.Generator().manual_seed(0)

    def draw(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=like.dtype)

    one, other = apart.step(direction, draw), together.step(direction, draw)
    assert torch.allclose(one.change.norms, other.change.norms)
    assert torch.allclose(one.front[0].predicted, other.front[0].predicted)
    for gap in (one.adjoint_gap, other.adjoint_gap):
        assert gap is not None
        assert float(gap.max()) < 1e-12
    assert torch.equal(joined([one]).change.norms, one.change.norms)
