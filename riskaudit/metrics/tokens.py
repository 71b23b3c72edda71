"""Tokens of reconstructed texts against the true ones: token accuracy, ROUGE-1, -2 and -L, and BLEU.

A reconstruction is an embedded text; its tokens are the vocabulary's nearest at every position. ROUGE is Lin's (2004),
the F-measure as rouge-score has it, and BLEU that of sacrebleu on single sentences (Post, WMT 2018; exponential
smoothing, the order limited to the text's length). Both compare the model's own tokens, by their numbers, and no words:
where a model splits words the values differ from those of words. Tokens that everybody knows (the tokenizer's own, the
mask token) are left out of text and reconstruction.

Only of texts. Both libraries come with ``riskaudit[hf]``.
"""

from __future__ import annotations

import importlib
from abc import abstractmethod
from types import ModuleType
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from riskaudit.metrics.base import Metric, Subject, register


class _OfTexts(Metric):
    """Shares between 0 and 1, of pairs of texts as numbers of tokens."""

    higher_is_better = True
    of_texts = True
    library: ClassVar[str | None] = None

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.imported: ModuleType | None = None
        if subject.texts is None:
            self.reason = "the inputs are no texts"
        elif self.library is not None:
            try:
                self.imported = importlib.import_module(self.library)
            except ImportError:
                package = self.library.partition(".")[0].replace("_", "-")
                self.reason = f'{package} isn\'t installed; pip install "riskaudit[hf]"'

    @override
    def __call__(self, reconstruction: Tensor, truth: Tensor) -> Tensor:
        texts = self.subject.texts
        assert texts is not None
        guesses, targets = texts.private_tokens(reconstruction, truth)
        values = [self._of(*pair) if pair[1] else torch.nan for pair in zip(guesses, targets, strict=True)]
        return torch.tensor(values, dtype=torch.float64)

    @abstractmethod
    def _of(self, guess: list[int], target: list[int]) -> float:
        """Of one text, which has a token at least."""


@register
class TokenAccuracy(_OfTexts):
    """Share of a text's tokens that are the right ones at their positions."""

    name = "token_accuracy"
    title = "Tokens right"
    order = 11
    units = "share of a text's tokens"
    source = "nearest token of the vocabulary at every position"

    @override
    def _of(self, guess: list[int], target: list[int]) -> float:
        return sum(one == other for one, other in zip(guess, target, strict=True)) / len(target)


class _Rouge(_OfTexts):
    library = "rouge_score.rouge_scorer"
    units = "F-measure, 0 to 1"
    source = "Lin, 2004; rouge-score, on the model's tokens"
    kind: ClassVar[str]

    @override
    def _of(self, guess: list[int], target: list[int]) -> float:
        assert self.imported is not None
        scorer = self.imported.RougeScorer([self.kind], tokenizer=_Numbers())
        return float(scorer.score(_joined(target), _joined(guess))[self.kind].fmeasure)


@register
class RougeOne(_Rouge):
    """Overlap of tokens, whatever their order."""

    name, title, order, kind = "rouge1", "ROUGE-1", 15, "rouge1"


@register
class RougeTwo(_Rouge):
    """Overlap of pairs of tokens that follow each other; 0 of texts of one token."""

    name, title, order, kind = "rouge2", "ROUGE-2", 16, "rouge2"


@register
class RougeL(_Rouge):
    """Longest common subsequence of tokens."""

    name, title, order, kind = "rougeL", "ROUGE-L", 17, "rougeL"


@register
class Bleu(_OfTexts):
    """BLEU of single texts."""

    name = "bleu"
    title = "BLEU"
    order = 18
    units = "0 to 1"
    source = "Papineni et al., ACL 2002; sacrebleu, on the model's tokens"
    library = "sacrebleu"

    @override
    def _of(self, guess: list[int], target: list[int]) -> float:
        assert self.imported is not None
        scorer = self.imported.BLEU(tokenize="none", effective_order=True)
        return float(scorer.sentence_score(_joined(guess), [_joined(target)]).score) / 100


class _Numbers:
    """Splits what `_joined` joins, as rouge-score asks for it."""

    def tokenize(self, text: str) -> list[str]:
        return text.split()


def _joined(tokens: list[int]) -> str:
    return " ".join(map(str, tokens))
