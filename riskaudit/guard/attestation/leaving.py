"""Attestation in a review: what leaves is held to the declaration once more, after it was sanitised and rounded.

The review itself has compared the update that was handed in with its batch. What this adds: the noise of a sanitiser on
the tensors that really leave, the law of the declared noise, the norm before noise, shapes, dtypes and finiteness after
the way back to the client's form, and the lint of the guard's settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from riskaudit.guard.attestation.contract import Contract, contract_tests
from riskaudit.guard.attestation.declaration import Declaration
from riskaudit.guard.attestation.lint import lint
from riskaudit.guard.attestation.noise import residual_tests
from riskaudit.guard.attestation.norms import norm_test
from riskaudit.guard.attestation.parts import parts_of
from riskaudit.guard.attestation.vectors import Vector
from riskaudit.guard.base_client import BaseClient
from riskaudit.guard.noise.traces import REJECTION
from riskaudit.policy import Policy
from riskaudit.release import Noise, ReleaseSpec
from riskaudit.results.attestation import AttestationTest, outcome_of

# What the review's own dtype may add to a norm.
TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class Leaving:
    """What is about to leave, and what it should be.

    Attributes:
        tensors: that leave, by name.
        given: dtypes of what was handed in, by name.
        clean: what leaves before all noise, [P], float64.
        drawn: the client's noise on it, [P]; None without.
        added: std of the Gaussian noise that sanitising added; 0 without.
        clip_norm: that sanitising clipped every sample to; None without.
        num_samples: that are in it.
    """

    tensors: Mapping[str, Tensor]
    given: Mapping[str, torch.dtype]
    clean: Tensor
    drawn: Tensor | None
    added: float
    clip_norm: float | None
    num_samples: int


@dataclass(frozen=True)
class LeavingAttestation:
    """What the log has of it.

    Attributes:
        tests: that were made.
        findings: ids of what the lint found.
    """

    tests: list[AttestationTest]
    findings: list[str]

    @property
    def reasons(self) -> list[str]:
        """Why nothing may leave, a sentence each."""
        failed = (test for test in self.tests if test.status == "not_as_declared")
        return [f"what is about to leave isn't as declared ({test.id}): {test.reason}" for test in failed]

    def entry(self) -> dict[str, Any]:
        """For a line of the log."""
        shown = ("id", "status", "false_alarm", "power")
        return {
            "outcome": outcome_of(self.tests),
            "tests": [{name: getattr(test, name) for name in shown} for test in self.tests],
            "findings": self.findings,
        }


def attest_leaving(leaving: Leaving, client: BaseClient, policy: Policy) -> LeavingAttestation:
    """Hold what is about to leave to the client's release and to what was done to it."""
    update = Vector("update", None, leaving.tensors)
    contract = Contract(client.shapes, leaving.given, None, update.info())
    tests = contract_tests(update, contract, ReleaseSpec())
    if all(test.status == "as_declared" for test in tests):
        tests += [*_norm_tests(leaving, client), *_noise_tests(leaving, update, client.noise)]
    declaration = Declaration.parse(client.spec, batch_size=leaving.num_samples)
    summed = _is_sum(client)
    found = lint(declaration, tensors=leaving.tensors, policy=policy, reduction="sum" if summed else "mean")
    return LeavingAttestation(tests, [finding.id for finding in found])


def _is_sum(client: BaseClient) -> bool:
    return client.summed and not client.is_joint


def _norm_tests(leaving: Leaving, client: BaseClient) -> list[AttestationTest]:
    bounds = [Declaration.parse(client.spec).bound, leaving.clip_norm]
    bound = min((each for each in bounds if each is not None), default=None)
    if bound is None:
        return []
    whole = bound * (leaving.num_samples if _is_sum(client) else 1)
    return [norm_test("clean-norm", leaving.clean, whole, TOLERANCE)]


def _noise_tests(leaving: Leaving, update: Vector, law: Noise | None) -> list[AttestationTest]:
    """Of what sanitising added, where it did; else of the client's own noise."""
    if leaving.added:
        law, drawn = Noise("gaussian", leaving.added), leaving.drawn
        reference = leaving.clean if drawn is None else leaving.clean + drawn
    else:
        reference = leaving.clean
    if law is None:
        return []
    sizes = [tensor.numel() for tensor in update.tensors.values()]
    pieces = zip(update.tensors.items(), torch.split(reference, sizes), strict=True)
    before = Vector("clean", None, {name: piece.reshape(tensor.shape) for (name, tensor), piece in pieces})
    parts = parts_of(update, law, subtracted=before)
    return residual_tests(parts, law, REJECTION) if parts else []
