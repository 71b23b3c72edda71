"""Make the checkpoint and samples of ``riskaudit demo``: a LeNet on scikit-learn's bundled 8x8 digits.

    python examples/make_demo.py [FOLDER]

Needs scikit-learn. The digits are UCI's "Optical Recognition of Handwritten Digits" (Alpaydin and
Kaynak, 1998; CC BY 4.0), the test part, 1797 images. Trains on the first 1500 and keeps 60 of the rest,
six of every digit, as samples.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch.nn import functional as F

from riskaudit.inputs.architectures import get_architecture

NUM_TRAINING, PER_CLASS, EPOCHS = 1500, 6, 60


def main(folder: Path) -> None:
    digits = load_digits()
    images = torch.from_numpy(digits.images / 16).float().unsqueeze(1)
    labels = torch.from_numpy(digits.target)
    torch.manual_seed(0)
    model = get_architecture("lenet").build(channels=1, features=48, classes=10)
    for parameter in model.parameters():
        torch.nn.init.uniform_(parameter, -0.5, 0.5)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(EPOCHS):
        for batch in torch.randperm(NUM_TRAINING).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
    with torch.no_grad():
        right = model(images[NUM_TRAINING:]).argmax(1) == labels[NUM_TRAINING:]
    print(f"accuracy on {len(right)} held-out digits: {right.float().mean():.3f}")

    held_out = np.arange(NUM_TRAINING, len(labels))
    chosen = np.sort(np.concatenate([held_out[digits.target[held_out] == k][:PER_CLASS] for k in range(10)]))
    folder.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), folder / "digits-lenet.safetensors")
    np.savez_compressed(
        folder / "digits.npz",
        images=np.round(digits.images[chosen] / 16 * 255).astype(np.uint8),
        labels=digits.target[chosen].astype(np.uint8),
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "riskaudit" / "demo")
