"""The architectures that are known by name, and which of them some weights fit.

An architecture infers its constructor's arguments from the names and shapes of the weights; the
model is then built without memory (on torch's meta device) and compared name by name, shape by
shape. So an architecture is recognised only where its weights would load strictly.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from riskaudit.errors import ArchitectureError
from riskaudit.inputs.text import clean, first_problems, shape_text

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]

_COUNTER = ".num_batches_tracked"
ARCHITECTURES: dict[str, Architecture] = {}
COLLECTIONS: dict[str, Collection] = {}


class MismatchError(Exception):
    """Weights can't belong to an architecture; ``str`` says why, ``near`` that they are otherwise of its kind."""

    def __init__(self, reason: str, *, near: bool = True) -> None:
        super().__init__(reason)
        self.near = near


@dataclass(frozen=True)
class Guess:
    """What weights say of their model.

    ``input_shape`` is (C, H, W) or (features,), None where several sizes give the same weights. ``assumed`` is what
    the architecture has and shapes don't show: activations, strides, pooling.
    """

    arguments: Mapping[str, Any]
    num_classes: int
    input_channels: int | None = None
    input_shape: tuple[int, ...] | None = None
    notes: tuple[str, ...] = ()
    assumed: str = ""


@dataclass(frozen=True)
class Architecture:
    """One registered architecture.

    ``infer`` turns shapes into constructor arguments or raises `MismatchError`. ``rename`` maps other
    customary names to this one's, given the shapes and whether the user named the architecture. ``whole`` ones are
    recognised only where a file holds no other weights: what they have looks like a part of another network.
    """

    name: str
    description: str
    build: Callable[..., nn.Module]
    infer: Callable[[Shapes], Guess]
    rename: Callable[[Shapes, bool], Mapping[str, str]]
    whole: bool = False


@dataclass(frozen=True)
class Collection:
    """A package of models, named ``collection:NAME`` and never recognised, only asked for.

    ``names`` lists its models, none where the package isn't installed.
    """

    name: str
    description: str
    build: Callable[[str, Shapes], nn.Module]
    names: Callable[[], Sequence[str]]


@dataclass(frozen=True)
class Fit:
    """An architecture beside weights: fits when ``difference`` is None."""

    architecture: Architecture
    guess: Guess | None
    renames: Mapping[str, str] = field(default_factory=dict)
    difference: str | None = None
    num_differences: int = 0


def _claim(name: str) -> None:
    if name in ARCHITECTURES or name in COLLECTIONS:
        raise ValueError(f"architecture {name!r} is registered twice")


def register(
    name: str,
    *,
    description: str,
    infer: Callable[[Shapes], Guess],
    rename: Callable[[Shapes, bool], Mapping[str, str]] = lambda _shapes, _named: {},
    whole: bool = False,
) -> Callable[[Callable[..., nn.Module]], Callable[..., nn.Module]]:
    """Register the decorated constructor or module class under ``name``.

    Raises:
        ValueError: the name is taken.
    """

    def decorate(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        _claim(name)
        ARCHITECTURES[name] = Architecture(name, description, build, infer, rename, whole)
        return build

    return decorate


def register_collection(
    name: str, *, description: str, names: Callable[[], Sequence[str]]
) -> Callable[[Callable[[str, Shapes], nn.Module]], Callable[[str, Shapes], nn.Module]]:
    """Register the decorated ``(model name, shapes) -> module`` as a collection.

    Raises:
        ValueError: the name is taken.
    """

    def decorate(build: Callable[[str, Shapes], nn.Module]) -> Callable[[str, Shapes], nn.Module]:
        _claim(name)
        COLLECTIONS[name] = Collection(name, description, build, names)
        return build

    return decorate


def architecture_names() -> dict[str, str]:
    """One line of description for every name that ``arch`` takes; collections as ``collection:NAME``."""
    described = {entry.name: entry.description for entry in ARCHITECTURES.values()}
    return described | {f"{entry.name}:NAME": entry.description for entry in COLLECTIONS.values()}


def get_architecture(name: str) -> Architecture:
    """The architecture registered under ``name``.

    Raises:
        ArchitectureError: unknown; the message lists the known and the nearest.
    """
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    near = difflib.get_close_matches(name, ARCHITECTURES, n=2) + [
        f"{each.name}:{close}"
        for each in COLLECTIONS.values()
        for close in difflib.get_close_matches(name.rpartition(":")[2], each.names(), n=1, cutoff=0.8)
    ]
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise ArchitectureError(
        f"unknown architecture {clean(name, 50)!r}; {hint}known are {', '.join(architecture_names())} "
        "and file.py:factory"
    )


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Name to shape of everything in a module's state dict."""
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def differences(expected: Shapes, actual: Shapes) -> list[str]:
    """Where two sets of weights differ, each as a few words; batch-norm counters may be absent from ``actual``."""
    shared = [name for name in expected if name in actual]
    result = [
        f"{name} has shape {shape_text(actual[name])}, expected {shape_text(expected[name])}"
        for name in shared
        if tuple(expected[name]) != tuple(actual[name])
    ]
    missing = [name for name in expected if name not in actual and not name.endswith(_COUNTER)]
    unexpected = [name for name in actual if name not in expected]
    result += [f"{name} is missing" for name in missing]
    return result + [f"{name} is unexpected" for name in unexpected]


def try_fit(architecture: Architecture, shapes: Shapes, *, named: bool = False) -> Fit:
    """Hold an architecture against weights; ``named`` when the user asked for it by name."""
    renames = architecture.rename(shapes, named)
    renamed = {renames.get(name, name): shape for name, shape in shapes.items()}
    try:
        guess = architecture.infer(renamed)
        with torch.device("meta"):
            expected = shapes_of(architecture.build(**guess.arguments))
    except MismatchError as mismatch:
        return Fit(architecture, None, renames, str(mismatch), 1 if mismatch.near else len(shapes) + 1)
    problems = differences(expected, renamed)
    if problems:
        return Fit(architecture, guess, renames, first_problems(problems), len(problems))
    return Fit(architecture, guess, renames)


def unrecognised(shapes: Shapes) -> str:
    """Why weights fit no registered architecture: the nearest with the reason."""
    fits = [try_fit(architecture, shapes) for architecture in ARCHITECTURES.values()]
    # Where an architecture's arguments can't be inferred, the names still say which one it may have been.
    nearest = sorted(fits, key=lambda fit: (fit.num_differences, -_shared_names(fit, shapes)))[:2]
    reasons = ". ".join(f"{fit.architecture.name}: {clean(fit.difference, 110)}" for fit in nearest)
    return (
        "no registered architecture fits the weights; name it with `arch=NAME`, "
        "`arch=torchvision:resnet18` or another of torchvision, one of timm likewise, or `arch=file.py:factory` "
        f"(nearest: {reasons})"
    )


def _shared_names(fit: Fit, shapes: Shapes) -> int:
    """How many of the weights' names an architecture has too, at its default sizes."""
    with torch.device("meta"):
        expected = shapes_of(fit.architecture.build())
    return sum(fit.renames.get(name, name) in expected for name in shapes)


def convolutional_guess(
    shapes: Shapes, first: str, linear: str, multiple: int, assumed: str, last: str | None = None, **more: int
) -> Guess:
    """What convolutions, and linear layers on a multiple of so many features, say of their model.

    Several heights and widths give the same number of features, so the weights don't determine the input's size.

    Raises:
        MismatchError: one of the layers is absent or of other sizes.
    """
    _, channels, _, _ = shape_at(shapes, first, 4)
    _, features = shape_at(shapes, linear, 2)
    classes, _ = shape_at(shapes, last or linear, 2)
    if features % multiple:
        raise MismatchError(f"{linear} takes {features} features, expected a multiple of {multiple}")
    arguments = {"channels": channels, "features": features, "classes": classes, **more}
    return Guess(arguments, num_classes=classes, input_channels=channels, assumed=assumed)


def shape_at(shapes: Shapes, name: str, num_dimensions: int) -> tuple[int, ...]:
    """The shape under ``name``.

    Raises:
        MismatchError: absent, of another number of dimensions, or with a size of 0.
    """
    if name not in shapes:
        raise MismatchError(f"{name} is missing", near=False)
    shape = tuple(shapes[name])
    if len(shape) != num_dimensions or 0 in shape:
        raise MismatchError(f"{name} has shape {shape_text(shape)}, expected {num_dimensions} sizes above 0")
    return shape


def layer_weights(shapes: Shapes) -> list[str]:
    """The names of all ``weight`` entries with two or more sizes, in order."""
    return [name for name, shape in shapes.items() if name.rpartition(".")[2] == "weight" and len(shape) >= 2]


def first_channels(shapes: Shapes) -> int | None:
    """Input channels of the first layer where that is a convolution; ``shapes`` in the model's order."""
    names = layer_weights(shapes)
    return shapes[names[0]][1] if names and len(shapes[names[0]]) in (3, 4, 5) else None


def input_channels(model: nn.Module) -> int | None:
    """Input channels of the first layer that a model registers, where that is a convolution of images or series."""
    for module in model.modules():
        if isinstance(module, _ConvNd):
            # Volumes may come without an axis of channels, which their three axes don't show.
            return None if module.weight.ndim == 5 else module.in_channels
        if any(weight.ndim >= 2 for weight in module.parameters(recurse=False)):
            return None
    return None


def last_width(shapes: Shapes) -> int | None:
    """Outputs of the last layer, taken for the number of classes; ``shapes`` in the model's order."""
    names = layer_weights(shapes)
    return shapes[names[-1]][0] if names else None


def reference_shapes(build: Callable[[], nn.Module]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a model, built without memory where its constructor allows that."""
    try:
        with torch.device("meta"):
            return shapes_of(build())
    except (RuntimeError, NotImplementedError):
        # Some constructors compute with numbers, which meta tensors don't hold.
        return shapes_of(build())


def matching_sizes(reference: Shapes, shapes: Shapes, title: str) -> tuple[int, int | None]:
    """Number of classes and input channels of weights, read where the reference model has its ends.

    Raises:
        ArchitectureError: the weights have no such layers.
    """
    names = layer_weights(reference)
    for name in (names[0], names[-1]):
        if name not in shapes or len(shapes[name]) != len(reference[name]) or 0 in shapes[name]:
            problem = f"has shape {shape_text(shapes[name])}" if name in shapes else "is missing"
            raise ArchitectureError(
                f"the weights don't fit {title}: {name} {problem}, expected {len(reference[name])} sizes; "
                "name another `arch` or use `arch=file.py:factory`"
            )
    channels = shapes[names[0]][1] if first_channels(reference) is not None else None
    return shapes[names[-1]][0], channels
