"""The verify study: its contract, what it says of attacks that work, and what it says of attacks that don't."""

from __future__ import annotations

import gc
import json
import math
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from study_cases import NOISE, digits, network

import riskaudit.studies.attacking as module
from riskaudit.attacks import GaussNewton, Observation
from riskaudit.audit import AuditSettings
from riskaudit.audit.audit import audit
from riskaudit.audit.client import make_client
from riskaudit.engine import Journal, SerialEngine
from riskaudit.errors import SettingsError
from riskaudit.results import AuditResult
from riskaudit.studies.attacking import Target, attack_rows
from riskaudit.studies.base import StudyRun
from riskaudit.studies.control import control
from riskaudit.studies.settings import AttackSettings
from riskaudit.studies.verify.record import VerifyStudy
from riskaudit.studies.verify.run import predictions_of, split_for_tuning, tuned, verify


def study_of(result: AuditResult) -> VerifyStudy:
    return result.studies.get(VerifyStudy)


def test_contract_keys(verified: AuditResult) -> None:
    document = json.loads(verified.to_json())["studies"]["verify"]
    assert {"status", "rmse"} <= set(document["control"])
    row = document["attacks"][0]
    assert {
        "attack", "sample_id", "noise_std", "oracle_start", "label_known", "status", "metrics", "objective", "steps",
        "seconds",
    } <= set(row)  # fmt: skip
    assert {"rmse", "psnr", "ssim", "lpips"} <= set(row["metrics"])
    assert {
        "noise_std", "attack", "metric", "proxy", "num_samples", "spearman", "low", "high", "tightness_median",
        "validity", "coverage",
    } <= set(document["agreement"][0])  # fmt: skip
    # 6 samples x 3 attacks x 2 noise levels.
    assert len(document["attacks"]) == 36
    assert AuditResult.from_json(verified.to_json()) == verified


def test_control_passes_and_the_audit_is_that_of_the_first_noise(verified: AuditResult) -> None:
    study = study_of(verified)
    assert study.control.status == "passed"
    assert study.control.rmse is not None
    assert study.control.rmse < 0.01
    assert verified.release.noise is not None
    assert verified.release.noise.std == NOISE
    assert study.complete


def test_attack_comes_out_as_predicted(verified: AuditResult) -> None:
    study = study_of(verified)
    predicted = {one.sample_id: one.proxies["map_i2f"].value for one in study.predictions if one.noise_std == NOISE}
    found = {
        row.sample_id: row.metrics["rmse"]
        for row in study.attacks
        if row.attack == "gauss-newton" and row.noise_std == NOISE
    }
    ratios = [found[name] / predicted[name] for name in found]  # type: ignore[operator]
    assert 0.9 < float(np.median(ratios)) < 1.1, ratios
    (row,) = [
        row
        for row in study.agreement
        if (row.noise_std, row.attack, row.metric, row.proxy) == (NOISE, "gauss-newton", "rmse", "map_i2f")
    ]
    assert row.tightness_median == pytest.approx(float(np.median(ratios)))
    assert row.num_samples == 6


def test_predictions_are_the_audits_own(verified: AuditResult) -> None:
    again = audit(network(), digits(6), AuditSettings(release=f"gradient,gaussian:{NOISE}"))
    by_id = {one.sample_id: one for one in study_of(verified).predictions if one.noise_std == NOISE}
    for row in again.samples:
        assert by_id[row.id].proxies["map_rmse"] == row.proxies["map_rmse"]


def test_undefended_is_inverted(verified: AuditResult) -> None:
    rows = [row for row in study_of(verified).attacks if row.noise_std == 0 and row.attack == "gauss-newton"]
    errors = [row.metrics["rmse"] for row in rows]
    assert max(error for error in errors if error is not None) < 1e-4


def test_the_observation_carries_the_noise_of_the_prediction_and_no_input() -> None:
    client = make_client(network(), digits(3), AuditSettings(release=f"gradient,gaussian:{NOISE}"))
    target = Target.of(client, None, labels_known=True)
    one, other = target.observe([0, 1, 2]), target.observe([2, 1])
    assert torch.equal(one.released[2], other.released[0])
    noise = one.released - target.jacobian(client.batch([0, 1, 2])).mean()
    assert float(noise.std()) == pytest.approx(NOISE, rel=0.05)
    inputs = client.samples.inputs
    for name in Observation.__dataclass_fields__:
        value = getattr(one, name)
        assert not isinstance(value, torch.Tensor) or value.shape[1:] != inputs.shape[1:]


def test_no_reconstruction_is_shown_unasked(verified: AuditResult) -> None:
    assert all(row.image_png is None for row in study_of(verified).attacks)
    assert all(row.image_png is None for row in verified.samples)


def test_weak_attacks_fail_the_control() -> None:
    found = control({"gauss-newton": GaussNewton(steps=1, restarts=1, products=1, stages=0)}, AuditSettings())
    assert found.status == "failed"
    assert found.rmse is not None
    assert found.rmse > 0.05
    oracle = AttackSettings(("local",)).attacks()
    assert control(oracle, AuditSettings()).status == "skipped"


def test_an_attack_that_does_not_apply_says_why() -> None:
    result = verify(network(), digits(2), AuditSettings(), AttackSettings(("analytic",)), noise_stds=[NOISE])
    rows = study_of(result).attacks
    assert {row.status for row in rows} == {"not_applicable"}
    assert all(row.reason for row in rows)
    assert study_of(result).control.status == "skipped"


def test_samples_that_are_not_finite_are_left_out() -> None:
    class Explosive(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            exploded = torch.where(x.flatten(1).amax(1) > 1.5, torch.inf, 1.0)
            return self.inner(x) * exploded[:, None].to(x)

    samples = digits(3)
    inputs = samples.inputs.clone()
    inputs[1, 0, 0, 0] = 2.0
    samples = replace(samples, inputs=inputs)
    result = verify(Explosive(), samples, AuditSettings(), AttackSettings(("dlg",), steps=2), noise_stds=[NOISE])
    assert result.samples[1].status == "failed"
    assert [row.sample_id for row in study_of(result).attacks] == [samples.ids[0], samples.ids[2]]


@pytest.mark.slow
def test_interrupted_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "out.trials.jsonl"
    arguments = (network(), digits(4), AuditSettings(), AttackSettings(("gauss-newton", "local"), steps=4))
    whole = verify(*arguments, noise_stds=[NOISE, 0.01])
    calls = 0

    def interrupted(*given: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return attack_rows(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "attack_rows", interrupted)
    half = study_of(verify(*arguments, StudyRun(log=log), noise_stds=[NOISE, 0.01]))
    assert not half.complete
    assert len(half.attacks) == 8
    monkeypatch.setattr(module, "attack_rows", _counting := _Counting())
    again = study_of(verify(*arguments, StudyRun(log=log, resume=True), noise_stds=[NOISE, 0.01]))
    assert _counting.calls == 2
    assert again.complete
    for one, other in zip(again.attacks, study_of(whole).attacks, strict=True):
        assert one.metrics == other.metrics
        assert one.objective == other.objective


class _Counting:
    calls = 0

    def __call__(self, *given: object) -> object:
        self.calls += 1
        return attack_rows(*given)  # type: ignore[arg-type]


def test_a_log_of_other_settings_is_refused(tmp_path: Path) -> None:
    log = tmp_path / "trials.jsonl"
    settings = AttackSettings(("local",), steps=1)
    verify(network(), digits(2), AuditSettings(), settings, StudyRun(log=log), noise_stds=[NOISE])
    for model, samples, audit_settings, attacks in (
        (network(1), digits(2), AuditSettings(), settings),
        (network(), digits(2, first=1), AuditSettings(), settings),
        (network(), digits(2), AuditSettings(seed=1), settings),
        (network(), digits(2), AuditSettings(), AttackSettings(("local",), steps=2)),
    ):
        with pytest.raises(SettingsError, match="another study"):
            verify(model, samples, audit_settings, attacks, StudyRun(log=log, resume=True), noise_stds=[NOISE])


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"names": ()}, "at least one"), ({"names": ("dgl",)}, "dlg"), ({"steps": 0}, "steps"),
     ({"restarts": -1}, "restarts")],
)  # fmt: skip
def test_attack_settings_are_checked(settings: dict[str, object], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        AttackSettings(**settings)  # type: ignore[arg-type]


def test_noise_levels_are_checked() -> None:
    with pytest.raises(SettingsError, match="noise_stds"):
        verify(network(), digits(2), AuditSettings(), noise_stds=[-1.0])


@pytest.mark.slow
def test_tuning_uses_other_samples_and_keeps_the_best(tmp_path: Path) -> None:
    samples = digits(5)
    reported, others = split_for_tuning(samples, 2)
    assert set(reported.ids).isdisjoint(others.ids)
    with pytest.raises(SettingsError, match="limit"):
        split_for_tuning(samples, 5)
    client = make_client(network(), reported, AuditSettings(release=f"gradient,gaussian:{NOISE}"))
    attacks = AttackSettings(("inverting-gradients",), steps=30).attacks()
    journal = Journal(None, "tuning")
    chosen = tuned(attacks, client, others, SerialEngine(), journal)["inverting-gradients"]
    grid = type(chosen).grid
    errors = []
    target = Target.of(replace(client, samples=others), None, labels_known=True)
    from riskaudit.studies.attacking import reconstruct
    from riskaudit.studies.settings import with_fields

    truth = target.client.batch([0, 1, 2]).inputs
    for candidate in grid:
        found = reconstruct(with_fields(attacks["inverting-gradients"], dict(candidate)), target, [0, 1, 2])
        errors.append(float((found.inputs - truth).flatten(1).square().mean(1).sqrt().mean()))
    assert with_fields(attacks["inverting-gradients"], dict(grid[int(np.argmin(errors))])) == chosen
    with pytest.raises(SettingsError, match="beyond"):
        tuned(attacks, client, None, SerialEngine(), journal)


def test_input_range_is_known_of_images_alone() -> None:
    client = make_client(network(), digits(2), AuditSettings())
    assert client.input_range == (0.0, 1.0)
    assert replace(client, samples=replace(client.samples, are_images=False)).input_range is None


# What recovers them is tested every time: `tests/attacks`.
@pytest.mark.slow
def test_labels_can_be_recovered() -> None:
    attacks = AttackSettings(("gauss-newton",), steps=3, labels_known=False)
    study = study_of(verify(network(), digits(4), AuditSettings(), attacks, noise_stds=[0.0]))
    assert not study.knowledge.labels_known
    assert [row.recovered_label for row in study.attacks] == digits(4).targets.tolist()
    assert not any(math.isnan(row.seconds) for row in study.attacks)


def test_metrics_are_made_once_and_keep_no_client() -> None:
    client = make_client(network(), digits(2), AuditSettings())
    metrics = module.metrics_of(client, ("rmse",))
    assert module.metrics_of(client, ("rmse",)) is metrics
    gone = weakref.ref(client)
    del client, metrics
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("attacker", ["informed", "outsider"])
def test_what_an_informed_attacker_foresees_is_not_held_against_attacks(attacker: str) -> None:
    settings = AuditSettings(release=f"mean:2,gaussian:{NOISE}", attacker=attacker)
    result = audit(network(), digits(2), settings)
    assert all(row.predicted_rmse is not None and row.success_probability for row in result.samples)
    for row in predictions_of(result, NOISE):
        assert ("predicted_rmse" in row.proxies) is (attacker == "outsider")
        assert bool(row.success_probability) is (attacker == "outsider")
        assert {"map_rmse", "posterior_rmse", "informed_posterior_rmse"} <= set(row.proxies)
