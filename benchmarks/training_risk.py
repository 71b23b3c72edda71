"""How the leak changes with training: the mean over samples and the most exposed one, against accuracy.

    python -m benchmarks.training_risk [lenet|relu|resnet18] --data ../shared/data --scratch FOLDER

``lenet`` (sigmoid, uniform weights) and ``relu`` (the same layers with ReLU, PyTorch's weights) at 0, 1, 5 and 20
epochs of Adam on 9000 MNIST images; ``resnet18`` at 0, 1 and 5 epochs on 1000 CIFAR-10 images, bracketed by Lanczos
iterations within a budget. Reported samples are test images. Without a name, the first two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from benchmarks.agreement import FIRST, MNIST
from benchmarks.options import Printer, experiment_parser
from benchmarks.options import Settings as Measurement
from benchmarks.tables import Spread, Table
from benchmarks.training import accuracy, lenet, train
from riskaudit.audit import AuditSettings
from riskaudit.inputs import Checkpoint, Samples, load_samples
from riskaudit.inputs.architectures import get_architecture
from riskaudit.studies.base import StudyRun
from riskaudit.studies.training.record import TrainingStudy
from riskaudit.studies.training.run import training_study

ATTACKS = ("gauss-newton", "local")


@dataclass(frozen=True)
class Case:
    """One network and what it is trained on.

    Attributes:
        epochs: at which it is audited.
        training: file of training images, how many of them, and their channels.
        test: file of reported and test images.
        count: reported images, and images that the test accuracy is of.
        budget: seconds per checkpoint for iterations; None for all eigenvalues.
    """

    epochs: tuple[int, ...]
    training: tuple[str, int | None, int]
    test: str
    count: tuple[int, int]
    budget: float | None = None

    def model(self, name: str) -> nn.Module:
        """Before training."""
        if name == "resnet18":
            torch.manual_seed(0)
            return get_architecture("resnet18").build(channels=3, classes=10).eval()
        return lenet(MNIST, nn.Sigmoid if name == "lenet" else nn.ReLU)


CASES = {
    "lenet": Case((0, 1, 5, 20), ("mnist_train.npz", None, 1), "mnist_test.npz", (32, 1000)),
    "relu": Case((0, 1, 5, 20), ("mnist_train.npz", None, 1), "mnist_test.npz", (32, 1000)),
    "resnet18": Case((0, 1, 5), ("cifar10_train.npz", 1000, 3), "cifar10_test.npz", (4, 500), 100.0),
}
DEFAULT = ("lenet", "relu")


def follow(name: str, folder: Path, scratch: Path, noise: float, *, attacks: bool, quick: bool) -> Table:
    """Train one network, audit its checkpoints."""
    case = CASES[name]
    epochs = (0, 1) if quick else case.epochs
    file, limit, channels = case.training
    images = load_samples(folder / file, channels=channels, limit=64 if quick else limit)
    count, num_test = (2, 20) if quick else case.count
    every = load_samples(folder / case.test, channels=channels, limit=FIRST + num_test)
    samples, test = every.select(list(range(FIRST, FIRST + count))), every.select(list(range(FIRST, len(every))))
    model = case.model(name)
    scores, files = checkpoints(model, name, images, test, epochs, scratch)
    settings = AuditSettings(
        solver="lanczos" if case.budget else "auto", budget=case.budget, reference_noise=noise,
        max_matvecs=4 if quick and case.budget else None, dtype="float32" if case.budget else "float64",
    )  # fmt: skip
    run = StudyRun(attacks=attacks, attack_steps=2 if quick and attacks else None)
    result = training_study(files, samples, settings, run, load=lambda path: read(path, model), attacks=ATTACKS)
    study = result.studies.get(TrainingStudy)
    columns = {
        "epochs": "epochs",
        "test": "test accuracy",
        "accuracy": "accuracy on samples",
        "norm": "gradient norm: median",
        "mean": "posterior RMSE: mean (95 %)",
        "least": "least",
        "revealed": "revealed: mean",
        "most": "most",
        **({"attack": "gauss-newton: mean", "attack least": "least "} if attacks else {}),
    }
    table = Table(f"{name}, {count} images, noise {noise:g}, guess {study.prior_rmse:.3f}", columns)
    for row, score in zip(study.rows, scores, strict=True):
        error, revealed, attack = row.posterior_rmse, row.revealed_fraction, row.attack_rmse
        if error is None or revealed is None:
            table.notes.append(f"{row.name}: {row.reason}")
            continue
        known = error.low is not None and error.high is not None
        table.rows.append(
            {
                "epochs": row.step,
                "test": score,
                "accuracy": row.accuracy,
                "norm": row.median_gradient_norm,
                "mean": Spread(error.mean, error.low, error.high) if known else error.mean,  # type: ignore[arg-type]
                "least": error.worst,
                "revealed": revealed.mean,
                "most": revealed.worst,
                "attack": None if attack is None else attack.mean,
                "attack least": None if attack is None else attack.worst,
                "study": row.model_dump(mode="json"),
            }
        )
    table.notes.append(study.summary)
    table.notes.append(f"Solver: {result.settings.solver}, {result.settings.dtype}.")
    return table


def checkpoints(
    model: nn.Module, name: str, images: Samples, test: Samples, epochs: Sequence[int], scratch: Path
) -> tuple[list[float], list[Path]]:
    """Train and save; test accuracy and file of every checkpoint."""
    scores, files, done = [], [], 0
    for epoch in epochs:
        # Another order of the images in every stretch of epochs.
        train(model, images, epoch - done, seed=done)
        done = epoch
        files.append(scratch / f"{name}-epoch-{epoch}.pt")
        torch.save(model.state_dict(), files[-1])
        scores.append(accuracy(model, test))
    return scores, files


def read(path: Path, model: nn.Module) -> Checkpoint:
    """A checkpoint into the model that it is of."""
    model.load_state_dict(torch.load(path, weights_only=True))
    return Checkpoint.from_model(model, name=path.name)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the networks named."""
    parser = experiment_parser(__doc__, "mnist_train.npz and the others")
    parser.add_argument("names", nargs="*", metavar="|".join(CASES))
    parser.add_argument("--scratch", type=Path, required=True, help="folder for checkpoints")
    parser.add_argument("--attacks", action="store_true")
    parser.add_argument("--noise", type=float, default=1e-3, help="std per released entry")
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.names) - set(CASES)):
        parser.error(f"expected {', '.join(CASES)}, found {unknown[0]}")
    measurement = Measurement(threads=options.threads, dtype="float64")
    measurement.apply()
    options.scratch.mkdir(parents=True, exist_ok=True)
    printer = Printer("Leakage over training", measurement)
    for name in options.names or DEFAULT:
        printer.add(
            follow(
                name, options.data, options.scratch, options.noise, attacks=options.attacks, quick=options.quick
            )
        )  # fmt: skip
    printer.finish(options.json)


if __name__ == "__main__":
    main()
