"""Federated averaging with two guarded clients, in one process; takes a folder for the guards' logs.

Run: python examples/federated_guard.py FOLDER

In each of three rounds both clients train a small residual network with batch norm for two epochs of mini-batches with
momentum, and the server averages what their guards let leave. The first client adds enough noise to what its weights
have changed by; the second next to none, so that its guard withholds it, and in the last round mends it.
"""

from __future__ import annotations

import sys
from importlib.resources import files
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import riskaudit
from riskaudit.guard import Guard, Policy

ROUNDS, EPOCHS, SAMPLES, BATCH_SIZE = 3, 2, 16, 8
# Std of the noise that each client adds.
NOISE = (0.2, 0.0002)


class Block(nn.Module):
    """Two convolutions with batch norm, beside a way around them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers = [nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)]
        more = [nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)]
        self.layers = nn.Sequential(*layers, nn.ReLU(), *more)

    def forward(self, values: Tensor) -> Tensor:
        """Values [B, channels, h, w] in the same shape."""
        return F.relu(values + self.layers(values))


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    first = [nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    model = nn.Sequential(*first, Block(8), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(32, 10))
    samples = riskaudit.load_samples(Path(str(files("riskaudit") / "demo" / "digits.npz")), channels=1)
    digits = [samples.select(list(range(client, len(samples), 2))[:SAMPLES]) for client in (0, 1)]
    sent = {name: value.clone() for name, value in model.state_dict().items()}
    for number in range(1, ROUNDS + 1):
        received = []
        for client, noise_std in enumerate(NOISE):
            model.load_state_dict(sent)
            on_violation = "sanitise" if number == ROUNDS else "block"
            policy = Policy(max_revealed=0.2, on_violation=on_violation, buffers="reset")
            guard = Guard(
                model.train(), F.cross_entropy, policy, prior_std=0.37, release=f"gaussian:{noise_std}",
                log=folder / f"client-{client + 1}.jsonl",
            )  # fmt: skip
            weights = local_round(guard, digits[client].inputs.float(), digits[client].targets, number, client + 1)
            if weights is not None:
                received.append(weights)
        if received:
            sent = {name: sum(each[name] for each in received) / len(received) for name in sent}
        print(f"round {number}: the server averaged {len(received)} of {len(NOISE)} clients")
    print(f"wrote {', '.join(sorted(str(path) for path in folder.glob('*.jsonl')))}")


def local_round(guard: Guard, inputs: Tensor, targets: Tensor, number: int, client: int) -> dict[str, Tensor] | None:
    """What may leave after a round of one client; None where nothing may."""
    optimizer = torch.optim.SGD(guard.model.parameters(), lr=0.05, momentum=0.9)
    recording = guard.record(optimizer)
    for _ in range(EPOCHS):
        for part in torch.randperm(len(inputs)).split(BATCH_SIZE):
            optimizer.zero_grad()
            recording.loss(inputs[part], targets[part]).backward()
            optimizer.step()
    recording.add_noise()
    decision = guard.confirm(recording.review(round=number))
    print(f"round {number}, client {client}: {decision.action}, because {decision.reasons[0]}")
    update: dict[str, Tensor] | None = decision.update
    return update


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "federated-guard"))
