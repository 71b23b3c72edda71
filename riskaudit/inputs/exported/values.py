"""Arguments of an exported program's nodes: JSON of the export schema to values and names of earlier values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from riskaudit.errors import CheckpointError
from riskaudit.inputs.exported.archive import SCALAR_TYPES
from riskaudit.inputs.text import clean

EXPORT_ADVICE = (
    "export it with torch.export.export(model.eval(), (x[:1],)), or with a dynamic batch dimension, "
    "and torch.export.save"
)

_MEMORY_FORMATS = {
    1: torch.contiguous_format,
    2: torch.channels_last,
    3: torch.channels_last_3d,
    4: torch.preserve_format,
}

_LITERALS = ("as_int", "as_ints", "as_bool", "as_bools", "as_string", "as_strings", "as_int_lists")


@dataclass(frozen=True)
class ValueName:
    """Refers to an earlier value of the graph."""

    name: str


# The program runs where and in what precision its input is, not where it was exported. No graph has these names.
DEVICE = ValueName("device of x")
DTYPE = ValueName("dtype of x")


def read_argument(argument: Mapping[str, Any]) -> Any:
    """One argument of the export schema (a union of one key) as a value, with `ValueName` for graph values."""
    ((kind, value),) = argument.items()
    if kind in ("as_float", "as_floats"):
        # JSON has no infinity: the schema writes it as a word.
        return [float(item) for item in value] if isinstance(value, list) else float(value)
    if kind in _LITERALS:
        return value
    if kind not in _CONVERTERS:
        raise CheckpointError(
            f"the exported program has an argument {clean(kind, 30)} that can't be read; {EXPORT_ADVICE}"
        )
    return _CONVERTERS[kind](value)


def _reference(value: Mapping[str, Any]) -> Any:
    if "as_none" in value:
        return None
    return ValueName(str(value["as_tensor"]["name"] if "as_tensor" in value else value["name"]))


def _symbol(value: Mapping[str, Any]) -> Any:
    ((kind, content),) = value.items()
    return ValueName(str(content)) if kind == "as_name" else content


def _dtype(value: int) -> Any:
    dtype = SCALAR_TYPES[value]
    return DTYPE if dtype.is_floating_point else dtype


_CONVERTERS: Mapping[str, Callable[[Any], Any]] = {
    "as_none": lambda _: None,
    "as_tensor": _reference,
    "as_optional_tensor": _reference,
    "as_tensors": lambda items: [_reference(item) for item in items],
    "as_optional_tensors": lambda items: [_reference(item) for item in items],
    "as_sym_int": _symbol,
    "as_sym_float": _symbol,
    "as_sym_bool": _symbol,
    "as_sym_ints": lambda items: [_symbol(item) for item in items],
    "as_sym_floats": lambda items: [_symbol(item) for item in items],
    "as_sym_bools": lambda items: [_symbol(item) for item in items],
    "as_scalar_type": _dtype,
    "as_memory_format": lambda value: _MEMORY_FORMATS[value],
    "as_layout": lambda _: torch.strided,
    "as_device": lambda _: DEVICE,
}


def output_names(argument: Mapping[str, Any]) -> Any:
    """Names of a node's results: one, None where it is dropped, or a list of these."""
    value = read_argument(argument)
    return [item.name if item else None for item in value] if isinstance(value, list) else value and value.name
