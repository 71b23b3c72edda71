"""Which defence protects most at equal utility: networks trained with each, attacked at both ends of the training.

    python -m benchmarks.defenses --data ../shared/data --scratch FOLDER

The layers of LeNet with tanh on MNIST images averaged to 14 x 14 pixels, 1600 of them for two epochs of plain SGD in
batches of 32, every sample an upload of its own. Four kinds of defences in three strengths, three seeds each, with
Gaussian noise of at least 0.001 behind all of them, which makes what is predicted that of noise that is really there;
without a defence networks are attacked at the reference noise of 0.001. Liu et al. ("Data reconstruction attacks and
defenses", section 5) find pruning the strongest defence. A run that was stopped goes on where it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch.nn.functional as F
from torch import nn

from benchmarks.agreement import FIRST
from benchmarks.options import Printer, Settings, experiment_parser
from benchmarks.tables import Spread, Table
from benchmarks.training import lenet
from riskaudit.audit import AuditSettings
from riskaudit.inputs import Checkpoint, Samples, load_samples
from riskaudit.studies.base import StudyRun
from riskaudit.studies.defenses.record import DefensesStudy, SeedMean
from riskaudit.studies.defenses.run import TrainingData, defenses_study
from riskaudit.studies.settings import DefenseSettings

NOISE, SIZE, SAMPLES = 0.001, 14, 6
DEFENSES = (
    *(f"gaussian:{std:g}" for std in (0.003, 0.01, 0.03)),
    *(f"clip:1,gaussian:{std:g}" for std in (0.01, 0.03, 0.1)),
    *(f"prune:{share:g},gaussian:{NOISE:g}" for share in (0.5, 0.9, 0.99)),
    *(f"mask:{share:g},gaussian:{NOISE:g}" for share in (0.5, 0.9, 0.99)),
)


def pooled(path: Path, limit: int | None = None) -> Samples:
    """Images of a file, averaged to `SIZE` pixels a side."""
    samples = load_samples(path, channels=1, limit=limit)
    return replace(samples, inputs=F.adaptive_avg_pool2d(samples.inputs, SIZE))


def study(folder: Path, scratch: Path, defenses: Sequence[str], *, seeds: int, quick: bool) -> DefensesStudy:
    """Train, audit and attack; finished trainings are in the scratch folder."""
    model = lenet((1, SIZE, SIZE), nn.Tanh)
    test = pooled(folder / "mnist_test.npz")
    last = FIRST + (2 if quick else SAMPLES)
    data = TrainingData(pooled(folder / "mnist_train.npz", 64 if quick else 1600), test)
    options = DefenseSettings(
        defenses=tuple(defenses[:1] if quick else defenses), train="", seeds=1 if quick else seeds, training_batch=32,
        epochs=1 if quick else 2, learning_rate=0.3, points=(0,), attack_names=("gauss-newton",), restarts=1,
    )  # fmt: skip
    log = scratch / "trials.jsonl"
    found = defenses_study(
        Checkpoint.from_model(model, name="lenet"),
        test.select(list(range(FIRST, last))),
        data,
        AuditSettings(reference_noise=NOISE, checks=False),
        StudyRun(log=log, resume=log.exists(), attack_steps=2 if quick else None),
        options=options,
    ).studies.get(DefensesStudy)
    assert found is not None
    return found


def defense_table(found: DefensesStudy) -> Table:
    """Utility and risk by defence."""
    columns = {
        "defense": "defence",
        "loss": "final loss (95 %)",
        "accuracy": "test accuracy",
        "attack": "least attack RMSE (95 %)",
        "predicted": "predicted RMSE (95 %)",
        "start": "attack, step 0",
        "end": f"attack, step {found.points[-1]}",
        "place": "place",
    }
    table = Table(f"{found.num_seeds} seeds, guess {found.prior_rmse:.3f}", columns)
    for row in found.rows:
        attacks = [None if point.attack_rmse is None else point.attack_rmse.mean for point in row.points]
        table.rows.append(
            {
                "defense": row.defense,
                "loss": _spread(row.loss),
                "accuracy": _spread(row.accuracy),
                "attack": _spread(row.attack_rmse),
                "predicted": _spread(row.predicted_rmse),
                "start": attacks[0] if attacks else None,
                "end": attacks[-1] if attacks else None,
                "place": "front" if row.on_front else f"dominated by {len(row.dominated_by)}",
                "row": row.model_dump(mode="json"),
            }
        )
    table.notes += [found.recommendation, *found.notes]
    return table


def equal_table(found: DefensesStudy) -> Table:
    """Pairs of defences of equal utility."""
    columns = {"first": "first", "second": "second", "attack": "attack RMSE: first less second (95 %)",
               "predicted": "predicted RMSE (95 %)", "apart": "told apart"}  # fmt: skip
    table = Table("Equal utility: intervals of the final loss overlap", columns)
    for pair in found.equal_utility:
        table.rows.append(
            {
                "first": pair.first,
                "second": pair.second,
                "attack": _difference(pair.attack_difference, pair.attack_low, pair.attack_high),
                "predicted": _difference(pair.predicted_difference, pair.predicted_low, pair.predicted_high),
                "apart": {None: "-", True: "yes", False: "no"}[pair.told_apart],
            }
        )
    return table


def _spread(mean: SeedMean | None) -> Spread | float | None:
    return None if mean is None else _difference(mean.mean, mean.low, mean.high)


def _difference(value: float | None, low: float | None, high: float | None) -> Spread | float | None:
    return value if value is None or low is None or high is None else Spread(value, low, high)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = experiment_parser(__doc__, "mnist_train.npz and mnist_test.npz")
    parser.add_argument("--scratch", type=Path, required=True, help="folder for finished trainings")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--defenses", nargs="+", default=DEFENSES, metavar="RELEASE", help="default: all twelve")
    options = parser.parse_args(arguments)
    measurement = Settings(threads=options.threads, dtype="float64")
    measurement.apply()
    options.scratch.mkdir(parents=True, exist_ok=True)
    printer = Printer("Defences at equal utility", measurement)
    found = study(options.data, options.scratch, options.defenses, seeds=options.seeds, quick=options.quick)
    printer.add(defense_table(found))
    printer.add(equal_table(found))
    printer.finish(options.json)


if __name__ == "__main__":
    main()
