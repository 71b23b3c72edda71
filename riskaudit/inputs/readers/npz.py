"""``.npz`` files, read without pickle and only as far as needed.

NumPy allocates what an array's header claims before it reads; here the claim is first held against the
member's size, and only the first rows are read where a limit is given.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from riskaudit.errors import InputError, SamplesError
from riskaudit.inputs.arrays import MAX_INPUT_BYTES
from riskaudit.inputs.readers.archives import checked_members
from riskaudit.inputs.reading import Reading, sample_keys
from riskaudit.inputs.text import clean

_MAX_WORD_BYTES = 256 * 2**20
_READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def read_npz(path: Path, reading: Reading) -> dict[str, Any]:
    """The arrays that make up samples: inputs, targets, and ``ids`` and ``class_names`` where present.

    Raises:
        SamplesError: damaged, an array of objects, or one that claims more than is there.
    """
    name = clean(path.name)
    members = checked_members(path, SamplesError, compressed=True)
    arrays = {member.removesuffix(".npy"): info for member, info in members.items() if member.endswith(".npy")}
    wanted = [key for key in sample_keys(arrays, reading, name) if key is not None]
    wanted += [key for key in ("ids", "class_names") if key in arrays]
    result: dict[str, Any] = {}
    lengths: dict[str, int] = {}
    for key in wanted:
        rows = None if key == "class_names" else reading.limit
        size, whole_words = arrays[key].file_size, reading.classes is None and key != "ids"
        with _member(path, arrays[key], f"{clean(key, 20)} in {name}", SamplesError) as stream:
            result[key], lengths[key] = _read_array(stream, size, rows, whole_words=whole_words)
    lengths.pop("class_names", None)
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{length} {clean(key, 20)}" for key, length in lengths.items())
        raise SamplesError(f"{name} holds {counts}; expected one of each per sample")
    return result


def read_named_arrays(path: Path, error: type[InputError]) -> dict[str, Any]:
    """All arrays of a file by name.

    Raises:
        InputError: ``error``: damaged, an array of objects, or one that claims more than is there.
    """
    name = clean(path.name)
    members = checked_members(path, error, compressed=True)
    arrays: dict[str, Any] = {}
    for member, info in members.items():
        key = member.removesuffix(".npy")
        with _member(path, info, f"{clean(key, 20)} in {name}", error) as stream:
            arrays[key], _ = _read_array(stream, info.file_size, None)
    return arrays


def read_npy(path: Path, limit: int | None) -> np.ndarray[Any, Any]:
    """The first rows of a ``.npy`` file.

    Raises:
        SamplesError: damaged, an array of objects, or one that claims more than is there.
    """
    with _naming(clean(path.name), SamplesError), path.open("rb") as stream:
        return _read_array(stream, path.stat().st_size, limit)[0]


@contextmanager
def _member(path: Path, info: zipfile.ZipInfo, array: str, error: type[InputError]) -> Iterator[IO[bytes]]:
    with _naming(array, error), zipfile.ZipFile(path) as archive, archive.open(info) as stream:
        yield stream


@contextmanager
def _naming(array: str, error: type[InputError]) -> Iterator[None]:
    """Turn what a damaged array raises into one sentence that names it."""
    try:
        yield
    except SamplesError as cause:
        raise error(f"{array} {cause}") from cause
    except Exception as cause:
        # zlib, zipfile and NumPy's header parser each fail in their own ways on a damaged member.
        raise error(f"{array} is damaged ({type(cause).__name__}); save it again") from cause


def _read_array(
    stream: IO[bytes], member_bytes: int, rows: int | None, *, whole_words: bool = False
) -> tuple[np.ndarray[Any, Any], int]:
    """The first ``rows`` of a member's array (all where ``whole_words`` are to be numbered), and how many it has.

    Messages continue a sentence that begins with the array's name.
    """
    version = npy.read_magic(stream)
    if version not in _READERS:
        raise SamplesError(f"uses npy format {version}, which holds no plain numbers; save plain arrays")
    shape, fortran, dtype = _READERS[version](stream)
    if dtype.hasobject or dtype.names is not None:
        raise SamplesError("is an array of Python objects, which needs pickle; save numbers or array.astype(str)")
    if any(size < 0 for size in shape):
        raise SamplesError(f"claims the shape {shape}; save it again")
    num_bytes = math.prod(shape) * dtype.itemsize
    if num_bytes > member_bytes:
        raise SamplesError(f"claims {num_bytes} bytes where {member_bytes} are stored; save it again")
    num_rows = shape[0] if shape else 0
    if dtype.kind in "US" and whole_words:
        # Words are numbered over the whole file, so that a limit doesn't change the classes.
        rows = None
        if num_bytes > _MAX_WORD_BYTES:
            raise SamplesError(f"are words of {num_bytes} bytes; save class numbers, or name the classes in `classes`")
    if rows is not None and shape and not fortran and rows < shape[0]:
        shape = (rows, *shape[1:])
        num_bytes = math.prod(shape) * dtype.itemsize
    if num_bytes > MAX_INPUT_BYTES:
        raise SamplesError(f"holds {num_bytes} bytes, too many to audit at once; take fewer samples with `limit`")
    content = stream.read(num_bytes)
    if len(content) < num_bytes:
        raise SamplesError("is truncated; save it again")
    array = np.frombuffer(content, dtype=dtype, count=math.prod(shape))
    array = array.reshape(shape, order="F" if fortran else "C")
    return (array[:rows] if shape else array), num_rows
