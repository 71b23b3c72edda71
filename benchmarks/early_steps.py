"""Three defences from the first step on: attacks that don't care beside those made for them, and the prediction.

    python -m benchmarks.early_steps [soteria|ats|precode] --data ../shared/data

Balunovic et al., ICLR 2022, figures 2 and 6. MNIST images averaged to 14 x 14 pixels, plain SGD in batches of 32, by
what leaves: Soteria and ATS on the layers of LeNet with tanh, PRECODE on a perceptron of one hidden layer, its draw
known to the attacker. Nothing adds noise; predictions and attacks are at a reference noise of 1e-6 and less, so that
what resists is the defence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from benchmarks.agreement import FIRST
from benchmarks.defenses import SIZE, pooled
from benchmarks.options import Printer, Settings, experiment_parser
from benchmarks.tables import Table
from benchmarks.training import lenet
from riskaudit.audit import AuditSettings
from riskaudit.inputs import Checkpoint
from riskaudit.inputs.architectures import get_architecture
from riskaudit.studies.base import StudyRun
from riskaudit.studies.training.own_run import STEPS, own_training_study
from riskaudit.studies.training.record import TrainingRow, TrainingStudy

IMAGES, TRAINING = 2, 1600


@dataclass(frozen=True)
class Case:
    """A defence, and how it is looked at.

    Attributes:
        settings: of the audit that name the defence.
        attacks: those that don't care about it.
        steps: of the training.
        attack_steps: at most.
        noise: reference noise of predictions and attacks.
        rate: of plain SGD.
        convolutional: whether the network is LeNet's.
    """

    settings: dict[str, str]
    attacks: tuple[str, ...]
    steps: tuple[int, ...] = STEPS
    attack_steps: int = 400
    noise: float = 1e-6
    rate: float = 0.3
    convolutional: bool = True

    def model(self) -> nn.Module:
        """Before training."""
        if self.convolutional:
            return lenet((1, SIZE, SIZE), nn.Tanh)
        torch.manual_seed(0)
        return get_architecture("mlp").build(widths=(SIZE * SIZE, 100, 10)).eval()


CASES = {
    # Larger steps make the bottleneck's variances infinite.
    "precode": Case(
        {"model_defense": "precode"}, ("inverting-gradients",), STEPS[:7], noise=1e-9, rate=0.01, convolutional=False
    ),
    "ats": Case({"release": "ats:7-4-15"}, ("inverting-gradients",)),
    "soteria": Case({"release": "soteria:80"}, ("inverting-gradients",), STEPS[:7], 200),
}


def follow(name: str, folder: Path, *, quick: bool) -> Table:
    """Train one network and attack it on the way."""
    case = CASES[name]
    test = pooled(folder / "mnist_test.npz", FIRST + IMAGES)
    steps = (0, 1) if quick else case.steps
    result = own_training_study(
        Checkpoint.from_model(case.model(), name=name),
        test.select(list(range(FIRST, FIRST + IMAGES))),
        pooled(folder / "mnist_train.npz", 64 if quick else TRAINING),
        AuditSettings(reference_noise=case.noise, checks=False, **case.settings),  # type: ignore[arg-type]
        StudyRun(attacks=True, attack_steps=2 if quick else case.attack_steps),
        steps=steps,
        rate=case.rate,
        attacks=case.attacks,
    )
    study = result.studies.get(TrainingStudy)
    assert study is not None
    names = list(dict.fromkeys(attack for row in study.rows for attack in row.attack_errors))
    columns = {
        "step": "step", "loss": "loss", "norm": "gradient norm", "mean": "predicted PSNR", "relative": "relative noise",
        **{attack: f"{attack}: PSNR" for attack in names},
    }  # fmt: skip
    table = Table(f"{name}, {IMAGES} images, noise {case.noise:g}, PSNR in dB, means over the images", columns)
    table.rows = [_row(row, names) for row in study.rows]
    table.notes += [f"step {row.step}: {row.reason}" for row in study.rows if row.reason]
    table.notes += study.notes
    return table


def _row(row: TrainingRow, names: Sequence[str]) -> dict[str, object]:
    attacked = {
        name: _psnr([risk.attack_errors[name] for risk in row.samples if name in risk.attack_errors]) for name in names
    }
    return {
        "step": row.step,
        "loss": row.mean_loss,
        "norm": row.median_gradient_norm,
        "mean": _psnr([risk.posterior_rmse.reliable for risk in row.samples]),
        "relative": None if row.relative_rmse is None else _psnr([row.relative_rmse.mean]),
        **attacked,
        "study": row.model_dump(mode="json"),
    }


def _psnr(errors: Sequence[float | None]) -> float | None:
    """Mean PSNR of pixels in [0, 1] with these RMSEs, in dB."""
    known = [-20 * math.log10(max(error, 1e-16)) for error in errors if error is not None]
    return sum(known) / len(known) if known else None


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the defences named."""
    parser = experiment_parser(__doc__, "mnist_train.npz and mnist_test.npz")
    parser.add_argument("names", nargs="*", metavar="|".join(CASES))
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.names) - set(CASES)):
        parser.error(f"expected {', '.join(CASES)}, found {unknown[0]}")
    measurement = Settings(threads=options.threads, dtype="float64")
    measurement.apply()
    printer = Printer("Defences early in training", measurement)
    for name in options.names or CASES:
        printer.add(follow(name, options.data, quick=options.quick))
    printer.finish(options.json)


if __name__ == "__main__":
    main()
