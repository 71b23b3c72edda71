"""The training script of every site: the second one adds next to no noise, and its guard notices."""

from __future__ import annotations

import argparse
from importlib.resources import files
from pathlib import Path

import nvflare.client as flare
import torch
from network import Network
from torch import Tensor

import riskaudit
from riskaudit.guard import Guard, Policy, Recording
from riskaudit.integrations.nvflare import discreet, seal_round

SAMPLES, BATCH_SIZE, EPOCHS = 16, 8, 2
# Std of the noise that a site adds to every entry of what its weights have changed by: enough, and next to none.
NOISE = {"site-1": 0.2, "site-2": 0.0002}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--on-violation", choices=["block", "sanitise", "warn"], default="block")
    parser.add_argument("--logs", type=Path, default=Path.cwd(), help="folder for the guard's log")
    options = parser.parse_args()
    flare.init()
    site = flare.get_site_name()
    model, digits = Network(), digits_of(site)
    # Running statistics of batch norm are means over the digits: they stay here.
    policy = Policy(max_revealed=0.2, on_violation=options.on_violation, buffers="reset")
    guard = Guard(
        model, "cross-entropy", policy, prior_std=0.37, release=f"gaussian:{NOISE[site]}",
        log=options.logs / f"guard-{site}.jsonl",
    )  # fmt: skip
    while flare.is_running():
        received = flare.receive()
        if received is None:
            break
        model.load_state_dict({name: torch.as_tensor(value) for name, value in received.params.items()})
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        recording = guard.record(optimizer)
        train_round(recording, optimizer, digits)
        recording.add_noise()
        # Differences, not weights: a server that gets no weights at all goes on with an empty model.
        difference = {name: value - recording.start[name] for name, value in model.state_dict().items()}
        result = flare.FLModel(params=difference, params_type="DIFF", meta={"NUM_STEPS_CURRENT_ROUND": 1})
        decision = seal_round(result, received, recording)
        print(f"{site}, round {received.current_round}: {decision.action}")
        flare.send(result)


def digits_of(site: str) -> tuple[Tensor, Tensor]:
    """The digits that one site holds."""
    digits = riskaudit.load_samples(Path(str(files("riskaudit") / "demo" / "digits.npz")), channels=1)
    mine = digits.select(list(range(int(site.removeprefix("site-")) - 1, len(digits), 2))[:SAMPLES])
    return mine.inputs.float(), mine.targets


def train_round(recording: Recording, optimizer: torch.optim.Optimizer, digits: tuple[Tensor, Tensor]) -> None:
    """Epochs of shuffled mini-batches, of which the recording computes the loss."""
    inputs, targets = digits
    for _ in range(EPOCHS):
        for part in torch.randperm(len(inputs)).split(BATCH_SIZE):
            optimizer.zero_grad()
            recording.loss(inputs[part], targets[part]).backward()
            optimizer.step()


if __name__ == "__main__":
    with discreet():
        main()
