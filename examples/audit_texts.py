"""Audit what a text classifier's gradients give away, token by token; needs pip install "riskaudit[hf]".

    python examples/audit_texts.py [FOLDER]

Writes a small BERT with random weights and its tokenizer into FOLDER (default: riskaudit-texts), as save_pretrained
does, and texts.csv; then audits both, as ``riskaudit scan FOLDER/tiny-bert --data FOLDER/texts.csv --release ...``
would, and writes audit.html and audit.json. Put your own folder and texts in their place.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import riskaudit
from riskaudit.inputs.huggingface.library import import_tokenizers, import_transformers

TEXTS = [
    ("the patient has a fever and a cough", 0),
    ("no sign of infection today", 1),
    ("blood pressure is high again", 0),
]


def write_model(folder: Path) -> None:
    transformers, tokenizers = import_transformers(), import_tokenizers()
    transformers.set_seed(0)
    config = transformers.BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        num_labels=2,
        initializer_range=0.2,
    )
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = tokenizers.trainers.WordLevelTrainer(special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([text for text, _ in TEXTS], trainer)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_model(folder / "tiny-bert")
    with (folder / "texts.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("text", "label"), *TEXTS])

    checkpoint = riskaudit.load_checkpoint(folder / "tiny-bert")
    samples = riskaudit.load_samples(folder / "texts.csv", text=checkpoint.text)
    result = riskaudit.audit(checkpoint, samples, release="clip:1.0,gaussian:0.05")

    for row in result.samples:
        revealed, recovered = row.proxies["revealed_fraction"], row.proxies["token_recovery"]
        print(f"text {row.id}: {row.verdict}, {revealed.value:.1%} of its embedding revealed", end="")
        print(f", {recovered.value:.1%} of its tokens told ({recovered.low:.1%} to {recovered.high:.1%})")
        worst = max((each for each in row.positions if not each.special), key=lambda each: each.token_recovery.value)
        print(f"  most exposed: position {worst.position}, told with {worst.token_recovery.value:.1%};", end="")
        print(f" noise std for 50 % at most: {worst.noise_std['0.5']:.3g}")

    for name, content in riskaudit.render(result, ["html", "json"]).items():
        (folder / name).write_bytes(content)
        print("wrote", folder / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("riskaudit-texts"))
