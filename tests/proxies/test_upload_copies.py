"""Copies of one sample in an upload are one unknown to both attackers: every proxy against the dense, tied Jacobian."""

from __future__ import annotations

import cases
import joint_oracles
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from correlated_cases import moments
from joint_cases import CASES, SIGMA, prior_named

from riskaudit.jacobian.distinct import DistinctJacobian, of_distinct_inputs
from riskaudit.jacobian.joint import joint_jacobian_maker
from riskaudit.proxies import PROXIES
from riskaudit.proxies.base import ProxyScores
from riskaudit.release import Batch, make_release
from riskaudit.sensitivity import Linearisation, Plan
from riskaudit.sensitivity.linearisation import NOISE_STREAM, sample_generator
from riskaudit.sensitivity.success import success_of

# Which of two different inputs the samples of an upload of four are: three of the first, apart from each other.
PATTERN = [0, 1, 0, 0]


def upload(same_targets: bool = True) -> Batch:
    data = cases.digits(2)
    targets = data.targets[PATTERN].clone()
    if not same_targets:
        targets[2] = (targets[2] + 1) % 10
    return Batch(data.inputs[PATTERN], targets, 4, (0,))


def linearise(text: str, model: torch.nn.Module, batch: Batch, prior: str, how: Plan) -> Linearisation:
    release = make_release(model, F.cross_entropy, f"{text},gaussian:{SIGMA}")
    jacobian, owners = of_distinct_inputs(joint_jacobian_maker(release, batch)(batch))
    assert owners == PATTERN
    return Linearisation(jacobian, [0], prior_named(prior), how, 0)


def scores_of(at: Linearisation) -> dict[str, ProxyScores]:
    return {name: proxy.score(at).for_samples(len(at)) for name, proxy in PROXIES.items()}


def truth(case: str, prior: str, batch: Batch) -> joint_oracles.Truth:
    text, build, released = CASES[case]
    model = build()
    J = joint_oracles.jacobian(released, model, batch.inputs, batch.targets)
    tied = J @ np.kron(np.eye(2)[PATTERN], np.eye(64))
    r = released(model, batch.inputs, batch.targets).detach().numpy()
    release = make_release(model, F.cross_entropy, f"{text},gaussian:{SIGMA}")
    delta = release.sample_noise(sample_generator(0, 0, NOISE_STREAM)).numpy()
    gaussians = [(np.full(64, 0.5), 0.09 * np.eye(64))] * 2
    if prior != "isotropic":
        gaussians = [moments(prior_named(prior), int(target)) for target in batch.targets[:2]]
    means, covariances = zip(*gaussians, strict=True)
    displacement = batch.inputs[:2].flatten().numpy() - np.concatenate(means)
    return joint_oracles.truth(tied, r, delta, displacement, SIGMA, covariances)


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("case", "prior", "same_targets"),
    [
        ("mean of 4", "class", True),
        ("mean of 4", "isotropic", False),
        ("clip, then mean", "isotropic", True),
        ("batch norm in train mode", "isotropic", True),
        ("momentum of two steps", "class", False),
        pytest.param("momentum", "isotropic", True, marks=pytest.mark.slow),
        pytest.param("Adam", "class", True, marks=pytest.mark.slow),
        pytest.param("secure aggregation", "isotropic", True, marks=pytest.mark.slow),
    ],
)
def test_dense_is_the_tied_theory(case: str, prior: str, same_targets: bool) -> None:
    batch = upload(same_targets)
    scores = scores_of(linearise(CASES[case][0], CASES[case][1](), batch, prior, cases.plan()))
    expected = truth(case, prior, batch)
    for sample, row in enumerate(expected.samples):
        for name, value in row.items():
            estimate = scores[name].estimates[sample]
            assert estimate.status == "exact", (name, estimate)
            assert estimate.value == pytest.approx(value, rel=expected.tolerance(name)), name
    for name, value in expected.whole.items():
        found = scores[name].estimates[0].value
        assert found is None or found == pytest.approx(value, rel=expected.tolerance(name)), name


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("case", "prior", "max_matvecs"),
    [
        ("mean of 4", "isotropic", 24),
        ("momentum of two steps", "class", 24),
        pytest.param("clip of the mean", "isotropic", 24, marks=pytest.mark.slow),
        pytest.param("batch norm in train mode", "class", 24, marks=pytest.mark.slow),
    ],
)
def test_brackets_hold_the_tied_truth(case: str, prior: str, max_matvecs: int) -> None:
    how = cases.plan("lanczos", "quadrature", max_matvecs=max_matvecs, failure=1e-3, max_probes=4, precision=0.2)
    batch = upload(same_targets=case != "mean of 4")
    scores = scores_of(linearise(CASES[case][0], CASES[case][1](), batch, prior, how))
    for sample, row in enumerate(truth(case, prior, batch).samples):
        for name, value in row.items():
            estimate = scores[name].estimates[sample]
            assert estimate.low is None or estimate.low * (1 - 1e-9) <= value, (name, estimate, value)
            assert estimate.high is None or value <= estimate.high * (1 + 1e-9), (name, estimate, value)
        informed = scores["informed_revealed_fraction"].estimates[sample]
        assert informed.high - informed.low < 0.9


@pytest.mark.parametrize("text", ["mean:4", "local:epochs=1:batch=4:lr=1"])
def test_an_upload_of_copies_alone_is_one_sample(text: str) -> None:
    one = cases.digits(1)
    copies = Batch(one.inputs.expand(4, -1, -1, -1), one.targets.expand(4), 4, (0,))
    model = CASES["mean of 4"][1]()
    found, expected = [], []
    for numbers, description, batch in (
        (found, text, copies),
        (expected, "mean:1", Batch(one.inputs, one.targets, 1, (0,))),
    ):
        release = make_release(model, F.cross_entropy, f"{description},gaussian:{SIGMA}")
        jacobian, owners = of_distinct_inputs(joint_jacobian_maker(release, batch)(batch))
        assert owners == [0] * len(batch)
        at = Linearisation(jacobian, [0], prior_named("class"), cases.plan(), 0)
        numbers += [scores.estimates[0].value for scores in scores_of(at).values()]
        assert at.information is not None
        numbers.append(at.information[0].noise_for(0.2).std)
        numbers += [each.probability for each in success_of(at, 0, (0.1, 0.2))[0]]
    assert found == [None if value is None else pytest.approx(value, rel=1e-6) for value in expected]


def test_a_copied_sample_among_others_leaves_at_a_kth_of_the_noise() -> None:
    batch, model = upload(), CASES["mean of 4"][1]()
    at = linearise("mean:4", model, batch, "isotropic", cases.plan())
    release = make_release(model, F.cross_entropy, f"mean:1,gaussian:{SIGMA * 4 / 3}")
    one = Batch(batch.inputs[:1], batch.targets[:1], 1, (0,))
    alone = Linearisation(joint_jacobian_maker(release, one)(one), [0], prior_named("isotropic"), cases.plan(), 0)
    for name in ("informed_revealed_fraction", "informed_posterior_rmse"):
        found, expected = (PROXIES[name].score(each).estimates[0].value for each in (at, alone))
        assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("case", ["mean of 4", "clip, then mean", "batch norm in train mode", "momentum of two steps"])
def test_products_are_those_of_the_tied_matrix(case: str) -> None:
    text, build, released = CASES[case]
    batch, model = upload(same_targets=False), build()
    release = make_release(model, F.cross_entropy, text)
    jacobian, _ = of_distinct_inputs(joint_jacobian_maker(release, batch)(batch))
    assert isinstance(jacobian, DistinctJacobian)
    J = joint_oracles.jacobian(released, model, batch.inputs, batch.targets)
    tied = torch.from_numpy(J @ np.kron(np.eye(2)[PATTERN], np.eye(64)))
    torch.manual_seed(0)
    v, u = (torch.randn(1, size, 2, dtype=torch.float64) for size in tied.T.shape)
    torch.testing.assert_close(jacobian.matmat(v)[0], tied @ v[0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(jacobian.rmatmat(u)[0], tied.T @ u[0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(jacobian.gram_matmat(v)[0], tied.T @ tied @ v[0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(jacobian.select([0]).matmat(v)[0], tied @ v[0], rtol=1e-9, atol=1e-12)
    blocks = jacobian.by_sample()
    assert (blocks is None) == (case in ("batch norm in train mode", "momentum of two steps"))
    if blocks is not None:
        columns = v.reshape(2, 64, 2)
        own = tied.reshape(len(tied), 2, 64).movedim(1, 0)
        torch.testing.assert_close(blocks.matmat(columns), own @ columns, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(blocks.gram_matmat(columns), own.mT @ own @ columns, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(blocks.select([1]).gram_matmat(columns[1:]), own[1:].mT @ own[1:] @ columns[1:])
        assert float(blocks.smallest_eigenvalue_bound()[0]) == 0
