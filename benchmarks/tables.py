"""Markdown tables that also read well as plain text, and the same rows as JSON."""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch


@dataclass
class Table:
    """Rows of numbers under a title.

    Attributes:
        title: a Markdown heading without its marks.
        columns: heading of each column by its key in the rows.
        rows: by column key, values as `shown` takes them; keys without a column go to the JSON file only.
        notes: lines below the table.
    """

    title: str
    columns: Mapping[str, str]
    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def markdown(self) -> str:
        """The table, its columns aligned."""
        lines = [list(self.columns.values())]
        lines += [[shown(row.get(key)) for key in self.columns] for row in self.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.columns))]
        rows = [_row(line, widths) for line in lines]
        rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
        parts = [f"### {self.title}", "", rows[0], rule, *rows[1:], ""]
        return "\n".join([*parts, *(f"{note}\n" for note in self.notes)])


@dataclass(frozen=True)
class Spread:
    """A median with the least and the largest of its rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of a list of numbers."""
        return cls(statistics.median(values), min(values), max(values))


def shown(value: Any) -> str:
    """A cell: numbers to three digits, a `Spread` as ``median (low-high)``, nothing as a dash."""
    if value is None:
        return "-"
    if isinstance(value, Spread):
        return f"{shown(value.median)} ({shown(value.low)}-{shown(value.high)})"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"


def machine(threads: int, dtype: str, device: torch.device) -> str:
    """One line on hardware and versions; no name of the machine."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count()
    parts = [_processor(), f"{cores} cores", f"{threads} thread{'s' if threads > 1 else ''}"]
    if device.type == "cuda":
        parts.insert(0, torch.cuda.get_device_name(device))
    return ", ".join([*parts, f"torch {torch.__version__}", dtype, datetime.date.today().isoformat()])


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def saved_tables(path: Path | None) -> list[Table]:
    """Tables that `save_json` wrote; none where there is no file."""
    if path is None or not path.exists():
        return []

    def spread(value: Any) -> Any:
        return Spread(**value) if isinstance(value, dict) and set(value) == {"median", "low", "high"} else value

    return [
        Table(
            each["title"],
            each["columns"],
            [{key: spread(value) for key, value in row.items()} for row in each["rows"]],
            each["notes"],
        )
        for each in json.loads(path.read_text())["tables"]
    ]


def save_json(path: Path, header: str, tables: Sequence[Table]) -> None:
    """Everything that was printed, with the numbers in full."""
    content = [vars(table) for table in tables]
    path.write_text(json.dumps({"machine": header, "tables": content}, indent=1, default=vars) + "\n")
