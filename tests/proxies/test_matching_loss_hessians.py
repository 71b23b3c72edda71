"""LAVP's closed forms against finite differences of the attacker's losses, and what clipping makes of them."""

from __future__ import annotations

from collections.abc import Callable

import cases
import numpy as np
import oracles
import pytest
import torch
import torch.nn.functional as F

from riskaudit.proxies import PROXIES
from riskaudit.release import Batch, PerSampleRelease

Array = oracles.Array
MODELS = {"mlp": lambda: cases.mlp((16, 12, 10)), "batch-norm": cases.residual, "tied-weights": cases.tied}
SIZES = {"mlp": 4, "batch-norm": 4, "tied-weights": 6}


def hessian_of_loss(name: str, matching: Callable[[Array, Array], Array], text: str = "gradient") -> Array:
    """Central second differences, [d, d], of the loss that an attacker evaluates, at the first image."""
    batch, step = cases.mnist(1, SIZES[name]), 1e-3
    release = PerSampleRelease(MODELS[name](), F.cross_entropy, text)
    d = batch.inputs.numel()
    truth = release.mean(batch).detach().numpy()
    units = step * torch.eye(d, dtype=torch.float64)

    def losses(first: int, second: int) -> Array:
        """At x + first e_i + second e_j for all i and j, [d, d]."""
        moved = batch.inputs.reshape(1, 1, d) + first * units[:, None] + second * units[None]
        inputs = moved.reshape(d * d, *batch.inputs.shape[1:])
        released = release.mean(Batch(inputs, batch.targets.expand(d * d))).detach().numpy()
        return matching(released, truth).reshape(d, d)

    return (losses(1, 1) - losses(1, -1) - losses(-1, 1) + losses(-1, -1)) / (4 * step**2)


def l2_loss(released: Array, truth: Array) -> Array:
    return np.sum((released - truth) ** 2, axis=-1)


def cosine_loss(released: Array, truth: Array) -> Array:
    # 1 - cos through the difference of unit vectors, which doesn't cancel.
    unit = released / np.linalg.norm(released, axis=-1, keepdims=True)
    return np.sum((unit - truth / np.linalg.norm(truth)) ** 2, axis=-1) / 2


def values(name: str, text: str, proxy: str) -> float:
    at = cases.linearise(MODELS[name](), cases.mnist(1, SIZES[name]), f"{text},gaussian:0.01")
    value = PROXIES[proxy].score(at).estimates[0].value
    assert value is not None
    return value


@pytest.mark.sampled(4)
@pytest.mark.parametrize("text", ["gradient", "clip:0.5", "mask:0.3:1"])
@pytest.mark.parametrize("name", MODELS)
def test_cosine_loss(name: str, text: str) -> None:
    spectrum = np.linalg.eigvalsh(hessian_of_loss(name, cosine_loss, text))
    assert values(name, text, "lavp_cosine_max") == pytest.approx(spectrum[-1], rel=1e-4)
    assert values(name, text, "lavp_cosine_min") == pytest.approx(spectrum[0], abs=1e-4 * spectrum[-1])


@pytest.mark.sampled(4)
@pytest.mark.parametrize("text", ["gradient", "clip:0.5", "mask:0.3:1"])
@pytest.mark.parametrize("name", MODELS)
def test_l2_loss(name: str, text: str) -> None:
    spectrum = np.linalg.eigvalsh(hessian_of_loss(name, l2_loss, text))
    assert values(name, text, "lavp_l2_max") == pytest.approx(spectrum[-1], rel=1e-4)
    assert values(name, text, "lavp_l2_min") == pytest.approx(spectrum[0], abs=1e-4 * spectrum[-1])


@pytest.mark.parametrize("name", MODELS)
def test_whole_cosine_hessian(name: str) -> None:
    batch = cases.mnist(1, SIZES[name])
    arguments = (MODELS[name](), F.cross_entropy, batch.inputs[0], batch.targets[0])
    closed = oracles.cosine_hessian(oracles.jacobian(*arguments), oracles.released_mean(*arguments).detach().numpy())
    assert oracles.relative_difference(hessian_of_loss(name, cosine_loss), closed) < 1e-4


@pytest.mark.parametrize("name", MODELS)
def test_clipped_fisher_information_is_the_scaled_cosine_hessian(name: str) -> None:
    bound, sigma, batch = 0.5, 0.01, cases.mnist(1, SIZES[name])
    model = MODELS[name]()
    at = cases.linearise(model, batch, f"clip:{bound},gaussian:{sigma}")
    assert float(at.gradient_norm[0]) == pytest.approx(bound)
    d = at.dimension
    fisher = at.hessian.matmat(torch.eye(d).double()[None])[0].detach().numpy() / sigma**2
    arguments = (model, F.cross_entropy, batch.inputs[0], batch.targets[0])
    unclipped = oracles.released_mean(*arguments).detach().numpy()
    assert np.linalg.norm(unclipped) > bound
    cosine = oracles.cosine_hessian(oracles.jacobian(*arguments), unclipped)
    assert oracles.relative_difference(fisher, (bound / sigma) ** 2 * cosine) < 1e-10


@pytest.mark.parametrize("name", MODELS)
def test_shorter_than_the_bound_is_not_clipped(name: str) -> None:
    model, batch = MODELS[name](), cases.mnist(1, SIZES[name])
    plain = cases.linearise(model, batch, "gaussian:0.01")
    norm = float(plain.gradient_norm[0])
    loose = cases.linearise(model, batch, f"clip:{1.01 * norm},gaussian:0.01")
    assert torch.equal(loose.jacobian.mean(), plain.jacobian.mean())
    torch.testing.assert_close(loose.spectrum.values, plain.spectrum.values, rtol=1e-12, atol=0)
