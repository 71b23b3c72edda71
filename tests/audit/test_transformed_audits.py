"""Audits of clients that train on transformed images: errors against T(x), and beside them against x."""

from __future__ import annotations

import math

import cases
import pytest
import torch
import torch.nn.functional as F
from contracts.attack import generator, observe, rmse

from riskaudit import audit
from riskaudit.attacks import InvertingGradients
from riskaudit.audit.client import make_client
from riskaudit.audit.settings import AuditSettings
from riskaudit.errors import SettingsError
from riskaudit.guard import Guard
from riskaudit.inputs import Samples
from riskaudit.policy import Policy
from riskaudit.release import Batch
from riskaudit.release.augmentation import transform
from riskaudit.release.grammar import ReleaseSpec
from riskaudit.results import AuditResult
from riskaudit.studies.attacking import Target, attack_rows, metrics_of, reconstruct

TEXT = "ats:7-4-15:1,gaussian:0.01"


def samples(inputs: torch.Tensor | None = None) -> Samples:
    batch = cases.mnist(2, 8)
    return Samples.from_tensors(batch.inputs if inputs is None else inputs, batch.targets)


def test_what_is_audited_is_what_the_client_trains_on() -> None:
    own = samples()
    transformation = ReleaseSpec.parse(TEXT).transformation
    assert transformation is not None
    changed = samples(transform(own.inputs, transformation))
    found = audit(cases.lenet(8), own, release=TEXT)
    expected = audit(cases.lenet(8), changed, release="gaussian:0.01")
    for row, other, x, y in zip(found.samples, expected.samples, own.inputs, changed.inputs, strict=True):
        assert row.proxies == other.proxies
        distance = float((x - y).square().mean().sqrt())
        assert row.transformation_rmse == pytest.approx(distance)
        error = row.proxies["posterior_rmse"].value
        assert row.original_rmse.value == pytest.approx(math.hypot(error, distance))
        assert (other.transformation_rmse, other.original_rmse) == (None, None)
    assert found.release.steps == ["ats", "gradient", "gaussian"]
    assert AuditResult.from_json(found.to_json()).samples == found.samples


def test_attacks_are_measured_against_both() -> None:
    client = make_client(cases.lenet(8), samples(), AuditSettings(release=TEXT))
    target, metrics = Target.of(client, None, labels_known=True), metrics_of(client, ("rmse",))
    attack = InvertingGradients(steps=3)
    reconstruction = reconstruct(attack, target, [0, 1])
    rows = attack_rows("own", attack, target, [0, 1], metrics, show=False)
    for truth, measured in (
        (client.samples.inputs, [row.metrics["rmse"] for row in rows]),
        (samples().inputs, [row.original_metrics["rmse"] for row in rows]),
    ):
        assert measured == pytest.approx(rmse(reconstruction.inputs, truth).tolist())


@pytest.mark.slow
def test_who_matches_the_transformed_image_recovers_it() -> None:
    """Balunovic et al., ICLR 2022, appendix A.2: cosine distance and TV 1e-5 against the transformed image."""
    own, transformation = cases.digits(2), ReleaseSpec.parse("ats:7-4-15:1").transformation
    assert transformation is not None
    changed = transform(own.inputs, transformation)
    observation = observe(cases.lenet(8), Batch(changed, own.targets))
    found = InvertingGradients(steps=400, total_variation=1e-5).run(observation, generator())
    assert float(rmse(found.inputs, changed).max()) < 0.02
    assert float(rmse(found.inputs, own.inputs).min()) > 0.2


def test_inputs_that_are_no_images_are_refused() -> None:
    flat = Samples.from_tensors(cases.mnist(2, 8).inputs.flatten(1), cases.mnist(2, 8).targets)
    with pytest.raises(SettingsError, match="expected images with values from 0 to 1"):
        audit(cases.mlp((64, 8, 10)), flat, release="ats:7")
    with pytest.raises(SettingsError, match="from -1 to 1"):
        audit(cases.lenet(8), samples(2 * (cases.mnist(2, 8).inputs > 0.5).double() - 1), release="ats:7")


def test_the_guard_is_handed_transformed_batches() -> None:
    with pytest.raises(SettingsError, match="leave it out of the release"):
        Guard(cases.lenet(8), F.cross_entropy, release=TEXT, policy=Policy(max_revealed=0.5), prior_std=0.3)
