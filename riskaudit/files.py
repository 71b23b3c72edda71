"""Files that are either whole or absent, and the hashes that name them.

Every output is written beside its destination under a temporary name, flushed to disk, and
renamed, so that a kill or a full disk never leaves half a file under the real name.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from riskaudit.errors import OutputError


def sha256_of_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes, read in blocks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


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
            foreign = sorted(entry.name for entry in folder.iterdir() if entry.name not in set(own_names))
            if foreign:
                raise OutputError(
                    f"{folder} already holds {foreign[0]!r}, which no audit wrote; "
                    "choose a new or empty folder with --out"
                )
        folder.parent.mkdir(parents=True, exist_ok=True)
        # The same call that will make the real temporary folder, so it fails for the same reasons.
        Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent)).rmdir()
    except OSError as error:
        raise OutputError(f"can't write to {folder}: {error.strerror or error}; choose another --out") from error


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write all ``files`` (name to content) as ``folder`` in one step, replacing an earlier audit there.

    The caller has passed the folder through `check_output_folder`.

    Raises:
        OutputError: the place can't be written; what was there before is untouched.
    """
    try:
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            for name, content in files.items():
                _write_and_sync(temporary / name, content)
            temporary.chmod(0o755)
            if folder.exists() and any(folder.iterdir()):
                # rename(2) replaces only an empty folder: move the earlier audit aside first.
                earlier = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
                folder.rename(earlier)
                try:
                    temporary.rename(folder)
                except OSError:
                    earlier.rename(folder)
                    raise
                shutil.rmtree(earlier)
            else:
                temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise OutputError(f"can't write to {folder}: {error.strerror or error}; choose another --out") from error
