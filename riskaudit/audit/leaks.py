"""Exact leak checks on everything that a client's release sends: upload by upload."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from riskaudit.audit.client import Client
from riskaudit.audit.texts import token_batch
from riskaudit.checks.run import check_upload, failed_checks, merged
from riskaudit.checks.upload import UploadChecker
from riskaudit.copying import copy_model
from riskaudit.release import Batch, Release, make_release
from riskaudit.results.checks import CheckFinding
from riskaudit.sensitivity.linearisation import NOISE_STREAM, sample_generator


def check_leaks(client: Client) -> list[CheckFinding]:
    """What stands in the clear in a client's uploads; nothing where the settings say so.

    Noise is the draw that proxies and attacks are told of. Where samples leave alone, findings are for all together.
    """
    return together(client, check_uploads(client, range(len(client.uploads))))


def together(client: Client, findings: list[CheckFinding]) -> list[CheckFinding]:
    """Findings of `check_uploads` on all uploads, in their order, as the result has them."""
    return findings if client.is_joint else merged(findings)


def check_uploads(client: Client, numbers: Iterable[int]) -> list[CheckFinding]:
    """The same of some uploads, one by one."""
    if not client.settings.checks:
        return []
    checker, findings = _checker(client), []
    for number in numbers:
        members = client.uploads[number]
        noise = sample_generator(client.settings.seed, members.number, NOISE_STREAM)
        ids, named = named_upload(client, number)
        try:
            upload = checker.sent(_checked_batch(client, number), noise)
        except Exception as error:  # third-party code that has run for the proxies may not run again
            findings += failed_checks(error, ids, named)
        else:
            findings += check_upload(upload, ids, named)
    return findings


def named_upload(client: Client, number: int) -> tuple[list[str], int | None]:
    """Ids of an upload's samples, and its number where findings have one."""
    ids = [client.samples.ids[position] for position in client.uploads[number].positions]
    return ids, number if client.is_joint else None


def _checked_batch(client: Client, number: int) -> Batch:
    """An upload of the client's; of texts from their tokens, so that the word embedding has its gradient too."""
    batch = client.upload_batch([number])
    if client.samples.tokens is None:
        return batch
    return token_batch(client.samples, batch, list(client.uploads[number].positions))


def _checker(client: Client) -> UploadChecker:
    """In float64, or as the audit was made where the model can't be run so."""

    def of(release: Release) -> UploadChecker:
        shape = tuple(client.samples.inputs.shape[1:])
        prior, tolerable = client.chosen.prior, client.chosen.info.std / 2
        encoding = client.samples.encoding
        return UploadChecker(release, prior, tolerable, shape, client.input_range, encoding=encoding)

    try:
        model = copy_model(client.release.model).to(dtype=torch.float64)
        double = of(make_release(model, client.loss, client.release.spec))
        double.sent(client.upload_batch([0]), torch.Generator())
    except Exception:  # code that fixes its precision runs in that one only
        return of(client.release)
    return double
