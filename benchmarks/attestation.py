"""False alarms and power of ``riskaudit attest`` on uploads of a trained network.

    python -m benchmarks.attestation [--draws 400]

Uploads are gradients of the demo's network on batches of 8 digits, clipped to norm 1, with noise drawn anew: as
declared, half of it, and none. Each is attested at a false alarm rate of 5 %, alone, with the received model and its
loss, and with the update before noise. Counted is how often it is refused, told to be as declared, and neither.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.options import Printer
from benchmarks.options import Settings as Measurement
from benchmarks.tables import Table
from riskaudit import attest
from riskaudit.inputs import Checkpoint, Samples, load_checkpoint, load_samples
from riskaudit.release import Noise

RATE, CLIP, BATCH = 0.05, 1.0, 8
NOISES = (Noise("gaussian", 0.001), Noise("gaussian", 0.01), Noise("laplace", 0.01))
SCALES = {"as declared": 1.0, "half": 0.5, "none": 0.0}
WITH = ("alone", "received model and loss", "clean update")


def clipped_gradient(checkpoint: Checkpoint, samples: Samples, indices: Sequence[int]) -> dict[str, Tensor]:
    """Of the mean loss over some samples, scaled down to the clip norm."""
    model = checkpoint.model
    loss = F.cross_entropy(model(samples.inputs[indices].float()), samples.targets[indices])
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradient = torch.autograd.grad(loss, parameters)
    norm = torch.cat([value.flatten() for value in gradient]).norm()
    return {name: value / max(1.0, float(norm) / CLIP) for name, value in zip(names, gradient, strict=True)}


def noisy(clean: Mapping[str, Tensor], noise: Noise, scale: float, generator: torch.Generator) -> dict[str, Tensor]:
    """An upload with some share of its noise."""
    return {
        name: value + scale * noise.sample(value.numel(), generator, torch.float64).reshape(value.shape).float()
        for name, value in clean.items()
    }


def measured(draws: int) -> Table:
    """How often each upload is refused."""
    demo = Path(str(files("riskaudit"))) / "demo"
    checkpoint = load_checkpoint(demo / "digits-lenet.safetensors", arch="lenet")
    samples = load_samples(demo / "digits.npz", channels=1)
    columns = {"declared": "declared", "with": "attested with", "noise": "noise that is there"}
    columns |= {"refused": "refused", "as_declared": "as declared", "neither": "could not tell"}
    table = Table(f"lenet, {checkpoint.num_parameters} parameters, {draws} uploads each", columns)
    for noise in NOISES:
        for given in WITH:
            for words, scale in SCALES.items():
                counts = count(checkpoint, samples, noise, scale, given, draws)
                row: dict[str, Any] = {"declared": f"clip:{CLIP:g},{noise.law}:{noise.scale:g}", "with": given}
                row |= {"noise": words, "refused": f"{counts['not_as_declared'] / draws:.1%}"}
                row |= {"as_declared": f"{counts['as_declared'] / draws:.1%}"}
                table.rows.append(row | {"neither": f"{counts['could_not_tell'] / draws:.1%}"})
    table.notes.append(f"A false alarm rate of {RATE:.0%} was asked for.")
    return table


def count(checkpoint: Checkpoint, samples: Samples, noise: Noise, scale: float, given: str, draws: int) -> Counter[str]:
    """Outcomes of so many uploads."""
    generator, outcomes = torch.Generator().manual_seed(0), Counter[str]()
    for _ in range(draws):
        indices = torch.randperm(len(samples), generator=generator)[:BATCH].tolist()
        clean = clipped_gradient(checkpoint, samples, indices)
        options: dict[str, Any] = {"false_alarm": RATE}
        if given == "received model and loss":
            options |= {"received": checkpoint, "loss": "cross-entropy"}
        elif given == "clean update":
            options["clean"] = clean
        upload = noisy(clean, noise, scale, generator)
        outcomes[attest(upload, f"clip:{CLIP},{noise.law}:{noise.scale}", **options).outcome] += 1
    return outcomes


def main(arguments: Sequence[str] | None = None) -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there too")
    given = parser.parse_args(arguments)
    measurement = Measurement()
    measurement.apply()
    printer = Printer("Attestations of uploads", measurement)
    printer.add(measured(given.draws))
    printer.finish(given.json)


if __name__ == "__main__":
    main()
