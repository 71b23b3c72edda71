"""Which tensors of a file are a model's weights.

Checkpoints hold more than one state dict and names that a training framework has changed: prefixes (``model.``,
``student.``), wrappers in front of names or inside them (``_orig_mod`` of torch.compile, ``module`` of DDP), metrics,
losses, averaged copies. A *set* is everything below one prefix of the file that together makes up the whole model,
shape by shape. Exactly one set must fit. Several different ones are never chosen between silently, and nothing that
may be a part of the model is left out silently.

Weights without names: federated frameworks store a round as a row of arrays, in the order of the state dict.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from riskaudit.errors import ArchitectureError
from riskaudit.inputs.state_dicts import Entries
from riskaudit.inputs.text import clean, first_problems, listing, shape_text

Shapes = Mapping[str, tuple[int, ...]]
Name = tuple[str, ...]

# Components that frameworks put in front of names or inside them, and that mean the same module.
WRAPPERS = frozenset(
    ("_orig_mod", "module", "_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
)
# Entries that a model computes the same without: counters and index tables that its constructor makes anew.
_INERT = ("num_batches_tracked", "position_ids")
# Parts of a training loop, which take no part in the model's output.
_TRAINING = re.compile(
    r"(criterion|loss|losses|loss_fn|metric|metrics|acc|accuracy|auroc|f1|confmat|optim|optimizer|scheduler)"
    r"|(train|val|valid|test)_(acc|accuracy|loss|metric|metrics|auroc|f1)|\w+_(loss|metric|metrics|acc|accuracy)"
)
TOP = "."


@dataclass(frozen=True)
class Match:
    """One way to fill a model from a file.

    Attributes:
        prefix: what all file names begin with, "" at the top.
        names: model name to file name.
        foreign: file names that are no part of the model.
        problems: why it doesn't fill the model whole.
    """

    prefix: str
    names: Mapping[str, str]
    foreign: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


def is_inert(name: str) -> bool:
    """Whether an entry may be absent from a file, or from the model, without changing what the model computes."""
    return name.rpartition(".")[2] in _INERT


def without_wrappers(components: Iterable[str]) -> Name:
    """A name's components without those that stand for a wrapper."""
    return tuple(component for component in components if component not in WRAPPERS)


def join(prefix: str, name: str) -> str:
    """A dotted name below a prefix."""
    return f"{prefix}.{name}" if prefix else name


def below(prefix: str, name: str) -> bool:
    """Whether a dotted name lies below a prefix."""
    return not prefix or name.startswith(prefix + ".")


def match_weights(
    entries: Entries,
    expected: Shapes,
    *,
    name: str,
    arch: str,
    ties: Mapping[str, Collection[str]] | None = None,
    chosen: str | None = None,
) -> Match:
    """The one set of a file's tensors that fills a model.

    Raises:
        ArchitectureError: no set fits, several different ones do, or part of a model would be left out.
    """
    tensors = entries.tensors
    candidates = list(_candidates(tensors, expected, ties or {}))
    fits = [candidate for candidate in candidates if not candidate.problems]
    if not fits or (chosen is not None and not any(chosen_by(chosen, fit.prefix) for fit in fits)):
        pool = [candidate for candidate in candidates if chosen is None or chosen_by(chosen, candidate.prefix)]
        raise ArchitectureError(_misfit(tensors, expected, pool, name, arch, chosen))
    match = choose_match(fits, entries, name, arch, chosen)
    _check_ties(match, tensors, ties or {}, name)
    copies = {key for fit in fits for key in fit.names.values()}
    unexpected = [key for key in inside(match, entries) if key not in copies]
    if unexpected:
        listed = first_problems([f"{clean(key, 90)} is unexpected" for key in unexpected])
        raise ArchitectureError(
            f"the weights in {name} don't fit {clean(arch, 60)}: {listed}; "
            "name the model that has these layers, or save a state dict without them"
        )
    return match


def inside(match: Match, entries: Entries) -> list[str]:
    """Entries beside a set's own, in its dictionaries and below its prefix, that may be parts of the same model."""
    used = set(match.names.values())
    containers = {entries.container_of(key) for key in used}
    return [
        key
        for key, tensor in entries.tensors.items()
        if key not in used
        and below(match.prefix, key)
        and entries.container_of(key) in containers
        and not is_inert(key)
        and not is_training(key[len(match.prefix) :].strip("."))
        and (tensor.is_floating_point() or tensor.ndim > 0)
    ]


def choose_match(fits: list[Match], entries: Entries, name: str, arch: str, chosen: str | None) -> Match:
    """The one fit, or the one that the user chose, with what it leaves out.

    Raises:
        ArchitectureError: several fits with different weights, or other weights beside the only fit.
    """
    tensors = entries.tensors
    wanted = fits if chosen is None else [fit for fit in fits if chosen_by(chosen, fit.prefix)]
    # A prefix that is named whole is meant before those that only contain the name.
    wanted = [fit for fit in wanted if chosen is not None and fit.prefix == chosen.strip(".")] or wanted
    different: list[Match] = []
    for fit in wanted:
        if not any(
            all(
                key == other.names[name] or _equal(tensors[key], tensors[other.names[name]])
                for name, key in fit.names.items()
                if name in other.names
            )
            for other in different
        ):
            different.append(fit)
    if len(different) != 1:
        choices = list(dict.fromkeys(fit.prefix or TOP for fit in (different or fits)))
        raise ArchitectureError(
            f"{name} holds {len(choices)} different sets of weights that fit {clean(arch, 60)}: {listing(choices)}; "
            f"choose one, as in `weights={_key(choices[0], choices[1:])}`"
        )
    match = different[0]
    used = set(match.names.values())
    outside = [key for key in tensors if key not in used]
    copies = {key for fit in fits for key in fit.names.values()} | set(inside(match, entries))
    weights = [key for key in outside if key not in copies and is_layer(key, tensors[key])]
    if weights and chosen is None:
        raise ArchitectureError(
            f"{name} holds other weights beside those that fit {clean(arch, 60)} ({listing(weights, 2)}), which the "
            f"model may need; if it doesn't, say so with `weights={_key(match.prefix or TOP, [])}`"
        )
    return Match(match.prefix, match.names, tuple(outside))


def _key(prefix: str, others: Collection[str]) -> str:
    """What to write for a prefix: its first component that no other has, or all of it."""
    parts = prefix.split(".") if prefix != TOP else []
    specific = (part for part in parts if part not in WRAPPERS and not any(chosen_by(part, other) for other in others))
    return clean(next(specific, prefix), 200)


def chosen_by(chosen: str, prefix: str) -> bool:
    """Whether the user's key names a prefix: whole, or a part of it that ends at dots."""
    key = chosen.strip(".")
    return prefix == key if not key else f".{key}." in f".{prefix}."


def is_layer(name: str, tensor: Tensor) -> bool:
    """Whether an entry beside a model may be another layer: a matrix or larger, and no part of a training loop."""
    return tensor.is_floating_point() and tensor.ndim > 1 and not is_training(name)


def is_training(name: str) -> bool:
    """Whether an entry belongs to a loss, a metric or an optimizer by its name."""
    return any(_TRAINING.fullmatch(component.lower()) for component in name.split("."))


def foreign_note(match: Match, optimizers: Collection[str] = ()) -> list[str]:
    """What of a file was left out, in one sentence."""
    left = [*match.foreign, *(f"{prefix} (an optimizer)" for prefix in optimizers)]
    return [f"not part of the model, ignored: {listing(left)}"] if left else []


def _candidates(
    tensors: Mapping[str, Tensor], expected: Shapes, ties: Mapping[str, Collection[str]]
) -> Iterator[Match]:
    for model_prefix in _common_prefixes(expected):
        start = len(model_prefix)
        plain = [without_wrappers(name.split(".")[start:]) for name in expected]
        unique = len(set(plain)) == len(plain) and () not in plain
        by_name = {
            (short if unique else tuple(name.split(".")[start:])): name
            for short, name in zip(plain, expected, strict=True)
        }
        prefixes: dict[str, dict[str, list[str]]] = {}
        for key in tensors:
            for prefix, name in _readings(key, by_name, unique):
                prefixes.setdefault(prefix, {}).setdefault(name, []).append(key)
        for prefix, names in prefixes.items():
            shapes = [
                f"{name} has shape {shape_text(tensors[keys[0]].shape)}, expected {shape_text(expected[name])}"
                for name in expected
                if (keys := names.get(name)) and any(tuple(tensors[key].shape) != expected[name] for key in keys)
            ]
            twice = [
                f"{name} is there twice"
                for name, keys in names.items()
                if any(not torch.equal(tensors[keys[0]], tensors[key]) for key in keys[1:])
            ]
            missing = [
                f"{name} is missing"
                for name in expected
                if name not in names and not is_inert(name) and not any(other in names for other in ties.get(name, ()))
            ]
            yield Match(prefix, {name: keys[0] for name, keys in names.items()}, (), (*shapes, *twice, *missing))


def _common_prefixes(expected: Shapes) -> Iterator[Name]:
    """Every row of components that all of a model's names begin with, () first."""
    split = [name.split(".") for name in expected]
    for length in range(min((len(parts) for parts in split), default=0)):
        if len({tuple(parts[:length]) for parts in split}) > 1:
            return
        yield tuple(split[0][:length])


def _readings(key: str, by_name: Mapping[Name, str], unwrapped: bool) -> Iterator[tuple[str, str]]:
    """Every (prefix, model name) that a file's name can be read as."""
    parts = key.split(".")
    for start in range(len(parts)):
        if unwrapped and parts[start] in WRAPPERS:
            continue  # A wrapper in front belongs to the prefix.
        rest = without_wrappers(parts[start:]) if unwrapped else tuple(parts[start:])
        if rest in by_name:
            yield ".".join(parts[:start]), by_name[rest]


def _equal(first: Tensor, second: Tensor) -> bool:
    return first.dtype == second.dtype and first.layout == second.layout == torch.strided and torch.equal(first, second)


def _check_ties(match: Match, tensors: Mapping[str, Tensor], ties: Mapping[str, Collection[str]], name: str) -> None:
    for parameter, others in ties.items():
        for other in others:
            if (
                parameter in match.names
                and other in match.names
                and not _equal(tensors[match.names[parameter]], tensors[match.names[other]])
            ):
                raise ArchitectureError(
                    f"{clean(parameter, 60)} and {clean(other, 60)} are one tensor in the model, but differ in {name}; "
                    "build the model without tying them"
                )


def _misfit(
    tensors: Mapping[str, Tensor], expected: Shapes, pool: list[Match], name: str, arch: str, chosen: str | None
) -> str:
    if chosen is not None and not pool:
        tops = sorted({key.partition(".")[0] for key in tensors})
        return (
            f"`weights={clean(chosen, 60)}` names nothing in {name} that has layers of {clean(arch, 60)}; "
            f"the file begins with {listing(tops)}"
        )
    adapters = [key for key in tensors if any(part.startswith("lora_") for part in key.split("."))]
    if adapters and len(adapters) == len(tensors):
        return (
            f"{name} holds adapters only ({clean(adapters[0], 60)}), without the weights that they adapt; put them "
            "into the model, save its whole `model.state_dict()` and hand in that file"
        )
    best = min(pool, key=lambda each: (-len(each.names), len(each.prefix), len(each.problems)), default=None)
    if best is None:
        problems = [f"{key} is missing" for key in expected] + [f"{key} is unexpected" for key in tensors]
    else:
        used = set(best.names.values())
        left = [key[len(best.prefix) :].strip(".") for key in tensors if key not in used and below(best.prefix, key)]
        problems = [*best.problems, *(f"{key} is unexpected" for key in left if not is_training(key))]
    return (
        f"the weights in {name} don't fit {clean(arch, 60)}: {first_problems(problems)}; hand in the weights of this "
        f"very model, or name the model that they belong to with `arch`{_image_size_hint(arch, problems)}"
    )


def _image_size_hint(arch: str, problems: list[str]) -> str:
    """How a model of timm for other images is named, where positions don't fit."""
    if not arch.startswith("timm:") or not any("pos_embed" in problem for problem in problems):
        return ""
    return (
        " (of images of another size a factory: `arch=file.py:factory` with "
        f"timm.create_model({clean(arch[5:], 60)!r}, img_size=SIZE, num_classes=NUMBER))"
    )


def match_rows(entries: Entries, model: nn.Module, name: str, arch: str, chosen: str | None) -> tuple[Entries, Match]:
    """The one row of tensors that has the shapes of a model's state, in order; with names as the model has them.

    A row is the whole state dict, the state dict without its counters, or, where the model has no other state, its
    parameters.

    Raises:
        ArchitectureError: no row fits, or several do.
    """
    rows = {prefix: row for prefix, row in entries.rows.items() if chosen is None or chosen_by(chosen, prefix)}
    if not rows:
        raise ArchitectureError(
            f"`weights={clean(chosen, 60)}` names nothing in {name}; it holds {listing(entries.rows)}"
        )
    state = model.state_dict()
    # Without counters the row of parameters alone is the same, unless there are running statistics.
    orders = [list(state), [key for key in state if not is_inert(key)]]
    fits: list[tuple[str, list[str]]] = []
    for prefix, row in rows.items():
        fitting = (
            order
            for order in orders
            if [tuple(tensor.shape) for tensor in row] == [tuple(state[key].shape) for key in order]
        )
        order = next(fitting, None)
        if order is not None:
            fits.append((prefix, order))
    if len(fits) > 1:
        prefixes = [prefix for prefix, _ in fits]
        raise ArchitectureError(
            f"{name} holds {len(fits)} rows of weights that fit {clean(arch, 60)}: {listing(prefixes)}; choose one, as "
            f"in `weights={clean(prefixes[0], 60)}`"
        )
    if not fits:
        row = next(iter(rows.values()))
        order = min(orders, key=lambda order: abs(len(order) - len(row)))
        raise ArchitectureError(
            _row_misfit(row_shapes=[tuple(t.shape) for t in row], order=order, model=model, name=name, arch=arch)
        )
    prefix, order = fits[0]
    named = Entries()
    for key, tensor in zip(order, rows[prefix], strict=True):
        named.add("", key, tensor)
    return named, Match("", {key: key for key in order})


def _row_misfit(row_shapes: list[tuple[int, ...]], order: list[str], model: nn.Module, name: str, arch: str) -> str:
    state = model.state_dict()
    differing = next(
        (
            (number, key)
            for number, key in enumerate(order[: len(row_shapes)])
            if row_shapes[number] != tuple(state[key].shape)
        ),
        None,
    )
    if differing is None:
        counts = f"it has {len(order)} and the file {len(row_shapes)}"
    else:
        number, key = differing
        counts = (
            f"array {number} has shape {shape_text(row_shapes[number])}, where {clean(key, 60)} has "
            f"{shape_text(state[key].shape)}"
        )
    return (
        f"the arrays in {name}, which have no names, don't fit the state of {clean(arch, 60)} in order: {counts}; name "
        "the model that they belong to with `arch`, or save its `state_dict()` with names"
    )
