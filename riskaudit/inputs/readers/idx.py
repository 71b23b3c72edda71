"""IDX files, the format of MNIST as it is distributed (http://yann.lecun.com/exdb/mnist/), plain or gzipped.

Two zero bytes, one for the type, one for the number of axes, the axes as big-endian 32-bit numbers, the values.
Images come in one file and labels in another beside it, which is found by name.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import struct
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np

from riskaudit.errors import SamplesError
from riskaudit.inputs.arrays import MAX_INPUT_BYTES, RawSamples, as_tensor, renumber
from riskaudit.inputs.identifiers import file_chunks
from riskaudit.inputs.readers.archives import MAX_RATIO, SAFE_UNPACKED_BYTES
from riskaudit.inputs.reading import Reading
from riskaudit.inputs.text import clean

_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_GZIP_MAGIC = b"\x1f\x8b"
_MAX_AXES = 4


def is_idx(path: Path) -> bool:
    """Whether a file begins like an IDX file, gzipped or not."""
    try:
        with _open(path) as stream:
            start = stream.read(4)
    except (OSError, EOFError, zlib.error):
        return False
    return len(start) == 4 and start[:2] == b"\0\0" and start[2] in _TYPES and 1 <= start[3] <= _MAX_AXES


def read_idx(path: Path, reading: Reading) -> tuple[RawSamples, str]:
    """The samples of a file of images and the file of labels beside it, and a hash over both files.

    Raises:
        SamplesError: damaged, or no labels where they are needed.
    """
    name = clean(path.name)
    inputs, count = _read(path, reading.limit)
    if inputs.ndim < 2:
        raise SamplesError(f"{name} holds single numbers, labels perhaps; hand in the file of images beside it")
    candidates = (path.with_name(name) for name in _names_of_labels(path))
    beside = next((candidate for candidate in candidates if candidate.is_file() and not candidate.samefile(path)), None)
    digest = hashlib.sha256()
    for chunk in file_chunks(path):
        digest.update(chunk)
    if beside is None:
        if reading.labelled:
            wanted = clean(_names_of_labels(path)[0])
            raise SamplesError(f"expected the labels of {name} beside it in {wanted}, found no such file; put it there")
        return RawSamples(as_tensor(inputs, "inputs", name)), digest.hexdigest()
    labels, num_labels = _read(beside, reading.limit)
    if labels.ndim != 1 or num_labels != count:
        raise SamplesError(
            f"{name} holds {count} images but {clean(beside.name)} {num_labels} labels; expected as many"
        )
    for chunk in file_chunks(beside):
        digest.update(chunk)
    numbered = renumber(as_tensor(labels, "labels", clean(beside.name)), reading, name)
    return RawSamples(as_tensor(inputs, "inputs", name), numbered), digest.hexdigest()


def _is_zipped(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(2) == _GZIP_MAGIC


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path) if _is_zipped(path) else path.open("rb")  # type: ignore[return-value]


def _read(path: Path, limit: int | None) -> tuple[np.ndarray[Any, Any], int]:
    """The first rows of an IDX file, and how many it has."""
    name = clean(path.name)
    try:
        with _open(path) as stream:
            start = stream.read(4)
            if len(start) < 4 or start[:2] != b"\0\0" or start[2] not in _TYPES or not 1 <= start[3] <= _MAX_AXES:
                raise SamplesError(f"{name} doesn't begin like an IDX file; copy it again")
            axes = struct.unpack(f">{start[3]}I", stream.read(4 * start[3]))
            dtype = np.dtype(_TYPES[start[2]])
            rows = axes[0] if limit is None else min(limit, axes[0])
            num_bytes = rows * math.prod(axes[1:]) * dtype.itemsize
            if num_bytes > MAX_INPUT_BYTES:
                raise SamplesError(f"{name} claims {num_bytes} bytes, too many to audit at once; use `limit`")
            size = path.stat().st_size
            if num_bytes > (max(SAFE_UNPACKED_BYTES, MAX_RATIO * size) if _is_zipped(path) else size):
                raise SamplesError(f"{name} claims {num_bytes} bytes where fewer are stored; copy it again")
            content = stream.read(num_bytes)
    except (OSError, EOFError, struct.error, zlib.error) as cause:
        raise SamplesError(f"{name} is truncated or damaged ({type(cause).__name__}); copy it again") from cause
    if len(content) < num_bytes:
        raise SamplesError(f"{name} claims {num_bytes} bytes where {len(content)} are stored; copy it again")
    return np.frombuffer(content, dtype=dtype).reshape((rows, *axes[1:])), axes[0]


def _names_of_labels(path: Path) -> list[str]:
    plain = path.name.removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1").replace("idx4", "idx1")
    return [plain, f"{plain}.gz"]
