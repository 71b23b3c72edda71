"""Weights without names: federated frameworks store a round as a row of arrays, in the order of the state dict."""

from __future__ import annotations

from torch import nn

from riskaudit.errors import ArchitectureError
from riskaudit.inputs.matching import Match, chosen_by, is_inert
from riskaudit.inputs.state_dicts import Entries
from riskaudit.inputs.text import clean, listing, shape_text


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
            _misfit(row_shapes=[tuple(t.shape) for t in row], order=order, model=model, name=name, arch=arch)
        )
    prefix, order = fits[0]
    named = Entries()
    for key, tensor in zip(order, rows[prefix], strict=True):
        named.add("", key, tensor)
    return named, Match("", {key: key for key in order})


def _misfit(row_shapes: list[tuple[int, ...]], order: list[str], model: nn.Module, name: str, arch: str) -> str:
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
