"""Files that are either whole or absent, and the hashes that name them.

Every output is written beside its destination under a temporary name, flushed to disk, and
renamed, so that a kill or a full disk never leaves half a file under the real name.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from riskaudit.errors import OutputError, SettingsError


def sha256_of_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes, read in blocks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file as a mapping.

    Raises:
        SettingsError: missing, unreadable or not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"can't read {path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"expected TOML in {path}, found a mistake: {error}") from error


def _write_and_sync(path: Path, content: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def write_file(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` in one step.

    Raises:
        OutputError: the folder is missing or can't be written.
    """
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(descriptor)
        temporary = Path(name)
        try:
            _write_and_sync(temporary, content)
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"can't write {path}: {error.strerror or error}; choose another place") from error


def check_output_folder(folder: Path, own_names: Iterable[str]) -> None:
    """Refuse ``folder`` before any work is done if results can't go there.

    A folder is usable when it doesn't exist yet, is empty, or holds nothing but an earlier audit
    (files named in ``own_names``), which is then replaced as a whole.

    Raises:
        OutputError: the folder holds other files, isn't a folder, or can't be written.
    """
    try:
        if folder.exists() and not folder.is_dir():
            raise OutputError(f"expected a folder for the results, found the file {folder}; choose another --out")
        if folder.is_dir():
            own = set(own_names)
            foreign = sorted(entry.name for entry in folder.iterdir() if entry.name not in own or not entry.is_file())
            if foreign:
                raise OutputError(
                    f"{folder} already holds {foreign[0]!r}, which no audit wrote; "
                    "choose a new or empty folder with --out"
                )
        # Nothing is made yet, so that an audit that fails leaves nothing behind; the same call will make the
        # real temporary folder, so it fails for the same reasons.
        existing = next(parent for parent in folder.absolute().parents if parent.exists())
        Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=existing)).rmdir()
    except OSError as error:
        raise OutputError(f"can't write to {folder}: {error.strerror or error}; choose another --out") from error


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write all ``files`` (name to content) as ``folder`` in one step, replacing an earlier audit there.

    The caller has passed the folder through `check_output_folder`.

    Raises:
        OutputError: the place can't be written; what was there before is untouched.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            for name, content in files.items():
                _write_and_sync(temporary / name, content)
            temporary.chmod(0o755)
            if folder.exists() and any(folder.iterdir()):
                _replace_folder(temporary, folder)
            else:
                temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise OutputError(f"can't write to {folder}: {error.strerror or error}; choose another --out") from error


def _replace_folder(new: Path, folder: Path) -> None:
    """Put ``new`` in the place of ``folder``, which is not empty; a failure leaves ``folder`` as it was."""
    if _exchange(new, folder):
        return
    # rename(2) replaces only an empty folder: move the earlier one aside first.
    aside = new.with_name(f"{new.name}.earlier")
    folder.rename(aside)
    try:
        new.rename(folder)
    except BaseException:
        aside.rename(folder)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two paths in one step, so that a kill can't fall in between; False where the system can't (not Linux)."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    if renameat2 is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux's headers
    return bool(renameat2(here, os.fsencode(first), here, os.fsencode(second), exchange) == 0)
