"""``.pt`` and ``.safetensors`` files as plain tensors, without running anything that they contain.

Shared by checkpoints and samples. Sizes that a file claims are held against its real size before
anything is allocated; then ``torch.load(weights_only=True)`` or safetensors reads it.
"""

from __future__ import annotations

import contextlib
import json
import re
import struct
import tarfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from riskaudit.errors import InputError
from riskaudit.files import not_found
from riskaudit.inputs.readers.archives import checked_members, is_zip, read_member
from riskaudit.inputs.readers.pickles import PickleScan, refused_names, scan_pickles, stand_ins, with_arrays
from riskaudit.inputs.text import clean, listing

PICKLE_MAGIC = b"\x80"
MAX_PICKLE_BYTES = 512 * 2**20
_WAY_OUT = {
    "CheckpointError": "save `model.state_dict()` with torch.save or as safetensors and hand in that file",
    "SamplesError": "save a dict of tensors, torch.save({'inputs': x, 'targets': y}, 'data.pt'), where x, y are "
    "dataset.tensors of a TensorDataset, and hand in that file",
}


def check_file(path: Path, error: type[InputError], accepted: str) -> None:
    """Refuse a path that isn't a readable, non-empty file.

    Raises:
        InputError: ``error``, with ``accepted`` formats named where that helps.
    """
    shown = clean(path)
    try:
        if path.is_dir():
            raise error(f"expected a file, found the folder {shown}; accepted are {accepted}")
        if not path.is_file():
            raise error(not_found(shown))
        with path.open("rb") as stream:
            empty = not stream.read(1)
    except (OSError, ValueError) as cause:
        reason = getattr(cause, "strerror", None) or cause
        raise error(f"can't read {shown} ({clean(reason)}); check the path and its permissions") from cause
    if empty:
        raise error(f"{clean(path.name)} is an empty file; save it again")


def starts_like_pickle(path: Path) -> bool:
    """Whether the file starts like torch's format from before 1.6, which is a row of pickles."""
    with path.open("rb") as stream:
        return stream.read(1) == PICKLE_MAGIC


def starts_like_safetensors(path: Path) -> bool:
    """Whether the file starts with a header length that fits it and a JSON object."""
    with path.open("rb") as stream:
        start = stream.read(9)
    return len(start) == 9 and start[8:] == b"{" and struct.unpack("<Q", start[:8])[0] <= path.stat().st_size - 8


def read_torch_file(path: Path, error: type[InputError]) -> Any:
    """Whatever a ``.pt`` file holds, as tensors and plain containers.

    Returns:
        The saved object; tensors are on the CPU, mapped from the file where the format allows it.

    Raises:
        InputError: ``error``: damaged, claims more than it holds, or needs code to be loaded.
    """
    name = clean(path.name)
    zipped = is_zip(path)
    scan = _scan_zip(path, error) if zipped else _scan_legacy(path, error)
    _refuse_code(scan, name, error)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(stand_ins(scan)):
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as cause:
        foreign = scan.foreign_names()
        if foreign:
            raise error(
                f"{name} holds objects ({listing(foreign, 2)}) that can't be passed over; {_WAY_OUT[error.__name__]}"
            ) from cause
        raise error(f"{name} is damaged or no torch file ({clean(cause)}); {_WAY_OUT[error.__name__]}") from cause
    return with_arrays(content)


def _refuse_code(scan: PickleScan, name: str, error: type[InputError]) -> None:
    """Refuse a pickle that names what could act; harmless foreign classes have stand-ins."""
    refused = refused_names(scan.foreign_names())
    if "torch.storage._load_from_bytes" in scan.names:
        raise error(
            f"{name} was written by pickle, not by torch.save, and holds tensors that only running its code could "
            f"read; where you trust it, unpickle it yourself and save the state dict with torch.save"
        )
    if any(re.fullmatch(r"torch\.Q\w+Storage", storage) for storage in refused):
        raise error(
            f"{name} holds quantised numbers, which have no gradient; hand in the floats that they were made of"
        )
    if refused:
        raise error(
            f"{name} is a pickle that wants to import {listing(refused, 2)}, which could run code, so it was "
            f"refused unread; {_WAY_OUT[error.__name__]}"
        )


def _scan_zip(path: Path, error: type[InputError]) -> PickleScan:
    name = clean(path.name)
    members = checked_members(path, error, compressed=True)
    if any(member.rpartition("/")[2] == "constants.pkl" for member in members):
        raise error(f"{name} is a TorchScript archive, which holds code; {_WAY_OUT[error.__name__]}")
    members = checked_members(path, error, compressed=False)
    pickles = [member for member in members if member.rpartition("/")[2] == "data.pkl"]
    if len(pickles) != 1:
        raise error(f"{name} is a zip archive but no torch file (no data.pkl in it); {_WAY_OUT[error.__name__]}")
    root = pickles[0].rpartition("/")[0]
    if members[pickles[0]].file_size > MAX_PICKLE_BYTES:
        raise error(f"{name} has a pickle of {members[pickles[0]].file_size} bytes; {_WAY_OUT[error.__name__]}")
    try:
        scan = scan_pickles(read_member(path, members[pickles[0]], error))
    except ValueError as cause:
        raise error(f"{name} is damaged ({clean(cause)}); copy or save it again") from cause
    for key, num_bytes in scan.storages.items():
        member = members.get(f"{root}/data/{key}" if root else f"data/{key}")
        held = member.file_size if member else 0
        if not 0 <= num_bytes <= held:
            raise error(f"{name} claims a tensor of {num_bytes} bytes where it holds {held}; copy or save it again")
    return scan


def _scan_legacy(path: Path, error: type[InputError]) -> PickleScan:
    name = clean(path.name)
    if not starts_like_pickle(path):
        tar = tarfile.is_tarfile(path)
        content_kind = "a tar archive from before torch 0.4" if tar else "something else"
        raise error(f"expected a torch file in {name}, found {content_kind}; {_WAY_OUT[error.__name__]}")
    size = path.stat().st_size
    with path.open("rb") as stream:
        content = stream.read(MAX_PICKLE_BYTES)
    try:
        # Magic number, protocol, system, object, storage keys.
        scan = scan_pickles(content, count=5)
    except ValueError as cause:
        with contextlib.suppress(ValueError):
            _refuse_code(scan_pickles(content), name, error)
        raise error(f"{name} is damaged or no torch file ({clean(cause)}); {_WAY_OUT[error.__name__]}") from cause
    claimed = list(scan.storages.values())
    if any(num_bytes < 0 for num_bytes in claimed) or sum(claimed) > size:
        raise error(f"{name} claims {sum(claimed)} bytes of tensors in a file of {size}; copy or save it again")
    return scan


def read_safetensors(path: Path, error: type[InputError]) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` file, on the CPU.

    The library holds the header and every offset in it against the file before anything is allocated; of two equal
    entries it takes the last.

    Raises:
        InputError: ``error``: damage, or two tensors of one name.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    name = clean(path.name)
    try:
        tensors: dict[str, Tensor] = load_file(path, device="cpu")
        with path.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            json.loads(stream.read(length), object_pairs_hook=_without_duplicates)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError) as cause:
        raise error(
            f"{name} is no whole safetensors file: damaged, cut off, or of another format ({clean(cause)}); "
            "copy or save it again"
        ) from cause
    return tensors


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name appears twice in its header")
    return result
