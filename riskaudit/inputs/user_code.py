"""Functions that the user names as ``file.py:name``: the one place where foreign code is run, on request."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from riskaudit.errors import UserCodeError
from riskaudit.files import code_not_found, names_code
from riskaudit.inputs.text import clean
from riskaudit.torchvision_compat import import_torchvision

_PREFIX = "riskaudit_user_"


def is_user_spec(spec: str) -> bool:
    """Whether ``spec`` reads as ``file.py:name``."""
    return names_code(spec)


def load_user_function(spec: str) -> Callable[..., Any]:
    """The callable ``name`` of the Python file in ``file.py:name``.

    The file's folder is importable while the file runs, so that it may import its neighbours.

    Raises:
        UserCodeError: not of that form, no such file or name, not callable, or the file fails.
    """
    # The last colon: a Windows path has one of its own.
    file, _, name = spec.rpartition(":")
    path = Path(file)
    if not is_user_spec(spec) or not name.isidentifier():
        raise UserCodeError(f"expected file.py:name, found {clean(spec)!r}; name a function of a Python file")
    if not path.is_file():
        raise UserCodeError(code_not_found(clean(spec)))
    module = _run_file(path.resolve())
    shown = clean(path.name)
    if not hasattr(module, name):
        raise UserCodeError(f"{shown} has no {name!r}; define it or name another function")
    function = getattr(module, name)
    if not callable(function):
        raise UserCodeError(f"{name!r} in {shown} is a {type(function).__name__}; expected a function or class")
    return function  # type: ignore[no-any-return]


def call_user_function(function: Callable[..., Any], spec: str, *arguments: Any) -> Any:
    """``function(*arguments)``, with whatever it raises turned into one sentence.

    Raises:
        UserCodeError: the function failed; the original exception is the cause.
    """
    path, _, name = spec.rpartition(":")
    try:
        return function(*arguments)
    except (Exception, SystemExit) as cause:
        raise UserCodeError(
            f"{name!r} in {clean(Path(path).name)} failed ({type(cause).__name__}: {clean(cause)}); mend it and retry"
        ) from cause


def user_files() -> tuple[Path, ...]:
    """Files whose code was run in this process, for `load_user_file` in another one."""
    modules = [module for name, module in sys.modules.items() if name.startswith(_PREFIX)]
    return tuple(Path(module.__file__) for module in modules if module.__file__ is not None)


def load_user_file(path: Path) -> None:
    """Run a file of the user's, unless it was run before, so that its classes can be unpickled here.

    Raises:
        UserCodeError: the file fails.
    """
    if _module_name(path) not in sys.modules:
        _run_file(path)


def _module_name(path: Path) -> str:
    # A name of its own per path, so that a user's `model.py` hides no installed module.
    return _PREFIX + hashlib.blake2b(str(path).encode(), digest_size=8).hexdigest()


def _run_file(path: Path) -> object:
    module_name = _module_name(path)
    specification = importlib.util.spec_from_file_location(module_name, path)
    if specification is None or specification.loader is None:
        raise UserCodeError(f"can't import {clean(path.name)}; expected a Python file")
    module = importlib.util.module_from_spec(specification)
    folder = str(path.parent)
    # Classes defined there must find their module (pickling, dataclasses), so it is registered first.
    sys.modules[module_name] = module
    sys.path.insert(0, folder)
    try:
        try:
            specification.loader.exec_module(module)
        except RuntimeError as cause:
            # Beside a torch of another platform torchvision can't be imported before its operators are declared.
            if "torchvision::" not in str(cause):
                raise
            import_torchvision()
            specification.loader.exec_module(module)
    except (Exception, SystemExit) as cause:
        del sys.modules[module_name]
        raise UserCodeError(
            f"{clean(path.name)} failed on import ({type(cause).__name__}: {clean(cause)}); mend it and retry"
        ) from cause
    finally:
        if folder in sys.path:
            sys.path.remove(folder)
    return module
