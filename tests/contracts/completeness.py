"""Which classes inherit a contract, wherever they stand beside a test."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

ContractT = TypeVar("ContractT")


def cases_of(contract: type[ContractT], test: str) -> list[type[ContractT]]:
    """Classes that inherit a contract and that no other class inherits, of all test files in one folder.

    Args:
        contract: the suite.
        test: file of a test in that folder; the others are imported, which they aren't where it is run alone.
    """
    for path in sorted(Path(test).parent.glob("test_*.py")):
        if contract.__name__ in path.read_text(encoding="utf-8"):
            importlib.import_module(path.stem)
    return list(_leaves(contract))


def _leaves(contract: type[ContractT]) -> Iterator[type[ContractT]]:
    below = contract.__subclasses__()
    if not below:
        yield contract
    for case in below:
        yield from _leaves(case)
