"""Samples of texts: tokens by the model's own tokenizer, their embeddings as inputs, and what the client trains on.

Classification has a label for every text. A causal language model is trained to tell the next token at every position:
the target of position t is the token at t + 1, and the last position has none. A masked one is trained to tell tokens
that were replaced by the mask token: here `MASKED_SHARE` of a text's tokens, one at least, none of them the first or
last where these are the tokenizer's own, drawn from a fixed seed and the text's number, always by the mask token. The
loss is the mean over a text's targets, as transformers has it for a text by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from riskaudit.errors import SamplesError
from riskaudit.inputs.arrays import Numbered
from riskaudit.inputs.huggingface.sequences import PADDING
from riskaudit.inputs.huggingface.tokens import TextReader, TextTask, Tokens
from riskaudit.inputs.losses import Loss

# PyTorch's number of a target that isn't one.
NO_TARGET = -100
MASKED_SHARE, MASKING_SEED = 0.15, 0


@dataclass(frozen=True)
class PreparedTexts:
    """What the samples are made of.

    Attributes:
        tokens: as the model reads them.
        targets: int64 [N], or [N, T] with `NO_TARGET` where there is none.
        notes: what a reader of the audit should be told.
    """

    tokens: Tokens
    targets: Tensor
    notes: tuple[str, ...] = ()


def prepare(reader: TextReader, tokens: Tokens, labels: Numbered | None, loss: Loss | None, name: str) -> PreparedTexts:
    """Tokens and targets of texts for the reader's task.

    Raises:
        SamplesError: labels that are missing, or a text too short to have a target.
    """
    if reader.task == "classification":
        if labels is None:
            raise SamplesError(f"{name} has no labels, which classification needs; add them, or name another `task`")
        targets = labels.targets
        if loss is not None and loss.kind in ("binary", "regression"):
            targets = targets.double()
        return PreparedTexts(tokens, targets)
    if reader.task == "causal-lm":
        return _next_tokens(tokens, name)
    return _masked(reader, tokens, name)


def _next_tokens(tokens: Tokens, name: str) -> PreparedTexts:
    short = torch.nonzero(tokens.lengths < 2).flatten().tolist()
    if short:
        raise SamplesError(f"text {short[0]} in {name} has one token, so that there is none to tell; leave it out")
    following = torch.cat([tokens.ids[:, 1:], torch.full_like(tokens.ids[:, :1], PADDING)], 1)
    targets = torch.where(following == PADDING, NO_TARGET, following)
    note = (
        "the targets of a causal language model are the text itself: revealed fractions say what the update tells of "
        "the embedded tokens to whoever knows the targets; exact differences of single tokens (token_recovery) change "
        "token and target together"
    )
    return PreparedTexts(tokens, targets, (note,))


def _masked(reader: TextReader, tokens: Tokens, name: str) -> PreparedTexts:
    if reader.mask_token is None:
        raise SamplesError(
            f"the tokenizer of {reader.name} has no mask token, which masked-lm needs; name another `task`"
        )
    ids, targets = tokens.ids.clone(), torch.full_like(tokens.ids, NO_TARGET)
    for number, length in enumerate(tokens.lengths.tolist()):
        places = _places(length, number)
        if not places:
            raise SamplesError(f"text {number} in {name} is too short to mask a token of it; leave it out")
        targets[number, places] = ids[number, places]
        ids[number, places] = reader.mask_token
    note = (
        f"{MASKED_SHARE:.0%} of each text's tokens (one at least) were replaced by the mask token, by seed "
        f"{MASKING_SEED}; the tokens that they replaced are targets, which are taken as known to the attacker"
    )
    return PreparedTexts(replace(tokens, ids=ids, private=tokens.ids), targets, (note,))


def with_tokens(task: TextTask, ids: Tensor, target: Tensor, place: int, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """A text with other tokens at one position: what the model reads, [K, T], and targets, [K, ...].

    Args:
        task: what the client trains.
        ids: of the text, [T].
        target: of the text, [] or [T].
        place: the position.
        numbers: the tokens, [K].
    """
    count = len(numbers)
    read, targets = ids.expand(count, -1).clone(), target.expand(count, *target.shape).clone()
    if task == "masked-lm" and int(target[place]) != NO_TARGET:
        # The model reads the mask token there, whatever it stands for.
        targets[:, place] = numbers
        return read, targets
    read[:, place] = numbers
    if task == "causal-lm" and place > 0:
        targets[:, place - 1] = numbers
    return read, targets


def _places(length: int, number: int) -> Sequence[int]:
    """Positions that are masked in a text of so many tokens, ascending; never the first or the last."""
    inner = list(range(1, length - 1))
    if not inner:
        return []
    count = max(1, round(MASKED_SHARE * length))
    generator = torch.Generator().manual_seed(MASKING_SEED * 2**32 + number)
    chosen = torch.randperm(len(inner), generator=generator)[:count].tolist()
    return sorted(inner[place] for place in chosen)
