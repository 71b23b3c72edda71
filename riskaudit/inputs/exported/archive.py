"""``torch.export`` archives (``.pt2``): what is in them, read without torch's own loader.

``torch.export.load`` of torch 2.13 isn't safe on a file from elsewhere. It unpickles weights,
constants, opaque objects and sample inputs without ``weights_only`` (the latter as a silent fallback),
loads compiled libraries, hands symbolic expressions to sympy, which evaluates them as Python, and
executes source text made of the graph's names. So the archive is read here: a graph as JSON, weights
as raw bytes or through ``torch.load(weights_only=True)``. Pickled objects and libraries are refused,
sample inputs are never opened.
"""

from __future__ import annotations

import io
import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZipInfo

import torch
from torch import Tensor

from riskaudit.errors import CheckpointError
from riskaudit.inputs.readers.archives import checked_members, read_member
from riskaudit.inputs.text import clean

SCHEMA_MAJOR = 8
SAVE_AGAIN = "export and save it again with torch.export.save"
_MAX_JSON_BYTES = 256 * 2**20
_FORBIDDEN_FOLDERS = ("data/aotinductor/", "data/executorch/", "data/mtia", "xl_model_weights/")

# torch's export schema numbers its dtypes by itself, one above c10's.
SCALAR_TYPES: Mapping[int, torch.dtype] = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    12: torch.bool,
    13: torch.bfloat16,
}


@dataclass(frozen=True)
class ExportedArchive:
    """One exported program: its description (schema 8 as plain JSON), its weights and its constants by name."""

    program: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    constants: Mapping[str, Tensor]


def is_exported(names: Mapping[str, ZipInfo]) -> bool:
    """Whether a zip archive's members are those of a torch.export archive."""
    return any(name.rpartition("/")[2] in ("archive_format", "serialized_exported_program.json") for name in names)


def read_exported(path: Path) -> ExportedArchive:
    """Read a ``.pt2`` file of either layout (torch 2.5 to 2.7, and since).

    Raises:
        CheckpointError: damaged, of another schema, several programs, or holding pickled objects or libraries.
    """
    reader = _Reader(path, checked_members(path, CheckpointError, compressed=False))
    try:
        return reader.read_old() if reader.is_old else reader.read()
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError, RecursionError) as cause:
        # The JSON may have any form; each of these means that it isn't what torch.export.save writes.
        raise CheckpointError(
            f"{reader.name} isn't a torch.export archive that can be read ({clean(cause)}); {SAVE_AGAIN}"
        ) from cause


class _Reader:
    def __init__(self, path: Path, members: Mapping[str, ZipInfo]) -> None:
        self.path, self.members, self.name = path, members, clean(path.name)
        self.is_old = "serialized_exported_program.json" in members
        self.root = "" if self.is_old else next(iter(members)).partition("/")[0] + "/"

    def bytes_of(self, name: str) -> bytes:
        return read_member(self.path, self.members[self.root + name], CheckpointError)

    def json_of(self, name: str) -> Any:
        if self.members[self.root + name].file_size > _MAX_JSON_BYTES:
            raise ValueError(f"{name} is too large")
        return json.loads(self.bytes_of(name))

    def read(self) -> ExportedArchive:
        inside = [name.removeprefix(self.root) for name in self.members]
        forbidden = next((name for name in inside if name.startswith(_FORBIDDEN_FOLDERS)), None)
        if forbidden:
            raise CheckpointError(f"{self.name} holds {clean(forbidden, 50)}, which could run code; {SAVE_AGAIN}")
        models = [name for name in inside if name.startswith("models/") and name.endswith(".json")]
        if len(models) != 1:
            raise CheckpointError(f"{self.name} holds {len(models)} exported programs, expected one; {SAVE_AGAIN}")
        model = models[0].removeprefix("models/").removesuffix(".json")
        return ExportedArchive(
            self.checked_program(self.json_of(models[0])),
            self.payloads("data/weights/", f"{model}_weights_config.json", f"{model}.pt"),
            self.payloads("data/constants/", f"{model}_constants_config.json", f"{model}.pt"),
        )

    def read_old(self) -> ExportedArchive:
        return ExportedArchive(
            self.checked_program(self.json_of("serialized_exported_program.json")),
            self.pickled_tensors("serialized_state_dict.pt"),
            self.pickled_tensors("serialized_constants.pt"),
        )

    def checked_program(self, program: Any) -> Mapping[str, Any]:
        version = program["schema_version"]["major"]
        if version != SCHEMA_MAJOR:
            raise CheckpointError(
                f"{self.name} follows torch.export schema {clean(version, 10)}, expected {SCHEMA_MAJOR}; {SAVE_AGAIN}"
            )
        result: Mapping[str, Any] = program
        return result

    def payloads(self, folder: str, config_name: str, pickled_name: str) -> dict[str, Tensor]:
        if self.root + folder + pickled_name in self.members:
            return self.pickled_tensors(folder + pickled_name)
        config = self.json_of(folder + config_name)["config"]
        tensors: dict[str, Tensor] = {}
        files: dict[str, bytes] = {}
        for key, payload in config.items():
            file = payload["path_name"]
            if payload["use_pickle"] or not file.startswith(("weight_", "tensor_")):
                raise CheckpointError(
                    f"{self.name} holds the pickled object {clean(key, 50)}, which could run code; "
                    "export a model of plain tensors"
                )
            if file not in files:
                files[file] = self.bytes_of(folder + file)
            tensors[key] = _tensor_from_bytes(files[file], payload["tensor_meta"])
        return tensors

    def pickled_tensors(self, name: str) -> dict[str, Tensor]:
        content = self.bytes_of(name)
        if not content:
            return {}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except Exception as cause:
            raise CheckpointError(
                f"{self.name} holds pickled objects in {clean(name, 50)}, which could run code ({clean(cause, 60)}); "
                "export a model of plain tensors"
            ) from cause
        if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
            raise ValueError(f"{name} is no dict of tensors")
        return loaded


def _tensor_from_bytes(content: bytes, meta: Mapping[str, Any]) -> Tensor:
    """A tensor of its own from raw bytes and the shape, strides and offset that ``meta`` claims for it."""
    dtype = SCALAR_TYPES[meta["dtype"]]
    sizes = [int(size["as_int"]) for size in meta["sizes"]]
    strides = [int(stride["as_int"]) for stride in meta["strides"]]
    offset = int(meta["storage_offset"]["as_int"])
    if min([*sizes, *strides, offset], default=0) < 0 or len(sizes) != len(strides):
        raise ValueError("a tensor has a negative size")
    if 0 in sizes:
        return torch.zeros(sizes, dtype=dtype)
    item = dtype.itemsize
    last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    if max(last + 1, math.prod(sizes)) * item > len(content):
        raise ValueError(f"a tensor claims more than the {len(content)} bytes that it has")
    usable = len(content) - len(content) % item
    flat = torch.frombuffer(bytearray(content[:usable]), dtype=dtype)
    return flat.as_strided(sizes, strides, offset).clone()
