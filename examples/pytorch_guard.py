"""A guard in front of a PyTorch optimizer: every step is reviewed before the weights show it; takes a folder.

Run: python examples/pytorch_guard.py FOLDER

A small network learns made-up images with noise on its gradients. The guard lets a step pass that keeps the limit,
and withholds the one whose noise was forgotten: the weights stay as they were.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from riskaudit.guard import AuditLog, Guard, Policy
from riskaudit.integrations.pytorch import StepGuard, add_noise

BATCH, STD = 16, 0.1


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 4))
    images, labels = torch.rand(4 * BATCH, 1, 8, 8), torch.arange(4 * BATCH) % 4
    images += labels[:, None, None, None] / 4
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    log = folder / "guard.jsonl"
    guard = Guard(model, F.cross_entropy, Policy(max_revealed=0.3), prior_std=0.3, release=f"gaussian:{STD}", log=log)
    step_guard = StepGuard(guard, optimizer)
    for number, start in enumerate(range(0, len(images), BATCH), start=1):
        batch = images[start : start + BATCH], labels[start : start + BATCH]
        optimizer.zero_grad()
        F.cross_entropy(model(batch[0]), batch[1]).backward()
        if number != 3:
            add_noise(model, STD)
        step_guard.expect(batch)
        optimizer.step()
        decision = step_guard.decision
        assert decision is not None
        print(f"step {number}: {decision.action}, because {decision.reasons[0]}")

    print(f"the log is {'whole' if not AuditLog(log).problems() else 'broken'}")
    print(f"wrote {log}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "pytorch-guard"))
