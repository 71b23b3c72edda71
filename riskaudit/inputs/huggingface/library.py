"""The one place that imports transformers and tokenizers: without network, without words of theirs on the terminal.

Nothing here runs code of a folder, and nothing is looked up by name on a hub: models are made from classes that
transformers itself has (no ``trust_remote_code``), tokenizers from the folder's own files.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from riskaudit.errors import ArchitectureError, SamplesError
from riskaudit.torchvision_compat import import_torchvision

EXTRA = 'run pip install "riskaudit[hf]"'


def import_transformers() -> ModuleType:
    """The transformers package.

    Raises:
        ArchitectureError: it isn't installed.
    """
    # Read once, when the hub's client is first imported; where the user has set them, they stay.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # Transformers imports torchvision where it is installed, and fails with it.
    import_torchvision()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module("transformers")
        except ImportError as cause:
            raise ArchitectureError(f"models of Hugging Face folders need transformers; {EXTRA}") from cause


def import_tokenizers() -> ModuleType:
    """The tokenizers package.

    Raises:
        SamplesError: it isn't installed.
    """
    try:
        return importlib.import_module("tokenizers")
    except ImportError as cause:
        raise SamplesError(f"texts need tokenizers; {EXTRA}") from cause


@contextmanager
def quiet(transformers: ModuleType) -> Iterator[None]:
    """Without progress bars and reports of loading on the terminal; what matters of them is in the audit's notes."""
    logs: Any = transformers.utils.logging
    verbosity, has_bars = logs.get_verbosity(), logs.is_progress_bar_enabled()
    logs.set_verbosity_error()
    logs.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logs.set_verbosity(verbosity)
        if has_bars:
            logs.enable_progress_bar()
