"""Zip archives, judged by their directory before anything is read or unpacked.

torch writes its archives uncompressed, so there the members together can't be larger than the
file; whatever claims otherwise is broken or a bomb. NumPy may compress, by at most about 1000 to 1.

Also files of data that this package doesn't read, told by content: what they are, and how to convert them. None is
opened beyond its first bytes. Each way out is a line of Python that was tried; FILE stands for the file.
"""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

from riskaudit.errors import InputError
from riskaudit.inputs.text import clean

ZIP_MAGIC = b"PK\x03\x04"
MAX_MEMBERS = 200_000
# Unpacked size that is always fine, and the ratio from which a larger one is taken for a bomb.
SAFE_UNPACKED_BYTES = 2 * 2**30
MAX_RATIO = 100

_BROKEN = (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError, EOFError, struct.error)
_PICKLE = (
    "is a pickle, which could run code, so it was refused unread; where you trust it, convert it in Python: "
    "import pickle, numpy; d = pickle.load(open('FILE', 'rb'), encoding='bytes'); numpy.savez('data.npz', "
    "images=d[b'data'], labels=d[b'labels']), images of CIFAR with .reshape(-1, 3, 32, 32)"
)
_NUMPY = (
    "holds one array, inputs or labels; put both into one file in Python: import numpy; numpy.savez('data.npz', "
    "images=numpy.load('FILE'), labels=numpy.load('LABELS'))"
)
_HDF5 = (
    "is an HDF5 file; convert one client's samples in Python: import h5py, numpy; f = h5py.File('FILE')['examples'"
    "]['CLIENT']; numpy.savez('data.npz', images=f['pixels'], labels=f['label'])"
)
_JSON = (
    "is JSON; convert one user's samples (of LEAF) in Python: import json, numpy; u = json.load(open('FILE'))"
    "['user_data']['USER']; numpy.savez('data.npz', x=u['x'], y=u['y'])"
)


def is_zip(path: Path) -> bool:
    """Whether the file starts like a zip archive."""
    with path.open("rb") as stream:
        return stream.read(4) == ZIP_MAGIC


def checked_members(path: Path, error: type[InputError], *, compressed: bool) -> dict[str, zipfile.ZipInfo]:
    """The members of a zip archive by name, once their claimed sizes have been found possible.

    Raises:
        InputError: ``error``: no readable directory, a duplicate or encrypted member, or sizes beyond the file.
    """
    name = clean(path.name)
    try:
        size = path.stat().st_size
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except _BROKEN as cause:
        raise error(f"{name} is truncated or damaged ({clean(cause)}); copy or save it again") from cause
    if not infos or len(infos) > MAX_MEMBERS:
        raise error(f"{name} is an archive of {len(infos)} members, expected 1 to {MAX_MEMBERS}; save it again")
    members = {info.filename: info for info in infos}
    if len(members) != len(infos):
        raise error(f"{name} holds two members of one name, which no writer makes; save it again")
    if any(info.flag_bits & 1 for info in infos):
        raise error(f"{name} is encrypted, which can't be read; save it without a password")
    if not compressed and any(info.compress_type != zipfile.ZIP_STORED for info in infos):
        raise error(f"{name} is a compressed archive, but torch writes them uncompressed; save it again with torch")
    unpacked = sum(info.file_size for info in infos)
    allowed = max(SAFE_UNPACKED_BYTES, MAX_RATIO * size) if compressed else size
    if unpacked > allowed or any(info.compress_size > size for info in infos):
        raise error(f"{name} claims {unpacked} bytes of content in a file of {size} bytes; save it again")
    return members


def read_member(path: Path, member: zipfile.ZipInfo, error: type[InputError]) -> bytes:
    """The bytes of one member of an archive that `checked_members` has passed.

    Raises:
        InputError: ``error``: the member is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.read(member)
    except (*_BROKEN, MemoryError) as cause:
        raise error(f"{clean(path.name)} is truncated or damaged ({clean(cause)}); copy or save it again") from cause


def foreign_format(path: Path) -> str | None:
    """A sentence about a file of a known format that isn't read; None if the format is unknown."""
    with path.open("rb") as stream:
        start = stream.read(8)
    suffix = path.suffix.lower()
    advice = None
    if start.startswith(b"\x93NUMPY"):
        advice = _NUMPY
    elif start.startswith(b"\x89HDF"):
        advice = _HDF5
    elif start[:1] == b"\x80" or suffix in (".pkl", ".pickle"):
        advice = _PICKLE
    elif suffix == ".json":
        advice = _JSON
    return None if advice is None else f"{clean(path.name)} {advice}"
