"""How long a study will take, by a clock that counts evaluations of releases; and budgets, by a clock that is set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from study_cases import NOISE, digits, network
from torch import nn

import riskaudit.studies.budget as budget_module
from riskaudit.attacks import ATTACKS, Observation
from riskaudit.attacks.base import OutOfTimeError
from riskaudit.audit import AuditSettings
from riskaudit.audit.client import make_client
from riskaudit.errors import SettingsError
from riskaudit.formatting import duration
from riskaudit.results import AuditResult
from riskaudit.studies.attacking import Target, reconstruct
from riskaudit.studies.base import StudyRun
from riskaudit.studies.calibrate.run import calibrate
from riskaudit.studies.forecast import _attack_seconds, foretell, foretell_client
from riskaudit.studies.rows import Forecast
from riskaudit.studies.settings import AttackSettings
from riskaudit.studies.verify.record import VerifyStudy
from riskaudit.studies.verify.run import verify

QUICK = AttackSettings(("gauss-newton", "dlg"), steps=3, restarts=1)


class CountingClock:
    """A second passes with every evaluation of a release at guesses, and with every time that it is looked at."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, per_evaluation: float = 1.0, per_look: float = 0.0) -> None:
        self.now, self.evaluations, self._look = 0.0, 0, per_look
        original = Observation.at

        def at(observation: Observation, guess: torch.Tensor) -> object:
            self.evaluations += 1
            self.now += per_evaluation * len(guess)
            return original(observation, guess)

        monkeypatch.setattr(Observation, "at", at)

    def __call__(self) -> float:
        self.now += self._look
        return self.now


def study_of(result: AuditResult) -> VerifyStudy:
    return result.studies.get(VerifyStudy)


def budgeted(monkeypatch: pytest.MonkeyPatch, per_evaluation: float, per_look: float = 0.0) -> CountingClock:
    clock = CountingClock(monkeypatch, per_evaluation, per_look)
    monkeypatch.setattr(budget_module.time, "monotonic", clock)
    return clock


@pytest.mark.sampled(1)
@pytest.mark.parametrize("levels", [{0.0: 0.0}, {0.0: 0.0, NOISE: NOISE}], ids=["one level", "two levels"])
def test_foretold_steps_are_those_that_are_taken(
    monkeypatch: pytest.MonkeyPatch, levels: dict[float, float | None]
) -> None:
    clock = CountingClock(monkeypatch)
    client, settings = make_client(network(), digits(16), AuditSettings()), AttackSettings(("inverting-gradients",), 40)
    found = foretell_client(client, settings, levels, clock=clock)
    (attack,) = found.attacks
    # The start and 40 steps, for each of 16 samples.
    assert attack.most == attack.high == pytest.approx(41 * 16 * len(levels))
    assert 0 < attack.low < attack.high
    assert found.num_timed == 2
    clock.now = 0.0
    for std in levels.values():
        reconstruct(settings.attacks()["inverting-gradients"], Target.of(client, std, True), list(range(16)))
    assert attack.low <= clock.now <= attack.most


@pytest.mark.slow
def test_more_work_is_foretold_to_take_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = CountingClock(monkeypatch)
    client = make_client(network(), digits(8), AuditSettings())

    def most(**changes: int) -> Forecast:
        return foretell_client(client, AttackSettings(("gauss-newton",), **changes), {0.0: 0.0}, clock=clock)

    once, stubborn = most(restarts=1), most()
    assert once.most < stubborn.most
    assert once.high <= once.most
    assert most(steps=5).high < once.high
    assert stubborn.low <= stubborn.high < stubborn.most


def test_several_workers_share_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = CountingClock(monkeypatch)
    client = make_client(network(), digits(8), AuditSettings())
    alone, together = (foretell_client(client, QUICK, {0.0: 0.0}, workers=n, clock=clock) for n in (1, 4))
    assert [row.most for row in together.attacks] == [pytest.approx(row.most / 4) for row in alone.attacks]


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_says_how_much_work_it_is(name: str) -> None:
    attack = ATTACKS[name]()
    effort = attack.effort
    assert type(effort.probe) is type(attack)
    assert 0 < effort.low <= effort.high <= effort.most
    assert 0 < effort.done <= effort.most


@pytest.mark.parametrize("name", ["gauss-newton", "kept-entries"])
@pytest.mark.parametrize("noise", [None, NOISE])
def test_a_short_run_does_nothing_for_samples_that_get_stuck(
    monkeypatch: pytest.MonkeyPatch, name: str, noise: float | None
) -> None:
    clock = CountingClock(monkeypatch)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 10))
    target = Target.of(make_client(model, digits(2), AuditSettings()), noise, True)
    reconstruct(ATTACKS[name]().effort.probe, target, [0, 1])
    # The start, the step and where it leads, and whether that is explained.
    assert clock.evaluations <= 6


@pytest.mark.slow
def test_foretold_in_python() -> None:
    found = foretell(network(), digits(4), attacks=QUICK, noise_stds=[NOISE])
    assert [row.attack for row in found.attacks] == ["gauss-newton", "dlg"]
    assert 0 < found.low < found.high <= found.most
    announced: list[Forecast] = []
    result = verify(network(), digits(2), None, QUICK, StudyRun(announce=announced.append), noise_stds=[NOISE])
    assert announced == [study_of(result).foretold]
    assert study_of(verify(network(), digits(2), None, QUICK, noise_stds=[NOISE])).foretold is None


def test_an_attack_ends_at_its_deadline() -> None:
    client = make_client(network(), digits(2), AuditSettings())
    for name in ("gauss-newton", "inverting-gradients", "dlg", "local"):
        for looks in (0, 3):
            left = [False] * looks
            target = Target.of(client, None, True, lambda left=left: not left or left.pop())  # type: ignore[misc]
            with pytest.raises(OutOfTimeError):
                reconstruct(AttackSettings((name,)).attacks()[name], target, [0, 1])


def test_a_search_looks_at_the_clock_at_every_product() -> None:
    client, looks = make_client(network(), digits(1), AuditSettings()), []
    target = Target.of(client, None, True, lambda: bool(looks.append(1)))
    reconstruct(AttackSettings(("gauss-newton",), steps=1, restarts=1).attacks()["gauss-newton"], target, [0])
    # A step evaluates twice; that there are more are products.
    assert len(looks) > 5


@pytest.mark.slow
def test_attacks_that_do_not_fit_are_no_sign_of_safety(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    log = tmp_path / "trials.jsonl"
    clock = budgeted(monkeypatch, per_evaluation=1.0)
    whole = study_of(verify(network(), digits(2), None, QUICK, noise_stds=[NOISE]))
    needed = clock.now
    # The control and the first attack fit, the last evaluations of both samples don't.
    result = verify(
        network(), digits(2), AuditSettings(budget=needed - 4), QUICK, StudyRun(log=log), noise_stds=[NOISE]
    )
    study = study_of(result)
    assert (study.complete, study.stopped_by) == (False, "budget")
    assert study.control == whole.control
    assert result.settings.budget_seconds == needed - 4
    assert all(row.proxies["posterior_rmse"].assessed for row in result.samples)
    done, stopped = ([row for row in study.attacks if row.attack == name] for name in QUICK.names)
    assert [row.metrics for row in done] == [row.metrics for row in whole.attacks if row.attack == "gauss-newton"]
    assert {row.status for row in stopped} == {"stopped"}
    assert all(value is None for row in stopped for value in row.metrics.values())
    assert all(row.reason for row in stopped)
    assert {row.attack for row in study.agreement} == {"strongest", "gauss-newton"}
    assert [row.attack for row in study.timings] == ["gauss-newton"]
    assert AuditResult.from_json(result.to_json()) == result
    resumed = study_of(verify(network(), digits(2), None, QUICK, StudyRun(log=log, resume=True), noise_stds=[NOISE]))
    assert resumed.complete
    assert [(row.sample_id, row.metrics) for row in resumed.attacks] == [
        (row.sample_id, row.metrics) for row in whole.attacks
    ]


def test_a_budget_that_the_audit_uses_up_leaves_the_audit() -> None:
    result = verify(network(), digits(2), AuditSettings(budget=1e-6), QUICK, noise_stds=[NOISE, 0.0])
    study = study_of(result)
    assert study.control.status == "skipped"
    assert {row.status for row in study.attacks} == {"not_run"}
    assert len(study.attacks) == 2 * 2 * 2
    assert [row.status for row in result.samples] != ["failed"] * 2
    assert study.agreement == []


@pytest.mark.parametrize("run", [verify, calibrate])
def test_a_budget_is_for_one_worker(run: Callable[..., object]) -> None:
    with pytest.raises(SettingsError, match="workers"):
        run(network(), digits(19), AuditSettings(budget=5), QUICK, StudyRun(workers=2), noise_stds=[NOISE])


@pytest.mark.slow
def test_a_part_of_the_attacks_calibrates_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clock, log = budgeted(monkeypatch, per_evaluation=1.0), tmp_path / "trials.jsonl"
    settings, attacks = AuditSettings(), AttackSettings(("gauss-newton",), restarts=1)
    arguments = {"noise_stds": [NOISE], "coverage": 0.5}
    whole = calibrate(network(), digits(5), settings, attacks, **arguments)
    needed = clock.now
    with pytest.raises(SettingsError, match="resume"):
        calibrate(network(), digits(5), AuditSettings(budget=needed - 6), attacks, StudyRun(log=log), **arguments)
    assert '"trial": "control"' in log.read_text()
    resumed = calibrate(network(), digits(5), settings, attacks, StudyRun(log=log, resume=True), **arguments)
    assert [level.ratios for level in resumed.levels] == [level.ratios for level in whole.levels]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.456, "0.46 s"),
        (45.4, "45 s"),
        (89, "89 s"),
        (100, "1.7 min"),
        (3600, "60 min"),
        (36000, "10 h"),
        (1e6, "12 days"),
    ],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_a_budget_counts_what_came_before_the_study(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = budgeted(monkeypatch, per_evaluation=1.0)
    clock.now = 100.0
    settings, forecasts = AuditSettings(budget=90), list[Forecast]()
    late = StudyRun(started=0.0, announce=forecasts.append)
    study = study_of(verify(network(), digits(2), settings, QUICK, late, noise_stds=[NOISE]))
    assert {row.status for row in study.attacks} == {"not_run"}
    assert (study.stopped_by, study.foretold, forecasts) == ("budget", None, [])
    with pytest.raises(SettingsError, match="resume"):
        calibrate(network(), digits(5), settings, QUICK, late, noise_stds=[NOISE], coverage=0.5)
    clock.now = 100.0
    assert [StudyRun(started=start).budget(90).used_up for start in (0.0, 20.0, None)] == [True, False, False]


@pytest.mark.slow
def test_a_budget_ends_the_choice_of_hyper_parameters(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    budgeted(monkeypatch, per_evaluation=1.0)
    attacks = replace(QUICK, names=("inverting-gradients",), tune=True)
    run, others = StudyRun(log=tmp_path / "trials.jsonl"), digits(2, 2)
    arguments = {"noise_stds": [NOISE], "tuning_samples": others}
    study = study_of(verify(network(), digits(2), AuditSettings(budget=10), attacks, run, **arguments))
    assert (study.complete, study.stopped_by, study.control.status) == (False, "budget", "skipped")
    assert {row.status for row in study.attacks} == {"not_run"}
    assert any("chosen" in note for note in study.notes)
    again = replace(run, resume=True)
    assert study_of(verify(network(), digits(2), AuditSettings(), attacks, again, **arguments)).complete


def test_audits_of_a_calibration_end_with_its_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    budgeted(monkeypatch, per_evaluation=0.0)
    original = budget_module.time.monotonic

    def audited(*_: object, progress: Callable[[int, int], None], **__: object) -> object:
        original.now += 100.0
        progress(1, 5)
        raise AssertionError("the audit went on")

    monkeypatch.setattr("riskaudit.studies.calibrate.run.audit_client", audited)
    with pytest.raises(SettingsError, match="resume"):
        calibrate(network(), digits(5), AuditSettings(budget=50), QUICK, StudyRun(), noise_stds=[NOISE], coverage=0.5)


def test_what_gets_stuck_under_noise_takes_more_at_most() -> None:
    client = make_client(network(), digits(1), AuditSettings())
    attack, clock = AttackSettings(("gauss-newton",)).attacks()["gauss-newton"], iter([0.0, 1.0, 0.0, 1.0])
    seconds = {
        std: _attack_seconds(replace(attack, steps=2), Target.of(client, std, True), lambda: next(clock))
        for std in (0.0, NOISE)
    }
    assert seconds[0.0][:2] == seconds[NOISE][:2]
    assert seconds[NOISE][2] == pytest.approx(seconds[0.0][2] + 2 * seconds[0.0][1])
