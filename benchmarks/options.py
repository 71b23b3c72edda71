"""What both commands take on their command lines."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.models import CASES, DEFAULT_CASES, Case
from benchmarks.tables import Table, machine, save_json

QUICK_REPEATS = 1


@dataclass(frozen=True)
class Settings:
    """How to measure; can be sent to another process.

    Attributes:
        batch_size: samples at once, or None for each case's own.
        data: files to take inputs from, where their shape is right.
        dtype: "float32" or "float64".
        threads: of PyTorch on the processor.
        repeats: rounds.
        device: "cpu" or "cuda".
        quick: sizes that try the code and say nothing of speed.
    """

    batch_size: int | None = None
    data: tuple[Path, ...] = ()
    dtype: str = "float32"
    threads: int = 1
    repeats: int = 5
    device: str = "cpu"
    quick: bool = False

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of weights and inputs."""
        return {"float32": torch.float32, "float64": torch.float64}[self.dtype]

    @property
    def torch_device(self) -> torch.device:
        """Where the work is done."""
        return torch.device(self.device)

    def apply(self) -> None:
        """Set PyTorch's own switches."""
        torch.set_num_threads(self.threads)
        # Convolutions would otherwise round to 10 bits on CUDA, which none of the contestants asked for.
        torch.backends.cudnn.allow_tf32 = False

    def size(self, case: Case) -> int:
        """Samples at once for a case."""
        return self.batch_size or case.batch_size


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """The options that both commands share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(CASES), help="default: all that the device can take")
    parser.add_argument("--data", nargs="+", type=Path, default=[], metavar="FILE.npz", help="else random inputs")
    parser.add_argument("--batch-size", type=int, help="default: 64 for lenet and mlp, 8 resnet18, 4 resnet50")
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, help="rounds (default: 5)")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there too")
    parser.add_argument("--quick", action="store_true", help="tiny sizes that only try the code")
    return parser


def experiment_parser(description: str | None, data: str | None) -> argparse.ArgumentParser:
    """The options of experiments, on real images from the folder that ``data`` describes, or on random numbers."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if data is not None:
        parser.add_argument("--data", type=Path, required=True, help=f"folder of {data}")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there too")
    parser.add_argument("--quick", action="store_true", help="tiny sizes that only try the code")
    return parser


def read_settings(arguments: argparse.Namespace) -> tuple[Settings, list[Case]]:
    """Settings and cases from parsed options."""
    automatic = "cuda" if torch.cuda.is_available() else "cpu"
    settings = Settings(
        batch_size=arguments.batch_size,
        data=tuple(arguments.data),
        dtype=arguments.dtype,
        threads=arguments.threads,
        repeats=arguments.repeats or (QUICK_REPEATS if arguments.quick else Settings.repeats),
        device=automatic if arguments.device == "auto" else arguments.device,
        quick=arguments.quick,
    )
    names = arguments.models or (["tiny"] if arguments.quick else DEFAULT_CASES)
    cases = [CASES[name] for name in names]
    if not arguments.models:
        cases = [case for case in cases if settings.device == "cuda" or not case.needs_cuda]
    settings.apply()
    return settings, cases


class Printer:
    """Prints tables as they are made, and saves them all at the end."""

    def __init__(self, title: str, settings: Settings) -> None:
        self.header = machine(settings.threads, settings.dtype, settings.torch_device)
        self.tables: list[Table] = []
        print(f"## {title}\n\n{self.header}\n", flush=True)

    def add(self, table: Table) -> None:
        """Print one table."""
        self.tables.append(table)
        print(table.markdown(), flush=True)

    def finish(self, path: Path | None) -> None:
        """Write the JSON file, if one is wanted."""
        if path is not None:
            save_json(path, self.header, self.tables)
