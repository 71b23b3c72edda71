"""What a torch pickle would do, found out without letting it.

A pickle is a program: it names Python objects to import and calls them. Here it runs with every
name replaced by a stub that does nothing, which yields the names that it wants and the sizes of the
storages that it claims. Python's own pure-Python unpickler is used, because its memo can't be blown
up by a single huge index. The real loading is done by ``torch.load(weights_only=True)`` afterwards.

`torch.serialization.get_unsafe_globals_in_checkpoint` lists names too, but not of files in torch's format from before
1.6, and it tells neither the sizes of storages nor which objects are filled like mappings and lists.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from torch.storage import _storage_type_to_dtype_map

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


@dataclass(frozen=True)
class ClaimedStorage:
    """A tensor storage that the pickle refers to: its key in the archive and its size in bytes."""

    key: str
    num_bytes: int


@dataclass
class PickleScan:
    """What one pickle asks for; ``mappings`` and ``lists`` are the names whose objects are filled like those."""

    names: set[str] = field(default_factory=set)
    storages: dict[str, ClaimedStorage] = field(default_factory=dict)
    mappings: set[str] = field(default_factory=set)
    lists: set[str] = field(default_factory=set)

    def foreign_names(self) -> list[str]:
        """The importable names that a plain state dict has no need of, sorted."""
        return sorted(name for name in self.names if not _is_harmless(name))


def _is_harmless(name: str) -> bool:
    is_storage = name.startswith("torch.") and name.rpartition(".")[2] in STORAGE_ITEM_BYTES
    is_dtype = name.startswith("torch.") and name.count(".") == 1 and name[6:7].islower()
    return name in _HARMLESS or name.startswith(_HARMLESS_PREFIXES) or is_storage or is_dtype


class _Stub:
    """Stands for whatever the pickle would import or build; takes any call, state or item and does nothing."""

    qualified_name = ""
    scan: PickleScan | None = None

    def __new__(cls, *_args: object, **_kwargs: object) -> _Stub:
        return object.__new__(cls)

    def __init__(self, *_args: object, **_kwargs: object) -> None:
        pass

    def __call__(self, *_args: object, **_kwargs: object) -> _Stub:
        return self

    def __setstate__(self, _state: object) -> None:
        pass

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
                if earlier is None or earlier.num_bytes < num_bytes or num_bytes < 0:
                    self.scan.storages[key] = ClaimedStorage(key, num_bytes)
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
