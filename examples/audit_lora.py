"""Audit what a client that fine-tunes LoRA adapters of a text classifier sends; needs pip install "riskaudit[hf]".

    python examples/audit_lora.py [FOLDER]

Writes a small BERT with random weights and its tokenizer, an adapter as PEFT saves it, and texts.csv into FOLDER
(default: riskaudit-lora). Then audits the adapter's upload, as ``riskaudit scan FOLDER/adapter --base FOLDER/tiny-bert
--data FOLDER/texts.csv --release RELEASE`` would: only what is trained leaves, and all else is frozen.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import torch

import riskaudit
from riskaudit.inputs.huggingface.library import import_tokenizers, import_transformers

TEXTS = [
    ("the patient has a fever and a cough", 0),
    ("no sign of infection today", 1),
    ("blood pressure is high again", 0),
    ("the wound heals well and dry", 1),
]
# What a client sends: the mean gradient of its four texts, clipped as a whole, with noise on every entry.
RELEASE = "mean:4,clip:1.0,gaussian:0.02"


def write_base(folder: Path) -> None:
    """The model that everybody has, and its tokenizer."""
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


def write_adapter(base: Path, folder: Path) -> None:
    """The adapter after some rounds: in the first one every B is zero, so that the A have no gradient."""
    import peft

    transformers = import_transformers()
    model = transformers.BertForSequenceClassification.from_pretrained(base)
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["query", "value"], task_type="SEQ_CLS")
    adapted = peft.get_peft_model(model, config)
    with torch.no_grad():
        for name, values in adapted.named_parameters():
            if "lora_B" in name:
                values.normal_(std=0.1)
    adapted.save_pretrained(folder)


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_base(folder / "tiny-bert")
    write_adapter(folder / "tiny-bert", folder / "adapter")
    with (folder / "texts.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("text", "label"), *TEXTS])

    checkpoint = riskaudit.load_checkpoint(folder / "adapter", base=folder / "tiny-bert")
    samples = riskaudit.load_samples(folder / "texts.csv", text=checkpoint.text)
    result = riskaudit.audit(checkpoint, samples, release=RELEASE)

    print(f"{result.release.num_entries} numbers leave, of {result.checkpoint.num_parameters} in the model")
    for row in result.samples:
        revealed = row.proxies["informed_revealed_fraction"]
        recovered = row.proxies["informed_token_recovery"]
        print(f"text {row.id}: {row.verdict}, {revealed.value:.1%} of its embedding revealed", end="")
        print(f", {recovered.value:.1%} of its tokens told ({recovered.low:.1%} to {recovered.high:.1%})")
    told = sorted({(finding.id, finding.status) for finding in result.checks if finding.status in ("leak", "failed")})
    for name, status in told:
        print(f"check {name}: {status}")

    for name, content in riskaudit.render(result, ["html", "json"]).items():
        (folder / name).write_bytes(content)
        print("wrote", folder / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("riskaudit-lora"))
