"""How far an attack goes with each sample: by its own objective, and by what it makes of the sample without noise."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from study_cases import NOISE, digits, network

import riskaudit.studies.attacking as module
from riskaudit.attacks import GaussNewton, Reconstruction, plausibility
from riskaudit.audit import AuditSettings
from riskaudit.audit.client import make_client
from riskaudit.results import AuditResult
from riskaudit.studies.attacking import Target, attack_rows, metrics_of, search
from riskaudit.studies.calibrate.run import CalibrationStudy
from riskaudit.studies.settings import AttackSettings
from riskaudit.studies.verify.record import VerifyStudy

FIRST, WHOLE = 1, GaussNewton().restarts


@dataclass
class Runs:
    """Stands in for attacks: whom they invert, by starts and noise, and which of them were run."""

    inverted: dict[tuple[int, float], set[int]]
    calls: list[tuple[int, float, list[int]]]

    def __call__(self, attack: GaussNewton, target: Target, indices: list[int]) -> Reconstruction:
        key = (attack.restarts, target.noise_std)
        self.calls.append((*key, indices))
        batch = target.client.batch(indices)
        hit = torch.tensor([index in self.inverted[key] for index in indices])
        inputs = torch.where(hit[:, None, None, None], batch.inputs, 0.5)
        uploads = hit.reshape(-1, target.client.upload_size).all(1)
        states = tuple("converged" if one else "not_converged" for one in uploads.tolist())
        objective, steps = (~uploads).double() + 1 / attack.restarts, torch.full(uploads.shape, attack.restarts)
        return Reconstruction(inputs, objective, states, steps, attack.restarts, 1.0, batch.targets)


@pytest.fixture
def target(monkeypatch: pytest.MonkeyPatch) -> Target:
    """Of four samples; whatever the noise, the truth is at its floor."""
    monkeypatch.setattr(plausibility, "FLOOR_DEVIATIONS", 10.0)
    client = make_client(network(), digits(4), AuditSettings(release=f"gaussian:{NOISE}"))
    return Target.of(client, None, labels_known=True)


def runs(monkeypatch: pytest.MonkeyPatch, **inverted: set[int]) -> Runs:
    keys = {"first": (FIRST, NOISE), "whole": (WHOLE, NOISE), "bare_first": (FIRST, 0.0), "bare": (WHOLE, 0.0)}
    made = Runs({keys[name]: samples for name, samples in inverted.items()}, [])
    monkeypatch.setattr(module, "reconstruct", made)
    return made


def test_only_what_is_inverted_without_noise_is_searched_further(monkeypatch, target: Target) -> None:
    made = runs(monkeypatch, first={0}, bare_first={0, 1, 2}, whole={1, 3})
    found = search(GaussNewton(), target, [0, 1, 2, 3], "adaptive")
    assert made.calls == [(FIRST, NOISE, [0, 1, 2, 3]), (FIRST, 0.0, [1, 2, 3]), (WHOLE, NOISE, [1, 2])]
    assert found.ended_by == ["noise_floor", "noise_floor", None, "control"]
    assert found.restarts == [FIRST, WHOLE, WHOLE, FIRST]
    truth = target.client.samples.inputs
    same = [torch.equal(guess, own) for guess, own in zip(found.reconstruction.inputs, truth, strict=True)]
    assert same == [True, True, False, False]
    assert found.reconstruction.steps.tolist() == [FIRST, WHOLE, WHOLE, FIRST]
    assert found.reconstruction.status == ("converged", "converged", "not_converged", "not_converged")
    rows = attack_rows("gauss-newton", GaussNewton(), target, [0, 1, 2, 3], metrics_of(target.client, ("rmse",)), False)
    assert [(row.restarts, row.ended_by) for row in rows] == list(zip(found.restarts, found.ended_by, strict=True))


def test_nothing_more_is_run_where_nothing_is_stuck_or_nothing_leads_on(monkeypatch, target: Target) -> None:
    made = runs(monkeypatch, first={0, 1})
    assert search(GaussNewton(), target, [0, 1], "adaptive").ended_by == ["noise_floor"] * 2
    assert len(made.calls) == 1
    made = runs(monkeypatch, first=set(), bare_first=set())
    assert search(GaussNewton(), target, [0, 1], "adaptive").ended_by == ["control"] * 2
    assert len(made.calls) == 2


def test_full_effort_and_undefended_samples_ask_no_control(monkeypatch, target: Target) -> None:
    made = runs(monkeypatch, whole={0}, bare={1})
    assert search(GaussNewton(), target, [0, 1], "full").ended_by == ["noise_floor", None]
    undefended = Target.of(target.client, 0.0, labels_known=True)
    assert search(GaussNewton(), undefended, [0, 1], "adaptive").ended_by == [None, "noise_floor"]
    assert made.calls == [(WHOLE, NOISE, [0, 1]), (WHOLE, 0.0, [0, 1])]


@pytest.mark.parametrize(("asked", "effort"), [(None, "full"), ("adaptive", "adaptive")])
def test_calibration_searches_as_far_as_it_can(target: Target, asked, effort) -> None:
    """A weak attack would pass for safety in its factors."""
    study = CalibrationStudy(AttackSettings(effort=asked), {NOISE: None}, {}, 0.9, None)
    assert {trial.effort for trial in study.trials(target.client)} == {effort}


def test_an_upload_is_inverted_whole_or_not(monkeypatch, target: Target) -> None:
    release = f"mean:2,gaussian:{NOISE}"
    joint = Target.of(make_client(network(), digits(4), AuditSettings(release=release)), None, labels_known=True)
    made = runs(monkeypatch, first=set(), bare_first={0, 2, 3}, whole={2, 3})
    found = search(GaussNewton(), joint, [0, 1, 2, 3], "adaptive")
    assert made.calls[1:] == [(FIRST, 0.0, [0, 1, 2, 3]), (WHOLE, NOISE, [2, 3])]
    assert found.ended_by == ["control", "noise_floor"]
    assert torch.equal(found.reconstruction.inputs[2:], joint.client.samples.inputs[2:])


def test_another_run_counts_where_its_objective_is_smaller() -> None:
    def made(value: float, objective: list[float]) -> Reconstruction:
        count = len(objective)
        inputs, steps = torch.full((count, 1), value), torch.full((count,), int(value))
        states = ("converged",) * count
        return Reconstruction(inputs, torch.tensor(objective), states, steps, 1, 1.0, steps)

    found = made(1.0, [3.0, 2.0, 1.0]).improved_by(replace(made(5.0, [2.5, float("nan")]), restarts=4), [2, 1])
    assert found.inputs[:, 0].tolist() == [1, 1, 1]
    better = made(1.0, [3.0, 2.0, 1.0]).improved_by(replace(made(5.0, [0.5, 1.0]), restarts=4), [2, 0])
    assert better.inputs[:, 0].tolist() == [5, 1, 5]
    assert better.objective.tolist() == [1.0, 2.0, 0.5]
    assert (better.restarts, better.seconds, better.steps.tolist()) == (4, 2.0, [5, 1, 5])


@pytest.mark.slow
def test_rows_of_a_study_say_why_searches_ended(verified: AuditResult) -> None:
    record = verified.studies.get(VerifyStudy)
    assert record is not None
    newton = [row for row in record.attacks if row.attack == "gauss-newton"]
    assert {row.ended_by for row in newton} <= {"noise_floor", "control", None}
    assert [row.restarts for row in newton if row.noise_std == NOISE and row.ended_by == "noise_floor"]
    # Begun at the truth, or with one start: there was no further one to leave out.
    assert all(row.ended_by != "control" for row in record.attacks if row.attack != "gauss-newton")
