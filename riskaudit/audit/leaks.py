"""Exact leak checks on everything that a client's release sends: in float64, on copies, upload by upload."""

from __future__ import annotations

import torch

from riskaudit.audit.client import Client
from riskaudit.checks.run import check_upload, merged
from riskaudit.checks.upload import UploadChecker
from riskaudit.copying import copy_model
from riskaudit.release import make_release
from riskaudit.results.checks import CheckFinding
from riskaudit.sensitivity.linearisation import NOISE_STREAM, sample_generator


def check_leaks(client: Client) -> list[CheckFinding]:
    """What stands in the clear in a client's uploads; nothing where the settings say so.

    Noise is the draw that proxies and attacks are told of. Where samples leave alone, findings are for all together.
    """
    if not client.settings.checks:
        return []
    model = copy_model(client.release.model).to(dtype=torch.float64)
    checker = UploadChecker(
        make_release(model, client.loss, client.release.spec),
        client.chosen.prior,
        client.chosen.info.std / 2,
        tuple(client.samples.inputs.shape[1:]),
        client.input_range,
    )
    findings = []
    for number, members in enumerate(client.uploads):
        noise = sample_generator(client.settings.seed, members.number, NOISE_STREAM)
        ids = [client.samples.ids[position] for position in members.positions]
        upload = checker.sent(client.upload_batch([number]), noise)
        findings += check_upload(upload, ids, number if client.is_joint else None)
    return findings if client.is_joint else merged(findings)
