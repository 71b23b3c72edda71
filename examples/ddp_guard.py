"""Two data-parallel processes, each with a guard of its own, average what the guards let pass; takes a folder.

Run: python examples/ddp_guard.py FOLDER

The second rank adds too little noise in round 2 and fails in round 3. Its gradient stays with it; the first rank's
doesn't leave either, since it would be alone in the average (min_ranks=2), and the round after works again.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from riskaudit.guard import Guard, Policy
from riskaudit.integrations.ddp import AverageGuard, add_noise

RANKS, BATCH, ROUNDS, STD = 2, 16, 4, 0.1


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    # Both processes are on this machine: nothing listens on its other addresses.
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    mp.spawn(train, args=(folder,), nprocs=RANKS)
    print((folder / "rounds.txt").read_text(encoding="utf-8"), end="")
    for name in ("rounds.txt", "guard-0.jsonl", "guard-1.jsonl"):
        print(f"wrote {folder / name}")


def train(rank: int, folder: Path) -> None:
    meeting = folder / "meeting"
    dist.init_process_group("gloo", init_method=f"file://{meeting.resolve()}", rank=rank, world_size=RANKS)
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 4))
    model = DistributedDataParallel(plain)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    images, labels = torch.rand(ROUNDS, BATCH, 1, 8, 8) + rank / 4, torch.arange(BATCH) % 4

    guard = Guard(
        plain, F.cross_entropy, Policy(max_revealed=0.3), prior_std=0.3, release=f"gaussian:{STD}",
        log=folder / f"guard-{rank}.jsonl",
    )  # fmt: skip
    average_guard = AverageGuard(guard, model, min_ranks=RANKS)
    lines = []
    for number, inputs in enumerate(images, start=1):
        with average_guard.round((inputs, labels)) as current:
            if rank == 1 and number == 3:
                raise RuntimeError("something went wrong")
            F.cross_entropy(model(inputs), labels).backward()
            add_noise(plain, STD / 10 if rank == 1 and number == 2 else STD)
        optimizer.step()
        outcome = "the average was used" if current.averaged else "nobody stepped"
        lines.append(f"round {number}: {current.num_contributing} of {RANKS} ranks contributed, {outcome}\n")
    if rank == 0:
        (folder / "rounds.txt").write_text("".join(lines), encoding="utf-8")
    # A rank that leaves first may take the connection from the others.
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "ddp-guard"))
