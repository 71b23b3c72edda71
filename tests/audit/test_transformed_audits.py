"""Audits of clients that train on transformed images: errors against T(x), and beside them against x."""

from __future__ import annotations

import cases
import pytest
import torch
import torch.nn.functional as F
from contracts.attack import generator, observe, rmse

from riskaudit import audit
from riskaudit.attacks import InvertingGradients
from riskaudit.audit.audit import audit_client
from riskaudit.audit.client import make_client
from riskaudit.audit.settings import AuditSettings
from riskaudit.audit.transformed import with_originals
from riskaudit.errors import SettingsError
from riskaudit.guard import Guard
from riskaudit.inputs import Samples
from riskaudit.policy import Policy
from riskaudit.release import Batch
from riskaudit.release.augmentation import transform
from riskaudit.release.grammar import ReleaseSpec
from riskaudit.results import AuditResult, Estimate, SampleRow
from riskaudit.studies.attacking import Target, attack_rows, metrics_of, reconstruct
from riskaudit.studies.verify.run import TuningTrial

ENDS = ((0.1, 0.2, "bracketed"), (0.3, 0.6, "bracketed"), (0.9, 1.0, "bracketed"), (0.1, 0.2, "not_converged"))
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
        assert row.original_rmse.ends == pytest.approx((abs(error - distance), error + distance))
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


def test_bounds_against_the_original_hold_for_every_error_in_the_interval() -> None:
    rows = [
        SampleRow(
            id="0", target=0, loss=1.0, status="bracketed", verdict="low",
            proxies={"posterior_rmse": Estimate(value=None, low=low, high=high, status=status)},
        )
        for low, high, status in ENDS
    ]  # fmt: skip
    zeros = Samples.from_tensors(torch.zeros(4, 1, 2, 2, dtype=torch.float64), torch.zeros(4))
    halves = Samples.from_tensors(torch.full((4, 1, 2, 2), 0.5, dtype=torch.float64), torch.zeros(4))
    found = [row.original_rmse for row in with_originals(rows, halves, zeros, "posterior_rmse")]
    assert [each.ends for each in found[:3]] == [pytest.approx(e) for e in ((0.3, 0.7), (0.0, 1.1), (0.4, 1.5))]
    assert (found[3].value, found[3].status) == (None, "not_converged")


def test_other_samples_are_taken_as_the_client_trains_on_them() -> None:
    client = make_client(cases.lenet(8), samples(), AuditSettings(release=TEXT))
    one = client.with_samples(client.samples.select([1]))
    assert audit_client(one).samples[0].transformation_rmse is None
    assert one.original_inputs([0]) is None
    # Attacks are tuned on other samples, which are transformed first.
    assert TuningTrial("tuning", InvertingGradients(steps=1), samples()).run(client) in range(6)


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
