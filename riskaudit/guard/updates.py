"""What a client is about to send: tensors like the model's trainable parameters, as one vector and back."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from riskaudit.errors import GuardError
from riskaudit.guard.noise.randomness import on_grid
from riskaudit.inputs.identifiers import hash_tensors
from riskaudit.inputs.text import shape_text

UpdateLike: TypeAlias = Sequence[Any] | Mapping[str, Any]


def copy_update(given: UpdateLike, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """A copy of an update by parameter name, in the model's order, which nobody else can change.

    Args:
        given: tensors or arrays in the order of the trainable parameters, or a mapping of their names to them.
        shapes: of the trainable parameters, by name.

    Raises:
        GuardError: names or shapes that differ from the parameters', or a number that isn't finite.
    """
    if isinstance(given, Mapping):
        missing, foreign = [name for name in shapes if name not in given], [n for n in given if n not in shapes]
        if missing or foreign:
            what = f"{missing[0]!r} is missing" if missing else f"{foreign[0]!r} is none of them"
            raise GuardError(f"expected an update with the names of the {len(shapes)} trainable parameters: {what}")
        values = [given[name] for name in shapes]
    else:
        values = list(given)
        if len(values) != len(shapes):
            raise GuardError(f"expected {len(shapes)} tensors, one per trainable parameter, found {len(values)}")
    # Copied before they are checked: what was checked is what is reviewed.
    tensors = {name: _copied(value, name) for name, value in zip(shapes, values, strict=True)}
    for name, shape in shapes.items():
        if tensors[name].shape != shape:
            raise GuardError(
                f"expected {shape_text(tuple(shape))} for {name}, found {shape_text(tuple(tensors[name].shape))}"
            )
        if not tensors[name].is_floating_point() or not bool(torch.isfinite(tensors[name]).all()):
            raise GuardError(f"the update of {name} holds something that isn't a finite number")
    return tensors


def named_arrays(given: UpdateLike, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of entries of a state dict, in its order, of the shapes and dtypes that they have there.

    Args:
        given: some of the entries by name, or all of them in their order.
        like: the state dict.

    Raises:
        GuardError: other names, shapes or dtypes, or a number that isn't finite.
    """
    if not isinstance(given, Mapping):
        values = list(given)
        if len(values) != len(like):
            raise GuardError(f"expected the {len(like)} entries of the model's state dict, found {len(values)}")
        given = dict(zip(like, values, strict=True))
    foreign = [name for name in given if name not in like]
    if foreign:
        raise GuardError(f"expected entries of the model's state dict, found {len(foreign)} with other names")
    arrays = {name: _copied(given[name], name) for name in like if name in given}
    for name, value in arrays.items():
        if value.shape != like[name].shape or value.dtype != like[name].dtype:
            raise GuardError(
                f"expected {shape_text(tuple(like[name].shape))} of {like[name].dtype} for {name}, as it was before, "
                f"found {shape_text(tuple(value.shape))} of {value.dtype}"
            )
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise GuardError(f"the outgoing {name} holds something that isn't a finite number")
    return {name: value.to(like[name].device) for name, value in arrays.items()}


def _copied(value: Any, name: str) -> Tensor:
    """A dense tensor of a value's entries."""
    if value is None:
        raise GuardError(f"expected an array for {name}, found none; hand over zeros where it has no gradient")
    tensor = torch.as_tensor(value)
    if tensor.is_meta:
        raise GuardError(
            f"expected a tensor with numbers for {name}, found one on the device meta; hand over the update"
        )
    if tensor.layout != torch.strided or tensor.is_quantized:
        kind, advice = ("quantized", "dequantize()") if tensor.is_quantized else (tensor.layout, "to_dense()")
        raise GuardError(f"expected a dense tensor for {name}, found one that is {kind}; hand over its {advice}")
    return tensor.detach().clone()


def vector_of(tensors: Iterable[Tensor]) -> Tensor:
    """All entries as one vector [P], float64, on the CPU."""
    return torch.cat([tensor.reshape(-1).to("cpu", torch.float64) for tensor in tensors])


def split(vector: Tensor, shapes: Iterable[torch.Size]) -> list[Tensor]:
    """A vector [P] as tensors of these shapes, one behind the other."""
    shapes = list(shapes)
    parts = torch.split_with_sizes(vector, [shape.numel() for shape in shapes])
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def rebuilt(vector: Tensor, like: Mapping[str, Tensor], noise_std: float) -> dict[str, Tensor]:
    """An update in the shapes and dtypes of another with the entries of ``vector`` [P], on a grid below its noise.

    Raises:
        GuardError: a dtype that can't hold the grid.
    """
    parts = split(vector, [tensor.shape for tensor in like.values()])
    return {
        name: (on_grid(part, noise_std, old.dtype) if noise_std else part).to(old)
        for part, (name, old) in zip(parts, like.items(), strict=True)
    }


def digest_of_update(given: UpdateLike) -> str:
    """Hex SHA-256 of an update in any of its forms; the same for a list and a mapping in the parameters' order.

    Names are left out, so that a framework that renames or drops them still sends what was reviewed.
    """
    digest = hashlib.sha256()
    values = given.values() if isinstance(given, Mapping) else given
    hash_tensors(digest, (("", torch.as_tensor(value)) for value in values))
    return digest.hexdigest()
