"""What attackers know of defences on uploads: who guesses right finds no difference, upload by upload."""

from __future__ import annotations

import cases
import pytest
import torch
from contracts.attack import generator, observe_uploads, rmse
from joint_cases import network

from riskaudit.attacks import DeepLeakage, GaussNewton
from riskaudit.audit.client import make_client
from riskaudit.audit.settings import AuditSettings
from riskaudit.inputs import Samples
from riskaudit.studies.attacking import Target, matched_order

DROPOUT = "mean:2,dropout:0.5"
# DP-SGD without and with local steps, gradients pruned and clipped alone and together, whatever is drawn for each.
DEFENCES = [
    "clip:0.5",
    "prune:0.5",
    "clip:0.5,mean:2",
    "prune:0.5,mean:2",
    "soteria:80,mean:2",
    "mean:2,clip:0.1",
    "mean:2,prune:0.5",
    DROPOUT,
    "mean:1,dropout:0.3,secagg:2,dropout:0.3,share:2.*",
    "local:epochs=2:batch=2:lr=0.1,secagg:2,clip:0.1",
    "local:epochs=2:batch=1:lr=0.1,secagg:2,dropout:0.5",
]


@pytest.mark.parametrize("defence", DEFENCES)
def test_who_guesses_right_finds_no_difference_but_the_noise(defence: str) -> None:
    batch = cases.digits(4)
    samples = Samples.from_tensors(batch.inputs, batch.targets)
    client = make_client(network(), samples, AuditSettings(release=f"{defence},gaussian:1e-4"))
    observation = Target.of(client, None, labels_known=True).observe([0, 1, 2, 3])
    truth = batch.inputs.reshape(len(observation), -1)
    # Uploads that are attacked by several starts, in any order.
    rows = [len(observation) - 1, 0, 0]
    for seen, inputs in ((observation, truth), (observation.select(rows), truth[rows])):
        noise = seen.released - seen.at(inputs).mean().detach()
        assert 0.9e-4 < float(noise.square().mean().sqrt()) < 1.1e-4
        prior = seen.release.mean(seen.batch(torch.full_like(inputs, 0.5)))
        assert float((seen.released - prior).norm()) > 3 * float(noise.norm())


def test_every_upload_is_attacked_with_its_own_dropout() -> None:
    batch = cases.digits(4)
    observation = observe_uploads(network(), batch, DROPOUT)
    zeros = observation.released == 0
    assert not torch.equal(zeros[0], zeros[1])
    found = DeepLeakage(steps=100).run(observation, generator(1))
    errors = rmse(found.inputs[matched_order(found.inputs, batch.inputs, 2)], batch.inputs)
    assert float(errors.max()) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("defence", ["clip:0.5,mean:2,gaussian:1e-5", "local:epochs=2:batch=1:lr=0.1,secagg:2"])
def test_what_is_hidden_in_numbers_only_is_recovered(defence: str) -> None:
    batch = cases.digits(2)
    found = GaussNewton().run(observe_uploads(network(), batch, defence), generator(1))
    errors = rmse(found.inputs[matched_order(found.inputs, batch.inputs, 2)], batch.inputs)
    assert float(errors.max()) < 0.02
