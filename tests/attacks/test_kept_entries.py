"""The masked likelihood: what is matched where steps choose entries by the input that is looked for."""

from __future__ import annotations

from typing import Any

import cases
import pytest
import torch
import torch.nn.functional as F
from contracts.attack import AttackContract, generator, observe, observe_uploads, rmse
from contracts.linear_operator import normal
from joint_cases import network

from riskaudit.attacks import Attack, AttackNotApplicable, GaussNewton, KeptEntries
from riskaudit.attacks.kept_entries import observe_kept
from riskaudit.jacobian import GenericJacobian
from riskaudit.release import PerSampleRelease
from riskaudit.studies.attacking import matched_order


class TestKeptEntries(AttackContract):
    steps = 3

    def attack(self, **changes: Any) -> Attack:
        changes.pop("start", None)
        return KeptEntries(**{"rounds": 0, **changes})


@pytest.mark.parametrize("spec", ["prune:0.8", "soteria:80", "clip:0.5,prune:0.5,mask:0.2"])
def test_derivative_is_that_of_the_gradient_in_the_kept_entries(spec: str) -> None:
    model, batch = network(), cases.digits(3)
    observation = observe_kept(observe(model, batch, spec))
    jacobian, kept = observation.at(batch.inputs), observation.released != 0
    assert 0 < int(kept.sum()) < kept.numel()
    # At the truth nothing is left, in whatever order uploads come.
    for seen, inputs in ((observation, batch.inputs), (observation.select([2, 0, 2]), batch.inputs[[2, 0, 2]])):
        torch.testing.assert_close(seen.at(inputs).mean().detach(), seen.released, rtol=1e-12, atol=1e-15)
    bare = PerSampleRelease(model, F.cross_entropy, "clip:0.5" if spec.startswith("clip") else "gradient")
    plain, v, u = GenericJacobian(bare, batch), normal(3, 64), normal(3, kept.shape[1], seed=1)
    expected = torch.where(kept, plain.matvec(v).detach(), 0.0)
    torch.testing.assert_close(jacobian.matvec(v), expected, rtol=1e-9, atol=1e-12)
    pulled = plain.rmatvec(torch.where(kept, u, 0.0)).detach()
    torch.testing.assert_close(jacobian.rmatvec(u), pulled, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("spec", ["prune:0.9", "soteria:80"])
def test_samples_are_recovered_from_the_entries_that_are_left(spec: str) -> None:
    batch = cases.digits(2)
    found = KeptEntries(restarts=1).run(observe(network(), batch, spec), generator())
    assert float(rmse(found.inputs, batch.inputs).max()) < 1e-3


@pytest.mark.slow
def test_so_are_those_of_a_pruned_upload() -> None:
    batch = cases.digits(4)
    found = KeptEntries().run(observe_uploads(network(), batch, "mean:2,prune:0.5"), generator(1))
    errors = rmse(found.inputs[matched_order(found.inputs, batch.inputs, 2)], batch.inputs)
    assert float(errors.max()) < 1e-2


def test_without_such_steps_it_is_gauss_newton() -> None:
    observation = observe(network(), cases.digits(1), "clip:0.5,gaussian:0.01")
    assert observe_kept(observation) is observation
    found, expected = (
        attack.run(observation, generator()) for attack in (KeptEntries(restarts=1), GaussNewton(restarts=1))
    )
    assert torch.equal(found.inputs, expected.inputs)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("prune:0.5,gaussian:0.01", "the noise hides which entries were kept"),
        ("prune:0.5,clip:0.1", "'clip:0.1' hides which entries"),
    ],
)
def test_where_the_choice_is_hidden_it_says_so(spec: str, words: str) -> None:
    with pytest.raises(AttackNotApplicable, match=words):
        KeptEntries().run(observe(network(), cases.digits(1), spec), generator())
    with pytest.raises(AttackNotApplicable, match="'mean:2' hides which entries"):
        observe_kept(observe_uploads(network(), cases.digits(2), "prune:0.5,mean:2"))
