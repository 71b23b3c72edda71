"""What a review costs, and whether what the guard lets out keeps its promise.

    python -m benchmarks.guard [cost|rounds|noise|attacks] --data ../shared/data

``cost``: reviews by the default policy in gradients of the batch, beside what guard-check says of other batches.
``rounds``: the same for whole rounds of local training, in trainings of the round.
``noise``: sanitised noise beside the smallest that meets the limit, by bisection on exact spectra.
``attacks``: error of `local` and `bayes` on sanitised updates, by an attacker who knows all other samples of the batch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.models import CASES
from benchmarks.options import Printer, Settings, experiment_parser
from benchmarks.tables import Table
from benchmarks.training import lenet
from riskaudit.attacks import ATTACKS, Observation
from riskaudit.attacks.local import Local
from riskaudit.guard import Guard, Policy
from riskaudit.guard.cost import honest_update, review_cost
from riskaudit.inputs import Samples, load_samples
from riskaudit.jacobian import jacobian_maker
from riskaudit.linalg import Spectrum
from riskaudit.priors import IsotropicPrior, Prior, fit_prior
from riskaudit.release import Batch, PerSampleRelease

# Reported samples; those before them served to try things out.
FIRST = 100
PRIOR_STD = 0.3
# Rounds of fewer samples are of large models, and take long.
FEW = 16
# What a review is measured at: about a tenth of the input is revealed on lenet.
NOISE = 0.01


def images(folder: Path, name: str, count: int, first: int = FIRST) -> Samples:
    """Some images of a file, float32."""
    every = load_samples(folder / f"{name}.npz", channels=1 if "mnist" in name else 3, limit=first + count)
    return Samples.from_tensors(every.inputs[first:].float(), every.targets[first:])


def clients(quick: bool) -> list[tuple[str, nn.Module, str, int]]:
    """Name, model, images and batch size."""
    torch.manual_seed(0)
    found = [("lenet-28, MNIST", lenet((1, 28, 28)).float(), "mnist_test", 4 if quick else 32)]
    return found if quick else [*found, ("resnet18, CIFAR-10", CASES["resnet18"].build().eval(), "cifar10_test", 8)]


def cost(folder: Path, printer: Printer, quick: bool) -> None:
    """Reviews in gradients of the batch."""
    columns = {
        "client": "client", "samples": "samples", "products": "products per sample", "gradients": "gradients",
        "most": "most", "epoch": "share of a local epoch of 1000 samples", "foretold": "guard-check foretold",
        "off": "off by", "first": "first review, gradients",
    }  # fmt: skip
    table = Table("Reviews by the default policy", columns)
    repeats = 1 if quick else 9
    for name, model, data, size in clients(quick):
        policy, release = Policy(max_revealed=0.5), f"gaussian:{NOISE}"
        guard = Guard(model, "cross-entropy", policy, prior_std=PRIOR_STD, release=release)
        first, second = (images(folder, data, size * (repeats + 1), start) for start in (FIRST, 0))
        foretold, measured = (review_cost(guard, samples, size, repeats) for samples in (second, first))
        table.rows.append(
            {
                "client": name,
                "samples": size,
                "products": measured.products,
                "gradients": measured.units,
                "most": measured.slowest_seconds / measured.unit_seconds,
                "epoch": f"{measured.review_seconds / (1000 / size * measured.unit_seconds):.0%}",
                "foretold": foretold.units,
                "off": f"{abs(foretold.review_seconds / measured.review_seconds - 1):.0%}",
                "first": foretold.first_seconds / foretold.unit_seconds,
            }
        )
    table.notes.append(
        "Medians of 9 reviews of other batches each; a gradient is of the same batch, in the same round."
    )
    printer.add(table)


def rounds(folder: Path, printer: Printer, quick: bool) -> None:
    """Reviews in trainings of the round."""
    columns = {
        "client": "client", "training": "training", "samples": "samples", "pulls": "pulls", "training_s": "training, s",
        "review_s": "review, s", "trainings": "trainings", "most": "most", "foretold": "guard-check foretold",
        "setup": "set-up, trainings", "first": "first review after it, trainings",
    }  # fmt: skip
    table = Table("Reviews of whole rounds by the default policy", columns)
    for name, model, data, size, training in _round_clients(quick):
        repeats = 1 if quick else 2 if size < FEW else 7
        release = f"{training},gaussian:{NOISE}"
        guard = Guard(model.train(), "cross-entropy", Policy(max_revealed=0.5), prior_std=PRIOR_STD, release=release)
        first, second = (images(folder, data, size * (repeats + 1), start) for start in (FIRST, 0))
        foretold, measured = (review_cost(guard, samples, size, repeats) for samples in (second, first))
        table.rows.append(
            {
                "client": name, "training": training, "samples": size, "pulls": measured.products,
                "training_s": measured.unit_seconds, "review_s": measured.review_seconds, "trainings": measured.units,
                "most": measured.slowest_seconds / measured.unit_seconds, "foretold": foretold.units,
                "setup": foretold.setup_seconds / foretold.unit_seconds,
                "first": foretold.first_seconds / foretold.unit_seconds,
            }
        )  # fmt: skip
    table.notes.append(f"Medians of 7 reviews (below {FEW} samples: 2) of other samples; trainings in the same rounds.")
    printer.add(table)


def _round_clients(quick: bool) -> list[tuple[str, nn.Module, str, int, str]]:
    """Name, model, images, samples and training."""
    torch.manual_seed(0)
    small = lenet((1, 28, 28)).float()
    if quick:
        return [("lenet-28, MNIST", small, "mnist_test", 8, "local:epochs=2:batch=4:lr=0.1")]
    momentum = "local:epochs=5:batch=8:lr=0.05:momentum=0.9:weight_decay=0.0005"
    resnet = CASES["resnet18"].build()
    return [
        ("lenet-28, MNIST", small, "mnist_test", 32, "local:epochs=5:batch=8:lr=0.1"),
        ("lenet-28, MNIST", small, "mnist_test", 32, momentum),
        ("lenet-28, MNIST", small, "mnist_test", 32, "local:epochs=5:batch=8:lr=0.001:optimizer=adam"),
        ("lenet-28, MNIST", small, "mnist_test", 100, "local:epochs=2:batch=20:lr=0.1"),
        ("resnet18 with batch norm, CIFAR-10", resnet, "cifar10_test", 8, "local:epochs=1:batch=4:lr=0.05"),
    ]


def sanitised(
    model: nn.Module, samples: Samples, policy: Policy, prior: Prior | None = None
) -> tuple[Tensor, float, float]:
    """What leaves [P], the std of the noise on it, and the seconds that it took, of an undefended client."""
    guard = Guard(model, "cross-entropy", policy, prior=prior or IsotropicPrior(0.0, PRIOR_STD))
    update = honest_update(guard, samples.inputs, samples.targets)
    started = time.perf_counter()
    decision = guard.review((samples.inputs, samples.targets), update, local_steps=1)
    elapsed = time.perf_counter() - started
    assert decision.action == "sanitise", decision.reasons
    return torch.cat([part.reshape(-1).double() for part in decision.update]), decision.noise_std, elapsed


def noise(folder: Path, printer: Printer, quick: bool) -> None:
    """Sanitised noise beside the smallest."""
    columns = {
        "limit": "limit", "samples": "samples", "std": "noise std", "smallest": "smallest", "ratio": "ratio",
        "seconds": "s",
    }  # fmt: skip
    table = Table("Sanitised noise, lenet-28, MNIST", columns)
    samples, model = images(folder, "mnist_test", 4 if quick else 32), lenet((1, 28, 28)).float()
    double = lenet((1, 28, 28)).double()
    release = PerSampleRelease(double, nn.functional.cross_entropy)
    batch = Batch(samples.inputs.double(), samples.targets)
    eigenvalues = Spectrum.of(jacobian_maker(release, batch)(batch).hessian()).values.clamp_min(0).numpy()
    for limit in (0.05, 0.2, 0.5):
        _, std, elapsed = sanitised(model, samples, Policy(max_revealed=limit, on_violation="sanitise"))
        smallest = _bisect(lambda s, limit=limit: float(_revealed(eigenvalues, s).max()) <= limit)  # type: ignore[misc]
        table.rows.append(
            {
                "limit": f"revealed {limit}", "samples": len(samples), "std": std, "smallest": smallest,
                "ratio": std / smallest, "seconds": elapsed,
            }
        )  # fmt: skip
    printer.add(table)


def _revealed(eigenvalues: np.ndarray, std: float) -> np.ndarray:
    eps = (len(eigenvalues) * std / PRIOR_STD) ** 2
    return np.asarray((eigenvalues / (eigenvalues + eps)).mean(-1))


def _bisect(kept: Callable[[float], bool]) -> float:
    low, high = math.log(1e-9), math.log(1e6)
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (low, middle) if kept(math.exp(middle)) else (middle, high)
    return math.exp(high)


def attacks(folder: Path, printer: Printer, quick: bool) -> None:
    """Errors of attacks on what leaves."""
    columns = {
        "prior": "prior", "limit": "least RMSE promised", "std": "noise std", "attack": "attack", "n": "n", "q5": "q5",
        "median": "median", "kept": "at or above the limit",
    }  # fmt: skip
    table = Table("Attacks on sanitised updates, lenet-28, MNIST", columns)
    samples, model = images(folder, "mnist_test", 4 if quick else 32), lenet((1, 28, 28)).float()
    known = fit_prior(images(folder, "mnist_train", 200 if quick else 9000, 0), "class")
    for prior in (IsotropicPrior(0.0, PRIOR_STD), known):
        for limit in (0.1,) if quick else (0.05, 0.1):
            sent, std, _ = sanitised(model, samples, Policy(min_rmse=limit, on_violation="sanitise"), prior)
            for name, errors in _attacked(samples, sent, std, known):
                table.rows.append(
                    {
                        "prior": prior.kind, "limit": limit, "std": std, "attack": name, "n": len(errors),
                        "q5": float(np.quantile(errors, 0.05)), "median": float(np.median(errors)),
                        "kept": f"{float(np.mean(errors >= limit)):.0%}",
                    }
                )  # fmt: skip
    table.notes.append(f"{len(samples)} images in one batch; class prior of 9000 other images, known to gauss-newton.")
    printer.add(table)


def _attacked(samples: Samples, sent: Tensor, std: float, known: Prior) -> Iterator[tuple[str, np.ndarray]]:
    """RMSE per sample of every attack on an update [P] that carries noise of this std."""
    count = len(samples)
    release = PerSampleRelease(lenet((1, 28, 28)).double(), nn.functional.cross_entropy).with_noise(count * std)
    batch = Batch(samples.inputs.double(), samples.targets)
    each = release.mean(batch).detach()
    observation = Observation(
        # Who knows the others takes their part off the mean: r(x_i) + B times the noise on the update is left.
        released=each + count * (sent - each.mean(0)),
        jacobian=jacobian_maker(release, batch),
        input_shape=(1, 28, 28),
        prior=known,
        targets=batch.targets,
        input_range=(0.0, 1.0),
    )
    for attack in (Local(start=batch.inputs), ATTACKS["bayes"](), ATTACKS["gauss-newton"]()):
        found = attack.run(observation, torch.Generator().manual_seed(0))
        yield attack.name, (found.inputs - batch.inputs).flatten(1).square().mean(1).sqrt().numpy()


EXPERIMENTS: dict[str, Callable[[Path, Printer, bool], None]] = {
    "cost": cost,
    "rounds": rounds,
    "noise": noise,
    "attacks": attacks,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = experiment_parser(__doc__, "mnist_test.npz and cifar10_test.npz")
    parser.add_argument("experiments", nargs="*", metavar="|".join(EXPERIMENTS), help="default: all")
    options = parser.parse_args(arguments)
    for name in options.experiments:
        if name not in EXPERIMENTS:
            parser.error(f"expected {', '.join(EXPERIMENTS)}, found {name}")
    torch.set_num_threads(options.threads)
    printer = Printer("The guard", Settings(threads=options.threads, quick=options.quick))
    for name in options.experiments or list(EXPERIMENTS):
        EXPERIMENTS[name](options.data, printer, options.quick)
    printer.finish(options.json)


if __name__ == "__main__":
    main()
