"""Files of tensors as they lie there: nothing is converted or left out, since whatever is in them leaves."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from riskaudit.errors import CheckpointError, GuardError
from riskaudit.files import sha256_of_file
from riskaudit.inputs.checkpoints import read_content
from riskaudit.inputs.readers.archives import checked_members, is_zip
from riskaudit.inputs.readers.torch_files import check_file, starts_like_safetensors
from riskaudit.inputs.state_dicts import as_tensor
from riskaudit.inputs.text import clean, listing
from riskaudit.results.attestation import VectorFile

ACCEPTED = "tensors by name in .safetensors, .pt or .npz files"
# What writers of safetensors say of the framework, and nothing else.
_PLAIN_METADATA = {"format": {"pt", "np", "tf", "flax", "mlx"}}
_MAX_NESTING = 16
_MAX_NAME = 200
# Of an archive that torch writes, beside the tensors.
_TORCH_MEMBERS = {
    "data.pkl",
    "version",
    "byteorder",
    ".format_version",
    ".storage_alignment",
    ".data/serialization_id",
}


@dataclass(frozen=True, eq=False)
class Vector:
    """Tensors under their names, as they were stored.

    Attributes:
        name: of the file without its folder, or what the tensors are called.
        sha256: of the file; None in memory.
        tensors: by dotted name; under their positions where they have no names.
        is_row: whether the names are positions.
        extras: dotted names of whatever else lies in the file.
        hidden_bytes: stored in the file beyond the tensors' own entries.
    """

    name: str
    sha256: str | None
    tensors: Mapping[str, Tensor]
    is_row: bool = False
    extras: Sequence[str] = field(default_factory=tuple)
    hidden_bytes: int = 0

    @property
    def num_entries(self) -> int:
        """Over all tensors."""
        return sum(tensor.numel() for tensor in self.tensors.values())

    def flat(self) -> Tensor:
        """All entries as one vector [P], float64."""
        parts = [tensor.detach().reshape(-1).to("cpu", torch.float64) for tensor in self.tensors.values()]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)

    def info(self) -> VectorFile:
        """For the result."""
        dtypes = {str(tensor.dtype).removeprefix("torch.") for tensor in self.tensors.values()}
        return VectorFile(
            name=self.name,
            sha256=self.sha256,
            num_tensors=len(self.tensors),
            num_entries=self.num_entries,
            dtypes=sorted(dtypes),
        )

    def under(self, names: Sequence[str]) -> Vector:
        """The same in this order; positions become names, and a dictionary around all tensors is left out."""
        if self.is_row and len(self.tensors) == len(names):
            return replace(self, tensors=dict(zip(names, self.tensors.values(), strict=True)), is_row=False)
        tensors = dict(self.tensors)
        if not any(name in tensors for name in names) and tensors:
            containers = {name.partition(".")[0] for name in tensors}
            if len(containers) == 1:
                tensors = {name.partition(".")[2] or name: tensor for name, tensor in tensors.items()}
        ordered = [name for name in names if name in tensors]
        ordered += [name for name in tensors if name not in set(ordered)]
        return replace(self, tensors={name: tensors[name] for name in ordered})


def read_vector(given: object, name: str) -> Vector:
    """A file, or tensors in memory.

    Args:
        given: path, mapping of names to tensors or arrays, or a row of them.
        name: of what is in memory, for messages.

    Raises:
        CheckpointError: the file can't be read, or holds no tensors.
        GuardError: something else in memory.
    """
    if isinstance(given, str | Path):
        return _read_file(Path(given))
    if isinstance(given, Vector):
        return given
    if isinstance(given, torch.nn.Module):
        raise GuardError(f"expected {name} as tensors by name or a file, found a module; hand over what is sent")
    leaves = _Leaves()
    leaves.collect(given, "", 0)
    if not leaves.tensors:
        raise GuardError(f"expected {name} as {ACCEPTED}, or a mapping of them, found a {type(given).__name__}")
    return Vector(name, None, leaves.tensors, leaves.is_row, leaves.extras)


def _read_file(path: Path) -> Vector:
    check_file(path, CheckpointError, ACCEPTED)
    shown = clean(path.name)
    try:
        content = read_content(path)
        leaves = _Leaves()
        leaves.collect(content, "", 0)
        if not leaves.tensors:
            raise CheckpointError(f"expected {ACCEPTED}, found none in {shown}; save what is sent")
        refused = [name for name, tensor in leaves.tensors.items() if not _is_plain(tensor)]
        if refused:
            raise CheckpointError(f"{listing(refused)} in {shown} aren't plain tensors; save dense real ones")
        hidden = 0
        if starts_like_safetensors(path):
            leaves.extras += _metadata(path)
        elif path.suffix.lower() != ".npz":
            hidden = _hidden_bytes(leaves.tensors.values())
            if is_zip(path):
                foreign, more = _unread_members(path, leaves.tensors.values())
                leaves.extras, hidden = [*leaves.extras, *foreign], hidden + more
        return Vector(shown, sha256_of_file(path), leaves.tensors, leaves.is_row, leaves.extras, hidden)
    except (OSError, MemoryError) as cause:
        raise CheckpointError(f"can't read {shown} ({clean(cause)}); check the file and the free memory") from cause


class _Leaves:
    """Everything in a content that isn't a container."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.extras: list[str] = []
        self.is_row = False

    def collect(self, content: object, prefix: str, depth: int) -> None:
        if depth <= _MAX_NESTING and isinstance(content, Mapping):
            if not prefix and content and all(str(key) == f"arr_{number}" for number, key in enumerate(content)):
                self.is_row = True
            for key, value in content.items():
                # Messages show it; no parameter's name is changed by this.
                shown = clean(key, _MAX_NAME)
                self.collect(value, f"{prefix}.{shown}" if prefix else shown, depth + 1)
        elif depth <= _MAX_NESTING and isinstance(content, list | tuple):
            self.is_row |= not prefix
            for position, value in enumerate(content):
                self.collect(value, f"{prefix}.{position}" if prefix else str(position), depth + 1)
        else:
            self._leaf(content, prefix)

    def _leaf(self, value: Any, name: str) -> None:
        tensor = as_tensor(value)
        if tensor is None or name in self.tensors or not name:
            self.extras.append(clean(name or type(value).__name__))
        else:
            self.tensors[name] = tensor


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not (tensor.is_quantized or tensor.is_meta or tensor.is_complex())


def _hidden_bytes(tensors: Iterable[Tensor]) -> int:
    """Of storages that hold more than the tensors that are views of them: all of it is in the file."""
    sizes: dict[int, int] = {}
    used: dict[int, int] = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        used[storage.data_ptr()] = used.get(storage.data_ptr(), 0) + tensor.numel() * tensor.element_size()
    return sum(max(0, size - used[pointer]) for pointer, size in sizes.items())


def _unread_members(path: Path, tensors: Iterable[Tensor]) -> tuple[list[str], int]:
    """Members of a torch archive that torch doesn't write, and bytes of those of tensors that nothing refers to."""
    members = checked_members(path, CheckpointError, compressed=False)
    root = next(name for name in members if name.rpartition("/")[2] == "data.pkl").removesuffix("data.pkl")
    stored = {name: info.file_size for name, info in members.items() if name.startswith(f"{root}data/")}
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    foreign = [name for name in members if name not in stored and name.removeprefix(root) not in _TORCH_MEMBERS]
    return foreign, max(0, sum(stored.values()) - sum(storages.values()))


def _metadata(path: Path) -> list[str]:
    """Entries of a safetensors header that are no tensors, but for the name of a framework."""
    with path.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        metadata = json.loads(stream.read(length)).get("__metadata__", {})
    return [f"__metadata__.{key}" for key, value in metadata.items() if value not in _PLAIN_METADATA.get(key, ())]
