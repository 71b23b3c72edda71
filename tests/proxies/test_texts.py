"""Every proxy of texts against dense float64 from transformers' own models and plain torch.func."""

from __future__ import annotations

from functools import lru_cache

import oracles
import pytest
import text_cases
import text_oracles
import torch

from riskaudit.audit.audit import audit
from riskaudit.audit.client import make_client
from riskaudit.audit.settings import AuditSettings
from riskaudit.inputs import Checkpoint, Samples, load_checkpoint
from riskaudit.results import AuditResult
from riskaudit.sensitivity.linearisation import NOISE_STREAM, sample_generator

VOCABULARY, LENGTH, SIGMA = 500, 8, 0.01
KINDS = ("bert", "gpt2")


def rows_of(count: int) -> list[list[int]]:
    """Tokens of texts of `LENGTH` and of fewer, none of them padding."""
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randint(5, VOCABULARY, (count, LENGTH), generator=generator).tolist()
    return [row[: LENGTH - 3 * (number % 2)] for number, row in enumerate(drawn)]


@lru_cache
def subject(kind: str) -> tuple[Checkpoint, Samples]:
    checkpoint = load_checkpoint(text_cases.saved(kind, vocabulary=VOCABULARY))
    assert checkpoint.text is not None
    tokens = checkpoint.text.of_numbers(rows_of(2), "drawn")
    samples = Samples(tokens.embedded(), torch.tensor([0, 2]), ("0", "1"), tokens=tokens)
    return checkpoint, samples


@lru_cache
def result(kind: str, release: str = f"gaussian:{SIGMA}") -> AuditResult:
    return audit(*subject(kind), release=release, checks=False)


@lru_cache
def truth(kind: str, index: int) -> dict[str, float]:
    checkpoint, samples = subject(kind)
    release = make_client(checkpoint, samples, AuditSettings(release=f"gaussian:{SIGMA}", checks=False)).release
    network = text_oracles.doubled(text_cases.network_of(kind, VOCABULARY))
    length = samples.lengths[index]
    embedded = network.get_input_embeddings().weight.detach()[samples.tokens.ids[index, :length]]
    J, r = text_oracles.jacobian(network, embedded, samples.targets[index], release.context.shapes)
    delta = release.sample_noise(sample_generator(0, index, NOISE_STREAM)).numpy()
    mean, C = text_oracles.moments(network.get_input_embeddings().weight.detach(), length)
    displacement = embedded.flatten().numpy() - mean
    everything = oracles.proxies(J, r, delta, displacement, SIGMA, 1.0)
    posterior = oracles.correlated_posterior(J, delta, displacement, SIGMA, C)
    return everything | posterior


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_every_proxy_is_that_of_the_model_itself(kind: str, index: int) -> None:
    row = result(kind).samples[index]
    assert row.status != "failed", row.reason
    compared = 0
    for name, expected in truth(kind, index).items():
        # Layer norm takes two directions of every embedded token away, so that errors without a prior have no end.
        if row.proxies[name].status == "exact":
            assert row.proxies[name].value == pytest.approx(expected, rel=1e-6), name
            compared += 1
    assert compared >= 8
    for name in ("posterior_rmse", "revealed_fraction", "map_rmse", "map_i2f", "gradient_norm", "lavp_l2_max"):
        assert row.proxies[name].status == "exact"


def test_errors_are_per_coordinate_of_real_positions() -> None:
    """Without information the error is the prior's std, whatever a text was padded to."""
    quiet = result("bert", "gaussian:1e6")
    for row in quiet.samples:
        assert row.proxies["posterior_rmse"].value == pytest.approx(quiet.prior.std, rel=1e-6)


def test_the_prior_is_the_vocabularys() -> None:
    _, samples = subject("bert")
    prior = result("bert").prior
    assert (prior.kind, prior.num_images) == ("vocabulary", VOCABULARY)
    rows = samples.tokens.vocabulary.double()
    assert prior.std == pytest.approx(float((rows - rows.mean(0)).square().mean().sqrt()), rel=1e-9)
