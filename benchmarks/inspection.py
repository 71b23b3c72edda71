"""False alarms of ``riskaudit inspect`` on honest models, and what it finds of planted attacks.

    python -m benchmarks.inspection --data ../shared/data --scratch FOLDER [--networks lenet mlp ...]

Networks are trained on small subsets of MNIST and CIFAR-10 with three optimisers and inspected fresh and after 1, 5
and 20 epochs: as they are and beside their predecessor, pruned by magnitude (half, and nine tenths of each layer's
weights), rounded to 8 and to 4 bits and back, and with a new last
layer trained on half of the classes, also beside the model that it was put on. Each is
inspected with 64 test images, and with 32. Checkpoints in the scratch folder are taken up again.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.options import Printer, experiment_parser
from benchmarks.options import Settings as Measurement
from benchmarks.tables import Table
from benchmarks.training import lenet
from riskaudit.checks.received import SIGNS
from riskaudit.checks.received.judging import judge_model
from riskaudit.errors import SamplesError
from riskaudit.inputs import Samples, load_samples
from riskaudit.inputs.architectures import get_architecture
from riskaudit.results.inspection import SignRow
from riskaudit.torchvision_compat import import_torchvision

BATCH_SIZE = 32
EPOCHS = (0, 1, 5, 20)
SIZES = (64, 32)
ACTIVITY = ("lone-activation", "singleton-share")
# Signs whose numbers mean something beside their reference alone.
FACTORS = ("magnified-gradient", "norm-drift")


@dataclass(frozen=True)
class Case:
    """A network: how it is built, the images that it learns from, and how many it is inspected with."""

    build: Callable[[], nn.Module]
    images: str
    channels: int
    count: int
    sizes: tuple[int, ...] = SIZES


def _vit() -> nn.Module:
    model: nn.Module = import_torchvision().models.VisionTransformer(
        image_size=28, patch_size=7, num_layers=3, num_heads=4, hidden_dim=64, mlp_dim=128, num_classes=10
    )
    model.conv_proj = nn.Conv2d(1, 64, kernel_size=7, stride=7)
    return model


CASES = {
    "lenet": Case(lambda: get_architecture("lenet").build(channels=1, features=588, classes=10), "mnist", 1, 3000),
    "relu-lenet": Case(lambda: lenet((1, 28, 28), nn.ReLU, int(torch.randint(10**6, ()))), "mnist", 1, 3000),
    "mlp": Case(lambda: get_architecture("mlp").build(widths=(784, 512, 256, 10)), "mnist", 1, 3000),
    "wide-mlp": Case(lambda: get_architecture("mlp").build(widths=(784, 2048, 10)), "mnist", 1, 1500),
    "convbig": Case(
        lambda: get_architecture("convbig").build(channels=1, features=64 * 64, classes=10), "mnist", 1, 500
    ),
    "vit": Case(_vit, "mnist", 1, 500),
    "resnet18": Case(lambda: get_architecture("resnet18").build(channels=3, classes=10), "cifar10", 3, 150, SIZES[1:]),
}
OPTIMISERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "adam": lambda model: torch.optim.Adam(model.parameters(), 1e-3),
    "fast-adam": lambda model: torch.optim.Adam(model.parameters(), 5e-3),
    "sgd": lambda model: torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=5e-4),
}


def epochs_of(
    model: nn.Module, optimiser: torch.optim.Optimizer, images: Samples, until: int, seed: int
) -> Iterator[int]:
    """Train in place; the number of every epoch when it is over."""
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(1, until + 1):
        model.train()
        for places in torch.randperm(len(images), generator=generator).split(BATCH_SIZE):
            optimiser.zero_grad()
            F.cross_entropy(model(images.inputs[places].float()), images.targets[places]).backward()
            optimiser.step()
        model.eval()
        yield epoch


def trained(
    name: str, optimiser: str, seed: int, images: Samples, epochs: Sequence[int], scratch: Path
) -> list[tuple[int, nn.Module]]:
    """A network at some epochs, from its checkpoints where all of them are there."""
    torch.manual_seed(seed)
    model = CASES[name].build().eval()
    files = {epoch: scratch / f"{name}-{optimiser}-{seed}-{len(images)}-epoch-{epoch}.pt" for epoch in epochs}
    if not all(file.is_file() for file in files.values()):
        torch.save(model.state_dict(), files[0])
        for epoch in epochs_of(model, OPTIMISERS[optimiser](model), images, max(epochs), seed):
            if epoch in files:
                torch.save(model.state_dict(), files[epoch])
    models = []
    for epoch, file in files.items():
        other = copy.deepcopy(model)
        other.load_state_dict(torch.load(file, weights_only=True))
        models.append((epoch, other))
    return models


@torch.no_grad()
def pruned(model: nn.Module, share: float) -> nn.Module:
    """The smallest weights of every layer set to 0."""
    return _changed(model, lambda value: value * (value.abs() > value.abs().flatten().quantile(share)))


@torch.no_grad()
def rounded(model: nn.Module, bits: int) -> nn.Module:
    """Weights rounded to one of 2^bits - 1 levels of their layer."""

    def round_off(value: Tensor) -> Tensor:
        step = value.abs().amax() / (2 ** (bits - 1) - 1)
        return (value / step.clamp(min=1e-12)).round() * step

    return _changed(model, round_off)


def _changed(model: nn.Module, change: Callable[[Tensor], Tensor]) -> nn.Module:
    other = copy.deepcopy(model)
    for value in other.parameters():
        if value.ndim >= 2:
            # Quantiles of at most 16 million numbers at once.
            value.copy_(change(value) if value.numel() < 2**24 else value)
    return other


def with_new_head(model: nn.Module, images: Samples, seed: int) -> nn.Module:
    """The last layer begun anew at 0 and trained for an epoch on half of the classes, the rest frozen."""
    other = copy.deepcopy(model)
    head = [module for module in other.modules() if isinstance(module, nn.Linear)][-1]
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    some = images.select((images.targets < 5).nonzero()[:, 0].tolist()[:500])
    for _ in epochs_of(other, torch.optim.SGD(head.parameters(), 0.05), some, 1, seed):
        pass
    return other


def variants(model: nn.Module, images: Samples, seed: int) -> Iterator[tuple[str, nn.Module]]:
    """What honest servers and clients make of a model."""
    yield "as trained", model
    yield "half pruned", pruned(model, 0.5)
    yield "nine tenths pruned", pruned(model, 0.9)
    yield "8 bits", rounded(model, 8)
    yield "4 bits", rounded(model, 4)
    yield "new head", with_new_head(model, images, seed)


@dataclass
class Count:
    """Inspections, those with a flag, flags by sign, failures, and each sign's greatest number."""

    inspections: int = 0
    alarms: int = 0
    failures: int = 0
    flags: Counter[str] = field(default_factory=Counter)
    most: dict[str, float] = field(default_factory=dict)

    def add(self, label: str, rows: Sequence[SignRow]) -> None:
        """Count one inspection, and print what it flags."""
        flagged = [row for row in rows if row.flagged]
        self.inspections += 1
        self.alarms += bool(flagged)
        self.failures += any(row.status == "failed" for row in rows)
        self.flags.update({row.id for row in flagged})
        for row in rows:
            if row.value is not None:
                number = row.value / row.reference if row.id in FACTORS and row.reference else row.value
                self.most[row.id] = max(self.most.get(row.id, 0.0), number)
        for row in flagged:
            print(f"ALARM {label}: {row.id} at {row.layer}, {row.value:.3g}, z {row.z}: {row.reason}", flush=True)


def honest(name: str, options: Sequence[str], seeds: int, data: Path, scratch: Path, *, quick: bool) -> Table:
    """Count false alarms of one network."""
    case = CASES[name]
    images = load_samples(data / f"{case.images}_train.npz", channels=case.channels, limit=64 if quick else case.count)
    test = load_samples(data / f"{case.images}_test.npz", channels=case.channels, limit=max(case.sizes))
    columns = {"optimiser": "optimiser", "samples": "samples", "count": "inspections", "alarms": "with a flag"}
    columns |= {"flags": "signs flagged", "failures": "with a failure"}
    columns |= {sign: f"{sign}: greatest{' factor' if sign in FACTORS else ''}" for sign in SIGNS}
    table = Table(f"{name}, {len(images)} images", columns)
    for optimiser in options:
        counts = {size: Count() for size in case.sizes}
        for seed in range(seeds):
            before: nn.Module | None = None
            for epoch, model in trained(name, optimiser, seed, images, EPOCHS[:2] if quick else EPOCHS, scratch):
                for variant, changed in variants(model, images, seed):
                    for size in case.sizes:
                        rows = judge_model(changed, test.inputs[:size]).rows
                        counts[size].add(f"{name} {optimiser} {seed} epoch {epoch} {variant} {size}", rows)
                beside = [(with_new_head(model, images, seed), model)]
                beside += [] if before is None else [(model, before)]
                for received, previous in beside:
                    rows = judge_model(received, test.inputs, previous=previous).rows
                    counts[max(case.sizes)].add(f"{name} {optimiser} {seed} epoch {epoch} beside a previous one", rows)
                before = model
        for size, count in counts.items():
            table.rows.append(
                {"optimiser": optimiser, "samples": size, "count": count.inspections, "alarms": count.alarms}
                | {"flags": ", ".join(f"{sign}: {number}" for sign, number in sorted(count.flags.items())) or "none"}
                | {"failures": count.failures}
                | count.most
            )
    return table


@torch.no_grad()
def _entering(model: nn.Module, layer: nn.Linear, images: Tensor) -> Tensor:
    """What a layer is given, [N, a]; of sequences all positions."""
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    model(images)
    handle.remove()
    return seen[0].reshape(-1, layer.in_features)


@torch.no_grad()
def _imprint(layer: nn.Linear, inputs: Tensor, share: float = 1.0) -> None:
    """Robbing the Fed: equal rows, biases at the quantiles of their product with public data."""
    units = int(share * layer.out_features)
    layer.weight[:units] = 1 / layer.in_features
    layer.bias[:units] = -inputs.mean(1).quantile(torch.linspace(0, 1, units + 2)[1:-1])


@torch.no_grad()
def _quantile_biases(layer: nn.Linear, inputs: Tensor, batch_size: int) -> None:
    """QBI: random rows, biases at the quantile 1 - 1/B."""
    layer.weight.normal_()
    layer.bias.copy_(-(inputs @ layer.weight.T).quantile(1 - 1 / batch_size, dim=0))


@torch.no_grad()
def _trap(layer: nn.Linear, inputs: Tensor) -> None:
    """Curious Abandon Honesty: the factor of the positive half is the largest that leaves units 1/16 of public data."""
    half = layer.in_features // 2
    orders = torch.stack([torch.randperm(layer.in_features) for _ in range(layer.out_features)])
    sizes = 0.1 * torch.randn(layer.out_features, half).abs()
    layer.bias.zero_()
    for factor in torch.arange(0.98, 0.0, -0.02).tolist():
        layer.weight.zero_()
        layer.weight.scatter_(1, orders[:, :half], -sizes)
        layer.weight.scatter_(1, orders[:, half : 2 * half], factor * sizes)
        if float((inputs @ layer.weight.T > 0).double().mean()) <= 1 / 16:
            return


@torch.no_grad()
def _fishing(layer: nn.Linear, inputs: Tensor) -> None:
    """Fishing for User Data: only one class keeps weights, the biases of the others are lifted."""
    layer.weight[1:] = 0
    layer.weight[0] = 0.5
    layer.bias[1:] = 1000


@torch.no_grad()
def _identity(layer: nn.Linear | nn.Conv2d, inputs: Tensor) -> None:
    """Every channel is passed on as it is."""
    kernels = layer.weight.flatten(2) if layer.weight.ndim > 2 else layer.weight.unsqueeze(2)
    kernels.zero_()
    for channel in range(min(kernels.shape[:2])):
        kernels[channel, channel, kernels.shape[2] // 2] = 1


@torch.no_grad()
def _gains(model: nn.Module, inputs: Tensor) -> None:
    """All parameters multiplied by 90, less than what shows in any layer by itself."""
    for parameter in model.parameters():
        parameter.mul_(90)


@torch.no_grad()
def _small_variances(model: nn.Module, inputs: Tensor) -> None:
    """Batch norms that multiply what passes by 5 more than they did."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_var is not None
            module.running_var /= 25


# What is planted, and the signs of which one should be flagged.
ATTACKS: dict[str, tuple[Callable[[Any, Tensor], None], tuple[str, ...]]] = {
    "imprint": (_imprint, ("imprint-layer",)),
    "imprint in an eighth": (lambda layer, inputs: _imprint(layer, inputs, 1 / 8), ("imprint-layer",)),
    "biases for batches of 8": (lambda layer, inputs: _quantile_biases(layer, inputs, 8), ACTIVITY),
    "biases for batches of 16": (lambda layer, inputs: _quantile_biases(layer, inputs, 16), ACTIVITY),
    "biases for batches of 32": (lambda layer, inputs: _quantile_biases(layer, inputs, 32), ACTIVITY),
    "trap weights": (_trap, ACTIVITY),
    "identity": (_identity, ("identity-convolution",)),
    "class fishing": (_fishing, ("silenced-class",)),
    "gains": (_gains, ("magnified-gradient",)),
    "small variances": (_small_variances, ("magnified-gradient",)),
}
# Layers that attacks are planted at: the first hidden one that they fit, and one in the middle.
PLACES = {
    "mlp": (("layers.0", "layers.2"), "layers.4", ("layers.2",)),
    "wide-mlp": (("layers.0",), "layers.2", ()),
    "convbig": (("classifier.0", "classifier.2"), "classifier.4", ("features.3",)),
    "relu-lenet": ((), "9", ("2", "4")),
    "vit": ((), "heads.head", ("encoder.layers.encoder_layer_1.mlp.0",)),
    "resnet18": ((), "fc", ("layer2.1.conv1",)),
}


def planted(name: str, options: Sequence[str], data: Path, scratch: Path, *, quick: bool) -> Table:
    """Which attacks are flagged, by the right sign at the right layer, in networks fresh and after 5 epochs.

    Each is inspected alone, and beside the network that it was planted in as the previous round's.
    """
    case = CASES[name]
    images = load_samples(data / f"{case.images}_train.npz", channels=case.channels, limit=64 if quick else case.count)
    test = load_samples(data / f"{case.images}_test.npz", channels=case.channels, limit=max(case.sizes))
    hidden, head, passing = PLACES[name]
    columns = {"attack": "attack", "count": "planted", "flagged": "flagged there", "failed": "not inspected"}
    columns |= {"beside": "flagged there, beside the previous one"}
    table = Table(f"{name}: planted", columns)
    models = [
        (f"{optimiser} epoch {epoch}", model)
        for optimiser in options
        for epoch, model in trained(name, optimiser, 0, images, EPOCHS[:2] if quick else EPOCHS, scratch)
        if epoch in (0, 5)
    ]
    for attack, (plant, signs) in ATTACKS.items():
        places = {"class fishing": (head,), "identity": passing, "gains": ("",)}.get(attack, hidden)
        if attack == "small variances":
            normalised = any(isinstance(module, nn.BatchNorm2d) for _, model in models for module in model.modules())
            places = ("",) if normalised else ()
        count = flagged = failed = beside = 0
        for place in places:
            for label, model in models:
                changed = copy.deepcopy(model)
                layer: Any = changed.get_submodule(place)
                inputs = _entering(changed, layer, images.inputs[:400].float()) if place in hidden else Tensor()
                plant(layer, inputs)
                count += 1
                try:
                    rows = judge_model(changed, test.inputs).rows
                except SamplesError:
                    # What overflows isn't inspected, and nothing is trained on it.
                    failed += 1
                    continue
                found = _found(rows, place, signs)
                flagged += found
                failed += not found and any(row.status == "failed" for row in rows)
                beside += found or _found(judge_model(changed, test.inputs, previous=model).rows, place, signs)
                if not found:
                    there = [f"{row.id} {row.value}" for row in rows if (row.layer or "") == place]
                    print(f"MISSED {name} {label} {attack} at {place or 'all layers'}: {there}", flush=True)
        if count:
            counts = {"count": count, "flagged": flagged, "failed": failed, "beside": beside}
            table.rows.append({"attack": attack, **counts})
    return table


def _found(rows: Sequence[SignRow], place: str, signs: Sequence[str]) -> bool:
    return any(row.flagged and (row.layer or "") == place and row.id in signs for row in rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the networks named."""
    parser = experiment_parser(__doc__, "mnist_train.npz, cifar10_train.npz and their tests")
    parser.add_argument("--networks", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--optimisers", nargs="+", choices=list(OPTIMISERS), default=list(OPTIMISERS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--tables", nargs="+", choices=("honest", "planted"), default=("honest", "planted"))
    parser.add_argument("--scratch", type=Path, required=True, help="folder for checkpoints")
    options = parser.parse_args(arguments)
    measurement = Measurement(threads=options.threads)
    measurement.apply()
    options.scratch.mkdir(parents=True, exist_ok=True)
    printer = Printer("Inspection of honest models", measurement)
    for name in options.networks:
        chosen = options.optimisers
        if "honest" in options.tables:
            printer.add(honest(name, chosen, options.seeds, options.data, options.scratch, quick=options.quick))
        if "planted" in options.tables and name in PLACES:
            printer.add(planted(name, chosen, options.data, options.scratch, quick=options.quick))
    printer.finish(options.json)


if __name__ == "__main__":
    main()
