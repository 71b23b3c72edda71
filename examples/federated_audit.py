"""Federated averaging with two clients, and the audit of what one would send next; takes the folder for results.

Run: python examples/federated_audit.py FOLDER

Each round, both clients take one step on their own digits and the server averages the gradients (FedSGD, that is
federated averaging with one local step: McMahan et al., AISTATS 2017). Before the next round the first client audits
its own upload, decides by a policy, and looks up how much noise would keep it within the policy.
"""

from __future__ import annotations

import copy
import sys
from importlib.resources import files
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import riskaudit
from riskaudit.inputs.architectures import get_architecture

ROUNDS, RATE = 200, 0.5


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    digits = riskaudit.load_samples(Path(str(files("riskaudit") / "demo" / "digits.npz")), channels=1)
    first, second = (digits.select(list(range(start, len(digits), 2))) for start in (0, 1))

    torch.manual_seed(0)
    server = get_architecture("lenet").build(channels=1, features=48, classes=10)
    for parameter in server.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5)
    for number in range(ROUNDS):
        uploads = [upload(server, client) for client in (first, second)]
        with torch.no_grad():
            for parameter, *gradients in zip(server.parameters(), *uploads, strict=True):
                parameter.sub_(torch.stack(gradients).mean(0), alpha=RATE)
        if number % 50 == 49:
            print(f"round {number + 1}: loss of the two clients {loss(server, first):.2f}, {loss(server, second):.2f}")

    # The audit needs the model that the server sent and samples that the client holds; nothing is uploaded.
    policy = riskaudit.Policy(max_revealed=0.2)
    samples = first.select(list(range(8)))
    settings = riskaudit.AuditSettings(release="clip:1.0,gaussian:0.001", max_revealed=policy.max_revealed)
    result = riskaudit.audit(server, samples, settings)
    outcome = policy.decide(result)
    print(f"as planned: {outcome.decision}, because {outcome.reasons[0]}")
    worst = max(result.samples, key=lambda row: row.proxies["revealed_fraction"].value or 0.0)
    revealed = worst.proxies["revealed_fraction"].value or 0.0
    print(f"most exposed: a {worst.target}, {revealed:.1%} of which its upload reveals")

    # Noise that keeps every audited sample within the limit, and the proof that it does.
    need = next(need for need in result.noise_needed if need.max_revealed == policy.max_revealed)
    protected = riskaudit.audit(server, samples, settings, release=f"clip:1.0,gaussian:{1.001 * need.std:.6f}")
    outcome = policy.decide(protected)
    print(f"with noise of std {need.std:.3g} per entry: {outcome.decision}, because {outcome.reasons[0]}")
    (folder / "audit.html").write_bytes(riskaudit.render(protected, ["html"], baseline=result)["audit.html"])
    print(f"wrote {folder / 'audit.html'}")


def upload(server: nn.Module, client: riskaudit.Samples) -> list[Tensor]:
    """What a client sends: the gradient of its loss at the server's weights."""
    model = copy.deepcopy(server)
    F.cross_entropy(model(client.inputs.float()), client.targets).backward()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def loss(model: nn.Module, client: riskaudit.Samples) -> float:
    with torch.no_grad():
        return F.cross_entropy(model(client.inputs.float()), client.targets).item()


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "federated"))
