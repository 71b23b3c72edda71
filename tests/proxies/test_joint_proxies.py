"""Every proxy of joint uploads, for both attackers, against dense float64 written from the theory."""

from __future__ import annotations

from functools import lru_cache

import cases
import joint_oracles
import numpy as np
import pytest
import torch.nn.functional as F
from correlated_cases import moments
from joint_cases import CASES, SIGMA, prior_named

from riskaudit.jacobian.joint import joint_jacobian_maker
from riskaudit.proxies import PROXIES
from riskaudit.release import Batch, make_release
from riskaudit.sensitivity import Linearisation, Plan
from riskaudit.sensitivity.linearisation import NOISE_STREAM, sample_generator


def uploads_of(case: str) -> int:
    """Local training makes one upload of all samples."""
    return 2 if CASES[case][0].startswith(("mean", "clip")) else 1


def samples(uploads: int) -> Batch:
    return cases.digits(4 * uploads)


def linearise(case: str, prior: str, how: Plan | None = None) -> Linearisation:
    text, build, _ = CASES[case]
    release = make_release(build(), F.cross_entropy, f"{text},gaussian:{SIGMA}")
    data = samples(uploads_of(case))
    batch = data.in_uploads(release.uploads(len(data)))
    maker = joint_jacobian_maker(release, batch.select([0]))
    assert maker.kind == ("structured" if release.spec.training is None else "unrolled")
    return Linearisation(maker(batch), list(range(0, len(data), 4)), prior_named(prior), how or cases.plan(), 0)


@lru_cache
def truths(case: str, prior: str) -> list[joint_oracles.Truth]:
    text, build, released = CASES[case]
    release, model = make_release(build(), F.cross_entropy, f"{text},gaussian:{SIGMA}"), build()
    rows, data = [], samples(uploads_of(case))
    for number in range(uploads_of(case)):
        part = slice(4 * number, 4 * number + 4)
        x, targets = data.inputs[part], data.targets[part]
        J = joint_oracles.jacobian(released, model, x, targets)
        r = released(model, x, targets).detach().numpy()
        delta = release.sample_noise(sample_generator(0, 4 * number, NOISE_STREAM)).numpy()
        gaussians = [(np.full(64, 0.5), 0.09 * np.eye(64))] * 4
        if prior != "isotropic":
            gaussians = [moments(prior_named(prior), int(target)) for target in targets]
        means, covariances = zip(*gaussians, strict=True)
        displacement = x.flatten().numpy() - np.concatenate(means)
        rows.append(joint_oracles.truth(J, r, delta, displacement, SIGMA, covariances))
    return rows


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("case", "prior"),
    [
        # Local training under an isotropic prior, one of the priors that the others run with, is slow.
        pytest.param(case, prior, marks=[pytest.mark.slow] if uploads_of(case) == 1 and prior == "isotropic" else [])
        for case in CASES
        for prior in ("isotropic", "class")
    ],
)
def test_dense_is_the_theory(case: str, prior: str) -> None:
    at = linearise(case, prior)
    scores = {name: proxy.score(at) for name, proxy in PROXIES.items()}
    for number, expected in enumerate(truths(case, prior)):
        for sample, row in enumerate(expected.samples):
            for name, value in row.items():
                estimate = scores[name].for_samples(len(at)).estimates[4 * number + sample]
                assert estimate.status == "exact", (name, estimate)
                assert estimate.value == pytest.approx(value, rel=expected.tolerance(name)), name
        for name, value in expected.whole.items():
            found = scores[name].for_samples(len(at)).estimates[4 * number]
            if found.value is None:  # not to be told from 0
                assert found.high < 1e-9 * expected.whole["lavp_cosine_max"]
                continue
            assert found.value == pytest.approx(value, rel=expected.tolerance(name)), name


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("case", "prior", "max_matvecs"),
    [
        ("momentum of two steps", "isotropic", 8),
        ("momentum of two steps", "class", 8),
        *(
            pytest.param(case, prior, max_matvecs, marks=pytest.mark.slow)
            for case in ("mean of 4", "clip of the mean", "momentum", "batch norm in train mode")
            for prior in ("isotropic", "class")
            for max_matvecs in (1, 32)
        ),
    ],
)
def test_brackets_hold_the_truth(case: str, prior: str, max_matvecs: int) -> None:
    # A correlated prior's largest eigenvalue that isn't deflated widens intervals as much as fewer probes do, and there
    # are as many leading directions as probes: 4 leave some sample's out.
    num_probes = 8 if prior == "class" and max_matvecs == 32 else 4
    how = cases.plan(
        "lanczos", "quadrature", max_matvecs=max_matvecs, failure=1e-3, max_probes=num_probes, precision=0.2
    )
    at = linearise(case, prior, how)
    scores = {name: proxy.score(at).for_samples(len(at)) for name, proxy in PROXIES.items()}
    for number, expected in enumerate(truths(case, prior)):
        for sample, row in enumerate(expected.samples):
            for name, value in row.items():
                estimate = scores[name].estimates[4 * number + sample]
                assert estimate.status in ("bracketed", "not_converged"), name
                # Not converged says that one end at least is missing.
                assert estimate.status == "bracketed" or estimate.value is None, name
                assert estimate.low is None or estimate.low * (1 - 1e-9) <= value, (name, estimate, value)
                assert estimate.high is None or value <= estimate.high * (1 + 1e-9), (name, estimate, value)
            if max_matvecs > 1:
                for name in ("revealed_fraction", "informed_revealed_fraction"):
                    estimate = scores[name].estimates[4 * number + sample]
                    assert estimate.high - estimate.low < 0.98, (name, estimate)
    assert at.matvecs > 0
