"""The method of moments: tensors against their definition, the paper's sanity case, and images of a mean."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import permutations

import cases
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from contracts.attack import generator, observe, observe_uploads, rmse
from contracts.linear_operator import normal
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from riskaudit.attacks import AttackNotApplicable, MethodOfMoments
from riskaudit.attacks.moments import _moments, decompose, diagonalise, hermite_moments, principal_span
from riskaudit.studies.attacking import matched_order


def hermite(order: int, w: Tensor) -> Tensor:
    """The Hermite tensor He_p(w), n^p, from the definition: all pairings of axes, with a sign for each pair."""
    size, total = len(w), torch.zeros((len(w),) * order, dtype=torch.float64)
    for index in np.ndindex(*(size,) * order):
        for pairing in _pairings(tuple(range(order))):
            paired = {axis for pair in pairing for axis in pair}
            term = math.prod(float(index[a] == index[b]) for a, b in pairing)
            rest = math.prod(float(w[index[axis]]) for axis in range(order) if axis not in paired)
            total[index] += (-1) ** len(pairing) * term * rest
    return total


def _pairings(axes: tuple[int, ...]) -> list[tuple[tuple[int, int], ...]]:
    """All sets of disjoint pairs, the empty one included."""
    if len(axes) < 2:
        return [()]
    first, others = axes[0], axes[1:]
    found = list(_pairings(others))
    for other in others:
        rest = tuple(axis for axis in others if axis != other)
        found += [((first, other), *pairing) for pairing in _pairings(rest)]
    return found


def test_moments_are_those_of_the_hermite_tensors() -> None:
    w, y = normal(30, 2), normal(2, 30)
    found, rest = _moments(w, y), y - y.mean(1, keepdim=True)
    for order in (1, 2, 3, 4):
        tensors = torch.stack([hermite(order, row) for row in w])
        if order == 1:
            # By least squares, which leaves nothing of a linear part.
            expected = rest @ w @ torch.linalg.inv(w.T @ w)
            rest = rest - expected @ w.T
        else:
            expected = torch.einsum("cm,m...->c...", rest, tensors) / len(w)
            rest = rest - torch.einsum("cp,mp->cm", expected.flatten(1), tensors.flatten(1)) / math.factorial(order)
        torch.testing.assert_close(found[order], expected)


@pytest.mark.parametrize("length", [0.5, 2.0])
def test_moments_of_activations(length: float) -> None:
    """By Stein's identity, of a ReLU: t / 2, t phi(0), 0, -t phi(0); of v^3: 3 t^3, 0, 6 t^3, 0."""
    density = 1 / math.sqrt(2 * math.pi)
    lengths, no_bias = torch.tensor([length]), torch.zeros(1)
    expected = torch.tensor([0.5, density, 0, -density], dtype=torch.float64) * length
    torch.testing.assert_close(hermite_moments(torch.relu, lengths, no_bias)[:, 0], expected, atol=1e-3, rtol=0)
    cubes = torch.tensor([3.0, 0, 6, 0], dtype=torch.float64) * length**3
    torch.testing.assert_close(hermite_moments(lambda v: v**3, lengths, no_bias)[:, 0], cubes, atol=1e-6, rtol=1e-6)


def test_directions_that_are_not_orthogonal_are_told_apart() -> None:
    mixing = F.normalize(normal(4, 4), dim=0)
    matrices = torch.einsum("ai,ki,bi->kab", mixing, normal(6, 4), mixing)
    found, left = diagonalise(matrices, generator())
    cosines = (found.T @ mixing).abs()
    assert left < 1e-9
    assert any(float(cosines[list(order), range(4)].min()) > 1 - 1e-9 for order in permutations(range(4)))


def recovered(activation: Callable[[Tensor], Tensor], units: int, count: int, seed: int) -> Tensor:
    """sin of the angle between every sample and its direction, by theorem 3.1's setting: w_j ~ N(0, I), |x_i| = 1."""
    drawn = generator(seed)
    w = torch.randn(units, 20, generator=drawn, dtype=torch.float64)
    x = F.normalize(torch.randn(count, 20, generator=drawn, dtype=torch.float64), dim=1)
    residuals = 1 + torch.rand(1, count, generator=drawn, dtype=torch.float64)
    y = residuals @ activation(w @ x.T).T
    sizes = hermite_moments(activation, torch.ones(1), torch.zeros(1))[:, 0].abs()
    span = principal_span(w, y, count, drawn)
    parts = decompose(w, y, span, {order: float(sizes[order - 1]) for order in (1, 2, 3, 4)}, drawn)
    cosines = (parts.directions @ x.T).abs()
    rows, columns = linear_sum_assignment(-cosines.numpy())
    return (1 - cosines[rows, columns].clamp(max=1).square()).sqrt()


@pytest.mark.parametrize("activation", [torch.relu, torch.tanh], ids=["relu", "tanh"])
def test_samples_of_a_wide_random_network_come_back(activation: Callable[[Tensor], Tensor]) -> None:
    """Liu, Wang and Lei, theorem 3.1: the error of B samples is of the order of B sqrt(d / m)."""
    narrow, wide = (
        torch.stack([recovered(activation, units, 3, seed) for seed in range(2)]).mean() for units in (4000, 64000)
    )
    assert wide < 0.1
    assert 2 < narrow / wide < 8


def network(activation: nn.Module, units: int = 1024, features: int = 64) -> nn.Sequential:
    """As PyTorch makes it: uniform weights and biases."""
    torch.manual_seed(0)
    layers = nn.Linear(features, units), activation, nn.Linear(units, 10)
    return nn.Sequential(nn.Flatten(), *layers).double().eval()


@pytest.mark.parametrize(
    ("activation", "count", "limit"),
    [(nn.ReLU(), 1, 1e-2), (nn.ReLU(), 3, 0.04), (nn.Tanh(), 1, 1e-2), (nn.Tanh(), 3, 0.12)],
    ids=["relu-1", "relu-3", "tanh-1", "tanh-3"],
)
def test_images_of_a_mean_come_back_with_sign_size_and_label(activation: nn.Module, count: int, limit: float) -> None:
    batch = cases.digits(count)
    found = MethodOfMoments().run(observe_uploads(network(activation), batch, f"mean:{count}"), generator())
    order = matched_order(found.inputs, batch.inputs, count)
    assert float(rmse(found.inputs[order], batch.inputs).max()) < limit < 0.5 * float(batch.inputs.std())
    assert found.status == ("converged",)
    assert found.targets[order].tolist() == batch.targets.tolist()


def test_the_span_comes_from_moments_where_the_first_weight_is_not_sent() -> None:
    batch = cases.digits(1)
    known = MethodOfMoments().run(observe_uploads(network(nn.Tanh()), batch, "mean:1,share:!1.weight"), generator())
    asked = MethodOfMoments(span="moments").run(observe_uploads(network(nn.Tanh()), batch, "mean:1"), generator())
    torch.testing.assert_close(known.inputs, asked.inputs, rtol=1e-6, atol=1e-6)
    assert float(rmse(known.inputs, batch.inputs)) < 0.06


def trained() -> nn.Module:
    model = network(nn.ReLU())
    with torch.no_grad():
        model[1].weight[:, 0] *= 2
    return model


def quantiled() -> nn.Module:
    model = network(nn.ReLU())
    with torch.no_grad():
        model[1].bias.copy_(-model[1].weight.sum(1))
    return model


def normalised() -> nn.Module:
    model = network(nn.ReLU())
    model[2] = nn.Sequential(nn.LayerNorm(1024), nn.ReLU()).double()
    return model


@pytest.mark.parametrize(
    ("model", "count", "reason"),
    [
        (trained, 2, "aren't random ones, as before training: entries of a row are correlated, or of different sizes"),
        (quantiled, 2, "the biases of the layer 1 depend on its weights"),
        (normalised, 2, "more than one function of every unit"),
        (lambda: network(nn.Identity()), 2, "nearly linear: its moments beyond the first vanish"),
        (lambda: network(nn.ReLU(), units=6), 4, "too few for moments of 4 samples"),
        (lambda: cases.lenet(8), 2, "no fully connected layer follows another"),
    ],
    ids=["trained", "biases", "layer-norm", "linear", "narrow", "one-layer"],
)
def test_where_it_does_not_apply_it_says_why(model: Callable[[], nn.Module], count: int, reason: str) -> None:
    with pytest.raises(AttackNotApplicable, match=reason):
        MethodOfMoments().run(observe_uploads(model(), cases.digits(count), f"mean:{count}"), generator())


def test_features_behind_convolutions_are_no_inputs() -> None:
    torch.manual_seed(0)
    front = nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten()
    model = nn.Sequential(*front, nn.Linear(144, 512), nn.ReLU(), nn.Linear(512, 10)).double().eval()
    with pytest.raises(AttackNotApplicable, match="more than the scaled input: moments give these features"):
        MethodOfMoments().run(observe(model, cases.digits(1)), generator())
