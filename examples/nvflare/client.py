"""The training script of every site: the second one adds next to no noise, and its guard notices."""

from __future__ import annotations

import argparse
from importlib.resources import files
from pathlib import Path

import nvflare.client as flare
import torch
import torch.nn.functional as F
from network import Network
from torch import Tensor, nn

import riskaudit
from riskaudit.guard import Guard, Policy, SecureNoise
from riskaudit.integrations.nvflare import discreet, seal

BATCH_SIZE, STEP_SIZE = 8, 0.5
# Std of the noise that a site adds to every entry of its gradient: enough, and next to none.
NOISE = {"site-1": 0.5, "site-2": 0.0002}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--on-violation", choices=["block", "sanitise", "warn"], default="block")
    parser.add_argument("--logs", type=Path, default=Path.cwd(), help="folder for the guard's log")
    options = parser.parse_args()
    flare.init()
    site = flare.get_site_name()
    model, batch, noise_std = Network(), batch_of(site), NOISE[site]
    policy = Policy(max_revealed=0.2, on_violation=options.on_violation)
    guard = Guard(
        model, "cross-entropy", policy, prior_std=0.37, release=f"gaussian:{noise_std}",
        log=options.logs / f"guard-{site}.jsonl",
    )  # fmt: skip
    while flare.is_running():
        received = flare.receive()
        if received is None:
            break
        model.load_state_dict(received.params)
        local_step(model, batch, noise_std)
        # Differences, not weights: a server that gets no weights at all goes on with an empty model.
        difference = {name: value - received.params[name] for name, value in model.state_dict().items()}
        result = flare.FLModel(params=difference, params_type="DIFF", meta={"NUM_STEPS_CURRENT_ROUND": 1})
        decision = seal(result, received, guard, batch, step_size=STEP_SIZE)
        print(f"{site}, round {received.current_round}: {decision.action}")
        flare.send(result)


def batch_of(site: str) -> tuple[Tensor, Tensor]:
    """The digits that one site holds."""
    digits = riskaudit.load_samples(Path(str(files("riskaudit") / "demo" / "digits.npz")), channels=1)
    mine = digits.select(list(range(int(site.removeprefix("site-")) - 1, len(digits), 2))[:BATCH_SIZE])
    return mine.inputs.float(), mine.targets


def local_step(model: nn.Module, batch: tuple[Tensor, Tensor], noise_std: float) -> None:
    """One step of plain SGD with noise on the gradient."""
    inputs, targets = batch
    gradients = torch.autograd.grad(F.cross_entropy(model(inputs), targets), list(model.parameters()))
    noise = SecureNoise("gaussian", noise_std)
    with torch.no_grad():
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.sub_(noise.added(gradient), alpha=STEP_SIZE)


if __name__ == "__main__":
    with discreet():
        main()
