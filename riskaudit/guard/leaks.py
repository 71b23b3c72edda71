"""Exact leak checks on what a client is about to send, before anything else is worked out."""

from __future__ import annotations

from dataclasses import replace

import torch

from riskaudit.checks.run import check_upload
from riskaudit.checks.upload import UploadChecker
from riskaudit.copying import copy_model
from riskaudit.guard.base_client import BaseClient
from riskaudit.guard.client import Client
from riskaudit.guard.information import BatchInformation
from riskaudit.guard.joint_client import JointClient
from riskaudit.policy import Policy
from riskaudit.priors import Prior
from riskaudit.release import Release, make_release
from riskaudit.release.grammar import ReleaseSpec


def refuse_leaks(client: BaseClient, information: BatchInformation, prior: Prior, policy: Policy) -> list[str]:
    """Reasons to refuse a batch by the checks that the policy forbids, one sentence each; none where it forbids none.

    Args:
        client: its release.
        information: the samples, of which nothing needs to be known yet.
        prior: what an attacker is taken to know.
        policy: which checks may not find anything.
    """
    if not policy.forbid_checks:
        return []
    batch = replace(information.batch, upload_size=len(information))
    # Buffers never leave changed: the guard withholds such updates or resets them.
    checker = UploadChecker(
        _release(client, len(batch)), prior, prior.info().std / 2, tuple(batch.inputs.shape[1:]), sends_buffers=False
    )
    # What is recovered under noise may be recovered from any draw of it, not only from the one that leaves.
    upload = checker.sent(batch, torch.Generator().manual_seed(0))
    ids = [sample.id for sample in information.samples]
    reasons, _ = policy.forbidden(check_upload(upload, ids, only=policy.forbid_checks))
    return reasons


def _release(client: BaseClient, count: int) -> Release:
    """What leaves of a batch as one upload, in float64, of copies."""
    if isinstance(client, JointClient):
        model, spec = client.release.model, client.release.spec
    else:
        assert isinstance(client, Client)
        # Of a sum the noise is that of a mean, times the number of samples.
        noise = client.noise and replace(client.noise, scale=client.noise.scale / (count if client.summed else 1))
        model, steps = client.release.per_sample.model, client.spec.with_noise(None)
        spec = ReleaseSpec.parse(f"{steps},mean:{count}").with_noise(noise)
    return make_release(copy_model(model).to(dtype=torch.float64), client.loss, spec)
