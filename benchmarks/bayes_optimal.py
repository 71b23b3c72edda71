"""What an attacker gains by knowing the defence and the prior: two experiments of Balunovic et al., ICLR 2022.

    python -m benchmarks.bayes_optimal [synthetic|mnist] --data ../shared/data

``synthetic`` is their Figure 4: 20-dimensional normal inputs, Laplace noise on the gradient, right and wrong
likelihoods crossed with right and wrong priors. ``mnist`` takes up the MNIST half of their Table 2: the attack that
knows noise law and mask against L2, L1 and cosine distances that don't. Every attack's step size and weights are
chosen on other inputs than those reported. Without a name, both are run: about ten minutes on one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.options import Printer
from benchmarks.options import Settings as Measurement
from benchmarks.tables import Table
from benchmarks.training import lenet, train
from riskaudit.attacks import Attack, BayesOptimal, GradInversion, InvertingGradients, Observation
from riskaudit.inputs import Samples, load_samples
from riskaudit.jacobian import jacobian_maker
from riskaudit.metrics import Subject, make_metrics
from riskaudit.priors import IsotropicPrior
from riskaudit.release import Batch, PerSampleRelease, Release, ReleaseSpec
from riskaudit.release.steps.mask import Mask
from riskaudit.statistics.groups import group_statistic

CONFIDENCE = 0.95
Grid = Mapping[str, Sequence[object]]
Score = Callable[[Tensor, Tensor], Tensor]
"""Reconstructions and truth [B, *S] to [B]."""


@dataclass(frozen=True)
class Case:
    """Inputs and what was released of them.

    Attributes:
        release: the victim's.
        batch: B inputs.
        released: what the server received, [B, P].
        prior: the attackers'.
        input_range: of the inputs, where attackers know it.
    """

    release: Release
    batch: Batch
    released: Tensor
    prior: IsotropicPrior
    input_range: tuple[float, float] | None

    @classmethod
    def of(
        cls,
        release: Release,
        batch: Batch,
        prior: IsotropicPrior,
        input_range: tuple[float, float] | None = None,
        seed: int = 0,
    ) -> Case:
        """Release once, the noise by a seed."""
        released = release.observe(batch, torch.Generator().manual_seed(seed)).detach()
        return cls(release, batch, released, prior, input_range)

    def observation(self, assumed: Release) -> Observation:
        """What an attacker sees who takes ``assumed`` for the release."""
        return Observation(
            released=self.released,
            jacobian=jacobian_maker(assumed, self.batch),
            input_shape=tuple(self.batch.inputs.shape[1:]),
            prior=self.prior,
            targets=self.batch.targets,
            input_range=self.input_range,
        )


@dataclass(frozen=True)
class Contestant:
    """An attack with what is tried of its settings.

    Attributes:
        attack: with the settings that aren't tuned.
        grid: values tried of every field that is, one field after the other.
        knows_mask: whether it takes masked entries for what they are.
    """

    attack: Attack
    grid: Grid
    knows_mask: bool = True

    def assumed(self, release: Release) -> Release:
        """What the attacker takes the release for."""
        if self.knows_mask:
            return release
        steps = tuple(step for step in release.spec.all_steps if not isinstance(step, Mask))
        return PerSampleRelease(release.model, release.loss, ReleaseSpec(steps, release.noise))

    def scores(self, case: Case, settings: Mapping[str, object], score: Score) -> Tensor:
        """One run, [B]."""
        attack = replace(self.attack, **settings)  # type: ignore[type-var]
        found = attack.run(case.observation(self.assumed(case.release)), torch.Generator().manual_seed(1))
        return score(found.inputs, case.batch.inputs)

    def tuned(self, case: Case, score: Score, *, largest: bool) -> dict[str, object]:
        """One field after the other with the best mean score, the later ones at their first values meanwhile."""
        chosen = {field: values[0] for field, values in self.grid.items()}
        for field, values in self.grid.items():
            if len(values) > 1:
                means = [float(self.scores(case, {**chosen, field: value}, score).mean()) for value in values]
                chosen[field] = values[means.index(max(means) if largest else min(means))]
        return chosen


def compare(
    contestants: Mapping[str, Contestant], reference: str, tuning: Case, reported: Case, score: Score, *, largest: bool
) -> list[dict[str, Any]]:
    """One row per contestant: its mean, and the mean of paired differences from the reference."""
    chosen = {name: one.tuned(tuning, score, largest=largest) for name, one in contestants.items()}
    scores = {name: one.scores(reported, chosen[name], score) for name, one in contestants.items()}
    return [
        {
            "attack": name,
            "mean": interval(found),
            "difference": None if name == reference else interval(found - scores[reference]),
            "ahead": None if name == reference else ahead(scores[reference], found, largest=largest),
            "settings": ", ".join(f"{field} {value:g}" for field, value in chosen[name].items()),
            "scores": found.tolist(),
        }
        for name, found in scores.items()
    ]


def interval(values: Tensor) -> str:
    """A mean with its bootstrap interval."""
    found = group_statistic(values.tolist(), confidence=CONFIDENCE, seed=0)
    if found.low is None or found.high is None:
        return f"{found.mean:.2f}"
    return f"{found.mean:.3f} ({found.low:.3f} to {found.high:.3f})"


def ahead(reference: Tensor, other: Tensor, *, largest: bool) -> str:
    """On how many inputs the reference is better."""
    better = reference > other if largest else reference < other
    return f"{int(better.sum())} of {len(better)}"


def distance(found: Tensor, truth: Tensor) -> Tensor:
    """||x - xhat||."""
    return (found - truth).double().flatten(1).norm(dim=-1)


# Inputs of their Figure 4, and the layers of the network.
DIMENSION, WIDTH, CLASSES = 20, 100, 10
LAPLACE = 0.1
MATCHING = "laplace likelihood, gaussian prior"
# The first ones are kept while the others are tuned.
RATES = (0.3, 0.1, 0.03)
BETAS = (1.0, 0.25, 0.5, 2.0, 4.0)


def synthetic(printer: Printer, folder: Path | None, *, quick: bool) -> None:
    """Right and wrong likelihoods and priors on normal inputs."""
    trained_on, tuned_on, reported_on, steps = (200, 4, 8, 10) if quick else (2000, 100, 400, 200)
    places = list(range(trained_on + tuned_on + reported_on))
    samples = normal_samples(len(places))
    training = samples.select(places[:trained_on])
    tuning = samples.select(places[trained_on : trained_on + tuned_on])
    reported = samples.select(places[-reported_on:])
    for label, epochs, betas in (
        ("untrained, prior weight 1", 0, (1.0,)),
        ("three epochs, prior weight 1", 3, (1.0,)),
        ("three epochs, prior weight tuned", 3, BETAS),
    ):
        model = mlp()
        train(model, training, epochs)
        release = PerSampleRelease(model, F.cross_entropy, f"gradient,laplace:{LAPLACE}")
        cases = [
            Case.of(release, Batch(part.inputs.float(), part.targets), IsotropicPrior(0.0, 1.0), seed=seed)
            for seed, part in enumerate((tuning, reported))
        ]
        table = Table(
            f"Normal inputs, Laplace noise {LAPLACE}, {label}: ||x - xhat||",
            {
                "attack": "attack",
                "mean": "mean distance (95 %)",
                "difference": "more than the matching pair (95 %)",
                "ahead": "matching pair closer",
                "settings": "tuned",
            },
        )
        contestants = pairs(steps, RATES[:1] if quick else RATES, betas[:1] if quick else betas)
        table.rows += compare(contestants, MATCHING, cases[0], cases[1], distance, largest=False)
        truth = cases[1].batch.inputs
        table.notes.append(
            f"d = {DIMENSION}, mlp {DIMENSION}-{WIDTH}-{CLASSES} (tanh), {reported_on} inputs, {steps} steps; tuned on "
            f"{tuned_on} other inputs. The prior's mean alone: {interval(distance(torch.zeros_like(truth), truth))}."
        )
        printer.add(table)


def pairs(steps: int, rates: Sequence[float], betas: Sequence[float]) -> dict[str, Contestant]:
    """Likelihoods x priors; the first is the pair that is true."""
    grid = {"rate": rates, "beta": betas}
    kinds: tuple[Literal["laplace"], Literal["gaussian"]] = ("laplace", "gaussian")
    return {
        f"{likelihood} likelihood, {prior} prior": Contestant(
            BayesOptimal(steps=steps, likelihood=likelihood, prior=prior), grid
        )
        for likelihood in kinds
        for prior in reversed(kinds)
    }


def normal_samples(count: int) -> Samples:
    """Inputs N(0, I) with the labels argmax(W x)."""
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(DIMENSION, CLASSES, generator=generator, dtype=torch.float64)
    inputs = torch.randn(count, DIMENSION, generator=generator, dtype=torch.float64)
    return Samples(inputs, (inputs @ weights).argmax(-1), tuple(map(str, range(count))))


def mlp() -> nn.Module:
    """Two layers, PyTorch's initialization."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(DIMENSION, WIDTH), nn.Tanh(), nn.Linear(WIDTH, CLASSES)).eval()


MNIST = (1, 28, 28)
# Reported images; tuning takes those before them.
FIRST = 100
NOISE_STD = 0.03
DEFENCES = {
    "Gaussian noise": f"gaussian:{NOISE_STD}",
    "half masked, Gaussian noise": f"mask:0.5:0,gaussian:{NOISE_STD}",
}
# The squared distance alone, without GradInversion's other terms.
PLAIN: dict[str, Any] = {"restarts": 1, "matching_weight": 1.0, "squared_norm": 0.0, "batch_norm": 0.0}


def mnist(printer: Printer, folder: Path | None, *, quick: bool) -> None:
    """Attacks that know the defence, and others with the same total variation, on images."""
    assert folder is not None
    tuning_count, count, steps = (2, 2, 4) if quick else (8, 32, 400)
    images = load_samples(folder / "mnist_test.npz", channels=1, limit=FIRST + count)
    tuning = images.select(list(range(tuning_count)))
    reported = images.select(list(range(FIRST, FIRST + count)))
    prior = IsotropicPrior.fit(images.select(list(range(FIRST))).inputs)
    model = lenet(MNIST)
    (psnr,) = make_metrics(Subject(MNIST, (0.0, 1.0), model), ("psnr",))
    score: Score = psnr
    for label, spec in DEFENCES.items():
        release = PerSampleRelease(model, F.cross_entropy, spec)
        cases = [
            Case.of(release, Batch(part.inputs.float(), part.targets), prior, (0.0, 1.0), seed)
            for seed, part in enumerate((tuning, reported))
        ]
        table = Table(
            f"MNIST, {label}: PSNR",
            {
                "attack": "attack",
                "mean": "mean PSNR, dB (95 %)",
                "difference": "more than bayes (95 %)",
                "ahead": "bayes better",
                "settings": "tuned",
            },
        )
        contestants = image_contestants(steps, masked=any(isinstance(step, Mask) for step in release.spec.all_steps))
        if quick:
            contestants = {name: replace(one, grid={}) for name, one in contestants.items()}
        table.rows += compare(contestants, "bayes", cases[0], cases[1], score, largest=True)
        blank = torch.full_like(cases[1].batch.inputs, prior.mean)
        table.notes.append(
            f"lenet (sigmoid, uniform(-0.5, 0.5)), {spec}, images {FIRST} to {FIRST + count - 1}, {steps} steps, total "
            f"variation in all attacks; tuned on images 0 to {tuning_count - 1}. "
            f"The prior's mean alone: {interval(score(blank, cases[1].batch.inputs))}."
        )
        printer.add(table)


def image_contestants(steps: int, *, masked: bool) -> dict[str, Contestant]:
    """The columns of their Table 2; against a mask, L2 told of it besides."""
    bayes = BayesOptimal(steps=steps)
    l2 = Contestant(
        GradInversion(steps=steps, **PLAIN),
        {"total_variation": (10.0, 1.0, 3.0, 30.0, 100.0, 300.0, 1000.0), "rate": (0.3, 0.1, 1.0)},
    )
    betas = {"beta": (0.3, 0.1, 1.0, 3.0), "rate": (0.3, 0.1, 1.0)}
    cosine = {"total_variation": (0.01, 0.001, 0.003, 0.03, 0.1), "rate": (0.3, 0.1, 1.0)}
    contestants = {
        "bayes": Contestant(bayes, betas),
        "L2": replace(l2, knows_mask=False),
        "L1": Contestant(replace(bayes, likelihood="laplace"), betas, knows_mask=False),
        "cosine": Contestant(InvertingGradients(steps=steps, signed=False), cosine, knows_mask=False),
    }
    return {**contestants, "L2, mask known": l2} if masked else contestants


EXPERIMENTS: dict[str, Callable[..., None]] = {function.__name__: function for function in (synthetic, mnist)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one experiment or both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", nargs="?", choices=list(EXPERIMENTS), help="default: both")
    parser.add_argument("--data", type=Path, help="folder of mnist_test.npz")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--quick", action="store_true", help="tiny sizes that only try the code")
    options = parser.parse_args(arguments)
    names = [options.experiment] if options.experiment else list(EXPERIMENTS)
    if "mnist" in names and options.data is None:
        parser.error("expected --data for mnist, found none")
    measurement = Measurement(threads=options.threads, dtype="float32")
    measurement.apply()
    printer = Printer("Knowing the defence and the prior", measurement)
    for name in names:
        EXPERIMENTS[name](printer, options.data, quick=options.quick)
    printer.finish(options.json)


if __name__ == "__main__":
    main()
