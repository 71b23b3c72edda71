"""A client whose noise repeats that of its earlier rounds, in this process or, run as a script, in one of its own."""

from __future__ import annotations

import json
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from guard_cases import NOISE, gradient, guard_of, images, network

from riskaudit.guard import Policy


def reviews(sanitise: bool, folder: str, *changes: str) -> list[tuple[str, str, list[str]]]:
    """Change, action and reasons of one review after the other."""
    policy = Policy(max_revealed=0.01, on_violation="sanitise") if sanitise else Policy(max_revealed=0.999)
    model = network()
    guard = guard_of(model, policy, ledger=folder + "/l.db", log=folder + "/l.jsonl", keys=folder + "/keys")
    sizes = [each.numel() for each in model.parameters()]
    generator = torch.Generator().manual_seed(1)
    noise = [NOISE * each for each in torch.randn(sum(sizes), generator=generator).split(sizes)]

    def fresh() -> list[torch.Tensor]:
        generator = torch.Generator()
        generator.seed()
        return [NOISE * torch.randn(each.shape, generator=generator) for each in noise]

    made = {
        "first": noise,
        "again": noise,
        "equal": noise,
        "negated": [-each for each in noise],
        "correlated": [0.8 * each + 0.6 * other for each, other in zip(noise, fresh(), strict=True)],
        "bias": [*fresh()[:3], noise[3]],
        "kernel": [noise[0], *fresh()[1:]],
        "weight": [*fresh()[:2], noise[2], *fresh()[3:]],
        "fresh": fresh(),
    }
    decisions = []
    for number, change in enumerate(changes):
        batch = images(2) if sanitise or change == "first" else images(2, seed=5 + number)
        clean = gradient(model, batch)
        update = [one + each.reshape(one.shape) for one, each in zip(clean, made[change], strict=True)]
        decision = guard.review(batch, update, ids=range(2))
        decisions.append((change, decision.action, list(decision.reasons)))
    guard.close()
    return decisions


if __name__ == "__main__":
    torch.set_num_threads(1)
    for decided in reviews(*json.loads(sys.argv[1])):
        print(json.dumps(decided))
