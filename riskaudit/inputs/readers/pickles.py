"""What a torch pickle would do, found out without letting it.

A pickle is a program: it names Python objects to import and calls them. Here it runs with every
name replaced by a stub that does nothing, which yields the names that it wants and the sizes of the
storages that it claims. Python's own pure-Python unpickler is used, because its memo can't be blown
up by a single huge index. The real loading is done by ``torch.load(weights_only=True)`` afterwards.

`torch.serialization.get_unsafe_globals_in_checkpoint` lists names too, but not of files in torch's format from before
1.6, and it tells neither the sizes of storages nor which objects are filled like mappings and lists.

What takes the place of foreign objects, so that the weights beside them can be read: ``torch.load(weights_only=True)``
refuses a file that names any class which torch doesn't know, an ``argparse.Namespace`` with the training's options, a
NumPy scalar, a configuration object. Such names are mapped to stand-ins that are built and filled without effect. The
real class is never imported, and nothing that the file says is executed. NumPy arrays are rebuilt from their bytes by
`StoredArray`, without NumPy's own unpickling.
"""

from __future__ import annotations

import io
import math
import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Self

import numpy as np
import torch
from torch import Tensor
from torch.storage import _storage_type_to_dtype_map

from riskaudit.inputs.text import words

# Of quantised storages, which are refused, there is none.
STORAGE_ITEM_BYTES = {
    name: dtype.itemsize for name, dtype in _storage_type_to_dtype_map().items() if not name.startswith("Q")
} | {"UntypedStorage": 1}
# Names that torch's own tensors need. Anything else is what the message reports.
_HARMLESS_PREFIXES = ("torch._utils._rebuild_", "torch._tensor._rebuild_", "torch.storage.", "torch.serialization.")
_HARMLESS = {
    "collections.OrderedDict",
    "torch.nn.parameter.Parameter",
    "torch.Size",
    "torch.device",
    "torch.Tensor",
    # torch reads these itself: bytes and sets of an old pickle protocol.
    "_codecs.encode",
    "__builtin__.set",
    "builtins.set",
}
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


@dataclass
class PickleScan:
    """What one pickle asks for.

    ``storages`` are the bytes of tensors by key in the archive; ``mappings`` and ``lists`` the names whose objects
    are filled like those.
    """

    names: set[str] = field(default_factory=set)
    storages: dict[str, int] = field(default_factory=dict)
    mappings: set[str] = field(default_factory=set)
    lists: set[str] = field(default_factory=set)

    def foreign_names(self) -> list[str]:
        """The importable names that a plain state dict has no need of, sorted."""
        return sorted(name for name in self.names if not _is_harmless(name))


def _is_harmless(name: str) -> bool:
    is_storage = name.startswith("torch.") and name.rpartition(".")[2] in STORAGE_ITEM_BYTES
    is_dtype = name.startswith("torch.") and name.count(".") == 1 and name[6:7].islower()
    return name in _HARMLESS or name.startswith(_HARMLESS_PREFIXES) or is_storage or is_dtype


class Inert:
    """Stands for an object of a foreign class: takes any arguments and any state, and keeps none of them."""

    qualified_name = ""

    def __new__(cls, *_args: object, **_kwargs: object) -> Self:  # noqa: D102
        return object.__new__(cls)

    def __init__(self, *_args: object, **_kwargs: object) -> None:
        pass

    def __setstate__(self, _state: object) -> None:
        pass


class _Stub(Inert):
    """Stands for whatever the pickle would import or build; takes any call or item too."""

    scan: PickleScan | None = None

    def __call__(self, *_args: object, **_kwargs: object) -> _Stub:
        return self

    def __setitem__(self, _key: object, _value: object) -> None:
        if self.scan is not None:
            self.scan.mappings.add(self.qualified_name)

    def append(self, _value: object) -> None:
        if self.scan is not None:
            self.scan.lists.add(self.qualified_name)

    def extend(self, _values: Iterable[object]) -> None:
        self.append(None)

    def add(self, _value: object) -> None:
        pass


class _Scanner(pickle._Unpickler):
    """Runs a pickle on stubs and records what it asked for."""

    def __init__(self, stream: BinaryIO, scan: PickleScan) -> None:
        super().__init__(stream, encoding="utf-8")
        self.scan = scan

    def find_class(self, module: str, name: str) -> Any:
        qualified = f"{module}.{name}"
        self.scan.names.add(qualified)
        return type("_Named", (_Stub,), {"qualified_name": qualified, "scan": self.scan})

    def persistent_load(self, identifier: Any) -> Any:
        # ("storage", storage type, key, device, number of items, ...): torch's only persistent id.
        if isinstance(identifier, tuple) and len(identifier) >= 5 and identifier[0] == "storage":
            kind = getattr(identifier[1], "qualified_name", "").rpartition(".")[2]
            key, num_items = identifier[2], identifier[4]
            if isinstance(num_items, int) and isinstance(key, str):
                num_bytes = num_items * STORAGE_ITEM_BYTES.get(kind, 1)
                earlier = self.scan.storages.get(key)
                if earlier is None or earlier < num_bytes or num_bytes < 0:
                    self.scan.storages[key] = num_bytes
        # In the old format a class comes with its source text, as ("module", class, file, source).
        is_class = isinstance(identifier, tuple) and len(identifier) > 1 and identifier[0] == "module"
        return identifier[1] if is_class else _Stub()


def scan_pickles(content: bytes, count: int = 1) -> PickleScan:
    """Run ``count`` pickles, one after the other in ``content``, on stubs.

    Returns:
        The names and storages that they ask for.

    Raises:
        ValueError: the content isn't that many pickles.
    """
    scan = PickleScan()
    stream = io.BytesIO(content)
    try:
        for _ in range(count):
            _Scanner(stream, scan).load()
    except Exception as cause:
        # A broken pickle can fail in as many ways as there are opcodes.
        raise ValueError(str(cause) or type(cause).__name__) from cause
    return scan


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
