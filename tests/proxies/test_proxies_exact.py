"""Every deterministic proxy, and the noise for a target, against dense float64 written from the theory."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import cases
import numpy as np
import oracles
import pytest
import torch
import torch.nn.functional as F

from riskaudit.inputs import load_checkpoint
from riskaudit.proxies import PROXIES
from riskaudit.release import Batch
from riskaudit.release.steps import StepContext
from riskaudit.release.steps.mask import Mask
from riskaudit.sensitivity.information import ExactInformation
from riskaudit.sensitivity.linearisation import NOISE_STREAM, sample_generator

FACTORY = """
import torch
from torch import nn

def build():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.GELU(), nn.Flatten(), nn.LayerNorm(128), nn.Linear(128, 10))
"""


@lru_cache
def _user_model(folder: Path) -> torch.nn.Module:
    """A model of the user's own, through a checkpoint and ``--arch file.py:factory``."""
    source = folder / "own_model.py"
    source.write_text(FACTORY)
    scope: dict[str, Callable[[], torch.nn.Module]] = {}
    exec(FACTORY, scope)
    torch.manual_seed(6)
    torch.save(scope["build"]().double().state_dict(), folder / "own.pt")
    return load_checkpoint(folder / "own.pt", arch=f"{source}:build").model


@pytest.fixture(scope="module")
def model_and_batch(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[torch.nn.Module, Batch]]:
    builders = {
        "lenet-full-size": lambda: (cases.lenet(), cases.mnist(1)),
        "lenet": lambda: (cases.lenet(12), cases.mnist(2, 12)),
        "mlp": lambda: (cases.mlp((108, 24, 10)), cases.cifar(2, 6)),
        "convbig": lambda: (cases.convbig(4), cases.cifar(1, 4)),
        "batch-norm": lambda: (cases.residual(), cases.mnist(2, 10)),
        "tied-weights": lambda: (cases.tied(), cases.mnist(2, 6)),
        "file-py-factory": lambda: (_user_model(tmp_path_factory.getbasetemp()), cases.cifar(2, 6)),
    }
    return lambda name: builders[name]()


def kept_by_mask(ratio: float, seed: int, num_entries: int) -> torch.Tensor:
    """Which entries survive: public knowledge, hence an input of the oracle."""
    context = StepContext({"": torch.Size([num_entries])}, torch.float64, torch.device("cpu"))
    return Mask(ratio, seed).bind(context)(torch.ones(num_entries).double())


# Text of the release, the same by the oracle for P entries, and the Fisher-equivalent std of its noise.
RELEASES: dict[str, tuple[str, Callable[[int], tuple[oracles.Change, ...]], float]] = {
    "gaussian": ("gradient,gaussian:0.01", lambda P: (), 0.01),
    "laplace": ("laplace:0.02", lambda P: (), 0.02),
    "clipped": ("clip:0.75,gaussian:0.003", lambda P: (oracles.clipped(0.75),), 0.003),
    "too-short-to-clip": ("clip:1000,gaussian:0.01", lambda P: (), 0.01),
    "pruned": ("prune:0.3,gaussian:0.01", lambda P: (oracles.pruned(0.3),), 0.01),
    "masked": ("mask:0.4:7,gaussian:0.01", lambda P: (oracles.masked(kept_by_mask(0.4, 7, P)),), 0.01),
    "masked-after-noise": ("gaussian:0.01,mask:0.4:3", lambda P: (oracles.masked(kept_by_mask(0.4, 3, P)),), 0.01),
    "pruned-clipped-masked-laplace": (
        "prune:0.2,clip:0.5,laplace:0.004,mask:0.25:1",
        lambda P: (oracles.pruned(0.2), oracles.clipped(0.5), oracles.masked(kept_by_mask(0.25, 1, P))),
        0.004,
    ),
    "clipped-then-pruned": (
        "clip:0.5,prune:0.2,gaussian:0.01",
        lambda P: (oracles.clipped(0.5), oracles.pruned(0.2)),
        0.01,
    ),
}
# Every release on one network, and on the others what is most unlike each other.
ALL = ("lenet", "mlp", "batch-norm", "tied-weights", "file-py-factory")
UNLIKE = ("gaussian", "laplace", "clipped-then-pruned", "pruned-clipped-masked-laplace")
PAIRS = [
    ("lenet-full-size", "gaussian"),
    *(("convbig", release) for release in ("gaussian", "clipped", "pruned")),
    *((model, release) for model in ALL for release in (RELEASES if model == "lenet" else UNLIKE)),
]


# These two take as long as all of the lenet's, which show the same of clipping and pruning.
SLOW = {("lenet-full-size", "gaussian"), *(("convbig", release) for release in ("gaussian", "clipped", "pruned"))}


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("model", "release"),
    [pytest.param(*pair, marks=[pytest.mark.slow] * (pair in SLOW), id="-".join(pair)) for pair in PAIRS],
)
def test_all_proxies_are_those_of_the_theory(model: str, release: str, model_and_batch) -> None:
    network, batch = model_and_batch(model)
    text, changes_for, sigma = RELEASES[release]
    at = cases.linearise(network, batch, text, seed=11)
    scores = {name: proxy.score(at) for name, proxy in PROXIES.items()}
    changes = changes_for(at.release.num_entries)
    for index, (x, target) in enumerate(zip(batch.inputs, batch.targets, strict=True)):
        J = oracles.jacobian(network, F.cross_entropy, x, target, changes)
        r = oracles.released_mean(network, F.cross_entropy, x, target, changes).detach().numpy()
        delta = at.release.sample_noise(sample_generator(11, index, NOISE_STREAM)).numpy()
        displacement = x.flatten().numpy() - cases.PRIOR.mean
        expected = oracles.proxies(J, r, delta, displacement, sigma, cases.PRIOR.std)
        assert set(expected) <= set(scores)
        for name, truth in expected.items():
            estimate = scores[name].estimates[index]
            assert estimate.status == "exact", name
            assert estimate.value == pytest.approx(truth, rel=1e-6), name
            assert (estimate.low, estimate.high) == (None, None), name


@pytest.mark.sampled(2)
@pytest.mark.parametrize("model", ["lenet", "mlp", "batch-norm", "file-py-factory"])
@pytest.mark.parametrize("target", [0.02, 0.1, 0.15, 0.29])
def test_noise_for_a_target_reaches_it(model: str, target: float, model_and_batch) -> None:
    network, batch = model_and_batch(model)
    at = cases.linearise(network, batch)
    for index, (x, label) in enumerate(zip(batch.inputs, batch.targets, strict=True)):
        J = oracles.jacobian(network, F.cross_entropy, x, label)
        outcome = ExactInformation(at.spectrum.values[index].numpy(), cases.PRIOR.std).noise_for(target)
        assert outcome.status == "exact"
        assert oracles.posterior_rmse(J.T @ J, outcome.std, cases.PRIOR.std) == pytest.approx(target, rel=1e-6)
        assert oracles.posterior_rmse(J.T @ J, 0.9 * outcome.std, cases.PRIOR.std) < target


def test_noise_for_a_target_beyond_the_prior_or_for_nothing() -> None:
    values = np.array([1.0, 2.0, 3.0])
    for target in (0.3, 0.4):
        outcome = ExactInformation(values, 0.3).noise_for(target)
        assert (outcome.std, outcome.status) == (None, "not_applicable")
    # One of four coordinates stays hidden whatever the noise: 0.3 sqrt(1/4) holds without any.
    assert ExactInformation(np.array([0.0, 1.0, 2.0, 3.0]), 0.3).noise_for(0.149).std == 0
    assert ExactInformation(np.array([0.0, 1.0, 2.0, 3.0]), 0.3).noise_for(0.151).std > 0
    assert ExactInformation(np.zeros(4), 0.3).noise_for(0.1).std == 0


def test_i2f_of_an_eigenvector_is_c_over_its_singular_value(model_and_batch) -> None:
    """docs/theory.md, I2F: delta = c u with u a left singular vector of singular value s gives c / (s sqrt(d))."""
    network, batch = model_and_batch("mlp")
    at = cases.linearise(network, batch.select([0]))
    J = oracles.jacobian(network, F.cross_entropy, batch.inputs[0], batch.targets[0])
    left, singular_values, _ = np.linalg.svd(J, full_matrices=False)
    for index in (0, 70, 107):
        at.pulled_noise = at.jacobian.rmatvec(torch.from_numpy(0.02 * left[:, index])[None])
        value = PROXIES["i2f"].score(at).estimates[0].value
        assert value == pytest.approx(0.02 / (singular_values[index] * math.sqrt(108)), rel=1e-8)


@pytest.mark.parametrize("name", list(PROXIES))
def test_every_proxy_describes_itself(name: str) -> None:
    info = PROXIES[name].info()
    assert info.id == name
    assert info.riskier in ("higher", "lower")
    assert all((info.title, info.units, info.source, info.summary))
    assert info.reason is None
