"""``span`` under noise: how well directions of a layer's gradient still stand out, predicted and measured.

    python -m benchmarks.span_noise --data ../shared/data

Three networks, means of four images, three levels of noise relative to that at which the largest singular value drowns.
Predicted is what the check says (``squared_cosines``); measured the mean over draws of the noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.options import Printer, experiment_parser
from benchmarks.options import Settings as Measurement
from benchmarks.tables import Table
from benchmarks.training import lenet
from riskaudit.checks import CHECKS, SentUpload
from riskaudit.checks.upload import UploadChecker
from riskaudit.inputs import Samples, load_loss, load_samples
from riskaudit.inputs.architectures.convolutional import ConvNet
from riskaudit.priors import IsotropicPrior
from riskaudit.release import Batch, make_release

SIZE, LEVELS, DRAWS = 4, (0.05, 0.2, 0.5), 40
FILES = {"lenet, sigmoid": "mnist_test", "ConvNet, ReLU": "cifar10_test", "784-512-10, GELU": "mnist_test"}


def network(name: str) -> nn.Module:
    """In double precision; PyTorch's initialization, uniform(-0.5, 0.5) for sigmoid."""
    torch.manual_seed(0)
    if name == "lenet, sigmoid":
        return lenet((1, 28, 28)).double()
    if name == "ConvNet, ReLU":
        return ConvNet(3).double().eval()
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 512), nn.GELU(), nn.Linear(512, 10)).double().eval()


def send(model: nn.Module, samples: Samples, std: float) -> SentUpload:
    """The mean gradient of the samples, with Gaussian noise."""
    release = make_release(model, load_loss("cross-entropy"), f"mean:{len(samples)},gaussian:{std}")
    shape = tuple(samples.inputs.shape[1:])
    checker = UploadChecker(release, IsotropicPrior(0.5, 0.3), 0.15, shape, (0.0, 1.0))
    batch = Batch(samples.inputs.double(), samples.targets, len(samples))
    return checker.sent(batch, torch.Generator().manual_seed(0))


def compare(model: nn.Module, samples: Samples, level: float, draws: int) -> tuple[Tensor, Tensor]:
    """Squared cosines of the directions that stand out of the first fully connected layer's gradient, [k] each.

    Args:
        model: in double precision.
        samples: of one upload.
        level: of the noise, in the std at which the largest singular value drowns.
        draws: of the noise.

    Returns:
        What the check predicts, and the mean over draws.
    """
    weight = send(model, samples, 1.0).fully_connected[0].weight
    assert weight is not None
    _, values, rows = torch.linalg.svd(weight, full_matrices=False)
    std = level * float(values[0]) / weight.numel() ** 0.25
    predicted = CHECKS["span"].run(send(model, samples, std))[0].details["squared_cosines"]
    assert isinstance(predicted, list)
    generator, measured = torch.Generator().manual_seed(1), torch.zeros(len(predicted), dtype=torch.float64)
    for _ in range(draws):
        noise = std * torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        _, _, noisy = torch.linalg.svd(weight + noise, full_matrices=False)
        measured += (rows[: len(predicted)] * noisy[: len(predicted)]).sum(1).square()
    return torch.tensor(predicted, dtype=torch.float64), measured / draws


def main(arguments: Sequence[str] | None = None) -> None:
    """A row per network and level."""
    options = experiment_parser(__doc__, "mnist_test.npz and cifar10_test.npz").parse_args(arguments)
    measurement = Measurement(threads=options.threads, dtype="float64")
    measurement.apply()
    printer = Printer("Directions of span under noise", measurement)
    columns = ("network", "level", "predicted", "measured", "gap", "directions", "largest gap")
    table = Table(f"Squared cosine of the first direction, {DRAWS} draws", {column: column for column in columns})
    for name, file in FILES.items():
        samples = load_samples(Path(options.data) / f"{file}.npz", channels=3 if "cifar" in file else 1, limit=SIZE)
        for level in LEVELS:
            predicted, measured = compare(network(name), samples, level, 2 if options.quick else DRAWS)
            gaps = (predicted - measured).abs()
            table.rows.append(
                {
                    "network": name,
                    "level": level,
                    "predicted": float(predicted[0]),
                    "measured": float(measured[0]),
                    "gap": float(gaps[0]),
                    "directions": len(gaps),
                    "largest gap": float(gaps.max()),
                }
            )
    printer.add(table)
    printer.finish(options.json)


if __name__ == "__main__":
    main()
