"""Audit a vision transformer that a client fine-tunes whole, or its head alone; needs pip install "riskaudit[hf]".

    python examples/audit_vit.py [FOLDER]

Trains a small ViT on scikit-learn's digits for a few steps, writes it into FOLDER (default: riskaudit-vit) as
save_pretrained does, and digits.npz; then audits six digits, as ``riskaudit scan FOLDER/tiny-vit --data
FOLDER/digits.npz --limit 6 --release ...`` would, once for a client that sends every gradient and once for one that
sends its head's, and writes the first audit's audit.html and audit.json. Put your own folder and images in their place.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

import riskaudit
from riskaudit.inputs.huggingface.library import import_transformers

NOISE = "gaussian:0.01"


def write_model(folder: Path, images: torch.Tensor, labels: torch.Tensor) -> None:
    transformers = import_transformers()
    transformers.set_seed(0)
    config = transformers.ViTConfig(
        image_size=8,
        patch_size=2,
        num_channels=1,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=10,
    )
    model = transformers.ViTForImageClassification(config)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(model(images).logits, labels).backward()
        optimizer.step()
    model.save_pretrained(folder)


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    digits = load_digits()
    images, labels = (digits.images / 16).astype(np.float32)[:, None], digits.target
    np.savez(folder / "digits.npz", images=images[:60], labels=labels[:60])
    write_model(folder / "tiny-vit", torch.from_numpy(images[200:500]), torch.from_numpy(labels[200:500]))

    checkpoint = riskaudit.load_checkpoint(folder / "tiny-vit")
    samples = riskaudit.load_samples(folder / "digits.npz", limit=6)
    whole = riskaudit.audit(checkpoint, samples, release=NOISE)
    head = riskaudit.audit(checkpoint, samples, release=f"share:classifier.*,{NOISE}")

    for sent, result in (("every gradient", whole), ("the head's gradient", head)):
        print(f"a client that sends {sent}:")
        for row in result.samples:
            revealed = row.proxies["revealed_fraction"]
            print(f"  digit {row.id}: {row.verdict}, {revealed.value:.1%} of the pixels' prior revealed")

    for name, content in riskaudit.render(whole, ["html", "json"]).items():
        (folder / name).write_bytes(content)
        print("wrote", folder / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("riskaudit-vit"))
