"""Does LAVP rank attacks better than the gradient's norm, in the setting that its paper describes (AAAI 2024)?

    python -m benchmarks.lavp lenet convnet --data ../shared/data --weights ../shared/data/weights

Undefended gradients of untrained networks, attacks that minimise the matching loss alone (L2 or cosine, without prior,
image regulariser or box) by Adam, begun near the truth or at random. Spearman's rho with every image metric by its
sign, and a paired bootstrap of |rho of LAVP| - |rho of the norm|. MSE stands for PSNR too, whose ranks are its own in
the other order.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.options import Printer, experiment_parser
from benchmarks.options import Settings as Measurement
from benchmarks.tables import Table
from benchmarks.training import lenet
from riskaudit.attacks import Observation
from riskaudit.attacks.matching import CosineDistance, Matching, SquaredDistance
from riskaudit.attacks.optimise.descent import Descent
from riskaudit.attacks.optimise.objectives import Objective
from riskaudit.inputs import Samples, load_samples
from riskaudit.inputs.architectures import get_architecture
from riskaudit.jacobian import jacobian_maker
from riskaudit.metrics import METRICS, Subject, make_metrics, measure
from riskaudit.priors import IsotropicPrior
from riskaudit.proxies import PROXIES
from riskaudit.release import Batch, PerSampleRelease
from riskaudit.results.words import WRONG_SIGN, sign_mark
from riskaudit.sensitivity.linearisation import Linearisation
from riskaudit.sensitivity.plan import Plan
from riskaudit.statistics.rank_correlation import rank_correlation, rank_difference

# Reported images; those before them served to try things out.
FIRST = 100
SHAPES = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32)}
LOSSES: dict[str, Matching] = {"l2": SquaredDistance(), "cosine": CosineDistance()}
METRIC_NAMES = ("mse", "ssim", "lpips")
# What attackers guess before they see a gradient, data units, and how far from the truth a local start is.
PRIOR, LOCAL_STD = IsotropicPrior(0.5, 0.3), 0.1
CONVNET_WIDTH = 4
# Of largest eigenvalues: relative error, and products per sample at most.
TOLERANCE, MOST_PRODUCTS = 1e-4, 40


@dataclass(frozen=True)
class Size:
    """Images attacked and steps of Adam, which data sets, and where attacks begin."""

    images: int
    steps: int
    data: tuple[str, ...] = ("mnist", "cifar10")
    starts: tuple[str, ...] = ("local", "random")


SIZES = {"lenet": Size(32, 300), "convnet": Size(32, 100), "resnet18": Size(8, 12, ("cifar10",), ("local",))}


def network(name: str, shape: tuple[int, int, int]) -> nn.Module:
    """Untrained: uniform(-0.5, 0.5) for the lenet, as in the papers, PyTorch's own weights otherwise."""
    channels, height, width = shape
    if name == "lenet":
        return lenet(shape)
    torch.manual_seed(0)
    build = get_architecture(name).build
    if name == "resnet18":
        return build(channels=channels, classes=10).eval()
    features = 4 * CONVNET_WIDTH * (height // 9) * (width // 9)
    return build(channels=channels, width=CONVNET_WIDTH, features=features, classes=10).eval()


def predicted(model: nn.Module, samples: Samples, *, smallest: bool) -> dict[str, list[float | None]]:
    """LAVP and the gradient's norm per sample; the smallest eigenvalues only where all of them are computed."""
    names = ["gradient_norm", "lavp_l2_max", "lavp_cosine_max"]
    names += ["lavp_l2_min", "lavp_cosine_min"] if smallest else []
    dtype = torch.float64 if smallest else torch.float32
    batch = Batch(samples.inputs.to(dtype), samples.targets)
    # None of these depends on the noise, which a linearisation wants.
    release = PerSampleRelease(copy.deepcopy(model).to(dtype), F.cross_entropy, "gaussian:1.0")
    plan = Plan(
        solver="dense" if smallest else "lanczos", solver_reason="", inverse="quadrature", inverse_reason="",
        tolerance=TOLERANCE, max_matvecs=MOST_PRODUCTS, precision=None, max_probes=1, failure=1e-2, width=len(batch),
        proxies=frozenset(names),
    )  # fmt: skip
    at = Linearisation(jacobian_maker(release, batch)(batch), list(range(len(batch))), PRIOR, plan, 0)
    return {name: [row.value for row in PROXIES[name].score(at).estimates] for name in names}


def attacked(model: nn.Module, samples: Samples, loss: str, start: str, steps: int) -> Tensor:
    """Where Adam ends, [B, *S]."""
    release = PerSampleRelease(model, F.cross_entropy, "gradient")
    batch = Batch(samples.inputs.float(), samples.targets)
    observation = Observation(
        release.mean(batch).detach(),
        jacobian_maker(release, batch),
        tuple(batch.inputs.shape[1:]),
        PRIOR,
        batch.targets,
    )
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(len(batch), observation.dimension, generator=generator)
    begin = batch.inputs.flatten(1) + LOCAL_STD * drawn if start == "local" else PRIOR.mean + PRIOR.std * drawn
    objective = Objective.of(observation, 1, LOSSES[loss])
    with torch.no_grad():
        unit = torch.full((len(batch),), PRIOR.std)
        found = Descent(steps, schedule="steps", tolerance=0.0).minimise(objective, begin, unit)
    return observation.images(found.points)


def compare(name: str, data: str, size: Size, folder: Path, weights: Path | None, table: Table) -> None:
    """One network and data set: a row for every loss, start, metric and eigenvalue."""
    shape = SHAPES[data]
    every = load_samples(folder / f"{data}_test.npz", channels=shape[0], limit=FIRST + size.images)
    samples = every.select(list(range(FIRST, FIRST + size.images)))
    model = network(name, shape)
    proxies = predicted(model, samples, smallest=(name, data) == ("lenet", "mnist"))
    metrics = make_metrics(Subject(shape, (0.0, 1.0), model, weights), METRIC_NAMES)
    for loss in LOSSES:
        for start in size.starts:
            found = attacked(model, samples, loss, start, size.steps)
            measured = measure(metrics, found.double(), samples.inputs.double())
            for metric in METRIC_NAMES:
                errors = [row[metric] for row in measured]
                for end in ("max", "min"):
                    values = proxies.get(f"lavp_{loss}_{end}")
                    if values is not None and None not in errors:
                        row = compared(values, proxies["gradient_norm"], errors, metric)
                        case = {
                            "network": name,
                            "data": data,
                            "loss": loss,
                            "start": start,
                            "metric": metric,
                            "end": end,
                        }
                        table.rows.append(case | row)


def compared(
    values: Sequence[float | None], norms: Sequence[float | None], errors: Sequence[float | None], metric: str
) -> dict[str, Any]:
    """Signed correlations of LAVP and of the norm with one metric, and the difference of their sizes."""
    known = [
        (value, norm, error)
        for value, norm, error in zip(values, norms, errors, strict=True)
        if value is not None and norm is not None and error is not None
    ]
    own, other, target = ([row[place] for row in known] for place in range(3))
    difference = rank_difference(own, other, target)
    higher = METRICS[metric].higher_is_better
    middle = sorted(target)[len(target) // 2] if target else None
    return {
        "n": len(known),
        "median": middle,
        "norm": signed(other, target, higher),
        "lavp": signed(own, target, higher),
        "difference": "-"
        if difference.low is None
        else f"{difference.difference:+.2f} ({difference.low:+.2f} to {difference.high:+.2f})",
        "p": difference.p_value,
        "reading": reading(difference.low, difference.high),
        "values": known,
    }


def signed(values: Sequence[float], errors: Sequence[float], higher_is_better: bool) -> str:
    """Spearman's rho with its interval, marked where its sign is not that of a proxy that is riskier when higher."""
    found = rank_correlation(values, errors, pairs=False)
    if found.spearman is None:
        return found.note or "-"
    ends = "" if found.low is None else f" ({found.low:+.2f} to {found.high:+.2f})"
    return f"{found.spearman:+.2f}{ends}{sign_mark(found.spearman, found.low, found.high, 'higher', higher_is_better)}"


def reading(low: float | None, high: float | None) -> str:
    """Which of both ranks better, if the interval tells."""
    if low is None or high is None or low <= 0 <= high:
        return "not told apart"
    return "LAVP" if low > 0 else "gradient norm"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the networks named."""
    parser = experiment_parser(__doc__, "mnist_test.npz and cifar10_test.npz")
    parser.add_argument("networks", nargs="+", choices=list(SIZES))
    parser.add_argument("--weights", type=Path, help="folder of AlexNet's weights, for LPIPS")
    options = parser.parse_args(arguments)
    measurement = Measurement(threads=options.threads, dtype="float32")
    measurement.apply()
    printer = Printer("LAVP and the gradient's norm in LAVP's own setting", measurement)
    columns = {
        "loss": "attack's loss", "start": "start", "metric": "metric", "median": "median", "n": "n",
        "norm": "rho of the norm (95 %)", "end": "eigenvalue", "lavp": "rho of LAVP (95 %)",
        "difference": "|rho LAVP| - |rho norm| (95 %)", "p": "p", "reading": "ranks better",
    }  # fmt: skip
    for name in options.networks:
        size = replace(SIZES[name], images=5, steps=3) if options.quick else SIZES[name]
        for data in size.data:
            table = Table(f"{name}, {data}: {size.images} images, {size.steps} steps", columns)
            compare(name, data, size, options.data, options.weights, table)
            table.notes.append(summary(table.rows))
            printer.add(table)
    printer.finish(options.json)


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """How often which of both ranks better, and how often a sign is certainly wrong."""
    readings = [row["reading"] for row in rows]
    told = ", ".join(f"{word} {readings.count(word)}" for word in ("LAVP", "gradient norm", "not told apart"))
    wrong = [sum(row[key].endswith(WRONG_SIGN) for row in rows) for key in ("lavp", "norm")]
    return (
        f"Ranks better: {told} of {len(readings)} rows. Wrong sign with the whole interval: LAVP {wrong[0]}, norm "
        f"{wrong[1]}. Both are riskier when higher: rho should be negative with MSE and LPIPS, positive with SSIM."
    )


if __name__ == "__main__":
    main()
