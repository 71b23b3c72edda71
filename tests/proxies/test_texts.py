"""Every proxy of texts against dense float64 from transformers' own models and plain torch.func."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
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

VOCABULARY, FEW, LENGTH, SIGMA = 500, 40, 8, 0.01
KINDS = ("bert", "gpt2")


def rows_of(count: int) -> list[list[int]]:
    """Tokens of texts of `LENGTH` and of fewer, none of them padding."""
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randint(5, VOCABULARY, (count, LENGTH), generator=generator).tolist()
    return [row[: LENGTH - 3 * (number % 2)] for number, row in enumerate(drawn)]


@lru_cache
def subject(kind: str, vocabulary: int = VOCABULARY) -> tuple[Checkpoint, Samples]:
    checkpoint = load_checkpoint(text_cases.saved(kind, vocabulary=vocabulary))
    assert checkpoint.text is not None
    drawn = [[5 + number % (vocabulary - 5) for number in row] for row in rows_of(2)]
    tokens = checkpoint.text.of_numbers(drawn, "drawn")
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


@pytest.mark.sampled(2)
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


@lru_cache
def together(kind: str) -> AuditResult:
    return audit(*subject(kind, FEW), release=f"mean:2,gaussian:{SIGMA}", checks=False)


@pytest.mark.parametrize("kind", ["bert", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_texts_of_two_lengths_leave_together(kind: str) -> None:
    """The upload of both, from each text by itself: padding counts in no number, and in no mean."""
    checkpoint, samples = subject(kind, FEW)
    release = make_client(checkpoint, samples, AuditSettings(release="gradient", checks=False)).release
    network = text_oracles.doubled(text_cases.network_of(kind, FEW))
    rows = network.get_input_embeddings().weight.detach()
    parts, covariances = [], []
    for index, length in enumerate(samples.lengths):
        embedded = rows[samples.tokens.ids[index, :length]]
        parts.append(text_oracles.jacobian(network, embedded, samples.targets[index], release.context.shapes)[0] / 2)
        covariances.append(text_oracles.moments(rows, length)[1])
    J, sizes = np.concatenate(parts, 1), [len(each) for each in covariances]
    C = np.zeros((sum(sizes), sum(sizes)))
    C[: sizes[0], : sizes[0]], C[sizes[0] :, sizes[0] :] = covariances
    posterior = oracles.posterior_covariance(J, SIGMA, C)
    first = 0
    for row, own, covariance in zip(together(kind).samples, parts, covariances, strict=True):
        size = len(covariance)
        alone = oracles.posterior_covariance(own, SIGMA, covariance)
        block = posterior[first : first + size, first : first + size]
        for prefix, left in (("", block), ("informed_", alone)):
            error, revealed = row.proxies[f"{prefix}posterior_rmse"], row.proxies[f"{prefix}revealed_fraction"]
            assert error.value == pytest.approx(float(np.sqrt(np.trace(left) / size)), rel=1e-6)
            assert revealed.value == pytest.approx(1 - np.trace(left) / np.trace(covariance), rel=1e-6)
        assert row.concentration == 1.0
        assert len(row.positions) == size // text_cases.WIDTH
        assert row.proxies["token_recovery"].status == "not_applicable"
        assert row.proxies["informed_token_recovery"].assessed
        first += size


def test_tokens_of_texts_that_leave_together_are_told_from_the_mean() -> None:
    """Half the difference that a text by itself makes, under the same noise: as one by itself under twice the noise."""
    alone = audit(*subject("bert", FEW), release=f"gaussian:{2 * SIGMA}", checks=False)
    for one, other in zip(together("bert").samples, alone.samples, strict=True):
        assert one.proxies["informed_token_recovery"].value == pytest.approx(
            other.proxies["token_recovery"].value, abs=0.02
        )
        assert one.proxies["informed_token_recovery"].high == pytest.approx(
            other.proxies["token_recovery"].high, abs=0.02
        )


@pytest.mark.sampled(1)
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_of_an_upload_of_two_lengths_are_in_the_clear(kind: str) -> None:
    checkpoint, samples = subject(kind)
    short = [row[:3] for row in rows_of(2)]
    short[1] = short[1][:2]
    assert checkpoint.text is not None
    tokens = checkpoint.text.of_numbers(short, "drawn")
    result = audit(
        checkpoint, Samples(tokens.embedded(), samples.targets, ("0", "1"), tokens=tokens), release="mean:2",
        proxies=("gradient_norm",),
    )  # fmt: skip
    found = {finding.id: finding for finding in result.checks if finding.status == "leak"}
    for check, false in (("embedding-rows", "false_rows"), ("token-span", "false_tokens")):
        assert found[check].sample_ids == ["0", "1"]
        assert found[check].details[false] == 0
        assert found[check].details["vocabulary"] == VOCABULARY
