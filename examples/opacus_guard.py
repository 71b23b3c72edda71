"""Differentially private training with Opacus, and a guard that leaves out the samples over a limit; takes a folder.

Run: pip install "riskaudit[opacus]" && python examples/opacus_guard.py FOLDER

Epsilon bounds what a training reveals of any sample in the worst case. The guard says how much of each sample's input
one step reveals here, and keeps those out that this noise doesn't hide well enough.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from opacus import PrivacyEngine
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from riskaudit.guard import Policy
from riskaudit.integrations.opacus import OpacusGuard

# Opacus about its plain random numbers, and about a first layer whose inputs need no gradient.
warnings.filterwarnings("ignore", category=UserWarning)


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    images, labels = torch.rand(64, 1, 8, 8), torch.arange(64) % 4
    # Bright images have large gradients, which clipping makes small again: the same noise hides more of them.
    images[::2] *= 20
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = PrivacyEngine()
    model, optimizer, loader = engine.make_private(
        module=model, optimizer=optimizer, data_loader=DataLoader(TensorDataset(images, labels), batch_size=16),
        noise_multiplier=0.5, max_grad_norm=0.5,
    )  # fmt: skip

    policy = Policy(max_revealed=0.03, on_violation="sanitise", sanitiser="drop")
    log = folder / "guard.jsonl"
    guard = OpacusGuard(model, optimizer, F.cross_entropy, policy, prior_std=0.3, log=log)
    for number, batch in enumerate(loader, start=1):
        optimizer.zero_grad()
        F.cross_entropy(model(batch[0]), batch[1]).backward()
        decision = guard.step(batch)
        print(f"step {number}: {decision.action}, {decision.dropped} of {len(batch[0])} samples left out")
    print(f"epsilon, whatever was left out: {engine.get_epsilon(delta=1e-3):.1f}")
    print(f"wrote {log}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "opacus-guard"))
