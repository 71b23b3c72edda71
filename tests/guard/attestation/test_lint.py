"""Each finding of the lint where it applies, and none where nothing is odd."""

from __future__ import annotations

import pytest
import torch

from riskaudit import Policy
from riskaudit.guard.attestation.declaration import Declaration
from riskaudit.guard.attestation.lint import LINTS, lint

CASES = {
    "clip-after-noise": ("gaussian:1,clip:1", {}),
    "sensitivity-below-clip": ("clip:1,mean:8,gaussian:1", {"sensitivity": 0.1}),
    "sensitivity-without-clip": ("gaussian:1", {"sensitivity": 1.0}),
    "noise-below-multiplier": ("clip:1,mean:8,gaussian:0.1", {"noise_multiplier": 1.1}),
    "noise-per-sum": ("clip:1,mean:64,gaussian:1", {}),
    "noise-divided-twice": ("clip:1,mean:64,gaussian:0.0003", {}),
    "noise-without-clip": ("gaussian:1", {}),
}
POLICIES = {
    "policy-without-noise": ("clip:1", Policy(max_revealed=0.2)),
    "policy-clip-idle": (
        "clip:1,gaussian:1",
        Policy(max_revealed=0.2, on_violation="sanitise", sanitiser="clip", clip_norm=2.0),
    ),
    "policy-fails-open": ("clip:1,gaussian:1", Policy(max_revealed=0.2, on_failure="warn")),
}


def ids(text, *, policy=None, tensors=None, reduction="mean", **options) -> list[str]:
    found = lint(Declaration.parse(text, **options), policy=policy, tensors=tensors, reduction=reduction)
    assert all(
        finding.advice and finding.message and finding.severity == LINTS[finding.id].severity for finding in found
    )
    return [finding.id for finding in found]


@pytest.mark.parametrize("name", CASES)
def test_what_is_hardly_meant_is_found(name) -> None:
    text, options = CASES[name]
    assert name in ids(text, **options)


@pytest.mark.parametrize("name", POLICIES)
def test_policies_are_held_against_the_declaration(name) -> None:
    text, policy = POLICIES[name]
    assert ids(text, policy=policy) == [name]


def test_every_finding_has_a_case() -> None:
    assert {*CASES, *POLICIES, "noise-below-rounding"} == set(LINTS)


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("clip:1,gaussian:1", {}),
        ("clip:1,gaussian:0.01", {}),
        ("clip:1,mean:64,gaussian:0.0171875", {"noise_multiplier": 1.1, "sensitivity": 1 / 64}),
        ("clip:1,gaussian:0.0171875", {"noise_multiplier": 1.1, "batch_size": 64}),
        ("local:epochs=1:batch=8:lr=0.1,clip:1,gaussian:1", {"sensitivity": 1.0, "noise_multiplier": 1.0}),
        ("mean:64,clip:1,gaussian:1", {"sensitivity": 1.0}),
        ("clip:1,mean:8,secagg:10,gaussian:0.0125", {"noise_multiplier": 1.0}),
        ("gradient", {}),
        ("clip:1", {}),
    ],
)
def test_sound_declarations_have_no_findings(text, options) -> None:
    assert ids(text, **options) == []


def test_a_sum_needs_the_sensitivity_of_one_sample() -> None:
    # The stock filter that was seen: a sensitivity of 1e-4 under a clip norm of 1.
    assert ids("clip:1,gaussian:4.8e-5", sensitivity=1e-4, reduction="sum") == ["sensitivity-below-clip"]
    assert "sensitivity-below-clip" in ids("clip:1,gaussian:4.8e-5", sensitivity=1e-4)
    assert ids("clip:1,gaussian:1", batch_size=64, reduction="sum") == []


def test_rounding_is_compared_at_the_dtype() -> None:
    entries = torch.ones(100)
    assert ids("clip:1,gaussian:0.001", tensors={"w": entries.bfloat16()}) == ["noise-below-rounding"]
    assert ids("clip:1,gaussian:0.001", tensors={"w": entries}) == []
