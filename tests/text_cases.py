"""Small language models with random weights, and tokenizers trained on a few sentences, as folders on disk."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from torch import nn

from riskaudit.inputs.huggingface.library import import_tokenizers, import_transformers, quiet

SENTENCES = (
    "the patient has a fever and a cough",
    "no sign of infection today",
    "blood pressure is high again after lunch",
    "the wound heals well and the pain is gone",
    "please call the bank about the loan",
    "the account was closed in may",
)
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
KINDS = ("bert", "distilbert", "gpt2")
WIDTH = 8


def config_of(kind: str, vocabulary: int, classes: int = 3, width: int = WIDTH) -> Any:
    transformers = import_transformers()
    values: dict[str, Any] = {"vocab_size": vocabulary, "num_labels": classes, "initializer_range": 0.3}
    if kind == "gpt2":
        return transformers.GPT2Config(
            n_embd=width, n_layer=2, n_head=2, n_positions=16, bos_token_id=1, eos_token_id=1, **values
        )
    if kind == "distilbert":
        return transformers.DistilBertConfig(
            dim=width, n_layers=2, n_heads=2, hidden_dim=2 * width, max_position_embeddings=16, **values
        )
    return transformers.BertConfig(
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=2 * width,
        max_position_embeddings=16,
        **values,
    )


def network_of(kind: str, vocabulary: int, task: str = "SequenceClassification", **changes: Any) -> Any:
    """A network of transformers, float32, with the same weights at every call."""
    transformers = import_transformers()
    config = config_of(kind, vocabulary, **changes)
    mapping = getattr(transformers, f"AutoModelFor{task}")._model_mapping
    with quiet(transformers), torch.random.fork_rng():
        torch.manual_seed(0)
        network: nn.Module = mapping[type(config)](config)
    return network.eval()


def tokenizer_of(kind: str) -> Any:
    tokenizers = import_tokenizers()
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    trainer = tokenizers.trainers.WordLevelTrainer(special_tokens=list(SPECIAL), show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    if kind != "gpt2":
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    # As trainers leave it; an audit puts it aside.
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=16)
    return tokenizer


@cache
def saved(kind: str, task: str = "SequenceClassification", vocabulary: int = 60) -> Path:
    """A folder with a model and its tokenizer, shared by tests that only read it."""
    return save(Path(mkdtemp(prefix="riskaudit-text-")) / f"tiny-{kind}", kind, task, vocabulary)


def save(folder: Path, kind: str, task: str = "SequenceClassification", vocabulary: int = 60, **how: Any) -> Path:
    transformers = import_transformers()
    with quiet(transformers):
        network_of(kind, vocabulary, task).save_pretrained(folder, **how)
    tokenizer_of(kind).save(str(folder / "tokenizer.json"))
    return folder


def write_texts(path: Path, texts: tuple[str, ...] = SENTENCES, labels: tuple[Any, ...] | None = None) -> Path:
    labels = tuple(number % 3 for number in range(len(texts))) if labels is None else labels
    if path.suffix == ".txt":
        path.write_text("".join(f"{text}\n" for text in texts))
    elif path.suffix == ".jsonl":
        rows = zip(texts, labels, strict=True)
        path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
    elif path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.table({"text": list(texts), "label": list(labels)}), path)
    else:
        rows = zip(texts, labels, strict=True)
        path.write_text("text,label\n" + "".join(f'"{text}",{label}\n' for text, label in rows))
    return path
