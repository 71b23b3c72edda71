"""What takes the place of foreign objects in a torch file, so that the weights beside them can be read.

``torch.load(weights_only=True)`` refuses a file that names any class which torch doesn't know: an
``argparse.Namespace`` with the training's options, a NumPy scalar, a configuration object. Here such names are mapped
to stand-ins that are built and filled without effect. The real class is never imported, and nothing that the file
says is executed. NumPy arrays are rebuilt from their bytes by `StoredArray`, without NumPy's own unpickling.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from riskaudit.inputs.readers.pickles import PickleScan
from riskaudit.inputs.text import words

_MAX_DEPTH = 32
# A file that names these means to act, or holds tensors in a form that only code can read: it is refused as a whole.
_REFUSED_MODULES = words("""
    os posix nt sys subprocess io _io importlib imp runpy shutil socket ctypes _ctypes pickle _pickle marshal code
    codeop pty pdb webbrowser multiprocessing threading signal operator _operator inspect gc weakref atexit urllib
    http ftplib tempfile platform site sysconfig pip setuptools distutils timeit cProfile profile trace torch
    copyreg dill cloudpickle joblib
""")
_PLAIN_BUILTINS = words("""
    set frozenset list dict tuple complex slice range bytearray object int float
""")
_PLAIN_TORCH = ("torch.nn.", "torch.optim.")
_PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}


class Inert:
    """Stands for an object of a foreign class: takes any arguments and any state, and keeps none of them."""

    qualified_name = ""

    def __new__(cls, *_args: object, **_kwargs: object) -> Inert:  # noqa: D102
        return object.__new__(cls)

    def __init__(self, *_args: object, **_kwargs: object) -> None:
        pass

    def __setstate__(self, _state: object) -> None:
        pass


def _inert_mapping(*_args: object) -> OrderedDict[Any, Any]:
    return OrderedDict()


class _InertMapping:
    """Stands for a foreign dictionary, whose entries remain readable."""

    def __new__(cls, *_args: object) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        return OrderedDict()


class _InertList:
    """Stands for a foreign list, whose items remain readable."""

    def __new__(cls, *_args: object) -> list[Any]:  # type: ignore[misc]
        return []


class _StoredDtype:
    """A NumPy dtype as a pickle describes it: a code such as ``f4`` and a byte order."""

    def __init__(self, code: object = "", *_flags: object) -> None:
        self.code = code if isinstance(code, str) else ""
        self.order = "="

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">", "|", "="):
            self.order = state[1]


class StoredArray:
    """A NumPy array as a pickle describes it: shape, dtype, order and bytes."""

    def __init__(self, *_args: object) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def tensor(self) -> Tensor | None:
        """The numbers as a tensor; None where they are no plain numbers or not as many as the shape claims."""
        if not isinstance(self.state, tuple) or len(self.state) != 5:
            return None
        _, shape, dtype, fortran, content = self.state
        plain = isinstance(dtype, _StoredDtype) and dtype.code[:1] in tuple("iufb") and dtype.code[1:].isdecimal()
        if not plain or not isinstance(content, bytes) or not isinstance(shape, tuple):
            return None
        try:
            kind = np.dtype((dtype.order if dtype.order != "|" else "") + dtype.code)
            if any(type(size) is not int or size < 0 for size in shape):
                return None
            if math.prod(shape) * kind.itemsize != len(content):
                return None
            values = np.frombuffer(content, dtype=kind).reshape(shape, order="F" if fortran else "C")
            return torch.from_numpy(np.array(values, dtype=kind.newbyteorder("="), order="C"))
        except (TypeError, ValueError):
            return None


_NUMPY: dict[str, Callable[..., Any]] = {
    "ndarray": Inert,
    "dtype": _StoredDtype,
    "core.multiarray._reconstruct": StoredArray,
    "_core.multiarray._reconstruct": StoredArray,
}


def modern_name(name: str) -> str:
    """A qualified name with Python 2's module names replaced, as unpicklers do."""
    module, dot, rest = name.partition(".")
    return _PYTHON_2.get(module, module) + dot + rest


def refused_names(names: Iterable[str]) -> list[str]:
    """The foreign names among ``names`` for which there is no stand-in, in order."""
    return [name for name in names if not _has_stand_in(modern_name(name))]


def _has_stand_in(name: str) -> bool:
    module, _, rest = name.partition(".")
    if module == "builtins":
        return rest in _PLAIN_BUILTINS
    return name.startswith(_PLAIN_TORCH) or module not in _REFUSED_MODULES


def stand_ins(scan: PickleScan) -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """A stand-in for every foreign name of a scanned pickle, as ``torch.serialization.safe_globals`` takes them."""
    pairs: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = []
    for qualified in scan.foreign_names():
        name = modern_name(qualified)
        module, _, rest = name.partition(".")
        if module == "numpy" and rest in _NUMPY:
            stand_in = _NUMPY[rest]
        elif name == "collections.defaultdict":
            stand_in = _inert_mapping
        elif qualified in scan.mappings:
            stand_in = _InertMapping
        elif qualified in scan.lists:
            stand_in = _InertList
        else:
            stand_in = type("Inert", (Inert,), {"qualified_name": name})
        pairs.append((stand_in, name))
    return pairs


def with_arrays(content: Any, depth: int = 0) -> Any:
    """The same containers with every `StoredArray` as a tensor."""
    if isinstance(content, StoredArray):
        tensor = content.tensor()
        return Inert() if tensor is None else tensor
    if depth >= _MAX_DEPTH:
        return content
    if type(content) in (dict, OrderedDict):
        return {key: with_arrays(value, depth + 1) for key, value in content.items()}
    if type(content) in (list, tuple):
        return type(content)(with_arrays(value, depth + 1) for value in content)
    return content
