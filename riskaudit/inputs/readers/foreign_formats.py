"""Files of data that this package doesn't read, told by content: what they are, and how to convert them.

None is opened beyond its first bytes. Each way out is a line of Python that was tried; FILE stands for the file.
"""

from __future__ import annotations

from pathlib import Path

from riskaudit.inputs.text import clean

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
