"""Exact leak checks on everything that a client's release sends: in float64, on copies, upload by upload."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from typing_extensions import override

from riskaudit.attacks import Observation
from riskaudit.audit.client import Client
from riskaudit.checks.run import check_upload, merged
from riskaudit.checks.upload import SentUpload, map_inputs
from riskaudit.copying import copy_model
from riskaudit.jacobian import JacobianFactory
from riskaudit.jacobian.base import Jacobian
from riskaudit.jacobian.generic import GenericJacobian
from riskaudit.release import Batch, Release, make_release
from riskaudit.results.checks import CheckFinding
from riskaudit.sensitivity.linearisation import NOISE_STREAM, sample_generator


def check_leaks(client: Client) -> list[CheckFinding]:
    """What stands in the clear in a client's uploads; nothing where the settings say so.

    Where samples leave alone, findings are for all of them together.
    """
    if not client.settings.checks:
        return []
    model = copy_model(client.release.model).to(dtype=torch.float64)
    release = make_release(model, client.loss, client.release.spec)
    maps = map_inputs(release, tuple(client.samples.inputs.shape[1:]))
    findings = []
    for number, members in enumerate(client.uploads):
        batch = client.upload_batch([number])
        batch = batch.with_inputs(batch.inputs.to(torch.float64))
        ids = [client.samples.ids[position] for position in members.positions]
        mean = release.mean(batch).detach()[0]
        upload = SentUpload(
            _observe(client, release, batch, mean, members.number), mean, batch, client.chosen.info.std / 2, maps
        )
        findings += check_upload(upload, ids, number if client.is_joint else None)
    return findings if client.is_joint else merged(findings)


def _observe(client: Client, release: Release, batch: Batch, mean: torch.Tensor, number: int) -> Observation:
    """What the server has of one upload: with the draw of noise that proxies and attacks are told of."""
    released = mean[None]
    if release.noise is not None:
        released = released + release.sample_noise(sample_generator(client.settings.seed, number, NOISE_STREAM))
    return Observation(
        released=released,
        jacobian=_AnyJacobian(release),
        input_shape=tuple(batch.inputs.shape[1:]),
        prior=client.chosen.prior,
        targets=None,
        input_range=client.input_range,
        upload_size=len(batch),
    )


@final
@dataclass(frozen=True, eq=False)
class _AnyJacobian(JacobianFactory):
    """J of any release; checks read the release off it."""

    release: Release

    @override
    def __call__(self, batch: Batch) -> Jacobian:
        return GenericJacobian(self.release, batch)
