"""What an attacker gains by knowing the defence and the prior: experiments of Balunovic et al., ICLR 2022.

    python -m benchmarks.bayes_optimal [synthetic|images|balls] --data ../shared/data --rows FILE.jsonl

``synthetic`` is their Figure 4: 20-dimensional normal inputs, Laplace noise on the gradient, right and wrong
likelihoods crossed with right and wrong priors. ``images`` is their Table 2: the attack that knows noise law and mask
against L2, L1 and cosine distances that don't, on their network before training and after 500 steps of Adam by what
left. Every attack's step size and weights are chosen on other inputs than those reported. ``balls`` is Figure 7.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.options import Printer
from benchmarks.options import Settings as Measurement
from benchmarks.tables import Table
from benchmarks.training import train
from benchmarks.uploads import Rows
from riskaudit.attacks import Attack, BayesOptimal, GradInversion, InvertingGradients, Observation
from riskaudit.inputs import Samples, load_samples
from riskaudit.inputs.architectures import get_architecture
from riskaudit.inputs.models import Normalized
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


# Steps of training after which the networks are attacked.
POINTS = (0, 500)


@dataclass(frozen=True)
class Sizes:
    """How much of an experiment is done."""

    tuning: int = 8
    reported: int = 32
    steps: int = 200
    points: tuple[int, ...] = POINTS


# Inputs of their Figure 4, and the layers of the network.
DIMENSION, WIDTH, CLASSES = 20, 100, 10
LAPLACE = 0.1
MATCHING = "laplace likelihood, gaussian prior"
# The first ones are kept while the others are tuned.
RATES = (0.3, 0.1, 0.03)
BETAS = (1.0, 0.25, 0.5, 2.0, 4.0)


def synthetic(printer: Printer, folder: Path | None, rows: Rows, sizes: Sizes, *, quick: bool) -> None:
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


# Shape of the images of a file, and the file whose images the networks are trained on.
IMAGES = {"mnist_test": ((1, 28, 28), "mnist_train"), "cifar10_test": ((3, 32, 32), "cifar10_train")}
# Mean and std of the pixels, by which the network's inputs are normalised.
PIXELS = {1: ([0.1307], [0.3081]), 3: ([0.4914, 0.4822, 0.4465], [0.247, 0.2435, 0.2616])}
# Reported images; tuning takes those before them.
FIRST = 100
# Noise of this standard deviation or scale, half of the entries masked.
NOISE = 0.1
DEFENCES = {
    "Gaussian": f"gaussian:{NOISE}",
    "Laplace": f"laplace:{NOISE}",
    "masked, Gaussian": f"mask:0.5:0,gaussian:{NOISE}",
    "masked, Laplace": f"mask:0.5:0,laplace:{NOISE}",
}
# The squared distance alone, without GradInversion's other terms.
PLAIN: dict[str, Any] = {"restarts": 1, "matching_weight": 1.0, "squared_norm": 0.0, "batch_norm": 0.0}
# Those who don't know of the mask, whose best one bayes is held against.
RIVALS = ("L2", "L1", "cosine")


def images(printer: Printer, folder: Path | None, rows: Rows, sizes: Sizes, *, quick: bool) -> None:
    """Attacks that know the defence, and others with the same total variation, before and after some training."""
    assert folder is not None
    for name, step in product(IMAGES, sizes.points):
        if not (folder / f"{name}.npz").exists():
            continue
        for spec in DEFENCES.values():
            attack_images(folder, name, spec, step, sizes, rows, quick=quick)
        printer.add(image_table(name, step, sizes, rows))


def attack_images(folder: Path, name: str, spec: str, step: int, sizes: Sizes, rows: Rows, *, quick: bool) -> None:
    """All attacks on a network that was trained with a defence; their settings are chosen on the untrained one."""
    shape, train_name = IMAGES[name]
    every = load_samples(folder / f"{name}.npz", channels=shape[0], limit=FIRST + sizes.reported)
    parts = [
        every.select(list(range(first, first + count))) for first, count in ((0, sizes.tuning), (FIRST, sizes.reported))
    ]
    prior = IsotropicPrior.fit(every.select(list(range(FIRST))).inputs)
    training = load_samples(folder / f"{train_name}.npz", channels=shape[0], limit=step) if step else None
    release = PerSampleRelease(trained_with(spec, shape, training), F.cross_entropy, spec)
    cases = [
        Case.of(release, Batch(part.inputs.float(), part.targets), prior, (0.0, 1.0), seed)
        for seed, part in enumerate(parts)
    ]
    (psnr,) = make_metrics(Subject(shape, (0.0, 1.0), release.model), ("psnr",))
    for label, contestant in image_contestants(sizes.steps, release, quick=quick).items():
        key = {"data": name, "defence": spec, "attack": label, "images": sizes.reported}
        if rows.has(**key, step=step):
            continue
        before = rows.of(**key)
        settings = before[0]["settings"] if before else contestant.tuned(cases[0], psnr, largest=True)
        scores = contestant.scores(cases[1], settings, psnr).tolist()
        rows.add({**key, "step": step, "settings": settings, "scores": scores})


def trained_with(spec: str, shape: tuple[int, ...], training: Samples | None) -> nn.Module:
    """The paper's convolutional network after a step of Adam by what leaves of each of some samples.

    Weights are drawn with variance 1 / fan-in, as JAX's libraries do, which the paper's code is written with: with
    PyTorch's a third of that, four layers' gradients are lost in the noise.
    """
    torch.manual_seed(0)
    features = 64 * (shape[1] // 4) * (shape[2] // 4)
    bare = get_architecture("cnn").build(channels=shape[0], features=features, classes=10)
    for layer in bare.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=layer.weight[0].numel() ** -0.5)
            nn.init.zeros_(layer.bias)
    model: nn.Module = Normalized(bare, *PIXELS[shape[0]])
    release = PerSampleRelease(model, F.cross_entropy, spec)
    adam, generator = torch.optim.Adam(model.parameters(), 1e-3), torch.Generator().manual_seed(2)
    for place in range(0 if training is None else len(training)):
        assert training is not None
        batch = Batch(training.inputs[place : place + 1].float(), training.targets[place : place + 1])
        update, first = release.observe(batch, generator).detach()[0], 0
        for parameter in model.parameters():
            parameter.grad = update[first : first + parameter.numel()].reshape(parameter.shape)
            first += parameter.numel()
        adam.step()
    return model.eval().requires_grad_(True)


def image_contestants(steps: int, release: Release, *, quick: bool) -> dict[str, Contestant]:
    """The columns of their Table 2; against a mask, those of the law's own distance told of it besides."""
    bayes = BayesOptimal(steps=steps)
    betas: Grid = {"beta": (0.3, 0.1, 1.0, 3.0), "rate": (0.3, 0.1, 1.0)}
    l2 = Contestant(
        GradInversion(steps=steps, **PLAIN), {"total_variation": (10.0, 1.0, 100.0, 1000.0), "rate": (0.3, 0.1, 1.0)}
    )
    l1 = Contestant(replace(bayes, likelihood="laplace"), betas)
    cosine: Grid = {"total_variation": (0.01, 0.001, 0.1), "rate": (0.3, 0.1, 1.0)}
    contestants = {
        "bayes": Contestant(bayes, betas),
        "L2": replace(l2, knows_mask=False),
        "L1": replace(l1, knows_mask=False),
        "cosine": Contestant(InvertingGradients(steps=steps, signed=False), cosine, knows_mask=False),
    }
    if any(isinstance(step, Mask) for step in release.spec.all_steps):
        told = l1 if release.noise is not None and release.noise.law == "laplace" else l2
        contestants["told of the mask"] = told
    return {name: replace(one, grid={}) for name, one in contestants.items()} if quick else contestants


def image_table(name: str, step: int, sizes: Sizes, rows: Rows) -> Table:
    """Mean PSNR of every attack on every defence."""
    columns = {key: key for key in ("defence", "bayes", *RIVALS, "told of the mask")}
    columns |= {"difference": "bayes less the best rival (95 %)", "ahead": "bayes better"}
    table = Table(f"{name}, step {step}: mean PSNR, dB", columns)
    for label, spec in DEFENCES.items():
        found = {
            row["attack"]: torch.tensor(row["scores"], dtype=torch.float64)
            for row in rows.of(data=name, defence=spec, step=step, images=sizes.reported)
        }
        best = max(RIVALS, key=lambda rival: float(found[rival].mean()))
        line: dict[str, Any] = {attack: round(float(scores.mean()), 2) for attack, scores in found.items()}
        line |= {"defence": label, "difference": interval(found["bayes"] - found[best])}
        table.rows.append({**line, "ahead": ahead(found["bayes"], found[best], largest=True)})
    table.notes.append(
        f"cnn, {sizes.reported} images from {FIRST} on, {sizes.steps} steps, total variation in all attacks; settings "
        f"chosen on images 0 to {sizes.tuning - 1} and the untrained network."
    )
    return table


# Radius of the ball as published, a root mean square per coordinate, and how many of its points.
RADIUS, POINT_COUNTS = 9.0 / 28, (1, 2, 4, 8)
STEP_COUNTS = (25, 50, 100, 200)


def balls(printer: Printer, folder: Path | None, rows: Rows, sizes: Sizes, *, quick: bool) -> None:
    """How soon the attack arrives with more points of the ball: their Figure 7."""
    assert folder is not None
    shape, _ = IMAGES["mnist_test"]
    count, steps = sizes.reported, (2, 4) if quick else STEP_COUNTS
    every = load_samples(folder / "mnist_test.npz", channels=1, limit=FIRST + count)
    reported = every.select(list(range(FIRST, FIRST + count)))
    spec = f"gaussian:{NOISE}"
    release = PerSampleRelease(trained_with(spec, shape, None), F.cross_entropy, spec)
    prior = IsotropicPrior.fit(every.select(list(range(FIRST))).inputs)
    case = Case.of(release, Batch(reported.inputs.float(), reported.targets), prior, (0.0, 1.0), 1)
    (psnr,) = make_metrics(Subject(shape, (0.0, 1.0), release.model), ("psnr",))
    columns = {"points": "points", **{str(number): f"{number} steps" for number in steps}}
    table = Table(f"mnist_test, {spec}, radius {RADIUS:.3g}: mean PSNR, dB", columns)
    for points, radius in [(1, 0.0), *((points, RADIUS) for points in POINT_COUNTS)]:
        line: dict[str, Any] = {"points": points if radius else "none: the mode"}
        for number in steps:
            key = {"experiment": "balls", "points": points, "radius": radius, "steps": number}
            if not rows.has(**key):
                attack = BayesOptimal(steps=number, rate=0.3, beta=0.3, num_points=points, delta=radius)
                rows.add({**key, "scores": Contestant(attack, {}).scores(case, {}, psnr).tolist()})
            line[str(number)] = round(sum(rows.of(**key)[0]["scores"]) / count, 2)
        table.rows.append(line)
    table.notes.append(f"cnn, untrained, {count} images from {FIRST} on; every number is of a run of its own.")
    printer.add(table)


EXPERIMENTS: dict[str, Callable[..., None]] = {function.__name__: function for function in (synthetic, images, balls)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one experiment or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", nargs="?", choices=list(EXPERIMENTS), help="default: all")
    parser.add_argument("--data", type=Path, help="folder of mnist_test.npz, mnist_train.npz and those of CIFAR-10")
    parser.add_argument("--images", type=int, default=32, help="images that are reported")
    parser.add_argument("--rows", type=Path, metavar="FILE.jsonl", help="finished runs, with which a rerun goes on")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--quick", action="store_true", help="tiny sizes that only try the code")
    options = parser.parse_args(arguments)
    names = [options.experiment] if options.experiment else list(EXPERIMENTS)
    if names != ["synthetic"] and options.data is None:
        parser.error("expected --data for images, found none")
    measurement = Measurement(threads=options.threads, dtype="float32")
    measurement.apply()
    printer = Printer("Knowing the defence and the prior", measurement)
    sizes = Sizes(2, 2, 4, (0, 2)) if options.quick else Sizes(max(2, options.images // 4), options.images)
    rows = Rows(options.rows or Path(os.devnull))
    for name in names:
        EXPERIMENTS[name](printer, options.data, rows, sizes, quick=options.quick)
    printer.finish(options.json)


if __name__ == "__main__":
    main()
