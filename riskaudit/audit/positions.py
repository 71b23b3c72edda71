"""What is asked of texts besides their rows' numbers: every position's, and the noise that hides its token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from riskaudit.audit.client import Client
from riskaudit.inputs.huggingface.tokens import Tokens
from riskaudit.linalg import Interval
from riskaudit.results import Estimate, NoiseNeed, SampleRow, TextInfo, TokenPosition
from riskaudit.results.verdicts import tokens_of
from riskaudit.sensitivity import Linearisation
from riskaudit.sensitivity.tokens import num_candidates

_UNKNOWN = "tokens may be told where a revealed fraction is small, so nothing that protects is claimed of the texts"


@dataclass(frozen=True)
class TextContext:
    """What all batches of an audit of texts share.

    Attributes:
        tokens: of all audited texts.
        limits: probabilities of recovery for which the noise needed is worked out.
        word: a token in words, where the user asked to show the samples.
    """

    tokens: Tokens
    limits: tuple[float, ...]
    word: Callable[[int], str] | None = None


def with_positions(context: TextContext, at: Linearisation, rows: Sequence[SampleRow]) -> list[SampleRow]:
    """Rows of texts with what is known of their positions."""
    assert at.tokens is not None
    revealed = at.revealed_by_position() if "revealed_fraction" in at.plan.proxies else None
    exact = at.posterior_spectrum is not None if revealed is not None else False
    return [
        row.model_copy(
            update={"positions": _positions(context, at, index, None if revealed is None else revealed[index], exact)}
        )
        for index, row in enumerate(rows)
    ]


def _positions(
    context: TextContext, at: Linearisation, index: int, revealed: Sequence[Interval] | None, exact: bool
) -> list[TokenPosition]:
    differences, noise = at.tokens, at.release.noise
    assert differences is not None
    told = noise is not None and noise.law == "gaussian"
    private = set(differences.private_positions(index))
    positions = []
    for place in range(differences.num_positions(index)):
        confusion = differences.confusions[index][place] if told else None
        share = None if revealed is None else revealed[place]
        positions.append(
            TokenPosition(
                position=place,
                special=place not in private,
                revealed_fraction=None if share is None else _estimate(share, exact=exact),
                token_recovery=None if confusion is None else _estimate(confusion.recovery(at.sigma), exact=False),
                noise_std={}
                if confusion is None
                else {f"{limit:g}": confusion.noise_for(limit) for limit in context.limits},
                token=None if context.word is None else context.word(differences.tokens.true_token(index, place)),
            )
        )
    return positions


def _estimate(share: Interval, *, exact: bool) -> Estimate:
    return Estimate(value=share.value, low=share.low, high=share.high, status="exact" if exact else "bracketed")


def doubt_of_texts(client: Client) -> str | None:
    """Why nothing that protects may be claimed of a client's texts; None where token recovery tells, or without texts.

    Noise that isn't normal, an attacker who knows none of the other texts of an upload, a text that is twice in one,
    and an audit that didn't ask for it.
    """
    if client.samples.tokens is None:
        return None
    noise = client.release.noise
    if client.is_joint and client.settings.attacker == "outsider":
        return f"how well an outsider tells tokens of texts that leave together isn't known: {_UNKNOWN}"
    if client.is_joint and _repeats(client):
        return f"an upload has one text twice, whose tokens' recovery isn't known: {_UNKNOWN}"
    if noise is not None and noise.law != "gaussian":
        return f"token recovery needs Gaussian noise: {_UNKNOWN}"
    if tokens_of(None) not in client.settings.wanted():
        return f"token recovery wasn't asked for (`proxies`): {_UNKNOWN}"
    return None


def _repeats(client: Client) -> bool:
    """Whether some upload has the same text twice."""
    inputs = client.samples.inputs
    uploads = (inputs[list(upload.positions)].flatten(1) for upload in client.uploads)
    return any(len(torch.unique(rows, dim=0)) < len(rows) for rows in uploads)


def text_info(tokens: Tokens, num_entries: int) -> TextInfo:
    """The texts, without any of them; P' numbers leave for each."""
    vocabulary, lengths = len(tokens.vocabulary), tokens.lengths.tolist()
    candidates = num_candidates(vocabulary, max(lengths), num_entries)
    return TextInfo(
        task=tokens.task,
        vocabulary=vocabulary,
        num_tokens=sum(lengths),
        shortest=min(lengths),
        longest=max(lengths),
        candidates=candidates,
        untried=vocabulary - 1 - candidates,
    )


def hiding_tokens(needs: Sequence[NoiseNeed], rows: Sequence[SampleRow]) -> list[NoiseNeed]:
    """Noise needed that keeps every private token's recovery within each limit too; left out where that is unknown."""
    kept = []
    for need in needs:
        key, stds = f"{need.max_revealed:g}", list[tuple[float, str]]()
        places = [
            (row.id, each.noise_std.get(key))
            for row in rows
            for each in row.positions or ()
            if row.status != "failed" and not each.special
        ]
        stds = [(std, sample) for sample, std in places if std is not None]
        if not stds or len(stds) < len(places):
            continue
        std, sample = max(stds)
        if std > need.std:
            need = need.model_copy(update={"std": std, "sample_id": sample, "status": "bracketed"})  # noqa: PLW2901
        kept.append(need)
    return kept
