"""One of two processes on loopback: RANK FOLDER. Saves what it saw of every round for test_average_guard.py."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from integration_cases import LENIENT, STD, STRICT, backward, gradient, small_batch, small_guard, small_model, weights
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from riskaudit.errors import SettingsError
from riskaudit.guard import Policy
from riskaudit.integrations.ddp import AverageGuard, Round, add_noise

NOISY = Policy(max_revealed=0.001, on_violation="sanitise")


def main(rank: int, folder: Path) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=2, timeout=timedelta(seconds=20)
    )
    model = small_model(seed=rank)
    # Takes over rank 0's weights.
    ddp = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    batch = small_batch(seed=10 + rank)
    results = {}

    def play(name: str, policy: Policy, min_ranks: int, fail: str = "") -> None:
        average_guard = AverageGuard(small_guard(model, policy), ddp, min_ranks=min_ranks)
        before, own = weights(model), None
        with average_guard.round(batch) as current:
            if fail == "before":
                raise ValueError("a private row")
            backward(ddp, batch)
            if fail == "after":
                raise ValueError("a private row")
            if fail == "nan":
                next(model.parameters()).grad[0, 0] = torch.nan
            add_noise(model, STD)
            own = gradient(model)
        after = gradient(model)
        optimizer.step()
        results[name] = seen(current, own) | {"before": before, "gradient": after, "weights": weights(model)}

    second = rank == 1
    play("both", LENIENT, 2)
    play("one withheld", STRICT if second else LENIENT, 1)
    play("too few", STRICT if second else LENIENT, 2)
    play("none", STRICT, 1)
    play("fails before its forward pass", LENIENT, 1, "before" if second else "")
    play("fails after its backward pass", LENIENT, 1, "after" if second else "")
    play("not a number", LENIENT, 1, "nan" if second else "")
    play("one fails, too few", LENIENT, 2, "before" if second else "")
    play("sanitised", NOISY if second else LENIENT, 2)
    play("both again", LENIENT, 2)
    results["refused"] = [
        refusal(lambda: AverageGuard(small_guard(model), model if rank else small_model(), min_ranks=1)),
        refusal(lambda: AverageGuard(small_guard(model), ddp, min_ranks=1 + rank)),
        refusal(lambda: AverageGuard(small_guard(model), ddp, min_ranks=3)),
        refusal(with_buffers),
    ]
    torch.save(results, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


def seen(current: Round, own: torch.Tensor | None) -> dict:
    decision = current.decision
    update = decision.update and torch.cat([one.reshape(-1) for one in decision.update])
    return {
        "action": decision.action, "reasons": decision.reasons, "update": update, "own": own,
        "num_contributing": current.num_contributing, "averaged": current.averaged,
    }  # fmt: skip


def with_buffers() -> None:
    model = nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    AverageGuard(small_guard(model), DistributedDataParallel(model))


def refusal(make) -> str:
    try:
        make()
    except SettingsError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
