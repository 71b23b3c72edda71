"""Weights to a model: recognise the architecture or take the one that was named, build it, fill it whole.

Normalisation is a layer of the audited model, so that its input stays in data units; where a model returns more than
one tensor, so is the choice of the one that the loss is computed from.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from riskaudit.errors import ArchitectureError, CheckpointError, SamplesError, UserCodeError
from riskaudit.inputs.architectures import get_architecture
from riskaudit.inputs.architectures.registry import (
    ARCHITECTURES,
    COLLECTIONS,
    Architecture,
    Shapes,
    input_channels,
    last_width,
    shapes_of,
    try_fit,
    unrecognised,
)
from riskaudit.inputs.matching import (
    Match,
    choose_match,
    chosen_by,
    foreign_note,
    is_layer,
    is_training,
    match_rows,
    match_weights,
    without_wrappers,
)
from riskaudit.inputs.state_dicts import Entries, check_weights
from riskaudit.inputs.text import clean, listing
from riskaudit.inputs.user_code import call_user_function, is_user_spec, load_user_function

# What classifiers (Hugging Face) and segmentation models (torchvision) call the tensor that the loss takes.
NAMES = ("logits", "out")


@dataclass(frozen=True, kw_only=True)
class BuiltModel:
    """A model in eval mode with its weights loaded, and what they say of it.

    Attributes:
        model: x [B, *S] in data units to outputs; float32 or float64 parameters.
        architecture: registered name, ``file.py:factory``, ``torch.export``, or a class name.
        input_channels: C where the weights determine it.
        input_shape: (C, H, W) or (features,) where the weights determine it. (features,) stands for any
            shape of that many entries.
        num_classes: outputs of the last layer where known.
        assumed: what the weights don't show of an architecture that was recognised from them, such as activations;
            None where the architecture was named.
        notes: what a reader of the audit should be told.
    """

    model: nn.Module
    architecture: str
    input_channels: int | None = None
    input_shape: tuple[int, ...] | None = None
    num_classes: int | None = None
    assumed: str | None = None
    notes: tuple[str, ...] = ()


def build_model(entries: Entries, name: str, arch: str | None, chosen: str | None = None) -> BuiltModel:
    """The model for a file's tensors, of architecture ``arch`` or a recognised one.

    Raises:
        ArchitectureError: nothing fits, the named architecture doesn't, or several sets of weights do.
        CheckpointError: weights that can't be used.
        UserCodeError: the user's factory fails or returns no module.
    """
    if arch is not None and is_user_spec(arch):
        # The folder is no part of what the audit may tell.
        return _filled(_from_factory(arch), entries, name, arch.replace("\\", "/").rpartition("/")[2], chosen)
    if arch is not None and arch.partition(":")[0] in COLLECTIONS:
        return _filled(_from_collection(entries, name, arch, chosen), entries, name, arch, chosen)
    if _in_rows(entries):
        if arch is None:
            raise ArchitectureError(
                f"{name} holds {len(next(iter(entries.rows.values())))} arrays in a row, without names; "
                "name the model that they belong to with `arch=file.py:factory`"
            )
        model = _quietly_random(get_architecture(arch).build)
        return _filled(model, entries, name, arch, chosen)
    return _from_registry(entries, name, arch, chosen)


def _from_registry(entries: Entries, name: str, arch: str | None, chosen: str | None) -> BuiltModel:
    architectures = list(ARCHITECTURES.values()) if arch is None else [get_architecture(arch)]
    count = sum(not is_training(key) for key in entries.tensors)
    fits = [
        (fit, Match(prefix, {fit.renames.get(short, short): key for short, key in names.items()}))
        for prefix, names in _subtrees(entries)
        for fit in (try_fit(each, _shapes(names, entries), named=arch is not None) for each in architectures)
        if fit.difference is None and (arch is not None or not fit.architecture.whole or len(names) == count)
    ]
    wanted = [pair for pair in fits if chosen is None or chosen_by(chosen, pair[1].prefix)]
    if not wanted:
        raise ArchitectureError(_no_fit(entries, name, arch, chosen, architectures))
    titles = sorted({fit.architecture.name for fit, _ in wanted})
    if len(titles) > 1:
        raise ArchitectureError(f"the weights in {name} fit {listing(titles)}; choose one with `arch=NAME`")
    match = choose_match([match for _, match in fits], entries, name, titles[0], chosen)
    fit = next(fit for fit, each in fits if each.names == match.names)
    guess = fit.guess
    assert guess is not None
    # Before the model takes as much memory as its weights claim.
    weights = _checked(match, entries, name)
    model = _quietly_random(lambda: fit.architecture.build(**guess.arguments))
    _fill(model, match, weights, name)
    return BuiltModel(
        model=model,
        architecture=fit.architecture.name,
        input_channels=guess.input_channels,
        input_shape=guess.input_shape,
        num_classes=guess.num_classes,
        assumed=guess.assumed if arch is None else None,
        notes=(*guess.notes, *foreign_note(match, entries.optimizers)),
    )


def _in_rows(entries: Entries) -> bool:
    """Whether a file's weights have an order instead of names."""
    return bool(entries.rows) and not any(is_layer(key, tensor) for key, tensor in entries.tensors.items())


def _no_fit(
    entries: Entries, name: str, arch: str | None, chosen: str | None, architectures: list[Architecture]
) -> str:
    """Why no registered architecture fits, told of the set of weights that is most likely the model's."""
    # The weights that are most likely the model's: of the dictionary with most layers, below their common prefix.
    keys = [key for key in entries.tensors if not is_training(key)] or list(entries.tensors)
    if chosen is None:
        layers = Counter(entries.container_of(key) for key in keys if is_layer(key, entries.tensors[key]))
        most = layers.most_common(1)[0][0] if layers else entries.container_of(keys[0])
        keys = [key for key in keys if entries.container_of(key) == most]
    else:
        keys = [key for key in keys if chosen_by(chosen, key)]
    split = [key.split(".") for key in keys]
    start = 0
    while split and min(map(len, split)) > start + 1 and len({parts[start] for parts in split}) == 1:
        start += 1
    names = {".".join((parts[start], *without_wrappers(parts[start + 1 :]))): ".".join(parts) for parts in split}
    if chosen is not None and not names:
        tops = sorted({key.partition(".")[0] for key in entries.tensors})
        return f"`weights={clean(chosen, 60)}` names nothing in {name}; the file begins with {listing(tops)}"
    shapes = _shapes(names, entries)
    if arch is None:
        return f"{name}: {unrecognised(shapes)}"
    fit = try_fit(architectures[0], shapes, named=True)
    return (
        f"the weights in {name} don't fit {fit.architecture.name}: {clean(fit.difference, 200)}; "
        "name another `arch` or use `arch=file.py:factory`"
    )


def _subtrees(entries: Entries) -> Iterator[tuple[str, dict[str, str]]]:
    """Every prefix of a file's names with what lies below it: short name to name in the file."""
    by_prefix: dict[tuple[str, str | None], dict[str, str]] = {}
    for key in entries.tensors:
        if is_training(key):
            continue
        parts = key.split(".")
        container = entries.container_of(key)
        depth = container.count(".") + 1 if container else 0
        for start in range(len(parts)):
            short = ".".join((parts[start], *without_wrappers(parts[start + 1 :])))
            # Below a prefix, a dictionary by itself and all of them together.
            for dictionary in (container, None) if start >= depth else (None,):
                below = by_prefix.setdefault((".".join(parts[:start]), dictionary), {})
                if short in below:
                    below[key] = key  # Two names for one place: nothing fits then.
                else:
                    below[short] = key
    seen: set[tuple[str, frozenset[str]]] = set()
    for (prefix, _), names in by_prefix.items():
        mark = (prefix, frozenset(names.values()))
        if (len(names) > 1 or len(entries.tensors) == 1) and mark not in seen:
            seen.add(mark)
            yield prefix, names


def _from_factory(arch: str) -> nn.Module:
    model = call_user_function(load_user_function(arch), arch)
    if not isinstance(model, nn.Module):
        raise UserCodeError(
            f"{clean(arch)} returned a {type(model).__name__}, expected a torch.nn.Module; return the model itself"
        )
    return model


def _from_collection(entries: Entries, name: str, arch: str, chosen: str | None) -> nn.Module:
    collection, _, model_name = arch.partition(":")
    build = COLLECTIONS[collection].build
    subtrees = [names for prefix, names in _subtrees(entries) if chosen is None or chosen_by(chosen, prefix)]
    # The model's sizes are read where its first and last layer lie: below the prefix of most names first.
    largest = sorted(subtrees, key=len, reverse=True)
    error: ArchitectureError | None = None
    for names in largest:
        if 2 * len(names) < len(largest[0]):
            break
        shapes = _shapes(names, entries)
        try:
            return _quietly_random(lambda shapes=shapes: build(model_name, shapes))  # type: ignore[misc]
        except ArchitectureError as cause:
            error = error or cause
    if error is None:
        return _quietly_random(lambda: build(model_name, {}))
    raise error


def _filled(model: nn.Module, entries: Entries, name: str, arch: str, chosen: str | None) -> BuiltModel:
    expected = shapes_of(model)
    if _in_rows(entries):
        entries, match = match_rows(entries, model, name, arch, chosen)
        notes = [f"the arrays in {name} have no names and were matched to the model's weights in order, by shape"]
    else:
        # Names of the model's state that share one tensor with others.
        groups: dict[tuple[int, tuple[int, ...], tuple[int, ...]], list[str]] = {}
        for key, value in model.state_dict().items():
            if value.numel() and not value.is_meta:
                groups.setdefault((value.data_ptr(), tuple(value.shape), value.stride()), []).append(key)
        match = match_weights(
            entries,
            expected,
            name=name,
            arch=arch,
            ties={
                key: [other for other in group if other != key]
                for group in groups.values()
                for key in group
                if group[1:]
            },
            chosen=chosen,
        )
        notes = foreign_note(match, entries.optimizers)
    _fill(model, match, _checked(match, entries, name), name)
    return BuiltModel(
        model=model,
        architecture=arch,
        input_channels=input_channels(model),
        num_classes=last_width(expected),
        notes=tuple(notes),
    )


def _checked(match: Match, entries: Entries, name: str) -> dict[str, Tensor]:
    """The matched weights by the model's names; CheckpointError where they can't be used."""
    checked = check_weights({key: entries.tensors[key] for key in match.names.values()}, name)
    return {target: checked[key] for target, key in match.names.items()}


def _fill(model: nn.Module, match: Match, matched: Mapping[str, Tensor], name: str) -> None:
    """Load the matched weights; counters and one of two tied names may be absent."""
    expected = model.state_dict()
    weights = {target: value for target, value in matched.items() if target in expected}
    for target, value in weights.items():
        if expected[target].is_floating_point() and not value.is_floating_point():
            raise CheckpointError(
                f"{clean(match.names[target], 60)} in {name} holds {str(value.dtype).removeprefix('torch.')} where the "
                "model has fractions, so it is quantised; hand in the float checkpoint that it was made of"
            )
    model.to(next(value.dtype for value in weights.values() if value.is_floating_point()))
    try:
        model.load_state_dict(weights, strict=False)
    except RuntimeError as cause:
        raise ArchitectureError(
            f"the weights can't be loaded ({clean(cause, 200)}); use `arch=file.py:factory`"
        ) from cause
    stop_in_place(model)


def stop_in_place(model: nn.Module) -> None:
    """Let no activation overwrite its input, which breaks second derivatives and vmap; results stay the same."""
    for module in model.modules():
        if getattr(module, "inplace", None) is True:
            module.inplace = False  # type: ignore[assignment]


def _shapes(names: Mapping[str, str], entries: Entries) -> Shapes:
    return {short: tuple(entries.tensors[key].shape) for short, key in names.items()}


def _quietly_random(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a model whose initial weights don't matter, without moving the caller's random state."""
    with torch.random.fork_rng(devices=[]):
        return build()


class Normalized(nn.Module):
    """``model((x - mean) / std)``; x [B, C, H, W] or [B, F], mean and std in data units, one or one per channel."""

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.model = model
        reference = next(model.parameters(), torch.zeros(()))
        self.register_buffer("mean", reference.new_tensor(list(mean)), persistent=False)
        self.register_buffer("std", reference.new_tensor(list(std)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """The wrapped model's output for a batch x [B, ...] in data units."""
        trailing = (1,) * (x.ndim - 2)
        mean, std = self.get_buffer("mean"), self.get_buffer("std")
        normalized: Tensor = self.model((x - mean.reshape(-1, *trailing)) / std.reshape(-1, *trailing))
        return normalized


def check_normalization(
    mean: Sequence[float] | None, std: Sequence[float] | None, channels: int | None
) -> tuple[list[float], list[float]] | None:
    """``(mean, std)`` as lists of one length, or None where neither is given.

    Raises:
        CheckpointError: only one given, lengths that don't fit, not finite, or std not positive.
    """
    if mean is None and std is None:
        return None
    if mean is None or std is None:
        given, missing = ("`mean`", "`std`") if std is None else ("`std`", "`mean`")
        raise CheckpointError(f"{given} is given without {missing}; give both or neither")
    means, stds = [float(value) for value in mean], [float(value) for value in std]
    for option, values in (("`mean`", means), ("`std`", stds)):
        if not values or not all(math.isfinite(value) for value in values):
            raise CheckpointError(f"expected finite numbers for {option}, found {values}")
        if channels is not None and len(values) not in (1, channels):
            raise CheckpointError(
                f"expected one value or {channels} (one per channel) for {option}, found {len(values)}"
            )
    if min(stds) <= 0:
        raise CheckpointError(f"expected positive values for `std`, found {min(stds)}")
    length = max(len(means), len(stds))
    if len(means) not in (1, length) or len(stds) not in (1, length):
        raise CheckpointError(
            f"`mean` has {len(means)} values and `std` {len(stds)}; give as many of one as of the other"
        )
    return means * (length // len(means)), stds * (length // len(stds))


class OutputEntry(nn.Module):
    """``model(x)``, of which one entry is kept."""

    def __init__(self, model: nn.Module, key: str | int) -> None:
        super().__init__()
        self.model = model
        self.key = key

    def forward(self, x: Tensor) -> Tensor:
        """The chosen entry of the wrapped model's output for a batch x [B, ...]."""
        entry: Tensor = _entries(self.model(x))[self.key]
        return entry


def entry_of_loss(outputs: Any, num_classes: int | None, name: str) -> str | int | None:
    """The entry of an output that a loss of class numbers or values takes; None where the output is one tensor.

    That is ``logits`` or ``out``; else the only tensor, or the only one [B, C] with a column per class.

    Raises:
        SamplesError: no entry or several ones may be meant.
    """
    if isinstance(outputs, Tensor):
        return None
    tensors: dict[str | int, Tensor] = {
        key: value for key, value in _entries(outputs).items() if isinstance(value, Tensor) and value.ndim > 0
    }
    for key in NAMES:
        if key in tensors:
            return key
    if len(tensors) == 1:
        return next(iter(tensors))
    logits = [key for key, value in tensors.items() if value.ndim == 2 and value.shape[1] == num_classes]
    if len(logits) == 1:
        return logits[0]
    held = f"a {clean(type(outputs).__name__, 30)}"
    if tensors:
        held += f" with several tensors ({listing(tensors)})"
    raise SamplesError(
        f"{name} returns {held}, and which of them the loss is computed from can't be told; give a loss that takes the "
        "whole output (`loss=file.py:function`), or a model that returns one tensor (`arch=file.py:factory`)"
    )


def _entries(outputs: Any) -> dict[Any, Any]:
    """The entries of an output by key, field or position; none of anything else."""
    if isinstance(outputs, Mapping):
        return dict(outputs)
    if dataclasses.is_dataclass(outputs) and not isinstance(outputs, type):
        return {field.name: getattr(outputs, field.name) for field in dataclasses.fields(outputs)}
    if isinstance(outputs, tuple | list):
        return dict(enumerate(outputs))
    return {}
