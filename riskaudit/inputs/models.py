"""Weights to a model: recognise the architecture or take the one that was named, build it, load strictly."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from riskaudit.errors import ArchitectureError, UserCodeError
from riskaudit.inputs.architectures import get_architecture, recognise
from riskaudit.inputs.architectures.inference import input_channels, last_width
from riskaudit.inputs.architectures.registry import (
    COLLECTIONS,
    Fit,
    Shapes,
    differences,
    listing_of_differences,
    shapes_of,
    try_fit,
)
from riskaudit.inputs.state_dicts import prefix_candidates
from riskaudit.inputs.text import clean
from riskaudit.inputs.user_code import call_user_function, is_user_spec, load_user_function


@dataclass(frozen=True)
class BuiltModel:
    """A model with its weights loaded, and what they say of its input and output."""

    model: nn.Module
    architecture: str
    input_channels: int | None
    input_shape: tuple[int, ...] | None
    num_classes: int | None
    recognised: bool
    notes: tuple[str, ...] = ()


def build_model(state: Mapping[str, Tensor], name: str, arch: str | None) -> BuiltModel:
    """The model for ``state``, of architecture ``arch`` or a recognised one.

    Args:
        state: weights of one floating dtype, possibly with a prefix on every name.
        name: the file's name, for messages.
        arch: as `load_checkpoint` takes it.

    Raises:
        ArchitectureError: nothing fits, or the named architecture doesn't.
        UserCodeError: the user's factory fails or returns no module.
    """
    candidates = list(prefix_candidates(state))
    if arch is not None and is_user_spec(arch):
        return _from_factory(candidates, name, arch)
    if arch is not None and arch.partition(":")[0] in COLLECTIONS:
        return _from_collection(candidates, name, arch)
    # Architectures of this package carry no prefix of their own.
    weights = candidates[-1]
    shapes = _shapes(weights)
    if arch is None:
        try:
            fit = recognise(shapes)
        except ArchitectureError as error:
            raise ArchitectureError(f"{name}: {error}") from error
    else:
        fit = try_fit(get_architecture(arch), shapes, named=True)
    if fit.guess is None or fit.difference is not None:
        raise ArchitectureError(
            f"the weights in {name} don't fit {fit.architecture.name}: {clean(fit.difference, 200)}; "
            "name another --arch or use --arch file.py:factory"
        )
    return _from_fit(fit, weights, recognised=arch is None)


def _from_fit(fit: Fit, weights: Mapping[str, Tensor], *, recognised: bool) -> BuiltModel:
    guess = fit.guess
    assert guess is not None
    model = _quietly_random(lambda: fit.architecture.build(**guess.arguments))
    _load(model, {fit.renames.get(key, key): value for key, value in weights.items()})
    return BuiltModel(
        model=model,
        architecture=fit.architecture.name,
        input_channels=guess.input_channels,
        input_shape=guess.input_shape,
        num_classes=guess.num_classes,
        recognised=recognised,
        notes=guess.notes,
    )


def _from_collection(candidates: list[dict[str, Tensor]], name: str, arch: str) -> BuiltModel:
    collection, _, model_name = arch.partition(":")
    build = COLLECTIONS[collection].build
    model = _quietly_random(lambda: build(model_name, _shapes(candidates[-1])))
    return _loaded(model, candidates, name, arch)


def _from_factory(candidates: list[dict[str, Tensor]], name: str, arch: str) -> BuiltModel:
    function = load_user_function(arch)
    model = call_user_function(function, arch)
    if not isinstance(model, nn.Module):
        raise UserCodeError(
            f"{clean(arch)} returned a {type(model).__name__}, expected a torch.nn.Module; return the model itself"
        )
    # The folder is no part of what the audit may tell.
    return _loaded(model, candidates, name, arch.replace("\\", "/").rpartition("/")[2])


def _loaded(model: nn.Module, candidates: list[dict[str, Tensor]], name: str, arch: str) -> BuiltModel:
    expected = shapes_of(model)
    # A factory's module may itself be called `model` or `module`: take whichever stripping fits.
    found = [(differences(expected, _shapes(weights)), weights) for weights in candidates]
    least, weights = min(reversed(found), key=lambda pair: len(pair[0]))
    if least:
        raise ArchitectureError(
            f"the weights in {name} don't fit {clean(arch, 60)}: {listing_of_differences(least)}; "
            "hand in the weights of this very model"
        )
    _load(model, weights)
    return BuiltModel(
        model=model,
        architecture=arch,
        input_channels=input_channels(model),
        input_shape=None,
        num_classes=last_width(expected),
        recognised=False,
    )


def _load(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load ``weights``, which are known to fit; batch-norm counters may be absent."""
    dtype = next(value.dtype for value in weights.values() if value.is_floating_point())
    model.to(dtype)
    state = {key: value for key, value in model.state_dict().items() if key.endswith(".num_batches_tracked")}
    try:
        model.load_state_dict({**state, **weights})
    except RuntimeError as cause:
        raise ArchitectureError(
            f"the weights can't be loaded ({clean(cause, 200)}); use --arch file.py:factory"
        ) from cause
    stop_in_place(model)


def stop_in_place(model: nn.Module) -> None:
    """Let no activation overwrite its input, which breaks second derivatives and vmap; results stay the same."""
    for module in model.modules():
        if getattr(module, "inplace", None) is True:
            module.inplace = False  # type: ignore[assignment]


def _shapes(weights: Mapping[str, Tensor]) -> Shapes:
    return {key: tuple(value.shape) for key, value in weights.items()}


def _quietly_random(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a model whose initial weights don't matter, without moving the caller's random state."""
    with torch.random.fork_rng(devices=[]):
        return build()
