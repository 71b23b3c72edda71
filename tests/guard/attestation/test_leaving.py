"""The guard attests what leaves: its log says so, and what isn't as declared is withheld."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from guard_cases import NOISE, gradient, guard_of, images, network

from riskaudit.guard import AuditLog, Policy
from riskaudit.guard import update_review as reviewing
from riskaudit.guard.attestation.leaving import attest_leaving

LOOSE = Policy(max_revealed=0.9999)
SANITISE = Policy(max_revealed=0.05, on_violation="sanitise")


def outcomes(entry) -> dict[str, str]:
    return {test["id"]: test["status"] for test in entry["attestation"]["tests"]}


def test_what_leaves_unchanged_is_attested(tmp_path) -> None:
    model, batch = network(), images()
    guard = guard_of(model, LOOSE, log=tmp_path / "log", keys=tmp_path / "keys")
    decision = guard.review(batch, gradient(model, batch, NOISE))
    assert decision.action == "allow"
    (entry,) = AuditLog(tmp_path / "log", keys=tmp_path / "keys").entries()
    assert entry["attestation"] == decision.attestation
    assert entry["attestation"]["outcome"] == "as_declared"
    assert {"residual-size", "residual-law", "finite", "shapes"} <= set(outcomes(entry))
    rates = {test["id"]: (test["false_alarm"], test["power"]) for test in entry["attestation"]["tests"]}
    assert rates["residual-size"][0] < 1e-8
    assert rates["residual-size"][1] > 0.99
    assert entry["attestation"]["findings"] == ["noise-without-clip"]


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("dtype", "sanitiser", "noise"),
    [
        (torch.float32, "noise", None),
        (torch.float64, "clip", None),
        (torch.float32, "clip", NOISE),
        (torch.bfloat16, "noise", NOISE),
    ],
    ids=str,
)
def test_what_sanitising_makes_is_attested_as_it_leaves(dtype, sanitiser, noise) -> None:
    model, batch = network(), images()
    policy = replace(SANITISE, sanitiser=sanitiser, clip_norm=0.5 if sanitiser == "clip" else None)
    update = [value.to(dtype) for value in gradient(model, batch, noise or 0.0)]
    decision = guard_of(model, policy, noise).review(batch, update)
    assert decision.action == "sanitise"
    assert decision.attestation["outcome"] == "as_declared"
    statuses = {test["id"]: test["status"] for test in decision.attestation["tests"]}
    assert statuses["residual-size"] == "as_declared"
    assert ("clean-norm" in statuses) == (sanitiser == "clip")


def test_a_sanitiser_that_adds_less_noise_than_it_says_is_noticed(monkeypatch) -> None:
    model, batch = network(), images()

    def halved(vector, like, noise_std):
        return made(0.5 * vector, like, noise_std)

    made = reviewing.rebuilt
    monkeypatch.setattr(reviewing, "rebuilt", halved)
    decision = guard_of(model, SANITISE, None).review(batch, gradient(model, batch))
    assert (decision.action, decision.update) == ("block", None)
    assert decision.attestation["outcome"] == "not_as_declared"
    assert any("isn't as declared" in reason for reason in decision.reasons)


def test_a_tensor_that_is_not_finite_any_more_is_noticed(monkeypatch) -> None:
    model, batch = network(), images()

    def overflowing(vector, like, noise_std):
        update = made(vector, like, noise_std)
        return {name: value / 0 if name == "4.bias" else value for name, value in update.items()}

    made = reviewing.rebuilt
    monkeypatch.setattr(reviewing, "rebuilt", overflowing)
    decision = guard_of(model, SANITISE, None).review(batch, gradient(model, batch))
    assert (decision.action, decision.update) == ("block", None)
    assert {test["status"] for test in decision.attestation["tests"] if test["id"] == "finite"} == {"not_as_declared"}


def test_a_clip_that_was_not_made_is_noticed() -> None:
    model, batch = network(), images()
    seen = []

    def remember(leaving, client, policy):
        seen.append((leaving, client, policy))
        return attest_leaving(leaving, client, policy)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reviewing, "attest_leaving", remember)
        policy = replace(SANITISE, sanitiser="clip", clip_norm=0.5)
        assert guard_of(model, policy, None).review(batch, gradient(model, batch)).action == "sanitise"
    leaving, client, policy = seen[0]
    clean = leaving.clean * 1.2 / leaving.clean.norm()
    moved = clean - leaving.clean
    sizes = [value.numel() for value in leaving.tensors.values()]
    tensors = {
        name: value + piece.reshape(value.shape).to(value.dtype)
        for (name, value), piece in zip(leaving.tensors.items(), moved.split(sizes), strict=True)
    }
    attested = attest_leaving(replace(leaving, clean=clean, tensors=tensors), client, policy)
    assert [test.id for test in attested.tests if test.status == "not_as_declared"] == ["clean-norm"]
    assert attested.reasons
