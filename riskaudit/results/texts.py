"""What an audit says of texts, position by position. Nothing here needs torch."""

from __future__ import annotations

from pydantic import Field

from riskaudit.results.base import Estimate, Record


class TokenPosition(Record):
    """One position of a text.

    Attributes:
        position: place in the text, from 0.
        special: whether the tokenizer added the token there, so that everybody knows it.
        revealed_fraction: revealed fraction of the embedded token's coordinates, 0 to 1.
        token_recovery: probability that an attacker who knows all other tokens of the text tells this one.
        noise_std: Gaussian noise std per released entry from which on that probability is at most the key; None where
            none suffices, or it can't be told.
        token: in words; only where the user asked to show the samples.
    """

    position: int = Field(ge=0)
    special: bool = False
    revealed_fraction: Estimate | None = None
    token_recovery: Estimate | None = None
    noise_std: dict[str, float | None] = Field(default_factory=dict)
    token: str | None = None


class TextInfo(Record):
    """The audited texts, without any of them.

    Attributes:
        task: what the client trains.
        vocabulary: number of tokens that the model knows.
        num_tokens: number of tokens of all texts together.
        shortest: number of tokens of the shortest text.
        longest: number of tokens of the longest text.
        candidates: number of tokens that were tried in the place of each, besides the truth, at the least.
        untried: number of tokens of the vocabulary that weren't, at the most: recovery has a lower end of 0 then.
    """

    task: str
    vocabulary: int
    num_tokens: int
    shortest: int
    longest: int
    candidates: int
    untried: int
