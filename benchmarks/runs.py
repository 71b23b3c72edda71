"""A run's throughput by its number of workers, their memory, and what is merged after everything was killed twice.

    python -m benchmarks.runs --data ../shared/data --samples 2000 --checkpoints 3

One run is created and copied, so that all copies merge to the same bytes or don't. The first is worked on by one
worker, the second by several, the third by several that are killed twice with all that started them (SIGKILL). Seconds
are from the command's start to its end; merges, which come after all of them, are not among them. A worker's memory is
its largest so far, read when a tenth of the shards are finished and at the end. Linux only.

The audits are cheap ones, of about a tenth of a second a sample: 2,000 samples of 3 checkpoints take a quarter of an
hour on two cores, and the merges five minutes.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from benchmarks.options import Printer, Settings, experiment_parser
from benchmarks.tables import Table
from riskaudit.cli.app import run as command
from riskaudit.inputs.architectures.registry import get_architecture
from riskaudit.runs.folder import RunFolder

COLUMNS = {
    "work": "work",
    "seconds": "s",
    "rate": "samples per s",
    "ratio": "times one worker",
    "work_seconds": "CPU s per sample",
    "auditing": "share in shards",
    "early": "MiB a worker, early",
    "end": "MiB a worker, end",
    "result": "merged audits",
}
# Where images come from, until there are enough.
SOURCES = ("mnist_test.npz", "mnist_train.npz")
# Cheap: the headline alone, coarse, without checks.
CHEAP = ("--solver", "lanczos", "--proxies", "revealed_fraction", "--precision", "0.25", "--no-checks")
NOISE = "gaussian:0.01"
KILLS = (1 / 3, 2 / 3)
PAUSE = 0.1


@dataclass
class Working:
    """What was seen of one way to work.

    Attributes:
        seconds: of all commands together.
        peaks: largest resident memory of some worker, MiB, by how many shards were finished.
        worked: seconds that processors worked for each worker, as last seen, by its number.
    """

    seconds: float = 0.0
    peaks: list[tuple[int, float]] = field(default_factory=list)
    worked: dict[int, float] = field(default_factory=dict)

    def memory(self, finished: Callable[[int], bool]) -> float | None:
        """The most of any worker while so many shards were finished."""
        return max((peak for count, peak in self.peaks if finished(count)), default=None)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = experiment_parser(__doc__, " and ".join(SOURCES))
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--checkpoints", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--shard", type=int, default=50)
    options = parser.parse_args(arguments)
    if options.quick:
        options.samples, options.checkpoints, options.shard = 4, 1, 1
    printer = Printer("A run by its workers", Settings(dtype="float64", threads=options.threads, repeats=1))
    with tempfile.TemporaryDirectory() as folder:
        printer.add(measure(options, Path(folder)))
    printer.finish(options.json)


def measure(options: argparse.Namespace, folder: Path) -> Table:
    """The table of one worker, several, and several that are killed."""
    create(options, folder / "one")
    several, killed = folder / "several", folder / "killed"
    for copy in (several, killed):
        shutil.copytree(folder / "one", copy)
    total = options.samples * options.checkpoints
    ways = {
        "1 worker": (folder / "one", 1, ()),
        f"{options.workers} workers": (several, options.workers, ()),
        f"{options.workers} workers, killed twice": (killed, options.workers, KILLS),
    }
    title = f"lenet-28, {options.samples} samples x {options.checkpoints} checkpoints, shards of {options.shard}"
    table = Table(title, COLUMNS)
    seen = {name: work(run, workers, kills) for name, (run, workers, kills) in ways.items()}
    first: dict[str, Any] = {}
    for name, (run, workers, _) in ways.items():
        row = row_of(run, seen[name], workers, total)
        first = first or row
        row["work"], row["ratio"] = name, row["rate"] / first["rate"]
        row["result"] = "" if row is first else "equal" if row["sha256"] == first["sha256"] else "DIFFER"
        table.rows.append(row)
    table.notes.append(
        f"Audits: {' '.join(CHEAP)}, {NOISE}; one thread a worker. Shards' share: seconds within shards over those "
        "of all workers; the rest is loading, and at the end waiting for the last shard."
    )
    return table


def create(options: argparse.Namespace, run: Path) -> None:
    """The run, of lenets with weights by seeds."""
    files = []
    for seed in range(options.checkpoints):
        generator = torch.Generator().manual_seed(seed)
        model = get_architecture("lenet").build(channels=1, features=12 * 7 * 7, classes=10)
        for parameter in model.parameters():
            nn.init.uniform_(parameter, -0.5, 0.5, generator=generator)
        files.append(run.with_name(f"lenet-{seed}.safetensors"))
        save_file(model.state_dict(), files[-1])
    data = save_images(options, run.with_name("images.npz"))
    words = ["run", "create", str(run), *map(str, files), "--data", str(data)]
    words += ["--shard", str(options.shard), "--arch", "lenet", "--quiet"]
    if command([*words, "--release", NOISE, "--threads", str(options.threads), *CHEAP]) != 0:
        raise SystemExit("the run can't be created")


def save_images(options: argparse.Namespace, path: Path) -> Path:
    """As many images as are wanted, in a file."""
    images, labels = list[np.ndarray](), list[np.ndarray]()
    for source in (options.data / name for name in SOURCES):
        left = options.samples - sum(map(len, images))
        if left > 0 and source.exists():
            with np.load(source) as arrays:
                images.append(arrays["images"][:left])
                labels.append(arrays["labels"][:left])
    found = sum(map(len, images))
    if found < options.samples:
        raise SystemExit(f"expected {options.samples} images in {' and '.join(SOURCES)}, found {found}")
    np.savez(path, images=np.concatenate(images), labels=np.concatenate(labels))
    return path


def work(run: Path, workers: int, kills: Sequence[float]) -> Working:
    """Work until all is done, killing everything whenever another of these shares is finished."""
    opened, seen = RunFolder.open(run), Working()
    total = len(opened.manifest.units)
    words = [sys.executable, "-m", "riskaudit", "run", "work", str(run), "--workers", str(workers), "--quiet"]
    for share in (*kills, None):
        began = time.monotonic()
        # A session of its own, so that all of it can be killed at once.
        process = subprocess.Popen(words, start_new_session=True)
        try:
            while process.poll() is None:
                finished = len(opened.store.finished())
                for pid, peak, worked in workers_of(process.pid):
                    seen.peaks.append((finished, peak))
                    seen.worked[pid] = worked
                if share is not None and finished >= share * total:
                    break
                time.sleep(PAUSE)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
        seen.seconds += time.monotonic() - began
        if share is None and code != 0:
            raise SystemExit(f"the work ended with exit code {code}")
    return seen


def workers_of(session: int) -> list[tuple[int, float, float]]:
    """Number, largest resident memory in MiB, and seconds of work so far of the workers in a session."""
    found = []
    for folder in Path("/proc").iterdir():
        with suppress(OSError, ValueError, StopIteration):
            if folder.name.isdecimal() and os.getsid(int(folder.name)) == session:
                if b"riskaudit.runs.worker" not in (folder / "cmdline").read_bytes():
                    continue
                lines = (folder / "status").read_text().splitlines()
                kibibytes = next(line for line in lines if line.startswith("VmHWM")).split()[1]
                # The name, which stands in parentheses, may hold anything.
                entries = (folder / "stat").read_text().rpartition(")")[2].split()
                worked = (int(entries[11]) + int(entries[12])) / os.sysconf("SC_CLK_TCK")
                found.append((int(folder.name), int(kibibytes) / 1024, worked))
    return found


def row_of(run: Path, seen: Working, workers: int, total: int) -> dict[str, Any]:
    """What is shown of one way to work, with a hash of all that is merged."""
    opened = RunFolder.open(run)
    units = opened.manifest.units
    shards = [opened.store.header(unit).seconds for unit in units]
    return {
        "seconds": seen.seconds,
        "rate": total / seen.seconds,
        "work_seconds": sum(seen.worked.values()) / total,
        "auditing": sum(shards) / (workers * seen.seconds),
        "early": seen.memory(lambda finished: finished <= len(units) / 10),
        "end": seen.memory(lambda finished: finished > len(units) / 10),
        "sha256": merged(run),
    }


def merged(run: Path) -> str:
    """Hash of all merged files."""
    out = run.with_name(f"{run.name}-merged")
    if command(["run", "merge", str(run), "--out", str(out), "--format", "json", "--quiet"]) != 0:
        raise SystemExit("the run can't be merged")
    digest = hashlib.sha256()
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        digest.update(path.relative_to(out).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


if __name__ == "__main__":
    main()
