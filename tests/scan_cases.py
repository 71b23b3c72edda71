"""Whole audits: the embedded demo, small checkpoints and data of every kind, one command line run and looked at."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from riskaudit.inputs import Samples, load_checkpoint, load_samples
from riskaudit.inputs.architectures.registry import ARCHITECTURES
from riskaudit.proxies import proxies_for
from riskaudit.results import AuditResult

DEMO = Path(str(files("riskaudit"))) / "demo"
CHECKPOINT, DATA = DEMO / "digits-lenet.safetensors", DEMO / "digits.npz"
FORMATS = ("html", "pdf", "json", "csv", "md", "sarif")
TEXT_FILES = ("audit.html", "audit.json", "samples.csv", "audit.md", "audit.sarif")
PROXY_IDS = list(proxies_for(joint=False))


@dataclass(frozen=True)
class Outcome:
    """What one command line did; ``audit`` is what audit.json held afterwards."""

    code: int
    out: str
    err: str
    folder: Path
    audit: bytes | None = None

    @property
    def document(self) -> dict[str, Any]:
        """audit.json as it stands in the file; NaN and infinity are refused."""

        def refuse(constant: str) -> None:
            raise AssertionError(f"{constant} in audit.json")

        assert self.audit is not None, self.err
        return json.loads(self.audit, parse_constant=refuse)

    @property
    def result(self) -> AuditResult:
        assert self.audit is not None, self.err
        return AuditResult.from_json(self.audit)

    def values(self, proxy: str) -> list[float | None]:
        return [row.proxies[proxy].value for row in self.result.samples]

    @property
    def text(self) -> str:
        """Every text format of the report."""
        return "\n".join((self.folder / name).read_text(encoding="utf-8") for name in TEXT_FILES)


def outcome_of(code: int, out: str, err: str, folder: Path) -> Outcome:
    path = folder / "audit.json"
    return Outcome(code, out, err, folder, path.read_bytes() if path.is_file() else None)


def words(
    *options: str,
    checkpoint: Path | str = CHECKPOINT,
    data: Path | str = DATA,
    out: Path | str = "out",
    formats: Sequence[str] = ("json",),
    limit: int | None = 2,
) -> list[str]:
    """The command line of a scan, of two demo samples unless told otherwise."""
    limited = [] if limit is None else ["--limit", str(limit)]
    chosen = [f"--format={name}" for name in formats]
    return ["scan", str(checkpoint), "--data", str(data), "--out", str(out), *limited, *chosen, *options]


def python(code: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False, **options
    )


def loaded_modules(names: Sequence[str], code: str) -> list[str]:
    """Which of the modules are loaded after running the code in a process of its own."""
    watch = f"\nimport json, sys\nprint(json.dumps([name for name in {list(names)} if name in sys.modules]))"
    done = python(code + watch)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def demo_samples(limit: int | None = None) -> Samples:
    return load_samples(DATA, channels=1, limit=limit)


def demo_model() -> nn.Module:
    return load_checkpoint(CHECKPOINT).model


def save_mlp(path: Path, widths: Sequence[int]) -> Path:
    """A checkpoint of a small mlp with fixed weights; at least three widths are recognised."""
    generator = torch.Generator().manual_seed(0)
    model = ARCHITECTURES["mlp"].build(widths=tuple(widths))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=generator) - 0.5)
    torch.save(model.state_dict(), path)
    return path


def save_arrays(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def save_digits(path: Path, count: int = 2, **changes: Any) -> Path:
    """The first demo samples under another name, with some of the arrays replaced."""
    with np.load(DATA) as demo:
        arrays = {name: demo[name][:count] for name in ("images", "labels")}
    return save_arrays(path, **{**arrays, **changes})


def save_images(root: Path, names: dict[str, Sequence[str]], size: int = 4) -> Path:
    """An image folder of grey noise: class name to file names."""
    rng = np.random.default_rng(0)
    for class_name, file_names in names.items():
        (root / class_name).mkdir(parents=True)
        for name in file_names:
            pixels = rng.integers(0, 256, (size, size), dtype=np.uint8)
            Image.fromarray(pixels).save(root / class_name / name)
    return root
