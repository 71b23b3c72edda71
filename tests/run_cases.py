"""Runs of the demo's first digits in small shards, and what one audit without shards says of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from scan_cases import CHECKPOINT, DATA, demo_samples

import riskaudit
from riskaudit.results import AuditResult
from riskaudit.runs.folder import RunFolder
from riskaudit.runs.leases import Lease
from riskaudit.runs.run import Run
from riskaudit.runs.work import Worker

LIMIT, SHARD = 6, 2
NOISE = "gaussian:0.01"


def create(folder: Path, *, limit: int = LIMIT, shard: int = SHARD, heartbeat: float = 0.5, **options: Any) -> Run:
    options = {"release": NOISE, "arch": "lenet", **options}
    return Run.create(folder, [CHECKPOINT], DATA, limit=limit, shard=shard, heartbeat=heartbeat, **options)


def create_of_another_model(folder: Path) -> Run:
    """A run in ``folder / "run"`` whose checkpoint was replaced since."""
    model = folder / "model.safetensors"
    model.write_bytes(CHECKPOINT.read_bytes())
    run = Run.create(folder / "run", [model], DATA, limit=2, release="gaussian:0.01", arch="lenet")
    model.write_bytes(b"other")
    return run


def work_here(folder: Path, only: int | None = None) -> None:
    """Work in this process, which a worker's process does alike."""
    Worker(RunFolder.open(folder)).work(only)


def audited(limit: int = LIMIT, batch_size: int | None = SHARD, **options: Any) -> AuditResult:
    """The same audit in one piece."""
    options = {"release": NOISE, **options}
    checkpoint = riskaudit.load_checkpoint(CHECKPOINT, arch="lenet")
    return riskaudit.audit(checkpoint, demo_samples(limit), batch_size=batch_size, **options)


def numbers(result: AuditResult) -> dict[str, Any]:
    """All of a result but when it was made and what it cost."""
    document = json.loads(result.to_json())
    return {name: value for name, value in document.items() if name not in ("created_at", "command", "cost")}


def leave_lease(folder: Path, shard: int, generation: int, **fields: Any) -> Path:
    """A lease as a worker on another machine leaves it."""
    lease = Lease(**{"worker": "elsewhere:1", "machine": None, "process": "1@1", "since": "2026-01-01", **fields})
    path = folder / "leases" / f"{shard:06d}.{generation}.json"
    path.write_text(lease.model_dump_json(), encoding="utf-8")
    return path
