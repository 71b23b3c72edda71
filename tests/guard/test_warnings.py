"""A guard's decisions say what their numbers rest on, and let nothing out or in for it."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3

import pytest
import torch
from guard_cases import NOISE, gradient, guard_of, images, network

from riskaudit.guard import AuditLog, Policy


def biased(bias: float, right: int = 0):
    model = network()
    with torch.no_grad():
        model[-1].weight.mul_(0.01)
        model[-1].bias.zero_()[right] = bias
    return model


def decided(model, inputs, targets, **options):
    guard = guard_of(model, Policy(max_revealed=1.0), **options)
    return guard.review((inputs, targets), gradient(model, (inputs, targets), NOISE))


def test_losses_at_and_above_guessing_are_told_and_trained_ones_are_not(tmp_path) -> None:
    inputs, targets = images()[0], torch.zeros(6, dtype=torch.long)
    log = AuditLog(tmp_path / "l.jsonl", keys=tmp_path / "keys")
    untrained = decided(biased(0.0), inputs, targets, log=log)
    assert untrained.action == "allow"
    assert "guessing among 4 classes" in untrained.warnings[0]
    assert next(iter(log.entries()))["warnings"] == untrained.warnings
    assert decided(biased(5.0), inputs, targets).warnings == []
    assert decided(biased(20.0, right=1), inputs, targets).warnings[0].startswith("ALARM")


def test_samples_that_the_prior_hardly_allows_are_named() -> None:
    inputs, targets = images()[0], torch.zeros(6, dtype=torch.long)
    inputs[2] *= 30
    decision = decided(biased(5.0), inputs, targets)
    told = next(one for one in decision.warnings if "next to impossible" in one)
    assert decision.exposures[2].id in told
    assert decision.exposures[1].id not in told
    inputs[2] *= 10
    blocked = decided(biased(5.0), inputs, targets)
    assert (blocked.action, blocked.update) == ("block", None)
    assert "contradict the prior" in blocked.reasons[0]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("release", [None, NOISE], ids=["undefended", "some-noise"])
@pytest.mark.parametrize("sanitiser", [{"sanitiser": "noise"}, {"sanitiser": "clip", "clip_norm": 0.1}], ids=str)
def test_noise_that_leaves_nothing_of_the_update_is_told_and_less_is_not(release, sanitiser) -> None:
    model, batch = network(), images()
    clean = torch.cat([each.reshape(-1) for each in gradient(model, batch)])
    told = {}
    for limit in (1e-5, 0.9):
        policy = Policy(max_revealed=limit, on_violation="sanitise", **sanitiser)
        decision = guard_of(model, policy, release).review(batch, gradient(model, batch, release or 0.0))
        assert decision.allowed
        told[limit] = [one for one in decision.warnings if "the noise on this update has" in one]
        if limit == 1e-5 and "clip_norm" not in sanitiser:
            assert decision.noise_std > 10 * float(clean.square().mean().sqrt())
    assert len(told[1e-5]) == 1
    assert told[0.9] == []


@pytest.mark.parametrize("flaw", ["log", "row", "counter"])
@pytest.mark.parametrize("on_failure", ["block", "warn"])
def test_one_reason_is_told_once(tmp_path, flaw, on_failure) -> None:
    """A flaw of the ledger or the log is found by the review, and again when the decision is to be logged."""
    model, batch = network(), images()
    files = {"ledger": tmp_path / "l.db", "log": tmp_path / "l.jsonl", "keys": tmp_path / "keys"}
    guard = guard_of(model, Policy(max_revealed=0.999, on_failure=on_failure), **files)
    assert guard.review(batch, gradient(model, batch, NOISE), ids=range(6)).allowed
    if flaw == "log":
        (tmp_path / "l.jsonl").write_text("")
    elif flaw == "counter":
        shutil.rmtree(tmp_path / "keys")
    else:
        with contextlib.closing(sqlite3.connect(tmp_path / "l.db")) as database:
            database.execute("UPDATE samples SET summed = 0")
            database.commit()
    decision = guard.review(batch, gradient(model, batch, NOISE), ids=range(6))
    assert decision.action == "block"
    assert len(decision.reasons) == len(set(decision.reasons))
