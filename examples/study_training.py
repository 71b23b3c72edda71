"""Train a network, keep checkpoints, and see how what it leaks changes; takes the folder for results.

Run: python examples/study_training.py FOLDER
"""

from __future__ import annotations

import sys
from importlib.resources import files
from pathlib import Path

import torch
import torch.nn.functional as F

import riskaudit
from riskaudit.inputs.architectures import get_architecture
from riskaudit.studies.training.record import TrainingStudy
from riskaudit.studies.training.run import training_study

STEPS = (0, 20, 100)


def main(folder: Path) -> None:
    run = folder / "checkpoints"
    run.mkdir(parents=True, exist_ok=True)
    samples = riskaudit.load_samples(Path(str(files("riskaudit") / "demo" / "digits.npz")), channels=1)
    train(samples, run)

    settings = riskaudit.AuditSettings(release="gaussian:0.003")
    result = training_study([run], samples.select(list(range(8))), settings)

    study = result.studies.get(TrainingStudy)
    for row in study.rows:
        error = row.posterior_rmse
        if error is None:
            print(f"step {row.step}: {row.reason}")
        else:
            least = f"{error.worst:.3f} for sample {error.worst_sample}"
            print(f"step {row.step}: accuracy {row.accuracy:.0%}, error left {error.mean:.3f} on average, {least}")
    print(study.summary)
    (folder / "audit.html").write_bytes(riskaudit.render(result, ["html"])["audit.html"])
    print(f"wrote {folder / 'audit.html'}")


def train(samples: riskaudit.Samples, run: Path) -> None:
    torch.manual_seed(0)
    model = get_architecture("lenet").build(channels=1, features=48, classes=10)
    for parameter in model.parameters():
        torch.nn.init.uniform_(parameter, -0.5, 0.5)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(max(STEPS) + 1):
        if step in STEPS:
            torch.save(model.state_dict(), run / f"step{step}.pt")
        optimizer.zero_grad()
        F.cross_entropy(model(samples.inputs.float()), samples.targets).backward()
        optimizer.step()


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "training"))
