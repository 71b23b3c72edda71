"""Texts to tokens: the folder's own tokenizer, read from its files, and the rows that tokens are embedded as.

Special tokens are added as the tokenizer's own rules say; its settings for truncation and padding are put aside, since
a text is audited at its own length. A text without tokens, one that is longer than the model takes, and one with a
token whose embedding is exactly zero (which stands for padding, see `sequences`) are refused by their number.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, final

import torch
from torch import Tensor, nn

from riskaudit.errors import CheckpointError, SamplesError
from riskaudit.inputs.huggingface.folder import ModelFolder, read_json
from riskaudit.inputs.huggingface.library import import_tokenizers
from riskaudit.inputs.huggingface.sequences import PADDING
from riskaudit.inputs.text import clean

TextTask: TypeAlias = Literal["classification", "causal-lm", "masked-lm"]
# Rows of the embedding that are worked on at once.
_ROWS = 8192
_LARGEST_TOKENIZER = 256 * 2**20


@final
@dataclass(frozen=True, eq=False)
class Tokens:
    """The tokens of N texts, and what each token of the vocabulary is embedded as.

    Attributes:
        ids: numbers of tokens, int64 [N, T], `PADDING` beyond each text's end.
        vocabulary: [V, E], the embedding of every token.
        model: name of the model whose tokens they are.
        task: what the client trains.
        special: which of them the tokenizer added, [N, T] bool; None where that isn't known.
        private: the texts' own tokens where ``ids`` has some of them masked, [N, T]; None where it has none.
    """

    ids: Tensor
    vocabulary: Tensor
    model: str
    task: TextTask = "classification"
    special: Tensor | None = None
    private: Tensor | None = None

    @property
    def lengths(self) -> Tensor:
        """Tokens of every text, [N] int64."""
        return (self.ids != PADDING).sum(1)

    def select(self, indices: list[int]) -> Tokens:
        """Of some of the texts."""
        special = None if self.special is None else self.special[indices]
        private = None if self.private is None else self.private[indices]
        return replace(self, ids=self.ids[indices], special=special, private=private)

    def true_token(self, index: int, place: int) -> int:
        """Number of the token of a text at a position."""
        return int((self.ids if self.private is None else self.private)[index, place])

    def embedded(self) -> Tensor:
        """Rows of the vocabulary at the tokens, zeros beyond a text's end, [N, T, E] float64."""
        rows = self.vocabulary[self.ids.clamp_min(0)].double()
        return rows * (self.ids != PADDING)[..., None]


@final
@dataclass(frozen=True, eq=False)
class TextReader:
    """What makes samples of texts for one model.

    Attributes:
        tokenizer: of the tokenizers library; None where the folder has none.
        name: of the folder.
        vocabulary: [V, E].
        most_tokens: that a sequence may have; None where any.
        task: what the client trains.
        class_names: of the outputs by number, where the configuration names them.
        mask_token: number of the token that stands for a masked one; None without.
    """

    tokenizer: Any
    name: str
    vocabulary: Tensor
    most_tokens: int | None
    task: TextTask
    class_names: tuple[str, ...] | None = None
    mask_token: int | None = None

    def tokens(self, texts: Sequence[str], source: str, max_tokens: int | None = None) -> Tokens:
        """Tokens of texts.

        Args:
            texts: N of them.
            source: name of where they are from, for messages.
            max_tokens: cut longer texts, as trainers do.

        Raises:
            SamplesError: a text that can't be audited, by its number.
        """
        if self.tokenizer is None:
            raise SamplesError(
                f"{self.name} has no tokenizer (tokenizer.json); save it beside the model with "
                "tokenizer.save_pretrained, or hand in numbers of tokens as .npz with input_ids"
            )
        if max_tokens is not None:
            self.tokenizer.enable_truncation(max_tokens)
        else:
            self.tokenizer.no_truncation()
        encoded = self.tokenizer.encode_batch(list(texts))
        return self.of_numbers([each.ids for each in encoded], source, [each.special_tokens_mask for each in encoded])

    def of_numbers(
        self, rows: Sequence[Sequence[int]], source: str, special: Sequence[Sequence[int]] | None = None
    ) -> Tokens:
        """Tokens of texts whose numbers are known already; ``special`` says which the tokenizer added.

        Raises:
            SamplesError: see `tokens`.
        """
        count = len(self.vocabulary)
        is_zero = ~self.vocabulary.any(1)
        for number, row in enumerate(rows):
            if not row:
                raise SamplesError(f"text {number} in {source} is empty: it has no tokens; leave it out")
            if self.most_tokens is not None and len(row) > self.most_tokens:
                raise SamplesError(
                    f"text {number} in {source} has {len(row)} tokens, but {self.name} takes {self.most_tokens} at "
                    f"most; shorten it, or cut texts as in training with `max_tokens={self.most_tokens}`"
                )
            if min(row) < 0 or max(row) >= count:
                raise SamplesError(
                    f"text {number} in {source} has a token beyond the {count} that {self.name} has embeddings of; "
                    "use the tokenizer that belongs to the model"
                )
            if bool(is_zero[list(row)].any()):
                raise SamplesError(
                    f"text {number} in {source} has a token whose embedding in {self.name} is exactly zero, which here "
                    "stands for no token (padding, say); leave the token or the text out"
                )
        length = max(map(len, rows))
        ids = torch.full((len(rows), length), PADDING, dtype=torch.int64)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = torch.tensor(row, dtype=torch.int64)
        if special is None:
            return Tokens(ids, self.vocabulary, self.name, self.task)
        added = torch.zeros(ids.shape, dtype=torch.bool)
        for number, marks in enumerate(special):
            added[number, : len(marks)] = torch.tensor(marks, dtype=torch.bool)
        return Tokens(ids, self.vocabulary, self.name, self.task, added)

    def word(self, number: int) -> str:
        """A token as the tokenizer writes it, or its number."""
        word = None if self.tokenizer is None else self.tokenizer.id_to_token(number)
        return f"token {number}" if word is None else str(word)


def make_reader(folder: ModelFolder, config: Any, embedding: nn.Module, task: TextTask) -> TextReader:
    """What reads texts for a folder's model.

    Args:
        folder: with the tokenizer.
        config: of the model.
        embedding: its word embedding.
        task: what the client trains.

    Raises:
        CheckpointError: a tokenizer that can't be read.
    """
    vocabulary = _rows(embedding)
    tokenizer = _tokenizer(folder)
    return TextReader(
        tokenizer=tokenizer,
        name=folder.name,
        vocabulary=vocabulary,
        most_tokens=_most_tokens(config),
        task=task,
        class_names=_class_names(config),
        mask_token=None if tokenizer is None else _mask_token(folder, tokenizer),
    )


@torch.no_grad()
def _rows(embedding: nn.Module) -> Tensor:
    """What every token is embedded as, [V, E], in the dtype of the weights where that is exact."""
    weight: Any = embedding.weight
    double = copy.deepcopy(embedding).double()
    numbers = torch.arange(len(weight), device=weight.device)
    plain = all(torch.equal(double(part), weight[part].double()) for part in torch.split(numbers, _ROWS))
    if plain:
        return weight.detach().clone()  # type: ignore[no-any-return]
    # Models that scale embeddings in the layer itself.
    return torch.cat([double(part) for part in torch.split(numbers, _ROWS)])


def _most_tokens(config: Any) -> int | None:
    most = getattr(config, "max_position_embeddings", None)
    if not isinstance(most, int) or most < 1:
        return None
    # Positions of RoBERTa and its relatives begin behind the padding token's number.
    if config.model_type in ("roberta", "xlm-roberta", "camembert", "xlm-roberta-xl", "roberta-prelayernorm"):
        most -= int(config.pad_token_id or 0) + 1
    window = getattr(config, "sliding_window", None)
    return min(most, window) if isinstance(window, int) and window > 0 else most


def _class_names(config: Any) -> tuple[str, ...] | None:
    names = getattr(config, "id2label", None)
    if not isinstance(names, dict) or set(names) != set(range(len(names))):
        return None
    listed = tuple(clean(names[number], 60) for number in range(len(names)))
    generic = all(name == f"LABEL_{number}" for number, name in enumerate(listed))
    return None if generic or len(set(listed)) != len(listed) else listed


def _tokenizer(folder: ModelFolder) -> Any:
    """The tokenizer of a folder, without truncation and padding; None where it has none."""
    path = folder.path
    files = {name: path / name for name in ("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt")}
    if not any(file.is_file() for file in files.values()):
        return None
    tokenizers = import_tokenizers()
    try:
        for file in files.values():
            if file.is_file() and file.stat().st_size > _LARGEST_TOKENIZER:
                raise ValueError(f"{file.name} is too large")
        if files["tokenizer.json"].is_file():
            tokenizer = tokenizers.Tokenizer.from_file(str(files["tokenizer.json"]))
        elif files["vocab.txt"].is_file():
            lower = _settings(path).get("do_lower_case", True)
            own = tokenizers.BertWordPieceTokenizer(str(files["vocab.txt"]), lowercase=bool(lower))
            tokenizer = own._tokenizer
        elif folder.model_type == "gpt2" and files["vocab.json"].is_file() and files["merges.txt"].is_file():
            own = tokenizers.ByteLevelBPETokenizer(str(files["vocab.json"]), str(files["merges.txt"]))
            tokenizer = own._tokenizer
        else:
            return None
    except Exception as cause:  # the library raises plain exceptions
        raise CheckpointError(
            f"the tokenizer in {folder.name} can't be read ({clean(cause, 100)}); save it again with "
            "tokenizer.save_pretrained"
        ) from cause
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _settings(path: Path) -> dict[str, Any]:
    file = path / "tokenizer_config.json"
    return read_json(file) if file.is_file() else {}


def _mask_token(folder: ModelFolder, tokenizer: Any) -> int | None:
    named = _settings(folder.path).get("mask_token", "[MASK]")
    text = named.get("content") if isinstance(named, dict) else named
    number = tokenizer.token_to_id(text) if isinstance(text, str) else None
    return None if number is None else int(number)
